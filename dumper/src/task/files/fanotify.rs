//! Watches on files and mounts (man 7 fanotify). As with inotify, events are lost.

use std::os::fd::AsFd;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::fsnotify::{
    FanotifyFileEntry, FanotifyInodeMarkEntry, FanotifyMarkEntry, FanotifyMountMarkEntry, MarkType,
};

use super::kind::{Around, Kind};
use super::watched::{self, Mounts};
use super::{Descriptor, FileTable, fown};
use crate::error::DumpError;
use crate::procfs::fdinfo::FdInfo;
use crate::procfs::objects::Mark;
use crate::refusal::Findings;
use crate::sys;

/// Groups of fanotify.
pub const KIND: Kind =
    Kind { r#type: FdTypes::Fanotify, is: |descriptor| descriptor.is_object("[fanotify]"), check, dump };

/// `FAN_CLASS_CONTENT` and `FAN_CLASS_PRE_CONTENT` (include/uapi/linux/fanotify.h).
const DECIDES: u32 = 0x4 | 0x8;
/// `FAN_MARK_IGNORE`, which restore would mix up with FAN_MARK_IGNORED_MASK.
const IGNORE: u32 = 0x400;
/// Bytes that an event is told with, at least (`FAN_EVENT_METADATA_LEN`).
const EVENT_BYTES: usize = 24;

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    const REMOVE: &str = "let the program remove that mark";
    let subject = || descriptor.subject(around.pid);
    let Ok(group) = descriptor.info.fanotify() else { return };
    if group.flags & DECIDES != 0 {
        findings.refuse(
            subject(),
            "it decides on what others may open or read (FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT), and while it lies \
             frozen all of them would wait for it",
            "let the program close it before it is moved",
        );
    }
    if let Ok(waiting @ 1..) = sys::pipe::readable_bytes(descriptor.copy.as_fd()) {
        let events = waiting.div_ceil(EVENT_BYTES);
        findings.lose(subject(), format!("{events} events that it has not read are not restored"));
    }
    let mounts = Mounts::of(around.pid);
    for mark in &group.marks {
        let why = match mark {
            Mark::Inode(flags, _) | Mark::Mount { flags, .. } if flags & IGNORE != 0 => {
                "a mark of it ignores by FAN_MARK_IGNORE, which CRIU does not restore".to_owned()
            }
            Mark::Inode(_, watch) => match mounts.path_of(watch) {
                Ok(_) => continue,
                Err(what) => format!("it watches {what}"),
            },
            Mark::Mount { mount, .. } if mounts.by_id(*mount).is_some() => continue,
            Mark::Mount { mount, .. } => format!("it watches mount {mount}, which the process does not have"),
            Mark::Other => {
                "a mark of it is on a whole file system, and CRIU restores those on files and mounts"
                    .to_owned()
            }
        };
        findings.refuse(subject(), why, REMOVE);
    }
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let group = descriptor.told(around.pid, FdInfo::fanotify)?;
    let mounts = Mounts::of(around.pid);
    let entries: Option<Vec<FanotifyMarkEntry>> =
        group.marks.iter().map(|mark| entry(&mounts, mark)).collect();
    let Some(mark) = entries else {
        let mut late = Findings::default();
        check(around, descriptor, &mut late);
        return Err(DumpError::from_findings(late));
    };
    let ffy = FanotifyFileEntry {
        id,
        flags: descriptor.file_flags(),
        fown: fown::read(around.pid, descriptor)?,
        faflags: group.flags,
        evflags: group.event_flags,
        mark,
    };
    Ok(FileEntry { r#type: FdTypes::Fanotify.into(), id, ffy: Some(ffy), ..FileEntry::default() })
}

/// `None` for what cannot be dumped.
fn entry(mounts: &Mounts, mark: &Mark) -> Option<FanotifyMarkEntry> {
    let id = 0; // of images that had these entries apart
    match mark {
        Mark::Inode(mflags, watch) => Some(FanotifyMarkEntry {
            id,
            r#type: MarkType::Inode.into(),
            mflags: *mflags,
            mask: watch.mask,
            ignored_mask: watch.ignored_mask,
            s_dev: watch.device,
            ie: Some(FanotifyInodeMarkEntry {
                i_ino: watch.inode,
                f_handle: watched::entry(watch, mounts.path_of(watch).ok()?),
            }),
            me: None,
        }),
        Mark::Mount { mount, flags, mask, ignored_mask } => {
            let found = mounts.by_id(*mount)?;
            Some(FanotifyMarkEntry {
                id,
                r#type: MarkType::Mount.into(),
                mflags: *flags,
                mask: *mask,
                ignored_mask: *ignored_mask,
                s_dev: watched::kernel_device(found),
                ie: None,
                me: Some(FanotifyMountMarkEntry {
                    mnt_id: *mount as u32,
                    path: Some(found.mount_point.clone()),
                }),
            })
        }
        Mark::Other => None,
    }
}
