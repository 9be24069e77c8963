//! The metrics that have a past, under the names that `/metrics` exports: which series an endpoint has of each, and what they say of what it did in a window.

use std::sync::Arc;

use promql_parser::label::Matcher;

use super::super::exposition::{bound_text, bounds_with, within_bounds};
use super::super::family::{float, labels_of};
use super::super::promql::buckets::Buckets;
use super::super::promql::evaluate::{Labels, Sample};
use super::super::promql::expression::NAME;
use crate::counting::{Cell, Outcome};
use crate::endpoint::EndpointKey;
use crate::histogram::Histogram;
use crate::histogram::quantile::Quantile;
use crate::history::grouped::Depth;
use crate::judge::ObjectiveStatus;

/// A metric with a past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    Requests,
    Durations,
    DurationBuckets,
    DurationCount,
    DurationSum,
    Latency,
    ObjectiveRequests,
    ObjectiveBad,
}

/// The quantiles of the summary, as it is exported.
const QUANTILES: [&str; 3] = ["0.5", "0.95", "0.99"];

/// The window of the summary.
pub(super) const LATENCY_WINDOW_MS: i64 = 60_000;

impl Metric {
    pub(super) const ALL: [Self; 8] = [
        Self::Requests,
        Self::Durations,
        Self::DurationBuckets,
        Self::DurationCount,
        Self::DurationSum,
        Self::Latency,
        Self::ObjectiveRequests,
        Self::ObjectiveBad,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests => "slowburn_requests_total",
            Self::Durations => "slowburn_request_duration_seconds",
            Self::DurationBuckets => "slowburn_request_duration_seconds_bucket",
            Self::DurationCount => "slowburn_request_duration_seconds_count",
            Self::DurationSum => "slowburn_request_duration_seconds_sum",
            Self::Latency => "slowburn_endpoint_latency_seconds",
            Self::ObjectiveRequests => "slowburn_slo_requests_total",
            Self::ObjectiveBad => "slowburn_slo_bad_requests_total",
        }
    }

    /// Type and text as `/metrics` says them; the parts of a histogram are said of the whole.
    pub(super) fn described(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Requests => Some(("counter", "Requests by outcome.")),
            Self::Durations => Some(("histogram", "Durations of requests; bounds at thresholds of objectives are exact, others within 1 %.")),
            Self::Latency => Some(("summary", "Latency over the last whole minute, absent without requests.")),
            Self::ObjectiveRequests => Some(("counter", "Requests that an objective counts.")),
            Self::ObjectiveBad => {
                Some(("counter", "Those that were bad for it: failures, and of a latency objective also what took longer than its threshold."))
            }
            Self::DurationBuckets | Self::DurationCount | Self::DurationSum => None,
        }
    }

    pub(super) fn depth(self) -> Depth {
        match self {
            Self::Requests | Self::DurationCount | Self::DurationSum => Depth::Counts,
            _ => Depth::Whole,
        }
    }

    pub(super) fn is_of_objectives(self) -> bool {
        matches!(self, Self::ObjectiveRequests | Self::ObjectiveBad)
    }

    /// The series of an endpoint that matchers let through, by the labels that tell them apart.
    pub(super) fn parts(self, matchers: &[Matcher], known: &Known<'_>) -> Vec<(PartLabels, Part)> {
        let labels = labels_of(known.key);
        let of_endpoint = |name: &str| labels.iter().find(|(label, _)| *label == name).map(|(_, value)| value.as_str());
        let value = |part: &PartLabels, name: &str| -> String {
            let own = (name == NAME).then_some(self.name()).or_else(|| of_endpoint(name));
            let of_part = || part.iter().find(|(label, _)| *label == name).map(|(_, value)| value.clone());
            own.map(str::to_owned).or_else(of_part).unwrap_or_default()
        };
        // Those of the endpoint first: they rule out most.
        let is_of_part = |m: &&Matcher| m.name != NAME && of_endpoint(&m.name).is_none();
        let nothing = PartLabels::new();
        if !matchers.iter().filter(|m| !is_of_part(m)).all(|m| m.is_match(&value(&nothing, &m.name))) {
            return Vec::new();
        }
        let mut parts = self.all_parts(known);
        parts.retain(|(part, _)| matchers.iter().filter(is_of_part).all(|m| m.is_match(&value(part, &m.name))));
        parts
    }

    fn all_parts(self, known: &Known<'_>) -> Vec<(PartLabels, Part)> {
        let one = |part: Part| vec![(PartLabels::new(), part)];
        match self {
            Self::Requests => Outcome::ALL.into_iter().map(|o| (vec![("outcome", o.name().to_owned())], Part::Outcome(o))).collect(),
            Self::Durations => one(Part::Histogram),
            Self::DurationCount => one(Part::Count),
            Self::DurationSum => one(Part::Sum),
            Self::DurationBuckets => {
                let bounds = bounds_with(known.thresholds_us.iter().copied());
                let bounds = bounds.into_iter().map(|us| (vec![("le", bound_text(us))], Part::Bound(us)));
                bounds.chain([(vec![("le", "+Inf".to_owned())], Part::Count)]).collect()
            }
            Self::Latency => {
                let labels = |q: &str| vec![("window", "1m".to_owned()), ("quantile", q.to_owned())];
                QUANTILES.into_iter().filter_map(|q| Some((labels(q), Part::Quantile(Quantile::parse(q).ok()?)))).collect()
            }
            Self::ObjectiveRequests | Self::ObjectiveBad => {
                let labels = |o: &Arc<ObjectiveStatus>| vec![("objective", o.objective.clone())];
                known.objectives.iter().map(|o| (labels(o), Part::Objective(Arc::clone(o), self == Self::ObjectiveBad))).collect()
            }
        }
    }
}

