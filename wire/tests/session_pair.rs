//! The two session machines against each other: the whole conversation, the link closed at every message, the
//! messages of the peer dropped, doubled and swapped, and garbage. Whatever comes, a machine answers with an
//! error that says who is at fault, and the two never believe in different sealed rounds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;
use godwit_wire::control::*;
use godwit_wire::error::SessionError;
use godwit_wire::plan::{
    PAGE_SIZE, PE_PARENT, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan,
};
use godwit_wire::session::{Phase, Receiver, Reply, Request, SealRequest, Sender};
use proptest::prelude::*;

fn plan(round: u32, kind: RoundKind) -> RoundPlan {
    let run = |page: u64, flags| PageRun { vaddr: page * PAGE_SIZE, nr_pages: 2, flags };
    let runs = (0..9000).map(|at| run(at * 2, if at % 3 == 0 { PE_PARENT } else { PE_PRESENT })).collect();
    let pages = vec![PagesPlan { owner: PageOwner::Task(7), pages_id: 1, runs }];
    RoundPlan { round, base_round: (round > 1).then(|| round - 1), kind, pages }
}

fn hello() -> Request {
    Request::Hello(Hello { versions: vec![1], features: 3, tool_version: "t".into() })
}

fn seal(round: u32, epoch: u32) -> Request {
    let manifest = Bytes::from(vec![round as u8; CHUNK_LEN_MAX + 10]);
    Request::Seal(SealRequest { round, epoch, frames: 4, manifest })
}

fn image(round: u32) -> Request {
    Request::Image { round, name: "core-7.img".into(), bytes: Bytes::from(vec![1; 2 * CHUNK_LEN_MAX + 1]) }
}

/// A whole migration: each request with the answer that it gets, if it gets one.
fn migration() -> Vec<(Request, Option<Reply>)> {
    let open = OpenSession { name: "web".into(), ..OpenSession::default() };
    let accepted = |round, epoch| Some(Reply::from(RoundAccepted { round, epoch }));
    vec![
        (hello(), Some(HelloAck { version: 1, features: 3, ..HelloAck::default() }.into())),
        (Request::Open(open), Some(SessionOpened { epoch: 1, ..SessionOpened::default() }.into())),
        (Request::Begin(plan(1, RoundKind::Round)), accepted(1, 1)),
        (image(1), None),
        (seal(1, 1), Some(RoundSealed { round: 1, ..RoundSealed::default() }.into())),
        (Request::Begin(plan(2, RoundKind::Round)), accepted(2, 1)),
        (Request::Abandon { round: 2 }, Some(RoundAbandoned { round: 2 }.into())),
        (
            Request::Begin(plan(3, RoundKind::Round)),
            Some(RoundFailed { round: 3, ..RoundFailed::default() }.into()),
        ),
        (Request::Abandon { round: 3 }, Some(RoundAbandoned { round: 3 }.into())),
        (Request::Begin(plan(4, RoundKind::Final)), accepted(4, 1)),
        (image(4), None),
        (seal(4, 1), Some(Resend { round: 4, epoch: 2, wants: vec![] }.into())),
        (seal(4, 2), Some(Prepared { round: 4, ..Prepared::default() }.into())),
        (Request::Restore(Restore {}), Some(Restored { pid: 70, ..Restored::default() }.into())),
        (Request::Commit(Commit { token: 1 }), Some(Done { pid: 70, resume_us: 5 }.into())),
    ]
}

#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    replies: Vec<Reply>,
    /// Rounds that the server acknowledged, and those whose acknowledgement the client has.
    acknowledged: BTreeSet<u32>,
    believed: BTreeSet<u32>,
}

