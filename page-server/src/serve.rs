//! The flow of a session at the page server: accept → agree → receive → seal → acknowledge → hand over.
//!
//! Threads: one takes connections, one a connection takes its streams, one a control stream runs the
//! conversation below, one a lane stores its frames. All of them block; packets are moved by the link's own thread.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use godwit_wire::control::{
    Error as ErrorMessage, Hello, HelloAck, OpenSession, Prepared, Refused, Resend, RestorePidns,
    RoundAbandoned, RoundAccepted, RoundSealed, SessionClosed, SessionOpened, SlotRange, ToServer, Want,
};
use godwit_wire::error::{Code, SessionError};
use godwit_wire::image::cpuinfo::CpuinfoX86Entry;
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{EXTENT_SLOTS, PagesPlan, RoundKind, RoundPlan};
use godwit_wire::quic::{
    Connection, ControlReceiver, ControlSender, Identity, Incoming, Listener, QuicError, Tuning,
};
use godwit_wire::session::{Phase, Receiver, Reply, Request, SealRequest};
use godwit_wire::version;

use crate::admit::{Arrived, Refusal, Session, Sessions, Wants};
use crate::cpu;
use crate::error::{ServeError, chain};
use crate::handover::Desks;
use crate::lanes;
use crate::query::{criu_version, fault, query_session};
use crate::restore::{self, Peer, RestoreSettings};
use crate::store::sink::{Sink, SinkError};
use crate::store::{Bounds, Store};

/// How long a client may take to greet and to open a session.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// Ranges of slots in one `Resend` at most: 20 encoded bytes each stay well below the limit of a message.
const RESEND_RANGES_MAX: usize = 16 << 10;
/// Threads that write at most: hashing and writing on four cores is more than a link brings.
const WRITERS_MAX: usize = 4;
/// Sockets at most, unless more are asked for.
const DEFAULT_SOCKETS_MAX: usize = 4;
/// How long the last words may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// What a page server is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Directory of the sessions.
    pub images_dir: PathBuf,
    /// Certificate, key and CA.
    pub identity: Identity,
    /// Directory of the journals.
    pub state_dir: PathBuf,
    /// How to restore; `None` refuses sessions that want it.
    pub restore: Option<RestoreSettings>,
    /// Sessions at the same time.
    pub sessions_max: usize,
    /// Lanes of one session.
    pub lanes_max: u32,
    /// Sockets that listen on the address, each with a thread of its own; 1 to 64.
    pub sockets: usize,
    /// Settings of the link.
    pub tuning: Tuning,
}

/// What all threads of a server share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) store: Store,
    pub(crate) sessions: Sessions,
    pub(crate) desks: Desks,
    /// Those of the options; without restore, only what keeping a journal takes.
    pub(crate) settings: RestoreSettings,
    boot_id: String,
    criu_version: String,
    cpu: Option<CpuinfoX86Entry>,
}

/// A page server that listens.
pub struct Server {
    listener: Listener,
    shared: Arc<Shared>,
}

/// Serves until SIGTERM or SIGINT, then drains. `ready` is told the address once clients can connect.
///
/// # Errors
/// [`ServeError`] when the server cannot start.
pub fn run(
    options: Options,
    drain_limit: Duration,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let io = |what| move |source| ServeError::Io { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(io("start the signal thread"))?;
    // The handlers stand before the address is told: who reads it may send a signal at once.
    let (mut terminate, mut interrupt) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _guard = runtime.enter();
        let terminate = signal(SignalKind::terminate()).map_err(io("handle SIGTERM"))?;
        (terminate, signal(SignalKind::interrupt()).map_err(io("handle SIGINT"))?)
    };
    let server = Arc::new(Server::bind(options)?);
    ready(server.local_addr()?);
    let accepting = {
        let server = Arc::clone(&server);
        spawn("accept", move || server.accept()).map_err(io("start a thread"))?
    };
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: no new sessions, waiting for the open ones"),
            _ = interrupt.recv() => tracing::info!("SIGINT: no new sessions, waiting for the open ones"),
        }
    });
    server.drain(drain_limit);
    let _ = accepting.join();
    Ok(())
}

