//! What godwit writes about a process beside what CRIU 4.2 writes about the same one, stopped: every image, every field,
//! every page.
//!
//! By hand, of any process that both can dump (it is left stopped):
//! `GODWIT_ORACLE_PID=PID cargo test -p godwit-dumper --test oracle by_hand -- --ignored --nocapture`
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use nix::sys::signal::Signal;
use support::victims::{self, In};
use support::{Scene, Victim, oracle};

#[test]
fn the_images_of_every_victim_are_what_criu_writes() {
    require!("root", "cc", "criu-4.2", "crit");
    let scene = Scene::new("oracle");
    let mut differences = Vec::new();
    for entry in victims::of(In::Oracle) {
        let victim = Victim::start(&scene, entry.name, entry.criu_args);
        victim.signal(Signal::SIGSTOP);
        // Timers go on firing: by then each signal that can be pending is.
        std::thread::sleep(Duration::from_millis(100));
        let found = oracle::differences(&scene, victim.pid);
        differences.extend(found.into_iter().map(|line| format!("{}: {line}", entry.name)));
        drop(victim);
        scene.sweep();
    }
    expect_none(&differences);
    if std::env::var_os("GODWIT_FULL").is_some() && std::env::var_os("GODWIT_VICTIM").is_none() {
        assert!(oracle::unused().is_empty(), "explained and not seen:\n{}", oracle::unused().join("\n"));
    }
}

#[track_caller]
fn expect_none(differences: &[String]) {
    let count = differences.len();
    assert!(differences.is_empty(), "{count} unexplained differences:\n{}", differences.join("\n"));
}

#[test]
#[ignore = "wants the pid of a process in GODWIT_ORACLE_PID"]
fn by_hand() {
    let pid = std::env::var("GODWIT_ORACLE_PID").unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let scene = Scene::new("by-hand");
    expect_none(&oracle::differences(&scene, pid));
}
