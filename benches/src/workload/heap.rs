//! Heaps of real programs: what pages hold in earnest is neither random nor text.
//!
//! CPython and sqlite run as the process that is measured, by a script that is part of this program. The heap of a
//! Redis server cannot: it needs sockets. A real one was filled and read out (`deploy/lab/lab redis-heap`), and its
//! pages are mapped again, each time as if the server had lain elsewhere and held other numbers.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PAGE;

/// Which program's heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heap {
    /// An interpreter full of objects.
    Cpython,
    /// A database in memory.
    Sqlite,
    /// A key-value store, replayed.
    Redis,
}

/// Where a file with a Redis heap can be named, for machines without the lab.
pub const REDIS_HEAP_VAR: &str = "GODWIT_REDIS_HEAP";
/// Debian's own interpreter; else the first on the path is taken.
const PYTHON: &str = "/usr/bin/python3";

/// Why a heap cannot be made here; `None` where it can. What has to be fetched for it is fetched now.
pub fn missing(heap: Heap) -> Option<String> {
    match heap {
        Heap::Redis => RedisHeap::open().err().map(|error| error.to_string()),
        Heap::Cpython | Heap::Sqlite => {
            let check = Command::new(python()).args(["-I", "-S", "-c", "import sqlite3"]).output();
            match check {
                Ok(output) if output.status.success() => None,
                Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
                Err(error) => Some(format!("{}: {error}", python().display())),
            }
        }
    }
}

fn python() -> PathBuf {
    let path = Path::new(PYTHON);
    if path.exists() { path.to_owned() } else { PathBuf::from("python3") }
}

/// Becomes the interpreter that fills itself to `memory_mib`, makes the file `ready`, and waits. Returns only if it
/// cannot, or if the heap is none of an interpreter's.
pub fn become_python(heap: Heap, memory_mib: usize, ready: &Path) -> io::Error {
    let script = match heap {
        Heap::Cpython => include_str!("heap/cpython.py"),
        Heap::Sqlite => include_str!("heap/sqlite.py"),
        Heap::Redis => return io::Error::other("a Redis heap is no interpreter's"),
    };
    let mut command = Command::new(python());
    command.args(["-I", "-S", "-c", script, &memory_mib.to_string()]).arg(ready);
    // The order of sets and of dicts of strings follows the hash.
    command.env("PYTHONHASHSEED", "0").exec()
}

/// First bytes of a file with a heap.
const MAGIC: &[u8; 8] = b"GDWREDIS";
/// Length of its header in bytes.
const HEADER: usize = PAGE;

/// Pages of a Redis server's heap.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisHeap {
    /// Where they lay, in order.
    ranges: Vec<Range<u64>>,
    pages: Vec<u8>,
}

