//! How long to wait before the next attempt. Pure: chance and time are arguments.

use std::time::{Duration, SystemTime};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A server that asks for more gets this, so that a wrong header cannot silence a sender for a day.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Exponential from 1 s to 60 s with full jitter: after the n-th failure in a row, anything up to 2^(n−1) s.
///
/// # Source
/// M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015: full jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a failure; `chance` is from 0 to 1. A time that the server asked for is kept to.
    pub(crate) fn after_failure(&mut self, asked: Option<Duration>, chance: f64) -> Duration {
        let ceiling = FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let jittered = ceiling.mul_f64(chance.clamp(0.0, 1.0));
        asked.map_or(jittered, |asked| jittered.max(asked.min(RETRY_AFTER_MAX)))
    }

    pub(crate) fn after_success(&mut self) {
        self.failures = 0;
    }
}

/// `Retry-After`: seconds, or an HTTP date.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_a_minute_and_success_starts_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.after_failure(None, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        backoff.after_success();
        assert_eq!(backoff.after_failure(None, 0.5), Duration::from_millis(500));
        assert_eq!(backoff.after_failure(None, 0.0), Duration::ZERO);
    }

    #[test]
    fn the_time_that_the_server_asks_for_is_kept_to_within_reason() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after_failure(Some(Duration::from_secs(7)), 1.0), Duration::from_secs(7));
        assert_eq!(backoff.after_failure(Some(Duration::from_secs(1)), 1.0), Duration::from_secs(2));
        assert_eq!(backoff.after_failure(Some(Duration::MAX), 1.0), RETRY_AFTER_MAX);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap();
        assert_eq!(parse_retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(37)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:48:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon", now), None);
        assert_eq!(parse_retry_after("-1", now), None);
    }
}
