//! A sample of a process's memory, and what packing makes of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use godwit_dumper::procfs::maps;
use godwit_dumper::sys::pagemap_scan::{self, Masks, Region, category};
use godwit_dumper::sys::process_vm::{self, Remote};
use nix::unistd::Pid;

use serde::Serialize;

use super::{Content, PAGE, Workload, fill, heap, value_name};
use crate::limit::codec::{Codec, packed_share};
use crate::link::LinkKind;

/// Memory of the process that a sample of a heap is taken from, in MiB.
const HEAP_MIB: u64 = 256;
/// Length of a sample of a heap, and of generated memory, in bytes.
const HEAP_SAMPLE_LEN: u64 = 48 << 20;
const GENERATED_LEN: usize = 16 << 20;

/// A sample of what a workload holds, taken once. A heap is sampled in a process of its own.
///
/// # Errors
/// `Unsupported`, with the reason, where such a heap cannot be made here; and when the process cannot be started.
pub fn of(content: Content) -> io::Result<Arc<Vec<u8>>> {
    static TAKEN: Mutex<BTreeMap<String, Arc<Vec<u8>>>> = Mutex::new(BTreeMap::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sample) = taken.get(&value_name(&content)) {
        return Ok(Arc::clone(sample));
    }
    let sample = match content.heap() {
        None => {
            let mut memory = vec![0; GENERATED_LEN];
            fill(content, &mut memory);
            memory
        }
        Some(heap) => {
            if let Some(why) = heap::missing(heap) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            let dir = tempfile::tempdir()?;
            let link = LinkKind::Loopback.open(dir.path())?;
            let victim = Workload::still(content).start(HEAP_MIB, &link, dir.path())?;
            take(victim.pid(), HEAP_SAMPLE_LEN)?
        }
    };
    let sample = Arc::new(sample);
    taken.insert(value_name(&content), Arc::clone(&sample));
    Ok(sample)
}

/// Bytes that are taken together: runs as long as this are what compression sees.
const RUN: u64 = 256 << 10;

/// How well memory packs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Compressibility {
    /// What lz4 leaves of blocks of 64 KiB, as a share.
    pub lz4: f64,
    /// What zstd at level -1 leaves of them.
    pub zstd: f64,
    /// Share of pages that hold only zeros.
    pub zero_pages: f64,
}

impl Compressibility {
    /// Measures a sample.
    ///
    /// # Errors
    /// When a codec fails.
    pub fn of(sample: &[u8]) -> io::Result<Compressibility> {
        let zero = sample.chunks(PAGE).filter(|page| page.iter().all(|byte| *byte == 0)).count();
        let pages = sample.len().div_ceil(PAGE).max(1);
        Ok(Compressibility {
            lz4: packed_share(Codec::Lz4, sample)?,
            zstd: packed_share(Codec::Zstd, sample)?,
            zero_pages: zero as f64 / pages as f64,
        })
    }
}

/// Takes about `len` bytes of a process's private memory, evenly from all of it that is there. The process may run.
///
/// # Errors
/// When it cannot be looked at.
pub fn take(pid: i32, len: u64) -> io::Result<Vec<u8>> {
    let pid = Pid::from_raw(pid);
    let pieces = pieces(&present(pid)?, len);
    let mut sample = Vec::with_capacity(pieces.iter().map(|piece| piece.len).sum());
    for piece in pieces {
        let begin = sample.len();
        sample.resize(begin + piece.len, 0);
        // What is gone meanwhile is no part of it.
        let read = process_vm::read(pid, &[piece], &mut sample[begin..]).unwrap_or(0);
        sample.truncate(begin + read);
    }
    Ok(sample)
}

/// About `len` bytes of the regions, evenly from all of them, in runs.
fn pieces(regions: &[Region], len: u64) -> Vec<Remote> {
    let total: u64 = regions.iter().map(|region| region.end - region.start).sum();
    let wanted = u128::from(len.min(total));
    let (mut passed, mut taken) = (0, 0);
    let mut pieces = Vec::new();
    for region in regions {
        let mut at = region.start;
        while at < region.end {
            let run = RUN.min(region.end - at);
            // A run is taken whenever the sample is behind its share of what was passed by.
            if u128::from(taken) * u128::from(total) <= u128::from(passed) * wanted {
                pieces.push(Remote { addr: at, len: run as usize });
                taken += run;
            }
            passed += run;
            at += run;
        }
    }
    pieces
}

/// Pages of private anonymous memory that are there.
fn present(pid: Pid) -> io::Result<Vec<Region>> {
    let vmas = maps::read(pid).map_err(io::Error::other)?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let masks = Masks { inverted: 0, all: category::PRESENT, any: 0, returned: category::PRESENT };
    let mut room = vec![Region::default(); 1024];
    let mut regions = Vec::new();
    for vma in vmas.iter().filter(|vma| vma.is_anonymous() && vma.read) {
        let mut at = vma.start;
        while at < vma.end {
            let (count, end) = pagemap_scan::scan(pagemap.as_fd(), &(at..vma.end), 0, &masks, &mut room)?;
            regions.extend_from_slice(&room[..count]);
            at = end.max(at + PAGE as u64);
        }
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Content, fill};

    #[test]
    fn shares_are_of_the_whole() {
        let mut memory = vec![0; 1 << 20];
        fill(Content::ZeroHeavy, &mut memory);
        let found = Compressibility::of(&memory).unwrap();
        assert!((found.zero_pages - 0.9).abs() < 0.01 && found.lz4 < 0.2 && found.zstd < 0.2, "{found:?}");
    }

    #[test]
    fn samples_are_as_long_as_asked_for_and_spread() {
        let region = |start: u64, pages: u64| Region {
            start,
            end: start + pages * PAGE as u64,
            categories: category::PRESENT,
        };
        let mut regions: Vec<Region> = (1..2000).map(|at| region(at << 20, 1 + at % 7)).collect();
        regions.push(region(1 << 40, 32 << 8));
        let total: u64 = regions.iter().map(|region| region.end - region.start).sum();
        for wanted in [1 << 20, 8 << 20, 40 << 20] {
            let pieces = pieces(&regions, wanted);
            let len: u64 = pieces.iter().map(|piece| piece.len as u64).sum();
            assert!(len.abs_diff(wanted) <= RUN, "{len} of {wanted}");
            assert!(pieces.is_sorted_by(|one, next| one.addr + one.len as u64 <= next.addr));
            let of_large: u64 =
                pieces.iter().filter(|piece| piece.addr >= 1 << 40).map(|piece| piece.len as u64).sum();
            assert!(of_large.abs_diff(len * (32 << 20) / total) <= 2 * RUN, "{of_large} of {len}");
        }
        let all: usize = pieces(&regions, u64::MAX).iter().map(|piece| piece.len).sum();
        assert_eq!(all as u64, total);
        assert!(pieces(&[], 1).is_empty());
    }

    #[test]
    fn samples_are_taken_from_a_process() {
        let mut memory = vec![0; 4 << 20];
        fill(Content::Random, &mut memory);
        let sample = take(Pid::this().as_raw(), 1 << 20).unwrap();
        assert!((512 << 10..=2 << 20).contains(&sample.len()), "{}", sample.len());
        assert!(take(i32::MAX, 1 << 20).is_err());
        std::hint::black_box(&memory);
    }
}
