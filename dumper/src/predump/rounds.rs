//! Pre-dump rounds: copies of what was written since the round before, while the process runs.

use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use godwit_page_server::store::sink::Sink;
use godwit_wire::fault;
use godwit_wire::plan::{PAGE_SIZE, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan};
use hdrhistogram::Histogram;
use nix::unistd::Pid;

use super::converge::{self, Next};
use super::held::{self, Held};
use super::hot::Hot;
use super::pages::{self, GOES_ON, PageSource, SentPages};
use super::segments::{self, Comparing, Segments};
use super::tracker::{Ask, Tracker, TrackerError, present};
use super::{plan, whole};
use crate::collect::images::{ImageSet, Origin};
use crate::error::DumpError;
use crate::interrupt;
use crate::options::Options;
use crate::pool::Pool;
use crate::prepare::inventory::Inventory;
use crate::prepare::root::Root;
use crate::procfs::maps::{self, Vma};
use crate::progress::Progress;
use crate::report::{DumpStats, RoundReport, SharedPages};
use crate::task::{shmem, vmas};

/// The number of the one task's pages file; the same in every round of a session.
pub const PAGES_ID: u32 = 1;

/// What the rounds leave for the last freeze.
pub struct Rounds {
    /// The tracker that knows what was written since; `None` when no round ran.
    pub tracker: Option<Box<dyn Tracker>>,
    /// The last acknowledged round and the pages that it covers, itself or through its parents.
    pub base: Option<Base>,
    /// What it holds of them, told by hashes, where those are wanted.
    pub held: Held,
    /// What the last acknowledged round holds of shared memory segments.
    pub segments: Segments,
    /// What the last acknowledged round holds of pages that are sent again and again.
    pub hot: Hot,
    /// What each round did.
    pub reports: Vec<RoundReport>,
    /// Time of page reads, in microseconds.
    pub read_latency_us: Histogram<u64>,
    /// Number that the next round gets.
    pub next_round: u32,
}

/// An acknowledged round to build on.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its number.
    pub round: u32,
    /// The pages that it covers.
    pub covered: PagesPlan,
}

/// Where rounds come from and go to.
pub struct RoundsOf<'a> {
    /// The process.
    pub root: &'a Root,
    /// Where the images go.
    pub sink: &'a dyn Sink,
    /// What the manifest says of it.
    pub origin: &'a Origin,
    /// The inventory that rounds get.
    pub inventory: &'a Inventory,
    /// What was asked for.
    pub options: &'a Options,
    /// Where pages are read into.
    pub pool: &'a Pool,
    /// First round number that is free.
    pub first_round: u32,
}

impl Rounds {
    /// The plan of the last set: the task's own pages. Those of shared memory segments are to be added.
    pub fn final_plan(&self, listed: &Listed) -> RoundPlan {
        let pages = vec![listed.plan.clone()];
        RoundPlan {
            round: self.next_round,
            base_round: self.base.as_ref().map(|base| base.round),
            kind: RoundKind::Final,
            pages,
        }
    }
}

impl RoundsOf<'_> {
    /// Runs rounds until another does not pay. `tracker` must be armed; it is not asked for anything before.
    ///
    /// # Errors
    /// When a round cannot be read or stored. The process runs on untouched.
    pub fn run(&self, tracker: Box<dyn Tracker>) -> Result<Rounds, DumpError> {
        let mut rounds = Rounds { tracker: Some(tracker), ..self.none() };
        loop {
            match converge::next(&rounds.reports, &self.options.limits) {
                Next::Round => self.one(&mut rounds)?,
                why => {
                    tracing::info!(rounds = rounds.reports.len(), ?why, "rounds end");
                    return Ok(rounds);
                }
            }
        }
    }

    /// No rounds: the last freeze takes everything.
    pub fn none(&self) -> Rounds {
        Rounds {
            tracker: None,
            base: None,
            held: Held::default(),
            segments: Segments::new(PAGES_ID + 1),
            hot: Hot::default(),
            reports: Vec::new(),
            read_latency_us: pages::latency_histogram(),
            next_round: self.first_round,
        }
    }

    fn one(&self, rounds: &mut Rounds) -> Result<(), DumpError> {
        interrupt::check()?;
        let begun = Instant::now();
        let pid = self.root.pid;
        let Some(tracker) = rounds.tracker.as_mut() else { return Ok(()) };
        let listed = list(self.root, tracker.as_mut(), rounds.base.as_ref(), &rounds.held, None)?;
        let hashed_slots = if tracker.wants_hashes() { held::PAGES_MAX } else { 0 };
        let readers = self.options.readers;
        let segments = shmem::collect_running(pid, &listed.vmas);
        let of_segments = rounds.segments.plans(&segments, false, &Comparing::patiently(readers))?;
        let round = rounds.next_round;
        let plan = RoundPlan {
            round,
            base_round: rounds.base.as_ref().map(|base| base.round),
            kind: RoundKind::Round,
            pages: std::iter::once(listed.plan.clone()).chain(of_segments).collect(),
        };
        rounds.next_round += 1;
        let slots = plan.pages.iter().map(PagesPlan::slots).sum();
        let progress = Progress::start(self.options.progress, round, slots);
        let plans = plan.pages.clone();
        let mut images = ImageSet::begin(self.sink, plan, self.origin)?;
        let (pool, stop, segments) = (self.pool, &GOES_ON, &segments[..]);
        let hot = rounds.hot.of_round(self.sink.takes(), rounds.base.as_ref());
        let source = PageSource { pid, live: true, readers, segments, hashed_slots, pool, hot, stop };
        let mut sent = source.send_all(images.plan(), &progress.watch(self.sink))?;
        sent.iter().for_each(|(pages_id, sent)| images.pages_sent(*pages_id, sent));
        images.put(self.inventory.round()?)?;
        interrupt::check()?;
        let (sealed, resent) = images.seal(&source)?;
        fault::point("mid.rounds.sealed")?;
        for again in resent {
            if let Some(sent) = sent.get_mut(&again.pages_id) {
                sent.sent_again(&again.extents, again.sent);
            }
        }
        rounds.segments.acknowledge(&plans, &sent);
        let (sent, shared) = pages::split_off(PAGES_ID, sent);
        rounds.read_latency_us += &sent.read_latency_us;
        rounds.read_latency_us += &shared.read_latency_us;
        let report = report(round, &listed, &sent, begun.elapsed(), sealed.fsync_us)
            .with_shared(SharedPages::of(&shared, segments::in_parent(&plans)));
        progress.finish(&report);
        if hashed_slots > 0 {
            rounds.held.acknowledge(&listed.plan, &sent);
        }
        let covered = covered(listed.plan, &sent);
        rounds.hot.acknowledge(round, &covered.runs);
        rounds.base = Some(Base { round, covered });
        rounds.reports.push(report);
        Ok(())
    }
}

