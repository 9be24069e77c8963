//! The buckets of Prometheus' native histograms, filled from the buckets of the grid.
//!
//! Schema 5 has 32 buckets in each power of two, a quarter of what the grid has at two digits; who needs less has Prometheus merge them
//! (`native_histogram_min_bucket_factor`), and nobody can split them. A bucket of the grid counts, whole, in the native bucket that holds its upper edge, which is also what
//! Slowburn answers as a quantile. So a quantile read from the native buckets, however Prometheus interpolates inside of one, is within
//! [`BUCKET_ERROR_RATIO`] of Slowburn's own; and, as an upper edge is at most 1/128 above any value of its bucket, within −2.2 % and +3 % of the value itself.
//!
//! # Source
//! Prometheus, "Native Histograms", schemas: bucket `i` of schema `n` holds (2^((i−1)/2^n), 2^(i/2^n)] seconds; the zero bucket what is not above its threshold.

use std::sync::LazyLock;

use super::Histogram;

/// The base-2 logarithm of the buckets in a power of two.
pub const SCHEMA: i8 = 5;

/// How far two values of one bucket are apart at most: 2^(1/32) − 1.
pub const BUCKET_ERROR_RATIO: f64 = 0.021_897_148_654_116_7;

/// What takes no longer is in the zero bucket: 2^−20 s, the last power of two below a microsecond.
pub const ZERO_THRESHOLD_SECONDS: f64 = 1.0 / 1_048_576.0;

const PER_OCTAVE: i32 = 1 << SCHEMA;

/// The upper bounds of the buckets between a half and one, a half included.
static BOUNDS: LazyLock<[f64; 1 << SCHEMA]> = LazyLock::new(|| {
    let mut index = -PER_OCTAVE;
    [(); 1 << SCHEMA].map(|()| {
        let bound = upper_seconds(index);
        index += 1;
        bound
    })
});

/// Counts by native bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Native {
    /// What took less than a microsecond.
    pub zero_count: u64,
    /// The buckets that hold something by index, ascending, with their counts.
    pub buckets: Vec<(i32, u64)>,
}

impl Native {
    /// Of the values of two histograms together.
    #[must_use]
    pub fn of(one: &Histogram, other: &Histogram) -> Self {
        let mut all = one.clone();
        all.merge(other);
        let mut native = Self::default();
        for (bucket, count) in all.buckets() {
            match index_of(all.digits().highest_us(bucket)) {
                None => native.zero_count = native.zero_count.saturating_add(count),
                Some(index) => match native.buckets.last_mut() {
                    Some((last, sum)) if *last == index => *sum = sum.saturating_add(count),
                    _ => native.buckets.push((index, count)),
                },
            }
        }
        native
    }

    /// How many values it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(self.zero_count, |sum, b| sum.saturating_add(b.1))
    }
}

/// The index of the bucket that holds a duration in microseconds; `None` for the zero bucket.
#[must_use]
pub fn index_of(us: u64) -> Option<i32> {
    #[expect(clippy::cast_precision_loss, reason = "the grid ends far below 2^53")]
    let seconds = us as f64 / 1e6;
    // Whole numbers of microseconds fall on a bound only where it is a power of two, and those are exact.
    let (fraction, exponent) = libm::frexp(seconds);
    let place = i32::try_from(BOUNDS.partition_point(|bound| *bound < fraction)).expect("at most 32");
    (seconds > ZERO_THRESHOLD_SECONDS).then(|| (exponent - 1) * PER_OCTAVE + place)
}

