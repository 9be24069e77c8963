//! One promise of one endpoint: its sums, its budget, what its windows remember, and how it stands.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use smallvec::SmallVec;

use super::burn::{self, Ahead, At, Look, Memory, Pair, Room};
use super::evidence::{Turns, three_digits};
use super::promises::{Owed, Promise};
use super::sums::{Sum, Sums};
use crate::counting::{Cell, Outcome, Tally};
use crate::endpoint::{EndpointId, EndpointKey};
use crate::incident::{Broken, Event, Evidence, Grounds, Incident, State, Transition, Verdict, WindowEvidence};
use crate::objective::{Goal, PPB, Severity, burn_rate, percent_text, slots_name};
use crate::time::{Slot, Timestamp};

const SLOTS_AN_HOUR: u32 = 360;

/// The least and the most that is looked ahead first: half a minute, and a day.
const HORIZON_SLOTS_MIN: u32 = 4;
const HORIZON_SLOTS_MAX: u32 = 8_640;

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) endpoint: EndpointId,
    pub(super) key: Arc<EndpointKey>,
    pub(super) promise: Promise,
    pub(super) name: String,
    pub(super) critical: bool,
    pub(super) notify: Vec<String>,
    pub(super) memories: Memories,
    pub(super) incident: Option<String>,
    pub(super) due: Option<Slot>,
    pairs: Vec<Pair>,
    /// So much may come before it must be looked at.
    room: Room,
    /// For how long ahead it is asked whether it stays as it is.
    horizon_slots: u32,
    sums: Sums,
    hours: Hours,
    /// Requests that still run and are bad already.
    running: u64,
}

/// What the pairs of a rule remember.
pub(super) type Memories = SmallVec<[Memory; 4]>;

/// Requests by hour of the budget's period, ascending; those that hold nothing are not there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Hours(VecDeque<(u32, Sum)>);

impl Hours {
    fn add(&mut self, hour: u32, sum: Sum) {
        let at = match self.0.back() {
            Some(last) if last.0 < hour => self.0.len(),
            Some(last) if last.0 == hour => self.0.len() - 1,
            _ => self.0.partition_point(|h| h.0 < hour),
        };
        match self.0.get_mut(at) {
            Some(found) if found.0 == hour => found.1 += sum,
            _ => self.0.insert(at, (hour, sum)),
        }
    }

    fn sum(&self, from: u32, to: u32) -> Sum {
        self.0.iter().filter(|h| (from..=to).contains(&h.0)).fold(Sum::default(), |sum, h| sum + h.1)
    }

    fn forget_before(&mut self, hour: u32) {
        while self.0.front().is_some_and(|h| h.0 < hour) {
            self.0.pop_front();
        }
    }
}

/// What of a rule is kept in a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) endpoint: EndpointId,
    pub(super) goal: Goal,
    memories: Vec<Memory>,
    incident: Option<String>,
    sums: Sums,
    hours: Hours,
}

/// How an objective stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveState {
    /// Kept.
    Ok,
    /// An incident is open.
    Burning,
    /// An incident is open and no request comes.
    Unverified,
    /// It looks broken, and luck is not excluded.
    Undecided,
    /// No request has come in its longest window.
    NoTraffic,
}

/// An objective as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectiveStatus {
    /// Of the endpoint.
    pub service: String,
    /// Of the endpoint.
    pub env: String,
    /// Of the endpoint.
    pub kind: String,
    /// Of the endpoint.
    pub method: String,
    /// Of the endpoint.
    pub route: String,
    /// `latency<=800ms` and the like.
    pub objective: String,
    /// The share promised, 0 to 1.
    pub target_ratio: f64,
    /// The budget's period, such as `30d`.
    pub period: String,
    /// How it stands.
    pub state: ObjectiveState,
    /// The share of the budget that is left: 1 all, 0 none, below 0 overdrawn.
    pub error_budget_remaining_ratio: f64,
    /// Requests in the period.
    pub n: u64,
    /// Bad ones among them.
    pub bad: u64,
    /// When `undecided`: by when it is over unless more bad requests come. Any request may decide sooner.
    pub undecided_until: Option<Timestamp>,
    /// The pairs of windows.
    pub windows: Vec<WindowStatus>,
    /// The open incident.
    pub incident: Option<String>,
    /// Up to when it was judged.
    pub judged_to: Timestamp,
    #[serde(skip)]
    pub(crate) endpoint: EndpointId,
    #[serde(skip)]
    goal: Goal,
}

