//! Event counters (`man 2 eventfd`).
//!
//! Field numbers and types are those of CRIU's images/eventfd.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `eventfd_file_entry` (images/eventfd.proto). One event counter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventfdFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags; `EFD_SEMAPHORE` has no place in the format.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "3")]
    pub fown: FownEntry,
    /// Counter value.
    #[prost(uint64, required, tag = "4")]
    pub counter: u64,
}

schema!(
    EventfdFileEntry,
    "eventfd_file_entry",
    [(1, "id"), (2, "flags"), (3, "fown"), (4, "counter")],
    [(3, FownEntry)]
);
