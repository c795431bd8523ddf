//! Pending signals, with their exact siginfo and order (images/siginfo.proto).

use nix::unistd::Pid;

use godwit_wire::image::siginfo::{SiginfoEntry, SignalQueueEntry};

use crate::error::DumpError;
use crate::sys::ptrace::{self, SignalQueue};

/// Reads a queue of pending signals without taking any out. The thread must be stopped by us.
///
/// # Errors
/// When the kernel refuses (`PTRACE_PEEKSIGINFO`).
pub fn pending(tid: Pid, queue: SignalQueue) -> Result<SignalQueueEntry, DumpError> {
    let mut signals = Vec::new();
    loop {
        let batch = ptrace::peek_siginfo(tid, queue, signals.len() as u64)
            .map_err(|errno| DumpError::sys(format!("thread {tid}"), "PTRACE_PEEKSIGINFO", errno))?;
        if batch.is_empty() {
            return Ok(SignalQueueEntry { signals });
        }
        signals.extend(batch.into_iter().map(|info| SiginfoEntry { siginfo: info.to_vec() }));
    }
}
