//! Counts of frames that were taken in and are not in memory's cells yet: gathered, then counted together, some endpoints at a time.
//!
//! Finding an endpoint's cell in memory is most of what counting costs, and an endpoint that many frames counted is found once. So frames are gathered to a load;
//! while the next load gathers, this one is counted block by block, as much of it with each frame as the frame is of a load. No answer waits for more than that,
//! and whoever reads the cells has everything counted first, in parts ([`Gathered::count_part`]) where there is time until then.

use super::counts::{Cells, Counted, Counts};
use super::open_slots::BLOCK;
use crate::endpoint::EndpointId;
use crate::time::Slot;

/// A load, in bytes of counts: up to a hundred thousand timings. Two of them are there at most, and counting both takes 10 ms with very many endpoints.
const LOAD_BYTES: usize = 256 << 10;

/// The least that a part is, in bytes of counts: about a millisecond's work with very many endpoints.
const PART_BYTES: usize = 32 << 10;

/// What a frame takes beside its counts.
const FRAME_BYTES: usize = 256;

/// See the module.
#[derive(Debug)]
pub struct Gathered {
    load_bytes: usize,
    frames: Vec<Counts>,
    bytes: usize,
    /// Of the last frame.
    last_bytes: usize,
    load: Load,
}

impl Default for Gathered {
    fn default() -> Self {
        Self { load_bytes: LOAD_BYTES, frames: Vec::new(), bytes: 0, last_bytes: 0, load: Load::default() }
    }
}

/// What is being counted.
#[derive(Debug, Default)]
struct Load {
    frames: Vec<Counts>,
    /// The groups of all frames by slot, each with its frame; what was visited is gone.
    groups: Vec<(usize, Cells)>,
    bytes: usize,
    counted_bytes: usize,
    buckets: Vec<(u16, u64)>,
}

/// The counts of one slot and of endpoints of one block.
#[derive(Debug)]
pub struct Block<'a> {
    /// Which slot.
    pub slot: Slot,
    /// The first endpoint of the block.
    pub first: EndpointId,
    frames: &'a [Counts],
    groups: &'a mut [(usize, Cells)],
    buckets: &'a mut Vec<(u16, u64)>,
    counted_bytes: &'a mut usize,
}

impl Block<'_> {
    /// Visits all of them.
    pub fn for_each(self, mut visit: impl FnMut(EndpointId, &Counted<'_>)) {
        let end = u64::from(self.first.0) + u64::from(BLOCK);
        for (frame, cells) in self.groups {
            *self.counted_bytes += cells.visit_below(&self.frames[*frame], end, self.buckets, &mut |id, counted| visit(id, &counted));
        }
    }
}

