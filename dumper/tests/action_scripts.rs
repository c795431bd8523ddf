//! Action scripts under CRIU's contract: the same script, run by godwit and by `criu dump`, is told the same.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::lab::{self, CriuVersion, Restored};
use support::product::{Server, godwit, migrate_args};
use support::victim::{Verdict, Victim};
use support::{Scene, scene};

fn script(scene: &Scene, name: &str, text: &str) -> PathBuf {
    let path = scene.dir().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Notes what a script is told, what it sees of the images, and how the process stands.
fn notes(scene: &Scene, into: &str) -> PathBuf {
    let out = scene.dir().join(into);
    script(
        scene,
        &format!("notes-{into}"),
        &format!(
            "has=no; [ -e $CRTOOLS_IMAGE_DIR/inventory.img ] && has=yes\n\
             state=$(sed 's/.*) //; s/ .*//' /proc/$CRTOOLS_INIT_PID/stat)\n\
             [ $state = t ] || state=runs\n\
             dir=no; [ -d $CRTOOLS_IMAGE_DIR/. ] && dir=yes\n\
             echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID dir=$dir images=$has $state >> {}",
            out.display()
        ),
    )
}

fn lines(scene: &Scene, of: &str) -> Vec<String> {
    let text = std::fs::read_to_string(scene.dir().join(of)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn dump(scene: &Scene, pid: i32, images: &Path, more: &[&str]) -> support::Finished {
    let pid = pid.to_string();
    let args = ["dump", "--json", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    godwit(scene, &[&args[..], more].concat())
}

#[test]
fn scripts_are_told_what_criu_tells_them() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("scripts");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let ours = notes(&scene, "ours");
    let images = scene.subdir("ours-images");
    let finished =
        dump(&scene, victim.pid, &images, &["--leave-running", "--action-script", ours.to_str().unwrap()]);
    finished.expect_ok();
    let theirs = notes(&scene, "theirs");
    let options = ["--leave-running", "--action-script", theirs.to_str().unwrap()];
    lab::criu_dump(CriuVersion::V4_2, victim.pid, &scene.subdir("theirs-images"), &options).expect_ok();
    let pid = victim.pid;
    let expected =
        [format!("pre-dump {pid} dir=yes images=no runs"), format!("post-dump {pid} dir=yes images=yes t")];
    assert_eq!(lines(&scene, "ours"), expected);
    // CRIU's own scripts cannot see the images where it runs in a root of its own; all else is the same.
    let told = |lines: Vec<String>| {
        let words = |line: &String| line.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
        lines.iter().map(words).collect::<Vec<_>>()
    };
    assert_eq!(told(lines(&scene, "theirs")), told(expected.to_vec()));
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_failed_post_dump_script_lets_the_process_run_on_and_its_status_is_godwits() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("scripts-status");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let fails = script(&scene, "fails", "[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || exit 42");
    let notes = notes(&scene, "notes");
    let images = scene.subdir("images");
    let finished = dump(
        &scene,
        victim.pid,
        &images,
        &["--action-script", fails.to_str().unwrap(), "--action-script", notes.to_str().unwrap()],
    );
    assert_eq!(finished.code(), Some(42), "{finished}");
    assert!(finished.stderr.contains("post-dump") && finished.stderr.contains("fails"), "{finished}");
    victim.expect_untouched();
    assert_eq!(lines(&scene, "notes").len(), 2, "the other script runs all the same");
    // The images are whole, as CRIU leaves them: the script may have taken them away.
    godwit(&scene, &["inspect", images.to_str().unwrap()]).expect_ok();
    let none = scene.subdir("none");
    let early = script(&scene, "early", "exit 42");
    let finished = dump(&scene, victim.pid, &none, &["--action-script", early.to_str().unwrap()]);
    assert_eq!(finished.code(), Some(1), "{finished}");
    assert!(finished.stderr.contains("pre-dump"), "{finished}");
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_script_that_hangs_under_freeze_is_ended_and_the_process_runs_on() {
    require!("root", "cc");
    let scene = Scene::new("scripts-hang");
    let mut victim = Victim::start(&scene, "threads", &[]);
    for at in ["pre-dump", "post-dump"] {
        let text = format!("[ $CRTOOLS_SCRIPT_ACTION = {at} ] && sleep 60; exit 0");
        let hangs = script(&scene, "hangs", &text);
        let images = scene.subdir("images");
        let options = ["--timeout", "2s", "--action-script", hangs.to_str().unwrap()];
        let finished = dump(&scene, victim.pid, &images, &options);
        assert_eq!(finished.code(), Some(1), "{finished}");
        assert!(finished.took < Duration::from_secs(20), "{finished}");
        for word in ["hangs", at, "2s", "--timeout"] {
            assert!(finished.stderr.contains(word), "no {word}: {finished}");
        }
        victim.expect_untouched();
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn what_scripts_print_is_log_and_not_report() {
    require!("root", "cc");
    let scene = Scene::new("scripts-print");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let prints = script(&scene, "prints", "echo said by a script");
    let images = scene.subdir("images");
    let finished =
        dump(&scene, victim.pid, &images, &["-R", "--action-script", prints.to_str().unwrap()]).expect_ok();
    assert!(serde_json::from_str::<serde_json::Value>(finished.stdout.trim()).is_ok(), "{finished}");
    assert_eq!(finished.stderr.matches("said by a script").count(), 2, "{finished}");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn what_a_script_leaves_goes_along_to_a_page_server() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("scripts-server");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "threads", &[]);
    let leaves = script(
        &scene,
        "leaves",
        "[ $CRTOOLS_SCRIPT_ACTION = pre-dump ] && echo note > $CRTOOLS_IMAGE_DIR/note-of-a-script; exit 0",
    );
    let notes = notes(&scene, "notes");
    let more = ["--no-restore", "--rounds", "1"];
    let scripts = ["--action-script", leaves.to_str().unwrap(), "--action-script", notes.to_str().unwrap()];
    let args = migrate_args(victim.pid, &server, &[&more[..], &scripts].concat());
    godwit(&scene, &args).expect_ok();
    victim.expect_killed();
    let images = server.sessions()[0].join("final");
    assert_eq!(std::fs::read_to_string(images.join("note-of-a-script")).unwrap(), "note\n");
    let pid = victim.pid;
    let expected =
        [format!("pre-dump {pid} dir=yes images=no runs"), format!("post-dump {pid} dir=yes images=no t")];
    assert_eq!(lines(&scene, "notes"), expected);
    victim.ask();
    let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim);
    assert_eq!(restored.verdict(), Verdict::Ok);
}

#[test]
fn a_round_on_its_own_runs_no_script() {
    require!("root", "cc");
    let scene = Scene::new("scripts-round");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let notes = notes(&scene, "notes");
    let (images, pid) = (scene.subdir("images"), victim.pid.to_string());
    let args = ["pre-dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    godwit(&scene, &[&args[..], &["--action-script", notes.to_str().unwrap()]].concat()).expect_ok();
    assert!(lines(&scene, "notes").is_empty());
    assert_eq!(scene::status_field(victim.pid, "TracerPid").as_deref(), Some("0"));
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn the_page_servers_scripts_run_at_every_point_of_a_restore() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("scripts-restore");
    let told = scene.dir().join("told");
    let text = format!(
        "dir=no; [ -e $CRTOOLS_IMAGE_DIR/inventory.img ] && dir=yes\necho $CRTOOLS_SCRIPT_ACTION $dir >> {}\n\
         [ -z \"$GODWIT_RESTORE_WORK\" ] && [ ! -e {}/fail-$CRTOOLS_SCRIPT_ACTION ]",
        told.display(),
        scene.dir().display()
    );
    let program = script(&scene, "at-restore", &text);
    let criu = lab::criu(CriuVersion::V4_2).unwrap();
    let options = ["--restore", "--action-script", program.to_str().unwrap()];
    let server = Server::start_with(&scene, &options, &[("GODWIT_CRIU", criu.to_str().unwrap())]);
    // One that fails when the tree is restored: it is undone, and the source runs on.
    std::fs::write(scene.dir().join("fail-post-restore"), "").unwrap();
    let mut victim = Victim::start(&scene, "threads", &[]);
    let args = migrate_args(victim.pid, &server, &["--max-rounds", "0"]);
    let finished = godwit(&scene, &args).expect_refusal();
    assert!(finished.stderr.contains("at-restore failed at post-restore"), "{finished}");
    victim.expect_untouched();
    assert_eq!(support::moved::copies(&scene, &victim), [victim.pid]);
    std::fs::remove_file(scene.dir().join("fail-post-restore")).unwrap();
    std::fs::remove_file(&told).unwrap();
    let moved = support::moved::migrate(&scene, &mut victim, &server, &["--max-rounds", "0"]);
    let lines = lines(&scene, "told");
    let seen: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    let order: Vec<usize> = ["pre-restore", "post-restore", "pre-resume", "post-resume"]
        .iter()
        .map(|point| {
            seen.iter().position(|seen| seen == point).unwrap_or_else(|| panic!("no {point}: {seen:?}"))
        })
        .collect();
    assert!(order.is_sorted(), "{seen:?}");
    assert_eq!(moved.check(&victim), Verdict::Ok);
}
