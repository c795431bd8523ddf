//! The hand-over over the link, with a real criu: held, let run, undone; the link lost and the server killed while
//! the tree is held; decisions from another connection and at the host. The victim's own log is the judge.
#![allow(clippy::unwrap_used)]

#[path = "support/client.rs"]
mod client;
#[path = "support/criu.rs"]
#[allow(dead_code)]
mod criu;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Client, Program};
use criu::{Dumped, require, wait};
use godwit_page_server::restore::Identity as ProcessIdentity;
use godwit_wire::control::{
    Abort, Commit, Decision, OpenSession, Restore, SessionQuery, SessionResolve, SessionResolved,
};
use godwit_wire::frame::SessionId;
use godwit_wire::journal::{self, Event, Journal};
use godwit_wire::quic::{Identity, keys};
use godwit_wire::session::{Reply, Request};
use nix::sys::signal::Signal;

/// One restore at a time: processes are looked for on the whole machine.
static ONE: Mutex<()> = Mutex::new(());

/// A dumped victim, prepared at a page server.
struct Bench {
    dumped: Dumped,
    criu: PathBuf,
    program: Program,
    client: Option<Client>,
    id: SessionId,
    _one: MutexGuard<'static, ()>,
}

impl Bench {
    fn new(test: &str) -> Option<Self> {
        let criu = require(test, "4.2")?;
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dumped = Dumped::new(&criu);
        keys::init(&dumped.dir().join("keys"), &[]).unwrap();
        let program = start(dumped.dir(), &criu);
        let mut client = Client::connect(dumped.dir(), &program).unwrap();
        let wish = OpenSession { name: "web".into(), want_restore: true, ..OpenSession::default() };
        let id = client.open_as(wish);
        client.prepare("web", &dumped.images);
        Some(Bench { dumped, criu, program, client: Some(client), id, _one: one })
    }

    fn ask(&mut self, request: Request) -> Result<Reply, String> {
        self.client.as_mut().unwrap().ask(request)
    }

    fn restore(&mut self) -> u32 {
        let reply = self.ask(Request::Restore(Restore {}));
        let Ok(Reply::Restored(restored)) = reply else { panic!("{reply:?}") };
        assert!(restored.pid > 0);
        self.dumped.check_silent();
        restored.pid
    }

    /// The link dies without a word, as far as the server can tell.
    fn lose_link(&mut self) {
        self.client.take().unwrap().connection.cut();
    }

    fn another(&self) -> Client {
        Client::connect(self.dumped.dir(), &self.program).unwrap()
    }

