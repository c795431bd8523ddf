//! The seam between a dump and its images: the same calls for a local directory and for a page server.
//!
//! A round goes through it in this order: [`Sink::begin`], then any number of [`Sink::fill`] and
//! [`Sink::image`] from any thread in any order, then [`Sink::seal`] or [`Sink::abandon`].

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use godwit_wire::error::Malformed;
use godwit_wire::frame::CopyTo;
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{PAGE_SIZE, PageOwner, RoundPlan};

/// Where a dump's rounds go: a local directory, or a page server over QUIC. All calls block, and may come
/// from several threads at once.
pub trait Sink: Send + Sync {
    /// Announces a round; returns when the receiving store has accepted its page list.
    ///
    /// # Errors
    /// [`SinkError::Refused`] when the list breaks a rule of the store (a `PARENT` run that the base round
    /// does not cover, a number used before, too many pages), [`SinkError::Io`] or [`SinkError::Full`] when
    /// the staging directory cannot be made.
    fn begin(&self, plan: &RoundPlan) -> Result<(), SinkError>;

    /// Hands over part of an extent. May be called by several reader threads at once, out of order; each
    /// slot exactly once, except that a slot which was answered with [`SinkError::WantData`] is handed over
    /// again.
    ///
    /// # Errors
    /// [`SinkError::Refused`] for a slot outside the plan, across an extent border or filled before;
    /// [`SinkError::WantData`] when pages announced as the same are not, or the base of a difference is another one.
    fn fill(&self, fill: Fill) -> Result<(), SinkError>;

    /// Hands over a whole small image file (`core-17.img`, `files.img`, ...); never `pagemap-*` or
    /// `pages-*`, which are made from the plan.
    ///
    /// # Errors
    /// [`SinkError::Refused`] for a name that is not a plain image name, or that was handed over before.
    fn image(&self, round: u32, name: &str, bytes: Bytes) -> Result<(), SinkError>;

    /// All was handed over: verifies against `manifest`, makes it durable, gives it its final name. When
    /// this returns, a power cut would keep the round.
    ///
    /// # Errors
    /// [`SinkError::Incomplete`] or [`SinkError::Mismatch`] when something is missing or differs; nothing
    /// carries the final name then.
    fn seal(&self, round: u32, manifest: &Manifest) -> Result<Sealed, SinkError>;

    /// Drops an unsealed round; its number is never used again. A round that is not open is no error.
    ///
    /// # Errors
    /// [`SinkError::Io`] when the staging directory cannot be removed.
    fn abandon(&self, round: u32) -> Result<(), SinkError>;

    /// Which forms of content are worth making for it now.
    fn takes(&self) -> Takes {
        Takes::default()
    }

    /// Whether handing over parts of a round still makes sense.
    ///
    /// # Errors
    /// [`SinkError::Link`] when the way to the store is known to be lost, or it gave up the round.
    fn check_round(&self, _round: u32) -> Result<(), SinkError> {
        Ok(())
    }
}

/// What a sink would rather have than the bytes of pages. A store next door is better off with bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// [`Content::Same`].
    pub same: bool,
    /// [`Content::Delta`].
    pub delta: bool,
    /// [`Content::Spread`].
    pub spread: bool,
    /// Zero pages between others cost it less as bytes, in runs of up to so many.
    pub zeros_as_data: u32,
}

/// Consecutive slots of one pages file, within one extent.
#[derive(Clone, Debug)]
pub struct Fill {
    /// Number of the round.
    pub round: u32,
    /// Number of the pages file.
    pub pages_id: u32,
    /// First slot (index of a 4 KiB page in the pages file).
    pub first_slot: u64,
    /// What the slots hold.
    pub content: Content,
}

