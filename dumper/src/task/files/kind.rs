//! Kinds of open files: for each, how it is told from others, checked before the freeze, and written. Each has a module of
//! its own with one such record; [`super::KINDS`] lists them.

use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};

use super::of_tree::OfTree;
use super::{Descriptor, FileTable};
use crate::error::DumpError;
use crate::refusal::Findings;

/// One kind of open file.
#[derive(Debug)]
pub struct Kind {
    /// How images call it.
    pub r#type: FdTypes,
    /// Whether a descriptor is of it; asked in the order of [`super::KINDS`].
    pub is: fn(&Descriptor) -> bool,
    /// Refuses what of it cannot be dumped, and names what a restore drops. Asked before the freeze, and again under it.
    pub check: fn(&Around<'_>, &Descriptor, &mut Findings),
    /// Makes the entry of a file that has passed `check`, under the id that it was given; what else there is to write of it
    /// goes into the table.
    pub dump: fn(&Around<'_>, u32, &Descriptor, &mut FileTable) -> Result<FileEntry, DumpError>,
}

/// Whose a descriptor is, and what must be known of the whole tree to judge it.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The process that has it.
    pub pid: Pid,
    /// Its tree.
    pub tree: &'a OfTree,
}

/// For kinds of which nothing is refused or lost.
pub fn all_of_it(_: &Around<'_>, _: &Descriptor, _: &mut Findings) {}
