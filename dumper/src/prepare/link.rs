//! Where the images go: a local directory or a session at a page server, behind one seam.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use godwit_page_server::store::local::{LocalDir, LocalOptions};
use godwit_page_server::store::sink::Sink;
use godwit_wire::error::Code;
use godwit_wire::plan::PAGE_SIZE;
use godwit_wire::quic::{Bucket, Identity, Tuning};
use godwit_wire::session::Phase;

use crate::collect::tree::{Task, Tree};
use crate::error::DumpError;
use crate::link::limit::Watch;
use crate::link::{Limits, Link, LinkCounters, LinkError, LinkOptions, RemoteSink, SessionWish};
use crate::options::{CriuVersion, Destination, Options, RestorePidns};
use crate::prepare::cpu_match::Processor;
use crate::prepare::root::Root;
use crate::procfs::stat;
use crate::refusal::{Findings, Subject};

/// Names that are tried for a session without a name of the user's: `PID-STARTTIME`, then with `-2` and so on.
const ATTEMPTS_MAX: u32 = 100;

/// An opened destination.
pub enum Target {
    /// A local directory.
    Local {
        /// The store of one round.
        store: LocalDir,
        /// The directory, as the user named it.
        name: String,
    },
    /// A session at a page server.
    Remote(Box<RemoteSink>),
}

impl Target {
    /// Opens it. Nothing of the process is touched.
    ///
    /// # Errors
    /// When the directory holds images already; when the server cannot be reached, or refuses: an unknown
    /// certificate, another protocol, no restore allowed, a session of that name.
    pub fn open(options: &Options, root: &Root) -> Result<Target, DumpError> {
        match &options.destination {
            Destination::Local { images_dir, prev_images_dir } => {
                let local =
                    LocalOptions { prev_images_dir: prev_images_dir.clone(), ..LocalOptions::default() };
                let store = LocalDir::create(images_dir, local)?;
                Ok(Target::Local { store, name: images_dir.display().to_string() })
            }
            Destination::Remote { address, keys, name } => {
                let mut wish = SessionWish {
                    name: name.clone().unwrap_or_else(|| root.default_session()),
                    pid: root.pid.as_raw() as u32,
                    start_time: root.start_time,
                    boot_id: root.boot_id.clone(),
                    want_restore: options.restore,
                    restore_pidns: pidns(options.restore_pidns).into(),
                    memory_estimate_bytes: memory_bytes(root)?,
                    restore_options: Vec::new(),
                    go_on: false,
                };
                let default = wish.name.clone();
                for attempt in 2..=ATTEMPTS_MAX {
                    let link = connect(address, keys, options)?;
                    check_processor(options, root, &link)?;
                    match link.open_session(wish.clone()) {
                        // An earlier attempt on this process left rounds there, or is just ending.
                        Err(error) if name.is_none() && error.code() == Some(Code::NameTaken) => {
                            wish.name = format!("{default}-{attempt}");
                        }
                        opened => return Ok(Target::Remote(Box::new(opened?))),
                    }
                }
                Ok(Target::Remote(Box::new(connect(address, keys, options)?.open_session(wish)?)))
            }
        }
    }

    /// Where rounds and images go.
    pub fn sink(&self) -> &dyn Sink {
        match self {
            Target::Local { store, .. } => store,
            Target::Remote(sink) => &**sink,
        }
    }

    /// The session at a page server, if it is one.
    pub fn remote(&self) -> Option<&RemoteSink> {
        match self {
            Target::Local { .. } => None,
            Target::Remote(sink) => Some(sink),
        }
    }

    /// The criu that the page server restores with, if it has one.
    pub fn criu_version(&self) -> Option<CriuVersion> {
        self.remote().and_then(|sink| sink.link().server().criu_version.parse().ok())
    }

    /// The session's name, or the directory.
    pub fn name(&self) -> &str {
        match self {
            Target::Local { name, .. } => name,
            Target::Remote(sink) => sink.name(),
        }
    }

    /// What the manifest calls the session: a plain name.
    pub fn session(&self, root: &Root) -> String {
        match self {
            Target::Local { .. } => root.default_session(),
            Target::Remote(sink) => sink.name().to_owned(),
        }
    }

    /// The first round number that is free.
    pub fn first_round(&self) -> u32 {
        match self {
            Target::Local { .. } => 1,
            Target::Remote(sink) => sink.opened().sealed_rounds.iter().max().map_or(1, |last| last + 1),
        }
    }

