//! The programs in `tests/victims`: compiled once, started in a directory of their own, and asked to check themselves.

use super::child::{eventually, tail};
use super::scene::{Scene, status_field};
use super::tree::{Member, Tree};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Which C library a victim is linked with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    Glibc,
    StaticMusl,
    /// For the guest, whose libraries are not the host's.
    StaticGlibc,
}

/// Compiles a victim unless the cache has it; the key is the content of its sources. `GODWIT_VICTIMS` names a directory
/// of compiled ones, for a machine without a compiler.
///
/// # Panics
/// With the compiler's words when it fails.
pub fn compile(name: &str, libc: Libc) -> PathBuf {
    if let Some(dir) = std::env::var_os("GODWIT_VICTIMS") {
        return Path::new(&dir).join(name);
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/victims");
    let source = sources.join(format!("{name}.c"));
    let (compiler, extra, tag): (&str, &[&str], &str) = match libc {
        Libc::Glibc => ("cc", &[], "gnu"),
        Libc::StaticMusl => ("musl-gcc", &["-static"], "musl"),
        Libc::StaticGlibc => ("cc", &["-static"], "gnustatic"),
    };
    let mut key = blake3::Hasher::new();
    for file in [&source]
        .into_iter()
        .chain(&["victim.h", "tree.h", "smaps.h", "filter.h"].map(|name| sources.join(name)))
    {
        key.update(&std::fs::read(file).unwrap());
    }
    let key = key.finalize().to_hex();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("victims");
    std::fs::create_dir_all(&dir).unwrap();
    let program = dir.join(format!("{name}-{tag}-{}", &key[..12]));
    if !program.exists() {
        // Another test program may compile the same one: whoever is last renames the same content.
        let fresh = dir.join(format!(".{name}-{tag}-{}", std::process::id()));
        let mut command = Command::new(compiler);
        command
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread"])
            .args(extra)
            .arg("-o")
            .arg(&fresh)
            .arg(&source);
        super::run(command, Duration::from_secs(60)).expect_ok();
        std::fs::rename(&fresh, &program).unwrap();
    }
    program
}

/// What a victim said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All values are as they were set.
    Ok,
    /// The lines that begin with FAIL.
    Bad(Vec<String>),
    /// It ended in another way, or did not end.
    Lost(String),
}

/// A program to start as the leader of a session, without descriptors that this process itself was started with and
/// that a runner forgot to close.
pub fn session_leader(program: &str) -> Command {
    const ALONE: &str = "for fd in /proc/$$/fd/*; do fd=${fd##*/}; if [ $fd -gt 2 ]; then eval \"exec $fd>&-\"; fi; \
        done; exec setsid \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", ALONE, program]);
    command
}

/// A running victim that this process started. Killed when dropped.
pub struct Victim {
    child: Child,
    pub pid: i32,
    dir: PathBuf,
    /// Held by one with terminals: a restore needs their numbers again, so no two may come and go at the same time.
    _terminals: Option<Flock<File>>,
    /// Every process of its tree that was seen: killed with it, whoever their parent is by then.
    seen: RefCell<BTreeSet<Member>>,
}

impl Victim {
    /// Starts `tests/victims/NAME.c` and waits until it is ready.
    pub fn start(scene: &Scene, name: &str, args: &[&str]) -> Self {
        Self::start_with(scene, name, Libc::Glibc, args)
    }

    pub fn start_with(scene: &Scene, name: &str, libc: Libc, args: &[&str]) -> Self {
        let mut command = Command::new(compile(name, libc));
        command.args(args);
        Self::start_command(scene, name, command)
    }

