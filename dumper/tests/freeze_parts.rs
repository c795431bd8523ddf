//! Processes of very many threads, whose threads are held by several of ours: each of theirs by one of them, also where
//! threads come and go all the time, and all go on whatever becomes of a part.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use godwit_dumper::collect::seccomp::OfProcess;
use godwit_dumper::freeze::seize::FreezeError;
use godwit_dumper::freeze::tree::{self, FrozenTree, MANY_THREADS};
use godwit_dumper::task::says;
use nix::unistd::Pid;
use support::child::Running;
use support::product::{GODWIT_LIMIT, godwit_command};
use support::random::Random;
use support::untouched::Busy;
use support::victim::{Verdict, Victim};
use support::{Scene, scene};

const LIMIT: Duration = Duration::from_secs(20);

fn processors() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

fn seize(victim: &Victim) -> FrozenTree {
    tree::seize(Pid::from_raw(victim.pid), LIMIT).unwrap()
}

/// How many threads of a process each tracer has.
fn tracers(pid: i32) -> BTreeMap<String, usize> {
    let mut tracers = BTreeMap::new();
    for tid in support::tree::threads(pid) {
        if let Some(tracer) = scene::status_field(tid, "TracerPid") {
            *tracers.entry(tracer).or_default() += 1;
        }
    }
    tracers
}

/// Threads that could run: neither stopped by a tracer nor dead.
fn running(pid: i32) -> Vec<(i32, String)> {
    let state = |tid: i32| Some((tid, scene::status_field(tid, "State")?));
    let all = support::tree::threads(pid).into_iter().filter_map(state);
    all.filter(|(_, state)| !state.starts_with(['t', 'Z', 'X'])).collect()
}

#[track_caller]
fn expect_untraced(pid: i32) {
    let tracers = tracers(pid);
    assert_eq!(tracers.keys().map(String::as_str).collect::<Vec<_>>(), ["0"], "{tracers:?}");
}

/// Asks all that is asked, and that each thread has answered in its place.
fn expect_answers(frozen: &FrozenTree) {
    let pid = frozen.root().pid();
    let mut tids: Vec<Pid> = frozen.root().threads().iter().map(|thread| thread.tid).collect();
    frozen.each(OfProcess::read).pop().unwrap().unwrap();
    for _ in 0..2 {
        let says = frozen.answers(frozen.begin(says::ask)).pop().unwrap().unwrap().unwrap();
        assert_eq!(says.task.sigactions.len(), 62);
        assert_eq!(says.threads.iter().map(|told| told.says.tid).collect::<Vec<_>>(), tids);
        // The place that the kernel clears when a thread ends is another for each.
        let places: BTreeSet<u64> = says.threads.iter().map(|told| told.says.clear_tid_addr).collect();
        assert_eq!(places.len(), tids.len());
    }
    assert_eq!(tids.first(), Some(&pid));
    assert!(tids.drain(1..).is_sorted());
    support::untouched::expect_clean(pid.as_raw());
}

#[test]
fn very_many_threads_are_held_by_several_and_few_by_one() {
    require!("root", "cc");
    for (threads, hands) in [(1999, processors().min(8)), (MANY_THREADS - 2, 1)] {
        let scene = Scene::new("parts");
        let mut victim = Victim::start(&scene, "crowd", &[&threads.to_string()]);
        let before = victim.tree().states(Busy::Still);
        for round in 0..4 {
            let begun = Instant::now();
            let frozen = seize(&victim);
            let seized = begun.elapsed();
            assert_eq!(frozen.root().threads().len(), threads + 1);
            assert_eq!(frozen.root().hands(), hands);
            assert_eq!(running(victim.pid), []);
            let tracers = tracers(victim.pid);
            assert_eq!(tracers.len(), hands, "{tracers:?}");
            assert!(tracers.values().all(|count| *count >= (threads + 1) / hands / 2), "{tracers:?}");
            let begun = Instant::now();
            let asked = frozen.answers(frozen.begin(says::ask));
            println!("{threads} threads: seized in {seized:?}, asked in {:?}", begun.elapsed());
            assert!(asked.into_iter().all(|says| says.unwrap().is_ok()));
            if round == 0 {
                expect_answers(&frozen);
            }
            let begun = Instant::now();
            // By a guard that is dropped too.
            if round % 2 == 0 {
                frozen.thaw().unwrap()
            } else {
                drop(frozen)
            }
            println!("let go in {:?}", begun.elapsed());
            expect_untraced(victim.pid);
        }
        before.again().unwrap();
        assert_eq!(victim.check(), Verdict::Ok);
    }
}

