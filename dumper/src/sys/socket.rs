//! Facts about a socket that nix has no name for.

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Reads an option of level SOL_SOCKET that the kernel writes as `T`.
///
/// # Safety
/// Every byte pattern must be a `T`.
unsafe fn option<T: Copy>(fd: BorrowedFd<'_>, name: i32) -> nix::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which `value` has.
    let rc = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(rc)?;
    // SAFETY: what the kernel left was zeroed, and the caller says that any bytes will do.
    Ok(unsafe { value.assume_init() })
}

/// An option that is a number (getsockopt, SOL_SOCKET).
pub fn number(fd: BorrowedFd<'_>, name: i32) -> nix::Result<i32> {
    // SAFETY: any bytes are an int.
    unsafe { option(fd, name) }
}

/// An option that is a pair of numbers, such as SO_LINGER.
pub fn pair(fd: BorrowedFd<'_>, name: i32) -> nix::Result<[i32; 2]> {
    // SAFETY: any bytes are two ints.
    unsafe { option(fd, name) }
}

/// An option that is a time, in seconds and microseconds.
pub fn time(fd: BorrowedFd<'_>, name: i32) -> nix::Result<(u64, u64)> {
    // SAFETY: any bytes are two words, as struct timeval is.
    let [seconds, micros]: [u64; 2] = unsafe { option(fd, name) }?;
    Ok((seconds, micros))
}

/// Where a peek begins, in bytes from the head of the queue; -1: at the head, always (SO_PEEK_OFF).
pub fn set_peek_offset(fd: BorrowedFd<'_>, offset: i32) -> nix::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel reads one int.
    let rc = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, (&raw const offset).cast(), len)
    };
    Errno::result(rc).map(drop)
}

/// How many instructions a filter has at most (BPF_MAXINSNS).
const FILTER_MAX: usize = 4096;

/// The instructions of a socket's filter, none if it has none (SO_GET_FILTER).
pub fn filter(fd: BorrowedFd<'_>) -> nix::Result<Vec<libc::sock_filter>> {
    const NOTHING: libc::sock_filter = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
    let mut program = vec![NOTHING; FILTER_MAX];
    // Counted in instructions, not bytes.
    let mut len = FILTER_MAX as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` instructions.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            program.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(rc)?;
    program.truncate(len as usize);
    Ok(program)
}

/// The file that a unix socket is bound to, opened by O_PATH (SIOCUNIXFILE). Wants CAP_NET_ADMIN.
pub fn bound_file(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: no memory is passed.
    let file = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE, 0) })?;
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}
