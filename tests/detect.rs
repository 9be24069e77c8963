//! The detectors over simulated months: false alarms and delays, and the laws that hold whatever the numbers are.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use slowburn::detect::Finding;
use slowburn::detect::budget::Thresholds;
use slowburn::detect::reference::{Part, Residuals};
use slowburn::detect::watch::{Watch, is_slow_run};
use slowburn::histogram::Histogram;

mod simulated;
use simulated::{Chance, Wander};

const DAYS: usize = 45;
/// A Monday.
const FIRST_QUARTER: i64 = 20_458 * 96;

/// An endpoint at 20 requests an hour with the wander of real services; `growth` and `traffic` by the day since the beginning.
fn endpoint(seed: u64, growth: impl Fn(f64) -> f64, traffic: impl Fn(f64) -> f64) -> Vec<Histogram> {
    endpoint_apart(seed, growth, |_| 0.5, traffic)
}

/// Likewise, `apart` being the standard deviation of a request's log duration.
fn endpoint_apart(seed: u64, growth: impl Fn(f64) -> f64, apart: impl Fn(f64) -> f64, traffic: impl Fn(f64) -> f64) -> Vec<Histogram> {
    let mut chance = Chance(seed);
    let mut wander = Wander::new(&mut chance);
    (0..DAYS * 96)
        .map(|quarter| {
            let wandered = wander.next_quarter(&mut chance);
            let day = f64::from(u32::try_from(quarter).unwrap()) / 96.0;
            let busy = 1.0 - 0.6 * (std::f64::consts::TAU * (day - 0.17)).cos();
            let mut timings = Histogram::default();
            for _ in 0..chance.poisson(5.0 * busy * traffic(day)) {
                let us = 100_000.0 * growth(day) * (apart(day) * chance.normal() + wandered).exp();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "well inside the grid")]
                timings.record(us as u64, 1);
            }
            timings
        })
        .collect()
}

/// All that is said of it, with the day on which it is said, and the watch at the end.
fn run(quarters: &[Histogram], thresholds: &Thresholds) -> (Vec<(f64, Finding)>, Watch) {
    let parts: Vec<Part<'_>> = (FIRST_QUARTER..).zip(quarters).map(|(quarter, timings)| Part { hour: quarter.div_euclid(4), timings }).collect();
    let (mut watch, mut scratch, mut said) = (Watch::default(), Residuals::new(), Vec::new());
    for (index, (quarter, timings)) in (FIRST_QUARTER..).zip(quarters).enumerate() {
        if watch.learns_at().is_some_and(|hour| hour * 4 == quarter) {
            watch.learn(FIRST_QUARTER, &quarters[..index]);
        }
        let day = f64::from(u32::try_from(index + 1).unwrap()) / 96.0;
        said.extend(watch.quarter(thresholds, quarter, timings).into_iter().flatten().map(|f| (day, f)));
        if is_slow_run(quarter) && index >= 95 {
            said.extend(watch.slow(thresholds, quarter / 4, &parts[index - 95..=index], &mut scratch).map(|f| (day, f)));
        }
    }
    (said, watch)
}

fn is_latency(finding: &Finding) -> bool {
    !matches!(finding, Finding::Collapse(_) | Finding::Unfinished(_))
}

/// 60 quiet endpoints over 45 days are 90 endpoint-months: at 0.01 a month one false alarm of each class is usual, five are not (P < 0.004).
#[test]
fn quiet_months_stay_quiet_and_would_not_with_looser_thresholds() {
    let quiet: Vec<_> = (0..60).map(|seed| endpoint(seed, |_| 1.0, |_| 1.0)).collect();
    let alarms = |budget| quiet.iter().map(|q| run(q, &Thresholds::of(budget, false)).0.len()).sum::<usize>();
    let (strict, loose) = (alarms(0.01), alarms(0.3));
    assert!(strict < 5, "{strict}");
    assert!(loose >= 5, "{loose}: the test must notice a loosened threshold");
}

#[test]
fn a_creep_of_five_percent_a_day_is_seen_within_nine_days_and_dated() {
    let mut delays: Vec<f64> = Vec::new();
    for seed in 100..112 {
        let (said, _) = run(&endpoint(seed, |day| 1.0 + 0.05 * (day - 20.0).max(0.0), |_| 1.0), &Thresholds::default());
        delays.push(said.iter().find(|s| s.0 > 20.0 && is_latency(&s.1)).map_or(f64::INFINITY, |s| s.0 - 20.0));
    }
    delays.sort_by(f64::total_cmp);
    assert!(delays[6] <= 7.5 && delays[11] <= 11.0, "{delays:?}");
}

