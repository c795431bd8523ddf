//! Mappings of our own, for probes and tests.

use std::ptr::NonNull;

use nix::errno::Errno;

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

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours and nothing borrows it any more.
        unsafe { libc::munmap(self.at.as_ptr(), self.len) };
    }
}
