//! The page path: reads the pages of a round's list out of the process and hands them to the sink.
//!
//! Readers share the list extent by extent. Each reads its extent in as few calls as the list allows, splits
//! it into runs of zero pages and runs of data, and hands both over without a further copy. The hash of the
//! extent is taken from the bytes that were handed over, so the destination checks what was read here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use godwit_page_server::store::sink::{Content, Fill, Sink, SinkError};
use godwit_wire::fault;
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PageOwner, PageRun, PagesPlan, RoundPlan};
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::interrupt::{self, Interrupted};
use crate::sys;
use crate::sys::process_vm::Remote;
use crate::task::shmem::Segment;

/// Page reads longer than this are counted as this long, in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;

/// Why pages could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// A listed page cannot be read although the process is stopped.
    #[error("process {pid}: the page at {vaddr:#x} is listed and cannot be read; is it a device's memory?")]
    Unreadable {
        /// The process.
        pid: Pid,
        /// Address of the page.
        vaddr: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The process ended while its pages were read.
    #[error("process {pid} ended while its pages were read")]
    Died {
        /// The process.
        pid: Pid,
    },
    /// A page of a shared memory segment cannot be read.
    #[error("shared memory {id} of process {pid}: the page at offset {offset:#x} cannot be read")]
    Segment {
        /// The process.
        pid: Pid,
        /// The segment, by its inode number.
        id: u64,
        /// Offset of the page.
        offset: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The receiving side refused or went away.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The caller wants no more of it.
    #[error("the pages are not sent, since the rest failed")]
    GivenUp,
    /// The user wants it to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Made to fail by a test.
    #[error(transparent)]
    Injected(#[from] godwit_wire::fault::Injected),
}

/// What tells pages of a segment apart: BLAKE3, cut.
pub type PageHash = [u8; 16];

/// The hash of one page.
pub fn page_hash(page: &[u8]) -> PageHash {
    let mut short = PageHash::default();
    let hash = blake3::hash(page);
    short.iter_mut().zip(hash.as_bytes()).for_each(|(short, byte)| *short = *byte);
    short
}

/// What became of one owner's pages in a round.
#[derive(Debug)]
pub struct SentPages {
    /// BLAKE3 of every extent of the pages file, in order.
    pub extents: Vec<[u8; 32]>,
    /// The hash of every page, by extent: of a segment in a round, and of the task as far as
    /// [`PageSource::hashed_slots`] says.
    pub page_hashes: Vec<Vec<PageHash>>,
    /// Pages that were listed and gone when they were read: their slots hold zeros, and they do not cover
    /// the page for the next round.
    pub gone: BTreeSet<u64>,
    /// Pages handed over as bytes.
    pub data_pages: u64,
    /// Pages handed over as zeros.
    pub zero_pages: u64,
    /// Time of each read of up to an extent, in microseconds.
    pub read_latency_us: Histogram<u64>,
}

/// Where and how pages are read.
#[derive(Clone, Copy, Debug)]
pub struct PageSource<'a> {
    /// The process, as the dumper sees it.
    pub pid: Pid,
    /// The process runs: a listed page may be gone by the time it is read.
    pub live: bool,
    /// Reader threads, at least 1.
    pub readers: usize,
    /// The shared memory segments whose lists may be sent.
    pub segments: &'a [Segment],
    /// Pages of the task that the hash of each is wanted of: those that fill the first so many slots.
    pub hashed_slots: u64,
    /// Once it is set, no more extents are read: the process may be stopped, and waits for what nobody wants any more.
    pub stop: &'a AtomicBool,
}

/// For those who never give up: see [`PageSource::stop`].
pub static GOES_ON: AtomicBool = AtomicBool::new(false);

impl PageSource<'_> {
    /// Sends every present page of `plan`.
    ///
    /// # Errors
    /// See [`PagesError`]; the round is then to be abandoned.
    pub fn send(&self, plan: &PagesPlan, round: u32, sink: &dyn Sink) -> Result<SentPages, PagesError> {
        self.send_extents(plan, round, sink, &(0..plan.slots().div_ceil(EXTENT_SLOTS)).collect::<Vec<_>>())
    }

    /// Sends every present page of all lists of a round; answers by pages file.
    ///
    /// # Errors
    /// As [`PageSource::send`].
    pub fn send_all(
        &self,
        plan: &RoundPlan,
        sink: &dyn Sink,
    ) -> Result<BTreeMap<u32, SentPages>, PagesError> {
        plan.pages.iter().map(|pages| Ok((pages.pages_id, self.send(pages, plan.round, sink)?))).collect()
    }

    /// Sends only the named extents again (all of each), after the other side asked for them.
    ///
    /// # Errors
    /// As [`PageSource::send`].
    pub fn send_extents(
        &self,
        plan: &PagesPlan,
        round: u32,
        sink: &dyn Sink,
        extents: &[u64],
    ) -> Result<SentPages, PagesError> {
        let placed: Vec<(PageRun, Range<u64>)> = plan.placed().collect();
        let next = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let total = Mutex::new(Tally::new(extents.len()));
        let readers = self.readers.clamp(1, extents.len().max(1));
        std::thread::scope(|scope| {
            let work: Vec<_> = (0..readers)
                .map(|_| {
                    scope.spawn(|| {
                        let mut reader = Reader::new(*self, plan, &placed, round, sink);
                        let mut tally = Tally::new(extents.len());
                        let _stop = StopOthers(&failed);
                        while !failed.load(Ordering::Relaxed) {
                            let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                            let Some(&extent) = extents.get(index) else { break };
                            let read = self.safe_point().and_then(|()| reader.extent(extent, &mut tally));
                            match read {
                                Ok(hashes) => tally.hashes[index] = Some(hashes),
                                Err(error) => {
                                    failed.store(true, Ordering::Relaxed);
                                    return Err(error);
                                }
                            }
                        }
                        total.lock().unwrap_or_else(|poison| poison.into_inner()).add(tally);
                        Ok(())
                    })
                })
                .collect();
            work.into_iter().try_for_each(|reader| match reader.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        let total = total.into_inner().unwrap_or_else(|poison| poison.into_inner());
        Ok(total.finish())
    }
}

impl SentPages {
    /// Takes the place of what was sent of these extents before. Pages that were gone stay gone.
    pub fn sent_again(&mut self, extents: &[u64], again: SentPages) {
        self.gone.extend(again.gone);
        let hashes = again.extents.into_iter().zip(again.page_hashes);
        for (extent, (hash, pages)) in extents.iter().zip(hashes) {
            let extent = *extent as usize;
            if let (Some(old), Some(old_pages)) =
                (self.extents.get_mut(extent), self.page_hashes.get_mut(extent))
            {
                (*old, *old_pages) = (hash, pages);
            }
        }
    }
}

impl PageSource<'_> {
    /// Between two extents everything can be given up.
    fn safe_point(&self) -> Result<(), PagesError> {
        interrupt::check()?;
        if self.stop.load(Ordering::Relaxed) {
            return Err(PagesError::GivenUp);
        }
        Ok(fault::point("mid.pages.extent")?)
    }
}

/// What was sent of the pages file `pages_id`, and the sum of all others.
pub fn split_off(pages_id: u32, sent: BTreeMap<u32, SentPages>) -> (SentPages, SentPages) {
    let (mut one, mut others) = (Tally::new(0).finish(), Tally::new(0).finish());
    for (id, sent) in sent {
        if id == pages_id {
            one = sent;
            continue;
        }
        others.data_pages += sent.data_pages;
        others.zero_pages += sent.zero_pages;
        others.read_latency_us += &sent.read_latency_us;
    }
    (one, others)
}

/// Has the readers stop when the thread that holds it panics: the process may be stopped, and waits for them all.
pub struct StopOthers<'a>(pub &'a AtomicBool);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// An empty histogram for times of page reads, in microseconds.
pub fn latency_histogram() -> Histogram<u64> {
    match Histogram::new_with_max(LATENCY_MAX_US, 2) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("two significant digits up to a minute are valid bounds"),
    }
}

