//! What a wait adds to the work of a request: to the mean log duration, and to p95.
//!
//! # Source
//! Where a resource nears its limit, the time spent waiting for it is exponentially distributed, and its mean is as 1/(what is left of the resource): the
//! heavy-traffic limit of queues (Kingman, The single server queue in heavy traffic, Proc. Camb. Phil. Soc. 57, 1961), and the limit of draws that are repeated
//! until one succeeds (Rényi 1956; Feller, An Introduction to Probability Theory II, 1971, I.3). The work is taken as lognormal. So the tail grows away from the
//! level while the wait grows, in a way that is known beforehand; a level that grows as a whole takes its tail along.

use std::sync::OnceLock;

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

/// How work spreads: a place in the table, and the part of the way to the next.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    place: usize,
    part: f32,
}

impl Work {
    /// That with which p95 stands so high over the level at a wait, given by its logarithm; `None` where it would be higher with any.
    #[must_use]
    pub fn of_height(height: f32, log_wait: f32) -> Option<Self> {
        let tables = tables();
        let height_at = |place: usize| tables[place].height + tables[place].height_added(log_wait);
        let (mut place, mut below) = (0, height_at(0));
        if height < below {
            return None;
        }
        let mut above = height_at(1);
        while above < height && place + 2 < SDS {
            place += 1;
            (below, above) = (above, height_at(place + 1));
        }
        Some(Self { place, part: ((height - below) / (above - below).max(1e-6)).clamp(0.0, 1.0) })
    }

    fn between(self, a: f32, b: f32) -> f32 {
        a + self.part * (b - a)
    }

    /// What a wait adds to the height of p95 over the level.
    #[must_use]
    pub fn height_added(self, log_wait: f32) -> f32 {
        let tables = tables();
        self.between(tables[self.place].height_added(log_wait), tables[self.place + 1].height_added(log_wait))
    }

    /// What waits add to it.
    #[must_use]
    pub fn waits(self) -> Waits {
        let (a, b) = (&tables()[self.place], &tables()[self.place + 1]);
        let between = |a: &[f32; WAITS], b: &[f32; WAITS]| std::array::from_fn(|i| self.between(a[i], b[i]));
        Waits { height: self.between(a.height, b.height), level: between(&a.level, &b.level), p95: between(&a.p95, &b.p95) }
    }
}

/// What waits add to the log level of work of one spread.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// How high p95 stands over it without.
    height: f32,
    /// To its mean.
    level: [f32; WAITS],
    /// To its p95.
    p95: [f32; WAITS],
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
        #[expect(clippy::cast_possible_truncation, reason = "a log level")]
        let mut table = Self { height: Z95 * sd as f32, level: [0.0; WAITS], p95: [0.0; WAITS] };
        let waits = (0_u8..).map(|i| libm::exp(f64::from(FIRST) + f64::from(STEP) * f64::from(i)));
        #[expect(clippy::cast_possible_truncation, reason = "a log level")]
        for ((level, p95), wait) in table.level.iter_mut().zip(&mut table.p95).zip(waits) {
            (*level, *p95) = (mean(wait) as f32, (quantile(wait) - f64::from(Z95) * sd) as f32);
        }
        table
    }

    /// What a wait, by its logarithm, adds to the mean log duration and to p95. The shortest stand for all that are shorter; beyond the longest, durations grow as
    /// the wait does.
    #[must_use]
    #[inline]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in the table")]
    pub fn added(&self, log_wait: f32) -> (f32, f32) {
        let place = ((log_wait - FIRST) / STEP).max(0.0);
        let at = (place as usize).min(WAITS - 2);
        let part = place - at as f32;
        let more = (part - 1.0).max(0.0);
        let of = |table: &[f32; WAITS]| table[at] + (part - more) * (table[at + 1] - table[at]) + more * STEP;
        (of(&self.level), of(&self.p95))
    }

    /// What it adds to the height of p95 over the mean.
    fn height_added(&self, log_wait: f32) -> f32 {
        let (level, p95) = self.added(log_wait);
        p95 - level
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
    use super::*;

    /// The mean of log(1 + s·E), E exponential, is e^(1/s)·E₁(1/s) (Abramowitz & Stegun 1964, 5.1.1, and table 5.1); p95 of a long wait is that of the exponential
    /// distribution, ln 20 times its mean.
    #[test]
    fn a_wait_adds_what_an_exponential_one_adds_to_a_constant() {
        let nearly_constant = tables()[0];
        for (wait, exact) in [(0.5, 0.361_33), (1.0, 0.596_35), (2.0, 0.922_91)] {
            let (level, _) = nearly_constant.added(libm::logf(wait));
            assert!((level - exact).abs() < 0.01, "{wait}: {level}");
        }
        for wait in [50.0, 5000.0_f32] {
            let (_, p95) = nearly_constant.added(libm::logf(wait));
            assert!((p95 + Z95 * SD_FIRST - libm::logf(1.0 + wait * 2.995_73)).abs() < 0.02, "{wait}: {p95}");
        }
    }

    #[test]
    fn the_work_follows_from_the_height_at_a_wait_and_the_wait_from_what_it_adds() {
        for (place, wait) in [(3, -3.0), (7, -1.0), (9, 0.7)] {
            let work = tables()[place];
            let (level, p95) = work.added(wait);
            let found = Work::of_height(Z95 * sd_at(place) + p95 - level, wait).unwrap().waits();
            for longer in [wait, wait + 1.3, 8.0] {
                let (was, is) = (work.added(longer), found.added(longer));
                assert!((was.0 - is.0).abs() < 1e-3 && (was.1 - is.1).abs() < 1e-3, "{was:?} {is:?}");
                assert!((work.wait_for(was.1) - longer).abs() < 1e-3, "{longer}");
            }
        }
        assert!(Work::of_height(0.3, 1.0).is_none(), "with so long a wait p95 stands higher");
    }
}