/// What contention does: from day 20 on the level rises by half a per cent a day, the spread by three. And spreads that are wide at weekends are nothing.
#[test]
fn requests_that_draw_apart_are_told_before_their_level_is() {
    let is_apart = |finding: &Finding| matches!(finding, Finding::Apart(_));
    let told = |said: &[(f64, Finding)]| said.iter().find(|s| s.0 > 20.0 && is_latency(&s.1)).map_or(f64::INFINITY, |s| s.0 - 20.0);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for seed in 300..308 {
        let quarters = endpoint_apart(seed, |day| 1.0 + 0.005 * (day - 20.0).max(0.0), |day| 0.5 + 0.015 * (day - 20.0).max(0.0), |_| 1.0);
        let thresholds = Thresholds::of(0.01, true);
        with.push(told(&run(&quarters, &thresholds).0));
        without.push(told(&run(&quarters, &Thresholds { spread: f32::MAX, ..thresholds }).0));
        let weekends = |day: f64| if day.rem_euclid(7.0) >= 5.0 { 0.65 } else { 0.5 };
        let (said, _) = run(&endpoint_apart(seed, |_| 1.0, weekends, |_| 1.0), &Thresholds::default());
        assert!(!said.iter().any(|s| is_apart(&s.1)), "{seed}: {said:?}");
    }
    for delays in [&mut with, &mut without] {
        delays.sort_by(f64::total_cmp);
    }
    println!("told after {with:?} days, without their spread after {without:?}");
    assert!(with[4] <= 6.0 && with[7] <= 8.0 && without[4] >= with[4] + 1.5, "{with:?} {without:?}");
}

#[test]
fn a_collapse_is_told_within_hours_and_a_lull_not_at_all() {
    for seed in 200..206 {
        let (said, _) = run(&endpoint(seed, |_| 1.0, |day| if day >= 35.5 { 0.05 } else { 1.0 }), &Thresholds::default());
        let first = said.iter().find(|s| !is_latency(&s.1)).map(|s| s.0);
        assert!(first.is_some_and(|day| (35.5..35.7).contains(&day)), "{seed}: {first:?}");
        let (said, _) = run(&endpoint(seed, |_| 1.0, |day| if (35.0..37.0).contains(&day) { 0.75 } else { 1.0 }), &Thresholds::default());
        assert!(said.iter().all(|s| is_latency(&s.1)), "{seed}: {said:?}");
    }
}

/// Requests go down to a seventh within two hours. Where they also take ten times as long as nearly any did (which are four times the median), less evidence is enough.
#[test]
fn traffic_that_falls_is_told_sooner_where_requests_also_hang() {
    let thresholds = Thresholds::of(0.01, true);
    let falls = |day: f64| 1.0 - 0.85 * ((day - 35.5) * 12.0).clamp(0.0, 1.0);
    let told = |seed, slower: f64| {
        let (said, _) = run(&endpoint(seed, |day| if day > 35.5 { slower } else { 1.0 }, falls), &thresholds);
        said.iter().find(|s| s.0 > 35.5 && !is_latency(&s.1)).map_or(48.0, |s| (s.0 - 35.5) * 24.0)
    };
    let of_all = |slower| (220..232).map(|seed| told(seed, slower)).sum::<f64>() / 12.0;
    let (usual, twice, hanging) = (of_all(1.0), of_all(2.0), of_all(100.0));
    assert!(twice > 0.9 * usual && hanging < 0.85 * usual && usual < 4.0, "{usual} {twice} {hanging}");
}

#[test]
fn the_replay_of_a_prefix_says_a_prefix() {
    let quarters = endpoint(300, |day| 1.0 + 0.08 * (day - 18.0).max(0.0), |day| if day > 40.0 { 0.0 } else { 1.0 });
    let (all, _) = run(&quarters, &Thresholds::default());
    assert!(all.len() >= 2, "{all:?}");
    for days in [16, 22, 30, 41] {
        let (prefix, _) = run(&quarters[..days * 96], &Thresholds::default());
        assert_eq!(prefix, all[..prefix.len()], "{days}");
        assert!(all[prefix.len()..].iter().all(|s| s.0 > f64::from(u32::try_from(days).unwrap())));
    }
}

/// Doubling moves each value to the same place in the next power of two of the grid: nothing else changes.
#[test]
fn latencies_twice_as_long_say_the_same() {
    let quarters = endpoint(400, |day| 1.0 + 0.05 * (day - 20.0).max(0.0), |_| 1.0);
    let doubled: Vec<Histogram> = quarters
        .iter()
        .map(|q| {
            let buckets: Vec<(u16, u64)> = q.buckets().map(|(bucket, n)| (bucket + 128, n)).collect();
            Histogram::from_buckets(q.digits(), &buckets)
        })
        .collect();
    let when = |said: &[(f64, Finding)]| said.iter().map(|s| (s.0, std::mem::discriminant(&s.1))).collect::<Vec<_>>();
    let ((a, _), (b, _)) = (run(&quarters, &Thresholds::default()), run(&doubled, &Thresholds::default()));
    assert!(!a.is_empty());
    assert_eq!(when(&a), when(&b));
}

