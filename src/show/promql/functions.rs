//! The functions that are no windows.

use std::collections::BTreeMap;

use promql_parser::label::MatchOp;
use regex::Regex;

use super::aggregate::{ascending, descending, sort};
use super::buckets::{Buckets, classic_quantile};
use super::evaluate::{Error, Labels, Past, Run, Sample, Series, Value, merged, scalar, vector};
use super::expression::{Expression, NAME};

/// A function.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Function {
    /// Of each number by itself.
    Each(fn(f64) -> f64),
    Clamp,
    ClampMin,
    ClampMax,
    Round,
    Scalar,
    Vector,
    Time,
    Absent,
    Sort,
    SortDescending,
    LabelReplace,
    LabelJoin,
    HistogramQuantile,
    HistogramFraction,
    /// Of each histogram by itself.
    OfHistogram(fn(&Buckets) -> f64),
}

pub(super) const FUNCTIONS: [(&str, Function); 26] = [
    ("abs", Function::Each(f64::abs)),
    ("ceil", Function::Each(f64::ceil)),
    ("floor", Function::Each(f64::floor)),
    ("exp", Function::Each(f64::exp)),
    ("sqrt", Function::Each(f64::sqrt)),
    ("ln", Function::Each(f64::ln)),
    ("log2", Function::Each(f64::log2)),
    ("log10", Function::Each(f64::log10)),
    ("sgn", Function::Each(|n| if n == 0.0 || n.is_nan() { n } else { n.signum() })),
    ("clamp", Function::Clamp),
    ("clamp_min", Function::ClampMin),
    ("clamp_max", Function::ClampMax),
    ("round", Function::Round),
    ("scalar", Function::Scalar),
    ("vector", Function::Vector),
    ("time", Function::Time),
    ("absent", Function::Absent),
    ("sort", Function::Sort),
    ("sort_desc", Function::SortDescending),
    ("label_replace", Function::LabelReplace),
    ("label_join", Function::LabelJoin),
    ("histogram_quantile", Function::HistogramQuantile),
    ("histogram_fraction", Function::HistogramFraction),
    ("histogram_count", Function::OfHistogram(Buckets::count)),
    ("histogram_sum", Function::OfHistogram(|h| h.sum_seconds)),
    ("histogram_avg", Function::OfHistogram(|h| h.sum_seconds / h.count())),
];

/// The arguments as they are taken, one after another.
struct Arguments<'a, 'b, P> {
    run: &'a mut Run<'b, P>,
    rest: std::slice::Iter<'a, Expression>,
}

impl<P: Past> Arguments<'_, '_, P> {
    fn next(&mut self) -> Result<Value, Error> {
        let part = self.rest.next().ok_or_else(|| Error::Execution("a function has too few arguments".into()))?;
        self.run.of(part)
    }

    fn numbers(&mut self) -> Result<Vec<f64>, Error> {
        scalar(self.next()?)
    }

    fn numbers_or(&mut self, default: f64) -> Result<Vec<f64>, Error> {
        if self.rest.len() == 0 { Ok(vec![default; self.run.instants.len()]) } else { self.numbers() }
    }

    fn series(&mut self) -> Result<Vec<Series>, Error> {
        vector(self.next()?)
    }

    fn text(&mut self) -> Result<String, Error> {
        match self.next()? {
            Value::Text(text) => Ok(text),
            _ => Err(Error::Execution("expected a text".into())),
        }
    }
}

