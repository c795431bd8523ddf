//! What the kernel can do, found out by using it on ourselves. The trackers have a self-test of their own.

use std::os::fd::AsFd;

use nix::unistd::Pid;

use crate::error::DumpError;
use crate::sys;
use crate::sys::process_vm::Remote;

/// Probes everything that every dump needs.
///
/// # Errors
/// Naming the call that the kernel refuses, and what grants it.
pub fn probe() -> Result<(), DumpError> {
    let this = Pid::this();
    let failed = |what| move |errno| DumpError::sys("this kernel, or a missing capability", what, errno);
    let pidfd = sys::pidfd::open(this).map_err(failed("pidfd_open (Linux 5.3)"))?;
    let copy = sys::pidfd::getfd(pidfd.as_fd(), 2);
    if !matches!(copy, Ok(_) | Err(nix::errno::Errno::EBADF)) {
        copy.map_err(failed("pidfd_getfd (Linux 5.6, CAP_SYS_PTRACE)"))?;
    }
    sys::kcmp::tasks(this, this, sys::kcmp::Kind::Vm)
        .map_err(failed("kcmp (CONFIG_KCMP, CAP_SYS_PTRACE)"))?;
    let word = [7u8; 8];
    let mut read = [0u8; 8];
    let piece = Remote { addr: word.as_ptr() as u64, len: word.len() };
    sys::process_vm::read(this, &[piece], &mut read)
        .map_err(failed("process_vm_readv (CONFIG_CROSS_MEMORY_ATTACH)"))?;
    if read != word {
        return Err(failed("process_vm_readv (it read something else)")(nix::errno::Errno::EIO));
    }
    Ok(())
}