/// The upper bound of a bucket in seconds, which it includes; the lower one is that of the bucket before.
#[must_use]
pub fn upper_seconds(index: i32) -> f64 {
    libm::exp2(f64::from(index) / f64::from(PER_OCTAVE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Digits;
    use crate::histogram::grid::VALUE_US_MAX;
    use crate::histogram::quantile::Quantile;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[expect(clippy::cast_precision_loss, reason = "the grid ends far below 2^53")]
    fn seconds(us: u64) -> f64 {
        us as f64 / 1e6
    }

    /// By the definition: the only bucket whose bounds hold the value.
    #[expect(clippy::cast_possible_truncation, reason = "at most 640 either way")]
    fn naive_index(us: u64) -> Option<i32> {
        let near = if us == 0 { 0 } else { (32.0 * seconds(us).log2()) as i32 };
        (us > 0).then(|| (near - 2..near + 3).find(|i| upper_seconds(i - 1) < seconds(us) && seconds(us) <= upper_seconds(*i)).unwrap())
    }

    #[test]
    fn powers_of_two_end_a_bucket_and_the_next_microsecond_begins_one() {
        assert_eq!(index_of(0), None);
        assert_eq!(index_of(1), Some(-19 * 32 - 29), "1 µs is 2^-19.93 s");
        for (us, power) in [(15_625, -6), (500_000, -1), (1_000_000, 0), (2_000_000, 1), (64_000_000, 6)] {
            assert_eq!((index_of(us), index_of(us + 1)), (Some(32 * power), Some(32 * power + 1)), "{us}");
        }
        assert!((BUCKET_ERROR_RATIO - (upper_seconds(1) - 1.0)).abs() < 1e-12);
        assert!(upper_seconds(-20 * 32) <= ZERO_THRESHOLD_SECONDS && ZERO_THRESHOLD_SECONDS < seconds(1));
    }

    proptest! {
        #[test]
        fn a_value_is_in_the_bucket_whose_bounds_hold_it(us in prop_oneof![0u64..3_000, 0u64..3_000_000, 0u64..=VALUE_US_MAX]) {
            prop_assert_eq!(index_of(us), naive_index(us));
        }

        #[test]
        fn no_count_is_lost_and_every_quantile_is_as_near_as_promised(
            values in prop::collection::vec((prop_oneof![0u64..300, 1u64..3_000_000, 0u64..=VALUE_US_MAX], 1u64..4), 1..300),
            three in any::<bool>(),
        ) {
            let digits = if three { Digits::Three } else { Digits::Two };
            let (mut passed, mut failed) = (Histogram::new(digits), Histogram::new(digits));
            let mut naive: BTreeMap<Option<i32>, u64> = BTreeMap::new();
            let mut sorted = Vec::new();
            for (n, (us, count)) in values.iter().enumerate() {
                if n % 3 == 0 { &mut failed } else { &mut passed }.record(*us, *count);
                *naive.entry(naive_index(digits.highest_us(digits.bucket_of(*us)))).or_default() += count;
                sorted.extend(std::iter::repeat_n(*us, usize::try_from(*count).unwrap()));
            }
            sorted.sort_unstable();
            let native = Native::of(&passed, &failed);
            prop_assert_eq!(native.zero_count, naive.remove(&None).unwrap_or(0));
            prop_assert_eq!(&native.buckets, &naive.into_iter().map(|(i, n)| (i.unwrap(), n)).collect::<Vec<_>>());
            prop_assert_eq!(native.count(), sorted.len() as u64);

            let mut all = passed.clone();
            all.merge(&failed);
            for text in ["0.01", "0.5", "0.95", "0.999", "1"] {
                let q = Quantile::parse(text).unwrap();
                let rank = q.rank(native.count());
                let mut seen = native.zero_count;
                let found = native.buckets.iter().find(|b| { seen += b.1; seen >= rank }).filter(|_| rank > native.zero_count);
                let (own, value) = (seconds(all.quantile_us(q).unwrap()), seconds(sorted[usize::try_from(rank).unwrap() - 1]));
                let Some((index, _)) = found else { prop_assert_eq!(own.to_bits(), 0); continue };
                // Wherever in the bucket Prometheus answers.
                for answer in [upper_seconds(index - 1), upper_seconds(*index)] {
                    prop_assert!((answer / own - 1.0).abs() <= BUCKET_ERROR_RATIO + 1e-9, "{answer} for {own}");
                    prop_assert!(value == 0.0 || (-0.0215..=0.0299).contains(&(answer / value - 1.0)), "{answer} for {value}");
                }
            }
        }
    }
}
