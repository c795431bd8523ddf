//! /proc/PID/cgroup (`man 7 cgroups`).

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{decimal, lines, split_at_byte};
use super::{ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// Membership in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Number of the hierarchy; 0 is version 2.
    pub hierarchy: u32,
    /// `cpu,cpuacct`, `name=systemd`, or nothing for version 2.
    pub controllers: Vec<u8>,
    /// Path from the root of the reader's cgroup namespace; ` (deleted)` behind it where the cgroup is gone.
    pub path: Vec<u8>,
}

/// Parses lines of `HIERARCHY:CONTROLLERS:PATH`; the path may hold colons.
pub fn parse(text: &[u8]) -> Result<Vec<Membership>, ParseError> {
    lines(text)
        .map(|line| {
            let bad = || ParseError::new("cgroup", line);
            let (hierarchy, rest) = split_at_byte(line, b':').ok_or_else(bad)?;
            let (controllers, path) = split_at_byte(rest, b':').ok_or_else(bad)?;
            Ok(Membership {
                hierarchy: decimal(hierarchy, "cgroup hierarchy")?,
                controllers: controllers.to_vec(),
                path: path.to_vec(),
            })
        })
        .collect()
}

/// Reads /proc/PID/cgroup.
pub fn read(pid: Pid) -> Result<Vec<Membership>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/cgroup")), SHORT_BYTES, parse)
}

/// Reads /proc/PID/task/TID/cgroup.
pub fn read_thread(pid: Pid, tid: Pid) -> Result<Vec<Membership>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/task/{tid}/cgroup")), SHORT_BYTES, parse)
}
