//! A configuration as OpenSLO: services, objectives by Slowburn's own counters, and burn windows as alert policies.
//!
//! OpenSLO has no word for a short window, an alpha, an endpoint that does not page or a third digit: these stand under annotations, which an import reads back and others
//! pass by. What it cannot say at all stands in comments.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::burn::OWN_TARGET;
use super::openslo::OWN;
use crate::endpoint::Selector;
use crate::histogram::Digits;
use crate::judge::{Owed, Promise, Promises};
use crate::objective::{BurnWindow, Goal, PPB, percent_text, slots_name};
use crate::show::rules::file::escaped;
use crate::show::rules::{decimal, slug};

/// Slots of 10 s in a minute, the shortest unit of a duration in OpenSLO.
const SLOTS_A_MINUTE: u32 = 6;

/// The longest name that every tool takes.
const NAME_BYTES_MAX: usize = 63;

const COMMENTS: &str = "\
# Written by `slowburn slo export`; `slowburn slo import` makes the same objectives of it.
#
# The queries name Slowburn's own counters, which grow: whoever evaluates them takes their increase() over a window, each series by itself, because what a selector leaves
# out (method, env, kind) is several endpoints with an objective each. A failure is bad for a latency however fast it was. What OpenSLO has no word for is under
# annotations slowburn/…: the short window that must burn too and the chance of luck (alpha) of an alert condition, `critical = false` and the digits of an endpoint.
# Slowburn's evidence for little traffic is not in a burn rate, and whom to tell is not in this file.
";

/// The objectives of a configuration.
#[must_use]
pub fn of_promises(promises: &Promises) -> String {
    let mut export = Export::default();
    for (at, owed) in promises.endpoints.iter().enumerate() {
        for promise in &owed.promises {
            let earlier = &promises.endpoints[..at];
            if earlier.iter().any(|o| o.selector == owed.selector && o.promises.iter().any(|p| p.goal == promise.goal)) {
                export.missing(&format!("{} of {}: an earlier entry has that objective, and judges it", promise.goal.name(), title(&owed.selector)));
            } else {
                export.objective(owed, promise);
            }
        }
        if owed.promises.is_empty() {
            export.missing(&format!("{}: it has no objectives", title(&owed.selector)));
        }
    }
    for flow in &promises.flows {
        export.missing(&format!("flow {}: work in against work out", flow.name));
    }
    for expected in &promises.expected {
        export.missing(&format!("expected {}: so many by a time of day", expected.name));
    }
    export.text()
}

#[derive(Default)]
struct Export {
    names: BTreeSet<String>,
    /// Services by their name in the file.
    services: Vec<(String, String)>,
    /// Burn windows by their name in the file; those that cannot be said by none.
    windows: Vec<(BurnWindow, Option<String>)>,
    missing: Vec<String>,
    objectives: String,
}

impl Export {
    fn text(&self) -> String {
        let mut out = COMMENTS.to_owned();
        if !self.missing.is_empty() {
            out.push_str("#\n# Not in it, because OpenSLO cannot say it:\n");
        }
        for missing in &self.missing {
            // Names come from people: one may end a comment and begin a document.
            line(&mut out, 0, &format!("# - {}", escaped(missing)));
        }
        for (service, name) in &self.services {
            document(&mut out, "Service", name, Some(service), &[]);
            line(&mut out, 0, "spec: {}");
        }
        let named = || self.windows.iter().filter_map(|(window, name)| Some((window, name.as_ref()?)));
        for (window, name) in named() {
            alert(&mut out, window, name);
        }
        if named().next().is_some() {
            document(&mut out, "AlertNotificationTarget", OWN_TARGET, None, &[]);
            line(&mut out, 0, "spec:");
            line(&mut out, 2, "description: Whom Slowburn's configuration names");
            line(&mut out, 2, &format!("target: {OWN_TARGET}"));
        }
        out.push_str(&self.objectives);
        out
    }

