//! Objectives from elsewhere: what of definitions of Sloth, Pyrra and OpenSLO becomes a configuration, which lines say what does not, and OpenSLO out and in again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use slowburn::config::Config;
use slowburn::endpoint::Selector;
use slowburn::histogram::Digits;
use slowburn::histogram::grid::VALUE_US_MAX;
use slowburn::judge::{Owed, Promise, Promises};
use slowburn::objective::{BurnWindow, Goal, PPB, Severity, percent_text, slots_name};
use slowburn::show::slo::{self, Fate, Format, Labels};
use slowburn::time::Slot;

/// Exit code, standard output, standard error.
fn run(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slowburn"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // One that refuses its arguments reads nothing.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn fixture(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slo").join(name)).unwrap()
}

/// Imports a fixture by the command; exit code, the objectives as the configuration reads them, the lines about the rest.
fn imported(name: &str) -> (i32, Vec<String>, Vec<String>) {
    let (code, fragment, said) = run(&["slo", "import", "-"], &fixture(name));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fragment.toml");
    fs::write(&file, &fragment).unwrap();
    let (checked, _, wrong) = run(&["check", "--config", file.to_str().unwrap()], "");
    assert_eq!(checked, 0, "{wrong}{fragment}");
    let config = Config::parse("fragment.toml", &fragment).unwrap();
    let lines = said.lines().map(|line| line.strip_prefix("standard input:").unwrap_or(line).to_owned()).collect();
    (code, objectives(&config.promises), lines)
}

fn objectives(promises: &Promises) -> Vec<String> {
    let part = |name: &str, part: &Option<String>| part.as_ref().map_or_else(String::new, |p| format!(" {name}={p}"));
    let of = |owed: &Owed, p: &Promise| {
        let s = &owed.selector;
        let (name, pages) = (p.name.as_deref().unwrap_or("-"), if owed.critical { "" } else { " (warns)" });
        let parts = part("env", &s.env) + &part("kind", &s.kind) + &part("method", &s.method);
        format!("{name}: {} {}{parts}: {} {} in {}{pages}", s.service, s.route, p.goal.name(), percent_text(p.target_ppb), slots_name(p.period_slots))
    };
    promises.endpoints.iter().flat_map(|owed| owed.promises.iter().map(|p| of(owed, p)).collect::<Vec<_>>()).collect()
}

#[test]
fn sloth_is_carried_over_and_the_rest_is_listed() {
    let (code, found, said) = imported("sloth.yml");
    assert_eq!(code, 1);
    assert_eq!(
        found,
        [
            "orders-availability: shop /orders method=POST: availability 99.95 % in 30d",
            "orders-latency: shop /orders method=POST: latency<=400ms 99 % in 30d (warns)",
            "search-availability: shop /search: availability 99.9 % in 30d",
            "search-latency: shop /search env=prod method=GET: latency<=250ms 95 % in 30d",
        ]
    );
    assert_eq!(
        said,
        [
            "5: shop: labels: left out: Slowburn's incidents have no labels beside those of the endpoint",
            "7: shop: slo_plugins: left out: not understood",
            "17: orders-availability: alerting.ticket_alert.disable: left out: Slowburn's warnings are told; a receiver of their own can be silent",
            "17: orders-availability: alerting: left out: page_alert.labels, name, labels: Slowburn words its own incidents, and `notify` says who is told",
            "14: orders-availability: sli.events: approximately: the method `post` is written POST, as it is sent",
            "14: orders-availability: sli.events: approximately: the source adds up every env; Slowburn judges each endpoint that matches by itself",
            "29: orders-latency: sli.events: approximately: the source adds up every env; Slowburn judges each endpoint that matches by itself",
            "29: orders-latency: sli.events: approximately: a failure that is fast is good in the source; Slowburn counts every failure as bad",
            "43: requests-availability: sli.events: not carried over: no label names the route: expected one of route, http_route, handler, path_template, path, uri, endpoint with one value (--label route=LABEL names another)",
            r#"49: search-availability: sli.events: approximately: `cluster="valhalla"` is left out: Slowburn has no such part of an endpoint, so it counts more requests"#,
            "49: search-availability: sli.events: approximately: the source adds up every env and method; Slowburn judges each endpoint that matches by itself",
            "49: search-availability: sli.events: approximately: the source calls 429 bad too; Slowburn only 5xx",
            "65: good-wifi: sli.events.error_query: not carried over: `sum_over_time(…)` is not understood: expected rate() or increase() of counters",
            "71: by-plugin: sli.plugin: not carried over: the queries are made by the plugin `getting_started_availability`, which is a program: write them out as sli.events",
            r#"77: watch-latency: sli.events: not carried over: `verb!="WATCH"` chooses requests by a label that Slowburn does not have"#,
            "objectives carried over: 4 of 8; differences: 7; parts left out: 4; each in a line above",
        ]
    );
}

