//! The rules of one objective: the share of bad requests by window, how far luck is excluded, an alert for each pair of burn windows, and what dashboards read.

use std::collections::BTreeSet;

use super::file::{Group, Makes, Rule, escaped};
use crate::config::is_objective_name;
use crate::endpoint::Selector;
use crate::judge::{Owed, Promise};
use crate::objective::{BurnWindow, Goal, PPB, Severity, percent_text, slots_name};
use crate::time::{SLOT_MS, humanize_ms};

/// By what an endpoint and its objective are told apart.
const KEY: &str = "service, env, kind, method, route, objective";

/// Slots of 10 s in a day.
const SLOTS_A_DAY: u32 = 8_640;

/// The windows that dashboards of Sloth read, in slots: 5m, 30m, 1h, 2h, 6h, 1d, 3d.
const SLOTH_SLOTS: [u32; 7] = [30, 180, 360, 720, 2_160, SLOTS_A_DAY, 3 * SLOTS_A_DAY];

pub(super) struct Objective<'a> {
    owed: &'a Owed,
    promise: &'a Promise,
    /// Entries that come first where they match too.
    earlier: Vec<&'a Selector>,
    slo: String,
    id: String,
}

impl<'a> Objective<'a> {
    /// One under an identity that `ids` does not have yet.
    pub(super) fn new(owed: &'a Owed, promise: &'a Promise, earlier: Vec<&'a Selector>, ids: &mut BTreeSet<String>) -> Self {
        let s = &owed.selector;
        let of = |part: &'a Option<String>| part.as_deref().unwrap_or("");
        let goal = promise.goal.name();
        let slo = promise.name.clone().unwrap_or_else(|| slug(&[of(&s.method), &s.route, of(&s.env), of(&s.kind), &goal]));
        // As Sloth has it, so that what reads the rules of Sloth reads these.
        let id = if promise.name.is_some() && is_objective_name(&s.service) { format!("{}-{slo}", s.service) } else { slug(&[&s.service, &slo]) };
        let end = (1..=u32::MAX).map(|n| if n == 1 { String::new() } else { format!("-{n}") }).find(|end| ids.insert(format!("{id}{end}")));
        let end = end.expect("there are fewer objectives than numbers");
        Self { owed, promise, earlier, slo: format!("{slo}{end}"), id: format!("{id}{end}") }
    }

    pub(super) fn group(&self, runbooks: &str) -> Group {
        let mut notes = vec![format!(
            "{}: {}, {} of requests in {}",
            title(&self.owed.selector),
            self.promise.goal.name(),
            percent_text(self.promise.target_ppb),
            slots_name(self.promise.period_slots)
        )];
        let (can_fire, cannot): (Vec<&BurnWindow>, Vec<_>) = self.promise.windows.iter().partition(|w| w.share(self.promise.budget_ppb()) <= 1.0);
        let more_than_all =
            |w: &BurnWindow| format!("No alert over {} and {}: {} times the budget is more than all requests.", w.long_name(), w.short_name(), w.factor());
        notes.extend(cannot.into_iter().map(more_than_all));
        let is_promise = !matches!(self.promise.goal, Goal::Quantile { .. });
        let judged = can_fire.iter().flat_map(|w| [w.long_slots, w.short_slots]);
        let shown = SLOTH_SLOTS.into_iter().filter(|_| is_promise);
        let windows: BTreeSet<u32> = judged.chain(shown).collect();
        let mut rules: Vec<Rule> = windows.iter().map(|slots| self.share(*slots)).collect();
        for long in can_fire.iter().map(|w| w.long_slots).collect::<BTreeSet<_>>() {
            rules.extend([self.requests(long), self.luck(long)]);
        }
        rules.extend(can_fire.into_iter().map(|w| self.alert(w, runbooks)));
        if is_promise {
            rules.extend((!windows.contains(&self.promise.period_slots)).then(|| self.share_of_period()));
            rules.extend(self.for_sloth());
            rules.extend(self.for_pyrra());
        }
        Group { name: format!("slowburn-objective-{}", self.id), notes, rules }
    }

