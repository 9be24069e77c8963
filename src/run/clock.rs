//! The one place that reads a clock. What it hands on never steps back: when the machine's clock does, time stands still here until it has caught up.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use crate::time::Timestamp;

/// The server's clock.
#[derive(Debug, Default)]
pub struct Clock {
    latest_ms: AtomicI64,
    by_hand: bool,
}

impl Clock {
    /// One that never says less than this: what the log already holds.
    #[must_use]
    pub fn not_before(at: Timestamp) -> Self {
        Self { latest_ms: AtomicI64::new(at.0), by_hand: false }
    }

    /// One that moves only when it is moved ([`Clock::move_to`]): months in a test.
    #[must_use]
    pub fn by_hand(at: Timestamp) -> Self {
        Self { latest_ms: AtomicI64::new(at.0), by_hand: true }
    }

    /// Moves on to an instant; never back.
    pub fn move_to(&self, at: Timestamp) {
        self.latest_ms.fetch_max(at.0, Ordering::Relaxed);
    }

    /// Now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads a clock")]
    pub fn now(&self) -> Timestamp {
        if self.by_hand {
            return Timestamp(self.latest_ms.load(Ordering::Relaxed));
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        Timestamp(self.latest_ms.fetch_max(now, Ordering::Relaxed).max(now))
    }
}
