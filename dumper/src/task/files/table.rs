//! The table of open files: one entry for each open file description, one for each file behind a mapping.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use nix::sys::stat::FileStat;
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::memfd::MemfdInodeEntry;
use godwit_wire::image::regfile::RegFileEntry;
use godwit_wire::image::tty::TtyInfoEntry;
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use super::ghost::{self, Ghosts};
use super::links::Links;
use super::pipe::Contents;
use super::unix::{self, Queues};
use super::{Descriptor, fown, memfd, reg};
use crate::error::DumpError;
use crate::sys;
use crate::task::vmas::FileKey;

/// An open file description: a process, its descriptor there, the id.
type Known = (Pid, i32, u32);

/// Entries of `files.img` with their ids, and the bytes found in pipes.
#[derive(Debug, Default)]
pub struct FileTable {
    entries: Vec<FileEntry>,
    /// By the file: one of the descriptors of each open file description, and its id.
    descriptions: HashMap<(u64, u64), Vec<Known>>,
    /// By the file and the name that a process sees it under: two may have different roots.
    by_name: HashMap<(u64, u64, Vec<u8>), u32>,
    /// Ids of files behind mappings, by what the memory map says of them.
    mapped: HashMap<FileKey, u32>,
    /// Ids given so far.
    given: u32,
    /// What lies in pipes.
    pub(super) pipes: Contents,
    /// What lies in named pipes.
    pub(super) fifos: Contents,
    /// What waits at sockets.
    pub(super) sockets: Queues,
    /// Whether one of them has an address.
    pub(super) has_addresses: bool,
    /// The numbers that named pipes have in images, by device and inode.
    fifo_ids: HashMap<(u64, u64), u32>,
    /// Ends of terminals.
    pub(super) ttys: Vec<TtyInfoEntry>,
    memory: Vec<MemfdInodeEntry>,
    /// The deleted ones.
    pub(super) ghosts: Ghosts,
    /// Those that have another link only.
    pub links: Links,
}

impl FileTable {
    /// A fresh id. Ids start at 1 and are counted over all files.
    pub(super) fn next_id(&mut self) -> u32 {
        self.given += 1;
        self.given
    }

    /// The id of the open file description behind a descriptor, and whether it is new; one that several processes share
    /// has one id. Descriptors of one inode are told apart by `kcmp(KCMP_FILE)` (man 2 kcmp).
    ///
    /// # Errors
    /// When `kcmp` is refused.
    pub fn description(&mut self, pid: Pid, descriptor: &Descriptor) -> Result<(u32, bool), DumpError> {
        let key = (descriptor.stat.st_dev, descriptor.stat.st_ino);
        let given = self.given;
        let known = self.descriptions.entry(key).or_default();
        // Sorted by the kernel's own order: a file that many processes have open apart is found by few comparisons.
        let mut failed = None;
        let place = known.binary_search_by(|&(other, fd, _)| {
            sys::kcmp::files((other, fd), (pid, descriptor.fd)).unwrap_or_else(|errno| {
                let subject = format!("fd {fd} of process {other} and fd {} of process {pid}", descriptor.fd);
                failed = Some(DumpError::sys(subject, "kcmp", errno));
                Ordering::Equal
            })
        });
        match (place, failed) {
            (_, Some(error)) => Err(error),
            (Ok(at), None) => Ok((known[at].2, false)),
            (Err(at), None) => {
                known.insert(at, (pid, descriptor.fd, given + 1));
                self.given += 1;
                Ok((self.given, true))
            }
        }
    }

    /// Adds an entry whose id came from [`FileTable::description`].
    pub fn push(&mut self, entry: FileEntry) {
        self.entries.push(entry);
    }

    /// The id of the file behind a mapping, which `enter` enters when it is not known yet.
    ///
    /// # Errors
    /// What `enter` errs with.
    pub fn mapped(
        &mut self,
        key: FileKey,
        enter: impl FnOnce(&mut FileTable) -> Result<u32, DumpError>,
    ) -> Result<u32, DumpError> {
        if let Some(id) = self.mapped.get(&key) {
            return Ok(*id);
        }
        let id = enter(self)?;
        self.mapped.insert(key, id);
        Ok(id)
    }

