//! Every place of a dump or migration fails in turn, by error, by panic and by SIGKILL: before and after each step, and in
//! the middle of those with an effect. The victim runs on as it was, and the next dump of it succeeds.
//!
//! By default a seeded sample; all with `GODWIT_FULL=1 cargo test -p godwit-dumper --test undo -- --nocapture`, whose last
//! lines count the cases. `GODWIT_UNDO_SEED` sets the sequence, `GODWIT_UNDO_CASES` the size of the sample,
//! `GODWIT_UNDO_ONLY` picks the faults whose names contain it.
//!
//! Which places there are, and how often each is passed, is read from a run that only notes them, so that no place is
//! forgotten. Of a place that is passed often the first, the last and a random pass fail.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use godwit_dumper::predump::tracker::uffd_wp;
use godwit_dumper::step::Step;
use nix::sys::signal::Signal;
use support::child::eventually;
use support::lab::{CriuVersion, Restored};
use support::product::{self, Server, godwit, godwit_command, migrate_args};
use support::random::{Random, number};
use support::scene::status_field;
use support::tree::States;
use support::untouched::{Busy, State, busy_of, cgroups_left, expect_runs};
use support::victim::{Verdict, Victim};
use support::victims::{self, In, Listed};
use support::{Finished, Scene, moved};

/// Who the places are tried with.
struct Cast {
    all: fn(In) -> Vec<Listed>,
    /// The victim that is traced, and that the later passes of a place are tried with.
    traced: &'static str,
}

const SINGLE: Cast = Cast { all: victims::of, traced: "threads" };
const TREES: Cast = Cast { all: victims::trees, traced: "family" };

/// Places of a thread that has nothing to say: only a panic or a kill is to be had there.
const MUTE: &[&str] = &["mid.task.flags-reader", "mid.link.reader"];

const ACTIONS: [&str; 3] = ["error", "panic", "kill"];

/// How a dump is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flow {
    /// Into a directory, with two action scripts.
    Dump,
    /// One live round into a directory.
    PreDump,
    /// To a page server, with rounds, and restored there.
    Migrate,
    /// To a page server, with rounds, and killed.
    Keep,
}

impl Flow {
    /// The last place whose failure is undone without a question to the destination.
    fn last(self) -> Option<&'static str> {
        match self {
            Flow::Dump | Flow::PreDump => None,
            Flow::Migrate => Some("source.before.restore-sent"),
            Flow::Keep => Some("source.before.committing"),
        }
    }

    fn args(self, pid: i32, images: &Path, server: Option<&Server>) -> Vec<String> {
        // A name of its own: one that is taken would be refused, and another tried.
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let name = format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed));
        let remote = |more: &[&str]| migrate_args(pid, server.unwrap(), &[more, &["--name", &name]].concat());
        let pid = pid.to_string();
        let images = images.to_str().unwrap();
        let local = |command: &str| -> Vec<String> {
            [command, "--criu-version", "4.2", "--pid", &pid, "--images-dir", images]
                .map(str::to_owned)
                .to_vec()
        };
        // Named, since `auto` goes on to another where one cannot be armed.
        let tracker = ["--tracker", if uffd_wp::self_test().is_ok() { "uffd-wp" } else { "soft-dirty" }];
        match self {
            Flow::Dump => {
                let scripts =
                    ["--action-script", "/bin/true", "--action-script", "/bin/true"].map(str::to_owned);
                [local("dump"), scripts.to_vec()].concat()
            }
            Flow::PreDump => [local("pre-dump"), tracker.map(str::to_owned).to_vec()].concat(),
            Flow::Migrate => {
                remote(&[&["--max-rounds", "2", "--downtime-target", "1us"], &tracker[..]].concat())
            }
            Flow::Keep => remote(&[&["--max-rounds", "1", "--no-restore"], &tracker[..]].concat()),
        }
    }
}

/// One failure.
#[derive(Clone, Debug)]
struct Case {
    flow: Flow,
    point: String,
    action: &'static str,
    pass: usize,
    /// Whether the images are whole at this place: what lies in the directory then is a set.
    is_whole: bool,
}

impl Case {
    fn fault(&self) -> String {
        format!("{}:{}@{}", self.point, self.action, self.pass)
    }
}

