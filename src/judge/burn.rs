//! Burn over pairs of windows, for one rule of one endpoint: sums of slots, and the memory that keeps an incident from flapping.
//!
//! A window looks at the slots in (end − width, end], as they are now. The sums are prefix sums over the slots that hold something, so
//! that a window of any width is two binary searches and reading changes nothing.
//! The design guide had rings of 10 s, 1 min, 15 min cells instead (11 kB a rule): then a window's trailing edge is a minute or a quarter of an hour coarse, and
//! the instants at which an objective begins to burn are not those of the naive evaluator. Slots cost 40 bytes each where something happened: 0.1 MB a
//! rule at 35 requests an hour, 1 MB where every slot of three days is busy.
//!
//! # Source
//! Beyer et al., The Site Reliability Workbook (2018), chapter 5, multiwindow, multi-burn-rate alerts; with a binomial test on the long window against
//! the budget itself, so that few requests wait for evidence. Clearing: the upper Clopper–Pearson limit (Clopper & Pearson 1934) of the share of bad
//! requests is under the factor.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::evidence::{binomial_at_most, binomial_tail};
use crate::counting::Tally;
use crate::objective::{BurnWindow, PPB};
use crate::time::Slot;

/// One minus the confidence of the upper limit under which a pair clears.
const CLEAR_ALPHA: f64 = 0.05;

/// Requests and bad ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sum {
    /// All requests.
    pub total: Tally,
    /// Bad ones among them.
    pub bad: Tally,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    slot: Slot,
    /// Of everything up to and with this slot, since `base`.
    upto: Sum,
}

/// Requests per slot of one rule, for as long as its longest window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    entries: VecDeque<Entry>,
    base: Sum,
    forgotten_to: Slot,
}

impl Sums {
    /// Counts into a slot, in any order of slots.
    pub fn add(&mut self, slot: Slot, sum: Sum) {
        if slot < self.forgotten_to {
            return;
        }
        let at = self.entries.partition_point(|e| e.slot < slot);
        if self.entries.get(at).is_none_or(|e| e.slot != slot) {
            let upto = at.checked_sub(1).map_or(self.base, |before| self.entries[before].upto);
            self.entries.insert(at, Entry { slot, upto });
        }
        for entry in self.entries.range_mut(at..) {
            entry.upto.total += sum.total;
            entry.upto.bad += sum.bad;
        }
    }

    /// The sum over the slots in (end − width, end].
    #[must_use]
    pub fn window(&self, end: Slot, width_slots: u32) -> Sum {
        let (low, high) = (self.upto(end.back(width_slots)), self.upto(end));
        Sum { total: high.total - low.total, bad: high.bad - low.bad }
    }

    fn upto(&self, slot: Slot) -> Sum {
        let after = self.entries.partition_point(|e| e.slot <= slot);
        after.checked_sub(1).map_or(self.base, |last| self.entries[last].upto)
    }

    /// The first end after `end` at which the sum of a window of that width changes, if nothing more comes.
    #[must_use]
    pub fn next_change(&self, end: Slot, width_slots: u32) -> Option<Slot> {
        let leaving = self.entries.partition_point(|e| e.slot <= end.back(width_slots));
        let leaves = self.entries.get(leaving).map(|e| Slot(e.slot.0 + width_slots));
        leaves.into_iter().chain(self.next_entry(end)).min()
    }

    /// The first slot after `end` that already holds something.
    #[must_use]
    pub fn next_entry(&self, end: Slot) -> Option<Slot> {
        let entering = self.entries.partition_point(|e| e.slot <= end);
        self.entries.get(entering).map(|e| e.slot)
    }

    /// The last slot up to `end` that holds a bad request.
    #[must_use]
    pub fn last_bad(&self, end: Slot) -> Option<Slot> {
        let bad = self.upto(end).bad;
        let first_with_all = self.entries.partition_point(|e| e.upto.bad.observed < bad.observed);
        (bad.observed > self.base.bad.observed).then(|| self.entries.get(first_with_all).map(|e| e.slot)).flatten()
    }

    /// Forgets slots that no window of that width can see any more.
    pub fn forget(&mut self, end: Slot, width_slots: u32) {
        self.forgotten_to = self.forgotten_to.max(end.back(width_slots.saturating_sub(1)));
        while let Some(first) = self.entries.front().filter(|e| e.slot < self.forgotten_to) {
            self.base = first.upto;
            self.entries.pop_front();
        }
    }
}

