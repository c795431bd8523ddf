//! The lasting freeze of a whole tree: it lies still, runs on or dies as one, also when the dumper that froze it is killed
//! at any place of that. The victim has three processes, each of which says so when it notices the end of another.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit_dumper::freeze::seize::{self, Frozen};
use godwit_dumper::handover::freezer::Freezer;
use godwit_dumper::handover::member::{self, Member};
use godwit_dumper::prepare::leftovers;
use godwit_dumper::prepare::root::Root;
use godwit_dumper::procfs::{cgroup, host, stat, tree};
use godwit_wire::journal::{Event, Facts, Journal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::child::eventually;
use support::product::source_state;
use support::scene::{is_alive, status_field};
use support::untouched::cgroups_left;
use support::{Scene, Verdict, Victim, godwit};

/// The victim `heirs`, and who is in it: root, child, grandchild.
struct Tree {
    victim: Victim,
    pids: Vec<Pid>,
    home: String,
}

impl Tree {
    fn start(scene: &Scene) -> Tree {
        let victim = Victim::start(scene, "heirs", &[]);
        let root = Pid::from_raw(victim.pid);
        let child = tree::children(root, root).unwrap()[0];
        let pids = vec![root, child, tree::children(child, child).unwrap()[0]];
        Tree { home: cgroup_of(root), pids, victim }
    }

    /// Pinned, parents before children.
    fn members(&self) -> Vec<Member> {
        self.pids.iter().map(|pid| Member::pin(*pid, state(*pid) == 'T').unwrap().unwrap()).collect()
    }

    /// Stopped by ptrace, as the dumper has it when the hand-over begins.
    fn seize(&self) -> Vec<Frozen> {
        self.pids.iter().map(|pid| seize::seize(*pid).unwrap()).collect()
    }

    fn freezer(&self, name: &str) -> Freezer {
        Freezer::plan(self.pids[0], self.members(), name, &self.home)
    }

    /// What the journal says of it.
    fn facts(&self, freezer: &Freezer) -> Facts {
        let root = Member::pin(self.pids[0], false).unwrap().unwrap().to_record();
        Facts {
            pid: Some(root.pid),
            start_time: Some(root.start_time),
            boot_id: Some(host::boot_id().unwrap()),
            ..freezer.facts()
        }
    }

    /// As where there is no cgroup v2.
    fn facts_by_signal(&self) -> Facts {
        Facts { cgroup: Some("sigstop-each".to_owned()), ..self.facts(&self.freezer("unused")) }
    }

    fn noticed(&self) -> String {
        std::fs::read_to_string(self.victim.dir().join("noticed")).unwrap_or_default()
    }

    #[track_caller]
    fn expect_still(&self) {
        // The way from a ptrace stop into the freezer is a switch as well.
        std::thread::sleep(Duration::from_millis(50));
        let before: Vec<_> = self.pids.iter().map(|pid| switches(*pid)).collect();
        std::thread::sleep(Duration::from_millis(60));
        let after: Vec<_> = self.pids.iter().map(|pid| switches(*pid)).collect();
        assert_eq!(before, after, "it runs: {}", self.describe());
    }

    /// All of it runs, untraced, where it was before.
    #[track_caller]
    fn expect_runs(&mut self) {
        let before: Vec<_> = self.pids.iter().map(|pid| switches(*pid)).collect();
        eventually("all of it runs", Duration::from_secs(5), || {
            self.pids.iter().zip(&before).all(|(pid, before)| switches(*pid) > *before)
        });
        self.victim.expect_untouched();
        for pid in &self.pids {
            assert_eq!(cgroup_of(*pid), self.home, "{}", self.describe());
            assert_eq!(status_field(pid.as_raw(), "TracerPid").as_deref(), Some("0"), "{}", self.describe());
        }
    }

    /// All of it is dead, and none learnt of another's end before.
    #[track_caller]
    fn expect_dead_at_once(&self) {
        eventually("all of it is dead", Duration::from_secs(5), || {
            self.pids.iter().all(|pid| !is_alive(pid.as_raw()))
        });
        assert_eq!(self.noticed(), "");
    }

    fn describe(&self) -> String {
        let state = |pid: &Pid| (pid.as_raw(), state(*pid), cgroup::read(*pid).unwrap_or_default());
        format!("{:?}, noticed: {:?}", self.pids.iter().map(state).collect::<Vec<_>>(), self.noticed())
    }
}

fn found(facts: &Facts) -> Freezer {
    Freezer::of_journal(facts).unwrap().unwrap()
}

fn state(pid: Pid) -> char {
    stat::read(pid).map_or('-', |stat| char::from(stat.state))
}

/// How often the first thread went to sleep: each does 200 times a second.
fn switches(pid: Pid) -> u64 {
    status_field(pid.as_raw(), "voluntary_ctxt_switches").and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn cgroup_of(pid: Pid) -> String {
    let found = cgroup::read(pid).unwrap().into_iter().find(|member| member.hierarchy == 0);
    found.map_or_else(String::new, |found| String::from_utf8(found.path).unwrap())
}

/// Cgroup v2, seen by a mount of the scene's.
fn cgroup_file(scene: &Scene, path: &str) -> PathBuf {
    cgroups_left(scene);
    scene.dir().join("cgroup2").join(path.trim_start_matches('/'))
}

fn has_cgroup2() -> bool {
    let has = godwit_dumper::sys::mount::cgroup2().is_ok();
    if !has {
        eprintln!("SKIP: cgroup v2 cannot be mounted here");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
    }
    has
}

#[test]
fn a_tree_lies_still_as_one_and_runs_on_as_one() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    let scene = Scene::new("tree");
    let mut tree = Tree::start(&scene);
    let freezer = tree.freezer("tree-still");
    let stopped = tree.seize();
    let begun = Instant::now();
    freezer.freeze().unwrap();
    println!("three processes are frozen in {:?}", begun.elapsed());
    drop(stopped);
    tree.expect_still();
    let cgroups: Vec<_> = tree.pids.iter().map(|pid| cgroup_of(*pid)).collect();
    assert!(cgroups.iter().all(|path| path.ends_with("/godwit-tree-still")), "{cgroups:?}");
    kill(tree.pids[1], Signal::SIGCONT).unwrap();
    tree.expect_still();
    let later = found(&tree.facts(&freezer));
    assert_eq!(later.alive().unwrap(), tree.pids);
    later.thaw().unwrap();
    tree.expect_runs();
    later.thaw().unwrap();
    assert_eq!(tree.victim.check(), Verdict::Ok);
    assert!(!later.is_alive().unwrap());
}

/// A dumper died between the thaw and the way back, and the tree forked in our cgroup meanwhile.
#[test]
fn what_was_forked_meanwhile_goes_back_or_dies_with_the_tree() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    for is_killed in [false, true] {
        let scene = Scene::new("forked");
        let mut tree = Tree::start(&scene);
        let freezer = tree.freezer("tree-forked");
        let stopped = tree.seize();
        freezer.freeze().unwrap();
        drop(stopped);
        let facts = tree.facts(&freezer);
        std::fs::create_dir_all(source_state(&scene)).unwrap();
        std::fs::write(cgroup_file(&scene, &cgroup_of(tree.pids[0])).join("cgroup.freeze"), "0").unwrap();
        tree.victim.tell("fork");
        let forked = tree.victim.dir().join("forked");
        eventually("it forks", Duration::from_secs(5), || forked.exists());
        let forked = Pid::from_raw(std::fs::read_to_string(forked).unwrap().trim().parse().unwrap());
        assert!(cgroup_of(forked).ends_with("/godwit-tree-forked"));
        tree.pids.push(forked);
        let mut later = found(&facts);
        if is_killed {
            later.kill().unwrap();
            tree.expect_dead_at_once();
        } else {
            later.thaw().unwrap();
            tree.expect_runs();
            assert_eq!(tree.victim.check(), Verdict::Ok);
        }
        assert!(!later.remove_empty(), "the cgroup is left");
    }
}

