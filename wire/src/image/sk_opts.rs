//! Options of sockets of every family.
//!
//! Field numbers and types are those of CRIU's images/sk-opts.proto.

use super::check::schema;

/// `sk_opts_entry` (images/sk-opts.proto). Options of level SOL_SOCKET, as `getsockopt` tells them (man 7 socket).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SkOptsEntry {
    /// `SO_SNDBUF` in bytes, as told: twice what was set. Restore sets half of it.
    #[prost(uint32, required, tag = "1")]
    pub so_sndbuf: u32,
    /// `SO_RCVBUF` in bytes, likewise.
    #[prost(uint32, required, tag = "2")]
    pub so_rcvbuf: u32,
    /// Seconds of `SO_SNDTIMEO`.
    #[prost(uint64, required, tag = "3")]
    pub so_snd_tmo_sec: u64,
    /// Microseconds of `SO_SNDTIMEO`.
    #[prost(uint64, required, tag = "4")]
    pub so_snd_tmo_usec: u64,
    /// Seconds of `SO_RCVTIMEO`.
    #[prost(uint64, required, tag = "5")]
    pub so_rcv_tmo_sec: u64,
    /// Microseconds of `SO_RCVTIMEO`.
    #[prost(uint64, required, tag = "6")]
    pub so_rcv_tmo_usec: u64,
    /// `SO_REUSEADDR`.
    #[prost(bool, optional, tag = "7")]
    pub reuseaddr: Option<bool>,
    /// `SO_PRIORITY`.
    #[prost(uint32, optional, tag = "8")]
    pub so_priority: Option<u32>,
    /// `SO_RCVLOWAT` in bytes.
    #[prost(uint32, optional, tag = "9")]
    pub so_rcvlowat: Option<u32>,
    /// `SO_MARK`.
    #[prost(uint32, optional, tag = "10")]
    pub so_mark: Option<u32>,
    /// `SO_PASSCRED`.
    #[prost(bool, optional, tag = "11")]
    pub so_passcred: Option<bool>,
    /// `SO_PASSSEC`.
    #[prost(bool, optional, tag = "12")]
    pub so_passsec: Option<bool>,
    /// `SO_DONTROUTE`.
    #[prost(bool, optional, tag = "13")]
    pub so_dontroute: Option<bool>,
    /// `SO_NO_CHECK`.
    #[prost(bool, optional, tag = "14")]
    pub so_no_check: Option<bool>,
    /// `SO_BINDTODEVICE`: name of a network device.
    #[prost(string, optional, tag = "15")]
    pub so_bound_dev: Option<String>,
    /// `SO_ATTACH_FILTER`: code << 48, jt << 40, jf << 32, k of each instruction.
    #[prost(fixed64, repeated, packed = "false", tag = "16")]
    pub so_filter: Vec<u64>,
    /// `SO_REUSEPORT`.
    #[prost(bool, optional, tag = "17")]
    pub so_reuseport: Option<bool>,
    /// `SO_BROADCAST`.
    #[prost(bool, optional, tag = "18")]
    pub so_broadcast: Option<bool>,
    /// `SO_KEEPALIVE`.
    #[prost(bool, optional, tag = "19")]
    pub so_keepalive: Option<bool>,
    /// Of TCP, in images of before CRIU 4.
    #[prost(uint32, optional, tag = "20")]
    pub tcp_keepcnt: Option<u32>,
    /// Of TCP, likewise.
    #[prost(uint32, optional, tag = "21")]
    pub tcp_keepidle: Option<u32>,
    /// Of TCP, likewise.
    #[prost(uint32, optional, tag = "22")]
    pub tcp_keepintvl: Option<u32>,
    /// `SO_OOBINLINE`.
    #[prost(uint32, optional, tag = "23")]
    pub so_oobinline: Option<u32>,
    /// Seconds of `SO_LINGER`, where it is on.
    #[prost(uint32, optional, tag = "24")]
    pub so_linger: Option<u32>,
    /// `SO_BUF_LOCK`: which buffer sizes were set by hand.
    #[prost(uint32, optional, tag = "25")]
    pub so_buf_lock: Option<u32>,
}

/// Which directions of a socket are shut (`sk_shutdown`, images/sk-opts.proto): bits, as the kernel's `sk_shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SkShutdown {
    /// Both are open.
    None = 0,
    /// It reads no more.
    Read = 1,
    /// It writes no more.
    Write = 2,
    /// It does neither.
    Both = 3,
}

schema!(
    SkOptsEntry,
    "sk_opts_entry",
    [
        (1, "so_sndbuf"),
        (2, "so_rcvbuf"),
        (3, "so_snd_tmo_sec"),
        (4, "so_snd_tmo_usec"),
        (5, "so_rcv_tmo_sec"),
        (6, "so_rcv_tmo_usec")
    ],
    []
);
