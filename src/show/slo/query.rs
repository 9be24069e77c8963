//! A query as far as it can be understood without data: which counters are added up, and what is taken from or divided by what.

use std::time::Duration;

use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::token::{T_DIV, T_LOR, T_SUB, T_SUM};
use promql_parser::parser::{AggregateExpr, BinaryExpr, Call, Expr, LabelModifier, VectorSelector};

/// The longest query, in bytes.
const BYTES_MAX: usize = 16 << 10;

/// Brackets and signs within each other: the parser and its tree recurse.
const DEPTH_MAX: usize = 64;

/// The part of a query that an error repeats, in characters.
const SHOWN_MAX: usize = 80;

/// One counter, or several of one name.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    pub(super) metric: String,
    pub(super) matchers: Vec<Matcher>,
    /// Over which time its increase is taken, if the query says so.
    pub(super) range: Option<Duration>,
    pub(super) added: Added,
}

/// How the series of a counter are added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// Not at all: each by itself.
    Each,
    /// To one number.
    Up,
    /// To one number for each value of these labels.
    By(Vec<String>),
}

/// A query.
#[derive(Clone, Debug)]
pub(super) enum Query {
    Number(f64),
    Counter(Counter),
    Minus(Box<Query>, Box<Query>),
    Over(Box<Query>, Box<Query>),
    /// The share of a native histogram from the first number up to the second.
    Fraction(f64, f64, Counter),
    /// A quantile of a histogram.
    Quantile(f64),
}

impl Counter {
    /// Whether it counts the same series in the same way.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.metric == other.metric && self.matches_alike(other) && self.is_added_alike(other).is_ok()
    }

    pub(super) fn matches_alike(&self, other: &Self) -> bool {
        matchers_alike(&self.matchers.iter().collect::<Vec<_>>(), &other.matchers.iter().collect::<Vec<_>>())
    }

    pub(super) fn is_added_alike(&self, other: &Self) -> Result<(), String> {
        if self.range != other.range {
            return Err("the increases are taken over different times".to_owned());
        }
        if self.added != other.added {
            return Err("what is divided is added up in one way, and what it is divided by in another".to_owned());
        }
        Ok(())
    }
}

/// Whether two lists have the same matchers, in any order.
pub(super) fn matchers_alike(one: &[&Matcher], other: &[&Matcher]) -> bool {
    let same = |a: &Matcher, b: &Matcher| a.name == b.name && a.value == b.value && std::mem::discriminant(&a.op) == std::mem::discriminant(&b.op);
    let within = |a: &[&Matcher], b: &[&Matcher]| a.iter().all(|a| b.iter().any(|b| same(a, b)));
    within(one, other) && within(other, one)
}

/// A matcher as it is written.
pub(super) fn written(matcher: &Matcher) -> String {
    format!("{}{}\"{}\"", matcher.name, matcher.op, matcher.value)
}

/// Reads a query; windows that a template or a variable would fill in are any window.
///
/// # Errors
/// What is no query, or none that is understood.
pub(super) fn read(text: &str) -> Result<Query, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("a query of more than {BYTES_MAX} bytes"));
    }
    let plain = without_templates(text)?;
    nesting(&plain)?;
    let expr = promql_parser::parser::parse(&plain).map_err(|e| format!("no PromQL: {}", one_line(&e)))?;
    convert(&expr)
}

/// For each byte whether it is outside of quotes.
fn outside_quotes(text: &str) -> Vec<bool> {
    let (mut quote, mut is_escaped) = (None, false);
    let outside = |byte: u8| match quote {
        None => {
            quote = Some(byte).filter(|b| b"\"'`".contains(b));
            quote.is_none()
        }
        Some(open) => {
            if is_escaped {
                is_escaped = false;
            } else if byte == b'\\' && open != b'`' {
                is_escaped = true;
            } else if byte == open {
                quote = None;
            }
            false
        }
    };
    text.bytes().map(outside).collect()
}

