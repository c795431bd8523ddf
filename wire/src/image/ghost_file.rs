//! Contents of files without a name.
//!
//! Files: `ghost-file-X.img`. Field numbers and types are those of CRIU's images/ghost-file.proto.

use super::check::schema;
use super::time::Timeval;

/// `ghost_file_entry` (images/ghost-file.proto). First record; contents follow, whole or as chunks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GhostFileEntry {
    /// Owner.
    #[prost(uint32, required, tag = "1")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, required, tag = "2")]
    pub gid: u32,
    /// `st_mode`.
    #[prost(uint32, required, tag = "3")]
    pub mode: u32,
    /// Device of the inode, in the kernel's encoding.
    #[prost(uint32, optional, tag = "4")]
    pub dev: Option<u32>,
    /// Inode number.
    #[prost(uint64, optional, tag = "5")]
    pub ino: Option<u64>,
    /// Device number of a device file.
    #[prost(uint32, optional, tag = "6")]
    pub rdev: Option<u32>,
    /// Last access.
    #[prost(message, optional, tag = "7")]
    pub atim: Option<Timeval>,
    /// Last change.
    #[prost(message, optional, tag = "8")]
    pub mtim: Option<Timeval>,
    /// Contents come as chunks with holes between.
    #[prost(bool, optional, tag = "9")]
    pub chunks: Option<bool>,
    /// Size in bytes.
    #[prost(uint64, optional, tag = "10")]
    pub size: Option<u64>,
    /// Target of a symbolic link, not necessarily UTF-8.
    #[prost(bytes = "vec", optional, tag = "11")]
    pub symlnk_target: Option<Vec<u8>>,
}

/// `ghost_chunk_entry` (images/ghost-file.proto). One chunk; its bytes follow the record.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GhostChunkEntry {
    /// Length in bytes.
    #[prost(uint64, required, tag = "1")]
    pub len: u64,
    /// Offset in the file.
    #[prost(uint64, required, tag = "2")]
    pub off: u64,
}

schema!(
    GhostFileEntry,
    "ghost_file_entry",
    [(1, "uid"), (2, "gid"), (3, "mode")],
    [(7, Timeval), (8, Timeval)]
);

schema!(GhostChunkEntry, "ghost_chunk_entry", [(1, "len"), (2, "off")], []);
