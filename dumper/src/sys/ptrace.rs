//! `ptrace(2)`: one function per request.
//!
//! Every request but SEIZE wants the tracee to be in a ptrace stop and the caller to be the very thread that
//! seized it; the kernel answers ESRCH otherwise, also when the tracee was killed meanwhile.

use std::mem;

use nix::errno::Errno;
use nix::unistd::Pid;

/// General registers of an x86-64 thread, `struct user_regs_struct` (sys/user.h), regset `NT_PRSTATUS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the registers that name them")]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Number of the system call the thread is in; -1 outside one.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// One instruction of a classic BPF program, `struct sock_filter` (linux/filter.h).
pub type SockFilter = libc::sock_filter;

/// A signal's details as the kernel queues them, 128 bytes (`siginfo_t`).
pub type SigInfo = [u8; 128];

/// System call stops carry bit 0x80, which tells them from a real SIGTRAP (`man 2 ptrace`).
pub const O_TRACESYSGOOD: u32 = 1;
/// The tracee's seccomp filters are not consulted while it is traced (CAP_SYS_ADMIN; `man 2 ptrace`).
pub const O_SUSPEND_SECCOMP: u32 = 1 << 21;

/// Event number of a stop by INTERRUPT or of a group stop (include/uapi/linux/ptrace.h).
pub const EVENT_STOP: i32 = 128;

/// Regset of the general registers (include/uapi/linux/elf.h).
pub const NT_PRSTATUS: u32 = 1;
/// Regset of the FXSAVE area.
pub const NT_PRFPREG: u32 = 2;
/// Regset of the whole XSAVE area in its standard form.
pub const NT_X86_XSTATE: u32 = 0x202;
/// Regset of the user shadow stack (kernel 6.6).
pub const NT_X86_SHSTK: u32 = 0x204;

const GET_THREAD_AREA: u32 = 25;
const POKEDATA: u32 = 5;
const CONT: u32 = 7;
const SYSCALL: u32 = 24;
const DETACH: u32 = 17;
const SETOPTIONS: u32 = 0x4200;
const GETEVENTMSG: u32 = 0x4201;
const GETSIGINFO: u32 = 0x4202;
const GETREGSET: u32 = 0x4204;
const SETREGSET: u32 = 0x4205;
const SEIZE: u32 = 0x4206;
const INTERRUPT: u32 = 0x4207;
const LISTEN: u32 = 0x4208;
const PEEKSIGINFO: u32 = 0x4209;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const SECCOMP_GET_FILTER: u32 = 0x420c;
const SECCOMP_GET_METADATA: u32 = 0x420d;
const GET_SYSCALL_INFO: u32 = 0x420e;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;

/// Largest number of instructions in a classic BPF program (`BPF_MAXINSNS`, linux/bpf_common.h).
const BPF_MAXINSNS: usize = 4096;

/// Length of a kernel signal set in bytes.
const SIGSET_BYTES: usize = 8;

/// # Safety
/// `addr` and `data` must be what `request` expects; where the kernel writes through one of them, it must point at
/// memory of at least the size that it writes.
unsafe fn request(request: u32, pid: Pid, addr: usize, data: usize) -> nix::Result<i64> {
    // The raw call, since the C wrappers differ in type between libcs and rewrite the PEEK requests.
    // SAFETY: the caller keeps the contract of the request.
    let rc =
        unsafe { libc::syscall(libc::SYS_ptrace, i64::from(request), i64::from(pid.as_raw()), addr, data) };
    Errno::result(rc)
}

/// Starts to trace thread `tid` without stopping it (PTRACE_SEIZE). `options`: a sum of `O_*`.
///
/// EPERM: no right, traced already, or exiting. ESRCH: no such thread.
pub fn seize(tid: Pid, options: u32) -> nix::Result<()> {
    // SAFETY: SEIZE reads no memory of ours.
    unsafe { request(SEIZE, tid, 0, options as usize) }.map(drop)
}

/// Asks a seized thread to stop (PTRACE_INTERRUPT). The stop is reported to `waitpid`.
pub fn interrupt(tid: Pid) -> nix::Result<()> {
    // SAFETY: INTERRUPT reads no memory of ours.
    unsafe { request(INTERRUPT, tid, 0, 0) }.map(drop)
}

