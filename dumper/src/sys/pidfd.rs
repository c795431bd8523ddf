//! Process descriptors: a handle on a process that its pid's reuse cannot fool (`man 2 pidfd_open`).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// A descriptor for process `pid` (pidfd_open, kernel 5.3). It polls readable once the process has ended.
///
/// EINVAL or ENOENT: `pid` is a thread that leads no process.
pub fn open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_open, i64::from(pid.as_raw()), 0u64) };
    let fd = Errno::result(rc)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A duplicate, close-on-exec, of descriptor `target` of the process (pidfd_getfd, kernel 5.6).
///
/// EBADF: it has no such descriptor. EPERM: no right to trace it.
pub fn getfd(pidfd: BorrowedFd<'_>, target: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), target, 0u64) };
    let fd = Errno::result(rc)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process (pidfd_send_signal, kernel 5.1); 0 only checks that it is there.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    // SAFETY: no siginfo is passed.
    let rc = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0u64)
    };
    Errno::result(rc).map(drop)
}
