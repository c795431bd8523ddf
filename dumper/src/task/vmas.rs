//! The memory map of a task, as `mm-PID.img` lists it (images/vma.proto).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::stat;
use nix::unistd::Pid;

use godwit_wire::image::vma::VmaEntry;

use super::files::{FileTable, reg};
use crate::error::DumpError;
use crate::procfs::maps::Vma;
use crate::procfs::ns;
use crate::refusal::{Findings, Subject};

/// Status bits of a mapping (criu/include/image.h).
mod status {
    pub const REGULAR: u32 = 1;
    pub const VSYSCALL: u32 = 1 << 2;
    pub const VDSO: u32 = 1 << 3;
    pub const HEAP: u32 = 1 << 5;
    pub const FILE_PRIVATE: u32 = 1 << 6;
    pub const FILE_SHARED: u32 = 1 << 7;
    pub const ANON_PRIVATE: u32 = 1 << 9;
    pub const VVAR: u32 = 1 << 12;
}

const MAP_SHARED: u32 = libc::MAP_SHARED as u32;
const MAP_PRIVATE: u32 = libc::MAP_PRIVATE as u32;
const MAP_ANONYMOUS: u32 = libc::MAP_ANONYMOUS as u32;

/// `VmFlags` that are flags of `mmap` (fs/proc/task_mmu.c, show_smap_vma_flags).
const MMAP_FLAGS: [(&[u8; 2], u32); 3] = [
    (b"gd", libc::MAP_GROWSDOWN as u32),
    (b"lo", libc::MAP_LOCKED as u32),
    (b"nr", libc::MAP_NORESERVE as u32),
];

/// `VmFlags` that `madvise` sets, with the number of the advice: bit n of `vma_entry.madv`.
const MADVICE: [(&[u8; 2], u32); 8] = [
    (b"sr", libc::MADV_SEQUENTIAL as u32),
    (b"rr", libc::MADV_RANDOM as u32),
    (b"dc", libc::MADV_DONTFORK as u32),
    (b"dd", libc::MADV_DONTDUMP as u32),
    (b"mg", libc::MADV_MERGEABLE as u32),
    (b"hg", libc::MADV_HUGEPAGE as u32),
    (b"nh", libc::MADV_NOHUGEPAGE as u32),
    (b"wf", libc::MADV_WIPEONFORK as u32),
];

/// What a mapping is, as far as it can be dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory: heap, stack, and all else without a file.
    Anonymous,
    /// A private mapping of a file: its changed pages are dumped.
    FilePrivate,
    /// A shared mapping of a file: no page is dumped, the file is the memory.
    FileShared,
    /// The vDSO: all its pages are dumped.
    Vdso,
    /// The kernel's data pages of the vDSO: never dumped.
    Vvar,
    /// The page at the fixed address above user space: listed only.
    Vsyscall,
}

impl Kind {
    /// Whether the mapping's pages belong into the page list.
    pub fn has_pages(self) -> bool {
        matches!(self, Kind::Anonymous | Kind::FilePrivate | Kind::Vdso)
    }
}

/// Decides what a mapping is; refuses by name what cannot be dumped.
pub fn classify(pid: Pid, vma: &Vma, findings: &mut Findings) -> Option<Kind> {
    let name = String::from_utf8_lossy(&vma.path).into_owned();
    match name.as_str() {
        "[vdso]" => return Some(Kind::Vdso),
        "[vvar]" | "[vvar_vclock]" => return Some(Kind::Vvar),
        "[vsyscall]" => return Some(Kind::Vsyscall),
        _ => {}
    }
    let refusal = refusal_of(vma, &name);
    if let Some((why, way_out)) = refusal {
        findings.refuse(subject(pid, vma), why, way_out);
        return None;
    }
    Some(match (vma.inode, vma.shared) {
        (0, false) => Kind::Anonymous,
        (_, false) => Kind::FilePrivate,
        (_, true) => Kind::FileShared,
    })
}

