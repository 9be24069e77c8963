//! Answers as Prometheus writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::super::exposition::exemplar::{Shown, TRACE_ID};
use super::super::promql::buckets::Buckets;
use super::super::promql::evaluate::{Joined, Labels, Sample, Series, Value};
use crate::time::Timestamp;

/// A number as Go writes it.
fn number(out: &mut String, value: f64) {
    // Writing to a text does not fail.
    let written = match value {
        v if v.is_nan() => out.write_str("\"NaN\""),
        v if v.is_infinite() => out.write_str(if v > 0.0 { "\"+Inf\"" } else { "\"-Inf\"" }),
        v => write!(out, "\"{v}\""),
    };
    written.expect("memory takes all");
}

fn instant(out: &mut String, at: Timestamp) {
    let (seconds, ms) = (at.0.div_euclid(1_000), at.0.rem_euclid(1_000));
    let written = if ms == 0 { write!(out, "{seconds}") } else { out.write_str(format!("{seconds}.{ms:03}").trim_end_matches('0')) };
    written.expect("memory takes all");
}

pub(super) fn text(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn labels(out: &mut String, labels: &Labels) {
    out.push('{');
    for (n, (name, value)) in labels.iter().enumerate() {
        out.push_str(if n > 0 { "," } else { "" });
        text(out, name);
        out.push(':');
        text(out, value);
    }
    out.push('}');
}

fn histogram(out: &mut String, buckets: &Buckets) {
    out.push_str("{\"count\":");
    number(out, buckets.count());
    out.push_str(",\"sum\":");
    number(out, buckets.sum_seconds);
    out.push_str(",\"buckets\":[");
    for (n, (lower, upper, count)) in buckets.native().into_iter().enumerate() {
        // Which bounds belong to the bucket: both of the zero bucket, of others only the upper.
        out.push_str(match (n > 0, lower < 0.0) {
            (true, _) => ",[0,",
            (false, true) => "[3,",
            (false, false) => "[0,",
        });
        for (bound, end) in [(lower, ','), (upper, ','), (count, ']')] {
            number(out, bound);
            out.push(end);
        }
    }
    out.push_str("]}");
}

fn point(out: &mut String, at: Timestamp, sample: &Sample) {
    out.push('[');
    instant(out, at);
    out.push(',');
    match sample {
        Sample::Number(n) => number(out, *n),
        Sample::Histogram(h) => histogram(out, h),
    }
    out.push(']');
}

/// The value at one instant.
pub(super) fn of_instant(value: &Value, at: Timestamp) -> String {
    let mut out = String::new();
    match value {
        Value::Scalar(numbers) => {
            out.push_str("{\"resultType\":\"scalar\",\"result\":");
            point(&mut out, at, &Sample::Number(numbers.first().copied().unwrap_or(f64::NAN)));
        }
        Value::Text(said) => {
            out.push_str("{\"resultType\":\"string\",\"result\":[");
            instant(&mut out, at);
            out.push(',');
            text(&mut out, said);
            out.push(']');
        }
        Value::Vector(series) => {
            out.push_str("{\"resultType\":\"vector\",\"result\":[");
            let there = series.iter().filter_map(|Series { labels, points }| Some((labels, points.first()?.as_ref()?)));
            for (n, (of, sample)) in there.enumerate() {
                out.push_str(if n > 0 { ",{\"metric\":" } else { "{\"metric\":" });
                labels(&mut out, of);
                out.push_str(if sample.number().is_some() { ",\"value\":" } else { ",\"histogram\":" });
                point(&mut out, at, sample);
                out.push('}');
            }
            out.push(']');
        }
    }
    out.push('}');
    out
}

/// The values of a range.
pub(super) fn of_range(joined: &Joined) -> String {
    let mut out = String::from("{\"resultType\":\"matrix\",\"result\":[");
    for (n, (of, points)) in joined.series.iter().enumerate() {
        out.push_str(if n > 0 { ",{\"metric\":" } else { "{\"metric\":" });
        labels(&mut out, of);
        for (name, wants_numbers) in [(",\"values\":", true), (",\"histograms\":", false)] {
            let mut of_kind = points.iter().filter(|(_, s)| s.number().is_some() == wants_numbers).peekable();
            if of_kind.peek().is_none() {
                continue;
            }
            out.push_str(name);
            for (n, (at, sample)) in of_kind.enumerate() {
                out.push(if n > 0 { ',' } else { '[' });
                point(&mut out, *at, sample);
            }
            out.push(']');
        }
        out.push('}');
    }
    out.push_str("]}");
    out
}

/// Series with their exemplars.
pub(super) fn of_exemplars(series: &BTreeMap<Labels, Vec<Shown<'_>>>) -> String {
    let mut out = String::from("[");
    for (n, (of, exemplars)) in series.iter().enumerate() {
        out.push_str(if n > 0 { ",{\"seriesLabels\":" } else { "{\"seriesLabels\":" });
        labels(&mut out, of);
        out.push_str(",\"exemplars\":[");
        for (n, exemplar) in exemplars.iter().enumerate() {
            out.push_str(if n > 0 { ",{\"labels\":{" } else { "{\"labels\":{" });
            text(&mut out, TRACE_ID);
            out.push(':');
            text(&mut out, exemplar.trace_id);
            out.push_str("},\"value\":");
            number(&mut out, exemplar.value);
            out.push_str(",\"timestamp\":");
            instant(&mut out, exemplar.at);
            out.push('}');
        }
        out.push_str("]}");
    }
    out.push(']');
    out
}

/// A list of texts.
pub(super) fn of_texts(texts: &BTreeSet<String>) -> String {
    texts.iter().cloned().collect::<serde_json::Value>().to_string()
}

/// A list of series.
pub(super) fn of_labels<'a>(series: impl Iterator<Item = &'a Labels>) -> String {
    let mut out = String::from("[");
    for (n, of) in series.enumerate() {
        out.push_str(if n > 0 { "," } else { "" });
        labels(&mut out, of);
    }
    out.push(']');
    out
}

/// The whole answer.
pub(super) fn success(data: &str, warnings: &BTreeSet<String>) -> String {
    let mut out = String::with_capacity(data.len() + 64);
    out.push_str("{\"status\":\"success\",\"data\":");
    out.push_str(data);
    if !warnings.is_empty() {
        out.push_str(",\"warnings\":");
        out.push_str(&of_texts(warnings));
    }
    out.push('}');
    out
}
