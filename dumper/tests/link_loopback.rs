//! The link against a real page server on loopback: rounds arrive byte for byte, refusals say why, and what
//! breaks loses only what was not acknowledged.
#![allow(clippy::unwrap_used)]

#[path = "../../page-server/tests/support/rounds.rs"]
#[allow(dead_code)]
mod rounds;

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_dumper::link::{Compress, Link, LinkError, LinkOptions, RemoteSink, SessionWish, limit};
use godwit_page_server::serve::{Options, Server};
use godwit_page_server::store::disk::real::RealDisk;
use godwit_page_server::store::sink::{Content, Fill, Sealed, Sink, SinkError};
use godwit_wire::control::Hello;
use godwit_wire::error::Code;
use godwit_wire::frame::{CopyTo, Method};
use godwit_wire::plan::{
    EXTENT_SLOTS, PAGE_SIZE, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan,
};
use godwit_wire::quic::{Bucket, Identity, QuicError, Tuning, connect_speaking, keys};
use rounds::{
    Memory, PAGE, Rng, Round, change, data_of, fill_all, fill_spread, forked_memory, hashes_of, read_back,
    round_of, some_memory,
};

struct Lab {
    dir: tempfile::TempDir,
    server: Arc<Server>,
    address: String,
}

impl Lab {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(adapt: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        keys::init(&dir.path().join("keys"), &[]).unwrap();
        let mut options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            images_dir: dir.path().join("images"),
            identity: Identity::server(&dir.path().join("keys")),
            state_dir: dir.path().join("state"),
            restore: None,
            sessions_max: 8,
            lanes_max: 4,
            sockets: 1,
            tuning: tuning(),
        };
        adapt(&mut options);
        let server = Arc::new(Server::bind(options).unwrap());
        let address = server.local_addr().unwrap().to_string();
        let accepting = Arc::clone(&server);
        std::thread::spawn(move || accepting.accept());
        Lab { dir, server, address }
    }

    fn client(&self) -> Identity {
        Identity::client(&self.dir.path().join("keys"))
    }

    fn link(&self) -> Link {
        Link::connect(&self.address, &self.client(), options()).unwrap()
    }

    fn session(&self, name: &str) -> RemoteSink {
        self.link().open_session(wish(name)).unwrap()
    }

    fn images(&self, session: &str) -> PathBuf {
        self.dir.path().join("images").join(session)
    }

    fn names(&self, session: &str) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.images(session))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn memory(&self, session: &str, round: &str) -> Memory {
        read_back(&RealDisk::open(&self.dir.path().join("images")).unwrap(), &Path::new(session).join(round))
    }

    /// Waits until the server has noticed that a session is over.
    fn wait_names(&self, session: &str, expected: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.names(session) != expected {
            assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", self.names(session));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.drain(Duration::ZERO);
    }
}

fn tuning() -> Tuning {
    let (keep_alive, idle_timeout) = (Duration::from_millis(400), Duration::from_secs(2));
    Tuning { keep_alive, idle_timeout, connect_limit: Duration::from_secs(2), ..Tuning::default() }
}

fn options() -> LinkOptions {
    LinkOptions { tuning: tuning(), ..LinkOptions::default() }
}

fn wish(name: &str) -> SessionWish {
    SessionWish { name: name.to_owned(), pid: 1, ..SessionWish::default() }
}

/// The round with its manifest for this session.
fn of_session(mut round: Round, session: &str) -> Round {
    round.manifest.session = session.to_owned();
    round
}

/// Sends a round; what the server wants as data is sent as data.
fn send(sink: &RemoteSink, round: &Round, rng: &mut Rng) -> Result<Sealed, SinkError> {
    sink.begin(&round.plan)?;
    fill_all(sink, round, rng)?;
    for (name, bytes) in &round.images {
        sink.image(round.plan.round, name, bytes.clone())?;
    }
    seal(sink, round)
}

