//! Definitions of Pyrra: `pyrra.dev/v1alpha1`, `ServiceLevelObjective`.

use super::meaning::{self, Share};
use super::query::{self, Added, Counter, Query};
use super::yaml::Node;
use super::{Document, Fate, Importer, Refused, Slo, percent_ppb};
use crate::objective::parse_slots;
use crate::time::parse_duration_us;

pub(super) fn read(document: &Document<'_>, importer: &mut Importer) {
    let name = document.name();
    let mut slo = Slo::new(document, importer, &name, document.node.line);
    if document.kind() != "ServiceLevelObjective" {
        return slo.note(document.node.line, "kind", Fate::LeftOut, format!("a {} is no objective", document.kind()));
    }
    if let Err(refused) = one(&mut slo, document.node) {
        slo.refuse(refused);
    }
}

fn one(slo: &mut Slo<'_>, node: &Node) -> Result<(), Refused> {
    let spec = node.get("spec").ok_or_else(|| Refused::new(node.line, "spec", "it is missing"))?;
    slo.description = spec.get("description").and_then(Node::text).map(str::to_owned);
    let need = |key: &str| spec.get(key).ok_or_else(|| Refused::new(spec.line, format!("spec.{key}"), "it is missing"));
    let (target, window) = (need("target")?, need("window")?);
    let target_ppb = percent_ppb(target).map_err(|e| Refused::new(target.line, "spec.target", e))?;
    let period = window.text().map_or_else(|| Err("expected a duration such as 4w".to_owned()), period_slots);
    let period_slots = period.map_err(|e| Refused::new(window.line, "spec.window", e))?;
    let indicator = need("indicator")?;
    let (share, field, line) = share(indicator)?;
    let meaning = meaning::of(share, &slo.importer.labels, None).map_err(|e| Refused::new(line, field.as_str(), e))?;
    slo.leave_out(node.at(&["metadata", "labels"]), "metadata.labels", "Slowburn's incidents have no labels beside those of the endpoint");
    slo.leave_out(node.at(&["metadata", "annotations"]), "metadata.annotations", "Slowburn's incidents have no annotations");
    slo.leave_out_unknown(Some(spec), "spec", &["target", "window", "description", "indicator", "alerting"]);
    slo.leave_out_unknown(Some(indicator), "spec.indicator", &[field.trim_start_matches("spec.indicator.")]);
    alerting(slo, spec.get("alerting"));
    slo.note(
        window.line,
        "spec.window",
        Fate::Approximately,
        "Pyrra scales its pairs of windows to this one; Slowburn judges by its own [[burn_window]] table",
    );
    let name = slo.name.clone();
    slo.carry(&meaning, &field, line, target_ppb, period_slots, Some(name));
    Ok(())
}

/// A duration of Prometheus such as `4w` or `1w3d`, in slots.
fn period_slots(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is not a duration such as 4w or 30d");
    let (mut us, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let end = rest[unit_at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| unit_at + n);
        let part = match &rest[unit_at..end] {
            "w" => parse_duration_us(&format!("{}d", &rest[..unit_at])).map(|us| us * 7),
            "y" => parse_duration_us(&format!("{}d", &rest[..unit_at])).map(|us| us * 365),
            _ => parse_duration_us(&rest[..end]),
        };
        us = us.saturating_add(part.map_err(|_| wrong())?);
        rest = &rest[end..];
    }
    let slots = if us.is_multiple_of(1_000_000) { parse_slots(&format!("{}s", us / 1_000_000)) } else { Err(wrong()) };
    slots.map_err(|_| format!("`{text}` is not a multiple of 10s up to 31d, which is as far as Slowburn counts budgets"))
}

