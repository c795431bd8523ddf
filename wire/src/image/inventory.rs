//! The first file a restore reads and the last a dump writes: what was dumped, and by whom.
//!
//! Files: `inventory.img`. Field numbers and types are those of CRIU's images/inventory.proto.

use super::check::schema;
use super::core::TaskKobjIdsEntry;

/// `plugins_entry` (images/inventory.proto). Plugins that took part in the dump. An absent message means an
/// old image, for which CRIU enables every plugin; so it is written even when empty.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginsEntry {
    /// Plugin names, as in the plugin's descriptor.
    #[prost(string, repeated, tag = "12")]
    pub plugins: Vec<String>,
}

/// `inventory_entry` (images/inventory.proto). The one record of `inventory.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InventoryEntry {
    /// Layout of the other images: 2 = each has a common and a type magic; 0 = a pre-dump round.
    #[prost(uint32, required, tag = "1")]
    pub img_version: u32,
    /// `fdinfo-N.img` is named by files id; CRIU 4 refuses images where this is not true.
    #[prost(bool, optional, tag = "2")]
    pub fdinfo_per_id: Option<bool>,
    /// Kernel object ids of the dumper itself; an id equal to the root task's means "inherit from the
    /// restorer".
    #[prost(message, optional, tag = "3")]
    pub root_ids: Option<TaskKobjIdsEntry>,
    /// Namespace images are named by namespace id, not by pid.
    #[prost(bool, optional, tag = "4")]
    pub ns_per_id: Option<bool>,
    /// Cgroup set of the dumper; tasks in the same set stay in the restorer's cgroups.
    #[prost(uint32, optional, tag = "5")]
    pub root_cg_set: Option<u32>,
    /// Security module of the source host.
    #[prost(enumeration = "Lsmtype", optional, tag = "6")]
    pub lsmtype: Option<i32>,
    /// `/proc/uptime` at the end of the previous round's freeze, in microseconds.
    #[prost(uint64, optional, tag = "8")]
    pub dump_uptime: Option<u64>,
    /// How a pre-dump read memory: 1 = splice, 2 = read.
    #[prost(uint32, optional, tag = "9")]
    pub pre_dump_mode: Option<u32>,
    /// Dumped with `--tcp-close`; restore then needs the same option.
    #[prost(bool, optional, tag = "10")]
    pub tcp_close: Option<bool>,
    /// How the network was locked: 0 = iptables, 1 = nftables, 2 = not at all. Absent means iptables.
    #[prost(uint32, optional, tag = "11")]
    pub network_lock_method: Option<u32>,
    /// Plugins that took part in the dump.
    #[prost(message, optional, tag = "12")]
    pub plugins_entry: Option<PluginsEntry>,
    /// UUID of the dump's run; names the nftables table to remove after restore.
    #[prost(string, optional, tag = "13")]
    pub dump_criu_run_id: Option<String>,
    /// Dumped with uprobes present; restore then needs `--allow-uprobes`.
    #[prost(bool, optional, tag = "14")]
    pub allow_uprobes: Option<bool>,
}

/// Security module of a host (`lsmtype`, images/inventory.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Lsmtype {
    /// None that CRIU knows.
    NoLsm = 0,
    /// SELinux.
    Selinux = 1,
    /// AppArmor.
    Apparmor = 2,
}

schema!(PluginsEntry, "plugins_entry", [], []);

schema!(InventoryEntry, "inventory_entry", [(1, "img_version")], [(3, TaskKobjIdsEntry), (12, PluginsEntry)]);
