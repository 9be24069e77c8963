//! The one place of this crate that reads a clock. Durations come from the monotonic clock; a timing is dated by the wall
//! clock, through the distance of the two that is measured at the start and again at each flush. So a step of the wall clock
//! never bends a duration, and dates follow it within a flush. All other files take the time as an argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// 2020-01-01 in Unix milliseconds: a wall clock before it was never set.
const PLAUSIBLE_SINCE_MS: u64 = 1_577_836_800_000;

#[derive(Debug)]
pub(crate) struct Clock {
    origin: Instant,
    wall_at_origin_ms: AtomicU64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: monotonic(), wall_at_origin_ms: AtomicU64::new(unix_ms(wall())) }
    }

    /// Now, on the monotonic clock.
    #[expect(clippy::unused_self, reason = "the time is had from a clock, not from anywhere")]
    pub(crate) fn now(&self) -> Instant {
        monotonic()
    }

    /// How long the clock has run.
    pub(crate) fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin)
    }

    /// The Unix milliseconds that belong to a monotonic time.
    pub(crate) fn unix_ms(&self, at: Instant) -> u64 {
        self.wall_at_origin_ms.load(Ordering::Relaxed).saturating_add(whole_ms(self.uptime(at)))
    }

    /// The wall clock itself, for the dates of HTTP headers.
    #[expect(clippy::unused_self, reason = "the time is had from a clock, not from anywhere")]
    pub(crate) fn wall(&self) -> SystemTime {
        wall()
    }

    /// Measures the distance of the two clocks again.
    pub(crate) fn follow_wall(&self) {
        let at_origin = unix_ms(wall()).saturating_sub(whole_ms(self.uptime(monotonic())));
        self.wall_at_origin_ms.store(at_origin, Ordering::Relaxed);
    }

    /// Unix milliseconds now if the clock was ever set.
    pub(crate) fn plausible_unix_ms(&self) -> Option<u64> {
        Some(self.unix_ms(self.origin)).filter(|ms| *ms >= PLAUSIBLE_SINCE_MS)
    }
}

/// Whole milliseconds, cut off.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn monotonic() -> Instant {
    // Tokio's instant is the system's, and stands still in tests that pause the time.
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn wall() -> SystemTime {
    SystemTime::now()
}

fn unix_ms(wall: SystemTime) -> u64 {
    whole_ms(wall.duration_since(UNIX_EPOCH).unwrap_or_default())
}
