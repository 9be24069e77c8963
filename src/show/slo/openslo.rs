//! Definitions of OpenSLO, `openslo/v1`: objectives with their indicators, by reference or in place.

use super::burn::{self, Policies};
use super::meaning::{self, Meaning, Share};
use super::query::{self, Query};
use super::yaml::Node;
use super::{Document, Fate, Importer, Refused, Slo, percent_ppb};
use crate::objective::{PPB, parse_decimal, parse_slots};

/// What is only Slowburn's stands under annotations with this prefix.
pub(super) const OWN: &str = "slowburn/";

/// Where nothing is said, in slots: 30 days.
const PERIOD_SLOTS: u32 = 30 * 8640;

const VERSION: &str = "openslo/v1";

/// What objectives refer to.
const REFERRED: [&str; 6] = ["SLI", "Service", "DataSource", "AlertPolicy", "AlertCondition", "AlertNotificationTarget"];

pub(super) fn read(document: &Document<'_>, all: &[Document<'_>], importer: &mut Importer) {
    let mut slo = Slo::new(document, importer, &document.name(), document.node.line);
    let version = document.node.get("apiVersion");
    if version.and_then(Node::text).is_some_and(|v| v != VERSION) {
        let line = version.map_or(slo.line, |v| v.line);
        let found = version.and_then(Node::text).unwrap_or("");
        let why = format!("`{found}` is another language under the same name: expected {VERSION}");
        return if document.kind() == "SLO" { slo.refuse(Refused::new(line, "apiVersion", why)) } else { slo.note(line, "apiVersion", Fate::LeftOut, why) };
    }
    match document.kind() {
        "SLO" => {
            if let Err(refused) = one(&mut slo, document.node, all) {
                slo.refuse(refused);
            }
        }
        kind if REFERRED.contains(&kind) => {}
        kind => slo.note(document.node.line, "kind", Fate::LeftOut, format!("a `{kind}` is no objective")),
    }
}

/// A document that is referred to.
pub(super) fn referred<'a>(all: &[Document<'a>], kind: &str, name: &str) -> Option<&'a Node> {
    all.iter().find(|d| d.kind() == kind && d.node.at(&["metadata", "name"]).and_then(Node::text) == Some(name)).map(|d| d.node)
}

/// An annotation of Slowburn's own.
pub(super) fn own_annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.at(&["metadata", "annotations", &format!("{OWN}{key}")]).and_then(Node::text)
}

fn one(slo: &mut Slo<'_>, node: &Node, all: &[Document<'_>]) -> Result<(), Refused> {
    let spec = node.get("spec").ok_or_else(|| Refused::new(node.line, "spec", "it is missing"))?;
    let title = node.at(&["metadata", "displayName"]).and_then(Node::text);
    let description = spec.get("description").and_then(Node::text);
    slo.description = [title, description].into_iter().flatten().map(str::to_owned).reduce(|title, description| format!("{title}: {description}"));
    slo.critical = own_annotation(node, "critical") != Some("false");
    slo.digits = if own_annotation(node, "digits") == Some("3") { 3 } else { 2 };
    let method = spec.get("budgetingMethod");
    if let Some(method) = method.filter(|m| m.text() != Some("Occurrences")) {
        let why = format!("{} counts slices of time, and Slowburn requests (Occurrences)", method.text().unwrap_or("it"));
        return Err(Refused::new(method.line, "spec.budgetingMethod", why));
    }
    let period_slots = period(slo, spec)?;
    let indicator = indicator(spec, all)?;
    let objectives = spec.get("objectives").and_then(Node::list).unwrap_or_default();
    if objectives.is_empty() {
        return Err(Refused::new(spec.line, "spec.objectives", "none is there"));
    }
    let carried_before = slo.importer.carried;
    for (at, objective) in objectives.iter().enumerate() {
        let field = format!("spec.objectives[{at}]");
        let found = target(objective, &field).and_then(|target_ppb| Ok((target_ppb, promise(spec, indicator, objective, &field, all, slo)?)));
        let (target_ppb, (meaning, found_in, line)) = match found {
            Ok(found) => found,
            Err(refused) => {
                slo.refuse(refused);
                continue;
            }
        };
        // A name that was made for the export is not carried back; one for several objectives names none.
        let given = if meaning.is_own { own_annotation(node, "name") } else { node.at(&["metadata", "name"]).and_then(Node::text) };
        let name = given.filter(|_| objectives.len() == 1).map(str::to_owned);
        let (place, line) = if objectives.len() == 1 { (found_in, line) } else { (field.clone(), objective.line) };
        slo.carry(&meaning, &place, line, target_ppb, period_slots, name);
        slo.leave_out_unknown(Some(objective), &field, &["displayName", "op", "value", "target", "targetPercent"]);
    }
    if slo.importer.carried > carried_before {
        rest(slo, node, spec, all);
    }
    Ok(())
}

