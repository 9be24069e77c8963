//! Exemplars follow from the log alone: a restart from snapshot and log, a rebuild from archive and log, and the server that never stopped have the same bytes of them.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking; numbers far below 2^31")]

mod common;

use axum::http::StatusCode;
use common::{Chance, DAY, HOUR, LIMITS, MINUTE, Server};
use serde_json::Value;
use slowburn::endpoint::{EndpointId, PathTemplates};
use slowburn::history::catalogue::Limits;
use slowburn::history::exemplars::{Exemplars, KEPT_MS};
use slowburn::ingest::admission::{Admission, FUTURE_MS, PAST_MS, TimeLimits};
use slowburn::ingest::known::KnownEndpoints;
use slowburn::ingest::{Batch, Detail, Whose, json};
use slowburn::judge::{Command, Promises};
use slowburn::log::file;
use slowburn::log::record::Position;
use slowburn::machine::{Delta, Machine};
use slowburn::run::disk::Retention;
use slowburn::run::recovery;
use slowburn::time::{Slot, Timestamp};

/// 2026-01-05 00:00 UTC.
const START: i64 = 1_767_571_200_000;

const RETENTION: Retention = Retention { minutes_ms: 8 * DAY, hours_ms: 400 * DAY, log_ms: 25 * HOUR };

const OWED: &str = "
[[endpoint]]
service = 'shop'
method = 'POST'
route = '/orders'
objectives = [{ latency = '800ms', target = '99%', period = '30d' }, { availability = true, target = '99%', period = '30d' }]
";

/// A minute of requests, each third of them traced, some of them late by minutes or hours.
fn minute(chance: &mut Chance, now: i64, slow: bool) -> String {
    let mut lines = String::new();
    for n in 0..6 {
        let (route, late) = ([("POST", "/orders"), ("GET", "/items"), ("GET", "/search")][chance.below(3) as usize], [0, 0, 0, 4 * MINUTE, 3 * HOUR, 9 * HOUR]);
        let ts = now - i64::try_from(chance.below(50_000)).unwrap() - late[chance.below(6) as usize];
        let status = if chance.below(5) == 0 { 500 } else { 200 };
        let us = 1_000 + chance.below(400_000) + if slow && n % 2 == 0 { 900_000 } else { 0 };
        let mut line = serde_json::json!({"ts": ts.max(START), "service": "shop", "method": route.0, "route": route.1, "status": status, "duration_us": us});
        if chance.below(3) == 0 {
            line["trace_id"] = serde_json::json!(format!("{:016x}", chance.next()));
        }
        lines += &(line.to_string() + "\n");
    }
    lines
}

/// All that is kept of exemplars, what is answered about them, and the incidents that name one.
fn known(server: &Server) -> (Vec<u8>, String, Vec<Value>) {
    let bytes = server.look(|machine| postcard::to_stdvec(&machine.exemplars).unwrap());
    let answer = server.get("/api/v1/query_exemplars?query=slowburn_request_duration_seconds_bucket");
    let incidents = server.json("/api/v1/incidents")["incidents"].as_array().unwrap().clone();
    (bytes, answer, incidents.into_iter().filter(|i| i["evidence"]["slowest_trace"].is_object()).collect())
}

