//! The table of what may follow what. Both machines apply it to the same requests and replies, so they walk
//! through the same phases; where messages can cross on the way, the machines say so themselves.

use super::message::{Reply, Request};
use crate::error::OutOfOrder;

/// The round that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Its number.
    pub number: u32,
    /// Whether it is the final set.
    pub is_final: bool,
    /// Epoch of its frames; 0 until it is accepted.
    pub epoch: u32,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said.
    Start,
    /// `Hello` waits for its answer.
    Greeting,
    /// Version and features are agreed on.
    Agreed,
    /// A query or a decision about some session waits for its answer.
    Asking,
    /// `OpenSession` waits for its answer.
    Opening,
    /// The session is open, no round is.
    Open,
    /// The page lists of a round wait for the answer.
    Listing(Round),
    /// Frames and images of a round go over.
    Filling(Round),
    /// `Seal` or `Prepare` waits for its answer.
    Sealing(Round),
    /// `RoundAbandon` waits for its answer.
    Abandoning(u32),
    /// The final set is durable.
    Prepared,
    /// `Restore` waits for its answer.
    Restoring,
    /// The tree is restored and held.
    Restored,
    /// The restore failed, and nothing of it is left.
    Undone,
    /// `Commit` waits for its answer.
    Committing,
    /// `Abort` waits for its answer.
    Aborting,
    /// `CloseSession` waits for its answer.
    Closing,
    /// Nothing more is said.
    Closed,
}

impl Phase {
    /// The open round, if there is one that was not sealed.
    pub fn open_round(&self) -> Option<u32> {
        match self {
            Phase::Listing(round) | Phase::Filling(round) | Phase::Sealing(round) => Some(round.number),
            Phase::Abandoning(number) => Some(*number),
            _ => None,
        }
    }

    /// Whether the hand-over has begun: from here on the journals decide what becomes of the session.
    pub fn is_handed_over(&self) -> bool {
        matches!(
            self,
            Phase::Prepared | Phase::Restoring | Phase::Restored | Phase::Committing | Phase::Aborting
        )
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Phase::Start => f.write_str("before the greeting"),
            Phase::Greeting => f.write_str("while the greeting waits for its answer"),
            Phase::Agreed => f.write_str("before a session is open"),
            Phase::Asking => f.write_str("while a question waits for its answer"),
            Phase::Opening => f.write_str("while the session waits to be opened"),
            Phase::Open => f.write_str("while no round is open"),
            Phase::Listing(round) => write!(f, "while the page lists of round {} are judged", round.number),
            Phase::Filling(round) => {
                write!(f, "while round {} (epoch {}) is filled", round.number, round.epoch)
            }
            Phase::Sealing(round) => {
                write!(f, "while round {} (epoch {}) is sealed", round.number, round.epoch)
            }
            Phase::Abandoning(number) => write!(f, "while round {number} is dropped"),
            Phase::Prepared => f.write_str("after the final set was sealed"),
            Phase::Restoring => f.write_str("during the restore"),
            Phase::Restored => f.write_str("while the restored tree is held"),
            Phase::Undone => f.write_str("after the restore failed"),
            Phase::Committing => f.write_str("after Commit"),
            Phase::Aborting => f.write_str("after Abort"),
            Phase::Closing => f.write_str("after CloseSession"),
            Phase::Closed => f.write_str("after the end of the session"),
        }
    }
}

/// A session's phase and the rounds that are over.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) phase: Phase,
    /// The highest round number that was used.
    last_round: u32,
    /// The last round that failed or was dropped; what was sent for it before that was known is void.
    dead_round: Option<u32>,
    /// Highest epoch named so far.
    epoch: u32,
}

impl Order {
    pub(super) fn new() -> Self {
        Order { phase: Phase::Start, last_round: 0, dead_round: None, epoch: 0 }
    }

    /// Whether the round failed or was dropped, and is not open again: it never will be.
    pub(super) fn is_dead(&self, round: u32) -> bool {
        self.dead_round == Some(round)
    }

    pub(super) fn request(&mut self, request: &Request) -> Result<(), OutOfOrder> {
        self.phase = self.after_request(request).ok_or_else(|| self.wrong(request.name()))?;
        if let Request::Begin(plan) = request {
            self.last_round = plan.round;
        }
        Ok(())
    }

    pub(super) fn reply(&mut self, reply: &Reply) -> Result<(), OutOfOrder> {
        let next = self.after_reply(reply).ok_or_else(|| self.wrong(reply.name()))?;
        match reply {
            Reply::RoundFailed(failed) => self.dead_round = Some(failed.round),
            Reply::RoundAbandoned(abandoned) => self.dead_round = Some(abandoned.round),
            Reply::RoundAccepted(accepted) => self.epoch = accepted.epoch,
            Reply::Resend(resend) => self.epoch = resend.epoch,
            Reply::SessionOpened(opened) => self.epoch = opened.epoch,
            _ => {}
        }
        self.phase = next;
        Ok(())
    }

