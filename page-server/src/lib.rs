//! The page server: receives rounds of pages and writes image directories in CRIU's format.
#![deny(unsafe_code)]

pub mod store;
mod sys;
