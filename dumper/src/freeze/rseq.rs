//! Restartable sequences: where a thread's area lies, and whether it is inside a sequence (`man 2 rseq`).

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::sys::process_vm::{self, Remote};
use crate::sys::ptrace;

/// Offset of `rseq_cs` in `struct rseq` (include/uapi/linux/rseq.h).
const RSEQ_CS_OFFSET: u64 = 8;
/// Length of `struct rseq_cs`.
const SECTION_BYTES: usize = 32;

/// A registered area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rseq {
    /// Address of the thread's `struct rseq`.
    pub abi_pointer: u64,
    /// Its registered size in bytes.
    pub abi_size: u32,
    /// The signature that stands before every abort handler.
    pub signature: u32,
    /// The sequence that the thread announced, if any. It may have left it already.
    pub section: Option<Section>,
}

/// A critical section, `struct rseq_cs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Address of the description (`rseq_cs` in the area).
    pub pointer: u64,
    /// Version, 0.
    pub version: u32,
    /// `RSEQ_CS_FLAG_*`; kernels from 6.1 on know none.
    pub flags: u32,
    /// Its first instruction.
    pub start_ip: u64,
    /// Its length in bytes.
    pub post_commit_offset: u64,
    /// Where the kernel sends a thread that was disturbed inside.
    pub abort_ip: u64,
}

impl Rseq {
    /// The abort handler, if `ip` lies inside the announced section.
    pub fn abort_ip(&self, ip: u64) -> Option<u64> {
        let section = self.section.as_ref()?;
        (ip.wrapping_sub(section.start_ip) < section.post_commit_offset).then_some(section.abort_ip)
    }
}

/// Reads the area of a stopped thread; must be done before it runs again, since the kernel then clears `rseq_cs`.
///
/// `None`: nothing is registered, or the kernel cannot say (before 5.13).
pub(super) fn read(pid: Pid, tid: Pid) -> Result<Option<Rseq>, Errno> {
    let conf = match ptrace::rseq_configuration(tid) {
        Ok(conf) if conf.rseq_abi_pointer != 0 => conf,
        Ok(_) | Err(Errno::EIO | Errno::EINVAL) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let section = read_section(pid, conf.rseq_abi_pointer);
    let (abi_pointer, abi_size, signature) = (conf.rseq_abi_pointer, conf.rseq_abi_size, conf.signature);
    Ok(Some(Rseq { abi_pointer, abi_size, signature, section }))
}

/// What cannot be read is no section: the kernel would kill the thread for it at the next preemption.
fn read_section(pid: Pid, area: u64) -> Option<Section> {
    let mut pointer = [0u8; 8];
    read_whole(pid, area.checked_add(RSEQ_CS_OFFSET)?, &mut pointer)?;
    let pointer = u64::from_le_bytes(pointer);
    if pointer == 0 {
        return None;
    }
    let mut raw = [0u8; SECTION_BYTES];
    read_whole(pid, pointer, &mut raw)?;
    let words: Vec<u64> = raw.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    Some(Section {
        pointer,
        version: words[0] as u32,
        flags: (words[0] >> 32) as u32,
        start_ip: words[1],
        post_commit_offset: words[2],
        abort_ip: words[3],
    })
}

fn read_whole(pid: Pid, addr: u64, into: &mut [u8]) -> Option<()> {
    let len = into.len();
    (process_vm::read(pid, &[Remote { addr, len }], into).ok()? == len).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_inside_the_section_has_an_abort_handler() {
        let section = Section {
            pointer: 1,
            version: 0,
            flags: 0,
            start_ip: 0x1000,
            post_commit_offset: 0x10,
            abort_ip: 0x2000,
        };
        let mut rseq = Rseq { abi_pointer: 8, abi_size: 32, signature: 0, section: Some(section) };
        assert_eq!(rseq.abort_ip(0x1000), Some(0x2000));
        assert_eq!(rseq.abort_ip(0x100f), Some(0x2000));
        assert_eq!(rseq.abort_ip(0x1010), None);
        assert_eq!(rseq.abort_ip(0xfff), None);
        rseq.section = None;
        assert_eq!(rseq.abort_ip(0x1000), None);
    }
}
