//! Recorded streams as the detectors read them: quarters of an hour of each endpoint. `events.ndjson` is read once and kept beside it in six bytes a timing.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use slowburn::histogram::{Digits, Histogram};

pub(crate) const QUARTER_MS: i64 = 900_000;

/// What is known of a stream beside its timings.
#[derive(Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) markers: Vec<(i64, String)>,
    pub(crate) flows: Vec<(usize, usize)>,
}

#[derive(Serialize, Deserialize, Clone)]
pub(crate) struct Endpoint {
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) route: String,
    pub(crate) slo_ms: f32,
    pub(crate) critical: bool,
    /// Timings of it in the file.
    pub(crate) n: usize,
}

pub(crate) struct Stream {
    pub(crate) head: Head,
    /// Quarters of an hour from `start` on, by endpoint.
    pub(crate) quarters: Vec<Vec<Histogram>>,
}

#[derive(Deserialize)]
struct Event {
    ts: i64,
    service: String,
    route: String,
    method: String,
    duration_ms: f64,
}

#[derive(Deserialize)]
struct Marker {
    ts: i64,
    service: String,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    endpoint: Vec<ConfiguredEndpoint>,
    #[serde(default)]
    flow: Vec<ConfiguredFlow>,
}

#[derive(Deserialize)]
struct ConfiguredEndpoint {
    service: String,
    method: String,
    route: String,
    critical: bool,
    objectives: Vec<Objective>,
}

#[derive(Deserialize)]
struct Objective {
    latency: String,
}

#[derive(Deserialize)]
struct ConfiguredFlow {
    from: Selector,
    to: Selector,
}

#[derive(Deserialize)]
struct Selector {
    service: String,
    method: String,
    route: String,
}

/// Reads a folder with `events.ndjson`, `markers.ndjson` and `slowburn.toml`.
pub(crate) fn load(dir: &Path) -> Stream {
    if !dir.join("events.bin").exists() {
        compact(dir);
    }
    let head: Head = serde_json::from_slice(&fs::read(dir.join("stream.json")).unwrap()).unwrap();
    let bytes = fs::read(dir.join("events.bin")).unwrap();
    let count = usize::try_from((head.end - head.start) / QUARTER_MS).unwrap();
    let mut rest = bytes.as_slice();
    let mut quarters = Vec::new();
    for endpoint in &head.endpoints {
        let (offsets, after) = rest.split_at(4 * endpoint.n);
        let (buckets, after) = after.split_at(2 * endpoint.n);
        rest = after;
        let mut own = vec![Histogram::new(Digits::Two); count];
        for (offset, bucket) in offsets.chunks_exact(4).zip(buckets.chunks_exact(2)) {
            let at = i64::from(u32::from_le_bytes(offset.try_into().unwrap())) / QUARTER_MS;
            if let Some(quarter) = own.get_mut(usize::try_from(at).unwrap()) {
                quarter.record_bucket(u16::from_le_bytes(bucket.try_into().unwrap()), 1);
            }
        }
        quarters.push(own);
    }
    Stream { head, quarters }
}

/// Keeps the timings of `events.ndjson` beside it: by endpoint, the milliseconds since the start and the buckets.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "durations of up to 30 s")]
fn compact(dir: &Path) {
    let config: Config = toml::from_str(&fs::read_to_string(dir.join("slowburn.toml")).unwrap()).unwrap();
    let mut places = HashMap::new();
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for e in config.endpoint {
        let slo_ms = e.objectives.first().map_or(0.0, |o| o.latency.trim_end_matches("ms").parse().unwrap());
        places.insert((e.service.clone(), e.method.clone(), e.route.clone()), endpoints.len());
        endpoints.push(Endpoint { service: e.service, method: e.method, route: e.route, slo_ms, critical: e.critical, n: 0 });
    }
    let (mut start, mut end) = (None, 0);
    let mut timings: Vec<(Vec<u8>, Vec<u8>)> = vec![Default::default(); endpoints.len()];
    for line in BufReader::new(fs::File::open(dir.join("events.ndjson")).unwrap()).lines() {
        let event: Event = serde_json::from_str(&line.unwrap()).unwrap();
        let start = *start.get_or_insert(event.ts.div_euclid(86_400_000) * 86_400_000);
        end = event.ts;
        let place = places[&(event.service, event.method, event.route)];
        endpoints[place].n += 1;
        timings[place].0.extend(u32::try_from(event.ts - start).unwrap().to_le_bytes());
        timings[place].1.extend(Digits::Two.bucket_of((event.duration_ms * 1000.0).round() as u64).to_le_bytes());
    }
    let place = |s: Selector| places[&(s.service, s.method, s.route)];
    let flows = config.flow.into_iter().map(|f| (place(f.from), place(f.to))).collect();
    let markers = fs::read_to_string(dir.join("markers.ndjson")).unwrap();
    let markers = markers.lines().map(|l| serde_json::from_str::<Marker>(l).unwrap()).map(|m| (m.ts, m.service)).collect();
    let head = Head { start: start.unwrap(), end: (end / 3_600_000 + 1) * 3_600_000, endpoints, markers, flows };
    let bytes: Vec<u8> = timings.into_iter().flat_map(|(offsets, buckets)| [offsets, buckets].concat()).collect();
    fs::write(dir.join("stream.json"), serde_json::to_vec(&head).unwrap()).unwrap();
    fs::write(dir.join("events.bin"), bytes).unwrap();
}
