//! Descriptors of a task, and the open files behind them.
//!
//! Files: `fdinfo-FILESID.img`, `files.img`. Field numbers and types are those of CRIU's
//! images/fdinfo.proto.

use super::check::schema;
use super::eventfd::EventfdFileEntry;
use super::eventpoll::EventpollFileEntry;
use super::ext_file::ExtFileEntry;
use super::fifo::FifoEntry;
use super::fsnotify::{FanotifyFileEntry, InotifyFileEntry};
use super::memfd::MemfdFileEntry;
use super::ns::NsFileEntry;
use super::pidfd::PidfdEntry;
use super::pipe::PipeEntry;
use super::regfile::RegFileEntry;
use super::signalfd::SignalfdEntry;
use super::sk_unix::UnixSkEntry;
use super::timerfd::TimerfdEntry;
use super::tty::TtyFileEntry;

/// `fdinfo_entry` (images/fdinfo.proto). One descriptor of a table.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FdinfoEntry {
    /// Id of the open file in `files.img`; shared by duplicates.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// 1 = close on exec.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// Kind of the open file.
    #[prost(enumeration = "FdTypes", required, tag = "3")]
    pub r#type: i32,
    /// Descriptor number.
    #[prost(uint32, required, tag = "4")]
    pub fd: u32,
    /// SELinux label of a socket's inode.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub xattr_security_selinux: Option<Vec<u8>>,
}

/// `file_entry` (images/fdinfo.proto). One open file: a kind, an id and exactly one payload. Payloads of
/// other sockets than Unix ones, tun and BPF files are not read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileEntry {
    /// Kind of the open file.
    #[prost(enumeration = "FdTypes", required, tag = "1")]
    pub r#type: i32,
    /// Id, unique among all open files of the dump.
    #[prost(uint32, required, tag = "2")]
    pub id: u32,
    /// Regular file, directory or device.
    #[prost(message, optional, tag = "3")]
    pub reg: Option<RegFileEntry>,
    /// Namespace file.
    #[prost(message, optional, tag = "5")]
    pub nsf: Option<NsFileEntry>,
    /// Event counter.
    #[prost(message, optional, tag = "8")]
    pub efd: Option<EventfdFileEntry>,
    /// Epoll set.
    #[prost(message, optional, tag = "9")]
    pub epfd: Option<EventpollFileEntry>,
    /// Signal descriptor.
    #[prost(message, optional, tag = "10")]
    pub sgfd: Option<SignalfdEntry>,
    /// Timer descriptor.
    #[prost(message, optional, tag = "12")]
    pub tfd: Option<TimerfdEntry>,
    /// Inotify group.
    #[prost(message, optional, tag = "13")]
    pub ify: Option<InotifyFileEntry>,
    /// Fanotify group.
    #[prost(message, optional, tag = "14")]
    pub ffy: Option<FanotifyFileEntry>,
    /// External file.
    #[prost(message, optional, tag = "15")]
    pub ext: Option<ExtFileEntry>,
    /// Unix socket.
    #[prost(message, optional, tag = "16")]
    pub usk: Option<UnixSkEntry>,
    /// Named pipe.
    #[prost(message, optional, tag = "17")]
    pub fifo: Option<FifoEntry>,
    /// Pipe end.
    #[prost(message, optional, tag = "18")]
    pub pipe: Option<PipeEntry>,
    /// Terminal.
    #[prost(message, optional, tag = "19")]
    pub tty: Option<TtyFileEntry>,
    /// Memory file.
    #[prost(message, optional, tag = "20")]
    pub memfd: Option<MemfdFileEntry>,
    /// Process descriptor.
    #[prost(message, optional, tag = "22")]
    pub pidfd: Option<PidfdEntry>,
}

/// Kind of an open file (`fd_types`, images/fdinfo.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FdTypes {
    /// Not set.
    Und = 0,
    /// Regular file, directory or device.
    Reg = 1,
    /// Pipe end.
    Pipe = 2,
    /// Named pipe.
    Fifo = 3,
    /// IPv4 or IPv6 socket.
    Inetsk = 4,
    /// Unix socket.
    Unixsk = 5,
    /// Event counter.
    Eventfd = 6,
    /// Epoll set.
    Eventpoll = 7,
    /// Inotify group.
    Inotify = 8,
    /// Signal descriptor.
    Signalfd = 9,
    /// Packet socket.
    Packetsk = 10,
    /// Terminal.
    Tty = 11,
    /// Fanotify group.
    Fanotify = 12,
    /// Netlink socket.
    Netlinksk = 13,
    /// Namespace file.
    Ns = 14,
    /// TUN or TAP device.
    Tunf = 15,
    /// External file.
    Ext = 16,
    /// Timer descriptor.
    Timerfd = 17,
    /// Memory file.
    Memfd = 18,
    /// BPF map.
    Bpfmap = 19,
    /// Process descriptor.
    Pidfd = 20,
    /// CRIU's own use while restoring.
    CtlTty = 65534,
    /// CRIU's own use while restoring.
    AutofsPipe = 65535,
}

schema!(FdinfoEntry, "fdinfo_entry", [(1, "id"), (2, "flags"), (3, "type"), (4, "fd")], []);

schema!(
    FileEntry,
    "file_entry",
    [(1, "type"), (2, "id")],
    [
        (3, RegFileEntry),
        (5, NsFileEntry),
        (8, EventfdFileEntry),
        (9, EventpollFileEntry),
        (10, SignalfdEntry),
        (12, TimerfdEntry),
        (13, InotifyFileEntry),
        (14, FanotifyFileEntry),
        (15, ExtFileEntry),
        (16, UnixSkEntry),
        (17, FifoEntry),
        (18, PipeEntry),
        (19, TtyFileEntry),
        (20, MemfdFileEntry),
        (22, PidfdEntry)
    ]
);
