//! Signal actions of a task.
//!
//! Field numbers and types are those of CRIU's images/sa.proto.

use super::check::schema;

/// `sa_entry` (images/sa.proto). One signal action (`man 2 rt_sigaction`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SaEntry {
    /// Handler address, `SIG_DFL` (0) or `SIG_IGN` (1).
    #[prost(uint64, required, tag = "1")]
    pub sigaction: u64,
    /// `SA_*`.
    #[prost(uint64, required, tag = "2")]
    pub flags: u64,
    /// Address the handler returns to.
    #[prost(uint64, required, tag = "3")]
    pub restorer: u64,
    /// Signals blocked in the handler, bit n-1 = signal n.
    #[prost(uint64, required, tag = "4")]
    pub mask: u64,
    /// Set by a 32-bit task.
    #[prost(bool, optional, tag = "5")]
    pub compat_sigaction: Option<bool>,
    /// Second word of `mask` on MIPS.
    #[prost(uint64, optional, tag = "6")]
    pub mask_extended: Option<u64>,
}

schema!(SaEntry, "sa_entry", [(1, "sigaction"), (2, "flags"), (3, "restorer"), (4, "mask")], []);
