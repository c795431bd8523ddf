//! godwit, by its own reports.

use std::io;
use std::path::Path;
use std::process;
use std::time::Duration;

use serde_json::Value;

use super::{Sample, Side, Stage, metered};
use crate::measure::{Ended, Usage, usage_of};
use crate::workload::Victim;

/// Name of the session's directory.
const SESSION: &str = "bench";

/// Time that one run may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Which command moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// One frozen dump.
    Dump,
    /// Rounds first, as many as shorten the freeze.
    Migrate,
    /// So many rounds first.
    Rounds(u32),
}

/// To a page server of its own, whose start is not measured: it serves many.
pub(super) fn to_server(stage: &Stage<'_>, victim: &Victim, command: Command) -> io::Result<Sample> {
    let images = stage.make_dir("images")?;
    let mut serve = stage.link.at_destination(&stage.programs.page_server);
    serve.args(["serve", "--listen", &format!("{}:0", stage.link.address()), "--images-dir"]).arg(&images);
    serve.arg("--keys").arg(stage.keys).arg("--state-dir").arg(stage.make_dir("destination-state")?);
    let mut server = stage.start(serve, "page-server")?;
    server.wait_ready(Duration::from_secs(20), |server| Ok(listening(&server.stdout()).is_some()))?;
    let address = listening(&server.stdout()).unwrap_or_default();

    let mut dump = stage.metered(Side::Source, "godwit", &stage.programs.godwit);
    match command {
        Command::Dump => dump.arg("dump"),
        Command::Migrate => dump.args(["migrate", "--no-restore"]),
        Command::Rounds(count) => dump.args(["migrate", "--no-restore", "--rounds", &count.to_string()]),
    };
    dump.args(["--json", "--pid", &victim.pid().to_string(), "--to", &address, "--keys"]).arg(stage.keys);
    dump.args(["--name", SESSION, "--state-dir"]).arg(stage.make_dir("source-state")?);
    let before = usage_of(server.pid())?;
    let sample = stage.counted(|| sample(victim, &stage.start(dump, "godwit")?.wait(PATIENCE)?))?;
    let after = usage_of(server.pid())?;
    let usage = Usage { cpu_s: after.cpu_s - before.cpu_s, rss_bytes: after.rss_bytes };
    check(stage, &images.join(SESSION).join("final"))?;
    Ok(Sample { server: Some(usage), ..sample })
}

/// Into a directory.
pub(super) fn local(stage: &Stage<'_>, victim: &Victim) -> io::Result<Sample> {
    let mut dump = stage.metered(Side::Source, "godwit", &stage.programs.godwit);
    dump.args(["dump", "--json", "--pid", &victim.pid().to_string(), "--images-dir"]);
    dump.arg(stage.dir.join("images")).arg("--state-dir").arg(stage.make_dir("source-state")?);
    let sample = sample(victim, &stage.start(dump, "godwit")?.wait(PATIENCE)?)?;
    check(stage, &stage.dir.join("images"))?;
    Ok(sample)
}

/// Reads images back, with every hash: what was measured is a whole dump. CRIU's have nothing to be checked by.
fn check(stage: &Stage<'_>, images: &Path) -> io::Result<()> {
    if stage.check {
        let mut inspect = process::Command::new(&stage.programs.godwit);
        inspect.arg("inspect").arg(images);
        stage.start(inspect, "inspect")?.wait(PATIENCE)?;
    }
    Ok(())
}

/// The address in the server's first line.
fn listening(stdout: &str) -> Option<String> {
    let (_, address) = stdout.split_once("listening on ")?;
    address.contains('\n').then(|| address.split_whitespace().next().map(str::to_owned))?
}

fn sample(victim: &Victim, ended: &Ended) -> io::Result<Sample> {
    let metered = metered(ended)?;
    let report: Value = serde_json::from_str(&ended.stdout)?;
    let rounds = report["rounds"].as_array().map_or(&[][..], Vec::as_slice);
    let fsync_us: f64 = rounds.iter().filter_map(|round| round["fsync_us"].as_f64()).sum();
    let freeze_ms = report["freeze_ms"].as_f64();
    Ok(Sample {
        wall_s: metered.wall_s,
        fsync_s: fsync_us / 1e6,
        freeze_s: freeze_ms.ok_or_else(|| io::Error::other("godwit reports no freeze_ms"))? / 1e3,
        rounds: u32::try_from(rounds.len()).unwrap_or(u32::MAX),
        memory_bytes: victim.memory_bytes(),
        source: metered.usage,
        ..Sample::default()
    })
}
