//! Page lanes: the join message and the frames, byte by byte (layout in PROTOCOL.md).

use bytes::BufMut;

use crate::codec::Reader;
use crate::copies::TABLE_LEN_MAX;
use crate::error::Malformed;
use crate::plan::{EXTENT_SLOTS, PAGE_SIZE};

pub use crate::copies::{COPIES_MAX, COUNT_LEN, CopyTo, copy_table};
pub use crate::payload::{Method, Packer, Payload, ShortHash, same_payload};

/// First four bytes of a lane: "GDWJ".
pub const JOIN_MAGIC: u32 = 0x4a57_4447;
/// First four bytes of a frame: "GDWF".
pub const FRAME_MAGIC: u32 = 0x4657_4447;
/// Version of the lane layout.
pub const LANE_VERSION: u16 = 1;
/// Length of the join message in bytes.
pub const JOIN_LEN: usize = 48;
/// Length of a frame header in bytes.
pub const HEADER_LEN: usize = 48;
/// Longest payload in bytes: one extent, raw. That of a SPREAD frame has its table besides.
pub const PAYLOAD_MAX: u32 = (EXTENT_SLOTS * PAGE_SIZE) as u32;
/// Length of the hash of a page in a SAME frame: the first bytes of its BLAKE3.
pub const SAME_HASH_LEN: usize = 16;
/// Length of a session secret in bytes.
pub const SECRET_LEN: usize = 16;

/// What a lane shows to join a session, made by the server for each session. `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; SECRET_LEN]);

impl Secret {
    /// Compares without saying by its duration where the first difference is.
    pub fn matches(&self, other: &[u8]) -> bool {
        other.len() == SECRET_LEN && self.0.iter().zip(other).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Number of a session, chosen at random by the server. Its text form (16 hex digits) names the journals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for SessionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(SessionId)
    }
}

/// First message of a lane: which session it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// The session.
    pub session_id: SessionId,
    /// Its secret.
    pub secret: Secret,
    /// Number of the lane within the session.
    pub lane: u32,
    /// Epoch at which the lane was opened.
    pub epoch: u32,
}

impl Join {
    /// The bytes.
    pub fn encode(&self) -> [u8; JOIN_LEN] {
        let mut bytes = [0; JOIN_LEN];
        let mut out = &mut bytes[..];
        out.put_u32_le(JOIN_MAGIC);
        out.put_u16_le(LANE_VERSION);
        out.put_u16_le(0);
        out.put_u64_le(self.session_id.0);
        out.put_slice(&self.secret.0);
        out.put_u32_le(self.lane);
        out.put_u32_le(self.epoch);
        out.put_u64_le(0);
        bytes
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`Malformed`] when they are too short or a fixed value is another one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        expect("lane magic", u64::from(reader.u32("lane magic")?), u64::from(JOIN_MAGIC))?;
        expect("lane version", u64::from(reader.u16("lane version")?), u64::from(LANE_VERSION))?;
        expect("lane reserved", u64::from(reader.u16("lane reserved")?), 0)?;
        let join = Join {
            session_id: SessionId(reader.u64("lane session")?),
            secret: Secret(reader.array("lane secret")?),
            lane: reader.u32("lane number")?,
            epoch: reader.u32("lane epoch")?,
        };
        expect("lane reserved", reader.u64("lane reserved")?, 0)?;
        Ok(join)
    }
}

macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $number:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)+ }

        impl $name {
            fn from_byte(byte: u8) -> Result<Self, Malformed> {
                match byte {
                    $($number => Ok($name::$variant),)+
                    other => Err(Malformed::Value { what: $what, value: u64::from(other) }),
                }
            }
        }
    };
}

byte_enum! {
    /// What a frame says about its slots.
    Kind, "frame kind" {
        /// Here are the bytes.
        Data = 0,
        /// The pages are zero.
        Zero = 1,
        /// The pages are those of the base round.
        Same = 2,
        /// What the pages differ in from those of the base round.
        Delta = 3,
        /// Here are the bytes, and which other slots of the round hold the same.
        Spread = 4,
    }
}

byte_enum! {
    /// How the pages of a DATA, DELTA or SPREAD frame are packed.
    Codec, "frame codec" {
        /// As they are.
        Raw = 0,
        /// One lz4 block.
        Lz4 = 1,
        /// One zstd frame.
        Zstd = 2,
    }
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Number of the round.
    pub round: u32,
    /// Epoch of the round's acceptance or of its last resend.
    pub epoch: u32,
    /// Number of the pages file.
    pub pages_id: u32,
    /// First slot, in pages of 4 KiB.
    pub first_slot: u64,
    /// Number of slots, 1 to 256, all in one extent.
    pub pages: u32,
    /// What the frame says.
    pub kind: Kind,
    /// How its payload is packed.
    pub codec: Codec,
    /// Length of the payload in bytes.
    pub length: u32,
    /// CRC-32 of the payload as sent.
    pub checksum: u32,
}

