//! What is still running: one entry a request, and what is said about it at a flush. A request that hangs has no timing yet;
//! its age is all that can be known of it.
//!
//! Per endpoint the oldest request is told by itself with its exact age. The others are counted by bands of age, each band
//! from a power of two of milliseconds to the next and told with the age of its youngest, so that "n have run for at least
//! so long" is always true.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::clock::whole_ms;
use crate::routes::MethodId;

/// The most groups that one report names, the oldest first.
pub(crate) const GROUPS_MAX: usize = 1_000;

/// A request that is running.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) route: u32,
    pub(crate) method: MethodId,
    pub(crate) started: Instant,
}

/// The running requests of one shard. Places are reused, so it is as large as the most that ever ran at once.
#[derive(Debug, Default)]
pub(crate) struct Running {
    places: Vec<Option<Entry>>,
    free: Vec<usize>,
}

impl Running {
    pub(crate) fn insert(&mut self, entry: Entry) -> usize {
        if let Some(place) = self.free.pop() {
            self.places[place] = Some(entry);
            place
        } else {
            self.places.push(Some(entry));
            self.places.len() - 1
        }
    }

    pub(crate) fn remove(&mut self, place: usize) {
        if self.places.get_mut(place).and_then(Option::take).is_some() {
            self.free.push(place);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.places.iter().flatten()
    }
}

/// `n` requests of one endpoint that have run for at least `age_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub(crate) age_ms: u64,
    pub(crate) route: u32,
    pub(crate) method: MethodId,
    pub(crate) n: u64,
}

/// Groups what runs at `now`, the oldest first.
pub(crate) fn group(entries: impl IntoIterator<Item = Entry>, now: Instant) -> Vec<Group> {
    let mut ages: BTreeMap<(u32, MethodId), Vec<u64>> = BTreeMap::new();
    for entry in entries {
        let age_ms = whole_ms(now.saturating_duration_since(entry.started));
        ages.entry((entry.route, entry.method)).or_default().push(age_ms);
    }
    let mut groups = Vec::new();
    for ((route, method), mut ages) in ages {
        ages.sort_unstable();
        let oldest = ages.pop().into_iter();
        groups.extend(oldest.map(|age_ms| Group { age_ms, route, method, n: 1 }));
        for band in ages.chunk_by(|a, b| band_of(*a) == band_of(*b)) {
            groups.push(Group { age_ms: band[0], route, method, n: band.len() as u64 });
        }
    }
    groups.sort_unstable_by(|a, b| b.age_ms.cmp(&a.age_ms).then(a.cmp(b)));
    groups.truncate(GROUPS_MAX);
    groups
}

fn band_of(age_ms: u64) -> u32 {
    age_ms.saturating_add(1).ilog2()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
    async fn the_oldest_stands_alone_and_the_rest_is_counted_by_bands() {
        let now = Instant::now() + Duration::from_secs(3_600);
        let method = MethodId::of(&http::Method::GET);
        let entry = |route, age_ms| Entry { route, method, started: now - Duration::from_millis(age_ms) };
        let entries = [(1, 90_000), (1, 70_000), (1, 80_000), (1, 5), (1, 4), (2, 100)].map(|(r, a)| entry(r, a));
        let told: Vec<_> = group(entries, now).iter().map(|g| (g.route, g.age_ms, g.n)).collect();
        assert_eq!(told, [(1, 90_000, 1), (1, 70_000, 2), (2, 100, 1), (1, 4, 2)]);
    }

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
    async fn places_are_reused_and_a_repeated_removal_frees_nothing() {
        let mut running = Running::default();
        let entry = Entry { route: 0, method: MethodId::of(&http::Method::GET), started: Instant::now() };
        let places: Vec<_> = (0..3).map(|_| running.insert(entry)).collect();
        running.remove(places[1]);
        running.remove(places[1]);
        assert_eq!(running.iter().count(), 2);
        assert_eq!(running.insert(entry), places[1]);
        assert_eq!(running.insert(entry), 3);
        assert_eq!(running.iter().count(), 4);
    }
}
