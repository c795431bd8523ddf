//! `godwit`: arguments and exit codes, nothing else.
fn main() {}