/// Lets a thread in group stop wait on in it, so that a SIGCONT is reported (PTRACE_LISTEN).
pub fn listen(tid: Pid) -> nix::Result<()> {
    // SAFETY: LISTEN reads no memory of ours.
    unsafe { request(LISTEN, tid, 0, 0) }.map(drop)
}

/// Resumes a stopped thread, delivering `signal` (0: none) if it is in signal-delivery-stop (PTRACE_CONT).
pub fn cont(tid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: CONT reads no memory of ours.
    unsafe { request(CONT, tid, 0, signal as usize) }.map(drop)
}

/// Resumes a stopped thread up to its next entry into or return from a system call (PTRACE_SYSCALL).
pub fn syscall_stop(tid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: SYSCALL reads no memory of ours.
    unsafe { request(SYSCALL, tid, 0, signal as usize) }.map(drop)
}

/// Ends the tracing of a stopped thread, delivering `signal` (0: none) (PTRACE_DETACH).
pub fn detach(tid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: DETACH reads no memory of ours.
    unsafe { request(DETACH, tid, 0, signal as usize) }.map(drop)
}

/// Replaces the options of a stopped thread (PTRACE_SETOPTIONS). `options`: a sum of `O_*`.
pub fn set_options(tid: Pid, options: u32) -> nix::Result<()> {
    // SAFETY: SETOPTIONS reads no memory of ours.
    unsafe { request(SETOPTIONS, tid, 0, options as usize) }.map(drop)
}

/// The message of the last ptrace event (PTRACE_GETEVENTMSG), such as a new thread's id.
pub fn event_message(tid: Pid) -> nix::Result<u64> {
    let mut message: u64 = 0;
    // SAFETY: the kernel writes one unsigned long.
    unsafe { request(GETEVENTMSG, tid, 0, &raw mut message as usize) }?;
    Ok(message)
}

/// The siginfo of the signal or event that caused the present stop (PTRACE_GETSIGINFO).
pub fn siginfo(tid: Pid) -> nix::Result<SigInfo> {
    let mut info: SigInfo = [0; 128];
    // SAFETY: the kernel writes one siginfo_t, which has 128 bytes on every architecture.
    unsafe { request(GETSIGINFO, tid, 0, info.as_mut_ptr() as usize) }?;
    Ok(info)
}

/// The general registers (PTRACE_GETREGSET, NT_PRSTATUS).
///
/// EINVAL: the thread runs 32-bit code, whose register set is shorter.
pub fn regs(tid: Pid) -> nix::Result<Regs> {
    let mut regs = Regs::default();
    let mut iov = libc::iovec { iov_base: (&raw mut regs).cast(), iov_len: mem::size_of::<Regs>() };
    // SAFETY: the kernel writes at most iov_len bytes at iov_base, puts the length it wrote into iov, and any bytes
    // are valid registers.
    unsafe { request(GETREGSET, tid, NT_PRSTATUS as usize, &raw mut iov as usize) }?;
    if iov.iov_len == mem::size_of::<Regs>() { Ok(regs) } else { Err(Errno::EINVAL) }
}

/// Sets the general registers (PTRACE_SETREGSET, NT_PRSTATUS).
pub fn set_regs(tid: Pid, regs: &Regs) -> nix::Result<()> {
    let mut iov =
        libc::iovec { iov_base: (&raw const *regs).cast_mut().cast(), iov_len: mem::size_of::<Regs>() };
    // SAFETY: the kernel reads at most iov_len bytes at iov_base.
    unsafe { request(SETREGSET, tid, NT_PRSTATUS as usize, &raw mut iov as usize) }.map(drop)
}

/// Any register set as raw bytes (PTRACE_GETREGSET), at most `limit` bytes; the result has the kernel's length.
pub fn regset(tid: Pid, set: u32, limit: usize) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0u8; limit];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: limit };
    // SAFETY: the kernel writes at most iov_len bytes at iov_base and puts the length it wrote into iov.
    unsafe { request(GETREGSET, tid, set as usize, &raw mut iov as usize) }?;
    bytes.truncate(iov.iov_len);
    Ok(bytes)
}

/// Sets any register set from raw bytes (PTRACE_SETREGSET).
pub fn set_regset(tid: Pid, set: u32, bytes: &[u8]) -> nix::Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel reads at most iov_len bytes at iov_base.
    unsafe { request(SETREGSET, tid, set as usize, &raw mut iov as usize) }.map(drop)
}