fn seal(sink: &RemoteSink, round: &Round) -> Result<Sealed, SinkError> {
    loop {
        match sink.seal(round.plan.round, &round.manifest) {
            Err(SinkError::WantData { round: number, pages_id, slots }) => {
                for slots in slots {
                    let content = data_of(&round.slots[&pages_id][slots.start as usize..slots.end as usize]);
                    for (first_slot, content) in split(&content, slots.start) {
                        sink.fill(Fill { round: number, pages_id, first_slot, content })?;
                    }
                }
            }
            other => return other,
        }
    }
}

/// A round of one task with these slots, all of them present.
fn plain_round(number: u32, kind: RoundKind, pages: u64, rng: &mut Rng) -> Round {
    let held = (0..pages).map(|at| ((0x1000 + at) * PAGE_SIZE, if at % 5 == 0 { 0 } else { rng.next() }));
    let memory = Memory::from([(PageOwner::Task(1), held.collect())]);
    round_of(&memory, number, None, kind, rng)
}

fn code(error: &SinkError) -> Option<Code> {
    use std::error::Error;
    error.source().and_then(|source| source.downcast_ref::<LinkError>()).and_then(LinkError::code)
}

#[test]
fn two_rounds_and_a_final_set_arrive_byte_for_byte() {
    for (connections, method) in [(1, Method::Lz4), (3, Method::Zstd(-1))] {
        let lab = Lab::start();
        let options = LinkOptions { connections, compress: Compress::Always(method), ..options() };
        let link = Link::connect(&lab.address, &lab.client(), options).unwrap();
        let sink = link.open_session(wish("web")).unwrap();
        let mut rng = Rng(7 + u64::from(connections));
        let mut memory = some_memory(5, 2000, &mut rng);
        let first = of_session(round_of(&memory, 1, None, RoundKind::Round, &mut rng), "web");
        send(&sink, &first, &mut rng).unwrap();
        assert_eq!(lab.memory("web", "round-0001"), memory);
        change(&mut memory, &mut rng);
        let second = of_session(round_of(&memory, 2, Some(&first), RoundKind::Round, &mut rng), "web");
        send(&sink, &second, &mut rng).unwrap();
        assert_eq!(lab.memory("web", "round-0002"), memory);
        change(&mut memory, &mut rng);
        let last = of_session(round_of(&memory, 3, Some(&second), RoundKind::Final, &mut rng), "web");
        let sealed = send(&sink, &last, &mut rng).unwrap();
        assert!(sealed.bytes_stored > 0);
        assert_eq!(lab.memory("web", "final"), memory);
        link.close_session().unwrap();
        assert_eq!(lab.names("web"), ["final", "round-0001", "round-0002"]);
        let counters = sink.counters();
        let (lz4, zstd) = (counters.shares.lz4, counters.shares.zstd);
        let (packed, other) = if method == Method::Lz4 { (lz4, zstd) } else { (zstd, lz4) };
        assert!(packed.frames > 0 && other.frames == 0 && counters.received_bytes > 0, "{counters:?}");
        assert!(
            packed.payload_bytes < packed.page_bytes / 4 && counters.sent_bytes < packed.page_bytes,
            "pages of one repeated number shrink: {counters:?}"
        );
    }
}

