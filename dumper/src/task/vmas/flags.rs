//! The bits of a mapping's record: status, `mmap` flags, advice and protection (images/vma.proto).

use super::kind::Kind;
use crate::procfs::maps::Vma;

/// Status bits of a mapping (criu/include/image.h).
pub(super) mod status {
    pub const REGULAR: u32 = 1;
    pub const VSYSCALL: u32 = 1 << 2;
    pub const VDSO: u32 = 1 << 3;
    pub const HEAP: u32 = 1 << 5;
    pub const FILE_PRIVATE: u32 = 1 << 6;
    pub const FILE_SHARED: u32 = 1 << 7;
    pub const ANON_PRIVATE: u32 = 1 << 9;
    pub const VVAR: u32 = 1 << 12;
    pub const AIO_RING: u32 = 1 << 13;
    pub const MEMFD: u32 = 1 << 14;
    pub const GUARD: u32 = 1 << 16;
    pub const EXT_PLUGIN: u32 = 1 << 27;
}

const MAP_SHARED: u32 = libc::MAP_SHARED as u32;
const MAP_PRIVATE: u32 = libc::MAP_PRIVATE as u32;
const MAP_ANONYMOUS: u32 = libc::MAP_ANONYMOUS as u32;
/// Stands in the place of `MAP_PRIVATE` (include/uapi/linux/mman.h, Linux 6.11).
const MAP_DROPPABLE: u32 = 8;
/// Where `mmap` flags have the size of huge pages, as its logarithm (include/uapi/asm-generic/hugetlb_encode.h).
const MAP_HUGE_SHIFT: u32 = 26;

/// `VmFlags` that are flags of `mmap` (fs/proc/task_mmu.c, show_smap_vma_flags).
const MMAP_FLAGS: [(&[u8; 2], u32); 4] = [
    (b"gd", libc::MAP_GROWSDOWN as u32),
    (b"ht", libc::MAP_HUGETLB as u32),
    (b"lo", libc::MAP_LOCKED as u32),
    (b"nr", libc::MAP_NORESERVE as u32),
];

/// `VmFlags` that `madvise` sets, with the number of the advice: bit n of `vma_entry.madv`.
const MADVICE: [(&[u8; 2], u32); 8] = [
    (b"sr", libc::MADV_SEQUENTIAL as u32),
    (b"rr", libc::MADV_RANDOM as u32),
    (b"dc", libc::MADV_DONTFORK as u32),
    (b"dd", libc::MADV_DONTDUMP as u32),
    (b"mg", libc::MADV_MERGEABLE as u32),
    (b"hg", libc::MADV_HUGEPAGE as u32),
    (b"nh", libc::MADV_NOHUGEPAGE as u32),
    (b"wf", libc::MADV_WIPEONFORK as u32),
];

/// Status bits and `mmap` flags that come from what a mapping is.
pub(super) fn of_kind(kind: Kind, vma: &Vma) -> (u32, u32) {
    match kind {
        Kind::Anonymous if vma.path == b"[heap]" => {
            (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::HEAP | status::ANON_PRIVATE)
        }
        Kind::Anonymous if vma.has_flag(b"dp") => {
            (MAP_DROPPABLE | MAP_ANONYMOUS, status::REGULAR | status::ANON_PRIVATE)
        }
        Kind::HugeAnonymous => {
            (MAP_PRIVATE | MAP_ANONYMOUS | huge_size(vma), status::REGULAR | status::ANON_PRIVATE)
        }
        Kind::AioRing => (MAP_SHARED, status::AIO_RING),
        Kind::Anonymous => (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::ANON_PRIVATE),
        Kind::FilePrivate => (MAP_PRIVATE, status::REGULAR | status::FILE_PRIVATE),
        Kind::FileShared => (MAP_SHARED, status::REGULAR | status::FILE_SHARED),
        Kind::Device => (MAP_SHARED, status::REGULAR | status::FILE_SHARED | status::EXT_PLUGIN),
        Kind::MemoryPrivate => {
            (MAP_PRIVATE | huge_size(vma), status::REGULAR | status::MEMFD | status::FILE_PRIVATE)
        }
        Kind::MemoryShared => {
            (MAP_SHARED | huge_size(vma), status::REGULAR | status::MEMFD | status::FILE_SHARED)
        }
        Kind::Vdso => (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::VDSO | status::ANON_PRIVATE),
        Kind::Vvar => (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::VVAR | status::ANON_PRIVATE),
        Kind::Vsyscall => (MAP_PRIVATE | MAP_ANONYMOUS, status::VSYSCALL | status::ANON_PRIVATE),
    }
}

/// The size of a mapping's huge pages, as `mmap` takes it; 0 where they are not of hugetlb.
fn huge_size(vma: &Vma) -> u32 {
    if vma.has_flag(b"ht") { vma.page_size_bytes.trailing_zeros() << MAP_HUGE_SHIFT } else { 0 }
}

/// `mmap` flags that `VmFlags` tells of.
pub(super) fn told(vma: &Vma) -> u32 {
    MMAP_FLAGS.iter().filter(|(name, _)| vma.has_flag(name)).fold(0, |all, (_, flag)| all | flag)
}

/// The advice that `VmFlags` tells of: bit n is advice n.
pub(super) fn advice(vma: &Vma) -> u64 {
    MADVICE.iter().filter(|(name, _)| vma.has_flag(name)).fold(0, |all, (_, bit)| all | 1u64 << bit)
}

/// `PROT_*` (man 2 mmap).
pub(super) fn prot(vma: &Vma) -> u32 {
    let bit = |on: bool, prot: i32| if on { prot as u32 } else { 0 };
    bit(vma.read, libc::PROT_READ) | bit(vma.write, libc::PROT_WRITE) | bit(vma.exec, libc::PROT_EXEC)
}
