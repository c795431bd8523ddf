//! Memory files (`man 2 memfd_create`).
//!
//! Files: `memfd.img`. Field numbers and types are those of CRIU's images/memfd.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `memfd_file_entry` (images/memfd.proto). One open memory file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemfdFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Position in bytes.
    #[prost(uint64, required, tag = "3")]
    pub pos: u64,
    /// Owner for signals.
    #[prost(message, required, tag = "4")]
    pub fown: FownEntry,
    /// Inode entry in `memfd.img`.
    #[prost(uint32, required, tag = "5")]
    pub inode_id: u32,
}

/// `memfd_inode_entry` (images/memfd.proto). One memory file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemfdInodeEntry {
    /// Name, not necessarily UTF-8.
    #[prost(bytes = "vec", required, tag = "1")]
    pub name: Vec<u8>,
    /// Owner.
    #[prost(uint32, required, tag = "2")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, required, tag = "3")]
    pub gid: u32,
    /// Size in bytes.
    #[prost(uint64, required, tag = "4")]
    pub size: u64,
    /// Names `pagemap-shmem-ID.img`.
    #[prost(uint32, required, tag = "5")]
    pub shmid: u32,
    /// `F_SEAL_*` (`man 2 fcntl`).
    #[prost(uint32, required, tag = "6")]
    pub seals: u32,
    /// Number that `memfd_file_entry` refers to.
    #[prost(uint64, required, tag = "7")]
    pub inode_id: u64,
    /// `MFD_HUGETLB` with its size bits.
    #[prost(uint32, optional, tag = "8")]
    pub hugetlb_flag: Option<u32>,
    /// `st_mode`.
    #[prost(uint32, optional, tag = "9")]
    pub mode: Option<u32>,
}

schema!(
    MemfdFileEntry,
    "memfd_file_entry",
    [(1, "id"), (2, "flags"), (3, "pos"), (4, "fown"), (5, "inode_id")],
    [(4, FownEntry)]
);

schema!(
    MemfdInodeEntry,
    "memfd_inode_entry",
    [(1, "name"), (2, "uid"), (3, "gid"), (4, "size"), (5, "shmid"), (6, "seals"), (7, "inode_id")],
    []
);
