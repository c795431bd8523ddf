//! A thread lent for remote system calls, and given back as it was.

mod told;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use godwit_wire::fault;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::arch::{self, Frame};
use super::error::RemoteError;
use super::gadget::Restorer;
use super::place::{self, Place, PlaceKind};
use super::surroundings::{LEFTOVER_BYTES_MAX, MARK, MARK_BYTES, Surroundings, locked, read_part};
use super::waiting::{self, block_on};
use crate::procfs::status::Status as TaskStatus;
use crate::sys::process_vm::{self, Remote};
use crate::sys::ptrace::{self, Regs};
use crate::sys::wait::Status;

/// Bytes of a session's scratch memory on the stack, where there is no mapping to have.
const DATA_BYTES: usize = 8192;

/// Bytes of a session's scratch mapping, of which its caller may use all but [`MARK_BYTES`]: room for what a process is
/// asked at one stroke.
const MAPPED_BYTES: usize = 28 << 10;

/// Bytes that the caller of a session beside another may use.
const BESIDE_BYTES: usize = 2048;

/// Places for sessions beside another that one tracer makes use of. There are more for several tracers, as many as fit
/// into what is taken for a leftover: at least so many with the largest frames, of AMX.
pub const BESIDE_EACH: usize = 12;

/// How long a remote call may take. The calls a dump makes do not block.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How often a call is made again that something unrelated interrupted.
const RESTARTS_MAX: u32 = 16;

const ALL_SIGNALS: u64 = u64::MAX;

pub use told::{ANSWER_BYTES, Telling, Told};

/// A thread in a ptrace stop of kind PTRACE_EVENT_STOP, and the state it must come back to.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The thread.
    pub tid: Pid,
    /// The registers it goes on with when nothing goes wrong ([`arch::resumed`]).
    pub resumed: &'a Regs,
    /// The registers it goes on with when the kernel's memory of its call is lost ([`arch::settled`]).
    pub settled: &'a Regs,
    /// Its blocked signals.
    pub sigmask: u64,
    /// Its floating-point state (NT_X86_XSTATE).
    pub xstate: &'a [u8],
    /// What /proc says of it, since it was stopped.
    pub status: &'a TaskStatus,
    /// Set while a session has the thread.
    pub busy: &'a AtomicBool,
}

/// Memory in the target that a session's caller may use for arguments and results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// First address there, a multiple of 16.
    pub addr: u64,
    /// Length in bytes.
    pub len: usize,
}

/// A place for the frame and the data of a further thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// First address.
    pub at: u64,
    /// Bytes for the frame.
    pub room: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Parked, in the PTRACE_EVENT_STOP it was found in.
    Fresh,
    /// Parked, at the exit of a call.
    AtExit,
    /// At the entry of a call that was not made.
    Entered,
    /// At the exit of a call, with what it left in the registers.
    Returned,
    /// Running: a call did not come back. The frame heals the thread when it does.
    Lost,
    /// Gone.
    Dead,
    /// Given back.
    Settled,
}

/// A thread lent for remote system calls; see the room's first page for how it stays safe.
///
/// Dropping it gives the thread back as it was, as [`Session::finish`] does, but without a word of failure.
pub struct Session<'a> {
    target: Target<'a>,
    around: &'a Surroundings,
    frame: Frame,
    state: State,
    /// Where the frame in force lies.
    home: u64,
    restorer: u64,
    lends: bool,
    place: Place,
    borrowed: Vec<u8>,
    /// The mapping of this session, (address, length).
    mapping: Option<(u64, u64)>,
    scratch: Option<Scratch>,
    /// The call that was made last, for what it left if nobody sees its result.
    last_call: i64,
    /// The length of the mapping that is being asked for.
    mapping_asked: Option<u64>,
    /// A call was made that took the kernel's memory of the thread's own call.
    forgotten: bool,
    /// Where the frame of a session beside this one lies, the first of several places, and how many there are.
    beside: Option<(u64, usize)>,
    /// The stop that the thread was sent on to and that has not been reported yet.
    flight: Option<Flight>,
}

/// What a thread that runs is to stop at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flight {
    /// The entry or the exit of a call.
    Call,
    /// PTRACE_EVENT_STOP.
    Interrupt,
    /// The signal that it sends itself at the end of a chain of calls.
    Chain(i32),
}

