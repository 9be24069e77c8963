//! What an endpoint was like when it was learnt: its season, the range that counts, the shape of its tail. Learnt once from
//! fourteen days and then frozen: a reference that goes on learning absorbs the creep that it is there to see.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::BLOCK_HOURS;
use super::packed::Level;
use crate::histogram::{Digits, Histogram};

/// Days from which a reference is learnt: two of each weekday.
pub const LEARNING_DAYS: usize = 14;

/// Slots of the season: hours of the day, weekdays and weekends apart.
const SLOTS: usize = 48;

/// Requests by which a slot's own median is trusted half: below, the overall median counts for more.
const SLOT_SHRINKAGE: f32 = 40.0;

/// The quantiles of the reference, measured from its median, beyond which requests are counted as its tail.
pub const TAIL_QUANTILES: [f32; TAILS] = [0.97, 0.985, 0.995];

/// How many of them.
pub const TAILS: usize = 3;

/// Timings of an endpoint in an hour, or in a part of one.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Whole hours since 1970.
    pub hour: i64,
    /// The timings.
    pub timings: &'a Histogram,
}

/// What an endpoint was like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The first hour of what it was learnt from.
    pub from_hour: i64,
    /// Median log latency of each slot less the overall one.
    season: Vec<Level>,
    /// The lowest and highest log level that a request counts with.
    pub clip: (f32, f32),
    /// Variance of a request's log level inside the clip.
    pub variance: f32,
    /// The logarithm of how far a request's log level lies from the mean of its block of hours, on average, but no less than clocks resolve, and the variance that one request leaves in it.
    pub spread: (f32, f32),
    /// The overall median.
    pub median: f32,
    /// Log distances from a day's median to the cuts of its tail.
    pub cuts: [f32; TAILS],
    /// The share of requests beyond each cut.
    pub shares: [f32; TAILS],
    /// p95 of all requests as they were, less p95 without the season: from the level back to milliseconds.
    pub p95_offset: f32,
    /// Requests that it was learnt from.
    pub requests: u64,
}

/// The natural logarithms of the middles of buckets, in log microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Logs(&'static [f32]);

/// Those of the grid of two digits.
pub(super) fn logs_of_buckets() -> Logs {
    static TABLE: OnceLock<Vec<f32>> = OnceLock::new();
    Logs(TABLE.get_or_init(|| {
        let last = Digits::Two.bucket_of(crate::histogram::grid::VALUE_US_MAX);
        (0..=last).map(log_of).collect()
    }))
}

impl Logs {
    /// That of one.
    #[inline]
    pub(super) fn of(self, bucket: u16) -> f32 {
        self.0.get(usize::from(bucket)).copied().unwrap_or_else(|| log_of(bucket))
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a bucket is wider than the rounding")]
fn log_of(bucket: u16) -> f32 {
    let middle = f64::midpoint(Digits::Two.lowest_us(bucket) as f64, Digits::Two.highest_us(bucket) as f64);
    libm::log(middle.max(0.5)) as f32
}

/// The slot of an hour: 1970 began on a Thursday.
#[must_use]
pub fn slot_of(hour: i64) -> usize {
    let weekday = (hour.div_euclid(24) + 3).rem_euclid(7);
    let of_day = usize::try_from(hour.rem_euclid(24)).unwrap_or(0);
    if weekday >= 5 { 24 + of_day } else { of_day }
}

/// Counts by log level on a fine grid of 1/128, from -2^15/128: sums of shifted histograms are looked up here.
#[derive(Clone, Debug, Default)]
pub struct Residuals {
    /// The place of the first cell.
    first: i32,
    counts: Vec<u32>,
    /// How many lie below and are in no cell, and the first cell that lacks none of them.
    below: u64,
    whole_from: Option<i32>,
}

/// Cells of [`Residuals`] for a natural log of 1, and parts of them to which a level is rounded towards 0 first.
const CELLS: f32 = 128.0;
const PARTS: f32 = 128.0 * CELLS;

/// Cells that are summed at a time.
const STRETCH: usize = 32;

/// The place of a level on the grid.
#[expect(clippy::cast_possible_truncation, reason = "log levels of 1 to 2^40 microseconds")]
fn cell_of(level: f32) -> i32 {
    // Truncated on a grid 128 times finer, then shifted: floor() is a call where the processor has no instruction for it.
    ((level * PARTS) as i32) >> 7
}

fn sum_of(counts: &[u32]) -> u64 {
    counts.iter().map(|c| u64::from(*c)).sum()
}

impl Residuals {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.below, self.whole_from) = (0, None);
    }

