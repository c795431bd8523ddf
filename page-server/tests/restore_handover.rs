//! A real criu restores a real process: held, let run, aborted; server, criu and init killed at bad moments. The
//! victim's own log is the judge: one count, never two at a time.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use godwit_page_server::restore::{
    Handover, HandoverError, Identity, Peer, RestoreSettings, Restored, recover,
};
use godwit_wire::control::RestorePidns;
use godwit_wire::journal::{self, Event, Facts, Journal};
use support::criu::{Dumped, require, wait};

/// One restore at a time: what is measured and counted here is about processes of the whole machine.
static ONE: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> std::sync::MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn settings(criu: &Path) -> RestoreSettings {
    RestoreSettings {
        criu: criu.to_owned(),
        pidns: RestorePidns::New,
        program: env!("CARGO_BIN_EXE_godwit-page-server").into(),
        action_scripts: Vec::new(),
        time_limit: Some(Duration::from_secs(30)),
    }
}

fn peer() -> Peer {
    Peer { address: "a test".into(), identity: "its certificate".into() }
}

/// A session with a dumped victim; whatever was restored is killed at the end.
struct Bench {
    dumped: Dumped,
    settings: RestoreSettings,
}

impl Bench {
    fn new(criu: &Path) -> Self {
        Self { dumped: Dumped::new(criu), settings: settings(criu) }
    }

    /// A root with two processes below it, to be restored into such a pid namespace.
    fn of_tree(criu: &Path, pidns: RestorePidns) -> Self {
        let settings = RestoreSettings { pidns, ..settings(criu) };
        Self { dumped: Dumped::tree(criu, 2), settings }
    }

    /// The processes that the journal says were held, in its order.
    fn noted(&self) -> Vec<Identity> {
        let facts = journal::Summary::of(&journal::read(&self.state_dir(), "id").unwrap()).facts;
        facts.members.iter().map(Identity::from).collect()
    }

    fn reopen(&self) -> Handover {
        Handover::reopen(&self.state_dir(), "id", self.settings.clone()).unwrap()
    }

    fn state_dir(&self) -> PathBuf {
        self.dumped.dir().join("state")
    }

    fn handover(&self) -> Handover {
        let (state, images) = (self.state_dir(), &self.dumped.images);
        let mut handover =
            Handover::new(&state, "id", "s", images, &peer(), "another boot", self.settings.clone()).unwrap();
        handover.prepared().unwrap();
        handover
    }

    fn recover(&self) -> godwit_page_server::restore::Found {
        let mut found = recover(&self.state_dir(), &self.settings).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn events(&self) -> Vec<Event> {
        journal::read(&self.state_dir(), "id").unwrap().iter().map(|record| record.kind()).collect()
    }

    /// Every process that a work directory names, and whatever runs the victim's program, is gone.
    fn check_nothing_left(&self) {
        let program = self.dumped.dir().join("victim");
        wait("all processes of the restore end", || processes_of(&program).is_empty());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let entries = std::fs::read_dir(self.state_dir()).into_iter().flatten().flatten();
        for init in entries.filter_map(|entry| std::fs::read(entry.path().join("init.json")).ok()) {
            let init: Identity = serde_json::from_slice(&init).unwrap();
            let _ = init.kill(Duration::from_secs(10));
        }
        for pid in processes_of(&self.dumped.dir().join("victim")) {
            let _ = Identity::of(pid).and_then(|process| process.kill(Duration::from_secs(10)));
        }
    }
}

fn processes_of(program: &Path) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
        .collect()
}

fn child_named(parent: i32, name: &str) -> Identity {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    for pid in children.split_ascii_whitespace().map(|pid| pid.parse::<i32>().unwrap()) {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        if String::from_utf8_lossy(&line).contains(name) {
            return Identity::of(pid).unwrap();
        }
    }
    panic!("no child {name} of {parent}");
}

fn check_held(bench: &Bench, restored: &Restored) {
    assert!(restored.root.is_alive() && restored.init.is_alive());
    let exe = std::fs::read_link(format!("/proc/{}/exe", restored.root.pid)).unwrap();
    assert_eq!(exe, bench.dumped.dir().join("victim"));
    bench.dumped.check_silent();
}

