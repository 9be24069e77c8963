//! When a rising level meets its limit: straight, exponential, or bending towards a wall, whichever the days support, and how sure that is.
//!
//! # Source
//! Bayesian model averaging (Hoeting, Madigan, Raftery & Volinsky, Stat. Sci. 14, 1999) on a grid: the level and the variance are integrated out
//! (Gelman et al., Bayesian Data Analysis, 2013, 3.2: a Student likelihood), the days' correlation is that of the wander of [`super::fast`], by its
//! innovations (Kalman, J. Basic Eng. 82, 1960). The interval holds the middle 80 % of the weight, so not knowing which curve it is, nor where its wall stands,
//! widens it. It is predictive (Geisser, Predictive Inference, 1993): it is about the day on which p95 is seen to meet the limit, and that day wanders as all do.

use serde::{Deserialize, Serialize};

use super::fast;
use super::slow::DAYS_MAX;

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

/// A curve on the grid: what it says of the days to a rise of the log level.
#[derive(Clone, Copy)]
struct Course {
    curve: Curve,
    /// What it has grown by, over its height at first.
    growth: f32,
    /// Growth a day, of the height or (exponential) of its log; or (wall) the share that runs out.
    rate: f32,
    /// Days from today's level to the wall, and from the first day to it.
    wall: (f32, f32),
}

impl Course {
    /// Days until the log level is up by `rise`.
    fn time_to(&self, rise: f32) -> f32 {
        if rise <= 0.0 {
            return 0.0;
        }
        let rise = rise.min(20.0);
        match self.curve {
            Curve::Straight => (1.0 + self.growth) * libm::expm1f(rise) / self.rate,
            Curve::Exponential => rise / self.rate,
            Curve::Flat => DAYS_AHEAD_MAX,
            Curve::Wall => self.wall.0 - self.rate * self.wall.1 / ((1.0 + self.growth) * libm::expf(rise) - 1.0 + self.rate),
        }
    }
}

/// How well a course agrees with the days.
struct Fitted {
    course: Course,
    log_weight: f32,
    /// Today's level: its mean and the variance of what is not known of it, and that of a day's wander about it.
    today: f32,
    variance: [f32; 2],
}

struct Fit<'a> {
    noise: Noise,
    levels: &'a [f32],
    /// What the days before each one add to the sums where no curve has begun yet.
    before: [Sums; DAYS_MAX],
    fitted: Vec<Fitted>,
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
    /// Variance of a day's level without sampling.
    of_day: f32,
}

impl Noise {
    fn new(n: usize, sampling: f32) -> Self {
        let (of_day, of_next, keeps) = fast::wander_of_days();
        let wander = of_next / keeps;
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

    /// Takes in a day's level.
    fn next(&self, day: usize, level: f32, sums: Sums) -> Sums {
        let (gain, inverse) = self.days[day];
        let surprise = level - sums.foretold;
        let w = surprise * inverse;
        Sums { with_one: sums.with_one + w * self.one[day], squares: sums.squares + w * w, foretold: self.keeps * sums.foretold + gain * surprise }
    }
}

impl Fit<'_> {
    fn begin(&mut self) {
        let mut sums = Sums::default();
        for i in 0..self.levels.len() {
            self.before[i] = sums;
            sums = self.noise.next(i, self.levels[i] - self.levels[0], sums);
        }
    }

    /// Weighs a course whose log height at each day is `shape`, 0 before the day `first`.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn add(&mut self, course: Course, log_prior: f32, shape: &[f32], first: usize) {
        let (n, base) = (self.levels.len(), self.levels[0]);
        let mut sums = self.before[first];
        for (i, height) in shape.iter().enumerate().skip(first) {
            sums = self.noise.next(i, self.levels[i] - height - base, sums);
        }
        let Sums { with_one, squares, .. } = sums;
        let one_one = self.noise.one_one;
        let spread = (squares - with_one * with_one / one_one).max(0.0) + FLEET_DAYS;
        let freedom = n as f32 - 1.0 + FLEET_DAYS;
        let log_weight = log_prior - 0.5 * freedom * libm::logf(spread);
        let variance = [spread / freedom / one_one, spread / freedom * self.noise.of_day];
        self.fitted.push(Fitted { course, log_weight, today: base + with_one / one_one + shape[n - 1], variance });
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
    let mut fit = Fit { noise: Noise::new(n, sampling), levels, before: [Sums::default(); DAYS_MAX], fitted: Vec::new() };
    fit.begin();
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
            let (slope, rate) = (growth / since, libm::log1pf(*growth) / since);
            let age = |i: usize| (i as f32 - (last - since)).max(0.0);
            let first = (0..n).find(|i| age(*i) > 0.0).unwrap_or(0);
            let course = |curve, rate| Course { curve, growth: *growth, rate, wall: (0.0, 0.0) };
            for (i, s) in shape.iter_mut().enumerate().take(n).skip(first) {
                *s = libm::log1pf(slope * age(i));
            }
            fit.add(course(Curve::Straight, slope), libm::logf(PRIOR[0]) + per_onset, &shape[..n], first);
            for (i, s) in shape.iter_mut().enumerate().take(n).skip(first) {
                *s = rate * age(i);
            }
            fit.add(course(Curve::Exponential, rate), libm::logf(PRIOR[1]) + per_onset, &shape[..n], first);
            shape[first..n].fill(rate * since);
            fit.add(course(Curve::Flat, 0.0), libm::logf(PRIOR[3]) + per_onset, &shape[..n], first);
        }
    }
    let walls: Vec<f32> = (0..18).map(|i| 1.5 * libm::expf(i as f32 * 0.26)).collect();
    // height = 1 − c + c·whole/(whole − t), c so that it has grown by `growth` today; more than all of it cannot run out.
    let possible = walls.iter().flat_map(|left| growths.iter().map(move |growth| (*left, *growth, growth * left / last))).filter(|w| w.2 <= 1.0);
    let per_wall = -libm::logf(possible.clone().count() as f32);
    for (left, growth, c) in possible {
        let whole = left + last;
        for (i, s) in shape.iter_mut().enumerate().take(n) {
            *s = libm::logf(1.0 - c + c * whole / (whole - i as f32));
        }
        fit.add(Course { curve: Curve::Wall, growth, rate: c, wall: (left, whole) }, libm::logf(PRIOR[2]) + per_wall, &shape[..n], 0);
    }
    summarize(&fit.fitted, limit)
}

fn summarize(fitted: &[Fitted], limit: f32) -> Option<Forecast> {
    let highest = fitted.iter().map(|f| f.log_weight).fold(f32::MIN, f32::max);
    let mut support = [0.0_f32; 4];
    let (mut trend, mut seen) = (Vec::new(), Vec::new());
    for f in fitted {
        let weight = libm::expf(f.log_weight - highest);
        // A thousand of these are not a hundredth of the best.
        if weight < 1e-5 {
            continue;
        }
        support[f.course.curve as usize] += weight;
        let [level, wander] = f.variance;
        for (points, variance) in [(&mut trend, level), (&mut seen, level + wander)] {
            // Three points stand for the uncertainty of a level (Gauss-Hermite).
            for (offset, share) in [(-1.732, 1.0 / 6.0), (0.0, 2.0 / 3.0), (1.732, 1.0 / 6.0)] {
                let breach = f.course.time_to(limit - f.today - offset * variance.sqrt()).min(DAYS_AHEAD_MAX);
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