fn share(indicator: &Node) -> Result<(Share, String, usize), Refused> {
    if let Some(gauge) = indicator.get("bool_gauge").or_else(|| indicator.get("boolGauge")) {
        let why = "a gauge is true for a time, and Slowburn counts requests: it has no requests in it";
        return Err(Refused::new(gauge.line, "spec.indicator.bool_gauge", why));
    }
    if let Some(ratio) = indicator.get("ratio") {
        let field = "spec.indicator.ratio";
        let (errors, total) = (metric(ratio, "errors", field)?, metric(ratio, "total", field)?);
        return Ok((Share::Bad(errors, total), field.to_owned(), ratio.line));
    }
    if let Some(latency) = indicator.get("latency") {
        let field = "spec.indicator.latency";
        let (success, total) = (metric(latency, "success", field)?, metric(latency, "total", field)?);
        return Ok((Share::Good(success, total), field.to_owned(), latency.line));
    }
    if let Some(native) = indicator.get("latencyNative") {
        let field = "spec.indicator.latencyNative";
        let Query::Counter(total) = metric(native, "total", field)? else { unreachable!("a metric is a counter") };
        let within = native.get("latency").ok_or_else(|| Refused::new(native.line, format!("{field}.latency"), "it is missing"))?;
        let us = within.text().and_then(|t| parse_duration_us(t).ok());
        let us = us.ok_or_else(|| Refused::new(within.line, format!("{field}.latency"), "expected a duration such as 200ms"))?;
        #[expect(clippy::cast_precision_loss, reason = "at most 100 years of microseconds")]
        let seconds = us as f64 / 1e6;
        return Ok((Share::Success(Query::Fraction(0.0, seconds, total)), field.to_owned(), native.line));
    }
    Err(Refused::new(indicator.line, "spec.indicator", "expected ratio, latency or latencyNative"))
}

/// A metric of an indicator. Pyrra adds its series up, by the labels of `grouping`.
fn metric(indicator: &Node, part: &str, field: &str) -> Result<Query, Refused> {
    let field = format!("{field}.{part}.metric");
    let node = indicator.at(&[part, "metric"]).ok_or_else(|| Refused::new(indicator.line, field.as_str(), "it is missing"))?;
    let grouping: Vec<String> = indicator.get("grouping").and_then(Node::list).into_iter().flatten().filter_map(|n| n.text().map(str::to_owned)).collect();
    match query::read(node.text().unwrap_or("")) {
        Ok(Query::Counter(counter)) if counter.added == Added::Each => {
            let added = if grouping.is_empty() { Added::Up } else { Added::By(grouping) };
            Ok(Query::Counter(Counter { added, ..counter }))
        }
        Ok(_) => Err(Refused::new(node.line, field, "expected a metric with matchers")),
        Err(e) => Err(Refused::new(node.line, field, e)),
    }
}

fn alerting(slo: &mut Slo<'_>, alerting: Option<&Node>) {
    let Some(alerting) = alerting else { return };
    let is = |key: &str, value: &str| alerting.get(key).and_then(Node::text) == Some(value);
    if is("disabled", "true") || is("burnrates", "false") {
        slo.critical = false;
        slo.note(
            alerting.line,
            "spec.alerting",
            Fate::Approximately,
            "no alerts are asked for; Slowburn warns all the same, and `critical = false` keeps it from paging",
        );
    }
    if is("absent", "false") {
        slo.note(alerting.line, "spec.alerting.absent", Fate::LeftOut, "Slowburn watches every endpoint for silence");
    }
    if is("burnRateType", "dynamic") {
        slo.note(alerting.line, "spec.alerting.burnRateType", Fate::LeftOut, "Slowburn's factors are fixed; with little traffic it asks for evidence instead");
    }
    slo.leave_out(alerting.get("name"), "spec.alerting.name", "Slowburn names its own incidents");
    slo.leave_out_unknown(Some(alerting), "spec.alerting", &["name", "disabled", "burnrates", "absent", "burnRateType"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_durations_of_prometheus() {
        assert_eq!(period_slots("4w"), Ok(28 * 8640));
        assert_eq!(period_slots("1w3d12h"), Ok(10 * 8640 + 4320));
        for wrong in ["", "w", "4", "4x", "12w", "5s", "-1d", "1w-3d", "99999999999999w"] {
            assert!(period_slots(wrong).is_err(), "{wrong}");
        }
    }
}
