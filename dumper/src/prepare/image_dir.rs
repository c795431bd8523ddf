//! The directory that action scripts and plugins take for that of the images.
//!
//! CRIU writes its images into a directory that scripts find in `CRTOOLS_IMAGE_DIR` and plugins by
//! `criu_get_image_dir`. Here the images of a set are staged, hashed and sealed, at a page server perhaps, so that
//! nobody can write among them. Whoever would is given a private directory instead. Its files go along as images of the
//! final set, just before the inventory, so that they lie where a restore looks for them; their hashes are in the manifest.
//!
//! * **Plugins** always write into the private directory.
//! * **Scripts of a dump into a directory** see that directory, where the whole set lies at `post-dump`.
//! * **Scripts of a dump to a page server** see the private directory: empty at first, never with images of the set.
//!   What they leave there before the set is sealed goes along; at `post-dump` it is too late for that.
//!
//! A godwit that is killed leaves the private directory behind, as `godwit-images-*` among the temporary files. It holds a
//! lock on it as long as it lives, so that the next one that makes such a directory, or `godwit doctor --sweep`, knows what
//! nobody uses, and removes it.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use godwit_page_server::store::rules::is_image_of_dump;
use godwit_wire::image::ImageKind;
use godwit_wire::session::IMAGE_LEN_MAX;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;
use tempfile::TempDir;

use crate::error::DumpError;
use crate::options::{Destination, Options};

/// The directories of one dump; none where there are neither scripts nor plugins.
#[derive(Debug, Default)]
pub struct ImageDir {
    shown: Option<File>,
    private: Option<Private>,
}

#[derive(Debug)]
struct Private {
    /// Locked: in use.
    handle: Flock<File>,
    dir: TempDir,
}

/// Names of private directories begin with this.
const PREFIX: &str = "godwit-images-";
/// How often a private directory is made anew, since a sweep took it before it was locked.
const TRIES: u32 = 10;

impl ImageDir {
    /// Opens what the scripts and plugins of this dump will want. A local images directory is made, mode 0700, if it is
    /// missing.
    ///
    /// # Errors
    /// When a directory cannot be made or opened.
    pub fn open(options: &Options) -> Result<ImageDir, DumpError> {
        let has_scripts = !options.action_scripts.is_empty();
        let shown = match &options.destination {
            Destination::Local { images_dir, .. } if has_scripts => Some(made(images_dir)?),
            _ => None,
        };
        let is_wanted = options.libdir.is_some() || (has_scripts && shown.is_none());
        if is_wanted {
            sweep().iter().for_each(|line| tracing::info!("{line}"));
        }
        let private = is_wanted.then(Private::make).transpose()?;
        Ok(ImageDir { shown, private })
    }

    /// Where scripts find it: a link in `/proc` that any process of ours, and root, can open as long as this value lives.
    pub fn for_scripts(&self) -> Option<PathBuf> {
        let handle = self.shown.as_ref().or(self.private.as_ref().map(|private| &*private.handle))?;
        Some(format!("/proc/{}/fd/{}", std::process::id(), handle.as_raw_fd()).into())
    }

    /// Where plugins write.
    pub fn for_plugins(&self) -> Option<BorrowedFd<'_>> {
        Some(self.private.as_ref()?.handle.as_fd())
    }

    /// Hands every file of the private directory over, in order of their names, one in memory at a time.
    ///
    /// # Errors
    /// For what cannot be an image: a directory, a link, a name that is none or that of an image of godwit's own, more
    /// than [`IMAGE_LEN_MAX`] bytes. What `put` errs with.
    pub fn hand_over(
        &self,
        mut put: impl FnMut((String, Bytes)) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        let Some(private) = &self.private else { return Ok(()) };
        let failed = |path: &Path, what| {
            let subject = path.display().to_string();
            move |source| DumpError::sys(subject, what, source)
        };
        let at = private.dir.path();
        let entries = fs::read_dir(at).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut paths: Vec<PathBuf> =
            entries.map_err(failed(at, "reading the directory"))?.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            let found = fs::symlink_metadata(&path).map_err(failed(&path, "lstat"))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let refuse = |why: &str| {
                Err(DumpError::Usage(format!(
                    "a plugin or an action script left {name:?} as an image, and {why}: let it write another file"
                )))
            };
            if !found.is_file() {
                return refuse("it is no regular file");
            }
            if !is_image_of_dump(&name) {
                return refuse(
                    "an image's name has only ASCII letters, digits, '.', '_' and '-', no dot first",
                );
            }
            if ImageKind::parse_name(&name).is_some() {
                return refuse("that is the name of an image of godwit's own");
            }
            if found.len() > IMAGE_LEN_MAX {
                return refuse(&format!("it is longer than {} MiB", IMAGE_LEN_MAX >> 20));
            }
            put((name, fs::read(&path).map_err(failed(&path, "reading it"))?.into()))?;
        }
        Ok(())
    }
}

