//! What a wait adds to the work of a request: to the mean log duration, to p95, and to how far apart durations are.
//!
//! # Source
//! Where a resource nears its limit, the time spent waiting for it is exponentially distributed, and its mean is as 1/(what is left of the resource): the
//! heavy-traffic limit of queues (Kingman, The single server queue in heavy traffic, Proc. Camb. Phil. Soc. 57, 1961), and the limit of draws that are repeated
//! until one succeeds (Rényi 1956; Feller, An Introduction to Probability Theory II, 1971, I.3). The work is taken as lognormal. So the tail grows away from the
//! level while the wait grows, in a way that is known beforehand; a level that grows as a whole takes its tail along.

use std::sync::OnceLock;

use super::reference::spread;

/// Mean waits that are tabled, in medians of the work: the logarithm of the first, the step and how many.
const FIRST: f32 = -6.0;
const STEP: f32 = 0.25;
const WAITS: usize = 44;

/// Standard deviations of the work's log that are tabled: the first, the logarithm of the factor between them and how many.
const SD_FIRST: f32 = 0.1;
const SD_STEP: f32 = 0.2;
const SDS: usize = 14;

/// p95 of the standard normal distribution.
const Z95: f32 = 1.644_854;

/// √(2/π): the mean deviation of a normal distribution in its standard deviations.
const DEVIATION: f64 = 0.797_884_560_802_865_4;

/// What tells how work spreads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The height of p95 over the mean log duration.
    Height,
    /// The logarithm of the mean deviation from it ([`super::reference::Reference::spread`]).
    Spread,
}

/// What a wait adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Added {
    /// To the mean log duration.
    pub level: f32,
    /// To p95.
    pub p95: f32,
    /// To the logarithm of the mean deviation.
    pub spread: f32,
}

impl Added {
    /// What it adds to a measure.
    #[must_use]
    pub fn to(self, measure: Measure) -> f32 {
        match measure {
            Measure::Height => self.p95 - self.level,
            Measure::Spread => self.spread,
        }
    }
}

/// How work spreads: a place in the table, and the part of the way to the next.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    place: usize,
    part: f32,
}

impl Work {
    /// That of which a measure is so much at a wait, given by its logarithm; `None` where it would be more with any.
    #[must_use]
    pub fn of(measure: Measure, value: f32, log_wait: f32) -> Option<Self> {
        let tables = tables();
        let value_at = |place: usize| tables[place].of_work(measure) + tables[place].added(log_wait).to(measure);
        let (mut place, mut below) = (0, value_at(0));
        if value < below {
            return None;
        }
        let mut above = value_at(1);
        while above < value && place + 2 < SDS {
            place += 1;
            (below, above) = (above, value_at(place + 1));
        }
        Some(Self { place, part: ((value - below) / (above - below).max(1e-6)).clamp(0.0, 1.0) })
    }

    fn between(self, a: f32, b: f32) -> f32 {
        a + self.part * (b - a)
    }

    /// What a wait adds to a measure.
    #[must_use]
    pub fn added(self, measure: Measure, log_wait: f32) -> f32 {
        let tables = tables();
        self.between(tables[self.place].added(log_wait).to(measure), tables[self.place + 1].added(log_wait).to(measure))
    }

    /// What waits add to it.
    #[must_use]
    pub fn waits(self) -> Waits {
        let (a, b) = (&tables()[self.place], &tables()[self.place + 1]);
        let between = |a: &[f32; WAITS], b: &[f32; WAITS]| std::array::from_fn(|i| self.between(a[i], b[i]));
        Waits { sd: self.between(a.sd, b.sd), level: between(&a.level, &b.level), p95: between(&a.p95, &b.p95), spread: between(&a.spread, &b.spread) }
    }
}

/// What waits add to the log level of work of one spread.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// The work's own standard deviation.
    sd: f32,
    /// To its mean.
    level: [f32; WAITS],
    /// To its p95.
    p95: [f32; WAITS],
    /// To the logarithm of its mean deviation.
    spread: [f32; WAITS],
}

fn tables() -> &'static [Waits; SDS] {
    static TABLES: OnceLock<[Waits; SDS]> = OnceLock::new();
    TABLES.get_or_init(|| std::array::from_fn(|place| Waits::new(f64::from(sd_at(place)))))
}

#[expect(clippy::cast_precision_loss, reason = "a place in the table")]
fn sd_at(place: usize) -> f32 {
    SD_FIRST * libm::expf(SD_STEP * place as f32)
}

impl Waits {
    #[expect(clippy::cast_possible_truncation, reason = "log levels")]
    fn new(sd: f64) -> Self {
        // The standard normal distribution at the middles of cells.
        let cells = (-24..=24).map(|i| f64::from(i) * 0.2);
        let work: Vec<(f64, f64)> = cells.map(|z| (libm::exp(sd * z), 0.2 * libm::exp(-0.5 * z * z) / 2.506_628_274_631)).collect();
        let beyond = |x: f64, wait: f64| work.iter().map(|(w, share)| share * libm::exp(-(x - w).max(0.0) / wait)).sum::<f64>();
        let quantile = |wait: f64| {
            let (mut low, mut high) = (0.0, libm::exp(4.0 * sd) + 10.0 * wait);
            for _ in 0..24 {
                let middle = f64::midpoint(low, high);
                *(if beyond(middle, wait) > 0.05 { &mut low } else { &mut high }) = middle;
            }
            libm::log(low)
        };
        // The mean of log(1 + wait/work), by the quantiles of the exponential distribution.
        let parts: Vec<f64> = (0..32).map(|i| -libm::log((f64::from(i) + 0.5) / 32.0)).collect();
        let mean = |wait: f64| work.iter().map(|(w, share)| share * parts.iter().map(|p| libm::log1p(wait * p / w)).sum::<f64>() / 32.0).sum::<f64>();
        let apart = |wait: f64, mean: f64| {
            let from_mean = |(w, share): &(f64, f64)| share * parts.iter().map(|p| (libm::log(w + wait * p) - mean).abs()).sum::<f64>() / 32.0;
            work.iter().map(from_mean).sum::<f64>()
        };
        let mut table = Self { sd: sd as f32, level: [0.0; WAITS], p95: [0.0; WAITS], spread: [0.0; WAITS] };
        for (place, wait) in (0_u8..).map(|i| libm::exp(f64::from(FIRST) + f64::from(STEP) * f64::from(i))).take(WAITS).enumerate() {
            let level = mean(wait);
            table.level[place] = level as f32;
            table.p95[place] = (quantile(wait) - f64::from(Z95) * sd) as f32;
            table.spread[place] = spread(apart(wait, level) as f32) - spread((DEVIATION * sd) as f32);
        }
        table
    }

