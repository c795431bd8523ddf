//! Starting programs of others.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the command start with no signal blocked: the mask outlives an execve, and that of the dumper is its own affair.
pub fn unblock_signals(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and execve only async-signal-safe calls may be made, and sigprocmask is one; it touches no
    // memory but the set on this closure's own stack.
    unsafe { command.pre_exec(|| Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?)) }
}
