//! What one line says, checked: the endpoint, the time, the durations, the outcome. A line is taken whole or refused with its reason.
//!
//! An ordinary timing of an endpoint that has a number ends here as 64 bits, without a lock or an allocation of its own; what is not ordinary goes the general way.

use std::borrow::Cow;
use std::sync::RwLockReadGuard;

use hashbrown::HashMap;

use super::json::{Line, Text, Ts};
use super::known::{Joined, KnownEndpoints, Numbers, Sought, TOGETHER};
use super::memory::Reservation;
use super::ordinary::Ordinary;
use super::packed::Packed;
use super::{Batch, Detail, Fate, InFlight, Item, Whose};
use crate::counting::{Outcome, Span, Tally};
use crate::endpoint::{EndpointId, EndpointKey, KeyRef, PathTemplates, check_part};
use crate::histogram::{codec, grid::VALUE_US_MAX};
use crate::time::{Slot, Timestamp};

/// Refusals that are named in an answer; all are counted.
pub const ERRORS_MAX: usize = 100;

/// The largest weight of one timing.
pub const WEIGHT_MAX: u64 = 1_000_000;

/// The largest count of one value.
pub const COUNT_MAX: u64 = 1_000_000_000;

/// The longest `trace_id`, `actor` or `key`, in bytes.
pub const DETAIL_BYTES_MAX: usize = 256;

/// Which times are taken, from the server's clock.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// Now.
    pub now: Timestamp,
    /// How old a timing may be, in milliseconds.
    pub past_ms: i64,
    /// How far ahead, in milliseconds.
    pub future_ms: i64,
}

impl TimeLimits {
    fn oldest(&self) -> i64 {
        self.now.0.saturating_sub(self.past_ms)
    }

    fn newest(&self) -> i64 {
        self.now.0.saturating_add(self.future_ms)
    }

    fn take(&self, ts: Timestamp) -> bool {
        (self.oldest()..=self.newest()).contains(&ts.0)
    }

    fn check(&self, ts: Timestamp) -> Result<Timestamp, Refused> {
        if ts.0 < self.oldest() {
            let past = crate::time::humanize_ms(self.past_ms);
            return Err(Refused { fate: Fate::Late, reason: format!("`ts` is {ts}, more than {past} before the server's clock") });
        }
        if ts.0 > self.newest() {
            let future = crate::time::humanize_ms(self.future_ms);
            return Err(Refused { fate: Fate::Early, reason: format!("`ts` is {ts}, more than {future} ahead of the server's clock") });
        }
        Ok(ts)
    }
}

/// The contract's limits: 24 h back, 2 min ahead.
pub const PAST_MS: i64 = 86_400_000;
/// See [`PAST_MS`].
pub const FUTURE_MS: i64 = 120_000;

/// Why a line is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// How it is counted.
    pub fate: Fate,
    /// What was expected.
    pub reason: String,
}

fn malformed(reason: impl Into<String>) -> Refused {
    Refused { fate: Fate::Malformed, reason: reason.into() }
}

/// Look-ups after which the known endpoints are let go of for a moment, so that new ones can be added.
const LOOK_UPS_HELD: usize = 1_024;

/// Room for so many timings is made with the first one; it is less than the least that a batch asks for.
const PACKED_AT_FIRST: usize = 128;

/// A plain timing before its endpoint is looked up.
#[derive(Clone, Copy, Debug)]
struct Plain {
    at: usize,
    ts: Timestamp,
    us: u64,
    outcome: Outcome,
    critical: Option<bool>,
}

/// An endpoint that is named once for many timings.
#[derive(Debug)]
pub enum Named {
    /// It has a number.
    Known(EndpointId),
    /// It has none yet.
    New(Box<NewEndpoint>),
    /// What is wrong with it.
    Refused(Box<str>),
}

/// See [`Named::New`].
#[derive(Debug)]
pub struct NewEndpoint {
    key: EndpointKey,
    critical: bool,
    place: Option<u32>,
}