/// The labels that a series has beside those of its endpoint.
pub(super) type PartLabels = Vec<(&'static str, String)>;

/// What is known of an endpoint.
pub(super) struct Known<'a> {
    pub(super) key: &'a EndpointKey,
    pub(super) thresholds_us: &'a [u64],
    pub(super) objectives: &'a [Arc<ObjectiveStatus>],
}

/// One series of an endpoint.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Outcome(Outcome),
    Histogram,
    Count,
    Sum,
    /// What took no longer than so many microseconds.
    Bound(u64),
    Quantile(Quantile),
    /// What an objective counts; or only the bad.
    Objective(Arc<ObjectiveStatus>, bool),
}

impl Part {
    /// Whether it grows and never falls.
    pub(super) fn is_counter(&self) -> bool {
        !matches!(self, Self::Quantile(_))
    }
}

/// What parts say of a cell.
pub(super) fn samples(parts: &[(PartLabels, Part)], cell: &Cell) -> Vec<Option<Sample>> {
    let bounds: Vec<u64> = parts.iter().filter_map(|(_, part)| if let Part::Bound(us) = part { Some(*us) } else { None }).collect();
    let mut within = within_bounds(cell, &bounds).into_iter();
    let mut all = Histogram::default();
    if parts.iter().any(|(_, part)| matches!(part, Part::Quantile(_) | Part::Histogram)) {
        all.merge(&cell.passed);
        all.merge(&cell.failed);
    }
    let number = |n: u64| Some(Sample::Number(float(n)));
    let mut sample = |part: &Part| match part {
        Part::Outcome(outcome) => number(cell.outcomes[*outcome as usize].weight),
        Part::Count => number(cell.total().weight),
        Part::Sum => Some(Sample::Number(float(cell.sum_us) / 1e6)),
        Part::Bound(_) => within.next().and_then(|(_, n)| number(n)),
        Part::Histogram => Some(Sample::Histogram(Arc::new(Buckets::of(&all, cell.sum_us)))),
        Part::Quantile(q) => all.quantile_us(*q).map(|us| Sample::Number(float(us) / 1e6)),
        Part::Objective(objective, is_bad) => {
            let (requests, bad) = objective.requests_and_bad(cell);
            number(if *is_bad { bad } else { requests })
        }
    };
    parts.iter().map(|(_, part)| sample(part)).collect()
}

/// Labels of an endpoint as a scrape keeps them: an empty one is none.
pub(super) fn endpoint_labels(key: &EndpointKey) -> Labels {
    labels_of(key).into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.to_owned(), value)).collect()
}
