//! What only the task itself can say, asked by system calls that it runs for us.
//!
//! Each question is one remote call, about ten microseconds under freeze. Everything that `/proc` or ptrace
//! tells from outside is read there instead.

use nix::errno::Errno;
use nix::unistd::Pid;

use godwit_wire::image::core::ThreadSasEntry;
use godwit_wire::image::sa::SaEntry;
use godwit_wire::image::timer::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};

use super::settings;
use crate::error::DumpError;
use crate::procfs::timers::Timer;
use crate::remote::{RemoteError, Session, judge};

/// Signals whose action is listed: all but SIGKILL and SIGSTOP, 62 of them.
const SIGNALS: std::ops::RangeInclusive<u64> = 1..=64;

/// `PR_GET_TID_ADDRESS`, `PR_GET_THP_DISABLE` and the others (include/uapi/linux/prctl.h).
mod pr {
    pub const GET_PDEATHSIG: u64 = 2;
    pub const GET_DUMPABLE: u64 = 3;
    pub const GET_TSC: u64 = 25;
    pub const GET_SECUREBITS: u64 = 27;
    pub const GET_CHILD_SUBREAPER: u64 = 37;
    pub const GET_TID_ADDRESS: u64 = 40;
    pub const GET_THP_DISABLE: u64 = 42;
    pub const GET_MDWE: u64 = 66;
    pub const GET_MEMORY_MERGE: u64 = 68;
}

/// `ARCH_GET_CPUID` (arch/x86/include/uapi/asm/prctl.h).
const ARCH_GET_CPUID: u64 = 0x1011;
/// `KEYCTL_GET_KEYRING_ID` (include/uapi/linux/keyctl.h), here without making one. The session's keyring is not asked
/// for: that makes the kernel give the task one.
const KEYCTL_GET_KEYRING_ID: u64 = 0;
const KEY_SPEC_THREAD_KEYRING: i64 = -1;
const KEY_SPEC_PROCESS_KEYRING: i64 = -2;

/// `MEMBARRIER_CMD_GET_REGISTRATIONS` (include/uapi/linux/membarrier.h, Linux 6.3).
const MEMBARRIER_GET_REGISTRATIONS: u64 = 1 << 9;

/// What the task as a whole says.
#[derive(Clone, Debug)]
pub struct TaskSays {
    /// Actions of the 62 signals, in order.
    pub sigactions: Vec<SaEntry>,
    /// Interval timers and POSIX timers, with the time they have left.
    pub timers: TaskTimersEntry,
    /// The end of the heap, to the byte.
    pub brk: u64,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: i32,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disabled: bool,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// `membarrier` registrations, where the kernel tells them.
    pub membarrier: Option<u32>,
    /// Settings that no image holds.
    pub settings: settings::Asked,
}

/// What one thread says.
#[derive(Clone, Debug)]
pub struct ThreadSays {
    /// The thread.
    pub tid: Pid,
    /// Address that the kernel clears and wakes when the thread ends.
    pub clear_tid_addr: u64,
    /// Alternate signal stack.
    pub sas: ThreadSasEntry,
    /// Signal sent when the parent dies; 0 for none.
    pub pdeath_sig: u32,
    /// `PR_GET_SECUREBITS`.
    pub securebits: u32,
}

/// Asks the leader what belongs to the whole task. `inside` is its pid in its own pid namespace, `timers` are
/// the POSIX timers that `/proc` lists, `tid_inside` translates a notified thread's id.
///
/// # Errors
/// When a call cannot be run in the task, or answers with an error that has no meaning.
pub fn task(
    session: &mut Session<'_>,
    timers: &[Timer],
    tid_inside: impl Fn(i32) -> Option<i32>,
) -> Result<TaskSays, DumpError> {
    let mut asking = Asking::new(session)?;
    let mut actions = Vec::with_capacity(62);
    for signal in SIGNALS.filter(|signal| ![libc::SIGKILL as u64, libc::SIGSTOP as u64].contains(signal)) {
        actions.push(asking.sigaction(signal)?);
    }
    let mut posix = Vec::with_capacity(timers.len());
    for timer in timers {
        posix.push(asking.posix_timer(timer, &tid_inside)?);
    }
    let timers = TaskTimersEntry {
        real: asking.itimer(libc::ITIMER_REAL as u64)?,
        virt: asking.itimer(libc::ITIMER_VIRTUAL as u64)?,
        prof: asking.itimer(libc::ITIMER_PROF as u64)?,
        posix,
    };
    let settings = asking.settings()?;
    Ok(TaskSays {
        sigactions: actions,
        timers,
        brk: asking.call(libc::SYS_brk, [0; 6])?,
        dumpable: settings.dumpable as i32,
        thp_disabled: settings.thp_disable != 0,
        child_subreaper: asking.prctl_word(pr::GET_CHILD_SUBREAPER)? as u32 != 0,
        membarrier: asking.membarrier()?,
        settings,
    })
}