    fn resolve(&self, token: u64, decision: Decision, proof: &str) -> Result<SessionResolved, String> {
        let (session_id, decision) = (self.id.0, decision as i32);
        let resolve = SessionResolve { session_id, token, decision, forced: false, proof: proof.into() };
        match self.another().ask(Request::Resolve(resolve))? {
            Reply::SessionResolved(resolved) => Ok(resolved),
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> Option<Event> {
        let records = journal::read(&self.state_dir(), &self.id.to_string()).unwrap();
        journal::Summary::of(&records).state
    }

    fn state_dir(&self) -> PathBuf {
        self.dumped.dir().join("state")
    }

    fn check_nothing_left(&self) {
        wait("all processes of the restore end", || self.processes().is_empty());
        self.dumped.check_silent();
    }

    fn processes(&self) -> Vec<i32> {
        let program = self.dumped.dir().join("victim");
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let entries = std::fs::read_dir(self.state_dir()).into_iter().flatten().flatten();
        for init in entries.filter_map(|entry| std::fs::read(entry.path().join("init.json")).ok()) {
            let init: ProcessIdentity = serde_json::from_slice(&init).unwrap();
            let _ = init.kill(Duration::from_secs(10));
        }
        for pid in self.processes() {
            let _ = ProcessIdentity::of(pid).and_then(|process| process.kill(Duration::from_secs(10)));
        }
    }
}

fn start(dir: &Path, criu: &Path) -> Program {
    Program::start(
        dir,
        &["--restore", "--restore-pidns", "new", "--idle-timeout", "3", "--criu", criu.to_str().unwrap()],
    )
}

fn abort() -> Request {
    Request::Abort(Abort { reason: "test".into() })
}

#[test]
fn committed_over_the_link_the_tree_goes_on_where_it_stood() {
    let Some(mut bench) = Bench::new("committed_over_the_link") else { return };
    let pid = bench.restore();
    let Ok(Reply::Done(done)) = bench.ask(Request::Commit(Commit { token: 1 })) else { panic!("not done") };
    assert_eq!(done.pid, pid);
    bench.dumped.wait_running();
    bench.dumped.check_one_life();
    assert_eq!(bench.state(), Some(Event::Done));
    // The tree outlives the server that restored it.
    bench.client.take();
    bench.program.signal(Signal::SIGTERM);
    assert_eq!(bench.program.wait(Duration::from_secs(10)).unwrap().code(), Some(0));
    bench.dumped.wait_running();
}

#[test]
fn aborted_over_the_link_nothing_is_left() {
    let Some(mut bench) = Bench::new("aborted_over_the_link") else { return };
    bench.restore();
    assert!(matches!(bench.ask(abort()), Ok(Reply::Aborted(_))));
    bench.check_nothing_left();
    assert_eq!(bench.state(), Some(Event::Aborted));
}

#[test]
fn an_abort_during_the_restore_ends_it() {
    let Some(mut bench) = Bench::new("an_abort_during_the_restore") else { return };
    bench.client.as_mut().unwrap().tell(Request::Restore(Restore {}));
    std::thread::sleep(Duration::from_millis(30));
    assert!(matches!(bench.ask(abort()), Ok(Reply::Aborted(_))));
    bench.check_nothing_left();
    assert_eq!(bench.state(), Some(Event::Aborted));
}

#[test]
fn a_lost_link_decides_nothing_and_the_source_may_have_its_tree_back() {
    let Some(mut bench) = Bench::new("a_lost_link_source") else { return };
    bench.restore();
    bench.lose_link();
    // Also before the server has noticed that the link is gone.
    let query = SessionQuery { session_id: bench.id.0, name: String::new() };
    let Ok(Reply::SessionStatus(status)) = bench.another().ask(Request::Query(query)) else {
        panic!("no status")
    };
    assert_eq!((status.state.as_str(), status.name.as_str()), ("restored", "web"));
    assert!(status.pid > 0 && status.records.len() >= 4, "{status:?}");
    let refused = bench.resolve(2, Decision::Destination, "restore-sent").unwrap_err();
    assert!(refused.contains("not that its tree was killed"), "{refused}");
    let resolved = bench.resolve(2, Decision::Source, "restore-sent").unwrap();
    assert_eq!((resolved.state.as_str(), resolved.token), ("aborted", 2));
    bench.check_nothing_left();
}

#[test]
fn a_lost_link_decides_nothing_and_the_copy_may_run() {
    let Some(mut bench) = Bench::new("a_lost_link_destination") else { return };
    let pid = bench.restore();
    bench.lose_link();
    std::thread::sleep(Duration::from_secs(4));
    let resolved = bench.resolve(2, Decision::Destination, "killed").unwrap();
    assert_eq!((resolved.state.as_str(), resolved.pid), ("done", pid));
    bench.dumped.wait_running();
    bench.dumped.check_one_life();
    // A decision that comes too late changes nothing, and says so.
    let late = bench.resolve(3, Decision::Source, "restore-sent").unwrap();
    assert_eq!(late.state, "done");
    bench.dumped.wait_running();
}

#[test]
fn a_raised_token_fences_the_commit_of_a_source_that_is_still_there() {
    let Some(mut bench) = Bench::new("a_raised_token") else { return };
    bench.restore();
    assert_eq!(bench.resolve(2, Decision::Show, "restore-sent").unwrap().state, "restored");
    let refused = bench.ask(Request::Commit(Commit { token: 1 })).unwrap_err();
    assert!(refused.contains("wrong token"), "{refused}");
    bench.dumped.check_silent();
    let low = bench.resolve(1, Decision::Source, "restore-sent").unwrap_err();
    assert!(low.contains("wrong token"), "{low}");
    assert_eq!(bench.resolve(3, Decision::Source, "restore-sent").unwrap().state, "aborted");
    bench.check_nothing_left();
}

#[test]
fn a_server_killed_while_it_holds_comes_back_and_hears_the_decision() {
    let Some(mut bench) = Bench::new("a_server_killed") else { return };
    bench.restore();
    bench.program.signal(Signal::SIGKILL);
    bench.program.wait(Duration::from_secs(5)).unwrap();
    bench.dumped.check_silent();
    bench.program = start(bench.dumped.dir(), &bench.criu);
    assert_eq!(bench.state(), Some(Event::Restored));
    assert_eq!(bench.resolve(2, Decision::Destination, "killed").unwrap().state, "done");
    bench.dumped.wait_running();
    bench.dumped.check_one_life();
}

#[test]
fn an_operator_decides_at_the_host_beside_the_living_server() {
    let Some(mut bench) = Bench::new("an_operator_decides") else { return };
    bench.restore();
    let session = |bench: &Bench, verb: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
        command.args(["session", verb, &bench.id.to_string(), "--state-dir"]).arg(bench.state_dir());
        command.arg("--criu").arg(&bench.criu).output().unwrap()
    };
    // While the source's link lives, the decision is not the operator's.
    let refused = session(&bench, "abort");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("held by a living program"), "{refused:?}");
    bench.lose_link();
    wait("the server notices the loss", || {
        Journal::try_lock(&bench.state_dir(), &bench.id.to_string()).unwrap().is_some()
    });
    let shown = String::from_utf8(session(&bench, "show").stdout).unwrap();
    assert!(shown.contains(" restored token=1"), "{shown}");
    // The source may run still: two must not.
    let refused = session(&bench, "release");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("add --force"), "{refused:?}");
    bench.dumped.check_silent();
    let aborted = session(&bench, "abort");
    assert!(aborted.status.success(), "{aborted:?}");
    bench.check_nothing_left();
    assert!(!session(&bench, "release").status.success(), "what was given up is not let run");
}

