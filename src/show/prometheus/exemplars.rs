//! Exemplars of the series that an expression selects, as Prometheus answers them: Grafana draws them over a graph and leads from each to its trace.
//!
//! They are those that are kept: of each endpoint the slowest of each minute and, further back, of each ten minutes, some hours back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::super::Site;
use super::super::exposition::exemplar::{Shown, fits, of_bucket, shown};
use super::super::promql::evaluate::Labels;
use super::super::promql::expression::{Leaf, NAME, parse};
use super::form::{Form, invalid};
use super::metric::{Metric, Part, endpoint_labels};
use super::past::Catalogue;
use super::{Answer, Failure, broken, json};
use crate::endpoint::EndpointId;
use crate::history::exemplars::{Exemplar, Exemplars};
use crate::time::{TIMESTAMP_MS_MAX, TimeRange, Timestamp};

/// Exemplars in one answer.
const LISTED_MAX: usize = 10_000;

/// The metrics that have some.
const METRICS: [Metric; 3] = [Metric::Requests, Metric::Durations, Metric::DurationBuckets];

pub(super) async fn exemplars(site: &Site, form: &Form) -> Result<Answer, Failure> {
    let query = parse(form.required("query")?).map_err(|e| invalid("query", e))?;
    let (start, end) = (form.time("start", Timestamp(0))?, form.time("end", Timestamp(TIMESTAMP_MS_MAX))?);
    if end < start {
        return Err(invalid("end", "end timestamp must not be before start timestamp"));
    }
    let running = site.queries.begin().await?;
    let catalogue = Catalogue::of(site, false).await?;
    // They are shared, not copied.
    let known = site.look(|scene| scene.machine.exemplars.clone()).await?;
    let range = TimeRange { from: start, to: end.plus_ms(1) };
    let answered = tokio::task::spawn_blocking(move || {
        // It runs to its end, also when whoever asked has gone.
        let _running = running;
        selected(&query.leaves, &catalogue, &known, range)
    });
    answered.await.map_err(|e| broken(&e))
}

fn selected(leaves: &[Leaf], catalogue: &Catalogue, known: &Exemplars, range: TimeRange) -> Answer {
    let mut by_endpoint: BTreeMap<EndpointId, Vec<&Exemplar>> = BTreeMap::new();
    for (id, exemplar) in known.of(EndpointId(0)..=EndpointId(u32::MAX), range).filter(|(_, e)| fits(e)) {
        by_endpoint.entry(id).or_default().push(exemplar);
    }
    for all in by_endpoint.values_mut() {
        all.sort_by_key(|e| e.ts);
    }
    let (mut series, mut left) = (BTreeMap::<Labels, Vec<Shown<'_>>>::new(), LISTED_MAX);
    for (leaf, metric) in leaves.iter().flat_map(|leaf| METRICS.map(|metric| (leaf, metric))) {
        catalogue.each_of(
            metric,
            &leaf.matchers,
            |id| by_endpoint.contains_key(&id),
            |id, key, parts| {
                let (all, bounds) = (&by_endpoint[&id], catalogue.bounds_of(key));
                for (part_labels, part) in parts {
                    let of_part: Vec<Shown<'_>> = all.iter().filter_map(|e| of(&part, e, &bounds)).take(left).collect();
                    if of_part.is_empty() {
                        continue;
                    }
                    let name = [(NAME.to_owned(), metric.name().to_owned())];
                    let own = part_labels.into_iter().map(|(name, value)| (name.to_owned(), value));
                    // Two selectors of an expression may name the same.
                    if let Entry::Vacant(place) = series.entry(endpoint_labels(key).into_iter().chain(name).chain(own).collect()) {
                        left -= of_part.len();
                        place.insert(of_part);
                    }
                }
            },
        );
    }
    let notes = (left == 0).then(|| format!("results truncated due to limit: {LISTED_MAX} exemplars")).into_iter().collect();
    Answer { data: json::of_exemplars(&series), notes }
}

/// An exemplar as the part of a metric has it, if it does.
fn of<'a>(part: &Part, exemplar: &'a Exemplar, bounds_us: &[u64]) -> Option<Shown<'a>> {
    let one = std::slice::from_ref(exemplar);
    match part {
        Part::Outcome(outcome) => (exemplar.outcome == *outcome).then(|| Shown { value: 1.0, ..shown(exemplar) }),
        Part::Histogram => Some(shown(exemplar)),
        Part::Bound(us) => of_bucket(one, bounds_us.iter().copied().filter(|bound| bound < us).max(), Some(*us)),
        Part::Count => of_bucket(one, bounds_us.last().copied(), None),
        Part::Sum | Part::Quantile(_) | Part::Objective(..) => None,
    }
}
