//! Durations that draw apart: retries, queues, locks and whatever else is in short supply make requests differ from each other before they make most of them slow.
//!
//! What is scanned is how far a request lies from the level of its own six hours, on average: it hardly wanders from day to day as levels do, so that a rise of
//! a few per cent stands out within days. It counts together with a rise of the level over the same days.
//!
//! # Source
//! The mean deviation as a measure of scale that a few outliers do not decide (Huber, Robust Statistics, 1981, 1.2); the scan of [`super::slow`] over it; two
//! scores that are as good as independent are put together as the root of the sum of their squares (Fisher's and Cramér's way with likelihood ratios: the
//! logarithms add up; Cox & Hinkley, Theoretical Statistics, 1974, 9.3).

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
}

/// The best change of both, of days in order, the oldest first.
#[must_use]
pub fn best_change(days: &[Day], sampling: Sampling) -> Option<Apart> {
    if days.len() < DAYS_MIN {
        return None;
    }
    let levels: Vec<f32> = days.iter().map(|day| day.level).collect();
    let levels = Whitened::new(&LEVELS, &levels, sampling.level)?;
    let spreads = Whitened::new(&SPREADS, &without_weekends(days, sampling.spread), sampling.spread)?;
    let mut best: Option<Apart> = None;
    for (days, shape, usual) in spreads.windows() {
        let (t, spread) = spreads.change(days, shape);
        if spread < SPREAD_MIN {
            continue;
        }
        let (of_level, change) = levels.change(days, shape);
        if change < LEVEL_MIN || change + spread < TOGETHER_MIN {
            continue;
        }
        let score = libm::hypotf(t, of_level.min(LEVEL_SCORE_MAX)) / usual;
        if best.is_none_or(|b| score > b.score) {
            best = Some(Apart { score, shape, days, change, spread });
        }
    }
    best
}

/// The spreads without what weekends have of their own: the mean of how they differ from the days beside them, which a rise changes by nothing, trusted as far as
/// it stands out from chance.
fn without_weekends(days: &[Day], sampling: f32) -> Vec<f32> {
    let (mut weight, mut sum, mut weekends, mut at) = (0.0, 0.0, 0, 0);
    for run in days.chunk_by(|a, b| a.weekend == b.weekend) {
        let (from, end) = (at, at + run.len());
        at = end;
        if run[0].weekend {
            let beside: Vec<f32> = [from.checked_sub(1), Some(end)].into_iter().flatten().filter_map(|i| days.get(i)).map(|day| day.spread).collect();
            if beside.is_empty() {
                continue;
            }
            let of_run: Vec<f32> = run.iter().map(|day| day.spread).collect();
            let ((own, n), (other, m)) = (mean(&of_run), mean(&beside));
            let w = n * m / (n + m);
            weight += w;
            sum += w * (own - other);
            weekends += 1;
        }
    }
    let mut spreads: Vec<f32> = days.iter().map(|day| day.spread).collect();
    if weekends >= WEEKENDS_MIN {
        let (own, chance) = (sum / weight, (sampling + SPREADS.variance()) / weight);
        let own = own * own * own / (own * own + 4.0 * chance);
        for (spread, _) in spreads.iter_mut().zip(days).filter(|(_, day)| day.weekend) {
            *spread -= own;
        }
    }
    spreads
}

#[expect(clippy::cast_precision_loss, reason = "days")]
fn mean(values: &[f32]) -> (f32, f32) {
    let n = values.len() as f32;
    (values.iter().sum::<f32>() / n, n)
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
        best_change(&days, SAMPLING)
    }

    #[test]
    fn both_together_say_more_than_the_spread_with_a_level_that_hardly_rises() {
        let (both, spread) = (growing(0.01, 0.02).unwrap(), growing(0.002, 0.02).unwrap());
        assert!(both.score > spread.score && spread.score > 4.0, "{both:?} {spread:?}");
        assert!(both.shape == Shape::Ramp && (8..=12).contains(&both.days) && (both.spread - 0.2).abs() < 0.06, "{both:?}");
    }

    #[test]
    fn a_level_alone_and_weekends_are_nothing() {
        let quiet = best_change(&quiet(), SAMPLING).map_or(0.0, |apart| apart.score);
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
