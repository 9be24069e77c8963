//! Tests of the flows: stories, then laws.

use proptest::prelude::*;

use super::*;

const TERMS: Terms = Terms { within_ms: 60_000, ratio_ppb: 990_000_000 };
const MINUTE: u32 = 6;
const HOUR: u32 = 360;
/// Somewhere in a night.
const START: u32 = 176_653_440;

/// Feeds a slot with `works` of (in, out) and judges each, from `START` on.
fn run(passage: &mut Passage, slots: std::ops::Range<u32>, work: impl Fn(u32) -> (u64, u64)) -> Vec<Verdict> {
    slots
        .map(|s| {
            let (i, o) = work(s);
            passage.count_in(Slot(START + s), i);
            passage.count_out(Slot(START + s), o);
            passage.judge(Slot(START + s))
        })
        .collect()
}

fn each(slots: u32, s: u32) -> u64 {
    u64::from(s.is_multiple_of(slots))
}

fn states(verdicts: &[Verdict]) -> Vec<State> {
    let mut states: Vec<State> = verdicts.iter().map(|v| v.state).collect();
    states.dedup();
    states
}

/// Slots from the death of the workers to the page.
fn found_after(ratio_ppb: u64, every: u32) -> u32 {
    let mut passage = Passage::new(Terms { ratio_ppb, ..TERMS });
    let alive = run(&mut passage, 0..6 * HOUR, |s| (each(every, s), each(every, s)));
    assert!(alive.iter().skip(HOUR as usize).all(|v| v.state == State::Ok), "{:?}", states(&alive));
    let dead = run(&mut passage, 6 * HOUR..8 * HOUR, |s| (each(every, s), 0));
    u32::try_from(dead.iter().position(|v| v.state == State::Missing).unwrap()).unwrap() + 1
}

#[test]
fn story_b_dead_workers_page_within_five_minutes() {
    for (ratio_ppb, every) in [(990_000_000, 1), (990_000_000, 3), (990_000_000, 6), (950_000_000, 3), (900_000_000, 3), (999_000_000, 6)] {
        let slots = found_after(ratio_ppb, every);
        assert!(slots <= 28, "ratio {ratio_ppb}, one in every {every} slots: {slots} slots");
    }
}

#[test]
fn story_b_a_night_of_dead_workers_piles_up_and_drains() {
    let mut passage = Passage::new(TERMS);
    // Six in a minute.
    let jobs = |s: u32| u64::from(s % 3 != 2) + each(3, s);
    run(&mut passage, 0..2 * HOUR, |s| (jobs(s), jobs(s)));
    let night = run(&mut passage, 2 * HOUR..14 * HOUR, |s| (jobs(s), 0));
    let last = night.last().unwrap();
    let piled: u64 = (2 * HOUR..14 * HOUR).map(jobs).sum();
    assert_eq!(states(&night), [State::Ok, State::Missing]);
    assert_eq!((last.waiting, last.went_in >= 16, last.came_out), (piled, true, 0));
    assert_eq!(last.oldest_unmatched_since, Some(Slot(START + 2 * HOUR).start()));
    assert_eq!(last.since, last.oldest_unmatched_since);
    assert_eq!(last.overdue, last.waiting - (0..6).map(|s| jobs(14 * HOUR - 1 - s)).sum::<u64>());
    // In the morning the workers do five times as much as comes in.
    let morning = run(&mut passage, 14 * HOUR..15 * HOUR, |s| (jobs(s), 5 * jobs(s)));
    assert!(morning.iter().all(|v| v.state == State::Missing), "a pile that drains is not over");
    let after = morning.last().unwrap();
    assert!(after.waiting < piled && after.oldest_unmatched_since > last.oldest_unmatched_since, "{after:?}");
    let mut left = piled - (14 * HOUR..15 * HOUR).map(|s| 4 * jobs(s)).sum::<u64>();
    let mut drained = Vec::new();
    for s in 15 * HOUR..24 * HOUR {
        let extra = left.min(4 * jobs(s));
        left -= extra;
        drained.extend(run(&mut passage, s..s + 1, |s| (jobs(s), jobs(s) + extra)));
    }
    assert_eq!(states(&drained), [State::Missing, State::Ok]);
    let end = drained.last().unwrap();
    assert_eq!((end.overdue, end.lost, end.surplus), (0, 0, 0));
}

#[test]
fn workers_that_come_back_are_ok_again_though_the_work_is_lost() {
    let mut passage = Passage::new(TERMS);
    let verdicts = run(&mut passage, 0..8 * HOUR, |s| (each(3, s), if (HOUR..2 * HOUR).contains(&s) { 0 } else { each(3, s) }));
    assert_eq!(states(&verdicts), [State::Undecided, State::Ok, State::Missing, State::Ok]);
    let over = verdicts.iter().rposition(|v| v.state == State::Missing).unwrap();
    assert!((2 * HOUR as usize..2 * HOUR as usize + 20 * MINUTE as usize).contains(&over), "{over}");
    let lost = verdicts.last().unwrap().lost;
    assert!((110..=120).contains(&lost), "{lost}");
}

