//! An expression as it is understood here: parsed by the crate, checked, and with its selectors in a list, so that whoever knows the past can prepare all of them at once.
//! What is not supported is an error that names its place.

use std::time::{Duration, UNIX_EPOCH};

use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser as ast;

use super::aggregate::Aggregator;
use super::functions::{FUNCTIONS, Function};
use super::matching::{Matching, Operator, Side};
use super::place;
use crate::time::Timestamp;

/// Bytes of an expression.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Brackets within brackets.
const DEPTH_MAX: usize = 50;
/// Words and signs: a chain of operators is as deep as it is long.
const PARTS_MAX: usize = 1_000;
/// The name of the label that holds the name.
pub(in super::super) const NAME: &str = "__name__";

/// Why a text is no expression that is understood here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}parse error: {message}")]
pub(in super::super) struct Malformed {
    /// `line:column: `, or nothing where it is not known.
    place: String,
    message: String,
}

/// What is asked of a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Over {
    /// What it stands at.
    Last,
    /// By how much it grew in so many milliseconds.
    Increase(i64),
    /// By how much it grew in each second of so many milliseconds.
    Rate(i64),
}

/// Which labels make a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Grouping {
    By(Vec<String>),
    Without(Vec<String>),
}

impl Grouping {
    /// Whether a label makes a difference.
    pub(in super::super) fn keeps(&self, name: &str) -> bool {
        match self {
            Self::By(labels) => labels.iter().any(|l| l == name),
            Self::Without(labels) => name != NAME && labels.iter().all(|l| l != name),
        }
    }
}

/// The instant that `@` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum At {
    Start,
    End,
    Instant(Timestamp),
}

/// A selector with what is asked of it.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Leaf {
    /// The name's too.
    pub(in super::super) matchers: Vec<Matcher>,
    pub(in super::super) over: Over,
    pub(in super::super) offset_ms: i64,
    pub(in super::super) at: Option<At>,
    /// It is added up by these at once, so series that they do not tell apart may be added up before they are read.
    pub(in super::super) summed_by: Option<Grouping>,
}

/// A part of an expression.
#[derive(Clone, Debug)]
pub(in super::super) enum Expression {
    Number(f64),
    Text(String),
    /// By its place in the list.
    Leaf(usize),
    Negative(Box<Expression>),
    Binary {
        operator: Operator,
        left: Box<Expression>,
        right: Box<Expression>,
        matching: Matching,
    },
    Aggregate {
        aggregator: Aggregator,
        parameter: Option<Box<Expression>>,
        of: Box<Expression>,
        grouping: Grouping,
    },
    Call {
        function: Function,
        arguments: Vec<Expression>,
    },
}

/// A whole expression.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Query {
    pub(in super::super) root: Option<Expression>,
    pub(in super::super) leaves: Vec<Leaf>,
    pub(in super::super) warnings: Vec<String>,
}

/// Reads an expression.
pub(in super::super) fn parse(text: &str) -> Result<Query, Malformed> {
    let mut reading = ReadingOf { text, query: Query::default() };
    let tree = reading.tree()?;
    let root = reading.expression(&tree)?;
    reading.query.root = Some(root);
    Ok(reading.query)
}

/// Reads a selector of series, such as `match[]` has.
pub(in super::super) fn parse_selector(text: &str) -> Result<Leaf, Malformed> {
    let mut reading = ReadingOf { text, query: Query::default() };
    match reading.tree()? {
        ast::Expr::VectorSelector(selector) => {
            reading.leaf(&selector, Over::Last)?;
            Ok(reading.query.leaves.remove(0))
        }
        _ => Err(reading.malformed(Some(0), "expected a selector of series, such as slowburn_requests_total{service=\"shop\"}")),
    }
}

struct ReadingOf<'a> {
    text: &'a str,
    query: Query,
}

