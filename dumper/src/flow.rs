//! THE dump, top to bottom: one function a phase, one line a step.
//!
//! The steps and their order are CRIU's (see [`Step`]). Phases hand values to each other, so the wrong order
//! does not compile: what is frozen is a [`FrozenTree`], and dropping it lets all processes run on exactly as they were.
//! Until the hand-over nothing here can harm them; a failure anywhere is an error and a running tree.
//!
//! Where the order differs from CRIU's: what can be refused is refused before the freeze, and looked at again
//! under it; all remote calls of step 21, in all processes, come before mappings and pages, since they borrow memory of
//! the tasks, and begin once seccomp (20) is known, beside steps 17 to 20b; pages go out on reader threads while everything
//! else is collected.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use godwit_wire::fault;
use godwit_wire::image::core::SeccompMode;
use nix::unistd::Pid;

use crate::collect::file_locks::FileLocks;
use crate::collect::images::{ImageSet, Origin};
use crate::collect::seccomp::{OfProcess, Seccomp};
use crate::collect::tree::{self, Place, Task, Zombie};
use crate::collect::{lsm, namespaces, sessions, sharing};
use crate::error::DumpError;
use crate::finish::{self, clocks};
use crate::freeze::cgroup::OwnCgroup;
use crate::freeze::tree::{self as freeze_tree, Asked, FrozenTree};
use crate::handover::{self, HandedOver, Member};
use crate::interrupt;
use crate::options::{Afterwards, CriuVersion, Options};
use crate::parallel;
use crate::pool::Pool;
use crate::predump::hot;
use crate::predump::pages::{self, Owners, PageSource, PagesError, Sent, StopOthers};
use crate::predump::rounds::{self, Listed, Rounds, RoundsOf};
use crate::predump::segments::Comparing;
use crate::predump::whole;
use crate::prepare::alarm::Alarm;
use crate::prepare::cpu::XsaveLayout;
use crate::prepare::cpu_match::Processor;
use crate::prepare::image_dir::ImageDir;
use crate::prepare::inventory::Inventory;
use crate::prepare::leftovers::Claims;
use crate::prepare::link::Target;
use crate::prepare::plugins::{self, Plugins};
use crate::prepare::root::Root;
use crate::prepare::scripts::{Hook, NetworkLock, Scripts};
use crate::prepare::{kerndat, leftovers, limits, survey};
use crate::procfs::maps::{self, Vma};
use crate::procfs::{self, ProcfsError};
use crate::refusal::{Findings, Loss};
use crate::report::{DumpStats, Outcome, Report, RoundReport, SharedPages};
use crate::step::{Step, Steps};
use crate::task::aio::Rings;
use crate::task::files::links::Links;
use crate::task::files::{self, Around, Descriptor, OfTree};
use crate::task::images::{self, Given, Images};
use crate::task::says::{self, Says};
use crate::task::shmem::{self, Holder, Segment};
use crate::task::{settings, vmas};

/// Dumps the tree: rounds while it runs if asked for, one freeze, everything else, the hand-over.
///
/// # Errors
/// See [`DumpError`]. All processes run on as before unless the error is about the hand-over itself.
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
    let (collected, asked) = collect(options, host, &frozen, steps)?; //         15b-20b
    let dumped = dump_tasks(options, host, &frozen, collected, asked, &mut rounds, steps)?; // 21
    let mut sealed = finish(options, host, &frozen, dumped, steps)?; //          22-33
    let network = (options.afterwards != Afterwards::Run).then_some(network); // unlocked before it runs on
    let links = std::mem::take(&mut sealed.links); //                            drop = no link is left
    let ended = hand_over(options, host, frozen, &sealed); //                    kill, run on or stop
    if ended.as_ref().map_or_else(|error| error.leaves_images() || host.root.check_alive().is_err(), |_| true)
    {
        links.keep(); // the images are the copy, and a restore takes them away
    }
    let ended = ended?;
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
    claims: Claims,
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
    /// The cgroup that is frozen while the processes are stopped.
    own_cgroup: Option<OwnCgroup>,
    /// All processes of the machine that are not of the tree, as they were before the freeze.
    others: BTreeSet<Pid>,
    /// Those of the tree that were looked at then, each with its start time (clock ticks after boot).
    seen: BTreeSet<(Pid, u64)>,
    /// The CRIU that will restore, if it is known.
    criu: Option<CriuVersion>,
    /// What a restore drops, as it was seen before the freeze.
    losses: Vec<Loss>,
    stats: DumpStats,
    /// Where pages are read into.
    pool: Pool,
}

