//! The laws of counting, from the JSON line to the stored byte, against the raw values and the `hdrhistogram` crate.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    clippy::pedantic,
    unreachable_pub,
    reason = "a test fails by panicking, counts little, and has one crate of modules"
)]

use std::collections::BTreeMap;

use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use serde_json::json;
use slowburn::config::Config;
use slowburn::counting::Cell;
use slowburn::endpoint::EndpointId;
use slowburn::endpoint::PathTemplates;
use slowburn::histogram::grid::VALUE_US_MAX;
use slowburn::histogram::quantile::Quantile;
use slowburn::history::catalogue::Limits;
use slowburn::history::open_slots::put_row;
use slowburn::ingest::admission::{Admission, FUTURE_MS, PAST_MS, TimeLimits};
use slowburn::ingest::known::KnownEndpoints;
use slowburn::ingest::{Batch, Fate, json};
use slowburn::judge::{Command, Promises, Record};
use slowburn::log::record::{Frame, Position};
use slowburn::machine::{Delta, Machine};
use slowburn::time::{Slot, Timestamp};

const NOW: i64 = 1_767_571_205_000;
const LIMITS: Limits = Limits { per_service: 4, total: 100, marked_critical_per_service: 5 };

fn seeded(cases: u32) -> ProptestConfig {
    let seed = std::env::var("SLOWBURN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    println!("seed {seed} (SLOWBURN_SEED sets it), {cases} cases");
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..ProptestConfig::default() }
}

fn owed(threshold_us: u64) -> Promises {
    let text = format!(
        "[[endpoint]]\nservice = \"s\"\nroute = \"/a\"\nobjectives = [{{ latency = \"{threshold_us}us\", target = \"99%\" }}, {{ availability = true, target = \"99.9%\" }}]\n"
    );
    Config::parse("laws.toml", &text).unwrap().promises
}

fn machine(promises: Promises) -> Machine {
    let mut machine = Machine::new(Promises::none(15_000), LIMITS);
    let record = machine.judge.decide(Command::Configure(Timestamp(NOW), promises)).unwrap();
    machine.apply(Position(1), &record.into());
    machine
}

/// As a handler reads them that knows the machine's endpoints.
fn admitted(machine: &Machine, lines: &[String], now: i64) -> Batch {
    let (templates, known) = (PathTemplates::default(), KnownEndpoints::default());
    known.add(machine.catalogue.numbered_from(EndpointId(0)));
    let mut admission = Admission::new(&templates, &known, TimeLimits { now: Timestamp(now), past_ms: PAST_MS, future_ms: FUTURE_MS });
    json::read_ndjson(lines.join("\n").as_bytes(), &mut admission);
    admission.finish()
}

fn take_in(machine: &mut Machine, lines: &[String], now: i64) -> Delta {
    let delta = machine.fold(&[&admitted(machine, lines, now)]);
    machine.apply(machine.position.next(), &delta);
    delta
}

fn whole(machine: &Machine) -> Cell {
    machine.open.cells().fold(Cell::default(), |mut sum, (_, _, cell)| {
        sum.merge(&cell);
        sum
    })
}

/// (microseconds, failed, weight, how often): `how often` over 1 is sent as `values_us`.
type Raw = (u64, bool, u64, u64);

fn raw() -> impl Strategy<Value = Raw> {
    let us = prop_oneof![0u64..5_000, 1_000u64..2_000_000, 0u64..VALUE_US_MAX];
    (us, prop::bool::weighted(0.2), prop_oneof![4 => Just(1u64), 1 => 2u64..50], prop_oneof![4 => Just(1u64), 1 => 2u64..9])
}

fn line(raw: &Raw, ts: i64) -> String {
    let (us, failed, weight, times) = raw;
    let status = if *failed { 500 } else { 200 };
    let mut line = json!({"service": "s", "route": "/a", "ts": ts, "status": status, "weight": weight});
    match (times, us % 3) {
        (1, 0) => line["duration_us"] = json!(us),
        (1, 1) => line["duration_ms"] = json!(*us as f64 / 1e3),
        (1, _) => line["duration_s"] = json!(*us as f64 / 1e6),
        _ => line["values_us"] = json!([[us, times]]),
    }
    if us % 2 == 0 {
        line["trace_id"] = json!(format!("{:x}", us % 7));
    }
    line.to_string()
}

