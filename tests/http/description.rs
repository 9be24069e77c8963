//! The description of the API against the answers of a running server.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Server, now_ms, within};

const CONFIG: &str = r#"
judge_after = "1s"

[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{ latency = "800ms", target = "99%", period = "1h" }, { availability = true, target = "99.9%", period = "1h" }]
thresholds = [{ quantile = "95%", over = "1s", window = "10s", severity = "warning" }]

[[burn_window]]
long = "20s"
short = "10s"
factor = 14.4
severity = "critical"
"#;

/// What a value breaks of a schema; as much of JSON Schema as the description uses.
fn broken(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        return broken(root, root.pointer(&name[1..]).unwrap_or_else(|| panic!("{name} is nowhere")), value, at);
    }
    let mut wrong = Vec::new();
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: the type {other}"),
    };
    let typed = match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|n| is(n.as_str().unwrap())),
        _ => true,
    };
    let chosen = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let constant = schema.get("const").is_none_or(|c| c == value);
    let low = schema["minimum"].as_f64().is_none_or(|min| value.as_f64().is_none_or(|v| v >= min));
    let high = schema["maximum"].as_f64().is_none_or(|max| value.as_f64().is_none_or(|v| v <= max));
    if !(typed && chosen && constant && low && high) {
        wrong.push(format!("{at}: {value} is not {schema}"));
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let found: Vec<Vec<String>> = choices.iter().map(|c| broken(root, c, value, at)).collect();
        if found.iter().filter(|f| f.is_empty()).count() != 1 {
            wrong.push(format!("{at}: not exactly one of {} choices: {found:?}", choices.len()));
        }
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            if !object.contains_key(name.as_str().unwrap()) {
                wrong.push(format!("{at}: {name} is missing"));
            }
        }
        for (name, part) in object {
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(inner), _) => wrong.extend(broken(root, inner, part, &format!("{at}.{name}"))),
                (None, Value::Bool(false)) => wrong.push(format!("{at}: {name} is not described")),
                (None, inner @ Value::Object(_)) => wrong.extend(broken(root, inner, part, &format!("{at}.{name}"))),
                _ => {}
            }
        }
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        for (n, item) in list.iter().enumerate() {
            wrong.extend(broken(root, items, item, &format!("{at}[{n}]")));
        }
    }
    wrong
}

struct Described {
    server: Server,
    description: Value,
}

impl Described {
    /// Asks, and holds status, content type and body of the answer against the description.
    fn ask(&self, method: &str, template: &str, path: &str, content_type: &str, body: &str) -> Value {
        let answer = self.server.request(method, path, &[("Content-Type", content_type)], body.as_bytes());
        let operation = &self.description["paths"][template][method.to_lowercase()];
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{method} {template}: the status {} is not described: {}", answer.status, answer.text());
        let given = answer.header("content-type").unwrap().split(';').next().unwrap().to_owned();
        let schema = &response["content"][&given]["schema"];
        assert!(schema.is_object(), "{method} {template}: {} is not described as {given}", answer.status);
        let value = if given == "application/json" { answer.json() } else { Value::String(answer.text()) };
        let wrong = broken(&self.description, schema, &value, template);
        assert!(wrong.is_empty(), "{method} {path}: {value:#}\n{wrong:#?}");
        value
    }

    fn get(&self, template: &str, query: &str) -> Value {
        self.ask("GET", template, &format!("{template}{query}"), "", "")
    }
}

#[test]
fn the_validator_sees_what_is_wrong() {
    let schema = json!({"type": "object", "required": ["a"], "additionalProperties": false, "properties": {"a": {"type": ["integer", "null"], "minimum": 0}}});
    let wrong = |value: Value| broken(&json!({}), &schema, &value, "").len();
    assert_eq!([wrong(json!({"a": 1})), wrong(json!({"a": null}))], [0, 0]);
    assert_eq!([wrong(json!({})), wrong(json!({"a": "1"})), wrong(json!({"a": -1})), wrong(json!({"a": 1, "b": 1})), wrong(json!([]))], [1; 5]);
}

/// What a data source of Prometheus asks.
fn ask_as_grafana(d: &Described) {
    for (template, query) in [
        ("/api/v1/query", "?query=slowburn_requests_total"),
        ("/api/v1/query", "?query=irate(a[5m])"),
        ("/api/v1/query", "?query=slowburn_build_info%2Bon()slowburn_requests_total&time=1"),
        ("/api/v1/query_range", "?query=time()&start=1&end=2&step=1"),
        ("/api/v1/query_range", "?query=time()"),
        ("/api/v1/query_exemplars", ""),
        ("/api/v1/query_exemplars", "?query=slowburn_requests_total"),
        ("/api/v1/labels", ""),
        ("/api/v1/labels", "?match[]=%7B"),
        ("/api/v1/series", "?match[]=slowburn_requests_total"),
        ("/api/v1/series", ""),
        ("/api/v1/metadata", ""),
        ("/api/v1/status/buildinfo", ""),
    ] {
        d.get(template, query);
    }
    d.ask("GET", "/api/v1/label/{name}/values", "/api/v1/label/route/values", "", "");
    for template in ["/api/v1/query", "/api/v1/labels", "/api/v1/series", "/api/v1/query_exemplars", "/api/v1/query_range"] {
        d.ask("POST", template, template, "application/x-www-form-urlencoded", "query=1&match[]=slowburn_requests_total");
    }
}

