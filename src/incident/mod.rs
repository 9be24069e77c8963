//! Incidents: signals joined over time, the lines that tell of them, and what is owed to whom.
//!
//! Only nouns stand here: who decides is [`crate::judge`]. An incident's id follows from endpoint, kind, rule and opening slot,
//! so that deciding again after a crash, or in a replay, names the same one. Everything serialises to JSON and back.

pub mod change_text;
pub mod evidence;
pub mod text;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use evidence::{Broken, Change, Evidence, Grounds, SlowestTrace, Verdict, WindowEvidence};

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
    /// The level of latency rises day by day.
    Creep,
    /// The level of latency has risen at once.
    Step,
    /// More requests are far slower than the rest; the rest is as it was.
    Tail,
    /// Far less traffic than at the same hours of earlier weeks.
    Throughput,
    /// No traffic at all where there should be some.
    Silence,
    /// Work goes in and does not come out.
    Flow,
    /// A run that had an end to reach has not reached it.
    Completion,
}

/// Kinds of which an endpoint has one open incident at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// What a promise is about: each objective by itself.
    Promise,
    /// How long requests take.
    Latency,
    /// How many there are.
    Traffic,
    /// How much of what goes in comes out.
    Flow,
}

impl Kind {
    /// Its name in lines and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Burn => "burn",
            Self::Threshold => "threshold",
            Self::Creep => "creep",
            Self::Step => "step",
            Self::Tail => "tail",
            Self::Throughput => "throughput",
            Self::Silence => "silence",
            Self::Flow => "flow",
            Self::Completion => "completion",
        }
    }

    /// Its class.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Burn | Self::Threshold => Class::Promise,
            Self::Creep | Self::Step | Self::Tail => Class::Latency,
            Self::Throughput | Self::Silence | Self::Completion => Class::Traffic,
            Self::Flow => Class::Flow,
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
    /// The forecast, if there is one.
    #[must_use]
    pub fn breach(&self) -> Option<Breach> {
        let at = self.breach_at?;
        Some(Breach { at, from: self.breach_from.unwrap_or(at), to: self.breach_to.unwrap_or(at) })
    }

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
    /// `latency<=800ms` and the like; empty when it is about no objective.
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
    /// When it will break its promise, if that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breach: Option<Breach>,
    /// The last numbers.
    pub evidence: Evidence,
}

/// A forecast: as likely before `at` as after, and with 80 % between `from` and `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breach {
    /// The middle.
    pub at: Timestamp,
    /// The early end.
    pub from: Timestamp,
    /// The late end.
    pub to: Timestamp,
}

/// What the detectors found, to be said at the end of a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// With the end of which slot.
    pub due: Slot,
    /// Where; without method and route it is about a whole service.
    pub endpoint: EndpointKey,
    /// Whether that is critical.
    pub critical: bool,
    /// What.
    pub kind: Kind,
    /// Whether it begins or ends.
    pub stage: Stage,
    /// When a promise will be broken, if that can be said.
    pub breach: Option<Breach>,
    /// The numbers.
    pub change: Change,
}

/// How a finding stands to what was found before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is news.
    Begun,
    /// It goes on, and this is how.
    GoesOn,
    /// It is over.
    Over,
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
    /// The endpoint that it is about.
    #[must_use]
    pub fn endpoint(&self) -> EndpointKey {
        EndpointKey {
            service: self.service.clone(),
            env: self.env.clone(),
            kind: self.endpoint_kind.clone(),
            method: self.method.clone(),
            route: self.route.clone(),
        }
    }

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
            objective: line.evidence.promise().map_or_else(String::new, |p| p.objective.clone()),
            summary: String::new(),
            opened_at: line.at,
            updated_at: line.at,
            resolved_at: None,
            acked: None,
            told_line: None,
            timeline: Vec::new(),
            breach: None,
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
            breach_at: self.breach.map(|b| b.at),
            breach_from: self.breach.map(|b| b.from),
            breach_to: self.breach.map(|b| b.to),
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
        self.breach = line.breach();
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sent, Self::Refused, Self::Expired];

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
