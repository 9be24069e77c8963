//! The two text formats: 0.0.4, and `OpenMetrics` 1.0.0, which names counters without their ending and says units.
//!
//! Bounds are written alike in both, as `OpenMetrics` has them and as Prometheus makes them of protobuf (`1.0`, not `1`): a change of the format begins no new series.

use prometheus::proto::LabelPair;
use prometheus::{Encoder as _, TextEncoder};

use super::exemplar::{Shown, TRACE_ID, of_bucket, of_outcome};
use super::format::Format;
use super::{Exported, Family, Head, Kind, OfEndpoints, value_of};
use crate::counting::Outcome;
use crate::endpoint::EndpointKey;
use crate::history::exemplars::Exemplar;

/// What a page of `OpenMetrics` ends with.
pub(super) const END: &[u8] = b"# EOF\n";

pub(super) fn put_head(out: &mut Vec<u8>, format: Format, head: Head<'_>) {
    let Head { name, help, kind } = head;
    let is_open = format == Format::OpenMetrics;
    let ending = match kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram | Kind::Summary => "",
    };
    let name = name.strip_suffix(ending).filter(|_| is_open).unwrap_or(name);
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Info if is_open => "info",
        Kind::Info | Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
        Kind::Summary => "summary",
    };
    let mut line = |what: &str, text: &str| {
        for part in ["# ", what, " ", name, " ", text, "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    };
    line("HELP", help);
    line("TYPE", kind);
    if let Some(unit) = ["seconds", "bytes", "ratio"].into_iter().find(|unit| is_open && name.rsplit('_').next() == Some(unit)) {
        line("UNIT", unit);
    }
}

pub(super) fn put_family(out: &mut Vec<u8>, format: Format, family: &Family) {
    let head = Head::from(family);
    if format == Format::Text && !family.0.get_metric().is_empty() {
        TextEncoder::new().encode(std::slice::from_ref(&family.0), out).expect("its names are ours, it has samples, and memory takes all");
        return;
    }
    put_head(out, format, head);
    for metric in family.0.get_metric() {
        out.extend_from_slice(head.name.as_bytes());
        put_label_list(out, metric.get_label());
        out.push(b' ');
        put_float(out, value_of(family, metric));
        out.push(b'\n');
    }
}

fn put_label_list(out: &mut Vec<u8>, labels: &[LabelPair]) {
    for (n, pair) in labels.iter().enumerate() {
        out.push(if n == 0 { b'{' } else { b',' });
        out.extend_from_slice(pair.name().as_bytes());
        out.extend_from_slice(b"=\"");
        put_escaped(out, pair.value());
        out.push(b'"');
    }
    if !labels.is_empty() {
        out.push(b'}');
    }
}

/// Appends the samples of an endpoint; `labels` is room.
pub(super) fn put_samples(out: &mut Vec<u8>, labels: &mut Vec<u8>, format: Format, family: OfEndpoints, endpoint: &Exported) {
    put_labels(labels, &endpoint.key);
    let exemplars: &[Exemplar] = if format == Format::OpenMetrics { &endpoint.exemplars } else { &[] };
    let mut sample_with = |name: &str, label: &str, value: &[u8], exemplar: Option<Shown<'_>>, number: &dyn Fn(&mut Vec<u8>)| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(labels);
        out.extend_from_slice(label.as_bytes());
        out.extend_from_slice(value);
        out.extend_from_slice(if label.is_empty() { b"} " } else { b"\"} " });
        number(out);
        if let Some(exemplar) = exemplar {
            put_exemplar(out, exemplar);
        }
        out.push(b'\n');
    };
    let Exported { total, detail, .. } = endpoint;
    let count = endpoint.requests();
    match family {
        OfEndpoints::Requests => {
            for outcome in Outcome::ALL {
                let exemplar = of_outcome(exemplars, outcome);
                let name = outcome.name().as_bytes();
                sample_with("slowburn_requests_total", ",outcome=\"", name, exemplar, &|out| put_number(out, total.outcomes[outcome as usize]));
            }
        }
        OfEndpoints::Durations => {
            let (mut bound, mut above) = (Vec::new(), None);
            for &(us, within) in detail.iter().flat_map(|d| &d.bounds) {
                bound.clear();
                put_bound(&mut bound, us);
                let exemplar = of_bucket(exemplars, above, Some(us));
                sample_with("slowburn_request_duration_seconds_bucket", ",le=\"", &bound, exemplar, &|out| put_number(out, within));
                above = Some(us);
            }
            let exemplar = of_bucket(exemplars, above, None);
            sample_with("slowburn_request_duration_seconds_bucket", ",le=\"", b"+Inf", exemplar, &|out| put_number(out, count));
            let mut sample = |name, number: &dyn Fn(&mut Vec<u8>)| sample_with(name, "", b"", None, number);
            sample("slowburn_request_duration_seconds_sum", &|out| put_seconds(out, total.sum_us));
            sample("slowburn_request_duration_seconds_count", &|out| put_number(out, count));
        }
        OfEndpoints::Latency => {
            let mut sample = |name, label, value, number: &dyn Fn(&mut Vec<u8>)| sample_with(name, label, value, None, number);
            for &(quantile, us) in detail.iter().flat_map(|d| &d.quantiles) {
                sample("slowburn_endpoint_latency_seconds", ",window=\"1m\",quantile=\"", quantile.as_bytes(), &|out| put_seconds(out, us));
            }
            sample("slowburn_endpoint_latency_seconds_sum", ",window=\"", b"1m", &|out| put_seconds(out, total.sum_us));
            sample("slowburn_endpoint_latency_seconds_count", ",window=\"", b"1m", &|out| put_number(out, count));
        }
    }
}

