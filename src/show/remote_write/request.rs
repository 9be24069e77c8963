//! A request of remote-write 2.0 (`io.prometheus.write.v2.Request`, as of 2.0-rc.4), by hand as the other messages are: each series is written once, each text is there once.
//!
//! Fields: a `Request` has `symbols` 4, `timeseries` 5; a `TimeSeries` `labels_refs` 1, `samples` 2, `histograms` 3, `exemplars` 4, `metadata` 5; a `Sample` `value` 1, `timestamp` 2,
//! `start_timestamp` 3; a `Histogram` `count_int` 1, `sum` 3, `timestamp` 15, `start_timestamp` 17, and what makes it native as `SENT` of the exposition has it; a `Metadata`
//! `type` 1, `help_ref` 3, `unit_ref` 4; an `Exemplar` `labels_refs` 1, `value` 2, `timestamp` 3.

use std::collections::HashMap;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::histogram::codec::put_varint;
use crate::show::exposition::Kind;
use crate::show::exposition::exemplar::{Shown, TRACE_ID};
use crate::show::exposition::protobuf::{put_bytes, put_double, put_message, put_uint};
use crate::show::exposition::series::Value;
use crate::time::Timestamp;

/// The value of a series that is no more, by the specification.
pub(super) const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Series in one request: what Prometheus sends itself, and receivers take by default.
pub(super) const SERIES_MAX: usize = 2_000;

/// Bytes of one request before it is packed, as 1.0 would have it, which repeats every text; one more series may go beyond.
const PLAIN_BYTES_MAX: usize = 1 << 20;

/// What 1.0 needs for a series beside its texts, and for a label.
const SERIES_BYTES: usize = 24;
const LABEL_BYTES: usize = 8;

/// What 1.0 needs for an exemplar beside its trace.
const EXEMPLAR_BYTES: usize = 40;

/// A request that waits to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Packed, in 2.0.
    pub body: Bytes,
    /// When what is in it was taken.
    pub taken: Timestamp,
    /// Numbers in it.
    pub samples: u64,
    /// Native histograms in it.
    pub histograms: u64,
}

/// One series as it is sent.
pub(super) struct Sent<'a> {
    /// Sorted, the name among them, none empty, none twice.
    pub(super) labels: &'a [(&'a str, &'a str)],
    pub(super) value: Value<'a>,
    pub(super) kind: Kind,
    pub(super) help: &'a str,
    /// When it began to count, where that is known.
    pub(super) start: Option<Timestamp>,
    pub(super) exemplars: &'a [Shown<'a>],
}

/// A request that is written.
#[derive(Debug, Default)]
pub(super) struct Builder {
    references: HashMap<String, u32, foldhash::fast::RandomState>,
    symbols: Vec<u8>,
    series: Vec<u8>,
    label_references: Vec<u8>,
    plain_bytes: usize,
    samples: u64,
    histograms: u64,
}

impl Builder {
    pub(super) fn is_full(&self) -> bool {
        self.samples + self.histograms >= SERIES_MAX as u64 || self.plain_bytes >= PLAIN_BYTES_MAX
    }

    fn reference(&mut self, text: &str) -> u32 {
        if let Some(known) = self.references.get(text) {
            return *known;
        }
        let next = u32::try_from(self.references.len()).expect("a request has a few thousand texts");
        put_bytes(&mut self.symbols, 4, text.as_bytes());
        self.references.insert(text.to_owned(), next);
        next
    }

    pub(super) fn add(&mut self, sent: &Sent<'_>, at: Timestamp) {
        if self.references.is_empty() {
            // Receivers rely on the first being empty.
            self.reference("");
        }
        let mut labels = std::mem::take(&mut self.label_references);
        labels.clear();
        for (name, value) in sent.labels {
            for text in [name, value] {
                put_varint(&mut labels, u64::from(self.reference(text)));
            }
            self.plain_bytes += name.len() + value.len() + LABEL_BYTES;
        }
        let help = self.reference(sent.help);
        let unit = self.reference(unit_of(sent.labels, sent.kind));
        let traces: SmallVec<[[u64; 2]; 4]> = sent.exemplars.iter().map(|e| [TRACE_ID, e.trace_id].map(|text| u64::from(self.reference(text)))).collect();
        self.plain_bytes += sent.exemplars.iter().map(|e| EXEMPLAR_BYTES + e.trace_id.len()).sum::<usize>();
        let start_ms = sent.start.map(|s| s.0.cast_unsigned());
        let before = self.series.len();
        put_message(&mut self.series, 5, |out| {
            put_bytes(out, 1, &labels);
            match sent.value {
                Value::Number(value) => put_message(out, 2, |out| {
                    put_double(out, 1, value);
                    put_uint(out, 2, at.0.cast_unsigned());
                    if let Some(start) = start_ms {
                        put_uint(out, 3, start);
                    }
                }),
                Value::Native { count, sum_seconds, fields } => put_message(out, 3, |out| {
                    put_uint(out, 1, count);
                    put_double(out, 3, sum_seconds);
                    out.extend_from_slice(fields);
                    put_uint(out, 15, at.0.cast_unsigned());
                    if let Some(start) = start_ms {
                        put_uint(out, 17, start);
                    }
                }),
            }
            for (exemplar, trace) in sent.exemplars.iter().zip(&traces) {
                put_message(out, 4, |out| {
                    put_message(out, 1, |out| trace.iter().for_each(|reference| put_varint(out, *reference)));
                    put_double(out, 2, exemplar.value);
                    put_uint(out, 3, exemplar.at.0.cast_unsigned());
                });
            }
            put_message(out, 5, |out| {
                put_uint(out, 1, type_of(sent.kind));
                put_uint(out, 3, u64::from(help));
                put_uint(out, 4, u64::from(unit));
            });
        });
        match sent.value {
            Value::Number(_) => self.samples += 1,
            Value::Native { .. } => {
                self.histograms += 1;
                self.plain_bytes += self.series.len() - before;
            }
        }
        self.plain_bytes += SERIES_BYTES;
        self.label_references = labels;
    }

