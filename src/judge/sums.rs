//! Requests per slot of one rule, for as long as its longest window: exact at every slot, so that both edges of every window are those of a naive evaluator.
//!
//! Slots stand in blocks of 64. A block has a bit for each slot that holds something, what was counted before it, and counts cumulated within it for those slots
//! alone: 4 bytes each where that is enough, so a rule that is busy at every slot of three days takes 0.16 MB, and one with six requests in a block 100 bytes a block. The sum up to
//! a slot is one look at a block, found by its number without a search where no block is missing. A copy shares the counts of all blocks until they change.
//!
//! The first form was a list of 40 bytes for each busy slot, searched for every edge and copied whole into every snapshot: 1 MB a rule, and most of what judging cost.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::counting::Tally;
use crate::time::Slot;

/// Slots in a block: the bits of a `u64`.
const BLOCK: u32 = u64::BITS;

/// Blocks that are forgotten together.
const FORGOTTEN_AT_ONCE: usize = 16;

/// Requests and bad ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sum {
    /// All requests.
    pub total: Tally,
    /// Bad ones among them.
    pub bad: Tally,
}

impl Sum {
    fn plain(total: u64, bad: u64) -> Self {
        let tally = |n| Tally { weight: n, observed: n };
        Self { total: tally(total), bad: tally(bad) }
    }

    fn is_plain(self) -> bool {
        self.total.weight == self.total.observed && self.bad.weight == self.bad.observed
    }
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.bad += other.bad;
    }
}

impl std::ops::Add for Sum {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl std::ops::Sub for Sum {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { total: self.total - other.total, bad: self.bad - other.bad }
    }
}

/// For each busy slot of a block, in order: everything in the block up to and with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Counts {
    /// Weights equal observations; total and bad.
    Small(Vec<[u16; 2]>),
    /// Likewise.
    Large(Vec<[u32; 2]>),
    Any(Vec<Sum>),
}

impl Counts {
    fn len(&self) -> usize {
        match self {
            Self::Small(c) => c.len(),
            Self::Large(c) => c.len(),
            Self::Any(c) => c.len(),
        }
    }

    /// Everything in the first `count` busy slots.
    fn upto(&self, count: usize) -> Sum {
        let Some(at) = count.checked_sub(1) else { return Sum::default() };
        match self {
            Self::Small(c) => c.get(at).map(|[total, bad]| Sum::plain(u64::from(*total), u64::from(*bad))),
            Self::Large(c) => c.get(at).map(|[total, bad]| Sum::plain(u64::from(*total), u64::from(*bad))),
            Self::Any(c) => c.get(at).copied(),
        }
        .unwrap_or_default()
    }

    fn all(&self) -> Sum {
        self.upto(self.len())
    }

    /// Counts into a busy slot, or into a new one that comes to stand at that place.
    #[expect(clippy::cast_possible_truncation, reason = "made to fit before")]
    fn add(&mut self, at: usize, is_new: bool, sum: Sum) {
        let all = self.all() + sum;
        self.make_fit(all);
        match self {
            Self::Small(c) => add_pair(c, at, is_new, [sum.total.weight as u16, sum.bad.weight as u16]),
            Self::Large(c) => add_pair(c, at, is_new, [sum.total.weight as u32, sum.bad.weight as u32]),
            Self::Any(c) => insert_and_add(c, at, is_new, |entry| *entry += sum),
        }
    }

    fn make_fit(&mut self, all: Sum) {
        let most = all.total.weight.max(all.bad.weight);
        match self {
            Self::Small(_) if all.is_plain() && u16::try_from(most).is_ok() => {}
            Self::Small(c) if all.is_plain() && u32::try_from(most).is_ok() => {
                *self = Self::Large(c.iter().map(|[a, b]| [u32::from(*a), u32::from(*b)]).collect());
            }
            Self::Large(_) if all.is_plain() && u32::try_from(most).is_ok() => {}
            Self::Any(_) => {}
            Self::Small(_) | Self::Large(_) => *self = Self::Any((1..=self.len()).map(|n| self.upto(n)).collect()),
        }
    }

