//! What lies in the receive queues of sockets.
//!
//! File: `sk-queues.img`. Field numbers and types are those of CRIU's images/sk-packet.proto.

use super::check::schema;

/// `scm_entry` (images/sk-packet.proto). What travels along with a packet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScmEntry {
    /// `SCM_RIGHTS` (1).
    #[prost(uint32, required, tag = "1")]
    pub r#type: u32,
    /// Ids of open files in `files.img`.
    #[prost(uint32, repeated, packed = "false", tag = "2")]
    pub rights: Vec<u32>,
}

/// `sk_packet_entry` (images/sk-packet.proto). One packet, or a piece of a stream; its bytes follow the record.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SkPacketEntry {
    /// Id in `files.img` of the socket that it waits at.
    #[prost(uint32, required, tag = "1")]
    pub id_for: u32,
    /// How many bytes follow.
    #[prost(uint32, required, tag = "2")]
    pub length: u32,
    /// What travels along.
    #[prost(message, repeated, tag = "4")]
    pub scm: Vec<ScmEntry>,
}

schema!(ScmEntry, "scm_entry", [(1, "type")], []);
schema!(SkPacketEntry, "sk_packet_entry", [(1, "id_for"), (2, "length")], [(4, ScmEntry)]);
