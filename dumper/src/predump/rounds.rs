//! Pre-dump rounds: copies of what was written since the round before, while the processes run.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_page_server::store::sink::{Sink, Takes};
use godwit_wire::fault;
use godwit_wire::plan::{PAGE_SIZE, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan};
use hdrhistogram::Histogram;
use nix::unistd::Pid;

use super::converge::{self, Next};
use super::held::{self, Held};
use super::hot::{self, Hot};
use super::pages::{self, Counts, GOES_ON, Owners, PageSource, Sent, SentPages};
use super::segments::{self, Comparing, PagesIds, Segments};
use super::tracker::{Ask, Tracker, TrackerError, Trackers, present};
use super::{plan, whole};
use crate::collect::images::{ImageSet, Origin};
use crate::collect::tree::{Task, Tree};
use crate::error::DumpError;
use crate::interrupt;
use crate::options::Options;
use crate::parallel;
use crate::pool::Pool;
use crate::prepare::inventory::Inventory;
use crate::prepare::leftovers::Claims;
use crate::prepare::root::Root;
use crate::procfs::maps::{self, Vma};
use crate::progress::Progress;
use crate::report::{DumpStats, RoundReport, SharedPages};
use crate::task::{shmem, vmas};

/// What the rounds leave for the last freeze.
pub struct Rounds {
    /// What is known of each process, as the dumper sees its pid; of none when no round ran.
    tasks: BTreeMap<Pid, TaskRounds>,
    /// The last acknowledged round.
    base_round: Option<u32>,
    /// What that holds of shared memory segments.
    segments: Segments,
    /// Numbers of pages files.
    pages_ids: PagesIds,
    /// What each round did.
    pub reports: Vec<RoundReport>,
    /// Time of page reads, in microseconds.
    pub read_latency_us: Histogram<u64>,
    /// Number that the next round gets.
    pub next_round: u32,
    /// What is left of the bounds for hot pages.
    hot_left: Arc<hot::Left>,
    trackers: Trackers,
}

/// What rounds know of one process.
struct TaskRounds {
    task: Task,
    /// The number of its pages file.
    pages_id: u32,
    /// Knows what was written since the last round.
    tracker: Box<dyn Tracker>,
    /// The last acknowledged round and the pages that it covers, itself or through its parents.
    base: Option<Base>,
    /// What it holds of them, told by hashes, where those are wanted.
    held: Held,
    /// What it holds of pages that are sent again and again.
    hot: Hot,
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
    /// The root of the tree.
    pub root: &'a Root,
    /// Where the images go.
    pub sink: &'a dyn Sink,
    /// What the manifest says of it.
    pub origin: &'a Origin,
    /// The inventory that rounds get.
    pub inventory: &'a Inventory,
    /// What was asked for.
    pub options: &'a Options,
    /// The processes that are this dumper's alone.
    pub claims: &'a Claims,
    /// Where pages are read into.
    pub pool: &'a Pool,
    /// First round number that is free.
    pub first_round: u32,
}

impl Rounds {
    /// The plan of the last set: the processes' own pages. Those of shared memory segments are to be added.
    pub fn final_plan<'a>(&self, listed: impl Iterator<Item = &'a Listed>) -> RoundPlan {
        RoundPlan {
            round: self.next_round,
            base_round: self.base_round,
            kind: RoundKind::Final,
            pages: listed.map(|listed| listed.plan.clone()).collect(),
        }
    }

    /// The root's tracker, if rounds ran.
    pub fn tracker(&self, root: Pid) -> Option<&'static str> {
        self.tasks.get(&root).map(|of| of.tracker.name())
    }

    /// What is known of hot pages, by pages file, for a set that is sent now; and apart from that, what is known of
    /// segments, and the numbers of pages files.
    pub fn for_set(&mut self, takes: Takes) -> (BTreeMap<u32, hot::View<'_>>, &mut Segments, &mut PagesIds) {
        let mut views = BTreeMap::new();
        for of in self.tasks.values_mut() {
            if let Some(view) = of.hot.of_round(takes, of.base.as_ref()) {
                views.insert(of.pages_id, view);
            }
        }
        (views, &mut self.segments, &mut self.pages_ids)
    }

    /// Arms a tracker on every process of the tree that has none, and forgets those that are gone.
    fn adopt(&mut self, root: Pid, claims: &Claims) -> Result<(), DumpError> {
        let tree = Tree::walk(root)?;
        let mut known = std::mem::take(&mut self.tasks);
        let many = tree.tasks.len() as u64;
        for task in tree.tasks {
            let pid = task.pid;
            if let Some(of) = known.remove(&pid).filter(|of| of.task.is(&task)) {
                self.tasks.insert(pid, of);
                continue;
            }
            claims.more(&task)?;
            let tracker = match self.trackers.attach(pid) {
                Ok(tracker) => tracker,
                Err(_) if pid != root && !task.lives() => continue,
                Err(error) => return Err(error.into()),
            };
            let of = TaskRounds {
                task,
                pages_id: self.pages_ids.give(),
                tracker,
                base: None,
                // All tables together stay within the bound.
                held: Held::bounded(held::PAGES_MAX / many),
                hot: Hot::within(Arc::clone(&self.hot_left)),
            };
            self.tasks.insert(pid, of);
        }
        Ok(())
    }
}

