//! CRIU's image files: framing, records, and the checks that make foreign bytes safe to read.
//!
//! In reading order: [`magic`] (kinds of files), [`mod@file`] (records in a file), [`check`] (required fields),
//! [`pagemap`] (page lists), [`manifest`] and [`extent`] (what a sealed directory must hold); then one file of
//! records for each proto file of CRIU's, with its names. proto2 rules hold: required fields are always written, repeated
//! scalars are not packed, fields come in the order of their numbers. Strings that the kernel gives as bytes
//! (paths, names, labels) are byte lists here: a path need not be UTF-8.

pub mod check;
pub mod extent;
pub mod file;
pub mod magic;
pub mod manifest;

pub mod cgroup;
pub mod core;
pub mod core_x86;
pub mod cpuinfo;
pub mod creds;
pub mod eventfd;
pub mod eventpoll;
pub mod ext_file;
pub mod fdinfo;
pub mod fh;
pub mod fifo;
pub mod file_lock;
pub mod fown;
pub mod fs;
pub mod fsnotify;
pub mod ghost_file;
pub mod inventory;
pub mod memfd;
pub mod mm;
pub mod ns;
pub mod pagemap;
pub mod pidfd;
pub mod pidns;
pub mod pipe;
pub mod pipe_data;
pub mod pstree;
pub mod regfile;
pub mod remap_file_path;
pub mod rlimit;
pub mod rseq;
pub mod sa;
pub mod seccomp;
pub mod siginfo;
pub mod signalfd;
pub mod sk_opts;
pub mod sk_packet;
pub mod sk_unix;
pub mod stats;
pub mod time;
pub mod timens;
pub mod timer;
pub mod timerfd;
pub mod tty;
pub mod userns;
pub mod utsns;
pub mod vma;

pub use check::Checked;
pub use file::{ImageError, ImageFault, ImageReader, ImageWriter};
pub use magic::ImageKind;
pub use manifest::{FileDigest, Manifest, PagesDigest, safe_image_name};
