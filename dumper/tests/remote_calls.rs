//! Remote system calls, on every kind of stack and in every kind of wait: the answers are right, and the program
//! goes on as if nothing had been.
#![allow(clippy::unwrap_used, missing_docs)]

mod remote;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use godwit_dumper::freeze::seize::{self, FreezeError, Frozen};
use godwit_dumper::procfs::maps;
use godwit_dumper::remote::{Gadgets, RemoteError, SCRATCH_HINT, Session, Telling, Told, find_leftovers};
use nix::errno::Errno;
use nix::unistd::Pid;
use remote::{Victim, compile, is_untraced, map_of};

/// How long the program `waits` waits.
const WAIT_MS: i64 = 400;
const EINTR: i64 = Errno::EINTR as i64;
const ETIMEDOUT: i64 = Errno::ETIMEDOUT as i64;

fn ask(session: &mut Session<'_>, pid: Pid) {
    assert_eq!(session.syscall(libc::SYS_getpid, [0; 6]).unwrap(), pid.as_raw() as u64);
    let told = session.told(&actions()).unwrap();
    assert_eq!(told.len(), actions().len());
    for (one, told) in actions().iter().zip(&told).step_by(9) {
        assert_eq!(by_itself(session, one), *told, "{one:?}");
    }
    assert_eq!(session.syscall(libc::SYS_getpid, [0; 6]).unwrap(), pid.as_raw() as u64);
}

/// Asks for the actions of all signals, and of two that there are not.
fn actions() -> Vec<Telling> {
    let action =
        |signal| Telling { nr: libc::SYS_rt_sigaction, args: [signal, 0, 0, 8, 0, 0], at: 2, len: 32 };
    (0..=65).map(action).collect()
}

fn by_itself(session: &mut Session<'_>, one: &Telling) -> Told {
    let scratch = session.scratch().unwrap();
    let mut args = one.args;
    args[one.at] = scratch.addr;
    match session.syscall(one.nr, args) {
        Ok(_) => {}
        Err(RemoteError::Call { errno, .. }) => return Err(errno),
        Err(error) => panic!("{error}"),
    }
    let mut bytes = [0; 32];
    session.read(scratch.addr, &mut bytes).unwrap();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(words)
}

/// Stops it, asks it something, lets it go; several times, at once and with pauses, for as long as it lives.
fn disturb(pid: Pid) {
    for pause_ms in [0, 30, 0, 60] {
        std::thread::sleep(Duration::from_millis(pause_ms));
        let frozen = match seize::seize(pid) {
            Err(FreezeError::Zombie { .. }) => return,
            frozen => frozen.unwrap(),
        };
        let mut session = frozen.remote(pid).unwrap();
        ask(&mut session, pid);
        session.finish().unwrap();
        frozen.thaw().unwrap();
    }
}

/// Runs `waits KIND` with disturbances and returns its result, errno and time.
fn wait_disturbed(dir: &Path, program: &Path, kind: &str) -> (i64, i64, i64) {
    let mut victim = Victim::start(dir, program, &[kind]);
    victim.wait_for("READY");
    // Into the wait, past whatever stands before it.
    std::thread::sleep(Duration::from_millis(40));
    disturb(victim.pid());
    assert_eq!(victim.wait(Duration::from_secs(10)), Some(0));
    let output = victim.output();
    let done = output.lines().find_map(|line| line.strip_prefix("DONE ")).unwrap();
    let numbers: Vec<i64> = done.split(' ').map(|number| number.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

#[test]
fn interrupted_waits_end_as_and_when_they_would_have() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "waits", &[]);
    let kinds = [
        ("nanosleep", 0, 0),
        ("sleep-rest", 0, 0),
        ("clock_nanosleep", 0, 0),
        ("clock_nanosleep-absolute", 0, 0),
        ("poll", 0, 0),
        ("ppoll", 0, 0),
        ("select", 0, 0),
        ("futex", -1, ETIMEDOUT),
        ("futex-absolute", -1, ETIMEDOUT),
        ("read", 1, 0),
        ("wait", 0, 0),
        // Any stop ends these with EINTR; without a time limit that can be made good.
        ("epoll-endless", 1, 0),
        ("sigwait-endless", 0, 0),
        ("semop", 0, 0),
        // A handler still ends them.
        ("epoll-signal", -1, EINTR),
        ("pause", -1, EINTR),
        ("sigsuspend", -1, EINTR),
    ];
    for (kind, result, errno) in kinds {
        let (got, got_errno, ms) = wait_disturbed(dir.path(), &program, kind);
        assert_eq!((got, got_errno), (result, errno), "{kind}");
        assert!((WAIT_MS..WAIT_MS + 200).contains(&ms), "{kind} took {ms} ms");
    }
    // What the kernel does with a time limit it does not remember is accepted.
    let (got, errno, _) = wait_disturbed(dir.path(), &program, "epoll-limited");
    assert!(got == 0 || (got, errno) == (-1, EINTR), "{got} {errno}");
}

