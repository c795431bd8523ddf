//! `godwit demo`: the whole product in one run.
//!
//! It makes keys, starts a page server on loopback and a busy program, migrates the program with the ordinary
//! command, lets it run on where it was restored, and has a separate program judge its log. It fails if the
//! count broke, a page is wrong, only one round ran, or the program wrote nothing between two rounds.

pub mod check;
pub mod victim;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use godwit_wire::quic::keys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cli::Demo;
use crate::commands::Failure;
use check::Verdict;

/// Time the program may take to fill its memory, to be restored, and to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it runs before and after the move.
const RUN: Duration = Duration::from_millis(700);

/// Runs the demonstration and prints its report.
///
/// # Errors
/// When something could not be started, the migration failed, or the verdict is bad.
pub fn run(args: &Demo) -> Result<u8, Failure> {
    let temporary = match &args.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("godwit-demo-").tempdir().map_err(Failure::plain)?),
    };
    let dir = match (&args.dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two is made above"),
    };
    let report = stage(args, &dir).map_err(|error| Failure { text: error.to_string(), status: 1 })?;
    if args.json {
        println!("{report}");
    } else {
        print_for_people(&report);
    }
    Ok(u8::from(report["verified"] != Value::Bool(true)))
}

fn stage(args: &Demo, dir: &Path) -> io::Result<Value> {
    let place = |name: &str| dir.join(name);
    fs::create_dir_all(place("victim"))?;
    keys::init(&place("keys"), &[]).map_err(io::Error::other)?;
    let server = Server::start(args, dir)?;
    say("page server", &format!("listening on {}", server.address));
    let victim = start_victim(args, &place("victim"))?;
    wait_until("the program to fill its memory and write its log", || {
        fs::metadata(place("victim/log")).is_ok_and(|log| log.len() > 0)
    })?;
    std::thread::sleep(RUN);
    say("program", &format!("{} MiB, {} threads, process {}", args.memory_mib, args.threads, victim.0.id()));
    let migration = migrate(args, dir, victim.0.id(), &server.address)?;
    std::thread::sleep(RUN);
    File::create(place("victim/stop"))?;
    wait_until("the restored program to check its memory and end", || {
        fs::read_to_string(place("victim/log"))
            .is_ok_and(|log| log.lines().any(|line| line.starts_with("end ")))
    })?;
    let verdict = judge(&place("victim"))?;
    Ok(conclude(&migration, &verdict))
}

fn conclude(migration: &Value, verdict: &Verdict) -> Value {
    let mut complaints = verdict.complaints.clone();
    let rounds = migration["rounds"].as_array().cloned().unwrap_or_default();
    let sent = |round: &Value| -> u64 {
        let forms = ["pages_data", "pages_zero", "pages_same", "pages_delta", "pages_copied"];
        forms.iter().filter_map(|form| round[form].as_u64()).sum()
    };
    if rounds.len() < 3 {
        complaints.push(format!(
            "{} sets were sent, and two live rounds and a last set were expected",
            rounds.len()
        ));
    }
    if rounds.iter().skip(1).any(|round| sent(round) == 0) {
        complaints.push("the program wrote nothing between two rounds".to_owned());
    }
    let restored = migration["restored"] == Value::Bool(true);
    json!({
        "tracker": migration["tracker"],
        "rounds": rounds.len(),
        "freeze_ms": migration["freeze_ms"],
        "downtime_ms": verdict.gap_us as f64 / 1e3,
        "total_ms": migration["total_ms"],
        "memory_bytes": migration["memory_bytes"],
        "wire_bytes": migration["wire_bytes"],
        "restored": restored,
        "verified": restored && complaints.is_empty(),
        "complaints": complaints,
        "log_lines": verdict.lines,
        "log_lines_after": verdict.lines_after,
        "round_reports": rounds,
    })
}

fn print_for_people(report: &Value) {
    let mib = |field: &str| report[field].as_f64().unwrap_or(0.0) / f64::from(1 << 20);
    let number = |field: &str| report[field].as_f64().unwrap_or(0.0);
    println!(
        "moved {:.0} MiB in {} sets with tracker {}: frozen {:.1} ms, the program saw a gap of {:.1} ms, {:.0} MiB on the wire",
        mib("memory_bytes"),
        report["rounds"],
        report["tracker"].as_str().unwrap_or("?"),
        number("freeze_ms"),
        number("downtime_ms"),
        mib("wire_bytes"),
    );
    println!(
        "its log: {} lines, {} of them after the move, {}",
        report["log_lines"],
        report["log_lines_after"],
        if report["verified"] == Value::Bool(true) {
            "the count unbroken, every page right"
        } else {
            "NOT as it should be:"
        }
    );
    for complaint in report["complaints"].as_array().into_iter().flatten() {
        println!("  {}", complaint.as_str().unwrap_or("?"));
    }
}

fn say(who: &str, what: &str) {
    eprintln!("demo: {who}: {what}");
}

fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// The page server: the program beside this one.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(args: &Demo, dir: &Path) -> io::Result<Server> {
        let program = own_program()?.with_file_name("godwit-page-server");
        let mut child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--restore", "--criu"])
            .arg(&args.criu)
            .arg("--images-dir")
            .arg(dir.join("images"))
            .arg("--keys")
            .arg(dir.join("keys"))
            .arg("--state-dir")
            .arg(dir.join("state-destination"))
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::other(format!("cannot start {}: {error}", program.display())))?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        match line.trim().strip_prefix("listening on ") {
            Some(address) => Ok(Server { child, address: address.to_owned() }),
            None => Err(io::Error::other(format!("the page server did not start: {:?}", child.wait()?))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Kills the program if it still runs here.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_victim(args: &Demo, dir: &Path) -> io::Result<Victim> {
    let errors = File::create(dir.join("errors"))?;
    Command::new(own_program()?)
        .args(["demo-victim", "--memory-mib", &args.memory_mib.to_string()])
        .args(["--threads", &args.threads.to_string(), "--dir"])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map(Victim)
}

fn migrate(args: &Demo, dir: &Path, pid: u32, address: &str) -> io::Result<Value> {
    let tracker = clap::ValueEnum::to_possible_value(&args.tracker);
    let output = Command::new(own_program()?)
        .args([
            "migrate",
            "--json",
            "--pid",
            &pid.to_string(),
            "--to",
            address,
            "--name",
            "demo",
            "--tracker",
        ])
        .arg(tracker.as_ref().map_or("auto", |value| value.get_name()))
        .arg("--keys")
        .arg(dir.join("keys"))
        .arg("--state-dir")
        .arg(dir.join("state-source"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("the migration failed ({})", output.status)));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn judge(dir: &Path) -> io::Result<Verdict> {
    let output = Command::new(own_program()?).args(["demo-check", "--dir"]).arg(dir).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> io::Result<()> {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("waited too long for {what}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
