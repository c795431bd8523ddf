//! Clocks of a time namespace.
//!
//! Files: `timens-N.img`. Field numbers and types are those of CRIU's images/timens.proto.

use super::check::schema;

/// `timespec` (images/timens.proto). A point in time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Timespec {
    /// Seconds.
    #[prost(uint64, required, tag = "1")]
    pub tv_sec: u64,
    /// Nanoseconds.
    #[prost(uint64, required, tag = "2")]
    pub tv_nsec: u64,
}

/// `timens_entry` (images/timens.proto). The one record of `timens-N.img`; N = 0 are the host's clocks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TimensEntry {
    /// `CLOCK_MONOTONIC` at the freeze.
    #[prost(message, required, tag = "1")]
    pub monotonic: Timespec,
    /// `CLOCK_BOOTTIME` at the freeze.
    #[prost(message, required, tag = "2")]
    pub boottime: Timespec,
}

schema!(Timespec, "timespec", [(1, "tv_sec"), (2, "tv_nsec")], []);

schema!(TimensEntry, "timens_entry", [(1, "monotonic"), (2, "boottime")], [(1, Timespec), (2, Timespec)]);
