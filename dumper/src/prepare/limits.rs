//! Our own limit of open descriptors: a dump holds a duplicate of every descriptor of the task.

use crate::error::DumpError;
use crate::sys::rlimit::{self, Limit};

/// Raises the soft limit to the hard one. Failure is logged only: most processes have few descriptors.
///
/// # Errors
/// Never.
pub fn raise() -> Result<(), DumpError> {
    let this = nix::unistd::Pid::this();
    let raised = rlimit::get(this, libc::RLIMIT_NOFILE)
        .and_then(|limit| rlimit::set_own(libc::RLIMIT_NOFILE, Limit { soft: limit.hard, hard: limit.hard }));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "the limit of open files stays low; a process with more cannot be dumped");
    }
    Ok(())
}