impl ObjectiveStatus {
    /// Requests of a cell and the bad ones among them, by weight.
    pub(crate) fn requests_and_bad(&self, cell: &Cell) -> (u64, u64) {
        requests_and_bad(self.goal, cell)
    }
}

/// Requests of a cell and those among them that are bad for a goal, by weight.
#[must_use]
pub fn requests_and_bad(goal: Goal, cell: &Cell) -> (u64, u64) {
    let sum = sum_of(goal, cell);
    (sum.total.weight, sum.bad.weight)
}

fn sum_of(goal: Goal, cell: &Cell) -> Sum {
    let total = cell.total();
    let bad = match goal {
        Goal::Availability => cell.failures(),
        Goal::Latency { threshold_us } => total - cell.at_threshold(threshold_us).within,
        Goal::Quantile { threshold_us, .. } => {
            let count = cell.at_threshold(threshold_us);
            total - count.within - count.failed_within
        }
    };
    Sum { total, bad }
}

/// A pair of windows as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct WindowStatus {
    /// The numbers.
    #[serde(flatten)]
    pub evidence: WindowEvidence,
    /// What an incident of it is.
    pub severity: Severity,
}

impl Rule {
    pub(super) fn new(endpoint: EndpointId, key: Arc<EndpointKey>, promise: Promise, owed: &Owed, turns: &mut Turns) -> Self {
        Self {
            endpoint,
            key,
            name: promise.goal.name(),
            critical: owed.critical,
            notify: owed.notify.clone(),
            memories: SmallVec::from_elem(Memory::Idle, promise.windows.len()),
            incident: None,
            due: None,
            pairs: promise.windows.iter().map(|w| Pair::new(w, promise.budget_ppb(), turns)).collect(),
            room: Room::default(),
            horizon_slots: HORIZON_SLOTS_MIN,
            sums: Sums::default(),
            hours: Hours::default(),
            running: 0,
            promise,
        }
    }

    fn sum_of(&self, cell: &Cell) -> Sum {
        sum_of(self.promise.goal, cell)
    }

    fn sum_of_one(&self, outcome: Outcome, us: u64) -> Sum {
        let one = Tally { weight: 1, observed: 1 };
        let is_good = match self.promise.goal {
            Goal::Availability => !outcome.is_failure(),
            Goal::Latency { threshold_us } => !outcome.is_failure() && us <= threshold_us,
            Goal::Quantile { threshold_us, .. } => us <= threshold_us,
        };
        Sum { total: one, bad: if is_good { Tally::default() } else { one } }
    }

    /// Counts a cell; whether what it says can have changed by it.
    pub(super) fn count(&mut self, slot: Slot, cell: &Cell, judged_to: Slot) -> bool {
        slot >= self.promise.since && self.count_sum(slot, self.sum_of(cell), judged_to)
    }

    /// Likewise, one timing.
    pub(super) fn count_one(&mut self, slot: Slot, outcome: Outcome, us: u64, judged_to: Slot) -> bool {
        slot >= self.promise.since && self.count_sum(slot, self.sum_of_one(outcome, us), judged_to)
    }

    fn count_sum(&mut self, slot: Slot, sum: Sum, judged_to: Slot) -> bool {
        if self.sums.add(slot, sum) {
            self.forget(judged_to);
        }
        // The budget counts whole hours: of the hour in which it was promised history does not keep apart what came after.
        if slot.0 / SLOTS_AN_HOUR >= self.promise.since.0.div_ceil(SLOTS_AN_HOUR) {
            self.hours.add(slot.0 / SLOTS_AN_HOUR, sum);
        }
        let left = self.room.without(sum);
        self.room = left.unwrap_or_default();
        left.is_none()
    }

