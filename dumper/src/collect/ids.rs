//! Ids of kernel objects, as `ids-PID.img` and the inventory name them.
//!
//! An id is a small number; equal numbers mean a shared object. The dumper's own ids go into the inventory
//! as `root_ids`: a namespace id of the task that equals the dumper's means "inherited from the restorer".
//! Processes share no address space, file system room or signal handlers with us nor with each other
//! (see [`super::sharing`]), so each gets the next number; some share a descriptor table. (`files_id`s equal to ours would
//! be refused as a corrupt image.)

use godwit_wire::image::core::TaskKobjIdsEntry;

/// The dumper's own numbers.
const OWN: u32 = 1;
/// The number of the first process of a tree; the others follow.
const FIRST: u32 = OWN + 1;

/// The dumper's own ids: `inventory_entry.root_ids`.
pub fn root() -> TaskKobjIdsEntry {
    numbered(OWN, OWN)
}

/// The ids of the process that is the `index`-th of its tree, and whose descriptor table was that of the `files`-th
/// first.
pub fn task(index: usize, files: usize) -> TaskKobjIdsEntry {
    numbered(FIRST + index as u32, files_id(files))
}

/// The number of the descriptor table that the `index`-th process of its tree was met with first: that in `fdinfo-N.img`.
pub fn files_id(index: usize) -> u32 {
    FIRST + index as u32
}

/// The number of the network namespace.
pub const NET_NS: u32 = 2;

/// Every namespace is the dumper's or inherited from the restorer (see [`super::namespaces`]), so both get
/// the same numbers, counted over all kinds.
fn numbered(own: u32, files_id: u32) -> TaskKobjIdsEntry {
    TaskKobjIdsEntry {
        vm_id: own,
        files_id,
        fs_id: own,
        sighand_id: own,
        pid_ns_id: Some(1),
        net_ns_id: Some(NET_NS),
        ipc_ns_id: Some(3),
        uts_ns_id: Some(4),
        mnt_ns_id: Some(5),
        user_ns_id: Some(6),
        cgroup_ns_id: Some(7),
        time_ns_id: Some(8),
    }
}
