//! Seccomp: the mode of each thread, and each distinct chain of filters once (images/seccomp.proto).
//!
//! The kernel does not tell which filters are one object that threads share. It matters to a program that puts a
//! further filter on all its threads at once (SECCOMP_FILTER_FLAG_TSYNC): that works only while every other thread's
//! filters are a beginning of the caller's own. So filters of equal programs are taken for shared, as CRIU does: where
//! all threads but one have the same filters, and these are the beginning of that one's, they are written for that one
//! alone with the flag TSYNC, by which its restore puts them on all. (CRIU does so only where all are the same.) Other
//! chains are restored thread by thread; whether a later TSYNC would have worked is then found out here, and its loss
//! is named.

use std::collections::HashMap;

use bytes::Bytes;
use godwit_wire::image::core::SeccompMode;
use godwit_wire::image::seccomp::{SeccompEntry, SeccompFilter};
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::DumpError;
use crate::freeze::seize::Frozen;
use crate::freeze::tree::Part;
use crate::procfs::status::Status;
use crate::refusal::{Findings, Subject};
use crate::remote::judge::Chain;
use crate::sys::ptrace;

/// `SECCOMP_FILTER_FLAG_TSYNC` (include/uapi/linux/seccomp.h).
const FLAG_TSYNC: u32 = 1;

/// Says what of a thread's seccomp can be told without stopping it. `own` is the dumper's own status.
pub fn check(tid: Pid, status: &Status, own: &Status, findings: &mut Findings) {
    /// `CAP_SYS_ADMIN` (include/uapi/linux/capability.h).
    const SYS_ADMIN: u64 = 1 << 21;
    if status.seccomp == 0 {
        return;
    }
    if own.seccomp != 0 {
        findings.refuse(
            Subject::Thread(tid),
            "it runs under seccomp, and so does godwit itself, which may then neither suspend nor read its filters",
            "run godwit without seccomp",
        );
    } else if own.capabilities.effective & SYS_ADMIN == 0 {
        findings.refuse(
            Subject::Thread(tid),
            "it runs under seccomp, and suspending or reading that wants CAP_SYS_ADMIN",
            "give godwit that capability",
        );
    }
    if status.seccomp == 1 {
        findings.risk(Subject::Thread(tid), risk("strict seccomp mode ends it at every call it is lent for"));
    }
}

fn risk(why: &str) -> String {
    format!("{why}: should godwit be killed within the microseconds of such a call, it ends too")
}

/// What a thread's record says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfThread {
    /// Its mode.
    pub mode: SeccompMode,
    /// Its oldest filter in `seccomp.img`.
    pub filter: Option<u32>,
}

/// The seccomp of all threads of all processes.
#[derive(Debug, Default)]
pub struct Seccomp {
    filters: Vec<SeccompFilter>,
    threads: HashMap<Pid, OfThread>,
    /// Chains that are written: how many of their filters are for all threads, and where the oldest stands.
    written: Vec<(Chain, usize, u32)>,
}

impl Seccomp {
    /// Adds what was read of a process.
    ///
    /// Filters that no image can hold are refused among the findings.
    pub fn collect(&mut self, of: OfProcess, findings: &mut Findings) {
        let OfProcess { pid, syscall_end, dispatching, modes } = of;
        for tid in dispatching {
            findings.refuse(
                Subject::Thread(tid),
                "it dispatches its system calls itself (PR_SET_SYSCALL_USER_DISPATCH), which no image holds, and \
                 which would end it at a call made for godwit",
                "run the program without that",
            );
        }
        // Threads mostly share their filters: each distinct chain is looked at once.
        let mut seen: Vec<&Chain> = Vec::new();
        for (tid, mode) in &modes {
            let Mode::Filters(chain) = mode else { continue };
            if seen.contains(&chain) {
                continue;
            }
            seen.push(chain);
            if chain.has_supervisor() {
                findings.refuse(
                    Subject::Thread(*tid),
                    "its seccomp filters hand system calls to a supervisor (SECCOMP_RET_USER_NOTIF), whose end no \
                     image holds",
                    "run the program without its supervisor",
                );
            }
            if let Some(why) = chain.danger(syscall_end) {
                findings.risk(Subject::Thread(*tid), risk(&why));
            }
        }
        if forgets_sharing(&modes) {
            findings.lose(
                Subject::Process(pid),
                "its threads' seccomp filters are restored apart, so that a later one for all threads at once \
                 (SECCOMP_FILTER_FLAG_TSYNC) is refused",
            );
        }
        self.add(&modes);
    }