#[test]
fn pages_wrongly_called_the_same_are_asked_for_and_sent_again() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let mut rng = Rng(3);
    let first = of_session(plain_round(1, RoundKind::Round, 600, &mut rng), "web");
    send(&sink, &first, &mut rng).unwrap();
    let mut memory = first.memory.clone();
    let held = memory.get_mut(&PageOwner::Task(1)).unwrap();
    held.values_mut().skip(100).for_each(|number| *number = rng.next());
    let second = of_session(round_of(&memory, 2, None, RoundKind::Final, &mut rng), "web");
    // Everything is listed as present on base round 1, and everything is called the same.
    let mut second = second;
    second.plan.base_round = Some(1);
    second.manifest.base_round = Some(1);
    sink.begin(&second.plan).unwrap();
    for (pages_id, numbers) in &second.slots {
        for (at, numbers) in numbers.chunks(EXTENT_SLOTS as usize).enumerate() {
            let content = Content::Same { hashes: hashes_of(numbers) };
            let first_slot = at as u64 * EXTENT_SLOTS;
            sink.fill(Fill { round: 2, pages_id: *pages_id, first_slot, content }).unwrap();
        }
    }
    for (name, bytes) in &second.images {
        sink.image(2, name, bytes.clone()).unwrap();
    }
    // The first extent has the right pages up to slot 100, and is asked for as a whole like the others.
    let wanted = sink.seal(2, &second.manifest).unwrap_err();
    let SinkError::WantData { slots, .. } = &wanted else { panic!("{wanted}") };
    assert_eq!(*slots, [std::ops::Range { start: 0, end: 600 }]);
    let content = data_of(&second.slots[&1]);
    for (first_slot, content) in split(&content, 0) {
        sink.fill(Fill { round: 2, pages_id: 1, first_slot, content }).unwrap();
    }
    seal(&sink, &second).unwrap();
    assert_eq!(lab.memory("web", "final"), memory);
}

#[test]
fn what_pages_differ_in_counts_only_on_the_base_that_it_was_made_of() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let mut rng = Rng(9);
    let first = of_session(plain_round(1, RoundKind::Round, 300, &mut rng), "web");
    send(&sink, &first, &mut rng).unwrap();
    let mut memory = first.memory.clone();
    memory.get_mut(&PageOwner::Task(1)).unwrap().values_mut().for_each(|number| *number = rng.next());
    let mut second = of_session(round_of(&memory, 2, None, RoundKind::Final, &mut rng), "web");
    (second.plan.base_round, second.manifest.base_round) = (Some(1), Some(1));
    sink.begin(&second.plan).unwrap();
    let bytes_of = |numbers: &[u64]| match data_of(numbers) {
        Content::Data(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    let held = &first.slots[&1];
    for (at, numbers) in second.slots[&1].chunks(EXTENT_SLOTS as usize).enumerate() {
        let first_slot = at as u64 * EXTENT_SLOTS;
        let held = &held[first_slot as usize..][..numbers.len()];
        let (held_bytes, bytes) = (bytes_of(held), bytes_of(numbers));
        let difference: Bytes = held_bytes.iter().zip(&bytes[..]).map(|(one, two)| one ^ two).collect();
        let mut bases = hashes_of(held);
        if at == 1 {
            // One base is another one than the server holds.
            bases[7][0] ^= 1;
        }
        let content = Content::Delta { bases, difference };
        sink.fill(Fill { round: 2, pages_id: 1, first_slot, content }).unwrap();
    }
    for (name, bytes) in &second.images {
        sink.image(2, name, bytes.clone()).unwrap();
    }
    let wanted = sink.seal(2, &second.manifest).unwrap_err();
    let SinkError::WantData { slots, .. } = &wanted else { panic!("{wanted}") };
    assert_eq!(*slots, [std::ops::Range { start: EXTENT_SLOTS, end: 300 }]);
    let content = data_of(&second.slots[&1][EXTENT_SLOTS as usize..]);
    for (first_slot, content) in split(&content, EXTENT_SLOTS) {
        sink.fill(Fill { round: 2, pages_id: 1, first_slot, content }).unwrap();
    }
    seal(&sink, &second).unwrap();
    assert_eq!(lab.memory("web", "final"), memory);
    assert!(sink.counters().shares.delta.frames == 2, "{:?}", sink.counters());
}

#[test]
fn pages_that_a_fork_left_shared_arrive_in_one_frame() {
    for (connections, compress) in
        [(1, Compress::Never), (3, Compress::Always(Method::Lz4)), (2, Compress::Always(Method::Zstd(1)))]
    {
        let lab = Lab::start();
        let options = LinkOptions { connections, compress, ..options() };
        let sink =
            Link::connect(&lab.address, &lab.client(), options).unwrap().open_session(wish("web")).unwrap();
        assert!(sink.takes().spread);
        let mut rng = Rng(21);
        let memory = forked_memory(5, 1500, &mut rng);
        let last = of_session(round_of(&memory, 1, None, RoundKind::Final, &mut rng), "web");
        sink.begin(&last.plan).unwrap();
        let copied = fill_spread(&sink, &last, &mut rng).unwrap();
        for (name, bytes) in &last.images {
            sink.image(1, name, bytes.clone()).unwrap();
        }
        seal(&sink, &last).unwrap();
        assert_eq!(lab.memory("web", "final"), memory);
        let shares = sink.counters().shares;
        let (all, sent) = (
            memory.values().map(|held| held.len() as u64).sum::<u64>(),
            shares.copies.page_bytes / PAGE_SIZE,
        );
        assert!(sent == copied && copied > all / 2, "{copied} of {all}: {shares:?}");
        assert_eq!(shares.total().page_bytes / PAGE_SIZE, all);
    }
}

/// A page file or a slot that is not there ends the round by name, and not the server.
#[test]
fn copies_to_where_there_is_no_slot_fail_the_round() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let mut rng = Rng(22);
    let wrong = [
        CopyTo { at: 0, pages: 1, pages_id: 9, first_slot: 0 },
        CopyTo { at: 0, pages: 1, pages_id: 1, first_slot: 700 },
        CopyTo { at: 0, pages: 1, pages_id: 1, first_slot: 0 },
    ];
    for (number, copy) in (1..).zip(wrong) {
        let round = of_session(plain_round(number, RoundKind::Round, 300, &mut rng), "web");
        sink.begin(&round.plan).unwrap();
        let Content::Data(bytes) = data_of(&[7]) else { panic!("no data") };
        let content = Content::Spread { bytes, copies: vec![copy] };
        sink.fill(Fill { round: number, pages_id: 1, first_slot: 0, content }).unwrap();
        let error = sink.seal(number, &round.manifest).unwrap_err();
        assert!(error.to_string().contains("pages-"), "{copy:?}: {error}");
        sink.abandon(number).unwrap();
    }
    let again = of_session(plain_round(9, RoundKind::Round, 300, &mut rng), "web");
    send(&sink, &again, &mut rng).unwrap();
}

