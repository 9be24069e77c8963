//! A histogram's bytes, in log frames and history rows; and `HdrHistogram` V2 payloads as senders give them.
//!
//! Layout: a head byte (bit 0: three digits; the rest: the form), then one of two forms, whichever is smaller.
//! *Gaps*, for few values: the number of buckets, then for each the buckets left out before it, shifted by one bit; the bit says whether a count
//! (less 2) follows, else it is 1. *Counts*, for many: the number of bytes, then the counts of an `HdrHistogram` V2 payload, which follow its head there:
//! `ZigZag` numbers, those below zero standing for so many empty buckets. All numbers are LEB128. 20 values take about 23 bytes, 10,000 about 890.

use smallvec::SmallVec;

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
    if let Some((&byte, rest)) = bytes.split_first()
        && byte < 0x80
    {
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

/// LEB128 as V2 has it: a ninth byte holds eight bits, so there is no tenth.
fn put_v2_number(out: &mut Vec<u8>, mut value: u64) {
    for _ in 0..8 {
        if value < 0x80 {
            break;
        }
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn take_v2_number(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Error::Malformed)?;
        *bytes = rest;
        if shift == 56 || byte < 0x80 {
            return Ok(value | u64::from(byte) << shift);
        }
        value |= u64::from(byte & 0x7f) << shift;
    }
    Err(Error::Malformed)
}

fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

const EMPTY: u8 = 0;
const GAPS: u8 = 1;
const COUNTS: u8 = 2;

/// V2 counts are signed.
const V2_COUNT_MAX: u64 = i64::MAX as u64;

/// What stands in a V2 payload for `left_out` empty buckets; one alone is a count of 0.
fn v2_left_out(left_out: u64) -> Option<u64> {
    match left_out {
        0 => None,
        1 => Some(0),
        n => Some(2 * n - 1),
    }
}

/// Appends a histogram.
pub fn put(out: &mut Vec<u8>, histogram: &Histogram) {
    // Both sizes first: nothing is written twice.
    let (mut buckets, mut gaps_bytes, mut counts_bytes, mut next, mut is_signed) = (0_u64, 0, 0, 0_u64, true);
    for (bucket, count) in pairs(histogram) {
        let left_out = u64::from(bucket) - next;
        next = u64::from(bucket) + 1;
        buckets += 1;
        gaps_bytes += varint_bytes(left_out << 1) + if count == 1 { 0 } else { varint_bytes(count - 2) };
        counts_bytes += v2_left_out(left_out).map_or(0, varint_bytes) + varint_bytes(count << 1).min(9);
        is_signed &= count <= V2_COUNT_MAX;
    }
    let form = match buckets {
        0 => EMPTY,
        _ if is_signed && counts_bytes + varint_bytes(counts_bytes as u64) < gaps_bytes + varint_bytes(buckets) => COUNTS,
        _ => GAPS,
    };
    out.reserve(12 + gaps_bytes.min(counts_bytes));
    out.push(u8::from(histogram.digits() == Digits::Three) | form << 1);
    match form {
        GAPS => put_gaps(out, histogram, buckets),
        COUNTS => {
            put_varint(out, counts_bytes as u64);
            put_v2_counts(out, histogram);
        }
        _ => {}
    }
}

fn pairs(histogram: &Histogram) -> impl Iterator<Item = (u16, u64)> {
    histogram.buckets()
}

fn put_gaps(out: &mut Vec<u8>, histogram: &Histogram, buckets: u64) {
    put_varint(out, buckets);
    let mut next = 0;
    for (bucket, count) in pairs(histogram) {
        let left_out = u64::from(bucket) - next;
        next = u64::from(bucket) + 1;
        put_varint(out, left_out << 1 | u64::from(count != 1));
        if count != 1 {
            put_varint(out, count - 2);
        }
    }
}

/// The counts as a V2 payload has them after its head.
fn put_v2_counts(out: &mut Vec<u8>, histogram: &Histogram) {
    let mut next = 0;
    for (bucket, count) in pairs(histogram) {
        if let Some(left_out) = v2_left_out(u64::from(bucket) - next) {
            put_v2_number(out, left_out);
        }
        next = u64::from(bucket) + 1;
        put_v2_number(out, count << 1);
    }
}

/// Takes a histogram off the front.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are not what [`put`] writes.
pub fn take(bytes: &mut &[u8]) -> Result<Histogram, Error> {
    // Those of a quiet quarter of an hour take no memory on the way.
    let mut buckets = SmallVec::<[(u16, u64); 32]>::new();
    let digits = take_each(bytes, |_, bucket, count| buckets.push((bucket, count)))?;
    Ok(Histogram::from_buckets(digits, &buckets))
}

/// Takes a histogram off the front bucket by bucket, ascending; says its grid.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are not what [`put`] writes; some buckets may have been told by then.
#[inline]
pub fn take_each(bytes: &mut &[u8], mut bucket: impl FnMut(Digits, u16, u64)) -> Result<Digits, Error> {
    let (&head, rest) = bytes.split_first().ok_or(Error::Malformed)?;
    *bytes = rest;
    let digits = if head & 1 == 1 { Digits::Three } else { Digits::Two };
    let end = u64::from(digits.bucket_of(u64::MAX)) + 1;
    match head >> 1 {
        EMPTY => {}
        GAPS => take_gaps(bytes, end, |b, count| bucket(digits, b, count))?,
        COUNTS => take_v2_counts(bytes, end, |b, count| bucket(digits, b, count))?,
        _ => return Err(Error::Malformed),
    }
    Ok(digits)
}

#[inline]
fn take_gaps(bytes: &mut &[u8], end: u64, mut tell: impl FnMut(u16, u64)) -> Result<(), Error> {
    let (mut rest, mut next) = (*bytes, 0_u64);
    for _ in 0..take_varint(&mut rest)? {
        let token = take_varint(&mut rest)?;
        let bucket = next + (token >> 1);
        let count = if token & 1 == 0 { 1 } else { take_varint(&mut rest)?.checked_add(2).ok_or(Error::Malformed)? };
        if bucket >= end {
            return Err(Error::Malformed);
        }
        tell(index(bucket), count);
        next = bucket + 1;
    }
    *bytes = rest;
    if next == 0 { Err(Error::Malformed) } else { Ok(()) }
}

#[inline]
fn take_v2_counts(bytes: &mut &[u8], end: u64, mut tell: impl FnMut(u16, u64)) -> Result<(), Error> {
    let len = usize::try_from(take_varint(bytes)?).map_err(|_| Error::Malformed)?;
    let (mut counts, rest) = bytes.split_at_checked(len).ok_or(Error::Malformed)?;
    *bytes = rest;
    let (mut bucket, mut is_counted) = (0_u64, false);
    while !counts.is_empty() {
        is_counted = take_v2_count(&mut counts, &mut bucket, end, &mut tell)?;
    }
    // What ends in empty buckets, or has none, was not written by `put`.
    if is_counted { Ok(()) } else { Err(Error::Malformed) }
}

/// Takes one number of the counts; whether it was the count of a bucket.
#[inline]
fn take_v2_count(counts: &mut &[u8], bucket: &mut u64, end: u64, tell: &mut impl FnMut(u16, u64)) -> Result<bool, Error> {
    let number = match **counts {
        [byte, ref rest @ ..] if byte < 0x80 => {
            *counts = rest;
            u64::from(byte)
        }
        [low, high, ref rest @ ..] if high < 0x80 => {
            *counts = rest;
            u64::from(low & 0x7f) | u64::from(high) << 7
        }
        _ => take_v2_number(counts)?,
    };
    let is_counted = number & 1 == 0 && number > 0;
    if is_counted {
        if *bucket >= end {
            return Err(Error::Malformed);
        }
        tell(index(*bucket), number >> 1);
    }
    // Below zero: so many empty buckets. A number of 0 is one.
    *bucket = bucket.saturating_add(if number & 1 == 1 { (number >> 1) + 1 } else { 1 });
    Ok(is_counted)
}

/// How many buckets [`add_counts`] may write at once.
pub(super) const LANES: usize = 8;

/// The largest count that it adds to the narrow sums.
pub(super) const NARROW_COUNT_MAX: u32 = 63;

/// Takes a histogram of many values off the front, if it is one, adding its counts: those below 64 to `narrow`, which has [`LANES`] more than the grid's `end`, others to `wide`.
/// `None` for the other forms, of which nothing is taken then; else the first bucket that may be counted and the one after the last.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are not what [`put`] writes; some buckets may have been added by then.
pub(super) fn add_counts(bytes: &mut &[u8], end: usize, narrow: &mut [u32], wide: &mut [u64]) -> Result<Option<(usize, usize)>, Error> {
    let &head = bytes.first().ok_or(Error::Malformed)?;
    if head >> 1 != COUNTS {
        return Ok(None);
    }
    let mut rest = &bytes[1..];
    let len = usize::try_from(take_varint(&mut rest)?).map_err(|_| Error::Malformed)?;
    let (mut counts, rest) = rest.split_at_checked(len).ok_or(Error::Malformed)?;
    *bytes = rest;
    let (mut bucket, mut is_counted, mut first, end) = (0_u64, false, None, end as u64);
    while !counts.is_empty() {
        // Most numbers are of one byte, and most of those are counts: these are added eight at a time, up to the first that is not.
        if let (Some(&eight), true) = (counts.first_chunk::<LANES>(), bucket < end) {
            let word = u64::from_le_bytes(eight);
            let plain = ((word & 0x8181_8181_8181_8181).trailing_zeros() / 8) as usize;
            if plain > 0 {
                let kept = if plain == LANES { word } else { word & ((1 << (8 * plain)) - 1) };
                let at = usize::from(index(bucket));
                let sums: &mut [u32; LANES] = (&mut narrow[at..at + LANES]).try_into().expect("so many lanes");
                // No number is odd, so no bit goes from one lane to the next.
                for (sum, count) in sums.iter_mut().zip((kept >> 1).to_le_bytes()) {
                    *sum += u32::from(count);
                }
                first.get_or_insert(at);
                is_counted = kept >> (8 * (plain - 1)) != 0;
                bucket += plain as u64;
                counts = &counts[plain..];
                if plain == LANES {
                    continue;
                }
                if counts.is_empty() {
                    break;
                }
            }
        }
        is_counted = take_v2_count(&mut counts, &mut bucket, end, &mut |bucket, count| {
            let bucket = usize::from(bucket);
            first.get_or_insert(bucket);
            wide[bucket] = wide[bucket].saturating_add(count);
        })?;
    }
    match first {
        Some(first) if is_counted && bucket <= end => Ok(Some((first, usize::from(index(bucket))))),
        _ => Err(Error::Malformed),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the caller has compared it with the end of the grid, far below u16")]
fn index(bucket: u64) -> u16 {
    bucket as u16
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

    proptest! {
        #[test]
        fn many_values_take_the_bytes_of_a_v2_payload_after_its_head(values in prop::collection::vec((0u64..3_000_000, 1u64..100_000), 1..300), last in 0u64..604_800_000_000) {
            use hdrhistogram::serialization::{Serializer as _, V2Serializer};
            let mut ours = Histogram::default();
            let mut theirs = hdrhistogram::Histogram::<u64>::new_with_bounds(1, crate::histogram::grid::VALUE_US_MAX, 2).unwrap();
            for (v, n) in values.into_iter().chain([(last, 1)]) {
                ours.record(v, n);
                theirs.record_n(v, n).unwrap();
            }
            let (mut counts, mut payload) = (Vec::new(), Vec::new());
            put_v2_counts(&mut counts, &ours);
            V2Serializer::new().serialize(&theirs, &mut payload).unwrap();
            prop_assert_eq!(&counts, &payload[40..]);
        }
    }

    #[test]
    fn the_smaller_form_is_taken_and_the_largest_counts_fit() {
        let bytes_of = |h: &Histogram| {
            let mut bytes = Vec::new();
            put(&mut bytes, h);
            assert_eq!(take(&mut bytes.as_slice()).as_ref(), Ok(h));
            bytes
        };
        let (mut few, mut many) = (Histogram::default(), Histogram::default());
        for n in 0..20 {
            few.record(15_000 + n * 900, 1);
        }
        for n in 0..10_000 {
            many.record(15_000 + n % 700 * 90, 1);
        }
        assert_eq!(bytes_of(&few)[0] >> 1, GAPS);
        assert!(bytes_of(&few).len() <= 25);
        assert_eq!(bytes_of(&many)[0] >> 1, COUNTS);
        assert_eq!(bytes_of(&Histogram::default()), [0]);
        for count in [V2_COUNT_MAX, V2_COUNT_MAX + 1, u64::MAX] {
            for buckets in [1, 300] {
                let mut huge = Histogram::default();
                for n in 0..buckets {
                    huge.record(n, count);
                }
                bytes_of(&huge);
            }
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
