//! What an endpoint's memory is made of: counts in a byte, log levels in two, rings of both. Two kilobytes an endpoint have no room for more.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A count in a byte: exact up to 32, then in steps of 8 % (so within 4 %) up to about 10^9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Count(u8);

/// Codes that are the count itself are up to this one.
const EXACT: u8 = 32;
/// The natural logarithm of a step beyond, and the step.
const LOG_STEP: f32 = 0.0774;
const STEP: f32 = 1.080_474_2;

impl Count {
    /// The nearest that can be kept.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "at most 255, and a count within 4 %")]
    pub fn new(count: u64) -> Self {
        match u8::try_from(count) {
            Ok(exact) if exact <= EXACT => Self(exact),
            _ => Self((f32::from(EXACT) + (libm::logf(count as f32 / f32::from(EXACT)) / LOG_STEP).round()).min(255.0) as u8),
        }
    }

    /// The count.
    #[must_use]
    pub fn get(self) -> f32 {
        COUNTS[usize::from(self.0)]
    }
}

/// The count of each code.
static COUNTS: [f32; 256] = counts();

#[expect(clippy::cast_precision_loss, reason = "at most 32")]
const fn counts() -> [f32; 256] {
    let mut counts = [0.0; 256];
    let mut code = 1;
    while code < 256 {
        counts[code] = if code <= EXACT as usize { code as f32 } else { counts[code - 1] * STEP };
        code += 1;
    }
    counts
}

/// A difference of log levels in steps of 1/4000 (0.025 %), up to a factor of 3000; or nothing.
///
/// 0 is nothing, and takes one byte; the level 0 is kept as one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Level(i16);

const LEVEL_STEPS: f32 = 4000.0;

impl Level {
    /// The nearest that can be kept.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the range")]
    pub fn new(level: f32) -> Self {
        let steps = (level * LEVEL_STEPS).round().clamp(-32767.0, 32767.0) as i16;
        Self(if steps == 0 { 1 } else { steps })
    }

    /// The level, if there is one.
    #[must_use]
    pub fn get(self) -> Option<f32> {
        (self.0 != 0).then(|| f32::from(self.0) / LEVEL_STEPS)
    }
}

/// A small difference of log levels in steps of 1/64 up to two (a factor of seven); or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Height(i8);

const HEIGHT_STEPS: f32 = 64.0;

impl Default for Height {
    fn default() -> Self {
        Self(i8::MIN)
    }
}

impl Height {
    /// The nearest that can be kept.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the range")]
    pub fn new(height: f32) -> Self {
        Self((height * HEIGHT_STEPS).round().clamp(-127.0, 127.0) as i8)
    }

    /// The difference, if there is one.
    #[must_use]
    pub fn get(self) -> Option<f32> {
        (self.0 != i8::MIN).then(|| f32::from(self.0) / HEIGHT_STEPS)
    }
}

/// A log ratio, of 0.66 to 8 in steps of 2 %, or nothing, and whether its day is a Saturday or Sunday: in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ratio(u8);

const RATIO_STEPS: f32 = 50.0;
/// The code of the ratio 1; 0 is nothing.
const RATIO_ONE: f32 = 22.0;
const RATIO_CODES: u8 = 0x7f;

impl Ratio {
    /// The nearest that can be kept.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range")]
    pub fn new(log_ratio: Option<f32>, weekend: bool) -> Self {
        let code = log_ratio.map_or(0, |r| (RATIO_ONE + r * RATIO_STEPS).round().clamp(1.0, f32::from(RATIO_CODES)) as u8);
        Self(code | u8::from(weekend) << 7)
    }

    /// The log ratio, if there is one.
    #[must_use]
    pub fn get(self) -> Option<f32> {
        let code = self.0 & RATIO_CODES;
        (code != 0).then(|| (f32::from(code) - RATIO_ONE) / RATIO_STEPS)
    }

    /// Whether its day is a Saturday or Sunday.
    #[must_use]
    pub fn is_weekend(self) -> bool {
        self.0 > RATIO_CODES
    }
}

/// The last values, the newest first; no more than its capacity. It is kept in the order of time, so where the newest stands is not.
#[derive(Clone, Debug)]
pub struct Ring<T> {
    values: Vec<T>,
    next: u16,
    capacity: u16,
}

