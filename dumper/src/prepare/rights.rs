//! Whether the dumper may look into the process at all, and what is missing where it may not.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::procfs::{ProcfsError, status};
use crate::refusal::{Findings, Subject};
use crate::sys;

/// `CAP_SYS_PTRACE` (include/uapi/linux/capability.h).
const SYS_PTRACE: u64 = 1 << 19;

/// Refuses a process that may not be traced by the dumper, and names the capability or the module that is in the way.
///
/// The question is a descriptor that nobody has: the kernel looks at the right first (PTRACE_MODE_ATTACH, kernel/pid.c).
/// Neither a non-dumpable process nor another user's is closed to CAP_SYS_PTRACE.
///
/// # Errors
/// When the dumper's own status cannot be read.
pub fn check(pid: Pid, pidfd: &OwnedFd, findings: &mut Findings) -> Result<(), ProcfsError> {
    if sys::pidfd::getfd(pidfd.as_fd(), i32::MAX).err() != Some(Errno::EPERM) {
        return Ok(());
    }
    let own = status::read(Pid::this())?;
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let (why, way_out) = if own.capabilities.effective & SYS_PTRACE == 0 {
        ("looking into it wants CAP_SYS_PTRACE", "run godwit as root with that capability")
    } else if yama.trim() == "3" {
        ("Yama forbids all tracing (kernel.yama.ptrace_scope = 3)", "boot with another value of that setting")
    } else {
        (
            "it may not be traced, although godwit has CAP_SYS_PTRACE: it lives in a user namespace above, or a \
             security module forbids it",
            "run godwit in the initial user namespace, and let the module allow ptrace",
        )
    };
    findings.refuse(Subject::Process(pid), why, way_out);
    Ok(())
}
