//! Exemplars: of each endpoint the slowest timing that carried a trace, once of those that went well and once of those that failed, by minute and by ten minutes, in memory.
//!
//! A scraper needs those of the minute that runs and of the one before; whoever is called out needs one of the hours before. So minutes are kept for [`MINUTES_MS`] and then
//! become part of their ten minutes, which are kept for [`KEPT_MS`]: less than the log keeps its details, so that snapshot, log and rebuild lead to the same. The slowest is the
//! slowest in whatever order they come.
//!
//! Memory has an end: the oldest windows go first when there are too many, and of a window that is too large by itself what comes last is left out. Critical endpoints
//! have a budget of their own, so that others never push them out.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::counting::Outcome;
use crate::endpoint::EndpointId;
use crate::ingest::Detail;
use crate::time::{Tier, TimeRange, Timestamp};

/// Minutes are kept one by one for so long after their end.
pub const MINUTES_MS: i64 = 5 * 60_000;

/// Ten minutes are kept for so long after their beginning.
pub const KEPT_MS: i64 = 6 * 3_600_000;

const TEN_MINUTES_MS: i64 = 600_000;

/// Bytes that those of critical endpoints may take, and those of all others: some 55,000 with a usual trace. A full minute that becomes part of its ten holds up commits for some
/// milliseconds.
pub const BYTES_MAX: u64 = 8 << 20;

/// What one takes beside its text: itself, its key, its share of the tree, two counts of references.
const EXEMPLAR_BYTES: u64 = 112;

/// A timing that carried a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exemplar {
    /// How long it took, in microseconds.
    pub us: u64,
    /// When.
    pub ts: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// Its trace: never empty.
    pub trace_id: Arc<str>,
}

/// Of two that took equally long the later one is taken, and so on, so that the order in which they come makes no difference.
type Order<'a> = (u64, Timestamp, Outcome, &'a str);

impl Exemplar {
    fn order(&self) -> Order<'_> {
        (self.us, self.ts, self.outcome, &self.trace_id)
    }

    /// The slower of the two.
    #[must_use]
    pub fn slower<'a>(&'a self, other: &'a Self) -> &'a Self {
        if self.order() < other.order() { other } else { self }
    }

    fn bytes(&self) -> u64 {
        EXEMPLAR_BYTES + self.trace_id.len() as u64
    }
}

/// By endpoint, and whether it failed.
type Window = BTreeMap<(EndpointId, bool), Exemplar>;

/// Windows by their beginning. Whoever looks at them shares them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Windows {
    minutes: BTreeMap<Timestamp, Arc<Window>>,
    tens: BTreeMap<Timestamp, Arc<Window>>,
    bytes: u64,
}

/// See the module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exemplars {
    /// Of endpoints that are not critical, and of those that are.
    of: [Windows; 2],
    judged_to: Timestamp,
    /// Not kept, or not for as long as the others, for lack of room; since the process started.
    #[serde(skip)]
    left_out: u64,
}

impl Exemplars {
    /// Takes what a timing says beside its duration, if that is a trace.
    pub fn add(&mut self, detail: &Detail, is_critical: bool) {
        let Some((order, is_minute)) = self.order_of(detail) else { return };
        self.left_out += self.of[usize::from(is_critical)].add((detail.endpoint, detail.outcome.is_failure()), order, is_minute, || order.3.into());
    }

    /// Whether what a timing says beside its duration would be taken: it has a trace, and no slower one of its window is known.
    #[must_use]
    pub fn wants<E>(&self, endpoint: EndpointId, detail: &Detail<E>, is_critical: bool) -> bool {
        let windows = &self.of[usize::from(is_critical)];
        self.order_of(detail).is_some_and(|(order, is_minute)| !windows.knows_slower((endpoint, detail.outcome.is_failure()), order, is_minute))
    }

