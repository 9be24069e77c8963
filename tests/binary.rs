//! Binary batches mean what the same timings mean as JSON, and a body that is none is refused whole, whatever it is.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking, and has one crate of modules")]

mod proto;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proto::encode;
use serde_json::{Value, json};
use slowburn::counting::Cell;
use slowburn::endpoint::{EndpointId, KeyRef, PathTemplates};
use slowburn::histogram::grid::VALUE_US_MAX;
use slowburn::history::catalogue::Limits;
use slowburn::history::counts::Counts;
use slowburn::ingest::admission::{Admission, FUTURE_MS, PAST_MS, TimeLimits};
use slowburn::ingest::binary::{self, ENDPOINTS_MAX, Refused, TIMINGS_MAX};
use slowburn::ingest::known::KnownEndpoints;
use slowburn::ingest::protobuf::Broken;
use slowburn::ingest::{Batch, json};
use slowburn::judge::Promises;
use slowburn::machine::{Delta, Machine};
use slowburn::time::{Slot, Timestamp};

const NOW: i64 = 1_767_571_205_000;

fn seeded(cases: u32) -> ProptestConfig {
    let seed = std::env::var("SLOWBURN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..ProptestConfig::default() }
}

fn machine() -> Machine {
    Machine::new(Promises::none(15_000), Limits { per_service: 4, total: 100, marked_critical_per_service: 5 })
}

fn admitted<E>(machine: &Machine, read: impl FnOnce(&mut Admission<'_>) -> Result<(), E>) -> Result<Batch, E> {
    let (templates, known) = (PathTemplates::default(), KnownEndpoints::default());
    known.add(machine.catalogue.numbered_from(EndpointId(0)));
    let mut admission = Admission::new(&templates, &known, TimeLimits { now: Timestamp(NOW), past_ms: PAST_MS, future_ms: FUTURE_MS });
    read(&mut admission)?;
    Ok(admission.finish())
}

fn read(body: &[u8]) -> Result<Batch, Refused> {
    admitted(&machine(), |admission| binary::read(body, admission))
}

fn cells(machine: &Machine) -> Vec<(Slot, EndpointId, Cell)> {
    machine.open.cells().collect()
}

/// What a timing says, before it has a form.
#[derive(Clone, Debug)]
struct Said {
    endpoint: usize,
    delta_ms: i64,
    us: u64,
    outcome: usize,
    weight: u64,
    count: u64,
    detail: Option<Value>,
}

fn said() -> impl Strategy<Value = Said> {
    let delta_ms = prop_oneof![8 => -60_000i64..60_000, 1 => -90_000_000i64..200_000, 1 => Just(i64::MIN), 1 => Just(i64::MAX)];
    let us = prop_oneof![6 => 0u64..5_000_000, 1 => 0u64..VALUE_US_MAX + 2, 1 => Just(1 << 26), 1 => any::<u64>()];
    let details = [json!({"actor": "ann"}), json!({"trace_id": "t", "stage": "start", "key": "k"}), json!({"key": "a\nb"}), json!({"actor": "a".repeat(257)})];
    let detail = prop_oneof![8 => Just(None), 1 => prop::sample::select(details.to_vec()).prop_map(Some)];
    let rarely = |most: u64| prop_oneof![8 => Just(1u64), 1 => 0..most];
    (0usize..9, delta_ms, us, prop_oneof![8 => 0usize..4, 1 => 4usize..6], rarely(2_000_000), rarely(9), detail)
        .prop_map(|(endpoint, delta_ms, us, outcome, weight, count, detail)| Said { endpoint, delta_ms, us, outcome, weight, count, detail })
}

/// Good ones, one beyond the limit of its service, and bad ones.
fn endpoints() -> Vec<Value> {
    let mut endpoints: Vec<Value> = (0..5).map(|n| json!({"service": "s", "env": "prod", "method": "GET", "route": format!("/{n}")})).collect();
    endpoints.push(json!({"service": "t", "kind": "job", "path": "/orders/4711", "critical": true}));
    endpoints.push(json!({"route": "/a"}));
    endpoints.push(json!({"service": "s"}));
    endpoints.push(json!({"service": "s", "route": "a\u{7}"}));
    endpoints
}

fn line(said: &Said) -> String {
    const OUTCOMES: [&str; 6] = ["ok", "client_error", "error", "timeout", "none", "such"];
    let mut line = endpoints()[said.endpoint].clone();
    let mut more = json!({"ts": NOW.saturating_add(said.delta_ms), "outcome": OUTCOMES[said.outcome], "weight": said.weight});
    more[if said.count == 1 { "duration_us" } else { "values_us" }] = if said.count == 1 { json!(said.us) } else { json!([[said.us, said.count]]) };
    for (name, value) in more.as_object().unwrap().iter().chain(said.detail.as_ref().and_then(Value::as_object).into_iter().flatten()) {
        line[name] = value.clone();
    }
    line.to_string()
}

/// `whole`: with columns that could be left out.
fn message(all: &[Said], base: i64, whole: bool) -> Value {
    let column = |of: &dyn Fn(&Said) -> Value| Value::Array(all.iter().map(of).collect());
    let mut message = json!({
        "endpoints": endpoints(),
        "base_ts_ms": base,
        "endpoint": column(&|s| json!(s.endpoint)),
        "duration_us": column(&|s| json!(s.us)),
    });
    for (name, absent, column) in [
        ("ts_delta_ms", 0, column(&|s| json!(s.delta_ms))),
        ("outcome", 0, column(&|s| json!(s.outcome))),
        ("weight", 1, column(&|s| json!(s.weight))),
        ("count", 1, column(&|s| json!(s.count))),
    ] {
        if whole || column.as_array().unwrap().iter().any(|v| *v != json!(absent)) {
            message[name] = column;
        }
    }
    let details = all.iter().enumerate().filter_map(|(at, said)| {
        let mut detail = said.detail.clone()?;
        detail["timing"] = json!(at);
        if let Some(stage) = detail.get_mut("stage") {
            *stage = json!("STAGE_START");
        }
        Some(detail)
    });
    message["details"] = details.collect();
    message
}

proptest! {
    #![proptest_config(seeded(400))]
    #[test]
    fn the_same_timings_as_json_and_as_a_binary_batch_are_the_same_to_the_machine(
        first in prop::collection::vec(said(), 0..30), second in prop::collection::vec(said(), 0..30), whole: bool, base_is_now: bool
    ) {
        let (mut ours, mut theirs) = (machine(), machine());
        for all in [first, second] {
            let body = encode(&message(&all, if base_is_now { 0 } else { NOW }, whole));
            let binary = admitted(&ours, |a| binary::read(&body, a)).unwrap();
            let lines: Vec<String> = all.iter().map(line).collect();
            let text = admitted(&theirs, |a| {
                json::read_ndjson(lines.join("\n").as_bytes(), a); Ok::<_, ()>(()) }).unwrap();
            prop_assert_eq!((binary.accepted, binary.rejected, &binary.refused), (text.accepted, text.rejected, &text.refused));
            for (binary, text) in binary.errors.iter().zip(&text.errors) {
                prop_assert_eq!(binary.0, text.0);
                prop_assert!(binary.1 == text.1 || binary.1.starts_with("`outcome`"), "{:?} {:?}", binary, text);
            }
            let (binary, text) = (ours.fold(&[&binary]), theirs.fold(&[&text]));
            ours.apply(ours.position.next(), &binary);
            theirs.apply(theirs.position.next(), &text);
            // The same counts may stand in other bytes: a raw path as JSON is never packed.
            let but_counts = |delta: Delta| Delta { counts: Counts::default(), ..delta };
            prop_assert_eq!(but_counts(binary), but_counts(text));
            prop_assert_eq!(cells(&ours), cells(&theirs));
        }
    }

    #[test]
    fn no_bytes_are_too_strange(body in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(read(&body));
    }

    #[test]
    fn a_batch_that_lost_a_byte_or_has_another_never_breaks_the_reader(all in prop::collection::vec(said(), 1..8), at: prop::sample::Index, byte: u8, cut: bool) {
        let mut body = encode(&message(&all, NOW, true));
        let at = at.index(body.len());
        if cut { body.drain(at..=at); } else { body[at] = byte; }
        drop(read(&body));
    }
}

fn small() -> Value {
    json!({"endpoints": [{"service": "s", "route": "/a"}], "endpoint": [0, 0, 0], "duration_us": [1, 300, 70_000], "outcome": [0, 1, 2], "ts_delta_ms": [0, -1, 200],
        "details": [{"timing": 1, "actor": "ann"}], "in_flight": [{"service": "s", "route": "/a", "age_ms": 31_000}]})
}

#[test]
fn a_body_that_is_cut_off_is_refused_or_ends_between_two_fields() {
    let body = encode(&small());
    assert_eq!(read(&body).unwrap().accepted, 3);
    let whole = (0..body.len()).filter(|len| read(&body[..*len]).is_ok()).count();
    // Nothing, the dictionary alone, all without what runs, the columns that must be there, and what may be left out behind them.
    assert!(whole <= 6, "{whole}");
}

#[test]
fn columns_of_other_lengths_and_indices_that_lead_nowhere_refuse_the_whole() {
    let with = |name: &str, value: Value| {
        let mut message = small();
        message[name] = value;
        read(&encode(&message)).unwrap_err()
    };
    for column in ["ts_delta_ms", "duration_us", "weight", "count"] {
        assert_eq!(with(column, json!([1, 1])), Refused::Length { column: column_name(column), len: 2, expected: 3 });
        assert_eq!(with(column, json!([1, 1, 1, 1])), Refused::Length { column: column_name(column), len: 4, expected: 3 });
    }
    assert_eq!(with("outcome", json!([1])), Refused::Length { column: "outcome", len: 1, expected: 3 });
    assert_eq!(with("duration_us", json!([])), Refused::Length { column: "duration_us", len: 0, expected: 3 });
    assert_eq!(with("endpoint", json!([])), Refused::Length { column: "ts_delta_ms", len: 3, expected: 0 });
    assert_eq!(with("endpoint", json!([0, 1, 0])), Refused::NoEndpoint { at: 1, place: 1, len: 1 });
    assert_eq!(with("endpoint", json!([0, 0, u32::MAX])), Refused::NoEndpoint { at: 2, place: u64::from(u32::MAX), len: 1 });
    assert_eq!(with("details", json!([{"timing": 3}])), Refused::Detail(3, 3));
    assert_eq!(with("details", json!([{"timing": 1}, {"timing": 0}])), Refused::Detail(0, 3));
    assert_eq!(with("details", json!([{"timing": 1}, {"timing": 1}])), Refused::Detail(1, 3));
    assert_eq!(read(b"{\"service\":\"s\"}").unwrap_err(), Broken::NoField.into());
    assert_eq!(read(&[0x0a, 0x03, 0x0a, 0x01, 0xff]).unwrap_err(), Refused::Text(1));
    assert_eq!(read(&[0x12, 0x00]).unwrap_err(), Broken::Type(2).into());
}

fn column_name(name: &str) -> &'static str {
    ["ts_delta_ms", "duration_us", "weight", "count"].into_iter().find(|n| *n == name).unwrap()
}

#[test]
fn a_bad_endpoint_refuses_its_timings_and_what_runs_is_refused_one_by_one() {
    let mut message = small();
    message["endpoints"] = json!([{"service": "s", "route": "/a"}, {"service": "s"}]);
    message["endpoint"] = json!([1, 0, 1]);
    message["in_flight"] = json!([{"service": "s", "route": "/a", "n": 4}, {"service": "s"}]);
    let batch = read(&encode(&message)).unwrap();
    assert_eq!((batch.accepted, batch.rejected, batch.in_flight.len(), batch.in_flight[0].n), (1, 3, 1, 4));
    assert_eq!(batch.errors.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 2, 4]);
    assert!(batch.errors[0].1.contains("`route` and `path`") && batch.errors[2].1.contains("`in_flight`: `route`"), "{:?}", batch.errors);
}

