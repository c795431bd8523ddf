//! Regular files, directories and devices.
//!
//! Field numbers and types are those of CRIU's images/regfile.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `reg_file_entry` (images/regfile.proto). One open file with a path.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags without `O_CLOEXEC` (`man 2 open`).
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Position in bytes.
    #[prost(uint64, required, tag = "3")]
    pub pos: u64,
    /// Owner for signals.
    #[prost(message, required, tag = "5")]
    pub fown: FownEntry,
    /// Path as the task's root shows it, not necessarily UTF-8.
    #[prost(bytes = "vec", required, tag = "6")]
    pub name: Vec<u8>,
    /// Mount id, if the mount namespace is dumped; -1 otherwise.
    #[prost(sint32, optional, tag = "7", default = "-1")]
    pub mnt_id: Option<i32>,
    /// Size in bytes, compared at restore.
    #[prost(uint64, optional, tag = "8")]
    pub size: Option<u64>,
    /// Provided from outside (`--external`).
    #[prost(bool, optional, tag = "9")]
    pub ext: Option<bool>,
    /// `st_mode`, compared at restore.
    #[prost(uint32, optional, tag = "10")]
    pub mode: Option<u32>,
    /// Build id of an ELF file, as words.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub build_id: Vec<u32>,
    /// CRC32C of the contents.
    #[prost(uint32, optional, tag = "12")]
    pub checksum: Option<u32>,
    /// What the checksum covers.
    #[prost(uint32, optional, tag = "13")]
    pub checksum_config: Option<u32>,
    /// Parameter of the checksum.
    #[prost(uint32, optional, tag = "14")]
    pub checksum_parameter: Option<u32>,
}

schema!(
    RegFileEntry,
    "reg_file_entry",
    [(1, "id"), (2, "flags"), (3, "pos"), (5, "fown"), (6, "name")],
    [(5, FownEntry)]
);
