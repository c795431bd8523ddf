//! /proc/PID/timers: POSIX timers (`man 5 proc_pid_timers`; fs/proc/base.c; CONFIG_CHECKPOINT_RESTORE).

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{decimal, lines, split_at_byte, unsigned};
use super::{LONG_BYTES, ParseError, ProcfsError, read_parsed};

/// How a timer tells that it expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// SIGEV_SIGNAL.
    Signal,
    /// SIGEV_NONE.
    None,
    /// SIGEV_THREAD.
    Thread,
}

impl Notify {
    /// The number in `struct sigevent`: 0, 1 or 2, plus 4 (SIGEV_THREAD_ID) where it is for one thread.
    pub fn to_raw(self, to_thread: bool) -> i32 {
        let base = match self {
            Notify::Signal => 0,
            Notify::None => 1,
            Notify::Thread => 2,
        };
        if to_thread { base | 4 } else { base }
    }
}

/// A POSIX timer. Its value must be asked inside the task (timer_gettime).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The id that timer_create gave.
    pub id: i32,
    /// Signal it sends.
    pub signal: i32,
    /// Value that goes with the signal (sival_ptr).
    pub value: u64,
    /// Kind of notification.
    pub notify: Notify,
    /// Whether it is for one thread (SIGEV_THREAD_ID) rather than the process.
    pub to_thread: bool,
    /// That thread, or the process, in the reader's pid namespace; 0 where it has gone.
    pub target: i32,
    /// Clock, `CLOCK_*` or negative for a CPU clock of a process or thread.
    pub clock_id: i32,
}

/// Parses groups of the lines `ID`, `signal`, `notify`, `ClockID`.
pub fn parse(text: &[u8]) -> Result<Vec<Timer>, ParseError> {
    let mut timers: Vec<Timer> = Vec::new();
    for line in lines(text) {
        let bad = || ParseError::new("timers", line);
        let (key, value) = split_at_byte(line, b':').ok_or_else(bad)?;
        let value = value.trim_ascii();
        if key == b"ID" {
            let id = decimal(value, "ID")?;
            let (notify, to_thread, target) = (Notify::Signal, false, 0);
            timers.push(Timer { id, signal: 0, value: 0, notify, to_thread, target, clock_id: 0 });
            continue;
        }
        let timer = timers.last_mut().ok_or_else(bad)?;
        match key {
            b"signal" => {
                let (signal, sival) = split_at_byte(value, b'/').ok_or_else(bad)?;
                timer.signal = decimal(signal, "signal")?;
                // %px has no 0x in current kernels; a null pointer was once shown as "(null)".
                let digits = sival.strip_prefix(b"0x").unwrap_or(sival);
                timer.value = if sival == b"(null)" { 0 } else { unsigned(digits, 16, "signal value")? };
            }
            b"notify" => {
                let (kind, who) = split_at_byte(value, b'/').ok_or_else(bad)?;
                let (scope, target) = split_at_byte(who, b'.').ok_or_else(bad)?;
                timer.notify = match kind {
                    b"signal" => Notify::Signal,
                    b"none" => Notify::None,
                    b"thread" => Notify::Thread,
                    _ => return Err(bad()),
                };
                timer.to_thread = scope == b"tid";
                timer.target = decimal(target, "notify")?;
            }
            b"ClockID" => timer.clock_id = decimal(value, "ClockID")?,
            _ => {}
        }
    }
    Ok(timers)
}

/// Reads /proc/PID/timers.
pub fn read(pid: Pid) -> Result<Vec<Timer>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/timers")), LONG_BYTES, parse)
}