/// The hold was given up, but its journal does not say so: what the tree has forked since then dies with it.
#[test]
fn a_tree_that_was_let_run_is_killed_with_what_it_forked() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    let scene = Scene::new("let-run");
    let mut tree = Tree::start(&scene);
    let freezer = tree.freezer("tree-let-run");
    freezer.freeze().unwrap();
    freezer.thaw().unwrap();
    let facts = tree.facts(&freezer);
    tree.victim.tell("fork");
    let forked = tree.victim.dir().join("forked");
    eventually("it forks", Duration::from_secs(5), || forked.exists());
    tree.pids.push(Pid::from_raw(std::fs::read_to_string(forked).unwrap().trim().parse().unwrap()));
    let mut later = found(&facts);
    later.kill().unwrap();
    assert!(tree.pids.iter().all(|pid| !is_alive(pid.as_raw())), "{}", tree.describe());
    tree.expect_dead_at_once();
}

#[test]
fn a_tree_whose_root_died_is_not_gone() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    for by_signal in [false, true] {
        let scene = Scene::new("rootless");
        let tree = Tree::start(&scene);
        let freezer = tree.freezer("tree-rootless");
        let facts = if by_signal { tree.facts_by_signal() } else { tree.facts(&freezer) };
        found(&facts).freeze().unwrap();
        kill(tree.pids[0], Signal::SIGKILL).unwrap();
        eventually("the root dies", Duration::from_secs(5), || !is_alive(tree.pids[0].as_raw()));
        let mut later = found(&facts);
        assert!(later.is_alive().unwrap());
        assert_eq!(later.alive().unwrap(), tree.pids[1..]);
        later.kill().unwrap();
        assert!(!later.is_alive().unwrap());
        assert!(tree.pids.iter().all(|pid| !is_alive(pid.as_raw())), "{}", tree.describe());
    }
}

