//! Which call `restart_syscall` stands for.
//!
//! A wait with a time limit that a stop interrupted is continued by the kernel as `restart_syscall`: from then on the
//! registers have lost the call's own number, and an image could not repeat it. While the thread is still in the
//! call, its kernel stack names it; and mostly the code before the `syscall` instruction does.

use std::collections::HashMap;
use std::convert::Infallible;

use nix::unistd::Pid;

use crate::parallel;
use crate::procfs::tree::{self, Doing};
use crate::remote::arch;
use crate::sys::process_vm::{self, Remote};
use crate::sys::ptrace::Regs;

/// What was seen of threads in `restart_syscall` before they were stopped.
#[derive(Default)]
pub(super) struct Restarts {
    seen: HashMap<Pid, Seen>,
}

struct Seen {
    args: [u64; 6],
    sp: u64,
    pc: u64,
    nr: u64,
}

impl Restarts {
    /// Looks at threads that still run.
    pub(super) fn look(pid: Pid, tids: &[Pid]) -> Restarts {
        let seen =
            parallel::each(tids, |tid| Ok::<_, Infallible>(look_at(pid, *tid).map(|seen| (*tid, seen))));
        Restarts { seen: seen.unwrap_or_default().into_iter().flatten().collect() }
    }

    /// Looks at one more.
    pub(super) fn look_again(&mut self, pid: Pid, tid: Pid) {
        self.seen.extend(look_at(pid, tid).map(|seen| (tid, seen)));
    }

    /// The call that a stopped thread with these registers was in, if they ask for it and it can be told.
    pub(super) fn call(&self, pid: Pid, tid: Pid, regs: &Regs) -> Option<u64> {
        if !arch::needs_restarted_call(regs) {
            return None;
        }
        // It may have gone on to another wait since it was looked at.
        let same =
            |seen: &&Seen| (seen.args, seen.sp, seen.pc) == (arch::arguments(regs), regs.rsp, regs.rip);
        self.seen.get(&tid).filter(same).map(|seen| seen.nr).or_else(|| from_code(pid, regs.rip))
    }
}

fn look_at(pid: Pid, tid: Pid) -> Option<Seen> {
    let Ok(Doing::Syscall { nr, args, sp, pc }) = tree::syscall(pid, tid) else { return None };
    if nr != arch::NR_RESTART_SYSCALL {
        return None;
    }
    // Readable with CAP_SYS_ADMIN, on kernels that keep stack traces.
    let stack = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stack")).ok()?;
    Some(Seen { args, sp, pc, nr: arch::restarted_call_by_stack(&stack, &args)? })
}

fn from_code(pid: Pid, rip: u64) -> Option<u64> {
    let mut code = [0u8; 7];
    let (addr, len) = (rip.checked_sub(7)?, code.len());
    let count = process_vm::read(pid, &[Remote { addr, len }], &mut code).ok()?;
    (count == len).then(|| arch::restarted_call(&code)).flatten()
}
