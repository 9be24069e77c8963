//! Creep and small steps: has the daily level begun to rise, and when?
//!
//! # Source
//! A likelihood-ratio scan over the day of onset with two alternatives, a step and a ramp (Siegmund & Venkatraman, Using the generalized
//! likelihood ratio statistic for sequential detection of a change-point, Ann. Stat. 23, 1995), after whitening by a first-order autoregression
//! (Cochrane & Orcutt, JASA 44, 1949), studentised with a variance that is shrunk to the fleet's (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004).
//! The score of a window is divided by what the same window reaches on quiet series, so that no length of window has all the false alarms
//! (the penalised scan of Walther, Ann. Stat. 38, 2010, with a table measured by simulation).

use serde::{Deserialize, Serialize};

/// How many days of an endpoint's own the fleet's noise outweighs.
const FLEET_DAYS: f32 = 10.0;

/// Days that are looked at, at most.
pub const DAYS_MAX: usize = 42;
/// Days that must stand before an onset.
const BEFORE_MIN: usize = 7;
/// Fewer days are no verdict.
pub(super) const DAYS_MIN: usize = 10;
/// The least change of a log level that is worth a word.
const CHANGE_MIN: f32 = 0.05;

/// Lengths of the windows after the onset in days, and the factor by which a step's and a ramp's score over it exceed the others' on quiet series.
const WINDOWS: [(usize, [f32; 2]); 16] = [
    (2, [1.02, 1.00]),
    (3, [1.00, 1.00]),
    (4, [0.99, 0.99]),
    (5, [0.99, 0.98]),
    (6, [0.97, 0.97]),
    (7, [0.98, 0.97]),
    (8, [0.98, 0.96]),
    (10, [0.98, 0.94]),
    (12, [0.95, 0.95]),
    (14, [0.94, 0.91]),
    (16, [0.93, 0.90]),
    (18, [0.92, 0.89]),
    (20, [0.92, 0.88]),
    (22, [0.91, 0.86]),
    (25, [0.88, 0.84]),
    (28, [0.87, 0.80]),
];

/// A step is seen within these days or not at all: longer ones only add false alarms, and what rises slower is a ramp.
const STEP_DAYS_MAX: usize = 10;

/// How a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// At once.
    Step,
    /// Day by day.
    Ramp,
}

/// The best explanation of the last days by a change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// How far beyond chance: comparable over windows, endpoints and rates of requests.
    pub score: f32,
    /// How it goes.
    pub shape: Shape,
    /// How many of the days came after the onset.
    pub days: usize,
    /// The change of the log level by now.
    pub change: f32,
}

/// How what is measured once a day goes on quiet days.
pub(super) struct Noise {
    /// Correlation of one day with the next, and √(1 − its square).
    correlation: f32,
    root: f32,
    /// The fleet's day-to-day deviation after whitening.
    fleet_sd: f32,
    shapes: [WhitenedShape; 2],
}

/// Levels: the correlation is the median of real services' hourly latency.
pub(super) static LEVELS: Noise = Noise::new(0.5, 0.866_025_4, 0.05);

/// How far apart durations are (its logarithm): little but the chance of counting.
pub(super) static SPREADS: Noise = Noise::new(0.0, 1.0, 0.02);

/// Days of the longest window.
const LONGEST: usize = 28;

/// A shape after whitening, and sums over its first days: of squares, and of products with the constant. They are the same for each window and endpoint.
struct WhitenedShape {
    heights: [f32; LONGEST],
    own: [f32; LONGEST + 1],
    with_constant: [f32; LONGEST + 1],
}

impl Noise {
    const fn new(correlation: f32, root: f32, fleet_sd: f32) -> Self {
        let shapes = [Self::whitened(Shape::Step, correlation, root), Self::whitened(Shape::Ramp, correlation, root)];
        Self { correlation, root, fleet_sd, shapes }
    }

    const fn whitened(shape: Shape, correlation: f32, root: f32) -> WhitenedShape {
        let mut w = WhitenedShape { heights: [0.0; LONGEST], own: [0.0; LONGEST + 1], with_constant: [0.0; LONGEST + 1] };
        let (mut i, mut before) = (0, 0.0);
        while i < LONGEST {
            let height = height(shape, i);
            let g = (height - correlation * before) / root;
            before = height;
            w.heights[i] = g;
            w.own[i + 1] = w.own[i] + g * g;
            w.with_constant[i + 1] = w.with_constant[i] + g * (1.0 - correlation) / root;
            i += 1;
        }
        w
    }

    /// The fleet's variance from day to day.
    pub(super) fn variance(&self) -> f32 {
        self.fleet_sd * self.fleet_sd
    }

    /// What the constant 1 becomes.
    fn steady(&self) -> f32 {
        (1.0 - self.correlation) / self.root
    }
}

/// How high a shape is so many days after its first.
#[expect(clippy::cast_precision_loss, reason = "days")]
const fn height(shape: Shape, day: usize) -> f32 {
    match shape {
        Shape::Step => 1.0,
        Shape::Ramp => day as f32 + 0.5,
    }
}

/// Daily values, whitened: the first as it is, each later one less what the day before foretells.
pub(super) struct Whitened {
    noise: &'static Noise,
    days: [f32; DAYS_MAX],
    n: usize,
    /// Inner products with the constant, and what is left of the values' squares without it.
    with_one: f32,
    one_one: f32,
    total: f32,
    /// Prior variance of a whitened value.
    prior: f32,
}

