//! The page path: reads the pages of a round's lists out of the processes and hands them to the sink.
//!
//! Readers (`reader`) share the lists extent by extent; those of processes that may have pages in common, row by row
//! (`family`).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use godwit_page_server::store::sink::{Sink, SinkError};
use godwit_wire::fault;
use godwit_wire::plan::{EXTENT_SLOTS, PageOwner, PageRun, PagesPlan, RoundPlan};
use hdrhistogram::Histogram;
use nix::unistd::Pid;

use super::family::{self, Family, Place};
use super::hot;
use super::reader::Reader;
use super::sent::Tally;
use crate::interrupt::{self, Interrupted};
use crate::pool::Pool;
use crate::task::shmem::Segment;

pub use super::sent::{Counts, PageHash, Sent, SentPages, latency_histogram, page_hash};

/// Why pages could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// A listed page cannot be read although the process is stopped.
    #[error("process {pid}: the page at {vaddr:#x} is listed and cannot be read; is it a device's memory?")]
    Unreadable {
        /// The process.
        pid: Pid,
        /// Address of the page.
        vaddr: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The process ended while its pages were read.
    #[error("process {pid} ended while its pages were read")]
    Died {
        /// The process.
        pid: Pid,
    },
    /// A list of pages is that of a process nobody knows.
    #[error("pages are listed of a process that is {inside} inside, and there is none in the tree")]
    Stranger {
        /// Its pid in its own pid namespace.
        inside: u32,
    },
    /// A page of a shared memory segment cannot be read.
    #[error("shared memory {id} of process {pid}: the page at offset {offset:#x} cannot be read")]
    Segment {
        /// The process.
        pid: Pid,
        /// The segment, by its inode number.
        id: u64,
        /// Offset of the page.
        offset: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The receiving side refused or went away.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The caller wants no more of it.
    #[error("the pages are not sent, since the rest failed")]
    GivenUp,
    /// The user wants it to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Made to fail by a test.
    #[error(transparent)]
    Injected(#[from] godwit_wire::fault::Injected),
}

/// Whose memory the lists of tasks are.
#[derive(Clone, Copy, Debug)]
pub enum Owners<'a> {
    /// All of one process.
    One(Pid),
    /// Each of the process with this pid inside.
    Tree(&'a BTreeMap<u32, Pid>),
}

impl Owners<'_> {
    /// The process with a pid inside, as the dumper sees it.
    fn pid(&self, inside: u32) -> Option<Pid> {
        match self {
            Owners::One(pid) => Some(*pid),
            Owners::Tree(tree) => tree.get(&inside).copied(),
        }
    }
}

/// Where and how pages are read.
#[derive(Clone, Copy, Debug)]
pub struct PageSource<'a> {
    /// The processes.
    pub owners: Owners<'a>,
    /// The processes run: a listed page may be gone by the time it is read, or the process.
    pub live: bool,
    /// Reader threads, at least 1.
    pub readers: usize,
    /// The shared memory segments whose lists may be sent.
    pub segments: &'a [Segment],
    /// Pages of a task that the hash of each is wanted of: those that fill the first so many slots.
    pub hashed_slots: u64,
    /// Where pages are read into.
    pub pool: &'a Pool,
    /// What is known of pages that are sent again, by pages file.
    pub hot: &'a BTreeMap<u32, hot::View<'a>>,
    /// Once it is set, no more extents are read: the processes may be stopped, and wait for what nobody wants any more.
    pub stop: &'a AtomicBool,
}

/// For those who never give up: see [`PageSource::stop`].
pub static GOES_ON: AtomicBool = AtomicBool::new(false);
/// For those who know nothing of pages that were sent before: see [`PageSource::hot`].
pub static NONE_HOT: BTreeMap<u32, hot::View<'static>> = BTreeMap::new();