#[test]
fn a_quiet_hour_resolves_nothing() {
    let mut passage = Passage::new(TERMS);
    run(&mut passage, 0..HOUR, |s| (each(2, s), each(2, s)));
    run(&mut passage, HOUR..HOUR + 30, |s| (each(2, s), 0));
    let quiet = run(&mut passage, HOUR + 30..30 * HOUR, |_| (0, 0));
    assert_eq!(states(&quiet), [State::Missing]);
    assert_eq!(quiet.last().unwrap().waiting, 15);
}

#[test]
fn a_holiday_moves_both_sides_and_pages_nobody() {
    let mut passage = Passage::new(TERMS);
    let verdicts = run(&mut passage, 0..24 * HOUR, |s| {
        let every = if s < 12 * HOUR { 2 } else { 20 };
        (each(every, s), each(every, s.wrapping_sub(2)))
    });
    assert_eq!(states(&verdicts), [State::Undecided, State::Ok]);
}

/// Of each environment by itself: only the one that is busy together with another loses a fifth.
#[test]
fn story_c_a_fifth_lost_is_found_and_does_not_flap() {
    let mut passage = Passage::new(TERMS);
    let mut out = 0_u64;
    let verdicts = run(&mut passage, 0..HOUR, |s| (each(2, s), each(2, s)));
    assert_eq!(states(&verdicts), [State::Undecided, State::Ok]);
    let mut lossy = Vec::new();
    for s in HOUR..6 * HOUR {
        // Of each 29 units 6 are lost, not in a row.
        let work = each(2, s);
        out += work;
        let lost = u64::from(work == 1 && (out * 7) % 29 < 6);
        lossy.extend(run(&mut passage, s..s + 1, |_| (work, work - lost)));
    }
    assert_eq!(states(&lossy), [State::Ok, State::Missing]);
    let found = lossy.iter().position(|v| v.state == State::Missing).unwrap();
    assert!(found < 20 * MINUTE as usize, "{found}");
    let healed = run(&mut passage, 6 * HOUR..7 * HOUR, |s| (each(2, s), each(2, s)));
    assert_eq!(states(&healed), [State::Missing, State::Ok]);
}

#[test]
fn story_c_the_keys_that_were_dropped_are_listed() {
    let mut passage = Passage::new(TERMS);
    let mut dropped = Vec::new();
    let mut verdicts = Vec::new();
    for s in 0..2 * HOUR {
        let (slot, key) = (Slot(START + s), format!("job {s:05}"));
        if s.is_multiple_of(2) {
            passage.count_in(slot, 1);
            passage.start(&key, slot.start());
            if s > HOUR && s.is_multiple_of(10) {
                dropped.push((key, slot.start()));
            } else {
                passage.count_out(slot, 1);
                passage.end(&key, slot.start().plus_ms(4000));
            }
        }
        verdicts.push(passage.judge(slot));
    }
    assert_eq!(states(&verdicts), [State::Undecided, State::Ok, State::Missing]);
    let end = Slot(START + 2 * HOUR - 1);
    dropped.retain(|(_, at)| at.plus_ms(60_000) < end.end());
    let missing = passage.missing_keys(end);
    assert_eq!((missing.keys, missing.total), (dropped.clone(), dropped.len() as u64));
    let last = verdicts.last().unwrap();
    assert!(last.by_keys && last.overdue == dropped.len() as u64 && last.oldest_unmatched_since == Some(dropped[0].1), "{last:?}");
    // They come after all.
    for (key, _) in &dropped {
        passage.end(key, end.end());
    }
    let after: Vec<_> = (1..HOUR).map(|s| passage.judge(Slot(end.0 + s))).collect();
    assert_eq!(passage.missing_keys(end).total, 0);
    assert_eq!(after.last().unwrap().state, State::Ok);
}

#[test]
fn keys_that_only_one_side_carries_do_not_decide() {
    let mut passage = Passage::new(TERMS);
    let mut last = None;
    for s in 0..HOUR {
        passage.start(&format!("{s}"), Slot(START + s).start());
        last = run(&mut passage, s..s + 1, |_| (1, 1)).pop();
    }
    let last = last.unwrap();
    assert_eq!((last.state, last.by_keys), (State::Ok, false));
}

#[test]
fn with_little_work_it_is_undecided_and_says_what_it_takes() {
    let mut passage = Passage::new(Terms { ratio_ppb: 800_000_000, ..TERMS });
    let none = passage.judge(Slot(START));
    assert_eq!((none.state, none.went_in, none.needed, none.p_value), (State::Undecided, 0, 5, 1.0));
    let verdicts = run(&mut passage, 1..5 * HOUR, |s| (each(HOUR + 700, s), 0));
    assert_eq!(states(&verdicts), [State::Undecided]);
    let last = verdicts.last().unwrap();
    assert_eq!((last.went_in, last.came_out, last.waiting, last.window_ms), (1, 0, 1, 6 * 3_600_000));
    assert_eq!([0.99, 0.5, 0.999_999].map(needed), [2, 10, 1]);
}

