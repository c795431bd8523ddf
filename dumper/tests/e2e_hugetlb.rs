//! Memory of huge pages that were reserved for it (hugetlb): dumped and restored, moved after rounds that leave it out, and
//! a victim that notices what is changed.
#![allow(clippy::unwrap_used)]

mod support;

use support::huge::HugePages;
use support::images::{self, Change};
use support::lab::{BOTH, CriuVersion, Restored};
use support::product::migrate_args;
use support::{Scene, Server, Verdict, Victim, godwit, moved};

fn dumped(scene: &Scene, victim: &mut Victim, version: CriuVersion) -> std::path::PathBuf {
    let images = scene.subdir("images");
    let pid = victim.pid.to_string();
    let args = ["dump", "--pid", &pid, "--criu-version", version.text(), "--images-dir"];
    let mut args: Vec<&std::ffi::OsStr> = args.iter().map(|arg| arg.as_ref()).collect();
    args.push(images.as_os_str());
    godwit(scene, &args).expect_ok();
    victim.expect_killed();
    victim.ask();
    images
}

#[test]
fn huge_pages_come_back_under_both_crius() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "huge-pages");
    let scene = Scene::new("hugetlb");
    let huge = HugePages::new(&scene);
    for version in BOTH {
        let mut victim = Victim::start(&scene, "hugetlb", &[huge.dir.to_str().unwrap()]);
        let images = dumped(&scene, &mut victim, version);
        let restored = Restored::from_images(&images, version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
        scene.sweep();
    }
}

#[test]
fn huge_pages_are_no_part_of_the_rounds_and_whole_in_the_last_set() {
    require!("root", "cc", "criu-4.2", "page-server", "huge-pages");
    let scene = Scene::new("hugetlb-rounds");
    let huge = HugePages::new(&scene);
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "hugetlb", &[huge.dir.to_str().unwrap()]);
    let finished = godwit(&scene, &migrate_args(victim.pid, &server, &["--rounds", "3"])).expect_ok();
    victim.expect_killed();
    let moved = moved::copy(&scene, &victim, &finished);
    let rounds = moved.report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 4, "{finished}");
    let pages = |round: usize| rounds[round]["pages_scanned"].as_u64().unwrap();
    // Its private huge pages alone are 4 x 512 pages.
    assert!(pages(0) < 2048 && pages(3) >= 4 * 512, "{finished}");
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn a_changed_field_is_noticed() {
    require!("root", "cc", "criu-4.2", "crit", "huge-pages");
    let scene = Scene::new("hugetlb-mutate");
    let huge = HugePages::new(&scene);
    // MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB of the two that are private.
    let rows = [
        ("mm-*.img", "/0/vmas/[flags=1409548322]/flags", Change::Flip(0x40000), "is not of huge pages"),
        ("memfd.img", "/0/hugetlb_flag", Change::Remove, ""),
        ("pagemap-shmem-*.img", "/1", Change::Remove, "page"),
    ];
    let mut victim = Victim::start(&scene, "hugetlb", &[huge.dir.to_str().unwrap()]);
    let images = dumped(&scene, &mut victim, CriuVersion::V4_2);
    let log = victim.dir().join("log");
    let ready = std::fs::read(&log).unwrap();
    for (image, field, change, notice) in rows {
        let changed = scene.dir().join("changed");
        images::copy(&images, &changed);
        let file = images::find(&changed, image);
        let mut content = images::decode(&file);
        images::change(&mut content, field, change);
        images::encode(&content, &file);
        std::fs::write(&log, &ready).unwrap();
        let verdict =
            Restored::try_from_images(&changed, CriuVersion::V4_2, &[], &victim).map(Restored::verdict);
        match verdict {
            Ok(Verdict::Ok) => panic!("{image} {field}: not noticed"),
            Ok(verdict) if !format!("{verdict:?}").contains(notice) => panic!("{image} {field}: {verdict:?}"),
            Ok(_) | Err(_) => {}
        }
        std::fs::remove_dir_all(&changed).unwrap();
        scene.sweep();
    }
}
