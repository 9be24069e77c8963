//! What a finding says in numbers that people and programs read: the evidence of its line.

use super::Finding;
use super::budget::Thresholds;
use super::fast::Mean;
use super::flow::Missing;
use super::quarters::QUARTER_MS;
use super::slow::{self, Shape};
use super::spread;
use super::watch::Watch;
use crate::incident::{Change, Kind};
use crate::time::Timestamp;

/// The kind of a finding.
pub(super) fn kind_of(finding: &Finding) -> Kind {
    match finding {
        Finding::Level(slow::Change { shape: Shape::Ramp, .. }) | Finding::Apart(spread::Apart { shape: Shape::Ramp, .. }) => Kind::Creep,
        Finding::Level(_) | Finding::Apart(_) | Finding::Step(_) | Finding::Marked(_) => Kind::Step,
        Finding::Tail(_) => Kind::Tail,
        Finding::Collapse(c) if c.seen < 0.5 => Kind::Silence,
        Finding::Collapse(_) => Kind::Throughput,
        Finding::Unfinished(_) => Kind::Completion,
    }
}

/// A number with three significant digits: evidence must not depend on the order of floating-point operations.
pub(super) fn rounded(value: f32) -> f64 {
    if value.is_finite() { crate::judge::evidence::three_digits(f64::from(value)) } else { 0.0 }
}

/// The end of a quarter of an hour.
pub(super) fn end_of(quarter: i64) -> Timestamp {
    Timestamp((quarter + 1) * QUARTER_MS)
}

/// `45m`, `6h`, `2d`.
pub(super) fn window_name(quarters: usize) -> String {
    match quarters {
        q if q % 96 == 0 => format!("{}d", q / 96),
        q if q % 4 == 0 => format!("{}h", q / 4),
        q => format!("{}m", q * 15),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was kept in a byte")]
fn whole(count: f32) -> u64 {
    count.round() as u64
}

/// The numbers of a finding, after its quarter was taken in.
pub(super) fn change_of(finding: &Finding, watch: &Watch, thresholds: &Thresholds, quarter: i64) -> Change {
    let before = |quarters: usize| {
        let ms = i64::try_from(quarters).unwrap_or(0) * QUARTER_MS;
        Change { since: end_of(quarter).plus_ms(-ms), window: window_name(quarters), ..Change::default() }
    };
    match finding {
        Finding::Level(shift) => {
            let change = of_level(watch, watch.memory().level(96), shift.change, 96);
            let change = Change { since: before(shift.days * 96).since, score: rounded(shift.score), threshold: rounded(thresholds.slow), ..change };
            if shift.shape == Shape::Step { change } else { with_trend_over(watch, shift.days, change) }
        }
        Finding::Apart(apart) => Change {
            since: before(apart.days * 96).since,
            score: rounded(apart.score),
            threshold: rounded(thresholds.spread),
            spread_ratio: Some(rounded(libm::expf(apart.spread))),
            ..of_level(watch, watch.memory().level(96), apart.change, 96)
        },
        Finding::Step(step) => Change {
            since: before(step.quarters).since,
            score: rounded(step.score),
            threshold: rounded(thresholds.fast),
            ..of_level(watch, watch.memory().level(step.quarters), step.change, step.quarters)
        },
        Finding::Marked(verdict) => {
            let quarters = verdict.quarters();
            Change {
                since: Timestamp(verdict.marker * QUARTER_MS),
                score: rounded(verdict.score),
                threshold: rounded(thresholds.marker),
                visible_ratio: Some(rounded(libm::expf(verdict.visible))),
                ..of_level(watch, watch.memory().level(quarters), verdict.change, quarters)
            }
        }
        Finding::Tail(tail) => Change {
            score: rounded(tail.score),
            threshold: rounded(thresholds.tail),
            ratio: Some(rounded(tail.ratio)),
            requests: requests_of_days(watch, tail.days),
            p95_ms: watch.p95_ms().map(rounded),
            ..before(tail.days * 96)
        },
        Finding::Collapse(c) => Change {
            score: rounded(c.score),
            threshold: rounded(c.threshold),
            ratio: Some(rounded(c.seen / c.expected)),
            requests: whole(c.seen),
            seen: Some(whole(c.seen)),
            expected: Some(rounded(c.expected)),
            ..before(c.quarters)
        },
        Finding::Unfinished(u) => Change {
            score: rounded(u.score),
            threshold: 6.0,
            ratio: Some(rounded(u.done / u.usual)),
            requests: whole(u.done),
            seen: Some(whole(u.done)),
            expected: Some(rounded(u.usual)),
            ..before(usize::try_from((quarter + 1).rem_euclid(96)).unwrap_or(0).max(4))
        },
    }
}

/// How an open change of the level stands at the end of a day's window.
pub(super) fn level_now(watch: &Watch, shift: f32, quarter: i64, began: i64) -> Change {
    let since = Timestamp(began * QUARTER_MS);
    let days = usize::try_from((quarter - began) / 96).unwrap_or(0);
    let spread_ratio = watch.spread_shift().map(|apart| rounded(libm::expf(apart)));
    with_trend_over(watch, days, Change { since, spread_ratio, ..of_level(watch, watch.memory().level(96), shift, 96) })
}

fn of_level(watch: &Watch, now: Mean, shift: f32, quarters: usize) -> Change {
    Change {
        window: window_name(quarters),
        requests: whole(now.n),
        ratio: Some(rounded(libm::expf(shift))),
        level_ms: watch.level_ms(now.level).map(rounded),
        level_before_ms: watch.level_ms(now.level - shift).map(rounded),
        p95_ms: watch.p95_ms().map(rounded).filter(|_| quarters >= 96),
        ..Change::default()
    }
}

fn with_trend_over(watch: &Watch, days: usize, change: Change) -> Change {
    let levels = watch.memory().daily_levels();
    let Some(trend) = levels.get(levels.len().saturating_sub(days + 3)..).and_then(super::trend::trend) else { return change };
    Change {
        slope_ratio_per_day: Some(rounded(libm::expm1f(trend.slope))),
        slope_from: Some(rounded(libm::expm1f(trend.from))),
        slope_to: Some(rounded(libm::expm1f(trend.to))),
        rising_days: u32::try_from(trend.rising).ok(),
        days: u32::try_from(trend.days).ok(),
        ..change
    }
}

fn requests_of_days(watch: &Watch, days: usize) -> u64 {
    whole(watch.memory().requests_of_days(days))
}

/// The numbers of work that went in and did not come out.
pub(super) fn change_of_flow(name: &str, missing: &Missing, threshold: f32, quarter: i64) -> Change {
    let ms = i64::try_from(missing.quarters).unwrap_or(0) * QUARTER_MS;
    let expected = missing.ratio * missing.seen.0;
    Change {
        since: end_of(quarter).plus_ms(-ms),
        window: window_name(missing.quarters),
        requests: whole(missing.seen.0),
        score: rounded(missing.score),
        threshold: rounded(threshold),
        ratio: Some(rounded(missing.seen.1 / expected.max(1.0))),
        seen: Some(whole(missing.seen.1)),
        expected: Some(rounded(expected)),
        missing: Some(whole(expected - missing.seen.1)),
        name: Some(name.to_owned()),
        ..Change::default()
    }
}
