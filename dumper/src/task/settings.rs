//! Settings of a process and its threads that CRIU's images have no field for: each that is not what a restored
//! process gets by itself is a loss, named here. A few that a restore would fail on are refused.
//!
//! What a restored process gets is what `criu` hands on: for most settings the kernel's default, for the others the
//! dumper's own value is taken for it, since both are started alike.

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::procfs::stat::{self, Stat};
use crate::procfs::status::Status;
use crate::procfs::{attr, tree};
use crate::refusal::{Findings, Subject};
use crate::sys::sched::{self, SchedAttr};

/// Timer slack of a thread that never set one, in nanoseconds (init/init_task.c).
const TIMER_SLACK_NS: u64 = 50_000;

/// Looks at one thread from outside. `own` is the dumper's own status.
pub fn of_thread(tid: Pid, status: &Status, own: &Status, findings: &mut Findings) {
    let lose = |findings: &mut Findings, what: String| findings.lose(Subject::Thread(tid), what);
    // A thread that ends meanwhile answers nothing, and nothing of it is lost.
    let attr = sched::attr(tid).unwrap_or_default();
    refuse_policy(tid, &attr, findings);
    if let Some(clamps) = clamps(&attr) {
        lose(findings, format!("its utilisation clamps ({clamps}) are not restored"));
    }
    if let Ok(priority) = sched::io_priority(tid)
        && priority >> IOPRIO_CLASS_SHIFT != IOPRIO_CLASS_NONE
        && !is_io_default(priority, &attr)
    {
        let (class, data) = (priority >> IOPRIO_CLASS_SHIFT, priority & ((1 << IOPRIO_CLASS_SHIFT) - 1));
        lose(findings, format!("its I/O priority (class {class}, level {data}) is not restored"));
    }
    if !own.cpus_allowed.is_empty() && status.cpus_allowed != own.cpus_allowed {
        let cpus = String::from_utf8_lossy(&status.cpus_allowed).into_owned();
        lose(findings, format!("its CPU affinity (mask {cpus}) is not restored: it gets that of `criu`"));
    }
    let is_realtime = [libc::SCHED_FIFO, libc::SCHED_RR].contains(&(attr.policy as i32));
    match attr::timer_slack_ns(tid) {
        // Kernels since 6.12 give real-time threads none.
        Ok(0) if is_realtime => {}
        Ok(TIMER_SLACK_NS) | Err(_) => {}
        Ok(slack) => lose(findings, format!("its timer slack ({slack} ns) is not restored")),
    }
    for (name, value, default) in [
        ("Speculation_Store_Bypass", &status.store_bypass, &own.store_bypass),
        ("SpeculationIndirectBranch", &status.indirect_branch, &own.indirect_branch),
    ] {
        // Where the kernel makes the bypass a matter of seccomp, its filters do it again at the restore.
        let by_filters = status.seccomp == 2 && value.ends_with(b"force mitigated");
        if value != default && !by_filters {
            let value = String::from_utf8_lossy(value).into_owned();
            lose(findings, format!("its speculation control ({name}: {value}) is not restored"));
        }
    }
    if sched::core_cookie(tid).is_ok_and(|cookie| cookie != 0) {
        lose(findings, "its core scheduling group (PR_SCHED_CORE) is not restored".to_owned());
    }
}

/// Refuses a thread whose scheduling CRIU would not restore. For the freeze, where no loss is looked for again.
pub fn check_policy(tid: Pid, findings: &mut Findings) {
    refuse_policy(tid, &sched::attr(tid).unwrap_or_default(), findings);
}

fn refuse_policy(tid: Pid, attr: &SchedAttr, findings: &mut Findings) {
    let why = match attr.policy as i32 {
        libc::SCHED_DEADLINE => "it is scheduled by deadline, which CRIU's images cannot hold",
        SCHED_EXT => "it is scheduled by a BPF scheduler (SCHED_EXT), which CRIU does not restore",
        _ => return,
    };
    findings.refuse(Subject::Thread(tid), why, "give it another policy with `chrt`");
}

/// A scheduling policy made by BPF (include/uapi/linux/sched.h, Linux 6.12).
const SCHED_EXT: i32 = 7;
// include/uapi/linux/ioprio.h
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASS_NONE: u32 = 0;
const IOPRIO_CLASS_RT: u32 = 1;
const IOPRIO_CLASS_BE: u32 = 2;
const IOPRIO_CLASS_IDLE: u32 = 3;

