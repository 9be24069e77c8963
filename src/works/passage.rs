//! A declared flow: of the work that went in long enough ago, has as much come out as was promised?
//!
//! Work that has been in for at least `within` must have come out in the share `ratio`, in time or later: what comes out late counts from then on. By counts
//! the reading of [`super::matching`] decides which unit came out. Where most of the work carries keys on both sides, the keys decide instead, exactly.
//! Counts cannot tell a queue that is for ever an hour behind from one that lost an hour of work and is in time since: they are read as the latter once
//! the pile no longer drains; keys tell.
//!
//! - **Missing** from the first of the [`WINDOWS`] in which luck is excluded: P(X ≤ out | n, ratio) < α of the window.
//! - **Over** when, for a short window on end, either what came out since the trouble began keeps the promise again (it caught up), or new work surely
//!   does: P(X ≤ missing | n, half way between promise and trouble) < 0.01, on work that went in after the trouble was found, while no pile drains. What
//!   is missing then is given up; the next judgement begins with new work. So it does not flap, and a quiet hour resolves nothing.
//! - **Undecided** while even the loss of everything could be luck, with n and the n that it takes.
//!
//! All lengths are in steps of a slot; for `within` over 15 minutes the step, and with it every window, grows in proportion.
//!
//! # Source
//! The exact binomial tail as in [`crate::judge::evidence`]. α = 0.001 is for the longest window; a shorter one, which is tried more often, has the share
//! of its length (Bonferroni). A flow that loses all that it is allowed, 3 units a minute, was still called missing twice in 8 simulated days, as windows
//! slide over every clump of losses (scan statistics: Glaz, Naus & Wallenstein, 2001): a ratio is to be promised with some room. The half-way point between two hypotheses is
//! that of Wald's sequential test (Sequential Analysis, 1947).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::keys::{Keys, Missing};
use super::matching::{HELD, Matching, Tallies, Tally};
use crate::judge::evidence::{binomial_at_most, three_digits};
use crate::objective::PPB;
use crate::time::{SLOT_MS, Slot, Timestamp};

/// Windows in steps: 2, 5, 15, 30 min, 1, 3, 6 h.
pub const WINDOWS: [u32; 7] = [12, 30, 90, 180, 360, 1080, LONGEST];
/// The longest of them, and how long late counts find their place.
const LONGEST: u32 = 2160;
/// The chance that luck may have on the longest window.
pub const ALPHA: f64 = 0.001;
/// The chance that luck may have when it is over.
const OVER_ALPHA: f64 = 0.01;
/// Steps for which it must be over.
const HOLD: u32 = 30;
/// Steps of an allowance at which the step begins to grow.
const ALLOWED_STEPS: i64 = 90;
/// The longest allowance.
pub const WITHIN_MS_MAX: i64 = 7 * 86_400_000;

/// What was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// How long a unit may take, in milliseconds; at most [`WITHIN_MS_MAX`].
    pub within_ms: i64,
    /// The share that must come out, in parts per billion.
    pub ratio_ppb: u64,
}

impl Terms {
    /// Slots of a step.
    fn slots(self) -> u32 {
        u32::try_from(self.within().div_euclid(ALLOWED_STEPS * SLOT_MS + 1)).unwrap_or(0) + 1
    }

    fn within(self) -> i64 {
        self.within_ms.clamp(0, WITHIN_MS_MAX)
    }

    fn width_ms(self) -> i64 {
        i64::from(self.slots()) * SLOT_MS
    }

    fn step_of(self, at: Timestamp) -> u32 {
        Slot::containing(at).0 / self.slots()
    }

    fn start_of(self, step: u32) -> Timestamp {
        Timestamp(i64::from(step) * self.width_ms())
    }

    /// Steps up to which a unit that came out may have been in time.
    fn reach(self) -> u32 {
        u32::try_from((self.within() + self.width_ms() - 1) / self.width_ms()).unwrap_or(0)
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn ratio(self) -> f64 {
        self.ratio_ppb.min(PPB) as f64 / PPB as f64
    }
}

/// How a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// What should have come out has.
    Ok,
    /// Too little went in to say.
    Undecided,
    /// Work does not come out.
    Missing,
}