/// Cuts data at extent borders.
fn split(content: &Content, first_slot: u64) -> Vec<(u64, Content)> {
    let Content::Data(bytes) = content else { panic!("no data") };
    let (mut at, mut rest, mut parts) = (first_slot, bytes.clone(), Vec::new());
    while !rest.is_empty() {
        let pages = (EXTENT_SLOTS - at % EXTENT_SLOTS).min((rest.len() / PAGE) as u64);
        parts.push((at, Content::Data(rest.split_to(pages as usize * PAGE))));
        at += pages;
    }
    parts
}

#[test]
fn a_missing_page_fails_the_round_and_the_session_goes_on() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let mut rng = Rng(5);
    let first = of_session(plain_round(1, RoundKind::Round, 300, &mut rng), "web");
    sink.begin(&first.plan).unwrap();
    sink.image(1, "inventory.img", Bytes::from_static(b"x")).unwrap();
    let error = sink.seal(1, &first.manifest).unwrap_err();
    assert_eq!(code(&error), Some(Code::Mismatch), "{error}");
    sink.abandon(1).unwrap();
    sink.abandon(1).unwrap();
    assert_eq!(lab.names("web"), [""; 0]);
    let again = of_session(plain_round(2, RoundKind::Round, 300, &mut rng), "web");
    send(&sink, &again, &mut rng).unwrap();
    assert_eq!(lab.names("web"), ["round-0002"]);
}

