//! One endpoint under watch: before it is learnt, when it is learnt, and after.

use serde::{Deserialize, Serialize};

use super::budget::Thresholds;
use super::forecast::Forecast;
use super::reference::{LEARNING_DAYS, Part, Reference, Residuals};
use super::{BLOCK_HOURS, Finding, Memory, trend};
use crate::histogram::Histogram;
use crate::incident::Class;

/// An endpoint's reference, once there is one, and its memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Watch {
    /// The hour of its first timing.
    first_hour: Option<i64>,
    reference: Option<Reference>,
    memory: Memory,
    /// What was found of its latency, and of its traffic, and is not over.
    alarms: [Option<Alarm>; 2],
}

/// What was found and is not over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Alarm {
    /// When.
    quarter: i64,
    /// In what.
    of: Of,
    /// What it was before: a log level, or a share.
    before: f32,
    /// By how much it is more.
    change: f32,
}

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Of {
    Level,
    /// A level, and how far apart requests were before and by how much they are further.
    Apart {
        before: f32,
        change: f32,
    },
    Tail(usize),
    Traffic,
    Run,
}

/// The first byte of what was learnt: less than 128, which none of the first version's is (it began with an hour).
const LEARNT_VERSION: u8 = 2;
/// The part of a change that is left when it is over.
const OVER: f32 = 0.35;
/// A day, and the time after which a level that stays is taken as the endpoint's own, in quarters of an hour.
const DAY: i64 = 96;
const DAY_PARTS: usize = 96;
const STAYS: i64 = 28 * DAY;
/// Days over which it is asked how far apart requests are.
const SPREAD_DAYS: usize = 3;
/// Over so many days it must not have risen further than this.
const STAYED_DAYS: usize = 14;
const STAYED_MAX: f32 = 0.05;
/// The share of the usual traffic that is enough, and the requests that must be expected to say so.
const TRAFFIC_BACK: f32 = 0.75;
const TRAFFIC_MIN: f32 = 10.0;
/// The share of a run that is as good as done.
const RUN_BACK: f32 = 0.9;

impl Watch {
    /// What was learnt of it.
    #[must_use]
    pub fn reference(&self) -> Option<&Reference> {
        self.reference.as_ref()
    }

    /// What is remembered of it.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The hour of its first timing.
    #[must_use]
    pub fn first_hour(&self) -> Option<i64> {
        self.first_hour
    }

    /// Whether something found of its latency, or its traffic, is not over.
    #[must_use]
    pub fn has_alarm(&self, class: Class) -> bool {
        self.alarms[usize::from(class == Class::Traffic)].is_some()
    }

    /// What was found of its traffic is none, and may be found again.
    pub fn forget_traffic(&mut self) {
        self.alarms[1] = None;
        self.memory.traffic_may_be_found();
    }

    /// Whether traffic that was found missing is so still, by the whole hours since a quarter; `None` with too few requests to be expected of them.
    #[must_use]
    pub fn is_missing_since(&self, since: i64, quarter: i64) -> Option<bool> {
        let hours = usize::try_from((quarter + 1).div_euclid(4) - (since + 3).div_euclid(4)).unwrap_or(0).min(24);
        let (seen, expected) = self.memory.traffic_of(hours).filter(|(_, expected)| hours > 0 && *expected >= TRAFFIC_MIN)?;
        Some(self.has_alarm(Class::Traffic) && seen < TRAFFIC_BACK * expected)
    }

    /// The quarter in which it was found.
    #[must_use]
    pub fn alarm_since(&self, class: Class) -> Option<i64> {
        self.alarms[usize::from(class == Class::Traffic)].map(|a| a.quarter)
    }

    /// By how much the level of the last day is above what it was before something was found of it.
    #[must_use]
    pub fn shift(&self, class: Class) -> Option<f32> {
        let alarm = self.alarms[usize::from(class == Class::Traffic)].filter(|a| matches!(a.of, Of::Level | Of::Apart { .. }))?;
        Some(self.memory.level(96).level - alarm.before)
    }

    /// By how much further apart the requests of the last days are than before that was found of it, in log units.
    #[must_use]
    pub fn spread_shift(&self) -> Option<f32> {
        let Some(Alarm { of: Of::Apart { before, .. }, .. }) = self.alarms[0] else { return None };
        Some(self.apart()? - before)
    }

    fn apart(&self) -> Option<f32> {
        self.memory.apart(self.reference.as_ref()?, SPREAD_DAYS)
    }

    /// How far the level of the last quarters of an hour is above that of the last days; `None` with too few requests.
    #[must_use]
    pub fn change_over(&self, quarters: usize) -> Option<f32> {
        self.reference.as_ref()?;
        let (now, before) = (self.memory.level(quarters), self.memory.days_before(quarters));
        (now.n >= 3.0 && before.n >= TRAFFIC_MIN).then_some(now.level - before.level)
    }