    /// Whether the destination runs on this very kernel, so that locks and pids are shared.
    pub fn is_same_machine(&self) -> bool {
        match self {
            Target::Local { .. } => true,
            Target::Remote(sink) => sink.opened().same_boot,
        }
    }

    /// What went over the link so far; nothing for a local directory.
    pub fn counters(&self) -> LinkCounters {
        self.remote().map(RemoteSink::counters).unwrap_or_default()
    }

    /// The restore by hand, with the options that the images need.
    pub fn restore_command(&self, options: &[String]) -> Option<String> {
        let (dir, place) = match self {
            Target::Local { name, .. } => (name.clone(), ""),
            Target::Remote(sink) => (format!("{}/final", sink.opened().images_dir), " (at the page server)"),
        };
        let options: String = options.iter().map(|option| format!(" {option}")).collect();
        Some(format!("criu restore -D {dir}{options} -d{place}"))
    }

    /// Passes an outcome on. After a failure that left the process running here, the server is told that a set it has
    /// sealed is no copy of it any more: it would keep that for a hand-over which never comes. After any failure it is
    /// told that nothing more comes.
    ///
    /// # Errors
    /// The outcome's own.
    pub fn given_up_unless<T>(&self, outcome: Result<T, DumpError>) -> Result<T, DumpError> {
        let is_ours = |error: &DumpError| {
            !matches!(error, DumpError::Undecided { .. } | DumpError::LostAfterCommit { .. })
        };
        if let (Target::Remote(sink), Err(error)) = (self, &outcome)
            && is_ours(error)
            && sink.link().phase() == Phase::Prepared
            && let Err(error) = sink.link().abort("the dump was given up")
        {
            tracing::info!(%error, "the page server does not know that the dump was given up");
        }
        if let (Target::Remote(sink), Err(_)) = (self, &outcome) {
            sink.link().hang_up();
        }
        outcome
    }

    /// Ends a session that asks for nothing more.
    ///
    /// # Errors
    /// When the server does not confirm; what it acknowledged stays.
    pub fn close(&self) -> Result<(), DumpError> {
        match self {
            Target::Local { .. } => Ok(()),
            Target::Remote(sink) => Ok(sink.link().close_session()?),
        }
    }
}

/// Where it is to be restored, the processor must do for it. Where images are only kept it is said: the restore may be
/// elsewhere.
fn check_processor(options: &Options, root: &Root, link: &Link) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    Processor::probe(options.cpu_cap).check(&Subject::Process(root.pid), &link.server(), &mut findings);
    if options.restore {
        findings.verdict()?;
        return Ok(());
    }
    findings.refusals.iter().for_each(|found| tracing::warn!("it could not be restored there: {found}"));
    Ok(())
}

fn connect(address: &str, keys: &Path, options: &Options) -> Result<Link, LinkError> {
    let (compress, delta, senders) = (options.compress, options.delta, options.readers);
    let connections = options.connections;
    let bucket = Arc::new(Bucket::new(options.bandwidth_limit.0, Instant::now()));
    let timeouts = &options.timeouts;
    let tuning = Tuning {
        bucket: Arc::clone(&bucket),
        connect_limit: timeouts.step,
        stall_limit: timeouts.stall,
        ..Tuning::default()
    };
    let limits = Limits {
        request: timeouts.stall,
        seal: timeouts.seal,
        restore: timeouts.restore,
        ..Limits::default()
    };
    let watch = match Watch::start(&options.state_dir, options.pid, bucket) {
        Ok(watch) => Some(Arc::new(watch)),
        Err(error) => {
            let dir = options.state_dir.display();
            tracing::info!(%error, %dir, "the bandwidth limit cannot be changed while this runs");
            None
        }
    };
    let options = LinkOptions { tuning, connections, compress, delta, senders, watch, limits };
    Link::connect(address, &Identity::client(keys), options)
}

/// Memory of all processes of the tree, pages that they share counted in each.
fn memory_bytes(root: &Root) -> Result<u64, DumpError> {
    let of = |task: &Task| stat::read(task.pid).map_or(0, |stat| stat.rss_pages);
    Ok(Tree::walk(root.pid)?.tasks.iter().map(of).sum::<u64>() * PAGE_SIZE)
}

fn pidns(choice: RestorePidns) -> crate::link::RestorePidns {
    match choice {
        RestorePidns::Auto => crate::link::RestorePidns::Auto,
        RestorePidns::New => crate::link::RestorePidns::New,
        RestorePidns::Host => crate::link::RestorePidns::Host,
    }
}
