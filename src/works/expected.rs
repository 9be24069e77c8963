//! So many by a time of day: what is done since the last deadline, told at the deadline at the latest, and before it once earlier nights are known.
//!
//! **What counts for a deadline.** All work since the deadline before, so that a job which starts at 23:00 for 05:00, or one that goes on all day, counts
//! whole. One exception: if the run before fell short, work soon after its deadline is its repair (somebody ran it again), and counts for it and not for
//! the next one, which would else be met in advance. It is a repair until half-way to the next deadline, or until half an hour before any known night
//! began. An instant at the deadline itself is after it. Days are those of the zone, with 23 or 25 hours where the clocks move.
//!
//! **Short** from the deadline on, until the repair is complete or a later run is. **Behind** before it, from five nights known on, when less is done than
//! on the slowest of them were it later still ([`super::pace`]), and what is done with the pace of the last hour does not suffice, for ten minutes. A
//! first deadline within an hour of the beginning of the watch is not judged.
//!
//! **Keys.** A start announces a unit, an end completes it: listed are the units that were announced for the run and not completed. What was never
//! announced is counted and has no name.
//!
//! # Source
//! Counting, and the order statistics of [`super::pace`]; the forecast is the last hour's rate carried on to the deadline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::daily::Daily;
use super::keys::{Keys, Missing};
use super::pace::{NIGHTS_MIN, Pace};
use crate::time::{Slot, Timestamp};

/// The width in which the progress of a run is kept.
const BIN_MS: i64 = 600_000;
/// Bins whose rate is the pace.
const PACE_BINS: u16 = 6;
/// Slots for which a change of pace must hold.
const HOLD: u32 = 60;
/// How long a run must have been watched before its deadline.
const WATCHED_MS: i64 = 3_600_000;

/// What was promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// How many.
    pub count: u64,
    /// By when, each day.
    pub by: Daily,
}

impl crate::judge::ExpectedOwed {
    /// What it promises; `None` when its time or zone is none, which the configuration has checked.
    #[must_use]
    pub fn terms(&self) -> Option<Terms> {
        Some(Terms { count: self.count, by: Daily::parse(&self.by, &self.timezone).ok()? })
    }
}

/// How an expectation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All is done, and the deadline is to come.
    Met,
    /// Not all is done, and as much as usual by now.
    OnPace,
    /// Not all is done, and too little is known of earlier nights.
    Undecided,
    /// Not all will be done by the deadline.
    Behind,
    /// The deadline has passed and not all is done.
    Short,
}

/// What is said of an expectation at the end of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it stands.
    pub state: State,
    /// The deadline that this is about; it has passed when the run was short.
    pub deadline: Timestamp,
    /// Since when work counts for it.
    pub opens: Timestamp,
    /// How many there should be.
    pub expected: u64,
    /// How many there are, by the deadline.
    pub counted: u64,
    /// How many came after the deadline, as its repair.
    pub late: u64,
    /// How many there will be at the deadline, by the pace of the last hour.
    pub forecast: Option<u64>,
    /// How many there usually are by now.
    pub usual: Option<u64>,
    /// Earlier nights that this rests on.
    pub nights: u64,
    /// Units of the run that were announced and are not done.
    pub missing: u64,
    /// Work at times of which nothing is kept any more, or yet.
    pub unplaced: u64,
    /// Keys that found no room.
    pub overflow: u64,
}

/// The time from one deadline to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    opens: Timestamp,
    deadline: Timestamp,
    bins: BTreeMap<u16, u64>,
    /// What the run before was given of it.
    given: u64,
    /// Whether it was watched for long enough.
    judged: bool,
}

impl Run {
    fn new(opens: Timestamp, deadline: Timestamp, watched_from: Timestamp) -> Self {
        Self { opens, deadline, bins: BTreeMap::new(), given: 0, judged: deadline.0 - watched_from.0 >= WATCHED_MS }
    }

    fn holds(&self, at: Timestamp) -> bool {
        self.opens <= at && at < self.deadline
    }

    fn bin(&self, at: Timestamp) -> u16 {
        u16::try_from((at.0 - self.opens.0).max(0) / BIN_MS).unwrap_or(u16::MAX)
    }

    fn bin_start(&self, bin: u16) -> Timestamp {
        self.opens.plus_ms(i64::from(bin) * BIN_MS)
    }

    fn sum(&self) -> u64 {
        self.bins.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// An expectation and what is remembered of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    terms: Terms,
    before: Option<Run>,
    run: Run,
    next: Run,
    pace: Pace,
    keys: Keys,
    behind: bool,
    /// Since when the pace says otherwise.
    changing: Option<Slot>,
    unplaced: u64,
}

impl Expected {
    /// An expectation that is watched from an instant on.
    #[must_use]
    pub fn new(terms: Terms, from: Timestamp) -> Self {
        let (opens, deadline) = (terms.by.last(from), terms.by.after(from));
        let run = Run::new(opens, deadline, from);
        let next = Run::new(deadline, terms.by.after(deadline), from);
        Self { terms, before: None, run, next, pace: Pace::default(), keys: Keys::default(), behind: false, changing: None, unplaced: 0 }
    }

    /// What was promised.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// `n` units were completed. What came for the run before the last one, or is two days ahead, is counted as unplaced.
    pub fn count(&mut self, slot: Slot, n: u64) {
        let at = slot.start();
        if n == 0 {
            // A run has not begun before its first unit.
            return;
        }
        let Some(run) = self.before.iter_mut().chain([&mut self.run, &mut self.next]).find(|r| r.holds(at)) else {
            self.unplaced = self.unplaced.saturating_add(n);
            return;
        };
        let sum = run.bins.entry(run.bin(at)).or_default();
        *sum = sum.saturating_add(n);
    }

