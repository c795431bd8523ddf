//! Process descriptors (`man 2 pidfd_open`).
//!
//! Field numbers and types are those of CRIU's images/pidfd.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `pidfd_entry` (images/pidfd.proto). One process descriptor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidfdEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Inode of the descriptor.
    #[prost(uint32, required, tag = "2")]
    pub ino: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "3")]
    pub flags: u32,
    /// Process id in its namespace, -1 if it is dead.
    #[prost(int32, required, tag = "4")]
    pub nspid: i32,
    /// Owner for signals.
    #[prost(message, required, tag = "5")]
    pub fown: FownEntry,
}

schema!(
    PidfdEntry,
    "pidfd_entry",
    [(1, "id"), (2, "ino"), (3, "flags"), (4, "nspid"), (5, "fown")],
    [(5, FownEntry)]
);
