//! Stopping the threads of a process by ptrace, and letting them run on as if nothing had been.
//!
//! PTRACE_SEIZE and PTRACE_INTERRUPT stop a thread without a signal of its own. What a thread was about to do stays
//! as it was: a signal on its way is delivered by the kernel before the stop, a stopped process stays stopped, an
//! interrupted system call is continued at the detach. All requests must come from the thread that seized.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use godwit_wire::fault;
use nix::errno::Errno;
use nix::unistd::{Pid, getpid};

pub use super::error::FreezeError;
use super::parts::{Seat, StartPart};
use super::restart::Restarts;
use super::rseq;
pub use super::rseq::{Rseq, Section};
use crate::procfs::status::{self, Status};
use crate::procfs::tree::{self, Doing};
use crate::procfs::{ProcfsError, attr, stat};
use crate::remote::waiting::{self, Pause};
use crate::remote::{BESIDE_EACH, RemoteError, Session, Spot, Surroundings, Target, arch};
use crate::sys::pidfd;
use crate::sys::process_vm::{self, Remote};
use crate::sys::ptrace::{self, Regs};
use crate::sys::wait;

/// How long a process may take to come to a stop.
pub const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Room for the XSAVE area: AMX makes it 11 KiB. A longer one is read again with more.
const XSTATE_BYTES: usize = 16 << 10;

/// A stopped thread, with the state it was found in.
#[derive(Debug)]
pub struct Thread {
    /// The thread.
    pub tid: Pid,
    /// The registers as first seen, before any remote call.
    pub regs: Regs,
    /// The floating-point state: NT_X86_XSTATE, or NT_PRFPREG on a machine without XSAVE.
    pub xstate: Vec<u8>,
    /// Blocked signals, bit n-1 for signal n.
    pub sigmask: u64,
    /// The restartable-sequence area, as found before the thread ran again.
    pub rseq: Option<Rseq>,
    /// The stop signal, if the thread was found in a group stop.
    pub group_stop: Option<i32>,
    /// What /proc says of it since it has stopped, once it was asked.
    status: OnceLock<Status>,
    resumed: Regs,
    settled: Regs,
    busy: AtomicBool,
}

/// A process (or one thread of it) that is stopped. Dropping it lets all run on, as [`Frozen::thaw`] does.
///
/// Not `Send`: the kernel answers only the thread that seized.
pub struct Frozen {
    pid: Pid,
    pidfd: OwnedFd,
    threads: Arc<Vec<Thread>>,
    /// Which of them are held by this one: all, or a part that the kernel answers here.
    own: Vec<usize>,
    /// Whether `threads` are all threads of the process.
    whole: bool,
    around: Arc<OnceLock<Surroundings>>,
    /// Of a part, while all are asked.
    seat: RefCell<Option<Seat>>,
    not_send: PhantomData<*const ()>,
}

/// Stops every thread of process `pid`, within [`FREEZE_LIMIT`].
pub fn seize(pid: Pid) -> Result<Frozen, FreezeError> {
    seize_within(pid, FREEZE_LIMIT)
}

/// Stops every thread of process `pid` within `limit`, or lets them all run on and says why.
pub fn seize_within(pid: Pid, limit: Duration) -> Result<Frozen, FreezeError> {
    Seizing::start(pid, Limit::from_now(limit))?.finish()
}

/// Stops one thread of process `pid`, the one that notices least; the others run.
///
/// A thread that runs or waits in a restartable call is preferred: a few calls (epoll_wait with a time limit and
/// the like) end with EINTR at any stop. Before all, one without seccomp filters that could judge a borrowed call.
pub fn seize_one(pid: Pid) -> Result<Frozen, FreezeError> {
    let mut seizing = Seizing::begin(pid, Limit::from_now(FREEZE_LIMIT))?;
    let mut tids = seizing.list()?;
    tids.sort_by_cached_key(|tid| {
        let is_judged = status::read_thread(pid, *tid).is_ok_and(|status| status.seccomp != 0);
        let notices = match tree::syscall(pid, *tid) {
            Ok(Doing::Running) => 0,
            Ok(Doing::Syscall { nr, .. }) if !arch::may_end_by_stop(nr) => 1,
            Ok(Doing::Blocked) => 2,
            Ok(Doing::Syscall { .. }) => 3,
            Err(_) => 4,
        };
        (is_judged, notices)
    });
    for tid in tids {
        seizing.restarts = Restarts::look(pid, &[tid]);
        seizing.attach(tid)?;
        seizing.await_stops()?;
        if seizing.has(tid) {
            return seizing.complete(false);
        }
    }
    Err(FreezeError::Died { pid })
}

