//! Cgroups of the tree.
//!
//! Files: `cgroup.img`. Field numbers and types are those of CRIU's images/cgroup.proto.

use super::check::schema;

/// `cgroup_perms` (images/cgroup.proto). Owner and mode of a cgroup file or directory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupPerms {
    /// `st_mode`.
    #[prost(uint32, required, tag = "1")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, required, tag = "2")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, required, tag = "3")]
    pub gid: u32,
}

/// `cgroup_prop_entry` (images/cgroup.proto). One property file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupPropEntry {
    /// File name.
    #[prost(bytes = "vec", required, tag = "1")]
    pub name: Vec<u8>,
    /// Contents.
    #[prost(bytes = "vec", required, tag = "2")]
    pub value: Vec<u8>,
    /// Owner and mode.
    #[prost(message, optional, tag = "3")]
    pub perms: Option<CgroupPerms>,
}

/// `cgroup_dir_entry` (images/cgroup.proto). One cgroup directory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupDirEntry {
    /// Name, or path for the topmost.
    #[prost(bytes = "vec", required, tag = "1")]
    pub dir_name: Vec<u8>,
    /// Directories below.
    #[prost(message, repeated, tag = "2")]
    pub children: Vec<CgroupDirEntry>,
    /// Property files.
    #[prost(message, repeated, tag = "3")]
    pub properties: Vec<CgroupPropEntry>,
    /// Owner and mode.
    #[prost(message, optional, tag = "4")]
    pub dir_perms: Option<CgroupPerms>,
}

/// `cg_controller_entry` (images/cgroup.proto). One hierarchy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgControllerEntry {
    /// Controllers of the hierarchy; "" = cgroup v2.
    #[prost(string, repeated, tag = "1")]
    pub cnames: Vec<String>,
    /// Directories in use.
    #[prost(message, repeated, tag = "2")]
    pub dirs: Vec<CgroupDirEntry>,
    /// Holds threads of one task in different cgroups.
    #[prost(bool, optional, tag = "3")]
    pub is_threaded: Option<bool>,
}

/// `cg_member_entry` (images/cgroup.proto). Place of a task in one hierarchy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgMemberEntry {
    /// Controllers of the hierarchy; "" = cgroup v2, "name=X" a named one.
    #[prost(string, required, tag = "1")]
    pub name: String,
    /// Path in the hierarchy.
    #[prost(bytes = "vec", required, tag = "2")]
    pub path: Vec<u8>,
    /// Length of the cgroup namespace's root in `path`, in bytes.
    #[prost(uint32, optional, tag = "3")]
    pub cgns_prefix: Option<u32>,
}

/// `cg_set_entry` (images/cgroup.proto). A set of places that one or more threads share.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgSetEntry {
    /// Number that `cg_set` members refer to.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// One a hierarchy.
    #[prost(message, repeated, tag = "2")]
    pub ctls: Vec<CgMemberEntry>,
}

/// `cgroup_entry` (images/cgroup.proto). The one record of `cgroup.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupEntry {
    /// Sets other than the dumper's own.
    #[prost(message, repeated, tag = "1")]
    pub sets: Vec<CgSetEntry>,
    /// Hierarchies and their directories.
    #[prost(message, repeated, tag = "2")]
    pub controllers: Vec<CgControllerEntry>,
}

schema!(CgroupPerms, "cgroup_perms", [(1, "mode"), (2, "uid"), (3, "gid")], []);

schema!(CgroupPropEntry, "cgroup_prop_entry", [(1, "name"), (2, "value")], [(3, CgroupPerms)]);

schema!(
    CgroupDirEntry,
    "cgroup_dir_entry",
    [(1, "dir_name")],
    [(2, CgroupDirEntry), (3, CgroupPropEntry), (4, CgroupPerms)]
);

schema!(CgControllerEntry, "cg_controller_entry", [], [(2, CgroupDirEntry)]);

schema!(CgMemberEntry, "cg_member_entry", [(1, "name"), (2, "path")], []);

schema!(CgSetEntry, "cg_set_entry", [(1, "id")], [(2, CgMemberEntry)]);

schema!(CgroupEntry, "cgroup_entry", [], [(1, CgSetEntry), (2, CgControllerEntry)]);
