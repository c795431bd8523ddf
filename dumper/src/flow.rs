//! THE dump, top to bottom: one function a phase, one line a step.
//!
//! The steps and their order are CRIU's (see [`Step`]). Phases hand values to each other, so the wrong order
//! does not compile: what is frozen is a [`Frozen`], and dropping it lets the process run on exactly as it was.
//! Until the hand-over nothing here can harm the process; a failure anywhere is an error and a running process.
//!
//! Where the order differs from CRIU's: what can be refused is refused before the freeze, and looked at again
//! under it; all remote calls of step 21 come before its mappings and pages, since they borrow memory of the task;
//! pages go out on reader threads while everything else is collected.

use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_wire::fault;
use godwit_wire::image::core::SeccompMode;
use godwit_wire::image::{ImageKind, ImageWriter};
use nix::fcntl::Flock;
use nix::unistd::Pid;

use crate::collect::file_locks::{self, FileLocks};
use crate::collect::images::{ImageSet, Origin};
use crate::collect::seccomp::Seccomp;
use crate::collect::{ids, namespaces, sharing};
use crate::error::DumpError;
use crate::finish::{self, clocks};
use crate::freeze::seize::{self, Frozen};
use crate::handover::{self, HandedOver};
use crate::interrupt;
use crate::options::{Afterwards, CriuVersion, Options};
use crate::pool::Pool;
use crate::predump::hot;
use crate::predump::pages::{self, PageSource, PagesError, SentPages, StopOthers};
use crate::predump::rounds::{self, Listed, PAGES_ID, Rounds, RoundsOf};
use crate::predump::segments::{self, Comparing};
use crate::predump::tracker;
use crate::predump::whole;
use crate::prepare::alarm::Alarm;
use crate::prepare::cpu::XsaveLayout;
use crate::prepare::cpu_match::Processor;
use crate::prepare::image_dir::ImageDir;
use crate::prepare::inventory::Inventory;
use crate::prepare::link::Target;
use crate::prepare::plugins::{self, Plugins};
use crate::prepare::root::Root;
use crate::prepare::scripts::{Hook, NetworkLock, Scripts};
use crate::prepare::{kerndat, leftovers, limits, losses, survey};
use crate::procfs::maps::{self, Vma};
use crate::procfs::{ProcfsError, stat, status, timers};
use crate::refusal::{Findings, Loss};
use crate::report::{DumpStats, Outcome, Report, RoundReport, SharedPages};
use crate::step::{Step, Steps};
use crate::sys::ptrace::SignalQueue;
use crate::task::aio::{self, Rings};
use crate::task::asked::{self, TaskSays, ThreadSays};
use crate::task::files::{self, Descriptor, FileTable};
use crate::task::interrupted::Interrupted;
use crate::task::shmem::{self, Segment};
use crate::task::threads::{self, Thread};
use crate::task::vmas::Guards;
use crate::task::{self, mm, settings, signals, vmas};

/// Dumps the process: rounds while it runs if asked for, one freeze, everything else, the hand-over.
///
/// # Errors
/// See [`DumpError`]. The process runs on as before unless the error is about the hand-over itself.
pub fn dump(options: &Options) -> Result<Report, DumpError> {
    let begun = Instant::now();
    let mut steps = Steps::default();
    let host = prepare(options, &mut steps)?; //                                 0-13: nothing is touched
    // A fault of our own undoes everything that was done, where it is dropped; the server is still to be told.
    let copied = panic::catch_unwind(AssertUnwindSafe(|| copy(options, &host, &mut steps)));
    let copied = copied.unwrap_or(Err(DumpError::OwnFault { pid: host.root.pid }));
    let (rounds, sealed, ended) = host.target.given_up_unless(copied)?;
    Ok(report(&host, rounds, sealed, ended, begun.elapsed()))
}