#[test]
fn held_then_let_run() {
    for version in ["4.1", "4.2"] {
        let Some(criu) = require("held_then_let_run", version) else { return };
        let _one = one_at_a_time();
        let bench = Bench::new(&criu);
        let mut handover = bench.handover();
        let restored = handover.restore().unwrap();
        assert!(restored.own_pidns && restored.root.pid != bench.dumped.pid);
        check_held(&bench, &restored);
        let again = handover.restore().unwrap();
        assert_eq!((again.root, again.init), (restored.root, restored.init), "asked again: the same tree");
        assert!(handover.status().is_held);
        let running = handover.commit(1).unwrap();
        assert_eq!(running.pid, restored.root.pid);
        eprintln!("criu {version}: restore {} us, resume {} us", restored.restore_us, running.resume_us);
        bench.dumped.wait_running();
        bench.dumped.check_one_life();
        assert_eq!(handover.commit(1).unwrap().pid, running.pid, "asked again: the same answer");
        let refused = handover.abort("too late").unwrap_err();
        assert!(matches!(refused, HandoverError::State { .. }), "{refused}");
        use Event::{Done, Open, Prepared, Restored, Restoring, Running};
        assert_eq!(bench.events(), [Open, Prepared, Restoring, Restored, Running, Done]);
        // The tree outlives the server, and its end is the end of its init.
        drop(handover);
        bench.dumped.wait_running();
        restored.root.kill(Duration::from_secs(5)).unwrap();
        wait("the init ends with its tree", || !restored.init.is_alive());
    }
}

#[test]
fn aborted_leaves_nothing() {
    for pidns in [RestorePidns::New, RestorePidns::Host] {
        let Some(criu) = require("aborted_leaves_nothing", "4.2") else { return };
        let _one = one_at_a_time();
        let mut bench = Bench::new(&criu);
        bench.settings.pidns = pidns;
        let mut handover = bench.handover();
        let restored = handover.restore().unwrap();
        assert_eq!(restored.own_pidns, pidns == RestorePidns::New);
        check_held(&bench, &restored);
        handover.abort("the source changed its mind").unwrap();
        assert!(!restored.root.is_alive() && !restored.init.is_alive(), "{pidns:?}");
        bench.check_nothing_left();
        bench.dumped.check_silent();
        handover.abort("again").unwrap();
        assert!(matches!(handover.commit(1), Err(HandoverError::State { .. })));
        assert!(matches!(handover.restore(), Err(HandoverError::State { .. })));
        assert!(bench.dumped.images.join("inventory.img").exists());
        assert_eq!(bench.events().last(), Some(&Event::Aborted));
    }
}

#[test]
fn a_tree_of_processes_is_held_let_run_and_killed_whole() {
    for (version, pidns) in
        [("4.1", RestorePidns::New), ("4.2", RestorePidns::New), ("4.2", RestorePidns::Host)]
    {
        let Some(criu) = require("a_tree_of_processes_is_held_let_run_and_killed_whole", version) else {
            return;
        };
        let _one = one_at_a_time();
        for is_committed in [true, false] {
            let bench = Bench::of_tree(&criu, pidns);
            let mut handover = bench.handover();
            let restored = handover.restore().unwrap();
            check_held(&bench, &restored);
            let program = bench.dumped.dir().join("victim");
            let noted = bench.noted();
            assert!(noted.len() == 3 && noted[0] == restored.root && noted.iter().all(Identity::is_alive));
            assert!(noted.iter().all(|process| processes_of(&program).contains(&process.pid)), "{noted:?}");
            if is_committed {
                assert_eq!(handover.commit(1).unwrap().pid, restored.root.pid);
                bench.dumped.wait_running();
                // The end of the root is not that of the tree.
                restored.root.kill(Duration::from_secs(5)).unwrap();
                std::thread::sleep(Duration::from_millis(50));
                assert!(restored.init.is_alive() && noted[1..].iter().all(Identity::is_alive));
                noted[2].kill(Duration::from_secs(5)).unwrap();
                noted[1].kill(Duration::from_secs(5)).unwrap();
                wait("the init ends with its tree", || !restored.init.is_alive());
            } else {
                handover.abort("the source changed its mind").unwrap();
                assert!(!noted.iter().any(Identity::is_alive) && !restored.init.is_alive(), "{pidns:?}");
                bench.check_nothing_left();
                bench.dumped.check_silent();
            }
            bench.dumped.check_one_life();
        }
    }
}

