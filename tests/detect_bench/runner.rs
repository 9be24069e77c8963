//! The detectors over recorded streams: writes `incidents.ndjson` into each folder and prints what it cost.
//!
//! `cargo bench --bench detect -- [false_alarms=0.01] [NAME=SCORE…] FOLDER…`, where each folder has `events.ndjson` (timings in time order), `markers.ndjson` and
//! `slowburn.toml`. NAME is one of slow, spread, fast, tail, marker, traffic, lull, flow: a threshold of its own in place of the one that follows from the budget.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a bench fails by panicking, and measures time")]

mod stream;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slowburn::detect::Finding;
use slowburn::detect::budget::Thresholds;
use slowburn::detect::flow::Flow;
use slowburn::detect::reference::{Part, Residuals};
use slowburn::detect::slow::Shape;
use slowburn::detect::watch::{Watch, is_slow_run};
use stream::{Endpoint, QUARTER_MS, Stream};

/// A slot end is judged so long after it.
const JUDGE_AFTER_MS: i64 = 15_000;

/// What a part cost, and how often it ran.
#[derive(Default)]
struct Cost(Duration, u32);

impl Cost {
    fn of<R>(&mut self, part: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = part();
        self.0 += begin.elapsed();
        self.1 += 1;
        result
    }
}

#[derive(Default)]
struct Costs {
    quarters: Cost,
    slow_runs: Cost,
    forecasts: Cost,
    memory_bytes: usize,
}

fn kind(finding: &Finding) -> &'static str {
    match finding {
        Finding::Level(change) if change.shape == Shape::Ramp => "creep",
        Finding::Apart(apart) if apart.shape == Shape::Ramp => "creep",
        Finding::Level(_) | Finding::Apart(_) | Finding::Step(_) | Finding::Marked(_) => "step",
        Finding::Tail(_) => "tail",
        Finding::Collapse(c) if c.seen == 0.0 => "silence",
        Finding::Collapse(_) => "throughput",
        Finding::Unfinished(_) => "completion",
    }
}

fn line(at: i64, event: &str, kind: &str, e: &Endpoint, breach: [Option<i64>; 3], evidence: &Value) -> (i64, String) {
    let line = json!({"at": at, "event": event, "kind": kind, "severity": "warning", "service": e.service, "method": e.method, "route": e.route,
        "breach_at": breach[0], "breach_from": breach[1], "breach_to": breach[2], "evidence": evidence});
    (at, line.to_string())
}

/// One endpoint through its whole stream.
fn watch(s: &Stream, place: usize, thresholds: &Thresholds, costs: &mut Costs) -> Vec<(i64, String)> {
    let (endpoint, quarters) = (&s.head.endpoints[place], &s.quarters[place]);
    let first = s.head.start / QUARTER_MS;
    let parts: Vec<Part<'_>> = (first..).zip(quarters).map(|(quarter, timings)| Part { hour: quarter.div_euclid(4), timings }).collect();
    let markers: Vec<i64> = s.head.markers.iter().filter(|m| m.1 == endpoint.service).map(|m| m.0 / QUARTER_MS).collect();
    let (mut watch, mut scratch, mut lines) = (Watch::default(), Residuals::new(), Vec::new());
    let mut born = None;
    for (index, (quarter, timings)) in (first..).zip(quarters).enumerate() {
        if born.is_none() && !timings.is_empty() {
            born = Some(index / 4 * 4);
        }
        if let Some(born) = born.filter(|_| watch.learns_at().is_some_and(|hour| hour * 4 == quarter)) {
            watch.learn(first + i64::try_from(born).unwrap(), &quarters[born..index]);
        }
        if markers.contains(&quarter) {
            watch.marker(quarter);
        }
        let mut found: Vec<Finding> = costs.quarters.of(|| watch.quarter(thresholds, quarter, timings)).into_iter().flatten().collect();
        let at = (quarter + 1) * QUARTER_MS;
        let mut breach = [None; 3];
        if is_slow_run(quarter) && watch.reference().is_some() && index >= 95 {
            let day = &parts[index - 95..=index];
            found.extend(costs.slow_runs.of(|| watch.slow(thresholds, quarter / 4, day, &mut scratch)));
            if watch.memory().is_rising()
                && let Some(f) = costs.forecasts.of(|| watch.forecast(endpoint.slo_ms, quarter)).filter(slowburn::detect::forecast::Forecast::has_date)
            {
                #[expect(clippy::cast_possible_truncation, reason = "days ahead")]
                let day = |days: f32| Some(at + (f64::from(days) * 86_400_000.0) as i64);
                breach = [day(f.days), day(f.from), day(f.to)];
                if found.is_empty() {
                    lines.push(line(at + JUDGE_AFTER_MS, "updated", "creep", endpoint, breach, &json!(f)));
                }
            }
        }
        lines.extend(found.iter().map(|f| line(at + JUDGE_AFTER_MS, "opened", kind(f), endpoint, breach, &json!(f))));
    }
    costs.memory_bytes = costs.memory_bytes.max(postcard::to_stdvec(watch.memory()).unwrap().len());
    lines
}

