//! Reading across open slots and all tiers: which blocks answer a range, and the merge of their cells. No percentile is ever averaged: cells are added, and the sum
//! is asked.
//!
//! A range is covered by the coarsest periods that lie wholly inside it and are closed; what is left over by finer ones. Where finer ones are not kept any
//! more the range is widened to coarser ones.

use std::collections::BTreeSet;

use super::closed_periods::{self, Block, Reader};
use super::index::{self, Index};
use crate::counting::Cell;
use crate::endpoint::EndpointId;
use crate::log::Position;
use crate::time::{Slot, Tier, TimeRange, Timestamp};

/// Since when each tier is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Minutes.
    pub minutes_from: Timestamp,
    /// Hours.
    pub hours_from: Timestamp,
    /// Up to where minutes are closed and in files.
    pub closed_to: Timestamp,
    /// Blocks of later frames are not looked at: what they hold is still in memory.
    pub named_to: Position,
}

/// A stretch that one tier answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// By which tier.
    pub tier: Tier,
    /// Which periods: those that begin in it.
    pub range: TimeRange,
}

/// The pieces of a range, and the range as widened. What lies after `closed_to` is in open slots.
#[must_use]
pub fn plan(range: TimeRange, kept: &Kept) -> (Vec<Piece>, TimeRange) {
    let mut pieces: Vec<Piece> = Vec::new();
    let floor = |t: Timestamp, ms: i64| Timestamp(t.0.div_euclid(ms) * ms);
    let from = if range.from < kept.hours_from {
        Tier::Day.period_of(range.from)
    } else if range.from < kept.minutes_from {
        Tier::Hour.period_of(range.from)
    } else if range.from < kept.closed_to {
        Tier::Minute.period_of(range.from)
    } else {
        floor(range.from, crate::time::SLOT_MS)
    };
    let mut at = from;
    let end = range.to.min(kept.closed_to);
    while at < end {
        let whole = |tier: Tier| tier.period_of(at) == at && at.0 + tier.width_ms() <= end.0;
        let tier = if whole(Tier::Day) || at < kept.hours_from {
            Tier::Day
        } else if whole(Tier::Hour) || at < kept.minutes_from {
            Tier::Hour
        } else {
            Tier::Minute
        };
        let next = Timestamp(tier.period_of(at).0 + tier.width_ms());
        match pieces.last_mut() {
            Some(last) if last.tier == tier && last.range.to == at => last.range.to = next,
            _ => pieces.push(Piece { tier, range: TimeRange { from: at, to: next } }),
        }
        at = next;
    }
    let open_end = Timestamp(floor(range.to.plus_ms(crate::time::SLOT_MS - 1), crate::time::SLOT_MS).0);
    (pieces, TimeRange { from, to: if range.to > kept.closed_to { open_end.max(at) } else { at } })
}

/// What a range is read from, taken at one moment so that nothing is missed or counted twice; files are read later.
#[derive(Debug)]
pub struct Sources {
    endpoints: BTreeSet<EndpointId>,
    blocks: Vec<Block>,
    open: Vec<(Slot, Cell)>,
    /// The range as widened.
    pub range: TimeRange,
}

/// Finds what answers a range for some endpoints.
///
/// # Errors
/// When the index cannot be read.
pub fn sources(
    range: TimeRange,
    kept: &Kept,
    endpoints: BTreeSet<EndpointId>,
    index: &Index,
    open: impl Iterator<Item = (Slot, EndpointId, Cell)>,
) -> Result<Sources, index::Error> {
    let (pieces, range) = plan(range, kept);
    let mut blocks = Vec::new();
    for piece in pieces {
        blocks.extend(index.blocks(piece.tier, piece.range.from, piece.range.to)?.into_iter().filter(|b| b.name <= kept.named_to));
    }
    let inside = |slot: Slot| slot.start() >= range.from && slot.start() < range.to;
    let open = open.filter(|(slot, id, _)| inside(*slot) && endpoints.contains(id)).map(|(slot, _, cell)| (slot, cell)).collect();
    Ok(Sources { endpoints, blocks, open, range })
}

impl Sources {
    /// The sum of everything.
    ///
    /// # Errors
    /// When a block does not check.
    pub fn read(&self, reader: &Reader) -> Result<Cell, closed_periods::Error> {
        let mut sum = Cell::default();
        let mut add = |cell: &Cell| if sum.is_empty() { sum = cell.clone() } else { sum.merge(cell) };
        for block in &self.blocks {
            for row in reader.rows_where(block, |id| self.endpoints.contains(&id))? {
                add(&row.cell);
            }
        }
        for (_, cell) in &self.open {
            add(cell);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_range_is_covered_by_the_coarsest_closed_periods_inside_it() {
        let kept = Kept { minutes_from: Timestamp(0), hours_from: Timestamp(0), closed_to: Timestamp(50 * HOUR), named_to: Position(0) };
        let (pieces, range) = plan(TimeRange { from: Timestamp(23 * HOUR - 30_000), to: Timestamp(50 * HOUR + 5_000) }, &kept);
        let shown: Vec<_> = pieces.iter().map(|p| (p.tier, p.range.from.0, p.range.to.0)).collect();
        assert_eq!(
            shown,
            [
                (Tier::Minute, 23 * HOUR - 60_000, 23 * HOUR),
                (Tier::Hour, 23 * HOUR, 24 * HOUR),
                (Tier::Day, 24 * HOUR, 48 * HOUR),
                (Tier::Hour, 48 * HOUR, 50 * HOUR),
            ]
        );
        assert_eq!(range, TimeRange { from: Timestamp(23 * HOUR - 60_000), to: Timestamp(50 * HOUR + 10_000) });
    }

    proptest! {
        #[test]
        fn pieces_join_without_a_hole_or_an_overlap(from in 0i64..400, len in 1i64..9_000, minutes in 0i64..200, hours in 0i64..100, closed in 0i64..9_000) {
            let minute = 60_000;
            let kept = Kept { minutes_from: Timestamp(minutes.max(hours) * HOUR), hours_from: Timestamp(hours * HOUR), closed_to: Timestamp(closed * minute), named_to: Position(0) };
            let asked = TimeRange { from: Timestamp(from * minute), to: Timestamp((from + len) * minute) };
            let (pieces, range) = plan(asked, &kept);
            prop_assert!(range.from <= asked.from && range.to >= asked.to);
            let mut at = range.from;
            for p in &pieces {
                prop_assert_eq!(p.range.from, at);
                at = p.range.to;
            }
            prop_assert!(pieces.is_empty() || at >= asked.to.min(kept.closed_to));
        }
    }
}
