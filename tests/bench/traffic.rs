//! Timings as an application would send them, the same for the same seed, and the formats that carry them.

use std::io::Write as _;

/// Services that the endpoints are spread over.
const SERVICES: u32 = 20;

/// The median of all durations; their logarithm has the standard deviation [`SPREAD`].
const MEDIAN_US: f64 = 20_000.0;
const SPREAD: f64 = 0.8;

/// A timing is sent at most this long after it happened.
const AGE_MS_MAX: u64 = 500;

/// Splitmix64: small, and the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Above 0, up to 1.
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A lognormal duration in microseconds, in whole tenths of a millisecond as most middleware sends it.
    pub fn duration_us(&mut self, median_us: f64) -> u32 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        let tenths = (median_us * (SPREAD * normal).exp() / 100.0).round();
        (tenths.clamp(1.0, 36_000_000.0) as u32) * 100
    }
}

/// Which endpoints requests go to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Popularity {
    /// The n-th busiest gets one n-th of the busiest's requests.
    Zipf,
    /// All the same.
    Uniform,
    /// Every other timing goes to each endpoint in turn, so that all are active; the rest is Zipf.
    Mixed,
}

/// Endpoints and how requests spread over them.
#[derive(Clone, Copy)]
pub struct Mix {
    pub popularity: Popularity,
    pub endpoints: u32,
}

impl Mix {
    pub fn name(self) -> String {
        let popularity = match self.popularity {
            Popularity::Zipf => "zipf",
            Popularity::Uniform => "uniform",
            Popularity::Mixed => "mixed",
        };
        format!("{popularity} {}k", self.endpoints / 1_000)
    }

    /// Batches to be cycled; each of `count` is different.
    pub fn batches(self, seed: u64, count: usize, timings_per_batch: usize) -> Vec<Vec<Timing>> {
        let mut random = Random(seed);
        let ranks = Ranks::new(self.endpoints);
        let mut turn = 0;
        let mut draw = || {
            turn += 1;
            let endpoint = match self.popularity {
                Popularity::Uniform => random.below(u64::from(self.endpoints)) as u32,
                Popularity::Mixed if turn % 2 == 0 => in_turn(turn / 2, self.endpoints),
                Popularity::Zipf | Popularity::Mixed => ranks.endpoint(random.unit()),
            };
            Timing::draw(endpoint, &mut random)
        };
        (0..count).map(|_| (0..timings_per_batch).map(|_| draw()).collect()).collect()
    }

    /// One timing of every endpoint, so that all are known.
    pub fn all(self, seed: u64) -> Vec<Vec<Timing>> {
        let mut random = Random(seed);
        let timings: Vec<Timing> = (0..self.endpoints).map(|endpoint| Timing::draw(endpoint, &mut random)).collect();
        timings.chunks(1_000).map(<[Timing]>::to_vec).collect()
    }
}

/// Zipf's distribution as cumulated weights.
struct Ranks(Vec<f64>);

impl Ranks {
    fn new(endpoints: u32) -> Self {
        let mut sum = 0.0;
        let cumulated = (1..=endpoints).map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        });
        Self(cumulated.collect())
    }

    fn endpoint(&self, unit: f64) -> u32 {
        let count = self.0.len();
        let rank = self.0.partition_point(|sum| *sum < unit * self.0[count - 1]).min(count - 1);
        // The busiest are not the first known.
        in_turn(rank as u64, count as u32)
    }
}

/// Each endpoint once, in an order that is not that of their numbers: 7,919 is prime and divides no number of endpoints in use.
fn in_turn(turn: u64, endpoints: u32) -> u32 {
    (turn * 7_919 % u64::from(endpoints)) as u32
}

/// One timing, before it has a form.
#[derive(Clone, Copy)]
pub struct Timing {
    pub endpoint: u32,
    pub age_ms: u16,
    pub status: u16,
    pub duration_us: u32,
}

impl Timing {
    fn draw(endpoint: u32, random: &mut Random) -> Self {
        let status = match random.below(200) {
            0 => 500,
            1..=10 => 404,
            _ => 200,
        };
        Self { endpoint, age_ms: random.below(AGE_MS_MAX) as u16, status, duration_us: random.duration_us(MEDIAN_US) }
    }

    /// Gives it another duration.
    pub fn redraw(&mut self, random: &mut Random) {
        self.duration_us = random.duration_us(MEDIAN_US);
    }

    fn ts_ms(&self, now_ms: i64) -> i64 {
        now_ms - i64::from(self.age_ms)
    }

