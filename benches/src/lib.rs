//! Workloads for measurements of godwit, side by side with CRIU.
#![forbid(unsafe_code)]
