//! Pre-dump: the process's memory is copied while it runs, round by round.
//!
//! In reading order: `tracker` (what was written), `held` (what the rounds hold, by hashes), `whole` (what no tracker may
//! see), `plan` (which pages a round lists), `pages`, `reader`, `family` and `sent` (reading them, handing them over, those
//! that several processes share once, and what became of them), `hot` (pages that are sent again and again), `segments` (shared memory, told by its contents), `rounds` (a
//! round, and the list of the last set), `converge` (whether another round pays).

pub mod converge;
mod family;
pub mod held;
pub mod hot;
pub mod pages;
pub mod plan;
mod reader;
pub mod rounds;
pub mod segments;
pub mod sent;
pub mod tracker;
pub mod whole;
