//! Terminals.
//!
//! Files: `tty-info.img`, `tty-data.img`. Field numbers and types are those of CRIU's images/tty.proto.

use super::check::schema;
use super::fown::FownEntry;

/// `winsize_entry` (images/tty.proto). `struct winsize` (`man 2 TIOCGWINSZ`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct WinsizeEntry {
    /// Rows.
    #[prost(uint32, required, tag = "1")]
    pub ws_row: u32,
    /// Columns.
    #[prost(uint32, required, tag = "2")]
    pub ws_col: u32,
    /// Width in pixels.
    #[prost(uint32, required, tag = "3")]
    pub ws_xpixel: u32,
    /// Height in pixels.
    #[prost(uint32, required, tag = "4")]
    pub ws_ypixel: u32,
}

/// `termios_entry` (images/tty.proto). `struct termios2` (`man 3 termios`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct TermiosEntry {
    /// Input modes.
    #[prost(uint32, required, tag = "1")]
    pub c_iflag: u32,
    /// Output modes.
    #[prost(uint32, required, tag = "2")]
    pub c_oflag: u32,
    /// Control modes.
    #[prost(uint32, required, tag = "3")]
    pub c_cflag: u32,
    /// Local modes.
    #[prost(uint32, required, tag = "4")]
    pub c_lflag: u32,
    /// Line discipline.
    #[prost(uint32, required, tag = "5")]
    pub c_line: u32,
    /// Input speed in baud.
    #[prost(uint32, required, tag = "6")]
    pub c_ispeed: u32,
    /// Output speed in baud.
    #[prost(uint32, required, tag = "7")]
    pub c_ospeed: u32,
    /// Control characters.
    #[prost(uint32, repeated, packed = "false", tag = "8")]
    pub c_cc: Vec<u32>,
}

/// `tty_pty_entry` (images/tty.proto). A pseudoterminal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyPtyEntry {
    /// Number below `/dev/pts`.
    #[prost(uint32, required, tag = "1")]
    pub index: u32,
}

/// `tty_data_entry` (images/tty.proto). Bytes waiting in a terminal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyDataEntry {
    /// Id in `tty-info.img`.
    #[prost(uint32, required, tag = "1")]
    pub tty_id: u32,
    /// The bytes.
    #[prost(bytes = "vec", required, tag = "2")]
    pub data: Vec<u8>,
}

/// `tty_info_entry` (images/tty.proto). One terminal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyInfoEntry {
    /// Number that `tty_info_id` refers to.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Kind of the terminal.
    #[prost(enumeration = "TtyType", required, tag = "2")]
    pub r#type: i32,
    /// Slave locked (`TIOCSPTLCK`).
    #[prost(bool, required, tag = "3")]
    pub locked: bool,
    /// Exclusive mode (`TIOCEXCL`).
    #[prost(bool, required, tag = "4")]
    pub exclusive: bool,
    /// Packet mode (`TIOCPKT`).
    #[prost(bool, required, tag = "5")]
    pub packet_mode: bool,
    /// Session.
    #[prost(uint32, required, tag = "6")]
    pub sid: u32,
    /// Foreground process group.
    #[prost(uint32, required, tag = "7")]
    pub pgrp: u32,
    /// Device number.
    #[prost(uint32, required, tag = "8")]
    pub rdev: u32,
    /// Settings.
    #[prost(message, optional, tag = "9")]
    pub termios: Option<TermiosEntry>,
    /// Locked settings (`TIOCGLCKTRMIOS`).
    #[prost(message, optional, tag = "10")]
    pub termios_locked: Option<TermiosEntry>,
    /// Window size.
    #[prost(message, optional, tag = "11")]
    pub winsize: Option<WinsizeEntry>,
    /// Of a pseudoterminal.
    #[prost(message, optional, tag = "12")]
    pub pty: Option<TtyPtyEntry>,
    /// Device of the inode.
    #[prost(uint32, optional, tag = "13")]
    pub dev: Option<u32>,
    /// Owner.
    #[prost(uint32, optional, tag = "14")]
    pub uid: Option<u32>,
    /// Group.
    #[prost(uint32, optional, tag = "15")]
    pub gid: Option<u32>,
}

/// `tty_file_entry` (images/tty.proto). One open terminal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyFileEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Entry in `tty-info.img`.
    #[prost(uint32, required, tag = "2")]
    pub tty_info_id: u32,
    /// Open flags.
    #[prost(uint32, required, tag = "3")]
    pub flags: u32,
    /// Owner for signals.
    #[prost(message, required, tag = "4")]
    pub fown: FownEntry,
    /// File entry of the path.
    #[prost(uint32, optional, tag = "6")]
    pub regf_id: Option<u32>,
}

/// Kind of a terminal (`TtyType`, images/tty.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TtyType {
    /// Not set.
    Unknown = 0,
    /// Pseudoterminal.
    Pty = 1,
    /// `/dev/console`.
    Console = 2,
    /// Virtual terminal.
    Vt = 3,
    /// `/dev/tty`.
    Ctty = 4,
    /// External.
    ExtTty = 5,
    /// Serial line.
    Serial = 6,
}

schema!(
    WinsizeEntry,
    "winsize_entry",
    [(1, "ws_row"), (2, "ws_col"), (3, "ws_xpixel"), (4, "ws_ypixel")],
    []
);

schema!(
    TermiosEntry,
    "termios_entry",
    [
        (1, "c_iflag"),
        (2, "c_oflag"),
        (3, "c_cflag"),
        (4, "c_lflag"),
        (5, "c_line"),
        (6, "c_ispeed"),
        (7, "c_ospeed")
    ],
    []
);

schema!(TtyPtyEntry, "tty_pty_entry", [(1, "index")], []);

schema!(TtyDataEntry, "tty_data_entry", [(1, "tty_id"), (2, "data")], []);

schema!(
    TtyInfoEntry,
    "tty_info_entry",
    [
        (1, "id"),
        (2, "type"),
        (3, "locked"),
        (4, "exclusive"),
        (5, "packet_mode"),
        (6, "sid"),
        (7, "pgrp"),
        (8, "rdev")
    ],
    [(9, TermiosEntry), (10, TermiosEntry), (11, WinsizeEntry), (12, TtyPtyEntry)]
);

schema!(
    TtyFileEntry,
    "tty_file_entry",
    [(1, "id"), (2, "tty_info_id"), (3, "flags"), (4, "fown")],
    [(4, FownEntry)]
);
