//! Many endpoints: memory, what closing periods does to answers, scrapes, bytes on disk; and what a question costs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::answers::Answers;
use super::ingest::{check_count, measured};
use super::load::{BATCHES, CONNECTIONS, Done, Load, now_ms, run};
use super::process::{Server, folder_bytes, get};
use super::table::{Table, Target};
use super::traffic::{JSON, Mix, Popularity};
use super::{Bench, SEED, config, store};

const MIXED: Mix = Mix { popularity: Popularity::Mixed, endpoints: 100_000 };
const STEADY: Mix = Mix { popularity: Popularity::Uniform, endpoints: 10_000 };

/// Timings a batch.
const MIXED_PER_BATCH: usize = 1_000;
const STEADY_PER_BATCH: usize = 100;

/// 1.2 GB.
const MEMORY_MIB: f64 = 1_144.0;

/// Enough to hold each endpoint several times.
const MIXED_BATCHES: usize = 2 * BATCHES;
const STEADY_BATCHES: usize = 5 * BATCHES;

/// 64 connections with 1,000 timings each: 200k a second, 20 in a slot for the mean endpoint.
const MIXED_INTERVAL: Duration = Duration::from_millis(320);

/// 16 connections with 100 timings each: 100 a minute for each of 10k endpoints.
const STEADY_INTERVAL: Duration = Duration::from_millis(96);

/// A slot is judged so long after its end, if nothing else is configured.
const JUDGE_AFTER_S: u64 = 15;

/// What happens to a server of [`MIXED`] and one of [`STEADY`] at the same time.
pub fn endpoints(bench: &mut Bench) {
    let (mixed, steady) = (bench.server("endpoints-100k", MIXED), bench.server("endpoints-10k", STEADY));
    let (mixed_batches, steady_batches) = (MIXED.batches(SEED, MIXED_BATCHES, MIXED_PER_BATCH), STEADY.batches(SEED, STEADY_BATCHES, STEADY_PER_BATCH));
    let accepted = [mixed.taken(), steady.taken()];
    bench.table.row("100k endpoints known, one timing each: resident", "MiB", &[mixed.memory_mib("VmRSS")], Target::None);
    // A whole minute must begin, end and be closed.
    let until_minute_s = 60 - now_ms() as u64 / 1_000 % 60;
    let length = Duration::from_secs(until_minute_s + if bench.long { 205 } else { 85 });
    let mixed_load = Load { interval: Some(MIXED_INTERVAL), ..Load::saturating(mixed.address, &JSON, &mixed_batches, length) };
    let steady_load = Load { connections: 16, interval: Some(STEADY_INTERVAL), ..Load::saturating(steady.address, &JSON, &steady_batches, length) };
    let (mut done, mut other, mut history) = ((Done::default(), 0.0), Done::default(), Vec::new());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| measured(&mixed, &mixed_load));
        let second = scope.spawn(|| run(&steady_load));
        let start = Instant::now();
        while start.elapsed() < length {
            std::thread::sleep(Duration::from_secs(1));
            history.push([&mixed, &steady].map(minutes_bytes));
        }
        done = first.join().unwrap();
        other = second.join().unwrap();
    });
    // The minute before the first whole one is closed by then, that one is not.
    let before = history[until_minute_s as usize + 44];
    for (at, name) in ["100k", "10k"].into_iter().enumerate() {
        let written = history.windows(2).enumerate().filter(|(_, pair)| pair[1][at] > pair[0][at]);
        let written: Vec<String> = written.map(|(s, pair)| format!("{} kB after {} s", (pair[1][at] - pair[0][at]) / 1_000, s + 2)).collect();
        Table::note(&format!("{name} endpoints, minutes written: {}; the first whole minute began after {until_minute_s} s", written.join(", ")));
    }
    let ((done, cpu_s), minutes) = (done, if bench.long { 3.0 } else { 1.0 });
    bench.table.row("100k endpoints, 200k timings/s: the server used", "cores", &[cpu_s / done.wall_s], Target::None);
    bench.table.row("100k endpoints: wall", "/s", &[done.accepted as f64 / done.wall_s], Target::None);
    if done.accepted < nearly_all(&done) {
        Table::note("the server did not keep up: answers count from when a batch was due, so they show what waited");
    }
    bench.table.row("both generators used", "cores", &[done.generator_cpu_s / done.wall_s], Target::None);
    bench.table.row("100k endpoints, after minutes were closed: resident", "MiB", &[mixed.memory_mib("VmRSS")], Target::AtMost(MEMORY_MIB));
    bench.table.row("100k endpoints, at most: resident", "MiB", &[mixed.memory_mib("VmHWM")], Target::None);
    bench.table.row("10k endpoints, 100 timings a minute each: resident", "MiB", &[steady.memory_mib("VmRSS")], Target::None);
    closing(bench, &done);
    for (server, before, endpoints) in [(&steady, before[1], 10_000.0), (&mixed, before[0], 100_000.0)] {
        let bytes = (minutes_bytes(server) - before) as f64 / endpoints / minutes;
        if endpoints < 100_000.0 {
            bench.table.row("disk, 100 timings a minute: endpoint-minute", "B", &[bytes], Target::None);
            bench.table.row("disk, 100 timings a minute: endpoint-day of minutes", "kB", &[bytes * 1.44], Target::AtMost(320.0));
        } else {
            bench.table.row("disk, 100k endpoints at 120 a minute, mixed: endpoint-minute", "B", &[bytes], Target::None);
        }
    }
    Table::note("disk of the hour tier: an hour does not pass here, so it is not measured");
    check_count(&mixed, accepted[0] + done.accepted);
    check_count(&steady, accepted[1] + other.accepted);
    for (server, name, most_ms) in [(&steady, "10k", 25.0), (&mixed, "100k", 250.0)] {
        for path in ["/metrics", "/metrics/endpoints"] {
            scrape(bench, server, path, name, most_ms);
        }
    }
}

