//! The state that live and replay drive alike: catalogue, open slots, totals, batch keys and the judge.
//!
//! Everything that changes it is a [`Delta`], which is one frame of the log. [`Machine::fold`] and [`Machine::close`] read and answer with a delta; [`Machine::apply`] is the
//! only mutation, in live, recovery and replay. So a frame's position is its order, and "before or after the slot was closed" is a fact of the log, not of a race.
//!
//! The first design had a commit thread and an aggregation thread that apply one log at two paces. One owner makes the order of the log the order of the decisions by
//! construction. What would delay an answer is elsewhere instead: handlers parse and look endpoints up, history is written by a thread of its own, and closing a minute takes its
//! cells out as they are.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::counting::{Cell, Outcome, Span, Tally};
use crate::detect::quarters::Quarters;
use crate::endpoint::{EndpointId, EndpointKey, OVERFLOW_ROUTE};
use crate::histogram::Digits;
use crate::history::catalogue::{Catalogue, Entry, Limits, Marked, Place};
use crate::history::counts::{Counted, Counts, Writer};
use crate::history::creation::{Creation, May};
use crate::history::exemplars::{Exemplar, Exemplars, is_slower};
use crate::history::gathered::{Block, Gathered};
use crate::history::open_slots::{ClosedMinute, OpenSlots};
use crate::history::reader::Wanted;
use crate::history::totals::{Sums, Total};
use crate::incident::{Class, Found, Grounds, Incident, SlowestTrace, Transition};
use crate::ingest::batch_keys::{BatchKeys, Committed, Identity, Senders};
use crate::ingest::packed::Packed;
use crate::ingest::{Batch, Detail, Fate, Fates, Item, Report, Whose};
use crate::judge::{self, Judge, Promises, Record};
use crate::log::record::{Frame, Kind, Position, Section};
use crate::objective::Goal;
use crate::time::{SLOT_MS, Slot, Tier, TimeRange, Timestamp};
use crate::works::in_flight::{self, Running};
use crate::works::presence::{self, Presence};
use crate::works::promised::Promised;

/// Recent latency is that of the last minute judged and of what came since.
const RECENT_SLOTS: u32 = 6;

/// An incident's trace may be so much older than its opening: what it rests on is.
const TRACE_BEFORE_MS: i64 = 3_600_000;

/// Kinds of endpoints that requests in flight may be of: their reports do not say.
const RUNNING_KINDS: [&str; 3] = ["http", "rpc", "job"];

/// One frame's worth of change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// New endpoints; they get the next numbers in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Entry>,
    /// Counts by slot and endpoint.
    #[serde(default, skip_serializing_if = "Counts::is_empty", rename = "cells")]
    pub counts: Counts,
    /// The batches whose counts these are, as far as they have a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<Committed>,
    /// What single timings say beside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Detail>,
    /// What still runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_flight: Vec<Report>,
    /// Timings by fate.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fates: Fates,
    /// Decisions, and what they depend on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<Record>,
    /// In the archive only: what stood after this frame.
    #[serde(skip)]
    pub carried: Option<Box<Carried>>,
}

/// What stands at the end of an archived segment and cannot be told from what the archive keeps of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    judged_to: Option<Slot>,
    fates: Fates,
    senders: Senders,
    in_flight_reports: u64,
    details: u64,
}

impl Carried {
    /// Goes on by a frame.
    #[must_use]
    pub fn after(mut self, delta: &Delta) -> Self {
        if let Some(carried) = &delta.carried {
            return (**carried).clone();
        }
        let mut keys = BatchKeys::restore(self.senders, Vec::new());
        for committed in &delta.batches {
            keys.apply(&Committed { key: None, ..committed.clone() });
        }
        for (total, more) in self.fates.iter_mut().zip(&delta.fates) {
            *total += more;
        }
        let closed = delta.records.iter().filter_map(|r| if let Record::SlotClosed(closed) = r { Some(closed.end) } else { None });
        Self {
            judged_to: self.judged_to.into_iter().chain(closed).max(),
            fates: self.fates,
            senders: keys.into_senders(),
            in_flight_reports: self.in_flight_reports + delta.in_flight.iter().map(|r| r.running.len() as u64).sum::<u64>(),
            details: self.details + delta.details_beyond_traces(),
        }
    }

    /// As a section.
    ///
    /// # Panics
    /// Never: its types are plain data.
    #[must_use]
    pub fn to_section(&self) -> Section {
        Section { kind: Kind::CARRIED, bytes: postcard::to_stdvec(self).expect("plain data") }
    }
}

fn is_zero(fates: &Fates) -> bool {
    *fates == Fates::default()
}

