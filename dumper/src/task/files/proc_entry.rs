//! Files of processes in `/proc`: `/proc/PID/status` and its kind.
//!
//! Restore opens them by their path when all processes are there, each with its first thread alone. Of a process that is
//! gone, it makes one with the same number for as long as that takes (`remap-fpath.img`, type PROCFS).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::kind::Around;
use super::{Descriptor, filesystem, ghost};
use crate::prepare::survey;

/// Why such a file is refused.
type Why = (String, &'static str);

/// The number of the process whose directory in `/proc` a path lies in, or is.
fn number_in(target: &Path) -> Option<u32> {
    let first = target.strip_prefix("/proc").ok()?.components().next()?;
    let name = ghost::former_name(first.as_os_str().as_bytes());
    std::str::from_utf8(name).ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// The number of the process that it is a file of, as its own `/proc` has it; `None` if it is none.
pub fn owner(descriptor: &Descriptor) -> Option<u32> {
    let number = number_in(&descriptor.target)?;
    let magic = filesystem::magic(descriptor.stat.st_dev, || fstatfs(&descriptor.copy));
    (magic == Some(PROC_SUPER_MAGIC.0)).then_some(number)
}

/// Whether the process with that number is gone.
pub fn is_of_dead(around: &Around<'_>, owner: u32) -> bool {
    !around.tree.has_number(owner) && !Path::new(&format!("/proc/{}/root/proc/{owner}", around.pid)).exists()
}

/// What stands against a file of process `owner`; otherwise it is opened by its path.
///
/// # Errors
/// Why it cannot be restored, and what to do.
pub fn check(around: &Around<'_>, descriptor: &Descriptor, owner: u32) -> Result<(), Why> {
    const CLOSE: &str = "let the program close it before it is moved";
    let inside = descriptor.target.strip_prefix(format!("/proc/{owner}")).unwrap_or(Path::new(""));
    let of = inside.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned());
    let is_below = inside.components().count() > 1;
    if is_below && matches!(of.as_deref(), Some("task" | "fd" | "fdinfo" | "map_files" | "ns")) {
        let why = format!(
            "it is a file below /proc/{owner}/{}, where nothing is yet when CRIU opens it",
            of.unwrap_or_default()
        );
        return Err((why, CLOSE));
    }
    let tasks: Vec<_> = around.tree.tasks().collect();
    if survey::is_thread(&tasks, owner) {
        return Err((format!("it is a file of {owner} in /proc, which is a thread, not a process"), CLOSE));
    }
    if around.tree.has_number(owner) || is_of_dead(around, owner) {
        return Ok(());
    }
    Err((format!("it is a file of process {owner} in /proc, which is not of the tree that is dumped"), CLOSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_processes_have_a_number() {
        let number = |path: &str| number_in(Path::new(path));
        assert_eq!(number("/proc/17/status"), Some(17));
        assert_eq!(number("/proc/17 (deleted)"), Some(17));
        for none in ["/proc", "/proc/meminfo", "/proc/sys/kernel/pid_max", "/tmp/proc/17", "/proc/x17/status"]
        {
            assert_eq!(number(none), None, "{none}");
        }
    }
}