/// Nearly all of the timings that were to be sent in this time.
fn nearly_all(done: &Done) -> u64 {
    let per_s = (CONNECTIONS * MIXED_PER_BATCH) as f64 / MIXED_INTERVAL.as_secs_f64();
    (0.97 * per_s * done.wall_s) as u64
}

/// Answers in the seconds in which slots and minutes are closed, beside all others.
fn closing(bench: &mut Bench, done: &Done) {
    let kind = |second: u64| match second - JUDGE_AFTER_S {
        s if s % 60 < 2 => 2,
        s if s % 10 < 2 => 1,
        _ => 0,
    };
    for (number, name) in ["when nothing is closed", "when a slot is closed", "when a minute is closed"].into_iter().enumerate() {
        let answers = Answers::new(done.answers.iter().filter(|a| kind(a.0) == number).map(|a| a.1));
        for (quantile, value, target) in [("p50", 0.5, Target::AtMost(5.0)), ("p99", 0.99, Target::AtMost(15.0)), ("longest", 1.0, Target::None)] {
            bench.table.row(&format!("100k endpoints, {name}: {quantile}"), "ms", &[answers.quantile_ms(value)], target);
        }
        Table::note(&format!("{} answers", answers.len()));
    }
    let mut by_second = BTreeMap::new();
    for (second, took_us) in &done.answers {
        let longest = by_second.entry(*second).or_insert(0);
        *longest = (*took_us).max(*longest);
    }
    let mut seconds: Vec<_> = by_second.into_iter().collect();
    seconds.sort_by_key(|s| std::cmp::Reverse(s.1));
    let longest: Vec<String> = seconds.iter().take(5).map(|(second, took_us)| format!("{} ms at :{:02}", took_us / 1_000, second % 60)).collect();
    Table::note(&format!("the longest, by the second of the minute in which they were asked for: {}", longest.join(", ")));
}

fn minutes_bytes(server: &Server) -> u64 {
    folder_bytes(&server.data_dir.join("history").join("minute"))
}

