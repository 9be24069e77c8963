//! Incidents: signals joined over time, the lines that tell of them, and what is owed to whom.
//!
//! Only nouns stand here: who decides is [`crate::judge`]. An incident's id follows from endpoint, kind, rule and opening slot,
//! so that deciding again after a crash, or in a replay, names the same one. Everything serialises to JSON and back.

pub mod text;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::endpoint::EndpointKey;
use crate::objective::Severity;
use crate::time::{Slot, Timestamp};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An objective's error budget is used up too fast.
    Burn,
    /// A quantile is over its configured limit.
    Threshold,
}

impl Kind {
    /// Its name in lines and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Burn => "burn",
            Self::Threshold => "threshold",
        }
    }
}

/// How an incident moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It began.
    Opened,
    /// What is known of it changed.
    Updated,
    /// It is worse.
    Escalated,
    /// It is less bad, and not over.
    Deescalated,
    /// It is over.
    Resolved,
}

impl Event {
    /// Its name in lines and texts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Updated => "updated",
            Self::Escalated => "escalated",
            Self::Deescalated => "deescalated",
            Self::Resolved => "resolved",
        }
    }
}

/// Where an incident stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It goes on.
    Firing,
    /// No request has come for a whole long window: nobody can say.
    Unverified,
    /// It is over.
    Resolved,
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
pub struct Evidence {
    /// `latency<=800ms`, `availability`, `p95<=800ms`.
    pub objective: String,
    /// The share promised, such as `99 %`.
    pub target: String,
    /// The kind of the endpoint (`http`, `job`).
    pub endpoint_kind: String,
    /// `firing`, `unverified` or `resolved`.
    pub state: State,
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
    /// Bad requests since the beginning of the long window that decided; at most those of the longest window.
    pub bad_since_opened: u64,
    /// Requests since then.
    pub requests_since_opened: u64,
}

/// One line of what was said, in the order of the contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// When a live server says it, Unix ms.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
    /// The incident.
    pub id: String,
    /// What is wrong.
    pub kind: Kind,
    /// How much it matters now.
    pub severity: Severity,
    /// Of the endpoint.
    pub service: String,
    /// Of the endpoint.
    pub env: String,
    /// Of the endpoint.
    pub method: String,
    /// Of the endpoint.
    pub route: String,
    /// In words.
    pub summary: String,
    /// A forecast, where there is one.
    pub breach_at: Option<Timestamp>,
    /// The early end of its interval.
    pub breach_from: Option<Timestamp>,
    /// The late end of its interval.
    pub breach_to: Option<Timestamp>,
    /// The numbers.
    pub evidence: Evidence,
}

impl Transition {
    /// The endpoint that it is about.
    #[must_use]
    pub fn endpoint(&self) -> EndpointKey {
        EndpointKey {
            service: self.service.clone(),
            env: self.env.clone(),
            kind: self.evidence.endpoint_kind.clone(),
            method: self.method.clone(),
            route: self.route.clone(),
        }
    }
}

/// Who took an incident on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// When.
    pub at: Timestamp,
    /// A name as given, may be empty.
    pub by: String,
}

/// An incident as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Derived: see [`incident_id`].
    pub id: String,
    /// What is wrong.
    pub kind: Kind,
    /// How much it matters now.
    pub severity: Severity,
    /// Where it stands.
    pub state: State,
    /// Of the endpoint.
    pub service: String,
    /// Of the endpoint.
    pub env: String,
    /// Of the endpoint (`http`, `job`).
    pub endpoint_kind: String,
    /// Of the endpoint.
    pub method: String,
    /// Of the endpoint.
    pub route: String,
    /// `latency<=800ms` and the like.
    pub objective: String,
    /// The last summary.
    pub summary: String,
    /// When it was said first.
    pub opened_at: Timestamp,
    /// When it was said last.
    pub updated_at: Timestamp,
    /// When it was over.
    pub resolved_at: Option<Timestamp>,
    /// Who took it on.
    pub acked: Option<Ack>,
    /// The line (from 0) with which its receivers were told first; `None` while it is silenced.
    pub told_line: Option<u32>,
    /// Its moves: when, what, how severe.
    pub timeline: Vec<Move>,
    /// The last numbers.
    pub evidence: Evidence,
}

/// One entry of an incident's timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: Event,
    /// How severe since.
    pub severity: Severity,
}

