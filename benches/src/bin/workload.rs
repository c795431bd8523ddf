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
use godwit_benches::workload::{Content, fill};

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
    /// How they are rewritten.
    #[arg(long, value_enum, default_value = "mixed", requires = "hot_percent")]
    how: How,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
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
    let mut memory = Vec::new();
    match args.content.heap() {
        Some(Heap::Cpython | Heap::Sqlite) if args.hot_percent > 0 => {
            return Err(io::Error::other("an interpreter's heap has no hot set: leave out --hot-percent"));
        }
        Some(heap @ (Heap::Cpython | Heap::Sqlite)) => {
            return Err(become_python(heap, args.memory_mib, &args.ready));
        }
        Some(Heap::Redis) => {
            let heap = RedisHeap::open()?;
            memory.resize(args.memory_mib << 20, 0);
            heap.fill(&mut memory);
        }
        None => {
            memory.resize(args.memory_mib << 20, 0);
            fill(args.content, &mut memory);
        }
    }
    // Read from outside, by process_vm_readv.
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    say_ready(&args.ready, &format!("{:x}\n", std::ptr::from_ref(&WRITTEN).addr()))?;
    let plan = Plan { hot_percent: args.hot_percent, rate_mib_s: args.rate_mib_s, how: args.how };
    rewrite(&plan, &mut memory, &WRITTEN, u64::MAX);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        std::hint::black_box(&memory);
    }
}

/// The file appears whole or not at all.
fn say_ready(path: &Path, line: &str) -> io::Result<()> {
    let unnamed = path.with_extension("part");
    fs::write(&unnamed, line)?;
    fs::rename(unnamed, path)
}
