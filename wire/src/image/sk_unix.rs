//! Unix sockets.
//!
//! Field numbers and types are those of CRIU's images/sk-unix.proto.

use super::check::schema;
use super::fown::FownEntry;
use super::sk_opts::{SkOptsEntry, SkShutdown};

/// `file_perms_entry` (images/sk-unix.proto). Owner and permissions of a file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FilePermsEntry {
    /// `st_mode`.
    #[prost(uint32, required, tag = "1")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, required, tag = "2")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, required, tag = "3")]
    pub gid: u32,
}

/// `unix_sk_entry` (images/sk-unix.proto). One unix socket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnixSkEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Inode number: how peers name each other.
    #[prost(uint32, required, tag = "2")]
    pub ino: u32,
    /// `SOCK_STREAM` 1, `SOCK_DGRAM` 2, `SOCK_SEQPACKET` 5.
    #[prost(uint32, required, tag = "3")]
    pub r#type: u32,
    /// 1 connected, 7 not connected, 10 listening (the numbers of TCP).
    #[prost(uint32, required, tag = "4")]
    pub state: u32,
    /// Flags of the open file description.
    #[prost(uint32, required, tag = "5")]
    pub flags: u32,
    /// 1 not dumped itself, 2 CRIU's service, 4 a plugin's, 8 given to the restore.
    #[prost(uint32, required, tag = "6")]
    pub uflags: u32,
    /// Of a listening one, how many connections may wait.
    #[prost(uint32, required, tag = "7")]
    pub backlog: u32,
    /// Inode number of whom it is connected to; 0: nobody.
    #[prost(uint32, required, tag = "8")]
    pub peer: u32,
    /// Owner for signal-driven I/O.
    #[prost(message, required, tag = "9")]
    pub fown: FownEntry,
    /// Options.
    #[prost(message, required, tag = "10")]
    pub opts: SkOptsEntry,
    /// Address: a path, or a zero byte and an abstract name; empty: none.
    #[prost(bytes = "vec", required, tag = "11")]
    pub name: Vec<u8>,
    /// Which directions are shut.
    #[prost(enumeration = "SkShutdown", optional, tag = "12")]
    pub shutdown: Option<i32>,
    /// Of the file that a path names.
    #[prost(message, optional, tag = "13")]
    pub file_perms: Option<FilePermsEntry>,
    /// The directory that a relative path starts at.
    #[prost(bytes = "vec", optional, tag = "14")]
    pub name_dir: Option<Vec<u8>>,
    /// Whether the file is gone.
    #[prost(bool, optional, tag = "15")]
    pub deleted: Option<bool>,
    /// Id of its network namespace.
    #[prost(uint32, optional, tag = "16")]
    pub ns_id: Option<u32>,
    /// Mount that the file lies in; -1: unknown.
    #[prost(sint32, optional, tag = "17")]
    pub mnt_id: Option<i32>,
}

schema!(FilePermsEntry, "file_perms_entry", [(1, "mode"), (2, "uid"), (3, "gid")], []);
schema!(
    UnixSkEntry,
    "unix_sk_entry",
    [
        (1, "id"),
        (2, "ino"),
        (3, "type"),
        (4, "state"),
        (5, "flags"),
        (6, "uflags"),
        (7, "backlog"),
        (8, "peer"),
        (9, "fown"),
        (10, "opts"),
        (11, "name")
    ],
    [(9, FownEntry), (10, SkOptsEntry), (13, FilePermsEntry)]
);
