//! Pipes: their ends, size and contents.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::pipe::PipeEntry;
use godwit_wire::image::pipe_data::PipeDataEntry;

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown, provided, tty};
use crate::collect::tree::descends;
use crate::error::DumpError;
use crate::procfs::tree::processes;
use crate::refusal::Findings;
use crate::sys;

/// Anonymous pipes.
pub const KIND: Kind = Kind {
    r#type: FdTypes::Pipe,
    is: |descriptor| {
        is_any(descriptor) && descriptor.target.as_os_str().as_encoded_bytes().starts_with(b"pipe:[")
    },
    check,
    dump,
};

/// What lies in pipes, by the number that images give them.
pub type Contents = BTreeMap<u32, (PipeDataEntry, Vec<u8>)>;

/// Whether it is a pipe, anonymous or named.
pub fn is_any(descriptor: &Descriptor) -> bool {
    descriptor.is_file_of_type(SFlag::S_IFIFO)
}

/// Whether a descriptor is the end of a pipe that cannot be read.
pub fn is_write_only(descriptor: &Descriptor) -> bool {
    descriptor.file_flags() & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32
}

/// Refuses packet mode, and a pipe that a process outside of the tree holds an end of, unless the restore is given it.
fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let subject = || descriptor.subject(around.pid);
    refuse_packets(around, descriptor, findings);
    let Some(other) = around.tree.holder_elsewhere(&descriptor.target) else { return };
    let provided = provided::pipe(descriptor);
    if !around.tree.provided.contains(&provided) {
        return findings.refuse(
            subject(),
            format!("process {other} holds an end of this pipe, and only pipes inside the tree are dumped"),
            format!(
                "name a process above both, connect the program's input and output to files or /dev/null, or restore by \
                 hand with a pipe in its place: --external {provided} here, --inherit-fd fd[N]:{provided} there"
            ),
        );
    }
    if let Ok(waiting @ 1..) = sys::pipe::readable_bytes(descriptor.copy.as_fd()) {
        findings.lose(
            subject(),
            format!("the {waiting} bytes that lie in it stay there: a restore takes the pipe that it is given as it is"),
        );
    }
}

/// Refuses packet mode (man 2 pipe, O_DIRECT): images do not tell where a packet ends.
pub fn refuse_packets(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    if descriptor.file_flags() & libc::O_DIRECT as u32 != 0 {
        findings.refuse(
            descriptor.subject(around.pid),
            "a pipe in packet mode (O_DIRECT) is not dumped",
            "let the program use a stream pipe",
        );
    }
}

/// Of the pipes that `/proc/PID/fd` links name `pipes`, and of the terminals with slaves of these names, those that a
/// process outside of the `tree` holds an end of, and one such process. All are looked for in one pass over all descriptors of the machine.
pub fn held_elsewhere(tree: &BTreeSet<Pid>, pipes: &HashSet<&Path>) -> HashMap<PathBuf, i32> {
    let mut held = HashMap::new();
    if pipes.is_empty() {
        return held;
    }
    // The dumper's own duplicates are not an end held elsewhere.
    let is_other = |pid: &Pid| !tree.contains(pid) && *pid != Pid::this();
    for other in processes().unwrap_or_default().into_iter().filter(is_other) {
        let Ok(fds) = fs::read_dir(format!("/proc/{other}/fd")) else { continue };
        for fd in fds.flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let target = tty::slave_of_link(other, &fd.file_name(), &target).unwrap_or(target);
            // What the tree has made since it was listed is a part of it.
            if pipes.contains(target.as_path()) && !descends(other, tree) {
                held.entry(target).or_insert(other.as_raw());
            }
        }
    }
    held
}

/// Both ends carry the pipe's inode number.
fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    table: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let pipe_id = descriptor.stat.st_ino as u32;
    contents(around.pid, descriptor, pipe_id, &mut table.pipes)?;
    let flags = descriptor.file_flags();
    let pipe = PipeEntry { id, pipe_id, flags, fown: fown::read(around.pid, descriptor)? };
    Ok(FileEntry { r#type: FdTypes::Pipe.into(), id, pipe: Some(pipe), ..FileEntry::default() })
}

/// Copies what lies in a pipe, once, without consuming it: `tee` into a pipe of our own of the same size (man 2 tee). Only
/// a read end can be read.
///
/// # Errors
/// When our pipe cannot be made as large, or less is copied than lies in the pipe.
pub fn contents(
    pid: Pid,
    descriptor: &Descriptor,
    pipe_id: u32,
    known: &mut Contents,
) -> Result<(), DumpError> {
    if is_write_only(descriptor) || known.contains_key(&pipe_id) {
        return Ok(());
    }
    let subject = || format!("the pipe at fd {} of process {pid}", descriptor.fd);
    let failed = |what| move |error: std::io::Error| DumpError::sys(subject(), what, error);
    let errno = |what| move |errno: nix::errno::Errno| failed(what)(errno.into());
    let copy = descriptor.copy.as_fd();
    let size = sys::fcntl::pipe_size(copy).map_err(errno("F_GETPIPE_SZ"))?;
    let waiting = sys::pipe::readable_bytes(copy).map_err(errno("FIONREAD"))?;
    let mut bytes = vec![0; waiting];
    if waiting > 0 {
        let (mut ours, theirs) = std::io::pipe().map_err(failed("pipe"))?;
        sys::fcntl::set_pipe_size(theirs.as_fd(), size)
            .map_err(errno("F_SETPIPE_SZ of a copy as large as the pipe (see /proc/sys/fs/pipe-max-size)"))?;
        let copied = sys::pipe::tee(copy, theirs.as_fd(), waiting).map_err(errno("tee"))?;
        if copied != waiting {
            return Err(failed("tee")(std::io::Error::other(format!("{copied} of {waiting} bytes"))));
        }
        ours.read_exact(&mut bytes).map_err(failed("read of its copy"))?;
    }
    let entry = PipeDataEntry { pipe_id, bytes: waiting as u32, size: Some(size as u32) };
    known.insert(pipe_id, (entry, bytes));
    Ok(())
}
