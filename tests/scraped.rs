//! A real Prometheus for each format: what came over the wire was that format, the values are the same in all of them, and the traces that Slowburn was sent are its exemplars.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a test fails by panicking; counts far below 2^53")]

#[path = "peers/kit.rs"]
#[allow(dead_code, reason = "it takes a part")]
mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use kit::{Exemplar, Prometheus, Server, until};

const CONFIG: &str = r#"
judge_after = "1s"

[[endpoint]]
service = "shop"
route = "/critical"
objectives = [{ latency = "250ms", target = "99%", period = "30d" }, { availability = true, target = "99%", period = "30d" }]

[[burn_window]]
long = "20s"
short = "10s"
factor = 6.0
severity = "critical"
"#;

/// As the settings of Prometheus name them, as Slowburn's metric does, and the type that is sent.
const FORMATS: [(&str, &str, &str); 3] = [
    ("PrometheusText0.0.4", "text", "text/plain; version=0.0.4; charset=utf-8"),
    ("OpenMetricsText1.0.0", "openmetrics", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ("PrometheusProto", "protobuf", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"),
];

/// What stands between a Prometheus and Slowburn: it takes down the type of each answer, and may ask for another format than it was asked for.
struct Wire {
    address: SocketAddr,
    types: Arc<Mutex<BTreeSet<String>>>,
}

impl Wire {
    fn to(server: SocketAddr, accept: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self { address: listener.local_addr().unwrap(), types: Arc::default() };
        let types = Arc::clone(&wire.types);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let types = Arc::clone(&types);
                std::thread::spawn(move || pass(stream, server, accept, &types));
            }
        });
        wire
    }

    fn types(&self) -> Vec<String> {
        self.types.lock().unwrap().iter().cloned().collect()
    }
}

/// One request and its answer; then the connection is closed.
fn pass(stream: TcpStream, server: SocketAddr, accept: Option<&str>, types: &Mutex<BTreeSet<String>>) -> std::io::Result<()> {
    let (mut write, mut read) = (stream.try_clone()?, BufReader::new(stream));
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if read.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let line = match (name.as_str(), accept) {
            ("accept", Some(accept)) => format!("Accept: {accept}\r\n"),
            ("host", _) => format!("Host: {server}\r\n"),
            _ => line,
        };
        head.push_str(&line);
    }
    let mut to = TcpStream::connect(server)?;
    write!(to, "{head}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    to.read_to_end(&mut answer)?;
    let head = String::from_utf8_lossy(&answer[..answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(0)]).into_owned();
    let kind = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-type: ").map(|_| l[14..].to_owned()));
    types.lock().unwrap().extend(kind);
    write.write_all(&answer)
}

