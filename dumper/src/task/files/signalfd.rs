//! Receivers of signals (man 2 signalfd). The signals themselves are pending for the process.

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::signalfd::SignalfdEntry;

use super::kind::{Around, Kind, all_of_it};
use super::{Descriptor, FileTable, fown};
use crate::error::DumpError;
use crate::procfs::fdinfo::FdInfo;

/// Receivers of signals.
pub const KIND: Kind = Kind {
    r#type: FdTypes::Signalfd,
    is: |descriptor| descriptor.is_object("[signalfd]"),
    check: all_of_it,
    dump,
};

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let sgfd = SignalfdEntry {
        id,
        flags: descriptor.file_flags(),
        fown: fown::read(around.pid, descriptor)?,
        sigmask: descriptor.told(around.pid, FdInfo::taken_signals)?,
    };
    Ok(FileEntry { r#type: FdTypes::Signalfd.into(), id, sgfd: Some(sgfd), ..FileEntry::default() })
}
