//! What the payload of a frame holds, and how it is packed and unpacked.

use std::cell::RefCell;

use bytes::Bytes;
use zstd::zstd_safe::CParameter;

use crate::codec::{Reader, Truncated};
use crate::copies::CopyTo;
use crate::error::Malformed;
use crate::frame::{Codec, FrameHeader, Kind, SAME_HASH_LEN, checksum, expect};
use crate::plan::{EXTENT_SLOTS, PAGE_SIZE};

/// The first bytes of a page's BLAKE3, as SAME and DELTA frames carry them.
pub type ShortHash = [u8; SAME_HASH_LEN];

/// An unpacked payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The bytes of the pages.
    Data(Bytes),
    /// Pages of zeros.
    Zero,
    /// The hash of each page.
    Same(Vec<ShortHash>),
    /// The pages, combined by exclusive or with those of the base round.
    Delta {
        /// The hash of each page of the base round.
        bases: Vec<ShortHash>,
        /// What the pages differ in.
        difference: Bytes,
    },
    /// The bytes of the pages, and which other slots hold some of them too.
    Spread {
        /// The bytes.
        pages: Bytes,
        /// The other slots.
        copies: Vec<CopyTo>,
    },
}

impl FrameHeader {
    /// Whether the payload holds pages, or what they differ in, that unpacking writes elsewhere.
    pub fn is_packed(&self) -> bool {
        self.codec != Codec::Raw
    }

    /// Checks the payload against the header.
    ///
    /// # Errors
    /// [`Malformed`] when its length or its checksum differs.
    pub fn verify(&self, payload: &[u8]) -> Result<(), Malformed> {
        self.verify_parts(&[payload])
    }

    /// As [`FrameHeader::verify`], for a payload that lies in several pieces.
    ///
    /// # Errors
    /// As there.
    pub fn verify_parts(&self, parts: &[&[u8]]) -> Result<(), Malformed> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        expect("length of the payload", length, u64::from(self.length))?;
        let found = checksum(parts);
        if found == self.checksum {
            return Ok(());
        }
        let (pages_id, first_slot) = (self.pages_id, self.first_slot);
        Err(Malformed::Checksum { pages_id, first_slot, found, header: self.checksum })
    }

    /// Unpacks the pages of a DATA or SPREAD frame, or what those of a DELTA frame differ in, into `pages`, which is as long as
    /// all of them. The payload was verified. What `pages` holds after an error is no page.
    ///
    /// # Errors
    /// [`Malformed`] when the payload does not unpack to exactly the pages, or `pages` has another length.
    pub fn unpack_into(&self, payload: &[u8], pages: &mut [u8]) -> Result<(), Malformed> {
        let packed = match self.kind {
            Kind::Data => payload,
            Kind::Delta => self.delta_parts(payload)?.1,
            Kind::Spread => self.spread_parts(payload)?.1,
            kind => return Err(Malformed::Value { what: "kind of a frame with pages", value: kind as u64 }),
        };
        self.unpack_pages(packed, pages)
    }

    /// As [`FrameHeader::unpack_into`], for the part of a payload that is the packed pages.
    ///
    /// # Errors
    /// As there.
    pub fn unpack_pages(&self, packed: &[u8], pages: &mut [u8]) -> Result<(), Malformed> {
        expect("room for the pages", pages.len() as u64, self.pages_len() as u64)?;
        if self.codec != Codec::Raw {
            return self.decompress(packed, pages);
        }
        expect("length of raw pages", packed.len() as u64, pages.len() as u64)?;
        pages.copy_from_slice(packed);
        Ok(())
    }

    /// The hash of each page of a SAME frame, or of the base of each page of a DELTA frame.
    ///
    /// # Errors
    /// [`Malformed`] when the payload is too short.
    pub fn same_hashes(&self, payload: &[u8]) -> Result<Vec<ShortHash>, Malformed> {
        let mut reader = Reader::new(payload);
        let hashes: Result<_, Truncated> = (0..self.pages).map(|_| reader.array("hash of a page")).collect();
        Ok(hashes?)
    }

    /// Checks the payload and unpacks it into memory of its own where it is packed.
    ///
    /// # Errors
    /// [`Malformed`] as [`FrameHeader::verify`] and [`FrameHeader::unpack_into`].
    pub fn unpack(&self, payload: Bytes) -> Result<Payload, Malformed> {
        self.verify(&payload)?;
        let unpacked = || {
            let mut pages = vec![0; self.pages_len()];
            self.unpack_into(&payload, &mut pages).map(|()| Bytes::from(pages))
        };
        Ok(match (self.kind, self.codec) {
            (Kind::Zero, _) => Payload::Zero,
            (Kind::Same, _) => Payload::Same(self.same_hashes(&payload)?),
            (Kind::Data, Codec::Raw) => Payload::Data(payload),
            (Kind::Data, _) => Payload::Data(unpacked()?),
            (Kind::Delta, _) => {
                Payload::Delta { bases: self.same_hashes(&payload)?, difference: unpacked()? }
            }
            (Kind::Spread, _) => {
                let copies = self.copies(self.spread_parts(&payload)?.0)?;
                Payload::Spread { pages: unpacked()?, copies }
            }
        })
    }

    fn pages_len(&self) -> usize {
        // Decoded headers have at most an extent; this keeps it so for those that were made otherwise.
        u64::from(self.pages).min(EXTENT_SLOTS) as usize * PAGE_SIZE as usize
    }

    fn delta_parts<'p>(&self, payload: &'p [u8]) -> Result<(&'p [u8], &'p [u8]), Malformed> {
        let bases = self.pages as usize * SAME_HASH_LEN;
        let value = payload.len() as u64;
        payload.split_at_checked(bases).ok_or(Malformed::Value { what: "length of a delta frame", value })
    }

    fn decompress(&self, block: &[u8], pages: &mut [u8]) -> Result<(), Malformed> {
        let broken = |why: String| Malformed::Packed {
            pages_id: self.pages_id,
            first_slot: self.first_slot,
            codec: self.codec,
            why,
        };
        let length = match self.codec {
            Codec::Raw => return Err(broken("it is not packed".to_owned())),
            Codec::Lz4 => {
                lz4_flex::block::decompress_into(block, pages).map_err(|why| broken(why.to_string()))?
            }
            Codec::Zstd => unzstd(block, pages).map_err(|why| broken(why.to_string()))?,
        };
        if length == pages.len() {
            return Ok(());
        }
        Err(broken(format!("it gives {length} bytes instead of {}", pages.len())))
    }
}

