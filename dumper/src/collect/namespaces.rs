//! Namespaces: the task must share ours, but for two kinds that a restore makes.
//!
//! Restore puts every task into a time namespace of its own, so that its clocks go on, and the page server
//! restores into a pid and mount namespace when the pid is taken there. So that what was restored can be
//! migrated again, the time namespace is kept (its clocks are dumped, restore makes a new one) and the
//! restore-made pid and mount namespaces are inherited: the images say "the restorer's", and the next page
//! server chooses.

use std::fs;

use nix::unistd::Pid;

use crate::error::DumpError;
use crate::parallel;
use crate::procfs::ns::{self, Kind};
use crate::procfs::{status, tree};
use crate::refusal::{Findings, Subject};

/// Namespaces that must be the dumper's own (man 7 namespaces).
const SHARED: [Kind; 5] = [Kind::Net, Kind::Ipc, Kind::Uts, Kind::User, Kind::Cgroup];

/// Namespaces that each thread can have for itself (`unshare`, `setns`); the others are of a process, or can be changed
/// only while that has one thread (man 2 setns).
const OF_THREADS: [Kind; 5] = [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Mnt, Kind::Cgroup];

/// What a page server's init for a restored tree looks like in `/proc/PID/cmdline`.
const RESTORE_INIT: (&str, &str) = ("godwit-page-server", "restore-init");

/// The dumper's own namespaces.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    shared: [Option<u64>; SHARED.len()],
    mounts: Option<u64>,
    pids: Option<u64>,
}

impl Own {
    /// Reads them.
    ///
    /// # Errors
    /// When a namespace link cannot be read.
    pub fn read() -> Result<Own, DumpError> {
        let own = |kind| ns::read(Pid::this(), kind);
        let mut shared = [None; SHARED.len()];
        for (inode, kind) in shared.iter_mut().zip(SHARED) {
            *inode = own(kind)?;
        }
        Ok(Own { shared, mounts: own(Kind::Mnt)?, pids: own(Kind::Pid)? })
    }
}

/// Checks every namespace of a task.
///
/// # Errors
/// When a namespace link cannot be read.
pub fn check(pid: Pid, own: &Own, findings: &mut Findings) -> Result<(), DumpError> {
    for (kind, own) in SHARED.into_iter().zip(own.shared) {
        if ns::read(pid, kind)? != own {
            let name = kind.name();
            findings.refuse(
                Subject::Process(pid),
                format!("it runs in a {name} namespace of its own"),
                format!("run it, or godwit, in the same {name} namespace (containers are not dumped yet)"),
            );
        }
    }
    let mounts = ns::read(pid, Kind::Mnt)?;
    if ns::read(pid, Kind::Pid)? == own.pids {
        if mounts != own.mounts {
            refuse_foreign(pid, "mnt", findings);
        }
        return Ok(());
    }
    match init_of(pid)? {
        Some(init) if is_restore_init(init) => {
            if mounts != ns::read(init, Kind::Mnt)? {
                refuse_foreign(pid, "mnt", findings);
            }
        }
        _ => refuse_foreign(pid, "pid", findings),
    }
    Ok(())
}

/// Refuses each process of a tree that lives in another pid or time namespace than its root: the images have one of each
/// for all.
///
/// # Errors
/// When a namespace link cannot be read. A process that ended meanwhile is left out.
pub fn check_tree(tree: &[Pid], findings: &mut Findings) -> Result<(), DumpError> {
    let Some(root) = tree.first() else { return Ok(()) };
    for kind in [Kind::Pid, Kind::Time] {
        let of_root = ns::read(*root, kind)?;
        parallel::look(&tree[1..], findings, |pid, findings| {
            match ns::read(*pid, kind) {
                Ok(of_task) if of_task == of_root => {}
                Ok(_) => findings.refuse(
                    Subject::Process(*pid),
                    format!("it runs in another {} namespace than the root of its tree", kind.name()),
                    "containers are not dumped yet; wait until it has ended",
                ),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Refuses each thread that runs in another namespace than its process: a restore puts all threads into one.
///
/// # Errors
/// When a namespace link cannot be read. A thread that ended meanwhile is left out.
pub fn check_threads(pid: Pid, findings: &mut Findings) -> Result<(), DumpError> {
    let threads: Vec<_> = tree::threads(pid)?.into_iter().filter(|tid| *tid != pid).collect();
    if threads.is_empty() {
        return Ok(());
    }
    for kind in OF_THREADS {
        let of_process = ns::read(pid, kind)?;
        parallel::look(&threads, findings, |tid, findings| {
            match ns::read(*tid, kind) {
                // A thread that ends has none any more.
                Ok(None) => {}
                Ok(of_thread) if of_thread == of_process => {}
                Ok(Some(_)) => findings.refuse(
                    Subject::Thread(*tid),
                    format!("it runs in another {} namespace than its process", kind.name()),
                    "run the program without that, or wait until the thread has ended",
                ),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn refuse_foreign(pid: Pid, kind: &str, findings: &mut Findings) {
    findings.refuse(
        Subject::Process(pid),
        format!("it runs in a {kind} namespace that no restore of godwit made"),
        "containers are not dumped yet; run it in godwit's own namespaces",
    );
}

/// The process that is pid 1 of the task's pid namespace, as we see it. It is an ancestor of every task in
/// it.
fn init_of(pid: Pid) -> Result<Option<Pid>, DumpError> {
    let namespace = ns::read(pid, Kind::Pid)?;
    let mut at = pid;
    // Each step goes to a parent, and a chain of parents has no cycle; the bound is for a table that changes.
    for _ in 0..4096 {
        let status = status::read(at)?;
        if status.ns_pid.last() == Some(&1) && ns::read(at, Kind::Pid)? == namespace {
            return Ok((at != pid).then_some(at));
        }
        match status.ppid {
            0 => return Ok(None),
            parent => at = Pid::from_raw(parent),
        }
    }
    Ok(None)
}

fn is_restore_init(init: Pid) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{init}/cmdline")) else { return false };
    let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let program = words.first().map(|word| word.rsplit('/').next().unwrap_or_default().to_owned());
    program.as_deref() == Some(RESTORE_INIT.0) && words.get(1).is_some_and(|word| word == RESTORE_INIT.1)
}
