//! The one-value files of a task: comm, loginuid, oom_score_adj, personality.

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{decimal, unsigned32};
use super::{ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// Value of a loginuid that was never set.
pub const LOGINUID_UNSET: u32 = u32::MAX;

/// Strips the line end of a name; the name may hold line ends of its own.
pub fn parse_comm(text: &[u8]) -> Result<Vec<u8>, ParseError> {
    text.strip_suffix(b"\n").map(<[u8]>::to_vec).ok_or_else(|| ParseError::new("comm", text))
}

/// A decimal number, alone in its file.
pub fn parse_decimal<T: std::str::FromStr>(text: &[u8]) -> Result<T, ParseError> {
    decimal(text.trim_ascii(), "number")
}

/// A hexadecimal number, alone in its file.
pub fn parse_hex(text: &[u8]) -> Result<u32, ParseError> {
    unsigned32(text.trim_ascii(), 16, "number")
}

/// The name of thread `tid`, up to 15 bytes (/proc/PID/task/TID/comm).
pub fn comm(pid: Pid, tid: Pid) -> Result<Vec<u8>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/task/{tid}/comm")), SHORT_BYTES, parse_comm)
}

/// The uid that the user logged in with, [`LOGINUID_UNSET`] for none (CONFIG_AUDIT; a `Read` error without it).
pub fn loginuid(pid: Pid) -> Result<u32, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/loginuid")), SHORT_BYTES, parse_decimal)
}

/// How much the process is favoured by the out-of-memory killer, -1000 to 1000.
pub fn oom_score_adj(pid: Pid) -> Result<i32, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/oom_score_adj")), SHORT_BYTES, parse_decimal)
}

/// How late a thread's timers may be, in nanoseconds; 0 for a real-time thread of newer kernels.
pub fn timer_slack_ns(tid: Pid) -> Result<u64, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{tid}/timerslack_ns")), SHORT_BYTES, parse_decimal)
}

/// Which memory goes into a core dump, a bit a kind (`man 5 core`); the file is hexadecimal.
pub fn coredump_filter(pid: Pid) -> Result<u32, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/coredump_filter")), SHORT_BYTES, parse_hex)
}

/// The nice value of the task group that the kernel made for the session (`man 7 sched`).
pub fn autogroup_nice(pid: Pid) -> Result<i32, ProcfsError> {
    let parse = |text: &[u8]| {
        let word = text.trim_ascii().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        decimal(word, "nice")
    };
    read_parsed(&PathBuf::from(format!("/proc/{pid}/autogroup")), SHORT_BYTES, parse)
}

/// The execution domain (`man 2 personality`); the file is hexadecimal.
pub fn personality(pid: Pid) -> Result<u32, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/personality")), SHORT_BYTES, parse_hex)
}
