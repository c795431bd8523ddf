//! The journal of a session: fsynced records that outlive the program which wrote them.
//!
//! Both sides of a hand-over keep one. It answers, after a crash, the one question that matters: may the
//! tree at this end run? So a record is on disk before the step that it announces is taken, and the file
//! lives in a state directory that outlives the program, not on the images' machine.
//!
//! File: 8 bytes `GWJRNL1\n`, then records, each `u32 length | u32 crc32 | protobuf`, little endian, the
//! checksum over the protobuf. A record that a crash cut off is ignored on reading and cut away by the next
//! writer; since each record is fsynced before the next is written, only the last one can be torn, and a bad
//! record anywhere else is [`JournalError::Corrupt`].
//!
//! The living program holds a lock (`flock`) on the file. Whoever holds it may write; anyone may read.
//!
//! The token is the generation of the right to decide. `session resolve` raises it; a program re-reads it
//! with [`Journal::current_token`] before it takes a step that cannot be undone, and gives up if it is
//! higher than the one it was given.

mod file;
mod record;

use std::io;
use std::path::{Path, PathBuf};

pub use file::{Journal, is_locked, list, read};
pub use record::{Event, Facts, MEMBERS_PER_RECORD, Member, Record, Summary};

/// Directory of the journals of a role (`source` or `destination`) unless `--state-dir` names another.
pub fn default_dir(role: &str) -> PathBuf {
    Path::new("/var/lib/godwit").join(role)
}

/// File of a session's journal below its directory.
///
/// # Errors
/// [`JournalError::BadId`] if the id is empty, longer than 128 bytes, starts with a dot, or holds anything but
/// ASCII letters, digits, `.`, `_` and `-`.
pub fn path_of(dir: &Path, session_id: &str) -> Result<PathBuf, JournalError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let fits = (1..=128).contains(&session_id.len()) && !session_id.starts_with('.');
    if !fits || !session_id.bytes().all(plain) {
        return Err(JournalError::BadId { id: session_id.chars().take(200).collect() });
    }
    Ok(dir.join(format!("{session_id}.journal")))
}

/// What [`list`] found: one journal of a state directory.
#[derive(Debug)]
pub struct Listed {
    /// Id of the session: the file's name without `.journal`.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// Whether a living program holds its lock.
    pub locked: bool,
    /// Where the session stands, or why the journal cannot be read.
    pub summary: Result<Summary, JournalError>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The session id cannot name a file.
    #[error("session id {id:?} is not 1 to 128 of the characters A-Z a-z 0-9 . _ - (first not a dot)")]
    BadId {
        /// The id, cut to 200 characters.
        id: String,
    },
    /// Another program holds the lock: the session is alive there.
    #[error(
        "journal {path} is held by a living program: end that one first, or let it decide",
        path = path.display()
    )]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// There is no such journal.
    #[error("there is no journal {path}: `session list` shows those there are", path = path.display())]
    Missing {
        /// The journal.
        path: PathBuf,
    },
    /// A journal of this name exists already.
    #[error("journal {path} exists already: that session was opened before", path = path.display())]
    Exists {
        /// The journal.
        path: PathBuf,
    },
    /// The file holds what no crash can have left.
    #[error("journal {path} is damaged at byte {offset}: {why}; nothing was decided from it", path = path.display())]
    Corrupt {
        /// The journal.
        path: PathBuf,
        /// Where the bad record starts.
        offset: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A record would be too large.
    #[error("a record of {len} bytes for journal {path} is above the limit", path = path.display())]
    TooLarge {
        /// The journal.
        path: PathBuf,
        /// Size of the record, in bytes.
        len: usize,
    },
    /// A file system call failed.
    #[error("{op} journal {path} failed", path = path.display())]
    Io {
        /// What was done.
        op: &'static str,
        /// The journal, or its directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
