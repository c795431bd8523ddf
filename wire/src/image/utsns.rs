//! Names of a UTS namespace.
//!
//! Files: `utsns-N.img`. Field numbers and types are those of CRIU's images/utsns.proto.

use super::check::schema;

/// `utsns_entry` (images/utsns.proto). The one record of `utsns-N.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UtsnsEntry {
    /// Host name, not necessarily UTF-8.
    #[prost(bytes = "vec", required, tag = "1")]
    pub nodename: Vec<u8>,
    /// NIS domain name, not necessarily UTF-8.
    #[prost(bytes = "vec", required, tag = "2")]
    pub domainname: Vec<u8>,
}

schema!(UtsnsEntry, "utsns_entry", [(1, "nodename"), (2, "domainname")], []);
