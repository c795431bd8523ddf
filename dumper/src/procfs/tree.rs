//! /proc/PID/task and its `children`: the threads of a process and the processes they made.

use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::fields::{decimal, unsigned, words};
use super::{LONG_BYTES, ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// The threads of a process, in rising order (/proc/PID/task).
pub fn threads(pid: Pid) -> Result<Vec<Pid>, ProcfsError> {
    let tids = numbers_in(Path::new(&format!("/proc/{pid}/task")))?;
    Ok(tids.into_iter().map(Pid::from_raw).collect())
}

/// The processes of the reader's pid namespace, in rising order.
pub fn processes() -> Result<Vec<Pid>, ProcfsError> {
    Ok(numbers_in(Path::new("/proc"))?.into_iter().map(Pid::from_raw).collect())
}

/// Parses the blank-separated ids of a `children` file.
pub fn parse_children(text: &[u8]) -> Result<Vec<Pid>, ParseError> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    words(text).map(|word| Ok(Pid::from_raw(decimal(word, "children")?))).collect()
}

/// The children that thread `tid` made (/proc/PID/task/TID/children; CONFIG_PROC_CHILDREN).
///
/// Exact only while those children are stopped: an exit while it is read may hide others.
pub fn children(pid: Pid, tid: Pid) -> Result<Vec<Pid>, ProcfsError> {
    let path = PathBuf::from(format!("/proc/{pid}/task/{tid}/children"));
    read_parsed(&path, LONG_BYTES, parse_children)
}

/// What a thread is doing, from /proc/PID/task/TID/syscall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// On a processor, or about to be.
    Running,
    /// Blocked outside a system call (a page fault).
    Blocked,
    /// Inside a system call.
    Syscall {
        /// Number of the call.
        nr: u64,
        /// Its arguments.
        args: [u64; 6],
        /// Stack pointer in user code.
        sp: u64,
        /// Where it will go on in user code.
        pc: u64,
    },
}

/// Parses the `syscall` file.
pub fn parse_syscall(text: &[u8]) -> Result<Doing, ParseError> {
    let bad = || ParseError::new("syscall", text);
    let all: Vec<&[u8]> = words(text.trim_ascii()).collect();
    match all[..] {
        [b"running"] => Ok(Doing::Running),
        [b"-1", ..] => Ok(Doing::Blocked),
        [nr, ref rest @ ..] if rest.len() == 8 => {
            let mut values = [0u64; 8];
            for (value, word) in values.iter_mut().zip(rest) {
                *value = unsigned(word.strip_prefix(b"0x").ok_or_else(bad)?, 16, "syscall")?;
            }
            let [a0, a1, a2, a3, a4, a5, sp, pc] = values;
            Ok(Doing::Syscall { nr: decimal(nr, "syscall")?, args: [a0, a1, a2, a3, a4, a5], sp, pc })
        }
        _ => Err(bad()),
    }
}

/// What thread `tid` is doing just now (CONFIG_HAVE_ARCH_TRACEHOOK; needs the right to trace it).
pub fn syscall(pid: Pid, tid: Pid) -> Result<Doing, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/task/{tid}/syscall")), SHORT_BYTES, parse_syscall)
}

/// The names in a directory that are numbers, in rising order.
pub(super) fn numbers_in(dir: &Path) -> Result<Vec<i32>, ProcfsError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|source| ProcfsError::from_io(dir, source))? {
        let entry = entry.map_err(|source| ProcfsError::from_io(dir, source))?;
        if let Ok(number) = decimal(entry.file_name().as_encoded_bytes(), "number") {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}