#[test]
fn real_answers_are_as_described_from_the_first_timing_to_an_acknowledged_incident() {
    let server = Server::start(CONFIG, &[]);
    let description = server.get("/api/v1/openapi.json");
    let d = Described { server, description };
    let slow = r#"{"service":"shop","method":"POST","route":"/orders","status":503,"duration_ms":2000,"weight":1,"trace_id":"t"}"#;
    let post = |template: &str, body: &str| d.ask("POST", template, template, "application/json", body);

    // Failures until somebody is told: what came in one slot is judged a second after its end.
    within(Duration::from_secs(40), "both kinds of incident open", || {
        post("/api/v1/timings", &format!("[{}]", vec![slow; 20].join(",")));
        std::thread::sleep(Duration::from_millis(200));
        let incidents = d.get("/api/v1/incidents", "?service=shop");
        let kinds: Vec<&str> = incidents["incidents"].as_array().unwrap().iter().map(|i| i["kind"].as_str().unwrap()).collect();
        kinds.contains(&"burn") && kinds.contains(&"threshold")
    });
    let incidents = d.get("/api/v1/incidents", "")["incidents"].as_array().unwrap().clone();
    let id = incidents[0]["id"].as_str().unwrap();
    let ack = d.ask("POST", "/api/v1/incidents/{id}/ack", &format!("/api/v1/incidents/{id}/ack"), "application/json", r#"{"by":"ann"}"#);
    assert_eq!(ack, json!({"id": id, "acked": true}));
    let one = d.ask("GET", "/api/v1/incidents/{id}", &format!("/api/v1/incidents/{id}"), "", "");
    assert_eq!(one["acked"]["by"], "ann");
    let endpoint = d.get("/api/v1/endpoints", "")["endpoints"][0].clone();
    assert_eq!((&endpoint["state"], &endpoint["slowest_traces"][0]["trace_id"]), (&json!("burning"), &json!("t")));
    assert_eq!(one["evidence"]["slowest_trace"]["trace_id"], "t");
    let objectives = d.get("/api/v1/objectives", "?service=shop");
    assert_eq!(objectives["objectives"].as_array().unwrap().len(), 3);

    // What incidents look like as lines, from the log of this very server.
    let export = crate::server::slowburn(&["replay", "--log", d.server.data_dir().to_str().unwrap()]);
    let lines = String::from_utf8(export.stdout).unwrap();
    assert!(!lines.is_empty(), "{}", String::from_utf8_lossy(&export.stderr));
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let wrong = broken(&d.description, &json!({"$ref": "#/components/schemas/Transition"}), &line, "line");
        assert!(wrong.is_empty(), "{line:#}\n{wrong:#?}");
    }

    post("/api/v1/timings", "[7]");
    post("/api/v1/timings", "[");
    d.ask("POST", "/api/v1/timings", "/api/v1/timings", "text/plain", "");
    d.get("/api/v1/quantiles", "?step=1m&q=0.5,0.99");
    d.get("/api/v1/quantiles", "?step=1");
    d.get("/api/v1/counts", "?service=shop&threshold=800ms");
    d.get("/api/v1/counts", "?threshold=17ms");
    d.get("/api/v1/counts", "");
    let silence = post("/api/v1/silences", r#"{"service":"shop","duration":"1h"}"#);
    d.get("/api/v1/silences", "");
    post("/api/v1/silences", "{}");
    let path = format!("/api/v1/silences/{}", silence["id"].as_str().unwrap());
    for _ in 0..2 {
        d.ask("DELETE", "/api/v1/silences/{id}", &path, "", "");
    }
    d.ask("DELETE", "/api/v1/silences", "/api/v1/silences", "", "");
    d.ask("DELETE", "/api/v1/silences", "/api/v1/silences?id=x", "", "");
    post("/api/v1/markers", &json!({"ts": now_ms(), "service": "shop", "title": "deploy"}).to_string());
    post("/api/v1/markers", "7");
    d.get("/api/v1/markers", "");
    d.server.send(&[("Slowburn-Sender", "shop-1; epoch=1; seq=1")], "[]").taken(0, 0);
    d.get("/api/v1/senders", "");
    d.get("/api/v1/openapi.json", "");
    ask_as_grafana(&d);
    for path in ["/metrics", "/metrics/endpoints", "/livez", "/readyz"] {
        d.get(path, "");
    }
    d.ask("GET", "/api/v1/incidents/{id}", "/api/v1/incidents/none", "", "");
    d.ask("POST", "/api/v1/incidents/{id}/ack", "/api/v1/incidents/none/ack", "", "");
}