/// Runs a migration, and hands every message in both directions to `meddle`, which gives what arrives, or `None`
/// to cut the link there.
fn run(
    mut meddle: impl FnMut(usize, Message) -> Option<Vec<Message>>,
) -> (Sender, Receiver, Seen, Option<SessionError>) {
    let (mut sender, mut receiver, mut seen) = (Sender::new(), Receiver::new(), Seen::default());
    let mut count = 0;
    for (request, reply) in migration() {
        if let Err(error) = sender.handle_local(request) {
            return (sender, receiver, seen, Some(error));
        }
        while let Some(message) = sender.poll_transmit() {
            count += 1;
            let Some(arriving) = meddle(count, Message::Up(message)) else {
                return (sender, receiver, seen, None);
            };
            for message in arriving {
                let Message::Up(message) = message else { continue };
                match receiver.handle_message(message) {
                    Ok(request) => seen.requests.extend(request),
                    Err(error) => return (sender, receiver, seen, Some(error)),
                }
            }
        }
        let Some(reply) = reply else { continue };
        if let Reply::RoundSealed(RoundSealed { round, .. }) | Reply::Prepared(Prepared { round, .. }) =
            &reply
            && matches!(receiver.phase(), Phase::Sealing(_))
        {
            seen.acknowledged.insert(*round);
        }
        if let Err(error) = receiver.handle_local(reply) {
            // What the client said did not arrive whole: the server has nothing to answer, and the client waits.
            assert!(matches!(error, SessionError::Misused(_)));
            return (sender, receiver, seen, Some(error));
        }
        while let Some(message) = receiver.poll_transmit() {
            count += 1;
            let Some(arriving) = meddle(count, Message::Down(message)) else {
                return (sender, receiver, seen, None);
            };
            for message in arriving {
                let Message::Down(message) = message else { continue };
                match sender.handle_message(message) {
                    Ok(Some(reply)) => {
                        if let Reply::RoundSealed(RoundSealed { round, .. })
                        | Reply::Prepared(Prepared { round, .. }) = &reply
                        {
                            seen.believed.insert(*round);
                        }
                        seen.replies.push(reply);
                    }
                    Ok(None) => {}
                    Err(error) => return (sender, receiver, seen, Some(error)),
                }
            }
        }
    }
    (sender, receiver, seen, None)
}

#[derive(Clone)]
enum Message {
    Up(ToServer),
    Down(ToClient),
}

#[test]
fn a_whole_migration_passes_and_every_request_arrives_whole() {
    let mut names = BTreeSet::new();
    let (sender, receiver, seen, error) = run(|_, message| {
        names.insert(match &message {
            Message::Up(message) => message.name(),
            Message::Down(message) => message.name(),
        });
        // What is sent is what arrives after it was bytes.
        Some(vec![match message {
            Message::Up(message) => {
                Message::Up(ToServer::from_wire(&message.to_wire().unwrap()[4..]).unwrap())
            }
            Message::Down(message) => {
                Message::Down(ToClient::from_wire(&message.to_wire().unwrap()[4..]).unwrap())
            }
        }])
    });
    assert_eq!(error, None);
    let sent: Vec<_> = migration().into_iter().map(|(request, _)| request).collect();
    assert_eq!(seen.requests, sent);
    assert_eq!(seen.replies, migration().into_iter().filter_map(|(_, reply)| reply).collect::<Vec<_>>());
    assert_eq!((sender.phase(), receiver.phase()), (Phase::Closed, Phase::Closed));
    assert!(names.contains("Seal") && names.contains("Prepare") && names.contains("PlanChunk"));
}

#[test]
fn closed_at_every_message_the_client_never_believes_more_than_was_acknowledged() {
    let mut total = 0;
    run(|count, message| {
        total = count;
        Some(vec![message])
    });
    assert!(total > 30, "{total}");
    for cut in 1..=total {
        let (mut sender, mut receiver, seen, error) =
            run(|count, message| (count != cut).then(|| vec![message]));
        assert_eq!(error, None, "cut at {cut}");
        assert!(seen.believed.is_subset(&seen.acknowledged), "cut at {cut}");
        let (there, here) = (receiver.handle_closed(), sender.handle_closed());
        // What the server would remove as unsealed is nothing that the client was told is durable.
        assert!(
            there.open_round().is_none_or(|round| !seen.believed.contains(&round)),
            "cut at {cut}: {there} / {here}"
        );
        assert!(sender.poll_transmit().is_none() && receiver.poll_transmit().is_none());
        assert!(matches!(sender.handle_local(image(1)), Err(SessionError::Misused(_))));
        let late = ToServer::from(RoundAbandon { round: 1 });
        assert!(matches!(receiver.handle_message(late), Err(SessionError::PeerMisbehaved(_))));
    }
}

