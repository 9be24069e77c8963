//! Open slots: the counts of the minutes that are not closed yet, by slot and endpoint, in memory; and the rows that a closed minute leaves.
//!
//! A slot keeps its cells in pages of [`BLOCK`] endpoints, each in the order in which they began, so that a slot that only a few late timings opened costs little, a full one no
//! hashing, and neighbours lie together. A plain cell (nothing failed, no weights, no thresholds) is 48 bytes with up to four buckets; anything else is a whole [`Cell`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::counts::{Counted, Counts, Writer, plain_cell};
use super::reader::Wanted;
use crate::counting::{Cell, Outcome, Span, Tally};
use crate::endpoint::EndpointId;
use crate::histogram::codec::{Error, put_varint, take_varint};
use crate::histogram::listed::Listed;
use crate::histogram::{Digits, Histogram};
use crate::time::{Slot, Tier, TimeRange, Timestamp};

/// A row of history: one endpoint in one period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub endpoint: EndpointId,
    /// All of the period.
    pub cell: Cell,
    /// In the minutes of endpoints with objectives, also each slot's exact counts (offset in the minute from 0), so that burn windows keep
    /// their edges when everything is rebuilt from history.
    pub slots: Vec<(u8, Cell)>,
}

#[derive(Clone, Debug)]
enum OpenCell {
    Plain { sum_us: u64, total: u32, client_errors: u32, buckets: Listed },
    Full(Box<Cell>),
}

impl OpenCell {
    fn to_cell(&self) -> Cell {
        match self {
            Self::Plain { sum_us, client_errors, buckets, .. } => plain_cell(u64::from(*client_errors), *sum_us, Histogram::from_list(buckets.clone())),
            Self::Full(cell) => (**cell).clone(),
        }
    }

    fn full(&mut self) -> &mut Cell {
        if let Self::Plain { .. } = self {
            *self = Self::Full(Box::new(self.to_cell()));
        }
        match self {
            Self::Full(cell) => cell,
            Self::Plain { .. } => unreachable!("made full above"),
        }
    }

    /// Counts, where it stays plain.
    fn add_plain(&mut self, outcome_client_errors: u64, more_us: u64, more: &[(u16, u64)]) -> bool {
        let Self::Plain { sum_us, total, client_errors, buckets } = self else { return false };
        let count: u64 = more.iter().map(|b| b.1).sum();
        let fits = |a: u32, b: u64| u32::try_from(u64::from(a) + b).ok();
        let (Some(new_total), Some(new_client_errors)) = (fits(*total, count), fits(*client_errors, outcome_client_errors)) else { return false };
        if !buckets.has_room(more.len(), u64::from(new_total)) {
            return false;
        }
        for (bucket, count) in more {
            buckets.add(*bucket, *count);
        }
        (*total, *client_errors) = (new_total, new_client_errors);
        *sum_us = sum_us.saturating_add(more_us);
        true
    }

    fn add(&mut self, counted: &Counted<'_>) {
        let added = match counted {
            Counted::One { outcome, us } if !outcome.is_failure() => {
                self.add_plain(u64::from(*outcome == Outcome::ClientError), *us, &[(Digits::Two.bucket_of(*us), 1)])
            }
            Counted::Plain { client_errors, sum_us, buckets } => self.add_plain(*client_errors, *sum_us, buckets),
            _ => false,
        };
        if added {
            return;
        }
        let cell = self.full();
        match counted {
            Counted::One { outcome, us } => cell.record(*outcome, Span::exact(*us), Tally { weight: 1, observed: 1 }),
            Counted::Plain { client_errors, sum_us, buckets } if cell.thresholds.is_empty() && cell.passed.digits() == Digits::Two => {
                cell.add_plain(*client_errors, *sum_us, buckets);
            }
            other => cell.merge(&other.to_cell(&[], Digits::Two)),
        }
    }
}

/// Endpoints that are counted together, and whose cells of a slot lie together.
pub const BLOCK: u32 = 256;

/// The cells of a block of endpoints.
#[derive(Clone, Debug)]
struct Page {
    /// By endpoint: the place of its cell from 1, or 0.
    places: [u16; BLOCK as usize],
    cells: Vec<OpenCell>,
}

impl Page {
    fn cell(&mut self, id: EndpointId) -> &mut OpenCell {
        let place = &mut self.places[(id.0 % BLOCK) as usize];
        if *place == 0 {
            self.cells.push(OpenCell::Plain { sum_us: 0, total: 0, client_errors: 0, buckets: Listed::default() });
            *place = u16::try_from(self.cells.len()).expect("a page has at most one cell for each of its endpoints");
        }
        &mut self.cells[usize::from(*place) - 1]
    }