    pub(super) fn count_budget(&mut self, hour_start: Slot, cell: &Cell) {
        if hour_start >= self.promise.since {
            let sum = self.sum_of(cell);
            self.hours.add(hour_start.0 / SLOTS_AN_HOUR, sum);
        }
    }

    /// Replaces the number of requests that still run and are bad already; whether it is another.
    pub(super) fn set_running(&mut self, n: u64) -> bool {
        let changed = self.running != n;
        self.running = n;
        if changed {
            self.room = Room::default();
        }
        changed
    }

    /// All that is known at a slot end.
    fn at(&self, end: Slot) -> At<'_> {
        let running = Tally { weight: self.running, observed: self.running };
        At::new(&self.sums, end).with(Sum { total: running, bad: running })
    }

    fn forget(&mut self, end: Slot) {
        self.sums.forget(end, self.promise.longest_slots());
        self.hours.forget_before(end.back(self.promise.period_slots).0 / SLOTS_AN_HOUR);
    }

    pub(super) fn step(&self, end: Slot) -> Memories {
        let at = self.at(end);
        self.pairs.iter().zip(&self.memories).map(|(pair, memory)| burn::step(*memory, &at, pair)).collect()
    }

    pub(super) fn set_memory(&mut self, pair: usize, memory: Memory) {
        if let Some(of_pair) = self.memories.get_mut(pair) {
            *of_pair = memory;
            self.room = Room::default();
        }
    }

    /// When it must be looked at after this slot end, unless more than its room comes before.
    pub(super) fn next_due(&mut self, end: Slot) -> Option<Slot> {
        let at = self.at(end);
        let quiet = |(pair, memory): (&Pair, &Memory)| *memory == Memory::Idle && !at.has_bad(pair);
        if self.pairs.iter().zip(&self.memories).all(quiet) {
            // Good requests alone start nothing.
            self.room = Room { good: u64::MAX, bad: 0 };
            return self.sums.next_bad(end);
        }
        let held = self.pairs.iter().zip(&self.memories).filter_map(|(pair, memory)| burn::next_held(*memory, end, pair)).min();
        let mut horizon_slots = self.horizon_slots;
        while horizon_slots >= HORIZON_SLOTS_MIN {
            // For twice of what came in as long.
            let Sum { total, bad } = self.sums.window(end, horizon_slots);
            let room = Room { good: 2 * (total.weight - bad.weight) + 2, bad: 2 * bad.weight + 1 };
            if self.keeps(&Ahead::new(self.at(end), horizon_slots, room)) {
                (self.room, self.horizon_slots) = (room, (2 * horizon_slots).min(HORIZON_SLOTS_MAX));
                let nothing_leaves = self.sums.next_entry(end.back(self.promise.longest_slots())).is_none();
                return held.into_iter().chain((!nothing_leaves).then(|| Slot(end.0 + horizon_slots))).min();
            }
            horizon_slots /= 4;
        }
        (self.room, self.horizon_slots) = (Room::default(), HORIZON_SLOTS_MIN);
        let at = self.at(end);
        self.pairs.iter().zip(&self.memories).filter_map(|(pair, memory)| burn::next_change(*memory, &at, pair)).chain(held).min()
    }

    /// Whether it surely says the same at all of these slot ends.
    fn keeps(&self, ahead: &Ahead<'_>) -> bool {
        let all = self.pairs.iter().zip(&self.memories).all(|(pair, memory)| ahead.keeps(*memory, pair));
        all && self.verified_by(&self.memories).is_none_or(|long_slots| {
            let bounds = ahead.window(long_slots);
            bounds.is_busy() || bounds.is_empty()
        })
    }

    /// The severity of an incident with these memories: the worst of the windows that fire; a warning at most where the endpoint is not critical.
    pub(super) fn severity(&self, memories: &[Memory]) -> Option<Severity> {
        let firing = self.promise.windows.iter().zip(memories).filter(|(_, m)| m.is_firing());
        let worst = firing.map(|(w, _)| w.severity).max()?;
        Some(if self.critical { worst } else { Severity::Warning })
    }

    /// What is to be said after this slot end, if anything.
    pub(super) fn transition(&self, end: Slot, at: Timestamp, after: &[Memory], open: Option<&Incident>) -> Option<Transition> {
        let severity = self.severity(after);
        let event = match (open, severity) {
            (None, Some(_)) => Event::Opened,
            (Some(_), None) => Event::Resolved,
            (Some(open), Some(severity)) if severity > open.severity => Event::Escalated,
            (Some(open), Some(severity)) if severity < open.severity => Event::Deescalated,
            (Some(open), Some(_)) if (open.state == State::Unverified) != self.is_unverified(end, after) => Event::Updated,
            _ => return None,
        };
        Some(super::line_of(self, end, at, event, after, open))
    }

    /// Whether no request came in the shortest long window that fires.
    fn is_unverified(&self, end: Slot, memories: &[Memory]) -> bool {
        self.verified_by(memories).is_some_and(|long_slots| self.sums.window(end, long_slots).total.observed == 0)
    }

    /// The window without a request in which an incident is unverified: the shortest long one that fires; `None` while something runs, or nothing fires.
    fn verified_by(&self, memories: &[Memory]) -> Option<u32> {
        let firing = self.promise.windows.iter().zip(memories).filter(|(_, m)| m.is_firing()).map(|(w, _)| w.long_slots);
        firing.min().filter(|_| self.running == 0)
    }

    fn window_evidence(&self, end: Slot, memories: &[Memory]) -> Vec<WindowEvidence> {
        let (budget, at) = (self.promise.budget_ppb(), self.at(end));
        let pairs = self.pairs.iter().zip(memories);
        pairs
            .map(|(pair, memory)| {
                let (look, window) = (Look::at(&at, pair), &pair.window);
                let verdict = match (memory.is_firing(), look.burns) {
                    (true, _) => Verdict::Firing,
                    (false, true) => Verdict::Undecided,
                    (false, false) => Verdict::Ok,
                };
                WindowEvidence {
                    long: window.long_name(),
                    short: window.short_name(),
                    factor: window.factor(),
                    verdict,
                    requests_long: look.long.total.weight,
                    bad_long: look.long.bad.weight,
                    observed_long: look.long.total.observed,
                    burn_long: three_digits(burn_rate(look.long.bad.weight, look.long.total.weight, budget)),
                    requests_short: look.short.total.weight,
                    bad_short: look.short.bad.weight,
                    burn_short: three_digits(burn_rate(look.short.bad.weight, look.short.total.weight, budget)),
                    p_value: three_digits(look.p_value),
                }
            })
            .collect()
    }

    fn period_sum(&self, end: Slot) -> Sum {
        let oldest = end.back(self.promise.period_slots).0 / SLOTS_AN_HOUR;
        self.hours.sum(oldest, end.0 / SLOTS_AN_HOUR)
    }

    #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
    fn budget_left(&self, sum: Sum) -> f64 {
        if sum.total.weight == 0 {
            return 1.0;
        }
        let allowed = sum.total.weight as f64 * self.promise.budget_ppb() as f64 / PPB as f64;
        // Six digits: the text of a ratio must not depend on the order of floating-point operations.
        ((1.0 - sum.bad.weight as f64 / allowed) * 1e6).round() / 1e6
    }

    pub(super) fn evidence(&self, end: Slot, memories: &[Memory], open: Option<&Incident>, event: Event, open_for_ms: i64) -> Evidence {
        let period = self.period_sum(end);
        let left = self.budget_left(period);
        let windows = self.window_evidence(end, memories);
        let burning = windows.iter().find(|w| w.verdict == Verdict::Firing).map(|w| w.burn_long).filter(|b| *b > 0.0 && left > 0.0);
        // From the window that decided, so that the end of an incident speaks of no fewer requests than its page.
        let before = open.and_then(|i| i.evidence.promise()).map_or(&windows, |p| &p.windows);
        let decided = before.iter().position(|w| w.verdict == Verdict::Firing).unwrap_or(0);
        let back = self.promise.windows.get(decided).map_or(1, |w| w.long_slots);
        let since = self.sums.window(end, u32::try_from(open_for_ms / 10_000).unwrap_or(0).saturating_add(back).min(self.promise.longest_slots()));
        let state = match event {
            Event::Resolved => State::Resolved,
            _ if self.is_unverified(end, memories) => State::Unverified,
            _ => State::Firing,
        };
        #[expect(clippy::cast_possible_truncation, reason = "a duration in whole seconds for people; `as` saturates")]
        let exhausted = burning.map(|b| (f64::from(self.promise.period_slots) * 10.0 * left / b) as i64);
        let broken = Broken {
            objective: self.name.clone(),
            target: percent_text(self.promise.target_ppb),
            windows,
            period_requests: period.total.weight,
            period_bad: period.bad.weight,
            period: slots_name(self.promise.period_slots),
            budget_remaining_ratio: left,
            budget_exhausted_in_seconds: exhausted,
            still_running: self.running,
            bad_since_opened: since.bad.weight,
            requests_since_opened: since.total.weight,
        };
        Evidence { endpoint_kind: self.key.kind.clone(), state, slowest_trace: None, grounds: Grounds::Promise(Box::new(broken)) }
    }

    #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
    pub(super) fn status(&self, end: Slot, judge_after_ms: i64) -> ObjectiveStatus {
        let evidence = self.window_evidence(end, &self.memories);
        let period = self.period_sum(end);
        let undecided = self.promise.windows.iter().zip(&evidence).filter(|(_, e)| e.verdict == Verdict::Undecided);
        let last_bad = self.sums.last_bad(end);
        let undecided_until = undecided.filter_map(|(w, _)| last_bad.map(|s| Slot(s.0 + w.short_slots))).max();
        let state = if self.incident.is_some() {
            if self.is_unverified(end, &self.memories) { ObjectiveState::Unverified } else { ObjectiveState::Burning }
        } else if undecided_until.is_some() {
            ObjectiveState::Undecided
        } else if self.sums.window(end, self.promise.longest_slots()).total.observed == 0 {
            ObjectiveState::NoTraffic
        } else {
            ObjectiveState::Ok
        };
        ObjectiveStatus {
            service: self.key.service.clone(),
            env: self.key.env.clone(),
            kind: self.key.kind.clone(),
            method: self.key.method.clone(),
            route: self.key.route.clone(),
            objective: self.name.clone(),
            target_ratio: self.promise.target_ppb as f64 / PPB as f64,
            period: slots_name(self.promise.period_slots),
            state,
            error_budget_remaining_ratio: self.budget_left(period),
            n: period.total.weight,
            bad: period.bad.weight,
            undecided_until: undecided_until.filter(|_| state == ObjectiveState::Undecided).map(|s| s.end().plus_ms(judge_after_ms)),
            windows: evidence.into_iter().zip(&self.promise.windows).map(|(evidence, w)| WindowStatus { evidence, severity: w.severity }).collect(),
            incident: self.incident.clone(),
            judged_to: end.end(),
            endpoint: self.endpoint,
            goal: self.promise.goal,
        }
    }

    /// Goes on where the same promise stood before a reload; windows that changed begin anew.
    pub(super) fn take_over(&mut self, old: Self) {
        // What came before it was promised does not count, and a rebuild would not count it.
        if old.promise.since == self.promise.since {
            (self.sums, self.hours) = (old.sums, old.hours);
        }
        self.incident = old.incident;
        for (i, memory) in self.memories.iter_mut().enumerate() {
            if old.promise.windows.get(i) == self.promise.windows.get(i) && old.promise.target_ppb == self.promise.target_ppb {
                *memory = old.memories[i];
            }
        }
    }

    pub(super) fn kept(&self) -> Kept {
        Kept {
            endpoint: self.endpoint,
            goal: self.promise.goal,
            memories: self.memories.to_vec(),
            incident: self.incident.clone(),
            sums: self.sums.clone(),
            hours: self.hours.clone(),
        }
    }

    pub(super) fn restore(&mut self, kept: Kept) {
        if kept.memories.len() == self.memories.len() {
            self.memories = kept.memories.into();
        }
        (self.incident, self.sums, self.hours) = (kept.incident, kept.sums, kept.hours);
    }

    pub(super) fn forget_counts(&mut self) {
        self.sums = Sums::default();
        self.hours = Hours::default();
        self.room = Room::default();
    }
}