    fn add(&mut self, modes: &[(Pid, Mode)]) {
        let shared = shared(modes);
        for (index, (tid, mode)) in modes.iter().enumerate() {
            let of_thread = match (mode, shared) {
                (Mode::None, _) => OfThread { mode: SeccompMode::Disabled, filter: None },
                (Mode::Strict, _) => OfThread { mode: SeccompMode::Strict, filter: None },
                // It gets them from that one.
                (Mode::Filters(_), Some((longest, _))) if longest != index => {
                    OfThread { mode: SeccompMode::Disabled, filter: None }
                }
                (Mode::Filters(chain), _) => {
                    let tsync = shared.map_or(0, |(_, count)| count);
                    let is_same = |(one, count, _): &&(Chain, usize, u32)| one == chain && *count == tsync;
                    let known = self.written.iter().find(is_same).map(|(.., at)| *at);
                    let at = known.unwrap_or_else(|| self.push(chain, tsync));
                    OfThread { mode: SeccompMode::Filter, filter: Some(at) }
                }
            };
            self.threads.insert(*tid, of_thread);
        }
    }

    /// Writes a chain, the newest filter first, each but that naming the next newer; the oldest `tsync` of them are
    /// for all threads. Gives the index of the oldest.
    fn push(&mut self, chain: &Chain, tsync: usize) -> u32 {
        let first = self.filters.len();
        for (age, filter) in chain.0.iter().enumerate().rev() {
            let bytes = filter.program.iter().flat_map(|one| {
                let [code, jumps] = [one.code.to_le_bytes(), [one.jt, one.jf]];
                code.into_iter().chain(jumps).chain(one.k.to_le_bytes())
            });
            let at = self.filters.len();
            self.filters.push(SeccompFilter {
                filter: bytes.collect(),
                prev: (at > first).then(|| at as u32 - 1),
                flags: Some(filter.flags as u32 | if age < tsync { FLAG_TSYNC } else { 0 }),
            });
        }
        let oldest = self.filters.len() as u32 - 1;
        self.written.push((chain.clone(), tsync, oldest));
        oldest
    }

    /// What thread `tid` has; nothing for one that was not there.
    pub fn of_thread(&self, tid: Pid) -> OfThread {
        let none = OfThread { mode: SeccompMode::Disabled, filter: None };
        self.threads.get(&tid).copied().unwrap_or(none)
    }

    /// `seccomp.img`: one record, empty for a tree without filters.
    ///
    /// # Errors
    /// [`ImageError`] when the filters are too many for a record.
    pub fn image(&self) -> Result<(String, Bytes), ImageError> {
        let entry = SeccompEntry { seccomp_filters: self.filters.clone() };
        Ok((ImageKind::Seccomp.file_name(0), ImageWriter::single(ImageKind::Seccomp, &entry)?))
    }
}

/// The seccomp of a process's threads.
#[derive(Debug)]
pub struct OfProcess {
    pid: Pid,
    /// The address behind the instruction that remote calls are made by, as filters see it; 0 where there are none.
    syscall_end: u64,
    /// Threads that dispatch their system calls themselves.
    dispatching: Vec<Pid>,
    modes: Vec<(Pid, Mode)>,
}

