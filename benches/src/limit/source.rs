//! What the limits move: memory too large for any cache, that no compression shrinks.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::workload::{Content, fill};

/// Length of the source in bytes: several times the largest last-level cache in use.
pub const SOURCE_LEN: usize = 256 << 20;

/// The source: the same in every process and every run.
pub fn cold() -> Bytes {
    static SOURCE: OnceLock<Bytes> = OnceLock::new();
    SOURCE
        .get_or_init(|| {
            let mut memory = vec![0; SOURCE_LEN];
            fill(Content::Random, &mut memory);
            memory.into()
        })
        .clone()
}

/// `total` bytes as pieces of at most `piece` bytes, cut from the source over and over.
pub fn pieces(total: u64, piece: usize) -> impl Iterator<Item = Bytes> + Send {
    let source = cold();
    let piece = piece.clamp(1, source.len());
    let per_lap = source.len() / piece;
    (0..total.div_ceil(piece as u64)).map(move |number| {
        let from = (number % per_lap as u64) as usize * piece;
        let left = total - number * piece as u64;
        source.slice(from..from + piece.min(usize::try_from(left).unwrap_or(usize::MAX)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_sum_up_and_wrap_around() {
        let piece = SOURCE_LEN / 3;
        let total = 4 * piece as u64 + 5;
        let cut: Vec<Bytes> = pieces(total, piece).collect();
        assert_eq!(cut.iter().map(|piece| piece.len() as u64).sum::<u64>(), total);
        assert_eq!(cut.last().unwrap().len(), 5);
        assert_eq!(cut[3].as_ptr(), cut[0].as_ptr());
        assert_ne!(cut[0][..4096], cut[1][..4096]);
    }
}
