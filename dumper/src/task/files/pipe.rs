//! Pipes that lie wholly in the tree: their ends, size and contents.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::pipe::PipeEntry;
use godwit_wire::image::pipe_data::PipeDataEntry;

use super::table::FileTable;
use super::{Descriptor, fown};
use crate::collect::tree::descends;
use crate::error::DumpError;
use crate::procfs::tree::processes;
use crate::refusal::Findings;
use crate::sys;

/// Refuses packet mode, and a pipe that a process outside of the tree holds an end of (see [`held_elsewhere`]).
pub fn check(
    pid: Pid,
    descriptor: &Descriptor,
    held_elsewhere: &HashMap<PathBuf, i32>,
    findings: &mut Findings,
) {
    let subject = descriptor.subject(pid);
    if descriptor.file_flags() & libc::O_DIRECT as u32 != 0 {
        return findings.refuse(
            subject,
            "a pipe in packet mode (O_DIRECT) is not dumped",
            "let the program use a stream pipe",
        );
    }
    if let Some(other) = held_elsewhere.get(&descriptor.target) {
        findings.refuse(
            subject,
            format!("process {other} holds an end of this pipe, and only pipes inside the tree are dumped"),
            "name a process above both, or connect the program's input and output to files or /dev/null",
        );
    }
}

/// Of the pipes that `/proc/PID/fd` links name `pipes`, those that a process outside of the `tree` holds an end of, and
/// one such process. All are looked for in one pass over all descriptors of the machine.
pub fn held_elsewhere(tree: &BTreeSet<Pid>, pipes: &HashSet<&Path>) -> HashMap<PathBuf, i32> {
    let mut held = HashMap::new();
    if pipes.is_empty() {
        return held;
    }
    // The dumper's own duplicates are not an end held elsewhere.
    let is_other = |pid: &Pid| !tree.contains(pid) && *pid != Pid::this();
    for other in processes().unwrap_or_default().into_iter().filter(is_other) {
        let Ok(fds) = fs::read_dir(format!("/proc/{other}/fd")) else { continue };
        for target in fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()) {
            // What the tree has made since it was listed is a part of it.
            if pipes.contains(target.as_path()) && !descends(other, tree) {
                held.entry(target).or_insert(other.as_raw());
            }
        }
    }
    held
}

/// The entry of an end of a pipe. Both ends carry the pipe's inode number.
///
/// # Errors
/// When its owner cannot be read.
pub fn entry(pid: Pid, id: u32, descriptor: &Descriptor) -> Result<FileEntry, DumpError> {
    Ok(FileEntry {
        r#type: FdTypes::Pipe.into(),
        id,
        pipe: Some(PipeEntry {
            id,
            pipe_id: pipe_id(descriptor),
            flags: descriptor.file_flags(),
            fown: fown::read(pid, descriptor)?,
        }),
        ..FileEntry::default()
    })
}

fn pipe_id(descriptor: &Descriptor) -> u32 {
    descriptor.stat.st_ino as u32
}

/// Copies what lies in the pipe into the table, without consuming it: `tee` into a pipe of our own of the
/// same size (man 2 tee). Only a read end can be read.
///
/// # Errors
/// When our pipe cannot be made as large, or less is copied than lies in the pipe.
pub fn contents(pid: Pid, descriptor: &Descriptor, table: &mut FileTable) -> Result<(), DumpError> {
    let pipe_id = pipe_id(descriptor);
    let write_only = descriptor.file_flags() & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
    if write_only || table.knows_pipe(pipe_id) {
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
    table.pipe_contents(entry, bytes);
    Ok(())
}
