//! The two pieces of existing code that a remote call needs: a `syscall` instruction, and a way into `rt_sigreturn`.

use nix::unistd::Pid;

use super::arch;
use super::error::RemoteError;
use crate::procfs::maps::Vma;
use crate::sys::process_vm::{self, Remote};

/// Code is read in pieces of this size.
const CHUNK: usize = 64 << 10;
/// Most code looked through in all, so that a process with gigabytes of text costs little.
const SEARCH_BYTES_MAX: u64 = 256 << 20;
/// Bytes at the end of a mapping that must be zero for a restorer to be lent there.
const TAIL: u64 = 16;

/// Addresses of usable code in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gadgets {
    /// A `syscall` instruction in the vDSO.
    pub syscall: u64,
    /// Whether it is followed by nothing but a return, so that an interrupted call can be restarted by the kernel.
    pub returns: bool,
    /// Code that enters `rt_sigreturn`.
    pub restorer: Restorer,
}

/// Code that enters `rt_sigreturn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restorer {
    /// It is there, as in every C library with signal handlers.
    Found(u64),
    /// It is not, but there are unused bytes at this address, behind the end of the code.
    ///
    /// A scratch mapping would be no place for it: the last call takes that mapping away. And many systems
    /// refuse memory that is writable and executable.
    Lendable(u64),
}

impl Gadgets {
    /// Looks through the executable mappings of a process.
    pub fn find(pid: Pid, vmas: &[Vma]) -> Result<Gadgets, RemoteError> {
        let vdso = vmas.iter().find(|vma| vma.is_vdso());
        let vdso = vdso.ok_or(RemoteError::NoGadget { pid, what: "vDSO" })?;
        let code = read(pid, vdso.start, vdso.len_bytes().min(CHUNK as u64) as usize);
        let (at, returns) =
            find_syscall(&code).ok_or(RemoteError::NoGadget { pid, what: "system call in its vDSO" })?;
        let restorer = find_restorer(pid, vmas)
            .map(Restorer::Found)
            .or_else(|| find_tail(pid, vmas).map(Restorer::Lendable))
            .ok_or(RemoteError::NoGadget { pid, what: "signal restorer" })?;
        Ok(Gadgets { syscall: vdso.start + at as u64, returns, restorer })
    }
}

/// The offset of the best `syscall` instruction, and whether a plain return follows it.
fn find_syscall(code: &[u8]) -> Option<(usize, bool)> {
    let all = || code.windows(2).enumerate().filter(|(_, bytes)| *bytes == arch::SYSCALL).map(|(at, _)| at);
    let plain = all().find(|at| arch::is_plain_return(&code[at + arch::SYSCALL.len()..]));
    plain.map(|at| (at, true)).or_else(|| all().next().map(|at| (at, false)))
}

fn find_restorer(pid: Pid, vmas: &[Vma]) -> Option<u64> {
    // A file that does not carry the C library comes last: its text may be large.
    let is_libc = |vma: &&Vma| vma.path.windows(4).any(|part| part == b"libc" || part == b"musl");
    let code = || vmas.iter().filter(|vma| vma.exec && vma.read);
    let mut budget = SEARCH_BYTES_MAX;
    let in_order = code().filter(is_libc).chain(code().filter(|vma| !is_libc(vma)));
    in_order
        .take_while(|vma| {
            let go_on = budget > 0;
            budget = budget.saturating_sub(vma.len_bytes());
            go_on
        })
        .find_map(|vma| find_restorer_in(pid, vma))
}

fn find_restorer_in(pid: Pid, vma: &Vma) -> Option<u64> {
    let longest = arch::RESTORERS.iter().map(|form| form.len()).max().unwrap_or(0) as u64;
    let mut at = vma.start;
    while at < vma.end {
        // The pieces overlap, or a form that lies across their border would be missed.
        let len = (vma.end - at).min(CHUNK as u64 + longest);
        let code = read(pid, at, len as usize);
        let found =
            arch::RESTORERS.iter().find_map(|form| code.windows(form.len()).position(|bytes| bytes == *form));
        if let Some(offset) = found {
            return Some(at + offset as u64);
        }
        at += CHUNK as u64;
    }
    None
}

/// Unused bytes behind the code, in the vDSO if it has some: its pages are part of every image anyway.
fn find_tail(pid: Pid, vmas: &[Vma]) -> Option<u64> {
    let code = || vmas.iter().filter(|vma| vma.exec && vma.read && !vma.shared);
    code().filter(|vma| vma.is_vdso()).chain(code().filter(|vma| vma.has_file())).find_map(|vma| {
        let at = vma.end - TAIL;
        let tail = read(pid, at, TAIL as usize);
        (tail.len() == TAIL as usize && tail.iter().all(|&byte| byte == 0)).then_some(at)
    })
}

/// As much as can be read from `addr` on, up to `len` bytes.
fn read(pid: Pid, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let count = process_vm::read(pid, &[Remote { addr, len }], &mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

#[cfg(test)]
mod tests {
    use nix::unistd::getpid;

    use super::*;
    use crate::procfs::maps;

    #[test]
    fn a_syscall_before_a_plain_return_is_preferred() {
        assert_eq!(find_syscall(&[0x0f, 0x05, 0x48, 0x98, 0x0f, 0x05, 0x31, 0xd2, 0xc3]), Some((4, true)));
        assert_eq!(find_syscall(&[0x90, 0x0f, 0x05, 0x48, 0x98, 0xc3]), Some((1, false)));
        assert_eq!(find_syscall(&[0x90; 8]), None);
    }

    #[test]
    fn this_process_has_what_is_needed() {
        let vmas = maps::read(getpid()).unwrap();
        let gadgets = Gadgets::find(getpid(), &vmas).unwrap();
        assert!(vmas.iter().any(|vma| vma.is_vdso() && vma.range().contains(&gadgets.syscall)));
        let Restorer::Found(restorer) = gadgets.restorer else { panic!("this libc has a restorer") };
        assert!(vmas.iter().any(|vma| vma.exec && vma.range().contains(&restorer)));
        let vdso: Vec<_> = vmas.into_iter().filter(maps::Vma::is_vdso).collect();
        let Ok(Gadgets { restorer: Restorer::Lendable(at), .. }) = Gadgets::find(getpid(), &vdso) else {
            panic!("without a libc the end of the vDSO is lent")
        };
        assert_eq!(at, vdso[0].end - TAIL);
    }
}
