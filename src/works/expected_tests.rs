//! Tests of expectations: the story of 150 of 400, then the clocks, then laws.

use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn terms(count: u64, by: &str) -> Terms {
    Terms { count, by: Daily::parse(by, "America/Chicago").unwrap() }
}

/// 400 by 05:00, watched from the evening of 4 January 2026.
fn schedules() -> Expected {
    Expected::new(terms(400, "05:00"), at("2026-01-04T18:00:00-06:00"))
}

/// Judges every minute up to `until`; counts `total` units evenly over `[from, to)`. The states with the instant from which each held.
fn run(expected: &mut Expected, mut now: Timestamp, until: Timestamp, work: &[(Timestamp, Timestamp, u64)]) -> Vec<(Timestamp, Verdict)> {
    let mut seen: Vec<(Timestamp, Verdict)> = Vec::new();
    while now < until {
        let slot = Slot::containing(now);
        for (from, to, total) in work {
            let share =
                |t: Timestamp| u128::from(*total) * u128::from((t.0.clamp(from.0, to.0) - from.0).unsigned_abs()) / u128::from((to.0 - from.0).unsigned_abs());
            let n = share(now.plus_ms(MINUTE)) - share(now);
            expected.count(slot, u64::try_from(n).unwrap());
        }
        now = now.plus_ms(MINUTE);
        let verdict = expected.judge(Slot(slot.0 + 5));
        if seen.last().is_none_or(|(_, v)| v.state != verdict.state) {
            seen.push((now, verdict));
        }
    }
    seen
}

fn states(seen: &[(Timestamp, Verdict)]) -> Vec<State> {
    seen.iter().map(|(_, v)| v.state).collect()
}

/// Nights from 01:00 to 02:30, on the clock of the wall, some minutes late.
fn nights(expected: &mut Expected, n: i64, late: impl Fn(i64) -> i64) -> Timestamp {
    let mut now = at("2026-01-04T18:00:00-06:00");
    for night in 0..n {
        let deadline = expected.terms.by.after(now);
        let begins = deadline.plus_ms(-4 * HOUR + late(night) * MINUTE);
        let seen = run(expected, now, deadline.plus_ms(MINUTE), &[(begins, begins.plus_ms(90 * MINUTE), 400)]);
        assert!(!states(&seen).contains(&State::Behind) && !states(&seen).contains(&State::Short), "night {night}: {seen:?}");
        now = deadline.plus_ms(MINUTE);
    }
    now
}

#[test]
fn story_d_the_first_night_is_told_at_the_deadline() {
    let mut expected = schedules();
    let (one, five) = (at("2026-01-05T01:00:00-06:00"), at("2026-01-05T05:00:00-06:00"));
    let seen = run(&mut expected, at("2026-01-04T18:00:00-06:00"), at("2026-01-05T22:00:00-06:00"), &[(one, five, 150)]);
    assert_eq!(states(&seen), [State::Undecided, State::Short]);
    let (when, verdict) = seen[1];
    assert_eq!((when, verdict.deadline, verdict.counted, verdict.expected), (five, five, 150, 400));
    // Short until the next night is complete.
    let next = one.plus_ms(24 * HOUR);
    let seen = run(&mut expected, at("2026-01-05T22:00:00-06:00"), at("2026-01-06T06:00:00-06:00"), &[(next, next.plus_ms(HOUR), 400)]);
    assert_eq!(states(&seen), [State::Short, State::Met, State::Undecided]);
    assert_eq!(seen[1].0, next.plus_ms(HOUR));
}

#[test]
fn story_d_known_nights_tell_it_before_the_deadline_with_the_pace() {
    let mut expected = schedules();
    let now = nights(&mut expected, 7, |n| n % 3 * 5);
    let deadline = expected.terms.by.after(now);
    let seen = run(&mut expected, now, deadline.plus_ms(HOUR), &[(deadline.plus_ms(-4 * HOUR), deadline, 150)]);
    assert_eq!(states(&seen), [State::OnPace, State::Behind, State::Short]);
    let (when, verdict) = seen[1];
    assert!(when < deadline.plus_ms(-150 * MINUTE), "{}", (deadline.0 - when.0) / MINUTE);
    assert!(verdict.forecast.is_some_and(|f| (140..=160).contains(&f)), "{verdict:?}");
    assert_eq!((verdict.nights, verdict.expected, seen[2].0, seen[2].1.counted), (7, 400, deadline, 150));
    assert!(verdict.usual > Some(200));
}

