//! Where the frame of the first and the last call may lie, when there is no scratch mapping yet or any more.
//!
//! Memory below a stack pointer is free only if it really is a stack: a coroutine's stack is a small piece of heap
//! with other data below it. The choices, best first:
//! 1. below the thread's own stack pointer, when that is the stack the kernel or a threads library gave it;
//! 2. at the low end of the main stack, where it was never used;
//! 3. just below the main stack, which the kernel then lets grow by a page or two;
//! 4. below the stack pointer whatever it is. Bytes are put back after use, so that harm needs a tracer that is
//!    killed within the microseconds between.

use crate::procfs::maps::Vma;
use crate::remote::arch;
use crate::sys::ptrace::Regs;

/// A guard above this size is no guard but address space kept for something else.
const GUARD_BYTES_MAX: u64 = 1 << 20;

/// Where a frame may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// First address, a multiple of 16.
    pub at: u64,
    /// How it may be written.
    pub kind: PlaceKind,
}

/// What lies at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaceKind {
    /// Unused stack of a stopped thread: bytes are put back.
    Own,
    /// Zeros at the low end of the main stack, whose thread perhaps runs.
    Main,
    /// Not mapped yet: the main stack must be made to grow first.
    Grow,
    /// Scratch memory of another session.
    Scratch,
}

/// Chooses a place for `need` bytes. `read` gives memory of the process, short where it cannot be read.
pub(super) fn choose(
    vmas: &[Vma],
    regs: &Regs,
    need: usize,
    mut read: impl FnMut(u64, usize) -> Vec<u8>,
) -> Option<Place> {
    let need = need as u64;
    let own = vmas.iter().position(|vma| vma.range().contains(&regs.rsp)).filter(|&at| usable(&vmas[at]));
    let below_own = |index: usize| {
        let top = regs.rsp.checked_sub(arch::RED_ZONE)? & !15;
        let at = top.checked_sub(need)? & !15;
        (at >= vmas[index].start).then_some(Place { at, kind: PlaceKind::Own })
    };
    if let Some(place) = own.filter(|&index| is_dedicated(vmas, index, regs)).and_then(below_own) {
        return Some(place);
    }
    let main = vmas.iter().find(|vma| vma.path == b"[stack]" && usable(vma));
    if let Some(main) = main {
        let low_end = main.start..main.start.saturating_add(need);
        let inside =
            low_end.end <= main.end && !(main.start..low_end.end + arch::RED_ZONE).contains(&regs.rsp);
        let unused = inside && {
            let bytes = read(main.start, need as usize);
            bytes.len() as u64 == need && bytes.iter().all(|&byte| byte == 0)
        };
        if unused {
            return Some(Place { at: main.start, kind: PlaceKind::Main });
        }
        let room = main.start.checked_sub(need).map(|at| at & !15);
        let lower_end = vmas.iter().map(|vma| vma.end).filter(|&end| end <= main.start).max().unwrap_or(0);
        // The kernel keeps 256 pages free below a growing stack (stack_guard_gap).
        const GUARD_GAP: u64 = 256 * 4096;
        if let Some(at) = room.filter(|at| at.saturating_sub(lower_end) > GUARD_GAP) {
            return Some(Place { at, kind: PlaceKind::Grow });
        }
    }
    own.and_then(below_own)
}

fn usable(vma: &Vma) -> bool {
    vma.read && vma.write && !vma.is_special()
}

/// Whether mapping `index` was made to be the stack of the thread whose registers these are.
///
/// The main stack has a name. A threads library puts the thread's control block (the base of `fs`) at the upper
/// end of the stack and a small inaccessible guard below it; a heap that coroutine stacks are cut from has not both.
fn is_dedicated(vmas: &[Vma], index: usize, regs: &Regs) -> bool {
    let vma = &vmas[index];
    if vma.path == b"[stack]" {
        return true;
    }
    let control_block = regs.fs_base > regs.rsp && regs.fs_base < vma.end;
    let guard = index.checked_sub(1).map(|below| &vmas[below]).is_some_and(|below| {
        let closed = !below.read && !below.write && !below.exec;
        closed && below.end == vma.start && below.len_bytes() <= GUARD_BYTES_MAX
    });
    vma.is_anonymous() && control_block && guard
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::maps;

    fn vmas(text: &str) -> Vec<Vma> {
        maps::parse(text.as_bytes()).unwrap()
    }

    fn at(rsp: u64, fs_base: u64) -> Regs {
        Regs { rsp, fs_base, ..Regs::default() }
    }

    fn zeros(_: u64, len: usize) -> Vec<u8> {
        vec![0; len]
    }

    const MAIN: &str = "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0      [stack]\n";

    #[test]
    fn the_main_thread_uses_its_own_stack() {
        let place = choose(&vmas(MAIN), &at(0x7ffd_0002_0008, 0), 3000, zeros).unwrap();
        assert_eq!(place.kind, PlaceKind::Own);
        assert!(place.at + 3000 <= 0x7ffd_0002_0008 - 128 && place.at.is_multiple_of(16));
    }

    #[test]
    fn a_main_stack_in_full_use_grows() {
        let place = choose(&vmas(MAIN), &at(0x7ffd_0000_0400, 0), 3000, zeros).unwrap();
        assert_eq!(place.kind, PlaceKind::Grow);
        assert!(place.at + 3000 <= 0x7ffd_0000_0000);
        let crowded = format!("7ffcfffff000-7ffd00000000 rw-p 0 0:0 0\n{MAIN}");
        assert_eq!(choose(&vmas(&crowded), &at(0x7ffd_0000_0400, 0), 3000, zeros), None);
    }

    #[test]
    fn a_thread_with_guard_and_control_block_uses_its_own_stack() {
        let text = "7000000000-7000001000 ---p 0 0:0 0\n7000001000-7000801000 rw-p 0 0:0 0\n";
        let inside = at(0x70_0080_0000, 0x70_0080_0700);
        assert_eq!(choose(&vmas(text), &inside, 3000, zeros).unwrap().kind, PlaceKind::Own);
    }

    #[test]
    fn a_coroutine_borrows_from_the_main_stack() {
        let heap = "c000000000-c000400000 rw-p 0 0:0 0\nc000400000-c004000000 ---p 0 0:0 0\n";
        let coroutine = at(0xc0_0001_0000, 0x5000);
        let place = choose(&vmas(&format!("{heap}{MAIN}")), &coroutine, 3000, zeros).unwrap();
        assert_eq!(place, Place { at: 0x7ffd_0000_0000, kind: PlaceKind::Main });
        // Somebody was there already.
        let used = |_: u64, len: usize| vec![1; len];
        let place = choose(&vmas(&format!("{heap}{MAIN}")), &coroutine, 3000, used).unwrap();
        assert_eq!(place.kind, PlaceKind::Grow);
        // No main stack at all.
        let place = choose(&vmas(heap), &coroutine, 3000, zeros).unwrap();
        assert_eq!(place.kind, PlaceKind::Own);
        assert_eq!(choose(&vmas(heap), &at(0xc0_0000_0100, 0), 3000, zeros), None);
        assert_eq!(choose(&vmas(heap), &at(0x10, 0), 3000, zeros), None);
    }
}
