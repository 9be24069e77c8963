//! A month of recorded traffic through the rules that `slowburn rules` writes, in a real Prometheus, and through Slowburn's own replay: where they differ, each difference has a
//! reason that its numbers show.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts far below 2^53")]

#[path = "peers/kit.rs"]
#[allow(dead_code, reason = "it takes a part")]
mod kit;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

use kit::Prometheus;
use serde_json::Value;
use slowburn::judge::evidence::binomial_tail;

/// Monday, 5 January 2026.
const FROM_S: i64 = 1_767_571_200;
const DAYS: i64 = 30;
const DAY_S: i64 = 86_400;

const SCRAPE_S: i64 = 60;
/// Slowburn says what it saw so long after a slot's end.
const JUDGE_AFTER_S: i64 = 15;

const CONFIG: &str = r#"
[[endpoint]]
service = "shop"
method = "POST"
route = "/checkout"
objectives = [{ latency = "800ms", target = "99%", period = "30d" }, { availability = true, target = "99.9%", period = "30d" }]

[[endpoint]]
service = "shop"
method = "POST"
route = "/refunds"
objectives = [{ latency = "2s", target = "95%", period = "30d" }]
"#;

const ROUTES: [(&str, f64, i64); 2] = [("/checkout", 0.2, 800), ("/refunds", 1.0 / 180.0, 2_000)];

/// When it was bad: the route, from and to in hours, the share that was slow and the share that failed.
const BAD: [(usize, f64, f64, f64, f64); 8] = [
    (0, 82.0, 82.4, 0.6, 0.0),
    (0, 200.0, 205.0, 0.09, 0.0),
    (0, 340.0, 388.0, 0.035, 0.0),
    (0, 482.0, 482.7, 0.0, 0.05),
    (0, 580.0, 580.02, 0.0, 1.0),
    (1, 150.0, 156.0, 0.6, 0.0),
    (1, 410.0, 411.5, 1.0, 0.0),
    (1, 600.0, 660.0, 0.12, 0.0),
];

#[derive(Clone, Copy)]
struct Request {
    route: usize,
    ts_ms: i64,
    slow: bool,
    failed: bool,
}

/// Numbers in [0, 1), always the same (`SplitMix64`; Steele, Lea & Flood 2014).
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn month() -> Vec<Request> {
    let mut random = Random(20);
    let mut all = Vec::new();
    for (route, (_, per_s, _)) in ROUTES.iter().enumerate() {
        let mut at_s = 0.0;
        loop {
            at_s -= random.unit().max(1e-12).ln() / per_s;
            if at_s >= (DAYS * DAY_S) as f64 {
                break;
            }
            let hour = at_s / 3_600.0;
            let (slow, failed) = BAD.iter().find(|b| b.0 == route && (b.1..b.2).contains(&hour)).map_or((0.002, 0.000_1), |b| (b.3, b.4));
            let draw = random.unit();
            all.push(Request { route, ts_ms: FROM_S * 1_000 + (at_s * 1e3) as i64, slow: draw < slow, failed: draw > 1.0 - failed });
        }
    }
    all.sort_by_key(|r| r.ts_ms);
    all
}

