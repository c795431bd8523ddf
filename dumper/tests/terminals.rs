//! Terminals, beyond what the victims `pty` and `terminal` show in every test: moved on one machine, what a restore drops of a
//! session's, and what is refused.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use support::lab::{BOTH, CriuVersion, Restored};
use support::product::{Server, godwit, migrate_args};
use support::untouched::Busy;
use support::victim::{Verdict, Victim};
use support::{Scene, Tree, moved, scene};

#[test]
fn terminals_move_although_both_ends_have_one_set_of_numbers() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    for (version, name) in BOTH.into_iter().zip(["pty", "terminal"]) {
        let scene = Scene::new("terminals-moved");
        let server = Server::start(&scene, version);
        let mut victim = Victim::start(&scene, name, &[]);
        godwit(&scene, &migrate_args(victim.pid, &server, &["--no-kill-first"])).expect_refusal();
        victim.expect_untouched();
        let moved = moved::migrate(&scene, &mut victim, &server, &["--max-rounds", "2"]);
        assert_eq!(moved.check(&victim), Verdict::Ok, "{name} with CRIU {}", version.text());
    }
}

#[test]
fn members_of_a_session_lose_its_terminal() {
    require!("root", "cc", "criu-4.2");
    const LOST: &str = "it has no controlling terminal (/dev/tty) after a restore";
    let scene = Scene::new("terminal-members");
    assert_eq!(Victim::start(&scene, "terminal", &["members"]).check(), Verdict::Ok);
    let mut victim = Victim::start(&scene, "terminal", &["members"]);
    let doctor = godwit(&scene, &["doctor", "--pid", &victim.pid.to_string()]).expect_ok();
    assert_eq!(doctor.stdout.matches(LOST).count(), 2, "{doctor}");
    let images = scene.subdir("images");
    let args = ["dump", "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()];
    let strict = godwit(&scene, &[&args[..], &["--strict"]].concat()).expect_refusal();
    assert!(strict.stderr.contains(LOST), "{strict}");
    victim.expect_untouched();
    godwit(&scene, &args).expect_ok();
    victim.expect_killed();
    victim.ask();
    let verdict = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim).verdict();
    assert!(
        matches!(&verdict, Verdict::Bad(lines) if lines.iter().any(|line| line.contains("fore: /dev/tty"))),
        "{verdict:?}"
    );
}

#[test]
fn a_terminal_whose_master_is_elsewhere_is_refused() {
    require!("root", "cc");
    let scene = Scene::new("terminal-outside");
    let mut victim = Victim::start(&scene, "terminal", &[]);
    let leader = child_of(victim.pid);
    let before = Tree::of(leader).states(Busy::Forking);
    let images = scene.subdir("images");
    let args = ["dump", "--pid", &leader.to_string(), "--images-dir", images.to_str().unwrap()];
    let refused = godwit(&scene, &args).expect_refusal();
    for named in ["fd 11 (/dev/pts/", "the other end of this terminal is not open in the tree"] {
        assert!(refused.stderr.contains(named), "{named}: {refused}");
    }
    assert!(refused.stderr.contains("it has a controlling terminal whose other end"), "{refused}");
    before.again().unwrap_or_else(|what| panic!("{what}\n{refused}"));
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_terminal_that_is_open_elsewhere_is_refused() {
    require!("root", "cc");
    let scene = Scene::new("terminal-shared");
    let mut victim = Victim::start(&scene, "terminal", &[]);
    let index = scene::proc_text(victim.pid, "fdinfo/10");
    let index = index.lines().find_map(|line| line.strip_prefix("tty-index:")).unwrap().trim();
    let slave = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NOCTTY)
        .open(format!("/dev/pts/{index}"))
        .unwrap();
    let mut other = Command::new("sleep").arg("60").stdout(slave).spawn().unwrap();
    let images = scene.subdir("images");
    let args = ["dump", "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()];
    let finished = godwit(&scene, &args);
    other.kill().unwrap();
    other.wait().unwrap();
    let refused = finished.expect_refusal();
    let named = format!("process {} has an end of the terminal /dev/pts/{index} open", other.id());
    assert!(refused.stderr.contains(&named), "{refused}");
    assert_eq!(victim.check(), Verdict::Ok);
}

/// The only child of a process.
fn child_of(pid: i32) -> i32 {
    scene::proc_text(pid, &format!("task/{pid}/children")).trim().parse().unwrap()
}
