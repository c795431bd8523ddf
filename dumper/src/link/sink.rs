//! Rounds over the link: the page server as a [`Sink`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_page_server::store::sink::{Content, Fill, Sealed, Sink, SinkError, Takes};
use godwit_wire::control::{Resend, SessionOpened};
use godwit_wire::error::Malformed;
use godwit_wire::frame::{Codec, FrameHeader, Join, Kind, SECRET_LEN, Secret, SessionId};
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{PAGE_SIZE, RoundPlan};
use godwit_wire::quic::{self, Connection, LaneSender};
use godwit_wire::session::{Reply, Request, SealRequest};

use super::Link;
use super::error::LinkError;
use super::pack::Progress;
use super::payload::{Payloads, Shares};

/// What QUIC and TLS add to each packet, at the least: a short header, the tag, and the header of a stream frame.
const PACKET_OVERHEAD: u64 = 35;

/// A session at a page server, as a place for rounds. Fills may come from several threads; each takes a lane that
/// is free.
pub struct RemoteSink {
    link: Link,
    name: String,
    opened: SessionOpened,
    lanes: Vec<Mutex<LaneSender>>,
    /// Connections besides that of the link.
    further: Vec<Connection>,
    next_lane: AtomicUsize,
    round: Mutex<Round>,
    payloads: Payloads,
    frames: AtomicU64,
}

#[derive(Default)]
struct Round {
    number: u32,
    epoch: u32,
    /// Slots that the server wants as data, not yet told to the caller.
    wants: VecDeque<(u32, Vec<Range<u64>>)>,
}

/// What went over a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// What went over it by the form of the pages.
    pub shares: Shares,
    /// UDP payload sent, over all connections, in bytes.
    pub sent_bytes: u64,
    /// UDP payload received, over all connections, in bytes.
    pub received_bytes: u64,
    /// Packets believed lost.
    pub lost_packets: u64,
    /// UDP payload of a full packet, in bytes.
    pub mtu_bytes: u16,
    /// Packets that are sent in one call; 1 without segmentation offload.
    pub segments: usize,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

impl Drop for RemoteSink {
    fn drop(&mut self) {
        // That of the link says how the session ended; these have nothing to add.
        self.further.iter().for_each(Connection::part);
    }
}

impl RemoteSink {
    pub(super) fn open(link: Link, name: String, opened: SessionOpened) -> Result<Self, LinkError> {
        let inner = &link.inner;
        let wanted = inner.options.connections.clamp(1, opened.lanes_max.max(1));
        let mut further = Vec::new();
        for _ in 1..wanted {
            further.push(quic::connect(&inner.address, &inner.identity, &inner.options.tuning)?);
        }
        let mut secret = [0; SECRET_LEN];
        if opened.secret.len() == SECRET_LEN {
            secret.copy_from_slice(&opened.secret);
        }
        let mut lanes = Vec::new();
        for (lane, connection) in std::iter::once(&inner.connection).chain(&further).enumerate() {
            let mut sender = connection.open_lane()?;
            let (session_id, secret) = (SessionId(opened.session_id), Secret(secret));
            sender.join(&Join { session_id, secret, lane: lane as u32, epoch: opened.epoch })?;
            lanes.push(Mutex::new(sender));
        }
        let features = link.server().features;
        Ok(RemoteSink {
            payloads: Payloads::new(features, &inner.options, inner.connection.is_local()),
            link,
            name,
            opened,
            lanes,
            further,
            next_lane: AtomicUsize::new(0),
            round: Mutex::default(),
            frames: AtomicU64::new(0),
        })
    }

    /// The link, for the hand-over.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Name of the session: the manifest's `session`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Id of the session: names the journals at both sides.
    pub fn session_id(&self) -> SessionId {
        SessionId(self.opened.session_id)
    }

    /// What the server said when it opened the session: its directory, whether both ends run on one kernel, which
    /// rounds are sealed there.
    pub fn opened(&self) -> &SessionOpened {
        &self.opened
    }

