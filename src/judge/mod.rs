//! The judge: holds every decision. `decide` reads and answers with records; `apply` is the only thing that changes it.
//!
//! `decide(CloseSlot(end))` looks only at rules whose sums can have changed since they were looked at last ([`Judge::next_due`]); the tests keep a naive evaluator
//! that looks at all of them at every slot end, and the two print the same lines. Recovery is only `apply`: the past is never decided again,
//! so an upgrade cannot page twice.
//!
//! It stands behind `incident` in the flow, not before it as the first design had it: incidents are what it decides about.

pub mod burn;
mod changes;
pub mod evidence;
mod promises;
mod rule;
pub mod sums;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use promises::{ExpectedOwed, FlowOwed, Owed, Promise, Promises, Receiver};
pub use rule::{ObjectiveState, ObjectiveStatus, WindowStatus, requests_and_bad};

use crate::counting::{Cell, Outcome};
use crate::endpoint::{EndpointId, EndpointKey};
use crate::incident::{Ack, DeliveryResult, Event, Found, Incident, Marker, Notification, Silence, State, Transition, derived_id, incident_id, text};
use crate::objective::Goal;
use crate::time::{Slot, Timestamp};
use burn::Memory;
use evidence::Turns;
use rule::Rule;

/// What is asked of the judge.
#[derive(Clone, Debug)]
pub enum Command {
    /// This slot, and none after it, has ended.
    CloseSlot(Slot),
    /// The process started.
    Start(Timestamp),
    /// From now on this is owed.
    Configure(Timestamp, Promises),
    /// Somebody takes an incident on.
    Ack {
        /// When.
        at: Timestamp,
        /// Which incident.
        incident: String,
        /// Who.
        by: String,
    },
    /// Nobody is to be told of these for a time.
    Silence(Silence),
    /// A silence ends early.
    Unsilence(Timestamp, String),
    /// Something changed in the world.
    Mark(Marker),
    /// The detectors have run this quarter of an hour (counted from 1970), and found this.
    Find(i64, Vec<Found>),
    /// The detectors have learnt what these endpoints are like.
    Learn(Vec<(EndpointId, String)>),
    /// A notification ended.
    Deliver(Timestamp, String, DeliveryResult),
}

/// What was decided, or happened, and what decisions depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A slot was judged, with all before it.
    SlotClosed(SlotClosed),
    /// The process started.
    Started {
        /// When.
        at: Timestamp,
    },
    /// What is owed from here on.
    Configured {
        /// When.
        at: Timestamp,
        /// The whole of it.
        promises: Promises,
        /// Incidents of rules that are gone.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        transitions: Vec<Transition>,
        /// Who is told of that.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notifications: Vec<Notification>,
    },
    /// An incident was taken on.
    Acked {
        /// Which.
        incident: String,
        /// By whom and when.
        ack: Ack,
    },
    /// A silence began.
    Silenced(Silence),
    /// A silence was ended.
    Unsilenced {
        /// When.
        at: Timestamp,
        /// Which.
        id: String,
    },
    /// A marker.
    Marked(Marker),
    /// A sender that names itself reports for a service.
    Reports {
        /// When it first did.
        at: Timestamp,
        /// The sender.
        sender: String,
        /// The service.
        service: String,
        /// Its environment.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        env: String,
    },
    /// What the detectors found; it is said with a slot end.
    Found {
        /// In which quarter of an hour, counted from 1970.
        quarter: i64,
        /// What.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        found: Vec<Found>,
    },
    /// What endpoints were like before anything was found of them, as the detectors write it: they are not learnt again.
    Learnt(Vec<(EndpointId, String)>),
    /// A notification ended.
    Delivered {
        /// When.
        at: Timestamp,
        /// Which.
        notification: String,
        /// To whom.
        receiver: String,
        /// How.
        result: DeliveryResult,
    },
}

/// The decisions at one slot end: one frame, so that a crash leaves them undecided or decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
pub struct SlotClosed {
    /// The slot.
    pub end: Slot,
    /// What pairs of windows remember from here on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memories: Vec<PairMemory>,
    /// What is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transitions: Vec<Transition>,
    /// Who is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<Notification>,
}

/// The memory of one pair of windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairMemory {
    /// Of which endpoint.
    pub endpoint: EndpointId,
    /// Of which rule.
    pub objective: String,
    /// Which pair, in the order configured.
    pub pair: usize,
    /// What it remembers.
    pub memory: Memory,
}