    pub(super) fn wrong(&self, message: &'static str) -> OutOfOrder {
        OutOfOrder { message, phase: self.phase.to_string() }
    }

    fn after_request(&self, request: &Request) -> Option<Phase> {
        match (request, self.phase) {
            (Request::Hello(_), Phase::Start) => Some(Phase::Greeting),
            (Request::Open(_), Phase::Agreed) => Some(Phase::Opening),
            (Request::Query(_) | Request::Resolve(_), Phase::Agreed) => Some(Phase::Asking),
            (Request::Begin(plan), Phase::Open) if plan.round > self.last_round => {
                let is_final = plan.kind == crate::plan::RoundKind::Final;
                Some(Phase::Listing(Round { number: plan.round, is_final, epoch: 0 }))
            }
            (Request::Image { round, .. }, Phase::Filling(open)) if *round == open.number => Some(self.phase),
            (Request::Seal(seal), Phase::Filling(open))
                if seal.round == open.number && seal.epoch == open.epoch =>
            {
                Some(Phase::Sealing(open))
            }
            (Request::Abandon { round }, Phase::Filling(open)) if *round == open.number => {
                Some(Phase::Abandoning(*round))
            }
            (Request::Abandon { round }, Phase::Open) if self.is_dead(*round) => {
                Some(Phase::Abandoning(*round))
            }
            (Request::Close(_), Phase::Open | Phase::Prepared | Phase::Undone) => Some(Phase::Closing),
            (Request::Restore(_), Phase::Prepared) => Some(Phase::Restoring),
            (Request::Commit(_), Phase::Restored) => Some(Phase::Committing),
            (Request::Abort(_), Phase::Prepared | Phase::Restoring | Phase::Restored | Phase::Undone) => {
                Some(Phase::Aborting)
            }
            _ => None,
        }
    }

    fn after_reply(&self, reply: &Reply) -> Option<Phase> {
        match (reply, self.phase) {
            (Reply::HelloAck(_), Phase::Greeting) => Some(Phase::Agreed),
            (Reply::Refused(_), Phase::Greeting | Phase::Opening) => Some(Phase::Closed),
            (Reply::SessionStatus(_) | Reply::SessionResolved(_), Phase::Asking) => Some(Phase::Agreed),
            (Reply::SessionOpened(_), Phase::Opening) => Some(Phase::Open),
            (Reply::RoundAccepted(accepted), Phase::Listing(open)) => {
                let fits = accepted.round == open.number && accepted.epoch >= self.epoch.max(1);
                fits.then_some(Phase::Filling(Round { epoch: accepted.epoch, ..open }))
            }
            (Reply::RoundFailed(failed), phase) if phase.open_round() == Some(failed.round) => match phase {
                // The answer to RoundAbandon is still to come.
                Phase::Abandoning(_) => Some(phase),
                _ => Some(Phase::Open),
            },
            (Reply::Resend(resend), Phase::Sealing(open)) => {
                let fits = resend.round == open.number && resend.epoch > open.epoch;
                fits.then_some(Phase::Filling(Round { epoch: resend.epoch, ..open }))
            }
            (Reply::RoundSealed(sealed), Phase::Sealing(open)) => {
                (sealed.round == open.number && !open.is_final).then_some(Phase::Open)
            }
            (Reply::Prepared(prepared), Phase::Sealing(open)) => {
                (prepared.round == open.number && open.is_final).then_some(Phase::Prepared)
            }
            (Reply::RoundAbandoned(abandoned), Phase::Abandoning(number)) => {
                (abandoned.round == number).then_some(Phase::Open)
            }
            (Reply::Restored(_), Phase::Restoring) => Some(Phase::Restored),
            (Reply::RestoreFailed(_), Phase::Restoring) => Some(Phase::Undone),
            // These crossed an Abort on the way: the answer to that one decides.
            (Reply::Restored(_) | Reply::RestoreFailed(_), Phase::Aborting) => Some(Phase::Aborting),
            (Reply::Done(_) | Reply::Failed(_), Phase::Committing) => Some(Phase::Closed),
            (Reply::Aborted(_), Phase::Aborting) => Some(Phase::Closed),
            (Reply::SessionClosed(_), Phase::Closing) => Some(Phase::Closed),
            (Reply::Error(_), _) => Some(Phase::Closed),
            _ => None,
        }
    }
}