/// A frame's section is not what this version writes.
#[derive(Debug, thiserror::Error)]
#[error("frame {} of the log: its {section} cannot be read by this version", position.0)]
pub struct FrameError {
    position: Position,
    section: &'static str,
}

impl From<Record> for Delta {
    fn from(record: Record) -> Self {
        Self { records: vec![record], ..Self::default() }
    }
}

impl Delta {
    /// Its bytes.
    ///
    /// # Panics
    /// Never: its types have text keys and finite numbers.
    #[must_use]
    pub fn to_sections(&self) -> Vec<Section> {
        fn binary<T: Serialize>(value: &T) -> Vec<u8> {
            postcard::to_stdvec(value).expect("plain data")
        }
        let mut sections = Vec::new();
        let mut push = |there: bool, kind: Kind, bytes: &dyn Fn() -> Vec<u8>| {
            if there {
                sections.push(Section { kind, bytes: bytes() });
            }
        };
        push(!self.endpoints.is_empty(), Kind::ENDPOINTS, &|| binary(&self.endpoints));
        push(!self.counts.is_empty(), Kind::COUNTS, &|| self.counts.bytes().to_vec());
        push(!self.batches.is_empty(), Kind::BATCHES, &|| binary(&self.batches));
        push(!self.details.is_empty(), Kind::DETAILS, &|| binary(&self.details));
        push(!self.in_flight.is_empty(), Kind::IN_FLIGHT, &|| binary(&self.in_flight));
        push(!is_zero(&self.fates), Kind::OUTCOMES, &|| binary(&self.fates));
        push(!self.records.is_empty(), Kind::RECORDS, &|| serde_json::to_vec(&self.records).expect("text keys and finite numbers"));
        sections
    }

    /// Reads a frame; sections of unknown kinds are passed over.
    ///
    /// # Errors
    /// [`FrameError`] when a section of a known kind cannot be read.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        fn binary<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
            postcard::from_bytes(bytes).ok()
        }
        let mut delta = Self::default();
        for Section { kind, bytes } in &frame.sections {
            let read = match *kind {
                Kind::ENDPOINTS => binary(bytes).map(|v| delta.endpoints = v).ok_or("endpoints"),
                Kind::COUNTS => Counts::decode(bytes.clone()).map(|v| delta.counts = v).map_err(|_| "counts"),
                Kind::BATCHES => binary(bytes).map(|v| delta.batches = v).ok_or("batches"),
                Kind::DETAILS => binary(bytes).map(|v| delta.details = v).ok_or("details"),
                Kind::IN_FLIGHT => binary(bytes).map(|v| delta.in_flight = v).ok_or("requests in flight"),
                Kind::OUTCOMES => binary(bytes).map(|v| delta.fates = v).ok_or("outcomes"),
                Kind::RECORDS => serde_json::from_slice(bytes).map(|v| delta.records = v).map_err(|_| "records"),
                Kind::CARRIED => binary(bytes).map(|v| delta.carried = Some(Box::new(v))).ok_or("carried sums"),
                _ => Ok(()),
            };
            read.map_err(|section| FrameError { position: frame.position, section })?;
        }
        Ok(delta)
    }

    /// How many of its details say more than a trace: which of the others are in the log depends on the order in which they come.
    fn details_beyond_traces(&self) -> u64 {
        self.details.iter().filter(|d| !d.is_trace_alone()).count() as u64
    }

    /// Takes the traces out of it, and what they were all of; how many there were.
    pub fn shed_traces(&mut self) -> u64 {
        let traces = self.details.iter_mut().filter_map(|d| d.trace_id.take()).count() as u64;
        self.details.retain(|d| !d.is_trace_alone());
        traces
    }

    /// A time at or before which it was written, if it tells one.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        let of = |record: &Record| match record {
            Record::SlotClosed(closed) => Some(closed.end.end()),
            Record::Started { at }
            | Record::Configured { at, .. }
            | Record::Delivered { at, .. }
            | Record::Unsilenced { at, .. }
            | Record::Reports { at, .. } => Some(*at),
            Record::Acked { ack, .. } => Some(ack.at),
            Record::Silenced(_) | Record::Marked(_) | Record::Found { .. } | Record::Learnt(_) => None,
        };
        self.records.iter().filter_map(of).chain(self.batches.iter().map(|b| b.answer.at)).min()
    }
}

/// What a delta brought about outside the machine.
#[derive(Debug, Default)]
pub struct Effects {
    /// Minutes whose rows leave memory for history.
    pub closed: Vec<Arc<ClosedMinute>>,
    /// Up to where minutes were closed before, and are now; equal when a slot was closed and no minute.
    pub closed_to: Option<(Timestamp, Timestamp)>,
    /// Incidents that moved.
    pub incidents: Vec<Incident>,
    /// Endpoints of which whole totals are kept from here on: these need what history has of them.
    pub made_whole: Vec<EndpointId>,
}

