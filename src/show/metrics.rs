//! `/metrics` in the text format 0.0.4, through the `prometheus` crate: Slowburn itself, objectives, incidents, critical endpoints, and the busiest others up to a limit
//! that says when it cuts.
//!
//! Families are built from the state at each scrape; nothing is counted twice to be shown. Counters come from what is on disk, so they do not fall over a restart;
//! what is counted in memory only is a gauge named `slowburn_process_*`.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile as QuantileProto, Summary};
use prometheus::{Encoder as _, TextEncoder};

use super::{Scene, Site};
use crate::counting::{Cell, Outcome};
use crate::endpoint::{EndpointId, EndpointKey};
use crate::histogram::quantile::Quantile;
use crate::history::totals::Total;
use crate::ingest::Fate;
use crate::ingest::http::Refusal;
use crate::notify::outbox::LaneStatus;

/// Bounds of the classic histogram in microseconds; each objective's threshold is added.
const BOUNDS_US: [u64; 14] =
    [5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000];

pub(super) fn routes() -> Router<Site> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(site): State<Site>) -> Result<impl IntoResponse, Refusal> {
    let (lanes, work, limit) = (site.source.lanes(), site.source.work(), site.exported_endpoints_max);
    let families = site.look(move |scene| gather(scene, &lanes, work, limit)).await?;
    let mut out = Vec::new();
    let encoder = TextEncoder::new();
    encoder.encode(&families, &mut out).map_err(|e| {
        tracing::error!(error = %e, "metrics cannot be encoded");
        Refusal::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "metrics", e.to_string())
    })?;
    Ok(([(header::CONTENT_TYPE, encoder.format_type().to_owned())], out))
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn labels_of(key: &EndpointKey) -> Vec<LabelPair> {
    vec![label("service", &key.service), label("env", &key.env), label("kind", &key.kind), label("method", &key.method), label("route", &key.route)]
}

fn with(mut labels: Vec<LabelPair>, name: &str, value: &str) -> Vec<LabelPair> {
    labels.push(label(name, value));
    labels
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
fn float(n: u64) -> f64 {
    n as f64
}

struct Family(MetricFamily);

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    fn metric(&mut self, labels: Vec<LabelPair>) -> &mut Metric {
        let mut metric = Metric::default();
        metric.set_label(labels);
        self.0.mut_metric().push(metric);
        self.0.mut_metric().last_mut().expect("pushed above")
    }

    fn counter(&mut self, labels: Vec<LabelPair>, value: u64) {
        let mut counter = Counter::default();
        counter.set_value(float(value));
        self.metric(labels).set_counter(counter);
    }

    fn gauge(&mut self, labels: Vec<LabelPair>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.metric(labels).set_gauge(gauge);
    }
}

fn gather(scene: &Scene<'_>, lanes: &[LaneStatus], work: [u64; 4], limit: usize) -> Vec<MetricFamily> {
    let mut families = own(scene, lanes, work);
    let exported = exported(scene, limit);
    let mut truncated = Family::new(
        "slowburn_export_truncated_endpoints",
        "Endpoints that are not exported, because the limit of exported endpoints is reached.",
        MetricType::GAUGE,
    );
    truncated.gauge(vec![], float((scene.machine.catalogue.entries().len() - exported.len()) as u64));
    families.push(truncated.0);
    families.extend(of_endpoints(scene, &exported));
    families.extend(of_objectives(scene));
    // An empty family is refused by the encoder.
    families.retain(|f| !f.get_metric().is_empty());
    families
}

/// Critical endpoints, then those with the most requests.
fn exported(scene: &Scene<'_>, limit: usize) -> Vec<EndpointId> {
    let machine = scene.machine;
    let mut all: Vec<(bool, u64, EndpointId)> = machine
        .catalogue
        .entries()
        .iter()
        .zip(&machine.totals)
        .zip(0_u32..)
        .map(|((e, total), id)| (!machine.is_critical(e), u64::MAX - total.requests(), EndpointId(id)))
        .collect();
    all.sort_unstable();
    let critical = all.iter().filter(|e| !e.0).count();
    all.truncate(limit.max(critical));
    let mut ids: Vec<EndpointId> = all.into_iter().map(|e| e.2).collect();
    ids.sort_unstable();
    ids
}