#[test]
fn a_tree_that_lost_a_process_while_it_was_held_is_restored_anew() {
    let Some(criu) = require("a_tree_that_lost_a_process_while_it_was_held", "4.2") else { return };
    let _one = one_at_a_time();
    for pidns in [RestorePidns::New, RestorePidns::Host] {
        for lost in 0..3 {
            let bench = Bench::of_tree(&criu, pidns);
            let mut handover = bench.handover();
            handover.restore().unwrap();
            let first = bench.noted();
            first[lost].kill(Duration::from_secs(5)).unwrap();
            assert!(!handover.status().is_held, "{pidns:?}, process {lost}");
            bench.dumped.check_silent();
            if lost == 1 {
                drop(handover);
                let found = bench.recover();
                assert_eq!((found.state, found.is_held), (Some(Event::Restored), false), "{found:?}");
                handover = found.handover.unwrap();
            }
            let running = handover.commit(1).unwrap_or_else(|e| panic!("{pidns:?}, process {lost}: {e}"));
            assert!(!first.iter().any(Identity::is_alive) && bench.noted().len() == 3);
            assert_eq!(running.pid, bench.noted()[0].pid);
            bench.dumped.wait_running();
            bench.dumped.check_one_life();
            assert_eq!(processes_of(&bench.dumped.dir().join("victim")).len(), 3);
        }
    }
}

/// In the host's pid namespace a held tree outlives its init: the journal tells who it is.
#[test]
fn a_held_tree_that_outlived_its_init_is_killed() {
    let Some(criu) = require("a_held_tree_that_outlived_its_init_is_killed", "4.2") else { return };
    let _one = one_at_a_time();
    for (has_plan, root_dies) in [(true, false), (true, true), (false, false), (false, true)] {
        let bench = Bench::of_tree(&criu, RestorePidns::Host);
        let restored = bench.handover().restore().unwrap();
        let restorer = child_named(restored.init.pid, "restore");
        restored.init.kill(Duration::from_secs(5)).unwrap();
        restorer.kill(Duration::from_secs(5)).unwrap();
        if root_dies {
            restored.root.kill(Duration::from_secs(5)).unwrap();
        }
        let noted = bench.noted();
        assert!(noted[1..].iter().all(Identity::is_alive), "there is nothing to be killed");
        if !has_plan {
            std::fs::remove_file(bench.state_dir().join("id.restore-1/plan.json")).unwrap();
        }
        bench.reopen().abort("test").unwrap();
        assert!(!noted.iter().any(Identity::is_alive), "{has_plan}, {root_dies}");
        assert_eq!(bench.events().last(), Some(&Event::Aborted));
        bench.check_nothing_left();
        bench.dumped.check_silent();
    }
}

/// A tree that runs in the host's pid namespace, without its init and its root: its images are not restored again.
#[test]
fn a_running_tree_that_outlived_its_init_and_its_root_is_not_restored_twice() {
    let Some(criu) = require("a_running_tree_that_outlived_its_init_and_its_root", "4.2") else { return };
    let _one = one_at_a_time();
    let bench = Bench::of_tree(&criu, RestorePidns::Host);
    let mut handover = bench.handover();
    let restored = handover.restore().unwrap();
    handover.commit(1).unwrap();
    bench.dumped.wait_running();
    handover.journal_mut().append(Event::Failed, Facts::default()).unwrap();
    drop(handover);
    let noted = bench.noted();
    for process in [restored.init, restored.root] {
        process.kill(Duration::from_secs(5)).unwrap();
        match bench.reopen().prepare_again("test") {
            Err(HandoverError::MayRun { at, .. }) => {
                let alive = noted.iter().find(|process| process.is_alive()).unwrap();
                assert!(at.contains(&alive.pid.to_string()), "{at}");
            }
            other => panic!("{other:?}"),
        }
    }
    for process in &noted[1..] {
        process.kill(Duration::from_secs(5)).unwrap();
    }
    bench.reopen().prepare_again("test").unwrap();
}

