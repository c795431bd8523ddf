//! State of a task and of its threads: registers, signals, timers, limits, credentials.
//!
//! Files: `core-TID.img`, `ids-PID.img`. Field numbers and types are those of CRIU's images/core.proto.

use super::check::schema;
use super::core_x86::ThreadInfoX86;
use super::creds::CredsEntry;
use super::rlimit::RlimitEntry;
use super::rseq::RseqEntry;
use super::sa::SaEntry;
use super::siginfo::SignalQueueEntry;
use super::timer::TaskTimersEntry;

/// `task_core_entry` (images/core.proto). What belongs to the task as a whole; only in the leader's core.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskCoreEntry {
    /// 1 alive, 2 dead (zombie), 3 stopped, 6 helper (criu/include/image.h `TASK_*`).
    #[prost(uint32, required, tag = "1")]
    pub task_state: u32,
    /// Raw wait status of a zombie (`/proc/PID/stat` field 52).
    #[prost(uint32, required, tag = "2")]
    pub exit_code: u32,
    /// Execution domain (`/proc/PID/personality`); CRIU 4.2 never restores it.
    #[prost(uint32, required, tag = "3")]
    pub personality: u32,
    /// `PF_*` bits of `/proc/PID/stat` field 9; informative.
    #[prost(uint32, required, tag = "4")]
    pub flags: u32,
    /// Blocked signals of the leader, bit n-1 = signal n.
    #[prost(uint64, required, tag = "5")]
    pub blk_sigset: u64,
    /// Command name, at most 15 bytes, not necessarily UTF-8.
    #[prost(bytes = "vec", required, tag = "6")]
    pub comm: Vec<u8>,
    /// Interval and POSIX timers.
    #[prost(message, optional, tag = "7")]
    pub timers: Option<TaskTimersEntry>,
    /// Resource limits.
    #[prost(message, optional, tag = "8")]
    pub rlimits: Option<TaskRlimitsEntry>,
    /// Cgroup set of the task (old place; CRIU 4 writes it per thread).
    #[prost(uint32, optional, tag = "9")]
    pub cg_set: Option<u32>,
    /// Pending signals of the whole task.
    #[prost(message, optional, tag = "10")]
    pub signals_s: Option<SignalQueueEntry>,
    /// Seccomp mode in images before it became a thread's.
    #[prost(enumeration = "SeccompMode", optional, tag = "11")]
    pub old_seccomp_mode: Option<i32>,
    /// Seccomp filter in images before it became a thread's.
    #[prost(uint32, optional, tag = "12")]
    pub old_seccomp_filter: Option<u32>,
    /// Audit login uid; 4294967295 = unset.
    #[prost(uint32, optional, tag = "13")]
    pub loginuid: Option<u32>,
    /// `/proc/PID/oom_score_adj`, -1000..=1000.
    #[prost(int32, optional, tag = "14")]
    pub oom_score_adj: Option<i32>,
    /// Signal actions of signals 1..=64 without 9 and 19: exactly 62, in order.
    #[prost(message, repeated, tag = "15")]
    pub sigactions: Vec<SaEntry>,
    /// `PR_GET_CHILD_SUBREAPER`.
    #[prost(bool, optional, tag = "18")]
    pub child_subreaper: Option<bool>,
    /// Second word of the blocked signals on MIPS.
    #[prost(uint64, optional, tag = "20")]
    pub blk_sigset_extended: Option<u64>,
    /// Signal that stopped a stopped task: SIGSTOP or SIGTSTP.
    #[prost(uint32, optional, tag = "21")]
    pub stop_signo: Option<u32>,
    /// Bits of `MEMBARRIER_CMD_GET_REGISTRATIONS`.
    #[prost(uint32, optional, tag = "22")]
    pub membarrier_registration_mask: Option<u32>,
}