fn prepare(options: &Options, steps: &mut Steps) -> Result<Host, DumpError> {
    options.check()?;
    steps.run(Step::RaiseLimits, limits::raise)?;
    let root = steps.run(Step::RootItem, || {
        Ok(Root::open(options.pid, options.ghost_limit, &options.provided)?.linking(options.link_remap))
    })?;
    limits::suffice(root.pid)?;
    let claims = Claims::default();
    let tree = claims.tree(root.pid)?;
    leftovers::thaw_tree(&root.boot_id, &tree, &options.state_dir)?;
    leftovers::sweep_tree(root.pid)?;
    leftovers::sweep_links(&tree);
    let image_dir = ImageDir::open(options)?;
    let scripts = Scripts::new(options, &image_dir);
    steps.run(Step::PreDumpScripts, || scripts.run(Hook::PreDump))?;
    let stats = steps.run(Step::InitStats, || Ok(DumpStats::default()))?;
    let plugins = steps.run(Step::Plugins, || Plugins::load(options, &image_dir))?;
    steps.run(Step::Kerndat, kerndat::probe)?;
    let mut findings = Findings::default();
    let mut seen = survey::look_patiently(&root, options.shell_job, &mut findings)?;
    steps.run(Step::IrmapCache, || survey::descriptors(&root, &mut seen, &mut findings))?;
    let layout = steps.run(Step::CpuInit, XsaveLayout::probe)?;
    steps.run(Step::VdsoInit, || survey::mappings_of(&root, &mut seen, &mut findings))?;
    steps.run(Step::CgroupProps, || survey::one_cgroup(&root, &mut findings))?;
    let cgroup = steps.run(Step::CgroupInfo, || root.cgroup())?;
    survey::frozen_cgroup(&root, &cgroup, &mut findings);
    survey::memory_of(&mut seen, &mut findings)?;
    let mut losses = survey::verdict(findings, options.strict)?;
    let inventory = steps.run(Step::PrepareInventory, Inventory::prepare)?;
    steps.run(Step::CpuInfo, || layout.warn_of_unknown())?;
    let processor = Processor::probe(options.cpu_cap);
    let target = steps.run(Step::Connect, || Target::open(options, &root))?;
    let criu = options.criu_version.or_else(|| target.criu_version());
    let mut findings = Findings::default();
    seen.tasks.iter().for_each(|seen| seen.guards.losses(seen.task.pid, criu, &mut findings));
    losses.extend(survey::verdict(findings, options.strict)?);
    if options.no_kill_first && target.is_same_machine() && seen.is_bound() {
        return Err(handover::refuse_kill_first(root.pid));
    }
    let origin = Origin { session: target.session(&root), root_pid: root.inside };
    let own_cgroup = OwnCgroup::choose(options.freeze_cgroup.as_deref(), root.pid, &cgroup)?;
    let pool = Pool::default();
    Ok(Host {
        claims,
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
        own_cgroup,
        seen: seen.tasks.iter().map(|seen| (seen.task.pid, seen.task.start_time)).collect(),
        others: seen.others,
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
        claims: &host.claims,
        pool: &host.pool,
        first_round: host.target.first_round(),
    };
    if options.limits.rounds_max == 0 {
        return Ok(of.none());
    }
    filters_first(options, host)?;
    of.run()
}

/// Seccomp filters are told of stopped threads only. What stands against a dump is found in a short stop before the
/// rounds, in which nothing is asked of the processes, rather than after them.
fn filters_first(options: &Options, host: &Host) -> Result<(), DumpError> {
    let tree = tree::Tree::walk(host.root.pid)?;
    if !tree.tasks.iter().any(|task| survey::has_filters(task.pid).unwrap_or(false)) {
        return Ok(());
    }
    let frozen = freeze_tree::seize(host.root.pid, options.freeze_timeout)?;
    let mut found = Findings::default();
    let collected = seccomp_of(&frozen, &mut found);
    frozen.thaw()?;
    collected?;
    survey::late_verdict(found, &host.losses, options.strict)?;
    Ok(())
}

fn seccomp_of(frozen: &FrozenTree, findings: &mut Findings) -> Result<Seccomp, DumpError> {
    let mut seccomp = Seccomp::default();
    for of in frozen.each(OfProcess::read) {
        seccomp.collect(of?, findings);
    }
    Ok(seccomp)
}

/// The tree, stopped, and since when.
struct Stopped {
    frozen: FrozenTree,
    /// Its living processes, as `frozen` has them.
    tasks: Vec<Task>,
    zombies: Vec<Zombie>,
    /// Where each stands, dead ones too.
    places: Vec<(Pid, Place)>,
    alarm: Alarm,
    freezing: Duration,
}

impl Stopped {
    fn pids(&self) -> Vec<Pid> {
        self.tasks.iter().map(|task| task.pid).collect()
    }
}

fn freeze(options: &Options, host: &Host, steps: &mut Steps) -> Result<Stopped, DumpError> {
    // A process that comes later is not paused: under freeze its device cannot come to rest.
    if plugins::may_pause_devices() {
        for task in tree::Tree::walk(host.root.pid)?.tasks {
            plugins::pause_devices(task.pid)?;
        }
    }
    let alarm = steps.run(Step::Alarm, || Ok(Alarm::start(options.freeze_timeout)))?;
    let frozen = steps.run(Step::CollectPstree, || {
        let (root, limit) = (host.root.pid, options.freeze_timeout);
        let still = host.own_cgroup.as_ref().map(|own| own.freeze(limit)).transpose()?.flatten();
        Ok(still.map_or_else(
            || freeze_tree::seize(root, limit),
            |still| freeze_tree::seize_still(root, limit, still),
        )?)
    })?;
    let freezing = alarm.elapsed();
    host.root.check_alive()?;
    let died = |pid| DumpError::Died { pid };
    let tasks = parallel::each(frozen.tasks(), |task| Task::open(task.pid())?.ok_or(died(task.pid())))?;
    tasks.iter().try_for_each(|task| host.claims.more(task))?;
    // Nobody is left to wait for them.
    let zombies = frozen.zombies().iter().map(|pid| Zombie::read(*pid)?.ok_or(died(*pid)));
    let zombies: Vec<Zombie> = zombies.collect::<Result<_, _>>()?;
    let places = tree::places(tasks.iter(), &zombies, frozen.order());
    Ok(Stopped { frozen, tasks, zombies, places, alarm, freezing })
}

/// Facts about the tree as a whole, read under freeze: everything that could be refused is looked at again.
struct Collected {
    /// Of each process, as they stand in the tree.
    descriptors: Vec<Vec<Descriptor>>,
    /// What they are in the tree.
    tree: OfTree,
    /// Which process was the first that had the descriptor table of each.
    tables: Vec<usize>,
    locks: FileLocks,
    seccomp: Seccomp,
    /// What only the freeze showed to be lost.
    losses: Vec<Loss>,
}

impl Collected {
    fn by_task<'a>(&'a self, tasks: &'a [Task]) -> impl Iterator<Item = (Pid, &'a [Descriptor])> + Clone {
        tasks.iter().zip(&self.descriptors).map(|(task, all)| (task.pid, &all[..]))
    }
}

