//! One flipped bit anywhere in a data directory: the answers are the same (rebuilt, or read from elsewhere), or an error names the file. Never other answers, never a hang.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use slowburn::run::repair;
use slowburn::time::Timestamp;

use crate::common::{Chance, DAY, HOUR, LIMITS, MINUTE, Server, copy, folder};
use crate::data_dir::{DataDir, RETENTION, SEGMENT_BYTES, batch, wrong};
use crate::extent;

/// More than any start takes, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Two days, so that there is an archive; ends as a crash would, some frames after a snapshot.
fn build(dir: &Path, chance: &mut Chance) -> Timestamp {
    let mut data = DataDir::new(dir);
    for number in 0..150_u128 {
        data.now = data.now.plus_ms(if number == 75 { 27 * HOUR } else { 2_000 });
        let new = batch(chance, number + 1, data.now);
        data.stage(new.delta);
        data.commit().unwrap();
        if data.close_due().unwrap() {
            data.checkpoint().unwrap();
        }
    }
    data.now
}

fn questions(now: Timestamp) -> Vec<String> {
    let (to, q) = (now.0 + MINUTE, "q=0,0.5,0.99,1");
    let mut all: Vec<String> = ["endpoints", "objectives", "incidents", "silences", "markers"].iter().map(|what| format!("/api/v1/{what}")).collect();
    for route in 0..5 {
        let one = format!("service=shop&method=GET&route=/{route}");
        all.push(format!("/api/v1/quantiles?{one}&from={}&to={to}&{q}", to - 3 * DAY));
        all.push(format!("/api/v1/quantiles?{one}&from={}&to={to}&step=1h&{q}", to - 2 * DAY));
        all.push(format!("/api/v1/quantiles?{one}&from={}&to={}&step=1m&{q}", to - 28 * HOUR, to - 26 * HOUR));
        all.push(format!("/api/v1/counts?{one}&from={}&to={to}&threshold=100ms", to - 3 * DAY));
    }
    all
}

type Answers = Vec<(String, bool, String)>;

fn answers(server: &Server, now: Timestamp) -> Answers {
    let ask = |uri: &String| {
        let (status, body) = server.call(Request::get(uri).body(Body::empty()).unwrap());
        (uri.clone(), status.is_success(), body)
    };
    let mut all: Answers = questions(now).iter().map(ask).collect();
    let keys = server.look(|m| m.keys.keys().iter().map(|(k, a)| (*k, format!("{a:?}"))).collect::<BTreeMap<_, _>>());
    all.push(("keys".into(), true, format!("{keys:?}")));
    all
}

fn start_and_ask(dir: &Path, now: Timestamp) -> Result<Answers, String> {
    let (done, outcome) = channel();
    let of = dir.to_owned();
    std::thread::spawn(move || {
        let asked = Server::try_start(&of, RETENTION, SEGMENT_BYTES, now).map_err(|e| e.to_string()).map(|server| {
            let answers = answers(&server, now);
            drop(server.end());
            answers
        });
        done.send(asked).ok();
    });
    outcome.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("{}: no answer ({e})", dir.display()))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

/// Where the last write to the log begins: what is torn there cannot be told from what was acknowledged.
fn last_write(dir: &Path) -> (PathBuf, u64) {
    let (_, path) = slowburn::log::file::segments(&dir.join("log")).unwrap().pop().unwrap();
    let bytes = fs::read(&path).unwrap();
    let (mut at, mut begins) = (16, 16);
    while let slowburn::log::record::Decoded::Frame(frame, len) = slowburn::log::record::decode(&bytes[at..]) {
        if slowburn::log::record::decode_head(&bytes[at..]).unwrap().synced_before == frame.position {
            begins = at;
        }
        at += len;
    }
    (path, begins as u64)
}

#[derive(Debug, Default)]
struct Outcomes {
    same: u64,
    refused: u64,
    error_answers: u64,
    torn: u64,
    verified: u64,
}

