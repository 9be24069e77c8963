//! When a rising p95 meets its limit: straight, exponential, or bending towards a wall, whichever the days support, and how sure that is.
//!
//! Three things are known of each day: its level (the mean log duration), how high p95 stands over it, and how far apart durations are. The level wanders, and p95
//! with it; the others hardly do. Either everything grows by one factor, and they stay; or a wait grows that is added to the work, and they grow with it in a known
//! way ([`super::waits`]). So they tell which it is, and of a wait how far it has come, without the wander. How far apart durations are tells more of it than p95,
//! which is what a few say; only where it is known of too few days the heights take its place.
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
use super::spread::Sampling;
use super::waits::{Measure, Waits, Work};

/// Fewer days are no forecast.
const DAYS_MIN: usize = 10;
/// Breaches further away are never.
const DAYS_AHEAD_MAX: f32 = 400.0;
/// What the fleet's noise weighs, in days.
const FLEET_DAYS: f32 = 6.0;
/// What the number of requests leaves in the height, in parts of what it leaves in the level: 4.4 of p95 itself less the level's own.
const HEIGHT_SAMPLING: f32 = 3.4;
/// The part of the wander's variance that the height has, and the spread: a quarter of its deviation.
const MEASURE_WANDER: f32 = 1.0 / 16.0;
/// The first days, by which it is known how the work spreads, and the last, by which it is known how far that has come.
const FIRST_DAYS: usize = 14;
const LAST_DAYS: usize = 4;

/// Prior weight of the curves where everything grows by one factor.
const FACTOR_PRIOR: [f32; 4] = [0.42, 0.07, 0.14, 0.07];
/// And where a wait grows: what runs out makes it a wall.
const WAIT_PRIOR: [f32; 4] = [0.10, 0.0, 0.15, 0.05];

/// Factors on the grid, less 1: the first, the logarithm of the step and how many.
const GROWTHS: (f32, f32, u8) = (0.06, 0.24, 18);
/// Mean waits of today, in medians of the work: the logarithm of the first, the step and how many.
const WAITS: (f32, f32, u8) = (-3.2, 0.2, 26);
/// Days to the wall: likewise.
const FACTOR_WALLS: (f32, f32, u8) = (1.5, 0.26, 18);
const WAIT_WALLS: (f32, f32, u8) = (1.5, 0.4, 12);
/// Every third of the onsets is enough for waits: that they grow straight, or stay, is seldom what the heights say.
const WAIT_ONSETS: usize = 3;
/// For which part of the time since its onset a level rose that stays now: at once, or straight for so long.
const ROSE: [f32; 3] = [0.0, 0.33, 0.67];
/// What was left on the first day of what runs out: the mean wait is as ρ/(1 − ρ), ρ being the part in use (Pollaczek & Khinchine; Cohen, The Single Server
/// Queue, 1969), so as 1/(T − t) less this part of its first value.
const LEFT_AT_FIRST: [f32; 3] = [0.0, 0.5, 1.0];

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
    /// The logarithm of the mean deviation from it.
    pub spread: Option<f32>,
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
    /// A wait: its logarithm today, and the place of what it adds to the work.
    Wait(f32, usize),
}