impl RedisHeap {
    /// Reads the file that [`REDIS_HEAP_VAR`] names, else the lab's, which is made when it is missing.
    ///
    /// # Errors
    /// When there is none and it cannot be made.
    pub fn open() -> io::Result<RedisHeap> {
        let path = match std::env::var_os(REDIS_HEAP_VAR) {
            Some(path) => PathBuf::from(path),
            None => from_lab()?,
        };
        let bytes = fs::read(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        RedisHeap::parse(&bytes)
            .ok_or_else(|| io::Error::other(format!("{} is no heap of a Redis server", path.display())))
    }

    /// Reads the bytes of such a file; `None` when they are none. The layout is in `deploy/lab/redis_heap.py`.
    fn parse(bytes: &[u8]) -> Option<RedisHeap> {
        let (header, pages) = bytes.split_at_checked(HEADER)?;
        let (magic, words) = header.split_first_chunk::<8>()?;
        if magic != MAGIC {
            return None;
        }
        let mut words =
            words.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        let count = usize::try_from(words.next()?).ok()?;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for _ in 0..count {
            let range = words.next()?..words.next()?;
            let is_behind = ranges.last().is_none_or(|last| last.end <= range.start);
            let is_whole = range.start % PAGE as u64 == 0 && range.end % PAGE as u64 == 0;
            if range.start >= range.end || !is_behind || !is_whole {
                return None;
            }
            ranges.push(range);
        }
        let len: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        (len == pages.len() as u64 && !pages.is_empty()).then(|| RedisHeap { ranges, pages: pages.to_vec() })
    }

    /// Fills memory with the heap, over and over: the first time as it was, then each time moved and renumbered.
    pub fn fill(&self, memory: &mut [u8]) {
        for (lap, part) in memory.chunks_mut(self.pages.len()).enumerate() {
            part.copy_from_slice(&self.pages[..part.len()]);
            if lap > 0 {
                part.chunks_mut(PAGE).for_each(|page| self.vary(lap as u64, page));
            }
        }
    }

    /// A page as it would be in another server: pointers lead to where that one's heap would lie, numbers written out
    /// in digits or hex digits are others of the same length. All else stays, and so does what packing makes of it.
    fn vary(&self, lap: u64, page: &mut [u8]) {
        let moved = lap << 34;
        for word in page.chunks_exact_mut(8) {
            let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
            if self.holds(value) {
                word.copy_from_slice(&(value ^ moved).to_le_bytes());
            }
        }
        // A run of digits is one number, which another takes the place of, not each digit for itself.
        let mut state = 0u64;
        for byte in page {
            if byte.is_ascii_digit() {
                state = state.wrapping_add(u64::from(*byte) + lap).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                *byte = b'0' + (state >> 60) as u8 % 10;
            } else if !(b'a'..=b'f').contains(byte) {
                state = 0;
            }
        }
    }

    /// Whether a word may be a pointer into the heap.
    fn holds(&self, address: u64) -> bool {
        let behind = self.ranges.partition_point(|range| range.end <= address);
        self.ranges.get(behind).is_some_and(|range| range.contains(&address))
    }
}

/// The lab lies in the source tree that this program was built from.
fn from_lab() -> io::Result<PathBuf> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lab/lab");
    let output = Command::new(&lab)
        .arg("redis-heap")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", lab.display())))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let last = why.lines().last().unwrap_or("no reason was given");
        return Err(io::Error::other(format!("{} redis-heap failed: {last}", lab.display())));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ranges; a page of text, one of pointers into the second range and of numbers, one of zeros.
    fn file() -> Vec<u8> {
        let (first, second) = (0x7f00_0000_0000u64, 0x7f00_0010_0000u64);
        let mut bytes = MAGIC.to_vec();
        for word in [2, first, first + PAGE as u64, second, second + 2 * PAGE as u64] {
            bytes.extend(u64::to_le_bytes(word));
        }
        bytes.resize(HEADER, 0);
        bytes.extend(b"user:1234:name ".iter().cycle().take(PAGE));
        (0..PAGE as u64 / 16).for_each(|at| {
            bytes.extend((second + at * 8).to_le_bytes());
            bytes.extend((at << 40).to_le_bytes());
        });
        bytes.extend([0; PAGE]);
        bytes
    }

    #[test]
    fn heaps_are_read_and_broken_ones_refused() {
        let whole = file();
        assert_eq!(RedisHeap::parse(&whole).unwrap().ranges.len(), 2);
        assert_eq!(RedisHeap::parse(&whole[..whole.len() - 1]), None);
        assert_eq!(RedisHeap::parse(&whole[..100]), None);
        let changed = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            RedisHeap::parse(&bytes)
        };
        assert_eq!(changed(0, b'X'), None, "magic");
        assert_eq!(changed(8, 3), None, "count of ranges");
        assert_eq!(changed(11, 255), None, "a count beyond the header");
        assert_eq!(changed(17, 7), None, "an unaligned range");
        assert_eq!(changed(29, 0), None, "a range that ends before it begins");
    }

    #[test]
    fn laps_differ_where_another_server_would_and_nowhere_else() {
        let heap = RedisHeap::parse(&file()).unwrap();
        let mut memory = vec![9u8; 8 * PAGE];
        heap.fill(&mut memory);
        let mut again = vec![0u8; 8 * PAGE];
        heap.fill(&mut again);
        assert!(memory == again, "the same every time");
        let page = |number: usize| &memory[number * PAGE..][..PAGE];
        assert!(page(0) == &file()[HEADER..][..PAGE]);
        for (a, b) in [(0, 3), (0, 6), (3, 6), (1, 4), (1, 7), (4, 7)] {
            assert!(page(a) != page(b), "pages {a} and {b}");
        }
        assert!(page(2) == page(5), "zeros stay");
        assert!(page(0).iter().zip(page(3)).all(|(a, b)| a == b || a.is_ascii_digit() && b.is_ascii_digit()));
        let word =
            |number: usize, at: usize| u64::from_le_bytes(page(number)[at * 8..][..8].try_into().unwrap());
        assert_eq!(word(4, 2), word(1, 2) ^ 1 << 34, "a pointer is moved");
        assert_eq!(word(4, 2) & 0xfff, word(1, 2) & 0xfff);
    }
}
