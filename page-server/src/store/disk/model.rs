//! A file system in memory that knows what a power cut would keep, for tests.
//!
//! File content is durable after [`DiskFile::sync`], names after [`Disk::sync_dir`] of their directory, and
//! nothing else is: stricter than any real file system, so that a forgotten sync shows. [`ModelDisk::cut`]
//! gives the disk after a power cut: what was synced, plus any part of the rest that a file system might
//! have written on its own, in any order, chosen by a seed. A rename is kept or lost as one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile, Entry, EntryKind, plain_components};

const PAGE: usize = 4096;

/// A disk in memory; clones share it.
#[derive(Clone, Default)]
pub struct ModelDisk {
    nodes: Arc<Mutex<Nodes>>,
}

#[derive(Clone)]
enum Node {
    File { live: Vec<u8>, durable: Vec<u8> },
    Dir(BTreeMap<String, usize>),
    Link(PathBuf),
}

/// A change of names, with the directories it touches.
#[derive(Clone)]
struct Change {
    remove: Option<(usize, String)>,
    add: Option<(usize, String, usize)>,
    durable: bool,
}

impl Change {
    fn touches(&self) -> impl Iterator<Item = usize> {
        let removed = self.remove.as_ref().map(|(dir, _)| *dir);
        removed.into_iter().chain(self.add.as_ref().map(|(dir, ..)| *dir))
    }
}

#[derive(Clone)]
struct Nodes {
    /// Node 0 is the root; directories hold their live names.
    all: Vec<Node>,
    changes: Vec<Change>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self { all: vec![Node::Dir(BTreeMap::new())], changes: Vec::new() }
    }
}

