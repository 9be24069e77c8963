//! One promise of one endpoint: its sums, its budget, what its windows remember, and how it stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::burn::{self, Look, Memory, Sum, Sums};
use super::evidence::three_digits;
use super::promises::{Owed, Promise};
use crate::counting::Cell;
use crate::endpoint::{EndpointId, EndpointKey};
use crate::incident::{Event, Evidence, Incident, State, Transition, Verdict, WindowEvidence};
use crate::objective::{Goal, PPB, Severity, burn_rate, percent_text, slots_name};
use crate::time::{Slot, Timestamp};

const SLOTS_AN_HOUR: u32 = 360;

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) endpoint: EndpointId,
    pub(super) key: Arc<EndpointKey>,
    pub(super) promise: Promise,
    pub(super) name: String,
    pub(super) critical: bool,
    pub(super) notify: Vec<String>,
    pub(super) memories: Vec<Memory>,
    pub(super) incident: Option<String>,
    pub(super) due: Option<Slot>,
    sums: Sums,
    /// Requests by hour of the budget's period.
    hours: BTreeMap<u32, Sum>,
}

/// What of a rule is kept in a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) endpoint: EndpointId,
    pub(super) goal: Goal,
    memories: Vec<Memory>,
    incident: Option<String>,
    sums: Sums,
    hours: BTreeMap<u32, Sum>,
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
    pub(super) fn new(endpoint: EndpointId, key: Arc<EndpointKey>, promise: Promise, owed: &Owed) -> Self {
        Self {
            endpoint,
            key,
            name: promise.goal.name(),
            critical: owed.critical,
            notify: owed.notify.clone(),
            memories: vec![Memory::Idle; promise.windows.len()],
            incident: None,
            due: None,
            sums: Sums::default(),
            hours: BTreeMap::new(),
            promise,
        }
    }

    fn sum_of(&self, cell: &Cell) -> Sum {
        let total = cell.total();
        let bad = match self.promise.goal {
            Goal::Availability => cell.failures(),
            Goal::Latency { threshold_us } => total - cell.at_threshold(threshold_us).within,
            Goal::Quantile { threshold_us, .. } => {
                let count = cell.at_threshold(threshold_us);
                total - count.within - count.failed_within
            }
        };
        Sum { total, bad }
    }

    /// Counts a cell; whether what it says can have changed by it.
    pub(super) fn count(&mut self, slot: Slot, cell: &Cell) -> bool {
        if slot < self.promise.since {
            return false;
        }
        let sum = self.sum_of(cell);
        self.sums.add(slot, sum);
        // The budget counts whole hours: of the hour in which it was promised history does not keep apart what came after.
        if slot.0 / SLOTS_AN_HOUR >= self.promise.since.0.div_ceil(SLOTS_AN_HOUR) {
            self.add_hour(slot, sum);
        }
        // Good requests alone start nothing: they only lower what burns.
        sum.bad.observed > 0 || self.memories.iter().any(|m| m.is_firing())
    }

    pub(super) fn count_budget(&mut self, hour_start: Slot, cell: &Cell) {
        if hour_start >= self.promise.since {
            let sum = self.sum_of(cell);
            self.add_hour(hour_start, sum);
        }
    }

    fn add_hour(&mut self, slot: Slot, sum: Sum) {
        let hour = self.hours.entry(slot.0 / SLOTS_AN_HOUR).or_default();
        hour.total += sum.total;
        hour.bad += sum.bad;
    }

    pub(super) fn step(&self, end: Slot) -> Vec<Memory> {
        let budget = self.promise.budget_ppb();
        self.promise.windows.iter().zip(&self.memories).map(|(window, memory)| burn::look_and_step(*memory, &self.sums, end, window, budget)).collect()
    }

    pub(super) fn next_due(&mut self, end: Slot) -> Option<Slot> {
        self.sums.forget(end, self.promise.longest_slots());
        let oldest = end.back(self.promise.period_slots).0 / SLOTS_AN_HOUR;
        while self.hours.first_key_value().is_some_and(|(hour, _)| *hour < oldest) {
            self.hours.pop_first();
        }
        let budget = self.promise.budget_ppb();
        let pairs = self.promise.windows.iter().zip(&self.memories);
        pairs.filter_map(|(window, memory)| burn::next_due(*memory, &self.sums, end, window, budget)).min()
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
        let firing = self.promise.windows.iter().zip(memories).filter(|(_, m)| m.is_firing()).map(|(w, _)| w.long_slots);
        firing.min().is_some_and(|long| self.sums.window(end, long).total.observed == 0)
    }

    fn window_evidence(&self, end: Slot, memories: &[Memory]) -> Vec<WindowEvidence> {
        let budget = self.promise.budget_ppb();
        let pairs = self.promise.windows.iter().zip(memories);
        pairs
            .map(|(window, memory)| {
                let look = Look::at(&self.sums, end, window, budget);
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
        self.hours.range(oldest..=end.0 / SLOTS_AN_HOUR).fold(Sum::default(), |mut sum, (_, hour)| {
            sum.total += hour.total;
            sum.bad += hour.bad;
            sum
        })
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
        let before = open.map_or(&windows, |i| &i.evidence.windows);
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
        Evidence {
            objective: self.name.clone(),
            target: percent_text(self.promise.target_ppb),
            endpoint_kind: self.key.kind.clone(),
            state,
            windows,
            period_requests: period.total.weight,
            period_bad: period.bad.weight,
            period: slots_name(self.promise.period_slots),
            budget_remaining_ratio: left,
            budget_exhausted_in_seconds: exhausted,
            bad_since_opened: since.bad.weight,
            requests_since_opened: since.total.weight,
        }
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
        }
    }

    pub(super) fn is_of(&self, line: &Transition) -> bool {
        self.key.service == line.service && self.key.env == line.env && self.key.method == line.method && self.key.route == line.route
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
            memories: self.memories.clone(),
            incident: self.incident.clone(),
            sums: self.sums.clone(),
            hours: self.hours.clone(),
        }
    }

    pub(super) fn restore(&mut self, kept: Kept) {
        if kept.memories.len() == self.memories.len() {
            self.memories = kept.memories;
        }
        (self.incident, self.sums, self.hours) = (kept.incident, kept.sums, kept.hours);
    }

    pub(super) fn forget_counts(&mut self) {
        self.sums = Sums::default();
        self.hours.clear();
    }
}