/// The places that a flow passes, in order, and how often each, up to where the hand-over may not be undone without a
/// question.
fn trace(scene: &Scene, flow: Flow, traced: &str, server: Option<&Server>) -> Vec<(String, usize)> {
    let victim = Victim::start(scene, traced, &[]);
    let log = scene.dir().join(format!("trace-{flow:?}"));
    let images = scene.subdir("images");
    let mut command = godwit_command(scene, &flow.args(victim.pid, &images, server));
    command.env("GODWIT_FAULT", "*:note").env("GODWIT_FAULT_LOG", &log);
    support::run(command, product::GODWIT_LIMIT).expect_ok();
    drop(victim);
    scene.sweep();
    let mut passes: BTreeMap<String, usize> = BTreeMap::new();
    let mut order = Vec::new();
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        let point = line.strip_suffix(" note").unwrap().to_owned();
        let count = passes.entry(point.clone()).or_default();
        *count += 1;
        if *count == 1 {
            order.push(point.clone());
        }
        if flow.last() == Some(point.as_str()) {
            break;
        }
    }
    order.into_iter().map(|point| (point.clone(), passes[&point])).collect()
}

/// All cases of a flow.
fn cases(flow: Flow, trace: &[(String, usize)], random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut is_whole = false;
    for (point, passes) in trace {
        is_whole |= point == "mid.finish.sealed";
        let mut chosen = BTreeSet::from([1, *passes]);
        chosen.insert(1 + random.below(*passes as u64) as usize);
        for pass in chosen {
            for action in
                ACTIONS.iter().filter(|action| **action != "error" || !MUTE.contains(&point.as_str()))
            {
                cases.push(Case { flow, point: point.clone(), action, pass, is_whole });
            }
        }
    }
    cases
}

/// A victim, how it was, and what stands around it.
struct Play<'a> {
    scene: &'a Scene,
    victim: Victim,
    listed: Listed,
    /// Whether a stop signal had stopped it before.
    is_stopped: bool,
    /// Of every task.
    before: States,
}

impl<'a> Play<'a> {
    fn new(scene: &'a Scene, of: &[Listed], random: &mut Random) -> Self {
        let listed = *random.pick(of);
        let busy = busy_of(listed.name);
        let victim = Victim::start(scene, listed.name, listed.args);
        std::thread::sleep(Duration::from_millis(20));
        let is_stopped = random.below(6) == 0;
        if is_stopped {
            victim.signal(Signal::SIGSTOP);
            eventually("it is stopped", Duration::from_secs(5), || {
                let is_stopped =
                    |tid: i32| status_field(tid, "State").is_some_and(|state| state.starts_with('T'));
                victim.threads().into_iter().all(is_stopped)
            });
        }
        let before = victim.tree().states(busy);
        Self { scene, victim, listed, is_stopped, before }
    }

    /// Plays a case; an error says what is not as it was.
    fn case(&mut self, case: &Case, server: Option<&Server>, by_doctor: bool) -> Result<(), String> {
        let (scene, pid, listed, is_stopped) = (self.scene, self.victim.pid, self.listed, self.is_stopped);
        let images = scene.subdir("images");
        let log = scene.dir().join("fault");
        let _ = std::fs::remove_file(&log);
        let mut command = godwit_command(scene, &case.flow.args(pid, &images, server));
        command.env("GODWIT_FAULT", case.fault()).env("GODWIT_FAULT_LOG", &log).env("RUST_BACKTRACE", "0");
        let finished = support::run(command, product::GODWIT_LIMIT);
        let told = |what: String| {
            let stopped = if is_stopped { "stopped " } else { "" };
            let (name, args) = (listed.name, listed.args);
            format!(
                "{} of {stopped}{name} {args:?} ({:?}): {what}
{finished}",
                case.fault(),
                case.flow
            )
        };
        let fired = std::fs::read_to_string(&log).unwrap_or_default();
        if fired.is_empty() {
            return Err(told("the fault never fired".into()));
        }
        if !self.victim.exists() {
            return Err(told(format!("the victim is gone: {}", self.victim.log())));
        }
        expect_end(case, &finished).map_err(told)?;
        if case.action == "kill" {
            self.before.again_after_a_kill().map_err(told)?;
        } else {
            self.before.again().map_err(told)?;
        }
        expect_no_half_set(scene, case, &images).map_err(told)?;
        if case.action != "kill" {
            self.before.expect_untouched();
            let left = cgroups_left(scene);
            if !left.is_empty() {
                return Err(told(format!("cgroups are left: {left:?}")));
            }
        }
        let _ = std::fs::remove_dir_all(&images);
        if by_doctor {
            let swept = godwit(scene, &["doctor", "--sweep"]);
            // Other processes of the machine may hold something too, and end meanwhile.
            if !swept.ok() || swept.stdout.contains(&format!("process {pid} cannot")) {
                return Err(told(swept.to_string()));
            }
            // A stopped one, in which nothing lies that could be swept, heals as it goes on.
            self.before.again_after_a_kill().map_err(|what| told(format!("{what}\n{swept}")))?;
        }
        self.next_dump().map_err(told)
    }

