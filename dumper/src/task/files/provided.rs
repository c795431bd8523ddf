//! What whoever restores provides (`--external`, as CRIU calls it): `criu restore` is given it by `--inherit-fd fd[N]:KEY`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::Descriptor;

/// One thing that is provided, by its name at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provided {
    /// A file by the mount that it was opened through and its inode, `file[MOUNT:INODE]`, both in hex.
    File {
        /// `mnt_id` of `/proc/PID/fdinfo`.
        mount: i32,
        /// Inode number.
        inode: u64,
    },
    /// A pipe by its inode, `pipe:[INODE]`, in decimal.
    Pipe {
        /// Inode number.
        inode: u64,
    },
}

impl FromStr for Provided {
    type Err = String;

    fn from_str(text: &str) -> Result<Provided, String> {
        let inside = |begin: &str| text.strip_prefix(begin)?.strip_suffix(']');
        let file = || {
            let (mount, inode) = inside("file[")?.split_once(':')?;
            let (mount, inode) = (i32::from_str_radix(mount, 16).ok()?, u64::from_str_radix(inode, 16).ok()?);
            Some(Provided::File { mount, inode })
        };
        let pipe = || {
            let inode = inside("pipe:[").or_else(|| inside("pipe["))?.parse().ok()?;
            Some(Provided::Pipe { inode })
        };
        file().or_else(pipe).ok_or_else(|| {
            format!(
                "{text:?} is neither file[MOUNT:INODE] (mnt_id and ino of /proc/PID/fdinfo/FD, in hex) nor pipe:[INODE]"
            )
        })
    }
}

/// The key that restore looks for.
impl fmt::Display for Provided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Provided::File { mount, inode } => write!(f, "file[{mount:x}:{inode:x}]"),
            Provided::Pipe { inode } => write!(f, "pipe:[{inode}]"),
        }
    }
}

/// All that is provided.
pub type AllProvided = BTreeSet<Provided>;

/// What a regular file, directory, device or named pipe is called there.
pub fn file(descriptor: &Descriptor) -> Provided {
    Provided::File { mount: descriptor.info.mnt_id, inode: descriptor.stat.st_ino }
}

/// What a pipe is called there.
pub fn pipe(descriptor: &Descriptor) -> Provided {
    Provided::Pipe { inode: descriptor.stat.st_ino }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_as_criu_does() {
        let read = |text: &str| text.parse::<Provided>().map(|provided| provided.to_string());
        assert_eq!(read("file[1f:a07]").as_deref(), Ok("file[1f:a07]"));
        assert_eq!(read("pipe:[4711]").as_deref(), Ok("pipe:[4711]"));
        assert_eq!(read("pipe[4711]").as_deref(), Ok("pipe:[4711]"));
        for wrong in ["", "file[1f]", "file[x:1]", "pipe:[-1]", "unix[5", "pipe:[1]x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
