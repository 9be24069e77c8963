//! What people read about a change that no threshold sees: what, since when, how much, over which window with how many requests, and what comes of it.

use super::{Breach, Change, Event, Kind};
use crate::endpoint::EndpointKey;
use crate::time::{Timestamp, humanize_ms};

/// One to three sentences.
#[must_use]
pub fn summary(key: &EndpointKey, kind: Kind, event: Event, change: &Change, breach: Option<Breach>, open_for_ms: i64) -> String {
    let title = whom(key, change);
    if !change.services.is_empty() {
        return presence(event, change, open_for_ms);
    }
    if event == Event::Resolved {
        if !change.endpoints.is_empty() {
            return format!("{title} are as before after {}.", humanize_ms(open_for_ms));
        }
        return format!("{title} {} after {}.", over(kind), humanize_ms(open_for_ms));
    }
    let mut text = match kind {
        Kind::Creep => format!("{title} is creeping since about {}: {}.", day(change.since), level(change)),
        Kind::Step if !change.endpoints.is_empty() => format!("{title} are slower{}: {}.", after_marker(change), level(change)),
        Kind::Step => format!("{title} is slower since {}{}: {}.", minute(change.since), after_marker(change), level(change)),
        Kind::Tail => format!(
            "{title} has a longer tail since about {}: {:.1} times as many requests are far slower than the rest, and the rest is as it was.",
            day(change.since),
            change.ratio.unwrap_or(1.0)
        ),
        Kind::Throughput if !change.endpoints.is_empty() => format!("{title} have far less traffic since {}.", minute(change.since)),
        Kind::Silence if !change.endpoints.is_empty() => format!("{title} are silent: no request since {}.", minute(change.since)),
        Kind::Throughput => format!("{title} has far less traffic: {}.", traffic(change)),
        Kind::Silence => format!("{title} is silent: {}.", traffic(change)),
        Kind::Completion => format!("{title} has not done its work: {}.", work(change)),
        _ => format!("{title} loses work: {}.", work(change)),
    };
    if matches!(kind, Kind::Creep | Kind::Step | Kind::Tail) {
        text = format!("{text} {} requests in {}.", change.requests, change.window);
    }
    if let Some(breach) = breach {
        text.push(' ');
        text.push_str(&forecast(change, breach));
    }
    text
}

/// `Nobody reports for shop (prod) any more: its 2 senders (web-1, web-2) were last heard of at 2025-12-24 03:12 UTC.`
fn presence(event: Event, change: &Change, open_for_ms: i64) -> String {
    let services = listed(&change.services, change.services.len());
    if event == Event::Resolved {
        return format!("{services}: heard of again after {}.", humanize_ms(open_for_ms));
    }
    let last = minute(change.since);
    let Some(n) = change.senders_gone.map(|n| n as usize) else {
        return format!(
            "Nothing at all has come since {last}, from any of {} services ({services}). What they have in common is the first suspect: a collector, the network, this \
             server's address.",
            change.services.len()
        );
    };
    let senders = listed(&change.senders, n);
    match (change.services.len(), n) {
        (1, 1) => format!("Nobody reports for {services} any more: its only sender ({senders}) was last heard of at {last}."),
        (1, _) => format!("Nobody reports for {services} any more: its {n} senders ({senders}) were last heard of at {last}."),
        (all, 1) => format!("Nobody reports for {all} services any more ({services}): their one sender ({senders}) was last heard of at {last}."),
        (all, _) => format!(
            "Nobody reports for {all} services any more ({services}): their {n} senders ({senders}) are gone together, since {last}. \
             What they have in common is the first suspect: a collector, the network, this server's address."
        ),
    }
}