    fn get(&self, at: u32) -> Option<&OpenCell> {
        self.cells.get(usize::from(self.places[at as usize]).checked_sub(1)?)
    }
}

/// The cells of a slot and of a block of endpoints, to count into.
#[derive(Debug)]
pub struct BlockCells<'a>(&'a mut Page);

impl BlockCells<'_> {
    /// Counts, for an endpoint of the block.
    pub fn add(&mut self, id: EndpointId, counted: &Counted<'_>) {
        self.0.cell(id).add(counted);
    }

    /// Counts a whole cell, likewise.
    pub fn add_cell(&mut self, id: EndpointId, cell: Cell) {
        let to = self.0.cell(id);
        match to {
            OpenCell::Plain { total: 0, .. } => *to = OpenCell::Full(Box::new(cell)),
            _ => to.full().merge(&cell),
        }
    }
}

/// The cells of one slot. A page of them may be shared with a snapshot or a minute that leaves: whoever counts into it then copies it first. Most slots are over by then and
/// nothing is copied.
#[derive(Clone, Debug, Default)]
pub struct SlotCells {
    pages: Vec<Option<Arc<Page>>>,
}

impl SlotCells {
    fn block(&mut self, id: EndpointId) -> BlockCells<'_> {
        let page = (id.0 / BLOCK) as usize;
        if page >= self.pages.len() {
            self.pages.resize(page + 1, None);
        }
        BlockCells(Arc::make_mut(self.pages[page].get_or_insert_with(|| Arc::new(Page { places: [0; BLOCK as usize], cells: Vec::new() }))))
    }

    fn get(&self, id: EndpointId) -> Option<&OpenCell> {
        self.pages.get((id.0 / BLOCK) as usize)?.as_ref()?.get(id.0 % BLOCK)
    }

    /// By endpoint, ascending.
    fn iter(&self) -> impl Iterator<Item = (EndpointId, &OpenCell)> {
        let pages = self.pages.iter().zip((0_u32..).step_by(BLOCK as usize)).filter_map(|(page, first)| Some((page.as_ref()?, first)));
        pages.flat_map(|(page, first)| (0..BLOCK).filter_map(move |at| Some((EndpointId(first + at), page.get(at)?))))
    }
}

/// A closed minute, whose rows leave memory for history.
#[derive(Clone, Debug)]
pub struct ClosedMinute {
    /// Its start.
    pub start: Timestamp,
    slots: Vec<(Slot, SlotCells)>,
    with_rules: Arc<[EndpointId]>,
}

impl ClosedMinute {
    /// Its rows by endpoint, made one after the other.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let pages = self.slots.iter().map(|(_, cells)| cells.pages.len()).max().unwrap_or(0);
        let ids = (0..pages).filter(|page| self.slots.iter().any(|(_, cells)| cells.pages.get(*page).is_some_and(Option::is_some)));
        let ids = ids.filter_map(|page| u32::try_from(page).ok()).flat_map(|page| page * BLOCK..(page + 1) * BLOCK);
        ids.filter_map(|id| self.row(EndpointId(id)))
    }

    fn row(&self, endpoint: EndpointId) -> Option<Row> {
        let keeps_slots = self.with_rules.binary_search(&endpoint).is_ok();
        let mut row: Option<Row> = None;
        for (slot, cell) in self.slots.iter().filter_map(|(slot, cells)| Some((slot, cells.get(endpoint)?))) {
            let cell = cell.to_cell();
            let counts = keeps_slots.then(|| ((slot.0 % 6) as u8, cell.counts_only()));
            match &mut row {
                None => row = Some(Row { endpoint, cell, slots: counts.into_iter().collect() }),
                Some(row) => {
                    row.cell.merge(&cell);
                    row.slots.extend(counts);
                }
            }
        }
        row
    }
}

/// The counts of minutes that are open, or that late data opened again; and of those that are closed and on their way to history.
#[derive(Clone, Debug, Default)]
pub struct OpenSlots {
    slots: BTreeMap<Slot, SlotCells>,
    leaving: Vec<Arc<ClosedMinute>>,
}