fn v2(values: &[u64], digits: u8) -> (String, hdrhistogram::Histogram<u64>) {
    use base64::Engine as _;
    let mut histogram = hdrhistogram::Histogram::<u64>::new_with_bounds(1, VALUE_US_MAX, digits).unwrap();
    for value in values {
        histogram.record(*value).unwrap();
    }
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(&histogram, &mut bytes).unwrap();
    (base64::engine::general_purpose::STANDARD.encode(bytes), histogram)
}

#[test]
fn one_thousand_thresholds_and_one_microsecond_on_either_side() {
    proptest!(seeded(1_000), |(values in prop::collection::vec(raw(), 1..30), at in any::<Index>(), side in 0u64..3, other in 1u64..3_000_000)| {
        // The threshold is one of the values, or 1 µs beside it.
        let threshold = (at.get(&values).0 + side).saturating_sub(1).clamp(1, VALUE_US_MAX);
        let mut machine = machine(owed(threshold));
        take_in(&mut machine, &values.iter().map(|v| line(v, NOW)).collect::<Vec<_>>(), NOW);
        let cell = whole(&machine);
        let sum = |wanted: &dyn Fn(&Raw) -> bool| values.iter().filter(|v| wanted(v)).map(|v| v.2 * v.3).sum::<u64>();
        let count = cell.at_threshold(threshold);
        prop_assert_eq!(count.within.weight, sum(&|v| !v.1 && v.0 <= threshold), "good at {}", threshold);
        prop_assert_eq!(count.failed_within.weight, sum(&|v| v.1 && v.0 <= threshold), "failed at {}", threshold);
        prop_assert_eq!((count.unsure.weight, count.failed_unsure.weight), (0, 0), "a configured threshold is never unsure");
        prop_assert_eq!(cell.total().observed, values.iter().map(|v| v.3).sum::<u64>(), "evidence counts observations");
        let (bounds, truth) = (cell.at_threshold(other), sum(&|v| !v.1 && v.0 <= other));
        prop_assert!(bounds.within.weight <= truth && truth <= bounds.within.weight + bounds.unsure.weight, "the two bounds contain the truth");
    });
}

#[test]
fn quantiles_are_those_of_the_crate_however_the_values_are_merged() {
    proptest!(seeded(150), |(values in prop::collection::vec(raw(), 1..80), parts in 1usize..6, restart in any::<bool>())| {
        let mut theirs = hdrhistogram::Histogram::<u64>::new_with_bounds(1, VALUE_US_MAX, 2).unwrap();
        for v in &values { theirs.record_n(v.0, v.2 * v.3).unwrap(); }
        // Each part comes from another instance, into another slot; the machine may be put away and taken out again in between.
        let mut machine = machine(owed(800_000));
        for (n, part) in values.chunks(values.len().div_ceil(parts)).enumerate() {
            let at = NOW - n as i64 * 17_000;
            take_in(&mut machine, &part.iter().map(|v| line(v, at)).collect::<Vec<_>>(), NOW);
            if restart {
                machine = Machine::restore(&machine.state().to_bytes(), machine.position, Vec::new(), LIMITS).unwrap();
            }
        }
        let cell = whole(&machine);
        let mut ours = cell.passed.clone();
        ours.merge(&cell.failed);
        for q in ["0", "0.5", "0.9", "0.99", "0.999", "1"] {
            prop_assert_eq!(ours.quantile_us(Quantile::parse(q).unwrap()), Some(theirs.value_at_quantile(q.parse().unwrap())), "q {}", q);
        }
        prop_assert_eq!(machine.totals[0].cell.as_deref(), Some(&cell), "what was ever counted is what the slots hold");
        // Minutes, then their sum: the same cell.
        let closed = machine.apply(machine.position.next(), &machine.close(Slot::containing(Timestamp(NOW + 120_000))));
        let merged = closed.closed.iter().flat_map(|m| m.rows()).fold(Cell::default(), |mut sum, row| { sum.merge(&row.cell); sum });
        prop_assert_eq!(&merged, &cell, "minutes add up to their slots");
    });
}

