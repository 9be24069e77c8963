//! Collapse of traffic and silence: the last quarter of an hour to day against the same hours of earlier weeks.
//!
//! # Source
//! A Poisson count with a gamma-like spread of its rate (negative binomial; Greenwood & Yule, J. R. Stat. Soc. 83, 1920) on a log scale. Three
//! nulls must fall: nothing has changed, an ordinary lull (a holiday at two thirds of the usual traffic), and people whose clocks went forward or back an hour.

use serde::{Deserialize, Serialize};

use super::gauge::Gauge;
use super::packed::{Count, Ring};

/// Hours of four weeks, and eight more: a window that reaches back over so many has four weeks before it, a longer one three.
const HOURS: u16 = 680;
const WEEK_HOURS: usize = 168;

/// Windows in quarters of an hour.
const WINDOWS: [usize; 11] = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 96];
/// Expected requests without which a window is no evidence.
const EXPECTED_MIN: f32 = 5.0;
/// What an ordinary lull leaves of the traffic.
const LULL: f32 = 0.65;
/// Spread of an endpoint's traffic from hour to hour about the same hour of other weeks, and its time constant in hours.
const SPREAD: f32 = 0.12;
const SPREAD_HOURS: f32 = 6.0;

/// Variance that the spread leaves in the mean over each window (a test computes it anew).
const SPREAD_OF_WINDOW: [f32; 11] = [0.014_202, 0.014_008, 0.013_818, 0.013_632, 0.013_271, 0.012_925, 0.012_272, 0.011_669, 0.009_670, 0.007_031, 0.005_433];
/// Windows up to this one are judged each quarter of an hour, longer ones each hour.
const WINDOWS_EACH_QUARTER: usize = 8;
/// The window by which it is learnt how much an endpoint's traffic differs from week to week.
const LEARNT_WINDOW: usize = 16;

/// What is remembered for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    hours: Ring<Count>,
    gauge: Gauge,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { hours: Ring::new(HOURS), gauge: Gauge::default() }
    }
}

/// Too little traffic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collapse {
    /// How far beyond chance, were nothing changed.
    pub score: f32,
    /// The least score that counts.
    pub threshold: f32,
    /// How far below an ordinary lull, in standard deviations.
    pub lull_score: f32,
    /// Requests seen.
    pub seen: f32,
    /// Requests expected.
    pub expected: f32,
    /// Quarters of an hour that show it.
    pub quarters: usize,
}

impl Traffic {
    /// Takes in a whole hour.
    pub fn push_hour(&mut self, requests: Count) {
        self.hours.push(requests);
    }

    /// Hours that are known.
    #[must_use]
    pub fn hours(&self) -> usize {
        self.hours.len()
    }

    /// Judges the windows that end with the last of `done` quarters (1 to 4) of the running hour, which is not in `hours` yet; `quarters` has the counts of
    /// the last hours, the newest first. `thresholds` gives the least scores, against nothing changed and against a lull, where anything is near them.
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    pub fn judge(&mut self, done: usize, quarters: &Ring<super::fast::Cell>, thresholds: impl Fn() -> (f32, f32)) -> Option<Collapse> {
        if self.weeks_before(0) == 0 {
            return None;
        }
        let scale = self.gauge.scale();
        let (mut best, mut least): (Option<Collapse>, _) = (None, None);
        // Quarters that are summed, what they had in earlier weeks, and the next hour back.
        let (mut summed, mut seen, mut past, mut hour) = (0, 0.0, [0.0_f32; 4], 0);
        for (index, window) in WINDOWS.into_iter().enumerate() {
            if window > WINDOWS_EACH_QUARTER && done != 4 {
                break;
            }
            while summed < window {
                // The rest of an hour, as much of it as the window takes.
                let in_hour = if summed < done { done - summed } else { 4 - (summed - done) % 4 };
                let part = in_hour.min(window - summed);
                for (week, sum) in past.iter_mut().enumerate() {
                    // A week before the running hour the ring has it 167 hours back.
                    *sum += self.hours.back((week + 1) * WEEK_HOURS - 1 + hour).unwrap_or_default().get() * part as f32 / 4.0;
                }
                seen += if summed + part <= quarters.len() {
                    (summed..summed + part).map(|ago| quarters.back(ago).unwrap_or_default().0.get()).sum::<f32>()
                } else {
                    self.hours.back(hour - 1).unwrap_or_default().get() * part as f32 / 4.0
                };
                summed += part;
                hour += usize::from(part == in_hour);
            }
            let weeks = self.weeks_before(if summed < done { 0 } else { (summed - done).div_ceil(4) });
            if weeks == 0 {
                break;
            }
            let known = 1.0 + 1.3 / weeks as f32;
            if done == 4 && window == LEARNT_WINDOW {
                self.learn(seen, &past[..weeks], window);
            }
            // Nothing within reach of a threshold: most windows end here.
            let expected = median(&past[..weeks]);
            if expected < EXPECTED_MIN || seen > 0.75 * expected {
                continue;
            }
            let spread = SPREAD_OF_WINDOW[index] * scale * scale * known;
            let ratio = |mean: f32| {
                if mean <= 0.0 {
                    return 0.0;
                }
                let variance = mean + mean * mean * spread + mean * mean / expected * (known - 1.0);
                -super::tail::signed_root(seen, mean) * (mean / variance).sqrt()
            };
            let (mut score, mut lull_score) = (ratio(expected), ratio(LULL * expected));
            if best.is_some_and(|b| score <= b.score) {
                continue;
            }
            let least = *least.get_or_insert_with(&thresholds);
            let is_told = |score: f32, lull_score: f32| score > least.0 && lull_score > least.1;
            if !is_told(score, lull_score) {
                continue;
            }
            // Seldom, so it may cost something.
            let clocks = expected * self.by_other_clocks(window, done, weeks * 7 - 2);
            (score, lull_score) = (score.min(ratio(clocks)), lull_score.min(ratio(LULL * clocks)));
            if is_told(score, lull_score) && best.is_none_or(|b| score > b.score) {
                best = Some(Collapse { score, threshold: least.0, lull_score, seen, expected, quarters: window });
            }
        }
        best
    }