/// What is no objective but stands beside it.
fn rest(slo: &mut Slo<'_>, node: &Node, spec: &Node, all: &[Document<'_>]) {
    slo.leave_out(node.at(&["metadata", "labels"]), "metadata.labels", "Slowburn's incidents have no labels beside those of the endpoint");
    for (key, value) in node.at(&["metadata", "annotations"]).and_then(Node::map).into_iter().flatten().filter(|(key, _)| !key.starts_with(OWN)) {
        slo.note(value.line, &format!("metadata.annotations.{key}"), Fate::LeftOut, "Slowburn's incidents have no annotations");
    }
    let known = ["description", "service", "indicator", "indicatorRef", "timeWindow", "budgetingMethod", "objectives", "alertPolicies"];
    slo.leave_out_unknown(Some(spec), "spec", &known);
    if let Some(policies) = spec.get("alertPolicies") {
        burn::take(slo, &Policies { policies, all });
    }
}

fn period(slo: &mut Slo<'_>, spec: &Node) -> Result<u32, Refused> {
    let Some(windows) = spec.get("timeWindow") else {
        slo.note(spec.line, "spec.timeWindow", Fate::Approximately, "none is there: 30d");
        return Ok(PERIOD_SLOTS);
    };
    let refused = |line: usize, why: &str| Err(Refused::new(line, "spec.timeWindow", why));
    let [window] = windows.list().unwrap_or_default() else { return refused(windows.line, "expected exactly one") };
    let is_rolling = window.get("isRolling").and_then(Node::text);
    if let Some(calendar) = window.get("calendar") {
        return refused(calendar.line, "it begins by the calendar, and Slowburn's budgets roll");
    }
    if is_rolling == Some("false") {
        return refused(window.line, "it does not roll, and Slowburn's budgets do");
    }
    let Some(duration) = window.get("duration") else { return refused(window.line, "expected a duration such as 28d") };
    let text = duration.text().unwrap_or("");
    match shorthand_slots(text) {
        Ok((slots, None)) => Ok(slots),
        Ok((slots, Some(difference))) => {
            slo.note(duration.line, "spec.timeWindow", Fate::Approximately, difference);
            Ok(slots)
        }
        Err(why) => refused(duration.line, &why),
    }
}

/// A duration such as `4w`, in slots, and what is not exact in it.
pub(super) fn shorthand_slots(text: &str) -> Result<(u32, Option<String>), String> {
    let wrong = || format!("`{text}` is not a duration such as 5m, 4w or 28d");
    let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let count: u64 = number.parse().map_err(|_| wrong())?;
    let (days, difference) = match unit {
        "w" => (count.checked_mul(7), None),
        "M" => (count.checked_mul(30), Some("a month is 30 days".to_owned())),
        "Q" => (count.checked_mul(91), None),
        "Y" => (count.checked_mul(365), None),
        "s" | "m" | "h" | "d" => (None, None),
        _ => return Err(wrong()),
    };
    let plain = days.map_or_else(|| text.to_owned(), |days| format!("{days}d"));
    let slots = parse_slots(&plain).map_err(|_| format!("`{text}` is not a multiple of 10s up to 31d, which is as far as Slowburn counts budgets"))?;
    Ok((slots, difference))
}

