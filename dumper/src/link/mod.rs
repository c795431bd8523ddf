//! The link to a page server, for blocking callers: connect, agree, open a session, send rounds, hand over.
//!
//! One thread reads the control stream and gives each answer to whoever waits for it; a request is sent by the
//! thread that makes it. Reading order: this file (requests and answers), `session` (what may be asked for),
//! `sink` (rounds), `payload` (what pages become on the wire), `pack` (how hard they are packed),
//! `limit` (how fast it may send), `error`.

mod error;
pub mod limit;
mod pack;
mod payload;
mod session;
mod sink;

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use godwit_wire::control::{Envelope, Hello, HelloAck, RoundFailed, ToClient};
use godwit_wire::error::Code;
use godwit_wire::fault;
use godwit_wire::quic::{
    self, Connection, ControlReceiver, ControlSender, Identity, QuicError, Stats, Tuning,
};
use godwit_wire::session::{Phase, Reply, Request, Sender};
use godwit_wire::version;

use crate::interrupt;

pub use error::LinkError;
pub use pack::Compress;
pub use payload::{Delta, Share, Shares};
pub use session::{Decision, Done, RestorePidns, Restored, SessionStatus, SessionWish};
pub use sink::{LinkCounters, RemoteSink};

/// How long the server's last words may take after it refused a lane.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often a wait for an answer looks whether the user wants it to end.
const LOOK: Duration = Duration::from_millis(50);

/// Settings of a link.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Settings of QUIC.
    pub tuning: Tuning,
    /// Connections that carry pages, each with a socket and a thread of its own; the first one carries the control
    /// stream too.
    pub connections: u32,
    /// Whether and how pages are compressed.
    pub compress: Compress,
    /// Whether pages are sent by what the base round holds of them.
    pub delta: Delta,
    /// Threads that hand pages over.
    pub senders: usize,
    /// Lets `godwit limit` change the bandwidth limit while the link is open.
    pub watch: Option<Arc<limit::Watch>>,
    /// How long answers may take.
    pub limits: Limits,
}

impl Default for LinkOptions {
    fn default() -> Self {
        let (tuning, limits) = (Tuning::default(), Limits::default());
        LinkOptions {
            tuning,
            connections: 1,
            compress: Compress::Auto,
            delta: Delta::Auto,
            senders: 2,
            watch: None,
            limits,
        }
    }
}

/// How long an answer may take while the link lives; a dead link is noticed by its own timeout.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To requests that cost the server little.
    pub request: Duration,
    /// To `Seal` and `Prepare`: the server verifies and syncs.
    pub seal: Duration,
    /// To `Restore`.
    pub restore: Duration,
    /// To `Commit` and `Abort`.
    pub commit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            request: Duration::from_secs(30),
            seal: Duration::from_secs(600),
            restore: Duration::from_secs(600),
            commit: Duration::from_secs(60),
        }
    }
}

/// A link to a page server that was authenticated and speaks the same protocol. Clones share it.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    address: String,
    identity: Identity,
    options: LinkOptions,
    connection: Connection,
    voice: ControlSender,
    /// Held while a request is put on the wire: the order of the machine is the order there.
    turn: Mutex<()>,
    inbox: Mutex<Inbox>,
    /// Told when something came in.
    told: Condvar,
}

struct Inbox {
    machine: Sender,
    /// Number of the last request; an answer belongs to it.
    ticket: u64,
    reply: Option<Reply>,
    /// The last round that the server gave up.
    failed: Option<RoundFailed>,
    /// Why nothing more will come.
    gone: Option<Arc<LinkError>>,
    server: Option<HelloAck>,
}

