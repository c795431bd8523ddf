//! Fault points: `GODWIT_FAULT=POINT:ACTION[,POINT:ACTION...]` makes a program fail at a named place.
//!
//! Actions: `kill` (SIGKILL to itself), `cut` (the link goes dead without a close), `error` (the call
//! fails), `delay-MS`. The hand-over's promise is about programs that die at any instruction; a test can
//! only believe it for the program that is shipped, so the points are in every build. Without the variable a
//! point costs one atomic load.

use std::sync::OnceLock;
use std::time::Duration;

/// What is to happen at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL to this process.
    Kill,
    /// The link goes dead: nothing is sent any more, not even a close, and nothing is received.
    Cut,
    /// The call fails.
    Error,
    /// The call is delayed.
    Delay(Duration),
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

/// Stands at a place where a program may be made to fail. `kill` and `delay` happen here.
///
/// # Errors
/// [`Injected`] when the caller is to cut its link or to fail.
pub fn point(name: &str) -> Result<(), Injected> {
    match armed(name) {
        None => Ok(()),
        Some(action) => act(action),
    }
}

/// Whether any fault is armed; lets a caller skip putting a name together.
pub fn any_armed() -> bool {
    !all().is_empty()
}

/// What is armed at this point, if anything is.
pub fn armed(name: &str) -> Option<Action> {
    all().iter().find(|(point, _)| point == name).map(|(_, action)| *action)
}

/// Carries out `kill` and `delay`, and hands back the others.
///
/// # Errors
/// [`Injected`] for `cut` and `error`.
pub fn act(action: Action) -> Result<(), Injected> {
    match action {
        Action::Kill => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            // The signal is on its way; nothing after this line may run.
            loop {
                std::thread::park();
            }
        }
        Action::Delay(time) => {
            std::thread::sleep(time);
            Ok(())
        }
        Action::Cut => Err(Injected::Cut),
        Action::Error => Err(Injected::Error),
    }
}

fn all() -> &'static [(String, Action)] {
    ARMED.get_or_init(|| parse(&std::env::var("GODWIT_FAULT").unwrap_or_default()))
}

static ARMED: OnceLock<Vec<(String, Action)>> = OnceLock::new();

/// Entries that cannot be read are said on stderr: a test with a misspelt fault would pass for nothing.
fn parse(text: &str) -> Vec<(String, Action)> {
    let mut armed = Vec::new();
    for entry in text.split(',').filter(|entry| !entry.is_empty()) {
        match entry.rsplit_once(':').and_then(|(point, action)| Some((point, parse_action(action)?))) {
            Some((point, action)) => armed.push((point.to_owned(), action)),
            None => eprintln!("GODWIT_FAULT: cannot read {entry:?} (POINT:kill|cut|error|delay-MS)"),
        }
    }
    armed
}

fn parse_action(text: &str) -> Option<Action> {
    match text {
        "kill" => Some(Action::Kill),
        "cut" => Some(Action::Cut),
        "error" => Some(Action::Error),
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
        let armed = parse("client.send.before.Commit:kill,x:delay-20,y:delay-7ms,nonsense,z:explode");
        assert_eq!(
            armed,
            vec![
                ("client.send.before.Commit".to_owned(), Action::Kill),
                ("x".to_owned(), Action::Delay(Duration::from_millis(20))),
                ("y".to_owned(), Action::Delay(Duration::from_millis(7))),
            ]
        );
    }
}
