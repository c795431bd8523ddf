//! /proc/PID/ns/KIND: which namespaces a task lives in (`man 7 namespaces`).

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::unsigned;
use super::{ParseError, ProcfsError};

/// Kinds of namespace that have a link of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Process ids.
    Pid,
    /// Network.
    Net,
    /// System V and POSIX IPC.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Mounts.
    Mnt,
    /// User ids.
    User,
    /// Offsets of the clocks (kernel 5.6).
    Time,
    /// Cgroup root (kernel 4.6).
    Cgroup,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] =
        [Kind::Pid, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Mnt, Kind::User, Kind::Time, Kind::Cgroup];

    /// Name of the link, and the word inside it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pid => "pid",
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Mnt => "mnt",
            Kind::User => "user",
            Kind::Time => "time",
            Kind::Cgroup => "cgroup",
        }
    }
}

/// Parses the text of a link, `net:[4026531840]`, to the inode number.
pub fn parse(kind: Kind, link: &[u8]) -> Result<u64, ParseError> {
    let inode = link
        .strip_prefix(kind.name().as_bytes())
        .and_then(|rest| rest.strip_prefix(b":["))
        .and_then(|rest| rest.strip_suffix(b"]"))
        .ok_or_else(|| ParseError::new("ns link", link))?;
    unsigned(inode, 10, "ns inode")
}

/// The inode that names the task's namespace of this kind; `None` where the kernel has no such kind.
pub fn read(pid: Pid, kind: Kind) -> Result<Option<u64>, ProcfsError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/{}", kind.name()));
    let link = match std::fs::read_link(&path) {
        Ok(link) => link,
        Err(source) => {
            let kind_missing = source.kind() == std::io::ErrorKind::NotFound;
            return match ProcfsError::from_io(&path, source) {
                ProcfsError::Read { .. } if kind_missing => Ok(None),
                error => Err(error),
            };
        }
    };
    parse(kind, link.as_os_str().as_encoded_bytes())
        .map(Some)
        .map_err(|source| ProcfsError::Malformed { path, source })
}
