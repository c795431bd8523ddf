//! What the end-to-end tests stand on: victims, CRIU in two versions, godwit and its page server, all with
//! time limits and with guards that leave no process, mount or file behind.
//!
//! - [`need`]: what a test wants of the machine, and the SKIP line when it is not there
//! - [`scene`]: a directory for one test, swept of everything that lives in it
//! - [`child`]: child processes with a time limit and bounded output
//! - [`victim`]: compiling, starting and asking the programs in `tests/victims`
//! - [`victims`]: the list of all victims, and which tests go through it
//! - [`lab`]: `criu dump`, `criu restore` in a pid namespace of its own, the guest
//! - [`product`]: `godwit` and `godwit-page-server`
//! - [`moved`]: a victim that the page server restored
//! - [`memory`]: what every page of a stopped process holds, to compare it with its copy's
//! - [`tree`]: all processes of a victim, what they were and whether they are gone
//! - [`untouched`]: all that must be the same of a process that was not taken away
//! - [`random`]: sequences that a seed names
//! - [`witness`]: reads the log of the victim `busy` and says whether one copy ran at a time
//! - [`cgroup`]: a cgroup v2 for a test
//! - [`huge`]: huge pages for a test, given back at its end
//! - [`images`]: an image directory as JSON, and changes to it
//! - `oracle`: compares what godwit and CRIU wrote about the same stopped process; part of the test `oracle` alone
#![allow(dead_code, unused_imports, clippy::unwrap_used, missing_docs)]

pub mod cgroup;
pub mod child;
pub mod huge;
pub mod images;
pub mod lab;
pub mod memory;
pub mod moved;
pub mod need;
pub mod product;
pub mod random;
pub mod scene;
pub mod tree;
pub mod untouched;
pub mod victim;
pub mod victims;
pub mod witness;

pub use child::{Finished, run};
pub use lab::{CriuVersion, Restored};
pub use product::{Server, godwit};
pub use scene::Scene;
pub use tree::Tree;
pub use victim::{Verdict, Victim};
pub use witness::Witness;

/// Returns from the test, with a SKIP line, when the machine lacks one of the things named; fails instead
/// where `GODWIT_REQUIRE=all` is set. See [`need::Need`] for the names.
#[macro_export]
macro_rules! require {
    ($($what:literal),+ $(,)?) => {
        if !$crate::support::need::all(&[$($what),+]) {
            return;
        }
    };
}
