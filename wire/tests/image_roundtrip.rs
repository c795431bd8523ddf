//! Page lists and manifests survive writing and reading; whatever is not valid is refused without a panic.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use godwit_wire::image::manifest::{EXTENTS_PER_RECORD, FILES_PER_RECORD, ManifestFault};
use godwit_wire::image::pagemap::{self, PagemapEntry, PagemapHead};
use godwit_wire::image::{
    FileDigest, ImageError, ImageFault, ImageKind, ImageReader, ImageWriter, Manifest, PagesDigest,
    safe_image_name,
};
use godwit_wire::plan::{
    PAGE_SIZE, PE_LAZY, PE_PARENT, PE_PRESENT, PageOwner, PageRun, PagesPlan, PlanError, RoundKind,
    RoundPlan, RunFault, TASK_SIZE, extent_count,
};
use proptest::collection::vec;
use proptest::prelude::*;

const OWNER: PageOwner = PageOwner::Task(17);

fn plan(runs: Vec<PageRun>) -> PagesPlan {
    PagesPlan { owner: OWNER, pages_id: 3, runs }
}

fn run(vaddr: u64, nr_pages: u64, flags: u32) -> PageRun {
    PageRun { vaddr, nr_pages, flags }
}

fn runs() -> impl Strategy<Value = Vec<PageRun>> {
    let flags = prop_oneof![Just(PE_PRESENT), Just(PE_PRESENT | PE_LAZY), Just(PE_PARENT)];
    vec((0u64..1000, 1u64..1000, flags), 0..200).prop_map(|gaps| {
        let mut next = 0x1000;
        gaps.into_iter()
            .map(|(gap, nr_pages, flags)| {
                let run = run(next + gap * PAGE_SIZE, nr_pages, flags);
                next = run.end();
                run
            })
            .collect()
    })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let file = ("[a-z0-9_-]{1,20}[.]img", any::<u64>(), any::<[u8; 32]>());
    let files = vec(file, 0..50).prop_map(|files| {
        let files = files.into_iter().enumerate();
        files
            .map(|(n, (name, size, blake3))| FileDigest { name: format!("{n}.{name}"), size, blake3 })
            .collect()
    });
    let pages = vec((0u64..5000, any::<u8>()), 0..20).prop_map(|pages| {
        let pages = pages.into_iter().enumerate();
        pages
            .map(|(n, (nr_pages, seed))| PagesDigest {
                pages_id: n as u32 + 1,
                nr_pages,
                extents: (0..extent_count(nr_pages)).map(|k| [seed ^ k as u8; 16]).collect(),
            })
            .collect()
    });
    let rest = (2u32.., any::<bool>(), vec("--[a-z-]{1,20}", 0..5), 1u32.., any::<u64>());
    (files, pages, rest).prop_map(
        |(files, pages, (round, is_final, restore_options, root_pid, dumped_at_us))| Manifest {
            session: "p17-123".to_owned(),
            round,
            base_round: is_final.then_some(round - 1),
            kind: if is_final { RoundKind::Final } else { RoundKind::Round },
            restore_options,
            root_pid,
            dumped_at_us,
            tool_version: "0.1.0".to_owned(),
            files,
            pages,
        },
    )
}

fn small_manifest() -> Manifest {
    Manifest {
        session: "s".to_owned(),
        round: 1,
        base_round: None,
        kind: RoundKind::Final,
        restore_options: vec!["--file-locks".to_owned()],
        root_pid: 17,
        dumped_at_us: 1,
        tool_version: "0.1.0".to_owned(),
        files: vec![FileDigest::of("core-17.img", b"core")],
        pages: vec![PagesDigest { pages_id: 1, nr_pages: 257, extents: vec![[1; 16], [2; 16]] }],
    }
}

