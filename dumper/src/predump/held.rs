//! What the acknowledged round and those that it builds on hold of the task's pages, told by the hash of each page as its
//! bytes were handed over.
//!
//! The table is bounded. A page that found no room in it has no hash, matches nothing, and is sent again. A process that
//! is sparse fills it sooner: it is kept by blocks of pages.

use std::collections::BTreeMap;

use godwit_wire::plan::{PAGE_SIZE, PagesPlan};

use super::pages::{PageHash, SentPages};

/// Pages of a block of the table: 256 KiB of memory in 1 KiB of hashes.
const BLOCK_PAGES: u64 = 64;
/// Blocks that are kept at most: the hashes of 16 GiB of memory, 64 MiB of them.
const BLOCKS_MAX: usize = 1 << 16;
/// Pages whose hashes can be kept at most.
pub const PAGES_MAX: u64 = BLOCKS_MAX as u64 * BLOCK_PAGES;

/// All zeros where nothing is known.
type Block = [PageHash; BLOCK_PAGES as usize];

/// The hashes of pages, by address.
#[derive(Debug)]
pub struct Held {
    blocks: BTreeMap<u64, Box<Block>>,
    blocks_max: usize,
    /// Pages that a round held and that found no room.
    beyond: u64,
}

impl Default for Held {
    fn default() -> Held {
        Held::bounded(PAGES_MAX)
    }
}

impl Held {
    /// Of a session that has no round yet, with room for so many pages.
    pub fn bounded(pages_max: u64) -> Held {
        let blocks_max = usize::try_from(pages_max / BLOCK_PAGES).unwrap_or(usize::MAX);
        Held { blocks: BTreeMap::new(), blocks_max, beyond: 0 }
    }

    /// Whether nothing is known of any page.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The hash of the page at `vaddr`, as the acknowledged round holds it.
    pub fn at(&self, vaddr: u64) -> Option<&PageHash> {
        let page = vaddr / PAGE_SIZE;
        let block = self.blocks.get(&(page / BLOCK_PAGES))?;
        Some(&block[(page % BLOCK_PAGES) as usize]).filter(|hash| **hash != PageHash::default())
    }

    /// Pages of the last acknowledged round that found no room: each is sent again, written or not.
    pub fn beyond(&self) -> u64 {
        self.beyond
    }

    /// A round was acknowledged: from now on it is what the next one builds on.
    pub fn acknowledge(&mut self, plan: &PagesPlan, sent: &SentPages) {
        let mut before = std::mem::take(&mut self.blocks);
        self.beyond = 0;
        let mut fresh = sent.page_hashes.iter().flatten();
        for run in &plan.runs {
            let mut at = run.vaddr;
            while at < run.end() {
                let number = at / PAGE_SIZE / BLOCK_PAGES;
                let until = run.end().min((number + 1) * BLOCK_PAGES * PAGE_SIZE);
                // What lies below goes as the rest grows, so that there is never twice the table.
                while let Some(lowest) = before.first_entry().filter(|lowest| *lowest.key() < number) {
                    lowest.remove();
                }
                let old = before.get(&number);
                let mut known: Block = [PageHash::default(); BLOCK_PAGES as usize];
                for vaddr in (at..until).step_by(PAGE_SIZE as usize) {
                    let index = (vaddr / PAGE_SIZE % BLOCK_PAGES) as usize;
                    known[index] = match run.is_present() {
                        // The slot of a page that was gone holds zeros, and nothing builds on it.
                        true => {
                            fresh.next().filter(|_| !sent.gone.contains(&vaddr)).copied().unwrap_or_default()
                        }
                        false => old.map(|old| old[index]).unwrap_or_default(),
                    };
                }
                self.keep(number, &known, (until - at) / PAGE_SIZE);
                at = until;
            }
        }
    }

