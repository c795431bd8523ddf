//! Workloads for measurements of godwit, and what is made of the measured values.
//!
//! Programs: `workload` is the process that is measured, `one-shot` dumps it by godwit and by CRIU in turn.
#![forbid(unsafe_code)]

pub mod summary;
pub mod workload;
