//! Named pipes (man 7 fifo): the file as any other by its path, what lies in it as that of a pipe.
//!
//! Restore opens it for both directions while it opens the ends, so nobody waits for the other. What lies in it is held by
//! the processes that have it open: where the source has not ended when the copy opens the same file, both are one pipe.

use std::os::fd::AsFd;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::fifo::FifoEntry;

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, pipe, provided, reg};
use crate::error::DumpError;
use crate::refusal::Findings;
use crate::sys;

/// Named pipes.
pub const KIND: Kind = Kind { r#type: FdTypes::Fifo, is: |descriptor| is(descriptor), check, dump };

/// Whether it is one.
pub fn is(descriptor: &Descriptor) -> bool {
    pipe::is_any(descriptor) && !(pipe::KIND.is)(descriptor)
}

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    reg::check(around, descriptor, findings);
    pipe::refuse_packets(around, descriptor, findings);
    let subject = || descriptor.subject(around.pid);
    if around.tree.provided.contains(&provided::file(descriptor)) {
        return;
    }
    if let Some(other) = around.tree.holder_elsewhere(&descriptor.target) {
        findings.refuse(
            subject(),
            format!("process {other} has this named pipe open, and only pipes inside the tree are dumped"),
            "name a process above both, or end that process first",
        );
    }
    if pipe::is_write_only(descriptor)
        && !around.tree.has_reader(descriptor)
        && let Ok(waiting @ 1..) = sys::pipe::readable_bytes(descriptor.copy.as_fd())
    {
        findings.lose(
            subject(),
            format!("the {waiting} bytes that lie in it are not restored, since no process of the tree has it open to read"),
        );
    }
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    table: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let of_path = table.next_id();
    let entry = reg::dump(around, of_path, descriptor, table)?;
    table.push(entry);
    let pipe_id = table.fifo_id(descriptor);
    pipe::contents(around.pid, descriptor, pipe_id, &mut table.fifos)?;
    let fifo = FifoEntry { id, pipe_id, regf_id: Some(of_path) };
    Ok(FileEntry { r#type: FdTypes::Fifo.into(), id, fifo: Some(fifo), ..FileEntry::default() })
}
