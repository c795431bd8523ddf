//! How to open files whose path is gone.
//!
//! Files: `remap-fpath.img`. Field numbers and types are those of CRIU's images/remap-file-path.proto.

use super::check::schema;

/// `remap_file_path_entry` (images/remap-file-path.proto). One file whose path is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemapFilePathEntry {
    /// Id of the file in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub orig_id: u32,
    /// Ghost file number, file id of the link, or pid, by kind.
    #[prost(uint32, required, tag = "2")]
    pub remap_id: u32,
    /// How to get the file back.
    #[prost(enumeration = "RemapType", optional, tag = "3")]
    pub remap_type: Option<i32>,
}

/// How to get a file without a path back (`remap_type`, images/remap-file-path.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RemapType {
    /// Through another hard link.
    Linked = 0,
    /// From a copy in `ghost-file-X.img`.
    Ghost = 1,
    /// From a helper task, for a file of `/proc/PID`.
    Procfs = 2,
}

schema!(RemapFilePathEntry, "remap_file_path_entry", [(1, "orig_id"), (2, "remap_id")], []);
