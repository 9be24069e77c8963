//! What a timing may say: from when to when, how long, how often, in which words; and why it is refused.

use super::super::json::{Line, Text};
use super::super::{Fate, InFlight};
use crate::counting::{Outcome, Span};
use crate::endpoint::{KeyRef, check_part};
use crate::histogram::{codec, grid::VALUE_US_MAX};
use crate::time::Timestamp;

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
    pub(super) fn oldest(&self) -> i64 {
        self.now.0.saturating_sub(self.past_ms)
    }

    pub(super) fn newest(&self) -> i64 {
        self.now.0.saturating_add(self.future_ms)
    }

    pub(super) fn take(&self, ts: Timestamp) -> bool {
        (self.oldest()..=self.newest()).contains(&ts.0)
    }

    pub(super) fn check(&self, ts: Timestamp) -> Result<Timestamp, Refused> {
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

pub(super) fn malformed(reason: impl Into<String>) -> Refused {
    Refused { fate: Fate::Malformed, reason: reason.into() }
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
impl<'l> From<&'l Line<'_>> for Beside<'l> {
    fn from(line: &'l Line<'_>) -> Self {
        let part = |part: &'l Option<Text<'_>>| part.as_ref().map(|t| &*t.0);
        Self { trace_id: part(&line.trace_id), actor: part(&line.actor), key: part(&line.key), stage: part(&line.stage) }
    }
}

pub(super) fn check_in_flight(running: &InFlight) -> Result<(), Refused> {
    for (name, part, required) in
        [("service", &running.service, true), ("route", &running.route, true), ("env", &running.env, false), ("method", &running.method, false)]
    {
        check_part(name, part, required).map_err(|e| malformed(format!("`in_flight`: {e}")))?;
    }
    Ok(())
}

pub(super) fn check_key(key: &KeyRef<'_>) -> Result<(), Refused> {
    for (name, part, required) in
        [("service", key.service, true), ("route", key.route, true), ("env", key.env, false), ("kind", key.kind, true), ("method", key.method, false)]
    {
        check_part(name, part, required).map_err(|e| malformed(e.to_string()))?;
    }
    Ok(())
}

pub(super) fn outcome(status: Option<u64>, name: Option<&str>) -> Result<Outcome, Refused> {
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
pub(super) fn durations(line: &Line<'_>) -> Result<Vec<(Span, u64)>, Refused> {
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

pub(super) fn outcome_at(place: u64) -> Option<Outcome> {
    Outcome::ALL.get(usize::try_from(place).ok()?).copied()
}

pub(super) fn check_weight(weight: u64) -> Result<(), Refused> {
    if (1..=WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    Err(malformed(format!("`weight` is {weight}, expected a whole number from 1 to {WEIGHT_MAX}")))
}

pub(super) fn check_count(count: u64) -> Result<(), Refused> {
    if (1..=COUNT_MAX).contains(&count) { Ok(()) } else { Err(malformed(format!("a count is {count}, expected a whole number from 1 to {COUNT_MAX}"))) }
}

/// Rounds half up to whole microseconds, 0 to 7 days.
pub(super) fn whole_us(us: f64) -> Result<u64, Refused> {
    let rounded = (us + 0.5).floor();
    #[expect(clippy::cast_precision_loss, reason = "7 days in microseconds is far below 2^53")]
    if !(us >= 0.0 && rounded <= VALUE_US_MAX as f64) {
        return Err(malformed(format!("a duration is {us} us, expected 0 to 7 days")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(rounded as u64)
}

pub(super) type DetailParts = (Option<String>, Option<String>, Option<String>, bool);

pub(super) fn detail(beside: &Beside<'_>) -> Result<Option<DetailParts>, Refused> {
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