    /// The id of a file that is not an open descriptor: a mapping's file, the executable, a working or root
    /// directory. The same file under the same name gets the same id.
    ///
    /// `at` is where the file is opened (a link in `/proc`), `name` its path in the task's root.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn special(&mut self, pid: Pid, at: &Path, name: &[u8]) -> Result<u32, DumpError> {
        let stat = nix::sys::stat::stat(at)
            .map_err(|errno| DumpError::sys(at.display().to_string(), "stat", errno))?;
        let key = (stat.st_dev, stat.st_ino, name.to_vec());
        if let Some(&id) = self.by_name.get(&key) {
            return Ok(id);
        }
        let id = self.next_id();
        self.by_name.insert(key, id);
        if memfd::is_memory(&stat) {
            let inode_id = self.memory_inode(at, Path::new(OsStr::from_bytes(name)), &stat)?;
            self.entries.push(memfd::mapped_entry(id, inode_id));
            return Ok(id);
        }
        if ghost::is_deleted(&stat) {
            self.ghosts.add(pid, id, at, &stat)?;
        }
        let (size, mode) = reg::validation(&stat, 0);
        self.entries.push(FileEntry {
            r#type: FdTypes::Reg.into(),
            id,
            reg: Some(RegFileEntry {
                id,
                fown: fown::none(),
                name: reg::name_of(name, &stat).to_vec(),
                size,
                mode: Some(mode),
                ..RegFileEntry::default()
            }),
            ..FileEntry::default()
        });
        Ok(id)
    }

    /// The number of a memory file in `memfd.img`, where it is entered once. `at` opens it, `target` is what its link in
    /// `/proc` points at.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn memory_inode(&mut self, at: &Path, target: &Path, stat: &FileStat) -> Result<u32, DumpError> {
        if let Some(known) = self.memory.iter().find(|known| u64::from(known.shmid) == stat.st_ino) {
            return Ok(known.inode_id as u32);
        }
        let id = self.memory.len() as u32 + 1;
        self.memory.push(memfd::inode_entry(at, target, stat, id)?);
        Ok(id)
    }

    /// Whether a memory file that was entered carries `F_SEAL_WRITE` (man 2 fcntl).
    pub fn is_sealed_against_writes(&self, inode: u64) -> bool {
        let known = self.memory.iter().find(|known| u64::from(known.shmid) == inode);
        known.is_some_and(|known| known.seals & libc::F_SEAL_WRITE as u32 != 0)
    }

    /// Whether a named pipe is open, a socket with an address, or a pseudoterminal: a copy could not have it beside the source.
    pub fn is_bound(&self) -> bool {
        !self.fifo_ids.is_empty() || self.has_addresses || !self.ttys.is_empty()
    }

    /// The number that a named pipe has in images: its inode's, unless one of another device has that.
    pub(super) fn fifo_id(&mut self, descriptor: &Descriptor) -> u32 {
        let key = (descriptor.stat.st_dev, descriptor.stat.st_ino);
        if let Some(known) = self.fifo_ids.get(&key) {
            return *known;
        }
        let mut id = descriptor.stat.st_ino as u32;
        while self.fifo_ids.values().any(|taken| *taken == id) {
            id = id.wrapping_add(1);
        }
        self.fifo_ids.insert(key, id);
        id
    }

    /// The images: `files.img`, `memfd.img` if there are memory files, `tty-info.img` if there are terminals, those of deleted
    /// files, `pipes-data.img` and `fifo-data.img` if there are pipes, `sk-queues.img` if something waits at sockets.
    ///
    /// # Errors
    /// When a record is larger than the format allows.
    pub fn images(&self) -> Result<Vec<(String, Bytes)>, ImageError> {
        let mut files = ImageWriter::new(ImageKind::Files);
        for entry in unix::in_order(&self.entries) {
            files.push(entry);
        }
        let mut images = vec![(ImageKind::Files.file_name(0), files.finish()?)];
        if !self.memory.is_empty() {
            let mut memory = ImageWriter::new(ImageKind::Memfd);
            for entry in &self.memory {
                memory.push(entry);
            }
            images.push((ImageKind::Memfd.file_name(0), memory.finish()?));
        }
        if !self.ttys.is_empty() {
            let mut ttys = ImageWriter::new(ImageKind::TtyInfo);
            for entry in &self.ttys {
                ttys.push(entry);
            }
            images.push((ImageKind::TtyInfo.file_name(0), ttys.finish()?));
        }
        images.extend(self.ghosts.images(self.links.remaps())?);
        for (kind, contents) in [(ImageKind::PipesData, &self.pipes), (ImageKind::FifoData, &self.fifos)] {
            if contents.is_empty() {
                continue;
            }
            let mut data = ImageWriter::new(kind);
            for (entry, bytes) in contents.values() {
                data.push(entry).raw(bytes);
            }
            images.push((kind.file_name(0), data.finish()?));
        }
        if !self.sockets.is_empty() {
            let mut queues = ImageWriter::new(ImageKind::SkQueues);
            for (packet, bytes) in &self.sockets {
                queues.push(packet).raw(bytes);
            }
            images.push((ImageKind::SkQueues.file_name(0), queues.finish()?));
        }
        Ok(images)
    }
}
