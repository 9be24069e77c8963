//! Steps within hours: the last hour to day against the three days before.
//!
//! # Source
//! The difference of two window means (Welch, Biometrika 34, 1947) whose variance is that of sampling plus that of a wandering level: two
//! Ornstein-Uhlenbeck processes (Uhlenbeck & Ornstein, Phys. Rev. 36, 1930), one of days and one of hours, whose window means have closed variances.

use serde::{Deserialize, Serialize};

use super::gauge::Gauge;
use super::packed::{Count, Level, Ring};

/// The wander of real services: standard deviation and time constant in hours, of days and of hours.
pub(super) const SLOW_WANDER: (f32, f32) = (0.055, 36.0);
pub(super) const FAST_WANDER: (f32, f32) = (0.045, 1.5);

/// Windows in quarters of an hour.
pub const WINDOWS: [usize; 6] = [6, 8, 12, 24, 48, 96];
/// By how much more the shorter ones must show: spikes of one or two hours are usual in the latency of real services.
const SPIKES: [f32; 6] = [1.8, 1.6, 1.0, 1.0, 1.0, 1.0];
/// Variance that wander leaves between each window and the three days before it (a test computes it anew).
const WANDER: [f32; 6] = [0.003_657_9, 0.003_538_6, 0.003_346_0, 0.002_997_6, 0.002_723_1, 0.002_574_2];
/// The least change of a log level for a verdict within hours.
const CHANGE_MIN: f32 = 0.12;
/// How much scatter between the quarters of a window beyond the model counts.
const SCATTER_WEIGHT: f32 = 8.0;
/// Requests without which a window is no evidence.
const REQUESTS_MIN: f32 = 8.0;
const REQUESTS_BEFORE_MIN: f32 = 40.0;

/// A mean of log levels and what it rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// Requests.
    pub n: f32,
    /// Their mean.
    pub level: f32,
}

/// A number of requests and their mean log level without season, as it is kept.
pub type Cell = (Count, Level);

/// What is remembered for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fast {
    /// The quarters of the last six hours.
    pub quarters: Ring<Cell>,
    /// The hours of the last day.
    pub hours: Ring<Cell>,
    gauges: [Gauge; WINDOWS.len()],
}

impl Default for Fast {
    fn default() -> Self {
        Self { quarters: Ring::new(24), hours: Ring::new(24), gauges: [Gauge::default(); WINDOWS.len()] }
    }
}

/// A step of the level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// How far beyond chance.
    pub score: f32,
    /// The change of the log level.
    pub change: f32,
    /// Quarters of an hour that show it.
    pub quarters: usize,
    /// Requests in them.
    pub requests: f32,
}

/// Variance of the mean over a window of an Ornstein-Uhlenbeck process, in units of its own variance.
#[must_use]
pub fn mean_variance(hours: f32, time_constant: f32) -> f32 {
    let x = hours / time_constant;
    if x < 1e-3 { 1.0 } else { 2.0 / (x * x) * (x - 1.0 + libm::expf(-x)) }
}

/// Variance of the difference of the means over two windows that adjoin, in units of the process' own variance.
#[must_use]
pub fn difference_variance(after: f32, before: f32, time_constant: f32) -> f32 {
    let (a, b) = (after / time_constant, before / time_constant);
    let covariance = (1.0 - libm::expf(-a)) * (1.0 - libm::expf(-b)) / (a * b);
    mean_variance(after, time_constant) + mean_variance(before, time_constant) - 2.0 * covariance
}

/// Variance that wander leaves in the difference of the means over adjoining windows.
#[must_use]
pub fn wander(after_hours: f32, before_hours: f32) -> f32 {
    SLOW_WANDER.0 * SLOW_WANDER.0 * difference_variance(after_hours, before_hours, SLOW_WANDER.1)
        + FAST_WANDER.0 * FAST_WANDER.0 * difference_variance(after_hours, before_hours, FAST_WANDER.1)
}

/// Variance that wander leaves in the mean over a day, the covariance with the next day's mean, and by what it decays with each further day.
pub(super) fn wander_of_days() -> (f32, f32, f32) {
    let of = |(sd, hours): (f32, f32)| {
        let (x, keeps) = (24.0 / hours, libm::expf(-24.0 / hours));
        (sd * sd * mean_variance(24.0, hours), sd * sd * (1.0 - keeps) * (1.0 - keeps) / (x * x), keeps)
    };
    let ((slow, next, keeps), (fast, ..)) = (of(SLOW_WANDER), of(FAST_WANDER));
    // Of a wander of hours nothing is left a day later.
    (slow + fast, next, keeps)
}

/// The mean over some cells.
pub fn mean_of(cells: impl Iterator<Item = Cell>) -> Mean {
    let (mut n, mut sum) = (0.0, 0.0);
    for (count, level) in cells {
        if let Some(level) = level.get() {
            n += count.get();
            sum += count.get() * level;
        }
    }
    Mean { n, level: if n > 0.0 { sum / n } else { 0.0 } }
}

/// The sum over the newest cells: each window begins with the shorter ones.
#[derive(Default)]
struct Sum {
    cells: usize,
    n: f32,
    levels: f32,
}

