//! Collapse of traffic and silence: the last quarter of an hour to day against the same hours of earlier weeks.
//!
//! # Source
//! A Poisson count with a gamma-like spread of its rate (negative binomial; Greenwood & Yule, J. R. Stat. Soc. 83, 1920) on a log scale. Two
//! nulls must fall: nothing has changed, and an ordinary lull (a holiday at two thirds of the usual traffic), each by its own bound.

use serde::{Deserialize, Serialize};

use super::gauge::Gauge;
use super::packed::{Count, Ring};

/// Hours of four weeks.
const HOURS: u16 = 672;
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

/// What is remembered for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    hours: Ring<Count>,
    gauges: [Gauge; WINDOWS.len()],
}

impl Default for Traffic {
    fn default() -> Self {
        Self { hours: Ring::new(HOURS), gauges: [Gauge::default(); WINDOWS.len()] }
    }
}

/// Too little traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collapse {
    /// How far beyond chance, were nothing changed.
    pub score: f32,
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

    /// What the same quarters of the week so many weeks ago had. The newest hour in the ring is the one before the running hour,
    /// of which `done` quarters (1 to 4) have passed.
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    fn weeks_ago(&self, week: usize, window: usize, done: usize) -> Option<f32> {
        let mut sum = 0.0;
        let mut left = window;
        // The running hour is `hours` at -1 from the ring's newest: a week ago it stands at 167.
        let mut ago = week * WEEK_HOURS - 1;
        let mut part = done.min(left);
        while left > 0 {
            sum += self.hours.back(ago)?.get() * part as f32 / 4.0;
            left -= part;
            ago += 1;
            part = left.min(4);
        }
        Some(sum)
    }

    /// Judges the windows that end with the last of `done` quarters of the running hour; `quarters` has the counts, the newest first.
    /// While something is open, nothing is learnt.
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    pub fn judge(&mut self, done: usize, quarters: &Ring<super::fast::Cell>, quiet: bool, thresholds: (f32, f32)) -> Option<Collapse> {
        let mut best: Option<Collapse> = None;
        let (mut seen, mut counted) = (0.0, 0);
        for (index, window) in WINDOWS.into_iter().enumerate() {
            if window > 8 && done != 4 || quarters.len() < window {
                continue;
            }
            while counted < window {
                seen += quarters.back(counted).map_or(0.0, |c| c.0.get());
                counted += 1;
            }
            let mut past = [0.0; 4];
            let mut weeks = 0;
            while weeks < 4 {
                let Some(n) = self.weeks_ago(weeks + 1, window, done) else { break };
                past[weeks] = n;
                weeks += 1;
            }
            let Some(past) = past.get_mut(..weeks).filter(|p| !p.is_empty()) else { continue };
            let expected = median(past);
            if expected < EXPECTED_MIN {
                continue;
            }
            let hours = window as f32 / 4.0;
            let spread = SPREAD * SPREAD * super::fast::mean_variance(hours, SPREAD_HOURS);
            let known = 1.0 + 1.3 / weeks as f32;
            // How far below: on the log scale for the spread, by the likelihood for the counting.
            let gauge = &mut self.gauges[index];
            let scale = gauge.scale();
            let sd = |mean: f32| (mean + mean * mean * spread * scale * scale * known + mean * mean / expected * (known - 1.0)).sqrt();
            let ratio = |mean: f32| -super::tail::signed_root(seen, mean) * mean.sqrt() / sd(mean);
            let score = ratio(expected);
            if quiet && done == 4 {
                // In units of what is expected of the fleet.
                let plain = (seen - expected) / (expected + expected * expected * spread * known + expected * (known - 1.0)).sqrt();
                gauge.learn(-plain);
            }
            let lull_score = ratio(LULL * expected);
            if score > thresholds.0 && lull_score > thresholds.1 && best.is_none_or(|b| score > b.score) {
                best = Some(Collapse { score, lull_score, seen, expected, quarters: window });
            }
        }
        best
    }

    /// Begins another day, and another week.
    pub fn turn_day(&mut self, quiet: bool, week: bool) {
        for gauge in &mut self.gauges {
            gauge.turn_day(quiet);
            if week {
                gauge.turn_week();
            }
        }
    }
}

/// The median of a few numbers; of an even count the mean of the middle two.
fn median(values: &mut [f32]) -> f32 {
    values.sort_by(f32::total_cmp);
    let n = values.len();
    if n % 2 == 1 { values[n / 2] } else { f32::midpoint(values[n / 2 - 1], values[n / 2]) }
}
