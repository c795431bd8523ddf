//! /proc/PID/status (`man 5 proc_pid_status`; fs/proc/array.c).

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{decimal, lines, split_at_byte, unsigned, unsigned32, words};
use super::{ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// Real, effective, saved and file system id, as the reader's user namespace sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Real id.
    pub real: u32,
    /// Effective id.
    pub effective: u32,
    /// Saved set-id.
    pub saved: u32,
    /// File system id.
    pub fs: u32,
}

/// Capability sets, bit n for capability n (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Inheritable.
    pub inheritable: u64,
    /// Permitted.
    pub permitted: u64,
    /// Effective.
    pub effective: u64,
    /// Bounding set.
    pub bounding: u64,
    /// Ambient.
    pub ambient: u64,
}

/// Signal sets, bit n-1 for signal n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Pending for the thread.
    pub pending: u64,
    /// Pending for the process.
    pub shared_pending: u64,
    /// Blocked by the thread.
    pub blocked: u64,
    /// Ignored by the process.
    pub ignored: u64,
    /// With a handler.
    pub caught: u64,
}

/// The lines a dump needs. Those that older kernels or kernel threads lack are `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `State`: first letter, as in [`super::stat::Stat::state`].
    pub state: u8,
    /// `Tgid`: the process the thread belongs to.
    pub tgid: i32,
    /// `Pid`: the thread's id.
    pub pid: i32,
    /// `PPid`: parent, 0 when outside the reader's pid namespace.
    pub ppid: i32,
    /// `TracerPid`: who traces it, 0 for nobody.
    pub tracer_pid: i32,
    /// `Umask` (kernel 4.7); none for a task without file system context, such as a zombie.
    pub umask: Option<u32>,
    /// `Uid`.
    pub uid: Ids,
    /// `Gid`.
    pub gid: Ids,
    /// `Groups`: supplementary groups.
    pub groups: Vec<u32>,
    /// `NSpid`: its id in each pid namespace from the reader's down to its own.
    pub ns_pid: Vec<i32>,
    /// `NSpgid`: likewise its process group.
    pub ns_pgid: Vec<i32>,
    /// `NSsid`: likewise its session.
    pub ns_sid: Vec<i32>,
    /// `Kthread` (kernel 6.8).
    pub kernel_thread: Option<bool>,
    /// `Threads`.
    pub threads: u32,
    /// `SigPnd`, `ShdPnd`, `SigBlk`, `SigIgn`, `SigCgt`.
    pub signals: Signals,
    /// `CapInh` to `CapAmb`.
    pub capabilities: Capabilities,
    /// `NoNewPrivs` (kernel 4.10).
    pub no_new_privs: bool,
    /// `Seccomp`: 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// `Cpus_allowed`: the CPUs that it may run on, as the kernel writes the mask.
    pub cpus_allowed: Vec<u8>,
    /// `Speculation_Store_Bypass` (kernel 4.17).
    pub store_bypass: Vec<u8>,
    /// `SpeculationIndirectBranch` (kernel 5.11).
    pub indirect_branch: Vec<u8>,
    /// `THP_enabled` (kernel 5.0): whether transparent huge pages are not switched off by prctl.
    pub thp_enabled: Option<bool>,
    /// `x86_Thread_features` (kernel 6.6): among them `shstk` where a user shadow stack is on.
    pub shadow_stack: bool,
}

/// Parses all lines; the order does not matter and unknown ones are passed over.
pub fn parse(text: &[u8]) -> Result<Status, ParseError> {
    let mut status = Status::default();
    let mut seen_pid = false;
    for line in lines(text) {
        let Some((key, value)) = split_at_byte(line, b':') else { continue };
        let first = words(value).next().unwrap_or_default();
        match key {
            b"State" => {
                status.state = *first.first().ok_or_else(|| ParseError::new("State", value))?;
            }
            b"Tgid" => status.tgid = decimal(first, "Tgid")?,
            b"Pid" => {
                status.pid = decimal(first, "Pid")?;
                seen_pid = true;
            }
            b"PPid" => status.ppid = decimal(first, "PPid")?,
            b"TracerPid" => status.tracer_pid = decimal(first, "TracerPid")?,
            b"Umask" => status.umask = Some(unsigned32(first, 8, "Umask")?),
            b"Uid" => status.uid = ids(value, "Uid")?,
            b"Gid" => status.gid = ids(value, "Gid")?,
            b"Groups" => status.groups = numbers(value, "Groups")?,
            b"NSpid" => status.ns_pid = numbers(value, "NSpid")?,
            b"NSpgid" => status.ns_pgid = numbers(value, "NSpgid")?,
            b"NSsid" => status.ns_sid = numbers(value, "NSsid")?,
            b"Kthread" => status.kernel_thread = Some(decimal::<u32>(first, "Kthread")? != 0),
            b"Threads" => status.threads = decimal(first, "Threads")?,
            b"SigPnd" => status.signals.pending = unsigned(first, 16, "SigPnd")?,
            b"ShdPnd" => status.signals.shared_pending = unsigned(first, 16, "ShdPnd")?,
            b"SigBlk" => status.signals.blocked = unsigned(first, 16, "SigBlk")?,
            b"SigIgn" => status.signals.ignored = unsigned(first, 16, "SigIgn")?,
            b"SigCgt" => status.signals.caught = unsigned(first, 16, "SigCgt")?,
            b"CapInh" => status.capabilities.inheritable = unsigned(first, 16, "CapInh")?,
            b"CapPrm" => status.capabilities.permitted = unsigned(first, 16, "CapPrm")?,
            b"CapEff" => status.capabilities.effective = unsigned(first, 16, "CapEff")?,
            b"CapBnd" => status.capabilities.bounding = unsigned(first, 16, "CapBnd")?,
            b"CapAmb" => status.capabilities.ambient = unsigned(first, 16, "CapAmb")?,
            b"NoNewPrivs" => status.no_new_privs = decimal::<u32>(first, "NoNewPrivs")? != 0,
            b"Seccomp" => status.seccomp = decimal(first, "Seccomp")?,
            b"Cpus_allowed" => status.cpus_allowed = first.to_vec(),
            b"Speculation_Store_Bypass" => status.store_bypass = value.trim_ascii().to_vec(),
            b"SpeculationIndirectBranch" => status.indirect_branch = value.trim_ascii().to_vec(),
            b"THP_enabled" => status.thp_enabled = Some(decimal::<u32>(first, "THP_enabled")? != 0),
            b"x86_Thread_features" => status.shadow_stack = words(value).any(|word| word == b"shstk"),
            _ => {}
        }
    }
    if seen_pid { Ok(status) } else { Err(ParseError::new("Pid", b"(no such line)")) }
}

fn numbers<T: std::str::FromStr>(value: &[u8], field: &'static str) -> Result<Vec<T>, ParseError> {
    words(value).map(|word| decimal(word, field)).collect()
}

fn ids(value: &[u8], field: &'static str) -> Result<Ids, ParseError> {
    let all: Vec<u32> = numbers(value, field)?;
    match all[..] {
        [real, effective, saved, fs] => Ok(Ids { real, effective, saved, fs }),
        _ => Err(ParseError::new(field, value)),
    }
}

/// Reads /proc/PID/status.
pub fn read(pid: Pid) -> Result<Status, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/status")), SHORT_BYTES, parse)
}

/// Reads /proc/PID/task/TID/status.
pub fn read_thread(pid: Pid, tid: Pid) -> Result<Status, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/task/{tid}/status")), SHORT_BYTES, parse)
}
