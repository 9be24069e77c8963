//! Work in against work out: does what goes in come out again, in the proportion in which it used to?
//!
//! # Source
//! A ratio estimator (Cochran, Sampling Techniques, 1977, chapter 6) whose residual variance is learnt from the hours before; the score is the deficit
//! in its standard deviations, with a binomial floor for what cannot have been seen yet.

use serde::{Deserialize, Serialize};

use super::packed::{Count, Ring};

/// Windows in quarters of an hour.
const WINDOWS: [usize; 9] = [1, 2, 3, 4, 6, 8, 16, 32, 96];
/// Hours after which what was learnt of the ratio has faded to 1/e.
const FADES_AFTER_HOURS: f32 = 168.0;
/// Work that must have gone in before there is a ratio.
const LEARNT_MIN: f32 = 50.0;
/// Units that must be missing.
const MISSING_MIN: f32 = 3.0;
/// The share that must be missing.
const SHARE_MIN: f32 = 0.1;
/// Work that must be expected to say that it is over.
const OVER_MIN: f32 = 10.0;
/// Residual variance per unit that is assumed beside the binomial one, and the hours of its own that outweigh it.
const FLEET_VARIANCE: f32 = 0.02;
const FLEET_HOURS: f32 = 24.0;
/// Variance of what is under way at the two ends of a window.
const UNDER_WAY: f32 = 0.5;

/// What is remembered of a flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flow {
    quarters: Ring<(Count, Count)>,
    /// Faded sums of work in and out, of squared residuals and of what they are measured by.
    sums: (f32, f32, f32, f32),
    hours: f32,
    /// The quarter until which nothing more is said.
    rests_until: i64,
}

impl Default for Flow {
    fn default() -> Self {
        Self { quarters: Ring::new(200), sums: (0.0, 0.0, 0.0, 0.0), hours: 0.0, rests_until: 0 }
    }
}

/// Work that went in and did not come out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Missing {
    /// How far beyond chance.
    pub score: f32,
    /// Work in, and out.
    pub seen: (f32, f32),
    /// What used to come out of each unit.
    pub ratio: f32,
    /// Quarters of an hour that show it.
    pub quarters: usize,
}

impl Flow {
    /// Takes in a quarter of an hour of work in and out.
    pub fn quarter(&mut self, quarter: i64, work_in: u64, work_out: u64, threshold: f32) -> Option<Missing> {
        self.quarters.push((Count::new(work_in), Count::new(work_out)));
        if quarter.rem_euclid(4) == 3 && quarter >= self.rests_until {
            self.learn();
        }
        if self.sums.0 < LEARNT_MIN || quarter < self.rests_until {
            return None;
        }
        let ratio = self.sums.1 / self.sums.0;
        let residual = (self.sums.2 + FLEET_HOURS * FLEET_VARIANCE) / (self.hours + FLEET_HOURS);
        let chance = (ratio * (1.0 - ratio)).max(0.0);
        let (mut seen, mut counted): ((f32, f32), usize) = ((0.0, 0.0), 0);
        let mut best: Option<Missing> = None;
        for window in WINDOWS {
            if self.quarters.len() < window {
                break;
            }
            while counted < window {
                let (i, o) = self.quarters.back(counted).unwrap_or_default();
                seen = (seen.0 + i.get(), seen.1 + o.get());
                counted += 1;
            }
            let expected = ratio * seen.0;
            let missing = expected - seen.1;
            if missing < MISSING_MIN || missing < SHARE_MIN * expected {
                continue;
            }
            let score = missing / (chance.max(residual) * seen.0 + UNDER_WAY).sqrt();
            if score > threshold && best.is_none_or(|b| score > b.score) {
                best = Some(Missing { score, seen, ratio, quarters: window });
            }
        }
        if best.is_some() {
            self.rests_until = quarter + 48 * 4;
        }
        best
    }

    /// Whether what went in over the last quarters of an hour came out again; `None` with too little work.
    #[must_use]
    pub fn is_whole(&self, quarters: usize) -> Option<bool> {
        let (mut seen, mut counted) = ((0.0, 0.0), 0);
        while counted < quarters {
            let (i, o) = self.quarters.back(counted)?;
            seen = (seen.0 + i.get(), seen.1 + o.get());
            counted += 1;
        }
        let expected = self.sums.1 / self.sums.0.max(1.0) * seen.0;
        (expected >= OVER_MIN).then_some(expected - seen.1 < SHARE_MIN * expected)
    }

    /// Learns from the hour that ended a day ago: what is fresh may be what is wrong.
    fn learn(&mut self) {
        let (mut i, mut o) = (0.0, 0.0);
        for ago in 96..100 {
            let Some((a, b)) = self.quarters.back(ago) else { return };
            i += a.get();
            o += b.get();
        }
        let fade = 1.0 - 1.0 / FADES_AFTER_HOURS;
        if self.sums.0 >= LEARNT_MIN && i > 0.0 {
            let off = o - self.sums.1 / self.sums.0 * i;
            self.sums.2 = self.sums.2 * fade + (off * off - UNDER_WAY).max(0.0) / i;
            self.hours = self.hours * fade + 1.0;
        }
        self.sums.0 = self.sums.0 * fade + i;
        self.sums.1 = self.sums.1 * fade + o;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(hours: usize, out_of_20: impl Fn(usize) -> u64) -> Option<(usize, Missing)> {
        let mut flow = Flow::default();
        (0..hours * 4).find_map(|q| {
            let out = out_of_20(q) / 4 + u64::from(out_of_20(q) % 4 > u64::try_from(q % 4).unwrap());
            flow.quarter(i64::try_from(q).unwrap(), 5, out, 6.0).map(|m| (q, m))
        })
    }

    #[test]
    fn a_ratio_is_learnt_and_a_quarter_that_vanishes_is_seen() {
        let (at, missing) = run(400, |q| if q < 1200 { 18 } else { 12 }).unwrap();
        assert!((1200..1224).contains(&at), "{at} {missing:?}");
        assert!((missing.ratio - 0.9).abs() < 0.02);
        assert_eq!(run(400, |_| 18), None);
    }
}
