//! What is done to every byte: encryption, hashes, checksums, compression. One thread each.

use std::io;

use godwit_wire::image::extent::extent_hash;
use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, Version};

use super::measured::{Clock, Measured};
use super::source;

/// Bytes that are encrypted in place, lap by lap.
const AEAD_AREA: usize = 64 << 20;
/// Length of an AEAD tag in bytes.
const TAG: usize = 16;
/// A QUIC header as it is authenticated with a packet: short form, eight bytes of connection id.
const HEADER: [u8; 13] = [0x41; 13];

/// Seals packets by AES-128-GCM as QUIC does, in place; `payload_len` bytes each.
///
/// # Errors
/// When rustls refuses.
pub fn aead_seal(bytes: u64, payload_len: usize) -> io::Result<Measured> {
    aead(bytes, payload_len, false)
}

/// Opens what [`aead_seal`] sealed.
///
/// # Errors
/// As [`aead_seal`].
pub fn aead_open(bytes: u64, payload_len: usize) -> io::Result<Measured> {
    aead(bytes, payload_len, true)
}

fn aead(bytes: u64, payload_len: usize, opens: bool) -> io::Result<Measured> {
    let (ours, theirs) = (keys(Side::Client)?, keys(Side::Server)?);
    let packet_len = payload_len + TAG;
    let mut area = source::cold()[..AEAD_AREA / packet_len * packet_len].to_vec();
    let per_lap = (area.len() / packet_len) as u64;
    let laps = bytes.div_ceil(per_lap * payload_len as u64);
    let mut total: Option<Measured> = None;
    for lap in 0..laps {
        let sealing = Clock::start()?;
        for (packet, number) in area.chunks_exact_mut(packet_len).zip(lap * per_lap..) {
            let (payload, tag) = packet.split_at_mut(payload_len);
            let made =
                ours.local.packet.encrypt_in_place(number, &HEADER, payload).map_err(io::Error::other)?;
            tag.copy_from_slice(made.as_ref());
        }
        let mut lap_took = sealing.stop(per_lap * payload_len as u64)?;
        if opens {
            let opening = Clock::start()?;
            for (packet, number) in area.chunks_exact_mut(packet_len).zip(lap * per_lap..) {
                theirs.remote.packet.decrypt_in_place(number, &HEADER, packet).map_err(io::Error::other)?;
            }
            lap_took = opening.stop(lap_took.bytes)?;
        }
        total = Some(total.map_or(lap_took, |total| Measured {
            bytes: total.bytes + lap_took.bytes,
            wall: total.wall + lap_took.wall,
            cpu: total.cpu + lap_took.cpu,
            far_cpu: None,
        }));
    }
    total.ok_or_else(|| io::Error::other("nothing to encrypt"))
}

/// Keys as QUIC derives them; both sides have the same secret.
fn keys(side: Side) -> io::Result<Keys> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
    let suite = suite.ok_or_else(|| io::Error::other("rustls has no QUIC keys for AES-128-GCM"))?;
    Ok(suite.keys(b"godwit/1", side, Version::V1))
}

/// BLAKE3 of blocks of 1 MiB.
///
/// # Errors
/// When the CPU time cannot be told.
pub fn blake3_blocks(bytes: u64) -> io::Result<Measured> {
    each_block(bytes, |block| {
        std::hint::black_box(blake3::hash(block));
    })
}

/// XXH3-128 of blocks of 1 MiB.
///
/// # Errors
/// When the CPU time cannot be told.
pub fn xxh3_blocks(bytes: u64) -> io::Result<Measured> {
    each_block(bytes, |block| {
        std::hint::black_box(extent_hash(block));
    })
}

/// CRC-32 of blocks of 1 MiB.
///
/// # Errors
/// When the CPU time cannot be told.
pub fn crc32_blocks(bytes: u64) -> io::Result<Measured> {
    each_block(bytes, |block| {
        std::hint::black_box(crc32fast::hash(block));
    })
}

fn each_block(bytes: u64, mut work: impl FnMut(&[u8])) -> io::Result<Measured> {
    let clock = Clock::start()?;
    source::pieces(bytes, 1 << 20).for_each(|block| work(&block));
    clock.stop(bytes)
}

