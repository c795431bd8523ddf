//! The process around a thread that is lent: where its code and its free memory are, and the scratch memory in it.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;

use super::arch;
use super::error::RemoteError;
use super::gadget::Gadgets;
use crate::procfs::{maps, status, tree};
use crate::sys::process_vm::{self, Remote};

/// Name of a scratch mapping, as /proc/PID/maps shows it on kernels with CONFIG_ANON_VMA_NAME.
pub const SCRATCH_NAME: &str = "godwit-scratch";

/// Where scratch mappings lie: at the first free one of [`SCRATCH_SLOTS`] places from here on ("godw" in ASCII).
///
/// Kernels without names for anonymous memory show the address alone. A mapping there that no session owns is a
/// leftover of a killed dumper.
pub const SCRATCH_HINT: u64 = 0x676f_6477_0000;

/// Number of places for scratch mappings, [`SCRATCH_STRIDE`] apart.
pub const SCRATCH_SLOTS: u64 = 16;

/// Distance of the places for scratch mappings, in bytes.
pub const SCRATCH_STRIDE: u64 = 1 << 20;

/// Bytes at the start of a scratch mapping that say whose it is, for kernels that cannot name it.
pub(super) const MARK_BYTES: usize = 16;
pub(super) const MARK: [u8; MARK_BYTES] = *b"godwit-scratch\0\0";

/// Most bytes of a mapping that is taken for a leftover.
pub(super) const LEFTOVER_BYTES_MAX: u64 = 256 << 10;

/// What a session needs to know of the process around the thread; the same for all its threads.
pub struct Surroundings {
    pub(super) pid: Pid,
    pub(super) vmas: Vec<maps::Vma>,
    pub(super) gadgets: Gadgets,
    /// Sessions that use a lent restorer; the last one takes it away.
    pub(super) borrowers: Mutex<u32>,
    /// Whether the kernel can name anonymous memory; false once it said no.
    pub(super) names_memory: AtomicBool,
    /// Scratch mappings that killed dumpers left, until a session has taken them away.
    pub(super) leftovers: Mutex<Vec<(u64, u64)>>,
    /// Places for scratch mappings that are taken, bit n for place n.
    taken: Mutex<u64>,
    /// Held while a frame finds its place: what is free to one is so to another.
    pub(super) placing: Mutex<()>,
}

impl Surroundings {
    /// Reads the mappings of a process and looks through its code. `whole`: all its threads are stopped; only then
    /// are leftovers taken away, since a thread that runs may still be on its way out of one.
    pub fn of(pid: Pid, whole: bool) -> Result<Surroundings, RemoteError> {
        let vmas = maps::read(pid)?;
        let gadgets = Gadgets::find(pid, &vmas)?;
        let leftovers = Mutex::new(if whole { find_leftovers(pid, &vmas) } else { Vec::new() });
        let overlaps = |slot: &u64| {
            let place = SCRATCH_HINT + slot * SCRATCH_STRIDE;
            vmas.iter().any(|vma| vma.start < place + SCRATCH_STRIDE && place < vma.end)
        };
        let taken = (0..SCRATCH_SLOTS).filter(overlaps).fold(0, |taken, slot| taken | 1 << slot);
        Ok(Surroundings {
            pid,
            vmas,
            gadgets,
            borrowers: Mutex::new(0),
            names_memory: AtomicBool::new(true),
            leftovers,
            taken: Mutex::new(taken),
            placing: Mutex::new(()),
        })
    }

    /// The address behind the instruction that calls are made by.
    pub fn syscall_end(&self) -> u64 {
        self.gadgets.syscall + arch::SYSCALL_LEN
    }

    /// The first free place for a scratch mapping; 0, which leaves it to the kernel, if there is none.
    pub(super) fn hint(&self) -> u64 {
        let taken = *locked(&self.taken);
        let free = (0..SCRATCH_SLOTS).find(|slot| taken & 1 << slot == 0);
        free.map_or(0, |slot| SCRATCH_HINT + slot * SCRATCH_STRIDE)
    }

    pub(super) fn note_mapping(&self, addr: u64, is_there: bool) {
        let slot = addr.wrapping_sub(SCRATCH_HINT) / SCRATCH_STRIDE;
        if slot < SCRATCH_SLOTS {
            let mut taken = locked(&self.taken);
            *taken = if is_there { *taken | 1 << slot } else { *taken & !(1 << slot) };
        }
    }
}

/// A panic of another tracer leaves nothing half done in what these guard.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The scratch mappings of dumpers that were killed. The next session in a process that is stopped whole takes them
/// away.
///
/// They lie where [`SCRATCH_HINT`] says and begin with a mark, or with zeros if their dumper died before it wrote
/// that. Those of a dumper that lives and traces a thread of the process are none.
pub fn find_leftovers(pid: Pid, vmas: &[maps::Vma]) -> Vec<(u64, u64)> {
    let is_place = |vma: &&maps::Vma| {
        let offset = vma.start.wrapping_sub(SCRATCH_HINT);
        offset.is_multiple_of(SCRATCH_STRIDE) && offset / SCRATCH_STRIDE < SCRATCH_SLOTS
    };
    let is_ours = |vma: &&maps::Vma| {
        let like_ours = vma.is_anonymous() && vma.read && vma.write && vma.len_bytes() <= LEFTOVER_BYTES_MAX;
        let start = if like_ours { read_part(pid, vma.start, MARK_BYTES) } else { Vec::new() };
        start == MARK || start == [0; MARK_BYTES]
    };
    let found: Vec<_> = vmas.iter().filter(is_place).filter(is_ours).collect();
    if found.is_empty() || is_traced_by_others(pid) {
        return Vec::new();
    }
    found.iter().map(|vma| (vma.start, vma.len_bytes())).collect()
}

fn is_traced_by_others(pid: Pid) -> bool {
    // TracerPid names the tracing thread, not its process.
    let is_us = |tracer: i32| {
        let process = status::read(Pid::from_raw(tracer)).map(|status| status.tgid);
        tracer == 0 || process.is_ok_and(|tgid| tgid == nix::unistd::getpid().as_raw())
    };
    let threads = tree::threads(pid).unwrap_or_default();
    threads.iter().any(|tid| status::read_thread(pid, *tid).is_ok_and(|status| !is_us(status.tracer_pid)))
}

/// As much as can be read, up to `len` bytes.
pub(super) fn read_part(pid: Pid, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let count = process_vm::read(pid, &[Remote { addr, len }], &mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}
