//! Counts as the lines that Slowburn takes: one JSON object a line, sorted, so that the same counts give the same bytes.
//!
//! ```text
//! {"ts":1766534400000,"service":"shop","env":"prod","method":"POST","route":"/orders","status":201,"values_us":[[182400,3]]}
//! {"in_flight":[{"service":"shop","env":"prod","method":"POST","route":"/orders","age_ms":30000,"n":2}]}
//! ```
//!
//! A batch that grows too long is ended and the next begins, if need be in the middle of an endpoint.

use std::io::Write as _;
use std::sync::Arc;

use crate::in_flight::Group;
use crate::record::{Counts, Outcome, Pair, SLOT_MS};
use crate::routes::MethodId;

/// Timings as text, and how many they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) body: Vec<u8>,
    pub(crate) timings: u64,
}

/// What all lines of a process have in common: `"service":"shop","env":"prod",`.
#[derive(Debug, Clone)]
pub(crate) struct Origin(Arc<str>);

impl Origin {
    pub(crate) fn new(service: &str, env: &str) -> Self {
        let mut text = format!("\"service\":{},", json_string(service));
        if !env.is_empty() {
            text.push_str("\"env\":");
            text.push_str(&json_string(env));
            text.push(',');
        }
        Self(text.into())
    }
}

/// The lines of all counts, in batches of about `bytes_max` bytes.
pub(crate) fn encode(counts: Vec<Counts>, origin: &Origin, names: &[Arc<str>], bytes_max: usize) -> Vec<Lines> {
    let mut pairs: Vec<(Pair, u64)> = counts.into_iter().flat_map(|counts| counts.pairs).collect();
    pairs.sort_unstable();
    let mut batches = Vec::new();
    let mut lines = Lines::default();
    for endpoint in pairs.chunk_by(|(a, _), (b, _)| Pair { value_us: 0, ..*a } == Pair { value_us: 0, ..*b }) {
        let mut open = false;
        for value in endpoint.chunk_by(|(a, _), (b, _)| a == b) {
            let pair = value[0].0;
            let n = value.iter().map(|(_, n)| n).sum::<u64>();
            if open {
                write_text(&mut lines.body, format_args!(",[{},{n}]", pair.value_us));
            } else {
                write_head(&mut lines.body, pair, origin, names);
                write_text(&mut lines.body, format_args!("[{},{n}]", pair.value_us));
                open = true;
            }
            lines.timings += n;
            if lines.body.len() >= bytes_max {
                lines.body.extend_from_slice(b"]}\n");
                open = false;
                batches.push(std::mem::take(&mut lines));
            }
        }
        if open {
            lines.body.extend_from_slice(b"]}\n");
        }
    }
    if lines.timings > 0 {
        batches.push(lines);
    }
    batches
}

/// The line that tells what is running; empty if nothing is.
pub(crate) fn encode_in_flight(groups: &[Group], origin: &Origin, names: &[Arc<str>]) -> Vec<u8> {
    let mut line = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        line.extend_from_slice(if i == 0 { b"{\"in_flight\":[{".as_slice() } else { b",{" });
        write_endpoint(&mut line, origin, group.method, group.route, names);
        write_text(&mut line, format_args!("\"age_ms\":{},\"n\":{}}}", group.age_ms, group.n));
    }
    if !line.is_empty() {
        line.extend_from_slice(b"]}\n");
    }
    line
}

fn write_head(body: &mut Vec<u8>, pair: Pair, origin: &Origin, names: &[Arc<str>]) {
    write_text(body, format_args!("{{\"ts\":{},", u64::from(pair.slot) * SLOT_MS));
    write_endpoint(body, origin, pair.method, pair.route, names);
    match pair.outcome {
        Outcome::Status(status) => write_text(body, format_args!("\"status\":{status},")),
        Outcome::Error => write_text(body, format_args!("\"outcome\":\"error\",")),
        Outcome::Timeout => write_text(body, format_args!("\"outcome\":\"timeout\",")),
    }
    body.extend_from_slice(b"\"values_us\":[");
}