impl Server {
    /// Opens the store and the socket.
    ///
    /// # Errors
    /// [`ServeError`] when the directory, the keys or the address cannot be used.
    pub fn bind(options: Options) -> Result<Self, ServeError> {
        let criu_version =
            options.restore.as_ref().map_or(Ok(String::new()), |restore| criu_version(&restore.criu))?;
        let store = Store::open(&options.images_dir, Bounds { writers: writers(), ..Bounds::default() })?;
        report_recovered(&store);
        let settings = settings_of(&options)?;
        recover_sessions(&options, &settings)?;
        let listener =
            Listener::bind_many(options.listen, &options.identity, &options.tuning, options.sockets)?;
        report_socket(&listener);
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot_id = boot_id.trim().to_owned();
        let (sessions, desks) = (Sessions::new(options.sessions_max), Desks::default());
        let cpu = cpu::probe();
        let shared = Shared { options, store, sessions, desks, settings, boot_id, criu_version, cpu };
        Ok(Server { listener, shared: Arc::new(shared) })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// [`ServeError::Link`] when the socket is gone.
    pub fn local_addr(&self) -> Result<SocketAddr, ServeError> {
        Ok(self.listener.local_addr()?)
    }

    /// Sockets that it listens with.
    pub fn sockets(&self) -> usize {
        self.listener.sockets()
    }

    /// Takes connections until [`Server::drain`] closes the socket.
    pub fn accept(&self) {
        while let Some(connection) = self.listener.accept() {
            let shared = Arc::clone(&self.shared);
            let peer = connection.peer();
            tracing::debug!(%peer, identity = connection.peer_identity(), "a client connected");
            if let Err(error) = spawn("connection", move || attend(&shared, &connection)) {
                tracing::error!(%peer, %error, "no thread for a client");
            }
        }
    }

    /// Lets open sessions end, but no longer than `limit`, and closes the socket.
    pub fn drain(&self, limit: Duration) {
        let left = self.shared.sessions.drain(limit);
        if left > 0 {
            tracing::warn!(
                left,
                "sessions are cut off: their unsealed rounds are lost, what was sealed stays"
            );
        }
        self.listener.close(Code::Draining, "the page server is stopping");
    }
}

/// Takes the streams of a connection: one control stream, and lanes.
fn attend(shared: &Arc<Shared>, connection: &Connection) {
    let peer = connection.peer();
    let mut has_control = false;
    loop {
        let shared = Arc::clone(shared);
        let spawned = match connection.accept::<ToServer>() {
            Ok(Incoming::Control(..)) if has_control => {
                connection.close(Code::OutOfOrder, "a second control stream");
                return;
            }
            Ok(Incoming::Control(sender, ears)) => {
                has_control = true;
                spawn("session", move || converse(&shared, sender, ears))
            }
            Ok(Incoming::Lane(lane)) => spawn("lane", move || lanes::run(&shared, lane)),
            Err(error) => {
                tracing::debug!(%peer, "a client is gone: {}", chain(&error));
                return;
            }
        };
        if let Err(error) = spawned {
            tracing::error!(%peer, %error, "no thread for a stream");
            connection.close(Code::Internal, "no thread for a stream");
            return;
        }
    }
}

/// One conversation, from the greeting to the last word.
fn converse(shared: &Shared, sender: ControlSender, ears: ControlReceiver<ToServer>) {
    let connection = sender.connection().clone();
    let voice = Arc::new(Voice { machine: Mutex::new(Receiver::new()), sender });
    let peer = connection.peer();
    let who = Peer { address: peer.to_string(), identity: connection.peer_identity() };
    let mut client = Client { voice: Arc::clone(&voice), ears, peer, who };
    let outcome = client.agree(shared).and_then(|()| client.session(shared));
    match outcome {
        Ok(()) => {
            voice.sender.finish(FAREWELL_LIMIT);
            connection.close(Code::Done, "");
        }
        Err(error) => {
            let text = chain(&error);
            tracing::info!(peer = %client.peer, "a client was left: {text}");
            if let ServeError::Session { source, .. } = &error {
                let (code, hint) = (source.code(), String::new());
                let _ = voice.say(ErrorMessage { code: code.number(), text: text.clone(), hint });
                voice.sender.finish(FAREWELL_LIMIT);
                connection.close(code, &text);
            } else {
                connection.close(Code::Internal, &text);
            }
        }
    }
}

/// The client as the conversation knows it.
struct Client {
    voice: Arc<Voice>,
    ears: ControlReceiver<ToServer>,
    peer: SocketAddr,
    who: Peer,
}

impl Client {
    /// The next whole request; `None` when the client has left in peace.
    fn next(&mut self, limit: Option<Duration>) -> Result<Option<Request>, ServeError> {
        loop {
            let message = match self.ears.recv(limit) {
                Ok(Some(message)) => message,
                Ok(None) | Err(QuicError::Closed { code: Code::Done, .. }) => return Ok(None),
                Err(QuicError::Malformed { source, .. }) => {
                    return Err(ServeError::Session {
                        peer: self.peer,
                        source: SessionError::Malformed(source),
                    });
                }
                Err(error) => return Err(error.into()),
            };
            let name = godwit_wire::control::Envelope::name(&message);
            let request = self.voice.hear(message)?;
            self.ears.taken(name)?;
            if request.is_some() {
                return Ok(request);
            }
        }
    }

