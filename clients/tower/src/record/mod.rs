//! The part that requests touch: durations become counts, in memory and nowhere else.
//!
//! A request takes the lock of one of a few shards twice, when it starts and when it ends, each time for a look-up or two. A
//! shard counts pairs of (endpoint, outcome, 10 s slot, duration). Critical routes keep the exact microsecond; the others the
//! upper edge of its bucket on the grid of `HdrHistogram` with two significant digits (at most 0.8 % above), so that they have
//! few values. A shard that holds as many pairs as it may is set aside as it is and the next begins: no duration is made less
//! exact to save room. Rejected: a channel to the flush task, which costs a wake-up and grows by the request, not by the value.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::in_flight::{Entry, Running};
use crate::routes::{Looked, MethodId, Route, Routes};

/// Timings are dated by the start of an aligned slot of this width.
pub(crate) const SLOT_MS: u64 = 10_000;
/// The longest duration, 7 days. Longer ones count as this.
pub(crate) const VALUE_US_MAX: u64 = 7 * 24 * 3_600 * 1_000_000;
/// Sets of pairs that may wait for the flush task, all shards together.
const SET_ASIDE_MAX: usize = 16;

/// How a request ended. A status is between 100 and 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Status(u16),
    Error,
    Timeout,
}

impl Outcome {
    /// A status that the contract does not know is an error.
    pub(crate) fn of(status: http::StatusCode) -> Self {
        if (100..=599).contains(&status.as_u16()) { Self::Status(status.as_u16()) } else { Self::Error }
    }

    fn number(self) -> u64 {
        match self {
            Self::Status(status) => u64::from(status),
            Self::Error => 1,
            Self::Timeout => 2,
        }
    }
}

/// What durations are counted by. The order is the one in which they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) slot: u32,
    pub(crate) route: u32,
    pub(crate) method: MethodId,
    pub(crate) outcome: Outcome,
    pub(crate) value_us: u64,
}

impl Hash for Pair {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // 40 bits of value, 10 of outcome, 4 of method: two words in place of five.
        state.write_u64(self.value_us | self.outcome.number() << 40 | u64::from(self.method.number()) << 50);
        state.write_u64(u64::from(self.slot) << 32 | u64::from(self.route));
    }
}

/// Pairs with their counts, and the sum of the counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) pairs: HashMap<Pair, u64, RandomState>,
    pub(crate) timings: u64,
}

impl Counts {
    fn add(&mut self, pair: Pair) {
        *self.pairs.entry(pair).or_insert(0) += 1;
        self.timings += 1;
    }

    /// Leaves an empty one with room for as many, so that requests do not pay for growing again.
    fn take(&mut self) -> Self {
        let pairs = HashMap::with_capacity_and_hasher(self.pairs.len(), RandomState::default());
        std::mem::replace(self, Self { pairs, timings: 0 })
    }
}

/// A request that was begun and must be ended once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    route: Route,
    method: MethodId,
    started: Instant,
    shard: usize,
    place: usize,
}

/// The counts of this process that are not yet in a batch.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) clock: Clock,
    pub(crate) routes: Routes,
    shards: Box<[Shard]>,
    pairs_limit: usize,
    set_aside: Mutex<VecDeque<Counts>>,
    /// Wakes the flush task when something was set aside.
    pub(crate) wake: Notify,
    /// Timings that were never sent, since the start.
    pub(crate) dropped: AtomicU64,
}

/// On cache lines of its own, so that cores do not fight over neighbours.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Counting>);