    fn shrink(&mut self) {
        match self {
            Self::Small(c) => c.shrink_to_fit(),
            Self::Large(c) => c.shrink_to_fit(),
            Self::Any(c) => c.shrink_to_fit(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Small(c) => c.capacity() * size_of::<[u16; 2]>(),
            Self::Large(c) => c.capacity() * size_of::<[u32; 2]>(),
            Self::Any(c) => c.capacity() * size_of::<Sum>(),
        }
    }
}

fn add_pair<T: Copy + Default + std::ops::AddAssign>(counts: &mut Vec<[T; 2]>, at: usize, is_new: bool, [total, bad]: [T; 2]) {
    insert_and_add(counts, at, is_new, |entry| {
        entry[0] += total;
        entry[1] += bad;
    });
}

fn insert_and_add<T: Copy + Default>(counts: &mut Vec<T>, at: usize, is_new: bool, add: impl FnMut(&mut T)) {
    if is_new {
        let before = at.checked_sub(1).and_then(|b| counts.get(b)).copied().unwrap_or_default();
        counts.insert(at, before);
    }
    counts[at..].iter_mut().for_each(add);
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    /// Its slots are `number * 64` and on.
    number: u32,
    /// Slots that hold something.
    busy: u64,
    /// Slots that hold something bad.
    bad: u64,
    /// Everything before it that was not forgotten when the first block began.
    before: Sum,
    counts: Arc<Counts>,
}

impl Block {
    fn end(&self) -> Sum {
        self.before + self.counts.all()
    }

    /// How many busy slots lie up to and with a slot of it.
    fn rank(&self, slot: Slot) -> usize {
        (self.busy & (u64::MAX >> (BLOCK - 1 - slot.0 % BLOCK))).count_ones() as usize
    }

    fn slot(&self, bit: u32) -> Slot {
        Slot(self.number * BLOCK + bit)
    }
}

/// Requests per slot of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Ascending by number; those that hold nothing are not there.
    blocks: Vec<Block>,
    forgotten_to: Slot,
}

impl Sums {
    /// Counts into a slot, in any order of slots. Whether a block began with it, so that it is time to forget.
    pub fn add(&mut self, slot: Slot, sum: Sum) -> bool {
        if slot < self.forgotten_to {
            return false;
        }
        let number = slot.0 / BLOCK;
        let (at, began) = match self.place(number) {
            Ok(at) => (at, false),
            Err(at) => {
                self.begin(at, number);
                (at, true)
            }
        };
        let block = &mut self.blocks[at];
        let bit = 1 << (slot.0 % BLOCK);
        let is_new = block.busy & bit == 0;
        block.busy |= bit;
        if sum.bad != Tally::default() {
            block.bad |= bit;
        }
        let place = block.rank(slot) - 1;
        Arc::make_mut(&mut block.counts).add(place, is_new, sum);
        for later in &mut self.blocks[at + 1..] {
            later.before += sum;
        }
        began
    }

    fn begin(&mut self, at: usize, number: u32) {
        let before = match at.checked_sub(1) {
            Some(previous) => {
                let previous = &mut self.blocks[previous];
                if let Some(counts) = Arc::get_mut(&mut previous.counts) {
                    counts.shrink();
                }
                previous.end()
            }
            None => self.blocks.first().map_or_else(Sum::default, |b| b.before),
        };
        self.blocks.insert(at, Block { number, busy: 0, bad: 0, before, counts: Arc::new(Counts::Small(Vec::new())) });
    }