#[test]
fn a_dropped_doubled_or_swapped_message_never_makes_the_two_disagree_on_what_is_sealed() {
    let mut total = 0;
    run(|count, message| {
        total = count;
        Some(vec![message])
    });
    for hit in 1..total {
        for how in ["drop", "double", "swap"] {
            let mut held: Option<Message> = None;
            let (.., seen, _) = run(|count, message| {
                Some(match how {
                    _ if count == hit && how == "drop" => vec![],
                    _ if count == hit && how == "double" => vec![message.clone(), message],
                    _ if count == hit => {
                        held = Some(message);
                        vec![]
                    }
                    _ => std::iter::once(message).chain(held.take()).collect(),
                })
            });
            assert!(seen.believed.is_subset(&seen.acknowledged), "{how} at {hit}");
        }
    }
}

#[test]
fn what_is_out_of_order_is_refused_at_both_ends() {
    let steps = migration();
    for upto in 0..steps.len() {
        let (mut sender, mut receiver) = (Sender::new(), Receiver::new());
        for (request, reply) in steps[..upto].iter().cloned() {
            sender.handle_local(request).unwrap();
            while let Some(message) = sender.poll_transmit() {
                receiver.handle_message(message).unwrap();
            }
            if let Some(reply) = reply {
                receiver.handle_local(reply).unwrap();
                while let Some(message) = receiver.poll_transmit() {
                    sender.handle_message(message).unwrap();
                }
            }
        }
        assert_eq!(sender.phase(), receiver.phase(), "after {upto} steps");
        // Restore before Prepared, Commit before Restored, a used round number, another epoch.
        if !matches!(sender.phase(), Phase::Prepared) {
            assert!(sender.handle_local(Request::Restore(Restore {})).is_err());
            assert!(receiver.handle_message(Restore {}.into()).is_err());
        }
        if !matches!(sender.phase(), Phase::Restored) {
            assert!(sender.handle_local(Request::Commit(Commit { token: 1 })).is_err());
        }
        if sender.phase() == Phase::Open {
            assert!(sender.handle_local(Request::Begin(plan(1, RoundKind::Round))).is_err() || upto == 2);
        }
        if let Phase::Filling(round) = sender.phase() {
            assert!(sender.handle_local(seal(round.number, round.epoch + 1)).is_err());
            assert!(sender.handle_local(image(round.number + 1)).is_err());
        }
        assert!(sender.handle_message(SessionClosed {}.into()).is_err(), "after {upto} steps");
    }
}

#[test]
fn an_abort_makes_the_crossing_answer_void() {
    let (mut sender, mut receiver) = (Sender::new(), Receiver::new());
    for (request, reply) in migration().into_iter().take(13) {
        sender.handle_local(request).unwrap();
        while let Some(message) = sender.poll_transmit() {
            receiver.handle_message(message).unwrap();
        }
        if let Some(reply) = reply {
            receiver.handle_local(reply).unwrap();
            while let Some(message) = receiver.poll_transmit() {
                sender.handle_message(message).unwrap();
            }
        }
    }
    sender.handle_local(Request::Restore(Restore {})).unwrap();
    receiver.handle_message(sender.poll_transmit().unwrap()).unwrap();
    // The server answers while the abort is on its way.
    receiver.handle_local(Restored::default().into()).unwrap();
    sender.handle_local(Request::Abort(Abort::default())).unwrap();
    assert_eq!(sender.handle_message(receiver.poll_transmit().unwrap()), Ok(None));
    receiver.handle_message(sender.poll_transmit().unwrap()).unwrap();
    // An answer of the restore that comes after the abort is not sent at all.
    receiver.handle_local(RestoreFailed::default().into()).unwrap();
    assert!(receiver.poll_transmit().is_none());
    receiver.handle_local(Aborted {}.into()).unwrap();
    let reply = sender.handle_message(receiver.poll_transmit().unwrap()).unwrap();
    assert_eq!(reply, Some(Reply::Aborted(Aborted {})));
    assert_eq!((sender.phase(), receiver.phase()), (Phase::Closed, Phase::Closed));
}

