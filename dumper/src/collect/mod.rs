//! Facts about the whole tree, read while it is frozen: `ids`, `file_locks`, `namespaces`, `images` (the set
//! that everything goes into), `seccomp`, `lsm`,
//! `sharing` (with other processes), `tree` (which processes there are), `sessions` (whose numbers a restore can give back).

pub mod file_locks;
pub mod ids;
pub mod images;
pub mod lsm;
pub mod namespaces;
pub mod seccomp;
pub mod sessions;
pub mod sharing;
pub mod tree;