fn copy(options: &Options, host: &Host, steps: &mut Steps) -> Result<(Rounds, SealedSet, Ended), DumpError> {
    let mut rounds = predump(options, host)?; //                                 while it runs: list, send, seal
    let frozen = freeze(options, host, steps)?; //                               14-15: drop = it runs on
    let ending = host.plugins.ending(); //                                       drop = plugins are told of the failure
    let network = host.scripts.lock_network()?; //                               drop = scripts unlock
    let collected = collect(options, host, &frozen, steps)?; //                  15b-20b
    let dumped = dump_task(options, host, &frozen, collected, &mut rounds, steps)?; // 21
    let sealed = finish(options, host, &frozen, dumped, steps)?; //              22-33
    let network = (options.afterwards != Afterwards::Run).then_some(network); // unlocked before it runs on
    let ended = hand_over(options, host, frozen, &sealed)?; //                   kill, run on or stop
    network.into_iter().for_each(NetworkLock::keep);
    ending.done();
    Ok((rounds, sealed, ended))
}

/// Copies the memory once while the process runs.
///
/// # Errors
/// See [`DumpError`]; the process runs on.
pub fn pre_dump(options: &Options) -> Result<Report, DumpError> {
    let begun = Instant::now();
    let mut steps = Steps::default();
    let host = prepare(options, &mut steps)?;
    let ending = host.plugins.ending();
    let rounds = predump(options, &host).and_then(|rounds| host.target.close().map(|()| rounds));
    let rounds = host.target.given_up_unless(rounds)?;
    ending.done();
    Ok(report(&host, rounds, SealedSet::default(), Ended::default(), begun.elapsed()))
}

/// What the preparation leaves.
struct Host {
    _claim: Flock<File>,
    plugins: Plugins,
    scripts: Scripts,
    image_dir: ImageDir,
    processor: Processor,
    root: Root,
    layout: XsaveLayout,
    inventory: Inventory,
    target: Target,
    origin: Origin,
    cgroup: String,
    /// The CRIU that will restore, if it is known.
    criu: Option<CriuVersion>,
    /// What a restore drops, as it was seen before the freeze.
    losses: Vec<Loss>,
    stats: DumpStats,
    /// Where pages are read into.
    pool: Pool,
}

fn prepare(options: &Options, steps: &mut Steps) -> Result<Host, DumpError> {
    steps.run(Step::RaiseLimits, limits::raise)?;
    let root = steps.run(Step::RootItem, || Root::open(options.pid, options.ghost_limit))?;
    let claim = leftovers::claim(root.pid)?;
    leftovers::thaw(&root, &options.state_dir)?;
    leftovers::sweep(root.pid)?;
    let image_dir = ImageDir::open(options)?;
    let scripts = Scripts::new(options, &image_dir);
    steps.run(Step::PreDumpScripts, || scripts.run(Hook::PreDump))?;
    let stats = steps.run(Step::InitStats, || Ok(DumpStats::default()))?;
    let plugins = steps.run(Step::Plugins, || Plugins::load(options, &image_dir))?;
    steps.run(Step::Kerndat, kerndat::probe)?;
    let mut findings = Findings::default();
    let seen = survey::look(&root, &mut findings)?;
    steps.run(Step::IrmapCache, || survey::descriptors(&root, &seen.descriptors, &mut findings))?;
    let layout = steps.run(Step::CpuInit, XsaveLayout::probe)?;
    steps.run(Step::VdsoInit, || survey::mappings(&root, &seen.vmas, &mut findings))?;
    steps.run(Step::CgroupProps, || survey::one_cgroup(&root, &mut findings))?;
    let cgroup = steps.run(Step::CgroupInfo, || root.cgroup())?;
    survey::memory(root.pid, &seen.vmas, &mut findings)?;
    losses::of_placement(root.pid, &mut findings);
    let mut losses = survey::verdict(findings, options.strict)?;
    let inventory = steps.run(Step::PrepareInventory, Inventory::prepare)?;
    steps.run(Step::CpuInfo, || layout.warn_of_unknown())?;
    let processor = Processor::probe(options.cpu_cap);
    let target = steps.run(Step::Connect, || Target::open(options, &root))?;
    let criu = options.criu_version.or_else(|| target.criu_version());
    let mut findings = Findings::default();
    seen.guards.losses(root.pid, criu, &mut findings);
    losses.extend(survey::verdict(findings, options.strict)?);
    if options.no_kill_first && target.is_same_machine() && file_locks::any(&seen.descriptors) {
        return Err(handover::refuse_kill_first(root.pid));
    }
    let origin = Origin { session: target.session(&root), root_pid: root.inside };
    let pool = Pool::default();
    Ok(Host {
        _claim: claim,
        plugins,
        scripts,
        image_dir,
        processor,
        root,
        layout,
        inventory,
        target,
        origin,
        cgroup,
        criu,
        losses,
        stats,
        pool,
    })
}

