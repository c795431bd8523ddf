//! `ioctl_userfaultfd(2)`: asynchronous write protection of another process's pages.
//!
//! A userfaultfd belongs to the address space it was created in, whoever holds the descriptor. So one that was
//! made inside the target and duplicated out of it (`pidfd_getfd`) lets us register the target's memory.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Flag of userfaultfd(2): faults from kernel mode are not handled; needs no privilege (kernel 5.11).
pub const UFFD_USER_MODE_ONLY: u64 = 1;
/// Write-protect faults are resolved by the kernel itself and only noted in the page tables (kernel 6.7).
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

const UFFD_API: u64 = 0xaa;
const MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_WP: u64 = 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Span {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Span,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    range: Span,
    mode: u64,
}

nix::ioctl_readwrite!(
    /// UFFDIO_API as the kernel takes it.
    ioctl_api,
    0xaa,
    0x3f,
    Api
);
nix::ioctl_readwrite!(
    /// UFFDIO_REGISTER as the kernel takes it.
    ioctl_register,
    0xaa,
    0x00,
    Register
);
nix::ioctl_read!(
    /// UFFDIO_UNREGISTER as the kernel takes it.
    ioctl_unregister,
    0xaa,
    0x01,
    Span
);
nix::ioctl_readwrite!(
    /// UFFDIO_WRITEPROTECT as the kernel takes it.
    ioctl_writeprotect,
    0xaa,
    0x06,
    WriteProtect
);

fn span(range: &Range<u64>) -> Span {
    Span { start: range.start, len: range.end.saturating_sub(range.start) }
}

/// A userfaultfd for our own memory (userfaultfd(2)), close-on-exec and non-blocking.
///
/// EPERM: no right, or a seccomp filter denies it. ENOSYS: the kernel was built without it.
pub fn create() -> nix::Result<OwnedFd> {
    let flags = UFFD_USER_MODE_ONLY | (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    // SAFETY: no memory is passed.
    let rc = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = Errno::result(rc)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Agrees on the interface with `features` (UFFDIO_API). Done once per descriptor.
///
/// EINVAL: the kernel does not know one of the features.
pub fn api(fd: BorrowedFd<'_>, features: u64) -> nix::Result<()> {
    let mut arg = Api { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the kernel reads and writes one struct uffdio_api.
    unsafe { ioctl_api(fd.as_raw_fd(), &raw mut arg) }.map(drop)
}

/// Registers a page-aligned range for write protection (UFFDIO_REGISTER, mode WP).
///
/// EBUSY: another userfaultfd holds it. EPERM: a shared mapping of a file opened read-only. EINVAL: no memory that
/// can be registered (vdso, vvar). ENOMEM: the address space is gone.
pub fn register_wp(fd: BorrowedFd<'_>, range: &Range<u64>) -> nix::Result<()> {
    let mut arg = Register { range: span(range), mode: MODE_WP, ioctls: 0 };
    // SAFETY: the kernel reads and writes one struct uffdio_register.
    unsafe { ioctl_register(fd.as_raw_fd(), &raw mut arg) }.map(drop)
}

/// Ends the registration of a range and takes the protection off (UFFDIO_UNREGISTER).
pub fn unregister(fd: BorrowedFd<'_>, range: &Range<u64>) -> nix::Result<()> {
    let mut arg = span(range);
    // SAFETY: the kernel reads one struct uffdio_range.
    unsafe { ioctl_unregister(fd.as_raw_fd(), &raw mut arg) }.map(drop)
}

/// Protects (`on`) a registered range against writing, or takes the protection off (UFFDIO_WRITEPROTECT).
pub fn write_protect(fd: BorrowedFd<'_>, range: &Range<u64>, on: bool) -> nix::Result<()> {
    let mut arg = WriteProtect { range: span(range), mode: if on { WRITEPROTECT_MODE_WP } else { 0 } };
    // SAFETY: the kernel reads one struct uffdio_writeprotect.
    unsafe { ioctl_writeprotect(fd.as_raw_fd(), &raw mut arg) }.map(drop)
}
