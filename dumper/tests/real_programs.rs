//! Programs that nobody wrote for this: migrated under load, restored by CRIU 4.1 and 4.2, and checked afterwards.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::child::eventually;
use support::lab::{BOTH, CriuVersion};
use support::moved;
use support::product::Server;
use support::victim::{Libc, Verdict, Victim, session_leader};
use support::{Scene, Witness};

/// A neighbour that keeps the processors busy while the others are moved.
fn load(scene: &Scene) -> Victim {
    Victim::start(scene, "busy", &["8", "2", "5000"])
}

fn move_and_check(scene: &Scene, victim: &mut Victim, version: CriuVersion) -> Verdict {
    let server = Server::start(scene, version);
    moved::migrate(scene, victim, &server, &["--max-rounds", "3"]).check(victim)
}

/// Threads that change a heap of MIB MiB of objects, each with a digest kept beside it, and a count that goes on.
const PYTHON: &str = r#"
import hashlib, os, random, sys, threading, time
mib, threads = int(sys.argv[1]), 4
def say(text): os.write(1, (text + "\n").encode())
blocks = [[bytearray(random.Random(t * 100003 + i).randbytes(65536)) for i in range(mib * 16 // threads)] for t in range(threads)]
digests = [[hashlib.blake2b(b).digest() for b in own] for own in blocks]
table = {str(i): (i, [i] * 8) for i in range(200000)}
counts, stop, wrong = [0] * threads, threading.Event(), []
def work(t):
    rng = random.Random(t)
    while not stop.is_set():
        i = rng.randrange(len(blocks[t]))
        if hashlib.blake2b(blocks[t][i]).digest() != digests[t][i]:
            wrong.append((t, i, counts[t]))
        at = rng.randrange(65536 - 64)
        blocks[t][i][at:at + 64] = rng.randbytes(64)
        digests[t][i] = hashlib.blake2b(blocks[t][i]).digest()
        counts[t] += 1
        time.sleep(0.0005)
workers = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
for w in workers: w.start()
say("READY %d" % os.getpid())
deadline = 30000
while not os.path.exists("check") and deadline:
    deadline -= 1
    time.sleep(0.01)
before = list(counts)
time.sleep(0.2)
stop.set()
for w in workers: w.join(20)
bad = [(t, i) for t in range(threads) for i in range(len(blocks[t])) if hashlib.blake2b(blocks[t][i]).digest() != digests[t][i]]
if wrong or bad: say("FAIL digests %r %r" % (wrong[:5], bad[:5]))
if any(w.is_alive() for w in workers): say("FAIL a thread does not end")
if any(a <= b for a, b in zip(counts, before)): say("FAIL a thread makes no progress: %r %r" % (before, counts))
if any(table[str(i)] != (i, [i] * 8) for i in range(200000)): say("FAIL table")
say("OK" if not (wrong or bad) else "BAD")
os._exit(0)
"#;

#[test]
fn cpython_with_threads_and_a_large_heap() {
    require!("root", "python3", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("python");
        std::fs::write(scene.dir().join("program.py"), PYTHON).unwrap();
        let mut python = session_leader("/usr/bin/python3");
        python.arg(scene.dir().join("program.py")).arg("512");
        let mut victim = Victim::start_command(&scene, "python", python);
        assert_eq!(move_and_check(&scene, &mut victim, version), Verdict::Ok, "CRIU {}", version.text());
    }
}

/// Transactions that the writer makes; each inserts one row that names the one before it.
const ROWS: usize = 4000;

/// The shell's own input: a regular file, whose offset is part of what moves. The sum makes each take a while.
fn sql() -> String {
    let mut script = String::from(
        "PRAGMA journal_mode=WAL;\nPRAGMA synchronous=NORMAL;\nPRAGMA wal_autocheckpoint=200;\n\
         CREATE TABLE t(n INTEGER PRIMARY KEY, before INTEGER, filler BLOB);\n.system echo READY >> log\n",
    );
    for n in 1..=ROWS {
        script += &format!(
            "INSERT INTO t SELECT {n}, (SELECT max(n) FROM t), randomblob(500 + (WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 3000) SELECT max(i) % 7 FROM c));\n"
        );
    }
    script += ".system echo FINISHED >> log\n";
    script
}

#[test]
fn a_sqlite3_writer_in_wal_mode() {
    require!("root", "sqlite3", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("sqlite");
        let script = scene.dir().join("script.sql");
        std::fs::write(&script, sql()).unwrap();
        let mut shell = session_leader("sh");
        shell.args(["-c", "exec sqlite3 -bail rows.db < \"$0\""]).arg(&script);
        let mut victim = Victim::start_command(&scene, "sqlite", shell);
        let server = Server::start(&scene, version);
        let moved = moved::migrate(&scene, &mut victim, &server, &["--max-rounds", "3"]);
        // How far it is, read off its input: another program that opened the database now could take it for abandoned,
        // since CRIU's restore drops POSIX locks on files that are mapped too. The report names that loss.
        let input = std::fs::read_to_string(format!("/proc/{}/fdinfo/0", moved.pid)).unwrap_or_default();
        let at: u64 =
            input.lines().next().and_then(|pos| pos.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
        assert!(at > 0 && at < std::fs::metadata(&script).unwrap().len(), "it was at {at} of its script");
        assert!(moved.report["losses"].to_string().contains("POSIX lock"), "{}", moved.report);
        eventually("the writer goes on to the end", Duration::from_secs(60), || {
            victim.log().contains("FINISHED")
        });
        eventually("the writer is gone", Duration::from_secs(10), || !support::scene::is_alive(moved.pid));
        let mut check = Command::new("sqlite3");
        let broken = "SELECT count(*) FROM t WHERE n > 1 AND before IS NOT n - 1";
        check
            .arg(victim.dir().join("rows.db"))
            .arg(format!("PRAGMA integrity_check; SELECT count(*) FROM t; {broken}"));
        let checked = support::run(check, Duration::from_secs(20)).expect_ok();
        assert_eq!(checked.stdout, format!("ok\n{ROWS}\n0\n"), "CRIU {}: {}", version.text(), victim.log());
    }
}

#[test]
fn sixty_four_threads_in_every_kind_of_wait() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    expect_moved("waits", Libc::Glibc, &[]);
}

#[test]
fn live_vector_registers() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    expect_moved("regs", Libc::Glibc, &[]);
}

#[test]
fn pending_real_time_signals() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    expect_moved("signals", Libc::Glibc, &[]);
}

#[test]
fn armed_timers() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    expect_moved("timers", Libc::Glibc, &[]);
}

