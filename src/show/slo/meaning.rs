//! What a share of counters means as an objective of one endpoint, and in what it differs from how Slowburn counts.
//!
//! Nothing is guessed: what names no route, counts by a label that Slowburn does not have, or calls other requests bad, is refused with what was found.

use std::collections::BTreeSet;

use promql_parser::label::{MatchOp, Matcher};

use super::query::{Added, Counter, Query, matchers_alike, written};
use crate::endpoint::{Selector, check_part};
use crate::histogram::grid::VALUE_US_MAX;
use crate::objective::Goal;
use crate::time::parse_duration_us;

/// What a label says about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who serves it.
    Service,
    /// The environment.
    Env,
    /// `http`, `rpc`, ….
    Kind,
    /// The HTTP method.
    Method,
    /// The route template.
    Route,
    /// The HTTP status.
    Status,
    /// `ok`, `client_error`, `error` or `timeout`.
    Outcome,
}

const ROLES: [(Role, &str, &[&str]); 7] = [
    (Role::Service, "service", &["service", "service_name", "app", "job"]),
    (Role::Env, "env", &["env", "environment", "deployment_environment_name", "deployment_environment"]),
    (Role::Kind, "kind", &["kind"]),
    (Role::Method, "method", &["method", "http_request_method", "http_method", "request_method"]),
    (Role::Route, "route", &["route", "http_route", "handler", "path_template", "path", "uri", "endpoint"]),
    (Role::Status, "status", &["code", "status", "status_code", "http_response_status_code", "http_status_code", "http_status", "response_code"]),
    (Role::Outcome, "outcome", &["outcome"]),
];

/// Which label says what: the first that a query has.
#[derive(Clone, Debug, Default)]
pub struct Labels(Vec<(Role, String)>);

impl Labels {
    /// Those usual, after these: `route=handler`.
    ///
    /// # Errors
    /// With what was expected.
    pub fn with(first: &[String]) -> Result<Self, String> {
        let read = |text: &String| {
            let wrong = || format!("`{text}` is not such as route=handler, with one of {} and the name of a label", ROLES.map(|r| r.1).join(", "));
            let (role, label) = text.split_once('=').ok_or_else(wrong)?;
            let role = ROLES.iter().find(|r| r.1 == role).ok_or_else(wrong)?.0;
            let is_name = !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !label.starts_with(|c: char| c.is_ascii_digit());
            if is_name { Ok((role, label.to_owned())) } else { Err(wrong()) }
        };
        first.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The names for a role, first what was asked for; a name that was asked for has no other role.
    fn names(&self, role: Role) -> Vec<&str> {
        let given = self.0.iter().filter(|(r, _)| *r == role).map(|(_, name)| name.as_str());
        let taken = |name: &str| self.0.iter().any(|(r, n)| n == name && *r != role);
        let usual = ROLES.iter().filter(|r| r.0 == role).flat_map(|r| r.2.iter().copied()).filter(|name| !taken(name));
        given.chain(usual).collect()
    }

    fn role(&self, label: &str) -> Option<Role> {
        ROLES.iter().map(|r| r.0).find(|role| self.names(*role).contains(&label))
    }
}

/// What is divided by all requests.
#[derive(Clone, Debug)]
pub(super) enum Share {
    Good(Query, Query),
    Bad(Query, Query),
    /// A query that is the share of the good itself.
    Success(Query),
    Failure(Query),
}

/// An objective's endpoint and goal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) selector: Selector,
    pub(super) goal: Goal,
    /// In what it is not what the query counts.
    pub(super) differences: Vec<String>,
    /// Whether the counters are Slowburn's own.
    pub(super) is_own: bool,
}

