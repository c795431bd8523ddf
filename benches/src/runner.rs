//! Runs scenarios: the peers in turn, repeat by repeat, each on a fresh process.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::interrupt;
use crate::link::{ADDRESSES, Link};
use crate::measure::{self, Running};
use crate::peer::{Peer, Programs, Sample, Stage};
use crate::scenario::Scenario;

/// How often, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Measured repeats.
    pub repeats: usize,
    /// Whether an unmeasured one goes before.
    pub warm_up: bool,
    /// Directory that holds images, in a temporary directory which is removed.
    pub images: PathBuf,
    /// Whether it lies on a disk: what is dirty is then written back before each run.
    pub on_disk: bool,
}

/// The samples of a scenario, a peer a row, a repeat a column.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was measured.
    pub scenario: Scenario,
    /// Samples of each peer, in order of the repeats.
    pub samples: Vec<(Peer, Vec<Sample>)>,
    /// Why it was given up, if it was.
    pub failure: Option<String>,
}

/// What all scenarios share.
pub struct Runner {
    programs: Programs,
    settings: Settings,
    dir: tempfile::TempDir,
    keys: PathBuf,
}

impl Runner {
    /// Makes keys, in a temporary directory for everything.
    ///
    /// # Errors
    /// When the directory cannot be made, or the keys.
    pub fn new(programs: Programs, settings: Settings) -> io::Result<Runner> {
        let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir_in(&settings.images)?;
        let keys = dir.path().join("keys");
        let mut make = std::process::Command::new(&programs.godwit);
        make.args(["keys", "init"]).arg(&keys);
        for address in ADDRESSES {
            make.args(["--san", address]);
        }
        Running::start(make, "keys", dir.path())?.wait(Duration::from_secs(20))?;
        Ok(Runner { programs, settings, dir, keys })
    }

    /// Runs one scenario. A failure ends it and is noted; only a signal ends the suite.
    ///
    /// # Errors
    /// When a signal asked for the end.
    pub fn run(&self, scenario: &Scenario, say: &mut dyn FnMut(&str)) -> io::Result<Outcome> {
        let samples = scenario.peers.iter().map(|peer| (*peer, Vec::new())).collect();
        let mut outcome = Outcome { scenario: scenario.clone(), samples, failure: None };
        if let Err(error) = self.repeats(&mut outcome, say) {
            interrupt::check()?;
            say(&format!("{}: given up: {error}", scenario.name()));
            outcome.failure = Some(error.to_string());
        }
        Ok(outcome)
    }

    fn repeats(&self, outcome: &mut Outcome, say: &mut dyn FnMut(&str)) -> io::Result<()> {
        let scenario = outcome.scenario.clone();
        let place = tempfile::tempdir_in(self.dir.path())?;
        let link = scenario.link.open(place.path())?;
        let (first, last) = match scenario.once {
            true => (1, 1),
            false => (usize::from(!self.settings.warm_up), self.settings.repeats),
        };
        for repeat in first..=last {
            for (peer, samples) in &mut outcome.samples {
                interrupt::check()?;
                let sample = self.once(&scenario, *peer, &link, place.path(), repeat == first)?;
                let which = if repeat == 0 { "warm-up".to_owned() } else { format!("{repeat}/{last}") };
                say(&format!(
                    "{} {which} {}: {:.3} s, frozen {:.3} s",
                    scenario.name(),
                    peer.name(),
                    sample.wall_s,
                    sample.freeze_s
                ));
                if repeat > 0 {
                    samples.push(sample);
                }
            }
        }
        Ok(())
    }

    /// `check`: the images are read back afterwards, as is done once a scenario.
    fn once(
        &self,
        scenario: &Scenario,
        peer: Peer,
        link: &Link,
        place: &Path,
        check: bool,
    ) -> io::Result<Sample> {
        let dir = tempfile::tempdir_in(place)?;
        let victim = scenario.workload.start(scenario.memory_mib, link, dir.path())?;
        if self.settings.on_disk {
            nix::unistd::sync();
        }
        let stage = Stage { programs: &self.programs, link, keys: &self.keys, dir: dir.path(), check };
        measure::back_memory(victim.memory_bytes());
        peer.run(&stage, &victim).map_err(|error| io::Error::other(format!("{}: {error}", peer.name())))
    }
}
