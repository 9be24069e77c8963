//! A statistic measured against its own past: how large it usually is on this endpoint, and the largest it has been in the last weeks.
//!
//! # Source
//! The tail beyond one scale is taken as exponential with its mean excess (Pickands, Statistical inference using extreme order statistics, Ann. Stat. 3, 1975).
//! Variance shrinkage as in [`super::slow`]; the bound by the record of the past is a rank test: of N exchangeable values the newest is the
//! largest with chance 1/N (Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005, conformal prediction).

use serde::{Deserialize, Serialize};

use super::packed::{Count, Level};

/// Weeks whose largest value is remembered.
const WEEKS: usize = 4;

/// The past of one statistic whose quiet values have a variance of about one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gauge {
    /// Root of the mean square.
    root: Level,
    /// Values that it rests on.
    weight: u16,
    /// How often a value is beyond the scale, and by how much of it on average over all values.
    beyond: Level,
    excess: Level,
    /// The largest of each of the last weeks in tenths, this one's first.
    largest: [Level; WEEKS],
    /// Today and yesterday: too fresh to excuse what happens now.
    fresh: [Day; 2],
}

/// Sums over the values of a day.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
struct Day {
    values: u8,
    beyond: u8,
    squares: Count,
    excess: Count,
    largest: Level,
}

impl Default for Gauge {
    fn default() -> Self {
        Self {
            root: Level::new(1.0),
            weight: 0,
            beyond: Level::new(GAUSS_BEYOND),
            excess: Level::new(GAUSS_BEYOND * GAUSS_EXCESS),
            largest: [Level::default(); WEEKS],
            fresh: [Day::default(); 2],
        }
    }
}

/// How many values of its own outweigh the fleet's.
const FLEET_WEIGHT: f32 = 48.0;
/// How many values the past reaches back.
const WEIGHT_MAX: f32 = 400.0;

/// P(Z > 1) and E(Z − 1 | Z > 1) of the normal distribution.
const GAUSS_BEYOND: f32 = 0.158_66;
const GAUSS_EXCESS: f32 = 0.525_1;

/// Sums of a day are kept in sixteenths.
const SIXTEENTHS: f32 = 16.0;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
fn add(sum: Count, value: f32) -> Count {
    Count::new((sum.get() + value * SIXTEENTHS).round() as u64)
}

fn level(kept: Level) -> f32 {
    kept.get().unwrap_or(0.0)
}

impl Gauge {
    /// Takes in a value.
    pub fn learn(&mut self, value: f32) {
        let over = value / self.scale() - 1.0;
        let today = &mut self.fresh[0];
        today.values = today.values.saturating_add(1);
        today.squares = add(today.squares, (value * value).min(25.0));
        if over > 0.0 {
            today.beyond = today.beyond.saturating_add(1);
            today.excess = add(today.excess, over.min(12.0));
        }
        if today.largest.get().is_none_or(|l| l < value / 10.0) {
            today.largest = Level::new(value / 10.0);
        }
    }

    /// Begins another day: what is two days old joins the past, unless it was no quiet time.
    pub fn turn_day(&mut self, quiet: bool) {
        let old = self.fresh[1];
        if quiet && old.values > 0 {
            let n = f32::from(old.values);
            let weight = (f32::from(self.weight) + n).min(WEIGHT_MAX);
            let toward = |kept: f32, new: f32, own: f32| Level::new((new - kept).mul_add(n / (weight + own), kept));
            let square = self.scale_unbounded() * self.scale_unbounded();
            let mean_square = old.squares.get() / SIXTEENTHS / n;
            self.root = Level::new((square + (mean_square - square) * n / (weight + FLEET_WEIGHT)).max(0.0).sqrt());
            self.beyond = toward(level(self.beyond), f32::from(old.beyond) / n, 2.0 * FLEET_WEIGHT);
            self.excess = toward(level(self.excess), old.excess.get() / SIXTEENTHS / n, 2.0 * FLEET_WEIGHT);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 400")]
            let whole = weight as u16;
            self.weight = whole;
            if old.largest.get() > self.largest[0].get() {
                self.largest[0] = old.largest;
            }
        }
        self.fresh = [Day::default(), self.fresh[0]];
    }

    /// Begins another week.
    pub fn turn_week(&mut self) {
        self.largest.rotate_right(1);
        self.largest[0] = Level::default();
    }

    /// How large such values usually are: at least as on the fleet.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale_unbounded().max(1.0)
    }

    fn scale_unbounded(&self) -> f32 {
        level(self.root)
    }

    /// A value in units of the scale, its part beyond 1 measured by the mean excess of such values: a heavy tail makes large values usual.
    #[must_use]
    pub fn score(&self, value: f32) -> f32 {
        let in_scale = value / self.scale();
        let mean_excess = (level(self.excess) / level(self.beyond).max(0.02)).max(GAUSS_EXCESS);
        if in_scale > 1.0 { 1.0 + (in_scale - 1.0) * GAUSS_EXCESS / mean_excess } else { in_scale }
    }

    /// The largest of the last weeks.
    #[must_use]
    pub fn record(&self) -> f32 {
        self.largest.iter().filter_map(|l| l.get()).fold(0.0, f32::max) * 10.0
    }

    /// How much has been learnt.
    #[must_use]
    pub fn weight(&self) -> f32 {
        f32::from(self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The middles of 24 equal parts of the standard normal distribution, day after day (Abramowitz & Stegun 1964, table 26.1).
    const NORMAL: [f32; 12] = [0.052, 0.157, 0.264, 0.374, 0.489, 0.610, 0.741, 0.887, 1.054, 1.258, 1.534, 2.037];

    fn after(days: usize, factor: f32) -> Gauge {
        let mut gauge = Gauge::default();
        for _ in 0..days {
            for z in NORMAL {
                gauge.learn(z * factor);
                gauge.learn(-z * factor);
            }
            gauge.turn_day(true);
        }
        gauge
    }

    #[test]
    fn of_normal_values_it_makes_nothing_else() {
        let gauge = after(40, 1.0);
        assert!((gauge.scale() - 1.0).abs() < 0.03 && (gauge.score(5.0) - 5.0).abs() < 0.3, "{gauge:?}");
        assert!((gauge.record() - 2.037).abs() < 0.01);
    }

    #[test]
    fn an_endpoint_that_varies_twice_as_much_needs_twice_as_much() {
        let gauge = after(40, 2.0);
        assert!((gauge.score(10.0) - 5.0).abs() < 0.6, "{gauge:?}");
    }

    #[test]
    fn what_happens_today_does_not_excuse_itself() {
        let mut gauge = after(10, 1.0);
        let before = gauge.score(6.0);
        for _ in 0..24 {
            gauge.learn(6.0);
        }
        assert!((gauge.score(6.0) - before).abs() < 1e-6);
    }
}
