//! Burn over pairs of windows, for one rule of one endpoint, and the memory that keeps an incident from flapping.
//!
//! A window looks at the slots in (end − width, end], as they are now ([`super::sums`]). A pair need not be looked at at every slot end: [`next_due`] says when it can say something
//! else if nothing more comes, and [`room`] how many good requests may come before a pair that burns can cease to.
//!
//! # Source
//! Beyer et al., The Site Reliability Workbook (2018), chapter 5, multiwindow, multi-burn-rate alerts; with a binomial test on the long window against
//! the budget itself, so that few requests wait for evidence. Clearing: the upper Clopper–Pearson limit (Clopper & Pearson 1934) of the share of bad
//! requests is under the factor.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::evidence::{Fewness, Luck, Turns, binomial_tail};
use super::sums::{Sum, Sums};
use crate::objective::{BurnWindow, PPB};
use crate::time::Slot;

/// One minus the confidence of the upper limit under which a pair clears.
const CLEAR_ALPHA: f64 = 0.05;

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

/// A pair of windows with the numbers that follow from what was promised.
#[derive(Debug)]
pub struct Pair {
    /// As configured.
    pub window: BurnWindow,
    budget_ppb: u64,
    /// The share of bad requests from which it burns.
    share: f64,
    luck: Arc<Luck>,
    fewness: Arc<Fewness>,
}

impl Pair {
    /// One for a budget; `turns` are shared by all.
    #[must_use]
    pub fn new(window: &BurnWindow, budget_ppb: u64, turns: &mut Turns) -> Self {
        let share = window.share(budget_ppb);
        let limit = share.min(1.0);
        Self { window: window.clone(), budget_ppb, share, luck: turns.luck(ratio(budget_ppb), window.alpha), fewness: turns.fewness(limit, CLEAR_ALPHA) }
    }

    fn burns(&self, sum: Sum) -> bool {
        crate::objective::reaches(self.share, sum.bad.weight, sum.total.weight)
    }

    /// Whether both burn, and luck has less than α.
    fn fires(&self, short: Sum, long: Sum) -> bool {
        self.burns(short) && self.burns(long) && self.luck.is_excluded(long.bad.observed, long.total.observed)
    }
}

/// Sums at one slot end.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    sums: &'a Sums,
    end: Slot,
    upto: Sum,
}

impl<'a> At<'a> {
    /// All that is in the slots up to and with `end`.
    #[must_use]
    pub fn new(sums: &'a Sums, end: Slot) -> Self {
        Self { sums, end, upto: sums.upto(end) }
    }

    /// With what still runs: it is in every window that ends here.
    #[must_use]
    pub fn with(self, running: Sum) -> Self {
        Self { upto: self.upto + running, ..self }
    }

    fn window(&self, width_slots: u32) -> Sum {
        self.upto - self.sums.upto(self.end.back(width_slots))
    }
}

