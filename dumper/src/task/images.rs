//! The images of every task of a stopped tree: what `/proc` tells of each is read of several at the same time, and then put
//! together in order, since they share one table of files.

use std::collections::BTreeMap;

use bytes::Bytes;
use godwit_wire::fault;
use godwit_wire::image::core::TaskCoreEntry;
use godwit_wire::image::{ImageKind, ImageWriter};
use nix::unistd::Pid;

use super::files::{self, Descriptor, FileTable, OfTree};
use super::interrupted::Interrupted;
use super::says::Says;
use super::threads::{self, Thread};
use super::vmas::{self, Draft, Guards};
use super::{aio, mm};
use crate::collect::ids;
use crate::collect::seccomp::Seccomp;
use crate::collect::tree::Task;
use crate::error::DumpError;
use crate::freeze::tree::FrozenTask;
use crate::options::CriuVersion;
use crate::parallel;
use crate::prepare::cpu::XsaveLayout;
use crate::prepare::survey;
use crate::procfs::auxv;
use crate::procfs::maps::Vma;
use crate::procfs::stat::{self, Stat};
use crate::refusal::{Findings, Loss};
use crate::sys::ptrace::Regs;

/// Name and contents.
pub type Image = (String, Bytes);

/// What is the same for all tasks.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// The processor's XSAVE layout.
    pub layout: &'a XsaveLayout,
    /// The CRIU that will restore, if it is known.
    pub criu: Option<CriuVersion>,
    /// Losses that were named before the freeze.
    pub known: &'a [Loss],
    /// Whether a loss that was not is an error.
    pub strict: bool,
    /// Filters of all threads.
    pub seccomp: &'a Seccomp,
    /// What its descriptors must know of the tree.
    pub tree: &'a OfTree,
}

/// What is known of one task when its images are made.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// The task.
    pub task: &'a Task,
    /// The same, stopped.
    pub frozen: &'a FrozenTask,
    /// What it said.
    pub says: &'a Says,
    /// Its descriptors.
    pub descriptors: &'a [Descriptor],
    /// Which task of the tree was the first that had its descriptor table.
    pub table: usize,
}

/// The tasks' own images, and what later steps need of them.
#[derive(Default)]
pub struct Images {
    /// Name and contents of each.
    pub images: Vec<Image>,
    /// The files of all.
    pub table: FileTable,
    /// The threads of each, inside, by the number of the first.
    pub threads: BTreeMap<u32, Vec<u32>>,
    /// What only the freeze showed to be lost.
    pub losses: Vec<Loss>,
}

/// Makes them. `flagged` gives the mappings of each task with their VmFlags, which take a while to read: it is asked when
/// they are needed. They come back beside.
///
/// # Errors
/// When something of a task cannot be read, or is refused by name.
pub fn dump(
    around: Around<'_>,
    tree: &[Given<'_>],
    flagged: impl FnOnce() -> Result<Vec<Vec<Vma>>, DumpError>,
) -> Result<(Images, Vec<Vec<Vma>>), DumpError> {
    let mut read = parallel::each(tree, Read::of)?;
    let cores = cores(around, tree, &mut read)?;
    let flagged = flagged()?;
    let mapped =
        parallel::each(tree.iter().zip(&flagged), |(of, flagged)| Mapped::of(around, of.task.pid, flagged))?;
    let mut made = Images::default();
    for (index, (read, mapped)) in read.into_iter().zip(mapped).enumerate() {
        put(around, index, &tree[index], read, mapped, &mut made)?;
    }
    for (thread, image) in cores {
        made.threads.entry(thread.task).or_default().push(thread.inside);
        made.images.push(image);
    }
    Ok((made, flagged))
}

/// What was read of one task, apart from its memory and its files.
struct Read {
    stat: Stat,
    auxv: Vec<u64>,
    umask: Option<u32>,
    core: Option<TaskCoreEntry>,
}

impl Read {
    fn of(of: &Given<'_>) -> Result<Read, DumpError> {
        let Given { task, frozen, says, .. } = *of;
        let pid = task.pid;
        let stat = stat::read(pid)?;
        let stopped_by = frozen.stopped_by().map(|signal| signal as u32);
        let (mask, pending) = (frozen.leader().sigmask, says.pending.clone());
        let core = super::task_core(pid, &stat, &says.task, mask, stopped_by, pending)?;
        let umask = frozen.leader().status(pid)?.umask;
        Ok(Read { stat, auxv: auxv::read(pid)?, umask, core: Some(core) })
    }
}

/// What was read of one task's memory.
struct Mapped<'a> {
    flagged: &'a [Vma],
    guards: Guards,
    losses: Vec<Loss>,
    vmas: Vec<Draft>,
}

