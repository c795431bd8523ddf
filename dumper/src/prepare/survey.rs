//! Everything about a process that decides whether it can be dumped, looked at without touching it.
//!
//! `godwit doctor` prints it, a dump asks it before anything is touched, and under freeze it is asked again:
//! the process may have changed meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::unistd::Pid;

use crate::collect::tree::{Task, Tree, Zombie, descends, places};
use crate::collect::{file_locks, lsm, namespaces, seccomp, sessions, sharing};
use crate::error::DumpError;
use crate::freeze::cgroup as freeze_cgroup;
use crate::interrupt;
use crate::parallel;
use crate::prepare::root::Root;
use crate::prepare::{breakpoints, losses};
use crate::procfs::maps::{self, Vma};
use crate::procfs::{ProcfsError, cgroup, stat, status, tree};
use crate::refusal::{Findings, Loss, Subject};
use crate::task::files::{self, Around, Descriptor, OfTree, ghost, memfd};
use crate::task::shmem::Holder;
use crate::task::vmas::{Checked, Guards};
use crate::task::{settings, shmem, special, vmas};

/// How often a tree of several processes is looked at until it shows nothing that stands against a dump: a child that
/// has not yet started its program shares memory with its parent, and has gone on a moment later.
const LOOKS_MAX: u32 = 10;
/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a process looks like from outside, before anything is touched.
#[derive(Debug)]
pub struct SeenTask {
    /// The process.
    pub task: Task,
    /// Its descriptors, duplicated.
    pub descriptors: Vec<Descriptor>,
    /// Its mappings.
    pub vmas: Vec<Vma>,
    /// Its guard regions.
    pub guards: Guards,
}

/// What the tree looks like from outside.
#[derive(Debug)]
pub struct Seen {
    /// Its living processes, the root first.
    pub tasks: Vec<SeenTask>,
    /// Those that have ended and were not waited for.
    pub zombies: Vec<Zombie>,
    /// All other processes of the machine.
    pub others: BTreeSet<Pid>,
}

impl Seen {
    /// Whether any process holds what its copy could not have beside it on the same kernel: file locks, named pipes, sockets
    /// with addresses, the numbers of pseudoterminals.
    pub fn is_bound(&self) -> bool {
        let is_bound =
            |one: &Descriptor| files::fifo::is(one) || files::unix::is_bound(one) || files::tty::is(one);
        self.tasks
            .iter()
            .any(|task| file_locks::any(&task.descriptors) || task.descriptors.iter().any(is_bound))
    }
}

/// Looks at everything, for `godwit doctor`.
///
/// # Errors
/// When the root ended, or a process may not be looked at.
pub fn survey(root: &Root) -> Result<Findings, DumpError> {
    let mut findings = Findings::default();
    let mut seen = look(root, false, &mut findings)?;
    descriptors(root, &mut seen, &mut findings)?;
    mappings_of(root, &mut seen, &mut findings)?;
    one_cgroup(root, &mut findings)?;
    frozen_cgroup(root, &root.cgroup()?, &mut findings);
    memory_of(&mut seen, &mut findings)?;
    for seen in &seen.tasks {
        seen.guards.losses(seen.task.pid, None, &mut findings);
    }
    Ok(findings)
}

/// [`look`], repeated for a moment while something stands against a dump of a tree of several processes: what is on its
/// way to another program or to its end has gone on then.
///
/// # Errors
/// As [`survey`].
pub fn look_patiently(root: &Root, shell_job: bool, findings: &mut Findings) -> Result<Seen, DumpError> {
    for _ in 1..LOOKS_MAX {
        let mut found = Findings::default();
        let seen = look(root, shell_job, &mut found)?;
        if found.refusals.is_empty() || seen.tasks.len() == 1 {
            findings.append(found);
            return Ok(seen);
        }
        interrupt::check()?;
        std::thread::sleep(LOOK_AGAIN);
    }
    look(root, shell_job, findings)
}

