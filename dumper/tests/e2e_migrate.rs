//! A busy program is moved while it runs: rounds over QUIC, a short freeze, a restore beside the frozen source.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;
use support::child::eventually;
use support::lab::{BOTH, CriuVersion, Restored};
use support::moved::{self, copies};
use support::product::{Server, godwit, godwit_command, migrate_args, report};
use support::victim::{Verdict, Victim};
use support::victims::{self, In, Listed};
use support::{Scene, Witness, scene};

/// 64 MiB, three writers, a record a millisecond, 20,000 pages a second: about 80 MiB/s of new memory.
const BUSY: &[&str] = &["64", "3", "1000", "20000"];

/// Waits until the log has grown by some records: whoever runs, runs.
#[track_caller]
fn expect_progress(victim: &Victim) {
    let before = Witness::read(victim.dir()).unwrap().records.len();
    eventually("the log grows", Duration::from_secs(10), || {
        Witness::read(victim.dir()).is_ok_and(|witness| witness.records.len() > before + 20)
    });
}

#[test]
fn a_busy_program_moves_in_rounds_and_lives_once() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("migrate");
        let server = Server::start(&scene, version);
        let mut victim = Victim::start(&scene, "busy", BUSY);
        expect_progress(&victim);
        let moved = moved::migrate(&scene, &mut victim, &server, &["--max-rounds", "6"]);
        moved.expect_running_apart();
        expect_progress(&victim);
        assert_eq!(moved.check(&victim), Verdict::Ok, "CRIU {}", version.text());
        let witness = Witness::read(victim.dir()).unwrap();
        witness.expect_one_life();
        assert_eq!(witness.stretches().len(), 2, "{}", witness.describe());

        let rounds = moved.report["rounds"].as_array().unwrap();
        assert!(rounds.len() >= 3, "two rounds and the last set: {}", moved.report);
        let sent = |round: usize| rounds[round]["pages_data"].as_u64().unwrap();
        assert!(sent(rounds.len() - 1) < sent(0), "the last set is as large as the first: {}", moved.report);
        assert!(moved.report["wire_bytes"].as_u64().unwrap() > 0, "{}", moved.report);
        let (freeze, down) =
            (moved.report["freeze_ms"].as_f64().unwrap(), moved.report["downtime_ms"].as_f64().unwrap());
        assert!(freeze > 0.0 && freeze <= down, "{}", moved.report);
        // What the report says of the downtime is what the log shows, up to a record and the scheduler.
        let pause = witness.pauses_ms()[0] as f64;
        assert!((pause - down).abs() < 150.0 + down / 2.0, "the log shows {pause} ms, the report {down} ms");
    }
}

#[test]
fn memory_and_map_that_change_all_the_time_arrive_whole() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("mutate");
    let server = Server::start(&scene, CriuVersion::V4_2);
    for seed in ["1", "2", "3", "4"] {
        let mut victim = Victim::start(&scene, "mutator", &[seed, "50"]);
        let moved =
            moved::migrate(&scene, &mut victim, &server, &["--max-rounds", "4", "--downtime-target", "1ms"]);
        assert_eq!(moved.check(&victim), Verdict::Ok, "seed {seed}");
    }
}

/// Writes in bursts all over memory, so that a collection is hundreds of runs long and takes as long as a burst,
/// beside a neighbour that takes the processor away in the middle of it.
#[test]
fn scattered_bursts_in_the_middle_of_a_collection_are_not_lost() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("bursts");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut neighbour = Victim::start(&scene, "busy", &["8", "2", "5000"]);
    for turn in 0..8 {
        let mut victim = Victim::start(&scene, "busy", &["32", "2", "1000", "20000"]);
        let moved = moved::migrate(&scene, &mut victim, &server, &["--max-rounds", "3"]);
        assert_eq!(moved.check(&victim), Verdict::Ok, "turn {turn}");
        Witness::read(victim.dir()).unwrap().expect_one_life();
    }
    assert_eq!(neighbour.check(), Verdict::Ok);
}

#[test]
fn every_victim_survives_a_migration() {
    require!("root", "cc", "criu-4.2", "page-server");
    expect_all_migrated(&victims::of(In::Migrate));
}

