//! Every victim that a dump must bring back whole, once: of one process in [`ALL`], of several in [`TREES`]. A new one is one
//! line, and is then
//! dumped and restored under both CRIUs, left running, migrated with rounds, compared with CRIU's own dump, and dumped
//! and restored by CRIU alone.

/// A test that goes through the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum In {
    /// `e2e_dump`: dumped, killed, restored under 4.1.
    Dump41,
    /// `e2e_dump`: the same under 4.2.
    Dump42,
    /// `e2e_dump`: left running, and the source asked.
    LeaveRunning,
    /// `e2e_dump`: after that a copy is restored as well, and asked. Not for those whose check changes files.
    SecondCopy,
    /// `e2e_migrate`: moved with three rounds.
    Migrate,
    /// `oracle`: our images beside CRIU's of the same stopped process.
    Oracle,
    /// `victims_notice`: dumped and restored by CRIU alone.
    CriuAlone,
}

/// A victim, its arguments, and the tests that leave it out.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    pub name: &'static str,
    pub args: &'static [&'static str],
    /// Arguments with which CRIU itself can dump and restore it (`victims_notice`); the oracle takes them too.
    pub criu_args: &'static [&'static str],
    /// Arguments where godwit's images are compared with CRIU's.
    pub oracle_args: &'static [&'static str],
    left_out: &'static [(In, &'static str)],
}

/// A victim that is in every test, without arguments.
const fn victim(name: &'static str) -> Listed {
    Listed { name, args: &[], criu_args: &[], oracle_args: &[], left_out: &[] }
}

impl Listed {
    /// Arguments for all tests.
    const fn args(self, args: &'static [&'static str]) -> Listed {
        Listed { args, criu_args: args, oracle_args: args, ..self }
    }

    /// Arguments where CRIU dumps it. After [`Listed::args`].
    const fn criu(self, criu_args: &'static [&'static str]) -> Listed {
        Listed { criu_args, oracle_args: criu_args, ..self }
    }

    /// Arguments where both dump it. After [`Listed::criu`].
    const fn oracle(self, oracle_args: &'static [&'static str]) -> Listed {
        Listed { oracle_args, ..self }
    }

    /// Tests that leave it out, each with its reason.
    const fn but(self, left_out: &'static [(In, &'static str)]) -> Listed {
        Listed { left_out, ..self }
    }

    /// Whether the test has it.
    pub fn is_in(&self, test: In) -> bool {
        self.left_out.iter().all(|(other, _)| *other != test)
    }
}

/// The number of a pseudoterminal is taken while the source has it.
const ONE_NUMBER: &[(In, &str)] = &[
    (In::SecondCopy, "the source has the numbers of its terminals"),
    (In::Migrate, "as above: it has a test of its own"),
];

/// The list.
#[rustfmt::skip]
pub const ALL: &[Listed] = &[
    victim("mem").criu(&["shared"]).but(&[(In::SecondCopy, "its check writes to its files")]),
    victim("regs"),
    victim("threads"),
    victim("signals"),
    victim("timers"),
    victim("creds").criu(&["same-uid"]),
    victim("limits"),
    victim("files").but(&[(In::SecondCopy, "its check writes to its files")]),
    victim("locks").but(&[
        (In::LeaveRunning, "two processes cannot hold its locks"),
        (In::Migrate, "source and copy share the lock manager: it has a test of its own"),
    ]),
    victim("waits").args(&["strict"]).criu(&[]),
    victim("busy").args(&["16", "3", "1000"]).criu(&["8", "2", "1000"]).but(&[
        (In::LeaveRunning, "two copies would write to one log"),
        (In::Migrate, "it has tests of its own"),
    ]),
    victim("alive"),
    victim("mutator").args(&["11"]).criu(&["7"]),
    victim("chroot"),
    victim("flags"),
    victim("grow").but(&[(In::LeaveRunning, "its mappings grow meanwhile")]),
    victim("many"),
    victim("guards").but(&[(In::Dump41, "CRIU 4.1 knows no guards: `memory_losses` says so")]),
    victim("aio"),
    victim("restart").args(&["strict"]).criu(&[]),
    victim("sigqueue"),
    victim("handlers"),
    victim("shmem").criu(&["by-criu"]),
    victim("segments"),
    victim("ghost"),
    victim("privileges").criu(&["own-limits"]),
    victim("privileges").args(&["user"]).criu(&["user", "own-limits"]),
    victim("privileges").args(&["closed"]).criu(&["closed", "own-limits"]),
    victim("crowd").args(&["200"]),
    victim("seccomp"),
    victim("seccomp").args(&["twins"]).criu(&[]),
    victim("tsync").criu(&["apart"]).but(&[(In::Oracle, "CRIU writes the shared filters apart")]),
    victim("tsync").args(&["other"]).criu(&["other", "apart"]).but(&[(In::Oracle, "as above")]),
    victim("sandbox"),
    victim("sandbox").args(&["deny"]),
    victim("eventfd"),
    victim("timerfd").criu(&["by-criu"]),
    victim("signalfd"),
    victim("inotify"),
    victim("fanotify"),
    victim("epoll").criu(&["by-criu"]),
    victim("fifo"),
    victim("addresses").but(&[(In::SecondCopy, "both copies would have its addresses")]),
    victim("sockets").args(&["empty"]).criu(&[]),
    victim("paths"),
    victim("leases"),
    victim("pty").criu(&["by-criu"]).but(ONE_NUMBER),
    victim("shrink").but(&[(In::SecondCopy, "both copies cut one file")]),
];

