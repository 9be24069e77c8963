//! The counts of a frame, as bytes in the order of slot and endpoint: written once when a commit is folded, appended to the log as they are, and read again by whoever takes
//! the frame in, live or later. Nothing in between is built.
//!
//! Layout (numbers are LEB128 varints, but for distances: see `put_distance`):
//! ```text
//! slot · cells · 0 · slot · cells · 0 · …       to the end of the section; cells ascending by endpoint
//! cell = endpoint + 1 (the first) or its distance to the one before + 1
//!        a timing that ended well:  value_us << 1
//!        one that did not:          value_us << 5 | outcome << 3 | 0b011
//!        plain cell:  buckets << 3 | (client errors > 0) << 2 | 0b01 · client errors if any · sum_us less the lowest values of its buckets ·
//!                     for each bucket: distance << 1 | (count > 1) · count - 2 if above 1
//!        full cell:   0b111 · as `Cell::put`
//! ```
//! What is most frequent has the fewest bits: at 400 timings a commit over 100,000 endpoints that is 0.3 bytes of 4.6 a timing. A plain cell has no failure, no weight, no threshold
//! and two digits. One timing keeps its exact value, so thresholds are counted exactly by whoever reads it.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::counting::{Cell, Outcome, Span, Tally};
use crate::endpoint::EndpointId;
use crate::histogram::codec::{Error, put_varint, take_varint};
use crate::histogram::grid::VALUE_US_MAX;
use crate::histogram::{Digits, Histogram};
use crate::time::Slot;

/// The counts of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    bytes: Vec<u8>,
    groups: Vec<Group>,
}

/// Cells of one slot that ascend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    slot: Slot,
    /// Where its cells begin.
    at: usize,
}

/// What came into one slot of one endpoint.
#[derive(Debug, PartialEq)]
pub enum Counted<'a> {
    /// One timing of weight 1.
    One {
        /// How it ended.
        outcome: Outcome,
        /// How long it took, in whole microseconds.
        us: u64,
    },
    /// Timings of weight 1 that did not fail.
    Plain {
        /// How many of them were the client's fault.
        client_errors: u64,
        /// The sum of their durations.
        sum_us: u64,
        /// Counts by bucket of two digits, ascending.
        buckets: &'a [(u16, u64)],
    },
    /// Anything; boxed, because this is handed on by value for each cell and hardly any is one.
    Full(Box<Cell>),
}

impl Counted<'_> {
    /// How many were observed.
    #[must_use]
    pub fn observed(&self) -> u64 {
        match self {
            Self::One { .. } => 1,
            Self::Plain { buckets, .. } => buckets.iter().map(|b| b.1).sum(),
            Self::Full(cell) => cell.total().observed,
        }
    }

    /// Adds its latencies, those of failures too, to a histogram of two digits.
    pub fn add_to(&self, histogram: &mut Histogram) {
        match self {
            Self::One { us, .. } => histogram.record(*us, 1),
            Self::Plain { buckets, .. } => {
                for (bucket, n) in *buckets {
                    histogram.record_bucket(*bucket, *n);
                }
            }
            Self::Full(cell) => cell.add_latencies_to(histogram),
        }
    }

    /// As a cell; one timing is counted exactly at these thresholds, on this grid.
    #[must_use]
    pub fn to_cell(&self, thresholds_us: &[u64], digits: Digits) -> Cell {
        match self {
            Self::One { outcome, us } => {
                let mut cell = Cell::new(thresholds_us, digits);
                cell.record(*outcome, Span::exact(*us), Tally { weight: 1, observed: 1 });
                cell
            }
            Self::Plain { client_errors, sum_us, buckets } => plain_cell(*client_errors, *sum_us, Histogram::from_buckets(Digits::Two, buckets)),
            Self::Full(cell) => (**cell).clone(),
        }
    }
}

/// A cell without failures, weights and thresholds.
#[must_use]
pub fn plain_cell(client_errors: u64, sum_us: u64, passed: Histogram) -> Cell {
    let mut cell = Cell { sum_us, ..Cell::default() };
    let tally = |n: u64| Tally { weight: n, observed: n };
    cell.outcomes[Outcome::Ok as usize] = tally(passed.count().saturating_sub(client_errors));
    cell.outcomes[Outcome::ClientError as usize] = tally(client_errors);
    cell.passed = passed;
    cell
}

const PLAIN: u64 = 0b01;
const CLIENT_ERRORS: u64 = 0b100;
const NOT_WELL: u64 = 0b011;
const FULL: u64 = 0b111;

/// Distances below this take one byte; further first bytes but the last begin two bytes, the last a varint.
const NEAR: u8 = 192;
/// Distances from [`NEAR`] to below this take two bytes.
const FAR: u64 = NEAR as u64 + (0xff - NEAR as u64) * 0x100;

