//! The cell: what one endpoint did in one stretch of time. Outcomes, exact counts at the configured thresholds, two histograms.
//!
//! Merging cells is commutative and associative: integers only, so neither the order of arrival nor the number of senders,
//! workers or restarts shows. A threshold is counted before bucketing; where a cell did not know a threshold yet, or got
//! buckets instead of values, what it cannot say is kept apart as *unsure*.

use serde::{Deserialize, Serialize};

use crate::histogram::codec::{self, Error, put_varint, take_varint};
use crate::histogram::{Digits, Histogram};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Ok,
    /// The client's fault (4xx): not a failure.
    ClientError,
    /// A failure (5xx).
    Error,
    /// A failure: nobody waited any longer.
    Timeout,
}

impl Outcome {
    /// All, in the order in which cells count them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::ClientError, Self::Error, Self::Timeout];

    /// Its label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }

    /// Whether the promise was broken, however fast.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Error | Self::Timeout)
    }
}

/// A count twice: with weights (a sampled request stands for several) and of observations (what evidence rests on).
/// Counts stay at the largest number rather than begin again at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Tally {
    /// The sum of weights.
    pub weight: u64,
    /// How many were observed.
    pub observed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.weight = self.weight.saturating_add(other.weight);
        self.observed = self.observed.saturating_add(other.observed);
    }
}

impl std::ops::Add for Tally {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl std::ops::Sub for Tally {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { weight: self.weight.saturating_sub(other.weight), observed: self.observed.saturating_sub(other.observed) }
    }
}

/// Requests at most as slow as a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ThresholdCount {
    /// The threshold in whole microseconds.
    pub threshold_us: u64,
    /// Not failed and surely within.
    pub within: Tally,
    /// Not failed, and only a bucket is known, which the threshold cuts.
    pub unsure: Tally,
    /// Failed and surely within.
    pub failed_within: Tally,
    /// Failed, and only a bucket is known.
    pub failed_unsure: Tally,
}

/// What one endpoint did in one stretch of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Cell {
    /// By [`Outcome`], in its order.
    pub outcomes: [Tally; 4],
    /// The sum of durations times weights, in microseconds; stays at the largest number if it would pass it.
    pub sum_us: u64,
    /// Sorted by threshold.
    pub thresholds: Vec<ThresholdCount>,
    /// Durations of requests that did not fail, by weight.
    pub passed: Histogram,
    /// Durations of failures, by weight.
    pub failed: Histogram,
}

/// A duration as it was sent: a value (both ends equal) or a bucket, in whole microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Not shorter than this.
    pub lowest_us: u64,
    /// Not longer than this; what histograms count.
    pub highest_us: u64,
}

impl Span {
    /// An exact value.
    #[must_use]
    pub fn exact(us: u64) -> Self {
        Self { lowest_us: us, highest_us: us }
    }
}

impl Cell {
    /// An empty cell that counts these thresholds (sorted, distinct) and histograms on this grid.
    #[must_use]
    pub fn new(thresholds_us: &[u64], digits: Digits) -> Self {
        let thresholds = thresholds_us.iter().map(|&threshold_us| ThresholdCount { threshold_us, ..ThresholdCount::default() }).collect();
        Self { thresholds, passed: Histogram::new(digits), failed: Histogram::new(digits), ..Self::default() }
    }

    /// Counts requests that ended alike.
    pub fn record(&mut self, outcome: Outcome, span: Span, tally: Tally) {
        self.outcomes[outcome as usize] += tally;
        self.sum_us = self.sum_us.saturating_add(span.highest_us.saturating_mul(tally.weight));
        let failed = outcome.is_failure();
        for t in &mut self.thresholds {
            let (within, unsure) = if failed { (&mut t.failed_within, &mut t.failed_unsure) } else { (&mut t.within, &mut t.unsure) };
            if span.highest_us <= t.threshold_us {
                *within += tally;
            } else if span.lowest_us <= t.threshold_us {
                *unsure += tally;
            }
        }
        if failed { &mut self.failed } else { &mut self.passed }.record(span.highest_us, tally.weight);
    }

