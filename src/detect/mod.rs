//! Detectors of what no threshold sees: levels that creep or step, tails that grow, traffic that collapses, work that vanishes.
//!
//! Pure: each is a function of what an endpoint was like ([`reference::Reference`], learnt once), of what is remembered of it ([`Memory`], at most
//! 2 kB) and of the newest quarter of an hour or day. Time is an argument, so that a replay says what a live run said.

pub mod budget;
pub mod fast;
pub mod fleet;
pub mod flow;
pub mod forecast;
pub mod gauge;
pub mod intervention;
pub mod marker;
pub mod packed;
pub mod quarters;
pub mod reference;
pub mod schedule;
pub mod siblings;
pub mod slow;
pub mod spread;
pub mod tail;
mod together;
mod told;
pub mod traffic;
pub mod trend;
pub mod waits;
pub mod watch;

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use budget::Thresholds;
use fast::{Cell, Mean};
use packed::{Count, Height, Level, Ratio, Ring};
use reference::{Part, Reference, Residuals, TAILS};

/// Hours of a block of the slow path.
pub const BLOCK_HOURS: i64 = 6;
/// Blocks in a day.
const DAY_BLOCKS: usize = 4;
/// Blocks that are kept.
const BLOCKS: u16 = 168;
/// Fewer requests in a day are no level, or no p95.
const DAY_REQUESTS_MIN: f32 = 10.0;
const P95_REQUESTS_MIN: f32 = 59.0;
/// A level so far below the last p95 is below the next one, as a rule.
const WELL_BELOW: f32 = 0.25;
/// Hours for which nothing more is said of an endpoint's latency, or traffic, after something was.
const LATENCY_REST_HOURS: i64 = 7 * 24;
const TRAFFIC_REST_HOURS: i64 = 48;

/// What is wrong with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The level rises, or has risen at once, seen over days.
    Level(slow::Change),
    /// Requests draw apart while the level rises.
    Apart(spread::Apart),
    /// The level has risen within hours.
    Step(fast::Step),
    /// The level has risen since a marker.
    Marked(marker::Verdict),
    /// The tail has grown, the median has not.
    Tail(tail::TailShift),
    /// Less traffic than there should be.
    Collapse(traffic::Collapse),
    /// A daily run stopped before its end.
    Unfinished(schedule::Unfinished),
}

/// What is remembered of an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    fast: fast::Fast,
    tail: tail::Tail,
    traffic: traffic::Traffic,
    markers: marker::Markers,
    schedule: schedule::Schedule,
    /// Blocks of six hours.
    blocks: Ring<Cell>,
    /// p95 of the day that ends with each block.
    p95: Ring<Height>,
    /// The running hour, likewise.
    hour: (f32, f64),
    /// The running block: requests and the sum of their levels.
    block: (f32, f64),
    /// Requests of the running hour.
    hour_requests: u32,
    /// Whether a rise was found that may go on.
    is_rising: bool,
    latency_rests_until: i64,
    traffic_rests_until: i64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            fast: fast::Fast::default(),
            tail: tail::Tail::default(),
            traffic: traffic::Traffic::default(),
            markers: marker::Markers::default(),
            schedule: schedule::Schedule::default(),
            blocks: Ring::new(BLOCKS),
            p95: Ring::new(BLOCKS),
            hour: (0.0, 0.0),
            block: (0.0, 0.0),
            hour_requests: 0,
            is_rising: false,
            latency_rests_until: 0,
            traffic_rests_until: 0,
        }
    }
}