/// The state.
#[derive(Debug)]
pub struct Machine {
    /// Endpoints and their numbers.
    pub catalogue: Catalogue,
    /// Counts of open minutes.
    pub open: OpenSlots,
    /// The closed ones of the last [`RECENT_SLOTS`] judged, of critical endpoints.
    recent: OpenSlots,
    /// Everything ever counted, by endpoint.
    pub totals: Vec<Total>,
    /// Timings by fate, ever.
    pub fates: Fates,
    /// Batches already taken.
    pub keys: BatchKeys,
    /// Decisions.
    pub judge: Judge,
    /// Reports of running requests, ever.
    pub in_flight_reports: u64,
    /// Details that say more than a trace, ever.
    pub details: u64,
    /// The slowest timings that carried a trace.
    pub exemplars: Exemplars,
    /// Notifications that ended, by receiver and result.
    pub delivered: BTreeMap<(String, &'static str), u64>,
    /// The last frame applied.
    pub position: Position,
    /// The last frame that decided anything, or brought endpoints.
    decided: Position,
    limits: Limits,
    /// By endpoint, where anything but plain counts are wanted of it.
    counting: Vec<Option<Box<Counting>>>,
    with_rules: Arc<[EndpointId]>,
    rebuilding: bool,
    /// Counts of frames that were taken in and are to be settled.
    gathered: Gathered,
    /// Nothing but the judge's sums and the detectors' quarters are kept; the last slot that anything came into.
    judging_alone: Option<Slot>,
    /// Requests that still run.
    running: Running,
    /// The endpoints of which something that ran too long was counted.
    over_time: BTreeSet<EndpointKey>,
    /// Flows and expectations.
    works: Promised,
    /// Who reports for which service.
    pub presence: Presence,
    /// What the detectors run over, while judging alone; a live run has it from its history.
    pub quarters: Quarters,
}

#[derive(Clone, Debug)]
struct Counting {
    thresholds_us: Vec<u64>,
    digits: Digits,
    critical: bool,
    /// Whether everything it ever did is kept as a whole cell: it is critical, or counters of what it promises are shown.
    whole: bool,
    /// Whether it is part of a flow or an expectation.
    works: bool,
}

/// What of a machine counts change.
struct Counter<'m> {
    open: &'m mut OpenSlots,
    totals: &'m mut [Total],
    judge: &'m mut Judge,
    counting: &'m [Option<Box<Counting>>],
    rebuilding: bool,
    judging_alone: &'m mut Option<Slot>,
    quarters: &'m mut Quarters,
    works: &'m mut Promised,
    catalogue: &'m Catalogue,
}

impl Counter<'_> {
    fn count(&mut self, block: Block<'_>) {
        let (slot, first) = (block.slot, block.first);
        if self.judging_alone.is_some() {
            block.for_each(|id, counted| self.count_alone(slot, id, counted));
            return;
        }
        let mut cells = self.open.block(slot, first);
        block.for_each(|id, counted| {
            let at = id.0 as usize;
            let Some(counting) = &self.counting[at] else {
                cells.add(id, counted);
                if !self.rebuilding {
                    self.totals[at].add(counted);
                }
                return;
            };
            let cell = counted.to_cell(&counting.thresholds_us, counting.digits);
            if counting.works {
                self.works.count(id, &self.catalogue.entries()[at].key, slot, &cell);
            }
            if !self.rebuilding {
                self.judge.count(id, slot, &cell);
                self.totals[at].add_cell(&cell);
            }
            cells.add_cell(id, cell);
        });
    }

    /// Counts what is judged and kept nowhere.
    fn count_alone(&mut self, slot: Slot, id: EndpointId, counted: &Counted<'_>) {
        *self.judging_alone = (*self.judging_alone).max(Some(slot));
        self.quarters.count(id, slot, |quarter| counted.add_to(quarter));
        let Some(counting) = &self.counting[id.0 as usize] else { return };
        if counting.works {
            let cell = counted.to_cell(&[], Digits::Two);
            self.works.count(id, &self.catalogue.entries()[id.0 as usize].key, slot, &cell);
        }
        match counted {
            Counted::One { outcome, us } => self.judge.count_one(id, slot, *outcome, *us),
            Counted::Full(cell) => self.judge.count(id, slot, cell),
            Counted::Plain { .. } => self.judge.count(id, slot, &counted.to_cell(&counting.thresholds_us, counting.digits)),
        }
    }
}