    fn missing(&mut self, what: &str) {
        self.missing.push(what.to_owned());
    }

    /// A name that no other document has.
    fn name(&mut self, parts: &[&str]) -> String {
        let slug = slug(parts);
        let slug = if slug.is_empty() { "unnamed" } else { &slug };
        let names = &mut self.names;
        let free = (1..=u32::MAX).map(|n| if n == 1 { String::new() } else { format!("-{n}") }).map(|end| {
            let kept = slug.get(..slug.len().min(NAME_BYTES_MAX - end.len())).unwrap_or(slug);
            kept.trim_end_matches('-').to_owned() + &end
        });
        let name = free.into_iter().find(|name| !names.contains(name)).expect("there are fewer documents than numbers");
        names.insert(name.clone());
        name
    }

    fn service(&mut self, service: &str) -> String {
        if let Some((_, name)) = self.services.iter().find(|(s, _)| s == service) {
            return name.clone();
        }
        let name = self.name(&[service]);
        self.services.push((service.to_owned(), name.clone()));
        name
    }

    /// The names of the burn windows that can be said.
    fn policies(&mut self, windows: &[BurnWindow]) -> Vec<String> {
        let mut found = Vec::new();
        for window in windows {
            let known = self.windows.iter().find(|(w, _)| w == window).map(|(_, name)| name.clone());
            let name = known.unwrap_or_else(|| {
                let pair = format!("{} and {}", window.long_name(), window.short_name());
                let name = shorthand(window.long_slots).map(|_| self.name(&["burn", &window.long_name(), &window.short_name()]));
                if name.is_none() {
                    self.missing(&format!("the burn window of {pair}: its long window is not whole minutes"));
                }
                self.windows.push((window.clone(), name.clone()));
                name
            });
            found.extend(name);
        }
        found
    }

    fn objective(&mut self, owed: &Owed, promise: &Promise) {
        let (goal, s) = (promise.goal.name(), &owed.selector);
        let what = format!("{goal} of {}", title(s));
        if let Goal::Quantile { .. } = promise.goal {
            return self.missing(&format!("{what}: a threshold over a quantile has no budget"));
        }
        let Some(period) = shorthand(promise.period_slots) else {
            return self.missing(&format!("{what}: its period of {} is not whole minutes", slots_name(promise.period_slots)));
        };
        let service = self.service(&s.service);
        let policies = self.policies(&promise.windows);
        let of = |part: &Option<String>| part.clone().unwrap_or_default();
        let (method, env, kind) = (of(&s.method), of(&s.env), of(&s.kind));
        let made = [&s.service, &method, &s.route, &env, &kind, &goal].map(String::as_str).to_vec();
        let named = promise.name.as_ref().map(|name| vec![s.service.as_str(), name.as_str()]);
        let name = self.name(&named.unwrap_or(made));
        let digits = (owed.digits == Digits::Three).then(|| ("digits", "3".to_owned()));
        let critical = (!owed.critical).then(|| ("critical", "false".to_owned()));
        let annotations: Vec<_> = [critical, digits, promise.name.clone().map(|n| ("name", n))].into_iter().flatten().collect();
        let out = &mut self.objectives;
        document(out, "SLO", &name, Some(&what), &annotations);
        line(out, 0, "spec:");
        line(out, 2, &format!("service: {}", quoted(&service)));
        line(out, 2, "indicator:");
        line(out, 4, "metadata:");
        line(out, 6, &format!("name: {}", quoted(&name)));
        line(out, 4, "spec:");
        line(out, 6, "ratioMetric:");
        line(out, 8, "counter: true");
        for (part, metric) in [("bad", "slowburn_slo_bad_requests_total"), ("total", "slowburn_slo_requests_total")] {
            line(out, 8, &format!("{part}:"));
            line(out, 10, "metricSource:");
            line(out, 12, "type: Prometheus");
            line(out, 12, "spec:");
            line(out, 14, &format!("query: {}", quoted(&query(metric, s, &goal))));
        }
        line(out, 2, "timeWindow:");
        line(out, 4, &format!("- duration: {period}"));
        line(out, 6, "isRolling: true");
        line(out, 2, "budgetingMethod: Occurrences");
        line(out, 2, "objectives:");
        line(out, 4, &format!("- displayName: {}", quoted(&format!("{} of requests", percent_text(promise.target_ppb)))));
        line(out, 6, &format!("target: {}", decimal(promise.target_ppb)));
        if !policies.is_empty() {
            line(out, 2, "alertPolicies:");
            for policy in policies {
                line(out, 4, &format!("- alertPolicyRef: {policy}"));
            }
        }
    }
}

