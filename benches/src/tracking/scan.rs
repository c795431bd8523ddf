//! How long a round's scan takes: a collection by the tracker, of a process of a given size.

use std::io;
use std::time::{Duration, Instant};

use godwit_dumper::predump::tracker::Choice;
use nix::sys::signal::Signal;

use super::{Tracked, Writer};
use crate::workload::hot_set::How;

/// What is scanned.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Memory of the process in MiB, all of it there, in pages of 4 KiB.
    pub memory_mib: u64,
    /// Pages of a hundred that it has written since the collection before.
    pub written_percent: u32,
    /// The tracker.
    pub tracker: Choice,
    /// Collections that are timed.
    pub repeats: usize,
}

/// One collection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scan {
    /// How long it took.
    pub wall: Duration,
    /// Pages that it found written.
    pub pages: u64,
}

/// Times collections. The process writes in between, and lies still meanwhile: what is timed is the tracker alone.
///
/// # Errors
/// When there is no process to scan, or the tracker does not work here.
pub fn measure(settings: Settings) -> io::Result<Vec<Scan>> {
    let Settings { memory_mib, written_percent, tracker, repeats } = settings;
    let process = Tracked::start(Writer { memory_mib, hot_percent: written_percent, how: How::Counter })?;
    let mut tracker = process.tracker(tracker)?;
    let lap = memory_mib * 256 * u64::from(written_percent) / 100;
    let mut scans = Vec::new();
    for _ in 0..repeats {
        written_again(&process, lap)?;
        process.signal(Signal::SIGSTOP)?;
        let begun = Instant::now();
        let runs = process.collect(&mut *tracker)?;
        let wall = begun.elapsed();
        process.signal(Signal::SIGCONT)?;
        scans.push(Scan { wall, pages: runs.iter().map(|run| run.nr_pages).sum() });
    }
    Ok(scans)
}

/// Waits until every hot page was written once more.
fn written_again(process: &Tracked, lap: u64) -> io::Result<()> {
    let (before, begun) = (process.written.pages()?, Instant::now());
    while process.written.pages()? < before + lap {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(io::Error::other("the workload does not write"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
