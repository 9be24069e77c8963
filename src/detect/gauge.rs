//! A statistic measured against its own past: how large it usually is on this endpoint, and the largest it has been in the last weeks.
//!
//! # Source
//! Variance shrinkage as in [`super::slow`]; the bound by the record of the past is a rank test: of N exchangeable values the newest is the
//! largest with chance 1/N (Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005, conformal prediction).

use serde::{Deserialize, Serialize};

use super::packed::Level;

/// Weeks whose largest value is remembered.
const WEEKS: usize = 4;

/// The past of one statistic whose quiet values have a variance of about one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gauge {
    square: f32,
    weight: f32,
    /// The largest of each of the last weeks in tenths, this one's first.
    largest: [Level; WEEKS],
    /// The largest of today and of yesterday: too fresh to excuse what happens now.
    fresh: [Level; 2],
}

impl Default for Gauge {
    fn default() -> Self {
        Self { square: 1.0, weight: 0.0, largest: [Level::default(); WEEKS], fresh: [Level::default(); 2] }
    }
}

/// How many values of its own outweigh the fleet's.
const FLEET_WEIGHT: f32 = 24.0;
/// How many values the past reaches back.
const WEIGHT_MAX: f32 = 170.0;

impl Gauge {
    /// Takes in a value from a quiet time.
    pub fn learn(&mut self, value: f32) {
        self.weight = (self.weight + 1.0).min(WEIGHT_MAX);
        let square = (value * value).min(25.0);
        self.square += (square - self.square) / (self.weight + FLEET_WEIGHT);
        if self.fresh[0].get().is_none_or(|l| l < value / 10.0) {
            self.fresh[0] = Level::new(value / 10.0);
        }
    }

    /// Begins another day: what is two days old joins the past.
    pub fn turn_day(&mut self) {
        let old = self.fresh[1];
        if old.get() > self.largest[0].get() {
            self.largest[0] = old;
        }
        self.fresh = [Level::default(), self.fresh[0]];
    }

    /// Begins another week.
    pub fn turn_week(&mut self) {
        self.largest.rotate_right(1);
        self.largest[0] = Level::default();
    }

    /// How large such values usually are: at least as on the fleet.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.square.max(1.0).sqrt()
    }

    /// The largest of the last weeks.
    #[must_use]
    pub fn record(&self) -> f32 {
        self.largest.iter().filter_map(|l| l.get()).fold(0.0, f32::max) * 10.0
    }

    /// How much has been learnt.
    #[must_use]
    pub fn weight(&self) -> f32 {
        self.weight
    }
}
