//! Guard regions (MADV_GUARD_INSTALL): memory that ends the program which touches it.
//!
//! They are no mappings of their own. CRIU 4.2 lists them behind the mappings, as records of a status of their own, and
//! its restore installs them once all else is in place (criu/pie/restorer.c, restore_madv_guard_regions). CRIU 4.1
//! takes such a record for a mapping out of order, and fails.

use nix::unistd::Pid;

use godwit_wire::image::vma::VmaEntry;
use godwit_wire::plan::PageRun;

use super::flags::status;
use crate::options::CriuVersion;
use crate::predump::tracker::{TrackerError, present};
use crate::procfs::maps::Vma;
use crate::refusal::{Findings, Subject};

/// The guard regions of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    /// Those that can be installed anew.
    runs: Vec<PageRun>,
    /// Pages of guards in locked mappings. The kernel installs none there: they are older than the lock.
    locked_pages: u64,
}

impl Guards {
    /// Looks for them. The mappings must have their VmFlags.
    ///
    /// # Errors
    /// When the page tables cannot be read.
    pub fn look(pid: Pid, vmas: &[Vma]) -> Result<Guards, TrackerError> {
        let may_have = |vma: &&Vma| !vma.is_special() && !vma.is_aio_ring() && !vma.has_flag(b"ht");
        let (locked, others): (Vec<Vma>, Vec<Vma>) =
            vmas.iter().filter(may_have).cloned().partition(|vma| vma.has_flag(b"lo"));
        let locked_pages = present::guards(pid, &locked)?.iter().map(|run| run.nr_pages).sum();
        Ok(Guards { runs: present::guards(pid, &others)?, locked_pages })
    }

    /// Names what is lost of them where `criu` restores; `None` is any from 4.1 on.
    pub fn losses(&self, pid: Pid, criu: Option<CriuVersion>, findings: &mut Findings) {
        let pages: u64 = self.runs.iter().map(|run| run.nr_pages).sum();
        let restores = criu.is_some_and(CriuVersion::restores_guards);
        if pages > 0 && !restores {
            let by = criu.map_or_else(
                || "unless CRIU 4.2 or newer restores it".to_owned(),
                |criu| format!("since CRIU {criu} restores it, and only 4.2 knows guards"),
            );
            findings.lose(
                Subject::Process(pid),
                format!("its {pages} guard pages become ordinary memory, {by} (--criu-version)"),
            );
        }
        if self.locked_pages > 0 {
            findings.lose(
                Subject::Process(pid),
                format!(
                    "its {} guard pages in locked memory become ordinary memory: the kernel installs none there",
                    self.locked_pages
                ),
            );
        }
    }

    /// Their records, which belong behind those of all mappings; none where `criu` would not understand them.
    pub fn entries(&self, criu: Option<CriuVersion>) -> Vec<VmaEntry> {
        if !criu.is_some_and(CriuVersion::restores_guards) {
            return Vec::new();
        }
        let runs = self.runs.iter();
        runs.map(|run| VmaEntry {
            start: run.vaddr,
            end: run.end(),
            status: status::GUARD,
            fd: -1,
            ..VmaEntry::default()
        })
        .collect()
    }
}
