//! Which frame or swap slot held each page when it was last looked at.
//!
//! A soft-dirty bit says whether a page was written since, not whether the page is still the one that was there: when
//! the kernel moves whole page tables (mremap of 2 MiB and more, aligned), the moved pages keep clear bits and may come
//! to lie where other pages were copied from. A page that is another than before lies in another frame. The opposite is
//! not true, since the kernel moves pages between frames as it likes; such a page is sent once more.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use godwit_wire::plan::{PAGE_SIZE, PageRun};
use nix::errno::Errno;

use super::present::push;

/// Pages of a block of [`Frames`].
const BLOCK_PAGES: u64 = 512;
/// Words of the pagemap that are read at once: 16 MiB of memory.
const WINDOW_WORDS: usize = 4096;

/// Soft-dirty (Documentation/admin-guide/mm/pagemap.rst).
const SOFT_DIRTY: u64 = 1 << 55;
/// Present, swapped, and the frame's number or the swap slot.
const PLACE: u64 = 0b11 << 62 | (SOFT_DIRTY - 1);
/// The frame's number; all zeros for a reader without CAP_SYS_ADMIN.
const FRAME: u64 = SOFT_DIRTY - 1;

/// The places of pages, by blocks of 2 MiB: a five-hundredth of the memory they stand for.
#[derive(Debug, Default)]
pub struct Frames {
    blocks: HashMap<u64, Box<[u64; BLOCK_PAGES as usize]>>,
}

impl Frames {
    fn get(&self, page: u64) -> u64 {
        self.blocks.get(&(page / BLOCK_PAGES)).map_or(0, |block| block[(page % BLOCK_PAGES) as usize])
    }

    fn set(&mut self, page: u64, place: u64) {
        let fresh = || Box::new([0; BLOCK_PAGES as usize]);
        self.blocks.entry(page / BLOCK_PAGES).or_insert_with(fresh)[(page % BLOCK_PAGES) as usize] = place;
    }

    /// Of the pages in `alive` (sorted), those that were written or are others than before, and what was found: it is
    /// to take the place of what was known once the answer is taken for good.
    ///
    /// # Errors
    /// The kernel's answer, when the pagemap cannot be read.
    pub fn changed(&self, pagemap: &File, alive: &[PageRun]) -> Result<(Vec<PageRun>, Frames), Errno> {
        let mut words = Words { pagemap, bytes: vec![0; WINDOW_WORDS * 8], first: 0, count: 0 };
        let (mut found, mut runs) = (Frames::default(), Vec::new());
        for run in alive {
            for at in (run.vaddr..run.end()).step_by(PAGE_SIZE as usize) {
                let page = at / PAGE_SIZE;
                let word = words.get(page)?;
                found.set(page, word & PLACE);
                if word & SOFT_DIRTY != 0 || self.get(page) != word & PLACE {
                    push(&mut runs, at..at + PAGE_SIZE);
                }
            }
        }
        Ok((runs, found))
    }
}

/// Whether the kernel shows us the frames of the pages in `runs`, which are present.
///
/// # Errors
/// The kernel's answer, when the pagemap cannot be read.
pub fn are_shown(pagemap: &File, runs: &[PageRun]) -> Result<bool, Errno> {
    let mut words = Words { pagemap, bytes: vec![0; WINDOW_WORDS * 8], first: 0, count: 0 };
    for run in runs {
        if words.get(run.vaddr / PAGE_SIZE)? & FRAME == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The pagemap's words, read in windows for rising pages.
struct Words<'a> {
    pagemap: &'a File,
    bytes: Vec<u8>,
    first: u64,
    count: u64,
}

impl Words<'_> {
    fn get(&mut self, page: u64) -> Result<u64, Errno> {
        if !(self.first..self.first + self.count).contains(&page) {
            let read = self.pagemap.read_at(&mut self.bytes, page * 8);
            let read = read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
            (self.first, self.count) = (page, read as u64 / 8);
            if self.count == 0 {
                // The address space is gone.
                return Err(Errno::ESRCH);
            }
        }
        let at = ((page - self.first) * 8) as usize;
        Ok(self.bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
    }
}