/// A curve on the grid: what it says of the days to a rise of p95.
#[derive(Clone, Copy)]
struct Course {
    curve: Curve,
    growth: Growth,
    /// Days since it began; or from today to the wall.
    days: f32,
    /// Days from the first to the wall.
    whole: f32,
    /// Of [`LEFT_AT_FIRST`].
    left_at_first: f32,
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
            (Growth::Factor(growth), Curve::Straight) => (1.0 + growth) * libm::expm1f(rise) / (growth / self.days),
            (Growth::Factor(growth), Curve::Exponential) => rise / (libm::log1pf(growth) / self.days),
            (Growth::Factor(growth), Curve::Wall) => {
                let c = self.runs_out(growth);
                self.days - c * self.whole / ((1.0 + growth) * libm::expf(rise) - 1.0 + c)
            }
            (Growth::Wait(today, of), curve) => {
                let waits = &waits[of];
                let times = libm::expf(waits.wait_for(waits.added(today).p95 + rise) - today);
                let less = self.left_at_first;
                if curve == Curve::Wall { self.days - self.whole / (times * (self.whole / self.days - less) + less) } else { self.days * (times - 1.0) }
            }
        }
    }

    /// The share of the first height that is as 1/(T − t), so that it has grown by `growth` today: height = 1 − c + c·whole/(whole − t).
    fn runs_out(&self, growth: f32) -> f32 {
        growth * self.days / (self.whole - self.days)
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

/// A value for each day, and what the days before each one add to the sums where no curve has begun yet.
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
            sums = series.next(series.n, 0.0, sums);
            series.n += 1;
            series.before[series.n] = sums;
        }
        series
    }

    /// Takes in a day on which a shape is so high.
    fn next(&self, day: usize, shape: f32, sums: Sums) -> Sums {
        self.noise.next(day, self.values[day] - self.values[0] - shape, sums)
    }

    /// What the sums over all days say of a shape that is so high today.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn seen(&self, sums: Sums, shape: f32) -> Seen {
        let one_one = self.noise.one_one;
        let spread = (sums.squares - sums.with_one * sums.with_one / one_one).max(0.0) + FLEET_DAYS;
        let freedom = self.n as f32 - 1.0 + FLEET_DAYS;
        Seen {
            log_weight: -0.5 * freedom * libm::logf(spread),
            today: self.values[0] + sums.with_one / one_one + shape,
            variance: spread / freedom / one_one,
            of_day: spread / freedom * self.noise.of_day,
        }
    }
}

/// What tells waits from growth, and what of it a wait must explain.
struct Told {
    measure: Measure,
    /// Its values, if they are not the heights.
    spreads: Option<Series>,
    /// How many days before its level each of them was.
    late: f32,
    /// Their mean over the first days: it tells how the work spreads if the wait on those days is known.
    first: f32,
    /// By how much that of the last days is more, and how far off this may be.
    grown: f32,
    off: f32,
}

impl Told {
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn new(days: &[Day], sampling: Sampling, late: f32) -> Self {
        let n = days.len();
        let spreads: Option<Vec<f32>> = days.iter().map(|day| day.spread).collect();
        let heights = || days.iter().map(|day| day.height).collect::<Vec<f32>>();
        let (measure, chance, late) =
            if spreads.is_some() { (Measure::Spread, sampling.spread, late) } else { (Measure::Height, HEIGHT_SAMPLING * sampling.level, 0.0) };
        let values = spreads.clone().unwrap_or_else(heights);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let first = mean(&values[..FIRST_DAYS.min(n)]);
        // What the days scatter from one to the next, or should.
        let scatter = values.windows(2).map(|v| (v[1] - v[0]) * (v[1] - v[0])).sum::<f32>() / (2 * n) as f32;
        let spreads = spreads.map(|values| Series::new(values.into_iter(), Noise::new(n, MEASURE_WANDER, chance)));
        Self { measure, spreads, late, first, grown: mean(&values[n - LAST_DAYS..]) - first, off: 0.02 + 2.0 * (scatter + chance).sqrt() }
    }
}

struct Fit {
    levels: Series,
    heights: Series,
    told: Told,
    /// What levels grow by: factors less 1, and their logarithms.
    growths: Vec<(f32, f32)>,
    waits: Vec<Waits>,
    fitted: Vec<Fitted>,
}

/// The values of a grid.
fn grid((first, step, count): (f32, f32, u8)) -> impl Iterator<Item = f32> + Clone {
    (0..count).map(move |i| first * libm::expf(f32::from(i) * step))
}

/// The logarithm of the prior weight of one place of a curve's.
#[expect(clippy::cast_precision_loss, reason = "places of a grid")]
fn log_prior(prior: &[f32; 4], curve: Curve, places: usize) -> f32 {
    libm::logf(prior[curve as usize] / places as f32)
}

impl Fit {
    fn new(days: &[Day], sampling: Sampling, late: f32) -> Self {
        let n = days.len();
        let levels = Series::new(days.iter().map(|d| d.level), Noise::new(n, 1.0, sampling.level));
        let heights = Series::new(days.iter().map(|d| d.height), Noise::new(n, MEASURE_WANDER, HEIGHT_SAMPLING * sampling.level));
        let growths = grid(GROWTHS).map(|growth| (growth, libm::log1pf(growth))).collect();
        Self { levels, heights, told: Told::new(days, sampling, late), growths, waits: Vec::new(), fitted: Vec::new() }
    }

