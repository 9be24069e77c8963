//! What is said of the detectors' findings: which open an incident, which tell how one goes on, which end it. An endpoint has one open incident of each class.

use std::collections::BTreeSet;

use super::Promises;
use crate::endpoint::{EndpointKey, Selector};
use crate::incident::{Breach, Change, Event, Evidence, Found, Grounds, Incident, Stage, State, Transition, change_text, incident_id};
use crate::objective::Severity;
use crate::time::Timestamp;

/// A breach nearer than this makes a creep on a critical endpoint critical.
const BREACH_NEAR_MS: i64 = 14 * 86_400_000;
/// A ratio that moved by more than this share is told, and a forecast that moved by more than this share of the time left, or half a day.
const MOVED: f64 = 0.2;
const MOVED_OF_TIME_LEFT: f64 = 0.1;
const MOVED_MIN_MS: i64 = 12 * 3_600_000;
/// What goes on unchanged is told again after so long: a forecast of the next weeks, and anything else.
const STANDS_MS: i64 = 3 * 86_400_000;
const GOES_ON_MS: i64 = 7 * 86_400_000;

/// The open incident that a finding belongs to.
pub(super) fn open_of<'a>(found: &Found, mut incidents: impl Iterator<Item = &'a Incident>) -> Option<&'a Incident> {
    incidents.find(|i| {
        let name = i.evidence.change().map(|c| &c.name);
        i.kind.class() == found.kind.class()
            && name == Some(&found.change.name)
            && (&i.service, &i.env, &i.endpoint_kind) == (&found.endpoint.service, &found.endpoint.env, &found.endpoint.kind)
            && (&i.method, &i.route) == (&found.endpoint.method, &found.endpoint.route)
    })
}

/// What is to be said of a finding, if anything.
pub(super) fn transition(found: &Found, at: Timestamp, open: Option<&Incident>) -> Option<Transition> {
    let severity = severity(found, at, open);
    let event = match (open, found.stage) {
        (None, Stage::Begun) => Event::Opened,
        (Some(_), Stage::Over) => Event::Resolved,
        (Some(open), _) if severity > open.severity => Event::Escalated,
        (Some(open), _) if severity < open.severity => Event::Deescalated,
        (Some(_), Stage::Begun) => Event::Updated,
        (Some(open), Stage::GoesOn) if has_moved(found, open, at) => Event::Updated,
        _ => return None,
    };
    let key = &found.endpoint;
    let kind = open.map_or(found.kind, |i| i.kind);
    let name = found.change.name.as_deref().unwrap_or("");
    Some(Transition {
        at,
        event,
        id: open.map_or_else(|| incident_id(key, kind, name, found.due), |i| i.id.clone()),
        kind,
        severity,
        service: key.service.clone(),
        env: key.env.clone(),
        method: key.method.clone(),
        route: key.route.clone(),
        summary: change_text::summary(key, kind, event, &found.change, found.breach, open.map_or(0, |i| at.0 - i.opened_at.0)),
        breach_at: found.breach.map(|b| b.at),
        breach_from: found.breach.map(|b| b.from),
        breach_to: found.breach.map(|b| b.to),
        evidence: Evidence {
            endpoint_kind: key.kind.clone(),
            state: if event == Event::Resolved { State::Resolved } else { State::Firing },
            slowest_trace: None,
            grounds: Grounds::Change(Box::new(found.change.clone())),
        },
    })
}

/// Missing traffic and work are as bad as they get; slower is a warning until the promise is about to be broken. Only what is critical is more than a warning.
fn severity(found: &Found, at: Timestamp, open: Option<&Incident>) -> Severity {
    use crate::incident::Class;
    let urgent = match found.kind.class() {
        Class::Latency => found.breach.is_some_and(|b| b.at.0 - at.0 <= BREACH_NEAR_MS) || stays_urgent(found, at, open),
        _ => true,
    };
    if found.critical && urgent { Severity::Critical } else { Severity::Warning }
}

/// What was about to break its promise still is: a date comes and goes from one run to the next, and nobody is to be woken by each. It is over when a date says that
/// there is twice the time; without a date when it has fallen by as much as is told, or when nothing moved for a week (two, if a date was told last).
fn stays_urgent(found: &Found, at: Timestamp, open: Option<&Incident>) -> bool {
    open.filter(|open| open.severity == Severity::Critical).is_some_and(|open| match found.breach {
        _ if found.stage == Stage::Over => true,
        Some(breach) => breach.at.0 - at.0 <= 2 * BREACH_NEAR_MS,
        None if open.evidence.change().is_some_and(|old| has_fallen(&found.change, old)) => false,
        None => open.breach.is_some() || at.0 - open.updated_at.0 < GOES_ON_MS,
    })
}

fn has_moved(found: &Found, open: &Incident, at: Timestamp) -> bool {
    let forecast = match (found.breach, open.breach) {
        (Some(new), Some(old)) => breach_moved(new, old, at),
        // A date that can no longer be given is not taken back by a line of its own.
        (new, old) => new.is_some() && old.is_none(),
    };
    let again = if found.breach.is_some_and(|b| b.at.0 - at.0 <= 2 * BREACH_NEAR_MS) { STANDS_MS } else { GOES_ON_MS };
    forecast || at.0 - open.updated_at.0 >= again || open.evidence.change().is_some_and(|old| changed(&found.change, old))
}

fn breach_moved(new: Breach, old: Breach, at: Timestamp) -> bool {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a share of a number of days")]
    let enough = |left_ms: i64| ((left_ms.max(0) as f64 * MOVED_OF_TIME_LEFT) as i64).max(MOVED_MIN_MS);
    let apart = |a: Timestamp, b: Timestamp| (a.0 - b.0).abs();
    let by = enough(old.at.0 - at.0);
    apart(new.at, old.at) > by || apart(new.from, old.from) > 2 * by || apart(new.to, old.to) > 2 * by
}

