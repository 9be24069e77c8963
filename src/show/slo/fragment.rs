//! The objectives that were carried over as a part of a configuration, under comments that say where each comes from.

use std::fmt::Write as _;

use super::{Importer, Promised};
use crate::objective::{Goal, Severity, percent_text, slots_name};
use crate::time::format_duration_us;

/// The longest description in a comment, in characters.
const DESCRIPTION_MAX: usize = 300;

pub(super) fn text(files: &[(String, String)], importer: &Importer) -> String {
    let names: Vec<String> = files.iter().map(|(file, _)| comment(file)).collect();
    let mut out = format!(
        "# Written by `slowburn slo import` from {}. Whom to tell is not in it: a first [[receiver]] is told of all, or `notify` names others.\n",
        names.join(", ")
    );
    let mut groups: Vec<(&Promised, Vec<&Promised>)> = Vec::new();
    for promised in &importer.promised {
        let same = |p: &Promised| p.selector == promised.selector && p.critical == promised.critical && p.digits == promised.digits;
        match groups.iter_mut().find(|(first, _)| same(first)) {
            Some((_, all)) => all.push(promised),
            None => groups.push((promised, vec![promised])),
        }
    }
    for (first, all) in groups {
        put(&mut out, first, &all);
    }
    for window in importer.windows.iter().flat_map(|(windows, _)| windows) {
        let severity = if window.severity == Severity::Critical { "critical" } else { "warning" };
        let (long, short) = (window.long_name(), window.short_name());
        line(&mut out, &format!("\n[[burn_window]]\nlong = \"{long}\"\nshort = \"{short}\"\nfactor = {:?}\nseverity = \"{severity}\"", window.factor()));
        line(&mut out, &format!("alpha = {:?}", window.alpha));
    }
    out
}

fn put(out: &mut String, first: &Promised, all: &[&Promised]) {
    let selector = &first.selector;
    line(out, "\n[[endpoint]]");
    for (key, value) in [
        ("service", Some(&selector.service)),
        ("env", selector.env.as_ref()),
        ("kind", selector.kind.as_ref()),
        ("method", selector.method.as_ref()),
        ("route", Some(&selector.route)),
    ] {
        if let Some(value) = value {
            line(out, &format!("{key} = {}", quoted(value)));
        }
    }
    if !first.critical {
        line(out, "critical = false");
    }
    if first.digits != 2 {
        line(out, &format!("digits = {}", first.digits));
    }
    line(out, "objectives = [");
    for promised in all {
        let said = promised.description.as_deref().map_or_else(String::new, |d| format!(": {}", comment(d)));
        line(out, &format!("  # {} ({}){said}", comment(&promised.slo), comment(&promised.place)));
        let goal = match promised.goal {
            Goal::Latency { threshold_us } | Goal::Quantile { threshold_us, .. } => format!("latency = \"{}\"", format_duration_us(threshold_us)),
            Goal::Availability => "availability = true".to_owned(),
        };
        let target = percent_text(promised.target_ppb).replace(' ', "");
        let name = promised.name.as_ref().map_or_else(String::new, |n| format!(", name = {}", quoted(n)));
        line(out, &format!("  {{ {goal}, target = \"{target}\", period = \"{}\"{name} }},", slots_name(promised.period_slots)));
    }
    line(out, "]");
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("text takes all");
}

/// A text that TOML reads back as it is.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Text for a comment: one line, nothing that is not seen.
fn comment(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let line = text.chars().map(shown).collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= DESCRIPTION_MAX { line } else { line.chars().take(DESCRIPTION_MAX).chain(['…']).collect() }
}
