//! Many calls at one stroke, where the answers lie in memory.
//!
//! A chain of signal frames: each has the registers of one call, which returns into `rt_sigreturn` of the next frame, and
//! the last leads to the frame by which the thread heals. So the thread makes all calls by itself, without a stop
//! between them, and whatever becomes of the tracer it comes to its own state in the end. Where the calls are done it
//! sends itself a signal that means nothing to it, which its tracer is told of and takes away; without a tracer the kernel
//! drops it.
//!
//! A stop and a start cost ten times as much as such a call, and a process is asked seventy.

use std::time::Instant;

use godwit_wire::fault;
use nix::errno::Errno;

use super::{ALL_SIGNALS, Flight, RemoteError, Scratch, Session, State};
use crate::remote::arch;
use crate::remote::waiting::block_on;
use crate::sys::ptrace;

/// Most bytes that a call may answer with.
pub const ANSWER_BYTES: usize = 32;

/// What lies where an answer is to come. No call answers so: these are no address, no time and no small number.
const NO_ANSWER: u8 = 0xa5;

/// A call that answers in memory.
#[derive(Clone, Copy, Debug)]
pub struct Telling {
    /// Its number (`libc::SYS_*`).
    pub nr: i64,
    /// Its arguments, but for that one.
    pub args: [u64; 6],
    /// Which of them is the address of the answer.
    pub at: usize,
    /// Bytes of the answer, 1 to [`ANSWER_BYTES`].
    pub len: usize,
}

impl Telling {
    fn with_answer_at(&self, addr: u64) -> [u64; 6] {
        let mut args = self.args;
        args[self.at] = addr;
        args
    }

    /// The answer, if there is one; what is behind it is zero.
    fn answer(&self, bytes: &[u8]) -> Option<[u64; ANSWER_BYTES / 8]> {
        let (answer, _) = bytes.split_at(self.len.min(bytes.len()));
        if answer.iter().all(|byte| *byte == NO_ANSWER) {
            return None;
        }
        let mut words = [0u64; ANSWER_BYTES / 8];
        for (word, part) in words.iter_mut().zip(answer.chunks(8)) {
            *word = part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Some(words)
    }
}

/// What came of such a call: the answer as words, or an error number.
pub type Told = Result<[u64; ANSWER_BYTES / 8], Errno>;

impl Session<'_> {
    /// [`Session::tell`], waited for.
    ///
    /// # Errors
    /// As [`Session::tell`].
    pub fn told(&mut self, calls: &[Telling]) -> Result<Vec<Told>, RemoteError> {
        block_on(self.tell(calls))
    }

    /// Whether it makes them at one stroke.
    pub fn tells_at_one_stroke(&self) -> bool {
        self.bell().is_some()
    }

    /// Makes calls that answer in memory, and that nothing but an error number could come of; the answers in order, as
    /// words, or that number.
    ///
    /// At one stroke where that is possible: see the room's first page. For calls of the kind that [`Session::call`] is
    /// for, and only while all threads of the process are stopped.
    ///
    /// # Errors
    /// As [`Session::call`], but for error numbers.
    pub async fn tell(&mut self, calls: &[Telling]) -> Result<Vec<Told>, RemoteError> {
        let scratch = self.scratch()?;
        let mut told = Vec::with_capacity(calls.len());
        let at_once = (scratch.len / (ANSWER_BYTES + arch::LINK_BYTES)).saturating_sub(1);
        let Some(signal) = self.bell().filter(|_| at_once > 0) else {
            for call in calls {
                told.push(self.tell_one(call, scratch).await?);
            }
            return Ok(told);
        };
        for part in calls.chunks(at_once) {
            let answers = self.chain(part, signal, scratch).await?;
            for (call, answer) in part.iter().zip(answers) {
                // By itself it says why.
                told.push(match answer {
                    Some(answer) => Ok(answer),
                    None => self.tell_one(call, scratch).await?,
                });
            }
        }
        Ok(told)
    }

    async fn tell_one(&mut self, call: &Telling, scratch: Scratch) -> Result<Told, RemoteError> {
        self.write(scratch.addr, &[0; ANSWER_BYTES])?;
        match self.call(call.nr, call.with_answer_at(scratch.addr)).await {
            Ok(_) => {}
            Err(RemoteError::Call { errno, .. }) => return Ok(Err(errno)),
            Err(error) => return Err(error),
        }
        let mut bytes = [0; ANSWER_BYTES];
        self.read(scratch.addr, &mut bytes)?;
        Ok(Ok(call.answer(&bytes).unwrap_or_default()))
    }