/// How long something may take, and when that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) time: Duration,
    pub(super) until: Instant,
}

impl Limit {
    pub(super) fn from_now(time: Duration) -> Limit {
        Limit { time, until: Instant::now() + time }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// A process on its way to a stop. Dropping it lets all its threads run on.
pub(super) struct Seizing {
    pid: Pid,
    pidfd: OwnedFd,
    taken: Taken,
    restarts: Restarts,
    /// How often each thread was let run for a moment.
    moments: HashMap<Pid, u32>,
    limit: Limit,
}

/// The threads taken so far; dropping it lets them run on.
#[derive(Default)]
struct Taken {
    /// Stopped, each with the signal of its group stop.
    stopped: Vec<(Pid, Option<i32>)>,
    /// Asked to stop.
    interrupted: Vec<Pid>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        for tid in self.interrupted.drain(..).chain(self.stopped.drain(..).map(|(tid, _)| tid)) {
            let_go(tid);
        }
    }
}

/// Ends the tracing of a thread in whatever state it is. One that does not stop is left to the kernel, which
/// detaches all when the tracing thread ends.
fn let_go(tid: Pid) {
    const GRACE: Duration = Duration::from_millis(100);
    resume_wait(tid);
    if ptrace::detach(tid, 0).is_ok() || ptrace::interrupt(tid).is_err() {
        return;
    }
    let report = waiting::block_on(waiting::report(tid, Instant::now() + GRACE));
    if let Ok(Some(wait::Status::Stopped { signal, event })) = report {
        resume_wait(tid);
        // Only in a signal-delivery-stop does the number stand for a signal that would be lost.
        let _ = ptrace::detach(tid, if event == 0 { signal & 0x7f } else { 0 });
    }
}

/// Has a stopped thread make a wait anew that our stop has ended, where its state was not saved yet.
fn resume_wait(tid: Pid) {
    let Ok(regs) = ptrace::regs(tid) else { return };
    let resumed = arch::resumed(&regs, None);
    if resumed != regs {
        let _ = ptrace::set_regs(tid, &resumed);
    }
}

impl Seizing {
    /// Asks every thread that the process has now to stop.
    pub(super) fn start(pid: Pid, limit: Limit) -> Result<Seizing, FreezeError> {
        let mut seizing = Seizing::begin(pid, limit)?;
        let threads = seizing.list()?;
        seizing.restarts = Restarts::look(pid, &threads);
        seizing.attach_all(threads)?;
        Ok(seizing)
    }

    /// Asks a part of the threads of a process to stop.
    pub(super) fn start_part(part: StartPart, limit: Limit) -> Result<Seizing, FreezeError> {
        let StartPart { pid, pidfd, tids } = part;
        let mut seizing = Seizing::of(pid, pidfd, limit);
        seizing.restarts = Restarts::look(pid, &tids);
        seizing.attach_all(tids)?;
        Ok(seizing)
    }

    /// Waits until all have stopped, those too that were made meanwhile, and saves their state.
    pub(super) fn finish(mut self) -> Result<Frozen, FreezeError> {
        self.stop_all(&HashSet::new())?;
        self.complete(true)
    }

    /// Waits until all threads have stopped, those too that were made meanwhile. `others` have stopped in other parts.
    pub(super) fn stop_all(&mut self, others: &HashSet<Pid>) -> Result<(), FreezeError> {
        let pid = self.pid;
        loop {
            self.await_stops()?;
            fault::point("mid.freeze.stopped")?;
            let own: HashSet<Pid> = self.stopped().collect();
            let is_fresh = |tid: &Pid| !own.contains(tid) && !others.contains(tid);
            let fresh: Vec<Pid> = self.list()?.into_iter().filter(is_fresh).collect();
            if fresh.is_empty() {
                break;
            }
            if self.limit.is_over() {
                return Err(FreezeError::Unsteady { pid, waited: self.limit.time });
            }
            self.attach_all(fresh)?;
        }
        if !self.has(pid) {
            let alone = self.taken.stopped.is_empty() && others.is_empty();
            return Err(if alone { FreezeError::Died { pid } } else { FreezeError::LeaderExited { pid } });
        }
        Ok(())
    }

