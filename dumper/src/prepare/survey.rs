//! Everything about a process that decides whether it can be dumped, looked at without touching it.
//!
//! `godwit doctor` prints it, a dump asks it before anything is touched, and under freeze it is asked again:
//! the process may have changed meanwhile.

use nix::unistd::Pid;

use crate::collect::{file_locks, lsm, namespaces, seccomp, sharing};
use crate::error::DumpError;
use crate::prepare::root::Root;
use crate::prepare::{breakpoints, losses};
use crate::procfs::maps::{self, Vma};
use crate::procfs::{cgroup, stat, status, tree};
use crate::refusal::{Findings, Loss, Subject};
use crate::task::files::{self, Descriptor, ghost, memfd};
use crate::task::vmas::Guards;
use crate::task::{settings, shmem, special, vmas};

/// What the process looks like from outside, before anything is touched.
#[derive(Debug)]
pub struct Seen {
    /// Its descriptors, duplicated.
    pub descriptors: Vec<Descriptor>,
    /// Its mappings.
    pub vmas: Vec<Vma>,
    /// Its guard regions.
    pub guards: Guards,
}

/// Looks at everything, for `godwit doctor`.
///
/// # Errors
/// When the process ended, or may not be looked at.
pub fn survey(root: &Root) -> Result<Findings, DumpError> {
    let mut findings = Findings::default();
    let seen = look(root, &mut findings)?;
    descriptors(root, &seen.descriptors, &mut findings)?;
    mappings(root, &seen.vmas, &mut findings)?;
    one_cgroup(root, &mut findings)?;
    memory(root.pid, &seen.vmas, &mut findings)?;
    losses::of_placement(root.pid, &mut findings);
    seen.guards.losses(root.pid, None, &mut findings);
    Ok(findings)
}

/// Reads what is needed and checks all but descriptors and mappings.
///
/// # Errors
/// As [`survey`].
pub fn look(root: &Root, findings: &mut Findings) -> Result<Seen, DumpError> {
    let vmas = maps::read_with_flags(root.pid)?;
    let guards = Guards::look(root.pid, &vmas)?;
    let seen = Seen { descriptors: files::open_all(root.pid, &root.pidfd)?, vmas, guards };
    file_locks::check_mapped(root.pid, &seen.descriptors, &seen.vmas, findings);
    shmem::sharers(root.pid, &seen.vmas, &seen.descriptors, findings);
    breakpoints::check(root.pid, &status::read(root.pid)?, &seen.vmas, findings)?;
    shmem::check(root.pid, &seen.vmas, &seen.descriptors, findings);
    deleted_files(root.pid, &seen, findings);
    process(root.pid, findings)?;
    sharing::check_all(root.pid, findings)?;
    seccomp(root.pid, findings)?;
    lsm(root.pid, findings)?;
    namespaces::check(root.pid, findings)?;
    namespaces::check_threads(root.pid, findings)?;
    Ok(seen)
}

/// What all deleted files hold together. Under freeze it is seen as they are copied.
fn deleted_files(pid: Pid, seen: &Seen, findings: &mut Findings) {
    let open = seen.descriptors.iter().map(|descriptor| descriptor.stat);
    let open = open.filter(|stat| ghost::is_deleted_file(stat) && !memfd::is_memory(stat));
    let mapped = seen.vmas.iter().filter_map(|vma| vmas::deleted_file(pid, vma));
    ghost::check_all(pid, open.chain(mapped), findings);
}

/// What a restore drops of the memory, but for guard regions, where that depends on who restores. The mappings must
/// have their VmFlags.
///
/// # Errors
/// When `/proc` does not tell.
pub fn memory(pid: Pid, vmas: &[Vma], findings: &mut Findings) -> Result<(), DumpError> {
    losses::of_mappings(pid, vmas, findings);
    Ok(losses::of_address_space(pid, findings)?)
}

/// Ends the look before the freeze: refusals are errors, and so are losses and risks when `strict`. Risks are
/// otherwise warned of.
///
/// # Errors
/// [`DumpError::Refused`].
pub fn verdict(mut findings: Findings, strict: bool) -> Result<Vec<Loss>, DumpError> {
    if strict {
        for loss in std::mem::take(&mut findings.losses) {
            findings.refuse(loss.subject, loss.what, "leave --strict out to lose it");
        }
        for risk in std::mem::take(&mut findings.risks) {
            findings.refuse(risk.subject, risk.what, "leave --strict out to run the risk");
        }
    }
    findings.risks.iter().for_each(|risk| tracing::warn!("{risk}"));
    Ok(findings.verdict()?)
}

/// Ends a look under freeze: [`verdict`] on what was not known before.
///
/// # Errors
/// As [`verdict`].
pub fn late_verdict(mut late: Findings, known: &[Loss], strict: bool) -> Result<Vec<Loss>, DumpError> {
    late.losses.retain(|loss| !known.contains(loss));
    verdict(late, strict)
}

/// Looks at the mappings again under freeze.
///
/// # Errors
/// [`DumpError::Refused`] for one that cannot be dumped and was not there before.
pub fn late_mappings(root: &Root, vmas: &[Vma]) -> Result<(), DumpError> {
    let mut late = Findings::default();
    mappings(root, vmas, &mut late)?;
    late.verdict()?;
    Ok(())
}

