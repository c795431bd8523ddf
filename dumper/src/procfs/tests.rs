//! Real texts of a kernel, and texts that no kernel writes.

use nix::unistd::{Pid, getpid};
use proptest::prelude::*;

use super::*;

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("fixtures/linux-6.18/", $name)).as_slice()
    };
}

#[test]
fn stat_name_with_brackets_and_blanks_is_one_field() {
    let stat = stat::parse(fixture!("stat")).unwrap();
    assert_eq!(stat.comm, b"a) R (b  c)");
    assert_eq!(stat.state, b'S');
    assert_eq!(stat.num_threads, 1);
    assert_eq!(stat.flags, 4194560);
    assert!(stat.start_time > 0 && stat.exit_code == 0 && !stat.is_kernel_thread());
    assert!(
        stat.start_code < stat.end_code && stat.arg_start < stat.arg_end && stat.env_start < stat.env_end
    );
    assert!(stat.start_data < stat.end_data && stat.end_data <= stat.start_brk);
}

#[test]
fn stat_cut_short_names_the_missing_field() {
    let text = fixture!("stat");
    let cut = &text[..text.len() - 2];
    assert_eq!(stat::parse(cut).unwrap_err().field, "stat exit_code");
    assert_eq!(stat::parse(b"1 noname S 1").unwrap_err().field, "stat comm");
    assert_eq!(stat::parse(b")1(").unwrap_err().field, "stat comm");
}

#[test]
fn status_has_every_line_a_dump_needs() {
    let status = status::parse(fixture!("status")).unwrap();
    assert_eq!(status.umask, Some(0o27));
    assert_eq!(status.groups, [4, 24, 100000]);
    assert_eq!(status.ns_pid, [status.pid]);
    assert_eq!((status.ns_pgid.len(), status.ns_sid.len()), (1, 1));
    assert_eq!(status.uid, status::Ids::default());
    assert_eq!(status.capabilities.permitted, 0x01ff_feff_ffff);
    assert_eq!(status.capabilities.inheritable, 0);
    assert_eq!(status.signals.pending, 1 << 9);
    assert_eq!(status.signals.blocked, 1 << 9);
    assert_eq!(status.signals.ignored, 1 << 14 | 0b110);
    assert_eq!((status.tracer_pid, status.threads, status.seccomp), (0, 1, 0));
    assert_eq!((status.thp_enabled, status.kernel_thread), (Some(true), Some(false)));
    assert!(!status.shadow_stack && !status.no_new_privs);
}

#[test]
fn status_of_an_older_kernel_lacks_lines_without_harm() {
    let text = b"Name:\tx\nState:\tT (stopped)\nTgid:\t7\nPid:\t9\nUid:\t1\t2\t3\t4\nx86_Thread_features:\tshstk wrss\n";
    let status = status::parse(text).unwrap();
    assert_eq!((status.state, status.tgid, status.pid, status.umask), (b'T', 7, 9, None));
    assert_eq!(status.uid, status::Ids { real: 1, effective: 2, saved: 3, fs: 4 });
    assert!(status.shadow_stack);
    assert_eq!(status::parse(b"Uid:\t1\t2\t3\n").unwrap_err().field, "Uid");
}

fn named<'a>(vmas: &'a [maps::Vma], path: &[u8]) -> &'a maps::Vma {
    vmas.iter().find(|vma| vma.path == path).unwrap()
}

#[test]
fn maps_tell_kinds_of_mapping_apart() {
    let vmas = maps::parse(fixture!("maps")).unwrap();
    assert_eq!(vmas.len(), 28);

    let shared = named(&vmas, b"/srv/da ta\n1 (deleted)");
    assert!(shared.shared && shared.read && shared.write && !shared.exec);
    assert!(shared.looks_deleted() && shared.has_file() && !shared.is_anonymous());
    assert_eq!((shared.major, shared.minor, shared.len_bytes()), (0xfe, 0, 4096));

    let text = vmas.iter().find(|vma| vma.exec && vma.path.ends_with(b"libc.so.6")).unwrap();
    assert_eq!(text.pgoff, 0x26000);
    assert!(named(&vmas, b"/memfd:shm name (deleted)").shared);
    assert!(named(&vmas, b"[vdso]").is_vdso() && named(&vmas, b"[vdso]").is_special());
    assert!(named(&vmas, b"[vvar]").is_vvar() && named(&vmas, b"[vvar_vclock]").is_vvar());
    assert!(named(&vmas, b"[vsyscall]").is_special());
    assert!(named(&vmas, b"[stack]").is_anonymous());
    let guard = vmas.iter().find(|vma| !vma.read && !vma.exec).unwrap();
    assert!(guard.is_anonymous() && guard.path.is_empty() && guard.vm_flags.is_none());
}