/// What of a machine a snapshot keeps.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// The last frame in it.
    #[serde(skip)]
    pub position: Position,
    endpoints: Vec<Entry>,
    open: OpenSlots,
    recent: OpenSlots,
    totals: Vec<Total>,
    fates: Fates,
    senders: Senders,
    judge: judge::Snapshot,
    works: Promised,
    presence: Presence,
    running: Running,
    in_flight_reports: u64,
    details: u64,
    delivered: Vec<(String, String, u64)>,
    exemplars: Exemplars,
}

impl State {
    /// Its bytes, in a snapshot.
    ///
    /// # Panics
    /// Never: its types are plain data.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data")
    }
}

impl Machine {
    /// An empty one.
    #[must_use]
    pub fn new(promises: Promises, limits: Limits) -> Self {
        let judge = Judge::new(promises);
        let mut works = Promised::default();
        works.configure(judge.promises(), std::iter::empty(), Timestamp(0));
        Self {
            catalogue: Catalogue::default(),
            open: OpenSlots::default(),
            recent: OpenSlots::default(),
            totals: Vec::new(),
            fates: Fates::default(),
            keys: BatchKeys::default(),
            judge,
            in_flight_reports: 0,
            details: 0,
            exemplars: Exemplars::default(),
            delivered: BTreeMap::new(),
            position: Position(0),
            decided: Position(0),
            limits,
            counting: Vec::new(),
            with_rules: Arc::new([]),
            rebuilding: false,
            gathered: Gathered::default(),
            judging_alone: None,
            running: Running::default(),
            over_time: BTreeSet::new(),
            works,
            presence: Presence::default(),
            quarters: Quarters::default(),
        }
    }

    /// An empty one that judges what is counted and keeps nothing else of it: for replays, whose counts nobody asks for.
    #[must_use]
    pub fn judging_alone(promises: Promises, limits: Limits) -> Self {
        Self { judging_alone: Some(Slot(0)), ..Self::new(promises, limits) }
    }

    /// The last slot that holds anything and was not closed with its minute; with a machine that is judging alone, the last one that ever held anything.
    #[must_use]
    pub fn last_slot(&self) -> Option<Slot> {
        self.judging_alone.map_or_else(|| self.open.last(), |last| (last > Slot(0)).then_some(last))
    }

    /// The last frame that decided anything, or brought endpoints: until the next one incidents, markers and how objectives stand are the same, but for what comes late.
    #[must_use]
    pub fn decided(&self) -> Position {
        self.decided
    }

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
        let mut packed: Vec<Packed> = Vec::with_capacity(batches.iter().map(|b| b.packed.len()).sum());
        let mut items: Vec<(Slot, EndpointId, Item)> = Vec::new();
        for batch in batches {
            packed.extend_from_slice(&batch.packed);
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
        packed.sort_unstable();
        folding.write_packed(&packed, batches.iter().map(|b| b.read_in).max().unwrap_or_default());
        items.sort_unstable_by_key(|i| (i.0, i.1));
        folding.write_items(&items);
        folding.delta.counts = folding.counts.finish();
        folding.delta
    }

    fn is_counted_as_critical(&self, id: EndpointId) -> bool {
        self.counting.get(id.0 as usize).and_then(Option::as_ref).is_some_and(|c| c.critical)
    }

    fn fate_in(&self, slot: Slot) -> Fate {
        if self.judge.judged_to().is_some_and(|j| slot <= j) { Fate::Late } else { Fate::Accepted }
    }

    /// The next slot end to be judged on the way to `target`: the first at which something can have to be said, else `target` itself.
    #[must_use]
    pub fn next_close(&self, target: Slot) -> Option<Slot> {
        if self.judge.judged_to().is_some_and(|j| j >= target) {
            return None;
        }
        Some(self.next_due().map_or(target, |due| due.min(target)))
    }

    /// The first slot end at which something can have to be said, if nothing more comes.
    #[must_use]
    pub fn next_due(&self) -> Option<Slot> {
        let judged_to = self.judge.judged_to();
        // While something runs too long each slot end is looked at: it may be over, or forgotten.
        let running = judged_to.map(Slot::next).filter(|_| !self.over_time.is_empty() || !self.running.is_empty());
        let beside = self.works.next_due(judged_to).into_iter().chain(self.presence.next_due(judged_to));
        self.judge.next_due().into_iter().chain(beside).chain(running).min()
    }

    /// Judges a slot end.
    ///
    /// # Panics
    /// Never: closing a slot is not refused.
    #[must_use]
    pub fn close(&self, end: Slot) -> Delta {
        debug_assert!(self.gathered.is_empty(), "what was taken in is settled before it is judged");
        let mut record = self.judge.decide(judge::Command::CloseSlot(end)).expect("closing a slot is never refused");
        if let Record::SlotClosed(closed) = &mut record {
            closed.transitions.iter_mut().chain(closed.notifications.iter_mut().map(|n| &mut n.line)).for_each(|line| self.show_trace(line));
        }
        record.into()
    }

