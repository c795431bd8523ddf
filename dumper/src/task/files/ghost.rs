//! Ghost files: deleted files that a task has open or mapped. Their contents travel in the images, and restore makes
//! them anew for as long as it takes to open them (`remap-fpath.img`, `ghost-file-ID.img`; criu/files-reg.c).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, major, minor};
use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use nix::unistd::{Pid, Whence, lseek};

use godwit_wire::image::ghost_file::{GhostChunkEntry, GhostFileEntry};
use godwit_wire::image::remap_file_path::{RemapFilePathEntry, RemapType};
use godwit_wire::image::time::Timeval;
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use super::filesystem;
use crate::error::DumpError;
use crate::refusal::{Findings, Subject};

/// Contents that a deleted file may have unless `--ghost-limit` says more, in bytes: as in CRIU.
pub const LIMIT_BYTES: u64 = 1 << 20;
/// The largest limit that can be given, in bytes: an image must fit a message to the page server.
pub const LIMIT_BYTES_MAX: u64 = 200 << 20;
/// What all deleted files together may bring into the images, in bytes: they are held in memory until the end.
const ALL_BYTES_MAX: u64 = 256 << 20;
/// From this size on CRIU writes a file in pieces, and leaves its holes out (`GHOST_CHUNKS_THRESH`).
const CHUNKS_FROM_BYTES: u64 = 3 * 4096;
/// Unit of `st_blocks`, in bytes (man 3 stat).
const BLOCK_BYTES: u64 = 512;
/// What the kernel puts behind the name of a file without a link (fs/d_path.c).
const DELETED: &[u8] = b" (deleted)";

/// Whether the file has no link left.
pub fn is_deleted(stat: &FileStat) -> bool {
    stat.st_nlink == 0
}

