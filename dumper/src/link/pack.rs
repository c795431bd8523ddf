//! How pages are packed: as hard as the link is slow.
//!
//! Four ways, from light to hard: as they are, lz4, zstd of level 1, zstd of level 3. Pages are counted by windows. While the link is what everyone
//! waits for, a harder way is tried; while it waits for the packing, or packing itself waits for a processor (which
//! the link's own threads then do too, and the other side's where that is the same machine), a lighter one. What each way moved in its last
//! windows, in bytes of pages per second that arrived, is remembered for a while, so that a way which was tried and moved
//! less is not tried over and over. Of two that move the same the harder one is taken: it leaves the link to others. A link that leaves the host begins with zstd of level 1, which heaps of programs are packed by to three
//! quarters of what lz4 leaves, since a slow link would take long to show what a wrong first guess costs; one within the
//! host begins with pages as they are.

use std::time::Duration;

use godwit_wire::frame::Method;

/// Whether and how pages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compress {
    /// By lz4 or zstd, as it pays on this link.
    #[default]
    Auto,
    /// Every block that shrinks, by this.
    Always(Method),
    /// Never.
    Never,
}

impl std::str::FromStr for Compress {
    type Err = String;

    /// `auto`, `never`, `lz4`, `zstd` (level 3) or `zstd:LEVEL`.
    fn from_str(text: &str) -> Result<Compress, String> {
        let levels = Method::LEVEL_MIN..=Method::LEVEL_MAX;
        match text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level))) {
            ("auto", None) => Ok(Compress::Auto),
            ("never", None) => Ok(Compress::Never),
            ("lz4", None) => Ok(Compress::Always(Method::Lz4)),
            ("zstd", None) => Ok(Compress::Always(Method::Zstd(ZSTD_DEFAULT))),
            ("zstd", Some(level)) => match level.parse() {
                Ok(level) if levels.contains(&level) => Ok(Compress::Always(Method::Zstd(level))),
                _ => {
                    Err(format!("{level:?} is no level of zstd from {} to {}", levels.start(), levels.end()))
                }
            },
            _ => Err("it is auto, lz4, zstd, zstd:LEVEL or never".to_owned()),
        }
    }
}

/// Level of zstd where one is asked for without a level: zstd's own default.
const ZSTD_DEFAULT: i32 = 3;
/// Levels of zstd that are taken by themselves. Heaps of CPython, sqlite and redis are packed to 0.23, 0.34 and 0.36 by
/// level 1, to 0.22, 0.32 and 0.34 by level 3 in 1.3 times its time; to 0.24, 0.38 and 0.40 by level -1, which is hardly
/// faster on them, and to 0.35, 0.47 and 0.49 by lz4 in 0.8 of its time.
const ZSTD_FAST: i32 = 1;
const ZSTD_HARD: i32 = ZSTD_DEFAULT;
/// A window: so many bytes of pages, and at least so long.
const WINDOW_BYTES: u64 = 16 << 20;
const WINDOW_MIN: Duration = Duration::from_millis(10);
/// Bytes of pages after which a way that was left is worth another try.
const FORGET_BYTES: u64 = 1 << 30;
/// A queue of more than so many blocks a sender says that the link is what everyone waits for.
const QUEUE_BLOCKS: f64 = 2.0;
/// As much is on its way in any case.
const QUEUE_MIN_BYTES: f64 = (256 << 10) as f64;
/// So large a part of the senders' time spent in waiting for the link says the same.
const WAITING_SHARE: f64 = 0.3;
/// A link that takes less than so many bytes a second does so whatever the processors do: a little more than 1 Gbit/s. One
/// within the host that takes more does so as fast as they can, and packing takes them from it.
const STARVED_MIN_RATE: f64 = (130 << 20) as f64;
/// A way that is known to move so much more is taken before one is tried that nobody knows.
const FAR_BETTER: f64 = 1.3;
/// A harder way is taken where it moves as much: it takes less of the link.
const HARDER_GAIN: f64 = 1.0;
/// A lighter way is taken where it moves so much more.
const LIGHTER_GAIN: f64 = 1.1;
/// A lighter way that nobody knows is tried after so many windows: in the first the link is still getting going.
const LIGHTER_WINDOWS: u32 = 2;
/// After so many windows of one way its record is that of all of them, the later ones counting more.
const STEADY_WINDOWS: u32 = 2;
/// More than so many blocks that stand in queues of the network say that the link is full.
const ON_THE_WAY_BLOCKS: f64 = 2.0;