proptest! {
    #[test]
    fn page_lists_survive(runs in runs()) {
        let plan = plan(runs);
        let bytes = pagemap::encode(&plan).unwrap();
        prop_assert_eq!(pagemap::decode(OWNER, &bytes).unwrap(), plan);
    }

    #[test]
    fn any_page_list_is_valid_and_survives_or_is_refused(
        raw in vec((any::<u64>(), any::<u64>(), 0u32..9), 0..6),
        shift in 0u32..52,
        shmem: bool,
    ) {
        let runs = raw.into_iter().map(|(v, n, f)| run((v >> 12 >> shift.min(20)) << 12, n >> shift, f)).collect();
        let owner = if shmem { PageOwner::Shmem(9) } else { OWNER };
        let plan = PagesPlan { owner, pages_id: 1, runs };
        if let Ok(bytes) = pagemap::encode(&plan) {
            let read = pagemap::decode(owner, &bytes).unwrap();
            prop_assert_eq!(read.slots(), plan.slots());
            prop_assert!(plan.validate().is_ok());
        } else {
            prop_assert!(plan.validate().is_err());
        }
    }

    #[test]
    fn manifests_survive(manifest in manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
    }

    #[test]
    fn a_changed_manifest_is_refused(manifest in manifest(), at: prop::sample::Index, flip in 1u8..) {
        let mut bytes = manifest.encode().unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Manifest::decode(&bytes).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let with = |kind: ImageKind| {
            let mut writer = ImageWriter::new(kind);
            writer.raw(&bytes);
            writer.finish().unwrap()
        };
        let _ = pagemap::decode(OWNER, &bytes);
        let _ = pagemap::decode(OWNER, &with(ImageKind::Pagemap));
        prop_assert!(Manifest::decode(&bytes).is_err());
        prop_assert!(Manifest::decode(&with(ImageKind::Manifest)).is_err());
    }

    #[test]
    fn safe_names_stay_in_their_directory(name in ".{0,40}") {
        if safe_image_name(&name) {
            let path = std::path::Path::new("/dir").join(&name);
            prop_assert_eq!(path.parent().unwrap(), std::path::Path::new("/dir"));
            prop_assert_eq!(path.components().count(), 3);
        }
    }
}

#[test]
fn both_length_fields_are_written_and_long_runs_split() {
    let pages = (1u64 << 32) + 5;
    let bytes = pagemap::encode(&plan(vec![run(0x1000, pages, PE_PRESENT)])).unwrap();
    let mut reader = ImageReader::new(ImageKind::Pagemap, "pagemap-17.img", &bytes).unwrap();
    assert_eq!(reader.next::<PagemapHead>().unwrap().unwrap().pages_id, 3);
    let entries = reader.all::<PagemapEntry>().unwrap();
    let lengths: Vec<_> = entries.iter().map(|entry| (entry.compat_nr_pages, entry.nr_pages)).collect();
    assert_eq!(lengths, [(u32::MAX, Some(u64::from(u32::MAX))), (6, Some(6))]);
    assert_eq!(entries[1].vaddr, 0x1000 + u64::from(u32::MAX) * PAGE_SIZE);
    assert!(entries.iter().all(|entry| entry.in_parent.is_none() && entry.flags == Some(PE_PRESENT)));
    assert_eq!(pagemap::decode(OWNER, &bytes).unwrap().slots(), pages);
}

fn image_of(entries: &[PagemapEntry]) -> Vec<u8> {
    let mut writer = ImageWriter::new(ImageKind::Pagemap);
    writer.push(&PagemapHead { pages_id: 1 });
    for entry in entries {
        writer.push(entry);
    }
    writer.finish().unwrap().to_vec()
}

#[test]
fn old_forms_are_read() {
    let old = PagemapEntry { vaddr: 0x1000, compat_nr_pages: 2, ..Default::default() };
    let decode = |entry: &PagemapEntry| pagemap::decode(OWNER, &image_of(std::slice::from_ref(entry)));
    assert_eq!(decode(&old).unwrap().runs, [run(0x1000, 2, PE_PRESENT)]);
    let parent = PagemapEntry { in_parent: Some(true), ..old };
    assert_eq!(decode(&parent).unwrap().runs, [run(0x1000, 2, PE_PARENT)]);
    let new = PagemapEntry { compat_nr_pages: 0, nr_pages: Some(2), flags: Some(PE_LAZY), ..old };
    assert_eq!(decode(&new).unwrap().runs, [run(0x1000, 2, PE_LAZY)]);
    let unequal = PagemapEntry { nr_pages: Some(3), ..old };
    assert_eq!(fault_of(decode(&unequal)), RunFault::Lengths { old: 2, new: 3 });
    let both = PagemapEntry { flags: Some(PE_PARENT | PE_PRESENT), ..old };
    assert_eq!(fault_of(decode(&both)), RunFault::Flags { flags: 5 });
}