#[test]
fn one_flipped_bit_is_detected_or_repaired_and_never_another_answer() {
    let mut chance = Chance::seeded("flipped bit", 3);
    let dir = folder();
    let now = build(dir.path(), &mut chance);
    let (last_path, last_begins) = last_write(dir.path());
    let undamaged = {
        let copied = folder();
        copy(dir.path(), copied.path());
        start_and_ask(copied.path(), now).unwrap()
    };
    assert!(undamaged.iter().all(|(_, good, _)| *good), "{undamaged:?}");
    let mut by_kind: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files(dir.path()).into_iter().filter(|p| p.file_name().unwrap() != "lock" && fs::metadata(p).unwrap().len() > 0) {
        let kind = path.strip_prefix(dir.path()).unwrap().components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
        by_kind.entry(kind).or_default().push(path);
    }
    assert_eq!(by_kind.keys().collect::<Vec<_>>(), ["archive", "history", "index", "log", "snapshots"]);
    let each = extent(200, 2_000) / by_kind.len() as u64;
    for (kind, paths) in &by_kind {
        let mut outcomes = Outcomes::default();
        for number in 0..each {
            let path = &paths[chance.below(paths.len() as u64) as usize];
            let damaged = folder();
            copy(dir.path(), damaged.path());
            let target = damaged.path().join(path.strip_prefix(dir.path()).unwrap());
            let mut bytes = fs::read(&target).unwrap();
            let (at, bit) = (chance.below(bytes.len() as u64), chance.below(8));
            bytes[at as usize] ^= 1 << bit;
            fs::write(&target, &bytes).unwrap();
            let rebuilds = matches!(kind.as_str(), "archive" | "history" | "log") && number % 2 == 0;
            if rebuilds {
                fs::remove_dir_all(damaged.path().join("index")).unwrap();
                fs::remove_dir_all(damaged.path().join("snapshots")).unwrap();
            }
            let what = format!("{} byte {at} of {} bit {bit}, rebuilt: {rebuilds}", path.strip_prefix(dir.path()).unwrap().display(), bytes.len());
            let is_last = *path == last_path && at >= last_begins;
            let found = wrong(damaged.path());
            outcomes.verified += u64::from(!found.is_empty());
            if matches!(kind.as_str(), "archive" | "log") && !is_last {
                assert!(!found.is_empty(), "{what}: verify finds nothing");
            }
            let name = target.file_name().unwrap().to_str().unwrap().to_owned();
            match start_and_ask(damaged.path(), now) {
                Err(error) if kind == "log" || kind == "archive" => {
                    assert!(error.contains(&name) && error.contains("slowburn repair --accept-loss"), "{what}: {error}");
                    outcomes.refused += 1;
                }
                Err(error) => {
                    assert!(error.contains(&name), "{what}: {error}");
                    outcomes.refused += 1;
                }
                Ok(answers) if answers == undamaged => outcomes.same += 1,
                Ok(_) if is_last => outcomes.torn += 1,
                Ok(answers) => {
                    let silent: Vec<_> = answers.iter().zip(&undamaged).filter(|(is, was)| is.1 && is != was).collect();
                    assert!(silent.is_empty(), "{what}: {silent:?}; verify: {found:?}");
                    outcomes.error_answers += 1;
                }
            }
        }
        println!("flipped bit: {each} in {kind}: {outcomes:?}");
        assert!(outcomes.same + outcomes.refused + outcomes.error_answers + outcomes.torn == each);
    }
}

#[derive(Debug, Default)]
struct Repaired {
    needed: u64,
    without_index: u64,
    marks: u64,
    from_log: u64,
    from_finer: u64,
    cut: u64,
    unknown: u64,
    all_as_before: u64,
    answers_incomplete: u64,
}

