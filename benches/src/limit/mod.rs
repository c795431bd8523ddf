//! What the machine could do at all: each limit is one part of the page path alone.
//!
//! A new limit: a file beside this one with a function that makes a [`Rate`], and its line in [`all`].

use std::io;

use serde::Serialize;

/// One measurement of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Bytes moved.
    pub bytes: u64,
    /// In how many seconds.
    pub wall_s: f64,
    /// CPU time of all who took part, in seconds.
    pub cpu_s: f64,
}

impl Rate {
    /// MiB a second.
    pub fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.wall_s
    }

    /// CPU-seconds a GiB.
    pub fn cpu_s_per_gib(&self) -> f64 {
        self.cpu_s / (self.bytes as f64 / f64::from(1 << 30))
    }
}

/// Something the page path leans on, alone.
#[derive(Clone, Copy)]
pub struct Limit {
    /// Its name in results.
    pub name: &'static str,
    /// Moves `bytes` and says how long that took.
    pub measure: fn(bytes: u64) -> io::Result<Rate>,
}

/// All of them, from the fastest down.
pub fn all() -> Vec<Limit> {
    vec![]
}
