//! How fast new endpoints may come: each service has a bucket of them that fills again with time.
//!
//! It is asked when a batch is folded, and only its outcome stands in the log: which endpoint the counts went to. So recovery and the replay of a log decide nothing anew. The replay of
//! recorded timings does not ask it: it guards a running server against a flood of names, and a recording has no arrival times.

use std::collections::HashMap;

use crate::time::Timestamp;

/// A full bucket has the endpoints of this many seconds.
const BURST_S: u64 = 10;

/// See the module.
#[derive(Debug)]
pub struct Creation {
    per_second: u64,
    now: Timestamp,
    closed: bool,
    /// Thousandths of endpoints that are left, and since when.
    left: HashMap<String, (u64, Timestamp)>,
}

/// Whether a new endpoint may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// It may.
    Come,
    /// Too many of its service came lately.
    TooFast,
    /// None may for now.
    Closed,
}

impl Creation {
    /// With so many a second for each service.
    #[must_use]
    pub fn new(per_second: u64) -> Self {
        Self { per_second, now: Timestamp(0), closed: false, left: HashMap::new() }
    }

    /// The time, and whether there is room for new ones at all.
    pub fn set(&mut self, now: Timestamp, closed: bool) {
        (self.now, self.closed) = (self.now.max(now), closed);
        let (now, full) = (self.now, self.full());
        if self.left.len() > 1_000 {
            let per_second = self.per_second;
            self.left.retain(|_, bucket| filled(*bucket, per_second, now) < full);
        }
    }

    fn full(&self) -> u64 {
        self.per_second.saturating_mul(BURST_S * 1_000)
    }

    /// Asks for one.
    pub fn take(&mut self, service: &str) -> May {
        if self.closed {
            return May::Closed;
        }
        let (full, now, per_second) = (self.full(), self.now, self.per_second);
        let bucket = match self.left.get_mut(service) {
            Some(bucket) => bucket,
            None => self.left.entry(service.to_owned()).or_insert((full, now)),
        };
        *bucket = (filled(*bucket, per_second, now).min(full), now);
        match bucket.0.checked_sub(1_000) {
            Some(left) => {
                bucket.0 = left;
                May::Come
            }
            None => May::TooFast,
        }
    }
}

/// What a bucket has by now: so many endpoints a second are as many thousandths a millisecond.
fn filled((left, since): (u64, Timestamp), per_second: u64, now: Timestamp) -> u64 {
    let ms = u64::try_from(now.0 - since.0).unwrap_or(0);
    left.saturating_add(per_second.saturating_mul(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_for_each_service_fills_again() {
        let mut creation = Creation::new(2);
        creation.set(Timestamp(1_000), false);
        let taken = |creation: &mut Creation, service: &str| (0..100).filter(|_| creation.take(service) == May::Come).count();
        assert_eq!((taken(&mut creation, "a"), taken(&mut creation, "b")), (20, 20));
        creation.set(Timestamp(2_500), false);
        assert_eq!(taken(&mut creation, "a"), 3);
        creation.set(Timestamp(1_000_000), false);
        assert_eq!(taken(&mut creation, "a"), 20);
        creation.set(Timestamp(2_000_000), true);
        assert_eq!((creation.take("a"), creation.take("c")), (May::Closed, May::Closed));
    }
}
