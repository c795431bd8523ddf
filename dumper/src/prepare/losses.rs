//! What a restore drops of a process's memory in silence: CRIU's images have no field for it.

use nix::unistd::Pid;

use crate::procfs::maps::Vma;
use crate::procfs::{ProcfsError, auxv, memory};
use crate::refusal::{Findings, Subject};
use crate::task::{mm, settings, vmas};

/// A property of mappings that is not restored.
struct Property {
    /// Whether a mapping has it.
    has: fn(&Vma) -> bool,
    /// What of it is lost.
    what: &'static str,
}

/// What VmFlags and names tell. Mappings of the kernel's own making are restored by the kernel.
const PROPERTIES: [Property; 5] = [
    Property {
        has: |vma| vma.has_flag(b"sl"),
        what: "it is sealed (mseal), and can be changed after a restore",
    },
    Property {
        has: |vma| vma.has_flag(b"lf"),
        what: "its pages are locked as they come (MLOCK_ONFAULT); a restore fills and locks all of it",
    },
    // Memory that can only be executed has a key of the kernel's making, and gets one again.
    Property {
        has: |vma| vma.protection_key != 0 && (vma.read || vma.write),
        what: "it has a protection key (pkey_mprotect); the restored one has none, and keys are not allocated",
    },
    Property {
        has: |vma| vma.has_flag(b"sf"),
        what: "it is mapped with MAP_SYNC, and without it after a restore",
    },
    Property {
        has: |vma| vma.path.starts_with(b"[anon:") || vma.path.starts_with(b"[anon_shmem:"),
        what: "its name (PR_SET_VMA_ANON_NAME) is not restored",
    },
];

/// Names what is lost of these mappings, one line for each property. They must have their VmFlags.
pub fn of_mappings(pid: Pid, all: &[Vma], findings: &mut Findings) {
    for property in &PROPERTIES {
        let mut having = all.iter().filter(|vma| !vma.is_special() && (property.has)(vma));
        let Some(first) = having.next() else { continue };
        let others = match having.count() {
            0 => String::new(),
            1 => " (and 1 mapping more)".to_owned(),
            many => format!(" (and {many} mappings more)"),
        };
        findings.lose(vmas::subject(pid, first), format!("{}{others}", property.what));
    }
    if let Some(ring) = all.iter().find(|vma| vma.is_aio_ring()) {
        findings.lose(
            vmas::subject(pid, ring),
            "requests of its AIO context that are in flight never complete after a restore, and whether there are \
             any cannot be seen from outside",
        );
    }
    if all_locked(all) {
        findings.lose(
            Subject::Process(pid),
            "all its memory is locked, as mlockall does it; if it asked for MCL_FUTURE, that is not restored",
        );
    }
}

/// Whether every mapping that holds something of the process's own is locked.
fn all_locked(all: &[Vma]) -> bool {
    let mut lockable =
        all.iter().filter(|vma| vma.is_anonymous() && vma.write && !vma.has_flag(b"dp")).peekable();
    lockable.peek().is_some() && lockable.all(|vma| vma.has_flag(b"lo"))
}

/// Names what is lost of the address space as a whole.
///
/// # Errors
/// When `/proc` does not tell.
pub fn of_address_space(pid: Pid, findings: &mut Findings) -> Result<(), ProcfsError> {
    if let Some(cut) = mm::auxv_words_lost(&auxv::read(pid)?) {
        findings.lose(
            Subject::Process(pid),
            format!("the last {cut} words of its auxiliary vector are not restored: CRIU takes 44"),
        );
    }
    // Kernels before 6.15 do not tell it; the task itself does, under freeze (task/settings.rs).
    if memory::merges_any(pid).unwrap_or(false) {
        findings.lose(Subject::Process(pid), settings::MERGING_LOST);
    }
    Ok(())
}

/// Names NUMA policies that are lost. The kernel walks all page tables to tell them.
pub fn of_placement(pid: Pid, findings: &mut Findings) {
    let Ok(placed) = memory::numa_policies(pid) else { return };
    let Some(first) = placed.first() else { return };
    let many = placed.len();
    findings.lose(
        Subject::Process(pid),
        format!("the NUMA policy of its memory (set_mempolicy, mbind) is not restored; {many} mappings, from {first:#x}"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::maps;

    fn losses(text: &[u8]) -> Vec<String> {
        let mut findings = Findings::default();
        of_mappings(Pid::from_raw(7), &maps::parse(text).unwrap(), &mut findings);
        findings.losses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_property_is_named_once_with_its_first_mapping() {
        let text = b"1000-2000 rw-p 0 0:0 0\nVmFlags: rd sl\n\
            3000-4000 rw-p 0 0:0 0\nVmFlags: rd\n\
            5000-6000 rw-p 0 0:0 0 [anon:heap]\nProtectionKey: 3\nVmFlags: rd sl\n\
            7000-8000 --xp 0 0:0 0\nProtectionKey: 1\nVmFlags: ex\n\
            9000-a000 r-xp 0 0:0 0 [vdso]\nVmFlags: rd ex sl\n";
        let found = losses(text);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].contains("0x1000-0x2000")
                && found[0].contains("mseal")
                && found[0].contains("1 mapping more")
        );
        assert!(found[1].contains("0x5000-0x6000 ([anon:heap])") && found[1].contains("protection key"));
        assert!(found[2].contains("PR_SET_VMA_ANON_NAME"));
    }

    #[test]
    fn locked_memory_is_a_loss_only_where_all_of_it_is() {
        let one = b"1000-2000 rw-p 0 0:0 0\nVmFlags: rd lo\n3000-4000 rw-p 0 0:0 0\nVmFlags: rd\n";
        let all = b"1000-2000 rw-p 0 0:0 0\nVmFlags: rd lo\n3000-4000 r--p 0 0:0 0\nVmFlags: rd\n";
        assert!(losses(one).is_empty());
        assert!(losses(all)[0].contains("MCL_FUTURE"));
        assert!(losses(b"").is_empty());
    }
}
