//! The naive evaluator: every window pair at every slot end, straight from the raw timings, with nothing shared with the engine but the numbers of the configuration.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use slowburn::judge::Promise;
use slowburn::objective::{BurnWindow, Severity};

/// A request: Unix ms, microseconds, failed.
pub type Timing = (i64, u64, bool);

const SLOT_MS: i64 = 10_000;
const JUDGE_AFTER_MS: i64 = 15_000;

/// Reads gzipped NDJSON.
pub fn read(path: &Path) -> Vec<Timing> {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text.lines()
        .map(|l| {
            let line: serde_json::Value = serde_json::from_str(l).unwrap();
            let us = (line["duration_ms"].as_f64().unwrap() * 1000.0 + 0.5) as u64;
            (line["ts"].as_i64().unwrap(), us, line["status"].as_u64().unwrap() >= 500)
        })
        .collect()
}

/// A seeded stream of two and a half days at 15 to 150 requests an hour, with hours that are bad, worse and empty.
pub fn stream(seed: u64) -> Vec<Timing> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let per_hour = 15.0 * 10f64.powf(random());
    let (mut timings, mut at) = (Vec::new(), 1_767_571_200_000.0 + random() * 1e4);
    let share: Vec<f64> = (0..60).map(|_| [0.0, 0.002, 0.005, 0.02, 0.1, 0.6, -1.0][(random() * 7.0) as usize]).collect();
    while at < 1_767_571_200_000.0 + 60.0 * 3.6e6 {
        at += -random().ln() * 3.6e6 / per_hour;
        let Some(share) = share.get(((at - 1_767_571_200_000.0) / 3.6e6) as usize) else { break };
        if *share >= 0.0 {
            let slow = random() < *share;
            timings.push((at as i64, if slow { 900_000 } else { 100_000 + (random() * 6e5) as u64 }, random() < share / 10.0));
        }
    }
    timings
}

/// The stream as lines.
pub fn ndjson(timings: &[Timing]) -> String {
    let line = |(ts, us, failed): &Timing| {
        format!(
            "{{\"ts\":{ts},\"service\":\"shop\",\"method\":\"POST\",\"route\":\"/orders\",\"status\":{},\"duration_us\":{us}}}\n",
            if *failed { 503 } else { 200 }
        )
    };
    timings.iter().map(line).collect()
}

struct Slots {
    first: i64,
    total: Vec<u64>,
    bad: Vec<u64>,
}

impl Slots {
    fn new(timings: &[Timing], threshold_us: u64) -> Self {
        let slot = |t: &Timing| t.0 / SLOT_MS;
        let (first, last) = (slot(&timings[0]), timings.iter().map(slot).max().unwrap());
        let (mut total, mut bad) = (vec![0; (last - first + 2) as usize], vec![0; (last - first + 2) as usize]);
        for t in timings {
            let at = (slot(t) - first + 1) as usize;
            total[at] += 1;
            bad[at] += u64::from(t.2 || t.1 > threshold_us);
        }
        for counts in [&mut total, &mut bad] {
            for i in 1..counts.len() {
                counts[i] += counts[i - 1];
            }
        }
        Self { first, total, bad }
    }

    fn ends(&self) -> std::ops::Range<usize> {
        1..self.total.len()
    }

    fn at(&self, end: usize) -> i64 {
        (self.first + end as i64) * SLOT_MS + JUDGE_AFTER_MS
    }

    fn window(&self, end: usize, slots: u32) -> (u64, u64) {
        let start = end.saturating_sub(slots as usize);
        (self.total[end] - self.total[start], self.bad[end] - self.bad[start])
    }
}

thread_local! {
    static TAILS: RefCell<HashMap<(u64, u64, u64), f64>> = RefCell::default();
}

/// P(X ≥ k | n, p), term by term; each is computed once.
fn tail(k: u64, n: u64, p: f64) -> f64 {
    if k == n && n == 1 {
        return p;
    }
    let key = (k, n, p.to_bits());
    if let Some(known) = TAILS.with_borrow(|t| t.get(&key).copied()) {
        return known;
    }
    let (mut log_term, mut sum) = (n as f64 * (1.0 - p).ln(), 0.0);
    for i in 0..=n {
        if i >= k {
            sum += log_term.exp();
            if i as f64 > n as f64 * p && log_term.exp() < sum * 1e-17 {
                break;
            }
        }
        log_term += ((n - i) as f64 / (i + 1) as f64).ln() + (p / (1.0 - p)).ln();
    }
    TAILS.with_borrow_mut(|t| t.insert(key, sum));
    sum
}