    fn keep(&mut self, number: u64, known: &Block, pages: u64) {
        let new: u64 = known.iter().map(|hash| u64::from(*hash != PageHash::default())).sum();
        let has_room = self.blocks.len() < self.blocks_max || self.blocks.contains_key(&number);
        if new == 0 || !has_room {
            self.beyond += pages;
            return;
        }
        self.beyond += pages - new;
        let fresh = || Box::new([PageHash::default(); BLOCK_PAGES as usize]);
        let block = self.blocks.entry(number).or_insert_with(fresh);
        for (into, hash) in block.iter_mut().zip(known).filter(|(_, hash)| **hash != PageHash::default()) {
            *into = *hash;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use godwit_wire::plan::{EXTENT_SLOTS, PE_PARENT, PE_PRESENT, PageOwner, PageRun};
    use proptest::prelude::*;

    use super::*;
    use crate::predump::pages::page_hash;

    fn sent(contents: &[u8], gone: &[u64]) -> SentPages {
        let hashes: Vec<PageHash> = contents.iter().map(|byte| page_hash(&[*byte])).collect();
        SentPages {
            extents: Vec::new(),
            page_hashes: hashes.chunks(EXTENT_SLOTS as usize).map(<[PageHash]>::to_vec).collect(),
            gone: gone.iter().copied().collect(),
            data_pages: 0,
            zero_pages: 0,
            same_pages: 0,
            delta_pages: 0,
            copied_pages: 0,
        }
    }

    fn plan(runs: Vec<PageRun>) -> PagesPlan {
        PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs }
    }

    /// Rounds as they may be: of each page whether it is listed, sent or left to the round before, and gone by then.
    fn rounds() -> impl Strategy<Value = Vec<Vec<(u8, u8)>>> {
        let page = (0u8..8, any::<u8>());
        proptest::collection::vec(proptest::collection::vec(page, 200..300), 1..5)
    }

    proptest! {
        #[test]
        fn it_knows_what_the_rounds_hold(rounds in rounds()) {
            let mut held = Held::default();
            let mut model: BTreeMap<u64, u8> = BTreeMap::new();
            for round in rounds {
                let (mut runs, mut contents, mut gone, mut now) = (Vec::new(), Vec::new(), Vec::new(), BTreeMap::new());
                for (page, (fate, content)) in round.into_iter().enumerate() {
                    let vaddr = page as u64 * PAGE_SIZE;
                    let before = model.get(&vaddr).copied();
                    let flags = match (fate, before) {
                        (0, _) => continue,
                        (1..4, Some(before)) => {
                            now.insert(vaddr, before);
                            PE_PARENT
                        }
                        (4, _) => {
                            contents.push(content);
                            gone.push(vaddr);
                            PE_PRESENT
                        }
                        _ => {
                            contents.push(content);
                            now.insert(vaddr, content);
                            PE_PRESENT
                        }
                    };
                    runs.push(PageRun { vaddr, nr_pages: 1, flags });
                }
                held.acknowledge(&plan(runs), &sent(&contents, &gone));
                model = now;
                for page in 0..400 {
                    let vaddr = page * PAGE_SIZE;
                    prop_assert_eq!(held.at(vaddr).copied(), model.get(&vaddr).map(|byte| page_hash(&[*byte])));
                }
            }
        }
    }

    #[test]
    fn what_finds_no_room_is_not_known_and_is_counted() {
        let mut held = Held::bounded(2 * BLOCK_PAGES);
        let run = |page: u64, nr_pages| PageRun { vaddr: page * PAGE_SIZE, nr_pages, flags: PE_PRESENT };
        held.acknowledge(&plan(vec![run(0, 64), run(1000, 1), run(5000, 3)]), &sent(&[7; 68], &[]));
        assert_eq!(held.at(1000 * PAGE_SIZE), Some(&page_hash(&[7])));
        assert_eq!((held.at(5000 * PAGE_SIZE), held.beyond()), (None, 3));
        // Those whose hashes were not taken are counted as well.
        held.acknowledge(&plan(vec![run(0, 10)]), &sent(&[7; 4], &[]));
        assert_eq!((held.at(4 * PAGE_SIZE), held.beyond()), (None, 6));
    }
}
