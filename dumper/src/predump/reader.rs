//! One reader: an extent at a time into a buffer of the pool, told apart page by page, and handed over.
//!
//! An extent is read in as few calls as its list allows and handed over in runs of pages of one kind, without a further
//! copy. Its hash is taken from the bytes that were read, so the destination checks what was read here.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_page_server::store::sink::{Content, Fill, Sink, Takes};
use godwit_wire::image::extent::{ExtentHash, extent_hash};
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PageOwner, PageRun, PagesPlan};
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::hot::{Met, View};
use super::pages::{PageSource, PagesError, Work};
use super::sent::{ExtentHashes, PageHash, Tally, latency_us, page_hash};
use crate::pool::Room;
use crate::sys;
use crate::sys::process_vm::Remote;

/// How often a wait for a buffer looks whether it still makes sense.
const LOOK: Duration = Duration::from_millis(50);
const PAGE: usize = PAGE_SIZE as usize;
const EXTENT: usize = EXTENT_SLOTS as usize * PAGE;

/// How a page is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Zero,
    Data,
    /// With the bytes of another process, which has the same there.
    Copy,
    /// As the base round has it, by its hash.
    Same(PageHash),
    /// By what it differs in from the base round's, by that one's hash.
    Delta(PageHash),
}

impl Kind {
    fn is_like(self, other: Kind) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// An extent that was read, and how each of its pages is handed over.
pub(super) struct Extent {
    /// Its first slot.
    pub(super) first: u64,
    /// Where its pages lie in the process, in slot order.
    pub(super) pieces: Vec<Remote>,
    pub(super) bytes: Bytes,
    pub(super) kinds: Vec<Kind>,
}

impl Extent {
    /// The bytes of some of its pages.
    pub(super) fn pages(&self, pages: Range<usize>) -> &[u8] {
        &self.bytes[pages.start * PAGE..pages.end * PAGE]
    }

    /// Runs of pages of one kind.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Range<usize>, &[Kind])> {
        let mut end = 0;
        self.kinds.chunk_by(|one, next| one.is_like(*next)).map(move |run| {
            end += run.len();
            (end - run.len()..end, run)
        })
    }
}