/// Whether an I/O priority is the one that the kernel derives from the scheduling of a thread that set none.
fn is_io_default(priority: u32, attr: &SchedAttr) -> bool {
    let class = match attr.policy as i32 {
        libc::SCHED_IDLE => IOPRIO_CLASS_IDLE,
        libc::SCHED_FIFO | libc::SCHED_RR => IOPRIO_CLASS_RT,
        _ => IOPRIO_CLASS_BE,
    };
    // task_nice_ioprio in include/linux/ioprio.h; a thread without an I/O context has level 4 (IOPRIO_BE_NORM).
    let level = (attr.nice + 20) / 5;
    let is = |class: u32, level: u32| priority == class << IOPRIO_CLASS_SHIFT | level;
    is(class, level as u32) || is(IOPRIO_CLASS_BE, 4)
}

/// The utilisation clamps of a thread that set some.
fn clamps(attr: &SchedAttr) -> Option<String> {
    const MAX: u32 = 1024;
    // Both are zero on a kernel without clamps (CONFIG_UCLAMP_TASK); real-time threads ask for the most by themselves.
    let is_realtime = [libc::SCHED_FIFO, libc::SCHED_RR].contains(&(attr.policy as i32));
    let min_is_default = attr.util_min == 0 || is_realtime && attr.util_min == MAX;
    let is_default = attr.util_max == 0 && attr.util_min == 0 || attr.util_max == MAX && min_is_default;
    (!is_default).then(|| format!("{} to {}", attr.util_min, attr.util_max))
}

/// Looks at the process as a whole from outside.
pub fn of_process(pid: Pid, stat: &Stat, findings: &mut Findings) {
    let mut lose = |what: String| findings.lose(Subject::Process(pid), what);
    if let (Ok(filter), Ok(own)) = (attr::coredump_filter(pid), attr::coredump_filter(Pid::this()))
        && filter != own
    {
        lose(format!("its choice of memory for core dumps (coredump_filter {filter:#x}) is not restored"));
    }
    if let Ok(nice) = attr::autogroup_nice(pid)
        && nice != 0
    {
        lose(format!("the nice value of its session ({nice}, /proc/PID/autogroup) is not restored"));
    }
    if stat.flags & stat::PF_MEMALLOC_NOIO != 0 {
        lose("its state as an I/O flusher (PR_SET_IO_FLUSHER) is not restored".to_owned());
    }
    if stat.flags & (stat::PF_MCE_PROCESS | stat::PF_MCE_EARLY) != 0 {
        lose("its memory failure policy (PR_MCE_KILL) is not restored".to_owned());
    }
}

/// What the first thread says of settings that only it can tell, where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `PR_GET_TSC`: 2 when reading the time stamp counter ends the thread.
    pub tsc: Option<u32>,
    /// `ARCH_GET_CPUID`: 0 when the CPUID instruction ends the thread.
    pub cpuid: Option<u64>,
    /// `PR_GET_MDWE`: bit 0 when memory may not become executable.
    pub mdwe: Option<u64>,
    /// `PR_GET_MEMORY_MERGE`: 1 when all new memory is looked through for equal pages.
    pub memory_merge: Option<u64>,
    /// `PR_GET_THP_DISABLE`: bit 0 when huge pages are off, bit 1 but for memory that asks for them.
    pub thp_disable: u64,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u64,
    /// Whether it has a thread or process keyring.
    pub has_keyring: bool,
}

/// What is lost of a process that made `PR_SET_MEMORY_MERGE`.
pub const MERGING_LOST: &str = "its wish to have all new memory merged (PR_SET_MEMORY_MERGE) is not restored; what it has now stays mergeable";

/// `PR_TSC_SIGSEGV` (include/uapi/linux/prctl.h).
const TSC_SIGSEGV: u32 = 2;
/// `PR_THP_DISABLE_EXCEPT_ADVISED` (include/uapi/linux/prctl.h, Linux 6.18).
const THP_EXCEPT_ADVISED: u64 = 2;

/// Names what of that a restore drops. Strict seccomp forbids the time stamp counter by itself, and does so again.
pub fn of_asked(pid: Pid, asked: &Asked, is_strict: bool, findings: &mut Findings) {
    let mut lose = |what: &str| findings.lose(Subject::Process(pid), what);
    if asked.tsc == Some(TSC_SIGSEGV) && !is_strict {
        lose("its ban on reading the time stamp counter (PR_SET_TSC) is not restored");
    }
    if asked.cpuid == Some(0) {
        lose("its ban on the CPUID instruction (ARCH_SET_CPUID) is not restored");
    }
    if asked.mdwe.is_some_and(|bits| bits != 0) {
        lose("its ban on memory that becomes executable (PR_SET_MDWE) is not restored");
    }
    if asked.memory_merge == Some(1) {
        lose(MERGING_LOST);
    }
    if asked.thp_disable & THP_EXCEPT_ADVISED != 0 {
        lose("transparent huge pages will be off for memory that asks for them too (PR_SET_THP_DISABLE)");
    }
    if asked.dumpable == 2 {
        lose("its dumpable flag 2 becomes 0 where the destination's fs.suid_dumpable is not 2");
    }
    if asked.has_keyring {
        lose("its thread and process keyrings are not restored");
    }
}

