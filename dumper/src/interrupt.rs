//! SIGINT, SIGTERM and SIGHUP: acted upon where everything can be undone, never in between.
//!
//! The signals are blocked in every thread, and one thread waits for them. The first one asks: the flow looks at its
//! safe points ([`check`]) and undoes what was done, as after any failure. A second one ends the dumper at once, which
//! the process survives too. From `restore-sent` to the end of the hand-over no signal ends the dumper: the source then
//! lies frozen, and whoever wants it otherwise is told the command that decides. Signals that were ignored when the
//! dumper was started (nohup) stay ignored. A child must not inherit the block: see [`crate::sys::child`].

use std::io::{self, Write};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::procfs::status;

/// The signals that ask a program to end.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The first signal that came, 0 before.
static ASKED: AtomicI32 = AtomicI32::new(0);
/// The session whose source lies frozen until the hand-over ends.
static HELD: Mutex<Option<String>> = Mutex::new(None);

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
    if let Some(session) = held().clone() {
        return say(&format!(
            "{signal}: the source lies frozen for the hand-over of session {session}, which is brought to its end; \
             if this godwit is killed, `godwit session resolve {session}` (with the same --state-dir) decides"
        ));
    }
    if is_first {
        return say(&format!(
            "{signal}: everything is being undone, and the process runs on; a second one ends godwit at once"
        ));
    }
    say(&format!("{signal} once more: ended at once"));
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

/// From here on no signal ends the dumper, until the value is dropped.
///
/// # Errors
/// When a signal asked for the end before.
pub fn hold(session: &str) -> Result<Held, Interrupted> {
    let mut held = held();
    check()?;
    *held = Some(session.to_owned());
    Ok(Held(()))
}

/// While it lives no signal ends the dumper.
#[derive(Debug)]
pub struct Held(());

impl Drop for Held {
    fn drop(&mut self) {
        *held() = None;
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