#[test]
fn sloth_on_kubernetes_is_the_same() {
    let (code, found, said) = imported("sloth-kubernetes.yml");
    assert_eq!(code, 0);
    assert_eq!(found, ["checkout: shop /checkout env=prod method=POST: availability 99.9 % in 30d",]);
    assert_eq!(
        said,
        [
            "17: beside: apiVersion: left out: no definition of objectives that is read here",
            "objectives carried over: 1 of 1; differences: 0; parts left out: 1; each in a line above",
        ]
    );
}

#[test]
fn pyrra_is_carried_over_and_the_rest_is_listed() {
    let (code, found, said) = imported("pyrra.yml");
    assert_eq!(code, 1);
    assert_eq!(
        found,
        ["api-query-errors: prometheus-k8s /api/v1/query: availability 99.9 % in 28d", "caddy-latency: caddy subroute: latency<=50ms 90 % in 14d (warns)",]
    );
    assert_eq!(
        said,
        [
            "8: api-query-errors: metadata.labels: left out: Slowburn's incidents have no labels beside those of the endpoint",
            "11: api-query-errors: spec.window: approximately: Pyrra scales its pairs of windows to this one; Slowburn judges by its own [[burn_window]] table",
            "15: api-query-errors: spec.indicator.ratio: approximately: the source adds up every env; Slowburn judges each endpoint that matches by itself",
            "36: caddy-latency: spec.alerting: approximately: no alerts are asked for; Slowburn warns all the same, and `critical = false` keeps it from paging",
            "28: caddy-latency: spec.window: approximately: Pyrra scales its pairs of windows to this one; Slowburn judges by its own [[burn_window]] table",
            "31: caddy-latency: spec.indicator.latency: approximately: the source adds up every env and method; Slowburn judges each endpoint that matches by itself",
            "31: caddy-latency: spec.indicator.latency: approximately: the source leaves out requests by their status, good and bad; Slowburn counts all, and every failure as bad",
            "47: connect-native: spec.indicator.latencyNative: not carried over: it makes an objective for each `service`, and Slowburn needs each named",
            "59: every-handler: spec.window: not carried over: `12w` is not a multiple of 10s up to 31d, which is as far as Slowburn counts budgets",
            "77: every-handler-4w: spec.indicator.ratio: not carried over: no label names the route: expected one of route, http_route, handler, path_template, path, uri, endpoint with one value (--label route=LABEL names another)",
            "93: nginx-latency-without-bucket: spec.indicator.latency: not carried over: `nginx_request_duration_seconds_bucket` without one `le` counts every bucket",
            "107: up: spec.indicator.bool_gauge: not carried over: a gauge is true for a time, and Slowburn counts requests: it has no requests in it",
            "objectives carried over: 2 of 7; differences: 6; parts left out: 1; each in a line above",
        ]
    );
}

