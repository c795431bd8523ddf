//! `godwit-page-server`: arguments and exit codes, nothing else.
fn main() {}
