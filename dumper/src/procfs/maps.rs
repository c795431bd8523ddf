//! /proc/PID/maps and /proc/PID/smaps: the mappings of a process (`man 5 proc_pid_smaps`; fs/proc/task_mmu.c).
//!
//! `maps` is cheap. `smaps` also has the VmFlags, and costs a walk over all page tables.

use std::ops::Range;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{lines, split_at_byte, unsigned, unsigned32, words};
use super::{LONG_BYTES, ParseError, ProcfsError, read_parsed};

/// The two-letter codes of smaps' VmFlags line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmFlags(Vec<[u8; 2]>);

impl VmFlags {
    /// Whether `code` is set: `gd` grows down, `ht` hugetlb, `io`, `pf`, `lo` locked, `nr` noreserve, `dc` dontcopy,
    /// `dd` dontdump, `wf` wipeonfork, `hg`/`nh` huge pages wanted or not, `mg` mergeable, `sd` soft-dirty,
    /// `uw` write-protected by userfaultfd, `um` missing, `ui` minor, `ss` shadow stack, `dp` droppable, `sl` sealed,
    /// `lf` locked as pages come, `gu` may hold guards, `sf` MAP_SYNC.
    pub fn has(&self, code: &[u8; 2]) -> bool {
        self.0.contains(code)
    }

    /// All codes in the kernel's order.
    pub fn codes(&self) -> &[[u8; 2]] {
        &self.0
    }
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub exec: bool,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub pgoff: u64,
    /// Device of the file, major number; 0 with `minor` 0 and `inode` 0 for anonymous memory.
    pub major: u32,
    /// Device of the file, minor number.
    pub minor: u32,
    /// Inode of the file.
    pub inode: u64,
    /// The name as shown: a path, `[heap]`, `[stack]`, `[vdso]`, `[anon:NAME]`, ... or nothing.
    pub path: Vec<u8>,
    /// VmFlags; only from smaps.
    pub vm_flags: Option<VmFlags>,
    /// `KernelPageSize` in bytes, above 4096 for hugetlb; only from smaps, else 4096.
    pub page_size_bytes: u64,
    /// `ProtectionKey`, 0 to 15 (man 7 pkeys); only from smaps of a processor that has them, else 0.
    pub protection_key: u32,
}

impl Vma {
    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether a file (also a memfd, shared anonymous memory or SysV shm) stands behind it.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.major != 0 || self.minor != 0
    }

    /// Private memory without a file, special mappings left out.
    pub fn is_anonymous(&self) -> bool {
        !self.shared && !self.has_file() && !self.is_special()
    }

    /// Memory that the kernel made: vdso, vvar, vsyscall, uprobes.
    pub fn is_special(&self) -> bool {
        self.is_vdso()
            || self.is_vvar()
            || matches!(&self.path[..], b"[vsyscall]" | b"[uprobes]" | b"[uprobes-trampoline]")
    }

    /// The code that the kernel maps into each process.
    pub fn is_vdso(&self) -> bool {
        !self.has_file() && self.path == b"[vdso]"
    }

    /// The data beside the vDSO, in one or more mappings.
    pub fn is_vvar(&self) -> bool {
        !self.has_file() && self.path.starts_with(b"[vvar")
    }

    /// A ring of `io_setup` (fs/aio.c).
    pub fn is_aio_ring(&self) -> bool {
        self.has_file() && self.path.starts_with(b"/[aio]")
    }

    /// Whether the name ends in ` (deleted)`. It may be part of the name: the link in map_files decides.
    pub fn looks_deleted(&self) -> bool {
        self.has_file() && self.path.ends_with(b" (deleted)")
    }

    /// Whether `code` is among its VmFlags; false where they were not read.
    pub fn has_flag(&self, code: &[u8; 2]) -> bool {
        self.vm_flags.as_ref().is_some_and(|flags| flags.has(code))
    }
}