fn target(objective: &Node, field: &str) -> Result<u64, Refused> {
    match (objective.get("target"), objective.get("targetPercent")) {
        (Some(target), None) => {
            let text = target.text().unwrap_or("");
            let ppb = parse_decimal(text, 9).filter(|ppb| (1..PPB).contains(ppb));
            let why = || format!("`{text}` is not a share between 0 and 1 with at most 9 digits behind the point");
            ppb.ok_or_else(|| Refused::new(target.line, format!("{field}.target"), why()))
        }
        (None, Some(percent)) => percent_ppb(percent).map_err(|e| Refused::new(percent.line, format!("{field}.targetPercent"), e)),
        _ => Err(Refused::new(objective.line, field, "expected one of target and targetPercent")),
    }
}

/// The spec of an indicator.
fn indicator<'a>(spec: &'a Node, all: &[Document<'a>]) -> Result<&'a Node, Refused> {
    match (spec.get("indicator"), spec.get("indicatorRef")) {
        (Some(indicator), None) => indicator.get("spec").ok_or_else(|| Refused::new(indicator.line, "spec.indicator", "it has no spec")),
        (None, Some(reference)) => {
            let name = reference.text().unwrap_or("");
            let missing = || Refused::new(reference.line, "spec.indicatorRef", format!("no SLI `{name}` is in the files given"));
            referred(all, "SLI", name).and_then(|sli| sli.get("spec")).ok_or_else(missing)
        }
        (None, None) => Err(Refused::new(spec.line, "spec", "expected one of indicator and indicatorRef")),
        (Some(_), Some(reference)) => Err(Refused::new(reference.line, "spec", "expected one of indicator and indicatorRef, and both are there")),
    }
}

type Found = (Meaning, String, usize);

fn promise(spec: &Node, indicator: &Node, objective: &Node, field: &str, all: &[Document<'_>], slo: &Slo<'_>) -> Result<Found, Refused> {
    if let Some(own) = objective.get("indicator").or_else(|| objective.get("indicatorRef")) {
        return Err(Refused::new(own.line, field, "an objective put together of several indicators"));
    }
    let service = spec.get("service").and_then(Node::text);
    let (meaning, field, line) = if let Some(ratio) = indicator.get("ratioMetric") {
        let meaning = of_ratio(ratio, all, service, slo)?;
        (meaning, "spec.indicator.ratioMetric".to_owned(), ratio.line)
    } else if let Some(threshold) = indicator.get("thresholdMetric") {
        (of_threshold(threshold, objective, field, all, service, slo)?, "spec.indicator.thresholdMetric".to_owned(), threshold.line)
    } else {
        return Err(Refused::new(indicator.line, "spec.indicator", "expected one of ratioMetric and thresholdMetric"));
    };
    Ok((meaning, field, line))
}

fn of_ratio(ratio: &Node, all: &[Document<'_>], service: Option<&str>, slo: &Slo<'_>) -> Result<Meaning, Refused> {
    let path = "spec.indicator.ratioMetric";
    let share = match (ratio.get("good"), ratio.get("bad"), ratio.get("total"), ratio.get("raw")) {
        (Some(good), None, Some(total), None) => Share::Good(metric(good, &format!("{path}.good"), all)?, metric(total, &format!("{path}.total"), all)?),
        (None, Some(bad), Some(total), None) => Share::Bad(metric(bad, &format!("{path}.bad"), all)?, metric(total, &format!("{path}.total"), all)?),
        (None, None, None, Some(raw)) => {
            let share = metric(raw, &format!("{path}.raw"), all)?;
            match ratio.get("rawType").and_then(Node::text) {
                Some("success") => Share::Success(share),
                Some("failure") => Share::Failure(share),
                _ => return Err(Refused::new(ratio.line, format!("{path}.rawType"), "expected success or failure")),
            }
        }
        _ => return Err(Refused::new(ratio.line, path, "expected good and total, bad and total, or raw")),
    };
    meaning::of(share, &slo.importer.labels, service).map_err(|e| Refused::new(ratio.line, path, e))
}

fn of_threshold(node: &Node, objective: &Node, field: &str, all: &[Document<'_>], service: Option<&str>, slo: &Slo<'_>) -> Result<Meaning, Refused> {
    let path = "spec.indicator.thresholdMetric";
    let found = metric(node, path, all)?;
    let op = objective.get("op").and_then(Node::text).unwrap_or("");
    if !matches!(op, "lte" | "lt") {
        return Err(Refused::new(objective.line, format!("{field}.op"), format!("`{op}` of a threshold: expected lte or lt, which a latency has")));
    }
    let value = objective.get("value").ok_or_else(|| Refused::new(objective.line, format!("{field}.value"), "it is missing"))?;
    let number: Option<f64> = value.text().and_then(|t| t.parse().ok());
    let number = number.ok_or_else(|| Refused::new(value.line, format!("{field}.value"), "expected a number"))?;
    let refuse = |why: String| Refused::new(node.line, path, why);
    let (counter, difference) = match &found {
        Query::Counter(counter) => (counter, "each sample of the metric is one request to it; Slowburn counts the requests themselves".to_owned()),
        Query::Quantile(q) => {
            return Err(refuse(format!(
                "it counts the evaluations in which quantile {q} is within {number}, and Slowburn requests: promise that the share {q} of requests is (a ratioMetric)"
            )));
        }
        _ => return Err(refuse("expected the metric of a latency: a sum or a share has none for each request".to_owned())),
    };
    let mut meaning = meaning::of_histogram(counter, number, &slo.importer.labels, service).map_err(refuse)?;
    meaning.differences.push(difference);
    if op == "lt" {
        meaning.differences.push("less than the threshold is good in the source; in Slowburn as long as it is good too".to_owned());
    }
    Ok(meaning)
}

/// The query of a metric source.
fn metric(node: &Node, field: &str, all: &[Document<'_>]) -> Result<Query, Refused> {
    let source = node.get("metricSource").ok_or_else(|| Refused::new(node.line, format!("{field}.metricSource"), "it is missing"))?;
    let referred_type = || {
        let name = source.get("metricSourceRef")?.text()?;
        referred(all, "DataSource", name)?.at(&["spec", "type"])?.text()
    };
    let named = source.get("type").and_then(Node::text).or_else(referred_type);
    if let Some(other) = named.filter(|t| !t.eq_ignore_ascii_case("prometheus")) {
        return Err(Refused::new(source.line, format!("{field}.metricSource.type"), format!("queries of {other} are not read: expected Prometheus")));
    }
    let query = source.at(&["spec", "query"]);
    let missing = || Refused::new(source.line, format!("{field}.metricSource.spec.query"), "expected a query of Prometheus");
    let (query, line) = query.and_then(|q| q.text().map(|text| (text, q.line))).ok_or_else(missing)?;
    query::read(query).map_err(|e| Refused::new(line, format!("{field}.metricSource.spec.query"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shorthand() {
        assert_eq!(shorthand_slots("4w"), Ok((28 * 8640, None)));
        assert_eq!(shorthand_slots("5m"), Ok((30, None)));
        assert_eq!(shorthand_slots("1M").unwrap().0, 30 * 8640);
        for wrong in ["", "m", "1Q", "1Y", "5", "-1d", "1.5d", "99999999999999999999w", "9999999999999999999w", "5s", "1µ"] {
            assert!(shorthand_slots(wrong).is_err(), "{wrong}");
        }
    }
}
