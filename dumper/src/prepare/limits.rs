//! Our own limit of open descriptors: a dump holds a duplicate of every descriptor of the tree, and some for each process.

use std::error::Error;
use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::collect::tree::{TASKS_MAX, children};
use crate::error::DumpError;
use crate::procfs::fdinfo;
use crate::refusal::{Findings, Subject};
use crate::sys::rlimit::{self, Limit};

/// Descriptors for a process: its claim, two pidfds, and one that is open for a moment.
const EACH_PROCESS: u64 = 4;
/// Descriptors that are needed however small the tree is: images, threads, the link.
const OWN: u64 = 96;

/// Raises the soft limit to the hard one. Failure is logged only: most processes have few descriptors.
///
/// # Errors
/// Never.
pub fn raise() -> Result<(), DumpError> {
    let this = Pid::this();
    let raised = rlimit::get(this, libc::RLIMIT_NOFILE)
        .and_then(|limit| rlimit::set_own(libc::RLIMIT_NOFILE, Limit { soft: limit.hard, hard: limit.hard }));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "the limit of open files stays low; a process with more cannot be dumped");
    }
    Ok(())
}

/// Refuses a tree that has more descriptors than we may have, before any of them is opened.
///
/// # Errors
/// That, by name; or when `/proc` does not tell.
pub fn suffice(root: Pid) -> Result<(), DumpError> {
    let Some(limit) = own() else { return Ok(()) };
    let (mut tree, mut next, mut theirs) = (vec![root], 0, 0);
    while let Some(pid) = tree.get(next).copied().filter(|_| next < TASKS_MAX) {
        match fdinfo::list(pid) {
            Ok(fds) => theirs += fds.len() as u64,
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
        tree.extend(children(pid)?);
        next += 1;
    }
    let needed = theirs + tree.len() as u64 * EACH_PROCESS + OWN;
    if needed <= limit {
        return Ok(());
    }
    let mut findings = Findings::default();
    findings.refuse(
        Subject::Process(root),
        format!(
            "its tree of {} processes has {theirs} open descriptors, so that godwit needs {needed} of its own, and may have \
             {limit}",
            tree.len()
        ),
        way_out(),
    );
    findings.verdict()?;
    Ok(())
}

/// What can be done about an error that says that we have no descriptor left; `None` for any other.
pub fn explain(error: &DumpError) -> Option<String> {
    // Not what the process itself was asked for: then the limit is its own.
    if matches!(error, DumpError::Remote(_) | DumpError::Tracker(_)) {
        return None;
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let of_io = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).map(Errno::from_raw);
        match of_io.or_else(|| error.downcast_ref::<Errno>().copied()) {
            Some(Errno::EMFILE) => {
                let limit = own().map_or_else(|| "a limited number of".to_owned(), |limit| limit.to_string());
                return Some(format!("godwit may have {limit} open descriptors; {}", way_out()));
            }
            Some(Errno::ENFILE) => {
                return Some(
                    "the machine has no more open files to give; raise /proc/sys/fs/file-max".to_owned(),
                );
            }
            _ => cause = error.source(),
        }
    }
    None
}

fn own() -> Option<u64> {
    rlimit::get(Pid::this(), libc::RLIMIT_NOFILE).ok().map(|limit| limit.soft)
}

fn way_out() -> String {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    let most = most.trim();
    format!(
        "it raises its limit (RLIMIT_NOFILE) to the hard one itself: start it with a higher hard limit (`ulimit -Hn`, \
         LimitNOFILE= of its service, `prlimit --nofile`), up to {most} (/proc/sys/fs/nr_open)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_explained_wherever_it_shows() {
        let of = |errno: Errno| explain(&DumpError::sys("fd 3 of process 7", "pidfd_getfd", errno));
        let told = of(Errno::EMFILE).unwrap();
        assert!(told.contains("RLIMIT_NOFILE") && told.contains(&own().unwrap().to_string()), "{told}");
        assert!(of(Errno::ENFILE).unwrap().contains("file-max"));
        assert_eq!(of(Errno::EPERM), None);
        let freeze = crate::freeze::seize::FreezeError::Ptrace {
            tid: Pid::from_raw(7),
            request: "pidfd_open",
            source: Errno::EMFILE,
        };
        assert!(explain(&DumpError::from(freeze)).is_some());
    }
}
