//! Working directory, root directory and umask of a task.
//!
//! Files: `fs-PID.img`. Field numbers and types are those of CRIU's images/fs.proto.

use super::check::schema;

/// `fs_entry` (images/fs.proto). The one record of `fs-PID.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FsEntry {
    /// File id of the working directory.
    #[prost(uint32, required, tag = "1")]
    pub cwd_id: u32,
    /// File id of the root directory.
    #[prost(uint32, required, tag = "2")]
    pub root_id: u32,
    /// `/proc/PID/status` Umask; absent means the restorer's.
    #[prost(uint32, optional, tag = "3")]
    pub umask: Option<u32>,
}

schema!(FsEntry, "fs_entry", [(1, "cwd_id"), (2, "root_id")], []);
