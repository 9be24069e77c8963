//! Who may do what, and from where.

use serde_json::json;

use crate::server::Server;

const TOKENS: &str = "[[token]]\nscope = 'ingest'\nsecret = 'write-only'\n[[token]]\nscope = 'admin'\nsecret = 'all'\n";
const ONE: &str = r#"{"service":"shop","route":"/orders","duration_ms":1}"#;

#[test]
fn a_token_is_asked_for_and_its_scope_decides() {
    let server = Server::start(TOKENS, &[]);
    let with = |token: Option<&str>, method: &str, path: &str, body: &str| {
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(token.map(|t| ("Authorization", t)));
        server.request(method, path, &headers, body.as_bytes())
    };
    let marker = json!({"title": "deploy"}).to_string();
    for token in [None, Some("Bearer wrong"), Some("Basic YWxs"), Some("Bearer"), Some("all")] {
        with(token, "POST", "/api/v1/timings", ONE).refused(401, "Bearer");
        with(token, "GET", "/api/v1/endpoints", "").refused(401, "Bearer");
        with(token, "GET", "/metrics", "").refused(401, "Bearer");
        with(token, "GET", "/nowhere", "").refused(401, "Bearer");
        assert_eq!(with(token, "GET", "/livez", "").status, 200);
        assert_eq!(with(token, "GET", "/readyz", "").status, 200);
    }
    for token in ["Bearer write-only", "bearer all"] {
        with(Some(token), "POST", "/api/v1/timings", ONE).taken(1, 0);
        assert_eq!(with(Some(token), "GET", "/api/v1/endpoints", "").status, 200);
        assert_eq!(with(Some(token), "GET", "/metrics", "").status, 200);
    }
    for (method, path) in [
        ("POST", "/api/v1/markers"),
        ("POST", "/api/v1/silences"),
        ("DELETE", "/api/v1/silences/0123456789abcdef"),
        ("POST", "/api/v1/incidents/0123456789abcdef/ack"),
    ] {
        with(Some("Bearer write-only"), method, path, &marker).refused(403, "admin");
    }
    assert_eq!(with(Some("Bearer all"), "POST", "/api/v1/markers", &marker).status, 200);
    // One key under two scopes is two keys.
    for (token, duplicate) in [("Bearer all", false), ("Bearer write-only", false), ("Bearer all", true)] {
        let headers = [("Content-Type", "application/json"), ("Authorization", token), ("Idempotency-Key", "k")];
        let body = server.request("POST", "/api/v1/timings", &headers, ONE.as_bytes()).taken(1, 0);
        assert_eq!(body.get("duplicate").is_some(), duplicate, "{token}");
    }
}

#[test]
fn with_a_token_a_listener_for_everybody_starts_and_answers_to_any_host() {
    let server = Server::start(TOKENS, &[]);
    assert_eq!(server.request("GET", "/livez", &[], b"").status, 200);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, format!("listen = '0.0.0.0:9898'\n{TOKENS}")).unwrap();
    let output = crate::server::slowburn(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_host_that_is_not_the_listeners_is_refused() {
    let server = Server::start("", &[]);
    let port = server.port();
    let status = |method: &str, host: &str| {
        let answer = server.request(method, "/api/v1/timings", &[("Host", host), ("Content-Type", "application/json")], ONE.as_bytes());
        if answer.status == 403 {
            answer.refused(403, "Host");
        }
        answer.status
    };
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("LOCALHOST:{port}"), format!("[::1]:{port}"), format!("127.0.0.2:{port}")] {
        assert_eq!(status("POST", &host), 200, "{host}");
    }
    for host in [
        format!("evil.example:{port}"),
        "evil.example".to_owned(),
        format!("127.0.0.1:{}", port ^ 1),
        "127.0.0.1".to_owned(),
        "localhost".to_owned(),
        format!("127.0.0.1.evil.example:{port}"),
        format!("localhost.evil.example:{port}"),
        format!("10.0.0.1:{port}"),
        String::new(),
    ] {
        assert_eq!(status("POST", &host), 403, "{host}");
        assert_eq!(server.request("DELETE", "/api/v1/silences/x", &[("Host", &host)], b"").status, 403, "{host}");
        assert_eq!(server.request("GET", "/api/v1/endpoints", &[("Host", &host)], b"").status, 403, "a page that rebinds may not read: {host}");
    }
    assert_eq!(server.requests("shop"), 5);
}

#[test]
fn a_page_of_another_site_may_not_change_anything() {
    let server = Server::start("", &[]);
    let own = server.url();
    let foreign_port = format!("http://127.0.0.1:{}", server.port() ^ 1);
    for (name, value, status) in [
        ("Origin", own.as_str(), 200),
        ("Sec-Fetch-Site", "same-origin", 200),
        ("Sec-Fetch-Site", "none", 200),
        ("Origin", "https://evil.example", 403),
        ("Origin", "null", 403),
        ("Origin", &foreign_port, 403),
        ("Origin", "", 403),
        ("Sec-Fetch-Site", "cross-site", 403),
        ("Sec-Fetch-Site", "same-site", 403),
    ] {
        let json = ("Content-Type", "application/json");
        let answer = server.request("POST", "/api/v1/timings", &[json, (name, value)], ONE.as_bytes());
        assert_eq!(answer.status, status, "{name}: {value}: {}", answer.text());
        let answer = server.request("DELETE", "/api/v1/silences/0123456789abcdef", &[(name, value)], b"");
        if status == 403 {
            answer.refused(403, "another site");
        } else {
            answer.refused(404, "no silence");
        }
        // Reading is left to the browser's own rules.
        assert_eq!(server.request("GET", "/api/v1/endpoints", &[(name, value)], b"").status, 200);
    }
    assert_eq!(server.requests("shop"), 3);
}
