//! Bounds on what one round may hold, and the names that may be given to files and sessions.

use godwit_wire::image::ImageKind;
use godwit_wire::image::manifest::safe_image_name;
use godwit_wire::plan::RoundPlan;

use super::sink::SinkError;

/// Bounds on what one round may hold. They bound the store's memory: a slot costs a little over one bit, an
/// extent 40 bytes, a run 32 bytes, an open pages file a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Owners of memory (tasks and segments) in a round.
    pub owners_max: usize,
    /// Runs of all owners in a round.
    pub runs_max: usize,
    /// Slots of all owners in a round.
    pub slots_max: u64,
    /// Image files in a round, page files and page lists apart.
    pub images_max: usize,
    /// Bytes of one image file.
    pub image_size_bytes_max: u64,
    /// Rounds of a session that are open (not sealed) at the same time.
    pub open_rounds_max: usize,
    /// Buffers of 1 MiB that one round may use for what arrived and is not written yet; at least 2.
    pub buffers_max: usize,
    /// The same for all rounds of a store together, besides 2 that each may always use.
    pub buffers_shared_max: usize,
    /// Threads that hash and write for all sessions of a store; 0 for the threads that receive.
    pub writers: usize,
}

impl Default for Bounds {
    /// Owners: 16384; runs: 8 Mi; slots: 256 Mi (1 TiB); images: 1 Mi of 1 GiB each; 4 open rounds;
    /// buffers: 16 a round, 128 shared; no threads of its own.
    fn default() -> Self {
        Self {
            owners_max: 16 << 10,
            runs_max: 8 << 20,
            slots_max: 256 << 20,
            images_max: 1 << 20,
            image_size_bytes_max: 1 << 30,
            open_rounds_max: 4,
            buffers_max: 16,
            buffers_shared_max: 128,
            writers: 0,
        }
    }
}

/// Checks a round's page lists against the format's rules and the bounds.
///
/// # Errors
/// [`SinkError::Refused`] with the owner and the address.
pub fn check_plan(plan: &RoundPlan, bounds: &Bounds) -> Result<(), SinkError> {
    let refused = |why| SinkError::Refused { round: plan.round, why };
    plan.validate().map_err(|e| refused(e.to_string()))?;
    let runs: usize = plan.pages.iter().map(|pages| pages.runs.len()).sum();
    let slots = plan.pages.iter().try_fold(0u64, |sum, pages| sum.checked_add(pages.slots()));
    let owners = plan.pages.len();
    if owners > bounds.owners_max || runs > bounds.runs_max {
        let (owners_max, runs_max) = (bounds.owners_max, bounds.runs_max);
        let why =
            format!("{owners} owners with {runs} runs are above the limit of {owners_max} with {runs_max}");
        return Err(refused(why));
    }
    match slots {
        Some(slots) if slots <= bounds.slots_max => Ok(()),
        _ => Err(refused(format!("it holds more than the limit of {} pages", bounds.slots_max))),
    }
}

/// Whether a name may be given to an image file that the dump hands over: a safe name, and none that the
/// store makes itself (page files, page lists, the manifest, the link `parent`).
pub fn is_image_of_dump(name: &str) -> bool {
    let own = |kind| {
        matches!(kind, ImageKind::Pages | ImageKind::Pagemap | ImageKind::PagemapShmem | ImageKind::Manifest)
    };
    let made_here = ImageKind::parse_name(name).is_some_and(|(kind, _)| own(kind));
    safe_image_name(name) && name != "parent" && !made_here
}

/// Whether a name may be a session's directory: 1 to 128 ASCII letters, digits, `.`, `_`, `-`, and neither a dot
/// nor a dash first.
pub fn is_safe_session_name(name: &str) -> bool {
    safe_image_name(name) && name.len() <= 128 && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_wire::plan::{PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind};

    #[test]
    fn plans_above_a_bound_are_refused() {
        let run = |vaddr| PageRun { vaddr, nr_pages: 2, flags: PE_PRESENT };
        let pages =
            |id| PagesPlan { owner: PageOwner::Task(id), pages_id: id, runs: vec![run(0x1000), run(0x8000)] };
        let plan =
            RoundPlan { round: 1, base_round: None, kind: RoundKind::Round, pages: vec![pages(1), pages(2)] };
        let fits = Bounds { owners_max: 2, runs_max: 4, slots_max: 8, ..Bounds::default() };
        check_plan(&plan, &fits).unwrap();
        for bounds in [
            Bounds { owners_max: 1, ..fits },
            Bounds { runs_max: 3, ..fits },
            Bounds { slots_max: 7, ..fits },
        ] {
            assert!(matches!(check_plan(&plan, &bounds), Err(SinkError::Refused { .. })), "{bounds:?}");
        }
    }

    #[test]
    fn names_stay_in_their_directory() {
        for good in ["core-17.img", "inventory.img", "stats-dump", "ghost-file-1f.img", "tmpfs-1.tar.gz.img"]
        {
            assert!(is_image_of_dump(good), "{good}");
        }
        let bad = ["", "parent", "a/b.img", "../x.img", ".x.img", "pages-1.img", "pagemap-1.img", "x.img\0"];
        for bad in bad.iter().chain(&["godwit-manifest.img", "pagemap-shmem-4.img", "a b.img"]) {
            assert!(!is_image_of_dump(bad), "{bad}");
        }
        assert!(is_safe_session_name("App_1-2.3"));
        for bad in ["", ".", "..", ".staging-x", "-x", "a/b", "a b", "ü"] {
            assert!(!is_safe_session_name(bad), "{bad}");
        }
    }
}
