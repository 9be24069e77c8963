//! What a mail says: the subject, the plain text and the HTML of one line of an incident.
//!
//! Names of services and routes come from whoever sends timings, so every text is cleaned of control characters here and the HTML
//! is escaped here. How a mail travels is [`super::email`]'s.

use std::fmt::Write as _;

use crate::incident::text::{deciding_window, percent};
use crate::incident::{Broken, Change, Event, Grounds, Kind, SlowestTrace, State, Transition, Verdict, WindowEvidence, change_text};
use crate::time::humanize_ms;

/// The longest subject without its prefix, in characters.
const SUBJECT_CHARS_MAX: usize = 160;

/// The subject of the mail about a line.
///
/// All mails of an incident share one base, `POST /orders (shop, prod) breaks latency<=800ms`. What changes stands before it in
/// brackets: the severity, or `resolved`. Mail programs take a leading `Re:` and tags in brackets away before they compare
/// subjects (RFC 5256, section 2.1), and Gmail, which splits a conversation when the subject changes in spite of `References`, leaves
/// tags out as well; a bare `Resolved: …` would begin a new conversation there.
#[must_use]
pub fn subject(line: &Transition, is_root: bool) -> String {
    let base = match &line.evidence.grounds {
        Grounds::Promise(broken) => format!("{} {} {}", title(line), if line.kind == Kind::Burn { "breaks" } else { "is over" }, broken.objective),
        Grounds::Change(change) => change_text::headline(&line.endpoint(), line.kind, change),
    };
    let base = clean(&base);
    // A route that looks like an encoded word would be decoded by the reader's program.
    let base = shorten(&base.replace("=?", "= ?"));
    let tag = match line.event {
        Event::Resolved => "resolved",
        _ => line.severity.name(),
    };
    let re = if is_root { "" } else { "Re: " };
    format!("{re}[{tag}] {base}")
}

/// The body as plain text.
#[must_use]
pub fn text(line: &Transition, public_url: Option<&str>) -> String {
    let mut out = format!("{}\n\n", clean(&line.summary));
    for (name, value) in facts(line, public_url) {
        // Writing to a string cannot fail.
        writeln!(out, "{:<11}{}", format!("{name}:"), clean(&value)).ok();
    }
    let Some(broken) = line.evidence.promise() else { return out };
    out.push_str("\nWindows (long / short):\n");
    let rows = windows(broken);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "  {}", cells.join("  ").trim_end()).ok();
    }
    out
}

/// The body as HTML: the same facts, nothing to load from anywhere.
#[must_use]
pub fn html(line: &Transition, public_url: Option<&str>) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title></head>\n<body style=\"font-family:sans-serif\">\n<p><strong>{}</strong></p>\n<table>\n",
        escape(&subject(line, true)),
        escape(&line.summary)
    );
    for (name, value) in facts(line, public_url) {
        let value = escape(&value);
        let value = if name == "Link" { format!("<a href=\"{value}\">{value}</a>") } else { value };
        writeln!(out, "<tr><th align=\"left\" valign=\"top\">{name}</th><td>{value}</td></tr>").ok();
    }
    out.push_str("</table>\n");
    if let Some(broken) = line.evidence.promise() {
        out.push_str("<p>Windows (long / short):</p>\n<table border=\"1\" cellpadding=\"4\" style=\"border-collapse:collapse\">\n");
        for (number, row) in windows(broken).iter().enumerate() {
            let tag = if number == 0 { "th" } else { "td" };
            let cells = row.iter().fold(String::new(), |cells, cell| format!("{cells}<{tag}>{}</{tag}>", escape(cell)));
            writeln!(out, "<tr>{cells}</tr>").ok();
        }
        out.push_str("</table>\n");
    }
    out.push_str("</body></html>\n");
    out
}

/// The text on one line: control characters, line and paragraph separators and marks that turn the direction of writing become spaces.
#[must_use]
pub fn clean(text: &str) -> String {
    let hidden = |c: char| c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    text.chars().map(|c| if hidden(c) { ' ' } else { c }).collect()
}

/// The text, cleaned, for HTML: between tags or in a quoted attribute.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SUBJECT_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn title(line: &Transition) -> String {
    line.endpoint().title()
}

/// What is to be known, in the order in which somebody who was just woken asks for it.
fn facts(line: &Transition, public_url: Option<&str>) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Event", line.event.name().to_owned()), ("Severity", line.severity.name().to_owned())];
    match &line.evidence.grounds {
        Grounds::Promise(broken) => of_promise(&mut facts, line, broken),
        Grounds::Change(change) => of_change(&mut facts, line, change),
    }
    if let Some(slowest) = &line.evidence.slowest_trace {
        facts.push(("Trace", trace(slowest)));
    }
    // When it was decided; it has been bad for up to the window before.
    let when = if line.event == Event::Opened { "Opened" } else { "At" };
    facts.push((when, line.at.to_string()));
    if let Some(broken) = line.evidence.promise().filter(|_| line.event != Event::Opened) {
        let (bad, all) = (broken.bad_since_opened, broken.requests_since_opened);
        facts.push(("In all", format!("{bad} of {all} requests bad")));
    }
    facts.push(("Incident", line.id.clone()));
    if let Some(base) = public_url {
        facts.push(("Link", format!("{}/api/v1/incidents/{}", base.trim_end_matches('/'), line.id)));
    }
    facts
}

