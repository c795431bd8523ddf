//! System calls that no safe wrapper covers. One function a call, no policy; the only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts writing dirty pages of a range to disk and does not wait for it (`man 2 sync_file_range`,
/// `SYNC_FILE_RANGE_WRITE`). It promises nothing: only fsync makes data durable.
///
/// # Errors
/// What the kernel answers, `EINVAL` for a range above 2^63 bytes among it.
pub fn start_writeback(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: the descriptor is open for as long as it is borrowed, and the call takes no pointer.
    let rc = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