    /// Requests of the last quarters of an hour, up to a day.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was kept in a byte")]
    pub fn requests_over(&self, quarters: usize) -> u64 {
        self.memory.level(quarters).n.round() as u64
    }

    /// Remembers what was found, to say when it is over. What is open already stays as it began.
    pub fn begun(&mut self, quarter: i64, finding: &Finding) {
        let level = |quarters: usize, change: f32| (Of::Level, self.memory.level(quarters).level - change, change);
        let (of, before, change) = match finding {
            Finding::Level(found) => level(96, found.change),
            Finding::Apart(found) => {
                let (_, before, change) = level(96, found.change);
                (Of::Apart { before: found.before, change: found.spread }, before, change)
            }
            Finding::Step(found) => level(found.quarters, found.change),
            Finding::Marked(found) => level(found.quarters(), found.change),
            Finding::Tail(found) => {
                let share = self.memory.tail_share(found.cut, found.days).unwrap_or(0.0);
                (Of::Tail(found.cut), share / found.ratio, share - share / found.ratio)
            }
            Finding::Collapse(_) => (Of::Traffic, 0.0, 0.0),
            Finding::Unfinished(_) => (Of::Run, 0.0, 0.0),
        };
        let place = usize::from(matches!(of, Of::Traffic | Of::Run));
        self.alarms[place].get_or_insert(Alarm { quarter, of, before, change });
    }

    /// What is over after this quarter of an hour, which was taken in.
    pub fn over(&mut self, quarter: i64) -> impl Iterator<Item = Class> {
        let over = self.alarms.map(|alarm| alarm.is_some_and(|a| self.is_over(quarter, a)));
        for (alarm, over) in self.alarms.iter_mut().zip(over) {
            if over {
                *alarm = None;
            }
        }
        if over[0] {
            self.memory.rise_is_over();
        }
        [Class::Latency, Class::Traffic].into_iter().zip(over).filter_map(|(class, over)| over.then_some(class))
    }

    fn is_over(&self, quarter: i64, alarm: Alarm) -> bool {
        let since = quarter - alarm.quarter;
        let back = |now: f32| now < alarm.before + OVER * alarm.change;
        let is_day = (quarter + 1).rem_euclid(DAY) == 0;
        match alarm.of {
            Of::Level if since < DAY || !is_slow_run(quarter) => false,
            Of::Level => {
                let day = self.memory.level(96);
                day.n >= TRAFFIC_MIN && back(day.level) || since >= STAYS && self.has_stayed()
            }
            Of::Apart { before, change } => {
                let together = self.apart().is_some_and(|apart| apart < before + OVER * change);
                is_day && since >= 3 * DAY && (together && back(self.memory.level(96).level) || since >= STAYS && self.has_stayed())
            }
            Of::Tail(cut) => is_day && since >= 3 * DAY && (self.memory.tail_share(cut, 3).is_some_and(back) || since >= STAYS),
            Of::Traffic if (quarter + 1).rem_euclid(4) != 0 => false,
            Of::Traffic => {
                let whole = usize::try_from(since / 4).unwrap_or(0);
                let windows = [whole.min(4), whole.min(24)].into_iter().filter(|hours| *hours > 0);
                let known = windows.filter_map(|hours| self.memory.traffic_of(hours)).find(|(_, expected)| *expected >= TRAFFIC_MIN);
                known.is_some_and(|(seen, expected)| seen >= TRAFFIC_BACK * expected)
            }
            Of::Run => is_day && since >= 4 && self.memory.done_today().is_some_and(|done| done >= RUN_BACK),
        }
    }