impl Link {
    /// Connects to `HOST:PORT`, proves who both sides are, and agrees on version and features.
    ///
    /// # Errors
    /// [`LinkError`]: nobody answers, a certificate is not accepted, or no version is common.
    pub fn connect(address: &str, identity: &Identity, options: LinkOptions) -> Result<Self, LinkError> {
        let hello = Hello {
            versions: version::VERSIONS.to_vec(),
            features: version::FEATURES,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Self::connect_offering(address, identity, options, hello)
    }

    /// As [`Link::connect`], with another greeting.
    ///
    /// # Errors
    /// As [`Link::connect`].
    #[doc(hidden)]
    pub fn connect_offering(
        address: &str,
        identity: &Identity,
        options: LinkOptions,
        hello: Hello,
    ) -> Result<Self, LinkError> {
        let connection = quic::connect(address, identity, &options.tuning)?;
        let (voice, ears) = connection.open_control::<ToClient>()?;
        let inbox =
            Inbox { machine: Sender::new(), ticket: 0, reply: None, failed: None, gone: None, server: None };
        let inner = Arc::new(Inner {
            address: address.to_owned(),
            identity: identity.clone(),
            options,
            connection,
            voice,
            turn: Mutex::default(),
            inbox: Mutex::new(inbox),
            told: Condvar::new(),
        });
        let weak = Arc::downgrade(&inner);
        let peer = inner.connection.peer();
        let reader = move || {
            let mut ears = ears;
            let _end = ReaderEnd(weak.clone());
            // The thread must not keep the link alive: it lives as long as somebody else has it.
            while let Some(heard) = hear(&mut ears) {
                let Some(inner) = weak.upgrade() else { return };
                let _ = fault::point("mid.link.reader");
                if !inner.take(heard, &ears) {
                    return;
                }
            }
        };
        let spawned = std::thread::Builder::new().name("godwit-link".to_owned()).spawn(reader);
        spawned.map_err(|source| LinkError::Thread { peer, source })?;
        let link = Link { inner };
        match link.inner.call(Request::Hello(hello), link.inner.options.limits.request)? {
            Reply::HelloAck(ack) => link.inner.inbox().server = Some(ack),
            other => return Err(link.inner.unexpected(&other)),
        }
        Ok(link)
    }

    /// What the server said about itself.
    pub fn server(&self) -> HelloAck {
        self.inner.inbox().server.clone().unwrap_or_default()
    }

    /// Address of the server.
    pub fn peer(&self) -> SocketAddr {
        self.inner.connection.peer()
    }

    /// Where the session stands, as far as this side knows.
    pub fn phase(&self) -> Phase {
        self.inner.inbox().machine.phase()
    }

    /// Makes the link dead without a word, as a cut cable does.
    #[doc(hidden)]
    pub fn cut(&self) {
        self.inner.connection.cut();
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.stats().rtt
    }

    /// Counters of the connection with the control stream.
    pub fn stats(&self) -> Stats {
        self.inner.connection.stats()
    }

    /// What the socket can do: small buffers and missing offload are worth a word to the user.
    pub fn facts(&self) -> quic::SocketFacts {
        self.inner.connection.facts()
    }

    /// Ends the link, and waits until the server had a fair chance to hear of it. Dropping the link does the same, but
    /// where another thread has it for a moment longer than the program lives.
    pub fn hang_up(&self) {
        self.inner.connection.hang_up(Code::Done, "");
    }
}

/// Tells those who wait when the reader ends, for whatever reason: nothing more will come.
struct ReaderEnd(Weak<Inner>);

impl Drop for ReaderEnd {
    fn drop(&mut self) {
        let Some(inner) = self.0.upgrade() else { return };
        let mut inbox = inner.inbox();
        if inbox.gone.is_none() {
            let peer = inner.connection.peer();
            let why = "the thread that reads its answers failed".to_owned();
            inbox.machine.handle_closed();
            inbox.gone = Some(Arc::new(QuicError::Lost { peer, why }.into()));
        }
        drop(inbox);
        inner.told.notify_all();
    }
}

type Heard = Result<Option<ToClient>, QuicError>;

fn hear(ears: &mut ControlReceiver<ToClient>) -> Option<Heard> {
    Some(ears.recv(None))
}

impl Inner {
    /// Asks and waits for the answer. What undoes or ends a hand-over is waited for in any case.
    fn call(&self, request: Request, limit: Duration) -> Result<Reply, LinkError> {
        let is_patient = match request {
            Request::Commit(_)
            | Request::Abort(_)
            | Request::Resolve(_)
            | Request::Close(_)
            | Request::Abandon { .. } => true,
            // Within a hand-over a new link is made only to undo or end it.
            Request::Hello(_) => interrupt::is_held(),
            _ => false,
        };
        self.call_as(request, limit, is_patient)
    }

