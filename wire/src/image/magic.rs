//! Every kind of image file: its magic words and its name.
//!
//! A file starts with one magic word (`inventory.img`), with two (a common word and one of its kind), or
//! with none (raw files). Values: criu/include/magic.h; names: criu/image-desc.c. Kinds that CRIU 4 only
//! reads, since older versions wrote them, are not listed.

/// First word of most images (`IMG_COMMON_MAGIC`).
pub const IMG_COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of `stats-*` and `irmap-cache` (`IMG_SERVICE_MAGIC`).
pub const IMG_SERVICE_MAGIC: u32 = 0x5510_5940;
/// First word of `godwit-manifest.img`; not one of CRIU's.
pub const MANIFEST_MAGIC: u32 = u32::from_le_bytes(*b"GDWT");

/// Kind of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageKind {
    /// What was dumped, by whom; written last.
    Inventory,
    /// Descriptors, named by files id.
    Fdinfo,
    /// A task's page list.
    Pagemap,
    /// A shared memory segment's page list.
    PagemapShmem,
    /// Registers and state of a thread.
    Core,
    /// Kernel object ids of a task.
    Ids,
    /// Address space of a task.
    Mm,
    /// Bytes in pipes.
    PipesData,
    /// Bytes in named pipes.
    FifoData,
    /// The process tree.
    Pstree,
    /// Bytes queued in sockets.
    SkQueues,
    /// Host name.
    Utsns,
    /// IPC sysctls.
    IpcVar,
    /// System V shared memory.
    IpcShm,
    /// System V message queues.
    IpcMsg,
    /// System V semaphores.
    IpcSem,
    /// Working and root directory of a task.
    Fs,
    /// How to open files whose path is gone.
    RemapFilePath,
    /// A file without a name.
    GhostFile,
    /// Memory files.
    Memfd,
    /// A TCP connection, named by socket inode.
    TcpStream,
    /// Mounts of a namespace.
    Mounts,
    /// Network devices.
    Netdev,
    /// Network namespace.
    Netns,
    /// Raw `ip addr save`.
    IfAddr,
    /// Raw `ip route save`.
    Route,
    /// Raw `ip -6 route save`.
    Route6,
    /// Raw `ip rule save`.
    Rule,
    /// Raw `iptables-save`.
    Iptables,
    /// Raw `ip6tables-save`.
    Ip6tables,
    /// Raw nftables rules.
    Nftables,
    /// Raw archive of a tmpfs, by mount id.
    TmpfsMount,
    /// Raw archive of a tmpfs, by device.
    TmpfsDev,
    /// An autofs mount.
    Autofs,
    /// Binary formats.
    BinfmtMisc,
    /// Terminals.
    TtyInfo,
    /// Bytes waiting in terminals.
    TtyData,
    /// File locks.
    FileLocks,
    /// Raw page contents.
    Pages,
    /// Cgroups.
    Cgroup,
    /// Features of the CPU.
    Cpuinfo,
    /// Seccomp filters.
    Seccomp,
    /// Id maps of a user namespace.
    Userns,
    /// Raw connection tracking entries.
    NetnsConntrack,
    /// Raw connection tracking expectations.
    NetnsExpect,
    /// Open files.
    Files,
    /// Clocks of a time namespace.
    Timens,
    /// A pid namespace.
    Pidns,
    /// BPF maps.
    BpfmapFile,
    /// Contents of BPF maps.
    BpfmapData,
    /// AppArmor policies.
    Apparmor,
    /// What the dump cost.
    StatsDump,
    /// What the restore cost.
    StatsRestore,
    /// Paths of watched inodes.
    IrmapCache,
    /// What a sealed directory must hold; godwit's own.
    Manifest,
}

/// How an image file starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// No magic: the file is raw bytes.
    Raw,
    /// The magic of the kind alone.
    Alone,
    /// [`IMG_COMMON_MAGIC`], then the magic of the kind.
    Common,
    /// [`IMG_SERVICE_MAGIC`], then the magic of the kind.
    Service,
}

/// How an image file is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// One file of this kind in a directory.
    Single(&'static str),
    /// Prefix, number in decimal, suffix.
    Decimal(&'static str, &'static str),
    /// Prefix, number in lower case hex, suffix.
    Hex(&'static str, &'static str),
}

impl ImageKind {
    /// Every kind, in the order of the enum.
    pub fn all() -> impl Iterator<Item = ImageKind> {
        TABLE.iter().map(|row| row.kind)
    }