/// One flow through its whole stream.
fn flow(s: &Stream, (from, to): (usize, usize), threshold: f32) -> Vec<(i64, String)> {
    let (mut flow, mut lines) = (Flow::default(), Vec::new());
    for (quarter, (work_in, work_out)) in (s.head.start / QUARTER_MS..).zip(s.quarters[from].iter().zip(&s.quarters[to])) {
        if let Some(missing) = flow.quarter(quarter, work_in.count(), work_out.count(), threshold) {
            let evidence = json!({"missing": missing.ratio * missing.seen.0 - missing.seen.1, "score": missing.score, "quarters": missing.quarters});
            lines.push(line((quarter + 1) * QUARTER_MS + JUDGE_AFTER_MS, "opened", "flow", &s.head.endpoints[to], [None; 3], &evidence));
        }
    }
    lines
}

fn main() {
    let (mut budget, mut own, mut folders) = (0.01, Vec::new(), Vec::new());
    for argument in std::env::args().skip(1).filter(|a| a != "--bench") {
        match argument.split_once('=') {
            Some(("false_alarms", value)) => budget = value.parse().unwrap(),
            Some((name, value)) => own.push((name.to_owned(), value.parse::<f32>().unwrap())),
            None => folders.push(argument),
        }
    }
    let thresholds = |critical| {
        let mut t = Thresholds::of(budget, critical);
        for (name, value) in &own {
            match name.as_str() {
                "slow" => t.slow = *value,
                "spread" => t.spread = *value,
                "fast" => t.fast = *value,
                "tail" => t.tail = *value,
                "marker" => t.marker = *value,
                "traffic" => t.traffic.0 = *value,
                "lull" => t.traffic.1 = *value,
                "flow" => t.flow = *value,
                other => panic!("{other} is no threshold"),
            }
        }
        t
    };
    let mut costs = Costs::default();
    for folder in &folders {
        let s = stream::load(Path::new(folder));
        let mut lines = Vec::new();
        for (place, endpoint) in s.head.endpoints.iter().enumerate() {
            lines.extend(watch(&s, place, &thresholds(endpoint.critical), &mut costs));
        }
        for ends in &s.head.flows {
            lines.extend(flow(&s, *ends, thresholds(false).flow));
        }
        lines.sort();
        let mut text = String::new();
        for (_, line) in &lines {
            writeln!(text, "{line}").unwrap();
        }
        fs::write(Path::new(folder).join("incidents.ndjson"), text).unwrap();
    }
    for (name, cost) in [("a quarter of an hour", &costs.quarters), ("a slow run", &costs.slow_runs), ("a forecast", &costs.forecasts)] {
        println!("{name}: {:?} on average over {}", cost.0 / cost.1.max(1), cost.1);
    }
    println!("memory of an endpoint: at most {} bytes", costs.memory_bytes);
}
