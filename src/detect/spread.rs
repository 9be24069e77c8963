//! Durations that draw apart: retries, queues, locks and whatever else is in short supply make requests differ from each other before they make most of them slow.
//!
//! What is scanned is how far a request lies from the level of its own six hours, on average: it hardly wanders from day to day as levels do, so that a rise of
//! a few per cent stands out within days. It counts together with a rise of the level over the same days.
//!
//! # Source
//! The mean deviation as a measure of scale that a few outliers do not decide (Huber, Robust Statistics, 1981, 1.2); the scan of [`super::slow`] over it. The
//! scores of level and spread are as good as independent, so the root of the sum of their squares stands for both: logarithms of likelihood ratios add up
//! (Cox & Hinkley, Theoretical Statistics, 1974, 9.3).

use serde::{Deserialize, Serialize};

use super::slow::{DAYS_MIN, LEVELS, SPREADS, Shape, Whitened};

/// The least changes of the level, of the spread, and of both, in log units.
const LEVEL_MIN: f32 = 0.02;
const SPREAD_MIN: f32 = 0.03;
const TOGETHER_MIN: f32 = 0.06;
/// What a level's own score counts for at most: it alone is what [`super::slow`] is for.
const LEVEL_SCORE_MAX: f32 = 3.0;
/// Fewer weekends say nothing of weekends.
const WEEKENDS_MIN: usize = 2;

/// A day of which both are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Day {
    /// Its mean log level.
    pub level: f32,
    /// The logarithm of its mean deviation.
    pub spread: f32,
    /// Whether it is a Saturday or Sunday.
    pub weekend: bool,
}

/// The variance that the number of requests leaves in a day's level, and in its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Of the level.
    pub level: f32,
    /// Of the spread.
    pub spread: f32,
}

/// The best explanation of the last days by durations that draw apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Apart {
    /// How far beyond chance.
    pub score: f32,
    /// How it goes.
    pub shape: Shape,
    /// How many of the days came after the onset.
    pub days: usize,
    /// The change of the log level by now.
    pub change: f32,
    /// The change of the logarithm of the mean deviation by now.
    pub spread: f32,
    /// What it was before, on average.
    pub before: f32,
}

/// The best change of both that scores more than `least`, of days in order, the oldest first.
#[must_use]
pub fn best_change(days: &[Day], sampling: Sampling, least: f32) -> Option<Apart> {
    if days.len() < DAYS_MIN {
        return None;
    }
    let corrected = without_weekends(days, sampling.spread);
    let spreads = Whitened::new(&SPREADS, &corrected, sampling.spread)?;
    let values: Vec<f32> = days.iter().map(|day| day.level).collect();
    let levels = Whitened::new(&LEVELS, &values, sampling.level)?;
    let mut best: Option<Apart> = None;
    spreads.each_window(|days, shape, usual| {
        let (t, spread) = spreads.change(days, shape);
        let least = best.map_or(least, |best| best.score);
        // What no level makes enough of.
        if spread < SPREAD_MIN || libm::hypotf(t, LEVEL_SCORE_MAX) / usual <= least {
            return;
        }
        let (of_level, change) = levels.change(days, shape);
        let score = libm::hypotf(t, of_level.min(LEVEL_SCORE_MAX)) / usual;
        if change >= LEVEL_MIN && change + spread >= TOGETHER_MIN && score > least {
            best = Some(Apart { score, shape, days, change, spread, before: mean(&corrected[..corrected.len() - days]) });
        }
    });
    best
}

/// How far apart the last of some days are, without what weekends have of their own, on average; `None` with fewer days.
#[must_use]
pub fn lately(days: &[Day], sampling: Sampling, last: usize) -> Option<f32> {
    let from = days.len().checked_sub(last.max(1))?;
    Some(mean(&without_weekends(days, sampling.spread)[from..]))
}

#[expect(clippy::cast_precision_loss, reason = "days")]
fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