#[test]
fn every_tree_survives_a_migration() {
    require!("root", "cc", "criu-4.2", "page-server");
    expect_all_migrated(&victims::trees(In::Migrate));
}

fn expect_all_migrated(all: &[Listed]) {
    let scene = Scene::new("victims");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut bad = Vec::new();
    for Listed { name, args, .. } in all {
        let mut victim = Victim::start(&scene, name, args);
        let tree = victim.tree();
        let finished = godwit(&scene, &migrate_args(victim.pid, &server, &["--rounds", "3"]));
        let verdict = if finished.ok() {
            victim.expect_killed();
            tree.expect_killed();
            moved::copy(&scene, &victim, &finished).check(&victim)
        } else {
            Verdict::Lost(finished.to_string())
        };
        if verdict != Verdict::Ok {
            bad.push(format!("{name} {args:?}: {verdict:#?}"));
            // What is left of a copy that failed must not be taken for one of the next.
            scene.sweep();
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn file_locks_move_although_both_ends_share_them() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("locks");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "locks", &[]);
    // One machine, one lock manager: the source would block the restore, and without killing it first it is refused.
    let refused = godwit(&scene, &migrate_args(victim.pid, &server, &["--no-kill-first"])).expect_refusal();
    assert!(refused.stderr.contains("lock"), "{refused}");
    victim.expect_untouched();
    let moved = moved::migrate(&scene, &mut victim, &server, &[]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn a_migrated_program_can_be_migrated_again() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("again");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "busy", &["16", "2", "1000", "20000"]);
    let mut moved = moved::migrate(&scene, &mut victim, &server, &["--max-rounds", "2"]);
    for name in ["second", "third"] {
        let before = moved.pid;
        let finished = godwit(&scene, &migrate_args(before, &server, &["--max-rounds", "2", "--name", name]))
            .expect_ok();
        eventually("the earlier copy is gone", Duration::from_secs(10), || !scene::is_alive(before));
        moved = moved::copy(&scene, &victim, &finished);
        expect_progress(&victim);
    }
    assert_eq!(moved.check(&victim), Verdict::Ok);
    let witness = Witness::read(victim.dir()).unwrap();
    witness.expect_one_life();
    assert_eq!(witness.stretches().len(), 4, "{}", witness.describe());
}

#[test]
fn shared_memory_moves_in_rounds_and_moves_again() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    let scene = Scene::new("segments");
    {
        let older = Server::start(&scene, CriuVersion::V4_1);
        let mut victim = Victim::start(&scene, "segments", &["6", "50"]);
        let moved = moved::migrate(&scene, &mut victim, &older, &["--rounds", "3"]);
        assert_eq!(moved.check(&victim), Verdict::Ok, "CRIU 4.1");
    }
    let server = Server::start(&scene, CriuVersion::V4_2);
    for (name, args) in [("segments", &["5", "200"][..]), ("shmem", &[])] {
        let mut victim = Victim::start(&scene, name, args);
        let mut moved = moved::migrate(&scene, &mut victim, &server, &["--rounds", "3"]);
        for again in ["second", "third"] {
            let session = format!("{name}-{again}");
            let before = moved.pid;
            let args = migrate_args(before, &server, &["--rounds", "2", "--name", &session]);
            let finished = godwit(&scene, &args).expect_ok();
            eventually("the earlier copy is gone", Duration::from_secs(10), || !scene::is_alive(before));
            moved = moved::copy(&scene, &victim, &finished);
            if name == "segments" {
                let last = moved.report["rounds"].as_array().unwrap().last().unwrap();
                // Its memfd of 700 pages that nobody changes holds 467.
                assert!(last["pages_in_parent"].as_u64().unwrap() >= 467, "{}", moved.report);
                assert!(last["pages_data"].as_u64().unwrap() < 467, "{}", moved.report);
            }
        }
        assert_eq!(moved.check(&victim), Verdict::Ok, "{name}");
    }
}

