//! CRIU, by its own statistics.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use godwit_wire::image::stats::StatsEntry;
use godwit_wire::image::{ImageKind, ImageReader};

use super::{Sample, Side, Stage, metered};
use crate::measure::Ended;
use crate::workload::Victim;

/// Time that one run may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// Whether the pages go over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// As they are.
    No,
    /// By GnuTLS, both sides authenticated, with godwit's keys.
    Yes,
}

/// To CRIU's page server, which takes one dump and ends.
///
/// Both sides have `--tls-no-cn-verify`: CRIU's server looks for its own address in the client's certificate.
pub(super) fn to_server(stage: &Stage<'_>, victim: &Victim, tls: Tls) -> io::Result<Sample> {
    let port = free_port()?;
    let (images, pages) = (stage.make_dir("images")?, stage.make_dir("pages")?);
    let common = |command: &mut Command, dir: &Path, who: &str| {
        command.args(["--address", stage.link.address(), "--port", &port.to_string(), "-v1", "-D"]).arg(dir);
        if tls == Tls::Yes {
            let key = |name: String| stage.keys.join(name);
            command.args(["--tls", "--tls-no-cn-verify", "--tls-cacert"]).arg(key("ca.pem".to_owned()));
            command.arg("--tls-cert").arg(key(format!("{who}.pem")));
            command.arg("--tls-key").arg(key(format!("{who}.key")));
        }
    };
    let mut serve = stage.metered(Side::Destination, "criu-page-server", &stage.programs.criu);
    serve.arg("page-server");
    common(&mut serve, &pages, "server");
    let mut server = stage.start(serve, "criu-page-server")?;
    server.wait_ready(Duration::from_secs(20), |_| Ok(stage.link.listens(port)))?;

    let mut dump = stage.metered(Side::Source, "criu", &stage.programs.criu);
    dump.args(["dump", "-t", &victim.pid().to_string(), "--page-server"]);
    common(&mut dump, &images, "client");
    let sample = stage
        .counted(|| sample(victim, &stage.start(dump, "criu")?.wait(PATIENCE)?, &images))
        .map_err(|error| io::Error::other(format!("{error}; {}", server.failed("its server says"))))?;
    let ended = server.wait(Duration::from_secs(20))?;
    Ok(Sample { server: Some(metered(&ended)?.usage), ..sample })
}

/// Into a directory.
pub(super) fn local(stage: &Stage<'_>, victim: &Victim) -> io::Result<Sample> {
    let images = stage.make_dir("images")?;
    let mut dump = stage.metered(Side::Source, "criu", &stage.programs.criu);
    dump.args(["dump", "-v1", "-t", &victim.pid().to_string(), "-D"]).arg(&images);
    sample(victim, &stage.start(dump, "criu")?.wait(PATIENCE)?, &images)
}

/// CRIU takes no port 0. Nobody else is in the destination's namespace to take this one meanwhile.
pub(super) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn sample(victim: &Victim, ended: &Ended, images: &Path) -> io::Result<Sample> {
    let metered = metered(ended)?;
    Ok(Sample {
        wall_s: metered.wall_s,
        freeze_s: frozen_s(images)?,
        rounds: 1,
        memory_bytes: victim.memory_bytes(),
        source: metered.usage,
        ..Sample::default()
    })
}

/// How long the process stood still in the dump of these images, in seconds.
pub(super) fn frozen_s(images: &Path) -> io::Result<f64> {
    let name = ImageKind::StatsDump.file_name(0);
    let bytes = fs::read(images.join(&name))?;
    let stats: StatsEntry = ImageReader::new(ImageKind::StatsDump, &name, &bytes)
        .and_then(ImageReader::only)
        .map_err(io::Error::other)?;
    // The tree stands still from the first seize on, as godwit counts it.
    Ok(f64::from(stats.dump.map_or(0, |dump| dump.freezing_time + dump.frozen_time)) / 1e6)
}
