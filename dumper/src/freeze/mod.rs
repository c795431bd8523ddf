//! Everything that must be undone, next to its undo.
//!
//! [`seize::seize`] stops the threads of a process and gives the guard [`seize::Frozen`], whose drop lets them run on;
//! [`tree::seize`] does so with all processes of a tree; [`cgroup`] freezes the cgroup that it has of its own
//! while that is done.

pub mod cgroup;
mod error;
mod hands;
mod parts;
mod restart;
mod rseq;
pub mod seize;
pub mod tree;