#[test]
fn a_payload_of_buckets_is_bounded_and_never_flatters() {
    proptest!(seeded(100), |(values in prop::collection::vec(1u64..3_000_000, 1..40), threshold in 1u64..3_000_000, digits in 1u8..4)| {
        let (payload, theirs) = v2(&values, digits);
        let mut machine = machine(owed(threshold));
        take_in(&mut machine, &[json!({"service": "s", "route": "/a", "hdr": payload}).to_string()], NOW);
        let cell = whole(&machine);
        let truth = values.iter().filter(|v| **v <= threshold).count() as u64;
        let count = cell.at_threshold(threshold);
        prop_assert!(count.within.weight <= truth && truth <= count.within.weight + count.unsure.weight);
        prop_assert_eq!(count.within.weight, theirs.iter_recorded().filter(|v| theirs.highest_equivalent(v.value_iterated_to()) <= threshold).map(|v| v.count_at_value()).sum::<u64>(), "only whole buckets are good");
        prop_assert_eq!(cell.total().weight, values.len() as u64);
    });
}

/// Everything that a run leaves: bytes of rows, lines, state.
fn left(batches: &[Vec<String>], one_by_one: bool) -> (Vec<Vec<u8>>, Vec<String>, Vec<u8>) {
    let mut machine = machine(owed(800_000));
    take_in(&mut machine, &[line(&(5, false, 1, 1), NOW)], NOW);
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    let mut end = Slot::containing(Timestamp(NOW));
    for slot in batches {
        if one_by_one {
            for timing in slot {
                take_in(&mut machine, std::slice::from_ref(timing), NOW + 300_000);
            }
        } else {
            take_in(&mut machine, slot, NOW + 300_000);
        }
        let delta = machine.close(end);
        for record in &delta.records {
            if let Record::SlotClosed(closed) = record {
                lines.extend(closed.transitions.iter().map(|t| serde_json::to_string(t).unwrap()));
            }
        }
        for row in machine.apply(machine.position.next(), &delta).closed.iter().flat_map(|m| m.rows()) {
            let mut bytes = Vec::new();
            put_row(&mut bytes, &row);
            rows.push(bytes);
        }
        end = end.next();
    }
    (rows, lines, machine.state().to_bytes())
}

#[test]
fn order_and_senders_change_no_stored_byte_and_no_line() {
    let said = std::cell::Cell::new(0);
    proptest!(seeded(40), |(slots in prop::collection::vec(prop::collection::vec(raw(), 0..12), 20..40), bad_from in 5usize..20, keys in prop::collection::vec(any::<u64>(), 500))| {
        let mut sent: Vec<Vec<String>> = slots.iter().enumerate().map(|(n, slot)| {
            slot.iter().map(|v| line(&(v.0, v.1 || n > bad_from, v.2, v.3), NOW + n as i64 * 10_000)).collect()
        }).collect();
        let straight = left(&sent, false);
        let mut key = keys.iter().cycle();
        for slot in &mut sent { slot.sort_by_cached_key(|_| *key.next().unwrap()); }
        let permuted = left(&sent, true);
        said.set(said.get() + straight.1.len());
        prop_assert_eq!(&straight.0, &permuted.0, "stored rows");
        prop_assert_eq!(&straight.1, &permuted.1, "lines");
        prop_assert!(straight.2 == permuted.2, "the whole state");
    });
    println!("{} lines were said", said.get());
    assert!(said.get() > 0, "something was said, or the law says nothing");
}

