//! The process that is measured: fills its memory, says that it is ready, and waits or rewrites a part of it.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::Parser;
use godwit_benches::workload::heap::{Heap, RedisHeap, become_python};
use godwit_benches::workload::hot_set::{How, Plan, rewrite};
use godwit_benches::workload::{Content, fill, value_name};

#[derive(Parser)]
struct Args {
    /// What fills the memory.
    #[arg(long, value_enum)]
    content: Content,
    /// Memory in MiB.
    #[arg(long)]
    memory_mib: usize,
    /// File that appears once the memory is filled: a line with the address of the count of rewritten pages.
    #[arg(long)]
    ready: PathBuf,
    /// Pages of a hundred that are rewritten for ever.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    hot_percent: u32,
    /// Pages that are rewritten a second, in MiB; 0: as many as go.
    #[arg(long, default_value_t = 0, requires = "hot_percent")]
    rate_mib_s: u32,
    /// Processes that the memory is spread over, this one too.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    processes: u32,
    /// Threads of this process.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    threads: u32,
    /// A process that another one has started.
    #[arg(long, hide = true)]
    child: bool,
    /// How they are rewritten.
    #[arg(long, value_enum, default_value = "mixed", requires = "hot_percent")]
    how: How,
}

/// Stack of a further thread, in bytes: it does nothing.
const THREAD_STACK: usize = 64 << 10;

/// Starts the other processes, each with so much memory.
fn start_children(args: &Args, memory_mib: usize) -> io::Result<Vec<std::process::Child>> {
    let program = std::env::current_exe()?;
    let start = |number: usize| {
        let mut command = std::process::Command::new(&program);
        command.args(["--child", "--content", &value_name(&args.content)]);
        command.args(["--memory-mib", &memory_mib.to_string()]);
        command.arg("--ready").arg(child_ready(&args.ready, number)).spawn()
    };
    (0..args.processes as usize - 1).map(start).collect()
}

/// The file by which a child says that it is ready.
fn child_ready(ready: &Path, number: usize) -> PathBuf {
    let name = ready.file_name().unwrap_or_default().to_string_lossy();
    ready.with_file_name(format!("{name}-child-{number}"))
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    if !args.child {
        nix::unistd::setsid()?;
    }
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // One of them was the directory just read, closed by now.
        let _ = nix::unistd::close(fd);
    }
    let mut memory = Vec::new();
    let share = (args.memory_mib << 20) / args.processes as usize;
    let children = start_children(&args, share >> 20)?;
    match args.content.heap() {
        Some(Heap::Cpython | Heap::Sqlite) if args.hot_percent > 0 => {
            return Err(io::Error::other("an interpreter's heap has no hot set: leave out --hot-percent"));
        }
        Some(heap @ (Heap::Cpython | Heap::Sqlite)) => {
            return Err(become_python(heap, args.memory_mib, &args.ready));
        }
        Some(Heap::Redis) => {
            let heap = RedisHeap::open()?;
            memory.resize(share, 0);
            heap.fill(&mut memory);
        }
        None => {
            memory.resize(share, 0);
            fill(args.content, &mut memory);
        }
    }
    for _ in 1..args.threads {
        std::thread::Builder::new().stack_size(THREAD_STACK).spawn(|| {
            loop {
                std::thread::park();
            }
        })?;
    }
    for (number, _) in children.iter().enumerate() {
        let ready = child_ready(&args.ready, number);
        while !ready.exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        fs::remove_file(ready)?;
    }
    // Read from outside, by process_vm_readv.
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    say_ready(&args.ready, &format!("{:x}\n", std::ptr::from_ref(&WRITTEN).addr()))?;
    let plan = Plan { hot_percent: args.hot_percent, rate_mib_s: args.rate_mib_s, how: args.how };
    rewrite(&plan, &mut memory, &WRITTEN, u64::MAX);
    loop {
        // For ever, as a server waits for its next request.
        std::thread::park();
        std::hint::black_box(&memory);
    }
}

/// The file appears whole or not at all.
fn say_ready(path: &Path, line: &str) -> io::Result<()> {
    let unnamed = path.with_extension("part");
    fs::write(&unnamed, line)?;
    fs::rename(unnamed, path)
}
