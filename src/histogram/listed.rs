//! The counts of a few buckets, 4 bytes each, in order: what a slot of a quiet endpoint holds. Up to four take no memory of their own.

use smallvec::SmallVec;

/// So many distinct buckets fit; more become a window of counts.
pub(super) const BUCKETS_MAX: usize = 192;

/// Counts by bucket: `bucket << 16 | count`, ascending, no count zero.
#[derive(Clone, Debug, Default)]
pub struct Listed(SmallVec<[u32; 4]>);

fn pack(bucket: u16, count: u16) -> u32 {
    u32::from(bucket) << 16 | u32::from(count)
}

fn bucket_of(entry: u32) -> u16 {
    (entry >> 16) as u16
}

fn count_of(entry: u32) -> u64 {
    u64::from(entry & 0xffff)
}

impl Listed {
    /// An empty one with room for so many buckets.
    pub(super) fn with_room_for(buckets: usize) -> Self {
        Self(SmallVec::with_capacity(buckets.min(BUCKETS_MAX)))
    }

    /// The buckets with their counts, ascending.
    pub fn buckets(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.0.iter().map(|e| (bucket_of(*e), count_of(*e)))
    }

    /// Visits the buckets from one on with their counts, ascending; says how many values lie before it.
    #[inline]
    pub(super) fn each_from(&self, bucket: u16, mut visit: impl FnMut(u16, u64)) -> u64 {
        let (before, rest) = self.0.split_at(self.0.partition_point(|e| bucket_of(*e) < bucket));
        for entry in rest {
            visit(bucket_of(*entry), count_of(*entry));
        }
        before.iter().map(|e| count_of(*e)).sum()
    }

    /// Whether so many more buckets surely fit, when all its counts together are then `total`.
    #[must_use]
    pub fn has_room(&self, buckets: usize, total: u64) -> bool {
        self.0.len() + buckets <= BUCKETS_MAX && u16::try_from(total).is_ok()
    }

    /// Adds a count above 0; `false`, and nothing is changed, when there is no room for it.
    pub fn add(&mut self, bucket: u16, count: u64) -> bool {
        let Ok(small) = u16::try_from(count) else { return false };
        // Values mostly come in ascending order, out of a sorted frame.
        let at = match self.0.last() {
            Some(last) if bucket_of(*last) >= bucket => self.0.partition_point(|e| bucket_of(*e) < bucket),
            _ => self.0.len(),
        };
        if let Some(entry) = self.0.get_mut(at).filter(|e| bucket_of(**e) == bucket) {
            let fits = u16::try_from(count_of(*entry) + count).is_ok();
            if fits {
                *entry += u32::from(small);
            }
            return fits;
        }
        let fits = self.0.len() < BUCKETS_MAX;
        if fits {
            self.0.insert(at, pack(bucket, small));
        }
        fits
    }

    /// Adds another; `false`, and nothing is changed, when there is no room for it.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut merged = SmallVec::with_capacity((self.0.len() + other.0.len()).min(BUCKETS_MAX));
        let (mut ours, mut theirs) = (self.0.iter().copied().peekable(), other.0.iter().copied().peekable());
        loop {
            let entry = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) if bucket_of(*a) == bucket_of(*b) => {
                    let Ok(sum) = u16::try_from(count_of(*a) + count_of(*b)) else { return false };
                    let entry = pack(bucket_of(*a), sum);
                    ours.next();
                    theirs.next();
                    entry
                }
                (Some(a), b) if b.is_none_or(|b| a < b) => ours.next().unwrap_or_default(),
                (_, Some(_)) => theirs.next().unwrap_or_default(),
                _ => break,
            };
            if merged.len() == BUCKETS_MAX {
                return false;
            }
            merged.push(entry);
        }
        self.0 = merged;
        true
    }
}
