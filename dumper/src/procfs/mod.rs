//! What /proc says of a task: `parse(bytes)` functions without system calls, and a thin reader beside each.
//!
//! Parsers never panic and never trust a length; unknown lines and fields that newer kernels add are passed over.
//! Reading order: [`stat`], [`status`], [`maps`], [`memory`], [`fdinfo`], [`objects`], [`timers`], [`limits`], [`attr`] (one task),
//! [`tree`] (its threads and children), [`cgroup`], [`auxv`], [`mountinfo`], [`ns`], [`host`].

pub mod attr;
pub mod auxv;
pub mod cgroup;
pub mod fdinfo;
mod fields;
pub mod host;
pub mod limits;
pub mod maps;
pub mod memory;
pub mod mountinfo;
pub mod ns;
pub mod objects;
pub mod stat;
pub mod status;
pub mod timers;
pub mod tree;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

/// A text that is not what the kernel writes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field}: cannot make sense of {found:?}")]
pub struct ParseError {
    /// Which field it should have been.
    pub field: &'static str,
    /// What stood there instead, shortened.
    pub found: String,
}

impl ParseError {
    fn new(field: &'static str, found: &[u8]) -> ParseError {
        const SHOWN_BYTES: usize = 80;
        let shown = &found[..found.len().min(SHOWN_BYTES)];
        ParseError { field, found: String::from_utf8_lossy(shown).into_owned() }
    }
}

/// Why a file of /proc gave no answer.
#[derive(Debug, Error)]
pub enum ProcfsError {
    /// The task ended, or never was.
    #[error("{}: the process or thread is gone", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused, or lacks the file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Longer than anything reasonable; read no further to keep memory bounded.
    #[error("{} is longer than {limit_bytes} bytes; godwit reads no further", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit_bytes: u64,
    },
    /// The text is not in the known form.
    #[error("{} has an unknown form: {source}; this kernel may be newer than this godwit", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        source: ParseError,
    },
}

impl ProcfsError {
    /// Whether the task is gone, as opposed to a file that cannot be read or understood.
    pub fn is_gone(&self) -> bool {
        matches!(self, ProcfsError::Gone { .. })
    }

    pub(crate) fn from_io(path: &Path, source: io::Error) -> ProcfsError {
        let path = path.to_owned();
        // Opening a dead task's file is ENOENT, reading one that was open already is ESRCH.
        let gone = source.raw_os_error() == Some(Errno::ESRCH as i32)
            || (source.kind() == io::ErrorKind::NotFound && !task_dir_exists(&path));
        if gone { ProcfsError::Gone { path } } else { ProcfsError::Read { path, source } }
    }
}

/// Whether the task directory (`/proc/PID` or `/proc/PID/task/TID`) that `path` lies in is there.
fn task_dir_exists(path: &Path) -> bool {
    let is_number = |dir: &Path| {
        let name = dir.file_name().unwrap_or_default().as_encoded_bytes();
        !name.is_empty() && name.iter().all(u8::is_ascii_digit)
    };
    let is_task = |dir: &&Path| {
        let parent = dir.parent().unwrap_or(dir);
        is_number(dir) && (parent.ends_with("proc") || parent.ends_with("task"))
    };
    path.ancestors().filter(is_task).all(Path::exists)
}

/// Bound for files of a few lines.
pub(crate) const SHORT_BYTES: u64 = 1 << 20;
/// Bound for files with a line per mapping, mount or watch.
pub(crate) const LONG_BYTES: u64 = 512 << 20;

/// The whole of a file, at most `limit_bytes` long.
pub(crate) fn read_file(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, ProcfsError> {
    // Most files fit, and come with one read: a vector that is empty at first is filled by eight small ones.
    const MOSTLY_BYTES: usize = 4096;
    let mut bytes = Vec::with_capacity(MOSTLY_BYTES);
    File::open(path)
        .and_then(|file| file.take(limit_bytes + 1).read_to_end(&mut bytes))
        .map_err(|source| ProcfsError::from_io(path, source))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(ProcfsError::TooLong { path: path.to_owned(), limit_bytes });
    }
    Ok(bytes)
}

/// Reads a file and parses it.
pub(crate) fn read_parsed<T>(
    path: &Path,
    limit_bytes: u64,
    parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
) -> Result<T, ProcfsError> {
    let bytes = read_file(path, limit_bytes)?;
    parse(&bytes).map_err(|source| ProcfsError::Malformed { path: path.to_owned(), source })
}
