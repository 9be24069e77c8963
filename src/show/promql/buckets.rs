//! Histograms as values of expressions: Slowburn's own buckets, scaled; and classic buckets as series by `le`, read as Prometheus reads them.

use std::cmp::Ordering;

use crate::histogram::Histogram;
use crate::histogram::native::{ZERO_THRESHOLD_SECONDS, index_of, upper_seconds};

/// How far a sum of scaled counts may be off its exact value.
const ROUNDING: f64 = 1e-12;

/// A histogram: counts by the upper edge of the bucket in microseconds, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Buckets {
    pub(in super::super) sum_seconds: f64,
    counts: Vec<(u64, f64)>,
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles, and the grid ends far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

impl Buckets {
    /// Of the requests in a histogram.
    pub(in super::super) fn of(histogram: &Histogram, sum_us: u64) -> Self {
        let digits = histogram.digits();
        Self { sum_seconds: float(sum_us) / 1e6, counts: histogram.buckets().map(|(bucket, n)| (digits.highest_us(bucket), float(n))).collect() }
    }

    pub(in super::super) fn scaled(&self, factor: f64) -> Self {
        Self { sum_seconds: self.sum_seconds * factor, counts: self.counts.iter().map(|(us, n)| (*us, n * factor)).collect() }
    }

    pub(in super::super) fn add(&mut self, other: &Self) {
        self.sum_seconds += other.sum_seconds;
        let mut merged = Vec::with_capacity(self.counts.len().max(other.counts.len()));
        let (mut ours, mut theirs) = (self.counts.iter().peekable(), other.counts.iter().peekable());
        loop {
            merged.push(match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) => match a.0.cmp(&b.0) {
                    Ordering::Less => *ours.next().expect("peeked"),
                    Ordering::Greater => *theirs.next().expect("peeked"),
                    Ordering::Equal => {
                        let (a, b) = (ours.next().expect("peeked"), theirs.next().expect("peeked"));
                        (a.0, a.1 + b.1)
                    }
                },
                (Some(_), None) => *ours.next().expect("peeked"),
                (None, Some(_)) => *theirs.next().expect("peeked"),
                (None, None) => break,
            });
        }
        self.counts = merged;
    }

    pub(in super::super) fn count(&self) -> f64 {
        self.counts.iter().map(|(_, n)| n).sum()
    }

    /// What it needs in memory.
    pub(in super::super) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.counts)
    }

    /// The order statistic of rank ⌈q·n⌉ in seconds, as the upper edge of its bucket: what `/api/v1/quantiles` answers.
    pub(in super::super) fn quantile(&self, q: f64) -> f64 {
        let count = self.count();
        match q {
            _ if q.is_nan() || count <= 0.0 => f64::NAN,
            _ if q < 0.0 => f64::NEG_INFINITY,
            _ if q > 1.0 => f64::INFINITY,
            _ => {
                let (rank, mut seen) = (q * count * (1.0 - ROUNDING), 0.0);
                let found = self.counts.iter().filter(|(_, n)| *n > 0.0).find(|(_, n)| {
                    seen += n;
                    seen >= rank
                });
                float(found.or(self.counts.last()).map_or(0, |(us, _)| *us)) / 1e6
            }
        }
    }

    /// The share of requests that took longer than the one and not longer than the other; buckets count as a whole, by their upper edge.
    pub(in super::super) fn fraction(&self, above_seconds: f64, up_to_seconds: f64) -> f64 {
        if above_seconds.is_nan() || up_to_seconds.is_nan() || self.count() <= 0.0 {
            return f64::NAN;
        }
        let inside = self.counts.iter().map(|(us, n)| (float(*us) / 1e6, n)).filter(|(edge, _)| *edge > above_seconds && *edge <= up_to_seconds);
        inside.map(|(_, n)| n).sum::<f64>() / self.count()
    }

    /// As Prometheus shows native histograms: lower and upper bound of each bucket in seconds with its count; the first may be the zero bucket.
    pub(in super::super) fn native(&self) -> Vec<(f64, f64, f64)> {
        let mut native: Vec<(Option<i32>, f64)> = Vec::new();
        for (us, n) in &self.counts {
            let index = index_of(*us);
            match native.last_mut() {
                Some((last, sum)) if *last == index => *sum += n,
                _ => native.push((index, *n)),
            }
        }
        let bounds = |index: Option<i32>| index.map_or((-ZERO_THRESHOLD_SECONDS, ZERO_THRESHOLD_SECONDS), |i| (upper_seconds(i - 1), upper_seconds(i)));
        native.into_iter().filter(|(_, n)| *n != 0.0).map(|(index, n)| (bounds(index).0, bounds(index).1, n)).collect()
    }
}

