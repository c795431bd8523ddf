//! The oracle: what godwit wrote about a stopped process beside what CRIU wrote about the same one, every image, field
//! by field, and every page.
//!
//! - [`compare`]: the comparison of two directories, and the rules
//! - [`pages`]: page lists and pages, page by page
//! - [`explained`]: the list of explained differences
//!
//! A difference counts unless it is listed. A listed difference names one field of one image with a rule and a reason;
//! there is no wildcard but for the index in a list. An entry of the list that explains nothing any more is an error
//! of a full run.

pub mod compare;
pub mod explained;
pub mod pages;

use crate::support::{CriuVersion, Finished, Scene, Tree, lab};
use compare::{Compared, Dir};
use std::time::Duration;

/// Stops a process and all that descend from it, has them dumped by godwit and then by CRIU, and compares what they wrote. They are left
/// stopped.
///
/// # Errors
/// When one of them does not dump it, with its words.
pub fn ask(scene: &Scene, pid: i32) -> Result<Compared, String> {
    Tree::stop(pid)?;
    // Timers go on firing: by then each signal that can be pending is.
    std::thread::sleep(Duration::from_millis(100));
    let (ours, theirs) = (scene.subdir("ours"), scene.subdir("theirs"));
    let ok = |who: &str, finished: Finished| match finished.ok() {
        true => Ok(()),
        false => Err(format!("{who} does not dump it: {finished}")),
    };
    // Ours first: CRIU's blob dirties the text.
    let options = ["--leave-stopped", "--criu-version", CriuVersion::V4_2.text(), "--images-dir"];
    let mut args = vec!["dump".to_owned(), "--pid".to_owned(), pid.to_string()];
    args.extend(options.map(str::to_owned));
    args.push(ours.display().to_string());
    ok("godwit", crate::support::godwit(scene, &args))?;
    ok(
        "CRIU",
        lab::criu_dump(
            CriuVersion::V4_2,
            pid,
            &theirs,
            &["--leave-stopped", "--file-locks", "--cpu-cap=all"],
        ),
    )?;
    let compared = compare::compare(&Dir::read(&ours)?, &Dir::read(&theirs)?, pid);
    if std::env::var_os("GODWIT_KEEP").is_none() {
        let _ = std::fs::remove_dir_all(&ours);
        let _ = std::fs::remove_dir_all(&theirs);
    }
    Ok(compared)
}