impl Whitened {
    /// Of daily values, the oldest first, `sampling` being the variance that the number of requests leaves in one of them; `None` of none.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    pub(super) fn new(noise: &'static Noise, levels: &[f32], sampling: f32) -> Option<Self> {
        let levels = levels.get(levels.len().saturating_sub(DAYS_MAX)..)?;
        let (n, base, phi, steady) = (levels.len(), *levels.first()?, noise.correlation, noise.steady());
        let mut days = [0.0_f32; DAYS_MAX];
        let (mut with_one, mut squares) = (0.0_f32, 0.0_f32);
        for i in 1..n {
            let w = ((levels[i] - base) - phi * (levels[i - 1] - base)) / noise.root;
            days[i] = w;
            with_one += w * steady;
            squares += w * w;
        }
        let one_one = 1.0 + (n - 1) as f32 * steady * steady;
        // White noise of sampling grows by this when it is whitened for a correlation that it has not.
        let prior = noise.variance() + sampling * (1.0 + phi * phi) / (1.0 - phi * phi);
        Some(Self { noise, days, n, with_one, one_one, total: squares - with_one * with_one / one_one, prior })
    }

    /// Student's t of a change over the last `length` days, and its size now.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    pub(super) fn change(&self, length: usize, shape: Shape) -> (f32, f32) {
        let white = &self.noise.shapes[shape as usize];
        let with_level = self.days[self.n - length..self.n].iter().zip(&white.heights).fold(0.0, |sum, (w, g)| sum + w * g);
        let (own, with_constant) = (white.own[length], white.with_constant[length]);
        let information = own - with_constant * with_constant / self.one_one;
        let size = (with_level - self.with_one * with_constant / self.one_one) / information;
        let rest = (self.total - size * size * information).max(0.0);
        let variance = (rest + FLEET_DAYS * self.prior) / (self.n as f32 - 2.0 + FLEET_DAYS);
        (size * (information / variance).sqrt(), size * height(shape, length - 1))
    }

    /// The windows and shapes to look at, with the factor by which the score of each exceeds the others' on quiet series.
    #[inline]
    pub(super) fn each_window(&self, mut look: impl FnMut(usize, Shape, f32)) {
        for (days, [step, ramp]) in WINDOWS {
            if days + BEFORE_MIN > self.n {
                break;
            }
            if days <= STEP_DAYS_MAX {
                look(days, Shape::Step, step);
            }
            look(days, Shape::Ramp, ramp);
        }
    }
}

/// The best upward change of daily log levels (the oldest first), `sampling` being the variance that the number of requests leaves in one of them.
#[must_use]
pub fn best_change(levels: &[f32], sampling: f32) -> Option<Change> {
    if levels.len() < DAYS_MIN {
        return None;
    }
    let white = Whitened::new(&LEVELS, levels, sampling)?;
    let mut best: Option<Change> = None;
    white.each_window(|days, shape, usual| {
        let (t, change) = white.change(days, shape);
        let score = t / usual;
        if change >= CHANGE_MIN && best.is_none_or(|b| score > b.score) {
            best = Some(Change { score, shape, days, change });
        }
    });
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sixteen days of small noise.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn quiet(days: usize) -> Vec<f32> {
        (0..days).map(|i| ((i * 37) % 11) as f32 / 100.0).collect()
    }

    /// Generalised least squares (Aitken 1935) with the full matrix of correlations 0.5^|i − j|, computed apart with numpy: a step of 0.31663 before the last four
    /// of sixteen days, t = 8.85341 with the variance shrunk by ten days of 0.05².
    #[test]
    fn it_is_generalised_least_squares_under_an_autoregression() {
        let mut levels = quiet(16);
        for level in &mut levels[12..] {
            *level += 0.3;
        }
        let (t, change) = Whitened::new(&LEVELS, &levels, 0.0).unwrap().change(4, Shape::Step);
        assert!((change - 0.316_634).abs() < 1e-4 && (t - 8.853_41).abs() < 1e-2, "{t} {change}");
    }

    /// Least squares (Gauss 1809) of a ramp after day 10 of sixteen, computed apart with numpy: 0.23489 by now, t = 8.65217 with the variance shrunk by ten days of
    /// 0.02² + 0.001.
    #[test]
    fn without_a_correlation_it_is_ordinary_least_squares() {
        let mut spreads = quiet(16);
        for (age, spread) in (1_u8..).zip(&mut spreads[10..]) {
            *spread += 0.04 * f32::from(age);
        }
        let (t, change) = Whitened::new(&SPREADS, &spreads, 0.001).unwrap().change(6, Shape::Ramp);
        assert!((change - 0.234_890).abs() < 1e-4 && (t - 8.652_17).abs() < 1e-2, "{t} {change}");
    }

    #[test]
    fn a_ramp_is_told_from_a_step_and_dated_and_a_constant_changes_nothing() {
        let mut ramp = quiet(30);
        for (age, level) in (1_u8..).zip(&mut ramp[18..]) {
            *level += 0.03 * f32::from(age);
        }
        let found = best_change(&ramp, 0.0).unwrap();
        assert!(found.shape == Shape::Ramp && (10..=14).contains(&found.days), "{found:?}");
        let shifted: Vec<f32> = ramp.iter().map(|l| l + 1.5).collect();
        assert!((best_change(&shifted, 0.0).unwrap().score - found.score).abs() < 1e-2);
        let mut step = quiet(30);
        for level in &mut step[25..] {
            *level += 0.3;
        }
        let found = best_change(&step, 0.0).unwrap();
        assert!(found.shape == Shape::Step && found.days == 5, "{found:?}");
    }
}