#[test]
fn smaps_adds_flags_to_each_mapping() {
    let vmas = maps::parse(fixture!("smaps")).unwrap();
    assert_eq!(vmas.len(), 4);
    assert!(named(&vmas, b"[stack]").has_flag(b"gd") && !vmas[0].has_flag(b"gd"));
    assert!(named(&vmas, b"[vdso]").has_flag(b"de"));
    assert_eq!(vmas[0].vm_flags.as_ref().unwrap().codes(), [*b"rd", *b"mr", *b"mw", *b"me"]);
    assert!(vmas.iter().all(|vma| vma.page_size_bytes == 4096));
}

#[test]
fn maps_that_run_backwards_are_refused() {
    assert!(maps::parse(b"2000-1000 r--p 0 0:0 0\n").is_err());
    assert!(maps::parse(b"Rss:  4 kB\n").is_err());
    assert_eq!(maps::parse(b"1000-3000 r--p 00000000 00:00 0\n").unwrap().len(), 1);
}

#[test]
fn maps_that_changed_while_they_were_read_do_not_overlap() {
    let text =
        b"1000-5000 r--p 0 0:0 0\n2000-4000 r--p 0 0:0 0\n3000-8000 r--p 1000 fe:0 7 /a\nVmFlags: rd\n";
    let vmas = maps::parse(text).unwrap();
    assert_eq!(vmas.iter().map(maps::Vma::range).collect::<Vec<_>>(), [0x1000..0x5000, 0x5000..0x8000]);
    assert_eq!(vmas[1].pgoff, 0x3000);
    assert!(vmas[1].has_flag(b"rd") && vmas[0].vm_flags.is_none());
}

#[test]
fn fdinfo_parts_locks_from_extras() {
    let info = fdinfo::parse(fixture!("fdinfo-locks")).unwrap();
    assert_eq!((info.pos, info.flags, info.mnt_id), (10, 0o2100002, 27));
    assert!(info.is_cloexec() && info.ino.is_some() && info.extras.is_empty());
    let [flock, posix, ofd] = &info.locks[..] else { panic!("three locks") };
    assert_eq!((flock.kind, flock.start, flock.end), (fdinfo::LockKind::Flock, 0, None));
    assert_eq!((posix.kind, posix.start, posix.end), (fdinfo::LockKind::Posix, 2, Some(6)));
    assert_eq!((&posix.access[..], posix.device), (&b"READ"[..], (0xfe, 0)));
    assert_eq!((ofd.kind, ofd.pid, ofd.start, ofd.end), (fdinfo::LockKind::Ofd, -1, 100, None));
    assert_eq!(flock.inode, info.ino.unwrap());

    let event = fdinfo::parse(fixture!("fdinfo-eventfd")).unwrap();
    assert_eq!(event.extra("eventfd-count"), Some(&b"7"[..]));
    assert!(!event.is_cloexec());
    let epoll = fdinfo::parse(fixture!("fdinfo-epoll")).unwrap();
    assert_eq!(epoll.extras.len(), 1);
    assert!(epoll.extras[0].starts_with(b"tfd:        4 events:"));
}

#[test]
fn timers_in_the_order_of_the_kernel() {
    let timers = timers::parse(fixture!("timers")).unwrap();
    assert_eq!(timers.len(), 3);
    assert_eq!((timers[0].id, timers[0].clock_id, timers[0].notify), (2, 7, timers::Notify::None));
    assert_eq!((timers[1].signal, timers[1].clock_id, timers[1].to_thread), (10, -2, true));
    assert_eq!(timers[1].notify.to_raw(true), 4);
    assert_eq!((timers[2].signal, timers[2].value), (36, 0x00de_adbe_ef12));
    assert!(timers[2].target > 1 && !timers[2].to_thread);
    assert_eq!(timers::parse(b"").unwrap(), []);
    assert!(timers::parse(b"signal: 1/2\n").is_err());
}