#[test]
fn threads_that_come_and_go_meanwhile_are_stopped_too() {
    require!("root", "cc");
    let scene = Scene::new("threadstorm");
    let mut victim = Victim::start(&scene, "threadstorm", &["600", "6"]);
    let mut others = BTreeSet::new();
    for _ in 0..40 {
        let frozen = seize(&victim);
        assert_eq!(running(victim.pid), []);
        let known: BTreeSet<i32> = frozen.threads().map(|thread| thread.tid.as_raw()).collect();
        assert_eq!(support::tree::threads(victim.pid).into_iter().collect::<BTreeSet<_>>(), known);
        assert!(known.len() > 600);
        assert_eq!(frozen.root().hands(), processors().min(4));
        others.extend(known);
        expect_answers(&frozen);
        frozen.thaw().unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(others.len() > 640, "the storm stood still: {} threads in all", others.len());
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_thread_that_another_traces_lets_all_parts_go() {
    require!("root", "cc");
    let scene = Scene::new("traced");
    let mut victim = Victim::start(&scene, "crowd", &["900"]);
    let tids = support::tree::threads(victim.pid);
    for traced in [tids[1], tids[tids.len() / 2], tids[tids.len() - 1]] {
        let (held, is_held) = std::sync::mpsc::channel();
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        let tracer = std::thread::spawn(move || {
            let tid = Pid::from_raw(traced);
            nix::sys::ptrace::seize(tid, nix::sys::ptrace::Options::empty()).unwrap();
            held.send(()).unwrap();
            let _ = may_go.recv();
        });
        is_held.recv().unwrap();
        let refused = tree::seize(Pid::from_raw(victim.pid), LIMIT);
        assert!(matches!(&refused, Err(FreezeError::AlreadyTraced { tid, .. }) if tid.as_raw() == traced));
        let tracers = tracers(victim.pid);
        assert_eq!(tracers.get("0"), Some(&(tids.len() - 1)), "{tracers:?}");
        go.send(()).unwrap();
        tracer.join().unwrap();
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

/// A dump that leaves the victim running.
fn dump(scene: &Scene, victim: &Victim) -> std::process::Command {
    let images = scene.subdir("images");
    let args = ["dump", "--leave-running", "--timeout", "60s", "--images-dir", images.to_str().unwrap()];
    godwit_command(scene, &[&args[..], &["--pid", &victim.pid.to_string()]].concat())
}

#[test]
fn what_fails_or_panics_in_one_part_lets_all_go() {
    require!("root", "cc");
    let scene = Scene::new("fails");
    let mut victim = Victim::start(&scene, "crowd", &["700"]);
    let before = victim.tree().states(Busy::Still);
    let points = [
        ("mid.freeze.seized", 500),
        ("mid.freeze.stopped", 1),
        ("mid.freeze.save", 1),
        ("mid.freeze.save", 650),
        ("mid.remote.open", 1),
        ("mid.remote.mapped", 1),
        ("mid.task.ask", 1),
        ("mid.task.ask", 2),
        ("mid.task.ask", 300),
        ("mid.task.ask", 701),
        ("mid.remote.chain", 40),
        ("mid.remote.chained", 350),
        ("mid.remote.entered", 200),
        ("mid.remote.called", 500),
    ];
    for (point, pass) in points {
        for action in ["error", "panic", "kill"] {
            let mut command = dump(&scene, &victim);
            let (fault, log) = (format!("{point}:{action}@{pass}"), scene.dir().join("fault"));
            let _ = std::fs::remove_file(&log);
            command.env("GODWIT_FAULT", &fault).env("GODWIT_FAULT_LOG", &log).env("RUST_BACKTRACE", "0");
            let failed = support::run(command, GODWIT_LIMIT);
            assert!(!failed.ok(), "{fault}: {failed}");
            assert!(std::fs::read_to_string(&log).is_ok_and(|log| !log.is_empty()), "{fault} never came");
            before.expect_running();
            let again = if action == "kill" { before.again_after_a_kill() } else { before.again() };
            again.unwrap_or_else(|why| panic!("{fault}: {why}"));
        }
        // What a kill has left goes with the next.
        support::run(dump(&scene, &victim), GODWIT_LIMIT).expect_ok();
        before.again().unwrap_or_else(|why| panic!("after {point}: {why}"));
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_dumper_that_is_killed_leaves_all_threads_running() {
    require!("root", "cc");
    let (seed, mut random) = Random::of_variable("GODWIT_STORM_SEED", 0x9a27);
    for (name, args) in [("crowd", ["700", ""]), ("threadstorm", ["400", "4"])] {
        let scene = Scene::new("killed");
        let mut victim = Victim::start(&scene, name, &args);
        let before = (name == "crowd").then(|| victim.tree().states(Busy::Still));
        let whole = support::run(dump(&scene, &victim), GODWIT_LIMIT).expect_ok().took;
        let mut killed = 0;
        for kill in 0..60 {
            // The first run may have been a slow one.
            let after = Duration::from_micros(random.below(whole.as_micros() as u64 * 2 / 3));
            let what = format!("kill {kill} of {name} after {after:?} (seed {seed})");
            let mut dumper = Running::start(dump(&scene, &victim));
            std::thread::sleep(after);
            let was_there = dumper.ended().is_none();
            dumper.kill();
            killed += usize::from(was_there);
            assert!(victim.exists(), "{what}: {}", victim.log());
            support::child::eventually(&what, Duration::from_secs(5), || {
                !tracers(victim.pid).keys().any(|tracer| tracer != "0")
            });
            if let Some(before) = &before {
                before.expect_running();
                before.again_after_a_kill().unwrap_or_else(|why| panic!("{what}: {why}"));
            }
        }
        assert!(killed > 20, "{killed} kills came in time");
        support::run(dump(&scene, &victim), GODWIT_LIMIT).expect_ok();
        assert_eq!(victim.check(), Verdict::Ok);
    }
}
