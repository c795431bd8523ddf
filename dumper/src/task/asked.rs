//! What only the task itself can say, asked by system calls that it runs for us.
//!
//! Each question is a remote call, which costs two stops of the thread under freeze, or a part of a row of calls made at
//! one stroke where the answer lies in memory ([`Session::tell`]). Everything that `/proc` or ptrace tells from outside is
//! read there instead.

use nix::errno::Errno;
use nix::unistd::Pid;

use godwit_wire::image::core::ThreadSasEntry;
use godwit_wire::image::sa::SaEntry;
use godwit_wire::image::timer::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};

use super::settings;
use crate::error::DumpError;
use crate::procfs::timers::Timer;
use crate::remote::{ANSWER_BYTES, RemoteError, Session, Telling, Told, judge};

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
pub async fn task(
    session: &mut Session<'_>,
    timers: &[Timer],
    tid_inside: impl Fn(i32) -> Option<i32>,
) -> Result<TaskSays, DumpError> {
    let signals = SIGNALS.filter(|signal| ![libc::SIGKILL as u64, libc::SIGSTOP as u64].contains(signal));
    let intervals = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];
    let mut questions: Vec<Telling> = signals.map(sigaction).collect();
    questions.extend(intervals.map(|which| itimer(which as u64)));
    questions.extend(timers.iter().map(|timer| gettime(timer.id as u64)));
    questions.extend([prctl(pr::GET_CHILD_SUBREAPER, 4), prctl(pr::GET_TSC, 4)]);
    let mut asking = Asking { session };
    let mut answers = asking.tell(&questions).await?.into_iter();
    let mut next = || answers.next().unwrap_or(Err(Errno::ENOSYS));
    let tid = asking.tid();
    let needed = |answer: Told, nr| answer.map_err(|errno| RemoteError::Call { tid, nr, errno });
    let mut actions = Vec::with_capacity(62);
    for _ in 0..62 {
        actions.push(sa_entry(needed(next(), libc::SYS_rt_sigaction)?));
    }
    let mut interval = || Ok::<_, DumpError>(itimer_entry(needed(next(), libc::SYS_getitimer)?));
    let (real, virt, prof) = (interval()?, interval()?, interval()?);
    let mut posix = Vec::with_capacity(timers.len());
    for timer in timers {
        let left = needed(next(), libc::SYS_timer_gettime)?;
        posix.push(asking.posix_timer(timer, left, &tid_inside).await?);
    }
    let [child_subreaper, ..] = needed(next(), libc::SYS_prctl)?;
    // A kernel that does not know it has it not set.
    let tsc = next().ok().map(|[word, ..]| word as u32);
    let settings = asking.settings(tsc).await?;
    Ok(TaskSays {
        sigactions: actions,
        timers: TaskTimersEntry { real, virt, prof, posix },
        brk: asking.call(libc::SYS_brk, [0; 6]).await?,
        dumpable: settings.dumpable as i32,
        thp_disabled: settings.thp_disable != 0,
        child_subreaper: child_subreaper != 0,
        membarrier: asking.membarrier().await?,
        settings,
    })
}

/// Asks one thread.
///
/// # Errors
/// As [`task`].
pub async fn thread(session: &mut Session<'_>) -> Result<ThreadSays, DumpError> {
    let mut asking = Asking { session };
    let questions = [prctl(pr::GET_TID_ADDRESS, 8), altstack(), prctl(pr::GET_PDEATHSIG, 4)];
    let answers = asking.tell(&questions).await?;
    let mut told = [[0; ANSWER_BYTES / 8]; 3];
    for ((told, answer), question) in told.iter_mut().zip(answers).zip(&questions) {
        *told = answer.map_err(|errno| RemoteError::Call { tid: asking.tid(), nr: question.nr, errno })?;
    }
    let [[clear_tid_addr, ..], [ss_sp, ss_flags, ss_size, _], [pdeath_sig, ..]] = told;
    Ok(ThreadSays {
        tid: asking.tid(),
        clear_tid_addr,
        sas: ThreadSasEntry { ss_sp, ss_size, ss_flags: ss_flags as u32 },
        pdeath_sig: pdeath_sig as u32,
        securebits: asking.prctl(pr::GET_SECUREBITS).await? as u32,
    })
}

/// `rt_sigaction(2)`.
fn sigaction(signal: u64) -> Telling {
    Telling { nr: libc::SYS_rt_sigaction, args: [signal, 0, 0, 8, 0, 0], at: 2, len: 32 }
}

/// The kernel's `struct sigaction` is handler, flags, restorer, mask.
fn sa_entry([sigaction, flags, restorer, mask]: [u64; ANSWER_BYTES / 8]) -> SaEntry {
    SaEntry { sigaction, flags, restorer, mask, compat_sigaction: Some(false), mask_extended: None }
}

