//! Trees that have a cgroup v2 of their own: frozen as a whole while they are stopped one by one, and thawed whatever
//! happens in between.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use godwit_dumper::freeze::cgroup::OwnCgroup;
use godwit_dumper::freeze::tree::{self, FrozenTree};
use nix::unistd::Pid;
use support::cgroup::{Cgroup, KeptStill};
use support::lab::{CriuVersion, Restored};
use support::product::{GODWIT_LIMIT, Server, godwit, godwit_command};
use support::tree::Tree;
use support::victim::{Verdict, Victim};
use support::{Finished, Scene, moved, scene};

const LIMIT: Duration = Duration::from_secs(10);

/// Said when a cgroup was frozen first (-v).
const SAID: &str = "frozen while the processes are stopped";

fn dump_command(scene: &Scene, pid: i32, images: &Path, more: &[&str]) -> Command {
    let mut args = vec!["dump", "-v", "--json", "--pid"];
    let pid = pid.to_string();
    args.extend([pid.as_str(), "--images-dir", images.to_str().unwrap()]);
    args.extend(more);
    godwit_command(scene, &args)
}

fn dump_into(images: &Path, scene: &Scene, pid: i32, more: &[&str]) -> Finished {
    support::run(dump_command(scene, pid, images, more), GODWIT_LIMIT)
}

fn dump(scene: &Scene, pid: i32, more: &[&str]) -> Finished {
    dump_into(&scene.subdir("images"), scene, pid, more)
}

/// The processes of a tree as they are now.
fn there(root: i32) -> BTreeSet<i32> {
    Tree::of(root).pids().into_iter().collect()
}

fn stopped(frozen: &FrozenTree) -> BTreeSet<i32> {
    frozen.order().iter().map(|pid| pid.as_raw()).collect()
}

#[test]
fn a_storm_of_forks_is_stopped_in_one_walk() {
    require!("root", "cc", "cgroup2");
    let scene = Scene::new("storm");
    let cgroup = Cgroup::new();
    let mut victim = cgroup.start(&scene, "forkstorm", &["24"]);
    let root = Pid::from_raw(victim.pid);
    let own = OwnCgroup::choose(None, root, &Cgroup::name_of(victim.pid)).unwrap();
    let own = own.expect("the tree has a cgroup of its own");
    let (mut changed, mut largest) = (0, 0);
    for _ in 0..40 {
        let listed = there(victim.pid);
        let one_by_one = tree::seize(root, LIMIT).unwrap();
        changed += usize::from(listed != stopped(&one_by_one));
        one_by_one.thaw().unwrap();

        let still = own.freeze(LIMIT).unwrap().expect("it comes to rest");
        assert!(cgroup.is_frozen());
        let listed = there(victim.pid);
        let frozen = tree::seize_still(root, LIMIT, still).unwrap();
        assert_eq!(frozen.walks(), 0, "somebody came although the cgroup was frozen");
        assert!(!cgroup.is_frozen());
        let seen = stopped(&frozen);
        assert_eq!(listed, seen, "listed in the frozen cgroup, and stopped");
        assert_eq!(there(victim.pid), seen);
        assert_eq!(frozen.strangers().unwrap(), []);
        for pid in &seen {
            let state = scene::status_field(*pid, "State").unwrap_or_default();
            assert!(state.starts_with(['t', 'Z', 'X']), "process {pid} is {state}");
        }
        largest = largest.max(seen.len());
        frozen.thaw().unwrap();
    }
    assert!(changed > 0, "one by one whoever was listed was stopped as well: a storm that shows nothing");
    assert!(largest > 10, "{largest} processes");
    assert_eq!(victim.check(), Verdict::Ok);
}

/// Waits of every kind, stopped processes, locks that a dead thread leaves: what a frozen cgroup could disturb.
const VICTIMS: &[(&str, &[&str])] = &[
    ("forkstorm", &["12", "500"]),
    ("waits", &["strict"]),
    ("restart", &["strict"]),
    ("stopped", &[]),
    ("robust", &[]),
    ("sessions", &[]),
    ("zombies", &[]),
    ("crowd_tree", &["60", "2"]),
];

