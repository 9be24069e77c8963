//! When a rising p95 meets its limit: straight, exponential, or bending towards a wall, whichever the days support, and how sure that is.
//!
//! Two things are known of each day: its level (the mean log duration), and how high p95 stands over it. The level wanders, and p95 with it; the height hardly
//! does. Either everything grows by one factor, and the height stays; or a wait grows that is added to the work, and the height grows with it in a known way
//! ([`super::waits`]). So the heights tell which it is, and of a wait how far it has come, without the wander.
//!
//! # Source
//! Bayesian model averaging (Hoeting, Madigan, Raftery & Volinsky, Stat. Sci. 14, 1999) on a grid: the level and the variance are integrated out
//! (Gelman et al., Bayesian Data Analysis, 2013, 3.2: a Student likelihood), the days' correlation is that of the wander of [`super::fast`], by its
//! innovations (Kalman, J. Basic Eng. 82, 1960). A sample's mean and its p95 less that mean are as good as independent (Basu, Sankhya 15, 1955: exactly so of
//! normal ones). The interval holds the middle 80 % of the weight, so not knowing which curve it is, nor where its wall stands,
//! widens it. It is predictive (Geisser, Predictive Inference, 1993): it is about the day on which p95 is seen to meet the limit, and that day wanders as all do.

use serde::{Deserialize, Serialize};

use super::fast;
use super::slow::DAYS_MAX;
use super::waits::Waits;

/// Fewer days are no forecast.
const DAYS_MIN: usize = 10;
/// Breaches further away are never.
const DAYS_AHEAD_MAX: f32 = 400.0;
/// What the fleet's noise weighs, in days.
const FLEET_DAYS: f32 = 6.0;
/// Variance of p95's height over the level in that of one request's log over the number of requests: p95's own, 4.4, less the level's.
const HEIGHT_VARIANCE: f32 = 3.4;
/// The part of the wander's variance that the height has: a quarter of its deviation.
const HEIGHT_WANDER: f32 = 1.0 / 16.0;
/// How much of the resource was in use on the first day: 1 − that. Mean wait is as ρ/(1 − ρ) = 1/(1 − ρ) − 1 (Pollaczek-Khinchine).
const LESS: [f32; 3] = [0.0, 0.5, 1.0];
/// For which part of the time since its onset a level rose that stays now: at once, or straight for so long.
const ROSE: [f32; 3] = [0.0, 0.33, 0.67];
/// Days by which it is known how the work spreads.
const EARLY_DAYS: usize = 14;
/// Days by which it is known how high p95 stands now.
const RECENT_DAYS: usize = 4;
/// Prior weight of the shapes where everything grows by one factor, and where a wait grows.
const PRIOR: [[f32; 4]; 2] = [[0.42, 0.07, 0.14, 0.07], [0.10, 0.0, 0.15, 0.05]];

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

/// What is known of a day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Day {
    /// Its mean log duration.
    pub level: f32,
    /// Log p95 less that.
    pub height: f32,
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
    /// How wide such an interval is for the trend alone, without the wander of the day that meets the limit.
    pub trend_days: f32,
    /// The curve that the days support most.
    pub curve: Curve,
    /// How much of the weight is on it.
    pub support: f32,
}

impl Forecast {
    /// Whether it is worth a date: the trend is known to less than the time left. More days would not tell more of the wander, so that does not count.
    #[must_use]
    pub fn has_date(&self) -> bool {
        self.trend_days < self.days
    }
}

/// What grows.
#[derive(Clone, Copy)]
enum Growth {
    /// Everything, by one factor: what it has grown by, over its height at first.
    Factor(f32),
    /// A wait: its logarithm today, and what it and longer ones add to p95.
    Wait(f32, usize),
}

/// A curve on the grid: what it says of the days to a rise of p95.
#[derive(Clone, Copy)]
struct Course {
    curve: Curve,
    growth: Growth,
    /// Days since it began; or (wall) from today to the wall, and from the first day to it.
    since: f32,
    whole: f32,
    less: f32,
}

