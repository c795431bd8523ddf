//! Every byte layout that godwit's two programs must agree on.
#![forbid(unsafe_code)]

pub mod journal;
pub mod plan;