/// The first few, and how many more.
fn listed(names: &[String], all: usize) -> String {
    let shown = &names[..names.len().min(NAMES_SHOWN)];
    let more = all.max(names.len()) - shown.len();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// Names that a sentence lists; the evidence has more.
const NAMES_SHOWN: usize = 5;

/// What a subject says of it, the same in all mails of an incident.
#[must_use]
pub fn headline(key: &EndpointKey, kind: Kind, change: &Change) -> String {
    match change.services.as_slice() {
        [] => {}
        _ if change.senders_gone.is_none() => return "nothing comes from any service".to_owned(),
        [one] => return format!("nobody reports for {one}"),
        several => return format!("nobody reports for {} services", several.len()),
    }
    let verb = match kind {
        Kind::Creep => "is creeping",
        Kind::Step => "is slower",
        Kind::Tail => "has a longer tail",
        Kind::Throughput => "has far less traffic",
        Kind::Silence => "is silent",
        Kind::Completion => "has not done its work",
        _ => "loses work",
    };
    if change.endpoints.is_empty() {
        return format!("{} {verb}", whom(key, change));
    }
    let env = if key.env.is_empty() { String::new() } else { format!(" ({})", key.env) };
    let what = match kind {
        Kind::Silence => "are silent",
        Kind::Throughput => "have far less traffic",
        _ => "are slower",
    };
    format!("endpoints of {}{env} {what}", key.service)
}

/// `POST /orders (shop, prod)`, `print jobs (cards, prod)`, `37 of 41 endpoints of shop (prod)`.
#[must_use]
pub fn whom(key: &EndpointKey, change: &Change) -> String {
    if !change.endpoints.is_empty() {
        let env = if key.env.is_empty() { String::new() } else { format!(" ({})", key.env) };
        let of = change.endpoints_watched.map_or_else(String::new, |all| format!(" of {all}"));
        return format!("{}{of} endpoints of {}{env}", change.endpoints.len(), key.service);
    }
    match &change.name {
        Some(name) => format!("{name} ({})", key.title()),
        None => key.title(),
    }
}

fn over(kind: Kind) -> &'static str {
    match kind {
        Kind::Creep | Kind::Step => "is as fast as before",
        Kind::Tail => "has its usual tail",
        Kind::Throughput | Kind::Silence => "has its usual traffic",
        Kind::Completion => "did its work",
        _ => "loses no more work",
    }
}

/// `usually 168 ms now and 120 ms before, up 40 % (1.6 % a day, 18 of 21 days rising); p95 412 ms`.
/// Where requests draw apart: `usually 126 ms now and 120 ms before, up 5 %, and requests differ 12 % more from each other; p95 312 ms`.
fn level(change: &Change) -> String {
    let more = |r: &f64| *r >= 1.005;
    let apart = change.spread_ratio.filter(more).map_or_else(String::new, |r| format!(", and requests differ {:.0} % more from each other", (r - 1.0) * 100.0));
    let way = |r: f64| if r < 1.0 { "down" } else { "up" };
    let up = change.ratio.map_or_else(String::new, |r| format!("{} {:.0} %{}{apart}", way(r), (r - 1.0).abs() * 100.0, rising(change)));
    let p95 = change.p95_ms.map_or_else(String::new, |p95| format!("; p95 {}", ms(p95)));
    match (change.level_ms, change.level_before_ms) {
        (Some(now), Some(before)) => format!("usually {} now and {} before, {up}{p95}", ms(now), ms(before)),
        _ => format!("{up}{p95}"),
    }
}

fn rising(change: &Change) -> String {
    let Some(slope) = change.slope_ratio_per_day else { return String::new() };
    let days = match (change.rising_days, change.days) {
        (Some(rising), Some(days)) => format!(", {rising} of {days} days rising"),
        _ => String::new(),
    };
    format!(" ({:.1} % a day{days})", slope * 100.0)
}

fn after_marker(change: &Change) -> String {
    change.marker.as_ref().map_or_else(String::new, |marker| format!(" (after: {marker})"))
}

/// `6 requests in 1 h where 31 were expected by the same hours of earlier weeks`.
fn traffic(change: &Change) -> String {
    let seen = match change.seen {
        None | Some(0) => "no request".to_owned(),
        Some(1) => "1 request".to_owned(),
        Some(n) => format!("{n} requests"),
    };
    format!("{seen} in {} where {:.0} were expected by the same hours of earlier weeks", change.window, change.expected.unwrap_or(0.0))
}