/// `getitimer(2)`.
fn itimer(which: u64) -> Telling {
    Telling { nr: libc::SYS_getitimer, args: [which, 0, 0, 0, 0, 0], at: 1, len: 32 }
}

/// Interval, then value, each in seconds and microseconds.
fn itimer_entry([isec, iusec, vsec, vusec]: [u64; ANSWER_BYTES / 8]) -> ItimerEntry {
    ItimerEntry { isec, iusec, vsec, vusec }
}

/// `timer_gettime(2)`.
fn gettime(id: u64) -> Telling {
    Telling { nr: libc::SYS_timer_gettime, args: [id, 0, 0, 0, 0, 0], at: 1, len: 32 }
}

/// `sigaltstack(2)`: `stack_t` is address, flags, size. `SS_ONSTACK` says where the thread runs, not what was set.
fn altstack() -> Telling {
    Telling { nr: libc::SYS_sigaltstack, args: [0; 6], at: 1, len: 24 }
}

/// A `prctl` that answers through a pointer, with a word of `len` bytes.
fn prctl(option: u64, len: usize) -> Telling {
    Telling { nr: libc::SYS_prctl, args: [option, 0, 0, 0, 0, 0], at: 1, len }
}

struct Asking<'a, 'b> {
    session: &'a mut Session<'b>,
}

impl Asking<'_, '_> {
    fn tid(&self) -> Pid {
        self.session.tid()
    }

    /// As [`Asking::try_call`], of calls that answer in memory.
    async fn tell(&mut self, calls: &[Telling]) -> Result<Vec<Told>, RemoteError> {
        for call in calls {
            must_be_listed(call.nr, &call.args);
        }
        self.session.tell(calls).await
    }

    /// Every call goes through here, so that none is made that filters were not asked about.
    async fn try_call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, RemoteError> {
        must_be_listed(number, &args);
        self.session.call(number, args).await
    }

    async fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, DumpError> {
        Ok(self.try_call(number, args).await?)
    }

    async fn prctl(&mut self, option: u64) -> Result<u64, DumpError> {
        self.call(libc::SYS_prctl, [option, 0, 0, 0, 0, 0]).await
    }

    /// `timer_getoverrun(2)`, beside the time that is left.
    async fn posix_timer(
        &mut self,
        timer: &Timer,
        [isec, insec, vsec, vnsec]: [u64; ANSWER_BYTES / 8],
        tid_inside: impl Fn(i32) -> Option<i32>,
    ) -> Result<PosixTimerEntry, DumpError> {
        let id = timer.id as u64;
        let overrun = self.call(libc::SYS_timer_getoverrun, [id, 0, 0, 0, 0, 0]).await?;
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

    /// Everything that is dropped unless it is the default. What a kernel does not know cannot have been set there.
    async fn settings(&mut self, tsc: Option<u32>) -> Result<settings::Asked, DumpError> {
        let has_keyring = async |asking: &mut Self, which: i64| {
            let args = [KEYCTL_GET_KEYRING_ID, which as u64, 0, 0, 0, 0];
            Ok::<bool, DumpError>(asking.optional(libc::SYS_keyctl, args).await?.is_some())
        };
        Ok(settings::Asked {
            tsc,
            cpuid: self.optional(libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0, 0, 0, 0, 0]).await?,
            mdwe: self.optional(libc::SYS_prctl, [pr::GET_MDWE, 0, 0, 0, 0, 0]).await?,
            memory_merge: self.optional(libc::SYS_prctl, [pr::GET_MEMORY_MERGE, 0, 0, 0, 0, 0]).await?,
            thp_disable: self.prctl(pr::GET_THP_DISABLE).await?,
            dumpable: self.prctl(pr::GET_DUMPABLE).await?,
            has_keyring: has_keyring(self, KEY_SPEC_THREAD_KEYRING).await?
                || has_keyring(self, KEY_SPEC_PROCESS_KEYRING).await?,
        })
    }

    /// A call that may fail: `None` then.
    async fn optional(&mut self, number: i64, args: [u64; 6]) -> Result<Option<u64>, DumpError> {
        match self.try_call(number, args).await {
            Ok(value) => Ok(Some(value)),
            Err(RemoteError::Call { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn membarrier(&mut self) -> Result<Option<u32>, DumpError> {
        match self.try_call(libc::SYS_membarrier, [MEMBARRIER_GET_REGISTRATIONS, 0, 0, 0, 0, 0]).await {
            Ok(mask) => Ok(Some(mask as u32)),
            Err(RemoteError::Call { errno: Errno::EINVAL | Errno::ENOSYS, .. }) => {
                tracing::debug!(tid = %self.tid(), "this kernel does not tell membarrier registrations");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// No call is made that filters were not asked about.
fn must_be_listed(nr: i64, args: &[u64; 6]) {
    debug_assert!(judge::is_listed(nr, args), "call {nr} {args:x?} is missing in remote/judge.rs");
}