/// Reads what is needed of every process and checks all but descriptors and mappings. `shell_job` says that the root's
/// session may lie outside of the tree.
///
/// # Errors
/// As [`survey`].
pub fn look(root: &Root, shell_job: bool, findings: &mut Findings) -> Result<Seen, DumpError> {
    let tree = Tree::walk(root.pid)?;
    let zombies = zombies(&tree)?;
    zombies.iter().for_each(|zombie| zombie.losses(findings));
    let looked = parallel::each(tree.tasks, |task| {
        let mut found = Findings::default();
        let seen = look_at_one(task, root.pid, &mut found)?;
        Ok::<_, DumpError>((seen, found))
    })?;
    let mut tasks = Vec::with_capacity(looked.len());
    for (seen, found) in looked {
        findings.append(found);
        tasks.extend(seen);
    }
    let pids: Vec<Pid> = tasks.iter().map(|seen| seen.task.pid).collect();
    let inside: BTreeSet<Pid> = pids.iter().copied().collect();
    let others: BTreeSet<Pid> = tree::processes()?.into_iter().filter(|pid| !inside.contains(pid)).collect();
    // What the tree has made since it was listed is looked at under freeze.
    let outside: Vec<Pid> = others.iter().copied().filter(|pid| !descends(*pid, &inside)).collect();
    sharing::check(&pids, &outside, findings)?;
    namespaces::check_tree(&pids, findings)?;
    let places = places(tasks.iter().map(|seen| &seen.task), &zombies, &[]);
    sessions::check(&places, &|number| is_thread(&pids, number), shell_job, findings);
    let holders: Vec<_> = tasks.iter().map(SeenTask::holder).collect();
    shmem::sharers(&holders, findings);
    shmem::check(&holders, findings);
    deleted_files(root.pid, &tasks, findings);
    Ok(Seen { tasks, zombies, others })
}

impl SeenTask {
    fn holder(&self) -> Holder<'_> {
        Holder { pid: self.task.pid, vmas: &self.vmas, descriptors: &self.descriptors }
    }
}

/// Looks at one process of a tree, and for a moment again at one that shows something against a dump; `None` for one that
/// has ended since the tree was listed, and is none of what will be dumped.
fn look_at_one(task: Task, root: Pid, findings: &mut Findings) -> Result<Option<SeenTask>, DumpError> {
    if task.pid == Pid::this() {
        findings.refuse(
            Subject::Process(task.pid),
            "it is godwit itself, which cannot be a part of the tree that it stops",
            "start godwit from elsewhere (another session, `setsid -f`)",
        );
        return Ok(None);
    }
    let mut looks = 1;
    loop {
        let mut of_task = Findings::default();
        let looked = look_at(&task, &mut of_task);
        let is_in_order = looked.is_ok() && of_task.refusals.is_empty();
        if !is_in_order && task.pid != root && !task.lives() {
            return Ok(None);
        }
        if is_in_order || task.pid == root || looks == LOOKS_MAX {
            let (vmas, guards, descriptors) = looked?;
            findings.append(of_task);
            return Ok(Some(SeenTask { task, descriptors, vmas, guards }));
        }
        looks += 1;
        std::thread::sleep(LOOK_AGAIN);
    }
}

type Looked = (Vec<Vma>, Guards, Vec<Descriptor>);

fn look_at(task: &Task, findings: &mut Findings) -> Result<Looked, DumpError> {
    let pid = task.pid;
    let vmas = maps::read_with_flags(pid)?;
    let guards = Guards::look(pid, &vmas)?;
    let descriptors = files::open_all(pid, &task.pidfd)?;
    file_locks::check_mapped(pid, &descriptors, &vmas, findings);
    breakpoints::check(pid, &status::read(pid)?, &vmas, findings)?;
    process(pid, findings)?;
    seccomp(pid, findings)?;
    lsm(pid, findings)?;
    namespaces::check(pid, &namespaces::Own::read()?, findings)?;
    namespaces::check_threads(pid, findings)?;
    Ok((vmas, guards, descriptors))
}

/// Everything that is looked at of one process before the freeze, of one that came later.
///
/// # Errors
/// As [`survey`].
pub fn newcomer(task: &Task, findings: &mut Findings) -> Result<(), DumpError> {
    look_at(task, findings)?;
    losses::of_placement(task.pid, findings);
    Ok(())
}

fn zombies(tree: &Tree) -> Result<Vec<Zombie>, DumpError> {
    let mut found = Vec::new();
    for pid in &tree.zombies {
        found.extend(Zombie::read(*pid)?);
    }
    Ok(found)
}

/// Whether a number, in the pid namespace of a tree, is that of a thread which is not the first of its process.
///
/// A thread that ends meanwhile is none.
pub fn is_thread(tasks: &[Pid], number: u32) -> bool {
    let inside = |pid: Pid, tid: Pid| {
        let status = status::read_thread(pid, tid).ok()?;
        Some(status.ns_pid.last().copied().unwrap_or(status.pid) as u32)
    };
    tasks.iter().any(|pid| {
        let threads = tree::threads(*pid).unwrap_or_default();
        threads.into_iter().any(|tid| tid != *pid && inside(*pid, tid) == Some(number))
    })
}