    fn attach_all(&mut self, tids: Vec<Pid>) -> Result<(), FreezeError> {
        for tid in tids {
            self.attach(tid)?;
            fault::point("mid.freeze.seized")?;
        }
        Ok(())
    }

    fn begin(pid: Pid, limit: Limit) -> Result<Seizing, FreezeError> {
        refuse_what_cannot_be_stopped(pid)?;
        Ok(Seizing::of(pid, open_pidfd(pid)?, limit))
    }

    fn of(pid: Pid, pidfd: OwnedFd, limit: Limit) -> Seizing {
        Seizing {
            pid,
            pidfd,
            taken: Taken::default(),
            restarts: Restarts::default(),
            moments: HashMap::new(),
            limit,
        }
    }

    /// The threads that have stopped.
    pub(super) fn stopped(&self) -> impl Iterator<Item = Pid> {
        self.taken.stopped.iter().map(|(tid, _)| *tid)
    }

    fn has(&self, tid: Pid) -> bool {
        self.taken.stopped.iter().any(|(stopped, _)| *stopped == tid)
    }

    fn list(&self) -> Result<Vec<Pid>, FreezeError> {
        list(self.pid)
    }

    /// Seizes and interrupts a thread. One that ends meanwhile is no error.
    fn attach(&mut self, tid: Pid) -> Result<(), FreezeError> {
        match ptrace::seize(tid, ptrace::O_TRACESYSGOOD) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => return self.explain_refusal(tid, errno),
        }
        self.taken.interrupted.push(tid);
        match ptrace::interrupt(tid) {
            // ESRCH: it has just died; its end is reported to the wait.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(FreezeError::Ptrace { tid, request: "PTRACE_INTERRUPT", source }),
        }
    }

    /// Why a seize failed with EPERM: somebody else traces it, it is ending, or there is no right.
    fn explain_refusal(&self, tid: Pid, source: Errno) -> Result<(), FreezeError> {
        let pid = self.pid;
        let Ok(status) = status::read_thread(pid, tid) else { return Ok(()) };
        if status.tracer_pid != 0 {
            return Err(traced(pid, tid, status.tracer_pid));
        }
        let stat = stat::read_thread(pid, tid);
        let ending = stat.map_or(true, |stat| stat.is_zombie() || stat.flags & stat::PF_EXITING != 0);
        match ending {
            true if tid == pid => Err(FreezeError::LeaderExited { pid }),
            true => Ok(()),
            false => Err(FreezeError::NotPermitted { pid, tid, source }),
        }
    }

    /// Waits until every interrupted thread has stopped or ended.
    pub(super) fn await_stops(&mut self) -> Result<(), FreezeError> {
        let mut pause = Pause::new();
        while !self.taken.interrupted.is_empty() {
            let before = self.taken.interrupted.len();
            for tid in std::mem::take(&mut self.taken.interrupted) {
                match crate::sys::wait::try_wait(tid) {
                    Ok(None | Some(wait::Status::Continued)) => self.taken.interrupted.push(tid),
                    Ok(Some(wait::Status::Stopped { signal: libc::SIGTRAP, event: ptrace::EVENT_STOP }))
                        if self.needs_a_moment(tid) =>
                    {
                        self.taken.interrupted.push(tid);
                    }
                    Ok(Some(wait::Status::Stopped { signal, event: ptrace::EVENT_STOP }))
                        if signal != libc::SIGTRAP && self.is_in_frame(tid) && self.heal_stopped(tid) =>
                    {
                        self.taken.interrupted.push(tid);
                    }
                    Ok(Some(wait::Status::Stopped { signal, event: ptrace::EVENT_STOP })) => {
                        self.taken
                            .stopped
                            .push((tid, Some(signal).filter(|signal| *signal != libc::SIGTRAP)));
                    }
                    // A signal was on its way before the stop. It is delivered now: the stop follows when its
                    // handler is set up, its effect has begun, or it is dropped.
                    Ok(Some(wait::Status::Stopped { signal, event })) => {
                        if ptrace::cont(tid, if event == 0 { signal & 0x7f } else { 0 }).is_ok() {
                            self.taken.interrupted.push(tid);
                        }
                    }
                    // ECHILD: it made an execve and goes by another id now.
                    Ok(Some(wait::Status::Exited(_) | wait::Status::Killed(_))) | Err(_) => {}
                }
            }
            if self.taken.interrupted.len() == before {
                self.look_at_stragglers(&pause)?;
                pause.pause();
            }
        }
        Ok(())
    }

