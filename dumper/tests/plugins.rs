//! Plugins for CRIU, compiled from `tests/plugins`, loaded by godwit and, to restore, by `criu restore`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::child::run;
use support::lab::{CriuVersion, Restored};
use support::moved;
use support::product::{self, Server, godwit_command, migrate_args};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene, images};

/// Compiles a plugin into a directory, as `NAME.so`.
fn compile(source: &str, into: &Path, name: &str, flags: &[&str]) -> PathBuf {
    std::fs::create_dir_all(into).unwrap();
    let object = into.join(format!("{name}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]).args(flags).arg("-o").arg(&object);
    cc.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins").join(source));
    run(cc, Duration::from_secs(60)).expect_ok();
    object
}

/// The plugin of these tests, and what it writes.
struct Plugin {
    libdir: PathBuf,
    log: PathBuf,
}

impl Plugin {
    fn new(scene: &Scene) -> Plugin {
        let libdir = scene.dir().join("plugins");
        std::fs::create_dir(temporary(scene)).unwrap();
        compile("foreign.c", &libdir, "foreign", &[]);
        Plugin { libdir, log: scene.dir().join("plugin-log") }
    }

    /// The lines so far; the next call begins anew.
    fn told(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let _ = std::fs::remove_file(&self.log);
        text.lines().map(str::to_owned).collect()
    }

    fn run(&self, scene: &Scene, args: &[&str], fails: &str) -> Finished {
        let mut command = godwit_command(scene, args);
        command.env("TMPDIR", temporary(scene));
        command.args(["--libdir".as_ref(), self.libdir.as_os_str()]);
        command.env("GODWIT_PLUGIN_LOG", &self.log).env("GODWIT_PLUGIN_FAIL", fails);
        run(command, product::GODWIT_LIMIT)
    }

    fn dump(&self, scene: &Scene, pid: i32, images: &Path, more: &[&str], fails: &str) -> Finished {
        let pid = pid.to_string();
        let args = ["dump", "--json", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        self.run(scene, &[&args[..], more].concat(), fails)
    }

    /// CRIU gets the directory by its option, and the plugin its log by what CRIU inherits.
    fn restore(&self, images: &Path, victim: &Victim) -> Result<Verdict, String> {
        let options = ["--libdir", self.libdir.to_str().unwrap()];
        Restored::try_from_images(images, CriuVersion::V4_2, &options, victim).map(Restored::verdict)
    }
}

/// Where godwit makes its temporary files here.
fn temporary(scene: &Scene) -> PathBuf {
    scene.dir().join("temporary")
}

fn leftovers(scene: &Scene) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(temporary(scene)).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("godwit-images-")).collect()
}

#[test]
fn a_descriptor_that_only_a_plugin_knows_comes_back() {
    require!("root", "cc", "criu-4.2", "crit");
    let scene = Scene::new("plugin-file");
    let plugin = Plugin::new(&scene);
    let mut victim = Victim::start(&scene, "foreign", &["file"]);
    let images = scene.subdir("images");
    plugin.dump(&scene, victim.pid, &images, &[], "").expect_ok();
    victim.expect_killed();
    assert_eq!(leftovers(&scene), Vec::<PathBuf>::new());
    let pid = victim.pid;
    let expected = [
        "init 0".to_owned(),
        format!("pause {pid}"),
        format!("checkpoint {pid} t"),
        "dump anon_inode:[fscontext]".to_owned(),
        "exit 0 0".to_owned(),
    ];
    assert_eq!(plugin.told(), expected);
    let inventory = images::decode(&images.join("inventory.img"));
    assert_eq!(inventory["entries"][0]["plugins_entry"]["plugins"][0], "godwit_foreign", "{inventory}");
    let files = images::decode(&images.join("files.img"));
    let external = files["entries"].as_array().unwrap().iter().filter(|entry| entry["type"] == "EXT");
    let id = external.map(|entry| entry["ext"]["id"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(id.len(), 1, "one open file, and two descriptors: {files}");
    assert_eq!(std::fs::read_to_string(images.join(format!("foreign-{:x}.img", id[0]))).unwrap(), "tmpfs");
    product::godwit(&scene, &["inspect", images.to_str().unwrap()]).expect_ok();
    victim.ask();
    // Without the plugin CRIU refuses the images by its name.
    let refused = Restored::try_from_images(&images, CriuVersion::V4_2, &["--libdir", "/var/empty"], &victim);
    assert!(refused.is_err());
    assert_eq!(plugin.restore(&images, &victim), Ok(Verdict::Ok));
}

#[test]
fn the_directory_of_a_killed_godwit_is_removed_by_the_next_or_by_a_sweep() {
    require!("root", "cc");
    let scene = Scene::new("plugin-killed");
    let plugin = Plugin::new(&scene);
    let mut victim = Victim::start(&scene, "foreign", &["file"]);
    let dump = |fault: Option<&str>| {
        let (pid, images) = (victim.pid.to_string(), scene.subdir("images"));
        let args = ["dump", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        let mut command = godwit_command(&scene, &args);
        command.env("TMPDIR", temporary(&scene)).env("GODWIT_PLUGIN_LOG", &plugin.log);
        command
            .args(["--libdir".as_ref(), plugin.libdir.as_os_str()])
            .envs(fault.map(|fault| ("GODWIT_FAULT", fault)));
        run(command, product::GODWIT_LIMIT)
    };
    for by_sweep in [true, false] {
        assert!(!dump(Some("mid.finish.sealed:kill")).ok());
        let [left] = &leftovers(&scene)[..] else { panic!("{:?}", leftovers(&scene)) };
        // What somebody uses is left alone.
        let used = temporary(&scene).join("godwit-images-used");
        std::fs::create_dir_all(&used).unwrap();
        let lock = nix::fcntl::Flock::lock(
            std::fs::File::open(&used).unwrap(),
            nix::fcntl::FlockArg::LockExclusiveNonblock,
        );
        if by_sweep {
            let mut sweep = godwit_command(&scene, &["doctor", "--sweep"]);
            sweep.env("TMPDIR", temporary(&scene));
            let swept = run(sweep, product::GODWIT_LIMIT).expect_ok();
            assert!(swept.stdout.contains(left.to_str().unwrap()), "{swept}");
        } else {
            dump(None).expect_ok();
        }
        assert_eq!(leftovers(&scene), std::slice::from_ref(&used));
        drop(lock.unwrap());
        std::fs::remove_dir(&used).unwrap();
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn what_a_plugin_wrote_goes_along_to_a_page_server() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("plugin-server");
    let plugin = Plugin::new(&scene);
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "foreign", &["file"]);
    let args = migrate_args(victim.pid, &server, &["--no-restore", "--rounds", "2"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    plugin.run(&scene, &args, "").expect_ok();
    victim.expect_killed();
    let images = server.sessions()[0].join("final");
    victim.ask();
    assert_eq!(plugin.restore(&images, &victim), Ok(Verdict::Ok));
}

#[test]
fn a_page_server_restores_by_the_same_plugin() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("plugin-migrate");
    let plugin = Plugin::new(&scene);
    let criu = support::lab::criu(CriuVersion::V4_2).unwrap();
    let environment = [
        ("GODWIT_CRIU", criu.to_str().unwrap()),
        ("CRIU_LIBS_DIR", plugin.libdir.to_str().unwrap()),
        ("GODWIT_PLUGIN_LOG", plugin.log.to_str().unwrap()),
    ];
    let server = Server::start_with(&scene, &["--restore"], &environment);
    let mut victim = Victim::start(&scene, "foreign", &["file"]);
    let args = migrate_args(victim.pid, &server, &["--rounds", "1"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let finished = plugin.run(&scene, &args, "").expect_ok();
    victim.expect_killed();
    let moved = moved::copy(&scene, &victim, &finished);
    let told = plugin.told();
    assert!(told.contains(&"restore tmpfs".to_owned()) && told.contains(&"exit 0 0".to_owned()), "{told:?}");
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn a_mapping_that_only_a_plugin_knows_comes_back() {
    require!("root", "cc", "criu-4.2", "crit");
    let scene = Scene::new("plugin-device");
    let plugin = Plugin::new(&scene);
    let mut victim = Victim::start(&scene, "foreign", &["device"]);
    if victim.log().contains("CANNOT") {
        eprintln!("SKIP: no loop device that can be mapped: {}", victim.log());
        return;
    }
    let images = scene.subdir("images");
    let pid = victim.pid.to_string();
    let alone = ["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    let refused = product::godwit(&scene, &alone).expect_refusal();
    assert!(refused.stderr.contains("/dev/loop7"), "{refused}");
    victim.expect_untouched();
    plugin.dump(&scene, victim.pid, &images, &[], "").expect_ok();
    victim.expect_killed();
    assert!(plugin.told().contains(&"device 7".to_owned()));
    const EXT_PLUGIN: u64 = 1 << 27;
    let mm = images::decode(&images::find(&images, "mm-*.img"));
    let vmas = mm["entries"][0]["vmas"].as_array().unwrap();
    let of_plugin = |vma: &serde_json::Value| vma["status"].as_u64().unwrap() & EXT_PLUGIN != 0;
    assert_eq!(vmas.iter().filter(|vma| of_plugin(vma)).count(), 1, "{mm}");
    victim.ask();
    assert_eq!(plugin.restore(&images, &victim), Ok(Verdict::Ok));
}

#[test]
fn plugins_are_told_of_every_failure_and_the_process_runs_on() {
    require!("root", "cc");
    let scene = Scene::new("plugin-fails");
    let plugin = Plugin::new(&scene);
    let mut victim = Victim::start(&scene, "foreign", &["file"]);
    for (fails, named, told_of_end) in [
        ("init", "its init", false),
        ("pause", "PAUSE_DEVICES", true),
        ("checkpoint", "CHECKPOINT_DEVICES", true),
        ("dump", "DUMP_EXT_FILE", true),
    ] {
        let images = scene.subdir("images");
        let finished = plugin.dump(&scene, victim.pid, &images, &[], fails).expect_refusal();
        assert!(
            finished.stderr.contains(named) && finished.stderr.contains("foreign"),
            "{fails}: {finished}"
        );
        victim.expect_untouched();
        let told = plugin.told();
        let ends: Vec<&String> = told.iter().filter(|line| line.starts_with("exit")).collect();
        assert_eq!(ends, if told_of_end { vec!["exit 0 -1"] } else { vec![] }, "{fails}: {told:?}");
    }
    // Behind the last hook: the failure of something else.
    let images = scene.subdir("images");
    let mut command = godwit_command(&scene, &["dump", "--pid", &victim.pid.to_string(), "--images-dir"]);
    command.arg(&images).arg("-L").arg(&plugin.libdir).env("GODWIT_PLUGIN_LOG", &plugin.log);
    command.env("GODWIT_FAULT", "step.before.write-inventory:error");
    run(command, product::GODWIT_LIMIT).expect_refusal();
    victim.expect_untouched();
    assert_eq!(plugin.told().last().unwrap(), "exit 0 -1");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn what_no_plugin_knows_is_refused_by_name_under_freeze() {
    require!("root", "cc");
    let scene = Scene::new("plugin-unknown");
    let plugin = Plugin::new(&scene);
    let mut victim = Victim::start(&scene, "odd", &["device"]);
    if victim.log().contains("CANNOT") || victim.log().contains("BROKEN") {
        eprintln!("SKIP: no such descriptor: {}", victim.log());
        return;
    }
    let images = scene.subdir("images");
    let finished = plugin.dump(&scene, victim.pid, &images, &[], "").expect_refusal();
    assert_eq!(finished.code(), Some(3), "{finished}");
    assert!(
        finished.stderr.contains("fd 77") && finished.stderr.contains("no plugin knows it"),
        "{finished}"
    );
    let told = plugin.told();
    assert!(told.iter().any(|line| line.starts_with("other ")), "{told:?}");
    assert_eq!(told.last().unwrap(), "exit 0 -1");
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn plugins_of_another_contract_are_refused_before_anything_is_touched() {
    require!("root", "cc");
    let scene = Scene::new("plugin-other");
    let mut victim = Victim::start(&scene, "threads", &[]);
    for (flags, why) in [
        (["-DVERSION=0x300"], "version 0x300"),
        (["-DHOOKS_LEN=14"], "14 hooks"),
        (["-DWANTS=compel_insides"], "compel_insides"),
    ] {
        let libdir = scene.subdir("libdir");
        compile("later.c", &libdir, "later", &flags);
        let images = scene.subdir("images");
        let mut command = godwit_command(&scene, &["dump", "--pid", &victim.pid.to_string(), "--images-dir"]);
        command.arg(&images).env("CRIU_LIBS_DIR", &libdir);
        let finished = run(command, product::GODWIT_LIMIT).expect_refusal();
        assert!(finished.stderr.contains(why) && finished.stderr.contains("later.so"), "{why}: {finished}");
        victim.expect_untouched();
    }
    // One that asks for nothing is loaded, and no restore needs it.
    let libdir = scene.subdir("libdir");
    compile("later.c", &libdir, "later", &[]);
    let images = scene.subdir("images");
    let mut command =
        godwit_command(&scene, &["dump", "-R", "--pid", &victim.pid.to_string(), "--images-dir"]);
    command.arg(&images).env("CRIU_LIBS_DIR", &libdir);
    run(command, product::GODWIT_LIMIT).expect_ok();
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_round_on_its_own_is_another_stage() {
    require!("root", "cc");
    let scene = Scene::new("plugin-round");
    let plugin = Plugin::new(&scene);
    let mut victim = Victim::start(&scene, "threads", &[]);
    let images = scene.subdir("images");
    let pid = victim.pid.to_string();
    let args = ["pre-dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    plugin.run(&scene, &args, "").expect_ok();
    let told = plugin.told();
    assert_eq!(told.first().unwrap(), "init 1", "{told:?}");
    assert_eq!(told.last().unwrap(), "exit 1 0", "{told:?}");
    assert_eq!(victim.check(), Verdict::Ok);
}
