//! `godwit-manifest.img`: what a sealed directory must hold, as the source saw it.
//!
//! The file is a magic word and records framed like those of any image (`u32` size, then protobuf), so that no
//! list makes a record large:
//! ```text
//! magic "GDWT" | head | files … | extents … | end
//! ```
//! The head counts what follows, the end holds the BLAKE3-256 of every byte before it. `files` records hold up
//! to [`FILES_PER_RECORD`] digests, `extents` records up to [`EXTENTS_PER_RECORD`] hashes of one pages file.

use std::collections::HashSet;

use bytes::Bytes;

use super::check::schema;
use super::extent::{EXTENT_HASH_LEN, ExtentHash};
use super::file::{ImageError, ImageFault, ImageReader, ImageWriter};
use super::magic::ImageKind;
use crate::plan::{OWNERS_MAX, RoundKind, SLOTS_MAX, extent_count};

/// Digests in one `files` record.
pub const FILES_PER_RECORD: usize = 1024;
/// Hashes in one `extents` record.
pub const EXTENTS_PER_RECORD: usize = 1 << 15;
/// Files that a manifest may name, pages files apart: a handful for each task and one for each thread.
pub const FILES_MAX: usize = 1 << 22;
/// Restore options that a manifest may name.
pub const OPTIONS_MAX: usize = 64;
/// Length of a restore option in bytes.
pub const OPTION_LEN_MAX: usize = 4096;

/// BLAKE3-256 of some bytes.
pub type Hash = [u8; 32];

/// What a sealed directory must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the session; passes [`safe_image_name`].
    pub session: String,
    /// Number of the round, from 1.
    pub round: u32,
    /// The round it builds on.
    pub base_round: Option<u32>,
    /// Pre-dump round or final set.
    pub kind: RoundKind,
    /// Options that `criu restore` needs for these images (`--file-locks`, `--shell-job`, ...), in order. Whoever
    /// passes them on decides which it allows.
    pub restore_options: Vec<String>,
    /// Pid of the tree's root in its own pid namespace.
    pub root_pid: u32,
    /// When the freeze or the scan began, in microseconds since 1970 by the source's clock.
    pub dumped_at_us: u64,
    /// Version of the tool that dumped.
    pub tool_version: String,
    /// Every file but the pages files and the manifest itself.
    pub files: Vec<FileDigest>,
    /// Every pages file.
    pub pages: Vec<PagesDigest>,
}

/// Size and hash of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// File name; passes [`safe_image_name`].
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// BLAKE3-256 of the contents.
    pub blake3: Hash,
}

impl FileDigest {
    /// Digest of a file with these contents.
    pub fn of(name: &str, bytes: &[u8]) -> Self {
        FileDigest {
            name: name.to_owned(),
            size: bytes.len() as u64,
            blake3: *blake3::hash(bytes).as_bytes(),
        }
    }

    /// Whether `bytes` are the contents this digest was made of.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.size == bytes.len() as u64 && blake3::hash(bytes) == self.blake3
    }
}

/// Length and hashes of one pages file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesDigest {
    /// N of `pages-N.img`, at least 1.
    pub pages_id: u32,
    /// Length in pages.
    pub nr_pages: u64,
    /// XXH3-128 of each extent's final contents, zero pages included; the last extent may be shorter.
    pub extents: Vec<ExtentHash>,
}

/// Whether `name` may name a file in an image directory: 1 to 255 bytes of `A-Z a-z 0-9 . _ -`, not starting with
/// a dot. Such a name stays in its directory and never collides with a staging name.
pub fn safe_image_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

