//! Everything that an endpoint ever did, for counters that never fall: a few sums each, and a whole cell where the endpoint is critical.

use serde::{Deserialize, Serialize};

use super::counts::Counted;
use crate::counting::{Cell, Outcome};

/// Everything that one endpoint ever did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Requests by [`Outcome`], in its order, by weight.
    pub outcomes: [u64; 4],
    /// The sum of their durations in microseconds.
    pub sum_us: u64,
    /// Of a critical endpoint: its histograms and exact counts.
    pub cell: Option<Box<Cell>>,
}

impl Total {
    /// Requests of all outcomes.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.outcomes.iter().fold(0, |sum, n| u64::saturating_add(sum, *n))
    }

    /// Those that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.outcomes[Outcome::Error as usize].saturating_add(self.outcomes[Outcome::Timeout as usize])
    }

    /// Adds what came into a slot of an endpoint that is not critical.
    pub fn add(&mut self, counted: &Counted<'_>) {
        match counted {
            Counted::One { outcome, us } => self.add_sums(*outcome, 1, *us),
            Counted::Plain { client_errors, sum_us, .. } => {
                self.add_sums(Outcome::Ok, counted.observed().saturating_sub(*client_errors), *sum_us);
                self.add_sums(Outcome::ClientError, *client_errors, 0);
            }
            Counted::Full(cell) => self.add_cell(cell),
        }
    }

    /// Adds a cell; its histograms only where they are kept.
    pub fn add_cell(&mut self, cell: &Cell) {
        for (outcome, tally) in Outcome::ALL.into_iter().zip(cell.outcomes) {
            self.add_sums(outcome, tally.weight, 0);
        }
        self.sum_us = self.sum_us.saturating_add(cell.sum_us);
        if let Some(kept) = &mut self.cell {
            if kept.is_empty() { kept.clone_from(&Box::new(cell.clone())) } else { kept.merge(cell) }
        }
    }

    fn add_sums(&mut self, outcome: Outcome, count: u64, us: u64) {
        let sum = &mut self.outcomes[outcome as usize];
        *sum = sum.saturating_add(count);
        self.sum_us = self.sum_us.saturating_add(us);
    }
}
