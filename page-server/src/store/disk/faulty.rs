//! A disk that fails at the n-th call, for tests: once with an error, or for good as if the program died.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Disk, DiskFile, Entry};

/// What happens when the cue comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This call and every later one fails: the program is dead. A write gets half of its bytes down.
    Stop,
    /// This call alone fails with "no space left on device"; a write gets half of its bytes down.
    Full,
    /// This call alone fails with an I/O error.
    Broken,
}

/// Counts the calls that change or sync something, and fails at a given one.
pub struct Faulty<D> {
    disk: D,
    cue: Arc<Cue>,
}

#[derive(Debug)]
struct Cue {
    calls: AtomicU64,
    at: u64,
    fault: Fault,
}

impl Cue {
    fn check(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let struck = if self.fault == Fault::Stop { call >= self.at } else { call == self.at };
        match self.fault {
            _ if !struck => Ok(()),
            Fault::Full => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Fault::Stop | Fault::Broken => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Reading counts as no call, but a dead program does not read.
    fn check_read(&self) -> io::Result<()> {
        let dead = self.fault == Fault::Stop && self.calls.load(Ordering::SeqCst) >= self.at;
        if dead { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

impl<D: Disk> Faulty<D> {
    /// Fails at the `at`-th changing call, counted from 1; 0 with [`Fault::Full`] or [`Fault::Broken`] never.
    pub fn new(disk: D, at: u64, fault: Fault) -> Self {
        Self { disk, cue: Arc::new(Cue { calls: AtomicU64::new(0), at, fault }) }
    }

    /// Changing calls so far.
    pub fn calls(&self) -> u64 {
        self.cue.calls.load(Ordering::SeqCst)
    }

    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, cue: self.cue.clone() })
    }
}

impl<D: Disk> Disk for Faulty<D> {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.cue.check()?;
        self.disk.make_dir(dir)
    }

    fn create(&self, file: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.cue.check()?;
        Ok(self.wrap(self.disk.create(file)?))
    }

    fn open(&self, file: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.cue.check_read()?;
        Ok(self.wrap(self.disk.open(file)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.cue.check_read()?;
        self.disk.list(dir)
    }

    fn symlink(&self, target: &Path, at: &Path) -> io::Result<()> {
        self.cue.check()?;
        self.disk.symlink(target, at)
    }

    fn read_link(&self, at: &Path) -> io::Result<PathBuf> {
        self.cue.check_read()?;
        self.disk.read_link(at)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.cue.check()?;
        self.disk.rename(from, to)
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        self.cue.check()?;
        self.disk.remove_file(file)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.cue.check()?;
        self.disk.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.cue.check()?;
        self.disk.sync_dir(dir)
    }

    fn shown(&self, path: &Path) -> PathBuf {
        self.disk.shown(path)
    }
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    cue: Arc<Cue>,
}

impl DiskFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.cue.check().inspect_err(|_| drop(self.file.write_at(&bytes[..bytes.len() / 2], offset)))?;
        self.file.write_at(bytes, offset)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.reserve(offset, len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.cue.check_read()?;
        self.file.read_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.cue.check()?;
        self.file.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.cue.check_read()?;
        self.file.size()
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.file.start_writeback(offset, len);
    }

    fn sync(&self) -> io::Result<()> {
        self.cue.check()?;
        self.file.sync()
    }
}