    /// Magic of the kind; 0 for raw files.
    pub fn magic(self) -> u32 {
        self.row().magic
    }

    /// How the file starts.
    pub fn header(self) -> Header {
        self.row().header
    }

    /// How the file is named.
    pub fn pattern(self) -> NamePattern {
        self.row().pattern
    }

    /// Length of the header in bytes: 0, 4 or 8.
    pub fn header_len(self) -> usize {
        match self.header() {
            Header::Raw => 0,
            Header::Alone => 4,
            Header::Common | Header::Service => 8,
        }
    }

    /// File name of the image numbered `id`; kinds with a single file ignore it.
    pub fn file_name(self, id: u64) -> String {
        match self.pattern() {
            Single(name) => name.to_owned(),
            Decimal(prefix, suffix) => format!("{prefix}{id}{suffix}"),
            Hex(prefix, suffix) => format!("{prefix}{id:x}{suffix}"),
        }
    }

    /// The kind and the number (0 where there is none) that [`ImageKind::file_name`] makes `name` from.
    pub fn parse_name(name: &str) -> Option<(ImageKind, u64)> {
        TABLE.iter().find_map(|row| {
            let id = match row.pattern {
                Single(_) => 0,
                Decimal(prefix, suffix) => number(name, prefix, suffix, 10)?,
                Hex(prefix, suffix) => number(name, prefix, suffix, 16)?,
            };
            // Comparing with the made name refuses leading zeros, signs and capitals.
            (row.kind.file_name(id) == name).then_some((row.kind, id))
        })
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

fn number(name: &str, prefix: &str, suffix: &str, radix: u32) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?.strip_suffix(suffix)?, radix).ok()
}

struct Row {
    kind: ImageKind,
    header: Header,
    magic: u32,
    pattern: NamePattern,
}

const fn row(kind: ImageKind, header: Header, magic: u32, pattern: NamePattern) -> Row {
    Row { kind, header, magic, pattern }
}

use Header::{Alone, Common, Raw, Service};
use NamePattern::{Decimal, Hex, Single};

