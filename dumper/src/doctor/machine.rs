//! What this machine can do for a dump, found out by using it: `godwit doctor` without a process.

use std::fmt::Write;

use godwit_wire::quic;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::error::DumpError;
use crate::handover::chain;
use crate::predump::tracker::{soft_dirty, uffd_wp};
use crate::prepare::cpu::XsaveLayout;
use crate::prepare::kerndat;
use crate::procfs::status;
use crate::sys::mount;

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Works,
    /// It does not, and a dump does without; the text says what that means.
    Without(String),
    /// It does not, and no dump happens.
    Missing(String),
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was tried.
    pub what: String,
    /// How it ended.
    pub state: State,
}

/// Capabilities that a dump uses (include/uapi/linux/capability.h): number, name, whether it must be there, and what is
/// not done without it.
const CAPABILITIES: [(u32, &str, bool, &str); 4] = [
    (19, "capability CAP_SYS_PTRACE", true, "no process of another user can be looked into"),
    (
        21,
        "capability CAP_SYS_ADMIN",
        false,
        "processes under seccomp are refused, and so are cgroups that must be changed; CAP_CHECKPOINT_RESTORE is wanted",
    ),
    (40, "capability CAP_CHECKPOINT_RESTORE", false, "CAP_SYS_ADMIN is wanted, to see the files of mappings"),
    (24, "capability CAP_SYS_RESOURCE", false, "a restore cannot raise hard limits above its own"),
];

/// Tries everything.
///
/// # Errors
/// When `/proc` is not there.
pub fn examine() -> Result<Vec<Check>, DumpError> {
    let mut checks = Vec::new();
    let mut note = |what: &str, state| checks.push(Check { what: what.to_owned(), state });
    let effective = status::read(Pid::this())?.capabilities.effective;
    for (number, what, is_needed, without) in CAPABILITIES {
        let state = match (effective & 1 << number != 0, is_needed) {
            (true, _) => State::Works,
            (false, true) => State::Missing(without.to_owned()),
            (false, false) => State::Without(without.to_owned()),
        };
        note(what, state);
    }
    let sees_maps = [21, 40].iter().any(|number| effective & 1 << number != 0);
    let why = "without CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE the files of mappings cannot be seen";
    note("the files of mappings", if sees_maps { State::Works } else { State::Missing(why.to_owned()) });
    note("calls that look into a process", needed(kerndat::probe()));
    note("registers of this processor", needed(XsaveLayout::probe()));
    let (soft_dirty, uffd_wp) = (soft_dirty::self_test(), uffd_wp::self_test());
    let none = soft_dirty.is_err() && uffd_wp.is_err();
    let tracker = |tested: Result<(), String>| match tested {
        Ok(()) => State::Works,
        Err(why) if none => {
            State::Without(format!("{why}; memory is compared instead, once a round and once under freeze"))
        }
        Err(why) => State::Without(format!("{why}; the other tracker is taken")),
    };
    note("tracker soft-dirty", tracker(soft_dirty));
    note("tracker uffd-wp", tracker(uffd_wp));
    note("cgroup v2, to hold a process that its dumper has left", cgroup_v2());
    let (sends, receives) = match quic::offload() {
        Ok((sends, receives)) => (by_offload(sends), by_offload(receives)),
        Err(error) => (State::Without(error.to_string()), State::Without(error.to_string())),
    };
    note("segmentation offload of UDP (UDP_SEGMENT), to send to a page server", sends);
    note("receive offload of UDP (UDP_GRO), to receive at a page server", receives);
    Ok(checks)
}

fn by_offload(segments: usize) -> State {
    match segments {
        0 | 1 => {
            State::Without("each packet is a call of its own, and a link takes twice the time".to_owned())
        }
        _ => State::Works,
    }
}

fn needed<T>(tried: Result<T, DumpError>) -> State {
    tried.map_or_else(|error| State::Missing(chain(&error)), |_| State::Works)
}

fn cgroup_v2() -> State {
    match mount::cgroup2() {
        Ok(_) => State::Works,
        Err(errno) => {
            State::Without(format!("{errno}; it is held by SIGSTOP, which a foreign SIGCONT undoes"))
        }
    }
}

/// Whether a dump is possible at all.
pub fn can_dump(checks: &[Check]) -> bool {
    !checks.iter().any(|check| matches!(check.state, State::Missing(_)))
}

/// A line for each check.
pub(super) fn lines(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { what, state } in checks {
        let _ = match state {
            State::Works => writeln!(text, "works: {what}"),
            State::Without(why) => writeln!(text, "done without: {what}: {why}"),
            State::Missing(why) => writeln!(text, "missing: {what}: {why}"),
        };
    }
    text
}

/// An object for each check.
pub(super) fn values(checks: &[Check]) -> Vec<Value> {
    let value = |Check { what, state }: &Check| match state {
        State::Works => json!({"what": what, "state": "works"}),
        State::Without(why) => json!({"what": what, "state": "without", "why": why}),
        State::Missing(why) => json!({"what": what, "state": "missing", "why": why}),
    };
    checks.iter().map(value).collect()
}

/// The checks as lines for a person.
pub fn to_text(checks: &[Check]) -> String {
    let mut text = lines(checks);
    let verdict =
        if can_dump(checks) { "processes can be dumped here" } else { "nothing can be dumped here" };
    let _ = writeln!(text, "{verdict}; `godwit doctor --pid N` says whether a certain one can");
    text
}

/// The checks as one JSON object.
pub fn to_value(checks: &[Check]) -> Value {
    json!({"can_dump": can_dump(checks), "checks": values(checks)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_its_reason() {
        let check = |state| Check { what: "x".to_owned(), state };
        let fine = [check(State::Works), check(State::Without("slow".into()))];
        assert!(can_dump(&fine) && to_text(&fine).contains("done without: x: slow"));
        let bad = [check(State::Missing("no right".into()))];
        assert!(!can_dump(&bad) && to_text(&bad).contains("missing: x: no right"));
        assert_eq!(to_value(&bad)["can_dump"], false);
    }
}
