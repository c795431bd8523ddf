//! Which pages an image directory holds, and where.
//!
//! Files: `pagemap-PID.img`, `pagemap-shmem-ID.img`. Field numbers and types are those of CRIU's
//! images/pagemap.proto.

use super::check::schema;

/// `pagemap_head` (images/pagemap.proto). First record of a pagemap.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PagemapHead {
    /// N of the `pages-N.img` beside it.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// `pagemap_entry` (images/pagemap.proto). A run of pages.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PagemapEntry {
    /// Address of the first page; an offset for shared memory.
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    /// Length in pages, as CRIU up to 4.1 reads it.
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    /// Old form of `PE_PARENT`; never written.
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// `PE_*` (criu/include/pagemap.h); absent means present.
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// Length in pages, as CRIU 4.2 reads it; absent means `compat_nr_pages`.
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}

schema!(PagemapHead, "pagemap_head", [(1, "pages_id")], []);

schema!(PagemapEntry, "pagemap_entry", [(1, "vaddr"), (2, "compat_nr_pages")], []);