impl Course {
    /// Days until p95 is up by `rise`.
    fn time_to(&self, rise: f32, waits: &[Waits]) -> f32 {
        if rise <= 0.0 {
            return 0.0;
        }
        let rise = rise.min(20.0);
        match (self.growth, self.curve) {
            (_, Curve::Flat) => DAYS_AHEAD_MAX,
            (Growth::Factor(growth), Curve::Straight) => (1.0 + growth) * libm::expm1f(rise) / (growth / self.since),
            (Growth::Factor(growth), Curve::Exponential) => rise / (libm::log1pf(growth) / self.since),
            (Growth::Factor(growth), Curve::Wall) => {
                let c = self.runs_out(growth);
                self.since - c * self.whole / ((1.0 + growth) * libm::expf(rise) - 1.0 + c)
            }
            (Growth::Wait(now, of), curve) => {
                let waits = &waits[of];
                let times = libm::expf(waits.wait_for(waits.added(now).1 + rise) - now);
                if curve == Curve::Wall {
                    self.since - self.whole / (times * (self.whole / self.since - self.less) + self.less)
                } else { self.since * (times - 1.0) }
            }
        }
    }

    /// The share of the first height that is as 1/(T − t), so that it has grown by `growth` today: 1 − c + c·whole/(whole − t).
    fn runs_out(&self, growth: f32) -> f32 {
        growth * self.since / (self.whole - self.since)
    }
}

/// How well a course agrees with the days.
struct Fitted {
    course: Course,
    log_weight: f32,
    /// Today's p95: its mean and the variance of what is not known of it, and that of a day's wander about it.
    today: f32,
    variance: [f32; 2],
}

/// A series of days, and what the days before each one add to the sums where no curve has begun yet.
struct Series {
    noise: Noise,
    values: [f32; DAYS_MAX],
    before: [Sums; DAYS_MAX + 1],
    n: usize,
}

/// What a series says of a shape: its log weight, today's value, and the variances of that and of a day about it.
#[derive(Clone, Copy)]
struct Seen {
    log_weight: f32,
    today: f32,
    variance: f32,
    of_day: f32,
}

/// Sums over whitened days: with the constant, of squares, and what is foretold of the next day.
#[derive(Clone, Copy, Default)]
struct Sums {
    with_one: f32,
    squares: f32,
    foretold: f32,
}

/// A breach and what it weighs.
struct Point {
    breach: f32,
    weight: f32,
}

/// How the days' noise hangs together, by the innovation of each day given those before it.
///
/// Means over days of an Ornstein-Uhlenbeck process have a covariance that decays by the same factor from each day to the next, but is less within a day than
/// that decay would have it: an autoregression of the first order and a white part, which is negative unless sampling outweighs it.
struct Noise {
    /// What is left of the wander from day to day.
    keeps: f32,
    /// What of a day's surprise is foretold of the next, and one over the surprise's standard deviation.
    days: [(f32, f32); DAYS_MAX],
    /// The constant 1 after whitening, and its square.
    one: [f32; DAYS_MAX],
    one_one: f32,
    /// Variance of a day's value without sampling.
    of_day: f32,
}

impl Noise {
    /// That of a part of the wander's variance, and of sampling.
    fn new(n: usize, part: f32, sampling: f32) -> Self {
        let (of_day, of_next, keeps) = fast::wander_of_days();
        let (of_day, wander) = (part * of_day, part * of_next / keeps);
        let white = of_day - wander + sampling;
        let mut noise = Self { keeps, days: [(0.0, 0.0); DAYS_MAX], one: [0.0; DAYS_MAX], one_one: 0.0, of_day };
        let (mut unknown, mut foretold) = (wander, 0.0);
        for (day, one) in noise.days.iter_mut().zip(&mut noise.one).take(n) {
            let variance: f32 = unknown + white;
            let gain = keeps * unknown / variance;
            *day = (gain, variance.sqrt().recip());
            *one = (1.0 - foretold) * day.1;
            noise.one_one += *one * *one;
            foretold = keeps * foretold + gain * (1.0 - foretold);
            unknown = keeps * keeps * unknown * white / variance + wander * (1.0 - keeps * keeps);
        }
        noise
    }

    /// Takes in a day's value.
    fn next(&self, day: usize, value: f32, sums: Sums) -> Sums {
        let (gain, inverse) = self.days[day];
        let surprise = value - sums.foretold;
        let w = surprise * inverse;
        Sums { with_one: sums.with_one + w * self.one[day], squares: sums.squares + w * w, foretold: self.keeps * sums.foretold + gain * surprise }
    }
}

