//! Batches turned into counts: each timing finds its endpoint, old, new or beyond the limits, and what came of one endpoint in one slot is one cell of the frame.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::Arc;

use super::{Delta, Machine};
use crate::counting::{Cell, Outcome, Span, Tally};
use crate::endpoint::{EndpointId, EndpointKey, OVERFLOW_ROUTE};
use crate::histogram::Digits;
use crate::history::catalogue::{Entry, Marked, Place};
use crate::history::counts::Writer;
use crate::history::creation::{Creation, May};
use crate::history::exemplars::is_slower;
use crate::ingest::packed::{self, Packed};
use crate::ingest::{Batch, Detail, Fate, Item, Report, Whose};
use crate::time::{Slot, Tier, Timestamp};

/// Where the counts of a batch's key go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination {
    id: EndpointId,
    overflow: bool,
}

/// Failures of a cell that are written one by one, so that the rest of it stays plain; and as many as one in so many of its timings.
const FAILURES_APART_MAX: usize = 4;
/// See [`FAILURES_APART_MAX`].
const FAILURES_APART_SHARE: usize = 16;

/// So few timings of an endpoint with thresholds are written one by one: each keeps its value, and together they are shorter than a whole cell.
const THRESHOLDS_APART_MAX: usize = 4;

struct Folding<'m> {
    machine: &'m Machine,
    delta: Delta,
    new: BTreeMap<EndpointKey, EndpointId>,
    /// New endpoints by service.
    pending: BTreeMap<String, usize>,
    creation: Option<&'m mut Creation>,
    counts: Writer,
    /// By endpoint, whether it failed, and minute: where among the details the slowest timing is that names its trace and nothing else.
    traces: HashMap<(EndpointId, bool, Timestamp), usize>,
}

/// From so many timings on a cell is counted in an array of all buckets; fewer are sorted.
const COUNTED_MIN: usize = 256;

/// Room to count the timings of a plain cell in.
#[derive(Default)]
struct PlainCounts {
    /// By bucket, all 0 between two cells.
    counts: Vec<u32>,
    buckets: Vec<(u16, u64)>,
    failures: Vec<Packed>,
}

impl PlainCounts {
    /// Writes a cell: its failures one by one, then what did not fail.
    fn write(&mut self, slot: Slot, id: EndpointId, cell: &mut [Packed], to: &mut Writer) {
        self.buckets.clear();
        self.failures.clear();
        let is_counted = cell.len() >= COUNTED_MIN;
        if is_counted {
            self.counts.resize(usize::from(Digits::Two.bucket_of(u64::MAX)) + 1, 0);
        } else {
            cell.sort_unstable();
        }
        let (mut client_errors, mut sum_us, mut lowest, mut highest) = (0, 0, u16::MAX, 0);
        for p in &*cell {
            if p.outcome().is_failure() {
                self.failures.push(*p);
                continue;
            }
            client_errors += u64::from(p.outcome() == Outcome::ClientError);
            sum_us += p.us();
            let bucket = Digits::Two.bucket_of(p.us());
            if is_counted {
                self.counts[usize::from(bucket)] += 1;
                (lowest, highest) = (lowest.min(bucket), highest.max(bucket));
                continue;
            }
            match self.buckets.last_mut() {
                Some(last) if last.0 == bucket => last.1 += 1,
                _ => self.buckets.push((bucket, 1)),
            }
        }
        if is_counted && lowest <= highest {
            for (bucket, count) in (lowest..=highest).zip(&mut self.counts[usize::from(lowest)..]).filter(|(_, count)| **count > 0) {
                self.buckets.push((bucket, u64::from(std::mem::take(count))));
            }
        }
        self.failures.sort_unstable();
        for one in &self.failures {
            to.one(slot, id, one.outcome(), one.us());
        }
        if !self.buckets.is_empty() {
            to.plain(slot, id, client_errors, sum_us, &self.buckets);
        }
    }
}

impl Machine {
    /// Turns batches into counts.
    #[must_use]
    pub fn fold(&self, batches: &[&Batch]) -> Delta {
        self.fold_within(batches, None)
    }