fn predump(options: &Options, host: &Host) -> Result<Rounds, DumpError> {
    let of = RoundsOf {
        root: &host.root,
        sink: host.target.sink(),
        origin: &host.origin,
        inventory: &host.inventory,
        options,
        pool: &host.pool,
        first_round: host.target.first_round(),
    };
    if options.limits.rounds_max == 0 {
        return Ok(of.none());
    }
    filters_first(options, host)?;
    of.run(tracker::attach(options.tracker, host.root.pid, options.readers)?)
}

/// Seccomp filters are told of stopped threads only. What stands against a dump is found in a short stop before the
/// rounds, in which nothing is asked of the process, rather than after them.
fn filters_first(options: &Options, host: &Host) -> Result<(), DumpError> {
    let pid = host.root.pid;
    if !survey::has_filters(pid)? {
        return Ok(());
    }
    let frozen = seize::seize_within(pid, options.freeze_timeout)?;
    let mut found = Findings::default();
    let collected = frozen
        .syscall_end()
        .map_err(DumpError::from)
        .and_then(|syscall_end| Seccomp::collect(&frozen, syscall_end, &mut found));
    frozen.thaw()?;
    collected?;
    survey::late_verdict(found, &host.losses, options.strict)?;
    Ok(())
}

/// The process, stopped, and since when.
struct Stopped {
    frozen: Frozen,
    alarm: Alarm,
    freezing: Duration,
}

fn freeze(options: &Options, host: &Host, steps: &mut Steps) -> Result<Stopped, DumpError> {
    let alarm = steps.run(Step::Alarm, || Ok(Alarm::start(options.freeze_timeout)))?;
    let frozen = steps.run(Step::CollectPstree, || {
        plugins::pause_devices(host.root.pid)?;
        Ok(seize::seize_within(host.root.pid, options.freeze_timeout)?)
    })?;
    host.root.check_alive()?;
    Ok(Stopped { frozen, freezing: alarm.elapsed(), alarm })
}

/// Facts about the process as a whole, read under freeze: everything that could be refused is looked at again.
struct Collected {
    descriptors: Vec<Descriptor>,
    locks: FileLocks,
    seccomp: Seccomp,
    /// What only the freeze showed to be lost.
    losses: Vec<Loss>,
}

