//! A count for every bucket of the grid: what many histograms' bytes are added up in, without making a [`Histogram`] of each.

use super::codec::{self, Error, LANES, NARROW_COUNT_MAX};
use super::{Digits, Histogram};

/// So many histograms' narrow counts surely fit together.
const ADDED_MAX: u32 = u32::MAX / NARROW_COUNT_MAX;

/// Counts by bucket, and which of them may hold something.
#[derive(Clone, Debug, Default)]
pub struct DenseCounts {
    digits: Digits,
    counts: Vec<u64>,
    /// Small counts that were added eight at a time; the sum of both counts.
    narrow: Vec<u32>,
    /// How many histograms added to those.
    added: u32,
    /// From the first to the last bucket that holds something; empty when none does.
    low: usize,
    high: usize,
}

impl DenseCounts {
    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.low >= self.high
    }

    fn begin(&mut self, digits: Digits) {
        self.digits = digits;
        if self.counts.len() < self.buckets() {
            self.counts.resize(self.buckets(), 0);
            self.narrow.resize(self.buckets() + LANES, 0);
        }
    }

    /// How many there are on its grid.
    fn buckets(&self) -> usize {
        usize::from(self.digits.bucket_of(u64::MAX)) + 1
    }

    /// Makes room in the narrow counts.
    fn widen(&mut self) {
        for (wide, narrow) in self.counts[self.low..self.high].iter_mut().zip(&mut self.narrow[self.low..self.high]) {
            *wide = wide.saturating_add(u64::from(std::mem::take(narrow)));
        }
        self.added = 0;
    }

    fn add_one(&mut self, bucket: u16, count: u64) {
        let bucket = usize::from(bucket);
        if self.is_empty() {
            (self.low, self.high) = (bucket, bucket + 1);
        }
        (self.low, self.high) = (self.low.min(bucket), self.high.max(bucket + 1));
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
    }

    /// Adds the histogram at the front of the bytes, as [`codec::put`] wrote it, and takes it off.
    ///
    /// # Errors
    /// [`Error::Malformed`]; a part may have been added then.
    pub fn add_bytes(&mut self, bytes: &mut &[u8]) -> Result<(), Error> {
        let &head = bytes.first().ok_or(Error::Malformed)?;
        // An empty histogram says nothing of the grid.
        if head <= 1 {
            *bytes = &bytes[1..];
            return Ok(());
        }
        let digits = if head & 1 == 1 { Digits::Three } else { Digits::Two };
        if !self.agree(digits) {
            codec::take_each(bytes, |digits, bucket, count| self.add_one(Digits::Two.bucket_of(digits.lowest_us(bucket)), count))?;
            return Ok(());
        }
        if self.added == ADDED_MAX {
            self.widen();
        }
        let held = if let Some(held) = codec::add_counts(bytes, self.buckets(), &mut self.narrow, &mut self.counts)? {
            self.added += 1;
            held
        } else {
            let (mut first, mut last) = (usize::MAX, 0);
            let counts = self.counts.as_mut_slice();
            codec::take_each(bytes, |_, bucket, count| {
                let bucket = usize::from(bucket);
                first = first.min(bucket);
                last = bucket;
                counts[bucket] = counts[bucket].saturating_add(count);
            })?;
            (first, last + 1)
        };
        (self.low, self.high) = if self.is_empty() { held } else { (self.low.min(held.0), self.high.max(held.1)) };
        Ok(())
    }

    /// Adds a histogram.
    pub fn add(&mut self, histogram: &Histogram) {
        if histogram.is_empty() {
            return;
        }
        let digits = histogram.digits();
        let agree = self.agree(digits);
        for (bucket, count) in histogram.buckets() {
            self.add_one(if agree { bucket } else { Digits::Two.bucket_of(digits.lowest_us(bucket)) }, count);
        }
    }

    /// Makes ready for buckets of a grid; whether they can be counted as they are. Else this is on the coarser grid afterwards, and they must be brought there.
    fn agree(&mut self, digits: Digits) -> bool {
        if self.is_empty() {
            self.begin(digits);
            return true;
        }
        if self.digits == Digits::Three && digits == Digits::Two {
            let fine = self.take();
            self.begin(Digits::Two);
            for (bucket, count) in fine.buckets() {
                self.add_one(Digits::Two.bucket_of(Digits::Three.lowest_us(bucket)), count);
            }
        }
        self.digits == digits
    }

    /// What it holds; afterwards it holds nothing.
    pub fn take(&mut self) -> Histogram {
        if self.added > 0 {
            self.widen();
        }
        let held = &mut self.counts[self.low..self.high.max(self.low)];
        let first = u16::try_from(self.low).expect("a bucket of a grid");
        let histogram = Histogram::from_window(self.digits, first, held);
        held.fill(0);
        (self.low, self.high) = (0, 0);
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn many_values_are_added_as_they_are_counted(
            all in prop::collection::vec(prop::collection::vec((0u32..900, prop_oneof![9 => 1u64..64, 2 => 64u64..9_000, 1 => 1u64..u64::MAX]), 200..700), 1..5),
            offset in prop_oneof![Just(0_u16), Just(Digits::Two.bucket_of(u64::MAX) - 900), 0u16..2_000],
        ) {
            let (mut merged, mut added) = (Histogram::default(), DenseCounts::default());
            for counts in &all {
                let mut h = Histogram::default();
                for (bucket, count) in counts {
                    h.record_bucket(offset + u16::try_from(*bucket).unwrap(), *count);
                }
                let mut bytes = Vec::new();
                codec::put(&mut bytes, &h);
                added.add_bytes(&mut bytes.as_slice()).unwrap();
                merged.merge(&h);
            }
            // In the middle of it the narrow counts may have been full.
            added.widen();
            prop_assert!(added.take().buckets().eq(merged.buckets()));
            prop_assert!(added.is_empty());
            prop_assert!(added.narrow.iter().all(|n| *n == 0) && added.counts.iter().all(|n| *n == 0));
        }

        #[test]
        fn any_bytes_are_added_as_they_are_taken(head in prop_oneof![Just(4_u8), Just(5)], counts in prop::collection::vec(prop_oneof![9 => 0u8..0x80, 1 => any::<u8>()], 0..120)) {
            let mut bytes = vec![head];
            codec::put_varint(&mut bytes, counts.len() as u64);
            bytes.extend_from_slice(&counts);
            let mut added = DenseCounts::default();
            let (mut rest, mut also) = (bytes.as_slice(), bytes.as_slice());
            let outcome = added.add_bytes(&mut rest);
            match codec::take(&mut also) {
                Ok(taken) => {
                    prop_assert_eq!(outcome, Ok(()));
                    prop_assert_eq!(rest, also);
                    prop_assert_eq!(added.take(), taken);
                }
                Err(e) => prop_assert_eq!(outcome, Err(e)),
            }
        }
    }

    #[test]
    fn counts_beyond_the_end_of_the_grid_are_refused() {
        let end = u64::from(Digits::Two.bucket_of(u64::MAX)) + 1;
        for left_out in end - 20..end + 20 {
            let mut counts = Vec::new();
            codec::put_varint(&mut counts, 2 * left_out - 1);
            counts.extend_from_slice(&[2; 9]);
            let mut bytes = vec![4];
            codec::put_varint(&mut bytes, counts.len() as u64);
            bytes.extend_from_slice(&counts);
            let outcome = DenseCounts::default().add_bytes(&mut bytes.as_slice());
            assert_eq!(outcome.is_ok(), left_out + 9 <= end);
            assert_eq!(codec::take(&mut bytes.as_slice()).is_ok(), left_out + 9 <= end);
        }
    }

    proptest! {
        #[test]
        fn adding_bytes_is_merging_histograms(all in prop::collection::vec((prop::collection::vec((0u64..5_000_000, 1u64..9), 0..60), any::<bool>()), 0..6)) {
            let (mut merged, mut bytes_added, mut added) = (Histogram::default(), DenseCounts::default(), DenseCounts::default());
            for _ in 0..2 {
                for (values, three) in &all {
                    let mut h = Histogram::new(if *three { Digits::Three } else { Digits::Two });
                    for (v, n) in values { h.record(*v, *n); }
                    let mut bytes = Vec::new();
                    codec::put(&mut bytes, &h);
                    let mut rest = bytes.as_slice();
                    bytes_added.add_bytes(&mut rest).unwrap();
                    prop_assert!(rest.is_empty());
                    added.add(&h);
                    merged.merge(&h);
                }
                let (a, b) = (bytes_added.take(), added.take());
                prop_assert_eq!(&a, &b);
                prop_assert!(a.buckets().eq(merged.buckets()));
                prop_assert!(a.is_empty() || a.digits() == merged.digits());
                merged = Histogram::default();
            }
        }
    }
}
