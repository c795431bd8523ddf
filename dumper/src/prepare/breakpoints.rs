//! Breakpoints in a program's text: a probe (uprobes) changes the page of the process, and an image would carry that to
//! where no probe is set. There the first pass ends the program by SIGTRAP.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::unistd::Pid;

use godwit_wire::plan::PAGE_SIZE;

use crate::error::DumpError;
use crate::predump::tracker::present;
use crate::procfs::maps::Vma;
use crate::procfs::status::Status;
use crate::refusal::Findings;
use crate::sys::process_vm::{self, Remote};
use crate::task::vmas;

/// `int3` of x86-64.
const BREAKPOINT: u8 = 0xcc;
/// Changed pages of text that are looked at; programs that patch more of it do so themselves.
const PAGES_MAX: u64 = 1024;

/// Refuses text that differs from its file by breakpoints alone, unless the program handles SIGTRAP: then they are its own.
///
/// # Errors
/// When the page tables cannot be read.
pub fn check(pid: Pid, status: &Status, all: &[Vma], findings: &mut Findings) -> Result<(), DumpError> {
    if status.signals.caught & 1 << (libc::SIGTRAP - 1) != 0 {
        return Ok(());
    }
    let text = |vma: &&Vma| vma.exec && !vma.write && !vma.shared && vma.has_file() && !vma.is_special();
    let mut looked_at = 0;
    for vma in all.iter().filter(text) {
        let changed = present::alive(pid, std::slice::from_ref(vma))?;
        let pages = changed.iter().flat_map(|run| (run.vaddr..run.end()).step_by(PAGE_SIZE as usize));
        for page in pages.take((PAGES_MAX - looked_at) as usize) {
            looked_at += 1;
            if let Some(at) = breakpoint_in(pid, vma, page) {
                findings.refuse(
                    vmas::subject(pid, vma),
                    format!("a probe or debugger has set a breakpoint at {at:#x}, which would end the restored program"),
                    "remove the probe (perf, bpftrace)",
                );
                break;
            }
        }
    }
    Ok(())
}

/// The first byte of a page that is a breakpoint and not what the file has, if all that differ are. A page that cannot
/// be read by now is not judged.
fn breakpoint_in(pid: Pid, vma: &Vma, page: u64) -> Option<u64> {
    let (mut ours, mut files) = ([0u8; PAGE_SIZE as usize], [0u8; PAGE_SIZE as usize]);
    let from = [Remote { addr: page, len: ours.len() }];
    if process_vm::read(pid, &from, &mut ours).ok()? != ours.len() {
        return None;
    }
    let file = File::open(vmas::map_file(pid, vma)).ok()?;
    file.read_exact_at(&mut files, vma.pgoff + (page - vma.start)).ok()?;
    only_breakpoints(&ours, &files).map(|at| page + at as u64)
}

fn only_breakpoints(ours: &[u8], files: &[u8]) -> Option<usize> {
    let mut different = ours.iter().zip(files).enumerate().filter(|(_, (ours, file))| ours != file);
    let (first, (byte, _)) = different.next()?;
    (*byte == BREAKPOINT && different.all(|(_, (byte, _))| *byte == BREAKPOINT)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_was_patched_otherwise_is_not_taken_for_probed() {
        assert_eq!(only_breakpoints(&[1, 0xcc, 3, 0xcc], &[1, 2, 3, 4]), Some(1));
        assert_eq!(only_breakpoints(&[1, 0xcc, 7], &[1, 2, 3]), None);
        assert_eq!(only_breakpoints(&[1, 0xcc], &[1, 0xcc]), None);
        assert_eq!(only_breakpoints(&[9, 2], &[1, 2]), None);
    }
}