    /// Names the slowest trace that is known from the time of an incident, so that whoever is called can look at it.
    fn show_trace(&self, line: &mut Transition) {
        let open = self.judge.incidents().get(&line.id);
        let opened_at = open.map_or(line.at, |i| i.opened_at);
        let (from, failed_only) = match &line.evidence.grounds {
            Grounds::Promise(broken) => (opened_at.plus_ms(-TRACE_BEFORE_MS), broken.objective == Goal::Availability.name()),
            Grounds::Change(change) if line.kind.class() == Class::Latency => (change.since.min(opened_at.plus_ms(-TRACE_BEFORE_MS)), false),
            Grounds::Change(_) => return,
        };
        let (range, key) = (TimeRange { from, to: Timestamp(i64::MAX) }, line.endpoint());
        let together = line.evidence.change().map_or(&[][..], |c| &c.endpoints);
        let known = if together.is_empty() {
            self.catalogue.get(key.as_ref()).and_then(|id| self.exemplars.slowest(id, range, failed_only))
        } else {
            let is_of = |of: &EndpointKey| of.service == key.service && of.env == key.env && together.contains(&of.name());
            let all = self.exemplars.of(EndpointId(0)..=EndpointId(u32::MAX), range);
            all.filter(|(id, _)| self.catalogue.entry(*id).is_some_and(|e| is_of(&e.key))).map(|(_, e)| e).reduce(Exemplar::slower)
        };
        let told = open.and_then(|i| i.evidence.slowest_trace.clone());
        let now = known.map(|e| SlowestTrace::new(&e.trace_id, e.us, e.ts, e.outcome));
        line.evidence.slowest_trace = match (told, now) {
            (Some(told), Some(now)) => Some(if now.duration_ms > told.duration_ms { now } else { told }),
            (told, now) => told.or(now),
        };
    }

    /// Takes a frame in: the only mutation.
    pub fn apply(&mut self, position: Position, delta: &Delta) -> Effects {
        let effects = self.take(position, delta, delta.counts.clone());
        self.settle();
        effects
    }

    /// Likewise, but its counts may wait for those of later frames, until [`Machine::settle`]: nothing is to be read off the state before. They are taken out
    /// of it.
    pub fn take_in(&mut self, position: Position, delta: &mut Delta) -> Effects {
        let counts = std::mem::take(&mut delta.counts);
        self.take(position, delta, counts)
    }

    fn take(&mut self, position: Position, delta: &Delta, counts: Counts) -> Effects {
        self.position = position;
        if !delta.records.is_empty() || !delta.endpoints.is_empty() {
            self.decided = position;
        }
        let mut effects = Effects::default();
        for entry in &delta.endpoints {
            let id = self.catalogue.add(entry.clone());
            self.judge.add_endpoint(id, Arc::clone(&entry.key));
            self.works.add(&entry.key);
            let counting = self.counting_of(entry);
            self.totals.push(Total { cell: counting.as_ref().filter(|c| c.whole).map(|_| Box::default()), ..Total::default() });
            self.counting.push(counting);
            if self.judge.has_rules(id) {
                self.with_rules = self.with_rules.iter().copied().chain([id]).collect();
            }
        }
        for detail in &delta.details {
            if let Some(entry) = self.catalogue.entry(detail.endpoint) {
                self.works.detail(detail, &entry.key);
                let is_critical = self.is_counted_as_critical(detail.endpoint);
                self.exemplars.add(detail, is_critical);
            }
        }
        self.gather(counts);
        if !delta.records.is_empty() {
            self.settle();
        }
        for committed in &delta.batches {
            self.keys.apply(committed);
        }
        for (total, more) in self.fates.iter_mut().zip(&delta.fates) {
            *total += more;
        }
        self.in_flight_reports += delta.in_flight.iter().map(|r| r.running.len() as u64).sum::<u64>();
        for report in &delta.in_flight {
            self.running.report(&report.sender, report.at, &report.running);
        }
        // A batch that says nothing of running requests says that there are none.
        for sender in delta.batches.iter().filter_map(|b| Some((&b.sender.as_ref()?.id, b.answer.at))) {
            if self.running.knows(sender.0) && !delta.in_flight.iter().any(|r| r.sender == *sender.0) {
                self.running.report(sender.0, sender.1, &[]);
            }
        }
        self.details += delta.details_beyond_traces();
        for record in &delta.records {
            self.take_record(record, &mut effects);
        }
        if let Some(carried) = &delta.carried {
            self.carry(carried);
        }
        effects
    }

