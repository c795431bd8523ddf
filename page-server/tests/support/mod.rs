//! What the tests of the store and of the restore share.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod criu;
pub mod rounds;
