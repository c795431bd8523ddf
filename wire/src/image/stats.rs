//! What a dump or a restore cost; never read by a restore.
//!
//! Files: `stats-dump`, `stats-restore`. Field numbers and types are those of CRIU's images/stats.proto.

use super::check::schema;

/// `dump_stats_entry` (images/stats.proto). Of a dump; times in microseconds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DumpStatsEntry {
    /// Time to stop all tasks.
    #[prost(uint32, required, tag = "1")]
    pub freezing_time: u32,
    /// Time the tasks were stopped.
    #[prost(uint32, required, tag = "2")]
    pub frozen_time: u32,
    /// Time to collect memory.
    #[prost(uint32, required, tag = "3")]
    pub memdump_time: u32,
    /// Time to write memory.
    #[prost(uint32, required, tag = "4")]
    pub memwrite_time: u32,
    /// Pages looked at.
    #[prost(uint64, required, tag = "5")]
    pub pages_scanned: u64,
    /// Pages found in the parent images.
    #[prost(uint64, required, tag = "6")]
    pub pages_skipped_parent: u64,
    /// Pages written.
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
    /// Time to resolve inodes to paths.
    #[prost(uint32, optional, tag = "8")]
    pub irmap_resolve: Option<u32>,
    /// Pages left for lazy restore.
    #[prost(uint64, required, tag = "9")]
    pub pages_lazy: u64,
    /// Pipes used.
    #[prost(uint64, optional, tag = "10")]
    pub page_pipes: Option<u64>,
    /// Pipe buffers used.
    #[prost(uint64, optional, tag = "11")]
    pub page_pipe_bufs: Option<u64>,
    /// Shared pages looked at.
    #[prost(uint64, optional, tag = "12")]
    pub shpages_scanned: Option<u64>,
    /// Shared pages found in the parent images.
    #[prost(uint64, optional, tag = "13")]
    pub shpages_skipped_parent: Option<u64>,
    /// Shared pages written.
    #[prost(uint64, optional, tag = "14")]
    pub shpages_written: Option<u64>,
}

/// `restore_stats_entry` (images/stats.proto). Of a restore; times in microseconds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestoreStatsEntry {
    /// Pages compared with the parent's.
    #[prost(uint64, required, tag = "1")]
    pub pages_compared: u64,
    /// Pages left shared with the parent.
    #[prost(uint64, required, tag = "2")]
    pub pages_skipped_cow: u64,
    /// Time to fork the tree.
    #[prost(uint32, required, tag = "3")]
    pub forking_time: u32,
    /// Time of the whole restore.
    #[prost(uint32, required, tag = "4")]
    pub restore_time: u32,
    /// Pages filled.
    #[prost(uint64, optional, tag = "5")]
    pub pages_restored: Option<u64>,
}

/// `stats_entry` (images/stats.proto). The one record of the file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsEntry {
    /// Of a dump.
    #[prost(message, optional, tag = "1")]
    pub dump: Option<DumpStatsEntry>,
    /// Of a restore.
    #[prost(message, optional, tag = "2")]
    pub restore: Option<RestoreStatsEntry>,
}

schema!(
    DumpStatsEntry,
    "dump_stats_entry",
    [
        (1, "freezing_time"),
        (2, "frozen_time"),
        (3, "memdump_time"),
        (4, "memwrite_time"),
        (5, "pages_scanned"),
        (6, "pages_skipped_parent"),
        (7, "pages_written"),
        (9, "pages_lazy")
    ],
    []
);

schema!(
    RestoreStatsEntry,
    "restore_stats_entry",
    [(1, "pages_compared"), (2, "pages_skipped_cow"), (3, "forking_time"), (4, "restore_time")],
    []
);

schema!(StatsEntry, "stats_entry", [], [(1, DumpStatsEntry), (2, RestoreStatsEntry)]);
