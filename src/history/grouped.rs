//! Reading by groups: what each group of endpoints did in a window, all groups in one pass over the rows; and which window it is that the kept periods can answer.

use std::collections::BTreeMap;

use super::closed_periods::{Reading, Wanted};
use super::index::Index;
use super::losses::Loss;
use super::open_slots::OpenSlots;
use super::query::{Error, Kept, Piece, plan};
use super::sum::Sum;
use crate::counting::{Cell, Tally};
use crate::endpoint::EndpointId;
use crate::histogram::codec;
use crate::time::{Slot, Tier, TimeRange, Timestamp};

/// In no group.
const NONE: u32 = u32::MAX;

/// More groups than this are added up as cells: a [`Sum`] has room for every bucket there is.
const SUMS_MAX: usize = 64;

/// How much of the rows is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Requests by outcome and the sum of their durations.
    Counts,
    /// Everything.
    Whole,
}

/// What answers questions about groups of endpoints, taken at one moment as [`super::query::Taken`] is.
#[derive(Debug)]
pub struct Grouped {
    kept: Kept,
    index: Index,
    wanted: Wanted,
    /// By endpoint.
    group_of: Vec<u32>,
    groups: usize,
    open: BTreeMap<(Slot, u32), Cell>,
}

impl Grouped {
    /// Of endpoints (ascending) with the group of each; open slots are added with [`Grouped::add_open`].
    #[must_use]
    pub fn new(kept: Kept, index: &Index, members: &[(EndpointId, u32)]) -> Self {
        debug_assert!(members.is_sorted_by(|a, b| a.0 < b.0));
        let mut group_of = vec![NONE; members.last().map_or(0, |(id, _)| id.0 as usize + 1)];
        for (id, group) in members {
            group_of[id.0 as usize] = *group;
        }
        let groups = members.iter().map(|(_, group)| *group as usize + 1).max().unwrap_or(0);
        let wanted = Wanted::These(members.iter().map(|(id, _)| *id).collect());
        Self { kept, index: index.clone(), wanted, group_of, groups, open: BTreeMap::new() }
    }

    /// How many groups there are.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Adds the open slots of some of its endpoints.
    pub fn add_open(&mut self, open: &OpenSlots, wanted: &Wanted) {
        let always = TimeRange { from: Timestamp(0), to: Timestamp(i64::MAX) };
        open.visit(wanted, always, |slot, id, cell| {
            let group = self.group_of.get(id.0 as usize).copied().unwrap_or(NONE);
            if group != NONE {
                self.open.entry((slot, group)).and_modify(|known| known.merge(cell)).or_insert_with(|| cell.clone());
            }
        });
    }

    /// Before this nothing is known of any endpoint at all.
    #[must_use]
    pub fn beginning(&self) -> Option<Timestamp> {
        let closed = Tier::ALL.into_iter().filter(|t| *t != Tier::Quarter).filter_map(|tier| self.index.first_period(tier)).min();
        let open = self.open.first_key_value().map(|((slot, _), _)| Tier::Minute.period_of(slot.start()));
        closed.into_iter().chain(open).min()
    }

    /// The window that is counted when `length_ms` up to an instant is asked for: it ends where the last period that is over ends, and begins where the period begins
    /// that is nearest to what was asked.
    #[must_use]
    pub fn window(&self, at: Timestamp, length_ms: i64) -> TimeRange {
        let to = self.last_end(at);
        let start = to.plus_ms(-length_ms);
        let tier = self.tier_at(start);
        let from = tier.period_of(start.plus_ms(tier.width_ms() / 2));
        // The shortest window is a period, of the tier that is kept there.
        let before = to.plus_ms(-1);
        TimeRange { from: if from < to { from } else { self.tier_at(before).period_of(before) }, to }
    }

    /// The end of the last period that is over at an instant.
    #[must_use]
    pub fn last_end(&self, at: Timestamp) -> Timestamp {
        self.tier_at(at).period_of(at)
    }

