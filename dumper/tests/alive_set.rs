//! Memory that a program gives back between rounds must not come back. The proof that the test can fail is
//! that the same migration with the alive set switched off brings it back.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;
use support::Scene;
use support::child::{Running, eventually};
use support::lab::{CriuVersion, Restored};
use support::product::{Server, godwit_command, migrate_args};
use support::victim::{Verdict, Victim};

/// Migrates `alive` in rounds without a restore, one step of the victim between two rounds, and restores by hand.
fn migrate(scene: &Scene, more: &[&str]) -> Verdict {
    let server = Server::start_with(scene, &[], &[]);
    let mut victim = Victim::start(scene, "alive", &[]);
    let mut options =
        vec!["--no-restore", "--tracker", "uffd-wp", "--max-rounds", "4", "--downtime-target", "0ms", "-v"];
    options.extend(more);
    // A step is taken in the pause between a round's scan and its pages, so every step is missed by one scan.
    let mut command = godwit_command(scene, &migrate_args(victim.pid, &server, &options));
    command.env("GODWIT_FAULT", "client.send.before.RoundBegin:delay-400");
    let mut running = Running::start(command);
    for step in 1..=3 {
        eventually("a round is sealed", Duration::from_secs(30), || {
            running.ended().is_some()
                || server.sessions().pop().is_some_and(|dir| dir.join(format!("round-{step:04}")).exists())
        });
        // The round is sealed before its word is back and the next one scans: into the pause behind that scan.
        std::thread::sleep(Duration::from_millis(150));
        victim.tell(&format!("step-{step}"));
    }
    running.finish(Duration::from_secs(60)).expect_ok();
    victim.expect_killed();
    // Those that came too late for the source are taken by the copy.
    assert!(victim.log().contains("STEP 1"), "no step fell between rounds: {}", victim.log());
    victim.ask();
    let images = server.sessions().pop().unwrap().join("final");
    Restored::from_images(&images, CriuVersion::V4_2, &[], &victim).verdict()
}

#[test]
fn dropped_memory_stays_dropped() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("alive");
    assert_eq!(migrate(&scene, &[]), Verdict::Ok);
}

#[test]
fn without_the_alive_set_dropped_memory_comes_back() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("not-alive");
    match migrate(&scene, &["--no-alive-set"]) {
        Verdict::Bad(lines) => assert!(lines.iter().any(|line| line.contains("dropped")), "{lines:?}"),
        other => panic!("expected stale pages, got {other:?}"),
    }
}