/// What all deleted files hold together. Under freeze it is seen as they are copied.
fn deleted_files(root: Pid, tasks: &[SeenTask], findings: &mut Findings) {
    let open = tasks.iter().flat_map(|task| &task.descriptors).map(|descriptor| descriptor.stat);
    let open = open.filter(|stat| ghost::is_deleted_file(stat) && !memfd::is_memory(stat));
    let mapped = tasks.iter().flat_map(|seen| seen.vmas.iter().map(|vma| (seen.task.pid, vma)));
    let mapped = mapped.filter_map(|(pid, vma)| vmas::deleted_file(pid, vma));
    ghost::check_all(root, open.chain(mapped), findings);
}

impl Seen {
    /// Looks at each process for itself; at one below the root that shows something for a moment only, on its way to another
    /// program, again. One that has ended meanwhile is forgotten.
    fn each(
        &mut self,
        findings: &mut Findings,
        look: impl Fn(&SeenTask, &mut Findings) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        let is_alone = self.tasks.len() == 1;
        for (index, mut seen) in std::mem::take(&mut self.tasks).into_iter().enumerate() {
            let mut looks = 1;
            loop {
                let mut of_task = Findings::default();
                let looked = look(&seen, &mut of_task);
                let is_in_order = looked.is_ok() && of_task.refusals.is_empty();
                if !is_in_order && index > 0 && !seen.task.lives() {
                    break;
                }
                if is_in_order || is_alone || looks == LOOKS_MAX {
                    looked?;
                    findings.append(of_task);
                    self.tasks.push(seen);
                    break;
                }
                looks += 1;
                interrupt::check()?;
                std::thread::sleep(LOOK_AGAIN);
                if let Ok((vmas, guards, descriptors)) = look_at(&seen.task, &mut Findings::default()) {
                    seen = SeenTask { task: seen.task, vmas, guards, descriptors };
                }
            }
        }
        Ok(())
    }
}

/// [`memory`] of every process, and where it is placed.
///
/// # Errors
/// When `/proc` does not tell.
pub fn memory_of(seen: &mut Seen, findings: &mut Findings) -> Result<(), DumpError> {
    seen.each(findings, |seen, findings| {
        losses::of_placement(seen.task.pid, findings);
        memory(seen.task.pid, &seen.vmas, findings)
    })
}

