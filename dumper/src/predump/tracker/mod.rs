//! Dirty trackers: what a running process wrote since it was last asked.

pub mod frames;
pub mod hash;
pub mod present;
pub mod soft_dirty;
pub mod uffd_wp;

use std::cell::OnceCell;
use std::io;
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::held::Held;
use crate::collect::tree::is_ending;
use crate::commands::chain;
use crate::freeze::seize::FreezeError;
use crate::interrupt::Interrupted;
use crate::procfs::maps::Vma;
use crate::remote::RemoteError;

/// Which tracker is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// `uffd-wp` where it works, else `soft-dirty`, and `hash` where neither does.
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
    /// No help of the kernel's: all memory is read once a round, and once more under freeze, and compared by hashes.
    Hash,
}

/// Consecutive pages: first address and number of pages.
pub type Run = godwit_wire::plan::PageRun;

/// Why a tracker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// The tracker that is wanted did not pass its self-test on this kernel.
    #[error(
        "this dirty tracker does not work here ({why}); use --tracker hash, or migrate with --max-rounds 0"
    )]
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
    /// The user wants it to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The process is stopped and has waited long enough.
    #[error(
        "process {pid}: comparing its memory took longer than it may be stopped; give it more time (--timeout), \
         or use another tracker"
    )]
    TooLate {
        /// The process.
        pid: Pid,
    },
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

/// What a tracker is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Of these mappings, in order of address.
    pub vmas: &'a [Vma],
    /// What the rounds hold that were acknowledged so far.
    pub held: &'a Held,
    /// The caller has stopped the process, and this is thought to be the last call: what it reports may be reported once
    /// more. Otherwise the tracker may stop the process for a moment.
    pub is_stopped: bool,
    /// When a stopped process is to run on, whatever is known by then.
    pub until: Option<Instant>,
}

/// A dirty tracker of one process, armed.
pub trait Tracker: Send {
    /// Its name, as `--tracker` takes it.
    fn name(&self) -> &'static str;

    /// Whether it needs the hashes of the pages that rounds hold.
    fn wants_hashes(&self) -> bool {
        false
    }

    /// What was written since the call before (or since it was armed), of the given mappings, sorted; from now on new
    /// writes count for the next call. A range that was not tracked without a break is whole in it. A tracker that
    /// [wants hashes](Tracker::wants_hashes) reports instead what is not known to be as the rounds hold it.
    ///
    /// # Errors
    /// When the page tables cannot be scanned.
    fn collect(&mut self, ask: &Ask<'_>) -> Result<Vec<Run>, TrackerError>;
}

/// Arms a tracker on a running process. `readers` is the number of threads that read its memory, if one must.
///
/// # Errors
/// [`TrackerError::None`] when the one that is wanted does not work.
pub fn attach(choice: Choice, pid: Pid, readers: usize) -> Result<Box<dyn Tracker>, TrackerError> {
    Trackers::new(choice, readers).attach(pid)
}

/// Arms trackers on the processes of a tree: what the kernel can do is found out once.
#[derive(Debug)]
pub struct Trackers {
    choice: Choice,
    readers: usize,
    uffd_wp: OnceCell<Result<(), String>>,
    soft_dirty: OnceCell<Result<(), String>>,
}

impl Trackers {
    /// Of this kind; see [`attach`].
    pub fn new(choice: Choice, readers: usize) -> Trackers {
        Trackers { choice, readers, uffd_wp: OnceCell::new(), soft_dirty: OnceCell::new() }
    }

    /// See [`attach`].
    ///
    /// # Errors
    /// As there.
    pub fn attach(&self, pid: Pid) -> Result<Box<dyn Tracker>, TrackerError> {
        let is_auto = self.choice == Choice::Auto;
        let mut failures = Vec::new();
        if is_auto || self.choice == Choice::UffdWp {
            let tested = self.uffd_wp.get_or_init(|| uffd_wp::self_test().map_err(|why| why.to_string()));
            match tested.clone().map(|()| uffd_wp::UffdWp::attach(pid)) {
                Ok(Ok(tracker)) => return Ok(Box::new(tracker)),
                Ok(Err(error)) if is_ending(pid) => return Err(error),
                // The process itself may be one that can make none, with its table of descriptors full say.
                Ok(Err(error)) if is_auto => failures.push(format!("uffd-wp: {}", chain(&error))),
                Ok(Err(error)) => return Err(error),
                Err(why) => failures.push(format!("uffd-wp: {why}")),
            }
        }
        if is_auto || self.choice == Choice::SoftDirty {
            let tested =
                self.soft_dirty.get_or_init(|| soft_dirty::self_test().map_err(|why| why.to_string()));
            match tested.clone().map(|()| soft_dirty::SoftDirty::arm(pid)) {
                Ok(Ok(tracker)) => return Ok(Box::new(tracker)),
                Ok(Err(error)) if is_ending(pid) => return Err(error),
                Ok(Err(error)) if is_auto => failures.push(format!("soft-dirty: {}", chain(&error))),
                Ok(Err(error)) => return Err(error),
                Err(why) => failures.push(format!("soft-dirty: {why}")),
            }
        }
        if is_auto || self.choice == Choice::Hash {
            if is_auto {
                tracing::warn!(
                    %pid,
                    why = failures.join("; "),
                    "nothing of the kernel's tells what is written: all memory is read and compared, in each round \
                     and once more while it is stopped"
                );
            }
            return Ok(Box::new(hash::Hash::new(pid, self.readers)));
        }
        Err(TrackerError::None { why: failures.join("; ") })
    }
}