/// The blocked signals, bit n-1 for signal n (PTRACE_GETSIGMASK, kernel 3.11).
///
/// A thread inside `sigsuspend`, `ppoll` and the like answers with the mask it had before the call.
pub fn sigmask(tid: Pid) -> nix::Result<u64> {
    let mut mask: u64 = 0;
    // SAFETY: the kernel writes SIGSET_BYTES bytes.
    unsafe { request(GETSIGMASK, tid, SIGSET_BYTES, &raw mut mask as usize) }?;
    Ok(mask)
}

/// Sets the blocked signals, bit n-1 for signal n (PTRACE_SETSIGMASK, kernel 3.11). KILL and STOP are left out by the kernel.
pub fn set_sigmask(tid: Pid, mask: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads SIGSET_BYTES bytes.
    unsafe { request(SETSIGMASK, tid, SIGSET_BYTES, &raw const mask as usize) }.map(drop)
}

/// Whose queue of pending signals to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalQueue {
    /// Signals sent to this thread.
    Private,
    /// Signals sent to the process.
    Shared,
}

/// Up to 32 pending signals from position `from` of a queue, without taking them (PTRACE_PEEKSIGINFO, kernel 3.10).
///
/// An empty answer is the end of the queue.
pub fn peek_siginfo(tid: Pid, queue: SignalQueue, from: u64) -> nix::Result<Vec<SigInfo>> {
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    const BATCH: usize = 32;
    let flags = match queue {
        SignalQueue::Private => 0,
        SignalQueue::Shared => 1,
    };
    let args = Args { off: from, flags, nr: BATCH as i32 };
    let mut infos = vec![[0u8; 128]; BATCH];
    // SAFETY: the kernel reads one Args and writes at most `nr` records of 128 bytes.
    let count = unsafe { request(PEEKSIGINFO, tid, &raw const args as usize, infos.as_mut_ptr() as usize) }?;
    infos.truncate(usize::try_from(count).unwrap_or(0));
    Ok(infos)
}

/// Where a thread's restartable-sequence area lies (`struct ptrace_rseq_configuration`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of the thread's `struct rseq`; 0 when none is registered.
    pub rseq_abi_pointer: u64,
    /// Its registered size in bytes.
    pub rseq_abi_size: u32,
    /// The signature that stands before every abort handler.
    pub signature: u32,
    flags: u32,
    pad: u32,
}

/// The registered restartable-sequence area (PTRACE_GET_RSEQ_CONFIGURATION, kernel 5.13; EIO before).
pub fn rseq_configuration(tid: Pid) -> nix::Result<RseqConfiguration> {
    let mut conf = RseqConfiguration::default();
    let size = mem::size_of::<RseqConfiguration>();
    // SAFETY: the kernel writes at most `size` bytes.
    unsafe { request(GET_RSEQ_CONFIGURATION, tid, size, &raw mut conf as usize) }?;
    Ok(conf)
}

/// What a stop has to do with a system call (`struct ptrace_syscall_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallInfo {
    /// The stop is not a system call stop.
    None,
    /// About to enter call `nr`.
    Entry {
        /// Number of the call.
        nr: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// Returning `rval`.
    Exit {
        /// Result, or a negated errno.
        rval: i64,
        /// Whether `rval` is an error.
        is_error: bool,
    },
    /// Stopped by a seccomp filter (SECCOMP_RET_TRACE).
    Seccomp,
}

/// What the present stop has to do with a system call (PTRACE_GET_SYSCALL_INFO, kernel 5.3).
pub fn syscall_info(tid: Pid) -> nix::Result<SyscallInfo> {
    #[repr(C)]
    #[derive(Default)]
    struct Raw {
        op: u8,
        pad: [u8; 3],
        arch: u32,
        instruction_pointer: u64,
        stack_pointer: u64,
        words: [u64; 8],
    }
    let mut raw = Raw::default();
    // SAFETY: the kernel writes at most the given number of bytes.
    unsafe { request(GET_SYSCALL_INFO, tid, mem::size_of::<Raw>(), &raw mut raw as usize) }?;
    let word = raw.words;
    Ok(match raw.op {
        1 => SyscallInfo::Entry { nr: word[0], args: [word[1], word[2], word[3], word[4], word[5], word[6]] },
        2 => SyscallInfo::Exit { rval: word[0] as i64, is_error: word[1] & 0xff != 0 },
        3 => SyscallInfo::Seccomp,
        _ => SyscallInfo::None,
    })
}

