//! The processor: what is written of it is what CRIU writes, and a destination that lacks something is refused before the
//! process is touched.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use godwit_wire::control::{HelloAck, ToClient, ToServer};
use godwit_wire::image::cpuinfo::{CpuinfoEntry, CpuinfoX86Entry};
use godwit_wire::image::{ImageKind, ImageReader};
use godwit_wire::quic::{Identity, Incoming, Listener, Tuning};
use support::child::run;
use support::lab::{self, BOTH, CriuVersion};
use support::moved;
use support::product::{self, Server, godwit, keys, migrate_args};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene, images};

fn dump(scene: &Scene, pid: i32, images: &Path, more: &[&str]) -> Finished {
    let pid = pid.to_string();
    let args = ["dump", "-R", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    godwit(scene, &[&args[..], more].concat()).expect_ok()
}

fn criu_cpuinfo(version: CriuVersion, verb: &str, dir: &Path, options: &[&str]) -> Finished {
    let mut criu = Command::new(lab::criu(version).unwrap());
    criu.args(["cpuinfo", verb, "-D"]).arg(dir).args(options);
    run(criu, Duration::from_secs(30))
}

#[test]
fn what_is_written_of_this_processor_is_what_criu_writes() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "crit");
    let scene = Scene::new("cpuinfo");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let ours = scene.subdir("ours");
    dump(&scene, victim.pid, &ours, &[]);
    for version in BOTH {
        let theirs = scene.subdir("theirs");
        criu_cpuinfo(version, "dump", &theirs, &[]).expect_ok();
        let decoded = images::decode(&ours.join("cpuinfo.img"));
        assert_eq!(decoded, images::decode(&theirs.join("cpuinfo.img")), "CRIU {}", version.text());
        // And CRIU takes it for this machine's, by every comparison that it has.
        for cap in ["fpu", "ins", "cpu", "all"] {
            criu_cpuinfo(version, "check", &ours, &[&format!("--cpu-cap={cap}")]).expect_ok();
        }
    }
    let dumped = scene.subdir("dumped");
    lab::criu_dump(CriuVersion::V4_2, victim.pid, &dumped, &["--leave-running", "--cpu-cap=cpu"]).expect_ok();
    assert_eq!(images::decode(&ours.join("cpuinfo.img")), images::decode(&dumped.join("cpuinfo.img")));
    let none = scene.subdir("none");
    dump(&scene, victim.pid, &none, &["--cpu-cap", "none"]);
    assert!(!none.join("cpuinfo.img").exists());
    // CRIU sees a processor that has more than this one.
    let mut image = images::decode(&ours.join("cpuinfo.img"));
    let words = image["entries"][0]["x86_entry"][0]["capability"].as_array_mut().unwrap();
    words[9] = u64::from(u32::MAX).into();
    images::encode(&image, &ours.join("cpuinfo.img"));
    let refused = criu_cpuinfo(CriuVersion::V4_2, "check", &ours, &["--cpu-cap=ins"]);
    assert!(!refused.ok(), "CRIU's comparison takes anything: {refused}");
    assert_eq!(victim.check(), Verdict::Ok);
}

/// This machine's processor, from a dump.
fn here(scene: &Scene, victim: &Victim) -> CpuinfoX86Entry {
    let images = scene.subdir("here");
    dump(scene, victim.pid, &images, &[]);
    let bytes = std::fs::read(images.join("cpuinfo.img")).unwrap();
    let entry: CpuinfoEntry =
        ImageReader::new(ImageKind::Cpuinfo, "cpuinfo.img", &bytes).unwrap().only().unwrap();
    entry.x86_entry[0].clone()
}

/// A page server that greets with this processor and hangs up at the next word, of which it tells.
fn greets_with(scene: &Scene, cpu: Option<CpuinfoX86Entry>) -> (String, std::thread::JoinHandle<bool>) {
    let identity = Identity::server(&keys(scene));
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &identity, &Tuning::default()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = std::thread::spawn(move || {
        let Some(connection) = listener.accept() else { return false };
        let Ok(Incoming::Control(sender, mut receiver)) = connection.accept::<ToServer>() else {
            return false;
        };
        let _ = receiver.recv(Some(Duration::from_secs(5)));
        let (criu_version, restore_allowed, cpu) = ("4.2".to_owned(), true, cpu.map(Box::new));
        let ack = HelloAck { version: 1, criu_version, restore_allowed, cpu, ..HelloAck::default() };
        let _ = sender.send(&ToClient::from(ack));
        matches!(receiver.recv(Some(Duration::from_secs(10))), Ok(Some(_)))
    });
    (address, served)
}

