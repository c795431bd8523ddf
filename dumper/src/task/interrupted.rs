//! What a pending signal makes of the call that a thread is in.
//!
//! A thread that is stopped in a call has not yet looked at its pending signals. Without one that a handler takes, the
//! kernel makes the call once more; with one, the call may end with EINTR when the handler returns (man 7 signal).
//! Restore gives the thread the signal again but not the kernel's memory of the call, so the image must say how
//! it ends: a `pause` that is made once more after its signal would wait for ever.

use godwit_wire::image::sa::SaEntry;
use godwit_wire::image::siginfo::SignalQueueEntry;

use crate::freeze::seize::Thread as Stopped;
use crate::remote::arch;
use crate::sys::ptrace::Regs;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals that are taken before all others (kernel/signal.c, SYNCHRONOUS_MASK).
const SYNCHRONOUS: u64 = bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGFPE)
    | bit(libc::SIGSYS);

/// Signals whose default action leaves the process running: ignored, continued, or stopped for a while.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGCONT)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

/// What one thread has pending, and which of it is open to it. Bit n-1 is signal n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Signals of this thread alone.
    pub private: u64,
    /// Signals of the process that this thread will take.
    pub shared: u64,
}

/// Tells which thread takes which signal, the leader first as the kernel does, and what that makes of its call.
#[derive(Debug)]
pub struct Interrupted<'a> {
    /// Pending signals of the process that no thread before takes.
    shared: u64,
    actions: &'a [SaEntry],
}

impl Interrupted<'_> {
    /// `shared` are the pending signals of the process, `actions` those of all signals but SIGKILL and SIGSTOP, in order.
    pub fn new<'a>(shared: &SignalQueueEntry, actions: &'a [SaEntry]) -> Interrupted<'a> {
        Interrupted { shared: set_of(shared), actions }
    }

    /// The registers that an image must hold of the next thread, whose pending signals are `private`.
    ///
    /// `blocked` is what it blocks now, in its call. A signal that it blocks outside, and not in a call with a mask of its
    /// own (`sigsuspend`), is taken by that call when it is made anew.
    pub fn registers(&mut self, stopped: &Stopped, private: &SignalQueueEntry, blocked: u64) -> Regs {
        let open = self.open(set_of(private), blocked | stopped.sigmask);
        let ended = first_handled(open, self.actions).and_then(|action| {
            arch::interrupted(stopped.regs_to_resume(), action.flags & libc::SA_RESTART as u64 != 0)
        });
        ended.unwrap_or_else(|| stopped.regs_to_dump())
    }

    fn open(&mut self, private: u64, blocked: u64) -> Open {
        let taken = Open { private: private & !blocked, shared: self.shared & !blocked };
        self.shared &= blocked;
        taken
    }
}

/// The signals in a queue. Each record is a `siginfo_t`, whose first word is the signal.
fn set_of(queue: &SignalQueueEntry) -> u64 {
    let numbers = queue.signals.iter().filter_map(|entry| entry.siginfo.first_chunk::<4>());
    let signals = numbers.map(|bytes| i32::from_le_bytes(*bytes)).filter(|signal| (1..=64).contains(signal));
    signals.fold(0, |set, signal| set | bit(signal))
}

/// The action of the first signal for which a handler will run, in the order in which the kernel takes them.
fn first_handled(open: Open, actions: &[SaEntry]) -> Option<&SaEntry> {
    let synchronous_first = |set: u64| [set & SYNCHRONOUS, set & !SYNCHRONOUS];
    let order = [open.private, open.shared].into_iter().flat_map(synchronous_first);
    for signal in order.flat_map(|set| (1..=64).filter(move |signal| set & bit(*signal) != 0)) {
        let Some(action) = action_of(actions, signal) else { continue };
        match action.sigaction {
            SIG_IGN => {}
            SIG_DFL if HARMLESS & bit(signal) != 0 => {}
            // It ends the process.
            SIG_DFL => return None,
            _ => return Some(action),
        }
    }
    None
}

fn action_of(actions: &[SaEntry], signal: i32) -> Option<&SaEntry> {
    let before = [libc::SIGKILL, libc::SIGSTOP].iter().filter(|other| **other < signal).count();
    let index = usize::try_from(signal).ok()?.checked_sub(1 + before)?;
    let listed = ![libc::SIGKILL, libc::SIGSTOP].contains(&signal);
    actions.get(index).filter(|_| listed)
}

#[cfg(test)]
mod tests {
    use godwit_wire::image::siginfo::SiginfoEntry;

    use super::*;

    fn actions(set: &[(i32, u64)]) -> Vec<SaEntry> {
        (1..=64)
            .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
            .map(|signal| {
                let found = set.iter().find(|(other, _)| *other == signal);
                let sigaction = found.map_or(SIG_DFL, |(_, handler)| *handler);
                SaEntry { sigaction, flags: signal as u64, ..SaEntry::default() }
            })
            .collect()
    }

    #[test]
    fn the_action_of_each_signal_is_found() {
        let all = actions(&[]);
        for signal in (1..=64).filter(|signal| ![9, 19].contains(signal)) {
            assert_eq!(action_of(&all, signal).unwrap().flags, signal as u64);
        }
        assert_eq!(action_of(&all, 9), None);
        assert_eq!(action_of(&all, 19), None);
    }

    #[test]
    fn the_first_signal_with_a_handler_decides() {
        let all = actions(&[(10, 0x1000), (11, 0x2000), (40, 0x3000), (13, SIG_IGN)]);
        let flags =
            |private, shared| first_handled(Open { private, shared }, &all).map(|action| action.flags);
        assert_eq!(flags(0, 0), None);
        assert_eq!(flags(bit(10) | bit(40), 0), Some(10));
        assert_eq!(flags(bit(40), bit(10)), Some(40), "private ones come first");
        assert_eq!(flags(bit(10) | bit(11), 0), Some(11), "a fault comes before all");
        assert_eq!(flags(bit(13) | bit(17) | bit(20), bit(40)), Some(40), "these do nothing to the call");
        assert_eq!(flags(bit(15), bit(40)), None, "the process ends before that");
    }

    #[test]
    fn a_shared_signal_goes_to_the_first_that_does_not_block_it() {
        let queue = |signals: &[i32]| SignalQueueEntry {
            signals: signals
                .iter()
                .map(|signal| SiginfoEntry { siginfo: [signal.to_le_bytes(), [0xff; 4]].concat() })
                .collect(),
        };
        let mut interrupted = Interrupted::new(&queue(&[10, 12, 12]), &[]);
        assert_eq!(
            interrupted.open(set_of(&queue(&[14])), bit(10)),
            Open { private: bit(14), shared: bit(12) }
        );
        assert_eq!(interrupted.open(bit(10), bit(10)), Open::default(), "its own call will take it");
        assert_eq!(interrupted.open(0, 0), Open { private: 0, shared: bit(10) });
        assert_eq!(interrupted.open(0, 0), Open::default());
    }
}