impl OfProcess {
    /// Reads the filters of all threads of a stopped process that are held here.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn read(frozen: &Frozen) -> Result<OfProcess, DumpError> {
        let mut modes = Vec::new();
        let mut dispatching = Vec::new();
        for thread in frozen.own_threads() {
            let tid = thread.tid;
            if ptrace::dispatches_syscalls(tid).unwrap_or(false) {
                dispatching.push(tid);
            }
            let mode = match thread.status(frozen.pid())?.seccomp {
                0 => Mode::None,
                1 => Mode::Strict,
                _ => Mode::Filters(read(tid)?),
            };
            modes.push((tid, mode));
        }
        let has_filters = modes.iter().any(|(_, mode)| matches!(mode, Mode::Filters(_)));
        let syscall_end = if has_filters { frozen.syscall_end()? } else { 0 };
        Ok(OfProcess { pid: frozen.pid(), syscall_end, dispatching, modes })
    }
}

impl Part for OfProcess {
    type Whole = OfProcess;

    fn join(parts: Vec<OfProcess>) -> OfProcess {
        let pid = parts.first().map_or(Pid::from_raw(0), |part| part.pid);
        let mut whole = OfProcess { pid, syscall_end: 0, dispatching: Vec::new(), modes: Vec::new() };
        for part in parts {
            // Only parts with filters know it.
            whole.syscall_end = whole.syscall_end.max(part.syscall_end);
            whole.dispatching.extend(part.dispatching);
            whole.modes.extend(part.modes);
        }
        whole.dispatching.sort_by_key(|tid| (*tid != pid, tid.as_raw()));
        whole.modes.sort_by_key(|(tid, _)| (*tid != pid, tid.as_raw()));
        whole
    }
}

fn read(tid: Pid) -> Result<Chain, DumpError> {
    Chain::read(tid).map_err(|errno| {
        if errno == Errno::EACCES {
            let mut findings = Findings::default();
            findings.refuse(
                Subject::Thread(tid),
                "reading its seccomp filters wants CAP_SYS_ADMIN, and a godwit that is under no seccomp itself",
                "give godwit that capability and run it without seccomp",
            );
            return DumpError::from_findings(findings);
        }
        DumpError::sys(format!("thread {tid}"), "PTRACE_SECCOMP_GET_FILTER", errno)
    })
}

#[derive(Debug)]
enum Mode {
    None,
    Strict,
    Filters(Chain),
}

/// The thread whose filters can be put on all others at its restore, and how many of them, the oldest first: those
/// that all others have, and nothing else.
fn shared(modes: &[(Pid, Mode)]) -> Option<(usize, usize)> {
    let chains: Option<Vec<&Chain>> = modes
        .iter()
        .map(|(_, mode)| if let Mode::Filters(chain) = mode { Some(chain) } else { None })
        .collect();
    let chains = chains?;
    let longest = (0..chains.len()).max_by_key(|at| (chains[*at].0.len(), std::cmp::Reverse(*at)))?;
    let mut others = (0..chains.len()).filter(|at| *at != longest);
    let Some(other) = others.next() else { return Some((longest, 0)) };
    let is_shared =
        chains[longest].0.starts_with(&chains[other].0) && others.all(|at| chains[at] == chains[other]);
    is_shared.then(|| (longest, chains[other].0.len()))
}

