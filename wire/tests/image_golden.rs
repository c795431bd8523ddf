//! Images that CRIU wrote (`golden/`, made from `golden/victim.c`) are read, written again and compared byte by
//! byte: field numbers, types, order and packing are those of CRIU.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use godwit_wire::image::core::{CoreEntry, TaskKobjIdsEntry};
use godwit_wire::image::fdinfo::{FdTypes, FdinfoEntry, FileEntry};
use godwit_wire::image::file_lock::FileLockEntry;
use godwit_wire::image::fs::FsEntry;
use godwit_wire::image::ghost_file::GhostFileEntry;
use godwit_wire::image::inventory::InventoryEntry;
use godwit_wire::image::memfd::MemfdInodeEntry;
use godwit_wire::image::mm::MmEntry;
use godwit_wire::image::pagemap::{self, PagemapEntry, PagemapHead};
use godwit_wire::image::pipe_data::PipeDataEntry;
use godwit_wire::image::pstree::PstreeEntry;
use godwit_wire::image::remap_file_path::RemapFilePathEntry;
use godwit_wire::image::seccomp::SeccompEntry;
use godwit_wire::image::stats::StatsEntry;
use godwit_wire::image::timens::TimensEntry;
use godwit_wire::image::tty::{TtyDataEntry, TtyInfoEntry};
use godwit_wire::image::{Checked, ImageError, ImageKind, ImageReader, ImageWriter};
use godwit_wire::plan::PageOwner;

/// Reads an image and writes it again; the number of records and the new bytes.
struct Rewrite<'a> {
    reader: ImageReader<'a>,
    writer: ImageWriter,
    records: usize,
}

impl Rewrite<'_> {
    fn one<M: Checked>(&mut self) -> Result<Option<M>, ImageError> {
        let record = self.reader.next::<M>()?;
        if let Some(record) = &record {
            self.writer.push(record);
            self.records += 1;
        }
        Ok(record)
    }

    fn all<M: Checked>(&mut self) -> Result<(), ImageError> {
        while self.one::<M>()?.is_some() {}
        Ok(())
    }

    fn pipes(&mut self) -> Result<(), ImageError> {
        while let Some(pipe) = self.one::<PipeDataEntry>()? {
            self.writer.raw(self.reader.take_raw(u64::from(pipe.bytes))?);
        }
        Ok(())
    }
}

fn rewrite(kind: ImageKind, name: &str, bytes: &[u8]) -> Result<(usize, Vec<u8>), ImageError> {
    let reader = ImageReader::new(kind, name, bytes)?;
    let mut image = Rewrite { reader, writer: ImageWriter::new(kind), records: 0 };
    match kind {
        ImageKind::Inventory => image.all::<InventoryEntry>(),
        ImageKind::Core => image.all::<CoreEntry>(),
        ImageKind::Ids => image.all::<TaskKobjIdsEntry>(),
        ImageKind::Mm => image.all::<MmEntry>(),
        ImageKind::Fs => image.all::<FsEntry>(),
        ImageKind::Fdinfo => image.all::<FdinfoEntry>(),
        ImageKind::Files => image.all::<FileEntry>(),
        ImageKind::Pstree => image.all::<PstreeEntry>(),
        ImageKind::Seccomp => image.all::<SeccompEntry>(),
        ImageKind::Timens => image.all::<TimensEntry>(),
        ImageKind::TtyInfo => image.all::<TtyInfoEntry>(),
        ImageKind::TtyData => image.all::<TtyDataEntry>(),
        ImageKind::FileLocks => image.all::<FileLockEntry>(),
        ImageKind::Memfd => image.all::<MemfdInodeEntry>(),
        ImageKind::RemapFilePath => image.all::<RemapFilePathEntry>(),
        ImageKind::StatsDump => image.all::<StatsEntry>(),
        ImageKind::PipesData | ImageKind::FifoData => image.pipes(),
        ImageKind::GhostFile => image.one::<GhostFileEntry>().map(|_| {
            image.writer.raw(image.reader.take_rest());
        }),
        ImageKind::Pagemap | ImageKind::PagemapShmem => {
            image.one::<PagemapHead>().and_then(|_| image.all::<PagemapEntry>())
        }
        other => panic!("{name}: no reader for {other:?}"),
    }?;
    Ok((image.records, image.writer.finish()?.to_vec()))
}

fn golden() -> Vec<(PathBuf, String, ImageKind, u64, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut images = Vec::new();
    for version in ["criu-4.1", "criu-4.2"] {
        for entry in std::fs::read_dir(root.join(version)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let (kind, id) =
                ImageKind::parse_name(&name).unwrap_or_else(|| panic!("{name} is no image name"));
            let bytes = std::fs::read(&path).unwrap();
            images.push((path, name, kind, id, bytes));
        }
    }
    images.sort();
    images
}