    /// The next dump succeeds, sweeps what was left, and leaves the victim as it was.
    fn next_dump(&mut self) -> Result<(), String> {
        let (scene, pid) = (self.scene, self.victim.pid);
        let images = scene.subdir("next");
        let args = [
            "dump",
            "--criu-version",
            "4.2",
            "--leave-running",
            "--pid",
            &pid.to_string(),
            "--images-dir",
            images.to_str().unwrap(),
        ];
        let next = godwit(scene, &args);
        if !next.ok() {
            return Err(format!("the next dump fails: {next}"));
        }
        self.before.again().map_err(|what| format!("after the next dump: {what}\n{next}"))?;
        self.before.expect_untouched();
        let left = cgroups_left(scene);
        if !left.is_empty() {
            return Err(format!("cgroups are left after the next dump: {left:?}\n{next}"));
        }
        let inspected = godwit(scene, &["inspect", images.to_str().unwrap()]);
        let _ = std::fs::remove_dir_all(&images);
        if inspected.ok() { Ok(()) } else { Err(format!("the next dump is not whole: {inspected}")) }
    }

    /// The victim is taken away in earnest, and its copy asked.
    fn end(mut self, server: Option<&Server>, in_earnest: bool) -> Result<(), String> {
        if self.is_stopped {
            self.victim.signal(Signal::SIGCONT);
        }
        // One that CRIU's restore does not bring back whole is asked where it is.
        if !in_earnest || !self.listed.is_in(In::Dump42) {
            return match self.victim.check() {
                Verdict::Ok => Ok(()),
                other => Err(format!("{} {:?}: {other:?}", self.listed.name, self.listed.args)),
            };
        }
        let verdict = if let Some(server) = server.filter(|_| self.listed.is_in(In::Migrate)) {
            let moved = moved::migrate(self.scene, &mut self.victim, server, &["--max-rounds", "1"]);
            moved.check(&self.victim)
        } else {
            let images = self.scene.subdir("last");
            let args = [
                "dump",
                "--criu-version",
                "4.2",
                "--pid",
                &self.victim.pid.to_string(),
                "--images-dir",
                images.to_str().unwrap(),
            ];
            godwit(self.scene, &args).expect_ok();
            self.victim.expect_killed();
            self.victim.ask();
            Restored::from_images(&images, CriuVersion::V4_2, &[], &self.victim).verdict()
        };
        match verdict {
            Verdict::Ok => Ok(()),
            other => Err(format!("{} {:?} restored: {other:?}", self.listed.name, self.listed.args)),
        }
    }
}

/// That the run ended as the fault says.
fn expect_end(case: &Case, finished: &Finished) -> Result<(), String> {
    let signal = finished.status.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status));
    match case.action {
        "kill" if signal == Some(9) => Ok(()),
        "error" | "panic" if finished.code() == Some(1) => {
            let is_panic = finished.stderr.contains("panicked at");
            if is_panic == (case.action == "panic") { Ok(()) } else { Err("it ended in another way".into()) }
        }
        _ => Err("it did not end as the fault says".into()),
    }
}

