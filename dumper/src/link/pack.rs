//! Whether compression pays: it stays on only while the time that it saves on the link is more than the time
//! that it costs.

use std::time::Duration;

/// Whether pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compress {
    /// While it pays.
    Auto,
    /// Every block that shrinks.
    Always,
    /// Never.
    Never,
}

/// Blocks after which the balance is drawn.
const WINDOW: u32 = 64;
/// Windows that compression stays off before it is tried again.
const REST_WINDOWS: u32 = 8;

/// The balance of compression.
#[derive(Debug)]
pub(super) struct Balance {
    mode: Compress,
    blocks: u32,
    /// Windows until compression is tried again; 0 while it is on.
    rest: u32,
    raw_bytes: u64,
    sent_bytes: u64,
    packing: Duration,
    sending: Duration,
}

impl Balance {
    pub(super) fn new(mode: Compress) -> Self {
        let (packing, sending) = (Duration::ZERO, Duration::ZERO);
        Balance { mode, blocks: 0, rest: 0, raw_bytes: 0, sent_bytes: 0, packing, sending }
    }

    /// Whether the next block is to be packed.
    pub(super) fn is_on(&self) -> bool {
        match self.mode {
            Compress::Always => true,
            Compress::Never => false,
            Compress::Auto => self.rest == 0,
        }
    }

    /// Notes what a block cost: its length, what was sent of it, the time to pack it and to hand it to the link
    /// (which waits while the link is full).
    pub(super) fn note(&mut self, raw_bytes: usize, sent_bytes: usize, packing: Duration, sending: Duration) {
        self.blocks += 1;
        self.raw_bytes += raw_bytes as u64;
        self.sent_bytes += sent_bytes as u64;
        self.packing += packing;
        self.sending += sending;
        if self.blocks < WINDOW {
            return;
        }
        self.rest = match self.rest {
            0 if self.pays() => 0,
            0 => REST_WINDOWS,
            rest => rest - 1,
        };
        *self = Balance { rest: self.rest, ..Balance::new(self.mode) };
    }

    /// Whether sending the spared bytes too would have taken longer than packing did.
    fn pays(&self) -> bool {
        let spared = self.raw_bytes.saturating_sub(self.sent_bytes);
        let would_take = self.sending.as_secs_f64() / self.sent_bytes.max(1) as f64 * spared as f64;
        would_take > self.packing.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_rests_while_the_link_is_faster_and_is_tried_again() {
        let mut balance = Balance::new(Compress::Auto);
        let (slow, fast) = (Duration::from_millis(50), Duration::from_micros(50));
        let packing = Duration::from_millis(2);
        (0..WINDOW).for_each(|_| balance.note(1 << 20, 300 << 10, packing, slow));
        assert!(balance.is_on(), "a slow link is worth it");
        (0..WINDOW).for_each(|_| balance.note(1 << 20, 300 << 10, packing, fast));
        assert!(!balance.is_on(), "a fast one is not");
        (0..WINDOW * REST_WINDOWS).for_each(|_| balance.note(1 << 20, 1 << 20, Duration::ZERO, fast));
        assert!(balance.is_on(), "it is tried again");
        assert!(Balance::new(Compress::Always).is_on() && !Balance::new(Compress::Never).is_on());
    }
}
