//! The memory map of a task, as `mm-PID.img` lists it (images/vma.proto).
//!
//! In reading order: `kind` (what a mapping is, and what cannot be dumped), `flags` (the bits of its record),
//! `file` (the file behind it), `guards` (regions that no page may come to).

mod file;
mod flags;
mod guards;
mod kind;

use nix::unistd::Pid;

use godwit_wire::image::vma::VmaEntry;

use super::aio;
use super::files::FileTable;
use crate::error::DumpError;
use crate::procfs::maps::Vma;
use crate::refusal::{Findings, Subject};

pub use file::{Checked, FileKey, deleted_file, map_file};
pub use guards::Guards;
pub use kind::{Kind, classify, is_memory_file};

/// How findings name a mapping.
pub fn subject(pid: Pid, vma: &Vma) -> Subject {
    Subject::Mapping {
        pid,
        start: vma.start,
        end: vma.end,
        name: String::from_utf8_lossy(&vma.path).into_owned(),
    }
}

/// Checks every mapping; what cannot be dumped is refused by name. A deleted file may hold `ghost_limit` bytes.
pub fn check_all(pid: Pid, vmas: &[Vma], ghost_limit: u64, checked: &Checked, findings: &mut Findings) {
    for vma in vmas {
        match classify(pid, vma, findings) {
            Some(Kind::FilePrivate | Kind::FileShared) => {
                file::check_file(pid, vma, ghost_limit, checked, findings)
            }
            Some(Kind::MemoryPrivate | Kind::MemoryShared) => file::check_memory(pid, vma, findings),
            Some(Kind::AioRing) => aio::check(pid, vma, findings),
            _ => {}
        }
    }
}

/// The records of all mappings, in order of address, the vvar mappings merged into one; the files behind
/// them are entered into the table.
///
/// # Errors
/// When a mapping's file cannot be looked at. The mappings must have passed [`check_all`].
pub fn entries(
    pid: Pid,
    vmas: &[Vma],
    drafts: Vec<Draft>,
    table: &mut FileTable,
) -> Result<Vec<VmaEntry>, DumpError> {
    let mut entries: Vec<VmaEntry> = Vec::with_capacity(vmas.len());
    for (vma, Draft { kind, mut entry }) in vmas.iter().zip(drafts) {
        if has_file_entry(kind) {
            (entry.shmid, entry.fdflags) = file::file_of(pid, vma, entry.fdflags, table)?;
        }
        match entries.last_mut() {
            Some(last) if kind == Kind::Vvar && last.status == entry.status && last.end == entry.start => {
                last.end = entry.end;
            }
            _ => entries.push(entry),
        }
    }
    Ok(entries)
}

/// The record of a mapping, but for its file's entry in the table.
pub struct Draft {
    kind: Kind,
    entry: VmaEntry,
}

/// Drafts the records of all mappings of a stopped task.
///
/// # Errors
/// When a file cannot be looked at. Refused by name is what came since the look before the freeze.
pub fn drafts(pid: Pid, vmas: &[Vma]) -> Result<Vec<Draft>, DumpError> {
    let draft = |vma: &Vma| {
        let mut late = Findings::default();
        let kind = classify(pid, vma, &mut late).ok_or_else(|| DumpError::from_findings(late))?;
        Ok(Draft { kind, entry: entry(pid, vma, kind)? })
    };
    vmas.iter().map(draft).collect()
}

fn has_file_entry(kind: Kind) -> bool {
    use Kind::{Device, FilePrivate, FileShared, MemoryPrivate, MemoryShared};
    matches!(kind, FilePrivate | FileShared | MemoryPrivate | MemoryShared | Device)
}

fn entry(pid: Pid, vma: &Vma, kind: Kind) -> Result<VmaEntry, DumpError> {
    let (flags, status) = flags::of_kind(kind, vma);
    let madv = flags::advice(vma);
    let fdflags = match kind {
        kind if has_file_entry(kind) => Some(file::open_flags(pid, vma)?),
        // The kernel opened these for itself; restore makes its own.
        Kind::AioRing | Kind::HugeAnonymous => Some(libc::O_RDWR as u32),
        _ => None,
    };
    Ok(VmaEntry {
        start: vma.start,
        end: vma.end,
        pgoff: vma.pgoff,
        shmid: 0,
        prot: flags::prot(vma),
        flags: flags | flags::told(vma),
        status,
        fd: -1,
        madv: (madv != 0).then_some(madv),
        fdflags,
    })
}
