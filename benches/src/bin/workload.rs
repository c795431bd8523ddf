//! The process that is measured: fills its memory, says that it is ready, and waits.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use godwit_benches::workload::{Content, fill};

#[derive(Parser)]
struct Args {
    /// What fills the memory.
    #[arg(long, value_enum)]
    content: Content,
    /// Memory in MiB.
    #[arg(long)]
    memory_mib: usize,
    /// File that appears once the memory is filled.
    #[arg(long)]
    ready: PathBuf,
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
    let mut memory = vec![0; args.memory_mib << 20];
    fill(args.content, &mut memory);
    fs::write(&args.ready, "")?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        std::hint::black_box(&memory);
    }
}
