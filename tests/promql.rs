//! Slowburn read as Prometheus is: expressions over hand-made months against a plain list of what was sent; what a real Prometheus, its own client and the dashboards get; errors.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    clippy::float_cmp,
    reason = "a test fails by panicking, and counts little"
)]

mod common;
#[path = "peers/kit.rs"]
#[allow(dead_code, reason = "mail and the shop are not needed here")]
mod kit;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use common::{Chance, DAY, HOUR, MINUTE, Server};
use serde_json::{Value, json};
use slowburn::judge::Command;
use slowburn::run::disk::Retention;
use slowburn::time::Timestamp;

/// 2026-01-05 00:00 UTC.
const START: i64 = 1_767_571_200_000;

/// Minutes of two days, hours of twenty.
const RETENTION: Retention = Retention { minutes_ms: 2 * DAY, hours_ms: 20 * DAY, log_ms: 25 * HOUR };

const OWED: &str = r#"
[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "800ms", target = "99%", period = "30d" }, { availability = true, target = "99.9%", period = "30d" }]
"#;

const ROUTES: [(&str, &str); 3] = [("POST", "/orders"), ("GET", "/items"), ("GET", "/search")];

struct Timing {
    ts: i64,
    route: usize,
    us: u64,
    status: u32,
}

struct Months {
    server: Server,
    sent: Vec<Timing>,
    end: i64,
    _dir: tempfile::TempDir,
}

/// So many days with a burst every two hours, and every ten minutes in the last two.
fn months(days: i64) -> Months {
    let dir = common::folder();
    let server = Server::start(dir.path(), RETENTION, 1 << 20, Timestamp(START));
    server.at(Timestamp(START + 7_000));
    server.decide(Command::Configure(Timestamp(START + 7_000), common::promises(OWED))).unwrap();
    let (mut chance, mut sent) = (Chance::seeded("promql", 7), Vec::new());
    let mut at = START + 30 * MINUTE;
    while at < START + days * DAY {
        let mut lines = String::new();
        for _ in 0..6 + chance.below(8) {
            let route = chance.below(3) as usize;
            let us = if chance.below(12) == 0 { 800_000 + chance.below(2) } else { 1_000 + chance.below(700_000) };
            let timing = Timing { ts: at - chance.below(9_000) as i64, route, us, status: [200, 200, 200, 404, 503][chance.below(5) as usize] };
            let (method, route) = ROUTES[timing.route];
            let line = json!({"service": "shop", "env": "prod", "method": method, "route": route, "ts": timing.ts, "status": timing.status, "duration_us": us});
            writeln!(lines, "{line}").unwrap();
            sent.push(timing);
        }
        server.at(Timestamp(at));
        assert_eq!(server.post(&lines, None).0, StatusCode::OK);
        at += if at < START + (days - 2) * DAY { 2 * HOUR } else { 10 * MINUTE };
    }
    let end = START + days * DAY + 2 * MINUTE;
    server.at(Timestamp(end));
    Months { server, sent, end, _dir: dir }
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        write!(out, "%{b:02X}").unwrap();
        out
    })
}

