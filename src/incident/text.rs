//! What people read about a broken promise: the one-sentence summary here (of a change: [`super::change_text`]); channels lay it out further.

use super::{Broken, Event, Kind, State, Verdict, WindowEvidence};
use crate::endpoint::EndpointKey;
use crate::time::humanize_ms;

/// One or two sentences: what, since when, how bad, over which window with how many requests.
#[must_use]
pub fn summary(key: &EndpointKey, kind: Kind, event: Event, state: State, evidence: &Broken, open_for_ms: i64) -> String {
    let title = key.title();
    let window = deciding_window(evidence);
    let measured = window.map_or_else(String::new, |w| measured(kind, evidence, w));
    match (event, state) {
        (Event::Resolved, _) => format!(
            "{title} keeps {} again after {}. {} of {} requests were bad in all.",
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
            _ => format!("{title} is over {}: {measured}", evidence.objective),
        },
    }
}

/// The window that decided: the first that fires, else the first.
#[must_use]
pub fn deciding_window(evidence: &Broken) -> Option<&WindowEvidence> {
    evidence.windows.iter().find(|w| w.verdict == Verdict::Firing).or(evidence.windows.first())
}

/// `13 of 18 requests bad in 1h (observed 27.8 % good, promised 95 %), 14.4 times as many as the promise allows.`
fn measured(kind: Kind, evidence: &Broken, w: &WindowEvidence) -> String {
    let good = percent(w.requests_long - w.bad_long, w.requests_long);
    let running = if evidence.still_running == 0 { String::new() } else { format!("; {} of them still run", evidence.still_running) };
    let head = format!("{} of {} requests bad in {} (observed {good} good, promised {}{running})", w.bad_long, w.requests_long, w.long, evidence.target);
    match kind {
        Kind::Burn => format!("{head}, {:.1} times as many as the promise allows.", w.burn_long),
        _ => format!("{head}."),
    }
}

fn budget(kind: Kind, evidence: &Broken) -> String {
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

/// A share of good requests with as many digits as tell it from all: `100 %` is said of all only.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
pub fn percent(good: u64, all: u64) -> String {
    let bad = all.saturating_sub(good);
    if all == 0 {
        return "nothing".to_owned();
    }
    if bad == 0 {
        return "100 %".to_owned();
    }
    let digits = [100, 1_000, 10_000].into_iter().position(|part| bad.saturating_mul(part) >= all).map_or(4, |n| n + 1);
    format!("{:.digits$} %", good as f64 * 100.0 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_is_not_all_never_reads_as_all() {
        for (good, all, text) in [
            (5, 18, "27.8 %"),
            (0, 7, "0.0 %"),
            (99, 100, "99.0 %"),
            (9_985, 10_000, "99.85 %"),
            (99_999, 100_000, "99.9990 %"),
            (7, 7, "100 %"),
            (0, 0, "nothing"),
        ] {
            assert_eq!(percent(good, all), text);
        }
    }
}
