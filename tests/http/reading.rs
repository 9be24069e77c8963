//! Reading: quantiles and counts against what was sent, what people decide, and errors in one form.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::server::{Server, now_ms};

const MINUTE: i64 = 60_000;

/// `n` timings in a minute of their own: 1 ms, 2 ms, …, those from `failed_from` on as failures.
fn minute(service: &str, start: i64, n: u64, failed_from: u64) -> String {
    (1..=n).fold(String::new(), |mut body, ms| {
        let status = if ms >= failed_from { 500 } else { 200 };
        writeln!(body, r#"{{"ts":{start},"service":"{service}","method":"GET","route":"/a","status":{status},"duration_ms":{ms}}}"#).unwrap();
        body
    })
}

fn near(value: &Value, seconds: f64) -> bool {
    value.as_f64().is_some_and(|v| (v / seconds - 1.0).abs() <= 0.01)
}

#[test]
fn quantiles_are_order_statistics_of_exactly_what_was_asked_for() {
    let server = Server::start("", &[]);
    let now = now_ms();
    let start = now / MINUTE * MINUTE - 10 * MINUTE;
    server.send_ndjson((minute("shop", start, 10, 9) + &minute("shop", start + MINUTE, 100, 1_000)).as_bytes()).taken(110, 0);
    server.send_ndjson(format!(r#"{{"ts":{start},"service":"shop","env":"prod","method":"PUT","route":"/b","duration_ms":500}}"#).as_bytes()).taken(1, 0);
    let ask = |more: &str| server.get(&format!("/api/v1/quantiles?service=shop&{more}"))["points"].as_array().unwrap().clone();
    let a = format!("method=GET&route=/a&from={start}&to={}", start + 2 * MINUTE);

    let points = ask(&format!("{a}&step=60s&q=0.5,0.51,0.1,0.95,1,0.950"));
    assert_eq!(points.len(), 2, "{points:?}");
    assert_eq!((&points[0]["from"], &points[0]["to"]), (&json!(start), &json!(start + MINUTE)));
    assert_eq!((&points[0]["count"], &points[0]["failures"], &points[1]["count"]), (&json!(10), &json!(2), &json!(100)));
    // Rank ⌈q·n⌉ of 1..=10 ms.
    for (q, ms) in [("0.5", 5.0), ("0.51", 6.0), ("0.1", 1.0), ("0.95", 10.0), ("1", 10.0), ("0.950", 10.0)] {
        assert!(near(&points[0]["values"][q], ms / 1e3), "{q}: {}", points[0]);
    }
    assert!(near(&points[1]["values"]["0.95"], 0.095), "{}", points[1]);

    let all = ask(&format!("{a}&q=0.5"));
    assert_eq!((all.len(), &all[0]["count"]), (1, &json!(110)), "one point without a step");
    for (outcome, count, ms) in [("ok", 108, None), ("failed", 2, Some(9.0)), ("", 110, None)] {
        let point = &ask(&format!("{a}&q=0.5&outcome={outcome}"))[0];
        assert_eq!((&point["count"], &point["failures"]), (&json!(count), &json!(2)), "{outcome}");
        assert!(ms.is_none_or(|ms: f64| near(&point["values"]["0.5"], ms / 1e3)), "{point}");
    }
    let merged = &ask(&format!("from={start}&to={}&q=1", start + 2 * MINUTE))[0];
    assert!(merged["count"] == 111 && near(&merged["values"]["1"], 0.5), "parts left out merge all that match: {merged}");
    assert_eq!(ask(&format!("env=prod&from={start}&to={}", start + MINUTE))[0]["count"], 1);
    assert_eq!(ask(&format!("env=&from={start}&to={}", start + MINUTE))[0]["count"], 10, "empty is a value");
    assert_eq!(ask(&format!("env=none&from={start}&to={}", start + MINUTE)), [] as [Value; 0]);

    // In RFC 3339, widened to what is kept, and beyond now.
    let rfc = |ms: i64| slowburn::time::Timestamp(ms).to_string().replace(" UTC", "Z").replacen(' ', "T", 1);
    let same = ask(&format!("method=GET&from={}&to={}", rfc(start), rfc(start + MINUTE)));
    assert_eq!(same[0]["count"], 10);
    let inside = &ask(&format!("method=GET&from={}&to={}", start + 1, start + 2))[0];
    let (from, to) = (inside["from"].as_i64().unwrap(), inside["to"].as_i64().unwrap());
    assert!(from == start && (start + 2..=start + MINUTE).contains(&to) && inside["count"] == 10, "{inside}");
    assert_eq!(ask(&format!("method=GET&from={start}&to={}", now + 365 * 86_400_000))[0]["count"], 110);
    assert_eq!(ask("method=GET")[0]["count"], 110, "without a range: the last hour");
    assert_eq!(ask(&format!("method=GET&from=0&to={now}"))[0]["count"], 110);
}

#[test]
fn counts_are_exact_for_a_configured_threshold_and_bounded_for_another() {
    let config = "[[endpoint]]\nservice = 'shop'\nroute = '/a'\nobjectives = [{ latency = '50ms', target = '99%' }]\n";
    let server = Server::start(config, &[]);
    let start = now_ms() / MINUTE * MINUTE - 10 * MINUTE;
    server.send_ndjson(minute("shop", start, 100, 96).as_bytes()).taken(100, 0);
    server.send_ndjson(minute("other", start, 100, 96).as_bytes()).taken(100, 0);
    let ask = |more: &str| server.get(&format!("/api/v1/counts?from={start}&to={}&{more}", start + MINUTE));
    let exact = ask("service=shop&threshold=50ms");
    assert_eq!((&exact["good"], &exact["total"]), (&json!(50), &json!(100)));
    assert!(exact.get("good_low").is_none());
    for (more, good, total) in [
        ("service=shop&threshold=80ms", 80, 100),
        ("service=shop&threshold=1s", 95, 100),
        ("service=other&threshold=50ms", 50, 100),
        ("threshold=50ms", 100, 200),
    ] {
        let counts = ask(more);
        assert!(counts.get("good").is_none(), "{more}: {counts}");
        let (low, high) = (counts["good_low"].as_u64().unwrap(), counts["good_high"].as_u64().unwrap());
        assert!(low <= good && good <= high && high - low <= 4 && counts["total"] == total, "{more}: {counts}");
    }
}

#[test]
fn the_page_of_all_endpoints_has_those_that_are_named() {
    let config = "[limits]\nexported_endpoints = 1\n[[endpoint]]\nservice = 'shop'\nroute = '/a'\nobjectives = [{ latency = '50ms', target = '99%' }]\n";
    let server = Server::start(config, &[]);
    let start = now_ms() / MINUTE * MINUTE;
    server.send_ndjson(minute("shop", start, 100, 96).as_bytes()).taken(100, 0);
    server.send_ndjson(format!(r#"{{"ts":{start},"service":"o\"ther\\","route":"/b","duration_ms":1.5}}"#).as_bytes()).taken(1, 0);
    let page = |query: &str| server.request("GET", &format!("/metrics/endpoints{query}"), &[], b"");
    assert!(page("").header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let shop = r#"{service="shop",env="",kind="http",method="GET",route="/a""#;
    let other = r#"{service="o\"ther\\",env="",kind="http",method="",route="/b""#;
    let all = page("").text();
    for line in [
        format!("slowburn_requests_total{shop},outcome=\"ok\"}} 95"),
        format!("slowburn_requests_total{shop},outcome=\"error\"}} 5"),
        format!("slowburn_request_duration_seconds_bucket{shop},le=\"0.05\"}} 50"),
        format!("slowburn_request_duration_seconds_bucket{shop},le=\"+Inf\"}} 100"),
        format!("slowburn_request_duration_seconds_sum{shop}}} 5.05"),
        format!("slowburn_endpoint_latency_seconds_count{shop},window=\"1m\"}} 100"),
        format!("slowburn_requests_total{other},outcome=\"ok\"}} 1"),
        format!("slowburn_request_duration_seconds_sum{other}}} 0.0015"),
        "slowburn_export_truncated_endpoints 0".to_owned(),
    ] {
        assert!(all.contains(&format!("\n{line}\n")), "{line} in {all}");
    }
    assert_eq!(all.matches("# TYPE slowburn_requests_total counter").count(), 1);
    for (query, has_shop, has_other) in [
        ("?service=shop", true, false),
        ("?route=/b", false, true),
        ("?service=shop&env=&kind=http&method=GET&route=/a", true, false),
        ("?service=shop&env=prod", false, false),
    ] {
        let text = page(query).text();
        assert_eq!((text.contains(shop), text.contains(other)), (has_shop, has_other), "{query}: {text}");
    }
    page("?service=a&service=b").refused(400, "duplicate");
    // The critical one stays, the other one is counted as left out.
    let small = server.request("GET", "/metrics", &[], b"").text();
    assert!(small.contains(shop) && !small.contains(other) && small.contains("\nslowburn_export_truncated_endpoints 1\n"), "{small}");
}

#[test]
fn silences_and_markers_are_made_listed_and_ended() {
    let server = Server::start("", &[]);
    let now = now_ms();
    let made = server.post("/api/v1/silences", &json!({"service": "shop", "route": "/orders", "duration": "1h", "comment": "sale", "by": "ann"}));
    assert_eq!(made.status, 200, "{}", made.text());
    let made = made.json();
    assert_eq!(made["until"].as_i64().unwrap() - made["from"].as_i64().unwrap(), 3_600_000);
    let until = server.post("/api/v1/silences", &json!({"service": "shop", "until": now + 60_000})).json();
    assert_eq!(until["until"], now + 60_000);
    let list = server.get("/api/v1/silences")["silences"].as_array().unwrap().clone();
    assert!(list.len() == 2 && list.contains(&made) && list.contains(&until), "{list:?}");
    let id = |silence: &Value| silence["id"].as_str().unwrap().to_owned();
    assert_eq!(server.request("DELETE", &format!("/api/v1/silences/{}", id(&made)), &[], b"").status, 200);
    server.request("DELETE", &format!("/api/v1/silences/{}", id(&made)), &[], b"").refused(404, "no silence");
    assert_eq!(server.request("DELETE", &format!("/api/v1/silences?id={}", id(&until)), &[], b"").status, 200);
    let ended = server.get("/api/v1/silences")["silences"].as_array().unwrap().clone();
    assert!(ended.len() == 2 && ended.iter().all(|s| s["until"].as_i64().unwrap() <= now_ms()), "they are kept, and over: {ended:?}");
    for (body, part) in [
        (json!({"duration": "1h"}), "service"),
        (json!({"service": "shop"}), "until"),
        (json!({"service": "shop", "duration": "1h", "until": now}), "until"),
        (json!({"service": "shop", "duration": "soon"}), "duration"),
        (json!({"service": "shop", "until": now - 60_000}), "before it begins"),
        (json!({"service": "shop", "until": "never"}), "RFC 3339"),
        (json!({"service": "", "duration": "1h"}), "service"),
        (json!({"service": "shop", "comment": "a\u{0}", "duration": "1h"}), "comment"),
        (json!({"service": "shop", "rout": "/a", "duration": "1h"}), "rout"),
    ] {
        server.post("/api/v1/silences", &body).refused(400, part);
    }

    let marker = json!({"ts": now - 5_000, "service": "shop", "title": "upgrade", "version": "1.2"});
    assert_eq!(server.post("/api/v1/markers", &marker).json(), marker);
    assert_eq!(server.post("/api/v1/markers", &json!({"title": "for all"})).status, 200);
    assert_eq!(server.get("/api/v1/markers?service=shop")["markers"].as_array().unwrap().len(), 2);
    assert_eq!(server.get("/api/v1/markers?service=cards")["markers"].as_array().unwrap().len(), 1);
    server.post("/api/v1/markers", &json!({"ts": "then"})).refused(400, "RFC 3339");
    server.post("/api/v1/markers", &json!({"title": "a\nb"})).refused(400, "control");
    assert_eq!(server.get("/api/v1/incidents"), json!({"incidents": []}));
    let server = server.restart("");
    assert_eq!(server.get("/api/v1/markers?service=shop")["markers"].as_array().unwrap().len(), 2, "after kill -9");
}

#[test]
fn every_error_has_the_one_form() {
    let server = Server::start("", &[]);
    for (method, path, status, part) in [
        ("GET", "/", 404, "openapi"),
        ("GET", "/api/v1/nothing", 404, "openapi"),
        ("POST", "/api/v1/nothing", 404, "openapi"),
        ("GET", "/api/v1/timings", 405, "method"),
        ("PUT", "/api/v1/timings", 405, "method"),
        ("POST", "/api/v1/endpoints", 405, "method"),
        ("DELETE", "/metrics", 405, "method"),
        ("POST", "/livez", 405, "method"),
        ("GET", "/api/v1/incidents/none", 404, "none"),
        ("POST", "/api/v1/incidents/none/ack", 404, "none"),
        ("DELETE", "/api/v1/silences/none", 404, "none"),
        ("DELETE", "/api/v1/silences", 400, "id"),
        ("GET", "/api/v1/incidents/%ff", 400, "UTF-8"),
        ("GET", "/api/v1/quantiles?q=1.5", 400, "1.5"),
        ("GET", "/api/v1/quantiles?q=", 400, "q"),
        ("GET", "/api/v1/quantiles?q=0.5&q=0.9", 400, "duplicate"),
        ("GET", "/api/v1/quantiles?q=NaN", 400, "NaN"),
        ("GET", "/api/v1/quantiles?step=90s", 400, "multiple of 60s"),
        ("GET", "/api/v1/quantiles?step=0s", 400, "multiple of 60s"),
        ("GET", "/api/v1/quantiles?step=-1m", 400, "duration"),
        ("GET", "/api/v1/quantiles?step=soon", 400, "duration"),
        ("GET", "/api/v1/quantiles?from=0&step=60s", 400, "points"),
        ("GET", "/api/v1/quantiles?from=yesterday", 400, "from"),
        ("GET", "/api/v1/quantiles?from=-1", 400, "from"),
        ("GET", "/api/v1/quantiles?from=99999999999999999999", 400, "from"),
        ("GET", "/api/v1/quantiles?from=2000&to=1000", 400, "before"),
        ("GET", "/api/v1/quantiles?outcome=meh", 400, "ok"),
        ("GET", "/api/v1/counts", 400, "threshold"),
        ("GET", "/api/v1/counts?threshold=fast", 400, "threshold"),
        ("GET", "/api/v1/counts?threshold=-5ms", 400, "threshold"),
        ("GET", "/api/v1/endpoints?service=a&service=b", 400, "duplicate"),
    ] {
        server.request(method, path, &[], b"").refused(status, part);
    }
    for path in ["/api/v1/silences", "/api/v1/markers"] {
        let post = |content_type: &str, body: &[u8]| server.request("POST", path, &[("Content-Type", content_type)], body);
        post("application/json", b"{").refused(400, "JSON");
        post("application/json", b"[1]").refused(400, "");
        post("application/json", b"").refused(400, "");
        post("text/plain", b"{}").refused(415, "application/json");
        post("application/json", &vec![b' '; 3 << 20]).refused(413, "");
    }
    server.request("POST", "/api/v1/incidents/none/ack", &[], b"{").refused(400, "");
    server.request("POST", "/api/v1/incidents/none/ack", &[], &vec![b' '; 3 << 20]).refused(413, "");
    assert_eq!(server.get("/api/v1/endpoints"), json!({"endpoints": []}));
}

#[test]
fn head_is_answered_like_get_without_a_body() {
    let server = Server::start("", &[]);
    for path in ["/api/v1/endpoints", "/api/v1/openapi.json", "/metrics", "/livez", "/readyz"] {
        let (head, get) = (server.request("HEAD", path, &[], b""), server.request("GET", path, &[], b""));
        assert_eq!((head.status, head.body.len(), head.header("content-type")), (200, 0, get.header("content-type")), "{path}");
    }
    assert_eq!(server.request("HEAD", "/nowhere", &[], b"").status, 404);
    assert!(server.request("GET", "/metrics", &[], b"").header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
}