/// `150 done, 400 expected; the oldest waits since …; missing: a, b, c and 247 more`.
fn work(change: &Change) -> String {
    let mut text = format!("{} done in {}, {:.0} expected", change.seen.unwrap_or(0), change.window, change.expected.unwrap_or(0.0));
    if let Some(due) = change.due_at {
        text = format!("{text} by {}", minute(due));
    }
    if let Some(pace) = change.pace {
        text = format!("{text}, and the pace of the last hour says {pace}");
    }
    if let Some(oldest) = change.oldest_since {
        text = format!("{text}; the oldest waits since {}", minute(oldest));
    }
    if !change.missing_keys.is_empty() {
        let all = usize::try_from(change.missing.unwrap_or(0)).unwrap_or(usize::MAX);
        text = format!("{text}; missing: {}", listed(&change.missing_keys, all));
    }
    text
}

/// `It bends upward: at this rate it passes latency<=800ms around 2025-12-03 (2025-11-30 to 2025-12-08).`
#[must_use]
pub fn forecast(change: &Change, breach: Breach) -> String {
    let how = match change.curve.as_deref() {
        Some("wall") => "It bends upward as if something ran out: at this rate it",
        Some("exponential") => "It grows by the same share each day: at this rate it",
        _ => "At this rate it",
    };
    let limit = change.limit.as_deref().unwrap_or("its limit");
    format!("{how} breaks {limit} around {} ({} to {}).", day(breach.at), day(breach.from), day(breach.to))
}

fn ms(ms: f64) -> String {
    if ms >= 10_000.0 {
        format!("{:.1} s", ms / 1000.0)
    } else if ms >= 10.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{ms:.2} ms")
    }
}

fn day(at: Timestamp) -> String {
    at.to_string().chars().take(10).collect()
}