    /// Whole weeks that are known before so many hours back, at most four.
    fn weeks_before(&self, hours: usize) -> usize {
        (self.hours.len().saturating_sub(hours) / WEEK_HOURS).min(4)
    }

    /// What a window that ends now would have, in units of what it has as a rule, were all clocks an hour earlier or later: the less of both, at most 1. At nine in the
    /// morning that is nearly nothing, at noon as much as ever. The mean over so many days: of one there are too few requests.
    #[expect(clippy::cast_precision_loss, reason = "quarters of an hour")]
    fn by_other_clocks(&self, window: usize, done: usize, days: usize) -> f32 {
        let [mut early, mut usual, mut late] = [0.0_f32; 3];
        for day in 1..=days {
            let (mut summed, mut hour) = (0, day * 24 - 1);
            while summed < window {
                let in_hour = if summed == 0 { done } else { 4 };
                let part = in_hour.min(window - summed);
                let of = |ago: usize| self.hours.back(ago).unwrap_or_default().get() * part as f32;
                usual += of(hour);
                early += of(hour + 1);
                late += of(hour - 1);
                (summed, hour) = (summed + part, hour + 1);
            }
        }
        (early.min(late) / usual.max(f32::MIN_POSITIVE)).min(1.0)
    }

    /// Requests of the hour that is running now, a week before.
    #[must_use]
    pub fn week_before(&self) -> f32 {
        self.hours.back(WEEK_HOURS - 1).unwrap_or_default().get()
    }

    /// Requests of the last whole hours, and the median of what earlier weeks had in them.
    #[must_use]
    pub fn recent(&self, hours: usize) -> Option<(f32, f32)> {
        let weeks = self.weeks_before(hours);
        if weeks == 0 {
            return None;
        }
        let sum = |first: usize| (first..first + hours).map(|ago| self.hours.back(ago).unwrap_or_default().get()).sum::<f32>();
        let mut past = [0.0; 4];
        for (week, past) in past.iter_mut().enumerate().take(weeks) {
            *past = sum((week + 1) * WEEK_HOURS);
        }
        Some((sum(0), median(&past[..weeks])))
    }

    /// Requests of a window of quarters that ends now, `done` of which (0 to 3) are in the running hour, and the mean of what earlier weeks had in it: means of very many
    /// endpoints add up, medians of a few requests do not. `None` before a week is known.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    pub fn over(&self, window: usize, done: usize, quarters: &Ring<super::fast::Cell>) -> Option<(f32, f32)> {
        let weeks = self.weeks_before(window / 4 + 1);
        if weeks == 0 {
            return None;
        }
        let hour = |ago: usize| self.hours.back(ago).unwrap_or_default().get();
        let running = done.min(window);
        let mut seen: f32 = (0..running.min(quarters.len())).filter_map(|ago| quarters.back(ago)).map(|(count, _)| count.get()).sum();
        let mut past: f32 = (1..=weeks).map(|week| hour(week * WEEK_HOURS - 1)).sum::<f32>() * running as f32 / 4.0;
        let (mut summed, mut ago) = (running, 0);
        while summed < window {
            let part = (window - summed).min(4);
            seen += if summed + part <= quarters.len() {
                (summed..summed + part).filter_map(|ago| quarters.back(ago)).map(|(count, _)| count.get()).sum::<f32>()
            } else {
                hour(ago) * part as f32 / 4.0
            };
            past += (1..=weeks).map(|week| hour(week * WEEK_HOURS + ago)).sum::<f32>() * part as f32 / 4.0;
            (summed, ago) = (summed + part, ago + 1);
        }
        Some((seen, past / weeks as f32))
    }

    /// How far the last hours were from the same hours of earlier weeks, in units of what is expected of the fleet.
    #[expect(clippy::cast_precision_loss, reason = "weeks")]
    fn learn(&mut self, seen: f32, past: &[f32], window: usize) {
        let expected = median(past);
        if expected < EXPECTED_MIN {
            return;
        }
        let known = 1.0 + 1.3 / past.len() as f32;
        let spread = SPREAD * SPREAD * super::fast::mean_variance(window as f32 / 4.0, SPREAD_HOURS) * known;
        self.gauge.learn((expected - seen) / (expected + expected * expected * spread + expected * (known - 1.0)).sqrt());
    }

    /// Begins another day, and another week.
    pub fn turn_day(&mut self, quiet: bool, week: bool) {
        self.gauge.turn_day(quiet);
        if week {
            self.gauge.turn_week();
        }
    }
}

