//! What people read about an incident: the one-sentence summary here; channels lay it out further.

use super::{Event, Evidence, Kind, State, Verdict, WindowEvidence};
use crate::endpoint::EndpointKey;
use crate::time::humanize_ms;

/// One or two sentences: what, since when, how bad, over which window with how many requests.
#[must_use]
pub fn summary(key: &EndpointKey, kind: Kind, event: Event, evidence: &Evidence, open_for_ms: i64) -> String {
    let title = key.title();
    let window = deciding_window(evidence);
    let measured = window.map_or_else(String::new, |w| measured(kind, evidence, w));
    match (event, evidence.state) {
        (Event::Resolved, _) => format!(
            "{title} keeps {} again after {}. {} of {} requests were bad while it lasted.",
            evidence.objective,
            humanize_ms(open_for_ms),
            evidence.bad_since_opened,
            evidence.requests_since_opened
        ),
        (_, State::Unverified) => {
            format!("{title}: no request has come for a whole window, so nobody can say whether {} is kept again.", evidence.objective)
        }
        (Event::Deescalated, _) => format!("{title} burns more slowly, and is not over: {measured}{}", budget(kind, evidence)),
        (Event::Escalated, _) => format!("{title} got worse: {measured}{}", budget(kind, evidence)),
        _ => match kind {
            Kind::Burn => format!("{title} breaks {}: {measured}{}", evidence.objective, budget(kind, evidence)),
            Kind::Threshold => format!("{title} is over {}: {measured}", evidence.objective),
        },
    }
}

/// The window that decided: the first that fires, else the first.
#[must_use]
pub fn deciding_window(evidence: &Evidence) -> Option<&WindowEvidence> {
    evidence.windows.iter().find(|w| w.verdict == Verdict::Firing).or(evidence.windows.first())
}

/// `13 of 18 requests bad in 1h (observed 27.8 % good, promised 95 %), 14.4 times faster than the budget allows.`
fn measured(kind: Kind, evidence: &Evidence, w: &WindowEvidence) -> String {
    let good = percent(w.requests_long - w.bad_long, w.requests_long);
    let head = format!("{} of {} requests bad in {} (observed {good} good, promised {})", w.bad_long, w.requests_long, w.long, evidence.target);
    match kind {
        Kind::Burn => format!("{head}, {:.1} times faster than the budget allows.", w.burn_long),
        Kind::Threshold => format!("{head}."),
    }
}

fn budget(kind: Kind, evidence: &Evidence) -> String {
    if kind != Kind::Burn {
        return String::new();
    }
    let left = evidence.budget_remaining_ratio;
    if left <= 0.0 {
        return format!(" The budget of {} is used up.", evidence.period);
    }
    let gone = evidence.budget_exhausted_in_seconds.map_or_else(String::new, |s| format!("; at this rate it is gone in {}", humanize_ms(s * 1000)));
    format!(" {:.0} % of the budget of {} is left{gone}.", left * 100.0, evidence.period)
}

#[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "no".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}