    /// Likewise, with a limit on how fast new endpoints may come.
    #[must_use]
    pub fn fold_within(&self, batches: &[&Batch], creation: Option<&mut Creation>) -> Delta {
        let mut folding = Folding {
            machine: self,
            delta: Delta::default(),
            new: BTreeMap::new(),
            pending: BTreeMap::new(),
            creation,
            counts: Writer::default(),
            traces: HashMap::new(),
        };
        let mut timings: Vec<Packed> = Vec::with_capacity(batches.iter().map(|b| b.packed.len()).sum());
        let mut items: Vec<(Slot, EndpointId, Item)> = Vec::new();
        for batch in batches {
            timings.extend_from_slice(&batch.packed);
            let mut places = vec![None; batch.keys.len()];
            for item in &batch.items {
                let to = folding.destination(batch, item.whose, &mut places);
                let fate = if to.overflow { Fate::OverLimit } else { self.fate_in(item.slot) };
                folding.delta.fates[fate as usize] += item.tally.observed;
                items.push((item.slot, to.id, *item));
            }
            for detail in &batch.details {
                let to = folding.destination(batch, detail.endpoint, &mut places);
                folding.add_detail(to.id, detail);
            }
            for (total, refused) in folding.delta.fates.iter_mut().zip(&batch.refused) {
                *total += refused;
            }
            if !batch.in_flight.is_empty() {
                let report = Report { sender: batch.sender.clone(), at: batch.read_in.start(), running: batch.in_flight.clone() };
                folding.delta.in_flight.push(report);
            }
        }
        folding.write_packed(&mut packed::group(timings), batches.iter().map(|b| b.read_in).max().unwrap_or_default());
        items.sort_unstable_by_key(|i| (i.0, i.1));
        folding.write_items(&items);
        folding.delta.counts = folding.counts.finish();
        folding.delta
    }
}

