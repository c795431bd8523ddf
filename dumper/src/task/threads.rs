//! One thread of a task, as `core-TID.img` holds it.

use nix::unistd::Pid;

use godwit_wire::image::core::{CoreEntry, CoreMachine, ThreadCoreEntry};
use godwit_wire::image::core_x86::UserDescT;
use godwit_wire::image::rseq::RseqEntry;
use godwit_wire::image::siginfo::SignalQueueEntry;

use super::asked::ThreadSays;
use super::{core, creds, signals};
use crate::collect::seccomp;
use crate::error::DumpError;
use crate::freeze::seize::Thread as Stopped;
use crate::prepare::cpu::{self, XsaveLayout};
use crate::procfs::attr;
use crate::refusal::{Findings, Subject};
use crate::sys::ptrace::{Regs, SignalQueue};
use crate::sys::sched;

/// The cgroup set of the dumper, which the task is said to be in: restore leaves it where `criu` runs.
pub const CG_SET: u32 = 1;

/// A thread's record, and its id in its own pid namespace.
#[derive(Debug)]
pub struct Thread {
    /// Its id in its own pid namespace: the number in the image's name.
    pub inside: u32,
    /// The record; a leader's lacks the part of the task.
    pub core: CoreEntry,
}

/// What a stopped thread was asked, and what only its tracer is told.
#[derive(Clone, Debug)]
pub struct Told {
    /// What it said itself.
    pub says: ThreadSays,
    /// Signals that are pending for it alone.
    pub pending: SignalQueueEntry,
    /// The thread-local entries of its GDT.
    tls: Vec<UserDescT>,
}

impl Told {
    /// Adds what its tracer is told. All remote calls in it must have ended.
    ///
    /// # Errors
    /// When the kernel refuses to tell something.
    pub fn of(says: ThreadSays) -> Result<Told, DumpError> {
        let tid = says.tid;
        let pending = signals::pending(tid, SignalQueue::Private)?;
        let tls = core::tls(tid)
            .map_err(|errno| DumpError::sys(format!("thread {tid}"), "PTRACE_GET_THREAD_AREA", errno))?;
        Ok(Told { says, pending, tls })
    }
}

/// Builds the record of a stopped thread.
///
/// `regs` are its registers with what pending signals make of its call.
///
/// # Errors
/// When the kernel refuses to tell something, or the thread's state does not fit the image format.
pub fn dump(
    pid: Pid,
    stopped: &Stopped,
    told: &Told,
    regs: &Regs,
    layout: &XsaveLayout,
    seccomp: seccomp::OfThread,
) -> Result<Thread, DumpError> {
    let tid = stopped.tid;
    let failed = |what| move |errno| DumpError::sys(format!("thread {tid}"), what, errno);
    if cpu::holds_tile_data(&stopped.xstate) {
        let mut findings = Findings::default();
        findings.refuse(
            Subject::Thread(tid),
            "it holds AMX tile data, which CRIU's images have no field for",
            "migrate while the program is outside its AMX work",
        );
        return Err(DumpError::from_findings(findings));
    }
    let status = stopped.status(pid)?;
    let Told { says, pending: signals_p, tls } = told.clone();
    let info = core::thread_info(regs, &stopped.xstate, layout, says.clear_tid_addr, tls)
        .map_err(|error| DumpError::sys(format!("thread {tid}"), "reading its registers", bad(error)))?;
    let attr = sched::attr(tid).map_err(failed("sched_getattr"))?;
    let nice = sched::nice(tid).map_err(failed("getpriority"))?;
    let (futex_rla, futex_rla_len) = sched::robust_list(tid).map_err(failed("get_robust_list"))?;
    let thread_core = ThreadCoreEntry {
        futex_rla,
        futex_rla_len: futex_rla_len as u32,
        sched_nice: Some(nice),
        sched_policy: Some(sched::policy(tid).map_err(failed("sched_getscheduler"))? as u32),
        sched_prio: Some(attr.priority),
        blk_sigset: Some(stopped.sigmask),
        sas: Some(says.sas.clone()),
        pdeath_sig: Some(says.pdeath_sig),
        signals_p: Some(signals_p),
        creds: Some(creds::entry(status, says.securebits)),
        seccomp_mode: Some(seccomp.mode.into()),
        seccomp_filter: seccomp.filter,
        comm: Some(attr::comm(pid, tid)?),
        rseq_entry: stopped.rseq.as_ref().map(|rseq| RseqEntry {
            rseq_abi_pointer: rseq.abi_pointer,
            rseq_abi_size: rseq.abi_size,
            signature: rseq.signature,
            rseq_cs_pointer: None,
        }),
        cg_set: Some(CG_SET),
        ..ThreadCoreEntry::default()
    };
    let core = CoreEntry {
        mtype: CoreMachine::X8664.into(),
        thread_info: Some(info),
        thread_core: Some(thread_core),
        ..CoreEntry::default()
    };
    let inside = status.ns_pid.last().copied().unwrap_or(status.pid) as u32;
    Ok(Thread { inside, core })
}

fn bad(error: core::CoreError) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error)
}
