//! Extended attributes of an open file or directory (man 7 xattr).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Sets attribute `name`, which has no value (fsetxattr).
///
/// ENOTSUP: the file system keeps no such attributes.
pub fn mark(fd: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    // SAFETY: the name is a terminated string; the kernel reads no byte of the value.
    Errno::result(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), name.as_ptr().cast(), 0, 0) })?;
    Ok(())
}

/// Whether there is an attribute `name` (fgetxattr).
pub fn is_marked(fd: BorrowedFd<'_>, name: &CStr) -> nix::Result<bool> {
    // SAFETY: the name is a terminated string; with a size of 0 the kernel writes nothing.
    match Errno::result(unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), std::ptr::null_mut(), 0) }) {
        Ok(_) => Ok(true),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Takes attribute `name` away (fremovexattr); one that is not there is no error.
pub fn unmark(fd: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    // SAFETY: the name is a terminated string.
    match Errno::result(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }) {
        Ok(_) | Err(Errno::ENODATA) => Ok(()),
        Err(errno) => Err(errno),
    }
}
