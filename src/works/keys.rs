//! Units of work by their keys: which began and did not end. Matched exactly, in any order of arrival.
//!
//! A key names one unit: it is open from its first start that no end has followed. A start again while it is open is a retry of the same unit; a start
//! after its end is a new one. Hosts disagree about the time: an end up to [`SKEW_MS`] before a start still ends it.
//!
//! # Source
//! An anti-join of two sets, kept up to date; nothing is estimated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Units that may be open at once; further ones are counted as overflow.
pub const OPEN_MAX: usize = 100_000;
/// Ends that are remembered for starts that come late; the oldest are forgotten first, and counted.
pub const ENDED_MAX: usize = 100_000;
/// Missing keys that are listed.
pub const LISTED_MAX: usize = 1_000;
/// How far clocks of two hosts may be apart.
pub const SKEW_MS: i64 = 10_000;
/// Starts of one unit that are told apart: beyond it only the first ones and the last.
const STARTS_MAX: usize = 8;

/// Keys with a value each, that can be walked by age.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, (Timestamp, V)>", into = "BTreeMap<String, (Timestamp, V)>", bound = "V: Clone + Serialize + for<'a> Deserialize<'a>")]
struct Aged<V> {
    of: BTreeMap<Arc<str>, (Timestamp, V)>,
    by_age: BTreeSet<(Timestamp, Arc<str>)>,
}

impl<V> Default for Aged<V> {
    fn default() -> Self {
        Self { of: BTreeMap::new(), by_age: BTreeSet::new() }
    }
}

impl<V> From<BTreeMap<String, (Timestamp, V)>> for Aged<V> {
    fn from(stored: BTreeMap<String, (Timestamp, V)>) -> Self {
        let mut aged = Self::default();
        for (key, (at, value)) in stored {
            aged.insert(&key, at, value);
        }
        aged
    }
}

impl<V: Clone> From<Aged<V>> for BTreeMap<String, (Timestamp, V)> {
    fn from(aged: Aged<V>) -> Self {
        aged.of.into_iter().map(|(key, value)| (key.as_ref().to_owned(), value)).collect()
    }
}

impl<V> Aged<V> {
    fn insert(&mut self, key: &str, at: Timestamp, value: V) {
        let key = self.of.get_key_value(key).map_or_else(|| Arc::from(key), |(k, _)| Arc::clone(k));
        if let Some((before, _)) = self.of.insert(Arc::clone(&key), (at, value)) {
            self.by_age.remove(&(before, Arc::clone(&key)));
        }
        self.by_age.insert((at, key));
    }

    fn remove(&mut self, key: &str) {
        if let Some((key, (at, _))) = self.of.remove_entry(key) {
            self.by_age.remove(&(at, key));
        }
    }

    /// Takes the oldest out if it is older than that.
    fn pop_before(&mut self, before: Timestamp) -> bool {
        if self.by_age.first().is_none_or(|(at, _)| *at >= before) {
            return false;
        }
        if let Some((_, key)) = self.by_age.pop_first() {
            self.of.remove(&key);
        }
        true
    }
}

/// The end of a key.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Ended {
    /// The first start of the unit that it ended, where that is known.
    of: Option<Timestamp>,
}

/// What changes in the tallies by the time of a start: units begun, units ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The start of the unit.
    pub started: Timestamp,
    /// Units begun, 1, 0 or -1.
    pub begun: i8,
    /// Units ended, 1, 0 or -1.
    pub ended: i8,
}

/// Keys that did not end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The oldest first, at most [`LISTED_MAX`]: key and start.
    pub keys: Vec<(String, Timestamp)>,
    /// How many there are in all.
    pub total: u64,
}

/// The keys of a flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Keys {
    /// By the first start: all starts, in order.
    open: Aged<Vec<Timestamp>>,
    /// By the last end.
    ended: Aged<Ended>,
    overflow: u64,
    forgotten: u64,
}

