//! Shared memory segments in rounds: what the acknowledged round holds of each, told by the hash of every page.
//!
//! A segment is written through any mapping, by write(2), and by whoever else has it; no tracker of one task's page
//! tables sees all of that. So nothing is tracked: a round notes the hash of every page as its bytes were handed over,
//! and the next one, or the last set under freeze, reads what is covered and leaves to the round before what still has
//! the same hash. Whatever happened to a page in between, and whenever it was read, equal bytes are equal bytes.
//!
//! Hashes take memory, so they are bounded: segments beyond the bound are no part of the rounds, and whole in the last
//! set.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use godwit_wire::fault;
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PE_PARENT, PE_PRESENT, PageOwner, PageRun, PagesPlan};

use super::pages::{PageHash, SentPages, StopOthers, page_hash};
use super::plan;
use crate::error::DumpError;
use crate::interrupt;
use crate::task::shmem::Segment;

/// Pages that are remembered by their hashes, over all segments: 16 GiB of memory in 64 MiB of hashes.
const HASHES_MAX: u64 = 4 << 20;

/// How segments are compared with what rounds hold of them.
#[derive(Clone, Copy)]
pub struct Comparing<'a> {
    /// Threads that read and compare, at least one.
    pub readers: usize,
    /// Whether to go on, asked before each piece of at most an extent.
    pub check: &'a (dyn Fn() -> Result<(), DumpError> + Sync),
}

impl Comparing<'_> {
    /// To the end, however long it takes: the process runs.
    pub fn patiently(readers: usize) -> Comparing<'static> {
        Comparing { readers, check: &|| Ok(()) }
    }
}

/// Numbers of pages files: each process and each segment has one of its own, the same in every round.
#[derive(Debug)]
pub struct PagesIds {
    next: u32,
}

impl Default for PagesIds {
    fn default() -> PagesIds {
        PagesIds { next: 1 }
    }
}

impl PagesIds {
    /// A number that nobody has; they are counted from 1.
    pub fn give(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }
}

/// What is known of the segments met in a session.
#[derive(Debug)]
pub struct Segments {
    /// The number of each segment's pages file.
    pages_ids: BTreeMap<u64, u32>,
    hashes_max: u64,
    /// What the last acknowledged round holds.
    held: BTreeMap<u64, Held>,
}

/// The pages of one segment that a round covers, itself or through its parents, and what each holds.
#[derive(Debug, Default)]
struct Held {
    /// Sorted runs, each with the place of its first hash.
    runs: Vec<(PageRun, usize)>,
    hashes: Vec<PageHash>,
}

impl Held {
    fn at(&self, vaddr: u64) -> Option<&PageHash> {
        let behind = self.runs.partition_point(|(run, _)| run.vaddr <= vaddr);
        let (run, first) = self.runs[..behind].last().filter(|(run, _)| vaddr < run.end())?;
        self.hashes.get(first + ((vaddr - run.vaddr) / PAGE_SIZE) as usize)
    }

    fn runs(&self) -> Vec<PageRun> {
        self.runs.iter().map(|(run, _)| *run).collect()
    }
}

impl Default for Segments {
    fn default() -> Segments {
        Segments { pages_ids: BTreeMap::new(), hashes_max: HASHES_MAX, held: BTreeMap::new() }
    }
}

