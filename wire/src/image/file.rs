//! Records in an image file: magic words, then `u32` little-endian size and that many bytes, to the end of the
//! file. A few kinds have raw bytes behind some records.

use std::fmt;

use bytes::Bytes;
use prost::Message;

use super::check::{self, Checked, RecordFault};
use super::magic::{Header, IMG_COMMON_MAGIC, IMG_SERVICE_MAGIC, ImageKind};
use super::manifest::ManifestFault;
use crate::plan::PlanError;

/// Largest record in bytes, written or read: a `mm_entry` with 2^20 mappings has about as many.
pub const RECORD_SIZE_MAX: u32 = 64 << 20;

/// Builds an image file in memory.
#[derive(Debug)]
pub struct ImageWriter {
    kind: ImageKind,
    bytes: Vec<u8>,
    oversized: Option<ImageError>,
}

impl ImageWriter {
    /// Starts with the magic words of `kind`.
    pub fn new(kind: ImageKind) -> Self {
        let mut bytes = Vec::new();
        match kind.header() {
            Header::Raw => {}
            Header::Alone => bytes.extend(kind.magic().to_le_bytes()),
            Header::Common => {
                bytes.extend(IMG_COMMON_MAGIC.to_le_bytes());
                bytes.extend(kind.magic().to_le_bytes());
            }
            Header::Service => {
                bytes.extend(IMG_SERVICE_MAGIC.to_le_bytes());
                bytes.extend(kind.magic().to_le_bytes());
            }
        }
        ImageWriter { kind, bytes, oversized: None }
    }

    /// Appends a record. One larger than [`RECORD_SIZE_MAX`] makes [`ImageWriter::finish`] fail.
    pub fn push(&mut self, message: &impl Message) -> &mut Self {
        match u32::try_from(message.encoded_len()) {
            Ok(len) if len <= RECORD_SIZE_MAX => {
                self.bytes.reserve(4 + len as usize);
                self.bytes.extend(len.to_le_bytes());
                message.encode_raw(&mut self.bytes);
            }
            _ => {
                self.oversized.get_or_insert_with(|| ImageError {
                    image: self.kind.file_name(0),
                    offset: self.bytes.len() as u64,
                    fault: ImageFault::Oversized { size: message.encoded_len() as u64 },
                });
            }
        }
        self
    }

    /// Appends bytes that belong to the record before, or the contents of a raw file.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The bytes up to here.
    pub(super) fn so_far(&self) -> &[u8] {
        &self.bytes
    }

    /// The file. Errs if a record was larger than [`RECORD_SIZE_MAX`].
    pub fn finish(self) -> Result<Bytes, ImageError> {
        match self.oversized {
            Some(error) => Err(error),
            None => Ok(Bytes::from(self.bytes)),
        }
    }

    /// An image of a single record. Errs if it is larger than [`RECORD_SIZE_MAX`].
    pub fn single(kind: ImageKind, message: &impl Message) -> Result<Bytes, ImageError> {
        let mut writer = ImageWriter::new(kind);
        writer.push(message);
        writer.finish()
    }
}

