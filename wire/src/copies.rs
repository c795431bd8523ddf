//! The table of a SPREAD frame: which other slots of the round hold some of its pages too.

use bytes::BufMut;

use crate::codec::Reader;
use crate::error::Malformed;
use crate::frame::{Codec, FrameHeader, Kind, bound};
use crate::plan::{EXTENT_SLOTS, PAGE_SIZE};

/// Entries of one table: a page of each of so many processes, or runs of them.
pub const COPIES_MAX: usize = 4096;
/// Length of the count before the entries, in bytes.
pub const COUNT_LEN: usize = 4;
/// Length of an entry in bytes.
const ENTRY_LEN: usize = 16;
/// Longest table in bytes.
pub const TABLE_LEN_MAX: u64 = (COUNT_LEN + COPIES_MAX * ENTRY_LEN) as u64;

/// Further slots that some consecutive pages of a frame fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyTo {
    /// First of the pages, counted from the first of the frame.
    pub at: u32,
    /// Number of pages, at least 1.
    pub pages: u32,
    /// Number of the pages file that holds them too.
    pub pages_id: u32,
    /// First slot there; all of them lie in one extent.
    pub first_slot: u64,
}

/// The bytes of a table, count and entries: what a SPREAD frame's payload begins with.
///
/// # Errors
/// [`Malformed`] for none or more than [`COPIES_MAX`], or pages that no frame can have.
pub fn copy_table(copies: &[CopyTo]) -> Result<Vec<u8>, Malformed> {
    check_count(copies.len() as u64)?;
    let mut table = Vec::with_capacity(COUNT_LEN + copies.len() * ENTRY_LEN);
    table.put_u32_le(copies.len() as u32);
    for copy in copies {
        copy.check(EXTENT_SLOTS)?;
        table.put_u16_le(copy.at as u16);
        table.put_u16_le(copy.pages as u16);
        table.put_u32_le(copy.pages_id);
        table.put_u64_le(copy.first_slot);
    }
    Ok(table)
}

impl CopyTo {
    /// Whether the pages are some of a frame of so many, and their slots those of one extent.
    fn check(&self, frame_pages: u64) -> Result<(), Malformed> {
        let pages = u64::from(self.pages);
        if pages == 0 {
            return Err(Malformed::Value { what: "pages of a copy", value: 0 });
        }
        bound("last page of a copy within its frame", u64::from(self.at) + pages, frame_pages)?;
        let within = self.first_slot % EXTENT_SLOTS + pages;
        bound("last slot of a copy within its extent", within, EXTENT_SLOTS)?;
        bound("first slot of a copy", self.first_slot, u64::MAX - EXTENT_SLOTS)
    }
}

impl FrameHeader {
    /// Length of a SPREAD frame's table, the count included, by the count that it begins with. What the payload holds
    /// behind it is not empty, and no longer than the pages.
    ///
    /// # Errors
    /// [`Malformed`] for a frame of another kind, a count of 0 or above [`COPIES_MAX`], and one that does not fit the
    /// length of the payload.
    pub fn table_len(&self, count: [u8; COUNT_LEN]) -> Result<usize, Malformed> {
        if self.kind != Kind::Spread {
            return Err(Malformed::Value { what: "kind of a frame with copies", value: self.kind as u64 });
        }
        let count = u32::from_le_bytes(count);
        check_count(u64::from(count))?;
        let table_len = COUNT_LEN + count as usize * ENTRY_LEN;
        let misfit =
            Malformed::Value { what: "number of copies for the length of the frame", value: count.into() };
        let packed = (self.length as usize).checked_sub(table_len).ok_or(misfit.clone())? as u64;
        let pages = u64::from(self.pages) * PAGE_SIZE;
        let fits = match self.codec {
            Codec::Raw => packed == pages,
            Codec::Lz4 | Codec::Zstd => (1..pages).contains(&packed),
        };
        if fits { Ok(table_len) } else { Err(misfit) }
    }

    /// The entries of a SPREAD frame's table, as long as [`FrameHeader::table_len`] says. Whether the slots are there,
    /// and still to be filled, is the store's to say.
    ///
    /// # Errors
    /// [`Malformed`] for pages that the frame has not, slots across the border of an extent, and a table that is too
    /// short.
    pub fn copies(&self, table: &[u8]) -> Result<Vec<CopyTo>, Malformed> {
        let mut reader = Reader::new(table);
        let count = reader.u32("number of copies")?;
        check_count(u64::from(count))?;
        // What is allocated is bounded by what has arrived.
        let mut copies = Vec::with_capacity((table.len() / ENTRY_LEN).min(count as usize));
        for _ in 0..count {
            let copy = CopyTo {
                at: reader.u16("first page of a copy")?.into(),
                pages: reader.u16("pages of a copy")?.into(),
                pages_id: reader.u32("pages id of a copy")?,
                first_slot: reader.u64("first slot of a copy")?,
            };
            copy.check(u64::from(self.pages))?;
            copies.push(copy);
        }
        Ok(copies)
    }

    /// The table and the packed pages of a SPREAD frame.
    ///
    /// # Errors
    /// [`Malformed`] as [`FrameHeader::table_len`].
    pub(crate) fn spread_parts<'p>(&self, payload: &'p [u8]) -> Result<(&'p [u8], &'p [u8]), Malformed> {
        let short = Malformed::Value { what: "length of a spread frame", value: payload.len() as u64 };
        let count = payload.first_chunk().ok_or(short.clone())?;
        payload.split_at_checked(self.table_len(*count)?).ok_or(short)
    }

    /// Whether the length of a SPREAD frame can be that of a table and its pages.
    pub(crate) fn check_spread(&self) -> Result<(), Malformed> {
        let (length, pages) = (u64::from(self.length), u64::from(self.pages) * PAGE_SIZE);
        let what = "length of a spread frame";
        let shortest = (COUNT_LEN + ENTRY_LEN) as u64;
        let (least, most) = match self.codec {
            Codec::Raw => (shortest + pages, TABLE_LEN_MAX + pages),
            Codec::Lz4 | Codec::Zstd => (shortest + 1, TABLE_LEN_MAX + pages - 1),
        };
        // Whole pages are whole entries too.
        let is_cut = self.codec == Codec::Raw && length % ENTRY_LEN as u64 != COUNT_LEN as u64;
        if length < least || is_cut {
            return Err(Malformed::Value { what, value: length });
        }
        bound(what, length, most)
    }
}

fn check_count(count: u64) -> Result<(), Malformed> {
    if count == 0 {
        return Err(Malformed::Value { what: "number of copies", value: 0 });
    }
    bound("number of copies", count, COPIES_MAX as u64)
}
