//! Real processes, held, let go and killed. They need root and cgroup v2.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::procfs::stat;

struct Victim(Child);

impl Victim {
    fn start() -> Victim {
        let mut command = Command::new("sleep");
        let victim = Victim(command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        // It sleeps once its program is loaded; until then it may be found at anything.
        let begun = Instant::now();
        while victim.state() != 'S' || !Self::comm_is_sleep(victim.pid()) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the victim does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        victim
    }

    fn comm_is_sleep(pid: Pid) -> bool {
        stat::read(pid).is_ok_and(|stat| stat.comm == b"sleep")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    fn cgroup(&self) -> String {
        let memberships = membership::read(self.pid()).unwrap();
        let found = memberships.into_iter().find(|member| member.hierarchy == 0).unwrap();
        String::from_utf8(found.path).unwrap()
    }

    fn state(&self) -> char {
        char::from(stat::read(self.pid()).unwrap().state)
    }

    fn freezer(&self, name: &str) -> Freezer {
        Freezer::plan(self.pid(), vec![self.member(false)], name, &self.cgroup())
    }

    fn member(&self, was_stopped: bool) -> Member {
        Member::pin(self.pid(), was_stopped).unwrap().unwrap()
    }

    fn wait_for(&self, state: char) {
        let begun = Instant::now();
        while self.state() != state {
            assert!(begun.elapsed() < Duration::from_secs(5), "it is {}, not {state}", self.state());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What a journal says of a held process, `later` clock ticks off.
fn facts(freezer: &Freezer, later: u64) -> Facts {
    let mut facts = Facts { boot_id: Some(host::boot_id().unwrap()), ..freezer.facts() };
    facts.members.iter_mut().for_each(|member| member.start_time += later);
    let root = facts.members[0];
    Facts { pid: Some(root.pid), start_time: Some(root.start_time), ..facts }
}

/// As a later program finds it in the journal.
fn found(freezer: &Freezer) -> Freezer {
    Freezer::of_journal(&facts(freezer, 0)).unwrap().unwrap()
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup of the test's own, in the root of the hierarchy.
struct Cgroup {
    root: OwnedFd,
    name: String,
}

impl Cgroup {
    fn make(name: &str) -> Cgroup {
        let (root, name) = (sys::mount::cgroup2().unwrap(), format!("test-{}-{name}", std::process::id()));
        mkdirat(&root, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
        Cgroup { root, name }
    }

    fn take(&self, victim: &Victim) {
        let path = format!("{}/cgroup.procs", self.name);
        let file =
            openat(&self.root, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        std::fs::File::from(file).write_all(victim.pid().to_string().as_bytes()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = unlinkat(&self.root, self.name.as_str(), UnlinkatFlags::RemoveDir);
    }
}

/// Whether these tests can do anything here.
fn can_run() -> bool {
    let can = sys::mount::cgroup2().is_ok();
    if !can {
        println!("SKIP: cgroup v2 cannot be mounted here");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
    }
    can
}

#[test]
fn a_frozen_process_goes_back_to_where_it_was() {
    if !can_run() {
        return;
    }
    let (victim, home) = (Victim::start(), Cgroup::make("home"));
    home.take(&victim);
    let freezer = victim.freezer("back");
    assert!(matches!(freezer.hold(), Hold::Cgroup { nested: true, .. }), "{:?}", freezer.hold());
    freezer.freeze().unwrap();
    assert_eq!(victim.cgroup(), format!("/{}/godwit-back", home.name));
    let later = found(&freezer);
    assert!(later.is_alive().unwrap());
    later.thaw().unwrap();
    assert_eq!(victim.cgroup(), format!("/{}", home.name));
    later.thaw().unwrap();
    assert!(!later.remove_empty(), "nothing is left to be removed");
}

#[test]
fn a_process_dies_though_its_hold_is_gone() {
    if !can_run() {
        return;
    }
    let victim = Victim::start();
    let freezer = victim.freezer("gone");
    freezer.freeze().unwrap();
    freezer.thaw().unwrap();
    let mut later = found(&freezer);
    assert!(later.is_alive().unwrap());
    later.kill().unwrap();
    assert_eq!(victim.state(), 'Z');
    assert!(!later.is_alive().unwrap(), "a zombie does not live");
}

#[test]
fn a_traced_process_is_killed_whole_while_its_tracer_lives() {
    if !can_run() {
        return;
    }
    let victim = Victim::start();
    let frozen = seize::seize(victim.pid()).unwrap();
    let mut freezer = victim.freezer("traced");
    freezer.freeze().unwrap();
    freezer.kill().unwrap();
    assert!(!freezer.is_alive().unwrap());
    assert!(!freezer.exists(&freezer.hold.path().unwrap()).unwrap());
    drop(frozen);
}

#[test]
fn a_later_process_of_the_same_number_is_left_alone() {
    if !can_run() {
        return;
    }
    let victim = Victim::start();
    let told = facts(&victim.freezer("later"), 1);
    let later = |facts: &Facts| Freezer::of_journal(facts).unwrap().unwrap();
    assert!(!later(&told).is_alive().unwrap());
    later(&told).kill().unwrap();
    let mut stopped = later(&Facts { cgroup: Some(Hold::Stopped.to_record()), ..told });
    stopped.freeze().unwrap();
    stopped.thaw().unwrap();
    stopped.kill().unwrap();
    assert_eq!(victim.state(), 'S');
}

/// A hold by SIGSTOP alone, as where there is no cgroup v2.
fn by_signal(members: Vec<Member>) -> Freezer {
    Freezer { root: members[0].pid, members, hold: Hold::Stopped, hierarchy: None, is_found: false }
}

#[test]
fn a_stop_of_ours_is_undone_and_one_of_the_users_is_not() {
    let victim = Victim::start();
    let frozen = seize::seize(victim.pid()).unwrap();
    let ours = by_signal(vec![victim.member(false)]);
    ours.freeze().unwrap();
    drop(frozen);
    victim.wait_for('T');
    let users = by_signal(vec![victim.member(true)]);
    users.freeze().unwrap();
    users.thaw().unwrap();
    found(&users).thaw().unwrap();
    assert_eq!(victim.state(), 'T');
    found(&ours).thaw().unwrap();
    victim.wait_for('S');
    found(&ours).kill().unwrap();
    victim.wait_for('Z');
}

/// Journals of before there were trees: no members, and how the one process was held.
#[test]
fn a_journal_of_one_process_is_still_resolved() {
    let victim = Victim::start();
    let member = victim.member(false).to_record();
    let old = |hold: &str| {
        let facts = Facts {
            pid: Some(member.pid),
            start_time: Some(member.start_time),
            boot_id: Some(host::boot_id().unwrap()),
            cgroup: Some(hold.to_owned()),
            ..Facts::default()
        };
        Freezer::of_journal(&facts).unwrap().unwrap()
    };
    kill(victim.pid(), Signal::SIGSTOP).unwrap();
    victim.wait_for('T');
    old("stopped").thaw().unwrap();
    assert!(old("stopped").is_alive().unwrap());
    assert_eq!(victim.state(), 'T');
    old("sigstop").thaw().unwrap();
    victim.wait_for('S');
    if can_run() {
        let freezer = victim.freezer("old");
        freezer.freeze().unwrap();
        let held = old(&freezer.hold().to_record());
        assert!(held.is_alive().unwrap());
        held.thaw().unwrap();
        assert!(!freezer.exists(&freezer.hold.path().unwrap()).unwrap());
        freezer.freeze().unwrap();
        old(&freezer.hold().to_record()).kill().unwrap();
        victim.wait_for('Z');
        assert!(!held.is_alive().unwrap());
    }
}

#[test]
fn a_record_reads_back_and_foreign_text_does_not() {
    for nested in [false, true] {
        let (name, origin) = ("godwit-17".to_owned(), "user.slice/a:b".to_owned());
        let hold = Hold::Cgroup { name, origin, nested };
        assert_eq!(Hold::from_record(&hold.to_record()), Some(hold));
    }
    assert_eq!(Hold::from_record(&Hold::Stopped.to_record()), Some(Hold::Stopped));
    for bad in [
        "",
        "cgroup:",
        "cgroup:/etc:x",
        "cgroup:godwit-1/../x:y",
        "cgroup:other:y",
        "sigstop:x",
        "sigstop-each:x",
        "cgroup-in:godwit-1:../y",
    ] {
        assert_eq!(Hold::from_record(bad), None, "{bad}");
    }
}
