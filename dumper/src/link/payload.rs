//! Payloads of frames: packed as the link asks for, in memory that is used again, and counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_page_server::store::sink::{Content, Takes};
use godwit_wire::error::Malformed;
use godwit_wire::frame::{Codec, Kind, Method, Packer, ShortHash, copy_table, same_payload};
use godwit_wire::plan::PAGE_SIZE;
use godwit_wire::version::{FEATURE_DELTA, FEATURE_LZ4, FEATURE_SAME, FEATURE_SPREAD, FEATURE_ZSTD};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::LinkOptions;
use super::pack::{Balance, Progress};
use crate::pool::Pool;

/// Buffers for packed pages, 1 MiB each. Where all are under way, payloads are copied into memory of their own.
const BUFFERS: usize = 16;
/// Where pages are packed, one zero page between others costs less within them than two frames more. Of eight the
/// server's time was twice that of the frames: it writes them.
const ZEROS_AS_DATA: u32 = 1;

/// The time to pack shorter blocks is not taken: to ask for it would take as long.
const TIMED_LEN: usize = 64 << 10;
/// Packing that takes so many times the time that its thread ran shares the processor.
const SHARED_FROM: f64 = 1.2;

/// When pages that the base round nearly holds are sent as what they differ in, and those that it holds by their hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Delta {
    /// While the link is slow enough for compression.
    #[default]
    Auto,
    /// Wherever it is possible.
    Always,
    /// Never.
    Never,
}

/// What went over a link of one kind of page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Frames.
    pub frames: u64,
    /// Bytes of the pages.
    pub page_bytes: u64,
    /// Bytes of payload that they took.
    pub payload_bytes: u64,
}

/// What went over a link, by the form of the pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shares {
    /// As they are.
    pub raw: Share,
    /// Packed by lz4.
    pub lz4: Share,
    /// Packed by zstd.
    pub zstd: Share,
    /// Zeros, which take no payload.
    pub zero: Share,
    /// By the hash of what the base round holds.
    pub same: Share,
    /// By what they differ in from the base round.
    pub delta: Share,
    /// Of further slots, by naming them in a frame that carries their pages: the frames that do, and what naming took.
    pub copies: Share,
}

impl Shares {
    /// All of them. Frames with copies are counted once.
    pub fn total(&self) -> Share {
        let frames = [self.raw, self.lz4, self.zstd, self.zero, self.same, self.delta];
        let copies = Share { frames: 0, ..self.copies };
        frames.iter().chain([&copies]).fold(Share::default(), |sum, one| Share {
            frames: sum.frames + one.frames,
            page_bytes: sum.page_bytes + one.page_bytes,
            payload_bytes: sum.payload_bytes + one.payload_bytes,
        })
    }
}

#[derive(Debug, Default)]
struct Counter {
    frames: AtomicU64,
    page_bytes: AtomicU64,
    payload_bytes: AtomicU64,
}

impl Counter {
    fn add(&self, pages: u64, payload: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.page_bytes.fetch_add(pages * PAGE_SIZE, Ordering::Relaxed);
        self.payload_bytes.fetch_add(payload as u64, Ordering::Relaxed);
    }

