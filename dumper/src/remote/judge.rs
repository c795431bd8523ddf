//! What a thread's seccomp filters would say to a system call, worked out from outside.
//!
//! While we trace a thread its filters are suspended. They are in force again the moment that a dumper is killed, and
//! then they judge what the thread was about to do for us: the call it was lent for, if the kill came before the
//! kernel had let that in, and the `rt_sigreturn` by which it heals. So a thread heals for certain only if its filters
//! let `rt_sigreturn` pass and do not end it for a call that a dumper makes; an error number is as good as success,
//! since the thread goes on to its frame either way. [`Chain::danger`] says what stands against it. Nothing can be
//! done about the rest: whether a call is judged is decided by the kernel when it enters it, and no tracer can hand
//! a thread a call and let it in at one stroke.

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::sys::ptrace::{self, SockFilter};

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
const ARCH: u32 = 0xc000_003e;

/// Results of a filter, by rising severity reversed: the smallest as a signed number wins (`man 2 seccomp`).
mod action {
    pub const MASK: u32 = 0xffff_0000;
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
}

/// `SECCOMP_FILTER_FLAG_LOG` (include/uapi/linux/seccomp.h): the one flag that the kernel tells again.
pub const FLAG_LOG: u64 = 2;

/// The calls that a dumper borrows a thread for, with arguments of the kind it gives, and their names. Addresses and
/// lengths are any: no filter can look behind a pointer. Whoever makes a call proves by [`is_listed`] that it is here.
const BORROWED: &[(&str, i64, [u64; 6])] = &[
    ("mmap", libc::SYS_mmap, [0x676f_6477_0000, 0x8000, 3, 0x22, u64::MAX, 0]),
    ("munmap", libc::SYS_munmap, [0x676f_6477_0000, 0x8000, 0, 0, 0, 0]),
    ("prctl(PR_SET_VMA)", libc::SYS_prctl, [0x5356_4d41, 0, 0x676f_6477_0000, 0x8000, 0x676f_6477_0000, 0]),
    ("prctl(PR_GET_TID_ADDRESS)", libc::SYS_prctl, [40, 0x676f_6477_0000, 0, 0, 0, 0]),
    ("prctl(PR_GET_PDEATHSIG)", libc::SYS_prctl, [2, 0x676f_6477_0000, 0, 0, 0, 0]),
    ("prctl(PR_GET_DUMPABLE)", libc::SYS_prctl, [3, 0, 0, 0, 0, 0]),
    ("prctl(PR_GET_TSC)", libc::SYS_prctl, [25, 0x676f_6477_0000, 0, 0, 0, 0]),
    ("prctl(PR_GET_SECUREBITS)", libc::SYS_prctl, [27, 0, 0, 0, 0, 0]),
    ("prctl(PR_GET_CHILD_SUBREAPER)", libc::SYS_prctl, [37, 0x676f_6477_0000, 0, 0, 0, 0]),
    ("prctl(PR_GET_THP_DISABLE)", libc::SYS_prctl, [42, 0, 0, 0, 0, 0]),
    ("prctl(PR_GET_MDWE)", libc::SYS_prctl, [66, 0, 0, 0, 0, 0]),
    ("prctl(PR_GET_MEMORY_MERGE)", libc::SYS_prctl, [68, 0, 0, 0, 0, 0]),
    ("arch_prctl(ARCH_GET_CPUID)", libc::SYS_arch_prctl, [0x1011, 0, 0, 0, 0, 0]),
    ("keyctl(KEYCTL_GET_KEYRING_ID)", libc::SYS_keyctl, [0, -1i64 as u64, 0, 0, 0, 0]),
    ("keyctl(KEYCTL_GET_KEYRING_ID)", libc::SYS_keyctl, [0, -2i64 as u64, 0, 0, 0, 0]),
    ("rt_sigaction", libc::SYS_rt_sigaction, [17, 0, 0x676f_6477_0000, 8, 0, 0]),
    ("sigaltstack", libc::SYS_sigaltstack, [0, 0x676f_6477_0000, 0, 0, 0, 0]),
    ("getitimer", libc::SYS_getitimer, [0, 0x676f_6477_0000, 0, 0, 0, 0]),
    ("timer_gettime", libc::SYS_timer_gettime, [0, 0x676f_6477_0000, 0, 0, 0, 0]),
    ("timer_getoverrun", libc::SYS_timer_getoverrun, [0; 6]),
    ("brk", libc::SYS_brk, [0; 6]),
    ("membarrier", libc::SYS_membarrier, [1 << 9, 0, 0, 0, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [0x8_0801, 0, 0, 0, 0, 0]),
    ("close", libc::SYS_close, [9, 0, 0, 0, 0, 0]),
];

/// Whether a call is among those that [`Chain::danger`] looks at; of a call that is many in one, this one of them.
pub fn is_listed(nr: i64, args: &[u64; 6]) -> bool {
    let told_apart: usize = match nr {
        libc::SYS_prctl | libc::SYS_arch_prctl | libc::SYS_membarrier => 1,
        libc::SYS_keyctl => 2,
        _ => 0,
    };
    BORROWED.iter().any(|(_, listed, like)| *listed == nr && like[..told_apart] == args[..told_apart])
}

/// One filter.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Its program.
    pub program: Vec<SockFilter>,
    /// Its flags, as far as the kernel tells them: [`FLAG_LOG`].
    pub flags: u64,
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        let parts = |one: &SockFilter| (one.code, one.jt, one.jf, one.k);
        self.flags == other.flags && self.program.iter().map(parts).eq(other.program.iter().map(parts))
    }
}

