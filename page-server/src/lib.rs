//! The page server: receives rounds of pages and writes image directories in CRIU's format.
//!
//! Reading order: [`serve`] (the flow of a session), `admit` (who may have one), `lanes` (frames into the
//! store), [`store`] (image directories); [`cli`] and [`error`] serve the program.
#![deny(unsafe_code)]

mod admit;
pub mod cli;
pub mod error;
mod lanes;
mod query;
pub mod restore;
pub mod serve;
pub mod store;
mod sys;