/// How a tree is held while it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Frozen by the cgroup, and by the dumper's own ptrace stop.
    CgroupAndTraced,
    /// Frozen by the cgroup alone: the dumper is gone.
    Cgroup,
    /// In the dumper's ptrace stop: a dump into a directory.
    Traced,
    /// By SIGSTOP, and by the dumper's own ptrace stop.
    SignalAndTraced,
    /// By SIGSTOP alone: the dumper is gone.
    Signal,
}

#[test]
fn nobody_runs_between_the_death_of_another_and_his_own() {
    require!("root", "cc");
    let rounds = if std::env::var_os("GODWIT_FULL").is_some() { 200 } else { 10 };
    let mut all = vec![Held::Traced, Held::SignalAndTraced, Held::Signal];
    if has_cgroup2() {
        all.extend([Held::CgroupAndTraced, Held::Cgroup]);
    }
    let scene = Scene::new("at-once");
    for held in all {
        for _ in 0..rounds {
            let tree = Tree::start(&scene);
            let mut freezer = tree.freezer("tree-at-once");
            let facts = tree.facts_by_signal();
            let stopped = tree.seize();
            match held {
                Held::Traced => {}
                Held::CgroupAndTraced | Held::Cgroup => freezer.freeze().unwrap(),
                Held::SignalAndTraced | Held::Signal => member::stop_each(&tree.members()).unwrap(),
            }
            let stopped = match held {
                Held::Cgroup | Held::Signal => {
                    drop(stopped);
                    tree.expect_still();
                    Vec::new()
                }
                _ => stopped,
            };
            match held {
                Held::Traced | Held::SignalAndTraced => member::kill_each(&tree.members()).unwrap(),
                Held::Signal => found(&facts).kill().unwrap(),
                Held::CgroupAndTraced => freezer.kill().unwrap(),
                Held::Cgroup => found(&tree.facts(&freezer)).kill().unwrap(),
            }
            drop(stopped);
            tree.expect_dead_at_once();
        }
        println!("{held:?}: {rounds} trees");
    }
}

/// The test above can fail: killed one by one, the same tree notices.
#[test]
fn the_victim_notices_a_kill_one_by_one() {
    require!("root", "cc");
    let scene = Scene::new("one-by-one");
    let tree = Tree::start(&scene);
    let members = tree.members();
    member::stop_each(&members).unwrap();
    tree.expect_still();
    // The root's death orphans the group of the others, which are stopped: they are sent SIGHUP and SIGCONT.
    members[0].signal(Signal::SIGKILL).unwrap();
    eventually("they notice", Duration::from_secs(5), || {
        ["child orphaned", "grandchild orphaned", "child parent-died", "child pipe-ended"]
            .iter()
            .all(|line| tree.noticed().contains(line))
    });
    member::kill_each(&members).unwrap();
}

