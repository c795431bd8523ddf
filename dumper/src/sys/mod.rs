//! System calls that the standard library and `nix` do not give in the form a dumper needs.
//!
//! One file per subject, one function per call: owned or borrowed descriptors, `nix::Result`, no policy. This is
//! the only room of the crate where `unsafe` is allowed. Reading order: [`ptrace`] and [`wait`] (stopping and
//! looking at a task), [`process_vm`] (its memory), [`pidfd`] and [`kcmp`] (its descriptors), [`pagemap_scan`] and
//! [`userfaultfd`] (what it wrote), [`sched`] and [`rlimit`] (facts asked from outside), [`fcntl`], [`pipe`],
//! [`socket`], [`handle`], [`tty`] (facts about a descriptor), [`cpuid`] (the layout of the XSAVE area), [`memory`] (own mappings), [`mount`] (the
//! cgroup hierarchy), [`xattr`] (marks on a cgroup), [`child`] (starting programs), [`plugin`] (code of others, loaded).

pub mod child;
pub mod cpuid;
pub mod fcntl;
pub mod handle;
pub mod kcmp;
pub mod memory;
pub mod mount;
pub mod pagemap_scan;
pub mod pidfd;
pub mod pipe;
pub mod plugin;
pub mod process_vm;
pub mod ptrace;
pub mod rlimit;
pub mod sched;
pub mod socket;
pub mod timerfd;
pub mod tty;
pub mod userfaultfd;
pub mod wait;
pub mod xattr;