    fn share(&self) -> Share {
        Share {
            frames: self.frames.load(Ordering::Relaxed),
            page_bytes: self.page_bytes.load(Ordering::Relaxed),
            payload_bytes: self.payload_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Makes payloads.
#[derive(Debug)]
pub(super) struct Payloads {
    features: u64,
    delta: Delta,
    begun: Instant,
    balance: Mutex<Balance>,
    packing: PackingTime,
    /// Packers that no thread uses now.
    packers: Mutex<Vec<Packing>>,
    pool: Pool,
    /// By kind, and of data by codec.
    counters: [Counter; 6],
    copies: Counter,
}

#[derive(Debug, Default)]
struct Packing {
    packer: Packer,
    room: Vec<u8>,
}

/// Time that packing took since it was last asked for, in nanoseconds.
#[derive(Debug, Default)]
struct PackingTime {
    wall_ns: AtomicU64,
    thread_ns: AtomicU64,
}

impl PackingTime {
    fn note(&self, wall: Duration, thread: Duration) {
        self.wall_ns.fetch_add(wall.as_nanos() as u64, Ordering::Relaxed);
        self.thread_ns.fetch_add(thread.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether its threads had to share the processors, since the last time that this was asked.
    fn waited_for_a_processor(&self) -> bool {
        let (wall, thread) =
            (self.wall_ns.swap(0, Ordering::Relaxed), self.thread_ns.swap(0, Ordering::Relaxed));
        wall as f64 > thread as f64 * SHARED_FROM
    }
}

/// Time that this thread ran; zero where the kernel does not say.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What the content of a frame becomes.
pub(super) struct Made {
    pub(super) kind: Kind,
    pub(super) codec: Codec,
    /// What the payload begins with, if it is a frame with copies.
    pub(super) table: Vec<u8>,
    pub(super) payload: Bytes,
    pages: u64,
    copied: u64,
}

impl Payloads {
    pub(super) fn new(features: u64, options: &LinkOptions, is_local: bool) -> Self {
        let has = |bit: u64| features & bit != 0;
        let senders = options.senders.max(1);
        Payloads {
            features,
            delta: options.delta,
            begun: Instant::now(),
            balance: Mutex::new(Balance::new(
                options.compress,
                has(FEATURE_LZ4),
                has(FEATURE_ZSTD),
                senders,
                is_local,
            )),
            packing: PackingTime::default(),
            packers: Mutex::default(),
            pool: Pool::new(BUFFERS),
            counters: Default::default(),
            copies: Counter::default(),
        }
    }

    /// What is worth making for the link now.
    pub(super) fn takes(&self) -> Takes {
        let packs = lock(&self.balance).method().is_some();
        let is_wanted = match self.delta {
            Delta::Auto => packs,
            Delta::Always => true,
            Delta::Never => false,
        };
        Takes {
            same: is_wanted && self.features & FEATURE_SAME != 0,
            delta: is_wanted && self.features & FEATURE_DELTA != 0 && self.of_difference().is_some(),
            spread: self.features & FEATURE_SPREAD != 0,
            zeros_as_data: if packs { ZEROS_AS_DATA } else { 0 },
        }
    }

    /// Whether a kind of content may be sent at all.
    pub(super) fn may_send(&self, content: &Content) -> bool {
        match content {
            Content::Data(_) | Content::Zero { .. } => true,
            Content::Same { .. } => self.features & FEATURE_SAME != 0,
            Content::Spread { .. } => self.features & FEATURE_SPREAD != 0,
            Content::Delta { .. } => self.features & FEATURE_DELTA != 0 && self.of_difference().is_some(),
        }
    }

    /// How differences are packed; they always are.
    fn of_difference(&self) -> Option<Method> {
        let can_lz4 = self.features & FEATURE_LZ4 != 0;
        can_lz4.then_some(Method::Lz4)
    }

    /// The payload of some content.
    ///
    /// # Errors
    /// [`Malformed`] for copies that no frame can name.
    pub(super) fn make(&self, content: Content) -> Result<Made, Malformed> {
        let (pages, copied, mut table) = (content.pages(), content.copied(), Vec::new());
        let (kind, codec, payload) = match content {
            Content::Zero { .. } => (Kind::Zero, Codec::Raw, Bytes::new()),
            Content::Same { hashes } => (Kind::Same, Codec::Raw, same_payload(&hashes)),
            Content::Delta { bases, difference } => {
                let packed = self.pack(Method::Lz4, &bases, &difference, true).unwrap_or_default();
                (Kind::Delta, Codec::Lz4, packed)
            }
            Content::Data(bytes) => {
                let (codec, payload) = self.pack_data(bytes);
                (Kind::Data, codec, payload)
            }
            Content::Spread { bytes, copies } => {
                table = copy_table(&copies)?;
                let (codec, payload) = self.pack_data(bytes);
                (Kind::Spread, codec, payload)
            }
        };
        Ok(Made { kind, codec, table, payload, pages, copied })
    }

    /// Data as it is, or packed where that is worth it.
    fn pack_data(&self, bytes: Bytes) -> (Codec, Bytes) {
        let method = lock(&self.balance).method();
        match method.and_then(|method| Some((method, self.pack(method, &[], &bytes, false)?))) {
            Some((method, packed)) => (method.codec(), packed),
            None => (Codec::Raw, bytes),
        }
    }

    /// Packs a block behind some hashes. Of data `None` where that does not make it smaller.
    fn pack(&self, method: Method, hashes: &[ShortHash], block: &[u8], in_any_case: bool) -> Option<Bytes> {
        let mut packing = lock(&self.packers).pop().unwrap_or_default();
        let hashes = hashes.as_flattened();
        let mut pack = |room: &mut [u8]| {
            room[..hashes.len()].copy_from_slice(hashes);
            let room = &mut room[hashes.len()..];
            let packed = if in_any_case {
                packing.packer.pack_any(method, block, room)
            } else {
                packing.packer.pack(method, block, room)
            };
            packed.map(|packed| hashes.len() + packed)
        };
        let begun = (block.len() >= TIMED_LEN).then(|| (Instant::now(), thread_time()));
        let packed = match self.pool.spare(0) {
            Some(mut room) => pack(&mut room).map(|len| room.freeze(len)),
            None => {
                let needs = hashes.len() + Packer::room_for(block.len());
                packing.room.resize(needs.max(packing.room.len()), 0);
                pack(&mut packing.room).map(|len| Bytes::copy_from_slice(&packing.room[..len]))
            }
        };
        if let Some((wall, thread)) = begun {
            self.packing.note(wall.elapsed(), thread_time().saturating_sub(thread));
        }
        lock(&self.packers).push(packing);
        packed
    }

    /// Notes what was handed to the link, and how long that waited. `progress` says what the link did so far.
    pub(super) fn note(&self, made: &Sent, waited: Duration, progress: impl FnOnce() -> Progress) {
        let counter = match (made.kind, made.codec) {
            (Kind::Data | Kind::Spread, Codec::Raw) => 0,
            (Kind::Data | Kind::Spread, Codec::Lz4) => 1,
            (Kind::Data | Kind::Spread, Codec::Zstd) => 2,
            (Kind::Zero, _) => 3,
            (Kind::Same, _) => 4,
            (Kind::Delta, _) => 5,
        };
        self.counters[counter].add(made.pages, made.payload_len);
        if made.copied > 0 {
            self.copies.add(made.copied, made.table_len);
        }
        if matches!(made.kind, Kind::Data | Kind::Spread) {
            let pages = (made.pages * PAGE_SIZE) as usize;
            let mut balance = lock(&self.balance);
            if balance.note(self.begun.elapsed(), pages, made.payload_len, waited) {
                let now = self.begun.elapsed();
                balance.turn(now, progress(), self.packing.waited_for_a_processor());
            }
        }
    }

    /// A round begins.
    pub(super) fn rest(&self, progress: Progress) {
        let now = self.begun.elapsed();
        self.packing.waited_for_a_processor();
        lock(&self.balance).rest(now, progress);
    }

    /// What was handed over so far.
    pub(super) fn shares(&self) -> Shares {
        let [raw, lz4, zstd, zero, same, delta] = self.counters.each_ref().map(Counter::share);
        Shares { raw, lz4, zstd, zero, same, delta, copies: self.copies.share() }
    }
}

/// What is left to count of a payload that is sent.
pub(super) struct Sent {
    kind: Kind,
    codec: Codec,
    pages: u64,
    copied: u64,
    /// Of the pages, without the table.
    payload_len: usize,
    table_len: usize,
}

impl Made {
    pub(super) fn sent(&self) -> Sent {
        let (payload_len, table_len) = (self.payload.len(), self.table.len());
        let Made { kind, codec, pages, copied, .. } = *self;
        Sent { kind, codec, pages, copied, payload_len, table_len }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use godwit_wire::frame::{CopyTo, Payload};

    use super::*;

    #[test]
    fn packing_that_takes_longer_than_its_thread_ran_waited() {
        let time = PackingTime::default();
        assert!(!time.waited_for_a_processor(), "nothing was packed");
        time.note(Duration::from_micros(1100), Duration::from_micros(1000));
        assert!(!time.waited_for_a_processor());
        time.note(Duration::from_micros(1500), Duration::from_micros(1000));
        assert!(time.waited_for_a_processor());
        assert!(!time.waited_for_a_processor(), "it is counted anew");
        let before = thread_time();
        assert!(before > Duration::ZERO && thread_time() >= before);
    }

    #[test]
    fn forms_are_counted_apart_and_unpack_to_what_they_were() {
        let options =
            LinkOptions { compress: super::super::Compress::Always(Method::Lz4), ..LinkOptions::default() };
        let payloads = Payloads::new(godwit_wire::version::FEATURES, &options, false);
        let text = Bytes::from(b"godwit! ".repeat(4096));
        let difference = Bytes::from(vec![0; 4096]);
        let copies = vec![CopyTo { at: 2, pages: 6, pages_id: 7, first_slot: 250 }];
        let contents = [
            Content::Data(text.clone()),
            Content::Zero { pages: 3 },
            Content::Same { hashes: vec![[7; 16]] },
            Content::Delta { bases: vec![[9; 16]], difference: difference.clone() },
            Content::Spread { bytes: text.clone(), copies: copies.clone() },
        ];
        for content in contents {
            assert!(payloads.may_send(&content));
            let made = payloads.make(content.clone()).unwrap();
            let header = godwit_wire::frame::FrameHeader {
                round: 1,
                epoch: 1,
                pages_id: 1,
                first_slot: 0,
                pages: content.pages() as u32,
                kind: made.kind,
                codec: made.codec,
                length: 0,
                checksum: 0,
            };
            let header = header.with_parts(made.codec, &[&made.table, &made.payload]).unwrap();
            payloads.note(&made.sent(), Duration::ZERO, Progress::default);
            let payload = Bytes::from([&made.table[..], &made.payload].concat());
            match (header.unpack(payload).unwrap(), content) {
                (Payload::Data(bytes), Content::Data(text)) => assert_eq!(bytes, text),
                (Payload::Zero, Content::Zero { .. }) => {}
                (Payload::Same(found), Content::Same { hashes }) => assert_eq!(found, hashes),
                (Payload::Delta { bases, difference: found }, Content::Delta { .. }) => {
                    assert_eq!((bases, found), (vec![[9; 16]], difference.clone()));
                }
                (Payload::Spread { pages, copies: found }, Content::Spread { .. }) => {
                    assert_eq!((pages, found), (text.clone(), copies.clone()));
                }
                (payload, content) => panic!("{payload:?} of {content:?}"),
            }
        }
        let shares = payloads.shares();
        let pages =
            [shares.lz4, shares.zero, shares.same, shares.delta].map(|share| share.page_bytes / PAGE_SIZE);
        assert_eq!(pages, [16, 3, 1, 1], "those of the frame with copies are data too");
        assert_eq!(shares.copies, Share { frames: 1, page_bytes: 6 * PAGE_SIZE, payload_bytes: 20 });
        assert_eq!((shares.raw, shares.zstd), (Share::default(), Share::default()));
        assert_eq!((shares.total().frames, shares.total().page_bytes), (5, 27 * PAGE_SIZE));
        assert!(shares.lz4.payload_bytes < 2000 && shares.same.payload_bytes == 16);
    }
}
