//! What a request says: its query string and, of a POST, its form; times, steps and durations as Prometheus writes them.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::Method;

use super::Failure;
use crate::time::{TIMESTAMP_MS_MAX, Timestamp};

/// Bytes of a form.
const FORM_BYTES_MAX: usize = 64 << 10;

/// Points of a series, as in Prometheus.
const POINTS_MAX: i64 = 11_000;

/// How long a question may take, in seconds.
const TIMEOUT_MS_MAX: i64 = 30_000;

/// Names and values, some more than once.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = Failure;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let mut pairs = pairs(parts.uri.query().unwrap_or_default().as_bytes());
        if parts.method == Method::POST {
            let body = axum::body::to_bytes(body, FORM_BYTES_MAX).await;
            let body = body.map_err(|e| Failure::bad_data(format!("the form cannot be read: {e}; its limit is {FORM_BYTES_MAX} bytes")))?;
            pairs.extend(self::pairs(&body));
        }
        Ok(Self(pairs))
    }
}

fn pairs(encoded: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(encoded).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

impl Form {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, Failure> {
        self.get(name).ok_or_else(|| invalid(name, "it is missing"))
    }

    /// An instant; without one now.
    pub(super) fn time(&self, name: &str, now: Timestamp) -> Result<Timestamp, Failure> {
        self.get(name).map_or(Ok(now), |text| instant(text).map_err(|e| invalid(name, e)))
    }

    /// When it is too late for an answer.
    pub(super) fn deadline(&self, now: Timestamp) -> Result<Timestamp, Failure> {
        let asked = self.get("timeout").map_or(Ok(TIMEOUT_MS_MAX), |text| duration_ms(text).map_err(|e| invalid("timeout", e)))?;
        Ok(now.plus_ms(asked.min(TIMEOUT_MS_MAX)))
    }

    /// The instants of a range.
    pub(super) fn instants(&self) -> Result<Vec<Timestamp>, Failure> {
        let end_of = |name: &str| self.required(name).and_then(|text| instant(text).map_err(|e| invalid(name, e)));
        let (start, end) = (end_of("start")?, end_of("end")?);
        let step = duration_ms(self.required("step")?).map_err(|e| invalid("step", e))?;
        if end < start {
            return Err(invalid("end", "end timestamp must not be before start time"));
        }
        if step <= 0 {
            return Err(invalid("step", "zero or negative query resolution step widths are not accepted. Try a positive integer"));
        }
        if (end.0 - start.0) / step >= POINTS_MAX {
            let message = "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)";
            return Err(Failure::bad_data(message));
        }
        Ok((0..=(end.0 - start.0) / step).map(|n| start.plus_ms(n * step)).collect())
    }
}

pub(super) fn invalid(name: &str, message: impl std::fmt::Display) -> Failure {
    Failure::bad_data(format!("invalid parameter \"{name}\": {message}"))
}

/// Unix seconds, or RFC 3339.
fn instant(text: &str) -> Result<Timestamp, String> {
    let expected = || format!("cannot parse \"{text}\" to a valid timestamp: expected Unix seconds or RFC 3339");
    let at = match text.parse::<f64>() {
        Ok(seconds) => Timestamp(milliseconds(seconds).ok_or_else(expected)?),
        // A whole number would be taken for milliseconds.
        Err(_) => Timestamp::parse(text).map_err(|_| expected())?,
    };
    if (0..=TIMESTAMP_MS_MAX).contains(&at.0) { Ok(at) } else { Err(expected()) }
}

/// Seconds, or a duration such as `1h30m`.
fn duration_ms(text: &str) -> Result<i64, String> {
    let expected = || format!("cannot parse \"{text}\" to a valid duration: expected seconds, or such as 5m or 1h30m");
    match text.parse::<f64>() {
        Ok(seconds) => milliseconds(seconds).ok_or_else(expected),
        Err(_) => promql_parser::util::parse_duration(text).map(|d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)).map_err(|_| expected()),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "checked to be in range")]
fn milliseconds(seconds: f64) -> Option<i64> {
    let ms = (seconds * 1e3).round();
    (ms.abs() <= TIMESTAMP_MS_MAX as f64).then_some(ms as i64)
}
