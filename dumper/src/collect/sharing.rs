//! What processes share beside files: address space, descriptor table, directories, signal handlers.
//!
//! Threads of one process share them all, unless one has called `unshare`: a restore makes every thread share them again,
//! and the images hold those of the first thread alone. A process that was made by `clone` with some of the flags, or by
//! `vfork` and not yet gone on, shares them with another one; CRIU restores neither that nor a process without the other.

use std::cmp::Ordering;

use nix::unistd::Pid;

use crate::procfs::{ProcfsError, stat, status, tree};
use crate::refusal::{Findings, Subject};
use crate::sys::kcmp::{self, Kind};

/// What is looked for, in words.
const KINDS: [(Kind, &str); 4] = [
    (Kind::Vm, "address space (CLONE_VM, vfork)"),
    (Kind::Files, "descriptor table (CLONE_FILES)"),
    (Kind::Fs, "root and working directory (CLONE_FS)"),
    (Kind::Sighand, "signal handlers (CLONE_SIGHAND)"),
];

/// What a thread can have for itself (`man 2 unshare`), in words.
const OF_THREADS: [(Kind, &str); 2] = [
    (Kind::Files, "descriptor table (unshare of CLONE_FILES)"),
    (Kind::Fs, "root and working directory (unshare of CLONE_FS)"),
];

/// Refuses a process that shares one of these with any other process of the machine, and a thread that does not share
/// them with its process.
///
/// # Errors
/// When the processes cannot be listed.
pub fn check_all(pid: Pid, findings: &mut Findings) -> Result<(), ProcfsError> {
    check(pid, &tree::processes()?, findings);
    check_threads(pid, findings)
}

/// The same with its nearest alone: its parent, and what its parent has made. None but these can have come to share
/// something since [`check_all`] looked, for it is made by the process itself.
///
/// # Errors
/// When the process is gone.
pub fn check_nearest(pid: Pid, findings: &mut Findings) -> Result<(), ProcfsError> {
    let parent = Pid::from_raw(status::read(pid)?.ppid);
    let mut nearest = vec![parent];
    // A parent that has ended meanwhile has no children.
    for tid in tree::threads(parent).unwrap_or_default() {
        nearest.extend(tree::children(parent, tid).unwrap_or_default());
    }
    check(pid, &nearest, findings);
    check_threads(pid, findings)
}

fn check_threads(pid: Pid, findings: &mut Findings) -> Result<(), ProcfsError> {
    for tid in tree::threads(pid)?.into_iter().filter(|tid| *tid != pid) {
        // A thread that cannot be compared has ended.
        let differs = |kind| kcmp::tasks(pid, tid, kind).is_ok_and(|order| order != Ordering::Equal);
        let own: Vec<_> =
            OF_THREADS.iter().filter(|(kind, _)| differs(*kind)).map(|(_, name)| *name).collect();
        // One that ends has given them up already, and says that it ends before it does so (kernel/exit.c, do_exit).
        let lives = || stat::read_thread(pid, tid).is_ok_and(|stat| stat.flags & stat::PF_EXITING == 0);
        if !own.is_empty() && lives() {
            findings.refuse(
                Subject::Thread(tid),
                format!("it has a {} of its own", own.join(" and a ")),
                "run the program without that, or wait until the thread has ended",
            );
        }
    }
    Ok(())
}

fn check(pid: Pid, others: &[Pid], findings: &mut Findings) {
    for other in others.iter().filter(|other| **other != pid && other.as_raw() > 0) {
        // One that ended, or that may not be looked at, is passed over: it would have to be the process's own maker
        // or made, and of the same user.
        let shares = |kind| kcmp::tasks(pid, *other, kind).is_ok_and(|order| order == Ordering::Equal);
        let shared: Vec<_> = KINDS.iter().filter(|(kind, _)| shares(*kind)).map(|(_, name)| *name).collect();
        if !shared.is_empty() {
            findings.refuse(
                Subject::Process(pid),
                format!("it shares its {} with process {other}", shared.join(", ")),
                "wait until one of them has ended or started another program",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_shares_nothing_with_others() {
        let mut findings = Findings::default();
        check_all(Pid::this(), &mut findings).unwrap();
        check_nearest(Pid::this(), &mut findings).unwrap();
        assert_eq!(findings, Findings::default());
        // A thread shares everything with its process, which is what makes them found.
        std::thread::spawn(|| {
            let mut findings = Findings::default();
            check(Pid::this(), &[nix::unistd::gettid()], &mut findings);
            let why = &findings.refusals[0].why;
            assert!(KINDS.iter().all(|(_, name)| why.contains(name)), "{why}");
        })
        .join()
        .unwrap();
    }
}
