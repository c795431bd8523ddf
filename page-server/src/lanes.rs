//! Page lanes: a thread each reads frames, unpacks them and hands them to the store. The stream's window is the
//! queue in front of it; what it does not hold waits at the client.

use std::sync::Arc;

use godwit_wire::error::{Code, Malformed};
use godwit_wire::frame::{FrameHeader, Payload};
use godwit_wire::quic::{LaneReceiver, QuicError};
use godwit_wire::session::Admit;

use crate::admit::Session;
use crate::error::chain;
use crate::serve::Shared;
use crate::store::sink::{Content, Fill, Sink, SinkError};

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
    if join.epoch > session.epoch() || !session.add_lane(shared.options.lanes_max) {
        return refuse(lane, Code::Limit);
    }
    Ok(session)
}

fn receive(session: &Session, lane: &mut LaneReceiver) -> Result<(), LaneError> {
    while let Some((header, payload)) = lane.frame()? {
        if session.gate(|gate| gate.admit(&header))? == Admit::Drop {
            continue;
        }
        let payload = header.unpack(payload)?;
        match session.store.fill(fill_of(&header, payload)) {
            Ok(()) => {}
            Err(SinkError::WantData { pages_id, slots, .. }) => {
                session.want(header.round, header.epoch, pages_id, slots);
            }
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

fn fill_of(header: &FrameHeader, payload: Payload) -> Fill {
    let content = match payload {
        Payload::Data(bytes) => Content::Data(bytes),
        Payload::Zero => Content::Zero { pages: header.pages },
        Payload::Same(hashes) => Content::Same { hashes },
        Payload::Delta { bases, difference } => Content::Delta { bases, difference },
    };
    Fill { round: header.round, pages_id: header.pages_id, first_slot: header.first_slot, content }
}