impl Memory {
    /// Takes in a quarter of an hour, `quarter` counted from 1970, and says what is wrong.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "requests of a quarter of an hour")]
    pub fn quarter(&mut self, reference: Option<&Reference>, thresholds: &Thresholds, quarter: i64, timings: &Histogram) -> [Option<Finding>; 2] {
        let hour = quarter.div_euclid(4);
        let of_hour = quarter.rem_euclid(4);
        let done = usize::try_from(of_hour).unwrap_or(0) + 1;
        let (mut n, mut sum) = (0_u64, 0.0_f64);
        if let Some(reference) = reference {
            let season = reference.season(hour);
            let logs = reference::logs_of_buckets();
            timings.each_from(0, |bucket, count| {
                let level = (logs.of(bucket) - season).clamp(reference.clip.0, reference.clip.1) - reference.median;
                n += count;
                sum += f64::from(level) * count as f64;
            });
        } else {
            n = timings.count();
        }
        self.hour_requests += u32::try_from(n).unwrap_or(u32::MAX);
        let level = if n > 0 && reference.is_some() { Level::new((sum / n as f64) as f32) } else { Level::default() };
        self.fast.quarters.push((Count::new(n), level));
        self.hour.0 += n as f32;
        self.hour.1 += sum;
        self.block.0 += n as f32;
        self.block.1 += sum;
        let mut found = [None, None];
        if let Some(reference) = reference {
            found[0] = self.judge_fast(reference, thresholds, hour, of_hour);
        }
        let quiet = hour >= self.traffic_rests_until;
        let bounds = || if reference.is_some_and(|r| r.is_far_slower(hour, timings)) { thresholds.traffic_slower } else { thresholds.traffic };
        let collapse = self.traffic.judge(done, &self.fast.quarters, bounds);
        if let Some(c) = collapse.filter(|_| quiet) {
            self.traffic_rests_until = hour + TRAFFIC_REST_HOURS;
            found[1] = Some(Finding::Collapse(c));
        }
        if let Some(reference) = reference.filter(|_| found[0].is_none() && self.markers.are_watched()) {
            let verdict = self.markers.judge(quarter, &self.fast, &self.blocks, reference.variance, thresholds.of_marker(self.markers.often()));
            if let Some(v) = verdict.filter(|_| hour >= self.latency_rests_until) {
                self.latency_rests_until = hour + LATENCY_REST_HOURS;
                found[0] = Some(Finding::Marked(v));
            }
        }
        if done == 4 {
            let of_day = u8::try_from(hour.rem_euclid(24)).unwrap_or(0);
            if let Some(u) = self.schedule.hour(of_day, self.hour_requests)
                && hour >= self.traffic_rests_until
            {
                self.traffic_rests_until = hour + TRAFFIC_REST_HOURS;
                found[1] = Some(Finding::Unfinished(u));
            }
            self.end_hour(hour, reference.is_some());
        }
        found
    }

    /// Passes over a quarter of an hour of which nothing is known: nothing is judged or learnt, and its requests are taken to be those of the week before, so that
    /// windows that reach over it see no gap.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was kept in a byte")]
    pub fn unknown(&mut self, quarter: i64, levels: bool) {
        let of_hour = self.traffic.week_before();
        let n = (of_hour / 4.0).round();
        self.fast.quarters.push((Count::new(n as u64), Level::default()));
        self.hour_requests += n as u32;
        if quarter.rem_euclid(4) == 3 {
            self.schedule.unknown(u8::try_from(quarter.div_euclid(4).rem_euclid(24)).unwrap_or(0));
            self.end_hour(quarter.div_euclid(4), levels);
        }
        if levels && watch::is_slow_run(quarter) {
            self.p95.push(Height::default());
            if (quarter + 1).rem_euclid(96) == 0 {
                self.tail.push(tail::TailDay::default());
            }
        }
    }

    /// A marker was set during this quarter of an hour.
    pub fn marker(&mut self, quarter: i64) {
        self.markers.set(quarter, &self.fast);
    }

    /// Takes over how many markers there were; those that are watched are forgotten.
    fn remember_markers_of(&mut self, before: Self) {
        self.markers = before.markers;
        self.markers.forget_watched();
    }

    fn judge_fast(&mut self, reference: &Reference, thresholds: &Thresholds, hour: i64, of_hour: i64) -> Option<Finding> {
        let quiet = hour >= self.latency_rests_until;
        let since_block = usize::try_from(hour.rem_euclid(BLOCK_HOURS) * 4 + of_hour + 1).unwrap_or(0);
        let variance = reference.variance;
        let blocks = &self.blocks;
        // Windows that begin in the same block have the same past.
        let mut known = [None; 8];
        let before = |window: usize| {
            let skip = window.saturating_sub(since_block).div_ceil(24);
            *known[skip.min(7)].get_or_insert_with(|| before_blocks(blocks, skip, variance))
        };
        let step = self.fast.judge(of_hour, variance, quiet, before)?;
        if !quiet || step.score < thresholds.fast {
            return None;
        }
        self.latency_rests_until = hour + LATENCY_REST_HOURS;
        Some(Finding::Step(step))
    }

