//! Event counters (man 2 eventfd).

use godwit_wire::image::eventfd::EventfdFileEntry;
use godwit_wire::image::fdinfo::{FdTypes, FileEntry};

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown};
use crate::error::DumpError;
use crate::procfs::fdinfo::FdInfo;
use crate::refusal::Findings;

/// Event counters.
pub const KIND: Kind =
    Kind { r#type: FdTypes::Eventfd, is: |descriptor| descriptor.is_object("[eventfd]"), check, dump };

/// Restore makes the counter by `eventfd(value, 0)`: without EFD_SEMAPHORE, which is no flag of the file, and with 32 bits
/// of the value.
fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    if descriptor.info.is_semaphore() == Some(true) {
        findings.lose(
            descriptor.subject(around.pid),
            "it is a semaphore (EFD_SEMAPHORE), and a plain counter after a restore: a read takes all of it",
        );
    }
    if let Ok(counter) = descriptor.info.event_counter()
        && u32::try_from(counter).is_err()
    {
        findings.lose(
            descriptor.subject(around.pid),
            format!("its counter stands at {counter}, of which a restore keeps 32 bits: {}", counter as u32),
        );
    }
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let efd = EventfdFileEntry {
        id,
        flags: descriptor.file_flags(),
        fown: fown::read(around.pid, descriptor)?,
        counter: descriptor.told(around.pid, FdInfo::event_counter)?,
    };
    Ok(FileEntry { r#type: FdTypes::Eventfd.into(), id, efd: Some(efd), ..FileEntry::default() })
}
