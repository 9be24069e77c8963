//! An ordinary timing in 64 bits, in the order in which frames are written: slot, endpoint, duration, outcome. A handler pushes them, the commit groups them; nothing else is
//! kept of an ordinary timing.
//!
//! Ordinary is: of an endpoint that has a number, of weight 1, shorter than 67 s, and nothing said beside. Everything else is an [`super::Item`].
//! ```text
//! slot modulo 2^14 (45 h) · endpoint, 22 bits · microseconds, 26 bits · outcome, 2 bits
//! ```

use crate::counting::Outcome;
use crate::endpoint::EndpointId;
use crate::time::Slot;

const US_BITS: u32 = 26;
const ID_BITS: u32 = 22;
const SLOT_BITS: u32 = 14;

/// Slots that are told apart; timings are taken from a day back to 2 min ahead.
const SLOTS: u32 = 1 << SLOT_BITS;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packed(u64);

impl Packed {
    /// Packs a timing; `None` when it is not ordinary.
    #[must_use]
    pub fn new(slot: Slot, id: EndpointId, us: u64, outcome: Outcome) -> Option<Self> {
        if us >> US_BITS != 0 || id.0 >> ID_BITS != 0 {
            return None;
        }
        let place = u64::from(slot.0 % SLOTS) << ID_BITS | u64::from(id.0);
        Some(Self((place << US_BITS | us) << 2 | outcome as u64))
    }

    /// What timings of one slot and endpoint have in common.
    #[must_use]
    pub fn place(self) -> u64 {
        self.0 >> (US_BITS + 2)
    }

    /// Of which endpoint.
    #[must_use]
    pub fn endpoint(self) -> EndpointId {
        EndpointId((self.place() & ((1 << ID_BITS) - 1)) as u32)
    }

    /// When; `near` is a slot at most a day after it or before it.
    #[must_use]
    pub fn slot(self, near: Slot) -> Slot {
        let low = u32::try_from(self.place() >> ID_BITS).expect("14 bits are left");
        let ahead = low.wrapping_sub(near.0) % SLOTS;
        // Most of the range lies behind: what is taken is a day old at most and hardly ahead.
        if ahead < SLOTS / 4 { Slot(near.0 + ahead) } else { Slot((near.0 + ahead).saturating_sub(SLOTS)) }
    }

    /// How long it took, in whole microseconds.
    #[must_use]
    pub fn us(self) -> u64 {
        self.0 >> 2 & ((1 << US_BITS) - 1)
    }

    /// How it ended.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        Outcome::ALL[(self.0 & 3) as usize]
    }
}

/// Fewer are sorted by comparing: below it that is as quick.
const BY_DIGITS_MIN: usize = 512;
const DIGIT_BITS: u32 = 11;

/// Brings timings of one slot and endpoint together, by slot and endpoint, ascending; among them they keep the order in which they came. (Slots that are a turn of 45 h apart count
/// as one, as they do for [`Packed::place`].) Their durations are not compared: whoever counts many of one endpoint in buckets needs no order of them, and sorting them was the dearest
/// part of a commit.
#[must_use]
pub fn group(mut timings: Vec<Packed>) -> Vec<Packed> {
    if timings.len() < BY_DIGITS_MIN {
        timings.sort_by_key(|p| p.place());
        return timings;
    }
    // From the lowest digit to the highest, each pass stable (Knuth 5.2.5, algorithm R). Digits that are the same in all need none: mostly there is one slot.
    let differ = timings.iter().fold(0, |differ, p| differ | (p.0 ^ timings[0].0));
    let mut to = vec![Packed(0); timings.len()];
    for low in (US_BITS + 2..u64::BITS).step_by(DIGIT_BITS as usize) {
        let digit = |bits: u64| (bits >> low & ((1 << DIGIT_BITS) - 1)) as usize;
        if digit(differ) == 0 {
            continue;
        }
        let mut ends = [0_u32; 1 << DIGIT_BITS];
        for p in &timings {
            ends[digit(p.0)] += 1;
        }
        let mut begin = 0;
        for end in &mut ends {
            begin += std::mem::replace(end, begin);
        }
        for p in &timings {
            let place = &mut ends[digit(p.0)];
            to[*place as usize] = *p;
            *place += 1;
        }
        std::mem::swap(&mut timings, &mut to);
    }
    timings
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_comes_back_from_around_the_slot_it_was_taken_in(near in 20_000u32..200_000_000, back in -24i64..8_700, id in 0u32..1 << 22, us in 0u64..1 << 26, outcome in 0usize..4) {
            let slot = Slot(u32::try_from(i64::from(near) - back).unwrap());
            let packed = Packed::new(slot, EndpointId(id), us, Outcome::ALL[outcome]).unwrap();
            prop_assert_eq!((packed.slot(Slot(near)), packed.endpoint(), packed.us(), packed.outcome()), (slot, EndpointId(id), us, Outcome::ALL[outcome]));
        }
    }

    proptest! {
        #[test]
        fn groups_are_those_of_a_stable_sort(
            slots in 1u32..40_000, ids in 1u32..1 << 22, timings in prop::collection::vec((0u32..40_000, 0u32..1 << 22, 0u64..1 << 26, 0usize..4), 0..2 * BY_DIGITS_MIN),
        ) {
            let packed = |&(slot, id, us, outcome): &_| Packed::new(Slot(slot % slots), EndpointId(id % ids), us, Outcome::ALL[outcome]).unwrap();
            let timings: Vec<_> = timings.iter().map(packed).collect();
            let mut wanted = timings.clone();
            wanted.sort_by_key(|p| p.place());
            prop_assert_eq!(group(timings), wanted);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_ordinary() {
        assert_eq!(Packed::new(Slot(1), EndpointId(1), 1 << 26, Outcome::Ok), None);
        assert_eq!(Packed::new(Slot(1), EndpointId(1 << 22), 1, Outcome::Ok), None);
    }
}