#[test]
fn only_stops_of_ours_are_undone() {
    require!("root", "cc");
    let scene = Scene::new("stops");
    let mut tree = Tree::start(&scene);
    kill(tree.pids[1], Signal::SIGSTOP).unwrap();
    eventually("it is stopped", Duration::from_secs(5), || state(tree.pids[1]) == 'T');
    // Its parent has seen that, which is the user's doing.
    std::thread::sleep(Duration::from_millis(50));
    let _ = std::fs::remove_file(tree.victim.dir().join("noticed"));
    let facts = tree.facts_by_signal();
    assert_eq!(
        facts.members.iter().map(|member| member.was_stopped).collect::<Vec<_>>(),
        [false, true, false]
    );
    let stopped = tree.seize();
    found(&facts).freeze().unwrap();
    drop(stopped);
    eventually("all are stopped", Duration::from_secs(5), || tree.pids.iter().all(|pid| state(*pid) == 'T'));
    found(&facts).thaw().unwrap();
    eventually("two run", Duration::from_secs(5), || {
        state(tree.pids[0]) == 'S' && state(tree.pids[2]) == 'S'
    });
    assert_eq!(state(tree.pids[1]), 'T');
    kill(tree.pids[1], Signal::SIGCONT).unwrap();
    let _ = std::fs::remove_file(tree.victim.dir().join("noticed"));
    tree.expect_runs();
    assert_eq!(tree.victim.check(), Verdict::Ok);
}

/// A parent that wakes finds none of its children stopped.
#[test]
fn a_tree_held_by_signals_runs_on_without_a_word() {
    require!("root", "cc");
    let scene = Scene::new("signals");
    let mut tree = Tree::start(&scene);
    let facts = tree.facts_by_signal();
    for _ in 0..20 {
        let stopped = tree.seize();
        found(&facts).freeze().unwrap();
        drop(stopped);
        tree.expect_still();
        found(&facts).thaw().unwrap();
        tree.expect_runs();
        assert_eq!(tree.noticed(), "");
    }
    assert_eq!(tree.victim.check(), Verdict::Ok);
}

/// Not a test: the dumper that the tests below kill. It does what the hand-over does, up to `restore-sent`.
#[test]
#[ignore = "started by other tests"]
fn dumper_to_be_killed() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let pids: Vec<Pid> =
        variable("TREE_PIDS").split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect();
    let Some(&root) = pids.first() else { return };
    let members: Vec<_> = pids.iter().map(|pid| Member::pin(*pid, false).unwrap().unwrap()).collect();
    let first = members[0].to_record();
    let mut journal = Journal::create(Path::new(&variable("TREE_STATE")), ID).unwrap();
    let open = Facts {
        pid: Some(first.pid),
        start_time: Some(first.start_time),
        boot_id: Some(host::boot_id().unwrap()),
        session: Some("tree".to_owned()),
        peer: Some("127.0.0.1:9".to_owned()),
        work_dir: Some("/nonexistent".to_owned()),
        text: Some(variable("TREE_TEXT")).filter(|text| !text.is_empty()),
        ..Facts::default()
    };
    journal.append(Event::Open, open.clone()).unwrap();
    let mut freezer = Freezer::plan(root, members, ID, &cgroup_of(root));
    let mut freezing = freezer.facts();
    if variable("TREE_BY") == "signal" {
        freezing.cgroup = Some("sigstop-each".to_owned());
        let mut facts = open;
        facts.merge(&freezing);
        freezer = found(&facts);
    }
    journal.append(Event::Freezing, freezing).unwrap();
    let _stopped: Vec<_> = pids.iter().map(|pid| seize::seize(*pid).unwrap()).collect();
    freezer.freeze().unwrap();
    if variable("TREE_STAGE") == "thawed" {
        freezer.thaw().unwrap();
        return;
    }
    for event in [Event::RestoreSent, Event::Committing] {
        journal.append(event, Facts::default()).unwrap();
        if variable("TREE_STAGE") == event.word() {
            kill(Pid::this(), Signal::SIGKILL).unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
    }
}

/// The session of that dumper.
const ID: &str = "00000000000000aa";

