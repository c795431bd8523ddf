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

/// The process that is dumped, and its children. Killed if they still run when this value goes.
pub struct Victim {
    running: Running,
    children: Vec<i32>,
    memory_bytes: u64,
}

impl Victim {
    pub(super) fn start(command: Command, ready: &Path, dir: &Path) -> io::Result<Victim> {
        let mut running = Running::start_leader(command, "workload", dir)?;
        running.wait_ready(PATIENCE, |_| Ok(ready.exists()))?;
        let children = children(running.pid());
        let memory_bytes =
            std::iter::once(running.pid()).chain(children.iter().copied()).map(memory_of).sum();
        Ok(Victim { running, children, memory_bytes })
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
        // They end with their parent; those of a parent that a dump has killed are its own business.
        for child in self.children.iter().filter(|child| is_workload(**child)) {
            let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
        }
    }
}

/// Memory of a process that no file holds, in bytes.
fn memory_of(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| parse_status_kib(&status, name).unwrap_or(0);
    (kib("RssAnon") + kib("RssShmem")) * 1024
}

fn children(pid: i32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Whether it is still one of ours: its number may be another's by now.
fn is_workload(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "workload")
}
