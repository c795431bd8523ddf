//! `tracker`: what a dirty tracker costs. To the process: its writing at full speed, untracked, in its first pass over its
//! memory after a collection, and in later ones. To the dumper: the list of a round, by how much was written.
//!
//! Times are those of the processor, and the best of several: the machine may be busy.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use godwit_dumper::predump::held::Held;
use godwit_dumper::predump::pages::{SentPages, latency_histogram, page_hash};
use godwit_dumper::predump::rounds::{self, Base};
use godwit_dumper::predump::tracker::{self, Choice};
use godwit_dumper::prepare::root::Root;
use godwit_dumper::sys::process_vm::{self, Remote};
use godwit_wire::plan::PagesPlan;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Bytes of a page of memory.
const PAGE: usize = 4096;

#[derive(Parser)]
struct Arguments {
    /// Memory of the process, in MiB.
    #[arg(long, default_value_t = 4096)]
    memory_mib: usize,
    /// The tracker.
    #[arg(long, value_enum, default_value_t = Choice::UffdWp)]
    tracker: Choice,
    /// How often each is measured.
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// Threads of a tracker that reads.
    #[arg(long, default_value_t = 2)]
    readers: usize,
    /// Be the process.
    #[arg(long, hide = true)]
    victim: bool,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if arguments.victim { victim(arguments.memory_mib << 20) } else { measure(&arguments) }
}

/// Time of the calling thread's processor.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Obeys: "fill" writes every byte, "touch" a word of every page, "random N" a word of every page in N percent of them;
/// answers with the processor's time in nanoseconds.
fn victim(bytes: usize) -> io::Result<()> {
    let mut memory = vec![0u8; bytes];
    let mut value = 1u64;
    let mut fill = |memory: &mut [u8], stride: u64, is_whole: bool| {
        value += 1;
        let page = [value as u8 | 1; PAGE];
        let begun = cpu();
        for (index, into) in memory.chunks_exact_mut(PAGE).enumerate() {
            // Spread, and never the same: the golden ratio's multiples.
            if (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(value << 50) >> 32 > stride {
                continue;
            }
            let len = if is_whole { PAGE } else { 8 };
            into[..len].copy_from_slice(&page[..len]);
        }
        cpu() - begun
    };
    fill(&mut memory, u64::MAX, true);
    println!("0");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let took = match line.split_once(' ') {
            Some((_, percent)) => {
                fill(&mut memory, (u64::from(u32::MAX) / 100) * percent.parse().unwrap_or(1), false)
            }
            None => fill(&mut memory, u64::MAX, line == "fill"),
        };
        println!("{}", took.as_nanos());
    }
    Ok(())
}

