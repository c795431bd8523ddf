//! Which pages an image directory holds, and where.
//!
//! The bytes of a run lie in the pages file behind those of all present runs before it; there is no offset.
//!
//! Files: `pagemap-PID.img`, `pagemap-shmem-ID.img`. Field numbers and types are those of CRIU's
//! images/pagemap.proto.

use bytes::Bytes;

use super::check::schema;
use super::file::{ImageError, ImageFault, ImageReader, ImageWriter};
use super::magic::ImageKind;
use crate::plan::{
    PAGE_SIZE, PE_PARENT, PE_PRESENT, PageOwner, PageRun, PagesPlan, PlanError, RUNS_MAX, RunFault,
};

/// The pagemap image of `plan`: a head, then its runs. Both ends of a transfer make the same bytes.
///
/// CRIU up to 4.1 reads the length from one field, CRIU 4.2 from another: both are written, so runs longer than
/// 2^32-1 pages become several entries. Errs if the plan breaks a rule of [`PagesPlan::validate`].
pub fn encode(plan: &PagesPlan) -> Result<Bytes, PlanError> {
    plan.validate()?;
    let mut writer = ImageWriter::new(kind(plan.owner));
    writer.push(&PagemapHead { pages_id: plan.pages_id });
    for run in &plan.runs {
        let mut vaddr = run.vaddr;
        let mut left = run.nr_pages;
        while left > 0 {
            let count = u32::try_from(left).unwrap_or(u32::MAX);
            writer.push(&PagemapEntry {
                vaddr,
                compat_nr_pages: count,
                in_parent: None,
                flags: Some(run.flags),
                nr_pages: Some(u64::from(count)),
            });
            left -= u64::from(count);
            // A valid run ends below 2^63.
            vaddr += u64::from(count) * PAGE_SIZE;
        }
    }
    // Entries are a few dozen bytes, far below the bound on records.
    Ok(writer.finish().unwrap_or_default())
}

/// Reads the pagemap image of `owner`, whichever CRIU wrote it.
///
/// Errs on anything that [`PagesPlan::validate`] refuses, and on lengths that CRIU 4.1 and 4.2 would read
/// differently. Runs with [`crate::plan::PE_LAZY`] alone (pages that stay on the source) are passed on.
pub fn decode(owner: PageOwner, bytes: &[u8]) -> Result<PagesPlan, ImageError> {
    let name = owner.pagemap_name();
    let mut reader = ImageReader::new(kind(owner), &name, bytes)?;
    let head: PagemapHead = reader.next()?.ok_or_else(|| reader.error(ImageFault::Empty))?;
    let mut plan = PagesPlan { owner, pages_id: head.pages_id, runs: Vec::new() };
    loop {
        let start = reader.clone();
        let Some(entry) = reader.next::<PagemapEntry>()? else { break };
        let fault = |fault| {
            let vaddr = entry.vaddr;
            start.error(ImageFault::Pages(PlanError::Run { owner, vaddr, fault }))
        };
        let run = run(&entry).map_err(fault)?;
        if plan.runs.len() == RUNS_MAX {
            return Err(start.error(ImageFault::Pages(PlanError::TooManyRuns { count: RUNS_MAX + 1 })));
        }
        run.check(owner, plan.runs.last()).map_err(fault)?;
        plan.runs.push(run);
    }
    plan.validate_totals().map_err(|error| reader.error(ImageFault::Pages(error)))?;
    Ok(plan)
}

fn kind(owner: PageOwner) -> ImageKind {
    match owner {
        PageOwner::Task(_) => ImageKind::Pagemap,
        PageOwner::Shmem(_) => ImageKind::PagemapShmem,
    }
}

/// The run an entry means, old forms included (criu/pagemap.c).
fn run(entry: &PagemapEntry) -> Result<PageRun, RunFault> {
    let compat = u64::from(entry.compat_nr_pages);
    let nr_pages = entry.nr_pages.unwrap_or(compat);
    // CRIU 4.2 itself writes 0 in the old field.
    if compat != 0 && compat != nr_pages {
        return Err(RunFault::Lengths { old: compat, new: nr_pages });
    }
    let flags = match entry.in_parent {
        Some(true) => PE_PARENT | entry.flags.unwrap_or(0),
        _ => entry.flags.unwrap_or(PE_PRESENT),
    };
    Ok(PageRun { vaddr: entry.vaddr, nr_pages, flags })
}

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