impl OpenSlots {
    /// The cells of one slot and of the block of an endpoint.
    pub fn block(&mut self, slot: Slot, id: EndpointId) -> BlockCells<'_> {
        self.slots.entry(slot).or_default().block(id)
    }

    /// The cells there are, by slot and endpoint; those on their way to history too, before the others.
    pub fn cells(&self) -> impl Iterator<Item = (Slot, EndpointId, Cell)> {
        self.all().flat_map(|(slot, cells)| cells.iter().map(move |(id, cell)| (slot, id, cell.to_cell())))
    }

    /// The cells of one endpoint.
    pub fn of(&self, id: EndpointId) -> impl Iterator<Item = (Slot, Cell)> {
        self.all().filter_map(move |(slot, cells)| Some((slot, cells.get(id)?.to_cell())))
    }

    /// Visits the cells of some endpoints in the slots that begin in a range.
    pub fn visit(&self, wanted: &Wanted, range: TimeRange, visit: impl FnMut(Slot, EndpointId, &Cell)) {
        visit_cells(self.all(), wanted, range, visit);
    }

    /// Like [`OpenSlots::visit`], without what is on its way to history.
    pub fn visit_open(&self, wanted: &Wanted, range: TimeRange, visit: impl FnMut(Slot, EndpointId, &Cell)) {
        visit_cells(self.slots.iter().map(|(slot, cells)| (*slot, cells)), wanted, range, visit);
    }

    fn all(&self) -> impl Iterator<Item = (Slot, &SlotCells)> {
        let leaving = self.leaving.iter().flat_map(|minute| minute.slots.iter().map(|(slot, cells)| (*slot, cells)));
        leaving.chain(self.slots.iter().map(|(slot, cells)| (*slot, cells)))
    }

    /// The last slot that holds anything.
    #[must_use]
    pub fn last(&self) -> Option<Slot> {
        self.slots.last_key_value().map(|(slot, _)| *slot)
    }

    /// Takes out all whole minutes up to the end of slot `last`; the slots of the endpoints in `with_rules` (ascending) stay apart in the rows.
    pub fn close_minutes(&mut self, last: Slot, with_rules: &Arc<[EndpointId]>) -> Vec<Arc<ClosedMinute>> {
        let open = self.slots.split_off(&Slot(minutes_end(last)));
        let closed = std::mem::replace(&mut self.slots, open);
        let mut minutes: BTreeMap<Timestamp, Vec<(Slot, SlotCells)>> = BTreeMap::new();
        for (slot, cells) in closed {
            minutes.entry(Tier::Minute.period_of(slot.start())).or_default().push((slot, cells));
        }
        minutes.into_iter().map(|(start, slots)| Arc::new(ClosedMinute { start, slots, with_rules: Arc::clone(with_rules) })).collect()
    }

    /// Keeps a closed minute readable until it is in history ([`OpenSlots::left`]).
    pub fn leaving(&mut self, minute: &Arc<ClosedMinute>) {
        self.leaving.push(Arc::clone(minute));
    }

    /// What is open, alone: as it is now, without a copy of it.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { slots: self.slots.clone(), leaving: Vec::new() }
    }

    /// Takes over the cells of closed minutes that begin at slot `from` or later, of some endpoints; forgets what is older.
    pub fn keep_since(&mut self, from: Slot, closed: &[Arc<ClosedMinute>], wanted: impl Fn(EndpointId) -> bool) {
        self.slots = self.slots.split_off(&from);
        for (slot, cells) in closed.iter().flat_map(|minute| &minute.slots).filter(|(slot, _)| *slot >= from) {
            for (id, cell) in cells.iter().filter(|(id, _)| wanted(*id)) {
                self.block(*slot, id).add_cell(id, cell.to_cell());
            }
        }
    }

    /// A minute is in history and leaves memory.
    pub fn left(&mut self, minute: &Arc<ClosedMinute>) {
        self.leaving.retain(|m| !Arc::ptr_eq(m, minute));
    }
}

fn visit_cells<'a>(slots: impl Iterator<Item = (Slot, &'a SlotCells)>, wanted: &Wanted, range: TimeRange, mut visit: impl FnMut(Slot, EndpointId, &Cell)) {
    for (slot, cells) in slots.filter(|(slot, _)| slot.start() >= range.from && slot.start() < range.to) {
        match wanted {
            Wanted::All => cells.iter().for_each(|(id, cell)| visit(slot, id, &cell.to_cell())),
            Wanted::These(ids) => {
                for (id, cell) in ids.iter().filter_map(|id| Some((*id, cells.get(*id)?))) {
                    visit(slot, id, &cell.to_cell());
                }
            }
        }
    }
}

impl Serialize for OpenSlots {
    /// What is open; what is leaving is in history before a snapshot is.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut writer = Writer::default();
        for (slot, cells) in &self.slots {
            for (id, cell) in cells.iter() {
                match cell {
                    OpenCell::Plain { sum_us, client_errors, buckets, .. } => {
                        writer.plain(*slot, id, u64::from(*client_errors), *sum_us, &buckets.buckets().collect::<Vec<_>>());
                    }
                    OpenCell::Full(cell) => writer.cell(*slot, id, cell),
                }
            }
        }
        serializer.serialize_bytes(writer.finish().bytes())
    }
}

