//! The dumper: walks a process tree, streams its memory while it runs, freezes it once and hands it over.
#![deny(unsafe_code)]

pub mod link;
pub mod procfs;
#[allow(unsafe_code)]
pub mod sys;
