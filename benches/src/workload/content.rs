//! What fills memory: it decides what compression and zero tests are worth.

use super::PAGE;
use super::heap::Heap;

/// What fills the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Content {
    /// Words of a generator: nothing to compress.
    Random,
    /// Words of a small dictionary, as in logs and markup.
    Text,
    /// Nine pages in ten are zero, the rest random: an overallocated heap.
    ZeroHeavy,
    /// The heap of a CPython interpreter full of objects.
    Cpython,
    /// The heap of a sqlite database in memory.
    Sqlite,
    /// The heap of a Redis server, replayed from memory.
    Redis,
}

impl Content {
    /// Which program's heap it is; `None` for what is generated.
    pub fn heap(self) -> Option<Heap> {
        match self {
            Content::Random | Content::Text | Content::ZeroHeavy => None,
            Content::Cpython => Some(Heap::Cpython),
            Content::Sqlite => Some(Heap::Sqlite),
            Content::Redis => Some(Heap::Redis),
        }
    }
}

/// Fills memory page by page; the same every time. Heaps are not made here: for them the memory stays as it is.
pub fn fill(content: Content, memory: &mut [u8]) {
    for (number, page) in memory.chunks_mut(PAGE).enumerate() {
        match content {
            Content::Random => random(number as u64, page),
            Content::Text => text(number as u64, page),
            Content::ZeroHeavy if number % 10 == 0 => random(number as u64, page),
            // Written, so that the page is there: an untouched one would cost nobody anything.
            Content::ZeroHeavy => page.fill(0),
            Content::Cpython | Content::Sqlite | Content::Redis => {}
        }
    }
}

pub(super) fn random(seed: u64, page: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.chunks_mut(8) {
        word.copy_from_slice(&next(&mut state).to_le_bytes()[..word.len()]);
    }
}

fn text(seed: u64, page: &mut [u8]) {
    const WORDS: [&str; 8] = [
        "GET /index.html ",
        "200 OK ",
        "user=",
        "session ",
        "127.0.0.1 - - ",
        "\"-\" ",
        "cache miss\n",
        "0x7f",
    ];
    let mut state = seed | 1 << 63;
    let mut at = 0;
    while at < page.len() {
        let word = WORDS[(next(&mut state) % WORDS.len() as u64) as usize].as_bytes();
        let len = word.len().min(page.len() - at);
        page[at..at + len].copy_from_slice(&word[..len]);
        at += len;
    }
}

/// One step of a xorshift generator.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_what_they_are_called() {
        let mut memory = vec![1u8; 100 * PAGE];
        fill(Content::ZeroHeavy, &mut memory);
        let zero = memory.chunks(PAGE).filter(|page| page.iter().all(|byte| *byte == 0)).count();
        assert_eq!(zero, 90);
        fill(Content::Text, &mut memory);
        assert!(memory.iter().all(u8::is_ascii));
        fill(Content::Random, &mut memory);
        let mut seen = [false; 256];
        memory.iter().for_each(|byte| seen[usize::from(*byte)] = true);
        assert!(seen.iter().all(|seen| *seen));
    }
}