#[test]
fn openslo_is_carried_over_and_the_rest_is_listed() {
    let (code, found, said) = imported("openslo.yml");
    assert_eq!(code, 1);
    assert_eq!(
        found,
        [
            "-: shop /orders env=prod method=POST: latency<=300ms 99.95 % in 28d",
            "job-duration: shop nightly env=prod kind=job method=: latency<=90s 98 % in 28d",
        ]
    );
    assert_eq!(
        said,
        [
            "44: orders-latency: spec.objectives[0]: approximately: a failure that is fast is good in the source; Slowburn counts every failure as bad",
            "46: orders-latency: spec.objectives[1]: not carried over: one goal has one target: latency<=300ms of this endpoint, 99.95 % in 28d, comes from orders-latency (standard input:29)",
            "34: orders-latency: metadata.labels: left out: Slowburn's incidents have no labels beside those of the endpoint",
            "49: orders-latency: spec.alertPolicies[0].alertWhenNoData: left out: Slowburn watches every endpoint for silence by itself",
            "49: orders-latency: spec.alertPolicies[0].notificationTargets: left out: OnCallMail: whom to tell is a [[receiver]] and `notify`",
            "70: orders-latency: spec.alertPolicies[0]: approximately: to burn for 5m became a short window of 5m that must burn too",
            "50: orders-latency: spec.alertPolicies[1].notificationTargets: left out: OnCallMail: whom to tell is a [[receiver]] and `notify`",
            "89: calendar: spec.timeWindow: not carried over: it begins by the calendar, and Slowburn's budgets roll",
            "100: slices: spec.budgetingMethod: not carried over: Timeslices counts slices of time, and Slowburn requests (Occurrences)",
            "113: datadog: spec.indicator.ratioMetric.good.metricSource.type: not carried over: queries of Datadog are not read: expected Prometheus",
            "128: p99: spec.indicator.thresholdMetric: not carried over: it counts the evaluations in which quantile 0.99 is within 0.3, and Slowburn requests: promise that the share 0.99 of requests is (a ratioMetric)",
            "145: job-duration: spec.indicator.thresholdMetric: approximately: a failure that is fast is good in the source; Slowburn counts every failure as bad",
            "145: job-duration: spec.indicator.thresholdMetric: approximately: each sample of the metric is one request to it; Slowburn counts the requests themselves",
            "145: job-duration: spec.indicator.thresholdMetric: approximately: less than the threshold is good in the source; in Slowburn as long as it is good too",
            "152: old: apiVersion: not carried over: `openslo/v1alpha` is another language under the same name: expected openslo/v1",
            "objectives carried over: 2 of 8; differences: 5; parts left out: 4; each in a line above",
        ]
    );
}

/// Dashboards that read the rules that Sloth wrote find these under the same names.
#[test]
fn rules_of_an_imported_definition_have_the_identities_of_sloth() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(&file, run(&["slo", "import", "-"], &fixture("sloth.yml")).1).unwrap();
    let (code, rules, wrong) = run(&["rules", "--config", file.to_str().unwrap()], "");
    assert_eq!(code, 0, "{wrong}");
    for text in ["sloth_id: shop-orders-availability\n", "sloth_slo: orders-availability\n", "sloth_id: shop-search-latency\n", "sloth_service: shop\n"] {
        assert!(rules.contains(text), "{text}{rules}");
    }
}

#[test]
fn labels_can_be_named() {
    let sloth = |labels: &str| {
        format!(
            "version: prometheus/v1\nservice: shop\nslos:\n- name: a\n  objective: 99\n  sli:\n    events:\n      error_query: sum(rate(m_total{{{labels},rc=~\"5..\"}}[5m]))\n      \
             total_query: sum(rate(m_total{{{labels}}}[5m]))\n"
        )
    };
    let of = |labels: &str, arguments: &[&str]| {
        let (code, fragment, said) = run(&[&["slo", "import", "-"], arguments].concat(), &sloth(labels));
        assert!(code < 2, "{said}");
        objectives(&Config::parse("c.toml", &fragment).unwrap().promises)
    };
    let named = ["--label", "route=operation", "--label", "status=rc", "--label", "env=handler"];
    assert_eq!(of("operation=\"Buy\",handler=\"eu\"", &named), ["a: shop Buy env=eu: availability 99 % in 30d"]);
    assert_eq!(of("operation=\"Buy\",handler=\"eu\"", &[]), Vec::<String>::new());
    assert_eq!(run(&["slo", "import", "-", "--label", "path"], "").0, 2);
    assert_eq!(run(&["slo", "import", "-", "--label", "colour=x"], "").0, 2);
}

#[test]
fn input_that_is_no_definitions_ends_with_its_place() {
    let laughs = (1..12).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
        text + &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "))
    });
    for (text, place, part) in [
        ("", "standard input:1: ", "no definition"),
        ("a: [\n", "standard input:", ""),
        ("a: 1\n---\nb: 2\n", "standard input:1: ", "openslo/v1"),
        (laughs.as_str(), "standard input:", "more than 1048576 values"),
        ("apiVersion: openslo/v1\napiVersion: openslo/v1\n", "standard input:2: ", "twice"),
    ] {
        let (code, out, said) = run(&["slo", "import", "-"], text);
        assert_eq!((code, out.as_str()), (2, ""), "{said}");
        assert!(said.starts_with(&format!("slowburn: {place}")) && said.contains(part), "{said}");
    }
    let big = "#".repeat((16 << 20) + 1);
    assert!(run(&["slo", "import", "-"], &big).2.contains("more than 16777216 bytes"));
    let (code, _, said) = run(&["slo", "import", "/nowhere/slos.yml"], "");
    assert!(code == 2 && said.contains("/nowhere/slos.yml: cannot be read"), "{said}");
    // What other tools read from the same files is no mistake, and is told.
    let (code, fragment, said) = run(&["slo", "import", "--from", "sloth", "-"], &fixture("pyrra.yml"));
    assert_eq!((code, said.matches("no definition of objectives that is read here").count()), (0, 7), "{said}");
    assert!(!fragment.contains("[[endpoint]]"));
    let without_version = fixture("sloth.yml").replace("version: \"prometheus/v1\"", "");
    assert_eq!(run(&["slo", "import", "-"], &without_version).0, 2);
    assert!(run(&["slo", "import", "--from", "sloth", "-"], &without_version).1.contains("orders-availability"));
}