#[test]
fn a_restart_and_a_rebuild_know_the_same_exemplars() {
    let (mut chance, folders) = (Chance::seeded("exemplars", 1), [(); 3].map(|()| common::folder()));
    let mut server = Server::start(folders[0].path(), RETENTION, 24 << 10, Timestamp(START));
    server.decide(Command::Configure(Timestamp(START), common::promises(OWED))).unwrap();
    let mut now = START + 10 * HOUR;
    server.at(Timestamp(now));
    let live = |server: &Server, now: &mut i64, minutes: i64, slow: bool, chance: &mut Chance| {
        for _ in 0..minutes {
            *now += MINUTE;
            server.at(Timestamp(*now));
            assert_eq!(server.post(&minute(chance, *now, slow), None).0, StatusCode::OK);
        }
    };
    live(&server, &mut now, 60, false, &mut chance);
    // A day and a night without a request: what was known is gone, and its part of the log archived.
    now += 27 * HOUR;
    server.at(Timestamp(now));
    assert!(server.look(|machine| machine.exemplars.is_empty()));
    live(&server, &mut now, 7 * 60, false, &mut chance);
    live(&server, &mut now, 20, true, &mut chance);
    assert!(!file::segments(&folders[0].path().join("archive")).unwrap().is_empty(), "the log reaches back to everything");
    let before = known(&server);
    assert!(before.0.len() > 5_000 && before.1.len() > 5_000 && !before.2.is_empty(), "{} {} {}", before.0.len(), before.1.len(), before.2.len());
    let oldest =
        server.look(|machine| machine.exemplars.of(slowburn::endpoint::EndpointId(0)..=slowburn::endpoint::EndpointId(9), all()).map(|(_, e)| e.ts).min());
    assert!(oldest.unwrap().0 > now - KEPT_MS - 12 * MINUTE, "{oldest:?} at {now}");

    // From the snapshot and the log behind it.
    server.crash(folders[1].path());
    server = Server::start(folders[1].path(), RETENTION, 24 << 10, Timestamp(now));
    same(&known(&server), &before);
    // It goes on where it was.
    live(&server, &mut now, 3, true, &mut chance);
    let later = known(&server);
    assert_ne!(later.0, before.0);

    // Without snapshot and index.
    server.crash(folders[2].path());
    let opened = recovery::open(folders[2].path(), LIMITS, RETENTION, Timestamp(now), true).unwrap();
    server = Server::start_on(opened, folders[2].path(), 24 << 10, Timestamp(now));
    same(&known(&server), &later);
    server.stop();
}

fn all() -> slowburn::time::TimeRange {
    slowburn::time::TimeRange { from: Timestamp(0), to: Timestamp(i64::MAX) }
}

fn same(now: &(Vec<u8>, String, Vec<Value>), before: &(Vec<u8>, String, Vec<Value>)) {
    assert!(now.0 == before.0, "the state of exemplars has {} bytes, and had {}", now.0.len(), before.0.len());
    assert_eq!(now.1, before.1);
    assert_eq!(now.2, before.2);
}

#[test]
fn what_only_decisions_change_is_written_once_between_two_and_never_old() {
    let dir = common::folder();
    let server = Server::start(dir.path(), RETENTION, 1 << 20, Timestamp(START));
    server.decide(Command::Configure(Timestamp(START), common::promises(OWED))).unwrap();
    let slow = |ts: i64| {
        serde_json::json!({"ts": ts, "service": "shop", "method": "POST", "route": "/orders", "status": 500, "duration_ms": 2_000, "weight": 50}).to_string()
    };
    let page = || {
        let page = server.get("/metrics");
        let value = |series: &str| page.lines().find_map(|l| l.strip_prefix(series)?.trim().parse::<f64>().ok());
        let of = |name: &str| value(&format!("{name}{{service=\"shop\",env=\"\",kind=\"http\",method=\"POST\",route=\"/orders\",objective=\"availability\"}}"));
        let parts = |result: &str| value(&format!("slowburn_process_decided_parts{{result=\"{result}\"}}")).unwrap();
        (of("slowburn_slo_error_budget_remaining_ratio"), of("slowburn_slo_bad_requests_total"), parts("written"), parts("shared"))
    };
    // A new endpoint is there at once, and a counter is of the moment; how the objective stands is that of the last evaluation.
    assert_eq!(page().0, None);
    assert_eq!(server.post(&slow(START), None).0, StatusCode::OK);
    let (left, bad, written, shared) = page();
    assert_eq!((left, bad), (Some(1.0), Some(50.0)));
    assert_eq!(server.post(&slow(START), None).0, StatusCode::OK);
    assert_eq!(page(), (Some(1.0), Some(100.0), written + 1.0, shared));
    assert_eq!(page(), (Some(1.0), Some(100.0), written + 1.0, shared + 1.0));
    server.at(Timestamp(START + 26_000));
    let (left, bad, ..) = page();
    assert!(left.unwrap() < 0.0 && bad == Some(100.0), "{left:?}");
    // A marker and a reload are seen at once.
    assert!(!server.get("/metrics").contains("title=\"deploy\""));
    let marker = slowburn::incident::Marker { ts: Timestamp(START), service: "shop".into(), title: "deploy".into(), version: "7".into() };
    server.decide(Command::Mark(marker)).unwrap();
    assert!(server.get("/metrics").contains("title=\"deploy\""));
    server.decide(Command::Configure(Timestamp(START + 26_000), common::promises(""))).unwrap();
    assert_eq!(page().0, None);
    server.stop();
}