    /// Lets a thread run for a moment whose state is not fit to be kept; whether it was one.
    ///
    /// Either a killed dumper left it in one of our frames, which it is about to go back through. Or it was on its
    /// way back into a wait that an earlier stop had interrupted, so that nobody could see which.
    fn needs_a_moment(&mut self, tid: Pid) -> bool {
        /// What looks so for so long is something else.
        const MOMENTS_MAX: u32 = 1000;
        const MOMENT: Duration = Duration::from_micros(100);
        let pid = self.pid;
        let Ok(regs) = ptrace::regs(tid) else { return false };
        let about_to_continue = || {
            let mut code = [0u8; 2];
            (regs.rax == arch::NR_RESTART_SYSCALL).then_some(())?;
            read_whole(pid, regs.rip, &mut code)?;
            arch::is_about_to_continue(&regs, &code).then_some(())
        };
        let unknown_wait = about_to_continue().is_some()
            || arch::needs_restarted_call(&regs) && self.restarts.call(pid, tid, &regs).is_none();
        if !unknown_wait && !self.is_frame(&regs) {
            return false;
        }
        let moments = self.moments.entry(tid).or_default();
        if *moments >= MOMENTS_MAX || ptrace::cont(tid, 0).is_err() {
            return false;
        }
        // A wait that nothing names is let go a few times only.
        *moments += if unknown_wait { MOMENTS_MAX / 16 } else { 1 };
        std::thread::sleep(MOMENT);
        self.restarts.look_again(pid, tid);
        let _ = ptrace::interrupt(tid);
        true
    }

    /// Whether a thread is in one of our frames, left by a dumper that was killed.
    fn is_in_frame(&self, tid: Pid) -> bool {
        ptrace::regs(tid).is_ok_and(|regs| self.is_frame(&regs))
    }

    /// Whether a thread with these registers is.
    fn is_frame(&self, regs: &Regs) -> bool {
        let Some(from) = regs.rsp.checked_sub(8) else { return false };
        let mut around = [0u8; arch::HEALING_BYTES];
        read_whole(self.pid, from, &mut around).is_some() && arch::is_healing(&around)
    }

    /// Has a thread of a process that a stop signal has stopped go back through our frame, without letting it run a
    /// step of its own: from one system call to the next, up to the end of the one that takes the frame. Whether it
    /// was asked to stop again.
    fn heal_stopped(&mut self, tid: Pid) -> bool {
        /// The call that was borrowed, and the one that takes the frame.
        const CALLS_MAX: u32 = 4;
        /// Signal of a stop at a system call (man 2 ptrace, PTRACE_O_TRACESYSGOOD).
        const AT_CALL: i32 = libc::SIGTRAP | 0x80;
        /// Stops of another kind on the way: what it was asked before may be reported twice.
        const OTHERS_MAX: u32 = 4;
        let next = || {
            for _ in 0..OTHERS_MAX {
                ptrace::syscall_stop(tid, 0).ok()?;
                match waiting::block_on(waiting::report(tid, self.limit.until)) {
                    Ok(Some(wait::Status::Stopped { signal: AT_CALL, .. })) => return ptrace::regs(tid).ok(),
                    Ok(Some(wait::Status::Stopped { event: ptrace::EVENT_STOP, .. })) => {}
                    _ => return None,
                }
            }
            None
        };
        for _ in 0..CALLS_MAX {
            let (Some(entered), Some(_)) = (next(), next()) else { return false };
            if entered.orig_rax == arch::NR_RT_SIGRETURN {
                return ptrace::interrupt(tid).and_then(|()| ptrace::cont(tid, 0)).is_ok();
            }
        }
        false
    }

