//! Pages that are sent again and again: what the acknowledged round holds of them, so that one which was written with
//! what it held, or nearly so, need not travel whole.
//!
//! A page is remembered once it is sent although the base round holds it, so a first round pays nothing. Its contents
//! are kept within a bound, for further pages a hash, beyond a second bound nothing; what is no longer sent is
//! forgotten after a few rounds. An entry says what the chain of sealed rounds holds of its page. It is noted with the
//! round that carries it, and counts only when that round was acknowledged: an abandoned round takes its entries along,
//! and so does a round that does not cover the page any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_page_server::store::sink::Takes;
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PageRun};

use super::rounds::Base;
use super::sent::{PageHash, page_hash};

const PAGE: usize = PAGE_SIZE as usize;
/// Pages whose contents are kept: 48 MiB.
const CONTENTS_MAX: usize = 12 << 10;
/// Pages of which a hash is kept, beside those: of 1 GiB, in about 16 MiB.
const HASHES_MAX: usize = 256 << 10;
/// Rounds after which a page that was not sent again is forgotten.
const COOLS_AFTER: u32 = 3;
/// A page is near its base while at most so many of its 512 words differ: packed, that is less than a quarter of it.
const NEAR_WORDS: usize = 64;
/// Parts of the table with a lock each: readers are at different extents.
const SHARDS: u64 = 32;

/// What is left of the bounds, for the tables of all processes of a tree together.
#[derive(Debug)]
pub struct Left {
    contents: AtomicUsize,
    hashes: AtomicUsize,
}

impl Default for Left {
    fn default() -> Left {
        Left { contents: AtomicUsize::new(CONTENTS_MAX), hashes: AtomicUsize::new(HASHES_MAX) }
    }
}

/// What is known of a process's hot pages, by address.
#[derive(Debug)]
pub struct Hot {
    shards: Vec<Mutex<HashMap<u64, Entry>>>,
    left: Arc<Left>,
    /// The last acknowledged round.
    base: Option<u32>,
}

#[derive(Debug)]
struct Entry {
    /// The round that carried it.
    round: u32,
    /// The last round in which its page was sent in any form.
    met: u32,
    known: Known,
}

#[derive(Debug)]
enum Known {
    Contents(Box<[u8; PAGE]>),
    Hash(PageHash),
}

/// What a page that is to be sent is to the base round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Nothing is known, or it is another one.
    Other,
    /// The same, with this hash.
    Same(PageHash),
    /// It differs a little from the page with this hash.
    Near(PageHash),
}

impl Drop for Hot {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Hot {
    /// A table that knows nothing, within what is left of the bounds.
    pub fn within(left: Arc<Left>) -> Hot {
        Hot { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), left, base: None }
    }

    /// The table as a round sees it that builds on `base`. Where the sink has no use for it, or the table is of another
    /// round, everything in it is forgotten: it would not see what is sent.
    pub fn of_round<'a>(&'a mut self, takes: Takes, base: Option<&'a Base>) -> Option<View<'a>> {
        match base {
            Some(base) if self.base == Some(base.round) && (takes.same || takes.delta) => {
                Some(View { hot: self, covered: &base.covered.runs, compares: true, notes: true })
            }
            _ => {
                self.clear();
                None
            }
        }
    }

    /// A round was acknowledged that covers `covered` (sorted), itself or through its parents: what it carried counts
    /// from now on.
    pub fn acknowledge(&mut self, round: u32, covered: &[PageRun]) {
        let before = self.base.replace(round);
        for shard in &self.shards {
            let mut entries = lock(shard);
            entries.retain(|vaddr, entry| {
                let holds = entry.round == round || before.is_some_and(|before| entry.round <= before);
                let is_kept = holds && entry.met + COOLS_AFTER >= round && covers(covered, *vaddr);
                if !is_kept {
                    self.give_back(entry);
                }
                is_kept
            });
        }
    }

