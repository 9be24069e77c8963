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
    /// Sorted by slot; those before `first` are forgotten and dropped now and then.
    entries: Vec<Entry>,
    first: usize,
    base: Sum,
    forgotten_to: Slot,
}

impl Sums {
    /// Counts into a slot, in any order of slots.
    pub fn add(&mut self, slot: Slot, sum: Sum) {
        if slot < self.forgotten_to {
            return;
        }
        let at = self.first + slot.0.checked_sub(1).map_or(0, |before| self.count_upto(Slot(before)));
        if self.entries.get(at).is_none_or(|e| e.slot != slot) {
            let upto = self.upto_entry(at);
            self.entries.insert(at, Entry { slot, upto });
        }
        for entry in &mut self.entries[at..] {
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

    fn live(&self) -> &[Entry] {
        &self.entries[self.first..]
    }

    /// How many live entries lie up to and with a slot.
    fn count_upto(&self, slot: Slot) -> usize {
        let live = self.live();
        // Almost every look is at the present.
        match live.last() {
            Some(last) if last.slot <= slot => live.len(),
            _ => live.partition_point(|e| e.slot <= slot),
        }
    }

    /// The sum before the entry of that index.
    fn upto_entry(&self, index: usize) -> Sum {
        if index == self.first { self.base } else { self.entries[index - 1].upto }
    }

    fn upto(&self, slot: Slot) -> Sum {
        self.upto_entry(self.first + self.count_upto(slot))
    }

    /// The first end after `end` at which the sum of a window of that width changes, if nothing more comes.
    #[must_use]
    pub fn next_change(&self, end: Slot, width_slots: u32) -> Option<Slot> {
        let leaves = self.live().get(self.count_upto(end.back(width_slots))).map(|e| Slot(e.slot.0 + width_slots));
        leaves.into_iter().chain(self.next_entry(end)).min()
    }

    /// The first slot after `end` that already holds something.
    #[must_use]
    pub fn next_entry(&self, end: Slot) -> Option<Slot> {
        self.live().get(self.count_upto(end)).map(|e| e.slot)
    }

    /// The last slot up to `end` that holds a bad request.
    #[must_use]
    pub fn last_bad(&self, end: Slot) -> Option<Slot> {
        let bad = self.upto(end).bad;
        let first_with_all = self.live().partition_point(|e| e.upto.bad.observed < bad.observed);
        (bad.observed > self.base.bad.observed).then(|| self.live().get(first_with_all).map(|e| e.slot)).flatten()
    }

    /// Forgets slots that no window of that width can see any more.
    pub fn forget(&mut self, end: Slot, width_slots: u32) {
        self.forgotten_to = self.forgotten_to.max(end.back(width_slots.saturating_sub(1)));
        while let Some(first) = self.entries.get(self.first).filter(|e| e.slot < self.forgotten_to) {
            self.base = first.upto;
            self.first += 1;
        }
        if self.first > 64 && self.first * 2 > self.entries.len() {
            self.entries.drain(..self.first);
            self.first = 0;
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

/// What the pair remembers after this slot end.
#[must_use]
pub fn look_and_step(memory: Memory, sums: &Sums, end: Slot, window: &BurnWindow, budget_ppb: u64) -> Memory {
    if memory == Memory::Idle {
        // Most looks end here: what does not burn over the short window does not fire.
        let short = sums.window(end, window.short_slots);
        if !window.burns(short.bad.weight, short.total.weight, budget_ppb) {
            return memory;
        }
    }
    step(memory, &Look::at(sums, end, window, budget_ppb), sums, end, window, budget_ppb)
}

/// What the pair remembers after this look. An empty or undecided short window changes nothing.
#[must_use]
pub fn step(memory: Memory, look: &Look, sums: &Sums, end: Slot, window: &BurnWindow, budget_ppb: u64) -> Memory {
    let Memory::Firing { mut clear_since, mut long_clear_since } = memory else {
        return if look.fires(window) { Memory::Firing { clear_since: None, long_clear_since: None } } else { memory };
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

/// The widths at which clearing is asked: the short window and its doublings, up to the long one.
fn widths(window: &BurnWindow) -> impl Iterator<Item = u32> {
    let (short, long) = (window.short_slots, window.long_slots);
    std::iter::successors(Some(short), move |width| (*width < long).then(|| width.saturating_mul(2).min(long)))
}

/// Whether the share of bad requests is surely under the factor: over the short window or, where it has too few requests to say, over the shortest doubling of
/// it that has enough.
fn is_clear(sums: &Sums, end: Slot, window: &BurnWindow, budget_ppb: u64) -> bool {
    let limit = (window.factor() * ratio(budget_ppb)).min(1.0);
    for width in widths(window) {
        let sum = sums.window(end, width);
        if window.burns(sum.bad.weight, sum.total.weight, budget_ppb) {
            return false;
        }
        if binomial_at_most(sum.bad.observed, sum.total.observed, limit) < CLEAR_ALPHA {
            return true;
        }
    }
    false
}

/// The first end after `end` at which the pair can say something else, if nothing more comes.
#[must_use]
pub fn next_due(memory: Memory, sums: &Sums, end: Slot, window: &BurnWindow, budget_ppb: u64) -> Option<Slot> {
    let change = || sums.next_change(end, window.long_slots).into_iter().chain(sums.next_change(end, window.short_slots)).min();
    match memory {
        Memory::Idle => {
            let burning = |width| burning_by_leaving(sums, end, width, window, budget_ppb);
            let both = burning(window.short_slots).and_then(|short| burning(window.long_slots).map(|long| short.max(long)));
            let due = both.and_then(|earliest| if earliest > end { Some(earliest) } else { change() });
            due.into_iter().chain(sums.next_entry(end)).min()
        }
        Memory::Firing { clear_since, long_clear_since } => {
            let after = |since: Option<Slot>, slots: u32| since.map(|s| Slot(s.0 + slots)).filter(|due| *due > end);
            let changes = widths(window).filter_map(|width| sums.next_change(end, width));
            changes.chain(after(clear_since, window.short_slots)).chain(after(long_clear_since, window.long_slots)).min()
        }
    }
}

/// A slot end before which a window cannot burn, if nothing more comes: enough requests must leave that its bad ones are the factor's share of the rest. `end` itself
/// when it burns now; `None` when it holds nothing bad.
fn burning_by_leaving(sums: &Sums, end: Slot, width_slots: u32, window: &BurnWindow, budget_ppb: u64) -> Option<Slot> {
    let sum = sums.window(end, width_slots);
    if sum.bad.weight == 0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a bound, rounded up to the safe side")]
    let may_stay = (sum.bad.weight as f64 / (window.factor() * ratio(budget_ppb))) as u64 + 1;
    let must_leave = sum.total.weight.saturating_sub(may_stay);
    if must_leave == 0 {
        return Some(end);
    }
    let edge = sums.upto(end.back(width_slots)).total.weight;
    let live = sums.live();
    let last_to_leave = live.partition_point(|e| e.upto.total.weight < edge + must_leave);
    live.get(last_to_leave).map(|e| Slot(e.slot.0 + width_slots))
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
