//! Bad input: each gets its answer, is counted under its outcome, and leaves everything else intact.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Shutdown;

use serde_json::json;

use crate::server::{Answer, Server, now_ms};
use crate::timings::{gzip, zstd};

const GOOD: &str = r#"{"service":"shop","route":"/good","duration_ms":1}"#;

#[test]
fn each_bad_timing_gets_its_reason_and_its_outcome_and_the_good_ones_around_it_count() {
    let server = Server::start("", &[]);
    let (now, year_ms) = (now_ms(), 365 * 86_400_000_i64);
    let long = "a".repeat(5_000);
    let cases: Vec<(String, &str, &str)> = [
        (r#"{"service":"shop","route":"/a""#.to_owned(), "EOF", "malformed"),
        (r#"{"service":5,"route":"/a","duration_ms":1}"#.to_owned(), "invalid type", "malformed"),
        (r#"{"service":"shop","route":["/a"],"duration_ms":1}"#.to_owned(), "invalid type", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":"fast"}"#.to_owned(), "invalid type", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":NaN}"#.to_owned(), "expected", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":-1}"#.to_owned(), "0 to 7 days", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":-0.001}"#.to_owned(), "0 to 7 days", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_s":604800.1}"#.to_owned(), "0 to 7 days", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_s":1e300}"#.to_owned(), "0 to 7 days", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_s":1e999}"#.to_owned(), "out of range", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"duration_s":1}"#.to_owned(), "exactly one", "malformed"),
        (r#"{"service":"shop","route":"/a"}"#.to_owned(), "exactly one", "malformed"),
        (r#"{"service":"shop","route":"","duration_ms":1}"#.to_owned(), "`route` is required", "malformed"),
        (r#"{"service":"","route":"/a","duration_ms":1}"#.to_owned(), "`service` is required", "malformed"),
        (r#"{"service":"shop","duration_ms":1}"#.to_owned(), "`route` and `path`", "malformed"),
        (format!(r#"{{"service":"shop","route":"/{long}","duration_ms":1}}"#), "512 bytes", "malformed"),
        (format!(r#"{{"service":"shop","path":"/{long}","duration_ms":1}}"#), "512 bytes", "malformed"),
        (r#"{"service":"shop","route":"/a\nb","duration_ms":1}"#.to_owned(), "control character", "malformed"),
        (r#"{"service":"sh\u0000op","route":"/a","duration_ms":1}"#.to_owned(), "control character", "malformed"),
        (r#"{"service":"shop","route":"/a","env":"\u009f","duration_ms":1}"#.to_owned(), "control character", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"status":99}"#.to_owned(), "100 to 599", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"status":600}"#.to_owned(), "100 to 599", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"outcome":"fine"}"#.to_owned(), "expected ok", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"weight":0}"#.to_owned(), "`weight`", "malformed"),
        (r#"{"service":"shop","route":"/a","values_us":[[1,-1]]}"#.to_owned(), "invalid value", "malformed"),
        (r#"{"service":"shop","route":"/a","hdr":"HISTFAAA"}"#.to_owned(), "`hdr`", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"ts":"yesterday"}"#.to_owned(), "RFC 3339", "malformed"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"ts":true}"#.to_owned(), "RFC 3339", "malformed"),
        (format!(r#"{{"service":"shop","route":"/a","duration_ms":1,"ts":{}}}"#, now - year_ms), "before the server's clock", "late"),
        (format!(r#"{{"service":"shop","route":"/a","duration_ms":1,"ts":{}}}"#, now - 86_400_000 - 60_000), "before the server's clock", "late"),
        (format!(r#"{{"service":"shop","route":"/a","duration_ms":1,"ts":{}}}"#, now + year_ms), "ahead of the server's clock", "early"),
        (format!(r#"{{"service":"shop","route":"/a","duration_ms":1,"ts":{}}}"#, now + 180_000), "ahead of the server's clock", "early"),
        (r#"{"service":"shop","route":"/a","duration_ms":1,"ts":1e300}"#.to_owned(), "ahead of the server's clock", "early"),
    ]
    .into();
    let mut body = String::new();
    for (line, _, _) in &cases {
        writeln!(body, "{GOOD}\n{line}").unwrap();
    }
    let answer = server.send_ndjson(body.as_bytes()).taken(cases.len() as u64, cases.len() as u64);
    for (n, (line, reason, _)) in cases.iter().enumerate() {
        let error = &answer["errors"][n];
        assert_eq!(error["index"], 2 * n + 1, "{line}");
        assert!(error["reason"].as_str().unwrap().contains(reason), "{line}: {error}");
    }
    for outcome in ["malformed", "late", "early"] {
        assert_eq!(server.fate(outcome), cases.iter().filter(|c| c.2 == outcome).count() as u64, "{outcome}");
    }
    let list = server.get("/api/v1/endpoints");
    assert_eq!(list["endpoints"].as_array().unwrap().len(), 1, "nothing but the good endpoint: {list}");
    assert_eq!(server.requests("shop"), cases.len() as u64);
    // As an array, a broken element breaks the whole.
    server.send(&[], &format!("[{GOOD},{}]", cases[4].0)).refused(400, "nothing of it was applied");
    server.send(&[], "").refused(400, "EOF");
    server.send(&[], &"[".repeat(100_000)).refused(400, "not a JSON array");
    assert_eq!(server.requests("shop"), cases.len() as u64);
}

#[test]
fn counts_and_weights_as_large_as_they_may_be_end_at_the_largest_number() {
    let server = Server::start("", &[]);
    let pairs = vec!["[604800000000,1000000000]"; 30_000].join(",");
    server.send(&[], &format!(r#"{{"service":"big","route":"/a","weight":1000000,"values_us":[{pairs}]}}"#)).taken(1, 0);
    server.send(&[], GOOD).taken(1, 0);
    assert_eq!((server.requests("big"), server.requests("shop")), (u64::MAX, 1));
    assert_eq!(server.request("GET", "/metrics", &[], b"").status, 200);
}

/// One frame of blocks that each say "128 KiB of spaces" in 4 bytes.
fn zstd_bomb(head: &[u8], bytes: usize) -> Vec<u8> {
    const BLOCK: usize = 128 << 10;
    let mut frame = [&[0x28, 0xb5, 0x2f, 0xfd], head].concat();
    let blocks = bytes.div_ceil(BLOCK);
    for n in 0..blocks {
        let header = (BLOCK << 3) | (1 << 1) | usize::from(n + 1 == blocks);
        frame.extend_from_slice(&u32::try_from(header).unwrap().to_le_bytes()[..3]);
        frame.push(b' ');
    }
    frame
}

#[test]
fn a_body_that_unpacks_to_too_much_is_refused_before_it_fills_the_memory() {
    let server = Server::start("", &[]);
    server.send(&[], GOOD).taken(1, 0);
    let huge = 200_000_000;
    let post =
        |encoding: &str, body: &[u8]| server.request("POST", "/api/v1/timings", &[("Content-Type", "application/json"), ("Content-Encoding", encoding)], body);
    let spaces = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        for _ in 0..huge / 100_000 {
            encoder.write_all(&[b' '; 100_000]).unwrap();
        }
        encoder.finish().unwrap()
    };
    let small_window = zstd_bomb(&[0x00, 0x58], huge);
    assert!(small_window.len() < 7_000, "200 MB out of {} bytes", small_window.len());
    let before = server.resident_kib();
    post("zstd", &small_window).refused(413, "16777216 bytes");
    post("gzip", &spaces).refused(413, "16777216 bytes");
    // Heads that ask for 200 MB and for 128 MiB at once.
    post("zstd", &zstd_bomb(&[&[0xa0][..], &u32::try_from(huge).unwrap().to_le_bytes()].concat(), huge)).refused(413, "16777216 bytes");
    post("zstd", &zstd_bomb(&[0x00, 0x88], huge)).refused(400, "window");
    server.send(&[], &" ".repeat((16 << 20) + 1)).refused(413, "16777216 bytes");
    let grown = server.resident_kib().saturating_sub(before);
    println!("5 bombs: the server grew by {} MiB", grown >> 10);
    assert!(grown < 64 << 10, "the server grew by {grown} KiB");
    server.expect_fate("malformed", 5);
    server.send(&[], GOOD).taken(1, 0);
    assert_eq!(server.requests("shop"), 2);
}

#[test]
fn a_body_that_is_cut_off_is_refused_and_nothing_of_it_is_applied() {
    let server = Server::start("", &[]);
    let lines = format!("{GOOD}\n").repeat(20);
    let head =
        |more: &str| format!("POST /api/v1/timings HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/x-ndjson\r\n{more}\r\n\r\n", server.port());
    let cut = |head: String, body: &str| {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        Answer::read(&mut stream)
    };
    cut(head(&format!("Content-Length: {}", lines.len() + 1)), &lines).refused(400, "nothing of it was applied");
    cut(head("Transfer-Encoding: chunked"), &format!("{:x}\r\n{lines}\r\n", lines.len())).refused(400, "nothing of it was applied");
    cut(head("Transfer-Encoding: chunked"), &format!("{:x}\r\n{lines}", lines.len() + 10)).refused(400, "nothing of it was applied");
    for (encoding, packed) in [("gzip", gzip(lines.as_bytes())), ("zstd", zstd(lines.as_bytes()))] {
        let headers = [("Content-Type", "application/x-ndjson"), ("Content-Encoding", encoding)];
        for keep in [packed.len() - 1, packed.len() / 2, 3] {
            server.request("POST", "/api/v1/timings", &headers, &packed[..keep]).refused(400, "nothing of it was applied");
        }
        server.request("POST", "/api/v1/timings", &headers, &[&packed[..], b"more"].concat()).refused(400, "nothing of it was applied");
    }
    server.send(&[], &format!("[{GOOD},{GOOD}")).refused(400, "nothing of it was applied");
    assert_eq!(server.requests("shop"), 0);
    server.expect_fate("malformed", 3 + 8 + 1);
    cut(head(&format!("Content-Length: {}", lines.len())), &lines).taken(20, 0);
}

#[test]
fn a_hundred_thousand_routes_leave_critical_endpoints_alone_and_every_count_is_kept() {
    const ROUTES: usize = 100_000;
    const BATCH: usize = 5_000;
    let config = "[[endpoint]]\nservice = 'shop'\nmethod = 'POST'\nroute = '/orders'\nobjectives = [{ latency = '800ms', target = '99%' }]\n";
    let server = Server::start(config, &[]);
    let critical = r#"{"service":"shop","method":"POST","route":"/orders","duration_ms":100}"#;
    let known = r#"{"service":"shop","method":"GET","route":"/known","duration_ms":5}"#;
    server.send(&[], &format!("[{known}]")).taken(1, 0);
    let before = server.resident_kib();
    let mut sent = 1;
    for batch in 0..ROUTES / BATCH {
        let mut body = format!("{critical}\n{known}\n");
        for n in 0..BATCH {
            writeln!(body, r#"{{"service":"shop","method":"GET","route":"/r/{}","duration_ms":7}}"#, batch * BATCH + n).unwrap();
        }
        server.send_ndjson(body.as_bytes()).taken(BATCH as u64 + 2, 0);
        sent += BATCH as u64 + 2;
    }
    let grown = server.resident_kib().saturating_sub(before);
    println!("{ROUTES} routes of one service: the server grew by {} MiB", grown >> 10);
    assert!(grown < 128 << 10, "the server grew by {grown} KiB");
    let list = server.get("/api/v1/endpoints?service=shop");
    let list = list["endpoints"].as_array().unwrap();
    let one = |route: &str| list.iter().find(|e| e["route"] == route).unwrap();
    assert!(list.len() <= 5_002, "{} endpoints", list.len());
    assert_eq!(one("/orders")["requests"], ROUTES / BATCH);
    assert_eq!(one("/orders")["critical"], true);
    assert_eq!(one("/known")["requests"], ROUTES / BATCH + 1);
    assert_eq!(server.requests("shop"), sent, "no count is lost");
    let other = one("(other)")["requests"].as_u64().unwrap();
    assert_eq!((server.fate("over_limit"), server.fate("accepted") + server.fate("late")), (other, sent - other));
    let counts = server.get(&format!("/api/v1/counts?service=shop&method=POST&route=/orders&threshold=800ms&to={}", now_ms() + 60_000));
    assert_eq!((&counts["good"], &counts["total"]), (&json!(ROUTES / BATCH), &json!(ROUTES / BATCH)));
}
