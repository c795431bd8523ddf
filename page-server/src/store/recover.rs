//! What a killed server left: staging directories go, sealed ones are looked at and never touched.

use std::path::{Path, PathBuf};

use godwit_wire::image::ImageKind;
use godwit_wire::image::manifest::Manifest;

use super::disk::{Disk, EntryKind, read_all, remove_flat_dir};
use super::rules::is_safe_session_name;
use super::{FINAL_NAME, INVENTORY_NAME, MANIFEST_LEN_MAX, MANIFEST_NAME, STAGING_PREFIX, StoreError};
use super::{round_name, round_number};

/// What was found when a store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Staging directories that were removed.
    pub removed: Vec<PathBuf>,
    /// Sealed directories that are not whole, and why; they are left as they are.
    pub broken: Vec<(PathBuf, String)>,
    /// Sealed directories that passed the light check: files there and as long as the manifest says.
    pub sealed: u64,
}

/// Clears a store's directory. The caller holds its lock.
///
/// # Errors
/// [`StoreError::Io`] if a directory cannot be read or a staging directory not be removed.
pub(crate) fn recover(disk: &dyn Disk) -> Result<Recovered, StoreError> {
    let io = |op, path: &Path, source| StoreError::Io { op, path: disk.shown(path), source };
    let list = |dir: &Path| disk.list(dir).map_err(|e| io("reading directory", dir, e));
    let mut found = Recovered::default();
    for session in list(Path::new(""))? {
        if session.kind != EntryKind::Dir || !is_safe_session_name(&session.name) {
            continue;
        }
        let session = PathBuf::from(session.name);
        for entry in list(&session)? {
            let dir = session.join(&entry.name);
            if entry.kind != EntryKind::Dir {
                continue;
            }
            if entry.name.starts_with(STAGING_PREFIX) {
                remove_flat_dir(disk, &dir).map_err(|e| io("removing", &dir, e))?;
                found.removed.push(disk.shown(&dir));
            } else if entry.name == FINAL_NAME || round_number(&entry.name).is_some() {
                match look_at(disk, &dir) {
                    Ok(()) => found.sealed += 1,
                    Err(why) => found.broken.push((disk.shown(&dir), why)),
                }
            }
        }
    }
    Ok(found)
}

/// Whether a sealed directory has all files at their length. Hashes are `inspect`'s matter: they cost a read of
/// all pages.
fn look_at(disk: &dyn Disk, dir: &Path) -> Result<(), String> {
    let len_of = |name: &str| {
        let len = disk.open(&dir.join(name)).and_then(|file| file.size());
        len.map_err(|e| format!("{name}: {e}"))
    };
    len_of(INVENTORY_NAME)?;
    let bytes = read_all(disk, &dir.join(MANIFEST_NAME), MANIFEST_LEN_MAX);
    let manifest = Manifest::decode(&bytes.map_err(|e| format!("{MANIFEST_NAME}: {e}"))?);
    let manifest = manifest.map_err(|e| e.to_string())?;
    let files = manifest.files.iter().map(|file| (file.name.clone(), file.size));
    let pages = manifest.pages.iter();
    // A manifest that decodes keeps its lengths below 2^63.
    let pages = pages.map(|p| (ImageKind::Pages.file_name(p.pages_id.into()), p.nr_pages * 4096));
    for (name, size) in files.chain(pages) {
        let len = len_of(&name)?;
        if len != size {
            return Err(format!("{name} is {len} bytes long instead of {size}"));
        }
    }
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name != FINAL_NAME && name != round_name(manifest.round) {
        return Err(format!("its manifest is of round {}", manifest.round));
    }
    Ok(())
}
