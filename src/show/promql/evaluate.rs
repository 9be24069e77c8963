//! The values of an expression at many instants at once: a series is its labels and a point, or none, for each instant. No part of an expression looks at another instant than its
//! own, so a long range can be evaluated in pieces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::buckets::Buckets;
use super::expression::{At, Expression, Leaf, NAME, Query};
use super::{aggregate, functions, matching};
use crate::time::Timestamp;

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Error {
    /// The expression means nothing over these series.
    #[error("{0}")]
    Execution(String),
    /// It takes too long.
    #[error("query timed out in expression evaluation")]
    Late,
    /// History.
    #[error(transparent)]
    History(#[from] crate::history::query::Error),
}

/// Names and values of labels, the name of the metric among them.
pub(in super::super) type Labels = BTreeMap<String, String>;

/// What a series stands at.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Sample {
    Number(f64),
    Histogram(Arc<Buckets>),
}

impl Sample {
    pub(in super::super) fn number(&self) -> Option<f64> {
        if let Self::Number(n) = self { Some(*n) } else { None }
    }

    pub(in super::super) fn histogram(&self) -> Option<&Buckets> {
        if let Self::Histogram(h) = self { Some(h) } else { None }
    }
}

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Series {
    pub(in super::super) labels: Labels,
    /// One for each instant.
    pub(in super::super) points: Vec<Option<Sample>>,
}

/// The value of a part of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Value {
    Scalar(Vec<f64>),
    Text(String),
    Vector(Vec<Series>),
}

/// What knows the past.
pub(in super::super) trait Past {
    /// The series of a selector at instants, from which offsets are taken off already.
    fn read(&mut self, leaf: usize, at: &[Timestamp]) -> Result<Vec<Series>, Error>;
}

/// An expression at some instants of a range.
pub(in super::super) struct Run<'a, P> {
    pub(in super::super) query: &'a Query,
    pub(in super::super) past: &'a mut P,
    /// Of the whole range, for `@ start()` and `@ end()`.
    pub(in super::super) ends: (Timestamp, Timestamp),
    pub(in super::super) instants: &'a [Timestamp],
}

impl<P: Past> Run<'_, P> {
    /// The value of the whole.
    pub(in super::super) fn value(&mut self) -> Result<Value, Error> {
        let query = self.query;
        query.root.as_ref().map_or(Ok(Value::Vector(Vec::new())), |root| self.of(root))
    }

    /// The value of a part.
    pub(super) fn of(&mut self, part: &Expression) -> Result<Value, Error> {
        match part {
            Expression::Number(n) => Ok(Value::Scalar(vec![*n; self.instants.len()])),
            Expression::Text(text) => Ok(Value::Text(text.clone())),
            Expression::Leaf(n) => self.past.read(*n, &instants_of(&self.query.leaves[*n], self.ends, self.instants)).map(Value::Vector),
            Expression::Negative(inner) => match self.of(inner)? {
                Value::Scalar(numbers) => Ok(Value::Scalar(numbers.into_iter().map(|n| -n).collect())),
                other => {
                    let mut series = vector(other)?;
                    for one in &mut series {
                        one.labels.remove(NAME);
                    }
                    let negative = |sample: &Sample| match sample {
                        Sample::Number(n) => Sample::Number(-n),
                        Sample::Histogram(h) => Sample::Histogram(Arc::new(h.scaled(-1.0))),
                    };
                    series.iter_mut().flat_map(|s| &mut s.points).flatten().for_each(|sample| *sample = negative(sample));
                    merged(series).map(Value::Vector)
                }
            },
            Expression::Binary { operator, left, right, matching } => matching::binary(*operator, matching, self.of(left)?, self.of(right)?),
            Expression::Aggregate { aggregator, parameter, of, grouping } => {
                let parameter = parameter.as_ref().map(|p| self.of(p)).transpose()?;
                aggregate::aggregate(*aggregator, parameter, grouping, vector(self.of(of)?)?, self.instants.len()).map(Value::Vector)
            }
            Expression::Call { function, arguments } => functions::call(self, *function, arguments),
        }
    }
}

