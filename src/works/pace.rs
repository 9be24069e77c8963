//! How a daily run usually goes: when which share of it was done, on earlier nights that kept their promise.
//!
//! # Source
//! Time-of-day progress curves at seven shares, the least and the median of up to fourteen nights: with k nights a further one is below the least of them
//! with probability 1/(k + 1) by luck alone (order statistics, David & Nagaraja 2003), so the least is taken later by the spread of the nights.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Nights that are remembered.
const NIGHTS: usize = 14;
/// Nights from which there is something usual.
pub const NIGHTS_MIN: usize = 5;
/// Shares of the expected count at which a night is dated, in percent.
const MARKS: [u16; 7] = [1, 10, 25, 50, 75, 90, 100];
/// Minutes by which a night may always be later than any before.
const SLACK_MIN: u16 = 30;

/// Minutes before the deadline at which each of [`MARKS`] was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Night([u16; MARKS.len()]);

impl Night {
    /// The share that was done so many minutes before the deadline.
    fn share(self, before: u16) -> f64 {
        let reached = self.0.iter().take_while(|mark| **mark >= before).count();
        let Some(last) = reached.checked_sub(1) else { return 0.0 };
        let of = |place: usize| f64::from(MARKS[place]) / 100.0;
        if reached == MARKS.len() {
            return 1.0;
        }
        let between = f64::from(self.0[last] - before) / f64::from(self.0[last] - self.0[reached]);
        of(last) + (of(reached) - of(last)) * between
    }
}

/// What is usual at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usual {
    /// The share that even the slowest night had done, were it later than any before.
    pub least: f64,
    /// The median share.
    pub median: f64,
}

/// What is remembered of earlier nights: some 300 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    nights: VecDeque<Night>,
}

impl Pace {
    /// Learns from a night that kept its promise: what was done (in all) so many minutes before the deadline, in order.
    pub fn learn(&mut self, expected: u64, done: impl IntoIterator<Item = (u16, u64)>) {
        let (mut night, mut reached) = ([0; MARKS.len()], 0);
        for (before, sum) in done {
            while reached < MARKS.len() && u128::from(sum) * 100 >= u128::from(expected) * u128::from(MARKS[reached]) {
                // On a night of 25 hours an hour comes twice.
                night[reached] = before.min(night[..reached].last().copied().unwrap_or(u16::MAX));
                reached += 1;
            }
        }
        if reached < MARKS.len() {
            return;
        }
        if self.nights.len() == NIGHTS {
            self.nights.pop_front();
        }
        self.nights.push_back(Night(night));
    }

    /// Nights that are remembered.
    #[must_use]
    pub fn nights(&self) -> usize {
        self.nights.len()
    }

    /// What is usual so many minutes before the deadline, once enough nights are known.
    #[must_use]
    pub fn usual(&self, before: u16) -> Option<Usual> {
        if self.nights.len() < NIGHTS_MIN {
            return None;
        }
        let half_done = |night: &Night| night.0[3];
        let spread = self.nights.iter().map(half_done).max()? - self.nights.iter().map(half_done).min()?;
        let late = before.saturating_add(spread.max(SLACK_MIN));
        let mut shares: Vec<f64> = self.nights.iter().map(|n| n.share(before)).collect();
        shares.sort_by(f64::total_cmp);
        let least = self.nights.iter().map(|n| n.share(late)).fold(1.0, f64::min);
        Some(Usual { least, median: shares[(shares.len() - 1) / 2] })
    }

    /// Minutes before the deadline before which no run has begun, with slack.
    #[must_use]
    pub fn begins(&self) -> Option<u16> {
        self.nights.iter().map(|n| n.0[0]).max().map(|m| m.saturating_add(SLACK_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `begins` minutes before the deadline, 100 units in steps of ten minutes and ten units.
    fn night(begins: u16) -> impl Iterator<Item = (u16, u64)> {
        (1..=10).map(move |i| (begins - 10 * i, 10 * u64::from(i)))
    }

    #[test]
    fn shares_lie_on_the_curve_of_a_night() {
        let mut pace = Pace::default();
        pace.learn(100, night(240));
        let night = pace.nights[0];
        assert_eq!(night.0, [230, 230, 210, 190, 160, 150, 140]);
        for (before, share) in [(231, 0.0), (230, 0.1), (210, 0.25), (190, 0.5), (155, 0.825), (140, 1.0), (0, 1.0)] {
            assert!((night.share(before) - share).abs() < 1e-12, "{before}: {}", night.share(before));
        }
    }

    #[test]
    fn the_slowest_night_and_their_spread_are_allowed_for() {
        let mut pace = Pace::default();
        for begins in [240, 240, 230, 250] {
            pace.learn(100, night(begins));
        }
        assert_eq!(pace.usual(140), None);
        pace.learn(100, night(200));
        // Half done within 50 minutes of each other: the slowest night, 50 minutes later, has just begun.
        let usual = pace.usual(140).unwrap();
        assert_eq!((usual.least, usual.median), (0.1, 1.0));
        assert_eq!(pace.begins(), Some(270));
        for _ in 0..40 {
            pace.learn(100, night(240));
            pace.learn(101, night(240));
        }
        assert_eq!(pace.nights(), NIGHTS);
        assert!(postcard::to_allocvec(&pace).unwrap().len() <= 2048);
    }
}
