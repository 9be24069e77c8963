//! Exemplars behind samples: by a trace somebody sees where the time of a request went. The text format 0.0.4 has none.
//!
//! A bucket of durations has the newest in it, with the duration; the count of an outcome has the newest that ended so, with 1. Only what is recent is shown: a scraper
//! keeps what it has seen, and Prometheus refuses what is older than that.

use super::super::family::float;
use crate::counting::Outcome;
use crate::history::exemplars::Exemplar;
use crate::time::Timestamp;

/// The name of the label.
pub(in crate::show) const TRACE_ID: &str = "trace_id";

/// `OpenMetrics` allows so many characters for names and values of the labels of one, and Prometheus refuses more in any format.
const LABEL_CHARS_MAX: usize = 128;

/// An exemplar as it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::show) struct Shown<'a> {
    pub(in crate::show) trace_id: &'a str,
    /// In seconds, or requests.
    pub(in crate::show) value: f64,
    pub(in crate::show) at: Timestamp,
}

/// Whether its trace is short enough for the formats.
pub(in crate::show) fn fits(exemplar: &Exemplar) -> bool {
    TRACE_ID.len() + exemplar.trace_id.chars().count() <= LABEL_CHARS_MAX
}

/// With its duration.
pub(in crate::show) fn shown(exemplar: &Exemplar) -> Shown<'_> {
    Shown { trace_id: &exemplar.trace_id, value: float(exemplar.us) / 1e6, at: exemplar.ts }
}

/// Of the requests that took longer than one bound, and no longer than another.
pub(in crate::show) fn of_bucket(all: &[Exemplar], above_us: Option<u64>, up_to_us: Option<u64>) -> Option<Shown<'_>> {
    let inside = all.iter().filter(|e| above_us.is_none_or(|us| e.us > us) && up_to_us.is_none_or(|us| e.us <= us));
    inside.max_by_key(|e| e.ts).map(shown)
}

/// Of the requests that ended so.
pub(super) fn of_outcome(all: &[Exemplar], outcome: Outcome) -> Option<Shown<'_>> {
    all.iter().filter(|e| e.outcome == outcome).max_by_key(|e| e.ts).map(|e| Shown { value: 1.0, ..shown(e) })
}
