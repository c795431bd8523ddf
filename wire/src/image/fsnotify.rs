//! Inotify and fanotify groups.
//!
//! Field numbers and types are those of CRIU's images/fsnotify.proto.

use super::check::schema;
use super::fh::FhEntry;
use super::fown::FownEntry;

/// `inotify_wd_entry` (images/fsnotify.proto). One inotify watch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InotifyWdEntry {
    /// Id of the inotify file.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Inode watched.
    #[prost(uint64, required, tag = "2")]
    pub i_ino: u64,
    /// `IN_*` bits.
    #[prost(uint32, required, tag = "3")]
    pub mask: u32,
    /// Bits ignored by the kernel.
    #[prost(uint32, required, tag = "4")]
    pub ignored_mask: u32,
    /// Device of the inode.
    #[prost(uint32, required, tag = "5")]
    pub s_dev: u32,
    /// Watch descriptor.
    #[prost(uint32, required, tag = "6")]
    pub wd: u32,
    /// File handle of the inode.
    #[prost(message, required, tag = "7")]
    pub f_handle: FhEntry,
}

/// `inotify_file_entry` (images/fsnotify.proto). One inotify group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InotifyFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "4")]
    pub fown: FownEntry,
    /// Watches.
    #[prost(message, repeated, tag = "5")]
    pub wd: Vec<InotifyWdEntry>,
}

/// `fanotify_inode_mark_entry` (images/fsnotify.proto). What an inode mark watches.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FanotifyInodeMarkEntry {
    /// Inode watched.
    #[prost(uint64, required, tag = "1")]
    pub i_ino: u64,
    /// File handle of the inode.
    #[prost(message, required, tag = "2")]
    pub f_handle: FhEntry,
}

/// `fanotify_mount_mark_entry` (images/fsnotify.proto). What a mount mark watches.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FanotifyMountMarkEntry {
    /// Mount watched.
    #[prost(uint32, required, tag = "1")]
    pub mnt_id: u32,
    /// Path of the mount, not necessarily UTF-8.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub path: Option<Vec<u8>>,
}

/// `fanotify_mark_entry` (images/fsnotify.proto). One fanotify mark.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FanotifyMarkEntry {
    /// Id of the fanotify file.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Inode or mount mark.
    #[prost(enumeration = "MarkType", required, tag = "2")]
    pub r#type: i32,
    /// Mark flags.
    #[prost(uint32, required, tag = "3")]
    pub mflags: u32,
    /// `FAN_*` bits.
    #[prost(uint32, required, tag = "4")]
    pub mask: u32,
    /// Events ignored.
    #[prost(uint32, required, tag = "5")]
    pub ignored_mask: u32,
    /// Device watched.
    #[prost(uint32, required, tag = "6")]
    pub s_dev: u32,
    /// Of an inode mark.
    #[prost(message, optional, tag = "7")]
    pub ie: Option<FanotifyInodeMarkEntry>,
    /// Of a mount mark.
    #[prost(message, optional, tag = "8")]
    pub me: Option<FanotifyMountMarkEntry>,
}

/// `fanotify_file_entry` (images/fsnotify.proto). One fanotify group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FanotifyFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "3")]
    pub fown: FownEntry,
    /// Flags of `fanotify_init`.
    #[prost(uint32, required, tag = "4")]
    pub faflags: u32,
    /// Open flags of event files.
    #[prost(uint32, required, tag = "5")]
    pub evflags: u32,
    /// Marks.
    #[prost(message, repeated, tag = "6")]
    pub mark: Vec<FanotifyMarkEntry>,
}

/// Kind of a fanotify mark (`mark_type`, images/fsnotify.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MarkType {
    /// An inode.
    Inode = 1,
    /// A mount.
    Mount = 2,
}

schema!(
    InotifyWdEntry,
    "inotify_wd_entry",
    [(1, "id"), (2, "i_ino"), (3, "mask"), (4, "ignored_mask"), (5, "s_dev"), (6, "wd"), (7, "f_handle")],
    [(7, FhEntry)]
);

schema!(
    InotifyFileEntry,
    "inotify_file_entry",
    [(1, "id"), (2, "flags"), (4, "fown")],
    [(4, FownEntry), (5, InotifyWdEntry)]
);

schema!(FanotifyInodeMarkEntry, "fanotify_inode_mark_entry", [(1, "i_ino"), (2, "f_handle")], [(2, FhEntry)]);

schema!(FanotifyMountMarkEntry, "fanotify_mount_mark_entry", [(1, "mnt_id")], []);

schema!(
    FanotifyMarkEntry,
    "fanotify_mark_entry",
    [(1, "id"), (2, "type"), (3, "mflags"), (4, "mask"), (5, "ignored_mask"), (6, "s_dev")],
    [(7, FanotifyInodeMarkEntry), (8, FanotifyMountMarkEntry)]
);

schema!(
    FanotifyFileEntry,
    "fanotify_file_entry",
    [(1, "id"), (2, "flags"), (3, "fown"), (4, "faflags"), (5, "evflags")],
    [(3, FownEntry), (6, FanotifyMarkEntry)]
);