fn fault_of(result: Result<PagesPlan, ImageError>) -> RunFault {
    match result.unwrap_err().fault {
        ImageFault::Pages(PlanError::Run { fault, .. }) => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn page_lists_without_a_head_are_refused() {
    let empty = ImageWriter::new(ImageKind::Pagemap).finish().unwrap();
    assert_eq!(pagemap::decode(OWNER, &empty).unwrap_err().fault, ImageFault::Empty);
    let zero = PagesPlan { pages_id: 0, ..plan(vec![]) };
    assert!(matches!(pagemap::encode(&zero), Err(PlanError::PagesIdZero { .. })));
}

#[test]
fn each_broken_rule_of_a_run_is_named() {
    let cases = [
        (vec![run(0x1000, 0, PE_PRESENT)], RunFault::Empty),
        (vec![run(0x1001, 1, PE_PRESENT)], RunFault::Unaligned),
        (vec![run(TASK_SIZE, 1, PE_PRESENT)], RunFault::BeyondEnd { nr_pages: 1, limit: TASK_SIZE }),
        (vec![run(0x1000, u64::MAX, 4)], RunFault::BeyondEnd { nr_pages: u64::MAX, limit: TASK_SIZE }),
        (vec![run(0, 1 << 52, 4)], RunFault::BeyondEnd { nr_pages: 1 << 52, limit: TASK_SIZE }),
        (vec![run(0x1000, 2, 4), run(0x2000, 1, 4)], RunFault::Unsorted { previous_end: 0x3000 }),
        (vec![run(0x1000, 1, 0)], RunFault::Flags { flags: 0 }),
        (vec![run(0x1000, 1, 5)], RunFault::Flags { flags: 5 }),
        (vec![run(0x1000, 1, 12)], RunFault::Flags { flags: 12 }),
    ];
    for (runs, expected) in cases {
        match plan(runs).validate() {
            Err(PlanError::Run { fault, .. }) => assert_eq!(fault, expected),
            other => panic!("{expected:?}: {other:?}"),
        }
    }
    plan(vec![run(TASK_SIZE - PAGE_SIZE, 1, PE_PRESENT)]).validate().unwrap();
}

#[test]
fn each_broken_rule_of_a_round_is_named() {
    let round = |round, base_round, pages| RoundPlan { round, base_round, kind: RoundKind::Round, pages };
    let one = || plan(vec![run(0x1000, 1, PE_PARENT)]);
    round(2, Some(1), vec![one()]).validate().unwrap();
    for (number, base) in [(0, None), (2, Some(0)), (2, Some(2)), (2, Some(3))] {
        assert!(matches!(round(number, base, vec![]).validate(), Err(PlanError::Round { .. })));
    }
    let without_base = round(1, None, vec![one()]).validate();
    assert!(matches!(without_base, Err(PlanError::Run { fault: RunFault::ParentWithoutBase, .. })));
    let lazy = round(2, Some(1), vec![plan(vec![run(0x1000, 1, PE_LAZY)])]).validate();
    assert!(matches!(lazy, Err(PlanError::Run { fault: RunFault::Flags { flags: PE_LAZY }, .. })));
    let twice = round(2, Some(1), vec![one(), PagesPlan { pages_id: 4, ..one() }]).validate();
    assert!(matches!(twice, Err(PlanError::OwnerTwice { .. })));
    let shared = round(2, Some(1), vec![one(), PagesPlan { owner: PageOwner::Shmem(1), ..one() }]).validate();
    assert!(matches!(shared, Err(PlanError::PagesIdTwice { pages_id: 3, .. })));
    let zero = round(2, Some(1), vec![PagesPlan { owner: PageOwner::Task(0), ..one() }]).validate();
    assert!(matches!(zero, Err(PlanError::OwnerZero)));
}

#[test]
fn long_lists_of_a_manifest_are_split_into_records() {
    let extents = EXTENTS_PER_RECORD as u64 * 2 + 1;
    let manifest = Manifest {
        files: (0..FILES_PER_RECORD * 2 + 1).map(|n| FileDigest::of(&format!("ids-{n}.img"), &[])).collect(),
        pages: vec![
            PagesDigest { pages_id: 1, nr_pages: 0, extents: vec![] },
            PagesDigest { pages_id: 2, nr_pages: extents * 256, extents: vec![[7; 16]; extents as usize] },
        ],
        ..small_manifest()
    };
    let bytes = manifest.encode().unwrap();
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
}

#[test]
fn a_cut_or_longer_manifest_is_refused() {
    let bytes = small_manifest().encode().unwrap();
    for len in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "cut to {len}");
    }
    let longer = [&bytes[..], &[0, 0, 0, 0]].concat();
    assert_eq!(Manifest::decode(&longer).unwrap_err().fault, ImageFault::Trailing);
}

