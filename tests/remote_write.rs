//! What `/metrics` has, sent by remote-write: to a receiver written from the published rules, and to those that are installed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]

#[path = "peers/kit.rs"]
#[allow(dead_code, reason = "it takes a part")]
mod kit;
#[path = "remote_store/mod.rs"]
#[allow(dead_code, reason = "it takes a part")]
mod remote_store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kit::{Process, Prometheus, Server, ask, get, until};
use remote_store::{Got, Number, Reply, Series, Store, written};

const SHOP: &str = "
[[endpoint]]
service = 'shop'
route = '/orders'
objectives = [{ latency = '250ms', target = '99%' }]
";

/// A receiver that is sent to once a second; more settings.
fn remote(name: &str, address: SocketAddr, more: &str) -> String {
    format!("[[remote_write]]\nname = '{name}'\nurl = 'http://{address}/api/v1/push'\ninterval = '1s'\n{more}\n")
}

fn started(config: &str) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), config);
    (dir, server)
}

/// So many timings of a route, spread from 1 ms on.
fn timings(route: &str, how_many: u64) -> String {
    let ts = kit::now_ms();
    (0..how_many).fold(String::new(), |mut lines, n| {
        let us = 1_000 + n * n * 37 % 900_000;
        let trace = if n == 7 { r#","trace_id":"a \"trace\", größer""# } else { "" };
        writeln!(lines, r#"{{"ts":{ts},"service":"shop","env":"","method":"POST","route":"{route}","status":200,"duration_us":{us}{trace}}}"#).unwrap();
        lines
    })
}

fn post(server: &Server, lines: &str) {
    let (status, answer) = server.post("", lines);
    assert_eq!((status, answer["rejected"].as_u64()), (200, Some(0)), "{answer}");
}

/// As text has it: the name, then labels in order.
fn named(labels: &BTreeMap<String, String>) -> String {
    let mut name = labels["__name__"].clone();
    for (label, value) in labels.iter().filter(|(label, _)| *label != "__name__") {
        write!(name, " {label}={value:?}").unwrap();
    }
    name
}

/// A scrape by series, as they would be named in a store: without labels that are empty, with those that are added.
fn scraped(server: &Server, added: &[(&str, &str)]) -> BTreeMap<String, f64> {
    let samples = server.samples().into_iter().map(|(series, value)| {
        let (name, rest) = series.split_once('{').map_or((series.as_str(), ""), |(name, rest)| (name, rest.strip_suffix("\"}").unwrap()));
        let pairs = rest.split("\",").filter(|pair| !pair.is_empty()).map(|pair| pair.split_once("=\"").unwrap());
        let labels = added.iter().copied().chain(pairs.filter(|(_, value)| !value.is_empty())).map(|(n, v)| (n.to_owned(), v.to_owned()));
        (named(&labels.chain([("__name__".to_owned(), name.to_owned())]).collect()), value)
    });
    samples.collect()
}

/// Whether it changes by itself from one moment to the next.
fn moves(series: &str) -> bool {
    ["slowburn_process_", "slowburn_log_frames", "slowburn_judged", "slowburn_slo_", "slowburn_disk_free_bytes", "slowburn_endpoint_latency"]
        .iter()
        .any(|m| series.starts_with(m))
}

fn of<'a>(server: &'a BTreeMap<String, f64>, name: &str, labels: &[&str]) -> Option<&'a f64> {
    let full = format!("slowburn_process_remote_write_{name}{{");
    server.iter().find(|(series, _)| series.starts_with(&full) && labels.iter().all(|l| series.contains(l))).map(|(_, value)| value)
}

/// A metric of a receiver.
fn metric(server: &Server, name: &str, labels: &[&str]) -> f64 {
    of(&server.samples(), name, labels).copied().unwrap_or(0.0)
}