    /// The signal that ends a chain, if the thread may make one.
    ///
    /// The signal is one that the kernel drops where nobody traces the thread: neither blocked nor handled. A chain makes
    /// the kernel forget how an interrupted call is to go on, and under seccomp each call of it would be judged should
    /// the tracer die.
    fn bell(&self) -> Option<i32> {
        /// Dropped unless they are handled (`man 7 signal`). SIGCONT is not among them: it takes stop signals away.
        const DROPPED: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
        let (target, signals) = (&self.target, &self.target.status.signals);
        let may_chain =
            self.around.gadgets.returns && target.status.seccomp == 0 && !arch::is_remembered(target.resumed);
        let is_free = |signal: &&i32| (signals.caught | target.sigmask) & 1 << (**signal - 1) == 0;
        DROPPED.iter().find(is_free).copied().filter(|_| may_chain)
    }

    /// One chain, from parked to parked; no answer where a call failed.
    async fn chain(
        &mut self,
        calls: &[Telling],
        signal: i32,
        scratch: Scratch,
    ) -> Result<Vec<Option<[u64; ANSWER_BYTES / 8]>>, RemoteError> {
        self.back().await?;
        if !matches!(self.state, State::Fresh | State::AtExit) {
            return Err(RemoteError::Died { tid: self.target.tid });
        }
        let answers = vec![NO_ANSWER; calls.len() * ANSWER_BYTES];
        let first = scratch.addr + answers.len() as u64;
        self.write(scratch.addr, &[answers, self.links(calls, signal, scratch.addr, first)].concat())?;
        fault::point("mid.remote.chain")?;
        let (settled, syscall) = (self.target.settled, self.around.gadgets.syscall);
        let parked = arch::parked(settled, syscall, first);
        self.ptrace("PTRACE_SETREGSET", |tid| ptrace::set_regs(tid, &parked))?;
        self.ptrace("PTRACE_CONT", |tid| ptrace::cont(tid, 0))?;
        self.flight = Some(Flight::Chain(signal));
        self.land_chain(signal).await?;
        fault::point("mid.remote.chained")?;
        let mut bytes = vec![0; calls.len() * ANSWER_BYTES];
        self.read(scratch.addr, &mut bytes)?;
        Ok(calls.iter().zip(bytes.chunks(ANSWER_BYTES)).map(|(call, bytes)| call.answer(bytes)).collect())
    }

    /// The frames of a chain, the first of them at `first`.
    fn links(&self, calls: &[Telling], signal: i32, answers: u64, first: u64) -> Vec<u8> {
        let mask = ALL_SIGNALS & !(1 << (signal - 1));
        // Its id in its own pid namespace.
        let inside = self.target.status.ns_pid.last().copied().unwrap_or(self.target.status.pid);
        let made = calls
            .iter()
            .enumerate()
            .map(|(index, call)| (call.nr, call.with_answer_at(answers + (index * ANSWER_BYTES) as u64)));
        let bell = (libc::SYS_tkill, [inside as u64, signal as u64, 0, 0, 0, 0]);
        let mut bytes = Vec::with_capacity((calls.len() + 1) * arch::LINK_BYTES);
        for (index, (nr, args)) in made.chain([bell]).enumerate() {
            let behind = first + ((index + 1) * arch::LINK_BYTES) as u64;
            let next = if index == calls.len() { self.home } else { behind };
            let regs = arch::link(self.target.settled, nr as u64, args, self.around.gadgets.syscall, next);
            bytes.extend_from_slice(&self.frame.link_bytes(self.home, self.restorer, &regs, mask));
        }
        bytes
    }

    /// Waits for the end of a chain, and parks the thread there.
    pub(super) async fn land_chain(&mut self, bell: i32) -> Result<(), RemoteError> {
        let tid = self.target.tid;
        let deadline = Instant::now() + super::CALL_LIMIT;
        loop {
            let deliver = match self.await_stop(libc::SYS_tkill, deadline).await? {
                (signal, 0) if signal == bell => {
                    let regs = self.ptrace("PTRACE_GETREGSET", ptrace::regs)?;
                    if regs.rsp == self.home {
                        break;
                    }
                    // Somebody else's: it is dropped.
                    0
                }
                (_, ptrace::EVENT_STOP) => 0,
                (libc::SIGSTOP, 0) => libc::SIGSTOP,
                (signal, _) => {
                    self.flight = None;
                    return Err(RemoteError::Fault { tid, signal });
                }
            };
            self.ptrace("PTRACE_CONT", |tid| ptrace::cont(tid, deliver))?;
        }
        (self.flight, self.state) = (None, State::AtExit);
        self.park_registers()?;
        self.ptrace("PTRACE_SETSIGMASK", |tid| ptrace::set_sigmask(tid, ALL_SIGNALS))
    }
}