/// Everything that an export leaves out stands in comments at its head.
#[test]
fn what_openslo_cannot_say_is_told() {
    let config = r#"
[[endpoint]]
service = "shop"
route = "/orders"
objectives = [{ latency = "1s", target = "99%", period = "90s" }, { availability = true, target = "99%" }]
thresholds = [{ quantile = "95%", over = "1s", window = "10m" }]

[[endpoint]]
service = "shop"
route = "/orders"
objectives = [{ availability = true, target = "90%" }]

[[endpoint]]
service = "shop"
route = "/listed\u2028# only"

[[flow]]
name = "print jobs"
from = { service = "cards", route = "print.enqueue", kind = "job" }
to = { service = "cards", route = "print.run", kind = "job" }

[[expected]]
name = "nightly"
endpoint = { service = "janitor", route = "x", kind = "job" }
count = 400
by = "05:00"

[[burn_window]]
long = "90s"
short = "10s"
factor = 2.5
severity = "critical"

[[burn_window]]
long = "1h"
short = "10s"
factor = 2.5
severity = "critical"
"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(&file, config).unwrap();
    let (code, out, wrong) = run(&["slo", "export", "--config", file.to_str().unwrap()], "");
    assert_eq!(code, 0, "{wrong}");
    let missing: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("# - ")).collect();
    assert_eq!(
        missing,
        [
            "latency<=1s of /orders (shop): its period of 90s is not whole minutes",
            "the burn window of 90s and 10s: its long window is not whole minutes",
            "p95<=1s of /orders (shop): a threshold over a quantile has no budget",
            "availability of /orders (shop): an earlier entry has that objective, and judges it",
            "/listed\\u2028# only (shop): it has no objectives",
            "flow print jobs: work in against work out",
            "expected nightly: so many by a time of day",
        ]
    );
    let (code, fragment, said) = run(&["slo", "import", "-"], &out);
    assert_eq!(code, 0, "{said}");
    let back = Config::parse("back.toml", &fragment).unwrap().promises;
    assert_eq!(objectives(&back), ["-: shop /orders: availability 99 % in 30d"]);
    assert_eq!(
        back.endpoints[0].promises[0].windows.iter().map(|w| (w.long_name(), w.short_name())).collect::<Vec<_>>(),
        [("1h".to_owned(), "10s".to_owned())]
    );
}

fn text(most: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z/{}._-]{1,20}",
        prop::collection::vec(any::<char>().prop_map(|c| if c.is_control() { 'x' } else { c }), 1..most).prop_map(String::from_iter),
        Just("null".to_owned()),
        Just("~".to_owned()),
        Just("a\"b\\c' #: {{ .window }} [$x]".to_owned()),
        Just("\u{2028}\u{feff}\u{1f600}größe".to_owned()),
    ]
}

fn window() -> impl Strategy<Value = BurnWindow> {
    (1_u32..=31 * 1440, 1_u32..=1_000_000, 1_u64..=1_000_000_000, any::<bool>(), 1_u32..=1_000_000).prop_map(
        |(minutes, short, factor_milli, critical, alpha)| {
            let (long_slots, severity) = (minutes * 6, if critical { Severity::Critical } else { Severity::Warning });
            BurnWindow { long_slots, short_slots: 1 + short % long_slots, factor_milli, severity, alpha: f64::from(alpha) / 1e6 }
        },
    )
}