#[test]
fn a_held_tree_whose_directory_is_lost_is_killed_by_the_journal() {
    let Some(criu) = require("a_held_tree_whose_directory_is_lost", "4.2") else { return };
    let _one = one_at_a_time();
    let bench = Bench::new(&criu);
    let mut handover = bench.handover();
    let restored = handover.restore().unwrap();
    check_held(&bench, &restored);
    let work =
        journal::Summary::of(&journal::read(&bench.state_dir(), "id").unwrap()).facts.work_dir.unwrap();
    drop(handover);
    std::fs::remove_file(Path::new(&work).join("plan.json")).unwrap();
    let mut handover = Handover::reopen(&bench.state_dir(), "id", bench.settings.clone()).unwrap();
    handover.abort("test").unwrap();
    assert!(!restored.root.is_alive() && !restored.init.is_alive());
    assert_eq!(bench.events().last(), Some(&Event::Aborted));
    bench.check_nothing_left();
}

#[test]
fn an_attempt_of_which_nothing_is_known_is_not_called_aborted() {
    let Some(criu) = require("an_attempt_of_which_nothing_is_known", "4.2") else { return };
    let _one = one_at_a_time();
    let bench = Bench::new(&criu);
    drop(bench.handover());
    let mut journal = Journal::open(&bench.state_dir(), "id").unwrap();
    let work_dir = Some(bench.state_dir().join("gone").display().to_string());
    journal.append(Event::Restoring, Facts { work_dir, ..Facts::default() }).unwrap();
    drop(journal);
    let mut handover = Handover::reopen(&bench.state_dir(), "id", bench.settings.clone()).unwrap();
    for _ in 0..2 {
        assert!(matches!(handover.abort("test"), Err(HandoverError::NotKilled { .. })));
    }
    assert_eq!(bench.events().last(), Some(&Event::Restoring));
}

#[test]
fn in_the_hosts_pid_namespace_the_pid_stays() {
    let Some(criu) = require("in_the_hosts_pid_namespace_the_pid_stays", "4.2") else { return };
    let _one = one_at_a_time();
    let mut bench = Bench::new(&criu);
    bench.settings.pidns = RestorePidns::Auto;
    let mut handover = bench.handover();
    let restored = handover.restore().unwrap();
    assert!(!restored.own_pidns, "its pid is free, and the source is another machine");
    assert_eq!(restored.root.pid, bench.dumped.pid);
    check_held(&bench, &restored);
    handover.commit(1).unwrap();
    bench.dumped.wait_running();
    bench.dumped.check_one_life();
    restored.root.kill(Duration::from_secs(5)).unwrap();
    wait("the init ends with its tree", || !restored.init.is_alive());
}

#[test]
fn a_taken_pid_wants_a_namespace() {
    let Some(criu) = require("a_taken_pid_wants_a_namespace", "4.2") else { return };
    let _one = one_at_a_time();
    let mut bench = Bench::new(&criu);
    // A core image with this very process's id: it is taken for sure.
    std::fs::copy(
        bench.dumped.images.join(format!("core-{}.img", bench.dumped.pid)),
        bench.dumped.images.join(format!("core-{}.img", std::process::id())),
    )
    .unwrap();
    bench.settings.pidns = RestorePidns::Host;
    match bench.handover().restore() {
        Err(HandoverError::RestoreFailed { reason, .. }) => assert!(reason.contains("is taken"), "{reason}"),
        other => panic!("{other:?}"),
    }
    std::fs::rename(bench.state_dir(), bench.dumped.dir().join("old")).unwrap();
    bench.settings.pidns = RestorePidns::Auto;
    let mut handover = bench.handover();
    assert!(handover.restore().unwrap().own_pidns);
    handover.abort("done").unwrap();
}

