//! Action scripts: programs of the operator's, run at named points of the dump, under CRIU's contract.
//!
//! A script finds the point in `CRTOOLS_SCRIPT_ACTION` and the root's pid in `CRTOOLS_INIT_PID`. A `pre-dump`
//! script that exits non-zero aborts the dump; a `post-dump` script that does lets the process run on.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use godwit_wire::fault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::DumpError;
use crate::interrupt;
use crate::sys::child;

/// How long a script may take to end once the dump is given up.
const GRACE: Duration = Duration::from_secs(2);

/// A point at which scripts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before anything is touched.
    PreDump,
    /// After all images are whole, before the process is killed or let go.
    PostDump,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Hook::PreDump => "pre-dump",
            Hook::PostDump => "post-dump",
        }
    }

    /// The fault point between two scripts.
    fn point(self) -> &'static str {
        match self {
            Hook::PreDump => "mid.scripts.pre-dump",
            Hook::PostDump => "mid.scripts.post-dump",
        }
    }
}

/// Runs every script at a hook, in order.
///
/// # Errors
/// When one cannot be started or exits non-zero; the rest are not run.
pub fn run(scripts: &[PathBuf], hook: Hook, pid: Pid) -> Result<(), DumpError> {
    for (number, script) in scripts.iter().enumerate() {
        if number > 0 {
            fault::point(hook.point())?;
        }
        let subject = || format!("action script {} at {}", script.display(), hook.name());
        let mut command = Command::new(script);
        command
            .env("CRTOOLS_SCRIPT_ACTION", hook.name())
            .env("CRTOOLS_INIT_PID", pid.to_string())
            .stdin(Stdio::null());
        let child = child::unblock_signals(&mut command).spawn();
        let child = child.map_err(|source| DumpError::sys(subject(), "starting it", source))?;
        let status = wait(child).map_err(|source| DumpError::sys(subject(), "waiting for it", source))?;
        interrupt::check()?;
        if !status.success() {
            let source = io::Error::other(status.to_string());
            return Err(DumpError::sys(subject(), "running it", source));
        }
    }
    Ok(())
}

/// Waits for a script. One that runs when the user wants everything to end is asked to end too, and then made to.
fn wait(mut script: Child) -> io::Result<ExitStatus> {
    let mut pause = Duration::from_micros(100);
    let mut asked_at: Option<Instant> = None;
    loop {
        if let Some(status) = script.try_wait()? {
            return Ok(status);
        }
        match asked_at {
            Some(at) if at.elapsed() > GRACE => script.kill()?,
            Some(_) => {}
            None if interrupt::asked().is_some() => {
                asked_at = Some(Instant::now());
                let _ = kill(Pid::from_raw(script.id() as i32), Signal::SIGTERM);
            }
            None => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