    /// Counts requests of weight 1 that did not fail, by bucket of its grid; where no threshold is counted.
    pub fn add_plain(&mut self, client_errors: u64, sum_us: u64, buckets: &[(u16, u64)]) {
        debug_assert!(self.thresholds.is_empty(), "a bucket does not say what is within a threshold");
        let tally = |n: u64| Tally { weight: n, observed: n };
        let total = buckets.iter().fold(0, |sum, b| u64::saturating_add(sum, b.1));
        self.outcomes[Outcome::Ok as usize] += tally(total.saturating_sub(client_errors));
        self.outcomes[Outcome::ClientError as usize] += tally(client_errors);
        self.sum_us = self.sum_us.saturating_add(sum_us);
        for (bucket, count) in buckets {
            self.passed.record_bucket(*bucket, *count);
        }
    }

    /// All requests.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.outcomes[0] + self.outcomes[1] + self.outcomes[2] + self.outcomes[3]
    }

    /// Failures and time-outs.
    #[must_use]
    pub fn failures(&self) -> Tally {
        self.outcomes[Outcome::Error as usize] + self.outcomes[Outcome::Timeout as usize]
    }

    /// Adds its latencies, those of failures too, to a histogram of two digits, as many as were observed: a weight stands for requests that nobody timed.
    pub fn add_latencies_to(&self, histogram: &mut Histogram) {
        let Tally { weight, observed } = self.total();
        let mut carried = 0;
        for (bucket, count) in self.passed.buckets().chain(self.failed.buckets()).filter(|_| weight > 0) {
            let n = if weight == observed {
                count
            } else {
                let scaled = u128::from(count) * u128::from(observed) + carried;
                carried = scaled % u128::from(weight);
                u64::try_from(scaled / u128::from(weight)).unwrap_or(u64::MAX)
            };
            if n > 0 && self.passed.digits() == crate::histogram::Digits::Two {
                histogram.record_bucket(bucket, n);
            } else if n > 0 {
                histogram.record(self.passed.digits().highest_us(bucket), n);
            }
        }
    }

    /// Likewise, of a cell that is no longer needed: mostly its own histogram is all there is to add.
    pub fn move_latencies_to(self, histogram: &mut Histogram) {
        let Tally { weight, observed } = self.total();
        let is_all = self.failed.is_empty() && weight > 0 && weight == observed && self.passed.digits() == histogram.digits();
        if is_all && histogram.is_empty() {
            *histogram = self.passed;
        } else {
            self.add_latencies_to(histogram);
        }
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total() == Tally::default()
    }

    /// The count at a threshold: exact if it was counted as the requests came, else bounded by the histograms.
    #[must_use]
    pub fn at_threshold(&self, threshold_us: u64) -> ThresholdCount {
        match self.thresholds.binary_search_by_key(&threshold_us, |t| t.threshold_us) {
            Ok(at) => self.thresholds[at],
            Err(_) => self.bounded(threshold_us),
        }
    }

    fn bounded(&self, threshold_us: u64) -> ThresholdCount {
        let plain = self.outcomes.iter().all(|t| t.weight == t.observed);
        let bounds = |h: &Histogram, all_observed: u64| {
            let (low, high) = h.count_within(threshold_us);
            if plain {
                (Tally { weight: low, observed: low }, Tally { weight: high - low, observed: high - low })
            } else if low == h.count() {
                (Tally { weight: low, observed: all_observed }, Tally::default())
            } else {
                (Tally { weight: low, observed: 0 }, Tally { weight: high - low, observed: all_observed })
            }
        };
        let failures = self.failures().observed;
        let (within, unsure) = bounds(&self.passed, self.total().observed - failures);
        let (failed_within, failed_unsure) = bounds(&self.failed, failures);
        ThresholdCount { threshold_us, within, unsure, failed_within, failed_unsure }
    }

    /// Adds another cell.
    pub fn merge(&mut self, other: &Self) {
        let same =
            self.thresholds.len() == other.thresholds.len() && self.thresholds.iter().zip(&other.thresholds).all(|(a, b)| a.threshold_us == b.threshold_us);
        if same {
            for (a, b) in self.thresholds.iter_mut().zip(&other.thresholds) {
                add(a, b);
            }
        } else {
            let mut all: Vec<u64> = self.thresholds.iter().chain(&other.thresholds).map(|t| t.threshold_us).collect();
            all.sort_unstable();
            all.dedup();
            self.thresholds = all
                .into_iter()
                .map(|threshold_us| {
                    let mut sum = self.at_threshold(threshold_us);
                    add(&mut sum, &other.at_threshold(threshold_us));
                    sum
                })
                .collect();
        }
        for (a, b) in self.outcomes.iter_mut().zip(&other.outcomes) {
            *a += *b;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.passed.merge(&other.passed);
        self.failed.merge(&other.failed);
    }

    /// It without its histograms: what judging by exact counts needs.
    #[must_use]
    pub fn counts_only(&self) -> Self {
        let empty = || Histogram::new(self.passed.digits());
        Self { outcomes: self.outcomes, sum_us: self.sum_us, thresholds: self.thresholds.clone(), passed: empty(), failed: empty() }
    }

    /// Appends its bytes: a flag (1: observations equal weights), outcomes, sum, thresholds, the two histograms.
    pub fn put(&self, out: &mut Vec<u8>) {
        let tallies = || {
            let thresholds = self.thresholds.iter().flat_map(|t| [t.within, t.unsure, t.failed_within, t.failed_unsure]);
            self.outcomes.into_iter().chain(thresholds)
        };
        let plain = tallies().all(|t| t.weight == t.observed);
        out.push(u8::from(plain));
        let put = |out: &mut Vec<u8>, t: Tally| {
            put_varint(out, t.weight);
            if !plain {
                put_varint(out, t.observed);
            }
        };
        for t in self.outcomes {
            put(out, t);
        }
        put_varint(out, self.sum_us);
        put_varint(out, self.thresholds.len() as u64);
        for t in &self.thresholds {
            put_varint(out, t.threshold_us);
            for tally in [t.within, t.unsure, t.failed_within, t.failed_unsure] {
                put(out, tally);
            }
        }
        codec::put(out, &self.passed);
        codec::put(out, &self.failed);
    }

    /// Takes a cell off the front.
    ///
    /// # Errors
    /// When the bytes are not what [`Cell::put`] writes.
    pub fn take(bytes: &mut &[u8]) -> Result<Self, Error> {
        let mut cell = Self::take_counts(bytes)?;
        cell.passed = codec::take(bytes)?;
        cell.failed = codec::take(bytes)?;
        Ok(cell)
    }

    /// Takes what stands before the two histograms off the front.
    ///
    /// # Errors
    /// When the bytes are not what [`Cell::put`] writes.
    pub fn take_counts(bytes: &mut &[u8]) -> Result<Self, Error> {
        let (&flag, rest) = bytes.split_first().ok_or(Error::Malformed)?;
        *bytes = rest;
        let plain = match flag {
            0 => false,
            1 => true,
            _ => return Err(Error::Malformed),
        };
        let tally = |bytes: &mut &[u8]| -> Result<Tally, Error> {
            let weight = take_varint(bytes)?;
            let observed = if plain { weight } else { take_varint(bytes)? };
            Ok(Tally { weight, observed })
        };
        let mut cell = Self::default();
        for outcome in &mut cell.outcomes {
            *outcome = tally(bytes)?;
        }
        cell.sum_us = take_varint(bytes)?;
        for _ in 0..take_varint(bytes)? {
            cell.thresholds.push(ThresholdCount {
                threshold_us: take_varint(bytes)?,
                within: tally(bytes)?,
                unsure: tally(bytes)?,
                failed_within: tally(bytes)?,
                failed_unsure: tally(bytes)?,
            });
        }
        Ok(cell)
    }
}