#[test]
fn a_failure_while_segments_are_compared_is_undone() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("compare");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "segments", &["7", "500"]);
    // The first rounds compare nothing, the second and the last set do: at the first and at a late pass.
    for fault in
        ["mid.segments.compare:error@1", "mid.segments.compare:panic@5", "mid.segments.compare:kill@9"]
    {
        let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--rounds", "2"]));
        command.env("GODWIT_FAULT", fault).env("RUST_BACKTRACE", "0");
        let failed = support::run(command, support::product::GODWIT_LIMIT);
        assert!(!failed.ok(), "{fault}: {failed}");
        victim.expect_untouched();
    }
    let moved = moved::migrate(&scene, &mut victim, &server, &["--rounds", "2", "--name", "at-last"]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn several_programs_move_at_the_same_time() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("parallel");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victims: Vec<Victim> =
        (0..3).map(|_| Victim::start(&scene, "busy", &["8", "2", "2000", "5000"])).collect();
    let running: Vec<_> = victims
        .iter()
        .map(|victim| {
            let args = migrate_args(victim.pid, &server, &["--max-rounds", "3"]);
            support::child::Running::start(support::product::godwit_command(&scene, &args))
        })
        .collect();
    let finished: Vec<_> =
        running.into_iter().map(|running| running.finish(Duration::from_secs(90)).expect_ok()).collect();
    for (victim, finished) in victims.iter_mut().zip(&finished) {
        victim.expect_killed();
        let moved = moved::copy(&scene, victim, finished);
        assert_eq!(moved.check(victim), Verdict::Ok);
        Witness::read(victim.dir()).unwrap().expect_one_life();
    }
}

#[test]
fn without_a_restore_the_images_lie_sealed_and_restore_by_hand() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("by-hand");
        let server = Server::start_with(&scene, &[], &[]);
        let mut victim = Victim::start(&scene, "busy", &["16", "2", "1000", "20000"]);
        let args =
            migrate_args(victim.pid, &server, &["--no-restore", "--name", "by-hand", "--max-rounds", "3"]);
        let finished = godwit(&scene, &args).expect_ok();
        victim.expect_killed();
        assert_eq!(report(&finished)["restored"], false);
        let session = server.images.join("by-hand");
        godwit(&scene, &["inspect", session.join("final").to_str().unwrap()]).expect_ok();
        // A round is sealed as a round, and is never called complete.
        let round =
            godwit(&scene, &["inspect", session.join("round-0001").to_str().unwrap()]).expect_refusal();
        assert!(round.stdout.contains("round only") && !round.stdout.contains("complete"), "{round}");
        for entry in std::fs::read_dir(&session).unwrap().flatten() {
            assert!(
                !entry.file_name().to_string_lossy().contains("staging"),
                "left over: {:?}",
                entry.path()
            );
        }
        victim.ask();
        let restored = Restored::from_images(&session.join("final"), version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok);
        Witness::read(victim.dir()).unwrap().expect_one_life();
    }
}

#[test]
fn leave_running_keeps_the_source_and_seals_a_copy() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("leave");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "waits", &[]);
    // Two copies must never run: with a restore it is refused.
    godwit(&scene, &migrate_args(victim.pid, &server, &["--leave-running"])).expect_refusal();
    victim.expect_untouched();
    let args = migrate_args(victim.pid, &server, &["--no-restore", "--leave-running", "--name", "left"]);
    godwit(&scene, &args).expect_ok();
    victim.expect_untouched();
    assert_eq!(copies(&scene, &victim), [victim.pid]);
    assert_eq!(victim.check(), Verdict::Ok);
    std::fs::write(victim.dir().join("log"), "").unwrap();
    let restored = Restored::from_images(&server.images.join("left/final"), CriuVersion::V4_2, &[], &victim);
    assert_eq!(restored.verdict(), Verdict::Ok);
}

#[test]
fn dump_and_pre_dump_to_a_server() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("dump-to");
    let server = Server::start_with(&scene, &[], &[]);
    let mut victim = Victim::start(&scene, "threads", &[]);
    let pid = victim.pid.to_string();
    let to = server.to();
    let command = |verb: &'static str, name: &'static str| {
        let mut args = vec![verb, "--pid", &pid, "--name", name];
        args.extend(to.iter().map(String::as_str));
        args.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    godwit(&scene, &command("pre-dump", "round")).expect_ok();
    victim.expect_untouched();
    godwit(&scene, &command("dump", "whole")).expect_ok();
    victim.expect_killed();
    victim.ask();
    let restored = Restored::from_images(&server.images.join("whole/final"), CriuVersion::V4_2, &[], &victim);
    assert_eq!(restored.verdict(), Verdict::Ok);
}