/// How memory is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// lz4 blocks of 64 KiB.
    Lz4,
    /// zstd frames of 64 KiB at level -1.
    Zstd,
}

/// Length of a block that is packed, in bytes.
pub const PACKED_BLOCK: usize = 64 << 10;
/// The level of zstd that links below 1 Gbit/s are worth.
const ZSTD_LEVEL: i32 = -1;

/// Packs (or unpacks what was packed of) a sample of memory, block by block, over and over.
///
/// # Errors
/// When the codec fails.
pub fn pack(codec: Codec, unpacks: bool, bytes: u64, sample: &[u8]) -> io::Result<Measured> {
    if sample.is_empty() {
        return Err(io::Error::other("an empty sample"));
    }
    let mut packer = Packer::new(codec)?;
    let packed: Vec<Vec<u8>> = if unpacks {
        sample
            .chunks(PACKED_BLOCK)
            .map(|block| packer.pack(block).map(<[u8]>::to_vec))
            .collect::<io::Result<_>>()?
    } else {
        Vec::new()
    };
    let laps = bytes.div_ceil(sample.len() as u64);
    let clock = Clock::start()?;
    for _ in 0..laps {
        if unpacks {
            packed.iter().try_for_each(|block| packer.unpack(block))?;
        } else {
            sample.chunks(PACKED_BLOCK).try_for_each(|block| packer.pack(block).map(drop))?;
        }
    }
    clock.stop(laps * sample.len() as u64)
}

/// What is left of a sample after packing, as a share of it.
///
/// # Errors
/// When the codec fails.
pub fn packed_share(codec: Codec, sample: &[u8]) -> io::Result<f64> {
    let mut packer = Packer::new(codec)?;
    let mut packed = 0;
    for block in sample.chunks(PACKED_BLOCK) {
        packed += packer.pack(block)?.len();
    }
    Ok(packed as f64 / sample.len().max(1) as f64)
}

/// A codec with its buffers, which are made once.
struct Packer {
    codec: Codec,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    packed: Vec<u8>,
    unpacked: Vec<u8>,
}

impl Packer {
    fn new(codec: Codec) -> io::Result<Packer> {
        let room =
            lz4_flex::block::get_maximum_output_size(PACKED_BLOCK).max(PACKED_BLOCK + (PACKED_BLOCK >> 6));
        Ok(Packer {
            codec,
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            decompressor: zstd::bulk::Decompressor::new()?,
            packed: vec![0; room],
            unpacked: vec![0; PACKED_BLOCK],
        })
    }

    fn pack(&mut self, block: &[u8]) -> io::Result<&[u8]> {
        let len = match self.codec {
            Codec::Lz4 => {
                lz4_flex::block::compress_into(block, &mut self.packed).map_err(io::Error::other)?
            }
            Codec::Zstd => self.compressor.compress_to_buffer(block, &mut self.packed[..])?,
        };
        Ok(&self.packed[..len])
    }

    fn unpack(&mut self, block: &[u8]) -> io::Result<()> {
        match self.codec {
            Codec::Lz4 => {
                lz4_flex::block::decompress_into(block, &mut self.unpacked).map_err(io::Error::other)?;
            }
            Codec::Zstd => {
                self.decompressor.decompress_to_buffer(block, &mut self.unpacked[..])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Content, fill};

    #[test]
    fn packets_are_sealed_and_opened_at_every_size() {
        for payload_len in [1200, 8900, 65000] {
            assert!(aead_open(1, payload_len).unwrap().bytes >= payload_len as u64);
        }
    }

    #[test]
    fn packed_shares_follow_the_content() {
        let share = |content, codec| {
            let mut sample = vec![0; 1 << 20];
            fill(content, &mut sample);
            pack(codec, true, 1, &sample).unwrap();
            packed_share(codec, &sample).unwrap()
        };
        for codec in [Codec::Lz4, Codec::Zstd] {
            assert!(share(Content::Random, codec) > 0.99);
            assert!(share(Content::Text, codec) < 0.7);
            assert!((0.09..0.2).contains(&share(Content::ZeroHeavy, codec)));
        }
    }
}
