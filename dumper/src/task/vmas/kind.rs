//! What a mapping is, and what cannot be dumped of it.

use nix::sys::stat::makedev;
use nix::unistd::Pid;

use super::{file, subject};
use crate::procfs::maps::Vma;
use crate::refusal::Findings;
use crate::task::files::memfd;

/// What a mapping is, as far as it can be dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory: heap, stack, and all else without a file.
    Anonymous,
    /// Private memory of huge pages that were reserved for it (`MAP_HUGETLB`): the kernel keeps a file for it.
    HugeAnonymous,
    /// A ring of `io_setup`: the kernel writes to it past any tracker, so all its pages are dumped.
    AioRing,
    /// A private mapping of a file: its changed pages are dumped.
    FilePrivate,
    /// A shared mapping of a file: no page is dumped, the file is the memory.
    FileShared,
    /// A private mapping of a memory file: its changed pages are dumped, the file is a shared segment beside.
    MemoryPrivate,
    /// A shared mapping of a memory file (a memfd, shared anonymous memory): the file is dumped, as a segment.
    MemoryShared,
    /// A shared mapping of a device that a plugin sees to: no page is dumped.
    Device,
    /// The vDSO: all its pages are dumped.
    Vdso,
    /// The kernel's data pages of the vDSO: never dumped.
    Vvar,
    /// The page at the fixed address above user space: listed only.
    Vsyscall,
}

impl Kind {
    /// Whether the mapping's pages belong into the page list.
    pub fn has_pages(self) -> bool {
        match self {
            Kind::Anonymous
            | Kind::HugeAnonymous
            | Kind::AioRing
            | Kind::FilePrivate
            | Kind::MemoryPrivate
            | Kind::Vdso => true,
            Kind::FileShared | Kind::MemoryShared | Kind::Device | Kind::Vvar | Kind::Vsyscall => false,
        }
    }
}

/// Decides what a mapping is; refuses by name what cannot be dumped.
pub fn classify(pid: Pid, vma: &Vma, findings: &mut Findings) -> Option<Kind> {
    let name = String::from_utf8_lossy(&vma.path).into_owned();
    match name.as_str() {
        "[vdso]" => return Some(Kind::Vdso),
        "[vvar]" | "[vvar_vclock]" => return Some(Kind::Vvar),
        "[vsyscall]" => return Some(Kind::Vsyscall),
        _ if vma.is_aio_ring() => return Some(Kind::AioRing),
        _ => {}
    }
    match file::is_of_plugin(pid, vma) {
        Ok(true) => return Some(Kind::Device),
        Ok(false) => {}
        Err(why) => {
            findings.refuse(subject(pid, vma), why, "the plugin's words in the log may tell more (-v)");
            return None;
        }
    }
    let refusal = refusal_of(vma, &name);
    if let Some((why, way_out)) = refusal {
        findings.refuse(subject(pid, vma), why, way_out);
        return None;
    }
    if is_huge_anonymous(vma) {
        return Some(Kind::HugeAnonymous);
    }
    Some(match (is_memory_file(vma), vma.inode, vma.shared) {
        (true, _, false) => Kind::MemoryPrivate,
        (true, _, true) => Kind::MemoryShared,
        (false, 0, false) => Kind::Anonymous,
        (false, _, false) => Kind::FilePrivate,
        (false, _, true) => Kind::FileShared,
    })
}

/// Whether the mapping is private memory of huge pages without a file of the user's (fs/hugetlbfs/inode.c,
/// hugetlb_file_setup). A file may bear that name too, but only such memory has the flag, where flags were read.
fn is_huge_anonymous(vma: &Vma) -> bool {
    !vma.shared
        && vma.has_file()
        && vma.path.starts_with(b"/anon_hugepage")
        && (vma.vm_flags.is_none() || vma.has_flag(b"ht"))
}

/// Whether a memory file stands behind the mapping: a memfd, or shared anonymous memory, of huge pages too.
pub fn is_memory_file(vma: &Vma) -> bool {
    vma.inode != 0
        && !vma.path.starts_with(b"/SYSV")
        && !is_huge_anonymous(vma)
        && memfd::is_memory_device(makedev(u64::from(vma.major), u64::from(vma.minor)))
}

