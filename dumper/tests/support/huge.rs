//! Huge pages for a test: some reserved, and a mount of hugetlbfs, both given back at its end.

use super::scene::Scene;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::path::{Path, PathBuf};

/// Pages of 2 MiB that the kernel keeps aside (Documentation/admin-guide/mm/hugetlbpage.rst).
const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// What the victim takes, its copy, and what CRIU maps beside them.
pub const PAGES: u64 = 40;

/// Reserved pages and a mount.
pub struct HugePages {
    /// Where hugetlbfs is mounted.
    pub dir: PathBuf,
    _reserved: Reserved,
}

impl HugePages {
    pub fn new(scene: &Scene) -> Self {
        let reserved = Reserved::new(PAGES).unwrap();
        let dir = scene.subdir("huge");
        mount(Some("none"), &dir, Some("hugetlbfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self { dir, _reserved: reserved }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

/// Why no huge pages can be had, if so.
pub fn why_none() -> Option<String> {
    Reserved::new(PAGES).err()
}

/// Pages that are reserved, and given back.
pub struct Reserved(u64);

impl Reserved {
    pub fn new(pages: u64) -> Result<Self, String> {
        let before = reserved()?;
        set(before + pages)?;
        let this = Self(pages);
        let got = reserved()?.saturating_sub(before);
        if got < pages { Err(format!("the kernel gives {got} of {pages} huge pages")) } else { Ok(this) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // Pages that are in use yet are given back when they no longer are.
        let _ = reserved().and_then(|now| set(now.saturating_sub(self.0)));
    }
}

fn reserved() -> Result<u64, String> {
    let text =
        std::fs::read_to_string(Path::new(RESERVED)).map_err(|error| format!("{RESERVED}: {error}"))?;
    text.trim().parse().map_err(|error| format!("{RESERVED}: {error}"))
}

fn set(pages: u64) -> Result<(), String> {
    std::fs::write(RESERVED, pages.to_string()).map_err(|error| format!("{RESERVED}: {error}"))
}
