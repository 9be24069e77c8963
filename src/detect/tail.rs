//! Shifts of the tail alone: more requests far beyond the median of their own hours than the reference had, while the median stays. A day of which some hours are slow
//! as a whole has no tail.
//!
//! # Source
//! A scan over windows of days of a Poisson count against its expectation; the score is the signed root of the likelihood ratio
//! (Kulldorff, A spatial scan statistic, Commun. Stat. 26, 1997) with the counts' over-dispersion taken out (`McCullagh` & Nelder, Generalized Linear
//! Models, 1989, 4.5: variance φ·mean + ψ·mean²).

use serde::{Deserialize, Serialize};

use super::packed::{Count, Ratio, Ring};
use super::reference::TAILS;

/// Days that are kept.
const DAYS: u16 = 42;
/// Windows in days.
const WINDOWS: [usize; 7] = [2, 3, 5, 7, 10, 14, 21];
/// The least ratio to the expectation.
const RATIO_MIN: f32 = 1.25;
/// Fewer requests beyond a cut are no evidence.
const COUNT_MIN: f32 = 6.0;
/// Days before a window from which its expectation comes.
const BEFORE_MIN: usize = 10;

/// One day: its requests, those beyond each cut, and how far apart they are. Without requests it is a day of which too little is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TailDay {
    /// Requests.
    pub requests: Count,
    /// Those beyond each cut from the median of the day, each block of hours measured from its own level.
    pub beyond: [Count; TAILS],
    /// How far apart its requests are, over the reference's; and whether it is a Saturday or Sunday (to the day that holds its middle).
    pub apart: Ratio,
}

/// What is remembered for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tail {
    days: Ring<TailDay>,
}

impl Default for Tail {
    fn default() -> Self {
        Self { days: Ring::new(DAYS) }
    }
}

/// A shift of the tail.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TailShift {
    /// How far beyond chance.
    pub score: f32,
    /// Which of the cuts.
    pub cut: usize,
    /// Days that show it.
    pub days: usize,
    /// How many times the expectation.
    pub ratio: f32,
}

/// The signed root of the Poisson likelihood ratio of a count against its expectation.
///
/// # Source
/// `McCullagh` & Nelder 1989, 2.4: the deviance 2(y ln(y/μ) − (y − μ)).
#[must_use]
pub fn signed_root(seen: f32, expected: f32) -> f32 {
    let deviance = if seen > 0.0 { 2.0 * (seen * libm::logf(seen / expected) - (seen - expected)) } else { 2.0 * expected };
    deviance.max(0.0).sqrt().copysign(seen - expected)
}

impl Tail {
    /// Takes in a day.
    pub fn push(&mut self, day: TailDay) {
        self.days.push(day);
    }

    /// How far apart the requests of a day so many before the last are, over the reference's, and whether it is a Saturday or Sunday.
    #[must_use]
    pub fn apart(&self, ago: usize) -> Option<(f32, bool)> {
        let apart = self.days.back(ago)?.apart;
        Some((apart.get()?, apart.is_weekend()))
    }

    /// Days of which enough is known, the last first.
    fn known(&self) -> impl Iterator<Item = TailDay> {
        (0..self.days.len()).filter_map(|ago| self.days.back(ago)).filter(|day| day.requests.get() > 0.0)
    }

    /// Requests of the last days.
    #[must_use]
    pub fn requests(&self, days: usize) -> f32 {
        self.known().take(days).map(|day| day.requests.get()).sum()
    }

    /// The share beyond a cut over the last days; `None` with fewer days or no request.
    #[must_use]
    pub fn share(&self, cut: usize, days: usize) -> Option<f32> {
        let (mut n, mut beyond, mut seen) = (0.0, 0.0, 0);
        for day in self.known().take(days) {
            n += day.requests.get();
            beyond += day.beyond.get(cut)?.get();
            seen += 1;
        }
        (n > 0.0 && seen == days).then(|| beyond / n)
    }