/// What a pair of windows remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Nothing is wrong.
    #[default]
    Idle,
    /// It fires.
    Firing {
        /// Since when the short window's upper limit is under the factor.
        clear_since: Option<Slot>,
        /// Since when the long window does not burn.
        long_clear_since: Option<Slot>,
    },
}

impl Memory {
    /// Whether it fires.
    #[must_use]
    pub fn is_firing(self) -> bool {
        matches!(self, Self::Firing { .. })
    }
}

/// A pair of windows at one slot end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// The long window.
    pub long: Sum,
    /// The short window.
    pub short: Sum,
    /// Whether both burn at least at the factor.
    pub burns: bool,
    /// P(X ≥ bad | n, budget) on the long window; 1 where nothing burns.
    pub p_value: f64,
}

impl Look {
    /// Reads both windows.
    #[must_use]
    pub fn at(sums: &Sums, end: Slot, window: &BurnWindow, budget_ppb: u64) -> Self {
        let short = sums.window(end, window.short_slots);
        let long = sums.window(end, window.long_slots);
        let burns = window.burns(short.bad.weight, short.total.weight, budget_ppb) && window.burns(long.bad.weight, long.total.weight, budget_ppb);
        let p_value = if burns { binomial_tail(long.bad.observed, long.total.observed, ratio(budget_ppb)) } else { 1.0 };
        Self { long, short, burns, p_value }
    }

