//! Points in time of a file.
//!
//! Field numbers and types are those of CRIU's images/time.proto.

use super::check::schema;

/// `timeval` (images/time.proto). A point in time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Timeval {
    /// Seconds.
    #[prost(uint64, required, tag = "1")]
    pub tv_sec: u64,
    /// Microseconds.
    #[prost(uint64, required, tag = "2")]
    pub tv_usec: u64,
}

schema!(Timeval, "timeval", [(1, "tv_sec"), (2, "tv_usec")], []);
