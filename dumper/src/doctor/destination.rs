//! What a page server can do for a migration from here, found out by asking it: `godwit doctor --to`.

use std::fmt::Write;
use std::path::Path;

use godwit_wire::control::HelloAck;
use godwit_wire::quic::Identity;
use serde_json::{Value, json};

use super::machine::{Check, State};
use crate::error::DumpError;
use crate::handover::chain;
use crate::link::{Link, LinkError, LinkOptions};
use crate::options::CriuVersion;
use crate::prepare::cpu_match::{self, CpuCap};

/// Asks it. What it says of itself stands in the names of the checks.
///
/// # Errors
/// When the user wants it to end. That it cannot be reached, or does not know us, is a check that failed.
pub fn examine(address: &str, keys: &Path, cap: CpuCap) -> Result<Vec<Check>, DumpError> {
    let link = match Link::connect(address, &Identity::client(keys), LinkOptions::default()) {
        Ok(link) => link,
        Err(LinkError::Interrupted(interrupted)) => return Err(interrupted.into()),
        Err(error) => {
            let what = format!("page server {address}");
            return Ok(vec![Check { what, state: State::Missing(chain(&error)) }]);
        }
    };
    let checks = told(address, &link.server(), cap);
    link.hang_up();
    Ok(checks)
}

fn told(address: &str, server: &HelloAck, cap: CpuCap) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut note = |what: String, state| checks.push(Check { what, state });
    let plain = |text: &str| text.chars().filter(|c| !c.is_control()).take(40).collect::<String>();
    note(format!("page server {address}, godwit {}", plain(&server.tool_version)), State::Works);
    let criu = plain(&server.criu_version);
    match (server.restore_allowed, criu.parse::<CriuVersion>()) {
        (false, _) => {
            let why =
                "it was started without --restore: give migrate --no-restore, or restore by hand".to_owned();
            note("restore there".to_owned(), State::Missing(why));
        }
        (true, Err(why)) => note(format!("restore there by CRIU {criu}"), State::Missing(why)),
        (true, Ok(version)) if !version.restores_guards() => {
            let why = "guard regions become ordinary memory; CRIU 4.2 keeps them".to_owned();
            note(format!("restore there by CRIU {criu}"), State::Without(why));
        }
        (true, Ok(_)) => note(format!("restore there by CRIU {criu}"), State::Works),
    }
    match cpu_match::told(server, cap) {
        Ok(which) => note(format!("processor there: {which}"), State::Works),
        Err(why) => {
            let why = format!(
                "{why}; give migrate another --cpu-cap (none: compare nothing) if the program does without"
            );
            note("processor there".to_owned(), State::Missing(why));
        }
    }
    checks
}

/// Whether a process can be restored there.
pub fn can_restore(checks: &[Check]) -> bool {
    !checks.iter().any(|check| matches!(check.state, State::Missing(_)))
}

/// The checks as lines for a person.
pub fn to_text(checks: &[Check]) -> String {
    let mut text = super::machine::lines(checks);
    let verdict =
        if can_restore(checks) { "processes can be restored there" } else { "nothing can be restored there" };
    let _ = writeln!(text, "{verdict}");
    text
}

/// The checks for a JSON object.
pub fn to_value(checks: &[Check]) -> Value {
    json!({"can_restore": can_restore(checks), "checks": super::machine::values(checks)})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(server: &HelloAck) -> String {
        to_text(&told("h:1", server, CpuCap::default()))
    }

    #[test]
    fn a_server_is_told_by_what_it_says() {
        let server = HelloAck {
            restore_allowed: true,
            criu_version: "4.2.1".into(),
            tool_version: "0.1.0".into(),
            cpu: godwit_page_server::cpu::probe().map(Box::new),
            ..HelloAck::default()
        };
        let told = text(&server);
        assert!(told.contains("works: page server h:1, godwit 0.1.0\n"), "{told}");
        assert!(told.contains("works: restore there by CRIU 4.2.1\n"), "{told}");
        assert!(
            told.contains("works: processor there: ") && told.contains("can be restored there"),
            "{told}"
        );
        let none = text(&HelloAck { restore_allowed: false, ..server.clone() });
        assert!(
            none.contains("missing: restore there") && none.contains("nothing can be restored"),
            "{none}"
        );
        assert!(text(&HelloAck { criu_version: "4.1".into(), ..server.clone() }).contains("done without"));
        assert!(text(&HelloAck { criu_version: "3.19".into(), ..server.clone() }).contains("missing"));
        let other = server.cpu.clone().map(|mut cpu| {
            cpu.capability.iter_mut().for_each(|word| *word = 0);
            cpu
        });
        if other.is_some() {
            let told = text(&HelloAck { cpu: other, ..server.clone() });
            assert!(told.contains("missing: processor there") && told.contains("sse2"), "{told}");
        }
        let old = text(&HelloAck { cpu: None, tool_version: "\u{1b}c".into(), ..server });
        assert!(old.contains("does not tell") && !old.contains('\u{1b}'), "{old}");
    }
}
