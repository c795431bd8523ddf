//! The action script of `criu restore`: holds the tree at `post-restore` until it is told to let it run.
//!
//! criu runs it at every stage and waits for it. Exit status 0 lets criu go on; anything else at `post-restore`
//! makes it kill the restored tree. It waits on a fifo, so that the server may die and another one decide.

use std::io::{self, BufRead, BufReader};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use super::work::{Decision, WorkDir};

/// Runs the hook; returns its exit status.
pub(super) fn run(work: &WorkDir) -> i32 {
    if std::env::var("CRTOOLS_SCRIPT_ACTION").as_deref() != Ok("post-restore") {
        return 0;
    }
    match hold(work) {
        Ok(Decision::Release) => 0,
        Ok(Decision::Abort) => 1,
        Err(e) => {
            eprintln!("restore-hook: {e}");
            1
        }
    }
}

fn hold(work: &WorkDir) -> io::Result<Decision> {
    // A hook whose criu is gone holds nothing, and its open fifo would say that it does.
    let criu = getppid();
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != criu || criu.as_raw() == 1 {
        return Ok(Decision::Abort);
    }
    let fifo = work.listen()?;
    if work.is_aborted() {
        return Ok(Decision::Abort);
    }
    let root = std::env::var("CRTOOLS_INIT_PID").ok().and_then(|pid| pid.parse().ok());
    let root = root.ok_or_else(|| io::Error::other("criu names no CRTOOLS_INIT_PID"))?;
    work.put_held(root)?;
    for line in BufReader::new(fifo).lines() {
        match line?.as_str() {
            "release" => return Ok(Decision::Release),
            "abort" => return Ok(Decision::Abort),
            other => eprintln!("restore-hook: {other:?} is no decision"),
        }
    }
    Ok(Decision::Abort)
}
