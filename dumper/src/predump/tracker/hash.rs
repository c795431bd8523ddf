//! The tracker that needs no help of the kernel's: it reads every page and compares it with what the rounds hold.
//!
//! What it compares with are the hashes of the bytes that were handed over (see [`Held`]), not of bytes that were read
//! before or after them. So there is nothing to arm and nothing to reset, and no moment that a write could fall into:
//! however a page came to hold what it holds, and whenever it was read, equal bytes are equal bytes. A page that is
//! written while it is compared or sent differs from what was handed over, or holds just that. Nobody is stopped, and
//! it sees what no page table shows: devices, other mappings of the same memory, a page given back.
//!
//! That is paid for by reading all memory once a round, and once more under freeze.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use godwit_wire::fault;
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PE_PRESENT};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::present::{self, push};
use super::{Ask, Run, Tracker, TrackerError};
use crate::interrupt;
use crate::predump::held::Held;
use crate::predump::pages::{StopOthers, page_hash};
use crate::sys::process_vm::{self, Remote};

/// Pages that are read at once.
const PIECE_PAGES: u64 = EXTENT_SLOTS;

/// The tracker of a process.
#[derive(Debug)]
pub struct Hash {
    pid: Pid,
    readers: usize,
}

impl Hash {
    /// It compares on so many threads, at least one.
    pub fn new(pid: Pid, readers: usize) -> Hash {
        Hash { pid, readers }
    }

    /// Those of `alive` that are not known to hold what the rounds hold, sorted.
    fn changed(&self, alive: &[Run], held: &Held, until: Option<Instant>) -> Result<Vec<Run>, TrackerError> {
        let pieces = pieces(alive);
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let found: Mutex<Vec<(usize, Vec<Run>)>> = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let work: Vec<_> = (0..self.readers.clamp(1, pieces.len().max(1)))
                .map(|_| {
                    scope.spawn(|| {
                        let mut comparing = Comparing { pid: self.pid, held, bytes: Vec::new(), mem: None };
                        let mut mine = Vec::new();
                        let _stop = StopOthers(&failed);
                        while !failed.load(Ordering::Relaxed) {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            let Some(piece) = pieces.get(index) else { break };
                            match self.safe_point(until).and_then(|()| comparing.piece(piece)) {
                                Ok(runs) => mine.push((index, runs)),
                                Err(error) => {
                                    failed.store(true, Ordering::Relaxed);
                                    return Err(error);
                                }
                            }
                        }
                        found.lock().unwrap_or_else(|poison| poison.into_inner()).append(&mut mine);
                        Ok(())
                    })
                })
                .collect();
            work.into_iter().try_for_each(|reader| match reader.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        let mut found = found.into_inner().unwrap_or_else(|poison| poison.into_inner());
        found.sort_by_key(|(index, _)| *index);
        let mut changed = Vec::new();
        found.iter().flat_map(|(_, runs)| runs).for_each(|run| push(&mut changed, run.vaddr..run.end()));
        Ok(changed)
    }

    fn safe_point(&self, until: Option<Instant>) -> Result<(), TrackerError> {
        interrupt::check()?;
        if until.is_some_and(|until| Instant::now() > until) {
            return Err(TrackerError::TooLate { pid: self.pid });
        }
        Ok(fault::point("mid.tracker.compare")?)
    }
}

impl Tracker for Hash {
    fn name(&self) -> &'static str {
        "hash"
    }

    fn wants_hashes(&self) -> bool {
        true
    }

    fn collect(&mut self, ask: &Ask<'_>) -> Result<Vec<Run>, TrackerError> {
        let alive = present::alive(self.pid, ask.vmas)?;
        if ask.held.is_empty() {
            return Ok(alive);
        }
        if ask.held.beyond() > 0 {
            let mib = (ask.held.beyond() * PAGE_SIZE) >> 20;
            tracing::warn!(pid = %self.pid, mib, "more memory than hashes are kept of: this part is sent each time");
        }
        self.changed(&alive, ask.held, ask.until)
    }
}

/// Runs cut into pieces that are read at once.
fn pieces(runs: &[Run]) -> Vec<Run> {
    let cut = |run: &Run| {
        let run = *run;
        (0..run.nr_pages).step_by(PIECE_PAGES as usize).map(move |page| Run {
            vaddr: run.vaddr + page * PAGE_SIZE,
            nr_pages: (run.nr_pages - page).min(PIECE_PAGES),
            flags: PE_PRESENT,
        })
    };
    runs.iter().flat_map(cut).collect()
}

/// One thread's comparing.
struct Comparing<'a> {
    pid: Pid,
    held: &'a Held,
    bytes: Vec<u8>,
    mem: Option<File>,
}

impl Comparing<'_> {
    /// The pages of a piece that have no hash, cannot be read, or hold something else than what has the hash.
    fn piece(&mut self, piece: &Run) -> Result<Vec<Run>, TrackerError> {
        let mut changed = Vec::new();
        let mut known: Vec<Run> = Vec::new();
        for vaddr in (piece.vaddr..piece.end()).step_by(PAGE_SIZE as usize) {
            match self.held.at(vaddr) {
                Some(_) => push(&mut known, vaddr..vaddr + PAGE_SIZE),
                None => changed.push(vaddr),
            }
        }
        for run in known {
            self.run(&run, &mut changed)?;
        }
        changed.sort_unstable();
        let mut runs = Vec::new();
        changed.into_iter().for_each(|vaddr| push(&mut runs, vaddr..vaddr + PAGE_SIZE));
        Ok(runs)
    }

    fn run(&mut self, run: &Run, changed: &mut Vec<u64>) -> Result<(), TrackerError> {
        let page_bytes = PAGE_SIZE as usize;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize((PIECE_PAGES * PAGE_SIZE) as usize, 0);
        let mut at = run.vaddr;
        while at < run.end() {
            let into = &mut bytes[..(run.end() - at) as usize];
            let read = self.read(at, into)?;
            for page in into[..read].chunks_exact(page_bytes) {
                if self.held.at(at) != Some(&page_hash(page)) {
                    changed.push(at);
                }
                at += PAGE_SIZE;
            }
            if read == 0 {
                changed.push(at);
                at += PAGE_SIZE;
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Reads whole pages from `at` on, as many as can be; none where the first cannot be read.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<usize, TrackerError> {
        let page_bytes = PAGE_SIZE as usize;
        match process_vm::read(self.pid, &[Remote { addr: at, len: into.len() }], into) {
            Ok(read) if read >= page_bytes => return Ok(read - read % page_bytes),
            Err(Errno::ESRCH) => {
                let end = at + into.len() as u64;
                let (pid, what) = (self.pid, "reading the memory");
                return Err(TrackerError::Scan { pid, what, start: at, end, source: Errno::ESRCH });
            }
            // Without read permission only the file of its memory shows it.
            Ok(_) | Err(_) => {}
        }
        let mem = match self.mem.take() {
            Some(mem) => mem,
            None => match File::open(format!("/proc/{}/mem", self.pid)) {
                Ok(mem) => mem,
                Err(source) => return Err(TrackerError::Open { pid: self.pid, source }),
            },
        };
        let read = mem.read_at(into, at).unwrap_or(0);
        self.mem = Some(mem);
        Ok(read - read % page_bytes)
    }
}
