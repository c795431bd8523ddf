//! /proc/PID/fdinfo/FD (`man 5 proc_pid_fdinfo`; fs/proc/fd.c and the show_fdinfo of each kind of file).

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::fields::{decimal, lines, split_at_byte, unsigned, unsigned32, words};
use super::{ParseError, ProcfsError, read_parsed};

/// Bound of one file: an inotify descriptor has a line of up to 200 bytes for each watch.
const FDINFO_BYTES: u64 = 256 << 20;

/// Close-on-exec, as it stands among the flags here (O_CLOEXEC; it is of the descriptor, not the file).
pub const O_CLOEXEC: u32 = 0o2_000_000;

/// Kind of a file lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl(F_SETLK): owned by the process.
    Posix,
    /// flock(2): owned by the open file.
    Flock,
    /// fcntl(F_OFD_SETLK): owned by the open file.
    Ofd,
    /// fcntl(F_SETLEASE), or a lease of the file server.
    Lease,
}

/// A lock that is held on the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Kind.
    pub kind: LockKind,
    /// `ADVISORY`, `MANDATORY`, or for leases `ACTIVE`, `BREAKING`, `BREAKER`.
    pub mode: Vec<u8>,
    /// `READ`, `WRITE`, `RDLCK`, `UNLCK` as shown.
    pub access: Vec<u8>,
    /// The process that set it; -1 for locks of an open file, 0 when outside the reader's pid namespace.
    pub pid: i32,
    /// Device of the file, (major, minor).
    pub device: (u32, u32),
    /// Inode of the file.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` up to the end of the file, wherever it is.
    pub end: Option<u64>,
}

/// What the kernel shows of a descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// Position in the file; -1 is possible for odd devices.
    pub pos: i64,
    /// Access mode and status flags, with [`O_CLOEXEC`].
    pub flags: u32,
    /// The mount the file was opened through, as in mountinfo.
    pub mnt_id: i32,
    /// Inode (kernel 5.14).
    pub ino: Option<u64>,
    /// Locks held through it.
    pub locks: Vec<Lock>,
    /// All other lines as they stand: `eventfd-count: ...`, `tfd: ...`, `inotify ...`, `sigmask: ...`.
    pub extras: Vec<Vec<u8>>,
}

impl FdInfo {
    /// Whether the descriptor is closed on exec.
    pub fn is_cloexec(&self) -> bool {
        self.flags & O_CLOEXEC != 0
    }

    /// The value of the first extra line with this key, trimmed.
    pub fn extra(&self, key: &str) -> Option<&[u8]> {
        self.extras.iter().find_map(|line| {
            let (found, value) = split_at_byte(line, b':')?;
            (found == key.as_bytes()).then(|| value.trim_ascii())
        })
    }
}

/// Parses the lines; unknown ones are kept as extras.
pub fn parse(text: &[u8]) -> Result<FdInfo, ParseError> {
    let mut info = FdInfo::default();
    let mut seen_flags = false;
    for line in lines(text) {
        let (key, value) = split_at_byte(line, b':').unwrap_or((line, b""));
        let first = words(value).next().unwrap_or_default();
        match key {
            b"pos" => info.pos = parse_pos(first)?,
            b"flags" => {
                info.flags = unsigned32(first, 8, "flags")?;
                seen_flags = true;
            }
            b"mnt_id" => info.mnt_id = decimal(first, "mnt_id")?,
            b"ino" => info.ino = Some(unsigned(first, 10, "ino")?),
            b"lock" => info.locks.push(parse_lock(value)?),
            _ => info.extras.push(line.to_vec()),
        }
    }
    if seen_flags { Ok(info) } else { Err(ParseError::new("flags", b"(no such line)")) }
}

/// The kernel prints the position signed in this file, but large unsigned ones have been seen from odd devices.
fn parse_pos(word: &[u8]) -> Result<i64, ParseError> {
    decimal::<i64>(word, "pos").or_else(|_| decimal::<u64>(word, "pos").map(|pos| pos as i64))
}

/// `N: KIND MODE ACCESS PID MAJOR:MINOR:INODE START END`
fn parse_lock(value: &[u8]) -> Result<Lock, ParseError> {
    let bad = || ParseError::new("lock", value);
    let all: Vec<&[u8]> = words(value).collect();
    let &[_number, kind, mode, access, pid, file, start, end] = &all[..] else { return Err(bad()) };
    let kind = match kind {
        b"POSIX" => LockKind::Posix,
        b"FLOCK" => LockKind::Flock,
        b"OFDLCK" => LockKind::Ofd,
        b"LEASE" | b"DELEG" => LockKind::Lease,
        _ => return Err(bad()),
    };
    let (major, rest) = split_at_byte(file, b':').ok_or_else(bad)?;
    let (minor, inode) = split_at_byte(rest, b':').ok_or_else(bad)?;
    Ok(Lock {
        kind,
        mode: mode.to_vec(),
        access: access.to_vec(),
        pid: decimal(pid, "lock pid")?,
        device: (unsigned32(major, 16, "lock device")?, unsigned32(minor, 16, "lock device")?),
        inode: unsigned(inode, 10, "lock inode")?,
        start: unsigned(start, 10, "lock start")?,
        end: if end == b"EOF" { None } else { Some(unsigned(end, 10, "lock end")?) },
    })
}

/// Reads /proc/PID/fdinfo/FD. A descriptor that was closed meanwhile is a `Read` error with ENOENT.
pub fn read(pid: Pid, fd: RawFd) -> Result<FdInfo, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/fdinfo/{fd}")), FDINFO_BYTES, parse)
}

/// The open descriptors of a process, in rising order (/proc/PID/fd).
pub fn list(pid: Pid) -> Result<Vec<RawFd>, ProcfsError> {
    super::tree::numbers_in(Path::new(&format!("/proc/{pid}/fd")))
}
