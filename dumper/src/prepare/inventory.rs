//! The inventory: what the directory is, whose ids it uses. It is the last image written.

use bytes::Bytes;

use godwit_wire::image::inventory::{InventoryEntry, Lsmtype};
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use crate::collect::ids;
use crate::error::DumpError;
use crate::prepare::plugins;
use crate::procfs::host;
use crate::task::threads::CG_SET;

/// Layout of the images: with the common magic word (`CRTOOLS_IMAGES_V1_1`).
const IMG_VERSION: u32 = 2;
/// What a round's inventory says instead, so that nothing takes it for complete.
const IMG_VERSION_ROUND: u32 = 0;
/// Pages were read by `process_vm_readv`, not spliced (`PRE_DUMP_READ`).
const PRE_DUMP_READ: u32 = 2;
/// `network_lock_method`: nothing was locked, so restore has nothing to unlock.
const NETWORK_LOCK_SKIP: u32 = 2;

/// What the inventory of the final set will say.
#[derive(Clone, Debug)]
pub struct Inventory {
    run_id: String,
}

impl Inventory {
    /// Prepares it; each dump has an id of its own. The plugins that it names are those that had said by its end that a
    /// restore needs them; an absent list would mean "all", so an empty one is written.
    ///
    /// # Errors
    /// When the kernel gives no random id.
    pub fn prepare() -> Result<Inventory, DumpError> {
        let path = "/proc/sys/kernel/random/uuid";
        let id =
            std::fs::read_to_string(path).map_err(|source| DumpError::sys(path, "reading it", source))?;
        Ok(Inventory { run_id: id.trim().to_owned() })
    }

    /// The inventory of a final set.
    ///
    /// # Errors
    /// Never for a record of this size; the signature is that of every image.
    pub fn complete(&self) -> Result<(String, Bytes), ImageError> {
        image(&InventoryEntry {
            img_version: IMG_VERSION,
            fdinfo_per_id: Some(true),
            root_ids: Some(ids::root()),
            ns_per_id: Some(true),
            root_cg_set: Some(CG_SET),
            lsmtype: Some(Lsmtype::NoLsm.into()),
            network_lock_method: Some(NETWORK_LOCK_SKIP),
            plugins_entry: Some(plugins::inventory()),
            dump_criu_run_id: Some(self.run_id.clone()),
            ..InventoryEntry::default()
        })
    }

    /// The inventory of a pre-dump round that ended just now.
    ///
    /// # Errors
    /// When the uptime cannot be read.
    pub fn round(&self) -> Result<(String, Bytes), DumpError> {
        Ok(image(&InventoryEntry {
            img_version: IMG_VERSION_ROUND,
            dump_uptime: Some(host::uptime_us()?),
            pre_dump_mode: Some(PRE_DUMP_READ),
            plugins_entry: Some(plugins::inventory()),
            ..InventoryEntry::default()
        })?)
    }
}

fn image(entry: &InventoryEntry) -> Result<(String, Bytes), ImageError> {
    Ok((ImageKind::Inventory.file_name(0), ImageWriter::single(ImageKind::Inventory, entry)?))
}