fn collect(
    options: &Options,
    host: &Host,
    stopped: &Stopped,
    steps: &mut Steps,
) -> Result<(Collected, AskedAll), DumpError> {
    let (root, tasks, pids) = (&host.root, &stopped.tasks, stopped.pids());
    let mut late = Findings::default();
    let descriptors = parallel::each(tasks, |task| files::open_all(task.pid, &task.pidfd))?;
    let by_task = || tasks.iter().zip(&descriptors).map(|(task, all)| (task.pid, &all[..]));
    let tree = steps.run(Step::CheckpointDevices, || {
        pids.iter().try_for_each(|pid| plugins::checkpoint_devices(*pid))?;
        let living = tasks.iter().zip(&descriptors).map(|(task, all)| (task, &all[..]));
        let tree = OfTree::look(root, living, &stopped.zombies);
        parallel::look(by_task(), &mut late, |(pid, all), late| {
            survey::descriptors_of(&Around { pid, tree: &tree }, all, late);
            Ok::<_, DumpError>(())
        })?;
        Ok(tree)
    })?;
    let tables = steps.run(Step::CollectIds, || {
        let of_threads =
            stopped.frozen.tasks().iter().flat_map(|task| task.threads().iter().map(|one| (task.pid(), one)));
        parallel::look(of_threads, &mut late, |(pid, thread), late| {
            survey::pending_trap(pid, thread.tid, thread.status(pid)?, late);
            Ok::<_, DumpError>(())
        })?;
        parallel::look(tasks, &mut late, |task, late| {
            match host.seen.contains(&(task.pid, task.start_time)) {
                true => survey::process_alone(task.pid, late),
                false => survey::newcomer(task, late),
            }
        })?;
        let is_thread = |number| survey::is_thread(&pids, number);
        sessions::check(&stopped.places, &is_thread, options.shell_job, &mut late);
        stopped.zombies.iter().for_each(|zombie| zombie.losses(&mut late));
        // Whoever came since the look before the freeze: all others were compared then.
        let is_new = |pid: &Pid| !host.others.contains(pid) && !pids.contains(pid);
        let newcomers: Vec<Pid> = procfs::tree::processes()?.into_iter().filter(is_new).collect();
        Ok(sharing::check(&pids, &newcomers, &mut late)?)
    })?;
    let seccomp = steps.run(Step::CollectSeccomp, || {
        stopped.frozen.threads().for_each(|thread| settings::check_policy(thread.tid, &mut late));
        seccomp_of(&stopped.frozen, &mut late)
    })?;
    let mut losses = survey::late_verdict(std::mem::take(&mut late), &host.losses, options.strict)?;
    // Nothing stands against it. What is left to be looked at is read from outside meanwhile.
    let asked = stopped.frozen.begin(says::ask);
    steps.run(Step::NetworkLock, || finish::no_outside_state(by_task()))?;
    let locks = steps.run(Step::CollectFileLocks, || {
        let mut locks = FileLocks::default();
        for (index, (task, all)) in tasks.iter().zip(&descriptors).enumerate() {
            if tables[index] == index {
                locks.add(task.pid, task.inside, all)?;
            }
        }
        Ok(locks)
    })?;
    steps.run(Step::CollectNamespaces, || {
        let own = namespaces::Own::read()?;
        parallel::look(&pids, &mut late, |pid, late| {
            namespaces::check(*pid, &own, late)?;
            namespaces::check_threads(*pid, late)
        })?;
        namespaces::check_tree(&pids, &mut late)
    })?;
    steps.run(Step::CollectLsm, || {
        parallel::look(stopped.frozen.threads(), &mut late, |thread, late| {
            lsm::check(thread.tid, late);
            Ok(())
        })
    })?;
    losses.extend(survey::late_verdict(late, &host.losses, options.strict)?);
    stopped.alarm.check(Step::CollectLsm)?;
    Ok((Collected { descriptors, tree, tables, locks, seccomp, losses }, asked))
}

