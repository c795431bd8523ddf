//! The command line of `godwit-page-server`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use godwit_wire::control::RestorePidns;
use godwit_wire::quic::{Identity, Tuning};

use crate::error::ServeError;
use crate::operate::{self, Verdict};
use crate::restore::RestoreSettings;
use crate::serve::{Options, default_sockets};

/// Receives process trees from godwit and writes CRIU image directories.
///
/// Exit codes: 0 after a drain that was asked for by SIGTERM or SIGINT, 1 on an error, 2 for wrong arguments.
#[derive(Debug, Parser)]
#[command(name = "godwit-page-server", version)]
pub struct Arguments {
    /// More log on stderr (twice: all of it); RUST_LOG overrides it.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve(Serve),
    /// Look at, or decide, the sessions of this host, when the source cannot be asked.
    Session(SessionArguments),
}

/// Options of `session`.
#[derive(Debug, Args)]
pub struct SessionArguments {
    /// Directory of the journals.
    #[arg(long, value_name = "DIR", global = true, default_value = "/var/lib/godwit/destination")]
    pub state_dir: PathBuf,
    /// The criu program, 4.1 or newer.
    #[arg(long, value_name = "PATH", env = "GODWIT_CRIU", default_value = "criu", global = true)]
    pub criu: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub verb: SessionVerb,
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionVerb {
    /// A line a session.
    List,
    /// A session's journal.
    Show {
        /// Its id, as `list` prints it.
        id: String,
    },
    /// Give this host's copy up: what was restored is killed. The source tree is the one that lives.
    Abort {
        /// Its id, as `list` prints it.
        id: String,
    },
    /// Let this host's copy run. The source tree must be dead: two would run otherwise.
    Release {
        /// Its id, as `list` prints it.
        id: String,
        /// The source's tree is dead, also where this host's journal does not show it (look there first: `godwit
        /// session resolve ID` kills it and decides both sides).
        #[arg(long)]
        force: bool,
    },
}

impl SessionArguments {
    /// Carries it out.
    ///
    /// # Errors
    /// [`ServeError`] when the journal cannot be used or forbids it.
    pub fn run(self) -> Result<(), ServeError> {
        let settings = || {
            RestoreSettings::of_this_program(self.criu.clone(), RestorePidns::Auto)
                .map_err(|source| ServeError::Io { what: "find this program", source })
        };
        match &self.verb {
            SessionVerb::List => operate::list(&self.state_dir),
            SessionVerb::Show { id } => operate::show(&self.state_dir, id),
            SessionVerb::Abort { id } => operate::resolve(&self.state_dir, id, settings()?, Verdict::Abort),
            SessionVerb::Release { id, force } => {
                let verdict = if *force { Verdict::ReleaseForced } else { Verdict::Release };
                operate::resolve(&self.state_dir, id, settings()?, verdict)
            }
        }
    }
}

/// In which pid namespace trees are restored, unless the session says so.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Pidns {
    /// A new one when a pid is taken here.
    Auto,
    /// Always a new one.
    New,
    /// This host's.
    Host,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// UDP address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7430")]
    pub listen: SocketAddr,
    /// Directory of the sessions' image directories.
    #[arg(long, value_name = "DIR")]
    pub images_dir: PathBuf,
    /// Directory with ca.pem, server.pem and server.key (`godwit keys init DIR`).
    #[arg(long, value_name = "DIR", required_unless_present_all = ["cert", "key", "client_ca"])]
    pub keys: Option<PathBuf>,
    /// Certificate of this server, PEM (instead of the one in --keys).
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// CA whose client certificates may write here, PEM.
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
    /// Let sessions restore what they wrote (needs root and criu).
    #[arg(long)]
    pub restore: bool,
    /// In which pid namespace to restore, unless the session says so.
    #[arg(long, value_enum, default_value_t = Pidns::Auto)]
    pub restore_pidns: Pidns,
    /// The criu program, 4.1 or newer. It looks for plugins where the variable CRIU_LIBS_DIR says.
    #[arg(long, value_name = "PATH", env = "GODWIT_CRIU", default_value = "criu")]
    pub criu: PathBuf,
    /// Program to run at every point of a restore that CRIU names (CRTOOLS_SCRIPT_ACTION: pre-restore, setup-namespaces,
    /// post-setup-namespaces, post-restore, pre-resume, post-resume, ...); may be repeated. One that fails up to
    /// post-restore undoes the restore, and the process runs on at its source.
    #[arg(long = "action-script", value_name = "FILE", requires = "restore")]
    pub action_scripts: Vec<PathBuf>,
    /// Sessions at the same time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub sessions_max: usize,
    /// Page lanes of one session.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub lanes_max: u32,
    /// Sockets on the port, each with a thread that decrypts what its clients send, 1 to 64; by default half of the
    /// cores, but no more than 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub sockets: Option<u8>,
    /// Directory of the journals; must outlive the images.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How long sessions may go on after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_timeout: u64,
    /// After how long without a word a client is lost.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=600))]
    pub idle_timeout: u64,
}

impl Serve {
    /// How long sessions may go on after SIGTERM.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout)
    }

    /// The options as the server takes them.
    ///
    /// # Errors
    /// [`ServeError::Keys`] when neither a directory nor three files are named.
    pub fn options(self) -> Result<Options, ServeError> {
        let mut identity = self.keys.as_deref().map(Identity::server);
        if let (Some(cert), Some(key), Some(ca)) = (&self.cert, &self.key, &self.client_ca) {
            identity = Some(Identity { ca: ca.clone(), cert: cert.clone(), key: key.clone() });
        } else if let Some(identity) = &mut identity {
            identity.cert = self.cert.unwrap_or_else(|| identity.cert.clone());
            identity.key = self.key.unwrap_or_else(|| identity.key.clone());
            identity.ca = self.client_ca.unwrap_or_else(|| identity.ca.clone());
        }
        let idle_timeout = Duration::from_secs(self.idle_timeout);
        let keep_alive = (idle_timeout / 5).min(Tuning::default().keep_alive);
        let pidns = match self.restore_pidns {
            Pidns::Auto => RestorePidns::Auto,
            Pidns::New => RestorePidns::New,
            Pidns::Host => RestorePidns::Host,
        };
        let action_scripts = self.action_scripts;
        let settings = || {
            let settings = RestoreSettings::of_this_program(self.criu, pidns)?;
            Ok(RestoreSettings { action_scripts, ..settings })
        };
        let restore = self.restore.then(settings).transpose();
        let restore =
            restore.map_err(|source: std::io::Error| ServeError::Io { what: "find this program", source })?;
        Ok(Options {
            listen: self.listen,
            images_dir: self.images_dir,
            identity: identity.ok_or(ServeError::Keys)?,
            state_dir: self.state_dir.unwrap_or_else(|| godwit_wire::journal::default_dir("destination")),
            restore,
            sessions_max: self.sessions_max,
            lanes_max: self.lanes_max.max(1),
            sockets: self.sockets.map_or_else(default_sockets, usize::from),
            tuning: Tuning { idle_timeout, keep_alive, ..Tuning::default() },
        })
    }
}