fn refusal_of(vma: &Vma, name: &str) -> Option<(&'static str, &'static str)> {
    let unmap = "let the program unmap it, or run the program without it";
    let has = |flag: &[u8; 2]| vma.has_flag(flag);
    Some(match name {
        "[uprobes]" => ("a probe is set on the program", "remove the probe (perf, bpftrace)"),
        _ if has(b"ht") => ("huge pages of hugetlbfs are not dumped", unmap),
        _ if has(b"ss") => ("a shadow stack is not dumped", "run the program without shadow stacks"),
        _ if has(b"dp") => ("a droppable mapping (MAP_DROPPABLE) is not dumped", unmap),
        _ if name.starts_with("/SYSV") => ("System V shared memory is not dumped", unmap),
        _ if name.starts_with("/memfd:") => ("memory files (memfd) are not dumped", unmap),
        _ if name.starts_with("/[aio]") => {
            ("an AIO ring is not dumped", "let the program end its AIO context")
        }
        _ if name.starts_with("anon_inode:") => ("a mapped kernel object is not dumped", unmap),
        _ if vma.inode == 0 && vma.shared => ("shared anonymous memory is not dumped", unmap),
        _ if name.starts_with("/dev/zero (deleted)") => ("shared anonymous memory is not dumped", unmap),
        _ if (has(b"io") || has(b"pf")) && !vma.shared => ("device memory cannot be dumped", unmap),
        _ => return None,
    })
}

/// How findings name a mapping.
pub fn subject(pid: Pid, vma: &Vma) -> Subject {
    Subject::Mapping {
        pid,
        start: vma.start,
        end: vma.end,
        name: String::from_utf8_lossy(&vma.path).into_owned(),
    }
}

/// Where the kernel gives access to the file of a mapping (man 5 proc, `map_files`).
fn map_file(pid: Pid, vma: &Vma) -> PathBuf {
    format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end).into()
}

/// Checks every mapping; what cannot be dumped is refused by name.
pub fn check_all(pid: Pid, vmas: &[Vma], findings: &mut Findings) {
    for vma in vmas {
        if let Some(Kind::FilePrivate | Kind::FileShared) = classify(pid, vma, findings) {
            check_file(pid, vma, findings);
        }
    }
}

/// Restore opens the file of a mapping by its path: it must be a regular file, still there.
fn check_file(pid: Pid, vma: &Vma, findings: &mut Findings) {
    let refuse = |findings: &mut Findings, why: String| {
        findings.refuse(
            subject(pid, vma),
            why,
            "put the file back under its path, or let the program unmap it",
        );
    };
    let link = map_file(pid, vma);
    let found = match stat(&link) {
        Ok(found) => found,
        // The mapping is gone already: the task runs, and is looked at again under freeze.
        Err(nix::errno::Errno::ENOENT) => return,
        Err(errno) => return refuse(findings, format!("its file cannot be looked at ({errno})")),
    };
    if found.st_mode & libc::S_IFMT != libc::S_IFREG {
        return refuse(findings, "it maps something that is not a regular file".into());
    }
    if found.st_nlink == 0 {
        return refuse(findings, "its file is deleted".into());
    }
    let target = fs::read_link(&link).unwrap_or_default();
    reg::check_path(pid, &target, &found, subject(pid, vma), findings);
}

/// The records of all mappings, in order of address, the vvar mappings merged into one; the files behind
/// them are entered into the table.
///
/// # Errors
/// When a mapping's file cannot be looked at. The mappings must have passed [`check_all`].
pub fn entries(pid: Pid, vmas: &[Vma], table: &mut FileTable) -> Result<Vec<VmaEntry>, DumpError> {
    let mut entries: Vec<VmaEntry> = Vec::with_capacity(vmas.len());
    for vma in vmas {
        let mut late = Findings::default();
        let kind = classify(pid, vma, &mut late).ok_or_else(|| DumpError::from_findings(late))?;
        let entry = entry(pid, vma, kind, table)?;
        match entries.last_mut() {
            Some(last) if kind == Kind::Vvar && last.status == entry.status && last.end == entry.start => {
                last.end = entry.end;
            }
            _ => entries.push(entry),
        }
    }
    Ok(entries)
}