#[test]
fn what_was_sent_for_a_failed_round_before_the_news_came_is_dropped() {
    let (mut sender, mut receiver) = (Sender::new(), Receiver::new());
    for (request, reply) in migration().into_iter().take(3) {
        sender.handle_local(request).unwrap();
        while let Some(message) = sender.poll_transmit() {
            receiver.handle_message(message).unwrap();
        }
        receiver.handle_local(reply.unwrap()).unwrap();
        sender.handle_message(receiver.poll_transmit().unwrap()).unwrap();
    }
    receiver.handle_local(RoundFailed { round: 1, ..RoundFailed::default() }.into()).unwrap();
    // A second failure of the same round is no news.
    receiver.handle_local(RoundFailed { round: 1, ..RoundFailed::default() }.into()).unwrap();
    sender.handle_local(image(1)).unwrap();
    sender.handle_local(seal(1, 1)).unwrap();
    while let Some(message) = sender.poll_transmit() {
        assert_eq!(receiver.handle_message(message), Ok(None));
    }
    let news = sender.handle_message(receiver.poll_transmit().unwrap()).unwrap();
    assert!(matches!(news, Some(Reply::RoundFailed(_))));
    assert!(receiver.poll_transmit().is_none());
    assert_eq!((sender.phase(), receiver.phase()), (Phase::Open, Phase::Open));
    assert!(sender.handle_local(Request::Begin(plan(1, RoundKind::Round))).is_err());
    sender.handle_local(Request::Begin(plan(2, RoundKind::Round))).unwrap();
}

/// Some message of the client, mostly of the right shape and at the wrong time.
fn any_up() -> impl Strategy<Value = ToServer> {
    let small = 0u32..4;
    prop_oneof![
        Just(ToServer::from(Hello { versions: vec![1], features: 0, tool_version: String::new() })),
        Just(OpenSession { name: "x".into(), ..OpenSession::default() }.into()),
        (small.clone(), any::<bool>(), 0u32..3).prop_map(|(round, is_final, lists)| RoundBegin {
            round,
            base_round: None,
            is_final,
            lists
        }
        .into()),
        (small.clone(), any::<u64>(), any::<u64>(), 0u32..8).prop_map(|(round, page, nr_pages, flags)| {
            let runs = vec![Run { page, nr_pages, flags }];
            PlanChunk { round, parts: vec![PlanPart { task: Some(1), shmem: None, pages_id: round, runs }] }
                .into()
        }),
        (small.clone(), 0u64..3, any::<u64>()).prop_map(|(round, runs, slots)| PlanEnd {
            round,
            runs,
            slots
        }
        .into()),
        (small.clone(), any::<u64>())
            .prop_map(|(round, size)| Image { round, name: "a.img".into(), size }.into()),
        (0usize..5).prop_map(|len| ImageChunk { bytes: vec![0; len].into() }.into()),
        (small.clone(), 0u64..9).prop_map(|(round, size)| Seal {
            round,
            epoch: 1,
            frames: 0,
            manifest_size: size
        }
        .into()),
        (small.clone(), any::<u64>()).prop_map(|(round, size)| Prepare {
            round,
            epoch: 1,
            frames: 0,
            manifest_size: size
        }
        .into()),
        (0usize..5).prop_map(|len| ManifestChunk { bytes: vec![0; len].into() }.into()),
        small.prop_map(|round| RoundAbandon { round }.into()),
        Just(Restore {}.into()),
        Just(Commit { token: 1 }.into()),
        Just(Abort::default().into()),
        Just(CloseSession {}.into()),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = ToServer::from_wire(&bytes) {
            let _ = Receiver::new().handle_message(message);
        }
        if let Ok(message) = ToClient::from_wire(&bytes) {
            let _ = Sender::new().handle_message(message);
        }
    }

    #[test]
    fn any_sequence_of_messages_leaves_the_receiver_standing(messages in proptest::collection::vec(any_up(), 0..60)) {
        let mut receiver = Receiver::new();
        let mut accepted = BTreeSet::new();
        for message in messages {
            match receiver.handle_message(message) {
                Ok(Some(Request::Hello(_))) => receiver.handle_local(HelloAck { version: 1, ..HelloAck::default() }.into()).unwrap(),
                Ok(Some(Request::Open(_))) => receiver.handle_local(SessionOpened { epoch: 1, ..SessionOpened::default() }.into()).unwrap(),
                Ok(Some(Request::Begin(plan))) => {
                    prop_assert!(accepted.insert(plan.round), "a round number was taken twice");
                    receiver.handle_local(RoundAccepted { round: plan.round, epoch: 1 }.into()).unwrap();
                }
                Ok(Some(Request::Restore(_) | Request::Commit(_))) => prop_assert!(false, "nothing was prepared"),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}
