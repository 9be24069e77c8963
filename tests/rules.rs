//! The Prometheus rules: promtool reads and tests them, the metrics they use are exported, their runbooks work, and a real Prometheus fires when Slowburn does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]

#[path = "peers/kit.rs"]
#[allow(dead_code, reason = "it takes a part")]
mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kit::{Customers, Prometheus, Server, until};

/// What the command writes from the configuration beside it.
const EXAMPLE: &str = "alert-rules/tests/slowburn-objectives.rules.yml";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Whether it succeeded, and what it said.
fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    (output.status.success(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Writes the rules of a configuration into a folder; their files.
fn written(dir: &Path, config: &str) -> Vec<PathBuf> {
    fs::create_dir_all(dir).unwrap();
    let (config_file, out) = (dir.join("c.toml"), dir.join("rules"));
    fs::write(&config_file, config).unwrap();
    let (ok, said) = run(env!("CARGO_BIN_EXE_slowburn"), &["rules", "--config", config_file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(ok, "{said}");
    said.lines().filter_map(|line| line.strip_prefix("wrote ").map(PathBuf::from)).collect()
}

/// Names that would end a text, a line or a template if they could.
const ODD: &str = r#"
[[endpoint]]
service = 'a "quoted" \ service'
route = "/{{ id }}/größe/\u2028: #x"
objectives = [
  { latency = "1500us", target = "99.99%", period = "28d" },
  { availability = true, target = "90%", period = "1d" },
]

[[endpoint]]
service = "shop"
route = "/orders"
env = "prod"
objectives = [{ availability = true, target = "99.95%" }]

[[endpoint]]
service = "shop"
route = "/orders"
critical = false
objectives = [{ availability = true, target = "99%", period = "7d" }, { latency = "2s", target = "95%", period = "7d" }]

[[endpoint]]
service = "shop"
route = "/:orders"
objectives = [{ availability = true, target = "99%" }]
"#;

#[test]
fn promtool_reads_every_file_of_rules() {
    if !kit::has_prometheus() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let short = "\n[[burn_window]]\nlong = '90s'\nshort = '10s'\nfactor = 2.5\nseverity = 'critical'\nalpha = 0.0001\n";
    for (name, config, alerts) in [
        ("none", String::new(), 0),
        ("example", read("alert-rules/tests/slowburn-objectives.toml"), 5),
        ("odd", ODD.to_owned(), 23),
        ("short", format!("{ODD}{short}"), 6),
    ] {
        let files = written(&dir.path().join(name), &config);
        assert_eq!(files.len(), 3);
        for file in &files {
            let (ok, said) = run("promtool", &["check", "rules", file.to_str().unwrap()]);
            assert!(ok && said.contains("SUCCESS"), "{name}: {said}");
        }
        let text = fs::read_to_string(&files[0]).unwrap();
        assert_eq!(text.matches("- alert: ").count(), alerts, "{name}: {text}");
    }
    let odd = fs::read_to_string(dir.path().join("odd/rules/slowburn-objectives.rules.yml")).unwrap();
    // Ten times a budget of a tenth is everything: more cannot be.
    assert_eq!(odd.matches("No alert over 1h and 5m: 14.4 times").count(), 1, "{odd}");
    // What an entry before it judges is left out; an endpoint that is not critical pages nobody.
    assert!(
        odd.contains(
            "unless on (service, env, kind, method, route, objective)\n          slowburn_slo_objective_ratio{service=\"shop\", route=\"/orders\", env=\"prod\""
        ),
        "{odd}"
    );
    let second = odd.split("- name: slowburn-objective-shop-orders-latency-2s").nth(1).unwrap().split("- name:").next().unwrap();
    assert!(second.contains("severity: warning") && !second.contains("severity: critical"), "{second}");
    // Routes that look alike as an identity.
    assert!(odd.contains("slowburn-objective-shop-orders-availability-2"), "{odd}");
}

#[test]
fn the_example_is_what_the_command_writes() {
    let config = root().join("alert-rules/tests/slowburn-objectives.toml");
    let (ok, said) = run(env!("CARGO_BIN_EXE_slowburn"), &["rules", "--config", config.to_str().unwrap()]);
    assert!(ok, "{said}");
    if std::env::var_os("SLOWBURN_BLESS").is_some() {
        fs::write(root().join(EXAMPLE), &said).unwrap();
    } else {
        assert!(said == read(EXAMPLE), "it has changed: write it anew with SLOWBURN_BLESS=1 cargo test --test rules, and look at the difference");
    }
}

#[test]
fn the_unit_tests_of_the_rules_hold() {
    if !kit::has_prometheus() {
        return;
    }
    for name in ["endpoints", "silence", "itself", "objectives"] {
        let (ok, said) = run("promtool", &["test", "rules", root().join(format!("alert-rules/tests/slowburn-{name}.test.yml")).to_str().unwrap()]);
        assert!(ok && said.contains("SUCCESS"), "{name}: {said}");
    }
}

/// The files that need no configuration, and the example of what is written from one.
fn texts() -> [String; 3] {
    [read("alert-rules/slowburn-endpoints.rules.yml"), read("alert-rules/slowburn-itself.rules.yml"), read(EXAMPLE)]
}

/// Each alert with the lines of its rule.
fn alerts() -> Vec<(String, String)> {
    let texts = texts();
    let rules = texts.iter().flat_map(|text| text.split("- alert: ").skip(1));
    rules.map(|rule| (rule.lines().next().unwrap().to_owned(), rule.split("- record: ").next().unwrap().to_owned())).collect()
}

#[test]
fn every_alert_says_what_is_wrong_and_has_a_runbook_and_a_test() {
    let tests: String =
        ["endpoints", "silence", "itself", "objectives"].iter().map(|name| read(&format!("alert-rules/tests/slowburn-{name}.test.yml"))).collect();
    let mut named = BTreeSet::new();
    for (name, rule) in alerts() {
        for part in ["expr: ", "severity: ", "summary: ", "description: >-", &format!("runbook_url: docs/runbooks/{name}.md")] {
            assert!(rule.contains(part), "{name} has no {part}: {rule}");
        }
        assert!(rule.contains("severity: critical\n") || rule.contains("severity: warning\n"), "{rule}");
        assert!(tests.contains(&name), "no unit test has {name}");
        let runbook = read(&format!("docs/runbooks/{name}.md"));
        for part in [&format!("# {name}\n"), "**Who is hurt:**", "**Look first**", "**Silence:**", "**Harmless when**"] {
            assert!(runbook.contains(part), "{name}.md has no {part}");
        }
        named.insert(format!("{name}.md"));
    }
    let there: BTreeSet<String> = fs::read_dir(root().join("docs/runbooks")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, named, "a runbook for each alert, and no other");
}

/// The names of series of Slowburn and of dashboards in a text.
fn series(text: &str) -> BTreeSet<String> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words =
        text.split(|c: char| !of_name(c)).filter(|w| ["slowburn_", "process_", "slowburn:", "slo:", "sloth_slo_", "pyrra_"].iter().any(|p| w.starts_with(p)));
    // A word before a colon of a sentence, and all of a family.
    words.map(|w| w.trim_end_matches([':', '_']).to_owned()).filter(|w| w != "slowburn_process").collect()
}

/// The expressions of rules: the lines from `expr:` to `labels:`, `for:` or the next rule.
fn expressions(text: &str) -> String {
    let mut inside = false;
    let kept = text.lines().filter(|line| {
        let line = line.trim_start();
        inside = line.starts_with("expr:") || inside && !["labels:", "for:", "annotations:", "- "].iter().any(|end| line.starts_with(end));
        inside && !line.starts_with('#')
    });
    kept.fold(String::new(), |all, line| all + line + "\n")
}

/// The text of fenced blocks of a language.
fn fenced<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    text.split(&format!("```{language}\n")).skip(1).map(|block| block.split("\n```").next().unwrap()).collect()
}

/// What the commands of a runbook ask Slowburn, with the times filled in that a shell would compute.
fn questions(commands: &str) -> Vec<String> {
    let asks = commands.lines().filter(|l| l.starts_with("curl") && !l.contains("-X POST")).filter_map(|l| l.split("http://127.0.0.1:9898").nth(1));
    let filled = asks.map(|rest| match rest.split_once("'$((") {
        Some((before, after)) => format!("{before}{}{}", kit::now_ms() - 3_600_000, after.split_once("))'").unwrap().1),
        None => rest.to_owned(),
    });
    filled.map(|path| path.split(['\'', ' ']).next().unwrap().to_owned()).collect()
}

#[test]
fn every_metric_of_a_rule_is_exported_and_every_question_of_a_runbook_is_answered() {
    if !kit::has_prometheus() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let receiver = "\n[[receiver]]\nname = 'bot'\nwebhook = { url = 'http://127.0.0.1:9/hook' }\n[[remote_write]]\nurl = 'http://127.0.0.1:9/'\n";
    let server = Server::start(dir.path(), &format!("{}{receiver}", read("alert-rules/tests/slowburn-objectives.toml")));
    assert_eq!(server.post("Slowburn-Sender: shop-1; epoch=1; seq=1; dropped=0; uptime=5\r\n", &orders(3, 1)).1["accepted"], 4);
    until("the disk was looked at", 30, || server.scrape().contains("\nslowburn_disk_free_bytes "));
    let scrape = server.scrape();
    let mut exported: BTreeSet<String> = BTreeSet::new();
    for line in scrape.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            let ends: &[&str] = match kind {
                "histogram" => &["_bucket", "_sum", "_count"],
                "summary" => &["", "_sum", "_count"],
                _ => &[""],
            };
            exported.extend(ends.iter().map(|end| format!("{name}{end}")));
        }
    }
    // Names of which there is no sample yet are known too.
    assert!(exported.contains("slowburn_endpoint_time_to_breach_seconds") && !scrape.contains("\nslowburn_endpoint_time_to_breach_seconds"));
    let recorded: BTreeSet<String> = read(EXAMPLE).lines().filter_map(|l| l.trim().strip_prefix("- record: ")).map(str::to_owned).collect();
    assert!(recorded.contains("slo:sli_error:ratio_rate30d"), "{recorded:?}");
    let known = |name: &String| exported.contains(name) || recorded.contains(name);
    for text in texts() {
        let used = series(&expressions(&text));
        assert!(used.len() > 8, "{used:?}");
        let unknown: Vec<&String> = used.iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "a rule reads {unknown:?}, and nothing writes them");
    }
    // Of counters that are read, each begins at 0.
    assert!(scrape.contains("slowburn_notifications_total{receiver=\"bot\",result=\"expired\"} 0"), "{scrape}");

    let prometheus = Prometheus::start(dir.path(), server.address);
    for entry in fs::read_dir(root().join("docs/runbooks")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let unknown: Vec<String> = series(&text).into_iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", path.display());
        let (mut asked, mut queried) = (0, 0);
        for question in fenced(&text, "sh").into_iter().flat_map(questions) {
            let (status, body) = kit::ask(server.address, "GET", &question, "", "").unwrap();
            assert_eq!(status, 200, "{}: {question}: {body}", path.display());
            asked += 1;
        }
        for query in fenced(&text, "promql").into_iter().flat_map(|block| block.split("\n\n")) {
            prometheus.query(query);
            queried += 1;
        }
        assert!(asked + queried > 0, "{}", path.display());
    }
}

