//! Action scripts: programs of the operator's, run at named points of the dump, under CRIU's contract
//! (criu/action-scripts.c).
//!
//! A script is run without arguments and finds in its environment
//! * `CRTOOLS_SCRIPT_ACTION`: the point, as below,
//! * `CRTOOLS_INIT_PID`: the root's pid as godwit sees it,
//! * `CRTOOLS_IMAGE_DIR`: a directory that it can open; which one, [`super::image_dir`] tells.
//!
//! | point | when | exit status other than 0 |
//! |---|---|---|
//! | `pre-dump` | before anything is touched; not for a round on its own | nothing is dumped |
//! | `network-lock` | stopped, if the tree has a network namespace of its own | it runs on |
//! | `network-unlock` | behind a `network-lock`, also one that failed, before it runs on; not if it was killed or stays stopped | is warned of |
//! | `post-dump` | all images are whole and durable, and it is still stopped | it runs on; godwit's exit status is the script's |
//!
//! In the host's network namespace there is nothing to lock at large: CRIU locks each connection there, and runs neither
//! network script. CRIU's other points come to nothing here: `pre-stream` is of its image streamer,
//! `query-ext-files` is asked over its RPC socket only and never of a script, and all others are those of `criu restore`,
//! which the page server runs.
//!
//! At every point all scripts run, in the order in which they were given (CRIU: the last one first), also behind one that
//! failed. Each may take as long as `--timeout` says. One that takes longer, or runs when the user wants everything to
//! end, is asked to end, then killed, with all that it started and that is still of its process group. What scripts
//! print goes to standard error, which is the log.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use godwit_wire::fault;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::image_dir::ImageDir;
use crate::error::DumpError;
use crate::interrupt;
use crate::options::{Options, Stage};
use crate::procfs::ns::{self, Kind};
use crate::sys::child;

/// How long a script may take to end once it was asked to.
const GRACE: Duration = Duration::from_secs(2);

/// A point at which scripts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before anything is touched.
    PreDump,
    /// The network of a tree with a namespace of its own is about to be locked.
    NetworkLock,
    /// It is about to be given back.
    NetworkUnlock,
    /// After all images are whole, before the process is killed or let go.
    PostDump,
}

impl Hook {
    /// What scripts are told.
    pub fn name(self) -> &'static str {
        match self {
            Hook::PreDump => "pre-dump",
            Hook::NetworkLock => "network-lock",
            Hook::NetworkUnlock => "network-unlock",
            Hook::PostDump => "post-dump",
        }
    }

    /// The fault point between two scripts.
    fn point(self) -> &'static str {
        match self {
            Hook::PreDump => "mid.scripts.pre-dump",
            Hook::NetworkLock => "mid.scripts.network-lock",
            Hook::NetworkUnlock => "mid.scripts.network-unlock",
            Hook::PostDump => "mid.scripts.post-dump",
        }
    }

    /// Whether it is run in any case, also when the user wants everything to end: it undoes something.
    fn undoes(self) -> bool {
        self == Hook::NetworkUnlock
    }
}

/// The scripts of one dump.
#[derive(Clone, Debug)]
pub struct Scripts {
    programs: Vec<PathBuf>,
    root: Pid,
    limit: Duration,
    image_dir: Option<PathBuf>,
}

impl Scripts {
    /// Those that were asked for. A round on its own runs none, as `criu pre-dump` does not.
    pub fn new(options: &Options, image_dir: &ImageDir) -> Scripts {
        let programs = match options.stage {
            Stage::Dump => options.action_scripts.clone(),
            Stage::PreDump => Vec::new(),
        };
        let (root, limit) = (options.pid, options.timeouts.step);
        Scripts { programs, root, limit, image_dir: image_dir.for_scripts() }
    }

    /// Runs every script at a point, in order, also those behind one that failed.
    ///
    /// # Errors
    /// [`DumpError::Script`] of the first that failed; [`DumpError::ScriptTimeout`] and [`DumpError::Interrupted`] at
    /// once.
    pub fn run(&self, hook: Hook) -> Result<(), DumpError> {
        let mut outcome = Ok(());
        for (number, script) in self.programs.iter().enumerate() {
            if number > 0 {
                fault::point(hook.point())?;
            }
            let ran = self.run_one(script, hook);
            if !hook.undoes() {
                interrupt::check()?;
            }
            match ran {
                Err(expired @ DumpError::ScriptTimeout { .. }) if !hook.undoes() => return Err(expired),
                ran => outcome = outcome.and(ran),
            }
        }
        outcome
    }

