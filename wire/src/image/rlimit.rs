//! Resource limits of a task.
//!
//! Field numbers and types are those of CRIU's images/rlimit.proto.

use super::check::schema;

/// `rlimit_entry` (images/rlimit.proto). One limit (`man 2 getrlimit`); infinity is 2^64-1.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RlimitEntry {
    /// Soft limit.
    #[prost(uint64, required, tag = "1")]
    pub cur: u64,
    /// Hard limit.
    #[prost(uint64, required, tag = "2")]
    pub max: u64,
}

schema!(RlimitEntry, "rlimit_entry", [(1, "cur"), (2, "max")], []);
