//! A count for every bucket of the grid: what many histograms' bytes are added up in, without making a [`Histogram`] of each.

use super::codec::{self, Error};
use super::{Digits, Histogram};

/// Counts by bucket, and which of them may hold something.
#[derive(Clone, Debug, Default)]
pub struct DenseCounts {
    digits: Digits,
    counts: Vec<u64>,
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
        let buckets = usize::from(digits.bucket_of(u64::MAX)) + 1;
        self.digits = digits;
        if self.counts.len() < buckets {
            self.counts.resize(buckets, 0);
        }
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
        let (mut first, mut last) = (usize::MAX, 0);
        let counts = self.counts.as_mut_slice();
        codec::take_each(bytes, |_, bucket, count| {
            let bucket = usize::from(bucket);
            first = first.min(bucket);
            last = bucket;
            counts[bucket] = counts[bucket].saturating_add(count);
        })?;
        (self.low, self.high) = if self.is_empty() { (first, last + 1) } else { (self.low.min(first), self.high.max(last + 1)) };
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
        let held = self.low..self.high.max(self.low);
        let buckets = self.counts[held.clone()].iter().zip(held.clone()).filter(|(count, _)| **count > 0);
        let buckets = buckets.map(|(&count, bucket)| (u16::try_from(bucket).expect("a bucket of a grid"), count));
        let buckets: Vec<(u16, u64)> = buckets.collect();
        self.counts[held].fill(0);
        (self.low, self.high) = (0, 0);
        Histogram::from_buckets(self.digits, &buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