/// Without losses every answer is as before; with losses each that is not says that it is incomplete.
#[test]
fn damaged_history_is_repaired_and_what_is_lost_is_said_in_the_answers() {
    let mut chance = Chance::seeded("repair", 5);
    let dir = folder();
    let now = build(dir.path(), &mut chance);
    let undamaged = {
        let copied = folder();
        copy(dir.path(), copied.path());
        start_and_ask(copied.path(), now).unwrap()
    };
    let paths: Vec<PathBuf> = files(&dir.path().join("history")).into_iter().filter(|p| fs::metadata(p).unwrap().len() > 0).collect();
    let mut seen = Repaired::default();
    let rounds = extent(60, 1_000);
    for number in 0..rounds {
        let damaged = folder();
        copy(dir.path(), damaged.path());
        let mut flipped = Vec::new();
        for _ in 0..=chance.below(3) {
            let target = damaged.path().join(paths[chance.below(paths.len() as u64) as usize].strip_prefix(dir.path()).unwrap());
            let mut bytes = fs::read(&target).unwrap();
            // The last 16 bytes are a mark, and few.
            let from = if number % 8 == 7 { bytes.len() as u64 - 16 } else { 0 };
            let (at, bit) = (from + chance.below(bytes.len() as u64 - from), chance.below(8));
            bytes[at as usize] ^= 1 << bit;
            fs::write(&target, &bytes).unwrap();
            flipped.push((target, at, bit));
        }
        let what = format!("round {number}: {flipped:?}");
        if number % 3 == 0 {
            seen.without_index += 1;
            fs::remove_dir_all(damaged.path().join("index")).unwrap();
        }
        let before: BTreeMap<PathBuf, Vec<u8>> = files(&damaged.path().join("history")).into_iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect();
        let repair = repair::look(damaged.path()).unwrap();
        assert!(before.iter().all(|(path, bytes)| fs::read(path).unwrap() == *bytes), "{what}: looking changes nothing");
        let lines = repair.lines().join("\n");
        let aside = if repair.is_needed() { repair.run(LIMITS, RETENTION, now).unwrap() } else { Vec::new() };
        for path in &aside {
            // Under its old name, to the last byte.
            assert!(before.iter().any(|(p, b)| path.to_str().unwrap().starts_with(p.to_str().unwrap()) && fs::read(path).unwrap() == *b), "{what}");
        }
        let lost = repair.losses().count();
        seen.needed += u64::from(repair.is_needed());
        seen.marks += u64::from(lines.contains("damaged marks") && !lines.contains(" 0 damaged marks"));
        seen.from_log += u64::from(lines.contains("from the log"));
        seen.from_finer += u64::from(lines.contains("rolled up again"));
        seen.cut += u64::from(lines.contains("keeps its rows"));
        seen.unknown += u64::from(lines.contains("of any endpoint"));
        assert_eq!(wrong(damaged.path()), Vec::<String>::new(), "{what}\n{lines}");
        let answers = start_and_ask(damaged.path(), now).unwrap_or_else(|e| panic!("{what}: {e}\n{lines}"));
        let mut as_before = true;
        for (is, was) in answers.iter().zip(&undamaged) {
            assert!(is.1, "{what}: {is:?}\n{lines}");
            let says_so = is.2.contains("\"incomplete\"");
            assert!(is == was || (says_so && lost > 0), "{what}: {is:?}\nwas {was:?}\n{lines}");
            as_before &= is == was;
            seen.answers_incomplete += u64::from(says_so);
        }
        seen.all_as_before += u64::from(as_before);
        assert!(!repair::look(damaged.path()).unwrap().is_needed(), "{what}: repaired once is repaired");
    }
    println!("repair: {rounds} times 1 to 3 flipped bits of history, {seen:?}");
    assert!(seen.needed > rounds / 2 && seen.from_log > 0 && seen.from_finer > 0 && seen.cut > 0 && seen.answers_incomplete > 0, "{seen:?}");
}
