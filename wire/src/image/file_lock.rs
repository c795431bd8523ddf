//! File locks held by the tree.
//!
//! Files: `filelocks.img`. Field numbers and types are those of CRIU's images/file-lock.proto.

use super::check::schema;

/// `file_lock_entry` (images/file-lock.proto). One lock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileLockEntry {
    /// 1 POSIX, 2 flock, 4 OFD, 8 lease.
    #[prost(uint32, required, tag = "1")]
    pub flag: u32,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`, possibly with `LOCK_MAND` bits.
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    /// Holder.
    #[prost(int32, required, tag = "3")]
    pub pid: i32,
    /// Descriptor it is held through.
    #[prost(int32, required, tag = "4")]
    pub fd: i32,
    /// First byte.
    #[prost(int64, required, tag = "5")]
    pub start: i64,
    /// Length in bytes, 0 = to the end of the file.
    #[prost(int64, required, tag = "6")]
    pub len: i64,
}

schema!(
    FileLockEntry,
    "file_lock_entry",
    [(1, "flag"), (2, "type"), (3, "pid"), (4, "fd"), (5, "start"), (6, "len")],
    []
);
