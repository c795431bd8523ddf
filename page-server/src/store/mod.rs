//! Image directories: staged, checked, made durable, sealed.
//!
//! The contract, in the order of a round's life:
//! 1. **Accepted.** The page list of a round is checked before a byte of it arrives: lengths, order, bounds, and
//!    that the sealed base round lists every page that the new list calls unchanged, page by page. So no
//!    restore meets a page that no directory of the chain holds.
//! 2. **Staged.** Everything is written under a `.staging-` name that no reader looks at. A page file has its full
//!    length from the start; a bitmap says which slots were filled on purpose. Writeback starts as data arrives.
//! 3. **Checked.** Every slot is filled, every length and hash is the one that the source wrote into the
//!    manifest, no file is missing and none is there that the manifest does not name.
//! 4. **Durable.** Page files, images, page lists and manifest are synced, then their directory, then the
//!    inventory is written and synced, then the directory again.
//! 5. **Sealed.** The directory gets its final name by one rename, and the directory above is synced. Only then
//!    is the round acknowledged: a power cut at any moment leaves the directory whole or absent, and once it was
//!    acknowledged, whole.
//!
//! A sealed directory is never changed. `page-server/STORE.md` has the layout and the recovery rules.
//!
//! Reading order: [`sink`] (the seam), [`session`] and [`local`] (the two front doors), [`rules`], then what they
//! stand on: `staging` (a round before its seal), `pages` (slots), `assembly` (how
//! their bytes get there), `spread` (bytes for several places), `pool` and `workers`, [`parent`] (the chain below), `recover`,
//! [`disk`]; [`inspect`] reads what any of them, or CRIU, wrote.

mod assembly;
pub mod disk;
pub mod inspect;
pub mod local;
mod pages;
pub mod parent;
mod pool;
mod recover;
pub mod rules;
pub mod session;
pub mod sink;
mod slots;
mod spread;
mod staging;
mod workers;

use std::io;
use std::path::PathBuf;

pub(crate) use assembly::Arrival;
pub use local::{LocalDir, LocalOptions};
pub(crate) use pages::FillError;
pub use recover::Recovered;
pub use rules::Bounds;
pub use session::{SessionStore, Store};
pub use staging::MissingSlots;
pub(crate) use staging::combine;

/// The image that is written last: without it a directory is not whole.
pub const INVENTORY_NAME: &str = "inventory.img";
/// Digests of everything in a directory, as the source made them.
pub const MANIFEST_NAME: &str = "godwit-manifest.img";
/// The link to the directory that a round builds on.
pub const PARENT_NAME: &str = "parent";
/// Directory of a session's final set.
pub const FINAL_NAME: &str = "final";
/// What the names of unsealed directories start with.
pub const STAGING_PREFIX: &str = ".staging-";
/// Longest manifest that is read, in bytes.
const MANIFEST_LEN_MAX: u64 = 1 << 30;

/// Directory name of a sealed round.
pub fn round_name(round: u32) -> String {
    format!("round-{round:04}")
}

/// The round that a directory name means.
pub fn round_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("round-")?.parse().ok()?;
    (number > 0 && round_name(number) == name).then_some(number)
}

/// Why a store or a session of it cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another program works in the directory.
    #[error("{path} is in use by a living server or dump: end it, or use another directory", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The session's name cannot name a directory.
    #[error(
        "session name {name:?} is not 1 to 128 of the characters A-Z a-z 0-9 . _ - (first a letter or digit)"
    )]
    Name {
        /// The name, cut to 200 characters.
        name: String,
    },
    /// The session is open already.
    #[error("session {name:?} is open already: choose another --name")]
    InUse {
        /// The session.
        name: String,
    },
    /// The directory holds a whole dump already.
    #[error("{path} holds a whole dump already: choose another name, or move it away", path = path.display())]
    Finished {
        /// The directory or its inventory.
        path: PathBuf,
    },
    /// The directory holds images that are not this dump's.
    #[error("{path} holds {name}, of an unfinished or foreign dump: empty the directory, or choose another", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The first such file.
        name: String,
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
}
