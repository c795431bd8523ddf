//! Epoll sets (`man 7 epoll`).
//!
//! Field numbers and types are those of CRIU's images/eventpoll.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `eventpoll_tfd_entry` (images/eventpoll.proto). One watched descriptor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventpollTfdEntry {
    /// Id of the epoll file.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Watched descriptor.
    #[prost(uint32, required, tag = "2")]
    pub tfd: u32,
    /// `EPOLL*` bits.
    #[prost(uint32, required, tag = "3")]
    pub events: u32,
    /// User data.
    #[prost(uint64, required, tag = "4")]
    pub data: u64,
    /// Device of the watched file.
    #[prost(uint32, optional, tag = "5")]
    pub dev: Option<u32>,
    /// Inode of the watched file.
    #[prost(uint64, optional, tag = "6")]
    pub inode: Option<u64>,
    /// Position of the watched file.
    #[prost(uint64, optional, tag = "7")]
    pub pos: Option<u64>,
}

/// `eventpoll_file_entry` (images/eventpoll.proto). One epoll set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventpollFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "3")]
    pub fown: FownEntry,
    /// Watched descriptors.
    #[prost(message, repeated, tag = "4")]
    pub tfd: Vec<EventpollTfdEntry>,
}

schema!(EventpollTfdEntry, "eventpoll_tfd_entry", [(1, "id"), (2, "tfd"), (3, "events"), (4, "data")], []);

schema!(
    EventpollFileEntry,
    "eventpoll_file_entry",
    [(1, "id"), (2, "flags"), (3, "fown")],
    [(3, FownEntry), (4, EventpollTfdEntry)]
);
