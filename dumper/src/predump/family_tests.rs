//! Rows of extents, and what becomes of pages that several lists have.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use godwit_page_server::store::sink::{Sealed, SinkError, Takes};
use godwit_wire::image::extent::extent_hash;
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{PE_PRESENT, PageRun, PagesPlan, RoundKind, RoundPlan};
use nix::unistd::Pid;
use proptest::prelude::*;

use super::*;
use crate::predump::pages::{GOES_ON, NONE_HOT, Owners, StopOthers};

const WORDS: usize = PAGE / 8;

/// Keeps what is handed over, slot by slot, and how many pages of it were copies.
#[derive(Default)]
struct Kept(Mutex<HashMap<(u32, u64), Bytes>>, AtomicU64);

impl Kept {
    fn put(&self, pages_id: u32, first: u64, bytes: &Bytes) {
        let mut slots = self.0.lock().unwrap();
        for (slot, at) in (first..).zip((0..bytes.len()).step_by(PAGE)) {
            // Of its own: so buffers go back at once, as over a link that acknowledges at once.
            let page = Bytes::copy_from_slice(&bytes[at..at + PAGE]);
            let twice = slots.insert((pages_id, slot), page);
            assert!(twice.is_none(), "slot {slot} of {pages_id} is filled twice");
        }
    }

    /// The bytes of an extent; every slot was filled.
    fn extent(&self, pages_id: u32, slots: std::ops::Range<u64>) -> Vec<u8> {
        let held = self.0.lock().unwrap();
        slots.flat_map(|slot| held[&(pages_id, slot)].to_vec()).collect()
    }
}

impl Sink for Kept {
    fn begin(&self, _: &RoundPlan) -> Result<(), SinkError> {
        Ok(())
    }

