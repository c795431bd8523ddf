//! The executable, working and root directory of a task.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::files::{FileTable, ghost, memfd, reg};
use crate::error::DumpError;
use crate::procfs::ns;
use crate::refusal::{Findings, Subject};

/// Looks a directory or executable of the task up and enters it into the table.
///
/// # Errors
/// When the link cannot be read or its target is another file than its path.
pub fn file(pid: Pid, name: &str, table: &mut FileTable) -> Result<u32, DumpError> {
    let link = PathBuf::from(format!("/proc/{pid}/{name}"));
    let target = fs::read_link(&link)
        .map_err(|source| DumpError::sys(link.display().to_string(), "readlink", source))?;
    table.special(pid, &link, target.as_os_str().as_bytes())
}

/// Checks that the executable, working and root directories can be opened by their paths.
/// Deleted ones come as ghost files, of up to `ghost_limit` bytes.
pub fn check_all(pid: Pid, ghost_limit: u64, findings: &mut Findings) {
    for name in ["exe", "cwd"] {
        let link = PathBuf::from(format!("/proc/{pid}/{name}"));
        let Ok(target) = fs::read_link(&link) else { continue };
        let Ok(found) = fs::metadata(&link) else { continue };
        if let Ok(stat) = nix::sys::stat::stat(&link)
            && ghost::is_deleted(&stat)
            && !memfd::is_memory(&stat)
        {
            ghost::check(&link, &stat, ghost_limit, Subject::Process(pid), findings);
            continue;
        }
        let path = reg::in_root(pid, &target);
        let same = fs::metadata(&path).is_ok_and(|at| (at.dev(), at.ino()) == (found.dev(), found.ino()));
        if !same {
            findings.refuse(
                Subject::Process(pid),
                format!("its {name} is {}, and that is not what the path holds now", target.display()),
                "put it back under its path",
            );
        }
    }
    let changed =
        Path::new(&format!("/proc/{pid}/root")).read_link().is_ok_and(|root| root != Path::new("/"));
    let mounts = |pid| ns::read(pid, ns::Kind::Mnt).ok();
    if changed && mounts(pid) != mounts(Pid::this()) {
        findings.refuse(
            Subject::Process(pid),
            "it changed its root directory (chroot) inside another mount namespace",
            "run it in the root directory of that namespace",
        );
    }
}