#[test]
fn story_d_a_pool_that_runs_dry_is_told_in_the_night() {
    let mut expected = schedules();
    let now = nights(&mut expected, 5, |_| 0);
    let deadline = expected.terms.by.after(now);
    let begins = deadline.plus_ms(-4 * HOUR);
    // At the usual speed, then nothing more.
    let seen = run(&mut expected, now, deadline.plus_ms(-MINUTE), &[(begins, begins.plus_ms(33 * MINUTE), 150)]);
    assert_eq!(states(&seen), [State::OnPace, State::Behind]);
    assert!(seen[1].0 < deadline.plus_ms(-90 * MINUTE), "{:?}", seen[1]);
    // A run that never begins.
    let mut expected = schedules();
    let now = nights(&mut expected, 5, |_| 0);
    let until = expected.terms.by.after(now).plus_ms(-MINUTE);
    let seen = run(&mut expected, now, until, &[]);
    assert_eq!((states(&seen), seen[1].1.forecast), (vec![State::OnPace, State::Behind], Some(0)));
}

#[test]
fn story_d_exactly_the_250_missing_keys_are_listed() {
    let mut expected = schedules();
    let begins = at("2026-01-05T01:00:00-06:00");
    let mut missing = Vec::new();
    for n in 0..400 {
        let (key, start) = (format!("client {n}"), begins.plus_ms(n * 1000));
        expected.start(&key, start);
        if n % 8 < 3 {
            expected.end(&key, start.plus_ms(2000));
            expected.count(Slot::containing(start.plus_ms(2000)), 1);
        } else {
            missing.push((key, start));
        }
    }
    let verdict = expected.judge(Slot::containing(at("2026-01-05T05:00:00-06:00")));
    assert_eq!((verdict.state, verdict.counted, verdict.missing), (State::Short, 150, 250));
    assert_eq!(expected.missing_keys(), Missing { keys: missing.clone(), total: 250 });
    // Run again in the morning: it is repaired, and nothing of it counts for the next night.
    let morning = at("2026-01-05T09:00:00-06:00");
    for (key, _) in &missing {
        expected.start(key, morning);
        expected.end(key, morning);
    }
    expected.count(Slot::containing(morning), 249);
    let almost = expected.judge(Slot::containing(morning));
    assert_eq!((almost.state, almost.late, almost.missing), (State::Short, 249, 0));
    expected.count(Slot::containing(morning), 1);
    let repaired = expected.judge(Slot::containing(morning));
    assert_eq!((repaired.state, repaired.counted), (State::Undecided, 0));
    let next = expected.judge(Slot::containing(at("2026-01-06T05:00:00-06:00")));
    assert_eq!((next.state, next.counted, next.deadline), (State::Short, 0, at("2026-01-06T05:00:00-06:00")));
}

#[test]
fn a_night_that_is_as_late_as_nights_are_is_no_alarm() {
    let mut expected = schedules();
    nights(&mut expected, 30, |n| n * 7 % 4 * 20);
    let mut expected = schedules();
    // 25 minutes later than ever before.
    nights(&mut expected, 12, |n| if n == 11 { 25 } else { 0 });
}

#[test]
fn a_job_that_starts_before_midnight_counts_whole() {
    let mut expected = schedules();
    let (start, end) = (at("2026-01-04T23:00:00-06:00"), at("2026-01-05T04:00:00-06:00"));
    let seen = run(&mut expected, at("2026-01-04T18:00:00-06:00"), at("2026-01-05T05:00:00-06:00"), &[(start, end, 400)]);
    assert_eq!(states(&seen), [State::Undecided, State::Met, State::Undecided]);
    assert_eq!(seen[1].0, end);
}

#[test]
fn work_that_goes_on_all_day_counts_whole() {
    let mut expected = Expected::new(terms(1000, "23:00"), at("2026-01-04T23:00:00-06:00"));
    let begins = at("2026-01-04T23:00:00-06:00");
    for day in 0..10 {
        let opens = begins.plus_ms(day * 24 * HOUR);
        let made = if day == 7 { 700 } else { 1010 };
        let seen = run(&mut expected, opens, opens.plus_ms(24 * HOUR), &[(opens, opens.plus_ms(24 * HOUR), made)]);
        // After the short day the next one is not robbed.
        let end = seen.last().unwrap().1;
        assert_eq!(end.state == State::Short, day == 7, "day {day}: {seen:?}");
        assert_eq!(seen.iter().any(|(_, v)| v.state == State::Behind), day == 7, "day {day}: {seen:?}");
    }
}

