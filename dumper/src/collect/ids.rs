//! Ids of kernel objects, as `ids-PID.img` and the inventory name them.
//!
//! An id is a small number; equal numbers mean a shared object. The dumper's own ids go into the inventory
//! as `root_ids`: a namespace id of the task that equals the dumper's means "inherited from the restorer".
//! The task shares no address space, descriptor table, file system room or signal handlers with us, so
//! there it gets the next number (equal `files_id`s would be refused as a corrupt image).

use godwit_wire::image::core::TaskKobjIdsEntry;

/// `files_id` of the one task: the number in `fdinfo-N.img`.
pub const TASK_FILES_ID: u32 = 2;

/// The dumper's own ids: `inventory_entry.root_ids`.
pub fn root() -> TaskKobjIdsEntry {
    numbered(1)
}

/// The ids of the one task of the tree.
pub fn task() -> TaskKobjIdsEntry {
    numbered(TASK_FILES_ID)
}

/// Every namespace is the dumper's or inherited from the restorer (see [`super::namespaces`]), so both get
/// the same numbers, counted over all kinds.
fn numbered(own: u32) -> TaskKobjIdsEntry {
    TaskKobjIdsEntry {
        vm_id: own,
        files_id: own,
        fs_id: own,
        sighand_id: own,
        pid_ns_id: Some(1),
        net_ns_id: Some(2),
        ipc_ns_id: Some(3),
        uts_ns_id: Some(4),
        mnt_ns_id: Some(5),
        user_ns_id: Some(6),
        cgroup_ns_id: Some(7),
        time_ns_id: Some(8),
    }
}