/// Every test that restores, for what CRIU's restore does not bring back, whoever dumped it.
const fn restores(why: &'static str) -> [(In, &'static str); 5] {
    [(In::Dump41, why), (In::Dump42, why), (In::SecondCopy, why), (In::Migrate, why), (In::CriuAlone, why)]
}

const ORPHANS_OF_DEAD_SESSIONS: &[(In, &str)] = &restores(
    "CRIU makes an orphan whose session leader is dead as the child of a helper, whose end gives it to init and not to its \
     subreaper",
);
const EIGHTH_BIT: &[(In, &str)] = &restores("CRIU restores seven bits of a zombie's exit code");

/// The victims of several processes, for the same tests.
#[rustfmt::skip]
pub const TREES: &[Listed] = &[
    victim("family"),
    victim("sessions"),
    victim("sessions").args(&["orphaned"]).but(ORPHANS_OF_DEAD_SESSIONS),
    victim("zombies"),
    victim("zombies").args(&["50"]),
    victim("zombies").args(&["high"]).but(EIGHTH_BIT),
    victim("stopped"),
    victim("reparented"),
    victim("reparented").args(&["daemon"]).but(ORPHANS_OF_DEAD_SESSIONS),
    victim("pipes").but(&[(In::SecondCopy, "its check writes to its files")]),
    victim("sharefiles"),
    victim("socket_tree").but(&[(In::SecondCopy, "both copies would have its addresses")]),
    victim("epoll_tree"),
    victim("pidfd"),
    victim("procs").oracle(&["by-criu"]),
    victim("sharedmem").but(&[(In::SecondCopy, "its check writes to its files")]),
    victim("sharedmem").args(&["live"]).but(&[(In::SecondCopy, "it writes to its files all the time")]),
    victim("cow"),
    victim("cow_writers"),
    victim("sigchld"),
    victim("owners"),
    victim("heirs"),
    victim("robust"),
    victim("pool"),
    victim("churn_tree"),
    victim("forkstorm").args(&["6", "2000"]),
    victim("terminal").but(ONE_NUMBER),
    victim("crowd_tree").args(&["100"]),
    victim("crowd_tree").args(&["20", "4"]),
];

/// The victims of one test; `GODWIT_VICTIM` picks those whose names contain it.
pub fn of(test: In) -> Vec<Listed> {
    picked(ALL, test)
}

/// The trees of one test, picked in the same way.
pub fn trees(test: In) -> Vec<Listed> {
    picked(TREES, test)
}

fn picked(list: &[Listed], test: In) -> Vec<Listed> {
    let only = std::env::var("GODWIT_VICTIM").unwrap_or_default();
    list.iter().filter(|listed| listed.is_in(test) && listed.name.contains(&only)).copied().collect()
}
