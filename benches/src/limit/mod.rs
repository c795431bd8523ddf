//! Limits: what this machine can do at best, piece by piece, so that what godwit reaches can be read as a share of it.
//!
//! Each limit moves bytes for a second or so and says how many, in what time, at what cost of CPU. Those with two ends
//! have two processes: the running program starts itself with a hidden first argument, see [`far_side`].
//!
//! Reading order: [`measured`] (what is reported), [`mod@catalog`], then one file per subject: [`memory`], [`codec`],
//! [`udp`], [`quic`], [`tcp`], [`mod@file`]; `far` is the second process, [`source`] what is sent.

pub mod catalog;
pub mod codec;
mod far;
pub mod file;
pub mod measured;
pub mod memory;
pub mod quic;
pub mod source;
pub mod tcp;
pub mod udp;

pub use catalog::{Limit, Settings, catalog};
pub use far::far_side;
pub use measured::Measured;
