//! What a restore drops of descriptors: named by the doctor before anything is touched, refused with `--strict`, and lost
//! indeed, whoever dumped it: a loss that a CRIU has learnt to restore would be named without need.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{CriuVersion, Restored};
use support::product::godwit;
use support::victim::{Verdict, Victim};
use support::{Finished, Scene};

/// What `fdlosses.c` can have, and a piece of the line that names it.
const LOSSES: &[(&str, &str)] = &[
    ("semaphore", "EFD_SEMAPHORE"),
    ("large-counter", "its counter stands at 4294967303, of which a restore keeps 32 bits: 7"),
    ("calendar", "TFD_TIMER_ABSTIME"),
    ("spent", "a one-shot watch that has told its event (of descriptor 3)"),
    ("inotify-unread", "bytes of events that it has not read"),
    ("inotify-once", "IN_ONESHOT of its watch 1"),
    ("inotify-unlinked", "IN_EXCL_UNLINK of its watch 1"),
    ("fanotify-unread", "1 events that it has not read"),
    ("terminal-unread", "the 4 bytes that wait to be read from the terminal"),
    ("terminal-exclusive", "TIOCEXCL"),
    ("fifo-unread", "the 6 bytes that lie in it"),
    ("unix-reuse", "its SO_REUSEADDR"),
    ("unix-peek", "its SO_PEEK_OFF"),
    ("unix-error", "an error that it has not been told (SO_ERROR)"),
    ("unix-credentials", "who sent the 1 bytes that wait at it (SCM_CREDENTIALS)"),
    ("unix-sender", "the addresses of those who sent what waits at it"),
    ("unix-left", "the socket that it is connected to is closed"),
    ("unix-address", "its address is not restored"),
    ("unix-peer", "(SO_PEERCRED: process "),
];

fn dump(scene: &Scene, victim: &Victim, more: &[&str]) -> Finished {
    let (pid, images) = (victim.pid.to_string(), scene.dir().join("images"));
    let args = ["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap(), "--criu-version", "4.2"];
    godwit(scene, &[&args, more].concat())
}

#[test]
fn each_loss_is_named_and_is_one() {
    require!("root", "cc", "criu-4.2");
    let mut wrong = Vec::new();
    for (what, named) in LOSSES {
        let scene = Scene::new("fd-losses");
        if let Err(why) = lost(&scene, what, named) {
            wrong.push(format!("{what}: {why}"));
        }
        scene.sweep();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn lost(scene: &Scene, what: &str, named: &str) -> Result<(), String> {
    // It is there as long as nobody moves it.
    let verdict = Victim::start(scene, "fdlosses", &[what]).check();
    if verdict != Verdict::Ok {
        return Err(format!("by itself: {verdict:?}"));
    }
    let mut victim = Victim::start(scene, "fdlosses", &[what]);
    let subject = format!("process {}, fd 77 (", victim.pid);
    let names_it =
        |text: &str| text.lines().any(|line| line.contains(subject.as_str()) && line.contains(named));
    let doctor = godwit(scene, &["doctor", "--pid", &victim.pid.to_string()]);
    if !doctor.ok() || !names_it(&doctor.stdout) {
        return Err(format!("the doctor does not name it: {doctor}"));
    }
    let strict = dump(scene, &victim, &["--strict"]);
    if strict.code() != Some(3) || !names_it(&strict.stderr) {
        return Err(format!("it is not refused with --strict: {strict}"));
    }
    victim.expect_untouched();
    let dumped = dump(scene, &victim, &[]);
    if !dumped.ok() || !names_it(&(dumped.stdout.clone() + &dumped.stderr)) {
        return Err(format!("it is not dumped, or not named: {dumped}"));
    }
    victim.expect_killed();
    victim.ask();
    match Restored::from_images(&scene.dir().join("images"), CriuVersion::V4_2, &[], &victim).verdict() {
        Verdict::Bad(_) => Ok(()),
        other => Err(format!("it is not lost: {other:?}")),
    }
}