    /// Counts a log level so many times.
    #[inline]
    #[expect(clippy::cast_sign_loss, reason = "what is below the first is beyond the last")]
    pub fn add(&mut self, level: f32, count: u32) {
        let cell = cell_of(level);
        let at = (cell - self.first) as u32 as usize;
        match self.counts.get_mut(at) {
            Some(kept) => *kept += count,
            None => self.add_beyond(cell, count),
        }
    }

    /// Counts a histogram from a bucket on, each at its log level less a shift; how many lie before it is kept as one number.
    fn add_from(&mut self, bucket: u16, timings: &Histogram, shift: f32) {
        let logs = logs_of_buckets();
        self.below += timings.each_from(bucket, |bucket, count| self.add(logs.of(bucket) - shift, u32::try_from(count).unwrap_or(u32::MAX)));
    }

    /// Counts into a cell that there is not yet.
    #[cold]
    #[expect(clippy::cast_sign_loss, reason = "not before the first")]
    fn add_beyond(&mut self, cell: i32, count: u32) {
        if self.counts.is_empty() {
            self.first = cell - 256;
            self.counts.resize(768, 0);
        }
        if cell < self.first {
            let more = (self.first - cell + 64) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, more));
            self.first -= i32::try_from(more).unwrap_or(0);
        }
        let at = (cell - self.first) as usize;
        if at >= self.counts.len() {
            self.counts.resize(at + 65, 0);
        }
        self.counts[at] += count;
    }

    /// How many were counted: summed when it is asked for, as counting is what is done most.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.below + sum_of(&self.counts)
    }

    /// The order statistic of rank ⌈q·n⌉, spread evenly over its cell; `None` where it lies below those that are whole.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "counts of a fortnight")]
    pub fn quantile(&self, q: f32) -> Option<f32> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let rank = (f64::from(q) * total as f64).ceil().max(1.0);
        let (mut below, mut at) = (self.below, 0);
        if below as f64 >= rank {
            return None;
        }
        // Whole stretches that end before the rank, then cell by cell.
        for stretch in self.counts.chunks(STRETCH) {
            let more = sum_of(stretch);
            if (below + more) as f64 >= rank {
                break;
            }
            below += more;
            at += stretch.len();
        }
        for (at, count) in self.counts.iter().enumerate().skip(at) {
            if (below + u64::from(*count)) as f64 >= rank {
                let inside = (rank - below as f64 - 0.5) / f64::from(*count);
                let cell = self.first.saturating_add_unsigned(u32::try_from(at).unwrap_or(u32::MAX));
                return self.whole_from.is_none_or(|from| cell >= from).then_some((self.first as f32 + at as f32 + inside as f32) / CELLS);
            }
            below += u64::from(*count);
        }
        None
    }

    /// How many lie beyond a level, the cell that holds it in proportion.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a fortnight")]
    pub fn beyond(&self, level: f32) -> f32 {
        let place = level * CELLS - self.first as f32;
        if place < 0.0 {
            return self.total() as f32;
        }
        let at = place as usize;
        let whole = self.counts.get(at + 1..).map_or(0, sum_of);
        let part = self.counts.get(at).map_or(0.0, |c| *c as f32 * (1.0 - place.fract()));
        whole as f32 + part
    }

    /// How far the levels lie from a centre, on average, and the mean square of that; each no further than a clip allows, whose ends are distances from the centre.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "counts of a fortnight")]
    pub fn deviation(&self, centre: f32, clip: (f32, f32)) -> (f32, f32) {
        let (mut n, mut sum, mut squares) = (0_u64, 0.0_f64, 0.0_f64);
        for (at, count) in self.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            let off = f64::from(((self.first as f32 + at as f32 + 0.5) / CELLS - centre).clamp(clip.0, clip.1));
            n += u64::from(*count);
            sum += off.abs() * f64::from(*count);
            squares += off * off * f64::from(*count);
        }
        let n = n.max(1) as f64;
        ((sum / n) as f32, (squares / n) as f32)
    }

    /// Mean and variance of the levels inside a clip.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "counts of a fortnight")]
    pub fn moments(&self, clip: (f32, f32)) -> (f32, f32) {
        let (mut n, mut sum, mut squares) = (0.0_f64, 0.0_f64, 0.0_f64);
        for (at, count) in self.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            let level = f64::from(((self.first as f32 + at as f32 + 0.5) / CELLS).clamp(clip.0, clip.1));
            n += f64::from(*count);
            sum += level * f64::from(*count);
            squares += level * level * f64::from(*count);
        }
        let mean = sum / n.max(1.0);
        (mean as f32, ((squares / n.max(1.0) - mean * mean).max(0.0)) as f32)
    }
}