    /// Forgets everything.
    fn clear(&self) {
        for shard in &self.shards {
            lock(shard).drain().for_each(|(_, entry)| self.give_back(&entry));
        }
    }

    fn shard(&self, vaddr: u64) -> MutexGuard<'_, HashMap<u64, Entry>> {
        let extent = vaddr / (EXTENT_SLOTS * PAGE_SIZE);
        lock(&self.shards[(extent % SHARDS) as usize])
    }

    fn give_back(&self, entry: &Entry) {
        let left = match entry.known {
            Known::Contents(_) => &self.left.contents,
            Known::Hash(_) => &self.left.hashes,
        };
        left.fetch_add(1, Ordering::Relaxed);
    }

    /// As much of a page as there is room for.
    fn remember(&self, page: &[u8]) -> Option<Known> {
        let take = |left: &AtomicUsize| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        };
        if take(&self.left.contents) {
            let mut contents = Box::new([0; PAGE]);
            contents.copy_from_slice(page);
            return Some(Known::Contents(contents));
        }
        take(&self.left.hashes).then(|| Known::Hash(page_hash(page)))
    }
}

/// The table as one round sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    hot: &'a Hot,
    covered: &'a [PageRun],
    compares: bool,
    notes: bool,
}

impl View<'_> {
    /// The same, for pages that must travel whole: it is noted what they hold, and nothing is left to the base round.
    pub fn only_noted(self) -> Self {
        View { compares: false, ..self }
    }

    /// The same for the last set, behind which no round comes: nothing is noted, and the process waits.
    pub fn only_compared(self) -> Self {
        View { notes: false, ..self }
    }

    /// Compares a page that is to be sent in `round`, and notes what it holds. What a page that is near its base differs
    /// in is written to `difference`, which is a page long where that is wanted.
    pub fn meet(
        self,
        vaddr: u64,
        page: &[u8],
        round: u32,
        takes: Takes,
        difference: Option<&mut [u8]>,
    ) -> Met {
        let mut entries = self.hot.shard(vaddr);
        let Some(entry) = entries.get_mut(&vaddr) else {
            if self.notes
                && covers(self.covered, vaddr)
                && let Some(known) = self.hot.remember(page)
            {
                entries.insert(vaddr, Entry { round, met: round, known });
            }
            return Met::Other;
        };
        let counts = self.compares && self.hot.base.is_some_and(|base| entry.round <= base);
        entry.met = round;
        match &mut entry.known {
            Known::Contents(held) if counts && held[..] == *page => {
                if takes.same {
                    Met::Same(page_hash(page))
                } else {
                    Met::Other
                }
            }
            Known::Contents(held) => {
                let is_near = counts
                    && takes.delta
                    && difference
                        .is_some_and(|difference| subtract(page, &held[..], difference) <= NEAR_WORDS);
                let met = if is_near { Met::Near(page_hash(&held[..])) } else { Met::Other };
                if self.notes {
                    held.copy_from_slice(page);
                    entry.round = round;
                }
                met
            }
            Known::Hash(held) => {
                let hash = page_hash(page);
                if counts && *held == hash {
                    return if takes.same { Met::Same(hash) } else { Met::Other };
                }
                if self.notes {
                    (*held, entry.round) = (hash, round);
                }
                Met::Other
            }
        }
    }

    /// A page is sent without being met: nothing is known of it any more.
    pub fn forget(self, vaddr: u64) {
        if let Some(entry) = self.hot.shard(vaddr).remove(&vaddr) {
            self.hot.give_back(&entry);
        }
    }
}

/// Writes what a page differs in from another, and counts the words.
fn subtract(page: &[u8], base: &[u8], difference: &mut [u8]) -> usize {
    let (page, base) = (page.as_chunks::<8>().0, base.as_chunks::<8>().0);
    let words = page.iter().zip(base).zip(difference.as_chunks_mut::<8>().0);
    words.fold(0, |differ, ((page, base), difference)| {
        let word = u64::from_ne_bytes(*page) ^ u64::from_ne_bytes(*base);
        *difference = word.to_ne_bytes();
        differ + usize::from(word != 0)
    })
}

