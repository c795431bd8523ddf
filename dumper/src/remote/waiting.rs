//! Waiting for a tracee's next report, with a time limit.
//!
//! The kernel has no wait for ptrace stops with a limit, and a stop mostly comes within microseconds (within a
//! millisecond on an emulated processor). So: look and yield at first, then sleep for longer and longer.

use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::sys::wait::{self, Status};

/// Looks that yield the processor before the first sleep, and how long they go on at least.
const EAGER_LOOKS: u32 = 400;
const EAGER_TIME: Duration = Duration::from_millis(2);
const SLEEP_FIRST: Duration = Duration::from_micros(50);
const SLEEP_LONGEST: Duration = Duration::from_millis(2);

/// The next report of `tid`; `None` when none came before `deadline`.
pub(crate) fn report(tid: Pid, deadline: Instant) -> nix::Result<Option<Status>> {
    let mut pause = Pause::new();
    loop {
        if let Some(status) = wait::try_wait(tid)? {
            return Ok(Some(status));
        }
        if pause.is_sleeping() && Instant::now() >= deadline {
            return Ok(None);
        }
        pause.pause();
    }
}

/// A pause that starts as a yield and grows.
pub(crate) struct Pause {
    begun: Instant,
    looks: u32,
    sleep: Duration,
}

impl Pause {
    pub(crate) fn new() -> Pause {
        Pause { begun: Instant::now(), looks: 0, sleep: SLEEP_FIRST }
    }

    /// Whether the eager phase is over.
    pub(crate) fn is_sleeping(&self) -> bool {
        self.looks >= EAGER_LOOKS && self.begun.elapsed() >= EAGER_TIME
    }

    /// Yields or sleeps once.
    pub(crate) fn pause(&mut self) {
        if !self.is_sleeping() {
            self.looks = self.looks.saturating_add(1);
            thread::yield_now();
        } else {
            thread::sleep(self.sleep);
            self.sleep = (self.sleep * 2).min(SLEEP_LONGEST);
        }
    }
}