impl<T: Copy + Default> Ring<T> {
    /// An empty one.
    #[must_use]
    pub fn new(capacity: u16) -> Self {
        Self { values: Vec::new(), next: 0, capacity }
    }

    /// Adds the newest, over the oldest where it is full.
    pub fn push(&mut self, value: T) {
        if self.values.len() < usize::from(self.capacity) {
            if self.values.len() == self.values.capacity() {
                // Twice as much, but no more than there will ever be.
                let more = self.values.len().max(4).min(usize::from(self.capacity) - self.values.len());
                self.values.reserve_exact(more);
            }
            self.values.push(value);
        } else {
            self.values[usize::from(self.next)] = value;
        }
        self.next = (self.next + 1) % self.capacity;
    }

    /// The value so many before the newest (0).
    #[must_use]
    pub fn back(&self, ago: usize) -> Option<T> {
        let len = self.values.len();
        if ago >= len {
            return None;
        }
        // Before it is full, `next` is its length, or 0 just when it has become full.
        let next = usize::from(self.next);
        let at = if ago < next { next - 1 - ago } else { next + len - 1 - ago };
        self.values.get(at).copied()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Values in the order of time, in two parts.
struct InOrder<'a, T>([&'a [T]; 2]);

impl<T: Serialize> Serialize for InOrder<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0[0].iter().chain(self.0[1]))
    }
}

impl<T: Serialize> Serialize for Ring<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Before it is full, `next` is its length, or 0 just when it has become full.
        let (newer, older) = self.values.split_at(usize::from(self.next).min(self.values.len()));
        (self.capacity, InOrder([older, newer])).serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ring<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (capacity, values) = <(u16, Vec<T>)>::deserialize(deserializer)?;
        let next = u16::try_from(values.len()).ok().filter(|len| *len < capacity).unwrap_or(0);
        Ok(Self { values, next, capacity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_count_is_kept_within_its_step(count in prop_oneof![0_u64..100, 0_u64..900_000_000]) {
            let kept = f64::from(Count::new(count).get());
            let exact = f64::from(u32::try_from(count).unwrap());
            prop_assert!((kept - exact).abs() <= exact / 25.0, "{count} kept as {kept}");
            if count <= 32 {
                prop_assert!((kept - exact).abs() < 1e-9);
            }
        }

        #[test]
        fn a_level_is_kept_within_a_step(level in -4.0_f32..4.0) {
            prop_assert!((Level::new(level).get().unwrap() - level).abs() <= 1.0001 / LEVEL_STEPS);
        }

        #[test]
        fn a_ratio_is_kept_within_a_step(log_ratio in -0.42_f32..2.1, weekend in any::<bool>()) {
            let kept = Ratio::new(Some(log_ratio), weekend);
            prop_assert!((kept.get().unwrap() - log_ratio).abs() <= 0.501 / RATIO_STEPS);
            prop_assert_eq!((kept.is_weekend(), Ratio::new(None, weekend)), (weekend, Ratio::new(None, kept.is_weekend())));
            prop_assert_eq!(Ratio::new(None, weekend).get(), None);
        }

        #[test]
        fn a_ring_gives_the_last_ones(values in prop::collection::vec(0_u16..1000, 0..40)) {
            let mut ring = Ring::new(7);
            for v in &values {
                ring.push(*v);
            }
            let last: Vec<_> = values.iter().rev().take(7).copied().collect();
            prop_assert_eq!((0..8).map_while(|ago| ring.back(ago)).collect::<Vec<_>>(), last.clone());
            // And goes on so when it was kept.
            let mut kept: Ring<u16> = postcard::from_bytes(&postcard::to_stdvec(&ring).unwrap()).unwrap();
            prop_assert_eq!((0..8).map_while(|ago| kept.back(ago)).collect::<Vec<_>>(), last);
            for v in [1_001, 1_002, 1_003] {
                ring.push(v);
                kept.push(v);
            }
            prop_assert_eq!((0..8).map(|ago| kept.back(ago)).collect::<Vec<_>>(), (0..8).map(|ago| ring.back(ago)).collect::<Vec<_>>());
        }
    }
}