/// `[{{.window}}]` and `[$__rate_interval]` are read as five minutes, everywhere alike.
fn without_templates(text: &str) -> Result<String, String> {
    let outside = outside_quotes(text);
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    for (at, _) in text.match_indices('[').filter(|(at, _)| outside[*at]) {
        let after = &text[at..];
        if at < done || !(after.starts_with("[{{") || after.starts_with("[$")) {
            continue;
        }
        let end = after.find(']').ok_or_else(|| format!("no PromQL: `{}` has no end", shown(after)))?;
        let (window, step) = after[1..end].split_once(':').map_or((&after[1..end], None), |(window, step)| (window, Some(step)));
        let name = window.trim_matches(|c: char| "{}$. ".contains(c));
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("`{}` is no window such as [{{{{.window}}}}] or [5m]", shown(&after[..=end])));
        }
        out = out + &text[done..at] + "[5m" + &step.map_or_else(String::new, |step| format!(":{step}")) + "]";
        done = at + end + 1;
    }
    Ok(out + &text[done..])
}

fn nesting(text: &str) -> Result<(), String> {
    let outside = outside_quotes(text);
    let (mut depth, mut signs) = (0_usize, 0_usize);
    for c in text.char_indices().filter(|(at, _)| outside[*at]).map(|(_, c)| c) {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        signs = match c {
            '-' | '+' => signs + 1,
            c if c.is_whitespace() => signs,
            _ => 0,
        };
        if depth > DEPTH_MAX || signs > DEPTH_MAX {
            return Err(format!("a query with more than {DEPTH_MAX} brackets or signs within each other"));
        }
    }
    Ok(())
}

fn convert(expr: &Expr) -> Result<Query, String> {
    match expr {
        Expr::Paren(inner) => convert(&inner.expr),
        Expr::NumberLiteral(number) => Ok(Query::Number(number.val)),
        Expr::VectorSelector(selector) => counter(selector, None).map(Query::Counter),
        Expr::Aggregate(sum) if sum.op.id() == T_SUM && sum.param.is_none() => summed(sum),
        Expr::Call(call) => called(call),
        Expr::Binary(binary) => computed(binary),
        _ => Err(foreign(expr)),
    }
}

fn foreign(expr: &Expr) -> String {
    format!("`{}` is not understood: expected sums of rate() or increase() of counters, their difference or their share", shown(&expr.to_string()))
}

fn counter(selector: &VectorSelector, range: Option<Duration>) -> Result<Counter, String> {
    if selector.offset.is_some() || selector.at.is_some() {
        return Err("`offset` and `@` look at another time".to_owned());
    }
    if !selector.matchers.or_matchers.is_empty() {
        return Err("`or` between matchers chooses more than one endpoint".to_owned());
    }
    let (names, matchers): (Vec<Matcher>, Vec<Matcher>) = selector.matchers.matchers.iter().cloned().partition(|m| m.name == "__name__");
    let metric = match (&selector.name, names.as_slice()) {
        (Some(name), []) => name.clone(),
        (None, [name]) if matches!(name.op, MatchOp::Equal) => name.value.clone(),
        _ => return Err("a metric without one name".to_owned()),
    };
    Ok(Counter { metric, matchers, range, added: Added::Each })
}

fn summed(sum: &AggregateExpr) -> Result<Query, String> {
    let added = match &sum.modifier {
        None => Added::Up,
        Some(LabelModifier::Include(labels)) if labels.labels.is_empty() => Added::Up,
        Some(LabelModifier::Include(labels)) => {
            let mut names = labels.labels.clone();
            names.sort_unstable();
            Added::By(names)
        }
        Some(LabelModifier::Exclude(_)) => {
            return Err("`sum without` leaves labels that are not named: each of their values would be an objective of its own".to_owned());
        }
    };
    match convert(&sum.expr)? {
        Query::Counter(counter) if counter.added == Added::Each => Ok(Query::Counter(Counter { added, ..counter })),
        _ => Err(format!("`{}` is not understood: expected sums of rate() or increase() of counters", shown(&sum.to_string()))),
    }
}

fn called(call: &Call) -> Result<Query, String> {
    let arguments: Vec<&Expr> = call.args.args.iter().map(AsRef::as_ref).collect();
    match (call.func.name, arguments.as_slice()) {
        ("rate" | "increase" | "irate", [Expr::MatrixSelector(matrix)]) => counter(&matrix.vs, Some(matrix.range)).map(Query::Counter),
        ("histogram_fraction", [Expr::NumberLiteral(from), Expr::NumberLiteral(to), of]) => Ok(Query::Fraction(from.val, to.val, histogram(of)?)),
        ("histogram_quantile", [Expr::NumberLiteral(q), _]) => Ok(Query::Quantile(q.val)),
        _ => Err(format!("`{}(…)` is not understood: expected rate() or increase() of counters", call.func.name)),
    }
}