impl Sum {
    /// Goes on to so many cells, and gives their mean.
    fn to(&mut self, ring: &Ring<Cell>, cells: usize) -> Mean {
        for (count, level) in (self.cells..cells).map_while(|ago| ring.back(ago)) {
            if let Some(level) = level.get() {
                self.n += count.get();
                self.levels += count.get() * level;
            }
        }
        self.cells = cells;
        Mean { n: self.n, level: if self.n > 0.0 { self.levels / self.n } else { 0.0 } }
    }
}

impl Fast {
    /// The mean over the last quarters of an hour; more than are kept are whole hours.
    #[must_use]
    pub fn mean(&self, window: usize) -> Mean {
        if window <= 24 {
            mean_of((0..window).map_while(|ago| self.quarters.back(ago)))
        } else {
            mean_of((0..window / 4).map_while(|ago| self.hours.back(ago)))
        }
    }

    /// How far the quarters of a window scatter about its mean, as the variance of that mean: what lasts a few minutes scatters, a step does not.
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    fn scatter(&self, window: usize, mean: Mean) -> f32 {
        let (mut squares, mut cells) = (0.0, 0_usize);
        let (ring, length) = if window <= 24 { (&self.quarters, window) } else { (&self.hours, window / 4) };
        for ago in 0..length {
            let Some((count, level)) = ring.back(ago) else { break };
            let Some(level) = level.get() else { continue };
            let off = count.get() * (level - mean.level);
            squares += off * off;
            cells += 1;
        }
        let cells = cells as f32;
        // The ratio estimator's variance (Cochran, Sampling Techniques, 1977, 6.4).
        if cells < 2.0 { f32::MAX } else { squares / (mean.n * mean.n) * cells / (cells - 1.0) }
    }

    /// Judges the windows that end now; `before(quarters)` gives the three days before a window of so many quarters and `variance`
    /// is that of one request. While something is open, nothing is learnt.
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    pub fn judge(&mut self, quarter_of_hour: i64, variance: f32, quiet: bool, mut before: impl FnMut(usize) -> Mean) -> Option<Step> {
        let mut best: Option<Step> = None;
        let (mut of_quarters, mut of_hours) = (Sum::default(), Sum::default());
        for (index, window) in WINDOWS.into_iter().enumerate() {
            // Long windows move little in a quarter of an hour.
            if window > 12 && quarter_of_hour != 0 {
                break;
            }
            let mean = if window <= 24 { of_quarters.to(&self.quarters, window) } else { of_hours.to(&self.hours, window / 4) };
            if mean.n < REQUESTS_MIN {
                continue;
            }
            let past = before(window);
            if past.n < REQUESTS_BEFORE_MIN {
                continue;
            }
            let model = WANDER[index] + variance * (1.0 / mean.n + 1.0 / past.n);
            let change = mean.level - past.level;
            let z = change / model.sqrt();
            let gauge = &mut self.gauges[index];
            let quiet_past = *gauge;
            let (record, learnt) = (gauge.record(), gauge.weight());
            // Windows that overlap tell the same thing: each is learnt from once.
            if quiet && quarter_of_hour == 0 {
                gauge.learn(z);
            }
            if change < CHANGE_MIN || learnt < 96.0 || z < 1.25 * record {
                continue;
            }
            let scatter = self.scatter(window, mean);
            // Neighbouring quarters resemble each other: what they scatter beyond the model counts double.
            let excess = (scatter - variance / mean.n - FAST_WANDER.0 * FAST_WANDER.0 / window.min(24) as f32).max(0.0);
            let score = quiet_past.score(change / (model + SCATTER_WEIGHT * excess).sqrt()) / SPIKES[index];
            if best.is_none_or(|b| score > b.score) {
                best = Some(Step { score, change, quarters: window, requests: mean.n });
            }
        }
        best
    }

    /// How far beyond chance a change is, in standard deviations of the model, by the past of a window of [`WINDOWS`].
    #[must_use]
    pub fn score(&self, window: usize, deviations: f32) -> f32 {
        self.gauges.get(window).map_or(deviations, |g| g.score(deviations))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The closed variances against sums of the covariance e^(−|t|/τ) over a fine grid.
    #[test]
    #[expect(clippy::cast_precision_loss, reason = "a grid")]
    fn the_variances_of_window_means_are_those_of_the_process() {
        let (after, before, tau) = (6.0_f64, 72.0_f64, 36.0_f64);
        let grid = |hours: f64, from: f64| (0..200).map(move |i| from + hours * (f64::from(i) + 0.5) / 200.0).collect::<Vec<_>>();
        let covariance =
            |a: &[f64], b: &[f64]| a.iter().flat_map(|x| b.iter().map(move |y| (-(x - y).abs() / tau).exp())).sum::<f64>() / (a.len() * b.len()) as f64;
        let (a, b) = (grid(after, 0.0), grid(before, -before));
        let expected = covariance(&a, &a) + covariance(&b, &b) - 2.0 * covariance(&a, &b);
        assert!((f64::from(difference_variance(6.0, 72.0, 36.0)) - expected).abs() < 1e-3);
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    fn the_table_is_what_the_formula_gives() {
        for (window, kept) in WINDOWS.into_iter().zip(WANDER) {
            assert!((wander(window as f32 / 4.0, 72.0) - kept).abs() < 1e-6, "{window}");
        }
    }
}