    /// Its place among others, and whether its minute is kept by itself; if it is kept at all.
    fn order_of<'d, E>(&self, detail: &'d Detail<E>) -> Option<(Order<'d>, bool)> {
        let trace_id = detail.trace_id.as_deref().filter(|id| !id.is_empty() && detail.ts >= self.kept_from())?;
        let is_minute = Tier::Minute.period_of(detail.ts) >= self.minutes_from();
        Some(((detail.duration_us, detail.ts, detail.outcome, trace_id), is_minute))
    }

    /// Everything up to there was judged: what is old goes.
    pub fn judged(&mut self, to: Timestamp) {
        self.judged_to = self.judged_to.max(to);
        let (kept_from, minutes_from) = (self.kept_from(), self.minutes_from());
        for windows in &mut self.of {
            self.left_out += windows.age(kept_from, minutes_from);
        }
    }

    fn kept_from(&self) -> Timestamp {
        Timestamp(self.judged_to.plus_ms(-KEPT_MS).0.div_euclid(TEN_MINUTES_MS) * TEN_MINUTES_MS)
    }

    fn minutes_from(&self) -> Timestamp {
        Tier::Minute.period_of(self.judged_to.plus_ms(-MINUTES_MS))
    }

    /// From when on what is there is fit for a scrape: the minute that was judged last and the one before.
    #[must_use]
    pub fn recent(&self) -> TimeRange {
        TimeRange { from: Tier::Minute.period_of(self.judged_to.plus_ms(-60_000)), to: Timestamp(i64::MAX) }
    }

    /// The minutes that are kept one by one, and what came since.
    #[must_use]
    pub fn minutes(&self) -> TimeRange {
        TimeRange { from: self.minutes_from(), to: Timestamp(i64::MAX) }
    }

    /// Those of some endpoints whose timings ended in a range of time, in no order.
    pub fn of(&self, endpoints: RangeInclusive<EndpointId>, range: TimeRange) -> impl Iterator<Item = (EndpointId, &Exemplar)> {
        let (first, last) = endpoints.into_inner();
        let windows = self.of.iter().flat_map(move |w| {
            let tens = w.tens.range(range.from.plus_ms(1 - TEN_MINUTES_MS)..range.to);
            tens.chain(w.minutes.range(range.from.plus_ms(1 - 60_000)..range.to))
        });
        let some = windows.filter(move |_| first <= last).flat_map(move |(_, window)| window.range((first, false)..=(last, true)));
        some.filter(move |(_, e)| (range.from..range.to).contains(&e.ts)).map(|((id, _), e)| (*id, e))
    }

    /// The slowest of an endpoint in a range of time; of those that failed, if only they are asked for.
    #[must_use]
    pub fn slowest(&self, endpoint: EndpointId, range: TimeRange, failed_only: bool) -> Option<&Exemplar> {
        self.of(endpoint..=endpoint, range).map(|(_, e)| e).filter(|e| !failed_only || e.outcome.is_failure()).reduce(Exemplar::slower)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of.iter().all(|w| w.minutes.is_empty() && w.tens.is_empty())
    }

    /// The bytes that they take, about.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.of.iter().map(|w| w.bytes).sum()
    }

    /// How many were not kept, or not for as long as the others, for lack of room; since the process started.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

/// The beginning of the window that a timing is of.
fn window_of(ts: Timestamp, is_minute: bool) -> Timestamp {
    let width_ms = if is_minute { 60_000 } else { TEN_MINUTES_MS };
    Timestamp(ts.0.div_euclid(width_ms) * width_ms)
}

/// Whether a timing is slower than another of its window.
#[must_use]
pub fn is_slower<A, B>(one: &Detail<A>, other: &Detail<B>) -> bool {
    (one.duration_us, one.ts, one.outcome, &one.trace_id) > (other.duration_us, other.ts, other.outcome, &other.trace_id)
}

impl Windows {
    fn knows_slower(&self, key: (EndpointId, bool), order: Order<'_>, is_minute: bool) -> bool {
        let all = if is_minute { &self.minutes } else { &self.tens };
        all.get(&window_of(order.1, is_minute)).and_then(|w| w.get(&key)).is_some_and(|known| known.order() >= order)
    }

    /// Adds one unless a slower one is known; how many had to go for it.
    fn add(&mut self, key: (EndpointId, bool), order: Order<'_>, is_minute: bool, trace_id: impl FnOnce() -> Arc<str>) -> u64 {
        // A slower one is known, most of the time: a window that somebody looks at is copied only for news.
        if self.knows_slower(key, order, is_minute) {
            return 0;
        }
        let (us, ts, outcome, _) = order;
        let start = window_of(ts, is_minute);
        let all = if is_minute { &mut self.minutes } else { &mut self.tens };
        let exemplar = Exemplar { us, ts, outcome, trace_id: trace_id() };
        let window = Arc::make_mut(all.entry(start).or_default());
        let bytes = exemplar.bytes();
        match window.entry(key) {
            Entry::Occupied(mut known) => self.bytes = self.bytes + bytes - known.insert(exemplar).bytes(),
            Entry::Vacant(place) => {
                place.insert(exemplar);
                self.bytes += bytes;
            }
        }
        let mut gone = 0;
        while self.bytes > BYTES_MAX {
            if self.tens.len() + self.minutes.len() > 1 {
                let oldest = self.tens.pop_first().or_else(|| self.minutes.pop_first());
                gone += oldest.map_or(0, |(_, w)| self.forget(&w));
            } else if let Some(window) = self.tens.values_mut().chain(self.minutes.values_mut()).next() {
                let newest = Arc::make_mut(window).remove(&key);
                self.bytes -= newest.map_or(0, |e| e.bytes());
                gone += 1;
            }
        }
        gone
    }

