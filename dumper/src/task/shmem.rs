//! Shared memory segments: the contents of memfds and of shared anonymous memory, in lists of pages of their own.
//!
//! A segment is read from the file itself, also where no mapping covers it. What a round need not send of it is told by
//! its contents (`predump::segments`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, makedev};
use nix::unistd::{Pid, Whence, lseek};

use godwit_wire::plan::{PAGE_SIZE, PE_PRESENT, PageRun};

use super::files::{Descriptor, ghost, memfd};
use super::vmas;
use crate::collect::tree::descends;
use crate::error::DumpError;
use crate::procfs::fdinfo;
use crate::procfs::maps::{self, Vma};
use crate::procfs::tree::processes;
use crate::refusal::{Findings, Subject};
use crate::sys;

/// A segment, open for reading.
#[derive(Debug)]
pub struct Segment {
    /// What names its images: the inode number.
    pub id: u64,
    file: File,
    len_bytes: u64,
    /// How errors name it.
    subject: String,
    /// A process that has it.
    pub pid: Pid,
}

/// What tells files apart: device and inode number.
type Key = (u64, u64);

/// A memory file that was met.
struct Met {
    /// Its inode number.
    id: u64,
    device: u64,
    /// Who has it.
    pid: Pid,
    /// Where it can be opened.
    at: PathBuf,
    subject: Subject,
}

/// A process, and where it may have memory files.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The process.
    pub pid: Pid,
    /// Its mappings.
    pub vmas: &'a [Vma],
    /// Its descriptors.
    pub descriptors: &'a [Descriptor],
}

/// Opens every segment that processes map or have open, each once, whoever has it.
///
/// # Errors
/// When one cannot be opened, or two have the same number. The processes must be stopped.
pub fn collect(holders: &[Holder<'_>]) -> Result<Vec<Segment>, DumpError> {
    let mut findings = Findings::default();
    let found = each_once(holders.iter().copied().flat_map(met), &mut findings);
    if !findings.refusals.is_empty() {
        return Err(DumpError::from_findings(findings));
    }
    found.into_iter().map(|(id, (pid, at))| Segment::open(pid, id, &at)).collect()
}

/// Refuses memory files that images could not tell apart.
pub fn check(holders: &[Holder<'_>], findings: &mut Findings) {
    each_once(holders.iter().copied().flat_map(met), findings);
}

/// Every memory file that a process maps or has open, as often as it does.
fn met(Holder { pid, vmas: all, descriptors }: Holder<'_>) -> impl Iterator<Item = Met> {
    let mapped = all.iter().filter(|vma| vmas::is_memory_file(vma)).map(move |vma| {
        let (device, inode) = key_of(vma);
        Met { id: inode, device, pid, at: vmas::map_file(pid, vma), subject: vmas::subject(pid, vma) }
    });
    let open =
        descriptors.iter().filter(|descriptor| memfd::is_memory(&descriptor.stat)).map(move |descriptor| {
            let at = format!("/proc/self/fd/{}", descriptor.copy.as_raw_fd()).into();
            let (id, device) = (descriptor.stat.st_ino, descriptor.stat.st_dev);
            Met { id, device, pid, at, subject: descriptor.subject(pid) }
        });
    mapped.chain(open)
}

fn key_of(vma: &Vma) -> Key {
    (makedev(u64::from(vma.major), u64::from(vma.minor)), vma.inode)
}

/// Every memory file by its number. Those of huge pages lie on devices of their own, and are numbered apart from the
/// others.
fn each_once(met: impl Iterator<Item = Met>, findings: &mut Findings) -> BTreeMap<u64, (Pid, PathBuf)> {
    let mut devices = BTreeMap::new();
    let mut found = BTreeMap::new();
    for Met { id, device, pid, at, subject } in met {
        if *devices.entry(id).or_insert(device) != device {
            let why = "another memory file has the same inode number, by which alone images tell them apart";
            findings.refuse(subject, why, "let the program make it anew");
        }
        found.entry(id).or_insert((pid, at));
    }
    found
}

/// Opens every segment that running processes map or have open, each once. One that is gone by then, or cannot be opened,
/// is left out: the last set asks again.
pub fn collect_running<'a>(holders: impl Iterator<Item = (Pid, &'a [Vma])>) -> Vec<Segment> {
    let mut found: BTreeMap<u64, (Pid, PathBuf)> = BTreeMap::new();
    for (pid, all) in holders {
        for vma in all.iter().filter(|vma| vmas::is_memory_file(vma)) {
            found.entry(vma.inode).or_insert_with(|| (pid, vmas::map_file(pid, vma)));
        }
        for fd in fdinfo::list(pid).unwrap_or_default() {
            let at = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
            // By name first: to stat a file of a network that hangs would hang as well.
            let is_named = fs::read_link(&at).is_ok_and(|target| memfd::has_name_of_memory(&target));
            if let (true, Ok(stat)) = (is_named, nix::sys::stat::stat(&at))
                && memfd::is_memory(&stat)
            {
                found.entry(stat.st_ino).or_insert((pid, at));
            }
        }
    }
    let open = |(id, (pid, at)): (u64, (Pid, PathBuf))| {
        let segment = Segment::open(pid, id, &at);
        segment
            .inspect_err(|error| tracing::debug!(id, "not in this round: {}", crate::commands::chain(error)))
            .ok()
    };
    found.into_iter().filter_map(open).collect()
}

