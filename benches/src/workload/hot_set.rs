//! A hot set: a fixed part of the memory that is rewritten at a steady rate, and a count of what was written that can
//! be read from outside.

use std::hint::black_box;
use std::io::{self, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::PAGE;

/// How a page is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum How {
    /// A word, by the value that it holds: the page is written and equal.
    Equal,
    /// A counter of eight bytes, the rest stays: what a delta is for.
    Counter,
    /// Every byte, by words of a generator: nothing to gain.
    Random,
    /// A third of the pages each.
    Mixed,
}

/// What of the memory is hot, and how hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Pages of a hundred that are rewritten; 0 to 100.
    pub hot_percent: u32,
    /// Rewritten pages a second, in MiB; 0 for as many as go.
    pub rate_mib_s: u32,
    /// How they are rewritten.
    pub how: How,
}

/// Hot pages of a run; runs are spread over the memory, as objects of one age are over a heap.
const RUN: usize = 4;
/// How long the writer rests when it is ahead of its rate.
const REST: Duration = Duration::from_millis(1);
/// A writer that is further behind was stopped by another: it does not catch up.
const BEHIND_MAX: Duration = Duration::from_millis(20);

/// The numbers of the hot pages, in the order in which they are written: the same every time, and every lap.
pub fn hot_pages(pages: usize, hot_percent: u32) -> Vec<usize> {
    let runs = pages.div_ceil(RUN);
    let hot_runs = runs * hot_percent.min(100) as usize / 100;
    // Each run whose share of the whole is due: evenly spread, whatever the percentage.
    let is_hot = |run: &usize| (run + 1) * hot_runs / runs.max(1) > run * hot_runs / runs.max(1);
    let of_run = |run: usize| run * RUN..((run + 1) * RUN).min(pages);
    (0..runs).filter(is_hot).flat_map(of_run).collect()
}

/// Rewrites the hot pages for ever, or until as many pages are written as `pages_max` says. `written` counts pages.
pub fn rewrite(plan: &Plan, memory: &mut [u8], written: &AtomicU64, pages_max: u64) {
    let hot = hot_pages(memory.len() / PAGE, plan.hot_percent);
    if hot.is_empty() {
        return;
    }
    let page_time = match plan.rate_mib_s {
        0 => Duration::ZERO,
        rate => Duration::from_secs(1) / (rate << 20 >> 12),
    };
    let mut due = Instant::now();
    for (count, number) in (1..=pages_max).zip(hot.into_iter().cycle()) {
        rewrite_page(plan.how, number, count, &mut memory[number * PAGE..][..PAGE]);
        written.store(count, Ordering::Relaxed);
        if page_time.is_zero() {
            continue;
        }
        due += page_time;
        let now = Instant::now();
        if now > due + BEHIND_MAX {
            due = now;
        } else if due > now + REST {
            std::thread::sleep(due - now);
        }
    }
}

fn rewrite_page(how: How, number: usize, count: u64, page: &mut [u8]) {
    match how {
        How::Equal => page[0] = black_box(page[0]),
        How::Counter => page[8..16].copy_from_slice(&count.to_le_bytes()),
        How::Random => super::content::random(count, page),
        How::Mixed => {
            let part = [How::Equal, How::Counter, How::Random][number / RUN % 3];
            rewrite_page(part, number, count, page);
        }
    }
}

/// Reads the count of rewritten pages out of a running workload.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pid: Pid,
    address: usize,
}

impl Written {
    /// Of the process that has said it is ready in that file.
    ///
    /// # Errors
    /// When the file is not there or is of another kind.
    pub fn of(pid: u32, ready: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(ready)?;
        let address = usize::from_str_radix(text.trim(), 16)
            .map_err(|_| io::Error::other(format!("no address in {}: {text:?}", ready.display())))?;
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        Ok(Written { pid: Pid::from_raw(pid), address })
    }

    /// Pages that were rewritten since it began.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn pages(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        let remote = [RemoteIoVec { base: self.address, len: bytes.len() }];
        match process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut bytes)], &remote)? {
            8 => Ok(u64::from_le_bytes(bytes)),
            other => Err(io::Error::other(format!("{other} of 8 bytes were read from the workload"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_pages_are_as_many_as_asked_for_and_spread() {
        for percent in [0, 1, 10, 33, 50, 100] {
            let hot = hot_pages(4000, percent);
            assert_eq!(hot.len(), 40 * percent as usize);
            assert!(hot.is_sorted_by(|a, b| a < b) && hot.iter().all(|page| *page < 4000));
            if percent == 10 {
                assert!((0..4).all(|quarter| {
                    hot.iter().filter(|page| **page / 1000 == quarter).count().abs_diff(100) <= RUN
                }));
            }
        }
        assert_eq!(hot_pages(3, 100), [0, 1, 2]);
    }

    #[test]
    fn counts_are_read_from_outside() {
        static COUNT: AtomicU64 = AtomicU64::new(77);
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        std::fs::write(&ready, format!("{:x}\n", std::ptr::from_ref(&COUNT).addr())).unwrap();
        assert_eq!(Written::of(std::process::id(), &ready).unwrap().pages().unwrap(), 77);
        std::fs::write(&ready, "").unwrap();
        assert!(Written::of(std::process::id(), &ready).is_err());
    }

    #[test]
    fn pages_change_as_their_plan_says() {
        let changed = |how| {
            let before: Vec<u8> = (0..100 * PAGE).map(|at| (at / 7) as u8).collect();
            let mut memory = before.clone();
            let written = AtomicU64::new(0);
            let plan = Plan { hot_percent: 40, rate_mib_s: 0, how };
            rewrite(&plan, &mut memory, &written, 80);
            assert_eq!(written.load(Ordering::Relaxed), 80);
            let hot = hot_pages(100, 40);
            let mut bytes = Vec::new();
            for (number, (before, after)) in before.chunks(PAGE).zip(memory.chunks(PAGE)).enumerate() {
                let differ = before.iter().zip(after).filter(|(before, after)| before != after).count();
                if hot.contains(&number) {
                    bytes.push(differ);
                } else {
                    assert_eq!(differ, 0, "page {number} is not hot");
                }
            }
            bytes
        };
        assert!(changed(How::Equal).iter().all(|bytes| *bytes == 0));
        assert!(changed(How::Counter).iter().all(|bytes| (1..=8).contains(bytes)));
        assert!(changed(How::Random).iter().all(|bytes| *bytes > PAGE / 2));
        let mixed = changed(How::Mixed);
        assert!([0..=0, 1..=8, PAGE / 2..=PAGE].iter().all(|kind| mixed.iter().any(|b| kind.contains(b))));
    }
}
