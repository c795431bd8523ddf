//! Which pages a round lists: pure set arithmetic over runs of pages.

use godwit_wire::plan::{PE_PARENT, PE_PRESENT, PageRun, PagesPlan};

/// Splits what the process has into pages to send and pages to leave to the base round.
///
/// `alive` is every page that holds something now, `dirty` what was written since the base round's copy began,
/// `covered` what the base round holds; all sorted. A page is left to the base round only if it is alive, not dirty,
/// and covered; every other page that is alive is sent. What is not alive is not listed: a restore finds a hole there.
pub fn split(alive: &[PageRun], dirty: &[PageRun], base: Option<&PagesPlan>) -> Vec<PageRun> {
    let covered = base.map_or(&[][..], |base| &base.runs);
    let mut out: Vec<PageRun> = Vec::new();
    let (mut d, mut c) = (Cursor::new(dirty), Cursor::new(covered));
    for run in alive {
        let mut at = run.vaddr;
        while at < run.end() {
            let (is_dirty, dirty_until) = d.at(at);
            let (is_covered, covered_until) = c.at(at);
            let until = run.end().min(dirty_until).min(covered_until);
            let flags = if is_covered && !is_dirty { PE_PARENT } else { PE_PRESENT };
            push(&mut out, at, until, flags);
            at = until;
        }
    }
    out
}

/// The pages that are in both of two sorted lists.
pub fn common(one: &[PageRun], other: &[PageRun]) -> Vec<PageRun> {
    let mut out = Vec::new();
    let mut others = Cursor::new(other);
    for run in one {
        let mut at = run.vaddr;
        while at < run.end() {
            let (is_common, until) = others.at(at);
            let until = until.min(run.end());
            if is_common {
                push(&mut out, at, until, PE_PRESENT);
            }
            at = until;
        }
    }
    out
}

/// The list with every page of the base round that it lacks added as unchanged: what a list without an alive set
/// would be.
pub fn with_base(listed: &[PageRun], covered: &[PageRun]) -> Vec<PageRun> {
    let mut merged: Vec<PageRun> = listed.to_vec();
    let mut known = Cursor::new(listed);
    for run in covered {
        let mut at = run.vaddr;
        while at < run.end() {
            let (is_known, until) = known.at(at);
            let until = until.min(run.end());
            if !is_known {
                push(&mut merged, at, until, PE_PARENT);
            }
            at = until;
        }
    }
    merged.sort_by_key(|run| run.vaddr);
    merged
}

/// Whether an address lies in sorted runs, asked for rising addresses.
struct Cursor<'a> {
    rest: &'a [PageRun],
}

impl<'a> Cursor<'a> {
    fn new(runs: &'a [PageRun]) -> Cursor<'a> {
        Cursor { rest: runs }
    }

    /// Whether `at` lies in a run, and up to where that answer holds.
    fn at(&mut self, at: u64) -> (bool, u64) {
        while let [first, rest @ ..] = self.rest {
            if first.end() > at {
                break;
            }
            self.rest = rest;
        }
        match self.rest.first() {
            Some(run) if run.vaddr <= at => (true, run.end()),
            Some(run) => (false, run.vaddr),
            None => (false, u64::MAX),
        }
    }
}

fn push(runs: &mut Vec<PageRun>, start: u64, end: u64, flags: u32) {
    let nr_pages = (end - start) / godwit_wire::plan::PAGE_SIZE;
    match runs.last_mut() {
        Some(last) if last.end() == start && last.flags == flags => last.nr_pages += nr_pages,
        _ => runs.push(PageRun { vaddr: start, nr_pages, flags }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use godwit_wire::plan::{PAGE_SIZE, PageOwner};
    use proptest::prelude::*;

    use super::*;

    /// Sorted runs over a small range of pages, some touching, and the pages in them.
    fn runs() -> impl Strategy<Value = (Vec<PageRun>, BTreeSet<u64>)> {
        proptest::collection::vec((0u64..4, 1u64..6), 0..12).prop_map(|pieces| {
            let (mut at, mut runs, mut pages) = (0, Vec::new(), BTreeSet::new());
            for (gap, nr_pages) in pieces {
                at += gap;
                runs.push(PageRun { vaddr: at * PAGE_SIZE, nr_pages, flags: PE_PRESENT });
                pages.extend(at..at + nr_pages);
                at += nr_pages;
            }
            (runs, pages)
        })
    }

    fn pages_of(runs: &[PageRun], flags: u32) -> BTreeSet<u64> {
        let with_flags = runs.iter().filter(|run| run.flags == flags);
        with_flags.flat_map(|run| run.vaddr / PAGE_SIZE..run.end() / PAGE_SIZE).collect()
    }

    proptest! {
        #[test]
        fn every_page_that_is_alive_is_listed_once_and_on_purpose(
            (alive, alive_pages) in runs(),
            (dirty, dirty_pages) in runs(),
            (covered, covered_pages) in runs(),
            has_base in any::<bool>(),
        ) {
            let base = PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs: covered };
            let listed = split(&alive, &dirty, has_base.then_some(&base));
            prop_assert!(listed.iter().all(|run| run.nr_pages > 0));
            prop_assert!(listed.windows(2).all(|pair| pair[0].end() <= pair[1].vaddr));
            let left: BTreeSet<u64> =
                alive_pages.iter().copied().filter(|page| {
                    has_base && covered_pages.contains(page) && !dirty_pages.contains(page)
                }).collect();
            prop_assert_eq!(&pages_of(&listed, PE_PARENT), &left);
            let sent: BTreeSet<u64> = alive_pages.difference(&left).copied().collect();
            prop_assert_eq!(pages_of(&listed, PE_PRESENT), sent);
        }

        #[test]
        fn what_two_lists_have_in_common((one, pages) in runs(), (other, others) in runs()) {
            let both: BTreeSet<u64> = pages.intersection(&others).copied().collect();
            let found = common(&one, &other);
            prop_assert!(found.windows(2).all(|pair| pair[0].end() < pair[1].vaddr));
            prop_assert_eq!(pages_of(&found, PE_PRESENT), both);
        }

        #[test]
        fn a_list_without_an_alive_set_has_the_whole_base((listed, pages) in runs(), (covered, covered_pages) in runs()) {
            let all = with_base(&listed, &covered);
            prop_assert!(all.windows(2).all(|pair| pair[0].end() <= pair[1].vaddr));
            prop_assert_eq!(&pages_of(&all, PE_PRESENT), &pages);
            let added: BTreeSet<u64> = covered_pages.difference(&pages).copied().collect();
            prop_assert_eq!(pages_of(&all, PE_PARENT), added);
        }
    }
}
