//! The state that live and replay drive alike: catalogue, open slots, totals, batch keys and the judge.
//!
//! Everything that changes it is a [`Delta`], which is one frame of the log. [`Machine::fold`] and [`Machine::close`] read and answer with a delta; [`Machine::apply`] is the
//! only mutation, in live, recovery and replay. So a frame's position is its order, and "before or after the slot was closed" is a fact of the log, not of a race.
//!
//! The first design had a commit thread and an aggregation thread that apply one log at two paces. One owner makes the order of the log the order of the decisions by
//! construction. What would delay an answer is elsewhere instead: handlers parse and look endpoints up, history is written by a thread of its own, and closing a minute takes its
//! cells out as they are.

mod delta;
mod folding;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use delta::{Carried, Delta, FrameError};
use serde::{Deserialize, Serialize};

use crate::counting::{Cell, Outcome};
use crate::detect::quarters::Quarters;
use crate::endpoint::{EndpointId, EndpointKey};
use crate::histogram::Digits;
use crate::history::catalogue::{Catalogue, Entry, Limits, Marked};
use crate::history::counts::{Counted, Counts};
use crate::history::exemplars::{Exemplar, Exemplars};
use crate::history::gathered::{Block, Gathered};
use crate::history::open_slots::{ClosedMinute, OpenSlots};
use crate::history::reader::Wanted;
use crate::history::totals::{Sums, Total};
use crate::incident::{Class, Found, Grounds, Incident, SlowestTrace, Transition};
use crate::ingest::batch_keys::{BatchKeys, Identity, Senders};
use crate::ingest::{Batch, Fate, Fates};
use crate::judge::{self, Judge, Promises, Record};
use crate::log::record::Position;
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