/// A log of every trace would be ten times as long: what is left out of it can be told from the timings alone, and from what is known already.
#[test]
fn the_log_has_the_traces_that_can_become_exemplars_and_they_are_the_same() {
    let mut chance = Chance::seeded("traces of the log", 1);
    let mut machine = Machine::new(Promises::none(15_000), Limits { per_service: 9, total: 99, marked_critical_per_service: 0 });
    let (templates, known) = (PathTemplates::default(), KnownEndpoints::default());
    let read = |body: &str, now: i64| {
        let mut admission = Admission::new(&templates, &known, TimeLimits { now: Timestamp(now), past_ms: PAST_MS, future_ms: FUTURE_MS });
        json::read_ndjson(body.as_bytes(), &mut admission);
        admission.finish()
    };
    let (mut all, mut said, mut logged, mut position) = (Exemplars::default(), 0, 0, 0);
    let mut apply = |machine: &mut Machine, delta: &Delta| {
        position += 1;
        machine.apply(Position(position), delta);
    };
    let mut now = START + 10 * HOUR;
    for frame in 0..600 {
        let bodies: Vec<Batch> = (0..3).map(|_| read(&minute(&mut chance, now, false), now)).collect();
        let delta = machine.fold(&bodies.iter().collect::<Vec<_>>());
        logged += delta.details.len();
        apply(&mut machine, &delta);
        known.add(machine.catalogue.numbered_from(EndpointId(0)));
        for (batch, detail) in bodies.iter().flat_map(|b| b.details.iter().map(move |d| (b, d))) {
            let id = match detail.endpoint {
                Whose::Known(id) => id,
                Whose::Key(place) => machine.catalogue.get(batch.keys[place as usize].0.as_ref()).unwrap(),
            };
            let Detail { ts, outcome, duration_us, trace_id, .. } = detail.clone();
            all.add(&Detail { endpoint: id, ts, outcome, duration_us, trace_id, actor: None, key: None, starts: false }, false);
            said += 1;
        }
        now += 7_000;
        if frame % 3 == 0
            && let Some(target) = Slot::ended_by(Timestamp(now - 15_000))
        {
            while let Some(end) = machine.next_close(target) {
                let delta = machine.close(end);
                apply(&mut machine, &delta);
                all.judged(end.end());
            }
        }
    }
    assert_eq!(postcard::to_stdvec(&machine.exemplars).unwrap(), postcard::to_stdvec(&all).unwrap());
    assert!(said > 3_000 && logged < said / 2, "{logged} of {said}");

    // What says more than its trace stays, however fast it was.
    let line = |more: &str| format!(r#"{{"service":"shop","route":"/items","method":"GET","ts":{},"duration_us":1{more}}}"#, now - 20_000) + "\n";
    let body: String = [
        r#","trace_id":"t""#,
        r#","trace_id":"t","key":"k""#,
        r#","trace_id":"t","actor":"a""#,
        r#","trace_id":"t","stage":"start""#,
        r#","stage":"start""#,
        "",
    ]
    .map(line)
    .concat();
    let mut delta = machine.fold(&[&read(&body, now)]);
    assert_eq!(delta.details.len(), 4, "{:?}", delta.details);
    assert_eq!((delta.shed_traces(), delta.details.len()), (3, 4), "what starts counts as started without its trace, too");
}
