//! Timer descriptors (`man 2 timerfd_create`).
//!
//! Field numbers and types are those of CRIU's images/timerfd.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `timerfd_entry` (images/timerfd.proto). One timer descriptor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TimerfdEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "3")]
    pub fown: FownEntry,
    /// `CLOCK_*`.
    #[prost(uint32, required, tag = "4")]
    pub clockid: u32,
    /// Expirations not read yet.
    #[prost(uint64, required, tag = "5")]
    pub ticks: u64,
    /// Flags of `timerfd_settime`.
    #[prost(uint32, required, tag = "6")]
    pub settime_flags: u32,
    /// Remaining time, seconds.
    #[prost(uint64, required, tag = "7")]
    pub vsec: u64,
    /// Remaining time, nanoseconds.
    #[prost(uint64, required, tag = "8")]
    pub vnsec: u64,
    /// Interval, seconds.
    #[prost(uint64, required, tag = "9")]
    pub isec: u64,
    /// Interval, nanoseconds.
    #[prost(uint64, required, tag = "10")]
    pub insec: u64,
}

schema!(
    TimerfdEntry,
    "timerfd_entry",
    [
        (1, "id"),
        (2, "flags"),
        (3, "fown"),
        (4, "clockid"),
        (5, "ticks"),
        (6, "settime_flags"),
        (7, "vsec"),
        (8, "vnsec"),
        (9, "isec"),
        (10, "insec")
    ],
    [(3, FownEntry)]
);
