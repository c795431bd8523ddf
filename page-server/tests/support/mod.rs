//! What the tests of the store and of the restore share.
#![allow(dead_code, missing_docs)]

pub mod criu;
pub mod rounds;
