//! What a dumper that was killed may have left in the process, and that nobody else dumps it meanwhile.
//!
//! A userfaultfd is made by the process and initialised only once the process has closed it (see the `uffd-wp`
//! tracker), so a dumper killed in between leaves a descriptor that does nothing. Scratch memory is taken away by the
//! next session of remote calls.

use std::fs::{self, File};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;

use crate::error::DumpError;
use crate::freeze::seize;
use crate::prepare::root::Root;
use crate::procfs::fdinfo;

/// A program of its own initialises a userfaultfd right after it made one: what is still not after this time is left
/// over.
const INERT_FOR: Duration = Duration::from_millis(50);

/// Takes the process for this dumper alone, until the value is dropped or we die: two trackers that clear the same
/// bits would each lose what the other has seen.
///
/// # Errors
/// When another godwit dumps it.
pub fn claim(root: &Root) -> Result<Flock<File>, DumpError> {
    let pid = root.pid;
    let dir = File::open(format!("/proc/{pid}"))
        .map_err(|source| DumpError::sys(format!("process {pid}"), "opening its /proc directory", source))?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            DumpError::Usage(format!("another godwit is dumping process {pid}: wait for it, or end it"))
        }
        errno => DumpError::sys(format!("process {pid}"), "locking its /proc directory", errno),
    })
}

/// Closes descriptors that a killed dumper left in the process.
///
/// # Errors
/// When there is one and the process cannot be stopped to close it.
pub fn sweep(root: &Root) -> Result<(), DumpError> {
    let pid = root.pid;
    let first = inert(pid)?;
    if first.is_empty() {
        return Ok(());
    }
    std::thread::sleep(INERT_FOR);
    let still: Vec<i32> = inert(pid)?.into_iter().filter(|fd| first.contains(fd)).collect();
    if still.is_empty() {
        return Ok(());
    }
    tracing::warn!(%pid, fds = ?still, "closing userfaultfds that a killed godwit left in the process");
    let frozen = seize::seize_one(pid)?;
    let tid = frozen.threads().first().map_or(pid, |thread| thread.tid);
    let mut session = frozen.remote(tid)?;
    for fd in still {
        session.syscall(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
    }
    session.finish()?;
    frozen.thaw()?;
    Ok(())
}

/// Userfaultfds that were never initialised: their `API:` line shows no features (fs/userfaultfd.c,
/// userfaultfd_show_fdinfo).
fn inert(pid: Pid) -> Result<Vec<i32>, DumpError> {
    let is_inert = |fd: &i32| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        target.as_os_str() == "anon_inode:[userfaultfd]"
            && fdinfo::read(pid, *fd).is_ok_and(|info| info.extra("API").is_some_and(shows_no_features))
    };
    Ok(fdinfo::list(pid)?.into_iter().filter(is_inert).collect())
}

/// Whether the middle part of `aa:0:7f` is zero.
fn shows_no_features(api: &[u8]) -> bool {
    let mut parts = api.split(|byte| *byte == b':');
    parts.nth(1).is_some_and(|features| features.iter().all(|digit| *digit == b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_uninitialised_descriptor_is_inert() {
        assert!(shows_no_features(b"aa:0:1ffff"));
        assert!(!shows_no_features(b"aa:80008000:1ffff"));
        assert!(!shows_no_features(b""));
    }
}
