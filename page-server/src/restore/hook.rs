//! The action script of `criu restore`: holds the tree at `post-restore` until it is told to let it run.
//!
//! criu runs it at every stage and waits for it. Exit status 0 lets criu go on; anything else at `post-restore`
//! makes it kill the restored tree. It waits on a fifo, so that the server may die and another one decide.
//!
//! The operator's own scripts are run by it, at every stage and before it holds the tree: criu would run them beside it,
//! and one that fails behind the hold would end a tree whose source is dead already. They find what criu tells any action
//! script (`CRTOOLS_SCRIPT_ACTION`, `CRTOOLS_IMAGE_DIR`, `CRTOOLS_INIT_PID`), and print into its log. All of them run;
//! one that fails makes this stage fail.

use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use super::HOOK_VARIABLE;
use super::work::{Decision, WorkDir};

/// Runs the hook; returns its exit status.
pub(super) fn run(work: &WorkDir) -> i32 {
    let stage = std::env::var("CRTOOLS_SCRIPT_ACTION").unwrap_or_default();
    match work.plan().map(|plan| run_scripts(&plan.action_scripts, &stage)) {
        Ok(true) => {}
        Ok(false) => return 1,
        Err(e) => {
            eprintln!("restore-hook: the plan of the restore cannot be read: {e}");
            return 1;
        }
    }
    if stage != "post-restore" {
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

/// Runs the operator's scripts; whether all did well.
fn run_scripts(scripts: &[PathBuf], stage: &str) -> bool {
    let mut all_well = true;
    for script in scripts {
        let ended = Command::new(script).env_remove(HOOK_VARIABLE).stdin(Stdio::null()).status();
        let is_well = ended.as_ref().is_ok_and(ExitStatus::success);
        if !is_well {
            let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
            eprintln!("Error: action script {} failed at {stage}: {how}", script.display());
        }
        all_well &= is_well;
    }
    all_well
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
