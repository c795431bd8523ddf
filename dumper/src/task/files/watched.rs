//! What a watch is on (inotify, fanotify): the kernel tells its device, inode and handle, and restore wants a path.
//!
//! The handle is opened through each mount of the file system that the process has, until one shows it under a path by
//! which the same file is found. Without a path restore would open the handle itself, which works on the same disk only.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::{fstat, stat};
use nix::unistd::Pid;

use godwit_wire::image::fh::FhEntry;

use super::reg;
use crate::procfs::mountinfo::{self, Mount};
use crate::procfs::objects::Watch;
use crate::sys;

/// Words of a handle in images, of 8 bytes each (criu/include/fsnotify.h).
const HANDLE_WORDS: usize = 16;

/// The mounts of a process.
#[derive(Debug)]
pub struct Mounts {
    pid: Pid,
    all: Vec<Mount>,
}

impl Mounts {
    /// Reads them; none where `/proc` does not tell.
    pub fn of(pid: Pid) -> Mounts {
        Mounts { pid, all: mountinfo::read(pid).unwrap_or_default() }
    }

    /// The mount with this id.
    pub fn by_id(&self, id: i32) -> Option<&Mount> {
        self.all.iter().find(|mount| mount.mnt_id == id)
    }

    /// The path of what is watched, in the process's root.
    ///
    /// # Errors
    /// Why there is none, in words that follow "it watches".
    pub fn path_of(&self, watch: &Watch) -> Result<PathBuf, String> {
        let Watch { inode, device, .. } = watch;
        let Some((kind, bytes)) = &watch.handle else {
            return Err(format!(
                "inode {inode} of device {device:#x}, whose file system has no handles of its files"
            ));
        };
        let mut is_there = false;
        for mount in self.all.iter().filter(|mount| kernel_device(mount) == *device) {
            let point = reg::in_root(self.pid, std::ffi::OsStr::from_bytes(&mount.mount_point).as_ref());
            let Ok(point) = File::open(point) else { continue };
            let found = match sys::handle::open(point.as_fd(), *kind as i32, bytes) {
                Ok(found) => found,
                Err(Errno::EPERM) => {
                    return Err(format!(
                        "inode {inode}, which is found by its handle only with CAP_DAC_READ_SEARCH"
                    ));
                }
                Err(_) => continue,
            };
            is_there = true;
            let link = format!("/proc/self/fd/{}", found.as_raw_fd());
            let (Ok(path), Ok(by_handle)) = (std::fs::read_link(link), fstat(&found)) else { continue };
            let by_path = stat(&reg::in_root(self.pid, &path));
            if by_path
                .is_ok_and(|by_path| (by_path.st_dev, by_path.st_ino) == (by_handle.st_dev, by_handle.st_ino))
            {
                return Ok(path);
            }
        }
        Err(match is_there {
            true => format!("inode {inode} of device {device:#x}, which has no path any more"),
            false => format!("inode {inode} of device {device:#x}, which no mount of the process shows"),
        })
    }
}

/// The device of a mount in the kernel's own form (include/linux/kdev_t.h).
pub fn kernel_device(mount: &Mount) -> u32 {
    mount.major << 20 | mount.minor
}

/// The entry of what is watched, which has this path.
pub fn entry(watch: &Watch, path: PathBuf) -> FhEntry {
    let (kind, bytes) = watch.handle.clone().unwrap_or_default();
    let mut words = [0u64; HANDLE_WORDS];
    for (word, part) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..part.len()].copy_from_slice(part);
        *word = u64::from_le_bytes(whole);
    }
    FhEntry {
        bytes: bytes.len() as u32,
        r#type: kind,
        handle: words.to_vec(),
        path: Some(path.into_os_string().into_encoded_bytes()),
        mnt_id: None,
    }
}