    /// What a wait, by its logarithm, adds. The shortest stand for all that are shorter; beyond the longest, durations grow as the wait does.
    #[must_use]
    #[inline]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in the table")]
    pub fn added(&self, log_wait: f32) -> Added {
        let place = ((log_wait - FIRST) / STEP).max(0.0);
        let at = (place as usize).min(WAITS - 2);
        let part = place - at as f32;
        let more = (part - 1.0).max(0.0);
        let of = |table: &[f32; WAITS]| table[at] + (part - more) * (table[at + 1] - table[at]);
        Added { level: of(&self.level) + more * STEP, p95: of(&self.p95) + more * STEP, spread: of(&self.spread) }
    }

    /// A measure of the work alone.
    #[expect(clippy::cast_possible_truncation, reason = "a constant")]
    fn of_work(&self, measure: Measure) -> f32 {
        match measure {
            Measure::Height => Z95 * self.sd,
            Measure::Spread => spread(DEVIATION as f32 * self.sd),
        }
    }

    /// The logarithm of the wait that adds so much to p95.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a place in the table")]
    pub fn wait_for(&self, p95: f32) -> f32 {
        let at = self.p95.partition_point(|p| *p < p95);
        if at == 0 {
            return FIRST;
        }
        if at == WAITS {
            return FIRST + STEP * (WAITS - 1) as f32 + p95 - self.p95[WAITS - 1];
        }
        let part = (p95 - self.p95[at - 1]) / (self.p95[at] - self.p95[at - 1]);
        FIRST + STEP * ((at - 1) as f32 + part)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::RESOLUTION;
    use super::*;

    /// The mean of log(1 + s·E), E exponential, is e^(1/s)·E₁(1/s) (Abramowitz & Stegun 1964, 5.1.1, and table 5.1); p95 of a long wait is that of the exponential
    /// distribution, ln 20 times its mean.
    #[test]
    fn a_wait_adds_what_an_exponential_one_adds_to_a_constant() {
        let nearly_constant = tables()[0];
        for (wait, exact) in [(0.5, 0.361_33), (1.0, 0.596_35), (2.0, 0.922_91)] {
            let level = nearly_constant.added(libm::logf(wait)).level;
            assert!((level - exact).abs() < 0.01, "{wait}: {level}");
        }
        for wait in [50.0, 5000.0_f32] {
            let p95 = nearly_constant.added(libm::logf(wait)).p95;
            assert!((p95 + Z95 * SD_FIRST - libm::logf(1.0 + wait * 2.995_73)).abs() < 0.02, "{wait}: {p95}");
        }
    }

    /// How far log(1 + s·E), E exponential, lies from its mean on average: over 400,000 quantiles, computed apart in Python. Without the 1 it is 2·E₁(e^−γ) = 0.983069
    /// (by parts; Abramowitz & Stegun 1964, 5.1.11), which it nears from below.
    #[test]
    fn a_wait_draws_durations_apart_as_an_exponential_one_does() {
        let nearly_constant = tables()[0];
        for (wait, exact) in [(0.0, 0.344_183), (1.0, 0.535_667), (3.0, 0.833_602), (4.75, 0.940_527)] {
            let with_resolution = libm::expf(nearly_constant.of_work(Measure::Spread) + nearly_constant.added(wait).spread);
            let apart = (with_resolution * with_resolution - RESOLUTION * RESOLUTION).sqrt();
            assert!((apart - exact).abs() < 0.01 && apart < 0.983_069, "{wait}: {apart}");
        }
    }

    #[test]
    fn the_work_follows_from_a_measure_at_a_wait_and_the_wait_from_what_it_adds() {
        for (place, wait) in [(3, -3.0), (7, -1.0), (9, 0.7)] {
            let work = tables()[place];
            for measure in [Measure::Height, Measure::Spread] {
                let found = Work::of(measure, work.of_work(measure) + work.added(wait).to(measure), wait).unwrap().waits();
                for longer in [wait, wait + 1.3, 8.0] {
                    let (was, is) = (work.added(longer), found.added(longer));
                    assert!((was.level - is.level).abs() < 1e-3 && (was.p95 - is.p95).abs() < 1e-3 && (was.spread - is.spread).abs() < 1e-3, "{was:?} {is:?}");
                    assert!((work.wait_for(was.p95) - longer).abs() < 1e-3, "{longer}");
                }
            }
        }
        assert!(Work::of(Measure::Height, 0.3, 1.0).is_none(), "with so long a wait p95 stands higher");
    }
}