#[derive(Debug, Default)]
struct Counting {
    /// Answers of `Routes`, to be had without its lock.
    routes: HashMap<Arc<str>, Route, RandomState>,
    running: Running,
    counts: Counts,
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Counting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// `pairs_limit` is per shard; there are at most 16 shards.
    pub(crate) fn new(clock: Clock, routes: Routes, pairs_limit: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..cores.next_power_of_two().min(16)).map(|_| Shard::default()).collect();
        Self { clock, routes, shards, pairs_limit, set_aside: Mutex::default(), wake: Notify::new(), dropped: AtomicU64::new(0) }
    }

    pub(crate) fn begin(&self, method: MethodId, template: &str, now: Instant) -> Begun {
        let shard = shard_of_thread() & (self.shards.len() - 1);
        let mut counting = self.shards[shard].lock();
        let route = match counting.routes.get(template) {
            Some(route) => *route,
            None => match self.routes.look_up(template) {
                Looked::Known(name, route) => {
                    counting.routes.insert(name, route);
                    route
                }
                Looked::Lumped(route) => route,
            },
        };
        let place = counting.running.insert(Entry { route: route.id, method, started: now });
        Begun { route, method, started: now, shard, place }
    }

    pub(crate) fn end(&self, begun: &Begun, outcome: Outcome, now: Instant) {
        let exact_us = whole_us(now.saturating_duration_since(begun.started));
        let value_us = if begun.route.is_critical(begun.method) { exact_us } else { bucket_edge(exact_us) };
        let slot = u32::try_from(self.clock.unix_ms(now) / SLOT_MS).unwrap_or(u32::MAX);
        let pair = Pair { slot, route: begun.route.id, method: begun.method, outcome, value_us };
        let mut counting = self.shards[begun.shard].lock();
        counting.running.remove(begun.place);
        counting.counts.add(pair);
        if counting.counts.pairs.len() >= self.pairs_limit {
            let full = counting.counts.take();
            drop(counting);
            self.set_aside(full);
        }
    }

    fn set_aside(&self, full: Counts) {
        let mut waiting = self.set_aside.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(full);
        let lost = if waiting.len() > SET_ASIDE_MAX { waiting.pop_front() } else { None };
        drop(waiting);
        if let Some(lost) = lost {
            self.drop_timings(lost.timings);
        }
        self.wake.notify_one();
    }

    pub(crate) fn drop_timings(&self, timings: u64) {
        self.dropped.fetch_add(timings, Ordering::Relaxed);
    }

    /// Takes what was set aside and, if `all`, what is being counted.
    pub(crate) fn drain(&self, all: bool) -> Vec<Counts> {
        let waiting = std::mem::take(&mut *self.set_aside.lock().unwrap_or_else(PoisonError::into_inner));
        let mut drained: Vec<_> = waiting.into();
        if all {
            for shard in &self.shards {
                let mut counting = shard.lock();
                if counting.counts.timings > 0 {
                    drained.push(counting.counts.take());
                }
            }
        }
        drained
    }

    /// Copies what is running now.
    pub(crate) fn running(&self) -> Vec<Entry> {
        self.shards.iter().flat_map(|shard| shard.lock().running.iter().copied().collect::<Vec<_>>()).collect()
    }
}

/// Whole microseconds, half up, from 1 to 7 days.
pub(crate) fn whole_us(duration: Duration) -> u64 {
    let us = (duration.as_nanos() + 500) / 1_000;
    u64::try_from(us).unwrap_or(u64::MAX).clamp(1, VALUE_US_MAX)
}

/// The upper edge of the bucket that holds the value: exact below 256 µs, then 128 buckets to each doubling.
///
/// # Source
/// G. Tene, `HdrHistogram`, "highest equivalent value" at two significant digits and a lowest value of 1.
pub(crate) fn bucket_edge(value_us: u64) -> u64 {
    let bits = u64::BITS - value_us.leading_zeros();
    let width = 1u64 << bits.saturating_sub(8);
    (value_us | (width - 1)).min(VALUE_US_MAX)
}

/// Threads are dealt out over the shards in the order in which they come.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! { static MINE: Cell<Option<usize>> = const { Cell::new(None) }; }
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let dealt = NEXT.fetch_add(1, Ordering::Relaxed);
            mine.set(Some(dealt));
            dealt
        })
    })
}

#[cfg(test)]
mod tests;