impl Segment {
    /// Its size in pages.
    pub fn pages(&self) -> u64 {
        self.len_bytes.div_ceil(PAGE_SIZE)
    }

    /// Opens the file `at`, which must be the one with the inode number `id`.
    ///
    /// # Errors
    /// When it cannot be opened, or is another.
    pub fn open(pid: Pid, id: u64, at: &Path) -> Result<Segment, DumpError> {
        let subject = format!("shared memory {id} of process {pid}");
        let failed = |what| {
            let subject = subject.clone();
            move |source: io::Error| DumpError::sys(subject, what, source)
        };
        // Without a trace: not even the time of the last access changes.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(at);
        let file = file.map_err(failed("opening it"))?;
        let stat = file.metadata().map_err(failed("looking at it"))?;
        if stat.ino() != id {
            return Err(failed("looking at it")(io::Error::other("it is another file by now")));
        }
        Ok(Segment { id, len_bytes: stat.len(), file, subject, pid })
    }

    /// Its pages that hold something: offsets stand for addresses.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn data(&self) -> Result<Vec<PageRun>, DumpError> {
        let mut runs: Vec<PageRun> = Vec::new();
        let mut at = 0;
        while at < self.len_bytes {
            let Some(data) = self.seek(at, Whence::SeekData)?.filter(|data| *data < self.len_bytes) else {
                break;
            };
            let hole = self.seek(data, Whence::SeekHole)?.unwrap_or(self.len_bytes).min(self.len_bytes);
            // A running process may punch the hole between the two questions.
            let (start, end) = (data / PAGE_SIZE * PAGE_SIZE, hole.max(data + 1).next_multiple_of(PAGE_SIZE));
            at = end;
            let nr_pages = (end - start) / PAGE_SIZE;
            match runs.last_mut() {
                Some(last) if last.end() == start => last.nr_pages += nr_pages,
                _ => runs.push(PageRun { vaddr: start, nr_pages, flags: PE_PRESENT }),
            }
        }
        Ok(runs)
    }

    /// The error for pages that cannot be read.
    pub fn unreadable(&self, source: io::Error) -> DumpError {
        DumpError::sys(self.subject.clone(), "reading it", source)
    }

    fn seek(&self, from: u64, whence: Whence) -> Result<Option<u64>, DumpError> {
        match lseek(&self.file, from as i64, whence) {
            Ok(at) => Ok(Some(at as u64)),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(DumpError::sys(self.subject.clone(), "looking for its pages", errno)),
        }
    }

    /// Reads the bytes at an offset; behind the page that it ends in there are zeros. What that page holds behind the
    /// end is read as well: whoever maps the file can store there.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let rest = &mut into[done..];
        rest.fill(0);
        let end = offset + done as u64;
        if end.is_multiple_of(PAGE_SIZE) || rest.is_empty() {
            return Ok(());
        }
        let page = end - end % PAGE_SIZE;
        // To touch a hole would fill it.
        if !matches!(lseek(&self.file, page as i64, Whence::SeekData), Ok(data) if (data as u64) < end) {
            return Ok(());
        }
        let mut whole = [0; PAGE_SIZE as usize];
        match sys::memory::read_mapped(self.file.as_fd(), page, &mut whole) {
            Ok(()) => {
                let tail = &whole[(end - page) as usize..];
                let len = tail.len().min(rest.len());
                rest[..len].copy_from_slice(&tail[..len]);
                Ok(())
            }
            // It was cut since: there is no such page any more.
            Err(Errno::EFAULT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Names each segment, and each deleted file that is open or mapped shared, that a process outside of the tree has too:
/// what is restored is a copy of its own. A private mapping of a deleted file is a copy of its own before.
pub fn sharers(tree: &[Holder<'_>], findings: &mut Findings) {
    let mut files = Shareable::default();
    for Holder { pid, vmas: all, descriptors } in tree.iter().copied() {
        for vma in all {
            if vmas::is_memory_file(vma) {
                files.add(key_of(vma), || vmas::subject(pid, vma));
            } else if let Some(stat) = vma.shared.then(|| vmas::deleted_file(pid, vma)).flatten() {
                files.add_deleted(&stat, &vma.path, || vmas::subject(pid, vma));
            }
        }
        for descriptor in descriptors {
            let stat = &descriptor.stat;
            if memfd::is_memory(stat) {
                files.add((stat.st_dev, stat.st_ino), || descriptor.subject(pid));
            } else if ghost::is_deleted_file(stat) {
                let name = descriptor.target.as_os_str().as_bytes();
                files.add_deleted(stat, name, || descriptor.subject(pid));
            }
        }
    }
    if files.subjects.is_empty() {
        return;
    }
    // The dumper's own duplicates do not count.
    let ours: BTreeSet<Pid> = tree.iter().map(|holder| holder.pid).chain([Pid::this()]).collect();
    let is_other = |other: &Pid| !ours.contains(other);
    let others = processes().unwrap_or_default().into_iter().filter(is_other);
    for other in others {
        for shared in files.held_by(other) {
            // What the tree has made since it was listed is a part of it.
            if descends(other, &ours) {
                break;
            }
            if let Some(subject) = files.subjects.remove(&shared) {
                let what = format!("process {other} shares it: after a restore each has its own copy");
                findings.lose(subject, what);
            }
        }
        if files.subjects.is_empty() {
            return;
        }
    }
}

/// Files that a process outside may have too.
#[derive(Default)]
struct Shareable {
    subjects: BTreeMap<Key, Subject>,
    /// The last part of the name of each that is deleted.
    names: BTreeSet<Vec<u8>>,
}

impl Shareable {
    fn add(&mut self, key: Key, subject: impl FnOnce() -> Subject) {
        self.subjects.entry(key).or_insert_with(subject);
    }

    fn add_deleted(&mut self, stat: &FileStat, name: &[u8], subject: impl FnOnce() -> Subject) {
        self.names.insert(last_part(name).to_vec());
        self.add((stat.st_dev, stat.st_ino), subject);
    }

    /// Whether a link or a mapping may lead to one of the deleted, by its name: to stat a file of a network that hangs
    /// would hang as well. Other processes may see the file under another directory.
    fn has_name_of_deleted(&self, name: &[u8]) -> bool {
        ghost::has_name_of_deleted(name) && self.names.contains(last_part(name))
    }

    /// Which of them a process maps or has open. One that ended or may not be looked at holds none.
    fn held_by(&self, other: Pid) -> Vec<Key> {
        let key = |stat: FileStat| (stat.st_dev, stat.st_ino);
        let mapped = maps::read(other).unwrap_or_default().into_iter().filter_map(|vma| {
            if vmas::is_memory_file(&vma) {
                return Some(key_of(&vma));
            }
            self.has_name_of_deleted(&vma.path).then(|| vmas::deleted_file(other, &vma)).flatten().map(key)
        });
        let links = fs::read_dir(format!("/proc/{other}/fd")).into_iter().flatten().flatten();
        let open = links.map(|link| link.path()).filter_map(|link| {
            let target = fs::read_link(&link).ok()?;
            let is_named =
                memfd::has_name_of_memory(&target) || self.has_name_of_deleted(target.as_os_str().as_bytes());
            let stat = is_named.then(|| nix::sys::stat::stat(&link).ok()).flatten()?;
            Some(key(stat))
        });
        mapped.chain(open).filter(|key| self.subjects.contains_key(key)).collect()
    }
}

fn last_part(name: &[u8]) -> &[u8] {
    name.rsplit(|byte| *byte == b'/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn two_memory_files_of_one_number_are_refused() {
        let pid = Pid::this();
        let met =
            |id, device, at: &str| Met { id, device, pid, at: at.into(), subject: Subject::Process(pid) };
        let mut findings = Findings::default();
        let found = each_once([met(1, 5, "a"), met(2, 6, "b"), met(1, 5, "c")].into_iter(), &mut findings);
        assert_eq!(found, [(1, (pid, "a".into())), (2, (pid, "b".into()))].into());
        assert_eq!(findings, Findings::default());
        each_once([met(1, 5, "a"), met(1, 6, "b")].into_iter(), &mut findings);
        assert_eq!(findings.refusals.len(), 1, "{findings:?}");
    }

    #[test]
    fn what_is_stored_behind_the_end_of_the_last_page_is_read_and_no_hole_filled() {
        let file = File::from(memfd_create(c"tail", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(PAGE_SIZE + 100).unwrap();
        let at = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let segment = Segment::open(Pid::this(), file.metadata().unwrap().ino(), &at).unwrap();
        let mut bytes = [7; 3 * PAGE_SIZE as usize];
        segment.read(0, &mut bytes).unwrap();
        assert_eq!((bytes, file.metadata().unwrap().blocks()), ([0; 3 * PAGE_SIZE as usize], 0));
        let mut page = [0; PAGE_SIZE as usize];
        (page[1], page[99], page[200], page[4095]) = (1, 2, 3, 4);
        sys::memory::write_mapped(file.as_fd(), PAGE_SIZE, &page).unwrap();
        segment.read(0, &mut bytes).unwrap();
        assert_eq!(bytes[..4096], [0; 4096]);
        assert_eq!(bytes[4096..8192], page);
        assert_eq!(bytes[8192..], [0; 4096]);
        // Whoever cut the file meanwhile is told apart from a failure.
        file.set_len(0).unwrap();
        let read = sys::memory::read_mapped(file.as_fd(), PAGE_SIZE, &mut page);
        assert_eq!(read, Err(Errno::EFAULT));
    }

    #[test]
    fn a_segment_is_listed_where_it_holds_something_and_read_with_zeros_behind_its_end() {
        let mut file = File::from(memfd_create(c"segment", MFdFlags::MFD_CLOEXEC).unwrap());
        file.write_all(b"first").unwrap();
        file.seek(SeekFrom::Start(9 * PAGE_SIZE)).unwrap();
        file.write_all(b"last").unwrap();
        file.set_len(20 * PAGE_SIZE + 5).unwrap();
        let at = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let segment = Segment::open(Pid::this(), file.metadata().unwrap().ino(), &at).unwrap();
        let run = |page: u64| PageRun { vaddr: page * PAGE_SIZE, nr_pages: 1, flags: PE_PRESENT };
        assert_eq!(segment.data().unwrap(), [run(0), run(9)]);
        let mut page = [7; PAGE_SIZE as usize];
        segment.read(20 * PAGE_SIZE, &mut page).unwrap();
        assert_eq!(page, [0; PAGE_SIZE as usize]);
        segment.read(9 * PAGE_SIZE, &mut page).unwrap();
        assert_eq!(&page[..5], b"last\0");
        assert!(Segment::open(Pid::this(), 1, &at).is_err(), "another file is noticed");
    }
}