impl Keys {
    /// A unit begins. `note` is told what changes in the tallies.
    pub fn start(&mut self, key: &str, at: Timestamp, mut note: impl FnMut(Change)) {
        if let Some((end, Ended { of })) = self.ended.of.get(key).copied().filter(|(end, _)| end.plus_ms(SKEW_MS) >= at) {
            if of.is_none_or(|first| at < first) {
                if let Some(first) = of {
                    note(Change { started: first, begun: -1, ended: -1 });
                }
                note(Change { started: at, begun: 1, ended: 1 });
                self.ended.insert(key, end, Ended { of: Some(at) });
            }
            return;
        }
        if let Some((first, starts)) = self.open.of.get_mut(key) {
            let first = *first;
            if let Err(place) = starts.binary_search(&at) {
                starts.insert(place, at);
                if starts.len() > STARTS_MAX {
                    starts.remove(STARTS_MAX - 1);
                }
            }
            if at < first {
                let starts = std::mem::take(starts);
                self.open.insert(key, at, starts);
                note(Change { started: first, begun: -1, ended: 0 });
                note(Change { started: at, begun: 1, ended: 0 });
            }
        } else if self.open.of.len() >= OPEN_MAX {
            self.overflow += 1;
        } else {
            self.open.insert(key, at, vec![at]);
            note(Change { started: at, begun: 1, ended: 0 });
        }
    }

    /// A unit ends. `note` is told what changes in the tallies.
    pub fn end(&mut self, key: &str, at: Timestamp, mut note: impl FnMut(Change)) {
        let covered = at.plus_ms(SKEW_MS);
        let known = self.ended.of.get(key).copied();
        let newest = known.map_or(at, |(end, _)| end.max(at));
        if let Some((first, starts)) = self.open.of.get(key).filter(|(first, _)| *first <= covered) {
            let (first, rest): (_, Vec<Timestamp>) = (*first, starts.iter().copied().filter(|s| *s > covered).collect());
            note(Change { started: first, begun: 0, ended: 1 });
            if let Some(next) = rest.first().copied() {
                note(Change { started: next, begun: 1, ended: 0 });
                self.open.insert(key, next, rest);
            } else {
                self.open.remove(key);
            }
            self.ended.insert(key, newest, Ended { of: Some(first) });
        } else if known.is_none_or(|(end, _)| end < at) {
            self.ended.insert(key, newest, known.map_or(Ended { of: None }, |(_, e)| e));
        }
        while self.ended.of.len() > ENDED_MAX && self.ended.pop_before(Timestamp(i64::MAX)) {
            self.forgotten += 1;
        }
    }

    /// Gives up units that began before `open_before` (how many there were is returned), and ends before `ended_before`.
    pub fn forget(&mut self, open_before: Timestamp, ended_before: Timestamp) -> u64 {
        let mut given_up = 0;
        while self.open.pop_before(open_before) {
            given_up += 1;
        }
        while self.ended.pop_before(ended_before) {}
        given_up
    }

    /// Units that began in `[from, until]` and did not end.
    #[must_use]
    pub fn missing(&self, from: Timestamp, until: Timestamp) -> Missing {
        let mut missing = Missing::default();
        for (at, key) in self.open_since(from).take_while(|(at, _)| *at <= until) {
            missing.total += 1;
            if missing.keys.len() < LISTED_MAX {
                missing.keys.push((key.as_ref().to_owned(), *at));
            }
        }
        missing
    }

    /// How many began in `[from, until]` and did not end.
    #[must_use]
    pub fn missing_count(&self, from: Timestamp, until: Timestamp) -> u64 {
        self.open_since(from).take_while(|(at, _)| *at <= until).count() as u64
    }

    fn open_since(&self, from: Timestamp) -> impl Iterator<Item = &(Timestamp, Arc<str>)> {
        self.open.by_age.range((from, Arc::from(""))..)
    }

