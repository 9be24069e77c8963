//! Open slots: the counts of the minutes that are not closed yet, by slot and endpoint, in memory; and the rows that a closed minute leaves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reader::Wanted;
use crate::counting::Cell;
use crate::endpoint::EndpointId;
use crate::histogram::codec::{Error, put_varint, take_varint};
use crate::time::{SLOT_MS, Slot, Tier, TimeRange, Timestamp};

/// What came into one slot of one endpoint.
pub type SlotCell = (EndpointId, Slot, Cell);

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

/// The rows of a closed minute, by endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedMinute {
    /// Its start.
    pub start: Timestamp,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// The counts of minutes that are open, or that late data opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSlots {
    cells: BTreeMap<(Slot, EndpointId), Cell>,
}

impl OpenSlots {
    /// Counts into a slot.
    pub fn add(&mut self, id: EndpointId, slot: Slot, cell: &Cell) {
        match self.cells.entry((slot, id)) {
            std::collections::btree_map::Entry::Vacant(e) => {
                e.insert(cell.clone());
            }
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut().merge(cell),
        }
    }

    /// The cells there are.
    pub fn cells(&self) -> impl Iterator<Item = (Slot, EndpointId, &Cell)> {
        self.cells.iter().map(|((slot, id), cell)| (*slot, *id, cell))
    }

    /// Visits the cells of some endpoints in the slots that begin in a range.
    pub fn visit(&self, wanted: &Wanted, range: TimeRange, mut visit: impl FnMut(Slot, EndpointId, &Cell)) {
        let first_of = |at: Timestamp| Slot(u32::try_from(at.0.max(0).saturating_add(SLOT_MS - 1) / SLOT_MS).unwrap_or(u32::MAX));
        let (mut at, end) = (first_of(range.from), first_of(range.to));
        while let Some((&(slot, _), _)) = self.cells.range((at, EndpointId(0))..(end.max(at), EndpointId(0))).next() {
            match wanted {
                Wanted::All => {
                    for ((_, id), cell) in self.cells.range((slot, EndpointId(0))..=(slot, EndpointId(u32::MAX))) {
                        visit(slot, *id, cell);
                    }
                }
                Wanted::These(ids) => {
                    for id in ids {
                        if let Some(cell) = self.cells.get(&(slot, *id)) {
                            visit(slot, *id, cell);
                        }
                    }
                }
            }
            at = slot.next();
        }
    }

    /// Whether the minutes up to the end of `last` hold anything.
    #[must_use]
    pub fn has_ended(&self, last: Slot) -> bool {
        self.cells.first_key_value().is_some_and(|((slot, _), _)| slot.0 < minutes_end(last))
    }

    /// Takes out all whole minutes up to the end of slot `last`; `keeps_slots` says whose slots stay apart in the rows.
    pub fn close_minutes(&mut self, last: Slot, keeps_slots: impl Fn(EndpointId) -> bool) -> Vec<ClosedMinute> {
        let end = minutes_end(last);
        let open = self.cells.split_off(&(Slot(end), EndpointId(0)));
        let closed = std::mem::replace(&mut self.cells, open);
        let mut minutes: BTreeMap<Timestamp, BTreeMap<EndpointId, Row>> = BTreeMap::new();
        for ((slot, id), cell) in closed {
            let start = Tier::Minute.period_of(slot.start());
            let rows = minutes.entry(start).or_default();
            let row = rows.entry(id).or_insert_with(|| Row { endpoint: id, cell: Cell::default(), slots: Vec::new() });
            if keeps_slots(id) {
                row.slots.push(((slot.0 % 6) as u8, cell.counts_only()));
            }
            if row.cell.is_empty() { row.cell = cell } else { row.cell.merge(&cell) }
        }
        minutes.into_iter().map(|(start, rows)| ClosedMinute { start, rows: rows.into_values().collect() }).collect()
    }
}