impl Manifest {
    /// The bytes of `godwit-manifest.img`. Errs if [`Manifest::validate`] does.
    pub fn encode(&self) -> Result<Bytes, ImageError> {
        self.validate().map_err(|fault| ImageError {
            image: ImageKind::Manifest.file_name(0),
            offset: 0,
            fault: ImageFault::Manifest(fault),
        })?;
        let mut writer = ImageWriter::new(ImageKind::Manifest);
        writer.push(&Record { head: Some(self.head()), ..Record::default() });
        for files in self.files.chunks(FILES_PER_RECORD) {
            let files = files.iter().map(FileRecord::from).collect();
            writer.push(&Record { files, ..Record::default() });
        }
        for pages in &self.pages {
            // A pages file without pages still has a record, which says that it is empty.
            let mut chunks = pages.extents.chunks(EXTENTS_PER_RECORD);
            let first = chunks.next().unwrap_or_default();
            for hashes in [first].into_iter().chain(chunks) {
                let extents = ExtentsRecord {
                    pages_id: pages.pages_id,
                    nr_pages: pages.nr_pages,
                    hashes: hashes.as_flattened().to_vec(),
                };
                writer.push(&Record { extents: Some(extents), ..Record::default() });
            }
        }
        let end = EndRecord { blake3: blake3::hash(writer.so_far()).as_bytes().to_vec() };
        writer.push(&Record { end: Some(end), ..Record::default() });
        writer.finish()
    }

    /// Reads `godwit-manifest.img`. Errs if it is cut, changed, or breaks a rule of [`Manifest::validate`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let name = ImageKind::Manifest.file_name(0);
        let mut reader = ImageReader::new(ImageKind::Manifest, &name, bytes)?;
        let mut parts = Parts::default();
        loop {
            let before = reader.clone();
            let at = |fault| before.error(ImageFault::Manifest(fault));
            let record = reader.next::<Record>()?.ok_or_else(|| at(ManifestFault::Unfinished))?;
            // Offsets are those of a slice, so they fit.
            if parts.take(record, &bytes[..before.offset() as usize]).map_err(at)? {
                break;
            }
        }
        if !reader.is_at_end() {
            return Err(reader.error(ImageFault::Trailing));
        }
        parts.finish().map_err(|fault| reader.error(ImageFault::Manifest(fault)))
    }

    /// Checks all members. Errs unless: names are safe, known to be neither a pages file, a manifest nor
    /// `parent`, and unique; round numbers, pid and pages ids are at least 1, the base round is older; each pages
    /// file has as many hashes as extents; options begin with `--` and hold no control character; and no
    /// list is longer than its bound.
    pub fn validate(&self) -> Result<(), ManifestFault> {
        let short = |text: &str, max| (1..=max).contains(&text.len()) && !text.chars().any(char::is_control);
        if !safe_image_name(&self.session) {
            return Err(ManifestFault::Name { name: self.session.clone() });
        }
        if self.round == 0 || self.base_round.is_some_and(|base| base == 0 || base >= self.round) {
            return Err(ManifestFault::Round { round: self.round, base_round: self.base_round });
        }
        if self.root_pid == 0 {
            return Err(ManifestFault::Value { what: "root pid" });
        }
        if !short(&self.tool_version, 64) {
            return Err(ManifestFault::Value { what: "tool version" });
        }
        let fit = |option: &String| option.starts_with("--") && short(option, OPTION_LEN_MAX);
        if self.restore_options.len() > OPTIONS_MAX || !self.restore_options.iter().all(fit) {
            return Err(ManifestFault::Value { what: "list of restore options" });
        }
        self.validate_files()?;
        self.validate_pages()
    }

    fn validate_files(&self) -> Result<(), ManifestFault> {
        if self.files.len() > FILES_MAX {
            return Err(ManifestFault::Value { what: "number of files" });
        }
        let mut names = HashSet::new();
        for FileDigest { name, .. } in &self.files {
            let kind = ImageKind::parse_name(name).map(|(kind, _)| kind);
            let reserved = matches!(kind, Some(ImageKind::Pages | ImageKind::Manifest)) || name == "parent";
            if reserved || !safe_image_name(name) {
                return Err(ManifestFault::Name { name: name.clone() });
            }
            if !names.insert(name.as_str()) {
                return Err(ManifestFault::Twice { name: name.clone() });
            }
        }
        Ok(())
    }

    fn validate_pages(&self) -> Result<(), ManifestFault> {
        if self.pages.len() > OWNERS_MAX {
            return Err(ManifestFault::Value { what: "number of pages files" });
        }
        let mut ids = HashSet::new();
        for pages in &self.pages {
            let PagesDigest { pages_id, nr_pages, .. } = *pages;
            if pages_id == 0 {
                return Err(ManifestFault::Value { what: "pages id" });
            }
            if !ids.insert(pages_id) {
                return Err(ManifestFault::Twice { name: ImageKind::Pages.file_name(u64::from(pages_id)) });
            }
            let extents = pages.extents.len() as u64;
            if nr_pages > SLOTS_MAX || extents != extent_count(nr_pages) {
                return Err(ManifestFault::Extents { pages_id, nr_pages, extents });
            }
        }
        Ok(())
    }

    fn head(&self) -> HeadRecord {
        HeadRecord {
            session: self.session.clone(),
            round: self.round,
            base_round: self.base_round,
            is_final: self.kind == RoundKind::Final,
            restore_options: self.restore_options.clone(),
            root_pid: self.root_pid,
            dumped_at_us: self.dumped_at_us,
            tool_version: self.tool_version.clone(),
            file_count: self.files.len() as u64,
            pages_count: self.pages.len() as u64,
        }
    }
}