#[test]
fn another_client_neither_sees_nor_decides_nor_goes_on_with_a_session() {
    let Some(mut bench) = Bench::new("another_client") else { return };
    bench.restore();
    let keys_dir = bench.dumped.dir().join("keys");
    keys::issue(&keys_dir, "other", keys::Kind::Client, &[]).unwrap();
    let file = |name: &str| keys_dir.join(name);
    let other = Identity { ca: file("ca.pem"), cert: file("other.pem"), key: file("other.key") };
    let ask = |request| Client::connect_as(&other, &bench.program).unwrap().ask(request);
    let (session_id, name) = (bench.id.0, "web".to_owned());
    let by_id = ask(Request::Query(SessionQuery { session_id, ..SessionQuery::default() })).unwrap_err();
    assert!(by_id.contains("no such session"), "{by_id}");
    let by_name = ask(Request::Query(SessionQuery { name: name.clone(), session_id: 0 })).unwrap_err();
    assert!(by_name.contains("no such session"), "{by_name}");
    for (decision, token) in [(Decision::Source, 9), (Decision::Destination, 9), (Decision::Show, 1)] {
        let (decision, proof) = (decision as i32, "killed".to_owned());
        let resolve = SessionResolve { session_id, token, decision, forced: true, proof };
        let refused = ask(Request::Resolve(resolve)).unwrap_err();
        assert!(refused.contains("another client's session"), "{refused}");
    }
    let wish = OpenSession { name, go_on: true, ..OpenSession::default() };
    let refused = ask(Request::Open(wish)).unwrap_err();
    assert!(refused.contains("another client's session"), "{refused}");
    // Its owner's tree is held as before.
    assert_eq!(bench.state(), Some(Event::Restored));
    assert!(matches!(bench.ask(Request::Commit(Commit { token: 1 })), Ok(Reply::Done(_))));
    bench.dumped.wait_running();
    bench.dumped.check_one_life();
}

#[test]
fn a_token_that_is_out_of_date_stops_nothing() {
    let Some(mut bench) = Bench::new("a_token_that_is_out_of_date") else { return };
    bench.restore();
    bench.lose_link();
    wait("the server notices the loss", || {
        Journal::try_lock(&bench.state_dir(), &bench.id.to_string()).unwrap().is_some()
    });
    assert!(
        bench.resolve(1000, Decision::Show, "committing").is_ok(),
        "a token may be far above the one in force"
    );
    let stale = bench.resolve(999, Decision::Source, "frozen").unwrap_err();
    assert!(stale.contains("out of date"), "{stale}");
    let done = bench.resolve(1001, Decision::Destination, "killed").unwrap();
    assert_eq!(done.state, "done", "{}", done.text);
    bench.dumped.wait_running();
}

#[test]
fn a_restore_that_fails_says_why_and_leaves_nothing() {
    let Some(mut bench) = Bench::new("a_restore_that_fails") else { return };
    let core = format!("web/final/core-{}.img", bench.dumped.pid);
    std::fs::write(bench.dumped.dir().join("images").join(core), b"no image").unwrap();
    let Ok(Reply::RestoreFailed(failed)) = bench.ask(Request::Restore(Restore {})) else {
        panic!("it restored")
    };
    assert!(!failed.reason.is_empty() && failed.log_tail.contains("Error"), "{failed:?}");
    assert!(matches!(bench.ask(abort()), Ok(Reply::Aborted(_))));
    bench.check_nothing_left();
}

#[test]
fn what_was_not_opened_for_a_restore_is_not_restored() {
    let Some(bench) = Bench::new("what_was_not_opened") else { return };
    let mut client = bench.another();
    client.open("plain");
    client.prepare("plain", &bench.dumped.images);
    let refused = client.ask(Request::Restore(Restore {})).unwrap_err();
    assert!(refused.contains("restore not offered"), "{refused}");
    bench.check_nothing_left();
}