/// Why a command was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// No open incident has that id.
    #[error("no open incident has the id {0}")]
    NoSuchIncident(String),
    /// No silence has that id.
    #[error("no silence has the id {0}")]
    NoSuchSilence(String),
    /// The limit of silences is reached.
    #[error("there are {SILENCES_MAX} silences, which is the limit: end some first")]
    TooManySilences,
    /// No notification waits under that id.
    #[error("no notification waits under the id {0}")]
    NoSuchNotification(String),
}

/// Silences in force at one time.
pub const SILENCES_MAX: usize = 1_000;

/// The judge's state.
#[derive(Debug)]
pub struct Judge {
    promises: Arc<Promises>,
    rules: Vec<Rule>,
    /// By endpoint: from and to which of `rules` are its.
    rules_of: Vec<(u32, u32)>,
    turns: Turns,
    /// The endpoints that have rules.
    judged: HashMap<Arc<EndpointKey>, EndpointId>,
    endpoints: Vec<Arc<EndpointKey>>,
    due: BTreeSet<(Slot, usize)>,
    judged_to: Option<Slot>,
    incidents: BTreeMap<String, Incident>,
    outbox: Vec<Notification>,
    silences: Vec<Silence>,
    /// What was found and is not said yet.
    found: Vec<Found>,
    watched_to: Option<i64>,
    has_learnt: bool,
}

impl Judge {
    /// One that owes nothing and knows no endpoint.
    #[must_use]
    pub fn new(promises: Promises) -> Self {
        Self {
            promises: Arc::new(promises),
            rules: Vec::new(),
            rules_of: Vec::new(),
            turns: Turns::default(),
            judged: HashMap::new(),
            endpoints: Vec::new(),
            due: BTreeSet::new(),
            judged_to: None,
            incidents: BTreeMap::new(),
            outbox: Vec::new(),
            silences: Vec::new(),
            found: Vec::new(),
            watched_to: None,
            has_learnt: false,
        }
    }

    /// What is owed now.
    #[must_use]
    pub fn promises(&self) -> &Arc<Promises> {
        &self.promises
    }

    /// The last slot that was judged.
    #[must_use]
    pub fn judged_to(&self) -> Option<Slot> {
        self.judged_to
    }

    /// The last quarter of an hour (counted from 1970) that the detectors have run.
    #[must_use]
    pub fn watched_to(&self) -> Option<i64> {
        self.watched_to
    }

    /// Whether the log says what any endpoint was like when it was learnt.
    #[must_use]
    pub fn has_learnt(&self) -> bool {
        self.has_learnt
    }

    /// Open incidents, by id.
    #[must_use]
    pub fn incidents(&self) -> &BTreeMap<String, Incident> {
        &self.incidents
    }

    /// What is not as it was with an endpoint, by itself or with others of its service.
    pub fn changes_of<'a>(&'a self, key: &'a EndpointKey) -> impl Iterator<Item = crate::incident::Kind> + 'a {
        let together = key.name();
        let of_service = self.incidents.values().filter(move |i| (&i.service, &i.env) == (&key.service, &key.env));
        of_service.filter_map(move |i| {
            let change = i.evidence.change()?;
            let own = (&i.method, &i.route, &i.endpoint_kind) == (&key.method, &key.route, &key.kind);
            (own || change.endpoints.contains(&together)).then_some(i.kind)
        })
    }

    /// Notifications without a receipt, in the order decided.
    #[must_use]
    pub fn outbox(&self) -> &[Notification] {
        &self.outbox
    }

    /// Silences that were not ended by hand and had not run out when the last one was made.
    #[must_use]
    pub fn silences(&self) -> &[Silence] {
        &self.silences
    }