    /// Errs when time is up, and drops a first thread that has ended: the kernel reports that only with the last.
    fn look_at_stragglers(&mut self, pause: &Pause) -> Result<(), FreezeError> {
        if !pause.is_sleeping() {
            return Ok(());
        }
        let pid = self.pid;
        if self.taken.interrupted.contains(&pid)
            && stat::read_thread(pid, pid).map_or(true, |stat| stat.is_zombie())
        {
            return Err(FreezeError::LeaderExited { pid });
        }
        if !self.limit.is_over() {
            return Ok(());
        }
        let tid = self.taken.interrupted[0];
        let state = stat::read_thread(pid, tid).map_or('?', |stat| char::from(stat.state));
        let wchan = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan"));
        let wchan = wchan.ok().filter(|name| name != "0").unwrap_or_else(|| "?".to_owned());
        Err(FreezeError::Unstoppable { pid, tid, waited: self.limit.time, state, wchan })
    }

    fn complete(self, whole: bool) -> Result<Frozen, FreezeError> {
        let threads = Arc::new(in_order(self.pid, self.save()?)?);
        Ok(self.into_frozen(threads, Arc::default(), whole))
    }

    /// Saves the state of every stopped thread.
    pub(super) fn save(&self) -> Result<Vec<Thread>, FreezeError> {
        let pid = self.pid;
        let mut threads = Vec::with_capacity(self.taken.stopped.len());
        for (tid, group_stop) in &self.taken.stopped {
            fault::point("mid.freeze.save")?;
            match Thread::save(pid, *tid, *group_stop, &self.restarts) {
                Ok(thread) => threads.push(thread),
                // Killed while it was stopped.
                Err(error) if is_gone(&error) && *tid != pid => {}
                Err(error) if is_gone(&error) => return Err(FreezeError::Died { pid }),
                Err(error) => return Err(error),
            }
        }
        Ok(threads)
    }

    /// The guard of the threads that have stopped here, of all that were saved.
    pub(super) fn into_frozen(
        mut self,
        threads: Arc<Vec<Thread>>,
        around: Arc<OnceLock<Surroundings>>,
        whole: bool,
    ) -> Frozen {
        let stopped: HashSet<Pid> = self.stopped().collect();
        let own = (0..threads.len()).filter(|at| stopped.contains(&threads[*at].tid)).collect();
        // From here on the guard undoes it.
        self.taken.stopped.clear();
        let (pid, pidfd, seat) = (self.pid, self.pidfd, RefCell::default());
        Frozen { pid, pidfd, threads, own, whole, around, seat, not_send: PhantomData }
    }
}

/// The threads that were saved of a process in the order that they are kept in: the first one, then by rising id.
pub(super) fn in_order(pid: Pid, mut threads: Vec<Thread>) -> Result<Vec<Thread>, FreezeError> {
    threads.sort_by_key(|thread| (thread.tid != pid, thread.tid.as_raw()));
    if threads.is_empty() { Err(FreezeError::Died { pid }) } else { Ok(threads) }
}

/// Looks at a process that is to be stopped: a descriptor of it, and its threads.
pub(super) fn look(pid: Pid) -> Result<(OwnedFd, Vec<Pid>), FreezeError> {
    refuse_what_cannot_be_stopped(pid)?;
    Ok((open_pidfd(pid)?, list(pid)?))
}

fn open_pidfd(pid: Pid) -> Result<OwnedFd, FreezeError> {
    pidfd::open(pid).map_err(|errno| match errno {
        Errno::ESRCH => FreezeError::NoProcess { pid },
        source => FreezeError::Ptrace { tid: pid, request: "pidfd_open", source },
    })
}

fn list(pid: Pid) -> Result<Vec<Pid>, FreezeError> {
    tree::threads(pid).map_err(|error| if error.is_gone() { FreezeError::Died { pid } } else { error.into() })
}

fn is_gone(error: &FreezeError) -> bool {
    match error {
        FreezeError::Ptrace { source, .. } => *source == Errno::ESRCH,
        FreezeError::Procfs(error) => error.is_gone(),
        _ => false,
    }
}