impl RoundsOf<'_> {
    /// Runs rounds until another does not pay.
    ///
    /// # Errors
    /// When a round cannot be read or stored. The processes run on untouched.
    pub fn run(&self) -> Result<Rounds, DumpError> {
        let mut rounds = self.none();
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
            tasks: BTreeMap::new(),
            base_round: None,
            segments: Segments::default(),
            pages_ids: PagesIds::default(),
            reports: Vec::new(),
            read_latency_us: pages::latency_histogram(),
            next_round: self.first_round,
            hot_left: Arc::default(),
            trackers: Trackers::new(self.options.tracker, self.options.readers),
        }
    }

    fn one(&self, rounds: &mut Rounds) -> Result<(), DumpError> {
        interrupt::check()?;
        let begun = Instant::now();
        rounds.adopt(self.root.pid, self.claims)?;
        let listed = self.list_all(rounds)?;
        let hashed_slots =
            if rounds.tasks.values().any(|of| of.tracker.wants_hashes()) { held::PAGES_MAX } else { 0 };
        let readers = self.options.readers;
        let segments = shmem::collect_running(listed.iter().map(|(pid, listed)| (*pid, &listed.vmas[..])));
        let comparing = Comparing::patiently(readers);
        let of_segments = rounds.segments.plans(&segments, false, &mut rounds.pages_ids, &comparing)?;
        let round = rounds.next_round;
        let plan = RoundPlan {
            round,
            base_round: rounds.base_round,
            kind: RoundKind::Round,
            pages: listed.values().map(|listed| listed.plan.clone()).chain(of_segments).collect(),
        };
        rounds.next_round += 1;
        let slots = plan.pages.iter().map(PagesPlan::slots).sum();
        let progress = Progress::start(self.options.progress, round, slots);
        let plans = plan.pages.clone();
        let owners = rounds.tasks.values().map(|of| (of.task.inside, of.task.pid)).collect();
        let mut images = ImageSet::begin(self.sink, plan, self.origin)?;
        let (sealed, mut sent, resent) = {
            let (hot, ..) = &rounds.for_set(self.sink.takes());
            let (owners, segments) = (Owners::Tree(&owners), &segments[..]);
            let (pool, stop, live) = (self.pool, &GOES_ON, true);
            let source = PageSource { owners, live, readers, segments, hashed_slots, pool, hot, stop };
            let sent = source.send_all(images.plan(), &progress.watch(self.sink))?;
            sent.pages.iter().for_each(|(pages_id, sent)| images.pages_sent(*pages_id, sent));
            self.root.check_alive()?;
            images.put(self.inventory.round()?)?;
            interrupt::check()?;
            let (sealed, resent) = images.seal(&source)?;
            (sealed, sent, resent)
        };
        fault::point("mid.rounds.sealed")?;
        for again in resent {
            if let Some(sent) = sent.pages.get_mut(&again.pages_id) {
                sent.sent_again(&again.extents, again.sent);
            }
        }
        rounds.segments.acknowledge(&plans, &sent.pages);
        rounds.read_latency_us += &sent.read_latency_us;
        let report = report(round, listed.values(), &sent, begun.elapsed(), sealed.fsync_us)
            .with_shared(shared(&plans, &sent));
        progress.finish(&report);
        for (pid, listed) in listed {
            let of = rounds.tasks.get_mut(&pid);
            let (Some(of), Some(sent)) = (of, sent.pages.get(&listed.plan.pages_id)) else { continue };
            if of.tracker.wants_hashes() {
                of.held.acknowledge(&listed.plan, sent);
            }
            let covered = covered(listed.plan, sent);
            of.hot.acknowledge(round, &covered.runs);
            of.base = Some(Base { round, covered });
        }
        rounds.base_round = Some(round);
        rounds.reports.push(report);
        Ok(())
    }

    /// The page lists of all processes. One that has ended meanwhile is forgotten.
    fn list_all(&self, rounds: &mut Rounds) -> Result<BTreeMap<Pid, Listed>, DumpError> {
        let mut listed = BTreeMap::new();
        let mut gone = Vec::new();
        for (pid, of) in &mut rounds.tasks {
            match list(&of.task, of.pages_id, of.tracker.as_mut(), of.base.as_ref(), &of.held, None) {
                Ok(list) => drop(listed.insert(*pid, list)),
                Err(_) if *pid != self.root.pid && !of.task.lives() => gone.push(*pid),
                Err(error) => return Err(error),
            }
        }
        gone.iter().for_each(|pid| drop(rounds.tasks.remove(pid)));
        Ok(listed)
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
    task: &Task,
    pages_id: u32,
    tracker: &mut dyn Tracker,
    base: Option<&Base>,
    held: &Held,
    stopped_until: Option<Instant>,
) -> Result<Listed, DumpError> {
    let is_stopped = stopped_until.is_some();
    let pid = task.pid;
    let vmas = maps::read(pid)?;
    let dumpable = with_pages(pid, &vmas);
    let (tracked, whole) = whole::split(pid, dumpable.clone());
    let mut dirty = tracker.collect(&Ask { vmas: &tracked, held, is_stopped, until: stopped_until })?;
    fault::point("mid.rounds.collected")?;
    let mut listable = tracked;
    if is_stopped {
        dirty = whole::with_all_of(dirty, &whole);
        listable = dumpable;
    } else if base.is_none() {
        warn_of_whole(pid, &whole)?;
    }
    let alive = alive(pid, &listable)?;
    Ok(listed(task, pages_id, plan::split(&alive, &dirty, base.map(|base| &base.covered)), vmas))
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

/// Lists the last sets of processes that are stopped and are to run on at `until`: whole, of one that no round knows.
/// Without an alive set (a test's wish) what the base round holds is taken to be alive still.
///
/// # Errors
/// As [`list`].
pub fn list_last(
    tasks: &[Task],
    rounds: &mut Rounds,
    alive_set: bool,
    until: Instant,
) -> Result<Vec<Listed>, DumpError> {
    let Rounds { tasks: known, pages_ids, base_round, .. } = rounds;
    let mut known: BTreeMap<Pid, &mut TaskRounds> = known.iter_mut().map(|(pid, of)| (*pid, of)).collect();
    let last = tasks.iter().map(|task| {
        let of = known.remove(&task.pid).filter(|of| of.task.is(task));
        let pages_id = of.as_ref().map_or_else(|| pages_ids.give(), |of| of.pages_id);
        (task, of, pages_id)
    });
    parallel::each(last, |(task, of, pages_id)| {
        let Some(of) = of else {
            let vmas = maps::read(task.pid)?;
            let alive = alive(task.pid, &with_pages(task.pid, &vmas))?;
            return Ok(listed(task, pages_id, alive, vmas));
        };
        let base = of.base.as_ref().filter(|base| Some(base.round) == *base_round);
        let mut last = list(task, pages_id, of.tracker.as_mut(), base, &of.held, Some(until))?;
        if let (false, Some(base)) = (alive_set, base) {
            last.plan.runs = plan::with_base(&last.plan.runs, &base.covered.runs);
        }
        Ok(last)
    })
}

fn listed(task: &Task, pages_id: u32, runs: Vec<PageRun>, vmas: Vec<Vma>) -> Listed {
    Listed { plan: PagesPlan { owner: PageOwner::Task(task.inside), pages_id, runs }, vmas }
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

/// Pages of the processes themselves that were looked at, and of them those that are left to the base round.
fn scanned<'a>(listed: impl Iterator<Item = &'a Listed>) -> (u64, u64) {
    listed.fold((0, 0), |(all, left), listed| {
        let pages: u64 = listed.plan.runs.iter().map(|run| run.nr_pages).sum();
        (all + pages, left + pages - listed.plan.slots())
    })
}

/// What was sent of the processes' own pages.
fn sent_of<'a>(listed: impl Iterator<Item = &'a Listed>, sent: &Sent) -> Counts {
    Counts::of(listed.filter_map(|listed| sent.pages.get(&listed.plan.pages_id)))
}