/// The spreads without what weekends have of their own: the mean of how they differ from the days on either side, which a straight rise changes by nothing, trusted
/// as far as it stands out from chance.
#[expect(clippy::cast_precision_loss, reason = "days")]
fn without_weekends(days: &[Day], sampling: f32) -> Vec<f32> {
    let (mut weight, mut sum, mut weekends, mut at) = (0.0, 0.0, 0, 0_usize);
    for run in days.chunk_by(|a, b| a.weekend == b.weekend) {
        let beside = at.checked_sub(1).and_then(|i| days.get(i)).zip(days.get(at + run.len()));
        at += run.len();
        // A longer run is two of them with no day between.
        if let Some((friday, monday)) = beside.filter(|_| run[0].weekend && run.len() <= 2) {
            let (n, own) = (run.len() as f32, run.iter().map(|day| day.spread).sum::<f32>());
            let w = 2.0 * n / (n + 2.0);
            weight += w;
            sum += w * (own / n - f32::midpoint(friday.spread, monday.spread));
            weekends += 1;
        }
    }
    let mut own = 0.0;
    if weekends >= WEEKENDS_MIN {
        let (seen, chance) = (sum / weight, (sampling + SPREADS.variance()) / weight);
        own = seen * seen * seen / (seen * seen + 4.0 * chance);
    }
    days.iter().map(|day| day.spread - if day.weekend { own } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLING: Sampling = Sampling { level: 0.0003, spread: 0.0007 };

    /// Forty days of small noise, weekends further apart.
    fn quiet() -> Vec<Day> {
        let noise = |i: u8, by: u8| f32::from(i * by % 11) / 100.0 - 0.05;
        (0..40_u8).map(|i| Day { level: noise(i, 5), spread: noise(i, 3) + if i % 7 >= 5 { 0.2 } else { 0.0 }, weekend: i % 7 >= 5 }).collect()
    }

    fn growing(level: f32, spread: f32) -> Option<Apart> {
        let mut days = quiet();
        for (age, day) in (1_u8..).zip(&mut days[30..]) {
            day.level += level * f32::from(age);
            day.spread += spread * f32::from(age);
        }
        best_change(&days, SAMPLING, 0.0)
    }

    #[test]
    fn both_together_say_more_than_the_spread_with_a_level_that_hardly_rises() {
        let (both, spread) = (growing(0.01, 0.02).unwrap(), growing(0.002, 0.02).unwrap());
        assert!(both.score > spread.score && spread.score > 4.0, "{both:?} {spread:?}");
        assert!(both.shape == Shape::Ramp && (8..=12).contains(&both.days) && (both.spread - 0.2).abs() < 0.06, "{both:?}");
    }

    #[test]
    fn a_level_alone_and_weekends_are_nothing() {
        let quiet = best_change(&quiet(), SAMPLING, 0.0).map_or(0.0, |apart| apart.score);
        let level = growing(0.05, 0.0).map_or(0.0, |apart| apart.score);
        assert!(quiet < 2.5 && level <= 3.0_f32.hypot(quiet.max(2.0)) / 0.8, "{quiet} {level}");
    }

    /// By hand: weekends 0.2 above the days beside them, of which chance explains (0.0007 + 0.0004) / (5 · 1) with two weekend days and two beside each of five.
    #[test]
    fn a_weekend_is_taken_out_as_far_as_it_stands_out() {
        let days: Vec<Day> = (0..36_u8).map(|i| Day { level: 0.0, spread: if i % 7 >= 5 { 0.2 } else { 0.0 }, weekend: i % 7 >= 5 }).collect();
        let left = without_weekends(&days, 0.0007);
        let kept = 0.2 * 0.04 / (0.04 + 4.0 * 0.0011 / 5.0);
        assert!((left[5] - (0.2 - kept)).abs() < 1e-5 && left[4].abs() < 1e-6, "{}", left[5]);
    }
}
