//! Operators between numbers and series: arithmetic, comparison, sets; and which series of one side belongs to which of the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::evaluate::{Error, Labels, Sample, Series, Value, distinct, kept, merged, vector};
use super::expression::NAME;

/// An operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Power,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Unless,
}

const OPERATORS: [(&str, Operator); 15] = [
    ("+", Operator::Add),
    ("-", Operator::Subtract),
    ("*", Operator::Multiply),
    ("/", Operator::Divide),
    ("%", Operator::Modulo),
    ("^", Operator::Power),
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<", Operator::Less),
    ("<=", Operator::LessOrEqual),
    (">", Operator::Greater),
    (">=", Operator::GreaterOrEqual),
    ("and", Operator::And),
    ("or", Operator::Or),
    ("unless", Operator::Unless),
];

impl Operator {
    pub(super) fn named(sign: &str) -> Option<Self> {
        OPERATORS.iter().find(|(known, _)| known.eq_ignore_ascii_case(sign)).map(|(_, operator)| *operator)
    }

    fn is_comparison(self) -> bool {
        matches!(self, Self::Equal | Self::NotEqual | Self::Less | Self::LessOrEqual | Self::Greater | Self::GreaterOrEqual)
    }

    fn is_of_sets(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }

    #[expect(clippy::float_cmp, reason = "PromQL compares doubles as they are")]
    fn holds(self, a: f64, b: f64) -> bool {
        match self {
            Self::Equal => a == b,
            Self::NotEqual => a != b,
            Self::Less => a < b,
            Self::LessOrEqual => a <= b,
            Self::Greater => a > b,
            _ => a >= b,
        }
    }

    fn of_numbers(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a / b,
            Self::Modulo => a % b,
            Self::Power => a.powf(b),
            _ => f64::from(u8::from(self.holds(a, b))),
        }
    }

    /// Of two samples; `kept` is what a comparison that holds leaves.
    fn of_samples(self, a: &Sample, b: &Sample, is_bool: bool, kept: &Sample) -> Option<Sample> {
        match (a, b) {
            (Sample::Number(x), Sample::Number(y)) if self.is_comparison() && !is_bool => self.holds(*x, *y).then(|| kept.clone()),
            (Sample::Number(x), Sample::Number(y)) => Some(Sample::Number(self.of_numbers(*x, *y))),
            (Sample::Histogram(h), Sample::Number(n)) if self == Self::Multiply => Some(Sample::Histogram(Arc::new(h.scaled(*n)))),
            (Sample::Histogram(h), Sample::Number(n)) if self == Self::Divide => Some(Sample::Histogram(Arc::new(h.scaled(1.0 / n)))),
            (Sample::Number(n), Sample::Histogram(h)) if self == Self::Multiply => Some(Sample::Histogram(Arc::new(h.scaled(*n)))),
            (Sample::Histogram(x), Sample::Histogram(y)) if matches!(self, Self::Add | Self::Subtract) => {
                let mut sum = x.as_ref().clone();
                if self == Self::Add {
                    sum.add(y);
                } else {
                    sum.add(&y.scaled(-1.0));
                }
                Some(Sample::Histogram(Arc::new(sum)))
            }
            // As in Prometheus: what means nothing is left out.
            _ => None,
        }
    }
}

/// One side of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Side {
    Left,
    Right,
}

/// How series of two sides are paired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Matching {
    pub(super) is_bool: bool,
    /// The labels are those that count, or those that do not.
    pub(super) is_on: bool,
    pub(super) labels: Vec<String>,
    /// The side of which several may belong to one of the other.
    pub(super) many: Option<Side>,
    /// Labels that the one lends to the many.
    pub(super) carried: Vec<String>,
}

impl Matching {
    /// The labels by which series belong together.
    fn signature(&self, labels: &Labels) -> Labels {
        let named = distinct(&self.labels);
        kept(labels, |name| if self.is_on { named.contains(name) } else { name != NAME && !named.contains(name) })
    }
}

/// The value of an operator.
pub(super) fn binary(operator: Operator, matching: &Matching, left: Value, right: Value) -> Result<Value, Error> {
    match (left, right) {
        (Value::Scalar(a), Value::Scalar(b)) => Ok(Value::Scalar(a.into_iter().zip(b).map(|(a, b)| operator.of_numbers(a, b)).collect())),
        (Value::Vector(series), Value::Scalar(numbers)) => with_numbers(operator, matching.is_bool, series, &numbers, Side::Right),
        (Value::Scalar(numbers), Value::Vector(series)) => with_numbers(operator, matching.is_bool, series, &numbers, Side::Left),
        (left, right) => {
            let (left, right) = (vector(left)?, vector(right)?);
            if operator.is_of_sets() { of_sets(operator, matching, left, right) } else { of_pairs(operator, matching, &left, &right) }.map(Value::Vector)
        }
    }
}