fn ndjson(requests: &[Request]) -> String {
    requests.iter().fold(String::new(), |mut lines, r| {
        let (name, _, threshold_ms) = ROUTES[r.route];
        let duration_ms = if r.slow { threshold_ms * 2 } else { 120 };
        let status = if r.failed { 500 } else { 200 };
        writeln!(lines, r#"{{"ts":{},"service":"shop","env":"prod","method":"POST","route":"{name}","status":{status},"duration_ms":{duration_ms}}}"#, r.ts_ms)
            .unwrap();
        lines
    })
}

/// One objective: whose, its name, and which requests are bad.
struct Objective {
    route: usize,
    name: &'static str,
    budget: f64,
    is_bad: fn(&Request) -> bool,
}

const OBJECTIVES: [Objective; 3] = [
    Objective { route: 0, name: "latency<=800ms", budget: 0.01, is_bad: |r| r.slow || r.failed },
    Objective { route: 0, name: "availability", budget: 0.001, is_bad: |r| r.failed },
    Objective { route: 1, name: "latency<=2s", budget: 0.05, is_bad: |r| r.slow || r.failed },
];

impl Objective {
    fn labels(&self) -> String {
        format!("service=\"shop\",env=\"prod\",kind=\"http\",method=\"POST\",route=\"{}\",objective=\"{}\"", ROUTES[self.route].0, self.name)
    }

    /// Requests and bad ones in [from, to).
    fn count(&self, requests: &[Request], from_s: i64, to_s: i64) -> (u64, u64) {
        let at = |s: i64| requests.partition_point(|r| r.ts_ms < s * 1_000);
        let own = requests[at(from_s)..at(to_s)].iter().filter(|r| r.route == self.route);
        own.fold((0, 0), |(n, bad), r| (n + 1, bad + u64::from((self.is_bad)(r))))
    }
}

/// What scrapes would have seen, as promtool takes it.
fn scrapes(requests: &[Request]) -> String {
    let mut text = String::new();
    for (family, bad_only) in [("slowburn_slo_requests", false), ("slowburn_slo_bad_requests", true)] {
        writeln!(text, "# TYPE {family} counter").unwrap();
        for objective in &OBJECTIVES {
            let labels = objective.labels();
            let own: Vec<&Request> = requests.iter().filter(|r| r.route == objective.route && (!bad_only || (objective.is_bad)(r))).collect();
            let mut seen = 0;
            for scrape in 0..DAYS * DAY_S / SCRAPE_S {
                let at_s = FROM_S + scrape * SCRAPE_S;
                while own.get(seen).is_some_and(|r| r.ts_ms < at_s * 1_000) {
                    seen += 1;
                }
                writeln!(text, "{family}_total{{{labels}}} {seen} {at_s}").unwrap();
            }
        }
    }
    text + "# EOF\n"
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// From when to when, in seconds; `None`: open at the end.
#[derive(Clone, Copy, Debug)]
struct Episode {
    from_s: i64,
    to_s: Option<i64>,
}

/// Slowburn's incidents by route and objective, with the line that opened each.
fn incidents(lines: &str) -> BTreeMap<(String, String), Vec<(Episode, Value)>> {
    let mut by_objective: BTreeMap<(String, String), Vec<(Episode, Value)>> = BTreeMap::new();
    for line in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|line| line["kind"] == "burn") {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let all = by_objective.entry((text(&line["route"]), text(&line["evidence"]["objective"]))).or_default();
        let at_s = line["at"].as_i64().unwrap() / 1_000;
        match line["event"].as_str().unwrap() {
            "opened" => all.push((Episode { from_s: at_s, to_s: None }, line)),
            "resolved" => all.last_mut().unwrap().0.to_s = Some(at_s),
            _ => {}
        }
    }
    by_objective
}

/// An alert of the written rules: its windows, what luck may have, and when it fired.
#[derive(Debug)]
struct Alert {
    route: String,
    objective: String,
    long: String,
    long_s: i64,
    short_s: i64,
    alpha: f64,
    fired: Vec<i64>,
}

impl Alert {
    /// How often it was asked: what is long changes slowly.
    fn step_s(&self) -> i64 {
        step_s(self.long_s)
    }

    /// So far apart it and Slowburn may be and say the same: two scrapes, for what `increase()` makes of the time between them, a step, and a slot with its judging.
    fn together_s(&self) -> i64 {
        2 * SCRAPE_S + self.step_s() + 10 + JUDGE_AFTER_S
    }

    /// What the rule asks, by exact counts: both windows burn, and the bound on luck is low enough.
    fn holds(&self, objective: &Objective, factor: f64, requests: &[Request], at_s: i64) -> bool {
        let burns = |(n, bad): (u64, u64)| n > 0 && bad as f64 >= factor * objective.budget * n as f64;
        let (long, short) = (objective.count(requests, at_s - self.long_s, at_s), objective.count(requests, at_s - self.short_s, at_s));
        burns(long) && burns(short) && bound(long.1, long.0, objective.budget) < self.alpha
    }

    /// Firings that follow one another.
    fn episodes(&self) -> Vec<(i64, i64)> {
        self.fired.chunk_by(|a, b| b - a <= self.step_s()).map(|run| (run[0], run[run.len() - 1])).collect()
    }
}

fn step_s(long_s: i64) -> i64 {
    match long_s {
        0..=3_600 => SCRAPE_S,
        3_601..=DAY_S => 5 * SCRAPE_S,
        _ => 15 * SCRAPE_S,
    }
}

/// Seconds of `5m`, `1h`, `3d`.
fn seconds(name: &str) -> i64 {
    let (number, unit) = name.split_at(name.len() - 1);
    number.parse::<i64>().unwrap() * BTreeMap::from([("s", 1), ("m", 60), ("h", 3_600), ("d", DAY_S)])[unit]
}

/// The expressions of alerts with what they record put in its place, asked over the month.
fn alerts(prometheus: &Prometheus) -> Vec<Alert> {
    let answer = prometheus.get("/api/v1/rules");
    let rules: Vec<&Value> = answer["data"]["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap()).collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let recorded: Vec<(String, String)> = rules
        .iter()
        .filter(|rule| rule["type"] == "recording")
        .map(|rule| (format!("{}{{sloth_id=\"{}\"}}", text(&rule["name"]), text(&rule["labels"]["sloth_id"])), text(&rule["query"])))
        .collect();
    let burning = rules.iter().filter(|rule| rule["name"] == "SlowburnBudgetBurn");
    burning
        .map(|rule| {
            let mut expr = text(&rule["query"]);
            let alpha = expr.rsplit("< ").next().unwrap().trim().parse().unwrap();
            while let Some((name, query)) = recorded.iter().find(|(name, _)| expr.contains(name.as_str())) {
                expr = expr.replace(name.as_str(), &format!("({query})"));
            }
            let objective =
                OBJECTIVES.iter().find(|o| expr.contains(&format!("route=\"{}\"", ROUTES[o.route].0)) && expr.contains(&format!("objective=\"{}\"", o.name)));
            let Objective { route, name, .. } = objective.unwrap();
            let [long, short] = ["long", "short"].map(|name| text(&rule["labels"][name]));
            let (long_s, step_s) = (seconds(&long), step_s(seconds(&long)));
            let mut fired = Vec::new();
            // Prometheus answers 11,000 points at most.
            for week in 0..=DAYS / 7 {
                let (from, to) = (FROM_S + week * 7 * DAY_S, FROM_S + ((week + 1) * 7).min(DAYS) * DAY_S - step_s);
                for series in prometheus.range(&expr, from, to, step_s) {
                    fired.extend(series["values"].as_array().unwrap().iter().map(|value| value[0].as_i64().unwrap()));
                }
            }
            fired.sort_unstable();
            Alert { route: ROUTES[*route].0.to_owned(), objective: (*name).to_owned(), long_s, short_s: seconds(&short), long, alpha, fired }
        })
        .collect()
}

fn when(at_s: i64) -> String {
    slowburn::time::Timestamp(at_s * 1_000).to_string()
}

/// The bound above the chance of luck that the rules use (Chernoff's).
fn bound(bad: u64, n: u64, budget: f64) -> f64 {
    let share = bad as f64 / n as f64;
    if share <= budget { 1.0 } else { (-(n as f64) * (share * (share / budget).ln() - share + budget)).exp() }
}

#[test]
fn over_a_month_the_written_rules_say_what_slowburn_says() {
    if !kit::has_prometheus() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let requests = month();
    fs::write(path("slowburn.toml"), CONFIG).unwrap();
    fs::write(path("month.ndjson"), ndjson(&requests)).unwrap();
    fs::write(path("scrapes.txt"), scrapes(&requests)).unwrap();
    let slowburn = env!("CARGO_BIN_EXE_slowburn");
    let said = incidents(&run(slowburn, &["replay", "--config", &path("slowburn.toml"), &path("month.ndjson")]));
    fs::write(path("rules.yml"), run(slowburn, &["rules", "--config", &path("slowburn.toml")])).unwrap();
    run("promtool", &["tsdb", "create-blocks-from", "openmetrics", &path("scrapes.txt"), &path("prometheus")]);
    let prometheus = Prometheus::start_on_past(dir.path(), &path("rules.yml"));
    let alerts = alerts(&prometheus);
    assert_eq!(alerts.len(), 12, "four pairs of windows of three objectives");

    let (mut together, mut later) = (0, 0);
    for objective in &OBJECTIVES {
        let key = (ROUTES[objective.route].0.to_owned(), objective.name.to_owned());
        let own: Vec<&Alert> = alerts.iter().filter(|a| (&a.route, &a.objective) == (&key.0, &key.1)).collect();
        assert_eq!(own.len(), 4);
        let said = &said[&key];
        println!("{} {}", key.0, key.1);
        for (episode, line) in said {
            let windows: Vec<&Value> = line["evidence"]["windows"].as_array().unwrap().iter().collect();
            let firing: Vec<&Value> = windows.iter().copied().filter(|w| w["verdict"] == "firing").collect();
            let end_s = episode.to_s.unwrap_or(FROM_S + DAYS * DAY_S);
            let rules = own.iter().flat_map(|alert| alert.fired.iter().map(move |at| (*at, *alert)));
            let first = rules.filter(|(at, alert)| (episode.from_s - alert.together_s()..=end_s).contains(at)).min_by_key(|(at, _)| *at);
            let (first_s, alert) = first.unwrap_or_else(|| panic!("no rule fires: {line}"));
            let text: Vec<String> =
                firing.iter().map(|w| format!("{} of {} bad in {}", w["bad_long"], w["requests_long"], w["long"].as_str().unwrap())).collect();
            let ended = episode.to_s.map_or_else(|| "the end".to_owned(), when);
            println!("  Slowburn {} to {ended} ({}); the rule over {} {}", when(episode.from_s), text.join(", "), alert.long, when(first_s));
            if (first_s - episode.from_s).abs() <= alert.together_s() {
                together += 1;
                continue;
            }
            // Later, because the bound asks for more than the chance itself; and then as soon as the bound allows.
            later += 1;
            assert!(first_s > episode.from_s, "a rule fires before Slowburn: {line}");
            for window in &firing {
                let pair = own.iter().find(|a| a.long == window["long"].as_str().unwrap()).unwrap();
                let (bad, n) = (window["bad_long"].as_u64().unwrap(), window["requests_long"].as_u64().unwrap());
                assert!(binomial_tail(bad, n, objective.budget) < pair.alpha && bound(bad, n, objective.budget) >= pair.alpha, "{bad} of {n}: {line}");
            }
            let factor = |alert: &Alert| windows.iter().find(|w| w["long"] == alert.long).unwrap()["factor"].as_f64().unwrap();
            let due = (episode.from_s..first_s).step_by(SCRAPE_S as usize).find(|at| own.iter().any(|a| a.holds(objective, factor(a), &requests, *at)));
            assert!(first_s - due.unwrap_or(first_s) <= alert.together_s(), "due {due:?}, fired {first_s}: {line}");
        }
        for alert in &own {
            for (from_s, to_s) in alert.episodes() {
                println!("  rule over {} {} to {}", alert.long, when(from_s), when(to_s));
                let near = alert.together_s();
                let of_incident = |e: &Episode| e.from_s - near <= from_s && e.to_s.is_none_or(|end| to_s <= end + near);
                assert!(
                    said.iter().any(|(e, _)| of_incident(e)),
                    "the rule over {} fires from {} to {}, and Slowburn says nothing",
                    alert.long,
                    when(from_s),
                    when(to_s)
                );
            }
        }
    }
    println!("{} incidents: {together} at the same time, {later} later in the rules, for the bound", together + later);
    assert!(together >= 4 && later >= 1, "both kinds are there: {together} {later}");
}