    /// A unit is announced.
    pub fn start(&mut self, key: &str, at: Timestamp) {
        self.keys.start(key, at, |_| {});
    }

    /// A unit is completed. It is not counted by this.
    pub fn end(&mut self, key: &str, at: Timestamp) {
        self.keys.end(key, at, |_| {});
    }

    /// The units that were announced for the run that the verdict is about and are not done; the oldest first.
    #[must_use]
    pub fn missing_keys(&self) -> Missing {
        let run = self.subject();
        self.keys.missing(run.opens, run.deadline.plus_ms(-1))
    }

    /// The run before while it is short and the new one not complete, else the new one.
    fn subject(&self) -> &Run {
        self.before.as_ref().filter(|b| self.is_short(b) && self.done() < self.terms.count).unwrap_or(&self.run)
    }

    fn by_deadline(run: &Run) -> u64 {
        run.sum().saturating_sub(run.given)
    }

    fn is_short(&self, before: &Run) -> bool {
        before.judged && Self::by_deadline(before).saturating_add(self.repaired()) < self.terms.count
    }

    /// What of this run's work is the repair of the one before.
    fn repaired(&self) -> u64 {
        let Some(before) = self.before.as_ref().filter(|b| b.judged) else { return 0 };
        let short = self.terms.count.saturating_sub(Self::by_deadline(before));
        let half_way = Timestamp(i64::midpoint(self.run.opens.0, self.run.deadline.0));
        let begins = self.pace.begins().map_or(half_way, |minutes| self.run.deadline.plus_ms(-60_000 * i64::from(minutes)));
        // A run that usually begins at once has no time for repairs.
        let until = self.run.bin(half_way.min(begins));
        self.run.bins.range(..until).fold(0_u64, |sum, (_, n)| sum.saturating_add(*n)).min(short)
    }

    /// What of this run is done.
    fn done(&self) -> u64 {
        self.run.sum().saturating_sub(self.repaired())
    }

    /// The deadline has passed.
    fn roll(&mut self) {
        self.run.given = self.repaired();
        if Self::by_deadline(&self.run) >= self.terms.count {
            let (run, by, mut left, mut sum) = (&self.run, &self.terms.by, self.run.given, 0_u64);
            let done = run.bins.iter().map(|(bin, n)| {
                let given = left.min(*n);
                left -= given;
                sum = sum.saturating_add(n - given);
                (by.minutes_before(run.deadline, run.bin_start(bin + 1).min(run.deadline)), sum)
            });
            self.pace.learn(self.terms.count, done);
        }
        let after = Run::new(self.next.deadline, self.terms.by.after(self.next.deadline), Timestamp(0));
        let next = std::mem::replace(&mut self.next, after);
        self.before = Some(std::mem::replace(&mut self.run, next));
        (self.behind, self.changing) = (false, None);
        let kept_from = self.before.as_ref().map_or(self.run.opens, |b| b.opens);
        self.keys.forget(kept_from, kept_from);
    }

    /// What there will be at the deadline if the pace of the last hour goes on; nothing before the run has begun.
    fn forecast(&self, now: Timestamp) -> Option<u64> {
        let done = self.done();
        let first = *self.run.bins.keys().next()?;
        let from = first.max(self.run.bin(now).saturating_sub(PACE_BINS));
        let lately = self.run.bins.range(from..).fold(0_u64, |sum, (_, n)| sum.saturating_add(*n)).min(done);
        let elapsed = (now.0 - self.run.bin_start(from).0).max(BIN_MS).unsigned_abs();
        let left = (self.run.deadline.0 - now.0).max(0).unsigned_abs();
        let more = u128::from(lately) * u128::from(left) / u128::from(elapsed);
        (done > 0).then(|| done.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)))
    }

    /// Judges at the end of a slot.
    pub fn judge(&mut self, end: Slot) -> Verdict {
        let now = end.end();
        while now >= self.run.deadline {
            self.roll();
        }
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares of a count far below 2^53")]
        let share = |of: f64| (of * self.terms.count as f64) as u64;
        let usual = self.pace.usual(self.terms.by.minutes_before(self.run.deadline, now));
        let (done, forecast) = (self.done(), self.forecast(now));
        let behind = usual.is_some_and(|u| done < share(u.least)) && forecast.unwrap_or(0) < self.terms.count;
        if behind == self.behind {
            self.changing = None;
        } else if end.0 >= self.changing.get_or_insert(end).0 + HOLD {
            (self.behind, self.changing) = (behind, None);
        }
        let subject = self.subject();
        let is_past = subject.deadline <= now;
        let state = match (is_past, done >= self.terms.count, self.behind) {
            (true, _, _) => State::Short,
            (_, true, _) => State::Met,
            (_, _, true) => State::Behind,
            _ if self.pace.nights() >= NIGHTS_MIN => State::OnPace,
            _ => State::Undecided,
        };
        Verdict {
            state,
            deadline: subject.deadline,
            opens: subject.opens,
            expected: self.terms.count,
            counted: if is_past { Self::by_deadline(subject) } else { done },
            late: if is_past { self.repaired() } else { 0 },
            forecast: if is_past { None } else { forecast.or((state == State::Behind).then_some(0)) },
            usual: usual.filter(|_| !is_past).map(|u| share(u.median)),
            nights: self.pace.nights() as u64,
            missing: self.keys.missing_count(subject.opens, subject.deadline.plus_ms(-1)),
            unplaced: self.unplaced,
            overflow: self.keys.overflow(),
        }
    }
}

#[cfg(test)]
#[path = "expected_tests.rs"]
mod tests;