/// That what lies in the directory is whole, or is called unfinished.
fn expect_no_half_set(scene: &Scene, case: &Case, images: &Path) -> Result<(), String> {
    if !matches!(case.flow, Flow::Dump | Flow::PreDump) {
        return Ok(());
    }
    let has_inventory = images.join("inventory.img").exists();
    let inspected = godwit(scene, &["inspect", images.to_str().unwrap()]);
    if case.flow == Flow::Dump && (has_inventory != case.is_whole || inspected.ok() != case.is_whole) {
        return Err(format!(
            "the images are whole: {}, the inventory is there: {has_inventory}, {inspected}",
            case.is_whole
        ));
    }
    if case.flow == Flow::PreDump && inspected.ok() {
        return Err(format!("a round is called a complete set: {inspected}"));
    }
    let staged = std::fs::read_dir(images).into_iter().flatten().flatten();
    let left: Vec<PathBuf> =
        staged.map(|entry| entry.path()).filter(|_| !has_inventory && case.action != "kill").collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// Victims are asked, and taken away in earnest, after so many cases.
const CASES_A_VICTIM: usize = 12;

fn play(name: &str, cast: &Cast, flows: &[Flow], sample: u64) {
    let (seed, mut random) = Random::of_variable("GODWIT_UNDO_SEED", 0x5eed);
    let scene = Scene::new(name);
    let server = flows.iter().any(|flow| matches!(flow, Flow::Migrate | Flow::Keep)).then(|| {
        let criu = support::lab::criu(CriuVersion::V4_2).unwrap();
        let environment = [("GODWIT_CRIU", criu.to_str().unwrap())];
        Server::start_with(&scene, &["--restore", "--idle-timeout", "3"], &environment)
    });
    let server = server.as_ref();
    let mut all = Vec::new();
    let mut kinds = BTreeSet::new();
    for &flow in flows {
        let trace = trace(&scene, flow, cast.traced, server);
        if flow == Flow::Dump {
            for step in Step::ALL {
                for when in ["before", "after"] {
                    let point = format!("step.{when}.{}", step.name());
                    assert!(trace.iter().any(|(passed, _)| *passed == point), "{point} is not passed");
                }
            }
        }
        all.extend(cases(flow, &trace, &mut random));
    }
    let only = std::env::var("GODWIT_UNDO_ONLY").unwrap_or_default();
    all.retain(|case| case.fault().contains(&only));
    random.shuffle(&mut all);
    if std::env::var_os("GODWIT_FULL").is_none() && only.is_empty() {
        all.truncate(number("GODWIT_UNDO_CASES", sample) as usize);
    }
    let mut wrong = Vec::new();
    // How often a place is passed depends on the victim: only the traced one passes it so often.
    let (first, later): (Vec<Case>, Vec<Case>) = all.iter().cloned().partition(|case| case.pass == 1);
    let mut all_victims = (cast.all)(In::LeaveRunning);
    // Their seccomp ends a thread at the calls it is lent for, so they may not outlive a SIGKILL of the dumper: the
    // dump names that risk.
    all_victims.retain(|listed| !["seccomp", "sandbox"].contains(&listed.name));
    let traced: Vec<Listed> =
        all_victims.iter().filter(|listed| listed.name == cast.traced).copied().collect();
    let groups = first.chunks(CASES_A_VICTIM).map(|group| (group, &all_victims));
    let groups = groups.chain(later.chunks(CASES_A_VICTIM).map(|group| (group, &traced)));
    for (number, (group, of)) in groups.enumerate() {
        let mut play = Play::new(&scene, of, &mut random);
        for case in group {
            kinds.insert((case.flow, case.point.clone(), case.action));
            let by_doctor = case.action == "kill" && random.below(3) == 0;
            if let Err(what) = play.case(case, server, by_doctor) {
                wrong.push(what);
                // What is wrong with one may not be counted against the next.
                let _ = godwit(&scene, &["doctor", "--sweep"]);
                play = Play::new(&scene, of, &mut random);
            }
        }
        if let Err(what) = play.end(server, number.is_multiple_of(3)) {
            wrong.push(format!("after {:?}: {what}", group.iter().map(Case::fault).collect::<Vec<_>>()));
        }
        scene.sweep();
        for dir in server.map(Server::sessions).unwrap_or_default() {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
    assert!(wrong.is_empty(), "seed {seed}: {} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n\n"));
    println!("{name}: {} cases, {} kinds, all undone (seed {seed})", all.len(), kinds.len());
}

#[test]
fn every_place_of_a_dump_fails_and_is_undone() {
    require!("root", "cc", "criu-4.2");
    play("undo-dump", &SINGLE, &[Flow::Dump, Flow::PreDump], 48);
}

#[test]
fn every_place_of_a_migration_fails_and_is_undone() {
    require!("root", "cc", "criu-4.2", "page-server");
    play("undo-migrate", &SINGLE, &[Flow::Migrate, Flow::Keep], 30);
}

#[test]
fn every_place_of_a_dump_of_a_tree_fails_and_is_undone() {
    require!("root", "cc", "criu-4.2");
    play("undo-tree", &TREES, &[Flow::Dump, Flow::PreDump], 24);
}

#[test]
fn every_place_of_a_migration_of_a_tree_fails_and_is_undone() {
    require!("root", "cc", "criu-4.2", "page-server");
    play("undo-tree-migrate", &TREES, &[Flow::Migrate, Flow::Keep], 16);
}

/// Once the destination was asked, a fault of our own is no longer undone without a word of it: the source lies still, and
/// the command is named that decides.
#[test]
fn a_panic_within_the_hand_over_names_the_command_that_decides() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("undo-held");
    let server = Server::start(&scene, CriuVersion::V4_2);
    for point in ["source.after.restore-sent", "client.send.after.Restore", "source.before.committing"] {
        let mut victim = Victim::start(&scene, "threads", &[]);
        let before = State::of(victim.pid, Busy::Still);
        let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "1"]));
        command.env("GODWIT_FAULT", format!("{point}:panic@1")).env("RUST_BACKTRACE", "0");
        let finished = support::run(command, product::GODWIT_LIMIT);
        assert_eq!(finished.code(), Some(4), "{point}: {finished}");
        let id =
            finished.stderr.split("godwit session resolve ").nth(1).and_then(|rest| rest.split('`').next());
        let id = id.unwrap_or_else(|| panic!("{point}: no command is named: {finished}"));
        // Nothing else may have it meanwhile.
        let images = scene.subdir("images");
        let args = ["dump", "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()];
        let refused = godwit(&scene, &args);
        assert_eq!(refused.code(), Some(4), "{point}: {refused}");
        assert!(refused.stderr.contains(id), "{point}: {refused}");
        let resolved = godwit(&scene, &["session", "resolve", id]).expect_ok();
        if let Err(what) = before.again(victim.pid, Busy::Still) {
            panic!("{point}: {what}\n{finished}\n{resolved}");
        }
        expect_runs(victim.pid);
        assert_eq!(cgroups_left(&scene), Vec::<PathBuf>::new(), "{point}");
        assert_eq!(victim.check(), Verdict::Ok, "{point}");
    }
}

