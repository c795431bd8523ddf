//! Which frames count: those of the accepted round, in its present epoch. Lanes ask before they read a
//! payload into the store, and count what they have stored; `Seal` waits for the count.

use crate::error::OutOfOrder;
use crate::frame::FrameHeader;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// It counts.
    Take,
    /// It belongs to a round that is over or to an older epoch: read over it.
    Drop,
}

/// Knows the accepted round. Shared by the lanes of a session.
#[derive(Clone, Debug, Default)]
pub struct FrameGate {
    open: Option<Open>,
    /// The highest round that was ever accepted.
    highest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    round: u32,
    epoch: u32,
    frames: u64,
}

impl FrameGate {
    /// No round was accepted yet.
    pub fn new() -> Self {
        FrameGate::default()
    }

    /// A round is accepted; call it before the client can know. Also raises the epoch of the open round.
    pub fn open(&mut self, round: u32, epoch: u32) {
        self.highest = self.highest.max(round);
        self.open = Some(Open { round, epoch, frames: 0 });
    }

    /// The round is sealed, failed or dropped.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// What becomes of a frame with this header.
    ///
    /// # Errors
    /// [`OutOfOrder`] for a frame of a round or an epoch that was never announced.
    pub fn admit(&self, header: &FrameHeader) -> Result<Admit, OutOfOrder> {
        let early = |phase: String| Err(OutOfOrder { message: "a frame", phase });
        if header.round > self.highest || header.round == 0 {
            return early(format!("for round {} before its page lists were accepted", header.round));
        }
        match self.open {
            Some(open) if open.round == header.round && header.epoch > open.epoch => early(format!(
                "for epoch {} of round {} while that is at epoch {}",
                header.epoch, open.round, open.epoch
            )),
            Some(open) if open.round == header.round && header.epoch == open.epoch => Ok(Admit::Take),
            _ => Ok(Admit::Drop),
        }
    }

    /// A frame was stored. One of a round or an epoch that has ended meanwhile is not counted.
    pub fn count(&mut self, round: u32, epoch: u32) {
        if let Some(open) = &mut self.open
            && (open.round, open.epoch) == (round, epoch)
        {
            open.frames += 1;
        }
    }

    /// The round whose frames are taken now.
    pub fn open_round(&self) -> Option<u32> {
        self.open.map(|open| open.round)
    }

    /// Frames stored in this round and epoch; `None` if that is not the open one.
    pub fn frames(&self, round: u32, epoch: u32) -> Option<u64> {
        self.open.filter(|open| (open.round, open.epoch) == (round, epoch)).map(|open| open.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Codec, Kind};

    fn frame(round: u32, epoch: u32) -> FrameHeader {
        let (kind, codec) = (Kind::Zero, Codec::Raw);
        FrameHeader {
            round,
            epoch,
            pages_id: 1,
            first_slot: 0,
            pages: 1,
            kind,
            codec,
            length: 0,
            checksum: 0,
        }
    }

    #[test]
    fn frames_of_dead_rounds_and_old_epochs_are_dropped_and_early_ones_are_errors() {
        let mut gate = FrameGate::new();
        assert!(gate.admit(&frame(1, 1)).is_err());
        gate.open(1, 1);
        assert_eq!(gate.admit(&frame(1, 1)), Ok(Admit::Take));
        assert!(gate.admit(&frame(1, 2)).is_err());
        assert!(gate.admit(&frame(2, 1)).is_err());
        gate.count(1, 1);
        assert_eq!(gate.frames(1, 1), Some(1));
        gate.open(1, 2);
        assert_eq!(gate.admit(&frame(1, 1)), Ok(Admit::Drop));
        gate.count(1, 1);
        assert_eq!((gate.frames(1, 1), gate.frames(1, 2)), (None, Some(0)));
        gate.close();
        assert_eq!(gate.admit(&frame(1, 2)), Ok(Admit::Drop));
        gate.open(3, 2);
        assert_eq!(gate.admit(&frame(2, 2)), Ok(Admit::Drop));
        assert!(gate.admit(&frame(0, 2)).is_err());
    }
}
