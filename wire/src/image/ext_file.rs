//! Files that somebody else restores.
//!
//! Field numbers and types are those of CRIU's images/ext-file.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `ext_file_entry` (images/ext-file.proto). A file restored by a plugin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExtFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "5")]
    pub fown: FownEntry,
}

schema!(ExtFileEntry, "ext_file_entry", [(1, "id"), (5, "fown")], [(5, FownEntry)]);