/// What a share means; `service` is what the definition names beside its queries.
///
/// # Errors
/// Why it is no objective of one endpoint.
pub(super) fn of(share: Share, labels: &Labels, service: Option<&str>) -> Result<Meaning, String> {
    let (is_good, part, total) = match flat(share, 0)? {
        Flat::Of(is_good, part, total) => (is_good, part, total),
        Flat::Within(threshold, counter) => {
            let (goal, parts) = (latency(&counter.metric, threshold)?, Parts::new(&counter, labels));
            let difference = slow_failures(&parts, &parts)?;
            return Ok(endpoint(&counter, labels, service, &parts.rest)?.meaning(goal, difference));
        }
    };
    if part.metric == OWN_BAD && total.metric == OWN_ALL && !is_good {
        return own(&part, &total);
    }
    part.is_added_alike(&total)?;
    let (of_part, of_total) = (Parts::new(&part, labels), Parts::new(&total, labels));
    if !matchers_alike(&of_part.rest, &of_total.rest) {
        return Err(differing(&of_part.rest, &of_total.rest));
    }
    let found = endpoint(&part, labels, service, &of_part.rest)?;
    if part.metric.ends_with("_bucket") {
        let goal = within_bucket(is_good, &part, &total, &of_part, &of_total)?;
        return Ok(found.meaning(goal, slow_failures(&of_part, &of_total)?));
    }
    if part.metric != total.metric {
        return Err(format!("`{}` and `{}` are two counters: which requests are failures is not said by a status", part.metric, total.metric));
    }
    let difference = failures(is_good, &of_part, &of_total)?;
    Ok(found.meaning(Goal::Availability, difference.as_deref()))
}

/// The endpoint whose latencies a query is about, and the threshold that a quantile of it stands for.
pub(super) fn of_histogram(counter: &Counter, value: f64, labels: &Labels, service: Option<&str>) -> Result<Meaning, String> {
    let goal = latency(counter.metric.trim_end_matches("_bucket"), value)?;
    let parts = Parts::new(counter, labels);
    if !parts.told.is_empty() || !parts.le.is_empty() {
        return Err(format!("{} leaves some of the requests out", listed(parts.told.iter().chain(&parts.le).copied())));
    }
    Ok(endpoint(counter, labels, service, &parts.rest)?.meaning(goal, Some(FAST_FAILURES)))
}

const FAST_FAILURES: &str = "a failure that is fast is good in the source; Slowburn counts every failure as bad";

const OWN_ALL: &str = "slowburn_slo_requests_total";
const OWN_BAD: &str = "slowburn_slo_bad_requests_total";

enum Flat {
    /// Good or bad requests, of all.
    Of(bool, Counter, Counter),
    /// Those that take at most so long.
    Within(f64, Counter),
}

fn flat(share: Share, depth: usize) -> Result<Flat, String> {
    let unknown = || Err("the share is not understood: expected good or bad requests divided by all".to_owned());
    match share {
        Share::Good(Query::Minus(all, bad), total) => minus(*all, *bad, total, false),
        Share::Bad(Query::Minus(all, good), total) => minus(*all, *good, total, true),
        Share::Good(Query::Counter(part), Query::Counter(total)) => Ok(Flat::Of(true, part, total)),
        Share::Bad(Query::Counter(part), Query::Counter(total)) => Ok(Flat::Of(false, part, total)),
        Share::Success(Query::Over(part, total)) => flat(Share::Good(*part, *total), depth),
        Share::Failure(Query::Over(part, total)) => flat(Share::Bad(*part, *total), depth),
        Share::Success(Query::Fraction(from, to, counter)) if from <= 0.0 => Ok(Flat::Within(to, counter)),
        Share::Success(Query::Minus(one, share)) if is_one(&one) && depth < 2 => flat(Share::Failure(*share), depth + 1),
        Share::Failure(Query::Minus(one, share)) if is_one(&one) && depth < 2 => flat(Share::Success(*share), depth + 1),
        _ => unknown(),
    }
}

fn is_one(query: &Query) -> bool {
    matches!(query, Query::Number(n) if (n - 1.0).abs() < f64::EPSILON)
}