/// What a run of slots holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// The bytes of the pages: a positive multiple of 4096, at most one extent.
    Data(Bytes),
    /// Pages of zeros.
    Zero {
        /// Number of pages, at least 1.
        pages: u32,
    },
    /// Pages whose content is that of the base round's page of the same owner at the same address.
    Same {
        /// BLAKE3 of each page, its first 16 bytes.
        hashes: Vec<[u8; 16]>,
    },
    /// Pages that differ in part from the base round's pages of the same owner at the same addresses.
    Delta {
        /// BLAKE3 of each page of the base round, its first 16 bytes.
        bases: Vec<[u8; 16]>,
        /// The pages, combined by exclusive or with those of the base round: as many.
        difference: Bytes,
    },
    /// Pages of which some are held by other slots of the round too, which it fills as well.
    Spread {
        /// The bytes of the pages: a positive multiple of 4096, at most one extent.
        bytes: Bytes,
        /// The other slots, at least one and at most `COPIES_MAX` entries.
        copies: Vec<CopyTo>,
    },
}

impl Content {
    /// Number of slots it fills from its first slot on. Bytes whose length is no multiple of a page count their whole
    /// pages only.
    pub fn pages(&self) -> u64 {
        match self {
            Content::Data(bytes) | Content::Spread { bytes, .. } => bytes.len() as u64 / PAGE_SIZE,
            Content::Zero { pages } => u64::from(*pages),
            Content::Same { hashes } => hashes.len() as u64,
            Content::Delta { bases, .. } => bases.len() as u64,
        }
    }

    /// Number of other slots that it fills besides.
    pub fn copied(&self) -> u64 {
        match self {
            Content::Spread { copies, .. } => copies.iter().map(|copy| u64::from(copy.pages)).sum(),
            _ => 0,
        }
    }
}

/// A sealed round, as acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Bytes of all files of the round, holes included.
    pub bytes_stored: u64,
    /// Time the final fsync calls took, in microseconds.
    pub fsync_us: u64,
}

/// Why a round could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The caller broke a rule; the round is as it was before the call.
    #[error("round {round}: {why}")]
    Refused {
        /// Number of the round.
        round: u32,
        /// Which rule, with the file, slot or address.
        why: String,
    },
    /// The payload of a frame does not unpack to its pages; the round is as it was before the call.
    #[error("round {round}: a frame that holds no pages")]
    Malformed {
        /// Number of the round.
        round: u32,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// A page list says that a page is in the base round, and it is not.
    #[error(
        "round {round} lists the page at {vaddr:#x} of {owner:?} as unchanged, but base round {base_round:?} \
         does not hold it: send the page"
    )]
    NotCovered {
        /// Number of the round.
        round: u32,
        /// The round it builds on.
        base_round: Option<u32>,
        /// Whose memory.
        owner: PageOwner,
        /// Address of the first such page.
        vaddr: u64,
    },
    /// Pages announced as the same as in the base round differ from it; send these slots as data.
    #[error(
        "round {round}: slots {slots:?} of pages-{pages_id}.img differ from the base round: send their bytes"
    )]
    WantData {
        /// Number of the round.
        round: u32,
        /// Number of the pages file.
        pages_id: u32,
        /// The slots that are still to be filled, sorted.
        slots: Vec<Range<u64>>,
    },
    /// Seal was asked for while slots or files are missing.
    #[error("round {round} is not complete: {what}")]
    Incomplete {
        /// Number of the round.
        round: u32,
        /// What is missing: file and slot.
        what: String,
    },
    /// What arrived is not what the manifest says.
    #[error("round {round}: {file} differs from the manifest: {why}")]
    Mismatch {
        /// Number of the round.
        round: u32,
        /// Name of the image file.
        file: String,
        /// Length, hash or extent that differs.
        why: String,
    },
    /// The disk or the quota is full.
    #[error("no space left while {op} {path}: free some, or use another directory", path = path.display())]
    Full {
        /// What was done.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file system call failed.
    #[error("{op} {path} failed", path = path.display())]
    Io {
        /// What was done.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The way to a remote store failed (link lost, peer refused); the text names the peer.
    #[error("{what}")]
    Link {
        /// What failed, with the peer's address.
        what: String,
        /// The cause, if there is one below.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl SinkError {
    /// Wraps a failed file system call; a full disk or quota becomes [`SinkError::Full`].
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SinkError::Full { op, path, source },
            _ => SinkError::Io { op, path, source },
        }
    }
}