    fn take_record(&mut self, record: &Record, effects: &mut Effects) {
        let before = self.history_to();
        effects.incidents.extend(self.judge.apply(record));
        match record {
            Record::SlotClosed(closed) => self.take_closed(closed.end, before, effects),
            Record::Configured { at, .. } => {
                self.works.configure(self.judge.promises(), self.catalogue.entries().iter().map(|e| &*e.key), *at);
                self.count_anew();
                effects.made_whole.extend(self.begin_whole());
            }
            Record::Found { found, .. } => self.find(found.clone()),
            Record::Started { at } => self.presence.started(*at, self.judge.judged_to().map(Slot::end)),
            Record::Reports { at, sender, service, env } => self.presence.reports(sender, (service.clone(), env.clone()), *at),
            Record::Delivered { receiver, result, .. } => {
                *self.delivered.entry((receiver.clone(), result.name())).or_default() += 1;
            }
            _ => {}
        }
    }

    /// A slot was judged: what is judged beside it, and the minutes that leave memory. `before` is up to where history went.
    fn take_closed(&mut self, end: Slot, before: Timestamp, effects: &mut Effects) {
        self.look_at_running(end.end());
        self.exemplars.judged(end.end());
        let keys = &self.keys;
        let heard_at = |sender: &str| keys.senders().get(sender).map(|s| s.last_seen);
        let (judge, catalogue) = (&self.judge, &self.catalogue);
        let is_critical =
            |service: &presence::Service| catalogue.entries().iter().any(|e| e.key.service == service.0 && e.key.env == service.1 && is_critical(judge, e));
        let dark = self.presence.judge(end, heard_at, is_critical);
        self.judge.find(dark);
        let found = self.works.judge(end);
        self.find(found);
        let minutes = self.open.close_minutes(end, &self.with_rules);
        let counting = &self.counting;
        self.recent.keep_since(Slot((end.0 + 1).saturating_sub(RECENT_SLOTS)), &minutes, |id| counting[id.0 as usize].as_ref().is_some_and(|c| c.critical));
        effects.closed.extend(minutes);
        let (from, after) = (effects.closed_to.map_or(before, |c| c.0), self.history_to());
        effects.closed_to = Some((from, after));
    }

    fn find(&mut self, found: Vec<Found>) {
        let admitted = found.into_iter().filter_map(|one| self.presence.admit(one)).collect();
        self.judge.find(admitted);
    }

    /// What is news of who reports for which service, of a batch that was folded into a delta.
    #[must_use]
    pub fn reports(&self, identity: &Identity, batch: &Batch, delta: &Delta, at: Timestamp) -> Vec<Record> {
        let Identity::Sender(sender) = identity else { return Vec::new() };
        let is_first = !self.keys.senders().contains_key(&sender.id);
        self.presence.news(sender, is_first, batch, &self.catalogue, &delta.endpoints, at)
    }

    /// Requests that run for longer than their promise allows count as bad until they end.
    fn look_at_running(&mut self, at: Timestamp) {
        let mut keys = std::mem::take(&mut self.over_time);
        let places = self.running.places(at).flat_map(|place| RUNNING_KINDS.map(|kind| place.endpoint(kind)));
        keys.extend(places);
        for key in keys {
            let place = in_flight::Place::of(&key);
            let running = &self.running;
            if self.judge.set_running(&key, |threshold_us| running.over(&place, threshold_us, at)) {
                self.over_time.insert(key);
            }
        }
        self.running.forget(at);
    }

    /// Counts one timing of an endpoint that has a number, while judging alone: what a batch of it would come to.
    pub fn count_one(&mut self, slot: Slot, id: EndpointId, outcome: Outcome, us: u64) {
        debug_assert!(self.judging_alone.is_some() && self.gathered.is_empty());
        self.fates[self.fate_in(slot) as usize] += 1;
        self.counter().1.count_alone(slot, id, &Counted::One { outcome, us });
    }

    /// Counts what waits.
    pub fn settle(&mut self) {
        let (gathered, mut counter) = self.counter();
        gathered.count_all(|block| counter.count(block));
    }

    /// Counts a part of what waits; whether nothing is left.
    pub fn settle_part(&mut self) -> bool {
        let (gathered, mut counter) = self.counter();
        gathered.count_part(|block| counter.count(block))
    }

    fn gather(&mut self, counts: Counts) {
        let (gathered, mut counter) = self.counter();
        gathered.add(counts, |block| counter.count(block));
    }

    fn counter(&mut self) -> (&mut Gathered, Counter<'_>) {
        let Self { gathered, open, totals, judge, counting, rebuilding, judging_alone, quarters, works, catalogue, .. } = self;
        (gathered, Counter { open, totals, judge, counting, rebuilding: *rebuilding, judging_alone, quarters, works, catalogue })
    }