pub(super) struct Reader<'a> {
    source: PageSource<'a>,
    pid: Pid,
    plan: &'a PagesPlan,
    placed: &'a [(PageRun, Range<u64>)],
    hot: Option<View<'a>>,
    round: u32,
    sink: &'a dyn Sink,
    takes: Takes,
    mem: Option<File>,
    /// What pages differ in from those of the base round, each at its place in the extent.
    difference: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        source: PageSource<'a>,
        work: &'a Work<'a>,
        round: u32,
        sink: &'a dyn Sink,
    ) -> Reader<'a> {
        let Work { plan, pid, placed, hot, .. } = work;
        let (pid, hot, mem, difference) = (*pid, *hot, None, Vec::new());
        Reader { source, pid, plan, placed, hot, round, sink, takes: Takes::default(), mem, difference }
    }

    /// Reads one extent, hands it over and returns its hashes.
    pub(super) fn extent(
        &mut self,
        extent: u64,
        tally: &mut Tally,
        latency: &mut Histogram<u64>,
    ) -> Result<ExtentHashes, PagesError> {
        let (extent, hashes) = self.read_extent(extent, tally, latency)?;
        self.hand_over(&extent, true, tally)?;
        Ok(hashes)
    }

    /// Reads one extent; returns it with its hashes.
    pub(super) fn read_extent(
        &mut self,
        extent: u64,
        tally: &mut Tally,
        latency: &mut Histogram<u64>,
    ) -> Result<(Extent, ExtentHashes), PagesError> {
        // What is worth making changes with the link.
        self.takes = self.sink.takes();
        let first = extent * EXTENT_SLOTS;
        let slots = first..(first + EXTENT_SLOTS).min(self.plan.slots());
        let pieces = self.pieces(&slots);
        let mut room = self.room()?;
        let len = (slots.end - slots.start) as usize * PAGE;
        let bytes = &mut room[..len];
        let begun = Instant::now();
        match self.plan.owner {
            PageOwner::Task(_) => self.read(&pieces, bytes, tally)?,
            PageOwner::Shmem(id) => self.read_segment(id, &pieces, bytes)?,
        }
        latency.saturating_record(latency_us(begun.elapsed()));
        let kind = |page| if is_zero(page) { Kind::Zero } else { Kind::Data };
        let mut kinds: Vec<Kind> = bytes.chunks_exact(PAGE).map(kind).collect();
        let hash = hash(bytes, &kinds);
        // Only the next round asks for them, and the last set has none after it.
        let is_wanted = match self.plan.owner {
            PageOwner::Shmem(_) => self.source.live,
            PageOwner::Task(_) => first < self.source.hashed_slots,
        };
        let pages = if is_wanted { bytes.chunks_exact(PAGE).map(page_hash).collect() } else { Vec::new() };
        if let (PageOwner::Task(_), Some(hot)) = (self.plan.owner, self.hot) {
            self.meet(hot, &pieces, bytes, &mut kinds);
        }
        merge_zeros(&mut kinds, self.takes.zeros_as_data as usize);
        Ok((Extent { first, pieces, bytes: room.freeze(len), kinds }, (hash, pages)))
    }

    /// A buffer, once one is free: they come back as the other side acknowledges what it has.
    fn room(&self) -> Result<Room, PagesError> {
        loop {
            if let Some(room) = self.source.pool.take(LOOK) {
                return Ok(room);
            }
            self.source.goes_on()?;
            self.sink.check_round(self.round)?;
        }
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
        let segment = self.source.segments.iter().find(|segment| segment.id == id);
        let pid = segment.map_or(self.pid, |segment| segment.pid);
        let failed = |offset, source| PagesError::Segment { pid, id, offset, source };
        let segment = segment.ok_or_else(|| failed(0, io::ErrorKind::NotFound.into()))?;
        let mut rest = bytes;
        for piece in pieces {
            let (into, behind) = rest.split_at_mut(piece.len);
            segment.read(piece.addr, into).map_err(|source| failed(piece.addr, source))?;
            rest = behind;
        }
        // The pieces fill the extent; were it otherwise, what was in the buffer before must not pass for pages.
        rest.fill(0);
        Ok(())
    }

    /// Fills `bytes` to its end: each page by a read call that returned it, or by zeros where it is gone.
    fn read(&mut self, pieces: &[Remote], bytes: &mut [u8], tally: &mut Tally) -> Result<(), PagesError> {
        let mut done = 0;
        let mut rest = pieces.to_vec();
        while done < bytes.len() {
            let Some(next) = rest.first().copied() else {
                bytes[done..].fill(0);
                return Ok(());
            };
            let settled = match sys::process_vm::read(self.pid, &rest, &mut bytes[done..]) {
                // A call that ends inside a page faulted there: that page is read again.
                Ok(read) if read >= PAGE => read - read % PAGE,
                // It has ended, and its pages with it.
                Err(Errno::ESRCH) if self.source.live => {
                    let pages = |piece: &Remote| (piece.addr..).step_by(PAGE).take(piece.len / PAGE);
                    tally.gone.extend(rest.iter().flat_map(pages));
                    bytes[done..].fill(0);
                    return Ok(());
                }
                Err(Errno::ESRCH) => return Err(PagesError::Died { pid: self.pid }),
                Ok(_) | Err(_) => self.read_refused(next.addr, &mut bytes[done..done + next.len], tally)?,
            };
            done += settled;
            if done < bytes.len() {
                rest = behind(&rest, settled);
            }
        }
        Ok(())
    }

    /// Reads pages that `process_vm_readv` refuses, such as those without read permission: as far as they can be read,
    /// or one that is gone. Returns how many bytes it settled.
    fn read_refused(&mut self, vaddr: u64, into: &mut [u8], tally: &mut Tally) -> Result<usize, PagesError> {
        match self.mem().and_then(|mem| mem.read_at(into, vaddr)) {
            Ok(read) if read >= PAGE => Ok(read - read % PAGE),
            _ if self.source.live => {
                into[..PAGE].fill(0);
                tally.gone.insert(vaddr);
                Ok(PAGE)
            }
            Ok(_) => {
                let source = io::ErrorKind::UnexpectedEof.into();
                Err(PagesError::Unreadable { pid: self.pid, vaddr, source })
            }
            Err(source) => Err(PagesError::Unreadable { pid: self.pid, vaddr, source }),
        }
    }

    /// The process's memory as a file, opened once it is needed.
    fn mem(&mut self) -> io::Result<&File> {
        let mem = match self.mem.take() {
            Some(mem) => mem,
            None => File::open(format!("/proc/{}/mem", self.pid))?,
        };
        Ok(self.mem.insert(mem))
    }

    /// Finds what is known of the pages, and notes what they hold now.
    fn meet(&mut self, hot: View<'_>, pieces: &[Remote], bytes: &[u8], kinds: &mut [Kind]) {
        if self.takes.delta {
            self.difference.resize(EXTENT, 0);
        }
        let addresses = pieces.iter().flat_map(|piece| (piece.addr..).step_by(PAGE).take(piece.len / PAGE));
        let pages = bytes.chunks_exact(PAGE).zip(kinds).zip(addresses);
        for (index, ((page, kind), vaddr)) in pages.enumerate() {
            if *kind == Kind::Zero {
                hot.forget(vaddr);
                continue;
            }
            let room = self.difference.get_mut(index * PAGE..(index + 1) * PAGE);
            *kind = match hot.meet(vaddr, page, self.round, self.takes, room) {
                Met::Other => Kind::Data,
                Met::Same(hash) => Kind::Same(hash),
                Met::Near(base) => Kind::Delta(base),
            };
        }
    }

    /// Hands an extent over, run by run; what is data only if `with_data`. Copies are handed over with the extent that has
    /// their bytes.
    pub(super) fn hand_over(
        &self,
        extent: &Extent,
        with_data: bool,
        tally: &mut Tally,
    ) -> Result<(), PagesError> {
        for (at, run) in extent.runs() {
            let pages = run.len() as u64;
            let content = match run[0] {
                Kind::Zero => {
                    tally.zero_pages += pages;
                    Content::Zero { pages: run.len() as u32 }
                }
                Kind::Data if !with_data => continue,
                Kind::Data => {
                    tally.data_pages += pages;
                    Content::Data(extent.bytes.slice(at.start * PAGE..at.end * PAGE))
                }
                Kind::Copy => {
                    tally.copied_pages += pages;
                    continue;
                }
                Kind::Same(_) => {
                    tally.same_pages += pages;
                    Content::Same { hashes: hashes(run) }
                }
                Kind::Delta(_) => {
                    tally.delta_pages += pages;
                    let difference = Bytes::copy_from_slice(&self.difference[at.start * PAGE..at.end * PAGE]);
                    Content::Delta { bases: hashes(run), difference }
                }
            };
            let first_slot = extent.first + at.start as u64;
            self.sink.fill(Fill { round: self.round, pages_id: self.plan.pages_id, first_slot, content })?;
        }
        Ok(())
    }
}

