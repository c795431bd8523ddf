//! /proc/PID/mountinfo (`man 5 proc_pid_mountinfo`).

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{decimal, lines, split_at_byte, unescape, unsigned32, words};
use super::{LONG_BYTES, ParseError, ProcfsError, read_parsed};

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its id.
    pub mnt_id: i32,
    /// The mount it is mounted on; its own id or an unlisted one for the root.
    pub parent_id: i32,
    /// Device number of its files, major.
    pub major: u32,
    /// Device number of its files, minor.
    pub minor: u32,
    /// Which directory of the file system it shows.
    pub root: Vec<u8>,
    /// Where it is mounted, as seen from the task's root.
    pub mount_point: Vec<u8>,
    /// Options of the mount, parted by commas.
    pub options: Vec<u8>,
    /// Propagation: `shared:N`, `master:N`, `propagate_from:N`, `unbindable`.
    pub optional: Vec<Vec<u8>>,
    /// Kind of file system, with `.SUBTYPE` where it has one.
    pub fs_type: Vec<u8>,
    /// Device or other source.
    pub source: Vec<u8>,
    /// Options of the file system.
    pub super_options: Vec<u8>,
}

/// Parses a line a mount; blanks, tabs, line ends and backslashes in names come as octal escapes.
pub fn parse(text: &[u8]) -> Result<Vec<Mount>, ParseError> {
    lines(text).map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Result<Mount, ParseError> {
    let bad = || ParseError::new("mountinfo", line);
    let mut all = words(line);
    let mut word = || all.next().ok_or_else(bad);
    let mnt_id = decimal(word()?, "mountinfo id")?;
    let parent_id = decimal(word()?, "mountinfo parent")?;
    let (major, minor) = split_at_byte(word()?, b':').ok_or_else(bad)?;
    let root = unescape(word()?);
    let mount_point = unescape(word()?);
    let options = unescape(word()?);
    let mut optional = Vec::new();
    loop {
        match word()? {
            b"-" => break,
            tag => optional.push(tag.to_vec()),
        }
    }
    // The source may be empty (mount -t tmpfs ''): then two blanks follow each other and a word is missing.
    let rest: Vec<&[u8]> = all.collect();
    let (fs_type, source, super_options) = match rest[..] {
        [fs_type, source, options, ..] => (fs_type, source, options),
        [fs_type, options] => (fs_type, &b""[..], options),
        _ => return Err(bad()),
    };
    Ok(Mount {
        mnt_id,
        parent_id,
        major: unsigned32(major, 10, "mountinfo device")?,
        minor: unsigned32(minor, 10, "mountinfo device")?,
        root,
        mount_point,
        options,
        optional,
        fs_type: unescape(fs_type),
        source: unescape(source),
        super_options: unescape(super_options),
    })
}

/// Reads /proc/PID/mountinfo.
pub fn read(pid: Pid) -> Result<Vec<Mount>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/mountinfo")), LONG_BYTES, parse)
}