impl Series {
    fn new(values: impl Iterator<Item = f32>, noise: Noise) -> Self {
        let mut series = Self { noise, values: [0.0; DAYS_MAX], before: [Sums::default(); DAYS_MAX + 1], n: 0 };
        let mut sums = Sums::default();
        for value in values.take(DAYS_MAX) {
            series.values[series.n] = value;
            sums = series.noise.next(series.n, value - series.values[0], sums);
            series.n += 1;
            series.before[series.n] = sums;
        }
        series
    }

    /// Weighs a shape, which is 0 before the day `first`.
    fn weigh(&self, shape: &[f32; DAYS_MAX], first: usize) -> Seen {
        let mut sums = self.before[first];
        for (i, height) in shape.iter().enumerate().take(self.n).skip(first) {
            sums = self.next(i, *height, sums);
        }
        self.seen(sums, if first < self.n { shape[self.n - 1] } else { 0.0 })
    }

    /// Takes in a day that is so much higher than at first.
    fn next(&self, day: usize, height: f32, sums: Sums) -> Sums {
        self.noise.next(day, self.values[day] - self.values[0] - height, sums)
    }

    /// What all days say of a shape that is so high today.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn seen(&self, sums: Sums, height: f32) -> Seen {
        let one_one = self.noise.one_one;
        let spread = (sums.squares - sums.with_one * sums.with_one / one_one).max(0.0) + FLEET_DAYS;
        let freedom = self.n as f32 - 1.0 + FLEET_DAYS;
        Seen {
            log_weight: -0.5 * freedom * libm::logf(spread),
            today: self.values[0] + sums.with_one / one_one + height,
            variance: spread / freedom / one_one,
            of_day: spread / freedom * self.noise.of_day,
        }
    }
}

struct Fit {
    levels: Series,
    heights: Series,
    /// What the heights say of one that stays.
    stays: Seen,
    /// The height on the first days: it tells how the work spreads if the wait on those days is known.
    early_height: f32,
    /// By how much the height of the last days is more than that, and how far off this may be.
    grown: (f32, f32),
    waits: Vec<Waits>,
    fitted: Vec<Fitted>,
}

impl Fit {
    fn add(&mut self, course: Course, log_prior: f32, level: Seen, height: Seen) {
        self.fitted.push(Fitted {
            course,
            log_weight: log_prior + level.log_weight + height.log_weight,
            today: level.today + height.today,
            variance: [level.variance + height.variance, level.of_day + height.of_day],
        });
    }

    /// Courses by which everything grows by one factor, of the log height `shape` times each growth.
    fn add_factors(&mut self, course: impl Fn(f32) -> Course, log_prior: f32, first: usize, shape: impl Fn((f32, f32), usize) -> f32, growths: &[f32]) {
        let mut level = [0.0; DAYS_MAX];
        for growth in growths {
            let both = (*growth, libm::log1pf(*growth));
            for (i, l) in level.iter_mut().enumerate().take(self.levels.n).skip(first) {
                *l = shape(both, i);
            }
            self.add(course(*growth), log_prior, self.levels.weigh(&level, first), self.stays);
        }
    }

    /// Courses by which a wait grows, whose logarithm is that of today plus `shape`.
    fn add_waits(&mut self, course: impl Fn(Growth) -> Course, log_prior: f32, first: usize, shape: &[f32; DAYS_MAX]) {
        let early = EARLY_DAYS.min(self.levels.n);
        let at_first = shape[..early].iter().skip(first).map(|s| libm::expf(*s)).sum::<f32>() / early as f32;
        let at_first = libm::logf(at_first.max(1e-4));
        let recently = shape[self.levels.n - RECENT_DAYS / 2];
        for now in waits_today() {
            let Some(waits) = Waits::of_height(self.early_height, now + at_first) else { break };
            let grown = |at: f32| {
                let (level, p95) = waits.added(at);
                p95 - level
            };
            // Most waits would have p95 stand elsewhere than it does.
            if (grown(now + recently) - grown(now + at_first) - self.grown.0).abs() > self.grown.1 {
                continue;
            }
            let (mut levels, mut heights, mut today) = (self.levels.before[first], self.heights.before[first], (0.0, 0.0));
            for (i, before) in shape.iter().enumerate().take(self.levels.n).skip(first) {
                let (level, p95) = waits.added(now + before);
                today = (level, p95 - level);
                levels = self.levels.next(i, today.0, levels);
                heights = self.heights.next(i, today.1, heights);
            }
            let (level, height) = (self.levels.seen(levels, today.0), self.heights.seen(heights, today.1));
            self.add(course(Growth::Wait(now, self.waits.len())), log_prior, level, height);
            self.waits.push(waits);
        }
    }
}