    /// Starts any program that keeps to the victims' protocol (see `victim.h`).
    pub fn start_command(scene: &Scene, name: &str, mut command: Command) -> Self {
        let terminals = ["pty", "terminal", "fdlosses"].contains(&name).then(terminals);
        let dir = scene.subdir(name);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        command
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // An environment that does not vary: it is part of what is compared.
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("VICTIM", name);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut victim =
            Self { pid: child.id() as i32, child, dir, _terminals: terminals, seen: RefCell::default() };
        let until = Instant::now() + Duration::from_secs(30);
        while !victim.log().lines().any(|line| line.starts_with("READY")) {
            assert!(
                victim.child.try_wait().unwrap().is_none(),
                "{name} ended before it was ready: {}",
                victim.log()
            );
            assert!(Instant::now() < until, "{name} is not ready: {}", victim.log());
            std::thread::sleep(Duration::from_millis(3));
        }
        victim
    }

    /// Its working directory, with `log` in it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    /// Makes a file in its directory: the way to tell it something.
    pub fn tell(&self, name: &str) {
        std::fs::write(self.dir.join(name), "").unwrap();
    }

    /// Asks it to check itself. Every copy is asked: the file is the same for all.
    pub fn ask(&self) {
        self.tell("check");
    }

    /// Takes the request back, and what was answered: for a second copy that shall answer for itself.
    pub fn unask(&self) {
        let _ = std::fs::remove_file(self.dir.join("check"));
        std::fs::write(self.dir.join("log"), "").unwrap();
    }

    /// Whether the process that was started still exists, in whatever state.
    pub fn exists(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until the process that was started is gone, and reaps it.
    #[track_caller]
    pub fn expect_killed(&mut self) {
        eventually("the dumped process is killed", Duration::from_secs(10), || !self.exists());
    }

    /// That the process runs, untraced and unstopped, with nothing of godwit's in it.
    #[track_caller]
    pub fn expect_untouched(&mut self) {
        assert!(self.exists(), "the victim is gone; its log: {}", self.log());
        let pid = self.pid;
        eventually("the victim runs untraced", Duration::from_secs(5), || {
            status_field(pid, "TracerPid").as_deref() == Some("0")
                && status_field(pid, "State").is_some_and(|state| state.starts_with(['R', 'S', 'D']))
        });
        for tid in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let tid: i32 = tid.file_name().to_str().unwrap().parse().unwrap();
            assert_eq!(status_field(tid, "TracerPid").as_deref(), Some("0"), "thread {tid} is traced");
        }
        super::untouched::expect_clean(pid);
    }

    /// Asks the process that was started, and waits for its verdict.
    pub fn check(&mut self) -> Verdict {
        self.ask();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return verdict(&self.log(), &status.to_string());
            }
            if Instant::now() >= until {
                return Verdict::Lost(format!("it did not end; {}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// All its processes as they are now, itself first.
    pub fn tree(&self) -> Tree {
        let tree = Tree::of(self.pid);
        self.seen.borrow_mut().extend(&tree.0);
        tree
    }

    /// Sends a signal to the process that was started.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    /// The threads of the process, leader first.
    pub fn threads(&self) -> Vec<i32> {
        let mut tids: Vec<i32> = std::fs::read_dir(format!("/proc/{}/task", self.pid))
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        tids.sort_unstable();
        tids
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let mut members = std::mem::take(self.seen.get_mut());
        let lives = matches!(self.child.try_wait(), Ok(None));
        if lives {
            members.extend(Tree::of(self.pid).0);
        }
        Tree(members.into_iter().collect()).kill();
        if lives {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits for the right to have terminals.
fn terminals() -> Flock<File> {
    let file = File::create(std::env::temp_dir().join("godwit-tests-terminals")).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap()
}

/// Reads a verdict from a victim's log; `ended` says how it ended where it gave none.
pub fn verdict(log: &str, ended: &str) -> Verdict {
    let failures: Vec<String> =
        log.lines().filter(|line| line.starts_with("FAIL")).map(str::to_owned).collect();
    if log.lines().any(|line| line == "OK") && failures.is_empty() {
        Verdict::Ok
    } else if !failures.is_empty() {
        Verdict::Bad(failures)
    } else {
        Verdict::Lost(format!("{ended}; its log:\n{}", tail(log)))
    }
}
