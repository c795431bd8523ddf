//! A request of an AIO ring that completes while its process is dumped is noticed: its event would be in no image.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::time::Duration;

use godwit_dumper::procfs::maps;
use godwit_dumper::task::aio::Rings;
use nix::unistd::Pid;
use support::child::eventually;
use support::{Scene, Verdict, Victim};

#[test]
fn a_request_that_completes_meanwhile_is_noticed() {
    require!("root", "cc");
    let scene = Scene::new("aio");
    let mut victim = Victim::start(&scene, "aio", &["waiting"]);
    let pid = Pid::from_raw(victim.pid);
    let vmas = maps::read_with_flags(pid).unwrap();
    let rings = Rings::read(pid, &vmas).unwrap();
    rings.stood_still(pid).unwrap();
    let mut bell = std::fs::OpenOptions::new().write(true).open(victim.dir().join("bell")).unwrap();
    bell.write_all(b"x").unwrap();
    eventually("the request completes", Duration::from_secs(5), || rings.stood_still(pid).is_err());
    let why = rings.stood_still(pid).unwrap_err();
    let why = godwit_dumper::commands::chain(&why);
    assert!(why.contains("a request of its AIO context completed during the dump"), "{why}");
    assert!(why.contains("dump it again"), "{why}");
    assert_eq!(victim.check(), Verdict::Ok);
}
