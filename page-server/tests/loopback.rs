//! The built program: it says where it listens, survives what comes to its port, loses nothing that it has
//! acknowledged, drains on SIGTERM, and says what is wrong when it cannot start.
#![allow(clippy::unwrap_used)]

#[path = "support/client.rs"]
mod client;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use client::{Client, Program, command, fails, lab, names};
use godwit_wire::control::{CloseSession, OpenSession};
use godwit_wire::error::Code;
use godwit_wire::plan::RoundKind;
use godwit_wire::session::{Reply, Request};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

#[test]
fn sigterm_lets_the_open_session_end_and_exits_0() {
    let dir = lab();
    let mut program = Program::start(dir.path(), &[]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    let seal = client.fill("web", 1, RoundKind::Final);
    program.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(program.wait(Duration::from_millis(100)).is_none(), "it did not wait for the session");
    let mut late = Client::connect(dir.path(), &program).unwrap();
    let refused = late.ask(Request::Open(OpenSession { name: "late".into(), ..OpenSession::default() }));
    assert!(refused.as_ref().is_err_and(|why| why.contains("draining")), "{refused:?}");
    let prepared = client.ask(Request::Seal(seal));
    assert!(matches!(prepared, Ok(Reply::Prepared(_))), "{prepared:?}");
    client.ask(Request::Close(CloseSession {})).unwrap();
    let status = program.wait(Duration::from_secs(10)).expect("it ends with its last session");
    assert_eq!(status.code(), Some(0));
    assert_eq!(names(dir.path(), "web"), ["final"]);
}

#[test]
fn sigterm_does_not_wait_longer_than_it_may() {
    let dir = lab();
    let mut program = Program::start(dir.path(), &["--drain-timeout", "1"]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    client.fill("web", 1, RoundKind::Round);
    program.signal(Signal::SIGINT);
    assert_eq!(program.wait(Duration::from_secs(8)).expect("it ends").code(), Some(0));
}

#[test]
fn a_server_killed_in_mid_round_keeps_sealed_rounds_and_clears_the_rest() {
    let dir = lab();
    let mut program = Program::start(dir.path(), &[]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    let seal = client.fill("web", 1, RoundKind::Round);
    assert!(matches!(client.ask(Request::Seal(seal)), Ok(Reply::RoundSealed(_))));
    client.fill("web", 2, RoundKind::Round);
    program.signal(Signal::SIGKILL);
    program.wait(Duration::from_secs(5)).expect("killed");
    assert_eq!(names(dir.path(), "web"), [".staging-round-0002", "round-0001"]);
    let program = Program::start(dir.path(), &[]);
    assert_eq!(names(dir.path(), "web"), ["round-0001"]);
    let mut again = Client::connect(dir.path(), &program).unwrap();
    let refused = again.ask(Request::Open(OpenSession { name: "web".into(), ..OpenSession::default() }));
    assert!(
        refused.as_ref().is_err_and(|why| why.contains("name taken") && why.contains("--name")),
        "{refused:?}"
    );
}

#[test]
fn half_open_handshakes_do_not_keep_others_out() {
    let dir = lab();
    let program = Program::start(dir.path(), &[]);
    // First packets whose senders never go on: each from its own socket, with a version that the server speaks.
    let sockets: Vec<_> = (0..200u16)
        .map(|index| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut packet = vec![0u8; 1200];
            packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
            packet[6..8].copy_from_slice(&index.to_le_bytes());
            socket.send_to(&packet, &program.address).unwrap();
            socket
        })
        .collect();
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    drop(sockets);
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let dir = lab();
    let none = tempfile::tempdir().unwrap();
    let mut no_keys = Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
    no_keys.args(["serve", "--listen", "127.0.0.1:0", "--images-dir"]).arg(dir.path().join("images"));
    no_keys.arg("--keys").arg(none.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = fails(no_keys);
    assert!(text.contains("godwit keys init") && text.contains(".pem"), "{text}");
    let running = Program::start(dir.path(), &[]);
    let text = fails(command(dir.path(), &[]));
    assert!(text.contains("in use by a living server"), "{text}");
    let other = lab();
    let mut same_port = Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
    same_port.args(["serve", "--listen", &running.address, "--images-dir"]).arg(other.path().join("images"));
    same_port.arg("--keys").arg(other.path().join("keys")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = fails(same_port);
    assert!(text.contains(&running.address), "{text}");
    drop(running);
    // Sockets that share a port share it with no other server.
    for (ours, theirs) in [("1", "2"), ("2", "1"), ("2", "2")] {
        let running = Program::start(dir.path(), &["--sockets", ours]);
        let mut same_port = Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
        same_port.args(["serve", "--listen", &running.address, "--sockets", theirs]);
        same_port.arg("--images-dir").arg(other.path().join("images"));
        same_port.arg("--keys").arg(other.path().join("keys")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = fails(same_port);
        assert!(text.contains(&running.address) && text.contains("ddress already in use"), "{text}");
    }
    let text = fails(command(other.path(), &["--restore", "--criu", "/nonexistent/criu"]));
    assert!(text.contains("GODWIT_CRIU") && text.contains("/nonexistent/criu"), "{text}");
}

#[test]
fn a_full_disk_fails_the_round_by_name_and_the_server_goes_on() {
    let dir = lab();
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let Some(disk) = SmallDisk::mount(&images) else { return };
    let program = Program::start(dir.path(), &[]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    let seal = client.fill("web", 1, RoundKind::Round);
    let Ok(Reply::RoundFailed(failed)) = client.ask(Request::Seal(seal)) else { panic!("it fitted") };
    assert_eq!(Code::from_number(failed.code), Code::Full, "{failed:?}");
    assert!(failed.text.contains("no space left") && failed.text.contains("pages-1.img"), "{failed:?}");
    assert!(matches!(client.ask(Request::Abandon { round: 1 }), Ok(Reply::RoundAbandoned(_))));
    assert_eq!(names(dir.path(), "web"), [""; 0]);
    disk.grow();
    let seal = client.fill("web", 2, RoundKind::Round);
    assert!(matches!(client.ask(Request::Seal(seal)), Ok(Reply::RoundSealed(_))));
    drop(program);
}

/// A file system of half a MiB.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mounted = mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=512k"));
        if let Err(why) = mounted {
            eprintln!("SKIP a_full_disk: no tmpfs can be mounted ({why})");
            assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
            assert_ne!(std::env::var("GODWIT_REQUIRE").as_deref(), Ok("all"), "a required test was skipped");
            return None;
        }
        Some(SmallDisk(at))
    }

    fn grow(&self) {
        mount(Some("tmpfs"), self.0, Some("tmpfs"), MsFlags::MS_REMOUNT, Some("size=8m")).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn killed_or_cut_off_at_any_message_the_client_believes_no_round_that_is_not_there() {
    let messages = [
        "recv.before.Hello",
        "send.before.SessionOpened",
        "recv.after.RoundBegin",
        "recv.before.Seal",
        "recv.after.ManifestChunk",
        "send.before.RoundSealed",
        "send.after.RoundSealed",
    ];
    // Most of the time is spent waiting for links that are dead: the cases wait side by side.
    std::thread::scope(|scope| {
        for message in messages {
            scope.spawn(move || ["kill", "cut", "error"].iter().for_each(|action| fails_at(message, action)));
        }
    });
}

/// One round against a server that fails at this message; then a server that comes up again.
fn fails_at(message: &str, action: &str) {
    let dir = lab();
    let fault = format!("server.{message}:{action}");
    let mut program = Program::start_with(dir.path(), &["--idle-timeout", "3"], &fault);
    let acknowledged = std::panic::catch_unwind(|| {
        let mut client = Client::connect(dir.path(), &program).unwrap();
        client.open("web");
        let seal = client.fill("web", 1, RoundKind::Round);
        matches!(client.ask(Request::Seal(seal)), Ok(Reply::RoundSealed(_)))
    });
    let acknowledged = acknowledged.unwrap_or(false);
    // Behind the last message the answer is there already.
    assert_eq!(acknowledged, message == "send.after.RoundSealed", "{fault}");
    let died = program.wait(Duration::from_millis(300)).is_some();
    assert_eq!(died, action == "kill", "{fault}");
    drop(program);
    let _again = Program::start(dir.path(), &[]);
    let there = dir.path().join("images/web/round-0001/inventory.img").exists();
    assert!(there || !acknowledged, "{fault}");
    assert!(!dir.path().join("images/web/.staging-round-0001").exists(), "{fault}");
}