/// Appends a distance. Neighbours in a commit are some hundred endpoints apart where there are many, which LEB128 mostly gives two bytes.
fn put_distance(out: &mut Vec<u8>, distance: u64) {
    if distance < u64::from(NEAR) {
        out.push(distance.to_le_bytes()[0]);
    } else if distance < FAR {
        let [low, high, ..] = (distance - u64::from(NEAR)).to_le_bytes();
        out.extend_from_slice(&[NEAR + high, low]);
    } else {
        out.push(0xff);
        put_varint(out, distance - FAR);
    }
}

#[inline]
fn take_distance(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut take_byte = || {
        let (&byte, rest) = bytes.split_first().ok_or(Error::Malformed)?;
        *bytes = rest;
        Ok(byte)
    };
    let first = take_byte()?;
    if first < NEAR {
        return Ok(u64::from(first));
    }
    if first == 0xff {
        return take_varint(bytes)?.checked_add(FAR).ok_or(Error::Malformed);
    }
    Ok(u64::from(NEAR) + u64::from(u16::from_le_bytes([take_byte()?, first - NEAR])))
}

/// Writes [`Counts`].
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    groups: Vec<Group>,
    open: Option<(Slot, u32)>,
}

impl Writer {
    fn start(&mut self, slot: Slot, id: EndpointId) {
        match self.open {
            Some((open, before)) if open == slot && before <= id.0 => put_distance(&mut self.bytes, u64::from(id.0 - before) + 1),
            open => {
                if open.is_some() {
                    self.bytes.push(0);
                }
                put_varint(&mut self.bytes, u64::from(slot.0));
                self.groups.push(Group { slot, at: self.bytes.len() });
                put_distance(&mut self.bytes, u64::from(id.0) + 1);
            }
        }
        self.open = Some((slot, id.0));
    }

    /// Adds one timing of weight 1.
    pub fn one(&mut self, slot: Slot, id: EndpointId, outcome: Outcome, us: u64) {
        self.start(slot, id);
        let head = if outcome == Outcome::Ok { us << 1 } else { us << 5 | (outcome as u64) << 3 | NOT_WELL };
        put_varint(&mut self.bytes, head);
    }

    /// Adds a plain cell.
    pub fn plain(&mut self, slot: Slot, id: EndpointId, client_errors: u64, sum_us: u64, buckets: &[(u16, u64)]) {
        self.start(slot, id);
        let has_client_errors = if client_errors > 0 { CLIENT_ERRORS } else { 0 };
        put_varint(&mut self.bytes, (buckets.len() as u64) << 3 | has_client_errors | PLAIN);
        if client_errors > 0 {
            put_varint(&mut self.bytes, client_errors);
        }
        put_varint(&mut self.bytes, sum_us.wrapping_sub(lowest_sum(buckets)));
        let mut before = 0;
        for &(bucket, count) in buckets {
            put_varint(&mut self.bytes, u64::from(bucket - before) << 1 | u64::from(count > 1));
            if count > 1 {
                put_varint(&mut self.bytes, count - 2);
            }
            before = bucket;
        }
    }

    /// Adds any cell, as a plain one where it is one.
    pub fn cell(&mut self, slot: Slot, id: EndpointId, cell: &Cell) {
        if is_plain(cell) {
            let buckets: Vec<_> = cell.passed.buckets().collect();
            self.plain(slot, id, cell.outcomes[Outcome::ClientError as usize].weight, cell.sum_us, &buckets);
        } else {
            self.full(slot, id, cell);
        }
    }

    fn full(&mut self, slot: Slot, id: EndpointId, cell: &Cell) {
        self.start(slot, id);
        put_varint(&mut self.bytes, FULL);
        cell.put(&mut self.bytes);
    }

    /// What was written.
    #[must_use]
    pub fn finish(mut self) -> Counts {
        if self.open.is_some() {
            self.bytes.push(0);
        }
        Counts { bytes: self.bytes, groups: self.groups }
    }
}

fn is_plain(cell: &Cell) -> bool {
    let counted = || cell.passed.buckets().try_fold(0_u64, |sum, b| sum.checked_add(b.1));
    cell.thresholds.is_empty()
        && cell.failures() == Tally::default()
        && cell.outcomes.iter().all(|t| t.weight == t.observed)
        && (cell.passed.digits(), cell.failed.digits()) == (Digits::Two, Digits::Two)
        && counted() == Some(cell.total().weight)
}

fn lowest_sum(buckets: &[(u16, u64)]) -> u64 {
    buckets.iter().fold(0, |sum, (bucket, count)| sum.wrapping_add(Digits::Two.lowest_us(*bucket).wrapping_mul(*count)))
}

