//! What is owed, as it stands in the log: the part of the configuration that decisions depend on. Secrets and addresses of servers are
//! not in it; the names of receivers and their recipients are.

use serde::{Deserialize, Serialize};

use crate::endpoint::{EndpointKey, Selector};
use crate::histogram::Digits;
use crate::incident::{Channel, Kind};
use crate::objective::{BurnWindow, Goal, PPB, Severity};
use crate::time::Slot;

/// Everything owed, and who is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Promises {
    /// How long after its end a slot is judged, in milliseconds.
    pub judge_after_ms: i64,
    /// What is owed by which endpoints, in the order configured.
    pub endpoints: Vec<Owed>,
    /// Whom to tell, in the order configured.
    pub receivers: Vec<Receiver>,
    /// False alarms of each class that an endpoint may have in 30 days.
    #[serde(default = "false_alarms")]
    pub false_alarms: f64,
    /// Work in against work out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flows: Vec<FlowOwed>,
    /// So many by a time of day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<ExpectedOwed>,
}

impl Default for Promises {
    fn default() -> Self {
        Self::none(15_000)
    }
}

/// What is usual, and one in a hundred months.
fn false_alarms() -> f64 {
    0.01
}

/// One `[[flow]]` entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowOwed {
    /// Its name.
    pub name: String,
    /// Where work goes in.
    pub from: Selector,
    /// Where it comes out.
    pub to: Selector,
    /// The time allowed, in milliseconds; `None`: learned as part of the ratio of a quarter of an hour.
    pub within_ms: Option<i64>,
    /// The share that must come out; `None`: learned.
    pub ratio_ppb: Option<u64>,
    /// The receivers by name; `None`: whoever is told of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Vec<String>>,
}

/// One `[[expected]]` entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpectedOwed {
    /// Its name.
    pub name: String,
    /// Where the work is counted.
    pub endpoint: Selector,
    /// How many.
    pub count: u64,
    /// The time of day, `05:00`.
    pub by: String,
    /// The time zone, `America/Chicago`.
    pub timezone: String,
    /// The receivers by name; `None`: whoever is told of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Vec<String>>,
}

/// What one `[[endpoint]]` entry owes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Owed {
    /// Which endpoints; each match is judged by itself.
    pub selector: Selector,
    /// Whether its incidents may be critical, and whether limits pass it by.
    pub critical: bool,
    /// The grid of its histograms.
    pub digits: Digits,
    /// Its objectives and thresholds.
    pub promises: Vec<Promise>,
    /// The receivers by name.
    pub notify: Vec<String>,
}

/// One objective or one threshold on a quantile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    /// What makes a request good.
    pub goal: Goal,
    /// Under which rules for Prometheus know it, where somebody named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The share of good requests promised.
    pub target_ppb: u64,
    /// The time over which the budget counts, in slots.
    pub period_slots: u32,
    /// The pairs of windows that judge it.
    pub windows: Vec<BurnWindow>,
    /// Requests in earlier slots do not count: it was not promised yet.
    pub since: Slot,
}

impl Promise {
    /// `burn` or `threshold`.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.goal {
            Goal::Quantile { .. } => Kind::Threshold,
            Goal::Latency { .. } | Goal::Availability => Kind::Burn,
        }
    }

    /// The share of bad requests that it allows.
    #[must_use]
    pub fn budget_ppb(&self) -> u64 {
        PPB - self.target_ppb
    }

    /// The longest window, in slots.
    #[must_use]
    pub fn longest_slots(&self) -> u32 {
        self.windows.iter().map(|w| w.long_slots.max(w.short_slots)).max().unwrap_or(1)
    }

    /// The severity of its worst window.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.windows.iter().map(|w| w.severity).max()
    }
}

/// A receiver as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub channel: Channel,
    /// Mail addresses; one empty text for a webhook.
    pub recipients: Vec<String>,
}

impl Promises {
    /// Nothing owed to anybody.
    #[must_use]
    pub fn none(judge_after_ms: i64) -> Self {
        Self { judge_after_ms, endpoints: Vec::new(), receivers: Vec::new(), false_alarms: false_alarms(), flows: Vec::new(), expected: Vec::new() }
    }

    /// The entries that match an endpoint.
    pub fn of<'a>(&'a self, key: &'a EndpointKey) -> impl Iterator<Item = &'a Owed> {
        self.endpoints.iter().filter(move |o| o.selector.matches(key))
    }

    /// Whether an endpoint is configured as critical.
    #[must_use]
    pub fn is_critical(&self, key: &EndpointKey) -> bool {
        self.of(key).any(|o| o.critical)
    }

    /// The thresholds that are counted exactly for an endpoint, sorted, and the grid of its histograms.
    #[must_use]
    pub fn counting_of(&self, key: &EndpointKey) -> (Vec<u64>, Digits) {
        let mut thresholds: Vec<u64> = self.of(key).flat_map(|o| o.promises.iter().filter_map(|p| p.goal.threshold_us())).collect();
        thresholds.sort_unstable();
        thresholds.dedup();
        (thresholds, self.of(key).map(|o| o.digits).max().unwrap_or_default())
    }

    /// Dates each promise: one that stood before keeps its date, a new one begins in the slot after `now`.
    #[must_use]
    pub fn dated(mut self, before: &Self, now: Option<Slot>) -> Self {
        for owed in &mut self.endpoints {
            for promise in &mut owed.promises {
                let stood = before.endpoints.iter().filter(|b| b.selector == owed.selector).flat_map(|b| &b.promises).find(|b| b.goal == promise.goal);
                promise.since = stood.map_or_else(|| now.map_or(Slot(0), Slot::next), |b| b.since);
            }
        }
        self
    }
}
