//! What processes share beside files: address space, descriptor table, directories, signal handlers.
//!
//! Threads of one process share them all, unless one has called `unshare`: a restore makes every thread share them again,
//! and the images hold those of the first thread alone. A process that was made by `clone` with some of the flags, or by
//! `vfork` and not yet gone on, shares them with another one; of that CRIU restores a descriptor table that processes of one
//! tree share, and nothing else.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use nix::unistd::Pid;

use crate::parallel;
use crate::procfs::{ProcfsError, stat, tree};
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

/// Looks at what the processes of a tree share: with each other they may share a descriptor table, and nothing with the
/// processes `outside`. Gives, for each, the index of the first that has its descriptor table.
///
/// A process that ends meanwhile shares nothing.
///
/// # Errors
/// When the threads of a process cannot be listed.
pub fn check(tree: &[Pid], outside: &[Pid], findings: &mut Findings) -> Result<Vec<usize>, ProcfsError> {
    let mut shared: BTreeMap<(Pid, Pid), Vec<&str>> = BTreeMap::new();
    let mut tables: Vec<usize> = (0..tree.len()).collect();
    let mut with_others = Vec::new();
    for (kind, name) in KINDS {
        let mut order = Order { kind, sorted: Vec::with_capacity(tree.len()) };
        for (index, pid) in tree.iter().enumerate() {
            let Some((first, other)) = order.insert(*pid, index) else { continue };
            if kind == Kind::Files {
                tables[index] = first;
            } else {
                with_others.push((*pid, other));
            }
            shared.entry((*pid, other)).or_default().push(name);
        }
        for other in outside.iter().filter(|other| other.as_raw() > 0) {
            // One that may not be looked at is passed over: it would have to be a process's own maker or made, and of
            // the same user.
            if let Ok(at) = order.find(*other) {
                let (pid, _) = order.sorted[at];
                with_others.push((pid, *other));
                shared.entry((pid, *other)).or_default().push(name);
            }
        }
    }
    with_others.sort_unstable();
    with_others.dedup();
    for (pid, other) in with_others {
        let names = shared.remove(&(pid, other)).unwrap_or_default().join(", ");
        findings.refuse(
            Subject::Process(pid),
            format!("it shares its {names} with process {other}"),
            "wait until one of them has ended or started another program",
        );
    }
    parallel::look(tree, findings, |pid, findings| match check_threads(*pid, findings) {
        Err(error) if error.is_gone() && *pid != tree[0] => Ok(()),
        checked => checked,
    })?;
    Ok(tables)
}

/// Processes by the kernel object of one kind that they have, in the order of `kcmp`.
struct Order {
    kind: Kind,
    sorted: Vec<(Pid, usize)>,
}

impl Order {
    /// Where a process with the same object stands, or where this one would.
    fn find(&self, pid: Pid) -> Result<usize, usize> {
        self.sorted.binary_search_by(|(other, _)| {
            // One that cannot be compared has ended, or is none of our business: it is not equal.
            kcmp::tasks(*other, pid, self.kind).unwrap_or(Ordering::Less)
        })
    }

    /// Enters a process; gives the index and pid of the first one with the same object, if there is one.
    fn insert(&mut self, pid: Pid, index: usize) -> Option<(usize, Pid)> {
        match self.find(pid) {
            Ok(at) => Some((self.sorted[at].1, self.sorted[at].0)),
            Err(at) => {
                self.sorted.insert(at, (pid, index));
                None
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_shares_nothing_with_others() {
        let (me, mut findings) = (Pid::this(), Findings::default());
        let others: Vec<Pid> = tree::processes().unwrap().into_iter().filter(|pid| *pid != me).collect();
        assert_eq!(check(&[me], &others, &mut findings).unwrap(), [0]);
        assert_eq!(findings, Findings::default());
        // A thread shares everything with its process, which is what makes them found.
        std::thread::spawn(move || {
            let thread = nix::unistd::gettid();
            let mut findings = Findings::default();
            check(&[me], &[thread], &mut findings).unwrap();
            let why = &findings.refusals[0].why;
            assert!(KINDS.iter().all(|(_, name)| why.contains(name)), "{why}");
            let mut findings = Findings::default();
            assert_eq!(check(&[me, thread], &[], &mut findings).unwrap(), [0, 0]);
            let why = &findings.refusals[0].why;
            assert!(KINDS.iter().all(|(_, name)| why.contains(name)), "{why}");
        })
        .join()
        .unwrap();
    }
}