    /// Whether it fires: both burn, and luck has less than α.
    #[must_use]
    pub fn fires(&self, window: &BurnWindow) -> bool {
        self.burns && self.p_value < window.alpha
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 10^9")]
fn ratio(ppb: u64) -> f64 {
    ppb as f64 / PPB as f64
}

/// What the pair remembers after this slot end. An empty or undecided short window changes nothing.
#[must_use]
pub fn step(memory: Memory, look: &Look, sums: &Sums, end: Slot, window: &BurnWindow, budget_ppb: u64) -> Memory {
    let Memory::Firing { mut clear_since, mut long_clear_since } = memory else {
        return if look.fires(window) { Memory::Firing { clear_since: None, long_clear_since: None } } else { Memory::Idle };
    };
    if look.short.total.observed == 0 {
        return memory;
    }
    if look.fires(window) {
        return Memory::Firing { clear_since: None, long_clear_since: None };
    }
    if window.burns(look.long.bad.weight, look.long.total.weight, budget_ppb) {
        long_clear_since = None;
    } else {
        long_clear_since.get_or_insert(end);
    }
    if is_clear(sums, end, window, budget_ppb) {
        clear_since.get_or_insert(end);
    } else if window.burns(look.short.bad.weight, look.short.total.weight, budget_ppb) {
        clear_since = None;
    }
    let held = |since: Option<Slot>, slots: u32| since.is_some_and(|s| end.0 - s.0 >= slots);
    if held(clear_since, window.short_slots) || held(long_clear_since, window.long_slots) {
        Memory::Idle
    } else {
        Memory::Firing { clear_since, long_clear_since }
    }
}

/// Whether the share of bad requests is surely under the factor: over the short window or, where it has too few requests to say, over the shortest doubling of
/// it that has enough, up to the long window.
fn is_clear(sums: &Sums, end: Slot, window: &BurnWindow, budget_ppb: u64) -> bool {
    let limit = (window.factor() * ratio(budget_ppb)).min(1.0);
    let mut width = window.short_slots;
    loop {
        let sum = sums.window(end, width);
        if binomial_at_most(sum.bad.observed, sum.total.observed, limit) < CLEAR_ALPHA {
            return true;
        }
        if width >= window.long_slots || window.burns(sum.bad.weight, sum.total.weight, budget_ppb) {
            return false;
        }
        width = width.saturating_mul(2).min(window.long_slots);
    }
}

/// The first end after `end` at which the pair can say something else, if nothing more comes.
#[must_use]
pub fn next_due(memory: Memory, sums: &Sums, end: Slot, window: &BurnWindow) -> Option<Slot> {
    let change = || sums.next_change(end, window.long_slots).into_iter().chain(sums.next_change(end, window.short_slots)).min();
    match memory {
        // Without a bad request in the short window it cannot fire, whatever leaves.
        Memory::Idle if sums.window(end, window.short_slots).bad.observed == 0 => sums.next_entry(end),
        Memory::Idle => change(),
        Memory::Firing { clear_since, long_clear_since } => {
            let after = |since: Option<Slot>, slots: u32| since.map(|s| Slot(s.0 + slots)).filter(|due| *due > end);
            change()
                .into_iter()
                .chain(after(clear_since, window.short_slots))
                .chain(after(long_clear_since, window.long_slots))
                .min()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::Severity;
    use proptest::prelude::*;

    fn tally(n: u64) -> Tally {
        Tally { weight: n, observed: n }
    }

    fn sum(total: u64, bad: u64) -> Sum {
        Sum { total: tally(total), bad: tally(bad) }
    }

    fn window(factor_milli: u64) -> BurnWindow {
        BurnWindow { long_slots: 360, short_slots: 30, factor_milli, severity: Severity::Critical, alpha: 0.001 }
    }

    proptest! {
        #[test]
        fn windows_equal_adding_up_the_slots(adds in prop::collection::vec((1u32..200, 0u64..5, 0u64..3), 0..60), end in 1u32..220, width in 1u32..220, forget in 0u32..220) {
            let mut sums = Sums::default();
            for (slot, good, bad) in &adds { sums.add(Slot(*slot), sum(good + bad, *bad)); }
            let naive = |end: u32| adds.iter().filter(|a| a.0 <= end && a.0 + width > end).fold(sum(0, 0), |mut s, a| { s.total += tally(a.1 + a.2); s.bad += tally(a.2); s });
            prop_assert_eq!(sums.window(Slot(end), width), naive(end));
            let next = (end + 1..500).find(|e| adds.iter().any(|a| a.0 == *e || a.0 + width == *e)).map(Slot);
            prop_assert_eq!(sums.next_change(Slot(end), width), next);
            let last_bad = adds.iter().filter(|a| a.0 <= end && a.2 > 0).map(|a| Slot(a.0)).max();
            prop_assert_eq!(sums.last_bad(Slot(end)), last_bad);
            sums.forget(Slot(forget), width);
            if end >= forget { prop_assert_eq!(sums.window(Slot(end), width), naive(end)); }
        }
    }

    /// Above these counts the workbook's rule implies the evidence: 99.9 % at 14.4, 6 and 3 times.
    #[test]
    fn above_the_stated_counts_the_rule_is_that_of_the_workbook_exactly() {
        for (factor_milli, from) in [(14_400_u64, 208_u64), (6_000, 833), (3_000, 3_666)] {
            let w = window(factor_milli);
            let first_bad = |n: u64| (1..=n).find(|bad| w.burns(*bad, n, 1_000_000)).unwrap();
            for n in from + 1..from + 1500 {
                let bad = first_bad(n);
                assert!(binomial_tail(bad, n, 0.001) < 0.001, "{factor_milli} {n}");
            }
            let undecided_below = (1..=from).rev().find(|n| binomial_tail(first_bad(*n), *n, 0.001) >= 0.001);
            assert_eq!(undecided_below, Some(from), "the bound is tight");
        }
    }

    #[test]
    fn one_bad_of_ten_is_undecided_and_two_fire() {
        for (bad, fires) in [(1, false), (2, true)] {
            let mut sums = Sums::default();
            sums.add(Slot(5), sum(10, bad));
            let look = Look::at(&sums, Slot(5), &window(14_400), 1_000_000);
            assert!(look.burns);
            assert_eq!(look.fires(&window(14_400)), fires);
        }
    }

    #[test]
    fn weights_do_not_make_evidence() {
        let mut sums = Sums::default();
        sums.add(Slot(5), Sum { total: Tally { weight: 100, observed: 10 }, bad: Tally { weight: 10, observed: 1 } });
        assert!(!Look::at(&sums, Slot(5), &window(14_400), 1_000_000).fires(&window(14_400)));
    }

    #[test]
    fn a_pair_clears_only_after_fresh_good_requests_held_for_a_short_window() {
        let (w, budget) = (window(14_400), 10_000_000);
        let mut sums = Sums::default();
        sums.add(Slot(1000), sum(100, 100));
        let mut memory = Memory::Idle;
        let mut fired_to = None;
        for end in 1000..1400 {
            if end >= 1100 {
                sums.add(Slot(end), sum(50, 0));
            }
            let look = Look::at(&sums, Slot(end), &w, budget);
            memory = step(memory, &look, &sums, Slot(end), &w, budget);
            if memory.is_firing() {
                fired_to = Some(end);
            }
        }
        assert_eq!(memory, Memory::Idle);
        assert_eq!(fired_to, Some(1129), "silence from 1000 to 1100 clears nothing; then one short window of good requests does");
    }
}