impl Private {
    fn make() -> Result<Private, DumpError> {
        let at = std::env::temp_dir();
        let failed = |what| {
            let subject = format!("a private directory in {}", at.display());
            move |source| DumpError::sys(subject, what, source)
        };
        for _ in 0..TRIES {
            // Mode 0700: what a plugin writes is of the process that is dumped.
            let dir = tempfile::Builder::new().prefix(PREFIX).tempdir().map_err(failed("making it"))?;
            if let Some(handle) = lock(dir.path()) {
                return Ok(Private { handle, dir });
            }
        }
        Err(failed("locking it")(std::io::ErrorKind::WouldBlock.into()))
    }
}

/// Removes the private directories of godwits that were killed; a line for each.
pub fn sweep() -> Vec<String> {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    ours.filter_map(|entry| {
        let (path, own) = (entry.path(), nix::unistd::geteuid().as_raw());
        let is_ours = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == own);
        let _lock = is_ours.then(|| lock(&path)).flatten()?;
        Some(match fs::remove_dir_all(&path) {
            Ok(()) => format!("{}: left by a killed godwit, removed", path.display()),
            Err(error) => format!("{}: left by a killed godwit, cannot be removed: {error}", path.display()),
        })
    })
    .collect()
}

/// Locks a directory that is still there; `None` where somebody else has it.
fn lock(path: &Path) -> Option<Flock<File>> {
    let options = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = File::from(nix::fcntl::open(path, options, Mode::empty()).ok()?);
    let lock = Flock::lock(handle, FlockArg::LockExclusiveNonblock).ok()?;
    let (held, there) = (lock.metadata().ok()?, fs::symlink_metadata(path).ok()?);
    ((held.dev(), held.ino()) == (there.dev(), there.ino())).then_some(lock)
}

fn made(dir: &Path) -> Result<File, DumpError> {
    let failed =
        |what| move |source| DumpError::sys(format!("images directory {}", dir.display()), what, source);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("making it"))?;
    File::open(dir).map_err(failed("opening it"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn handed_over(dir: &ImageDir) -> Result<Vec<(String, Bytes)>, String> {
        let mut found = Vec::new();
        let done = dir.hand_over(|image| {
            found.push(image);
            Ok(())
        });
        done.map(|()| found).map_err(|error| error.to_string())
    }

    fn private() -> (ImageDir, PathBuf) {
        let private = Private::make().unwrap();
        let at = private.dir.path().to_owned();
        (ImageDir { shown: None, private: Some(private) }, at)
    }

    #[test]
    fn files_go_along_in_order_and_the_directory_goes_away() {
        let (dir, at) = private();
        let told = dir.for_scripts().unwrap();
        fs::write(told.join("plugin-2.img"), "two").unwrap();
        fs::write(told.join("plugin-1.img"), "one").unwrap();
        let expected = [("plugin-1.img", "one"), ("plugin-2.img", "two")];
        let expected = expected.map(|(name, text)| (name.to_owned(), Bytes::from(text)));
        assert_eq!(handed_over(&dir).unwrap(), expected);
        drop(dir);
        assert!(!at.exists());
        assert!(handed_over(&ImageDir::default()).unwrap().is_empty());
    }

    #[test]
    fn what_is_in_use_is_not_locked_twice() {
        let (dir, at) = private();
        assert!(lock(&at).is_none());
        drop(dir);
        assert!(lock(&at).is_none());
        let free = tempfile::tempdir().unwrap();
        assert!(lock(free.path()).is_some());
    }

    #[test]
    fn what_can_be_no_image_is_refused_by_name() {
        for (name, why) in [
            ("core-1.img", "of godwit's own"),
            ("pages-1.img", "has only ASCII"),
            (".hidden", "no dot first"),
            ("a b", "has only ASCII"),
        ] {
            let (dir, at) = private();
            fs::write(at.join(name), "").unwrap();
            let said = handed_over(&dir).unwrap_err();
            assert!(said.contains(why) && said.contains(name), "{said}");
        }
        let (dir, at) = private();
        std::os::unix::fs::symlink("/etc/passwd", at.join("link")).unwrap();
        assert!(handed_over(&dir).unwrap_err().contains("no regular file"));
        let (dir, at) = private();
        File::create(at.join("long")).unwrap().set_len(IMAGE_LEN_MAX + 1).unwrap();
        assert!(handed_over(&dir).unwrap_err().contains("longer than 256 MiB"));
    }
}