/// What clocks of whole milliseconds and narrow buckets leave: so far apart are durations that are all alike.
pub(super) const RESOLUTION: f32 = 0.05;

/// The logarithm of a mean deviation, as the days are compared by it: what lies below the resolution is no difference.
#[must_use]
pub(super) fn spread(deviation: f32) -> f32 {
    0.5 * libm::logf(deviation * deviation + RESOLUTION * RESOLUTION)
}

/// What is left of a mean deviation where the mean of each of these blocks of requests was taken from its own few (Bessel's correction, of deviations instead of squares).
#[must_use]
pub(super) fn left_of_deviation(requests: impl Iterator<Item = f32>) -> f32 {
    let (mut n, mut left) = (0.0, 0.0);
    for of_block in requests.filter(|n| *n >= 1.0) {
        n += of_block;
        left += of_block * (1.0 - 1.0 / of_block).sqrt();
    }
    if n > 0.0 { left / n } else { 0.0 }
}

impl Reference {
    /// Whether most requests of a quarter of an hour take ten times as long as one in 200 used to.
    #[must_use]
    pub fn is_far_slower(&self, hour: i64, timings: &Histogram) -> bool {
        let (logs, limit) = (logs_of_buckets(), self.season(hour) + self.median + self.cuts[TAILS - 1] + std::f32::consts::LN_10);
        let mut beyond = 0;
        timings.each_from(0, |bucket, count| beyond += if logs.of(bucket) > limit { count } else { 0 });
        2 * beyond > timings.count()
    }

    /// The distance from p95 to another quantile of the tail, in log units: the cuts, carried on as an exponential tail (Pickands 1975).
    #[must_use]
    pub fn from_p95_to(&self, quantile: f32) -> f32 {
        let x = |q: f32| -libm::logf(1.0 - q.clamp(0.5, 0.9999));
        let slope = |a: usize, b: usize| (self.cuts[b] - self.cuts[a]) / (x(TAIL_QUANTILES[b]) - x(TAIL_QUANTILES[a]));
        let cut = |q: f32| {
            let (a, b) = if q < TAIL_QUANTILES[1] { (0, 1) } else { (1, 2) };
            self.cuts[a] + slope(a, b) * (x(q) - x(TAIL_QUANTILES[a]))
        };
        cut(quantile) - cut(0.95)
    }

