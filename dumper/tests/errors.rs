//! What goes wrong must be said (who, why, what to do) and must cost nothing: the victim runs on, untraced, and
//! the server serves the next one.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_wire::control::{Hello, HelloAck, ToClient, ToServer};
use godwit_wire::quic::{Identity, Incoming, Listener, Tuning, connect, connect_speaking};
use support::child::{Running, eventually};
use support::lab::CriuVersion;
use support::moved;
use support::product::{self, Server, godwit, godwit_command, keys, migrate_args};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene};

/// The victim of most tests here: it has some memory and notices everything.
fn victim(scene: &Scene) -> Victim {
    Victim::start(scene, "busy", &["16", "2", "1000", "20000"])
}

/// That the command refused with these words, and that the victim is as it was.
#[track_caller]
fn expect_named(finished: Finished, words: &[&str], victim: &mut Victim) {
    let finished = finished.expect_refusal();
    let said = finished.stderr.to_lowercase();
    for word in words {
        assert!(said.contains(&word.to_lowercase()), "the error does not say {word:?}: {finished}");
    }
    victim.expect_untouched();
}

/// That the server still moves a victim.
#[track_caller]
fn expect_still_serving(scene: &Scene, server: &Server) {
    let mut victim = Victim::start(scene, "threads", &[]);
    let moved = moved::migrate(scene, &mut victim, server, &["--max-rounds", "1"]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn a_certificate_of_another_authority_is_refused_on_either_side() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("certificate");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = victim(&scene);
    let strange = scene.dir().join("strange");
    godwit(&scene, &["keys", "init", strange.to_str().unwrap()]).expect_ok();
    // Both certificates are foreign.
    let mut args = migrate_args(victim.pid, &server, &[]);
    let at = args.iter().position(|arg| arg == "--keys").unwrap() + 1;
    args[at] = strange.to_str().unwrap().into();
    expect_named(godwit(&scene, &args), &["certificate", &server.address], &mut victim);
    // The server is trusted, and does not trust the client.
    std::fs::copy(server.keys.join("ca.pem"), strange.join("ca.pem")).unwrap();
    expect_named(godwit(&scene, &args), &["certificate", &server.address], &mut victim);
    assert_eq!(server.sessions().len(), 0, "a stranger opened a session: {:?}", server.sessions());
    assert_eq!(victim.check(), Verdict::Ok);
    expect_still_serving(&scene, &server);
}

#[test]
fn missing_keys_are_named() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("keys");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = victim(&scene);
    let mut args = migrate_args(victim.pid, &server, &[]);
    let at = args.iter().position(|arg| arg == "--keys").unwrap() + 1;
    args[at] = "/no/such/keys".into();
    expect_named(godwit(&scene, &args), &["/no/such/keys"], &mut victim);
}

/// A server of another release: takes the greeting and selects a version that nobody offered.
#[test]
fn a_server_of_another_version_is_refused() {
    require!("root", "cc");
    let scene = Scene::new("version");
    let keys = keys(&scene);
    let mut victim = victim(&scene);
    let listener =
        Listener::bind("127.0.0.1:0".parse().unwrap(), &Identity::server(&keys), &Tuning::default()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = std::thread::spawn(move || {
        let connection = listener.accept()?;
        let Ok(Incoming::Control(sender, mut receiver)) = connection.accept::<ToServer>() else {
            return None;
        };
        let hello = receiver.recv(Some(Duration::from_secs(5))).ok()??;
        let ack = HelloAck { version: 99, ..HelloAck::default() };
        sender.send(&ToClient::from(ack)).ok()?;
        let _ = receiver.recv(Some(Duration::from_secs(5)));
        Some(hello)
    });
    let args =
        ["migrate", "--pid", &victim.pid.to_string(), "--to", &address, "--keys", keys.to_str().unwrap()];
    expect_named(godwit(&scene, &args), &["version"], &mut victim);
    assert!(served.join().unwrap().is_some(), "the client sent no greeting");
    assert_eq!(victim.check(), Verdict::Ok);
}

/// Clients of other releases, by greeting and by ALPN: refused by name, and the next one is served.
#[test]
fn a_client_of_another_version_is_refused() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("client-version");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let identity = Identity::client(&server.keys);
    for hello in [
        Hello { versions: vec![2, 99], ..Hello::default() },
        Hello { versions: vec![], ..Hello::default() },
        Hello { versions: vec![1], features: 1 << 40, ..Hello::default() },
    ] {
        let connection = connect(&server.address, &identity, &Tuning::default()).unwrap();
        let (sender, mut receiver) = connection.open_control::<ToClient>().unwrap();
        sender.send(&ToServer::from(hello.clone())).unwrap();
        let answer = receiver.recv(Some(Duration::from_secs(5)));
        let text = format!("{answer:?}").to_lowercase();
        assert!(text.contains("version") || text.contains("feature"), "{hello:?} was answered by {text}");
        assert!(text.contains("install the same release"), "no way out in {text}");
    }
    connect_speaking(&server.address, &identity, &Tuning::default(), b"godwit/2").unwrap_err();
    expect_still_serving(&scene, &server);
}