impl Nodes {
    fn names(&self, dir: usize) -> io::Result<&BTreeMap<String, usize>> {
        match &self.all[dir] {
            Node::Dir(names) => Ok(names),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for name in plain_components(path)? {
            at = *self.names(at)?.get(&*name.to_string_lossy()).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn split(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let dir = self.find(path.parent().unwrap_or(Path::new("")))?;
        self.names(dir)?;
        Ok((dir, name))
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (dir, name) = self.split(path)?;
        if self.names(dir)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.all.push(node);
        let ino = self.all.len() - 1;
        self.change(Change { remove: None, add: Some((dir, name, ino)), durable: false });
        Ok(ino)
    }

    fn change(&mut self, change: Change) {
        self.apply(&change);
        self.changes.push(change);
    }

    fn apply(&mut self, change: &Change) {
        if let Some((dir, name)) = &change.remove
            && let Node::Dir(names) = &mut self.all[*dir]
        {
            names.remove(name);
        }
        if let Some((dir, name, ino)) = &change.add
            && let Node::Dir(names) = &mut self.all[*dir]
        {
            names.insert(name.clone(), *ino);
        }
    }
}

/// A small generator (SplitMix64): the same seed, the same cut.
struct Dice(u64);

impl Dice {
    fn flip(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) & 1 == 1
    }
}

impl ModelDisk {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The disk after a power cut. Seed 0 keeps nothing but what was synced; any other also keeps a part of
    /// the rest.
    pub fn cut(&self, seed: u64) -> ModelDisk {
        let before = self.nodes().clone();
        let mut dice = Dice(seed);
        let mut lucky = || seed != 0 && dice.flip();
        let all = before.all.iter().map(|node| match node {
            Node::File { live, durable } => {
                let kept = kept_content(live, durable, &mut lucky);
                Node::File { live: kept.clone(), durable: kept }
            }
            Node::Dir(_) => Node::Dir(BTreeMap::new()),
            Node::Link(target) => Node::Link(target.clone()),
        });
        let mut after = Nodes { all: all.collect(), changes: Vec::new() };
        for change in &before.changes {
            if change.durable || lucky() {
                after.apply(change);
                after.changes.push(Change { durable: true, ..change.clone() });
            }
        }
        ModelDisk { nodes: Arc::new(Mutex::new(after)) }
    }
}

fn kept_content(live: &[u8], durable: &[u8], lucky: &mut impl FnMut() -> bool) -> Vec<u8> {
    let len = if lucky() { live.len() } else { durable.len() };
    let mut kept = durable.to_vec();
    kept.resize(len, 0);
    for at in (0..len.min(live.len())).step_by(PAGE) {
        if lucky() {
            let end = (at + PAGE).min(len).min(live.len());
            kept[at..end].copy_from_slice(&live[at..end]);
        }
    }
    kept
}

impl Disk for ModelDisk {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.nodes().add(dir, Node::Dir(BTreeMap::new())).map(drop)
    }

    fn create(&self, file: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let ino = self.nodes().add(file, Node::File { live: Vec::new(), durable: Vec::new() })?;
        Ok(Arc::new(ModelFile { disk: self.clone(), ino }))
    }

    fn open(&self, file: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let nodes = self.nodes();
        let ino = nodes.find(file)?;
        match nodes.all[ino] {
            Node::File { .. } => Ok(Arc::new(ModelFile { disk: self.clone(), ino })),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let nodes = self.nodes();
        let names = nodes.names(nodes.find(dir)?)?;
        let entry = |(name, ino): (&String, &usize)| {
            let kind = match nodes.all[*ino] {
                Node::File { .. } => EntryKind::File,
                Node::Dir(_) => EntryKind::Dir,
                Node::Link(_) => EntryKind::Link,
            };
            Entry { name: name.clone(), kind }
        };
        Ok(names.iter().map(entry).collect())
    }

    fn symlink(&self, target: &Path, at: &Path) -> io::Result<()> {
        self.nodes().add(at, Node::Link(target.to_owned())).map(drop)
    }

    fn read_link(&self, at: &Path) -> io::Result<PathBuf> {
        let nodes = self.nodes();
        match &nodes.all[nodes.find(at)?] {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut nodes = self.nodes();
        let ino = nodes.find(from)?;
        let (from_dir, from_name) = nodes.split(from)?;
        let (to_dir, to_name) = nodes.split(to)?;
        if nodes.names(to_dir)?.contains_key(&to_name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let (remove, add) = (Some((from_dir, from_name)), Some((to_dir, to_name, ino)));
        nodes.change(Change { remove, add, durable: false });
        Ok(())
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        let mut nodes = self.nodes();
        if let Node::Dir(_) = nodes.all[nodes.find(file)?] {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let gone = nodes.split(file)?;
        nodes.change(Change { remove: Some(gone), add: None, durable: false });
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut nodes = self.nodes();
        if !nodes.names(nodes.find(dir)?)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let gone = nodes.split(dir)?;
        nodes.change(Change { remove: Some(gone), add: None, durable: false });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut nodes = self.nodes();
        let ino = nodes.find(dir)?;
        nodes.names(ino)?;
        for change in &mut nodes.changes {
            let synced = change.touches().any(|dir| dir == ino);
            change.durable |= synced;
        }
        Ok(())
    }

    fn shown(&self, path: &Path) -> PathBuf {
        Path::new("model:").join(path)
    }
}

struct ModelFile {
    disk: ModelDisk,
    ino: usize,
}

impl ModelFile {
    fn with<R>(&self, f: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>) -> R) -> R {
        match &mut self.disk.nodes().all[self.ino] {
            Node::File { live, durable } => f(live, durable),
            _ => unreachable!("a ModelFile is only made for a file node, and nodes keep their kind"),
        }
    }
}

impl DiskFile for ModelFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|live, _| {
            let end = offset as usize + bytes.len();
            if live.len() < end {
                live.resize(end, 0);
            }
            live[offset as usize..end].copy_from_slice(bytes);
        });
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|live, _| {
            let from = live.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
            buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|live, _| live.resize(len as usize, 0));
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.with(|live, _| live.len() as u64))
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn sync(&self) -> io::Result<()> {
        self.with(|live, durable| durable.clone_from(live));
        Ok(())
    }
}
