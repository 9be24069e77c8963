//! Burn over pairs of windows, for one rule of one endpoint, and the memory that keeps an incident from flapping.
//!
//! A window looks at the slots in (end − width, end], as they are now ([`super::sums`]). A pair need not be looked at at every slot end: what leaves its windows is known, so
//! [`Ahead`] says for how long, and for how many requests to come, it surely remembers the same.
//!
//! # Source
//! Beyer et al., The Site Reliability Workbook (2018), chapter 5, multiwindow, multi-burn-rate alerts; with a binomial test on the long window against
//! the budget itself, so that few requests wait for evidence. Clearing: the upper Clopper–Pearson limit (Clopper & Pearson 1934) of the share of bad
//! requests is under the factor.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::evidence::{Fewness, Luck, Turns, binomial_tail};
use super::sums::{Sum, Sums};
use crate::counting::Tally;
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

    /// Whether the short window of a pair holds a bad request.
    #[must_use]
    pub fn has_bad(&self, pair: &Pair) -> bool {
        self.window(pair.window.short_slots).bad.weight > 0
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

/// Requests that may come, whenever, before what was said of the time to come no longer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Good ones, by weight or observed, whichever is more.
    pub good: u64,
    /// Bad ones, likewise.
    pub bad: u64,
}

impl Room {
    /// What is left of it when these have come; `None` when they are more.
    #[must_use]
    pub fn without(self, came: Sum) -> Option<Self> {
        let Sum { total, bad } = came;
        let good = (total.weight - bad.weight).max(total.observed - bad.observed);
        Some(Self { good: self.good.checked_sub(good)?, bad: self.bad.checked_sub(bad.weight.max(bad.observed))? })
    }
}

/// The slot ends from one on, for so many slots and while no more comes than there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Ahead<'a> {
    at: At<'a>,
    horizon_slots: u32,
    most_good: Tally,
    most_bad: Tally,
}

/// Between what a window's sum lies at every one of them.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The fewest bad requests with the most good ones.
    best: Sum,
    /// The most bad requests with the fewest good ones.
    worst: Sum,
}

impl Bounds {
    /// Whether no request can be in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.worst.bad.observed == 0 && self.best.total.observed == 0
    }

    /// Whether there must be a request in it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.best.bad.observed > 0 || self.worst.total.observed > self.worst.bad.observed
    }
}

impl<'a> Ahead<'a> {
    /// From a slot end on. What was counted into later slots already will come.
    #[must_use]
    pub fn new(at: At<'a>, horizon_slots: u32, room: Room) -> Self {
        let after = at.sums.after(at.end);
        let tally = |n| Tally { weight: n, observed: n };
        Self { at, horizon_slots, most_good: after.total - after.bad + tally(room.good), most_bad: after.bad + tally(room.bad) }
    }

    /// The bounds of a window.
    #[must_use]
    pub fn window(&self, width_slots: u32) -> Bounds {
        let At { sums, end, upto } = self.at;
        let edge = sums.upto(end.back(width_slots));
        let now = upto - edge;
        // What leaves by then is known.
        let stays = now - (sums.upto(Slot(end.0.saturating_add(self.horizon_slots)).back(width_slots).min(end)) - edge);
        let (least_good, most_good) = (stays.total - stays.bad, now.total - now.bad + self.most_good);
        let (least_bad, most_bad) = (stays.bad, now.bad + self.most_bad);
        Bounds { best: Sum { total: most_good + least_bad, bad: least_bad }, worst: Sum { total: least_good + most_bad, bad: most_bad } }
    }

    /// Whether a pair remembers the same at every one of these slot ends; but for the ends at which it has been clear for long enough ([`next_held`]).
    ///
    /// More bad requests, or fewer good ones, only ever turn burning and the exclusion of luck from false to true, and being clear from true to false: so it is enough to look at
    /// both bounds.
    #[must_use]
    pub fn keeps(&self, memory: Memory, pair: &Pair) -> bool {
        let (short, long) = (self.window(pair.window.short_slots), || self.window(pair.window.long_slots));
        let Memory::Firing { clear_since, long_clear_since } = memory else {
            return !pair.burns(short.worst) || !pair.fires(short.worst, long().worst);
        };
        if short.is_empty() {
            // While no request is in the short window nothing changes, though it may have been clear for long enough by now.
            return true;
        }
        let is_held = |since: Option<Slot>, slots: u32| since.is_some_and(|s| s.0 + slots <= self.at.end.0);
        if is_held(clear_since, pair.window.short_slots) || is_held(long_clear_since, pair.window.long_slots) {
            return false;
        }
        let long_keeps = if long_clear_since.is_some() { !pair.burns(long().worst) } else { pair.burns(long().best) };
        long_keeps && if clear_since.is_some() { !pair.burns(short.worst) } else { self.is_never_clear(pair) }
    }

