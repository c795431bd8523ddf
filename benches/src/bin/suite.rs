//! The benchmark suite: arguments, and what is written where.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use godwit_benches::conditions::Conditions;
use godwit_benches::limit::{Limit, Measured};
use godwit_benches::peer::Programs;
use godwit_benches::report::{
    ContentResult, GuestResults, LimitResult, Results, ScenarioResult, json, svg, table,
};
use godwit_benches::runner::{Runner, Settings};
use godwit_benches::scenario::{self, Scenario};
use godwit_benches::tracking::catalog::{Tracking, TrackingResult};
use godwit_benches::workload::sample::{self, Compressibility};
use godwit_benches::workload::{Content, heap, value_name};
use godwit_benches::{interrupt, limit, link, measure, targets, tracking, virtual_machine};

/// Measures godwit and CRIU in turn, on the same memory, over the same links.
///
/// The whole suite takes thirty to forty minutes (an estimate) on a quiet machine with two cores and needs 14 GiB of
/// memory; --quick takes about one minute and 1 GiB. It needs root, iproute2 and CRIU 4.1 or newer. Nothing else should
/// run meanwhile.
#[derive(Parser)]
#[command(name = "benches/run", version)]
struct Args {
    /// A sixteenth of the memory and one repeat, to see that everything works; the numbers say little.
    #[arg(long)]
    quick: bool,
    /// Only scenarios and limits whose name contains this; may be repeated. --list shows the names.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Show the names of scenarios and limits, and end.
    #[arg(long)]
    list: bool,
    /// Where results.json and the plots go; by default benches/results for the whole suite, target/bench-results
    /// for a part of it.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measured repeats, after one that is not measured; 5 unless --quick.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    repeats: Option<u8>,
    /// Put both sides' images below this directory on a disk, instead of on a tmpfs.
    #[arg(long, value_name = "DIR")]
    on_disk: Option<PathBuf>,
    /// Only the part that runs in the lab's virtual machine: long and lossy ways, and CRIU's pre-dump loop. The
    /// processor is emulated there: its times say nothing. It is a part of the whole suite, but not of --quick, and
    /// takes about six minutes and 3 GiB.
    #[arg(long)]
    vm: bool,
    /// Run the scenarios of the virtual machine here.
    #[arg(long, hide = true, conflicts_with = "vm")]
    in_vm: bool,
    /// The criu to compare with.
    #[arg(long, env = "GODWIT_CRIU", default_value = "criu")]
    criu: PathBuf,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(done) = limit::far_side() {
        return done.map_or_else(failed, |()| ExitCode::SUCCESS);
    }
    let done = match words.split_first() {
        Some((word, rest)) if word == "meter" => match rest.split_first() {
            Some((result, program)) => measure::meter(Path::new(result), program),
            None => Err(io::Error::other("meter: where does the result go?")),
        },
        Some((word, [ready])) if word == "hold-namespace" => link::hold(Path::new(ready)),
        _ => run(&Args::parse()),
    };
    done.unwrap_or_else(failed)
}

fn failed(error: io::Error) -> ExitCode {
    eprintln!("suite: {error}");
    ExitCode::FAILURE
}

fn run(args: &Args) -> io::Result<ExitCode> {
    let named =
        |name: &str| args.only.is_empty() || args.only.iter().any(|part| name.contains(part.as_str()));
    let wanted = |name: &str| !args.vm && !args.in_vm && named(name);
    let mut scenarios = if args.in_vm { scenario::guest() } else { scenario::all(args.quick) };
    scenarios.retain(|scenario| if args.in_vm { named(&scenario.name()) } else { wanted(&scenario.name()) });
    let guest = if args.in_vm { Vec::new() } else { guest_scenarios(args) };
    let repeats = usize::from(args.repeats.unwrap_or(if args.quick { 1 } else { 5 }));
    let own = tempfile::tempdir()?;
    let limit_settings = limit_settings(args, own.path());
    let mut limits = limit::catalog(&limit_settings);
    limits.retain(|limit| wanted(&limit.name));
    let mut tracking = tracking::catalog::catalog(args.quick, repeats);
    tracking.retain(|tracking| wanted(&tracking.name));
    if args.list {
        scenarios
            .iter()
            .map(Scenario::name)
            .chain(limits.iter().map(|limit| limit.name.clone()))
            .chain(tracking.iter().map(|tracking| tracking.name.clone()))
            .chain(guest.iter().map(|name| format!("{GUEST}{name}")))
            // A reader that has seen enough is no failure.
            .try_for_each(|name| writeln!(io::stdout(), "{name}"))
            .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
        return Ok(ExitCode::SUCCESS);
    }
    if scenarios.is_empty() && limits.is_empty() && tracking.is_empty() && guest.is_empty() {
        return Err(io::Error::other("nothing has such a name; --list shows them"));
    }
    interrupt::install()?;
    let programs = Programs::find(&args.criu)?;
    let settings = Settings {
        repeats,
        // Where a repeat takes half a minute, and nothing is cached but programs.
        warm_up: !args.in_vm,
        images: args.on_disk.clone().unwrap_or_else(|| PathBuf::from("/dev/shm")),
        on_disk: args.on_disk.is_some(),
    };
    let conditions = Conditions::gather(&programs, &settings, args.quick)?;
    if !limits.is_empty() {
        godwit_wire::quic::keys::init(&limit_settings.keys, &[]).map_err(io::Error::other)?;
    }
    let contents = look_at_contents(wanted)?;
    let limits = run_limits(&limits, &settings)?;
    let tracking = run_tracking(&tracking)?;
    let scenarios = run_scenarios(&scenarios, &programs, settings)?;
    let targets = targets::judge(&scenarios, &limits, &tracking);
    let virtual_machine = if guest.is_empty() { None } else { run_guest(&guest, repeats) };
    let guest_ended = virtual_machine.as_ref().map_or(&[][..], |guest| &guest.scenarios);
    let failed = scenarios.iter().chain(guest_ended).any(|scenario| scenario.failure.is_some())
        || guest_ended.len() < guest.len();
    let results =
        Results { schema: 1, conditions, scenarios, limits, contents, tracking, targets, virtual_machine };
    let out = out_dir(args);
    fs::create_dir_all(&out)?;
    json::write(&results, &out)?;
    svg::write(&results, &out)?;
    println!("{}", table::render(&results));
    println!("written to {}", out.display());
    Ok(ExitCode::from(u8::from(failed)))
}