#[test]
fn each_broken_rule_of_a_manifest_is_named() {
    let file = |name: &str| Manifest { files: vec![FileDigest::of(name, b"")], ..small_manifest() };
    for name in
        ["", ".", "..", "../x", "a/b", ".staging", "parent", "pages-3.img", "godwit-manifest.img", "a b"]
    {
        assert_eq!(file(name).validate(), Err(ManifestFault::Name { name: name.to_owned() }), "{name}");
    }
    let twice = ["a.img", "a.img"].map(|name| FileDigest::of(name, b"")).to_vec();
    let twice = Manifest { files: twice, ..small_manifest() };
    assert_eq!(twice.validate(), Err(ManifestFault::Twice { name: "a.img".to_owned() }));
    let pages =
        |nr_pages, extents| vec![PagesDigest { pages_id: 1, nr_pages, extents: vec![[0; 16]; extents] }];
    for (nr_pages, extents) in [(0, 1), (1, 0), (256, 2), (257, 1), (u64::MAX, 1)] {
        let manifest = Manifest { pages: pages(nr_pages, extents), ..small_manifest() };
        assert!(matches!(manifest.validate(), Err(ManifestFault::Extents { .. })), "{nr_pages} {extents}");
    }
    for option in ["", "-t", "--a\nb", "file-locks"] {
        let manifest = Manifest { restore_options: vec![option.to_owned()], ..small_manifest() };
        assert!(matches!(manifest.validate(), Err(ManifestFault::Value { .. })), "{option}");
    }
    let base = Manifest { base_round: Some(1), ..small_manifest() };
    assert!(matches!(base.validate(), Err(ManifestFault::Round { .. })));
    assert!(Manifest { session: "../x".to_owned(), ..small_manifest() }.encode().is_err());
}

#[test]
fn digests_tell_files_apart() {
    let digest = FileDigest::of("a", b"abc");
    assert!(digest.matches(b"abc"));
    assert!(!digest.matches(b"abd"));
    assert!(!digest.matches(b"abcd"));
}

#[test]
fn an_oversized_or_foreign_image_is_refused_before_it_is_read() {
    let huge = [&ImageWriter::new(ImageKind::Pstree).finish().unwrap()[..], &u32::MAX.to_le_bytes()].concat();
    let mut reader = ImageReader::new(ImageKind::Pstree, "pstree.img", &huge).unwrap();
    let error = reader.next::<godwit_wire::image::pstree::PstreeEntry>().unwrap_err();
    assert_eq!(error.fault, ImageFault::Oversized { size: u64::from(u32::MAX) });
    assert_eq!((error.offset, reader.offset()), (8, 8));
    let error = ImageReader::new(ImageKind::Files, "files.img", &huge).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image files.img, byte 4: magic word 0x50273030 instead of 0x56303138: another kind of file"
    );
}

#[test]
fn a_manifest_has_the_bytes_it_always_had() {
    // A change here is a change of the file format: older programs must still read it, or refuse it.
    let golden = include_bytes!("golden/godwit-manifest.img");
    assert_eq!(small_manifest().encode().unwrap()[..], golden[..]);
    assert_eq!(Manifest::decode(golden).unwrap(), small_manifest());
}

#[test]
fn a_manifest_whose_extents_are_told_by_another_hash_is_refused() {
    // As they were before XXH3: the same manifest, 32 bytes an extent in another field.
    let before = include_bytes!("golden/godwit-manifest-blake3.img");
    let error = Manifest::decode(before).unwrap_err();
    assert!(error.to_string().contains("hashes"), "{error}");
}