/// Whether a thread may put a filter on all others now, and could not when they are restored apart: all other threads'
/// filters are a beginning of its own, and some have filters.
fn forgets_sharing(modes: &[(Pid, Mode)]) -> bool {
    if shared(modes).is_some() {
        return false;
    }
    let chains = modes.iter().filter_map(|(_, mode)| match mode {
        Mode::None => None,
        Mode::Strict => Some(Err(())),
        Mode::Filters(chain) => Some(Ok(chain)),
    });
    let Ok(chains) = chains.collect::<Result<Vec<&Chain>, ()>>() else { return false };
    let Some(longest) = chains.iter().max_by_key(|chain| chain.0.len()) else { return false };
    chains.len() > 1 && chains.iter().all(|chain| longest.0.starts_with(&chain.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::judge::{FLAG_LOG, Filter};
    use crate::sys::ptrace::SockFilter;

    fn chain(filters: &[u32]) -> Mode {
        let filter =
            |k: &u32| Filter { program: vec![SockFilter { code: 6, jt: 0, jf: 0, k: *k }], flags: 0 };
        Mode::Filters(Chain(filters.iter().map(filter).collect()))
    }

    fn modes(modes: Vec<Mode>) -> Vec<(Pid, Mode)> {
        modes.into_iter().enumerate().map(|(tid, mode)| (Pid::from_raw(tid as i32), mode)).collect()
    }

    fn of(modes: &[(Pid, Mode)]) -> Seccomp {
        let mut all = Seccomp::default();
        all.add(modes);
        all
    }

    /// The filters of a thread, oldest first, as restore finds them: value and flags.
    fn restored(all: &Seccomp, tid: i32) -> Vec<(u8, u32)> {
        let mut found = Vec::new();
        let mut at = all.of_thread(Pid::from_raw(tid)).filter;
        while let Some(index) = at {
            let filter = &all.filters[index as usize];
            found.push((filter.filter[4], filter.flags.unwrap()));
            at = filter.prev;
        }
        found
    }

    #[test]
    fn each_thread_finds_its_own_filters_in_the_order_of_their_making() {
        let all = of(&modes(vec![chain(&[1, 2]), Mode::None, Mode::Strict, chain(&[1]), chain(&[1, 2])]));
        assert_eq!(restored(&all, 0), [(1, 0), (2, 0)]);
        assert_eq!(restored(&all, 3), [(1, 0)]);
        assert_eq!(all.of_thread(Pid::from_raw(0)), all.of_thread(Pid::from_raw(4)));
        assert_eq!(all.filters.len(), 3, "equal chains are written once");
        let mode = |tid| all.of_thread(Pid::from_raw(tid)).mode;
        assert_eq!(
            (mode(1), mode(2), mode(9)),
            (SeccompMode::Disabled, SeccompMode::Strict, SeccompMode::Disabled)
        );
    }

    #[test]
    fn what_all_threads_have_is_put_on_all_by_the_one_that_has_most() {
        let all = of(&modes(vec![chain(&[1, 2]), chain(&[1, 2, 3]), chain(&[1, 2])]));
        assert_eq!(restored(&all, 1), [(1, 1), (2, 1), (3, 0)]);
        for other in [0, 2] {
            assert_eq!(all.of_thread(Pid::from_raw(other)).mode, SeccompMode::Disabled);
        }
        let same = of(&modes(vec![chain(&[1]), chain(&[1])]));
        assert_eq!((restored(&same, 0), restored(&same, 1)), (vec![(1, 1)], vec![]));
        let alone = of(&modes(vec![chain(&[1, 2])]));
        assert_eq!(restored(&alone, 0), [(1, 0), (2, 0)]);
    }

    #[test]
    fn sharing_that_is_lost_is_known() {
        let loses = |list| forgets_sharing(&modes(list));
        assert!(loses(vec![chain(&[1, 2]), chain(&[1]), Mode::None]));
        assert!(loses(vec![chain(&[1, 2, 3]), chain(&[1]), chain(&[1, 2])]));
        assert!(!loses(vec![chain(&[1, 2]), chain(&[1])]));
        assert!(!loses(vec![chain(&[1, 2]), chain(&[3])]));
        assert!(!loses(vec![chain(&[1, 2]), chain(&[1]), Mode::Strict]));
        assert!(!loses(vec![chain(&[1]), Mode::None]));
        assert!(!loses(vec![Mode::None]));
    }

    #[test]
    fn flags_make_a_filter_another() {
        let Mode::Filters(mut logged) = chain(&[1]) else { unreachable!() };
        logged.0[0].flags = FLAG_LOG;
        let all = of(&modes(vec![chain(&[1]), Mode::Filters(logged)]));
        assert_eq!((restored(&all, 0), restored(&all, 1)), (vec![(1, 0)], vec![(1, 2)]));
    }
}