#[test]
fn a_raised_token_fences_the_source_off() {
    let Some(criu) = require("a_raised_token_fences_the_source_off", "4.2") else { return };
    let _one = one_at_a_time();
    let bench = Bench::new(&criu);
    let mut handover = bench.handover();
    handover.restore().unwrap();
    assert_eq!(handover.journal_mut().raise_token("by hand").unwrap(), 2);
    let fenced = handover.commit(1).unwrap_err();
    assert!(matches!(fenced, HandoverError::Fenced { given: 1, in_force: 2, .. }), "{fenced}");
    bench.dumped.check_silent();
    handover.commit(2).unwrap();
    bench.dumped.wait_running();
    bench.dumped.check_one_life();
}

#[test]
fn a_lost_tree_is_restored_anew_on_commit() {
    for victim in ["criu", "init", "root"] {
        let Some(criu) = require("a_lost_tree_is_restored_anew_on_commit", "4.2") else { return };
        let _one = one_at_a_time();
        let bench = Bench::new(&criu);
        let mut handover = bench.handover();
        let first = handover.restore().unwrap();
        match victim {
            "criu" => child_named(first.init.pid, "restore").kill(Duration::from_secs(10)).unwrap(),
            "init" => first.init.kill(Duration::from_secs(5)).unwrap(),
            _ => first.root.kill(Duration::from_secs(5)).unwrap(),
        }
        if victim != "root" {
            wait("the held tree goes with it", || !first.root.is_alive());
        }
        bench.dumped.check_silent();
        let running = handover.commit(1).unwrap_or_else(|e| panic!("{victim}: {e}"));
        assert_ne!(running.pid, first.root.pid);
        bench.dumped.wait_running();
        bench.dumped.check_one_life();
        assert_eq!(processes_of(&bench.dumped.dir().join("victim")).len(), 1, "{victim}");
    }
}

