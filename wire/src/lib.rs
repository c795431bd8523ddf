//! Every byte layout that godwit's two programs must agree on.
#![forbid(unsafe_code)]

pub mod image;
pub mod journal;
pub mod plan;
