//! Definitions of Sloth: `prometheus/v1`, and the same on Kubernetes as `PrometheusServiceLevel`.

use super::meaning::{self, Share};
use super::query;
use super::yaml::Node;
use super::{Document, Fate, Importer, Refused, Slo, percent_ppb};

/// What Sloth takes without `--default-slo-period`: 30 days, in slots.
const PERIOD_SLOTS: u32 = 30 * 8640;

pub(super) fn read(document: &Document<'_>, importer: &mut Importer) {
    let is_kubernetes = document.node.get("apiVersion").is_some();
    let spec = if is_kubernetes { document.node.get("spec") } else { Some(document.node) };
    let Some(spec) = spec else {
        let mut whole = Slo::new(document, importer, &document.name(), document.node.line);
        return whole.refuse(Refused::new(document.node.line, "spec", "it is missing"));
    };
    let service = spec.get("service").and_then(Node::text);
    let title = if is_kubernetes { document.name() } else { service.unwrap_or("(no service)").to_owned() };
    let mut whole = Slo::new(document, importer, &title, document.node.line);
    let known: &[&str] = if is_kubernetes { &["service", "labels", "slos"] } else { &["version", "service", "labels", "slos"] };
    whole.leave_out(spec.get("labels"), "labels", "Slowburn's incidents have no labels beside those of the endpoint");
    whole.leave_out_unknown(Some(spec), "", known);
    let slos = spec.get("slos").and_then(Node::list).unwrap_or_default();
    if slos.is_empty() {
        whole.refuse(Refused::new(spec.line, "slos", "no objective is in it"));
    }
    for (at, node) in slos.iter().enumerate() {
        let name = node.get("name").and_then(Node::text).map_or_else(|| format!("slos[{at}]"), str::to_owned);
        let mut slo = Slo::new(document, whole.importer, &name, node.line);
        slo.description = node.get("description").and_then(Node::text).map(str::to_owned);
        if let Err(refused) = one(&mut slo, node, service) {
            slo.refuse(refused);
        }
    }
}

fn one(slo: &mut Slo<'_>, node: &Node, service: Option<&str>) -> Result<(), Refused> {
    let objective = node.get("objective").ok_or_else(|| Refused::new(node.line, "objective", "it is missing"))?;
    let target_ppb = percent_ppb(objective).map_err(|e| Refused::new(objective.line, "objective", e))?;
    let (share, field, line) = share(node)?;
    let meaning = meaning::of(share, &slo.importer.labels, service).map_err(|e| Refused::new(line, field.as_str(), e))?;
    slo.leave_out(node.get("labels"), "labels", "Slowburn's incidents have no labels beside those of the endpoint");
    slo.leave_out_unknown(Some(node), "", &["name", "objective", "description", "labels", "sli", "alerting"]);
    alerting(slo, node.get("alerting"));
    let name = slo.name.clone();
    slo.carry(&meaning, &field, line, target_ppb, PERIOD_SLOTS, Some(name));
    Ok(())
}

/// A key as files have it, or as Kubernetes has it.
fn either<'a>(node: &'a Node, plain: &str, kubernetes: &str) -> Option<&'a Node> {
    node.get(plain).or_else(|| node.get(kubernetes))
}

fn text<'a>(node: Option<&'a Node>, line: usize, field: &str) -> Result<(&'a str, usize), Refused> {
    let found = node.and_then(|n| n.text().map(|text| (text, n.line)));
    found.ok_or_else(|| Refused::new(node.map_or(line, |n| n.line), field, "expected a query"))
}

fn share(node: &Node) -> Result<(Share, String, usize), Refused> {
    let sli = node.get("sli").ok_or_else(|| Refused::new(node.line, "sli", "it is missing"))?;
    if let Some(events) = sli.get("events") {
        let (bad, bad_line) = text(either(events, "error_query", "errorQuery"), events.line, "sli.events.error_query")?;
        let (all, all_line) = text(either(events, "total_query", "totalQuery"), events.line, "sli.events.total_query")?;
        let bad = query::read(bad).map_err(|e| Refused::new(bad_line, "sli.events.error_query", e))?;
        let all = query::read(all).map_err(|e| Refused::new(all_line, "sli.events.total_query", e))?;
        return Ok((Share::Bad(bad, all), "sli.events".to_owned(), events.line));
    }
    if let Some(raw) = sli.get("raw") {
        let (query, line) = text(either(raw, "error_ratio_query", "errorRatioQuery"), raw.line, "sli.raw.error_ratio_query")?;
        let share = query::read(query).map_err(|e| Refused::new(line, "sli.raw.error_ratio_query", e))?;
        return Ok((Share::Failure(share), "sli.raw".to_owned(), line));
    }
    if let Some(plugin) = sli.get("plugin") {
        let id = plugin.get("id").and_then(Node::text).unwrap_or("");
        return Err(Refused::new(
            plugin.line,
            "sli.plugin",
            format!("the queries are made by the plugin `{id}`, which is a program: write them out as sli.events"),
        ));
    }
    Err(Refused::new(sli.line, "sli", "expected events, raw or plugin"))
}

fn alerting(slo: &mut Slo<'_>, alerting: Option<&Node>) {
    let Some(alerting) = alerting else { return };
    let mut said = Vec::new();
    let mut off = |plain: &str, kubernetes: &str| {
        let alert = either(alerting, plain, kubernetes);
        let others = alert.and_then(Node::map).into_iter().flatten().filter(|(key, _)| key != "disable");
        said.extend(others.map(|(key, _)| format!("{plain}.{key}")));
        alert.and_then(|a| a.get("disable")).and_then(Node::text) == Some("true")
    };
    let (page_off, ticket_off) = (off("page_alert", "pageAlert"), off("ticket_alert", "ticketAlert"));
    let alerts = ["page_alert", "pageAlert", "ticket_alert", "ticketAlert"];
    said.extend(alerting.map().into_iter().flatten().map(|(key, _)| key.clone()).filter(|key| !alerts.contains(&key.as_str())));
    slo.critical = !page_off;
    if ticket_off {
        slo.note(alerting.line, "alerting.ticket_alert.disable", Fate::LeftOut, "Slowburn's warnings are told; a receiver of their own can be silent");
    }
    if !said.is_empty() {
        slo.note(alerting.line, "alerting", Fate::LeftOut, format!("{}: Slowburn words its own incidents, and `notify` says who is told", said.join(", ")));
    }
}