    /// The best window that ends with the last day, against all days before it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "days")]
    pub fn judge(&self, shares: &[f32; TAILS]) -> Option<TailShift> {
        let mut best: Option<TailShift> = None;
        let days: Vec<TailDay> = self.known().collect();
        for (cut, share) in shares.iter().enumerate() {
            for window in WINDOWS {
                if window + BEFORE_MIN > days.len() {
                    break;
                }
                let (new, old) = days.split_at(window);
                // So few that no expectation makes them evidence.
                let all: f32 = new.iter().map(|d| d.beyond[cut].get()).sum();
                if all < COUNT_MIN {
                    continue;
                }
                let shares = usual_shares(old, cut, *share);
                let of = |d: &TailDay| d.requests.get() * shares[usize::from(d.apart.is_weekend())];
                let expected: f32 = new.iter().map(of).sum();
                // Without the worst day: what lasts an hour is no shift.
                let worst = new.iter().max_by(|a, b| (a.beyond[cut].get() - of(a)).total_cmp(&(b.beyond[cut].get() - of(b))));
                let Some(worst) = worst else { continue };
                let seen = all - worst.beyond[cut].get();
                let expected = expected - of(worst);
                if seen < COUNT_MIN || expected <= 0.0 || seen < RATIO_MIN * expected {
                    continue;
                }
                let before: f32 = old.iter().map(of).sum();
                let rough = roughness(old, cut, of);
                // The spread of the count and of what it is compared with, as one factor over the spread of a pure Poisson count.
                let inflation = 1.0 + expected / before.max(1.0) + expected * rough * (1.0 / window as f32 + 1.0 / old.len() as f32);
                let score = signed_root(seen, expected) / inflation.sqrt();
                if best.is_none_or(|b| score > b.score) {
                    best = Some(TailShift { score, cut, days: window, ratio: seen / expected });
                }
            }
        }
        best
    }
}

/// The share beyond a cut on weekdays and on weekends: that of the kind of day, as far as it is known, else that of all.
fn usual_shares(days: &[TailDay], cut: usize, share: f32) -> [f32; 2] {
    let (mut n, mut beyond, mut own) = (0.0, 0.0, [(0.0_f32, 0.0_f32); 2]);
    for d in days {
        let (requests, over) = (d.requests.get(), d.beyond[cut].get());
        n += requests;
        beyond += over;
        let own = &mut own[usize::from(d.apart.is_weekend())];
        own.0 += requests;
        own.1 += over;
    }
    let all = (beyond + 3.0) / (n + 3.0 / share.max(1e-4));
    own.map(|(n, beyond)| (beyond + 20.0) / (n + 20.0 / all))
}

/// The variance between days beyond that of counting, relative to the square of the expectation, shrunk to a little.
#[expect(clippy::cast_precision_loss, reason = "days")]
fn roughness(days: &[TailDay], cut: usize, expected: impl Fn(&TailDay) -> f32) -> f32 {
    let (mut excess, mut squares) = (0.0, 0.0);
    for d in days {
        let (seen, mean) = (d.beyond[cut].get(), expected(d));
        excess += (seen - mean) * (seen - mean) - mean;
        squares += mean * mean;
    }
    let n = days.len() as f32;
    let (own, prior) = ((excess / squares.max(1.0)).max(0.0), 0.01);
    (own * n + prior * 10.0) / (n + 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `McCullagh` & Nelder 1989, 2.4: the deviance of a Poisson count, by hand: 2(20 ln 2 − 10) = 7.7259.
    #[test]
    fn the_root_is_that_of_the_poisson_deviance() {
        assert!((signed_root(20.0, 10.0) - 7.725_887_f32.sqrt()).abs() < 1e-4);
        assert!((signed_root(0.0, 8.0) + 4.0).abs() < 1e-5);
        assert!(signed_root(10.0, 10.0).abs() < 1e-5);
    }

    fn days(beyond: impl Fn(u64) -> u64) -> Tail {
        let mut tail = Tail::default();
        for day in 0..30 {
            let beyond = [Count::new(beyond(day)); TAILS];
            tail.push(TailDay { requests: Count::new(480), beyond, apart: Ratio::new(None, day % 7 >= 5) });
        }
        tail
    }

    #[test]
    fn a_doubled_tail_is_seen_and_one_bad_day_is_not() {
        let shares = [0.02; TAILS];
        let steady = days(|d| 9 + d % 3).judge(&shares).map_or(0.0, |s| s.score);
        let doubled = days(|d| if d < 20 { 9 + d % 3 } else { 19 + d % 3 }).judge(&shares).map_or(0.0, |s| s.score);
        let one_day = days(|d| if d == 28 { 100 } else { 9 + d % 3 }).judge(&shares).map_or(0.0, |s| s.score);
        assert!(doubled > 5.0 && steady < 3.0 && one_day < 3.0, "{doubled} {steady} {one_day}");
    }
}
