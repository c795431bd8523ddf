//! What is only known once every task is dumped. For a single process most of it is a proof that there is
//! nothing to do: each check looks again at what was collected under freeze, and refuses by name.

pub mod clocks;

use bytes::Bytes;
use nix::unistd::Pid;

use godwit_wire::image::pstree::PstreeEntry;
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use crate::error::DumpError;
use crate::prepare::root::Root;
use crate::procfs::maps::Vma;
use crate::procfs::status::Status;
use crate::procfs::{stat, tree};
use crate::refusal::{Findings, Subject};
use crate::task::files::{Descriptor, unknown};
use crate::task::shmem::Segment;
use crate::task::threads::Thread;
use crate::task::vmas;

/// Proves that no descriptor leads into `/proc` of a process: that process may be gone, or another, at the destination.
///
/// # Errors
/// [`DumpError::Refused`].
pub fn dead_pids(pid: Pid, descriptors: &[Descriptor]) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    for descriptor in descriptors {
        if let Some((why, way_out)) = unknown::of_any(descriptor) {
            findings.refuse(descriptor.subject(pid), why, way_out);
        }
    }
    verdict(findings)
}

/// Refuses children: none may have appeared, dead or alive.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn zombies(pid: Pid, threads: &[Thread]) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    for thread in threads {
        for child in tree::children(pid, thread.tid)? {
            findings.refuse(
                Subject::Process(pid),
                format!("it has a child, process {child}, and only single processes are dumped"),
                "wait until the child has ended and was waited for",
            );
        }
    }
    verdict(findings)
}

/// Refuses a controlling terminal: its session and foreground group would have to be restored.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn tty_sids(pid: Pid) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    if stat::read(pid)?.tty_nr != 0 {
        findings.refuse(Subject::Process(pid), "it has a controlling terminal", "start it with `setsid`");
    }
    verdict(findings)
}

/// Proves that no mount namespace is to be dumped, nor any other: all are ours or of a restore's making.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn namespaces(pid: Pid) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    crate::collect::namespaces::check(pid, &mut findings)?;
    verdict(findings)
}

/// Proves that no cgroup is to be dumped: the images say "where `criu` runs", and that is meant for the cgroup that
/// was seen before the freeze, threads and all.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn cgroups(root: &Root, before: &str) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    crate::prepare::survey::one_cgroup(root, &mut findings)?;
    if root.cgroup()? != before {
        findings.refuse(
            Subject::Process(root.pid),
            format!("it was moved out of its cgroup {before} during the dump"),
            "dump it again when it is where it belongs",
        );
    }
    verdict(findings)
}

/// Proves that every shared memory segment that is mapped was sent: the mappings are read once more after their pages
/// were listed.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn shmem(root: &Root, all: &[Vma], sent: &[Segment]) -> Result<(), DumpError> {
    let pid = root.pid;
    let mut findings = Findings::default();
    vmas::check_all(pid, all, root.ghost_limit, &mut findings);
    let is_sent = |vma: &Vma| sent.iter().any(|segment| segment.id == vma.inode);
    for vma in all.iter().filter(|vma| vmas::is_memory_file(vma) && !is_sent(vma)) {
        findings.refuse(vmas::subject(pid, vma), "it was mapped during the dump", "dump it again");
    }
    verdict(findings)
}

/// Proves that no descriptor is of a kind with state outside the process: sockets with their peers,
/// terminals with their queues.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn no_outside_state(pid: Pid, descriptors: &[Descriptor]) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    for descriptor in descriptors {
        crate::task::files::classify(pid, descriptor, &mut findings);
    }
    verdict(findings)
}

/// `pstree.img`: one process, the root, which leads its session.
///
/// # Errors
/// Never for a record of this size; the signature is that of every image.
pub fn pstree(status: &Status, threads: &[Thread]) -> Result<(String, Bytes), ImageError> {
    let innermost = |ids: &[i32]| ids.last().copied().unwrap_or_default() as u32;
    let entry = PstreeEntry {
        pid: innermost(&status.ns_pid),
        ppid: 0,
        pgid: innermost(&status.ns_pgid),
        sid: innermost(&status.ns_sid),
        threads: threads.iter().map(|thread| thread.inside).collect(),
    };
    Ok((ImageKind::Pstree.file_name(0), ImageWriter::single(ImageKind::Pstree, &entry)?))
}

fn verdict(findings: Findings) -> Result<(), DumpError> {
    findings.verdict()?;
    Ok(())
}
