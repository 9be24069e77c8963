//! Who waits: how many bodies and batches of each sender are under way, so that one that floods does not take the room of the others.
//!
//! A sender is who it says it is (`Slowburn-Sender`), else its token, else its address. Until the queue is half full anybody may fill it; from there on each sender has a share: the queue
//! divided by those who sent lately and one more. So there is always room for one who comes, as long as there are fewer senders than places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::time::Timestamp;

/// A sender counts as one of those who share for this long after it was last heard of.
const LATELY_MS: i64 = 60_000;

/// Senders that are remembered at most; beyond it those that have nothing under way are forgotten.
const SENDERS_MAX: usize = 10_000;

/// Why a batch does not get a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// All are taken.
    Full,
    /// The sender has its share.
    OverShare,
}

#[derive(Debug, Default)]
struct Sender {
    reading: usize,
    waiting: usize,
    last: Timestamp,
    critical: bool,
}

#[derive(Debug, Default)]
struct Counts {
    senders: HashMap<Arc<str>, Sender>,
    waiting: usize,
    swept: Timestamp,
}

/// See the module.
#[derive(Debug)]
pub struct Waiting {
    max: usize,
    counts: Mutex<Counts>,
}

/// A body that is read; it is no more when this is dropped.
#[derive(Debug)]
pub struct Reading {
    waiting: Arc<Waiting>,
    sender: Arc<str>,
}

/// A batch that waits; its place is free when this is dropped.
#[derive(Debug)]
pub struct Place {
    waiting: Arc<Waiting>,
    sender: Arc<str>,
}

impl Waiting {
    /// With so many places.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A body of a sender begins.
    #[must_use]
    pub fn begin(self: &Arc<Self>, sender: &str, now: Timestamp) -> Reading {
        let mut counts = self.counts();
        counts.sweep(now);
        let sender = counts.senders.get_key_value(sender).map_or_else(|| Arc::from(sender), |(name, _)| Arc::clone(name));
        let of = counts.senders.entry(Arc::clone(&sender)).or_default();
        of.reading += 1;
        of.last = of.last.max(now);
        drop(counts);
        Reading { waiting: Arc::clone(self), sender }
    }

    /// Batches that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts().waiting
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Counts {
    /// Once a second, and when there are too many, those who have not been heard of for long are forgotten.
    fn sweep(&mut self, now: Timestamp) {
        if now.0 - self.swept.0 < 1_000 {
            return;
        }
        self.swept = now;
        let crowded = self.senders.len() > SENDERS_MAX;
        self.senders.retain(|_, s| s.reading + s.waiting > 0 || (!crowded && now.0 - s.last.0 < LATELY_MS));
    }
}

impl Reading {
    /// Whether this is the sender's only body or batch under way, or its last batch was critical.
    #[must_use]
    pub fn is_alone_or_critical(&self) -> bool {
        self.waiting.counts().senders.get(&self.sender).is_some_and(|s| s.critical || s.reading + s.waiting <= 1)
    }

    /// Whether the sender has several under way, and as many as others on the average or more.
    #[must_use]
    pub fn is_noisy(&self) -> bool {
        let counts = self.waiting.counts();
        let under_way = |s: &Sender| s.reading + s.waiting;
        let own = counts.senders.get(&self.sender).map_or(0, under_way);
        let (sum, busy) = counts.senders.values().map(under_way).filter(|n| *n > 0).fold((0, 0), |(sum, busy), n| (sum + n, busy + 1));
        own > 1 && own * busy >= sum
    }

    /// Remembers whether the sender's last batch had timings of a critical endpoint.
    pub fn set_critical(&self, critical: bool) {
        if let Some(sender) = self.waiting.counts().senders.get_mut(&self.sender) {
            sender.critical = critical;
        }
    }

    /// A place for its batch.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn place(&self) -> Result<Place, NoPlace> {
        let max = self.waiting.max;
        let mut counts = self.waiting.counts();
        if counts.waiting >= max {
            return Err(NoPlace::Full);
        }
        // Those who sent in the last minute, and one who may come.
        let share = (max / (counts.senders.len() + 1)).max(1);
        let half_full = counts.waiting * 2 >= max;
        let Some(sender) = counts.senders.get_mut(&self.sender) else { return Err(NoPlace::Full) };
        if half_full && sender.waiting >= share {
            return Err(NoPlace::OverShare);
        }
        sender.waiting += 1;
        counts.waiting += 1;
        Ok(Place { waiting: Arc::clone(&self.waiting), sender: Arc::clone(&self.sender) })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(sender) = self.waiting.counts().senders.get_mut(&self.sender) {
            sender.reading -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.waiting.counts();
        counts.waiting -= 1;
        if let Some(sender) = counts.senders.get_mut(&self.sender) {
            sender.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_floods_leaves_room_for_those_who_come() {
        let waiting = Arc::new(Waiting::new(100));
        let flood = waiting.begin("flood", Timestamp(1));
        let mut held: Vec<Place> = Vec::new();
        let refused = loop {
            match flood.place() {
                Ok(place) => held.push(place),
                Err(refused) => break refused,
            }
        };
        assert_eq!((held.len(), refused), (50, NoPlace::OverShare));
        for n in 0..30 {
            let quiet = waiting.begin(&format!("quiet {n}"), Timestamp(1));
            held.push(quiet.place().unwrap());
        }
        assert_eq!(flood.place().err(), Some(NoPlace::OverShare));
        assert!(!waiting.begin("quiet 1", Timestamp(2)).is_alone_or_critical());
        assert!(flood.is_noisy());
        held.clear();
        assert!(waiting.is_empty());
        assert!(flood.place().is_ok() && !flood.is_noisy());
        // Forgotten, but for those who have something under way.
        let next = waiting.begin("quiet 1", Timestamp(100_000));
        assert_eq!(waiting.counts().senders.len(), 2);
        next.set_critical(true);
        let second = waiting.begin("quiet 1", Timestamp(100_000));
        assert!(second.is_alone_or_critical());
    }
}
