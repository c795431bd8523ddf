//! The descriptors of a task, and the files behind its mappings, as `files.img` and `fdinfo-N.img` list them.
//!
//! A descriptor is duplicated into the dumper by `pidfd_getfd` and looked at there: nothing runs in the
//! task. `reg` are files, directories and the character devices that CRIU knows, `ghost` are deleted files, `memfd` are memory files, `pipe` are
//! pipes with all ends in the tree, `fown` is who is signalled for a descriptor. All else is offered to
//! plugins (`external`) or refused by name (`unknown`). `filesystem` tells what a file lies on.

pub mod external;
pub mod filesystem;
pub mod fown;
pub mod ghost;
pub mod huge;
pub mod memfd;
pub mod pipe;
pub mod reg;
pub mod table;
pub mod unknown;

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FdinfoEntry};

use crate::error::DumpError;
use crate::procfs::fdinfo::FdInfo;
use crate::refusal::{Findings, Subject};
use crate::sys;

pub use table::FileTable;

/// `O_CLOEXEC` there: a property of the descriptor, not of the file.
const O_CLOEXEC: u32 = 0o2_000_000;
/// Major number of `/dev/null`, `/dev/zero`, `/dev/urandom` and their kind
/// (Documentation/admin-guide/devices.txt).
const MEM_MAJOR: u64 = 1;

/// One open descriptor of a task, duplicated into the dumper.
#[derive(Debug)]
pub struct Descriptor {
    /// Its number in the task.
    pub fd: i32,
    /// Our duplicate; shares the open file description.
    pub copy: OwnedFd,
    /// What `/proc/PID/fdinfo/N` says.
    pub info: FdInfo,
    /// `fstat` of the file.
    pub stat: FileStat,
    /// What `/proc/PID/fd/N` points at.
    pub target: PathBuf,
}

impl Descriptor {
    /// The flags of the open file description (`F_GETFL`).
    pub fn file_flags(&self) -> u32 {
        self.info.flags & !O_CLOEXEC
    }

    fn closes_on_exec(&self) -> bool {
        self.info.flags & O_CLOEXEC != 0
    }

    /// How findings name it.
    pub fn subject(&self, pid: Pid) -> Subject {
        Subject::Descriptor { pid, fd: self.fd, target: self.target.display().to_string() }
    }
}

/// What kind of file a descriptor is, as far as it can be dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, directory or known character device, restored by its path.
    Regular,
    /// A memory file: a memfd, or shared anonymous memory that was opened.
    Memory,
    /// An anonymous pipe.
    Pipe,
    /// One of a kind that godwit does not know, where a plugin may.
    External,
}

/// Duplicates every descriptor of a task. The task may run; a descriptor that it closes meanwhile is left
/// out.
///
/// # Errors
/// When the list, a duplicate or its facts cannot be had.
pub fn open_all(pid: Pid, pidfd: &OwnedFd) -> Result<Vec<Descriptor>, DumpError> {
    let mut all = Vec::new();
    for fd in crate::procfs::fdinfo::list(pid)? {
        let subject = || format!("fd {fd} of process {pid}");
        let copy = match sys::pidfd::getfd(pidfd.as_fd(), fd) {
            Ok(copy) => copy,
            Err(Errno::EBADF) => continue,
            Err(errno) => return Err(DumpError::sys(subject(), "pidfd_getfd", errno)),
        };
        let target = match std::fs::read_link(format!("/proc/{pid}/fd/{fd}")) {
            Ok(target) => target,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => return Err(DumpError::sys(subject(), "readlink of its /proc link", source)),
        };
        let stat = fstat(&copy).map_err(|errno| DumpError::sys(subject(), "fstat", errno))?;
        let info = match crate::procfs::fdinfo::read(pid, fd) {
            Ok(info) => info,
            Err(_) if matches!(sys::pidfd::getfd(pidfd.as_fd(), fd), Err(Errno::EBADF)) => continue,
            Err(error) => return Err(error.into()),
        };
        all.push(Descriptor { fd, copy, info, stat, target });
    }
    all.sort_by_key(|descriptor| descriptor.fd);
    Ok(all)
}