    /// Where the block of that number stands, or would stand.
    fn place(&self, number: u32) -> Result<usize, usize> {
        let Some(last) = self.blocks.last() else { return Err(0) };
        let end = self.blocks.len() - 1;
        if number >= last.number {
            return if number == last.number { Ok(end) } else { Err(end + 1) };
        }
        // Numbers are distinct, so a block stands no further from the last one than their numbers are apart; just there when none is missing between.
        let low = end.saturating_sub((last.number - number) as usize);
        if self.blocks[low].number == number {
            return Ok(low);
        }
        self.blocks[low..].binary_search_by_key(&number, |b| b.number).map(|at| at + low).map_err(|at| at + low)
    }

    /// Everything up to and with a slot, since some time before the longest window.
    #[must_use]
    pub fn upto(&self, slot: Slot) -> Sum {
        match self.place(slot.0 / BLOCK) {
            Ok(at) => self.blocks[at].before + self.blocks[at].counts.upto(self.blocks[at].rank(slot)),
            Err(0) => self.blocks.first().map_or_else(Sum::default, |b| b.before),
            Err(at) => self.blocks[at - 1].end(),
        }
    }

    /// The sum over the slots in (end − width, end].
    #[must_use]
    pub fn window(&self, end: Slot, width_slots: u32) -> Sum {
        self.upto(end) - self.upto(end.back(width_slots))
    }

    /// What was counted into slots after `end` already.
    #[must_use]
    pub fn after(&self, end: Slot) -> Sum {
        self.blocks.last().map_or_else(Sum::default, |last| last.end() - self.upto(end))
    }

    fn next_of(&self, after: Slot, bits: impl Fn(&Block) -> u64) -> Option<Slot> {
        let from = after.0.checked_add(1)?;
        let (Ok(at) | Err(at)) = self.place(from / BLOCK);
        self.blocks[at..].iter().find_map(|block| {
            let passed = if block.number == from / BLOCK { from % BLOCK } else { 0 };
            let left = bits(block) & (u64::MAX << passed);
            (left != 0).then(|| block.slot(left.trailing_zeros()))
        })
    }

    /// The first slot after `end` that already holds something.
    #[must_use]
    pub fn next_entry(&self, end: Slot) -> Option<Slot> {
        self.next_of(end, |block| block.busy)
    }

    /// The first slot after `end` that already holds something bad.
    #[must_use]
    pub fn next_bad(&self, end: Slot) -> Option<Slot> {
        self.next_of(end, |block| block.bad)
    }

    /// The first end after `end` at which the sum of a window of that width changes, if nothing more comes.
    #[must_use]
    pub fn next_change(&self, end: Slot, width_slots: u32) -> Option<Slot> {
        let leaves = self.next_entry(end.back(width_slots)).map(|slot| Slot(slot.0.saturating_add(width_slots)));
        leaves.into_iter().chain(self.next_entry(end)).min()
    }

    /// The last slot up to `end` that holds a bad request.
    #[must_use]
    pub fn last_bad(&self, end: Slot) -> Option<Slot> {
        let (Ok(upto) | Err(upto)) = self.place((end.0 / BLOCK).saturating_add(1));
        let found = self.blocks[..upto].iter().rev().find_map(|block| {
            let kept = if block.number == end.0 / BLOCK { u64::MAX >> (BLOCK - 1 - end.0 % BLOCK) } else { u64::MAX };
            let left = block.bad & kept;
            (left != 0).then(|| block.slot(BLOCK - 1 - left.leading_zeros()))
        });
        found.filter(|slot| *slot >= self.forgotten_to)
    }

    /// Forgets slots that no window of that width can see any more.
    pub fn forget(&mut self, end: Slot, width_slots: u32) {
        self.forgotten_to = self.forgotten_to.max(end.back(width_slots.saturating_sub(1)));
        let whole = self.blocks.iter().take_while(|b| b.number < self.forgotten_to.0 / BLOCK).count();
        // All others move: not for each block by itself.
        if whole >= FORGOTTEN_AT_ONCE {
            self.blocks.drain(..whole);
        }
    }