    fn end_hour(&mut self, hour: i64, levels: bool) {
        self.fast.hours.push(cell_of(self.hour, levels));
        self.hour = (0.0, 0.0);
        self.traffic.push_hour(Count::new(u64::from(self.hour_requests)));
        self.hour_requests = 0;
        if (hour + 1).rem_euclid(BLOCK_HOURS) == 0 {
            if levels {
                self.blocks.push(cell_of(self.block, true));
            }
            self.block = (0.0, 0.0);
        }
        if (hour + 1).rem_euclid(24) == 0 {
            let week = (hour + 1).rem_euclid(168) == 0;
            self.fast.turn_day(hour >= self.latency_rests_until, week);
            self.traffic.turn_day(hour >= self.traffic_rests_until, week);
            self.markers.turn_day();
        }
    }

    /// The slow run, after each block: `day` are the 24 hours that end now, `hour` the last of them.
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "counts of a day")]
    pub fn slow(&mut self, reference: &Reference, thresholds: &Thresholds, hour: i64, day: &[Part<'_>], scratch: &mut Residuals) -> Option<Finding> {
        let mean = self.day_mean(0);
        let ends_day = (hour + 1).rem_euclid(24) == 0;
        // But for the tail only p95 is asked for: most timings are well below it, and how many they are is enough.
        let well_below = self.p95.back(0).and_then(Height::get).map(|p95| mean + p95 - WELL_BELOW).filter(|_| !ends_day);
        reference.residuals(day, well_below, |_| 0.0, scratch);
        if well_below.is_some() && scratch.quantile(0.95).is_none() {
            reference.residuals(day, None, |_| 0.0, scratch);
        }
        let n = scratch.total() as f32;
        let p95 = if n < P95_REQUESTS_MIN { None } else { scratch.quantile(0.95) };
        self.p95.push(p95.map_or(Height::default(), |p95| Height::new(p95 - mean)));
        let weekend = reference::slot_of(hour - 12) >= 24;
        if ends_day && n < DAY_REQUESTS_MIN {
            self.tail.push(tail::TailDay { apart: Ratio::new(None, weekend), ..tail::TailDay::default() });
        } else if ends_day {
            // Hours that are slow as a whole are no tail: each block is measured from its own level.
            let off: [f32; DAY_BLOCKS] = std::array::from_fn(|ago| self.blocks.back(ago).and_then(|(_, level)| level.get()).map_or(0.0, |level| level - mean));
            reference.residuals(day, None, |of| off[usize::try_from((hour - of) / BLOCK_HOURS).unwrap_or(0).min(DAY_BLOCKS - 1)], scratch);
            let median = scratch.quantile(0.5).unwrap_or(0.0);
            let mut beyond = [Count::default(); TAILS];
            for (kept, cut) in beyond.iter_mut().zip(reference.cuts) {
                *kept = Count::new(scratch.beyond(median + cut).round() as u64);
            }
            let left = reference::left_of_deviation((0..DAY_BLOCKS).filter_map(|ago| Some(self.blocks.back(ago)?.0.get())));
            let apart = reference::spread(scratch.deviation(mean, reference.room()).0 / left) - reference.spread.0;
            self.tail.push(tail::TailDay { requests: Count::new(n as u64), beyond, apart: Ratio::new(apart.is_finite().then_some(apart), weekend) });
        }
        if hour < self.latency_rests_until {
            return None;
        }
        let days = self.of_days();
        let found = self.judge_slow(reference, thresholds, &days);
        let found = if ends_day { found.or_else(|| self.judge_day(reference, thresholds, &days)) } else { found };
        if found.is_some() {
            self.latency_rests_until = hour + LATENCY_REST_HOURS;
            self.is_rising = true;
        }
        found
    }

    /// Whether a rise was found.
    #[must_use]
    pub fn is_rising(&self) -> bool {
        self.is_rising
    }

    /// The rise is over.
    pub(crate) fn rise_is_over(&mut self) {
        self.is_rising = false;
    }

    /// Requests of the last quarters of an hour (up to a day) and their mean log level over the reference.
    #[must_use]
    pub fn level(&self, quarters: usize) -> Mean {
        self.fast.mean(quarters)
    }

    /// The level of the days before the last quarters of an hour, to whole blocks.
    #[must_use]
    pub fn days_before(&self, quarters: usize) -> Mean {
        let skip = quarters.div_ceil(4 * 6);
        mean_of_blocks(&self.blocks, skip)
    }

    /// The newest p95 of a day, as a log level over the reference.
    #[must_use]
    pub fn p95(&self) -> Option<f32> {
        Some(self.p95.back(0)?.get()? + self.day_mean(0))
    }

    /// Daily levels, the oldest first.
    #[must_use]
    pub fn daily_levels(&self) -> Vec<f32> {
        daily_means(&self.of_days()).0
    }

    /// Requests of the last days of the tail.
    #[must_use]
    pub fn requests_of_days(&self, days: usize) -> f32 {
        self.tail.requests(days)
    }

    /// The share of requests beyond a cut of the tail over the last days.
    #[must_use]
    pub fn tail_share(&self, cut: usize, days: usize) -> Option<f32> {
        self.tail.share(cut, days)
    }

    /// What was found of its traffic was none: it need not rest.
    pub(crate) fn traffic_may_be_found(&mut self) {
        self.traffic_rests_until = 0;
    }

    /// Requests of the last whole hours, and what earlier weeks had in them.
    #[must_use]
    pub fn traffic_of(&self, hours: usize) -> Option<(f32, f32)> {
        self.traffic.recent(hours)
    }

    /// Requests of the quarters of an hour that end with this one, which was taken in, and the mean of what earlier weeks had in them.
    #[must_use]
    pub fn traffic_over(&self, quarters: usize, quarter: i64) -> Option<(f32, f32)> {
        let running = usize::try_from((quarter + 1).rem_euclid(4)).unwrap_or(0);
        self.traffic.over(quarters, running, &self.fast.quarters)
    }

    /// The share of its daily work that was done today.
    #[must_use]
    pub fn done_today(&self) -> Option<f32> {
        self.schedule.done_today()
    }

    /// When p95 meets a limit in milliseconds, if a rise was found; `hour` is the last one of the day that ends now.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "hours of a day")]
    pub fn forecast(&self, reference: &Reference, limit_ms: f32, hour: i64) -> Option<forecast::Forecast> {
        if !self.is_rising {
            return None;
        }
        let limit = libm::logf(limit_ms * 1000.0) - reference.median - reference.p95_offset;
        let means = self.of_days();
        let requests = daily_means(&means).1.max(1.0);
        let mut days = self.days(&means);
        for spread in days.iter_mut().filter_map(|day| day.spread.as_mut()) {
            *spread += reference.spread.0;
        }
        let sampling = spread::Sampling { level: reference.variance / requests, spread: reference.spread.1 / requests };
        forecast::forecast(&days, limit, sampling, (hour + 1).rem_euclid(24) as f32 / 24.0)
    }

    fn judge_slow(&self, reference: &Reference, thresholds: &Thresholds, days: &[Mean]) -> Option<Finding> {
        let (means, n_mean) = daily_means(days);
        let mut best = slow::best_change(&means, reference.variance / n_mean.max(1.0));
        let p95s: Vec<f32> = self.days(days).into_iter().map(|day| day.level + day.height).collect();
        if p95s.len() + 5 >= means.len() {
            let by_p95 = slow::best_change(&p95s, 4.4 * reference.variance / n_mean.max(1.0));
            if by_p95.map_or(0.0, |c| c.score) > best.map_or(0.0, |c| c.score) {
                best = by_p95;
            }
        }
        best.filter(|c| c.score > thresholds.slow).map(Finding::Level)
    }

    /// What is judged once a day: the tail alone, and requests that draw apart.
    fn judge_day(&self, reference: &Reference, thresholds: &Thresholds, days: &[Mean]) -> Option<Finding> {
        let shift = self.tail.judge(&reference.shares).filter(|shift| shift.score > thresholds.tail);
        shift.map(Finding::Tail).or_else(|| self.judge_apart(reference, thresholds, days))
    }

    fn judge_apart(&self, reference: &Reference, thresholds: &Thresholds, days: &[Mean]) -> Option<Finding> {
        let (days, sampling) = self.days_apart(reference, days);
        spread::best_change(&days, sampling, thresholds.spread).map(Finding::Apart)
    }

    /// How far apart the requests of the last days are, over the reference's and without what weekends have of their own, on average; `None` with fewer days.
    #[must_use]
    pub fn apart(&self, reference: &Reference, days: usize) -> Option<f32> {
        let (known, sampling) = self.days_apart(reference, &self.of_days());
        spread::lately(&known, sampling, days)
    }

    /// Days of which level and spread are known, the oldest first, and what the number of requests leaves in them.
    #[expect(clippy::cast_precision_loss, reason = "days")]
    fn days_apart(&self, reference: &Reference, means: &[Mean]) -> (Vec<spread::Day>, spread::Sampling) {
        let (mut days, mut requests) = (Vec::with_capacity(means.len()), 0.0);
        for (ago, of_day) in means.iter().enumerate() {
            if let Some((spread, weekend)) = self.tail.apart(ago).filter(|_| of_day.n >= DAY_REQUESTS_MIN) {
                days.push(spread::Day { level: of_day.level, spread, weekend });
                requests += of_day.n;
            }
        }
        days.reverse();
        let of_day = (requests / days.len().max(1) as f32).max(1.0);
        (days, spread::Sampling { level: reference.variance / of_day, spread: reference.spread.1 / of_day })
    }

    /// The mean level of the day that ends so many days before the newest block.
    fn day_mean(&self, day: usize) -> f32 {
        self.day(day).level
    }

    /// Its requests and their mean level.
    fn day(&self, day: usize) -> Mean {
        fast::mean_of((0..DAY_BLOCKS).filter_map(|b| self.blocks.back(day * DAY_BLOCKS + b)))
    }

    /// Those of all whole days, the newest first.
    fn of_days(&self) -> Vec<Mean> {
        (0..self.blocks.len() / DAY_BLOCKS).map(|day| self.day(day)).collect()
    }

    /// Days that have a p95, the oldest first, with the spreads (over the reference's) of those that ended at the midnight of each.
    fn days(&self, means: &[Mean]) -> Vec<forecast::Day> {
        let mut days = Vec::with_capacity(means.len());
        days.extend(means.iter().enumerate().filter_map(|(day, mean)| {
            let height = self.p95.back(day * DAY_BLOCKS)?.get()?;
            Some(forecast::Day { height, level: mean.level, spread: self.tail.apart(day).map(|apart| apart.0) })
        }));
        days.reverse();
        days
    }
}