/// The page list of a round or of the last set.
pub struct Listed {
    /// The list.
    pub plan: PagesPlan,
    /// The mappings it was made from, without their VmFlags: reading those walks all page tables (25 ms a GiB).
    pub vmas: Vec<Vma>,
}

/// Collects what was written since the base round and lists the next one.
///
/// The tracker is asked before the pages are listed: a page that is written in between and was not there before is
/// listed as new, one that was is in the next collection. Both are right. What is not tracked is listed only of a
/// stopped process, and whole: one that is stopped, and is to run on at `stopped_until`.
///
/// # Errors
/// When the mappings or the page tables cannot be read.
pub fn list(
    root: &Root,
    tracker: &mut dyn Tracker,
    base: Option<&Base>,
    held: &Held,
    stopped_until: Option<Instant>,
) -> Result<Listed, DumpError> {
    let is_stopped = stopped_until.is_some();
    let vmas = maps::read(root.pid)?;
    let dumpable = with_pages(root.pid, &vmas);
    let (tracked, whole) = whole::split(root.pid, dumpable.clone());
    let mut dirty = tracker.collect(&Ask { vmas: &tracked, held, is_stopped, until: stopped_until })?;
    fault::point("mid.rounds.collected")?;
    let mut listable = tracked;
    if is_stopped {
        dirty = whole::with_all_of(dirty, &whole);
        listable = dumpable;
    } else if base.is_none() {
        warn_of_whole(root.pid, &whole)?;
    }
    let alive = alive(root.pid, &listable)?;
    Ok(listed(root, plan::split(&alive, &dirty, base.map(|base| &base.covered)), vmas))
}

/// Says what the rounds leave for the freeze, which it makes longer.
fn warn_of_whole(pid: Pid, whole: &[Vma]) -> Result<(), TrackerError> {
    let pages: u64 = present::alive(pid, whole)?.iter().map(|run| run.nr_pages).sum();
    let mib = (pages * PAGE_SIZE) >> 20;
    if mib > 0 {
        tracing::warn!(%pid, mib, "huge pages of hugetlbfs are no part of the rounds: they are sent while it is stopped");
    }
    Ok(())
}

/// Lists the last set, of a process that is stopped and is to run on at `until`. Without an alive set (a test's wish) what the base round holds is
/// taken to be alive still.
///
/// # Errors
/// As [`list`].
pub fn list_last(
    root: &Root,
    rounds: &mut Rounds,
    alive_set: bool,
    until: Instant,
) -> Result<Listed, DumpError> {
    let (Some(tracker), base) = (rounds.tracker.as_mut(), rounds.base.as_ref()) else {
        let vmas = maps::read(root.pid)?;
        let alive = alive(root.pid, &with_pages(root.pid, &vmas))?;
        return Ok(listed(root, alive, vmas));
    };
    let mut last = list(root, tracker.as_mut(), base, &rounds.held, Some(until))?;
    if let (false, Some(base)) = (alive_set, base) {
        last.plan.runs = plan::with_base(&last.plan.runs, &base.covered.runs);
    }
    Ok(last)
}

fn listed(root: &Root, runs: Vec<PageRun>, vmas: Vec<Vma>) -> Listed {
    Listed { plan: PagesPlan { owner: PageOwner::Task(root.inside), pages_id: PAGES_ID, runs }, vmas }
}