/// A manifest while its records come in.
#[derive(Default)]
struct Parts {
    head: Option<HeadRecord>,
    files: Vec<FileDigest>,
    pages: Vec<PagesDigest>,
}

impl Parts {
    /// Takes the next record; `before` are all bytes in front of it. Whether it is the last.
    fn take(&mut self, record: Record, before: &[u8]) -> Result<bool, ManifestFault> {
        let Record { head, files, extents, end } = record;
        let members = [head.is_some(), !files.is_empty(), extents.is_some(), end.is_some()];
        let one = members.into_iter().filter(|is_there| *is_there).count() == 1;
        if !one || head.is_some() == self.head.is_some() || (!files.is_empty() && !self.pages.is_empty()) {
            return Err(ManifestFault::Order);
        }
        if head.is_some() {
            self.head = head;
        }
        for file in files {
            let blake3 = hash(&file.blake3)?;
            self.files.push(FileDigest { name: file.name, size: file.size, blake3 });
        }
        if let Some(extents) = extents {
            self.take_extents(extents)?;
        }
        let Some(end) = end else { return Ok(false) };
        if blake3::hash(before) == hash(&end.blake3)? { Ok(true) } else { Err(ManifestFault::Changed) }
    }

    fn take_extents(&mut self, record: ExtentsRecord) -> Result<(), ManifestFault> {
        let ExtentsRecord { pages_id, nr_pages, hashes } = record;
        let (hashes, rest) = hashes.as_chunks::<EXTENT_HASH_LEN>();
        if !rest.is_empty() {
            return Err(ManifestFault::Value { what: "length of a hash" });
        }
        match self.pages.last_mut() {
            Some(last) if last.pages_id == pages_id => {
                if last.nr_pages != nr_pages || hashes.is_empty() {
                    return Err(ManifestFault::Order);
                }
                last.extents.extend(hashes);
            }
            _ => self.pages.push(PagesDigest { pages_id, nr_pages, extents: hashes.to_vec() }),
        }
        Ok(())
    }

    fn finish(self) -> Result<Manifest, ManifestFault> {
        let Parts { head, files, pages } = self;
        let head = head.ok_or(ManifestFault::Order)?;
        if head.file_count != files.len() as u64 || head.pages_count != pages.len() as u64 {
            return Err(ManifestFault::Unfinished);
        }
        let manifest = Manifest {
            session: head.session,
            round: head.round,
            base_round: head.base_round,
            kind: if head.is_final { RoundKind::Final } else { RoundKind::Round },
            restore_options: head.restore_options,
            root_pid: head.root_pid,
            dumped_at_us: head.dumped_at_us,
            tool_version: head.tool_version,
            files,
            pages,
        };
        manifest.validate()?;
        Ok(manifest)
    }
}

fn hash(bytes: &[u8]) -> Result<Hash, ManifestFault> {
    bytes.try_into().map_err(|_| ManifestFault::Value { what: "length of a hash" })
}

