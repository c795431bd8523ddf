//! A page list that can be read is valid, and means the same when it is written again.
#![no_main]

use godwit_wire::image::{ImageKind, ImageWriter, pagemap};
use godwit_wire::plan::PageOwner;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, records)) = bytes.split_first() else { return };
    let (owner, kind) = match choice & 1 {
        0 => (PageOwner::Task(1), ImageKind::Pagemap),
        _ => (PageOwner::Shmem(1), ImageKind::PagemapShmem),
    };
    let mut file = ImageWriter::new(kind);
    file.raw(records);
    let file = file.finish().expect("raw bytes are never oversized");
    let Ok(plan) = pagemap::decode(owner, &file) else { return };
    plan.validate().expect("what was read is valid");
    // Longer runs split into so many entries that they only cost time here.
    if plan.runs.iter().all(|run| run.nr_pages < 1 << 40) {
        let again = pagemap::encode(&plan).expect("a valid plan can be written");
        let again = pagemap::decode(owner, &again).expect("what was written can be read");
        assert_eq!(again.slots(), plan.slots());
    }
});