/// Decides what a descriptor is; refuses by name what cannot be dumped.
pub fn classify(pid: Pid, descriptor: &Descriptor, findings: &mut Findings) -> Option<Kind> {
    let target = descriptor.target.to_string_lossy();
    let mut refuse = |(why, way_out): unknown::Why| {
        findings.refuse(descriptor.subject(pid), why, way_out);
        None
    };
    if let Some(why) = unknown::of_any(descriptor) {
        return refuse(why);
    }
    let kind = SFlag::from_bits_truncate(descriptor.stat.st_mode & SFlag::S_IFMT.bits());
    match kind {
        SFlag::S_IFREG if target.starts_with("/SYSV") => refuse((
            "System V shared memory lives in an IPC namespace, and none is dumped yet".into(),
            "let the program close it, or run the program without it",
        )),
        SFlag::S_IFREG if memfd::is_memory(&descriptor.stat) => Some(Kind::Memory),
        SFlag::S_IFREG if unknown::is_pathless(descriptor) && external::may_be(kind) => Some(Kind::External),
        SFlag::S_IFREG if unknown::is_pathless(descriptor) => refuse(unknown::of_type(descriptor, kind)),
        SFlag::S_IFREG | SFlag::S_IFDIR => Some(Kind::Regular),
        SFlag::S_IFCHR if nix::sys::stat::major(descriptor.stat.st_rdev) == MEM_MAJOR => Some(Kind::Regular),
        SFlag::S_IFIFO if target.starts_with("pipe:[") => Some(Kind::Pipe),
        _ if external::may_be(kind) => Some(Kind::External),
        _ => refuse(unknown::of_type(descriptor, kind)),
    }
}

/// Pipes that a process outside of a tree holds an end of, and one such process.
pub type HeldElsewhere = HashMap<PathBuf, i32>;

/// What must be known of a tree, and of all others, to tell whether one of its descriptors can be restored.
#[derive(Debug)]
pub struct Around {
    root: Pid,
    /// All processes of the tree.
    tree: BTreeSet<Pid>,
    held_elsewhere: HeldElsewhere,
}

impl Around {
    /// Looks for the pipes that processes outside of a tree hold an end of. `all` are the descriptors of the tree.
    pub fn look<'a>(root: Pid, tree: BTreeSet<Pid>, all: impl Iterator<Item = &'a Descriptor>) -> Around {
        let is_pipe = |target: &&Path| target.as_os_str().as_bytes().starts_with(b"pipe:[");
        let targets = all.map(|descriptor| descriptor.target.as_path());
        let held_elsewhere = pipe::held_elsewhere(&tree, &targets.filter(is_pipe).collect());
        Around { root, tree, held_elsewhere }
    }
}

/// Checks every descriptor of a process; what cannot be dumped is refused by name.
/// A deleted file may hold `ghost_limit` bytes.
pub fn check_all(pid: Pid, all: &[Descriptor], ghost_limit: u64, around: &Around, findings: &mut Findings) {
    for descriptor in all {
        let kind = classify(pid, descriptor, findings);
        if kind.is_some() {
            fown::check(pid, descriptor, around, findings);
        }
        match kind {
            Some(Kind::Regular) if ghost::is_deleted(&descriptor.stat) => {
                let at = own_link(descriptor);
                ghost::check(&at, &descriptor.stat, ghost_limit, descriptor.subject(pid), findings);
            }
            Some(Kind::Regular) => reg::check(pid, descriptor, findings),
            Some(Kind::Pipe) => pipe::check(pid, descriptor, &around.held_elsewhere, findings),
            Some(Kind::Memory) => {
                memfd::check(descriptor.stat.st_size as u64, descriptor.subject(pid), findings);
            }
            Some(Kind::External) | None => {}
        }
    }
}

/// Where our duplicate can be opened anew.
fn own_link(descriptor: &Descriptor) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.copy.as_raw_fd()).into()
}

/// Enters every descriptor into the table of files and returns the records of `fdinfo-N.img`.
///
/// # Errors
/// When a file's facts cannot be read. The descriptors must have passed [`check_all`].
pub fn dump(pid: Pid, all: &[Descriptor], table: &mut FileTable) -> Result<Vec<FdinfoEntry>, DumpError> {
    let mut records = Vec::with_capacity(all.len());
    for descriptor in all {
        let mut none = Findings::default();
        let kind = classify(pid, descriptor, &mut none).ok_or_else(|| DumpError::from_findings(none))?;
        let (id, new) = table.description(pid, descriptor)?;
        let r#type = match kind {
            Kind::Regular => FdTypes::Reg,
            Kind::Pipe => FdTypes::Pipe,
            Kind::Memory => FdTypes::Memfd,
            Kind::External => FdTypes::Ext,
        };
        if new {
            match kind {
                Kind::Regular => {
                    if ghost::is_deleted(&descriptor.stat) {
                        table.ghosts.add(pid, id, &own_link(descriptor), &descriptor.stat)?;
                    }
                    table.push(reg::entry(pid, id, descriptor)?);
                }
                Kind::Memory => {
                    let inode_id =
                        table.memory_inode(&own_link(descriptor), &descriptor.target, &descriptor.stat)?;
                    table.push(memfd::entry(pid, id, inode_id, descriptor)?);
                }
                Kind::Pipe => {
                    table.push(pipe::entry(pid, id, descriptor)?);
                    pipe::contents(pid, descriptor, table)?;
                }
                Kind::External => table.push(external::entry(pid, id, descriptor)?),
            }
        }
        records.push(FdinfoEntry {
            id,
            flags: u32::from(descriptor.closes_on_exec()),
            r#type: r#type.into(),
            fd: descriptor.fd as u32,
            xattr_security_selinux: None,
        });
    }
    Ok(records)
}