/// 0.01^n for work of which nothing came out, and the tail at three of five: 1 - P(X ≥ 3), p = 0.99.
#[test]
fn numbers_of_the_tail() {
    assert_eq!(three_digits(binomial_at_most(0, 3, 0.99)).to_string(), "0.000001");
    assert_eq!(format!("{:.2e}", binomial_at_most(2, 5, 0.99)), "9.85e-6");
    // Two of two within two minutes may be luck, three may not: α is 0.001 · 12/2160.
    assert!(binomial_at_most(0, 2, 0.99) > ALPHA * 12.0 / 2160.0 && binomial_at_most(0, 3, 0.99) < ALPHA * 12.0 / 2160.0);
}

#[test]
fn a_flow_that_keeps_its_promise_is_not_called_missing() {
    let (mut passage, mut random) = (Passage::new(TERMS), 1_u64);
    // Two days of three units a minute, of which half a percent is lost, without any pattern.
    for s in 0..48 * HOUR {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let work = each(2, s);
        let lost = u64::from((random >> 33).is_multiple_of(200));
        let verdict = run(&mut passage, s..s + 1, |_| (work, work.saturating_sub(lost))).pop().unwrap();
        assert_ne!(verdict.state, State::Missing, "{verdict:?}");
    }
}

#[test]
fn long_allowances_have_longer_steps() {
    for (within_ms, slots) in [(0, 1), (60_000, 1), (900_000, 1), (900_001, 2), (3_600_000, 4), (86_400_000, 96)] {
        assert_eq!(Terms { within_ms, ..TERMS }.slots(), slots, "{within_ms}");
    }
    let mut passage = Passage::new(Terms { within_ms: 3_600_000, ..TERMS });
    let verdicts = run(&mut passage, 0..20 * HOUR, |s| (each(6, s), if (180..10 * HOUR).contains(&s) { each(6, s - 180) } else { 0 }));
    let found = verdicts.iter().position(|v| v.state == State::Missing).unwrap();
    // What was in half an hour before the death is due half an hour after it.
    assert!((10 * HOUR as usize + 180..10 * HOUR as usize + 180 + 90).contains(&found), "{found}");
}

/// A bare pass over what is counted: no settling, no incremental matching.
fn at_once(work: &[(u32, u64, u64)], end: u32) -> Verdict {
    let mut passage = Passage::new(TERMS);
    for (s, i, o) in work {
        passage.count_in(Slot(START + s), *i);
        passage.count_out(Slot(START + s), *o);
    }
    passage.judge(Slot(START + end))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn order_of_arrival_changes_nothing(work in prop::collection::vec((0_u32..600, 0_u64..3, 0_u64..3), 1..60).prop_flat_map(|w| (Just(w.clone()), Just(w).prop_shuffle()))) {
        prop_assert_eq!(at_once(&work.0, 600), at_once(&work.1, 600));
    }

    /// Judged at every slot, with what comes late in between, or once at the end: the counts are the same.
    #[test]
    fn judging_in_between_changes_no_count(work in prop::collection::vec((0_u32..400, 1_u64..3), 1..60), late in prop::collection::vec(0_u32..200, 60)) {
        let work: Vec<(u32, u64, u64)> = work.iter().map(|(s, n)| (*s, *n, *n)).collect();
        let mut passage = Passage::new(TERMS);
        let mut last = None;
        for now in 0..600 {
            for ((s, i, o), late) in work.iter().zip(&late) {
                if s + late == now {
                    passage.count_in(Slot(START + s), *i);
                    passage.count_out(Slot(START + s), *o);
                }
            }
            last = Some(passage.judge(Slot(START + now)));
            if now % 97 == 0 {
                let stored = postcard::to_allocvec(&passage).unwrap();
                let mut restored: Passage = postcard::from_bytes(&stored).unwrap();
                prop_assert_eq!(restored.judge(Slot(START + now)), last.clone().unwrap());
                passage = restored;
            }
        }
        prop_assert_eq!(last.unwrap(), at_once(&work, 599));
    }
}

#[test]
fn what_is_kept_has_a_limit() {
    let mut passage = Passage::new(TERMS);
    for s in 0..6 * LONGEST {
        passage.count_in(Slot(START + s), 1);
    }
    assert!(passage.curve.len() <= 2 * LONGEST as usize);
    run(&mut passage, 6 * LONGEST..6 * LONGEST + 3, |_| (1, 0));
    // Half a year in trouble.
    for day in 1..180 {
        let s = START + 6 * LONGEST + day * 24 * HOUR;
        passage.count_in(Slot(s), 1);
        passage.judge(Slot(s));
    }
    let stored = postcard::to_allocvec(&passage).unwrap();
    assert!(stored.len() < 40_000, "{} B", stored.len());
}