#[test]
fn limits_in_rlimit_order() {
    let limits = limits::parse(fixture!("limits")).unwrap();
    assert_eq!((limits[7].soft, limits[7].hard), (100, 200));
    assert_eq!((limits[0].soft, limits[3].soft), (u64::MAX, 8388608));
    let text =
        String::from_utf8(fixture!("limits").to_vec()).unwrap().replace("Max file locks", "Max flocks");
    assert_eq!(limits::parse(text.as_bytes()).unwrap_err().found, "Max file locks");
}

#[test]
fn cgroup_path_may_hold_colons() {
    let all = cgroup::parse(fixture!("cgroup")).unwrap();
    let memory = all.iter().find(|one| one.controllers == b"memory").unwrap();
    assert_eq!((memory.hierarchy, &memory.path[..]), (4, &b"/app:blue/worker"[..]));
    assert_eq!(all.last().unwrap().controllers, b"");
    assert_eq!(all.last().unwrap().hierarchy, 0);
}

#[test]
fn mountinfo_escapes_and_empty_sources() {
    let mounts = mountinfo::parse(fixture!("mountinfo")).unwrap();
    let root = mounts.iter().find(|mount| mount.mount_point == b"/").unwrap();
    assert_eq!((root.mnt_id, root.major, root.minor, &root.fs_type[..]), (27, 254, 0, &b"ext4"[..]));
    assert_eq!(root.optional, [b"shared:1".to_vec(), b"master:4".to_vec()]);
    let odd = mounts.iter().find(|mount| mount.mnt_id == 42).unwrap();
    assert_eq!(
        (&odd.mount_point[..], &odd.source[..], &odd.super_options[..]),
        (&b"/srv/a b"[..], &b""[..], &b"rw"[..])
    );
    assert_eq!(mounts.last().unwrap().root, b"/sys/kernel");
}

#[test]
fn small_files() {
    let words = auxv::parse(fixture!("auxv")).unwrap();
    assert!(auxv::lookup(&words, auxv::AT_SYSINFO_EHDR).is_some_and(|addr| addr % 4096 == 0));
    assert_eq!(auxv::lookup(&words, 0), None);
    assert!(auxv::parse(&[0; 20]).is_err());
    assert_eq!(tree::parse_children(fixture!("children")).unwrap().len(), 2);
    assert_eq!(tree::parse_children(b"").unwrap(), []);
    let tree::Doing::Syscall { nr, args, sp, pc } = tree::parse_syscall(fixture!("syscall")).unwrap() else {
        panic!("it was in pause(2)")
    };
    assert_eq!((nr, args[0], args[2]), (34, 3, 0));
    assert!(sp > args[1] - 4096 && pc > 0x7f00_0000_0000);
    assert!(tree::parse_syscall(b"34 0x1 0x2\n").is_err());
    assert_eq!(tree::parse_syscall(b"running\n").unwrap(), tree::Doing::Running);
    assert_eq!(tree::parse_syscall(b"-1 0x7ffc 0x7f\n").unwrap(), tree::Doing::Blocked);
    assert!(host::parse_uptime(fixture!("uptime")).unwrap() > 1_000_000);
    assert_eq!(host::parse_uptime(b"645.42 775.86\n").unwrap(), 645_420_000);
    assert_eq!(host::parse_boot_id(fixture!("boot_id")).unwrap().len(), 36);
    assert_eq!(ns::parse(ns::Kind::Net, b"net:[4026531840]").unwrap(), 4026531840);
    assert!(ns::parse(ns::Kind::Net, b"ipc:[4026531840]").is_err());
    assert_eq!(attr::parse_comm(b"a\nb\n").unwrap(), b"a\nb");
    assert_eq!(attr::parse_hex(b"00040000\n").unwrap(), 0x40000);
}

