//! Reading across open slots and all tiers: which blocks answer a range, and the merge of their cells. No percentile is ever averaged: cells are added, and the sum
//! is asked.
//!
//! A range is covered by the coarsest periods that lie wholly inside it and are closed; what is left over by finer ones. Where finer ones are not kept any
//! more the range is widened to coarser ones.

use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;

use super::closed_periods::{self, Block, Reader, Reading, Wanted};
use super::index::Index;
use super::losses::Loss;
use super::open_slots::OpenSlots;
use super::sum::Sum;
use crate::counting::Cell;
use crate::log::Position;
use crate::time::{SLOT_MS, Slot, Tier, TimeRange, Timestamp};

/// Since when each tier is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Minutes.
    pub minutes_from: Timestamp,
    /// Hours.
    pub hours_from: Timestamp,
    /// Up to where minutes are closed: in files, or in memory on their way there.
    pub closed_to: Timestamp,
    /// Up to where hours are rolled up.
    pub hours_to: Timestamp,
    /// Up to where days are rolled up.
    pub days_to: Timestamp,
    /// Blocks of later frames are not looked at: what they hold is still in memory.
    pub named_to: Position,
}

/// Why a question cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files.
    #[error(transparent)]
    History(#[from] closed_periods::Error),
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
pub fn plan(range: TimeRange, kept: &Kept) -> Plan {
    let mut pieces: Vec<Piece> = Vec::new();
    let floor = |t: Timestamp, ms: i64| Timestamp(t.0.div_euclid(ms) * ms);
    let from = if range.from < kept.hours_from {
        Tier::Day.period_of(range.from)
    } else if range.from < kept.minutes_from {
        Tier::Hour.period_of(range.from)
    } else if range.from < kept.closed_to {
        Tier::Minute.period_of(range.from)
    } else {
        floor(range.from, SLOT_MS)
    };
    let mut at = from;
    let end = range.to.min(kept.closed_to);
    while at < end {
        let whole = |tier: Tier, to: Timestamp| tier.period_of(at) == at && at.0 + tier.width_ms() <= end.min(to).0;
        let tier = if whole(Tier::Day, kept.days_to) || at < kept.hours_from {
            Tier::Day
        } else if whole(Tier::Hour, kept.hours_to) || at < kept.minutes_from {
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
    let open_end = Timestamp(floor(range.to.plus_ms(SLOT_MS - 1), SLOT_MS).0);
    (pieces, TimeRange { from, to: if range.to > kept.closed_to { open_end.max(at) } else { at } })
}

/// The pieces that answer a stretch, and the stretch as widened.
type Plan = (Vec<Piece>, TimeRange);

/// A question about no more rows than this is read by one thread.
const ROWS_ALONE_MAX: usize = 20_000;

/// Stretches that a second thread may be ahead of the first.
const READ_AHEAD_MAX: usize = 2;

/// How two threads share a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    /// There is one.
    No,
    /// Every other stretch.
    Stretches,
    /// Every other block.
    Blocks,
}

impl Shared {
    fn first(self) -> (usize, usize) {
        (0, if self == Self::Blocks { 2 } else { 1 })
    }

    fn second(self) -> (usize, usize) {
        if self == Self::Blocks { (1, 2) } else { (0, 1) }
    }
}

/// What answers questions about some endpoints, taken at one moment so that nothing is missed or counted twice. Taking it is short: index and files are read later,
/// elsewhere, and what was written to them since then is passed over.
#[derive(Debug)]
pub struct Taken {
    kept: Kept,
    index: Index,
    wanted: Wanted,
    open: BTreeMap<Slot, Cell>,
}

/// Takes what answers questions about some endpoints; open slots are added with [`Taken::add_open`].
#[must_use]
pub fn take(kept: Kept, index: &Index, wanted: Wanted) -> Taken {
    Taken { kept, index: index.clone(), wanted, open: BTreeMap::new() }
}

impl Taken {
    /// Adds the open slots of some of its endpoints, as far as a question about the range may need them.
    pub fn add_open(&mut self, open: &OpenSlots, wanted: &Wanted, range: TimeRange) {
        let widened = TimeRange { from: Tier::Day.period_of(range.from), to: Timestamp(range.to.0.saturating_add(Tier::Day.width_ms())) };
        open.visit(wanted, widened, |slot, _, cell| match self.open.entry(slot) {
            std::collections::btree_map::Entry::Vacant(e) => drop(e.insert(cell.clone())),
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut().merge(cell),
        });
    }

    /// Its endpoints.
    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Tells the sum of everything in each stretch, with the stretch as widened. A large question is read by two threads.
    ///
    /// # Errors
    /// [`Error`] when a block does not check.
    pub fn read(&self, reader: &Reader, stretches: &[TimeRange], sum: Sum, mut tell: impl FnMut(TimeRange, &Cell)) -> Result<(), Error> {
        let plans: Vec<Plan> = stretches.iter().map(|s| plan(*s, &self.kept)).collect();
        let blocks = self.blocks(plans.iter().flat_map(|p| &p.0));
        // Short steps long ago are all widened to the same period.
        let plans: Vec<&[Plan]> = plans.chunk_by(|a, b| a.1 == b.1).collect();
        let rows = blocks.iter().map(Vec::len).sum::<usize>().saturating_mul(self.wanted.count().unwrap_or(ROWS_ALONE_MAX));
        // One stretch can be shared by its blocks when it is the same in which order they are added.
        let shared = match plans.len() {
            _ if rows <= ROWS_ALONE_MAX || std::thread::available_parallelism().map_or(1, usize::from) < 2 => Shared::No,
            1 if sum.is_without_thresholds() => Shared::Blocks,
            0 | 1 => Shared::No,
            _ => Shared::Stretches,
        };
        self.read_shared(reader, &plans, &blocks, sum, shared, |same, cell| same.iter().for_each(|(_, range)| tell(*range, cell)))
    }

    /// Where in a range something is missing for good that would belong to the answer.
    #[must_use]
    pub fn incomplete(&self, losses: &[Loss], range: TimeRange) -> Vec<TimeRange> {
        let (pieces, _) = plan(range, &self.kept);
        let missing = |loss: &Loss| pieces.iter().filter(|p| p.tier == loss.tier).filter_map(|p| loss.within(p.range)).collect::<Vec<_>>();
        losses.iter().filter(|loss| loss.concerns(&self.wanted)).flat_map(missing).collect()
    }

    fn read_shared(
        &self,
        reader: &Reader,
        plans: &[&[Plan]],
        blocks: &[Vec<Block>; Tier::ALL.len()],
        mut sum: Sum,
        shared: Shared,
        mut tell: impl FnMut(&[Plan], &Cell),
    ) -> Result<(), Error> {
        let mut second_sum = sum.clone();
        std::thread::scope(|scope| {
            // The receiving end goes with this closure, so the second thread ends when the first does, whatever for.
            let (sender, cells) = sync_channel(READ_AHEAD_MAX);
            if shared != Shared::No {
                scope.spawn(move || {
                    let mut reading = reader.begin();
                    let (skipped, step) = if shared == Shared::Stretches { (1, 2) } else { (0, 1) };
                    for same in plans.iter().skip(skipped).step_by(step) {
                        let cell = self.add(&same[0], shared.second(), blocks, &mut reading, &mut second_sum).map(|()| second_sum.take());
                        let is_last = cell.is_err();
                        if sender.send(cell).is_err() || is_last {
                            break;
                        }
                    }
                });
            }
            let mut reading = reader.begin();
            // That it sends nothing more before its last means that it panicked, which the scope passes on.
            let of_second = || cells.recv().unwrap_or_else(|_| Ok(Cell::default()));
            for (n, same) in plans.iter().enumerate() {
                if shared == Shared::Stretches && n % 2 == 1 {
                    tell(same, &of_second()?);
                    continue;
                }
                self.add(&same[0], shared.first(), blocks, &mut reading, &mut sum)?;
                if shared == Shared::Blocks {
                    sum.add(&of_second()?);
                }
                tell(same, &sum.take());
            }
            Ok(())
        })
    }

    /// Adds a share of what answers a stretch: every `of`-th block from the `nth` on.
    fn add(&self, plan: &Plan, (nth, of): (usize, usize), blocks: &[Vec<Block>; Tier::ALL.len()], reading: &mut Reading, sum: &mut Sum) -> Result<(), Error> {
        let (pieces, range) = plan;
        for piece in pieces {
            let blocks = &blocks[piece.tier as usize];
            let first = blocks.partition_point(|b| b.period < piece.range.from);
            for block in blocks[first..].iter().take_while(|b| b.period < piece.range.to).skip(nth).step_by(of) {
                reading.each(block, &self.wanted, |_, row| sum.add_bytes(row))?;
            }
        }
        for (_, cell) in self.open.iter().filter(|(slot, _)| nth == 0 && slot.start() >= range.from && slot.start() < range.to) {
            sum.add(cell);
        }
        Ok(())
    }

    /// The blocks of all pieces by tier, each once, by period: one reading of the index for each stretch of pieces that join.
    fn blocks<'a>(&self, pieces: impl Iterator<Item = &'a Piece>) -> [Vec<Block>; Tier::ALL.len()] {
        let mut ranges: [Vec<TimeRange>; Tier::ALL.len()] = Default::default();
        for piece in pieces {
            let known = &mut ranges[piece.tier as usize];
            match known.last_mut() {
                Some(last) if piece.range.from <= last.to => last.to = last.to.max(piece.range.to),
                _ => known.push(piece.range),
            }
        }
        let mut blocks: [Vec<Block>; Tier::ALL.len()] = Default::default();
        for tier in Tier::ALL {
            for range in &ranges[tier as usize] {
                let found = self.index.blocks(tier, range.from, range.to);
                blocks[tier as usize].extend(found.into_iter().filter(|b| b.name <= self.kept.named_to));
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::{Outcome, Span, Tally};
    use crate::endpoint::EndpointId;
    use crate::histogram::Digits;
    use crate::history::closed_periods::Files;
    use crate::history::open_slots::Row;
    use proptest::prelude::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_range_is_covered_by_the_coarsest_closed_periods_inside_it() {
        let kept = Kept {
            minutes_from: Timestamp(0),
            hours_from: Timestamp(0),
            closed_to: Timestamp(50 * HOUR),
            hours_to: Timestamp(50 * HOUR),
            days_to: Timestamp(50 * HOUR),
            named_to: Position(0),
        };
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
        // What is not rolled up yet is answered by the finer tier.
        let behind = Kept { hours_to: Timestamp(49 * HOUR), days_to: Timestamp(24 * HOUR), ..kept };
        let (pieces, _) = plan(TimeRange { from: Timestamp(24 * HOUR), to: Timestamp(50 * HOUR) }, &behind);
        let shown: Vec<_> = pieces.iter().map(|p| (p.tier, p.range.from.0, p.range.to.0)).collect();
        assert_eq!(shown, [(Tier::Hour, 24 * HOUR, 49 * HOUR), (Tier::Minute, 49 * HOUR, 50 * HOUR)]);
    }

    #[test]
    fn two_threads_tell_what_one_tells() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, index) = (Files::open(dir.path()).unwrap(), Index::open(dir.path()).unwrap());
        let mut open = OpenSlots::default();
        let cell = |us: u64| {
            let mut cell = Cell::new(&[5_000], Digits::Two);
            cell.record(Outcome::Ok, Span::exact(us), Tally { weight: 1 + us % 3, observed: 1 });
            cell
        };
        for hour in 0..9 {
            let rows: Vec<Row> = (0..5).map(|id| Row { endpoint: EndpointId(id), cell: cell(u64::from(id) * 977 + hour * 1_013), slots: Vec::new() }).collect();
            let block = files.append(Tier::Hour, Timestamp(hour.cast_signed() * HOUR), Position(hour + 1), &rows).unwrap();
            index.put_block(&block);
        }
        open.block(Slot::containing(Timestamp(9 * HOUR)), EndpointId(1)).add_cell(EndpointId(1), cell(700));
        let end = Timestamp(9 * HOUR);
        let kept = Kept { minutes_from: end, hours_from: Timestamp(0), closed_to: end, hours_to: end, days_to: Timestamp(0), named_to: Position(99) };
        let mut taken = take(kept, &index, Wanted::All);
        taken.add_open(&open, &Wanted::All, TimeRange { from: Timestamp(0), to: Timestamp(10 * HOUR) });
        let reader = Reader::new(dir.path());
        for step in [HOUR, 2 * HOUR, 10 * HOUR] {
            let stretches: Vec<Plan> =
                (0..10 * HOUR / step).map(|n| plan(TimeRange { from: Timestamp(n * step), to: Timestamp((n + 1) * step) }, &kept)).collect();
            let plans: Vec<&[Plan]> = stretches.chunks(1).collect();
            let blocks = taken.blocks(stretches.iter().flat_map(|p| &p.0));
            let read = |shared| {
                let mut told = Vec::new();
                taken.read_shared(&reader, &plans, &blocks, Sum::default(), shared, |same, cell| told.push((same[0].1, cell.clone()))).unwrap();
                told
            };
            assert_eq!(read(Shared::No).iter().map(|t| t.1.total().observed).sum::<u64>(), 46);
            assert_eq!(read(Shared::Stretches), read(Shared::No));
            assert_eq!(read(Shared::Blocks), read(Shared::No));
        }
        // Damage that either of them meets ends both.
        let path = dir.path().join("history/hour/000000000000000.history");
        let whole = std::fs::read(&path).unwrap();
        for at in (100..whole.len()).step_by(211) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let stretches: Vec<TimeRange> = (0..10).map(|n| TimeRange { from: Timestamp(n * HOUR), to: Timestamp((n + 1) * HOUR) }).collect();
            let plans: Vec<Plan> = stretches.iter().map(|s| plan(*s, &kept)).collect();
            let by_one: Vec<&[Plan]> = plans.chunks(1).collect();
            let blocks = taken.blocks(plans.iter().flat_map(|p| &p.0));
            let is_err = |shared| taken.read_shared(&reader, &by_one, &blocks, Sum::default(), shared, |_, _| ()).is_err();
            assert_eq!([is_err(Shared::Stretches), is_err(Shared::Blocks)], [is_err(Shared::No); 2], "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn pieces_join_without_a_hole_or_an_overlap(from in 0i64..400, len in 1i64..9_000, minutes in 0i64..200, hours in 0i64..100, closed in 0i64..9_000, behind in 0i64..3) {
            let minute = 60_000;
            let kept = Kept { minutes_from: Timestamp(minutes.max(hours) * HOUR), hours_from: Timestamp(hours * HOUR), closed_to: Timestamp(closed * minute), hours_to: Timestamp(closed * minute - behind * HOUR), days_to: Timestamp(closed * minute - behind * 9 * HOUR), named_to: Position(0) };
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
