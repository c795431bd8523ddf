//! The hand-over under crashes: the dumper, the page server and the held criu are killed, and the link is cut,
//! before and after every message and every journal record. Afterwards, with `session resolve` where it is asked
//! for, exactly one whole copy is left, and at no time did two run.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::child::{Running, eventually};
use support::lab::{CriuVersion, Restored};
use support::moved::{copies, roots};
use support::product::{Server, godwit, godwit_command, migrate_args};
use support::scene::{self, is_alive};
use support::victim::{Verdict, Victim, verdict};
use support::{Scene, Witness};

/// Messages of the hand-over, with the side that sends them.
const MESSAGES: &[(&str, Side)] = &[
    ("Prepare", Side::Source),
    ("Prepared", Side::Destination),
    ("Restore", Side::Source),
    ("Restored", Side::Destination),
    ("Commit", Side::Source),
    ("Done", Side::Destination),
];
const SOURCE_RECORDS: &[&str] = &["freezing", "restore-sent", "committing", "killed", "released"];
const DESTINATION_RECORDS: &[&str] = &["prepared", "restoring", "restored", "running", "done"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// One crash: which program gets which fault.
#[derive(Clone, Debug)]
struct Crash {
    side: Side,
    fault: String,
}

impl Crash {
    fn is_cut(&self) -> bool {
        self.fault.ends_with(":cut")
    }

    /// How it must end. Until the source has journaled `committing` it asks the destination to give its copy up, itself
    /// or by `session resolve`, and runs on; from there on there is only forward.
    fn expected(&self) -> &'static [Outcome] {
        let point = self.fault.split(':').next().unwrap_or_default();
        match point.rsplit('.').next().unwrap_or_default() {
            "committing" if point.contains("before") => &[Outcome::Source],
            "Prepare" | "Prepared" | "Restore" | "freezing" | "restore-sent" | "prepared" | "restoring"
            | "restored" => &[Outcome::Source],
            // Whether the last word of a server that dies behind it arrives is not in anybody's hand.
            "Restored" if point == "server.send.after.Restored" => &[Outcome::Source, Outcome::Destination],
            "Restored" => &[Outcome::Source],
            "committing" | "killed" | "released" | "running" | "done" | "Commit" | "Done" => {
                &[Outcome::Destination]
            }
            other => panic!("nobody said how {other} ends"),
        }
    }
}

/// All crashes by one action at the messages.
fn at_messages(action: &str) -> Vec<Crash> {
    let mut crashes = Vec::new();
    for &(message, sender) in MESSAGES {
        for side in [Side::Source, Side::Destination] {
            let verb = if side == sender { "send" } else { "recv" };
            let program = if side == Side::Source { "client" } else { "server" };
            for when in ["before", "after"] {
                crashes.push(Crash { side, fault: format!("{program}.{verb}.{when}.{message}:{action}") });
            }
        }
    }
    crashes
}

fn at_records() -> Vec<Crash> {
    let of = |side, word: &str, records: &[&str]| -> Vec<Crash> {
        let points = records
            .iter()
            .flat_map(|record| ["before", "after"].map(|when| format!("{word}.{when}.{record}:kill")));
        points.map(|fault| Crash { side, fault }).collect()
    };
    let mut crashes = of(Side::Source, "source", SOURCE_RECORDS);
    crashes.extend(of(Side::Destination, "destination", DESTINATION_RECORDS));
    crashes
}

/// A scene with a server, a victim, and what a crash left of both.
struct Play {
    scene: Scene,
    server: Server,
    victim: Victim,
    cast: Cast,
}

/// Who is handed over.
#[derive(Clone, Copy, Debug)]
enum Cast {
    Single,
    /// The same with children and grandchildren: one copy is all of them.
    Tree,
}

impl Cast {
    fn args(self) -> &'static [&'static str] {
        match self {
            Cast::Single => &["4", "2", "1000", "4000"],
            Cast::Tree => &["4", "2", "1000", "4000", "3"],
        }
    }

    fn processes(self) -> usize {
        match self {
            Cast::Single => 1,
            Cast::Tree => 7,
        }
    }
}

const IDLE_SECONDS: &str = "3";

impl Play {
    fn new(server_fault: Option<&str>) -> Self {
        Self::with(Cast::Single, server_fault)
    }

