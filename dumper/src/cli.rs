//! The command line: what can be asked, and in which words.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nix::unistd::Pid;

use crate::link::limit::Rate;
use crate::link::{Compress, Delta};
use crate::options::{
    Afterwards, CriuVersion, Destination, Options, RestorePidns, RoundLimits, Stage, Timeouts,
};
use crate::predump::tracker::Choice;
use crate::prepare::cpu_match::CpuCap;
use crate::task::files::ghost::LIMIT_BYTES_MAX;
use crate::task::files::provided::Provided;

/// Where journals are kept unless `--state-dir` says otherwise: it must outlive the program.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/godwit/source";

/// Live-migrates running Linux processes.
///
/// Exit status: 0 done; 1 failed, or that of a failed post-dump script, the process runs on; 2 wrong usage; 3 refused by name, before anything is
/// touched where it can be known then, and the process runs on; 4 the hand-over is undecided, the process lies still until `godwit session resolve`; 129, 130, 143 ended
/// by SIGHUP, SIGINT, SIGTERM, the process runs on.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, arg_required_else_help = true)]
pub struct Cli {
    /// More log lines on standard error: -v info, -vv debug, -vvv trace.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move a running process to a page server, which restores it.
    Migrate(Migrate),
    /// Freeze a process once and write its images, to a directory or a page server.
    Dump(Dump),
    /// Copy a running process's memory as one round; it keeps running.
    PreDump(PreDump),
    /// Change the bandwidth limit of a running migrate, dump or pre-dump.
    Limit(Limit),
    /// Say what of a process cannot be dumped or would be lost, and the way out; or what this machine can do.
    Doctor(Doctor),
    /// Decode and check an image directory; exit status 0 only if it is a complete set.
    Inspect(Inspect),
    /// Migrate a busy program over loopback, restore it and check that it went on.
    Demo(Demo),
    /// The program that the demonstration moves.
    #[command(hide = true)]
    DemoVictim(crate::demo::victim::VictimArgs),
    /// The judge of the demonstration.
    #[command(hide = true)]
    DemoCheck(crate::demo::check::CheckArgs),
    /// Make the certificates that both sides need.
    #[command(subcommand)]
    Keys(Keys),
    /// List, show and settle hand-overs that were cut off.
    #[command(subcommand)]
    Session(Session),
}