fn refuse_what_cannot_be_stopped(pid: Pid) -> Result<(), FreezeError> {
    let gone = |error: crate::procfs::ProcfsError| {
        if error.is_gone() { FreezeError::NoProcess { pid } } else { error.into() }
    };
    if pid == getpid() {
        return Err(FreezeError::Itself { pid });
    }
    let status = status::read(pid).map_err(gone)?;
    if status.tgid == getpid().as_raw() {
        return Err(FreezeError::Itself { pid });
    }
    if status.tgid != pid.as_raw() {
        return Err(FreezeError::NotALeader { pid, leader: Pid::from_raw(status.tgid) });
    }
    let stat = stat::read(pid).map_err(gone)?;
    if stat.is_kernel_thread() {
        return Err(FreezeError::KernelThread { pid });
    }
    if stat.is_zombie() {
        let others = tree::threads(pid).map_or(0, |threads| threads.len()) > 1;
        return Err(if others { FreezeError::LeaderExited { pid } } else { FreezeError::Zombie { pid } });
    }
    if status.tracer_pid != 0 {
        return Err(traced(pid, pid, status.tracer_pid));
    }
    Ok(())
}

fn traced(pid: Pid, tid: Pid, tracer: i32) -> FreezeError {
    let tracer = Pid::from_raw(tracer);
    let tracer_comm = attr::comm(tracer, tracer).map_or_else(
        |_| "of another pid namespace or just gone".to_owned(),
        |comm| String::from_utf8_lossy(&comm).into_owned(),
    );
    FreezeError::AlreadyTraced { pid, tid, tracer, tracer_comm }
}

impl Thread {
    /// Reads everything that a later remote call would disturb.
    fn save(pid: Pid, tid: Pid, group_stop: Option<i32>, restarts: &Restarts) -> Result<Thread, FreezeError> {
        let failed = |request| move |source| FreezeError::Ptrace { tid, request, source };
        let regs = ptrace::regs(tid).map_err(|errno| match errno {
            Errno::EINVAL => FreezeError::Compat { pid, tid },
            source => FreezeError::Ptrace { tid, request: "PTRACE_GETREGSET", source },
        })?;
        let xstate = read_xstate(tid).map_err(failed("PTRACE_GETREGSET of the XSAVE area"))?;
        let sigmask = ptrace::sigmask(tid).map_err(failed("PTRACE_GETSIGMASK"))?;
        let rseq = rseq::read(pid, tid).map_err(failed("PTRACE_GET_RSEQ_CONFIGURATION"))?;

        let abort = rseq.as_ref().and_then(|rseq| rseq.abort_ip(regs.rip));
        let resumed = arch::resumed(&regs, abort);
        let settled = arch::settled(&resumed, restarts.call(pid, tid, &resumed));
        if resumed != regs {
            // At once, so that it also holds for a dumper that is killed before it detaches.
            ptrace::set_regs(tid, &resumed).map_err(failed("PTRACE_SETREGSET"))?;
        }
        Ok(Thread {
            tid,
            regs,
            settled,
            xstate,
            sigmask,
            rseq,
            group_stop,
            status: OnceLock::new(),
            resumed,
            busy: AtomicBool::new(false),
        })
    }

    /// The registers that an image must hold, if no signal is to be handled before; see [`arch::settled`].
    pub fn regs_to_dump(&self) -> Regs {
        self.settled
    }

    /// The registers that the thread goes on with, the kernel's result of an interrupted call among them; see
    /// [`arch::resumed`].
    pub fn regs_to_resume(&self) -> &Regs {
        &self.resumed
    }

    /// What /proc says of it, as it was when it was asked first after the stop. Its pending signals may be more by now, and
    /// its mask is its own only as long as nobody has borrowed it.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub fn status(&self, pid: Pid) -> Result<&Status, ProcfsError> {
        match self.status.get() {
            Some(known) => Ok(known),
            None => {
                let read = status::read_thread(pid, self.tid)?;
                Ok(self.status.get_or_init(|| read))
            }
        }
    }

    fn target(&self, pid: Pid) -> Result<Target<'_>, RemoteError> {
        Ok(Target {
            tid: self.tid,
            resumed: &self.resumed,
            settled: &self.settled,
            sigmask: self.sigmask,
            xstate: &self.xstate,
            status: self.status(pid)?,
            busy: &self.busy,
        })
    }
}

