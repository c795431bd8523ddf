//! Every step of a dump, in order, by name.
//!
//! The order is CRIU's own (`cr_dump_tasks`, criu/cr-dump.c), numbered 0 to 33 with the late additions
//! 15b, 17b, 20b and 29b. A step is work, or a check that proves that there is nothing to do, or refuses
//! by name; of a few nothing is left, since an earlier one has looked under the same freeze (`flow::no_more`). [`Steps::run`] wraps each in a span, takes its time, and is the place where tests make it fail.

use std::time::{Duration, Instant};

use godwit_wire::fault;

use crate::error::DumpError;
use crate::interrupt;

/// A step of the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// 0: raise our own limit of open descriptors.
    RaiseLimits,
    /// 1: pin the root task by a pidfd.
    RootItem,
    /// 2: run the `pre-dump` action scripts.
    PreDumpScripts,
    /// 3: start the statistics.
    InitStats,
    /// 4: load the plugins that were named.
    Plugins,
    /// 5: probe the kernel.
    Kerndat,
    /// 6: inotify path cache: none is kept (`prepare::survey::descriptors`).
    IrmapCache,
    /// 7: the processor's XSAVE layout.
    CpuInit,
    /// 8: where the task's vDSO lies.
    VdsoInit,
    /// 9: cgroup properties.
    CgroupProps,
    /// 10: the cgroups that the task is in.
    CgroupInfo,
    /// 11: ids of the dumper itself.
    PrepareInventory,
    /// 12: the processor state in use fits the image format.
    CpuInfo,
    /// 13: the session at the page server, or the local directory.
    Connect,
    /// 14: the deadline of the freeze.
    Alarm,
    /// 15: seize and stop every thread.
    CollectPstree,
    /// 15b: devices with state of their own (GPUs): plugins save it.
    CheckpointDevices,
    /// 16: ids of the tasks' kernel objects.
    CollectIds,
    /// 17: lock the network.
    NetworkLock,
    /// 17b: collect file locks.
    CollectFileLocks,
    /// 18: namespaces.
    CollectNamespaces,
    /// 19: the global images.
    OpenImages,
    /// 20: seccomp filters.
    CollectSeccomp,
    /// 20b: security labels.
    CollectLsm,
    /// 21: one task: memory map, files, signals, registers, credentials, pages.
    DumpTask,
    /// 22: descriptors into `/proc` of dead processes whose pid was taken again.
    DeadPidConflict,
    /// 23: mount namespaces.
    DumpMountNamespaces,
    /// 24: write the file locks.
    DumpFileLocks,
    /// 25: terminals' sessions.
    VerifyTtySids,
    /// 26: zombies.
    DumpZombies,
    /// 27: the process tree.
    DumpPstree,
    /// 28: shared memory segments.
    DumpShmem,
    /// 29: contents of namespaces.
    DumpNamespaces,
    /// 29b: clocks.
    DumpTimeNs,
    /// 30: cgroups.
    DumpCgroups,
    /// 31: unix sockets with a peer outside.
    FixExternalUnixSockets,
    /// 32: terminals' queues.
    TtyPostActions,
    /// 33: the inventory, last.
    WriteInventory,
}

impl Step {
    /// Every step, in the order in which a dump takes them.
    pub const ALL: [Step; 38] = [
        Step::RaiseLimits,
        Step::RootItem,
        Step::PreDumpScripts,
        Step::InitStats,
        Step::Plugins,
        Step::Kerndat,
        Step::IrmapCache,
        Step::CpuInit,
        Step::VdsoInit,
        Step::CgroupProps,
        Step::CgroupInfo,
        Step::PrepareInventory,
        Step::CpuInfo,
        Step::Connect,
        Step::Alarm,
        Step::CollectPstree,
        Step::CheckpointDevices,
        Step::CollectIds,
        Step::NetworkLock,
        Step::CollectFileLocks,
        Step::CollectNamespaces,
        Step::OpenImages,
        Step::CollectSeccomp,
        Step::CollectLsm,
        Step::DumpTask,
        Step::DeadPidConflict,
        Step::DumpMountNamespaces,
        Step::DumpFileLocks,
        Step::VerifyTtySids,
        Step::DumpZombies,
        Step::DumpPstree,
        Step::DumpShmem,
        Step::DumpNamespaces,
        Step::DumpTimeNs,
        Step::DumpCgroups,
        Step::FixExternalUnixSockets,
        Step::TtyPostActions,
        Step::WriteInventory,
    ];

