//! Descriptors that a plugin dumps and restores (images/ext-file.proto): godwit keeps their number, flags and owner.

use std::os::fd::AsFd;

use godwit_wire::image::ext_file::ExtFileEntry;
use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use nix::sys::stat::SFlag;
use nix::unistd::Pid;

use super::{Descriptor, fown, unknown};
use crate::error::DumpError;
use crate::prepare::plugins;
use crate::refusal::Findings;

/// Whether a plugin may know a descriptor of this type. CRIU offers sockets and pipes to none.
pub fn may_be(kind: SFlag) -> bool {
    plugins::may_dump_files() && kind != SFlag::S_IFSOCK && kind != SFlag::S_IFIFO
}

/// Has a plugin dump it, under this id, and makes the entry of the open file.
///
/// # Errors
/// Refused by name if no plugin knows it: only under freeze is one asked. When a plugin fails, or the owner cannot be read.
pub fn entry(pid: Pid, id: u32, descriptor: &Descriptor) -> Result<FileEntry, DumpError> {
    if !plugins::dump_ext_file(descriptor.copy.as_fd(), id)? {
        let kind = SFlag::from_bits_truncate(descriptor.stat.st_mode & SFlag::S_IFMT.bits());
        let (why, way_out) = unknown::of_type(descriptor, kind);
        let mut late = Findings::default();
        late.refuse(descriptor.subject(pid), format!("{why}, and no plugin knows it"), way_out);
        return Err(DumpError::from_findings(late));
    }
    let ext = Some(ExtFileEntry { id, fown: fown::read(pid, descriptor)? });
    Ok(FileEntry { r#type: FdTypes::Ext.into(), id, ext, ..FileEntry::default() })
}