#[test]
fn an_abandoned_round_leaves_nothing_and_its_number_is_spent() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let mut rng = Rng(6);
    let first = of_session(plain_round(1, RoundKind::Round, 300, &mut rng), "web");
    sink.begin(&first.plan).unwrap();
    fill_all(&sink, &first, &mut rng).unwrap();
    sink.abandon(1).unwrap();
    assert_eq!(lab.names("web"), [""; 0]);
    let error = sink.begin(&first.plan).unwrap_err().to_string();
    assert!(error.contains("RoundBegin"), "{error}");
}

#[test]
fn a_base_round_that_is_not_sealed_is_refused_by_name() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let runs = vec![PageRun { vaddr: PAGE_SIZE, nr_pages: 1, flags: PE_PRESENT }];
    let pages = vec![PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs }];
    let plan = RoundPlan { round: 9, base_round: Some(8), kind: RoundKind::Round, pages };
    let error = sink.begin(&plan).unwrap_err();
    assert_eq!(code(&error), Some(Code::RoundRefused));
    assert!(error.to_string().contains("base round 8 is not sealed"), "{error}");
}

#[test]
fn two_sessions_at_once_do_not_mix() {
    let lab = Lab::start();
    std::thread::scope(|scope| {
        for (seed, name) in [(1, "one"), (2, "two"), (3, "three")] {
            let lab = &lab;
            scope.spawn(move || {
                let sink = lab.session(name);
                let mut rng = Rng(seed);
                let memory = some_memory(3, 3000, &mut rng);
                let round = of_session(round_of(&memory, 1, None, RoundKind::Final, &mut rng), name);
                send(&sink, &round, &mut rng).unwrap();
                assert_eq!(lab.memory(name, "final"), memory);
            });
        }
    });
}

#[test]
fn sessions_of_two_connections_at_two_sockets_arrive_byte_for_byte() {
    let lab = Lab::start_with(|options| options.sockets = 2);
    assert_eq!(lab.server.sockets(), 2);
    // The kernel spreads connections by their ports: with eight of them, both sockets have some but once in 128 runs.
    for (seed, name) in [(21, "one"), (22, "two"), (23, "three"), (24, "four")] {
        let options = LinkOptions { connections: 2, ..options() };
        let link = Link::connect(&lab.address, &lab.client(), options).unwrap();
        let sink = link.open_session(wish(name)).unwrap();
        let mut rng = Rng(seed);
        let mut memory = some_memory(3, 2000, &mut rng);
        let first = of_session(round_of(&memory, 1, None, RoundKind::Round, &mut rng), name);
        send(&sink, &first, &mut rng).unwrap();
        change(&mut memory, &mut rng);
        let last = of_session(round_of(&memory, 2, Some(&first), RoundKind::Final, &mut rng), name);
        send(&sink, &last, &mut rng).unwrap();
        assert_eq!(lab.memory(name, "final"), memory);
    }
}

#[test]
fn a_link_cut_in_mid_round_leaves_only_what_was_acknowledged() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let mut rng = Rng(8);
    let first = of_session(plain_round(1, RoundKind::Round, 500, &mut rng), "web");
    send(&sink, &first, &mut rng).unwrap();
    let second = of_session(plain_round(2, RoundKind::Round, 500, &mut rng), "web");
    sink.begin(&second.plan).unwrap();
    fill_all(&sink, &second, &mut rng).unwrap();
    assert_eq!(lab.names("web"), [".staging-round-0002", "round-0001"]);
    sink.link().cut();
    let started = Instant::now();
    let error = sink.seal(2, &second.manifest).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(error.to_string().contains("is lost"), "{error}");
    lab.wait_names("web", &["round-0001"]);
    let refused = lab.link().open_session(wish("web")).err().unwrap();
    assert_eq!(refused.code(), Some(Code::NameTaken), "{refused}");
    assert!(refused.to_string().contains("--name"), "{refused}");
    let go_on = lab.link().open_session(SessionWish { go_on: true, ..wish("web") }).unwrap();
    assert_eq!(go_on.opened().sealed_rounds, [1]);
}