static TABLE: [Row; 55] = [
    row(ImageKind::Inventory, Alone, 0x5831_3116, Single("inventory.img")),
    row(ImageKind::Fdinfo, Common, 0x5621_3732, Decimal("fdinfo-", ".img")),
    row(ImageKind::Pagemap, Common, 0x5608_4025, Decimal("pagemap-", ".img")),
    row(ImageKind::PagemapShmem, Common, 0x5608_4025, Decimal("pagemap-shmem-", ".img")),
    row(ImageKind::Core, Common, 0x5505_3847, Decimal("core-", ".img")),
    row(ImageKind::Ids, Common, 0x5443_2030, Decimal("ids-", ".img")),
    row(ImageKind::Mm, Common, 0x5749_2820, Decimal("mm-", ".img")),
    row(ImageKind::PipesData, Common, 0x5645_3709, Single("pipes-data.img")),
    row(ImageKind::FifoData, Common, 0x5933_3054, Single("fifo-data.img")),
    row(ImageKind::Pstree, Common, 0x5027_3030, Single("pstree.img")),
    row(ImageKind::SkQueues, Common, 0x5626_4026, Single("sk-queues.img")),
    row(ImageKind::Utsns, Common, 0x5447_3203, Decimal("utsns-", ".img")),
    row(ImageKind::IpcVar, Common, 0x5311_5007, Decimal("ipcns-var-", ".img")),
    row(ImageKind::IpcShm, Common, 0x4628_3044, Decimal("ipcns-shm-", ".img")),
    row(ImageKind::IpcMsg, Common, 0x5545_3737, Decimal("ipcns-msg-", ".img")),
    row(ImageKind::IpcSem, Common, 0x5957_3019, Decimal("ipcns-sem-", ".img")),
    row(ImageKind::Fs, Common, 0x5140_3912, Decimal("fs-", ".img")),
    row(ImageKind::RemapFilePath, Common, 0x5913_3954, Single("remap-fpath.img")),
    row(ImageKind::GhostFile, Common, 0x5258_3605, Hex("ghost-file-", ".img")),
    row(ImageKind::Memfd, Common, 0x4845_3499, Single("memfd.img")),
    row(ImageKind::TcpStream, Common, 0x5146_5506, Hex("tcp-stream-", ".img")),
    row(ImageKind::Mounts, Common, 0x5556_3928, Decimal("mountpoints-", ".img")),
    row(ImageKind::Netdev, Common, 0x5737_3951, Decimal("netdev-", ".img")),
    row(ImageKind::Netns, Common, 0x5593_3752, Decimal("netns-", ".img")),
    row(ImageKind::IfAddr, Raw, 0, Decimal("ifaddr-", ".img")),
    row(ImageKind::Route, Raw, 0, Decimal("route-", ".img")),
    row(ImageKind::Route6, Raw, 0, Decimal("route6-", ".img")),
    row(ImageKind::Rule, Raw, 0, Decimal("rule-", ".img")),
    row(ImageKind::Iptables, Raw, 0, Decimal("iptables-", ".img")),
    row(ImageKind::Ip6tables, Raw, 0, Decimal("ip6tables-", ".img")),
    row(ImageKind::Nftables, Raw, 0, Decimal("nftables-", ".img")),
    row(ImageKind::TmpfsMount, Raw, 0, Decimal("tmpfs-", ".tar.gz.img")),
    row(ImageKind::TmpfsDev, Raw, 0, Decimal("tmpfs-dev-", ".tar.gz.img")),
    row(ImageKind::Autofs, Common, 0x4935_3943, Decimal("autofs-", ".img")),
    row(ImageKind::BinfmtMisc, Common, 0x6734_3323, Single("binfmt-misc.img")),
    row(ImageKind::TtyInfo, Common, 0x5945_3036, Single("tty-info.img")),
    row(ImageKind::TtyData, Common, 0x5941_3026, Single("tty-data.img")),
    row(ImageKind::FileLocks, Common, 0x5432_3616, Single("filelocks.img")),
    row(ImageKind::Pages, Raw, 0, Decimal("pages-", ".img")),
    row(ImageKind::Cgroup, Common, 0x5938_3330, Single("cgroup.img")),
    row(ImageKind::Cpuinfo, Common, 0x6140_4013, Single("cpuinfo.img")),
    row(ImageKind::Seccomp, Common, 0x6441_3049, Single("seccomp.img")),
    row(ImageKind::Userns, Common, 0x5547_4906, Decimal("userns-", ".img")),
    row(ImageKind::NetnsConntrack, Raw, 0, Decimal("netns-ct-", ".img")),
    row(ImageKind::NetnsExpect, Raw, 0, Decimal("netns-exp-", ".img")),
    row(ImageKind::Files, Common, 0x5630_3138, Single("files.img")),
    row(ImageKind::Timens, Common, 0x4311_4433, Decimal("timens-", ".img")),
    row(ImageKind::Pidns, Common, 0x6115_7326, Decimal("pidns-", ".img")),
    row(ImageKind::BpfmapFile, Common, 0x5750_6142, Single("bpfmap-file.img")),
    row(ImageKind::BpfmapData, Common, 0x6432_4033, Single("bpfmap-data.img")),
    row(ImageKind::Apparmor, Common, 0x5942_3047, Single("apparmor.img")),
    row(ImageKind::StatsDump, Service, 0x5709_3306, Single("stats-dump")),
    row(ImageKind::StatsRestore, Service, 0x5709_3306, Single("stats-restore")),
    row(ImageKind::IrmapCache, Service, 0x5700_4059, Single("irmap-cache")),
    row(ImageKind::Manifest, Alone, MANIFEST_MAGIC, Single("godwit-manifest.img")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.kind as usize, index);
            assert_eq!(row.magic == 0, row.header == Raw);
        }
    }

    #[test]
    fn names_are_made_and_recognised() {
        assert_eq!(ImageKind::Core.file_name(17), "core-17.img");
        assert_eq!(ImageKind::GhostFile.file_name(0x1f), "ghost-file-1f.img");
        assert_eq!(ImageKind::TmpfsDev.file_name(3), "tmpfs-dev-3.tar.gz.img");
        assert_eq!(ImageKind::parse_name("pagemap-shmem-7.img"), Some((ImageKind::PagemapShmem, 7)));
        assert_eq!(ImageKind::parse_name("pagemap-7.img"), Some((ImageKind::Pagemap, 7)));
        for name in ["core-.img", "core-07.img", "core-+7.img", "ghost-file-1F.img", "core-7.img.x", "parent"]
        {
            assert_eq!(ImageKind::parse_name(name), None, "{name}");
        }
        for kind in ImageKind::all() {
            let id = if matches!(kind.pattern(), Single(_)) { 0 } else { 123 };
            assert_eq!(ImageKind::parse_name(&kind.file_name(id)), Some((kind, id)));
        }
    }
}
