//! Runs that come every day with the same amount of work: when one stops half way, it is known in the hour in which it should have ended.
//!
//! # Source
//! The index of dispersion (Cox & Lewis, The Statistical Analysis of Series of Events, 1966): the variance of daily counts over their mean is 1 for Poisson
//! traffic; well below, somebody planned it.

use serde::{Deserialize, Serialize};

use super::packed::Ring;

/// Days from which regularity is read.
const DAYS: u16 = 14;
/// Dispersion below which counts are a plan.
const DISPERSION_MAX: f32 = 0.3;
/// A plan has at least so many a day.
const WORK_MIN: f32 = 10.0;
/// The share by which a run is as good as done.
const DONE: f32 = 0.98;
/// The share below which it has not begun.
const BEGUN: f32 = 0.02;

/// What is remembered of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Schedule {
    /// Work of each day and the hour in which nearly all was done.
    days: Ring<(u16, u8)>,
    /// Work of today by hours.
    today: Vec<u16>,
    told: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { days: Ring::new(DAYS), today: Vec::new(), told: false }
    }
}

/// A run that stopped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Done today.
    pub done: f32,
    /// Done on other days.
    pub usual: f32,
    /// How far below, in standard deviations of days.
    pub score: f32,
}

impl Schedule {
    /// Takes in an hour of the day (0 to 23) and says whether a run should have ended by now and has not.
    pub fn hour(&mut self, of_day: u8, requests: u32) -> Option<Unfinished> {
        if of_day == 0 {
            self.today.clear();
            self.told = false;
        }
        let before = self.today.last().copied().unwrap_or(0);
        self.today.push(u16::try_from(u32::from(before) + requests).unwrap_or(u16::MAX));
        let found = self.judge(of_day).filter(|_| !self.told);
        self.told |= found.is_some();
        if of_day == 23 {
            let total = self.today.last().copied().unwrap_or(0);
            let done = self.today.iter().position(|n| f32::from(*n) >= DONE * f32::from(total)).unwrap_or(23);
            // A day that was found wanting is no example.
            if !self.told {
                self.days.push((total, u8::try_from(done).unwrap_or(23)));
            }
        }
        found
    }

    /// Passes over an hour of which nothing is known: this day is neither judged nor an example.
    pub fn unknown(&mut self, of_day: u8) {
        if of_day == 0 {
            self.today.clear();
        }
        let done = self.today.last().copied().unwrap_or(0);
        self.today.push(done);
        self.told = true;
    }

    /// The share of a usual day's work that was done today.
    #[must_use]
    pub fn done_today(&self) -> Option<f32> {
        let n = self.days.len();
        let usual = (0..n).filter_map(|ago| self.days.back(ago)).map(|d| f32::from(d.0)).sum::<f32>() / f32::from(u16::try_from(n).ok()?.max(1));
        (usual > 0.0).then(|| f32::from(self.today.last().copied().unwrap_or(0)) / usual)
    }

    fn judge(&self, of_day: u8) -> Option<Unfinished> {
        if self.days.len() < usize::from(DAYS) {
            return None;
        }
        let days = || (0..self.days.len()).filter_map(|ago| self.days.back(ago));
        let n = f32::from(DAYS);
        let usual = days().map(|d| f32::from(d.0)).sum::<f32>() / n;
        let variance = days().map(|d| (f32::from(d.0) - usual).powi(2)).sum::<f32>() / (n - 1.0);
        let done = f32::from(self.today.last().copied().unwrap_or(0));
        // Where nothing is done yet, clocks may have gone back an hour: twice a year that is why.
        let late = u8::from(done < BEGUN * usual);
        let due = (days().map(|d| d.1).max()? + late).min(23);
        if usual < WORK_MIN || variance > DISPERSION_MAX * usual || of_day < due {
            return None;
        }
        let sd = variance.sqrt().max(0.25);
        let missing = usual - done;
        (missing > (6.0 * sd).max(0.1 * usual).max(3.0)).then_some(Unfinished { done, usual, score: missing / sd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nights(counts: &[u32]) -> Vec<(usize, u8, Unfinished)> {
        let mut schedule = Schedule::default();
        let mut told = Vec::new();
        for (night, count) in counts.iter().enumerate() {
            for hour in 0..24 {
                let requests = if hour == 2 { *count } else { 0 };
                told.extend(schedule.hour(hour, requests).map(|u| (night, hour, u)));
            }
        }
        told
    }

    #[test]
    fn half_a_run_is_told_in_the_hour_in_which_it_should_have_ended() {
        let mut counts: Vec<u32> = (0..20).map(|n| 396 + n % 5).collect();
        counts[17] = 150;
        let told = nights(&counts);
        assert_eq!(told.iter().map(|t| (t.0, t.1)).collect::<Vec<_>>(), [(17, 2)]);
        assert!((told[0].2.done - 150.0).abs() < 0.5 && (told[0].2.usual - 398.0).abs() < 1.0);
    }

    /// From one day on it comes an hour later, as clocks went back; on the last day it does not come at all.
    #[test]
    fn a_run_that_has_not_begun_is_given_an_hour() {
        let mut schedule = Schedule::default();
        let mut told = Vec::new();
        for night in 0..20 {
            for hour in 0..24 {
                let begins = if night < 16 { 2 } else { 3 };
                let requests = if hour == begins && night < 19 { 400 } else { 0 };
                told.extend(schedule.hour(hour, requests).map(|_| (night, hour)));
            }
        }
        assert_eq!(told, [(19, 4)]);
    }

    /// Counts as of a Poisson process with mean 60: a dispersion of 1 (Cox & Lewis 1966) is no plan.
    #[test]
    fn chance_is_no_plan() {
        let counts = [61, 52, 70, 58, 66, 49, 60, 57, 68, 63, 55, 74, 51, 62, 25, 60];
        assert!(nights(&counts).is_empty());
    }
}