fn burns(w: &BurnWindow, (n, bad): (u64, u64), budget: f64) -> bool {
    n > 0 && bad as f64 >= w.factor() * budget * n as f64
}

fn fires(slots: &Slots, end: usize, w: &BurnWindow, budget: f64) -> bool {
    let (long, short) = (slots.window(end, w.long_slots), slots.window(end, w.short_slots));
    burns(w, long, budget) && burns(w, short, budget) && tail(long.1, long.0, budget) < w.alpha
}

/// When each pair first fires, by the server's clock.
pub fn first_firing(timings: &[Timing], threshold_us: u64, budget_ppb: u64, windows: &[BurnWindow]) -> Vec<i64> {
    let slots = Slots::new(timings, threshold_us);
    let budget = budget_ppb as f64 / 1e9;
    windows.iter().map(|w| slots.at(slots.ends().find(|end| fires(&slots, *end, w, budget)).unwrap())).collect()
}

/// The upper limit of the share of bad requests is under the factor, on the short window or the shortest doubling of it that can say.
fn clear(slots: &Slots, end: usize, w: &BurnWindow, budget: f64) -> bool {
    let limit = (w.factor() * budget).min(1.0);
    let mut width = w.short_slots;
    loop {
        let (n, bad) = slots.window(end, width);
        if burns(w, (n, bad), budget) {
            return false;
        }
        if n > 0 && bad < n && 1.0 - tail(bad + 1, n, limit) < 0.05 {
            return true;
        }
        if width == w.long_slots {
            return false;
        }
        width = (width * 2).min(w.long_slots);
    }
}

#[derive(Clone, Copy, Default)]
struct Pair {
    firing: bool,
    clear_since: Option<usize>,
    long_clear_since: Option<usize>,
}

/// Every line of one objective of a critical endpoint: at, event, severity.
pub fn lines(timings: &[Timing], threshold_us: u64, promise: &Promise) -> Vec<(i64, String, String)> {
    let slots = Slots::new(timings, threshold_us);
    let budget = promise.budget_ppb() as f64 / 1e9;
    let mut pairs = vec![Pair::default(); promise.windows.len()];
    let (mut open, mut unverified, mut lines): (Option<Severity>, bool, Vec<_>) = (None, false, Vec::new());
    for end in slots.ends() {
        for (pair, w) in pairs.iter_mut().zip(&promise.windows) {
            let (short, long) = (slots.window(end, w.short_slots), slots.window(end, w.long_slots));
            if fires(&slots, end, w, budget) {
                *pair = Pair { firing: true, ..Pair::default() };
            } else if pair.firing && short.0 > 0 {
                if burns(w, long, budget) {
                    pair.long_clear_since = None;
                } else {
                    pair.long_clear_since.get_or_insert(end);
                }
                if clear(&slots, end, w, budget) {
                    pair.clear_since.get_or_insert(end);
                } else if burns(w, short, budget) {
                    pair.clear_since = None;
                }
                let held = |since: Option<usize>, slots: u32| since.is_some_and(|s| end - s >= slots as usize);
                if held(pair.clear_since, w.short_slots) || held(pair.long_clear_since, w.long_slots) {
                    *pair = Pair::default();
                }
            }
        }
        let firing = || pairs.iter().zip(&promise.windows).filter(|(p, _)| p.firing).map(|(_, w)| w);
        let severity = firing().map(|w| w.severity).max();
        let silent = firing().map(|w| w.long_slots).min().is_some_and(|long| slots.window(end, long).0 == 0);
        let event = match (open, severity) {
            (None, Some(_)) => "opened",
            (Some(_), None) => "resolved",
            (Some(a), Some(b)) if b > a => "escalated",
            (Some(a), Some(b)) if b < a => "deescalated",
            (Some(_), Some(_)) if silent != unverified => "updated",
            _ => continue,
        };
        lines.push((slots.at(end), event.to_owned(), severity.or(open).unwrap().name().to_owned()));
        (open, unverified) = (severity, silent);
    }
    lines
}