/// Orders that end now, of which so many are slow.
fn orders(good: usize, slow: usize) -> String {
    let ts = kit::now_ms();
    (0..good + slow).fold(String::new(), |mut lines, n| {
        let duration_ms = if n < good { 180 } else { 2_000 };
        writeln!(lines, r#"{{"ts":{ts},"service":"shop","env":"prod","method":"POST","route":"/orders","status":201,"duration_ms":{duration_ms}}}"#).unwrap();
        lines
    })
}

const JUDGE_AFTER_MS: i64 = 1_000;

const LIVE: &str = r#"
judge_after = "1s"

[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "800ms", target = "99%", period = "30d" }, { availability = true, target = "99.9%", period = "30d" }]

[[burn_window]]
long = "30s"
short = "10s"
factor = 14.4
severity = "critical"
"#;

/// The alerts of a real Prometheus that fire, by name, with label and annotation texts.
fn firing(prometheus: &Prometheus) -> BTreeMap<String, serde_json::Value> {
    let alerts = prometheus.get("/api/v1/alerts");
    let firing = alerts["data"]["alerts"].as_array().unwrap().iter().filter(|a| a["state"] == "firing");
    firing.map(|a| (a["labels"]["alertname"].as_str().unwrap().to_owned(), a.clone())).collect()
}