#[test]
fn frames_settled_together_leave_what_they_leave_one_by_one() {
    let limits = Limits { per_service: 3_000, ..LIMITS };
    let limits = Limits { total: 3_000, ..limits };
    proptest!(seeded(40), |(frames in prop::collection::vec(prop::collection::vec((0u32..1_300, 0i64..4, 1u64..900_000, 0u8..20), 0..60), 1..12), looks in any::<u16>())| {
        let new = || {
            let mut machine = Machine::new(Promises::none(15_000), limits);
            let record = machine.judge.decide(Command::Configure(Timestamp(NOW), owed(250_000))).unwrap();
            machine.apply(Position(1), &record.into());
            machine
        };
        let (mut one_by_one, mut together) = (new(), new());
        for (n, frame) in frames.iter().enumerate() {
            let lines: Vec<String> = frame
                .iter()
                .map(|(route, slots, us, kind)| {
                    let (route, status) = (if *route == 0 { "/a".into() } else { format!("/{route}") }, if *kind == 0 { 500 } else { 200 });
                    json!({"service": "s", "route": route, "ts": NOW - slots * 10_000, "status": status, "duration_us": us, "weight": if *kind == 1 { 3 } else { 1 }}).to_string()
                })
                .collect();
            let delta = one_by_one.fold(&[&admitted(&one_by_one, &lines, NOW)]);
            prop_assert_eq!(&together.fold(&[&admitted(&together, &lines, NOW)]), &delta);
            let position = one_by_one.position.next();
            one_by_one.apply(position, &delta);
            together.take_in(position, &mut delta.clone());
            if looks >> (n % 16) & 1 == 1 {
                together.settle();
            }
        }
        // Keeping it settles what waits.
        prop_assert_eq!(one_by_one.state().to_bytes(), together.state().to_bytes());
    });
}

#[test]
fn many_timings_of_one_endpoint_in_one_frame_leave_what_they_leave_in_small_ones() {
    let at_once = std::cell::Cell::new(0);
    proptest!(seeded(40), |(timings in prop::collection::vec((0u32..3, 0i64..2, 1u64..3_000_000, 0u32..100), 1..2_500), failing_percent in prop_oneof![Just(0), Just(1), 0u32..100], size in 1usize..60)| {
        let lines: Vec<String> = timings
            .iter()
            .map(|(route, slots, us, kind)| {
                // Most are of `/x1`; `/a` has an objective. A few values are frequent.
                let (route, us) = (["/a", "/x1", "/x1"][*route as usize], if kind % 3 == 0 { us % 50 * 1_000 } else { *us });
                let status = if *kind < failing_percent { 500 } else if kind % 20 == 19 { 404 } else { 200 };
                json!({"service": "s", "route": route, "ts": NOW - slots * 10_000, "status": status, "duration_us": us}).to_string()
            })
            .collect();
        let known = [line(&(5, false, 1, 1), NOW), json!({"service": "s", "route": "/x1", "ts": NOW, "duration_us": 7}).to_string()];
        let left = |size: usize| {
            let mut machine = machine(owed(250_000));
            take_in(&mut machine, &known, NOW);
            for frame in lines.chunks(size) {
                let delta = take_in(&mut machine, frame, NOW);
                assert_eq!(delta, Delta::from_frame(&Frame { position: Position(9), sections: delta.to_sections() }).unwrap());
            }
            (machine.open.cells().collect::<Vec<_>>(), machine.totals.clone(), machine.fates)
        };
        at_once.set(at_once.get().max(timings.iter().filter(|t| t.0 > 0 && t.1 == 0).count()));
        let (whole, small) = (left(lines.len()), left(size));
        prop_assert_eq!(&whole.0, &small.0);
        prop_assert_eq!(&whole.1, &small.1);
        prop_assert_eq!(&whole.2, &small.2);
    });
    println!("up to {} timings of one endpoint and slot in a frame", at_once.get());
    assert!(at_once.get() > 500, "so many that they were counted, not sorted, or the law says nothing of that");
}

