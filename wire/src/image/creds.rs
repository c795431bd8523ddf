//! Credentials of a thread.
//!
//! Field numbers and types are those of CRIU's images/creds.proto.

use super::check::schema;

/// `creds_entry` (images/creds.proto). Credentials of a thread (`man 7 credentials`, `man 7 capabilities`);
/// ids as in the tree's user namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CredsEntry {
    /// Real user id.
    #[prost(uint32, required, tag = "1")]
    pub uid: u32,
    /// Real group id.
    #[prost(uint32, required, tag = "2")]
    pub gid: u32,
    /// Effective user id.
    #[prost(uint32, required, tag = "3")]
    pub euid: u32,
    /// Effective group id.
    #[prost(uint32, required, tag = "4")]
    pub egid: u32,
    /// Saved user id.
    #[prost(uint32, required, tag = "5")]
    pub suid: u32,
    /// Saved group id.
    #[prost(uint32, required, tag = "6")]
    pub sgid: u32,
    /// File system user id.
    #[prost(uint32, required, tag = "7")]
    pub fsuid: u32,
    /// File system group id.
    #[prost(uint32, required, tag = "8")]
    pub fsgid: u32,
    /// Inheritable capabilities, low word first, 2 words.
    #[prost(uint32, repeated, packed = "false", tag = "9")]
    pub cap_inh: Vec<u32>,
    /// Permitted capabilities, 2 words.
    #[prost(uint32, repeated, packed = "false", tag = "10")]
    pub cap_prm: Vec<u32>,
    /// Effective capabilities, 2 words.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub cap_eff: Vec<u32>,
    /// Bounding set, 2 words; absent drops it on restore.
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub cap_bnd: Vec<u32>,
    /// `PR_GET_SECUREBITS`.
    #[prost(uint32, required, tag = "13")]
    pub secbits: u32,
    /// Supplementary groups.
    #[prost(uint32, repeated, packed = "false", tag = "14")]
    pub groups: Vec<u32>,
    /// Security label (`/proc/PID/attr/current`).
    #[prost(bytes = "vec", optional, tag = "15")]
    pub lsm_profile: Option<Vec<u8>>,
    /// SELinux label of new sockets (`/proc/PID/attr/sockcreate`).
    #[prost(bytes = "vec", optional, tag = "16")]
    pub lsm_sockcreate: Option<Vec<u8>>,
    /// Unused by CRIU 4.
    #[prost(bytes = "vec", optional, tag = "17")]
    pub apparmor_data: Option<Vec<u8>>,
    /// `PR_GET_NO_NEW_PRIVS`.
    #[prost(uint32, optional, tag = "18")]
    pub no_new_privs: Option<u32>,
    /// Ambient capabilities, 2 words.
    #[prost(uint32, repeated, packed = "false", tag = "19")]
    pub cap_amb: Vec<u32>,
}

schema!(
    CredsEntry,
    "creds_entry",
    [
        (1, "uid"),
        (2, "gid"),
        (3, "euid"),
        (4, "egid"),
        (5, "suid"),
        (6, "sgid"),
        (7, "fsuid"),
        (8, "fsgid"),
        (13, "secbits")
    ],
    []
);