    /// What is counted of each endpoint, by what is owed now.
    fn count_anew(&mut self) {
        self.counting = self.catalogue.entries().iter().map(|e| self.counting_of(e)).collect();
        self.with_rules = (0..self.catalogue.next_id().0).map(EndpointId).filter(|id| self.judge.has_rules(*id)).collect();
    }

    /// Begins whole totals for the endpoints that need them now, and ends them for those that do not.
    pub fn begin_whole(&mut self) -> Vec<EndpointId> {
        let mut made = Vec::new();
        for ((total, counting), id) in self.totals.iter_mut().zip(&self.counting).zip(0..) {
            let whole = counting.as_ref().is_some_and(|c| c.whole);
            if whole && total.cell.is_none() {
                total.cell = Some(Box::default());
                made.push(EndpointId(id));
            } else if !whole {
                total.cell = None;
            }
        }
        made
    }

    fn carry(&mut self, carried: &Carried) {
        if let Some(end) = carried.judged_to {
            self.judge.apply(&Record::SlotClosed(judge::SlotClosed { end, ..judge::SlotClosed::default() }));
            self.exemplars.judged(end.end());
        }
        self.fates = carried.fates;
        self.keys.set_senders(carried.senders.clone());
        (self.in_flight_reports, self.details) = (carried.in_flight_reports, carried.details);
    }

    /// What was ever counted of an endpoint.
    #[must_use]
    pub fn total_of(&self, id: EndpointId) -> Sums {
        self.totals.get(id.0 as usize).map_or_else(Sums::default, |t| t.sums)
    }

    /// What was ever counted of an endpoint that is critical or has objectives, with its histograms.
    #[must_use]
    pub fn cell_of(&self, id: EndpointId) -> Option<&Cell> {
        self.totals.get(id.0 as usize)?.cell.as_deref()
    }

    /// Up to where minutes are closed: their rows are in history, but for what comes late.
    #[must_use]
    pub fn history_to(&self) -> Timestamp {
        self.judge.judged_to().map_or(Timestamp(0), |j| Tier::Minute.period_of(j.end()))
    }

    /// Visits what was counted in the last minute judged and since, of some critical endpoints.
    pub fn visit_recent(&self, wanted: &Wanted, mut visit: impl FnMut(EndpointId, &Cell)) {
        let from = self.judge.judged_to().map_or(Timestamp(0), |judged| judged.end().plus_ms(-SLOT_MS * i64::from(RECENT_SLOTS)));
        for slots in [&self.recent, &self.open] {
            slots.visit_open(wanted, TimeRange { from, to: Timestamp(i64::MAX) }, |_, id, cell| visit(id, cell));
        }
    }

    fn counting_of(&self, entry: &Entry) -> Option<Box<Counting>> {
        let (thresholds_us, digits) = self.judge.promises().counting_of(&entry.key);
        let critical = self.is_critical(entry);
        let whole = critical || self.judge.promises().of(&entry.key).any(|o| !o.promises.is_empty());
        let works = self.works.has(&entry.key);
        let plain = thresholds_us.is_empty() && digits == Digits::Two && !critical && !works && self.judge.promises().of(&entry.key).next().is_none();
        (!plain).then(|| Box::new(Counting { thresholds_us, digits, critical, whole, works }))
    }

    /// Whether an endpoint is critical: configured so, or marked by a sender within the limit.
    #[must_use]
    pub fn is_critical(&self, entry: &Entry) -> bool {
        is_critical(&self.judge, entry)
    }

    /// The critical endpoints from a number on.
    pub fn critical_from(&self, first: EndpointId) -> impl Iterator<Item = EndpointId> {
        self.catalogue.entries().iter().zip(0..).skip(first.0 as usize).filter(|(entry, _)| self.is_critical(entry)).map(|(_, id)| EndpointId(id))
    }

    /// Everything but the batch keys, which the index keeps, and minutes on their way to history.
    #[must_use]
    pub fn state(&mut self) -> State {
        self.settle();
        State {
            position: self.position,
            endpoints: self.catalogue.entries().to_vec(),
            open: self.open.share(),
            recent: self.recent.share(),
            totals: self.totals.clone(),
            fates: self.fates,
            senders: self.keys.senders_snapshot(),
            judge: self.judge.snapshot(),
            works: self.works.clone(),
            presence: self.presence.clone(),
            running: self.running.clone(),
            in_flight_reports: self.in_flight_reports,
            details: self.details,
            delivered: self.delivered.iter().map(|((r, s), n)| (r.clone(), (*s).to_owned(), *n)).collect(),
            exemplars: self.exemplars.clone(),
        }
    }

