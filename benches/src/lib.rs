//! The benchmark suite: godwit and CRIU in turn, on the same memory, over the same links.
//!
//! A [`scenario::Scenario`] is a [`workload`] over a [`link`] by several [`peer`]s. [`runner`] runs the peers in
//! turn, repeat by repeat, so that what drifts on the machine falls out of their ratios; [`measure`] says what a run
//! cost; [`limit`] what the machine could do at all; [`tracking`] what a dirty tracker costs; [`targets`] what has to be reached; [`report`] writes it down.
//!
//! Programs: `suite` does all this, `workload` is a process that is measured. `benches/run` builds and starts them.
#![forbid(unsafe_code)]

pub mod conditions;
pub mod interrupt;
pub mod limit;
pub mod link;
pub mod measure;
pub mod peer;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod summary;
pub mod targets;
pub mod tracking;
pub mod virtual_machine;
pub mod workload;

/// The path of a program that is built beside the one that runs.
///
/// # Errors
/// When it is not there.
pub fn beside(name: &str) -> std::io::Result<String> {
    let own = std::env::current_exe()?;
    // A test runs in deps/, a directory below the programs.
    let places = [own.with_file_name(name), own.with_file_name("..").join(name)];
    let found = places.iter().find(|path| path.is_file());
    let missing = || std::io::Error::other(format!("no {name} beside {}: build it", own.display()));
    found
        .and_then(|path| path.canonicalize().ok())
        .map(|path| path.to_string_lossy().into_owned())
        .ok_or_else(missing)
}