/// The ways, from light to hard.
const WAYS: usize = 4;
const RAW: usize = 0;
const LZ4: usize = 1;
const FAST: usize = 2;

/// What the link did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Progress {
    /// Bytes of payload that left this machine since it was opened.
    pub(super) sent_bytes: u64,
    /// By how much the way takes longer than at its best: time that packets stand in queues of the network.
    pub(super) queueing: Duration,
}

/// Frames of a window.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    begun: Duration,
    blocks: u32,
    pages_bytes: u64,
    payload_bytes: u64,
    waited: Duration,
    /// Of the link, when it began.
    sent_bytes: u64,
    /// Bytes that stood in queues of the network then, about.
    on_the_way: f64,
}

/// Which way is taken.
#[derive(Debug)]
pub(super) struct Balance {
    mode: Compress,
    /// The hardest way that both sides can.
    hardest: usize,
    /// The link stays within the host.
    is_local: bool,
    senders: f64,
    way: usize,
    /// Windows of this way in a row.
    windows: u32,
    window: Window,
    /// Bytes handed over and not yet on the wire, about.
    queue: f64,
    /// What each way moved, in bytes of pages per second, and how many bytes of pages ago.
    moved: [Option<(f64, u64)>; WAYS],
}

impl Balance {
    /// `senders` threads hand pages over, to a link that leaves the host or does not.
    pub(super) fn new(mode: Compress, has_lz4: bool, has_zstd: bool, senders: usize, is_local: bool) -> Self {
        let mode = match mode {
            Compress::Always(Method::Zstd(_)) if !has_zstd && has_lz4 => Compress::Always(Method::Lz4),
            Compress::Always(Method::Zstd(_)) if !has_zstd => Compress::Never,
            Compress::Always(Method::Lz4) | Compress::Auto if !has_lz4 => Compress::Never,
            mode => mode,
        };
        Balance {
            mode,
            hardest: if has_zstd { WAYS - 1 } else { LZ4 },
            is_local,
            senders: senders.max(1) as f64,
            way: match (is_local, has_zstd) {
                (true, _) => RAW,
                (false, true) => FAST,
                (false, false) => LZ4,
            },
            windows: 0,
            window: Window::default(),
            queue: 0.0,
            moved: [None; WAYS],
        }
    }

    /// How the next block is packed.
    pub(super) fn method(&self) -> Option<Method> {
        match (self.mode, self.way) {
            (Compress::Never, _) | (Compress::Auto, RAW) => None,
            (Compress::Always(method), _) => Some(method),
            (Compress::Auto, LZ4) => Some(Method::Lz4),
            (Compress::Auto, FAST) => Some(Method::Zstd(ZSTD_FAST)),
            (Compress::Auto, _) => Some(Method::Zstd(ZSTD_HARD)),
        }
    }

    /// Notes a block: its length, that of its payload, and the time that its sender waited for the link. Says whether
    /// the window is full, so that [`Balance::turn`] is to be called.
    pub(super) fn note(&mut self, now: Duration, pages: usize, payload: usize, waited: Duration) -> bool {
        let window = &mut self.window;
        window.blocks += 1;
        window.pages_bytes += pages as u64;
        window.payload_bytes += payload as u64;
        window.waited += waited;
        self.mode == Compress::Auto
            && window.pages_bytes >= WINDOW_BYTES
            && now.saturating_sub(window.begun) >= WINDOW_MIN
    }

    /// Begins to count anew: nothing was sent for a while.
    pub(super) fn rest(&mut self, now: Duration, progress: Progress) {
        self.window = Window { begun: now, sent_bytes: progress.sent_bytes, ..Window::default() };
        self.queue = 0.0;
    }

