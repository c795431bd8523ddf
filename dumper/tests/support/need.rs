//! What a test wants of the machine. A test that cannot run says SKIP and why; the gate turns that into a failure.

use super::lab;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether all of `names` are there. Prints one SKIP line for each that is not, with the way to get it.
///
/// # Panics
/// With `GODWIT_REQUIRE=all`, when one is missing: a gate that skips is no gate. On a name nobody defined.
pub fn all(names: &[&str]) -> bool {
    let missing: Vec<String> =
        names.iter().filter_map(|name| why_missing(name).map(|why| format!("{name}: {why}"))).collect();
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    for line in &missing {
        eprintln!("SKIP {test}: {line}");
    }
    assert!(
        std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"),
        "GODWIT_REQUIRE=all and missing: {missing:?}"
    );
    false
}

fn why_missing(name: &str) -> Option<String> {
    match name {
        "root" => (!nix::unistd::geteuid().is_root()).then(|| "run the tests as root".into()),
        "cc" if std::env::var_os("GODWIT_VICTIMS").is_some() => None,
        "cc" => no_command("cc", "package gcc"),
        "setpriv" => no_command("setpriv", "package util-linux"),
        "musl" => no_command("musl-gcc", "package musl-tools"),
        "make" => no_command("make", "package make"),
        "python3" => no_command("python3", "package python3"),
        "sqlite3" => no_command("sqlite3", "package sqlite3"),
        "criu-4.1" => lab::criu(lab::CriuVersion::V4_1).err(),
        "criu-4.2" => lab::criu(lab::CriuVersion::V4_2).err(),
        "crit" => lab::crit().err(),
        "cgroup2" => super::cgroup::why_none(),
        "huge-pages" => super::huge::why_none(),
        "vm" => no_command("qemu-system-x86_64", "package qemu-system-x86").or_else(|| lab::guest().err()),
        "uffd" => (!Path::new("/proc/self/pagemap").exists()).then(|| "no pagemap".into()),
        "page-server" => super::product::page_server_program().err(),
        other => panic!("nobody defined the requirement {other}"),
    }
}

fn no_command(command: &str, cure: &str) -> Option<String> {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    (!found).then(|| format!("{command} is missing ({cure})"))
}
