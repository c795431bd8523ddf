//! Timer descriptors: what nix's own type, which owns its descriptor, cannot be asked of a borrowed one.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// What is left of a timer's time, as seconds and nanoseconds; zero if it is not armed (man 2 timerfd_gettime).
///
/// A periodic timer that expired is set forward by this, as by a read: the expirations since then are counted.
pub fn time_left(fd: BorrowedFd<'_>) -> nix::Result<(u64, u64)> {
    const ZERO: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut time = libc::itimerspec { it_interval: ZERO, it_value: ZERO };
    // SAFETY: the kernel writes one itimerspec.
    let rc = unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut time) };
    Errno::result(rc)?;
    Ok((time.it_value.tv_sec as u64, time.it_value.tv_nsec as u64))
}
