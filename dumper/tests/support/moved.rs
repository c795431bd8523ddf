//! Migrations with a restore at the page server: finding the copy, and asking it.

use super::child::{Finished, eventually};
use super::product::{self, Server, godwit, migrate_args};
use super::scene::{self, Scene, is_alive};
use super::tree;
use super::victim::{Verdict, Victim, verdict};
use serde_json::Value;
use std::time::Duration;

/// A victim that runs at the destination.
pub struct Moved {
    /// The copy, as the host numbers it.
    pub pid: i32,
    pub report: Value,
}

/// Migrates a victim and answers the copy that runs.
///
/// # Panics
/// When godwit fails, when the source is left, or when there is not exactly one copy.
#[track_caller]
pub fn migrate(scene: &Scene, victim: &mut Victim, server: &Server, options: &[&str]) -> Moved {
    let tree = victim.tree();
    let finished = godwit(scene, &migrate_args(victim.pid, server, options)).expect_ok();
    victim.expect_killed();
    tree.expect_killed();
    copy(scene, victim, &finished)
}

/// The copy that a finished migration reports.
#[track_caller]
pub fn copy(scene: &Scene, victim: &Victim, finished: &Finished) -> Moved {
    let report = product::report(finished);
    assert_eq!(report["restored"], true, "{finished}");
    let roots = roots(scene, victim);
    assert_eq!(roots.len(), 1, "copies: {roots:?}; {finished}");
    assert_eq!(report["restored_pid"].as_i64(), Some(roots[0].into()), "{finished}");
    Moved { pid: roots[0], report }
}

/// Those of a victim's living processes whose parent is none of them: one for each copy of its tree. An orphan that nobody
/// adopted would be one as well.
pub fn roots(scene: &Scene, victim: &Victim) -> Vec<i32> {
    let copies = copies(scene, victim);
    let has_parent = |pid: &i32| tree::parent(*pid).is_some_and(|parent| copies.contains(&parent));
    copies.iter().copied().filter(|pid| !has_parent(pid) && is_alive(*pid)).collect()
}

/// That no process of a victim lives any more, in no copy.
#[track_caller]
pub fn expect_none(scene: &Scene, victim: &Victim) {
    eventually("no process of the victim lives", Duration::from_secs(10), || {
        copies(scene, victim).is_empty()
    });
}

/// All living processes of a victim: the source and its copies.
pub fn copies(scene: &Scene, victim: &Victim) -> Vec<i32> {
    let name = victim.dir().file_name().unwrap().to_owned();
    scene
        .processes()
        .into_iter()
        .filter(|&pid| is_alive(pid))
        .filter(|pid| {
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            cwd.components().any(|part| part.as_os_str() == name)
        })
        .collect()
}

impl Moved {
    /// Asks the copy, waits until it is gone, and reads its verdict.
    #[track_caller]
    pub fn check(&self, victim: &Victim) -> Verdict {
        victim.ask();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while is_alive(self.pid) {
            if std::time::Instant::now() > deadline {
                return Verdict::Lost(format!("the copy does not end; {}", victim.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        verdict(&victim.log(), "the copy is gone")
    }

    /// That the copy runs, untraced, in a pid namespace that is not ours.
    #[track_caller]
    pub fn expect_running_apart(&self) {
        let pid = self.pid;
        eventually("the copy runs", Duration::from_secs(5), || {
            scene::status_field(pid, "State").is_some_and(|state| state.starts_with(['R', 'S', 'D']))
        });
        assert_eq!(scene::status_field(pid, "TracerPid").as_deref(), Some("0"));
        assert_ne!(scene::namespace(pid), scene::namespace(std::process::id() as i32));
    }
}