/// Decompresses into memory of a fixed length: one call decodes straight into it, so a window that a frame claims to
/// need is never allocated.
fn unzstd(block: &[u8], pages: &mut [u8]) -> std::io::Result<usize> {
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(zstd::bulk::Decompressor::new()?),
        };
        context.decompress_to_buffer(block, pages)
    })
}

/// The payload of a SAME frame.
pub fn same_payload(hashes: &[ShortHash]) -> Bytes {
    Bytes::from(hashes.concat())
}

/// How pages are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One lz4 block.
    Lz4,
    /// One zstd frame of this level, within [`Method::LEVEL_MIN`] to [`Method::LEVEL_MAX`].
    Zstd(i32),
}

impl Method {
    /// Fastest level of zstd that can be asked for.
    pub const LEVEL_MIN: i32 = -7;
    /// Slowest level of zstd that can be asked for: those above need much memory on both sides.
    pub const LEVEL_MAX: i32 = 19;

    /// What the frame says of it.
    pub fn codec(self) -> Codec {
        match self {
            Method::Lz4 => Codec::Lz4,
            Method::Zstd(_) => Codec::Zstd,
        }
    }
}

/// Bytes that are tried before a whole block is packed.
const PROBE_LEN: usize = PAGE_SIZE as usize;
/// Pages of a block that are tried before it is packed, apart from each other: 1 % of an extent.
const PROBES: usize = 3;
/// A packed block is worth it when it is smaller than this many 256ths of itself: unpacking costs too.
const WORTH_256THS: usize = 230;
/// Blocks of up to this many bytes are nearly as dear to try as to pack.
const SHORT_LEN: usize = PROBES * PROBE_LEN;
/// Short blocks in a row that did not shrink, after which most are not tried.
const SHORT_MISSES: u32 = 8;
/// Of those, one in so many is tried.
const SHORT_TRIED: u32 = 8;

/// Packs blocks of at most an extent. Each thread has its own.
pub struct Packer {
    probe: Vec<u8>,
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    misses: u32,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("misses", &self.misses).finish_non_exhaustive()
    }
}

impl Default for Packer {
    fn default() -> Self {
        Packer { probe: vec![0; Self::room_for(PROBE_LEN)], zstd: None, misses: 0 }
    }
}

impl Packer {
    /// Room that packing a block of this many bytes may need, whatever it holds.
    pub fn room_for(block: usize) -> usize {
        lz4_flex::block::get_maximum_output_size(block).max(zstd::zstd_safe::compress_bound(block))
    }

    /// Packs a block into `room`, which is at least [`Packer::room_for`] it, if that makes it clearly smaller; returns
    /// how long it is then. Where a few pages of it do not shrink, it is not tried.
    pub fn pack(&mut self, method: Method, block: &[u8], room: &mut [u8]) -> Option<usize> {
        if !self.is_promising(block) {
            return None;
        }
        let packed = self.pack_any(method, block, room).filter(|packed| shrank(block.len(), *packed));
        if block.len() <= SHORT_LEN {
            self.misses = if packed.is_some() { 0 } else { self.misses.wrapping_add(1).max(1) };
        }
        packed
    }

    /// Packs a block into `room` whether that makes it smaller or not; otherwise as [`Packer::pack`].
    pub fn pack_any(&mut self, method: Method, block: &[u8], room: &mut [u8]) -> Option<usize> {
        match method {
            Method::Lz4 => lz4_flex::block::compress_into(block, room).ok(),
            Method::Zstd(level) => {
                let context = match &mut self.zstd {
                    Some((of, context)) if *of == level => context,
                    other => &mut other.insert((level, zstd_of(level).ok()?)).1,
                };
                context.compress_to_buffer(block, room).ok()
            }
        }
    }

    fn is_promising(&mut self, block: &[u8]) -> bool {
        if block.len() <= SHORT_LEN {
            let is_tried = self.misses < SHORT_MISSES || self.misses.is_multiple_of(SHORT_TRIED);
            self.misses += u32::from(!is_tried);
            return is_tried;
        }
        let pages = block.len() / PROBE_LEN;
        (0..PROBES).any(|probe| {
            let at = (pages * probe / PROBES) * PROBE_LEN;
            let packed = lz4_flex::block::compress_into(&block[at..at + PROBE_LEN], &mut self.probe);
            packed.is_ok_and(|packed| shrank(PROBE_LEN, packed))
        })
    }
}

/// Level 1 is made for input of any length; extents are at most 1 MiB and full of pointers: matches of five bytes on,
/// found by a table that stays in the first cache, leave 2 to 6 % less of heaps in the same time.
fn zstd_of(level: i32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut context = zstd::bulk::Compressor::new(level)?;
    if level == 1 {
        context.set_parameter(CParameter::MinMatch(5))?;
        context.set_parameter(CParameter::HashLog(13))?;
    }
    Ok(context)
}

fn shrank(raw: usize, packed: usize) -> bool {
    packed * 256 <= raw * WORTH_256THS
}