/// A pair of windows at one slot end, as evidence.
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
    pub fn at(at: &At<'_>, pair: &Pair) -> Self {
        let (short, long) = (at.window(pair.window.short_slots), at.window(pair.window.long_slots));
        let burns = pair.burns(short) && pair.burns(long);
        let p_value = if burns { binomial_tail(long.bad.observed, long.total.observed, ratio(pair.budget_ppb)) } else { 1.0 };
        Self { long, short, burns, p_value }
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 10^9")]
fn ratio(ppb: u64) -> f64 {
    ppb as f64 / PPB as f64
}

/// What the pair remembers after this slot end. An empty or undecided short window changes nothing.
#[must_use]
pub fn step(memory: Memory, at: &At<'_>, pair: &Pair) -> Memory {
    const FIRES: Memory = Memory::Firing { clear_since: None, long_clear_since: None };
    let (window, end) = (&pair.window, at.end);
    let short = at.window(window.short_slots);
    let Memory::Firing { mut clear_since, mut long_clear_since } = memory else {
        // Most looks end here: what does not burn over the short window does not fire.
        return if pair.burns(short) && pair.fires(short, at.window(window.long_slots)) { FIRES } else { memory };
    };
    if short.total.observed == 0 {
        return memory;
    }
    let long = at.window(window.long_slots);
    if pair.fires(short, long) {
        return FIRES;
    }
    if pair.burns(long) {
        long_clear_since = None;
    } else {
        long_clear_since.get_or_insert(end);
    }
    if is_clear(at, pair) {
        clear_since.get_or_insert(end);
    } else if pair.burns(short) {
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
fn is_clear(at: &At<'_>, pair: &Pair) -> bool {
    for width in widths(&pair.window) {
        let sum = at.window(width);
        if pair.burns(sum) {
            return false;
        }
        if pair.fewness.is_sure(sum.bad.observed, sum.total.observed) {
            return true;
        }
    }
    false
}

/// How many good requests may come, whenever, before a pair that fires and has nothing else to remember can do anything but fire; `None` for any other pair. Bad ones that come
/// and good ones that leave only make it burn more; bad ones that leave are due ([`next_due`]).
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a bound, rounded down to the safe side")]
pub fn room(memory: Memory, at: &At<'_>, pair: &Pair) -> Option<u64> {
    if memory != (Memory::Firing { clear_since: None, long_clear_since: None }) {
        return None;
    }
    let (short, long) = (at.window(pair.window.short_slots), at.window(pair.window.long_slots));
    if short.total.observed == 0 || !pair.fires(short, long) {
        return None;
    }
    let burning = |sum: Sum| ((sum.bad.weight as f64 / pair.share) as u64).saturating_sub(sum.total.weight + 1);
    let without_luck = pair.luck.excluded_to(long.bad.observed).map_or(0, |to| to.saturating_sub(long.total.observed + 1));
    Some(burning(short).min(burning(long)).min(without_luck))
}

/// The first end after `end` at which a pair with [`room`] can say something else, if nothing but good requests come, and no more of them than that.
#[must_use]
pub fn next_due_with_room(at: &At<'_>, pair: &Pair) -> Option<Slot> {
    let leaving = |width| at.sums.next_bad_leaving(at.end, width);
    leaving(pair.window.short_slots).into_iter().chain(leaving(pair.window.long_slots)).min()
}

/// The first end after `end` at which the pair can say something else, if nothing more comes.
#[must_use]
pub fn next_due(memory: Memory, at: &At<'_>, pair: &Pair) -> Option<Slot> {
    let (window, sums, end) = (&pair.window, at.sums, at.end);
    let change = || sums.next_change(end, window.long_slots).into_iter().chain(sums.next_change(end, window.short_slots)).min();
    match memory {
        Memory::Idle => {
            let burning = |width| burning_by_leaving(at, width, pair);
            let both = burning(window.short_slots).and_then(|short| burning(window.long_slots).map(|long| short.max(long)));
            let due = both.and_then(|earliest| if earliest > end { Some(earliest) } else { change() });
            // Good requests alone start nothing.
            due.into_iter().chain(sums.next_bad(end)).min()
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
fn burning_by_leaving(at: &At<'_>, width_slots: u32, pair: &Pair) -> Option<Slot> {
    let edge = at.sums.upto(at.end.back(width_slots));
    let sum = at.upto - edge;
    if sum.bad.weight == 0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a bound, rounded up to the safe side")]
    let may_stay = (sum.bad.weight as f64 / pair.share) as u64 + 1;
    let must_leave = sum.total.weight.saturating_sub(may_stay);
    if must_leave == 0 {
        return Some(at.end);
    }
    at.sums.reaches(edge, must_leave).map(|slot| Slot(slot.0.saturating_add(width_slots)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::Tally;
    use crate::objective::Severity;

    fn tally(n: u64) -> Tally {
        Tally { weight: n, observed: n }
    }

    fn sum(total: u64, bad: u64) -> Sum {
        Sum { total: tally(total), bad: tally(bad) }
    }

    fn pair(factor_milli: u64, budget_ppb: u64) -> Pair {
        Pair::new(&window(factor_milli), budget_ppb, &mut Turns::default())
    }

    fn fires(sums: &Sums, end: Slot, budget_ppb: u64) -> bool {
        step(Memory::Idle, &At::new(sums, end), &pair(14_400, budget_ppb)).is_firing()
    }

    fn window(factor_milli: u64) -> BurnWindow {
        BurnWindow { long_slots: 360, short_slots: 30, factor_milli, severity: Severity::Critical, alpha: 0.001 }
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
            assert!(Look::at(&At::new(&sums, Slot(5)), &pair(14_400, 1_000_000)).burns);
            assert_eq!(super::tests::fires(&sums, Slot(5), 1_000_000), fires);
        }
    }

    #[test]
    fn weights_do_not_make_evidence() {
        let mut sums = Sums::default();
        sums.add(Slot(5), Sum { total: Tally { weight: 100, observed: 10 }, bad: Tally { weight: 10, observed: 1 } });
        assert!(!fires(&sums, Slot(5), 1_000_000));
    }

    #[test]
    fn a_pair_clears_only_after_fresh_good_requests_held_for_a_short_window() {
        let pair = pair(14_400, 10_000_000);
        let mut sums = Sums::default();
        sums.add(Slot(1000), sum(100, 100));
        let mut memory = Memory::Idle;
        let mut fired_to = None;
        for end in 1000..1400 {
            if end >= 1100 {
                sums.add(Slot(end), sum(50, 0));
            }
            memory = step(memory, &At::new(&sums, Slot(end)), &pair);
            if memory.is_firing() {
                fired_to = Some(end);
            }
        }
        assert_eq!(memory, Memory::Idle);
        assert_eq!(fired_to, Some(1129), "silence from 1000 to 1100 clears nothing; then one short window of good requests does");
    }
}