impl Incident {
    /// The incident that a line opens.
    #[must_use]
    pub fn opened(line: &Transition) -> Self {
        let mut incident = Self {
            id: line.id.clone(),
            kind: line.kind,
            severity: line.severity,
            state: State::Firing,
            service: line.service.clone(),
            env: line.env.clone(),
            endpoint_kind: line.evidence.endpoint_kind.clone(),
            method: line.method.clone(),
            route: line.route.clone(),
            objective: line.evidence.objective.clone(),
            summary: String::new(),
            opened_at: line.at,
            updated_at: line.at,
            resolved_at: None,
            acked: None,
            told_line: None,
            timeline: Vec::new(),
            evidence: line.evidence.clone(),
        };
        incident.moved(line);
        incident
    }

    /// The line that says how it stands.
    #[must_use]
    pub fn line(&self, at: Timestamp, event: Event) -> Transition {
        Transition {
            at,
            event,
            id: self.id.clone(),
            kind: self.kind,
            severity: self.severity,
            service: self.service.clone(),
            env: self.env.clone(),
            method: self.method.clone(),
            route: self.route.clone(),
            summary: self.summary.clone(),
            breach_at: None,
            breach_from: None,
            breach_to: None,
            evidence: self.evidence.clone(),
        }
    }

    /// Takes in a further line.
    pub fn moved(&mut self, line: &Transition) {
        self.severity = line.severity;
        self.state = line.evidence.state;
        self.summary.clone_from(&line.summary);
        self.updated_at = line.at;
        self.resolved_at = (line.event == Event::Resolved).then_some(line.at);
        self.timeline.push(Move { at: line.at, event: line.event, severity: line.severity });
        self.evidence = line.evidence.clone();
    }
}

/// The id of the incident that a rule of an endpoint opens in a slot: 16 hexadecimal digits.
#[must_use]
pub fn incident_id(key: &EndpointKey, kind: Kind, rule: &str, slot: Slot) -> String {
    derived_id(&[&key.service, &key.env, &key.kind, &key.method, &key.route, kind.name(), rule, &slot.0.to_string()])
}

/// 16 hexadecimal digits that follow from the parts.
#[must_use]
pub fn derived_id(parts: &[&str]) -> String {
    use std::fmt::Write as _;
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize()[..8].iter().fold(String::new(), |mut id, byte| {
        write!(id, "{byte:02x}").expect("a string takes everything");
        id
    })
}

/// How a receiver is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// A mail to one address.
    Email,
    /// A signed HTTP POST.
    Webhook,
}

/// What one receiver is told about one incident: decided in the log before it is sent; its id stays over every retry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// Derived from incident, number of the line, receiver and recipient.
    pub id: String,
    /// The receiver's name in the configuration.
    pub receiver: String,
    /// The address of a mail; empty for a webhook.
    pub recipient: String,
    /// How.
    pub channel: Channel,
    /// The notification that began this recipient's thread on this incident; `None` when it is this one.
    pub root: Option<String>,
    /// What is told.
    pub line: Transition,
}

/// How a notification ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryResult {
    /// The receiver took it.
    Sent,
    /// The receiver refused it for good.
    Refused,
    /// It was tried for a day.
    Expired,
}

impl DeliveryResult {
    /// Its label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Refused => "refused",
            Self::Expired => "expired",
        }
    }
}

/// Matches incidents about which nobody is told for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Derived from its contents.
    pub id: String,
    /// The service.
    pub service: String,
    /// The environment, if it matters.
    #[serde(default)]
    pub env: Option<String>,
    /// The method, if it matters.
    #[serde(default)]
    pub method: Option<String>,
    /// The route, if it matters.
    #[serde(default)]
    pub route: Option<String>,
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Why.
    pub comment: String,
    /// Who.
    pub by: String,
}

impl Silence {
    /// Whether nobody is to be told of this incident at this time.
    #[must_use]
    pub fn mutes(&self, incident: &Incident, at: Timestamp) -> bool {
        let may = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        (self.from..self.until).contains(&at)
            && self.service == incident.service
            && may(&self.env, &incident.env)
            && may(&self.method, &incident.method)
            && may(&self.route, &incident.route)
    }
}

/// A deploy, or any change that may explain one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// When.
    pub ts: Timestamp,
    /// Of which service; empty for all.
    #[serde(default)]
    pub service: String,
    /// What.
    #[serde(default)]
    pub title: String,
    /// Which version.
    #[serde(default)]
    pub version: String,
}
