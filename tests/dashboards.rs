//! The Grafana dashboards: the rules of Grafana's dashboard-linter, that links lead somewhere, and each expression asked of a real Prometheus that scrapes a real Slowburn
//! under load, once by its classic buckets and once by native histograms.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a test fails by panicking; counts far below 2^53")]

#[path = "peers/kit.rs"]
#[allow(dead_code, reason = "mail and the shop are not needed here")]
mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kit::{Prometheus, Server, until};
use serde_json::Value;

const NAMES: [&str; 4] = ["overview", "endpoint", "objective", "slowburn"];

/// Expressions by the metric that has no data in a run of seconds, and why.
const WITHOUT_DATA: [(&str, &str); 4] = [
    ("slowburn_endpoint_time_to_breach_seconds", "a creep is told after 14 days at the earliest"),
    ("slowburn_endpoint_trend_ratio_per_day", "a creep is told after 14 days at the earliest"),
    ("offset 1d", "Prometheus was not there a day ago"),
    ("offset 1w", "Prometheus was not there a week ago"),
];

struct Board {
    name: &'static str,
    json: Value,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn boards() -> Vec<Board> {
    let read = |name: &str| std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    NAMES.into_iter().map(|name| Board { name, json: serde_json::from_str(&read(name)).unwrap() }).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Board {
    fn panels(&self) -> impl Iterator<Item = &Value> {
        list(&self.json["panels"]).iter().filter(|p| p["type"] != "row")
    }

    fn variables(&self) -> BTreeSet<&str> {
        list(&self.json["templating"]["list"]).iter().map(|v| text(&v["name"])).collect()
    }

    /// Every expression with where it stands.
    fn expressions(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for panel in self.panels() {
            for target in list(&panel["targets"]) {
                all.push((format!("{}, {}", self.name, text(&panel["title"])), text(&target["expr"]).to_owned()));
            }
        }
        for annotation in list(&self.json["annotations"]["list"]).iter().filter(|a| a["builtIn"] != 1) {
            all.push((format!("{}, annotation {}", self.name, text(&annotation["name"])), text(&annotation["expr"]).to_owned()));
        }
        all
    }
}

/// Whatever hangs in a tree under a key.
fn all_under<'a>(tree: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match tree {
        Value::Object(object) => {
            for (name, value) in object {
                if name == key {
                    found.push(value);
                }
                all_under(value, key, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|v| all_under(v, key, found)),
        _ => {}
    }
}

/// The variables that a text uses, without Grafana's own.
fn variables_in(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.trim_start_matches('{').chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    text.split('$').skip(1).map(name).filter(|n| !n.is_empty() && !n.starts_with("__")).collect()
}

/// The metrics that an expression names.
fn metrics_in(expression: &str) -> BTreeSet<&str> {
    expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| word.starts_with("slowburn_")).collect()
}

#[test]
fn dashboards_keep_the_rules_of_the_linter() {
    let mut wrong = Vec::new();
    for board in boards() {
        let mut rule = |holds: bool, what: &str| {
            if !holds {
                wrong.push(format!("{}: {what}", board.name));
            }
        };
        let json = &board.json;
        rule(json["editable"] == false && json["id"].is_null(), "it is not editable and has no number of its own");
        rule(json["schemaVersion"].as_u64().is_some_and(|v| v >= 39), "its schema is recent");
        rule(!text(&json["title"]).is_empty() && !text(&json["description"]).is_empty(), "it has a title and a description");
        rule(list(&json["tags"]).contains(&"slowburn".into()), "it has the tag");
        let source = &list(&json["templating"]["list"])[0];
        let is_source = source["name"] == "datasource" && source["type"] == "datasource" && source["query"] == "prometheus" && source["label"] == "Data source";
        rule(is_source && list(&source["options"]).is_empty(), "the data source is a variable");
        for variable in &list(&json["templating"]["list"])[1..] {
            let (name, query) = (text(&variable["name"]), text(&variable["query"]["query"]));
            rule(query.starts_with("label_values(") && query.ends_with(&format!(", {name})")), &format!("${name} has the values of its label: {query}"));
            rule(variable["multi"] == true && variable["includeAll"] == true && variable["allValue"] == ".*", &format!("${name} may be several, and all"));
            rule(variable["refresh"] == 2 && !text(&variable["label"]).is_empty(), &format!("${name} is read again when the time changes"));
            rule(variable["datasource"]["uid"] == "${datasource}", &format!("${name} reads the chosen data source"));
        }
        let mut uids = Vec::new();
        all_under(json, "datasource", &mut uids);
        rule(uids.iter().all(|d| ["${datasource}", "-- Grafana --"].contains(&text(&d["uid"]))), "no data source is built in");
        let mut ids = BTreeSet::new();
        for panel in list(&json["panels"]) {
            let title = text(&panel["title"]);
            rule(ids.insert(panel["id"].as_u64()) && !title.is_empty(), &format!("`{title}` has a title and a number of its own"));
            let place = &panel["gridPos"];
            rule(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, &format!("`{title}` fits into the width"));
        }
        for panel in board.panels() {
            let title = text(&panel["title"]);
            rule(text(&panel["description"]).len() > 10, &format!("`{title}` has a description"));
            rule(
                panel["datasource"]["uid"] == "${datasource}" && !list(&panel["targets"]).is_empty(),
                &format!("`{title}` asks the chosen data source something"),
            );
            rule(!text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), &format!("`{title}` has a unit"));
        }
        for panel in board.panels().filter(|p| list(&p["transformations"]).iter().any(|t| t["id"] == "merge")) {
            // Rows are merged where all labels are equal, and the metric's name would be one.
            let nameless = list(&panel["targets"]).iter().all(|t| text(&t["expr"]).starts_with("max without (job, instance"));
            rule(nameless, &format!("`{}` merges rows of one endpoint", text(&panel["title"])));
        }
        rule(overlaps(&board).is_empty(), &format!("panels lie beside each other: {:?}", overlaps(&board)));
        for (place, expression) in board.expressions() {
            for broken in broken_rules(&expression) {
                rule(false, &format!("{place}: {broken} in {expression}"));
            }
            let unknown: Vec<_> = variables_in(&expression).into_iter().filter(|v| !board.variables().contains(v.as_str())).collect();
            rule(unknown.is_empty(), &format!("{place}: {unknown:?} are no variables of it"));
        }
        let used: BTreeSet<String> = board.expressions().iter().flat_map(|(_, e)| variables_in(e)).collect();
        let unused: Vec<_> = board.variables().into_iter().filter(|v| *v != "datasource" && !used.contains(*v)).collect();
        rule(unused.is_empty(), &format!("{unused:?} choose nothing"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Pairs of panels that cover each other.
fn overlaps(board: &Board) -> Vec<(String, String)> {
    let edges = |p: &Value| ["x", "y", "w", "h"].map(|k| p["gridPos"][k].as_u64().unwrap());
    let panels = list(&board.json["panels"]);
    let pairs = panels.iter().enumerate().flat_map(|(n, a)| panels[n + 1..].iter().map(move |b| (a, b)));
    let cover = |(a, b): &(&Value, &Value)| {
        let ([ax, ay, aw, ah], [bx, by, bw, bh]) = (edges(a), edges(b));
        ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah
    };
    pairs.filter(cover).map(|(a, b)| (text(&a["title"]).to_owned(), text(&b["title"]).to_owned())).collect()
}

fn broken_rules(expression: &str) -> Vec<&'static str> {
    let mut broken = Vec::new();
    // A range of a rate is Grafana's; what looks back over a fixed time says so in its title, and is an increase or a delta.
    let rates = expression.matches("rate(").count() - expression.matches("_rate(").count();
    if rates > expression.matches("[$__rate_interval]").count() || expression.contains("irate(") {
        broken.push("a rate over another range than $__rate_interval");
    }
    for metric in metrics_in(expression).into_iter().filter(|m| m.ends_with("_total") || m.ends_with("_bucket") || m.ends_with("_sum")) {
        let bare = expression.match_indices(metric).any(|(at, _)| !["rate(", "increase("].iter().any(|f| expression[..at].ends_with(f)));
        if bare {
            broken.push("a counter without a rate");
        }
    }
    let selects = |metric: &&str| {
        let after: Vec<&str> = expression.match_indices(*metric).map(|(at, m)| &expression[at + m.len()..]).filter(|rest| !rest.starts_with('_')).collect();
        // A longer name may begin with this one.
        after.iter().all(|rest| rest.starts_with("{service=~\"$service") || rest.starts_with("{instance=~\"$instance\""))
    };
    // The age of what is judged, and markers of all services, belong to no endpoint.
    let free = ["slowburn_judged_timestamp_seconds", "slowburn_marker_timestamp_seconds"];
    if !metrics_in(expression).iter().filter(|m| !free.contains(m)).all(selects) {
        broken.push("no variable selects");
    }
    if metrics_in(expression).is_empty() || expression.contains("job=") {
        broken.push("no metric of Slowburn, or a job that others do not have");
    }
    broken
}

#[test]
fn links_lead_to_a_dashboard_and_set_variables_that_it_has() {
    let boards = boards();
    let by_uid: BTreeMap<&str, &Board> = boards.iter().map(|b| (text(&b.json["uid"]), b)).collect();
    assert_eq!(by_uid.keys().copied().collect::<Vec<_>>(), ["slowburn-endpoint", "slowburn-itself", "slowburn-objective", "slowburn-overview"]);
    let titles: BTreeSet<&str> = boards.iter().map(|b| text(&b.json["title"])).collect();
    assert_eq!(titles.len(), NAMES.len());
    for board in &boards {
        let of_board: Vec<&str> = list(&board.json["links"]).iter().map(|l| text(&l["url"])).collect();
        assert_eq!(of_board.len(), NAMES.len() - 1, "{} leads to the others", board.name);
        assert!(list(&board.json["links"]).iter().all(|l| l["includeVars"] == true && l["keepTime"] == true), "{}", board.name);
        let mut found = Vec::new();
        all_under(&board.json, "url", &mut found);
        for url in found.into_iter().map(text) {
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            let target = path.strip_prefix("/d/").and_then(|uid| by_uid.get(uid)).unwrap_or_else(|| panic!("{url} leads nowhere"));
            assert_ne!(target.json["uid"], Value::Null);
            for part in query.split('&').filter(|p| !p.is_empty()) {
                if let Some((variable, value)) = part.strip_prefix("var-").and_then(|p| p.split_once('=')) {
                    assert!(target.variables().contains(variable), "{url}: {variable}");
                    assert!(value.starts_with("${__data.fields.") || value.starts_with("${__field.labels."), "{url}: {value}");
                } else if part != "${__url_time_range}" {
                    let variable = part.strip_prefix("${").and_then(|p| p.strip_suffix(":queryparam}")).unwrap_or_else(|| panic!("{url}: {part}"));
                    assert!(target.variables().contains(variable) && board.variables().contains(variable), "{url}: {variable}");
                }
            }
        }
    }
}

const CONFIG: &str = r#"
judge_after = "1s"

[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "800ms", target = "99%", period = "30d" }, { availability = true, target = "99%", period = "30d" }]

[[receiver]]
name = "oncall"
webhook = { url = "http://127.0.0.1:9/" }

[[remote_write]]
name = "away"
url = "http://127.0.0.1:9/"
interval = "1s"

[[burn_window]]
long = "20s"
short = "10s"
factor = 6.0
severity = "critical"
"#;

/// A second of a shop: orders of which one in five is slow and one in ten fails, and reads of an endpoint that nobody owes anything.
fn lines() -> String {
    let ts = kit::now_ms();
    (0..40_u64).fold(String::new(), |mut lines, n| {
        let (status, duration_ms) = (if n % 10 == 9 { 503 } else { 201 }, if n % 5 == 4 { 1_500 } else { 100 + 5 * n });
        writeln!(
            lines,
            r#"{{"ts":{ts},"service":"shop","env":"prod","method":"POST","route":"/orders","status":{status},"duration_ms":{duration_ms},"trace_id":"t{n}"}}"#
        )
        .unwrap();
        writeln!(lines, r#"{{"ts":{ts},"service":"shop","env":"prod","method":"GET","route":"/products","status":200,"duration_ms":{n}}}"#).unwrap();
        lines
    })
}

/// An expression as Grafana would ask it: one endpoint chosen, or everything.
fn filled(board: &Board, expression: &str, all: bool) -> String {
    let mut filled = expression.replace("$__rate_interval", "10s");
    for name in board.variables() {
        let value = match name {
            "service" if !all => "shop",
            "env" if !all => "(prod|test)",
            "route" if !all => "/orders",
            _ => ".*",
        };
        filled = filled.replace(&format!("${name}"), value);
    }
    filled
}

#[test]
fn every_panel_has_data_of_a_slowburn_under_load() {
    if !kit::has_prometheus() {
        return;
    }
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let server = Server::start(dirs[0].path(), CONFIG);
    let (classic, native) = (Prometheus::start(dirs[1].path(), server.address), Prometheus::start_native(dirs[2].path(), server.address));
    let marker = r#"{"service":"shop","title":"deploy","version":"1.2.3"}"#;
    let (status, answer) = kit::ask(server.address, "POST", "/api/v1/markers", "Content-Type: application/json\r\n", marker).unwrap();
    assert_eq!(status, 200, "{answer}");
    let started = kit::now();
    until("an incident, and the load of some seconds", 120, || {
        assert_eq!(server.post("Slowburn-Sender: shop-1; epoch=1; seq=1; dropped=0; uptime=5\r\n", "").0, 200);
        assert_eq!(server.post("", &lines()).1["accepted"], 80);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let opened = |p: &Prometheus| p.query("sum(slowburn_incident_active)").is_some_and(|v| v > 0.0);
        opened(&classic) && opened(&native) && started.elapsed().as_secs() > 20
    });
    let scrape = server.scrape();
    // What has no data in this run has a name all the same.
    let named = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned);
    let exported: BTreeSet<String> = kit::samples(&scrape).into_keys().map(|series| series.split('{').next().unwrap().to_owned()).chain(named).collect();
    let (mut empty, mut asked, mut traced, mut excused) = (Vec::new(), 0, 0, BTreeSet::new());
    for board in boards() {
        for (place, expression) in board.expressions() {
            for (kind, prometheus, all) in [("classic", &classic, true), ("classic", &classic, false), ("native", &native, true), ("native", &native, false)] {
                let query = filled(&board, &expression, all);
                asked += 1;
                let found = prometheus.series(&query).unwrap_or_else(|e| panic!("{place}: {query}: {e}"));
                if found == 0 {
                    match WITHOUT_DATA.iter().find(|(part, _)| expression.contains(part)) {
                        Some((part, _)) => drop(excused.insert(*part)),
                        None => empty.push(format!("{place}, {kind}: {query}")),
                    }
                }
            }
            for metric in metrics_in(&expression) {
                assert!(exported.contains(metric), "{place}: Slowburn has no {metric}");
            }
        }
        // Where exemplars are asked for there are some, and each is drawn once.
        for panel in board.panels() {
            let asking: Vec<&Value> = list(&panel["targets"]).iter().filter(|t| t["exemplar"] == true).collect();
            assert!(asking.len() <= 1, "{}: {}", board.name, panel["title"]);
            for target in asking {
                traced += 1;
                let query = filled(&board, text(&target["expr"]), false);
                assert!(!native.exemplars(&query).is_empty() && !kit::exemplars(server.address, &query).is_empty(), "{}: {query}", board.name);
            }
        }
        // What can be chosen is there to be chosen.
        for variable in list(&board.json["templating"]["list"]).iter().filter(|v| v["type"] == "query") {
            let query = text(&variable["query"]["query"]).strip_prefix("label_values(").and_then(|q| q.strip_suffix(')')).unwrap();
            let (selector, label) = query.rsplit_once(", ").unwrap();
            let values = filled(&board, &format!("count by ({label}) ({{{label}!=\"\", __name__=\"{}\"}})", selector.split('{').next().unwrap()), true);
            assert!(classic.series(&values).unwrap() > 0, "{}: ${label}: {query}", board.name);
        }
    }
    assert_eq!(traced, 4);
    eprintln!("{asked} expressions asked, without data as expected: {excused:?}");
    assert!(empty.is_empty(), "{}", empty.join("\n"));
}

#[test]
fn provisioning_names_no_data_source_that_the_dashboards_would_need() {
    let read = |path: &str| std::fs::read_to_string(folder().join("provisioning").join(path)).unwrap();
    let (source, provider) = (read("datasources/slowburn.yaml"), read("dashboards/slowburn.yaml"));
    assert!(source.starts_with('#') && source.contains("apiVersion: 1") && source.contains("type: prometheus") && source.contains("timeInterval: 15s"));
    assert!(!source.contains("uid:") && provider.contains("apiVersion: 1") && provider.contains("path: /var/lib/grafana/dashboards/slowburn"));
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    assert!(readme.contains("/var/lib/grafana/dashboards/slowburn"));
}
