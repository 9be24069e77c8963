//! The value grid of `hdrhistogram` for whole microseconds from 0 to 7 days at 2 or 3 significant digits.
//!
//! # Source
//! Gil Tene, `HdrHistogram`: linear sub-buckets inside powers of two. With `m` = 7 (2 digits) or 10 (3 digits), values below
//! 2^(m+1) have a bucket each; above, each power of two is cut into 2^m buckets.

use serde::{Deserialize, Serialize};

/// The largest value, 7 days in microseconds.
pub const VALUE_US_MAX: u64 = 7 * 86_400 * 1_000_000;

/// Significant decimal digits that a histogram keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum Digits {
    /// Within 1 % (bucket width at most 1/128 of the value).
    #[default]
    Two,
    /// Within 0.1 % (1/1024).
    Three,
}

impl Digits {
    /// The base-2 logarithm of the buckets in a power of two.
    fn magnitude(self) -> u32 {
        match self {
            Self::Two => 7,
            Self::Three => 10,
        }
    }

    /// 2 or 3.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Two => 2,
            Self::Three => 3,
        }
    }

    /// From 2 or 3.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::Two),
            3 => Some(Self::Three),
            _ => None,
        }
    }

    /// The bucket of a value; values over [`VALUE_US_MAX`] count as that.
    #[must_use]
    pub fn bucket_of(self, value_us: u64) -> u16 {
        let (m, value) = (self.magnitude(), value_us.min(VALUE_US_MAX));
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(m + 1);
        let bucket = (u64::from(shift) << m) + (value >> shift);
        u16::try_from(bucket).expect("7 days need at most 31,744 buckets")
    }

    /// The smallest value of a bucket.
    #[must_use]
    pub fn lowest_us(self, bucket: u16) -> u64 {
        let shift = self.shift_of(bucket);
        (u64::from(bucket) - (u64::from(shift) << self.magnitude())) << shift
    }

    /// The largest value of a bucket.
    #[must_use]
    pub fn highest_us(self, bucket: u16) -> u64 {
        self.lowest_us(bucket) + (1 << self.shift_of(bucket)) - 1
    }

    fn shift_of(self, bucket: u16) -> u32 {
        (u32::from(bucket) >> self.magnitude()).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_is_that_of_the_crate_bucket_for_bucket() {
        for digits in [Digits::Two, Digits::Three] {
            let theirs = hdrhistogram::Histogram::<u64>::new_with_bounds(1, VALUE_US_MAX, digits.number()).unwrap();
            let mut value = 0_u64;
            while value <= VALUE_US_MAX {
                let bucket = digits.bucket_of(value);
                assert_eq!(digits.lowest_us(bucket), theirs.lowest_equivalent(value), "{value}");
                assert_eq!(digits.highest_us(bucket), theirs.highest_equivalent(value), "{value}");
                value = digits.highest_us(bucket) + 1;
                assert_eq!(digits.bucket_of(value.min(VALUE_US_MAX)), if value > VALUE_US_MAX { bucket } else { bucket + 1 });
            }
        }
    }
}
