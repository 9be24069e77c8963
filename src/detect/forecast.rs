//! When a rising level meets its limit: straight, exponential, or bending towards a wall, whichever the days support, and how sure that is.
//!
//! # Source
//! Bayesian model averaging (Hoeting, Madigan, Raftery & Volinsky, Stat. Sci. 14, 1999) on a grid: the level and the variance are integrated out
//! (Gelman et al., Bayesian Data Analysis, 2013, 3.2: a Student likelihood), the days' correlation is whitened as in [`super::slow`]. The interval holds the
//! middle 80 % of the weight, so not knowing which curve it is, nor where its wall stands, widens it.

use serde::{Deserialize, Serialize};

use super::slow::{DAY_CORRELATION, DAYS_MAX, FLEET_SD};

/// Fewer days are no forecast.
const DAYS_MIN: usize = 10;
/// Breaches further away are never.
const DAYS_AHEAD_MAX: f32 = 400.0;
/// What the fleet's noise weighs, in days.
const FLEET_DAYS: f32 = 6.0;
/// Prior weight of the shapes.
const PRIOR: [f32; 4] = [0.6, 0.1, 0.2, 0.1];

/// How a level grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// By the same amount each day.
    Straight,
    /// By the same factor each day.
    Exponential,
    /// As 1/(T − t): something runs out at T.
    Wall,
    /// It rose once and stays.
    Flat,
}

/// When the limit will be met.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Days from now until the breach: as likely earlier as later.
    pub days: f32,
    /// The interval that holds it with 80 %: days from now, and the later end if there is one.
    pub from: f32,
    /// The later end.
    pub to: f32,
    /// The curve that the days support most.
    pub curve: Curve,
    /// How much of the weight is on it.
    pub support: f32,
}

impl Forecast {
    /// Whether it is worth a date: the interval is narrower than the time left.
    #[must_use]
    pub fn has_date(&self) -> bool {
        self.to - self.from < self.days
    }
}

/// One point of the grid.
#[derive(Clone, Copy)]
struct Point {
    breach: f32,
    weight: f32,
}

struct Fit<'a> {
    levels: &'a [f32],
    sampling: f32,
    limit: f32,
    points: Vec<Point>,
    log_weights: Vec<f32>,
    curves: Vec<Curve>,
}

impl Fit<'_> {
    /// Weighs a curve whose log height at each day is `shape` and which rises by `rise(x)` over today's level in x days.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn add(&mut self, curve: Curve, log_prior: f32, shape: &[f32], time_to: impl Fn(f32) -> f32) {
        let (n, phi) = (self.levels.len(), DAY_CORRELATION);
        let root = (1.0 - phi * phi).sqrt();
        let steady = (1.0 - phi) / root;
        let one_one = 1.0 + (n - 1) as f32 * steady * steady;
        let rest = |i: usize| self.levels[i] - shape[i];
        let base = rest(0);
        let (mut with_one, mut squares) = (0.0, 0.0);
        for i in 1..n {
            let w = ((rest(i) - base) - phi * (rest(i - 1) - base)) / root;
            with_one += w * steady;
            squares += w * w;
        }
        let mean = base + with_one / one_one;
        let prior = FLEET_SD * FLEET_SD + self.sampling * (1.0 + phi * phi) / (1.0 - phi * phi);
        let spread = (squares - with_one * with_one / one_one).max(0.0) + FLEET_DAYS * prior;
        let freedom = n as f32 - 1.0 + FLEET_DAYS;
        let log_weight = log_prior - 0.5 * freedom * libm::logf(spread);
        let sd = (spread / freedom / one_one).sqrt();
        // Three points stand for the level's own uncertainty (Gauss-Hermite).
        for (offset, share) in [(-1.732, 1.0 / 6.0), (0.0, 2.0 / 3.0), (1.732, 1.0 / 6.0)] {
            let today = mean + offset * sd + shape[n - 1];
            let breach = time_to(self.limit - today).min(DAYS_AHEAD_MAX);
            self.points.push(Point { breach, weight: share });
            self.log_weights.push(log_weight);
            self.curves.push(curve);
        }
    }
}

