//! Timings as JSON (an array, or one object) and NDJSON. Text is borrowed from the body, which is read in one pass: most lines at sight ([`ordinary`]), others by `serde_json`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;

use super::admission::Admission;
use super::ordinary::{self, Reader};

/// A text that borrows where it has no escapes.
#[derive(Debug, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A time: Unix milliseconds, or RFC 3339.
#[derive(Debug, PartialEq, Eq)]
pub enum Ts<'a> {
    /// Unix milliseconds.
    Ms(i64),
    /// To be read as RFC 3339.
    Text(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Ts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TsVisitor;
        impl<'de> Visitor<'de> for TsVisitor {
            type Value = Ts<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("Unix milliseconds or an RFC 3339 time")
            }
            fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
                Ok(Ts::Ms(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
                Ok(Ts::Ms(i64::try_from(v).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Self::Value, E> {
                #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and the range is checked behind")]
                Ok(Ts::Ms(v.floor() as i64))
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Ts::Text(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Ts::Text(Cow::Owned(v.to_owned())))
            }
        }
        deserializer.deserialize_any(TsVisitor)
    }
}

/// One line or array element as sent, unchecked. Fields that it does not know are passed over.
#[derive(Debug, serde::Deserialize)]
#[serde(expecting = "an object")]
#[allow(missing_docs, reason = "the fields are those of the contract, and admission checks them")]
pub struct Line<'a> {
    #[serde(borrow)]
    pub service: Option<Text<'a>>,
    #[serde(borrow)]
    pub env: Option<Text<'a>>,
    #[serde(borrow)]
    pub kind: Option<Text<'a>>,
    #[serde(borrow)]
    pub method: Option<Text<'a>>,
    #[serde(borrow)]
    pub route: Option<Text<'a>>,
    #[serde(borrow)]
    pub path: Option<Text<'a>>,
    #[serde(borrow)]
    pub ts: Option<Ts<'a>>,
    pub status: Option<u64>,
    #[serde(borrow)]
    pub outcome: Option<Text<'a>>,
    pub duration_ms: Option<f64>,
    pub duration_s: Option<f64>,
    pub duration_us: Option<f64>,
    pub values_us: Option<Vec<(f64, u64)>>,
    #[serde(borrow)]
    pub hdr: Option<Text<'a>>,
    pub weight: Option<u64>,
    pub critical: Option<bool>,
    #[serde(borrow)]
    pub trace_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub actor: Option<Text<'a>>,
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
    #[serde(borrow)]
    pub stage: Option<Text<'a>>,
    #[serde(borrow)]
    pub in_flight: Option<Vec<Running<'a>>>,
}

/// One entry of `in_flight`.
#[derive(Debug, serde::Deserialize)]
#[serde(expecting = "an object")]
#[allow(missing_docs, reason = "the fields are those of the contract, and admission checks them")]
pub struct Running<'a> {
    #[serde(borrow)]
    pub service: Option<Text<'a>>,
    #[serde(borrow)]
    pub env: Option<Text<'a>>,
    #[serde(borrow)]
    pub method: Option<Text<'a>>,
    #[serde(borrow)]
    pub route: Option<Text<'a>>,
    pub age_ms: Option<u64>,
    pub n: Option<u64>,
}

/// Reads one line of NDJSON.
///
/// # Errors
/// What is wrong with it, and at which column.
pub fn read_line(line: &str) -> Result<Line<'_>, String> {
    // A struct can also be read from an array, by position: a line must not be.
    if line.trim_start().starts_with('[') {
        return Err("invalid type: an array, expected an object".to_owned());
    }
    serde_json::from_str(line).map_err(|e| e.to_string())
}

/// Reads NDJSON; a line that cannot be read is refused alone. Empty lines are passed over.
pub fn read_ndjson(body: &[u8], admission: &mut Admission<'_>) {
    let (mut start, mut reader) = (0, Reader::default());
    for (at, end) in memchr::memchr_iter(b'\n', body).chain([body.len()]).enumerate() {
        match std::str::from_utf8(&body[start..end]) {
            Ok(text) => read_one(at, text, &mut reader, admission),
            Err(e) => admission.line(at, Err(format!("not UTF-8 at byte {}", e.valid_up_to()))),
        }
        start = end + 1;
    }
}