    /// Bytes on the heap, about: what they were asked for, and 16 for each piece.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |block: &Block| block.counts.bytes() + size_of::<Counts>() + 16 + 2 * 16;
        self.blocks.capacity() * size_of::<Block>() + self.blocks.iter().map(of).sum::<usize>()
    }

    /// Bytes of its own that a copy takes.
    #[must_use]
    pub fn bytes_of_a_copy(&self) -> usize {
        self.blocks.len() * size_of::<Block>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(total: u64, bad: u64) -> Sum {
        Sum::plain(total, bad)
    }

    proptest! {
        #[test]
        fn windows_equal_adding_up_the_slots(
            adds in prop::collection::vec((prop_oneof![1u32..200, 5_000u32..5_200], 0u64..5, 0u64..3, prop_oneof![8 => Just(1u64), 1 => Just(30_000u64), 1 => Just(u64::from(u32::MAX))], 1u64..3), 0..60),
            end in prop_oneof![1u32..220, 4_990u32..5_220], width in prop_oneof![1u32..220, Just(5_000u32)], forget in 0u32..5_220,
        ) {
            let mut sums = Sums::default();
            let of = |(_, good, bad, times, weight): &(u32, u64, u64, u64, u64)| {
                let plain = sum((good + bad) * times, bad * times);
                let weighted = |t: Tally| Tally { weight: t.weight * weight, ..t };
                // Few are weighted.
                if *times == 30_000 { Sum { total: weighted(plain.total), bad: weighted(plain.bad) } } else { plain }
            };
            for add in &adds { sums.add(Slot(add.0), of(add)); }
            let naive = |end: u32| adds.iter().filter(|a| a.0 <= end && a.0 + width > end).fold(Sum::default(), |s, a| s + of(a));
            prop_assert_eq!(sums.window(Slot(end), width), naive(end));
            let changes = |e: u32| adds.iter().any(|a| a.0 == e || (a.0 + width == e && a.0 > end.saturating_sub(width)));
            prop_assert_eq!(sums.next_change(Slot(end), width), (end + 1..10_500).find(|e| changes(*e)).map(Slot));
            let bad = |a: &&(u32, u64, u64, u64, u64)| a.2 > 0;
            prop_assert_eq!(sums.last_bad(Slot(end)), adds.iter().filter(bad).filter(|a| a.0 <= end).map(|a| Slot(a.0)).max());
            prop_assert_eq!(sums.next_bad(Slot(end)), adds.iter().filter(bad).filter(|a| a.0 > end).map(|a| Slot(a.0)).min());
            prop_assert_eq!(sums.after(Slot(end)), adds.iter().filter(|a| a.0 > end).fold(Sum::default(), |s, a| s + of(a)));
            let copy = sums.clone();
            sums.add(Slot(end), sum(1, 1));
            prop_assert_eq!(copy.window(Slot(end), width), naive(end), "a copy does not change with what it was made of");
            let kept: Sums = postcard::from_bytes(&postcard::to_stdvec(&copy).unwrap()).unwrap();
            prop_assert_eq!(&kept, &copy);
            sums = kept;
            sums.forget(Slot(forget), width);
            if end >= forget { prop_assert_eq!(sums.window(Slot(end), width), naive(end)); }
        }
    }

    /// Three days, the longest of the usual windows, busy at every slot; forty requests a slot, now and then a bad one.
    #[test]
    fn a_rule_that_is_busy_at_every_slot_takes_little() {
        let mut sums = Sums::default();
        for slot in 0..40_000 {
            if sums.add(Slot(slot), sum(40, u64::from(slot % 9 == 0))) {
                sums.forget(Slot(slot), 25_920);
            }
        }
        let written = postcard::to_stdvec(&sums).unwrap().len();
        println!("1,000 busy rules: {} MB, a copy {} MB more, {} MB in a snapshot", sums.bytes() / 1_000, sums.bytes_of_a_copy() / 1_000, written / 1_000);
        assert!(sums.bytes() < 210_000 && sums.bytes_of_a_copy() < 30_000, "{} {}", sums.bytes(), sums.bytes_of_a_copy());
    }
}