/// Whether it is a regular file that has no link left.
pub fn is_deleted_file(stat: &FileStat) -> bool {
    is_deleted(stat) && stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// Whether a name, as `/proc` shows it, may be that of a deleted file.
pub fn has_name_of_deleted(name: &[u8]) -> bool {
    name.ends_with(DELETED)
}

/// The name that a deleted file had.
pub fn former_name(target: &[u8]) -> &[u8] {
    target.strip_suffix(DELETED).unwrap_or(target)
}

/// Refuses a deleted file that is too large, or of a kind that is not made anew. `at` leads to it.
pub fn check(at: &Path, stat: &FileStat, limit: u64, subject: Subject, findings: &mut Findings) {
    let close = "let the program close or unmap it, or keep the file until the process was moved";
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let held = held_bytes(stat);
    let is_huge = || filesystem::magic(stat.st_dev, || statfs(at)) == Some(HUGETLBFS_MAGIC.0);
    match kind {
        SFlag::S_IFDIR | SFlag::S_IFIFO => {}
        SFlag::S_IFREG if is_huge() => findings.refuse(
            subject,
            "its file is deleted and lies on hugetlbfs, where a restore cannot write it anew",
            "let the program close or unmap it, keep the file until the process was moved, or use a memfd of huge pages",
        ),
        SFlag::S_IFREG if held <= limit && stat.st_size as u64 <= LIMIT_BYTES_MAX => {}
        SFlag::S_IFREG if held <= LIMIT_BYTES_MAX && stat.st_size as u64 <= LIMIT_BYTES_MAX => findings.refuse(
            subject,
            format!("its file is deleted and holds {held} bytes, more than --ghost-limit ({limit}) lets into the images"),
            format!("give --ghost-limit {}M", held.div_ceil(1 << 20)),
        ),
        SFlag::S_IFREG => {
            findings.refuse(subject, "its file is deleted, and too large for an image", close);
        }
        _ => findings.refuse(subject, "it is deleted, and only files, directories and named pipes are made anew", close),
    }
}

/// Refuses deleted files that are more together than is held in memory. Each is counted once.
pub fn check_all(pid: Pid, deleted: impl Iterator<Item = FileStat>, findings: &mut Findings) {
    let each: BTreeMap<(u64, u64), u64> =
        deleted.map(|stat| ((stat.st_dev, stat.st_ino), held_bytes(&stat))).collect();
    let sum = each.values().fold(0, |sum: u64, held| sum.saturating_add(*held));
    if sum > ALL_BYTES_MAX {
        too_many(pid, sum, findings);
    }
}

fn too_many(pid: Pid, bytes: u64, findings: &mut Findings) {
    findings.refuse(
        Subject::Process(pid),
        format!("its deleted files hold {bytes} bytes together, and images take {ALL_BYTES_MAX}"),
        "let the program close or unmap some, or keep the files until the process was moved",
    );
}

fn held_bytes(stat: &FileStat) -> u64 {
    (stat.st_blocks as u64).saturating_mul(BLOCK_BYTES)
}

/// The deleted files met so far.
#[derive(Debug, Default)]
pub struct Ghosts {
    known: Vec<(u64, u64)>,
    remaps: Vec<RemapFilePathEntry>,
    images: Vec<(String, Bytes)>,
    /// The sum of the images.
    bytes: u64,
}

impl Ghosts {
    /// Enters a deleted file of process `pid` under the id that it has in `files.img`. `at` opens it. One that was met before is not
    /// copied again.
    ///
    /// # Errors
    /// When it cannot be read, or all together are too large.
    pub fn add(&mut self, pid: Pid, orig_id: u32, at: &Path, stat: &FileStat) -> Result<(), DumpError> {
        let key = (stat.st_dev, stat.st_ino);
        let known = self.known.iter().position(|known| *known == key);
        let index = match known {
            Some(index) => index,
            None => {
                let id = self.known.len() as u64 + 1;
                let failed =
                    |source| DumpError::sys(at.display().to_string(), "copying a deleted file", source);
                let bytes = image(at, stat).map_err(failed)?;
                self.bytes += bytes.len() as u64;
                // The heads of the records are not what is bounded.
                if self.bytes > ALL_BYTES_MAX + ALL_BYTES_MAX / 16 {
                    let mut findings = Findings::default();
                    too_many(pid, self.bytes, &mut findings);
                    return Err(DumpError::from_findings(findings));
                }
                self.images.push((ImageKind::GhostFile.file_name(id), bytes));
                self.known.push(key);
                self.known.len() - 1
            }
        };
        let remap_type = Some(RemapType::Ghost.into());
        self.remaps.push(RemapFilePathEntry { orig_id, remap_id: index as u32 + 1, remap_type });
        Ok(())
    }

    /// Enters a file of process `owner` in `/proc`, which is gone; once for each process.
    pub fn add_dead(&mut self, orig_id: u32, owner: u32) {
        let remap_type = Some(RemapType::Procfs.into());
        let is_known = |known: &RemapFilePathEntry| known.remap_type == remap_type && known.remap_id == owner;
        if !self.remaps.iter().any(is_known) {
            self.remaps.push(RemapFilePathEntry { orig_id, remap_id: owner, remap_type });
        }
    }

    /// The images: none without a deleted file, nor `more` files that are found elsewhere than under their path.
    ///
    /// # Errors
    /// When a record is larger than the format allows.
    pub fn images(&self, more: &[RemapFilePathEntry]) -> Result<Vec<(String, Bytes)>, ImageError> {
        if self.remaps.is_empty() && more.is_empty() {
            return Ok(Vec::new());
        }
        let mut remaps = ImageWriter::new(ImageKind::RemapFilePath);
        for remap in self.remaps.iter().chain(more) {
            remaps.push(remap);
        }
        let mut images = self.images.clone();
        images.push((ImageKind::RemapFilePath.file_name(0), remaps.finish()?));
        Ok(images)
    }
}

fn image(at: &Path, stat: &FileStat) -> io::Result<Bytes> {
    let is_file = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
    let size = stat.st_size as u64;
    let in_chunks = is_file && size >= CHUNKS_FROM_BYTES;
    let time =
        |seconds: i64, nanos: i64| Some(Timeval { tv_sec: seconds as u64, tv_usec: nanos as u64 / 1000 });
    let mut writer = ImageWriter::new(ImageKind::GhostFile);
    let entry = writer.push(&GhostFileEntry {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode,
        dev: Some(kernel_dev(stat.st_dev)),
        ino: Some(stat.st_ino),
        rdev: None,
        atim: time(stat.st_atime, stat.st_atime_nsec),
        mtim: time(stat.st_mtime, stat.st_mtime_nsec),
        chunks: in_chunks.then_some(true),
        size: in_chunks.then_some(size),
        symlnk_target: None,
    });
    if is_file {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(at)?;
        if in_chunks {
            for (offset, len) in pieces(size, |from, whence| lseek(&file, from, whence))? {
                writer.push(&GhostChunkEntry { len, off: offset }).raw(&read(&file, offset, len)?);
            }
        } else {
            entry.raw(&read(&file, 0, size)?);
        }
    }
    writer.finish().map_err(io::Error::other)
}

/// The pieces of a file that hold something: offset and length in bytes. `seek` is `lseek` of the file.
fn pieces(size: u64, mut seek: impl FnMut(i64, Whence) -> nix::Result<i64>) -> io::Result<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match seek(at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = (seek(data as i64, Whence::SeekHole)? as u64).min(size);
        if hole <= data {
            // Another process punched a hole between the two questions. No file system has blocks smaller than that.
            at = (data / BLOCK_BYTES + 1) * BLOCK_BYTES;
            continue;
        }
        pieces.push((data, hole - data));
        at = hole;
    }
    Ok(pieces)
}

fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|len| *len as u64 <= LIMIT_BYTES_MAX);
    let mut bytes = vec![0; len.ok_or(io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// A device number in the kernel's own form: 20 bits of minor number (include/linux/kdev_t.h).
fn kernel_dev(dev: u64) -> u32 {
    (major(dev) << 20 | minor(dev)) as u32
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::stat::fstat;

    use super::*;

    fn link(file: &impl AsRawFd) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    #[test]
    fn a_deleted_file_of_huge_pages_is_refused_by_name() {
        // It lies on hugetlbfs, and takes no huge page. There are kernels without.
        let Ok(file) = memfd_create(c"x", MFdFlags::MFD_HUGETLB) else { return };
        let mut findings = Findings::default();
        let stat = fstat(&file).unwrap();
        check(&link(&file), &stat, LIMIT_BYTES, Subject::Process(Pid::this()), &mut findings);
        assert!(findings.refusals[0].why.contains("hugetlbfs"), "{findings:?}");
    }

    #[test]
    fn a_hole_that_is_punched_between_two_questions_ends_nothing() {
        // Data from 0 to 4096, gone when its end is asked for, and from 8192 on.
        let seek = |from: i64, whence: Whence| match (from, whence) {
            (0, Whence::SeekData) => Ok(0),
            (0, _) => Ok(0),
            (1..=8192, Whence::SeekData) => Ok(8192),
            (8192, Whence::SeekHole) => Ok(12288),
            _ => Err(Errno::ENXIO),
        };
        assert_eq!(pieces(20000, seek).unwrap(), [(8192, 4096)]);
    }

    #[test]
    fn all_deleted_files_together_are_bounded_and_each_counts_once() {
        let file = tempfile::tempfile().unwrap();
        let of = |ino, bytes: u64| {
            let mut stat = fstat(&file).unwrap();
            (stat.st_ino, stat.st_blocks) = (ino, (bytes / BLOCK_BYTES) as i64);
            stat
        };
        let refused = |met: &[FileStat]| {
            let mut findings = Findings::default();
            check_all(Pid::this(), met.iter().copied(), &mut findings);
            findings.refusals.len()
        };
        let half = ALL_BYTES_MAX / 2;
        assert_eq!(refused(&[of(1, half), of(2, half), of(1, half)]), 0);
        assert_eq!(refused(&[of(1, half), of(2, half), of(3, BLOCK_BYTES)]), 1);
        let mut ghosts = Ghosts { bytes: ALL_BYTES_MAX * 2, ..Ghosts::default() };
        let error = ghosts.add(Pid::this(), 1, &link(&file), &of(1, 0)).unwrap_err();
        assert!(matches!(error, DumpError::Refused(_)), "{error}");
    }

    #[test]
    fn the_kernels_words_are_taken_off_once() {
        assert_eq!(former_name(b"/a (deleted) (deleted)"), b"/a (deleted)");
        assert_eq!(former_name(b"/a"), b"/a");
    }

    #[test]
    fn a_sparse_file_is_written_without_its_holes_and_once() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.seek(SeekFrom::Start(64 << 20)).unwrap();
        file.write_all(b"end").unwrap();
        let stat = fstat(&file).unwrap();
        let at = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let mut ghosts = Ghosts::default();
        ghosts.add(Pid::this(), 5, Path::new(&at), &stat).unwrap();
        ghosts.add(Pid::this(), 6, Path::new(&at), &stat).unwrap();
        let images = ghosts.images(&[]).unwrap();
        let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ghost-file-1.img", "remap-fpath.img"]);
        assert!(images[0].1.len() < 64 << 10, "{} bytes", images[0].1.len());
    }

    #[test]
    fn what_is_too_large_is_refused_with_the_limit_that_would_do() {
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&vec![1; 3 << 20]).unwrap();
        let stat = fstat(&file).unwrap();
        let subject = || Subject::Process(Pid::this());
        let mut findings = Findings::default();
        let at = link(&file);
        check(&at, &stat, 4 << 20, subject(), &mut findings);
        assert_eq!(findings, Findings::default());
        check(&at, &stat, LIMIT_BYTES, subject(), &mut findings);
        assert_eq!(findings.refusals[0].way_out, "give --ghost-limit 3M");
    }
}