/// Asks one thread.
///
/// # Errors
/// As [`task`].
pub fn thread(session: &mut Session<'_>) -> Result<ThreadSays, DumpError> {
    let mut asking = Asking::new(session)?;
    Ok(ThreadSays {
        tid: asking.tid(),
        clear_tid_addr: asking.prctl_word(pr::GET_TID_ADDRESS)?,
        sas: asking.altstack()?,
        pdeath_sig: asking.prctl_word(pr::GET_PDEATHSIG)? as u32,
        securebits: asking.prctl(pr::GET_SECUREBITS)? as u32,
    })
}

struct Asking<'a, 'b> {
    session: &'a mut Session<'b>,
    scratch: u64,
}

impl<'a, 'b> Asking<'a, 'b> {
    fn new(session: &'a mut Session<'b>) -> Result<Asking<'a, 'b>, DumpError> {
        let scratch = session.scratch()?.addr;
        Ok(Asking { session, scratch })
    }

    fn tid(&self) -> Pid {
        self.session.tid()
    }

    /// Every call goes through here, so that none is made that filters were not asked about.
    fn try_call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, RemoteError> {
        debug_assert!(
            judge::is_listed(number, &args),
            "call {number} {args:x?} is missing in remote/judge.rs"
        );
        self.session.syscall(number, args)
    }

    fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, DumpError> {
        Ok(self.try_call(number, args)?)
    }

    fn prctl(&mut self, option: u64) -> Result<u64, DumpError> {
        self.call(libc::SYS_prctl, [option, 0, 0, 0, 0, 0])
    }

    /// A `prctl` that answers through a pointer.
    fn prctl_word(&mut self, option: u64) -> Result<u64, DumpError> {
        self.clear(8)?;
        self.call(libc::SYS_prctl, [option, self.scratch, 0, 0, 0, 0])?;
        Ok(self.words::<1>()?[0])
    }

    fn clear(&mut self, len: usize) -> Result<(), DumpError> {
        Ok(self.session.write(self.scratch, &[0u8; 64][..len])?)
    }

    fn words<const N: usize>(&mut self) -> Result<[u64; N], DumpError> {
        let mut bytes = vec![0u8; N * 8];
        self.session.read(self.scratch, &mut bytes)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Ok(words)
    }

    /// `rt_sigaction(2)`: the kernel's `struct sigaction` is handler, flags, restorer, mask.
    fn sigaction(&mut self, signal: u64) -> Result<SaEntry, DumpError> {
        self.call(libc::SYS_rt_sigaction, [signal, 0, self.scratch, 8, 0, 0])?;
        let [sigaction, flags, restorer, mask] = self.words()?;
        Ok(SaEntry { sigaction, flags, restorer, mask, compat_sigaction: Some(false), mask_extended: None })
    }

    /// `getitimer(2)`: interval, then value, each in seconds and microseconds.
    fn itimer(&mut self, which: u64) -> Result<ItimerEntry, DumpError> {
        self.call(libc::SYS_getitimer, [which, self.scratch, 0, 0, 0, 0])?;
        let [isec, iusec, vsec, vusec] = self.words()?;
        Ok(ItimerEntry { isec, iusec, vsec, vusec })
    }