    /// Every rule as it stands at the last judged slot, for people and metrics.
    pub fn objectives(&self) -> impl Iterator<Item = ObjectiveStatus> + '_ {
        let end = self.judged_to.unwrap_or_default();
        self.rules.iter().map(move |r| r.status(end, self.promises.judge_after_ms))
    }

    /// Every rule: of which endpoint, its name, what it promises.
    pub fn goals(&self) -> impl Iterator<Item = (EndpointId, &str, Goal)> + '_ {
        self.rules.iter().map(|r| (r.endpoint, r.name.as_str(), r.promise.goal))
    }

    /// How the objectives of one endpoint stand.
    pub fn objectives_of(&self, id: EndpointId) -> impl Iterator<Item = ObjectiveStatus> + '_ {
        let end = self.judged_to.unwrap_or_default();
        self.rules[self.rules_of(id)].iter().map(move |r| r.status(end, self.promises.judge_after_ms))
    }

    /// The first slot end at which something can have to be said, if nothing more comes.
    #[must_use]
    pub fn next_due(&self) -> Option<Slot> {
        let untold = || self.incidents.values().filter(|i| i.told_line.is_none());
        let ends = self.silences.iter().filter(|s| untold().any(|i| i.service == s.service));
        let unmuted = ends.map(|s| Slot::containing(s.until.plus_ms(-self.promises.judge_after_ms)));
        let floor = self.judged_to.map_or(Slot(0), Slot::next);
        let found = self.found.iter().map(|f| f.due.max(floor)).min();
        self.due.first().map(|d| d.0).into_iter().chain(unmuted.filter(|s| *s >= floor)).chain(found).min()
    }

    /// Learns of an endpoint; ids come dense and ascending.
    pub fn add_endpoint(&mut self, id: EndpointId, key: Arc<EndpointKey>) {
        assert_eq!(id.0 as usize, self.endpoints.len(), "endpoint ids are dense");
        self.endpoints.push(key);
        self.add_rules(id);
    }

    fn add_rules(&mut self, id: EndpointId) {
        let key = Arc::clone(&self.endpoints[id.0 as usize]);
        let promises = Arc::clone(&self.promises);
        let first = self.rules.len();
        for owed in promises.of(&key) {
            for promise in &owed.promises {
                let taken = self.rules[first..].iter().any(|r| r.promise.goal == promise.goal);
                if !taken {
                    self.rules.push(Rule::new(id, Arc::clone(&key), promise.clone(), owed, &mut self.turns));
                }
            }
        }
        let place = |at: usize| u32::try_from(at).expect("rules are limited by endpoints and the configuration");
        self.rules_of.push((place(first), place(self.rules.len())));
        if self.rules.len() > first {
            self.judged.insert(key, id);
        }
    }

    fn rules_of(&self, id: EndpointId) -> std::ops::Range<usize> {
        self.rules_of.get(id.0 as usize).map_or(0..0, |of| of.0 as usize..of.1 as usize)
    }

    /// Whether an endpoint has rules, so that its slots must be kept apart.
    #[must_use]
    pub fn has_rules(&self, id: EndpointId) -> bool {
        !self.rules_of(id).is_empty()
    }

    /// Counts what came into one slot of one endpoint. Commutative.
    pub fn count(&mut self, id: EndpointId, slot: Slot, cell: &Cell) {
        self.count_with(id, slot, |rule, judged_to| rule.count(slot, cell, judged_to));
    }

    /// Likewise, one timing.
    pub fn count_one(&mut self, id: EndpointId, slot: Slot, outcome: Outcome, us: u64) {
        self.count_with(id, slot, |rule, judged_to| rule.count_one(slot, outcome, us, judged_to));
    }

    fn count_with(&mut self, id: EndpointId, slot: Slot, count: impl Fn(&mut Rule, Slot) -> bool) {
        let first_open = self.judged_to.map_or(Slot(0), Slot::next);
        for index in self.rules_of(id) {
            if count(&mut self.rules[index], self.judged_to.unwrap_or_default()) {
                self.set_due(index, Some(slot.max(first_open)), true);
            }
        }
    }

    /// Counts an hour of the past into the budget alone (its windows are over); for rebuilding from history.
    pub fn count_past_hour(&mut self, id: EndpointId, hour_start: Slot, cell: &Cell) {
        let rules = self.rules_of(id);
        for rule in &mut self.rules[rules] {
            rule.count_budget(hour_start, cell);
        }
    }

    /// Counts requests of an endpoint that still run, and for too long by the threshold that is asked for: each as one bad request of now, in place of those
    /// counted before. Whether there are any.
    pub fn set_running(&mut self, key: &EndpointKey, over: impl Fn(u64) -> u64) -> bool {
        let Some(id) = self.judged.get(key).copied() else { return false };
        let next = self.judged_to.map_or(Slot(0), Slot::next);
        let mut any = false;
        for index in self.rules_of(id) {
            let rule = &mut self.rules[index];
            let n = rule.promise.goal.threshold_us().map_or(0, &over);
            let changed = rule.set_running(n);
            any |= n > 0;
            if changed || n > 0 {
                self.set_due(index, Some(next), true);
            }
        }
        any
    }

    fn set_due(&mut self, index: usize, due: Option<Slot>, keep_earlier: bool) {
        let rule = &mut self.rules[index];
        if keep_earlier && rule.due.is_some() && rule.due <= due {
            return;
        }
        if rule.due == due {
            return;
        }
        if let Some(old) = rule.due {
            self.due.remove(&(old, index));
        }
        if let Some(new) = due {
            self.due.insert((new, index));
        }
        rule.due = due;
    }

    /// Looks at every rule anew at the next slot end; after the counts were rebuilt.
    pub fn refresh(&mut self) {
        let next = self.judged_to.map_or(Slot(0), Slot::next);
        for index in 0..self.rules.len() {
            self.set_due(index, Some(next), false);
        }
    }

    /// Answers a command with what is to be recorded; changes nothing.
    ///
    /// # Errors
    /// [`Refusal`], with nothing to record.
    pub fn decide(&self, command: Command) -> Result<Record, Refusal> {
        Ok(match command {
            Command::CloseSlot(end) => Record::SlotClosed(self.close(end)),
            Command::Start(at) => Record::Started { at },
            Command::Configure(at, promises) => self.configure(at, promises),
            Command::Ack { at, incident, by } => {
                if !self.incidents.contains_key(&incident) {
                    return Err(Refusal::NoSuchIncident(incident));
                }
                Record::Acked { incident, ack: Ack { at, by } }
            }
            Command::Silence(silence) => {
                if self.silences.iter().filter(|s| s.until > silence.from).count() >= SILENCES_MAX {
                    return Err(Refusal::TooManySilences);
                }
                Record::Silenced(silence)
            }
            Command::Unsilence(at, id) => {
                if !self.silences.iter().any(|s| s.id == id && s.until > at) {
                    return Err(Refusal::NoSuchSilence(id));
                }
                Record::Unsilenced { at, id }
            }
            Command::Mark(marker) => Record::Marked(marker),
            Command::Find(quarter, found) => Record::Found { quarter, found },
            Command::Learn(references) => Record::Learnt(references),
            Command::Deliver(at, id, result) => {
                let waiting = self.outbox.iter().find(|n| n.id == id).ok_or(Refusal::NoSuchNotification(id))?;
                Record::Delivered { at, notification: waiting.id.clone(), receiver: waiting.receiver.clone(), result }
            }
        })
    }

    fn close(&self, end: Slot) -> SlotClosed {
        let at = end.end().plus_ms(self.promises.judge_after_ms);
        let mut moved = Vec::new();
        for &(_, index) in self.due.range(..=(end, usize::MAX)) {
            let rule = &self.rules[index];
            let after = rule.step(end);
            let open = rule.incident.as_ref().and_then(|id| self.incidents.get(id));
            let line = rule.transition(end, at, &after, open);
            if line.is_some() || after != rule.memories {
                moved.push((index, after, line));
            }
        }
        moved.sort_by(|a, b| {
            let of = |i: usize| (&self.rules[i].key, self.rules[i].promise.goal);
            of(a.0).cmp(&of(b.0))
        });
        let mut closed = SlotClosed { end, ..SlotClosed::default() };
        for (index, after, line) in moved {
            let rule = &self.rules[index];
            for (pair, (memory, before)) in after.iter().zip(&rule.memories).enumerate() {
                if memory != before {
                    closed.memories.push(PairMemory { endpoint: rule.endpoint, objective: rule.name.clone(), pair, memory: *memory });
                }
            }
            if let Some(line) = line {
                let open = rule.incident.as_ref().and_then(|id| self.incidents.get(id));
                self.tell(&mut closed.notifications, &line, open, &rule.notify);
                closed.transitions.push(line);
            }
        }
        self.say_found(&mut closed, at);
        self.tell_unmuted(&mut closed, at);
        closed
    }

    /// Says what was found and is due.
    fn say_found(&self, closed: &mut SlotClosed, at: Timestamp) {
        for found in self.found.iter().filter(|f| f.due <= closed.end) {
            // What this very slot end opened is open; what it resolved is not.
            let said: Vec<Incident> = closed.transitions.iter().filter(|t| t.event == Event::Opened).map(Incident::opened).collect();
            let over = |i: &&Incident| !closed.transitions.iter().any(|t| t.id == i.id && t.event == Event::Resolved);
            let open = changes::open_of(found, self.incidents.values().chain(&said).filter(over));
            if let Some(line) = changes::transition(found, at, open) {
                self.tell(&mut closed.notifications, &line, open, &changes::notify_of(&found.endpoint, found.change.name.as_deref(), &self.promises));
                closed.transitions.push(line);
            }
        }
    }

    /// Whom an open incident is told.
    fn notify_of(&self, incident: &Incident) -> Option<Vec<String>> {
        if let Some(change) = incident.evidence.change() {
            return Some(changes::notify_of(&incident.endpoint(), change.name.as_deref(), &self.promises));
        }
        self.rules.iter().find(|r| r.incident.as_ref() == Some(&incident.id)).map(|rule| rule.notify.clone())
    }

    /// Tells of incidents whose silence has run out.
    fn tell_unmuted(&self, closed: &mut SlotClosed, at: Timestamp) {
        if self.silences.is_empty() {
            // Without one, whoever was to be told was told when it was decided.
            return;
        }
        for incident in self.incidents.values().filter(|i| i.told_line.is_none()) {
            let moved = closed.transitions.iter().any(|t| t.id == incident.id);
            let Some(notify) = self.notify_of(incident).filter(|_| !moved) else { continue };
            self.tell(&mut closed.notifications, &incident.line(at, Event::Opened), Some(incident), &notify);
        }
    }

    fn tell(&self, out: &mut Vec<Notification>, line: &Transition, open: Option<&Incident>, notify: &[String]) {
        let opened = open.is_none().then(|| Incident::opened(line));
        let Some(incident) = open.or(opened.as_ref()) else { return };
        let told = open.and_then(|i| i.told_line);
        let muted = self.silences.iter().any(|s| s.mutes(incident, line.at));
        // A resolve is told to whoever was told of the incident, silenced or not; else there is nothing to take back.
        let owed = if line.event == Event::Resolved { told.is_some() } else { !muted };
        if !owed {
            return;
        }
        let number = open.map_or(0, |i| i.timeline.len());
        let place = if told.is_some() { "reply" } else { "root" };
        for receiver in self.promises.receivers.iter().filter(|r| notify.contains(&r.name)) {
            for recipient in &receiver.recipients {
                let id_of = |place: &str, number: usize| derived_id(&[&line.id, place, &number.to_string(), &receiver.name, recipient]);
                out.push(Notification {
                    id: id_of(place, number),
                    receiver: receiver.name.clone(),
                    recipient: recipient.clone(),
                    channel: receiver.channel,
                    root: told.map(|root| id_of("root", root as usize)),
                    line: line.clone(),
                });
            }
        }
    }

    fn configure(&self, at: Timestamp, promises: Promises) -> Record {
        // Before the first endpoint there is no past that a promise could come too late for.
        let now = (!self.endpoints.is_empty()).then(|| Slot::containing(at));
        let promises = promises.dated(&self.promises, now);
        let (mut transitions, mut notifications) = (Vec::new(), Vec::new());
        for incident in self.incidents.values() {
            if let Some(name) = incident.evidence.change().and_then(|c| c.name.as_deref()) {
                let is_kept = promises.flows.iter().any(|f| f.name == name) || promises.expected.iter().any(|e| e.name == name);
                if !is_kept {
                    let mut line = incident.line(at, Event::Resolved);
                    line.evidence.state = State::Resolved;
                    line.summary = format!("{name} is no longer configured.");
                    let notify = changes::notify_of(&incident.endpoint(), Some(name), &self.promises);
                    self.tell(&mut notifications, &line, Some(incident), &notify);
                    transitions.push(line);
                }
                continue;
            }
            let Some(rule) = self.rules.iter().find(|r| r.incident.as_ref() == Some(&incident.id)) else { continue };
            let kept = promises.of(&rule.key).flat_map(|o| &o.promises).any(|p| p.goal == rule.promise.goal);
            if !kept {
                let mut line = incident.line(at, Event::Resolved);
                line.evidence.state = State::Resolved;
                line.summary = format!("{}: {} is no longer configured.", rule.key.title(), incident.objective);
                self.tell(&mut notifications, &line, Some(incident), &rule.notify);
                transitions.push(line);
            }
        }
        Record::Configured { at, promises, transitions, notifications }
    }

    /// Something was found by the detectors, or by what is counted beside; it is said with a slot end. Part of taking a record in.
    pub fn find(&mut self, found: Vec<Found>) {
        self.found.extend(found);
    }

    /// Takes a record in; gives back the incidents that it changed. Never decides, never fails.
    pub fn apply(&mut self, record: &Record) -> Vec<Incident> {
        match record {
            Record::SlotClosed(closed) => self.apply_closed(closed),
            Record::Configured { promises, transitions, notifications, .. } => {
                let changed = self.apply_lines(transitions, notifications);
                self.apply_promises(promises.clone());
                changed
            }
            Record::Acked { incident, ack } => {
                let Some(open) = self.incidents.get_mut(incident) else { return Vec::new() };
                open.acked = Some(ack.clone());
                vec![open.clone()]
            }
            Record::Silenced(silence) => {
                self.silences.retain(|s| s.id != silence.id && s.until > silence.from);
                self.silences.push(silence.clone());
                Vec::new()
            }
            Record::Unsilenced { id, at } => {
                for silence in self.silences.iter_mut().filter(|s| s.id == *id) {
                    silence.until = silence.until.min(*at);
                }
                // Kept for the slot end that tells of what it muted; swept with the next silence.
                Vec::new()
            }
            Record::Delivered { notification, .. } => {
                self.outbox.retain(|n| n.id != *notification);
                Vec::new()
            }
            Record::Found { quarter, .. } => {
                self.watched_to = self.watched_to.max(Some(*quarter));
                Vec::new()
            }
            Record::Started { .. } | Record::Marked(_) | Record::Reports { .. } => Vec::new(),
            Record::Learnt(_) => {
                self.has_learnt = true;
                Vec::new()
            }
        }
    }

    fn apply_closed(&mut self, closed: &SlotClosed) -> Vec<Incident> {
        for change in &closed.memories {
            let rules = self.rules_of(change.endpoint);
            for rule in self.rules[rules].iter_mut().filter(|r| r.name == change.objective) {
                rule.set_memory(change.pair, change.memory);
            }
        }
        let changed = self.apply_lines(&closed.transitions, &closed.notifications);
        self.judged_to = Some(self.judged_to.map_or(closed.end, |j| j.max(closed.end)));
        self.found.retain(|f| f.due > closed.end);
        while let Some((_, index)) = self.due.first().filter(|d| d.0 <= closed.end).copied() {
            self.due.pop_first();
            self.rules[index].due = None;
            let next = self.rules[index].next_due(closed.end);
            self.set_due(index, next, false);
        }
        changed
    }

    fn apply_lines(&mut self, transitions: &[Transition], notifications: &[Notification]) -> Vec<Incident> {
        let mut changed = Vec::new();
        if transitions.is_empty() && notifications.is_empty() {
            return changed;
        }
        for line in transitions {
            let incident = self.incidents.entry(line.id.clone()).and_modify(|i| i.moved(line)).or_insert_with(|| Incident::opened(line));
            let resolved = incident.state == State::Resolved;
            let rules = self.judged.get(&line.endpoint()).map_or(0..0, |id| self.rules_of(*id));
            for rule in self.rules[rules].iter_mut().filter(|r| line.evidence.promise().is_some_and(|p| p.objective == r.name)) {
                rule.incident = (!resolved).then(|| line.id.clone());
            }
        }
        let lines_of: BTreeSet<&str> = transitions.iter().map(|t| t.id.as_str()).collect();
        for n in notifications {
            if let Some(incident) = self.incidents.get_mut(&n.line.id).filter(|i| i.told_line.is_none()) {
                // The number under which `tell` derived this notification's id.
                let told_by_own_line = lines_of.contains(n.line.id.as_str());
                let number = incident.timeline.len() - usize::from(told_by_own_line);
                incident.told_line = u32::try_from(number).ok();
            }
        }
        let mut waiting: BTreeSet<String> = if notifications.is_empty() { BTreeSet::new() } else { self.outbox.iter().map(|n| n.id.clone()).collect() };
        self.outbox.extend(notifications.iter().filter(|n| waiting.insert(n.id.clone())).cloned());
        let mut seen = BTreeSet::new();
        for id in transitions.iter().map(|t| &t.id).chain(notifications.iter().map(|n| &n.line.id)) {
            if let Some(incident) = self.incidents.get(id).filter(|_| seen.insert(id)) {
                changed.push(incident.clone());
            }
        }
        self.incidents.retain(|_, i| i.state != State::Resolved);
        changed
    }

    fn apply_promises(&mut self, promises: Promises) {
        self.promises = Arc::new(promises);
        let before = std::mem::take(&mut self.rules);
        self.rules_of.clear();
        self.judged.clear();
        self.due.clear();
        for id in 0..self.endpoints.len() {
            self.add_rules(EndpointId(u32::try_from(id).expect("ids are u32")));
        }
        let mut kept: HashMap<_, _> = before.into_iter().map(|r| ((r.endpoint, r.promise.goal), r)).collect();
        for rule in &mut self.rules {
            if let Some(old) = kept.remove(&(rule.endpoint, rule.promise.goal)) {
                rule.take_over(old);
            }
        }
        self.refresh();
    }
}

