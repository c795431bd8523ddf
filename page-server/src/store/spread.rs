//! Pages that slots of several pages files hold: one run of bytes, put to each place.
//!
//! The bytes come once, with all places that they go to, and are at hand until the last of them is filled: so no place
//! waits for another, and there is nothing to be resolved later.

use std::sync::Arc;

use godwit_wire::frame::CopyTo;
use godwit_wire::plan::PAGE_SIZE;

use super::assembly::Arrival;
use super::sink::SinkError;
use super::staging::Staged;

impl Staged {
    /// Fills slots, and those that `copies` name, from memory. Where each goes is checked before any is filled; one that
    /// was filled before is noticed only when it is its turn, and ends the round as it does for other fills.
    pub(crate) fn put_spread(
        self: &Arc<Self>,
        pages_id: u32,
        first: u64,
        bytes: &[u8],
        copies: &[CopyTo],
    ) -> Result<(), SinkError> {
        let pages = bytes.len() as u64 / PAGE_SIZE;
        let own = (pages_id, first, bytes);
        let parts: Option<Vec<_>> = std::iter::once(Some(own))
            .chain(copies.iter().map(|copy| Some((copy.pages_id, copy.first_slot, part(bytes, copy)?))))
            .collect();
        let Some(parts) = parts.filter(|_| bytes.len() as u64 == pages * PAGE_SIZE) else {
            let why =
                format!("copies of other pages than the {pages} from slot {first} of pages-{pages_id}.img");
            return Err(self.refused(why));
        };
        for (pages_id, first, bytes) in &parts {
            self.check_slots(*pages_id, *first, bytes.len() as u64 / PAGE_SIZE)?;
        }
        for (pages_id, first, bytes) in parts {
            let [spare] = self.buffers()?;
            let mut write = |pages: &mut [u8]| {
                pages.copy_from_slice(bytes);
                Ok(Vec::new())
            };
            let pages = bytes.len() as u64 / PAGE_SIZE;
            self.put(pages_id, first, pages, Arrival::Written(spare, &mut write))?;
        }
        Ok(())
    }
}

/// The bytes of a copy, if they are some of these.
fn part<'b>(bytes: &'b [u8], copy: &CopyTo) -> Option<&'b [u8]> {
    let (begin, len) = (copy.at as usize * PAGE_SIZE as usize, copy.pages as usize * PAGE_SIZE as usize);
    bytes.get(begin..begin.checked_add(len)?)
}
