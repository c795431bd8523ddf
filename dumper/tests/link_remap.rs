//! Files whose path is gone while they have another link (`--link-remap`): a link beside the former path leads a restore to
//! them, and lies there for no longer than it has to.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::images::{self, Change};
use support::lab::{self, BOTH, CriuVersion, Restored};
use support::product::{Server, godwit, godwit_command};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene, moved};

fn dump(scene: &Scene, victim: &Victim, images: &Path, more: &[&str]) -> Finished {
    let pid = victim.pid.to_string();
    godwit(scene, &[&["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()], more].concat())
}

/// The links of a dump that lie in the victim's directory.
fn links(victim: &Victim) -> Vec<String> {
    let names = std::fs::read_dir(victim.dir()).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("link_remap")).collect()
}

#[test]
fn they_come_back_and_no_link_is_left() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    for version in BOTH {
        let scene = Scene::new("link-remap");
        let mut victim = Victim::start(&scene, "linked", &[]);
        let images = scene.subdir("images");
        let refused = dump(&scene, &victim, &images, &[]).expect_refusal();
        assert!(refused.stderr.contains("give --link-remap"), "{refused}");
        let doctor = ["doctor", "--link-remap", "--pid", &victim.pid.to_string()];
        godwit(&scene, &doctor).expect_ok();
        dump(&scene, &victim, &images, &["--link-remap"]).expect_ok();
        victim.expect_killed();
        assert_eq!(links(&victim).len(), 3, "one for each open file");
        victim.ask();
        let restored = Restored::from_images(&images, version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
        assert_eq!(links(&victim), [""; 0], "CRIU {}", version.text());
    }
}

#[test]
fn they_are_moved() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("link-migrate");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "linked", &[]);
    let moved = moved::migrate(&scene, &mut victim, &server, &["--link-remap", "--rounds", "2"]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
    assert_eq!(links(&victim), [""; 0]);
}

/// By an error, a fault of godwit's own, and a kill, after which the next dump takes them away.
#[test]
fn a_dump_that_fails_leaves_no_link() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("link-fails");
    let mut victim = Victim::start(&scene, "linked", &[]);
    for (n, fault) in [
        "mid.links.made:error@2",
        "mid.links.made:panic@3",
        "mid.finish.sealed:error",
        "step.before.write-inventory:error",
        "mid.links.made:kill@2",
    ]
    .iter()
    .enumerate()
    {
        let images = scene.subdir(&format!("images-{n}"));
        let pid = victim.pid.to_string();
        let args = ["dump", "--link-remap", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        let mut command = godwit_command(&scene, &args);
        command.env("GODWIT_FAULT", fault).env("RUST_BACKTRACE", "0");
        let failed = support::run(command, support::product::GODWIT_LIMIT);
        assert!(!failed.ok(), "{fault}: {failed}");
        victim.expect_untouched();
        assert_eq!(links(&victim).len(), if fault.contains("kill") { 2 } else { 0 }, "{fault}: {failed}");
    }
    dump(&scene, &victim, &scene.subdir("unlinked"), &[]).expect_refusal();
    assert_eq!(links(&victim), [""; 0], "a dump sweeps what a killed one left");
    let running = dump(&scene, &victim, &scene.subdir("running"), &["--link-remap", "--leave-running"]);
    assert_eq!(running.code(), Some(2), "{running}");
    assert_eq!(victim.check(), Verdict::Ok);
}

/// The victim itself under test: dumped by CRIU alone it passes, and notices what is changed.
#[test]
fn a_changed_link_is_noticed() {
    require!("root", "cc", "criu-4.2", "crit");
    let scene = Scene::new("link-notice");
    for (file, path, change) in [
        ("", "", Change::Remove),
        ("files.img", "/5/reg/pos", Change::Add(1)),
        ("remap-fpath.img", "/0", Change::Remove),
    ] {
        let mut victim = Victim::start(&scene, "linked", &[]);
        let dir = scene.subdir("criu");
        lab::criu_dump(CriuVersion::V4_2, victim.pid, &dir, &["--link-remap"]).expect_ok();
        victim.expect_killed();
        if !file.is_empty() {
            let at = images::find(&dir, file);
            let mut image = images::decode(&at);
            // The first regular file that was open at a position is the fifth or the sixth.
            let list = image["entries"].as_array().unwrap();
            let open = list.iter().position(|entry| entry["reg"]["pos"] == 2).unwrap_or_default();
            images::change(&mut image, &path.replace("/5/", &format!("/{open}/")), change);
            images::encode(&image, &at);
        }
        victim.ask();
        let verdict = match Restored::try_from_images(&dir, CriuVersion::V4_2, &[], &victim) {
            Ok(restored) => restored.verdict(),
            Err(why) => Verdict::Lost(why),
        };
        assert_eq!(verdict == Verdict::Ok, file.is_empty(), "{file} {path}: {verdict:?}");
        scene.sweep();
    }
}