impl<'a> Mapped<'a> {
    fn of(around: Around<'_>, pid: Pid, flagged: &'a [Vma]) -> Result<Mapped<'a>, DumpError> {
        let guards = Guards::look(pid, flagged)?;
        let mut late = Findings::default();
        survey::memory(pid, flagged, &mut late)?;
        guards.losses(pid, around.criu, &mut late);
        let losses = survey::late_verdict(late, around.known, around.strict)?;
        Ok(Mapped { flagged, guards, losses, vmas: vmas::drafts(pid, flagged)? })
    }
}

/// Puts a task's images to the others', and its files into the table.
fn put(
    around: Around<'_>,
    index: usize,
    of: &Given<'_>,
    read: Read,
    mapped: Mapped<'_>,
    made: &mut Images,
) -> Result<(), DumpError> {
    let Given { task, says, descriptors, table, .. } = *of;
    let (pid, inside) = (task.pid, u64::from(task.inside));
    let mut vmas = vmas::entries(pid, mapped.flagged, mapped.vmas, &mut made.table)?;
    if table == index {
        let mut records = ImageWriter::new(ImageKind::Fdinfo);
        for entry in files::dump(&files::Around { pid, tree: around.tree }, descriptors, &mut made.table)? {
            records.push(&entry);
        }
        let name = ImageKind::Fdinfo.file_name(u64::from(ids::files_id(table)));
        made.images.push((name, records.finish()?));
    }
    vmas.extend(mapped.guards.entries(around.criu)); // behind all mappings, also those that lie above them
    let aios = aio::entries(mapped.flagged);
    let mm = mm::entry(pid, &read.stat, &says.task, vmas, aios, read.auxv, &mut made.table)?;
    let fs = super::fs(pid, read.umask, &mut made.table)?;
    fault::point("mid.task.state")?;
    made.images.push(single(ImageKind::Mm, inside, &mm)?);
    made.images.push(single(ImageKind::Fs, inside, &fs)?);
    made.images.push(single(ImageKind::Ids, inside, &ids::task(index, table))?);
    made.losses.extend(mapped.losses);
    Ok(())
}

/// Whose record it is, in the numbers of the tree's pid namespace.
struct Whose {
    task: u32,
    inside: u32,
}

/// The records of all threads of all tasks, in order: the first thread of each, which has that of the task, first.
fn cores(
    around: Around<'_>,
    tree: &[Given<'_>],
    read: &mut [Read],
) -> Result<Vec<(Whose, Image)>, DumpError> {
    let mut threads: Vec<(&Given<'_>, usize, Regs, Option<TaskCoreEntry>)> = Vec::new();
    for (of, read) in tree.iter().zip(read) {
        let mut interrupted = Interrupted::new(&of.says.pending, &of.says.task.sigactions);
        for (at, (stopped, told)) in of.frozen.threads().iter().zip(&of.says.threads).enumerate() {
            let blocked = stopped.status(of.task.pid)?.signals.blocked;
            let regs = interrupted.registers(stopped, &told.pending, blocked);
            threads.push((of, at, regs, read.core.take()));
        }
    }
    parallel::each(threads, |(of, at, regs, tc)| {
        let (pid, stopped) = (of.task.pid, &of.frozen.threads()[at]);
        let seccomp = around.seccomp.of_thread(stopped.tid);
        let Thread { inside, mut core } =
            threads::dump(pid, stopped, &of.says.threads[at], &regs, around.layout, seccomp)?;
        core.tc = tc;
        Ok((Whose { task: of.task.inside, inside }, single(ImageKind::Core, u64::from(inside), &core)?))
    })
}

fn single(kind: ImageKind, id: u64, record: &impl prost::Message) -> Result<Image, DumpError> {
    Ok((kind.file_name(id), ImageWriter::single(kind, record)?))
}
