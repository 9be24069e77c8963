//! Replay says what live says, and what a naive evaluator says.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    unreachable_pub,
    reason = "a test fails by panicking, counts little, and has one crate of modules"
)]

mod naive;
mod virtual_server;

use std::path::Path;

use slowburn::config::Config;
use slowburn::endpoint::EndpointId;
use slowburn::endpoint::PathTemplates;
use slowburn::ingest::known::KnownEndpoints;
use slowburn::judge::Command;
use slowburn::run::both::{Side, Source, both};
use slowburn::run::compare::compare;
use slowburn::run::replay::{self, Replay};
use slowburn::time::{Slot, Timestamp};
use virtual_server::Server;

const START: Timestamp = Timestamp(1_767_571_200_000);

const SHOP: &str = r#"
[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [
  { latency = "800ms", target = "99%", period = "30d" },
  { availability = true, target = "99.9%", period = "30d" },
]
thresholds = [{ quantile = "95%", over = "1s", window = "10m" }]

[[receiver]]
name = "oncall"
email = { to = ["oncall@example.com"], from = "slowburn@example.com", smtp = "smtp://127.0.0.1:25" }
"#;

fn replayed(config: Option<&Config>, feed: impl FnOnce(&mut Replay<'_, &mut Vec<u8>>)) -> String {
    let defaults = Config::default_config();
    let (templates, known, mut out) = (PathTemplates::default(), KnownEndpoints::default(), Vec::new());
    let promises = config.map(|c| c.promises.clone());
    let mut replay = Replay::new(promises, 15_000, defaults.endpoint_limits, &templates, &known, Vec::new(), &mut out, |bad| panic!("{bad:?}"));
    feed(&mut replay);
    replay.finish(None).unwrap();
    drop(replay);
    String::from_utf8(out).unwrap()
}

fn of_file(config: Option<&Config>, path: &Path) -> String {
    replayed(config, |r| r.file(path, |_| ()).unwrap())
}

fn of_log(dir: &Path) -> String {
    replayed(None, |r| r.log(dir, |_| ()).unwrap())
}

/// Byte for byte; a difference is shown by its first line.
fn same(a: &str, b: &str) {
    for (n, (a, b)) in a.lines().zip(b.lines()).enumerate() {
        assert_eq!(a, b, "line {n}");
    }
    assert_eq!(a.lines().count(), b.lines().count());
    assert!(a == b);
}

fn exported(dir: &Path) -> String {
    let mut out = Vec::new();
    replay::export(dir, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Ten seconds of requests: two a second, `bad` of the twenty slow. The order of a sender is no order.
fn requests(slot: Slot, bad: i64, of_sender: i64) -> String {
    (0..20)
        .map(|n| {
            let at = slot.start().0 + ((n * 7_919 + of_sender * 131) % 10_000);
            let ms = if (n * 7 + of_sender) % 20 < bad { 1_900 } else { 120 + n };
            // What is slow is traced, and some of the rest.
            let trace = if ms > 1_000 || n == 3 { format!(r#","trace_id":"t{at}-{of_sender}""#) } else { String::new() };
            format!(r#"{{"ts":{at},"service":"shop","method":"POST","route":"/orders","status":201,"duration_ms":{ms}{trace}}}"#) + "\n"
        })
        .collect()
}

struct Story {
    server: Server,
    late: Vec<(Timestamp, String)>,
}

impl Story {
    /// Lives through some slots: sender a sends as a slot ends, sender b twelve seconds later, so that its news of the last slot is late for that slot's judgement
    /// after a delay of 15 s; now and then a batch of it comes five minutes late.
    fn live(&mut self, from: Slot, slots: u32, bad: i64) -> Slot {
        for n in 0..slots {
            let slot = Slot(from.0 + n);
            self.tick(slot.end());
            self.server.send(&requests(slot, bad, 0));
            let delay = if n % 40 == 7 { 300_000 } else { 12_000 };
            self.late.push((slot.end().plus_ms(delay), requests(slot, bad, 1)));
        }
        Slot(from.0 + slots)
    }

    fn tick(&mut self, to: Timestamp) {
        self.late.sort_by_key(|l| l.0);
        while self.late.first().is_some_and(|l| l.0 <= to) {
            let (at, body) = self.late.remove(0);
            self.server.move_to(at);
            self.server.send(&body);
        }
        self.server.move_to(to);
    }
}

/// The marks of a busy evening: a reload, a marker, an acknowledgement, an idle hour, two crashes, one of them inside an incident.
fn evening() -> Story {
    let mut story = Story { server: Server::start(SHOP, START), late: Vec::new() };
    let slot = story.live(Slot::containing(START), 60, 0);
    story.server.decide(Command::Mark(slowburn::incident::Marker { ts: slot.start(), service: "shop".into(), title: "deploy".into(), version: "7".into() }));
    let slot = story.live(slot, 60, 14);
    let open = story.server.open_incidents();
    assert!(!open.is_empty(), "an incident is open when the server crashes");
    story.server.crash();
    assert_eq!(story.server.open_incidents(), open, "and it still is when it is back");
    story.server.decide(Command::Ack { at: slot.start(), incident: open[0].clone(), by: "ann".into() });
    let slot = story.live(slot, 120, 0);
    let slot = Slot(slot.0 + 360);
    story.tick(slot.start());
    story.server.reload(&SHOP.replace("800ms", "700ms"));
    let slot = story.live(slot, 20, 3);
    story.server.crash();
    let slot = story.live(slot, 40, 0);
    story.tick(slot.end().plus_ms(600_000));
    story
}

#[test]
fn a_live_evening_its_log_and_its_export_say_the_same_byte_for_byte() {
    let story = evening();
    let (lines, dir) = story.server.stop();
    let events = |event: &str| lines.lines().filter(|l| l.contains(&format!("\"event\":\"{event}\""))).count();
    println!(
        "{} lines: {} opened, {} resolved, {} escalated, {} deescalated",
        lines.lines().count(),
        events("opened"),
        events("resolved"),
        events("escalated"),
        events("deescalated")
    );
    assert!(events("opened") >= 3 && events("resolved") >= 1, "{lines}");
    let of_trace = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["evidence"]["slowest_trace"].clone();
    for line in lines.lines().filter(|l| l.contains("latency<=") && l.contains("\"event\":\"opened\"")) {
        let trace = of_trace(line);
        assert!(trace["duration_ms"] == 1_900.0 && trace["trace_id"].as_str().unwrap().starts_with('t'), "{line}");
    }
    assert!(lines.contains("is no longer configured"), "the reload ended the incidents of the old threshold");
    same(&of_log(dir.path()), &lines);
    let export = exported(dir.path());
    let file = dir.path().join("export.ndjson");
    std::fs::write(&file, &export).unwrap();
    same(&of_file(None, &file), &lines);

    // Counts changed in one frame are enough to say something else.
    let slow = export.lines().skip_while(|l| !l.contains("\"deploy\"")).filter(|l| l.contains("\"cells\"")).nth(9).unwrap();
    let mutated = slow.replace("\"within\":{\"weight\":", "\"within\":{\"weight\":1");
    assert_ne!(slow, mutated);
    std::fs::write(&file, export.replace(slow, &mutated)).unwrap();
    assert!(of_file(None, &file) != lines, "a mutated count went unnoticed");
}

#[test]
fn two_engines_side_by_side_are_each_the_engine_alone() {
    let (lines, dir) = evening().server.stop();
    let file = dir.path().join("export.ndjson");
    std::fs::write(&file, exported(dir.path())).unwrap();
    let (default, other) = (Config::default_config(), Config::parse("other.toml", &SHOP.replace("800ms", "3s").replace("1s", "4s")).unwrap());
    let sides = [Side { config: &default, given: false }, Side { config: &other, given: true }];
    let alone = of_file(Some(&other), &file);
    let opened = |lines: &str| -> Vec<String> {
        let values = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        values.filter(|l| l["event"] == "opened").map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    };
    let files = [file];
    for source in [Source::Log(dir.path()), Source::Files(&files)] {
        let runs = both(source, sides, &[], None, |_| (), |bad| panic!("{bad:?}")).unwrap();
        let ids = runs.each_ref().map(|run| run.episodes.iter().map(|e| e.id.clone()).collect::<Vec<_>>());
        assert_eq!(ids, [opened(&lines), opened(&alone)]);
        let told = runs.each_ref().map(|run| run.notified["oncall"].opened);
        assert!(told[0] >= 3 && told[0] > told[1], "{told:?}");
        let found = compare(&runs[0].episodes, &runs[1].episodes);
        assert_eq!(found.only_now.len() + found.changed.len() + found.alike.len(), ids[0].len());
    }
}

/// The archive of a server brings what was owed when its log begins; a configuration given by hand stays.
#[test]
fn a_configuration_given_by_hand_is_not_replaced_by_that_of_an_archive() {
    use slowburn::judge::{Promises, Record};
    let given = Config::parse("given.toml", SHOP).unwrap();
    let archived = || replay::Logged {
        delta: Record::Configured { at: START, promises: Promises::none(7_000), transitions: Vec::new(), notifications: Vec::new() }.into(),
        counted: false,
    };
    for (config, judge_after_ms) in [(Some(&given), given.promises.judge_after_ms), (None, 7_000)] {
        replayed(config, |replay| {
            replay.logged(&archived()).unwrap();
            assert_eq!(replay.machine().judge.promises().judge_after_ms, judge_after_ms);
        });
    }
}

#[test]
fn a_log_decided_again_decides_the_same() {
    let (_, dir) = evening().server.stop();
    let limits = Config::default_config().endpoint_limits;
    assert_eq!(slowburn::run::verify::redecide(dir.path(), limits).unwrap(), Vec::<String>::new());
    let report = slowburn::run::verify::verify(dir.path()).unwrap();
    assert_eq!(report.wrong, Vec::<String>::new());
    assert!(report.blocks > 0);
}

/// POST /orders of a shop whose six-digit ids run out: 35 requests an hour for 45 days. The instants at which each pair of windows first burns are those that a
/// naive evaluator in Python found on the same timings.
#[test]
fn the_shop_that_ran_out_of_ids_burns_when_the_reference_says() {
    let config = Config::parse(
        "shop.toml",
        "[[endpoint]]\nservice = \"shop\"\nmethod = \"POST\"\nroute = \"/orders\"\nobjectives = [{ latency = \"1000ms\", target = \"95%\", period = \"30d\" }]\n",
    )
    .unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/orders-running-out-of-ids.ndjson.gz");
    let said = of_file(Some(&config), &fixture);
    let first_firing = |long: &str| {
        let firing = |l: &serde_json::Value| l["evidence"]["windows"].as_array().unwrap().iter().any(|w| w["long"] == long && w["verdict"] == "firing");
        said.lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
            .filter(|l| l["kind"] == "burn")
            .find(firing)
            .map(|l| l["at"].as_i64().unwrap())
    };
    // What opens and what escalates is said at the instant itself; the pairs between are seen at the next line.
    assert_eq!(first_firing("3d"), Some(1_770_928_425_000));
    assert_eq!(first_firing("6h"), Some(1_771_198_015_000));
    let of = |kind: &str| said.lines().filter(|l| l.contains(kind)).map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()).collect::<Vec<_>>();
    let events = |kind: &str, event: &str| of(kind).iter().filter(|l| l["event"] == event).count();
    assert_eq!(events("\"kind\":\"burn\"", "opened"), 1, "one episode is one incident");
    assert!(!said.contains("\"event\":\"resolved\""));
    // The creep was told twelve days before, and the orders that were missing on the last evening.
    let creep = of("\"kind\":\"creep\"");
    assert!(creep[0]["event"] == "opened" && creep[0]["at"].as_i64().unwrap() < 1_770_928_425_000 - 12 * 86_400_000, "{}", creep[0]);
    assert_eq!(events("\"kind\":\"throughput\"", "opened"), 1);

    let first = naive::first_firing(&naive::read(&fixture), 1_000_000, 50_000_000, &config.promises.endpoints[0].promises[0].windows);
    assert_eq!(first, [1_771_319_555_000, 1_771_198_015_000, 1_771_136_925_000, 1_770_928_425_000], "as the reference evaluator found");
}

/// Windows that are short beside the gaps between requests, and one pair whose windows are alike.
const SHORT_WINDOWS: &str = r#"
[[burn_window]]
long = "10m"
short = "1m"
factor = 5
severity = "critical"

[[burn_window]]
long = "90m"
short = "90m"
factor = 1.5
severity = "warning"
"#;

/// Every line, on seeded streams with episodes, gaps and few requests: what is due is what is looked at. `SLOWBURN_SEEDS=N` tries more of them.
#[test]
fn what_is_looked_at_only_when_due_is_what_looking_always_finds() {
    let text = SHOP
        .replace("{ availability = true, target = \"99.9%\", period = \"30d\" },", "")
        .replace("thresholds = [{ quantile = \"95%\", over = \"1s\", window = \"10m\" }]", "");
    let configs = [text.clone(), text + SHORT_WINDOWS].map(|text| Config::parse("shop.toml", &text).unwrap());
    let seeds = std::env::var("SLOWBURN_SEEDS").map_or(6, |n| n.parse().unwrap());
    let mut lines = 0;
    for seed in 0..seeds {
        let config = &configs[seed as usize % 2];
        let promise = &config.promises.endpoints[0].promises[0];
        let timings = naive::stream(seed);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), naive::ndjson(&timings)).unwrap();
        let said: Vec<(i64, String, String)> = of_file(Some(config), file.path())
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
            .map(|l| (l["at"].as_i64().unwrap(), l["event"].as_str().unwrap().to_owned(), l["severity"].as_str().unwrap().to_owned()))
            .collect();
        let expected = naive::lines(&timings, 800_000, promise);
        let always = looking_always(config, &timings);
        for (a, b) in always.iter().zip(&expected) {
            assert_eq!(a, b, "looking always, seed {seed}");
        }
        lines += expected.len();
        for (a, b) in said.iter().zip(&expected) {
            assert_eq!(a, b, "seed {seed}");
        }
        assert_eq!(said.len(), expected.len(), "seed {seed}");
    }
    println!("{lines} lines over {seeds} seeds");
    assert!(lines > 20, "the streams burn");
}

#[test]
fn a_line_that_cannot_be_read_is_named_and_passed_over() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let good = |ms: i64| format!(r#"{{"ts":{},"service":"s","route":"/a","duration_ms":5}}"#, START.0 + ms);
    std::fs::write(file.path(), format!("{}\nnonsense\n\n{}\n{{\"service\":5}}\n", good(0), good(90_000_000))).unwrap();
    let (templates, known, mut out, mut bad) = (PathTemplates::default(), KnownEndpoints::default(), Vec::new(), Vec::new());
    let limits = Config::default_config().endpoint_limits;
    let mut replay = Replay::new(None, 15_000, limits, &templates, &known, Vec::new(), &mut out, |line| bad.push(line.number));
    replay.file(file.path(), |_| ()).unwrap();
    replay.finish(None).unwrap();
    assert_eq!((replay.timings, replay.bad, replay.endpoints()), (2, 2, 1));
    drop(replay);
    assert_eq!(bad, [2, 5]);
}

/// The engine made to look at every rule at every slot end.
fn looking_always(config: &Config, timings: &[naive::Timing]) -> Vec<(i64, String, String)> {
    use slowburn::ingest::admission::{Admission, PAST_MS, TimeLimits};
    let mut machine = slowburn::machine::Machine::new(config.promises.clone(), config.endpoint_limits);
    let (templates, known) = (PathTemplates::default(), KnownEndpoints::default());
    let mut lines = Vec::new();
    let mut rest = timings;
    let last = Slot::containing(Timestamp(timings.iter().map(|t| t.0).max().unwrap()));
    let mut slot = Slot::containing(Timestamp(timings[0].0));
    while slot <= last {
        let here = rest.partition_point(|t| t.0 < slot.end().0);
        let mut admission = Admission::new(&templates, &known, TimeLimits { now: slot.end(), past_ms: PAST_MS, future_ms: 0 });
        slowburn::ingest::json::read_ndjson(naive::ndjson(&rest[..here]).as_bytes(), &mut admission);
        rest = &rest[here..];
        let delta = machine.fold(&[&admission.finish()]);
        machine.apply(machine.position.next(), &delta);
        known.add(machine.catalogue.numbered_from(EndpointId(0)));
        machine.judge.refresh();
        let closed = machine.close(slot);
        machine.apply(machine.position.next(), &closed);
        for record in closed.records {
            let slowburn::judge::Record::SlotClosed(closed) = record else { continue };
            lines.extend(closed.transitions.iter().map(|t| (t.at.0, t.event.name().to_owned(), t.severity.name().to_owned())));
        }
        slot = slot.next();
    }
    lines
}