/// One line of NDJSON.
fn read_one(at: usize, text: &str, reader: &mut Reader, admission: &mut Admission<'_>) {
    let mut read_to = 0;
    ordinary::skip_space(text.as_bytes(), &mut read_to);
    if read_to == text.len() {
        return;
    }
    let line = reader.read(text, &mut read_to);
    ordinary::skip_space(text.as_bytes(), &mut read_to);
    match line {
        Some(line) if read_to == text.len() => admission.ordinary(at, &line),
        _ => admission.line(at, read_line(text)),
    }
}

/// Reads an array, or one object.
///
/// # Errors
/// When it is broken anywhere; nothing of it may be applied then, though the batch has some of it.
pub fn read_array(body: &[u8], admission: &mut Admission<'_>) -> Result<(), String> {
    let text = std::str::from_utf8(body).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to()))?;
    if !text.trim_start().starts_with('[') {
        let one: &RawValue = serde_json::from_str(text).map_err(|e| e.to_string())?;
        admission.line(0, read_line(one.get()));
        return Ok(());
    }
    match read_elements(text, admission) {
        Some(()) => Ok(()),
        // Broken: the general parser says where.
        None => Err(serde_json::from_str::<Vec<&RawValue>>(text).err().map_or_else(|| "not an array".to_owned(), |e| e.to_string())),
    }
}

/// The elements of an array, each at sight or by the general parser; `None` when the array is broken.
fn read_elements(text: &str, admission: &mut Admission<'_>) -> Option<()> {
    let (bytes, mut at, mut reader) = (text.as_bytes(), 0, Reader::default());
    let next = |at: &mut usize| {
        ordinary::skip_space(bytes, at);
        bytes.get(*at).copied()
    };
    next(&mut at).filter(|b| *b == b'[')?;
    at += 1;
    if next(&mut at)? == b']' {
        at += 1;
        return next(&mut at).is_none().then_some(());
    }
    for index in 0.. {
        next(&mut at)?;
        let start = at;
        if let Some(line) = reader.read(text, &mut at) {
            admission.ordinary(index, &line);
        } else {
            let mut values = serde_json::Deserializer::from_str(text.get(start..)?).into_iter::<&RawValue>();
            let value = values.next()?.ok()?;
            at = start + values.byte_offset();
            admission.line(index, read_line(value.get()));
        }
        match next(&mut at)? {
            b',' => at += 1,
            b']' => {
                at += 1;
                return next(&mut at).is_none().then_some(());
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::admission::{FUTURE_MS, PAST_MS, TimeLimits};
    use super::super::known::KnownEndpoints;
    use super::*;
    use crate::endpoint::PathTemplates;
    use crate::time::Timestamp;

    fn array(body: &[u8]) -> Result<(u64, u64, Vec<usize>), String> {
        let templates = PathTemplates::default();
        let known = KnownEndpoints::default();
        let mut admission = Admission::new(&templates, &known, TimeLimits { now: Timestamp(1_766_534_400_000), past_ms: PAST_MS, future_ms: FUTURE_MS });
        read_array(body, &mut admission)?;
        let batch = admission.finish();
        Ok((batch.accepted, batch.rejected, batch.errors.iter().map(|e| e.0).collect()))
    }

    #[test]
    fn an_array_is_taken_item_by_item_and_broken_as_a_whole() {
        let good = r#"{"service":"s","route":"/a","duration_ms":1}"#;
        assert_eq!(array(format!("[{good},{good}]").as_bytes()), Ok((2, 0, vec![])));
        assert_eq!(array(good.as_bytes()), Ok((1, 0, vec![])));
        assert_eq!(array(b"[]"), Ok((0, 0, vec![])));
        assert_eq!(array(format!(r#"[{good},{{"service":5}},{good},7,[1],null]"#).as_bytes()), Ok((2, 4, vec![1, 3, 4, 5])));
        assert!(array(format!("[{good},{good}").as_bytes()).is_err());
        assert!(array(format!("[{good}] x").as_bytes()).is_err());
        assert!(array(b"").is_err());
        assert!(array(&[b'[', 0xff, b']']).is_err());
    }

    #[test]
    fn unknown_fields_are_passed_over_and_nulls_are_absent() {
        let body = r#"[{"service":"s","route":"/a","duration_ms":1,"new":{"x":[1]},"env":null,"status":null}]"#;
        assert_eq!(array(body.as_bytes()), Ok((1, 0, vec![])));
    }
}