    /// How many had to go for lack of room, which is none but for a window of the very limit.
    fn age(&mut self, kept_from: Timestamp, minutes_from: Timestamp) -> u64 {
        let mut gone = 0;
        while let Some(minute) = self.minutes.first_entry().filter(|m| *m.key() < minutes_from) {
            let minute = minute.remove();
            self.forget(&minute);
            for (key, exemplar) in &*minute {
                if exemplar.ts >= kept_from {
                    gone += self.add(*key, exemplar.order(), false, || Arc::clone(&exemplar.trace_id));
                }
            }
        }
        while let Some(ten) = self.tens.first_entry().filter(|t| *t.key() < kept_from) {
            let ten = ten.remove();
            self.forget(&ten);
        }
        gone
    }

    fn forget(&mut self, window: &Window) -> u64 {
        self.bytes -= window.values().map(Exemplar::bytes).sum::<u64>();
        window.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: i64 = 1_766_534_400_000;

    fn detail(endpoint: u32, ts: i64, us: u64, outcome: Outcome, trace: &str) -> Detail {
        Detail {
            endpoint: EndpointId(endpoint),
            ts: Timestamp(ts),
            outcome,
            duration_us: us,
            trace_id: Some(trace.to_owned()),
            actor: None,
            key: None,
            starts: false,
        }
    }

    fn known(exemplars: &Exemplars, endpoint: u32, from: i64, to: i64) -> Vec<String> {
        let range = TimeRange { from: Timestamp(from), to: Timestamp(to) };
        let mut known: Vec<String> = exemplars.of(EndpointId(endpoint)..=EndpointId(endpoint), range).map(|(_, e)| e.trace_id.to_string()).collect();
        known.sort();
        known
    }

    #[test]
    fn the_slowest_of_each_minute_becomes_that_of_its_ten_minutes_and_goes_after_hours() {
        let mut all = Exemplars::default();
        for (ts, us, outcome, trace) in [
            (T, 500, Outcome::Ok, "slow"),
            (T + 1, 400, Outcome::ClientError, "slower than the rest, not the slowest"),
            (T + 2, 100, Outcome::Error, "failed"),
            (T + 3, 200, Outcome::Timeout, "timed out"),
            (T + 60_000, 700, Outcome::Ok, "slower"),
            (T + 120_000, 10, Outcome::Ok, "fast"),
        ] {
            all.add(&detail(3, ts, us, outcome, trace), true);
        }
        all.add(&detail(3, T, 9_000, Outcome::Ok, ""), true);
        all.add(&Detail { trace_id: None, ..detail(3, T, 9_000, Outcome::Ok, "") }, true);
        all.judged(Timestamp(T + 180_000));
        assert_eq!(known(&all, 3, 0, i64::MAX), ["fast", "slow", "slower", "timed out"]);
        assert_eq!(known(&all, 3, T, T + 1), ["slow"]);
        assert_eq!(known(&all, 2, 0, i64::MAX), Vec::<String>::new());
        let slowest = |all: &Exemplars, failed| {
            all.slowest(EndpointId(3), TimeRange { from: Timestamp(0), to: Timestamp(i64::MAX) }, failed).map(|e| e.trace_id.to_string())
        };
        assert_eq!((slowest(&all, false).as_deref(), slowest(&all, true).as_deref()), (Some("slower"), Some("timed out")));
        all.judged(Timestamp(T + 120_000 + MINUTES_MS + 60_000));
        assert_eq!(known(&all, 3, 0, i64::MAX), ["slower", "timed out"]);
        // What comes late finds its ten minutes.
        all.add(&detail(3, T + 59_000, 800, Outcome::Ok, "late"), true);
        assert_eq!(known(&all, 3, 0, i64::MAX), ["late", "timed out"]);
        all.judged(Timestamp(T + KEPT_MS + TEN_MINUTES_MS - 1));
        assert_eq!(known(&all, 3, 0, i64::MAX), ["late", "timed out"]);
        all.judged(Timestamp(T + KEPT_MS + TEN_MINUTES_MS));
        assert!(all.is_empty() && all.bytes() == 0 && all.left_out() == 0);
        all.add(&detail(3, T, 900, Outcome::Ok, "too late"), true);
        assert!(all.is_empty());
    }

    #[test]
    fn old_windows_go_first_when_room_runs_out_and_critical_endpoints_keep_theirs() {
        let (mut all, long) = (Exemplars::default(), "x".repeat(256));
        all.add(&detail(0, T, 1, Outcome::Ok, "critical"), true);
        let fit = u32::try_from(BYTES_MAX / (EXEMPLAR_BYTES + 256)).unwrap();
        for minute in 0..3 {
            for endpoint in 0..fit / 2 {
                all.add(&detail(endpoint, T + minute * 60_000, 1, Outcome::Ok, &long), false);
            }
        }
        let at = |all: &Exemplars, minute: i64| known(all, 1, T + minute * 60_000, T + (minute + 1) * 60_000).len();
        assert_eq!([0, 1, 2].map(|minute| at(&all, minute)), [0, 1, 1]);
        assert_eq!(all.left_out(), u64::from(fit / 2));
        // A minute that is too large by itself.
        for endpoint in 0..2 * fit {
            all.add(&detail(endpoint, T + 180_000, 1, Outcome::Ok, &long), false);
        }
        assert_eq!([0, 1, 2, 3].map(|minute| at(&all, minute)), [0, 0, 0, 1]);
        assert!(all.bytes() <= BYTES_MAX + 200 && all.bytes() > BYTES_MAX - 400, "{}", all.bytes());
        assert_eq!(all.left_out(), u64::from(3 * (fit / 2) + fit));
        assert_eq!(known(&all, 0, T, T + 1), ["critical"]);
    }

    proptest! {
        /// Neither the order in which they come nor how often it is judged in between makes a difference, nor a snapshot.
        #[test]
        fn the_order_makes_no_difference(
            mut some in prop::collection::vec((0u32..4, 0i64..40 * 60_000, 0u64..50, 0usize..4, "[a-c]{1,2}"), 0..60),
            closes in prop::collection::vec(any::<bool>(), 60),
            seed in any::<u64>(),
        ) {
            let filled = |some: &[(u32, i64, u64, usize, String)], closes: &[bool]| {
                let mut all = Exemplars::default();
                for ((endpoint, ms, us, outcome, trace), close) in some.iter().zip(closes) {
                    all.add(&detail(*endpoint, T + ms, *us, Outcome::ALL[*outcome], trace), endpoint % 2 == 0);
                    if *close {
                        all.judged(Timestamp(T + ms));
                        all = postcard::from_bytes(&postcard::to_stdvec(&all).unwrap()).unwrap();
                    }
                }
                all.judged(Timestamp(T + 41 * 60_000));
                all
            };
            let one = filled(&some, &closes);
            let from = usize::try_from(seed % 60).unwrap().min(some.len());
            some.rotate_left(from);
            let other = filled(&some, &[false; 60]);
            prop_assert_eq!(postcard::to_stdvec(&one).unwrap(), postcard::to_stdvec(&other).unwrap());
            // Naively: the slowest of each window.
            let mut naive = BTreeMap::new();
            for (endpoint, ms, us, outcome, trace) in &some {
                let start = if *ms >= 36 * 60_000 { ms / 60_000 * 60_000 } else { ms / TEN_MINUTES_MS * TEN_MINUTES_MS };
                let said = (*us, T + ms, Outcome::ALL[*outcome], trace.clone());
                let place = naive.entry((*ms >= 36 * 60_000, start, *endpoint, said.2.is_failure())).or_insert_with(|| said.clone());
                *place = place.clone().max(said);
            }
            let mut kept: Vec<String> = one.of(EndpointId(0)..=EndpointId(9), one_range()).map(|(id, e)| format!("{id:?} {e:?}")).collect();
            let mut wanted: Vec<String> = naive.into_iter().map(|((_, _, id, _), (us, ts, outcome, trace))| {
                format!("{:?} {:?}", EndpointId(id), Exemplar { us, ts: Timestamp(ts), outcome, trace_id: trace.into() })
            }).collect();
            kept.sort();
            wanted.sort();
            prop_assert_eq!(kept, wanted);
        }
    }

    fn one_range() -> TimeRange {
        TimeRange { from: Timestamp(0), to: Timestamp(i64::MAX) }
    }
}