fn with_numbers(operator: Operator, is_bool: bool, mut series: Vec<Series>, numbers: &[f64], side: Side) -> Result<Value, Error> {
    for Series { labels, points } in &mut series {
        if !operator.is_comparison() || is_bool {
            labels.remove(NAME);
        }
        for (point, number) in points.iter_mut().zip(numbers) {
            let number = Sample::Number(*number);
            *point = point.take().and_then(|sample| match side {
                Side::Right => operator.of_samples(&sample, &number, is_bool, &sample),
                Side::Left => operator.of_samples(&number, &sample, is_bool, &sample),
            });
        }
    }
    merged(series).map(Value::Vector)
}

fn by_signature(matching: &Matching, series: &[Series]) -> BTreeMap<Labels, Vec<usize>> {
    let mut places: BTreeMap<Labels, Vec<usize>> = BTreeMap::new();
    for (n, one) in series.iter().enumerate() {
        places.entry(matching.signature(&one.labels)).or_default().push(n);
    }
    places
}

fn of_sets(operator: Operator, matching: &Matching, mut left: Vec<Series>, mut right: Vec<Series>) -> Result<Vec<Series>, Error> {
    // Of the one side stays what the other has, or has not, at the same instant.
    let (judged, other) = if operator == Operator::Or { (&mut right, &left) } else { (&mut left, &right) };
    let others = by_signature(matching, other);
    for Series { labels, points } in judged.iter_mut() {
        let found = others.get(&matching.signature(labels)).map_or(&[][..], Vec::as_slice);
        for (n, point) in points.iter_mut().enumerate() {
            let is_there = found.iter().any(|at| other[*at].points[n].is_some());
            if is_there != (operator == Operator::And) {
                *point = None;
            }
        }
    }
    if operator == Operator::Or {
        left.append(&mut right);
    }
    merged(left)
}

fn of_pairs(operator: Operator, matching: &Matching, left: &[Series], right: &[Series]) -> Result<Vec<Series>, Error> {
    let is_swapped = matching.many == Some(Side::Right);
    let (many, one) = if is_swapped { (right, left) } else { (left, right) };
    let ones = by_signature(matching, one);
    let mut results = Vec::with_capacity(many.len());
    for (signature, members) in by_signature(matching, many) {
        let Some(found) = ones.get(&signature) else { continue };
        let instants = one[found[0]].points.len();
        for n in 0..instants {
            let there = |side: &[Series], places: &[usize]| places.iter().filter(|at| side[**at].points[n].is_some()).count();
            let (of_one, of_many) = (there(one, found), there(many, &members));
            if of_one > 1 && of_many > 0 {
                let which = if is_swapped { "left" } else { "right" };
                let message = format!("found duplicate series for the match group {signature:?} on the {which} hand-side of the operation");
                return Err(Error::Execution(format!("{message};many-to-many matching not allowed: matching labels must be unique on one side")));
            }
            if matching.many.is_none() && of_many > 1 && of_one > 0 {
                return Err(Error::Execution("multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)".into()));
            }
        }
        for (member, partner) in members.iter().flat_map(|m| found.iter().map(move |p| (&many[*m], &one[*p]))) {
            let of = |(a, b): (&Option<Sample>, &Option<Sample>)| match (a, b) {
                (Some(a), Some(b)) if is_swapped => operator.of_samples(b, a, matching.is_bool, b),
                (Some(a), Some(b)) => operator.of_samples(a, b, matching.is_bool, a),
                _ => None,
            };
            let points = member.points.iter().zip(&partner.points).map(of).collect();
            results.push(Series { labels: labels_of(operator, matching, &member.labels, &partner.labels), points });
        }
    }
    merged(results)
}

fn labels_of(operator: Operator, matching: &Matching, many: &Labels, one: &Labels) -> Labels {
    let mut labels = many.clone();
    if !operator.is_comparison() || matching.is_bool {
        labels.remove(NAME);
    }
    if matching.many.is_none() {
        let named = distinct(&matching.labels);
        labels.retain(|name, _| named.contains(name.as_str()) == matching.is_on);
    }
    for name in &matching.carried {
        match one.get(name) {
            Some(value) => drop(labels.insert(name.clone(), value.clone())),
            None => drop(labels.remove(name)),
        }
    }
    labels
}
