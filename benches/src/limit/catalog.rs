//! All limits, by name, in the order in which they are reported.

use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::codec::{self, Codec};
use super::memory::{self, Reading};
use super::{Measured, file, quic, tcp, udp};
use crate::workload::{Content, sample, value_name};

/// How limits are measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes that each moves.
    pub bytes: u64,
    /// Certificates as `godwit keys init` makes them.
    pub keys: PathBuf,
    /// Directories to write files in, each with the name it is reported by (`tmpfs`, `disk`).
    pub dirs: Vec<(String, PathBuf)>,
}

/// One thing that can be measured.
pub struct Limit<'a> {
    /// What it is, with its sizes.
    pub name: String,
    run: Box<dyn Fn() -> io::Result<Measured> + 'a>,
}

impl Limit<'_> {
    /// Measures it once.
    ///
    /// # Errors
    /// When it cannot be measured; the text names the limit. `Unsupported`: this machine lacks what it takes.
    pub fn run(&self) -> io::Result<Measured> {
        (self.run)().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.name)))
    }
}

/// UDP payloads that the cost of encryption is measured at, in bytes.
const PACKETS: [usize; 7] = [1200, 1452, 4096, 6500, 8900, 16384, 65000];

/// Every limit, with these settings.
pub fn catalog(settings: &Settings) -> Vec<Limit<'_>> {
    let mut all = Catalog { limits: Vec::new(), bytes: settings.bytes };
    all.add("memcpy 1 MiB, cold", memory::copy_cold);
    all.add("memcpy 128 KiB, hot", memory::copy_hot);
    all.readings();
    for packet in PACKETS {
        all.add(format!("AES-128-GCM seal, {packet} B packets"), move |bytes| {
            codec::aead_seal(bytes, packet)
        });
    }
    for packet in PACKETS {
        all.add(format!("AES-128-GCM open, {packet} B packets"), move |bytes| {
            codec::aead_open(bytes, packet)
        });
    }
    all.add("BLAKE3, 1 MiB", codec::blake3_blocks);
    all.add("XXH3-128, 1 MiB", codec::xxh3_blocks);
    all.add("CRC-32, 1 MiB", codec::crc32_blocks);
    Content::value_variants().iter().for_each(|content| all.packing(*content));
    for (name, dir) in &settings.dirs {
        all.add(format!("pwrite 1 MiB, new file, {name}"), move |bytes| file::write(bytes, dir, false));
        all.add(format!("pwrite 1 MiB, space reserved, {name}"), move |bytes| file::write(bytes, dir, true));
    }
    all.add("UDP loopback, 1452 B, offload", |bytes| udp::send(bytes, udp::ETHERNET));
    all.add("UDP loopback, 8900 B, offload", |bytes| udp::send(bytes, 8900));
    let keys = settings.keys.as_path();
    all.add("TCP", |bytes| tcp::send(bytes, None, None));
    all.add("TCP + TLS 1.3", move |bytes| tcp::send(bytes, Some(keys), None));
    all.add("raw quinn", move |bytes| quic::send(bytes, keys, None));
    for (name, dir) in &settings.dirs {
        all.add(format!("TCP to a file, {name}"), move |bytes| {
            to_file(dir, |file| tcp::send(bytes, None, Some(file)))
        });
        all.add(format!("TCP + TLS 1.3 to a file, {name}"), move |bytes| {
            to_file(dir, |file| tcp::send(bytes, Some(keys), Some(file)))
        });
        all.add(format!("raw quinn to a file, {name}"), move |bytes| {
            to_file(dir, |file| quic::send(bytes, keys, Some(file)))
        });
    }
    all.limits
}

struct Catalog<'a> {
    limits: Vec<Limit<'a>>,
    bytes: u64,
}

impl<'a> Catalog<'a> {
    fn add(&mut self, name: impl Into<String>, run: impl Fn(u64) -> io::Result<Measured> + 'a) {
        let bytes = self.bytes;
        self.limits.push(Limit { name: name.into(), run: Box::new(move || run(bytes)) });
    }

    fn readings(&mut self) {
        for threads in [1, 2] {
            for call_kib in [64, 256, 1024] {
                let reading = Reading { call_len: call_kib << 10, threads, is_stopped: true };
                let name = format!("process_vm_readv {call_kib} KiB, stopped, {threads} thr.");
                self.add(name, move |bytes| memory::read_other(bytes, reading));
            }
        }
        for threads in [1, 2] {
            let reading = Reading { call_len: 1 << 20, threads, is_stopped: false };
            let name = format!("process_vm_readv 1024 KiB, running, {threads} thr.");
            self.add(name, move |bytes| memory::read_other(bytes, reading));
        }
    }

    fn packing(&mut self, content: Content) {
        for (codec, name) in [(Codec::Lz4, "lz4"), (Codec::Zstd, "zstd -1")] {
            for (unpacks, verb) in [(false, "pack"), (true, "unpack")] {
                self.add(format!("{name} 64 KiB {verb}, {}", value_name(&content)), move |bytes| {
                    codec::pack(codec, unpacks, bytes, &sample::of(content)?)
                });
            }
        }
    }
}

/// Gives a file to write to, and removes it.
fn to_file(dir: &Path, run: impl FnOnce(PathBuf) -> io::Result<Measured>) -> io::Result<Measured> {
    let dir = tempfile::tempdir_in(dir)?;
    run(dir.path().join("received"))
}
