//! Everything that an endpoint ever did, for counters that never fall: a few sums each, and a whole cell where the endpoint is critical or has objectives.

use serde::{Deserialize, Serialize};

use super::counts::Counted;
use crate::counting::{Cell, Outcome};

/// Requests and their durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Requests by [`Outcome`], in its order, by weight.
    pub outcomes: [u64; 4],
    /// The sum of their durations in microseconds.
    pub sum_us: u64,
}

impl Sums {
    fn add(&mut self, outcome: Outcome, count: u64, us: u64) {
        let sum = &mut self.outcomes[outcome as usize];
        *sum = sum.saturating_add(count);
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Requests of all outcomes.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.outcomes.iter().fold(0, |sum, n| u64::saturating_add(sum, *n))
    }
}

/// Everything that one endpoint ever did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Requests and their durations.
    pub sums: Sums,
    /// Of an endpoint that is critical or has objectives: its histograms and exact counts.
    pub cell: Option<Box<Cell>>,
}

impl Total {
    /// Adds what came into a slot of an endpoint without a whole cell.
    pub fn add(&mut self, counted: &Counted<'_>) {
        match counted {
            Counted::One { outcome, us } => self.sums.add(*outcome, 1, *us),
            Counted::Plain { client_errors, sum_us, .. } => {
                self.sums.add(Outcome::Ok, counted.observed().saturating_sub(*client_errors), *sum_us);
                self.sums.add(Outcome::ClientError, *client_errors, 0);
            }
            Counted::Full(cell) => self.add_cell(cell),
        }
    }

    /// Adds a cell; its histograms only where they are kept.
    pub fn add_cell(&mut self, cell: &Cell) {
        for (outcome, tally) in Outcome::ALL.into_iter().zip(cell.outcomes) {
            self.sums.add(outcome, tally.weight, 0);
        }
        self.sums.sum_us = self.sums.sum_us.saturating_add(cell.sum_us);
        if let Some(kept) = &mut self.cell {
            if kept.is_empty() { **kept = cell.clone() } else { kept.merge(cell) }
        }
    }
}
