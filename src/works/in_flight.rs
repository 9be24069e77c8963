//! Requests that still run, as their senders said: those that already take too long are failures before they end.
//!
//! A report replaces the earlier one of the same sender, for all endpoints, and is forgotten [`FRESH_MS`] after it was made: a sender that is gone says
//! nothing. Ages are those of the report and do not grow by themselves, since the request may have ended in between; so the count is a lower bound.
//!
//! # Source
//! A right-censored duration (Kaplan & Meier, Journal of the American Statistical Association 53, 1958): of a request that has run for so long it is known
//! that it will have taken longer.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::endpoint::EndpointKey;
use crate::ingest::InFlight;
use crate::time::{Slot, Timestamp};

/// How long a report counts.
pub const FRESH_MS: i64 = 60_000;
/// Senders at once.
pub const SENDERS_MAX: usize = 10_000;
/// Entries of one report.
pub const ENTRIES_MAX: usize = 1_000;
/// Entries in all.
pub const ENTRIES_ALL_MAX: usize = 100_000;

/// Where requests run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The service.
    pub service: String,
    /// The environment.
    pub env: String,
    /// The method.
    pub method: String,
    /// The route.
    pub route: String,
}

impl Place {
    /// That of an endpoint.
    #[must_use]
    pub fn of(key: &EndpointKey) -> Self {
        Self { service: key.service.clone(), env: key.env.clone(), method: key.method.clone(), route: key.route.clone() }
    }

    /// The endpoint of a kind.
    #[must_use]
    pub fn endpoint(&self, kind: &str) -> EndpointKey {
        EndpointKey { service: self.service.clone(), env: self.env.clone(), kind: kind.to_owned(), method: self.method.clone(), route: self.route.clone() }
    }
}

impl From<&InFlight> for Place {
    fn from(running: &InFlight) -> Self {
        Self { service: running.service.clone(), env: running.env.clone(), method: running.method.clone(), route: running.route.clone() }
    }
}

/// What a sender said: by place, ages in milliseconds and how many, in order.
type Said = BTreeMap<Place, Vec<(u64, u64)>>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    at: Timestamp,
    said: Said,
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    senders: BTreeMap<String, Report>,
    tidied: Slot,
    overflow: u64,
}

/// The last report of each sender.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Running {
    senders: BTreeMap<String, Report>,
    /// Who spoke of a place.
    places: BTreeMap<Place, BTreeSet<String>>,
    entries: usize,
    /// When what is forgotten was let go last.
    tidied: Slot,
    overflow: u64,
}

impl From<Stored> for Running {
    fn from(stored: Stored) -> Self {
        let mut running = Self { tidied: stored.tidied, overflow: stored.overflow, ..Self::default() };
        for (sender, report) in stored.senders {
            running.put(sender, report);
        }
        running
    }
}

impl From<Running> for Stored {
    fn from(running: Running) -> Self {
        Self { senders: running.senders, tidied: running.tidied, overflow: running.overflow }
    }
}

impl Running {
    /// What a sender says is running at its place in time; nothing at all replaces what it said before, too. Of two reports of the same instant the
    /// greater one counts, so that their order does not matter.
    pub fn report(&mut self, sender: &str, at: Timestamp, running: &[InFlight]) {
        let mut said = Said::new();
        for entry in running.iter().take(ENTRIES_MAX) {
            said.entry(Place::from(entry)).or_default().push((entry.age_ms, entry.n));
        }
        for ages in said.values_mut() {
            ages.sort_unstable();
        }
        let earlier = self.senders.get(sender);
        if earlier.is_some_and(|e| (e.at, &e.said) >= (at, &said)) {
            return;
        }
        let taken = running.len().min(ENTRIES_MAX);
        self.overflow += (running.len() - taken) as u64;
        self.remove(sender);
        if self.senders.len() >= SENDERS_MAX || self.entries + taken > ENTRIES_ALL_MAX {
            self.tidy(at);
        }
        if self.senders.len() >= SENDERS_MAX || self.entries + taken > ENTRIES_ALL_MAX {
            self.overflow += taken as u64;
        } else {
            self.put(sender.to_owned(), Report { at, said });
        }
    }

    fn put(&mut self, sender: String, report: Report) {
        for (place, ages) in &report.said {
            self.entries += ages.len();
            self.places.entry(place.clone()).or_default().insert(sender.clone());
        }
        self.senders.insert(sender, report);
    }

    fn remove(&mut self, sender: &str) {
        let Some(report) = self.senders.remove(sender) else { return };
        for (place, ages) in report.said {
            self.entries -= ages.len();
            if let Some(senders) = self.places.get_mut(&place) {
                senders.remove(sender);
                if senders.is_empty() {
                    self.places.remove(&place);
                }
            }
        }
    }

    /// Lets go of what is forgotten, at most once a slot.
    fn tidy(&mut self, at: Timestamp) {
        let slot = Slot::containing(at);
        if slot <= self.tidied {
            return;
        }
        self.tidied = slot;
        let old: Vec<String> = self.senders.iter().filter(|(_, r)| !is_fresh(r.at, at)).map(|(sender, _)| sender.clone()).collect();
        for sender in old {
            self.remove(&sender);
        }
    }

    /// Whether a sender said something that is not forgotten.
    #[must_use]
    pub fn knows(&self, sender: &str) -> bool {
        self.senders.contains_key(sender)
    }

    /// Whether nobody said anything that is not forgotten.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// Lets go of what is forgotten by an instant.
    pub fn forget(&mut self, at: Timestamp) {
        if !self.senders.is_empty() {
            self.tidy(at);
        }
    }