/// What is said of a flow at the end of a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it stands.
    pub state: State,
    /// Whether keys decided (else counts).
    pub by_keys: bool,
    /// The length of the window that says it most clearly, in milliseconds.
    pub window_ms: i64,
    /// Work that went in in that window, which ended `within` ago.
    pub went_in: u64,
    /// Of this, what came out by now.
    pub came_out: u64,
    /// P(X ≤ `came_out` | `went_in`, ratio), three significant digits.
    pub p_value: f64,
    /// The least work from which a decision is possible at all.
    pub needed: u64,
    /// Missing: when the first unit went in of those that should have come out and did not.
    pub since: Option<Timestamp>,
    /// Work that is not out yet: in time still, or missing. By counts, losses before `since` are within the promise and left out.
    pub waiting: u64,
    /// Of this, what has been in for longer than `within`.
    pub overdue: u64,
    /// When the oldest of what waits went in; by counts, to the step.
    pub oldest_unmatched_since: Option<Timestamp>,
    /// Work that was given up: it never came out and is no longer waited for.
    pub lost: u64,
    /// What came out though nothing had gone in.
    pub surplus: u64,
    /// Keys that found no room.
    pub overflow: u64,
}

/// Work does not come out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Trouble {
    since: u32,
    found: u32,
    /// Since when it looks over.
    over: Option<Over>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Over {
    step: u32,
    /// The end of what was due then, and what of it had come out.
    due: u32,
    came_out: u64,
}

/// The newest work that was due, read in windows.
struct Look {
    window: u32,
    tally: Tally,
    p: f64,
    fires: bool,
    decides: bool,
    /// Where the deficit against the promise is greatest.
    since: Option<u32>,
}

/// A flow and what is remembered of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    terms: Terms,
    /// Work in and out by steps, from `settled_to` on.
    curve: BTreeMap<u32, Tally>,
    settled: Matching,
    settled_to: u32,
    /// All that is settled and the curve up to `live_to`, made again when something came late.
    #[serde(skip)]
    live: Option<(u32, Matching)>,
    keys: Keys,
    keyed: Tallies,
    trouble: Option<Trouble>,
    /// Judged from here on: what went in before is given up.
    floor: u32,
    lost_keys: u64,
}