/// Logarithms of waits, in medians of the work: from 4 % of it to five times.
fn waits_today() -> impl Iterator<Item = f32> {
    (0_u8..WAITS_TODAY).map(|i| 0.3 * f32::from(i) - 3.2)
}

const WAITS_TODAY: u8 = 17;

/// Forecasts from days (the oldest first, the newest the one that ends now) when p95 meets `limit`, a log level; `variance` is that of one request's log
/// duration, `requests` the usual number in a day.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "days")]
pub fn forecast(days: &[Day], limit: f32, variance: f32, requests: f32) -> Option<Forecast> {
    let days = days.get(days.len().saturating_sub(DAYS_MAX)..)?;
    let n = days.len();
    if n < DAYS_MIN {
        return None;
    }
    let last = n as f32 - 1.0;
    let sampling = variance / requests.max(1.0);
    let levels = Series::new(days.iter().map(|d| d.level), Noise::new(n, 1.0, sampling));
    let heights = Series::new(days.iter().map(|d| d.height), Noise::new(n, HEIGHT_WANDER, HEIGHT_VARIANCE * sampling));
    let stays = heights.weigh(&[0.0; DAYS_MAX], n);
    let early = days.iter().take(EARLY_DAYS);
    let early_height = early.clone().map(|d| d.height).sum::<f32>() / early.len() as f32;
    let recent = &days[n - RECENT_DAYS..];
    let rough = days.windows(2).map(|d| (d[1].height - d[0].height) * (d[1].height - d[0].height)).sum::<f32>() / (2.0 * last);
    let grown = (recent.iter().map(|d| d.height).sum::<f32>() / RECENT_DAYS as f32 - early_height, 0.02 + 3.0 * (rough + HEIGHT_VARIANCE * sampling).sqrt());
    let mut fit = Fit { levels, heights, stays, early_height, grown, waits: Vec::new(), fitted: Vec::new() };
    let growths: Vec<f32> = (0..18).map(|i| 0.06 * libm::expf(i as f32 * 0.24)).collect();
    let mut onset = 2.0_f32;
    let mut onsets = Vec::new();
    while onset < last {
        onsets.push(onset);
        onset = (onset * 1.15).max(onset + 0.5);
    }
    let per = |[of_factor, of_wait]: [f32; 2], times: usize| {
        let places = times as f32;
        (libm::logf(of_factor / (places * growths.len() as f32)), libm::logf(of_wait / (places * f32::from(WAITS_TODAY))))
    };
    let prior = |curve: Curve| PRIOR.map(|of| of[curve as usize]);
    for (place, since) in onsets.iter().enumerate() {
        let (since, times) = (*since, onsets.len());
        let age = |i: usize| (i as f32 - (last - since)).max(0.0);
        let first = (0..n).find(|i| age(*i) > 0.0).unwrap_or(0);
        let course = |curve| move |growth| Course { curve, growth, since, whole: 0.0, less: 0.0 };
        let of_factor = |curve| move |growth| course(curve)(Growth::Factor(growth));
        let (by_factor, _) = per(prior(Curve::Straight), times);
        fit.add_factors(of_factor(Curve::Straight), by_factor, first, |(growth, _), i| libm::log1pf(growth / since * age(i)), &growths);
        let (by_factor, _) = per(prior(Curve::Exponential), times);
        fit.add_factors(of_factor(Curve::Exponential), by_factor, first, |(_, log), i| log / since * age(i), &growths);
        for rose in ROSE {
            let (by_factor, _) = per(prior(Curve::Flat), times * ROSE.len());
            let height = |(growth, log): (f32, f32), i: usize| if age(i) < rose * since { libm::log1pf(growth * age(i) / (rose * since)) } else { log };
            fit.add_factors(of_factor(Curve::Flat), by_factor, first, height, &growths);
        }
        // Of waits a third of the onsets are enough.
        if place % 3 == 0 {
            let mut shape = [0.0; DAYS_MAX];
            let times = times.div_ceil(3);
            let (_, by_wait) = per(prior(Curve::Flat), times);
            fit.add_waits(course(Curve::Flat), by_wait, first, &shape);
            for (i, s) in shape.iter_mut().enumerate().take(n).skip(first) {
                *s = libm::logf(age(i) / since);
            }
            let (_, by_wait) = per(prior(Curve::Straight), times);
            fit.add_waits(course(Curve::Straight), by_wait, first, &shape);
        }
    }
    let walls = |n: u8, step: f32| (0..n).map(move |i| 1.5 * libm::expf(f32::from(i) * step));
    let course = |left: f32, less| move |growth| Course { curve: Curve::Wall, growth, since: left, whole: left + last, less };
    for left in walls(18, 0.26) {
        let course = course(left, 0.0);
        // More than all of it cannot run out.
        let possible: Vec<f32> = growths.iter().copied().filter(|growth| course(Growth::Factor(*growth)).runs_out(*growth) <= 1.0).collect();
        let height = |(growth, _): (f32, f32), i: usize| {
            let c = course(Growth::Factor(growth)).runs_out(growth);
            libm::logf(1.0 - c + c * (left + last) / (left + last - i as f32))
        };
        fit.add_factors(|growth| course(Growth::Factor(growth)), per(prior(Curve::Wall), 18).0, 0, height, &possible);
    }
    for left in walls(12, 0.4) {
        for less in LESS {
            let mean = |to_wall: f32| 1.0 / to_wall - less / (left + last);
            let mut shape = [0.0; DAYS_MAX];
            for (i, s) in shape.iter_mut().enumerate().take(n) {
                *s = libm::logf((mean(left + last - i as f32) / mean(left)).max(1e-4));
            }
            fit.add_waits(course(left, less), per(prior(Curve::Wall), 12 * LESS.len()).1, 0, &shape);
        }
    }
    summarize(&fit.fitted, limit, &fit.waits)
}

