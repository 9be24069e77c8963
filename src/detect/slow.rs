//! Creep and small steps: has the daily level begun to rise, and when?
//!
//! # Source
//! A likelihood-ratio scan over the day of onset with two alternatives, a step and a ramp (Siegmund & Venkatraman, Using the generalized
//! likelihood ratio statistic for sequential detection of a change-point, Ann. Stat. 23, 1995), after whitening by a first-order autoregression
//! (Cochrane & Orcutt, JASA 44, 1949), studentised with a variance that is shrunk to the fleet's (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004).
//! The score of a window is divided by what the same window reaches on quiet series, so that no length of window has all the false alarms
//! (the penalised scan of Walther, Ann. Stat. 38, 2010, with a table measured by simulation).

use serde::{Deserialize, Serialize};

/// Correlation of one day's level with the next (median of real services' hourly latency).
pub const DAY_CORRELATION: f32 = 0.5;

/// The fleet's day-to-day noise of a log level after whitening, and how many days of an endpoint's own it outweighs.
pub const FLEET_SD: f32 = 0.05;
const FLEET_DAYS: f32 = 10.0;

/// Days that are looked at, at most.
pub const DAYS_MAX: usize = 45;
/// Days that must stand before an onset.
const BEFORE_MIN: usize = 7;
/// Fewer days are no verdict.
const DAYS_MIN: usize = 10;
/// The least change of a log level that is worth a word.
const CHANGE_MIN: f32 = 0.05;

/// Lengths of the windows after the onset in days, and the factor by which a step's and a ramp's score over it exceed the others' on quiet series.
const WINDOWS: [(usize, [f32; 2]); 17] = [
    (1, [1.02, 1.00]),
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

/// The best upward change of daily log levels (the oldest first), `sampling` being the variance that the number of requests leaves in one of them.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "days")]
pub fn best_change(levels: &[f32], sampling: f32) -> Option<Change> {
    let n = levels.len();
    if n < DAYS_MIN {
        return None;
    }
    let phi = DAY_CORRELATION;
    let root = (1.0 - phi * phi).sqrt();
    // Whitened: the first day as it is, each later one less what the day before foretells.
    let steady = (1.0 - phi) / root;
    let one_one = 1.0 + (n - 1) as f32 * steady * steady;
    let base = levels[0];
    let mut white = [0.0_f32; DAYS_MAX];
    let white = white.get_mut(..n)?;
    let (mut with_one, mut squares) = (0.0_f32, 0.0_f32);
    for i in 1..n {
        let w = ((levels[i] - base) - phi * (levels[i - 1] - base)) / root;
        white[i] = w;
        with_one += w * steady;
        squares += w * w;
    }
    let total = squares - with_one * with_one / one_one;
    // White noise of sampling grows by this when it is whitened for a correlation that it has not.
    let prior = FLEET_SD * FLEET_SD + sampling * (1.0 + phi * phi) / (1.0 - phi * phi);
    let mut best: Option<Change> = None;
    for (length, usual) in WINDOWS {
        if length + BEFORE_MIN > n {
            break;
        }
        let after = &white[n - length..];
        for (shape, usual) in [Shape::Step, Shape::Ramp].into_iter().zip(usual) {
            let (mut with_level, mut own, mut with_constant, mut before) = (0.0_f32, 0.0_f32, 0.0_f32, 0.0_f32);
            for (i, w) in after.iter().enumerate() {
                let height = if shape == Shape::Step { 1.0 } else { i as f32 + 0.5 };
                let g = (height - phi * before) / root;
                before = height;
                with_level += w * g;
                own += g * g;
                with_constant += g * steady;
            }
            let information = own - with_constant * with_constant / one_one;
            let size = (with_level - with_one * with_constant / one_one) / information;
            if size * before < CHANGE_MIN {
                continue;
            }
            let rest = (total - size * size * information).max(0.0);
            let variance = (rest + FLEET_DAYS * prior) / (n as f32 - 2.0 + FLEET_DAYS);
            let score = size * (information / variance).sqrt() / usual;
            if best.is_none_or(|b| score > b.score) {
                best = Some(Change { score, shape, days: length, change: size * before });
            }
        }
    }
    best
}