    /// The start of the oldest open unit.
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        self.open.by_age.first().map(|(at, _)| *at)
    }

    /// Units that are open.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.of.len() as u64
    }

    /// Starts that found no room, and ends that were forgotten for lack of it.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow + self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that happened to a key, and the answer from the definition.
    #[derive(Default)]
    struct Naive(BTreeMap<String, (Vec<i64>, Option<i64>)>);

    impl Naive {
        fn missing(&self) -> Vec<(String, Timestamp)> {
            let open = self.0.iter().filter_map(|(key, (starts, end))| {
                let since = starts.iter().filter(|s| end.is_none_or(|e| **s > e + SKEW_MS)).min()?;
                Some((Timestamp(*since), key.clone()))
            });
            let mut open: Vec<_> = open.collect();
            open.sort();
            open.into_iter().map(|(at, key)| (key, at)).collect()
        }
    }

    fn all(keys: &Keys) -> Vec<(String, Timestamp)> {
        keys.missing(Timestamp(0), Timestamp(i64::MAX)).keys
    }

    fn feed(events: &[(bool, u8, i64)]) -> (Keys, i64, i64) {
        let (mut keys, mut begun, mut ended) = (Keys::default(), 0, 0);
        for (starts, key, at) in events {
            let note = |c: Change| {
                begun += i64::from(c.begun);
                ended += i64::from(c.ended);
            };
            if *starts { keys.start(&format!("k{key}"), Timestamp(*at), note) } else { keys.end(&format!("k{key}"), Timestamp(*at), note) }
        }
        (keys, begun, ended)
    }

    proptest! {
        #[test]
        fn what_is_missing_is_what_a_naive_model_says(events in prop::collection::vec((any::<bool>(), 0_u8..6, 0_i64..200_000), 0..40)) {
            // A unit tells eight starts apart.
            let starts = |key: u8| events.iter().filter(|(s, k, _)| *s && *k == key).count();
            prop_assume!((0..6).all(|k| starts(k) <= STARTS_MAX));
            let mut naive = Naive::default();
            for (starts, key, at) in &events {
                let seen = naive.0.entry(format!("k{key}")).or_default();
                if *starts { seen.0.push(*at) } else { seen.1 = seen.1.max(Some(*at)) }
            }
            let (keys, begun, ended) = feed(&events);
            prop_assert_eq!(all(&keys), naive.missing());
            prop_assert_eq!(begun - ended, i64::try_from(keys.open()).unwrap());
            let stored = postcard::to_allocvec(&keys).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Keys>(&stored).unwrap(), keys);
        }

        #[test]
        fn one_end_for_each_start_leaves_nothing_in_any_order(order in Just((0_u8..20).flat_map(|k| [(true, k), (true, k), (false, k)]).collect::<Vec<_>>()).prop_shuffle()) {
            let events: Vec<_> = order.iter().map(|(starts, key)| (*starts, *key, i64::from(*key) * 1000 + if *starts { 0 } else { 5000 })).collect();
            let (keys, begun, ended) = feed(&events);
            prop_assert_eq!((keys.open(), begun, ended), (0, 20, 20));
        }
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut keys = Keys::default();
        for n in 0..OPEN_MAX + 7 {
            keys.start(&n.to_string(), Timestamp(n.try_into().unwrap()), |_| {});
        }
        assert_eq!((keys.open(), keys.overflow()), (OPEN_MAX as u64, 7));
        let missing = keys.missing(Timestamp(0), Timestamp(i64::MAX));
        assert_eq!((missing.total, missing.keys.len(), missing.keys[0].0.as_str()), (OPEN_MAX as u64, LISTED_MAX, "0"));
        for n in 0..ENDED_MAX + 3 {
            keys.end(&format!("e{n}"), Timestamp(n.try_into().unwrap()), |_| {});
        }
        assert_eq!(keys.overflow(), 10);
        assert_eq!(keys.forget(Timestamp(50), Timestamp(0)), 50);
    }
}