/// The hash of an extent, and where they are wanted those of its pages.
type ExtentHashes = ([u8; 32], Vec<PageHash>);

/// Counts of one reader, added up at the end.
struct Tally {
    hashes: Vec<Option<ExtentHashes>>,
    gone: BTreeSet<u64>,
    data_pages: u64,
    zero_pages: u64,
    latency_us: Histogram<u64>,
}

impl Tally {
    fn new(extents: usize) -> Tally {
        Tally {
            hashes: vec![None; extents],
            gone: BTreeSet::new(),
            data_pages: 0,
            zero_pages: 0,
            latency_us: latency_histogram(),
        }
    }

    fn add(&mut self, other: Tally) {
        for (slot, hash) in self.hashes.iter_mut().zip(other.hashes) {
            *slot = slot.take().or(hash);
        }
        self.gone.extend(other.gone);
        self.data_pages += other.data_pages;
        self.zero_pages += other.zero_pages;
        self.latency_us += other.latency_us;
    }

    fn finish(self) -> SentPages {
        let (extents, page_hashes) = self.hashes.into_iter().flatten().unzip();
        SentPages {
            extents,
            page_hashes,
            gone: self.gone,
            data_pages: self.data_pages,
            zero_pages: self.zero_pages,
            read_latency_us: self.latency_us,
        }
    }
}

