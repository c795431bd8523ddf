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