/// [`mappings`] of every process.
///
/// # Errors
/// Never; the signature is that of every check.
pub fn mappings_of(root: &Root, seen: &mut Seen, findings: &mut Findings) -> Result<(), DumpError> {
    let checked = Checked::default();
    seen.each(findings, |seen, findings| {
        mappings(seen.task.pid, root.ghost_limit, &seen.vmas, &checked, findings)
    })
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
pub fn late_mappings(pid: Pid, ghost_limit: u64, vmas: &[Vma], checked: &Checked) -> Result<(), DumpError> {
    let mut late = Findings::default();
    mappings(pid, ghost_limit, vmas, checked, &mut late)?;
    late.verdict()?;
    Ok(())
}

/// What concerns a process as a whole: tracer, personality.
///
/// # Errors
/// When `/proc` does not tell.
pub fn process(pid: Pid, findings: &mut Findings) -> Result<(), DumpError> {
    process_alone(pid, findings)?;
    for tid in tree::threads(pid)? {
        match status::read_thread(pid, tid) {
            Ok(status) => pending_trap(pid, tid, &status, findings),
            Err(error) if error.is_gone() && tid != pid => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// [`process`] without what each thread says: see [`pending_trap`].
///
/// # Errors
/// As [`process`].
pub fn process_alone(pid: Pid, findings: &mut Findings) -> Result<(), DumpError> {
    let stat = stat::read(pid)?;
    let status = status::read(pid)?;
    let subject = || Subject::Process(pid);
    if stat.is_zombie() {
        return Err(DumpError::Died { pid });
    }
    // The kernel names the thread that traces.
    let is_ours =
        |tracer| status::read(Pid::from_raw(tracer)).is_ok_and(|status| status.tgid == Pid::this().as_raw());
    if status.tracer_pid != 0 && !is_ours(status.tracer_pid) {
        findings.refuse(
            subject(),
            format!("process {} traces it (a debugger?)", status.tracer_pid),
            "end the tracer first",
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
    if crate::procfs::attr::personality(pid)? != 0 {
        findings.lose(subject(), "its personality (see man 2 personality) is not restored by CRIU");
    }
    settings::of_process(pid, &stat, findings);
    settings::timers(pid, findings)?;
    Ok(())
}

/// A pending SIGTRAP: restore traces the process, and takes it for its own.
pub fn pending_trap(pid: Pid, tid: Pid, status: &status::Status, findings: &mut Findings) {
    const TRAP: u64 = 1 << (libc::SIGTRAP - 1);
    let signals = &status.signals;
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

/// Descriptors of all processes: kinds, paths, locks. Watches (inotify, fanotify) are among what is refused, so no path
/// cache is needed for them.
///
/// # Errors
/// Never; the signature is that of every check.
pub fn descriptors(root: &Root, seen: &mut Seen, findings: &mut Findings) -> Result<(), DumpError> {
    let living = seen.tasks.iter().map(|seen| (&seen.task, &seen.descriptors[..]));
    let tree = OfTree::look(root, living, &seen.zombies);
    seen.each(findings, |seen, findings| {
        descriptors_of(&Around { pid: seen.task.pid, tree: &tree }, &seen.descriptors, findings);
        Ok(())
    })
}

/// The same of one process.
pub fn descriptors_of(around: &Around<'_>, all: &[Descriptor], findings: &mut Findings) {
    files::check_all(around, all, findings);
    file_locks::check(around.pid, all, findings);
}

/// Mappings, the executable, working and root directory. A task without a vDSO would have no place for the system
/// calls that we need it to make.
///
/// # Errors
/// Never; the signature is that of every check.
pub fn mappings(
    pid: Pid,
    ghost_limit: u64,
    vmas: &[Vma],
    checked: &Checked,
    findings: &mut Findings,
) -> Result<(), DumpError> {
    if !vmas.iter().any(Vma::is_vdso) {
        findings.refuse(Subject::Process(pid), "it has no vDSO", "boot without vdso=0");
    }
    vmas::check_all(pid, vmas, ghost_limit, checked, findings);
    special::check_all(pid, ghost_limit, findings);
    Ok(())
}

/// All threads of all processes must be in the cgroups of the root: a restore puts them where `criu` runs, together.
///
/// # Errors
/// When `/proc` does not tell. A process or thread that ended meanwhile is left out.
pub fn one_cgroup(root: &Root, findings: &mut Findings) -> Result<(), DumpError> {
    let tree = Tree::walk(root.pid)?;
    one_cgroup_of(root.pid, tree.tasks.iter().map(|task| task.pid), findings)
}

/// A tree that somebody keeps frozen: calls that it is borrowed for would not end.
pub fn frozen_cgroup(root: &Root, cgroup: &str, findings: &mut Findings) {
    if freeze_cgroup::is_frozen(cgroup) {
        findings.refuse(
            Subject::Process(root.pid),
            format!("its cgroup {cgroup} is frozen, and nothing can be asked of it"),
            "thaw it (echo 0 > cgroup.freeze there, or in the one above that is frozen); what a killed godwit left frozen is \
             thawed by the next dump, or by `godwit doctor --sweep`",
        );
    }
}

/// Whether a thread has ended or is about to.
fn ends(pid: Pid, tid: Pid) -> bool {
    stat::read_thread(pid, tid).map_or(true, |stat| stat.is_zombie() || stat.flags & stat::PF_EXITING != 0)
}

/// The same of processes that are a whole tree.
///
/// # Errors
/// As [`one_cgroup`].
pub fn one_cgroup_of(
    root: Pid,
    tasks: impl Iterator<Item = Pid>,
    findings: &mut Findings,
) -> Result<(), DumpError> {
    let of_root = cgroup::read(root)?;
    let threads = parallel::each(tasks, |pid| match tree::threads(pid) {
        Err(error) if error.is_gone() && pid != root => Ok(Vec::new()),
        threads => Ok::<_, ProcfsError>(threads?.into_iter().map(|tid| (pid, tid)).collect()),
    })?;
    parallel::look(threads.into_iter().flatten(), findings, |(pid, tid), findings| {
        match cgroup::read_thread(pid, tid) {
            Ok(of_thread) if of_thread == of_root => {}
            // One that ends is in the root of its hierarchies.
            Ok(_) if ends(pid, tid) => {}
            Ok(_) if tid == pid => findings.refuse(
                Subject::Process(pid),
                format!("it is in other cgroups than the root of its tree, process {root}"),
                "move it to the cgroup of that process: cgroups are not dumped yet",
            ),
            Ok(_) => findings.refuse(
                Subject::Thread(tid),
                "it is in other cgroups than its process (threaded cgroups)",
                "move it back to the cgroup of its process",
            ),
            Err(error) if error.is_gone() && tid != root => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    })
}
