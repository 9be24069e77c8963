//! The detectors in a live run: weeks of virtual time on the real engine, killed twice on the way, say what a replay of the same timings says.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    dead_code,
    unreachable_pub,
    reason = "a test fails by panicking, and uses a part of the virtual server"
)]

mod virtual_server;

use std::fmt::Write as _;
use std::ops::Range;

use slowburn::config::Config;
use slowburn::endpoint::PathTemplates;
use slowburn::ingest::known::KnownEndpoints;
use slowburn::judge::Record;
use slowburn::log::file::Reader;
use slowburn::log::record::Position;
use slowburn::machine::Delta;
use slowburn::run::replay::Replay;
use slowburn::time::Timestamp;
use virtual_server::Server;

/// A Monday.
const START: i64 = 1_767_571_200_000;
const QUARTER_MS: i64 = 900_000;
const DAY: i64 = 96;
const DAYS: i64 = 25;

const SHOP: &str = r#"
[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "400ms", target = "95%" }]
"#;

/// Chance from a number (Steele, Lea & Flood, Fast splittable pseudorandom number generators, OOPSLA 2014), in (0, 1).
fn unit(n: i64) -> f64 {
    let mut z = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (f64::from((z >> 33) as u32) + 0.5) / 2_147_483_648.0
}

/// The timings of a quarter of an hour: eight of each endpoint, and of the orders none on the last day. They grow by 8 % a day from day 17 on.
fn quarter(index: i64) -> String {
    let day = index as f64 / 96.0;
    let mut lines = String::new();
    for place in 0..8 {
        let ts = START + index * QUARTER_MS + place * 110_000;
        for (endpoint, method, route) in [(0, "POST", "/orders"), (1, "GET", "/read")] {
            if endpoint == 0 && index >= (DAYS - 1) * DAY {
                continue;
            }
            let n = (index * 8 + place) * 2 + endpoint;
            // Box & Muller 1958.
            let normal = (-2.0 * unit(n).ln()).sqrt() * (std::f64::consts::TAU * unit(n + 100_000_000)).cos();
            let growth = if endpoint == 0 { 1.0 + 0.08 * (day - 17.0).max(0.0) } else { 1.0 };
            let ms = 100.0 * growth * (0.4 * normal).exp();
            writeln!(lines, r#"{{"ts":{ts},"service":"shop","method":"{method}","route":"{route}","duration_ms":{ms:.3}}}"#).unwrap();
        }
    }
    lines
}

fn replayed(text: &str) -> String {
    let config = Config::parse("shop.toml", SHOP).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (templates, known, mut out) = (PathTemplates::default(), KnownEndpoints::default(), Vec::new());
    let mut replay = Replay::new(Some(config.promises), 15_000, config.endpoint_limits, &templates, &known, Vec::new(), &mut out, |bad| panic!("{bad:?}"));
    replay.file(file.path(), |_| ()).unwrap();
    replay.finish(Some(Timestamp(START + DAYS * DAY * QUARTER_MS + 200_000))).unwrap();
    drop(replay);
    String::from_utf8(out).unwrap()
}

/// Lives through these quarters of an hour; what was sent.
fn live(server: &mut Server, quarters: Range<i64>, mut after: impl FnMut(&mut Server, i64)) -> String {
    let mut all = String::new();
    for index in quarters {
        let lines = quarter(index);
        let end = START + (index + 1) * QUARTER_MS;
        server.move_to(Timestamp(end - 1));
        server.send(&lines);
        all += &lines;
        // The quarter is run a minute after its end, and said a minute later.
        server.move_to(Timestamp(end + 75_000));
        server.wait_for_watching(end / QUARTER_MS - 1);
        server.move_to(Timestamp(end + 135_000));
        after(server, index);
    }
    all
}

#[test]
fn a_live_run_that_was_killed_twice_finds_what_a_replay_finds() {
    let mut server = Server::start(SHOP, Timestamp(START));
    let all = live(&mut server, 0..DAYS * DAY, |server, index| {
        if index == 11 * DAY + 17 || index == 20 * DAY + 50 {
            server.crash();
        }
    });
    let (said, dir) = server.stop();
    let expected = replayed(&all);
    for (n, (said, expected)) in said.lines().zip(expected.lines()).enumerate() {
        assert_eq!(said, expected, "line {n}");
    }
    assert_eq!(said.lines().count(), expected.lines().count());
    let opened = |kind: &str| said.lines().filter(|l| l.contains(r#""event":"opened""#) && l.contains(&format!(r#""kind":"{kind}""#))).count();
    assert_eq!((opened("creep"), opened("silence") + opened("throughput")), (1, 1), "{said}");
    assert!(said.lines().all(|l| l.contains("/orders")), "{said}");
    assert!(dir.path().join("watch/fleet.bin").is_file());
}

/// An upgrade cannot read what the version before remembered, two days into a creep: what was usual is in the log, and the creep is not taken for it.
#[test]
fn what_was_learnt_outlives_what_is_remembered() {
    let mut server = Server::start(SHOP, Timestamp(START));
    let mut all = live(&mut server, 0..19 * DAY + 40, |_, _| ());
    let now = Timestamp(START + (19 * DAY + 40) * QUARTER_MS + 135_000);
    server.crash_until(now, |dir| {
        let file = dir.join("watch/fleet.bin");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[7] += 1;
        std::fs::write(&file, bytes).unwrap();
    });
    all += &live(&mut server, 19 * DAY + 40..24 * DAY, |_, _| ());
    let (said, dir) = server.stop();
    let creep_of = |said: &str| {
        let line = said.lines().find(|l| l.contains(r#""event":"opened""#) && l.contains(r#""kind":"creep""#)).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["at"].as_i64().unwrap(), line["evidence"]["level_before_ms"].as_f64().unwrap())
    };
    let ((at, before), (expected_at, expected_before)) = (creep_of(&said), creep_of(&replayed(&all)));
    assert!((at - expected_at).abs() <= DAY * QUARTER_MS / 2, "{at} {expected_at}");
    assert!((before / expected_before - 1.0).abs() < 0.03, "{before} {expected_before}");
    let learnt = |record: &Record| if let Record::Learnt(learnt) = record { learnt.len() } else { 0 };
    let frames = Reader::log(dir.path(), Position(0)).unwrap();
    let times: usize = frames.flat_map(|frame| Delta::from_frame(&frame.unwrap()).unwrap().records).map(|record| learnt(&record)).sum();
    assert_eq!(times, 2, "each endpoint was learnt once");
}
