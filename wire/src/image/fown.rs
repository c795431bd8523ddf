//! Owner of an open file for signal-driven I/O.
//!
//! Field numbers and types are those of CRIU's images/fown.proto.

use super::check::schema;

/// `fown_entry` (images/fown.proto). `F_GETOWN_EX`, `F_GETSIG` and `F_GETOWNER_UIDS` (`man 2 fcntl`); all
/// zero means none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FownEntry {
    /// Real uid of the one who set the owner.
    #[prost(uint32, required, tag = "1")]
    pub uid: u32,
    /// Effective uid of the one who set the owner.
    #[prost(uint32, required, tag = "2")]
    pub euid: u32,
    /// Signal number, 0 = SIGIO.
    #[prost(uint32, required, tag = "3")]
    pub signum: u32,
    /// `F_OWNER_*` as the kernel's pid type.
    #[prost(uint32, required, tag = "4")]
    pub pid_type: u32,
    /// Thread, process or group, in its pid namespace.
    #[prost(uint32, required, tag = "5")]
    pub pid: u32,
}

schema!(FownEntry, "fown_entry", [(1, "uid"), (2, "euid"), (3, "signum"), (4, "pid_type"), (5, "pid")], []);
