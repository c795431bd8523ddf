//! `name_to_handle_at(2)`: an identity of a file that outlives its names.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Most bytes in a handle (`MAX_HANDLE_SZ`, linux/exportfs.h).
const HANDLE_BYTES_MAX: usize = 128;

/// A file handle as its file system made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Kind, private to the file system.
    pub kind: i32,
    /// Its bytes, at most 128.
    pub bytes: Vec<u8>,
    /// The mount it was taken through, as in /proc/PID/mountinfo.
    pub mnt_id: i32,
}

/// The handle of the file open as `fd` (name_to_handle_at with AT_EMPTY_PATH).
///
/// EOPNOTSUPP: the file system has no handles.
pub fn of_fd(fd: BorrowedFd<'_>) -> nix::Result<Handle> {
    #[repr(C)]
    struct Raw {
        handle_bytes: u32,
        handle_type: i32,
        f_handle: [u8; HANDLE_BYTES_MAX],
    }
    let mut raw =
        Raw { handle_bytes: HANDLE_BYTES_MAX as u32, handle_type: 0, f_handle: [0; HANDLE_BYTES_MAX] };
    let mut mnt_id: i32 = 0;
    // SAFETY: the path is an empty C string; the kernel writes at most handle_bytes bytes and one int.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut raw,
            &raw mut mnt_id,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(rc)?;
    let len = (raw.handle_bytes as usize).min(HANDLE_BYTES_MAX);
    Ok(Handle { kind: raw.handle_type, bytes: raw.f_handle[..len].to_vec(), mnt_id })
}
