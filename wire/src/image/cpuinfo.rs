//! Features of the source's CPU.
//!
//! Files: `cpuinfo.img`. Field numbers and types are those of CRIU's images/cpuinfo.proto.

use super::check::schema;

/// `cpuinfo_x86_entry` (images/cpuinfo.proto). An x86 CPU.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuinfoX86Entry {
    /// Maker.
    #[prost(enumeration = "CpuinfoX86Vendor", required, tag = "1")]
    pub vendor_id: i32,
    /// Family.
    #[prost(uint32, required, tag = "2")]
    pub cpu_family: u32,
    /// Model.
    #[prost(uint32, required, tag = "3")]
    pub model: u32,
    /// Stepping.
    #[prost(uint32, required, tag = "4")]
    pub stepping: u32,
    /// Version of the word list in `capability`.
    #[prost(uint32, required, tag = "5")]
    pub capability_ver: u32,
    /// Feature words.
    #[prost(uint32, repeated, packed = "false", tag = "6")]
    pub capability: Vec<u32>,
    /// Model name.
    #[prost(string, optional, tag = "7")]
    pub model_id: Option<String>,
    /// Extended state components enabled.
    #[prost(uint64, optional, tag = "8")]
    pub xfeatures_mask: Option<u64>,
    /// Size in bytes of the extended state in use.
    #[prost(uint32, optional, tag = "9")]
    pub xsave_size: Option<u32>,
    /// Largest size in bytes of the extended state.
    #[prost(uint32, optional, tag = "10")]
    pub xsave_size_max: Option<u32>,
}

/// `cpuinfo_entry` (images/cpuinfo.proto). The one record of `cpuinfo.img`. Other architectures' members
/// are not read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuinfoEntry {
    /// One record, or none on another architecture.
    #[prost(message, repeated, tag = "1")]
    pub x86_entry: Vec<CpuinfoX86Entry>,
}

/// Maker of an x86 CPU (`cpuinfo_x86_entry.vendor`, images/cpuinfo.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CpuinfoX86Vendor {
    /// Another.
    Unknown = 0,
    /// Intel.
    Intel = 1,
    /// AMD.
    Amd = 2,
}

schema!(
    CpuinfoX86Entry,
    "cpuinfo_x86_entry",
    [(1, "vendor_id"), (2, "cpu_family"), (3, "model"), (4, "stepping"), (5, "capability_ver")],
    []
);

schema!(CpuinfoEntry, "cpuinfo_entry", [], [(1, CpuinfoX86Entry)]);