/// The median of one to four numbers; of an even count the mean of the middle two.
fn median(values: &[f32]) -> f32 {
    match *values {
        [a, b] => f32::midpoint(a, b),
        [a, b, c] => a.min(b).max(a.max(b).min(c)),
        [a, b, c, d] => f32::midpoint(a.min(b).max(c.min(d)), a.max(b).min(c.max(d))),
        [a, ..] => a,
        [] => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::packed::Level;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_median_is_the_middle_of_the_sorted(values in prop::collection::vec(0.0_f32..1000.0, 1..=4)) {
            let mut sorted = values.clone();
            sorted.sort_by(f32::total_cmp);
            let n = sorted.len();
            let exact = if n % 2 == 1 { sorted[n / 2] } else { f32::midpoint(sorted[n / 2 - 1], sorted[n / 2]) };
            prop_assert_eq!(median(&values).to_bits(), exact.to_bits());
        }
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    fn the_table_is_what_the_formula_gives() {
        for (window, kept) in WINDOWS.into_iter().zip(SPREAD_OF_WINDOW) {
            let exact = SPREAD * SPREAD * crate::detect::fast::mean_variance(window as f32 / 4.0, SPREAD_HOURS);
            assert!((exact - kept).abs() < 1e-5, "{window}: {exact}");
        }
    }

    /// After four steady weeks at 20 an hour: what the quarters of an hour that follow say, and after how many of them.
    fn told_after(per_quarter: u64, hours: usize) -> Option<(usize, Collapse)> {
        let mut traffic = Traffic::default();
        let mut quarters = Ring::new(24);
        for _ in 0..672 {
            traffic.push_hour(Count::new(20));
        }
        for _ in 0..24 {
            quarters.push((Count::new(5), Level::default()));
        }
        for quarter in 0..hours * 4 {
            quarters.push((Count::new(per_quarter), Level::default()));
            if let Some(c) = traffic.judge(quarter % 4 + 1, &quarters, || (4.4, 2.0)) {
                return Some((quarter + 1, c));
            }
            if quarter % 4 == 3 {
                traffic.push_hour(Count::new(per_quarter * 4));
            }
        }
        None
    }

    /// Of four weeks the oldest begins where the ring ends: what the ring does not have of it is unknown, not silence.
    #[test]
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    fn what_is_expected_is_what_all_weeks_had() {
        for (hours, requests) in [(672, 2), (680, 1), (344, 2)] {
            let mut traffic = Traffic::default();
            let mut quarters = Ring::new(24);
            (0..hours).for_each(|_| traffic.push_hour(Count::new(20)));
            (0..24).for_each(|_| quarters.push((Count::new(5), Level::default())));
            (0..4).for_each(|_| quarters.push((Count::new(requests), Level::default())));
            let found = traffic.judge(4, &quarters, || (0.0, 0.0)).unwrap();
            assert!((found.expected / 5.0 - found.quarters as f32).abs() < 1e-3, "{found:?}");
        }
    }

    /// People who come from eight to six, an hour later than before from one day on: no hour of that day is a collapse. If they stay away, it is told in the morning.
    #[test]
    fn clocks_that_change_are_no_collapse() {
        let told = |first: usize, last: usize| {
            let (mut traffic, mut quarters, mut told) = (Traffic::default(), Ring::new(24), None);
            for hour in 0..672 + 24 {
                let today = hour >= 672;
                let is_busy = if today { (first..last).contains(&(hour % 24)) } else { (8..18).contains(&(hour % 24)) };
                let per_quarter = if is_busy { 10 } else { 1 };
                for done in 1..=4 {
                    quarters.push((Count::new(per_quarter), Level::default()));
                    if today && traffic.judge(done, &quarters, || (4.4, 2.0)).is_some() {
                        told.get_or_insert(hour % 24);
                    }
                }
                traffic.push_hour(Count::new(per_quarter * 4));
            }
            told
        };
        assert_eq!((told(9, 19), told(7, 17), told(8, 18)), (None, None, None));
        assert_eq!(told(24, 24), Some(9));
    }

    #[test]
    fn silence_is_told_within_the_hour_and_a_third_less_never() {
        let (quarters, silence) = told_after(0, 3).unwrap();
        assert!(quarters <= 4 && silence.seen == 0.0, "{quarters} {silence:?}");
        assert!(told_after(1, 6).is_some());
        assert!(told_after(4, 48).is_none());
        assert!(told_after(5, 48).is_none());
    }
}