fn changed(new: &Change, old: &Change) -> bool {
    let ratio = |c: &Change| c.ratio.unwrap_or(1.0);
    (ratio(new) / ratio(old)).max(ratio(old) / ratio(new)) > 1.0 + MOVED || new.endpoints.len() > old.endpoints.len()
}

/// Whether the level is lower by as much as is told. Its ratio need not tell: it is to what the level was before the finding, and a later finding may begin elsewhere.
fn has_fallen(new: &Change, old: &Change) -> bool {
    old.level_ms.zip(new.level_ms).is_some_and(|(old, new)| old / new > 1.0 + MOVED)
}

/// Who is told: whoever is named with the flow or expectation, else where the endpoint is configured; of a whole service all who are named with its endpoints, of several
/// services all who are named with any; else the first receiver.
pub(super) fn notify_of(endpoint: &EndpointKey, name: Option<&str>, promises: &Promises) -> Vec<String> {
    let flows = promises.flows.iter().map(|f| (&f.name, &f.notify));
    let by_name = flows.chain(promises.expected.iter().map(|e| (&e.name, &e.notify))).find(|(n, _)| Some(n.as_str()) == name).and_then(|(_, to)| to.clone());
    let configured = by_name.or_else(|| promises.of(endpoint).next().map(|owed| owed.notify.clone()));
    configured.or_else(|| of_services(endpoint, promises)).unwrap_or_else(|| promises.receivers.first().map(|r| r.name.clone()).into_iter().collect())
}

fn of_services(key: &EndpointKey, promises: &Promises) -> Option<Vec<String>> {
    let is_part = |selector: &Selector| key.service.is_empty() || selector.service == key.service && selector.env.as_ref().is_none_or(|env| *env == key.env);
    let mut of_part = promises.endpoints.iter().filter(|owed| key.route.is_empty() && is_part(&owed.selector)).peekable();
    of_part.peek()?;
    let all: BTreeSet<&String> = of_part.flat_map(|owed| &owed.notify).collect();
    Some(all.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::Kind;
    use crate::time::Slot;

    const BEGIN: Timestamp = Timestamp(1_766_534_400_000);
    const HOUR_MS: i64 = 3_600_000;

    fn found(stage: Stage, at: Timestamp, breach_in_days: Option<i64>) -> Found {
        let text = |s: &str| s.to_owned();
        let endpoint = EndpointKey { service: text("shop"), env: text("prod"), kind: text("http"), method: text("POST"), route: text("/orders") };
        let breach = breach_in_days.map(|days| at.plus_ms(days * 24 * HOUR_MS)).map(|at| Breach { at, from: at, to: at });
        let change = Change { ratio: Some(1.3), level_ms: Some(130.0), ..Change::default() };
        Found { due: Slot::containing(at), endpoint, critical: true, kind: Kind::Creep, stage, breach, change }
    }

    #[test]
    fn what_has_fallen_is_a_warning_again_and_what_ends_ends_as_severe_as_it_was() {
        let mut open = Incident::opened(&transition(&found(Stage::Begun, BEGIN, Some(10)), BEGIN, None).unwrap());
        let at = BEGIN.plus_ms(24 * HOUR_MS);
        let (mut fallen, over) = (found(Stage::GoesOn, at, None), found(Stage::Over, at, None));
        fallen.change.level_ms = Some(100.0);
        let said = |found: &Found, open: &Incident| transition(found, at, Some(open)).map(|line| (line.event, line.severity));
        assert_eq!(said(&fallen, &open), Some((Event::Deescalated, Severity::Warning)));
        assert_eq!(said(&over, &open), Some((Event::Resolved, Severity::Critical)));
        open.severity = Severity::Warning;
        assert_eq!(said(&over, &open), Some((Event::Resolved, Severity::Warning)));
    }

    /// What is said of a creep that was found at first and goes on in runs six hours apart, each with its days to the breach.
    fn events(runs: impl IntoIterator<Item = Option<i64>>) -> Vec<Event> {
        let (mut open, mut said): (Option<Incident>, Vec<Event>) = (None, Vec::new());
        for (n, days) in (0..).zip(runs) {
            let at = BEGIN.plus_ms(n * 6 * HOUR_MS);
            let stage = if n == 0 { Stage::Begun } else { Stage::GoesOn };
            let Some(line) = transition(&found(stage, at, days), at, open.as_ref()) else { continue };
            said.push(line.event);
            match &mut open {
                Some(open) => open.moved(&line),
                None => open = Some(Incident::opened(&line)),
            }
        }
        said
    }

    fn pages(runs: impl IntoIterator<Item = Option<i64>>) -> (usize, usize) {
        let said = events(runs);
        let count = |event| said.iter().filter(|e| **e == event).count();
        (count(Event::Escalated), count(Event::Deescalated))
    }

    #[test]
    fn a_date_that_comes_and_goes_wakes_once() {
        assert_eq!(pages([None, Some(12), None, Some(11), None, None, Some(16), Some(9), None]), (1, 0));
    }

    #[test]
    fn twice_the_time_is_a_warning_again() {
        assert_eq!(pages([None, Some(12), Some(20), Some(27), Some(29)]), (1, 1));
        assert_eq!(pages([None, Some(20), Some(16), None]), (0, 0), "it was no more than a warning");
    }

    #[test]
    fn without_a_date_for_long_it_is_a_warning_again() {
        let none_for = |runs: usize| pages([None, Some(10)].into_iter().chain(std::iter::repeat_n(None, runs)));
        assert_eq!((none_for(27), none_for(60)), ((1, 0), (1, 1)));
    }
}
