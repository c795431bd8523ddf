//! Seccomp filters of the tree.
//!
//! Files: `seccomp.img`. Field numbers and types are those of CRIU's images/seccomp.proto.

use super::check::schema;

/// `seccomp_filter` (images/seccomp.proto). One filter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SeccompFilter {
    /// Array of `struct sock_filter`, 8 bytes each.
    #[prost(bytes = "vec", required, tag = "1")]
    pub filter: Vec<u8>,
    /// Index of the filter that was installed after it: a thread names its oldest, and restore follows this.
    #[prost(uint32, optional, tag = "2")]
    pub prev: Option<u32>,
    /// `SECCOMP_FILTER_FLAG_*`.
    #[prost(uint32, optional, tag = "3")]
    pub flags: Option<u32>,
}

/// `seccomp_entry` (images/seccomp.proto). The one record of `seccomp.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SeccompEntry {
    /// Newest first in each chain, as CRIU writes them.
    #[prost(message, repeated, tag = "1")]
    pub seccomp_filters: Vec<SeccompFilter>,
}

schema!(SeccompFilter, "seccomp_filter", [(1, "filter")], []);

schema!(SeccompEntry, "seccomp_entry", [], [(1, SeccompFilter)]);
