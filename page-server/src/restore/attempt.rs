//! One attempt to restore, as the server sees it: started, held, released or killed; found again after a restart.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::LAUNCH_WORD;
use super::init::ANNOUNCE_LIMIT;
use super::process::{Identity, descendants, innermost_pid, kill_all};
use super::work::{Decision, Plan, WorkDir};

/// How often files of the work directory are looked at: a bound on what waiting adds to the downtime.
const POLL_INTERVAL: Duration = Duration::from_micros(500);
/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// How long an init may take to reap what was killed below it.
const REAP_LIMIT: Duration = Duration::from_secs(2);
/// How long criu may take to kill a tree in the host's pid namespace when the hook says no.
const REFUSE_LIMIT: Duration = Duration::from_secs(10);

/// An attempt by its work directory.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) work: WorkDir,
    plan: Plan,
}

/// A tree that criu holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) root: Identity,
    pub(super) init: Identity,
    /// All processes of the tree, its root first, parents before children. Those that were dead when they were dumped are
    /// not among them.
    pub(super) tree: Vec<Identity>,
}

impl Attempt {
    /// Starts the init; it is announced when this returns.
    pub(super) fn start(work: WorkDir, plan: Plan) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(work.init_log())?;
        let status = Command::new(&plan.program)
            .arg(LAUNCH_WORD)
            .arg(work.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .status()
            .map_err(|e| {
                io::Error::new(e.kind(), format!("{} cannot be started: {e}", plan.program.display()))
            })?;
        if !status.success() {
            return Err(io::Error::other(format!("the launcher of the restore ended with {status}")));
        }
        Ok(Self { work, plan })
    }

    /// Finds an attempt of an earlier server.
    pub(super) fn find(work: WorkDir) -> io::Result<Self> {
        let plan = work.plan()?;
        Ok(Self { work, plan })
    }

    pub(super) fn own_pidns(&self) -> bool {
        self.plan.own_pidns
    }