impl Segments {
    /// The page lists of all segments. In the last set all are listed, in a round those whose hashes can be
    /// remembered. `comparing` says how what the last acknowledged round holds is compared.
    ///
    /// # Errors
    /// When a segment cannot be read, when the user wants it to end, or as `comparing` says.
    pub fn plans(
        &mut self,
        segments: &[Segment],
        is_last: bool,
        ids: &mut PagesIds,
        comparing: &Comparing<'_>,
    ) -> Result<Vec<PagesPlan>, DumpError> {
        let mut plans = Vec::with_capacity(segments.len());
        let mut remembered = 0;
        // CRIU writes no list for one that is empty.
        for segment in segments.iter().filter(|segment| segment.pages() > 0) {
            let data = segment.data()?;
            let pages: u64 = data.iter().map(|run| run.nr_pages).sum();
            if !is_last {
                if remembered + pages > self.hashes_max {
                    let mib = (pages * PAGE_SIZE) >> 20;
                    tracing::warn!(
                        segment = segment.id,
                        mib,
                        "shared memory too large for the rounds is sent while the process is stopped"
                    );
                    continue;
                }
                remembered += pages;
            }
            let runs = match self.held.get(&segment.id) {
                Some(held) => compare(segment, data, held, comparing)?,
                None => data,
            };
            plans.push(PagesPlan {
                owner: PageOwner::Shmem(segment.id),
                pages_id: *self.pages_ids.entry(segment.id).or_insert_with(|| ids.give()),
                runs,
            });
        }
        Ok(plans)
    }

    /// A round was acknowledged: from now on it is what the next one builds on. `sent` is by pages file.
    pub fn acknowledge(&mut self, plans: &[PagesPlan], sent: &BTreeMap<u32, SentPages>) {
        let before = std::mem::take(&mut self.held);
        for plan in plans {
            let (PageOwner::Shmem(id), Some(sent)) = (plan.owner, sent.get(&plan.pages_id)) else { continue };
            let mut fresh = sent.page_hashes.iter().flatten().copied();
            let mut held = Held::default();
            for run in &plan.runs {
                held.runs.push((PageRun { flags: PE_PRESENT, ..*run }, held.hashes.len()));
                for page in 0..run.nr_pages {
                    let hash = if run.is_present() {
                        fresh.next()
                    } else {
                        before.get(&id).and_then(|held| held.at(run.vaddr + page * PAGE_SIZE)).copied()
                    };
                    // Without its hash a page matches nothing, and is sent again.
                    held.hashes.push(hash.unwrap_or_default());
                }
            }
            self.held.insert(id, held);
        }
    }
}