    /// Agrees on version and features.
    fn agree(&mut self, shared: &Shared) -> Result<(), ServeError> {
        let Some(Request::Hello(hello)) = self.next(Some(GREETING_LIMIT))? else { return Ok(()) };
        let Hello { versions, features, tool_version } = hello;
        tracing::debug!(peer = %self.peer, ?versions, features, tool_version, "greeting");
        match version::select(&versions, features) {
            Ok(agreed) => self.voice.say(HelloAck {
                version: agreed.version,
                features: agreed.features,
                tool_version: env!("CARGO_PKG_VERSION").to_owned(),
                restore_allowed: shared.options.restore.is_some(),
                criu_version: shared.criu_version.clone(),
                boot_id: shared.boot_id.clone(),
                cpu: shared.cpu.clone().map(Box::new),
            }),
            Err(why) => self.voice.say(Refused { code: why.code().number(), text: why.to_string() }),
        }
    }

    /// Answers questions about sessions, and runs the one that the client opens.
    fn session(&mut self, shared: &Shared) -> Result<(), ServeError> {
        while self.voice.phase() == Phase::Agreed {
            match self.next(None)? {
                Some(Request::Open(wish)) => return self.open(shared, &wish),
                Some(Request::Query(query)) => {
                    self.voice.say(query_session(shared, &self.who.identity, &query))?
                }
                Some(Request::Resolve(resolve)) => {
                    let (state_dir, settings) = (&shared.options.state_dir, shared.settings.clone());
                    self.voice.say(shared.desks.resolve(
                        state_dir,
                        settings,
                        shared.options.restore.is_some(),
                        &self.who.identity,
                        &resolve,
                    ))?;
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn open(&mut self, shared: &Shared, wish: &OpenSession) -> Result<(), ServeError> {
        let session = match shared.sessions.admit(shared, wish, &self.voice, &self.who) {
            Ok(session) => session,
            Err(Refusal { code, text }) => {
                tracing::info!(peer = %self.peer, session = wish.name, %code, "refused: {text}");
                return self.voice.say(Refused { code: code.number(), text });
            }
        };
        tracing::info!(peer = %self.peer, session = wish.name, id = %session.id, "session open");
        let outcome = self.serve(shared, wish, &session);
        let phase = self.voice.hang_up();
        tracing::info!(session = wish.name, id = %session.id, "session over {phase}");
        session.close_round();
        if let Some(round) = phase.open_round()
            && let Err(error) = session.store.abandon(round)
        {
            tracing::warn!(session = wish.name, round, "what it left: {}", chain(&error));
        }
        if !session.store.is_finished() {
            // There is nothing to hand over: the journal has no more to say.
            session.desk.released();
        }
        // The client has the last word before a drain may close the socket.
        if outcome.is_ok() {
            self.voice.sender.finish(FAREWELL_LIMIT);
        }
        shared.sessions.remove(session.id);
        outcome
    }

    fn serve(
        &mut self,
        shared: &Shared,
        wish: &OpenSession,
        session: &Arc<Session>,
    ) -> Result<(), ServeError> {
        self.voice.say(SessionOpened {
            session_id: session.id.0,
            secret: Bytes::copy_from_slice(&session.secret.0),
            lanes_max: shared.options.lanes_max,
            epoch: session.epoch(),
            same_boot: wish.boot_id == shared.boot_id,
            images_dir: session.store.dir().display().to_string(),
            sealed_rounds: session.store.sealed_rounds(),
            journal_token: 1,
        })?;
        let mut open_plan = None;
        while let Some(request) = self.next(None)? {
            match request {
                Request::Begin(plan) => {
                    begin_round(session, &plan)?;
                    open_plan = Some(plan);
                }
                Request::Image { round, name, bytes } => {
                    if let Err(error) = session.store.image(round, &name, bytes) {
                        session.fail_round(round, &error);
                    }
                }
                Request::Seal(seal) => {
                    if let Some(plan) = &open_plan {
                        seal_round(session, plan, &seal)?;
                    }
                }
                Request::Abandon { round } => {
                    session.close_round();
                    if let Err(error) = session.store.abandon(round) {
                        tracing::warn!(session = wish.name, round, "what it left: {}", chain(&error));
                    }
                    self.voice.say(RoundAbandoned { round })?;
                }
                Request::Restore(_) if !wish.want_restore => {
                    let text = "the session was opened without the wish to restore".to_owned();
                    return self.voice.say(fault(Code::NoRestore, text, ""));
                }
                Request::Restore(_) => start_restore(session)
                    .map_err(|source| ServeError::Io { what: "start the thread of a restore", source })?,
                Request::Commit(commit) => return self.voice.say(session.desk.commit(commit.token)),
                Request::Abort(abort) => return self.voice.say(session.desk.abort(&abort.reason)),
                Request::Close(_) => {
                    session.desk.released();
                    return self.voice.say(SessionClosed {});
                }
                other => {
                    tracing::error!(request = other.name(), "a request that the table does not allow here");
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Accepts a round's page lists. The gate opens before the client hears of it: its frames may come at once.
fn begin_round(session: &Session, plan: &RoundPlan) -> Result<(), ServeError> {
    let round = plan.round;
    if let Err(error) = session.store.begin(plan) {
        session.fail_round(round, &error);
        return Ok(());
    }
    let epoch = session.open_round(round);
    session.voice.say(RoundAccepted { round, epoch })
}

/// Waits for a round's frames, verifies, makes durable, seals and acknowledges it.
fn seal_round(session: &Session, plan: &RoundPlan, seal: &SealRequest) -> Result<(), ServeError> {
    let round = seal.round;
    match session.wait_frames(round, seal.epoch, seal.frames) {
        Arrived::Failed | Arrived::Gone => return Ok(()),
        Arrived::Wants(epoch, wants) => match reopen(session, plan, epoch, wants) {
            Ok(wants) => return session.voice.say(Resend { round, epoch, wants }),
            Err(error) => {
                session.fail_round(round, &error);
                return Ok(());
            }
        },
        Arrived::All => {}
    }
    let manifest = match Manifest::decode(&seal.manifest) {
        Ok(manifest) => manifest,
        Err(error) => {
            session.fail_round_as(round, Code::Malformed, chain(&error));
            return Ok(());
        }
    };
    let sealed = match session.store.seal(round, &manifest) {
        Ok(sealed) => sealed,
        Err(error) => {
            session.fail_round(round, &error);
            return Ok(());
        }
    };
    let (bytes_stored, fsync_us) = (sealed.bytes_stored, sealed.fsync_us);
    tracing::info!(session = session.store.name(), round, bytes_stored, fsync_us, "sealed");
    match plan.kind {
        RoundKind::Round => session.voice.say(RoundSealed { round, bytes_stored, fsync_us }),
        RoundKind::Final => {
            session.desk.prepared()?;
            let dir = session.store.final_dir().display().to_string();
            session.voice.say(Prepared { round, bytes_stored, fsync_us, dir })
        }
    }
}

/// Opens the extents that hold wanted slots: a resend replaces whole extents, since the hash of an extent is that of
/// all its pages at one time. What does not fit one message is asked for by the next one.
fn reopen(session: &Session, plan: &RoundPlan, epoch: u32, wants: Wants) -> Result<Vec<Want>, SinkError> {
    let mut room = RESEND_RANGES_MAX;
    let mut asked = Vec::new();
    for (pages_id, slots) in wants {
        let end = plan.pages.iter().find(|list| list.pages_id == pages_id).map_or(0, PagesPlan::slots);
        let extents: BTreeSet<u64> = slots
            .iter()
            .flat_map(|slots| slots.start / EXTENT_SLOTS..slots.end.div_ceil(EXTENT_SLOTS))
            .collect();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for extent in extents {
            let slots = extent * EXTENT_SLOTS..end.min((extent + 1) * EXTENT_SLOTS);
            match ranges.last_mut() {
                Some(last) if last.end == slots.start => last.end = slots.end,
                _ if room == 0 => {
                    session.want(plan.round, epoch, pages_id, vec![slots]);
                    continue;
                }
                _ => {
                    room -= 1;
                    ranges.push(slots);
                }
            }
            session.store.reopen_extent(plan.round, pages_id, extent)?;
        }
        let slots =
            ranges.iter().map(|slots| SlotRange { first: slots.start, count: slots.end - slots.start });
        asked.push(Want { pages_id, slots: slots.collect() });
    }
    asked.retain(|want| !want.slots.is_empty());
    Ok(asked)
}

/// Restores on a thread of its own, so that an abort is heard meanwhile. The thread goes on when the link is lost: the
/// journal says what came of it.
fn start_restore(session: &Arc<Session>) -> std::io::Result<()> {
    let session = Arc::clone(session);
    let body = move || {
        let reply = session.desk.restore();
        tracing::info!(session = session.store.name(), answer = reply.name(), "restore");
        if let Err(error) = session.voice.say(reply) {
            tracing::warn!(session = session.store.name(), "the source was not told: {}", chain(&error));
        }
    };
    spawn("restore", body).map(drop)
}

/// What a session says, and in which order it may. Lanes use it too.
pub(crate) struct Voice {
    machine: Mutex<Receiver>,
    sender: ControlSender,
}

impl Voice {
    /// Answers the client.
    pub(crate) fn say(&self, reply: impl Into<Reply>) -> Result<(), ServeError> {
        // The lock is held while sending: the order of the machine is the order on the wire.
        let mut machine = self.machine();
        machine.handle_local(reply.into()).map_err(|source| self.session_error(source))?;
        while let Some(message) = machine.poll_transmit() {
            self.sender.send(&message)?;
        }
        Ok(())
    }

    fn hear(&self, message: ToServer) -> Result<Option<Request>, ServeError> {
        self.machine().handle_message(message).map_err(|source| self.session_error(source))
    }

    fn phase(&self) -> Phase {
        self.machine().phase()
    }

    fn hang_up(&self) -> Phase {
        self.machine().handle_closed()
    }

    /// Whether the link is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.sender.connection().is_closed()
    }

    fn session_error(&self, source: SessionError) -> ServeError {
        ServeError::Session { peer: self.sender.connection().peer(), source }
    }

    fn machine(&self) -> MutexGuard<'_, Receiver> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(format!("godwit-{name}")).spawn(body)
}

/// Sockets of a server that was not told how many: each client's packets come to one of them, and are decrypted by its
/// thread. Half of the cores, since the other half writes what they bring.
pub fn default_sockets() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, DEFAULT_SOCKETS_MAX)
}

/// Threads that hash and write what the lanes receive: one where there are few cores, since the link's thread and the
/// lanes fill those already.
fn writers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, WRITERS_MAX)
}

fn settings_of(options: &Options) -> Result<RestoreSettings, ServeError> {
    let this_program = || RestoreSettings::of_this_program(PathBuf::from("criu"), RestorePidns::Auto);
    let io = |source| ServeError::Io { what: "find this program", source };
    options.restore.clone().map_or_else(this_program, Ok).map_err(io)
}

/// Brings the sessions of an earlier server to where they may wait. Their journals are free again behind it.
fn recover_sessions(options: &Options, settings: &RestoreSettings) -> Result<(), ServeError> {
    for found in restore::recover(&options.state_dir, settings)? {
        let state = found.state.map_or("unreadable", |state| state.word());
        tracing::info!(session = found.journal_id, state, "an earlier server left it: {}", found.text);
    }
    Ok(())
}

fn report_recovered(store: &Store) {
    let found = store.recovered();
    for path in &found.removed {
        tracing::info!(path = %path.display(), "removed what a killed server had not sealed");
    }
    for (path, why) in &found.broken {
        tracing::warn!(path = %path.display(), why, "not whole; left as it is");
    }
}

fn report_socket(listener: &Listener) {
    let facts = listener.facts();
    if facts.recv_buffer_bytes < 1 << 20 {
        let bytes = facts.recv_buffer_bytes;
        tracing::warn!(
            bytes,
            "small socket buffer: raise net.core.rmem_max and wmem_max to 4194304 for full speed"
        );
    }
    if facts.send_segments == 1 {
        tracing::warn!("no UDP segmentation offload here: a packet costs a system call");
    }
}