    /// As [`Inner::call`]; a patient caller waits also after a signal asked for the end.
    fn call_as(&self, request: Request, limit: Duration, is_patient: bool) -> Result<Reply, LinkError> {
        let name = request.name();
        let ticket = self.send(request)?;
        let deadline = Instant::now() + limit;
        let mut inbox = self.inbox();
        loop {
            if inbox.ticket != ticket {
                return Err(LinkError::Overtaken { peer: self.connection.peer(), request: name });
            }
            if let Some(reply) = inbox.reply.take() {
                return Ok(reply);
            }
            if let Some(gone) = &inbox.gone {
                return Err(LinkError::Gone(Arc::clone(gone)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::Silent { peer: self.connection.peer(), request: name, waited: limit });
            }
            if !is_patient {
                interrupt::check()?;
            }
            let slice = if is_patient { left } else { left.min(LOOK) };
            inbox = self.told.wait_timeout(inbox, slice).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a request; returns the ticket that its answer will carry.
    fn send(&self, request: Request) -> Result<u64, LinkError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (ticket, messages) = {
            let mut inbox = self.inbox();
            if let Some(gone) = &inbox.gone {
                return Err(LinkError::Gone(Arc::clone(gone)));
            }
            let round = match &request {
                Request::Image { round, .. } => Some(*round),
                Request::Seal(seal) => Some(seal.round),
                _ => None,
            };
            if let Some(failed) = inbox.failed.as_ref().filter(|failed| Some(failed.round) == round) {
                return Err(self.round_failed(failed));
            }
            // An image is not answered, and an answer that is still expected is not its own.
            if !matches!(request, Request::Image { .. }) {
                inbox.ticket += 1;
                inbox.reply = None;
            }
            let peer = self.connection.peer();
            inbox.machine.handle_local(request).map_err(|source| LinkError::Session { peer, source })?;
            self.told.notify_all();
            (inbox.ticket, std::iter::from_fn(|| inbox.machine.poll_transmit()).collect::<Vec<_>>())
        };
        for message in messages {
            self.voice.send(&message).map_err(|error| self.lose(error))?;
        }
        Ok(ticket)
    }

    /// Takes what came in; says whether more can come.
    fn take(&self, heard: Heard, ears: &ControlReceiver<ToClient>) -> bool {
        let peer = self.connection.peer();
        let mut inbox = self.inbox();
        let outcome = match heard {
            Ok(Some(message)) => {
                let name = message.name();
                let taken = inbox.machine.handle_message(message);
                taken.map_err(|source| LinkError::Session { peer, source }).and_then(|reply| {
                    ears.taken(name)?;
                    Ok(reply)
                })
            }
            Ok(None) => {
                let (code, text) = (Code::Done, "it said its last word".to_owned());
                Err(QuicError::Closed { peer, code, text }.into())
            }
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(Reply::RoundFailed(failed))) => {
                // Whoever waits for the fate of the round hears it as the answer; whoever drops the round
                // anyway still waits for the answer to that.
                if !matches!(inbox.machine.phase(), Phase::Abandoning(_)) {
                    inbox.reply = Some(Reply::RoundFailed(failed.clone()));
                }
                inbox.failed = Some(failed);
            }
            Ok(Some(reply)) => inbox.reply = Some(reply),
            Err(error) => {
                inbox.machine.handle_closed();
                inbox.gone.get_or_insert(Arc::new(error));
            }
        }
        let goes_on = inbox.gone.is_none();
        drop(inbox);
        self.told.notify_all();
        goes_on
    }

    /// Notes that the link is of no use any more.
    fn lose(&self, error: QuicError) -> LinkError {
        let mut inbox = self.inbox();
        // The reader may know better: the server's last words, behind which it closed the link.
        let gone = Arc::clone(inbox.gone.get_or_insert_with(|| Arc::new(error.into())));
        drop(inbox);
        self.told.notify_all();
        LinkError::Gone(gone)
    }

    /// A frame could not be sent. The server's words on the control stream say why, and may come a moment later.
    fn lane_lost(&self, round: u32, error: QuicError) -> LinkError {
        let inbox = self.inbox();
        let waiting = |inbox: &mut Inbox| {
            inbox.gone.is_none() && inbox.failed.as_ref().is_none_or(|failed| failed.round != round)
        };
        let waited = self.told.wait_timeout_while(inbox, LAST_WORDS, waiting);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.check_round(round).err().unwrap_or(LinkError::Quic(error))
    }

    /// Whether frames of a round still make sense.
    fn check_round(&self, round: u32) -> Result<(), LinkError> {
        let inbox = self.inbox();
        match (&inbox.gone, &inbox.failed) {
            (Some(gone), _) => Err(LinkError::Gone(Arc::clone(gone))),
            (None, Some(failed)) if failed.round == round => Err(self.round_failed(failed)),
            _ => Ok(()),
        }
    }

    fn round_failed(&self, failed: &RoundFailed) -> LinkError {
        LinkError::RoundFailed {
            peer: self.connection.peer(),
            round: failed.round,
            code: Code::from_number(failed.code),
            text: failed.text.clone(),
        }
    }

    fn unexpected(&self, reply: &Reply) -> LinkError {
        LinkError::Unexpected { peer: self.connection.peer(), reply: reply.name() }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        match self.inbox().machine.phase() {
            Phase::Closed => self.connection.part(),
            // The server shall not wait for what never comes.
            _ => self.connection.hang_up(Code::Done, ""),
        }
    }
}
