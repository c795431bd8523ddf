//! Trees and processes that are large by count: a thousand processes, two thousand threads, dumped in one freeze and
//! migrated in rounds. Everything that is done once a task or once a thread is done that often here.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{BOTH, CriuVersion, Restored};
use support::product::{Server, godwit, report};
use support::victim::{Verdict, Victim};
use support::{Scene, moved};

/// A victim with this many processes and threads.
struct Big {
    name: &'static str,
    args: &'static [&'static str],
    processes: usize,
    threads: usize,
}

/// The root counts itself in neither of its arguments.
const TREE: Big = Big { name: "crowd_tree", args: &["999"], processes: 1000, threads: 1000 };
const THREADS: Big = Big { name: "crowd", args: &["1999"], processes: 1, threads: 2000 };

/// For a machine that does other things meanwhile.
const TIME: [&str; 2] = ["--timeout", "60s"];

impl Big {
    fn start(&self, scene: &Scene) -> Victim {
        let victim = Victim::start(scene, self.name, self.args);
        let pids = victim.tree().pids();
        assert_eq!(pids.len(), self.processes, "processes of {}", self.name);
        let threads: usize = pids.iter().map(|pid| support::tree::threads(*pid).len()).sum();
        assert_eq!(threads, self.threads, "threads of {}", self.name);
        victim
    }
}

fn expect_restored_from_a_directory(big: &Big) {
    for version in BOTH {
        let scene = Scene::new("big-dump");
        let mut victim = big.start(&scene);
        let (tree, images) = (victim.tree(), scene.subdir("images"));
        let pid = victim.pid.to_string();
        let args =
            ["dump", "--json", TIME[0], TIME[1], "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        let dumped = report(&godwit(&scene, &args).expect_ok());
        assert_eq!(dumped["processes"].as_u64(), Some(big.processes as u64), "{dumped}");
        println!("{} {:?}: frozen for {} ms", big.name, big.args, dumped["freeze_ms"]);
        victim.expect_killed();
        tree.expect_killed();
        victim.ask();
        let restored = Restored::from_images(&images, version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
    }
}

fn expect_migrated_in_rounds(big: &Big) {
    let scene = Scene::new("big-move");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = big.start(&scene);
    let moved = moved::migrate(&scene, &mut victim, &server, &["--rounds", "3", TIME[0], TIME[1]]);
    assert_eq!(moved.report["processes"].as_u64(), Some(big.processes as u64), "{}", moved.report);
    assert_eq!(moved.report["rounds"].as_array().unwrap().len(), 4, "{}", moved.report);
    println!(
        "{} {:?}: frozen for {} ms, down for {} ms",
        big.name, big.args, moved.report["freeze_ms"], moved.report["downtime_ms"]
    );
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn a_tree_of_a_thousand_processes_is_dumped_and_restored() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    expect_restored_from_a_directory(&TREE);
}

#[test]
fn a_tree_of_a_thousand_processes_is_migrated_in_rounds() {
    require!("root", "cc", "criu-4.2", "page-server");
    expect_migrated_in_rounds(&TREE);
}

#[test]
fn a_process_of_two_thousand_threads_is_dumped_and_restored() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    expect_restored_from_a_directory(&THREADS);
}

#[test]
fn a_process_of_two_thousand_threads_is_migrated_in_rounds() {
    require!("root", "cc", "criu-4.2", "page-server");
    expect_migrated_in_rounds(&THREADS);
}