impl Months {
    fn ask(&self, path: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let pairs: Vec<String> = form.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let (status, body) = self.server.call(Request::get(format!("/api/v1/{path}?{}", pairs.join("&"))).body(Body::empty()).unwrap());
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}")))
    }

    /// Labels and value of each series at an instant.
    fn at(&self, expression: &str, at: i64) -> BTreeMap<String, f64> {
        let (status, answer) = self.ask("query", &[("query", expression), ("time", &(at / 1_000).to_string())]);
        assert_eq!((status, answer["status"].as_str()), (StatusCode::OK, Some("success")), "{expression}: {answer}");
        let all = answer["data"]["result"].as_array().unwrap().iter();
        all.map(|s| (labels(&s["metric"]), s["value"][1].as_str().unwrap().parse().unwrap())).collect()
    }

    /// Points of each series by Unix milliseconds.
    fn range(&self, expression: &str, from: i64, to: i64, step: &str) -> (BTreeMap<String, BTreeMap<i64, f64>>, Vec<String>) {
        let (from, to) = ((from / 1_000).to_string(), (to / 1_000).to_string());
        let (status, answer) = self.ask("query_range", &[("query", expression), ("start", &from), ("end", &to), ("step", step)]);
        assert_eq!((status, answer["data"]["resultType"].as_str()), (StatusCode::OK, Some("matrix")), "{expression}: {answer}");
        let point = |p: &Value| ((p[0].as_f64().unwrap() * 1e3) as i64, p[1].as_str().unwrap().parse::<f64>().unwrap());
        let of = |s: &Value| (labels(&s["metric"]), s["values"].as_array().unwrap().iter().map(point).collect());
        let warnings = answer["warnings"].as_array().into_iter().flatten().map(|w| w.as_str().unwrap().to_owned());
        (answer["data"]["result"].as_array().unwrap().iter().map(of).collect(), warnings.collect())
    }

    /// Those sent in a window.
    fn within(&self, from: i64, to: i64) -> impl Iterator<Item = &Timing> {
        self.sent.iter().filter(move |t| t.ts >= from && t.ts < to)
    }
}

fn labels(metric: &Value) -> String {
    metric.as_object().unwrap().iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect::<Vec<_>>().join(",")
}

fn outcome(t: &Timing) -> &'static str {
    match t.status {
        200 => "ok",
        404 => "client_error",
        _ => "error",
    }
}

