//! Nights that went wrong, as recordings: what is said of them, when, and of what nothing is said.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking, and counts milliseconds of months"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;
use slowburn::config::Config;
use slowburn::endpoint::PathTemplates;
use slowburn::incident::Marker;
use slowburn::ingest::known::KnownEndpoints;
use slowburn::run::replay::Replay;
use slowburn::time::Timestamp;

mod simulated;
use simulated::{Chance, Wander};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 86_400_000;
/// A Monday.
const START: i64 = 1_767_571_200_000;

/// What a replay of timings says of a night, up to an instant.
fn said(config: &str, timings: Vec<(i64, String)>, until: i64) -> Vec<Value> {
    said_with(config, timings, Vec::new(), until)
}

fn said_with(config: &str, timings: Vec<(i64, String)>, markers: Vec<Marker>, until: i64) -> Vec<Value> {
    said_beside(config, timings, Vec::new(), markers, until)
}

/// Likewise, with lines that are no timings.
fn said_beside(config: &str, timings: Vec<(i64, String)>, others: Vec<(i64, String)>, markers: Vec<Marker>, until: i64) -> Vec<Value> {
    let timings = timings.into_iter().map(|(ts, rest)| (ts, format!(r#"{{"ts":{ts},{rest}}}"#)));
    let mut lines: Vec<(i64, String)> = timings.chain(others).collect();
    lines.sort_by_key(|l| l.0);
    let text = lines.iter().fold(String::new(), |text, (_, line)| text + line + "\n");
    let config = Config::parse("night.toml", config).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (templates, known, mut out) = (PathTemplates::default(), KnownEndpoints::default(), Vec::new());
    let mut replay = Replay::new(Some(config.promises), 15_000, config.endpoint_limits, &templates, &known, markers, &mut out, |bad| panic!("{bad:?}"));
    replay.file(file.path(), |_| ()).unwrap();
    replay.finish(Some(Timestamp(until))).unwrap();
    drop(replay);
    String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn opened<'a>(said: &'a [Value], kind: &str) -> Vec<&'a Value> {
    said.iter().filter(|l| l["kind"] == kind && l["event"] == "opened").collect()
}

fn keys(line: &Value) -> BTreeSet<String> {
    line["evidence"]["missing_keys"].as_array().unwrap().iter().map(|k| k.as_str().unwrap().to_owned()).collect()
}

/// Requests of an endpoint of the shop, `days` of them: so many an hour on average, fewer at night and as `traffic` says by the day; `ms` is what one takes.
fn requests(
    chance: &mut Chance,
    (route, per_hour): (&str, f64),
    days: i64,
    traffic: impl Fn(f64) -> f64,
    ms: impl Fn(&mut Chance, f64) -> f64,
) -> Vec<(i64, String)> {
    let (mut timings, mut wander) = (Vec::new(), Wander::new(chance));
    let method = if route == "/orders" { "POST" } else { "GET" };
    for quarter in 0..days * 96 {
        let day = quarter as f64 / 96.0;
        let busy = (1.0 - 0.54 * (std::f64::consts::TAU * (day - 0.17)).cos()) * if day.rem_euclid(7.0) >= 5.0 { 1.2 } else { 1.0 };
        let level = wander.next_quarter(chance).exp();
        for _ in 0..chance.poisson(per_hour / 4.0 * busy * traffic(day)) {
            let ts = START + quarter * 15 * MINUTE + (chance.unit() * 15.0 * MINUTE as f64) as i64;
            let ms = (ms(chance, day) * level).min(30_000.0);
            let status = if ms < 30_000.0 { 200 } else { 504 };
            timings.push((ts, format!(r#""service":"shop","method":"{method}","route":"{route}","duration_ms":{ms:.1},"status":{status}"#)));
        }
    }
    timings
}

const SHOP_DAYS: i64 = 45;
/// The day on which no id is left, eight hours before the end.
const IDS_GONE: f64 = SHOP_DAYS as f64 - 1.0 / 3.0;

/// What an order takes: six-digit ids are drawn until one is free, 25 ms each, and more of them are taken each day.
fn order_ms(chance: &mut Chance, day: f64) -> f64 {
    let taken = (0.35 + 0.65 * day / IDS_GONE).min(1.0 - 1e-6);
    let tries = (chance.unit().ln() / taken.ln()).ceil().max(1.0);
    180.0 * (0.35 * chance.normal()).exp() + 25.0 * tries
}

const ORDERS: &str = "[[endpoint]]\nservice = \"shop\"\nmethod = \"POST\"\nroute = \"/orders\"\ncritical = true\n\
    objectives = [{ latency = \"1000ms\", target = \"95%\", period = \"30d\" }]\n";

/// The shop's orders creep for weeks and hit a wall when no id is left. Eleven such shops, the first with its nineteen other endpoints, of which nothing is said.
#[test]
fn ids_that_run_out_are_told_weeks_ahead_with_their_day_and_nothing_else_is() {
    // The day on which one order in twenty takes longer than promised.
    let mut chance = Chance(1);
    let breach = (0..SHOP_DAYS * 8).map(|n| n as f64 / 8.0).find(|day| (0..20_000).filter(|_| order_ms(&mut chance, *day) > 1_000.0).count() > 1_000).unwrap();
    let breach = START + (breach * DAY as f64) as i64;
    let (mut leads, mut off, mut missed_after) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 1..=11 {
        let mut chance = Chance(1_000 * seed);
        let gone = |day: f64| if day < IDS_GONE { 1.0 } else { 1.0 - 0.85 * ((day - IDS_GONE) * 12.0).min(1.0) };
        let mut timings = requests(&mut chance, ("/orders", 35.0), SHOP_DAYS, gone, order_ms);
        if seed == 1 {
            for route in (0..19).map(|n| format!("/read/{n}")) {
                timings.extend(requests(&mut chance, (&route, 10.0), SHOP_DAYS, |_| 1.0, |chance, _| 40.0 * (0.45 * chance.normal()).exp()));
            }
        }
        let said = said(ORDERS, timings, START + SHOP_DAYS * DAY);
        let others: Vec<&Value> = said.iter().filter(|l| l["event"] == "opened" && l["route"] != "/orders").collect();
        assert!(others.is_empty(), "{others:#?}");
        let creep = |l: &&Value| l["kind"] == "creep" || l["kind"] == "step" || l["kind"] == "tail";
        let first = said.iter().filter(creep).find(|l| l["event"] == "opened").unwrap_or_else(|| panic!("{seed}: {said:#?}"));
        leads.push((breach - first["at"].as_i64().unwrap()) as f64 / DAY as f64);
        let weeks_ahead = |l: &&Value| (7 * DAY..=14 * DAY).contains(&(breach - l["at"].as_i64().unwrap()));
        let dates: Vec<i64> = said.iter().filter(creep).filter(weeks_ahead).filter_map(|l| l["breach_at"].as_i64()).collect();
        off.extend(dates.last().map(|at| (at - breach).abs() as f64 / DAY as f64));
        // That the orders are missing, not that they are slow.
        let missed = opened(&said, "throughput").into_iter().chain(opened(&said, "silence")).map(|l| l["at"].as_i64().unwrap()).min();
        missed_after.extend(missed.map(|at| (at - START) as f64 / HOUR as f64 - IDS_GONE * 24.0));
        // Nobody is woken by each date that comes and goes.
        let woken = said.iter().filter(creep).filter(|l| l["severity"] == "critical" && (l["event"] == "opened" || l["event"] == "escalated")).count();
        assert_eq!(woken, 1, "{seed}: {:#?}", said.iter().map(|l| (&l["event"], &l["severity"], &l["summary"])).collect::<Vec<_>>());
    }
    for numbers in [&mut leads, &mut off, &mut missed_after] {
        numbers.sort_by(f64::total_cmp);
    }
    println!("told {leads:.1?} days ahead; dates one to two weeks ahead {off:.1?} days off; missing orders after {missed_after:.2?} hours");
    assert!(leads[5] >= 18.0 && leads[0] >= 14.0, "{leads:?} days ahead");
    assert!(off.len() > 5 && off[off.len() / 2] <= 2.5, "{off:?} days off");
    assert!(missed_after.len() == 11 && (0.0..2.0).contains(&missed_after[5]), "{missed_after:?} h");
}

/// Two days on which a third of the customers come, of a shop where nothing is wrong.
#[test]
fn a_quiet_holiday_raises_nothing() {
    let mut chance = Chance(7);
    let holiday = |day: f64| if (31.0..33.0).contains(&day) { 0.33 } else { 1.0 };
    let mut timings = requests(&mut chance, ("/orders", 35.0), 35, holiday, |chance, _| order_ms(chance, 0.0));
    for route in (0..9).map(|n| format!("/read/{n}")) {
        timings.extend(requests(&mut chance, (&route, 20.0), 35, holiday, |chance, _| 40.0 * (0.45 * chance.normal()).exp()));
    }
    assert_eq!(said(ORDERS, timings, START + 35 * DAY), Vec::<Value>::new());
}

/// An upgrade kills the workers at night: jobs go in, none comes out, and dead workers send no errors.
#[test]
fn dead_workers_page_within_five_minutes_and_the_drained_queue_ends_it() {
    let config = r#"
[[flow]]
name = "print jobs"
from = { service = "cards", route = "print.enqueue", kind = "job" }
to = { service = "cards", route = "print.run", kind = "job" }
within = "60s"
ratio = "99%"
"#;
    let (death, back, end) = (START + 5 * HOUR, START + 8 * HOUR, START + 12 * HOUR);
    let mut timings = Vec::new();
    for job in 0..(end - START) / 20_000 {
        let at = START + job * 20_000;
        let run = if at < death || at >= back { at + 5_000 } else { back + (at - death) / 6 };
        timings.push((at, r#""service":"cards","kind":"job","route":"print.enqueue","duration_ms":3"#.to_owned()));
        timings.push((run, r#""service":"cards","kind":"job","route":"print.run","duration_ms":5000"#.to_owned()));
    }
    let said = said(config, timings, end);
    let pages = opened(&said, "flow");
    assert_eq!(pages.len(), 1, "{said:#?}");
    let after_ms = pages[0]["at"].as_i64().unwrap() - death;
    assert!((0..5 * MINUTE).contains(&after_ms), "{after_ms} ms");
    assert_eq!((&pages[0]["severity"], &pages[0]["route"], &pages[0]["evidence"]["name"]), (&"critical".into(), &"print.run".into(), &"print jobs".into()));
    let over: Vec<i64> = said.iter().filter(|l| l["event"] == "resolved").map(|l| l["at"].as_i64().unwrap()).collect();
    assert!(over.len() == 1 && over[0] > back && over[0] < back + 2 * HOUR, "{over:?}");
}

/// A change makes a queue discard jobs as duplicates while two environments are busy at once. Only those of production vanish, and only then.
#[test]
fn discarded_jobs_are_found_where_two_environments_overlap_and_listed() {
    let config = r#"
[[flow]]
name = "exports"
from = { service = "queue", route = "put", kind = "job" }
to = { service = "queue", route = "done", kind = "job" }
within = "2m"
ratio = "99%"
"#;
    let (overlap, apart, end) = (START + 20 * HOUR, START + 22 * HOUR, START + 26 * HOUR);
    let (mut timings, mut discarded) = (Vec::new(), BTreeSet::new());
    for job in 0..(end - START) / 30_000 {
        let at = START + job * 30_000;
        for env in ["prod", "staging"] {
            if env == "staging" && !(overlap..apart).contains(&at) {
                continue;
            }
            let key = format!("{env}-{job}");
            timings.push((at, format!(r#""service":"queue","env":"{env}","kind":"job","route":"put","duration_ms":1,"key":"{key}""#)));
            if env == "prod" && (overlap..apart).contains(&at) && job % 4 == 0 {
                discarded.insert(key);
            } else {
                timings.push((at + 20_000, format!(r#""service":"queue","env":"{env}","kind":"job","route":"done","duration_ms":900,"key":"{key}""#)));
            }
        }
    }
    let said = said(config, timings, end);
    let pages = opened(&said, "flow");
    assert_eq!(pages.len(), 1, "{said:#?}");
    assert_eq!(pages[0]["env"], "prod");
    let after_ms = pages[0]["at"].as_i64().unwrap() - overlap;
    assert!((0..30 * MINUTE).contains(&after_ms), "{after_ms} ms");
    let listed: BTreeSet<String> = said.iter().filter(|l| l["kind"] == "flow" && l["event"] != "resolved").flat_map(keys).collect();
    assert!(!listed.is_empty() && listed.is_subset(&discarded), "{:?}", listed.difference(&discarded).collect::<Vec<_>>());
}

/// Four hundred schedules by five in the morning in Chicago; the pool of connections runs dry and a hundred and fifty are made.
#[test]
fn a_run_that_falls_short_is_told_before_its_deadline_with_exactly_what_is_missing() {
    let config = r#"
[[expected]]
name = "nightly schedules"
endpoint = { service = "janitor", route = "schedule.create", kind = "job" }
count = 400
by = "05:00"
timezone = "America/Chicago"
"#;
    // Two in the morning there is eight o'clock UTC in January.
    let nights = 9;
    let mut timings = Vec::new();
    for night in 0..nights {
        let begin = START + night * DAY + 8 * HOUR + night % 3 * MINUTE;
        for n in 0..400 {
            let key = format!("n{night}-{n:03}");
            timings.push((begin, format!(r#""service":"janitor","kind":"job","route":"schedule.create","duration_ms":0,"key":"{key}","stage":"start""#)));
            if night < nights - 1 || n < 150 {
                timings.push((
                    begin + 1_000 + n * 6_000,
                    format!(r#""service":"janitor","kind":"job","route":"schedule.create","duration_ms":800,"key":"{key}""#),
                ));
            }
        }
    }
    let deadline = START + (nights - 1) * DAY + 11 * HOUR;
    let said = said(config, timings, deadline + 10 * MINUTE);
    let pages = opened(&said, "completion");
    assert_eq!(pages.len(), 1, "{said:#?}");
    let before_ms = deadline - pages[0]["at"].as_i64().unwrap();
    assert!(before_ms > HOUR, "{before_ms} ms before the deadline");
    assert_eq!((&pages[0]["severity"], pages[0]["evidence"]["expected"].as_f64()), (&"critical".into(), Some(400.0)));
    assert_eq!(keys(pages[0]), (150..400).map(|n| format!("n{}-{n:03}", nights - 1)).collect());
}

/// Nothing at all was ever made: that is short of four hundred, too.
#[test]
fn what_never_began_is_missed_at_the_deadline() {
    let config = r#"
[[expected]]
name = "nightly schedules"
endpoint = { service = "janitor", route = "schedule.create", kind = "job" }
count = 400
by = "05:00"
"#;
    let other = |minute: i64| (START + minute * MINUTE, r#""service":"shop","route":"/","duration_ms":5"#.to_owned());
    let said = said(config, (0..8 * 60).map(other).collect(), START + 8 * HOUR);
    let pages = opened(&said, "completion");
    assert_eq!(pages.len(), 1, "{said:#?}");
    assert!((5 * HOUR..5 * HOUR + 5 * MINUTE).contains(&(pages[0]["at"].as_i64().unwrap() - START)));
    assert_eq!((&pages[0]["service"], &pages[0]["route"]), (&"janitor".into(), &"schedule.create".into()));
}

/// Documents pass through six stages, each busy and well; in the fourth they wait for a call-back that does not come. That stage is named, and no other.
#[test]
fn the_stage_that_documents_do_not_leave_is_named() {
    let stages = ["upload", "scan", "convert", "sign", "index", "publish"];
    let mut config = String::new();
    for pair in stages.windows(2) {
        let [from, to] = [pair[0], pair[1]].map(|stage| format!(r#"{{ service = "papers", route = "{stage}", kind = "job" }}"#));
        writeln!(config, "[[flow]]\nname = \"{} to {}\"\nfrom = {from}\nto = {to}\nwithin = \"10m\"\nratio = \"95%\"\n", pair[0], pair[1]).unwrap();
    }
    let (stuck, end) = (START + 4 * HOUR, START + 6 * HOUR);
    let mut timings = Vec::new();
    for document in 0..(end - START) / 30_000 {
        for (place, stage) in (0_i64..).zip(stages) {
            let at = START + document * 30_000 + place * MINUTE;
            // What waits for the call-back of the signature reaches nothing behind it.
            if at >= stuck && place > 3 {
                continue;
            }
            timings.push((at, format!(r#""service":"papers","kind":"job","route":"{stage}","duration_ms":900,"key":"doc-{document}""#)));
        }
    }
    let said = said(&config, timings, end);
    let pages = opened(&said, "flow");
    assert_eq!(pages.iter().map(|p| p["evidence"]["name"].as_str().unwrap()).collect::<Vec<_>>(), ["sign to index"], "{said:#?}");
    let oldest = pages[0]["evidence"]["oldest_since"].as_i64().unwrap();
    assert!((stuck - 2 * MINUTE..stuck + MINUTE).contains(&oldest), "the oldest item waits since {oldest}, {} ms after", oldest - stuck);
    assert!(pages[0]["at"].as_i64().unwrap() < stuck + 20 * MINUTE);
}

/// The same upgrade kills the cache: nothing fails, and 37 of 41 endpoints are 40 % slower. One incident says so and names it.
#[test]
fn an_upgrade_that_slows_a_service_down_is_one_incident_that_names_it() {
    let upgrade = START + 20 * DAY + 2 * HOUR;
    let mut timings = Vec::new();
    for endpoint in 0..41_i64 {
        for n in 0..21 * 24 * 12 {
            let at = START + n * 5 * MINUTE + endpoint * 7_000;
            let slow = if at >= upgrade && endpoint < 37 { 1.4 } else { 1.0 };
            // Between 70 and 143 ms, evenly in the logarithm.
            let place = f64::from(((n * 7_919 + endpoint * 104_729) % 1_000) as i32) / 1_000.0;
            let ms = slow * 100.0 * (0.7 * (place - 0.5)).exp();
            timings.push((at, format!(r#""service":"cards","env":"prod","method":"GET","route":"/r{endpoint}","duration_ms":{ms:.3}"#)));
        }
    }
    let marker = Marker { ts: Timestamp(upgrade), service: "cards".to_owned(), title: "upgrade".to_owned(), version: "2.1".to_owned() };
    let said = said_with("", timings, vec![marker], START + 21 * DAY);
    let pages: Vec<&Value> = said.iter().filter(|l| l["event"] == "opened").collect();
    assert_eq!(pages.len(), 1, "{:#?}", pages.iter().map(|p| &p["summary"]).collect::<Vec<_>>());
    assert_eq!((&pages[0]["kind"], &pages[0]["route"], &pages[0]["evidence"]["marker"]), (&"step".into(), &"".into(), &"upgrade 2.1".into()));
    let last = said.iter().rfind(|l| l["id"] == pages[0]["id"]).unwrap();
    let slower: BTreeSet<&str> = last["evidence"]["endpoints"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    let names: Vec<String> = (0..37).map(|n| format!("GET /r{n}")).collect();
    assert_eq!(slower, names.iter().map(String::as_str).collect(), "{}", last["summary"]);
    assert_eq!(last["evidence"]["endpoints_watched"], 41);
    let after_ms = pages[0]["at"].as_i64().unwrap() - upgrade;
    assert!(after_ms < 3 * HOUR, "{after_ms} ms");
}

/// Orders hang behind a saturated database: none ends, so no latency is measured. Their sender says how long they run, and that is enough.
#[test]
fn a_hang_is_seen_while_it_hangs() {
    let config = r#"
[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "800ms", target = "99%" }]
"#;
    let hang = START + 2 * HOUR;
    let mut timings = Vec::new();
    for n in 0..(hang - START) / 20_000 {
        timings.push((START + n * 20_000, r#""service":"shop","method":"POST","route":"/orders","duration_ms":180"#.to_owned()));
    }
    // Something else goes on, and every ten seconds the middleware says what still runs.
    let mut reports = Vec::new();
    for n in 0..30_i64 {
        let (at, waiting) = (hang + n * 10_000, n / 2);
        timings.push((at, r#""service":"shop","method":"GET","route":"/","duration_ms":9"#.to_owned()));
        let age_ms = n * 10_000;
        if n < 24 {
            reports.push((at, format!(r#"{{"in_flight":[{{"service":"shop","method":"POST","route":"/orders","age_ms":{age_ms},"n":{waiting}}}]}}"#)));
        }
    }
    let said = said_beside(config, timings.clone(), reports, Vec::new(), hang + 10 * MINUTE);
    let pages = opened(&said, "burn");
    assert_eq!(pages.len(), 1, "{said:#?}");
    let after_ms = pages[0]["at"].as_i64().unwrap() - hang;
    assert!((0..4 * MINUTE).contains(&after_ms), "{after_ms} ms");
    assert!(pages[0]["evidence"]["still_running"].as_u64().unwrap() >= 2 && pages[0]["summary"].as_str().unwrap().contains("still run"), "{}", pages[0]);
    // Without the reports nobody can know.
    assert!(self::said(config, timings, hang + 10 * MINUTE).is_empty());
}
