//! What processes share beside files: address space, descriptor table, directories, signal handlers.
//!
//! Threads of one process share them all. A process that was made by `clone` with some of the flags, or by `vfork`
//! and not yet gone on, shares them with another one; CRIU restores neither that nor a process without the other.

use std::cmp::Ordering;

use nix::unistd::Pid;

use crate::procfs::{ProcfsError, status, tree};
use crate::refusal::{Findings, Subject};
use crate::sys::kcmp::{self, Kind};

/// What is looked for, in words.
const KINDS: [(Kind, &str); 4] = [
    (Kind::Vm, "address space (CLONE_VM, vfork)"),
    (Kind::Files, "descriptor table (CLONE_FILES)"),
    (Kind::Fs, "root and working directory (CLONE_FS)"),
    (Kind::Sighand, "signal handlers (CLONE_SIGHAND)"),
];

/// Refuses a process that shares one of these with any other process of the machine.
///
/// # Errors
/// When the processes cannot be listed.
pub fn check_all(pid: Pid, findings: &mut Findings) -> Result<(), ProcfsError> {
    check(pid, &tree::processes()?, findings);
    Ok(())
}

/// The same among its nearest: its parent, and what its parent has made. None but these can have come to share
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