    fn with(cast: Cast, server_fault: Option<&str>) -> Self {
        let scene = Scene::new("crash");
        let server = Self::start_server(&scene, "127.0.0.1:0", server_fault);
        let victim = Victim::start(&scene, "busy", cast.args());
        Self { scene, server, victim, cast }
    }

    fn start_server(scene: &Scene, listen: &str, fault: Option<&str>) -> Server {
        let images = scene.dir().join("images");
        std::fs::create_dir_all(&images).unwrap();
        let criu = support::lab::criu(CriuVersion::V4_2).unwrap();
        let mut environment = vec![("GODWIT_CRIU", criu.to_str().unwrap())];
        let log = Self::fault_log(scene);
        environment.extend(fault.map(|fault| ("GODWIT_FAULT", fault)));
        environment.push(("GODWIT_FAULT_LOG", log.to_str().unwrap()));
        Server::start_at(scene, &images, listen, &["--restore", "--idle-timeout", IDLE_SECONDS], &environment)
    }

    /// Where the faults that fired are noted.
    fn fault_log(scene: &Scene) -> PathBuf {
        scene.dir().join("faults")
    }

    fn migrate(&self, fault: Option<&str>) -> Running {
        let mut command =
            godwit_command(&self.scene, &migrate_args(self.victim.pid, &self.server, &["--max-rounds", "1"]));
        if let Some(fault) = fault {
            command.env("GODWIT_FAULT", fault).env("GODWIT_FAULT_LOG", Self::fault_log(&self.scene));
        }
        Running::start(command)
    }

    /// Starts the server anew at its place if it is gone.
    fn revive_server(&mut self) {
        if self.server.running.ended().is_some() {
            self.server = Self::start_server(&self.scene, &self.server.address, None);
        }
    }

