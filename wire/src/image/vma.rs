//! Mappings of an address space.
//!
//! Field numbers and types are those of CRIU's images/vma.proto.

use super::check::schema;

/// `vma_entry` (images/vma.proto). One mapping.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VmaEntry {
    /// First address, page aligned.
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    /// Address behind the last byte, page aligned.
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    /// Offset in the file or segment, in bytes.
    #[prost(uint64, required, tag = "3")]
    pub pgoff: u64,
    /// File id for file mappings, inode or IPC id for shared memory, else 0.
    #[prost(uint64, required, tag = "4")]
    pub shmid: u64,
    /// `PROT_*` (`man 2 mmap`).
    #[prost(uint32, required, tag = "5")]
    pub prot: u32,
    /// `MAP_*`, including the size bits of huge pages.
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    /// Kind of the mapping, `VMA_*` bits (criu/include/image.h).
    #[prost(uint32, required, tag = "7")]
    pub status: u32,
    /// -1 in an image.
    #[prost(sint64, required, tag = "8")]
    pub fd: i64,
    /// Advice in force: bit n = `MADV_` n.
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
    /// Open flags for a file mapping: `O_RDONLY` or `O_RDWR`.
    #[prost(uint32, optional, tag = "10")]
    pub fdflags: Option<u32>,
}

schema!(
    VmaEntry,
    "vma_entry",
    [
        (1, "start"),
        (2, "end"),
        (3, "pgoff"),
        (4, "shmid"),
        (5, "prot"),
        (6, "flags"),
        (7, "status"),
        (8, "fd")
    ],
    []
);
