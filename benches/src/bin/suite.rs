//! The benchmark suite: arguments, and what is written where.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use godwit_benches::conditions::Conditions;
use godwit_benches::peer::Programs;
use godwit_benches::report::{LimitResult, Results, ScenarioResult, json, table};
use godwit_benches::runner::{Runner, Settings};
use godwit_benches::scenario::{self, Scenario};
use godwit_benches::{interrupt, limit, link, measure, targets};

/// Measures godwit and CRIU in turn, on the same memory, over the same links.
///
/// The whole suite takes about twenty minutes on a quiet machine with two cores and needs 14 GiB of memory; --quick takes about one
/// minute and 1 GiB. It needs root, iproute2 and CRIU 4.1 or newer. Nothing else should run meanwhile.
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
    /// The criu to compare with.
    #[arg(long, env = "GODWIT_CRIU", default_value = "criu")]
    criu: PathBuf,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((word, rest)) if word == "meter" => match rest.split_first() {
            Some((result, program)) => measure::meter(Path::new(result), program),
            None => Err(io::Error::other("meter: where does the result go?")),
        },
        Some((word, [ready])) if word == "hold-namespace" => link::hold(Path::new(ready)),
        _ => run(&Args::parse()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("suite: {error}");
        ExitCode::FAILURE
    })
}

fn run(args: &Args) -> io::Result<ExitCode> {
    let wanted =
        |name: &str| args.only.is_empty() || args.only.iter().any(|part| name.contains(part.as_str()));
    let scenarios: Vec<Scenario> =
        scenario::all(args.quick).into_iter().filter(|s| wanted(&s.name())).collect();
    let limits: Vec<limit::Limit> = limit::all().into_iter().filter(|limit| wanted(limit.name)).collect();
    if args.list {
        scenarios
            .iter()
            .map(Scenario::name)
            .chain(limits.iter().map(|limit| limit.name.to_owned()))
            .for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    if scenarios.is_empty() && limits.is_empty() {
        return Err(io::Error::other("nothing has such a name; --list shows them"));
    }
    interrupt::install()?;
    let programs = Programs::find(&args.criu)?;
    let settings = Settings {
        repeats: usize::from(args.repeats.unwrap_or(if args.quick { 1 } else { 5 })),
        images: args.on_disk.clone().unwrap_or_else(|| PathBuf::from("/dev/shm")),
        on_disk: args.on_disk.is_some(),
    };
    let conditions = Conditions::gather(&programs, &settings, args.quick)?;
    let limits = run_limits(&limits, &settings, args.quick)?;
    let scenarios = run_scenarios(&scenarios, &programs, settings)?;
    let targets = targets::judge(&scenarios, &limits);
    let results = Results { schema: 1, conditions, scenarios, limits, targets };
    let out = out_dir(args);
    fs::create_dir_all(&out)?;
    json::write(&results, &out)?;
    println!("{}", table::render(&results));
    println!("written to {}", out.display());
    let failed = results.scenarios.iter().any(|scenario| scenario.failure.is_some());
    Ok(ExitCode::from(u8::from(failed)))
}

fn run_limits(limits: &[limit::Limit], settings: &Settings, quick: bool) -> io::Result<Vec<LimitResult>> {
    let bytes = if quick { 64 << 20 } else { 1 << 30 };
    let mut results = Vec::new();
    for limit in limits {
        let mut rates = Vec::new();
        for repeat in 0..=settings.repeats {
            interrupt::check()?;
            let rate = (limit.measure)(bytes)?;
            eprintln!("suite: {} {repeat}: {:.0} MiB/s", limit.name, rate.mib_per_s());
            if repeat > 0 {
                rates.push(rate);
            }
        }
        results.push(LimitResult::of(limit, &rates));
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
        let outcome = runner.run(scenario, &mut |line| eprintln!("suite: {line}"))?;
        results.push(ScenarioResult::of(&outcome));
    }
    Ok(results)
}

fn out_dir(args: &Args) -> PathBuf {
    let whole = !args.quick && args.only.is_empty();
    let default = if whole { "benches/results" } else { "target/bench-results" };
    args.out.clone().unwrap_or_else(|| PathBuf::from(default))
}
