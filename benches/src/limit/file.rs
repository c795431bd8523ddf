//! Writing files into the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use nix::fcntl::{FallocateFlags, fallocate};

use super::measured::{Clock, Measured};
use super::source;
use crate::measure;

/// Length of one write in bytes.
const BLOCK: usize = 1 << 20;
/// Blocks between a receiver and its writer.
const BLOCKS: usize = 8;

/// Writes a new file below `dir` in blocks of 1 MiB; with `reserves`, its space is reserved before the clock starts.
///
/// # Errors
/// When the file cannot be made or written.
pub fn write(bytes: u64, dir: &Path, reserves: bool) -> io::Result<Measured> {
    measure::back_memory(bytes);
    let file = tempfile::tempfile_in(dir)?;
    if reserves {
        reserve(&file, bytes)?;
    }
    source::cold();
    let clock = Clock::start()?;
    let mut at = 0;
    for block in source::pieces(bytes, BLOCK) {
        file.write_all_at(&block, at)?;
        at += block.len() as u64;
    }
    clock.stop(bytes)
}

/// Reserves space; a file system that cannot is as good as one that need not.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, i64::try_from(bytes).map_err(io::Error::other)?) {
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A thread that writes blocks of 1 MiB to a new file, or drops them.
pub(super) struct Writer {
    full: Option<SyncSender<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<u64>>,
    block: Vec<u8>,
    is_gone: bool,
}

impl Writer {
    pub fn start(path: &Path) -> io::Result<Writer> {
        let file = File::create(path)?;
        let (full, blocks) = sync_channel::<Vec<u8>>(BLOCKS);
        let (used, empty) = sync_channel(BLOCKS);
        for _ in 1..BLOCKS {
            let _ = used.send(vec![1; BLOCK]);
        }
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let mut at = 0;
            for block in blocks {
                file.write_all_at(&block, at)?;
                at += block.len() as u64;
                let _ = used.send(block);
            }
            Ok(at)
        })?;
        let mut block = vec![1; BLOCK];
        block.clear();
        Ok(Writer { full: Some(full), empty, thread, block, is_gone: false })
    }

    /// Takes bytes; waits while the writer is behind.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_gone {
            let len = bytes.len().min(BLOCK - self.block.len());
            self.block.extend_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            if self.block.len() == BLOCK {
                self.hand_over();
            }
        }
    }

    fn hand_over(&mut self) {
        let (Ok(mut next), Some(full)) = (self.empty.recv(), &self.full) else {
            self.is_gone = true;
            return;
        };
        next.clear();
        self.is_gone = full.send(std::mem::replace(&mut self.block, next)).is_err();
    }

    /// Waits until all is written; answers how many bytes.
    pub fn finish(mut self) -> io::Result<u64> {
        if !self.block.is_empty() && !self.is_gone {
            self.hand_over();
        }
        self.full = None;
        match self.thread.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_keeps_order_and_the_short_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..(20 << 20) + 123).map(|at: usize| (at / 13) as u8).collect();
        let mut writer = Writer::start(&path).unwrap();
        bytes.chunks(77_777).for_each(|part| writer.take(part));
        assert_eq!(writer.finish().unwrap(), bytes.len() as u64);
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}