impl Passage {
    /// A flow of which nothing is known yet.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            curve: BTreeMap::new(),
            settled: Matching::default(),
            settled_to: 0,
            live: None,
            keys: Keys::default(),
            keyed: Tallies::default(),
            trouble: None,
            floor: 0,
            lost_keys: 0,
        }
    }

    /// What was promised.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// `n` units went in. Counts that are older than what is retained count at its beginning.
    pub fn count_in(&mut self, slot: Slot, n: u64) {
        self.count(slot, Tally { went_in: n, came_out: 0 });
    }

    /// `n` units came out, likewise.
    pub fn count_out(&mut self, slot: Slot, n: u64) {
        self.count(slot, Tally { went_in: 0, came_out: n });
    }

    fn count(&mut self, slot: Slot, work: Tally) {
        if work == Tally::default() {
            return;
        }
        let step = (slot.0 / self.terms.slots()).max(self.settled_to);
        let sum = self.curve.entry(step).or_default();
        *sum = sum.plus(work);
        self.live.take_if(|(to, _)| step < *to);
        // A curve without a judge has a limit, too.
        while self.curve.len() > 2 * LONGEST as usize {
            let to = self.settled_to.max(self.curve.keys().next().map_or(0, |s| s + 1));
            self.settle(to);
            self.settled.tallies.forget(to.saturating_sub(LONGEST), self.trouble_since());
            self.live = None;
        }
    }

    /// The unit `key` went in.
    pub fn start(&mut self, key: &str, at: Timestamp) {
        let (keys, keyed, terms) = (&mut self.keys, &mut self.keyed, self.terms);
        keys.start(key, at, |c| keyed.change(terms.step_of(c.started), c.begun, c.ended));
    }

    /// The unit `key` came out.
    pub fn end(&mut self, key: &str, at: Timestamp) {
        let (keys, keyed, terms) = (&mut self.keys, &mut self.keyed, self.terms);
        keys.end(key, at, |c| keyed.change(terms.step_of(c.started), c.begun, c.ended));
    }

    /// The keys that have been in for longer than `within` at the end of a slot, whatever the verdict; the oldest first.
    #[must_use]
    pub fn missing_keys(&self, end: Slot) -> Missing {
        self.keys.missing(Timestamp(i64::MIN), self.due_before(end))
    }

    /// The last start that has been in for longer than `within`.
    fn due_before(&self, end: Slot) -> Timestamp {
        end.end().plus_ms(-self.terms.within() - 1)
    }

    fn trouble_since(&self) -> Option<u32> {
        self.trouble.map(|t| t.since)
    }

    fn settle(&mut self, to: u32) {
        let (reach, trouble) = (self.terms.reach(), self.trouble_since());
        while let Some(first) = self.curve.first_entry().filter(|e| *e.key() < to) {
            let (step, work) = first.remove_entry();
            self.settled.step(step, work, reach, trouble);
        }
        self.settled_to = self.settled_to.max(to);
    }

    /// Steps that have ended are matched; what is too old is let go.
    fn advance(&mut self, now: u32, due: u32) {
        let (reach, trouble) = (self.terms.reach(), self.trouble_since());
        let horizon = due.saturating_sub(LONGEST);
        self.settle(horizon);
        self.settled.tallies.forget(horizon, trouble);
        let (from, mut live) = self.live.take().unwrap_or_else(|| (0, self.settled.clone()));
        for (step, work) in self.curve.range(from.min(now)..now) {
            live.step(*step, *work, reach, trouble);
        }
        live.tallies.forget(horizon, trouble);
        self.live = Some((now, live));
        self.keyed.forget(horizon, trouble);
        let back = |steps: u32| self.terms.start_of(now.saturating_sub(steps));
        self.lost_keys += self.keys.forget(back(HELD), back(LONGEST + reach));
    }

    /// Judges at the end of a slot.
    pub fn judge(&mut self, end: Slot) -> Verdict {
        // A step counts when it has ended, and is due when all of it has been in long enough.
        let now = end.next().0 / self.terms.slots();
        let due = u32::try_from((end.end().0 - self.terms.within()) / self.terms.width_ms()).unwrap_or(0);
        self.advance(now, due);
        let by_keys = self.keys_decide(due);
        let mut look = self.look(self.tallies(by_keys), due);
        if let Some(trouble) = self.trouble {
            self.trouble = Some(Trouble { over: self.is_over(trouble, by_keys, now, due), ..trouble });
            if self.resolve(now) {
                look = self.look(self.tallies(by_keys), due);
            }
        } else if look.fires {
            self.trouble = Some(Trouble { since: look.since.unwrap_or(due), found: now, over: None });
            // In trouble the oldest comes out first: said of all that is retained.
            self.live = None;
            self.advance(now, due);
        }
        self.verdict(end, by_keys, due, &look)
    }

    fn tallies(&self, by_keys: bool) -> &Tallies {
        if by_keys { &self.keyed } else { self.live.as_ref().map_or(&self.settled.tallies, |(_, m)| &m.tallies) }
    }

    /// Whether at least half of what went in, and of what came out, carried keys that are known on both sides.
    fn keys_decide(&self, due: u32) -> bool {
        let from = due.saturating_sub(LONGEST).max(self.floor);
        let (keyed, counted) = (self.keyed.sum(from, u32::MAX), self.tallies(false).sum(from, u32::MAX));
        keyed.went_in > 0 && keyed.went_in >= counted.went_in.div_ceil(2) && keyed.came_out >= counted.came_out / 2
    }

    fn look(&self, tallies: &Tallies, due: u32) -> Look {
        let (ratio, ratio_ppb) = (self.terms.ratio(), i128::from(self.terms.ratio_ppb.min(PPB)));
        let (mut seen, mut deficit, mut since) = (Tally::default(), 0_i128, None);
        let mut best = Look { window: LONGEST, tally: seen, p: 1.0, fires: false, decides: false, since: None };
        let (mut steps, mut best_share) = (tallies.range(self.floor, due).rev().peekable(), f64::INFINITY);
        for window in WINDOWS {
            while let Some((step, tally)) = steps.next_if(|(step, _)| *step >= due.saturating_sub(window)) {
                seen = seen.plus(tally);
                let now = i128::from(seen.went_in) * ratio_ppb - i128::from(seen.came_out) * i128::from(PPB);
                if now > deficit && tally.waiting() > 0 {
                    (deficit, since) = (now, Some(step));
                }
            }
            let alpha = ALPHA * f64::from(window) / f64::from(LONGEST);
            let p = binomial_at_most(seen.came_out, seen.went_in, ratio);
            best.decides |= binomial_at_most(0, seen.went_in, ratio) < alpha;
            best.fires |= p < alpha;
            // Of windows that say nothing, the longest.
            if p / alpha < best_share || p >= 1.0 && best.p >= 1.0 {
                best_share = p / alpha;
                best = Look { window, tally: seen, p, ..best };
            }
        }
        Look { since, ..best }
    }

    /// Since when the trouble looks over, if it does now.
    fn is_over(&self, trouble: Trouble, by_keys: bool, now: u32, due: u32) -> Option<Over> {
        let tallies = self.tallies(by_keys);
        let all = tallies.sum(trouble.since, due);
        let kept =
            |tally: Tally| u128::from(tally.waiting()) * u128::from(PPB) <= u128::from(tally.went_in) * u128::from(PPB.saturating_sub(self.terms.ratio_ppb));
        let fresh = Over { step: now, due, came_out: tallies.sum(trouble.since, due).came_out };
        if kept(all) {
            return Some(trouble.over.unwrap_or(fresh));
        }
        if !self.new_work_is_in_time(tallies, trouble, all, due) {
            return None;
        }
        let over = trouble.over.unwrap_or(fresh);
        let drained = tallies.sum(trouble.since, over.due).came_out.saturating_sub(over.came_out);
        let new = tallies.sum(over.due, due).went_in;
        // While a pile drains, new work may stand behind it.
        if drained > new / 20 { Some(fresh) } else { Some(over) }
    }

    fn new_work_is_in_time(&self, tallies: &Tallies, trouble: Trouble, all: Tally, due: u32) -> bool {
        let share = |tally: Tally| share_of(tally.waiting(), tally.went_in);
        let half_way = f64::midpoint(share(all), 1.0 - self.terms.ratio());
        let (mut seen, mut tried) = (Tally::default(), 0);
        tallies.range(trouble.found, due).rev().any(|(_, tally)| {
            seen = seen.plus(tally);
            // Luck hardly changes with a tenth more work.
            if share(seen) >= half_way || seen.went_in < tried + tried / 10 + 1 {
                return false;
            }
            tried = seen.went_in;
            binomial_at_most(seen.waiting(), seen.went_in, half_way) < OVER_ALPHA
        })
    }

    /// Ends the trouble if it has looked over for long enough.
    fn resolve(&mut self, now: u32) -> bool {
        let Some(over) = self.trouble.and_then(|t| t.over).filter(|o| now >= o.step + HOLD) else { return false };
        if let Some((to, live)) = self.live.take() {
            self.curve = self.curve.split_off(&to);
            (self.settled, self.settled_to) = (live, self.settled_to.max(to));
        }
        self.trouble = None;
        self.floor = over.due;
        self.settled.tallies.forget(self.floor, None);
        self.live = Some((now, self.settled.clone()));
        true
    }

    fn verdict(&self, end: Slot, by_keys: bool, due: u32, look: &Look) -> Verdict {
        let tallies = self.tallies(by_keys);
        let since = self.trouble_since();
        let from = since.or(look.since).unwrap_or(due).min(due);
        let (waiting, overdue, oldest) = if by_keys {
            (self.keys.open(), self.keys.missing_count(Timestamp(i64::MIN), self.due_before(end)), self.keys.oldest())
        } else {
            let oldest = tallies.first_waiting(from, u32::MAX).map(|step| self.terms.start_of(step));
            (tallies.waiting(from, u32::MAX), tallies.waiting(from, due), oldest)
        };
        let state = match (self.trouble.is_some(), look.decides) {
            (true, _) => State::Missing,
            (false, true) => State::Ok,
            (false, false) => State::Undecided,
        };
        Verdict {
            state,
            by_keys,
            window_ms: i64::from(look.window) * self.terms.width_ms(),
            went_in: look.tally.went_in,
            came_out: look.tally.came_out,
            p_value: three_digits(look.p),
            needed: needed(self.terms.ratio()),
            since: since.map(|step| self.terms.start_of(step)),
            waiting,
            overdue,
            oldest_unmatched_since: oldest,
            lost: if by_keys { self.lost_keys } else { tallies.lost() },
            surplus: self.live.as_ref().map_or(0, |(_, m)| m.surplus()),
            overflow: self.keys.overflow(),
        }
    }
}

/// The least n with (1 − ratio)^n < α.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn needed(ratio: f64) -> u64 {
    (libm::floor(libm::log(ALPHA) / libm::log1p(-ratio)) as u64).saturating_add(1)
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn share_of(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

#[cfg(test)]
#[path = "passage_tests.rs"]
mod tests;