/// What all processes are being asked.
type AskedAll = Asked<Result<Says, DumpError>>;

/// The tasks, dumped: their pages are sent, their own images handed over.
struct Dumped<'a> {
    images: ImageSet<'a>,
    collected: Collected,
    listed: Vec<Listed>,
    sent: Sent,
    segments: Vec<Segment>,
    rings: Vec<Rings>,
    shared: SharedPages,
    state: State,
    memdump: Duration,
}

fn dump_tasks<'a>(
    options: &Options,
    host: &'a Host,
    stopped: &Stopped,
    mut collected: Collected,
    asked: AskedAll,
    rounds: &mut Rounds,
    steps: &mut Steps,
) -> Result<Dumped<'a>, DumpError> {
    let (tasks, pids) = (&stopped.tasks, stopped.pids());
    // The last remote calls.
    let says: Vec<Says> =
        steps.run(Step::DumpTask, || stopped.frozen.answers(asked).into_iter().collect())?;
    for (pid, says) in pids.iter().zip(&says) {
        let is_strict = collected.seccomp.of_thread(*pid).mode == SeccompMode::Strict;
        collected.losses.extend(asked_losses(options, host, *pid, says, is_strict)?);
    }
    stopped.alarm.check(Step::DumpTask)?;
    let begun = Instant::now();
    let flags = FlagsReader::start(pids.clone());
    let listed = rounds::list_last(tasks, rounds, options.alive_set, stopped.alarm.ends())?;
    tracing::debug!(took = ?begun.elapsed(), "pages of the last set are listed");
    let checked = vmas::Checked::default();
    parallel::each(pids.iter().zip(&listed), |(pid, listed)| {
        survey::late_mappings(*pid, host.root.ghost_limit, &listed.vmas, &checked)
    })?;
    let rings = pids.iter().zip(&listed).map(|(pid, listed)| Rings::read(*pid, &listed.vmas));
    let rings: Vec<Rings> = rings.collect::<Result<_, _>>()?;
    let segments = shmem::collect(&holders(&pids, &listed, &collected.descriptors))?;
    tracing::debug!(took = ?begun.elapsed(), "mappings and segments are looked at");
    let mut plan = rounds.final_plan(listed.iter());
    let stop = AtomicBool::new(false);
    let alarm = stopped.alarm;
    let check = || match stop.load(Ordering::Relaxed) {
        true => Err(PagesError::GivenUp.into()),
        false => alarm.check(Step::DumpTask),
    };
    let comparing = Comparing { readers: options.readers, check: &check };
    let owners = owners(tasks);
    let (hot, of_segments, pages_ids) = rounds.for_set(host.target.sink().takes());
    let hot = &hot.into_iter().map(|(id, view)| (id, hot::View::only_compared(view))).collect();
    let (sent, state) = std::thread::scope(|scope| {
        let _stop = StopOthers(&stop);
        // What rounds hold of shared memory is read and compared meanwhile, and then all pages are sent.
        let pages = scope.spawn(|| {
            plan.pages.extend(of_segments.plans(&segments, true, pages_ids, &comparing)?);
            let source = PageSource { stop: &stop, hot, ..page_source(options, host, &owners, &segments) };
            let images =
                steps.run(Step::OpenImages, || ImageSet::begin(host.target.sink(), plan, &host.origin))?;
            let sent = source.send_all(images.plan(), images.sink())?;
            tracing::debug!(took = ?begun.elapsed(), "pages are sent");
            Ok::<_, DumpError>((images, sent))
        });
        let state = state(options, host, stopped, &says, &listed, flags, &collected);
        tracing::debug!(took = ?begun.elapsed(), "images of tasks are made");
        stop.store(state.is_err(), Ordering::Relaxed);
        (pages.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), state)
    });
    let state = state?; // a mapping that cannot be dumped is a better reason than a page of it
    let (mut images, sent) = sent?;
    sent.pages.iter().for_each(|(pages_id, sent)| images.pages_sent(*pages_id, sent));
    let shared = rounds::shared(&images.plan().pages, &sent);
    images.put_all(&state.made.images)?;
    rounds.read_latency_us += &sent.read_latency_us;
    tracing::debug!(took = ?begun.elapsed(), "images of tasks are handed over");
    Ok(Dumped { images, collected, listed, sent, segments, rings, shared, state, memdump: begun.elapsed() })
}