impl ReadingOf<'_> {
    fn malformed(&self, at: Option<usize>, message: impl Into<String>) -> Malformed {
        let place = at.map(|at| place::line_and_column(self.text, at)).map_or(String::new(), |(line, column)| format!("{line}:{column}: "));
        Malformed { place, message: message.into() }
    }

    fn not_supported(&self, at: Option<usize>, what: &str, instead: &str) -> Malformed {
        self.malformed(at, format!("{what} is not supported by Slowburn: {instead}"))
    }

    /// Bounded before the parser sees it.
    fn tree(&self) -> Result<ast::Expr, Malformed> {
        if self.text.len() > TEXT_BYTES_MAX {
            return Err(self.malformed(None, format!("the expression has {} bytes, and the limit is {TEXT_BYTES_MAX}", self.text.len())));
        }
        let (depth, length) = place::depth_and_length(self.text);
        if depth > DEPTH_MAX || length > PARTS_MAX {
            let limit = format!("{DEPTH_MAX} brackets within brackets, {PARTS_MAX} words and signs");
            return Err(self.malformed(None, format!("the expression is over a limit: {limit}")));
        }
        if let Some((at, bracket)) = place::of_odd_bracket(self.text) {
            return Err(self.malformed(Some(at), format!("`{bracket}` has no counterpart")));
        }
        ast::parse(self.text).map_err(|message| self.malformed(self.place_named_in(&message), message))
    }

    /// Where the function stands that the parser does not know.
    fn place_named_in(&self, message: &str) -> Option<usize> {
        let word = message.split(['\'', '"', '`']).nth(1).or_else(|| message.rsplit(' ').next())?;
        place::of(self.text, word)
    }

    fn expression(&mut self, tree: &ast::Expr) -> Result<Expression, Malformed> {
        match tree {
            ast::Expr::Paren(inner) => self.expression(&inner.expr),
            ast::Expr::NumberLiteral(number) => Ok(Expression::Number(number.val)),
            ast::Expr::StringLiteral(text) => Ok(Expression::Text(text.val.clone())),
            ast::Expr::Unary(inner) => Ok(Expression::Negative(Box::new(self.expression(&inner.expr)?))),
            ast::Expr::VectorSelector(selector) => self.leaf(selector, Over::Last),
            ast::Expr::MatrixSelector(_) => Err(self.not_supported(
                place::of(self.text, "["),
                "a range of samples by itself",
                "history has counts and no samples; use increase() or rate()",
            )),
            ast::Expr::Subquery(_) => Err(self.not_supported(place::of_subquery(self.text), "a subquery", "ask for a range of steps, or for a longer window")),
            ast::Expr::Extension(_) => Err(self.malformed(None, "an extension of the parser")),
            ast::Expr::Call(call) => self.call(call),
            ast::Expr::Aggregate(aggregate) => self.aggregate(aggregate),
            ast::Expr::Binary(binary) => self.binary(binary),
        }
    }

    fn leaf(&mut self, selector: &ast::VectorSelector, over: Over) -> Result<Expression, Malformed> {
        if !selector.matchers.or_matchers.is_empty() {
            return Err(self.not_supported(place::of(self.text, "or"), "`or` between matchers", "use `or` between selectors"));
        }
        let name = selector.name.iter().map(|name| Matcher::new(MatchOp::Equal, NAME, name));
        let matchers: Vec<Matcher> = name.chain(selector.matchers.matchers.iter().cloned()).collect();
        let offset_ms = match &selector.offset {
            None => 0,
            Some(ast::Offset::Pos(back)) => milliseconds(*back),
            Some(ast::Offset::Neg(ahead)) => -milliseconds(*ahead),
        };
        let at = selector.at.as_ref().map(|at| match at {
            ast::AtModifier::Start => At::Start,
            ast::AtModifier::End => At::End,
            ast::AtModifier::At(instant) => At::Instant(Timestamp(instant.duration_since(UNIX_EPOCH).map_or(0, milliseconds))),
        });
        self.query.leaves.push(Leaf { matchers, over, offset_ms, at, summed_by: None });
        Ok(Expression::Leaf(self.query.leaves.len() - 1))
    }

    fn call(&mut self, call: &ast::Call) -> Result<Expression, Malformed> {
        let name = call.func.name;
        let first = call.args.args.first().map(|a| unwrapped(a));
        let over: Option<fn(i64) -> Over> = match name {
            "rate" => Some(Over::Rate),
            // Counters of Slowburn are never reset, so what they grew by is the difference of their ends.
            "increase" | "delta" => Some(Over::Increase),
            _ => None,
        };
        if let Some(over) = over {
            return match first {
                Some(ast::Expr::MatrixSelector(matrix)) => self.leaf(&matrix.vs, over(milliseconds(matrix.range))),
                Some(ast::Expr::Subquery(_)) => self.expression(first.expect("it was there a line ago")),
                _ => Err(self.malformed(place::of(self.text, name), format!("{name}() expects a selector with a range, such as [5m]"))),
            };
        }
        let Some((_, function)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
            let instead = match name {
                "irate" | "idelta" => "the shortest window has a minute; use rate()",
                _ if name.ends_with("_over_time") => {
                    "history has counts and no samples; a longer window of rate() or increase(), or a quantile of it, says what was"
                }
                _ => "README, `Grafana without Prometheus`, lists what is",
            };
            return Err(self.not_supported(place::of(self.text, name), &format!("{name}()"), instead));
        };
        let arguments: Vec<Expression> = call.args.args.iter().map(|a| self.expression(a)).collect::<Result<_, _>>()?;
        Ok(Expression::Call { function: *function, arguments })
    }

    fn aggregate(&mut self, aggregate: &ast::AggregateExpr) -> Result<Expression, Malformed> {
        let name = aggregate.op.to_string();
        let Some(aggregator) = Aggregator::named(&name) else {
            let instead = "use sum, avg, min, max, count, group, topk or bottomk";
            return Err(self.not_supported(place::of(self.text, &name), &name, instead));
        };
        let parameter = aggregate.param.as_ref().map(|p| self.expression(p).map(Box::new)).transpose()?;
        let of = self.expression(&aggregate.expr)?;
        let grouping = match &aggregate.modifier {
            None => Grouping::By(Vec::new()),
            Some(ast::LabelModifier::Include(labels)) => Grouping::By(labels.labels.clone()),
            Some(ast::LabelModifier::Exclude(labels)) => Grouping::Without(labels.labels.clone()),
        };
        match &of {
            Expression::Leaf(n) if aggregator == Aggregator::Sum && self.query.leaves[*n].over != Over::Last => {
                self.query.leaves[*n].summed_by = Some(grouping.clone());
            }
            Expression::Call { function: Function::HistogramQuantile, .. } if matches!(aggregator, Aggregator::Sum | Aggregator::Average) => {
                let warning = format!("{name} of quantiles is no quantile: histogram_quantile(q, sum by (…) (rate(…))) merges the histograms");
                self.query.warnings.push(warning);
            }
            _ => {}
        }
        Ok(Expression::Aggregate { aggregator, parameter, of: Box::new(of), grouping })
    }

    fn binary(&mut self, binary: &ast::BinaryExpr) -> Result<Expression, Malformed> {
        let sign = binary.op.to_string();
        let operator = Operator::named(&sign).ok_or_else(|| self.not_supported(place::of(self.text, &sign), &sign, "use another operator"))?;
        let mut matching = Matching::default();
        if let Some(modifier) = &binary.modifier {
            if modifier.fill_values != ast::VectorMatchFillValues::default() {
                return Err(self.not_supported(place::of(self.text, "fill"), "fill", "use `or`"));
            }
            matching.is_bool = modifier.return_bool;
            match &modifier.matching {
                Some(ast::LabelModifier::Include(labels)) => (matching.is_on, matching.labels) = (true, labels.labels.clone()),
                Some(ast::LabelModifier::Exclude(labels)) => matching.labels.clone_from(&labels.labels),
                None => {}
            }
            (matching.many, matching.carried) = match &modifier.card {
                ast::VectorMatchCardinality::ManyToOne(labels) => (Some(Side::Left), labels.labels.clone()),
                ast::VectorMatchCardinality::OneToMany(labels) => (Some(Side::Right), labels.labels.clone()),
                ast::VectorMatchCardinality::OneToOne | ast::VectorMatchCardinality::ManyToMany => (None, Vec::new()),
            };
        }
        let (left, right) = (Box::new(self.expression(&binary.lhs)?), Box::new(self.expression(&binary.rhs)?));
        Ok(Expression::Binary { operator, left, right, matching })
    }
}

fn unwrapped(mut tree: &ast::Expr) -> &ast::Expr {
    while let ast::Expr::Paren(inner) = tree {
        tree = &inner.expr;
    }
    tree
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}