#[test]
fn messages_end_to_end_unpacked_columns_and_unknown_fields_are_protobuf_too() {
    assert_eq!(read(b"").unwrap().timings(), 0);
    let twice = [encode(&json!({"endpoints": [{"service": "s", "route": "/a"}], "endpoint": [0], "duration_us": [5]})), encode(&small())].concat();
    assert!(matches!(read(&twice), Err(Refused::Length { column: "ts_delta_ms", .. })));
    let one = encode(&json!({"endpoints": [{"service": "s", "route": "/a"}], "endpoint": [0], "duration_us": [500]}));
    assert_eq!(read(&[one.clone(), one.clone()].concat()).unwrap().accepted, 2);
    // Field 3 as a plain number, field 5 likewise, field 15 of eight bytes.
    let plain = [&one[..], &[0x18, 0x00, 0x28, 0xac, 0x02], &[0x79, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
    assert_eq!(read(&plain).unwrap().items.iter().map(|i| i.span.highest_us).collect::<Vec<_>>(), [500, 300]);
}

/// Two bytes can ask for an endpoint, one for a timing: what they may ask for is bounded.
#[test]
fn more_than_a_batch_may_have_is_refused_before_it_takes_room() {
    assert_eq!(read(&[0x0a, 0].repeat(ENDPOINTS_MAX)).unwrap().timings(), 0);
    assert_eq!(read(&[0x0a, 0].repeat(8 << 20)).unwrap_err(), Refused::TooMany(ENDPOINTS_MAX, "endpoints"));
    assert_eq!(read(&[0x4a, 0].repeat(8 << 20)).unwrap_err(), Refused::TooMany(TIMINGS_MAX, "details"));
    assert_eq!(read(&[0x52, 0].repeat(8 << 20)).unwrap_err(), Refused::TooMany(ENDPOINTS_MAX, "groups in flight"));
    assert_eq!(read(&[0x18, 0].repeat(8 << 20)).unwrap_err(), Refused::TooMany(TIMINGS_MAX, "timings"));
}

/// A field of bytes, of which there are fewer than 128.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

#[test]
fn bodies_are_read_while_endpoints_are_added() {
    const ENDPOINTS: u32 = 20;
    fn key(route: &str) -> KeyRef<'_> {
        KeyRef { service: "s", env: "", kind: "http", method: "", route }
    }
    let keys: Vec<String> = (0..ENDPOINTS).map(|n| format!("/{n}")).collect();
    let known = Arc::new(KnownEndpoints::default());
    known.add(keys.iter().zip(0..).map(|(route, id)| (EndpointId(id), key(route))));
    let (done, is_done) = std::sync::mpsc::channel();
    for reader in 0..4u16 {
        let (known, keys, done) = (Arc::clone(&known), keys.clone(), done.clone());
        std::thread::spawn(move || {
            let templates = PathTemplates::default();
            for round in 0..2_000u16 {
                // Each time the same endpoints, written as never before: with a field that nobody knows.
                let entry =
                    |route: &String| [field(1, b"s"), field(5, route.as_bytes()), field(15, &[reader.to_le_bytes(), round.to_le_bytes()].concat())].concat();
                let entries: Vec<u8> = keys.iter().flat_map(|route| field(1, &entry(route))).collect();
                let body = [entries, field(3, &[0, 19]), field(5, &[1, 2])].concat();
                let mut admission = Admission::new(&templates, &known, TimeLimits { now: Timestamp(NOW), past_ms: PAST_MS, future_ms: FUTURE_MS });
                binary::read(&body, &mut admission).unwrap();
                assert_eq!(admission.finish().packed.len(), 2);
            }
            done.send(()).unwrap();
        });
    }
    std::thread::spawn(move || {
        for id in ENDPOINTS..100_000 {
            known.add(std::iter::once((EndpointId(id), key(&format!("/more/{id}")))));
            std::thread::yield_now();
        }
    });
    for _ in 0..4 {
        // Not how fast it is, but that it ends at all.
        is_done.recv_timeout(Duration::from_secs(60)).expect("a reader waits for the engine, and the engine for it");
    }
}