/// `task_kobj_ids_entry` (images/core.proto). Small numbers that name the kernel objects of a task; equal
/// numbers mean a shared object. The one record of `ids-PID.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskKobjIdsEntry {
    /// Address space (`KCMP_VM`).
    #[prost(uint32, required, tag = "1")]
    pub vm_id: u32,
    /// Descriptor table (`KCMP_FILES`); names `fdinfo-N.img`.
    #[prost(uint32, required, tag = "2")]
    pub files_id: u32,
    /// Root, cwd and umask (`KCMP_FS`).
    #[prost(uint32, required, tag = "3")]
    pub fs_id: u32,
    /// Signal handlers (`KCMP_SIGHAND`).
    #[prost(uint32, required, tag = "4")]
    pub sighand_id: u32,
    /// Pid namespace.
    #[prost(uint32, optional, tag = "5")]
    pub pid_ns_id: Option<u32>,
    /// Network namespace; CRIU 4.2 crashes when it is missing.
    #[prost(uint32, optional, tag = "6")]
    pub net_ns_id: Option<u32>,
    /// IPC namespace.
    #[prost(uint32, optional, tag = "7")]
    pub ipc_ns_id: Option<u32>,
    /// UTS namespace.
    #[prost(uint32, optional, tag = "8")]
    pub uts_ns_id: Option<u32>,
    /// Mount namespace.
    #[prost(uint32, optional, tag = "9")]
    pub mnt_ns_id: Option<u32>,
    /// User namespace.
    #[prost(uint32, optional, tag = "10")]
    pub user_ns_id: Option<u32>,
    /// Cgroup namespace.
    #[prost(uint32, optional, tag = "11")]
    pub cgroup_ns_id: Option<u32>,
    /// Time namespace.
    #[prost(uint32, optional, tag = "12")]
    pub time_ns_id: Option<u32>,
}

/// `thread_sas_entry` (images/core.proto). Alternate signal stack (`man 2 sigaltstack`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThreadSasEntry {
    /// Lowest address.
    #[prost(uint64, required, tag = "1")]
    pub ss_sp: u64,
    /// Size in bytes.
    #[prost(uint64, required, tag = "2")]
    pub ss_size: u64,
    /// `SS_DISABLE`, `SS_ONSTACK`, `SS_AUTODISARM`.
    #[prost(uint32, required, tag = "3")]
    pub ss_flags: u32,
}

/// `thread_core_entry` (images/core.proto). What belongs to one thread.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThreadCoreEntry {
    /// Address of the robust futex list (`man 2 get_robust_list`).
    #[prost(uint64, required, tag = "1")]
    pub futex_rla: u64,
    /// Length of the list head in bytes, as given to `set_robust_list`.
    #[prost(uint32, required, tag = "2")]
    pub futex_rla_len: u32,
    /// Nice value, -20..=19.
    #[prost(sint32, optional, tag = "3")]
    pub sched_nice: Option<i32>,
    /// `SCHED_*` (`man 2 sched_setscheduler`).
    #[prost(uint32, optional, tag = "4")]
    pub sched_policy: Option<u32>,
    /// Real-time priority, 0 for the others.
    #[prost(uint32, optional, tag = "5")]
    pub sched_prio: Option<u32>,
    /// Blocked signals, bit n-1 = signal n.
    #[prost(uint64, optional, tag = "6")]
    pub blk_sigset: Option<u64>,
    /// Alternate signal stack.
    #[prost(message, optional, tag = "7")]
    pub sas: Option<ThreadSasEntry>,
    /// `PR_GET_PDEATHSIG`.
    #[prost(uint32, optional, tag = "8")]
    pub pdeath_sig: Option<u32>,
    /// Pending signals of this thread.
    #[prost(message, optional, tag = "9")]
    pub signals_p: Option<SignalQueueEntry>,
    /// Credentials.
    #[prost(message, optional, tag = "10")]
    pub creds: Option<CredsEntry>,
    /// Seccomp mode.
    #[prost(enumeration = "SeccompMode", optional, tag = "11")]
    pub seccomp_mode: Option<i32>,
    /// Index of its oldest filter in `seccomp.img`.
    #[prost(uint32, optional, tag = "12")]
    pub seccomp_filter: Option<u32>,
    /// Thread name, at most 15 bytes, not necessarily UTF-8.
    #[prost(bytes = "vec", optional, tag = "13")]
    pub comm: Option<Vec<u8>>,
    /// Second word of the blocked signals on MIPS.
    #[prost(uint64, optional, tag = "14")]
    pub blk_sigset_extended: Option<u64>,
    /// Restartable sequences registration.
    #[prost(message, optional, tag = "15")]
    pub rseq_entry: Option<RseqEntry>,
    /// Cgroup set of the thread.
    #[prost(uint32, optional, tag = "16")]
    pub cg_set: Option<u32>,
}

