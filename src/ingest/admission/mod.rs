//! What one line says, checked: the endpoint, the time, the durations, the outcome. A line is taken whole or refused with its reason.
//!
//! Three ways lead to a batch: any line the general way, here; plain timings of JSON, which wait until several can be looked up together (`plain`); timings in whole numbers of an
//! endpoint that was looked up once for many (`named`). An ordinary timing of an endpoint that has a number ends as 64 bits by both of the latter, without a lock or an allocation of
//! its own.

mod named;
mod plain;
mod rules;

use std::borrow::Cow;
use std::sync::RwLockReadGuard;

use hashbrown::HashMap;

use super::json::{Line, Ts};
use super::known::{Joined, KnownEndpoints, Numbers, Sought};
use super::memory::Reservation;
use super::{Batch, Detail, InFlight, Item, Whose};
use crate::counting::{Outcome, Span, Tally};
use crate::endpoint::{EndpointId, EndpointKey, KeyRef, PathTemplates, check_part};
use crate::time::{Slot, Timestamp};
pub use named::{Named, Naming, NewEndpoint, Numeric};
use plain::Plain;
pub use rules::{Beside, COUNT_MAX, DETAIL_BYTES_MAX, FUTURE_MS, PAST_MS, Refused, TimeLimits, WEIGHT_MAX};
use rules::{DetailParts, check_in_flight, check_key, check_weight, detail, durations, malformed, outcome};

/// Refusals that are named in an answer; all are counted.
pub const ERRORS_MAX: usize = 100;

/// Look-ups after which the known endpoints are let go of for a moment, so that new ones can be added.
const LOOK_UPS_HELD: usize = 1_024;

/// The least room that a batch asks for.
const STEP_BYTES: u64 = 4 << 10;

/// Takes lines into a batch.
#[derive(Debug)]
pub struct Admission<'a> {
    templates: &'a PathTemplates,
    limits: TimeLimits,
    /// Instants of one slot that are all taken, and the slot.
    slot: (std::ops::Range<i64>, Slot),
    known: &'a KnownEndpoints,
    held: Option<RwLockReadGuard<'a, Numbers>>,
    look_ups: usize,
    joined: Joined,
    /// Those that wait for their look-up, and their endpoints: as many of these, what is behind is room.
    plain: Vec<Plain>,
    sought: Vec<Sought>,
    places: HashMap<EndpointKey, u32, foldhash::quality::RandomState>,
    room: Option<Reservation>,
    held_bytes: u64,
    without_room: u64,
    /// What was taken so far.
    pub batch: Batch,
}

impl<'a> Admission<'a> {
    /// One with an empty batch.
    #[must_use]
    pub fn new(templates: &'a PathTemplates, known: &'a KnownEndpoints, limits: TimeLimits) -> Self {
        let batch = Batch { read_in: Slot::containing(limits.now), ..Batch::default() };
        Self {
            templates,
            limits,
            slot: (0..0, Slot(0)),
            known,
            held: None,
            look_ups: 0,
            joined: Joined::default(),
            plain: Vec::new(),
            sought: Vec::new(),
            places: HashMap::default(),
            room: None,
            held_bytes: 0,
            without_room: 0,
            batch,
        }
    }

    /// Asks for room as the batch grows; timings that come when there is none are counted and not kept.
    #[must_use]
    pub fn within(mut self, room: Reservation) -> Self {
        self.room = Some(room);
        self
    }

    /// The room that the batch has; or how many timings came when there was none.
    ///
    /// # Errors
    /// The count.
    pub fn take_room(&mut self) -> Result<Option<Reservation>, u64> {
        self.settle();
        if self.without_room > 0 { Err(self.without_room) } else { Ok(self.room.take()) }
    }

    /// Asks for room for so many bytes; a growing list has twice what is in it. Without it the timings are counted as such.
    fn has_room(&mut self, bytes: usize, timings: u64) -> bool {
        let Some(room) = &mut self.room else { return true };
        self.held_bytes += 2 * bytes as u64;
        let missing = self.held_bytes.saturating_sub(room.bytes());
        let has = self.without_room == 0 && (missing == 0 || room.grow(missing.max(self.held_bytes / 2).max(STEP_BYTES)).is_ok());
        if !has {
            self.without_room = self.without_room.saturating_add(timings);
        }
        has
    }

