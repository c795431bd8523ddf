//! Page lanes: a thread each reads frames and unpacks them into the buffers of the store, whose writers take them from
//! there. The stream's window is the queue in front of it; what neither holds waits at the client.

use std::sync::Arc;

use godwit_wire::error::{Code, Malformed};
use godwit_wire::frame::{COUNT_LEN, Codec, FrameHeader, Kind};
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE};
use godwit_wire::quic::{LaneReceiver, QuicError};
use godwit_wire::session::Admit;

use crate::admit::Session;
use crate::error::chain;
use crate::serve::Shared;
use crate::store::session::OpenRound;
use crate::store::sink::SinkError;
use crate::store::{Arrival, FillError, combine};

/// Serves one lane until its client finishes it or breaks the protocol.
pub(crate) fn run(shared: &Shared, mut lane: LaneReceiver) {
    let peer = lane.connection().peer();
    let session = match admit(shared, &mut lane) {
        Ok(session) => session,
        Err(why) => {
            tracing::debug!(%peer, "a lane was refused: {why}");
            return;
        }
    };
    if let Err(error) = receive(&session, &mut lane) {
        let text = chain(&error);
        tracing::debug!(%peer, session = session.store.name(), "a lane ended: {text}");
        match error {
            LaneError::Link(QuicError::Malformed { .. }) | LaneError::Malformed(_) | LaneError::Early(_) => {
                lane.connection().close(Code::Malformed, &text);
            }
            // The frames that it carried may be missing; the session's own link decides whether anyone
            // is there to be told.
            LaneError::Link(_) => {
                if let Some(round) = session.gate(|gate| gate.open_round()) {
                    session.fail_round_as(round, Code::Mismatch, format!("a lane was lost: {text}"));
                }
            }
        }
    }
    session.remove_lane();
}

#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error(transparent)]
    Link(#[from] QuicError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Early(#[from] godwit_wire::error::OutOfOrder),
}

fn admit(shared: &Shared, lane: &mut LaneReceiver) -> Result<Arc<Session>, String> {
    let join = lane.join().map_err(|error| chain(&error))?;
    let refuse = |lane: &mut LaneReceiver, code: Code| {
        lane.refuse(code);
        Err(format!("session {}: {code}", join.session_id))
    };
    let Some(session) = shared.sessions.find(join.session_id) else { return refuse(lane, Code::NoSession) };
    if !session.secret.matches(&join.secret.0) {
        return refuse(lane, Code::BadToken);
    }
    if join.epoch > session.epoch() {
        return refuse(lane, Code::Limit);
    }
    let Some(others) = session.add_lane(shared.options.lanes_max) else { return refuse(lane, Code::Limit) };
    lane.admitted(others);
    Ok(session)
}

fn receive(session: &Session, lane: &mut LaneReceiver) -> Result<(), LaneError> {
    let mut spread = Vec::new();
    while let Some(header) = lane.header()? {
        if session.gate(|gate| gate.admit(&header))? == Admit::Drop {
            lane.skip(header.length)?;
            continue;
        }
        match store(session, lane, &header, &mut spread)? {
            Ok(()) => {}
            Err(SinkError::WantData { pages_id, slots, .. }) => {
                session.want(header.round, header.epoch, pages_id, slots);
            }
            Err(SinkError::Malformed { source, .. }) => return Err(source.into()),
            // After the round has ended otherwise, its store refuses: that is no news.
            Err(error) => {
                if session.gate(|gate| gate.frames(header.round, header.epoch)).is_some() {
                    session.fail_round(header.round, &error);
                }
            }
        }
        session.gate(|gate| gate.count(header.round, header.epoch));
    }
    Ok(())
}

/// What came of a frame in the store.
type Stored = Result<(), SinkError>;