fn summarize(fitted: &[Fitted], limit: f32, waits: &[Waits]) -> Option<Forecast> {
    let highest = fitted.iter().map(|f| f.log_weight).fold(f32::MIN, f32::max);
    let mut support = [0.0_f32; 4];
    let (mut trend, mut seen) = (Vec::new(), Vec::new());
    for f in fitted {
        // A thousand of these are not a hundredth of the best.
        if f.log_weight < highest - 11.5 {
            continue;
        }
        let weight = libm::expf(f.log_weight - highest);
        support[f.course.curve as usize] += weight;
        let [level, wander] = f.variance;
        for (points, variance) in [(&mut trend, level), (&mut seen, level + wander)] {
            // Three points stand for the uncertainty of a level (Gauss-Hermite).
            for (offset, share) in [(-1.732, 1.0 / 6.0), (0.0, 2.0 / 3.0), (1.732, 1.0 / 6.0)] {
                let breach = f.course.time_to(limit - f.today - offset * variance.sqrt(), waits).min(DAYS_AHEAD_MAX);
                points.push(Point { breach, weight: weight * share });
            }
        }
    }
    let total: f32 = support.iter().sum();
    let ((first, _, last), (from, days, to)) = (middle(trend, total)?, middle(seen, total)?);
    let curve =
        [Curve::Straight, Curve::Exponential, Curve::Wall, Curve::Flat].into_iter().max_by(|a, b| support[*a as usize].total_cmp(&support[*b as usize]))?;
    let support = support[curve as usize] / total;
    (days < DAYS_AHEAD_MAX - 1.0).then_some(Forecast { days, from, to, trend_days: last - first, curve, support })
}