impl<'de> Deserialize<'de> for OpenSlots {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let counts = Counts::decode(Vec::<u8>::deserialize(deserializer)?).map_err(de::Error::custom)?;
        let mut open = Self::default();
        counts.for_each(|slot, id, counted| match counted {
            Counted::Full(cell) => open.block(slot, id).add_cell(id, *cell),
            other => open.block(slot, id).add(id, &other),
        });
        Ok(open)
    }
}

/// The first slot after the last whole minute that has ended with slot `last`.
fn minutes_end(last: Slot) -> u32 {
    (last.0 + 1) / 6 * 6
}

/// Appends a row of history.
pub fn put_row(out: &mut Vec<u8>, row: &Row) {
    row.cell.put(out);
    put_varint(out, row.slots.len() as u64);
    for (offset, cell) in &row.slots {
        out.push(*offset);
        cell.put(out);
    }
}

/// Reads a row of history.
///
/// # Errors
/// When the bytes are something else.
pub fn take_row(endpoint: EndpointId, mut bytes: &[u8]) -> Result<Row, Error> {
    let bytes = &mut bytes;
    let cell = Cell::take(bytes)?;
    let mut slots = Vec::new();
    for _ in 0..take_varint(bytes)? {
        let (&offset, rest) = bytes.split_first().ok_or(Error::Malformed)?;
        *bytes = rest;
        slots.push((offset, Cell::take(bytes)?));
    }
    if bytes.is_empty() { Ok(Row { endpoint, cell, slots }) } else { Err(Error::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell(us: u64) -> Cell {
        let mut cell = Cell::new(&[1_000], Digits::Two);
        cell.record(Outcome::Ok, Span::exact(us), Tally { weight: 1, observed: 1 });
        cell
    }

    #[test]
    fn whole_minutes_close_and_late_slots_close_with_the_next() {
        let mut open = OpenSlots::default();
        for slot in [6, 7, 11, 12, 0] {
            open.block(Slot(slot), EndpointId(3)).add_cell(EndpointId(3), cell(u64::from(slot)));
        }
        let closed = open.close_minutes(Slot(12), &[EndpointId(3)].into());
        let rows = |m: &ClosedMinute| m.rows().map(|r| (r.endpoint.0, r.slots.len())).collect::<Vec<_>>();
        assert_eq!(closed.iter().map(|m| (m.start.0, rows(m))).collect::<Vec<_>>(), [(0, vec![(3, 1)]), (60_000, vec![(3, 3)])]);
        assert_eq!(open.cells().map(|c| c.0).collect::<Vec<_>>(), [Slot(12)]);
        open.leaving(&closed[0]);
        assert_eq!(open.of(EndpointId(3)).map(|c| c.0).collect::<Vec<_>>(), [Slot(0), Slot(12)]);
        open.left(&closed[0]);
        assert_eq!(open.of(EndpointId(3)).count(), 1);
    }

    proptest! {
        #[test]
        fn a_slot_counts_what_cells_count(timings in prop::collection::vec((0u32..700, 0u64..90_000_000, 0u8..4, prop_oneof![8 => 1u64..2, 1 => 2u64..100_000]), 0..600)) {
            let (mut open, mut wanted) = (OpenSlots::default(), BTreeMap::<EndpointId, Cell>::new());
            for (id, us, outcome, count) in timings {
                let (id, outcome) = (EndpointId(id % 5 * 300), Outcome::ALL[usize::from(outcome)]);
                wanted.entry(id).or_default().record(outcome, Span::exact(us), Tally { weight: count, observed: count });
                let (bucket, client_errors) = (Digits::Two.bucket_of(us), if outcome == Outcome::ClientError { count } else { 0 });
                let mut add = |counted| open.block(Slot(9), id).add(id, &counted);
                match count {
                    1 => add(Counted::One { outcome, us }),
                    _ if outcome.is_failure() => {
                        let mut cell = Cell::default();
                        cell.record(outcome, Span::exact(us), Tally { weight: count, observed: count });
                        add(Counted::Full(Box::new(cell)));
                    }
                    _ => add(Counted::Plain { client_errors, sum_us: us * count, buckets: &[(bucket, count)] }),
                }
            }
            let found: Vec<(EndpointId, Cell)> = open.cells().map(|(_, id, cell)| (id, cell)).collect();
            prop_assert_eq!(&found, &wanted.into_iter().collect::<Vec<_>>());
            let kept: OpenSlots = postcard::from_bytes(&postcard::to_stdvec(&open).unwrap()).unwrap();
            prop_assert_eq!(found, kept.cells().map(|(_, id, cell)| (id, cell)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_come_back_as_they_went() {
        let row = Row { endpoint: EndpointId(4), cell: cell(8), slots: vec![(5, cell(8).counts_only())] };
        let mut bytes = Vec::new();
        put_row(&mut bytes, &row);
        assert_eq!(take_row(EndpointId(4), &bytes).unwrap(), row);
    }
}
