//! What a restore must know of the images before criu reads them.

use std::io;
use std::path::Path;
use std::time::Duration;

use godwit_wire::image::ImageKind;
use godwit_wire::image::manifest::Manifest;

use super::process::is_taken;
use crate::store::{INVENTORY_NAME, MANIFEST_NAME};

/// Options that images may ask of `criu restore`. They come from the peer: anything that names a file, a command or a
/// namespace of this host is not among them.
const OPTIONS_ALLOWED: [&str; 9] = [
    "--file-locks",
    "--shell-job",
    "--tcp-established",
    "--tcp-close",
    "--ext-unix-sk",
    "--link-remap",
    "--skip-in-flight",
    "--allow-uprobes",
    "--unprivileged",
];

/// Time for a restore of any size, and what each MiB of images adds: a tenth of the slowest rate seen, 1.1 GB/s.
const LIMIT_FLOOR: Duration = Duration::from_secs(60);
const LIMIT_A_MIB: Duration = Duration::from_millis(10);

/// Options that the images need, checked; from the manifest, where there is one.
pub(super) fn restore_options(dir: &Path) -> io::Result<Vec<String>> {
    let manifest = match std::fs::read(dir.join(MANIFEST_NAME)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => Manifest::decode(&other?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?,
    };
    match manifest.restore_options.iter().find(|option| !OPTIONS_ALLOWED.contains(&option.as_str())) {
        Some(option) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the images ask for the option {option:?}, which a peer may not set: restore them by hand"
            ),
        )),
        None => Ok(manifest.restore_options),
    }
}

/// Ids of all tasks and threads in the images, by the names of their core images.
pub(super) fn task_ids(dir: &Path) -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some((ImageKind::Core, id)) = name.to_str().and_then(ImageKind::parse_name) {
            ids.extend(u32::try_from(id));
        }
    }
    Ok(ids)
}

/// The first task or thread whose id is taken in this pid namespace.
pub(super) fn first_taken(dir: &Path) -> io::Result<Option<u32>> {
    Ok(task_ids(dir)?.into_iter().find(|id| is_taken(*id)))
}

/// How long a restore of these images, with the whole chain below, may take.
pub(super) fn time_limit(dir: &Path) -> io::Result<Duration> {
    if !dir.join(INVENTORY_NAME).is_file() {
        let text = format!("{} holds no {INVENTORY_NAME}: it is no whole set of images", dir.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut mib = 0;
    // Siblings of a session's final set are its rounds.
    for round in std::fs::read_dir(dir.parent().unwrap_or(dir))?.flatten() {
        for file in std::fs::read_dir(round.path()).into_iter().flatten().flatten() {
            mib += file.metadata().map_or(0, |meta| meta.len()) >> 20;
        }
    }
    Ok(LIMIT_FLOOR + LIMIT_A_MIB * u32::try_from(mib).unwrap_or(u32::MAX))
}
