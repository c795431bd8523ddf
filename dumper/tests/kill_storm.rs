//! SIGKILL of the whole dumper at random moments of its run, over victims that keep live values in every register and wait
//! in every kind of call: after each kill the victim is untraced and as it was, now and then the next dump of it succeeds,
//! and at the end it finds every value, wait and page right.
//!
//! 200 kills by default, and as many of dumps of trees. 2,000 each:
//! `GODWIT_STORM_KILLS=2000 cargo test -p godwit-dumper --test kill_storm -- --nocapture`,
//! whose last line counts them. `GODWIT_STORM_SEED` sets the sequence. Each kill comes at a moment that is drawn from the
//! time a whole run takes; one that comes too late is not counted. `remote_storm` kills within single remote calls.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::child::Running;
use support::product::{self, Server, godwit, godwit_command, migrate_args};
use support::random::{Random, number};
use support::untouched::busy_of;
use support::victim::{Verdict, Victim};
use support::{Scene, Witness};

/// The victims.
const VICTIMS: &[(&str, &[&str])] = &[
    ("regs", &[]),
    ("waits", &[]),
    ("threads", &[]),
    ("busy", &["8", "2", "1000", "4000"]),
    ("timers", &[]),
    ("restart", &[]),
    ("tsync", &[]),
    ("signals", &[]),
    ("aio", &[]),
    ("shmem", &[]),
];

/// The trees.
const TREES: &[(&str, &[&str])] = &[
    ("family", &[]),
    ("pipes", &[]),
    ("stopped", &[]),
    ("zombies", &[]),
    ("sharedmem", &["live"]),
    ("robust", &[]),
    ("pool", &[]),
    ("sharefiles", &[]),
    ("sigchld", &[]),
    ("churn_tree", &[]),
];

/// Kills before a victim is asked.
const KILLS_A_VICTIM: u64 = 20;
/// Kills before a whole dump in between.
const KILLS_A_DUMP: u64 = 10;

/// A command that leaves the victim running when it is not killed, with no hand-over that a kill could cut off.
fn command(scene: &Scene, pid: i32, server: &Server, live: bool, kill: u64) -> std::process::Command {
    let args = if live {
        let name = format!("storm-{kill}");
        let more = [
            "--max-rounds",
            "3",
            "--downtime-target",
            "1us",
            "--no-restore",
            "--leave-running",
            "--name",
            &name,
        ];
        migrate_args(pid, server, &more)
    } else {
        let images = scene.subdir("images");
        let images = images.to_str().unwrap();
        ["dump", "--leave-running", "--pid", &pid.to_string(), "--images-dir", images]
            .map(str::to_owned)
            .to_vec()
    };
    godwit_command(scene, &args)
}

/// A dump from begin to end.
fn whole(scene: &Scene, victim: &Victim, server: &Server, live: bool, kill: u64) -> Duration {
    support::run(command(scene, victim.pid, server, live, kill), product::GODWIT_LIMIT).expect_ok().took
}

/// Kills one dumper at a random moment; false if it had ended before.
fn kill_one(running: &mut Running, after: Duration) -> bool {
    let begun = Instant::now();
    std::thread::sleep(after.saturating_sub(Duration::from_micros(200)));
    while begun.elapsed() < after {
        std::hint::spin_loop();
    }
    running.kill();
    let status = running.ended();
    status.is_some_and(|status| std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL))
}

#[test]
fn killed_at_any_moment_the_victim_is_as_it_was() {
    require!("root", "cc", "criu-4.2", "page-server");
    storm(VICTIMS, number("GODWIT_STORM_KILLS", 200));
}

#[test]
fn killed_at_any_moment_every_task_of_a_tree_is_as_it_was() {
    require!("root", "cc", "criu-4.2", "page-server");
    storm(TREES, number("GODWIT_STORM_KILLS", 200));
}

fn storm(victims: &[(&'static str, &[&str])], kills: u64) {
    let (seed, mut random) = Random::of_variable("GODWIT_STORM_SEED", 0x5eed);
    let scene = Scene::new("storm");
    let server = Server::start_with(&scene, &["--idle-timeout", "3", "--sessions-max", "1000"], &[]);
    let mut took: BTreeMap<(&str, bool), Duration> = BTreeMap::new();
    let (mut killed, mut late, mut number) = (0, 0, 0u64);
    while killed < kills {
        let (name, args) = victims[(killed / KILLS_A_VICTIM) as usize % victims.len()];
        let busy = busy_of(name);
        let mut victim = Victim::start(&scene, name, args);
        std::thread::sleep(Duration::from_millis(20));
        let before = victim.tree().states(busy);
        for live in [false, true] {
            took.entry((name, live))
                .or_insert_with(|| whole(&scene, &victim, &server, live, u64::MAX - killed));
        }
        let until = (killed + KILLS_A_VICTIM).min(kills);
        while killed < until {
            number += 1;
            let live = random.below(2) == 0;
            let length = took[&(name, live)].as_micros() as u64;
            let after = Duration::from_micros(random.below(length));
            let mut running = Running::start(command(&scene, victim.pid, &server, live, number));
            let hit = kill_one(&mut running, after);
            let count = killed;
            let what = |why: String| {
                format!("kill {count} (seed {seed}, {name}, live {live}, after {after:?}): {why}")
            };
            assert!(victim.exists(), "{}", what(format!("it is gone: {}", victim.log())));
            before.expect_running();
            if let Err(why) = before.again_after_a_kill() {
                panic!("{}", what(why));
            }
            if !hit {
                late += 1;
                continue;
            }
            killed += 1;
            if killed.is_multiple_of(KILLS_A_DUMP) {
                whole(&scene, &victim, &server, random.below(2) == 0, number | 1 << 40);
                if let Err(why) = before.again() {
                    panic!("{}", what(format!("after the next dump: {why}")));
                }
            }
        }
        godwit(&scene, &["doctor", "--sweep"]).expect_ok();
        if let Err(why) = before.again() {
            panic!("kill {killed} (seed {seed}, {name}): after the sweep: {why}");
        }
        assert_eq!(victim.check(), Verdict::Ok, "{name} after {killed} kills of seed {seed}");
        if name == "busy" {
            Witness::read(victim.dir()).unwrap().expect_one_life();
        }
        clear(&scene, &server);
    }
    println!(
        "kill storm: {killed} kills ({late} came too late), {} kinds of victims, all as they were (seed {seed})",
        victims.len()
    );
}

/// Removes the images so far: thousands of runs would fill the disk.
fn clear(scene: &Scene, server: &Server) {
    for dir in server.sessions() {
        let _ = std::fs::remove_dir_all(dir);
    }
    for entry in std::fs::read_dir(scene.dir()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("images-") {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