fn collect(
    options: &Options,
    host: &Host,
    stopped: &Stopped,
    steps: &mut Steps,
) -> Result<Collected, DumpError> {
    let root = &host.root;
    let mut late = Findings::default();
    let descriptors = files::open_all(root.pid, &root.pidfd)?;
    steps.run(Step::CheckpointDevices, || {
        plugins::checkpoint_devices(root.pid)?;
        survey::descriptors(root, &descriptors, &mut late)
    })?;
    steps.run(Step::CollectIds, || {
        survey::process(root.pid, &mut late)?;
        Ok(sharing::check_nearest(root.pid, &mut late)?)
    })?;
    steps.run(Step::NetworkLock, || finish::no_outside_state(root.pid, &descriptors))?;
    let locks = steps.run(Step::CollectFileLocks, || Ok(file_locks::collect(root.inside, &descriptors)))?;
    steps.run(Step::CollectNamespaces, || {
        namespaces::check(root.pid, &mut late)?;
        namespaces::check_threads(root.pid, &mut late)
    })?;
    let seccomp = steps.run(Step::CollectSeccomp, || {
        stopped.frozen.threads().iter().for_each(|thread| settings::check_policy(thread.tid, &mut late));
        Seccomp::collect(&stopped.frozen, stopped.frozen.syscall_end()?, &mut late)
    })?;
    steps.run(Step::CollectLsm, || survey::lsm(root.pid, &mut late))?;
    let losses = survey::late_verdict(late, &host.losses, options.strict)?;
    stopped.alarm.check(Step::CollectLsm)?;
    Ok(Collected { descriptors, locks, seccomp, losses })
}

/// The one task, dumped: its pages are sent, its own images handed over.
struct Dumped<'a> {
    images: ImageSet<'a>,
    collected: Collected,
    listed: Listed,
    sent: SentPages,
    segments: Vec<Segment>,
    rings: Rings,
    shared: SharedPages,
    state: State,
    memdump: Duration,
}

fn dump_task<'a>(
    options: &Options,
    host: &'a Host,
    stopped: &Stopped,
    mut collected: Collected,
    rounds: &mut Rounds,
    steps: &mut Steps,
) -> Result<Dumped<'a>, DumpError> {
    let says = steps.run(Step::DumpTask, || ask(&stopped.frozen))?; // the last remote calls
    let is_strict = collected.seccomp.of_thread(host.root.pid).mode == SeccompMode::Strict;
    collected.losses.extend(asked_losses(options, host, &says, is_strict)?);
    stopped.alarm.check(Step::DumpTask)?;
    let begun = Instant::now();
    let flags = FlagsReader::start(host.root.pid);
    let listed = rounds::list_last(&host.root, rounds, options.alive_set, stopped.alarm.ends())?;
    survey::late_mappings(&host.root, &listed.vmas)?;
    let rings = Rings::read(host.root.pid, &listed.vmas)?;
    let segments = shmem::collect(host.root.pid, &listed.vmas, &collected.descriptors)?;
    let mut plan = rounds.final_plan(&listed);
    let stop = AtomicBool::new(false);
    let hot = rounds.hot.of_round(host.target.sink().takes(), rounds.base.as_ref());
    let hot = hot.map(hot::View::only_compared);
    let source = PageSource { stop: &stop, hot, ..page_source(options, host, &segments) };
    let (alarm, of_segments) = (stopped.alarm, &mut rounds.segments);
    let check = || match stop.load(Ordering::Relaxed) {
        true => Err(PagesError::GivenUp.into()),
        false => alarm.check(Step::DumpTask),
    };
    let (sent, state) = std::thread::scope(|scope| {
        let _stop = StopOthers(&stop);
        // What rounds hold of shared memory is read and compared meanwhile, and then all pages are sent.
        let pages = scope.spawn(|| {
            let comparing = Comparing { readers: options.readers, check: &check };
            plan.pages.extend(of_segments.plans(&segments, true, &comparing)?);
            let images =
                steps.run(Step::OpenImages, || ImageSet::begin(host.target.sink(), plan, &host.origin))?;
            let sent = source.send_all(images.plan(), images.sink())?;
            Ok::<_, DumpError>((images, sent))
        });
        let state = flags.join().and_then(|flagged| {
            whole::check(host.root.pid, &listed.plan.runs, &flagged)?;
            task_state(options, host, stopped, &says, flagged, &collected)
        });
        stop.store(state.is_err(), Ordering::Relaxed);
        (pages.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), state)
    });
    let state = state?; // a mapping that cannot be dumped is a better reason than a page of it
    let (mut images, sent) = sent?;
    sent.iter().for_each(|(pages_id, sent)| images.pages_sent(*pages_id, sent));
    let (sent, of_segments) = pages::split_off(PAGES_ID, sent);
    let shared = SharedPages::of(&of_segments, segments::in_parent(&images.plan().pages));
    for image in &state.images {
        images.put(image.clone())?;
    }
    rounds.read_latency_us += &sent.read_latency_us;
    rounds.read_latency_us += &of_segments.read_latency_us;
    Ok(Dumped { images, collected, listed, sent, segments, rings, shared, state, memdump: begun.elapsed() })
}