/// The trace of the orders, once at each series that has a place for it: the outcome, the bucket, the native histogram.
fn assert_traced_once(store: &Store) {
    let moments = store.moments();
    let orders = moments.values().flatten().filter(|s| s.labels.get("route").is_some_and(|r| r == "/orders"));
    let mut traced = BTreeSet::new();
    for series in orders {
        let part = series.labels.get("le").or(series.labels.get("outcome")).map_or("", String::as_str);
        for (trace, value, _) in &series.exemplars {
            assert_eq!(trace, "a \"trace\", größer");
            assert!(traced.insert(format!("{} {part} {value}", series.labels["__name__"])), "{traced:?}");
        }
    }
    let expected = ["slowburn_request_duration_seconds  0.002813", "slowburn_request_duration_seconds_bucket 0.005 0.002813", "slowburn_requests_total ok 1"];
    assert_eq!(traced.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_receiver_of_2_0_gets_what_a_scrape_would_have_had() {
    let store = Store::start(|_, _| Reply::Written);
    let (_dir, server) = started(&format!("{SHOP}{}", remote("mimir", store.address, "labels = { cluster = 'eu', instance = 'a:1', service = 'mine' }")));
    post(&server, &(timings("/orders", 300) + &timings("/browse", 20)));
    let (mut scrape, mut moment) = (BTreeMap::new(), Vec::new());
    until("a moment is as a scrape after it", 30, || {
        let Some((_, last)) = store.moments().pop_last() else { return false };
        moment = last;
        // Its own `service` stands; where a series has none, it is what the configuration says.
        scrape = scraped(&server, &[("cluster", "eu"), ("instance", "a:1"), ("job", "slowburn"), ("service", "mine")]);
        // At the first of them only a part may have been there.
        store.moments().values().filter(|m| m.iter().any(|s| s.number == Number::Sample(300.0))).count() >= 3
    });
    let sent: BTreeMap<String, &Series> = moment.iter().map(|s| (named(&s.labels), s)).collect();
    assert_eq!(sent.len(), moment.len(), "a series is there twice");
    let scrape: BTreeMap<String, f64> = scrape.into_iter().filter(|(name, _)| !moves(name)).collect();
    for (name, value) in &scrape {
        let sent = sent.get(name).unwrap_or_else(|| panic!("{name} is not in {:?}", sent.keys()));
        assert_eq!(sent.number, Number::Sample(*value), "{name}");
    }
    assert!(
        scrape.len() > 40
            && sent.keys().filter(|name| !moves(name) && !scrape.contains_key(*name)).all(|name| name.starts_with("slowburn_request_duration_seconds "))
    );

    let kind = |name: &str| moment.iter().find(|s| s.labels["__name__"] == name).and_then(|s| s.metadata.clone()).map(|m| (m.0, m.2)).unwrap();
    assert_eq!(kind("slowburn_requests_total"), (1, String::new()));
    assert_eq!(kind("slowburn_disk_free_bytes"), (2, "bytes".to_owned()));
    assert_eq!(kind("slowburn_request_duration_seconds_bucket"), (3, "seconds".to_owned()));
    assert_eq!(kind("slowburn_endpoint_latency_seconds_count"), (5, "seconds".to_owned()));

    let natives: Vec<_> = moment.iter().filter_map(|s| if let Number::Native(native) = &s.number { Some((s, native)) } else { None }).collect();
    let [(series, native)] = natives[..] else { panic!("{natives:?}") };
    assert_eq!((series.labels["__name__"].as_str(), series.labels["route"].as_str()), ("slowburn_request_duration_seconds", "/orders"));
    assert_eq!((native.count, native.schema, native.zero_count, series.metadata.as_ref().unwrap().0), (300, 5, 0, 3));
    // On bounds computed in another way than the server's, of the upper edges of its buckets.
    let mut naive: BTreeMap<i32, i64> = BTreeMap::new();
    for us in (0..300_u64).map(|n| 1_000 + n * n * 37 % 900_000) {
        let shift = (64 - us.leading_zeros()).saturating_sub(8);
        let edge = (us >> shift << shift) + (1 << shift) - 1;
        #[expect(clippy::cast_possible_truncation, reason = "far below 2^31")]
        let index = ((edge as f64 / 1e6).log2() * 32.0).ceil() as i32;
        *naive.entry(index).or_default() += 1;
    }
    assert_eq!(native.buckets, naive);

    assert_traced_once(&store);
    // An endpoint that comes now was at nothing a moment ago.
    let before = kit::now_ms();
    post(&server, &timings("/new", 5));
    let new = |s: &Series| s.labels.get("route").is_some_and(|r| r == "/new") && s.labels["__name__"] == "slowburn_requests_total";
    until("the new endpoint is there for three moments", 30, || store.moments().values().filter(|m| m.iter().any(new)).count() >= 3);
    let starts: BTreeSet<i64> = store.moments().values().flatten().filter(|s| new(s)).map(|s| s.start).collect();
    assert_eq!(starts.len(), 1, "{starts:?}");
    let start = starts.first().unwrap().cast_unsigned();
    assert!(before - 2_500 < start && start < before + 1_000, "{start} {before}");
    // Of Slowburn's own, and of what goes up and down, nothing is known or there is nothing to know.
    let counts = |s: &Series| {
        s.labels.contains_key("route") && matches!(s.metadata.as_ref().unwrap().0, 1 | 3 | 5) && !s.labels["__name__"].starts_with("slowburn_slo_")
    };
    assert!(moment.iter().all(|s| s.start == 0 || counts(s)));
    let (samples, histograms) = store.got().iter().map(Got::counts).fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    until("all that was sent is counted as written", 10, || {
        metric(&server, "samples", &["remote=\"mimir\"", "result=\"written\""]) >= samples as f64
            && metric(&server, "histograms", &["remote=\"mimir\"", "result=\"written\""]) >= histograms as f64
    });
    assert!(metric(&server, "requests", &["answer=\"204\""]) > 0.0 && metric(&server, "sent_bytes", &[]) > 1_000.0);
    assert!(metric(&server, "samples", &["result=\"refused\""]) < 0.5 && metric(&server, "samples", &["result=\"dropped\""]) < 0.5);
}

#[test]
fn what_is_gone_is_told_once_as_stale() {
    let store = Store::start(|_, _| Reply::Written);
    // Of the endpoints that are not critical only the busiest is there, and Slowburn's own limit is one.
    let (_dir, server) = started(&format!("{SHOP}[limits]\nexported_endpoints = 2\n{}", remote("r", store.address, "")));
    post(&server, &(timings("/orders", 10) + &timings("/first", 50)));
    let has = |moment: &[Series], route: &str| moment.iter().any(|s| s.labels.get("route").is_some_and(|r| r == route) && !s.number.is_stale());
    until("the first is there", 30, || store.moments().last_key_value().is_some_and(|(_, m)| has(m, "/first")));
    assert!(store.moments().values().flatten().all(|s| !s.number.is_stale() || s.labels["__name__"].starts_with("slowburn_endpoint_latency")));
    post(&server, &timings("/second", 100));
    until("the second has taken its place for two moments", 30, || store.moments().values().filter(|m| has(m, "/second")).count() >= 2);
    let moments = store.moments();
    let of_first: Vec<(i64, &Series)> =
        moments.iter().flat_map(|(at, m)| m.iter().map(|s| (*at, s))).filter(|(_, s)| s.labels.get("route").is_some_and(|r| r == "/first")).collect();
    let stale: Vec<_> = of_first.iter().filter(|(_, s)| s.number.is_stale()).collect();
    let names: BTreeSet<String> = stale.iter().map(|(_, s)| named(&s.labels)).collect();
    assert_eq!((stale.len(), names.len()), (7, 7), "four outcomes, +Inf, sum and count: each once: {names:?}");
    let at = stale[0].0;
    assert!(stale.iter().all(|s| s.0 == at) && of_first.iter().all(|(t, s)| *t < at || s.number.is_stale()), "at one moment, and nothing after it");
    assert!(!has(&moments[&at], "/first") && has(&moments[&at], "/second"));

    // What waits for the end is sent; that Slowburn ends makes nothing stale.
    let mut server = server;
    let ended = kit::now_ms();
    assert!(server.process.stop().success());
    let last = store.got().into_iter().next_back().unwrap();
    assert!(last.series.iter().all(|s| s.at.cast_unsigned() <= ended && !s.number.is_stale()));
}

/// The moments of a series, in the order in which they were written.
fn moments_of(store: &Store, name: &str, is_two: Option<bool>) -> Vec<i64> {
    let got = store.got().into_iter().filter(|g| g.status < 300 && g.status > 0 && is_two.is_none_or(|two| g.is_two == two));
    got.flat_map(|g| g.series).filter(|s| s.labels["__name__"] == name).map(|s| s.at).collect()
}

/// Taken each second, none left out, none out of order.
fn assert_no_gap(moments: &[i64]) {
    for pair in moments.windows(2) {
        // A machine under load is late now and then; two intervals late would be a moment that is not there.
        assert!((1..2_900).contains(&(pair[1] - pair[0])), "{moments:?}");
    }
}

#[test]
fn after_an_outage_nothing_is_missing_and_nothing_out_of_order() {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let store = Store::start(move |_, _| if down.load(Ordering::Relaxed) { Reply::Status(503, vec![]) } else { Reply::Written });
    let (_dir, server) = started(&format!("{SHOP}{}", remote("r", store.address, "")));
    post(&server, &timings("/orders", 10));
    until("it begins", 30, || !moments_of(&store, "slowburn_endpoints", None).is_empty());
    is_down.store(true, Ordering::Relaxed);
    until("some wait", 30, || metric(&server, "queue_requests", &[]) >= 4.0);
    assert!(metric(&server, "lag_seconds", &[]) > 2.0 && metric(&server, "queue_bytes", &[]) > 500.0);
    assert!(metric(&server, "requests", &["answer=\"503\""]) >= 2.0);
    is_down.store(false, Ordering::Relaxed);
    let back = i64::try_from(kit::now_ms()).unwrap();
    until("it has caught up", 60, || moments_of(&store, "slowburn_endpoints", None).last().is_some_and(|at| *at > back + 1_000));
    let moments = moments_of(&store, "slowburn_endpoints", None);
    assert!(moments.len() >= 6);
    assert_no_gap(&moments);
    // What was not taken came again as it was, before anything later.
    let got = store.got();
    for (n, failed) in got.iter().enumerate().filter(|(_, g)| g.status == 503) {
        assert_eq!(got[n + 1].body, failed.body);
    }
    until("nothing waits", 10, || metric(&server, "lag_seconds", &[]) < 2.0);
    assert!(metric(&server, "samples", &["result=\"dropped\""]) < 0.5);
}

#[test]
fn refusals_are_final_and_429_waits_as_long_as_it_is_asked_to() {
    let store = Store::start(|n, got| match n {
        1 => Reply::Status(429, vec![("Retry-After", "3".to_owned())]),
        3 => Reply::Status(400, written(got.counts().0 - 2, 0)),
        4 => Reply::Status(404, vec![]),
        _ => Reply::Written,
    });
    let (_dir, server) = started(&format!("{SHOP}{}", remote("r", store.address, "")));
    post(&server, &timings("/orders", 10));
    until("eight requests", 60, || store.got().len() >= 8);
    let got = store.got();
    assert_eq!(got.iter().take(5).map(|g| g.status).collect::<Vec<_>>(), [204, 429, 204, 400, 404]);
    assert_eq!(got[2].body, got[1].body);
    assert!(got[2].at - got[1].at >= Duration::from_secs(3));
    // Each moment but those: no request came twice.
    let bodies: BTreeSet<&[u8]> = got.iter().map(|g| g.body.as_slice()).collect();
    assert_eq!(bodies.len(), got.len() - 1);
    let refused = got[4].counts().0 as f64 + 2.0;
    until("what was refused is counted", 10, || (metric(&server, "samples", &["result=\"refused\""]) - refused).abs() < 0.5);
    let natives = (got[3].counts().1 + got[4].counts().1) as f64;
    assert!((metric(&server, "histograms", &["result=\"refused\""]) - natives).abs() < 0.5);
}

#[test]
fn a_receiver_that_only_knows_1_0_is_spoken_to_in_it() {
    let one_only = |answer: u16| move |_: usize, got: &Got| if got.is_two { Reply::Status(answer, vec![]) } else { Reply::Status(200, vec![]) };
    let stores = [415, 400, 204].map(|answer| Store::start(one_only(answer)));
    let both = Store::start(one_only(415));
    let plain = Store::start(one_only(500));
    let two_only = Store::start(one_only(415));
    let config: String = stores.iter().enumerate().map(|(n, store)| remote(&format!("r{n}"), store.address, "")).collect();
    let config = config
        + &remote("both", both.address, "histograms = 'both'")
        + &remote("plain", plain.address, "protocol = '1.0'")
        + &remote("two", two_only.address, "protocol = '2.0'");
    let (_dir, server) = started(&format!("{SHOP}{config}"));
    post(&server, &timings("/orders", 30));
    for store in stores.iter().chain([&both, &plain]) {
        until("three moments in 1.0", 30, || moments_of(store, "slowburn_request_duration_seconds_count", Some(false)).len() >= 3);
        assert_no_gap(&moments_of(store, "slowburn_endpoints", Some(false)));
        let got = store.got();
        let twos = got.iter().filter(|g| g.is_two).count();
        assert_eq!(twos, usize::from(store.address != plain.address), "it is asked once");
        let one = got.iter().rev().find(|g| !g.is_two).unwrap();
        let has_natives = one.series.iter().any(|s| matches!(s.number, Number::Native(_)));
        assert_eq!(has_natives, store.address == both.address);
        let families: BTreeMap<&str, (i32, &str)> = one.metadata.iter().map(|(name, kind, _, unit)| (name.as_str(), (*kind, unit.as_str()))).collect();
        assert_eq!(families.len(), one.metadata.len());
        assert_eq!(families["slowburn_request_duration_seconds"], (3, "seconds"));
        assert_eq!((families["slowburn_requests_total"], families["slowburn_endpoint_latency_seconds"]), ((1, ""), (5, "seconds")));
    }
    // The same request, in other words.
    let got = both.got();
    let [two, one] = &got[..2] else { panic!() };
    let content = |got: &Got| got.series.iter().map(|s| (named(&s.labels), format!("{:?} {:?}", s.number, s.exemplars), s.at)).collect::<BTreeSet<_>>();
    assert_eq!((two.is_two, one.is_two, content(two)), (true, false, content(one)));
    let has_traces = |got: &Got| got.series.iter().any(|s| s.exemplars.iter().any(|e| e.0.contains("größer")));
    assert!(both.got().iter().any(|got| !got.is_two && has_traces(got)));
    assert!(metric(&server, "histograms", &["remote=\"r0\"", "result=\"left_out\""]) > 0.0);
    assert!(metric(&server, "histograms", &["remote=\"both\"", "result=\"written\""]) > 0.0);
    // Who is to be spoken to in 2.0 only and does not know it gets nothing, and that is said.
    assert!(two_only.got().iter().all(|g| g.is_two) && metric(&server, "samples", &["remote=\"two\"", "result=\"refused\""]) > 0.0);
}

#[test]
fn a_receiver_that_hangs_harms_nothing_and_the_oldest_goes_when_the_queue_is_full() {
    let (hangs, seen) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (hanging, counted) = (Arc::clone(&hangs), Arc::clone(&seen));
    let store = Store::start(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        if hanging.load(Ordering::Relaxed) { Reply::Silence } else { Reply::Written }
    });
    let config = remote("r", store.address, "timeout = '6s'\nqueue_bytes = 2097152\nendpoints = 'all'");
    let (_dir, server) = started(&format!("{SHOP}{config}"));
    // Names that hardly pack, so that the queue is full soon.
    let mut state = 7_u64;
    let mut odd = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ state >> 29)
    };
    for _ in 0..8 {
        let ts = kit::now_ms();
        let lines: String = (0..300).fold(String::new(), |mut lines, _| {
            let route: String = (0..25).map(|_| odd()).collect();
            writeln!(lines, r#"{{"ts":{ts},"service":"shop","route":"/{route}","duration_ms":5}}"#).unwrap();
            lines
        });
        post(&server, &lines);
    }
    let dropped = |server: &Server| metric(server, "samples", &["result=\"dropped\""]);
    let mut slowest = Duration::ZERO;
    until("the queue is full, and it was tried again", 120, || {
        let start = kit::now();
        post(&server, &timings("/orders", 1));
        slowest = slowest.max(start.elapsed());
        dropped(&server) > 0.0 && seen.load(Ordering::Relaxed) >= 2
    });
    eprintln!("the slowest batch while the receiver hung took {slowest:.0?}");
    assert!(slowest < Duration::from_secs(3), "half of what one attempt may take: {slowest:?}");
    assert!(metric(&server, "queue_bytes", &[]) <= 2_097_152.0 + 1.0 && metric(&server, "requests", &["answer=\"timeout\""]) >= 1.0);
    let oldest = store.got()[0].series[0].at;
    hangs.store(false, Ordering::Relaxed);
    let back = i64::try_from(kit::now_ms()).unwrap();
    until("it has caught up", 60, || moments_of(&store, "slowburn_endpoints", None).last().is_some_and(|at| *at > back));
    let moments = moments_of(&store, "slowburn_endpoints", None);
    // The one on its way stays, those behind it went, and from the first that was left on there is each.
    assert_eq!(moments[0], oldest);
    assert!(moments[1] - oldest >= 1_900, "{moments:?}");
    assert_no_gap(&moments[1..]);
    // Each sample ended in one way, or waits.
    let (samples, _) = store.got().iter().filter(|g| g.status == 204).map(Got::counts).fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    until("what was written is counted", 10, || metric(&server, "samples", &["result=\"written\""]) >= samples as f64);
    assert!(metric(&server, "samples", &["result=\"refused\""]) < 0.5);
}