/// What of the judge is kept in a snapshot; promises and incidents as JSON, because their types grow.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    judged_to: Option<Slot>,
    json: String,
    rules: Vec<rule::Kept>,
}

#[derive(Serialize, Deserialize)]
struct Told {
    promises: Promises,
    incidents: BTreeMap<String, Incident>,
    outbox: Vec<Notification>,
    silences: Vec<Silence>,
    #[serde(default)]
    found: Vec<Found>,
    #[serde(default)]
    watched_to: Option<i64>,
    has_learnt: bool,
}

impl Judge {
    /// Its state, to be kept.
    ///
    /// # Panics
    /// Never: everything in it has text keys and finite numbers.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let told = Told {
            promises: (*self.promises).clone(),
            incidents: self.incidents.clone(),
            outbox: self.outbox.clone(),
            silences: self.silences.clone(),
            found: self.found.clone(),
            watched_to: self.watched_to,
            has_learnt: self.has_learnt,
        };
        let json = serde_json::to_string(&told).expect("text keys and finite numbers");
        Snapshot { judged_to: self.judged_to, json, rules: self.rules.iter().map(Rule::kept).collect() }
    }

    /// The judge of a snapshot, with the endpoints in the order of their ids.
    ///
    /// # Errors
    /// When the JSON is of another version.
    pub fn restore(snapshot: Snapshot, endpoints: impl Iterator<Item = Arc<EndpointKey>>) -> Result<Self, serde_json::Error> {
        let told: Told = serde_json::from_str(&snapshot.json)?;
        let mut judge = Self::new(told.promises);
        for (id, key) in endpoints.enumerate() {
            judge.add_endpoint(EndpointId(u32::try_from(id).expect("ids are u32")), key);
        }
        judge.judged_to = snapshot.judged_to;
        (judge.incidents, judge.outbox, judge.silences) = (told.incidents, told.outbox, told.silences);
        (judge.found, judge.watched_to, judge.has_learnt) = (told.found, told.watched_to, told.has_learnt);
        let mut kept: HashMap<_, _> = snapshot.rules.into_iter().map(|r| ((r.endpoint, r.goal), r)).collect();
        for rule in &mut judge.rules {
            if let Some(old) = kept.remove(&(rule.endpoint, rule.promise.goal)) {
                rule.restore(old);
            }
        }
        judge.refresh();
        Ok(judge)
    }

    /// Ties open incidents to their rules again and forgets all counts; before they are counted anew from history.
    pub fn forget_counts(&mut self) {
        for rule in &mut self.rules {
            rule.forget_counts();
        }
    }
}

fn line_of(rule: &Rule, end: Slot, at: Timestamp, event: Event, after: &[Memory], open: Option<&Incident>) -> Transition {
    let kind = rule.promise.kind();
    let id = open.map_or_else(|| incident_id(&rule.key, kind, &rule.name, end), |i| i.id.clone());
    let open_for_ms = open.map_or(0, |i| at.0 - i.opened_at.0);
    let evidence = rule.evidence(end, after, open, event, open_for_ms);
    Transition {
        at,
        event,
        id,
        kind,
        severity: rule.severity(after).or(open.map(|i| i.severity)).unwrap_or(crate::objective::Severity::Warning),
        service: rule.key.service.clone(),
        env: rule.key.env.clone(),
        method: rule.key.method.clone(),
        route: rule.key.route.clone(),
        summary: evidence.promise().map_or_else(String::new, |p| text::summary(&rule.key, kind, event, evidence.state, p, open_for_ms)),
        breach_at: None,
        breach_from: None,
        breach_to: None,
        evidence,
    }
}