/// Parses maps or smaps: the latter has lines `Key: value` behind each mapping's own.
///
/// The kernel writes these files in pieces. If the process changes its map between two of them, a mapping may reach
/// into the one before it; it is then listed without that part.
pub fn parse(text: &[u8]) -> Result<Vec<Vma>, ParseError> {
    let mut vmas: Vec<Vma> = Vec::new();
    let mut known_until = 0;
    for line in lines(text) {
        // Keys of smaps begin with a capital letter, addresses are written in small ones.
        if !line[0].is_ascii_uppercase() {
            let mut vma = parse_header(line)?;
            if vma.start < known_until {
                let known = known_until.min(vma.end) - vma.start;
                vma.start += known;
                vma.pgoff = vma.pgoff.saturating_add(if vma.has_file() { known } else { 0 });
            }
            known_until = known_until.max(vma.end);
            vmas.push(vma);
            continue;
        }
        let (Some(vma), Some((key, value))) = (vmas.last_mut(), split_at_byte(line, b':')) else {
            return Err(ParseError::new("smaps line", line));
        };
        match key {
            b"VmFlags" => vma.vm_flags = Some(parse_flags(value)),
            b"KernelPageSize" => {
                let kib = unsigned(words(value).next().unwrap_or_default(), 10, "KernelPageSize")?;
                vma.page_size_bytes =
                    kib.checked_mul(1024).ok_or_else(|| ParseError::new("KernelPageSize", value))?;
            }
            b"ProtectionKey" => {
                let word = words(value).next().unwrap_or_default();
                vma.protection_key = unsigned32(word, 10, "ProtectionKey")?;
            }
            _ => {}
        }
    }
    vmas.retain(|vma| vma.start < vma.end);
    Ok(vmas)
}

fn parse_flags(value: &[u8]) -> VmFlags {
    VmFlags(words(value).filter_map(|word| <[u8; 2]>::try_from(word).ok()).collect())
}

/// `START-END PERM PGOFF MAJOR:MINOR INODE    PATH`
fn parse_header(line: &[u8]) -> Result<Vma, ParseError> {
    let mut rest = line;
    let mut word = |field: &'static str| {
        let (word, tail) = split_at_byte(rest, b' ').ok_or_else(|| ParseError::new(field, line))?;
        rest = tail;
        Ok(word)
    };
    let range = word("maps range")?;
    let perms = word("maps permissions")?;
    let pgoff = word("maps offset")?;
    let device = word("maps device")?;
    // A mapping without a name ends with the inode and a blank, but older texts are trimmed there.
    let (inode, path) = split_at_byte(rest, b' ').unwrap_or((rest, b""));

    let (start, end) = split_at_byte(range, b'-').ok_or_else(|| ParseError::new("maps range", line))?;
    let (start, end) = (unsigned(start, 16, "maps start")?, unsigned(end, 16, "maps end")?);
    if start >= end {
        return Err(ParseError::new("maps range", line));
    }
    let &[r, w, x, s] = perms else { return Err(ParseError::new("maps permissions", line)) };
    let (major, minor) = split_at_byte(device, b':').ok_or_else(|| ParseError::new("maps device", line))?;
    let path = &path[path.iter().position(|&b| b != b' ').unwrap_or(path.len())..];
    Ok(Vma {
        start,
        end,
        read: r == b'r',
        write: w == b'w',
        exec: x == b'x',
        shared: s == b's',
        pgoff: unsigned(pgoff, 16, "maps offset")?,
        major: unsigned32(major, 16, "maps device")?,
        minor: unsigned32(minor, 16, "maps device")?,
        inode: unsigned(inode, 10, "maps inode")?,
        path: unescape_newlines(path),
        vm_flags: None,
        page_size_bytes: 4096,
        protection_key: 0,
    })
}

/// In this file the kernel escapes nothing but line ends.
fn unescape_newlines(path: &[u8]) -> Vec<u8> {
    const ESCAPED: &[u8] = b"\\012";
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        match rest.strip_prefix(ESCAPED) {
            Some(behind) => {
                out.push(b'\n');
                rest = behind;
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// The mappings of a process without VmFlags (/proc/PID/maps).
pub fn read(pid: Pid) -> Result<Vec<Vma>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/maps")), LONG_BYTES, parse)
}

/// The mappings of a process with VmFlags (/proc/PID/smaps).
pub fn read_with_flags(pid: Pid) -> Result<Vec<Vma>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/smaps")), LONG_BYTES, parse)
}
