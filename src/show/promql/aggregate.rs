//! Many series to fewer: sums and their like by group, and the few largest or smallest.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::evaluate::{Error, Labels, Sample, Series, Value, kept, merged, scalar};
use super::expression::Grouping;

/// How a group becomes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Aggregator {
    Sum,
    Average,
    Least,
    Most,
    Count,
    Group,
    Top,
    Bottom,
}

const AGGREGATORS: [(&str, Aggregator); 8] = [
    ("sum", Aggregator::Sum),
    ("avg", Aggregator::Average),
    ("min", Aggregator::Least),
    ("max", Aggregator::Most),
    ("count", Aggregator::Count),
    ("group", Aggregator::Group),
    ("topk", Aggregator::Top),
    ("bottomk", Aggregator::Bottom),
];

impl Aggregator {
    pub(super) fn named(name: &str) -> Option<Self> {
        AGGREGATORS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, aggregator)| *aggregator)
    }
}

pub(super) fn aggregate(
    aggregator: Aggregator,
    parameter: Option<Value>,
    grouping: &Grouping,
    series: Vec<Series>,
    instants: usize,
) -> Result<Vec<Series>, Error> {
    let mut groups: BTreeMap<Labels, Vec<usize>> = BTreeMap::new();
    for (n, one) in series.iter().enumerate() {
        groups.entry(kept(&one.labels, |name| grouping.keeps(name))).or_default().push(n);
    }
    if matches!(aggregator, Aggregator::Top | Aggregator::Bottom) {
        let wanted = scalar(parameter.ok_or_else(|| Error::Execution("topk and bottomk expect a number first".into()))?)?;
        return few(aggregator, &wanted, &groups, series);
    }
    let one = |(labels, members): (Labels, Vec<usize>)| {
        let points = (0..instants).map(|n| of_group(aggregator, members.iter().filter_map(|at| series[*at].points[n].as_ref()))).collect();
        Series { labels, points }
    };
    merged(groups.into_iter().map(one).collect())
}

#[expect(clippy::cast_precision_loss, reason = "series are far fewer than 2^53")]
fn of_group<'a>(aggregator: Aggregator, samples: impl Iterator<Item = &'a Sample>) -> Option<Sample> {
    let samples: Vec<&Sample> = samples.collect();
    let count = samples.len() as f64;
    let numbers = || samples.iter().filter_map(|s| s.number());
    match aggregator {
        _ if samples.is_empty() => None,
        Aggregator::Count => Some(Sample::Number(count)),
        Aggregator::Group => Some(Sample::Number(1.0)),
        // A comparison with NaN holds for nothing, and a number is preferred to it.
        Aggregator::Least => numbers().reduce(|a, b| if b < a || a.is_nan() { b } else { a }).map(Sample::Number),
        Aggregator::Most => numbers().reduce(|a, b| if b > a || a.is_nan() { b } else { a }).map(Sample::Number),
        _ => {
            let divisor = if aggregator == Aggregator::Average { count } else { 1.0 };
            let mut histograms = samples.iter().filter_map(|s| s.histogram());
            match histograms.next() {
                None => Some(Sample::Number(numbers().sum::<f64>() / divisor)),
                // Numbers and histograms have no sum.
                Some(_) if numbers().next().is_some() => None,
                Some(first) => {
                    let mut sum = first.clone();
                    histograms.for_each(|h| sum.add(h));
                    Some(Sample::Histogram(Arc::new(sum.scaled(1.0 / divisor))))
                }
            }
        }
    }
}

/// The largest first, and what is no number last.
pub(super) fn descending(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then_with(|| b.total_cmp(&a))
}

/// The smallest first, and what is no number last.
pub(super) fn ascending(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then_with(|| a.total_cmp(&b))
}

/// At each instant a few of each group stay.
fn few(aggregator: Aggregator, wanted: &[f64], groups: &BTreeMap<Labels, Vec<usize>>, mut series: Vec<Series>) -> Result<Vec<Series>, Error> {
    let order = if aggregator == Aggregator::Top { descending } else { ascending };
    for (n, k) in wanted.iter().enumerate() {
        if k.is_nan() {
            return Err(Error::Execution("topk and bottomk expect a number, and got NaN".into()));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
        let k = k.max(0.0) as usize;
        for members in groups.values() {
            let number = |at: usize| series[at].points[n].as_ref().and_then(Sample::number);
            let mut ranked: Vec<(f64, usize)> = members.iter().filter_map(|at| number(*at).map(|v| (v, *at))).collect();
            ranked.sort_by(|a, b| order(a.0, b.0));
            ranked.truncate(k);
            for at in members {
                if !ranked.iter().any(|(_, stays)| stays == at) {
                    series[*at].points[n] = None;
                }
            }
        }
    }
    let mut series = merged(series)?;
    if wanted.len() == 1 {
        sort(&mut series, order);
    }
    Ok(series)
}

/// Sorts series of one instant.
pub(super) fn sort(series: &mut [Series], order: fn(f64, f64) -> Ordering) {
    let number = |s: &Series| s.points.first().and_then(Option::as_ref).and_then(Sample::number).unwrap_or(f64::NAN);
    series.sort_by(|a, b| order(number(a), number(b)));
}