fn read_whole(pid: Pid, addr: u64, into: &mut [u8]) -> Option<()> {
    let len = into.len();
    (process_vm::read(pid, &[Remote { addr, len }], into).ok()? == len).then_some(())
}

fn read_xstate(tid: Pid) -> nix::Result<Vec<u8>> {
    let mut room = XSTATE_BYTES;
    loop {
        let mut area = match ptrace::regset(tid, ptrace::NT_X86_XSTATE, room) {
            Err(Errno::ENODEV | Errno::EINVAL) => ptrace::regset(tid, ptrace::NT_PRFPREG, room)?,
            other => other?,
        };
        if area.len() < room {
            area.shrink_to_fit();
            return Ok(area);
        }
        room *= 2;
    }
}

impl Frozen {
    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor of the process, opened before it was stopped.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The stopped threads: the leader first (if it is among them), the others by rising id. Of a process that is held in
    /// parts these are the threads of all parts.
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// Those of them that are held here, and that the kernel answers here.
    pub fn own_threads(&self) -> impl Iterator<Item = &Thread> {
        self.own.iter().map(|at| &self.threads[*at])
    }

    /// Whether the first of them is held here: of the parts of a process one has it.
    pub fn has_first(&self) -> bool {
        self.own.first() == Some(&0)
    }

    /// Gives a part its seat for the next [`Frozen::ask`], or takes it away.
    pub(super) fn seat(&self, seat: Option<Seat>) {
        drop(self.seat.replace(seat));
    }

    /// The same, for who outlives this.
    pub(super) fn shared_threads(&self) -> Arc<Vec<Thread>> {
        Arc::clone(&self.threads)
    }

    /// The first of them, the leader when the whole process was stopped.
    pub fn leader(&self) -> &Thread {
        // A Frozen has at least one thread: both ways to make one end with an error otherwise.
        &self.threads[0]
    }

    /// The stopped thread `tid`.
    pub fn thread(&self, tid: Pid) -> Option<&Thread> {
        self.threads.iter().find(|thread| thread.tid == tid)
    }

    /// The saved state of thread `tid`.
    ///
    /// # Errors
    /// When it is not among the stopped ones.
    pub fn state(&self, tid: Pid) -> Result<&Thread, FreezeError> {
        self.thread(tid).ok_or(FreezeError::NotFrozen { pid: self.pid, tid })
    }

    /// The registers of thread `tid` as first seen.
    pub fn regs(&self, tid: Pid) -> Option<&Regs> {
        self.thread(tid).map(|thread| &thread.regs)
    }

    /// The signal that had stopped the process before we did (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU).
    pub fn stopped_by(&self) -> Option<i32> {
        self.threads.iter().find_map(|thread| thread.group_stop)
    }

