//! The page path: reads the pages of a round's list out of the process and hands them to the sink.
//!
//! Readers (`reader`) share the list extent by extent.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use godwit_page_server::store::sink::{Sink, SinkError};
use godwit_wire::fault;
use godwit_wire::plan::{EXTENT_SLOTS, PageRun, PagesPlan, RoundPlan};
use nix::unistd::Pid;

use super::hot;
use super::reader::Reader;
use super::sent::Tally;
use crate::interrupt::{self, Interrupted};
use crate::pool::Pool;
use crate::task::shmem::Segment;

pub use super::sent::{PageHash, SentPages, latency_histogram, page_hash, split_off};

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

/// Where and how pages are read.
#[derive(Clone, Copy, Debug)]
pub struct PageSource<'a> {
    /// The process, as the dumper sees it.
    pub pid: Pid,
    /// The process runs: a listed page may be gone by the time it is read.
    pub live: bool,
    /// Reader threads, at least 1.
    pub readers: usize,
    /// The shared memory segments whose lists may be sent.
    pub segments: &'a [Segment],
    /// Pages of the task that the hash of each is wanted of: those that fill the first so many slots.
    pub hashed_slots: u64,
    /// Where pages are read into.
    pub pool: &'a Pool,
    /// What is known of pages that are sent again, if there are rounds.
    pub hot: Option<hot::View<'a>>,
    /// Once it is set, no more extents are read: the process may be stopped, and waits for what nobody wants any more.
    pub stop: &'a AtomicBool,
}

/// For those who never give up: see [`PageSource::stop`].
pub static GOES_ON: AtomicBool = AtomicBool::new(false);

impl PageSource<'_> {
    /// Sends every present page of `plan`.
    ///
    /// # Errors
    /// See [`PagesError`]; the round is then to be abandoned.
    pub fn send(&self, plan: &PagesPlan, round: u32, sink: &dyn Sink) -> Result<SentPages, PagesError> {
        let all: Vec<u64> = (0..plan.slots().div_ceil(EXTENT_SLOTS)).collect();
        self.send_these(plan, round, sink, &all)
    }

    /// Sends every present page of all lists of a round; answers by pages file.
    ///
    /// # Errors
    /// As [`PageSource::send`].
    pub fn send_all(
        &self,
        plan: &RoundPlan,
        sink: &dyn Sink,
    ) -> Result<BTreeMap<u32, SentPages>, PagesError> {
        plan.pages.iter().map(|pages| Ok((pages.pages_id, self.send(pages, plan.round, sink)?))).collect()
    }

    /// Sends only the named extents again (all of each), after the other side asked for them.
    ///
    /// # Errors
    /// As [`PageSource::send`].
    pub fn send_extents(
        &self,
        plan: &PagesPlan,
        round: u32,
        sink: &dyn Sink,
        extents: &[u64],
    ) -> Result<SentPages, PagesError> {
        // It may be asked for because what is known of its pages does not hold at the other side.
        let hot = self.hot.map(hot::View::only_noted);
        PageSource { hot, ..*self }.send_these(plan, round, sink, extents)
    }

    fn send_these(
        &self,
        plan: &PagesPlan,
        round: u32,
        sink: &dyn Sink,
        extents: &[u64],
    ) -> Result<SentPages, PagesError> {
        let placed: Vec<(PageRun, Range<u64>)> = plan.placed().collect();
        let next = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let total = Mutex::new(Tally::new(extents.len()));
        let readers = self.readers.clamp(1, extents.len().max(1));
        std::thread::scope(|scope| {
            let work: Vec<_> = (0..readers)
                .map(|_| {
                    scope.spawn(|| {
                        let mut reader = Reader::new(*self, plan, &placed, round, sink);
                        let mut tally = Tally::new(extents.len());
                        let _stop = StopOthers(&failed);
                        while !failed.load(Ordering::Relaxed) {
                            let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                            let Some(&extent) = extents.get(index) else { break };
                            let read = self.safe_point().and_then(|()| reader.extent(extent, &mut tally));
                            match read {
                                Ok(hashes) => tally.hashes[index] = Some(hashes),
                                Err(error) => {
                                    failed.store(true, Ordering::Relaxed);
                                    return Err(error);
                                }
                            }
                        }
                        total.lock().unwrap_or_else(|poison| poison.into_inner()).add(tally);
                        Ok(())
                    })
                })
                .collect();
            work.into_iter().try_for_each(|reader| match reader.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        let total = total.into_inner().unwrap_or_else(|poison| poison.into_inner());
        Ok(total.finish())
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