    /// Locks the network as far as scripts do: where the tree has a namespace of its own they run. Until the value is
    /// dropped or kept the tree must stay stopped.
    ///
    /// # Errors
    /// As [`Scripts::run`]; the scripts that unlock have run then.
    pub fn lock_network(&self) -> Result<NetworkLock<'_>, DumpError> {
        let is_own = !self.programs.is_empty() && has_own_network(self.root)?;
        let lock = NetworkLock { locked: is_own.then_some(self) };
        if is_own {
            self.run(Hook::NetworkLock)?;
        }
        Ok(lock)
    }

    fn run_one(&self, script: &Path, hook: Hook) -> Result<(), DumpError> {
        let subject = || format!("action script {} at {}", script.display(), hook.name());
        let failed = |what| move |source: io::Error| DumpError::sys(subject(), what, source);
        let log = io::stderr().as_fd().try_clone_to_owned().map_err(failed("duplicating the log"))?;
        let mut command = Command::new(script);
        command
            .env("CRTOOLS_SCRIPT_ACTION", hook.name())
            .env("CRTOOLS_INIT_PID", self.root.to_string())
            .stdin(Stdio::null())
            .stdout(log)
            .process_group(0);
        if let Some(dir) = &self.image_dir {
            command.env("CRTOOLS_IMAGE_DIR", dir);
        }
        let started = child::unblock_signals(&mut command).spawn().map_err(failed("starting it"))?;
        let ended = wait(started, self.limit, !hook.undoes()).map_err(failed("waiting for it"))?;
        let (script, action) = (script.to_owned(), hook.name());
        match ended {
            Ended::Itself(status) if status.success() => Ok(()),
            Ended::Itself(status) => Err(DumpError::Script { script, action, status }),
            Ended::Late => Err(DumpError::ScriptTimeout { script, action, limit: self.limit }),
        }
    }
}

/// Whether a process has a network namespace that is not godwit's own (`man 7 namespaces`).
///
/// # Errors
/// When `/proc` does not tell.
pub fn has_own_network(pid: Pid) -> Result<bool, DumpError> {
    Ok(ns::read(pid, Kind::Net)? != ns::read(Pid::this(), Kind::Net)?)
}

/// The network of a stopped tree, locked by scripts if it is its own. Dropping it runs those that unlock.
#[derive(Debug)]
#[must_use = "dropping it unlocks the network"]
pub struct NetworkLock<'a> {
    locked: Option<&'a Scripts>,
}

impl NetworkLock<'_> {
    /// Whether there is a lock.
    pub fn is_locked(&self) -> bool {
        self.locked.is_some()
    }

    /// The tree is dead, or stays stopped: the lock stays, and whoever restores lifts it.
    pub fn keep(mut self) {
        self.locked = None;
    }
}

impl Drop for NetworkLock<'_> {
    fn drop(&mut self) {
        if let Some(scripts) = self.locked.take()
            && let Err(error) = scripts.run(Hook::NetworkUnlock)
        {
            tracing::warn!(%error, "the network of process {} may still be locked", scripts.root);
        }
    }
}

enum Ended {
    Itself(ExitStatus),
    Late,
}

