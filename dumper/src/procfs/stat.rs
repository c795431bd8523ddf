//! /proc/PID/stat (`man 5 proc_pid_stat`; fs/proc/array.c).

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{decimal, words};
use super::{ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// Task flag: exiting (`PF_EXITING`, include/linux/sched.h).
pub const PF_EXITING: u64 = 0x4;
/// Task flag: the PR_MCE_KILL policy is the task's own (`PF_MCE_PROCESS`, include/linux/sched.h).
pub const PF_MCE_PROCESS: u64 = 0x80;
/// Task flag: told of memory failures early (`PF_MCE_EARLY`, include/linux/sched.h).
pub const PF_MCE_EARLY: u64 = 0x0800_0000;
/// Task flag: an I/O flusher (`PF_MEMALLOC_NOIO`, include/linux/sched.h; PR_SET_IO_FLUSHER).
pub const PF_MEMALLOC_NOIO: u64 = 0x0008_0000;
/// Task flag: a thread of the kernel (`PF_KTHREAD`, include/linux/sched.h).
pub const PF_KTHREAD: u64 = 0x0020_0000;

/// The fields a dump needs, by their number in the man page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// 1: the id.
    pub pid: i32,
    /// 2: the name, up to 15 bytes of anything (64 for kernel threads).
    pub comm: Vec<u8>,
    /// 3: `R`, `S`, `D`, `T` stopped, `t` traced, `Z` zombie, `X` dead, `I` idle, `P` parked.
    pub state: u8,
    /// 4: parent; 0 when it lies outside the reader's pid namespace.
    pub ppid: i32,
    /// 5: process group.
    pub pgrp: i32,
    /// 6: session.
    pub session: i32,
    /// 7: controlling terminal as a device number, 0 for none.
    pub tty_nr: i32,
    /// 8: foreground process group of that terminal, -1 for none.
    pub tpgid: i32,
    /// 9: `PF_*` flags.
    pub flags: u64,
    /// 14: time in user mode, in ticks of 1/100 s.
    pub utime: u64,
    /// 15: time in kernel mode, in ticks.
    pub stime: u64,
    /// 20: number of threads.
    pub num_threads: i32,
    /// 22: when it started, in ticks after boot.
    pub start_time: u64,
    /// 23: size of the address space in bytes.
    pub vsize: u64,
    /// 24: pages in memory.
    pub rss_pages: u64,
    /// 26: start of the program text. Address fields are 0 or 1 for a reader without the right to trace the task.
    pub start_code: u64,
    /// 27: end of the program text.
    pub end_code: u64,
    /// 28: start (bottom) of the stack.
    pub start_stack: u64,
    /// 39: the processor that it ran on last.
    pub processor: i32,
    /// 45: start of the data.
    pub start_data: u64,
    /// 46: end of the data.
    pub end_data: u64,
    /// 47: where the heap begins.
    pub start_brk: u64,
    /// 48: start of the arguments.
    pub arg_start: u64,
    /// 49: end of the arguments.
    pub arg_end: u64,
    /// 50: start of the environment.
    pub env_start: u64,
    /// 51: end of the environment.
    pub env_end: u64,
    /// 52: raw wait status of a zombie.
    pub exit_code: i32,
}

impl Stat {
    /// Ended, but not yet waited for.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// A thread of the kernel.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }
}

/// Parses the one line. The name may itself hold blanks and brackets: it ends at the *last* `)`.
pub fn parse(text: &[u8]) -> Result<Stat, ParseError> {
    let open = text.iter().position(|&b| b == b'(').ok_or_else(|| ParseError::new("stat comm", text))?;
    let close = text.iter().rposition(|&b| b == b')').filter(|&at| at > open);
    let close = close.ok_or_else(|| ParseError::new("stat comm", text))?;
    let pid = words(&text[..open]).next().unwrap_or_default();

    let tail = text[close + 1..].strip_suffix(b"\n").unwrap_or(&text[close + 1..]);
    let tail: Vec<&[u8]> = words(tail).collect();
    // The state is field 3 of the man page and word 0 of the tail.
    let word = |number: usize| tail.get(number - 3).copied().unwrap_or_default();
    let signed = |number: usize, name| decimal::<i32>(word(number), name);
    let count = |number: usize, name| decimal::<u64>(word(number), name);

    let state = match word(3) {
        [letter] if letter.is_ascii_alphabetic() => *letter,
        other => return Err(ParseError::new("stat state", other)),
    };
    Ok(Stat {
        pid: decimal(pid, "stat pid")?,
        comm: text[open + 1..close].to_vec(),
        state,
        ppid: signed(4, "stat ppid")?,
        pgrp: signed(5, "stat pgrp")?,
        session: signed(6, "stat session")?,
        tty_nr: signed(7, "stat tty_nr")?,
        tpgid: signed(8, "stat tpgid")?,
        flags: count(9, "stat flags")?,
        utime: count(14, "stat utime")?,
        stime: count(15, "stat stime")?,
        num_threads: signed(20, "stat num_threads")?,
        start_time: count(22, "stat starttime")?,
        processor: signed(39, "stat processor")?,
        vsize: count(23, "stat vsize")?,
        rss_pages: count(24, "stat rss")?,
        start_code: count(26, "stat startcode")?,
        end_code: count(27, "stat endcode")?,
        start_stack: count(28, "stat startstack")?,
        start_data: count(45, "stat start_data")?,
        end_data: count(46, "stat end_data")?,
        start_brk: count(47, "stat start_brk")?,
        arg_start: count(48, "stat arg_start")?,
        arg_end: count(49, "stat arg_end")?,
        env_start: count(50, "stat env_start")?,
        env_end: count(51, "stat env_end")?,
        exit_code: signed(52, "stat exit_code")?,
    })
}

/// Reads /proc/PID/stat: times and counts are those of the whole process.
pub fn read(pid: Pid) -> Result<Stat, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/stat")), SHORT_BYTES, parse)
}

/// Reads /proc/PID/task/TID/stat.
pub fn read_thread(pid: Pid, tid: Pid) -> Result<Stat, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/task/{tid}/stat")), SHORT_BYTES, parse)
}