impl PageSource<'_> {
    /// Sends every present page of all lists of a round.
    ///
    /// # Errors
    /// See [`PagesError`]; the round is then to be abandoned.
    pub fn send_all(&self, plan: &RoundPlan, sink: &dyn Sink) -> Result<Sent, PagesError> {
        let hot = |plan: &PagesPlan| self.hot.get(&plan.pages_id).copied();
        let all = |plan: &PagesPlan| (0..plan.slots().div_ceil(EXTENT_SLOTS)).collect();
        let works = plan.pages.iter().map(|plan| self.work(plan, all(plan), hot(plan)));
        let works: Vec<Work<'_>> = works.collect::<Result<_, _>>()?;
        let (tallies, read_latency_us) = self.run(&works, plan.round, sink)?;
        let sent = works.iter().zip(tallies).map(|(work, tally)| (work.plan.pages_id, tally.finish()));
        Ok(Sent { pages: sent.collect(), read_latency_us })
    }

    /// Sends only the named extents again (all of each), after the other side asked for them.
    ///
    /// # Errors
    /// As [`PageSource::send_all`].
    pub fn send_extents(
        &self,
        plan: &PagesPlan,
        round: u32,
        sink: &dyn Sink,
        extents: &[u64],
    ) -> Result<SentPages, PagesError> {
        // It may be asked for because what is known of its pages does not hold at the other side.
        let hot = self.hot.get(&plan.pages_id).map(|view| view.only_noted());
        let work = self.work(plan, extents.to_vec(), hot)?;
        let (mut tallies, _) = self.run(&[work], round, sink)?;
        Ok(tallies.pop().unwrap_or_default().finish())
    }

    fn work<'p>(
        &self,
        plan: &'p PagesPlan,
        extents: Vec<u64>,
        hot: Option<hot::View<'p>>,
    ) -> Result<Work<'p>, PagesError> {
        let pid = match plan.owner {
            PageOwner::Task(inside) => self.owners.pid(inside).ok_or(PagesError::Stranger { inside })?,
            // Read from the file itself.
            PageOwner::Shmem(_) => Pid::this(),
        };
        Ok(Work::new(plan, pid, extents, hot))
    }

    /// Reads and hands over extents of several lists; gives what became of each list, and the times of reads.
    fn run(
        &self,
        works: &[Work<'_>],
        round: u32,
        sink: &dyn Sink,
    ) -> Result<(Vec<Tally>, Histogram<u64>), PagesError> {
        let readers = self.readers.max(1);
        let kept_max = if sink.takes().spread { family::kept_max(self.pool, readers) } else { 0 };
        let (families, alone) = family::split(works, kept_max, readers);
        // Extents of all lists in one row, so that a tree of small processes keeps all readers busy too.
        let of_one = |of: usize| (0..works[of].extents.len()).map(move |at| Unit::Extent { of, at });
        let units: Vec<Unit> =
            families.into_iter().map(Unit::Family).chain(alone.into_iter().flat_map(of_one)).collect();
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let tallies: Vec<Tally> = works.iter().map(|_| Tally::default()).collect();
        let total = Mutex::new((tallies, latency_histogram()));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..readers.min(units.len().max(1)))
                .map(|_| {
                    scope.spawn(|| {
                        let _stop = StopOthers(&failed);
                        let taken = || units.get(next.fetch_add(1, Ordering::Relaxed));
                        let mut hand = Hand::new(*self, works, round, sink, kept_max);
                        let done = hand.read(taken, &failed);
                        done.inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                        let mut total = total.lock().unwrap_or_else(|poison| poison.into_inner());
                        hand.done.into_iter().for_each(|(of, tally)| total.0[of].add(tally));
                        total.1 += hand.latency_us;
                        Ok::<_, PagesError>(())
                    })
                })
                .collect();
            readers.into_iter().try_for_each(|reader| match reader.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(total.into_inner().unwrap_or_else(|poison| poison.into_inner()))
    }
}

/// What a reader takes at a time.
enum Unit {
    /// One extent of a list.
    Extent { of: usize, at: usize },
    /// Extents of lists that may have pages in common.
    Family(Vec<Place>),
}

/// One reader thread, and what became of what it read.
struct Hand<'a> {
    source: PageSource<'a>,
    works: &'a [Work<'a>],
    round: u32,
    sink: &'a dyn Sink,
    kept_max: usize,
    done: BTreeMap<usize, Tally>,
    latency_us: Histogram<u64>,
}

impl<'a> Hand<'a> {
    fn new(
        source: PageSource<'a>,
        works: &'a [Work<'a>],
        round: u32,
        sink: &'a dyn Sink,
        kept_max: usize,
    ) -> Self {
        let (done, latency_us) = (BTreeMap::new(), latency_histogram());
        Hand { source, works, round, sink, kept_max, done, latency_us }
    }

    /// Reads units until there are no more, or another reader failed.
    fn read<'u>(
        &mut self,
        mut taken: impl FnMut() -> Option<&'u Unit>,
        failed: &AtomicBool,
    ) -> Result<(), PagesError> {
        let mut reader: Option<(usize, Reader<'a>)> = None;
        while !failed.load(Ordering::Relaxed) {
            match taken() {
                None => break,
                Some(Unit::Family(places)) => self.family(places, failed)?,
                Some(&Unit::Extent { of, at }) => {
                    self.source.safe_point()?;
                    let work = &self.works[of];
                    let fresh = || (of, Reader::new(self.source, work, self.round, self.sink));
                    if reader.as_ref().is_none_or(|(last, _)| *last != of) {
                        reader = Some(fresh());
                    }
                    let (_, reader) = reader.get_or_insert_with(fresh);
                    let tally = self.done.entry(of).or_default();
                    let hashes = reader.extent(work.extents[at], tally, &mut self.latency_us)?;
                    tally.hashes.push((at, hashes));
                }
            }
        }
        Ok(())
    }

    fn family(&mut self, places: &[Place], failed: &AtomicBool) -> Result<(), PagesError> {
        let (source, works) = (self.source, self.works);
        let mut family = Family::new(source, works, self.round, self.sink, self.kept_max);
        for place in places {
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            source.safe_point()?;
            family.extent(*place, &mut self.done, &mut self.latency_us)?;
        }
        family.end(&mut self.done)
    }
}

/// A list, and which of its extents are to be sent.
pub(super) struct Work<'p> {
    pub(super) plan: &'p PagesPlan,
    /// The process whose memory it is, of a task's list.
    pub(super) pid: Pid,
    pub(super) placed: Vec<(PageRun, Range<u64>)>,
    pub(super) extents: Vec<u64>,
    pub(super) hot: Option<hot::View<'p>>,
}

impl<'p> Work<'p> {
    pub(super) fn new(plan: &'p PagesPlan, pid: Pid, extents: Vec<u64>, hot: Option<hot::View<'p>>) -> Self {
        Work { plan, pid, placed: plan.placed().collect(), extents, hot }
    }
}

impl PageSource<'_> {
    /// Between two extents everything can be given up.
    fn safe_point(&self) -> Result<(), PagesError> {
        self.goes_on()?;
        Ok(fault::point("mid.pages.extent")?)
    }

    /// Whether anybody still wants the pages.
    pub(super) fn goes_on(&self) -> Result<(), PagesError> {
        interrupt::check()?;
        if self.stop.load(Ordering::Relaxed) { Err(PagesError::GivenUp) } else { Ok(()) }
    }
}

/// Has the readers stop when the thread that holds it panics: the process may be stopped, and waits for them all.
pub struct StopOthers<'a>(pub &'a AtomicBool);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