/// How an endpoint is named, unchecked. An empty part is absent.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are those of the contract")]
pub struct Naming<'a> {
    pub service: &'a str,
    pub env: &'a str,
    pub kind: &'a str,
    pub method: &'a str,
    pub route: &'a str,
    pub path: &'a str,
    pub critical: bool,
}

/// A timing in whole numbers, unchecked but for its endpoint.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are those of the contract")]
pub struct Numeric<'a> {
    pub ts: Timestamp,
    pub us: u64,
    /// Its place in [`Outcome::ALL`].
    pub outcome: u64,
    pub weight: u64,
    pub count: u64,
    pub beside: Option<&'a Beside<'a>>,
}

/// What a timing says beside its duration, unchecked.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are those of the contract")]
pub struct Beside<'a> {
    pub trace_id: Option<&'a str>,
    pub actor: Option<&'a str>,
    pub key: Option<&'a str>,
    pub stage: Option<&'a str>,
}
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

    /// Makes room for as many ordinary timings as [`Admission::numeric`] will be called for; `false` when there is none, and then `timings` are counted as such.
    #[must_use]
    pub fn expect_timings(&mut self, calls: usize, timings: u64) -> bool {
        // Not a growing list: it has its size from the beginning.
        let has = self.has_room((calls * size_of::<Packed>()).div_ceil(2), timings);
        if has {
            self.batch.packed.reserve_exact(calls);
        }
        has
    }

    /// The endpoints of entries that were remembered, by their bytes.
    #[must_use]
    pub fn named_before(&mut self, entries: &[&[u8]]) -> Vec<Option<EndpointId>> {
        self.held = None;
        self.known.of_entries(entries)
    }

    /// Remembers entries that were read.
    pub fn remember(&mut self, entries: &[(EndpointId, &[u8])]) {
        self.held = None;
        self.known.remember_entries(entries);
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

    /// Whether a timing of that time is taken.
    #[must_use]
    pub fn takes(&self, ts: Timestamp) -> bool {
        self.limits.take(ts)
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

    /// Looks up an endpoint that many timings of a body are of.
    pub fn name(&mut self, naming: &Naming<'_>) -> Named {
        self.try_name(naming).unwrap_or_else(|refused| Named::Refused(refused.reason.into()))
    }

    fn try_name(&mut self, naming: &Naming<'_>) -> Result<Named, Refused> {
        let given = |part: &'_ str| !part.is_empty();
        let route = self.route(Some(naming.route).filter(|r| given(r)), Some(naming.path).filter(|p| given(p)))?;
        let kind = if naming.kind.is_empty() { "http" } else { naming.kind };
        let key = KeyRef { service: naming.service, env: naming.env, kind, method: naming.method, route: &route };
        if let Some(number) = self.number_of(&key) {
            return Ok(Named::Known(number));
        }
        check_key(&key)?;
        Ok(Named::New(Box::new(NewEndpoint { key: key.to_key(), critical: naming.critical, place: None })))
    }

    /// Takes a timing of an endpoint that was looked up, or refuses it.
    #[inline]
    pub fn numeric(&mut self, at: usize, endpoint: &mut Named, timing: &Numeric<'_>) {
        if let Some(packed) = self.packed_numeric(endpoint, timing) {
            self.batch.packed.push(packed);
            self.batch.accepted += 1;
        } else {
            self.special_numeric(at, endpoint, timing);
        }
    }

    #[cold]
    fn special_numeric(&mut self, at: usize, endpoint: &mut Named, timing: &Numeric<'_>) {
        let texts = |b: &Beside<'_>| [b.trace_id, b.actor, b.key].into_iter().flatten().map(str::len).sum::<usize>() + size_of::<Detail<Whose>>();
        if !self.has_room(size_of::<Item>() + timing.beside.map_or(0, texts), timing.count.min(COUNT_MAX)) {
            return;
        }
        if let Err(refused) = self.take_numeric(endpoint, timing) {
            self.refuse(at, refused);
        }
    }

    /// The timing in 64 bits, if all is well with it and nothing is special.
    #[inline]
    fn packed_numeric(&mut self, endpoint: &Named, timing: &Numeric<'_>) -> Option<Packed> {
        let Named::Known(id) = *endpoint else { return None };
        let special = timing.weight != 1 || timing.count != 1 || timing.beside.is_some();
        let outcome = outcome_at(timing.outcome).filter(|_| !special)?;
        Packed::new(self.slot_of(timing.ts)?, id, timing.us, outcome)
    }

    /// The slot of an instant that is taken. Mostly it is that of the timing before.
    #[inline]
    fn slot_of(&mut self, ts: Timestamp) -> Option<Slot> {
        if !self.slot.0.contains(&ts.0) {
            if !self.limits.take(ts) {
                return None;
            }
            let slot = Slot::containing(ts);
            let taken = slot.start().0.max(self.limits.oldest())..slot.end().0.min(self.limits.newest());
            self.slot = (taken, slot);
        }
        Some(self.slot.1)
    }

    fn take_numeric(&mut self, endpoint: &mut Named, timing: &Numeric<'_>) -> Result<(), Refused> {
        if let Named::Refused(reason) = endpoint {
            return Err(malformed(&**reason));
        }
        let ts = self.limits.check(timing.ts)?;
        let outcome = outcome_at(timing.outcome).ok_or_else(|| malformed(format!("`outcome` is {}, expected 0 (ok) to 3 (timeout)", timing.outcome)))?;
        check_weight(timing.weight)?;
        check_count(timing.count)?;
        #[expect(clippy::cast_precision_loss, reason = "what a double does not hold is far over the limit and stays so")]
        let us = whole_us(timing.us as f64)?;
        let detail = timing.beside.map_or(Ok(None), detail)?;
        let whose = match endpoint {
            Named::Known(id) => Whose::Known(*id),
            Named::New(new) => Whose::Key(self.place_new(new)),
            Named::Refused(_) => unreachable!("refused above"),
        };
        self.count(whose, ts, outcome, timing.weight, &[(Span::exact(us), timing.count)], detail);
        Ok(())
    }

    fn place_new(&mut self, new: &mut NewEndpoint) -> u32 {
        *new.place.get_or_insert_with(|| self.place(new.key.as_ref(), new.critical))
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

fn check_in_flight(running: &InFlight) -> Result<(), Refused> {
    for (name, part, required) in
        [("service", &running.service, true), ("route", &running.route, true), ("env", &running.env, false), ("method", &running.method, false)]
    {
        check_part(name, part, required).map_err(|e| malformed(format!("`in_flight`: {e}")))?;
    }
    Ok(())
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

impl<'l> From<&'l Line<'_>> for Beside<'l> {
    fn from(line: &'l Line<'_>) -> Self {
        let part = |part: &'l Option<Text<'_>>| part.as_ref().map(|t| &*t.0);
        Self { trace_id: part(&line.trace_id), actor: part(&line.actor), key: part(&line.key), stage: part(&line.stage) }
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

fn check_key(key: &KeyRef<'_>) -> Result<(), Refused> {
    for (name, part, required) in
        [("service", key.service, true), ("route", key.route, true), ("env", key.env, false), ("kind", key.kind, true), ("method", key.method, false)]
    {
        check_part(name, part, required).map_err(|e| malformed(e.to_string()))?;
    }
    Ok(())
}

fn outcome(status: Option<u64>, name: Option<&str>) -> Result<Outcome, Refused> {
    let by_status = match status {
        None | Some(100..=399) => Outcome::Ok,
        Some(400..=499) => Outcome::ClientError,
        Some(500..=599) => Outcome::Error,
        Some(other) => return Err(malformed(format!("`status` is {other}, expected 100 to 599"))),
    };
    match name {
        None => Ok(by_status),
        Some(name) => Outcome::ALL
            .into_iter()
            .find(|o| o.name() == name)
            .ok_or_else(|| malformed(format!("`outcome` is {name:?}, expected ok, client_error, error or timeout"))),
    }
}

/// The durations of a line with how often each was seen.
fn durations(line: &Line<'_>) -> Result<Vec<(Span, u64)>, Refused> {
    let given = [line.duration_ms.is_some(), line.duration_s.is_some(), line.duration_us.is_some(), line.values_us.is_some(), line.hdr.is_some()];
    if given.iter().filter(|g| **g).count() != 1 {
        return Err(malformed("expected exactly one of duration_ms, duration_s, duration_us, values_us, hdr"));
    }
    for (value, us_each) in [(line.duration_us, 1.0), (line.duration_ms, 1e3), (line.duration_s, 1e6)] {
        if let Some(value) = value {
            return whole_us(value * us_each).map(|us| vec![(Span::exact(us), 1)]);
        }
    }
    let mut spans = Vec::new();
    for &(value, count) in line.values_us.as_deref().unwrap_or_default() {
        check_count(count)?;
        spans.push((Span::exact(whole_us(value)?), count));
    }
    if let Some(hdr) = &line.hdr {
        for (lowest_us, highest_us, count) in codec::buckets_of_v2(&hdr.0).map_err(|e| malformed(format!("`hdr`: {e}")))? {
            check_count(count)?;
            let limited = |us: u64| us.min(VALUE_US_MAX);
            if lowest_us > VALUE_US_MAX {
                return Err(malformed("`hdr` has a value over 7 days: expected microseconds"));
            }
            spans.push((Span { lowest_us: limited(lowest_us), highest_us: limited(highest_us) }, count));
        }
    }
    if spans.is_empty() { Err(malformed("no value: expected at least one")) } else { Ok(spans) }
}

fn outcome_at(place: u64) -> Option<Outcome> {
    Outcome::ALL.get(usize::try_from(place).ok()?).copied()
}

fn check_weight(weight: u64) -> Result<(), Refused> {
    if (1..=WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    Err(malformed(format!("`weight` is {weight}, expected a whole number from 1 to {WEIGHT_MAX}")))
}

fn check_count(count: u64) -> Result<(), Refused> {
    if (1..=COUNT_MAX).contains(&count) { Ok(()) } else { Err(malformed(format!("a count is {count}, expected a whole number from 1 to {COUNT_MAX}"))) }
}

/// Rounds half up to whole microseconds, 0 to 7 days.
fn whole_us(us: f64) -> Result<u64, Refused> {
    let rounded = (us + 0.5).floor();
    #[expect(clippy::cast_precision_loss, reason = "7 days in microseconds is far below 2^53")]
    if !(us >= 0.0 && rounded <= VALUE_US_MAX as f64) {
        return Err(malformed(format!("a duration is {us} us, expected 0 to 7 days")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(rounded as u64)
}

type DetailParts = (Option<String>, Option<String>, Option<String>, bool);

fn detail(beside: &Beside<'_>) -> Result<Option<DetailParts>, Refused> {
    let starts = match beside.stage {
        None | Some("end") => false,
        Some("start") => true,
        Some(other) => return Err(malformed(format!("`stage` is {other:?}, expected start or end"))),
    };
    let part = |name: &'static str, text: Option<&str>| match text {
        Some(t) if t.len() > DETAIL_BYTES_MAX => Err(malformed(format!("`{name}` is longer than {DETAIL_BYTES_MAX} bytes"))),
        Some(t) => check_part(name, t, false).map_err(|e| malformed(e.to_string())).map(|()| Some(t.to_owned())),
        None => Ok(None),
    };
    let (trace_id, actor, key) = (part("trace_id", beside.trace_id)?, part("actor", beside.actor)?, part("key", beside.key)?);
    let any = trace_id.is_some() || actor.is_some() || key.is_some() || starts;
    Ok(any.then_some((trace_id, actor, key, starts)))
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