    fn fill(&self, fill: Fill) -> Result<(), SinkError> {
        let pages = fill.content.pages();
        assert!(fill.first_slot % EXTENT_SLOTS + pages <= EXTENT_SLOTS);
        match fill.content {
            Content::Data(bytes) => self.put(fill.pages_id, fill.first_slot, &bytes),
            Content::Zero { pages } => {
                self.put(fill.pages_id, fill.first_slot, &vec![0; pages as usize * PAGE].into());
            }
            Content::Spread { bytes, copies } => {
                self.put(fill.pages_id, fill.first_slot, &bytes);
                assert!(!copies.is_empty());
                for copy in copies {
                    let (at, pages) = (copy.at as usize, copy.pages as usize);
                    assert!(copy.first_slot % EXTENT_SLOTS + u64::from(copy.pages) <= EXTENT_SLOTS);
                    self.put(copy.pages_id, copy.first_slot, &bytes.slice(at * PAGE..(at + pages) * PAGE));
                    self.1.fetch_add(pages as u64, Ordering::Relaxed);
                }
            }
            other => panic!("{other:?}"),
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

    fn takes(&self) -> Takes {
        Takes { spread: true, ..Takes::default() }
    }
}

/// Sorted runs of the pages of some memory for which `has` says so.
fn list(pages_id: u32, begin: u64, pages: u64, has: impl Fn(u64) -> bool) -> PagesPlan {
    let mut runs: Vec<PageRun> = Vec::new();
    for vaddr in (0..pages).filter(|page| has(*page)).map(|page| begin + page * PAGE_SIZE) {
        match runs.last_mut() {
            Some(run) if run.end() == vaddr => run.nr_pages += 1,
            _ => runs.push(PageRun { vaddr, nr_pages: 1, flags: PE_PRESENT }),
        }
    }
    PagesPlan { owner: PageOwner::Task(pages_id), pages_id, runs }
}

fn works(plans: &[PagesPlan]) -> Vec<Work<'_>> {
    let extents = |plan: &PagesPlan| (0..plan.slots().div_ceil(EXTENT_SLOTS)).collect();
    let work = |plan| Work::new(plan, Pid::this(), extents(plan), None);
    plans.iter().map(work).collect()
}

/// Memory that is read as that of four processes, each of which lacks other pages of it.
struct Family4 {
    memory: Vec<AtomicU64>,
    processes: BTreeMap<u32, Pid>,
    plan: RoundPlan,
}

const PAGES: usize = 3000;

impl Family4 {
    fn new() -> Self {
        let memory: Vec<AtomicU64> = (0..(PAGES + 1) * WORDS).map(|_| AtomicU64::new(7)).collect();
        let begin = (memory.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
        let has = |id: u32| move |page: u64| !page.is_multiple_of(30 + u64::from(id) * 7);
        let pages = (1..=4).map(|id| list(id, begin, PAGES as u64, has(id))).collect();
        let plan = RoundPlan { round: 1, base_round: None, kind: RoundKind::Round, pages };
        let family = Family4 { memory, processes: (1..=4).map(|id| (id, Pid::this())).collect(), plan };
        (0..PAGES).for_each(|page| family.last_word(page).store(page as u64, Ordering::Relaxed));
        family
    }

    fn last_word(&self, page: usize) -> &AtomicU64 {
        let begin = (self.memory.as_ptr() as u64).wrapping_neg() % PAGE_SIZE / 8;
        &self.memory[begin as usize + page * WORDS + WORDS - 1]
    }

    /// Sends all of it; says how many pages were copies. Each slot was filled once, by the bytes that its extent's hash
    /// was made of.
    fn send(&self, readers: usize, buffers: usize) -> u64 {
        let (pool, kept) = (Pool::new(buffers), Kept::default());
        let source = PageSource {
            owners: Owners::Tree(&self.processes),
            live: true,
            readers,
            segments: &[],
            hashed_slots: 0,
            pool: &pool,
            hot: &NONE_HOT,
            stop: &GOES_ON,
        };
        let sent = source.send_all(&self.plan, &kept).unwrap();
        let mut copied = 0;
        for list in &self.plan.pages {
            let of = &sent.pages[&list.pages_id];
            copied += of.copied_pages;
            assert_eq!(of.data_pages + of.copied_pages + of.zero_pages, list.slots());
            assert_eq!(of.extents.len() as u64, list.slots().div_ceil(EXTENT_SLOTS));
            for (extent, hash) in (0..).zip(&of.extents) {
                let slots = extent * EXTENT_SLOTS..((extent + 1) * EXTENT_SLOTS).min(list.slots());
                assert_eq!(extent_hash(&kept.extent(list.pages_id, slots)), *hash, "{readers} {buffers}");
            }
        }
        assert_eq!(copied, kept.1.load(Ordering::Relaxed));
        copied
    }
}

#[test]
fn a_page_that_four_have_is_sent_once() {
    let family = Family4::new();
    let lists = &family.plan.pages;
    let all: u64 = lists.iter().map(PagesPlan::slots).sum();
    let addresses: BTreeSet<u64> = lists
        .iter()
        .flat_map(|list| list.runs.iter().flat_map(|run| (run.vaddr..run.end()).step_by(PAGE)))
        .collect();
    for readers in [1, 2, 4] {
        assert_eq!(family.send(readers, 48), all - addresses.len() as u64, "{readers} readers");
    }
    // Where little can be kept, less is found.
    for (readers, buffers) in [(1, 3), (2, 4), (3, 8), (4, 9)] {
        let copied = family.send(readers, buffers);
        assert!(copied * 2 > all, "{copied} of {all}");
    }
    assert_eq!(family.send(2, 3), 0, "nothing can be kept");
}

/// Another thread writes all the time: pages are equal when they are read of one, and others when they are of the next.
#[test]
fn each_slot_gets_what_was_read_of_it_though_it_is_written_meanwhile() {
    let (family, over) = (Family4::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // The writer ends also where an assertion fails.
        let _over = StopOthers(&over);
        scope.spawn(|| {
            let mut random = 1u64;
            while !over.load(Ordering::Relaxed) {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let page = (random >> 33) as usize % PAGES;
                family.last_word(page).store(page as u64 + ((random >> 20) & 1), Ordering::Relaxed);
            }
        });
        for (readers, buffers) in [(1, 48), (2, 48), (3, 8), (2, 4), (4, 9), (1, 3)] {
            assert!(family.send(readers, buffers) > 0);
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn lists_without_an_address_in_common_are_read_alone() {
    let near = |id: u32, begin: u64, pages: u64| list(id, begin * PAGE_SIZE, pages, |_| true);
    let mut plans =
        vec![near(1, 100, 600), near(2, 900, 10), near(3, 699, 1), near(4, 700, 200), near(5, 90, 10)];
    plans.push(PagesPlan { owner: PageOwner::Shmem(1), pages_id: 6, ..near(6, 100, 600) });
    let works = works(&plans);
    assert_eq!(related(&works), [true, false, true, false, false, false]);
    let (rows, alone) = split(&works, KEPT_MAX, 2);
    assert_eq!(alone, [1, 3, 4, 5]);
    let place = |page: u64, of, at| Place { begin: page * PAGE_SIZE, of, at };
    assert_eq!(rows, [[place(100, 0, 0), place(356, 0, 1), place(612, 0, 2), place(699, 2, 0)]]);
    // Without room to keep anything, and of one list, nothing is.
    assert_eq!(split(&works, 0, 2), (vec![], (0..6).collect()));
    assert_eq!(split(&works[..1], KEPT_MAX, 2), (vec![], vec![0]));
    assert_eq!(
        (kept_max(&Pool::new(48), 2), kept_max(&Pool::new(48), 16), kept_max(&Pool::new(3), 2)),
        (8, 1, 0)
    );
}

#[test]
fn many_lists_are_cut_into_rows_that_have_all_extents_in_order() {
    let plans: Vec<PagesPlan> =
        (1..=3).map(|id| list(id, 0x1000, 100_000, |page| page % 50 != u64::from(id))).collect();
    let works = works(&plans);
    let (rows, alone) = split(&works, KEPT_MAX, 4);
    assert_eq!((rows.len(), alone.len()), (9, 0));
    let all: Vec<Place> = rows.concat();
    assert!(all.is_sorted_by_key(|place| place.begin));
    let places: BTreeSet<(usize, usize)> = all.iter().map(|place| (place.of, place.at)).collect();
    assert_eq!(places.len(), works.iter().map(|work| work.extents.len()).sum::<usize>());
}

/// Pieces over a few addresses, and which page lies where.
fn pieces() -> impl Strategy<Value = Vec<Remote>> {
    proptest::collection::vec((0u64..4, 1usize..5), 0..10).prop_map(|runs| {
        let mut at = 0;
        let piece = |(gap, pages): (u64, usize)| {
            let piece = Remote { addr: (at + gap) * PAGE_SIZE, len: pages * PAGE };
            at += gap + pages as u64;
            piece
        };
        runs.into_iter().map(piece).collect()
    })
}

fn addresses(pieces: &[Remote]) -> Vec<u64> {
    pieces.iter().flat_map(|piece| (piece.addr..).step_by(PAGE).take(piece.len / PAGE)).collect()
}

proptest! {
    #[test]
    fn overlaps_are_the_addresses_that_both_have((one, other) in (pieces(), pieces())) {
        let (ours, theirs) = (addresses(&one), addresses(&other));
        let mut found = Vec::new();
        for (our, their, pages) in overlaps(&one, &other) {
            prop_assert_eq!(&ours[our..our + pages], &theirs[their..their + pages]);
            found.extend_from_slice(&ours[our..our + pages]);
        }
        let common: Vec<u64> = ours.into_iter().filter(|address| theirs.contains(address)).collect();
        prop_assert_eq!(found, common);
    }
}