    /// `timer_gettime(2)` and `timer_getoverrun(2)`.
    fn posix_timer(
        &mut self,
        timer: &Timer,
        tid_inside: impl Fn(i32) -> Option<i32>,
    ) -> Result<PosixTimerEntry, DumpError> {
        let id = timer.id as u64;
        self.call(libc::SYS_timer_gettime, [id, self.scratch, 0, 0, 0, 0])?;
        let [isec, insec, vsec, vnsec] = self.words()?;
        let overrun = self.call(libc::SYS_timer_getoverrun, [id, 0, 0, 0, 0, 0])?;
        let notify_thread_id = if timer.to_thread {
            Some(tid_inside(timer.target).ok_or(DumpError::Died { pid: Pid::from_raw(timer.target) })?)
        } else {
            None
        };
        Ok(PosixTimerEntry {
            it_id: timer.id as u32,
            clock_id: timer.clock_id as u32,
            si_signo: timer.signal as u32,
            it_sigev_notify: timer.notify.to_raw(timer.to_thread) as u32,
            sival_ptr: timer.value,
            overrun: overrun as u32,
            isec,
            insec,
            vsec,
            vnsec,
            notify_thread_id,
        })
    }

    /// `sigaltstack(2)`: `stack_t` is address, flags, size. `SS_ONSTACK` says where the thread runs, not what
    /// was set.
    fn altstack(&mut self) -> Result<ThreadSasEntry, DumpError> {
        self.call(libc::SYS_sigaltstack, [0, self.scratch, 0, 0, 0, 0])?;
        let [ss_sp, ss_flags, ss_size] = self.words()?;
        Ok(ThreadSasEntry { ss_sp, ss_size, ss_flags: ss_flags as u32 })
    }

    /// Everything that is dropped unless it is the default. What a kernel does not know cannot have been set there.
    fn settings(&mut self) -> Result<settings::Asked, DumpError> {
        let has_keyring = |asking: &mut Self, which: i64| {
            let args = [KEYCTL_GET_KEYRING_ID, which as u64, 0, 0, 0, 0];
            Ok::<bool, DumpError>(asking.optional(libc::SYS_keyctl, args)?.is_some())
        };
        Ok(settings::Asked {
            tsc: self.optional_word(libc::SYS_prctl, [pr::GET_TSC, self.scratch, 0, 0, 0, 0])?,
            cpuid: self.optional(libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0, 0, 0, 0, 0])?,
            mdwe: self.optional(libc::SYS_prctl, [pr::GET_MDWE, 0, 0, 0, 0, 0])?,
            memory_merge: self.optional(libc::SYS_prctl, [pr::GET_MEMORY_MERGE, 0, 0, 0, 0, 0])?,
            thp_disable: self.prctl(pr::GET_THP_DISABLE)?,
            dumpable: self.prctl(pr::GET_DUMPABLE)?,
            has_keyring: has_keyring(self, KEY_SPEC_THREAD_KEYRING)?
                || has_keyring(self, KEY_SPEC_PROCESS_KEYRING)?,
        })
    }

    /// A call that may fail: `None` then.
    fn optional(&mut self, number: i64, args: [u64; 6]) -> Result<Option<u64>, DumpError> {
        match self.try_call(number, args) {
            Ok(value) => Ok(Some(value)),
            Err(RemoteError::Call { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same of one that answers with an `int` at the start of the scratch memory.
    fn optional_word(&mut self, number: i64, args: [u64; 6]) -> Result<Option<u32>, DumpError> {
        self.clear(8)?;
        match self.optional(number, args)? {
            Some(_) => Ok(Some(self.words::<1>()?[0] as u32)),
            None => Ok(None),
        }
    }

    fn membarrier(&mut self) -> Result<Option<u32>, DumpError> {
        match self.try_call(libc::SYS_membarrier, [MEMBARRIER_GET_REGISTRATIONS, 0, 0, 0, 0, 0]) {
            Ok(mask) => Ok(Some(mask as u32)),
            Err(RemoteError::Call { errno: Errno::EINVAL | Errno::ENOSYS, .. }) => {
                tracing::debug!(tid = %self.tid(), "this kernel does not tell membarrier registrations");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
