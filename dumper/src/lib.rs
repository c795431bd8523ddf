//! The dumper: walks a process tree, streams its memory while it runs, freezes it once and hands it over.
#![deny(unsafe_code)]

pub mod freeze;
pub mod link;
pub mod procfs;
pub mod remote;
#[allow(unsafe_code)]
pub mod sys;