/// What concerns the process as a whole: session, children, tracer, personality.
///
/// # Errors
/// When `/proc` does not tell.
pub fn process(pid: Pid, findings: &mut Findings) -> Result<(), DumpError> {
    let stat = stat::read(pid)?;
    let status = status::read(pid)?;
    let subject = || Subject::Process(pid);
    if stat.is_zombie() {
        return Err(DumpError::Died { pid });
    }
    if status.tracer_pid != 0 && status.tracer_pid != Pid::this().as_raw() {
        findings.refuse(
            subject(),
            format!("process {} traces it (a debugger?)", status.tracer_pid),
            "end the tracer first",
        );
    }
    if status.ns_sid.last() != status.ns_pid.last() {
        findings.refuse(
            subject(),
            format!("it is not the leader of its session ({})", stat.session),
            "start the program with `setsid`, its input and output on files or /dev/null",
        );
    }
    if stat.tty_nr != 0 {
        findings.refuse(
            subject(),
            "it has a controlling terminal",
            "start the program with `setsid`, its input and output on files or /dev/null",
        );
    }
    if status.ns_pid.len() > 1 && status.ns_pid.last() == Some(&1) {
        findings.refuse(
            subject(),
            "it is the first process of a pid namespace",
            "containers are not dumped yet; name a process inside",
        );
    }
    if status.shadow_stack {
        findings.refuse(subject(), "it runs with a shadow stack", "run it without shadow stacks");
    }
    for tid in tree::threads(pid)? {
        for child in tree::children(pid, tid)? {
            findings.refuse(
                subject(),
                format!("it has a child, process {child}, and only single processes are dumped"),
                "wait until the child has ended",
            );
        }
    }
    pending_trap(pid, findings)?;
    if crate::procfs::attr::personality(pid)? != 0 {
        findings.lose(subject(), "its personality (see man 2 personality) is not restored by CRIU");
    }
    settings::of_process(pid, &stat, findings);
    settings::timers(pid, findings)?;
    Ok(())
}

/// A pending SIGTRAP: restore traces the process, and takes it for its own.
fn pending_trap(pid: Pid, findings: &mut Findings) -> Result<(), DumpError> {
    const TRAP: u64 = 1 << (libc::SIGTRAP - 1);
    for tid in tree::threads(pid)? {
        let signals = match status::read_thread(pid, tid) {
            Ok(status) => status.signals,
            Err(error) if error.is_gone() && tid != pid => continue,
            Err(error) => return Err(error.into()),
        };
        let shared = if tid == pid { signals.shared_pending } else { 0 };
        // One that is not blocked is about to be taken.
        if (signals.pending | shared) & signals.blocked & TRAP != 0 {
            findings.refuse(
                Subject::Thread(tid),
                "it has a blocked SIGTRAP pending, which CRIU's restore cannot give back",
                "let the program take the signal first",
            );
        }
    }
    Ok(())
}

/// Seccomp, scheduling and what else is each thread's own.
///
/// # Errors
/// When `/proc` does not tell. A thread that ended meanwhile is left out.
pub fn seccomp(pid: Pid, findings: &mut Findings) -> Result<(), DumpError> {
    let own = status::read(Pid::this())?;
    for tid in tree::threads(pid)? {
        match status::read_thread(pid, tid) {
            Ok(status) => {
                seccomp::check(tid, &status, &own, findings);
                settings::of_thread(tid, &status, &own, findings);
            }
            Err(error) if error.is_gone() && tid != pid => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a thread runs under seccomp filters.
///
/// # Errors
/// When the threads cannot be listed.
pub fn has_filters(pid: Pid) -> Result<bool, DumpError> {
    const FILTERS: u32 = 2;
    let has = |tid: &Pid| status::read_thread(pid, *tid).is_ok_and(|status| status.seccomp == FILTERS);
    Ok(tree::threads(pid)?.iter().any(has))
}

/// Security labels of each thread.
///
/// # Errors
/// When the threads cannot be listed.
pub fn lsm(pid: Pid, findings: &mut Findings) -> Result<(), DumpError> {
    for tid in tree::threads(pid)? {
        lsm::check(tid, findings);
    }
    Ok(())
}

/// Descriptors: kinds, paths, locks. Watches (inotify, fanotify) are among what is refused, so no path cache is
/// needed for them.
///
/// # Errors
/// Never; the signature is that of every check.
pub fn descriptors(root: &Root, all: &[Descriptor], findings: &mut Findings) -> Result<(), DumpError> {
    files::check_all(root.pid, all, root.ghost_limit, findings);
    file_locks::check(root.pid, all, findings);
    Ok(())
}

/// Mappings, the executable, working and root directory. A task without a vDSO would have no place for the system
/// calls that we need it to make.
///
/// # Errors
/// Never; the signature is that of every check.
pub fn mappings(root: &Root, vmas: &[Vma], findings: &mut Findings) -> Result<(), DumpError> {
    if !vmas.iter().any(Vma::is_vdso) {
        findings.refuse(Subject::Process(root.pid), "it has no vDSO", "boot without vdso=0");
    }
    vmas::check_all(root.pid, vmas, root.ghost_limit, findings);
    special::check_all(root.pid, root.ghost_limit, findings);
    Ok(())
}

/// All threads must be in the cgroups of their process: a restore puts them where `criu` runs, together.
///
/// # Errors
/// When `/proc` does not tell. A thread that ended meanwhile is left out.
pub fn one_cgroup(root: &Root, findings: &mut Findings) -> Result<(), DumpError> {
    let of_process = cgroup::read(root.pid)?;
    for tid in tree::threads(root.pid)? {
        match cgroup::read_thread(root.pid, tid) {
            Ok(of_thread) if of_thread == of_process => {}
            Ok(_) => findings.refuse(
                Subject::Thread(tid),
                "it is in other cgroups than its process (threaded cgroups)",
                "move it back to the cgroup of its process",
            ),
            Err(error) if error.is_gone() && tid != root.pid => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
