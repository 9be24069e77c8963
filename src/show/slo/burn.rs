//! Alert policies of OpenSLO as burn windows, as far as they can be said.
//!
//! A condition of OpenSLO has one window and how long it must hold; Slowburn has a long window, and a short one that must burn too. The burn windows of a
//! configuration hold for all its objectives.

use super::openslo::{own_annotation, referred, shorthand_slots};
use super::yaml::Node;
use super::{Document, Fate, Slo};
use crate::objective::{BurnWindow, Severity, parse_decimal, parse_slots, slots_name};

/// The target that an export names where OpenSLO demands one.
pub(super) const OWN_TARGET: &str = "slowburn";

/// What an objective names under `alertPolicies`, and all documents.
pub(super) struct Policies<'a> {
    pub(super) policies: &'a Node,
    pub(super) all: &'a [Document<'a>],
}

/// Takes the burn windows of an objective: those of the first that has any are those of the configuration.
pub(super) fn take(slo: &mut Slo<'_>, policies: &Policies<'_>) {
    let mut windows: Vec<BurnWindow> = Vec::new();
    for (at, policy) in policies.policies.list().unwrap_or_default().iter().enumerate() {
        let field = format!("spec.alertPolicies[{at}]");
        let reference = policy.text().or_else(|| policy.get("alertPolicyRef").and_then(Node::text));
        let found = match reference {
            Some(name) => referred(policies.all, "AlertPolicy", name),
            None => Some(policy),
        };
        let Some(spec) = found.and_then(|p| p.get("spec")) else {
            slo.note(policy.line, &field, Fate::LeftOut, format!("no AlertPolicy `{}` is in the files given", reference.unwrap_or("")));
            continue;
        };
        if spec.get("alertWhenBreaching").and_then(Node::text) == Some("false") {
            slo.note(policy.line, &field, Fate::LeftOut, "it does not alert when the budget burns");
            continue;
        }
        said(slo, spec, &field, policy.line);
        for condition in spec.get("conditions").and_then(Node::list).unwrap_or_default() {
            let reference = condition.text().or_else(|| condition.get("conditionRef").and_then(Node::text));
            let found = reference.map_or(Some(condition), |name| referred(policies.all, "AlertCondition", name));
            match found.ok_or_else(|| format!("no AlertCondition `{}` is in the files given", reference.unwrap_or(""))).and_then(window) {
                Ok((window, difference)) => {
                    if let Some(difference) = difference {
                        slo.note(condition.line, &field, Fate::Approximately, difference);
                    }
                    windows.push(window);
                }
                Err(why) => slo.note(condition.line, &field, Fate::LeftOut, why),
            }
        }
    }
    if windows.is_empty() {
        return;
    }
    match &slo.importer.windows {
        None => slo.importer.windows = Some((windows, slo.name.clone())),
        Some((there, _)) if *there == windows => {}
        Some((_, first)) => {
            let why = format!("burn windows hold for all objectives, and {first} has others");
            slo.note(policies.policies.line, "spec.alertPolicies", Fate::LeftOut, why);
        }
    }
}

/// What a policy says beside its condition.
fn said(slo: &mut Slo<'_>, spec: &Node, field: &str, line: usize) {
    if spec.get("alertWhenNoData").and_then(Node::text) == Some("true") {
        slo.note(line, &format!("{field}.alertWhenNoData"), Fate::LeftOut, "Slowburn watches every endpoint for silence by itself");
    }
    if spec.get("alertWhenResolved").and_then(Node::text) == Some("false") {
        slo.note(line, &format!("{field}.alertWhenResolved"), Fate::LeftOut, "whoever was told is told when it is over");
    }
    let targets = spec.get("notificationTargets").and_then(Node::list).unwrap_or_default();
    let names: Vec<&str> =
        targets.iter().map(|t| t.get("targetRef").or_else(|| t.at(&["metadata", "name"])).and_then(Node::text).unwrap_or("(no name)")).collect();
    let others: Vec<&str> = names.into_iter().filter(|name| *name != OWN_TARGET).collect();
    if !others.is_empty() {
        slo.note(line, &format!("{field}.notificationTargets"), Fate::LeftOut, format!("{}: whom to tell is a [[receiver]] and `notify`", others.join(", ")));
    }
}

/// A condition as a burn window, and what is not exact in it.
fn window(condition: &Node) -> Result<(BurnWindow, Option<String>), String> {
    let spec = condition.get("spec").ok_or("the condition has no spec")?;
    let inner = spec.get("condition").ok_or("the condition is empty")?;
    let text = |key: &str| inner.get(key).and_then(Node::text);
    if let Some(kind) = text("kind").filter(|k| !k.eq_ignore_ascii_case("burnrate")) {
        return Err(format!("a condition of the kind `{kind}`: expected burnrate"));
    }
    if let Some(op) = text("op").filter(|op| !matches!(*op, "gte" | "gt")) {
        return Err(format!("a burn rate that alerts when it is `{op}`"));
    }
    let threshold = text("threshold").unwrap_or("");
    let factor_milli = parse_decimal(threshold, 3).filter(|f| (1..=1_000_000_000).contains(f));
    let factor_milli = factor_milli.ok_or_else(|| format!("the burn rate `{threshold}` is not between 0.001 and 1000000 in steps of 0.001"))?;
    let slots = |text: &str| shorthand_slots(text).map(|(slots, _)| slots);
    let long_slots = slots(text("lookbackWindow").unwrap_or(""))?;
    let mut differences = Vec::new();
    let short_slots = match (own_annotation(condition, "short-window"), text("alertAfter")) {
        (Some(short), _) => parse_slots(short)?,
        (None, Some(after)) if after.trim_start_matches('0').len() > 1 => {
            let short = slots(after)?.min(long_slots);
            differences.push(format!("to burn for {after} became a short window of {} that must burn too", slots_name(short)));
            short
        }
        (None, _) => long_slots,
    };
    if short_slots > long_slots {
        return Err(format!("its short window of {} is longer than {}", slots_name(short_slots), slots_name(long_slots)));
    }
    let severity = severity(spec, &mut differences);
    let usual = if factor_milli <= 1000 { 0.05 } else { 0.001 };
    let alpha = own_annotation(condition, "alpha").map_or(Some(usual), |a| a.parse().ok().filter(|a| *a > 0.0 && *a <= 1.0));
    let alpha = alpha.ok_or("its alpha is not a probability over 0 and up to 1")?;
    let difference = (!differences.is_empty()).then(|| differences.join("; "));
    Ok((BurnWindow { long_slots, short_slots, factor_milli, severity, alpha }, difference))
}

fn severity(spec: &Node, differences: &mut Vec<String>) -> Severity {
    let text = spec.get("severity").and_then(Node::text).unwrap_or("");
    match text.to_ascii_lowercase().as_str() {
        "critical" | "page" | "p1" | "p0" | "sev1" | "sev0" | "high" => Severity::Critical,
        "warning" | "ticket" | "warn" | "info" | "low" | "medium" => Severity::Warning,
        _ => {
            differences.push(format!("the severity `{text}` became warning"));
            Severity::Warning
        }
    }
}