#[test]
fn every_timing_ends_in_exactly_one_fate() {
    proptest!(seeded(100), |(kinds in prop::collection::vec((0u8..8, 1u64..4), 1..60))| {
        let mut machine = machine(owed(800_000));
        let early = machine.close(Slot::containing(Timestamp(NOW - 60_000)));
        machine.apply(Position(2), &early);
        let (mut lines, mut wanted) = (Vec::new(), BTreeMap::<&str, u64>::new());
        for (n, (kind, count)) in kinds.iter().enumerate() {
            let with = |route: &str, ts: i64| json!({"service": "s", "route": route, "ts": ts, "values_us": [[7, count]], "weight": 3}).to_string();
            let (text, fate, observed) = match kind {
                0..=2 => (with("/a", NOW), Fate::Accepted, *count),
                3 => (with("/a", NOW - 120_000), Fate::Late, *count),
                4 => (with("/a", NOW - PAST_MS - 1), Fate::Late, 1),
                5 => (with("/a", NOW + FUTURE_MS + 1), Fate::Early, 1),
                6 => ("{\"service\": 5}".to_owned(), Fate::Malformed, 1),
                _ => {
                    // `/a` has an objective and is not under the limit, but takes a place when it came first.
                    lines.push(with("/a", NOW));
                    *wanted.entry(Fate::Accepted.name()).or_default() += count;
                    for k in 0..3 { lines.push(with(&format!("/known{k}"), NOW)); *wanted.entry(Fate::Accepted.name()).or_default() += count; }
                    (with(&format!("/x{n}"), NOW), Fate::OverLimit, *count)
                }
            };
            lines.push(text);
            *wanted.entry(fate.name()).or_default() += observed;
        }
        // As two batches of two senders in one commit.
        let (a, b) = lines.split_at(lines.len() / 2);
        let (a, b) = (admitted(&machine, a, NOW), admitted(&machine, b, NOW));
        let received = a.timings() + b.timings();
        let delta = machine.fold(&[&a, &b]);
        machine.apply(Position(3), &delta);
        let fates: BTreeMap<&str, u64> = Fate::ALL.into_iter().map(|f| (f.name(), machine.fates[f as usize])).filter(|f| f.1 > 0).collect();
        prop_assert_eq!(&fates, &wanted);
        prop_assert_eq!(machine.fates.iter().sum::<u64>(), received, "received = sum of fates");
        let counted: u64 = machine.open.cells().map(|(_, _, cell)| cell.total().observed).sum();
        prop_assert_eq!(counted + delta.fates[Fate::Malformed as usize] + delta.fates[Fate::Early as usize] + a.refused[Fate::Late as usize] + b.refused[Fate::Late as usize], received, "what is not refused is counted");
    });
}

/// 99.9 % at 14.4 times: one bad request of ten is undecided, two fire.
#[test]
fn the_table_of_evidence_end_to_end() {
    for (bad, opens) in [(1, false), (2, true)] {
        // The 1-times window of 3 days warns with a twentieth of luck, so the pair in question stands alone.
        let mut promises = owed(800_000);
        for promise in promises.endpoints.iter_mut().flat_map(|e| &mut e.promises) {
            promise.windows.retain(|w| (w.factor() - 14.4).abs() < 1e-9);
        }
        let mut machine = machine(promises);
        let lines: Vec<String> = (0..10).map(|n| line(&(1_000, n < bad, 1, 1), NOW)).collect();
        take_in(&mut machine, &lines, NOW);
        let delta = machine.close(Slot::containing(Timestamp(NOW)));
        let [Record::SlotClosed(closed)] = &delta.records[..] else { panic!("one slot was closed: {delta:?}") };
        let of_availability = closed.transitions.iter().filter(|t| t.evidence.promise().is_some_and(|p| p.objective == "availability"));
        assert_eq!(of_availability.count(), usize::from(opens), "{bad} of 10: {:?}", closed.transitions);
        machine.apply(machine.position.next(), &delta);
        let status = machine.judge.objectives().find(|o| o.objective == "availability").unwrap();
        let pair = status.windows.iter().find(|w| (w.evidence.factor - 14.4).abs() < 1e-9).unwrap();
        println!("{bad} of 10: {:?}, {:?} at {} times, p = {}", status.state, pair.evidence.verdict, pair.evidence.factor, pair.evidence.p_value);
        let wanted = if opens { ("burning", "firing", 4.48e-5) } else { ("undecided", "undecided", 9.96e-3) };
        assert_eq!(json!([status.state, pair.evidence.verdict]), json!([wanted.0, wanted.1]), "{bad} of 10");
        assert!((pair.evidence.p_value / wanted.2 - 1.0).abs() < 1e-9, "{bad} of 10: p = {}", pair.evidence.p_value);
        assert_eq!(status.undecided_until.is_some(), !opens, "{bad} of 10");
    }
}
