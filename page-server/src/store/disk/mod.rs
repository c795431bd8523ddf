//! What the store asks of a file system, as a trait, so that tests can stop it at every call.
//!
//! Reading order: [`real`] (the machine's file system, confined below a directory), [`model`] (a file system in
//! memory that knows what a power cut would keep), [`faulty`] (fails or stops at the n-th call).

pub mod faulty;
pub mod model;
pub mod real;

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A file system below one root directory. Paths are relative to it; the empty path is the root. No call
/// follows a symbolic link, in any component.
pub trait Disk: Send + Sync {
    /// Makes a directory that does not exist yet (mode 0700).
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], and what the file system answers.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a file that does not exist yet (mode 0600), for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], and what the file system answers.
    fn create(&self, file: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// What the file system answers; anything but a regular file is [`io::ErrorKind::InvalidInput`].
    fn open(&self, file: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// The entries of a directory, by name. Names that are not UTF-8 are left out: the store makes none.
    ///
    /// # Errors
    /// What the file system answers.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;

    /// Makes a symbolic link at a path where nothing is yet.
    ///
    /// # Errors
    /// What the file system answers.
    fn symlink(&self, target: &Path, at: &Path) -> io::Result<()>;

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is none, and what the file system answers.
    fn read_link(&self, at: &Path) -> io::Result<PathBuf>;

    /// Moves a file, link or directory to a name that is free.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], and what the file system answers.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file or a link.
    ///
    /// # Errors
    /// What the file system answers.
    fn remove_file(&self, file: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the file system answers.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable: what was made, moved or removed in it so far.
    ///
    /// # Errors
    /// What the file system answers.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// The path as a reader of a message can find it.
    fn shown(&self, path: &Path) -> PathBuf;
}

/// An open regular file.
pub trait DiskFile: Send + Sync {
    /// Writes all bytes at an offset.
    ///
    /// # Errors
    /// What the file system answers; part of the bytes may be there then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes room for a range that is about to be written, in one piece where the file system can; elsewhere nothing
    /// happens. The range reads as before, and the length stays.
    ///
    /// # Errors
    /// What the file system answers when there is no room.
    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Fills the buffer from an offset.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, and what the file system answers.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Cuts or extends the file; the new part is a hole.
    ///
    /// # Errors
    /// What the file system answers.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// What the file system answers.
    fn size(&self) -> io::Result<u64>;

    /// Starts to write a range back without waiting; a hint that may be ignored.
    fn start_writeback(&self, offset: u64, len: u64);

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the file system answers. After an error the content must be taken for lost.
    fn sync(&self) -> io::Result<()>;
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Link,
    /// Anything else.
    Other,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// The components of a path below a root.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for an absolute path or one that holds `..`.
fn plain_components(path: &Path) -> io::Result<Vec<&std::ffi::OsStr>> {
    let plain = path.components().map(|component| match component {
        Component::Normal(name) => Ok(name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leaves the store's directory")),
    });
    plain.collect()
}

/// Reads a whole file of at most `len_max` bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is longer, and what the disk answers.
pub fn read_all(disk: &dyn Disk, path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let len = file.size()?;
    if len > len_max {
        let text = format!("it is {len} bytes long, above the limit of {len_max}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Removes a directory of files and links (a round has no subdirectories). What is gone already is no error.
///
/// # Errors
/// What the disk answers.
pub fn remove_flat_dir(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let gone_is_fine = |result: io::Result<()>| match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let entries = match disk.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        gone_is_fine(disk.remove_file(&dir.join(entry.name)))?;
    }
    gone_is_fine(disk.remove_dir(dir))
}