/// A rule that a manifest breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    /// A session or file name that may not stand in a manifest.
    #[error("the name {name:?} is not allowed")]
    Name {
        /// The name.
        name: String,
    },
    /// A file is named twice.
    #[error("{name} is named twice")]
    Twice {
        /// The file.
        name: String,
    },
    /// Round numbers start at 1 and only an older round can be built on.
    #[error("round {round} cannot build on round {base_round:?}")]
    Round {
        /// Number of the round.
        round: u32,
        /// The round it builds on.
        base_round: Option<u32>,
    },
    /// Pages and hashes of a pages file do not fit together.
    #[error("pages-{pages_id}.img of {nr_pages} pages cannot have {extents} extents")]
    Extents {
        /// N of `pages-N.img`.
        pages_id: u32,
        /// Its length in pages.
        nr_pages: u64,
        /// Its hashes.
        extents: u64,
    },
    /// A value out of its range.
    #[error("the {what} is out of range")]
    Value {
        /// What it is.
        what: &'static str,
    },
    /// A record where it may not stand.
    #[error("a record is out of order")]
    Order,
    /// Records are missing.
    #[error("records are missing: the manifest was not written to its end")]
    Unfinished,
    /// The hash at the end is that of other bytes.
    #[error("the bytes are not those that were written")]
    Changed,
}

/// One record: exactly one kind of member is set.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(message, optional, tag = "1")]
    head: Option<HeadRecord>,
    #[prost(message, repeated, tag = "2")]
    files: Vec<FileRecord>,
    #[prost(message, optional, tag = "3")]
    extents: Option<ExtentsRecord>,
    #[prost(message, optional, tag = "4")]
    end: Option<EndRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeadRecord {
    #[prost(string, required, tag = "1")]
    session: String,
    #[prost(uint32, required, tag = "2")]
    round: u32,
    #[prost(uint32, optional, tag = "3")]
    base_round: Option<u32>,
    #[prost(bool, required, tag = "4")]
    is_final: bool,
    #[prost(string, repeated, tag = "5")]
    restore_options: Vec<String>,
    #[prost(uint32, required, tag = "6")]
    root_pid: u32,
    #[prost(uint64, required, tag = "7")]
    dumped_at_us: u64,
    #[prost(string, required, tag = "8")]
    tool_version: String,
    #[prost(uint64, required, tag = "9")]
    file_count: u64,
    #[prost(uint64, required, tag = "10")]
    pages_count: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FileRecord {
    #[prost(string, required, tag = "1")]
    name: String,
    #[prost(uint64, required, tag = "2")]
    size: u64,
    #[prost(bytes = "vec", required, tag = "3")]
    blake3: Vec<u8>,
}

impl From<&FileDigest> for FileRecord {
    fn from(file: &FileDigest) -> Self {
        FileRecord { name: file.name.clone(), size: file.size, blake3: file.blake3.to_vec() }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExtentsRecord {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
    #[prost(uint64, required, tag = "2")]
    nr_pages: u64,
    #[prost(bytes = "vec", required, tag = "4")]
    hashes: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EndRecord {
    #[prost(bytes = "vec", required, tag = "1")]
    blake3: Vec<u8>,
}

schema!(
    Record,
    "manifest_record",
    [],
    [(1, HeadRecord), (2, FileRecord), (3, ExtentsRecord), (4, EndRecord)]
);
schema!(
    HeadRecord,
    "manifest_head",
    [
        (1, "session"),
        (2, "round"),
        (4, "is_final"),
        (6, "root_pid"),
        (7, "dumped_at_us"),
        (8, "tool_version"),
        (9, "file_count"),
        (10, "pages_count")
    ],
    []
);
schema!(FileRecord, "manifest_file", [(1, "name"), (2, "size"), (3, "blake3")], []);
schema!(ExtentsRecord, "manifest_extents", [(1, "pages_id"), (2, "nr_pages"), (4, "hashes")], []);
schema!(EndRecord, "manifest_end", [(1, "blake3")], []);