fn own(scene: &Scene<'_>, lanes: &[LaneStatus], work: [u64; 4]) -> Vec<MetricFamily> {
    let machine = scene.machine;
    let mut build = Family::new("slowburn_build_info", "The version that runs; always 1.", MetricType::GAUGE);
    build.gauge(vec![label("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let mut timings = Family::new("slowburn_ingest_timings_total", "Timings received, each with exactly one outcome.", MetricType::COUNTER);
    for fate in Fate::ALL {
        timings.counter(vec![label("outcome", fate.name())], machine.fates[fate as usize]);
    }
    let mut sent = Family::new("slowburn_notifications_total", "Notifications that ended, by receiver and result.", MetricType::COUNTER);
    for ((receiver, result), count) in &machine.delivered {
        sent.counter(vec![label("receiver", receiver), label("result", result)], *count);
    }
    let mut waiting = Family::new("slowburn_notifications_waiting", "Notifications that are owed and not delivered yet.", MetricType::GAUGE);
    waiting.gauge(vec![], float(machine.judge.outbox().len() as u64));
    let mut attempts =
        Family::new("slowburn_process_delivery_attempts", "Attempts at deliveries since the process started or was reconfigured.", MetricType::GAUGE);
    let mut failures =
        Family::new("slowburn_process_delivery_failures", "Failed attempts at deliveries since the process started or was reconfigured.", MetricType::GAUGE);
    let mut by_receiver: std::collections::BTreeMap<&str, (u64, u64)> = std::collections::BTreeMap::new();
    for lane in lanes {
        let sum = by_receiver.entry(&lane.receiver).or_default();
        *sum = (sum.0 + lane.attempts, sum.1 + lane.failures);
    }
    for (receiver, (tried, failed)) in by_receiver.into_iter().filter(|(receiver, _)| !receiver.is_empty()) {
        attempts.gauge(vec![label("receiver", receiver)], float(tried));
        failures.gauge(vec![label("receiver", receiver)], float(failed));
    }
    let mut endpoints = Family::new("slowburn_endpoints", "Endpoints in the catalogue.", MetricType::GAUGE);
    endpoints.gauge(vec![], float(machine.catalogue.entries().len() as u64));
    let mut judged = Family::new("slowburn_judged_timestamp_seconds", "The end of the last slot that was judged.", MetricType::GAUGE);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a date are far below 2^53")]
    judged.gauge(vec![], machine.judge.judged_to().map_or(0.0, |s| s.end().0 as f64 / 1000.0));
    let mut families = vec![build.0, timings.0, sent.0, waiting.0, attempts.0, failures.0, endpoints.0, judged.0];
    let [commits, commit_us, judge_us, snapshots] = work;
    for (name, help, value) in [
        ("slowburn_process_commits", "Writes to the log since the process started.", float(commits)),
        ("slowburn_process_commit_seconds", "Time spent writing and syncing the log since the process started.", float(commit_us) / 1e6),
        ("slowburn_process_judge_seconds", "Time spent judging since the process started.", float(judge_us) / 1e6),
        ("slowburn_process_snapshots", "Snapshots written since the process started.", float(snapshots)),
    ] {
        let mut family = Family::new(name, help, MetricType::GAUGE);
        family.gauge(vec![], value);
        families.push(family.0);
    }
    for (name, help, value) in [
        ("slowburn_log_frames_total", "Frames written to the log.", machine.position.0),
        ("slowburn_in_flight_reports_total", "Reports of requests in flight.", machine.in_flight_reports),
        ("slowburn_sender_dropped_timings_total", "Timings that senders dropped before they could send them.", machine.keys.dropped()),
        ("slowburn_sender_conflicts_total", "Signs that two processes use one sender's name.", machine.keys.conflicts()),
    ] {
        let mut family = Family::new(name, help, MetricType::COUNTER);
        family.counter(vec![], value);
        families.push(family.0);
    }
    families
}

fn of_endpoints(scene: &Scene<'_>, exported: &[EndpointId]) -> Vec<MetricFamily> {
    let machine = scene.machine;
    let mut requests = Family::new("slowburn_requests_total", "Requests by outcome.", MetricType::COUNTER);
    let mut durations = Family::new(
        "slowburn_request_duration_seconds",
        "Durations of requests; bounds at thresholds of objectives are exact, others within 1 %. Endpoints that are not critical have no bound but +Inf.",
        MetricType::HISTOGRAM,
    );
    let mut recent = Family::new(
        "slowburn_endpoint_latency_seconds",
        "Latency of critical endpoints over the minutes in memory, absent without requests; sum and count are of all requests ever.",
        MetricType::SUMMARY,
    );
    let mut open: std::collections::HashMap<EndpointId, Cell> = std::collections::HashMap::new();
    for (_, id, cell) in machine.open.cells() {
        open.entry(id).or_default().merge(&cell);
    }
    for &id in exported {
        let (Some(entry), total) = (machine.catalogue.entry(id), &machine.totals[id.0 as usize]) else { continue };
        let labels = labels_of(&entry.key);
        for outcome in Outcome::ALL {
            requests.counter(with(labels.clone(), "outcome", outcome.name()), total.outcomes[outcome as usize]);
        }
        let critical = machine.is_critical(entry);
        durations.metric(labels.clone()).set_histogram(classic(total));
        if let Some(cell) = open.get(&id).filter(|_| critical) {
            recent.metric(with(labels, "window", "1m")).set_summary(summary(cell, total));
        }
    }
    vec![requests.0, durations.0, recent.0]
}

fn classic(total: &Total) -> Histogram {
    let mut histogram = Histogram::default();
    histogram.set_sample_count(total.requests());
    histogram.set_sample_sum(float(total.sum_us) / 1e6);
    if let Some(cell) = &total.cell {
        let mut bounds: Vec<u64> = BOUNDS_US.into_iter().chain(cell.thresholds.iter().map(|t| t.threshold_us)).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let buckets = bounds.into_iter().map(|us| {
            let count = cell.at_threshold(us);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(float(us) / 1e6);
            bucket.set_cumulative_count(count.within.weight + count.failed_within.weight);
            bucket
        });
        histogram.set_bucket(buckets.collect());
    }
    histogram
}

/// Quantiles of what is recent; sum and count of everything, since they are counters.
fn summary(recent: &Cell, total: &Total) -> Summary {
    let mut all = recent.passed.clone();
    all.merge(&recent.failed);
    let mut summary = Summary::default();
    summary.set_sample_count(total.requests());
    summary.set_sample_sum(float(total.sum_us) / 1e6);
    let quantiles = [("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99)].into_iter().filter_map(|(text, number)| {
        let us = all.quantile_us(Quantile::parse(text).ok()?)?;
        let mut quantile = QuantileProto::default();
        quantile.set_quantile(number);
        quantile.set_value(float(us) / 1e6);
        Some(quantile)
    });
    summary.set_quantile(quantiles.collect());
    summary
}

fn of_objectives(scene: &Scene<'_>) -> Vec<MetricFamily> {
    let machine = scene.machine;
    let mut left = Family::new(
        "slowburn_slo_error_budget_remaining_ratio",
        "The share of the error budget that is left: 1 all, 0 none, below 0 overdrawn.",
        MetricType::GAUGE,
    );
    let mut burn = Family::new("slowburn_slo_burn_rate", "How many times faster than its budget allows an objective burns, by window.", MetricType::GAUGE);
    let mut target = Family::new("slowburn_slo_objective_ratio", "The share of good requests promised.", MetricType::GAUGE);
    let mut undecided = Family::new("slowburn_slo_undecided", "1 when an objective looks broken and luck is not excluded.", MetricType::GAUGE);
    for o in machine.judge.objectives() {
        let Some(entry) = machine.catalogue.entry(o.endpoint) else { continue };
        let labels = with(labels_of(&entry.key), "objective", &o.objective);
        left.gauge(labels.clone(), o.error_budget_remaining_ratio);
        target.gauge(labels.clone(), o.target_ratio);
        undecided.gauge(labels.clone(), f64::from(u8::from(o.state == crate::judge::ObjectiveState::Undecided)));
        let mut seen = std::collections::BTreeSet::new();
        for w in &o.windows {
            for (window, rate) in [(&w.evidence.long, w.evidence.burn_long), (&w.evidence.short, w.evidence.burn_short)] {
                if seen.insert(window) {
                    burn.gauge(with(labels.clone(), "window", window), rate);
                }
            }
        }
    }
    let mut active = Family::new("slowburn_incident_active", "1 for each open incident.", MetricType::GAUGE);
    for i in machine.judge.incidents().values() {
        let key =
            EndpointKey { service: i.service.clone(), env: i.env.clone(), kind: i.endpoint_kind.clone(), method: i.method.clone(), route: i.route.clone() };
        let labels = with(with(labels_of(&key), "incident_kind", i.kind.name()), "severity", i.severity.name());
        active.gauge(with(labels, "objective", &i.objective), 1.0);
    }
    vec![left.0, burn.0, target.0, undecided.0, active.0]
}