/// Traces that would end a text, a line or a sample if they could.
fn traces() -> Vec<String> {
    let odd = [r#"a "quoted" one"#, r"back\\slash\\n", "größer ✓ 日本", "} 1 # {x=\"y\"} 2", "4bf92f3577b34da6a3ce929d0e0e4736"];
    odd.into_iter().map(str::to_owned).chain(["ü".repeat(120)]).collect()
}

struct Sent {
    lines: String,
    /// By route: trace, seconds, milliseconds.
    traced: BTreeMap<String, (String, String, i64)>,
}

impl Sent {
    /// Likewise, as counters have it: one request.
    fn counted(&self) -> BTreeMap<String, (String, String, i64)> {
        self.traced.iter().map(|(route, (trace, _, ms))| (route.clone(), (trace.clone(), "1".to_owned(), *ms))).collect()
    }
}

/// Some requests of each route, one of them with a trace, on durations that lie in different buckets.
fn requests() -> Sent {
    let ts = i64::try_from(kit::now_ms()).unwrap();
    let (mut lines, mut traced) = (String::new(), BTreeMap::new());
    let routes = traces().into_iter().enumerate().map(|(n, trace)| (format!("/{n}"), trace));
    for (at, (route, trace)) in (0_u32..).zip(routes.chain([("/critical".to_owned(), "of what is critical".to_owned())])) {
        let us = 3_000 * 4_u64.pow(at);
        let quoted = serde_json::Value::from(trace.as_str());
        for n in 0..3 {
            writeln!(lines, r#"{{"ts":{ts},"service":"shop","route":"{route}","status":200,"duration_us":{}}}"#, us / 2 + n).unwrap();
        }
        writeln!(lines, r#"{{"ts":{ts},"service":"shop","route":"{route}","status":503,"duration_us":{us},"trace_id":{quoted}}}"#).unwrap();
        let seconds = format!("{}", std::time::Duration::from_micros(us).as_secs_f64());
        traced.insert(route, (trace, seconds, ts));
    }
    // Longer than the formats have room for: kept, and shown by Slowburn's own API only.
    writeln!(lines, r#"{{"ts":{ts},"service":"shop","route":"/long","duration_ms":5,"trace_id":"{}"}}"#, "x".repeat(121)).unwrap();
    Sent { lines, traced }
}

/// What the exemplars of a metric say: by route, trace, value, milliseconds.
fn by_route(exemplars: &[Exemplar], name: &str) -> BTreeMap<String, (String, String, i64)> {
    let of_name: Vec<&Exemplar> = exemplars.iter().filter(|(series, ..)| series["__name__"] == name).collect();
    let found: BTreeMap<_, _> = of_name.iter().map(|(series, trace, value, ms)| (series["route"].clone(), (trace.clone(), value.clone(), *ms))).collect();
    assert_eq!(found.len(), of_name.len(), "one of each route: {of_name:?}");
    found
}

/// Prometheus 2.42 reads the escapes in an exemplar of `OpenMetrics` and leaves them as they stand; later ones may take them away.
fn as_sent(found: &mut BTreeMap<String, (String, String, i64)>, sent: &BTreeMap<String, (String, String, i64)>) {
    for (route, (trace, ..)) in found {
        let original = &sent[route].0;
        if *trace == original.replace('\\', r"\\").replace('"', r#"\""#) {
            trace.clone_from(original);
        }
    }
}

/// The value of each series of a query, by its labels.
fn values(prometheus: &Prometheus, query: &str) -> BTreeMap<String, String> {
    let result = prometheus.result(query);
    result["data"]["result"].as_array().unwrap().iter().map(|s| (s["metric"].to_string(), s["value"][1].as_str().unwrap_or_default().to_owned())).collect()
}

const REQUESTS: &str = "sum by (service, kind, route, outcome) (slowburn_requests_total)";
const BUCKETS: &str = "slowburn_request_duration_seconds_bucket";
const NATIVE: &str = "slowburn_request_duration_seconds";

fn same_values(all: &[Prometheus]) {
    // Classic histograms are those of endpoints that are not critical: some Prometheus keeps only native ones where it has them.
    for query in [
        REQUESTS,
        "sum by (route, le) (slowburn_request_duration_seconds_bucket{route!=\"/critical\"})",
        "sum by (route) (slowburn_request_duration_seconds_sum{route!=\"/critical\"})",
        "sum by (route) (slowburn_request_duration_seconds_count{route!=\"/critical\"})",
        "sum by (objective) (slowburn_slo_requests_total)",
        "sum by (objective) (slowburn_slo_bad_requests_total)",
        "sum by (objective) (slowburn_slo_objective_ratio)",
        "sum by (outcome) (slowburn_ingest_timings_total)",
    ] {
        let [text, open, protobuf] = [0, 1, 2].map(|n| values(&all[n], query));
        assert!(!text.is_empty() && text == open && text == protobuf, "{query}: {text:?} {open:?} {protobuf:?}");
    }
    let of_critical = |p: &Prometheus, query: &str| p.query(query).unwrap_or_else(|| panic!("{query}"));
    let count = of_critical(&all[0], "sum(slowburn_request_duration_seconds_count{route=\"/critical\"})");
    assert_eq!(count.to_bits(), of_critical(&all[1], "sum(slowburn_request_duration_seconds_count{route=\"/critical\"})").to_bits());
    assert_eq!(count.to_bits(), of_critical(&all[2], "sum(histogram_count(slowburn_request_duration_seconds{route=\"/critical\"}))").to_bits());
}

fn traces_are_exemplars(all: &[Prometheus], sent: &Sent) {
    // The traces: in the bucket of the duration, at the outcome, at the native histogram; none in text 0.0.4.
    let durations = "{__name__=~\"slowburn_request_duration_seconds|slowburn_request_duration_seconds_bucket\"}";
    let [text, open, protobuf] = [0, 1, 2].map(|n| all[n].exemplars(durations));
    assert_eq!(text, vec![]);
    let mut of_open = by_route(&open, BUCKETS);
    as_sent(&mut of_open, &sent.traced);
    assert_eq!(of_open, sent.traced);
    let les: BTreeSet<(&str, &str)> = open.iter().map(|(series, ..)| (series["route"].as_str(), series["le"].as_str())).collect();
    assert!(les.contains(&("/critical", "+Inf")) && les.contains(&("/0", "+Inf")), "{les:?}");
    let mut of_protobuf = by_route(&protobuf, BUCKETS);
    of_protobuf.extend(by_route(&protobuf, NATIVE));
    assert_eq!(of_protobuf, sent.traced);
    assert!(by_route(&protobuf, NATIVE).contains_key("/critical"), "{protobuf:?}");
    let ones = sent.counted();
    for prometheus in &all[1..] {
        let counted = prometheus.exemplars("slowburn_requests_total");
        let mut found = by_route(&counted, "slowburn_requests_total");
        as_sent(&mut found, &sent.traced);
        assert_eq!(found, ones);
        assert!(counted.iter().all(|(series, ..)| series["outcome"] == "error"));
    }
}

/// Where Grafana asks it directly; and each endpoint names its trace.
fn slowburn_answers_the_same(server: &Server, sent: &Sent) {
    let own = kit::exemplars(server.address, "histogram_quantile(0.95, sum by (le) (rate(slowburn_request_duration_seconds_bucket[5m])))");
    assert_eq!(by_route(&own, BUCKETS), sent.traced);
    assert_eq!(own.iter().find(|(series, ..)| series["route"] == "/critical").unwrap().0["le"], "+Inf");
    assert_eq!(by_route(&kit::exemplars(server.address, "slowburn_requests_total"), "slowburn_requests_total"), sent.counted());
    assert_eq!(kit::exemplars(server.address, "slowburn_endpoint_latency_seconds"), vec![]);
    let endpoints = server.get("/api/v1/endpoints?service=shop");
    let traces: BTreeMap<String, String> = endpoints["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["route"].as_str().unwrap().to_owned(), e["slowest_traces"][0]["trace_id"].as_str().unwrap().to_owned()))
        .collect();
    let mut expected: BTreeMap<String, String> = sent.traced.iter().map(|(route, (trace, ..))| (route.clone(), trace.clone())).collect();
    expected.insert("/long".to_owned(), "x".repeat(121));
    assert_eq!(traces, expected);
}

#[test]
fn every_format_is_scraped_with_the_same_values_and_the_traces_are_exemplars() {
    if !kit::has_prometheus() {
        return;
    }
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut server = Server::start(dirs[3].path(), CONFIG);
    let sent = requests();
    let timings = 4 * sent.traced.len() as u64 + 1;
    assert_eq!(server.post("", &sent.lines).1["accepted"], timings);
    let wires = FORMATS.map(|(name, ..)| {
        let must_be_told = name == "PrometheusText0.0.4" && !kit::prometheus_chooses_formats();
        Wire::to(server.address, must_be_told.then_some("text/plain;version=0.0.4"))
    });
    let all: Vec<Prometheus> =
        FORMATS.iter().zip(&wires).zip(&dirs).map(|(((name, ..), wire), dir)| Prometheus::start_asking_for(dir.path(), wire.address, name)).collect();
    until("each has scraped", 60, || all.iter().all(|p| values(p, REQUESTS).len() == 4 * (sent.traced.len() + 1)));

    // Over the wire came what it was to be, and nothing else; Slowburn says so too.
    let scraped = server.samples();
    for ((name, own_name, kind), wire) in FORMATS.iter().zip(&wires) {
        assert_eq!(wire.types(), [kind.to_string()], "{name}");
        assert!(scraped[&format!("slowburn_process_scrapes{{format=\"{own_name}\"}}")] >= 1.0, "{name}");
    }

    same_values(&all);
    traces_are_exemplars(&all, &sent);
    // Also after a crash.
    for _ in 0..2 {
        slowburn_answers_the_same(&server, &sent);
        server.start_again();
    }

    // One of four failed: an incident names the trace of the slowest.
    until("an incident of the availability", 60, || {
        assert_eq!(server.post("", &self::requests().lines).0, 200);
        server.incidents().iter().any(|i| i["objective"] == "availability")
    });
    for incident in server.incidents() {
        let trace = &incident["evidence"]["slowest_trace"];
        assert_eq!((&trace["trace_id"], &trace["outcome"]), (&"of what is critical".into(), &"error".into()), "{incident}");
        assert_eq!(trace["duration_ms"], 12_288.0, "{incident}");
    }
}