/// What a round or the last set did with the processes' own pages.
pub fn report<'a>(
    round: u32,
    listed: impl Iterator<Item = &'a Listed> + Clone,
    sent: &Sent,
    took: Duration,
    fsync_us: u64,
) -> RoundReport {
    let ((all, left), sent) = (scanned(listed.clone()), sent_of(listed, sent));
    RoundReport {
        round,
        pages_scanned: all,
        pages_in_parent: left,
        pages_data: sent.data,
        pages_zero: sent.zero,
        pages_same: sent.same,
        pages_delta: sent.delta,
        pages_copied: sent.copied,
        pages_gone: sent.gone,
        duration_us: took.as_micros() as u64,
        fsync_us,
    }
}

/// What a set did with the pages of shared memory segments; `plans` are all its lists.
pub fn shared(plans: &[PagesPlan], sent: &Sent) -> SharedPages {
    let of_segments = plans.iter().filter(|plan| matches!(plan.owner, PageOwner::Shmem(_)));
    let counts = Counts::of(of_segments.filter_map(|plan| sent.pages.get(&plan.pages_id)));
    SharedPages::of(counts, segments::in_parent(plans))
}

/// Counts the pages of a set into `stats`.
pub fn count<'a>(
    stats: DumpStats,
    listed: impl Iterator<Item = &'a Listed> + Clone,
    sent: &Sent,
) -> DumpStats {
    let ((all, left), sent) = (scanned(listed.clone()), sent_of(listed, sent));
    DumpStats { pages_scanned: all, pages_skipped_parent: left, pages_written: sent.sent(), ..stats }
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