/// The filters of a thread, the oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain(pub Vec<Filter>);

impl Chain {
    /// Reads the filters of a stopped thread in filter mode.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN or under seccomp ourselves; EMEDIUMTYPE where a filter cannot be told.
    pub fn read(tid: Pid) -> nix::Result<Chain> {
        let mut filters = Vec::new();
        loop {
            let index = filters.len() as u64;
            let program = match ptrace::seccomp_filter(tid, index) {
                Err(Errno::ENOENT) => return Ok(Chain(filters)),
                program => program?,
            };
            // Kernels before 4.16 have no flags to tell.
            let flags = match ptrace::seccomp_flags(tid, index) {
                Err(Errno::EIO | Errno::EINVAL) => 0,
                flags => flags?,
            };
            filters.push(Filter { program, flags });
        }
    }

    /// What all filters together say to call `nr` made at `ip`, as the value of the one that is most severe.
    fn verdict(&self, nr: i64, args: &[u64; 6], ip: u64) -> u32 {
        let data = seccomp_data(nr, args, ip);
        let severity = |value: &u32| (value & action::MASK) as i32;
        self.0.iter().map(|filter| run(&filter.program, &data)).min_by_key(severity).unwrap_or(action::ALLOW)
    }

    /// Why a thread under these filters could be ended by them if its dumper is killed, `None` if it surely heals.
    ///
    /// `ip` is the address behind the `syscall` instruction that is borrowed.
    pub fn danger(&self, ip: u64) -> Option<String> {
        let passes = |value: u32| [action::ALLOW, action::LOG].contains(&(value & action::MASK));
        if !passes(self.verdict(libc::SYS_rt_sigreturn, &[0; 6], ip)) {
            return Some("its seccomp filters forbid rt_sigreturn".to_owned());
        }
        let ends = |value: u32| {
            [action::KILL_PROCESS, action::KILL_THREAD, action::TRAP].contains(&(value & action::MASK))
        };
        let (name, ..) = BORROWED.iter().find(|(_, nr, args)| ends(self.verdict(*nr, args, ip)))?;
        Some(format!("its seccomp filters end it at {name}"))
    }

    /// Whether a filter can hand calls to a supervisor (SECCOMP_RET_USER_NOTIF), whose end no image holds.
    pub fn has_supervisor(&self) -> bool {
        const RET: u16 = 0x06;
        const RET_A: u16 = 0x16;
        let notifies = |one: &SockFilter| one.k & action::MASK == action::USER_NOTIF;
        self.0.iter().any(|filter| {
            let program = &filter.program;
            let by_value = program.iter().any(|one| one.code == RET && notifies(one));
            by_value || program.iter().any(|one| one.code == RET_A) && program.iter().any(notifies)
        })
    }
}

