//! The one place that reads a clock. What it hands on never steps back: when the machine's clock does, time stands still here until it has caught up.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use crate::time::Timestamp;

/// The server's clock.
#[derive(Debug, Default)]
pub struct Clock {
    latest_ms: AtomicI64,
}

impl Clock {
    /// One that never says less than this: what the log already holds.
    #[must_use]
    pub fn not_before(at: Timestamp) -> Self {
        Self { latest_ms: AtomicI64::new(at.0) }
    }

    /// Now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads a clock")]
    pub fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        Timestamp(self.latest_ms.fetch_max(now, Ordering::Relaxed).max(now))
    }
}
