//! Messages of `io.prometheus.client` (`metrics.proto` of Prometheus' client model), by hand: a few fields that do not change, and no sample is an object first.
//!
//! Fields: a `MetricFamily` has name 1, help 2, type 3, metric 4; a `Metric` label 1, gauge 2, counter 3, summary 4, histogram 7; numbers beside are those of their messages.
//! Exemplars stand at the classic buckets, where Prometheus before 2.50 looks for those of native histograms too, and at native histograms, where later ones look.
//! A native histogram carries its classic buckets too, for who scrapes both or only those.

use super::exemplar::{Shown, TRACE_ID, of_bucket, of_outcome, shown};
use super::{Exported, Family, Head, Kind, NativePart, OfEndpoints, value_of};
use crate::counting::Outcome;
use crate::endpoint::EndpointKey;
use crate::histogram::codec::put_varint;
use crate::histogram::native::{Native, SCHEMA, ZERO_THRESHOLD_SECONDS};

const METRIC: u32 = 4;
const LABEL: u32 = 1;

/// A gap of so many empty buckets is written as such; a shorter one as counts, which is no longer.
const GAP_MIN: i32 = 3;

pub(in crate::show) fn put_uint(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field << 3));
    put_varint(out, value);
}

pub(in crate::show) fn put_double(out: &mut Vec<u8>, field: u32, value: f64) {
    put_varint(out, u64::from(field << 3 | 1));
    out.extend_from_slice(&value.to_le_bytes());
}

pub(in crate::show) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field << 3 | 2));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A message inside another: its length is put before it when it is known.
pub(in crate::show) fn put_message(out: &mut Vec<u8>, field: u32, put: impl FnOnce(&mut Vec<u8>)) {
    put_varint(out, u64::from(field << 3 | 2));
    let start = out.len();
    put(out);
    let end = out.len();
    put_varint(out, (end - start) as u64);
    let prefix = out.len() - end;
    out[start..].rotate_right(prefix);
}

pub(in crate::show) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

fn put_label(out: &mut Vec<u8>, name: &str, value: &str) {
    put_message(out, LABEL, |out| {
        put_bytes(out, 1, name.as_bytes());
        put_bytes(out, 2, value.as_bytes());
    });
}

fn put_family_fields(out: &mut Vec<u8>, head: Head<'_>) {
    put_bytes(out, 1, head.name.as_bytes());
    put_bytes(out, 2, head.help.as_bytes());
    let kind = match head.kind {
        Kind::Counter => 0,
        Kind::Gauge | Kind::Info => 1,
        Kind::Summary => 2,
        Kind::Histogram => 4,
    };
    put_uint(out, 3, kind);
}

/// The length of a family whose samples have so many bytes, and what stands before them.
pub(super) fn put_head(out: &mut Vec<u8>, head: Head<'_>, sample_bytes: u64) {
    let mut fields = Vec::new();
    put_family_fields(&mut fields, head);
    put_varint(out, fields.len() as u64 + sample_bytes);
    out.extend_from_slice(&fields);
}

pub(super) fn put_family(out: &mut Vec<u8>, family: &Family) {
    let (mut samples, head) = (Vec::new(), Head::from(family));
    for metric in family.0.get_metric() {
        put_message(&mut samples, METRIC, |out| {
            for pair in metric.get_label() {
                put_label(out, pair.name(), pair.value());
            }
            let field = if head.kind == Kind::Counter { 3 } else { 2 };
            put_message(out, field, |out| put_double(out, 1, value_of(family, metric)));
        });
    }
    put_head(out, head, samples.len() as u64);
    out.extend_from_slice(&samples);
}