#[test]
fn garbage_on_the_port_ends_in_an_error_and_not_in_a_hang() {
    require!("root", "cc");
    let scene = Scene::new("garbage");
    let keys = keys(&scene);
    let mut victim = victim(&scene);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let over = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&over);
    let answering = std::thread::spawn(move || {
        let (mut buffer, mut seen) = ([0; 2048], 0u8);
        while !flag.load(Ordering::Relaxed) {
            if let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                // Its own bytes scrambled, then noise: some look like a packet of this connection.
                seen = seen.wrapping_add(1);
                buffer[..n]
                    .iter_mut()
                    .skip(7)
                    .for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(seen));
                let _ = socket.send_to(&buffer[..n], peer);
                let _ = socket.send_to(&[seen; 100], peer);
            }
        }
    });
    let args =
        ["migrate", "--pid", &victim.pid.to_string(), "--to", &address, "--keys", keys.to_str().unwrap()];
    let finished = godwit(&scene, &args);
    over.store(true, Ordering::Relaxed);
    answering.join().unwrap();
    assert!(finished.took < Duration::from_secs(40), "{finished}");
    expect_named(finished, &[&address], &mut victim);
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_port_where_nobody_listens_is_named() {
    require!("root", "cc");
    let scene = Scene::new("nobody");
    let keys = keys(&scene);
    let mut victim = victim(&scene);
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let args = ["migrate", "--pid", &victim.pid.to_string(), "--to", &free, "--keys", keys.to_str().unwrap()];
    let finished = godwit(&scene, &args);
    assert!(finished.took < Duration::from_secs(40), "{finished}");
    expect_named(finished, &[&free], &mut victim);
}

