//! Questions about sessions from other connections, answered from the journals; and criu's version.

use std::path::Path;
use std::process::Command;

use godwit_wire::control::{Error as ErrorMessage, SessionQuery, SessionStatus};
use godwit_wire::error::Code;
use godwit_wire::frame::SessionId;
use godwit_wire::journal::{self, Facts};
use godwit_wire::session::Reply;

use crate::error::{ServeError, chain};
use crate::serve::Shared;

/// Answers how a session of the asker's stands. The newest one of a name counts.
pub(crate) fn query_session(shared: &Shared, asker: &str, query: &SessionQuery) -> Reply {
    let dir = &shared.options.state_dir;
    let id = (query.session_id != 0).then(|| SessionId(query.session_id).to_string());
    let listed = match journal::list(dir) {
        Ok(listed) => listed,
        Err(error) => return fault(Code::Storage, chain(&error), ""),
    };
    let found = listed.into_iter().filter_map(|listed| Some((listed.id, listed.summary.ok()?)));
    let found = found.filter(|(found, summary)| {
        let is_meant = match &id {
            Some(id) => found == id,
            None => summary.facts.session.as_deref() == Some(query.name.as_str()),
        };
        is_meant && is_owner(&summary.facts, asker)
    });
    let Some((id, summary)) = found.max_by_key(|(_, summary)| summary.unix_us) else {
        let asked = id.unwrap_or_else(|| query.name.clone());
        let text = format!("no journal of session {asked:?} of this client in {}", dir.display());
        return fault(Code::NoSession, text, "`godwit session list` shows the sessions of the source");
    };
    let records = journal::read(dir, &id).unwrap_or_default();
    SessionStatus {
        session_id: id.parse::<SessionId>().map_or(0, |id| id.0),
        name: summary.facts.session.clone().unwrap_or_default(),
        state: summary.state.map_or_else(String::new, |state| state.to_string()),
        records: records.iter().map(line).collect(),
        pid: summary.facts.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        images_dir: summary.facts.images_dir.unwrap_or_default(),
    }
    .into()
}

/// Whether a session is a client's. One whose journal names nobody is everybody's: it was kept by an older version.
pub(crate) fn is_owner(facts: &Facts, asker: &str) -> bool {
    facts.peer_identity.as_deref().is_none_or(|owner| owner == asker)
}

pub(crate) fn fault(code: Code, text: String, hint: &str) -> Reply {
    ErrorMessage { code: code.number(), text, hint: hint.to_owned() }.into()
}

/// A record as a line: time, event, token, and its words.
pub(crate) fn line(record: &journal::Record) -> String {
    let text = record.facts.as_ref().and_then(|facts| facts.text.as_deref()).unwrap_or("");
    let (seconds, micros) = (record.unix_us / 1_000_000, record.unix_us % 1_000_000);
    format!("{seconds}.{micros:06} {} token={} {text}", record.kind(), record.token).trim_end().to_owned()
}

/// Asks a criu for its version, and whether it is new enough.
pub(crate) fn criu_version(criu: &Path) -> Result<String, ServeError> {
    let no_use = |why: String| ServeError::Criu { criu: criu.to_owned(), why };
    let output = Command::new(criu).arg("--version").output().map_err(|why| no_use(why.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("Version:"));
    let version = version.map(str::trim).ok_or_else(|| no_use("it prints no version".to_owned()))?;
    if is_new_enough(version) {
        return Ok(version.to_owned());
    }
    Err(no_use(format!("it is version {version}")))
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (4, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_older_than_4_1_is_refused() {
        assert!(["4.1", "4.1.1", "4.2", "5.0"].iter().all(|version| is_new_enough(version)));
        assert!(!["3.19", "4.0", "", "x"].iter().any(|version| is_new_enough(version)));
    }
}
