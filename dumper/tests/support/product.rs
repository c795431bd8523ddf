//! `godwit` and `godwit-page-server`, as a user starts them.

use super::child::{Finished, Running, run};
use super::lab::CriuVersion;
use super::scene::Scene;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a command of godwit may take in a test, unless the test says otherwise.
pub const GODWIT_LIMIT: Duration = Duration::from_secs(90);

/// `godwit ARGS` to its end, with its journals in the scene.
pub fn godwit<S: AsRef<std::ffi::OsStr>>(scene: &Scene, args: &[S]) -> Finished {
    run(godwit_command(scene, args), GODWIT_LIMIT)
}

/// The command, for tests that set an environment or watch it run.
pub fn godwit_command<S: AsRef<std::ffi::OsStr>>(scene: &Scene, args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(args).env("GODWIT_STATE_DIR", source_state(scene)).env_remove("GODWIT_FAULT");
    command
}

/// Where the source keeps its journals.
pub fn source_state(scene: &Scene) -> PathBuf {
    scene.dir().join("state-source")
}

/// Where the destination keeps its journals.
pub fn destination_state(scene: &Scene) -> PathBuf {
    scene.dir().join("state-destination")
}

/// `godwit-page-server`, which is another package's program and lies beside `godwit`. Built when missing.
pub fn page_server_program() -> Result<PathBuf, String> {
    let path = Path::new(env!("CARGO_BIN_EXE_godwit")).with_file_name("godwit-page-server");
    if !path.is_file() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "-p", "godwit-page-server", "--bins"]);
        let built = run(cargo, Duration::from_secs(580));
        if !built.ok() {
            return Err(built.to_string());
        }
    }
    if path.is_file() { Ok(path) } else { Err(format!("{} is missing (cargo build)", path.display())) }
}

/// A set of certificates made by `godwit keys init`.
pub fn keys(scene: &Scene) -> PathBuf {
    let dir = scene.dir().join("keys");
    if !dir.exists() {
        godwit(scene, &["keys".as_ref(), "init".as_ref(), dir.as_os_str()]).expect_ok();
    }
    dir
}

/// A running page server on a port of its own. Killed when dropped.
pub struct Server {
    pub running: Running,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// Where its sessions lie.
    pub images: PathBuf,
    pub keys: PathBuf,
}

impl Server {
    /// Starts one that restores, with CRIU of `version`.
    #[track_caller]
    pub fn start(scene: &Scene, version: CriuVersion) -> Self {
        Self::start_with(
            scene,
            &["--restore"],
            &[("GODWIT_CRIU", super::lab::criu(version).unwrap().to_str().unwrap())],
        )
    }

    /// Starts one with these options and variables.
    #[track_caller]
    pub fn start_with(scene: &Scene, options: &[&str], environment: &[(&str, &str)]) -> Self {
        let images = scene.dir().join("images");
        std::fs::create_dir_all(&images).unwrap();
        Self::start_at(scene, &images, "127.0.0.1:0", options, environment)
    }

    /// Starts one at a given address and directory: a second start of the same server.
    #[track_caller]
    pub fn start_at(
        scene: &Scene,
        images: &Path,
        listen: &str,
        options: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let keys = keys(scene);
        let mut command = Command::new(page_server_program().unwrap());
        command
            .args(["serve", "--listen", listen, "--images-dir"])
            .arg(images)
            .arg("--keys")
            .arg(&keys)
            .arg("--state-dir")
            .arg(destination_state(scene))
            .args(options)
            .env_remove("GODWIT_FAULT")
            .envs(environment.iter().copied());
        let mut running = Running::start(command);
        let address = running.wait_for(Duration::from_secs(15), |stdout, _| {
            let line = stdout.lines().find(|line| line.contains("listening on "))?;
            Some(line.split("listening on ").nth(1)?.split_whitespace().next()?.to_owned())
        });
        let Some(address) = address else {
            panic!("the page server does not listen: {}", running.finish(Duration::ZERO))
        };
        Self { running, address, images: images.to_owned(), keys }
    }

    /// The options that name it: `--to ADDR --keys DIR`.
    pub fn to(&self) -> [String; 4] {
        ["--to".into(), self.address.clone(), "--keys".into(), self.keys.to_str().unwrap().into()]
    }

    /// The directories of all sessions, oldest name first.
    pub fn sessions(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(&self.images)
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir() && !path.file_name().unwrap().to_string_lossy().starts_with('.'))
            .collect();
        found.sort();
        found
    }
}

/// The arguments of a migration of `pid`.
pub fn migrate_args(pid: i32, server: &Server, more: &[&str]) -> Vec<String> {
    let mut args = vec!["migrate".to_owned(), "--pid".to_owned(), pid.to_string()];
    args.extend(server.to());
    args.push("--json".to_owned());
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

/// The last object that a command printed with `--json`.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn report(finished: &Finished) -> Value {
    let whole = serde_json::from_str::<Value>(finished.stdout.trim()).ok().filter(Value::is_object);
    let last = || {
        finished
            .stdout
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object))
    };
    whole.or_else(last).unwrap_or_else(|| panic!("no JSON object on stdout: {finished}"))
}

/// The restore options in a manifest.
pub fn manifest_restore_options(bytes: &[u8]) -> Result<Vec<String>, String> {
    godwit_wire::image::manifest::Manifest::decode(bytes)
        .map(|manifest| manifest.restore_options)
        .map_err(|error| error.to_string())
}
