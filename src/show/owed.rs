//! The metrics of what is owed: objectives with their counters, open incidents, forecasts.
//!
//! The histogram of an endpoint cannot say which requests broke a latency objective: its buckets hold failures too, and a failure is bad however fast it was. So
//! each objective has counters of its own, by the very count that judges it; the requests that still run are not in them.

use std::collections::{BTreeMap, BTreeSet};

use super::Scene;
use super::family::{Family, float, labels_of, with};
use crate::judge::{ObjectiveState, requests_and_bad};

/// How objectives stand at the last slot that was judged.
pub(super) fn of_objectives(scene: &Scene<'_>) -> Vec<Family> {
    let machine = scene.machine;
    let mut left = Family::gauge("slowburn_slo_error_budget_remaining_ratio", "The share of the error budget that is left: 1 all, 0 none, below 0 overdrawn.");
    let mut burn = Family::gauge("slowburn_slo_burn_rate", "How many times faster than its budget allows an objective burns, by window.");
    let mut target = Family::gauge("slowburn_slo_objective_ratio", "The share of good requests promised.");
    let mut undecided = Family::gauge("slowburn_slo_undecided", "1 when an objective looks broken and luck is not excluded.");
    let mut period = Family::gauge("slowburn_slo_period_requests", "Requests in the period of an objective's budget.");
    let mut period_bad = Family::gauge("slowburn_slo_period_bad_requests", "Bad ones among the requests in the period of an objective's budget.");
    for o in machine.judge.objectives() {
        let Some(entry) = machine.catalogue.entry(o.endpoint) else { continue };
        let labels = with(labels_of(&entry.key), "objective", &o.objective);
        left.add(labels.clone(), o.error_budget_remaining_ratio);
        target.add(labels.clone(), o.target_ratio);
        undecided.add(labels.clone(), f64::from(u8::from(o.state == ObjectiveState::Undecided)));
        period.add(labels.clone(), float(o.n));
        period_bad.add(labels.clone(), float(o.bad));
        let mut seen = BTreeSet::new();
        for w in &o.windows {
            for (window, rate) in [(&w.evidence.long, w.evidence.burn_long), (&w.evidence.short, w.evidence.burn_short)] {
                if seen.insert(window) {
                    burn.add(with(labels.clone(), "window", window), rate);
                }
            }
        }
    }
    vec![left, burn, target, undecided, period, period_bad]
}

/// What each objective counts, which moves with every batch.
pub(super) fn counted_for_objectives(scene: &Scene<'_>) -> [Family; 2] {
    let machine = scene.machine;
    let mut requests = Family::counter("slowburn_slo_requests_total", "Requests that an objective counts, ever: those before it was promised too.");
    let mut bad = Family::counter(
        "slowburn_slo_bad_requests_total",
        "Those that were bad for it: failures, and of a latency objective also what took longer than its threshold. Without what still runs.",
    );
    for (endpoint, objective, goal) in machine.judge.goals() {
        let (Some(entry), Some(cell)) = (machine.catalogue.entry(endpoint), machine.cell_of(endpoint)) else { continue };
        let labels = with(labels_of(&entry.key), "objective", objective);
        let (all, of_them_bad) = requests_and_bad(goal, cell);
        requests.add(labels.clone(), float(all));
        bad.add(labels, float(of_them_bad));
    }
    [requests, bad]
}

pub(super) fn of_incidents(scene: &Scene<'_>) -> Vec<Family> {
    let machine = scene.machine;
    let mut active = Family::gauge("slowburn_incident_active", "1 for each open incident.");
    let mut trend = Family::gauge("slowburn_endpoint_trend_ratio_per_day", "Growth of the usual latency of an endpoint that creeps: 0.02 is 2 % a day.");
    let mut breach = Family::gauge(
        "slowburn_endpoint_time_to_breach_seconds",
        "Until an endpoint that creeps breaks the first of its promises, where a date can be given: as likely earlier as later.",
    );
    // An endpoint with several incidents has one growth and one date, the nearest.
    let (mut open, mut growth, mut dates) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let now = machine.judge.judged_to().unwrap_or_default().end();
    for i in machine.judge.incidents().values() {
        let key = i.endpoint();
        if let Some(slope) = i.evidence.change().and_then(|c| c.slope_ratio_per_day) {
            growth.insert(labels_of(&key), slope);
        }
        if let Some(forecast) = i.breach {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of months are far below 2^53")]
            let left = (forecast.at.0 - now.0).max(0) as f64 / 1000.0;
            dates.entry(labels_of(&key)).and_modify(|nearest: &mut f64| *nearest = nearest.min(left)).or_insert(left);
        }
        let labels = with(with(labels_of(&key), "incident_kind", i.kind.name()), "severity", i.severity.name());
        let name = i.evidence.change().and_then(|c| c.name.as_deref());
        open.insert(with(labels, "objective", name.unwrap_or(&i.objective)), 1.0);
    }
    for (family, samples) in [(&mut active, open), (&mut trend, growth), (&mut breach, dates)] {
        for (labels, value) in samples {
            family.add(labels, value);
        }
    }
    vec![active, trend, breach]
}