fn write_endpoint(body: &mut Vec<u8>, origin: &Origin, method: MethodId, route: u32, names: &[Arc<str>]) {
    let route = usize::try_from(route).ok().and_then(|at| names.get(at)).expect("names are taken after the counts");
    write_text(body, format_args!("{}\"method\":\"{}\",\"route\":{},", origin.0, method.name(), json_string(route)));
}

fn write_text(body: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    body.write_fmt(text).expect("writing to memory cannot fail");
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn counts(pairs: &[(u32, u32, Outcome, u64, u64)]) -> Counts {
        let method = MethodId::of(&http::Method::POST);
        let pairs: HashMap<_, _, _> = pairs.iter().map(|&(slot, route, outcome, value_us, n)| (Pair { slot, route, method, outcome, value_us }, n)).collect();
        let timings = pairs.values().sum();
        Counts { pairs, timings }
    }

    fn names() -> Vec<Arc<str>> {
        vec!["/orders".into(), "/a\"b\\c".into()]
    }

    fn text(lines: &Lines) -> &str {
        std::str::from_utf8(&lines.body).unwrap()
    }

    #[test]
    fn counts_of_all_shards_are_merged_and_sorted() {
        let shards = vec![
            counts(&[(7, 1, Outcome::Timeout, 9, 1), (7, 0, Outcome::Status(201), 50, 2)]),
            counts(&[(7, 0, Outcome::Status(201), 50, 3), (7, 0, Outcome::Status(201), 40, 1), (8, 0, Outcome::Error, 5, 1)]),
        ];
        let batches = encode(shards, &Origin::new("shop", ""), &names(), 1 << 20);
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].timings, 8);
        let expected = "\
            {\"ts\":70000,\"service\":\"shop\",\"method\":\"POST\",\"route\":\"/orders\",\"status\":201,\"values_us\":[[40,1],[50,5]]}\n\
            {\"ts\":70000,\"service\":\"shop\",\"method\":\"POST\",\"route\":\"/a\\\"b\\\\c\",\"outcome\":\"timeout\",\"values_us\":[[9,1]]}\n\
            {\"ts\":80000,\"service\":\"shop\",\"method\":\"POST\",\"route\":\"/orders\",\"outcome\":\"error\",\"values_us\":[[5,1]]}\n";
        assert_eq!(text(&batches[0]), expected);
    }

    #[test]
    fn a_long_endpoint_is_split_over_batches_and_loses_nothing() {
        let pairs: Vec<_> = (1..=1_000).map(|us| (7, 0, Outcome::Status(200), us, us)).collect();
        let batches = encode(vec![counts(&pairs)], &Origin::new("shop", "prod"), &names(), 1_000);
        assert!(batches.len() > 5);
        let mut seen = Vec::new();
        for batch in &batches {
            assert!(batch.body.len() < 1_010, "{}", batch.body.len());
            let mut timings = 0;
            for line in text(batch).lines() {
                let item: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(item["env"], "prod");
                for pair in item["values_us"].as_array().unwrap() {
                    timings += pair[1].as_u64().unwrap();
                    seen.push((pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap()));
                }
            }
            assert_eq!(batch.timings, timings);
        }
        assert_eq!(seen, (1..=1_000).map(|us| (us, us)).collect::<Vec<_>>());
    }

    #[test]
    fn what_runs_is_one_line_or_none() {
        let method = MethodId::of(&http::Method::GET);
        let origin = Origin::new("shop", "prod");
        let groups = [(30_000, 0, 1), (4, 1, 2)].map(|(age_ms, route, n)| Group { age_ms, route, method, n });
        let line = String::from_utf8(encode_in_flight(&groups, &origin, &names())).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({"in_flight": [
            {"service": "shop", "env": "prod", "method": "GET", "route": "/orders", "age_ms": 30_000, "n": 1},
            {"service": "shop", "env": "prod", "method": "GET", "route": "/a\"b\\c", "age_ms": 4, "n": 2},
        ]});
        assert_eq!(parsed, expected);
        assert!(line.ends_with("]}\n"));
        assert!(encode_in_flight(&[], &origin, &names()).is_empty());
    }
}
