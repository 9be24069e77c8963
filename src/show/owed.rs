//! The metrics of what is owed: objectives with their counters, open incidents, forecasts.
//!
//! The histogram of an endpoint cannot say which requests broke a latency objective: its buckets hold failures too, and a failure is bad however fast it was. So
//! each objective has counters of its own, by the very count that judges it; the requests that still run are not in them.

use std::collections::BTreeSet;

use prometheus::proto::{MetricFamily, MetricType};

use super::Scene;
use super::family::{Family, float, labels_of, with};
use crate::judge::ObjectiveState;

pub(super) fn of_objectives(scene: &Scene<'_>) -> Vec<MetricFamily> {
    let machine = scene.machine;
    let gauge = |name: &str, help: &str| Family::new(name, help, MetricType::GAUGE);
    let counter = |name: &str, help: &str| Family::new(name, help, MetricType::COUNTER);
    let mut left = gauge("slowburn_slo_error_budget_remaining_ratio", "The share of the error budget that is left: 1 all, 0 none, below 0 overdrawn.");
    let mut burn = gauge("slowburn_slo_burn_rate", "How many times faster than its budget allows an objective burns, by window.");
    let mut target = gauge("slowburn_slo_objective_ratio", "The share of good requests promised.");
    let mut undecided = gauge("slowburn_slo_undecided", "1 when an objective looks broken and luck is not excluded.");
    let mut requests = counter("slowburn_slo_requests_total", "Requests that an objective counts, ever: those before it was promised too.");
    let mut bad = counter(
        "slowburn_slo_bad_requests_total",
        "Those that were bad for it: failures, and of a latency objective also what took longer than its threshold. Without what still runs.",
    );
    let mut period = gauge("slowburn_slo_period_requests", "Requests in the period of an objective's budget.");
    let mut period_bad = gauge("slowburn_slo_period_bad_requests", "Bad ones among the requests in the period of an objective's budget.");
    for o in machine.judge.objectives() {
        let Some(entry) = machine.catalogue.entry(o.endpoint) else { continue };
        let labels = with(labels_of(&entry.key), "objective", &o.objective);
        left.gauge(labels.clone(), o.error_budget_remaining_ratio);
        target.gauge(labels.clone(), o.target_ratio);
        undecided.gauge(labels.clone(), f64::from(u8::from(o.state == ObjectiveState::Undecided)));
        period.gauge(labels.clone(), float(o.n));
        period_bad.gauge(labels.clone(), float(o.bad));
        if let Some(cell) = machine.cell_of(o.endpoint) {
            let (all, of_them_bad) = o.requests_and_bad(cell);
            requests.counter(labels.clone(), all);
            bad.counter(labels.clone(), of_them_bad);
        }
        let mut seen = BTreeSet::new();
        for w in &o.windows {
            for (window, rate) in [(&w.evidence.long, w.evidence.burn_long), (&w.evidence.short, w.evidence.burn_short)] {
                if seen.insert(window) {
                    burn.gauge(with(labels.clone(), "window", window), rate);
                }
            }
        }
    }
    [left, burn, target, undecided, requests, bad, period, period_bad].into_iter().map(|f| f.0).chain(of_incidents(scene)).collect()
}

fn of_incidents(scene: &Scene<'_>) -> [MetricFamily; 3] {
    let machine = scene.machine;
    let mut active = Family::new("slowburn_incident_active", "1 for each open incident.", MetricType::GAUGE);
    let mut trend =
        Family::new("slowburn_endpoint_trend_ratio_per_day", "Growth of the usual latency of an endpoint that creeps: 0.02 is 2 % a day.", MetricType::GAUGE);
    let mut breach = Family::new(
        "slowburn_endpoint_time_to_breach_seconds",
        "Until an endpoint that creeps breaks the first of its promises, where a date can be given: as likely earlier as later.",
        MetricType::GAUGE,
    );
    let now = machine.judge.judged_to().unwrap_or_default().end();
    for i in machine.judge.incidents().values() {
        let key = i.endpoint();
        if let Some(slope) = i.evidence.change().and_then(|c| c.slope_ratio_per_day) {
            trend.gauge(labels_of(&key), slope);
        }
        if let Some(forecast) = i.breach {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of months are far below 2^53")]
            breach.gauge(labels_of(&key), (forecast.at.0 - now.0).max(0) as f64 / 1000.0);
        }
        let labels = with(with(labels_of(&key), "incident_kind", i.kind.name()), "severity", i.severity.name());
        let name = i.evidence.change().and_then(|c| c.name.as_deref());
        active.gauge(with(labels, "objective", name.unwrap_or(&i.objective)), 1.0);
    }
    [active.0, trend.0, breach.0]
}
