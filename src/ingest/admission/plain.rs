//! The short way of plain timings in JSON: they wait until several can be looked up together, and those of an endpoint that has a number end as 64 bits.

use std::borrow::Cow;

use super::super::json::{Line, Text, Ts};
use super::super::known::{Joined, Sought, TOGETHER};
use super::super::ordinary::Ordinary;
use super::super::packed::Packed;
use super::Admission;
use super::rules::{outcome, whole_us};
use crate::counting::Outcome;
use crate::endpoint::{EndpointKey, KeyRef};
use crate::time::{Slot, Timestamp};

/// Room for so many timings is made with the first one; it is less than the least that a batch asks for.
const PACKED_AT_FIRST: usize = 128;

/// A plain timing before its endpoint is looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    at: usize,
    ts: Timestamp,
    us: u64,
    outcome: Outcome,
    critical: Option<bool>,
}

impl Admission<'_> {
    /// Takes a line of the usual shape, or refuses it; perhaps not before [`Admission::settle`].
    pub fn ordinary(&mut self, at: usize, line: &Ordinary<'_>) {
        let ts = line.ts_ms.map_or(self.limits.now, Timestamp);
        let (Some((us, outcome)), true, Some(service), Some(route)) = (line.plain_timing(), self.limits.take(ts), line.service, line.route) else {
            return self.line(at, Ok(Line::from(*line)));
        };
        let key = KeyRef { service, env: line.env.unwrap_or(""), kind: line.kind.unwrap_or("http"), method: line.method.unwrap_or(""), route };
        if self.sought.len() == self.plain.len() {
            if self.sought.is_empty() {
                self.sought.reserve_exact(TOGETHER);
                self.plain.reserve_exact(TOGETHER);
                self.batch.packed.reserve(PACKED_AT_FIRST);
            }
            self.sought.push(Sought::default());
        }
        self.sought[self.plain.len()].joined.set(&key);
        self.plain.push(Plain { at, ts, us, outcome, critical: line.critical });
        if self.plain.len() == TOGETHER {
            self.settle();
        }
    }

    /// Looks up the endpoints of the plain timings that wait for it, and takes these or refuses them.
    pub fn settle(&mut self) {
        if self.plain.is_empty() {
            return;
        }
        let (mut plain, mut sought) = (std::mem::take(&mut self.plain), std::mem::take(&mut self.sought));
        self.hold(plain.len()).get_all(&mut sought[..plain.len()]);
        for (plain, sought) in plain.drain(..).zip(&sought) {
            match sought.number.and_then(|id| Packed::new(Slot::containing(plain.ts), id, plain.us, plain.outcome)) {
                Some(packed) if self.has_room(size_of::<Packed>(), 1) => {
                    self.batch.packed.push(packed);
                    self.batch.accepted += 1;
                }
                Some(_) => {}
                None => self.plain_line(plain, &sought.joined),
            }
        }
        (self.plain, self.sought) = (plain, sought);
    }

    /// Takes a plain timing the general way, or refuses it.
    fn plain_line(&mut self, plain: Plain, joined: &Joined) {
        let line = joined.key().ok_or_else(|| "a name has a control character".to_owned());
        #[expect(clippy::cast_precision_loss, reason = "7 days in microseconds is far below 2^53")]
        let line = line.map(|key| {
            Line::from(Ordinary {
                service: Some(key.service),
                env: Some(key.env),
                kind: Some(key.kind),
                method: Some(key.method),
                route: Some(key.route),
                ts_ms: Some(plain.ts.0),
                duration_us: Some(plain.us as f64),
                outcome: Some(plain.outcome.name()),
                critical: plain.critical,
                ..Ordinary::default()
            })
        });
        self.line(plain.at, line);
    }

    /// Takes a timing of any endpoint the general way, or refuses it.
    pub fn key_timing(&mut self, at: usize, key: &EndpointKey, ts: Timestamp, us: u64, outcome: Outcome) {
        #[expect(clippy::cast_precision_loss, reason = "7 days in microseconds is far below 2^53")]
        let line = Ordinary {
            service: Some(&key.service),
            env: Some(&key.env),
            kind: Some(&key.kind),
            method: Some(&key.method),
            route: Some(&key.route),
            ts_ms: Some(ts.0),
            duration_us: Some(us as f64),
            outcome: Some(outcome.name()),
            ..Ordinary::default()
        };
        self.line(at, Ok(Line::from(line)));
    }
}

impl<'a> From<Ordinary<'a>> for Line<'a> {
    fn from(o: Ordinary<'a>) -> Self {
        let text = |part: Option<&'a str>| part.map(|t| Text(Cow::Borrowed(t)));
        Self {
            service: text(o.service),
            env: text(o.env),
            kind: text(o.kind),
            method: text(o.method),
            route: text(o.route),
            path: text(o.path),
            ts: o.ts_ms.map(Ts::Ms),
            status: o.status,
            outcome: text(o.outcome),
            duration_ms: o.duration_ms,
            duration_s: o.duration_s,
            duration_us: o.duration_us,
            values_us: None,
            hdr: None,
            weight: o.weight,
            critical: o.critical,
            trace_id: text(o.trace_id),
            actor: text(o.actor),
            key: text(o.key),
            stage: text(o.stage),
            in_flight: None,
        }
    }
}

impl Ordinary<'_> {
    /// Its duration in whole microseconds and its outcome, if both are well and nothing else is said than a plain timing needs.
    #[must_use]
    pub fn plain_timing(&self) -> Option<(u64, Outcome)> {
        let special = [self.path, self.trace_id, self.actor, self.key, self.stage].iter().any(Option::is_some);
        if special || self.weight.is_some_and(|w| w != 1) {
            return None;
        }
        let us = match (self.duration_ms, self.duration_s, self.duration_us) {
            (Some(ms), None, None) => ms * 1e3,
            (None, Some(s), None) => s * 1e6,
            (None, None, Some(us)) => us,
            _ => return None,
        };
        Some((whole_us(us).ok()?, outcome(self.status, self.outcome).ok()?))
    }
}
