//! Action scripts: programs of the operator's, run at named points of the dump, under CRIU's contract.
//!
//! A script finds the point in `CRTOOLS_SCRIPT_ACTION` and the root's pid in `CRTOOLS_INIT_PID`. A `pre-dump`
//! script that exits non-zero aborts the dump; a `post-dump` script that does lets the process run on.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::unistd::Pid;

use crate::error::DumpError;

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
}

/// Runs every script at a hook, in order.
///
/// # Errors
/// When one cannot be started or exits non-zero; the rest are not run.
pub fn run(scripts: &[PathBuf], hook: Hook, pid: Pid) -> Result<(), DumpError> {
    for script in scripts {
        let subject = || format!("action script {} at {}", script.display(), hook.name());
        let status = Command::new(script)
            .env("CRTOOLS_SCRIPT_ACTION", hook.name())
            .env("CRTOOLS_INIT_PID", pid.to_string())
            .stdin(Stdio::null())
            .status()
            .map_err(|source| DumpError::sys(subject(), "starting it", source))?;
        if !status.success() {
            let source = std::io::Error::other(status.to_string());
            return Err(DumpError::sys(subject(), "running it", source));
        }
    }
    Ok(())
}