struct Process {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start(memory_mib: usize) -> io::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--victim", "--memory-mib", &memory_mib.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut process = Process { child, orders, answers: BufReader::new(answers) };
        process.answer()?;
        Ok(process)
    }

    fn answer(&mut self) -> io::Result<Duration> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().map(Duration::from_nanos).map_err(io::Error::other)
    }

    fn tell(&mut self, order: &str) -> io::Result<Duration> {
        writeln!(self.orders, "{order}")?;
        self.answer()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As if a round had been sent, of a process nearly all whose pages are equal.
fn sent_equal(pid: Pid, plan: &PagesPlan) -> io::Result<SentPages> {
    let mut page = [0; PAGE];
    if let Some(largest) = plan.runs.iter().max_by_key(|run| run.nr_pages) {
        let middle = largest.vaddr + largest.nr_pages / 2 * PAGE as u64;
        process_vm::read(pid, &[Remote { addr: middle, len: PAGE }], &mut page)?;
    }
    Ok(SentPages {
        extents: Vec::new(),
        page_hashes: vec![vec![page_hash(&page); plan.slots() as usize]],
        gone: BTreeSet::new(),
        data_pages: 0,
        zero_pages: 0,
        read_latency_us: latency_histogram(),
    })
}

fn best(of: usize, mut measured: impl FnMut() -> io::Result<Duration>) -> io::Result<Duration> {
    (0..of.max(1))
        .map(|_| measured())
        .collect::<io::Result<Vec<_>>>()
        .map(|all| all.into_iter().min().unwrap_or_default())
}

fn measure(arguments: &Arguments) -> io::Result<()> {
    let Arguments { memory_mib, repeats, .. } = *arguments;
    let pages = (memory_mib << 20) / PAGE;
    let gib = memory_mib as f64 / 1024.0;
    let say = |what: &str, took: Duration| {
        println!(
            "{what:<44} {:>9.2} ms {:>8.2} GiB/s {:>8.1} ns a page",
            took.as_secs_f64() * 1e3,
            gib / took.as_secs_f64(),
            took.as_nanos() as f64 / pages as f64
        );
    };
    let mut process = Process::start(memory_mib)?;
    let free = best(repeats, || process.tell("fill"))?;
    say("fill, untracked", free);
    say("a word a page, untracked", best(repeats, || process.tell("touch"))?);

    let root = Root::open(Pid::from_raw(process.child.id() as i32), 1 << 20).map_err(io::Error::other)?;
    let mut tracker =
        tracker::attach(arguments.tracker, root.pid, arguments.readers).map_err(io::Error::other)?;
    let mut held = Held::default();
    if tracker.wants_hashes() {
        process.tell("fill")?;
        let listed = rounds::list(&root, tracker.as_mut(), None, &held, None).map_err(io::Error::other)?;
        held.acknowledge(&listed.plan, &sent_equal(root.pid, &listed.plan)?);
    }
    let mut base = None;
    let mut round = |base: &mut Option<Base>| -> io::Result<(Duration, Duration, u64)> {
        let (begun, begun_cpu) = (Instant::now(), cpu());
        let listed =
            rounds::list(&root, tracker.as_mut(), base.as_ref(), &held, None).map_err(io::Error::other)?;
        let (took, took_cpu, slots) = (begun.elapsed(), cpu() - begun_cpu, listed.plan.slots());
        *base = Some(Base { round: 1, covered: listed.plan });
        Ok((took, took_cpu, slots))
    };
    let (took, _, _) = round(&mut base)?;
    say("the first list: all", took);
    for (what, order) in
        [("nothing written", ""), ("6 % written at random", "random 6"), ("all written", "touch")]
    {
        let mut slots = 0;
        let (mut wall, mut cpu) = (Duration::MAX, Duration::MAX);
        for _ in 0..repeats {
            if !order.is_empty() {
                process.tell(order)?;
            }
            let measured = round(&mut base)?;
            (wall, cpu, slots) = (wall.min(measured.0), cpu.min(measured.1), measured.2);
        }
        say(&format!("a list, {what} ({slots} pages)"), wall);
        say("  of that, this thread's processor", cpu);
    }
    let mut after_collection = |order: &str| -> io::Result<(Duration, Duration)> {
        let (mut first, mut later) = (Duration::MAX, Duration::MAX);
        for _ in 0..repeats {
            round(&mut base)?;
            first = first.min(process.tell(order)?);
            later = later.min(process.tell(order)?);
        }
        Ok((first, later))
    };
    let (first, later) = after_collection("fill")?;
    say("fill, first pass after a collection", first);
    say("fill, later passes", later);
    let (first_words, later_words) = after_collection("touch")?;
    say("a word a page, first pass after a collection", first_words);
    say("a word a page, later passes", later_words);
    let lost = (later.as_secs_f64() / free.as_secs_f64() - 1.0) * 100.0;
    println!("lost while tracked, outside the first pass: {lost:.1} %");
    println!(
        "a first write costs {:.0} ns more",
        (first.as_nanos() as f64 - later.as_nanos() as f64) / pages as f64
    );
    Ok(())
}