/// Nobody is told that the process runs on as it was where that is not known, or not so.
#[test]
fn a_panic_of_which_the_journal_knows_more_is_not_called_undone() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("undo-unknown");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let migrate = |victim: &Victim, fault: &str| {
        let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "1"]));
        command.env("GODWIT_FAULT", fault).env("RUST_BACKTRACE", "0");
        let finished = support::run(command, product::GODWIT_LIMIT);
        assert_eq!(finished.code(), Some(4), "{fault}: {finished}");
        assert!(finished.stderr.contains("godwit session resolve"), "{fault}: {finished}");
        assert!(!finished.stderr.contains("runs on as it was"), "{fault}: {finished}");
        finished
    };
    let mut victim = Victim::start(&scene, "threads", &[]);
    let before = State::of(victim.pid, Busy::Still);
    // The freeze is not known to be undone.
    let finished = migrate(&victim, "source.before.restore-sent:panic@1,mid.freezer.thawed:error@1");
    let listed = godwit(&scene, &["session", "list", "--json"]).expect_ok();
    let id = finished.stderr.split("godwit session resolve ").nth(1).and_then(|rest| rest.split('`').next());
    let id = id.unwrap_or_else(|| panic!("no command is named: {finished}\n{listed}"));
    godwit(&scene, &["session", "resolve", id]).expect_ok();
    before.again(victim.pid, Busy::Still).unwrap_or_else(|what| panic!("{what}\n{finished}"));
    expect_runs(victim.pid);
    assert_eq!(cgroups_left(&scene), Vec::<PathBuf>::new());
    // It runs at the destination already.
    migrate(&victim, "source.after.released:panic@1");
    victim.expect_killed();
    scene.sweep();
}
