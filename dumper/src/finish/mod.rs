//! What is only known once every task is dumped. Much of it is a proof that there is
//! nothing to do: each check looks again at what was collected under freeze, and refuses by name.

pub mod clocks;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use nix::unistd::Pid;

use godwit_wire::image::pstree::PstreeEntry;
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use crate::collect::tree::{Place, Zombie};
use crate::error::DumpError;
use crate::freeze::tree::FrozenTree;
use crate::prepare::root::Root;
use crate::prepare::survey;
use crate::procfs::maps::Vma;
use crate::refusal::{Findings, Subject};
use crate::task::files::{Around, Descriptor, OfTree, proc_entry};
use crate::task::shmem::Segment;
use crate::task::{self, vmas};

/// Proves that files of dead processes in `/proc` can be had again: that none of their numbers is a thread's by now.
///
/// # Errors
/// [`DumpError::Refused`].
pub fn dead_pids<'a>(
    of_tree: &OfTree,
    tree: impl Iterator<Item = (Pid, &'a [Descriptor])>,
) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    for (pid, descriptors) in tree {
        for descriptor in descriptors {
            let Some(owner) = proc_entry::owner(descriptor) else { continue };
            if let Err((why, way_out)) = proc_entry::check(&Around { pid, tree: of_tree }, descriptor, owner)
            {
                findings.refuse(descriptor.subject(pid), why, way_out);
            }
        }
    }
    verdict(findings)
}

/// What is left of the processes that have ended: a record of each, `core-PID.img` of a dead task. Nobody but those who
/// were met at the freeze may have come.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn zombies(frozen: &FrozenTree, zombies: &[Zombie]) -> Result<Vec<(String, Bytes)>, DumpError> {
    let mut findings = Findings::default();
    for stranger in frozen.strangers()? {
        findings.refuse(
            Subject::Process(stranger),
            "it appeared in the tree while that was stopped (another process left it to one of the tree?)",
            "dump the tree again",
        );
    }
    verdict(findings)?;
    let image = |zombie: &Zombie| {
        let core = task::dead(zombie);
        Ok((
            ImageKind::Core.file_name(u64::from(zombie.place.pid)),
            ImageWriter::single(ImageKind::Core, &core)?,
        ))
    };
    zombies.iter().map(image).collect()
}

/// Proves that no cgroup is to be dumped: the images say "where `criu` runs", and that is meant for the cgroup that
/// was seen before the freeze, threads and all.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn cgroups(root: &Root, tree: &[Pid], before: &str) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    survey::one_cgroup_of(root.pid, tree.iter().copied(), &mut findings)?;
    if root.cgroup()? != before {
        findings.refuse(
            Subject::Process(root.pid),
            format!("it was moved out of its cgroup {before} during the dump"),
            "dump it again when it is where it belongs",
        );
    }
    verdict(findings)
}

/// Proves that every shared memory segment that is mapped was sent: the mappings were read once more after their pages
/// were listed.
///
/// # Errors
/// [`DumpError::Refused`].
pub fn shmem<'a>(tree: impl Iterator<Item = (Pid, &'a [Vma])>, sent: &[Segment]) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    let sent: BTreeSet<u64> = sent.iter().map(|segment| segment.id).collect();
    for (pid, all) in tree {
        for vma in all.iter().filter(|vma| vmas::is_memory_file(vma) && !sent.contains(&vma.inode)) {
            findings.refuse(vmas::subject(pid, vma), "it was mapped during the dump", "dump it again");
        }
    }
    verdict(findings)
}

/// Proves that no descriptor is of a kind with state outside the processes: sockets with their peers,
/// terminals with their queues.
///
/// # Errors
/// [`DumpError::Refused`], or when `/proc` does not tell.
pub fn no_outside_state<'a>(tree: impl Iterator<Item = (Pid, &'a [Descriptor])>) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    for (pid, descriptors) in tree {
        for descriptor in descriptors {
            crate::task::files::classify(pid, descriptor, &mut findings);
        }
    }
    verdict(findings)
}

/// `pstree.img`: every process, dead ones too, in the order of `places`: the root first, parents before their children.
/// `threads` are the ids of the threads of each living one, inside, the first thread first.
///
/// # Errors
/// Never for a record of this size; the signature is that of every image.
pub fn pstree(
    places: &[(Pid, Place)],
    threads: &BTreeMap<u32, Vec<u32>>,
) -> Result<(String, Bytes), ImageError> {
    let mut writer = ImageWriter::new(ImageKind::Pstree);
    for (_, place) in places {
        let threads = threads.get(&place.pid).cloned().unwrap_or_else(|| vec![place.pid]);
        let Place { pid, ppid, pgid, sid } = *place;
        writer.push(&PstreeEntry { pid, ppid, pgid, sid, threads });
    }
    Ok((ImageKind::Pstree.file_name(0), writer.finish()?))
}

fn verdict(findings: Findings) -> Result<(), DumpError> {
    findings.verdict()?;
    Ok(())
}