/// Adds the counts of one threshold.
pub fn add(a: &mut ThresholdCount, b: &ThresholdCount) {
    a.within += b.within;
    a.unsure += b.unsure;
    a.failed_within += b.failed_within;
    a.failed_unsure += b.failed_unsure;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recorded(items: &[(u64, u8, u64)], thresholds: &[u64]) -> Cell {
        let mut cell = Cell::new(thresholds, Digits::Two);
        for &(us, outcome, weight) in items {
            cell.record(Outcome::ALL[usize::from(outcome)], Span::exact(us), Tally { weight, observed: 1 });
        }
        cell
    }

    fn items() -> impl Strategy<Value = Vec<(u64, u8, u64)>> {
        prop::collection::vec((0u64..3_000_000, 0u8..4, 1u64..4), 0..40)
    }

    proptest! {
        #[test]
        fn configured_thresholds_equal_counting_the_raw_values(values in items(), threshold in 0u64..3_000_000) {
            let cell = recorded(&values, &[threshold]);
            let count = cell.at_threshold(threshold);
            let truth: u64 = values.iter().filter(|v| v.1 < 2 && v.0 <= threshold).map(|v| v.2).sum();
            prop_assert_eq!(count.within.weight, truth);
            prop_assert_eq!(count.unsure, Tally::default());
        }

        #[test]
        fn latencies_that_are_moved_are_those_that_are_added(before in items(), values in items()) {
            let cell = recorded(&values, &[]);
            let (mut added, mut moved) = (Histogram::default(), Histogram::default());
            for (us, _, _) in before.iter().skip(20) {
                added.record(*us, 1);
                moved.record(*us, 1);
            }
            cell.add_latencies_to(&mut added);
            cell.move_latencies_to(&mut moved);
            prop_assert_eq!(added, moved);
        }

        #[test]
        fn merging_in_any_order_is_recording_together(a in items(), b in items(), t in 1u64..3_000_000) {
            let both: Vec<_> = a.iter().chain(&b).copied().collect();
            let (mut ab, mut ba) = (recorded(&a, &[t]), recorded(&b, &[t]));
            ab.merge(&recorded(&b, &[t]));
            ba.merge(&recorded(&a, &[t]));
            prop_assert_eq!(&ab, &ba);
            prop_assert_eq!(&ab, &recorded(&both, &[t]));
        }

        #[test]
        fn a_cell_that_did_not_know_the_threshold_bounds_it(a in items(), b in items(), t in 1u64..3_000_000) {
            let mut cell = recorded(&a, &[t]);
            cell.merge(&recorded(&b, &[]));
            let truth: u64 = a.iter().chain(&b).filter(|v| v.1 < 2 && v.0 <= t).map(|v| v.2).sum();
            let count = cell.at_threshold(t);
            prop_assert!(count.within.weight <= truth && truth <= count.within.weight + count.unsure.weight);
        }

        #[test]
        fn bytes_come_back_as_they_went(a in items(), t in 1u64..3_000_000) {
            let cell = recorded(&a, &[t, 3_000_001]);
            let mut bytes = Vec::new();
            cell.put(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(Cell::take(&mut rest).unwrap(), cell);
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn a_bucket_that_the_threshold_cuts_is_unsure() {
        let mut cell = Cell::new(&[1_000], Digits::Two);
        let one = Tally { weight: 1, observed: 1 };
        cell.record(Outcome::Ok, Span { lowest_us: 996, highest_us: 1_003 }, one);
        cell.record(Outcome::Ok, Span { lowest_us: 990, highest_us: 1_000 }, one);
        let count = cell.at_threshold(1_000);
        assert_eq!((count.within, count.unsure), (one, one));
    }
}
