//! Signal descriptors (`man 2 signalfd`).
//!
//! Field numbers and types are those of CRIU's images/signalfd.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `signalfd_entry` (images/signalfd.proto). One signal descriptor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalfdEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "3")]
    pub fown: FownEntry,
    /// Signals it takes, bit n-1 = signal n.
    #[prost(uint64, required, tag = "4")]
    pub sigmask: u64,
}

schema!(
    SignalfdEntry,
    "signalfd_entry",
    [(1, "id"), (2, "flags"), (3, "fown"), (4, "sigmask")],
    [(3, FownEntry)]
);