#[test]
fn what_cannot_be_restored_is_aborted_with_the_log() {
    let Some(criu) = require("what_cannot_be_restored_is_aborted_with_the_log", "4.2") else { return };
    let _one = one_at_a_time();
    let hang = |bench: &Bench, text: &str| {
        let script = bench.dumped.dir().join("fake-criu");
        std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        script
    };
    for (case, expected) in [
        ("no ids image", "criu restore failed"),
        ("no inventory", "inventory.img"),
        ("a short pages file", "was not restored within"),
        ("no criu", "init ended"),
        ("a criu that hangs", "was not restored within"),
        ("a criu that never calls the hook", "ok"),
        ("a foreign option", "--config"),
    ] {
        let mut bench = Bench::new(&criu);
        let images = &bench.dumped.images;
        bench.settings.time_limit = Some(Duration::from_secs(2));
        match case {
            "no ids image" => {
                std::fs::remove_file(images.join(format!("ids-{}.img", bench.dumped.pid))).unwrap()
            }
            "no inventory" => std::fs::remove_file(images.join("inventory.img")).unwrap(),
            "a short pages file" => {
                let file = std::fs::OpenOptions::new().write(true).open(images.join("pages-1.img")).unwrap();
                file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
            }
            "no criu" => bench.settings.criu = "/nonexistent/criu".into(),
            "a criu that hangs" => bench.settings.criu = hang(&bench, "exec sleep 1000"),
            "a criu that never calls the hook" => bench.settings.criu = hang(&bench, "exit 0"),
            _ => write_manifest_with_option(images, "--config=/tmp/x"),
        }
        let mut handover = bench.handover();
        let start = Instant::now();
        match handover.restore() {
            Err(HandoverError::RestoreFailed { reason, log_tail, .. }) => {
                assert!(reason.contains(expected), "{case}: {reason}\n{log_tail}");
                assert!(case != "no ids image" || log_tail.contains("Error"), "{case}: {log_tail}");
                assert!(case != "no criu" || log_tail.contains("cannot be started"), "{case}: {log_tail}");
            }
            other => panic!("{case}: {other:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(12), "{case}");
        bench.check_nothing_left();
        assert_eq!(bench.events().last(), Some(&Event::Aborted), "{case}");
        bench.dumped.check_silent();
    }
}

fn write_manifest_with_option(images: &Path, option: &str) {
    use godwit_wire::image::manifest::Manifest;
    use godwit_wire::plan::RoundKind;
    let manifest = Manifest {
        session: "s".into(),
        round: 1,
        base_round: None,
        kind: RoundKind::Final,
        restore_options: vec![option.into()],
        root_pid: 1,
        dumped_at_us: 0,
        tool_version: "test".into(),
        files: Vec::new(),
        pages: Vec::new(),
    };
    std::fs::write(images.join("godwit-manifest.img"), manifest.encode().unwrap()).unwrap();
}

#[test]
fn a_failure_after_commit_keeps_the_images() {
    let Some(criu) = require("a_failure_after_commit_keeps_the_images", "4.2") else { return };
    let _one = one_at_a_time();
    let bench = Bench::new(&criu);
    let mut handover = bench.handover();
    let first = handover.restore().unwrap();
    first.init.kill(Duration::from_secs(5)).unwrap();
    std::fs::rename(bench.dumped.images.join("pstree.img"), bench.dumped.dir().join("pstree.img")).unwrap();
    match handover.commit(1) {
        Err(HandoverError::Failed { images_dir, .. }) => assert_eq!(images_dir, bench.dumped.images),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.events().last(), Some(&Event::Failed));
    assert!(
        matches!(handover.abort("no"), Err(HandoverError::State { .. })),
        "nothing is undone after a commit"
    );
    bench.check_nothing_left();
    // The operator mends the images and restores them.
    std::fs::rename(bench.dumped.dir().join("pstree.img"), bench.dumped.images.join("pstree.img")).unwrap();
    handover.prepare_again("mended").unwrap();
    handover.restore().unwrap();
    handover.commit(1).unwrap();
    bench.dumped.wait_running();
    bench.dumped.check_one_life();
}

/// The tree was lost while it was held, the source committed, and the server died while it restored the tree anew:
/// nothing may be aborted, since the source's tree is dead.
#[test]
fn a_commit_is_carried_out_by_the_next_server() {
    let Some(criu) = require("a_commit_is_carried_out_by_the_next_server", "4.2") else { return };
    let _one = one_at_a_time();
    for record in [Event::Committing, Event::Restoring] {
        let bench = Bench::new(&criu);
        let mut handover = bench.handover();
        handover.restore().unwrap().init.kill(Duration::from_secs(5)).unwrap();
        drop(handover);
        let mut journal = Journal::open(&bench.state_dir(), "id").unwrap();
        journal.append(Event::Committing, Facts::default()).unwrap();
        if record == Event::Restoring {
            journal.append(record, Facts::default()).unwrap();
        }
        drop(journal);
        let found = bench.recover();
        assert_eq!(found.state, Some(Event::Done), "{}", found.text);
        bench.dumped.wait_running();
        bench.dumped.check_one_life();
        assert_eq!(processes_of(&bench.dumped.dir().join("victim")).len(), 1);
    }
}

#[test]
fn a_source_that_gives_up_cancels() {
    let Some(criu) = require("a_source_that_gives_up_cancels", "4.2") else { return };
    let _one = one_at_a_time();
    let mut bench = Bench::new(&criu);
    bench.settings.criu = slow_criu(&bench, &criu);
    let mut handover = bench.handover();
    let flag = handover.cancel_flag();
    let setter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        flag.store(true, Ordering::SeqCst);
    });
    assert!(matches!(handover.restore(), Err(HandoverError::RestoreFailed { .. })));
    setter.join().unwrap();
    assert_eq!(bench.events().last(), Some(&Event::Aborted));
    bench.check_nothing_left();
}