#[test]
fn a_client_that_goes_away_in_mid_round_leaves_nothing() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let mut rng = Rng(9);
    let round = of_session(plain_round(1, RoundKind::Final, 500, &mut rng), "web");
    sink.begin(&round.plan).unwrap();
    drop(sink);
    lab.wait_names("web", &[]);
}

#[test]
fn refusals_name_their_reason() {
    let lab = Lab::start_with(|options| options.sessions_max = 1);
    let refused = |wish: SessionWish| lab.link().open_session(wish).err().expect("refused").code();
    assert_eq!(refused(wish("../up")), Some(Code::BadName));
    assert_eq!(refused(SessionWish { want_restore: true, ..wish("web") }), Some(Code::NoRestore));
    let open = lab.session("web");
    assert_eq!(refused(wish("other")), Some(Code::Busy));
    drop(open);
    let error = lab.link().status(None, "nobody").unwrap_err();
    assert_eq!(error.code(), Some(Code::NoSession), "{error}");
}

#[test]
fn a_draining_server_takes_no_sessions_and_lets_the_open_one_end() {
    let lab = Lab::start();
    let sink = lab.session("web");
    let late = lab.link();
    let server = Arc::clone(&lab.server);
    let draining = std::thread::spawn(move || server.drain(Duration::from_secs(20)));
    std::thread::sleep(Duration::from_millis(200));
    let refused = late.open_session(wish("late")).err().unwrap();
    assert_eq!(refused.code(), Some(Code::Draining), "{refused}");
    let mut rng = Rng(4);
    let round = of_session(plain_round(1, RoundKind::Final, 700, &mut rng), "web");
    send(&sink, &round, &mut rng).unwrap();
    sink.link().close_session().unwrap();
    draining.join().unwrap();
    assert_eq!(lab.memory("web", "final"), round.memory);
}

#[test]
fn wrong_certificates_are_refused_at_both_ends_and_say_which_file() {
    let lab = Lab::start();
    let other = lab.dir.path().join("other");
    keys::init(&other, &[]).unwrap();
    let connect =
        |identity: &Identity| Link::connect(&lab.address, identity, options()).err().expect("refused");
    // A server that we do not trust.
    let error = connect(&Identity::client(&other));
    assert!(matches!(&error, LinkError::Quic(QuicError::ServerCertificate { .. })), "{error:?}");
    assert!(
        error.to_string().contains("other/ca.pem") && error.to_string().contains("godwit keys issue"),
        "{error}"
    );
    // A client that the server does not trust.
    let stranger = Identity { ca: lab.client().ca, ..Identity::client(&other) };
    let error = connect(&stranger).to_string();
    assert!(
        error.contains("does not accept the certificate") && error.contains("other/client.pem"),
        "{error}"
    );
    // A server's certificate is none for a client.
    let error = connect(&Identity::server(&lab.dir.path().join("keys"))).to_string();
    assert!(error.contains("does not accept the certificate"), "{error}");
    // The right server under a name that its certificate lacks.
    let port = lab.address.rsplit_once(':').unwrap().1;
    let error = Link::connect(&format!("127.0.0.2:{port}"), &lab.client(), options());
    let error = error.err().expect("refused");
    assert!(
        matches!(&error, LinkError::Quic(QuicError::ServerName { .. } | QuicError::Unreachable { .. })),
        "{error:?}"
    );
    // A file that is not there.
    let missing = Identity { key: other.join("nothing.key"), ..lab.client() };
    let error = connect(&missing).to_string();
    assert!(error.contains("nothing.key"), "{error}");
    lab.session("still-serving");
}

#[test]
fn the_name_called_must_be_in_the_certificate() {
    let lab = Lab::start_with(|options| options.listen = "0.0.0.0:0".parse().unwrap());
    let port = lab.address.rsplit_once(':').unwrap().1;
    Link::connect(&format!("localhost:{port}"), &lab.client(), options()).unwrap();
    let error = Link::connect(&format!("127.0.0.9:{port}"), &lab.client(), options()).err().expect("refused");
    assert!(matches!(&error, LinkError::Quic(QuicError::ServerName { .. })), "{error:?}");
    assert!(error.to_string().contains("--san"), "{error}");
}