#[test]
fn expressions_over_all_tiers_say_what_a_plain_list_says() {
    let m = months(40);
    let count = |from: i64, to: i64, wanted: &dyn Fn(&Timing) -> bool| m.within(from, to).filter(|t| wanted(t)).count() as f64;
    let all = |_: &Timing| true;
    // Days, over days, hours and minutes: each point of a range is exact.
    let (by_outcome, warnings) = m.range("sum by (outcome) (increase(slowburn_requests_total[1d]))", START + DAY, START + 40 * DAY, "1d");
    assert_eq!((by_outcome.len(), warnings), (4, Vec::<String>::new()));
    for (labels, points) in &by_outcome {
        assert_eq!(points.len(), 40);
        for (at, value) in points {
            assert_eq!(*value, count(at - DAY, *at, &|t| labels == &format!("outcome={}", outcome(t))), "{labels} at {at}");
        }
    }
    // Hours and minutes where they are kept, across the change; rates are by the second.
    for (from, to, step_ms, step) in [(START + 25 * DAY, START + 40 * DAY, HOUR, "1h"), (START + 39 * DAY, START + 39 * DAY + 6 * HOUR, MINUTE, "60")] {
        let expression = format!("sum(rate(slowburn_requests_total{{service=\"shop\"}}[{step}{}]))", if step == "60" { "s" } else { "" });
        let (rates, warnings) = m.range(&expression, from, to, step);
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(rates[""].len() as i64, (to - from) / step_ms + 1);
        for (at, value) in &rates[""] {
            assert!((value * step_ms as f64 / 1e3 - count(at - step_ms, *at, &all)).abs() < 1e-9, "{expression} at {at}: {value}");
        }
    }
    // A window finer than what is kept is the nearest that is, and says so.
    let old = START + 30 * DAY + 35 * MINUTE;
    let (finer, warnings) = m.range("sum(increase(slowburn_requests_total[5m]))", old, old, "1h");
    let hour = START + 30 * DAY;
    assert_eq!(finer[""][&old], count(hour - HOUR, hour, &all));
    assert!(warnings.iter().any(|w| w.contains("whole hours")), "{warnings:?}");
    // Quantiles are those of all requests of the window together, and those of the API.
    for (from, to) in
        [(START + 3 * DAY, START + 4 * DAY), (START + 30 * DAY, START + 30 * DAY + 8 * HOUR), (START + 38 * DAY + HOUR, START + 39 * DAY + 20 * MINUTE)]
    {
        let window = (to - from) / 1_000;
        let mut us: Vec<u64> = m.within(from, to).map(|t| t.us).collect();
        us.sort_unstable();
        for q in ["0.5", "0.95", "0.99"] {
            let exact = us[((q.parse::<f64>().unwrap() * us.len() as f64 - 1e-9).ceil() as usize).max(1) - 1] as f64 / 1e6;
            let native = m.at(&format!("histogram_quantile({q}, sum(rate(slowburn_request_duration_seconds[{window}s])))"), to)[""];
            assert!((native / exact - 1.0).abs() < 0.01, "p{q} of {window} s: {native}, exactly {exact}");
            let own = m.server.json(&format!("/api/v1/quantiles?from={from}&to={to}&q={q}"));
            assert_eq!(own["points"][0]["values"][q].as_f64().unwrap(), native);
            let classic = m.at(&format!("histogram_quantile({q}, sum by (le) (rate(slowburn_request_duration_seconds_bucket[{window}s])))"), to)[""];
            assert!((0.0..=1.0).contains(&classic), "{classic}");
        }
        let histogram = |f: &str| m.at(&format!("{f}(sum(increase(slowburn_request_duration_seconds[{window}s])))"), to)[""];
        assert_eq!(histogram("histogram_count"), us.len() as f64);
        assert!((histogram("histogram_sum") - us.iter().sum::<u64>() as f64 / 1e6).abs() < 1e-6);
        // Classic buckets are exact at thresholds of objectives.
        let within = m.at(&format!("increase(slowburn_request_duration_seconds_bucket{{route=\"/orders\",le=\"0.8\"}}[{window}s])"), to);
        assert_eq!(within.into_values().sum::<f64>(), count(from, to, &|t| t.route == 0 && t.us <= 800_000));
        let bad = m.at(&format!("sum by (objective) (increase(slowburn_slo_bad_requests_total[{window}s]))"), to);
        assert_eq!(bad["objective=latency<=800ms"], count(from, to, &|t| t.route == 0 && (t.us > 800_000 || t.status == 503)));
        assert_eq!(bad["objective=availability"], count(from, to, &|t| t.route == 0 && t.status == 503));
    }
    // Counters as they stood; what came before anything is absent.
    let (stood, _) = m.range("sum(slowburn_requests_total)", START - DAY, START + 40 * DAY, "1d");
    assert_eq!(stood[""].len(), 40);
    assert!(stood[""].iter().all(|(at, value)| *value == count(0, *at, &all)));
    // Operators, matching, offset, the few largest.
    let (from, to) = (START + 20 * DAY, START + 21 * DAY);
    let share = "sum by (route) (increase(slowburn_requests_total{outcome=\"error\"}[1d])) / on (route) group_left () sum by (route) (increase(slowburn_requests_total[1d]))";
    for (labels, value) in m.at(share, to) {
        let of = |t: &Timing| labels == format!("route={}", ROUTES[t.route].1);
        assert!((value - count(from, to, &|t| of(t) && t.status == 503) / count(from, to, &of)).abs() < 1e-12);
    }
    assert_eq!(m.at("sum(increase(slowburn_requests_total[1d] offset 2d)) - sum(increase(slowburn_requests_total[1d] @ 1767830400))", to + 2 * DAY)[""], {
        count(from, to, &all) - count(START + 2 * DAY, START + 3 * DAY, &all)
    });
    let top = m.at("topk(1, sum by (route) (increase(slowburn_requests_total[1d])))", to);
    let most = ROUTES.iter().enumerate().map(|(n, _)| count(from, to, &|t| t.route == n)).fold(0.0, f64::max);
    assert_eq!(top.into_values().collect::<Vec<_>>(), [most]);
    let some = [("1 + 2 * 3 ^ 2", 19.0), ("scalar(vector(7)) % 4", 3.0)];
    for (expression, expected) in some {
        let (_, answer) = m.ask("query", &[("query", expression)]);
        assert_eq!((&answer["data"]["resultType"], answer["data"]["result"][1].as_str().unwrap().parse()), (&json!("scalar"), Ok(expected)));
    }
    assert_eq!(m.at("absent(slowburn_requests_total{route=\"/nowhere\"})", to), BTreeMap::from([("route=/nowhere".to_owned(), 1.0)]));
    assert_eq!(
        m.at("label_replace(count(slowburn_requests_total), \"a\", \"${1}b\", \"\", \"(.*)\") > bool 11", to),
        BTreeMap::from([("a=b".to_owned(), 1.0)])
    );
    assert_eq!(m.at("count(slowburn_requests_total{outcome=\"ok\"} unless on (route) slowburn_requests_total{route=~\"/i.+\"}) or vector(0)", to)[""], 2.0);
    // A gauge has no past.
    assert_eq!(m.at("slowburn_endpoints", m.end), BTreeMap::from([("__name__=slowburn_endpoints".to_owned(), 3.0)]));
    let (nothing, warnings) = m.range("slowburn_endpoints", from, to, "1h");
    assert!(nothing.is_empty() && warnings[0].contains("no history"), "{warnings:?}");
    m.server.stop();
}

