//! What whoever restores provides (`--external`): left out of the images by name, and given to `criu restore` by
//! `--inherit-fd`. Without the option what leads out of the tree is refused, with the words that would do.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use support::lab::{BOTH, Restored};
use support::product::{Server, godwit, migrate_args};
use support::victim::{Verdict, Victim};
use support::{Scene, scene};

/// A victim, what it has of the outside, and the names of both.
struct Outside {
    victim: Victim,
    reader: PipeReader,
    writer: PipeWriter,
    names: [String; 2],
}

fn own_link(fd: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

/// A field of `/proc/PID/fdinfo/FD`, in decimal.
fn fdinfo(pid: i32, fd: i32, field: &str) -> u64 {
    let text = scene::proc_text(pid, &format!("fdinfo/{fd}"));
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().parse().unwrap()
}

fn file(scene: &Scene, name: &str, text: &str) -> PathBuf {
    let path = scene.dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn start(scene: &Scene, mode: &str) -> Outside {
    let (reader, writer) = std::io::pipe().unwrap();
    let pipe = if mode == "write" { own_link(writer.as_fd()) } else { own_link(reader.as_fd()) };
    let path = file(scene, "before", "taken");
    let victim = Victim::start(scene, "outside", &[&pipe, path.to_str().unwrap(), mode]);
    let inode = fdinfo(victim.pid, 10, "ino");
    let (mount, of_file) = (fdinfo(victim.pid, 11, "mnt_id"), fdinfo(victim.pid, 11, "ino"));
    Outside {
        victim,
        reader,
        writer,
        names: [format!("pipe:[{inode}]"), format!("file[{mount:x}:{of_file:x}]")],
    }
}

fn dump(scene: &Scene, pid: i32, images: &Path, names: &[&String]) -> support::Finished {
    let pid = pid.to_string();
    let mut args = vec!["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    args.extend(names.iter().flat_map(|name| ["--external", name.as_str()]));
    godwit(scene, &args)
}

/// A restore inherits it.
fn kept_on_exec(fd: &impl AsFd) {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
}

#[test]
fn what_is_provided_is_left_out_and_given_to_the_restore() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    for version in BOTH {
        for mode in ["read", "write"] {
            let scene = Scene::new("external");
            let mut outside = start(&scene, mode);
            let images = scene.subdir("images");
            let [pipe, path] = &outside.names;
            let refused = dump(&scene, outside.victim.pid, &images, &[path]).expect_refusal();
            let hint = format!("--external {pipe} here, --inherit-fd fd[N]:{pipe} there");
            assert!(refused.stderr.contains(&hint), "{refused}");
            // What lies in it stays there, and is a loss by name.
            outside.writer.write_all(b"stays").unwrap();
            let dumped = dump(&scene, outside.victim.pid, &images, &[pipe, path]).expect_ok();
            let told = dumped.stdout.clone() + &dumped.stderr;
            assert!(told.contains("the 5 bytes that lie in it stay there"), "{told}");
            outside.victim.expect_killed();
            std::fs::remove_file(scene.dir().join("before")).unwrap();

            let (mut reader, mut writer) = std::io::pipe().unwrap();
            let given = File::open(file(&scene, "elsewhere", "given")).unwrap();
            let end = if mode == "write" { writer.as_fd() } else { reader.as_fd() };
            kept_on_exec(&end);
            kept_on_exec(&given);
            let options = [
                format!("--inherit-fd=fd[{}]:{pipe}", end.as_raw_fd()),
                format!("--inherit-fd=fd[{}]:{path}", given.as_raw_fd()),
            ];
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            outside.victim.ask();
            if mode == "read" {
                writer.write_all(b"given").unwrap();
            }
            let restored = Restored::from_images(&images, version, &options, &outside.victim);
            assert_eq!(restored.verdict(), Verdict::Ok, "{mode}, CRIU {}", version.text());
            if mode == "write" {
                let mut taken = [0; 5];
                reader.read_exact(&mut taken).unwrap();
                assert_eq!(&taken, b"taken");
            }
            let mut stayed = [0; 5];
            outside.reader.read_exact(&mut stayed).unwrap();
            assert_eq!(&stayed, b"stays");
        }
    }
}

#[test]
fn a_page_server_that_restores_has_nothing_to_give() {
    require!("root", "cc", "criu-4.2", "page-server");
    use support::lab::CriuVersion;
    let scene = Scene::new("external-server");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut outside = start(&scene, "read");
    let [pipe, path] = &outside.names;
    let both = ["--external", pipe, "--external", path];
    let refused = godwit(&scene, &migrate_args(outside.victim.pid, &server, &both));
    assert_eq!(refused.code(), Some(2), "{refused}");
    assert!(refused.stderr.contains("--no-restore"), "{refused}");
    outside.victim.expect_untouched();
    let options = [&both[..], &["--no-restore"]].concat();
    godwit(&scene, &migrate_args(outside.victim.pid, &server, &options)).expect_ok();
    outside.victim.expect_killed();
}

#[test]
fn a_name_that_is_none_is_said_so() {
    require!("root");
    let scene = Scene::new("external-name");
    let refused = dump(&scene, 1, &scene.subdir("images"), &[&"unix[5".to_owned()]);
    assert_eq!(refused.code(), Some(2), "{refused}");
    assert!(refused.stderr.contains("file[MOUNT:INODE]"), "{refused}");
}
