//! One task, whole: what `criu dump` writes for it, in CRIU's order.
//!
//! In reading order: `vmas` (memory map), `aio` (rings of io_setup), `special` (executable and directories),
//! `files` (descriptors),
//! `asked` (what only the task can say), `signals`, `interrupted` (what they make of calls), `core` (registers), `creds`,
//! `threads` (a thread's record),
//! `says` (all that is asked of a task), `images` (all that is made of a tree),
//! `mm` (address space), `shmem` (shared memory segments), `settings` (what no image holds).

pub mod aio;
pub mod asked;
pub mod core;
pub mod creds;
pub mod files;
pub mod images;
pub mod interrupted;
pub mod mm;
pub mod says;
pub mod settings;
pub mod shmem;
pub mod signals;
pub mod special;
pub mod threads;
pub mod vmas;

use nix::unistd::Pid;

use godwit_wire::image::core::{CoreEntry, CoreMachine, TaskCoreEntry, TaskRlimitsEntry};
use godwit_wire::image::fs::FsEntry;
use godwit_wire::image::rlimit::RlimitEntry;
use godwit_wire::image::siginfo::SignalQueueEntry;

use crate::collect::tree::Zombie;
use crate::error::DumpError;
use crate::procfs::stat::Stat;
use crate::procfs::{attr, limits};
use asked::TaskSays;

/// Task states of `task_core_entry` (criu/include/image.h).
mod state {
    pub const ALIVE: u32 = 1;
    pub const DEAD: u32 = 2;
    pub const STOPPED: u32 = 3;
}

/// The part of the leader's record that belongs to the task as a whole.
///
/// `sigmask` is the leader's blocked signals; `stopped_by` is the signal that a job-control stop was made by,
/// if it was stopped; `signals_s` are the pending signals of the process.
///
/// # Errors
/// When `/proc` does not tell.
pub fn task_core(
    pid: Pid,
    stat: &Stat,
    says: &TaskSays,
    sigmask: u64,
    stopped_by: Option<u32>,
    signals_s: SignalQueueEntry,
) -> Result<TaskCoreEntry, DumpError> {
    Ok(TaskCoreEntry {
        task_state: if stopped_by.is_some() { state::STOPPED } else { state::ALIVE },
        exit_code: 0,
        personality: attr::personality(pid)?,
        flags: stat.flags as u32,
        blk_sigset: sigmask,
        // Not the name in `stat`, where the kernel escapes line ends and backslashes.
        comm: attr::comm(pid, pid)?,
        timers: Some(says.timers.clone()),
        rlimits: Some(rlimits(pid)?),
        cg_set: Some(threads::CG_SET),
        signals_s: Some(signals_s),
        loginuid: attr::loginuid(pid).ok(),
        oom_score_adj: Some(attr::oom_score_adj(pid)?),
        sigactions: says.sigactions.clone(),
        child_subreaper: Some(says.child_subreaper),
        stop_signo: stopped_by,
        membarrier_registration_mask: says.membarrier,
        ..TaskCoreEntry::default()
    })
}

/// The record of a process that has ended and was not waited for.
pub fn dead(zombie: &Zombie) -> CoreEntry {
    CoreEntry {
        mtype: CoreMachine::X8664.into(),
        tc: Some(TaskCoreEntry {
            task_state: state::DEAD,
            exit_code: zombie.exit_code as u32,
            comm: zombie.comm.clone(),
            ..TaskCoreEntry::default()
        }),
        ..CoreEntry::default()
    }
}

/// Read from `/proc`: `prlimit` on another user's process needs CAP_SYS_RESOURCE, which even root may lack.
fn rlimits(pid: Pid) -> Result<TaskRlimitsEntry, DumpError> {
    let entries = limits::read(pid)?.map(|limit| RlimitEntry { cur: limit.soft, max: limit.hard });
    Ok(TaskRlimitsEntry { rlimits: entries.to_vec() })
}

/// Working directory, root directory and umask (images/fs.proto).
///
/// # Errors
/// When the directories' links cannot be read.
pub fn fs(pid: Pid, umask: Option<u32>, table: &mut files::FileTable) -> Result<FsEntry, DumpError> {
    Ok(FsEntry {
        cwd_id: special::file(pid, "cwd", table)?,
        root_id: special::file(pid, "root", table)?,
        umask,
    })
}