#[test]
fn the_cgroup_of_a_tree_is_found_and_frozen() {
    require!("root", "cc", "criu-4.2", "cgroup2");
    let scene = Scene::new("found");
    for (name, args) in VICTIMS {
        let cgroup = Cgroup::new();
        let mut victim = cgroup.start(&scene, name, args);
        let busy = support::untouched::busy_of(name);
        let before = victim.tree().states(busy);
        let left = dump(&scene, victim.pid, &["--leave-running"]).expect_ok();
        assert!(left.stderr.contains(SAID), "{name}: {left}");
        assert!(!cgroup.is_frozen(), "{name}");
        before.expect_untouched();
        if let Err(what) = before.again() {
            panic!("{name} {args:?}: {what}");
        }
        let tree = victim.tree();
        let images = scene.subdir("images");
        let dumped = dump_into(&images, &scene, victim.pid, &[]).expect_ok();
        assert!(dumped.stderr.contains(SAID), "{name}: {dumped}");
        victim.expect_killed();
        tree.expect_killed();
        moved::expect_none(&scene, &victim);
        victim.ask();
        let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "{name} {args:?}");
        scene.sweep();
    }
}

#[test]
fn a_tree_in_a_cgroup_of_its_own_is_migrated() {
    require!("root", "cc", "criu-4.2", "page-server", "cgroup2");
    let scene = Scene::new("moved");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let cgroup = Cgroup::new();
    let mut victim = cgroup.start(&scene, "churn_tree", &[]);
    let moved = moved::migrate(&scene, &mut victim, &server, &["--rounds", "2"]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn a_cgroup_with_others_in_it_is_frozen_only_when_it_is_named() {
    require!("root", "cc", "cgroup2");
    let scene = Scene::new("others");
    let cgroup = Cgroup::new();
    let mut victim = cgroup.start(&scene, "forkstorm", &["6", "2000"]);
    let mut other = cgroup.start(&scene, "busy", &["4", "1", "1000"]);
    let left = dump(&scene, victim.pid, &["--leave-running"]).expect_ok();
    assert!(!left.stderr.contains(SAID), "{left}");
    let named = ["--leave-running", "--freeze-cgroup", cgroup.path().to_str().unwrap()];
    let left = dump(&scene, victim.pid, &named).expect_ok();
    assert!(left.stderr.contains(SAID), "{left}");
    assert!(!cgroup.is_frozen());
    other.expect_untouched();
    assert_eq!(other.check(), Verdict::Ok);
    assert_eq!(victim.check(), Verdict::Ok);
    // One below it counts as well.
    let (outer, inner_name) = (Cgroup::new(), "inner");
    let inner = outer.child(inner_name);
    let mut victim = outer.start(&scene, "forkstorm", &["6", "2000"]);
    let mut other = inner.start(&scene, "busy", &["4", "1", "1000"]);
    let left = dump(&scene, victim.pid, &["--leave-running"]).expect_ok();
    assert!(!left.stderr.contains(SAID), "{left}");
    assert_eq!(other.check(), Verdict::Ok);
    let left = dump(&scene, victim.pid, &["--leave-running"]).expect_ok();
    assert!(left.stderr.contains(SAID), "an empty one below it: {left}");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_named_cgroup_must_be_one_of_the_tree() {
    require!("root", "cc", "cgroup2");
    let scene = Scene::new("named");
    let (cgroup, other) = (Cgroup::new(), Cgroup::new());
    let mut victim = cgroup.start(&scene, "threads", &[]);
    let root = cgroup.path().parent().unwrap().to_str().unwrap().to_owned();
    for (dir, says) in [
        ("/tmp", "no directory of a cgroup v2"),
        ("/no/such/dir", "No such file"),
        (other.path().to_str().unwrap(), "is not in"),
        (root.as_str(), "cgroup.freeze"),
    ] {
        let refused = dump(&scene, victim.pid, &["--freeze-cgroup", dir]).expect_refusal();
        assert!(
            refused.stderr.contains("--freeze-cgroup") && refused.stderr.contains(says),
            "{dir}: {refused}"
        );
    }
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_tree_that_somebody_keeps_frozen_is_refused_and_stays_so() {
    require!("root", "cc", "cgroup2");
    let scene = Scene::new("kept");
    let outer = Cgroup::new();
    let cgroup = outer.child("inner");
    let mut victim = cgroup.start(&scene, "threads", &[]);
    for frozen in [&cgroup, &outer] {
        frozen.write("cgroup.freeze", "1");
        support::child::eventually("it is frozen", LIMIT, || {
            cgroup.read("cgroup.events").contains("frozen 1")
        });
        let refused = dump(&scene, victim.pid, &[]).expect_refusal();
        assert!(refused.stderr.contains("is frozen, and nothing can be asked of it"), "{refused}");
        let doctor = godwit(&scene, &["doctor", "--pid", &victim.pid.to_string()]);
        assert!(doctor.stdout.contains("is frozen"), "{doctor}");
        godwit(&scene, &["doctor", "--sweep"]);
        assert!(frozen.is_frozen(), "what somebody else froze was thawed");
        frozen.write("cgroup.freeze", "0");
    }
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_cgroup_that_does_not_come_to_rest_is_thawed_and_who_runs_is_named() {
    require!("root", "cc", "cgroup2");
    let scene = Scene::new("slow");
    let cgroup = Cgroup::new();
    let mut victim = cgroup.start(&scene, "threads", &[]);
    let Some(kept) = KeptStill::new(victim.pid) else {
        println!("left out: there is no freezer of version 1 to keep a process from coming to rest");
        return;
    };
    let own =
        OwnCgroup::choose(None, Pid::from_raw(victim.pid), &Cgroup::name_of(victim.pid)).unwrap().unwrap();
    // Nobody asked for it: then it is left, and the tree is stopped as any other.
    assert!(own.freeze(Duration::from_millis(100)).unwrap().is_none());
    assert!(!cgroup.is_frozen());
    let named = ["--timeout", "1s", "--freeze-cgroup", cgroup.path().to_str().unwrap()];
    let failed = dump(&scene, victim.pid, &named).expect_refusal();
    let says = format!("thread {} is in state D", victim.pid);
    assert!(failed.stderr.contains("did not freeze within 1s") && failed.stderr.contains(&says), "{failed}");
    assert!(!cgroup.is_frozen());
    drop(kept);
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

/// Places of a freeze, and whether the cgroup is frozen when the dumper is killed there.
const PLACES: &[(&str, bool)] = &[
    ("mid.cgroup.marked", false),
    ("mid.cgroup.freezing", true),
    ("mid.cgroup.frozen", true),
    ("mid.freeze.seized", true),
    ("mid.cgroup.thawed", false),
    ("mid.freeze.stopped", false),
];

fn fail_at(scene: &Scene, victim: &Victim, fault: &str) -> Finished {
    let mut command = dump_command(scene, victim.pid, &scene.subdir("images"), &["--leave-running"]);
    command.env("GODWIT_FAULT", fault).env("RUST_BACKTRACE", "0");
    let failed = support::run(command, GODWIT_LIMIT);
    assert!(!failed.ok(), "{fault}: {failed}");
    failed
}

#[test]
fn whatever_fails_while_it_is_frozen_it_runs_again() {
    require!("root", "cc", "cgroup2");
    let scene = Scene::new("fails");
    let cgroup = Cgroup::new();
    let mut victim = cgroup.start(&scene, "crowd_tree", &["12"]);
    let before = victim.tree().states(support::untouched::busy_of("crowd_tree"));
    for (place, _) in PLACES {
        for how in ["error", "panic"] {
            fail_at(&scene, &victim, &format!("{place}:{how}"));
            assert!(!cgroup.is_frozen(), "{place}:{how}");
            before.expect_untouched();
            if let Err(what) = before.again() {
                panic!("{place}:{how}: {what}");
            }
        }
    }
    let swept = godwit(&scene, &["doctor", "--sweep"]).expect_ok();
    assert!(!swept.stdout.contains("left frozen"), "{swept}");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn what_a_killed_dumper_left_frozen_is_thawed_by_the_next_or_by_a_sweep() {
    require!("root", "cc", "cgroup2");
    let scene = Scene::new("killed");
    let cgroup = Cgroup::new();
    let mut victim = cgroup.start(&scene, "crowd_tree", &["12"]);
    let before = victim.tree().states(support::untouched::busy_of("crowd_tree"));
    for (place, is_left) in PLACES {
        for by_sweep in [true, false] {
            fail_at(&scene, &victim, &format!("{place}:kill"));
            assert_eq!(cgroup.is_frozen(), *is_left, "{place}");
            if by_sweep {
                let swept = godwit(&scene, &["doctor", "--sweep"]).expect_ok();
                assert_eq!(swept.stdout.contains("left frozen"), *is_left, "{place}: {swept}");
            } else {
                let next = dump(&scene, victim.pid, &["--leave-running"]).expect_ok();
                assert!(next.stderr.contains(SAID), "{place}: {next}");
            }
            assert!(!cgroup.is_frozen(), "{place}");
            before.expect_untouched();
            if let Err(what) = before.again_after_a_kill() {
                panic!("{place}, swept {by_sweep}: {what}");
            }
        }
    }
    // Nothing is left to sweep.
    let swept = godwit(&scene, &["doctor", "--sweep"]).expect_ok();
    assert!(!swept.stdout.contains("left frozen"), "{swept}");
    assert_eq!(victim.check(), Verdict::Ok);
}