/// Takes the payload of a frame into buffers of the round and from there to its slots. Bytes that come as they are lie
/// at their place from the start; those for several places lie in `spread` meanwhile.
fn store(
    session: &Session,
    lane: &mut LaneReceiver,
    header: &FrameHeader,
    spread: &mut Vec<u8>,
) -> Result<Stored, LaneError> {
    let round = match session.store.round(header.round) {
        Ok(round) => round,
        Err(error) => return skip(lane, header, error),
    };
    let (pages_id, first, pages) = (header.pages_id, header.first_slot, u64::from(header.pages));
    let length = header.length as usize;
    let put = |arrival: Arrival<'_>| round.put(pages_id, first, pages, arrival);
    match (header.kind, header.codec) {
        (Kind::Zero, _) => {
            header.verify(&[])?;
            Ok(round.spare_for_zeros(pages_id, first).and_then(|spare| put(Arrival::Zero(spare))))
        }
        (Kind::Data, Codec::Raw) => {
            let [mut buffer] = match round.buffers() {
                Ok(buffers) => buffers,
                Err(error) => return skip(lane, header, error),
            };
            let at = (first % EXTENT_SLOTS * PAGE_SIZE) as usize;
            let payload = &mut buffer[at..at + length];
            lane.payload(payload)?;
            header.verify(payload)?;
            Ok(put(Arrival::Placed(buffer)))
        }
        (Kind::Spread, _) => store_spread(&round, lane, header, spread),
        (Kind::Same, _) => {
            let mut payload = vec![0; length];
            lane.payload(&mut payload)?;
            header.verify(&payload)?;
            let hashes = header.same_hashes(&payload)?;
            let mut write = |pages: &mut [u8]| round.read_base(pages_id, first, &hashes, pages);
            Ok(round.buffers().and_then(|[spare]| put(Arrival::Written(spare, &mut write))))
        }
        (Kind::Data | Kind::Delta, _) => {
            let [mut packed, spare] = match round.buffers() {
                Ok(buffers) => buffers,
                Err(error) => return skip(lane, header, error),
            };
            lane.payload(&mut packed[..length])?;
            header.verify(&packed[..length])?;
            let bases = if header.kind == Kind::Delta { header.same_hashes(&packed)? } else { Vec::new() };
            let mut write = |pages: &mut [u8]| {
                header.unpack_into(&packed[..length], pages).map_err(FillError::Malformed)?;
                if bases.is_empty() {
                    return Ok(Vec::new());
                }
                // The payload has done its service: its buffer takes the pages of the base round.
                let held = &mut packed[..pages.len()];
                let different = round.read_base(pages_id, first, &bases, held)?;
                combine(pages, held);
                Ok(different)
            };
            Ok(put(Arrival::Written(spare, &mut write)))
        }
    }
}

/// Takes the pages of a SPREAD frame into memory of the lane's own, which it keeps for the next, and from there to all
/// their slots: a buffer of the round that is held while others are waited for would have lanes wait for each other.
fn store_spread(
    round: &OpenRound,
    lane: &mut LaneReceiver,
    header: &FrameHeader,
    spread: &mut Vec<u8>,
) -> Result<Stored, LaneError> {
    let mut count = [0; COUNT_LEN];
    lane.payload(&mut count)?;
    let mut table = vec![0; header.table_len(count)?];
    table[..COUNT_LEN].copy_from_slice(&count);
    lane.payload(&mut table[COUNT_LEN..])?;
    // Neither is longer than an extent: a decoded header has that many pages at most.
    spread.resize(EXTENT_SLOTS as usize * PAGE_SIZE as usize, 0);
    let pages = &mut spread[..header.pages as usize * PAGE_SIZE as usize];
    let length = header.length as usize - table.len();
    if header.is_packed() {
        let [mut packed] = match round.buffers() {
            Ok(buffers) => buffers,
            Err(error) => {
                lane.skip(length as u32)?;
                return Ok(Err(error));
            }
        };
        lane.payload(&mut packed[..length])?;
        header.verify_parts(&[&table[..], &packed[..length]])?;
        header.unpack_pages(&packed[..length], pages)?;
    } else {
        lane.payload(pages)?;
        header.verify_parts(&[&table[..], &*pages])?;
    }
    let copies = header.copies(&table)?;
    Ok(round.put_spread(header.pages_id, header.first_slot, pages, &copies))
}

/// Reads over the payload of a frame that cannot be stored.
fn skip(lane: &mut LaneReceiver, header: &FrameHeader, error: SinkError) -> Result<Stored, LaneError> {
    lane.skip(header.length)?;
    Ok(Err(error))
}