#[test]
fn nights_on_which_the_clocks_move_are_like_others() {
    for (from, deadlines) in [
        ("2026-03-01T06:00:00-06:00", [("2026-03-07T05:00:00-06:00", false), ("2026-03-08T05:00:00-05:00", true), ("2026-03-09T05:00:00-05:00", false)]),
        ("2026-10-25T06:00:00-05:00", [("2026-10-31T05:00:00-05:00", false), ("2026-11-01T05:00:00-06:00", true), ("2026-11-02T05:00:00-06:00", false)]),
    ] {
        let mut now = at(from);
        let mut expected = Expected::new(terms(400, "05:00"), now);
        for _ in 0..9 {
            let deadline = expected.terms.by.after(now);
            // 01:00 on the wall is before the clocks move.
            let moved = deadlines.iter().find(|(d, _)| at(d) == deadline).is_some_and(|(_, moved)| *moved);
            let shift = if !moved {
                0
            } else if from.contains("-03-") {
                HOUR
            } else {
                -HOUR
            };
            let begins = deadline.plus_ms(-4 * HOUR + shift);
            let seen = run(&mut expected, now, deadline.plus_ms(MINUTE), &[(begins, begins.plus_ms(90 * MINUTE), 400)]);
            assert!(!states(&seen).contains(&State::Behind) && !states(&seen).contains(&State::Short), "{deadline}: {seen:?}");
            now = deadline.plus_ms(MINUTE);
        }
        assert_eq!(expected.pace.nights(), 9);
        assert_eq!(expected.before.as_ref().map(|b| b.deadline), Some(expected.terms.by.last(now)));
    }
}

#[test]
fn a_watch_that_begins_just_before_the_deadline_does_not_judge_it() {
    let mut expected = Expected::new(terms(400, "05:00"), at("2026-01-05T04:30:00-06:00"));
    assert_eq!(expected.judge(Slot::containing(at("2026-01-05T05:00:00-06:00"))).state, State::Undecided);
    assert_eq!(expected.judge(Slot::containing(at("2026-01-06T05:00:00-06:00"))).state, State::Short);
}

#[test]
fn what_comes_late_for_a_deadline_counts_for_it() {
    let mut expected = Expected::new(terms(3, "05:00"), at("2026-01-04T18:00:00-06:00"));
    let five = at("2026-01-05T05:00:00-06:00");
    expected.count(Slot::containing(five), 1);
    assert_eq!(expected.judge(Slot::containing(five)).counted, 0);
    expected.count(Slot::containing(five.plus_ms(-10_000)), 2);
    let verdict = expected.judge(Slot::containing(five));
    // Two in time and one as the repair; nothing is left of it for the next night.
    assert_eq!((verdict.counted, verdict.state), (0, State::Undecided));
    expected.count(Slot::containing(five.plus_ms(-48 * HOUR)), 5);
    assert_eq!(expected.judge(Slot::containing(five)).unplaced, 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn order_of_arrival_changes_nothing(work in prop::collection::vec((0_u32..17_000, 1_u64..50), 0..40).prop_flat_map(|w| (Just(w.clone()), Just(w).prop_shuffle()))) {
        let from = at("2026-01-04T18:00:00-06:00");
        let fed = |work: &[(u32, u64)]| {
            let mut expected = Expected::new(terms(400, "05:00"), from);
            for (slot, n) in work {
                expected.count(Slot(Slot::containing(from).0 + slot), *n);
            }
            let first = expected.judge(Slot(Slot::containing(from).0 + 5000));
            (first, expected.judge(Slot(Slot::containing(from).0 + 13_000)), expected)
        };
        let (ours, shuffled) = (fed(&work.0), fed(&work.1));
        prop_assert_eq!(&ours, &shuffled);
        let stored = postcard::to_allocvec(&ours.2).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Expected>(&stored).unwrap(), ours.2);
    }
}
