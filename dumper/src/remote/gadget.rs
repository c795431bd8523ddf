//! The two pieces of existing code that a remote call needs: a `syscall` instruction, and a way into `rt_sigreturn`.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

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
        let (at, returns) = syscall_in_vdso(pid, vdso)
            .ok_or(RemoteError::NoGadget { pid, what: "system call in its vDSO" })?;
        let restorer = find_restorer(pid, vmas)
            .map(Restorer::Found)
            .or_else(|| find_tail(pid, vmas).map(Restorer::Lendable))
            .ok_or(RemoteError::NoGadget { pid, what: "signal restorer" })?;
        Ok(Gadgets { syscall: vdso.start + at as u64, returns, restorer })
    }
}

/// Where code was found in the files of other processes: most of a tree run the same C library, and all have the same
/// vDSO. It is read again at its place in each, rather than looked for.
#[derive(Default)]
struct Known {
    /// Offset in the vDSO.
    syscall: Option<u64>,
    /// Distance of a restorer from the start of a mapping of a file: device, inode, offset in the file.
    restorers: HashMap<(u32, u32, u64, u64), u64>,
}

/// Files that are kept in mind at most.
const KNOWN_MAX: usize = 1024;

fn known() -> MutexGuard<'static, Known> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    // What is read there is looked at before it is used.
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes behind a `syscall` in which a plain return is looked for.
const RETURN_BYTES: usize = 64;

fn syscall_in_vdso(pid: Pid, vdso: &Vma) -> Option<(usize, bool)> {
    let at_known = known().syscall;
    if let Some(at) = at_known {
        let code = read(pid, vdso.start + at, arch::SYSCALL.len() + RETURN_BYTES);
        if code.starts_with(&arch::SYSCALL) && arch::is_plain_return(&code[arch::SYSCALL.len()..]) {
            return Some((at as usize, true));
        }
    }
    let found = find_syscall(&read(pid, vdso.start, vdso.len_bytes().min(CHUNK as u64) as usize))?;
    if let (at, true) = found {
        known().syscall = Some(at as u64);
    }
    Some(found)
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
        .find_map(|vma| restorer_in(pid, vma))
}

fn restorer_in(pid: Pid, vma: &Vma) -> Option<u64> {
    let file = (vma.major, vma.minor, vma.inode, vma.pgoff);
    let known_at = known().restorers.get(&file).copied().filter(|_| vma.has_file());
    if let Some(at) = known_at.filter(|at| *at < vma.len_bytes()) {
        let code = read(pid, vma.start + at, longest_form());
        if arch::RESTORERS.iter().any(|form| code.starts_with(form)) {
            return Some(vma.start + at);
        }
    }
    let found = find_restorer_in(pid, vma)?;
    let mut known = known();
    if vma.has_file() && known.restorers.len() < KNOWN_MAX {
        known.restorers.insert(file, found - vma.start);
    }
    Some(found)
}

fn longest_form() -> usize {
    arch::RESTORERS.iter().map(|form| form.len()).max().unwrap_or(0)
}

fn find_restorer_in(pid: Pid, vma: &Vma) -> Option<u64> {
    let longest = longest_form() as u64;
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