    /// What went over the link so far.
    pub fn counters(&self) -> LinkCounters {
        let first = self.link.stats();
        let mut sum = LinkCounters {
            shares: self.payloads.shares(),
            rtt: first.rtt,
            mtu_bytes: first.mtu_bytes,
            segments: self.link.facts().send_segments,
            ..LinkCounters::default()
        };
        for stats in std::iter::once(first).chain(self.further.iter().map(Connection::stats)) {
            sum.sent_bytes += stats.sent_bytes;
            sum.received_bytes += stats.received_bytes;
            sum.lost_packets += stats.lost_packets;
        }
        sum
    }

    /// Sends one frame on a free lane.
    fn send(&self, header: FrameHeader, content: Content) -> Result<(), LinkError> {
        let misfit = |why: Malformed| LinkError::Frame { round: header.round, source: why };
        let made = self.payloads.make(content).map_err(misfit)?;
        let sent = made.sent();
        let header = FrameHeader { kind: made.kind, ..header };
        let header = header.with_parts(made.codec, &[&made.table, &made.payload]).map_err(misfit)?;
        let sending = Instant::now();
        self.free_lane()
            .send_parts(&header, &made.table, made.payload)
            .map_err(|error| self.link.inner.lane_lost(header.round, error))?;
        self.payloads.note(&sent, sending.elapsed(), || self.progress());
        self.frames.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Of all connections: bytes that left this machine so far, without what each packet needs for itself, and the
    /// longest time that packets stand in queues.
    fn progress(&self) -> Progress {
        let all = std::iter::once(self.link.stats()).chain(self.further.iter().map(Connection::stats));
        all.fold(Progress::default(), |sum, stats| {
            let overhead = stats.sent_bytes * PACKET_OVERHEAD / u64::from(stats.mtu_bytes).max(1200);
            Progress {
                sent_bytes: sum.sent_bytes + stats.sent_bytes.saturating_sub(overhead),
                queueing: sum.queueing.max(stats.rtt.saturating_sub(stats.min_rtt)),
            }
        })
    }

    /// The first lane from a rotating start that nobody uses, else the one at the start.
    fn free_lane(&self) -> MutexGuard<'_, LaneSender> {
        let start = self.next_lane.fetch_add(1, Ordering::Relaxed);
        let lane = |at: usize| &self.lanes[(start.wrapping_add(at)) % self.lanes.len()];
        (0..self.lanes.len()).find_map(|at| lane(at).try_lock().ok()).unwrap_or_else(|| lock(lane(0)))
    }

    fn resend(&self, resend: Resend) -> Option<SinkError> {
        let mut round = lock(&self.round);
        round.epoch = resend.epoch;
        self.frames.store(0, Ordering::Release);
        let wants = resend.wants.into_iter().map(|want| {
            let slots = want.slots.iter().map(|slots| slots.first..slots.first.saturating_add(slots.count));
            (want.pages_id, slots.collect())
        });
        round.wants = wants.collect();
        round.next_want()
    }
}

impl Round {
    fn next_want(&mut self) -> Option<SinkError> {
        let (pages_id, slots) = self.wants.pop_front()?;
        Some(SinkError::WantData { round: self.number, pages_id, slots })
    }
}

impl Sink for RemoteSink {
    fn begin(&self, plan: &RoundPlan) -> Result<(), SinkError> {
        let inner = &self.link.inner;
        let reply = inner.call(Request::Begin(plan.clone()), inner.options.limits.request).map_err(broken)?;
        match reply {
            Reply::RoundAccepted(accepted) => {
                let (number, epoch) = (accepted.round, accepted.epoch);
                *lock(&self.round) = Round { number, epoch, wants: VecDeque::new() };
                self.frames.store(0, Ordering::Release);
                self.payloads.rest(self.progress());
                Ok(())
            }
            Reply::RoundFailed(failed) => Err(broken(inner.round_failed(&failed))),
            other => Err(broken(inner.unexpected(&other))),
        }
    }