    /// The sessions of the source that wait for a decision.
    fn undecided(&self) -> Vec<String> {
        let listed = godwit(&self.scene, &["session", "list", "--json"]).expect_ok();
        let rows: Vec<Value> =
            serde_json::from_str(listed.stdout.trim()).unwrap_or_else(|error| panic!("{error}: {listed}"));
        let open = rows.iter().filter(|row| row["needs_decision"] == true);
        open.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Brings every session to its end, the way an operator does.
    fn resolve(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let undecided = self.undecided();
            if undecided.is_empty() {
                return said;
            }
            assert!(Instant::now() < until, "still undecided: {undecided:?}; {}", said.join("\n"));
            for id in undecided {
                self.revive_server();
                said.push(godwit(&self.scene, &["session", "resolve", &id]).to_string());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The one copy that runs; `None` when none does and the sealed images are the copy.
    fn survivor(&self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(6);
        loop {
            // A process whose parent lives is a part of its copy.
            let (alive, roots) = (copies(&self.scene, &self.victim), roots(&self.scene, &self.victim));
            let running: Vec<i32> = roots.iter().copied().filter(|pid| self.makes_progress(*pid)).collect();
            if let [only] = running[..]
                && (alive.len(), roots.len()) == (self.cast.processes(), 1)
            {
                return Some(only);
            }
            if Instant::now() > until {
                assert!(alive.is_empty(), "copies {alive:?}, running {running:?}");
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether the log grows by records of this process's namespace.
    fn makes_progress(&self, pid: i32) -> bool {
        let Some(namespace) = scene::namespace(pid) else { return false };
        let last = || Witness::read(self.victim.dir()).unwrap().records.last().copied();
        let before = last();
        std::thread::sleep(Duration::from_millis(60));
        last().is_some_and(|last| Some(last) != before && last.namespace == namespace)
    }

    /// The end of every case: one whole copy, and one life in the log.
    fn expect_one_copy(mut self, case: &str) -> Outcome {
        self.revive_server();
        let said = self.resolve();
        let context = || format!("{case}\n{}\nserver: {}", said.join("\n"), self.server.running.stderr());
        let outcome = match self.survivor() {
            Some(pid) => {
                self.victim.ask();
                let until = Instant::now() + Duration::from_secs(20);
                while is_alive(pid) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let said = verdict(&self.victim.log(), "the survivor is gone");
                assert_eq!(said, Verdict::Ok, "{}", context());
                if pid == self.victim.pid { Outcome::Source } else { Outcome::Destination }
            }
            None => {
                // It lies still as sealed images: they must be whole, and restore.
                let session =
                    self.server.sessions().pop().unwrap_or_else(|| panic!("no copy at all: {}", context()));
                let images = session.join("final");
                assert!(images.join("inventory.img").exists(), "no copy at all: {}", context());
                self.victim.ask();
                let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &self.victim);
                assert_eq!(restored.verdict(), Verdict::Ok, "{}", context());
                Outcome::Images
            }
        };
        let witness = Witness::read(self.victim.dir()).unwrap();
        assert!(
            witness.faults().is_empty(),
            "{:#?}\n{}\n{}",
            witness.faults(),
            witness.describe(),
            context()
        );
        outcome
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Source,
    Destination,
    Images,
}

fn play(cast: Cast, crash: &Crash) -> Outcome {
    let fault = Some(crash.fault.as_str());
    let (of_source, of_server) = if crash.side == Side::Source { (fault, None) } else { (None, fault) };
    let mut play = Play::with(cast, of_server);
    let mut running = play.migrate(of_source);
    // A server that died is not started again before the source has given up, so that nothing is hidden; but the
    // source may wait for it.
    let limit = Instant::now() + Duration::from_secs(30);
    let mut died = None;
    while running.ended().is_none() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(20));
        if died.is_none() && play.server.running.ended().is_some() {
            died = Some(Instant::now());
        }
        if died.is_some_and(|at| at.elapsed() > Duration::from_secs(6)) {
            play.revive_server();
        }
    }
    let finished = running.finish(Duration::ZERO);
    // A server that dies behind its last message does so a moment after the source has ended.
    if crash.side == Side::Destination && !crash.is_cut() {
        let until = Instant::now() + Duration::from_secs(2);
        while play.server.running.ended().is_none() && died.is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    // A case in which nothing went wrong tests nothing.
    let fired = std::fs::read_to_string(Play::fault_log(&play.scene)).unwrap_or_default();
    let word = crash.fault.replace(':', " ");
    assert!(
        fired.lines().any(|line| line == word),
        "the fault {} never fired, but {fired:?}: {finished}",
        crash.fault
    );
    assert!(finished.status.is_some(), "godwit hangs after {}: {finished}", crash.fault);
    let outcome = play.expect_one_copy(&format!("{}: {finished}", crash.fault));
    let expected = crash.expected();
    assert!(
        expected.contains(&outcome),
        "{} ended with {outcome:?}, not {expected:?}: {finished}",
        crash.fault
    );
    outcome
}

/// Plays all, and names every one that failed.
fn play_all(cast: Cast, crashes: &[Crash]) {
    let only = std::env::var("GODWIT_CRASH").unwrap_or_default();
    let mut outcomes = Vec::new();
    let mut bad = Vec::new();
    for crash in crashes.iter().filter(|crash| crash.fault.contains(&only)) {
        match std::panic::catch_unwind(|| play(cast, crash)) {
            Ok(outcome) => outcomes.push((crash.fault.clone(), outcome)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panic".into());
                bad.push(format!("{}: {}", crash.fault, text.chars().take(3000).collect::<String>()));
            }
        }
    }
    println!("{outcomes:#?}");
    assert!(bad.is_empty(), "{} of {} crashes:\n{}", bad.len(), crashes.len(), bad.join("\n\n"));
}

#[test]
fn the_witness_notices_two_lives() {
    support::witness::self_test();
}

#[test]
fn killed_at_every_journal_record() {
    require!("root", "cc", "criu-4.2", "page-server");
    play_all(Cast::Single, &at_records());
}

#[test]
fn killed_at_every_message() {
    require!("root", "cc", "criu-4.2", "page-server");
    play_all(Cast::Single, &at_messages("kill"));
}

#[test]
fn link_cut_at_every_message() {
    require!("root", "cc", "criu-4.2", "page-server");
    // A cut is noticed only after the idle time-out, so by default only the source cuts.
    let full = std::env::var_os("GODWIT_FULL").is_some();
    let crashes: Vec<Crash> =
        at_messages("cut").into_iter().filter(|crash| full || crash.side == Side::Source).collect();
    play_all(Cast::Single, &crashes);
}

/// A tree is handed over whole or not at all: by default where that is decided, at every place with `GODWIT_FULL=1`.
#[test]
fn a_tree_is_one_copy_whoever_is_killed() {
    require!("root", "cc", "criu-4.2", "page-server");
    const DECISIVE: &[&str] = &[
        "source.after.freezing",
        "source.before.restore-sent",
        "source.before.committing",
        "source.after.committing",
        "client.send.after.Commit",
        "destination.after.restored",
        "server.send.before.Done",
    ];
    let full = ["GODWIT_FULL", "GODWIT_CRASH"].iter().any(|name| std::env::var_os(name).is_some());
    let is_decisive = |crash: &Crash| DECISIVE.iter().any(|point| crash.fault == format!("{point}:kill"));
    let cuts = at_messages("cut").into_iter().filter(|crash| crash.side == Side::Source);
    let all = at_records().into_iter().chain(at_messages("kill")).chain(cuts);
    let crashes: Vec<Crash> = all.filter(|crash| full || is_decisive(crash)).collect();
    assert!(crashes.len() >= DECISIVE.len(), "{crashes:?}");
    play_all(Cast::Tree, &crashes);
}

/// The processes that hold a restored tree: the init of its namespace, and criu.
fn holders(play: &Play) -> Vec<(i32, String)> {
    let own = scene::namespace(std::process::id() as i32);
    let here = scene::namespace;
    let copies: Vec<i32> = play.scene.processes().into_iter().filter(|pid| here(*pid) != own).collect();
    let foreign: Vec<Option<u64>> = copies.iter().map(|pid| here(*pid)).collect();
    scene::pids()
        .filter(|pid| here(*pid).is_some_and(|ns| foreign.contains(&Some(ns))) && !copies.contains(pid))
        .map(|pid| (pid, scene::proc_text(pid, "cmdline").replace('\0', " ")))
        .collect()
}

#[test]
fn held_criu_killed_before_the_word_that_releases_it() {
    require!("root", "cc", "criu-4.2", "page-server");
    // While the source waits: before it commits (it can still run on), and after it is dead.
    for (point, only_criu) in [
        ("source.before.committing", true),
        ("source.before.committing", false),
        ("client.send.before.Commit", true),
        ("client.send.before.Commit", false),
    ] {
        let play = Play::new(None);
        let running = play.migrate(Some(&format!("{point}:delay-1500")));
        eventually("the copy is held", Duration::from_secs(20), || {
            !holders(&play).is_empty() && {
                std::thread::sleep(Duration::from_millis(200));
                scene::status_field(play.victim.pid, "State").is_none_or(|state| !state.starts_with('R'))
            }
        });
        let found = holders(&play);
        let chosen: Vec<&(i32, String)> =
            found.iter().filter(|(_, words)| !only_criu || words.contains("restore")).collect();
        assert!(!chosen.is_empty(), "nobody holds the copy: {found:?}");
        for (pid, _) in chosen {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let finished = running.finish(Duration::from_secs(60));
        assert!(finished.status.is_some(), "godwit hangs: {finished}");
        let outcome = play.expect_one_copy(&format!("{point}, only criu {only_criu}: {finished}"));
        println!("{point}, only criu {only_criu}: {outcome:?}");
    }
}

#[test]
fn a_daemon_that_is_killed_and_started_again_finds_what_it_held() {
    require!("root", "cc", "criu-4.2", "page-server");
    let mut play = Play::new(None);
    let running = play.migrate(Some("source.before.committing:delay-3000"));
    eventually("the copy is held", Duration::from_secs(20), || !holders(&play).is_empty());
    std::thread::sleep(Duration::from_millis(300));
    play.server.running.kill();
    play.revive_server();
    let finished = running.finish(Duration::from_secs(60));
    play.expect_one_copy(&format!("the daemon died while it held: {finished}"));
}

#[test]
fn the_operator_decides_when_the_other_side_cannot_be_reached() {
    require!("root", "cc", "criu-4.2", "page-server");
    let mut play = Play::new(None);
    let finished = play.migrate(Some("source.after.restore-sent:kill")).finish(Duration::from_secs(30));
    play.server.running.kill();
    let [id] = &play.undecided()[..] else { panic!("one session must be undecided; {finished}") };
    let refused = godwit(&play.scene, &["session", "resolve", id]).expect_refusal();
    assert!(refused.stderr.contains("--force-source"), "{refused}");
    // It lies still until somebody decides.
    assert!(!play.makes_progress(play.victim.pid), "the source runs although nobody decided");
    godwit(&play.scene, &["session", "resolve", id, "--force-source"]).expect_ok();
    assert!(play.makes_progress(play.victim.pid), "the source lies still although it was chosen");
    assert_eq!(play.expect_one_copy("--force-source"), Outcome::Source);
}