/// Where each process may have memory files.
fn holders<'a>(pids: &[Pid], listed: &'a [Listed], descriptors: &'a [Vec<Descriptor>]) -> Vec<Holder<'a>> {
    let of = pids.iter().zip(listed).zip(descriptors);
    of.map(|((pid, listed), descriptors)| Holder { pid: *pid, vmas: &listed.vmas, descriptors }).collect()
}

fn owners(tasks: &[Task]) -> BTreeMap<u32, Pid> {
    tasks.iter().map(|task| (task.inside, task.pid)).collect()
}

/// Reads the mappings of all processes with their VmFlags while the pages are listed and sent: that walks all page tables.
struct FlagsReader(std::thread::JoinHandle<Result<Vec<Vec<Vma>>, ProcfsError>>);

impl FlagsReader {
    fn start(pids: Vec<Pid>) -> FlagsReader {
        FlagsReader(std::thread::spawn(move || {
            let _ = fault::point("mid.task.flags-reader"); // a panic or a kill; there is nothing else to fail
            parallel::each(pids, maps::read_with_flags)
        }))
    }

    fn join(self) -> Result<Vec<Vec<Vma>>, DumpError> {
        Ok(self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

/// The stopped processes' memory: a page that is listed must be there.
fn page_source<'a>(
    options: &Options,
    host: &'a Host,
    owners: &'a BTreeMap<u32, Pid>,
    segments: &'a [Segment],
) -> PageSource<'a> {
    PageSource {
        owners: Owners::Tree(owners),
        live: false,
        readers: options.readers,
        segments,
        hashed_slots: 0,
        pool: &host.pool,
        hot: &pages::NONE_HOT,
        stop: &pages::GOES_ON,
    }
}

/// What that shows to be lost.
fn asked_losses(
    options: &Options,
    host: &Host,
    pid: Pid,
    says: &Says,
    is_strict: bool,
) -> Result<Vec<Loss>, DumpError> {
    let mut findings = Findings::default();
    settings::of_asked(pid, &says.task.settings, is_strict, &mut findings);
    // The parent of the root is `criu` for a while; that of the others is restored with them.
    for told in says.threads.iter().filter(|_| pid == host.root.pid) {
        settings::of_death_signal(told.says.tid, told.says.pdeath_sig, &mut findings);
    }
    survey::late_verdict(findings, &host.losses, options.strict)
}

/// The tasks' images, and the mappings of each with their VmFlags.
struct State {
    flagged: Vec<Vec<Vma>>,
    made: Images,
}

fn state(
    options: &Options,
    host: &Host,
    stopped: &Stopped,
    says: &[Says],
    listed: &[Listed],
    flags: FlagsReader,
    collected: &Collected,
) -> Result<State, DumpError> {
    let given = |index: usize| Given {
        task: &stopped.tasks[index],
        frozen: &stopped.frozen.tasks()[index],
        says: &says[index],
        descriptors: &collected.descriptors[index],
        table: collected.tables[index],
    };
    let tree: Vec<Given<'_>> = (0..stopped.tasks.len()).map(given).collect();
    let around = images::Around {
        layout: &host.layout,
        criu: host.criu,
        known: &host.losses,
        strict: options.strict,
        seccomp: &collected.seccomp,
        tree: &collected.tree,
    };
    let (made, flagged) = images::dump(around, &tree, || {
        let flagged = flags.join()?;
        for ((task, listed), flagged) in stopped.tasks.iter().zip(listed).zip(&flagged) {
            whole::check(task.pid, &listed.plan.runs, flagged)?;
        }
        tracing::debug!("mappings are read with their flags");
        Ok(flagged)
    })?;
    Ok(State { flagged, made })
}

/// A step that has no more to do: what it is about was looked at under freeze before, where it is refused, and nothing that
/// is stopped changes it.
fn no_more() -> Result<(), DumpError> {
    Ok(())
}

/// The sealed final set.
#[derive(Default)]
struct SealedSet {
    processes: usize,
    zombies: usize,
    stats: DumpStats,
    report: Option<RoundReport>,
    restore_options: Vec<String>,
    /// What it made beside files whose path is gone.
    links: Links,
    /// Whether its copy could not be beside it on the same kernel.
    is_bound: bool,
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
    let Dumped { mut images, collected, listed, sent, segments, rings, shared, mut state, memdump } = dumped;
    let (root, tasks, pids) = (&host.root, &stopped.tasks, stopped.pids());
    let by_task = || collected.by_task(tasks);
    steps.run(Step::DeadPidConflict, || finish::dead_pids(&collected.tree, by_task()))?;
    steps.run(Step::DumpMountNamespaces, no_more)?;
    let locks = steps.run(Step::DumpFileLocks, || Ok(collected.locks.image()?))?;
    steps.run(Step::VerifyTtySids, no_more)?;
    let zombies = steps.run(Step::DumpZombies, || finish::zombies(&stopped.frozen, &stopped.zombies))?;
    let pstree = steps.run(Step::DumpPstree, || Ok(finish::pstree(&stopped.places, &state.made.threads)?))?;
    let mapped = || pids.iter().copied().zip(state.flagged.iter().map(|all| &all[..]));
    steps.run(Step::DumpShmem, || finish::shmem(mapped(), &segments))?;
    steps.run(Step::DumpNamespaces, no_more)?;
    let clocks = steps.run(Step::DumpTimeNs, || clocks::image(root.pid))?;
    steps.run(Step::DumpCgroups, || finish::cgroups(root, &pids, &host.cgroup))?;
    steps.run(Step::FixExternalUnixSockets, no_more)?;
    steps.run(Step::TtyPostActions, no_more)?;
    let is_bound = locks.is_some() || state.made.table.is_bound();
    if locks.is_some() {
        images.need_option("--file-locks");
    }
    if stopped.places.first().is_some_and(|(_, root)| root.sid != root.pid) {
        images.need_option("--shell-job");
    }
    let others = [pstree, clocks, collected.seccomp.image()?];
    let images_of_tasks = locks.into_iter().chain(zombies).chain(state.made.table.images()?);
    for image in images_of_tasks.chain(others).chain(host.processor.image()?) {
        images.put(image)?;
    }
    let mut stats = rounds::count(host.stats, listed.iter(), &sent);
    stats.shared_scanned = segments.iter().map(Segment::pages).sum();
    (stats.shared_skipped_parent, stats.shared_written) = (shared.in_parent, shared.data + shared.zero);
    (stats.freezing, stats.memdump) = (stopped.freezing, memdump);
    stats.frozen = stopped.alarm.elapsed().saturating_sub(stopped.freezing);
    images.put(stats.image()?)?;
    pids.iter().zip(&rings).try_for_each(|(pid, rings)| rings.stood_still(*pid))?;
    host.image_dir.hand_over(|image| images.put(image))?;
    steps.run(Step::WriteInventory, || images.put(host.inventory.complete()?))?;
    let restore_options = images.restore_options().to_vec();
    let round = images.plan().round;
    interrupt::check()?;
    let owners = owners(tasks);
    let (sealed, _) = images.seal(&page_source(options, host, &owners, &segments))?;
    fault::point("mid.finish.sealed")?;
    host.scripts.run(Hook::PostDump)?;
    let report = rounds::report(round, listed.iter(), &sent, memdump, sealed.fsync_us).with_shared(shared);
    stats.frozen = stopped.alarm.elapsed().saturating_sub(stopped.freezing);
    let losses = collected.losses.into_iter().chain(state.made.losses).collect();
    let links = std::mem::take(&mut state.made.table.links);
    let (processes, zombies) = (tasks.len(), stopped.zombies.len());
    Ok(SealedSet {
        processes,
        zombies,
        stats,
        report: Some(report),
        restore_options,
        links,
        is_bound,
        losses,
    })
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
    let Stopped { frozen, tasks, alarm, .. } = stopped;
    let was_stopped = |index: usize| frozen.tasks()[index].stopped_by().is_some();
    let member = |(index, Task { pid, start_time, pidfd, .. })| Member {
        pid,
        start_time,
        pidfd,
        was_stopped: was_stopped(index),
    };
    let tree = tasks.into_iter().enumerate().map(member).collect();
    let handed_over =
        handover::end(options, &host.root, tree, &host.target, frozen, &host.cgroup, sealed.is_bound)?;
    let downtime = handed_over.running_at.map_or(alarm.elapsed(), |at| at.duration_since(alarm.begun()));
    Ok(Ended { handed_over, downtime })
}

fn report(host: &Host, rounds: Rounds, sealed: SealedSet, ended: Ended, total: Duration) -> Report {
    let losses: Vec<Loss> = host.losses.iter().cloned().chain(sealed.losses).collect();
    let by_hand = host.target.restore_command(&sealed.restore_options);
    Report::new(Outcome {
        pid: host.root.pid,
        processes: sealed.processes,
        zombies: sealed.zombies,
        session: host.target.name(),
        tracker: rounds.tracker(host.root.pid),
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