fn minute(at: Timestamp) -> String {
    format!("{} UTC", at.to_string().chars().take(16).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> EndpointKey {
        let text = |s: &str| s.to_owned();
        EndpointKey { service: text("shop"), env: text("prod"), kind: text("http"), method: text("POST"), route: text("/orders") }
    }

    const CHRISTMAS: Timestamp = Timestamp(1_766_534_400_000);

    fn at(days: i64) -> Timestamp {
        CHRISTMAS.plus_ms(days * 86_400_000)
    }

    #[test]
    fn a_creep_says_how_far_it_is_and_when_it_breaks_its_promise() {
        let change = Change {
            since: at(-21),
            window: "1d".to_owned(),
            requests: 1_240,
            ratio: Some(1.38),
            level_ms: Some(165.6),
            level_before_ms: Some(120.0),
            p95_ms: Some(412.3),
            slope_ratio_per_day: Some(0.0155),
            rising_days: Some(18),
            days: Some(21),
            curve: Some("wall".to_owned()),
            limit: Some("latency<=800ms".to_owned()),
            ..Change::default()
        };
        let breach = Breach { at: at(9), from: at(6), to: at(14) };
        assert_eq!(
            summary(&orders(), Kind::Creep, Event::Opened, &change, Some(breach), 0),
            "POST /orders (shop, prod) is creeping since about 2025-12-03: usually 166 ms now and 120 ms before, up 38 % (1.6 % a day, 18 of 21 days rising); p95 412 ms. \
             1240 requests in 1d. It bends upward as if something ran out: at this rate it breaks latency<=800ms around 2026-01-02 (2025-12-30 to 2026-01-07)."
        );
        assert_eq!(
            summary(&orders(), Kind::Creep, Event::Resolved, &change, None, 3 * 86_400_000),
            "POST /orders (shop, prod) is as fast as before after 3 d."
        );
    }

    #[test]
    fn requests_that_draw_apart_are_told_with_their_level() {
        let change = Change {
            since: at(-9),
            window: "1d".to_owned(),
            requests: 815,
            ratio: Some(1.05),
            level_ms: Some(126.0),
            level_before_ms: Some(120.0),
            p95_ms: Some(312.0),
            spread_ratio: Some(1.12),
            ..Change::default()
        };
        assert_eq!(
            summary(&orders(), Kind::Creep, Event::Opened, &change, None, 0),
            "POST /orders (shop, prod) is creeping since about 2025-12-15: usually 126 ms now and 120 ms before, up 5 %, and requests differ 12 % more from each other; \
             p95 312 ms. 815 requests in 1d."
        );
    }

    #[test]
    fn a_service_that_is_slower_is_one_sentence_with_its_marker() {
        let change = Change {
            since: at(0),
            window: "1h".to_owned(),
            requests: 90,
            ratio: Some(1.4),
            marker: Some("upgrade 2.1".to_owned()),
            endpoints: (0..37).map(|n| format!("GET /{n}")).collect(),
            endpoints_watched: Some(41),
            ..Change::default()
        };
        let key = EndpointKey { method: String::new(), route: String::new(), ..orders() };
        let wanted = "37 of 41 endpoints of shop (prod) are slower (after: upgrade 2.1): up 40 %. 90 requests in 1h.";
        assert_eq!(summary(&key, Kind::Step, Event::Opened, &change, None, 0), wanted);
    }

    #[test]
    fn what_is_missing_is_counted_and_listed() {
        let mut change = Change { window: "45m".to_owned(), expected: Some(22.4), seen: Some(0), ..Change::default() };
        let silent = "POST /orders (shop, prod) is silent: no request in 45m where 22 were expected by the same hours of earlier weeks.";
        assert_eq!(summary(&orders(), Kind::Silence, Event::Opened, &change, None, 0), silent);
        (change.name, change.expected, change.seen) = (Some("nightly schedules".to_owned()), Some(400.0), Some(150));
        (change.missing_keys, change.missing) = ((0..9).map(|n| format!("k{n}")).collect(), Some(250));
        let missing =
            "nightly schedules (POST /orders (shop, prod)) has not done its work: 150 done in 45m, 400 expected; missing: k0, k1, k2, k3, k4 and 245 more.";
        assert_eq!(summary(&orders(), Kind::Completion, Event::Opened, &change, None, 0), missing);
    }

    #[test]
    fn a_service_that_nobody_reports_for_is_named_with_who_did() {
        let mut change = Change {
            since: CHRISTMAS,
            services: vec!["cards (prod)".to_owned()],
            senders: vec!["worker-1".to_owned(), "worker-2".to_owned()],
            senders_gone: Some(2),
            ..Change::default()
        };
        let key = EndpointKey::of_service("cards", "prod", "");
        let text = |event, change: &Change| summary(&key, Kind::Silence, event, change, None, 720_000);
        assert_eq!(
            text(Event::Opened, &change),
            "Nobody reports for cards (prod) any more: its 2 senders (worker-1, worker-2) were last heard of at 2025-12-24 00:00 UTC."
        );
        assert_eq!(headline(&key, Kind::Silence, &change), "nobody reports for cards (prod)");
        assert_eq!(text(Event::Resolved, &change), "cards (prod): heard of again after 12 min.");
        change.services.push("shop (prod)".to_owned());
        change.senders_gone = Some(40);
        assert_eq!(
            text(Event::Opened, &change),
            "Nobody reports for 2 services any more (cards (prod), shop (prod)): their 40 senders (worker-1, worker-2 and 38 more) are gone together, since \
             2025-12-24 00:00 UTC. What they have in common is the first suspect: a collector, the network, this server's address."
        );
        assert_eq!(headline(&key, Kind::Silence, &change), "nobody reports for 2 services");
        change.senders_gone = None;
        assert_eq!(
            text(Event::Opened, &change),
            "Nothing at all has come since 2025-12-24 00:00 UTC, from any of 2 services (cards (prod), shop (prod)). What they have in common is the first suspect: a \
             collector, the network, this server's address."
        );
        assert_eq!(headline(&key, Kind::Silence, &change), "nothing comes from any service");
    }
}