/// Reads the mappings with their VmFlags while the pages are listed and sent: that walks all page tables.
struct FlagsReader(std::thread::JoinHandle<Result<Vec<Vma>, ProcfsError>>);

impl FlagsReader {
    fn start(pid: Pid) -> FlagsReader {
        FlagsReader(std::thread::spawn(move || {
            let _ = fault::point("mid.task.flags-reader"); // a panic or a kill; there is nothing else to fail
            maps::read_with_flags(pid)
        }))
    }

    fn join(self) -> Result<Vec<Vma>, DumpError> {
        Ok(self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

/// The stopped process's memory: a page that is listed must be there.
fn page_source<'a>(options: &Options, host: &'a Host, segments: &'a [Segment]) -> PageSource<'a> {
    let (pid, pool, stop) = (host.root.pid, &host.pool, &pages::GOES_ON);
    PageSource {
        pid,
        live: false,
        readers: options.readers,
        segments,
        hashed_slots: 0,
        pool,
        hot: None,
        stop,
    }
}

/// What the task and each of its threads said.
struct Says {
    task: TaskSays,
    threads: Vec<ThreadSays>,
}

/// What that shows to be lost.
fn asked_losses(
    options: &Options,
    host: &Host,
    says: &Says,
    is_strict: bool,
) -> Result<Vec<Loss>, DumpError> {
    let mut findings = Findings::default();
    settings::of_asked(host.root.pid, &says.task.settings, is_strict, &mut findings);
    for thread in &says.threads {
        settings::of_death_signal(thread.tid, thread.pdeath_sig, &mut findings);
    }
    survey::late_verdict(findings, &host.losses, options.strict)
}

/// Every question that only the task itself can answer. Afterwards no memory of it is borrowed.
fn ask(frozen: &Frozen) -> Result<Says, DumpError> {
    let pid = frozen.pid();
    let mut timers = timers::read(pid)?; // newest first; restore makes them in the order of the image, by rising id
    timers.sort_by_key(|timer| timer.id);
    let inside = |tid: i32| status::read_thread(pid, Pid::from_raw(tid)).ok()?.ns_pid.last().copied();
    let mut threads = Vec::with_capacity(frozen.threads().len());
    let mut leader = frozen.remote(pid)?;
    let task = asked::task(&mut leader, &timers, inside)?;
    for thread in frozen.threads() {
        fault::point("mid.task.ask")?;
        if thread.tid == pid {
            threads.push(asked::thread(&mut leader)?);
            continue;
        }
        // In the scratch memory of the leader's session, which costs no mapping of its own.
        let mut session = frozen.remote_beside(&leader, thread.tid)?;
        threads.push(asked::thread(&mut session)?);
        session.finish()?;
    }
    leader.finish()?;
    Ok(Says { task, threads })
}

/// The task's own images, and what later steps need of it.
struct State {
    vmas: Vec<Vma>,
    images: Vec<(String, Bytes)>,
    table: FileTable,
    threads: Vec<Thread>,
    losses: Vec<Loss>,
}

fn task_state(
    options: &Options,
    host: &Host,
    stopped: &Stopped,
    says: &Says,
    flagged: Vec<Vma>,
    collected: &Collected,
) -> Result<State, DumpError> {
    let (root, frozen) = (&host.root, &stopped.frozen);
    let pid = root.pid;
    let stat = stat::read(pid)?;
    let mut table = FileTable::default();
    let guards = Guards::look(pid, &flagged)?;
    let losses = late_losses(options, host, &flagged, &guards)?;
    let mut vmas = vmas::entries(pid, &flagged, &mut table)?;
    let fdinfo = files::dump(pid, &collected.descriptors, &mut table)?;
    let pending = signals::pending(pid, SignalQueue::Shared)?;
    let mut interrupted = Interrupted::new(&pending, &says.task.sigactions);
    let mut threads = Vec::with_capacity(frozen.threads().len());
    for (thread, says) in frozen.threads().iter().zip(&says.threads) {
        let seccomp = collected.seccomp.of_thread(thread.tid);
        threads.push(threads::dump(pid, thread, says, &host.layout, seccomp, &mut interrupted)?);
    }
    threads.sort_by_key(|thread| thread.inside != root.inside); // the leader first, the others as they came
    let stopped_by = frozen.stopped_by().map(|signal| signal as u32);
    let of_task = task::task_core(pid, &stat, &says.task, frozen.leader().sigmask, stopped_by, pending)?;
    threads[0].core.tc = Some(of_task);
    vmas.extend(guards.entries(host.criu)); // behind all mappings, also those that lie above them
    let mm = mm::entry(pid, &stat, &says.task, vmas, aio::entries(&flagged), &mut table)?;
    let fs = task::fs(pid, &mut table)?;
    let inside = u64::from(root.inside);
    let mut images = Vec::new();
    fault::point("mid.task.state")?;
    for thread in &threads {
        images.push(single(ImageKind::Core, u64::from(thread.inside), &thread.core)?);
    }
    images.push(single(ImageKind::Mm, inside, &mm)?);
    images.push(single(ImageKind::Fs, inside, &fs)?);
    images.push(single(ImageKind::Ids, inside, &ids::task())?);
    let mut descriptors = ImageWriter::new(ImageKind::Fdinfo);
    for entry in &fdinfo {
        descriptors.push(entry);
    }
    images.push((ImageKind::Fdinfo.file_name(u64::from(ids::TASK_FILES_ID)), descriptors.finish()?));
    Ok(State { vmas: flagged, images, table, threads, losses })
}

/// What a restore drops of the stopped process's memory and was not known before.
fn late_losses(
    options: &Options,
    host: &Host,
    flagged: &[Vma],
    guards: &Guards,
) -> Result<Vec<Loss>, DumpError> {
    let mut late = Findings::default();
    survey::memory(host.root.pid, flagged, &mut late)?;
    guards.losses(host.root.pid, host.criu, &mut late);
    survey::late_verdict(late, &host.losses, options.strict)
}

fn single(kind: ImageKind, id: u64, record: &impl prost::Message) -> Result<(String, Bytes), DumpError> {
    Ok((kind.file_name(id), ImageWriter::single(kind, record)?))
}

/// The sealed final set.
#[derive(Default)]
struct SealedSet {
    stats: DumpStats,
    report: Option<RoundReport>,
    restore_options: Vec<String>,
    has_locks: bool,
    /// What only the freeze showed to be lost.
    losses: Vec<Loss>,
}

fn finish(
    options: &Options,
    host: &Host,
    stopped: &Stopped,
    dumped: Dumped<'_>,
    steps: &mut Steps,
) -> Result<SealedSet, DumpError> {
    let Dumped { mut images, collected, listed, sent, segments, rings, shared, state, memdump } = dumped;
    let (root, descriptors) = (&host.root, &collected.descriptors);
    let status = status::read(root.pid)?;
    steps.run(Step::DeadPidConflict, || finish::dead_pids(root.pid, descriptors))?;
    steps.run(Step::DumpMountNamespaces, || finish::namespaces(root.pid))?;
    let locks = steps.run(Step::DumpFileLocks, || Ok(collected.locks.image()?))?;
    steps.run(Step::VerifyTtySids, || finish::tty_sids(root.pid))?;
    steps.run(Step::DumpZombies, || finish::zombies(root.pid, &state.threads))?;
    let pstree = steps.run(Step::DumpPstree, || Ok(finish::pstree(&status, &state.threads)?))?;
    steps.run(Step::DumpShmem, || finish::shmem(root, &state.vmas, &segments))?;
    steps.run(Step::DumpNamespaces, || finish::namespaces(root.pid))?;
    let clocks = steps.run(Step::DumpTimeNs, || clocks::image(root.pid))?;
    steps.run(Step::DumpCgroups, || finish::cgroups(root, &host.cgroup))?;
    steps.run(Step::FixExternalUnixSockets, || finish::no_outside_state(root.pid, descriptors))?;
    steps.run(Step::TtyPostActions, || finish::no_outside_state(root.pid, descriptors))?;
    let has_locks = locks.is_some();
    if has_locks {
        images.need_option("--file-locks");
    }
    let others = [pstree, clocks, collected.seccomp.image()?];
    for image in locks.into_iter().chain(state.table.images()?).chain(others).chain(host.processor.image()?) {
        images.put(image)?;
    }
    let mut stats = rounds::count(host.stats, &listed, &sent);
    stats.shared_scanned = segments.iter().map(Segment::pages).sum();
    (stats.shared_skipped_parent, stats.shared_written) = (shared.in_parent, shared.data + shared.zero);
    (stats.freezing, stats.memdump) = (stopped.freezing, memdump);
    stats.frozen = stopped.alarm.elapsed().saturating_sub(stopped.freezing);
    images.put(stats.image()?)?;
    rings.stood_still(root.pid)?;
    host.image_dir.hand_over(|image| images.put(image))?;
    steps.run(Step::WriteInventory, || images.put(host.inventory.complete()?))?;
    let restore_options = images.restore_options().to_vec();
    let round = images.plan().round;
    interrupt::check()?;
    let (sealed, _) = images.seal(&page_source(options, host, &segments))?;
    fault::point("mid.finish.sealed")?;
    host.scripts.run(Hook::PostDump)?;
    let report = rounds::report(round, &listed, &sent, memdump, sealed.fsync_us).with_shared(shared);
    stats.frozen = stopped.alarm.elapsed().saturating_sub(stopped.freezing);
    let losses = collected.losses.into_iter().chain(state.losses).collect();
    Ok(SealedSet { stats, report: Some(report), restore_options, has_locks, losses })
}

/// How it ended: what the destination says, and how long the process stood still.
#[derive(Default)]
struct Ended {
    handed_over: HandedOver,
    downtime: Duration,
}

fn hand_over(
    options: &Options,
    host: &Host,
    stopped: Stopped,
    sealed: &SealedSet,
) -> Result<Ended, DumpError> {
    let Stopped { frozen, alarm, .. } = stopped;
    let handed_over =
        handover::end(options, &host.root, &host.target, frozen, &host.cgroup, sealed.has_locks)?;
    let downtime = handed_over.running_at.map_or(alarm.elapsed(), |at| at.duration_since(alarm.begun()));
    Ok(Ended { handed_over, downtime })
}

fn report(host: &Host, rounds: Rounds, sealed: SealedSet, ended: Ended, total: Duration) -> Report {
    let losses: Vec<Loss> = host.losses.iter().cloned().chain(sealed.losses).collect();
    let by_hand = host.target.restore_command(&sealed.restore_options);
    Report::new(Outcome {
        pid: host.root.pid,
        session: host.target.name(),
        tracker: rounds.tracker.as_ref().map(|tracker| tracker.name()),
        reports: rounds.reports.into_iter().chain(sealed.report).collect(),
        read_latency_us: rounds.read_latency_us,
        freeze: sealed.report.map(|_| sealed.stats.freezing + sealed.stats.frozen),
        downtime: ended.downtime,
        total,
        link: host.target.counters(),
        restored_pid: ended.handed_over.restored_pid,
        losses: &losses,
        restore_command: sealed.report.and(by_hand),
    })
}