#[test]
fn a_destination_that_lacks_something_is_refused_by_name() {
    require!("root", "cc");
    let scene = Scene::new("cpu-lacks");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let here = here(&scene, &victim);
    let mut lacks = here.clone();
    const SSE4_2: u32 = 1 << 20;
    lacks.capability[4] &= !SSE4_2;
    lacks.model_id = Some("Old Box".to_owned());
    let larger = CpuinfoX86Entry { xsave_size: here.xsave_size.map(|size| size + 64), ..here.clone() };
    let odd = CpuinfoX86Entry { capability: vec![1; 3000], ..here.clone() };
    for (cpu, options, refused_for) in [
        (Some(lacks.clone()), &[][..], Some(&["Old Box", "lacks sse4_2", "--cpu-cap"][..])),
        (Some(lacks.clone()), &["--cpu-cap", "^ins"][..], None),
        (Some(lacks), &["--cpu-cap=none"][..], None),
        (Some(larger.clone()), &[][..], Some(&["another size"][..])),
        (Some(larger), &["--cpu-cap", "^fpu"][..], None),
        (Some(odd), &["--cpu-cap", "all"][..], None),
        (Some(here), &["--cpu-cap", "all"][..], None),
        (None, &["--cpu-cap", "all"][..], None),
    ] {
        let (address, served) = greets_with(&scene, cpu);
        let keys = keys(&scene);
        let pid = victim.pid.to_string();
        let args = ["migrate", "--pid", &pid, "--to", &address, "--keys", keys.to_str().unwrap()];
        let finished = godwit(&scene, &[&args[..], options].concat()).expect_refusal();
        let asked_for_a_session = served.join().unwrap();
        match refused_for {
            Some(words) => {
                assert_eq!(finished.code(), Some(3), "{options:?}: {finished}");
                words
                    .iter()
                    .for_each(|word| assert!(finished.stderr.contains(word), "no {word}: {finished}"));
                assert!(!asked_for_a_session, "{options:?}");
            }
            None => assert!(asked_for_a_session, "{options:?}: {finished}"),
        }
        victim.expect_untouched();
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn the_same_machine_does_for_every_comparison() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("cpu-same");
    let server = Server::start(&scene, CriuVersion::V4_2);
    for options in [&[][..], &["--cpu-cap"]] {
        let mut victim = Victim::start(&scene, "regs", &[]);
        let moved = moved::migrate(&scene, &mut victim, &server, &[&["--max-rounds", "1"], options].concat());
        assert_eq!(moved.check(&victim), Verdict::Ok, "{options:?}");
    }
    // Where images are only kept nothing is refused; here there is nothing to warn of either.
    let mut victim = Victim::start(&scene, "threads", &[]);
    let args = migrate_args(victim.pid, &server, &["--no-restore"]);
    let finished = godwit(&scene, &args).expect_ok();
    assert!(!finished.stderr.contains("could not be restored there"), "{finished}");
    victim.expect_killed();
}

#[test]
fn doctor_tells_of_a_page_server() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("cpu-doctor");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "threads", &[]);
    let to = server.to();
    let mut args = vec!["doctor", "--json", "--cpu-cap", "all"];
    args.extend(to.iter().map(String::as_str));
    let told = product::report(&godwit(&scene, &args).expect_ok());
    assert_eq!(told["page_server"]["can_restore"], true, "{told}");
    assert!(told["page_server"].to_string().contains("restore there by CRIU 4.2"), "{told}");
    assert!(told["page_server"].to_string().contains("processor there"), "{told}");
    let pid = victim.pid.to_string();
    args.extend(["--pid", &pid]);
    let told = product::report(&godwit(&scene, &args).expect_ok());
    assert_eq!((&told["can_migrate"], &told["page_server"]["can_restore"]), (&true.into(), &true.into()));
    // One that restores nothing, and none at all.
    let plain = Scene::subdir(&scene, "plain");
    let keeps = Server::start_at(&scene, &plain, "127.0.0.1:0", &[], &[]);
    let to = keeps.to();
    let args: Vec<&str> = ["doctor"].into_iter().chain(to.iter().map(String::as_str)).collect();
    let told = godwit(&scene, &args);
    assert_eq!(told.code(), Some(3), "{told}");
    assert!(told.stdout.contains("missing: restore there: it was started without --restore"), "{told}");
    let address = keeps.address.clone();
    drop(keeps);
    let args = ["doctor", "--to", &address, "--keys", server.keys.to_str().unwrap()];
    let told = godwit(&scene, &args);
    assert_eq!(told.code(), Some(3), "{told}");
    assert!(told.stdout.contains(&format!("missing: page server {address}")), "{told}");
    assert_eq!(victim.check(), Verdict::Ok);
}