    /// Name in logs, errors and fault points.
    pub fn name(self) -> &'static str {
        match self {
            Step::RaiseLimits => "raise-limits",
            Step::RootItem => "root-item",
            Step::PreDumpScripts => "pre-dump-scripts",
            Step::InitStats => "init-stats",
            Step::Plugins => "plugins",
            Step::Kerndat => "kerndat",
            Step::IrmapCache => "irmap-cache",
            Step::CpuInit => "cpu-init",
            Step::VdsoInit => "vdso-init",
            Step::CgroupProps => "cgroup-props",
            Step::CgroupInfo => "cgroup-info",
            Step::PrepareInventory => "prepare-inventory",
            Step::CpuInfo => "cpu-info",
            Step::Connect => "connect",
            Step::Alarm => "alarm",
            Step::CollectPstree => "collect-pstree",
            Step::CheckpointDevices => "checkpoint-devices",
            Step::CollectIds => "collect-ids",
            Step::NetworkLock => "network-lock",
            Step::CollectFileLocks => "collect-file-locks",
            Step::CollectNamespaces => "collect-namespaces",
            Step::OpenImages => "open-images",
            Step::CollectSeccomp => "collect-seccomp",
            Step::CollectLsm => "collect-lsm",
            Step::DumpTask => "dump-task",
            Step::DeadPidConflict => "dead-pid-conflict",
            Step::DumpMountNamespaces => "dump-mount-namespaces",
            Step::DumpFileLocks => "dump-file-locks",
            Step::VerifyTtySids => "verify-tty-sids",
            Step::DumpZombies => "dump-zombies",
            Step::DumpPstree => "dump-pstree",
            Step::DumpShmem => "dump-shmem",
            Step::DumpNamespaces => "dump-namespaces",
            Step::DumpTimeNs => "dump-time-ns",
            Step::DumpCgroups => "dump-cgroups",
            Step::FixExternalUnixSockets => "fix-external-unix-sockets",
            Step::TtyPostActions => "tty-post-actions",
            Step::WriteInventory => "write-inventory",
        }
    }
}

/// Takes steps: each gets a span, its time is kept, and a test can make it fail before or after its effect
/// (`GODWIT_FAULT=step.before.NAME:error`, see `godwit_wire::fault`). Where a step does several things with an effect,
/// the rooms have points of their own in between, named `mid.ROOM.PLACE`.
#[derive(Debug, Default)]
pub struct Steps {
    taken: Vec<(Step, Duration)>,
}

impl Steps {
    /// Takes one step.
    ///
    /// # Errors
    /// What the step errs with, or [`DumpError::Injected`].
    pub fn run<T>(
        &mut self,
        step: Step,
        work: impl FnOnce() -> Result<T, DumpError>,
    ) -> Result<T, DumpError> {
        let span = tracing::debug_span!("step", name = step.name());
        let _entered = span.enter();
        interrupt::check()?;
        inject(step, "before")?;
        let begun = Instant::now();
        let outcome = work()?;
        let took = begun.elapsed();
        tracing::debug!(?took, "taken");
        self.taken.push((step, took));
        inject(step, "after")?;
        Ok(outcome)
    }

    /// The steps taken so far, in order, with the time each took.
    pub fn taken(&self) -> &[(Step, Duration)] {
        &self.taken
    }
}

fn inject(step: Step, when: &'static str) -> Result<(), DumpError> {
    if !fault::any_armed() {
        return Ok(());
    }
    fault::point(&format!("step.{when}.{}", step.name())).map_err(|_| DumpError::Injected { step, when })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let names: HashSet<_> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
    }
}