/// A season that the reference knows changes neither what is said nor, by much, when: here the afternoon takes 1.8 times as long as the night, and weekends less.
#[test]
fn a_season_raises_nothing_and_hides_nothing() {
    let season = |day: f64| (0.3 * (std::f64::consts::TAU * (day - 0.3)).sin() - if day.rem_euclid(7.0) >= 5.0 { 0.15 } else { 0.0 }).exp();
    let creep = |day: f64| 1.0 + 0.05 * (day - 20.0).max(0.0);
    let mut alarms = 0;
    for seed in 600..630 {
        alarms += run(&endpoint(seed, season, |_| 1.0), &Thresholds::default()).0.len();
    }
    assert!(alarms < 4, "{alarms} in 45 quiet endpoint-months: at 0.02 a month P < 0.02");
    let delay = |seed, growth: &dyn Fn(f64) -> f64| {
        let (said, _) = run(&endpoint(seed, growth, |_| 1.0), &Thresholds::default());
        said.iter().find(|s| s.0 > 20.0 && is_latency(&s.1)).map_or(f64::INFINITY, |s| s.0 - 20.0)
    };
    let mut later: Vec<f64> = (630..642).map(|seed| delay(seed, &|day| season(day) * creep(day)) - delay(seed, &creep)).collect();
    later.sort_by(f64::total_cmp);
    assert!(later[6].abs() <= 0.25 && later[0] >= -1.0 && later[11] <= 1.0, "{later:?}");
}

/// Quiet days are as quiet in any order; those of a creep in another order are no creep, and in their own order they are.
#[test]
fn quiet_days_in_another_order_are_quiet_and_rising_days_in_another_order_do_not_rise() {
    let permuted = |quarters: &[Histogram], seed: u64| {
        let mut chance = Chance(seed);
        let mut days: Vec<&[Histogram]> = quarters.chunks(96).collect();
        // Fisher & Yates.
        for last in (1..days.len()).rev() {
            days.swap(last, usize::try_from(chance.bits() % (last as u64 + 1)).unwrap());
        }
        days.concat()
    };
    let mut alarms = 0;
    for seed in 700..710 {
        let quarters = endpoint(seed, |_| 1.0, |_| 1.0);
        for order in 0..3 {
            alarms += run(&permuted(&quarters, 1_000 * seed + order), &Thresholds::default()).0.len();
        }
    }
    assert!(alarms < 4, "{alarms} in 45 quiet endpoint-months");
    let is_rising = |said: &[(f64, Finding)], watch: &Watch| said.iter().any(|s| is_latency(&s.1)) && watch.memory().is_rising();
    let (mut in_order, mut in_another) = (0, 0);
    for seed in 710..716 {
        let quarters = endpoint(seed, |day| 1.0 + 0.02 * day, |_| 1.0);
        let (said, watch) = run(&quarters, &Thresholds::default());
        in_order += u32::from(is_rising(&said, &watch));
        let (said, watch) = run(&permuted(&quarters, seed), &Thresholds::default());
        in_another += u32::from(is_rising(&said, &watch));
    }
    assert!(in_order == 6 && in_another <= 1, "{in_order} {in_another}");
}

#[test]
fn a_memory_is_small_and_goes_on_after_a_restart() {
    let quarters = endpoint(500, |_| 1.0, |_| 1.0);
    let (_, mut watch) = run(&quarters, &Thresholds::default());
    let (memory, reference) = (postcard::to_stdvec(watch.memory()).unwrap(), postcard::to_stdvec(watch.reference().unwrap()).unwrap());
    let mut reminded = Watch::default();
    let learnt = watch.learnt().unwrap();
    assert!(reminded.remind(&learnt) && reminded.reference() == watch.reference());
    assert!(!Watch::default().remind(&learnt[1..]) && !Watch::default().remind(&[]), "of another version");
    assert!(memory.len() <= 2048 && reference.len() <= 160, "{} {}", memory.len(), reference.len());
    let bytes = postcard::to_stdvec(&watch).unwrap();
    let mut restarted: Watch = postcard::from_bytes(&bytes).unwrap();
    for (quarter, timings) in (FIRST_QUARTER + i64::try_from(quarters.len()).unwrap()..).zip(&quarters[..400]) {
        let t = Thresholds::of(0.3, false);
        assert_eq!(watch.quarter(&t, quarter, timings), restarted.quarter(&t, quarter, timings));
    }
    assert_eq!(postcard::to_stdvec(&watch).unwrap(), postcard::to_stdvec(&restarted).unwrap());
}