    /// `told` is what the spreads say, where they are known: of how p95 stands today the height does.
    fn add(&mut self, course: Course, log_prior: f32, level: Seen, height: Seen, told: Option<Seen>) {
        self.fitted.push(Fitted {
            course,
            log_weight: log_prior + level.log_weight + told.unwrap_or(height).log_weight,
            today: level.today + height.today,
            variance: [level.variance + height.variance, level.of_day + height.of_day],
        });
    }

    /// Courses by which everything has grown by one of the factors, with `shape` of it (less 1, and its logarithm) from the day `first` on; height and spread stay.
    fn add_factors(&mut self, curve: Curve, (days, whole): (f32, f32), log_prior: f32, first: usize, shape: impl Fn((f32, f32), usize) -> f32) {
        let n = self.levels.n;
        let stays = |series: &Series| series.seen(series.before[n], 0.0);
        let (height, spread) = (stays(&self.heights), self.told.spreads.as_ref().map(stays));
        for place in 0..self.growths.len() {
            let growth = self.growths[place];
            let course = Course { curve, growth: Growth::Factor(growth.0), days, whole, left_at_first: 0.0 };
            // More than all of it cannot run out.
            if curve == Curve::Wall && course.runs_out(growth.0) > 1.0 {
                break;
            }
            let (mut sums, mut today) = (self.levels.before[first], 0.0);
            for i in first..n {
                today = shape(growth, i);
                sums = self.levels.next(i, today, sums);
            }
            self.add(course, log_prior, self.levels.seen(sums, today), height, spread);
        }
    }