    /// Matchers of its series; and what to leave out of them.
    fn matchers(&self, selector: &Selector) -> String {
        let given = |name: &str, value: &str| format!("{name}=\"{}\"", escaped(value));
        let mut all = vec![given("service", &selector.service), given("route", &selector.route)];
        for (name, part) in [("method", &selector.method), ("env", &selector.env), ("kind", &selector.kind)] {
            all.extend(part.as_deref().map(|value| given(name, value)));
        }
        all.push(given("objective", &self.promise.goal.name()));
        all.join(", ")
    }

    fn without_earlier(&self, expr: String) -> String {
        self.earlier.iter().fold(expr, |expr, earlier| format!("{expr}\nunless on ({KEY})\nslowburn_slo_objective_ratio{{{}}}", self.matchers(earlier)))
    }

    fn sum(&self, function: &str, metric: &str, window: &str) -> String {
        format!("sum by ({KEY}) ({function}({metric}{{{}}}[{window}]))", self.matchers(&self.owed.selector))
    }

    fn record(&self, name: String, expr: String, more: Vec<(&'static str, String)>) -> Rule {
        let mut labels = vec![("sloth_id", self.id.clone()), ("sloth_service", self.owed.selector.service.clone()), ("sloth_slo", self.slo.clone())];
        labels.extend(more);
        Rule { makes: Makes::Record(name), expr, labels, annotations: Vec::new() }
    }

    /// A series recorded here.
    fn own(&self, name: &str) -> String {
        format!("{name}{{sloth_id=\"{}\"}}", self.id)
    }

    fn budget(&self) -> String {
        decimal(self.promise.budget_ppb())
    }

    fn share(&self, slots: u32) -> Rule {
        let window = window_name(slots);
        let (bad, all) = (self.sum("rate", "slowburn_slo_bad_requests_total", &window), self.sum("rate", "slowburn_slo_requests_total", &window));
        self.record(share_name(slots), self.without_earlier(format!("{bad}\n/\n{all}")), vec![("sloth_window", window)])
    }

    /// As Slowburn counts the budget: Prometheus need not keep the period, and late timings are where they belong.
    fn share_of_period(&self) -> Rule {
        let period = self.promise.period_slots;
        let of = |metric: &str| format!("max by ({KEY}) ({metric}{{{}}})", self.matchers(&self.owed.selector));
        let (bad, all) = (of("slowburn_slo_period_bad_requests"), of("slowburn_slo_period_requests"));
        self.record(share_name(period), self.without_earlier(format!("{bad}\n/\n({all} > 0)")), vec![("sloth_window", window_name(period))])
    }

    fn requests(&self, long: u32) -> Rule {
        let window = window_name(long);
        let expr = self.without_earlier(self.sum("increase", "slowburn_slo_requests_total", &window));
        self.record(format!("slowburn:slo_requests:increase{window}"), expr, Vec::new())
    }

    /// A bound above the probability that so many bad requests are luck; there only while more than the budget are bad.
    ///
    /// # Source
    /// Chernoff 1952, for the Poisson distribution, whose upper tail is above that of the binomial one here.
    fn luck(&self, long: u32) -> Rule {
        let (window, b) = (window_name(long), self.budget());
        let (n, r) = (self.own(&format!("slowburn:slo_requests:increase{window}")), self.own(&share_name(long)));
        let expr = format!("exp(\n  - {n}\n  * ignoring (sloth_window) (\n    ({r} > {b}) * ln({r} / {b})\n    - {r} + {b}\n  )\n)");
        self.record(luck_name(long), expr, Vec::new())
    }

    fn alert(&self, window: &BurnWindow, runbooks: &str) -> Rule {
        let (budget, factor) = (self.budget(), decimal(window.factor_milli * (PPB / 1000)));
        let burns = |slots: u32| format!("{} / {budget} >= {factor}", self.own(&share_name(slots)));
        let mut expr = format!("max without (sloth_window) (\n  {}", burns(window.long_slots));
        if window.short_slots != window.long_slots {
            expr = format!("{expr}\n  and ignoring (sloth_window)\n  {}", burns(window.short_slots));
        }
        let expr = format!("{expr}\n)\nand\n{} < {}", self.own(&luck_name(window.long_slots)), window.alpha);
        let severity = if self.owed.critical { window.severity } else { Severity::Warning };
        let sloth_severity = if severity == Severity::Critical { "page" } else { "ticket" };
        let labels = vec![
            ("severity", severity.name().to_owned()),
            ("sloth_severity", sloth_severity.to_owned()),
            // As its series have it: without it alerts of two objectives look like one rule.
            ("sloth_id", self.id.clone()),
            ("long", window.long_name()),
            ("short", window.short_name()),
        ];
        let (name, summary, said) = self.said(window);
        let annotations = vec![("summary", summary), ("description", said), ("runbook_url", format!("{runbooks}/{name}.md"))];
        Rule { makes: Makes::Alert(name), expr, labels, annotations }
    }

    /// The name of the alert, its summary and its description.
    fn said(&self, window: &BurnWindow) -> (&'static str, String, String) {
        // Names come from labels: one with braces would be read as a template.
        let endpoint = "{{ with $labels.method }}{{ . }} {{ end }}{{ $labels.route }} ({{ $labels.service }}{{ with $labels.env }}, {{ . }}{{ end }})";
        let (long, short, period) = (window.long_name(), window.short_name(), slots_name(self.promise.period_slots));
        let (target, factor) = (percent_text(self.promise.target_ppb), window.factor());
        let count = format!(
            "{{{{ with printf \"slowburn:slo_requests:increase{}{{sloth_id=%q,env=%q,kind=%q,method=%q}}\" $labels.sloth_id $labels.env $labels.kind $labels.method | query \
             }}}}{{{{ . | first | value | printf \"%.0f\" }}}}{{{{ end }}}}",
            window_name(window.long_slots)
        );
        if let Goal::Quantile { .. } = self.promise.goal {
            let said = format!(
                "More requests than {target} allows were slower than the threshold in {long}: {{{{ printf \"%.1f\" $value }}}} times as many.\n\
                 {count} requests in {long}; the chance that this is luck is under {}.",
                window.alpha
            );
            return ("SlowburnQuantileOverThreshold", format!("{endpoint} breaks {{{{ $labels.objective }}}}"), said);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a length of time for people; `as` saturates")]
        let lasts = humanize_ms((f64::from(self.promise.period_slots) / factor) as i64 * SLOT_MS);
        let said = format!(
            "In {long} {{{{ printf \"%.1f\" $value }}}} times as many requests were bad as {{{{ $labels.objective }}}} ({target} in {period}) allows, and at least {factor} times as \
             many in {short}.\n{count} requests in {long}; the chance that this is luck is under {}. At {factor} times the budget of {period} lasts {lasts}.",
            window.alpha
        );
        ("SlowburnBudgetBurn", format!("{endpoint} burns the budget of {{{{ $labels.objective }}}}"), said)
    }

    fn for_sloth(&self) -> Vec<Rule> {
        let (target, budget) = (decimal(self.promise.target_ppb), self.budget());
        let left = format!("max by ({KEY}) (slowburn_slo_error_budget_remaining_ratio{{{}}})", self.matchers(&self.owed.selector));
        let info = [("sloth_mode", "slowburn-rules"), ("sloth_spec", "slowburn/v1"), ("sloth_version", env!("CARGO_PKG_VERSION"))];
        let mut info: Vec<(&'static str, String)> = info.map(|(name, value)| (name, value.to_owned())).to_vec();
        info.push(("sloth_objective", percent_text(self.promise.target_ppb).trim_end_matches(" %").to_owned()));
        let days = f64::from(self.promise.period_slots) / f64::from(SLOTS_A_DAY);
        let plain = |name: &str, expr: String| self.record(name.to_owned(), expr, Vec::new());
        vec![
            plain("slo:objective:ratio", format!("vector({target})")),
            plain("slo:error_budget:ratio", format!("vector({budget})")),
            plain("slo:time_period:days", format!("vector({days})")),
            plain("slo:current_burn_rate:ratio", format!("{} / {budget}", self.own("slo:sli_error:ratio_rate5m"))),
            plain("slo:period_burn_rate:ratio", format!("{} / {budget}", self.own(&share_name(self.promise.period_slots)))),
            plain("slo:period_error_budget_remaining:ratio", self.without_earlier(left)),
            self.record("sloth_slo_info".to_owned(), "vector(1)".to_owned(), info),
        ]
    }

    /// The generic rules of Pyrra.
    fn for_pyrra(&self) -> Vec<Rule> {
        let record = |name: &str, expr: String| {
            let labels = vec![("slo", self.id.clone())];
            Rule { makes: Makes::Record(name.to_owned()), expr, labels, annotations: Vec::new() }
        };
        let rate = |metric: &str| self.without_earlier(self.sum("rate", metric, "5m"));
        vec![
            record("pyrra_objective", format!("vector({})", decimal(self.promise.target_ppb))),
            record("pyrra_window", format!("vector({})", u64::from(self.promise.period_slots) * 10)),
            record("pyrra_availability", format!("1 - {}", self.own(&share_name(self.promise.period_slots)))),
            record("pyrra_requests:rate5m", rate("slowburn_slo_requests_total")),
            record("pyrra_errors:rate5m", rate("slowburn_slo_bad_requests_total")),
        ]
    }
}

/// `POST /orders (shop)` of what is selected.
fn title(selector: &Selector) -> String {
    let method = selector.method.as_ref().map_or_else(String::new, |m| format!("{m} "));
    let more = [&selector.env, &selector.kind].into_iter().flatten().fold(String::new(), |more, part| format!("{more}, {part}"));
    format!("{method}{} ({}{more})", selector.route, selector.service)
}

fn share_name(slots: u32) -> String {
    format!("slo:sli_error:ratio_rate{}", window_name(slots))
}

fn luck_name(slots: u32) -> String {
    format!("slowburn:slo_luck:bound{}", window_name(slots))
}

/// A window as Prometheus writes it, and so Sloth names it: weeks before days.
fn window_name(slots: u32) -> String {
    const WEEK: u32 = 7 * SLOTS_A_DAY;
    if slots > 0 && slots.is_multiple_of(WEEK) { format!("{}w", slots / WEEK) } else { slots_name(slots) }
}

/// Parts per billion as a number without an exponent.
pub(in crate::show) fn decimal(ppb: u64) -> String {
    let text = format!("{}.{:09}", ppb / PPB, ppb % PPB);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What identities of Sloth may have: letters, digits and dashes.
pub(in crate::show) fn slug(parts: &[&str]) -> String {
    let mut out = String::new();
    for part in parts {
        for c in part.chars() {
            if c.is_ascii_alphanumeric() {
                out.push(c.to_ascii_lowercase());
            } else if !out.is_empty() && !out.ends_with('-') {
                out.push('-');
            }
        }
        if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::evidence::binomial_tail;

    #[test]
    fn numbers_windows_and_identities_are_written_as_prometheus_and_sloth_have_them() {
        let decimals = [1, 10_000_000, 999_000_000, PPB, 14_400_000_000].map(decimal);
        assert_eq!(decimals, ["0.000000001", "0.01", "0.999", "1", "14.4"]);
        let day = SLOTS_A_DAY;
        assert_eq!([1, 30, 540, day, 7 * day, 28 * day, 30 * day].map(window_name), ["10s", "5m", "90m", "1d", "1w", "4w", "30d"]);
        assert_eq!(slug(&["POST", "/users/{id}", "", "", "latency<=1.5s"]), "post-users-id-latency-1-5s");
        assert_eq!(slug(&["größe", ""]), "gr-e");
    }

    /// What the head of the file and the README say: bad requests that it takes at 99 %, where exactly the factor is burnt.
    #[test]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
    fn the_guard_for_few_requests_is_never_laxer_than_the_exact_test() {
        let budget = 0.01;
        for (factor, rules_need, slowburn_needs) in [(14.4, 4, 4), (6.0, 8, 6), (3.0, 16, 12)] {
            let requests = |bad: u64| (bad as f64 / (factor * budget) + 1e-9) as u64;
            let bound = |bad: u64| {
                let (n, r) = (requests(bad) as f64, bad as f64 / requests(bad) as f64);
                (-n * (r * (r / budget).ln() - r + budget)).exp()
            };
            let exact = |bad: u64| binomial_tail(bad, requests(bad), budget);
            assert!((1..200).all(|bad| bound(bad) >= exact(bad)), "{factor}");
            let first = |p: &dyn Fn(u64) -> f64| (1..200).find(|bad| p(*bad) < 0.001);
            assert_eq!((first(&bound), first(&exact)), (Some(rules_need), Some(slowburn_needs)), "{factor}");
        }
    }
}
