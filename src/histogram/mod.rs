//! HDR histograms: the value grid ([`grid`]), the buckets that hold something, their bytes ([`codec`]) and the
//! quantiles read from them ([`quantile`]), and the buckets in which Prometheus takes them ([`native`]).
//!
//! Why not the crate's type in memory: at 2 digits and 7 days it is 35 kB a histogram however empty; a slot of a quiet
//! endpoint has three values. The grid is the crate's, bucket for bucket (a test holds it), so conversion loses nothing.
//! Few values are a sorted list of 4 bytes each, many a window of counts from the first bucket to the last.

pub mod codec;
pub mod dense;
pub mod grid;
pub mod listed;
pub mod native;
pub mod quantile;

use serde::{Deserialize, Serialize};

pub use grid::Digits;
use listed::Listed;

/// Counts per bucket of a grid.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Sorted", into = "Sorted")]
pub struct Histogram {
    digits: Digits,
    counts: Counts,
}

#[derive(Clone, Debug)]
enum Counts {
    /// Few.
    Listed(Listed),
    /// The counts of the buckets from the first on.
    Window(u16, Vec<u32>),
    /// The same for counts beyond 32 bits.
    Wide(u16, Vec<u64>),
}

/// As it is stored: buckets ascending, none empty.
#[derive(Serialize, Deserialize)]
struct Sorted {
    digits: Digits,
    buckets: Vec<(u16, u64)>,
}

impl From<Sorted> for Histogram {
    fn from(sorted: Sorted) -> Self {
        Self::from_buckets(sorted.digits, &sorted.buckets)
    }
}

impl From<Histogram> for Sorted {
    fn from(histogram: Histogram) -> Self {
        Self { digits: histogram.digits, buckets: histogram.buckets().collect() }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new(Digits::default())
    }
}

impl PartialEq for Histogram {
    /// Equal counts, however they are kept.
    fn eq(&self, other: &Self) -> bool {
        self.digits == other.digits && self.buckets().eq(other.buckets())
    }
}

impl Eq for Histogram {}

impl Histogram {
    /// An empty one on the grid of so many significant digits.
    #[must_use]
    pub fn new(digits: Digits) -> Self {
        Self { digits, counts: Counts::Listed(Listed::default()) }
    }

    /// One from sorted, distinct buckets; what is out of order is put in order.
    #[must_use]
    pub fn from_buckets(digits: Digits, buckets: &[(u16, u64)]) -> Self {
        let mut histogram = Self { digits, counts: Counts::Listed(Listed::with_room_for(buckets.len())) };
        for &(bucket, count) in buckets {
            histogram.record_bucket(bucket, count);
        }
        histogram
    }

    /// One of the counts of all buckets from `first` on.
    #[must_use]
    pub fn from_window(digits: Digits, first: u16, counts: &[u64]) -> Self {
        let buckets = || (first..).zip(counts).filter(|(_, count)| **count > 0).map(|(bucket, count)| (bucket, *count));
        if buckets().nth(listed::BUCKETS_MAX).is_none() {
            return Self::from_buckets(digits, &buckets().collect::<Vec<_>>());
        }
        let narrow: Option<Vec<u32>> = counts.iter().map(|count| u32::try_from(*count).ok()).collect();
        let counts = narrow.map_or_else(|| Counts::Wide(first, counts.to_vec()), |narrow| Counts::Window(first, narrow));
        Self { digits, counts }
    }

    /// One of a list on the grid of two digits.
    #[must_use]
    pub fn from_list(list: Listed) -> Self {
        Self { digits: Digits::Two, counts: Counts::Listed(list) }
    }

    /// Its grid.
    #[must_use]
    pub fn digits(&self) -> Digits {
        self.digits
    }

    /// The buckets that hold something with their counts, ascending.
    pub fn buckets(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let (listed, window, wide, first): (Option<&Listed>, &[u32], &[u64], u16) = match &self.counts {
            Counts::Listed(list) => (Some(list), &[], &[], 0),
            Counts::Window(first, counts) => (None, counts, &[], *first),
            Counts::Wide(first, counts) => (None, &[], counts, *first),
        };
        let listed = listed.into_iter().flat_map(Listed::buckets);
        let window = (first..).zip(window).map(|(bucket, count)| (bucket, u64::from(*count)));
        let wide = (first..).zip(wide).map(|(bucket, count)| (bucket, *count));
        listed.chain(window.chain(wide).filter(|(_, count)| *count > 0))
    }

    /// Visits the buckets from one on that hold something with their counts, ascending; says how many values lie before it. Where most of the time goes into
    /// looking at buckets this is quicker than [`Histogram::buckets`], which finds out for each of them how they are kept.
    #[inline]
    pub fn each_from(&self, bucket: u16, mut visit: impl FnMut(u16, u64)) -> u64 {
        let at = |first: u16, len: usize| usize::from(bucket.saturating_sub(first)).min(len);
        match &self.counts {
            Counts::Listed(list) => list.each_from(bucket, visit),
            Counts::Window(first, counts) => {
                let (before, rest) = counts.split_at(at(*first, counts.len()));
                for (bucket, count) in (bucket.max(*first)..).zip(rest).filter(|(_, count)| **count > 0) {
                    visit(bucket, u64::from(*count));
                }
                before.iter().map(|count| u64::from(*count)).sum()
            }
            Counts::Wide(first, counts) => {
                let (before, rest) = counts.split_at(at(*first, counts.len()));
                for (bucket, count) in (bucket.max(*first)..).zip(rest).filter(|(_, count)| **count > 0) {
                    visit(bucket, *count);
                }
                before.iter().fold(0, |sum: u64, count| sum.saturating_add(*count))
            }
        }
    }

