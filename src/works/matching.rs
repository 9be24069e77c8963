//! Which of the work that went in has come out, by counts alone: the most that can be in time, the rest from the oldest.
//!
//! Counts do not say which unit came out. The reading is the kindest one: a unit that comes out is, if it can be, one that is still in time (the oldest of
//! those), else one that is overdue. So lost units do not make later ones look late for ever, and a pile that drains is seen to drain. While nothing is
//! wrong the newest overdue unit comes out first (it is a little late); in trouble the oldest since the trouble began, as in a queue. What comes out with
//! nothing waiting is kept for `EARLY` buckets, as hosts disagree about the time, and is then surplus.
//!
//! # Source
//! Earliest deadline first matches the greatest number of units to their windows (Glover, Maximum matching in a convex bipartite graph, Naval Research
//! Logistics Quarterly 14, 1967); the curves of cumulative arrivals and departures are those of Newell, Applications of Queueing Theory, 1982, chapter 1.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Buckets for which work that came out too early waits for its counterpart.
const EARLY: u32 = 6;
/// So many old buckets are merged into one.
const BLOCK: u32 = 90;
/// Old buckets that are held at most: a week at the finest step.
pub const HELD: u32 = 60_480;

/// Work of one bucket of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Went in.
    pub went_in: u64,
    /// Of these, came out by now.
    pub came_out: u64,
}

impl Tally {
    /// What did not come out.
    #[must_use]
    pub fn waiting(self) -> u64 {
        self.went_in.saturating_sub(self.came_out)
    }

    /// Both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { went_in: self.went_in.saturating_add(other.went_in), came_out: self.came_out.saturating_add(other.came_out) }
    }
}

/// Tallies by the bucket in which the work went in. Old ones may be merged: the first bucket of a block then stands for those after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tallies {
    of: BTreeMap<u32, Tally>,
    /// Those of them in which something waits.
    open: BTreeSet<u32>,
    /// Buckets before it are merged.
    merged_to: u32,
    /// Work that was given up.
    lost: u64,
}

impl Tallies {
    fn place(&self, bucket: u32) -> u32 {
        if bucket >= self.merged_to || self.of.contains_key(&bucket) {
            return bucket;
        }
        let merged = self.of.range(..bucket).next_back().map(|(at, _)| *at);
        merged.filter(|at| at / BLOCK == bucket / BLOCK).unwrap_or(bucket)
    }

    fn set(&mut self, place: u32, tally: Tally) {
        if tally.waiting() > 0 {
            self.open.insert(place);
        } else {
            self.open.remove(&place);
        }
        if tally.went_in == 0 {
            self.of.remove(&place);
        } else {
            self.of.insert(place, tally);
        }
    }

    /// Work goes in, some of which has come out.
    pub fn add(&mut self, bucket: u32, work: Tally) {
        let place = self.place(bucket);
        self.set(place, self.at(place).plus(work));
    }

    /// A unit begins or ends in a bucket (or, by -1, did so in another one).
    pub fn change(&mut self, bucket: u32, begun: i8, ended: i8) {
        let place = self.place(bucket);
        let tally = self.at(place);
        let went_in = tally.went_in.saturating_add_signed(begun.into());
        self.set(place, Tally { went_in, came_out: tally.came_out.saturating_add_signed(ended.into()).min(went_in) });
    }

    /// Up to `work` units of a bucket come out; how many did.
    fn take(&mut self, place: u32, work: u64) -> u64 {
        let tally = self.at(place);
        let taken = work.min(tally.waiting());
        self.set(place, Tally { came_out: tally.came_out + taken, ..tally });
        taken
    }

    fn at(&self, place: u32) -> Tally {
        self.of.get(&place).copied().unwrap_or_default()
    }

    /// Lets go of buckets before `to`; those from `held` on are merged and held, for at most [`HELD`] buckets.
    pub fn forget(&mut self, to: u32, held: Option<u32>) {
        let merged_to = self.merged_to;
        self.merged_to = merged_to.max(to);
        let limit = held.unwrap_or(to).max(to.saturating_sub(HELD));
        while let Some((bucket, tally)) = self.of.first_key_value().map(|(b, t)| (*b, *t)).filter(|(b, _)| *b < limit.min(to)) {
            self.lost = self.lost.saturating_add(tally.waiting());
            self.set(bucket, Tally::default());
        }
        let old: Vec<(u32, Tally)> = self.of.range((merged_to - merged_to % BLOCK).min(to)..to).map(|(b, t)| (*b, *t)).collect();
        for (bucket, tally) in old {
            self.set(bucket, Tally::default());
            self.add(bucket, tally);
        }
    }

    /// Those in `[from, to)`, in order.
    #[must_use]
    pub fn range(&self, from: u32, to: u32) -> impl DoubleEndedIterator<Item = (u32, Tally)> {
        self.of.range(from.min(to)..to).map(|(bucket, tally)| (*bucket, *tally))
    }

    /// All in `[from, to)` together.
    #[must_use]
    pub fn sum(&self, from: u32, to: u32) -> Tally {
        self.range(from, to).fold(Tally::default(), |sum, (_, t)| sum.plus(t))
    }

    /// The first bucket in `[from, to)` in which something waits.
    #[must_use]
    pub fn first_waiting(&self, from: u32, to: u32) -> Option<u32> {
        self.open.range(from.min(to)..to).next().copied()
    }

    /// What waits in `[from, to)`.
    #[must_use]
    pub fn waiting(&self, from: u32, to: u32) -> u64 {
        self.open.range(from.min(to)..to).fold(0, |sum, b| sum.saturating_add(self.at(*b).waiting()))
    }

