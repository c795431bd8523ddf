//! `fcntl(2)` questions about an open file that nix has no name for.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
const F_SETPIPE_SZ: i32 = 1031;
const F_GETPIPE_SZ: i32 = 1032;
const F_GET_SEALS: i32 = 1034;

/// # Safety
/// `arg` must be what `command` expects; where the kernel writes through it, memory of the right size.
unsafe fn fcntl(fd: BorrowedFd<'_>, command: i32, arg: usize) -> nix::Result<i32> {
    // SAFETY: the caller keeps the contract of the command.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, arg) })
}

/// Who gets SIGIO for an open file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// `F_OWNER_TID` 0, `F_OWNER_PID` 1, `F_OWNER_PGRP` 2.
    pub kind: i32,
    /// The id as seen in the caller's pid namespace; 0: nobody.
    pub pid: i32,
}

/// The signal sent when I/O is possible; 0 means SIGIO without details (F_GETSIG).
pub fn signal(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    // SAFETY: no memory is passed.
    unsafe { fcntl(fd, F_GETSIG, 0) }
}

/// Who gets that signal (F_GETOWN_EX).
pub fn owner(fd: BorrowedFd<'_>) -> nix::Result<Owner> {
    let mut raw = [0i32; 2];
    // SAFETY: the kernel writes one struct f_owner_ex, two ints.
    unsafe { fcntl(fd, F_GETOWN_EX, raw.as_mut_ptr() as usize) }?;
    Ok(Owner { kind: raw[0], pid: raw[1] })
}

/// The uid and euid of the task that set the owner (F_GETOWNER_UIDS, CONFIG_CHECKPOINT_RESTORE).
pub fn owner_uids(fd: BorrowedFd<'_>) -> nix::Result<(u32, u32)> {
    let mut raw = [0u32; 2];
    // SAFETY: the kernel writes two uid_t.
    unsafe { fcntl(fd, F_GETOWNER_UIDS, raw.as_mut_ptr() as usize) }?;
    Ok((raw[0], raw[1]))
}

/// Capacity of a pipe in bytes (F_GETPIPE_SZ).
pub fn pipe_size(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    // SAFETY: no memory is passed.
    unsafe { fcntl(fd, F_GETPIPE_SZ, 0) }.map(|size| size as usize)
}

/// Sets the capacity of a pipe in bytes and returns what the kernel made of it (F_SETPIPE_SZ).
///
/// EPERM: above /proc/sys/fs/pipe-max-size without CAP_SYS_RESOURCE. EBUSY: more data than that is in it.
pub fn set_pipe_size(fd: BorrowedFd<'_>, bytes: usize) -> nix::Result<usize> {
    let bytes = i32::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: no memory is passed.
    unsafe { fcntl(fd, F_SETPIPE_SZ, bytes as usize) }.map(|size| size as usize)
}

/// The seals of a memfd, a sum of `F_SEAL_*` (F_GET_SEALS). EINVAL: the file cannot have seals.
pub fn seals(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    // SAFETY: no memory is passed.
    unsafe { fcntl(fd, F_GET_SEALS, 0) }.map(|seals| seals as u32)
}
