//! Timings in: forms, encodings, errors by place, repeats.

use std::io::Write as _;
use std::time::Duration;

use serde_json::json;

use crate::proto::encode;
use crate::server::{Server, now_ms, within};

const ONE: &str = r#"{"service":"shop","method":"POST","route":"/orders","status":201,"duration_ms":182.4}"#;

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn one_object_an_array_and_lines_are_taken_and_can_be_read_within_a_second() {
    let server = Server::start("", &[]);
    server.send(&[], ONE).taken(1, 0);
    server.send(&[], &format!("[{ONE},{ONE}]")).taken(2, 0);
    server.send_ndjson(format!("{ONE}\n\n{ONE}\n").as_bytes()).taken(2, 0);
    let path = format!("/api/v1/quantiles?service=shop&route=/orders&from={}&to={}", now_ms() - 60_000, now_ms() + 60_000);
    within(Duration::from_secs(1), "5 timings can be read", || server.get(&path)["points"][0]["count"] == 5);
    let p50 = server.get(&path)["points"][0]["values"]["0.5"].as_f64().unwrap();
    assert!((p50 / 0.1824 - 1.0).abs() < 0.01, "{p50}");
    assert_eq!(server.fate("accepted"), 5);
}

#[test]
fn each_way_to_say_a_duration_an_outcome_and_an_endpoint_is_understood() {
    let server = Server::start("", &[]);
    let now = now_ms();
    let rfc = "\"ts\":\"".to_owned() + &slowburn_time(now) + "\"";
    for (service, line, count, failures) in [
        ("ms", r#""route":"/a","duration_ms":1000"#.to_owned(), 1, 0),
        ("s", r#""route":"/a","duration_s":1"#.to_owned(), 1, 0),
        ("us", r#""route":"/a","duration_us":1000000"#.to_owned(), 1, 0),
        ("values", r#""route":"/a","values_us":[[1000000,3],[1000000,2]]"#.to_owned(), 5, 0),
        ("weight", r#""route":"/a","duration_s":1,"weight":10"#.to_owned(), 10, 0),
        ("both", r#""route":"/a","values_us":[[1000000,3]],"weight":10"#.to_owned(), 30, 0),
        ("ts", format!(r#""route":"/a","duration_s":1,"ts":{now}"#), 1, 0),
        ("rfc", format!(r#""route":"/a","duration_s":1,{rfc}"#), 1, 0),
        ("error", r#""route":"/a","duration_s":1,"status":503"#.to_owned(), 1, 1),
        ("client", r#""route":"/a","duration_s":1,"status":404"#.to_owned(), 1, 0),
        ("timeout", r#""route":"/a","duration_s":1,"outcome":"timeout"#.to_owned() + "\"", 1, 1),
        ("path", r#""path":"/orders/4711/lines/2","duration_s":1"#.to_owned(), 1, 0),
        ("detail", r#""route":"/a","duration_s":1,"trace_id":"t","actor":"ann","key":"k","stage":"start"#.to_owned() + "\"", 1, 0),
    ] {
        server.send(&[], &format!(r#"{{"service":"{service}",{line}}}"#)).taken(1, 0);
        let list = server.get(&format!("/api/v1/endpoints?service={service}"));
        let endpoint = &list["endpoints"][0];
        assert_eq!((endpoint["requests"].as_u64(), endpoint["failures"].as_u64()), (Some(count), Some(failures)), "{service}: {endpoint}");
        assert_eq!((&endpoint["kind"], &endpoint["env"], &endpoint["method"]), (&json!("http"), &json!(""), &json!("")));
        assert_eq!(endpoint["route"], if service == "path" { "/orders/{id}/lines/{id}" } else { "/a" });
        let point = &server.get(&format!("/api/v1/quantiles?service={service}&q=0.5&to={}", now + 60_000))["points"][0];
        assert!((point["values"]["0.5"].as_f64().unwrap() - 1.0).abs() < 0.01, "{service}: {point}");
    }
    server.send(&[], r#"{"in_flight":[{"service":"shop","route":"/orders","method":"POST","age_ms":31000,"n":4}]}"#).taken(0, 0);
}

fn slowburn_time(ms: i64) -> String {
    slowburn::time::Timestamp(ms).to_string().replace(" UTC", "Z").replacen(' ', "T", 1)
}

#[test]
fn packed_bodies_are_unpacked_and_other_types_and_encodings_are_told() {
    let server = Server::start("", &[]);
    let body = format!("[{ONE},{ONE}]");
    let post = |headers: &[(&str, &str)], body: &[u8]| server.request("POST", "/api/v1/timings", headers, body);
    let json = ("Content-Type", "application/json");
    post(&[json, ("Content-Encoding", "gzip")], &gzip(body.as_bytes())).taken(2, 0);
    post(&[json, ("Content-Encoding", "zstd")], &zstd(body.as_bytes())).taken(2, 0);
    let lines = ("Content-Type", "application/x-ndjson");
    let two = |pack: fn(&[u8]) -> Vec<u8>| [pack(format!("{ONE}\n").as_bytes()), pack(ONE.as_bytes())].concat();
    post(&[lines, ("Content-Encoding", "gzip")], &two(gzip)).taken(2, 0);
    post(&[lines, ("Content-Encoding", "zstd")], &two(zstd)).taken(2, 0);
    post(&[("Content-Type", "Application/JSON; charset=utf-8")], body.as_bytes()).taken(2, 0);
    assert_eq!(server.requests("shop"), 10);

    post(&[], body.as_bytes()).refused(415, "application/x-ndjson or application/x-protobuf");
    post(&[("Content-Type", "text/plain")], body.as_bytes()).refused(415, "text/plain");
    post(&[json, ("Content-Encoding", "br")], body.as_bytes()).refused(415, "expected gzip or zstd");
    post(&[json, ("Content-Encoding", "gzip")], body.as_bytes()).refused(400, "not gzip");
    post(&[json, ("Content-Encoding", "zstd")], body.as_bytes()).refused(400, "not zstd");
    post(&[json, ("Content-Encoding", "gzip")], b"").refused(400, "nothing of it was applied");
    assert_eq!(server.requests("shop"), 10);
    server.expect_fate("malformed", 6);
}

#[test]
fn a_binary_batch_is_taken_packed_or_plain_and_counts_once_under_its_key() {
    let server = Server::start("", &[]);
    let binary = ("Content-Type", "application/x-protobuf");
    let post = |headers: &[(&str, &str)], body: &[u8]| server.request("POST", "/api/v1/timings", headers, body);
    let body = encode(&json!({
        "endpoints": [{"service": "shop", "method": "POST", "route": "/orders"}, {"service": "shop", "path": "/orders/4711"}],
        "endpoint": [0, 1, 0, 0, 0],
        "duration_us": [182_400, 182_400, 182_400, 1_000_000_000_000_u64, 182_400],
        "outcome": ["OUTCOME_OK", "OUTCOME_TIMEOUT", "OUTCOME_OK", "OUTCOME_OK", "OUTCOME_OK"],
        "ts_delta_ms": [0, -20, 5, 0, 86_400_000],
        "details": [{"timing": 2, "trace_id": "t", "actor": "ann"}],
        "in_flight": [{"service": "shop", "route": "/orders", "method": "POST", "age_ms": 31_000, "n": 4}],
    }));
    let first = post(&[binary, ("Idempotency-Key", "k1")], &body).taken(3, 2);
    let places: Vec<_> = first["errors"].as_array().unwrap().iter().map(|e| e["index"].as_u64().unwrap()).collect();
    assert_eq!(places, [3, 4], "{first}");
    assert_eq!(post(&[binary, ("Idempotency-Key", "k1")], &body).taken(3, 2)["duplicate"], true);
    post(&[binary, ("Idempotency-Key", "k1")], &[]).refused(422, "another body");
    post(&[binary, ("Content-Encoding", "gzip")], &gzip(&body)).taken(3, 2);
    post(&[binary, ("Content-Encoding", "zstd")], &zstd(&body)).taken(3, 2);
    post(&[binary, ("Slowburn-Sender", "shop-1; epoch=7; seq=1")], &[]).taken(0, 0);
    assert_eq!(server.requests("shop"), 9);
    let list = server.get("/api/v1/endpoints?service=shop&route=/orders/{id}");
    assert_eq!((&list["endpoints"][0]["requests"], &list["endpoints"][0]["failures"]), (&json!(3), &json!(3)), "{list}");

    post(&[binary], &body[..body.len() - 1]).refused(400, "nothing of it was applied");
    post(&[binary], ONE.as_bytes()).refused(400, "not a batch of timings in protobuf");
    post(&[binary], &encode(&json!({"endpoint": [0], "duration_us": [1]}))).refused(400, "timing 0 is of endpoint 0");
    post(&[binary], &[0x0a, 0].repeat(1_000_000)).refused(413, "over 100000 endpoints");
    assert_eq!(server.requests("shop"), 9);
    assert_eq!((server.fate("accepted"), server.fate("early")), (9, 3));
}

#[test]
fn an_empty_batch_and_one_that_is_refused_line_by_line_are_answered_with_200() {
    let server = Server::start("", &[]);
    assert_eq!(server.send(&[], "[]").taken(0, 0), json!({"accepted": 0, "rejected": 0, "errors": []}));
    server.send_ndjson(b"").taken(0, 0);
    let bad = vec![r#"{"service":"shop"}"#; 150].join(",");
    let body = server.send(&[], &format!("[{bad}]")).taken(0, 150);
    let errors = body["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 100, "the first 100 are named");
    assert!(errors.iter().enumerate().all(|(at, e)| e["index"] == at && e["reason"].as_str().is_some_and(|r| r.contains("`route`"))), "{errors:?}");
    assert_eq!(server.fate("malformed"), 150);
}

#[test]
fn errors_name_the_place_in_the_array_or_the_line() {
    let server = Server::start("", &[]);
    let body = server.send(&[], &format!(r#"[{ONE},7,{ONE},{{"service":5}},["shop"],null]"#)).taken(2, 4);
    let places = |body: &serde_json::Value| body["errors"].as_array().unwrap().iter().map(|e| e["index"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(places(&body), [1, 3, 4, 5]);
    let body = server.send_ndjson(&[format!("{ONE}\n\n{{broken\n{ONE}\n").as_bytes(), b"\xff\xfe\n", ONE.as_bytes()].concat()).taken(3, 2);
    assert_eq!(places(&body), [2, 4], "lines count from 0, empty ones too");
    assert_eq!(server.requests("shop"), 5);
}

#[test]
fn a_key_counts_once_and_another_body_under_it_is_refused() {
    let server = Server::start("", &[]);
    let body = format!(r#"[{ONE},{{"service":"shop"}}]"#);
    let first = server.send(&[("Idempotency-Key", "k1")], &body).taken(1, 1);
    assert!(first.get("duplicate").is_none(), "{first}");
    let mut again = server.send(&[("Idempotency-Key", "k1")], &body).taken(1, 1);
    assert_eq!(again["duplicate"], true);
    again.as_object_mut().unwrap().remove("duplicate");
    assert_eq!(again, first, "the first answer");
    server.send(&[("Idempotency-Key", "k1")], &format!("[{ONE}]")).refused(422, "another body");
    server.send(&[("Idempotency-Key", "k2")], &body).taken(1, 1);
    server.send(&[("Idempotency-Key", "")], &body).refused(400, "1 to 128");
    server.send(&[("Idempotency-Key", &"k".repeat(129))], &body).refused(400, "1 to 128");
    assert_eq!(server.requests("shop"), 2);
    // The refused line of each batch that counted, one timing with another body's key, two bodies that were not read.
    server.expect_fate("malformed", 2 + 1 + 2);
    assert_eq!((server.fate("accepted"), server.fate("duplicate")), (2, 2), "of a repeat both lines were there before");

    let server = server.restart("");
    assert_eq!(server.send(&[("Idempotency-Key", "k1")], &body).taken(1, 1)["duplicate"], true, "known after kill -9");
    server.send(&[("Idempotency-Key", "k1")], "[]").refused(422, "another body");
    assert_eq!(server.requests("shop"), 2);
    assert!(server.fate("accepted") == 2 && server.fate("duplicate") == 4, "counters go on where they were");
}

#[test]
fn one_key_from_many_at_the_same_time_is_answered_to_all_and_counted_once() {
    let server = Server::start("", &[]);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| server.send(&[("Idempotency-Key", "race")], ONE).taken(1, 0))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|a| a.get("duplicate").is_none()).count(), 1, "{answers:?}");
    assert_eq!(server.requests("shop"), 1);
}

#[test]
fn a_sender_counts_its_batches_and_an_empty_one_is_its_heartbeat() {
    let server = Server::start("", &[]);
    let send = |header: &str, body: &str| server.send(&[("Slowburn-Sender", header)], body);
    send("shop-1; epoch=7; seq=1; dropped=0; uptime=5", ONE).taken(1, 0);
    assert_eq!(send("shop-1; epoch=7; seq=1; dropped=0; uptime=5", ONE).taken(1, 0)["duplicate"], true);
    send("shop-1; epoch=7; seq=2; dropped=3; uptime=15", "[]").taken(0, 0);
    send("shop-1; epoch=8; seq=1; dropped=0; uptime=1", ONE).taken(1, 0);
    send("shop-1; epoch=8; seq=1; dropped=0; uptime=1", "[]").refused(422, "another body");
    for bad in ["", "shop-1", "shop-1; epoch=x; seq=1", "shop-1; epoch=1", "; epoch=1; seq=1"] {
        send(bad, ONE).refused(400, "Slowburn-Sender");
    }
    assert_eq!(server.requests("shop"), 2);
    let senders = server.get("/api/v1/senders");
    let sender = &senders["senders"][0];
    assert_eq!(
        (&sender["id"], &sender["dropped"], &sender["uptime_s"], &sender["conflicts"]),
        (&json!("shop-1"), &json!(3), &json!(1), &json!(1)),
        "{senders}"
    );
    let services = sender["services"].clone();
    assert_eq!((services.as_array().unwrap().len(), &services[0]["service"]), (1, &json!("shop")), "{senders}");

    let server = server.restart("");
    assert_eq!(server.get("/api/v1/senders")["senders"][0]["services"], services);
    assert_eq!(server.send(&[("Slowburn-Sender", "shop-1; epoch=7; seq=1")], ONE).taken(1, 0)["duplicate"], true, "known after kill -9");
    assert_eq!(server.requests("shop"), 2);
}

#[test]
fn a_full_disk_is_told_and_nothing_is_taken() {
    let server = Server::start("[disk]\nfree_bytes_min = 4611686018427387904\n", &[]);
    let (mut answer, mut sent) = (server.send(&[], ONE), 1);
    within(Duration::from_secs(5), "the disk is seen to be full", || {
        answer = server.send(&[], ONE);
        sent += 1;
        answer.status != 200
    });
    answer.refused(507, "disk");
    assert!(answer.header("retry-after").is_some());
    let taken = server.requests("shop");
    server.send(&[], ONE).refused(507, "disk");
    assert_eq!(server.requests("shop"), taken);
    server.expect_fate("shed", sent + 1 - taken);
}
