//! Descriptors of namespace files.
//!
//! Field numbers and types are those of CRIU's images/ns.proto.

use super::check::schema;

/// `ns_file_entry` (images/ns.proto). An open `/proc/PID/ns/NAME`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NsFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Namespace id, as in `task_kobj_ids_entry`.
    #[prost(uint32, required, tag = "2")]
    pub ns_id: u32,
    /// `CLONE_NEW*` of its kind.
    #[prost(uint32, required, tag = "3")]
    pub ns_cflag: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "4")]
    pub flags: u32,
}

schema!(NsFileEntry, "ns_file_entry", [(1, "id"), (2, "ns_id"), (3, "ns_cflag"), (4, "flags")], []);
