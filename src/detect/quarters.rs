//! Quarters of an hour of every endpoint, as they are counted and as they are needed again: all of them until an endpoint is learnt, then those of the last day.
//!
//! Here they are kept in memory, for replays. A live run has them from its history ([`Past`]).

use std::collections::VecDeque;
use std::ops::Range;

use crate::endpoint::EndpointId;
use crate::histogram::Histogram;
use crate::time::Slot;

/// Slots in a quarter of an hour.
pub const QUARTER_SLOTS: i64 = 90;
/// Milliseconds in a quarter of an hour.
pub const QUARTER_MS: i64 = 900_000;
/// Quarters in a day.
pub const DAY_QUARTERS: i64 = 96;

/// The quarter of an hour, counted from 1970, that a slot is in.
#[must_use]
pub fn quarter_of(slot: Slot) -> i64 {
    i64::from(slot.0).div_euclid(QUARTER_SLOTS)
}

/// Where past quarters are read from.
pub trait Past {
    /// Those of these endpoints in `[from, to)` will be asked for, and no others.
    fn prepare(&mut self, ids: Range<u32>, from: i64, to: i64);

    /// One of an endpoint, if anything came in it.
    fn quarter(&self, id: EndpointId, quarter: i64) -> Option<&Histogram>;

    /// Those of an endpoint in `[from, to)`, one for each, empty ones too.
    fn quarters(&mut self, id: EndpointId, from: i64, to: i64) -> Vec<Histogram>;
}

/// All of one endpoint that are kept: the first, and all after it.
#[derive(Clone, Debug, Default)]
struct Series {
    first: i64,
    kept: VecDeque<Histogram>,
}

/// Those of all endpoints, or of those from one on, in memory.
#[derive(Clone, Debug, Default)]
pub struct Quarters {
    by_endpoint: Vec<Series>,
    first_endpoint: u32,
    /// Quarters before this one are over: what still comes for them is too late.
    open_from: i64,
    first: Option<i64>,
    last: Option<i64>,
}

impl Quarters {
    /// Those of endpoints from this one on.
    #[must_use]
    pub fn of_endpoints_from(first: EndpointId) -> Self {
        Self { first_endpoint: first.0, ..Self::default() }
    }

    fn place(&self, id: EndpointId) -> Option<usize> {
        Some(id.0.checked_sub(self.first_endpoint)? as usize)
    }

    /// Counts something into a slot of an endpoint.
    pub fn count(&mut self, id: EndpointId, slot: Slot, count: impl FnOnce(&mut Histogram)) {
        let quarter = quarter_of(slot);
        let Some(at) = self.place(id).filter(|_| quarter >= self.open_from) else { return };
        self.first = Some(self.first.map_or(quarter, |first| first.min(quarter)));
        self.last = self.last.max(Some(quarter));
        if at >= self.by_endpoint.len() {
            self.by_endpoint.resize_with(at + 1, Series::default);
        }
        let series = &mut self.by_endpoint[at];
        if series.kept.is_empty() {
            series.first = quarter;
        }
        while quarter < series.first {
            series.kept.push_front(Histogram::default());
            series.first -= 1;
        }
        let place = usize::try_from(quarter - series.first).unwrap_or(usize::MAX);
        if place >= series.kept.len() {
            series.kept.resize_with(place + 1, Histogram::default);
        }
        count(&mut series.kept[place]);
    }

    /// The first quarter in which anything was counted.
    #[must_use]
    pub fn first(&self) -> Option<i64> {
        self.first
    }

    /// One quarter of an endpoint.
    #[must_use]
    pub fn of(&self, id: EndpointId, quarter: i64) -> Option<&Histogram> {
        let series = self.by_endpoint.get(self.place(id)?)?;
        series.kept.get(usize::try_from(quarter - series.first).ok()?)
    }

    /// From here on this quarter and those before it take nothing more.
    pub fn end(&mut self, quarter: i64) {
        self.open_from = self.open_from.max(quarter + 1);
    }

    /// Forgets what an endpoint had before a quarter.
    pub fn forget(&mut self, id: EndpointId, before: i64) {
        let Some(series) = self.place(id).and_then(|at| self.by_endpoint.get_mut(at)) else { return };
        while series.first < before && series.kept.pop_front().is_some() {
            series.first += 1;
        }
    }
}

impl Past for Quarters {
    fn prepare(&mut self, _: Range<u32>, _: i64, _: i64) {}

    fn quarter(&self, id: EndpointId, quarter: i64) -> Option<&Histogram> {
        self.of(id, quarter)
    }

    fn quarters(&mut self, id: EndpointId, from: i64, to: i64) -> Vec<Histogram> {
        (from..to).map(|quarter| self.of(id, quarter).cloned().unwrap_or_default()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_order_gives_the_same_and_what_is_over_takes_nothing_more() {
        let one = EndpointId(1);
        let at = |quarter: u32| Slot(quarter * 90 + 7);
        let mut quarters = Quarters::default();
        for quarter in [5, 3, 9, 3] {
            quarters.count(one, at(quarter), |h| h.record(1_000, 1));
        }
        assert_eq!(quarters.first(), Some(3));
        let counts = |q: &mut Quarters| q.quarters(one, 2, 11).iter().map(Histogram::count).collect::<Vec<_>>();
        assert_eq!(counts(&mut quarters), [0, 2, 0, 1, 0, 0, 0, 1, 0]);
        quarters.end(5);
        quarters.count(one, at(5), |h| h.record(1_000, 1));
        quarters.count(one, at(6), |h| h.record(1_000, 1));
        quarters.forget(one, 5);
        assert_eq!(counts(&mut quarters), [0, 0, 0, 1, 1, 0, 0, 1, 0]);
        quarters.forget(one, 20);
        quarters.count(one, at(12), |h| h.record(1_000, 1));
        assert_eq!(quarters.of(one, 12).map(Histogram::count), Some(1));
        assert!(quarters.quarters(EndpointId(0), 0, 3).iter().all(Histogram::is_empty));
    }
}