fn minus(all: Query, part: Query, total: Query, is_good: bool) -> Result<Flat, String> {
    let (Query::Counter(all), Query::Counter(part), Query::Counter(total)) = (all, part, total) else {
        return Err("the difference is not understood: expected all requests without the good or the bad ones".to_owned());
    };
    if !all.is(&total) {
        return Err("what the difference begins with is not what it is divided by".to_owned());
    }
    Ok(Flat::Of(is_good, part, total))
}

/// The matchers of a counter by what they say.
struct Parts<'a> {
    le: Vec<&'a Matcher>,
    /// By status or outcome.
    told: Vec<&'a Matcher>,
    is_outcome: bool,
    rest: Vec<&'a Matcher>,
}

impl<'a> Parts<'a> {
    fn new(counter: &'a Counter, labels: &Labels) -> Self {
        let (le, others): (Vec<&Matcher>, Vec<&Matcher>) = counter.matchers.iter().partition(|m| m.name == "le");
        let (told, rest): (Vec<&Matcher>, Vec<&Matcher>) =
            others.into_iter().partition(|m| matches!(labels.role(&m.name), Some(Role::Status | Role::Outcome)) && !m.value.is_empty());
        let is_outcome = told.iter().any(|m| labels.role(&m.name) == Some(Role::Outcome));
        Self { le, told, is_outcome, rest }
    }
}

fn listed<'a>(matchers: impl Iterator<Item = &'a Matcher>) -> String {
    matchers.map(|m| format!("`{}`", written(m))).collect::<Vec<_>>().join(", ")
}

fn differing(part: &[&Matcher], total: &[&Matcher]) -> String {
    let only = |a: &[&Matcher], b: &[&Matcher]| {
        let there: BTreeSet<String> = b.iter().map(|m| written(m)).collect();
        a.iter().map(|m| written(m)).filter(|m| !there.contains(m)).map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", ")
    };
    let (in_part, in_total) = (only(part, total), only(total, part));
    let said = |what: &str, where_: &str| if what.is_empty() { String::new() } else { format!("{what} only in {where_}") };
    let both: Vec<String> = [said(&in_part, "the good or bad ones"), said(&in_total, "all")].into_iter().filter(|s| !s.is_empty()).collect();
    format!("the requests counted are chosen by more than their status: {}", both.join(", "))
}

fn within_bucket(is_good: bool, part: &Counter, total: &Counter, of_part: &Parts<'_>, of_total: &Parts<'_>) -> Result<Goal, String> {
    if !is_good {
        return Err(format!("`{}` counts the fast requests, and is divided as the bad ones", part.metric));
    }
    let base = part.metric.trim_end_matches("_bucket");
    let is_all = match of_total.le.as_slice() {
        [] => total.metric == format!("{base}_count"),
        [le] => total.metric == part.metric && matches!(le.op, MatchOp::Equal) && le.value == "+Inf",
        _ => false,
    };
    if !is_all {
        return Err(format!("all requests would be `{base}_count`, and what it is divided by is `{}`", total.metric));
    }
    let [le] = of_part.le.as_slice() else { return Err(format!("`{}` without one `le` counts every bucket", part.metric)) };
    let value = if matches!(le.op, MatchOp::Equal) { le.value.parse().ok() } else { None };
    latency(base, value.ok_or_else(|| format!("`{}` is not one bucket", written(le)))?)
}