/// ` # {trace_id="…"} 0.25 1766534400.123`
fn put_exemplar(out: &mut Vec<u8>, exemplar: Shown<'_>) {
    for part in [" # {", TRACE_ID, "=\""] {
        out.extend_from_slice(part.as_bytes());
    }
    put_escaped(out, exemplar.trace_id);
    out.extend_from_slice(b"\"} ");
    put_float(out, exemplar.value);
    out.push(b' ');
    put_seconds(out, exemplar.at.0.unsigned_abs() * 1_000);
}

/// `{service="…",env="…",…` without the end.
fn put_labels(out: &mut Vec<u8>, key: &EndpointKey) {
    out.clear();
    let parts = [("{service=\"", &key.service), ("\",env=\"", &key.env), ("\",kind=\"", &key.kind), ("\",method=\"", &key.method), ("\",route=\"", &key.route)];
    for (name, value) in parts {
        out.extend_from_slice(name.as_bytes());
        put_escaped(out, value);
    }
    out.push(b'"');
}

/// A label's value: backslash, quote and line feed are escaped.
fn put_escaped(out: &mut Vec<u8>, value: &str) {
    let mut rest = value.as_bytes();
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\\' | b'"' | b'\n')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => b"\\\\",
            b'"' => b"\\\"",
            _ => b"\\n",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

fn put_float(out: &mut Vec<u8>, value: f64) {
    let text = match value {
        v if v.is_nan() => "NaN".to_owned(),
        v if v.is_infinite() => if v > 0.0 { "+Inf" } else { "-Inf" }.to_owned(),
        v => v.to_string(),
    };
    out.extend_from_slice(text.as_bytes());
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    let (mut digits, mut at, mut rest) = ([0_u8; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10).to_le_bytes()[0];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Microseconds as seconds: exact, as short as can be.
fn put_seconds(out: &mut Vec<u8>, us: u64) {
    put_number(out, us / 1_000_000);
    let mut fraction = us % 1_000_000;
    if fraction > 0 {
        out.push(b'.');
        let mut unit = 100_000;
        while fraction > 0 {
            out.push(b'0' + (fraction / unit).to_le_bytes()[0]);
            fraction %= unit;
            unit /= 10;
        }
    }
}

/// Microseconds as the value of `le`.
pub(super) fn bound(us: u64) -> String {
    let mut out = Vec::new();
    put_bound(&mut out, us);
    String::from_utf8(out).expect("digits")
}

/// Microseconds as the value of `le`: seconds that look like a floating-point number, below 100 µs with an exponent.
pub(super) fn put_bound(out: &mut Vec<u8>, us: u64) {
    match us {
        1..10 => {
            put_number(out, us);
            out.extend_from_slice(b"e-06");
        }
        10..100 => {
            put_number(out, us / 10);
            if !us.is_multiple_of(10) {
                out.push(b'.');
                put_number(out, us % 10);
            }
            out.extend_from_slice(b"e-05");
        }
        _ => {
            put_seconds(out, us);
            if us.is_multiple_of(1_000_000) {
                out.extend_from_slice(b".0");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_labels_are_written_as_they_are_read() {
        let shown = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            put(&mut out);
            String::from_utf8(out).unwrap()
        };
        for n in [0, 1, 9, 10, 99, 100, 123_456_789, u64::MAX] {
            assert_eq!(shown(&|out| put_number(out, n)), n.to_string());
        }
        for (us, text) in [(0, "0"), (1, "0.000001"), (1_500_000, "1.5"), (20_000_000, "20"), (100_010, "0.10001"), (999_999, "0.999999")] {
            assert_eq!(shown(&|out| put_seconds(out, us)), text);
        }
        // As Go writes them with %g, and a point where it would look whole.
        for (us, text) in [
            (0, "0.0"),
            (1, "1e-06"),
            (25, "2.5e-05"),
            (30, "3e-05"),
            (100, "0.0001"),
            (800_000, "0.8"),
            (1_000_000, "1.0"),
            (10_000_000, "10.0"),
            (604_800_000_000, "604800.0"),
        ] {
            assert_eq!(shown(&|out| put_bound(out, us)), text);
        }
        for (value, text) in [(1.0, "1"), (0.125, "0.125"), (f64::INFINITY, "+Inf"), (f64::NEG_INFINITY, "-Inf"), (f64::NAN, "NaN"), (-2.5, "-2.5")] {
            assert_eq!(shown(&|out| put_float(out, value)), text);
        }
        assert_eq!(shown(&|out| put_escaped(out, "a\"b\\c\nü\"")), "a\\\"b\\\\c\\nü\\\"");
    }

    #[test]
    fn a_head_names_and_types_as_its_format_does() {
        let shown = |format, name, kind| {
            let mut out = Vec::new();
            put_head(&mut out, format, Head { name, help: "H.", kind });
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(Format::Text, "a_total", Kind::Counter), "# HELP a_total H.\n# TYPE a_total counter\n");
        assert_eq!(shown(Format::OpenMetrics, "a_total", Kind::Counter), "# HELP a H.\n# TYPE a counter\n");
        assert_eq!(shown(Format::Text, "a_info", Kind::Info), "# HELP a_info H.\n# TYPE a_info gauge\n");
        assert_eq!(shown(Format::OpenMetrics, "a_info", Kind::Info), "# HELP a H.\n# TYPE a info\n");
        assert_eq!(shown(Format::OpenMetrics, "a_seconds", Kind::Histogram), "# HELP a_seconds H.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n");
        assert_eq!(shown(Format::OpenMetrics, "a_ratio_per_day", Kind::Gauge), "# HELP a_ratio_per_day H.\n# TYPE a_ratio_per_day gauge\n");
    }
}
