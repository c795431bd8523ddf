//! Descriptors that a plugin dumps and restores (images/ext-file.proto): godwit keeps their number, flags and owner.

use std::os::fd::AsFd;

use godwit_wire::image::ext_file::ExtFileEntry;
use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use nix::sys::stat::SFlag;

use super::kind::{self, Around, Kind};
use super::{Descriptor, FileTable, fown, unknown};
use crate::error::DumpError;
use crate::prepare::plugins;
use crate::refusal::Findings;

/// Whether a plugin may know a descriptor of this type. CRIU offers sockets and pipes to none.
fn may_be(kind: SFlag) -> bool {
    plugins::may_dump_files() && kind != SFlag::S_IFSOCK && kind != SFlag::S_IFIFO
}

/// What no other kind is, where a plugin may know it.
pub const KIND: Kind = Kind {
    r#type: FdTypes::Ext,
    is: |descriptor| may_be(descriptor.file_type()),
    check: kind::all_of_it,
    dump,
};

/// Has a plugin dump it under its id. Refused by name if none knows it: only under freeze is one asked.
fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    if !plugins::dump_ext_file(descriptor.copy.as_fd(), id)? {
        let (why, way_out) = unknown::of_type(descriptor);
        let mut late = Findings::default();
        late.refuse(descriptor.subject(around.pid), format!("{why}, and no plugin knows it"), way_out);
        return Err(DumpError::from_findings(late));
    }
    let ext = Some(ExtFileEntry { id, fown: fown::read(around.pid, descriptor)? });
    Ok(FileEntry { r#type: FdTypes::Ext.into(), id, ext, ..FileEntry::default() })
}