/// A number of requests and the mean of their levels, as it is kept.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count and a mean level")]
fn cell_of((n, sum): (f32, f64), levels: bool) -> Cell {
    (Count::new(n as u64), if n > 0.0 && levels { Level::new((sum / f64::from(n)) as f32) } else { Level::default() })
}

/// Levels of the days with requests enough, the oldest first, and the usual number of requests in one.
#[expect(clippy::cast_precision_loss, reason = "days")]
fn daily_means(days: &[Mean]) -> (Vec<f32>, f32) {
    let (mut levels, mut requests) = (Vec::with_capacity(days.len()), 0.0);
    for day in days.iter().filter(|day| day.n >= DAY_REQUESTS_MIN) {
        levels.push(day.level);
        requests += day.n;
    }
    levels.reverse();
    let n = levels.len() as f32;
    (levels, requests / n.max(1.0))
}

/// The mean of three days of blocks, without the newest.
fn mean_of_blocks(blocks: &Ring<Cell>, skip: usize) -> Mean {
    fast::mean_of((skip..skip + 3 * DAY_BLOCKS).map_while(|ago| blocks.back(ago)))
}

/// The level of three days that end so many blocks before the newest one's end.
fn before_blocks(blocks: &Ring<Cell>, skip: usize, variance: f32) -> Mean {
    let (mut n, mut weights, mut sum) = (0.0, 0.0, 0.0);
    for ago in skip..skip + 12 {
        let Some((count, level)) = blocks.back(ago) else { break };
        let Some(level) = level.get() else { continue };
        let weight = 1.0 / (0.06 * 0.06 + variance / count.get());
        n += count.get();
        weights += weight;
        sum += weight * level;
    }
    Mean { n, level: if weights > 0.0 { sum / weights } else { 0.0 } }
}