    /// The finest periods that are kept at an instant.
    #[must_use]
    pub fn tier_at(&self, at: Timestamp) -> Tier {
        if at < self.kept.hours_from {
            Tier::Day
        } else if at < self.kept.minutes_from {
            Tier::Hour
        } else {
            Tier::Minute
        }
    }

    /// How many rows at most are read for a window.
    #[must_use]
    pub fn rows(&self, window: TimeRange) -> u64 {
        let periods = |piece: &Piece| (piece.range.to.0 - piece.range.from.0) / piece.tier.width_ms();
        let periods: i64 = plan(window, &self.kept).0.iter().map(periods).sum();
        periods.unsigned_abs().saturating_mul(self.wanted.count().unwrap_or(0) as u64)
    }

    /// Where in a window something is missing for good.
    pub fn incomplete<'a>(&'a self, losses: &'a [Loss], window: TimeRange) -> impl Iterator<Item = TimeRange> + 'a {
        let (pieces, _) = plan(window, &self.kept);
        let of = move |loss: &'a Loss| pieces.iter().filter(|p| p.tier == loss.tier).filter_map(|p| loss.within(p.range)).collect::<Vec<_>>();
        losses.iter().filter(|loss| loss.concerns(&self.wanted)).flat_map(of)
    }

    /// What each group did in a window.
    ///
    /// # Errors
    /// [`Error`] when a block does not check.
    pub fn read(&self, reading: &mut Reading, window: TimeRange, depth: Depth) -> Result<Vec<Cell>, Error> {
        let mut adding = Adding::new(depth, self.groups);
        let (pieces, _) = plan(window, &self.kept);
        for piece in pieces {
            let blocks = self.index.blocks(piece.tier, piece.range.from, piece.range.to);
            for block in blocks.iter().filter(|b| b.name <= self.kept.named_to) {
                reading.each(block, &self.wanted, |id, row| adding.add_bytes(self.group_of[id.0 as usize] as usize, row))?;
            }
        }
        for ((_, group), cell) in self.open.iter().filter(|((slot, _), _)| slot.start() >= window.from && slot.start() < window.to) {
            adding.add(*group as usize, cell);
        }
        Ok(adding.cells())
    }
}

/// The sums of all groups while they are added up.
enum Adding {
    Counts(Vec<Cell>),
    Sums(Vec<Sum>),
    Cells(Vec<Cell>),
}

impl Adding {
    fn new(depth: Depth, groups: usize) -> Self {
        match depth {
            Depth::Counts => Self::Counts(vec![Cell::default(); groups]),
            Depth::Whole if groups <= SUMS_MAX => Self::Sums(vec![Sum::default(); groups]),
            Depth::Whole => Self::Cells(vec![Cell::default(); groups]),
        }
    }

    fn add_bytes(&mut self, group: usize, mut row: &[u8]) -> Result<(), codec::Error> {
        match self {
            Self::Counts(cells) => add_counts(&mut cells[group], &Cell::take_counts(&mut row)?),
            Self::Sums(sums) => sums[group].add_bytes(row)?,
            Self::Cells(cells) => add_cell(&mut cells[group], Cell::take(&mut row)?),
        }
        Ok(())
    }

    fn add(&mut self, group: usize, cell: &Cell) {
        match self {
            Self::Counts(cells) => add_counts(&mut cells[group], cell),
            Self::Sums(sums) => sums[group].add(cell),
            Self::Cells(cells) => add_cell(&mut cells[group], cell.clone()),
        }
    }

    fn cells(self) -> Vec<Cell> {
        match self {
            Self::Counts(cells) | Self::Cells(cells) => cells,
            Self::Sums(sums) => sums.into_iter().map(|mut sum| sum.take()).collect(),
        }
    }
}

fn add_counts(sum: &mut Cell, cell: &Cell) {
    for (a, b) in sum.outcomes.iter_mut().zip(cell.outcomes) {
        *a += b;
    }
    sum.sum_us = sum.sum_us.saturating_add(cell.sum_us);
}

/// An empty one takes the thresholds of the first: counts at others would be bounds.
fn add_cell(sum: &mut Cell, cell: Cell) {
    if sum.total() == Tally::default() { *sum = cell } else { sum.merge(&cell) }
}