struct Reader<'a> {
    source: PageSource<'a>,
    plan: &'a PagesPlan,
    placed: &'a [(PageRun, Range<u64>)],
    round: u32,
    sink: &'a dyn Sink,
    mem: Option<File>,
}

impl<'a> Reader<'a> {
    fn new(
        source: PageSource<'a>,
        plan: &'a PagesPlan,
        placed: &'a [(PageRun, Range<u64>)],
        round: u32,
        sink: &'a dyn Sink,
    ) -> Reader<'a> {
        Reader { source, plan, placed, round, sink, mem: None }
    }

    /// Reads one extent, hands it over and returns its hashes.
    fn extent(&mut self, extent: u64, tally: &mut Tally) -> Result<ExtentHashes, PagesError> {
        let first = extent * EXTENT_SLOTS;
        let slots = first..(first + EXTENT_SLOTS).min(self.plan.slots());
        let pieces = self.pieces(&slots);
        let mut bytes = vec![0u8; ((slots.end - slots.start) * PAGE_SIZE) as usize];
        let begun = Instant::now();
        match self.plan.owner {
            PageOwner::Task(_) => self.read(&pieces, &mut bytes, tally)?,
            PageOwner::Shmem(id) => self.read_segment(id, &pieces, &mut bytes)?,
        }
        tally
            .latency_us
            .saturating_record(begun.elapsed().as_micros().min(u128::from(LATENCY_MAX_US)) as u64);
        let hash = *blake3::hash(&bytes).as_bytes();
        // Only the next round asks for them, and the last set has none after it.
        let is_wanted = match self.plan.owner {
            PageOwner::Shmem(_) if self.source.live => true,
            PageOwner::Task(_) => first < self.source.hashed_slots,
            PageOwner::Shmem(_) => false,
        };
        let pages = match is_wanted {
            true => bytes.chunks_exact(PAGE_SIZE as usize).map(page_hash).collect(),
            false => Vec::new(),
        };
        self.hand_over(first, Bytes::from(bytes), tally)?;
        Ok((hash, pages))
    }

    /// The address ranges whose pages fill `slots`, in slot order, merged where they touch.
    fn pieces(&self, slots: &Range<u64>) -> Vec<Remote> {
        let from = self.placed.partition_point(|(_, range)| range.end <= slots.start);
        let mut pieces: Vec<Remote> = Vec::new();
        for (run, range) in &self.placed[from..] {
            if range.start >= slots.end {
                break;
            }
            let begin = range.start.max(slots.start);
            let end = range.end.min(slots.end);
            let addr = run.vaddr + (begin - range.start) * PAGE_SIZE;
            let len = ((end - begin) * PAGE_SIZE) as usize;
            match pieces.last_mut() {
                Some(last) if last.addr + last.len as u64 == addr => last.len += len,
                _ => pieces.push(Remote { addr, len }),
            }
        }
        pieces
    }

    fn read_segment(&self, id: u64, pieces: &[Remote], bytes: &mut [u8]) -> Result<(), PagesError> {
        let pid = self.source.pid;
        let failed = |offset, source| PagesError::Segment { pid, id, offset, source };
        let segment = self.source.segments.iter().find(|segment| segment.id == id);
        let segment = segment.ok_or_else(|| failed(0, io::ErrorKind::NotFound.into()))?;
        let mut rest = bytes;
        for piece in pieces {
            let (into, behind) = rest.split_at_mut(piece.len);
            segment.read(piece.addr, into).map_err(|source| failed(piece.addr, source))?;
            rest = behind;
        }
        Ok(())
    }

    fn read(&mut self, pieces: &[Remote], bytes: &mut [u8], tally: &mut Tally) -> Result<(), PagesError> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = behind(pieces, done);
            match sys::process_vm::read(self.source.pid, &rest, &mut bytes[done..]) {
                // A call that ends inside a page faulted there: that page is read again.
                Ok(read) if read >= PAGE_SIZE as usize => {
                    done += read - read % PAGE_SIZE as usize;
                    continue;
                }
                Err(Errno::ESRCH) => return Err(PagesError::Died { pid: self.source.pid }),
                Ok(_) | Err(_) => {}
            }
            let until = done + rest[0].len;
            done += self.read_refused(rest[0].addr, &mut bytes[done..until], tally)?;
        }
        Ok(())
    }

    /// Reads pages that `process_vm_readv` refuses, such as those without read permission: as far as they can be read,
    /// or one that is gone. Returns how many bytes it settled.
    fn read_refused(&mut self, vaddr: u64, into: &mut [u8], tally: &mut Tally) -> Result<usize, PagesError> {
        let page = PAGE_SIZE as usize;
        match self.mem().and_then(|mem| mem.read_at(into, vaddr)) {
            Ok(read) if read >= page => Ok(read - read % page),
            _ if self.source.live => {
                into[..page].fill(0);
                tally.gone.insert(vaddr);
                Ok(page)
            }
            Ok(_) => {
                let source = io::ErrorKind::UnexpectedEof.into();
                Err(PagesError::Unreadable { pid: self.source.pid, vaddr, source })
            }
            Err(source) => Err(PagesError::Unreadable { pid: self.source.pid, vaddr, source }),
        }
    }

    /// The process's memory as a file, opened once it is needed.
    fn mem(&mut self) -> io::Result<&File> {
        let mem = match self.mem.take() {
            Some(mem) => mem,
            None => File::open(format!("/proc/{}/mem", self.source.pid))?,
        };
        Ok(self.mem.insert(mem))
    }

    fn hand_over(&self, first: u64, bytes: Bytes, tally: &mut Tally) -> Result<(), PagesError> {
        let page = PAGE_SIZE as usize;
        let pages = bytes.len() / page;
        let mut begin = 0;
        while begin < pages {
            let zero = is_zero(&bytes[begin * page..(begin + 1) * page]);
            let mut end = begin + 1;
            while end < pages && is_zero(&bytes[end * page..(end + 1) * page]) == zero {
                end += 1;
            }
            let content = if zero {
                tally.zero_pages += (end - begin) as u64;
                Content::Zero { pages: (end - begin) as u32 }
            } else {
                tally.data_pages += (end - begin) as u64;
                Content::Data(bytes.slice(begin * page..end * page))
            };
            let first_slot = first + begin as u64;
            self.sink.fill(Fill { round: self.round, pages_id: self.plan.pages_id, first_slot, content })?;
            begin = end;
        }
        Ok(())
    }
}

/// What is left of `pieces` after the first `done` bytes.
fn behind(pieces: &[Remote], mut done: usize) -> Vec<Remote> {
    let mut rest = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if done >= piece.len {
            done -= piece.len;
        } else {
            rest.push(Remote { addr: piece.addr + done as u64, len: piece.len - done });
            done = 0;
        }
    }
    rest
}

/// Whether a page holds only zeros; leaves at the first word that does not.
fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(128).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_pieces_begins_where_reading_ended() {
        let at = |addr, len| Remote { addr, len };
        let pieces = [at(0x1000, 0x2000), at(0x9000, 0x1000)];
        assert_eq!(behind(&pieces, 0), pieces);
        assert_eq!(behind(&pieces, 0x1000), [at(0x2000, 0x1000), at(0x9000, 0x1000)]);
        assert_eq!(behind(&pieces, 0x2000), [at(0x9000, 0x1000)]);
        assert_eq!(behind(&pieces, 0x3000), []);
    }

    #[test]
    fn one_byte_makes_a_page_not_zero() {
        let mut page = vec![0u8; 4096];
        assert!(is_zero(&page));
        page[4095] = 1;
        assert!(!is_zero(&page));
    }
}