/// `struct seccomp_data`, in 32-bit words.
fn seccomp_data(nr: i64, args: &[u64; 6], ip: u64) -> [u32; 16] {
    let mut words = [0; 16];
    words[0] = nr as u32;
    words[1] = ARCH;
    for (pair, value) in words[2..].chunks_exact_mut(2).zip(std::iter::once(&ip).chain(args)) {
        pair[0] = *value as u32;
        pair[1] = (*value >> 32) as u32;
    }
    words
}

/// Runs a classic BPF program as the kernel does for seccomp (kernel/seccomp.c, seccomp_check_filter): jumps go
/// forward only, so it ends. What no kernel would have accepted counts as the worst.
fn run(program: &[SockFilter], data: &[u32; 16]) -> u32 {
    interpret(program, data).unwrap_or(action::KILL_PROCESS)
}

fn interpret(program: &[SockFilter], data: &[u32; 16]) -> Option<u32> {
    // Codes are those of include/uapi/linux/bpf_common.h and linux/filter.h.
    const DATA_BYTES: u32 = 64;
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    while let Some(one) = program.get(at) {
        at += 1;
        let slot = one.k as usize;
        let operand = if one.code & 0x08 == 0 { one.k } else { x };
        match (one.code & 0x07, one.code) {
            (_, 0x20) => a = *data.get(slot / 4)?,
            (_, 0x80) => a = DATA_BYTES,
            (_, 0x81) => x = DATA_BYTES,
            (_, 0x00) => a = one.k,
            (_, 0x01) => x = one.k,
            (_, 0x60) => a = *memory.get(slot)?,
            (_, 0x61) => x = *memory.get(slot)?,
            (_, 0x02) => *memory.get_mut(slot)? = a,
            (_, 0x03) => *memory.get_mut(slot)? = x,
            (_, 0x06) => return Some(one.k),
            (_, 0x16) => return Some(a),
            (_, 0x07) => x = a,
            (_, 0x87) => a = x,
            (_, 0x84) => a = a.wrapping_neg(),
            (0x04, code) => {
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(operand),
                    0x10 => a.wrapping_sub(operand),
                    0x20 => a.wrapping_mul(operand),
                    // The kernel ends a program that divides by zero with the value 0.
                    0x30 if operand == 0 => return Some(action::KILL_THREAD),
                    0x30 => a / operand,
                    0x40 => a | operand,
                    0x50 => a & operand,
                    0x60 => a.wrapping_shl(operand),
                    0x70 => a.wrapping_shr(operand),
                    0xa0 => a ^ operand,
                    _ => return None,
                }
            }
            (0x05, 0x05) => at = at.checked_add(slot)?,
            (0x05, code) => {
                let holds = match code & 0xf0 {
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if holds { one.jt } else { one.jf });
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD_NR: SockFilter = SockFilter { code: 0x20, jt: 0, jf: 0, k: 0 };

    fn ret(k: u32) -> SockFilter {
        SockFilter { code: 0x06, jt: 0, jf: 0, k }
    }

    /// `value` for call `nr`, `otherwise` for all others.
    fn filter(nr: i64, value: u32, otherwise: u32) -> Filter {
        let test = SockFilter { code: 0x15, jt: 0, jf: 1, k: nr as u32 };
        Filter { program: vec![LOAD_NR, test, ret(value), ret(otherwise)], flags: 0 }
    }

    #[test]
    fn the_most_severe_filter_decides() {
        let errno = |n: u32| 0x0005_0000 | n;
        let chain = Chain(vec![
            filter(libc::SYS_close, action::KILL_PROCESS, action::ALLOW),
            filter(libc::SYS_close, errno(1), action::ALLOW),
            filter(libc::SYS_brk, errno(2), action::LOG),
        ]);
        let said = |nr| chain.verdict(nr, &[0; 6], 0);
        assert_eq!(said(libc::SYS_close), action::KILL_PROCESS);
        assert_eq!(said(libc::SYS_brk), errno(2));
        assert_eq!(said(libc::SYS_read), action::LOG);
        assert!(chain.danger(0).unwrap().contains("close"), "{:?}", chain.danger(0));
        assert_eq!(Chain::default().verdict(libc::SYS_read, &[0; 6], 0), action::ALLOW);
    }

    #[test]
    fn errors_do_not_keep_a_thread_from_healing_but_a_forbidden_return_does() {
        let denies = 0x0005_0001;
        let sandbox = Chain(vec![filter(libc::SYS_rt_sigreturn, action::ALLOW, denies)]);
        assert_eq!(sandbox.danger(0), None);
        let closed = Chain(vec![filter(libc::SYS_read, action::ALLOW, denies)]);
        assert!(closed.danger(0).unwrap().contains("rt_sigreturn"));
        let traps = Chain(vec![filter(libc::SYS_brk, action::TRAP, action::ALLOW)]);
        assert!(traps.danger(0).unwrap().contains("brk"));
    }

    #[test]
    fn calls_that_are_many_in_one_are_listed_each() {
        assert!(is_listed(libc::SYS_prctl, &[27, 0, 0, 0, 0, 0]));
        assert!(!is_listed(libc::SYS_prctl, &[28, 0, 0, 0, 0, 0]));
        assert!(!is_listed(libc::SYS_keyctl, &[0, -3i64 as u64, 0, 0, 0, 0]));
        assert!(is_listed(libc::SYS_timer_gettime, &[7, 1, 0, 0, 0, 0]));
        assert!(!is_listed(libc::SYS_read, &[0; 6]));
    }

    #[test]
    fn arguments_and_addresses_are_looked_at() {
        // Ends a prctl(27, …), and nothing else: the low word of the first argument stands at offset 16.
        let load = SockFilter { code: 0x20, jt: 0, jf: 0, k: 16 };
        let is = |k: u32| SockFilter { code: 0x15, jt: 0, jf: 2, k };
        let program = vec![
            LOAD_NR,
            SockFilter { jf: 3, ..is(libc::SYS_prctl as u32) },
            load,
            SockFilter { jf: 1, ..is(27) },
            ret(action::KILL_THREAD),
            ret(action::ALLOW),
        ];
        let chain = Chain(vec![Filter { program, flags: 0 }]);
        assert!(chain.danger(0).unwrap().contains("PR_GET_SECUREBITS"));
        assert_eq!(
            seccomp_data(1, &[0x1_0000_0002, 3, 4, 5, 6, 7], 0x5_0000_0009)[..6],
            [1, ARCH, 9, 5, 2, 1]
        );
    }

    #[test]
    fn arithmetic_and_memory_are_the_kernels() {
        let op = |code: u16, k: u32| SockFilter { code, jt: 0, jf: 0, k };
        let said = |program: &[SockFilter]| run(program, &[0; 16]);
        let a_is = |program: &[SockFilter]| said(&[program, &[op(0x16, 0)]].concat());
        assert_eq!(a_is(&[op(0x00, 7), op(0x02, 3), op(0x00, 1), op(0x61, 3), op(0x0c, 0)]), 8);
        assert_eq!(a_is(&[op(0x80, 0), op(0x34, 3), op(0x54, 0x14), op(0xa4, 1)]), 21);
        assert_eq!(a_is(&[op(0x00, 1), op(0x84, 0)]), u32::MAX);
        assert_eq!(a_is(&[op(0x00, 1), op(0x3c, 0)]), action::KILL_THREAD);
        assert_eq!(said(&[op(0x05, 1), ret(1), ret(2)]), 2);
        assert_eq!(said(&[LOAD_NR]), action::KILL_PROCESS);
        assert_eq!(said(&[op(0x20, 64), ret(1)]), action::KILL_PROCESS);
    }

    #[test]
    fn a_supervisor_is_found_in_the_program() {
        let notify = action::USER_NOTIF;
        assert!(Chain(vec![filter(1, notify, action::ALLOW)]).has_supervisor());
        assert!(!Chain(vec![filter(1, action::KILL_THREAD, action::ALLOW)]).has_supervisor());
        let load = SockFilter { code: 0x00, jt: 0, jf: 0, k: notify };
        let by_accumulator = vec![load, SockFilter { code: 0x16, jt: 0, jf: 0, k: 0 }];
        assert!(Chain(vec![Filter { program: by_accumulator, flags: 0 }]).has_supervisor());
    }
}