    /// Courses by which a wait has grown to one of today's, of which `parts` (their logarithms) were on each day from `first` on, and none before.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn add_waits(&mut self, course: Course, log_prior: f32, first: usize, parts: &[f32; DAYS_MAX]) {
        let (n, measure) = (self.levels.n, self.told.measure);
        let first_days = FIRST_DAYS.min(n);
        let part = parts[..first_days].iter().skip(first).map(|p| libm::expf(*p)).sum::<f32>() / first_days as f32;
        let (at_first, lately) = (libm::logf(part.max(1e-4)), parts[n - LAST_DAYS / 2]);
        for today in (0..WAITS.2).map(|i| WAITS.0 + WAITS.1 * f32::from(i)) {
            // With a longer one they would be further apart on the first days, whatever the work.
            let Some(work) = Work::of(measure, self.told.first, today + at_first) else { break };
            // With most waits they would not be as far apart as they are.
            if (work.added(measure, today + lately) - work.added(measure, today + at_first) - self.told.grown).abs() > self.told.off {
                continue;
            }
            let waits = work.waits();
            let (mut levels, mut heights) = (self.levels.before[first], self.heights.before[first]);
            let (mut level, mut height) = (0.0, 0.0);
            for (i, part) in parts.iter().enumerate().take(n).skip(first) {
                let added = waits.added(today + part);
                (level, height) = (added.level, added.to(Measure::Height));
                levels = self.levels.next(i, level, levels);
                heights = self.heights.next(i, height, heights);
            }
            let spread = self.told.spreads.as_ref().map(|series| {
                let (mut sums, mut spread, mut before) = (series.before[first], 0.0, parts[first]);
                for (i, part) in parts.iter().enumerate().take(n).skip(first) {
                    spread = waits.added(today + part + self.told.late * (before - part)).spread;
                    sums = series.next(i, spread, sums);
                    before = *part;
                }
                series.seen(sums, spread)
            });
            let course = Course { growth: Growth::Wait(today, self.waits.len()), ..course };
            self.add(course, log_prior, self.levels.seen(levels, level), self.heights.seen(heights, height), spread);
            self.waits.push(waits);
        }
    }

    /// What began on one of the days, and rises or stays.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn add_onsets(&mut self) {
        let last = self.levels.n as f32 - 1.0;
        let onsets: Vec<f32> = std::iter::successors(Some(2.0_f32), |days| Some((days * 1.15).max(days + 0.5))).take_while(|days| *days < last).collect();
        let places = onsets.len() * usize::from(GROWTHS.2);
        let of_factor = |curve, parts| log_prior(&FACTOR_PRIOR, curve, places * parts);
        let of_wait = |curve| log_prior(&WAIT_PRIOR, curve, onsets.len().div_ceil(WAIT_ONSETS) * usize::from(WAITS.2));
        for (place, since) in onsets.iter().enumerate() {
            let age = |i: usize| (i as f32 - (last - since)).max(0.0);
            let (days, first) = ((*since, 0.0), (0..self.levels.n).find(|i| age(*i) > 0.0).unwrap_or(0));
            let straight = |(growth, _), i| libm::log1pf(growth / since * age(i));
            self.add_factors(Curve::Straight, days, of_factor(Curve::Straight, 1), first, straight);
            self.add_factors(Curve::Exponential, days, of_factor(Curve::Exponential, 1), first, |(_, log), i| log / since * age(i));
            for rose in ROSE.map(|part| part * since) {
                let shape = |(growth, log), i| if age(i) < rose { libm::log1pf(growth * age(i) / rose) } else { log };
                self.add_factors(Curve::Flat, days, of_factor(Curve::Flat, ROSE.len()), first, shape);
            }
            if place % WAIT_ONSETS == 0 {
                let course = |curve| Course { curve, growth: Growth::Factor(0.0), days: *since, whole: 0.0, left_at_first: 0.0 };
                let mut parts = [0.0; DAYS_MAX];
                self.add_waits(course(Curve::Flat), of_wait(Curve::Flat), first, &parts);
                for (i, part) in parts.iter_mut().enumerate().take(self.levels.n).skip(first) {
                    *part = libm::logf(age(i) / since);
                }
                self.add_waits(course(Curve::Straight), of_wait(Curve::Straight), first, &parts);
            }
        }
    }

    /// What runs out.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn add_walls(&mut self) {
        let (curve, last) = (Curve::Wall, self.levels.n as f32 - 1.0);
        let of_factor = log_prior(&FACTOR_PRIOR, curve, usize::from(FACTOR_WALLS.2) * usize::from(GROWTHS.2));
        let of_wait = log_prior(&WAIT_PRIOR, curve, usize::from(WAIT_WALLS.2) * LEFT_AT_FIRST.len() * usize::from(WAITS.2));
        for days in grid(FACTOR_WALLS) {
            let whole = days + last;
            // Growth over 1 is as 1/(whole − t) less its first value.
            let part = |i: usize| i as f32 / (whole - i as f32) * days / last;
            self.add_factors(curve, (days, whole), of_factor, 0, |(growth, _), i| libm::log1pf(growth * part(i)));
        }
        for days in grid(WAIT_WALLS) {
            let whole = days + last;
            for left_at_first in LEFT_AT_FIRST {
                let mean = |to_wall: f32| 1.0 / to_wall - left_at_first / whole;
                let mut parts = [0.0; DAYS_MAX];
                for (i, part) in parts.iter_mut().enumerate().take(self.levels.n) {
                    *part = libm::logf((mean(whole - i as f32) / mean(days)).max(1e-4));
                }
                let course = Course { curve, growth: Growth::Factor(0.0), days, whole, left_at_first };
                self.add_waits(course, of_wait, 0, &parts);
            }
        }
    }
}

/// Forecasts from days (the oldest first, the newest the one that ends now) when p95 meets `limit`, a log level. Their spreads may be those of days that ended
/// `late` days before, less than one.
#[must_use]
pub fn forecast(days: &[Day], limit: f32, sampling: Sampling, late: f32) -> Option<Forecast> {
    // A day without a spread is left out, as one without a p95 is: what tells of it must not change from one run to the next.
    let with_spread: Vec<Day> = days.iter().filter(|day| day.spread.is_some()).copied().collect();
    let days = if with_spread.len() < DAYS_MIN { days } else { &with_spread };
    let days = days.get(days.len().saturating_sub(DAYS_MAX)..)?;
    if days.len() < DAYS_MIN {
        return None;
    }
    let mut fit = Fit::new(days, sampling, late);
    fit.add_onsets();
    fit.add_walls();
    summarize(&fit, limit)
}

