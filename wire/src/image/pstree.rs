//! The process tree.
//!
//! Files: `pstree.img`. Field numbers and types are those of CRIU's images/pstree.proto.

use super::check::schema;

/// `pstree_entry` (images/pstree.proto). One task; parents come before their children. All ids as in the
/// tree's pid namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PstreeEntry {
    /// Process id.
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    /// Parent, 0 for the root.
    #[prost(uint32, required, tag = "2")]
    pub ppid: u32,
    /// Process group.
    #[prost(uint32, required, tag = "3")]
    pub pgid: u32,
    /// Session.
    #[prost(uint32, required, tag = "4")]
    pub sid: u32,
    /// Thread ids, the leader first.
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

schema!(PstreeEntry, "pstree_entry", [(1, "pid"), (2, "ppid"), (3, "pgid"), (4, "sid")], []);
