//! A running workload.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::measure::{Running, parse_status_kib};

/// Time that a workload may take to fill its memory.
const PATIENCE: Duration = Duration::from_secs(180);

/// The process that is dumped. Killed if it still runs when this value goes.
pub struct Victim {
    running: Running,
    memory_bytes: u64,
}

impl Victim {
    pub(super) fn start(command: Command, ready: &Path, dir: &Path) -> io::Result<Victim> {
        let mut running = Running::start_leader(command, "workload", dir)?;
        running.wait_ready(PATIENCE, |_| Ok(ready.exists()))?;
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid()))?;
        let kib = |name: &str| parse_status_kib(&status, name).unwrap_or(0);
        let memory_bytes = (kib("RssAnon") + kib("RssShmem")) * 1024;
        Ok(Victim { running, memory_bytes })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Memory that no file holds: what a dump has to take, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may lie still, where SIGTERM would not reach it.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGKILL);
    }
}
