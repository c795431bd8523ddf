//! Addresses of unix sockets: a path, whose file the kernel opens for us (SIOCUNIXFILE), or an abstract name.
//!
//! Restore binds to the path as the program gave it, from its own root directory, or from the directory that a relative one
//! started at.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::sys::stat::{FileStat, fstat, lstat, stat};

use godwit_wire::image::sk_unix::FilePermsEntry;

use super::diag::{Socket, state};
use super::{CLOSE, DATAGRAM, Why};
use crate::sys;
use crate::task::files::{Around, Descriptor};

/// What the kernel puts behind the name of a file without a link (fs/d_path.c).
const DELETED: &[u8] = b" (deleted)";

/// The file that a socket is bound to.
#[derive(Debug)]
pub struct Bound {
    /// Owner and permissions.
    pub perms: FilePermsEntry,
    /// The directory that a relative path starts at.
    pub directory: Option<Vec<u8>>,
    /// Whether the file is gone.
    pub deleted: bool,
}

/// The path of a socket's address, none for an abstract one.
pub fn path(socket: &Socket) -> Option<&Path> {
    let text = socket.name.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
    Some(Path::new(OsStr::from_bytes(text)))
}

/// Whether it is a connection: restore makes those without an address.
pub fn is_dropped(socket: &Socket) -> bool {
    socket.r#type != DATAGRAM && socket.state == state::ESTABLISHED && !socket.name.is_empty()
}

/// Looks at the file that a socket is bound to; `None` where its address is no path.
///
/// # Errors
/// In words, when it cannot be looked at or restore would bind elsewhere.
pub fn bound(descriptor: &Descriptor, socket: &Socket) -> Result<Option<Bound>, String> {
    let Some(path) = path(socket) else { return Ok(None) };
    let file = sys::socket::bound_file(descriptor.copy.as_fd()).map_err(|errno| {
        format!("the kernel does not open the file of its address (SIOCUNIXFILE, CAP_NET_ADMIN): {errno}")
    })?;
    let found =
        fstat(&file).map_err(|errno| format!("the file of its address cannot be looked at: {errno}"))?;
    let at = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| format!("the file of its address has no path: {error}"))?;
    let at = at.into_os_string().into_vec();
    let deleted = found.st_nlink == 0;
    let at = if deleted { at.strip_suffix(DELETED).unwrap_or(&at) } else { &at };
    let directory = match path.is_absolute() {
        true => {
            leads_to(path, &found, deleted)?;
            None
        }
        false => Some(start_of(at, path)?),
    };
    let perms = FilePermsEntry { mode: found.st_mode, uid: found.st_uid, gid: found.st_gid };
    Ok(Some(Bound { perms, directory, deleted }))
}

/// Whether an absolute path is free for a deleted file, or that of the file.
fn leads_to(path: &Path, file: &FileStat, deleted: bool) -> Result<(), String> {
    let is_it = |at: FileStat| (at.st_dev, at.st_ino) == (file.st_dev, file.st_ino);
    match deleted {
        true if lstat(path).is_ok() => {
            Err(format!("its file is deleted, and another has its path {} now", path.display()))
        }
        false if !stat(path).is_ok_and(is_it) => Err(format!(
            "its address {} does not lead to its file, seen from the root directory",
            path.display()
        )),
        _ => Ok(()),
    }
}

/// Where a relative path starts, as the file's path tells.
fn start_of(at: &[u8], path: &Path) -> Result<Vec<u8>, String> {
    let name = path.as_os_str().as_bytes();
    let start = at.strip_suffix(name).and_then(|start| start.strip_suffix(b"/"));
    match start {
        Some(b"") => Ok(b"/".to_vec()),
        Some(start) => Ok(start.to_vec()),
        None => Err(format!(
            "its address {} is relative, and its file is {}",
            path.display(),
            String::from_utf8_lossy(at)
        )),
    }
}

/// Refuses addresses that a restore would not bind to, or would take away from others.
pub fn why_not(around: &Around<'_>, descriptor: &Descriptor, socket: &Socket) -> Option<Why> {
    let bound = match bound(descriptor, socket) {
        Err(why) => return Some((why, CLOSE)),
        Ok(bound) => bound?,
    };
    (is_dropped(socket) && !bound.deleted && !around.tree.sockets.listens_at(&socket.name)).then(|| {
        (
            "a restore removes the file of its address, and no process of the tree listens at it".into(),
            "let the program close the connection first",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_where_their_file_says() {
        let start = |at: &str, path: &str| start_of(at.as_bytes(), Path::new(path)).ok();
        assert_eq!(start("/a/b/socket", "b/socket"), Some(b"/a".to_vec()));
        assert_eq!(start("/socket", "socket"), Some(b"/".to_vec()));
        assert_eq!(start("/a/other", "socket"), None);
        assert_eq!(start("/a/xsocket", "socket"), None);
    }
}