impl Folding<'_> {
    /// Adds what a timing says beside its duration. One that only names its trace has a place in the log if it is the slowest of its minute, as far as is known:
    /// no other can become an exemplar, and each takes as much room as ten timings.
    fn add_detail(&mut self, endpoint: EndpointId, detail: &Detail<Whose>) {
        let owned = |of: &Detail<Whose>| {
            let Detail { ts, outcome, duration_us, trace_id, actor, key, starts, .. } = of.clone();
            Detail { endpoint, ts, outcome, duration_us, trace_id, actor, key, starts }
        };
        if detail.is_trace_alone() {
            if !self.machine.exemplars.wants(endpoint, detail, self.machine.is_counted_as_critical(endpoint)) {
                return;
            }
            match self.traces.entry((endpoint, detail.outcome.is_failure(), Tier::Minute.period_of(detail.ts))) {
                hash_map::Entry::Occupied(place) => {
                    let slowest = &mut self.delta.details[*place.get()];
                    if is_slower(detail, slowest) {
                        *slowest = owned(detail);
                    }
                    return;
                }
                hash_map::Entry::Vacant(place) => drop(place.insert(self.delta.details.len())),
            }
        }
        self.delta.details.push(owned(detail));
    }

    /// Writes grouped timings, those of one slot and endpoint as one cell.
    fn write_packed(&mut self, timings: &mut [Packed], near: Slot) {
        let mut plain = PlainCounts::default();
        for cell in timings.chunk_by_mut(|a, b| a.place() == b.place()) {
            let first = cell[0];
            let (slot, id) = (first.slot(near), first.endpoint());
            self.delta.fates[self.machine.fate_in(slot) as usize] += cell.len() as u64;
            if let [one] = cell {
                self.counts.one(slot, id, one.outcome(), one.us());
                continue;
            }
            let is_counting = self.machine.counting.get(id.0 as usize).is_some_and(Option::is_some);
            let failures = cell.iter().filter(|p| p.outcome().is_failure()).count();
            if is_counting && cell.len() <= THRESHOLDS_APART_MAX {
                cell.sort_unstable();
                for one in cell {
                    self.counts.one(slot, id, one.outcome(), one.us());
                }
            } else if is_counting || failures > FAILURES_APART_MAX.max(cell.len() / FAILURES_APART_SHARE) {
                cell.sort_unstable();
                let mut full = self.new_cell(id);
                for alike in cell.chunk_by(|a, b| a == b) {
                    let n = alike.len() as u64;
                    full.record(alike[0].outcome(), Span::exact(alike[0].us()), Tally { weight: n, observed: n });
                }
                self.counts.cell(slot, id, &full);
            } else {
                plain.write(slot, id, cell, &mut self.counts);
            }
        }
    }

    /// Writes what is not packed, sorted by slot and endpoint.
    fn write_items(&mut self, items: &[(Slot, EndpointId, Item)]) {
        for cell in items.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (slot, id, _) = cell[0];
            let mut full = self.new_cell(id);
            for (_, _, item) in cell {
                full.record(item.outcome, item.span, item.tally);
            }
            self.counts.cell(slot, id, &full);
        }
    }

    fn destination(&mut self, batch: &Batch, whose: Whose, places: &mut [Option<Destination>]) -> Destination {
        let key = match whose {
            Whose::Known(id) => return Destination { id, overflow: false },
            Whose::Key(key) => key as usize,
        };
        if let Some(known) = places[key] {
            return known;
        }
        let (key_of, marked) = &batch.keys[key];
        let destination = self.place(key_of, *marked);
        places[key] = Some(destination);
        destination
    }

    fn place(&mut self, key: &EndpointKey, marked: bool) -> Destination {
        if let Some(id) = self.new.get(key) {
            return Destination { id: *id, overflow: false };
        }
        let m = self.machine;
        let pending = self.pending.get(&key.service).copied().unwrap_or(0);
        let critical = m.judge.promises().is_critical(key);
        let mut place = m.catalogue.place(key, critical, &m.limits, pending, self.delta.endpoints.len());
        if let (Place::New(new), Some(creation)) = (&place, &mut self.creation)
            && !critical
            && new.route != OVERFLOW_ROUTE
        {
            match creation.take(&new.service) {
                May::Come => {}
                May::TooFast => place = Place::Overflow(EndpointKey::overflow(&new.service)),
                // A service that is not known would be one more.
                May::Closed => {
                    let service = if m.catalogue.has_service(&new.service) { &new.service } else { OVERFLOW_ROUTE };
                    place = Place::Overflow(EndpointKey::overflow(service));
                }
            }
        }
        match place {
            Place::Known(id) => Destination { id, overflow: false },
            Place::New(key) => Destination { id: self.add(key, marked), overflow: false },
            Place::Overflow(key) => {
                let known = m.catalogue.get(key.as_ref()).or_else(|| self.new.get(&key).copied());
                Destination { id: known.unwrap_or_else(|| self.add(key, false)), overflow: true }
            }
        }
    }

    fn add(&mut self, key: EndpointKey, marked: bool) -> EndpointId {
        let next = self.machine.catalogue.next_id().0 + u32::try_from(self.delta.endpoints.len()).expect("limits are far below u32");
        let marked = marked && self.machine.catalogue.may_mark(&key.service, &self.machine.limits);
        let entry = Entry { key: Arc::new(key.clone()), marked: if marked { Marked::Critical } else { Marked::No } };
        *self.pending.entry(key.service.clone()).or_default() += 1;
        self.delta.endpoints.push(entry);
        self.new.insert(key, EndpointId(next));
        EndpointId(next)
    }

    fn new_cell(&self, id: EndpointId) -> Cell {
        let known = self.machine.catalogue.entries().len();
        let counting = match (id.0 as usize).checked_sub(known) {
            None => self.machine.counting[id.0 as usize].clone(),
            Some(new) => self.machine.counting_of(&self.delta.endpoints[new]),
        };
        counting.map_or_else(Cell::default, |c| Cell::new(&c.thresholds_us, c.digits))
    }
}