    /// The server's clock moved on.
    pub fn set_now(&mut self, now: Timestamp) {
        self.limits.now = now;
        self.slot.0 = 0..0;
        self.batch.read_in = Slot::containing(now);
    }

    /// The server's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.limits.now
    }

    /// Whether nothing was taken or refused since the last batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.batch.timings() == 0 && self.batch.in_flight.is_empty()
    }

    /// What was taken so far, whole; it goes on with an empty batch.
    #[must_use]
    pub fn finish(&mut self) -> Batch {
        self.settle();
        self.held = None;
        self.places.clear();
        std::mem::replace(&mut self.batch, Batch { read_in: Slot::containing(self.limits.now), ..Batch::default() })
    }

    /// Whether a timing of that time is taken.
    #[must_use]
    pub fn takes(&self, ts: Timestamp) -> bool {
        self.limits.take(ts)
    }

    /// The number of an endpoint that has one.
    fn number_of(&mut self, key: &KeyRef<'_>) -> Option<EndpointId> {
        let mut joined = std::mem::take(&mut self.joined);
        joined.set(key);
        let number = self.hold(1).get(&joined);
        self.joined = joined;
        number
    }

    /// The endpoints that have a number, to look up so many.
    fn hold(&mut self, look_ups: usize) -> &Numbers {
        self.look_ups += look_ups;
        if self.look_ups >= LOOK_UPS_HELD {
            (self.held, self.look_ups) = (None, 0);
        }
        let known = self.known;
        self.held.get_or_insert_with(|| known.read())
    }

    /// Takes a line or refuses it, and counts which. `at` is its place in the body, from 0.
    pub fn line(&mut self, at: usize, line: Result<Line<'_>, String>) {
        self.settle();
        let taken = line.map_err(malformed).and_then(|line| self.take(&line));
        if let Err(refused) = taken {
            self.refuse(at, refused);
        }
    }

    fn refuse(&mut self, at: usize, refused: Refused) {
        self.batch.rejected += 1;
        self.batch.refused[refused.fate as usize] += 1;
        if self.batch.errors.len() < ERRORS_MAX {
            self.batch.errors.push((at, refused.reason));
        }
    }

    fn take(&mut self, line: &Line<'_>) -> Result<(), Refused> {
        if line.in_flight.is_some() {
            return self.take_in_flight(line);
        }
        let route = self.route(line.route.as_ref().map(|r| &*r.0), line.path.as_ref().map(|p| &*p.0))?;
        let kind = line.kind.as_ref().map_or("http", |k| &*k.0);
        let key = KeyRef { service: text(line.service.as_ref()), env: text(line.env.as_ref()), kind, method: text(line.method.as_ref()), route: &route };
        let number = self.number_of(&key);
        if number.is_none() {
            check_key(&key)?;
        }
        let ts = self.time(line.ts.as_ref())?;
        let outcome = outcome(line.status, line.outcome.as_ref().map(|o| &*o.0))?;
        let weight = line.weight.unwrap_or(1);
        check_weight(weight)?;
        let is_new = number.is_none() && !self.places.contains_key(&key);
        let (bytes, timings) = size_of_line(line, &key, is_new);
        if !self.has_room(bytes, timings) {
            return Ok(());
        }
        let spans = durations(line)?;
        let detail = detail(&Beside::from(line))?;
        if line.hdr.is_some() && !self.has_room(spans.len() * size_of::<Item>(), spans.iter().map(|s| s.1).sum()) {
            return Ok(());
        }
        let whose = number.map_or_else(|| Whose::Key(self.place(key, line.critical.unwrap_or(false))), Whose::Known);
        self.count(whose, ts, outcome, weight, &spans, detail);
        Ok(())
    }

    /// Counts what was checked.
    fn count(&mut self, whose: Whose, ts: Timestamp, outcome: Outcome, weight: u64, spans: &[(Span, u64)], detail: Option<DetailParts>) {
        let longest_us = spans.iter().map(|s| s.0.highest_us).max().unwrap_or(0);
        let slot = Slot::containing(ts);
        for &(span, count) in spans {
            self.batch.items.push(Item { whose, slot, outcome, span, tally: Tally { weight: weight.saturating_mul(count), observed: count } });
        }
        if let Some((trace_id, actor, key, starts)) = detail {
            self.batch.details.push(Detail { endpoint: whose, ts, outcome, duration_us: longest_us, trace_id, actor, key, starts });
        }
        self.batch.accepted += 1;
    }

    /// The template that is given, or that of the path.
    fn route<'l>(&self, route: Option<&'l str>, path: Option<&str>) -> Result<Cow<'l, str>, Refused> {
        match (route, path) {
            (Some(route), _) => Ok(Cow::Borrowed(route)),
            (None, Some(path)) => {
                check_part("path", path, true).map_err(|e| malformed(e.to_string()))?;
                Ok(Cow::Owned(self.templates.route_of(path)))
            }
            (None, None) => Err(malformed("one of `route` and `path` is required")),
        }
    }

    fn place(&mut self, key: KeyRef<'_>, critical: bool) -> u32 {
        let place = if let Some(place) = self.places.get(&key) {
            *place
        } else {
            let place = u32::try_from(self.batch.keys.len()).expect("a body has fewer lines than u32");
            self.places.insert(key.to_key(), place);
            self.batch.keys.push((key.to_key(), false));
            place
        };
        self.batch.keys[place as usize].1 |= critical;
        place
    }

    fn time(&self, ts: Option<&Ts<'_>>) -> Result<Timestamp, Refused> {
        match ts {
            None => Ok(self.limits.now),
            Some(Ts::Ms(ms)) => self.limits.check(Timestamp(*ms)),
            Some(Ts::Text(text)) => self.limits.check(Timestamp::parse(text).map_err(|e| malformed(format!("`ts`: {e}")))?),
        }
    }

    fn take_in_flight(&mut self, line: &Line<'_>) -> Result<(), Refused> {
        if !self.has_room(line.in_flight.as_ref().map_or(0, Vec::len) * (size_of::<InFlight>() + 64), 0) {
            return Ok(());
        }
        let mut taken = Vec::new();
        for running in line.in_flight.as_deref().unwrap_or_default() {
            let running = InFlight {
                service: text(running.service.as_ref()).to_owned(),
                env: text(running.env.as_ref()).to_owned(),
                method: text(running.method.as_ref()).to_owned(),
                route: text(running.route.as_ref()).to_owned(),
                age_ms: running.age_ms.unwrap_or(0),
                n: running.n.unwrap_or(1),
            };
            check_in_flight(&running)?;
            taken.push(running);
        }
        self.batch.in_flight.extend(taken);
        Ok(())
    }

    /// Takes what still runs, or refuses it.
    pub fn in_flight(&mut self, at: usize, running: InFlight) {
        match check_in_flight(&running) {
            Ok(()) => self.batch.in_flight.push(running),
            Err(refused) => self.refuse(at, refused),
        }
    }
}

