//! Looking into a pipe without taking anything out.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Duplicates up to `len` bytes at the head of pipe `from` into pipe `to` without consuming them (tee).
///
/// Never blocks. EAGAIN: `from` is empty (and has a writer) or `to` is full. 0: `from` is empty without a writer.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> nix::Result<usize> {
    const SPLICE_F_NONBLOCK: u64 = 2;
    // SAFETY: no memory is passed.
    let rc =
        unsafe { libc::syscall(libc::SYS_tee, from.as_raw_fd(), to.as_raw_fd(), len, SPLICE_F_NONBLOCK) };
    Errno::result(rc).map(|n| n as usize)
}

/// Bytes that can be read from a pipe, socket or terminal now (FIONREAD).
pub fn readable_bytes(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut count: i32 = 0;
    // SAFETY: the kernel writes one int.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(rc)?;
    Ok(usize::try_from(count).unwrap_or(0))
}
