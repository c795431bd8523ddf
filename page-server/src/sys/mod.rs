//! System calls that no safe wrapper covers. One function a call, no policy; the only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// A descriptor that means this process and no later one of the same pid (`man 2 pidfd_open`).
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, close-on-exec, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process that the descriptor means (`man 2 pidfd_send_signal`).
///
/// # Errors
/// `ESRCH` if it has ended.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as it is borrowed, and a null siginfo is allowed.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Free memory in bytes that the allocator keeps at the end of a heap before it gives any back.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 32 << 20;
/// Size in bytes from which an allocation is a mapping of its own, and is given back at once.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES: libc::c_int = 4 << 20;

/// Lets the allocator keep what was freed (`man 3 mallopt`). By default it gives every 128 KiB at the end of a heap
/// back; a link takes and frees a packet of 64 KiB a thousand times a second, and the kernel then clears a page as often
/// as it copies one, which is a third of what receiving costs.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call takes two integers and changes two settings of the allocator, under its own lock.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
    }
}

/// Asks the processor about itself (CPUID, Intel SDM volume 2A, AMD APM volume 3).
#[cfg(target_arch = "x86_64")]
pub fn cpuid(leaf: u32, subleaf: u32) -> crate::cpu::Registers {
    #[allow(unused_unsafe, reason = "safe from Rust 1.94 on, unsafe in the oldest supported compiler")]
    // SAFETY: every x86-64 processor has CPUID; an unknown leaf answers zeros or the last known one.
    let found = unsafe { std::arch::x86_64::__cpuid_count(leaf, subleaf) };
    crate::cpu::Registers { eax: found.eax, ebx: found.ebx, ecx: found.ecx, edx: found.edx }
}

/// There is no CPUID: whoever asks is told of no maker.
#[cfg(not(target_arch = "x86_64"))]
pub fn cpuid(_leaf: u32, _subleaf: u32) -> crate::cpu::Registers {
    crate::cpu::Registers::default()
}
