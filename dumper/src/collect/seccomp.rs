//! Seccomp: tasks under a filter are refused for now, and the image says that there is none.

use bytes::Bytes;
use nix::unistd::Pid;

use godwit_wire::image::seccomp::SeccompEntry;
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use crate::procfs::status::Status;
use crate::refusal::{Findings, Subject};

/// Refuses a thread under seccomp by name.
pub fn check(tid: Pid, status: &Status, findings: &mut Findings) {
    let mode = match status.seccomp {
        0 => return,
        1 => "strict mode",
        _ => "filters",
    };
    findings.refuse(
        Subject::Thread(tid),
        format!("it runs under seccomp {mode}, which is not dumped"),
        "run the program without seccomp",
    );
}

/// `seccomp.img` of a tree without filters: one empty record.
///
/// # Errors
/// Never for an empty record; the signature is that of every image.
pub fn image() -> Result<(String, Bytes), ImageError> {
    Ok((ImageKind::Seccomp.file_name(0), ImageWriter::single(ImageKind::Seccomp, &SeccompEntry::default())?))
}
