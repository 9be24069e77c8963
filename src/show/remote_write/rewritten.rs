//! What waits is kept in 2.0; for a receiver that only knows 1.0 (`prometheus.WriteRequest`) each request is rewritten when it is sent. So it may turn out late which one a
//! receiver knows, and it may change.
//!
//! Fields of 1.0: a `WriteRequest` has `timeseries` 1, `metadata` 3; a `TimeSeries` `labels` 1, `samples` 2, `exemplars` 3, `histograms` 4; an `Exemplar` `labels` 1; a `Label` `name` 1, `value` 2; a `MetricMetadata`
//! `type` 1, `metric_family_name` 2, `help` 4, `unit` 5. A `Sample` and a `Histogram` are those of 2.0 without their last field, when they started.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::request::{Request, family_of, packed};
use crate::ingest::protobuf::{Broken, Fields, Value, take_varint};
use crate::show::exposition::Kind;
use crate::show::exposition::protobuf::{put_bytes, put_message, put_uint};

/// A request in 1.0.
#[derive(Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Packed.
    pub body: Bytes,
    /// Numbers in it.
    pub samples: u64,
    /// Native histograms in it.
    pub histograms: u64,
}

/// The kinds by their number in both messages.
fn kind_of(number: u64) -> Kind {
    match number {
        1 => Kind::Counter,
        3 => Kind::Histogram,
        5 => Kind::Summary,
        _ => Kind::Gauge,
    }
}

/// The fields of a message: number, value, and all of its bytes.
fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u32, Value<'_>, &[u8]), Broken>> {
    let mut rest = Fields(message);
    std::iter::from_fn(move || {
        let before = rest.0;
        let field = rest.next()?;
        Some(field.map(|(number, value)| (number, value, &before[..before.len() - rest.0.len()])))
    })
}

/// A message without one of its fields.
fn without(message: &[u8], number: u32) -> Result<Vec<u8>, Broken> {
    let mut out = Vec::with_capacity(message.len());
    for field in fields(message) {
        let (found, _, bytes) = field?;
        if found != number {
            out.extend_from_slice(bytes);
        }
    }
    Ok(out)
}

fn text<'a>(symbols: &[&'a [u8]], reference: u64) -> Result<&'a [u8], Broken> {
    usize::try_from(reference).ok().and_then(|at| symbols.get(at)).copied().ok_or(Broken::NoField)
}

/// Name and value.
type Label<'a> = (&'a [u8], &'a [u8]);

fn labels_of<'a>(symbols: &[&'a [u8]], mut references: &[u8]) -> Result<Vec<Label<'a>>, Broken> {
    let mut labels = Vec::new();
    while !references.is_empty() {
        labels.push((text(symbols, take_varint(&mut references)?)?, text(symbols, take_varint(&mut references)?)?));
    }
    Ok(labels)
}

fn put_labels(out: &mut Vec<u8>, labels: &[Label<'_>]) {
    for (label, value) in labels {
        put_message(out, 1, |out| {
            put_bytes(out, 1, label);
            put_bytes(out, 2, value);
        });
    }
}

/// An exemplar with its labels as texts; the rest of it is as it was.
fn exemplar(symbols: &[&[u8]], of_2_0: &[u8]) -> Result<Vec<u8>, Broken> {
    let mut out = Vec::new();
    for field in fields(of_2_0) {
        if let (1, Value::Bytes(references), _) = field? {
            put_labels(&mut out, &labels_of(symbols, references)?);
        }
    }
    out.extend(without(of_2_0, 1)?);
    Ok(out)
}

/// The same in 1.0, with native histograms or without. `None` when nothing is left.
///
/// # Errors
/// When it is not what [`super`] writes.
pub fn as_1_0(request: &Request, with_histograms: bool) -> Result<Option<Rewritten>, Broken> {
    let plain = snap::raw::Decoder::new().decompress_vec(&request.body).map_err(|_| Broken::CutOff)?;
    let (mut symbols, mut metadata) = (Vec::new(), BTreeSet::new());
    let (mut out, mut samples, mut histograms) = (Vec::with_capacity(2 * plain.len()), 0, 0);
    for field in fields(&plain) {
        match field? {
            // They all stand before the first series.
            (4, Value::Bytes(symbol), _) => symbols.push(symbol),
            (5, Value::Bytes(series), _) => {
                let of = Parts::read(series)?;
                if of.histogram.is_some() && !with_histograms {
                    continue;
                }
                let labels = labels_of(&symbols, of.labels)?;
                let name = labels.iter().find(|(label, _)| *label == b"__name__").map_or(&[][..], |(_, name)| *name);
                let exemplars = of.exemplars.iter().map(|e| exemplar(&symbols, e)).collect::<Result<Vec<_>, _>>()?;
                let (sample, histogram) = (of.sample.map(|s| without(s, 3)).transpose()?, of.histogram.map(|h| without(h, 17)).transpose()?);
                samples += u64::from(sample.is_some());
                histograms += u64::from(histogram.is_some());
                put_message(&mut out, 1, |out| {
                    put_labels(out, &labels);
                    let parts = sample.into_iter().map(|s| (2, s)).chain(exemplars.into_iter().map(|e| (3, e))).chain(histogram.into_iter().map(|h| (4, h)));
                    for (number, part) in parts {
                        put_bytes(out, number, &part);
                    }
                });
                let name = std::str::from_utf8(name).map_err(|_| Broken::NoField)?;
                metadata.insert((family_of(name, kind_of(of.kind)), of.kind, text(&symbols, of.help)?, text(&symbols, of.unit)?));
            }
            _ => return Err(Broken::NoField),
        }
    }
    for (family, kind, help, unit) in metadata {
        put_message(&mut out, 3, |out| {
            put_uint(out, 1, kind);
            put_bytes(out, 2, family.as_bytes());
            put_bytes(out, 4, help);
            put_bytes(out, 5, unit);
        });
    }
    Ok((samples + histograms > 0).then(|| Rewritten { body: packed(&out), samples, histograms }))
}

/// The parts of a `TimeSeries`.
#[derive(Default)]
struct Parts<'a> {
    labels: &'a [u8],
    sample: Option<&'a [u8]>,
    histogram: Option<&'a [u8]>,
    exemplars: Vec<&'a [u8]>,
    kind: u64,
    help: u64,
    unit: u64,
}

impl<'a> Parts<'a> {
    fn read(series: &'a [u8]) -> Result<Self, Broken> {
        let mut parts = Self::default();
        for field in fields(series) {
            match field? {
                (1, Value::Bytes(labels), _) => parts.labels = labels,
                (2, Value::Bytes(sample), _) => parts.sample = Some(sample),
                (3, Value::Bytes(histogram), _) => parts.histogram = Some(histogram),
                (4, Value::Bytes(exemplar), _) => parts.exemplars.push(exemplar),
                (5, Value::Bytes(metadata), _) => {
                    for field in fields(metadata) {
                        match field? {
                            (1, Value::Varint(kind), _) => parts.kind = kind,
                            (3, Value::Varint(help), _) => parts.help = help,
                            (4, Value::Varint(unit), _) => parts.unit = unit,
                            _ => return Err(Broken::NoField),
                        }
                    }
                }
                _ => return Err(Broken::NoField),
            }
        }
        Ok(parts)
    }
}