/// The instants at which a selector is read.
pub(in super::super) fn instants_of(leaf: &Leaf, (start, end): (Timestamp, Timestamp), instants: &[Timestamp]) -> Vec<Timestamp> {
    let at = |instant: &Timestamp| match leaf.at {
        None => *instant,
        Some(At::Start) => start,
        Some(At::End) => end,
        Some(At::Instant(at)) => at,
    };
    instants.iter().map(|i| Timestamp(at(i).0.saturating_sub(leaf.offset_ms).max(0))).collect()
}

pub(super) fn vector(value: Value) -> Result<Vec<Series>, Error> {
    match value {
        Value::Vector(series) => Ok(series),
        _ => Err(Error::Execution("expected series, and got a number or a text".into())),
    }
}

pub(super) fn scalar(value: Value) -> Result<Vec<f64>, Error> {
    match value {
        Value::Scalar(numbers) => Ok(numbers),
        _ => Err(Error::Execution("expected a number, and got series or a text".into())),
    }
}

/// Series with the same labels become one; two of them at one instant are an error, and none at any instant is left out.
pub(in super::super) fn merged(series: Vec<Series>) -> Result<Vec<Series>, Error> {
    let mut places: BTreeMap<Arc<Labels>, usize> = BTreeMap::new();
    let mut merged: Vec<(Arc<Labels>, Vec<Option<Sample>>)> = Vec::with_capacity(series.len());
    for Series { labels, points } in series.into_iter().filter(|s| s.points.iter().any(Option::is_some)) {
        let labels = Arc::new(labels);
        match places.get(&labels) {
            None => {
                places.insert(Arc::clone(&labels), merged.len());
                merged.push((labels, points));
            }
            Some(&at) => {
                for (known, point) in merged[at].1.iter_mut().zip(points).filter(|(_, point)| point.is_some()) {
                    if known.is_some() {
                        return Err(Error::Execution("vector cannot contain metrics with the same labelset".into()));
                    }
                    *known = point;
                }
            }
        }
    }
    drop(places);
    Ok(merged.into_iter().map(|(labels, points)| Series { labels: Arc::unwrap_or_clone(labels), points }).collect())
}

/// The series of a long range as its pieces come.
#[derive(Debug, Default)]
pub(in super::super) struct Joined {
    /// By labels: the instant of each point, and the point.
    pub(in super::super) series: BTreeMap<Labels, Vec<(Timestamp, Sample)>>,
    /// What they need in memory.
    pub(in super::super) bytes: usize,
}

impl Joined {
    /// Takes the pieces that somebody else evaluated.
    pub(in super::super) fn absorb(&mut self, other: Self) {
        self.bytes += other.bytes;
        for (labels, points) in other.series {
            let known = self.series.entry(labels).or_default();
            known.extend(points);
            known.sort_by_key(|(at, _)| *at);
        }
    }

    /// Adds the value at later instants.
    pub(in super::super) fn add(&mut self, value: Value, instants: &[Timestamp]) -> Result<(), Error> {
        let series = match value {
            Value::Vector(series) => merged(series)?,
            Value::Scalar(numbers) => vec![Series { labels: Labels::new(), points: numbers.into_iter().map(|n| Some(Sample::Number(n))).collect() }],
            Value::Text(_) => return Err(Error::Execution("invalid expression type \"string\" for range query, must be Scalar or instant Vector".into())),
        };
        for Series { labels, points } in series {
            let known = self.series.entry(labels).or_default();
            for (instant, sample) in instants.iter().zip(points).filter_map(|(instant, point)| point.map(|sample| (*instant, sample))) {
                self.bytes += size_of::<(Timestamp, Sample)>() + sample.histogram().map_or(0, Buckets::bytes);
                known.push((instant, sample));
            }
        }
        Ok(())
    }
}

/// The labels that stay in a group.
pub(super) fn kept(labels: &Labels, keeps: impl Fn(&str) -> bool) -> Labels {
    labels.iter().filter(|(name, _)| keeps(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Names of labels without a second time.
pub(super) fn distinct(names: &[String]) -> BTreeSet<&str> {
    names.iter().map(String::as_str).collect()
}