/// The days from now before which a tenth, half and nine tenths of the weight lie.
fn middle(mut points: Vec<Point>, total: f32) -> Option<(f32, f32, f32)> {
    points.sort_unstable_by(|a, b| a.breach.total_cmp(&b.breach));
    let quantile = |q: f32| {
        let mut below = 0.0;
        points.iter().find(|p| {
            below += p.weight;
            below >= q * total
        })
    };
    // The day of a level is its middle, half a day before now.
    let at = |q: f32| quantile(q).map(|p| (p.breach - 0.5).max(0.0));
    Some((at(0.1)?, at(0.5)?, at(0.9)?))
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

    /// The sums of the innovations are those of generalised least squares (Aitken 1935) with the whole matrix of covariances, by its Cholesky factor.
    #[test]
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn whitening_by_innovations_is_whitening_by_the_matrix() {
        const N: usize = 12;
        let (of_day, of_next, keeps) = fast::wander_of_days();
        for sampling in [0.0, 0.004, 0.02] {
            let covariance = |i: usize, j: usize| if i == j { of_day + sampling } else { of_next * keeps.powi((i.abs_diff(j) - 1).try_into().unwrap()) };
            let mut factor = [[0.0_f32; N]; N];
            for i in 0..N {
                for j in 0..=i {
                    let known: f32 = (0..j).map(|k| factor[i][k] * factor[j][k]).sum();
                    factor[i][j] = if i == j { (covariance(i, i) - known).sqrt() } else { (covariance(i, j) - known) / factor[j][j] };
                }
            }
            let noise = Noise::new(N, sampling);
            let level = |i: usize| ((i * 37) % 11) as f32 / 100.0;
            let (mut white, mut one, mut sums) = ([0.0_f32; N], [0.0_f32; N], Sums::default());
            for i in 0..N {
                white[i] = (level(i) - (0..i).map(|k| factor[i][k] * white[k]).sum::<f32>()) / factor[i][i];
                one[i] = (1.0 - (0..i).map(|k| factor[i][k] * one[k]).sum::<f32>()) / factor[i][i];
                sums = noise.next(i, level(i), sums);
            }
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            for (got, exact) in [(noise.one_one, dot(&one, &one)), (sums.with_one, dot(&one, &white)), (sums.squares, dot(&white, &white))] {
                assert!((got / exact - 1.0).abs() < 1e-3, "{got} {exact}");
            }
        }
    }

    /// Rises drawn from the prior, with the wander that is assumed: four in five are seen to meet their limit inside the interval (Cook, Gelman & Rubin,
    /// Validation of software for Bayesian models using posterior quantiles, J. Comput. Graph. Stat. 15, 2006).
    #[test]
    fn four_in_five_of_what_it_assumes_are_inside() {
        let mut state = 1_u64;
        let mut unit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (f32::from(u16::try_from(state >> 48).unwrap()) + 0.5) / 65_536.0
        };
        let noise = Noise::new(40, 0.002);
        let (mut inside, mut all) = (0, 0);
        for _ in 0..200 {
            let (growth, since, further) = (0.06 * 58.0_f32.powf(unit()), 2.0 * 18.0_f32.powf(unit()), 0.2 + unit());
            let course = Course { curve: Curve::Straight, growth, rate: growth / since, wall: (0.0, 0.0) };
            // A sum of twelve uniforms is as good as normal here.
            let mut normal = || (0..12).map(|_| unit()).sum::<f32>() - 6.0;
            let (mut levels, mut foretold) = (Vec::new(), 0.0);
            for (age, (gain, inverse)) in (0_u8..40).map(|day| (f32::from(day) - 39.0 + since).max(0.0)).zip(noise.days) {
                let surprise = normal() / inverse;
                levels.push(libm::log1pf(course.rate * age) + foretold + surprise);
                foretold = noise.keeps * foretold + gain * surprise;
            }
            let breach = (course.time_to(further - normal() * noise.of_day.sqrt()) - 0.5).clamp(0.0, DAYS_AHEAD_MAX - 0.5);
            if let Some(f) = forecast(&levels, libm::log1pf(growth) + further, 0.002) {
                all += 1;
                inside += usize::from((f.from..=f.to).contains(&breach));
            }
        }
        assert!(all > 100 && inside * 100 >= all * 72 && inside * 100 <= all * 92, "{inside} of {all}");
    }

    #[test]
    fn what_stays_has_no_date() {
        assert!(forecast(&levels(|_| 1.0), libm::logf(2.0), 0.0).is_none_or(|f| !f.has_date()));
    }
}