#[test]
fn a_secret_that_was_changed_is_read_again_and_headers_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let wanted = Arc::new(AtomicBool::new(false));
    let second = Arc::clone(&wanted);
    let store = Store::start(move |_, got| {
        let token = if second.load(Ordering::Relaxed) { "Bearer second" } else { "Bearer first" };
        assert_eq!(got.headers["x-scope-orgid"], "team");
        if got.headers["authorization"] == token { Reply::Written } else { Reply::Status(401, vec![]) }
    });
    let more = format!("bearer_token = 'file:{}'\nheaders = {{ X-Scope-OrgID = 'team' }}", file.display());
    let (_dir, server) = started(&remote("r", store.address, &more));
    until("it begins", 30, || store.got().len() >= 2);
    std::fs::write(&file, "second\n").unwrap();
    wanted.store(true, Ordering::Relaxed);
    let changed = i64::try_from(kit::now_ms()).unwrap();
    until("it goes on", 30, || moments_of(&store, "slowburn_endpoints", None).last().is_some_and(|at| *at > changed + 1_000));
    assert_no_gap(&moments_of(&store, "slowburn_endpoints", None));
    assert_eq!(store.got().iter().filter(|g| g.status == 401).count(), 1);
    assert!(metric(&server, "samples", &["result=\"refused\""]) < 0.5);
}

