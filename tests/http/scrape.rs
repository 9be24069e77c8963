//! `/metrics` in each format, packed and plain: the same samples, read back by parsers that refuse what the formats refuse.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "counts far below 2^31")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::proto::decode_families;
use crate::server::{Answer, Server, now_ms};

const CONFIG: &str = r"
[[endpoint]]
service = 'shop'
route = '/a'
objectives = [{ latency = '50ms', target = '99%' }, { latency = '30us', target = '50%' }]
";

const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,text/plain;q=0.5";

type Series = BTreeMap<String, f64>;

/// One series as it is written: the name with its labels, `le` and `quantile` among them.
fn put(series: &mut Series, name: &str, labels: &[(String, String)], value: f64) {
    let labels: BTreeSet<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    let name = format!("{name}{{{}}}", labels.into_iter().collect::<Vec<_>>().join(","));
    assert!(series.insert(name.clone(), value).is_none(), "{name} is there twice");
}

/// The name, the labels and the value of a line.
fn sample(line: &str) -> (&str, Vec<(String, String)>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap_or_else(|_| panic!("{line}")) };
    let (name, mut rest) = series.split_once('{').map_or((series, ""), |(name, rest)| (name, rest.strip_suffix('}').unwrap()));
    assert!((name.starts_with("slowburn_") || name == "process_start_time_seconds") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").unwrap();
        let (mut text, mut characters) = (String::new(), after.char_indices());
        let end = loop {
            match characters.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => text.push(match characters.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("{c} is escaped in {line}"),
                }),
                (_, c) => text.push(c),
            }
        };
        labels.push((label.to_owned(), text));
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    (name, labels, value)
}

/// The samples of either text format: each family once, its type before its samples, nothing of it later, names as its type has them.
fn read_text(text: &str, is_open: bool, exemplars: &mut Vec<String>) -> Series {
    let text = if is_open { text.strip_suffix("# EOF\n").expect("the end") } else { text };
    let (mut series, mut families) = (Series::new(), BTreeSet::new());
    let (mut family, mut kind) = ("", "");
    for line in text.lines() {
        let comment = line.strip_prefix("# ").map(|c| c.splitn(3, ' ').collect::<Vec<_>>());
        match comment.as_deref() {
            Some(["HELP", name, help]) => {
                assert!(families.insert((*name).to_owned()) && !help.is_empty(), "{line}");
                family = name;
            }
            Some(["TYPE", name, what]) => {
                assert_eq!(*name, family);
                kind = what;
            }
            Some(["UNIT", name, unit]) => assert!(is_open && *name == family && name.ends_with(&format!("_{unit}")), "{line}"),
            Some(_) => panic!("{line}"),
            None => {
                let (line, exemplar) = line.split_once(" # ").filter(|_| is_open).map_or((line, None), |(line, exemplar)| (line, Some(exemplar)));
                let (name, labels, value) = sample(line);
                if let Some(exemplar) = exemplar {
                    assert!(name.ends_with("_bucket") || name.ends_with("_total"), "{line}");
                    exemplars.push(format!("{name} {exemplar}"));
                }
                let endings: &[&str] = match kind {
                    "counter" if is_open => &["_total"],
                    "info" if is_open => &["_info"],
                    "gauge" | "counter" => &[""],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    "summary" => &["", "_sum", "_count"],
                    _ => panic!("{family} is a {kind}"),
                };
                assert!(name.strip_prefix(family).is_some_and(|ending| endings.contains(&ending)), "{line} in {family}");
                assert!(kind != "info" || value.to_bits() == 1.0_f64.to_bits());
                put(&mut series, name, &labels, value);
            }
        }
    }
    series
}