/// What stands before the names of what runs in the virtual machine.
const GUEST: &str = "vm/";
/// Most repeats there.
const GUEST_REPEATS_MAX: usize = 2;

/// Names of what is to run in the virtual machine: of a whole suite all, else what `--only vm/…` begins.
fn guest_scenarios(args: &Args) -> Vec<String> {
    let names = scenario::guest().into_iter().map(|scenario| scenario.name());
    let only = |name: &str| args.only.iter().any(|part| name.contains(part.as_str()));
    let called =
        |name: &str| args.only.iter().any(|part| format!("{GUEST}{name}").starts_with(part.as_str()));
    let wanted = |name: &String| match (args.vm, args.only.is_empty()) {
        (true, is_all) => is_all || only(name),
        (false, true) => !args.quick,
        (false, false) => called(name),
    };
    names.filter(wanted).collect()
}

/// A machine that does not run is said, and the rest of the results kept.
fn run_guest(names: &[String], repeats: usize) -> Option<GuestResults> {
    let results = virtual_machine::run(names, repeats.min(GUEST_REPEATS_MAX));
    results.inspect_err(|error| eprintln!("suite: {error}")).ok()
}

/// A limit moves half a GiB: a second or less for most.
fn limit_settings(args: &Args, own: &Path) -> limit::Settings {
    let bytes = if args.quick { 32 << 20 } else { 512 << 20 };
    let disk = args.on_disk.clone().unwrap_or_else(|| PathBuf::from("/var/tmp"));
    let dirs = vec![("tmpfs".to_owned(), PathBuf::from("/dev/shm")), ("disk".to_owned(), disk)];
    limit::Settings { bytes, keys: own.join("keys"), dirs }
}

/// All limits in turn, repeat by repeat; one that this machine lacks something for is left out.
fn run_limits(limits: &[Limit<'_>], settings: &Settings) -> io::Result<Vec<LimitResult>> {
    let mut runs: Vec<Option<Vec<Measured>>> = limits.iter().map(|_| Some(Vec::new())).collect();
    for repeat in 0..=settings.repeats {
        for (limit, runs) in limits.iter().zip(&mut runs) {
            interrupt::check()?;
            let Some(measured) = runs else { continue };
            match limit.run() {
                Ok(one) => {
                    eprintln!("suite: {} {repeat}: {:.0} MiB/s", limit.name, one.mib_per_s());
                    measured.extend((repeat > 0).then_some(one));
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    eprintln!("suite: SKIP {error}");
                    *runs = None;
                }
                Err(error) => return Err(error),
            }
        }
    }
    let measured = limits.iter().zip(&runs).filter_map(|(limit, runs)| Some((limit, runs.as_ref()?)));
    Ok(measured.map(|(limit, runs)| LimitResult::of(limit, runs)).collect())
}

/// How well each content that is measured packs.
fn look_at_contents(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<ContentResult>> {
    let mut results = Vec::new();
    for content in Content::value_variants() {
        let name = value_name(content);
        if !wanted(&name) {
            continue;
        }
        interrupt::check()?;
        let packs = sample::of(*content).and_then(|sample| Compressibility::of(&sample));
        let (packs, skipped) = match packs {
            Ok(packs) => (Some(packs), None),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => (None, Some(error.to_string())),
            Err(error) => return Err(error),
        };
        results.push(ContentResult { content: name, packs, skipped });
    }
    Ok(results)
}

fn run_tracking(all: &[Tracking]) -> io::Result<Vec<TrackingResult>> {
    let mut results = Vec::new();
    for tracking in all {
        interrupt::check()?;
        let result = tracking.run()?;
        eprintln!("suite: {}", result.line());
        results.push(result);
    }
    Ok(results)
}

fn run_scenarios(
    scenarios: &[Scenario],
    programs: &Programs,
    settings: Settings,
) -> io::Result<Vec<ScenarioResult>> {
    let runner = Runner::new(programs.clone(), settings)?;
    let mut results = Vec::new();
    for scenario in scenarios {
        let why = scenario.workload.content.heap().and_then(heap::missing);
        if let Some(why) = why {
            eprintln!("suite: SKIP {}: {why}", scenario.name());
            continue;
        }
        let outcome = runner.run(scenario, &mut |line| eprintln!("suite: {line}"))?;
        results.push(ScenarioResult::of(&outcome));
    }
    Ok(results)
}

fn out_dir(args: &Args) -> PathBuf {
    let whole = !args.quick && !args.vm && args.only.is_empty();
    let default = if whole { "benches/results" } else { "target/bench-results" };
    args.out.clone().unwrap_or_else(|| PathBuf::from(default))
}
