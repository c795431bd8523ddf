//! The first byte chooses a kind of image, the rest is its file. What can be read must come out the same when it is
//! written and read again.
#![no_main]

use godwit_wire::image::cgroup::CgroupEntry;
use godwit_wire::image::core::{CoreEntry, TaskKobjIdsEntry};
use godwit_wire::image::fdinfo::{FdinfoEntry, FileEntry};
use godwit_wire::image::fs::FsEntry;
use godwit_wire::image::inventory::InventoryEntry;
use godwit_wire::image::mm::MmEntry;
use godwit_wire::image::pipe_data::PipeDataEntry;
use godwit_wire::image::pstree::PstreeEntry;
use godwit_wire::image::seccomp::SeccompEntry;
use godwit_wire::image::tty::TtyInfoEntry;
use godwit_wire::image::{Checked, ImageKind, ImageReader, ImageWriter};
use libfuzzer_sys::fuzz_target;

fn rewrite<M: Checked + PartialEq>(kind: ImageKind, records: &[u8]) {
    let mut file = ImageWriter::new(kind);
    file.raw(records);
    let file = file.finish().expect("raw bytes are never oversized");
    let reader = ImageReader::new(kind, "fuzz.img", &file).expect("the header is right");
    let Ok(records) = reader.all::<M>() else { return };
    let mut again = ImageWriter::new(kind);
    for record in &records {
        again.push(record);
    }
    let again = again.finish().expect("no record grows when it is written again");
    let reader = ImageReader::new(kind, "again.img", &again).expect("the header is right");
    assert!(reader.all::<M>().expect("what was written can be read") == records);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, records)) = bytes.split_first() else { return };
    match choice % 12 {
        0 => rewrite::<InventoryEntry>(ImageKind::Inventory, records),
        1 => rewrite::<CoreEntry>(ImageKind::Core, records),
        2 => rewrite::<TaskKobjIdsEntry>(ImageKind::Ids, records),
        3 => rewrite::<MmEntry>(ImageKind::Mm, records),
        4 => rewrite::<FsEntry>(ImageKind::Fs, records),
        5 => rewrite::<FdinfoEntry>(ImageKind::Fdinfo, records),
        6 => rewrite::<FileEntry>(ImageKind::Files, records),
        7 => rewrite::<PstreeEntry>(ImageKind::Pstree, records),
        8 => rewrite::<SeccompEntry>(ImageKind::Seccomp, records),
        9 => rewrite::<CgroupEntry>(ImageKind::Cgroup, records),
        10 => rewrite::<TtyInfoEntry>(ImageKind::TtyInfo, records),
        _ => pipes(records),
    }
});

fn pipes(bytes: &[u8]) {
    let Ok(mut reader) = ImageReader::new(ImageKind::PipesData, "pipes-data.img", bytes) else { return };
    while let Ok(Some(pipe)) = reader.next::<PipeDataEntry>() {
        if reader.take_raw(u64::from(pipe.bytes)).is_err() {
            return;
        }
    }
}