/// Runs that dumper over the tree until it is killed, by a fault or behind a record.
fn killed_dumper(scene: &Scene, tree: &Tree, variables: &[(&str, &str)]) {
    let pids: Vec<String> = tree.pids.iter().map(ToString::to_string).collect();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dumper_to_be_killed", "--ignored", "--nocapture"])
        .env("TREE_PIDS", pids.join(" "))
        .env("TREE_STATE", source_state(scene))
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{variables:?}: {status}");
}

#[test]
fn killed_at_every_place_of_the_freeze_and_swept() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    let cases = [
        ("mid.freezer.made:kill", "", ""),
        ("mid.freezer.moved:kill@1", "", ""),
        ("mid.freezer.moved:kill@2", "", ""),
        ("mid.freezer.moved:kill@3", "", ""),
        ("mid.freezer.freezing:kill", "", ""),
        ("mid.freezer.frozen:kill", "", ""),
        ("mid.freezer.thawed:kill", "thawed", ""),
        ("mid.freezer.moved-back:kill", "thawed", ""),
        ("mid.freezer.signalled:kill", "", "signal"),
    ];
    for (fault, stage, by) in cases {
        let scene = Scene::new("swept");
        let mut tree = Tree::start(&scene);
        killed_dumper(&scene, &tree, &[("GODWIT_FAULT", fault), ("TREE_STAGE", stage), ("TREE_BY", by)]);
        if ["frozen", "signalled"].iter().any(|place| fault.contains(place)) {
            tree.expect_still();
        }
        let swept = godwit(&scene, &["doctor", "--sweep"]).expect_ok();
        let told = format!("session {ID}: process {} and 2 others run again", tree.pids[0]);
        assert!(swept.stdout.contains(&told), "{fault}: {swept}");
        tree.expect_runs();
        assert_eq!(cgroups_left(&scene), Vec::<PathBuf>::new(), "{fault}");
        assert!(!godwit(&scene, &["doctor", "--sweep"]).expect_ok().stdout.contains(ID), "{fault}");
        assert_eq!(tree.victim.check(), Verdict::Ok, "{fault}");
    }
}

/// The next dump finds what was left frozen, whichever process of the tree it is asked to dump.
#[test]
fn the_next_dump_of_any_of_it_lets_it_run() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    for nth in 0..3 {
        let scene = Scene::new("next");
        let mut tree = Tree::start(&scene);
        killed_dumper(&scene, &tree, &[("GODWIT_FAULT", "mid.freezer.frozen:kill")]);
        tree.expect_still();
        let root = Root::open(tree.pids[nth], 0, &Default::default()).unwrap();
        leftovers::thaw(&root, &source_state(&scene)).unwrap();
        tree.expect_runs();
        assert_eq!(tree.victim.check(), Verdict::Ok);
    }
}

#[test]
fn a_dump_of_a_part_of_an_undecided_tree_is_refused() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    let scene = Scene::new("part");
    let tree = Tree::start(&scene);
    killed_dumper(&scene, &tree, &[("TREE_STAGE", "restore-sent")]);
    let part = Root::open(tree.pids[2], 0, &Default::default()).unwrap();
    let refused = leftovers::thaw(&part, &source_state(&scene)).unwrap_err().to_string();
    assert!(refused.contains("session resolve") && refused.contains(&part.pid.to_string()), "{refused}");
    // So is one that it is a part of, of which only the root is known to the caller by another way.
    let others: Vec<_> = [(Pid::from_raw(1), 0), (part.pid, part.start_time)].to_vec();
    assert!(leftovers::thaw_tree(&part.boot_id, &others, &source_state(&scene)).is_err());
    leftovers::thaw_tree(&part.boot_id, &others[..1], &source_state(&scene)).unwrap();
    tree.expect_still();
}

