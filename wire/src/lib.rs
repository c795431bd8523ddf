//! Every byte layout that godwit's two programs must agree on.
#![forbid(unsafe_code)]

pub mod image;
pub mod journal;
pub mod plan;

pub mod codec;
pub mod control;
pub mod error;
pub mod fault;
pub mod frame;
pub mod quic;
pub mod session;
pub mod version;