/// What a store has of a job, by series without job and instance, at this moment.
fn in_store(answer: &serde_json::Value) -> BTreeMap<String, f64> {
    let value = |r: &serde_json::Value| r["value"][1].as_str().unwrap().parse().unwrap();
    let result = answer["data"]["result"].as_array().unwrap().iter().filter(|r| r.get("value").is_some());
    let series = result.map(|r| {
        let labels = r["metric"].as_object().unwrap().iter().map(|(n, v)| (n.clone(), v.as_str().unwrap().to_owned()));
        (named(&labels.filter(|(name, _)| name != "job" && name != "instance").collect()), value(r))
    });
    series.filter(|(name, _)| !moves(name)).collect()
}

#[test]
fn prometheus_has_the_same_from_remote_write_as_from_a_scrape() {
    if !kit::has_prometheus() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = kit::free_port();
    let url = format!("http://127.0.0.1:{port}/api/v1/write");
    let config =
        format!("{SHOP}[limits]\nexported_endpoints = 3\n[[remote_write]]\nurl = '{url}'\ninterval = '1s'\nhistograms = 'both'\nlabels = {{ job = 'sent' }}\n");
    let server = Server::start(dir.path(), &config);
    let prometheus = Prometheus::start_receiving(dir.path(), port, server.address);
    post(&server, &(timings("/orders", 500) + &timings("/browse", 40) + &timings("/first", 5)));
    until("both have it", 60, || {
        ["sent", "slowburn"]
            .iter()
            .all(|job| prometheus.query(&format!("slowburn_requests_total{{job='{job}', route='/orders', outcome='ok'}}")) == Some(500.0))
    });
    let both = || ["sent", "slowburn"].map(|job| in_store(&prometheus.result(&format!("{{job='{job}', __name__=~'slowburn_.*'}}"))));
    until("they are alike", 30, || {
        let [sent, scraped] = both();
        // Up to 2.44 a scrape of native histograms has no classic ones.
        scraped.iter().all(|(name, value)| sent.get(name) == Some(value))
            && sent.keys().all(|name| scraped.contains_key(name) || name.contains("duration_seconds"))
    });
    let [sent, scraped] = both();
    eprintln!("{} series sent, {} scraped", sent.len(), scraped.len());
    assert!(scraped.len() > 25);
    for q in ["0.5", "0.95", "0.99"] {
        let [sent, scraped, classic] = [
            "slowburn_request_duration_seconds{job='sent', route='/orders'}",
            "slowburn_request_duration_seconds{job='slowburn', route='/orders'}",
            "sum by (le) (slowburn_request_duration_seconds_bucket{job='sent', route='/orders'})",
        ]
        .map(|of| prometheus.query(&format!("histogram_quantile({q}, {of})")));
        assert!(sent.is_some() && sent == scraped, "{q}: {sent:?} {scraped:?}");
        let range = format!("/api/v1/quantiles?service=shop&route=/orders&from={}&to={}&q={q}", kit::now_ms() - 3_600_000, kit::now_ms() + 60_000);
        let own = server.get(&range)["points"][0]["values"][q].as_f64().unwrap();
        assert!((sent.unwrap() / own - 1.0).abs() < 0.0219, "{q}: {sent:?} {own}");
        assert!(classic.is_some());
    }
    let metadata = prometheus.get("/api/v1/metadata?metric=slowburn_requests_total");
    assert_eq!(metadata["data"]["slowburn_requests_total"][0]["type"], "counter", "{metadata}");
    // What leaves the page is gone in both at once, native histograms and numbers alike.
    post(&server, &timings("/second", 90));
    until("the first has gone from both", 30, || {
        ["sent", "slowburn"].iter().all(|job| {
            prometheus.series(&format!("{{job='{job}', route='/first'}}")) == Ok(0) && prometheus.series(&format!("{{job='{job}', route='/second'}}")) > Ok(0)
        })
    });
    let answers = server.samples();
    eprintln!("answers: {:?}", answers.iter().filter(|(name, _)| name.starts_with("slowburn_process_remote_write_requests")).collect::<Vec<_>>());
    assert!(
        of(&answers, "samples", &["result=\"refused\""]).is_some_and(|n| *n < 0.5)
            && of(&answers, "samples", &["result=\"dropped\""]).is_some_and(|n| *n < 0.5)
    );
    assert!(of(&answers, "histograms", &["result=\"written\""]).is_some_and(|n| *n > 3.0));
}