#[test]
fn shapes_lists_and_errors_are_those_of_prometheus() {
    let m = months(3);
    let now = (m.end / 1_000).to_string();
    let data = |path: &str, form: &[(&str, &str)]| {
        let (status, answer) = m.ask(path, form);
        assert_eq!((status, &answer["status"]), (StatusCode::OK, &json!("success")), "{path}: {answer}");
        answer["data"].clone()
    };
    let vector = data("query", &[("query", "slowburn_requests_total{route=\"/orders\",outcome=\"ok\"}"), ("time", &now)]);
    let metric =
        json!({"__name__": "slowburn_requests_total", "service": "shop", "env": "prod", "kind": "http", "method": "POST", "route": "/orders", "outcome": "ok"});
    assert_eq!((&vector["resultType"], &vector["result"][0]["metric"]), (&json!("vector"), &metric));
    assert_eq!(vector["result"][0]["value"][0], json!(m.end / 1_000));
    let native = data("query_range", &[("query", "sum(increase(slowburn_request_duration_seconds[1d]))"), ("start", &now), ("end", &now), ("step", "1d")]);
    let point = &native["result"][0]["histograms"][0][1];
    let buckets = point["buckets"].as_array().unwrap();
    let sum: f64 = buckets.iter().map(|b| b[3].as_str().unwrap().parse::<f64>().unwrap()).sum();
    assert_eq!(sum, point["count"].as_str().unwrap().parse::<f64>().unwrap());
    assert!(buckets.iter().all(|b| b[0] == 0 && b[1].as_str().unwrap().parse::<f64>().unwrap() < b[2].as_str().unwrap().parse().unwrap()));
    // Lists.
    let names: Vec<String> = serde_json::from_value(data("labels", &[("match[]", "slowburn_requests_total")])).unwrap();
    assert_eq!(names, ["__name__", "env", "kind", "method", "outcome", "route", "service"]);
    assert_eq!(data("label/route/values", &[]), json!(["/items", "/orders", "/search"]));
    assert_eq!(data("label/objective/values", &[("match[]", "slowburn_slo_requests_total")]), json!(["availability", "latency<=800ms"]));
    let all_names = data("label/__name__/values", &[]);
    assert!(
        ["slowburn_request_duration_seconds", "slowburn_build_info", "slowburn_incident_active"]
            .iter()
            .all(|n| all_names.as_array().unwrap().contains(&json!(n)))
    );
    assert_eq!(
        data("series", &[("match[]", "slowburn_requests_total{outcome=~\"ok|error\"}"), ("match[]", "slowburn_build_info")]).as_array().unwrap().len(),
        7
    );
    assert_eq!(data("metadata", &[("metric", "slowburn_requests_total")])["slowburn_requests_total"][0]["type"], "counter");
    assert_eq!(data("metadata", &[]).as_object().unwrap().values().filter(|v| v[0]["type"] == "histogram").count(), 1);
    assert_eq!(data("query_exemplars", &[("query", "sum(rate(slowburn_request_duration_seconds_bucket[5m]))")]), json!([]));
    let (status, answer) = m.ask("query_exemplars", &[("query", "up"), ("start", "2"), ("end", "1")]);
    assert_eq!((status, answer["errorType"].as_str()), (StatusCode::BAD_REQUEST, Some("bad_data")), "{answer}");
    assert_eq!(data("status/buildinfo", &[])["version"], "2.42.0");
    // A form is as good as a query string.
    let post = Request::post("/api/v1/query").header("content-type", "application/x-www-form-urlencoded").body(Body::from("query=1%2B1&time=5")).unwrap();
    assert_eq!(m.server.call(post), (StatusCode::OK, r#"{"status":"success","data":{"resultType":"scalar","result":[5,"2"]}}"#.to_owned()));
    // Errors name the place.
    for (expression, expected) in [
        ("sum(rate(slowburn_requests_total[5m])", "1:4: parse error: `(` has no counterpart"),
        ("1 +\n irate(slowburn_requests_total[5m])", "2:2: parse error: irate() is not supported"),
        ("max_over_time(slowburn_endpoints[5m])", "1:1: parse error: max_over_time() is not supported"),
        ("rate(slowburn_requests_total[5m:1m])", "1:29: parse error: a subquery is not supported"),
        ("slowburn_requests_total[5m]", "1:24: parse error: a range of samples by itself is not supported"),
        ("1 + quantile(0.9, slowburn_requests_total)", "1:5: parse error: quantile is not supported"),
        ("sum(nothing_like_this(slowburn_endpoints))", "1:5: parse error: "),
        ("rate(slowburn_requests_total)", "parse error: "),
        ("slowburn_requests_total{route=~\"(\"}", "parse error: "),
        ("", "it is missing"),
    ] {
        let (status, answer) = m.ask("query", &[("query", expression)]);
        assert_eq!((status, &answer["errorType"]), (StatusCode::BAD_REQUEST, &json!("bad_data")), "{expression}: {answer}");
        let said = answer["error"].as_str().unwrap();
        assert!(said.starts_with("invalid parameter \"query\": ") && said.contains(expected), "{expression}: {said}");
    }
    for (expression, expected) in [
        ("slowburn_requests_total + on (service) slowburn_requests_total", "many-to-many"),
        ("slowburn_requests_total{method=\"GET\"} + on (method) sum by (method) (slowburn_requests_total)", "group_left"),
        ("label_replace(slowburn_requests_total, \"outcome\", \"x\", \"\", \"\")", "same labelset"),
    ] {
        let (status, answer) = m.ask("query", &[("query", expression), ("time", &now)]);
        assert_eq!((status, &answer["errorType"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("execution")), "{expression}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(expected), "{answer}");
    }
    // Limits.
    let range = |start: &str, end: &str, step: &str| m.ask("query_range", &[("query", "time()"), ("start", start), ("end", end), ("step", step)]);
    assert_eq!(range("0", "10999", "1").1["data"]["result"][0]["values"].as_array().unwrap().len(), 11_000);
    for (start, end, step) in [("0", "11000", "1"), ("5", "4", "1"), ("0", "1", "0"), ("0", "1", "-1"), ("x", "1", "1"), ("0", "1e300", "1"), ("0", "1", "1x")]
    {
        assert_eq!(range(start, end, step).0, StatusCode::BAD_REQUEST, "{start} {end} {step}");
    }
    for expression in ["(".repeat(60) + "1" + &")".repeat(60), "1+".repeat(1_500) + "1", "1".repeat(20_000)] {
        assert_eq!(m.ask("query", &[("query", &expression)]).0, StatusCode::BAD_REQUEST);
    }
    let chain = "1+".repeat(499) + "1";
    assert_eq!(m.ask("query", &[("query", &chain)]).1["data"]["result"][1], "500");
    let (status, answer) = m.ask("query", &[("query", "sum(rate(slowburn_requests_total[1h]))"), ("time", &now), ("timeout", "-1")]);
    assert_eq!((status, &answer["errorType"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("timeout")), "{answer}");
    let (_, answer) = m.ask("query", &[("query", "avg(histogram_quantile(0.9, rate(slowburn_request_duration_seconds[1h]))) + up"), ("time", &now)]);
    assert_eq!(answer["warnings"].as_array().unwrap().len(), 2, "{answer}");
    m.server.stop();
}

const REAL: &str = r#"
judge_after = "1s"

[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "800ms", target = "99%", period = "30d" }, { availability = true, target = "99%", period = "30d" }]
"#;

/// Half a second of a shop.
fn lines() -> String {
    let ts = kit::now_ms();
    (0..20_u64).fold(String::new(), |mut lines, n| {
        let (status, duration_ms) = (if n % 10 == 9 { 503 } else { 201 }, if n % 5 == 4 { 1_500 } else { 100 + 5 * n });
        writeln!(lines, r#"{{"ts":{ts},"service":"shop","env":"prod","method":"POST","route":"/orders","status":{status},"duration_ms":{duration_ms}}}"#)
            .unwrap();
        lines
    })
}

fn promtool(server: &kit::Server, arguments: &[&str]) -> String {
    let (kind, rest) = arguments.split_at(2);
    let mut command = std::process::Command::new("promtool");
    command.args(kind).arg(format!("http://{}", server.address)).args(rest);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The expressions of the dashboards that read names with a past, with everything chosen.
fn of_dashboards() -> Vec<String> {
    let with_past =
        ["slowburn_requests_total", "slowburn_request_duration_seconds", "slowburn_endpoint_latency_seconds", "slowburn_slo_requests", "slowburn_slo_bad"];
    let mut found = Vec::new();
    for name in ["overview", "endpoint", "objective", "slowburn"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("dashboards/{name}.json"));
        let board: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for target in board["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().into_iter().flatten()) {
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
            if with_past.iter().any(|metric| expression.contains(metric)) {
                found.push(["service", "env", "kind", "method", "route", "objective"].iter().fold(expression, |e, v| e.replace(&format!("${v}"), ".*")));
            }
        }
    }
    found
}

#[test]
fn a_real_prometheus_its_client_and_the_dashboards_agree() {
    if !kit::has_prometheus() {
        return;
    }
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let server = kit::Server::start(dirs[0].path(), REAL);
    let (classic, native) = (kit::Prometheus::start(dirs[1].path(), server.address), kit::Prometheus::start_native(dirs[2].path(), server.address));
    // A whole minute under even load, of which both saw the minute before its begin.
    let mut sent = 0;
    let end = (kit::now_ms() / 60_000 + 2) * 60_000;
    kit::until("a whole minute", 200, || {
        sent += server.post("", &lines()).1["accepted"].as_u64().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(400));
        kit::now_ms() > end + 3_000
    });
    let number = |answer: &Value| answer["data"]["result"][0]["value"][1].as_str().map(|v| v.parse::<f64>().unwrap());
    let of_slowburn = |expression: &str, at: u64| number(&server.get(&format!("/api/v1/query?query={}&time={}", encoded(expression), at / 1_000))).unwrap();
    let of =
        |p: &kit::Prometheus, expression: &str, at: u64| number(&p.get(&format!("/api/v1/query?query={}&time={}", encoded(expression), at / 1_000))).unwrap();
    // Prometheus sees the ends of the window a second late at most and stretches what it saw: 2 of 60 s and a batch.
    for expression in [
        "sum(increase(slowburn_requests_total[1m]))",
        "sum(rate(slowburn_requests_total{outcome=\"error\"}[1m]))",
        "sum(rate(slowburn_request_duration_seconds_sum[1m]))",
        "sum(rate(slowburn_request_duration_seconds_bucket{le=\"0.8\"}[1m]))",
        "sum(increase(slowburn_slo_bad_requests_total{objective=\"latency<=800ms\"}[1m]))",
    ] {
        let (ours, theirs) = (of_slowburn(expression, end), of(&classic, expression, end));
        assert!((ours / theirs - 1.0).abs() < 0.08, "{expression}: Slowburn {ours}, Prometheus {theirs}");
    }
    // Shares and quantiles do not depend on where the window is cut under even load.
    let share = "sum(rate(slowburn_requests_total{outcome=\"error\"}[1m])) / sum(rate(slowburn_requests_total[1m]))";
    assert!((of_slowburn(share, end) - of(&classic, share, end)).abs() < 0.002);
    for q in ["0.5", "0.95"] {
        let by_bucket = format!("histogram_quantile({q}, sum by (le) (rate(slowburn_request_duration_seconds_bucket[1m])))");
        let (ours, theirs) = (of_slowburn(&by_bucket, end), of(&classic, &by_bucket, end));
        assert!((ours / theirs - 1.0).abs() < 0.01, "{by_bucket}: {ours} and {theirs}");
        let by_native = format!("histogram_quantile({q}, sum(rate(slowburn_request_duration_seconds[1m])))");
        let (ours, theirs) = (of_slowburn(&by_native, end), of(&native, &by_native, end));
        // The width of a native bucket, as README says.
        assert!((ours / theirs - 1.0).abs() < 0.022, "{by_native}: {ours} and {theirs}");
    }
    // Once no load comes, the counters are the same to the last request.
    kit::until("what was sent is scraped", 30, || classic.query("sum(slowburn_requests_total)") == Some(sent as f64));
    let after = (kit::now_ms() / 60_000 + 1) * 60_000;
    assert_eq!(of_slowburn("sum(slowburn_requests_total)", after), sent as f64);
    // Its own client reads the answers.
    let said = promtool(&server, &["query", "instant", "sum by (outcome) (slowburn_requests_total)", &format!("--time={}", after / 1_000)]);
    assert!(said.contains(&format!("{{outcome=\"error\"}} => {} @[", sent / 10)), "{said}");
    let (from, to) = ((end / 1_000 - 60).to_string(), (end / 1_000).to_string());
    let said =
        promtool(&server, &["query", "range", "sum(increase(slowburn_requests_total[1m]))", &format!("--start={from}"), &format!("--end={to}"), "--step=1m"]);
    assert!(said.contains("{} =>") && said.contains(&format!("@[{to}]")), "{said}");
    let said = promtool(&server, &["query", "labels", "outcome"]);
    assert!(["client_error", "error", "ok", "timeout"].iter().all(|outcome| said.lines().any(|line| line == *outcome)), "{said}");
    let said = promtool(&server, &["query", "series", "--match=slowburn_requests_total{outcome=\"ok\"}"]);
    assert!(said.contains("route=\"/orders\""), "{said}");
    // Every panel that reads what has a past.
    let expressions = of_dashboards();
    assert!(expressions.len() > 20);
    for expression in expressions {
        let answer = server.get(&format!("/api/v1/query_range?query={}&start={from}&end={to}&step=60", encoded(&expression)));
        let found = answer["data"]["result"].as_array().unwrap().len();
        assert!(found > 0 || expression.contains("offset"), "{expression}: {answer}");
    }
}
