//! Quantiles: the order statistic of rank ⌈q·n⌉, given as the upper edge of its bucket (what `hdrhistogram` answers).

use std::ops::ControlFlow;

use super::Histogram;
use crate::objective::parse_decimal;

/// A quantile as an exact decimal, so that ⌈q·n⌉ has no rounding: 0.07 of 100 is 7, not 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantile {
    ppt: u64,
}

const ONE_PPT: u64 = 1_000_000_000_000;

impl Quantile {
    /// From a decimal text between 0 and 1 (at most 12 digits behind the point).
    ///
    /// # Errors
    /// With what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse_decimal(text.trim(), 12)
            .filter(|ppt| *ppt <= ONE_PPT)
            .map(|ppt| Self { ppt })
            .ok_or_else(|| format!("`{text}` is not a quantile: expected a number from 0 to 1, such as 0.95"))
    }

    /// The rank among `n` ordered values, from 1 to n; 0 when there are none.
    #[must_use]
    pub fn rank(self, n: u64) -> u64 {
        let rank = (u128::from(self.ppt) * u128::from(n)).div_ceil(u128::from(ONE_PPT));
        u64::try_from(rank).unwrap_or(u64::MAX).clamp(n.min(1), n)
    }
}

impl Histogram {
    /// The value of that rank in microseconds; `None` without values.
    #[must_use]
    pub fn quantile_us(&self, q: Quantile) -> Option<u64> {
        let rank = q.rank(self.count());
        // The crate gives the lower edge for the 0-quantile, the upper one for all others.
        let edge = |bucket| if q.ppt == 0 { self.digits().lowest_us(bucket) } else { self.digits().highest_us(bucket) };
        let found = self.buckets().try_fold(0_u64, |seen, (bucket, count)| {
            let seen = seen.saturating_add(count);
            if seen >= rank { ControlFlow::Break(bucket) } else { ControlFlow::Continue(seen) }
        });
        found.break_value().map(edge)
    }

    /// How many values are surely, and how many are possibly, at most `threshold_us`.
    #[must_use]
    pub fn count_within(&self, threshold_us: u64) -> (u64, u64) {
        let (mut low, mut high) = (0, 0);
        for (bucket, count) in self.buckets() {
            if self.digits().highest_us(bucket) <= threshold_us {
                low += count;
            }
            if self.digits().lowest_us(bucket) <= threshold_us {
                high += count;
            } else {
                break;
            }
        }
        (low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::{Digits, grid::VALUE_US_MAX};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quantiles_equal_those_of_the_crate(values in prop::collection::vec(0u64..604_800_000_000, 1..300), three in any::<bool>()) {
            let digits = if three { Digits::Three } else { Digits::Two };
            let mut ours = Histogram::new(digits);
            let mut theirs = hdrhistogram::Histogram::<u64>::new_with_bounds(1, VALUE_US_MAX, digits.number()).unwrap();
            for v in &values { ours.record(*v, 1); theirs.record(*v).unwrap(); }
            for q in ["0.5", "0.9", "0.95", "0.99", "0.999", "1", "0"] {
                prop_assert_eq!(ours.quantile_us(Quantile::parse(q).unwrap()), Some(theirs.value_at_quantile(q.parse().unwrap())), "q {}", q);
            }
        }

        #[test]
        fn the_two_bounds_contain_the_truth(values in prop::collection::vec(0u64..2_000_000, 0..200), threshold in 0u64..2_000_000) {
            let mut h = Histogram::default();
            for v in &values { h.record(*v, 1); }
            let truth = values.iter().filter(|v| **v <= threshold).count() as u64;
            let (low, high) = h.count_within(threshold);
            prop_assert!(low <= truth && truth <= high);
        }
    }

    #[test]
    fn ranks_do_not_suffer_from_floating_point() {
        assert_eq!(Quantile::parse("0.07").unwrap().rank(100), 7);
        assert_eq!(Quantile::parse("0").unwrap().rank(5), 1);
        assert_eq!(Quantile::parse("1").unwrap().rank(5), 5);
        assert_eq!(Quantile::parse("0.5").unwrap().rank(0), 0);
        for text in ["1.1", "-0.1", "", "p95", "NaN"] {
            assert!(Quantile::parse(text).is_err());
        }
    }
}