/// Forecasts from daily log levels (the oldest first, the newest of the day that ends now) when they meet `limit`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "days")]
pub fn forecast(levels: &[f32], limit: f32, sampling: f32) -> Option<Forecast> {
    let levels = levels.get(levels.len().saturating_sub(DAYS_MAX)..)?;
    let n = levels.len();
    if n < DAYS_MIN {
        return None;
    }
    let last = n as f32 - 1.0;
    let mut fit = Fit { levels, sampling, limit, points: Vec::new(), log_weights: Vec::new(), curves: Vec::new() };
    let growths: Vec<f32> = (0..18).map(|i| 0.06 * libm::expf(i as f32 * 0.24)).collect();
    let mut shape = [0.0_f32; DAYS_MAX];
    let mut onset = 2.0_f32;
    let mut onsets = Vec::new();
    while onset < last {
        onsets.push(onset);
        onset = (onset * 1.15).max(onset + 0.5);
    }
    let per_onset = -libm::logf(onsets.len() as f32 * growths.len() as f32);
    for since in &onsets {
        for growth in &growths {
            let slope = growth / since;
            let age = |i: usize| (i as f32 - (last - since)).max(0.0);
            for (i, s) in shape.iter_mut().enumerate().take(n) {
                *s = libm::log1pf(slope * age(i));
            }
            // Up by x in the log from now: (1 + growth)(e^x − 1) at `slope` a day.
            let straight = |x: f32| if x <= 0.0 { 0.0 } else { (1.0 + growth) * libm::expm1f(x.min(20.0)) / slope };
            fit.add(Curve::Straight, libm::logf(PRIOR[0]) + per_onset, &shape[..n], straight);
            let rate = libm::log1pf(*growth) / since;
            for (i, s) in shape.iter_mut().enumerate().take(n) {
                *s = rate * age(i);
            }
            fit.add(Curve::Exponential, libm::logf(PRIOR[1]) + per_onset, &shape[..n], |x: f32| x.max(0.0) / rate);
            for (i, s) in shape.iter_mut().enumerate().take(n) {
                *s = if age(i) > 0.0 { libm::log1pf(*growth) } else { 0.0 };
            }
            fit.add(Curve::Flat, libm::logf(PRIOR[3]) + per_onset, &shape[..n], |x: f32| if x <= 0.0 { 0.0 } else { DAYS_AHEAD_MAX });
        }
    }
    let walls: Vec<f32> = (0..18).map(|i| 1.5 * libm::expf(i as f32 * 0.26)).collect();
    let per_wall = -libm::logf(walls.len() as f32 * growths.len() as f32);
    for left in &walls {
        for growth in &growths {
            // height = 1 − c + c·(left + last)/(left + last − t), c so that it has grown by `growth` today.
            let c = growth / ((left + last) / left - 1.0);
            if c > 1.0 {
                continue;
            }
            for (i, s) in shape.iter_mut().enumerate().take(n) {
                *s = libm::logf(1.0 - c + c * (left + last) / (left + last - i as f32));
            }
            let wall = |x: f32| {
                if x <= 0.0 {
                    return 0.0;
                }
                let height = (1.0 + growth) * libm::expf(x.min(20.0));
                left - c * (left + last) / (height - 1.0 + c)
            };
            fit.add(Curve::Wall, libm::logf(PRIOR[2]) + per_wall, &shape[..n], wall);
        }
    }
    summarize(fit)
}

fn summarize(fit: Fit<'_>) -> Option<Forecast> {
    let highest = fit.log_weights.iter().copied().fold(f32::MIN, f32::max);
    let Fit { mut points, log_weights, curves, .. } = fit;
    let mut support = [0.0_f32; 4];
    for ((point, log_weight), curve) in points.iter_mut().zip(&log_weights).zip(&curves) {
        point.weight *= libm::expf(log_weight - highest);
        support[*curve as usize] += point.weight;
    }
    let total: f32 = support.iter().sum();
    points.sort_by(|a, b| a.breach.total_cmp(&b.breach));
    let quantile = |q: f32| {
        let mut below = 0.0;
        points.iter().find(|p| {
            below += p.weight;
            below >= q * total
        })
    };
    // The day of a level is its middle, half a day before now.
    let at = |q: f32| quantile(q).map(|p| (p.breach - 0.5).max(0.0));
    let (from, days, to) = (at(0.1)?, at(0.5)?, at(0.9)?);
    let curve =
        [Curve::Straight, Curve::Exponential, Curve::Wall, Curve::Flat].into_iter().max_by(|a, b| support[*a as usize].total_cmp(&support[*b as usize]))?;
    (days < DAYS_AHEAD_MAX - 1.0).then(|| Forecast { days, from, to, curve, support: support[curve as usize] / total })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(height: impl Fn(f32) -> f32) -> Vec<f32> {
        (0..40_u8).map(|day| libm::logf(height(f32::from(day))) + 0.004 * (f32::from(day % 5) - 2.0)).collect()
    }

    /// 1 + 0.05·(day − 20) reaches 3 on day 60, which is 20.5 days after the end of day 39.
    #[test]
    fn a_straight_rise_is_carried_on_straight() {
        let f = forecast(&levels(|day| 1.0 + 0.05 * (day - 20.0).max(0.0)), libm::logf(3.0), 0.0).unwrap();
        assert!(f.from <= 20.5 && f.to >= 20.5 && (f.days - 20.5).abs() < 4.0, "{f:?}");
    }

    /// 40/(50 − day) reaches 20 on day 48: a straight line would say months.
    #[test]
    fn what_runs_out_is_seen_to_bend() {
        let f = forecast(&levels(|day| 0.2 + 40.0 / (50.0 - day)), libm::logf(20.0), 0.0).unwrap();
        assert_eq!(f.curve, Curve::Wall);
        assert!((f.days - 8.4).abs() < 2.0 && f.has_date(), "{f:?}");
    }

    #[test]
    fn what_stays_has_no_date() {
        assert!(forecast(&levels(|_| 1.0), libm::logf(2.0), 0.0).is_none_or(|f| !f.has_date()));
    }
}
