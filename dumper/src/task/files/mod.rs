//! The descriptors of a task, and the files behind its mappings, as `files.img` and `fdinfo-N.img` list them.
//!
//! A descriptor is duplicated into the dumper by `pidfd_getfd` and looked at there: nothing runs in the
//! task. Each kind of file is a module with a [`Kind`]: how it is told from others, checked and written ([`KINDS`]); `of_tree`
//! is what they must know of the whole tree. `reg` are files, directories and the character devices that CRIU knows, `ghost`
//! deleted ones, `links` those
//! that have another link only, `provided` what the restore is given, `memfd` memory files, `pipe` and `fifo` pipes, `unix` sockets, `eventfd`, `timerfd`,
//! `signalfd`, `epoll`, `pidfd`, `inotify` and `fanotify` (with `watched`, what they are on) the kernel's objects of these names, `proc_entry` files of
//! processes in `/proc`, `tty` pseudoterminals, `external` what plugins dump. All else is refused by
//! name (`unknown`). `fown` is who is signalled for a descriptor, `filesystem` tells what a file lies on.

pub mod epoll;
pub mod eventfd;
pub mod external;
pub mod fanotify;
pub mod fifo;
pub mod filesystem;
pub mod fown;
pub mod ghost;
pub mod huge;
pub mod inotify;
pub mod kind;
pub mod links;
pub mod memfd;
pub mod of_tree;
pub mod pidfd;
pub mod pipe;
pub mod proc_entry;
pub mod provided;
pub mod reg;
pub mod signalfd;
pub mod table;
pub mod timerfd;
pub mod tty;
pub mod unix;
pub mod unknown;
mod watched;

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::FdinfoEntry;

use crate::error::DumpError;
use crate::procfs::ParseError;
use crate::procfs::fdinfo::FdInfo;
use crate::refusal::{Findings, Subject};
use crate::sys;

pub use kind::{Around, Kind};
pub use of_tree::OfTree;
pub use table::FileTable;

/// `O_CLOEXEC` there: a property of the descriptor, not of the file.
const O_CLOEXEC: u32 = 0o2_000_000;

/// `O_PATH` there (include/uapi/asm-generic/fcntl.h).
const O_PATH: u32 = 0o10_000_000;

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

    /// Of what type the file is; none for most objects of the kernel.
    pub fn file_type(&self) -> SFlag {
        SFlag::from_bits_truncate(self.stat.st_mode & SFlag::S_IFMT.bits())
    }

    fn is_file_of_type(&self, kind: SFlag) -> bool {
        self.file_type() == kind
    }

    /// Whether it only names a file (O_PATH): it cannot be read, nor asked for an owner.
    pub fn only_names(&self) -> bool {
        self.info.flags & O_PATH != 0
    }

    /// Whether it is the object of the kernel that links in `/proc` call so.
    fn is_object(&self, name: &str) -> bool {
        let target = self.target.as_os_str().as_bytes();
        target.strip_prefix(b"anon_inode:") == Some(name.as_bytes())
    }

    /// Where our duplicate can be opened anew.
    fn own_link(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.copy.as_raw_fd()).into()
    }

    /// What its fdinfo tells; an error names the descriptor.
    fn told<T>(&self, pid: Pid, read: impl Fn(&FdInfo) -> Result<T, ParseError>) -> Result<T, DumpError> {
        let other = |error: ParseError| std::io::Error::other(error);
        read(&self.info).map_err(|error| {
            DumpError::sys(format!("fd {} of process {pid}", self.fd), "its fdinfo", other(error))
        })
    }

    /// How findings name it.
    pub fn subject(&self, pid: Pid) -> Subject {
        Subject::Descriptor { pid, fd: self.fd, target: self.target.display().to_string() }
    }
}

/// Every kind that is dumped; a descriptor is of the first that takes it for its own.
pub const KINDS: [&Kind; 14] = [
    &eventfd::KIND,
    &timerfd::KIND,
    &signalfd::KIND,
    &epoll::KIND,
    &pidfd::KIND,
    &inotify::KIND,
    &fanotify::KIND,
    &memfd::KIND,
    &reg::KIND,
    &pipe::KIND,
    &fifo::KIND,
    &unix::KIND,
    &tty::KIND,
    // For what is left.
    &external::KIND,
];

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

/// Decides what a descriptor is; refuses by name what is of no kind that is dumped.
pub fn classify(pid: Pid, descriptor: &Descriptor, findings: &mut Findings) -> Option<&'static Kind> {
    if let Some((why, way_out)) = unknown::of_any(descriptor) {
        findings.refuse(descriptor.subject(pid), why, way_out);
        return None;
    }
    let kind = KINDS.into_iter().find(|kind| (kind.is)(descriptor));
    if kind.is_none() {
        let (why, way_out) = unknown::of_type(descriptor);
        findings.refuse(descriptor.subject(pid), why, way_out);
    }
    kind
}

/// Checks every descriptor of a process, and its controlling terminal; what cannot be dumped is refused by name.
pub fn check_all(around: &Around<'_>, all: &[Descriptor], findings: &mut Findings) {
    tty::check_controlling(around, findings);
    for descriptor in all {
        if let Some(kind) = classify(around.pid, descriptor, findings) {
            fown::check(around, descriptor, findings);
            (kind.check)(around, descriptor, findings);
        }
    }
}

/// Enters every descriptor into the table of files and returns the records of `fdinfo-N.img`.
///
/// # Errors
/// When a file's facts cannot be read. The descriptors must have passed [`check_all`].
pub fn dump(
    around: &Around<'_>,
    all: &[Descriptor],
    table: &mut FileTable,
) -> Result<Vec<FdinfoEntry>, DumpError> {
    let mut records = Vec::with_capacity(all.len());
    for descriptor in all {
        let mut none = Findings::default();
        let kind =
            classify(around.pid, descriptor, &mut none).ok_or_else(|| DumpError::from_findings(none))?;
        let (id, new) = table.description(around.pid, descriptor)?;
        if new {
            let entry = (kind.dump)(around, id, descriptor, table)?;
            table.push(entry);
        }
        records.push(FdinfoEntry {
            id,
            flags: u32::from(descriptor.closes_on_exec()),
            r#type: kind.r#type.into(),
            fd: descriptor.fd as u32,
            xattr_security_selinux: None,
        });
    }
    Ok(records)
}
