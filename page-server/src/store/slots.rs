//! Sets of slots.

use std::ops::Range;

use godwit_wire::plan::EXTENT_SLOTS;

const WORDS: usize = (EXTENT_SLOTS / 64) as usize;

/// Slots of one extent, counted from its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots([u64; WORDS]);

impl Slots {
    /// From the words of a bitmap of all slots.
    pub(crate) fn of_words(words: &[u64]) -> Self {
        let mut slots = Self::default();
        slots.0.iter_mut().zip(words).for_each(|(slot, word)| *slot = *word);
        slots
    }

    /// Consecutive slots.
    pub(crate) fn of_range(range: Range<u64>) -> Self {
        let mut slots = Self::default();
        for (word, first) in slots.0.iter_mut().zip((0..).step_by(64)) {
            let from = range.start.clamp(first, first + 64) - first;
            let to = range.end.clamp(first, first + 64) - first;
            if from < to {
                *word = (u64::MAX >> (64 - (to - from))) << from;
            }
        }
        slots
    }

    /// Those in either.
    pub(crate) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// Those that are not in the other.
    pub(crate) fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// How many there are.
    pub(crate) fn count(self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Consecutive ones, in order.
    pub(crate) fn runs(self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true);
            if start == EXTENT_SLOTS {
                return None;
            }
            at = self.next(start, false);
            Some(start..at)
        })
    }

    /// The first slot from `at` on that is in the set, or is not.
    fn next(self, mut at: u64, held: bool) -> u64 {
        while at < EXTENT_SLOTS {
            let word = self.0[(at / 64) as usize];
            let word = (if held { word } else { !word }) >> (at % 64);
            if word != 0 {
                return at + u64::from(word.trailing_zeros());
            }
            at = (at / 64 + 1) * 64;
        }
        EXTENT_SLOTS
    }
}

/// Joins ascending numbers to ranges, the first `count_max` of them.
pub(crate) fn runs_of(numbers: impl Iterator<Item = u64>, count_max: usize) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        if let Some(run) = runs.last_mut().filter(|run| run.end == number) {
            run.end += 1;
        } else if runs.len() == count_max {
            break;
        } else {
            runs.push(number..number + 1);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_the_numbers() {
        for (from, to) in [(0, 0), (0, 1), (0, 256), (63, 65), (64, 128), (100, 256), (1, 255), (128, 129)] {
            for (second, end) in [(0, 0), (10, 20), (190, 256), (127, 128)] {
                let slots = Slots::of_range(from..to).or(Slots::of_range(second..end));
                let held = |slot: &u64| (from..to).contains(slot) || (second..end).contains(slot);
                assert_eq!(slots.runs().collect::<Vec<_>>(), runs_of((0..256).filter(held), usize::MAX));
                assert_eq!(slots.count(), (0..256).filter(held).count() as u64);
                let others = Slots::of_range(0..256).without(slots);
                assert_eq!(others.count() + slots.count(), 256);
                assert_eq!(slots.is_empty(), slots.count() == 0);
            }
        }
    }
}