/// Waits for a script, `limit` long and, if it is not run to undo something, as long as the user does not want everything
/// to end. Then its process group is asked to end, and made to.
fn wait(mut script: Child, limit: Duration, heeds_user: bool) -> io::Result<Ended> {
    let group = Pid::from_raw(script.id() as i32);
    let begun = Instant::now();
    let mut pause = Duration::from_micros(100);
    let mut asked_at: Option<Instant> = None;
    loop {
        let is_late = begun.elapsed() > limit;
        if let Some(status) = script.try_wait()? {
            // Whatever it left in its group when it was asked to end goes too.
            if asked_at.is_some() {
                let _ = killpg(group, Signal::SIGKILL);
            }
            // One that ended only since it was asked to did not do its work, whatever its status.
            return Ok(if asked_at.is_some() && is_late { Ended::Late } else { Ended::Itself(status) });
        }
        let is_over = is_late || (heeds_user && interrupt::asked().is_some());
        match asked_at {
            Some(at) if at.elapsed() > GRACE => {
                let _ = killpg(group, Signal::SIGKILL);
            }
            Some(_) => {}
            None if is_over => {
                asked_at = Some(Instant::now());
                let _ = killpg(group, Signal::SIGTERM);
            }
            None => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// The exit status of godwit behind a failed script: the script's own behind a `post-dump`, else 1. A script that a signal
/// ended counts as in a shell.
pub fn exit_status(action: &str, status: ExitStatus) -> u8 {
    if action != Hook::PostDump.name() {
        return 1;
    }
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Fixture {
        dir: tempfile::TempDir,
        scripts: Scripts,
    }

    impl Fixture {
        fn new(texts: &[&str]) -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let programs = texts.iter().enumerate().map(|(number, text)| {
                let path = dir.path().join(format!("script-{number}"));
                std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{text}\n", dir.path().display())).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
                path
            });
            let programs = programs.collect();
            let image_dir = Some(dir.path().to_owned());
            let scripts = Scripts { programs, root: Pid::this(), limit: Duration::from_secs(20), image_dir };
            Fixture { dir, scripts }
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
        }
    }

    const TELL: &str = "echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID $CRTOOLS_IMAGE_DIR >> told";

    #[test]
    fn all_run_in_order_with_their_environment_also_behind_one_that_failed() {
        let tells = |text: &str| format!("{TELL}; {text}");
        let fixture = Fixture::new(&[&tells("exit 7"), &tells("exit 9"), &tells("exit 0")]);
        let error = fixture.scripts.run(Hook::PostDump).unwrap_err();
        assert_eq!(error.exit_status(), 7);
        assert!(error.to_string().contains("script-0") && error.to_string().contains("post-dump"), "{error}");
        let line = format!("post-dump {} {}\n", Pid::this(), fixture.dir.path().display());
        assert_eq!(fixture.read("told"), line.repeat(3));
        assert_eq!(fixture.scripts.run(Hook::PreDump).unwrap_err().exit_status(), 1);
    }

    #[test]
    fn a_script_that_hangs_is_ended_with_all_it_started() {
        // One that heeds SIGTERM, and one whose child does not.
        for text in ["exec sleep 60", "trap '' TERM; sleep 60 & echo $! > child; wait; sleep 60"] {
            let mut fixture = Fixture::new(&[text, TELL]);
            fixture.scripts.limit = Duration::from_millis(300);
            let begun = Instant::now();
            let error = fixture.scripts.run(Hook::PostDump).unwrap_err();
            assert!(matches!(error, DumpError::ScriptTimeout { .. }), "{error}");
            assert!(error.to_string().contains("--timeout"), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(20));
            assert_eq!(fixture.read("told"), "", "what comes behind is not begun");
            if let Ok(child) = fixture.read("child").trim().parse::<i32>() {
                let is_there = || nix::sys::signal::kill(Pid::from_raw(child), None).is_ok();
                let is_zombie = || {
                    std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|s| s.contains(") Z"))
                };
                for _ in 0..100 {
                    if !is_there() || is_zombie() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                assert!(!is_there() || is_zombie(), "process {child} lives");
            }
        }
    }

    #[test]
    fn no_network_script_runs_in_the_hosts_namespace() {
        let fixture = Fixture::new(&[TELL]);
        let lock = fixture.scripts.lock_network().unwrap();
        assert!(!lock.is_locked());
        drop(lock);
        assert_eq!(fixture.read("told"), "");
    }

    #[test]
    fn a_namespace_of_its_own_is_locked_and_unlocked() {
        if !nix::unistd::geteuid().is_root() {
            return; // no right to make one
        }
        let mut child = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        for _ in 0..500 {
            if has_own_network(pid).unwrap() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut fixture = Fixture::new(&["echo $CRTOOLS_SCRIPT_ACTION >> told; [ ! -e fail ]"]);
        fixture.scripts.root = pid;
        let lock = fixture.scripts.lock_network().unwrap();
        assert!(lock.is_locked());
        assert_eq!(fixture.read("told"), "network-lock\n");
        drop(lock);
        assert_eq!(fixture.read("told"), "network-lock\nnetwork-unlock\n");
        // One that fails is undone too.
        std::fs::write(fixture.dir.path().join("fail"), "").unwrap();
        assert!(matches!(fixture.scripts.lock_network(), Err(DumpError::Script { .. })));
        assert_eq!(fixture.read("told"), "network-lock\nnetwork-unlock\n".repeat(2));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_lock_is_undone_unless_it_is_kept() {
        let fixture = Fixture::new(&["echo $CRTOOLS_SCRIPT_ACTION >> told"]);
        NetworkLock { locked: Some(&fixture.scripts) }.keep();
        assert_eq!(fixture.read("told"), "");
        drop(NetworkLock { locked: Some(&fixture.scripts) });
        assert_eq!(fixture.read("told"), "network-unlock\n");
    }

    #[test]
    fn the_status_of_a_post_dump_script_is_godwits() {
        let of = |status: i32| exit_status("post-dump", ExitStatus::from_raw(status));
        assert_eq!((of(3 << 8), of(255 << 8), of(9)), (3, 255, 137));
        assert_eq!(exit_status("pre-dump", ExitStatus::from_raw(3 << 8)), 1);
    }
}
