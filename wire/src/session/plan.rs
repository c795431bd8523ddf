//! A round's page lists, cut into bounded chunks and put together again under checks.

use std::collections::HashSet;

use crate::control::{PlanChunk, PlanEnd, PlanPart, RoundBegin, Run};
use crate::error::Malformed;
use crate::plan::{
    PAGE_SIZE, PE_LAZY, PE_PARENT, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan,
};

/// Runs in a round at most.
pub const RUNS_MAX: u64 = 1 << 22;
/// Page lists in a round at most.
pub const LISTS_MAX: u64 = 1 << 16;
/// Slots in a round at most: 64 TiB.
pub const SLOTS_MAX: u64 = 1 << 34;
/// Runs in one chunk at most; 24 encoded bytes each leave it well below the message limit.
const CHUNK_RUNS: usize = 8192;
/// Page lists in one chunk at most.
const CHUNK_PARTS: usize = 4096;

/// Cuts a plan.
pub(super) fn cut(plan: &RoundPlan) -> (RoundBegin, Vec<PlanChunk>, PlanEnd) {
    let begin = RoundBegin {
        round: plan.round,
        base_round: plan.base_round,
        is_final: plan.kind == RoundKind::Final,
        lists: plan.pages.len() as u32,
    };
    let mut chunks = Vec::new();
    let mut chunk = PlanChunk { round: plan.round, parts: Vec::new() };
    let mut room = CHUNK_RUNS;
    for list in &plan.pages {
        let mut rest = &list.runs[..];
        // A list without runs still is a list: it is sent as one empty part.
        loop {
            let (now, later) = rest.split_at(rest.len().min(room));
            chunk.parts.push(part(list, now));
            (rest, room) = (later, room - now.len());
            if room == 0 || chunk.parts.len() == CHUNK_PARTS {
                let next = PlanChunk { round: plan.round, parts: Vec::new() };
                chunks.push(std::mem::replace(&mut chunk, next));
                room = CHUNK_RUNS;
            }
            if rest.is_empty() {
                break;
            }
        }
    }
    if !chunk.parts.is_empty() {
        chunks.push(chunk);
    }
    let runs = plan.pages.iter().map(|list| list.runs.len() as u64).sum();
    let slots = plan.pages.iter().map(PagesPlan::slots).sum();
    (begin, chunks, PlanEnd { round: plan.round, runs, slots })
}

fn part(list: &PagesPlan, runs: &[PageRun]) -> PlanPart {
    let (task, shmem) = match list.owner {
        PageOwner::Task(pid) => (Some(pid), None),
        PageOwner::Shmem(id) => (None, Some(id)),
    };
    let runs =
        runs.iter().map(|run| Run { page: run.vaddr / PAGE_SIZE, nr_pages: run.nr_pages, flags: run.flags });
    PlanPart { task, shmem, pages_id: list.pages_id, runs: runs.collect() }
}

/// Puts a plan together.
#[derive(Debug)]
pub(super) struct PlanBuilder {
    plan: RoundPlan,
    lists: u64,
    runs: u64,
    slots: u64,
    owners: HashSet<PageOwner>,
    ids: HashSet<u32>,
}

impl PlanBuilder {
    pub(super) fn new(begin: &RoundBegin) -> Result<Self, Malformed> {
        bound("number of page lists", u64::from(begin.lists), LISTS_MAX)?;
        if begin.round == 0 || begin.base_round.is_some_and(|base| base == 0 || base >= begin.round) {
            return Err(contradiction(format!("round {} on base round {:?}", begin.round, begin.base_round)));
        }
        let kind = if begin.is_final { RoundKind::Final } else { RoundKind::Round };
        let plan = RoundPlan { round: begin.round, base_round: begin.base_round, kind, pages: Vec::new() };
        let lists = u64::from(begin.lists);
        Ok(PlanBuilder { plan, lists, runs: 0, slots: 0, owners: HashSet::new(), ids: HashSet::new() })
    }

    pub(super) fn add(&mut self, chunk: PlanChunk) -> Result<(), Malformed> {
        if chunk.round != self.plan.round {
            return Err(contradiction(format!(
                "page lists of round {} within those of round {}",
                chunk.round, self.plan.round
            )));
        }
        chunk.parts.into_iter().try_for_each(|part| self.add_part(part))
    }

    fn add_part(&mut self, part: PlanPart) -> Result<(), Malformed> {
        let owner = match (part.task, part.shmem) {
            (Some(pid), None) if pid > 0 => PageOwner::Task(pid),
            (None, Some(id)) => PageOwner::Shmem(id),
            (task, shmem) => {
                return Err(contradiction(format!("a page list of task {task:?}, segment {shmem:?}")));
            }
        };
        let pages_id = part.pages_id;
        let goes_on =
            self.plan.pages.last().is_some_and(|list| (list.owner, list.pages_id) == (owner, pages_id));
        if !goes_on {
            bound("number of page lists", self.plan.pages.len() as u64 + 1, self.lists)?;
            if pages_id == 0 || !self.owners.insert(owner) || !self.ids.insert(pages_id) {
                return Err(contradiction(format!(
                    "{owner:?} with pages-{pages_id}.img is not the only one, or is 0"
                )));
            }
            self.plan.pages.push(PagesPlan { owner, pages_id, runs: Vec::new() });
        }
        bound("number of runs", self.runs + part.runs.len() as u64, RUNS_MAX)?;
        self.runs += part.runs.len() as u64;
        part.runs.into_iter().try_for_each(|run| self.add_run(run))
    }

