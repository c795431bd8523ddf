//! Scans of the page tables: what is there, and what was written since, in memory of this process.
//!
//! The suite times the tracker as it is (`scan of 4096 MiB`), which wants another process; these are its system calls.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use divan::Bencher;
use divan::counter::BytesCount;
use godwit_dumper::sys::memory::Mapping;
use godwit_dumper::sys::pagemap_scan::{self, CHECK_WPASYNC, Masks, Region, WP_MATCHING, category};
use godwit_dumper::sys::userfaultfd;

const PAGE: usize = 4096;
/// Every page of it is there.
const DENSE: usize = 1 << 30;
/// One page in 64 of it is there, each by itself.
const SPARSE: usize = 4 << 30;
const SPARSE_STEP: usize = 64;
/// Regions that one call returns, as many as the tracker takes.
const REGIONS: usize = 4096;

const THERE: u64 = category::PRESENT | category::SWAPPED;
const PRESENT: Masks = Masks { inverted: 0, all: category::PRESENT, any: 0, returned: category::PRESENT };
const WRITTEN: Masks = Masks { inverted: 0, all: category::WRITTEN, any: THERE, returned: THERE };

fn main() {
    divan::Divan::default().max_time(Duration::from_millis(300)).config_with_args().main();
}

/// Memory that is tracked, as the tracker does it.
struct Tracked {
    memory: Mapping,
    len: usize,
    pagemap: File,
    /// Holds the protection.
    uffd: Option<OwnedFd>,
}

impl Tracked {
    /// Memory of which one page in `step` is there.
    fn map(len: usize, step: usize) -> Tracked {
        let memory = Mapping::anonymous(len).expect("memory");
        let pagemap = File::open("/proc/self/pagemap").expect("/proc/self/pagemap");
        let mut tracked = Tracked { memory, len, pagemap, uffd: None };
        tracked.write(step);
        tracked
    }

    /// Writes one page in `step`.
    fn write(&mut self, step: usize) {
        (0..self.len / PAGE).step_by(step).for_each(|page| self.memory.bytes()[page * PAGE] ^= 1);
    }

    /// Write-protects it; `None` where the kernel cannot.
    fn protect(mut self) -> Option<Tracked> {
        let uffd = userfaultfd::create().ok()?;
        userfaultfd::api(uffd.as_fd(), userfaultfd::FEATURE_WP_ASYNC).ok()?;
        userfaultfd::register_wp(uffd.as_fd(), &self.range()).ok()?;
        self.uffd = Some(uffd);
        self.scan(WP_MATCHING | CHECK_WPASYNC, &WRITTEN);
        Some(self)
    }

    fn range(&self) -> Range<u64> {
        self.memory.addr()..self.memory.addr() + self.len as u64
    }

    /// Number of regions.
    fn scan(&self, flags: u64, masks: &Masks) -> usize {
        let mut regions = vec![Region::default(); REGIONS];
        let (mut found, range) = (0, self.range());
        let mut at = range.start;
        while at < range.end {
            let (count, end) =
                pagemap_scan::scan(self.pagemap.as_fd(), &(at..range.end), flags, masks, &mut regions)
                    .expect("PAGEMAP_SCAN");
            found += count;
            at = end;
        }
        found
    }
}

#[divan::bench]
fn present_of_1_gib_dense(bencher: Bencher<'_, '_>) {
    let memory = Tracked::map(DENSE, 1);
    bencher.counter(BytesCount::new(DENSE)).bench_local(|| memory.scan(0, &PRESENT));
}

#[divan::bench]
fn present_of_4_gib_sparse(bencher: Bencher<'_, '_>) {
    let memory = Tracked::map(SPARSE, SPARSE_STEP);
    bencher.counter(BytesCount::new(SPARSE)).bench_local(|| memory.scan(0, &PRESENT));
}

/// One page in so many is written before each scan; 0: none.
#[divan::bench(args = [0, 16, 1])]
fn written_of_1_gib_dense(bencher: Bencher<'_, '_>, step: usize) {
    let Some(memory) = Tracked::map(DENSE, 1).protect() else {
        println!("SKIP: this kernel has no asynchronous write protection");
        return;
    };
    let memory = RefCell::new(memory);
    // The writes prepare a sample and are not timed.
    let write = || {
        if step > 0 {
            memory.borrow_mut().write(step);
        }
    };
    bencher
        .counter(BytesCount::new(DENSE))
        .with_inputs(write)
        .bench_local_values(|()| memory.borrow().scan(WP_MATCHING | CHECK_WPASYNC, &WRITTEN));
}