    /// A window is full, and the link did so much by now. Packing waited for a processor or did not.
    pub(super) fn turn(&mut self, now: Duration, progress: Progress, is_starved: bool) {
        let window = self.window;
        let took = now.saturating_sub(window.begun).as_secs_f64().max(1e-6);
        let (pages, payload) = (window.pages_bytes.max(1) as f64, window.payload_bytes.max(1) as f64);
        let block = payload / f64::from(window.blocks.max(1));
        let drained = progress.sent_bytes.saturating_sub(window.sent_bytes) as f64;
        let on_the_way = progress.queueing.as_secs_f64() * drained / took;
        self.window = Window { begun: now, sent_bytes: progress.sent_bytes, on_the_way, ..Window::default() };
        self.windows += 1;
        self.queue = (self.queue + payload - drained).max(0.0);
        let is_queue = QUEUE_MIN_BYTES + QUEUE_BLOCKS * self.senders * block;
        let waiting = (window.waited.as_secs_f64() / (took * self.senders)).min(1.0);
        let link_is_full = self.queue > is_queue
            || on_the_way > QUEUE_MIN_BYTES.max(ON_THE_WAY_BLOCKS * block)
            || waiting > WAITING_SHARE;
        // What counts is what arrives, not the rate at which queues grow here or in the network; behind a queue that
        // a lighter way has left, what is made.
        let made = pages / (took * (1.0 - waiting)).max(1e-6);
        let arrived = (drained + window.on_the_way - on_the_way).max(0.0);
        let now_moved = made.min(arrived / took * (pages / payload));
        let moved = match self.moved[self.way] {
            Some((before, _)) if self.windows > STEADY_WINDOWS => (before + now_moved) / 2.0,
            _ => now_moved,
        };
        for (_, ago) in self.moved.iter_mut().flatten() {
            *ago += window.pages_bytes;
        }
        self.moved[self.way] = Some((moved, 0));
        let is_starved = (is_starved || self.is_local) && drained / took > STARVED_MIN_RATE;
        if let Some(better) = self.better(moved, link_is_full && !is_starved) {
            let mib_per_s = (moved / f64::from(1 << 20)) as u64;
            tracing::debug!(
                from = self.way,
                to = better,
                mib_per_s,
                link_is_full,
                is_starved,
                "another way of packing"
            );
            self.way = better;
            self.windows = 0;
        }
    }

