//! What tracking costs: the scan of a round, and the throughput that a process loses which writes as fast as it can.
//!
//! The process is `workload` with a hot set. It is tracked from this process by godwit's own tracker, in rounds made of
//! a collection and a copy of what was collected, as the page path makes them; only the sending is left out.
//! [`scan`] and [`cost`] are the two measurements, [`catalog`] says which of them are made.

pub mod catalog;
pub mod cost;
pub mod scan;

use std::io;
use std::time::Instant;

use godwit_dumper::predump::held::Held;
use godwit_dumper::predump::tracker::{self, Ask, Choice, Run, Tracker};
use godwit_dumper::procfs::maps;
use godwit_dumper::sys::process_vm::{self, Remote};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::link::{Link, LinkKind};
use crate::workload::hot_set::{How, Plan, Written};
use crate::workload::{Content, Victim, Workload};

/// Bytes that are copied in one call.
const COPY_LEN: usize = 1 << 20;

/// How a process is made that is tracked.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// Its memory in MiB: nothing that can be compressed, all of it there.
    pub memory_mib: u64,
    /// Pages of a hundred that it rewrites, as fast as it can; 0: it only sleeps.
    pub hot_percent: u32,
    /// How it rewrites them.
    pub how: How,
}

/// A running process of that kind. Killed on drop.
struct Tracked {
    victim: Victim,
    written: Written,
    _link: Link,
    _dir: TempDir,
}

impl Tracked {
    fn start(writer: Writer) -> io::Result<Tracked> {
        let dir = tempfile::tempdir()?;
        let link = LinkKind::Loopback.open(dir.path())?;
        let plan = Plan { hot_percent: writer.hot_percent, rate_mib_s: 0, how: writer.how };
        let hot = (writer.hot_percent > 0).then_some(plan);
        let workload = Workload { hot, ..Workload::still(Content::Random) };
        let victim = workload.start(writer.memory_mib, &link, dir.path())?;
        let written = Written::of(victim.pid().unsigned_abs(), &dir.path().join("ready"))?;
        Ok(Tracked { victim, written, _link: link, _dir: dir })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.victim.pid())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        kill(self.pid(), signal)?;
        Ok(())
    }

    /// Pages a second that it rewrites while something is done, and what came of that.
    fn rate_while<T>(&self, work: impl FnOnce() -> T) -> io::Result<(f64, T)> {
        let (before, begun) = (self.written.pages()?, Instant::now());
        let done = work();
        let pages = self.written.pages()? - before;
        Ok((pages as f64 / begun.elapsed().as_secs_f64(), done))
    }

    /// The tracker, armed on it: what it has now is collected already.
    fn tracker(&self, choice: Choice) -> io::Result<Box<dyn Tracker>> {
        let mut tracker = tracker::attach(choice, self.pid(), 1).map_err(io::Error::other)?;
        self.collect(&mut *tracker)?;
        Ok(tracker)
    }

    fn collect(&self, tracker: &mut dyn Tracker) -> io::Result<Vec<Run>> {
        let mut vmas = maps::read(self.pid()).map_err(io::Error::other)?;
        // The kernel's own cannot be scanned, and rounds leave them out.
        vmas.retain(|vma| !vma.is_special());
        // Only a tracker by hashes asks what the rounds hold.
        let held = Held::default();
        let ask = Ask { vmas: &vmas, held: &held, is_stopped: false, until: None };
        tracker.collect(&ask).map_err(io::Error::other)
    }

    /// Copies pages out of it. What is gone meanwhile, or cannot be read, is left out.
    fn copy(&self, runs: &[Run]) {
        let mut buffer = vec![1; COPY_LEN];
        for batch in batches(runs) {
            let len = batch.iter().map(|piece| piece.len).sum();
            let _ = process_vm::read(self.pid(), &batch, &mut buffer[..len]);
        }
        std::hint::black_box(&buffer);
    }
}

/// The pages of the runs as calls of at most [`COPY_LEN`] bytes.
fn batches(runs: &[Run]) -> Vec<Vec<Remote>> {
    let mut batches = Vec::new();
    let mut batch: Vec<Remote> = Vec::new();
    let mut room = COPY_LEN;
    for run in runs {
        let mut addr = run.vaddr;
        while addr < run.end() {
            let len = room.min(usize::try_from(run.end() - addr).unwrap_or(usize::MAX));
            batch.push(Remote { addr, len });
            addr += len as u64;
            room -= len;
            if room == 0 || batch.len() == process_vm::PIECES_MAX {
                batches.push(std::mem::take(&mut batch));
                room = COPY_LEN;
            }
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_page_once() {
        let run = |vaddr: u64, nr_pages: u64| Run { vaddr, nr_pages, flags: 0 };
        let mut runs = vec![run(4096, 1), run(1 << 20, 700)];
        runs.extend((0..3000).map(|at| run((1 << 30) + at * 8192, 1)));
        let batches = batches(&runs);
        let lens = batches.iter().map(|batch| batch.iter().map(|piece| piece.len).sum::<usize>());
        assert!(lens.clone().all(|len| len <= COPY_LEN));
        assert_eq!(lens.sum::<usize>(), (1 + 700 + 3000) * 4096);
        assert!(batches.iter().all(|batch| batch.len() <= process_vm::PIECES_MAX));
        let starts: Vec<u64> = batches.iter().flatten().map(|piece| piece.addr).collect();
        assert!(starts.is_sorted_by(|one, next| one < next));
    }
}