/// What a configuration may hold, as far as OpenSLO can say it.
fn promises() -> impl Strategy<Value = Promises> {
    let part = || prop::option::of(prop_oneof![text(20), Just(String::new())]);
    let selector = (text(30), text(60), part(), part(), part()).prop_map(|(service, route, env, kind, method)| Selector { service, route, env, kind, method });
    let goal = prop_oneof![Just(Goal::Availability), (1_u64..=VALUE_US_MAX).prop_map(|threshold_us| Goal::Latency { threshold_us })];
    let percent = prop_oneof![Just(999_000_000_u64), (1_u64..PPB / 10_000_000 * 100_000).prop_map(|n| n * 100), 1_u64..PPB];
    let promise = (goal, percent, 1_u32..=31 * 1440, prop::option::of("[A-Za-z0-9_.-]{1,63}"));
    let owed = (selector, any::<bool>(), any::<bool>(), prop::collection::vec(promise, 1..4));
    (prop::collection::vec(owed, 1..5), prop::collection::vec(window(), 1..5)).prop_map(|(owed, windows)| {
        let mut all = Promises::none(15_000);
        for (selector, critical, three, found) in owed {
            let mut promises: Vec<Promise> = Vec::new();
            for (goal, target_ppb, minutes, name) in found {
                let promise = Promise { goal, name, target_ppb, period_slots: minutes * 6, windows: windows.clone(), since: Slot(0) };
                if !promises.iter().any(|p| p.goal == goal) {
                    promises.push(promise);
                }
            }
            let digits = if three { Digits::Three } else { Digits::Two };
            if !all.endpoints.iter().any(|o| o.selector == selector) {
                all.endpoints.push(Owed { selector, critical, digits, promises, notify: Vec::new() });
            }
        }
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Out and in again is the identity on what OpenSLO can say: endpoints, goals, targets to the last digit, periods, names, burn windows.
    #[test]
    fn out_and_in_again_is_the_identity(promises in promises()) {
        let out = slo::export(&promises);
        prop_assert!(!out.contains("\n# - "), "{}", out);
        let back = slo::import(&[("out.yml".to_owned(), out.clone())], None, Labels::default()).unwrap();
        prop_assert!(back.notes.is_empty(), "{:?}\n{}", back.notes, out);
        prop_assert_eq!(back.not_carried, 0);
        let read = Config::parse("back.toml", &back.fragment);
        prop_assert!(read.is_ok(), "{:?}\n{}", read.err(), back.fragment);
        prop_assert_eq!(read.unwrap().promises.endpoints, promises.endpoints, "{}", back.fragment);
    }

    /// No definition, however broken, ends in anything but objectives that check or an error with its place.
    #[test]
    fn broken_definitions_are_refused_or_carried(
        which in 0_usize..4,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..40, "[ -~\\n]{0,8}"), 1..6),
    ) {
        let mut text: Vec<char> = fixture(["sloth.yml", "sloth-kubernetes.yml", "pyrra.yml", "openslo.yml"][which]).chars().collect();
        for (at, length, put) in cuts {
            let at = at.index(text.len());
            text.splice(at..(at + length).min(text.len()), put.chars());
        }
        let text = String::from_iter(text);
        if let Ok(found) = slo::import(&[("broken.yml".to_owned(), text.clone())], None, Labels::default()) {
            let read = Config::parse("fragment.toml", &found.fragment);
            prop_assert!(read.is_ok(), "{:?}\n{}\n{}", read.err(), found.fragment, text);
            prop_assert_eq!(found.notes.iter().filter(|n| n.fate == Fate::NotCarriedOver).count(), found.not_carried);
            prop_assert!(found.notes.iter().all(|n| n.line >= 1 && n.line <= text.lines().count() + 1));
        }
    }
}

/// Files may refer to each other; a name from one is found in another.
#[test]
fn references_reach_over_files() {
    let whole = fixture("openslo.yml");
    let (first, rest) = whole.split_at(whole.find("kind: SLI").unwrap());
    let (first, rest) = (first.rsplit_once("---\n").unwrap().0.to_owned(), format!("apiVersion: openslo/v1\n{rest}"));
    let files = [("slos.yml".to_owned(), rest.clone()), ("sources.yml".to_owned(), first)];
    let found = slo::import(&files, Some(Format::Openslo), Labels::default()).unwrap();
    assert_eq!(found.carried, 2);
    let lonely = rest.replace("indicatorRef: orders-fast", "indicatorRef: nobody");
    let found = slo::import(&[("slos.yml".to_owned(), lonely)], None, Labels::default()).unwrap();
    assert!(found.notes.iter().any(|n| n.why == "no SLI `nobody` is in the files given" && n.field == "spec.indicatorRef"));
}