impl FrameHeader {
    /// The bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut out = &mut bytes[..];
        out.put_u32_le(FRAME_MAGIC);
        out.put_u32_le(self.round);
        out.put_u32_le(self.epoch);
        out.put_u32_le(self.pages_id);
        out.put_u64_le(self.first_slot);
        out.put_u32_le(self.pages);
        out.put_u8(self.kind as u8);
        out.put_u8(self.codec as u8);
        out.put_u16_le(0);
        out.put_u32_le(self.length);
        out.put_u32_le(self.checksum);
        out.put_u64_le(0);
        bytes
    }

    /// Reads the bytes and checks every bound, so that the payload may be read by its length.
    ///
    /// # Errors
    /// [`Malformed`] when they are too short, a fixed value is another one, the frame crosses an extent
    /// border, or its length does not fit its kind.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        expect("frame magic", u64::from(reader.u32("frame magic")?), u64::from(FRAME_MAGIC))?;
        let header = Self::fields(&mut reader)?;
        expect("frame reserved", reader.u64("frame reserved")?, 0)?;
        header.check()?;
        Ok(header)
    }

    fn fields(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let round = reader.u32("frame round")?;
        let epoch = reader.u32("frame epoch")?;
        let pages_id = reader.u32("frame pages id")?;
        let first_slot = reader.u64("frame first slot")?;
        let pages = reader.u32("frame pages")?;
        let kind = Kind::from_byte(reader.u8("frame kind")?)?;
        let codec = Codec::from_byte(reader.u8("frame codec")?)?;
        expect("frame reserved", u64::from(reader.u16("frame reserved")?), 0)?;
        let (length, checksum) = (reader.u32("frame length")?, reader.u32("frame checksum")?);
        Ok(FrameHeader { round, epoch, pages_id, first_slot, pages, kind, codec, length, checksum })
    }

    /// The header for this payload: codec, length and checksum filled in.
    ///
    /// # Errors
    /// [`Malformed`] when the payload does not fit what the header says.
    pub fn with_payload(self, codec: Codec, payload: &[u8]) -> Result<Self, Malformed> {
        self.with_parts(codec, &[payload])
    }

    /// As [`FrameHeader::with_payload`], for a payload that lies in several pieces.
    ///
    /// # Errors
    /// As there.
    pub fn with_parts(mut self, codec: Codec, parts: &[&[u8]]) -> Result<Self, Malformed> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        bound("length of the payload", length, u64::from(PAYLOAD_MAX) + TABLE_LEN_MAX)?;
        (self.codec, self.length, self.checksum) = (codec, length as u32, checksum(parts));
        self.check()?;
        Ok(self)
    }

    /// Whether the header keeps the bounds of the protocol.
    ///
    /// # Errors
    /// [`Malformed`] as [`FrameHeader::decode`].
    pub fn check(&self) -> Result<(), Malformed> {
        let pages = u64::from(self.pages);
        if pages == 0 {
            return Err(Malformed::Value { what: "frame pages", value: 0 });
        }
        bound("frame pages", pages, EXTENT_SLOTS)?;
        bound(
            "last slot of the frame within its extent",
            self.first_slot % EXTENT_SLOTS + pages,
            EXTENT_SLOTS,
        )?;
        bound("frame first slot", self.first_slot, u64::MAX - EXTENT_SLOTS)?;
        let length = u64::from(self.length);
        let hashes = pages * SAME_HASH_LEN as u64;
        match (self.kind, self.codec) {
            (Kind::Data, Codec::Raw) => expect("length of a raw frame", length, pages * PAGE_SIZE),
            (Kind::Data, Codec::Lz4 | Codec::Zstd) => {
                bound("length of a packed frame", length, pages * PAGE_SIZE - 1)
            }
            (Kind::Zero, Codec::Raw) => expect("length of a zero frame", length, 0),
            (Kind::Same, Codec::Raw) => expect("length of a same frame", length, hashes),
            (Kind::Delta, Codec::Lz4 | Codec::Zstd) if length <= hashes => {
                Err(Malformed::Value { what: "length of a delta frame", value: length })
            }
            (Kind::Delta, Codec::Lz4 | Codec::Zstd) => {
                bound("length of a delta frame", length, pages * PAGE_SIZE - 1)
            }
            (Kind::Zero | Kind::Same, codec) => {
                Err(Malformed::Value { what: "codec of a frame without pages", value: codec as u64 })
            }
            (Kind::Delta, Codec::Raw) => Err(Malformed::Value { what: "codec of a delta frame", value: 0 }),
            (Kind::Spread, _) => self.check_spread(),
        }
    }
}

/// CRC-32 of what lies in several pieces.
pub(crate) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

pub(crate) fn expect(what: &'static str, value: u64, expected: u64) -> Result<(), Malformed> {
    if value == expected { Ok(()) } else { Err(Malformed::Value { what, value }) }
}

pub(crate) fn bound(what: &'static str, value: u64, bound: u64) -> Result<(), Malformed> {
    if value <= bound { Ok(()) } else { Err(Malformed::Bound { what, value, bound }) }
}
