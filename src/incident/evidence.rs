//! What a decision rests on: every line that is said carries it.

use serde::{Deserialize, Serialize};

use super::State;
use crate::counting::Outcome;
use crate::time::Timestamp;

/// What a line rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The kind of the endpoint (`http`, `job`).
    pub endpoint_kind: String,
    /// `firing`, `unverified` or `resolved`.
    pub state: State,
    /// The slowest request of its time that is known with its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowest_trace: Option<SlowestTrace>,
    /// The numbers.
    #[serde(flatten)]
    pub grounds: Grounds,
}

/// A request by which somebody can see where the time went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlowestTrace {
    /// As its sender named it.
    pub trace_id: String,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// When it ended.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
}

impl SlowestTrace {
    /// Of a request that took so many microseconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "7 days in microseconds is far below 2^53")]
    pub fn new(trace_id: &str, us: u64, at: Timestamp, outcome: Outcome) -> Self {
        Self { trace_id: trace_id.to_owned(), duration_ms: us as f64 / 1e3, at, outcome }
    }
}

/// The numbers, by what was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Grounds {
    /// A promise is broken.
    Promise(Box<Broken>),
    /// Something is not as it was.
    Change(Box<Change>),
}

impl Evidence {
    /// The numbers of a promise.
    #[must_use]
    pub fn promise(&self) -> Option<&Broken> {
        if let Grounds::Promise(broken) = &self.grounds { Some(broken) } else { None }
    }

    /// The numbers of a change.
    #[must_use]
    pub fn change(&self) -> Option<&Change> {
        if let Grounds::Change(change) = &self.grounds { Some(change) } else { None }
    }
}

/// One pair of burn windows at the moment of a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowEvidence {
    /// The long window, such as `1h`.
    pub long: String,
    /// The short window.
    pub short: String,
    /// The burn rate from which it fires.
    pub factor: f64,
    /// `firing`, `undecided` (both windows burn, luck is not excluded) or `ok`.
    pub verdict: Verdict,
    /// Requests in the long window, by weight.
    pub requests_long: u64,
    /// Bad ones among them.
    pub bad_long: u64,
    /// How many of the long window's requests were observed (unweighted): what the evidence rests on.
    pub observed_long: u64,
    /// The burn rate of the long window.
    pub burn_long: f64,
    /// Requests in the short window, by weight.
    pub requests_short: u64,
    /// Bad ones among them.
    pub bad_short: u64,
    /// The burn rate of the short window.
    pub burn_short: f64,
    /// P(X ≥ bad | n, budget) on the long window, three significant digits.
    pub p_value: f64,
}

/// What a pair of windows says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It burns, and not by luck.
    Firing,
    /// It burns, and it may be luck.
    Undecided,
    /// It does not burn.
    Ok,
}

/// What a burn or threshold decision rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broken {
    /// `latency<=800ms`, `availability`, `p95<=800ms`.
    pub objective: String,
    /// The share promised, such as `99 %`.
    pub target: String,
    /// Each pair of windows, in the order configured.
    pub windows: Vec<WindowEvidence>,
    /// Requests in the objective's period.
    pub period_requests: u64,
    /// Bad ones among them.
    pub period_bad: u64,
    /// The period, such as `30d`.
    pub period: String,
    /// What is left of the error budget: 1 is all, 0 none, below 0 overdrawn.
    pub budget_remaining_ratio: f64,
    /// At the rate of the window that decided; absent when nothing is left or nothing burns.
    pub budget_exhausted_in_seconds: Option<i64>,
    /// Requests that still run, have taken too long already, and are counted as bad in the windows until they end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub still_running: u64,
    /// Bad requests since the beginning of the long window that decided; at most those of the longest window.
    pub bad_since_opened: u64,
    /// Requests since then.
    pub requests_since_opened: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What a change rests on. What does not apply is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Since when, as far as that can be told.
    pub since: Timestamp,
    /// The window that shows it, such as `6h`.
    pub window: String,
    /// Requests in it.
    pub requests: u64,
    /// How far beyond chance, and from where on it is reported.
    pub score: f64,
    /// See `score`.
    pub threshold: f64,
    /// How many times what it was: the level, the share of slow requests, the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The usual latency (the geometric mean without the season) now, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level_ms: Option<f64>,
    /// Likewise, before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level_before_ms: Option<f64>,
    /// p95 of the last day, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<f64>,
    /// How many times as far as before requests lie from their usual latency, where they draw apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread_ratio: Option<f64>,
    /// The growth of the level by Theil and Sen, 0.02 for 2 % a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slope_ratio_per_day: Option<f64>,
    /// Its interval of 80 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slope_from: Option<f64>,
    /// See `slope_from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slope_to: Option<f64>,
    /// On so many days it was above the days before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rising_days: Option<u32>,
    /// Of so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// How it grows: `straight`, `exponential`, `wall`, `flat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<String>,
    /// The objective that it approaches, such as `latency<=800ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Requests that there should have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// Requests that there were, or work that came out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
    /// The flow or the expectation, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What was changed shortly before: the title and version of a marker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marker: Option<String>,
    /// The least ratio that a marker's verdict could have seen as often as not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visible_ratio: Option<f64>,
    /// The endpoints, where it is about more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Of so many that the service has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints_watched: Option<u32>,
    /// By when it is expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// How many there will be by then, at the pace of the last hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pace: Option<u64>,
    /// Keys of the work that is missing, the oldest first, as far as they are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing_keys: Vec<String>,
    /// How much is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// Since when the oldest of it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_since: Option<Timestamp>,
    /// The services that nobody reports for any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Who reported for them, as far as an incident lists them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub senders: Vec<String>,
    /// How many those are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub senders_gone: Option<u32>,
}
