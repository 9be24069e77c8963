//! Timings in whole numbers, of endpoints that are named once for many of them.

use super::super::packed::Packed;
use super::super::{Detail, Item, Whose};
use super::Admission;
use super::rules::{Beside, COUNT_MAX, Refused, check_count, check_key, check_weight, detail, malformed, outcome_at, whole_us};
use crate::counting::Span;
use crate::endpoint::{EndpointId, EndpointKey, KeyRef};
use crate::time::{Slot, Timestamp};

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
    /// Its place in [`crate::counting::Outcome::ALL`].
    pub outcome: u64,
    pub weight: u64,
    pub count: u64,
    pub beside: Option<&'a Beside<'a>>,
}

impl Admission<'_> {
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
}
