//! Median and spread of repeated measurements, and ratios of values measured side by side.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Values of one quantity over the repeats of a measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    values: Vec<f64>,
}

/// As an object: `median`, `min`, `max`, and the `values` themselves, in order of the repeats.
impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            median: f64,
            min: f64,
            max: f64,
            values: &'a [f64],
        }
        let (min, max) = self.spread();
        Shown { median: self.median(), min, max, values: &self.values }.serialize(serializer)
    }
}

/// From such an object: the values say the rest.
impl<'de> Deserialize<'de> for Series {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Shown {
            values: Vec<f64>,
        }
        Shown::deserialize(deserializer).map(|shown| Series { values: shown.values })
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Series {
        Series { values: values.into_iter().collect() }
    }
}

impl Series {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Sums with another series, repeat by repeat.
    pub fn plus(&self, other: &Series) -> Series {
        self.values.iter().zip(&other.values).map(|(ours, theirs)| ours + theirs).collect()
    }

    /// Products with another series, repeat by repeat.
    pub fn times(&self, other: &Series) -> Series {
        self.values.iter().zip(&other.values).map(|(ours, theirs)| ours * theirs).collect()
    }

    /// Every value times a factor.
    pub fn scaled(&self, factor: f64) -> Series {
        self.values.iter().map(|value| value * factor).collect()
    }

    /// Adds the value of one repeat.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The values, in the order in which they came.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The middle value; the mean of the two middle ones of an even number; 0 without values.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => 0.0,
            odd if odd % 2 == 1 => sorted[odd / 2],
            even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
        }
    }

    /// Least and greatest value; zeros without values.
    pub fn spread(&self) -> (f64, f64) {
        let least = self.values.iter().copied().min_by(f64::total_cmp);
        let greatest = self.values.iter().copied().max_by(f64::total_cmp);
        (least.unwrap_or(0.0), greatest.unwrap_or(0.0))
    }

    /// The ratios to another series, repeat by repeat: what drifts between repeats falls out.
    pub fn over(&self, other: &Series) -> Series {
        Series { values: self.values.iter().zip(&other.values).map(|(ours, theirs)| ours / theirs).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_spreads_and_ratios() {
        let series = |values: &[f64]| Series { values: values.to_vec() };
        let odd = series(&[3.0, 1.0, 2.0]);
        assert!((odd.median() - 2.0).abs() < 1e-9);
        assert_eq!(odd.spread(), (1.0, 3.0));
        assert!((series(&[1.0, 4.0]).median() - 2.5).abs() < 1e-9);
        assert!((series(&[2.0, 9.0]).over(&series(&[4.0, 3.0])).median() - 1.75).abs() < 1e-9);
        assert!(series(&[]).median().abs() < 1e-9);
        assert_eq!(series(&[1.0, 2.0]).plus(&series(&[3.0, 5.0])), series(&[4.0, 7.0]));
    }

    #[test]
    fn what_is_shown_keeps_the_values() {
        let shown = serde_json::to_value([2.0, 6.0, 1.0].into_iter().collect::<Series>()).unwrap();
        assert_eq!(
            shown,
            serde_json::json!({"median": 2.0, "min": 1.0, "max": 6.0, "values": [2.0, 6.0, 1.0]})
        );
        let read: Series = serde_json::from_value(shown).unwrap();
        assert_eq!(read.values, [2.0, 6.0, 1.0]);
    }
}
