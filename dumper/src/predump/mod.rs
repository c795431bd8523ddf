//! Pre-dump: the process's memory is copied while it runs, round by round.
//!
//! In reading order: `tracker` (what was written), `held` (what the rounds hold, by hashes), `whole` (what no tracker may
//! see), `plan` (which pages a round lists), `pages` (reading and handing them over), `segments` (shared memory, told by
//! its contents), `rounds` (a round, and the list of the last set), `converge` (whether another round pays).

pub mod converge;
pub mod held;
pub mod pages;
pub mod plan;
pub mod rounds;
pub mod segments;
pub mod tracker;
pub mod whole;