    /// Whether [`is_clear`] is false at every one of them.
    fn is_never_clear(&self, pair: &Pair) -> bool {
        for width in widths(&pair.window) {
            let Bounds { best, .. } = self.window(width);
            if pair.burns(best) {
                return true;
            }
            if pair.fewness.is_sure(best.bad.observed, best.total.observed) {
                return false;
            }
        }
        true
    }
}

/// The first end after `end` at which a pair can have been clear for long enough.
#[must_use]
pub fn next_held(memory: Memory, end: Slot, pair: &Pair) -> Option<Slot> {
    let Memory::Firing { clear_since, long_clear_since } = memory else { return None };
    let after = |since: Option<Slot>, slots: u32| since.map(|s| Slot(s.0 + slots)).filter(|due| *due > end);
    after(clear_since, pair.window.short_slots).into_iter().chain(after(long_clear_since, pair.window.long_slots)).min()
}

/// The first end after `end` at which a window that the pair looks at has another sum, if nothing more comes.
#[must_use]
pub fn next_change(memory: Memory, at: &At<'_>, pair: &Pair) -> Option<Slot> {
    let between = widths(&pair.window).skip(1).filter(|_| memory.is_firing());
    [pair.window.short_slots, pair.window.long_slots].into_iter().chain(between).filter_map(|width| at.sums.next_change(at.end, width)).min()
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

    proptest! {
        // One in six is kept.
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        /// Whatever comes within the room, to whichever slots and in whichever order.
        #[test]
        fn what_is_kept_stays_as_it_is(
            before in prop::collection::vec((900u32..1_500, 0u64..6, 0u64..3), 0..60),
            later in prop::collection::vec((900u32..1_700, 1u32..200, any::<bool>()), 0..12),
            (short, long) in prop_oneof![Just((6u32, 36u32)), Just((30, 360)), Just((20, 21))],
            (factor_milli, budget_ppb) in prop_oneof![Just((14_400u64, 1_000_000u64)), Just((1_000, 100_000_000)), Just((3_000, 50_000_000)), Just((2_000, 400_000_000))],
            memory in prop_oneof![
                Just(Memory::Idle),
                (prop::option::of(1_400u32..1_500), prop::option::of(1_300u32..1_500))
                    .prop_map(|(short, long)| Memory::Firing { clear_since: short.map(Slot), long_clear_since: long.map(Slot) }),
            ],
            horizon_slots in 1u32..200, more in 0u64..4, running in prop_oneof![3 => Just(0u64), 1 => Just(2)],
        ) {
            let window = BurnWindow { long_slots: long, short_slots: short, factor_milli, severity: Severity::Critical, alpha: 0.01 };
            let (end, pair) = (Slot(1_500), Pair::new(&window, budget_ppb, &mut Turns::default()));
            let mut sums = Sums::default();
            for (slot, good, bad) in &before {
                sums.add(Slot(*slot), sum(good + bad, *bad));
            }
            let count = |is_bad: bool| later.iter().filter(|l| l.2 == is_bad).count() as u64;
            let room = Room { good: count(false) + more, bad: count(true) + more };
            let at = |sums: &'_ Sums, end| At::new(sums, end).with(sum(running, running)).upto;
            let here = At { sums: &sums, end, upto: at(&sums, end) };
            if !Ahead::new(here, horizon_slots, room).keeps(memory, &pair) {
                return Ok(());
            }
            for ahead in 1..=horizon_slots {
                for (slot, _, is_bad) in later.iter().filter(|l| l.1 == ahead) {
                    sums.add(Slot(*slot), sum(1, u64::from(*is_bad)));
                }
                let end = Slot(end.0 + ahead);
                if next_held(memory, Slot(1_500), &pair).is_some_and(|held| held <= end) {
                    break;
                }
                prop_assert_eq!(step(memory, &At { sums: &sums, end, upto: at(&sums, end) }, &pair), memory, "{} ahead", ahead);
            }
        }
    }

    /// Or judging would cost a look for each request again.
    #[test]
    fn what_is_far_from_changing_is_kept_for_long() {
        let (mut healthy, mut burning) = (Sums::default(), Sums::default());
        for slot in 0..2_000 {
            healthy.add(Slot(slot), sum(10, u64::from(slot % 50 == 0)));
            burning.add(Slot(slot), sum(10, 4));
        }
        let (pair, end) = (pair(14_400, 10_000_000), Slot(1_999));
        let firing = |since| Memory::Firing { clear_since: None, long_clear_since: since };
        let keeps = |sums, memory, horizon, room| Ahead::new(At::new(sums, end), horizon, room).keeps(memory, &pair);
        assert!(keeps(&healthy, Memory::Idle, 15, Room { good: 1_000_000, bad: 8 }));
        assert!(keeps(&burning, firing(None), 15, Room { good: 200, bad: 1_000_000 }));
        // As far as the next look at what may change.
        assert!(!keeps(&burning, Memory::Idle, 1, Room::default()) && !keeps(&burning, firing(Some(end)), 1, Room::default()));
        assert!(!keeps(&healthy, firing(None), 1, Room::default()) && !keeps(&burning, firing(None), 30, Room { good: 1_000_000, bad: 0 }));
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