fn read_4_2<M: Checked>(kind: ImageKind) -> Vec<M> {
    let mut records = Vec::new();
    for (_, name, _, _, bytes) in golden()
        .iter()
        .filter(|(path, _, found, ..)| *found == kind && path.to_str().unwrap().contains("4.2"))
    {
        records.extend(ImageReader::new(kind, name, bytes).unwrap().all::<M>().unwrap());
    }
    records
}

#[test]
fn every_image_is_written_again_byte_by_byte() {
    let images = golden();
    assert_eq!(images.len(), 35);
    for (path, name, kind, _, bytes) in images {
        let (records, again) = rewrite(kind, &name, &bytes).unwrap();
        assert!(records > 0, "{} has records", path.display());
        assert_eq!(again, bytes, "{}", path.display());
    }
}

#[test]
fn a_cut_image_is_an_error_or_a_shorter_list() {
    for (path, name, kind, _, bytes) in golden() {
        let (whole, _) = rewrite(kind, &name, &bytes).unwrap();
        for len in 0..bytes.len() {
            if let Ok((records, again)) = rewrite(kind, &name, &bytes[..len]) {
                assert_eq!(again, bytes[..len], "{} cut to {len}", path.display());
                // A ghost file's contents run to the end of the file, so a cut there cannot be seen.
                assert!(records < whole || kind == ImageKind::GhostFile, "{} cut to {len}", path.display());
            }
        }
    }
}

#[test]
fn a_changed_byte_never_panics() {
    for (_, name, kind, id, bytes) in golden() {
        for at in 0..bytes.len() {
            for flip in [0x01, 0x08, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                let _ = rewrite(kind, &name, &changed);
                if kind == ImageKind::Pagemap {
                    let _ = pagemap::decode(PageOwner::Task(id as u32), &changed);
                }
            }
        }
    }
}

#[test]
fn page_lists_of_both_versions_are_read_alike() {
    let mut lists = 0;
    for (path, _, kind, id, bytes) in golden() {
        let owner = match kind {
            ImageKind::Pagemap => PageOwner::Task(id as u32),
            ImageKind::PagemapShmem => PageOwner::Shmem(id),
            _ => continue,
        };
        let plan = pagemap::decode(owner, &bytes).unwrap();
        assert!(plan.slots() > 0, "{} lists pages", path.display());
        let again = pagemap::decode(owner, &pagemap::encode(&plan).unwrap()).unwrap();
        assert_eq!(again, plan);
        lists += 1;
    }
    assert_eq!(lists, 8);
}

#[test]
fn values_are_those_the_victim_set() {
    let inventory: Vec<InventoryEntry> = read_4_2(ImageKind::Inventory);
    assert_eq!(inventory[0].img_version, 2);
    assert_eq!(inventory[0].fdinfo_per_id, Some(true));

    let files: Vec<FileEntry> = read_4_2(ImageKind::Files);
    let types: BTreeSet<FdTypes> = files.iter().map(FileEntry::r#type).collect();
    use FdTypes::*;
    for expected in [Reg, Pipe, Fifo, Eventfd, Eventpoll, Inotify, Signalfd, Tty, Timerfd, Memfd] {
        assert!(types.contains(&expected), "{expected:?}");
    }
    assert!(files.iter().any(|file| file.efd.as_ref().is_some_and(|efd| efd.counter == 7)));
    let locked =
        files.iter().find_map(|file| file.reg.as_ref().filter(|reg| reg.name == b"/tmp/gold/locked"));
    assert_eq!(locked.unwrap().fown.signum, 10);
    let tfd = files.iter().find_map(|file| file.tfd.as_ref()).unwrap();
    assert_eq!((tfd.isec, tfd.insec), (100, 5));
    let epoll = files.iter().find_map(|file| file.epfd.as_ref()).unwrap();
    assert!(epoll.tfd.iter().all(|tfd| tfd.data == 0x1122_3344_5566_7788));

    let cores: Vec<CoreEntry> = read_4_2(ImageKind::Core);
    assert_eq!(cores.len(), 4);
    let tasks: Vec<_> = cores.iter().filter_map(|core| core.tc.as_ref()).collect();
    assert!(tasks.iter().any(|task| task.task_state == 2 && task.exit_code == 3 << 8));
    let root = tasks.iter().find(|task| task.timers.as_ref().is_some_and(|timers| !timers.posix.is_empty()));
    let root = root.unwrap();
    assert_eq!(root.timers.as_ref().unwrap().virt.isec, 3000);
    assert_eq!(root.sigactions.len(), 62);
    assert_eq!(root.signals_s.as_ref().unwrap().signals[0].siginfo.len(), 128);
    let threads: Vec<_> = cores.iter().filter_map(|core| core.thread_core.as_ref()).collect();
    assert!(threads.iter().any(|thread| thread.comm.as_deref() == Some(b"worker")));
    assert!(threads.iter().any(|thread| thread.sas.as_ref().is_some_and(|sas| sas.ss_size == 65536)));

    let mm: Vec<MmEntry> = read_4_2(ImageKind::Mm);
    assert!(mm.iter().flat_map(|mm| &mm.vmas).all(|vma| vma.fd == -1 && vma.start < vma.end));
}
