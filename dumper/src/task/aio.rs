//! Rings of `io_setup`: completed events that the program has not fetched lie in them (fs/aio.c).
//!
//! CRIU's restore makes a ring of the same size at the same address and puts head, tail and events back. A request that
//! is in flight at the freeze is not in the ring, and no interface shows it: it never completes at the destination. One
//! that completes while the dump lasts is noticed, since the ring then moves.

use nix::errno::Errno;
use nix::unistd::Pid;

use godwit_wire::image::mm::AioRingEntry;

use super::vmas;
use crate::error::DumpError;
use crate::procfs::maps::Vma;
use crate::refusal::Findings;
use crate::sys::process_vm::{self, Remote};

/// `AIO_RING_MAGIC`, `AIO_RING_COMPAT_FEATURES` and `AIO_RING_INCOMPAT_FEATURES` (fs/aio.c).
const INTACT: [u32; 3] = [0xa10a_10a1, 1, 0];
/// `sizeof(struct aio_ring)` and `sizeof(struct io_event)` (fs/aio.c, include/uapi/linux/aio_abi.h).
const HEADER_BYTES: u64 = 32;
const EVENT_BYTES: u64 = 32;

/// The header of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    nr: u32,
    head: u32,
    tail: u32,
    magic: [u32; 3],
    header_bytes: u32,
}

impl Header {
    fn read(pid: Pid, vma: &Vma) -> nix::Result<Header> {
        let mut bytes = [0u8; HEADER_BYTES as usize];
        let from = [Remote { addr: vma.start, len: bytes.len() }];
        if process_vm::read(pid, &from, &mut bytes)? != bytes.len() {
            return Err(Errno::EFAULT);
        }
        let word = |n: usize| {
            u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]])
        };
        Ok(Header {
            nr: word(1),
            head: word(2),
            tail: word(3),
            magic: [word(4), word(5), word(6)],
            header_bytes: word(7),
        })
    }

    /// Whether restore can make the like of it: the program may have written to it, or mapped only a part.
    fn is_intact(&self, len_bytes: u64) -> bool {
        u64::from(self.nr) == events(len_bytes)
            && self.head < self.nr
            && self.tail < self.nr
            && self.magic == INTACT
            && u64::from(self.header_bytes) == HEADER_BYTES
    }
}

/// Events that a ring of so many bytes has room for.
fn events(len_bytes: u64) -> u64 {
    len_bytes.saturating_sub(HEADER_BYTES) / EVENT_BYTES
}

/// Refuses a ring that restore could not make anew.
pub fn check(pid: Pid, vma: &Vma, findings: &mut Findings) {
    let refuse = |findings: &mut Findings, why: String| {
        findings.refuse(vmas::subject(pid, vma), why, "let the program end its AIO context (io_destroy)");
    };
    match Header::read(pid, vma) {
        Ok(header) if header.is_intact(vma.len_bytes()) => {}
        Ok(_) => refuse(findings, "its AIO ring is not as the kernel made it".into()),
        // It is gone already: the task runs, and is looked at again under freeze.
        Err(Errno::EFAULT | Errno::ESRCH) => {}
        Err(errno) => refuse(findings, format!("its AIO ring cannot be read ({errno})")),
    }
}

/// The rings' records. What a ring was asked to hold is not told: half of what it has room for makes one of its size
/// again (fs/aio.c, aio_setup_ring, doubles it).
pub fn entries(vmas: &[Vma]) -> Vec<AioRingEntry> {
    let rings = vmas.iter().filter(|vma| vma.is_aio_ring());
    rings
        .map(|vma| AioRingEntry {
            id: vma.start,
            nr_req: (events(vma.len_bytes()).saturating_sub(2) / 2) as u32,
            ring_len: vma.len_bytes() as u32,
        })
        .collect()
}

/// Where the rings of a stopped task stand.
#[derive(Debug, Default)]
pub struct Rings(Vec<(Vma, Header)>);

impl Rings {
    /// Reads them, before any page is.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(pid: Pid, vmas: &[Vma]) -> Result<Rings, DumpError> {
        let rings = vmas.iter().filter(|vma| vma.is_aio_ring());
        let read = rings.map(|vma| {
            let failed =
                |errno| DumpError::sys(vmas::subject(pid, vma).to_string(), "reading its AIO ring", errno);
            Ok((vma.clone(), Header::read(pid, vma).map_err(failed)?))
        });
        Ok(Rings(read.collect::<Result<_, DumpError>>()?))
    }

    /// Proves that no request completed since they were read: it would be missing in the images.
    ///
    /// # Errors
    /// [`DumpError::Refused`] when one did.
    pub fn stood_still(&self, pid: Pid) -> Result<(), DumpError> {
        let mut findings = Findings::default();
        for (vma, before) in &self.0 {
            if Header::read(pid, vma) != Ok(*before) {
                findings.refuse(
                    vmas::subject(pid, vma),
                    "a request of its AIO context completed during the dump",
                    "dump it again, at a time when none is in flight",
                );
            }
        }
        findings.verdict()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Header = Header { nr: 127, head: 126, tail: 3, magic: INTACT, header_bytes: 32 };

    #[test]
    fn a_ring_that_was_written_to_is_not_intact() {
        assert!(WHOLE.is_intact(4096));
        assert!(!WHOLE.is_intact(8192));
        assert!(!Header { head: 127, ..WHOLE }.is_intact(4096));
        assert!(!Header { tail: 127, ..WHOLE }.is_intact(4096));
        assert!(!Header { magic: [0, 1, 0], ..WHOLE }.is_intact(4096));
        assert!(!Header { header_bytes: 16, ..WHOLE }.is_intact(4096));
    }

    #[test]
    fn a_ring_of_the_same_size_is_asked_for() {
        let text = b"1000-2000 rw-s 0 0:13 7 /[aio] (deleted)\n4000-8000 rw-s 0 0:13 8 /[aio] (deleted)\n";
        let rings = entries(&crate::procfs::maps::parse(text).unwrap());
        for ring in &rings {
            // As aio_setup_ring does.
            let bytes = HEADER_BYTES + EVENT_BYTES * (u64::from(ring.nr_req) * 2 + 2);
            assert_eq!(bytes.next_multiple_of(4096), u64::from(ring.ring_len));
        }
        assert_eq!(rings.iter().map(|ring| ring.id).collect::<Vec<_>>(), [0x1000, 0x4000]);
    }
}