#[test]
fn noise_at_the_server_disturbs_no_migration() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("noise");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let over = Arc::new(AtomicBool::new(false));
    let (flag, address) = (Arc::clone(&over), server.address.clone());
    let noise = std::thread::spawn(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut state = 1u64;
        let mut packet = [0u8; 1300];
        while !flag.load(Ordering::Relaxed) {
            for byte in &mut packet {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (state >> 33) as u8;
            }
            // Long headers of version 1 among them, so that some get past the first look.
            packet[0] |= 0xc0;
            packet[1..5].copy_from_slice(&[0, 0, 0, 1]);
            let _ = socket.send_to(&packet, &address);
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    expect_still_serving(&scene, &server);
    over.store(true, Ordering::Relaxed);
    noise.join().unwrap();
}

#[test]
fn a_full_disk_at_the_server_is_said_and_a_larger_one_serves() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("full");
    let images = scene.subdir("small");
    let mount = |size: &str| {
        use nix::mount::{MsFlags, mount};
        let flags = if size == "256m" { MsFlags::MS_REMOUNT } else { MsFlags::empty() };
        mount(Some("tmpfs"), &images, Some("tmpfs"), flags, Some(format!("size={size}").as_str())).unwrap();
    };
    mount("4m");
    let criu = support::lab::criu(CriuVersion::V4_2).unwrap();
    let environment = [("GODWIT_CRIU", criu.to_str().unwrap())];
    let server = Server::start_at(&scene, &images, "127.0.0.1:0", &["--restore"], &environment);
    let mut victim = victim(&scene);
    expect_named(godwit(&scene, &migrate_args(victim.pid, &server, &[])), &["space"], &mut victim);
    for entry in server.sessions() {
        assert!(!entry.join("final").exists(), "sealed although the disk is full: {}", entry.display());
    }
    // The same victim, once there is room.
    mount("256m");
    let moved = moved::migrate(&scene, &mut victim, &server, &["--name", "later"]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
    drop(server);
    scene.sweep();
}

#[test]
fn a_full_disk_under_a_local_dump_is_said() {
    require!("root", "cc");
    let scene = Scene::new("full-local");
    let images = scene.subdir("small");
    nix::mount::mount(Some("tmpfs"), &images, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=4m"))
        .unwrap();
    let mut victim = victim(&scene);
    let dir = images.join("images");
    let args = ["dump", "--pid", &victim.pid.to_string(), "--images-dir", dir.to_str().unwrap()];
    expect_named(godwit(&scene, &args), &["space"], &mut victim);
    assert!(!dir.join("inventory.img").exists(), "a directory that is not whole looks whole");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_server_killed_in_a_round_costs_nothing() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("killed");
    let mut server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = victim(&scene);
    let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--name", "lost"]));
    command.env("GODWIT_FAULT", "client.send.before.Seal:delay-1500");
    let running = Running::start(command);
    let session = server.images.join("lost");
    eventually("the round is being staged", Duration::from_secs(20), || {
        std::fs::read_dir(&session).is_ok_and(|entries| entries.count() > 0)
    });
    server.running.kill();
    let address = server.address.clone();
    expect_named(running.finish(product::GODWIT_LIMIT), &[&address], &mut victim);
    // A new server at the same place sweeps what the old one left, and serves.
    let criu = support::lab::criu(CriuVersion::V4_2).unwrap();
    let environment = [("GODWIT_CRIU", criu.to_str().unwrap())];
    let server = Server::start_at(&scene, &server.images, &address, &["--restore"], &environment);
    let moved = moved::migrate(&scene, &mut victim, &server, &["--name", "found"]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
    support::Witness::read(victim.dir()).unwrap().expect_one_life();
}

#[test]
fn a_pid_that_is_not_there_is_named() {
    require!("root", "cc");
    let scene = Scene::new("nobody");
    let images = scene.dir().join("images");
    // Above pid_max there is none.
    for pid in ["4194305", "4000001", "0", "-1", "1x"] {
        let finished = godwit(&scene, &["dump", "--pid", pid, "--images-dir", images.to_str().unwrap()])
            .expect_refusal();
        assert!(finished.stderr.contains(pid), "{finished}");
    }
    assert!(!images.exists() || std::fs::read_dir(&images).unwrap().count() == 0);
}

#[test]
fn a_process_that_exits_meanwhile_is_said() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("exits");
    let server = Server::start(&scene, CriuVersion::V4_2);
    for point in ["client.send.before.RoundBegin", "client.send.before.Seal"] {
        let victim = victim(&scene);
        let pid = victim.pid;
        let mut command = godwit_command(&scene, &migrate_args(pid, &server, &["--max-rounds", "3"]));
        command.env("GODWIT_FAULT", format!("{point}:delay-300"));
        let running = Running::start(command);
        std::thread::sleep(Duration::from_millis(500));
        drop(victim);
        let finished = running.finish(product::GODWIT_LIMIT).expect_refusal();
        assert!(finished.stderr.contains(&pid.to_string()), "{point}: {finished}");
    }
    expect_still_serving(&scene, &server);
}

#[test]
fn the_dumper_does_not_dump_itself_nor_its_ancestors() {
    require!("root", "cc");
    let scene = Scene::new("itself");
    let images = scene.dir().join("images");
    for script in
        ["exec \"$0\" dump --pid $$ --images-dir \"$1\"", "\"$0\" dump --pid $$ --images-dir \"$1\"; exit $?"]
    {
        let mut command = Command::new("setsid");
        command.args(["--wait", "sh", "-c", script, env!("CARGO_BIN_EXE_godwit"), images.to_str().unwrap()]);
        command.env("GODWIT_STATE_DIR", product::source_state(&scene));
        let finished = support::run(command, Duration::from_secs(20)).expect_refusal();
        assert!(
            finished.stderr.to_lowercase().contains("godwit") || finished.stderr.contains("itself"),
            "{finished}"
        );
    }
}

#[test]
fn a_process_that_leads_no_session_is_refused_with_the_way_out() {
    require!("root", "cc");
    let scene = Scene::new("leader");
    let mut sleep = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
    let images = scene.dir().join("images");
    let args = ["dump", "--pid", &sleep.id().to_string(), "--images-dir", images.to_str().unwrap()];
    let finished = godwit(&scene, &args);
    let alive = sleep.try_wait().unwrap().is_none();
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    let finished = finished.expect_refusal();
    assert!(finished.stderr.contains("setsid"), "{finished}");
    assert!(alive, "it was killed: {finished}");
}

#[test]
fn what_cannot_be_moved_is_refused_by_name() {
    require!("root", "cc");
    let scene = Scene::new("odd");
    let kinds = [
        "terminal",
        "unix-outside",
        "tcp-socket",
        "packets",
        "epoll-closed",
        "alarm-timer",
        "pidfd-outside",
        "inotify-gone",
        "io_uring",
    ];
    let mut wrong = Vec::new();
    for kind in kinds {
        let mut victim = Victim::start(&scene, "odd", &[kind]);
        if victim.log().contains("CANNOT") {
            continue;
        }
        let images = scene.subdir("images");
        let pid = victim.pid.to_string();
        let subject = "fd 77";
        for command in ["dump", "pre-dump"] {
            let finished =
                godwit(&scene, &[command, "--pid", &pid, "--images-dir", images.to_str().unwrap()]);
            if finished.ok() || !finished.stderr.contains(subject) {
                wrong.push(format!("{kind}: {command} does not name {subject}: {finished}"));
            }
            if !victim.exists() {
                break;
            }
            victim.expect_untouched();
        }
        // doctor says the same before anything is touched.
        let doctor = godwit(&scene, &["doctor", "--pid", &pid]);
        if !(doctor.stdout.clone() + &doctor.stderr).contains(subject) {
            wrong.push(format!("{kind}: doctor does not name {subject}: {doctor}"));
        }
        if victim.check() != Verdict::Ok {
            wrong.push(format!("{kind}: the victim noticed; {}", victim.log()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_process_that_somebody_traces_is_refused_and_stays_traced() {
    require!("root", "cc");
    let scene = Scene::new("traced");
    let victim = victim(&scene);
    let pid = nix::unistd::Pid::from_raw(victim.pid);
    nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).unwrap();
    let images = scene.subdir("images");
    let args = ["dump", "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()];
    let finished = godwit(&scene, &args).expect_refusal();
    assert!(finished.stderr.contains("trace"), "{finished}");
    let tracer = support::scene::status_field(victim.pid, "TracerPid");
    assert_ne!(tracer.as_deref(), Some("0"), "our own tracing was ended");
}

#[test]
fn a_server_that_may_not_restore_refuses_when_the_session_opens() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("no-restore");
    let server = Server::start_with(&scene, &[], &[]);
    let mut victim = victim(&scene);
    expect_named(godwit(&scene, &migrate_args(victim.pid, &server, &[])), &["--restore"], &mut victim);
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_restore_that_fails_gives_the_reason_and_the_source_runs_on() {
    require!("root", "cc", "page-server");
    let scene = Scene::new("restore-fails");
    // A criu that answers to --version and fails at anything else.
    let script = "#!/bin/sh\ncase \"$*\" in *--version*) echo 'Version: 4.2'; exit 0;; *check*) exit 0;; esac\necho 'Error (made up): the dog ate it' >&2\nexit 1\n";
    let criu = scene.dir().join("criu");
    std::fs::write(&criu, script).unwrap();
    std::fs::set_permissions(&criu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = Server::start_with(&scene, &["--restore"], &[("GODWIT_CRIU", criu.to_str().unwrap())]);
    let mut victim = victim(&scene);
    expect_named(godwit(&scene, &migrate_args(victim.pid, &server, &[])), &["restore"], &mut victim);
    assert_eq!(victim.check(), Verdict::Ok);
    support::Witness::read(victim.dir()).unwrap().expect_one_life();
}

#[test]
fn a_killed_dumper_leaves_the_victim_running() {
    require!("root", "cc");
    let scene = Scene::new("sigkill");
    // At moments spread over the whole dump: by SIGKILL, from outside.
    let mut victim = Victim::start(&scene, "signals", &[]);
    for delay_ms in [0, 3, 6, 10, 15, 20, 25, 30, 40, 50, 70, 90] {
        let images = scene.subdir("images");
        let args = [
            "dump",
            "--leave-running",
            "--pid",
            &victim.pid.to_string(),
            "--images-dir",
            images.to_str().unwrap(),
        ];
        let mut running = Running::start(godwit_command(&scene, &args));
        std::thread::sleep(Duration::from_millis(delay_ms));
        running.kill();
        assert!(victim.exists(), "killed {delay_ms} ms into the dump, the victim is gone");
        eventually("nobody traces it", Duration::from_secs(2), || {
            support::scene::status_field(victim.pid, "TracerPid").as_deref() == Some("0")
        });
    }
    // Leftovers that a SIGKILL may leave are found and swept.
    godwit(&scene, &["doctor", "--sweep"]).expect_ok();
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn every_step_that_fails_leaves_the_victim_as_it_was() {
    require!("root", "cc");
    let scene = Scene::new("steps");
    let mut victim = Victim::start(&scene, "signals", &[]);
    let mut failed = 0;
    for step in godwit_dumper::step::Step::ALL {
        let images = scene.subdir("images");
        let args = ["dump", "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()];
        let mut command = godwit_command(&scene, &args);
        command.env("GODWIT_FAULT", format!("step.before.{}:error", step.name()));
        let finished = support::run(command, product::GODWIT_LIMIT);
        if finished.ok() {
            // Not every step is part of a local dump, but then nothing may have gone wrong either.
            panic!("step {} was not taken, or its failure was ignored: {finished}", step.name());
        }
        failed += 1;
        let finished = finished.expect_refusal();
        assert!(finished.stderr.contains(step.name()), "{finished}");
        victim.expect_untouched();
        assert!(!images.join("inventory.img").exists(), "{} failed, and the images look whole", step.name());
    }
    assert!(failed > 30, "only {failed} steps");
    assert_eq!(victim.check(), Verdict::Ok);
}
