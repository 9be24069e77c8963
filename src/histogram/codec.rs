//! A histogram's bytes, in log frames and history rows; and `HdrHistogram` V2 payloads as senders give them.
//!
//! Layout: digits (u8), number of buckets, then per bucket the gap to the one before and the count; all but the first are
//! LEB128 varints. 20 values take about 23 bytes where V2 takes 81.

use super::{Digits, Histogram};

/// Why bytes are no histogram.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The bytes end early, or a number does not fit.
    #[error("the bytes end early or hold a number out of range")]
    Malformed,
    /// Not an `HdrHistogram` V2 payload.
    #[error("not an HdrHistogram V2 payload in base64: {0}")]
    NotV2(String),
}

/// Appends a number as LEB128.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Takes a LEB128 number off the front.
///
/// # Errors
/// [`Error::Malformed`] at the end of the bytes or over 64 bits.
#[inline]
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    if let Some((&byte, rest)) = bytes.split_first().filter(|(byte, _)| **byte < 0x80) {
        *bytes = rest;
        return Ok(u64::from(byte));
    }
    take_long_varint(bytes)
}

fn take_long_varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Error::Malformed)?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(Error::Malformed);
        }
        value |= part << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Error::Malformed)
}

/// Appends a histogram.
pub fn put(out: &mut Vec<u8>, histogram: &Histogram) {
    out.push(histogram.digits().number());
    put_varint(out, histogram.buckets().count() as u64);
    let mut before = 0;
    for (bucket, count) in histogram.buckets() {
        put_varint(out, u64::from(bucket - before));
        put_varint(out, count);
        before = bucket;
    }
}

/// Takes a histogram off the front.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are not what [`put`] writes.
pub fn take(bytes: &mut &[u8]) -> Result<Histogram, Error> {
    let (&digits, rest) = bytes.split_first().ok_or(Error::Malformed)?;
    *bytes = rest;
    let digits = Digits::from_number(digits).ok_or(Error::Malformed)?;
    let len = usize::try_from(take_varint(bytes)?).ok().filter(|n| u16::try_from(*n).is_ok()).ok_or(Error::Malformed)?;
    let (mut buckets, mut before) = (Vec::with_capacity(len.min(bytes.len())), 0_u64);
    for i in 0..len {
        let gap = take_varint(bytes)?;
        before = before.checked_add(gap).filter(|_| i == 0 || gap > 0).ok_or(Error::Malformed)?;
        let count = take_varint(bytes)?;
        let bucket = u16::try_from(before).ok().filter(|b| *b <= digits.bucket_of(u64::MAX) && count > 0).ok_or(Error::Malformed)?;
        buckets.push((bucket, count));
    }
    Ok(Histogram::from_buckets(digits, &buckets))
}

/// The values of an `HdrHistogram` V2 (or V2 deflate) payload in base64, as (lowest, highest, count) of its buckets in whole microseconds.
///
/// # Errors
/// [`Error::NotV2`] when it is not one, or would take more than 64 MiB to hold.
pub fn buckets_of_v2(base64_text: &str) -> Result<Vec<(u64, u64, u64)>, Error> {
    use base64::Engine as _;
    let not = |e: String| Error::NotV2(e);
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64_text).map_err(|e| not(e.to_string()))?;
    let histogram: hdrhistogram::Histogram<u64> =
        hdrhistogram::serialization::Deserializer::new().deserialize(&mut std::io::Cursor::new(bytes)).map_err(|e| not(e.to_string()))?;
    Ok(histogram
        .iter_recorded()
        .map(|v| {
            let value = v.value_iterated_to();
            (histogram.lowest_equivalent(value), histogram.highest_equivalent(value), v.count_at_value())
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back_as_they_went(values in prop::collection::vec((0u64..604_800_000_000, 1u64..1_000_000), 0..200), three in any::<bool>()) {
            let mut h = Histogram::new(if three { Digits::Three } else { Digits::Two });
            for (v, n) in values { h.record(v, n); }
            let mut bytes = Vec::new();
            put(&mut bytes, &h);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(take(&mut rest).unwrap(), h);
            prop_assert!(rest.is_empty());
            for cut in 0..bytes.len() {
                prop_assert!(take(&mut &bytes[..cut]).is_err());
            }
        }

        #[test]
        fn no_bytes_bring_it_down(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            drop(take(&mut bytes.as_slice()));
        }
    }

    #[test]
    fn a_varint_over_64_bits_is_refused() {
        assert_eq!(take_varint(&mut [0xff_u8; 10].as_slice()), Err(Error::Malformed));
        let mut bytes = Vec::new();
        put_varint(&mut bytes, u64::MAX);
        assert_eq!(take_varint(&mut bytes.as_slice()), Ok(u64::MAX));
    }
}