#[test]
fn static_musl_programs() {
    require!("root", "musl", "criu-4.1", "criu-4.2", "page-server");
    expect_moved("waits", Libc::StaticMusl, &[]);
    expect_moved("busy", Libc::StaticMusl, &["32", "2", "1000", "20000"]);
}

#[track_caller]
fn expect_moved(name: &str, libc: Libc, args: &[&str]) {
    for version in BOTH {
        let scene = Scene::new("real");
        let mut neighbour = load(&scene);
        let mut victim = Victim::start_with(&scene, name, libc, args);
        assert_eq!(
            move_and_check(&scene, &mut victim, version),
            Verdict::Ok,
            "{name} with CRIU {}",
            version.text()
        );
        if name == "busy" {
            Witness::read(victim.dir()).unwrap().expect_one_life();
        }
        assert_eq!(neighbour.check(), Verdict::Ok);
    }
}

/// The heap of a migration is bounded: far less than the victim's memory.
#[test]
fn the_dumpers_memory_does_not_grow_with_the_victims() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("memory");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "busy", &["512", "2", "1000", "20000"]);
    let args = support::product::migrate_args(victim.pid, &server, &["--max-rounds", "2"]);
    let mut running = support::child::Running::start(support::product::godwit_command(&scene, &args));
    let (mut most_kib, until) = (0u64, Instant::now() + Duration::from_secs(90));
    while running.ended().is_none() && Instant::now() < until {
        let peak = support::scene::status_field(running.pid(), "VmHWM");
        most_kib = most_kib.max(peak.and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(10));
    }
    let finished = running.finish(Duration::from_secs(5)).expect_ok();
    victim.expect_killed();
    assert_eq!(moved::copy(&scene, &victim, &finished).check(&victim), Verdict::Ok);
    assert!(
        most_kib > 0 && most_kib < 300 << 10,
        "godwit used {} MiB for a victim of 512 MiB",
        most_kib >> 10
    );
}
