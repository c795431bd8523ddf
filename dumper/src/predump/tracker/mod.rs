//! Dirty trackers: what a running process wrote since it was last asked.

pub mod frames;
pub mod present;
pub mod soft_dirty;
pub mod uffd_wp;

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::commands::chain;
use crate::freeze::seize::FreezeError;
use crate::procfs::maps::Vma;
use crate::remote::RemoteError;

/// Which tracker is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// `uffd-wp` where it works, else `soft-dirty`.
    ///
    /// Where both do, `uffd-wp` is the better one for a process that shall not notice: it asks and protects in one step
    /// without a stop, where soft-dirty bits take a stop of all threads for as long as the page tables are read and
    /// cleared; and it reports single pages of a huge page, all 2 MiB of which share one soft-dirty bit. A page's first
    /// write costs the process one fault under either.
    #[default]
    Auto,
    /// The pagemap's soft-dirty bits.
    SoftDirty,
    /// Asynchronous userfaultfd write-protection.
    UffdWp,
}

/// Consecutive pages: first address and number of pages.
pub type Run = godwit_wire::plan::PageRun;

/// Why a tracker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// No tracker passed its self-test on this kernel.
    #[error("no dirty tracker works here ({why}); migrate with --max-rounds 0")]
    None {
        /// What was tried.
        why: String,
    },
    /// The page tables cannot be looked at.
    #[error("the page tables of process {pid} cannot be opened")]
    Open {
        /// The process.
        pid: Pid,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The soft-dirty bits cannot be cleared.
    #[error("the soft-dirty bits of process {pid} cannot be cleared")]
    Clear {
        /// The process.
        pid: Pid,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process could not be stopped for a moment.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// A remote system call in the process failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The process's userfaultfd cannot be used.
    #[error("the userfaultfd of process {pid} cannot be used: {what} failed")]
    Userfaultfd {
        /// The process.
        pid: Pid,
        /// Which call.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A scan of the page tables failed.
    #[error("process {pid}: {what} of {start:#x}-{end:#x} failed")]
    Scan {
        /// The process.
        pid: Pid,
        /// Which call.
        what: &'static str,
        /// First address.
        start: u64,
        /// Address behind the last byte.
        end: u64,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// Made to fail by a test.
    #[error(transparent)]
    Injected(#[from] godwit_wire::fault::Injected),
}

/// A dirty tracker of one process, armed.
pub trait Tracker {
    /// Its name, as `--tracker` takes it.
    fn name(&self) -> &'static str;

    /// What was written since the call before (or since it was armed), of the given mappings, sorted; from now on new
    /// writes count for the next call. A range that was not tracked without a break is whole in it. `is_stopped`: the
    /// caller has stopped the process, and this is thought to be the last call: what it reports may be reported once
    /// more. Otherwise the tracker may stop the process for a moment.
    ///
    /// # Errors
    /// When the page tables cannot be scanned.
    fn collect(&mut self, vmas: &[Vma], is_stopped: bool) -> Result<Vec<Run>, TrackerError>;
}

/// Arms a tracker on a running process.
///
/// # Errors
/// [`TrackerError::None`] when none works.
pub fn attach(choice: Choice, pid: Pid) -> Result<Box<dyn Tracker>, TrackerError> {
    let mut failures = Vec::new();
    if choice != Choice::SoftDirty {
        match uffd_wp::self_test().map(|()| uffd_wp::UffdWp::attach(pid)) {
            Ok(Ok(tracker)) => return Ok(Box::new(tracker)),
            // The process itself may be one that can make none, with its table of descriptors full say.
            Ok(Err(error)) if choice == Choice::Auto => failures.push(format!("uffd-wp: {}", chain(&error))),
            Ok(Err(error)) => return Err(error),
            Err(why) => failures.push(format!("uffd-wp: {why}")),
        }
    }
    if choice != Choice::UffdWp {
        match soft_dirty::self_test() {
            Ok(()) => return Ok(Box::new(soft_dirty::SoftDirty::arm(pid)?)),
            Err(why) => failures.push(format!("soft-dirty: {why}")),
        }
    }
    Err(TrackerError::None { why: failures.join("; ") })
}
