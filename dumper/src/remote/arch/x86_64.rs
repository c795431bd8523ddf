//! x86-64: `struct user_regs_struct`, the restart codes of the kernel, and `struct rt_sigframe`.

use crate::sys::cpuid::{self, Component};
use crate::sys::ptrace::Regs;

/// A `syscall` instruction.
pub const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Length of that instruction: how far an interrupted call is wound back.
pub const SYSCALL_LEN: u64 = SYSCALL.len() as u64;

/// The forms in which C libraries write their signal restorer: `mov $15,%rax` or `mov $15,%eax`, then `syscall`.
pub const RESTORERS: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05], &[0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05]];

/// Memory below the stack pointer that compiled code uses without moving it (System V ABI).
pub const RED_ZONE: u64 = 128;

/// `rt_sigreturn` (arch/x86/entry/syscalls/syscall_64.tbl).
pub const NR_RT_SIGRETURN: u64 = 15;
/// The call by which the kernel continues an interrupted wait with what is left of its time.
pub const NR_RESTART_SYSCALL: u64 = 219;

/// Codes by which the kernel marks an interrupted call that shall go on (include/linux/errno.h).
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -4;

/// Trap flag: single steps.
const EFLAGS_TF: u64 = 0x100;

/// Whether the thread is about to return from a system call, rather than stopped in its own code.
fn in_syscall(regs: &Regs) -> bool {
    regs.orig_rax as i64 >= 0
}

// Calls that the kernel continues with a remembered deadline (it answers ERESTART_RESTARTBLOCK).
const NR_POLL: u64 = 7;
const NR_NANOSLEEP: u64 = 35;
const NR_FUTEX: u64 = 202;
const NR_CLOCK_NANOSLEEP: u64 = 230;

/// Whether call `nr` makes the kernel forget what it knows of an interrupted one (`restart_block`): the sleeps
/// clear it at their start, the others when they are interrupted themselves.
pub fn forgets_interrupted_call(nr: i64) -> bool {
    [NR_POLL, NR_RT_SIGRETURN, NR_NANOSLEEP, NR_FUTEX, NR_CLOCK_NANOSLEEP].contains(&(nr as u64))
}

/// The arguments of the call that `regs` stand in.
pub fn arguments(regs: &Regs) -> [u64; 6] {
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
}

// Calls that any stop ends with EINTR (`man 7 signal`). They take nothing before they are interrupted, so that
// making them once more is the same as going on, if they have no time limit.
const NR_SEMOP: u64 = 65;
const NR_RT_SIGTIMEDWAIT: u64 = 128;
const NR_IO_GETEVENTS: u64 = 208;
const NR_SEMTIMEDOP: u64 = 220;
const NR_EPOLL_WAIT: u64 = 232;
const NR_EPOLL_PWAIT: u64 = 281;
const NR_IO_PGETEVENTS: u64 = 333;
const NR_EPOLL_PWAIT2: u64 = 441;

/// Whether call `nr` may end with EINTR when its thread is stopped.
pub fn may_end_by_stop(nr: u64) -> bool {
    let endable = [
        NR_SEMOP,
        NR_RT_SIGTIMEDWAIT,
        NR_IO_GETEVENTS,
        NR_SEMTIMEDOP,
        NR_EPOLL_WAIT,
        NR_EPOLL_PWAIT,
        NR_IO_PGETEVENTS,
        NR_EPOLL_PWAIT2,
    ];
    endable.contains(&nr)
}

/// Whether the call that `regs` stand in is one of those, without a time limit.
fn is_endless_wait(regs: &Regs) -> bool {
    match regs.orig_rax {
        NR_EPOLL_WAIT | NR_EPOLL_PWAIT => (regs.r10 as i32) < 0,
        NR_EPOLL_PWAIT2 | NR_SEMTIMEDOP => regs.r10 == 0,
        NR_RT_SIGTIMEDWAIT => regs.rdx == 0,
        NR_IO_GETEVENTS | NR_IO_PGETEVENTS => regs.r8 == 0,
        NR_SEMOP => true,
        _ => false,
    }
}

/// Whether an endless wait was ended by the stop itself, with EINTR.
fn was_cut_short(regs: &Regs) -> bool {
    in_syscall(regs) && regs.rax as i64 == EINTR && is_endless_wait(regs)
}

/// The registers to go on with after a mere stop.
///
/// They are the seen ones but in two cases. An endless wait that the stop ended with EINTR gets the code
/// ERESTARTNOHAND instead, by which the kernel itself decides at the moment of resumption: with a handler to run,
/// EINTR; without, the call is made once more. And in a restartable sequence the kernel would go to its abort
/// handler at the next resumption, but not after a remote call, which resumes elsewhere.
pub fn resumed(seen: &Regs, rseq_abort: Option<u64>) -> Regs {
    let mut regs = *seen;
    if was_cut_short(seen) {
        regs.rax = ERESTARTNOHAND as u64;
    }
    if let Some(abort) = rseq_abort {
        regs.rip = abort;
    }
    regs
}

