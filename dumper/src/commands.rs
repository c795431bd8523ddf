//! The commands: each turns its arguments into a call of one room, and the outcome into words and a status.

use std::error::Error;
use std::fmt::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use godwit_page_server::store::inspect::{self, Verdict};
use godwit_wire::quic::keys;

use crate::cli::{Command, Doctor, Inspect, Keys};
use crate::error::DumpError;
use crate::logging::tell;
use crate::options::Options;
use crate::prepare::limits;
use crate::report::Report;
use crate::{demo, doctor, flow, interrupt, link, session};

/// Runs a command and says how it ended: see the exit status in `godwit --help`.
pub fn run(command: &Command) -> ExitCode {
    let outcome = match command {
        Command::Migrate(args) => report(args.options(), flow::dump),
        Command::Dump(args) => report(args.options(), flow::dump),
        Command::PreDump(args) => report(args.options(), flow::pre_dump),
        Command::Limit(args) => match link::limit::change(&args.state_dir, args.pid, &args.rate) {
            Ok(()) => Ok(0),
            Err(error) => Err(Failure { text: format!("changing the limit: {error}"), status: 1 }),
        },
        Command::Doctor(args) => doctor(args),
        Command::Inspect(args) => inspect(args),
        Command::Demo(args) => demo::run(args),
        Command::DemoVictim(args) => demo::victim::run(args).map(|()| 0).map_err(Failure::plain),
        Command::DemoCheck(args) => {
            demo::check::run(args).map(|verified| u8::from(!verified)).map_err(Failure::plain)
        }
        Command::Keys(args) => keys(args),
        Command::Session(args) => session::run(args).map_err(Failure::from),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            interrupt::say(&failure.text);
            ExitCode::from(failure.status)
        }
    }
}

/// What a failed command says, and its exit status.
#[derive(Debug)]
pub struct Failure {
    /// The whole chain of causes, in one paragraph.
    pub text: String,
    /// The exit status.
    pub status: u8,
}

impl Failure {
    /// A failure with exit status 1.
    pub fn plain(error: impl Error) -> Failure {
        Failure { text: chain(&error), status: 1 }
    }
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Failure {
        let way_out = limits::explain(&error).map(|way_out| format!(": {way_out}")).unwrap_or_default();
        Failure { text: chain(&error) + &way_out, status: error.exit_status() }
    }
}

/// An error and all its causes, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}

fn report(
    (options, json): (Options, bool),
    work: impl FnOnce(&Options) -> Result<Report, DumpError>,
) -> Result<u8, Failure> {
    interrupt::listen().map_err(|error| Failure { text: format!("taking signals: {error}"), status: 1 })?;
    // A fault of our own is undone as any other failure: everything that was done is undone where it is dropped.
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| work(&options)));
    let report = outcome.unwrap_or_else(|_| Err(DumpError::OwnFault { pid: options.pid }))?;
    if json {
        tell(serde_json::to_string(&report).map_err(Failure::plain)?);
    } else {
        tell(&report);
    }
    Ok(0)
}

fn doctor(args: &Doctor) -> Result<u8, Failure> {
    if args.sweep {
        for line in doctor::sweep(&args.state_dir)? {
            tell(line);
        }
    }
    if args.sweep && args.pid.is_none() && args.to.is_none() {
        return Ok(0);
    }
    let (is_fine, mut text, mut value) = match args.pid {
        Some(pid) => {
            let findings = doctor::examine(
                pid,
                args.ghost_limit,
                &args.external.iter().copied().collect(),
                args.link_remap,
            )?;
            let is_fine = findings.refusals.is_empty();
            (is_fine, doctor::to_text(pid, &findings), doctor::to_value(pid, &findings))
        }
        None => {
            let checks = doctor::machine::examine()?;
            let is_fine = doctor::machine::can_dump(&checks);
            (is_fine, doctor::machine::to_text(&checks), doctor::machine::to_value(&checks))
        }
    };
    let mut can_restore = true;
    if let (Some(to), Some(keys)) = (&args.to, &args.keys) {
        let checks = doctor::destination::examine(to, keys, args.cpu_cap)?;
        can_restore = doctor::destination::can_restore(&checks);
        text.push_str(&doctor::destination::to_text(&checks));
        value["page_server"] = doctor::destination::to_value(&checks);
    }
    if args.json {
        tell(value);
    } else {
        tell(text.trim_end());
    }
    Ok(if is_fine && can_restore { 0 } else { 3 })
}

fn inspect(args: &Inspect) -> Result<u8, Failure> {
    let report = inspect::inspect(&args.dir).map_err(|error| Failure {
        text: format!("cannot read {}: {error}", args.dir.display()),
        status: 1,
    })?;
    if args.json {
        tell(inspection_json(&report));
    } else {
        tell(inspection_text(&report).trim_end());
    }
    Ok(u8::from(report.verdict != Verdict::Complete))
}

fn inspection_json(report: &inspect::Report) -> serde_json::Value {
    let lines = |findings: &[inspect::Finding]| findings.iter().map(ToString::to_string).collect::<Vec<_>>();
    serde_json::json!({
        "dir": report.dir.display().to_string(),
        "verdict": report.verdict.to_string(),
        "faults": lines(&report.faults),
        "notes": lines(&report.notes),
        "chain": report.chain.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>(),
        "images_decoded": report.images_decoded,
        "pages_present": report.pages_present,
        "pages_in_parent": report.pages_in_parent,
        "size_bytes": report.size_bytes,
        "tasks": report.tasks,
        "manifest": report.manifest.is_some(),
    })
}

fn inspection_text(report: &inspect::Report) -> String {
    let mut text = String::new();
    let hashes = if report.manifest.is_some() { "every hash checked" } else { "no manifest" };
    let _ = writeln!(
        text,
        "{}: {}; {} images, {} pages here, {} in {} directories before, {hashes}",
        report.dir.display(),
        report.verdict,
        report.images_decoded,
        report.pages_present,
        report.pages_in_parent,
        report.chain.len(),
    );
    for fault in &report.faults {
        let _ = writeln!(text, "fault: {fault}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn keys(args: &Keys) -> Result<u8, Failure> {
    let written = match args {
        Keys::Init { dir, sans } => keys::init(dir, sans),
        Keys::Issue { dir, name, server, sans } => {
            let kind = if *server { keys::Kind::Server } else { keys::Kind::Client };
            keys::issue(dir, name, kind, sans)
        }
    };
    for path in written.map_err(Failure::plain)? {
        tell(path.display());
    }
    Ok(0)
}
