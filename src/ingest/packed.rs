//! An ordinary timing in 64 bits, in the order in which frames are written: slot, endpoint, duration, outcome. A handler pushes them, the commit sorts them; nothing else is
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

    #[test]
    fn what_does_not_fit_is_not_ordinary() {
        assert_eq!(Packed::new(Slot(1), EndpointId(1), 1 << 26, Outcome::Ok), None);
        assert_eq!(Packed::new(Slot(1), EndpointId(1 << 22), 1, Outcome::Ok), None);
    }
}