/// The threshold of a histogram's value, in the unit that its name ends with.
fn latency(metric: &str, value: f64) -> Result<Goal, String> {
    let units = [("_seconds", 1e6), ("_milliseconds", 1e3), ("_ms", 1e3), ("_microseconds", 1.0), ("_us", 1.0)];
    let Some((_, unit_us)) = units.into_iter().find(|(end, _)| metric.ends_with(end)) else {
        return Err(format!("`{metric}` does not say its unit: expected a name that ends with {}", units.map(|u| u.0).join(", ")));
    };
    let us = (value * unit_us).round();
    #[expect(clippy::cast_precision_loss, reason = "seven days")]
    let is_within = us >= 1.0 && us <= VALUE_US_MAX as f64;
    if !is_within || (value * unit_us - us).abs() > 1e-6 * us {
        return Err(format!("{value} of `{metric}` is not a whole number of microseconds from 1us to 7d"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(Goal::Latency { threshold_us: us as u64 })
}

/// How failures count for a latency in the source; `None`: as in Slowburn.
fn slow_failures(part: &Parts<'_>, total: &Parts<'_>) -> Result<Option<&'static str>, String> {
    if part.told.is_empty() && total.told.is_empty() {
        return Ok(Some(FAST_FAILURES));
    }
    let counted = told(part)?;
    if counted.iter().any(|c| c.is_failure) {
        return Err(format!("{} counts some failures as good and leaves other requests out", listed(part.told.iter().copied())));
    }
    if matchers_alike(&part.told, &total.told) {
        return Ok(Some("the source leaves out requests by their status, good and bad; Slowburn counts all, and every failure as bad"));
    }
    let is_all_but_failures = counted.len() == all_of(part, &counted).iter().filter(|c| !c.is_failure).count();
    if total.told.is_empty() && is_all_but_failures {
        return Ok(None);
    }
    Err(format!("the requests that count as good are chosen by {}, and all by other statuses", listed(part.told.iter().copied())))
}

/// Which failures the source knows for an availability; `None`: those of Slowburn.
fn failures(is_good: bool, part: &Parts<'_>, total: &Parts<'_>) -> Result<Option<String>, String> {
    if !total.told.is_empty() {
        return Err(format!("only {} count at all, and Slowburn counts requests of every status", listed(total.told.iter().copied())));
    }
    if part.told.is_empty() {
        return Err("nothing tells good requests from bad ones: expected a status, an outcome or a bucket".to_owned());
    }
    let chosen = told(part)?;
    let all = all_of(part, &chosen);
    let bad: Vec<&Told> = if is_good { all.iter().filter(|c| !chosen.contains(c)).collect() } else { chosen.iter().collect() };
    let misses: Vec<&str> = all.iter().filter(|c| c.is_failure && !bad.contains(c)).map(|c| c.name.as_str()).collect();
    let failures = if part.is_outcome { "error and timeout" } else { "5xx" };
    if !misses.is_empty() {
        return Err(format!("{} does not call all of {failures} bad, as Slowburn does (not {})", listed(part.told.iter().copied()), some(&misses)));
    }
    let extra: Vec<&str> = bad.iter().filter(|c| !c.is_failure).map(|c| c.name.as_str()).collect();
    if extra.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!("the source calls {} bad too; Slowburn only {failures}", some(&extra))))
}

/// The first few of many.
fn some(names: &[&str]) -> String {
    if names.len() <= 5 { names.join(", ") } else { format!("{} and {} more", names[..5].join(", "), names.len() - 5) }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    name: String,
    is_failure: bool,
}

/// Everything that a request may have: outcomes, statuses, or classes of them where the label has these (`5xx`).
fn outcomes() -> Vec<Told> {
    [("ok", false), ("client_error", false), ("error", true), ("timeout", true)].map(|(name, is_failure)| Told { name: name.to_owned(), is_failure }).to_vec()
}

fn statuses() -> Vec<Told> {
    (100..600).map(|code: u16| Told { name: code.to_string(), is_failure: code >= 500 }).collect()
}

fn classes() -> Vec<Told> {
    ('1'..='5').map(|class| Told { name: format!("{class}xx"), is_failure: class == '5' }).collect()
}

fn matching(all: Vec<Told>, matchers: &[&Matcher]) -> Vec<Told> {
    all.into_iter().filter(|told| matchers.iter().all(|m| m.is_match(&told.name))).collect()
}