    fn fill(&self, fill: Fill) -> Result<(), SinkError> {
        let Fill { round, pages_id, first_slot, content } = fill;
        let refused = |why: &str| Err(SinkError::Refused { round, why: why.to_owned() });
        let pages = content.pages();
        if let Content::Data(bytes) | Content::Spread { bytes, .. } = &content
            && bytes.len() as u64 != pages * PAGE_SIZE
        {
            return refused("data that is no whole number of pages");
        }
        if !self.payloads.may_send(&content) {
            return refused("the page server does not take pages in this form");
        }
        let epoch = {
            let open = lock(&self.round);
            if open.number != round {
                return refused("it is not open");
            }
            open.epoch
        };
        self.link.inner.check_round(round).map_err(broken)?;
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let (kind, codec, length, checksum) = (Kind::Zero, Codec::Raw, 0, 0); // said by what is made of it
        let header = FrameHeader { round, epoch, pages_id, first_slot, pages, kind, codec, length, checksum };
        self.send(header, content).map_err(broken)
    }

    fn takes(&self) -> Takes {
        self.payloads.takes()
    }

    fn check_round(&self, round: u32) -> Result<(), SinkError> {
        self.link.inner.check_round(round).map_err(broken)
    }

    fn image(&self, round: u32, name: &str, bytes: Bytes) -> Result<(), SinkError> {
        self.link.inner.check_round(round).map_err(broken)?;
        let refused = |why: String| SinkError::Refused { round, why };
        godwit_wire::session::name::check_image(name).map_err(|why| refused(why.to_string()))?;
        if bytes.len() as u64 > godwit_wire::session::IMAGE_LEN_MAX {
            return Err(refused(format!(
                "{name} is {} bytes long, above the limit of the protocol",
                bytes.len()
            )));
        }
        let image = Request::Image { round, name: name.to_owned(), bytes };
        self.link.inner.send(image).map(drop).map_err(broken)
    }

    fn seal(&self, round: u32, manifest: &Manifest) -> Result<Sealed, SinkError> {
        let inner = &self.link.inner;
        inner.check_round(round).map_err(broken)?;
        let epoch = {
            let mut open = lock(&self.round);
            if let Some(want) = open.next_want() {
                return Err(want);
            }
            open.epoch
        };
        let manifest = manifest.encode().map_err(|why| SinkError::Refused { round, why: why.to_string() })?;
        let frames = self.frames.load(Ordering::Acquire);
        let seal = Request::Seal(SealRequest { round, epoch, frames, manifest });
        match inner.call(seal, inner.options.limits.seal).map_err(broken)? {
            Reply::RoundSealed(sealed) => {
                Ok(Sealed { bytes_stored: sealed.bytes_stored, fsync_us: sealed.fsync_us })
            }
            Reply::Prepared(prepared) => {
                Ok(Sealed { bytes_stored: prepared.bytes_stored, fsync_us: prepared.fsync_us })
            }
            Reply::Resend(resend) => match self.resend(resend) {
                Some(want) => Err(want),
                None => Err(SinkError::Refused { round, why: "the page server wants nothing resent".into() }),
            },
            Reply::RoundFailed(failed) => Err(broken(inner.round_failed(&failed))),
            other => Err(broken(inner.unexpected(&other))),
        }
    }

    fn abandon(&self, round: u32) -> Result<(), SinkError> {
        let inner = &self.link.inner;
        let is_known = {
            let inbox = inner.inbox();
            let failed = inbox.failed.as_ref().is_some_and(|failed| failed.round == round);
            failed || inbox.machine.phase().open_round() == Some(round)
        };
        if !is_known {
            return Ok(());
        }
        match inner.call(Request::Abandon { round }, inner.options.limits.request).map_err(broken)? {
            Reply::RoundAbandoned(_) => Ok(()),
            other => Err(broken(inner.unexpected(&other))),
        }
    }
}

/// A failed link in the words of the seam.
fn broken(error: LinkError) -> SinkError {
    SinkError::Link { what: error.to_string(), source: Some(Box::new(error)) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