fn entry(pid: Pid, vma: &Vma, kind: Kind, table: &mut FileTable) -> Result<VmaEntry, DumpError> {
    let (mut flags, status) = match kind {
        Kind::Anonymous if vma.path == b"[heap]" => {
            (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::HEAP | status::ANON_PRIVATE)
        }
        Kind::Anonymous => (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::ANON_PRIVATE),
        Kind::FilePrivate => (MAP_PRIVATE, status::REGULAR | status::FILE_PRIVATE),
        Kind::FileShared => (MAP_SHARED, status::REGULAR | status::FILE_SHARED),
        Kind::Vdso => (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::VDSO | status::ANON_PRIVATE),
        Kind::Vvar => (MAP_PRIVATE | MAP_ANONYMOUS, status::REGULAR | status::VVAR | status::ANON_PRIVATE),
        Kind::Vsyscall => (MAP_PRIVATE | MAP_ANONYMOUS, status::VSYSCALL | status::ANON_PRIVATE),
    };
    flags |= MMAP_FLAGS.iter().filter(|(name, _)| vma.has_flag(name)).fold(0, |all, (_, flag)| all | flag);
    let madv =
        MADVICE.iter().filter(|(name, _)| vma.has_flag(name)).fold(0, |all, (_, bit)| all | 1u64 << bit);
    let (shmid, fdflags) = match kind {
        Kind::FilePrivate | Kind::FileShared => file_of(pid, vma, table)?,
        _ => (0, None),
    };
    Ok(VmaEntry {
        start: vma.start,
        end: vma.end,
        pgoff: vma.pgoff,
        shmid,
        prot: prot(vma),
        flags,
        status,
        fd: -1,
        madv: (madv != 0).then_some(madv),
        fdflags,
    })
}

/// `PROT_*` (man 2 mmap).
fn prot(vma: &Vma) -> u32 {
    let bit = |on: bool, prot: i32| if on { prot as u32 } else { 0 };
    bit(vma.read, libc::PROT_READ) | bit(vma.write, libc::PROT_WRITE) | bit(vma.exec, libc::PROT_EXEC)
}

/// The file's id, and the access mode it is mapped with: the mode bits of its `map_files` link.
fn file_of(pid: Pid, vma: &Vma, table: &mut FileTable) -> Result<(u64, Option<u32>), DumpError> {
    let link = map_file(pid, vma);
    let failed = |what| {
        let subject = subject(pid, vma).to_string();
        move |source| DumpError::sys(subject, what, source)
    };
    let target = fs::read_link(&link).map_err(failed("readlink of its map_files link"))?;
    let mode =
        fs::symlink_metadata(&link).map_err(failed("lstat of its map_files link"))?.permissions().mode();
    let fdflags = match mode & 0o600 {
        0o200 => libc::O_WRONLY,
        0o400 => libc::O_RDONLY,
        _ => libc::O_RDWR,
    };
    let id = table.special(&link, target.as_os_str().as_bytes())?;
    Ok((u64::from(id), Some(fdflags as u32)))
}

/// Looks a directory or executable of the task up and enters it into the table.
///
/// # Errors
/// When the link cannot be read or its target is another file than its path.
pub fn special_file(pid: Pid, name: &str, table: &mut FileTable) -> Result<u32, DumpError> {
    let link = PathBuf::from(format!("/proc/{pid}/{name}"));
    let target = fs::read_link(&link)
        .map_err(|source| DumpError::sys(link.display().to_string(), "readlink", source))?;
    table.special(&link, target.as_os_str().as_bytes())
}

/// Checks that the executable, working and root directories can be opened by their paths.
pub fn check_special_files(pid: Pid, findings: &mut Findings) {
    for name in ["exe", "cwd"] {
        let link = PathBuf::from(format!("/proc/{pid}/{name}"));
        let Ok(target) = fs::read_link(&link) else { continue };
        let Ok(found) = fs::metadata(&link) else { continue };
        let path = reg::in_root(pid, &target);
        let same = fs::metadata(&path).is_ok_and(|at| (at.dev(), at.ino()) == (found.dev(), found.ino()));
        if !same {
            findings.refuse(
                Subject::Process(pid),
                format!("its {name} is {}, and that is not what the path holds now", target.display()),
                "put it back under its path",
            );
        }
    }
    let changed =
        Path::new(&format!("/proc/{pid}/root")).read_link().is_ok_and(|root| root != Path::new("/"));
    let mounts = |pid| ns::read(pid, ns::Kind::Mnt).ok();
    if changed && mounts(pid) != mounts(Pid::this()) {
        findings.refuse(
            Subject::Process(pid),
            "it changed its root directory (chroot) inside another mount namespace",
            "run it in the root directory of that namespace",
        );
    }
}
