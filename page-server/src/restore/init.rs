//! The process above a restored tree: pid 1 of its pid namespace, or a subreaper in the host's.
//!
//! Two stages. The launcher leaves the server's session, makes the namespaces, starts the init and ends; so the
//! init is nobody's child that the server's death could reach. The init runs `criu restore -d`, which leaves the
//! tree to it, bounds the time and the log of that, reaps, and ends with the tree. In a pid namespace its end
//! is the end of everything in it, which makes it the clean way to abort. criu cannot be pid 1 itself: it
//! exits after the restore, and the namespace would go with it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use super::process::{Identity, descendants};
use super::work::{Plan, WorkDir};
use super::{HOOK_VARIABLE, INIT_WORD};

/// criu's log is kept up to this length, in bytes; a restore that loops writes for ever. Not by RLIMIT_FSIZE: that
/// would also bound the files that criu re-creates, and could not be raised again for the tree.
const LOG_LEN_MAX: usize = 4 << 20;
/// How long the init waits to be announced.
pub(super) const ANNOUNCE_LIMIT: Duration = Duration::from_secs(5);
/// Pids that criu and its helpers may need while a tree is restored.
const SPARE_PIDS: u32 = 400;

/// First stage: returns when the init runs and is announced.
pub(super) fn launch(work: &WorkDir) -> io::Result<()> {
    let plan = work.plan()?;
    setsid()?;
    if plan.own_pidns {
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(work.init_log())?;
    let child = Command::new(&plan.program)
        .arg(INIT_WORD)
        .arg(work.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    work.put_init(&Identity::of(child.id() as i32)?)
}

/// Second stage: runs until the tree has ended.
pub(super) fn run(work: &WorkDir) -> io::Result<()> {
    let plan = work.plan()?;
    wait_until_announced(work)?;
    if plan.own_pidns {
        mount_proc()?;
        avoid_pids_of_tree(&plan);
    } else {
        prctl::set_child_subreaper(true)?;
    }
    if work.is_aborted() {
        return Err(io::Error::other("aborted before it began"));
    }
    let (reader, writer) = io::pipe()?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(work.criu_log())?;
    std::thread::spawn(move || keep_log(reader, log));
    let criu = criu_command(&plan, work).stdout(writer.try_clone()?).stderr(writer).spawn();
    let criu = criu
        .map_err(|e| io::Error::new(e.kind(), format!("{} cannot be started: {e}", plan.criu.display())))?;
    let criu = Pid::from_raw(criu.id() as i32);
    let watched = (work.clone(), plan.clone());
    std::thread::spawn(move || watch(&watched.0, &watched.1, criu));
    reap(work, criu)
}

/// A server that dies between the start of the init and the word of who it is leaves nothing behind that it could
/// not find again: the init begins only when that word is there.
fn wait_until_announced(work: &WorkDir) -> io::Result<()> {
    let deadline = Instant::now() + ANNOUNCE_LIMIT;
    while work.init()?.is_none() {
        if Instant::now() > deadline {
            return Err(io::Error::other("nobody announced this init"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn mount_proc() -> io::Result<()> {
    let none = None::<&str>;
    // Mounts of the host still come in; none of ours goes out.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, none)?)
}

/// Moves the namespace's pid counter to where the images want no pid: in a fresh namespace criu itself would get
/// a low one, which the tree may need.
fn avoid_pids_of_tree(plan: &Plan) {
    let pid_max = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let pid_max: u32 = pid_max.and_then(|text| text.trim().parse().ok()).unwrap_or(32768);
    let wanted = super::images::task_ids(&plan.images_dir).unwrap_or_default();
    let mut last = pid_max.saturating_sub(SPARE_PIDS);
    while last > SPARE_PIDS && wanted.iter().any(|id| (last..last + SPARE_PIDS).contains(id)) {
        last -= SPARE_PIDS;
    }
    if let Err(e) = std::fs::write("/proc/sys/kernel/ns_last_pid", last.to_string()) {
        eprintln!("restore-init: the pid counter stays low, a pid of the tree may be taken: {e}");
    }
}

fn criu_command(plan: &Plan, work: &WorkDir) -> Command {
    let mut command = Command::new(&plan.criu);
    command.args(["restore", "-d", "-v2", "--no-default-config", "-D"]).arg(&plan.images_dir);
    // criu runs the file itself, without arguments, at every stage; the environment says whose hook it is. A script
    // in the work directory would not do where that is mounted noexec.
    command.arg("-W").arg(work.path()).arg("--action-script").arg(&plan.program).args(&plan.options);
    command.env(HOOK_VARIABLE, work.path());
    command.current_dir(work.path()).stdin(Stdio::null());
    command
}

fn keep_log(mut pipe: impl Read, mut log: File) {
    let mut room = LOG_LEN_MAX;
    let mut buf = vec![0; 64 << 10];
    loop {
        let len = match pipe.read(&mut buf) {
            Ok(0) => return,
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        // A log that cannot be written is no reason to stop criu, and a full pipe would.
        let kept = len.min(room);
        let _ = log.write_all(&buf[..kept]);
        if room > 0 && kept == room {
            let _ = writeln!(log, "\n[log cut at {LOG_LEN_MAX} bytes]");
        }
        room -= kept;
    }
}

/// Bounds the time until the tree is held. After that only a decision ends the waiting; after a release, the
/// server bounds what follows.
fn watch(work: &WorkDir, plan: &Plan, criu: Pid) {
    let deadline = Instant::now() + plan.limit();
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        if matches!(work.held(), Ok(Some(_))) || matches!(work.outcome(), Ok(Some(_))) {
            return;
        }
    }
    if matches!(work.held(), Ok(None)) {
        let words = format!("the tree was not restored within {} s", plan.limit().as_secs());
        let _ = work.put_outcome(&words);
        // The main thread reaps it and ends everything.
        let _ = nix::sys::signal::kill(criu, nix::sys::signal::Signal::SIGKILL);
    }
}

/// Reaps until nothing is left. A criu that fails takes everything with it.
fn reap(work: &WorkDir, criu: Pid) -> io::Result<()> {
    loop {
        let (pid, status) = match waitpid(None, None) {
            Err(Errno::ECHILD) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(WaitStatus::Exited(pid, status)) => (pid, ExitStatus::from_raw(status << 8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus::from_raw(signal as i32)),
            Ok(_) => continue,
        };
        if pid != criu {
            continue;
        }
        if status.success() {
            // The tree runs from here on, and this process must outlive it: a disk that is full now is waited for.
            announce_success(work);
            continue;
        }
        if matches!(work.outcome(), Ok(None)) {
            work.put_outcome(&format!("criu restore failed: {status}"))?;
        }
        kill_all();
        return Err(io::Error::other(format!("criu restore failed: {status}")));
    }
}

/// Says that criu ended well, again and again beside the reaping until the disk takes it.
fn announce_success(work: &WorkDir) {
    if work.put_outcome("ok").is_ok() {
        return;
    }
    let work = work.clone();
    std::thread::spawn(move || {
        while work.put_outcome("ok").is_err() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

/// Kills whatever a failed criu left. In a pid namespace the end of this process does so; in the host's it must be
/// done one by one, again until none is left, since a process may fork meanwhile.
fn kill_all() {
    let me = std::process::id() as i32;
    for _ in 0..200 {
        let left = descendants(me);
        if left.is_empty() {
            return;
        }
        // The deepest first: no parent acts on the end of a child.
        for pid in left.into_iter().rev() {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        while matches!(waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some())
        {
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