/// A histogram whose buckets are told apart by `le`, which is no label of an endpoint.
fn histogram(expr: &Expr) -> Result<Counter, String> {
    let Query::Counter(mut counter) = convert(expr)? else { return Err(foreign(expr)) };
    if let Added::By(names) = &mut counter.added {
        names.retain(|n| n != "le");
        if names.is_empty() {
            counter.added = Added::Up;
        }
    }
    Ok(counter)
}

fn computed(binary: &BinaryExpr) -> Result<Query, String> {
    let is_matched = binary.modifier.as_ref().is_some_and(|m| m.matching.is_some() || m.return_bool);
    match binary.op.id() {
        // What counts nothing where there is nothing to count.
        T_LOR if is_zero(&binary.rhs) => convert(&binary.lhs),
        T_SUB if !is_matched => Ok(Query::Minus(Box::new(convert(&binary.lhs)?), Box::new(convert(&binary.rhs)?))),
        T_DIV if !is_matched => Ok(Query::Over(Box::new(convert(&binary.lhs)?), Box::new(convert(&binary.rhs)?))),
        _ => Err(format!("`{}` is not understood: expected a difference or a share of sums of counters", shown(&binary.to_string()))),
    }
}

fn is_zero(expr: &Expr) -> bool {
    match expr {
        Expr::Paren(inner) => is_zero(&inner.expr),
        Expr::Call(call) if call.func.name == "vector" => matches!(call.args.args.first().map(AsRef::as_ref), Some(Expr::NumberLiteral(n)) if n.val == 0.0),
        _ => false,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The start of a text, on one line.
pub(super) fn shown(text: &str) -> String {
    let line = one_line(text);
    if line.chars().count() <= SHOWN_MAX { line } else { line.chars().take(SHOWN_MAX).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Counter {
        match read(text) {
            Ok(Query::Counter(counter)) => counter,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn counters_are_read_however_they_are_written() {
        let bare = count(r#"m_total{code=~"5..", job="x"}"#);
        assert_eq!((bare.metric.as_str(), &bare.added, bare.range), ("m_total", &Added::Each, None));
        let rate = count("sum(rate(m_total{job=\"x\", code=~\"5..\"}[{{.window}}])) or vector(0)");
        assert_eq!(rate.added, Added::Up);
        assert!(rate.matches_alike(&bare) && !rate.is(&bare));
        assert!(rate.is(&count("(sum(increase({__name__=\"m_total\", code=~\"5..\", job=\"x\"}[5m])))")), "a rate and an increase have the same share");
        assert!(!rate.is(&count("sum(rate(m_total{code=~\"5..\", job=\"x\"}[1h]))")));
        assert!(rate.is(&count("sum(rate(m_total{code=~\"5..\", job=\"x\"}[$__rate_interval]))")));
        assert_eq!(count("sum by (b, a) (rate(m[5m]))").added, Added::By(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(count("m{route=\"[$x] \\\"[{{y}}\", b='[[[['}").matchers[0].value, "[$x] \"[{{y}}");
        assert_eq!(count("m{route=\"a\\\"b\\\\c\\u2028\\U0001f600\"}").matchers[0].value, "a\"b\\c\u{2028}\u{1f600}");
    }

    #[test]
    fn what_is_not_understood_says_so() {
        for (query, part) in [
            ("sum(rate(m[5m]) > 0)", "not understood"),
            ("max(rate(m[5m]))", "not understood"),
            ("avg_over_time(m[5m])", "avg_over_time"),
            ("sum_over_time((count(m < 0.75))[{{.window}}:]) OR on() vector(0)", "sum_over_time"),
            ("sum(rate(m[5m] offset 1h))", "offset"),
            ("sum without (pod) (rate(m[5m]))", "sum without"),
            ("rate(m[{{ if x }}])", "no window"),
            ("rate(m[5m", "no PromQL"),
            ("{job=\"x\"}", "one name"),
            ("", "no PromQL"),
        ] {
            let error = read(query).unwrap_err();
            assert!(error.contains(part), "{query}: {error}");
        }
        assert!(read(&("(".repeat(5_000) + "1" + &")".repeat(5_000))).unwrap_err().contains("within each other"));
        assert!(read(&("- ".repeat(5_000) + "1")).unwrap_err().contains("within each other"));
        assert!(read(&" ".repeat(20_000)).unwrap_err().contains("bytes"));
    }
}