    /// Waits until the tree is held.
    ///
    /// # Errors
    /// Why it never will be: criu failed, the time is over, or `cancel` was set.
    pub(super) fn wait_held(&self, cancel: &AtomicBool) -> io::Result<Held> {
        // The init bounds the time too; it may be dead.
        let deadline = Instant::now() + self.plan.limit() + ANNOUNCE_LIMIT;
        loop {
            let init = self.init()?;
            let is_alive = init.is_alive();
            if let Some(root) = self.work.held()? {
                return self.identify(init, root);
            }
            if let Some(words) = self.work.outcome()? {
                return Err(io::Error::other(words));
            }
            // Its last words may have come between the two looks.
            if !is_alive && self.work.outcome()?.is_none() {
                return Err(io::Error::other("the restore's init ended"));
            }
            if cancel.load(Ordering::SeqCst) {
                return Err(io::Error::other("the source gave up"));
            }
            if Instant::now() > deadline {
                let seconds = self.plan.limit().as_secs();
                return Err(io::Error::other(format!("the tree was not restored within {seconds} s")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The held root as this program sees it: criu names it by its own pid namespace.
    fn identify(&self, init: Identity, root: i32) -> io::Result<Held> {
        let pid = match self.plan.own_pidns {
            false => root,
            true => {
                let below = descendants(init.pid);
                let found = below.into_iter().find(|pid| innermost_pid(*pid) == Some(root));
                found
                    .ok_or_else(|| io::Error::other(format!("pid {root} is not below the restore's init")))?
            }
        };
        let root = Identity::of(pid)?;
        let below = descendants(pid).into_iter().filter_map(|pid| Identity::of(pid).ok());
        let tree = std::iter::once(root).chain(below.filter(Identity::is_alive)).collect();
        Ok(Held { root, init, tree })
    }

    fn init(&self) -> io::Result<Identity> {
        self.work.init()?.ok_or_else(|| io::Error::other("the restore's init was not announced"))
    }

    /// Whether somebody still holds the tree, ready to let it go.
    pub(super) fn is_held(&self) -> bool {
        self.work.is_listening() && self.init().is_ok_and(|init| init.is_alive())
    }

    /// Lets the tree run. `false` if nobody holds it any more.
    pub(super) fn release(&self) -> io::Result<bool> {
        self.work.decide(Decision::Release)
    }

    /// How criu ended, if it did.
    pub(super) fn outcome(&self) -> io::Result<Option<String>> {
        self.work.outcome()
    }

    /// Waits until criu has ended after a release: `ok`, or why not.
    pub(super) fn wait_outcome(&self) -> io::Result<()> {
        let deadline = Instant::now() + self.plan.limit();
        loop {
            let is_alive = self.init()?.is_alive();
            match self.work.outcome()?.as_deref() {
                Some("ok") => return Ok(()),
                Some(words) => return Err(io::Error::other(words.to_owned())),
                None if !is_alive => {
                    return Err(io::Error::other("the restore's init ended before criu did"));
                }
                None if Instant::now() > deadline => {
                    return Err(io::Error::other("criu did not end after the release"));
                }
                None => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Kills all that the attempt made, and waits until it is gone. What never began is kept from beginning. `tree` is
    /// what is known of the processes that it held: in the host's pid namespace they outlive an init that was killed.
    ///
    /// # Errors
    /// When something may be left: the attempt must not be called aborted.
    pub(super) fn kill(&self, tree: &[Identity]) -> io::Result<()> {
        // The mark keeps an init that is not announced yet from beginning; one that is announced is killed all the same
        // when a full disk takes no mark.
        let marked = self.work.put_abort();
        let deadline = Instant::now() + ANNOUNCE_LIMIT + Duration::from_secs(1);
        let init = loop {
            match self.work.init()? {
                Some(init) => break init,
                // An init that nobody announces gives up before it starts criu, if it finds the mark.
                None if Instant::now() > deadline => return marked,
                None => std::thread::sleep(POLL_INTERVAL),
            }
        };
        if !self.plan.own_pidns {
            self.kill_in_host(init)?;
            kill_all(tree, KILL_LIMIT)?;
            wait_until_reaped(init, tree);
        }
        init.kill(KILL_LIMIT)
    }

    /// Without a namespace there is no single process whose end ends all: criu is asked to kill its tree, then
    /// whatever is left below the init, which adopts every orphan, is killed.
    fn kill_in_host(&self, init: Identity) -> io::Result<()> {
        if self.work.decide(Decision::Abort)? {
            let deadline = Instant::now() + REFUSE_LIMIT;
            while self.work.is_listening() || (init.is_alive() && self.work.outcome()?.is_none()) {
                if Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        kill_descendants(init)
    }
}

/// Kills a restore's init and all below it, of which no more is known.
///
/// # Errors
/// When something may be left.
pub(super) fn kill_below(init: Identity) -> io::Result<()> {
    kill_descendants(init)?;
    init.kill(KILL_LIMIT)
}

/// Kills a held tree that outlived its init.
///
/// # Errors
/// When something may be left.
pub(super) fn kill_tree(tree: &[Identity]) -> io::Result<()> {
    kill_all(tree, KILL_LIMIT)
}

/// Gives the init, which is the parent of what it adopted, a moment to take the dead away: until then their pids are
/// taken, and a restore anew wants the same ones.
fn wait_until_reaped(init: Identity, tree: &[Identity]) {
    let deadline = Instant::now() + REAP_LIMIT;
    while init.is_alive() && tree.iter().any(Identity::is_there) && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn kill_descendants(init: Identity) -> io::Result<()> {
    let deadline = Instant::now() + KILL_LIMIT;
    while init.is_alive() {
        let left = descendants(init.pid).into_iter().filter_map(|pid| Identity::of(pid).ok());
        let left: Vec<_> = left.filter(Identity::is_alive).collect();
        if left.is_empty() {
            return Ok(());
        }
        kill_all(&left, KILL_LIMIT)?;
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}