    /// The request, and room for another; `None` when nothing is in it.
    pub(super) fn finish(&mut self, taken: Timestamp) -> Option<Request> {
        let written = std::mem::take(self);
        let (samples, histograms) = (written.samples, written.histograms);
        let plain = [written.symbols, written.series].concat();
        (samples + histograms > 0).then(|| Request { body: packed(&plain), taken, samples, histograms })
    }
}

/// In the block format of snappy.
pub(super) fn packed(plain: &[u8]) -> Bytes {
    snap::raw::Encoder::new().compress_vec(plain).expect("a request is far below 4 GiB").into()
}

fn type_of(kind: Kind) -> u64 {
    match kind {
        Kind::Counter => 1,
        // Prometheus' text and protobuf know no info, so that a scrape would have it as a gauge.
        Kind::Gauge | Kind::Info => 2,
        Kind::Histogram => 3,
        Kind::Summary => 5,
    }
}

/// What the name says last, before what its kind puts behind it.
fn unit_of<'a>(labels: &[(&str, &'a str)], kind: Kind) -> &'static str {
    let name: &'a str = labels.iter().find(|(label, _)| *label == "__name__").map_or("", |(_, name)| name);
    let family = family_of(name, kind);
    let family = family.strip_suffix("_total").unwrap_or(family);
    ["seconds", "bytes", "ratio"].into_iter().find(|unit| family.rsplit('_').next() == Some(unit)).unwrap_or("")
}

/// The family of a series.
pub(super) fn family_of(name: &str, kind: Kind) -> &str {
    let endings: &[&str] = match kind {
        Kind::Histogram => &["_bucket", "_sum", "_count"],
        Kind::Summary => &["_sum", "_count"],
        Kind::Counter | Kind::Gauge | Kind::Info => &[],
    };
    endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::super::rewritten::as_1_0;
    use super::*;

    fn add(builder: &mut Builder, route: &str, value: Value<'_>) {
        let labels = [("__name__", "slowburn_request_duration_seconds_sum"), ("route", route)];
        builder.add(&Sent { labels: &labels, value, kind: Kind::Histogram, help: "h", start: Some(Timestamp(7)), exemplars: &[] }, Timestamp(9));
    }

    #[test]
    fn a_request_is_full_by_series_and_by_the_bytes_that_1_0_would_need() {
        let mut builder = Builder::default();
        assert_eq!(builder.finish(Timestamp(0)), None);
        let mut series = 0;
        while !builder.is_full() {
            add(&mut builder, "/a", Value::Number(1.0));
            series += 1;
        }
        assert_eq!((series, builder.finish(Timestamp(3)).map(|r| (r.samples, r.taken))), (SERIES_MAX, Some((2_000, Timestamp(3)))));
        assert!(!builder.is_full() && builder.symbols.is_empty());
        let long = "x".repeat(100_000);
        (0..10).for_each(|_| add(&mut builder, &long, Value::Number(1.0)));
        assert!(!builder.is_full(), "in 2.0 it is there once, in 1.0 ten times");
        add(&mut builder, &long, Value::Number(1.0));
        assert!(builder.is_full());
        let (two, one) = (builder.finish(Timestamp(3)).unwrap(), |r: &Request| as_1_0(r, true).unwrap().unwrap());
        let bytes = |body: &[u8]| snap::raw::decompress_len(body).unwrap();
        assert!(bytes(&two.body) < 110_000 && (1_050_000..1_110_000).contains(&bytes(&one(&two).body)));
    }

    #[test]
    fn in_1_0_native_histograms_are_there_only_where_they_are_wanted() {
        let mut builder = Builder::default();
        add(&mut builder, "/a", Value::Native { count: 0, sum_seconds: 0.0, fields: &[] });
        let native = builder.finish(Timestamp(0)).unwrap();
        assert_eq!((native.samples, native.histograms), (0, 1));
        assert_eq!(as_1_0(&native, false), Ok(None));
        assert_eq!(as_1_0(&native, true).unwrap().map(|r| (r.samples, r.histograms)), Some((0, 1)));
        let torn = Request { body: packed(&[0x2a, 0x7f]), ..native };
        assert!(as_1_0(&torn, true).is_err());
    }

    #[test]
    fn families_and_units_are_read_off_the_name() {
        for (name, kind, family, unit) in [
            ("slowburn_request_duration_seconds_bucket", Kind::Histogram, "slowburn_request_duration_seconds", "seconds"),
            ("slowburn_request_duration_seconds", Kind::Histogram, "slowburn_request_duration_seconds", "seconds"),
            ("slowburn_endpoint_latency_seconds_sum", Kind::Summary, "slowburn_endpoint_latency_seconds", "seconds"),
            ("slowburn_requests_total", Kind::Counter, "slowburn_requests_total", ""),
            ("slowburn_disk_free_bytes", Kind::Gauge, "slowburn_disk_free_bytes", "bytes"),
            ("slowburn_slo_objective_ratio", Kind::Gauge, "slowburn_slo_objective_ratio", "ratio"),
        ] {
            assert_eq!((family_of(name, kind), unit_of(&[("__name__", name)], kind)), (family, unit));
        }
    }
}
