//! `slowburn replay --compare`: the built program on a small recording, with two configurations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const START: i64 = 1_767_571_200_000;
const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

const NOW: &str = r#"
false_alarms = "0.001 per endpoint-month"

[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "2s", target = "99%", period = "30d" }]

[[receiver]]
name = "oncall"
email = { to = ["oncall@example.com"], from = "slowburn@example.com", smtp = "smtp://127.0.0.1:25" }
"#;

/// Seven weeks of an endpoint: one evening half of its requests take 1.2 s, and in the fourth week it begins to creep.
fn recording() -> String {
    let (mut text, mut random) = (String::new(), 7_u64);
    for at in (0..50 * DAY).step_by(usize::try_from(4 * MINUTE).unwrap()) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (noise, crept) = (random >> 59, u64::try_from((at - 30 * DAY).max(0) / (DAY / 2)).unwrap());
        let bad_evening = (20 * DAY..20 * DAY + 120 * MINUTE).contains(&at) && random >> 63 == 1;
        let ms = if bad_evening { 1_200 } else { 100 + 3 * noise + 2 * crept };
        writeln!(text, r#"{{"ts":{},"service":"shop","env":"prod","method":"POST","route":"/orders","status":201,"duration_ms":{ms}}}"#, START + at).unwrap();
    }
    text
}

fn replay(dir: &Path, arguments: &[&str], input: Option<&Path>) -> Output {
    let stdin = input.map_or_else(Stdio::null, |path| std::fs::File::open(path).unwrap().into());
    Command::new(env!("CARGO_BIN_EXE_slowburn")).arg("replay").args(arguments).current_dir(dir).stdin(stdin).output().unwrap()
}

fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn two_configurations_are_compared_over_one_recording() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("now.toml"), NOW).unwrap();
    std::fs::write(dir.join("next.toml"), NOW.replace("2s", "1s").replace("0.001 per", "0.3 per")).unwrap();
    std::fs::write(dir.join("t.ndjson"), recording()).unwrap();

    let arguments = ["--config", "now.toml", "--compare", "next.toml", "t.ndjson"];
    let report = printed(&replay(dir, &arguments, None));
    println!("{report}");
    let lines: Vec<&str> = report.lines().collect();
    assert!(lines.iter().all(|l| l.chars().count() <= 100), "{report}");
    assert!(lines[0].starts_with('+') && lines[0].contains(" earlier (median of those told at another time)"), "{report}");
    let line = |mark: char, kind: &str| lines.iter().find(|l| l.starts_with(mark) && l.contains(kind)).is_some_and(|l| l.contains("POST /orders (shop, prod)"));
    assert!(line('+', "burn latency") && line('~', "creep"), "{report}");
    let in_one_line = report.replace('\n', " ");
    assert!(report.contains("\noncall ") && in_one_line.contains("oncall gets ") && !report.contains('\u{1b}'), "{report}");

    let from_stdin = ["--config", "now.toml", "--compare", "next.toml", "-"];
    assert_eq!(printed(&replay(dir, &from_stdin, Some(&dir.join("t.ndjson")))), report);

    // The other way round the burn is missing and the creep is told later.
    let back = printed(&replay(dir, &["--config", "next.toml", "--compare", "now.toml", "t.ndjson"], None));
    assert!(back.lines().any(|l| l.starts_with('-') && l.contains("burn latency")) && back.lines().next().unwrap().contains(" later "), "{back}");

    let json = printed(&replay(dir, &[&arguments[..], &["--json"]].concat(), None));
    let objects: Vec<Value> = json.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let added = objects.iter().filter(|o| o["difference"] == "added" && o["next"]["kind"] == "burn").count();
    let told_earlier = |o: &&Value| o["difference"] == "changed" && o["opened_later_ms"].as_i64().is_some_and(|ms| ms < 0);
    assert!(added == 1 && objects.iter().any(|o| told_earlier(&o)), "{json}");

    // Each run is what a replay of its own says, and a configuration does not differ from itself.
    let opened = |config: &str| printed(&replay(dir, &["--config", config, "t.ndjson"], None)).matches("\"event\":\"opened\"").count();
    let alone = i64::try_from(opened("next.toml")).unwrap() - i64::try_from(opened("now.toml")).unwrap();
    let count = |difference: &str| i64::try_from(objects.iter().filter(|o| o["difference"] == difference).count()).unwrap();
    assert_eq!(count("added") - count("removed"), alone);
    let same = printed(&replay(dir, &["--config", "now.toml", "--compare", "now.toml", "t.ndjson"], None));
    assert!(same.starts_with("+0 -0 incidents, ") && same.contains("Both say the same"), "{same}");
}

#[test]
fn a_bad_line_is_told_once_and_a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("c.toml"), NOW).unwrap();
    std::fs::write(dir.join("t.ndjson"), format!("nonsense\n{}", recording().lines().next().unwrap())).unwrap();
    let output = replay(dir, &["--compare", "c.toml", "t.ndjson"], None);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.matches("t.ndjson:1: ").count()), (Some(1), 1), "{said}");
    assert!(said.contains("1 lines could not be read"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("Neither configuration says anything."));
    for (arguments, code, part) in [
        (&["--compare", "c.toml", "none.ndjson"][..], 1, "none.ndjson"),
        (&["--compare", "no.toml", "t.ndjson"], 2, "no.toml"),
        (&["--compare", "c.toml", "--log", "nowhere"], 1, "nowhere holds no log"),
        (&["--json", "t.ndjson"], 2, "--compare"),
    ] {
        let output = replay(dir, arguments, None);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(part), "{said}");
    }
}
