//! Facts about the whole tree, read while it is frozen: `ids`, `file_locks`, `namespaces`, `images` (the set
//! that everything goes into), `seccomp`, `lsm`,
//! `sharing` (with other processes).

pub mod file_locks;
pub mod ids;
pub mod images;
pub mod lsm;
pub mod namespaces;
pub mod seccomp;
pub mod sharing;