/// What a line adds to a batch, in bytes, and its timings.
fn size_of_line(line: &Line<'_>, key: &KeyRef<'_>, is_new: bool) -> (usize, u64) {
    let (values, timings) = match &line.values_us {
        Some(values) => (values.len(), values.iter().map(|(_, count)| (*count).min(COUNT_MAX)).sum()),
        None => (1, u64::from(line.hdr.is_none())),
    };
    let parts: usize = [key.service, key.env, key.kind, key.method, key.route].iter().map(|p| p.len()).sum();
    let details: usize = [&line.trace_id, &line.actor, &line.key, &line.stage].into_iter().flatten().map(|t| t.0.len() + size_of::<Detail<Whose>>() / 3).sum();
    let new = if is_new { 2 * (size_of::<EndpointKey>() + parts) } else { 0 };
    (values * size_of::<Item>() + details + new, timings)
}

fn text<'l>(part: Option<&'l super::json::Text<'_>>) -> &'l str {
    part.map_or("", |t| &*t.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(body: &str) -> Batch {
        let templates = PathTemplates::default();
        let limits = TimeLimits { now: Timestamp(1_766_534_400_000), past_ms: PAST_MS, future_ms: FUTURE_MS };
        let known = KnownEndpoints::default();
        let mut admission = Admission::new(&templates, &known, limits);
        super::super::json::read_ndjson(body.as_bytes(), &mut admission);
        admission.finish()
    }

    fn reason(line: &str) -> String {
        let batch = admitted(line);
        assert_eq!((batch.accepted, batch.rejected), (0, 1), "{line}");
        batch.errors[0].1.clone()
    }

    #[test]
    fn each_line_is_taken_whole_or_refused_with_its_reason() {
        let long = "a".repeat(5_000);
        for (line, part) in [
            (r#"{"service":"s","route":"/a"}"#.to_owned(), "exactly one of duration_ms"),
            (r#"{"route":"/a","duration_ms":1}"#.to_owned(), "`service` is required"),
            (r#"{"service":"s","duration_ms":1}"#.to_owned(), "one of `route` and `path`"),
            (r#"{"service":"s","route":"","duration_ms":1}"#.to_owned(), "`route` is required"),
            (format!(r#"{{"service":"s","route":"{long}","duration_ms":1}}"#), "longer than 512"),
            (r#"{"service":"s","route":"a\u0000b","duration_ms":1}"#.to_owned(), "control character"),
            (r#"{"service":"s","route":"/a","duration_ms":-1}"#.to_owned(), "0 to 7 days"),
            (r#"{"service":"s","route":"/a","duration_s":604801}"#.to_owned(), "0 to 7 days"),
            (r#"{"service":"s","route":"/a","duration_ms":1e400}"#.to_owned(), "number out of range"),
            (r#"{"service":"s","route":"/a","duration_ms":NaN}"#.to_owned(), "expected"),
            (r#"{"service":"s","route":"/a","duration_ms":"fast"}"#.to_owned(), "invalid type"),
            (r#"{"service":"s","route":"/a","duration_ms":1,"status":42}"#.to_owned(), "100 to 599"),
            (r#"{"service":"s","route":"/a","duration_ms":1,"outcome":"meh"}"#.to_owned(), "expected ok"),
            (r#"{"service":"s","route":"/a","duration_ms":1,"weight":0}"#.to_owned(), "weight"),
            (r#"{"service":"s","route":"/a","duration_ms":1,"ts":1735000000000}"#.to_owned(), "before the server's clock"),
            (r#"{"service":"s","route":"/a","duration_ms":1,"ts":"2026-12-24T00:00:00Z"}"#.to_owned(), "ahead of the server's clock"),
            (r#"{"service":"s","route":"/a","values_us":[]}"#.to_owned(), "at least one"),
            (r#"{"service":"s","route":"/a","values_us":[[5,0]]}"#.to_owned(), "a count is 0"),
            (r#"{"service":"s","route":"/a","hdr":"AAAA"}"#.to_owned(), "HdrHistogram"),
            (r#"{"service":"s","route":"/a","duration_ms":1,"stage":"middle"}"#.to_owned(), "start or end"),
            ("[1]".to_owned(), "invalid type"),
            ("{".to_owned(), "EOF"),
        ] {
            assert!(reason(&line).contains(part), "{line}: {}", reason(&line));
        }
    }

    #[test]
    fn a_duration_is_rounded_once_half_up() {
        for (text, us) in [
            (r#""duration_ms":182.4"#, 182_400),
            (r#""duration_us":1.5"#, 2),
            (r#""duration_us":1.49"#, 1),
            (r#""duration_s":0.0000005"#, 1),
            (r#""duration_ms":0"#, 0),
        ] {
            let batch = admitted(&format!(r#"{{"service":"s","route":"/a",{text}}}"#));
            assert_eq!(batch.items[0].span, Span::exact(us), "{text}");
        }
    }

    #[test]
    fn weights_multiply_and_evidence_counts_observations() {
        let batch = admitted(r#"{"service":"s","route":"/a","values_us":[[10,3],[20,1]],"weight":10,"actor":"ann","key":"k1","stage":"start"}"#);
        assert_eq!(batch.items.iter().map(|i| i.tally).collect::<Vec<_>>(), [Tally { weight: 30, observed: 3 }, Tally { weight: 10, observed: 1 }]);
        assert_eq!(batch.details.len(), 1);
        assert!(batch.details[0].starts);
    }

    #[test]
    fn in_flight_lines_are_kept_and_are_no_timings() {
        let batch = admitted(r#"{"in_flight":[{"service":"s","route":"/a","method":"POST","age_ms":31000,"n":4}]}"#);
        assert_eq!((batch.accepted, batch.rejected, batch.in_flight.len()), (0, 0, 1));
    }
}