impl Counts {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Counts whose bytes were read, checked to the end.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, Error> {
        let (mut groups, mut rest, mut buckets) = (Vec::new(), &bytes[..], Vec::new());
        while !rest.is_empty() {
            let slot = Slot(u32::try_from(take_varint(&mut rest)?).map_err(|_| Error::Malformed)?);
            groups.push(Group { slot, at: bytes.len() - rest.len() });
            let mut next = first_endpoint(&mut rest)?;
            while let Some(id) = next {
                next = take_cell(&mut rest, id, &mut buckets)?.1;
            }
        }
        Ok(Self { bytes, groups })
    }

    /// The cells by groups of one slot, all still to be visited.
    ///
    /// # Panics
    /// Never: the bytes were written here or checked by [`Counts::decode`].
    pub fn groups(&self) -> impl Iterator<Item = Cells> {
        self.groups.iter().map(|g| {
            let mut rest = &self.bytes[g.at..];
            let next = first_endpoint(&mut rest).expect("the bytes were checked");
            Cells { slot: g.slot, at: self.bytes.len() - rest.len(), next }
        })
    }

    /// Visits each cell, by slot and endpoint as written.
    ///
    /// # Panics
    /// Never: the bytes were written here or checked by [`Counts::decode`].
    pub fn for_each(&self, mut visit: impl FnMut(Slot, EndpointId, Counted<'_>)) {
        let mut buckets = Vec::new();
        for mut cells in self.groups() {
            let slot = cells.slot;
            cells.visit_below(self, u64::MAX, &mut buckets, &mut |id, counted| visit(slot, id, counted));
        }
    }
}

/// Cells of one slot, ascending by endpoint, that are still to be visited.
#[derive(Clone, Copy, Debug)]
pub struct Cells {
    /// Of which slot.
    pub slot: Slot,
    /// Where the next one stands, behind its endpoint.
    at: usize,
    next: Option<EndpointId>,
}

impl Cells {
    /// Whose the next one is.
    #[must_use]
    pub fn next(&self) -> Option<EndpointId> {
        self.next
    }