/// What the process has, without pages behind the end of a mapping's file: to touch one ends the process, and it can
/// be neither read nor restored. A file that was cut takes changed pages with it, but where they were
/// write-protected the kernel leaves markers that look like swapped pages.
fn alive(pid: Pid, vmas: &[Vma]) -> Result<Vec<PageRun>, TrackerError> {
    let mut alive = present::alive(pid, vmas)?;
    for vma in vmas.iter().filter(|vma| vma.has_file()) {
        let first = alive.partition_point(|run| run.end() <= vma.start);
        if alive.get(first).is_none_or(|run| run.vaddr >= vma.end) {
            continue;
        }
        // A mapping that is gone by now is found to be gone when its pages are read.
        let Ok(file) = fs::metadata(vmas::map_file(pid, vma)) else { continue };
        if !file.is_file() {
            continue;
        }
        let len = file.len().saturating_sub(vma.pgoff).next_multiple_of(vma.page_size_bytes);
        let end = vma.start.saturating_add(len);
        if end < vma.end {
            cut_out(&mut alive, end..vma.end);
        }
    }
    Ok(alive)
}

/// Takes a range out of sorted runs.
fn cut_out(runs: &mut Vec<PageRun>, range: Range<u64>) {
    let first = runs.partition_point(|run| run.end() <= range.start);
    let last = runs.partition_point(|run| run.vaddr < range.end);
    let mut rest = Vec::new();
    for run in runs[first..last.max(first)].iter() {
        let pieces = [run.vaddr..run.end().min(range.start), run.vaddr.max(range.end)..run.end()];
        for piece in pieces.into_iter().filter(|piece| piece.start < piece.end) {
            let nr_pages = (piece.end - piece.start) / PAGE_SIZE;
            rest.push(PageRun { vaddr: piece.start, nr_pages, ..*run });
        }
    }
    runs.splice(first..last.max(first), rest);
}

/// The mappings whose pages belong into the list.
pub fn with_pages(pid: Pid, all: &[Vma]) -> Vec<Vma> {
    let mut ignored = crate::refusal::Findings::default();
    all.iter()
        .filter(|vma| vmas::classify(pid, vma, &mut ignored).is_some_and(|kind| kind.has_pages()))
        .cloned()
        .collect()
}

/// The pages that a sealed round covers: all it lists but those that were gone when they were read.
pub fn covered(mut plan: PagesPlan, sent: &SentPages) -> PagesPlan {
    if sent.gone.is_empty() {
        return plan;
    }
    let mut runs = Vec::with_capacity(plan.runs.len());
    for run in plan.runs {
        let mut rest = run;
        for &gone in sent.gone.range(run.vaddr..run.end()) {
            let before = (gone - rest.vaddr) / PAGE_SIZE;
            if before > 0 {
                runs.push(PageRun { nr_pages: before, ..rest });
            }
            rest.vaddr = gone + PAGE_SIZE;
            rest.nr_pages -= before + 1;
        }
        if rest.nr_pages > 0 {
            runs.push(rest);
        }
    }
    plan.runs = runs;
    plan
}

/// What a round or the last set did.
pub fn report(round: u32, listed: &Listed, sent: &SentPages, took: Duration, fsync_us: u64) -> RoundReport {
    let all: u64 = listed.plan.runs.iter().map(|run| run.nr_pages).sum();
    RoundReport {
        round,
        pages_scanned: all,
        pages_in_parent: all - listed.plan.slots(),
        pages_data: sent.data_pages,
        pages_zero: sent.zero_pages,
        pages_same: sent.same_pages,
        pages_delta: sent.delta_pages,
        pages_gone: sent.gone.len() as u64,
        duration_us: took.as_micros() as u64,
        fsync_us,
    }
}

/// Counts the pages of a set into `stats`.
pub fn count(stats: DumpStats, listed: &Listed, sent: &SentPages) -> DumpStats {
    let all: u64 = listed.plan.runs.iter().map(|run| run.nr_pages).sum();
    DumpStats {
        pages_scanned: all,
        pages_skipped_parent: all - listed.plan.slots(),
        pages_written: sent.pages(),
        ..stats
    }
}

#[cfg(test)]
mod tests {
    use godwit_wire::plan::PE_PRESENT;

    use super::*;

    #[test]
    fn a_range_is_cut_out_of_the_runs_that_it_meets() {
        let run = |page: u64, nr_pages| PageRun { vaddr: page * PAGE_SIZE, nr_pages, flags: PE_PRESENT };
        let cut = |from: u64, to: u64| {
            let mut runs = vec![run(1, 3), run(6, 4), run(20, 1)];
            cut_out(&mut runs, from * PAGE_SIZE..to * PAGE_SIZE);
            runs
        };
        assert_eq!(cut(7, 9), [run(1, 3), run(6, 1), run(9, 1), run(20, 1)]);
        assert_eq!(cut(2, 7), [run(1, 1), run(7, 3), run(20, 1)]);
        assert_eq!(cut(1, 10), [run(20, 1)]);
        assert_eq!(cut(4, 6), [run(1, 3), run(6, 4), run(20, 1)]);
        assert_eq!(cut(0, 30), []);
    }
}
