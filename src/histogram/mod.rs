//! HDR histograms: the value grid ([`grid`]), the buckets that hold something, their bytes ([`codec`]) and the
//! quantiles read from them ([`quantile`]).
//!
//! Why not the crate's type in memory: at 2 digits and 7 days it is 35 kB a histogram however empty; a slot of a quiet
//! endpoint has three values. The grid is the crate's, bucket for bucket (a test holds it), so conversion loses nothing.

pub mod codec;
pub mod dense;
pub mod grid;
pub mod quantile;

use serde::{Deserialize, Serialize};

pub use grid::Digits;

/// Counts per bucket of a grid, sorted by bucket, none zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Histogram {
    digits: Digits,
    buckets: Vec<(u16, u64)>,
}

impl Histogram {
    /// An empty one on the grid of so many significant digits.
    #[must_use]
    pub fn new(digits: Digits) -> Self {
        Self { digits, buckets: Vec::new() }
    }

    /// One from sorted, distinct buckets.
    fn from_buckets(digits: Digits, buckets: Vec<(u16, u64)>) -> Self {
        debug_assert!(buckets.windows(2).all(|w| w[0].0 < w[1].0) && buckets.iter().all(|b| b.1 > 0));
        Self { digits, buckets }
    }

    /// Its grid.
    #[must_use]
    pub fn digits(&self) -> Digits {
        self.digits
    }

    /// The buckets that hold something, by index, ascending.
    #[must_use]
    pub fn buckets(&self) -> &[(u16, u64)] {
        &self.buckets
    }

    /// How many values it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, b| u64::saturating_add(sum, b.1))
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Counts a value (whole microseconds, at most [`grid::VALUE_US_MAX`]) `count` times.
    pub fn record(&mut self, value_us: u64, count: u64) {
        self.record_bucket(self.digits.bucket_of(value_us), count);
    }

    fn record_bucket(&mut self, bucket: u16, count: u64) {
        if count == 0 {
            return;
        }
        match self.buckets.last_mut() {
            Some(last) if last.0 == bucket => last.1 = last.1.saturating_add(count),
            Some(last) if last.0 > bucket => match self.buckets.binary_search_by_key(&bucket, |b| b.0) {
                Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
                Err(at) => self.buckets.insert(at, (bucket, count)),
            },
            _ => self.buckets.push((bucket, count)),
        }
    }

    /// Adds another; on different grids the result is on the coarser one, whose buckets are unions of the finer's.
    pub fn merge(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            self.clone_from(other);
            return;
        }
        if self.digits != other.digits {
            *self = self.coarsened();
            self.merge(&other.coarsened());
            return;
        }
        // A few values into a full histogram: put each in its place, copy nothing.
        if other.buckets.len() * 8 < self.buckets.len() {
            for &(bucket, count) in &other.buckets {
                self.record_bucket(bucket, count);
            }
            return;
        }
        let mut merged = Vec::with_capacity(self.buckets.len() + other.buckets.len());
        let (mut a, mut b) = (self.buckets.iter().peekable(), other.buckets.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            match x.0.cmp(&y.0) {
                std::cmp::Ordering::Less => merged.extend(a.next()),
                std::cmp::Ordering::Greater => merged.extend(b.next()),
                std::cmp::Ordering::Equal => {
                    merged.push((x.0, x.1.saturating_add(y.1)));
                    a.next();
                    b.next();
                }
            }
        }
        merged.extend(a);
        merged.extend(b);
        self.buckets = merged;
    }

    fn coarsened(&self) -> Self {
        let mut coarse = Self::new(Digits::Two);
        for &(bucket, count) in &self.buckets {
            coarse.record(self.digits.lowest_us(bucket), count);
        }
        coarse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merging_is_counting_both_in_any_order(a in prop::collection::vec(0u64..700_000_000_000, 0..60), b in prop::collection::vec(0u64..5_000_000, 0..60)) {
            let of = |values: &[u64]| { let mut h = Histogram::default(); for v in values { h.record((*v).min(grid::VALUE_US_MAX), 1); } h };
            let both: Vec<u64> = a.iter().chain(&b).copied().collect();
            let (mut ab, mut ba) = (of(&a), of(&b));
            ab.merge(&of(&b));
            ba.merge(&of(&a));
            prop_assert_eq!(&ab, &of(&both));
            prop_assert_eq!(&ab, &ba);
        }
    }

    #[test]
    fn a_fine_grid_coarsens_to_what_the_coarse_one_counts() {
        let (mut fine, mut coarse) = (Histogram::new(Digits::Three), Histogram::new(Digits::Two));
        for v in [3, 999, 1_000_000, 1_003_000, 30_000_000] {
            fine.record(v, 2);
            coarse.record(v, 2);
        }
        let mut merged = coarse.clone();
        merged.merge(&fine);
        coarse.merge(&coarse.clone());
        assert_eq!(merged, coarse);
    }
}
