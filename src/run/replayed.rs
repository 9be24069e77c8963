//! What a replay leaves behind: its incidents from opening to end, and whom it would have told how often.

use std::collections::{BTreeMap, HashMap};

use crate::endpoint::EndpointKey;
use crate::incident::{Event, Kind, Notification, Transition};
use crate::objective::Severity;
use crate::time::Timestamp;

/// One incident of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episode {
    /// Its id.
    pub id: String,
    /// What is wrong.
    pub kind: Kind,
    /// Where.
    pub endpoint: EndpointKey,
    /// The objective, flow or expectation that it is about, by its name; empty when it is about none.
    pub about: String,
    /// When it was said first.
    pub opened: Timestamp,
    /// When it got worse first.
    pub escalated: Option<Timestamp>,
    /// Since when it was critical, the first time.
    pub critical: Option<Timestamp>,
    /// When it was over; `None`: it was open at the end.
    pub ended: Option<Timestamp>,
    /// In words, as it opened.
    pub summary: String,
}

impl Episode {
    /// The one that a line opens.
    #[must_use]
    pub fn opened(line: &Transition) -> Self {
        let change = || line.evidence.change().and_then(|c| c.name.clone());
        let mut episode = Self {
            id: line.id.clone(),
            kind: line.kind,
            endpoint: line.endpoint(),
            about: line.evidence.promise().map(|p| p.objective.clone()).or_else(change).unwrap_or_default(),
            opened: line.at,
            escalated: None,
            critical: None,
            ended: None,
            summary: line.summary.clone(),
        };
        episode.moved(line);
        episode
    }

    /// Takes in a further line.
    pub fn moved(&mut self, line: &Transition) {
        let first = |before: Option<Timestamp>, is: bool| before.or(is.then_some(line.at));
        self.critical = first(self.critical, line.severity == Severity::Critical);
        self.escalated = first(self.escalated, line.event == Event::Escalated);
        self.ended = first(self.ended, line.event == Event::Resolved);
    }

    /// How severe it was at worst.
    #[must_use]
    pub fn worst(&self) -> Severity {
        if self.critical.is_some() { Severity::Critical } else { Severity::Warning }
    }
}

/// How often one receiver would have been told; a mail to each of its addresses counts by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notified {
    /// That an incident began.
    pub opened: u64,
    /// That one got worse.
    pub escalated: u64,
    /// That one is over.
    pub resolved: u64,
    /// Other news of one.
    pub other: u64,
}

impl Notified {
    /// All of them.
    #[must_use]
    pub fn all(self) -> u64 {
        self.opened + self.escalated + self.resolved + self.other
    }

    fn count(&mut self, event: Event) {
        *match event {
            Event::Opened => &mut self.opened,
            Event::Escalated => &mut self.escalated,
            Event::Resolved => &mut self.resolved,
            Event::Updated | Event::Deescalated => &mut self.other,
        } += 1;
    }
}

/// What was said and told, collected as a replay goes.
#[derive(Clone, Debug, Default)]
pub struct Told {
    episodes: Vec<Episode>,
    place_of: HashMap<String, usize>,
    notified: BTreeMap<String, Notified>,
}

impl Told {
    /// Takes in a line. What goes on about an incident that opened before the recording began is left out.
    pub fn say(&mut self, line: &Transition) {
        if let Some(at) = self.place_of.get(&line.id) {
            self.episodes[*at].moved(line);
        } else if line.event == Event::Opened {
            self.place_of.insert(line.id.clone(), self.episodes.len());
            self.episodes.push(Episode::opened(line));
        }
    }

    /// Takes in a notification.
    pub fn notify(&mut self, notification: &Notification) {
        self.notified.entry(notification.receiver.clone()).or_default().count(notification.line.event);
    }
}

/// A replay that has ended.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Its incidents, in the order of their opening.
    pub episodes: Vec<Episode>,
    /// By receiver: those configured at the end, and those that were told before.
    pub notified: BTreeMap<String, Notified>,
    /// The first time seen.
    pub first: Option<Timestamp>,
    /// The last virtual time.
    pub last: Timestamp,
    /// Timings taken.
    pub timings: u64,
    /// Endpoints seen.
    pub endpoints: usize,
    /// Lines passed over.
    pub bad: u64,
}

impl Replayed {
    /// One in which these were told, out of these receivers.
    #[must_use]
    pub fn new<'a>(told: Told, receivers: impl Iterator<Item = &'a str>) -> Self {
        let Told { episodes, mut notified, .. } = told;
        for receiver in receivers {
            notified.entry(receiver.to_owned()).or_default();
        }
        Self { episodes, notified, first: None, last: Timestamp(0), timings: 0, endpoints: 0, bad: 0 }
    }
}