impl Gathered {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.load.groups.is_empty()
    }

    /// Adds the counts of a frame, and counts as much as is due for it.
    pub fn add(&mut self, counts: Counts, mut count: impl FnMut(Block<'_>)) {
        if counts.is_empty() {
            return;
        }
        self.bytes += counts.bytes().len() + FRAME_BYTES;
        self.last_bytes = counts.bytes().len();
        self.frames.push(counts);
        let due = self.load.bytes.saturating_mul(self.bytes.min(self.load_bytes)) / self.load_bytes;
        while self.load.counted_bytes < due && self.load.step(&mut count) {}
        if self.bytes >= self.load_bytes {
            self.load.all(&mut count);
            self.load_up();
        }
    }

    /// Counts everything.
    pub fn count_all(&mut self, mut count: impl FnMut(Block<'_>)) {
        self.load.all(&mut count);
        if !self.frames.is_empty() {
            self.load_up();
            self.load.all(&mut count);
            self.load.frames.clear();
        }
    }

    /// Counts a part, and more than the last frame brought, so that an end is in sight when one comes between two parts; whether nothing is left.
    pub fn count_part(&mut self, mut count: impl FnMut(Block<'_>)) -> bool {
        let mut left = PART_BYTES + 2 * self.last_bytes;
        loop {
            let before = self.load.counted_bytes;
            if self.load.step(&mut count) {
                left = left.saturating_sub(self.load.counted_bytes - before);
                if left == 0 {
                    return self.is_empty();
                }
            } else if self.frames.is_empty() {
                return true;
            } else {
                self.load_up();
            }
        }
    }

    fn load_up(&mut self) {
        self.load.fill(&mut self.frames);
        self.bytes = 0;
    }
}

impl Load {
    /// Takes frames on, when everything is counted; its lists keep their room, because a replay has a frame for each slot.
    fn fill(&mut self, frames: &mut Vec<Counts>) {
        self.frames.clear();
        self.frames.append(frames);
        self.groups.extend(self.frames.iter().enumerate().flat_map(|(n, counts)| counts.groups().map(move |cells| (n, cells))));
        self.groups.sort_by_key(|(_, cells)| cells.slot);
        self.bytes = self.frames.iter().map(|counts| counts.bytes().len()).sum();
        self.counted_bytes = 0;
    }

    fn all(&mut self, count: &mut impl FnMut(Block<'_>)) {
        while self.step(count) {}
    }

    /// Counts the next block of endpoints, slot by slot; `false` when there is none.
    fn step(&mut self, count: &mut impl FnMut(Block<'_>)) -> bool {
        let Some(next) = self.groups.iter().filter_map(|(_, cells)| cells.next()).min() else { return false };
        let first = EndpointId(next.0 / BLOCK * BLOCK);
        let has_some = |cells: &Cells| cells.next().is_some_and(|id| id.0 - first.0 < BLOCK);
        for groups in self.groups.chunk_by_mut(|a, b| a.1.slot == b.1.slot) {
            if groups.iter().any(|(_, cells)| has_some(cells)) {
                let (buckets, counted_bytes) = (&mut self.buckets, &mut self.counted_bytes);
                count(Block { slot: groups[0].1.slot, first, frames: &self.frames, groups, buckets, counted_bytes });
            }
        }
        self.groups.retain(|(_, cells)| cells.next().is_some());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::Outcome;
    use crate::history::counts::Writer;
    use proptest::prelude::*;

    #[test]
    fn a_part_is_a_part_however_much_has_passed_and_the_parts_come_to_an_end() {
        let frame = || {
            let mut writer = Writer::default();
            for id in 0..1_000 {
                writer.one(Slot(1), EndpointId(id * 100), Outcome::Ok, 20_000);
            }
            writer.finish()
        };
        let mut gathered = Gathered::default();
        let mut counted = 0;
        let mut count = |block: Block<'_>| block.for_each(|_, _| counted += 1);
        for _ in 0..1_000 {
            gathered.add(frame(), &mut count);
        }
        let parts = (1..100).find(|_| {
            let all = gathered.count_part(&mut count);
            gathered.add(if all { Counts::default() } else { frame() }, &mut count);
            all
        });
        assert!(parts.is_some_and(|parts| parts > 3), "{parts:?} parts");
        assert_eq!(counted, (1_000 + parts.unwrap() - 1) * 1_000);
    }

    proptest! {
        #[test]
        fn each_cell_is_counted_once_and_in_time(
            frames in prop::collection::vec(prop::collection::btree_map((0u32..3, 0u32..2_000), 0u64..1_000_000, 0..40), 1..40), load_bytes in 1usize..20_000, parts in any::<u64>(),
        ) {
            let mut gathered = Gathered { load_bytes, ..Gathered::default() };
            let (mut wanted, mut got) = (Vec::new(), Vec::new());
            let mut count = |block: Block<'_>| {
                let (slot, first) = (block.slot, block.first);
                block.for_each(|id, counted| {
                    assert!(first <= id && id.0 < first.0 + BLOCK, "{id:?} is not in the block from {first:?}");
                    got.push((slot, id, format!("{counted:?}")));
                });
            };
            for (n, cells) in frames.into_iter().enumerate() {
                let mut writer = Writer::default();
                for ((slot, id), us) in cells {
                    let (slot, id) = (Slot(100 + slot), EndpointId(id));
                    writer.one(slot, id, Outcome::Ok, us);
                    wanted.push((slot, id, format!("{:?}", Counted::One { outcome: Outcome::Ok, us })));
                }
                gathered.add(writer.finish(), &mut count);
                prop_assert!(gathered.bytes < load_bytes, "a full load is taken on");
                prop_assert!(gathered.load.groups.is_empty() || (gathered.load.counted_bytes + 1) * load_bytes >= gathered.load.bytes * gathered.bytes);
                if parts >> n & 1 == 1 {
                    prop_assert_eq!(gathered.count_part(&mut count), gathered.is_empty());
                }
            }
            gathered.count_all(&mut count);
            prop_assert!(gathered.is_empty());
            got.sort();
            wanted.sort();
            prop_assert_eq!(got, wanted);
        }
    }
}