/// A quantile of classic buckets (upper bound, requests up to it), linear within a bucket.
///
/// # Source
/// Prometheus, `promql/quantile.go`, `bucketQuantile`.
pub(in super::super) fn classic_quantile(q: f64, mut buckets: Vec<(f64, f64)>) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    buckets.dedup_by(|later, first| {
        let is_same = later.0.total_cmp(&first.0) == Ordering::Equal;
        first.1 += if is_same { later.1 } else { 0.0 };
        is_same
    });
    let mut most = 0.0_f64;
    for (_, n) in &mut buckets {
        most = most.max(*n);
        *n = most;
    }
    let (Some(last), true) = (buckets.last().copied(), buckets.len() >= 2) else { return f64::NAN };
    if last.0.is_finite() || last.1 <= 0.0 {
        return f64::NAN;
    }
    let rank = q * last.1;
    let at = buckets[..buckets.len() - 1].partition_point(|(_, n)| *n < rank);
    if at == buckets.len() - 1 {
        return buckets[at - 1].0;
    }
    let (end, n) = buckets[at];
    if at == 0 && end <= 0.0 {
        return end;
    }
    let (start, before) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    start + (end - start) * ((rank - before) / (n - before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Digits;
    use crate::histogram::quantile::Quantile;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn quantiles_of_scaled_sums_are_those_of_the_merged_histogram() {
        let mut parts = [Histogram::new(Digits::Two), Histogram::new(Digits::Two), Histogram::new(Digits::Two)];
        let mut merged = Histogram::new(Digits::Two);
        for n in 0..997_u64 {
            let us = (n * n * 7_919) % 3_000_000;
            parts[usize::try_from(n % 3).unwrap()].record(us, 1 + n % 4);
            merged.record(us, 1 + n % 4);
        }
        for factor in [1.0, 1.0 / 300.0, 1.0 / 7.0] {
            let mut sum = Buckets::default();
            for part in &parts {
                sum.add(&Buckets::of(part, 1_000_000).scaled(factor));
            }
            assert!(close(sum.sum_seconds, 3.0 * factor) && close(sum.count(), float(merged.count()) * factor));
            for (text, q) in [("0.001", 0.001), ("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999), ("1", 1.0)] {
                let ours = float(merged.quantile_us(Quantile::parse(text).unwrap()).unwrap()) / 1e6;
                assert!(close(sum.quantile(q), ours), "{text} with {factor}: {} and {ours}", sum.quantile(q));
            }
            assert!(close(sum.fraction(f64::NEG_INFINITY, f64::INFINITY), 1.0));
            assert!(close(sum.native().iter().map(|b| b.2).sum(), sum.count()) && sum.native().windows(2).all(|w| w[0].1 <= w[1].0));
        }
        assert!(Buckets::default().quantile(0.5).is_nan() && Buckets::default().fraction(0.0, 1.0).is_nan());
    }

    /// From Prometheus' `promql/promqltest/testdata/histograms.test`, `testhistogram` at 50m.
    #[test]
    fn classic_quantiles_are_those_of_prometheus() {
        let third: Vec<(f64, f64)> = vec![(0.1, 5.0), (0.2, 7.0), (1e3, 7.0), (f64::INFINITY, 12.0)];
        for (q, expected) in [(0.0, 0.0), (0.2, 0.048), (0.5, 0.15), (0.9, 1e3), (1.0, 1e3)] {
            assert!(close(classic_quantile(q, third.clone()), expected), "{q}: {}", classic_quantile(q, third.clone()));
        }
        assert!(classic_quantile(0.5, vec![(1.0, 1.0)]).is_nan() && classic_quantile(0.5, vec![(1.0, 1.0), (2.0, 3.0)]).is_nan());
        assert!(classic_quantile(0.5, vec![(1.0, 0.0), (f64::INFINITY, 0.0)]).is_nan());
        assert!(classic_quantile(1.1, third.clone()) > 1e300 && classic_quantile(-0.1, third) < -1e300);
    }
}