    /// How many requests of a place run for longer than a threshold, as far as is known at `at`.
    #[must_use]
    pub fn over(&self, place: &Place, threshold_us: u64, at: Timestamp) -> u64 {
        let reports = self.places.get(place).into_iter().flatten().filter_map(|sender| self.senders.get(sender));
        let ages = reports.filter(|r| is_fresh(r.at, at)).filter_map(|r| r.said.get(place)).flatten();
        ages.filter(|(age_ms, _)| age_ms.saturating_mul(1000) > threshold_us).fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// The places of which somebody spoke and it is not forgotten.
    pub fn places(&self, at: Timestamp) -> impl Iterator<Item = &Place> {
        let fresh = move |sender: &String| self.senders.get(sender).is_some_and(|r| is_fresh(r.at, at));
        self.places.iter().filter(move |(_, senders)| senders.iter().any(fresh)).map(|(place, _)| place)
    }

    /// Entries that found no room.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow
    }
}

fn is_fresh(said: Timestamp, at: Timestamp) -> bool {
    at.0.saturating_sub(said.0) < FRESH_MS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Timestamp = Timestamp(1_766_534_400_000);

    fn entry(route: &str, age_ms: u64, n: u64) -> InFlight {
        InFlight { service: "shop".into(), env: "prod".into(), method: "POST".into(), route: route.into(), age_ms, n }
    }

    fn orders() -> Place {
        Place::from(&entry("/orders", 0, 0))
    }

    /// Story A: requests that hang for half a minute are judged while they hang.
    #[test]
    fn hung_requests_count_while_they_hang() {
        let mut running = Running::default();
        running.report("web-1", AT, &[entry("/orders", 12_000, 3), entry("/orders", 800, 5), entry("/menu", 9_000, 1)]);
        running.report("web-2", AT.plus_ms(5_000), &[entry("/orders", 801, 2)]);
        assert_eq!(running.over(&orders(), 800_000, AT.plus_ms(10_000)), 5);
        assert_eq!(running.over(&orders(), 799_999, AT.plus_ms(10_000)), 10);
        assert_eq!(running.over(&Place { env: String::new(), ..orders() }, 0, AT), 0);
        // The next report of the same sender is all that it says.
        running.report("web-1", AT.plus_ms(10_000), &[entry("/orders", 900, 1)]);
        assert_eq!(running.over(&orders(), 800_000, AT.plus_ms(10_000)), 3);
        running.report("web-1", AT.plus_ms(20_000), &[]);
        assert_eq!(running.over(&orders(), 800_000, AT.plus_ms(20_000)), 2);
        assert_eq!(running.places(AT.plus_ms(20_000)).count(), 1);
        // A sender that is gone says nothing.
        assert_eq!(running.over(&orders(), 800_000, AT.plus_ms(64_999)), 2);
        assert_eq!(running.over(&orders(), 800_000, AT.plus_ms(65_000)), 0);
        assert_eq!(running.places(AT.plus_ms(65_000)).count(), 0);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_the_forgotten_make_room() {
        let mut running = Running::default();
        let many: Vec<InFlight> = (0..ENTRIES_MAX as u64 + 10).map(|n| entry("/orders", n, 1)).collect();
        for sender in 0..110 {
            running.report(&sender.to_string(), AT, &many);
        }
        assert_eq!((running.entries, running.senders.len()), (ENTRIES_ALL_MAX, 100));
        assert_eq!(running.overflow(), 110 * 10 + 10 * ENTRIES_MAX as u64);
        running.report("late", AT.plus_ms(FRESH_MS), &many);
        assert_eq!((running.entries, running.senders.len()), (ENTRIES_MAX, 1));
    }

    type Said = (u8, i64, Vec<(u8, u64, u64)>);

    fn fed(reports: &[Said]) -> Running {
        let mut running = Running::default();
        for (sender, at, said) in reports {
            let said: Vec<InFlight> = said.iter().map(|(route, age, n)| entry(&route.to_string(), *age, *n)).collect();
            running.report(&sender.to_string(), AT.plus_ms(*at), &said);
        }
        running
    }

    proptest! {
        #[test]
        fn order_changes_nothing_and_a_naive_model_says_the_same(
            reports in prop::collection::vec((0_u8..4, 0_i64..90_000, prop::collection::vec((0_u8..3, 0_u64..50, 0_u64..5), 0..5)), 0..12)
                .prop_flat_map(|r| (Just(r.clone()), Just(r).prop_shuffle())),
            threshold_ms in 0_u64..50,
        ) {
            let (running, shuffled) = (fed(&reports.0), fed(&reports.1));
            prop_assert_eq!(&running, &shuffled);
            let stored = postcard::to_allocvec(&running).unwrap();
            prop_assert_eq!(&postcard::from_bytes::<Running>(&stored).unwrap(), &running);
            let distinct: BTreeSet<_> = reports.0.iter().map(|(s, at, _)| (s, at)).collect();
            prop_assume!(distinct.len() == reports.0.len());
            let at = 90_000;
            for route in 0..3 {
                let last = |sender: u8| reports.0.iter().filter(|r| r.0 == sender).max_by_key(|r| r.1).filter(|r| at - r.1 < FRESH_MS);
                let said = (0..4).filter_map(last).flat_map(|r| &r.2);
                let naive: u64 = said.filter(|e| e.0 == route && e.1 > threshold_ms).map(|e| e.2).sum();
                let place = Place { route: route.to_string(), ..orders() };
                prop_assert_eq!(running.over(&place, threshold_ms * 1000, AT.plus_ms(at)), naive);
            }
        }
    }
}
