//! What is known stays known: index and snapshots deleted after 60 days, restarts and crashes at random, and what retention widens. The truth is a plain list of all
//! timings that were sent.

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

mod common;

use std::fs;

use axum::http::StatusCode;
use common::{Chance, DAY, HOUR, LIMITS, MINUTE, Server};
use serde_json::{Value, json};
use slowburn::histogram::Digits;
use slowburn::incident::{Marker, Silence};
use slowburn::judge::{Command, Record, SlotClosed};
use slowburn::log::file::{self, Reader, archive_and_log};
use slowburn::log::record::{Kind, Position};
use slowburn::machine::Delta;
use slowburn::run::disk::Retention;
use slowburn::run::recovery;
use slowburn::time::Timestamp;

/// 2026-01-05 00:00 UTC.
const START: i64 = 1_767_571_200_000;

const RETENTION: Retention = Retention { minutes_ms: 8 * DAY, hours_ms: 400 * DAY, log_ms: 25 * HOUR };

/// Small enough that 60 quiet days fill many.
const SEGMENT_BYTES: u64 = 24 << 10;

const OWED: &str = r#"
[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [
  { latency = "800ms", target = "99%", period = "30d" },
  { availability = true, target = "99.9%", period = "30d" },
]

[[endpoint]]
service = "shop"
method = "POST"
route = "/pay"
objectives = [{ availability = true, target = "99%", period = "30d" }]
"#;

/// What a reload in the middle of an hour adds.
const OWED_LATER: &str = r#"
[[endpoint]]
service = "cards"
route = "/cards/{id}"
critical = false
objectives = [{ latency = "250ms", target = "95%", period = "31d" }]
"#;

const ROUTES: [(&str, &str, &str); 5] =
    [("shop", "POST", "/orders"), ("shop", "POST", "/pay"), ("shop", "GET", "/items"), ("cards", "GET", "/cards/{id}"), ("cards", "GET", "/search")];

#[derive(Clone, Debug)]
struct Timing {
    route: usize,
    ts: i64,
    us: u64,
    failed: bool,
    weight: u64,
}

impl Timing {
    fn line(&self) -> String {
        let (service, method, route) = ROUTES[self.route];
        let status = if self.failed { 503 } else { 200 };
        json!({"service": service, "env": "prod", "method": method, "route": route, "ts": self.ts, "status": status, "duration_us": self.us, "weight": self.weight})
            .to_string()
    }
}

#[derive(Clone, Debug)]
enum Act {
    Send { timings: Vec<Timing>, header: Option<(&'static str, String)>, more: &'static str },
    Decide(Command),
    Owe(&'static str),
    AckAll,
    Nothing,
}

type Script = Vec<(i64, Act)>;

/// Mostly quiet days with bursts, lateness of every kind, one incident that ends and one that does not.
fn script(chance: &mut Chance, days: i64, bursts: u64, first_incident: i64, last_incident: i64) -> Script {
    let mut script: Script = vec![(START + 7_000, Act::Owe(OWED))];
    let (mut seq, mut keys) = (0_u64, 0_u64);
    for day in 0..days {
        for _ in 0..bursts {
            let at = START + day * DAY + chance.below(DAY as u64 - 600_000) as i64 + 100_000;
            let count = 2 + chance.below(16);
            let timings = (0..count)
                .map(|_| {
                    let late = [0, 0, 0, 0, 12_000, 12_000, 5 * MINUTE, 3 * HOUR, 20 * HOUR][chance.below(9) as usize];
                    let route = chance.below(ROUTES.len() as u64) as usize;
                    let slow = chance.below(40) == 0;
                    Timing {
                        route,
                        ts: (at - late - chance.below(9_000) as i64).max(START),
                        us: if slow { 800_000 + chance.below(3) } else { 1_000 + chance.below(300_000) },
                        failed: chance.below(300) == 0 && route > 1,
                        weight: if chance.below(10) == 0 { 1 + chance.below(4) } else { 1 },
                    }
                })
                .collect();
            let header = match chance.below(3) {
                0 => {
                    keys += 1;
                    Some(("idempotency-key", format!("key-{keys}")))
                }
                1 => {
                    seq += 1;
                    let (id, epoch) = (["a", "b"][(seq % 2) as usize], day / 9 + 1);
                    // One sender falls silent for good, long before the raw log begins.
                    let id = if day < days / 2 { id } else { "a" };
                    Some(("slowburn-sender", format!("{id}; epoch={epoch}; seq={seq}; dropped={}; uptime={}", seq % 7, seq * 10)))
                }
                _ => None,
            };
            let more = match chance.below(8) {
                0 => "\n{\"service\":\"shop\"}",
                1 => "\n{\"in_flight\":[{\"service\":\"shop\",\"route\":\"/orders\",\"age_ms\":9000,\"n\":2}]}",
                _ => "",
            };
            script.push((at, Act::Send { timings, header, more }));
            for after in [1_000, 17_000, 71_000] {
                script.push((at + after, Act::Nothing));
            }
        }
    }
    let minutely = |script: &mut Script, from: i64, minutes: i64, each: i64, route: usize, failed_of_20: u64| {
        for n in 0..minutes / each {
            let at = from + n * each * MINUTE;
            let timings = (0..20).map(|k| Timing { route, ts: at - 1_000, us: 20_000, failed: k < failed_of_20, weight: 1 }).collect();
            script.push((at, Act::Send { timings, header: None, more: "" }));
        }
    };
    let (first, last) = (START + first_incident, START + last_incident);
    minutely(&mut script, first, 6, 1, 0, 10);
    minutely(&mut script, first + 7 * MINUTE, 200, 4, 0, 0);
    minutely(&mut script, last, (START + days * DAY - last) / MINUTE, 60, 1, 8);
    let silence = |id: &str, from: i64, until: i64| Silence {
        id: id.into(),
        service: "shop".into(),
        env: None,
        method: None,
        route: Some("/items".into()),
        from: Timestamp(from),
        until: Timestamp(until),
        comment: "works".into(),
        by: "kim".into(),
    };
    let marker = |ts: i64, version: &str| Command::Mark(Marker { ts: Timestamp(ts), service: "shop".into(), title: "deploy".into(), version: version.into() });
    script.extend([
        (first + MINUTE / 2, Act::Decide(marker(first, "1"))),
        (first + 3 * MINUTE / 2, Act::AckAll),
        (first + 2 * HOUR, Act::Decide(Command::Silence(silence("s1", first + 2 * HOUR, first + 5 * HOUR)))),
        (first + 3 * HOUR, Act::Decide(Command::Unsilence(Timestamp(first + 3 * HOUR), "s1".into()))),
        (first + 10 * HOUR + 23 * MINUTE, Act::Owe(OWED_LATER)),
        (last - HOUR, Act::Decide(marker(last - HOUR, "2"))),
        (last - HOUR / 2, Act::Decide(Command::Silence(silence("s2", last, last + 90 * DAY)))),
        (START + days * DAY, Act::Nothing),
    ]);
    script.sort_by_key(|s| s.0);
    script
}

fn act(server: &Server, at: i64, act: &Act) {
    server.at(Timestamp(at));
    match act {
        Act::Nothing => {}
        Act::Send { timings, header, more } => {
            let body = timings.iter().map(Timing::line).collect::<Vec<_>>().join("\n") + more;
            let (status, answer) = server.post(&body, header.as_ref().map(|(n, v)| (*n, v.as_str())));
            assert_eq!(status, StatusCode::OK, "{answer}");
            assert!(answer.contains(&format!("\"accepted\":{}", timings.len())), "{answer}");
        }
        Act::Decide(command) => drop(server.decide(command.clone()).unwrap()),
        Act::Owe(text) => {
            let all = if *text == OWED { text.to_string() } else { format!("{OWED}{text}") };
            server.decide(Command::Configure(Timestamp(at), common::promises(&all))).unwrap();
        }
        Act::AckAll => {
            for incident in server.look(|m| m.judge.incidents().keys().cloned().collect::<Vec<_>>()) {
                server.decide(Command::Ack { at: Timestamp(at), incident, by: "kim".into() }).unwrap();
            }
        }
    }
}

fn sent(script: &Script) -> Vec<Timing> {
    script.iter().flat_map(|(_, act)| if let Act::Send { timings, .. } = act { timings.clone() } else { Vec::new() }).collect()
}

/// Every question whose answer must stay the same byte for byte.
fn questions(chance: &mut Chance, from: i64, to: i64) -> Vec<String> {
    let mut all: Vec<String> =
        ["endpoints", "objectives", "incidents", "silences", "markers", "senders"].into_iter().map(|what| format!("/api/v1/{what}")).collect();
    all.extend(["/metrics".into(), "/metrics/endpoints".into()]);
    let q = "q=0,0.5,0.9,0.99,1";
    all.push(format!("/api/v1/quantiles?from={from}&to={to}&{q}"));
    all.push(format!("/api/v1/quantiles?from={from}&to={to}&step=1d&{q}"));
    all.push(format!("/api/v1/quantiles?from={}&to={to}&step=1h&{q}", (to - 20 * DAY).max(from)));
    all.push(format!("/api/v1/quantiles?from={}&to={to}&step=1m&service=shop&{q}", to - 26 * HOUR));
    for (n, (service, method, route)) in ROUTES.into_iter().enumerate() {
        let one = format!("service={service}&env=prod&kind=http&method={method}&route={}", route.replace('{', "%7B").replace('}', "%7D"));
        for outcome in ["", "&outcome=ok", "&outcome=failed"] {
            all.push(format!("/api/v1/quantiles?{one}&from={from}&to={to}&{q}{outcome}"));
        }
        for threshold in ["800ms", "250ms", "137ms", "799999us", "800001us"] {
            all.push(format!("/api/v1/counts?{one}&from={from}&to={to}&threshold={threshold}"));
        }
        for _ in 0..12 {
            let reach = [HOUR, DAY, 8 * DAY, 60 * DAY][chance.below(4) as usize].min(to - from);
            let begin = to - reach + chance.below(reach as u64 - 1_000) as i64;
            let end = begin + 1 + chance.below((to + HOUR - begin) as u64) as i64;
            let which = if n == 0 { "env=prod" } else { &one };
            all.push(format!("/api/v1/quantiles?{which}&from={begin}&to={end}&{q}"));
            all.push(format!("/api/v1/counts?{which}&from={begin}&to={end}&threshold=800ms"));
            all.push(format!("/api/v1/counts?{which}&from={begin}&to={end}&threshold={}us", 1_000 + chance.below(900_000)));
        }
    }
    all
}

fn answers(server: &Server, questions: &[String]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = questions.iter().map(|q| (q.clone(), server.get(q))).collect();
    for incident in server.json("/api/v1/incidents")["incidents"].as_array().unwrap() {
        let one = format!("/api/v1/incidents/{}", incident["id"].as_str().unwrap());
        all.push((one.clone(), server.get(&one)));
    }
    all
}

fn same(before: &[(String, String)], after: &[(String, String)], when: &str) {
    // A start is itself a frame of the log, and has a time: all but these must be equal.
    let of_start = |line: &str| ["slowburn_log_frames_total ", "process_start_time_seconds "].iter().any(|name| line.starts_with(name));
    let without_start = |answer: &str| answer.lines().filter(|l| !of_start(l)).map(str::to_owned).collect::<Vec<_>>();
    for ((question, was), (_, is)) in before.iter().zip(after) {
        assert_eq!(without_start(was), without_start(is), "{when}: {question}");
    }
    assert_eq!(before.len(), after.len(), "{when}");
}

/// Compares with the plain list, over the range that the answer names.
fn holds(question: &str, answer: &str, timings: &[Timing]) -> usize {
    let value =
        |name: &str| question.split(['?', '&']).find_map(|p| p.strip_prefix(name)?.strip_prefix('=')).map(|v| v.replace("%7B", "{").replace("%7D", "}"));
    let may = |name: &str, is: &str| value(name).is_none_or(|v| v == is);
    let chosen: Vec<&Timing> =
        timings.iter().filter(|t| may("service", ROUTES[t.route].0) && may("method", ROUTES[t.route].1) && may("route", ROUTES[t.route].2)).collect();
    let answer: Value = serde_json::from_str(answer).unwrap();
    let inside = |range: &Value| {
        let (from, to) = (range["from"].as_i64().unwrap(), range["to"].as_i64().unwrap());
        chosen.iter().filter(move |t| (from..to).contains(&t.ts)).copied()
    };
    let mut checked = 0;
    for point in answer["points"].as_array().unwrap_or(&Vec::new()) {
        let wanted = |t: &&Timing| value("outcome").is_none_or(|o| (o == "failed") == t.failed);
        let mut values: Vec<u64> = inside(point).filter(wanted).flat_map(|t| std::iter::repeat_n(t.us, t.weight as usize)).collect();
        values.sort_unstable();
        assert_eq!(point["count"], values.len() as u64, "{question}: {point}");
        assert_eq!(point["failures"], inside(point).filter(|t| t.failed).map(|t| t.weight).sum::<u64>(), "{question}: {point}");
        for (q, seconds) in point["values"].as_object().unwrap() {
            let rank = ((q.parse::<f64>().unwrap() * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let bucket = Digits::Two.bucket_of(values[rank - 1]);
            let us = if q == "0" { Digits::Two.lowest_us(bucket) } else { Digits::Two.highest_us(bucket) };
            assert_eq!(seconds.as_f64(), Some(us as f64 / 1e6), "{question}: {q} of {point}");
        }
        checked += 1;
    }
    if let Some(total) = answer.get("total") {
        let threshold_us = slowburn::time::parse_duration_us(&value("threshold").unwrap()).unwrap();
        let good: u64 = inside(&answer).filter(|t| !t.failed && t.us <= threshold_us).map(|t| t.weight).sum();
        assert_eq!(*total, inside(&answer).map(|t| t.weight).sum::<u64>(), "{question}: {answer}");
        match answer["good"].as_u64() {
            Some(exact) => assert_eq!(exact, good, "{question}: {answer}"),
            None => {
                assert!((answer["good_low"].as_u64().unwrap()..=answer["good_high"].as_u64().unwrap()).contains(&good), "{question}: {answer}, truth {good}")
            }
        }
        checked += 1;
    }
    checked
}

/// Each batch with a name that is still known, sent again: keys of the last day, senders' numbers of their last four starts.
fn repeats(server: &Server, script: &Script, since: i64) -> Vec<String> {
    let mut again = Vec::new();
    for (at, act) in script {
        if let Act::Send { timings, header: Some((name, value)), more } = act
            && (*at >= since || value.starts_with("b;") || (value.starts_with("a;") && *at >= since - 30 * DAY))
        {
            let body = timings.iter().map(Timing::line).collect::<Vec<_>>().join("\n") + more;
            again.push(format!("{value}: {:?}", server.post(&body, Some((*name, value)))));
        }
    }
    again
}

fn transitions(dir: &std::path::Path) -> Vec<String> {
    let mut all = Vec::new();
    for frame in archive_and_log(dir).unwrap() {
        for record in Delta::from_frame(&frame.unwrap()).unwrap().records {
            if let Record::SlotClosed(SlotClosed { transitions, notifications, .. }) | Record::Configured { transitions, notifications, .. } = record {
                all.extend(transitions.iter().map(|t| serde_json::to_string(t).unwrap()));
                all.extend(notifications.iter().map(|n| serde_json::to_string(n).unwrap()));
            }
        }
    }
    all
}

#[test]
fn after_sixty_days_every_answer_is_the_same_without_index_and_snapshots() {
    let mut chance = Chance::seeded("sixty days", 11);
    let folder = common::folder();
    let (dir, twin) = (folder.path().join("data"), folder.path().join("twin"));
    let days = 60;
    let script = script(&mut chance, days, 8, 3 * DAY + 9 * HOUR, 58 * DAY + 3 * HOUR);
    let (timings, end) = (sent(&script), START + days * DAY);
    let server = Server::start(&dir, RETENTION, SEGMENT_BYTES, Timestamp(START));
    for (at, what) in &script {
        act(&server, *at, what);
    }
    // Two bodies under one number: a trace in the sender's state that must not get lost either.
    assert_eq!(server.post("{\"service\":\"shop\"}", Some(("slowburn-sender", "a; epoch=7; seq=9999"))).0, StatusCode::OK);
    assert_eq!(server.post("{\"service\":\"shop\"}\n", Some(("slowburn-sender", "a; epoch=7; seq=9999"))).0, StatusCode::UNPROCESSABLE_ENTITY);
    let again = repeats(&server, &script, end - 24 * HOUR);
    assert!(again.iter().all(|a| a.contains("duplicate")), "every batch with a name is known: {again:?}");

    let questions = questions(&mut chance, START, end);
    let before = answers(&server, &questions);
    let checked: usize = before.iter().map(|(q, a)| if q.contains("from=") { holds(q, a, &timings) } else { 0 }).sum();
    let incidents = server.json("/api/v1/incidents")["incidents"].as_array().unwrap().clone();
    let open: Vec<&Value> = incidents.iter().filter(|i| i["state"] != "resolved").collect();
    assert!(incidents.iter().any(|i| i["state"] == "resolved"), "one came and went: {incidents:?}");
    assert!(open.iter().any(|i| end - i["opened_at"].as_i64().unwrap() > 30 * HOUR), "one has been open since before the raw log begins: {incidents:?}");
    server.stop();

    // The raw log reaches back little more than a day; the counts of the first weeks are in history alone.
    let first = file::segments(&dir.join("log")).unwrap()[0].0;
    let archived: Vec<_> = Reader::archive(&dir, Position(0)).unwrap().map(|f| f.unwrap()).collect();
    assert!(first > Position(1_000) && archived.last().unwrap().position < first, "the log begins at {first:?}");
    assert!(archived.iter().all(|f| f.section(Kind::COUNTS).is_none()), "the archive holds no counts");
    let oldest = Reader::log(&dir, Position(0)).unwrap().find_map(|f| Delta::from_frame(&f.unwrap()).unwrap().at()).unwrap();
    assert!(oldest.0 > end - 3 * DAY, "the log goes back to {oldest}");
    println!(
        "{} timings, {} questions, {checked} points as in the plain list; log from position {} ({oldest}), {} segments archived, {} incidents ({} open)",
        timings.len(),
        before.len(),
        first.0,
        file::segments(&dir.join("archive")).unwrap().len(),
        incidents.len(),
        open.len()
    );

    common::copy(&dir, &twin);
    fs::remove_dir_all(dir.join("index")).unwrap();
    fs::remove_dir_all(dir.join("snapshots")).unwrap();
    let mut rebuilt = recovery::open(&dir, LIMITS, RETENTION, Timestamp(end), true).unwrap();
    rebuilt.keeper.checkpoint(&mut rebuilt.machine, Timestamp(end)).unwrap();
    drop(rebuilt);
    let server = Server::start(&dir, RETENTION, SEGMENT_BYTES, Timestamp(end));
    same(&before, &answers(&server, &questions), "after the rebuild");
    assert_eq!(repeats(&server, &script, end - 24 * HOUR), again, "after the rebuild");
    server.stop();

    // Both go on for half a day and say the same.
    let go_on = |dir: &std::path::Path| {
        let server = Server::start(dir, RETENTION, SEGMENT_BYTES, Timestamp(end));
        for n in 0..90_i64 {
            let at = end + n * 8 * MINUTE;
            let timings =
                (0..20).map(|k| Timing { route: (n % 3) as usize, ts: at - k * 40_000, us: 500_000, failed: k < 1 && n % 6 == 0, weight: 1 }).collect();
            act(&server, at, &Act::Send { timings, header: None, more: "" });
        }
        let answers = answers(&server, &questions);
        server.stop();
        answers
    };
    let (here, there) = (go_on(&dir), go_on(&twin));
    let without_duplicates = |answers: &[(String, String)]| -> Vec<(String, String)> {
        // The repeats above were sent to one of the two only.
        answers.iter().map(|(q, a)| (q.clone(), a.lines().filter(|l| !l.contains("outcome=\"duplicate\"")).collect::<Vec<_>>().join("\n"))).collect()
    };
    same(&without_duplicates(&there), &without_duplicates(&here), "half a day later");
    assert_eq!(transitions(&twin), transitions(&dir));
}

#[test]
fn restarts_and_crashes_at_random_moments_change_no_answer() {
    let mut chance = Chance::seeded("restarts", 23);
    let folder = common::folder();
    let script = script(&mut chance, 4, 9, 9 * HOUR, 2 * DAY);
    let (timings, end) = (sent(&script), START + 4 * DAY);
    let questions = questions(&mut chance, START, end);
    let whole = Server::start(&folder.path().join("whole"), RETENTION, SEGMENT_BYTES, Timestamp(START));
    for (at, what) in &script {
        act(&whole, *at, what);
    }
    let before = answers(&whole, &questions);
    for (q, a) in before.iter().filter(|(q, _)| q.contains("from=")) {
        holds(q, a, &timings);
    }
    let mut dir = folder.path().join("first");
    // Of all moments, snapshots are taken between two slots too.
    let start = |dir: &std::path::Path, now| {
        let mut opened = recovery::open(dir, LIMITS, RETENTION, now, false).unwrap();
        opened.keeper.snapshot_log_bytes = 200;
        Server::start_on(opened, dir, SEGMENT_BYTES, now)
    };
    let mut server = start(&dir, Timestamp(START));
    let (mut stops, mut crashes, mut losses) = (0, 0, 0);
    for (n, (at, what)) in script.iter().enumerate() {
        act(&server, *at, what);
        let now = server.clock.now();
        match chance.below(24) {
            0 => {
                stops += 1;
                server.stop();
            }
            1 => {
                crashes += 1;
                dir = folder.path().join(n.to_string());
                server.crash(&dir);
            }
            2 if n % 2 == 0 => {
                losses += 1;
                dir = folder.path().join(n.to_string());
                server.crash(&dir);
                // Whichever is lost, the rest has it.
                fs::remove_dir_all(dir.join(if n % 4 == 0 { "index" } else { "snapshots" })).unwrap_or_default();
            }
            _ => continue,
        }
        server = start(&dir, now);
    }
    println!("{} moments, {stops} restarts, {crashes} crashes, {losses} with a loss of index or snapshots", script.len());
    assert!(stops > 0 && crashes > 0 && losses > 0);
    let after = answers(&server, &questions);
    same(&before, &after, "with restarts");
    server.stop();
    whole.stop();
    assert_eq!(transitions(&folder.path().join("whole")), transitions(&dir));
}

#[test]
fn recent_latency_is_that_of_the_last_minute_judged_whatever_is_closed_or_started_anew() {
    let folder = common::folder();
    let recent = |server: &Server| {
        let page = server.get("/metrics");
        page.lines().filter(|l| l.starts_with("slowburn_endpoint_latency_seconds{") && l.contains("/orders")).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut server = Server::start(folder.path(), RETENTION, SEGMENT_BYTES, Timestamp(START));
    act(&server, START + 1, &Act::Owe(OWED));
    let at = START + 30 * MINUTE + 55_000;
    act(&server, at, &Act::Send { timings: vec![Timing { route: 0, ts: at, us: 20_000, failed: false, weight: 1 }], header: None, more: "" });
    let shown = recent(&server);
    assert!(shown.len() == 3 && shown[0].ends_with("} 0.020095"), "{shown:?}");
    for (after_s, is_there) in [(20, true), (50, true), (110, false)] {
        server.at(Timestamp(at + after_s * 1_000));
        assert_eq!(recent(&server), if is_there { shown.clone() } else { Vec::new() }, "{after_s} s later");
        server.stop();
        server = Server::start(folder.path(), RETENTION, SEGMENT_BYTES, Timestamp(at + after_s * 1_000));
        assert_eq!(recent(&server), if is_there { shown.clone() } else { Vec::new() }, "{after_s} s later, started anew");
    }
    server.stop();
}

#[test]
fn minutes_go_after_eight_days_and_hours_after_four_hundred_and_days_stay() {
    let mut chance = Chance::seeded("retention", 5);
    let folder = common::folder();
    let server = Server::start(folder.path(), RETENTION, SEGMENT_BYTES, Timestamp(START));
    let mut timings = Vec::new();
    for day in 0..440_i64 {
        for _ in 0..2 {
            let at = START + day * DAY + (6 + 12 * (timings.len() as i64 % 2)) * HOUR + chance.below(3_000_000) as i64;
            let timing = Timing { route: 2, ts: at, us: 1_000 + chance.below(1_000_000), failed: false, weight: 1 };
            act(&server, at, &Act::Send { timings: vec![timing.clone()], header: None, more: "" });
            server.at(Timestamp(at + 90_000));
            timings.push(timing);
        }
    }
    let end = START + 440 * DAY + 17 * MINUTE;
    server.at(Timestamp(end));
    let range_of = |from: i64, to: i64| {
        let question = format!("/api/v1/counts?service=shop&from={from}&to={to}&threshold=800ms");
        let answer = server.get(&question);
        holds(&question, &answer, &timings);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        (answer["from"].as_i64().unwrap(), answer["to"].as_i64().unwrap())
    };
    let odd = 5 * HOUR + 7 * MINUTE + 13_000;
    for (ago, unit) in [(7 * DAY, MINUTE), (9 * DAY, HOUR), (399 * DAY, HOUR), (401 * DAY, DAY), (438 * DAY, DAY)] {
        let from = START + 440 * DAY - ago - DAY + odd;
        let to = from + 8 * HOUR;
        let (widened_from, widened_to) = range_of(from, to);
        let (down, up) = (from.div_euclid(unit) * unit, -(-to).div_euclid(unit) * unit);
        println!("{} days ago: [{from}, {to}) is widened by {} and {} min", ago / DAY, (from - widened_from) / MINUTE, (widened_to - to) / MINUTE);
        assert_eq!((widened_from, widened_to), (down, up), "{} days ago", ago / DAY);
    }
    // Around both edges, at every minute of two hours: nothing is missing where one tier hands over to the next.
    for edge in [8 * DAY, 400 * DAY] {
        for minute in 0..120 {
            range_of(end - edge - HOUR + minute * MINUTE, end - 3 * DAY);
        }
    }
    assert_eq!(range_of(START, end + 1).0, START);
    server.stop();
    let oldest = |tier: &str| -> i64 {
        let files = fs::read_dir(folder.path().join("history").join(tier)).unwrap();
        files.map(|f| f.unwrap().file_name().to_str().unwrap().trim_end_matches(".history").parse().unwrap()).min().unwrap()
    };
    assert!(oldest("minute") > end - 10 * DAY, "minutes");
    assert!(oldest("hour") > end - 433 * DAY && oldest("hour") > START, "hours, in files of 32 days");
    assert!(oldest("day") <= START, "days");
}
