//! SIGINT, SIGTERM and SIGHUP: acted upon where everything can be undone, never in between.
//!
//! The signals are blocked in every thread, and one thread waits for them. The first one asks: the flow looks at its
//! safe points ([`check`]) and undoes what was done, as after any failure. A second one ends the dumper at once, which
//! the process survives too. From the freeze that outlives us to the end of the hand-over no signal ends the dumper: the
//! first one gives the hand-over up if it still can be, and whoever wants it otherwise is told the command that decides.
//! Signals that were ignored when the
//! dumper was started (nohup) stay ignored. A child must not inherit the block: see [`crate::sys::child`].

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::procfs::status;

/// The signals that ask a program to end.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The first signal that came, 0 before.
static ASKED: AtomicI32 = AtomicI32::new(0);
/// What is to be said of a signal while none ends the dumper.
static HELD: Mutex<Option<String>> = Mutex::new(None);
/// The process will not run on here any more, whatever comes.
static IS_SETTLED: AtomicBool = AtomicBool::new(false);

/// A signal asked the dumper to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{signal} ended it; the process runs on as it was")]
pub struct Interrupted {
    /// Which.
    pub signal: Signal,
}

impl Interrupted {
    /// The exit status that a shell gives to a program which the signal ended.
    pub fn exit_status(self) -> u8 {
        128 + self.signal as u8
    }
}

/// Takes the signals for this program from here on. To be called before any other thread is started.
///
/// # Errors
/// When they cannot be blocked, or no thread can be started.
pub fn listen() -> io::Result<()> {
    let ignored = status::read(Pid::this()).map_or(0, |status| status.signals.ignored);
    let mut set = SigSet::empty();
    for signal in SIGNALS.into_iter().filter(|signal| ignored & 1 << (*signal as i32 - 1) == 0) {
        set.add(signal);
    }
    set.thread_block()?;
    std::thread::Builder::new().name("godwit-signals".to_owned()).spawn(move || {
        while let Ok(signal) = set.wait() {
            take(signal);
        }
    })?;
    Ok(())
}

fn take(signal: Signal) {
    let is_first = ASKED.compare_exchange(0, signal as i32, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    // A statement of its own, so that the lock is free again: whoever ends a hand-over takes it.
    let told = held().clone();
    if let Some(told) = told {
        return say_unless_full(&format!("{signal}: {told}"));
    }
    if is_first {
        let what = match IS_SETTLED.load(Ordering::SeqCst) {
            true => "it is too late to undo anything, and godwit is about to end",
            false => "everything is being undone, and the process runs on",
        };
        return say_unless_full(&format!("{signal}: {what}; a second one ends godwit at once"));
    }
    say_unless_full(&format!("{signal} once more: ended at once"));
    // Under the lock, so that no hand-over begins between the look and the end.
    let held = held();
    if held.is_none() {
        let _ = SigSet::from(signal).thread_unblock();
        // Its action was never changed, so this ends the program.
        let _ = kill(Pid::this(), signal);
    }
}

fn held() -> MutexGuard<'static, Option<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The signal that asked for the end, if one did.
pub fn asked() -> Option<Interrupted> {
    let signal = Signal::try_from(ASKED.load(Ordering::SeqCst)).ok()?;
    Some(Interrupted { signal })
}

/// A safe point: everything done so far can be undone here.
///
/// # Errors
/// When a signal asked for the end.
pub fn check() -> Result<(), Interrupted> {
    asked().map_or(Ok(()), Err)
}

/// From here on no signal ends the dumper, until the value is dropped. Whoever sends one is told `told`.
///
/// # Errors
/// When a signal asked for the end before.
pub fn hold(told: String) -> Result<Held, Interrupted> {
    let mut held = held();
    check()?;
    *held = Some(told);
    Ok(Held(()))
}

/// Whether no signal ends the dumper at present.
pub fn is_held() -> bool {
    held().is_some()
}

/// The process is dead, stopped or left to `session resolve`: nobody may be told any more that it runs on.
pub fn settle() {
    IS_SETTLED.store(true, Ordering::SeqCst);
}

/// While it lives no signal ends the dumper.
#[derive(Debug)]
pub struct Held(());

impl Drop for Held {
    fn drop(&mut self) {
        *held() = None;
    }
}

/// As [`say`], or not at all where nobody reads: the thread that takes the signals must not wait for a reader.
fn say_unless_full(text: &str) {
    let stderr = io::stderr();
    let mut wanted = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let has_room = poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    if has_room {
        // Past the lock of the standard library, which a thread that waits for a reader keeps. One write of less than
        // a page: a pipe that has room takes it whole.
        let _ = nix::unistd::write(stderr.as_fd(), format!("godwit: {text}\n").as_bytes());
    }
}

/// Says something on standard error. Nobody who stopped reading may stop a hand-over.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "godwit: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_that_of_a_shell() {
        assert_eq!(Interrupted { signal: Signal::SIGTERM }.exit_status(), 143);
        assert_eq!(Interrupted { signal: Signal::SIGINT }.exit_status(), 130);
    }
}