/// Names what comes of a thread's parent death signal (`PR_GET_PDEATHSIG`, 0 for none). CRIU restores it, and is the
/// parent of what it restores.
pub fn of_death_signal(tid: Pid, signal: u32, findings: &mut Findings) {
    if signal != 0 {
        let name = i32::try_from(signal).ok().and_then(|number| Signal::try_from(number).ok());
        let name = name.map_or_else(|| format!("signal {signal}"), |name| name.as_str().to_owned());
        findings.lose(
            Subject::Thread(tid),
            format!("its parent death signal ({name}) is sent to it when `criu restore -d` ends"),
        );
    }
}

/// Refuses timers whose notified thread has ended: the images name that thread, and CRIU cannot find it either.
///
/// # Errors
/// When the threads or timers cannot be listed.
pub fn timers(pid: Pid, findings: &mut Findings) -> Result<(), crate::procfs::ProcfsError> {
    let timers = crate::procfs::timers::read(pid)?;
    if timers.iter().all(|timer| !timer.to_thread) {
        return Ok(());
    }
    let threads = tree::threads(pid)?;
    for timer in timers.iter().filter(|timer| timer.to_thread) {
        if !threads.contains(&Pid::from_raw(timer.target)) {
            findings.refuse(
                Subject::Process(pid),
                format!("its POSIX timer {} signals a thread that has ended", timer.id),
                "delete the timer before its thread ends",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(policy: i32, nice: i32) -> SchedAttr {
        SchedAttr { policy: policy as u32, nice, ..SchedAttr::default() }
    }

    #[test]
    fn clamps_are_lost_only_where_they_were_set() {
        let clamped = |policy, util_min, util_max| {
            clamps(&SchedAttr { util_min, util_max, ..attr(policy, 0) }).is_some()
        };
        assert!(!clamped(libc::SCHED_OTHER, 0, 0));
        assert!(!clamped(libc::SCHED_OTHER, 0, 1024));
        assert!(!clamped(libc::SCHED_FIFO, 1024, 1024));
        assert!(clamped(libc::SCHED_OTHER, 1024, 1024));
        assert!(clamped(libc::SCHED_OTHER, 0, 512));
        assert!(clamped(libc::SCHED_RR, 128, 1024));
    }

    #[test]
    fn derived_io_priorities_are_no_loss() {
        let be = |level| IOPRIO_CLASS_BE << IOPRIO_CLASS_SHIFT | level;
        assert!(is_io_default(be(4), &attr(libc::SCHED_OTHER, 0)));
        assert!(is_io_default(be(5), &attr(libc::SCHED_OTHER, 7)));
        assert!(!is_io_default(be(7), &attr(libc::SCHED_OTHER, 7)));
        assert!(is_io_default(IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT | 4, &attr(libc::SCHED_IDLE, 0)));
        assert!(!is_io_default(IOPRIO_CLASS_RT << IOPRIO_CLASS_SHIFT, &attr(libc::SCHED_OTHER, 0)));
    }

    #[test]
    fn what_the_task_says_is_lost_where_it_is_not_the_default() {
        let losses = |asked: Asked, is_strict| {
            let mut findings = Findings::default();
            of_asked(Pid::this(), &asked, is_strict, &mut findings);
            findings.losses.len()
        };
        let default = Asked {
            tsc: Some(1),
            cpuid: Some(1),
            mdwe: Some(0),
            memory_merge: Some(0),
            thp_disable: 1,
            dumpable: 1,
            has_keyring: false,
        };
        assert_eq!(losses(default, false), 0);
        assert_eq!(losses(Asked::default(), false), 0);
        assert_eq!(losses(Asked { tsc: Some(2), ..default }, true), 0);
        let all = Asked {
            tsc: Some(2),
            cpuid: Some(0),
            mdwe: Some(1),
            memory_merge: Some(1),
            thp_disable: 3,
            dumpable: 2,
            has_keyring: true,
        };
        assert_eq!(losses(all, false), 7);
    }
}