fn number(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0.0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// As Prometheus writes a bound.
fn bound(value: f64) -> String {
    if value < 1e-4 {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once("e-").unwrap();
        format!("{mantissa}e-{exponent:0>2}")
    } else {
        format!("{value:?}")
    }
}

/// The samples of a page in protobuf as text would have them.
fn read_protobuf(page: &[u8]) -> Series {
    let (mut series, mut names) = (Series::new(), BTreeSet::new());
    for family in decode_families(page) {
        let (name, kind) = (family["name"].as_str().unwrap().to_owned(), family["type"].as_str().unwrap_or("COUNTER"));
        // Prometheus 2 takes every sample of a family for what the first one is: native histograms and others are two families of one name.
        let natives = list(&family["metric"]).iter().filter(|m| m["histogram"].get("schema").is_some()).count();
        assert!(natives == 0 || natives == list(&family["metric"]).len(), "{name}: {natives}");
        assert!(names.insert((name.clone(), natives > 0)) && family["help"].is_string(), "{name}");
        for metric in list(&family["metric"]) {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let labels: Vec<(String, String)> = list(&metric["label"]).iter().map(|l| (text(&l["name"]), text(&l["value"]))).collect();
            let with = |label: &str, value: String| labels.iter().cloned().chain([(label.to_owned(), value)]).collect::<Vec<_>>();
            let of = match kind {
                "COUNTER" => &metric["counter"],
                "GAUGE" => &metric["gauge"],
                "SUMMARY" => &metric["summary"],
                _ => &metric["histogram"],
            };
            assert!(of.is_object(), "{name}: {metric}");
            if let "COUNTER" | "GAUGE" = kind {
                put(&mut series, &name, &labels, number(&of["value"]));
                continue;
            }
            for quantile in list(&of["quantile"]) {
                put(&mut series, &name, &with("quantile", number(&quantile["quantile"]).to_string()), number(&quantile["value"]));
            }
            // The last bucket is there by itself only for its exemplar.
            for bucket in list(&of["bucket"]).iter().filter(|b| number(&b["upperBound"]).is_finite()) {
                put(&mut series, &format!("{name}_bucket"), &with("le", bound(number(&bucket["upperBound"]))), number(&bucket["cumulativeCount"]));
            }
            if kind == "HISTOGRAM" {
                put(&mut series, &format!("{name}_bucket"), &with("le", "+Inf".to_owned()), number(&of["sampleCount"]));
            }
            put(&mut series, &format!("{name}_sum"), &labels, number(&of["sampleSum"]));
            put(&mut series, &format!("{name}_count"), &labels, number(&of["sampleCount"]));
        }
    }
    series
}

/// Trace, value and milliseconds of exemplars, in order.
type Traces = Vec<(String, f64, i64)>;

fn ordered(mut traces: Traces) -> Traces {
    traces.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    traces
}

/// Of what stands behind the samples of a text: `NAME {trace_id="…"} VALUE SECONDS`.
fn traces_of_text(exemplars: &[String]) -> Traces {
    let read = |line: &String| {
        let (series, seconds) = line.split_once(' ').unwrap().1.rsplit_once(' ').unwrap();
        let with_name = format!("slowburn_x{series}");
        let (_, labels, value) = sample(&with_name);
        let [(name, trace)] = &labels[..] else { panic!("{line}") };
        assert_eq!(name, "trace_id");
        (trace.clone(), value, (seconds.parse::<f64>().unwrap() * 1e3).round() as i64)
    };
    ordered(exemplars.iter().map(read).collect())
}

fn trace_of(exemplar: &Value) -> (String, f64, i64) {
    let [label] = list(&exemplar["label"]) else { panic!("{exemplar}") };
    assert_eq!(label["name"], "trace_id");
    let time = &exemplar["timestamp"];
    (
        label["value"].as_str().unwrap().to_owned(),
        number(&exemplar["value"]),
        number(&time["seconds"]) as i64 * 1_000 + number(&time["nanos"]) as i64 / 1_000_000,
    )
}

/// Those of counters and classic buckets; and those of native histograms, which are the same as those of their buckets.
fn traces_of_protobuf(page: &[u8]) -> Traces {
    let (mut all, mut native, mut of_natives) = (Vec::new(), Vec::new(), Vec::new());
    for family in decode_families(page) {
        for metric in list(&family["metric"]) {
            all.extend(metric["counter"].get("exemplar").map(trace_of));
            for bucket in list(&metric["histogram"]["bucket"]) {
                let trace = bucket.get("exemplar").map(trace_of);
                assert!(trace.as_ref().is_none_or(|t| t.1 <= number(&bucket["upperBound"])), "{bucket}");
                assert!(trace.is_some() || number(&bucket["upperBound"]).is_finite(), "{bucket}");
                of_natives.extend(trace.clone().filter(|_| metric["histogram"].get("schema").is_some()));
                all.extend(trace);
            }
            native.extend(list(&metric["histogram"]["exemplars"]).iter().map(trace_of));
        }
    }
    assert_eq!(ordered(native), ordered(of_natives));
    ordered(all)
}

/// The buckets of a native histogram by index.
fn native_buckets(histogram: &Value) -> BTreeMap<i64, i64> {
    let (mut buckets, mut index, mut count) = (BTreeMap::new(), 0, 0);
    let mut deltas = list(&histogram["positiveDelta"]).iter();
    for span in list(&histogram["positiveSpan"]) {
        index += number(&span["offset"]) as i64;
        for _ in 0..number(&span["length"]) as i64 {
            count += number(deltas.next().unwrap()) as i64;
            if count != 0 {
                buckets.insert(index, count);
            }
            index += 1;
        }
    }
    assert!(deltas.next().is_none());
    buckets
}

/// 0 µs once, then durations that rise by 4 % each, so that there are gaps and neighbours; each tenth failed.
fn durations() -> Vec<u64> {
    std::iter::successors(Some(7.0_f64), |us| Some(us * 1.04)).take(400).map(|us| us as u64).chain([0, 1_000_000, 15_625]).collect()
}

fn started() -> Server {
    let server = Server::start(CONFIG, &[]);
    let start = now_ms();
    let mut lines = String::new();
    for (n, us) in durations().into_iter().enumerate() {
        let status = if n % 10 == 9 { 500 } else { 200 };
        // One of those that went well and one that failed; a slower one without a trace hides neither, a faster one is not kept.
        let trace = match n {
            390 => r#","trace_id":"4bf92f""#,
            380 => r#","trace_id":"faster""#,
            109 => r#","trace_id":"a \"quoted\" \\ größer } 5 # {x=\"y\"}""#,
            _ => "",
        };
        lines += &format!("{{\"ts\":{start},\"service\":\"shop\",\"route\":\"/a\",\"status\":{status},\"duration_us\":{us}{trace}}}\n");
    }
    server.send_ndjson(lines.as_bytes()).taken(durations().len() as u64, 0);
    // The longest that the formats have room for; and one that is longer, which they leave out.
    let long = format!(r#"{{"ts":{start},"service":"third","route":"/c","duration_ms":1.5,"trace_id":"{}"}}"#, "x".repeat(121));
    server.send_ndjson(long.as_bytes()).taken(1, 0);
    server
        .send_ndjson(format!(r#"{{"ts":{start},"service":"o\"th\\er","env":"ü","route":"/b","duration_ms":1.5,"trace_id":"{}"}}"#, "ü".repeat(120)).as_bytes())
        .taken(1, 0);
    server
}

fn scrape(server: &Server, path: &str, accept: &str, encoding: &str) -> Answer {
    let answer = server.request("GET", path, &[("Accept", accept), ("Accept-Encoding", encoding)], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("vary"), Some("Accept, Accept-Encoding"));
    assert_eq!(answer.header("content-encoding"), (encoding == "gzip").then_some("gzip"));
    answer
}

#[test]
fn every_format_has_the_same_samples_packed_or_not() {
    let server = started();
    for path in ["/metrics", "/metrics/endpoints", "/metrics/endpoints?service=nobody"] {
        let mut read = Vec::new();
        for encoding in ["", "gzip"] {
            let text = scrape(&server, path, "*/*", encoding);
            assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
            read.push(read_text(&String::from_utf8(text.whole()).unwrap(), false, &mut Vec::new()));
            let open = scrape(&server, path, OPEN_METRICS, encoding);
            assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
            let mut exemplars = Vec::new();
            read.push(read_text(&String::from_utf8(open.whole()).unwrap(), true, &mut exemplars));
            assert_eq!(exemplars.len(), if path.contains('?') { 0 } else { 6 }, "{exemplars:?}");
            let protobuf = scrape(&server, path, PROTOBUF, encoding);
            assert!(protobuf.header("content-type").unwrap().starts_with("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily"));
            read.push(read_protobuf(&protobuf.whole()));
            assert_eq!(traces_of_protobuf(&protobuf.whole()), traces_of_text(&exemplars), "{path}");
        }
        // What changes by itself between two scrapes.
        let moves = |name: &str| {
            ["slowburn_process_", "slowburn_log_frames", "slowburn_judged", "slowburn_slo_", "slowburn_incident"].iter().any(|m| name.starts_with(m))
        };
        let first = read[0].clone();
        for other in &read {
            assert_eq!(first.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{path}");
            for (name, value) in other.iter().filter(|(name, _)| !moves(name)) {
                assert!((value - first[name]).abs() <= 1e-9, "{path}: {name} {value} {}", first[name]);
            }
        }
        if path == "/metrics/endpoints" {
            assert!(first.keys().any(|k| k.contains(r#"service="o\"th\\er""#)) && first.keys().any(|k| k.contains(r#"le="3e-05""#)), "{first:?}");
        }
    }
}

#[test]
fn a_native_histogram_has_every_duration_in_its_bucket() {
    let server = started();
    let families = decode_families(&scrape(&server, "/metrics/endpoints", PROTOBUF, "").whole());
    let metrics: Vec<&Value> = families.iter().filter(|f| f["name"] == "slowburn_request_duration_seconds").flat_map(|f| list(&f["metric"])).collect();
    let of = |service: &str| &metrics.iter().find(|m| list(&m["label"]).iter().any(|l| l["value"] == service)).unwrap()["histogram"];
    let shop = of("shop");
    assert_eq!((number(&shop["schema"]), number(&shop["zeroThreshold"]), number(&shop["zeroCount"])), (5.0, 1.0 / 1_048_576.0, 1.0));
    // Each by the upper edge of its bucket of the grid, which is at most 1/128 above it, on bounds computed in another way than the server's.
    let mut naive: BTreeMap<i64, i64> = BTreeMap::new();
    for us in durations().into_iter().filter(|us| *us > 0) {
        let shift = (64 - us.leading_zeros()).saturating_sub(8);
        let edge = (us >> shift << shift) + (1 << shift) - 1;
        *naive.entry(((edge as f64 / 1e6).log2() * 32.0).ceil() as i64).or_default() += 1;
    }
    assert_eq!(native_buckets(shop), naive);
    let count = durations().len() as f64;
    assert_eq!((number(&shop["sampleCount"]), naive.values().sum::<i64>() + 1), (count, durations().len() as i64));
    let sum = durations().iter().sum::<u64>() as f64 / 1e6;
    assert!((number(&shop["sampleSum"]) - sum).abs() < 1e-6);
    assert_eq!(list(&shop["bucket"]).len(), 16, "the classic bounds beside it, and the last for its exemplar");
    // Nothing is known of the others but how many and how long in all.
    let other = of("o\"th\\er");
    assert_eq!((number(&other["sampleCount"]), number(&other["sampleSum"]), other.get("schema"), list(&other["bucket"]).len()), (1.0, 0.0015, None, 1));
}

#[test]
fn an_endpoint_that_became_critical_later_has_all_its_past_in_the_buckets() {
    let server = Server::start("", &[]);
    let start = now_ms();
    let send = |server: &Server, n: u64| {
        let lines: String =
            (0..n).fold(String::new(), |lines, us| lines + &format!("{{\"ts\":{start},\"service\":\"shop\",\"route\":\"/a\",\"duration_us\":{us}}}\n"));
        server.send_ndjson(lines.as_bytes()).taken(n, 0);
    };
    let shop = |server: &Server| {
        let families = decode_families(&scrape(server, "/metrics", PROTOBUF, "").whole());
        families.iter().find(|f| f["name"] == "slowburn_request_duration_seconds").unwrap()["metric"][0]["histogram"].clone()
    };
    send(&server, 300);
    assert_eq!((shop(&server).get("schema"), number(&shop(&server)["sampleCount"])), (None, 300.0));
    let server = server.restart(CONFIG);
    send(&server, 50);
    // Prometheus takes no native histogram whose buckets are not its count.
    let now = shop(&server);
    assert_eq!((number(&now["schema"]), number(&now["sampleCount"]), number(&now["zeroCount"])), (5.0, 350.0, 2.0));
    assert_eq!(native_buckets(&now).values().sum::<i64>(), 348);
    assert!((number(&now["sampleSum"]) - f64::from(299 * 150 + 49 * 25) / 1e6).abs() < 1e-9, "{now}");
}
