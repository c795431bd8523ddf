//! The program that the demonstration moves: threads that keep rewriting memory, and a log that tells.
//!
//! Every page holds its number, its generation and words derived from both, so a page that is stale, lost or
//! torn is found by looking at the page alone and at the table of generations. Every few milliseconds a
//! line is appended to the log: a count that rises by one, the clock, the pid namespace, pages written so
//! far. When a file named `stop` appears beside the log, the threads end, every page is checked, and a last
//! line says what was found.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Words of 8 bytes in a page.
const PAGE_WORDS: usize = 512;
/// Time between two lines of the log.
const LINE_PERIOD: Duration = Duration::from_millis(2);
/// Pages a thread rewrites before it rests, so that a machine with few cores can also copy.
const BATCH_PAGES: usize = 32;
/// The rest after a batch.
const REST: Duration = Duration::from_millis(4);
/// Of a batch, so many pages come from the first sixteenth of the memory: a hot set, as real programs have.
const HOT_OF_BATCH: usize = 28;

/// What the program is told.
#[derive(Debug, clap::Args)]
pub struct VictimArgs {
    /// Memory to keep changing, in MiB.
    #[arg(long)]
    memory_mib: usize,
    /// Writer threads.
    #[arg(long)]
    threads: usize,
    /// Directory of the log and of the `stop` file.
    #[arg(long)]
    dir: std::path::PathBuf,
}

/// One writer's part of the memory.
struct Part {
    pages: Vec<u64>,
    generations: Vec<u64>,
    first_page: u64,
    writes: u64,
}

/// Runs until the `stop` file appears.
///
/// # Errors
/// When the log cannot be written.
pub fn run(args: &VictimArgs) -> io::Result<()> {
    leave_the_parent()?;
    let mut log = File::options().append(true).create(true).open(args.dir.join("log"))?;
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let pages = args.memory_mib * (1 << 20) / (PAGE_WORDS * 8) / args.threads;
    let (lines, parts) = thread::scope(|scope| {
        let writers: Vec<_> = (0..args.threads)
            .map(|index| {
                let (stop, written) = (&stop, &written);
                thread::Builder::new()
                    .name(format!("writer-{index}"))
                    .spawn_scoped(scope, move || write_until(Part::new(index * pages, pages), stop, written))
            })
            .collect::<io::Result<_>>()?;
        let lines = log_until(&args.dir.join("stop"), &mut log, &written);
        stop.store(true, Ordering::Relaxed);
        let parts: Vec<Part> = writers.into_iter().filter_map(|writer| writer.join().ok()).collect();
        io::Result::Ok((lines?, parts))
    })?;
    let bad: u64 = parts.iter().map(Part::count_bad).sum();
    let writes: u64 = parts.iter().map(|part| part.writes).sum();
    let generations: u64 = parts.iter().flat_map(|part| &part.generations).sum();
    let checksum = parts.iter().fold(0, |sum, part| sum ^ part.checksum());
    let expected = parts.iter().fold(0, |sum, part| sum ^ part.expected_checksum());
    writeln!(
        log,
        "end {lines} pages {} threads {} bad {bad} writes {writes} generations {generations} \
         checksum {checksum:016x} expected {expected:016x}",
        pages * args.threads,
        parts.len(),
    )
}

/// Becomes the leader of a session of its own, with nothing open but standard input, output and error.
fn leave_the_parent() -> io::Result<()> {
    nix::unistd::setsid()?;
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // One of them was the directory just read, closed by now.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

fn log_until(stop: &Path, log: &mut File, written: &AtomicU64) -> io::Result<u64> {
    let mut count = 0;
    while !stop.exists() {
        count += 1;
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?).as_nanos();
        let namespace = fs::metadata("/proc/self/ns/pid")?.ino();
        let line =
            format!("line {count} at {now} ns {namespace} written {}\n", written.load(Ordering::Relaxed));
        log.write_all(line.as_bytes())?;
        thread::sleep(LINE_PERIOD);
    }
    Ok(count)
}

fn write_until(mut part: Part, stop: &AtomicBool, written: &AtomicU64) -> Part {
    let mut random = part.first_page.wrapping_add(0x9e37_79b9_7f4a_7c15);
    while !stop.load(Ordering::Relaxed) {
        for index in 0..BATCH_PAGES {
            random = mix(random);
            let of = part.generations.len() as u64;
            let among = if index < HOT_OF_BATCH { of.div_ceil(16) } else { of };
            part.rewrite((random % among) as usize);
        }
        written.fetch_add(BATCH_PAGES as u64, Ordering::Relaxed);
        thread::sleep(REST);
    }
    part
}

/// One step of a mixing function (splitmix64's finaliser).
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Part {
    fn new(first_page: usize, pages: usize) -> Part {
        let mut part = Part {
            pages: vec![0; pages * PAGE_WORDS],
            generations: vec![0; pages],
            first_page: first_page as u64,
            writes: 0,
        };
        (0..pages).for_each(|page| part.rewrite(page));
        part
    }

    fn rewrite(&mut self, page: usize) {
        self.generations[page] += 1;
        self.writes += 1;
        let (number, generation) = (self.first_page + page as u64, self.generations[page]);
        let words = &mut self.pages[page * PAGE_WORDS..(page + 1) * PAGE_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = expected_word(number, generation, index);
        }
    }

    fn count_bad(&self) -> u64 {
        let right = |(page, words): (usize, &[u64])| {
            let number = self.first_page + page as u64;
            let generation = self.generations[page];
            words.iter().enumerate().all(|(index, word)| *word == expected_word(number, generation, index))
        };
        self.pages.chunks_exact(PAGE_WORDS).enumerate().filter(|page| !right(*page)).count() as u64
    }

    fn checksum(&self) -> u64 {
        self.pages.iter().enumerate().fold(0, |sum, (at, word)| sum ^ mix(word ^ at as u64))
    }

    fn expected_checksum(&self) -> u64 {
        let words = (0..self.pages.len()).map(|at| {
            let (page, index) = (at / PAGE_WORDS, at % PAGE_WORDS);
            expected_word(self.first_page + page as u64, self.generations[page], index)
        });
        words.enumerate().fold(0, |sum, (at, word)| sum ^ mix(word ^ at as u64))
    }
}

fn expected_word(number: u64, generation: u64, index: usize) -> u64 {
    match index {
        0 => number,
        1 => generation,
        _ => (number << 32 ^ generation << 12).wrapping_add(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}