impl<'a> Session<'a> {
    /// Takes hold of a stopped thread. All goes back when the session ends.
    pub fn open(target: Target<'a>, around: &'a Surroundings) -> Result<Session<'a>, RemoteError> {
        block_on(Session::open_for(target, around, 1))
    }

    /// The same, beside others that are waited for, and with room for the frames of `beside` further threads.
    pub async fn open_for(
        target: Target<'a>,
        around: &'a Surroundings,
        beside: usize,
    ) -> Result<Session<'a>, RemoteError> {
        let mut session = Session::open_at_own_place(target, around)?;
        session.map_scratch(beside.max(1)).await?;
        fault::point("mid.remote.open")?;
        Ok(session)
    }

    /// Parks a thread by a frame at a place of its own.
    fn open_at_own_place(target: Target<'a>, around: &'a Surroundings) -> Result<Session<'a>, RemoteError> {
        let _placing = locked(&around.placing);
        let frame = Frame::new(target.settled, target.sigmask, target.xstate);
        // With room for data too the session can do without a mapping, should there be none to have.
        let frame_bytes = frame.len_max().next_multiple_of(16);
        let (place, data) = [DATA_BYTES, 0]
            .iter()
            .find_map(|data| Some((choose_place(&target, around, frame_bytes + data)?, *data)))
            .ok_or(RemoteError::NoRoom { pid: around.pid, tid: target.tid, need: frame_bytes })?;
        let scratch = (data > 0).then_some(Scratch { addr: place.at + frame_bytes as u64, len: data });
        let mut session = Session::begin(target, around, frame, place, scratch)?;
        session.borrow_place(frame_bytes + data)?;
        fault::point("mid.remote.borrowed")?;
        session.park()?;
        fault::point("mid.remote.parked")?;
        Ok(session)
    }

    /// Places in the scratch memory of this session, each for a further thread; none where there is no such memory.
    pub fn spots(&self) -> Vec<Spot> {
        let room = self.frame.len_max().next_multiple_of(64);
        let spot =
            |first: u64, place: usize| Spot { at: first + (place * (room + BESIDE_BYTES)) as u64, room };
        let (first, places) = self.beside.unwrap_or_default();
        (0..places).map(|place| spot(first, place)).collect()
    }

    /// Takes hold of a further thread of the same process, in the scratch memory of this session if there is a place for
    /// it. Only one at a time.
    pub async fn open_beside<'s>(&'s self, target: Target<'s>) -> Result<Session<'s>, RemoteError> {
        Session::open_on(target, self.around, self.spots().first().copied()).await
    }

    /// Takes hold of a further thread of a process, at a place in the scratch memory of another session, which lasts
    /// longer; without one at a place of its own.
    ///
    /// Much cheaper than [`Session::open`], and no memory of the thread itself is touched. Only one at a time for each place.
    pub async fn open_on(
        target: Target<'a>,
        around: &'a Surroundings,
        spot: Option<Spot>,
    ) -> Result<Session<'a>, RemoteError> {
        let frame = Frame::new(target.settled, target.sigmask, target.xstate);
        let Some(Spot { at, room }) = spot.filter(|spot| frame.len_max() <= spot.room) else {
            return Session::open_for(target, around, 1).await;
        };
        let scratch = Scratch { addr: at + room as u64, len: BESIDE_BYTES };
        let place = Place { at, kind: PlaceKind::Scratch };
        let mut session = Session::begin(target, around, frame, place, Some(scratch))?;
        session.park()?;
        Ok(session)
    }

    /// Checks the thread's mode and lends it a restorer. Nothing of the thread itself is changed yet.
    fn begin(
        target: Target<'a>,
        around: &'a Surroundings,
        frame: Frame,
        place: Place,
        scratch: Option<Scratch>,
    ) -> Result<Session<'a>, RemoteError> {
        let (tid, status) = (target.tid, target.status);
        if status.shadow_stack {
            return Err(RemoteError::Mode { tid, mode: "has a user shadow stack" });
        }
        // A call from outside its allowed range would end the thread by SIGSYS, and switching the dispatch off would
        // outlive a dumper that is killed.
        if ptrace::dispatches_syscalls(tid).unwrap_or(false) {
            return Err(RemoteError::Mode {
                tid,
                mode: "dispatches its system calls itself (PR_SET_SYSCALL_USER_DISPATCH)",
            });
        }
        if target.busy.swap(true, Ordering::Relaxed) {
            return Err(RemoteError::Busy { tid });
        }
        let (restorer, lends) = match around.gadgets.restorer {
            Restorer::Found(at) => (at, false),
            Restorer::Lendable(at) => (at, true),
        };
        let mut session = Session {
            target,
            around,
            frame,
            state: State::Settled,
            home: place.at,
            restorer,
            lends: false,
            place,
            borrowed: Vec::new(),
            mapping: None,
            scratch,
            last_call: -1,
            mapping_asked: None,
            forgotten: false,
            beside: None,
            flight: None,
        };
        if lends {
            session.lend_restorer()?;
        }
        if status.seccomp != 0 {
            session.suspend_seccomp()?;
        }
        Ok(session)
    }

    fn suspend_seccomp(&self) -> Result<(), RemoteError> {
        let tid = self.target.tid;
        ptrace::set_options(tid, ptrace::O_TRACESYSGOOD | ptrace::O_SUSPEND_SECCOMP).map_err(|errno| match errno {
            Errno::EPERM => RemoteError::Mode {
                tid,
                mode: "is under seccomp, and suspending that wants CAP_SYS_ADMIN and a dumper without seccomp of its own",
            },
            errno => RemoteError::ptrace(tid, "PTRACE_SETOPTIONS")(errno),
        })
    }

    /// The thread.
    pub fn tid(&self) -> Pid {
        self.target.tid
    }

    /// Memory in the target for arguments and results; it keeps what is written until the session ends.
    pub fn scratch(&self) -> Result<Scratch, RemoteError> {
        let (pid, tid) = (self.around.pid, self.target.tid);
        self.scratch.ok_or(RemoteError::NoRoom { pid, tid, need: DATA_BYTES })
    }

    /// Runs system call `nr` (`libc::SYS_*`) in the thread and gives its result, an error number as [`RemoteError::Call`].
    ///
    /// Calls that block, end the thread or change its stack, mask or memory under the session are not for this.
    pub fn syscall(&mut self, nr: i64, args: [u64; 6]) -> Result<u64, RemoteError> {
        block_on(self.call(nr, args))
    }

    /// The same, beside others that are waited for.
    ///
    /// What comes of it must be waited for: to drop it half way gives up the call, and waits too.
    pub async fn call(&mut self, nr: i64, args: [u64; 6]) -> Result<u64, RemoteError> {
        let tid = self.target.tid;
        let mut restarts = 0;
        loop {
            let result = self.call_once(nr, args).await?;
            if arch::is_restart(result) && restarts < RESTARTS_MAX {
                restarts += 1;
                continue;
            }
            return match result {
                -4095..=-1 => Err(RemoteError::Call { tid, nr, errno: Errno::from_raw(-result as i32) }),
                result => Ok(result as u64),
            };
        }
    }

    /// Writes into the target's memory, scratch or not.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        write_all(self.around.pid, addr, bytes)
    }

    /// Reads the target's memory.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), RemoteError> {
        let (pid, len) = (self.around.pid, into.len());
        let failed = |source| RemoteError::Memory { pid, access: "read", addr, len, source };
        match process_vm::read(pid, &[Remote { addr, len }], into) {
            Ok(count) if count == len => Ok(()),
            Ok(_) => Err(failed(Errno::EFAULT)),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Gives the thread back: parked in PTRACE_EVENT_STOP with its own registers, mask and memory.
    pub fn finish(self) -> Result<(), RemoteError> {
        block_on(self.end())
    }

    /// The same, beside others that are waited for.
    pub async fn end(mut self) -> Result<(), RemoteError> {
        self.settle().await
    }

    /// One call, from parked to parked.
    async fn call_once(&mut self, nr: i64, args: [u64; 6]) -> Result<i64, RemoteError> {
        let tid = self.target.tid;
        self.back().await?;
        match self.state {
            State::Fresh | State::AtExit => {}
            State::Dead => return Err(RemoteError::Died { tid }),
            State::Lost | State::Settled | State::Entered | State::Returned => {
                return Err(RemoteError::Stuck { tid, nr, waited: Duration::ZERO });
            }
        }
        self.forgotten |= arch::forgets_interrupted_call(nr);
        self.last_call = nr;
        let gadgets = &self.around.gadgets;
        let parked = arch::parked(self.target.settled, gadgets.syscall, self.home);
        self.run_to_syscall_stop(nr).await?;
        fault::point("mid.remote.entered")?;
        let back = if gadgets.returns { gadgets.syscall + arch::SYSCALL_LEN } else { self.restorer };
        let entry = arch::call(&parked, nr as u64, args, back, self.home, gadgets.returns);
        self.ptrace("PTRACE_SETREGSET", |tid| ptrace::set_regs(tid, &entry))?;
        fault::point("mid.remote.loaded")?;
        self.run_to_syscall_stop(nr).await?;
        fault::point("mid.remote.called")?;
        let exit = self.ptrace("PTRACE_GETREGSET", ptrace::regs)?;
        self.ptrace("PTRACE_SETREGSET", |tid| ptrace::set_regs(tid, &parked))?;
        self.state = State::AtExit;
        Ok(arch::result(&exit))
    }

    /// Lets the thread run to its next system call stop: the entry of a call, or the exit of the one it has entered.
    async fn run_to_syscall_stop(&mut self, nr: i64) -> Result<(), RemoteError> {
        self.ptrace("PTRACE_SYSCALL", |tid| ptrace::syscall_stop(tid, 0))?;
        self.flight = Some(Flight::Call);
        self.land(nr).await
    }

    /// Waits for the system call stop that the thread was sent on to.
    async fn land(&mut self, nr: i64) -> Result<(), RemoteError> {
        const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
        let tid = self.target.tid;
        let deadline = Instant::now() + CALL_LIMIT;
        loop {
            let deliver = match self.await_stop(nr, deadline).await? {
                (SYSCALL_STOP, 0) => {
                    self.flight = None;
                    let has_entered = self.state == State::Entered;
                    self.state = if has_entered { State::Returned } else { State::Entered };
                    return Ok(());
                }
                // A group stop began or ended around us, or an interrupt was left over. The kernel keeps the
                // group stop in force for the thread and puts it into effect when it is detached.
                (_, ptrace::EVENT_STOP) => 0,
                // The one signal that cannot be blocked and does not kill: it begins a group stop.
                (libc::SIGSTOP, 0) => libc::SIGSTOP,
                (signal, _) => {
                    self.flight = None;
                    return Err(RemoteError::Fault { tid, signal });
                }
            };
            self.ptrace("PTRACE_SYSCALL", |tid| ptrace::syscall_stop(tid, deliver))?;
        }
    }

    /// The next stop, as (signal, event).
    async fn await_stop(&mut self, nr: i64, deadline: Instant) -> Result<(i32, i32), RemoteError> {
        let tid = self.target.tid;
        loop {
            match waiting::report(tid, deadline).await {
                Ok(Some(Status::Stopped { signal, event })) => return Ok((signal, event)),
                Ok(Some(Status::Continued)) => {}
                Ok(None) => {
                    (self.state, self.flight) = (State::Lost, None);
                    return Err(RemoteError::Stuck { tid, nr, waited: CALL_LIMIT });
                }
                Ok(Some(Status::Exited(_) | Status::Killed(_))) | Err(_) => {
                    (self.state, self.flight) = (State::Dead, None);
                    return Err(RemoteError::Died { tid });
                }
            }
        }
    }

    fn ptrace<T>(
        &mut self,
        request: &'static str,
        call: impl FnOnce(Pid) -> nix::Result<T>,
    ) -> Result<T, RemoteError> {
        call(self.target.tid).map_err(|errno| {
            if errno == Errno::ESRCH {
                (self.state, self.flight) = (State::Dead, None);
            }
            RemoteError::ptrace(self.target.tid, request)(errno)
        })
    }

    /// Puts the frame in force: from here on the thread's own state lies in it alone.
    fn park(&mut self) -> Result<(), RemoteError> {
        self.put_frame(self.home)?;
        self.park_registers()?;
        self.state = State::Fresh;
        self.ptrace("PTRACE_SETSIGMASK", |tid| ptrace::set_sigmask(tid, ALL_SIGNALS))
    }

    fn put_frame(&self, at: u64) -> Result<(), RemoteError> {
        self.write(at, &self.frame.bytes(at, self.restorer))
    }

    /// Writes the frame at `at` and puts that one in force.
    fn move_home(&mut self, at: u64) -> Result<(), RemoteError> {
        self.put_frame(at)?;
        let parked = arch::parked(self.target.settled, self.around.gadgets.syscall, at);
        self.ptrace("PTRACE_SETREGSET", |tid| ptrace::set_regs(tid, &parked))?;
        self.home = at;
        Ok(())
    }

    /// Maps scratch memory and moves the frame there. Without memory to have, the stack must do.
    async fn map_scratch(&mut self, places: usize) -> Result<(), RemoteError> {
        const PROT: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        const FLAGS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let leftovers = std::mem::take(&mut *locked(&self.around.leftovers));
        for (addr, len) in leftovers {
            self.unmap(addr, len).await?;
        }
        let frame_bytes = self.frame.len_max().next_multiple_of(64);
        let room = (LEFTOVER_BYTES_MAX as usize - MAPPED_BYTES).saturating_sub(frame_bytes);
        let places = places.min(room / (frame_bytes + BESIDE_BYTES));
        let (data, others) = (MAPPED_BYTES as u64, places * (frame_bytes + BESIDE_BYTES));
        let len = (data + (frame_bytes + others) as u64).next_multiple_of(4096);
        self.mapping_asked = Some(len);
        let args = [self.around.hint(), len, PROT, FLAGS, u64::MAX, 0];
        let addr = match self.call(libc::SYS_mmap, args).await {
            Ok(addr) => addr,
            Err(RemoteError::Call { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.mapping_asked = None;
        self.mapping = Some((addr, len));
        self.around.note_mapping(addr, true);
        fault::point("mid.remote.mapped")?;
        self.write(addr, &MARK)?;
        self.name_scratch(addr, len).await?;
        // This session's data and frame, then frames and data of those beside it.
        self.move_home(addr + data)?;
        fault::point("mid.remote.moved")?;
        self.put_back()?;
        self.scratch = Some(Scratch { addr: addr + MARK_BYTES as u64, len: MAPPED_BYTES - MARK_BYTES });
        self.beside = Some((addr + data + frame_bytes as u64, places));
        Ok(())
    }

    /// Names the mapping, so that one that a killed dumper left behind shows in /proc/PID/maps as what it is.
    async fn name_scratch(&mut self, addr: u64, len: u64) -> Result<(), RemoteError> {
        const PR_SET_VMA: u64 = 0x5356_4d41;
        const PR_SET_VMA_ANON_NAME: u64 = 0;
        if !self.around.names_memory.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The mark at its start is the name, with its zero.
        match self.call(libc::SYS_prctl, [PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len, addr, 0]).await {
            Ok(_) => Ok(()),
            Err(RemoteError::Call { .. }) => {
                self.around.names_memory.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn unmap(&mut self, addr: u64, len: u64) -> Result<(), RemoteError> {
        match self.call(libc::SYS_munmap, [addr, len, 0, 0, 0, 0]).await {
            Ok(_) | Err(RemoteError::Call { .. }) => {
                self.around.note_mapping(addr, false);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps the bytes at the place, or makes the stack grow down to it.
    fn borrow_place(&mut self, len: usize) -> Result<(), RemoteError> {
        let at = self.place.at;
        self.borrowed = vec![0; len];
        match self.place.kind {
            PlaceKind::Own => {
                let mut bytes = vec![0; len];
                self.read(at, &mut bytes)?;
                self.borrowed = bytes;
            }
            PlaceKind::Grow => self.ptrace("PTRACE_POKEDATA", |tid| ptrace::poke(tid, at, 0))?,
            PlaceKind::Main => {}
            PlaceKind::Scratch => self.borrowed.clear(),
        }
        Ok(())
    }

    /// Makes sure that the place is still free, or finds another: its thread may have run meanwhile.
    fn borrow_again(&mut self) -> Result<(), RemoteError> {
        let len = self.borrowed.len();
        let free = matches!(self.place.kind, PlaceKind::Own | PlaceKind::Scratch)
            || read_part(self.around.pid, self.place.at, len) == self.borrowed;
        if free {
            return Ok(());
        }
        let no_room = RemoteError::NoRoom { pid: self.around.pid, tid: self.target.tid, need: len };
        self.place = choose_place(&self.target, self.around, len).ok_or(no_room)?;
        self.borrow_place(len)
    }

    /// Puts the borrowed bytes back, unless the place belongs to a running thread that has used it since.
    fn put_back(&self) -> Result<(), RemoteError> {
        let at = self.place.at;
        let ours = || {
            let frame = self.frame.bytes(at, self.restorer);
            read_part(self.around.pid, at, frame.len()) == frame
        };
        match self.place.kind {
            PlaceKind::Own => self.write(at, &self.borrowed),
            PlaceKind::Main | PlaceKind::Grow if ours() => self.write(at, &self.borrowed),
            PlaceKind::Main | PlaceKind::Grow | PlaceKind::Scratch => Ok(()),
        }
    }

    fn lend_restorer(&mut self) -> Result<(), RemoteError> {
        let around = self.around;
        let mut borrowers = locked(&around.borrowers);
        if *borrowers == 0 {
            let mut code = [0u8; 16];
            code[..arch::RESTORERS[0].len()].copy_from_slice(arch::RESTORERS[0]);
            self.poke_restorer(code)?;
        }
        *borrowers += 1;
        self.lends = true;
        Ok(())
    }

    fn return_restorer(&mut self) -> Result<(), RemoteError> {
        if !self.lends {
            return Ok(());
        }
        self.lends = false;
        let around = self.around;
        let mut borrowers = locked(&around.borrowers);
        *borrowers = borrowers.saturating_sub(1);
        if *borrowers == 0 { self.poke_restorer([0; 16]) } else { Ok(()) }
    }

    fn poke_restorer(&mut self, code: [u8; 16]) -> Result<(), RemoteError> {
        let at = self.restorer;
        for (index, word) in code.as_chunks::<8>().0.iter().enumerate() {
            let (at, word) = (at + 8 * index as u64, u64::from_le_bytes(*word));
            self.ptrace("PTRACE_POKEDATA", |tid| ptrace::poke(tid, at, word))?;
        }
        Ok(())
    }

    /// Brings the thread back to where it was found.
    async fn settle(&mut self) -> Result<(), RemoteError> {
        if self.state == State::Lost {
            self.catch().await?;
        }
        self.back().await?;
        if matches!(self.state, State::Fresh | State::AtExit) {
            if let Some((addr, len)) = self.mapping {
                // The frame must not lie in the memory that the call takes away.
                if self.home != self.place.at {
                    let around = self.around;
                    let _placing = locked(&around.placing);
                    self.borrow_again()?;
                    self.move_home(self.place.at)?;
                }
                self.scratch = None;
                self.unmap(addr, len).await?;
                self.mapping = None;
                fault::point("mid.remote.unmapped")?;
            }
            if self.state == State::AtExit {
                self.repark().await?;
            }
            self.restore_registers()?;
            self.put_back()?;
        }
        if self.state != State::Dead {
            self.return_restorer()?;
        }
        Ok(())
    }

    /// Parks a thread whose last call was given up half way, by an error of ours or a panic. The number and the result of
    /// the call, if it was made: nobody has seen them yet. What it made is undone.
    pub fn come_back(&mut self) -> Result<Option<(i64, i64)>, RemoteError> {
        block_on(self.back())
    }

    async fn back(&mut self) -> Result<Option<(i64, i64)>, RemoteError> {
        match self.flight {
            Some(Flight::Call) => self.land(self.last_call).await?,
            Some(Flight::Interrupt) => self.land_reparked().await?,
            Some(Flight::Chain(signal)) => self.land_chain(signal).await?,
            None => {}
        }
        match self.state {
            State::Entered => {
                // Parked registers name no call, so none is made on the way to the exit.
                self.park_registers()?;
                self.last_call = -1;
                self.run_to_syscall_stop(-1).await?;
                self.park_registers()?;
                self.state = State::AtExit;
                Ok(None)
            }
            State::Returned => {
                let (nr, result) =
                    (self.last_call, arch::result(&self.ptrace("PTRACE_GETREGSET", ptrace::regs)?));
                self.park_registers()?;
                self.state = State::AtExit;
                Box::pin(self.undo_last_call(result)).await?;
                Ok(Some((nr, result)))
            }
            State::Fresh | State::AtExit | State::Lost | State::Dead | State::Settled => Ok(None),
        }
    }

    /// Undoes a call whose result nobody has seen.
    async fn undo_last_call(&mut self, result: i64) -> Result<(), RemoteError> {
        let Ok(made) = u64::try_from(result) else { return Ok(()) };
        match (self.last_call, self.mapping_asked.take()) {
            (libc::SYS_mmap, Some(len)) => {
                self.around.note_mapping(made, true);
                self.mapping = Some((made, len));
            }
            (libc::SYS_munmap, _) => self.mapping = None,
            (libc::SYS_userfaultfd, _) => {
                self.call(libc::SYS_close, [made, 0, 0, 0, 0, 0]).await?;
            }
            _ => {}
        }
        Ok(())
    }

    fn restore_registers(&mut self) -> Result<(), RemoteError> {
        let resumed = if self.forgotten { *self.target.settled } else { *self.target.resumed };
        let sigmask = self.target.sigmask;
        if self.target.status.seccomp != 0 {
            self.ptrace("PTRACE_SETOPTIONS", |tid| ptrace::set_options(tid, ptrace::O_TRACESYSGOOD))?;
        }
        // While the frame is in force: a dumper that dies before the next line leaves no mask behind.
        self.ptrace("PTRACE_SETSIGMASK", |tid| ptrace::set_sigmask(tid, sigmask))?;
        self.ptrace("PTRACE_SETREGSET", |tid| ptrace::set_regs(tid, &resumed))?;
        self.state = State::Settled;
        Ok(())
    }

    /// From the exit of a call into PTRACE_EVENT_STOP, without an instruction in between: only there does the
    /// kernel look at an interrupted system call when the thread is let go.
    async fn repark(&mut self) -> Result<(), RemoteError> {
        self.ptrace("PTRACE_INTERRUPT", ptrace::interrupt)?;
        self.ptrace("PTRACE_CONT", |tid| ptrace::cont(tid, 0))?;
        self.flight = Some(Flight::Interrupt);
        self.land_reparked().await
    }

    async fn land_reparked(&mut self) -> Result<(), RemoteError> {
        let tid = self.target.tid;
        let deadline = Instant::now() + CALL_LIMIT;
        loop {
            let deliver = match self.await_stop(0, deadline).await? {
                (_, ptrace::EVENT_STOP) => {
                    (self.flight, self.state) = (None, State::Fresh);
                    return Ok(());
                }
                (libc::SIGSTOP, 0) => libc::SIGSTOP,
                (signal, _) => {
                    self.flight = None;
                    return Err(RemoteError::Fault { tid, signal });
                }
            };
            self.ptrace("PTRACE_CONT", |tid| ptrace::cont(tid, deliver))?;
        }
    }

    /// Tries to get hold of a thread again whose call did not come back.
    async fn catch(&mut self) -> Result<(), RemoteError> {
        const GRACE: Duration = Duration::from_millis(200);
        self.ptrace("PTRACE_INTERRUPT", ptrace::interrupt)?;
        self.await_stop(0, Instant::now() + GRACE).await?;
        self.park_registers()?;
        self.state = State::AtExit;
        Ok(())
    }

    fn park_registers(&mut self) -> Result<(), RemoteError> {
        let parked = arch::parked(self.target.settled, self.around.gadgets.syscall, self.home);
        self.ptrace("PTRACE_SETREGSET", |tid| ptrace::set_regs(tid, &parked))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Err(error) = block_on(self.settle()) {
            tracing::warn!(tid = self.target.tid.as_raw(), %error, "a remote session could not give its thread back");
        }
        self.target.busy.store(false, Ordering::Relaxed);
    }
}

fn choose_place(target: &Target<'_>, around: &Surroundings, need: usize) -> Option<Place> {
    place::choose(&around.vmas, target.resumed, need, |addr, len| read_part(around.pid, addr, len))
}

fn write_all(pid: Pid, addr: u64, bytes: &[u8]) -> Result<(), RemoteError> {
    let failed = |source| RemoteError::Memory { pid, access: "write", addr, len: bytes.len(), source };
    match process_vm::write(pid, addr, bytes) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(failed(Errno::EFAULT)),
        Err(errno) => Err(failed(errno)),
    }
}