pub(super) fn call<P: Past>(run: &mut Run<'_, P>, function: Function, arguments: &[Expression]) -> Result<Value, Error> {
    let instants = run.instants.to_vec();
    let leaf = arguments.first().and_then(|a| if let Expression::Leaf(n) = a { Some(run.query.leaves[*n].clone()) } else { None });
    let mut arguments = Arguments { run, rest: arguments.iter() };
    let series = match function {
        Function::Each(of) => each(arguments.series()?, |_, n| of(n)),
        Function::Clamp => {
            let (series, least, most) = (arguments.series()?, arguments.numbers()?, arguments.numbers()?);
            clamped(series, &least, &most)
        }
        Function::ClampMin => {
            let (series, least) = (arguments.series()?, arguments.numbers()?);
            each(series, |at, n| if n < least[at] { least[at] } else { n })
        }
        Function::ClampMax => {
            let (series, most) = (arguments.series()?, arguments.numbers()?);
            each(series, |at, n| if n > most[at] { most[at] } else { n })
        }
        Function::Round => {
            let (series, to) = (arguments.series()?, arguments.numbers_or(1.0)?);
            // Ties go up, as in Prometheus.
            each(series, |at, n| (n * (1.0 / to[at]) + 0.5).floor() / (1.0 / to[at]))
        }
        Function::Scalar => return arguments.series().map(|series| Value::Scalar(only_ones(&series, instants.len()))),
        Function::Vector => {
            let points = arguments.numbers()?.into_iter().map(|n| Some(Sample::Number(n))).collect();
            vec![Series { labels: Labels::new(), points }]
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a date are far below 2^53")]
        Function::Time => return Ok(Value::Scalar(instants.iter().map(|t| t.0 as f64 / 1e3).collect())),
        Function::Absent => {
            let series = arguments.series()?;
            let is_there = |n: usize| series.iter().any(|s| s.points[n].is_some());
            let points = (0..instants.len()).map(|n| (!is_there(n)).then_some(Sample::Number(1.0))).collect();
            vec![Series { labels: leaf.map(|l| named_labels(&l.matchers)).unwrap_or_default(), points }]
        }
        Function::Sort | Function::SortDescending => {
            let mut series = arguments.series()?;
            if instants.len() == 1 {
                series.retain(|s| s.points.iter().flatten().any(|p| p.number().is_some()));
                sort(&mut series, if matches!(function, Function::Sort) { ascending } else { descending });
            }
            series
        }
        Function::LabelReplace => {
            let (series, target, with) = (arguments.series()?, arguments.text()?, arguments.text()?);
            label_replace(series, &target, &with, &arguments.text()?, &arguments.text()?)?
        }
        Function::LabelJoin => {
            let (series, target, between) = (arguments.series()?, arguments.text()?, arguments.text()?);
            let from: Vec<String> = (0..arguments.rest.len()).map(|_| arguments.text()).collect::<Result<_, _>>()?;
            let joined = |labels: &Labels| from.iter().map(|l| labels.get(l).map_or("", String::as_str)).collect::<Vec<_>>().join(&between);
            labelled(series, &target, |labels| Some(joined(labels)))?
        }
        Function::HistogramQuantile => {
            let q = arguments.numbers()?;
            quantiles(&q, arguments.series()?)
        }
        Function::HistogramFraction => {
            let (above, up_to) = (arguments.numbers()?, arguments.numbers()?);
            of_histograms(arguments.series()?, |at, h| h.fraction(above[at], up_to[at]))
        }
        Function::OfHistogram(of) => of_histograms(arguments.series()?, |_, h| of(h)),
    };
    merged(series).map(Value::Vector)
}

/// A function of each number; histograms are left out.
fn each(mut series: Vec<Series>, of: impl Fn(usize, f64) -> f64) -> Vec<Series> {
    for Series { labels, points } in &mut series {
        labels.remove(NAME);
        for (at, point) in points.iter_mut().enumerate() {
            *point = point.take().and_then(|sample| sample.number()).map(|n| Sample::Number(of(at, n)));
        }
    }
    series
}

/// Between bounds the wrong way round there is nothing.
fn clamped(series: Vec<Series>, least: &[f64], most: &[f64]) -> Vec<Series> {
    let mut clamped = each(series, |at, n| n.max(least[at]).min(most[at]));
    for (at, point) in clamped.iter_mut().flat_map(|s| s.points.iter_mut().enumerate()) {
        point.take_if(|_| least[at] > most[at]);
    }
    clamped
}

/// A function of each histogram; numbers are left out.
fn of_histograms(mut series: Vec<Series>, of: impl Fn(usize, &Buckets) -> f64) -> Vec<Series> {
    for Series { labels, points } in &mut series {
        labels.remove(NAME);
        for (at, point) in points.iter_mut().enumerate() {
            *point = point.take().and_then(|sample| sample.histogram().map(|h| Sample::Number(of(at, h))));
        }
    }
    series
}

/// The number of the only series at each instant.
fn only_ones(series: &[Series], instants: usize) -> Vec<f64> {
    let only = |n: usize| {
        let mut there = series.iter().filter_map(|s| s.points[n].as_ref());
        match (there.next(), there.next()) {
            (Some(sample), None) => sample.number().unwrap_or(f64::NAN),
            _ => f64::NAN,
        }
    };
    (0..instants).map(only).collect()
}

/// The labels that a selector names once, by equality.
fn named_labels(matchers: &[promql_parser::label::Matcher]) -> Labels {
    let once = |name: &str| matchers.iter().filter(|m| m.name == name).count() == 1;
    let equal = matchers.iter().filter(|m| m.op == MatchOp::Equal && m.name != NAME && !m.value.is_empty() && once(&m.name));
    equal.map(|m| (m.name.clone(), m.value.clone())).collect()
}

fn is_label(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Sets a label of each series; an empty one is none.
fn labelled(mut series: Vec<Series>, target: &str, value: impl Fn(&Labels) -> Option<String>) -> Result<Vec<Series>, Error> {
    if !is_label(target) {
        return Err(Error::Execution(format!("invalid destination label name: {target}")));
    }
    for Series { labels, .. } in &mut series {
        match value(labels) {
            None => {}
            Some(value) if value.is_empty() => drop(labels.remove(target)),
            Some(value) => drop(labels.insert(target.to_owned(), value)),
        }
    }
    Ok(series)
}

fn label_replace(series: Vec<Series>, target: &str, with: &str, source: &str, pattern: &str) -> Result<Vec<Series>, Error> {
    let pattern = Regex::new(&format!("^(?:{pattern})$")).map_err(|_| Error::Execution(format!("invalid regular expression in label_replace(): {pattern}")))?;
    labelled(series, target, |labels| {
        let found = pattern.captures(labels.get(source).map_or("", String::as_str))?;
        let mut value = String::new();
        found.expand(with, &mut value);
        Some(value)
    })
}

/// A classic bucket: its upper bound and its points.
type Classic = (f64, Vec<Option<Sample>>);

/// Of histograms, and of classic buckets by their label `le`.
fn quantiles(q: &[f64], series: Vec<Series>) -> Vec<Series> {
    let mut classic: BTreeMap<Labels, Vec<Classic>> = BTreeMap::new();
    for Series { labels, points } in &series {
        if let Some(bound) = labels.get("le").and_then(|le| le.parse::<f64>().ok()) {
            let mut labels = labels.clone();
            labels.retain(|name, _| name != NAME && name != "le");
            classic.entry(labels).or_default().push((bound, points.clone()));
        }
    }
    let mut results = of_histograms(series, |at, h| h.quantile(q[at]));
    for (labels, buckets) in classic {
        let at_instant = |n: usize| -> Vec<(f64, f64)> { buckets.iter().filter_map(|(bound, points)| Some((*bound, points[n].as_ref()?.number()?))).collect() };
        let points =
            q.iter().enumerate().map(|(n, q)| Some(at_instant(n)).filter(|b| !b.is_empty()).map(|b| Sample::Number(classic_quantile(*q, b)))).collect();
        results.push(Series { labels, points });
    }
    results
}
