//! Pipe ends.
//!
//! Field numbers and types are those of CRIU's images/pipe.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `pipe_entry` (images/pipe.proto). One end of a pipe.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PipeEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Inode of the pipe; both ends have the same.
    #[prost(uint32, required, tag = "2")]
    pub pipe_id: u32,
    /// Open flags, with the access mode of this end.
    #[prost(uint32, required, tag = "3")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "4")]
    pub fown: FownEntry,
}

schema!(PipeEntry, "pipe_entry", [(1, "id"), (2, "pipe_id"), (3, "flags"), (4, "fown")], [(4, FownEntry)]);