/// What the matchers choose.
fn told(parts: &Parts<'_>) -> Result<Vec<Told>, String> {
    if parts.is_outcome {
        return Ok(matching(outcomes(), &parts.told));
    }
    let speaks_of_classes = parts.told.iter().any(|m| classes().iter().any(|class| m.value.to_ascii_lowercase().contains(&class.name)));
    let chosen = matching(if speaks_of_classes { classes() } else { statuses() }, &parts.told);
    if chosen.is_empty() { Err(format!("{} is no status", listed(parts.told.iter().copied()))) } else { Ok(chosen) }
}

fn all_of(parts: &Parts<'_>, chosen: &[Told]) -> Vec<Told> {
    if parts.is_outcome {
        outcomes()
    } else if chosen.iter().any(|c| c.name.ends_with('x')) {
        classes()
    } else {
        statuses()
    }
}

/// Slowburn's own counters: each objective has its own, so nothing differs.
fn own(bad: &Counter, all: &Counter) -> Result<Meaning, String> {
    bad.is_added_alike(all)?;
    if !bad.matches_alike(all) {
        return Err("the bad requests and all are not those of one objective".to_owned());
    }
    let (mut values, mut left): (Vec<(&str, String)>, Vec<&Matcher>) = (Vec::new(), Vec::new());
    for matcher in &all.matchers {
        let name = ["service", "env", "kind", "method", "route", "objective"].into_iter().find(|name| *name == matcher.name);
        match (name, &matcher.op) {
            (Some(name), MatchOp::Equal) if !values.iter().any(|(n, _)| *n == name) => values.push((name, matcher.value.clone())),
            (None, MatchOp::Equal) => left.push(matcher),
            _ => return Err(format!("`{}` is not one value: each endpoint has objectives of its own", written(matcher))),
        }
    }
    let of = |name: &str| values.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
    let named = |name: &str| of(name).ok_or_else(|| format!("no `{name}` is named"));
    let selector = Selector { service: named("service")?, route: named("route")?, env: of("env"), kind: of("kind"), method: of("method") };
    let objective = named("objective")?;
    let threshold = objective.strip_prefix("latency<=").and_then(|text| parse_duration_us(text).ok()).filter(|us| (1..=VALUE_US_MAX).contains(us));
    let goal = match threshold {
        Some(threshold_us) => Goal::Latency { threshold_us },
        None if objective == "availability" => Goal::Availability,
        None => return Err(format!("`{objective}` is no objective: expected availability, or latency<= and a duration")),
    };
    let left = (!left.is_empty()).then(|| format!("{} is where Prometheus found it, and not part of an endpoint", listed(left.into_iter())));
    check(&selector)?;
    Ok(Meaning { selector, goal, differences: left.into_iter().collect(), is_own: true })
}

fn check(selector: &Selector) -> Result<(), String> {
    let empty = String::new();
    let parts = [
        ("service", &selector.service, true),
        ("route", &selector.route, true),
        ("env", selector.env.as_ref().unwrap_or(&empty), false),
        ("kind", selector.kind.as_ref().unwrap_or(&empty), false),
        ("method", selector.method.as_ref().unwrap_or(&empty), false),
    ];
    parts.into_iter().try_for_each(|(name, part, required)| check_part(name, part, required)).map_err(|e| e.to_string())
}

struct Found {
    selector: Selector,
    differences: Vec<String>,
}

impl Found {
    fn meaning(mut self, goal: Goal, difference: Option<&str>) -> Meaning {
        self.differences.extend(difference.map(str::to_owned));
        Meaning { selector: self.selector, goal, differences: self.differences, is_own: false }
    }
}

