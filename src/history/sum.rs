//! The sum of many rows, added up from their bytes: what [`Cell::merge`] of all of them gives, without making a cell of each.

use crate::counting::{self, Cell};
use crate::histogram::codec::Error;
use crate::histogram::dense::DenseCounts;

/// A sum of cells.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Without its histograms.
    counted: Cell,
    passed: DenseCounts,
    failed: DenseCounts,
    leaves_thresholds_out: bool,
}

impl Sum {
    /// One that does not count at thresholds, for whoever asks for quantiles only.
    #[must_use]
    pub fn without_thresholds() -> Self {
        Self { leaves_thresholds_out: true, ..Self::default() }
    }

    /// Whether it does not count at thresholds.
    pub(super) fn is_without_thresholds(&self) -> bool {
        self.leaves_thresholds_out
    }

    /// Adds the cell at the front of the bytes of a row.
    ///
    /// # Errors
    /// [`Error::Malformed`]; a part may have been added then.
    pub fn add_bytes(&mut self, row: &[u8]) -> Result<(), Error> {
        let mut rest = row;
        let counted = Cell::take_counts(&mut rest)?;
        if !self.counts_alike(&counted) {
            self.add(&Cell::take(&mut &*row)?);
            return Ok(());
        }
        self.add_counts(&counted);
        if !self.leaves_thresholds_out {
            for (a, b) in self.counted.thresholds.iter_mut().zip(&counted.thresholds) {
                counting::add(a, b);
            }
        }
        self.passed.add_bytes(&mut rest)?;
        self.failed.add_bytes(&mut rest)
    }

    /// Adds a cell.
    pub fn add(&mut self, cell: &Cell) {
        if self.counts_alike(cell) {
            if !self.leaves_thresholds_out {
                for (a, b) in self.counted.thresholds.iter_mut().zip(&cell.thresholds) {
                    counting::add(a, b);
                }
            }
        } else {
            self.learn_thresholds(cell);
            for sum in &mut self.counted.thresholds {
                let threshold_us = sum.threshold_us;
                counting::add(sum, &cell.at_threshold(threshold_us));
            }
        }
        self.add_counts(cell);
        self.passed.add(&cell.passed);
        self.failed.add(&cell.failed);
    }

    /// Whether the thresholds need no thought: they are the same, left out, or the sum's first.
    fn counts_alike(&mut self, cell: &Cell) -> bool {
        if !self.leaves_thresholds_out && self.counted.is_empty() {
            self.counted.thresholds = cell.thresholds.iter().map(|t| counting::ThresholdCount { threshold_us: t.threshold_us, ..Default::default() }).collect();
        }
        let (own, other) = (&self.counted.thresholds, &cell.thresholds);
        self.leaves_thresholds_out || (own.len() == other.len() && own.iter().zip(other).all(|(a, b)| a.threshold_us == b.threshold_us))
    }

    /// Counts at the cell's thresholds too from now on; what was added before is bounded there by its buckets.
    fn learn_thresholds(&mut self, cell: &Cell) {
        let is_known = |us: u64| self.counted.thresholds.binary_search_by_key(&us, |t| t.threshold_us).is_ok();
        if cell.thresholds.iter().all(|t| is_known(t.threshold_us)) {
            return;
        }
        let before = self.take();
        let mut all: Vec<u64> = before.thresholds.iter().chain(&cell.thresholds).map(|t| t.threshold_us).collect();
        all.sort_unstable();
        all.dedup();
        self.passed.add(&before.passed);
        self.failed.add(&before.failed);
        self.counted = Cell { thresholds: all.into_iter().map(|us| before.at_threshold(us)).collect(), ..before.counts_only() };
    }

    fn add_counts(&mut self, cell: &Cell) {
        for (a, b) in self.counted.outcomes.iter_mut().zip(cell.outcomes) {
            *a += b;
        }
        self.counted.sum_us = self.counted.sum_us.saturating_add(cell.sum_us);
    }

    /// The sum; afterwards it is empty.
    pub fn take(&mut self) -> Cell {
        let counted = std::mem::take(&mut self.counted);
        Cell { passed: self.passed.take(), failed: self.failed.take(), ..counted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::{Outcome, Span, Tally};
    use crate::histogram::Digits;
    use proptest::prelude::*;

    fn cell(items: &[(u64, u8, u64)], thresholds: &[u64], digits: Digits) -> Cell {
        let mut cell = Cell::new(thresholds, digits);
        for &(us, outcome, weight) in items {
            cell.record(Outcome::ALL[usize::from(outcome)], Span::exact(us), Tally { weight, observed: 1 });
        }
        cell
    }

    type Items = Vec<(u64, u8, u64)>;

    proptest! {
        #[test]
        fn a_sum_is_the_merge_of_all_however_thresholds_and_grids_differ(
            all in prop::collection::vec((prop::collection::vec((0u64..3_000_000, 0u8..4, 1u64..4), 1..30), 0usize..4, any::<bool>()), 1..8),
        ) {
            let all: Vec<(Items, usize, bool)> = all;
            let thresholds: [&[u64]; 4] = [&[], &[800_000], &[250_000, 800_000], &[1_000_000]];
            let (mut from_bytes, mut from_cells, mut merged, mut plain) = (Sum::default(), Sum::default(), Cell::default(), Sum::without_thresholds());
            for (items, which, three) in &all {
                let cell = cell(items, thresholds[*which], if *three { Digits::Three } else { Digits::Two });
                let mut bytes = Vec::new();
                cell.put(&mut bytes);
                from_bytes.add_bytes(&bytes).unwrap();
                from_cells.add(&cell);
                plain.add_bytes(&bytes).unwrap();
                if merged.is_empty() { merged = cell } else { merged.merge(&cell) }
            }
            let (a, b, p) = (from_bytes.take(), from_cells.take(), plain.take());
            prop_assert_eq!(a.outcomes, merged.outcomes);
            prop_assert_eq!(a.sum_us, merged.sum_us);
            prop_assert_eq!(&a.thresholds, &merged.thresholds);
            prop_assert!(a.passed.buckets().eq(merged.passed.buckets()));
            prop_assert!(a.failed.buckets().eq(merged.failed.buckets()));
            prop_assert_eq!(&a, &b);
            prop_assert_eq!((p.outcomes, &p.passed, &p.failed, p.thresholds.len()), (a.outcomes, &a.passed, &a.failed, 0));
            prop_assert!(from_bytes.take().is_empty());
        }
    }
}