    /// A way that is known to move more, or that nobody knows and that lies where more is to be had.
    fn better(&self, moved: f64, waits_for_link: bool) -> Option<usize> {
        let gain = |way: usize| if way > self.way { HARDER_GAIN } else { LIGHTER_GAIN };
        let known = |way: usize| {
            self.moved
                .get(way)
                .copied()
                .flatten()
                .filter(|(_, ago)| *ago < FORGET_BYTES)
                .map(|(moved, _)| moved)
        };
        let others = || (0..=self.hardest).filter(|way| *way != self.way);
        let best =
            others().filter_map(|way| Some((way, known(way)?))).max_by(|one, two| one.1.total_cmp(&two.1));
        let lighter = || self.way.checked_sub(1).filter(|_| self.windows >= LIGHTER_WINDOWS);
        let next = if waits_for_link { Some(self.way + 1) } else { lighter() };
        // Where the last step to a lighter way gained nothing, something else is what everyone waits for.
        let is_hopeless =
            !waits_for_link && known(self.way + 1).is_some_and(|harder| moved < harder * LIGHTER_GAIN);
        let unknown = next.filter(|next| *next <= self.hardest && !is_hopeless && known(*next).is_none());
        let known_better = |gain: &dyn Fn(usize) -> f64| {
            best.filter(|(way, other)| *other > moved * gain(*way)).map(|(way, _)| way)
        };
        known_better(&|_| FAR_BETTER).or(unknown).or_else(|| known_better(&gain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = (1 << 20) as f64;

    /// A link and the threads before it, in steps of a block: what `godwit` would see of them.
    struct Model {
        /// Bytes a second that the link takes.
        link: f64,
        /// Bytes of pages a second that all senders together make, by way.
        make: [f64; WAYS],
        /// Length of a payload over that of its pages, by way.
        ratio: [f64; WAYS],
        /// Bytes that the link lets wait.
        window: f64,
        /// Bytes that may stand in queues of the network.
        hidden: f64,
        /// Both share too few processors.
        is_starved: bool,
        now: f64,
        queue: f64,
        sent: f64,
    }

    impl Model {
        fn new(link_mib: f64, make_mib: [f64; WAYS], ratio: [f64; WAYS]) -> Model {
            let make = make_mib.map(|rate| rate * MIB);
            let (link, window) = (link_mib * MIB, 64.0 * MIB);
            Model {
                link,
                make,
                ratio,
                window,
                hidden: 0.0,
                is_starved: false,
                now: 0.0,
                queue: 0.0,
                sent: 0.0,
            }
        }

        fn pass(&mut self, seconds: f64) {
            let drained = (self.link * seconds).min(self.queue);
            (self.now, self.queue, self.sent) =
                (self.now + seconds, self.queue - drained, self.sent + drained);
        }

        fn progress(&self) -> Progress {
            let hidden = self.queue.min(self.hidden);
            let queueing = Duration::from_secs_f64(hidden / self.link);
            Progress { sent_bytes: (self.sent + hidden) as u64, queueing }
        }

        /// Sends so many MiB; returns how many bytes of pages went by each way.
        fn send(&mut self, balance: &mut Balance, mib: u32) -> [f64; WAYS] {
            let mut by_way = [0.0; WAYS];
            let time = |at: f64| Duration::from_secs_f64(at);
            for _ in 0..mib {
                let way = balance.way;
                by_way[way] += MIB;
                self.pass(MIB / self.make[way]);
                let payload = MIB * self.ratio[way];
                let over = self.queue + payload - self.window;
                let waited = if over > 0.0 { over / self.link } else { 0.0 };
                self.pass(waited);
                self.queue += payload;
                // Both senders wait while the link takes nothing.
                if balance.note(time(self.now), MIB as usize, payload as usize, time(waited * 2.0)) {
                    balance.turn(time(self.now), self.progress(), self.is_starved);
                }
            }
            by_way
        }
    }

    fn auto() -> Balance {
        Balance::new(Compress::Auto, true, true, 2, false)
    }

    fn within_the_host() -> Balance {
        Balance::new(Compress::Auto, true, true, 2, true)
    }

    /// Of a heap of many objects: rates of two senders, and what packing leaves of it.
    const HEAP: ([f64; WAYS], [f64; WAYS]) = ([2600.0, 1300.0, 950.0, 700.0], [1.0, 0.29, 0.16, 0.15]);

    #[test]
    fn a_slow_link_packs_from_the_first_block_on_and_harder_soon() {
        for link in [1.25, 12.0, 60.0, 118.0] {
            let mut model = Model::new(link, HEAP.0, HEAP.1);
            let [raw, lz4, fast, hard] = model.send(&mut auto(), 1024);
            // One window may go by before the link is full.
            assert!(raw == 0.0 && lz4 <= 16.0 * MIB, "{link} MiB/s: {lz4} by lz4");
            assert!(fast + hard > 1000.0 * MIB, "{link} MiB/s");
        }
    }

    #[test]
    fn what_stands_in_queues_of_the_network_did_not_arrive() {
        // A lighter way fills them at its own rate and seems to move that.
        for hidden in [1.0, 4.0, 16.0] {
            let mut model = Model::new(118.0, [2600.0, 420.0, 330.0, 250.0], [1.0, 0.49, 0.36, 0.34]);
            model.hidden = hidden * MIB;
            let [raw, lz4, ..] = model.send(&mut auto(), 1024);
            assert!(raw + lz4 <= 48.0 * MIB, "{hidden} MiB: {raw} as they are, {lz4} by lz4");
        }
    }

    #[test]
    fn a_link_that_is_faster_than_packing_gets_pages_as_they_are() {
        // What one machine with both ends on two cores does: packing takes the time of the link's own threads.
        for mut balance in [auto(), within_the_host()] {
            let mut model = Model::new(1100.0, [2600.0, 700.0, 450.0, 300.0], HEAP.1);
            let by_way = model.send(&mut balance, 4096);
            assert!(by_way[RAW] > 3900.0 * MIB, "{by_way:?}");
        }
    }

    #[test]
    fn a_link_that_is_slow_for_want_of_a_processor_is_tried_without_packing() {
        // With packing before it the link would take 140 MiB/s, without it 700.
        let mut model = Model::new(140.0, [2600.0, 500.0, 350.0, 300.0], HEAP.1);
        let mut balance = auto();
        model.is_starved = true;
        let mut raw = 0.0;
        for _ in 0..1024 {
            model.link = if balance.method().is_some() { 140.0 } else { 700.0 } * MIB;
            raw += model.send(&mut balance, 1)[RAW];
        }
        assert!(raw > 900.0 * MIB, "{raw} as they are");
    }

    #[test]
    fn between_them_lz4_is_right() {
        // 5 Gbit/s.
        let mut model = Model::new(590.0, HEAP.0, HEAP.1);
        let by_way = model.send(&mut auto(), 2048);
        assert!(by_way[LZ4] > 1800.0 * MIB, "{by_way:?}");
    }

    #[test]
    fn what_does_not_shrink_costs_no_turns_and_what_follows_is_packed() {
        let mut model = Model::new(118.0, [2600.0, 2500.0, 2500.0, 2500.0], [1.0; WAYS]);
        let mut balance = auto();
        model.send(&mut balance, 512);
        let lz4_or_zstd = balance.method().is_some();
        (model.make, model.ratio) = (HEAP.0.map(|rate| rate * MIB), HEAP.1);
        let [raw, ..] = model.send(&mut balance, 1024);
        assert!(lz4_or_zstd && raw <= 32.0 * MIB, "{raw} as they are");
    }

    #[test]
    fn a_link_that_becomes_slow_is_noticed() {
        let mut model = Model::new(1100.0, [2600.0, 700.0, 450.0, 300.0], HEAP.1);
        let mut balance = auto();
        model.send(&mut balance, 512);
        assert_eq!(balance.method(), None);
        model.link = 118.0 * MIB;
        let [raw, ..] = model.send(&mut balance, 1024);
        assert!(raw < 150.0 * MIB, "{raw} as they are");
    }

    #[test]
    fn within_the_host_only_a_slow_link_is_packed_for() {
        let mut model = Model::new(480.0, [2600.0, 900.0, 600.0, 400.0], HEAP.1);
        let [raw, ..] = model.send(&mut within_the_host(), 1024);
        assert!(raw == 1024.0 * MIB, "{raw} as they are");
        let mut model = Model::new(60.0, HEAP.0, HEAP.1);
        let [raw, ..] = model.send(&mut within_the_host(), 1024);
        assert!(raw < 100.0 * MIB, "{raw} as they are");
    }

    #[test]
    fn what_was_asked_for_is_done_as_far_as_both_sides_can() {
        let method = |mode, lz4, zstd| Balance::new(mode, lz4, zstd, 1, false).method();
        let zstd = Compress::Always(Method::Zstd(7));
        assert_eq!(method(zstd, true, true), Some(Method::Zstd(7)));
        assert_eq!(method(zstd, true, false), Some(Method::Lz4));
        assert_eq!(method(zstd, false, false), None);
        assert_eq!(method(Compress::Auto, false, true), None);
        assert_eq!(method(Compress::Never, true, true), None);
        let mut without = Balance::new(Compress::Auto, true, false, 2, false);
        Model::new(12.0, HEAP.0, HEAP.1).send(&mut without, 256);
        assert_eq!(without.method(), Some(Method::Lz4));
    }

    #[test]
    fn words_of_the_command_line() {
        let parse = |text: &str| text.parse::<Compress>();
        assert_eq!(parse("auto"), Ok(Compress::Auto));
        assert_eq!(parse("never"), Ok(Compress::Never));
        assert_eq!(parse("lz4"), Ok(Compress::Always(Method::Lz4)));
        assert_eq!(parse("zstd"), Ok(Compress::Always(Method::Zstd(3))));
        assert_eq!(parse("zstd:-7"), Ok(Compress::Always(Method::Zstd(-7))));
        assert_eq!(parse("zstd:19"), Ok(Compress::Always(Method::Zstd(19))));
        assert!(["", "gzip", "zstd:20", "zstd:-8", "zstd:", "lz4:1"].iter().all(|text| parse(text).is_err()));
    }
}