/// The first slot after the last whole minute that has ended with slot `last`.
fn minutes_end(last: Slot) -> u32 {
    (last.0 + 1) / 6 * 6
}

/// The bytes of counts in the log: cells sorted by endpoint and slot, each with the gaps to the one before.
#[must_use]
pub fn encode(cells: &[SlotCell]) -> Vec<u8> {
    let mut out = Vec::with_capacity(cells.len() * 24);
    put_varint(&mut out, cells.len() as u64);
    let mut before = 0;
    for (id, slot, cell) in cells {
        debug_assert!(id.0 >= before, "cells are sorted by endpoint");
        put_varint(&mut out, u64::from(id.0 - before));
        put_varint(&mut out, u64::from(slot.0));
        cell.put(&mut out);
        before = id.0;
    }
    out
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// When the bytes are something else.
pub fn decode(mut bytes: &[u8]) -> Result<Vec<SlotCell>, Error> {
    let bytes = &mut bytes;
    let (mut cells, mut before) = (Vec::new(), 0_u64);
    for _ in 0..take_varint(bytes)? {
        before += take_varint(bytes)?;
        let id = EndpointId(u32::try_from(before).map_err(|_| Error::Malformed)?);
        let slot = Slot(u32::try_from(take_varint(bytes)?).map_err(|_| Error::Malformed)?);
        cells.push((id, slot, Cell::take(bytes)?));
    }
    if bytes.is_empty() { Ok(cells) } else { Err(Error::Malformed) }
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
    use crate::counting::{Outcome, Span, Tally};
    use crate::histogram::Digits;

    fn cell(us: u64) -> Cell {
        let mut cell = Cell::new(&[1_000], Digits::Two);
        cell.record(Outcome::Ok, Span::exact(us), Tally { weight: 1, observed: 1 });
        cell
    }

    #[test]
    fn whole_minutes_close_and_late_slots_close_with_the_next() {
        let mut open = OpenSlots::default();
        for slot in [6, 7, 11, 12, 0] {
            open.add(EndpointId(3), Slot(slot), &cell(u64::from(slot)));
        }
        assert!(open.has_ended(Slot(11)));
        let seen = |wanted: &Wanted, from: i64, to: i64| {
            let mut slots = Vec::new();
            open.visit(wanted, TimeRange { from: Timestamp(from), to: Timestamp(to) }, |slot, _, _| slots.push(slot.0));
            slots
        };
        let (one, other) = (Wanted::These(vec![EndpointId(1), EndpointId(3)]), Wanted::These(vec![EndpointId(4)]));
        assert_eq!(seen(&Wanted::All, 0, i64::MAX), [0, 6, 7, 11, 12]);
        assert_eq!(seen(&one, 60_001, 120_000), [7, 11]);
        assert_eq!((seen(&other, 0, i64::MAX), seen(&one, 90_000, 80_000)), (vec![], vec![]));
        let closed = open.close_minutes(Slot(12), |_| true);
        assert_eq!(closed.iter().map(|m| (m.start.0, m.rows[0].slots.len())).collect::<Vec<_>>(), [(0, 1), (60_000, 3)]);
        assert_eq!(open.cells().map(|c| c.0).collect::<Vec<_>>(), [Slot(12)]);
        assert!(!open.has_ended(Slot(12)));
    }

    #[test]
    fn counts_and_rows_come_back_as_they_went() {
        let cells = vec![(EndpointId(1), Slot(9), cell(5)), (EndpointId(1), Slot(10), cell(6)), (EndpointId(7), Slot(2), cell(7))];
        assert_eq!(decode(&encode(&cells)).unwrap(), cells);
        let row = Row { endpoint: EndpointId(4), cell: cell(8), slots: vec![(5, cell(8).counts_only())] };
        let mut bytes = Vec::new();
        put_row(&mut bytes, &row);
        assert_eq!(take_row(EndpointId(4), &bytes).unwrap(), row);
        assert!(decode(&[5]).is_err());
    }
}