/// The slowest request that is known with its trace. As text it is on a line of its own, so the trace stands first, to be copied.
fn trace(slowest: &SlowestTrace) -> String {
    let failed = if slowest.outcome.is_failure() { format!(", {}", slowest.outcome.name()) } else { String::new() };
    format!("{} (the slowest known: {} ms{failed}, {})", slowest.trace_id, slowest.duration_ms, slowest.at)
}

fn of_promise(facts: &mut Vec<(&'static str, String)>, line: &Transition, broken: &Broken) {
    facts.push(("Endpoint", title(line)));
    facts.push(("Objective", format!("{}, {} of requests in {}", broken.objective, broken.target, broken.period)));
    if let Some(window) = deciding_window(broken) {
        facts.push(("Observed", observed(window)));
        facts.push(("Promised", format!("{} good", broken.target)));
        facts.push(("Why now", why_now(line, window)));
    }
    facts.push(("Budget", budget(line, broken)));
}

fn of_change(facts: &mut Vec<(&'static str, String)>, line: &Transition, change: &Change) {
    facts.push(("Endpoint", change_text::whom(&line.endpoint(), change)));
    facts.push(("Since", change.since.to_string()));
    if let (Some(now), Some(before)) = (change.level_ms, change.level_before_ms) {
        facts.push(("Usually", format!("{now} ms now, {before} ms before")));
    }
    if let Some(p95) = change.p95_ms {
        facts.push(("p95", format!("{p95} ms")));
    }
    if let Some(apart) = change.spread_ratio.filter(|apart| *apart >= 1.005) {
        facts.push(("Apart", format!("requests differ {:.0} % more from each other than before", (apart - 1.0) * 100.0)));
    }
    facts.push(("Rests on", format!("{} requests in {}", change.requests, change.window)));
    facts.push(("Why now", format!("{} beyond chance, reported from {} on", change.score, change.threshold)));
    if let Some(marker) = &change.marker {
        facts.push(("After", marker.clone()));
    }
    if let Some(breach) = line.breach() {
        let limit = change.limit.as_deref().unwrap_or("its limit");
        facts.push(("Forecast", format!("breaks {limit} at {} (80 %: {} to {})", breach.at, breach.from, breach.to)));
    }
    if !change.endpoints.is_empty() {
        facts.push(("Endpoints", change.endpoints.join(", ")));
    }
    if !change.missing_keys.is_empty() {
        facts.push(("Missing", change.missing_keys.join(", ")));
    }
}

fn observed(window: &WindowEvidence) -> String {
    let (all, bad) = (window.requests_long, window.bad_long);
    let sampled = if window.observed_long == all { String::new() } else { format!(" (counted from {} observed)", window.observed_long) };
    format!("{} good in {}: {bad} of {all} requests bad{sampled}", percent(all.saturating_sub(bad), all), window.long)
}

fn why_now(line: &Transition, w: &WindowEvidence) -> String {
    let short = format!("{} of {} requests bad in {}", w.bad_short, w.requests_short, w.short);
    match (line.event, line.evidence.state) {
        (Event::Resolved, _) => format!("good again: {short}"),
        (_, State::Unverified) => "no request has come for a whole window; it may or may not be over".to_owned(),
        (Event::Deescalated, _) => format!("slower than before, not over: {short}"),
        _ if line.kind == Kind::Threshold => {
            format!("fewer good requests than promised in {} and {} ({}); {}", w.long, w.short, short, luck(w.p_value))
        }
        _ => format!(
            "{:.1} times as many bad requests as promised in {} and {:.1} times in {} (alert from {}); {}",
            w.burn_long,
            w.long,
            w.burn_short,
            w.short,
            w.factor,
            luck(w.p_value)
        ),
    }
}

fn luck(p: f64) -> String {
    if p < 1e-6 {
        return "chance that this is luck: under 1 in a million".to_owned();
    }
    format!("chance that this is luck: 1 in {:.0}", (1.0 / p).max(1.0))
}

/// The budget as time, which is what one can plan with, and as a share.
fn budget(line: &Transition, evidence: &Broken) -> String {
    let left = evidence.budget_remaining_ratio;
    if left <= 0.0 {
        return format!("none left of {}; {} of {} requests were bad", evidence.period, evidence.period_bad, evidence.period_requests);
    }
    let share = format!("{:.0} % of {} left", left * 100.0, evidence.period);
    match evidence.budget_exhausted_in_seconds {
        Some(seconds) if line.event != Event::Resolved => format!("{} left at this rate; {share}", humanize_ms(seconds.saturating_mul(1000))),
        _ => share,
    }
}

fn windows(broken: &Broken) -> Vec<[String; 6]> {
    let head = ["Window", "Requests", "Bad", "Burn", "Alert from", "Verdict"].map(str::to_owned);
    let rows = broken.windows.iter().map(|w| {
        let verdict = match w.verdict {
            Verdict::Firing => "firing",
            Verdict::Undecided => "undecided",
            Verdict::Ok => "ok",
        };
        [
            clean(&format!("{} / {}", w.long, w.short)),
            format!("{} / {}", w.requests_long, w.requests_short),
            format!("{} / {}", w.bad_long, w.bad_short),
            format!("{:.1} / {:.1}", w.burn_long, w.burn_short),
            w.factor.to_string(),
            verdict.to_owned(),
        ]
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::Outcome;
    use crate::notify::tests::notification;
    use crate::time::Timestamp;

    #[test]
    fn subjects_differ_only_in_what_mail_programs_ignore() {
        let base = "POST /orders (shop, prod) breaks latency<=800ms";
        for (event, is_root, wanted) in [
            (Event::Opened, true, format!("[critical] {base}")),
            (Event::Escalated, false, format!("Re: [critical] {base}")),
            (Event::Resolved, false, format!("Re: [resolved] {base}")),
        ] {
            assert_eq!(subject(&notification("a", event).line, is_root), wanted);
        }
    }

    #[test]
    fn the_text_reads_well() {
        let line = notification("a", Event::Opened).line;
        let wanted = "\
POST /orders (shop, prod) breaks latency<=800ms: 13 of 18 requests bad in 1h.

Event:     opened
Severity:  critical
Endpoint:  POST /orders (shop, prod)
Objective: latency<=800ms, 95 % of requests in 30d
Observed:  27.8 % good in 1h: 13 of 18 requests bad
Promised:  95 % good
Why now:   14.4 times as many bad requests as promised in 1h and 20.0 times in 5m (alert from 14.4); chance that this is luck: 1 in 22222
Budget:    2 h 5 min left at this rate; 56 % of 30d left
Opened:    2025-12-24 00:00:00 UTC
Incident:  00c0ffee00c0ffee
Link:      https://slow.example/api/v1/incidents/00c0ffee00c0ffee

Windows (long / short):
  Window    Requests  Bad     Burn         Alert from  Verdict
  1h / 5m   18 / 4    13 / 4  14.4 / 20.0  14.4        firing
  6h / 30m  18 / 4    13 / 4  14.4 / 20.0  6           undecided
";
        assert_eq!(text(&line, Some("https://slow.example/")), wanted);
    }

    #[test]
    fn the_end_of_an_incident_says_so() {
        let text = text(&notification("a", Event::Resolved).line, None);
        assert!(text.contains("Event:     resolved\n"), "{text}");
        assert!(text.contains("Why now:   good again: 0 of 4 requests bad in 5m\n"), "{text}");
        assert!(text.contains("Budget:    56 % of 30d left\n"), "{text}");
        assert!(text.contains("In all:    13 of 18 requests bad\n"), "{text}");
        assert!(!text.contains("Link"));
    }

    #[test]
    fn a_known_trace_is_named() {
        let mut line = notification("a", Event::Opened).line;
        line.evidence.slowest_trace = Some(SlowestTrace::new("4bf92f3577b34da6", 30_001_500, Timestamp(1_766_534_390_123), Outcome::Timeout));
        let text = text(&line, None);
        assert!(text.contains("Trace:     4bf92f3577b34da6 (the slowest known: 30001.5 ms, timeout, 2025-12-23 23:59:50 UTC)\nOpened:"), "{text}");
        line.evidence.slowest_trace = Some(SlowestTrace::new("<b>\u{202e}\"&", 1, Timestamp(0), Outcome::Ok));
        assert!(html(&line, None).contains("<td>&lt;b&gt; &quot;&amp; (the slowest known: 0.001 ms, 1970-01-01"), "{}", html(&line, None));
    }

    #[test]
    fn nothing_hostile_comes_through() {
        let mut line = notification("a", Event::Opened).line;
        for hostile in ["<script>alert(1)</script>", "\"><img src=x>", "a\r\nBcc: eve@example.com", "\u{202e}gnp.exe", "' onload='x", "&lt;"] {
            line.route = hostile.to_owned();
            line.summary = hostile.to_owned();
            if let Grounds::Promise(broken) = &mut line.evidence.grounds {
                broken.objective = hostile.to_owned();
            }
            let html = html(&line, Some("https://slow.example"));
            assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("\u{202e}"), "{html}");
            assert!(!subject(&line, true).chars().any(char::is_control));
            assert!(!text(&line, None).contains("\nBcc"));
        }
        assert_eq!(escape("a<b>&\"'c"), "a&lt;b&gt;&amp;&quot;&#39;c");
        line.route = "/ä".repeat(250);
        assert!(subject(&line, false).chars().count() < 190);
    }
}