#[test]
fn an_undecided_tree_is_resolved_whole() {
    require!("root", "cc");
    for by in ["cgroup", "signal"] {
        if by == "cgroup" && !has_cgroup2() {
            continue;
        }
        for (root_dies, force) in
            [(false, "--force-source"), (false, "--force-destination"), (true, "--force-destination")]
        {
            let case = format!("held by {by}, {force}, the root is dead: {root_dies}");
            let scene = Scene::new("resolved");
            let mut tree = Tree::start(&scene);
            killed_dumper(&scene, &tree, &[("TREE_STAGE", "restore-sent"), ("TREE_BY", by)]);
            tree.expect_still();
            let swept = godwit(&scene, &["doctor", "--sweep"]).expect_ok();
            assert!(swept.stdout.contains("session resolve"), "{case}: {swept}");
            tree.expect_still();
            if root_dies {
                kill(tree.pids[0], Signal::SIGKILL).unwrap();
                eventually("the root dies", Duration::from_secs(5), || !is_alive(tree.pids[0].as_raw()));
            }
            // The others live, so the source is not gone, and the server cannot be asked.
            let refused = godwit(&scene, &["session", "resolve", ID]).expect_refusal();
            assert!(refused.stderr.contains("--force-source"), "{case}: {refused}");
            godwit(&scene, &["session", "resolve", ID, force]).expect_ok();
            if force == "--force-source" {
                tree.expect_runs();
                assert_eq!(tree.victim.check(), Verdict::Ok, "{case}");
            } else {
                assert!(tree.pids.iter().all(|pid| !is_alive(pid.as_raw())), "{case}: {}", tree.describe());
                if !root_dies {
                    tree.expect_dead_at_once();
                }
            }
            assert_eq!(cgroups_left(&scene), Vec::<PathBuf>::new(), "{case}");
        }
    }
}

/// A dump that only kills, cut off behind `committing`: what is left of the tree is killed, all of it.
#[test]
fn a_kill_that_was_cut_off_is_brought_to_its_end() {
    require!("root", "cc");
    if !has_cgroup2() {
        return;
    }
    let scene = Scene::new("kept");
    let tree = Tree::start(&scene);
    let kept = ("TREE_TEXT", "the images are to be kept, not restored");
    killed_dumper(&scene, &tree, &[("TREE_STAGE", "committing"), kept]);
    tree.expect_still();
    let listed = godwit(&scene, &["session", "list"]).expect_ok();
    assert!(listed.stdout.contains(&format!("pid {}+2", tree.pids[0])), "{listed}");
    let resolved = godwit(&scene, &["session", "resolve", ID]).expect_ok();
    assert!(resolved.stdout.contains("the source is dead"), "{resolved}");
    tree.expect_dead_at_once();
    assert_eq!(cgroups_left(&scene), Vec::<PathBuf>::new());
}

/// What a freeze and a kill of many processes cost. By hand: `GODWIT_FULL=1`.
#[test]
fn many_processes_are_frozen_and_killed() {
    require!("root");
    if !has_cgroup2() {
        return;
    }
    let scene = Scene::new("many");
    let count = if std::env::var_os("GODWIT_FULL").is_some() { 2500 } else { 100 };
    let children: Vec<_> = (0..count)
        .map(|_| {
            let mut sleep = Command::new("sleep");
            sleep.arg("1000").current_dir(scene.dir()).stdin(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let _ = godwit_dumper::prepare::limits::raise();
    let members: Vec<Member> = children
        .iter()
        .map(|child| Member::pin(Pid::from_raw(child.id() as i32), false).unwrap().unwrap())
        .collect();
    let mut journal = Journal::create(&source_state(&scene), ID).unwrap();
    let root = members[0].pid;
    let home = cgroup_of(root);
    let freezer = Freezer::plan(root, members, "tree-many", &home);
    let mut facts = freezer.facts();
    let begun = Instant::now();
    journal.append(Event::Freezing, facts.clone()).unwrap();
    let noted = begun.elapsed();
    freezer.freeze().unwrap();
    let frozen = begun.elapsed() - noted;
    facts = journal.summary().facts;
    facts.pid = Some(facts.members[0].pid);
    facts.start_time = Some(facts.members[0].start_time);
    facts.boot_id = Some(host::boot_id().unwrap());
    let mut later = found(&facts);
    assert_eq!(later.alive().unwrap().len(), count);
    let begun = Instant::now();
    later.kill().unwrap();
    println!("{count} processes: noted in {noted:?}, frozen in {frozen:?}, killed in {:?}", begun.elapsed());
    for mut child in children {
        child.wait().unwrap();
    }
}