/// Whether [`settled`] wants to know which call `restart_syscall` stands for.
pub fn needs_restarted_call(regs: &Regs) -> bool {
    in_syscall(regs) && regs.orig_rax == NR_RESTART_SYSCALL && regs.rax as i64 == ERESTART_RESTARTBLOCK
}

/// Whether the thread may be just before a `syscall` instruction that continues a call; `at_rip` is the code there.
pub fn is_about_to_continue(regs: &Regs, at_rip: &[u8; 2]) -> bool {
    regs.rax == NR_RESTART_SYSCALL && *at_rip == SYSCALL
}

/// The number in `mov $nr,%eax` just before the `syscall` that ends `code`, if it is a call that can be continued.
pub fn restarted_call(code: &[u8; 7]) -> Option<u64> {
    let [0xb8, n0, n1, n2, n3, 0x0f, 0x05] = *code else { return None };
    let nr = u64::from(u32::from_le_bytes([n0, n1, n2, n3]));
    matches!(nr, NR_POLL | NR_NANOSLEEP | NR_FUTEX | NR_CLOCK_NANOSLEEP).then_some(nr)
}

/// The call that a thread in `restart_syscall` continues, from its kernel stack (/proc/PID/task/TID/stack).
///
/// The functions of sleeps do not always show there. But there are no other calls of this kind, and the two sleeps
/// differ in their first argument: an address, or the number of a clock.
pub fn restarted_call_by_stack(stack: &str, args: &[u64; 6]) -> Option<u64> {
    const LOWEST_ADDRESS: u64 = 4096;
    if stack.contains("get_signal") {
        // It is stopped, and has left the call.
        None
    } else if stack.contains("futex") {
        Some(NR_FUTEX)
    } else if stack.contains("poll") {
        Some(NR_POLL)
    } else if !stack.contains("do_syscall_64") && !stack.contains("nanosleep") {
        None
    } else if args[0] < LOWEST_ADDRESS || (args[0] as i32) < 0 && args[0] >> 47 != 0 {
        Some(NR_CLOCK_NANOSLEEP)
    } else {
        Some(NR_NANOSLEEP)
    }
}

/// The registers of the thread at rest in user code: an interrupted call is wound back to its instruction.
///
/// This is what an image must hold, and what a signal frame restores: neither keeps the kernel's memory of the
/// call. So a call that would have been continued with what is left of its time limit is made anew with the whole
/// of it (`sleep` and `select` have written the rest where they read it, and lose nothing). When it was continued
/// before, its number is lost; `restarted` is what the caller found in the code (see [`restarted_call`]), without
/// which the call ends with EINTR.
pub fn settled(resumed: &Regs, restarted: Option<u64>) -> Regs {
    let mut regs = *resumed;
    if !in_syscall(resumed) {
        return regs;
    }
    let again = match resumed.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Some(resumed.orig_rax),
        ERESTART_RESTARTBLOCK if resumed.orig_rax == NR_RESTART_SYSCALL => restarted,
        ERESTART_RESTARTBLOCK => Some(resumed.orig_rax),
        _ => return regs,
    };
    match again {
        Some(nr) => {
            regs.rax = nr;
            regs.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
        }
        None => regs.rax = EINTR as u64,
    }
    regs
}

/// The registers of a thread whose interrupted call ends with EINTR, since a handler runs before it could be made once
/// more; `None` where it is made once more all the same, or there is none.
///
/// `resumed` is as for [`settled`], `restarts` says whether the handler is one with SA_RESTART (arch/x86/kernel/signal.c,
/// handle_signal).
pub fn interrupted(resumed: &Regs, restarts: bool) -> Option<Regs> {
    let ends = in_syscall(resumed)
        && match resumed.rax as i64 {
            ERESTARTNOHAND | ERESTART_RESTARTBLOCK => true,
            ERESTARTSYS => !restarts,
            _ => false,
        };
    ends.then_some(Regs { rax: EINTR as u64, ..*resumed })
}

