//! Trees that are stopped whole and let run on: in storms of forks, with zombies, with children that nobody waits for.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::time::{Duration, Instant};

use godwit_dumper::freeze::seize::FreezeError;
use godwit_dumper::freeze::tree;
use nix::unistd::Pid;
use support::tree::Tree;
use support::victim::{Verdict, Victim};
use support::{Scene, scene};

const LIMIT: Duration = Duration::from_secs(10);

/// Processes of the tree that could run: neither stopped by a tracer nor dead.
fn running(root: i32) -> Vec<(i32, String)> {
    let state = |pid: i32| Some((pid, scene::status_field(pid, "State")?));
    let all = Tree::of(root).pids().into_iter().filter_map(state);
    all.filter(|(_, state)| !state.starts_with(['t', 'Z', 'X'])).collect()
}

#[test]
fn a_storm_of_forks_is_stopped_whole_and_goes_on() {
    require!("root", "cc");
    let scene = Scene::new("storm");
    let mut victim = Victim::start(&scene, "forkstorm", &["24"]);
    let (mut largest, mut with_zombies) = (0, 0);
    for _ in 0..200 {
        let frozen = tree::seize(Pid::from_raw(victim.pid), LIMIT).unwrap();
        let seen: Vec<i32> = frozen
            .tasks()
            .iter()
            .map(|task| task.pid().as_raw())
            .chain(frozen.zombies().iter().map(|pid| pid.as_raw()))
            .collect();
        assert_eq!(running(victim.pid), [], "of {seen:?}");
        let mut there = Tree::of(victim.pid).pids();
        let mut known = seen.clone();
        there.sort_unstable();
        known.sort_unstable();
        assert_eq!(there, known);
        assert_eq!(frozen.strangers().unwrap(), []);
        // Parents stand before their children.
        for (at, pid) in seen.iter().enumerate().skip(1) {
            let parent = support::tree::parent(*pid).unwrap();
            let place = seen.iter().position(|other| *other == parent).unwrap();
            let is_dead = at >= frozen.tasks().len();
            assert!(place < at || is_dead, "{pid} at {at}, its parent {parent} at {place}");
        }
        largest = largest.max(seen.len());
        with_zombies += usize::from(!frozen.zombies().is_empty());
        frozen.thaw().unwrap();
    }
    assert!(largest > 10 && with_zombies > 0, "{largest} processes, {with_zombies} times with zombies");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn whoever_is_stopped_at_the_end_of_the_time_runs_again() {
    require!("root", "cc");
    let scene = Scene::new("late");
    let mut victim = Victim::start(&scene, "crowd_tree", &["40"]);
    let begun = Instant::now();
    let late = tree::seize(Pid::from_raw(victim.pid), Duration::ZERO);
    assert!(matches!(late, Err(FreezeError::UnsteadyTree { .. } | FreezeError::Unstoppable { .. })));
    assert!(begun.elapsed() < Duration::from_secs(2));
    for pid in Tree::of(victim.pid).pids() {
        assert_eq!(scene::status_field(pid, "TracerPid").as_deref(), Some("0"), "{pid}");
    }
    drop(tree::seize(Pid::from_raw(victim.pid), LIMIT).unwrap());
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_task_that_is_traced_below_the_root_is_named_and_all_others_run() {
    require!("root", "cc");
    let scene = Scene::new("traced");
    let mut victim = Victim::start(&scene, "crowd_tree", &["8"]);
    let child = Tree::of(victim.pid).pids()[3];
    // Held by another thread of this process, which counts as another tracer.
    let (held, is_held) = std::sync::mpsc::channel();
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let frozen = godwit_dumper::freeze::seize::seize(Pid::from_raw(child)).unwrap();
        held.send(()).unwrap();
        let _ = may_go.recv();
        frozen.thaw().unwrap();
    });
    is_held.recv().unwrap();
    let refused = tree::seize(Pid::from_raw(victim.pid), LIMIT);
    assert!(matches!(&refused, Err(FreezeError::AlreadyTraced { pid, .. }) if pid.as_raw() == child));
    drop(refused);
    go.send(()).unwrap();
    holder.join().unwrap();
    assert_eq!(victim.check(), Verdict::Ok);
}