/// The value that a matcher demands, if it is one.
fn one_value(matcher: &Matcher) -> Option<&str> {
    let is_plain = || !matcher.value.contains(|c: char| r".*+?()[]{}|^$\".contains(c));
    let is_one = matches!(matcher.op, MatchOp::Equal) || (matches!(matcher.op, MatchOp::Re(_)) && is_plain());
    is_one.then_some(matcher.value.as_str())
}

/// The endpoint that matchers choose.
fn endpoint(counter: &Counter, labels: &Labels, service: Option<&str>, rest: &[&Matcher]) -> Result<Found, String> {
    let mut taken: Vec<&str> = Vec::new();
    let mut of = |role: Role| -> Result<Option<String>, String> {
        for name in labels.names(role) {
            let Some(matcher) = rest.iter().find(|m| m.name == name) else { continue };
            let value = one_value(matcher).ok_or_else(|| format!("`{}` is not one value, and each endpoint has objectives of its own", written(matcher)))?;
            taken.push(name);
            return Ok(Some(value.to_owned()));
        }
        Ok(None)
    };
    let (labelled, env, kind, method, route) = (of(Role::Service)?, of(Role::Env)?, of(Role::Kind)?, of(Role::Method)?, of(Role::Route)?);
    let mut differences = Vec::new();
    let expected = |role: Role, name: &str| {
        format!("no label names the {name}: expected one of {} with one value (--label {name}=LABEL names another)", labels.names(role).join(", "))
    };
    let route = route.filter(|r| !r.is_empty()).ok_or_else(|| expected(Role::Route, "route"))?;
    let service = match (labelled.filter(|s| !s.is_empty()), service) {
        (Some(label), Some(named)) if label != named => {
            differences.push(format!("the service is `{label}` by its label, and `{named}` by the definition: the label is what its timings have"));
            label
        }
        (Some(label), _) => label,
        (None, Some(named)) => named.to_owned(),
        (None, None) => return Err(expected(Role::Service, "service")),
    };
    let method = method.map(|method| {
        let upper = method.to_ascii_uppercase();
        if upper != method && ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].contains(&upper.as_str()) {
            differences.push(format!("the method `{method}` is written {upper}, as it is sent"));
            return upper;
        }
        method
    });
    let left: Vec<&Matcher> = rest.iter().filter(|m| !taken.contains(&m.name.as_str())).copied().collect();
    if let Some(choice) = left.iter().find(|m| one_value(m).is_none()) {
        return Err(format!("`{}` chooses requests by a label that Slowburn does not have", written(choice)));
    }
    if !left.is_empty() {
        differences.push(format!("{} is left out: Slowburn has no such part of an endpoint, so it counts more requests", listed(left.iter().copied())));
    }
    let open: Vec<&str> = [(env.is_none(), "env"), (method.is_none(), "method")].into_iter().filter(|(is_open, _)| *is_open).map(|(_, name)| name).collect();
    let apart = match &counter.added {
        Added::Each => open.clone(),
        Added::Up => Vec::new(),
        Added::By(names) => grouped(names, labels, rest)?,
    };
    let added: Vec<&str> = open.into_iter().filter(|name| !apart.contains(name)).collect();
    if !added.is_empty() {
        differences.push(format!("the source adds up every {}; Slowburn judges each endpoint that matches by itself", added.join(" and ")));
    }
    let selector = Selector { service, route, env, kind, method };
    check(&selector)?;
    Ok(Found { selector, differences })
}

/// The parts of an endpoint that a query groups by and leaves open, as Slowburn does.
fn grouped(names: &[String], labels: &Labels, rest: &[&Matcher]) -> Result<Vec<&'static str>, String> {
    let mut apart = Vec::new();
    for name in names {
        let is_one = rest.iter().any(|m| m.name == *name && one_value(m).is_some());
        match labels.role(name) {
            _ if is_one => {}
            Some(Role::Env) => apart.push("env"),
            Some(Role::Method) => apart.push("method"),
            Some(Role::Kind) => {}
            Some(Role::Route | Role::Service) => {
                return Err(format!("it makes an objective for each `{name}`, and Slowburn needs each named"));
            }
            Some(Role::Status | Role::Outcome) | None => return Err(format!("it makes an objective for each `{name}`, which is no part of an endpoint")),
        }
    }
    Ok(apart)
}