#[test]
fn prometheus_fires_when_slowburn_does() {
    if !kit::has_prometheus() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = written(&dir.path().join("written"), LIVE);
    let server = Server::start(dir.path(), LIVE);
    let prometheus = Prometheus::start_with_rules(dir.path(), server.address, &format!("{}/*.yml", files[0].parent().unwrap().display()));
    // Some 40 orders a second; how many of ten are slow is set from outside.
    let (slow, address) = (Arc::new(AtomicU64::new(0)), server.address);
    let slow_of_ten = Arc::clone(&slow);
    let customers = Customers::start(1, move || {
        std::thread::sleep(std::time::Duration::from_millis(250));
        let slow = usize::try_from(slow_of_ten.load(Ordering::Relaxed)).unwrap();
        kit::ask(address, "POST", "/api/v1/timings", "Content-Type: application/x-ndjson\r\n", &orders(10 - slow, slow)).is_ok_and(|(status, _)| status == 200)
    });
    let share = r#"slo:sli_error:ratio_rate10s{sloth_id="shop-post-orders-latency-800ms"}"#;
    let requests = r#"slowburn:slo_requests:increase30s{sloth_id="shop-post-orders-latency-800ms"}"#;
    until("a healthy half minute", 90, || prometheus.query(requests).is_some_and(|n| n > 300.0) && prometheus.query(share) == Some(0.0));
    assert_eq!(firing(&prometheus).keys().collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(server.incidents().is_empty());

    slow.store(5, Ordering::Relaxed);
    until("Slowburn opens an incident", 90, || !server.incidents().is_empty());
    until("Prometheus fires by what it computed and by what Slowburn says", 60, || {
        let firing = firing(&prometheus);
        firing.contains_key("SlowburnBudgetBurn") && firing.contains_key("SlowburnIncidentCritical")
    });
    let incidents = server.incidents();
    let firing = firing(&prometheus);
    let names: Vec<&str> = firing.keys().map(String::as_str).collect();
    eprintln!("{names:?}");
    let alert = &firing["SlowburnBudgetBurn"];
    let opened_ms = incidents[0]["opened_at"].as_i64().or_else(|| incidents[0]["at"].as_i64()).unwrap_or_else(|| panic!("{}", incidents[0]));
    let since: slowburn::time::Timestamp = slowburn::time::Timestamp::parse(alert["activeAt"].as_str().unwrap()).unwrap();
    let apart_ms = since.0 - opened_ms;
    eprintln!("Prometheus fired {apart_ms} ms after Slowburn opened its incident: {alert}");
    // A slot of 10 s, its judging, a scrape and an evaluation; and a second for a machine that is busy.
    assert!(apart_ms.abs() <= 10_000 + JUDGE_AFTER_MS + 3_000, "{apart_ms} ms");
    for (label, value) in
        [("severity", "critical"), ("sloth_severity", "page"), ("long", "30s"), ("short", "10s"), ("objective", "latency<=800ms"), ("env", "prod")]
    {
        assert_eq!(alert["labels"][label], value, "{alert}");
    }
    assert_eq!(alert["annotations"]["summary"], "POST /orders (shop, prod) burns the budget of latency<=800ms");
    let description = alert["annotations"]["description"].as_str().unwrap();
    let number_before = |words: &str| description.split(words).next().unwrap().rsplit([' ', '\n']).next().unwrap().parse::<f64>().unwrap();
    assert!(number_before(" times as many requests") >= 14.4 && number_before(" requests in 30s") > 300.0, "{description}");

    // Both count the same requests.
    let status = &server.get("/api/v1/objectives")["objectives"][0];
    assert_eq!(status["objective"], "latency<=800ms", "{status}");
    let counted = |name: &str| prometheus.query(&format!(r#"{name}{{objective="latency<=800ms"}}"#)).unwrap();
    assert!(counted("slowburn_slo_bad_requests_total") > 0.0);
    // Its group is evaluated by itself.
    let left = r#"slo:period_error_budget_remaining:ratio{sloth_slo="post-orders-latency-800ms"}"#;
    until("the budget of the period is used up", 60, || prometheus.query(left).is_some_and(|left| left < 0.0));
    assert_eq!(prometheus.query("max(slowburn_slo_bad_requests_total{objective=\"availability\"})"), Some(0.0), "slow is not failed");
    assert_eq!(prometheus.query(r#"slo:objective:ratio{sloth_slo="post-orders-latency-800ms"}"#), Some(0.99));

    slow.store(0, Ordering::Relaxed);
    until("both are over", 120, || self::firing(&prometheus).is_empty() && server.incidents().iter().all(|i| i["state"] == "resolved"));
    let (served, failed) = customers.go_home();
    assert!(served > 0 && failed == 0, "{served} {failed}");
    // What was counted for the objective is all that was sent, exactly.
    until("all is counted", 30, || {
        let samples = server.samples();
        let sum = |name: &str| samples.iter().filter(|(s, _)| s.starts_with(name) && s.contains("latency<=800ms")).map(|(_, v)| v).sum::<f64>();
        sum("slowburn_slo_requests_total{").to_bits() == (served as f64 * 10.0).to_bits()
    });
}