    /// The machine of a snapshot; `None` when its bytes are of another version.
    #[must_use]
    pub fn restore(bytes: &[u8], position: Position, keys: Vec<(u128, crate::ingest::batch_keys::Answered)>, limits: Limits) -> Option<Self> {
        let kept: State = postcard::from_bytes(bytes).ok()?;
        let judge = Judge::restore(kept.judge, kept.endpoints.iter().map(|e| Arc::clone(&e.key))).ok()?;
        let mut machine = Self::new(Promises::none(0), limits);
        for entry in kept.endpoints {
            machine.catalogue.add(entry);
        }
        machine.judge = judge;
        machine.works = kept.works;
        machine.presence = kept.presence;
        let now = machine.judge.judged_to().unwrap_or_default().end();
        machine.works.configure(machine.judge.promises(), machine.catalogue.entries().iter().map(|e| &*e.key), now);
        machine.count_anew();
        (machine.open, machine.recent) = (kept.open, kept.recent);
        machine.totals = kept.totals;
        machine.fates = kept.fates;
        machine.keys = BatchKeys::restore(kept.senders, keys);
        machine.in_flight_reports = kept.in_flight_reports;
        machine.details = kept.details;
        let result_of = |name: &str| {
            use crate::incident::DeliveryResult;
            DeliveryResult::ALL.into_iter().find(|r| r.name() == name).map(DeliveryResult::name)
        };
        machine.delivered = kept.delivered.into_iter().filter_map(|(r, s, n)| Some(((r, result_of(&s)?), n))).collect();
        machine.exemplars = kept.exemplars;
        machine.running = kept.running;
        if let Some(judged) = machine.judge.judged_to() {
            machine.look_at_running(judged.end());
        }
        (machine.position, machine.decided) = (position, position);
        Some(machine)
    }

    /// From here on, counts only go into open slots: sums and totals come from history at the end ([`Machine::finish_rebuild`]).
    pub fn begin_rebuild(&mut self) {
        self.rebuilding = true;
    }

    /// Counts what history says and what is still open.
    pub fn finish_rebuild(&mut self, past: impl FnOnce(&mut Self)) {
        self.settle();
        self.judge.forget_counts();
        self.rebuilding = false;
        past(self);
        for (slot, id, cell) in self.open.cells() {
            self.judge.count(id, slot, &cell);
            self.totals[id.0 as usize].add_cell(&cell);
        }
        self.judge.refresh();
    }
}

fn is_critical(judge: &Judge, entry: &Entry) -> bool {
    entry.marked == Marked::Critical || judge.promises().is_critical(&entry.key)
}

/// Where the counts of a batch's key go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination {
    id: EndpointId,
    overflow: bool,
}

/// Failures of a cell that are written one by one, so that the rest of it stays plain.
const FAILURES_APART_MAX: usize = 4;

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

    /// Writes sorted timings, those of one slot and endpoint as one cell.
    fn write_packed(&mut self, packed: &[Packed], near: Slot) {
        let mut buckets: Vec<(u16, u64)> = Vec::new();
        for cell in packed.chunk_by(|a, b| a.place() == b.place()) {
            let first = cell[0];
            let (slot, id) = (first.slot(near), first.endpoint());
            self.delta.fates[self.machine.fate_in(slot) as usize] += cell.len() as u64;
            if let [one] = cell {
                self.counts.one(slot, id, one.outcome(), one.us());
                continue;
            }
            let is_counting = self.machine.counting.get(id.0 as usize).is_some_and(Option::is_some);
            if is_counting && cell.len() <= THRESHOLDS_APART_MAX {
                for one in cell {
                    self.counts.one(slot, id, one.outcome(), one.us());
                }
                continue;
            }
            let failures = cell.iter().filter(|p| p.outcome().is_failure()).count();
            if failures > FAILURES_APART_MAX || is_counting {
                let mut full = self.new_cell(id);
                for alike in cell.chunk_by(|a, b| a == b) {
                    let n = alike.len() as u64;
                    full.record(alike[0].outcome(), Span::exact(alike[0].us()), Tally { weight: n, observed: n });
                }
                self.counts.cell(slot, id, &full);
                continue;
            }
            buckets.clear();
            let (mut client_errors, mut sum_us) = (0, 0);
            for p in cell {
                if p.outcome().is_failure() {
                    self.counts.one(slot, id, p.outcome(), p.us());
                    continue;
                }
                client_errors += u64::from(p.outcome() == Outcome::ClientError);
                sum_us += p.us();
                let bucket = Digits::Two.bucket_of(p.us());
                match buckets.last_mut() {
                    Some(last) if last.0 == bucket => last.1 += 1,
                    _ => buckets.push((bucket, 1)),
                }
            }
            if buckets.is_empty() {
                continue;
            }
            self.counts.plain(slot, id, client_errors, sum_us, &buckets);
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