#[test]
fn registers_for_an_image_repeat_a_wait_that_was_continued_before() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "waits", &[]);
    for (kind, nr) in [("nanosleep", 35), ("clock_nanosleep", 230), ("poll", 7), ("futex", 202)] {
        let victim = Victim::start(dir.path(), &program, &[kind]);
        victim.wait_for("READY");
        std::thread::sleep(Duration::from_millis(40));
        let mut continued = 0;
        for round in 0..20 {
            let frozen = seize::seize(victim.pid()).unwrap();
            let seen = frozen.leader().regs;
            let dumped = frozen.leader().regs_to_dump();
            continued += i32::from(seen.orig_rax == 219);
            assert_eq!((dumped.rax, dumped.rip), (nr, seen.rip - 2), "{kind}, stop {round}: {seen:x?}");
            frozen.thaw().unwrap();
            // Without a pause it is stopped on its way back into the wait.
            std::thread::sleep(Duration::from_millis(round % 4));
        }
        assert!(continued > 5, "{kind} was continued {continued} times only");
    }
}

/// The calls of a session, from the first to the last, with looks at the program before, in between and after.
fn exercise(dir: &Path, program: &Path, kind: &str) {
    let mut victim = Victim::start(dir, program, &[kind]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let before = map_of(pid);
    for _ in 0..20 {
        let frozen = seize::seize(pid).unwrap();
        let (regs, mask) = (frozen.leader().regs, frozen.leader().sigmask);
        let mut session = frozen.remote(pid).unwrap();
        ask(&mut session, pid);
        let scratch = session.scratch().unwrap();
        session.write(scratch.addr, &[0xaa; 24]).unwrap();
        session.syscall(libc::SYS_sigaltstack, [0, scratch.addr, 0, 0, 0, 0]).unwrap();
        let mut answer = [0u8; 24];
        session.read(scratch.addr, &mut answer).unwrap();
        assert_ne!(answer, [0xaa; 24]);
        let failed = session.syscall(libc::SYS_close, [9999, 0, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(failed.errno(), Some(Errno::EBADF), "{failed}");
        assert!(matches!(frozen.remote(pid), Err(RemoteError::Busy { .. })));
        session.finish().unwrap();
        assert_eq!(map_of(pid), before, "{kind}");
        let now = godwit_dumper::sys::ptrace::regs(pid).unwrap();
        assert_eq!((now, frozen.leader().sigmask), (regs, mask), "{kind}");
        frozen.thaw().unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(is_untraced(pid));
    victim.release();
    assert_eq!(victim.wait(Duration::from_secs(10)), Some(0), "{kind}: {}", victim.output());
    assert!(victim.output().ends_with("END\n"), "{kind}: {}", victim.output());
}

#[test]
fn calls_on_every_kind_of_stack_leave_nothing_behind() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    for kind in ["plain", "coroutine", "full"] {
        exercise(dir.path(), &program, kind);
    }
}

#[test]
fn a_filter_that_kills_is_suspended_for_the_calls() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    exercise(dir.path(), &program, "seccomp");
}

#[test]
fn a_static_program_without_a_restorer_is_lent_one() {
    require!("root", "musl");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "musl-gcc", "places", &["-static", "-DBARE"]);
    let victim = Victim::start(dir.path(), &program, &["bare"]);
    victim.wait_for("READY");
    let vmas = maps::read(victim.pid()).unwrap();
    let gadgets = format!("{:?}", Gadgets::find(victim.pid(), &vmas).unwrap());
    assert!(gadgets.contains("Lendable"), "this program has a restorer, so it is no test: {gadgets}");
    drop(victim);
    exercise(dir.path(), &program, "bare");
}

#[test]
fn threads_that_come_and_go_are_all_stopped() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let mut victim = Victim::start(dir.path(), &program, &["threads"]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let mut strokes = 0;
    for _ in 0..50 {
        let frozen = seize::seize(pid).unwrap();
        let listed = godwit_dumper::procfs::tree::threads(pid).unwrap();
        let mut stopped: Vec<Pid> = frozen.threads().iter().map(|thread| thread.tid).collect();
        assert_eq!(stopped[0], pid);
        stopped.sort();
        assert_eq!(stopped, listed);
        let mut session = frozen.remote(pid).unwrap();
        ask(&mut session, pid);
        let of_leader = session.told(&actions()).unwrap();
        for tid in listed.iter().filter(|tid| **tid != pid) {
            let mut beside = frozen.remote_beside(&session, *tid).unwrap();
            assert_eq!(beside.syscall(libc::SYS_gettid, [0; 6]).unwrap(), tid.as_raw() as u64);
            assert_ne!(beside.scratch().unwrap(), session.scratch().unwrap());
            // But for those that are being made, which block all signals.
            strokes += u32::from(beside.tells_at_one_stroke());
            let told = beside.told(&actions()).unwrap();
            assert_eq!(told.iter().filter(|told| told.is_err()).count(), 2);
            assert_eq!(told, of_leader);
            beside.finish().unwrap();
        }
        ask(&mut session, pid);
        drop(session);
        frozen.thaw().unwrap();
    }
    assert!(strokes > 50, "{strokes} threads were asked at one stroke");
    victim.release();
    assert_eq!(victim.wait(Duration::from_secs(10)), Some(0), "{}", victim.output());
}

#[test]
fn signals_come_once_and_in_order_however_often_it_is_stopped() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let mut victim = Victim::start(dir.path(), &program, &["counter"]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let mut stops = 0;
    while !victim.output().contains("COUNT") && victim.is_running() {
        let Ok(frozen) = seize::seize(pid) else { continue };
        if stops % 2 == 0 {
            let mut session = frozen.remote(pid).unwrap();
            ask(&mut session, pid);
        }
        frozen.thaw().unwrap();
        stops += 1;
    }
    // It lives until then: a tracer that is its parent, too, would take its end for its own.
    victim.release();
    assert_eq!(victim.wait(Duration::from_secs(10)), Some(0), "{}", victim.output());
    assert!(victim.output().contains("COUNT 20000\n"), "after {stops} stops: {}", victim.output());
    assert!(stops > 100, "{stops} stops are no test");
}

#[test]
fn a_leftover_scratch_mapping_is_found_and_taken_away() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let victim = Victim::start(dir.path(), &program, &["plain"]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let before = map_of(pid);
    let frozen = seize::seize(pid).unwrap();
    let mut session = frozen.remote(pid).unwrap();
    // As a dumper leaves it that dies before it has written its mark.
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let hint = SCRATCH_HINT + (1 << 20);
    let left = session.syscall(libc::SYS_mmap, [hint, 24576, 3, flags, u64::MAX, 0]).unwrap();
    session.finish().unwrap();
    frozen.thaw().unwrap();
    assert_eq!(find_leftovers(pid, &maps::read(pid).unwrap()), [(left, 24576)]);
    let frozen = seize::seize(pid).unwrap();
    frozen.remote(pid).unwrap().finish().unwrap();
    frozen.thaw().unwrap();
    assert_eq!(map_of(pid), before);
}

#[test]
fn a_program_killed_under_the_session_is_said_to_be_dead() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let mut victim = Victim::start(dir.path(), &program, &["plain"]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let frozen: Frozen = seize::seize(pid).unwrap();
    let mut session = frozen.remote(pid).unwrap();
    ask(&mut session, pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
    let error = session.syscall(libc::SYS_getpid, [0; 6]).unwrap_err();
    assert!(matches!(error, RemoteError::Died { .. }), "{error}");
    assert!(session.finish().is_ok());
    frozen.thaw().unwrap();
    victim.wait(Duration::from_secs(10));
}

/// No limit that a busy machine would break: what it costs is printed.
#[test]
fn a_call_costs_microseconds() {
    require!("root", "cc");
    const CALLS: u32 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let victim = Victim::start(dir.path(), &program, &["plain"]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let frozen = seize::seize(pid).unwrap();
    let mut session = frozen.remote(pid).unwrap();
    let begun = Instant::now();
    (0..CALLS).for_each(|_| ask(&mut session, pid));
    let each = begun.elapsed() / CALLS;
    println!("a remote call takes {each:?}");
    // Thousands of times as much on an emulated processor.
    assert!(each < Duration::from_millis(50), "{each:?}");
}
