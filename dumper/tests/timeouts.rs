//! Every phase has a limit: what takes too long is named, and undone. The process runs on as it was, and nothing is left at
//! the page server that could become a second copy.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use support::child::run;
use support::lab::CriuVersion;
use support::moved;
use support::product::{self, Server, godwit, godwit_command, keys, migrate_args};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene};

/// That it gave up in time, with these words, and that the process is as it was.
#[track_caller]
fn expect_given_up(finished: Finished, words: &[&str], within: Duration, victim: &mut Victim) {
    let finished = finished.expect_refusal();
    assert_eq!(finished.code(), Some(1), "{finished}");
    assert!(finished.took < within, "{finished}");
    for word in words {
        assert!(finished.stderr.contains(word), "the error does not say {word:?}: {finished}");
    }
    victim.expect_untouched();
}

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_server_that_never_answers() {
    require!("root", "cc");
    let scene = Scene::new("timeout-connect");
    let mut victim = Victim::start(&scene, "threads", &[]);
    // It takes the packets and says nothing.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let (keys, pid) = (keys(&scene), victim.pid.to_string());
    let args = ["migrate", "--pid", &pid, "--to", &address, "--keys", keys.to_str().unwrap()];
    let finished = godwit(&scene, &[&args[..], &["--timeout", "1s"]].concat());
    expect_given_up(finished, &[&address], Duration::from_secs(8), &mut victim);
    assert_eq!(victim.check(), Verdict::Ok);
}

/// A server that lives and does not come to one of the messages.
#[test]
fn a_request_that_is_never_answered() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("timeout-requests");
    for (message, options, words) in [
        ("OpenSession", ["--stall-timeout", "1s"], ["OpenSession", "--stall-timeout"]),
        ("RoundBegin", ["--stall-timeout", "1s"], ["RoundBegin", "--stall-timeout"]),
        ("Seal", ["--seal-timeout", "1s"], ["Seal", "--seal-timeout"]),
        ("Prepare", ["--seal-timeout", "1s"], ["Seal", "--seal-timeout"]),
    ] {
        let criu = support::lab::criu(CriuVersion::V4_2).unwrap();
        let fault = format!("server.recv.after.{message}:delay-15000");
        let environment = [("GODWIT_FAULT", fault.as_str()), ("GODWIT_CRIU", criu.to_str().unwrap())];
        let server = Server::start_with(&scene, &["--restore"], &environment);
        let mut victim = Victim::start(&scene, "threads", &[]);
        let args = migrate_args(victim.pid, &server, &[&["--rounds", "1"], &options[..]].concat());
        let finished = godwit(&scene, &args);
        expect_given_up(finished, &[&words[..], &["within 1s"]].concat(), SOON, &mut victim);
        assert_eq!(moved::copies(&scene, &victim), [victim.pid], "{message}");
        assert_eq!(victim.check(), Verdict::Ok, "{message}");
        drop(server);
        scene.sweep();
    }
}

#[test]
fn a_freeze_in_which_nothing_goes_on() {
    require!("root", "cc");
    let scene = Scene::new("timeout-freeze");
    let mut victim = Victim::start(&scene, "threads", &[]);
    for step in ["collect-ids", "collect-lsm", "dump-task"] {
        let images = scene.subdir("images");
        let pid = victim.pid.to_string();
        let args = ["dump", "--timeout", "1s", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        let mut command = godwit_command(&scene, &args);
        command.env("GODWIT_FAULT", format!("step.before.{step}:delay-1500"));
        let finished = run(command, product::GODWIT_LIMIT);
        expect_given_up(finished, &["took longer than 1s", "--timeout"], SOON, &mut victim);
        assert!(!images.join("inventory.img").exists());
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

/// A `criu` that is asked for its version and answers, and hangs in a restore.
#[test]
fn a_restore_that_hangs() {
    require!("root", "cc", "page-server");
    let scene = Scene::new("timeout-restore");
    let criu = scene.dir().join("hangs");
    let text = "#!/bin/sh\ncase $* in *--version*) echo 'Version: 4.2'; exit 0;; esac\nexec sleep 300\n";
    std::fs::write(&criu, text).unwrap();
    std::fs::set_permissions(&criu, std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start_with(&scene, &["--restore"], &[("GODWIT_CRIU", criu.to_str().unwrap())]);
    let mut victim = Victim::start(&scene, "threads", &[]);
    let args = migrate_args(victim.pid, &server, &["--max-rounds", "0", "--restore-timeout", "2s"]);
    let words = ["did not answer Restore within 2s", "--restore-timeout"];
    expect_given_up(godwit(&scene, &args), &words, SOON, &mut victim);
    assert_eq!(moved::copies(&scene, &victim), [victim.pid]);
    // Nothing is left to decide.
    let listed = godwit(&scene, &["session", "list", "--json"]).expect_ok();
    assert!(!listed.stdout.contains("\"needs_decision\":true"), "{listed}");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn the_limits_stand_in_the_help() {
    let scene = Scene::new("timeout-help");
    let help = godwit(&scene, &["migrate", "--help"]).expect_ok().stdout;
    for option in ["--timeout", "--stall-timeout", "--seal-timeout", "--restore-timeout"] {
        assert!(help.contains(option), "no {option} in {help}");
    }
}