/// Filter number `index` of a thread, 0 the oldest (PTRACE_SECCOMP_GET_FILTER, kernel 4.4; get_nth_filter in
/// kernel/seccomp.c counts from the far end of the list).
///
/// ENOENT: there are no more. EINVAL: the thread is not in filter mode. EACCES: no CAP_SYS_ADMIN, or the caller
/// itself is under seccomp. EMEDIUMTYPE: the filter is no classic BPF.
pub fn seccomp_filter(tid: Pid, index: u64) -> nix::Result<Vec<SockFilter>> {
    // SAFETY: without a buffer the kernel only answers the number of instructions.
    let count = unsafe { request(SECCOMP_GET_FILTER, tid, index as usize, 0) }?;
    let count = usize::try_from(count).ok().filter(|&n| n <= BPF_MAXINSNS).ok_or(Errno::E2BIG)?;
    let mut program = vec![SockFilter { code: 0, jt: 0, jf: 0, k: 0 }; count];
    // SAFETY: filters never change, so the kernel writes `count` instructions again.
    unsafe { request(SECCOMP_GET_FILTER, tid, index as usize, program.as_mut_ptr() as usize) }?;
    Ok(program)
}

/// The flags of filter number `index` (PTRACE_SECCOMP_GET_METADATA, kernel 4.16): `SECCOMP_FILTER_FLAG_LOG` or 0.
pub fn seccomp_flags(tid: Pid, index: u64) -> nix::Result<u64> {
    #[repr(C)]
    struct Metadata {
        filter_off: u64,
        flags: u64,
    }
    let mut meta = Metadata { filter_off: index, flags: 0 };
    // SAFETY: the kernel reads and writes at most the given number of bytes.
    unsafe { request(SECCOMP_GET_METADATA, tid, mem::size_of::<Metadata>(), &raw mut meta as usize) }?;
    Ok(meta.flags)
}

/// Whether the thread dispatches its system calls itself (PR_SET_SYSCALL_USER_DISPATCH), asked by
/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG (kernel 6.4; EIO before).
pub fn dispatches_syscalls(tid: Pid) -> nix::Result<bool> {
    #[repr(C)]
    #[derive(Default)]
    struct Config {
        mode: u64,
        selector: u64,
        offset: u64,
        len: u64,
    }
    let mut config = Config::default();
    let size = mem::size_of::<Config>();
    // SAFETY: the kernel writes one Config of the given size.
    unsafe { request(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, &raw mut config as usize) }?;
    // PR_SYS_DISPATCH_OFF is 0 (include/uapi/linux/prctl.h).
    Ok(config.mode != 0)
}

/// One entry of a thread's GDT slots for thread-local storage, `struct user_desc` (asm/ldt.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserDesc {
    /// Slot in the GDT, 12 to 14 for thread-local storage.
    pub entry_number: u32,
    /// Segment base.
    pub base_addr: u32,
    /// Segment limit.
    pub limit: u32,
    /// seg_32bit, contents (2 bits), read_exec_only, limit_in_pages, seg_not_present, useable, lm; from bit 0.
    pub flags: u32,
}

/// The GDT slot `index` (12 to 14) of a thread (PTRACE_GET_THREAD_AREA).
pub fn thread_area(tid: Pid, index: u32) -> nix::Result<UserDesc> {
    let mut desc = UserDesc::default();
    // SAFETY: the kernel writes one user_desc.
    unsafe { request(GET_THREAD_AREA, tid, index as usize, &raw mut desc as usize) }?;
    Ok(desc)
}

/// Writes one word at any address of the tracee, protection or not (PTRACE_POKEDATA).
///
/// Where the page is not writable, the tracee gets a private copy of it. Below a stack it makes the stack grow.
pub fn poke(tid: Pid, addr: u64, word: u64) -> nix::Result<()> {
    // SAFETY: POKEDATA reads no memory of ours; the word is passed by value.
    unsafe { request(POKEDATA, tid, addr as usize, word as usize) }.map(drop)
}