    pub fn service(&self) -> String {
        format!("s{:02}", self.endpoint % SERVICES)
    }

    pub fn method(&self) -> &'static str {
        ["GET", "POST", "PUT", "HEAD"][self.endpoint as usize % 4]
    }

    pub fn route(&self) -> String {
        format!("/r/{:05}", self.endpoint)
    }
}

/// How a batch is put on the wire. A further format of Slowburn is one more constant of this type.
pub struct Format {
    pub name: &'static str,
    pub path: &'static str,
    pub content_type: &'static str,
    /// Appends the body of a batch that is sent at `now_ms`.
    pub encode: fn(&[Timing], i64, &mut Vec<u8>),
    /// What says that it was taken.
    pub status: u16,
    /// Whether the answer says how many were accepted.
    pub counts: bool,
}

pub const JSON: Format = Format { name: "JSON", path: "/api/v1/timings", content_type: "application/json", encode: json, status: 200, counts: true };

pub const VICTORIA_TEXT: Format =
    Format { name: "text", path: "/api/v1/import/prometheus", content_type: "text/plain", encode: victoria_text, status: 204, counts: false };

pub const VICTORIA_JSON: Format =
    Format { name: "JSON lines", path: "/api/v1/import", content_type: "application/json", encode: victoria_json, status: 204, counts: false };

/// An array of timings with all the fields that middleware sends.
fn json(timings: &[Timing], now_ms: i64, out: &mut Vec<u8>) {
    for (at, timing) in timings.iter().enumerate() {
        out.push(if at == 0 { b'[' } else { b',' });
        json_object(timing, timing.ts_ms(now_ms), out);
    }
    out.push(b']');
}

pub fn json_object(timing: &Timing, ts_ms: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"ts\":");
    digits(ts_ms as u64, 13, out);
    out.extend_from_slice(b",\"service\":\"s");
    digits(u64::from(timing.endpoint % SERVICES), 2, out);
    out.extend_from_slice(b"\",\"env\":\"prod\",\"method\":\"");
    out.extend_from_slice(timing.method().as_bytes());
    out.extend_from_slice(b"\",\"route\":\"/r/");
    digits(u64::from(timing.endpoint), 5, out);
    out.extend_from_slice(b"\",\"status\":");
    digits(u64::from(timing.status), 3, out);
    out.extend_from_slice(b",\"duration_ms\":");
    digits(u64::from(timing.duration_us / 1_000), 1, out);
    out.push(b'.');
    digits(u64::from(timing.duration_us / 100 % 10), 1, out);
    out.push(b'}');
}

/// A number with at least so many digits; quicker than `write!`, because bodies are made anew while the server is measured.
fn digits(mut number: u64, width: usize, out: &mut Vec<u8>) {
    let mut text = [b'0'; 20];
    let mut at = text.len();
    while number > 0 || text.len() - at < width {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&text[at..]);
}

/// One line a sample, in the text format of Prometheus.
fn victoria_text(timings: &[Timing], now_ms: i64, out: &mut Vec<u8>) {
    for timing in timings {
        let (service, method, route) = (timing.service(), timing.method(), timing.route());
        let (seconds, ts_ms) = (f64::from(timing.duration_us) / 1e6, timing.ts_ms(now_ms));
        writeln!(out, "request_duration_seconds{{service=\"{service}\",env=\"prod\",method=\"{method}\",route=\"{route}\"}} {seconds} {ts_ms}").unwrap();
    }
}

/// One line a series with all of its samples in the batch, which is the form that costs `VictoriaMetrics` least.
fn victoria_json(timings: &[Timing], now_ms: i64, out: &mut Vec<u8>) {
    let mut sorted = timings.to_vec();
    sorted.sort_by_key(|timing| timing.endpoint);
    for series in sorted.chunk_by(|a, b| a.endpoint == b.endpoint) {
        let (service, method, route) = (series[0].service(), series[0].method(), series[0].route());
        let values: Vec<f64> = series.iter().map(|timing| f64::from(timing.duration_us) / 1e6).collect();
        let timestamps: Vec<i64> = series.iter().map(|timing| timing.ts_ms(now_ms)).collect();
        let labels = format!("\"service\":\"{service}\",\"env\":\"prod\",\"method\":\"{method}\",\"route\":\"{route}\"");
        writeln!(out, "{{\"metric\":{{\"__name__\":\"request_duration_seconds\",{labels}}},\"values\":{values:?},\"timestamps\":{timestamps:?}}}").unwrap();
    }
}