    /// Whether its level has not risen further for two weeks.
    fn has_stayed(&self) -> bool {
        let days = self.memory.daily_levels();
        let last = days.get(days.len().saturating_sub(STAYED_DAYS)..).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "two weeks")]
        let days = STAYED_DAYS as f32;
        trend::trend(last).is_none_or(|t| t.slope * days < STAYED_MAX)
    }

    /// Takes in a quarter of an hour that is over, counted from 1970, and says what is wrong. Each quarter comes once and in order, empty ones too.
    pub fn quarter(&mut self, thresholds: &Thresholds, quarter: i64, timings: &Histogram) -> [Option<Finding>; 2] {
        if self.first_hour.is_none() {
            if timings.is_empty() {
                return [None, None];
            }
            self.first_hour = Some(quarter.div_euclid(4));
        }
        self.memory.quarter(self.reference.as_ref(), thresholds, quarter, timings)
    }

    /// Passes over a quarter of an hour of which nothing is known.
    pub fn unknown(&mut self, quarter: i64) {
        if self.first_hour.is_some() {
            self.memory.unknown(quarter, self.reference.is_some());
        }
    }

    /// A marker was set in the running quarter of an hour.
    pub fn marker(&mut self, quarter: i64) {
        self.memory.marker(quarter);
    }

    /// The hour at whose beginning it is to be learnt, if it is not yet: a midnight after fourteen days.
    #[must_use]
    pub fn learns_at(&self) -> Option<i64> {
        let days = i64::try_from(LEARNING_DAYS).unwrap_or(i64::MAX / 24);
        self.first_hour.filter(|_| self.reference.is_none()).map(|first| (first + days * 24).div_euclid(24) * 24)
    }

    /// Learns from the quarters of an hour of its first fourteen days, the first of them `from`, and lives through them again with what it has learnt.
    /// Too few timings: it stays unlearnt, and only its traffic is watched.
    pub fn learn(&mut self, from: i64, quarters: &[Histogram]) {
        let parts: Vec<Part<'_>> = (from..).zip(quarters).map(|(quarter, timings)| Part { hour: quarter.div_euclid(4), timings }).collect();
        self.reference = Reference::learn(&parts);
        let Some(reference) = &self.reference else { return };
        let (never, mut scratch) = (Thresholds::never(), Residuals::new());
        let before = std::mem::take(&mut self.memory);
        for (passed, (quarter, timings)) in (1..).zip((from..).zip(quarters)) {
            self.memory.quarter(Some(reference), &never, quarter, timings);
            if is_slow_run(quarter) && passed >= DAY_PARTS {
                self.memory.slow(reference, &never, quarter.div_euclid(4), &parts[passed - DAY_PARTS..passed], &mut scratch);
            }
        }
        self.memory.remember_markers_of(before);
    }

    /// What was learnt, to be kept; `None` before that.
    ///
    /// # Panics
    /// Never: it is plain data.
    #[must_use]
    pub fn learnt(&self) -> Option<Vec<u8>> {
        let learnt = (LEARNT_VERSION, self.first_hour?, self.reference.as_ref()?);
        Some(postcard::to_stdvec(&learnt).expect("plain data"))
    }

    /// Goes on from what was learnt before; whether it could be read, which it cannot if another version wrote it.
    pub fn remind(&mut self, learnt: &[u8]) -> bool {
        let Some((&LEARNT_VERSION, rest)) = learnt.split_first() else { return false };
        let Ok((first_hour, reference)) = postcard::from_bytes(rest) else { return false };
        (self.first_hour, self.reference) = (Some(first_hour), Some(reference));
        true
    }

    /// The slow run, when [`is_slow_run`] says so, after the quarter was taken in: `day` are the 24 hours that end with `hour`.
    pub fn slow(&mut self, thresholds: &Thresholds, hour: i64, day: &[Part<'_>], scratch: &mut Residuals) -> Option<Finding> {
        self.memory.slow(self.reference.as_ref()?, thresholds, hour, day, scratch)
    }

    /// When p95 meets a limit, after a rise was found; the quarter was taken in.
    #[must_use]
    pub fn forecast(&self, limit_ms: f32, quarter: i64) -> Option<Forecast> {
        self.memory.forecast(self.reference.as_ref()?, limit_ms, quarter.div_euclid(4))
    }

    /// When the share of requests within a limit falls below a target, after a rise was found.
    #[must_use]
    pub fn forecast_of(&self, limit_ms: f32, target: f32, quarter: i64) -> Option<Forecast> {
        let beyond_p95 = self.reference.as_ref()?.from_p95_to(target);
        self.forecast(limit_ms * libm::expf(-beyond_p95), quarter)
    }

    /// A log level over the reference as milliseconds.
    #[must_use]
    pub fn level_ms(&self, level: f32) -> Option<f32> {
        Some(libm::expf(self.reference.as_ref()?.median + level) / 1000.0)
    }

    /// p95 of the last day in milliseconds.
    #[must_use]
    pub fn p95_ms(&self) -> Option<f32> {
        self.level_ms(self.memory.p95()? + self.reference.as_ref()?.p95_offset)
    }
}

/// Whether the slow run follows this quarter of an hour.
#[must_use]
pub fn is_slow_run(quarter: i64) -> bool {
    (quarter + 1).rem_euclid(4 * BLOCK_HOURS) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An endpoint is learnt after two weeks of eight deploys a day: the next one is not taken for the first.
    #[test]
    fn learning_forgets_no_number_of_markers() {
        let (first, never) = (20_458 * DAY, Thresholds::never());
        let mut timings = Histogram::default();
        timings.record(100_000, 6);
        let (mut watch, mut quarters) = (Watch::default(), Vec::new());
        for quarter in first.. {
            if watch.learns_at().is_some_and(|hour| hour * 4 == quarter) {
                break;
            }
            if quarter % DAY >= DAY - 8 {
                watch.marker(quarter);
            }
            watch.quarter(&never, quarter, &timings);
            quarters.push(timings.clone());
        }
        let often = watch.memory.markers.often();
        watch.learn(first, &quarters);
        assert!(watch.reference().is_some() && often > 80.0, "{often}");
        assert!((watch.memory.markers.often() - often).abs() < 1e-6 && !watch.memory.markers.are_watched());
    }
}