/// Which process, and how it is read.
#[derive(Debug, Args)]
pub struct Source {
    /// Root of the tree to dump: the leader of a session of its own.
    #[arg(long, short = 't', value_parser = parse_pid)]
    pub pid: Pid,
    /// Dirty tracker; `auto` takes the first that passes its self-test.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub tracker: Choice,
    /// Refuse what a restore would drop in silence.
    #[arg(long)]
    pub strict: bool,
    /// Allow a root whose session, and process group, lie outside of the tree: it is restored into those of `criu`.
    #[arg(long, short = 'j')]
    pub shell_job: bool,
    /// Time for each of: connecting, one action script, and the freeze until everything is collected, e.g. 10s. Reading and
    /// sending pages takes as long as it takes, as long as anything moves: see --stall-timeout. Whatever expires is an error
    /// that names the phase; it undoes all, and the process runs on.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    pub timeout: Duration,
    /// Cgroup v2 to freeze (cgroup.freeze) while the processes are stopped one by one, e.g. /sys/fs/cgroup/NAME, so that none
    /// forks meanwhile; it is thawed as soon as all are. One that the tree has to itself is found and taken without this.
    #[arg(long, value_name = "DIR")]
    pub freeze_cgroup: Option<PathBuf>,
    /// Time that a page server which lives may take nothing of what is sent, in rounds and under freeze, or leave a small
    /// request unanswered.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub stall_timeout: Duration,
    /// Time that a page server may take to verify a round or the final set and to make it durable.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "600s")]
    pub seal_timeout: Duration,
    /// Program to run at the named points of the dump (CRTOOLS_SCRIPT_ACTION: pre-dump, network-lock, network-unlock,
    /// post-dump); may be repeated. A failure undoes all; that of a post-dump script is godwit's exit status too.
    #[arg(long = "action-script", value_name = "FILE")]
    pub action_scripts: Vec<PathBuf>,
    /// Directory of plugins for CRIU (*.so): all of them are loaded.
    #[arg(long, short = 'L', value_name = "DIR", env = "CRIU_LIBS_DIR")]
    pub libdir: Option<PathBuf>,
    /// What of the processor must be the same where the process is restored, as CRIU's option: fpu (registers and their
    /// sizes), ins (instructions), cpu (everything), all or none; ^ before a word takes it away. fpu and ins are there
    /// unless they are taken away. It is written to cpuinfo.img, but for none, and compared with a page server's processor
    /// before the process is touched.
    #[arg(long, value_name = "LIST", default_value = "fpu,ins", num_args = 0..=1, default_missing_value = "all")]
    pub cpu_cap: CpuCap,
    /// How much of a deleted file may go into the images: bytes, or with K, M; at most 200M.
    #[arg(long, value_name = "SIZE", value_parser = parse_ghost_limit, default_value = "1M")]
    pub ghost_limit: u64,
    /// Allow a file whose path is gone while it has another link: it gets one more beside its former path, by which a
    /// restore finds it, and which that takes away.
    #[arg(long)]
    pub link_remap: bool,
    /// What is left out, since whoever restores gives `criu restore` one in its place (`--inherit-fd fd[N]:NAME`), as CRIU's
    /// option: `file[MOUNT:INODE]`, the mnt_id and inode in hex, or `pipe:[INODE]`; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub external: Vec<Provided>,
    /// CRIU that will restore, e.g. 4.2; by default what the page server says, else any from 4.1 on.
    #[arg(long, value_name = "VERSION")]
    pub criu_version: Option<CriuVersion>,
    /// Threads that read pages.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub readers: u8,
    /// How pages are compressed on the way to a page server: auto (lz4 or zstd, as it pays on the link), never, lz4,
    /// zstd (level 3) or zstd:LEVEL, -7 to 19.
    #[arg(long, value_name = "HOW", default_value = "auto", allow_hyphen_values = true)]
    pub compress: Compress,
    /// Send pages that hardly changed as what they differ in from the round before, and unchanged ones by their hash;
    /// auto does so while the link is slow enough for compression.
    #[arg(long, value_enum, default_value_t = Delta::Auto)]
    pub delta: Delta,
    /// Connections that carry pages to a page server, each with a socket and a thread of its own, 1 to 16; as far as the
    /// server takes so many lanes (its --lanes-max).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub connections: u8,
    /// How fast the link to a page server may send, headers of UDP and IP counted: 800Mbit, 1.5Gbit, 100MB, 64MiB (per
    /// second) or none; `godwit limit` changes it while it runs.
    #[arg(long, value_name = "RATE", default_value = "none", hide_default_value = true)]
    pub bandwidth_limit: Rate,
    /// Take every listed page at the last freeze without the alive set (tests only).
    #[arg(long, hide = true)]
    pub no_alive_set: bool,
    /// Where the journals are kept.
    #[arg(long, env = "GODWIT_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A page server.
#[derive(Debug, Args)]
pub struct Server {
    /// Page server, HOST:PORT.
    #[arg(long)]
    pub to: String,
    /// Directory with ca.pem, client.pem and client.key (`godwit keys init`).
    #[arg(long)]
    pub keys: PathBuf,
    /// Name of the session's directory at the server; by default PID-STARTTIME.
    #[arg(long)]
    pub name: Option<String>,
}

/// A local directory or a page server.
#[derive(Debug, Args)]
pub struct Where {
    /// Local directory for the images, made if missing.
    #[arg(long, short = 'D', required_unless_present = "to", conflicts_with_all = ["to", "keys"])]
    pub images_dir: Option<PathBuf>,
    /// Directory of the round that this one builds on, relative to --images-dir.
    #[arg(long, requires = "images_dir")]
    pub prev_images_dir: Option<PathBuf>,
    /// Page server, HOST:PORT.
    #[arg(long, requires = "keys")]
    pub to: Option<String>,
    /// Directory with ca.pem, client.pem and client.key (`godwit keys init`).
    #[arg(long, requires = "to")]
    pub keys: Option<PathBuf>,
    /// Name of the session's directory at the server; by default PID-STARTTIME.
    #[arg(long, requires = "to")]
    pub name: Option<String>,
}

/// `godwit migrate`.
#[derive(Debug, Args)]
pub struct Migrate {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    server: Server,
    /// Most pre-dump rounds; 0 freezes at once.
    #[arg(long, default_value_t = 10)]
    max_rounds: u32,
    /// Exactly this many pre-dump rounds, whether they shorten the freeze or not.
    #[arg(long, conflicts_with_all = ["max_rounds", "downtime_target"])]
    rounds: Option<u32>,
    /// Rounds end once the freeze is predicted to be this short, e.g. 100ms.
    #[arg(long, value_parser = parse_duration, default_value = "100ms")]
    downtime_target: Duration,
    /// End once the sealed images lie at the server, without a restore.
    #[arg(long)]
    no_restore: bool,
    /// Let the source run on (only with --no-restore: two copies must never run).
    #[arg(long, requires = "no_restore")]
    leave_running: bool,
    /// Leave the source stopped by SIGSTOP (only with --no-restore).
    #[arg(long, requires = "no_restore", conflicts_with = "leave_running")]
    leave_stopped: bool,
    /// Pid namespace that the server restores into.
    #[arg(long, value_enum, default_value_t = RestorePidns::Auto)]
    restore_pidns: RestorePidns,
    /// Time that the server may take to restore it; then it is asked to undo that, and the process runs on here.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "600s")]
    restore_timeout: Duration,
    /// Refuse a process whose file locks or named pipes would need its death before its restore.
    #[arg(long)]
    no_kill_first: bool,
}

/// `godwit dump`.
#[derive(Debug, Args)]
pub struct Dump {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    place: Where,
    /// Let the process run on.
    #[arg(long, short = 'R')]
    leave_running: bool,
    /// Leave the process stopped by SIGSTOP.
    #[arg(long, short = 's', conflicts_with = "leave_running")]
    leave_stopped: bool,
}

/// `godwit pre-dump`.
#[derive(Debug, Args)]
pub struct PreDump {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    place: Where,
}

/// `godwit limit`.
#[derive(Debug, Args)]
pub struct Limit {
    /// Process that is moved or dumped, as given to that godwit.
    #[arg(long, short = 't', value_parser = parse_pid)]
    pub pid: Pid,
    /// New limit: 800Mbit, 1.5Gbit, 100MB, 64MiB (per second) or none.
    #[arg(value_name = "RATE", value_parser = parse_rate)]
    pub rate: String,
    /// State directory of that godwit.
    #[arg(long, env = "GODWIT_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// `godwit doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Process to look at; without it, what this machine can do for a dump.
    #[arg(long, short = 't', value_parser = parse_pid)]
    pub pid: Option<Pid>,
    /// How much of a deleted file a dump would be let take: bytes, or with K, M; at most 200M.
    #[arg(long, value_name = "SIZE", value_parser = parse_ghost_limit, default_value = "1M")]
    pub ghost_limit: u64,
    /// A dump would be let make links; see `godwit dump --help`.
    #[arg(long)]
    pub link_remap: bool,
    /// What a dump would leave out; see `godwit dump --help`.
    #[arg(long, value_name = "NAME")]
    pub external: Vec<Provided>,
    /// Page server, HOST:PORT, to look at as well: whether it restores, by which CRIU, and on which processor.
    #[arg(long, requires = "keys")]
    pub to: Option<String>,
    /// Directory with ca.pem, client.pem and client.key (`godwit keys init`).
    #[arg(long, requires = "to")]
    pub keys: Option<PathBuf>,
    /// What of the processor must be the same there; see `godwit migrate --help`.
    #[arg(long, value_name = "LIST", default_value = "fpu,ins", num_args = 0..=1, default_missing_value = "all")]
    pub cpu_cap: CpuCap,
    /// Thaw and remove what a killed dumper left behind, where no hand-over holds it.
    #[arg(long)]
    pub sweep: bool,
    /// Where the journals are kept.
    #[arg(long, env = "GODWIT_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `godwit inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The image directory.
    pub dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `godwit demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Memory that the demo program keeps changing, in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=65536))]
    pub memory_mib: u32,
    /// Threads of the demo program.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Dirty tracker.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub tracker: Choice,
    /// The `criu` to restore with.
    #[arg(long, env = "GODWIT_CRIU", default_value = "criu")]
    pub criu: PathBuf,
    /// Keep keys, images and logs in this directory; by default a temporary one that is removed.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `godwit keys`.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a new authority, a server and a client certificate in DIR.
    Init {
        /// Where to write ca.pem ca.key server.pem server.key client.pem client.key.
        dir: PathBuf,
        /// Further names or addresses of the server.
        #[arg(long = "san")]
        sans: Vec<String>,
    },
    /// Make one more certificate with the authority in DIR.
    Issue {
        /// Directory with ca.pem and ca.key.
        dir: PathBuf,
        /// File name of the new pair: NAME.pem and NAME.key.
        #[arg(long)]
        name: String,
        /// A certificate for a page server instead of a dumper.
        #[arg(long)]
        server: bool,
        /// Names or addresses in the certificate.
        #[arg(long = "san")]
        sans: Vec<String>,
    },
}

/// `godwit session`.
#[derive(Debug, Subcommand)]
pub enum Session {
    /// Every hand-over that this host knows of.
    List {
        /// Where the journals are kept.
        #[arg(long, env = "GODWIT_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
        /// Print one JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Both journals of one hand-over.
    Show(SessionOf),
    /// Bring a hand-over that was cut off to its end, so that exactly one copy lives.
    Resolve {
        #[command(flatten)]
        /// Which.
        of: SessionOf,
        /// Decide for the source although the destination cannot be reached.
        #[arg(long)]
        force_source: bool,
        /// Decide for the destination although it cannot be reached.
        #[arg(long, conflicts_with = "force_source")]
        force_destination: bool,
    },
}

/// One hand-over.
#[derive(Debug, Args)]
pub struct SessionOf {
    /// Session id, as `godwit session list` shows it.
    pub id: String,
    /// Directory with ca.pem, client.pem and client.key; by default that of the migration.
    #[arg(long)]
    pub keys: Option<PathBuf>,
    /// Where the journals are kept.
    #[arg(long, env = "GODWIT_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl Source {
    fn options(&self, destination: Destination, afterwards: Afterwards, limits: RoundLimits) -> Options {
        let timeouts = Timeouts {
            step: self.timeout,
            stall: self.stall_timeout,
            seal: self.seal_timeout,
            ..Timeouts::default()
        };
        Options {
            stage: Stage::Dump,
            pid: self.pid,
            destination,
            afterwards,
            restore: false,
            restore_pidns: RestorePidns::Auto,
            tracker: self.tracker,
            limits,
            strict: self.strict,
            shell_job: self.shell_job,
            no_kill_first: false,
            freeze_timeout: self.timeout,
            freeze_cgroup: self.freeze_cgroup.clone(),
            timeouts,
            action_scripts: self.action_scripts.clone(),
            libdir: self.libdir.clone(),
            cpu_cap: self.cpu_cap,
            criu_version: self.criu_version,
            readers: usize::from(self.readers),
            compress: self.compress,
            delta: self.delta,
            connections: u32::from(self.connections),
            bandwidth_limit: self.bandwidth_limit,
            alive_set: !self.no_alive_set,
            ghost_limit: self.ghost_limit,
            link_remap: self.link_remap,
            provided: self.external.iter().copied().collect(),
            state_dir: self.state_dir.clone(),
            progress: !self.json,
        }
    }
}

impl Where {
    fn destination(&self) -> Destination {
        match (&self.images_dir, &self.to, &self.keys) {
            (None, Some(address), Some(keys)) => {
                Destination::Remote { address: address.clone(), keys: keys.clone(), name: self.name.clone() }
            }
            (dir, _, _) => Destination::Local {
                images_dir: dir.clone().unwrap_or_default(),
                prev_images_dir: self.prev_images_dir.clone(),
            },
        }
    }
}

fn afterwards(leave_running: bool, leave_stopped: bool) -> Afterwards {
    match (leave_running, leave_stopped) {
        (true, _) => Afterwards::Run,
        (_, true) => Afterwards::Stop,
        _ => Afterwards::Kill,
    }
}

impl Migrate {
    /// The options of this migration, and whether the report is JSON.
    pub fn options(&self) -> (Options, bool) {
        let destination = Destination::Remote {
            address: self.server.to.clone(),
            keys: self.server.keys.clone(),
            name: self.server.name.clone(),
        };
        let limits = RoundLimits {
            rounds_min: self.rounds.unwrap_or(0),
            rounds_max: self.rounds.unwrap_or(self.max_rounds),
            downtime_target: self.downtime_target,
        };
        let afterwards = afterwards(self.leave_running, self.leave_stopped);
        let options = self.source.options(destination, afterwards, limits);
        let options = Options {
            restore: !self.no_restore,
            restore_pidns: self.restore_pidns,
            no_kill_first: self.no_kill_first,
            timeouts: Timeouts { restore: self.restore_timeout, ..options.timeouts },
            ..options
        };
        (options, self.source.json)
    }
}

impl Dump {
    /// The options of this dump, and whether the report is JSON.
    pub fn options(&self) -> (Options, bool) {
        let limits = RoundLimits { rounds_min: 0, rounds_max: 0, downtime_target: Duration::ZERO };
        let afterwards = afterwards(self.leave_running, self.leave_stopped);
        (self.source.options(self.place.destination(), afterwards, limits), self.source.json)
    }
}

impl PreDump {
    /// The options of this round, and whether the report is JSON.
    pub fn options(&self) -> (Options, bool) {
        let limits = RoundLimits { rounds_min: 0, rounds_max: 1, downtime_target: Duration::ZERO };
        let options = self.source.options(self.place.destination(), Afterwards::Run, limits);
        (Options { stage: Stage::PreDump, ..options }, self.source.json)
    }
}

/// Checks a rate; it is passed on as it was written.
fn parse_rate(text: &str) -> Result<String, String> {
    text.parse::<Rate>().map(|_| text.to_owned())
}

fn parse_pid(text: &str) -> Result<Pid, String> {
    match text.parse::<i32>() {
        Ok(pid) if pid > 0 => Ok(Pid::from_raw(pid)),
        _ => Err("a pid is a positive number".to_owned()),
    }
}

/// Reads `4096`, `64K` or `2M`.
fn parse_ghost_limit(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes <= LIMIT_BYTES_MAX => Ok(bytes),
        _ => Err("a size such as 65536, 64K or 2M, at most 200M".to_owned()),
    }
}

/// Reads `250us`, `100ms`, `2s` or `1.5s`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let seconds = units.iter().find_map(|(unit, scale)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * scale)
    });
    match seconds {
        Some(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a time such as 100ms or 2s, at most a day".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_a_bound() {
        assert_eq!(parse_ghost_limit("65536"), Ok(65536));
        assert_eq!(parse_ghost_limit("64K"), Ok(65536));
        assert_eq!(parse_ghost_limit("200M"), Ok(LIMIT_BYTES_MAX));
        assert_eq!(parse_ghost_limit("0"), Ok(0));
        for wrong in ["201M", "", "M", "-1", "1G", "99999999999999999999", "18014398509481984K"] {
            assert!(parse_ghost_limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_a_unit_and_a_bound() {
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        for bad in ["", "5", "ms", "-1s", "NaNs", "infs", "100000s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn connections_are_one_to_sixteen() {
        let to = ["--to", "h:1", "--keys", "k"];
        for command in ["migrate", "dump", "pre-dump"] {
            let parse = |more: &[&str]| {
                Cli::try_parse_from([&["godwit", command, "--pid", "7"], &to[..], more].concat())
            };
            let asked = |more: &[&str]| match parse(more).unwrap().command {
                Command::Migrate(migrate) => migrate.options().0.connections,
                Command::Dump(dump) => dump.options().0.connections,
                Command::PreDump(pre_dump) => pre_dump.options().0.connections,
                other => panic!("{other:?}"),
            };
            assert_eq!(asked(&[]), 1);
            assert_eq!(asked(&["--connections", "16"]), 16);
            assert!(parse(&["--connections", "0"]).is_err() && parse(&["--connections", "17"]).is_err());
        }
    }

    #[test]
    fn a_live_source_beside_a_restore_is_not_offered() {
        let to = ["godwit", "migrate", "--pid", "7", "--to", "h:1", "--keys", "k"];
        assert!(Cli::try_parse_from(to).is_ok());
        assert!(Cli::try_parse_from(to.iter().chain(&["--leave-running"])).is_err());
    }
}
