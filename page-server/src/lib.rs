//! The page server: receives rounds of pages and writes image directories in CRIU's format.
//!
//! Reading order: [`serve`] (the flow of a session), `admit` (who may have one), `lanes` (frames into the
//! store), [`store`] (image directories), `handover` and [`restore`] (the tree comes to life), `query` (answers
//! from the journals), [`operate`] (an operator decides here), [`cpu`] (what this processor can do); [`cli`] and [`error`] serve the program.
#![deny(unsafe_code)]

mod admit;
pub mod cli;
pub mod cpu;
pub mod error;
mod handover;
mod lanes;
pub mod operate;
mod query;
pub mod restore;
pub mod serve;
pub mod store;
mod sys;

pub use sys::keep_freed_memory;
