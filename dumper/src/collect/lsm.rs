//! Security labels: unlabelled and unconfined tasks are dumped, others refused by name.

use std::fs;

use nix::unistd::Pid;

use crate::refusal::{Findings, Subject};

/// Refuses a thread that a security module confines (`/proc/PID/attr/current`, man 5 proc). Kernels without
/// such a module answer EINVAL there.
pub fn check(tid: Pid, findings: &mut Findings) {
    let Ok(label) = fs::read(format!("/proc/{tid}/attr/current")) else { return };
    let label = String::from_utf8_lossy(&label);
    let label = label.trim_end_matches(['\0', '\n']);
    if !label.is_empty() && label != "unconfined" {
        findings.refuse(
            Subject::Thread(tid),
            format!("a security module confines it as {label:?}, and labels are not dumped"),
            "run the program unconfined",
        );
    }
}
