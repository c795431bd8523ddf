//! Id maps of a user namespace.
//!
//! Files: `userns-N.img`. Field numbers and types are those of CRIU's images/userns.proto.

use super::check::schema;

/// `uid_gid_extent` (images/userns.proto). One line of `/proc/PID/uid_map` or `gid_map`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UidGidExtent {
    /// First id inside.
    #[prost(uint32, required, tag = "1")]
    pub first: u32,
    /// First id outside.
    #[prost(uint32, required, tag = "2")]
    pub lower_first: u32,
    /// How many.
    #[prost(uint32, required, tag = "3")]
    pub count: u32,
}

/// `userns_entry` (images/userns.proto). The one record of `userns-N.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UsernsEntry {
    /// User ids.
    #[prost(message, repeated, tag = "1")]
    pub uid_map: Vec<UidGidExtent>,
    /// Group ids.
    #[prost(message, repeated, tag = "2")]
    pub gid_map: Vec<UidGidExtent>,
}

schema!(UidGidExtent, "uid_gid_extent", [(1, "first"), (2, "lower_first"), (3, "count")], []);

schema!(UsernsEntry, "userns_entry", [], [(1, UidGidExtent), (2, UidGidExtent)]);