    fn add_run(&mut self, run: Run) -> Result<(), Malformed> {
        // Addresses end at 2^57 with five-level paging; segments are no longer than that.
        bound("page number of a run", run.page, 1 << 45)?;
        bound("pages of a run", run.nr_pages, 1 << 45)?;
        let flags_fit = matches!(run.flags, PE_PRESENT | PE_PARENT) || run.flags == PE_PRESENT | PE_LAZY;
        let run = PageRun { vaddr: run.page * PAGE_SIZE, nr_pages: run.nr_pages, flags: run.flags };
        let Some(list) = self.plan.pages.last_mut() else {
            return Err(contradiction("a run without a page list".to_owned()));
        };
        let sorted = list.runs.last().is_none_or(|last| last.end() <= run.vaddr);
        if run.nr_pages == 0 || !flags_fit || !sorted {
            return Err(contradiction(format!(
                "the run of {} pages at {:#x} (flags {:#x}) of {:?} is empty, overlaps the one before, or has \
                 flags that do not go together",
                run.nr_pages, run.vaddr, run.flags, list.owner
            )));
        }
        if run.is_present() {
            bound("number of slots", self.slots + run.nr_pages, SLOTS_MAX)?;
            self.slots += run.nr_pages;
        }
        list.runs.push(run);
        Ok(())
    }

    pub(super) fn finish(self, end: &PlanEnd) -> Result<RoundPlan, Malformed> {
        let found = (self.plan.round, self.plan.pages.len() as u64, self.runs, self.slots);
        let said = (end.round, self.lists, end.runs, end.slots);
        if found != said {
            return Err(contradiction(format!(
                "(round, lists, runs, slots) of the page lists are {found:?}, but {said:?} were announced"
            )));
        }
        Ok(self.plan)
    }
}

fn contradiction(what: String) -> Malformed {
    Malformed::Contradiction { what }
}

fn bound(what: &'static str, value: u64, bound: u64) -> Result<(), Malformed> {
    if value <= bound { Ok(()) } else { Err(Malformed::Bound { what, value, bound }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(count: u64) -> Vec<PageRun> {
        (0..count).map(|i| PageRun { vaddr: i * 3 * PAGE_SIZE, nr_pages: 2, flags: PE_PRESENT }).collect()
    }

    fn plan() -> RoundPlan {
        let list = |owner, pages_id, count| PagesPlan { owner, pages_id, runs: runs(count) };
        let pages = vec![
            list(PageOwner::Task(1), 1, 20_000),
            list(PageOwner::Task(2), 2, 0),
            list(PageOwner::Shmem(0), 3, 8192 * 2),
        ];
        RoundPlan { round: 7, base_round: Some(3), kind: RoundKind::Final, pages }
    }

    fn put_together(plan: &RoundPlan) -> Result<RoundPlan, Malformed> {
        let (begin, chunks, end) = cut(plan);
        let mut builder = PlanBuilder::new(&begin)?;
        for chunk in chunks {
            builder.add(chunk)?;
        }
        builder.finish(&end)
    }

    #[test]
    fn a_plan_survives_being_cut_and_every_chunk_is_bounded() {
        let plan = plan();
        assert_eq!(put_together(&plan).unwrap(), plan);
        use prost::Message;
        let longest = cut(&plan).1.iter().map(Message::encoded_len).max().unwrap();
        assert!(longest < crate::control::MESSAGE_LEN_MAX / 2, "{longest}");
        assert!(cut(&plan).1.len() > 3);
    }

    #[test]
    fn plans_that_lie_are_refused() {
        let mut overlap = plan();
        overlap.pages[0].runs[1].vaddr = PAGE_SIZE;
        let mut twice = plan();
        twice.pages[2].pages_id = 1;
        let mut both_flags = plan();
        both_flags.pages[0].runs[0].flags = PE_PRESENT | PE_PARENT;
        let mut base = plan();
        base.base_round = Some(7);
        for (plan, why) in [(overlap, "overlap"), (twice, "twice"), (both_flags, "flags"), (base, "base")] {
            assert!(matches!(put_together(&plan), Err(Malformed::Contradiction { .. })), "{why}");
        }
        let mut far = plan();
        far.pages[1].runs = vec![PageRun { vaddr: 0, nr_pages: SLOTS_MAX + 1, flags: PE_PRESENT }];
        assert!(matches!(put_together(&far), Err(Malformed::Bound { .. })));
    }
}