#[test]
fn another_protocol_or_version_is_refused_by_name() {
    let lab = Lab::start();
    let error = connect_speaking(&lab.address, &lab.client(), &tuning(), b"h3").unwrap_err();
    assert!(matches!(error, QuicError::Protocol { .. }), "{error:?}");
    let hello = |versions: Vec<u32>, features| Hello { versions, features, tool_version: "test".to_owned() };
    let offer = |hello| Link::connect_offering(&lab.address, &lab.client(), options(), hello).err().unwrap();
    let error = offer(hello(vec![99], 0));
    assert_eq!(error.code(), Some(Code::Version), "{error}");
    assert!(error.to_string().contains("[99]") && error.to_string().contains("[1]"), "{error}");
    assert_eq!(offer(hello(vec![1], 1 << 50)).code(), Some(Code::Feature));
}

#[test]
fn garbage_on_the_port_does_no_harm() {
    let lab = Lab::start();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut rng = Rng(11);
    for length in 0..1500 {
        let mut garbage: Vec<u8> = (0..length).map(|_| rng.next() as u8).collect();
        // Half of it looks like the first packet of a connection.
        if length % 2 == 0 && length > 5 {
            garbage[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        socket.send_to(&garbage, &lab.address).unwrap();
    }
    let sink = lab.session("web");
    let round = of_session(plain_round(1, RoundKind::Final, 300, &mut rng), "web");
    send(&sink, &round, &mut rng).unwrap();
    assert_eq!(lab.memory("web", "final"), round.memory);
}

#[test]
fn nobody_at_the_address_is_said_with_the_address() {
    let lab = Lab::start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = Link::connect(&address, &lab.client(), options()).err().unwrap();
    assert!(matches!(&error, LinkError::Quic(QuicError::Unreachable { .. })), "{error:?}");
    assert!(error.to_string().contains(&address), "{error}");
    let error = Link::connect("no-port", &lab.client(), options()).err().unwrap();
    assert!(error.to_string().contains("HOST:PORT"), "{error}");
}

/// A bound from above, which a slow machine cannot break; and the change that lets the rest go.
#[test]
fn a_limited_link_keeps_to_its_rate_until_the_limit_is_changed() {
    const RATE: u64 = 128 << 10;
    let lab = Lab::start();
    let state = lab.dir.path().join("source");
    let pid = nix::unistd::Pid::from_raw(4711);
    let started = Instant::now();
    let bucket = Arc::new(Bucket::new(Some(RATE), started));
    let watch = limit::Watch::start(&state, pid, Arc::clone(&bucket)).unwrap();
    let tuning = Tuning { bucket: Arc::clone(&bucket), ..tuning() };
    let options = LinkOptions {
        tuning,
        connections: 2,
        compress: Compress::Never,
        watch: Some(Arc::new(watch)),
        ..options()
    };
    let link = Link::connect(&lab.address, &lab.client(), options).unwrap();
    let sink = link.open_session(wish("slow")).unwrap();
    let mut rng = Rng(5);
    // 6 MiB and more: most of a minute.
    let round = of_session(plain_round(1, RoundKind::Final, 2000, &mut rng), "slow");
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&sink, &round, &mut Rng(6)));
        let mut counted = 0;
        while started.elapsed() < Duration::from_millis(1500) {
            std::thread::sleep(Duration::from_millis(20));
            counted = bucket.counted_bytes();
            let allowed = RATE as f64 * started.elapsed().as_secs_f64() + Bucket::burst_bytes(RATE) as f64;
            assert!(counted as f64 <= allowed, "{counted} of {allowed}");
        }
        assert!(counted > 0 && !sending.is_finished());
        limit::change(&state, pid, "none").unwrap();
        sending.join().unwrap().unwrap();
    });
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(bucket.rate(), None);
    assert_eq!(lab.memory("slow", "final"), round.memory);
}
