//! One endpoint under watch: before it is learnt, when it is learnt, and after.

use serde::{Deserialize, Serialize};

use super::budget::Thresholds;
use super::forecast::Forecast;
use super::reference::{Hour, LEARNING_DAYS, Reference, Residuals};
use super::{BLOCK_HOURS, Finding, Memory};
use crate::histogram::Histogram;

/// An endpoint's reference, once there is one, and its memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Watch {
    /// The hour of its first timing.
    first_hour: Option<i64>,
    reference: Option<Reference>,
    memory: Memory,
}

impl Watch {
    /// What was learnt of it.
    #[must_use]
    pub fn reference(&self) -> Option<&Reference> {
        self.reference.as_ref()
    }

    /// What is remembered of it.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Takes in a quarter of an hour that is over, counted from 1970, and says what is wrong. Each quarter comes once and in order, empty ones too.
    pub fn quarter(&mut self, thresholds: &Thresholds, quarter: i64, timings: &Histogram) -> [Option<Finding>; 2] {
        if self.first_hour.is_none() {
            if timings.is_empty() {
                return [None, None];
            }
            self.first_hour = Some(quarter.div_euclid(4));
        }
        self.memory.quarter(self.reference.as_ref(), thresholds, quarter, timings)
    }

    /// A marker was set in the running quarter of an hour.
    pub fn marker(&mut self, quarter: i64) {
        self.memory.marker(quarter);
    }

    /// The hour at whose beginning it is to be learnt, if it is not yet: a midnight after fourteen days.
    #[must_use]
    pub fn learns_at(&self) -> Option<i64> {
        let days = i64::try_from(LEARNING_DAYS).unwrap_or(i64::MAX / 24);
        self.first_hour.filter(|_| self.reference.is_none()).map(|first| (first + days * 24).div_euclid(24) * 24)
    }

    /// Learns from the quarters of an hour of its first fourteen days, the first of them `from`, and lives through them again with what it has learnt.
    /// Too few timings: it stays unlearnt, and only its traffic is watched.
    pub fn learn(&mut self, from: i64, quarters: &[Histogram]) {
        let hours = hours_of(quarters);
        let first = from.div_euclid(4);
        let hours: Vec<Hour<'_>> = (first..).zip(&hours).map(|(hour, timings)| Hour { hour, timings }).collect();
        self.reference = Reference::learn(&hours);
        let Some(reference) = &self.reference else { return };
        let (never, mut scratch) = (Thresholds::never(), Residuals::new());
        self.memory = Memory::default();
        for (quarter, timings) in (from..).zip(quarters) {
            self.memory.quarter(Some(reference), &never, quarter, timings);
            let passed = usize::try_from((quarter + 1 - from).div_euclid(4)).unwrap_or(0);
            if is_slow_run(quarter) && passed >= 24 {
                self.memory.slow(reference, &never, quarter.div_euclid(4), &hours[passed - 24..passed], &mut scratch);
            }
        }
    }

    /// The slow run, when [`is_slow_run`] says so, after the quarter was taken in: `day` are the 24 hours that end with `hour`.
    pub fn slow(&mut self, thresholds: &Thresholds, hour: i64, day: &[Hour<'_>], scratch: &mut Residuals) -> Option<Finding> {
        self.memory.slow(self.reference.as_ref()?, thresholds, hour, day, scratch)
    }

    /// When p95 meets a limit, after a rise was found.
    #[must_use]
    pub fn forecast(&self, limit_ms: f32) -> Option<Forecast> {
        self.memory.forecast(self.reference.as_ref()?, limit_ms)
    }
}

/// The hours of quarters of an hour, of which the first begins an hour.
#[must_use]
pub fn hours_of(quarters: &[Histogram]) -> Vec<Histogram> {
    let hour = |of_hour: &[Histogram]| {
        let mut hour = Histogram::default();
        for quarter in of_hour {
            hour.merge(quarter);
        }
        hour
    };
    quarters.chunks(4).map(hour).collect()
}

/// Whether the slow run follows this quarter of an hour.
#[must_use]
pub fn is_slow_run(quarter: i64) -> bool {
    (quarter + 1).rem_euclid(4 * BLOCK_HOURS) == 0
}