/// Reads an image file held in memory; copies nothing before it is checked to be there.
#[derive(Debug, Clone)]
pub struct ImageReader<'a> {
    image: &'a str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> ImageReader<'a> {
    /// Checks the magic words of `kind`; `image` names the file in errors.
    pub fn new(kind: ImageKind, image: &'a str, bytes: &'a [u8]) -> Result<Self, ImageError> {
        let mut reader = ImageReader { image, bytes, offset: 0 };
        let leading = match kind.header() {
            Header::Raw => return Ok(reader),
            Header::Alone => None,
            Header::Common => Some(IMG_COMMON_MAGIC),
            Header::Service => Some(IMG_SERVICE_MAGIC),
        };
        for expected in leading.into_iter().chain([kind.magic()]) {
            let found = reader.word()?;
            if found != expected {
                reader.offset -= 4;
                return Err(reader.error(ImageFault::Magic { found, expected }));
            }
        }
        Ok(reader)
    }

    /// The next record, or `None` at the end of the file. Errs if it is cut, too large, malformed or lacks a
    /// required field; the reader then stays before the record.
    #[expect(clippy::should_implement_trait, reason = "each call says which message it expects")]
    pub fn next<M: Checked>(&mut self) -> Result<Option<M>, ImageError> {
        if self.is_at_end() {
            return Ok(None);
        }
        let start = self.offset;
        let record = self.record().and_then(|body| {
            let fault = |fault| ImageError { image: self.image.to_owned(), offset: start as u64, fault };
            check::check::<M>(body).map_err(|source| fault(ImageFault::Record(source)))?;
            M::decode(body).map_err(|source| fault(ImageFault::Decode(source)))
        });
        if record.is_err() {
            self.offset = start;
        }
        record.map(Some)
    }

    /// All records up to the end of the file.
    pub fn all<M: Checked>(mut self) -> Result<Vec<M>, ImageError> {
        let mut records = Vec::new();
        while let Some(record) = self.next()? {
            records.push(record);
        }
        Ok(records)
    }

    /// The only record of the file. Errs if there is none, or anything behind it.
    pub fn only<M: Checked>(mut self) -> Result<M, ImageError> {
        let record = self.next()?.ok_or_else(|| self.error(ImageFault::Empty))?;
        if self.is_at_end() { Ok(record) } else { Err(self.error(ImageFault::Trailing)) }
    }

    /// The next `len` bytes as they are. Errs if fewer are left.
    pub fn take_raw(&mut self, len: u64) -> Result<&'a [u8], ImageError> {
        let left = (self.bytes.len() - self.offset) as u64;
        if len > left {
            return Err(self.error(ImageFault::Cut { needed: len, left }));
        }
        // `len` is at most the length of a slice, so it fits.
        let end = self.offset + len as usize;
        let taken = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(taken)
    }

    /// Everything up to the end of the file.
    pub fn take_rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.offset..];
        self.offset = self.bytes.len();
        rest
    }

    /// Offset in the file of what is read next, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset as u64
    }

    /// Whether nothing is left.
    pub fn is_at_end(&self) -> bool {
        self.offset == self.bytes.len()
    }

    fn record(&mut self) -> Result<&'a [u8], ImageError> {
        let size = self.word()?;
        if size > RECORD_SIZE_MAX {
            self.offset -= 4;
            return Err(self.error(ImageFault::Oversized { size: u64::from(size) }));
        }
        self.take_raw(u64::from(size))
    }

    fn word(&mut self) -> Result<u32, ImageError> {
        let word = self.take_raw(4)?;
        Ok(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    }

    pub(super) fn error(&self, fault: ImageFault) -> ImageError {
        ImageError { image: self.image.to_owned(), offset: self.offset as u64, fault }
    }
}

/// An image file that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageError {
    /// Name of the image file.
    pub image: String,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub fault: ImageFault,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}, byte {}: {}", self.image, self.offset, self.fault)
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.fault.source()
    }
}

/// What is wrong with an image file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageFault {
    /// Another kind of file.
    #[error("magic word {found:#010x} instead of {expected:#010x}: another kind of file")]
    Magic {
        /// Word in the file.
        found: u32,
        /// Word of the kind.
        expected: u32,
    },
    /// The file ends too early.
    #[error("the file is cut: {needed} bytes needed, {left} left")]
    Cut {
        /// Bytes the file should have here.
        needed: u64,
        /// Bytes it has.
        left: u64,
    },
    /// A record is larger than [`RECORD_SIZE_MAX`].
    #[error("a record of {size} bytes is larger than {RECORD_SIZE_MAX} bytes")]
    Oversized {
        /// Size of the record in bytes.
        size: u64,
    },
    /// A record is not what the format says.
    #[error("{0}")]
    Record(RecordFault),
    /// A record is not a protobuf message of its type.
    #[error("a record cannot be decoded")]
    Decode(#[source] prost::DecodeError),
    /// A record is expected and there is none.
    #[error("no record in a file that must have one")]
    Empty,
    /// More than the one record expected.
    #[error("more than one record in a file that has one")]
    Trailing,
    /// A page list breaks a rule.
    #[error("{0}")]
    Pages(PlanError),
    /// A manifest breaks a rule.
    #[error("{0}")]
    Manifest(ManifestFault),
}