fn refusal_of(vma: &Vma, name: &str) -> Option<(&'static str, &'static str)> {
    let unmap = "let the program unmap it, or run the program without it";
    let has = |flag: &[u8; 2]| vma.has_flag(flag);
    Some(match name {
        "[uprobes]" | "[uprobes-trampoline]" => {
            ("a probe is set on the program", "remove the probe (perf, bpftrace)")
        }
        _ if has(b"ss") => ("a shadow stack is not dumped", "run the program without shadow stacks"),
        _ if has(b"um") || has(b"ui") => (
            "its pages are filled by userfaultfd when they are touched, and the descriptor does not go along",
            "let the program that fills them end first",
        ),
        _ if name.starts_with("/SYSV") => (
            "System V shared memory lives in an IPC namespace, and none is dumped",
            "let the program detach it",
        ),
        _ if name.starts_with("/secretmem") => ("secret memory (memfd_secret) cannot be read", unmap),
        _ if name.starts_with("anon_inode:") => ("a mapped kernel object is not dumped", unmap),
        _ if vma.inode == 0 && vma.shared => ("it is shared, and has no file that could be read", unmap),
        _ if (has(b"io") || has(b"pf")) && !vma.shared => ("device memory cannot be dumped", unmap),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::maps;

    fn kind(text: &str) -> Result<Kind, String> {
        let mut findings = Findings::default();
        let vmas = maps::parse(text.as_bytes()).unwrap();
        classify(Pid::this(), &vmas[0], &mut findings).ok_or_else(|| findings.refusals[0].to_string())
    }

    #[test]
    fn mappings_are_told_by_name_file_and_flags() {
        let of = |text: &str| kind(text).unwrap();
        assert_eq!(of("1000-2000 rw-p 0 0:0 0\n"), Kind::Anonymous);
        assert_eq!(of("1000-2000 rw-p 0 0:0 0\nVmFlags: rd wr dp\n"), Kind::Anonymous);
        assert_eq!(of("1000-2000 rw-s 0 0:13 7 /[aio] (deleted)\n"), Kind::AioRing);
        assert_eq!(of("1000-2000 rw-p 0 0:11 7 /anon_hugepage (deleted)\n"), Kind::HugeAnonymous);
        assert_eq!(
            of("1000-2000 rw-p 0 0:11 7 /anon_hugepage (deleted)\nVmFlags: rd ht\n"),
            Kind::HugeAnonymous
        );
        assert_eq!(of("1000-2000 rw-p 0 fe:0 7 /anon_hugepage\nVmFlags: rd wr\n"), Kind::FilePrivate);
        assert_eq!(of("1000-2000 rw-p 0 fe:0 7 /a\nVmFlags: rd ht\n"), Kind::FilePrivate);
        assert_eq!(of("1000-2000 r--s 0 fe:0 7 /a\nVmFlags: rd io\n"), Kind::FileShared);
        assert_eq!(of("1000-2000 r--p 0 0:0 0 [vvar_vclock]\nVmFlags: rd io pf\n"), Kind::Vvar);
    }

    #[test]
    fn what_cannot_be_dumped_is_refused_with_the_way_out() {
        let why = |text: &str| kind(text).unwrap_err();
        assert!(why("1000-2000 --xp 0 0:0 0 [uprobes]\n").contains("remove the probe"));
        assert!(why("1000-2000 rw-p 0 0:0 0\nVmFlags: rd ss\n").contains("without shadow stacks"));
        assert!(why("1000-2000 rw-p 0 0:0 0\nVmFlags: rd um\n").contains("userfaultfd"));
        assert!(why("1000-2000 rw-p 0 0:0 0\nVmFlags: rd ui\n").contains("userfaultfd"));
        assert!(why("1000-2000 rw-p 0 fe:0 7 /dev/x\nVmFlags: rd io pf\n").contains("device memory"));
        assert!(why("1000-2000 rw-s 0 0:1 7 /SYSV00000000 (deleted)\n").contains("detach it"));
        assert!(why("1000-2000 rw-s 0 0:1 7 /secretmem (deleted)\n").contains("secret memory"));
    }
}