fn victoria_metrics() -> Option<&'static str> {
    let runs = |name: &&str| Command::new(name).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    ["victoria-metrics", "victoria-metrics-prod"].into_iter().find(runs)
}

struct Victoria {
    _process: Process,
    address: SocketAddr,
}

fn victoria(program: &str, dir: &Path) -> Victoria {
    let address = SocketAddr::from(([127, 0, 0, 1], kit::free_port()));
    let mut command = Command::new(program);
    command.arg(format!("-httpListenAddr={address}")).arg(format!("-storageDataPath={}", dir.join("victoria").display()));
    command.args(["-search.latencyOffset=0s", "-retentionPeriod=1", "-search.disableCache"]).stdout(Stdio::null());
    let process = Process::start("victoria-metrics", &mut command).0;
    until("VictoriaMetrics is ready", 60, || ask(address, "GET", "/health", "", "").is_ok_and(|a| a.0 == 200));
    Victoria { _process: process, address }
}

#[test]
fn victoria_metrics_has_the_same_as_a_scrape() {
    let found = victoria_metrics();
    if !kit::has(found.is_some(), "VictoriaMetrics") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let victoria = victoria(found.unwrap(), dir.path());
    let config =
        format!("{SHOP}[[remote_write]]\nurl = 'http://{}/api/v1/write'\ninterval = '1s'\nlabels = {{ job = 'slowburn', instance = 'a' }}\n", victoria.address);
    let server = Server::start(dir.path(), &config);
    post(&server, &(timings("/orders", 500) + &timings("/browse", 40)));
    let query = "%7Bjob%3D%22slowburn%22%7D";
    let mut last = (0, 0);
    until("it has what a scrape has", 60, || {
        let stored = in_store(&get(victoria.address, &format!("/api/v1/query?query={query}")));
        let scrape: BTreeMap<String, f64> = scraped(&server, &[]).into_iter().filter(|(name, _)| !moves(name)).collect();
        last = (stored.len(), scrape.len());
        // It keeps decimal numbers.
        last.1 > 40 && scrape.iter().all(|(name, value)| stored.get(name).is_some_and(|s| (s - value).abs() <= value.abs() * 1e-12))
    });
    eprintln!("{} series stored, {} scraped", last.0, last.1);
    assert!(metric(&server, "samples", &["result=\"refused\""]) < 0.5);
}
