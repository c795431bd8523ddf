//! /proc/PID/limits (`man 5 proc_pid_limits`): readable where prlimit(2) is not allowed.

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{lines, unsigned, words};
use super::{ParseError, ProcfsError, SHORT_BYTES, read_parsed};
use crate::sys::rlimit::{INFINITY, Limit, RESOURCES};

/// The kernel's names in the order of the `RLIMIT_*` numbers (fs/proc/base.c, lnames).
const NAMES: [&str; RESOURCES as usize] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Parses the table into the 16 limits in `RLIMIT_*` order; a line the kernel does not show is an error.
pub fn parse(text: &[u8]) -> Result<[Limit; RESOURCES as usize], ParseError> {
    let mut found = [None; RESOURCES as usize];
    for line in lines(text) {
        let Some(index) = NAMES.iter().position(|name| line.starts_with(name.as_bytes())) else { continue };
        let mut values = words(&line[NAMES[index].len()..]);
        let mut value = || limit(values.next().unwrap_or_default());
        found[index] = Some(Limit { soft: value()?, hard: value()? });
    }
    let mut limits = [Limit { soft: 0, hard: 0 }; RESOURCES as usize];
    for ((limit, found), name) in limits.iter_mut().zip(found).zip(NAMES) {
        *limit = found.ok_or_else(|| ParseError::new("limits", name.as_bytes()))?;
    }
    Ok(limits)
}

fn limit(word: &[u8]) -> Result<u64, ParseError> {
    if word == b"unlimited" { Ok(INFINITY) } else { unsigned(word, 10, "limits value") }
}

/// Reads /proc/PID/limits.
pub fn read(pid: Pid) -> Result<[Limit; RESOURCES as usize], ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/limits")), SHORT_BYTES, parse)
}
