//! Watches on files (man 7 inotify). Events that were not read are lost, and so is what happens until the restored group is
//! there.

use std::os::fd::AsFd;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::fsnotify::{InotifyFileEntry, InotifyWdEntry};

use super::kind::{Around, Kind};
use super::watched::{self, Mounts};
use super::{Descriptor, FileTable, fown};
use crate::error::DumpError;
use crate::procfs::fdinfo::FdInfo;
use crate::refusal::Findings;
use crate::sys;

/// Groups of inotify.
pub const KIND: Kind =
    Kind { r#type: FdTypes::Inotify, is: |descriptor| descriptor.is_object("inotify"), check, dump };

/// What a watch keeps beside events, and CRIU does not give it (include/uapi/linux/inotify.h).
const FLAGS: [(u32, &str); 2] = [(1 << 31, "IN_ONESHOT"), (1 << 26, "IN_EXCL_UNLINK")];

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let subject = || descriptor.subject(around.pid);
    let Ok(watches) = descriptor.info.inotify_watches() else { return };
    if let Ok(waiting @ 1..) = sys::pipe::readable_bytes(descriptor.copy.as_fd()) {
        findings.lose(subject(), format!("{waiting} bytes of events that it has not read are not restored"));
    }
    for (flag, name) in FLAGS {
        if let Some(watch) = watches.iter().find(|watch| watch.mask & flag != 0) {
            findings.lose(subject(), format!("{name} of its watch {} is not restored", watch.wd));
        }
    }
    let mounts = Mounts::of(around.pid);
    for watch in &watches {
        if let Err(what) = mounts.path_of(watch) {
            findings.refuse(
                subject(),
                format!("with watch {} it watches {what}", watch.wd),
                "let the program remove that watch",
            );
        }
    }
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let mounts = Mounts::of(around.pid);
    let mut wd = Vec::new();
    for watch in descriptor.told(around.pid, FdInfo::inotify_watches)? {
        let Ok(path) = mounts.path_of(&watch) else {
            let mut late = Findings::default();
            check(around, descriptor, &mut late);
            return Err(DumpError::from_findings(late));
        };
        wd.push(InotifyWdEntry {
            id: 0, // of images that had these entries apart
            i_ino: watch.inode,
            mask: watch.mask,
            ignored_mask: watch.ignored_mask,
            s_dev: watch.device,
            wd: watch.wd as u32,
            f_handle: watched::entry(&watch, path),
        });
    }
    let flags = descriptor.file_flags();
    let ify = Some(InotifyFileEntry { id, flags, fown: fown::read(around.pid, descriptor)?, wd });
    Ok(FileEntry { r#type: FdTypes::Inotify.into(), id, ify, ..FileEntry::default() })
}
