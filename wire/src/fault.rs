//! Fault points: `GODWIT_FAULT=POINT:ACTION[@N][,…]` makes a program fail at a named place.
//!
//! Actions: `kill` (SIGKILL to itself), `panic`, `cut` (the link goes dead without a close), `error` (the call
//! fails), `delay-MS`, `note` (nothing). With `@N` only the N-th pass of the point counts, from 1. The point `*` is
//! every point. What fires is written to the file that `GODWIT_FAULT_LOG` names, a line `POINT ACTION` each: a test
//! sees there that its fault fired, and with `*:note` which points a run passes and how often.
//!
//! A promise about programs that fail at any instruction can only be believed of the program that is shipped, so the
//! points are in every build. Without the variable a point costs one atomic load.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is to happen at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL to this process.
    Kill,
    /// A panic in the thread that passes.
    Panic,
    /// The link goes dead: nothing is sent any more, not even a close, and nothing is received.
    Cut,
    /// The call fails.
    Error,
    /// The call is delayed.
    Delay(Duration),
    /// Nothing: the pass is only noted.
    Note,
}

/// A fault that the caller has to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Injected {
    /// Cut the link.
    #[error("the link was cut by GODWIT_FAULT")]
    Cut,
    /// Fail the call.
    #[error("failed by GODWIT_FAULT")]
    Error,
}

impl From<Injected> for std::io::Error {
    fn from(injected: Injected) -> std::io::Error {
        std::io::Error::other(injected)
    }
}

/// Stands at a place where a program may be made to fail. `kill`, `panic` and `delay` happen here.
///
/// # Errors
/// [`Injected`] when the caller is to cut its link or to fail.
pub fn point(name: &str) -> Result<(), Injected> {
    match passed(name) {
        None => Ok(()),
        Some(action) => act(action),
    }
}

/// Whether any fault is armed; lets a caller skip putting a name together.
pub fn any_armed() -> bool {
    !all().is_empty()
}

/// Counts a pass of this point, and says what is to happen now, if anything is.
pub fn passed(name: &str) -> Option<Action> {
    let fires = |fault: &&Fault| fault.is_at(name) && fault.counts_this_pass();
    let action = all().iter().find(fires)?.action;
    note(name, action);
    Some(action)
}

/// Carries out `kill`, `panic` and `delay`, and hands back the others.
///
/// # Errors
/// [`Injected`] for `cut` and `error`.
///
/// # Panics
/// For `panic`.
pub fn act(action: Action) -> Result<(), Injected> {
    match action {
        Action::Kill => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            // The signal is on its way; nothing after this line may run.
            loop {
                std::thread::park();
            }
        }
        Action::Panic => panic!("made to panic by GODWIT_FAULT"),
        Action::Delay(time) => {
            std::thread::sleep(time);
            Ok(())
        }
        Action::Note => Ok(()),
        Action::Cut => Err(Injected::Cut),
        Action::Error => Err(Injected::Error),
    }
}

/// One entry of the variable.
#[derive(Debug)]
struct Fault {
    /// `None` for every point.
    point: Option<String>,
    action: Action,
    /// The only pass that counts, from 1.
    nth: Option<u64>,
    passes: AtomicU64,
}

impl Fault {
    fn is_at(&self, name: &str) -> bool {
        self.point.as_ref().is_none_or(|point| point == name)
    }

    fn counts_this_pass(&self) -> bool {
        let pass = self.passes.fetch_add(1, Ordering::Relaxed) + 1;
        self.nth.is_none_or(|nth| nth == pass)
    }
}

fn all() -> &'static [Fault] {
    static ARMED: OnceLock<Vec<Fault>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var("GODWIT_FAULT").unwrap_or_default()))
}

/// Notes that a fault fires, in one write, so that lines of several threads do not mix and a kill loses none.
fn note(name: &str, action: Action) {
    static LOG: OnceLock<Option<File>> = OnceLock::new();
    let open = || {
        let path = std::env::var_os("GODWIT_FAULT_LOG")?;
        OpenOptions::new().create(true).append(true).open(path).ok()
    };
    if let Some(mut log) = LOG.get_or_init(open).as_ref() {
        let _ = log.write_all(format!("{name} {}\n", word(action)).as_bytes());
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Kill => "kill",
        Action::Panic => "panic",
        Action::Cut => "cut",
        Action::Error => "error",
        Action::Delay(_) => "delay",
        Action::Note => "note",
    }
}

/// Entries that cannot be read are said on stderr: a test with a misspelt fault would pass for nothing.
fn parse(text: &str) -> Vec<Fault> {
    let mut armed = Vec::new();
    for entry in text.split(',').filter(|entry| !entry.is_empty()) {
        match parse_entry(entry) {
            Some(fault) => armed.push(fault),
            None => {
                let known = "POINT:kill|panic|cut|error|delay-MS|note, and @N behind for the N-th pass alone";
                let _ = writeln!(std::io::stderr(), "GODWIT_FAULT: cannot read {entry:?} ({known})");
            }
        }
    }
    armed
}

fn parse_entry(entry: &str) -> Option<Fault> {
    let (point, action) = entry.rsplit_once(':')?;
    let (action, nth) = match action.split_once('@') {
        Some((action, nth)) => (action, Some(nth.parse().ok()?)),
        None => (action, None),
    };
    let point = Some(point.to_owned()).filter(|point| point != "*");
    Some(Fault { point, action: parse_action(action)?, nth, passes: AtomicU64::new(0) })
}

fn parse_action(text: &str) -> Option<Action> {
    match text {
        "kill" => Some(Action::Kill),
        "panic" => Some(Action::Panic),
        "cut" => Some(Action::Cut),
        "error" => Some(Action::Error),
        "note" => Some(Action::Note),
        other => {
            let ms = other.strip_prefix("delay-")?.trim_end_matches("ms").parse().ok()?;
            Some(Action::Delay(Duration::from_millis(ms)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_points_with_dots_and_skips_what_it_cannot_read() {
        let text =
            "client.send.before.Commit:kill,x:delay-20,y:delay-7ms@3,nonsense,z:explode,z:kill@x,*:note";
        let armed: Vec<_> =
            parse(text).into_iter().map(|fault| (fault.point, fault.action, fault.nth)).collect();
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(
            armed,
            vec![
                (named("client.send.before.Commit"), Action::Kill, None),
                (named("x"), Action::Delay(Duration::from_millis(20)), None),
                (named("y"), Action::Delay(Duration::from_millis(7)), Some(3)),
                (None, Action::Note, None),
            ]
        );
    }

    #[test]
    fn a_numbered_fault_fires_once() {
        let faults = parse("x:error@2");
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert!(fault.is_at("x") && !fault.is_at("y"));
        let fired: Vec<bool> = (0..4).map(|_| fault.counts_this_pass()).collect();
        assert_eq!(fired, [false, true, false, false]);
    }
}