/// `task_rlimits_entry` (images/core.proto). Resource limits of a task.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskRlimitsEntry {
    /// 16 entries in the order of `RLIMIT_*`.
    #[prost(message, repeated, tag = "1")]
    pub rlimits: Vec<RlimitEntry>,
}

/// `core_entry` (images/core.proto). The one record of `core-TID.img`. Members for other architectures than
/// x86-64 are not read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CoreEntry {
    /// Architecture of the registers.
    #[prost(enumeration = "CoreMachine", required, tag = "1")]
    pub mtype: i32,
    /// Registers on x86-64.
    #[prost(message, optional, tag = "2")]
    pub thread_info: Option<ThreadInfoX86>,
    /// The task's own part, in the leader's image only.
    #[prost(message, optional, tag = "3")]
    pub tc: Option<TaskCoreEntry>,
    /// Kernel object ids in old images; CRIU 4 has `ids-PID.img`.
    #[prost(message, optional, tag = "4")]
    pub ids: Option<TaskKobjIdsEntry>,
    /// The thread's own part; absent for a zombie.
    #[prost(message, optional, tag = "5")]
    pub thread_core: Option<ThreadCoreEntry>,
}

/// Architecture of the registers in a core image (`core_entry.march`, images/core.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CoreMachine {
    /// Not set.
    Unknown = 0,
    /// x86-64.
    X8664 = 1,
    /// 32-bit ARM.
    Arm = 2,
    /// 64-bit ARM.
    Aarch64 = 3,
    /// 64-bit PowerPC.
    Ppc64 = 4,
    /// IBM Z.
    S390 = 5,
    /// MIPS.
    Mips = 6,
    /// LoongArch.
    Loongarch64 = 7,
    /// RISC-V.
    Riscv64 = 8,
}

/// Seccomp mode of a thread (`man 2 seccomp`) (`seccomp_mode`, images/core.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SeccompMode {
    /// No seccomp.
    Disabled = 0,
    /// Strict mode.
    Strict = 1,
    /// Filters installed.
    Filter = 2,
}

schema!(
    TaskCoreEntry,
    "task_core_entry",
    [(1, "task_state"), (2, "exit_code"), (3, "personality"), (4, "flags"), (5, "blk_sigset"), (6, "comm")],
    [(7, TaskTimersEntry), (8, TaskRlimitsEntry), (10, SignalQueueEntry), (15, SaEntry)]
);

schema!(
    TaskKobjIdsEntry,
    "task_kobj_ids_entry",
    [(1, "vm_id"), (2, "files_id"), (3, "fs_id"), (4, "sighand_id")],
    []
);

schema!(ThreadSasEntry, "thread_sas_entry", [(1, "ss_sp"), (2, "ss_size"), (3, "ss_flags")], []);

schema!(
    ThreadCoreEntry,
    "thread_core_entry",
    [(1, "futex_rla"), (2, "futex_rla_len")],
    [(7, ThreadSasEntry), (9, SignalQueueEntry), (10, CredsEntry), (15, RseqEntry)]
);

schema!(TaskRlimitsEntry, "task_rlimits_entry", [], [(1, RlimitEntry)]);

schema!(
    CoreEntry,
    "core_entry",
    [(1, "mtype")],
    [(2, ThreadInfoX86), (3, TaskCoreEntry), (4, TaskKobjIdsEntry), (5, ThreadCoreEntry)]
);