    /// Takes hold of thread `tid` for remote system calls.
    pub fn remote(&self, tid: Pid) -> Result<Session<'_>, RemoteError> {
        Session::open(self.target(tid)?, self.surroundings()?)
    }

    /// Takes hold of a further thread while `session` has another one of this process; see [`Session::open_beside`].
    pub fn remote_beside<'s>(
        &'s self,
        session: &'s Session<'_>,
        tid: Pid,
    ) -> Result<Session<'s>, RemoteError> {
        waiting::block_on(session.open_beside(self.target(tid)?))
    }

    /// Asks the leader by remote system calls, and then all other threads, several at the same time; answers in the order
    /// of [`Frozen::threads`]. Of a part its own threads: the leader's answer comes from the one that has it, and beside it
    /// the others ask theirs.
    ///
    /// # Errors
    /// The first failure, of the leader or of a thread in that order; all threads are as they were.
    pub async fn ask<T, L, E: From<RemoteError>>(
        &self,
        leader: impl AsyncFnOnce(&mut Session<'_>) -> Result<(L, T), E>,
        thread: impl AsyncFn(&mut Session<'_>) -> Result<T, E>,
    ) -> Result<(Option<L>, Vec<T>), E> {
        let own: Vec<&Thread> = self.own_threads().collect();
        let Some((first, others)) = own.split_first().filter(|_| self.has_first()) else {
            return Ok((None, self.ask_beside(&own, thread).await?));
        };
        let taken = self.seat.take();
        let parts = taken.as_ref().map_or(1, Seat::parts);
        let beside = if parts > 1 { BESIDE_EACH * parts } else { others.len().min(BESIDE_EACH) };
        let mut session = Session::open_for(first.target(self.pid)?, self.surroundings()?, beside).await?;
        // Left before the session ends, whatever happens: what the others use is in its memory.
        let seat = taken;
        let all = session.spots();
        let spots = seat.as_ref().map_or_else(|| all.clone(), |seat| seat.lend(&all));
        let (of_leader, of_first) = leader(&mut session).await?;
        let of_others = self.ask_each(others, &spots, thread).await?;
        if let Some(seat) = &seat {
            seat.await_others().await;
        }
        drop(seat);
        session.end().await?;
        Ok((Some(of_leader), std::iter::once(of_first).chain(of_others).collect()))
    }

    /// Asks the threads of a part beside the one that has the first thread.
    async fn ask_beside<T, E: From<RemoteError>>(
        &self,
        own: &[&Thread],
        thread: impl AsyncFn(&mut Session<'_>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let abandoned = RemoteError::Abandoned { pid: self.pid };
        let Some(mut seat) = self.seat.take() else { return Err(abandoned.into()) };
        let Some(spots) = seat.enter().await else { return Err(abandoned.into()) };
        self.ask_each(own, &spots, thread).await
    }

    /// Asks threads, as many at the same time as there are places; one after the other, at places of their own, if there are
    /// none.
    async fn ask_each<T, E: From<RemoteError>>(
        &self,
        threads: &[&Thread],
        spots: &[Spot],
        ask: impl AsyncFn(&mut Session<'_>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let places: Vec<Option<Spot>> = match spots {
            [] => vec![None],
            spots => spots.iter().take(BESIDE_EACH).map(|spot| Some(*spot)).collect(),
        };
        let (around, ask) = (self.surroundings()?, &ask);
        let count = places.len();
        let lane = |(index, place): (usize, Option<Spot>)| async move {
            let mut answers = Vec::with_capacity(threads.len().div_ceil(count));
            for thread in threads.iter().skip(index).step_by(count) {
                let mut beside = Session::open_on(thread.target(self.pid)?, around, place).await?;
                answers.push(ask(&mut beside).await?);
                beside.end().await?;
            }
            Ok(answers)
        };
        let lanes = waiting::all(places.into_iter().enumerate().map(lane), count).await;
        let lanes: Vec<Vec<T>> = lanes.into_iter().collect::<Result<_, E>>()?;
        let mut lanes: Vec<_> = lanes.into_iter().map(Vec::into_iter).collect();
        Ok((0..threads.len()).filter_map(|at| lanes[at % count].next()).collect())
    }

    fn target(&self, tid: Pid) -> Result<Target<'_>, RemoteError> {
        self.thread(tid).ok_or(RemoteError::NotFrozen { tid })?.target(self.pid)
    }

    fn surroundings(&self) -> Result<&Surroundings, RemoteError> {
        if let Some(known) = self.around.get() {
            return Ok(known);
        }
        let found = Surroundings::of(self.pid, self.whole)?;
        Ok(self.around.get_or_init(|| found))
    }

    /// The address behind the instruction that remote calls are made by, as seccomp filters see it.
    pub fn syscall_end(&self) -> Result<u64, RemoteError> {
        Ok(self.surroundings()?.syscall_end())
    }

    /// Lets all threads run on. A process that was killed meanwhile is no error.
    pub fn thaw(mut self) -> Result<(), FreezeError> {
        self.detach()
    }

    fn detach(&mut self) -> Result<(), FreezeError> {
        let mut first_failure = Ok(());
        for at in std::mem::take(&mut self.own) {
            let thread = &self.threads[at];
            match ptrace::detach(thread.tid, 0) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => {
                    let failure = FreezeError::Ptrace { tid: thread.tid, request: "PTRACE_DETACH", source };
                    first_failure = first_failure.and(Err(failure));
                }
            }
        }
        first_failure
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(pid = self.pid.as_raw(), %error, "a thread could not be let go");
        }
    }
}
