//! Files whose path is gone while they have another link (`--link-remap`): for the time until a restore has opened it, each
//! gets one more link, `link_remap.godwit.N` beside its former path, by which restore finds it (`remap-fpath.img`, type
//! LINKED). Restore takes it away; where the process runs on, we do.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::unistd::{Pid, linkat};

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::regfile::RegFileEntry;
use godwit_wire::image::remap_file_path::{RemapFilePathEntry, RemapType};

use super::{Descriptor, fown, ghost, reg};
use crate::error::DumpError;

/// How the names of our links begin.
const NAME: &str = "link_remap.godwit.";

/// The links that a dump has made. They are taken away with it, unless what it made is the copy.
#[derive(Debug, Default)]
pub struct Links {
    made: Vec<(PathBuf, u64)>,
    remaps: Vec<RemapFilePathEntry>,
}

/// Whether the file has a link, and is not found under the path that `/proc` shows.
pub fn is_lost(pid: Pid, descriptor: &Descriptor) -> bool {
    let is_file = descriptor.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    is_file
        && descriptor.stat.st_nlink > 0
        && ghost::has_name_of_deleted(descriptor.target.as_os_str().as_bytes())
        && fs::symlink_metadata(reg::in_root(pid, &descriptor.target)).is_err()
}

/// Where the file was, and the directory of that.
fn former(descriptor: &Descriptor) -> (PathBuf, PathBuf) {
    let name = ghost::former_name(descriptor.target.as_os_str().as_bytes());
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(name));
    let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
    (path, dir)
}

/// Whether a link can be made: the directory is there, and of the same file system.
///
/// # Errors
/// Why not, in words.
pub fn check(pid: Pid, descriptor: &Descriptor) -> Result<(), String> {
    let (path, dir) = former(descriptor);
    if fs::symlink_metadata(reg::in_root(pid, &path)).is_ok() {
        return Err(
            "another file has its path now, and a restore would have to move that out of the way".into()
        );
    }
    match fs::metadata(reg::in_root(pid, &dir)) {
        Ok(found) if found.dev() == descriptor.stat.st_dev => Ok(()),
        Ok(_) => Err(format!(
            "{} lies on another file system now, so that no link can be made there",
            dir.display()
        )),
        Err(error) => Err(format!("{} is gone ({error}), so that no link can be made there", dir.display())),
    }
}

impl Links {
    /// Makes a link to an open file of process `pid`, under the id that it gets in `files.img`, for file `orig_id`; gives
    /// its entry.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn add(
        &mut self,
        pid: Pid,
        orig_id: u32,
        id: u32,
        descriptor: &Descriptor,
    ) -> Result<FileEntry, DumpError> {
        let name = former(descriptor).1.join(format!("{NAME}{id}"));
        let at = reg::in_root(pid, &name);
        let own = format!("/proc/self/fd/{}", descriptor.copy.as_fd().as_raw_fd());
        linkat(nix::fcntl::AT_FDCWD, own.as_str(), nix::fcntl::AT_FDCWD, &at, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(|errno| {
                DumpError::sys(format!("{} for process {pid}", name.display()), "making a link", errno)
            })?;
        self.made.push((at, descriptor.stat.st_ino));
        godwit_wire::fault::point("mid.links.made")?;
        let remap_type = Some(RemapType::Linked.into());
        self.remaps.push(RemapFilePathEntry { orig_id, remap_id: id, remap_type });
        let reg = RegFileEntry {
            id,
            fown: fown::none(),
            name: name.into_os_string().into_encoded_bytes(),
            ..RegFileEntry::default()
        };
        Ok(FileEntry { r#type: FdTypes::Reg.into(), id, reg: Some(reg), ..FileEntry::default() })
    }

    /// How restore finds each.
    pub fn remaps(&self) -> &[RemapFilePathEntry] {
        &self.remaps
    }

    /// The images are the copy: a restore needs the links.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for (path, inode) in &self.made {
            remove(path, *inode);
        }
    }
}

fn remove(path: &Path, inode: u64) {
    let is_it = fs::symlink_metadata(path).is_ok_and(|found| found.ino() == inode);
    if is_it && let Err(error) = fs::remove_file(path) {
        tracing::warn!("{} cannot be taken away: {error}", path.display());
    }
}

/// Takes away the links that a killed dumper has left of this process's files.
pub fn sweep(pid: Pid, all: &[Descriptor]) {
    for descriptor in all.iter().filter(|descriptor| is_lost(pid, descriptor)) {
        let dir = reg::in_root(pid, &former(descriptor).1);
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(NAME.as_bytes())) {
            remove(&entry.path(), descriptor.stat.st_ino);
        }
    }
}