/// What a segment holds, as runs to send and runs that are as the round before has them.
fn compare(
    segment: &Segment,
    data: Vec<PageRun>,
    held: &Held,
    comparing: &Comparing<'_>,
) -> Result<Vec<PageRun>, DumpError> {
    let covered = held.runs();
    let pieces = pieces(&plan::common(&data, &covered));
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let changed: Mutex<Vec<PageRun>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work: Vec<_> = (0..comparing.readers.clamp(1, pieces.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    let mut bytes = vec![0; (EXTENT_SLOTS * PAGE_SIZE) as usize];
                    let _stop = StopOthers(&failed);
                    while !failed.load(Ordering::Relaxed) {
                        let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                        match (comparing.check)().and_then(|()| changed_in(segment, piece, held, &mut bytes))
                        {
                            Ok(runs) => {
                                changed.lock().unwrap_or_else(|poison| poison.into_inner()).extend(runs)
                            }
                            Err(error) => {
                                failed.store(true, Ordering::Relaxed);
                                return Err(error);
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        work.into_iter().try_for_each(|reader| match reader.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let mut changed = changed.into_inner().unwrap_or_else(|poison| poison.into_inner());
    changed.sort_by_key(|run| run.vaddr);
    let covered = PagesPlan { owner: PageOwner::Shmem(segment.id), pages_id: 1, runs: covered };
    Ok(plan::split(&data, &changed, Some(&covered)))
}

/// Runs cut into pieces of at most an extent.
fn pieces(runs: &[PageRun]) -> Vec<PageRun> {
    let cut = |run: &PageRun| {
        let run = *run;
        (0..run.nr_pages).step_by(EXTENT_SLOTS as usize).map(move |page| PageRun {
            vaddr: run.vaddr + page * PAGE_SIZE,
            nr_pages: (run.nr_pages - page).min(EXTENT_SLOTS),
            flags: run.flags,
        })
    };
    runs.iter().flat_map(cut).collect()
}

/// The pages of a piece that do not have the hash they are held with.
fn changed_in(
    segment: &Segment,
    piece: &PageRun,
    held: &Held,
    room: &mut [u8],
) -> Result<Vec<PageRun>, DumpError> {
    interrupt::check()?;
    fault::point("mid.segments.compare")?;
    let bytes = &mut room[..(piece.nr_pages * PAGE_SIZE) as usize];
    segment.read(piece.vaddr, bytes).map_err(|source| segment.unreadable(source))?;
    let mut changed: Vec<PageRun> = Vec::new();
    for (index, page) in bytes.chunks_exact(PAGE_SIZE as usize).enumerate() {
        let vaddr = piece.vaddr + index as u64 * PAGE_SIZE;
        if held.at(vaddr) == Some(&page_hash(page)) {
            continue;
        }
        match changed.last_mut() {
            Some(last) if last.end() == vaddr => last.nr_pages += 1,
            _ => changed.push(PageRun { vaddr, nr_pages: 1, flags: PE_PRESENT }),
        }
    }
    Ok(changed)
}

/// Pages that lists of segments leave to the round before.
pub fn in_parent(plans: &[PagesPlan]) -> u64 {
    let runs =
        plans.iter().filter(|plan| matches!(plan.owner, PageOwner::Shmem(_))).flat_map(|plan| &plan.runs);
    runs.filter(|run| run.flags == PE_PARENT).map(|run| run.nr_pages).sum()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::PathBuf;
    use std::sync::Arc;

    use bytes::Bytes;
    use godwit_page_server::store::sink::{Content, Fill, Sealed, Sink, SinkError};
    use godwit_wire::image::manifest::Manifest;
    use godwit_wire::plan::{RoundKind, RoundPlan};
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::Pid;
    use proptest::prelude::Rng;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::*;
    use crate::predump::pages::{Owners, PageSource};

    const PAGE: usize = PAGE_SIZE as usize;

    /// Pages by pages file and slot.
    type Slots = BTreeMap<(u32, u64), Arc<[u8]>>;

    /// Keeps what is handed over, slot by slot.
    #[derive(Default)]
    struct Kept(Mutex<Slots>);

    impl Sink for Kept {
        fn begin(&self, _: &RoundPlan) -> Result<(), SinkError> {
            Ok(())
        }

        fn fill(&self, fill: Fill) -> Result<(), SinkError> {
            let bytes = match fill.content {
                Content::Data(bytes) => bytes.to_vec(),
                Content::Zero { pages } => vec![0; pages as usize * PAGE],
                Content::Same { .. } | Content::Delta { .. } | Content::Spread { .. } => {
                    unreachable!("not sent of segments")
                }
            };
            for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
                self.0.lock().unwrap().insert((fill.pages_id, fill.first_slot + index as u64), page.into());
            }
            Ok(())
        }

        fn image(&self, _: u32, _: &str, _: Bytes) -> Result<(), SinkError> {
            Ok(())
        }

        fn seal(&self, _: u32, _: &Manifest) -> Result<Sealed, SinkError> {
            Ok(Sealed::default())
        }

        fn abandon(&self, _: u32) -> Result<(), SinkError> {
            Ok(())
        }
    }

    fn memfd() -> File {
        File::from(memfd_create(c"segment", MFdFlags::MFD_CLOEXEC).unwrap())
    }

    fn open(file: &File) -> Segment {
        let at = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Segment::open(Pid::this(), file.metadata().unwrap().ino(), &at).unwrap()
    }

    fn send(segment: &Segment, plans: &[PagesPlan], sink: &Kept, live: bool) -> BTreeMap<u32, SentPages> {
        let source = PageSource {
            owners: Owners::One(Pid::this()),
            live,
            readers: 2,
            segments: std::slice::from_ref(segment),
            hashed_slots: 0,
            pool: &crate::pool::Pool::new(3),
            hot: &crate::predump::pages::NONE_HOT,
            stop: &crate::predump::pages::GOES_ON,
        };
        let (round, kind) = (1, RoundKind::Round);
        source
            .send_all(&RoundPlan { round, base_round: None, kind, pages: plans.to_vec() }, sink)
            .unwrap()
            .pages
    }

    /// What a restore would find, given what it would find of the round before.
    fn restored(
        plan: &PagesPlan,
        sink: &Kept,
        before: &BTreeMap<u64, Arc<[u8]>>,
    ) -> BTreeMap<u64, Arc<[u8]>> {
        let mut slots = sink.0.lock().unwrap().clone().into_values();
        let mut found = BTreeMap::new();
        for run in &plan.runs {
            for page in 0..run.nr_pages {
                let vaddr = run.vaddr + page * PAGE_SIZE;
                let held = if run.is_present() { slots.next().unwrap() } else { before[&vaddr].clone() };
                found.insert(vaddr, held);
            }
        }
        assert!(slots.next().is_none(), "no page without a place");
        found
    }

    fn change(file: &File, rng: &mut TestRng) {
        const PAGES: u64 = 700;
        let page = u64::from(rng.next_u32()) % PAGES;
        let at = page * PAGE_SIZE;
        match rng.next_u32() % 20 {
            0 => file.set_len((page + 1) * PAGE_SIZE + u64::from(rng.next_u32() % 2) * 77).unwrap(),
            1..5 => {
                let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(file, punch, at as i64, (PAGE_SIZE * 3) as i64).unwrap();
            }
            // Some pages are written with what they held, some with zeros.
            5..8 => file.write_all_at(&[(page % 3) as u8; PAGE], at).unwrap(),
            _ => {
                let len = rng.next_u32() as usize % (3 * PAGE) + 1;
                file.write_all_at(&vec![rng.next_u32() as u8; len], at + u64::from(rng.next_u32() % 4096))
                    .unwrap();
            }
        }
    }

    #[test]
    fn rounds_of_a_segment_that_changes_all_the_time_end_in_what_it_holds() {
        let mut runner =
            TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let mut rng = runner.new_rng();
        let mut left_out_of_the_last = 0;
        for _ in 0..24 {
            let file = memfd();
            let (mut segments, mut ids) = (Segments::default(), PagesIds { next: 2 });
            let mut held = BTreeMap::new();
            for round in 0..5 {
                let is_last = round == 4;
                (0..rng.next_u32() % 400).for_each(|_| change(&file, &mut rng));
                let segment = open(&file);
                let plans = segments
                    .plans(std::slice::from_ref(&segment), is_last, &mut ids, &Comparing::patiently(2))
                    .unwrap();
                let Some(plan) = plans.first() else { continue };
                assert_eq!(plan.pages_id, 2);
                if !is_last {
                    // It runs on between the list and the copy.
                    (0..rng.next_u32() % 40).for_each(|_| change(&file, &mut rng));
                }
                let sink = Kept::default();
                let sent = send(&segment, &plans, &sink, !is_last);
                held = restored(plan, &sink, &held);
                left_out_of_the_last = in_parent(&plans);
                segments.acknowledge(&plans, &sent);
            }
            let mut expected = vec![0; (file.metadata().unwrap().len() as usize).next_multiple_of(PAGE)];
            open(&file).read(0, &mut expected).unwrap();
            for (index, page) in expected.chunks_exact(PAGE).enumerate() {
                let vaddr = index as u64 * PAGE_SIZE;
                let found = held.remove(&vaddr).unwrap_or_else(|| vec![0; PAGE].into());
                assert!(page == &found[..], "the page at {vaddr:#x}");
            }
            assert!(held.is_empty(), "nothing behind its end: {:?}", held.keys());
        }
        assert!(left_out_of_the_last > 0, "some pages are left to the rounds");
    }

    #[test]
    fn only_what_changed_is_sent_again() {
        let file = memfd();
        file.write_all_at(&vec![1; 600 * PAGE], 0).unwrap();
        let (mut segments, mut ids) = (Segments::default(), PagesIds { next: 7 });
        let segment = open(&file);
        let first = segments
            .plans(std::slice::from_ref(&segment), false, &mut ids, &Comparing::patiently(3))
            .unwrap();
        let sent = send(&segment, &first, &Kept::default(), true);
        segments.acknowledge(&first, &sent);
        file.write_all_at(b"x", 300 * PAGE_SIZE + 9).unwrap();
        file.write_all_at(&[1; 5 * PAGE], 400 * PAGE_SIZE).unwrap();
        file.set_len(500 * PAGE_SIZE).unwrap();
        let last = segments.plans(&[open(&file)], true, &mut ids, &Comparing::patiently(3)).unwrap();
        let run = |page: u64, nr_pages, flags| PageRun { vaddr: page * PAGE_SIZE, nr_pages, flags };
        assert_eq!(last[0].runs, [run(0, 300, PE_PARENT), run(300, 1, PE_PRESENT), run(301, 199, PE_PARENT)]);
        assert_eq!(in_parent(&last), 499);
    }

    #[test]
    fn what_is_sent_again_is_what_counts() {
        let file = memfd();
        file.write_all_at(&vec![1; 300 * PAGE], 0).unwrap();
        let segment = open(&file);
        let (mut segments, mut ids) = (Segments::default(), PagesIds { next: 2 });
        let plans = segments
            .plans(std::slice::from_ref(&segment), false, &mut ids, &Comparing::patiently(1))
            .unwrap();
        let mut sent = send(&segment, &plans, &Kept::default(), true);
        // The second extent is asked for again, and holds something else by then.
        file.write_all_at(&[2; PAGE], 290 * PAGE_SIZE).unwrap();
        let source = PageSource {
            owners: Owners::One(Pid::this()),
            live: true,
            readers: 1,
            segments: std::slice::from_ref(&segment),
            hashed_slots: 0,
            pool: &crate::pool::Pool::new(2),
            hot: &crate::predump::pages::NONE_HOT,
            stop: &crate::predump::pages::GOES_ON,
        };
        let again = source.send_extents(&plans[0], 1, &Kept::default(), &[1]).unwrap();
        sent.get_mut(&2).unwrap().sent_again(&[1], again);
        segments.acknowledge(&plans, &sent);
        let last =
            segments.plans(std::slice::from_ref(&segment), true, &mut ids, &Comparing::patiently(1)).unwrap();
        assert_eq!(in_parent(&last), 300);
    }

    #[test]
    fn a_segment_beyond_the_bound_is_in_no_round_and_whole_in_the_last_set() {
        let (small, large) = (memfd(), memfd());
        small.write_all_at(&[1; 2 * PAGE], 0).unwrap();
        large.write_all_at(&[1; 9 * PAGE], 0).unwrap();
        let open = [open(&large), open(&small)];
        let (mut segments, mut ids) =
            (Segments { hashes_max: 8, ..Segments::default() }, PagesIds { next: 2 });
        let round = segments.plans(&open, false, &mut ids, &Comparing::patiently(1)).unwrap();
        assert_eq!(round.iter().map(|plan| plan.owner).collect::<Vec<_>>(), [PageOwner::Shmem(open[1].id)]);
        segments.acknowledge(&round, &send(&open[1], &round, &Kept::default(), true));
        let last = segments.plans(&open, true, &mut ids, &Comparing::patiently(1)).unwrap();
        assert_eq!(last.len(), 2);
        assert_eq!((last[0].slots(), last[1].slots()), (9, 0));
        assert_eq!(last[1].pages_id, round[0].pages_id);
    }
}