fn covers(sorted: &[PageRun], vaddr: u64) -> bool {
    let behind = sorted.partition_point(|run| run.vaddr <= vaddr);
    sorted[..behind].last().is_some_and(|run| vaddr < run.end())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use godwit_wire::plan::{PE_PRESENT, PageOwner, PagesPlan};
    use proptest::prelude::Rng;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::*;

    const BOTH: Takes = Takes { same: true, delta: true, spread: false, zeros_as_data: 0 };
    /// Some pages of two shards.
    const PAGES: u64 = 40;

    fn address(page: u64) -> u64 {
        (page + EXTENT_SLOTS - PAGES / 2) * PAGE_SIZE
    }

    fn runs(pages: impl Iterator<Item = u64>) -> Vec<PageRun> {
        pages.map(|page| PageRun { vaddr: address(page), nr_pages: 1, flags: PE_PRESENT }).collect()
    }

    fn base(round: u32, covered: Vec<PageRun>) -> Base {
        Base { round, covered: PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs: covered } }
    }

    fn bounded(contents: usize, hashes: usize) -> Hot {
        Hot::within(Arc::new(Left { contents: AtomicUsize::new(contents), hashes: AtomicUsize::new(hashes) }))
    }

    type Memory = BTreeMap<u64, Vec<u8>>;

    /// What the server would make of a page: it takes nothing on trust.
    fn served(met: Met, page: &[u8], difference: &[u8], held: Option<&Vec<u8>>) -> Option<Vec<u8>> {
        match met {
            Met::Other => Some(page.to_vec()),
            Met::Same(hash) => held.filter(|held| page_hash(held) == hash).cloned(),
            Met::Near(base) => {
                let held = held.filter(|held| page_hash(held) == base)?;
                Some(held.iter().zip(difference).map(|(one, two)| one ^ two).collect())
            }
        }
    }

    fn write(memory: &mut Memory, rng: &mut TestRng) -> u64 {
        let page = u64::from(rng.next_u32()) % PAGES;
        let bytes = memory.entry(page).or_insert_with(|| vec![0; PAGE]);
        match rng.next_u32() % 6 {
            0 => bytes.fill(rng.next_u32() as u8),
            // With what it holds.
            1 | 2 => {}
            _ => bytes[rng.next_u32() as usize % PAGE] = rng.next_u32() as u8,
        }
        page
    }

    /// Rounds of random writes, of which some fail, some are sent again in part, and some find pages gone: whatever is
    /// left to the base round is there, and every page arrives.
    #[test]
    fn whatever_fails_what_is_left_to_the_base_round_is_there() {
        let mut runner =
            TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let mut rng = runner.new_rng();
        let (mut same, mut near, mut failed) = (0, 0, 0);
        for case in 0..200 {
            // Tight bounds in some: contents for few pages, or only hashes, or nothing.
            let mut hot = bounded([64, 8, 0, 0][case % 4], [64, 8, 16, 0][case % 4]);
            let (mut memory, mut chain): (Memory, Memory) = Default::default();
            let mut acknowledged: Option<Base> = None;
            let mut dirty: Vec<u64> = Vec::new();
            for round in 1..12 {
                for _ in 0..rng.next_u32() % 60 {
                    dirty.push(write(&mut memory, &mut rng));
                }
                if rng.next_u32().is_multiple_of(3) {
                    memory.remove(&(u64::from(rng.next_u32()) % PAGES));
                }
                dirty.sort_unstable();
                dirty.dedup();
                // Without a base everything is listed.
                let is_new = |page: &u64| dirty.contains(page) || !chain.contains_key(page);
                let listed: Vec<u64> = memory.keys().copied().filter(is_new).collect();
                let takes = if rng.next_u32().is_multiple_of(8) { Takes::default() } else { BOTH };
                let view = hot.of_round(takes, acknowledged.as_ref());
                let mut next: Memory = chain
                    .iter()
                    .filter(|(page, _)| memory.contains_key(page))
                    .map(|(p, b)| (*p, b.clone()))
                    .collect();
                let mut gone = Vec::new();
                for page in listed {
                    let bytes = &memory[&page];
                    let vaddr = address(page);
                    if rng.next_u32().is_multiple_of(30) {
                        view.inspect(|view| view.forget(vaddr));
                        gone.push(page);
                        next.remove(&page);
                        continue;
                    }
                    let mut difference = vec![0xee; PAGE];
                    let met = view.map_or(Met::Other, |view| {
                        view.meet(vaddr, bytes, round, takes, Some(&mut difference))
                    });
                    same += u32::from(matches!(met, Met::Same(_)));
                    near += u32::from(matches!(met, Met::Near(_)));
                    let arrived = served(met, bytes, &difference, chain.get(&page));
                    assert_eq!(
                        arrived.as_ref(),
                        Some(bytes),
                        "case {case}, round {round}, page {page}: {met:?}"
                    );
                    next.insert(page, bytes.clone());
                    if rng.next_u32().is_multiple_of(20) {
                        // Asked for again, by when it holds something else.
                        let bytes = vec![rng.next_u32() as u8; PAGE];
                        let again = view.map(View::only_noted);
                        let met =
                            again.map(|view| view.meet(vaddr, &bytes, round, takes, Some(&mut difference)));
                        assert!(matches!(met, None | Some(Met::Other)), "{met:?}");
                        next.insert(page, bytes);
                        // It was written meanwhile, so it is listed in the next round too.
                        dirty.push(page);
                    } else {
                        dirty.retain(|dirty| *dirty != page);
                    }
                }
                if rng.next_u32().is_multiple_of(5) {
                    // It was abandoned: its pages count as dirty again.
                    failed += 1;
                    dirty.extend(memory.keys());
                    continue;
                }
                dirty.extend(&gone);
                chain = next;
                let covered = runs(chain.keys().copied());
                hot.acknowledge(round, &covered);
                acknowledged = Some(base(round, covered));
            }
        }
        assert!(same > 1000 && near > 1000 && failed > 100, "{same} same, {near} near, {failed} failed");
    }

    #[test]
    fn bounds_hold_and_what_cools_down_makes_room() {
        let mut hot = bounded(2, 1);
        let covered = runs(0..PAGES);
        hot.acknowledge(1, &covered);
        let page = vec![7; PAGE];
        let meet = |view: View<'_>, number, round| view.meet(address(number), &page, round, BOTH, None);
        let first = base(1, covered.clone());
        let view = hot.of_round(BOTH, Some(&first)).unwrap();
        assert!((0..4).all(|number| meet(view, number, 2) == Met::Other));
        hot.acknowledge(2, &covered);
        let second = base(2, covered.clone());
        let view = hot.of_round(BOTH, Some(&second)).unwrap();
        let same = Met::Same(page_hash(&page));
        assert_eq!([0, 1, 2, 3].map(|number| meet(view, number, 3)), [same, same, same, Met::Other]);
        for round in 3..8 {
            hot.acknowledge(round, &covered);
        }
        let later = base(7, covered);
        let view = hot.of_round(BOTH, Some(&later)).unwrap();
        assert!((10..14).all(|number| meet(view, number, 8) == Met::Other));
        let left = |left: &AtomicUsize| left.load(Ordering::Relaxed);
        assert_eq!((left(&hot.left.contents), left(&hot.left.hashes)), (0, 0));
        assert!(hot.of_round(Takes::default(), Some(&later)).is_none());
        assert_eq!((left(&hot.left.contents), left(&hot.left.hashes)), (2, 1), "all was given back");
    }
}