fn alert(out: &mut String, window: &BurnWindow, name: &str) {
    let own = vec![("short-window", slots_name(window.short_slots)), ("alpha", format!("{:?}", window.alpha))];
    document(out, "AlertCondition", name, None, &own);
    line(out, 0, "spec:");
    line(out, 2, &format!("severity: {}", window.severity.name()));
    line(out, 2, "condition:");
    line(out, 4, "kind: burnrate");
    line(out, 4, "op: gte");
    line(out, 4, &format!("threshold: {}", decimal(window.factor_milli * (PPB / 1000))));
    line(out, 4, &format!("lookbackWindow: {}", shorthand(window.long_slots).unwrap_or_default()));
    line(out, 4, "alertAfter: 0m");
    document(out, "AlertPolicy", name, None, &[]);
    line(out, 0, "spec:");
    line(out, 2, "alertWhenBreaching: true");
    line(out, 2, "alertWhenResolved: true");
    line(out, 2, "alertWhenNoData: false");
    line(out, 2, "conditions:");
    line(out, 4, &format!("- conditionRef: {name}"));
    line(out, 2, "notificationTargets:");
    line(out, 4, &format!("- targetRef: {OWN_TARGET}"));
}

/// The head of a document.
fn document(out: &mut String, kind: &str, name: &str, title: Option<&str>, own: &[(&str, String)]) {
    line(out, 0, "---\napiVersion: openslo/v1");
    line(out, 0, &format!("kind: {kind}"));
    line(out, 0, "metadata:");
    line(out, 2, &format!("name: {}", quoted(name)));
    if let Some(title) = title {
        line(out, 2, &format!("displayName: {}", quoted(title)));
    }
    if !own.is_empty() {
        line(out, 2, "annotations:");
        for (key, value) in own {
            line(out, 4, &format!("{OWN}{key}: {}", quoted(value)));
        }
    }
}

fn query(metric: &str, selector: &Selector, goal: &str) -> String {
    let given = |name: &str, value: &str| format!("{name}=\"{}\"", escaped(value));
    let mut all = vec![given("service", &selector.service), given("route", &selector.route)];
    for (name, part) in [("method", &selector.method), ("env", &selector.env), ("kind", &selector.kind)] {
        all.extend(part.as_deref().map(|value| given(name, value)));
    }
    all.push(given("objective", goal));
    format!("{metric}{{{}}}", all.join(", "))
}

/// Slots as a duration of OpenSLO: whole minutes, hours or days.
fn shorthand(slots: u32) -> Option<String> {
    slots.is_multiple_of(SLOTS_A_MINUTE).then(|| slots_name(slots))
}

fn title(selector: &Selector) -> String {
    let method = selector.method.as_ref().map_or_else(String::new, |m| format!("{m} "));
    let more = [&selector.env, &selector.kind].into_iter().flatten().filter(|p| !p.is_empty()).fold(String::new(), |more, part| format!("{more}, {part}"));
    format!("{method}{} ({}{more})", selector.route, selector.service)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

fn line(out: &mut String, indent: usize, text: &str) {
    writeln!(out, "{:indent$}{text}", "").expect("text takes all");
}