/// Appends the samples of an endpoint; `labels` is room.
pub(super) fn put_samples(out: &mut Vec<u8>, labels: &mut Vec<u8>, family: OfEndpoints, endpoint: &Exported) {
    put_labels(labels, &endpoint.key);
    let Exported { total, detail, .. } = endpoint;
    let count = endpoint.requests();
    match family {
        OfEndpoints::Requests => {
            for outcome in Outcome::ALL {
                put_message(out, METRIC, |out| {
                    out.extend_from_slice(labels);
                    put_label(out, "outcome", outcome.name());
                    put_message(out, 3, |out| {
                        put_double(out, 1, float(total.outcomes[outcome as usize]));
                        put_exemplar(out, 2, of_outcome(&endpoint.exemplars, outcome));
                    });
                });
            }
        }
        OfEndpoints::Durations => put_message(out, METRIC, |out| {
            out.extend_from_slice(labels);
            put_message(out, 7, |out| {
                let native = detail.as_ref().and_then(|d| d.native.as_ref());
                let (count, sum_us) = native.map_or((count, total.sum_us), |n| (n.count, n.sum_us));
                put_uint(out, 1, count);
                put_double(out, 2, seconds(sum_us));
                let mut above = None;
                for &(us, within) in detail.iter().flat_map(|d| &d.bounds) {
                    put_message(out, 3, |out| {
                        put_uint(out, 1, within);
                        put_double(out, 2, seconds(us));
                        put_exemplar(out, 3, of_bucket(&endpoint.exemplars, above, Some(us)));
                    });
                    above = Some(us);
                }
                // The last bucket goes without saying, but for its exemplar.
                if let Some(exemplar) = of_bucket(&endpoint.exemplars, above, None) {
                    put_message(out, 3, |out| {
                        put_uint(out, 1, count);
                        put_double(out, 2, f64::INFINITY);
                        put_exemplar(out, 3, Some(exemplar));
                    });
                }
                if let Some(NativePart { fields, .. }) = native {
                    out.extend_from_slice(fields);
                    endpoint.exemplars.iter().for_each(|e| put_exemplar(out, 16, Some(shown(e))));
                }
            });
        }),
        OfEndpoints::Latency => put_message(out, METRIC, |out| {
            out.extend_from_slice(labels);
            put_label(out, "window", "1m");
            put_message(out, 4, |out| {
                put_uint(out, 1, count);
                put_double(out, 2, seconds(total.sum_us));
                for (quantile, us) in detail.iter().flat_map(|d| &d.quantiles) {
                    put_message(out, 3, |out| {
                        put_double(out, 1, quantile.parse().unwrap_or(f64::NAN));
                        put_double(out, 2, seconds(*us));
                    });
                }
            });
        }),
    }
}

/// Its fields: label 1, value 2, timestamp 3 (seconds 1, nanoseconds 2).
fn put_exemplar(out: &mut Vec<u8>, field: u32, exemplar: Option<Shown<'_>>) {
    let Some(exemplar) = exemplar else { return };
    let ms = exemplar.at.0.unsigned_abs();
    put_message(out, field, |out| {
        put_label(out, TRACE_ID, exemplar.trace_id);
        put_double(out, 2, exemplar.value);
        put_message(out, 3, |out| {
            put_uint(out, 1, ms / 1_000);
            put_uint(out, 2, ms % 1_000 * 1_000_000);
        });
    });
}

fn put_labels(out: &mut Vec<u8>, key: &EndpointKey) {
    out.clear();
    for (name, value) in [("service", &key.service), ("env", &key.env), ("kind", &key.kind), ("method", &key.method), ("route", &key.route)] {
        put_label(out, name, value);
    }
}

/// The numbers of the fields that make a `Histogram` a native one: two messages have them, alike but for these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::show) struct NativeFields {
    schema: u32,
    zero_threshold: u32,
    zero_count: u32,
    positive_span: u32,
    positive_delta: u32,
}

/// Of `io.prometheus.client`, which is scraped.
pub(in crate::show) const SCRAPED: NativeFields = NativeFields { schema: 5, zero_threshold: 6, zero_count: 7, positive_span: 12, positive_delta: 13 };

/// Of `prometheus` and `io.prometheus.write.v2`, which are sent.
pub(in crate::show) const SENT: NativeFields = NativeFields { schema: 4, zero_threshold: 5, zero_count: 6, positive_span: 11, positive_delta: 12 };

/// The fields of a `Histogram` that make it a native one. The threshold is above 0 also without a value, which is how an empty one is known for native.
pub(super) fn native_fields(native: &Native, fields: NativeFields) -> Box<[u8]> {
    let mut out = Vec::new();
    put_uint(&mut out, fields.schema, zigzag(i64::from(SCHEMA)));
    put_double(&mut out, fields.zero_threshold, ZERO_THRESHOLD_SECONDS);
    put_uint(&mut out, fields.zero_count, native.zero_count);
    // Runs of buckets, each by its distance from the one before; a count by its difference to the one before.
    let mut spans: Vec<(i32, u32)> = Vec::new();
    let (mut deltas, mut before, mut end) = (Vec::new(), 0_u64, 0_i32);
    let mut put_count = |count: u64| {
        put_varint(&mut deltas, zigzag(count.wrapping_sub(before).cast_signed()));
        before = count;
    };
    for &(index, count) in &native.buckets {
        let gap = index - end;
        match spans.last_mut().filter(|_| gap < GAP_MIN) {
            Some((_, length)) => {
                for _ in 0..gap {
                    put_count(0);
                }
                *length += gap.unsigned_abs() + 1;
            }
            None => spans.push((gap, 1)),
        }
        put_count(count);
        end = index + 1;
    }
    for (offset, length) in spans {
        put_message(&mut out, fields.positive_span, |out| {
            put_uint(out, 1, zigzag(i64::from(offset)));
            put_uint(out, 2, u64::from(length));
        });
    }
    put_bytes(&mut out, fields.positive_delta, &deltas);
    out.into()
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
fn float(n: u64) -> f64 {
    n as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}
