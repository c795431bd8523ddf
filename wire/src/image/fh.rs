//! File handles (`man 2 name_to_handle_at`).
//!
//! Field numbers and types are those of CRIU's images/fh.proto.

use super::check::schema;

/// `fh_entry` (images/fh.proto). One file handle.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FhEntry {
    /// Length of the handle in bytes.
    #[prost(uint32, required, tag = "1")]
    pub bytes: u32,
    /// Handle type.
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    /// The handle as 16 words.
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub handle: Vec<u64>,
    /// Path, where handles do not carry over; not necessarily UTF-8.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub path: Option<Vec<u8>>,
    /// Mount id.
    #[prost(uint32, optional, tag = "5")]
    pub mnt_id: Option<u32>,
}

schema!(FhEntry, "fh_entry", [(1, "bytes"), (2, "type")], []);