/// Each scrape by itself; CPU seconds are told in hundredths, so of all of them together.
fn scrape(bench: &mut Bench, server: &Server, path: &str, name: &str, most_ms: f64) {
    let first = get(server.address, path).unwrap();
    if first.status != 200 {
        Table::note(&format!("GET {path} answers {}", first.status));
        return;
    }
    let idle_s = idle_cpu_s(server);
    let (mut cpu_ms, mut wall_ms) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        let (cpu_s, start) = (server.cpu_s(), Instant::now());
        let scrapes = 5;
        for _ in 0..scrapes {
            wall_ms.push(server.get(path).wall.as_secs_f64() * 1e3);
        }
        let spent_s = server.cpu_s() - cpu_s - idle_s * start.elapsed().as_secs_f64();
        cpu_ms.push(spent_s.max(0.0) * 1e3 / f64::from(scrapes));
    }
    let what = format!("GET {path}, {name} endpoints");
    bench.table.row(&format!("{what}: server CPU"), "ms", &cpu_ms, Target::AtMost(most_ms));
    bench.table.row(&format!("{what}: wall"), "ms", &wall_ms, Target::None);
    bench.table.row(&format!("{what}: body"), "bytes", &[first.body.len() as f64], Target::None);
}

/// What the server spends in a second by itself.
fn idle_cpu_s(server: &Server) -> f64 {
    let cpu_s = server.cpu_s();
    std::thread::sleep(Duration::from_secs(2));
    (server.cpu_s() - cpu_s) / 2.0
}

/// One endpoint, one service, everything.
pub fn query(bench: &mut Bench) {
    let mix = Mix { popularity: Popularity::Zipf, endpoints: 10_000 };
    let server = bench.server("query", mix);
    let done = run(&Load::saturating(server.address, &JSON, &mix.batches(SEED, BATCHES, 1_000), bench.round()));
    let (from, to) = (now_ms() - 3_600_000, now_ms() + 60_000);
    for (name, selector, times) in
        [("one endpoint", "service=s00&route=/r/00000", 200), ("500 endpoints", "service=s00", 20), ("10k endpoints", "env=prod", 20)]
    {
        let path = format!("/api/v1/quantiles?{selector}&from={from}&to={to}&q=0.5,0.95,0.99");
        let (mut cpu_ms, mut wall_ms) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            let cpu_s = server.cpu_s();
            wall_ms.extend((0..times).map(|_| server.get(&path).wall.as_secs_f64() * 1e3));
            cpu_ms.push((server.cpu_s() - cpu_s) * 1e3 / f64::from(times));
        }
        bench.table.row(&format!("{name}: server CPU"), "ms", &cpu_ms, Target::None);
        bench.table.row(&format!("{name}: wall"), "ms", &wall_ms, Target::None);
        if selector == "env=prod" {
            let answer: serde_json::Value = serde_json::from_str(&server.get(&path).body).unwrap();
            let counted: u64 = answer["points"].as_array().unwrap().iter().map(|point| point["count"].as_u64().unwrap()).sum();
            assert_eq!(counted, done.accepted + u64::from(mix.endpoints), "all that was accepted is found again");
        }
    }
}

/// One route and a thousand, quiet and busy; the answer has 720 points.
pub fn query_history(bench: &mut Bench) {
    for (timings, times) in [(20, 20), (10_000, 5)] {
        let folder = bench.folder(&format!("query-history-{timings}"));
        let (from, to) = store::of_hours(&folder.join("data"), 1_000, timings);
        let (server, _) = Server::start(&folder, &config(Mix { popularity: Popularity::Uniform, endpoints: 1_000 }));
        for (name, selector, most_ms) in [("1 route", "service=s00&route=/r/00020", 15.0), ("1,000 routes", "env=prod", 1_000.0)] {
            let path = format!("/api/v1/quantiles?{selector}&from={from}&to={to}&step=1h&q=0.99");
            let (mut cpu_ms, mut wall_ms) = (Vec::new(), Vec::new());
            for _ in 0..bench.rounds {
                let cpu_s = server.cpu_s();
                wall_ms.extend((0..times).map(|_| server.get(&path).wall.as_secs_f64() * 1e3));
                cpu_ms.push((server.cpu_s() - cpu_s) * 1e3 / f64::from(times));
            }
            let answer: serde_json::Value = serde_json::from_str(&server.get(&path).body).unwrap();
            assert_eq!(answer["points"].as_array().unwrap().len(), 720);
            bench.table.row(&format!("{name}, {timings} timings an hour: server CPU"), "ms", &cpu_ms, Target::None);
            bench.table.row(&format!("{name}, {timings} timings an hour: wall"), "ms", &wall_ms, Target::AtMost(most_ms));
        }
    }
}