    /// How many values it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets().fold(0, |sum, b| u64::saturating_add(sum, b.1))
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets().next().is_none()
    }

    /// Counts a value (whole microseconds, at most [`grid::VALUE_US_MAX`]) `count` times.
    pub fn record(&mut self, value_us: u64, count: u64) {
        self.record_bucket(self.digits.bucket_of(value_us), count);
    }

    /// Counts a bucket of its grid `count` times; counts stay at the largest number rather than begin again at 0.
    pub fn record_bucket(&mut self, bucket: u16, count: u64) {
        if count == 0 {
            return;
        }
        loop {
            let fits = match &mut self.counts {
                Counts::Listed(list) => list.add(bucket, count),
                Counts::Window(first, counts) => add_in_window(first, counts, bucket, count, |a, b| u32::try_from(u64::from(a).saturating_add(b)).ok()),
                Counts::Wide(first, counts) => add_in_window(first, counts, bucket, count, |a, b| Some(a.saturating_add(b))),
            };
            if fits {
                return;
            }
            self.widen();
        }
    }

    /// To the next roomier way of keeping counts.
    fn widen(&mut self) {
        self.counts = match &self.counts {
            Counts::Listed(list) => {
                let first = list.buckets().next().map_or(0, |b| b.0);
                let mut counts = vec![0; list.buckets().last().map_or(0, |b| usize::from(b.0 - first) + 1)];
                for (bucket, count) in list.buckets() {
                    counts[usize::from(bucket - first)] = u32::try_from(count).unwrap_or(u32::MAX);
                }
                Counts::Window(first, counts)
            }
            Counts::Window(first, counts) => Counts::Wide(*first, counts.iter().map(|c| u64::from(*c)).collect()),
            Counts::Wide(first, counts) => Counts::Wide(*first, counts.clone()),
        };
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
        if let (Counts::Listed(ours), Counts::Listed(theirs)) = (&mut self.counts, &other.counts)
            && ours.merge(theirs)
        {
            return;
        }
        for (bucket, count) in other.buckets() {
            self.record_bucket(bucket, count);
        }
    }

    /// On the grid of two digits.
    fn coarsened(&self) -> Self {
        let mut coarse = Self::new(Digits::Two);
        for (bucket, count) in self.buckets() {
            coarse.record(self.digits.lowest_us(bucket), count);
        }
        coarse
    }
}

/// Adds to a window, making it longer where needed; `false` when the sum does not fit.
fn add_in_window<C: Copy + Default>(first: &mut u16, counts: &mut Vec<C>, bucket: u16, count: u64, sum: impl Fn(C, u64) -> Option<C>) -> bool {
    if counts.is_empty() {
        *first = bucket;
    }
    if bucket < *first {
        // A little more room than asked for, so that a slow drift downwards does not move the window each time.
        let start = bucket.saturating_sub(16);
        counts.splice(0..0, std::iter::repeat_n(C::default(), usize::from(*first - start)));
        *first = start;
    }
    let at = usize::from(bucket - *first);
    if at >= counts.len() {
        counts.resize(at + 1, C::default());
    }
    let Some(total) = sum(counts[at], count) else { return false };
    counts[at] = total;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn values() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let count = prop_oneof![6 => 1u64..4, 1 => 60_000u64..70_000, 1 => 4_000_000_000u64..5_000_000_000, 1 => u64::MAX - 3..=u64::MAX];
        prop::collection::vec((prop_oneof![0u64..3_000, 0u64..3_000_000, 0u64..grid::VALUE_US_MAX], count), 0..400)
    }

    fn of(values: &[(u64, u64)]) -> Histogram {
        let mut h = Histogram::default();
        for (v, n) in values {
            h.record(*v, *n);
        }
        h
    }

    proptest! {
        #[test]
        fn it_counts_as_a_map_does_however_it_keeps_them(values in values()) {
            let mut map = BTreeMap::<u16, u64>::new();
            for (v, n) in &values {
                let count = map.entry(Digits::Two.bucket_of(*v)).or_default();
                *count = count.saturating_add(*n);
            }
            prop_assert_eq!(of(&values).buckets().collect::<Vec<_>>(), map.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn from_a_bucket_on_it_visits_the_rest_and_counts_what_is_before(values in values(), at in prop_oneof![0_u16..3_000, any::<u16>()]) {
            let (whole, mut rest) = (of(&values), Vec::new());
            let before = whole.each_from(at, |bucket, count| rest.push((bucket, count)));
            prop_assert_eq!(before, whole.buckets().filter(|b| b.0 < at).fold(0, |sum, b| u64::saturating_add(sum, b.1)));
            prop_assert_eq!(rest, whole.buckets().filter(|b| b.0 >= at).collect::<Vec<_>>());
        }

        #[test]
        fn merging_is_counting_both_in_any_order(a in values(), b in values()) {
            let both: Vec<_> = a.iter().chain(&b).copied().collect();
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