/// A criu that waits a second before it begins.
fn slow_criu(bench: &Bench, criu: &Path) -> PathBuf {
    let script = bench.dumped.dir().join("slow-criu");
    std::fs::write(&script, format!("#!/bin/sh\nsleep 1\nexec '{}' \"$@\"\n", criu.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Not a test: the server that [`killed_server`] starts and kills.
#[test]
#[ignore = "started by other tests"]
fn server_to_be_killed() {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(dir), Some(criu)) = (variable("STORE_TEST_DIR"), variable("STORE_TEST_CRIU")) else { return };
    let images = dir.join("s/final");
    let mut handover =
        Handover::new(&dir.join("state"), "id", "s", &images, &peer(), "another boot", settings(&criu))
            .unwrap();
    handover.prepared().unwrap();
    std::fs::write(dir.join("preparing"), "").unwrap();
    handover.restore().unwrap();
    std::fs::write(dir.join("restored"), "").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

/// Runs a server in a process of its own and kills it with SIGKILL when `when` says so.
fn killed_server(bench: &Bench, criu: &Path, when: impl FnMut() -> bool) {
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server_to_be_killed", "--ignored", "--nocapture"])
        .env("STORE_TEST_DIR", bench.dumped.dir())
        .env("STORE_TEST_CRIU", criu)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait("the server comes that far", when);
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_held_tree_outlives_its_server() {
    let Some(criu) = require("a_held_tree_outlives_its_server", "4.2") else { return };
    let _one = one_at_a_time();
    for decision in ["commit", "abort", "server again"] {
        let bench = Bench::new(&criu);
        killed_server(&bench, &criu, || bench.dumped.dir().join("restored").exists());
        bench.dumped.check_silent();
        let mut found = bench.recover();
        assert_eq!((found.state, found.is_held), (Some(Event::Restored), true), "{found:?}");
        if decision == "server again" {
            drop(found);
            bench.dumped.check_silent();
            found = bench.recover();
            assert!(found.is_held);
        }
        let mut handover = found.handover.unwrap();
        if decision == "abort" {
            handover.abort("decided").unwrap();
            bench.check_nothing_left();
            bench.dumped.check_silent();
        } else {
            let before = handover.restore().unwrap();
            assert_eq!(handover.commit(1).unwrap().pid, before.root.pid);
            bench.dumped.wait_running();
        }
        bench.dumped.check_one_life();
    }
}

#[test]
fn a_half_restored_tree_of_a_killed_server_is_aborted() {
    let Some(criu) = require("a_half_restored_tree_of_a_killed_server_is_aborted", "4.2") else { return };
    let _one = one_at_a_time();
    // With the true criu the server dies anywhere in the restore, or behind it.
    let delays =
        [(true, 0), (true, 5), (true, 40), (false, 3), (false, 8), (false, 16), (false, 30), (false, 60)];
    for (is_slow, delay_ms) in delays {
        let bench = Bench::new(&criu);
        let slow = if is_slow { slow_criu(&bench, &criu) } else { criu.clone() };
        let mut since = None;
        killed_server(&bench, &slow, || {
            if since.is_none() && bench.dumped.dir().join("preparing").exists() {
                since = Some(Instant::now());
            }
            since.is_some_and(|since| since.elapsed() > Duration::from_millis(delay_ms))
        });
        let mut found = bench.recover();
        match found.state {
            Some(Event::Aborted) => {}
            Some(Event::Restored) if !is_slow => {
                assert!(found.is_held);
                bench.dumped.check_silent();
                found.handover.as_mut().unwrap().abort("decided").unwrap();
            }
            // It was killed before it began.
            Some(Event::Prepared) => assert!(!bench.events().contains(&Event::Restoring)),
            other => panic!("{other:?}: {}", found.text),
        }
        bench.check_nothing_left();
        std::thread::sleep(Duration::from_millis(1200));
        bench.check_nothing_left();
        bench.dumped.check_silent();
    }
}

/// The server died between the record `running` and the word to the hook, or between the word and `done`.
#[test]
fn a_recorded_release_is_carried_out() {
    let Some(criu) = require("a_recorded_release_is_carried_out", "4.2") else { return };
    let _one = one_at_a_time();
    for already_released in [false, true] {
        let bench = Bench::new(&criu);
        let mut handover = bench.handover();
        let restored = handover.restore().unwrap();
        drop(handover);
        let mut journal = Journal::open(&bench.state_dir(), "id").unwrap();
        journal.append(Event::Running, Facts::default()).unwrap();
        drop(journal);
        if already_released {
            let fifo = bench.state_dir().join("id.restore-1/decision");
            std::fs::write(fifo, "release\n").unwrap();
            bench.dumped.wait_running();
        }
        let found = bench.recover();
        assert_eq!(found.state, Some(Event::Done), "{}", found.text);
        bench.dumped.wait_running();
        bench.dumped.check_one_life();
        assert!(restored.root.is_alive());
        assert_eq!(processes_of(&bench.dumped.dir().join("victim")).len(), 1);
    }
}
