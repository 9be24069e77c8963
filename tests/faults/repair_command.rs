//! `slowburn repair` as a person runs it.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::server::{Connection, Server, get, wait_until};

#[test]
fn repair_says_what_it_would_do_and_does_it_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (config, data) = (dir.path().join("slowburn.toml"), dir.path().join("data"));
    fs::write(&config, "judge_after = \"1s\"\nsnapshot_every = \"1s\"\n").unwrap();
    let repair = |more: &[&str]| Command::new(env!("CARGO_BIN_EXE_slowburn")).args(["repair", "--data-dir"]).arg(&data).args(more).output().unwrap();
    assert_eq!(repair(&[]).status.code(), Some(1), "there is no history");
    let mut server = Server::start(&config, &data, &[]);
    let address = server.wait_listening();
    let body = r#"{"service":"s","route":"/a","status":200,"duration_ms":5,"ts":TS}"#;
    let late = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() - 90_000;
    let mut connection = Connection::open(address).unwrap();
    connection.send("POST", "/api/v1/timings", "Content-Type: application/x-ndjson\r\n", &body.replace("TS", &late.to_string())).unwrap();
    assert_eq!(connection.receive().unwrap().0, 200);
    // With the snapshot comes the mark that says it was synced: what is behind the last one is torn, not damaged.
    let history = || {
        fs::read_dir(data.join("snapshots")).ok()?.find_map(|e| e.ok().filter(|e| e.path().extension().is_some_and(|x| x == "snapshot")))?;
        fs::read_dir(data.join("history/minute")).ok()?.next()?.ok().map(|e| e.path())
    };
    let path = wait_until(Duration::from_secs(30), history).expect("history is written");
    drop(server);
    let counts = |address| get(address, "/api/v1/counts?service=s&threshold=1s&from=0")["total"].clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[12] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let output = repair(&[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!((output.status.code(), fs::read(&path).unwrap()), (Some(1), bytes.clone()), "{text}");
    assert!(text.contains("--yes"), "{text}");
    let output = repair(&["--yes"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let aside = path.with_extension("history.damaged-1");
    assert_eq!((output.status.code(), fs::read(&aside).unwrap()), (Some(0), bytes), "{text}");
    let mut server = Server::start(&config, &data, &[]);
    assert_eq!(counts(server.wait_listening()), 1, "{text}");
}
