//! `name_to_handle_at(2)`: an identity of a file that outlives its names.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// Opens the file with this handle, as a path only (open_by_handle_at with O_PATH). `mount` is any directory of its file system,
/// and the path is as that mount shows it.
///
/// ESTALE: the file is gone, or lies on another file system. EPERM: no CAP_DAC_READ_SEARCH.
pub fn open(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> nix::Result<OwnedFd> {
    #[repr(C)]
    struct Raw {
        handle_bytes: u32,
        handle_type: i32,
        f_handle: [u8; HANDLE_BYTES_MAX],
    }
    let mut raw =
        Raw { handle_bytes: bytes.len() as u32, handle_type: kind, f_handle: [0; HANDLE_BYTES_MAX] };
    raw.f_handle.get_mut(..bytes.len()).ok_or(Errno::EOVERFLOW)?.copy_from_slice(bytes);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads at most handle_bytes bytes of the handle, which it has.
    let rc = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const raw, flags) };
    let fd = Errno::result(rc)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
