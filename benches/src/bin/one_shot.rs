//! One frozen dump into a local directory, by `godwit dump` and by `criu dump`, in turn on the same kind of process.
//!
//! Both write into the same file system, and both end when their files are in the page cache, but for godwit's fsync,
//! which is reported apart: CRIU does none.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use godwit_benches::summary::Series;
use godwit_benches::workload::Content;
use godwit_wire::image::stats::StatsEntry;
use godwit_wire::image::{ImageKind, ImageReader};
use serde_json::{Value, json};

/// Measures one-shot dumps of godwit and CRIU side by side.
#[derive(Parser)]
struct Args {
    /// What fills the memory.
    #[arg(long, value_enum, default_value = "random")]
    content: Content,
    /// Memory of the process in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: usize,
    /// Repeats; an unmeasured one goes before.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// The criu to compare with.
    #[arg(long, env = "GODWIT_CRIU", default_value = "criu")]
    criu: PathBuf,
    /// Where images go; a temporary directory in it is removed at the end.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What one dump took, in milliseconds.
struct Taken {
    wall: f64,
    frozen: f64,
    fsync: f64,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let mut ours = [Series::default(), Series::default(), Series::default()];
    let mut theirs = [Series::default(), Series::default()];
    for repeat in 0..=args.repeats {
        let (godwit, criu) = (godwit(&args)?, criu(&args)?);
        if repeat > 0 {
            ours[0].push(godwit.wall - godwit.fsync);
            ours[1].push(godwit.frozen - godwit.fsync);
            ours[2].push(godwit.fsync);
            theirs[0].push(criu.wall);
            theirs[1].push(criu.frozen);
        }
    }
    let report = json!({
        "content": format!("{:?}", args.content),
        "memory_mib": args.memory_mib,
        "repeats": args.repeats,
        "godwit_wall_ms": value(&ours[0]),
        "criu_wall_ms": value(&theirs[0]),
        "wall_ratio": value(&ours[0].over(&theirs[0])),
        "godwit_frozen_ms": value(&ours[1]),
        "criu_frozen_ms": value(&theirs[1]),
        "frozen_ratio": value(&ours[1].over(&theirs[1])),
        "godwit_fsync_ms": value(&ours[2]),
    });
    if args.json {
        println!("{report}");
        return Ok(());
    }
    println!("one-shot dump, {} MiB {:?}, {} repeats", args.memory_mib, args.content, args.repeats);
    for (name, value) in report.as_object().into_iter().flatten().filter(|(_, value)| value.is_object()) {
        println!(
            "{name:>18}: {:>9.2} ({:.2} to {:.2})",
            number(value, "median"),
            number(value, "min"),
            number(value, "max")
        );
    }
    Ok(())
}

fn value(series: &Series) -> Value {
    let (min, max) = series.spread();
    json!({"median": series.median(), "min": min, "max": max})
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or(f64::NAN)
}

/// The process to dump. Killed if it still runs at the end.
struct Workload(Child);

impl Workload {
    fn start(args: &Args, dir: &Path) -> io::Result<Workload> {
        let ready = dir.join("ready");
        let content = clap::ValueEnum::to_possible_value(&args.content);
        let child = Command::new(beside("workload")?)
            .args(["--content", content.as_ref().map_or("random", |value| value.get_name())])
            .args(["--memory-mib", &args.memory_mib.to_string(), "--ready"])
            .arg(&ready)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("errors"))?)
            .spawn()?;
        let workload = Workload(child);
        let begun = Instant::now();
        while !ready.exists() {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(io::Error::other("the workload does not become ready"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(workload)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn beside(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

fn godwit(args: &Args) -> io::Result<Taken> {
    let dir = tempfile::tempdir_in(&args.dir)?;
    let workload = Workload::start(args, dir.path())?;
    let begun = Instant::now();
    let output = Command::new(beside("godwit")?)
        .args(["dump", "--json", "--pid", &workload.pid(), "--images-dir"])
        .arg(dir.path().join("images"))
        .output()?;
    let wall = begun.elapsed().as_secs_f64() * 1e3;
    succeeded("godwit dump", output.status.success(), &output.stderr)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let fsync = report["rounds"][0]["fsync_us"].as_f64().unwrap_or(0.0) / 1e3;
    Ok(Taken { wall, frozen: number(&report, "freeze_ms"), fsync })
}

fn criu(args: &Args) -> io::Result<Taken> {
    let dir = tempfile::tempdir_in(&args.dir)?;
    let workload = Workload::start(args, dir.path())?;
    let images = dir.path().join("images");
    fs::create_dir(&images)?;
    let begun = Instant::now();
    let output = Command::new(&args.criu)
        .args(["dump", "-v0", "-t", &workload.pid(), "-D"])
        .arg(&images)
        .output()
        .map_err(|error| io::Error::other(format!("cannot run {}: {error}", args.criu.display())))?;
    let wall = begun.elapsed().as_secs_f64() * 1e3;
    succeeded("criu dump", output.status.success(), &output.stderr)?;
    let name = ImageKind::StatsDump.file_name(0);
    let bytes = fs::read(images.join(&name))?;
    let stats: StatsEntry = ImageReader::new(ImageKind::StatsDump, &name, &bytes)
        .and_then(ImageReader::only)
        .map_err(io::Error::other)?;
    let frozen = stats.dump.map_or(0, |dump| dump.frozen_time);
    Ok(Taken { wall, frozen: f64::from(frozen) / 1e3, fsync: 0.0 })
}

fn succeeded(what: &str, success: bool, stderr: &[u8]) -> io::Result<()> {
    if success {
        return Ok(());
    }
    Err(io::Error::other(format!("{what} failed: {}", String::from_utf8_lossy(stderr).trim())))
}
