//! Mappings of our own, for probes and tests, and to see what a file's last page holds behind the file's end.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::process_vm::{self, Remote};

/// A private anonymous mapping of ours, unmapped on drop. Its pages are never merged into huge ones.
pub struct Mapping {
    at: NonNull<libc::c_void>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, a multiple of the page size, at least one page.
    pub fn anonymous(len: usize) -> nix::Result<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let at = NonNull::new(at).ok_or(Errno::ENOMEM)?;
        let mapping = Mapping { at, len };
        // SAFETY: the range is ours. Kernels without huge pages answer EINVAL, which is as good.
        unsafe { libc::madvise(at.as_ptr(), len, libc::MADV_NOHUGEPAGE) };
        Ok(mapping)
    }

    /// Maps a file shared. [`Mapping::bytes`] must not be used where it may be written or cut by others.
    fn shared(file: BorrowedFd<'_>, offset: u64, len: usize, prot: libc::c_int) -> nix::Result<Mapping> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let fd = file.as_raw_fd();
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Mapping { at: NonNull::new(at).ok_or(Errno::ENOMEM)?, len })
    }

    /// Makes pages guards (MADV_GUARD_INSTALL, Linux 6.13): [`Mapping::bytes`] must not be used for them any more.
    #[cfg(test)]
    pub fn guard(&self, first_page: usize, pages: usize) -> nix::Result<()> {
        const MADV_GUARD_INSTALL: libc::c_int = 102;
        let (from, len) = (first_page * 4096, pages * 4096);
        assert!(from + len <= self.len);
        // SAFETY: the range is ours; its content goes away, and a touch of it would be a fault.
        let done = unsafe { libc::madvise(self.at.as_ptr().byte_add(from), len, MADV_GUARD_INSTALL) };
        Errno::result(done).map(drop)
    }

    /// First address.
    pub fn addr(&self) -> u64 {
        self.at.as_ptr() as u64
    }

    /// The bytes, to read and write.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours, readable and writable for `len` bytes, and borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), self.len) }
    }
}

/// Reads a page of a file, at an offset that is a multiple of the page size, through a mapping of it: also what the page
/// holds behind the file's end, which read(2) does not show.
///
/// # Errors
/// `EFAULT` if the file has no such page (any more), or what mmap(2) answers.
pub fn read_mapped(file: BorrowedFd<'_>, offset: u64, page: &mut [u8; 4096]) -> nix::Result<()> {
    let mapping = Mapping::shared(file, offset, page.len(), libc::PROT_READ)?;
    // The file may be cut at any time, and to touch such a page is a signal: the kernel copies it, and answers instead.
    let piece = Remote { addr: mapping.addr(), len: mapping.len };
    match process_vm::read(Pid::this(), &[piece], page)? {
        read if read == page.len() => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Stores a page into a file as [`read_mapped`] reads it.
#[cfg(test)]
pub fn write_mapped(file: BorrowedFd<'_>, offset: u64, page: &[u8; 4096]) -> nix::Result<()> {
    let mut mapping = Mapping::shared(file, offset, page.len(), libc::PROT_READ | libc::PROT_WRITE)?;
    mapping.bytes().copy_from_slice(page);
    Ok(())
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours and nothing borrows it any more.
        unsafe { libc::munmap(self.at.as_ptr(), self.len) };
    }
}
