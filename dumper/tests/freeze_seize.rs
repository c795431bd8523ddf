//! Stopping processes in odd states, and leaving them in those.
#![allow(clippy::unwrap_used, missing_docs)]

mod remote;
mod support;

use std::process::Command;
use std::time::Duration;

use godwit_dumper::freeze::seize::{self, FreezeError};
use godwit_dumper::procfs::{stat, tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use remote::{Victim, compile, eventually, is_untraced};

fn state_of(pid: Pid) -> char {
    char::from(stat::read(pid).unwrap().state)
}

#[test]
fn a_stopped_process_stays_stopped_and_can_be_asked() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    for signal in [Signal::SIGSTOP, Signal::SIGTSTP, Signal::SIGTTIN] {
        let mut victim = Victim::start(dir.path(), &program, &["threads"]);
        victim.wait_for("READY");
        let pid = victim.pid();
        kill(pid, signal).unwrap();
        eventually(|| state_of(pid) == 'T', || format!("{signal} does not stop it"));
        for _ in 0..3 {
            let frozen = seize::seize(pid).unwrap();
            assert_eq!(frozen.stopped_by(), Some(signal as i32));
            let mut session = frozen.remote(pid).unwrap();
            assert_eq!(session.syscall(libc::SYS_getpid, [0; 6]).unwrap(), pid.as_raw() as u64);
            session.finish().unwrap();
            frozen.thaw().unwrap();
            eventually(
                || state_of(pid) == 'T' && is_untraced(pid),
                || format!("it is in state {}", state_of(pid)),
            );
            for tid in tree::threads(pid).unwrap() {
                eventually(|| stat::read_thread(pid, tid).unwrap().state == b'T', || format!("{tid} runs"));
            }
        }
        kill(pid, Signal::SIGCONT).unwrap();
        victim.release();
        assert_eq!(victim.wait(Duration::from_secs(10)), Some(0), "{}", victim.output());
    }
}

#[test]
fn signals_to_a_frozen_process_take_effect_at_the_thaw() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let mut victim = Victim::start(dir.path(), &program, &["plain"]);
    victim.wait_for("READY");
    let pid = victim.pid();
    // A stop that comes while it is frozen, in the middle of remote calls.
    let frozen = seize::seize(pid).unwrap();
    let mut session = frozen.remote(pid).unwrap();
    kill(pid, Signal::SIGSTOP).unwrap();
    assert_eq!(session.syscall(libc::SYS_getpid, [0; 6]).unwrap(), pid.as_raw() as u64);
    session.finish().unwrap();
    frozen.thaw().unwrap();
    eventually(|| state_of(pid) == 'T', || format!("it is in state {}", state_of(pid)));
    // One that ends it.
    kill(pid, Signal::SIGCONT).unwrap();
    eventually(|| state_of(pid) != 'T', || "it does not go on".to_owned());
    let frozen = seize::seize(pid).unwrap();
    let mut session = frozen.remote(pid).unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(session.syscall(libc::SYS_getpid, [0; 6]).unwrap(), pid.as_raw() as u64);
    session.finish().unwrap();
    assert!(victim.is_running());
    frozen.thaw().unwrap();
    assert_eq!(victim.wait(Duration::from_secs(10)), None, "it was ended by a signal");
}

#[test]
fn what_cannot_be_stopped_is_refused_by_name() {
    require!("root");
    let me = nix::unistd::getpid();
    assert!(matches!(seize::seize(me), Err(FreezeError::Itself { .. })));
    assert!(matches!(seize::seize(nix::unistd::gettid()), Err(FreezeError::Itself { .. })));
    assert!(matches!(seize::seize(Pid::from_raw(i32::MAX)), Err(FreezeError::NoProcess { .. })));
    // Kernel threads are children of pid 2, where this pid namespace shows them.
    let kernel = tree::children(Pid::from_raw(2), Pid::from_raw(2)).unwrap_or_default();
    if let Some(thread) = kernel.into_iter().find(|pid| stat::read(*pid).is_ok_and(|s| s.is_kernel_thread()))
    {
        assert!(matches!(seize::seize(thread), Err(FreezeError::KernelThread { .. })));
    }
    let mut zombie = Command::new("true").spawn().unwrap();
    let pid = Pid::from_raw(zombie.id() as i32);
    eventually(|| stat::read(pid).unwrap().is_zombie(), || "it does not end".to_owned());
    assert!(matches!(seize::seize(pid), Err(FreezeError::Zombie { .. })));
    zombie.wait().unwrap();
}

#[test]
fn a_thread_and_a_traced_process_are_refused_by_name() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let victim = Victim::start(dir.path(), &program, &["threads"]);
    victim.wait_for("READY");
    let pid = victim.pid();
    eventually(
        || {
            let threads = tree::threads(pid).unwrap();
            let Some(tid) = threads.iter().find(|tid| **tid != pid) else { return false };
            // Such a thread may end just when it is looked at.
            matches!(seize::seize(*tid), Err(FreezeError::NotALeader { leader, .. }) if leader == pid)
        },
        || "a thread is not refused".to_owned(),
    );
    let frozen = seize::seize(pid).unwrap();
    let error = seize::seize(pid).err().unwrap();
    let FreezeError::AlreadyTraced { tracer, .. } = error else { panic!("{error}") };
    assert_eq!(tracer, nix::unistd::gettid());
    frozen.thaw().unwrap();
    seize::seize(pid).unwrap().thaw().unwrap();
}

#[test]
fn a_process_that_does_not_stop_is_let_go_and_named() {
    require!("root", "cc");
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "places", &[]);
    let mut victim = Victim::start(dir.path(), &program, &["vfork"]);
    victim.wait_for("READY");
    // The parent of a vfork child sleeps in the kernel until that child ends or makes an execve.
    std::thread::sleep(Duration::from_millis(50));
    let pid = victim.pid();
    // In a thread of its own: a thread that never came to a stop cannot be detached, but by its tracer's end.
    let attempt =
        std::thread::spawn(move || seize::seize_within(pid, Duration::from_millis(200)).err().unwrap());
    let error = attempt.join().unwrap();
    assert!(matches!(error, FreezeError::Unstoppable { state: 'D', .. }), "{error}");
    assert_eq!(victim.wait(Duration::from_secs(10)), Some(0));
}