    /// Visits those of endpoints below `end`; `counts` is where they are, `buckets` room to work in. Tells how many bytes that was.
    ///
    /// # Panics
    /// Never: the bytes were written here or checked by [`Counts::decode`].
    pub fn visit_below(&mut self, counts: &Counts, end: u64, buckets: &mut Vec<(u16, u64)>, visit: &mut impl FnMut(EndpointId, Counted<'_>)) -> usize {
        let mut rest = &counts.bytes[self.at..];
        while let Some(id) = self.next.filter(|id| u64::from(id.0) < end) {
            let (counted, next) = take_cell(&mut rest, id, buckets).expect("the bytes were checked");
            self.next = next;
            visit(id, counted);
        }
        let before = std::mem::replace(&mut self.at, counts.bytes.len() - rest.len());
        self.at - before
    }
}

fn first_endpoint(bytes: &mut &[u8]) -> Result<Option<EndpointId>, Error> {
    endpoint_after(bytes, EndpointId(0))
}

/// The endpoint of the next cell; `None` at the end of the group.
fn endpoint_after(bytes: &mut &[u8], before: EndpointId) -> Result<Option<EndpointId>, Error> {
    let Some(distance) = take_distance(bytes)?.checked_sub(1) else { return Ok(None) };
    let id = u64::from(before.0).checked_add(distance).and_then(|id| u32::try_from(id).ok()).ok_or(Error::Malformed)?;
    Ok(Some(EndpointId(id)))
}

/// A cell, and the endpoint of the next one.
#[inline]
fn take_cell<'b>(bytes: &mut &[u8], id: EndpointId, buckets: &'b mut Vec<(u16, u64)>) -> Result<(Counted<'b>, Option<EndpointId>), Error> {
    let head = take_varint(bytes)?;
    let counted = if head & 1 == 0 {
        Counted::One { outcome: Outcome::Ok, us: head >> 1 }
    } else if head & 3 == PLAIN {
        let client_errors = if head & CLIENT_ERRORS == 0 { 0 } else { take_varint(bytes)? };
        let more_us = take_varint(bytes)?;
        take_buckets(bytes, head >> 3, buckets)?;
        Counted::Plain { client_errors, sum_us: lowest_sum(buckets).wrapping_add(more_us), buckets }
    } else if head & 7 == NOT_WELL {
        Counted::One { outcome: Outcome::ALL[(head >> 3 & 3) as usize], us: head >> 5 }
    } else if head == FULL {
        Counted::Full(Box::new(Cell::take(bytes)?))
    } else {
        return Err(Error::Malformed);
    };
    Ok((counted, endpoint_after(bytes, id)?))
}

fn take_buckets(bytes: &mut &[u8], len: u64, into: &mut Vec<(u16, u64)>) -> Result<(), Error> {
    into.clear();
    let mut before = 0_u64;
    for i in 0..len {
        let head = take_varint(bytes)?;
        let count = if head & 1 == 1 { take_varint(bytes)?.checked_add(2).ok_or(Error::Malformed)? } else { 1 };
        before = before.checked_add(head >> 1).filter(|_| i == 0 || head > 1).ok_or(Error::Malformed)?;
        let bucket = u16::try_from(before).ok().filter(|b| *b <= Digits::Two.bucket_of(u64::MAX)).ok_or(Error::Malformed)?;
        into.push((bucket, count));
    }
    Ok(())
}

/// A cell of an export.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Exported {
    One { outcome: Outcome, us: u64 },
    Cell(Cell),
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut cells = Vec::new();
        self.for_each(|slot, id, counted| {
            let exported = match counted {
                Counted::One { outcome, us } => Exported::One { outcome, us },
                other => Exported::Cell(other.to_cell(&[], Digits::Two)),
            };
            cells.push((id, slot, exported));
        });
        cells.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut writer = Writer::default();
        for (id, slot, exported) in Vec::<(EndpointId, Slot, Exported)>::deserialize(deserializer)? {
            match exported {
                Exported::One { us, .. } if us > VALUE_US_MAX => return Err(de::Error::custom(format!("`us` is {us}, expected {VALUE_US_MAX} at most"))),
                Exported::One { outcome, us } => writer.one(slot, id, outcome, us),
                Exported::Cell(cell) => writer.cell(slot, id, &cell),
            }
        }
        Ok(writer.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Written = (Slot, EndpointId, Cell);

    fn cells(counts: &Counts) -> Vec<Written> {
        let mut cells = Vec::new();
        counts.for_each(|slot, id, counted| cells.push((slot, id, counted.to_cell(&[], Digits::Two))));
        cells
    }

    proptest! {
        #[test]
        fn cells_come_back_as_they_went(
            items in prop::collection::vec((0u32..3, 0u32..400, prop::collection::vec((0u64..90_000_000, 0u8..4, 1u64..3), 1..8)), 0..40)
        ) {
            let (mut writer, mut wanted) = (Writer::default(), Vec::new());
            for (slot, id, timings) in items {
                let mut cell = Cell::default();
                for (us, outcome, weight) in &timings {
                    cell.record(Outcome::ALL[usize::from(*outcome)], Span::exact(*us), Tally { weight: *weight, observed: 1 });
                }
                let (slot, id) = (Slot(179_000_000 + slot), EndpointId(id));
                match timings.as_slice() {
                    [(us, outcome, 1)] => writer.one(slot, id, Outcome::ALL[usize::from(*outcome)], *us),
                    _ => writer.cell(slot, id, &cell),
                }
                wanted.push((slot, id, cell));
            }
            let counts = writer.finish();
            prop_assert_eq!(&cells(&counts), &wanted);
            prop_assert_eq!(Counts::decode(counts.bytes().to_vec()).unwrap(), counts.clone());
            let json = serde_json::to_string(&counts).unwrap();
            prop_assert_eq!(cells(&serde_json::from_str::<Counts>(&json).unwrap()), wanted);
            for cut in 0..counts.bytes().len() {
                // A cut between two groups of one slot is a shorter section; any other is refused.
                if let Ok(shorter) = Counts::decode(counts.bytes()[..cut].to_vec()) {
                    prop_assert!(cells(&shorter).len() < cells(&counts).len());
                }
            }
        }

        #[test]
        fn no_bytes_bring_it_down(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            drop(Counts::decode(bytes));
        }
    }

    #[test]
    fn distances_come_back_in_one_two_or_more_bytes() {
        let bytes_of = |distance| {
            let mut bytes = Vec::new();
            put_distance(&mut bytes, distance);
            assert_eq!(take_distance(&mut &bytes[..]).unwrap(), distance);
            for cut in 0..bytes.len() {
                assert!(take_distance(&mut &bytes[..cut]).is_err());
            }
            bytes.len()
        };
        assert_eq!([0, 1, 191, 192, 447, 448, 16_319, 16_320, 16_447, 16_448, u64::MAX].map(bytes_of), [1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 11]);
        assert!(take_distance(&mut &[0xff; 12][..]).is_err());
    }

    #[test]
    fn a_timing_of_a_quiet_endpoint_takes_four_bytes() {
        let mut writer = Writer::default();
        for id in 0..1_000 {
            writer.one(Slot(179_000_000), EndpointId(id * 100), Outcome::Ok, 182_400);
        }
        assert!(writer.finish().bytes().len() < 4 * 1_000 + 10);
    }
}