/// Whether a call's raw result asks to be made once more: something unrelated interrupted it.
pub fn is_restart(result: i64) -> bool {
    matches!(result, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
}

/// Registers that lead straight into `rt_sigreturn` of the frame at `frame`, as soon as the thread runs.
///
/// `syscall` is the address of a `syscall` instruction. orig_rax is -1: no interrupted call is to be restarted.
pub fn parked(settled: &Regs, syscall: u64, frame: u64) -> Regs {
    Regs {
        rip: syscall,
        rax: NR_RT_SIGRETURN,
        orig_rax: u64::MAX,
        // The kernel looks for the frame one word below the stack pointer, where `ret` has taken the restorer's
        // address from.
        rsp: frame + 8,
        eflags: settled.eflags & !EFLAGS_TF,
        ..*settled
    }
}

/// Registers to set at the entry of a parked thread's call, to turn it into call `nr`.
///
/// When it returns, the thread stands at `back`, with the stack pointer at the frame's first word if a `ret`
/// follows there (`returns`), else behind that word.
pub fn call(parked: &Regs, nr: u64, args: [u64; 6], back: u64, frame: u64, returns: bool) -> Regs {
    let [rdi, rsi, rdx, r10, r8, r9] = args;
    let rsp = if returns { frame } else { frame + 8 };
    Regs { orig_rax: nr, rip: back, rsp, rdi, rsi, rdx, r10, r8, r9, ..*parked }
}

/// The registers of a thread in the frame by which it makes call `nr` of its own, as a link of a chain of frames: behind
/// the call, which returns by a `ret`, it goes on to the frame at `next`.
pub fn link(settled: &Regs, nr: u64, args: [u64; 6], syscall: u64, next: u64) -> Regs {
    let [rdi, rsi, rdx, r10, r8, r9] = args;
    let eflags = settled.eflags & !EFLAGS_TF;
    Regs { rip: syscall, rax: nr, rsp: next, rdi, rsi, rdx, r10, r8, r9, eflags, ..*settled }
}

/// Whether the kernel remembers how the thread's interrupted call is to go on, which any `rt_sigreturn` makes it forget.
pub fn is_remembered(resumed: &Regs) -> bool {
    in_syscall(resumed) && resumed.rax as i64 == ERESTART_RESTARTBLOCK
}

/// The raw result of a call at its exit.
pub fn result(regs: &Regs) -> i64 {
    regs.rax as i64
}

/// Whether the code at `code`, just behind a `syscall`, does nothing but clear registers and return.
///
/// Compilers clear the registers that a call has used up (`-fzero-call-used-regs`) before they return.
pub fn is_plain_return(mut code: &[u8]) -> bool {
    loop {
        match code {
            [0xc3, ..] => return true,
            // xor %r32,%r32 of the same register, other than esp.
            [0x31 | 0x33, modrm, rest @ ..] if clears_itself(*modrm, 0) => code = rest,
            [0x45, 0x31 | 0x33, modrm, rest @ ..] if clears_itself(*modrm, 8) => code = rest,
            _ => return false,
        }
    }
}

fn clears_itself(modrm: u8, high: u8) -> bool {
    const ESP: u8 = 4;
    let (reg, rm) = (modrm >> 3 & 7, modrm & 7);
    modrm >> 6 == 3 && reg == rm && reg + high != ESP
}

// Layout of struct rt_sigframe (arch/x86/include/asm/sigframe.h), in bytes from its start.
const FRAME_UC: usize = 8;
const UC_MCONTEXT: usize = 40;
const UC_SIGMASK: usize = UC_MCONTEXT + 256;
const UC_LEN: usize = UC_SIGMASK + 8;
const FPSTATE_ALIGN: u64 = 64;

/// UC_FP_XSTATE, UC_SIGCONTEXT_SS and UC_STRICT_RESTORE_SS (arch/x86/include/uapi/asm/ucontext.h).
const UC_FLAGS: u64 = 7;
/// No such mode: the kernel refuses the frame's alternate stack and so leaves the thread's own as it is.
const SS_FLAGS_INVALID: u32 = 0x7f;

// The XSAVE area as signal frames carry it (arch/x86/include/uapi/asm/sigcontext.h).
const FXSAVE_LEN: usize = 512;
const XSAVE_HEADER_END: usize = 576;
const XSTATE_BV: usize = 512;
const SW_RESERVED: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// x87 and SSE, which are always there.
const XFEATURES_LEGACY: u64 = 3;

/// Bytes that [`is_healing`] wants, from one word below the stack pointer on.
pub const HEALING_BYTES: usize = 56;

/// Whether the bytes around a thread's stack pointer are a frame of ours that it has not yet gone back through: its
/// dumper was killed a moment ago.
pub fn is_healing(around: &[u8; HEALING_BYTES]) -> bool {
    let words: Vec<u64> = around.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    // uc_flags, uc_link and the alternate stack, of a frame that begins at the first word or at the second.
    let mark = [UC_FLAGS, 0, 0, u64::from(SS_FLAGS_INVALID), 0];
    words[1..6] == mark || words[2..7] == mark
}

/// A thread's state in the form of a signal frame: everything but the place where it will lie.
pub struct Frame {
    settled: Regs,
    sigmask: u64,
    fpstate: Vec<u8>,
}

impl Frame {
    /// `xstate` is the thread's NT_X86_XSTATE (or NT_PRFPREG on a machine without XSAVE).
    pub fn new(settled: &Regs, sigmask: u64, xstate: &[u8]) -> Frame {
        Frame { settled: *settled, sigmask, fpstate: fpstate(xstate, cpuid::xsave_components()) }
    }

    /// Most bytes the frame takes, wherever it starts.
    pub fn len_max(&self) -> usize {
        FRAME_UC + UC_LEN + FPSTATE_ALIGN as usize + self.fpstate.len()
    }

    /// The bytes of the frame at address `at`, a multiple of 8; `restorer` is where its `ret` goes.
    pub fn bytes(&self, at: u64, restorer: u64) -> Vec<u8> {
        let fpstate_at = fpstate_at(at);
        let mut bytes = vec![0u8; (fpstate_at - at) as usize];
        put_head(&mut bytes, restorer, &self.settled, self.sigmask, fpstate_at);
        bytes.extend_from_slice(&self.fpstate);
        bytes
    }

    /// A frame with other registers ([`link`]) and blocked signals, and the floating-point state of this one, which lies
    /// at `home`.
    pub fn link_bytes(&self, home: u64, restorer: u64, regs: &Regs, sigmask: u64) -> [u8; LINK_BYTES] {
        let mut bytes = [0u8; LINK_BYTES];
        put_head(&mut bytes, restorer, regs, sigmask, fpstate_at(home));
        bytes
    }
}

/// Bytes of a frame without its floating-point state, a multiple of 64.
pub const LINK_BYTES: usize = (FRAME_UC + UC_LEN).next_multiple_of(64);

/// Where the floating-point state of the frame at `at` lies.
fn fpstate_at(at: u64) -> u64 {
    (at + (FRAME_UC + UC_LEN) as u64).next_multiple_of(FPSTATE_ALIGN)
}

/// Writes all of a frame but its floating-point state.
fn put_head(bytes: &mut [u8], restorer: u64, r: &Regs, sigmask: u64, fpstate_at: u64) {
    let mut put = |offset: usize, word: u64| bytes[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
    put(0, restorer);
    put(FRAME_UC, UC_FLAGS);
    // struct stack_t: ss_sp, ss_flags, ss_size.
    put(FRAME_UC + 24, u64::from(SS_FLAGS_INVALID));
    let selectors = (r.cs & 0xffff) | (r.ss & 0xffff) << 48;
    let context = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax,
        r.rcx, r.rsp, r.rip, r.eflags, selectors, 0, 0, 0, 0, fpstate_at,
    ];
    for (index, word) in context.into_iter().enumerate() {
        put(FRAME_UC + UC_MCONTEXT + 8 * index, word);
    }
    put(FRAME_UC + UC_SIGMASK, sigmask);
}

/// The floating-point part of a signal frame, from a thread's XSAVE area in standard form.
///
/// It is cut behind the last component that the thread uses: the kernel refuses a frame that is longer than the
/// thread may have (AMX wants a permission), and short frames fit on small stacks.
fn fpstate(xstate: &[u8], components: &[Component]) -> Vec<u8> {
    if xstate.len() < XSAVE_HEADER_END {
        // FXSAVE only. Software words that are zero say so.
        let mut area = xstate.to_vec();
        area.resize(FXSAVE_LEN, 0);
        area[SW_RESERVED..FXSAVE_LEN].fill(0);
        return area;
    }
    let mut word = [0u8; 8];
    word.copy_from_slice(&xstate[XSTATE_BV..XSTATE_BV + 8]);
    let in_use = u64::from_le_bytes(word);
    let used = components.iter().filter(|component| in_use & 1 << component.bit != 0);
    let end = used.map(|one| one.offset as usize + one.size as usize).fold(XSAVE_HEADER_END, usize::max);
    let mut area = xstate[..end.min(xstate.len())].to_vec();
    let xfeatures = in_use | XFEATURES_LEGACY;
    let xstate_size = area.len() as u32;
    let magic2 = FP_XSTATE_MAGIC2.to_le_bytes();
    let software = &mut area[SW_RESERVED..FXSAVE_LEN];
    software.fill(0);
    software[0..4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    software[4..8].copy_from_slice(&(xstate_size + magic2.len() as u32).to_le_bytes());
    software[8..16].copy_from_slice(&xfeatures.to_le_bytes());
    software[16..20].copy_from_slice(&xstate_size.to_le_bytes());
    area.extend_from_slice(&magic2);
    area
}

#[cfg(test)]
#[path = "x86_64_tests.rs"]
mod tests;
