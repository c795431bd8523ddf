//! A pid namespace.
//!
//! Files: `pidns-N.img`. Field numbers and types are those of CRIU's images/pidns.proto.

use super::check::schema;

/// `pidns_entry` (images/pidns.proto). The one record of `pidns-N.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidnsEntry {
    /// Key of `--external pid[inode]:key`.
    #[prost(string, optional, tag = "1")]
    pub ext_key: Option<String>,
}

schema!(PidnsEntry, "pidns_entry", [], []);