fn summarize(fit: &Fit, limit: f32) -> Option<Forecast> {
    let highest = fit.fitted.iter().map(|f| f.log_weight).fold(f32::MIN, f32::max);
    let mut support = [0.0_f32; 4];
    let (mut trend, mut seen) = (Vec::new(), Vec::new());
    for f in &fit.fitted {
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
                let breach = f.course.time_to(limit - f.today - offset * variance.sqrt(), &fit.waits).min(DAYS_AHEAD_MAX);
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

    const EXACT: Sampling = Sampling { level: 0.0, spread: 0.0 };
    const NEARLY: Sampling = Sampling { level: 1e-4, spread: 1e-4 };

    /// Forty days on which everything is so high.
    fn days(height: impl Fn(f32) -> f32) -> Vec<Day> {
        let noise = |day: u8| 0.004 * (f32::from(day % 5) - 2.0);
        (0..40_u8).map(|day| Day { level: libm::logf(height(f32::from(day))) + noise(day), height: 0.8 - noise(day) / 2.0, spread: None }).collect()
    }

    /// p95 is 0.8 over the level.
    fn limit(height: f32) -> f32 {
        libm::logf(height) + 0.8
    }

    /// 1 + 0.05·(day − 20) reaches 3 on day 60, which is 20.5 days after the end of day 39.
    #[test]
    fn a_straight_rise_is_carried_on_straight() {
        let f = forecast(&days(|day| 1.0 + 0.05 * (day - 20.0).max(0.0)), limit(3.0), EXACT, 0.0).unwrap();
        assert!(f.from <= 20.5 && f.to >= 20.5 && (f.days - 20.5).abs() < 4.0, "{f:?}");
    }

    /// 40/(50 − day) reaches 20 on day 48: a straight line would say months.
    #[test]
    fn what_runs_out_is_seen_to_bend() {
        let f = forecast(&days(|day| 0.2 + 40.0 / (50.0 - day)), limit(20.0), EXACT, 0.0).unwrap();
        assert_eq!(f.curve, Curve::Wall);
        assert!((f.days - 8.4).abs() < 2.0 && f.has_date(), "{f:?}");
    }

    /// Level and p95 of lognormal work and a wait for one of a number of things, of which a part is in use: none with chance 1 − ρ, else exponential with mean
    /// 1/(1 − ρ) (Cohen 1969: M/M/1). By sums over 200 × 100 parts of both, not by the table.
    fn with_wait(in_use: f32, wait: f32) -> Day {
        let (mut all, mut level) = (Vec::new(), 0.0);
        for z in (-99..=99_i8).map(|z| f32::from(z) / 25.0) {
            let share = libm::expf(-0.5 * z * z) / 25.0 / 2.506_628;
            for part in (0..100_u8).map(|part| (f32::from(part) + 0.5) / 100.0) {
                let waits = -libm::logf(part) * wait / (1.0 - in_use);
                let work = libm::expf(0.35 * z);
                for (x, share) in [(work + waits, share * in_use / 100.0), (work, share * (1.0 - in_use) / 100.0)] {
                    let x = libm::logf(x);
                    level += x * share;
                    all.push((x, share));
                }
            }
        }
        all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut beyond = 0.0;
        let p95 = all.iter().find(|(_, share)| {
            beyond += share;
            beyond >= 0.05
        });
        let apart: f32 = all.iter().map(|(x, share)| (x - level).abs() * share).sum();
        Day { level, height: p95.unwrap().0 - level, spread: Some(libm::logf(apart)) }
    }

    /// Orders draw ids until one is free; the ids run out at the end of day 44. The wander of the level is as large as the rise of a week: the height tells the day.
    #[test]
    fn a_wait_for_what_runs_out_tells_its_day_in_spite_of_the_wander() {
        let at = |day: f32| with_wait(0.35 + 0.65 * day / 44.5, 0.14);
        let breach = 31.0 + 7.5;
        let limit = at(breach);
        let days: Vec<Day> = (0..32_u8)
            .map(|day| {
                let Day { level, height, .. } = at(f32::from(day));
                Day { level: level + 0.06 * libm::sinf(f32::from(day) * 0.8), height: height + 0.01 * libm::sinf(f32::from(day) * 2.5), spread: None }
            })
            .collect();
        let f = forecast(&days, limit.level + limit.height, NEARLY, 0.0).unwrap();
        assert_eq!(f.curve, Curve::Wall);
        assert!((f.days - 7.0).abs() < 2.0 && f.from < 7.0 && f.to > 7.0 && f.to < 14.0, "{f:?}");
        // With a height that stays the same rise of the level is not known to be one.
        let without: Vec<Day> = days.iter().map(|d| Day { level: d.level, height: days[0].height, spread: None }).collect();
        assert!(forecast(&without, limit.level + days[0].height, NEARLY, 0.0).is_none_or(|f| !f.has_date()));
    }

    /// The same, told ten days before and with a p95 that scatters by 15 % from day to day: how far apart durations are is known to 2 %, and as of half a day before.
    #[test]
    fn durations_that_draw_apart_tell_the_day_sooner_than_p95() {
        let at = |day: f32| with_wait(0.35 + 0.65 * day / 44.5, 0.14);
        let (breach, late) = (28.0 + 10.5, 0.5);
        let limit = at(breach);
        let days: Vec<Day> = (0..29_u8)
            .map(f32::from)
            .map(|day| {
                let Day { level, height, .. } = at(day);
                let spread = at((day - late).max(0.0)).spread.map(|spread| spread + 0.02 * libm::sinf(day * 3.7));
                Day { level: level + 0.06 * libm::sinf(day * 0.8), height: height + 0.15 * libm::sinf(day * 2.5), spread }
            })
            .collect();
        let told = |days: &[Day]| forecast(days, limit.level + limit.height, Sampling { level: 6e-4, spread: 4e-4 }, late).filter(Forecast::has_date);
        let f = told(&days).unwrap();
        assert!(f.curve == Curve::Wall && (f.days - 10.0).abs() < 2.5 && f.from < 10.0 && f.to > 10.0, "{f:?}");
        // Two days of which it is not known are left out, and change little.
        let gaps: Vec<Day> = days.iter().enumerate().map(|(i, day)| if i == 0 || i == 20 { Day { spread: None, ..*day } } else { *day }).collect();
        let g = told(&gaps).unwrap();
        assert!((g.days - f.days).abs() < 1.0 && (g.to - g.from) < 1.5 * (f.to - f.from), "{f:?} {g:?}");
        let without: Vec<Day> = days.iter().map(|day| Day { spread: None, ..*day }).collect();
        assert!(told(&without).is_none_or(|g| g.to - g.from > f.to - f.from), "{f:?} {:?}", told(&without));
    }

    #[test]
    fn what_rose_and_stays_has_no_date() {
        for (from, to) in [(20.0, 20.5), (14.0, 26.0), (10.0, 30.0)] {
            let f = forecast(&days(|day| 1.0 + 0.5 * ((day - from) / (to - from)).clamp(0.0, 1.0)), limit(2.0), EXACT, 0.0);
            assert!(f.is_none_or(|f| !f.has_date()), "{from} {to} {f:?}");
        }
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
            let noise = Noise::new(N, 1.0, sampling);
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
        let noise = Noise::new(40, 1.0, 0.002);
        let (mut inside, mut all) = (0, 0);
        for _ in 0..200 {
            let (growth, since, further) = (0.06 * 58.0_f32.powf(unit()), 2.0 * 18.0_f32.powf(unit()), 0.2 + unit());
            let course = Course { curve: Curve::Straight, growth: Growth::Factor(growth), days: since, whole: 0.0, left_at_first: 0.0 };
            // A sum of twelve uniforms is as good as normal here.
            let mut normal = || (0..12).map(|_| unit()).sum::<f32>() - 6.0;
            let (mut days, mut foretold) = (Vec::new(), 0.0);
            for (age, (gain, inverse)) in (0_u8..40).map(|day| (f32::from(day) - 39.0 + since).max(0.0)).zip(noise.days) {
                let surprise = normal() / inverse;
                // The height has a quarter of such a wander, and more sampling: as if it were white.
                days.push(Day { level: libm::log1pf(growth / since * age) + foretold + surprise, height: 0.8 + 0.08 * normal(), spread: None });
                foretold = noise.keeps * foretold + gain * surprise;
            }
            let breach = (course.time_to(further - normal() * noise.of_day.sqrt(), &[]) - 0.5).clamp(0.0, DAYS_AHEAD_MAX - 0.5);
            if let Some(f) = forecast(&days, libm::log1pf(growth) + further + 0.8, Sampling { level: 0.002, spread: 0.001 }, 0.0) {
                all += 1;
                inside += usize::from((f.from..=f.to).contains(&breach));
            }
        }
        assert!(all > 100 && inside * 100 >= all * 72 && inside * 100 <= all * 92, "{inside} of {all}");
    }

    #[test]
    fn what_stays_has_no_date() {
        assert!(forecast(&days(|_| 1.0), limit(2.0), EXACT, 0.0).is_none_or(|f| !f.has_date()));
    }
}