/// The hash of an extent that was read.
fn hash(bytes: &[u8], kinds: &[Kind]) -> ExtentHash {
    static OF_ZEROS: OnceLock<ExtentHash> = OnceLock::new();
    if bytes.len() == EXTENT && kinds.iter().all(|kind| *kind == Kind::Zero) {
        return *OF_ZEROS.get_or_init(|| extent_hash(&vec![0; EXTENT]));
    }
    extent_hash(bytes)
}

/// Makes data of up to `longest` zero pages between data, where that is what the sink would rather have.
fn merge_zeros(kinds: &mut [Kind], longest: usize) {
    if longest == 0 {
        return;
    }
    let mut data_end = None;
    for at in 0..kinds.len() {
        match (kinds[at], data_end) {
            (Kind::Data, Some(end)) if at - end <= longest => {
                kinds[end..at].fill(Kind::Data);
                data_end = Some(at + 1);
            }
            (Kind::Data, _) => data_end = Some(at + 1),
            (Kind::Zero, _) => {}
            (Kind::Same(_) | Kind::Delta(_) | Kind::Copy, _) => data_end = None,
        }
    }
}

fn hashes(run: &[Kind]) -> Vec<PageHash> {
    let hash = |kind: &Kind| match kind {
        Kind::Same(hash) | Kind::Delta(hash) => Some(*hash),
        Kind::Zero | Kind::Data | Kind::Copy => None,
    };
    run.iter().filter_map(hash).collect()
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
    let (first, _) = page.as_chunks::<8>();
    first.first().is_none_or(|word| *word == [0; 8])
        && page.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
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
        for at in [0, 7, 8, 255, 256, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }
}