    /// Work that was given up.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// The curves of work in and out, matched up to a bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Matching {
    /// What came of the work of each bucket.
    pub tallies: Tallies,
    /// What came out with nothing waiting.
    early: BTreeMap<u32, u64>,
    surplus: u64,
}

impl Matching {
    /// Takes in the work of the next bucket. What went in up to `reach` buckets before may still be in time; `trouble` is the bucket since which
    /// work does not come out as it should.
    pub fn step(&mut self, bucket: u32, work: Tally, reach: u32, trouble: Option<u32>) {
        while let Some(old) = self.early.first_entry().filter(|e| *e.key() < bucket.saturating_sub(EARLY)) {
            self.surplus = self.surplus.saturating_add(old.remove());
        }
        let mut matched = 0;
        while let Some(mut early) = self.early.first_entry().filter(|_| matched < work.went_in) {
            let taken = (work.went_in - matched).min(*early.get());
            matched += taken;
            *early.get_mut() -= taken;
            if *early.get() == 0 {
                early.remove();
            }
        }
        self.tallies.add(bucket, Tally { went_in: work.went_in, came_out: matched });
        let fresh = bucket.saturating_sub(reach);
        let mut left = work.came_out;
        while left > 0 {
            let Some(place) = self.next_out(fresh, bucket + 1, trouble) else { break };
            left -= self.tallies.take(place, left);
        }
        if left > 0 {
            *self.early.entry(bucket).or_default() += left;
        }
    }

    fn next_out(&self, fresh: u32, end: u32, trouble: Option<u32>) -> Option<u32> {
        let in_time = self.tallies.first_waiting(fresh, end);
        let oldest = || self.tallies.first_waiting(trouble?, fresh);
        in_time.or_else(oldest).or_else(|| self.tallies.open.range(..fresh).next_back().copied())
    }

    /// What came out though nothing had gone in.
    #[must_use]
    pub fn surplus(&self) -> u64 {
        self.surplus
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn work(went_in: u64, came_out: u64) -> Tally {
        Tally { went_in, came_out }
    }

    fn run(steps: &[(u64, u64)], reach: u32, trouble: Option<u32>) -> Matching {
        let mut matching = Matching::default();
        for (bucket, (i, o)) in (0..).zip(steps) {
            matching.step(bucket, work(*i, *o), reach, trouble);
        }
        matching
    }

    #[test]
    fn lost_work_does_not_make_later_work_late() {
        let mut steps = vec![(5, 0); 10];
        steps.extend([(5, 5); 50]);
        let matching = run(&steps, 3, None);
        // The first out could still be of the three buckets before.
        assert_eq!(matching.tallies.sum(0, 7), work(35, 0));
        assert_eq!(matching.tallies.waiting(7, 57), 0);
    }

    #[test]
    fn a_pile_that_drains_does_so_from_its_oldest_unit() {
        let mut steps = vec![(5, 0); 10];
        steps.extend([(5, 15); 2]);
        let matching = run(&steps, 0, Some(0));
        assert_eq!((matching.tallies.first_waiting(0, 99), matching.tallies.waiting(0, 99)), (Some(4), 30));
        // One that is only a little late is not that of an old loss.
        let late = run(&[(1, 0), (0, 0), (0, 0), (0, 0), (1, 0), (0, 0), (0, 1)], 1, None);
        assert_eq!(late.tallies.first_waiting(0, 99), Some(0));
    }

    #[test]
    fn what_comes_out_before_it_goes_in_waits_a_minute_and_is_then_surplus() {
        let matching = run(&[(0, 2), (0, 0), (2, 0)], 6, None);
        assert_eq!((matching.tallies.waiting(0, 99), matching.surplus()), (0, 0));
        let mut steps = vec![(0, 3)];
        steps.extend([(0, 0); 7]);
        steps.push((3, 0));
        let matching = run(&steps, 6, None);
        assert_eq!((matching.tallies.waiting(0, 99), matching.surplus()), (3, 3));
    }

    #[test]
    fn old_buckets_are_merged_and_let_go() {
        let mut tallies = Tallies::default();
        for bucket in 100..1000 {
            tallies.add(bucket, work(2, 1));
            tallies.forget(bucket.saturating_sub(50), Some(300));
        }
        assert_eq!(tallies.lost(), 200);
        assert_eq!((tallies.first_waiting(0, 2000), tallies.waiting(0, 2000)), (Some(300), 700));
        assert!(tallies.range(0, 949).count() < 10, "{tallies:?}");
        tallies.change(500, 0, 1);
        assert_eq!(tallies.sum(300, 1000), work(1400, 701));
        tallies.forget(HELD + 300 + 2 * BLOCK, Some(300));
        assert!(tallies.sum(0, u32::MAX).went_in < 1400);
    }

    proptest! {
        /// Every unit is in exactly one place.
        #[test]
        fn nothing_is_lost_or_invented(steps in prop::collection::vec((0_u64..4, 0_u64..4), 1..30), reach in 0_u32..4, trouble in prop::option::of(0_u32..30)) {
            let matching = run(&steps, reach, trouble);
            let all = matching.tallies.sum(0, 99);
            let sum = steps.iter().fold((0, 0), |s, w| (s.0 + w.0, s.1 + w.1));
            prop_assert_eq!(all.went_in, sum.0);
            prop_assert_eq!(all.came_out + matching.surplus() + matching.early.values().sum::<u64>(), sum.1);
            prop_assert_eq!(matching.tallies.waiting(0, 99), all.waiting());
            let stored = postcard::to_allocvec(&matching).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Matching>(&stored).unwrap(), matching);
        }
    }
}
