//! CRIU's pre-dump loop (criu.org/Iterative_migration): `pre-dump --track-mem` while the process runs, each on top of
//! the one before, then one frozen dump. Needs a kernel with soft-dirty tracking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::criu::{PATIENCE, free_port, frozen_s};
use super::{FIXED_ROUNDS, Sample, Side, Stage, metered};
use crate::measure::Usage;
use crate::workload::Victim;

/// Where the pages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// To a page server of its own each round.
    Server,
    /// Into directories.
    Here,
}

/// All rounds and the last dump: wall time, CPU time and bytes are sums, the freeze is that of the last dump.
pub(super) fn rounds(stage: &Stage<'_>, victim: &Victim, at: Where) -> io::Result<Sample> {
    let (images, pages) = (stage.make_dir("images")?, stage.make_dir("pages")?);
    let loop_of = || {
        let mut sum = Sample { memory_bytes: victim.memory_bytes(), ..Sample::default() };
        for round in 1..=FIXED_ROUNDS + 1 {
            one(stage, victim, at, round, [&images, &pages], &mut sum)?;
        }
        Ok(sum)
    };
    match at {
        Where::Server => stage.counted(loop_of),
        Where::Here => loop_of(),
    }
}

fn one(
    stage: &Stage<'_>,
    victim: &Victim,
    at: Where,
    round: u32,
    [images, pages]: [&PathBuf; 2],
    sum: &mut Sample,
) -> io::Result<()> {
    let is_last = round > FIXED_ROUNDS;
    let mut dump = stage.metered(Side::Source, &format!("criu-{round}"), &stage.programs.criu);
    dump.arg(if is_last { "dump" } else { "pre-dump" });
    dump.args(["-v1", "-t", &victim.pid().to_string(), "--track-mem"]);
    let own = directory(&mut dump, images, round)?;
    let server = if at == Where::Server {
        let port = free_port()?;
        let name = format!("criu-page-server-{round}");
        let mut serve = stage.metered(Side::Destination, &name, &stage.programs.criu);
        let address = ["--address", stage.link.address(), "--port", &port.to_string()].map(str::to_owned);
        serve.args(["page-server", "-v1"]).args(&address);
        directory(&mut serve, pages, round)?;
        dump.arg("--page-server").args(&address);
        let mut server = stage.start(serve, &name)?;
        server.wait_ready(Duration::from_secs(20), |_| Ok(stage.link.listens(port)))?;
        Some(server)
    } else {
        None
    };
    let dumped = metered(&stage.start(dump, &format!("criu-{round}"))?.wait(PATIENCE)?)?;
    if let Some(server) = server {
        let served = metered(&server.wait(Duration::from_secs(60))?)?;
        sum.server = Some(with(sum.server.unwrap_or_default(), served.usage));
    }
    sum.wall_s += dumped.wall_s;
    sum.source = with(sum.source, dumped.usage);
    sum.rounds = round;
    if is_last {
        sum.freeze_s = frozen_s(&own)?;
    }
    Ok(())
}

/// The round's own directory, and the one that it builds on.
fn directory(command: &mut Command, parent: &Path, round: u32) -> io::Result<PathBuf> {
    let own = parent.join(round.to_string());
    fs::create_dir(&own)?;
    command.arg("-D").arg(&own);
    if round > 1 {
        command.args(["--prev-images-dir", &format!("../{}", round - 1)]);
    }
    Ok(own)
}

fn with(one: Usage, other: Usage) -> Usage {
    Usage { cpu_s: one.cpu_s + other.cpu_s, rss_bytes: one.rss_bytes.max(other.rss_bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_builds_on_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let words = |round| {
            let mut command = Command::new("criu");
            directory(&mut command, dir.path(), round).unwrap();
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words(1).len(), 2);
        assert_eq!(words(2)[2..], ["--prev-images-dir", "../1"]);
        assert!(dir.path().join("2").is_dir());
    }
}