    /// From the days that it is to be learnt from; `None` with fewer than 200 requests.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of a fortnight")]
    pub fn learn(parts: &[Part<'_>]) -> Option<Self> {
        let mut all = Residuals::new();
        let mut slots = vec![Residuals::new(); SLOTS];
        let mut kinds = [Residuals::new(), Residuals::new()];
        for part in parts {
            let slot = slot_of(part.hour);
            for residuals in [&mut all, &mut slots[slot], &mut kinds[slot / 24]] {
                residuals.add_from(0, part.timings, 0.0);
            }
        }
        if all.total() < 200 {
            return None;
        }
        let median = all.quantile(0.5)?;
        // From the whole to the kind of day to the hour, each trusted as far as its requests go.
        let toward = |own: &Residuals, whole: f32| own.quantile(0.5).map_or(0.0, |m| (m - whole) * own.total() as f32 / (own.total() as f32 + SLOT_SHRINKAGE));
        let season: Vec<f32> = slots
            .iter()
            .enumerate()
            .map(|(slot, own)| {
                let kind = toward(&kinds[slot / 24], median);
                Level::new(kind + toward(own, median + kind)).get().unwrap_or(0.0)
            })
            .collect();
        let mut without = Residuals::new();
        for part in parts {
            without.add_from(0, part.timings, season[slot_of(part.hour)]);
        }
        let centre = without.quantile(0.5)?;
        let clip = (without.quantile(0.01)? - 0.2, without.quantile(0.995)? + 0.7);
        let (_, variance) = without.moments(clip);
        let (mut cuts, mut shares) = ([0.0; TAILS], [0.0; TAILS]);
        for (i, q) in TAIL_QUANTILES.iter().enumerate() {
            cuts[i] = without.quantile(*q)? - centre;
            shares[i] = without.beyond(centre + cuts[i]) / without.total() as f32;
        }
        let p95_offset = all.quantile(0.95)? - without.quantile(0.95)?;
        let from_hour = parts.iter().map(|part| part.hour).min()?;
        let season = season.into_iter().map(Level::new).collect();
        let mut learnt = Self { from_hour, season, clip, variance, spread: (0.0, 0.0), median: centre, cuts, shares, p95_offset, requests: all.total() };
        learnt.spread = learnt.spread_of(parts, &mut without);
        Some(learnt)
    }

    /// How far the requests of some parts lie from the mean of their block of hours, and the variance that one leaves in the logarithm of that.
    #[expect(clippy::cast_precision_loss, reason = "counts of a fortnight")]
    fn spread_of(&self, parts: &[Part<'_>], scratch: &mut Residuals) -> (f32, f32) {
        let logs = logs_of_buckets();
        let mut blocks: BTreeMap<i64, (f32, f32)> = BTreeMap::new();
        for part in parts {
            let (n, sum) = blocks.entry(part.hour.div_euclid(BLOCK_HOURS)).or_default();
            let shift = self.season(part.hour);
            part.timings.each_from(0, |bucket, count| {
                *n += count as f32;
                *sum += count as f32 * ((logs.of(bucket) - shift).clamp(self.clip.0, self.clip.1) - self.median);
            });
        }
        self.residuals(parts, None, |hour| blocks.get(&hour.div_euclid(BLOCK_HOURS)).map_or(0.0, |(n, sum)| sum / n.max(1.0)), scratch);
        let (deviation, square) = scratch.deviation(0.0, self.room());
        let whole = deviation / left_of_deviation(blocks.values().map(|(n, _)| *n));
        // The variance of the logarithm of a mean (the delta method), less what the resolution takes of it.
        let of_one = (square / (deviation * deviation) - 1.0).max(0.2);
        let above = whole * whole / (whole * whole + RESOLUTION * RESOLUTION);
        (spread(whole), of_one * above * above)
    }

    /// The distances from the median between which a request counts with its own level.
    #[must_use]
    pub(super) fn room(&self) -> (f32, f32) {
        (self.clip.0 - self.median, self.clip.1 - self.median)
    }

    /// The levels of some timings over this one and over what their hour wandered from it, in place of what was in `into`; those below a level only as their number.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "microseconds")]
    pub(super) fn residuals(&self, parts: &[Part<'_>], below: Option<f32>, wander: impl Fn(i64) -> f32, into: &mut Residuals) {
        into.clear();
        // What rounding does to a level is far less than a cell.
        into.whole_from = below.map(|level| cell_of(level) + 2);
        let (mut hour, mut shift, mut bucket) = (i64::MIN, 0.0, 0);
        for part in parts {
            if part.hour != hour {
                (hour, shift) = (part.hour, self.season(part.hour) + self.median + wander(part.hour));
                bucket = below.map_or(0, |level| Digits::Two.bucket_of(libm::expf(level + shift) as u64));
            }
            into.add_from(bucket, part.timings, shift);
        }
    }

    /// What the season adds to the log level in an hour.
    #[must_use]
    pub fn season(&self, hour: i64) -> f32 {
        self.season.get(slot_of(hour)).and_then(|s| s.get()).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut timings = Histogram::default();
        for us in values {
            timings.record(*us, 1);
        }
        timings
    }

    fn learnt(days: &[Histogram]) -> Reference {
        let parts: Vec<Part<'_>> = (0..).zip(days).map(|(hour, timings)| Part { hour: hour * 11, timings }).collect();
        Reference::learn(&parts).unwrap()
    }

    proptest! {
        /// Most of a day need not be looked at to know its p95; where it must, that is told.
        #[test]
        fn what_lies_above_a_level_is_enough_for_a_quantile_above_it(
            values in prop::collection::vec(prop::collection::vec(prop_oneof![0_u64..300, 1_000_u64..3_000_000], 0..60), 30..60),
            level in -9.0_f32..9.0,
            q in 0.01_f32..1.0,
        ) {
            let days: Vec<Histogram> = values.iter().map(|v| of(v)).chain([of(&[20_000; 200])]).collect();
            let reference = learnt(&days);
            let parts: Vec<Part<'_>> = (0..).zip(&days).map(|(quarter, timings)| Part { hour: quarter / 4, timings }).collect();
            let (mut whole, mut upper) = (Residuals::new(), Residuals::new());
            reference.residuals(&parts, None, |_| 0.0, &mut whole);
            reference.residuals(&parts, Some(level), |_| 0.0, &mut upper);
            prop_assert_eq!(whole.total(), upper.total());
            let exact = whole.quantile(q).unwrap();
            match upper.quantile(q) {
                Some(found) => prop_assert_eq!(found.to_bits(), exact.to_bits()),
                None => prop_assert!(exact < level + 3.0 / CELLS, "{} of {}", exact, level),
            }
        }
    }
}
