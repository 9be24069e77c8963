//! How long to wait before the next attempt: the one place where that is decided.
//!
//! Pure. Who waits, and on which clock, is the business of [`super::outbox`].

use std::time::Duration;

use crate::incident::derived_id;
use crate::time::Timestamp;

/// The ceiling of the first wait.
pub const FIRST: Duration = Duration::from_secs(5);

/// The ceiling of every later wait.
pub const LONGEST: Duration = Duration::from_secs(300);

/// The longest that a receiver may ask to be left alone.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

/// After so many milliseconds nobody is told any more.
pub const GIVE_UP_MS: i64 = 86_400_000;

/// The wait after the `failures`-th failure in a row (from 1): a `jitter` in [0, 1) of a ceiling that doubles from [`FIRST`] to
/// [`LONGEST`], so that receivers that fail together are not tried together; never shorter than the receiver asked for, up to
/// [`RETRY_AFTER_MAX`].
#[must_use]
pub fn wait(failures: u32, jitter: f64, retry_after: Option<Duration>) -> Duration {
    wait_between(FIRST, LONGEST, failures, jitter, retry_after)
}

/// The same with other ceilings, for what comes more often than notifications do.
#[must_use]
pub fn wait_between(first: Duration, longest: Duration, failures: u32, jitter: f64, retry_after: Option<Duration>) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let own = doubled.min(longest).mul_f64(jitter.clamp(0.0, 1.0));
    own.max(retry_after.map_or(Duration::ZERO, |asked| asked.min(RETRY_AFTER_MAX)))
}

/// How long a notification of `at` may still be tried; `None` when its day is over.
#[must_use]
pub fn time_left(at: Timestamp, now: Timestamp) -> Option<Duration> {
    let left_ms = at.plus_ms(GIVE_UP_MS).0.saturating_sub(now.0);
    u64::try_from(left_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis)
}

/// A number in [0, 1) that follows from the seed, the notification and the attempt.
#[must_use]
pub fn jitter(seed: u64, id: &str, attempt: u32) -> f64 {
    let hex = derived_id(&[&seed.to_string(), id, &attempt.to_string()]);
    // 32 bits are plenty, and exact in a float.
    let bits = u32::from_str_radix(&hex[..8], 16).unwrap_or(0);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_from_five_seconds_to_five_minutes() {
        let ceilings: Vec<u64> = (1..=9).map(|n| wait(n, 1.0, None).as_secs()).collect();
        assert_eq!(ceilings, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(wait(u32::MAX, 1.0, None), LONGEST);
        assert_eq!(wait(3, 0.5, None), Duration::from_secs(10));
        assert_eq!(wait(3, 0.0, None), Duration::ZERO);
    }

    #[test]
    fn what_the_receiver_asks_for_is_obeyed_up_to_a_quarter_of_an_hour() {
        let asked = |s| Some(Duration::from_secs(s));
        assert_eq!(wait(1, 0.1, asked(42)), Duration::from_secs(42));
        assert_eq!(wait(1, 0.1, asked(1_000_000)), RETRY_AFTER_MAX);
        assert_eq!(wait(7, 1.0, asked(1)), LONGEST);
    }

    #[test]
    fn a_notification_has_a_day() {
        let at = Timestamp(1_000);
        assert_eq!(time_left(at, at), Some(Duration::from_secs(86_400)));
        assert_eq!(time_left(at, at.plus_ms(GIVE_UP_MS - 1)), Some(Duration::from_millis(1)));
        assert_eq!(time_left(at, at.plus_ms(GIVE_UP_MS)), None);
    }

    #[test]
    fn jitter_repeats_for_the_same_attempt_and_spreads_over_others() {
        assert_eq!(jitter(7, "a", 1).to_bits(), jitter(7, "a", 1).to_bits());
        let drawn: Vec<f64> = (0..1000).map(|n| jitter(7, "a", n)).collect();
        assert!(drawn.iter().all(|j| (0.0..1.0).contains(j)));
        let mean = drawn.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