#[test]
fn readers_agree_with_this_very_process() {
    let me = getpid();
    assert_eq!(stat::read(me).unwrap().pid, me.as_raw());
    assert_eq!(status::read(me).unwrap().tgid, me.as_raw());
    assert!(maps::read(me).unwrap().iter().any(maps::Vma::is_vdso));
    assert!(maps::read_with_flags(me).unwrap().iter().all(|vma| vma.vm_flags.is_some()));
    assert!(tree::threads(me).unwrap().contains(&nix::unistd::gettid()));
    assert!(fdinfo::list(me).unwrap().contains(&0));
    assert!(fdinfo::read(me, 0).is_ok());
    let limits = limits::read(me).unwrap();
    for (resource, limit) in (0..).zip(limits) {
        assert_eq!(crate::sys::rlimit::get(me, resource).unwrap(), limit);
    }
    assert!(ns::read(me, ns::Kind::Pid).unwrap().is_some());
    assert!(timers::read(me).is_ok() && cgroup::read(me).is_ok() && mountinfo::read(me).is_ok());
    assert!(auxv::read(me).unwrap().len() > 4);
    assert!(host::uptime_us().unwrap() > 0 && host::boot_id().is_ok());
    assert!(attr::comm(me, me).is_ok() && attr::oom_score_adj(me).is_ok() && attr::personality(me).is_ok());
    assert!(tree::syscall(me, nix::unistd::gettid()).is_ok() && tree::children(me, me).is_ok());
}

#[test]
fn a_process_that_is_not_there_is_gone() {
    // Above the largest pid that any kernel gives (PID_MAX_LIMIT, 4 Mi).
    let nobody = Pid::from_raw(i32::MAX);
    assert!(stat::read(nobody).unwrap_err().is_gone());
    assert!(tree::threads(nobody).unwrap_err().is_gone());
    assert!(ns::read(nobody, ns::Kind::Net).unwrap_err().is_gone());
    assert!(!fdinfo::read(getpid(), i32::MAX).unwrap_err().is_gone());
}

/// Calls every parser; the answer does not matter, that one comes does.
fn parse_all(text: &[u8]) {
    let _ = stat::parse(text);
    let _ = status::parse(text);
    let _ = maps::parse(text);
    let _ = fdinfo::parse(text);
    let _ = timers::parse(text);
    let _ = limits::parse(text);
    let _ = cgroup::parse(text);
    let _ = auxv::parse(text);
    let _ = mountinfo::parse(text);
    let _ = tree::parse_children(text);
    let _ = tree::parse_syscall(text);
    let _ = host::parse_uptime(text);
    let _ = host::parse_boot_id(text);
    let _ = attr::parse_comm(text);
    let _ = attr::parse_hex(text);
    let _ = attr::parse_decimal::<i32>(text);
    for kind in ns::Kind::ALL {
        let _ = ns::parse(kind, text);
    }
}

const FIXTURES: [&[u8]; 11] = [
    fixture!("stat"),
    fixture!("status"),
    fixture!("maps"),
    fixture!("smaps"),
    fixture!("fdinfo-locks"),
    fixture!("fdinfo-epoll"),
    fixture!("timers"),
    fixture!("limits"),
    fixture!("cgroup"),
    fixture!("mountinfo"),
    fixture!("syscall"),
];

proptest! {
    #[test]
    fn garbage_never_panics(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        parse_all(&text);
    }

    #[test]
    fn damaged_texts_never_panic(
        which in 0..FIXTURES.len(),
        hits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut text = FIXTURES[which].to_vec();
        for (at, byte) in hits {
            let at = at.index(text.len());
            text[at] = byte;
        }
        text.truncate(cut.index(text.len()) + 1);
        parse_all(&text);
    }

    #[test]
    fn numbers_at_their_limits_never_panic(number in "[0-9]{1,25}", at in any::<proptest::sample::Index>()) {
        for fixture in FIXTURES {
            let words: Vec<&[u8]> = fixture.split(|&b| b == b' ' || b == b'\t').collect();
            let hit = at.index(words.len());
            let mut text = words[..hit].join(&b' ');
            text.push(b' ');
            text.extend_from_slice(number.as_bytes());
            text.push(b' ');
            text.extend(words[hit..].join(&b' '));
            parse_all(&text);
        }
    }
}
