//! The dumper: copies a process's memory while it runs, freezes it once and hands it over.
//!
//! The rooms in the order in which a dump passes through them: [`prepare`] (nothing is touched), [`predump`]
//! (rounds), [`freeze`], [`collect`], [`task`], [`finish`], [`handover`]. [`flow`] is the dump itself, a line a step,
//! and [`step`] names the steps. Below them: [`remote`] (system calls inside a stopped task), [`procfs`] (what the
//! kernel tells), [`sys`] (system calls, the only `unsafe`), [`link`] (the page server), [`pool`] (memory that is used
//! again). Beside them: [`doctor`],
//! [`session`], [`demo`], [`interrupt`] (signals), and [`cli`] with [`commands`].
#![deny(unsafe_code)]

pub mod cli;
pub mod collect;
pub mod commands;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod finish;
pub mod flow;
pub mod freeze;
pub mod handover;
pub mod interrupt;
pub mod link;
pub mod logging;
pub mod options;
pub mod parallel;
pub mod pool;
pub mod predump;
pub mod prepare;
pub mod procfs;
pub mod progress;
pub mod refusal;
pub mod remote;
pub mod report;
pub mod session;
pub mod step;
#[allow(unsafe_code)]
pub mod sys;
pub mod task;
