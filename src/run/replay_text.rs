//! What a person reads at the end of a replay: its incidents, as lines or as a table, and how two configurations differ. Nothing is wider than `WIDTH` columns.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::columns::{GAP, WIDTH, aligned, cut, put, put_all, wrapped};
use super::compare::{Comparison, Pair, compare, median, sort_of};
use super::replayed::{Episode, Notified, Replayed};
use crate::incident::Class;
use crate::time::{Timestamp, humanize_ms};

/// Columns of what is said of a difference, at most: the endpoint needs room too.
const WHAT_WIDTH: usize = 36;

/// How much was replayed, and what could not be read.
fn head(run: &Replayed, bad: u64) -> String {
    let range = run.first.map_or_else(|| "nothing".to_owned(), |first| format!("{first} to {} ({})", run.last, humanize_ms(run.last.0 - first.0)));
    let mut text = format!("replayed {} timings of {} endpoints, {range}\n", run.timings, run.endpoints);
    if bad > 0 {
        put(&mut text, &format!("{bad} lines could not be read and were skipped"));
    }
    text
}

fn incidents(count: usize) -> String {
    if count == 1 { "1 incident".to_owned() } else { format!("{count} incidents") }
}

/// The end of a replay, for a file: one line an incident.
#[must_use]
pub fn closing(run: &Replayed, bad: u64) -> String {
    let mut text = head(run, bad);
    put(&mut text, &heading(run));
    for episode in &run.episodes {
        let end = episode.ended.map_or_else(|| "still open".to_owned(), |over| format!("over after {}", humanize_ms(over.0 - episode.opened.0)));
        let worse = episode.escalated.map_or_else(String::new, |at| format!(", worse from {at}"));
        put(&mut text, &format!("  {}  {}  [{end}{worse}]", episode.opened, episode.summary));
    }
    text
}

fn heading(run: &Replayed) -> String {
    match run.episodes.len() {
        0 => "no incident".to_owned(),
        n => format!("{}:", incidents(n)),
    }
}

/// The end of a replay, for a terminal: a table with what was said below each line.
#[must_use]
pub fn closing_table(run: &Replayed, bad: u64) -> String {
    let mut text = head(run, bad);
    put(&mut text, &heading(run));
    if run.episodes.is_empty() {
        return text;
    }
    let lasted = |e: &Episode| e.ended.map_or_else(|| "open".to_owned(), |over| humanize_ms(over.0 - e.opened.0));
    let mut rows = vec![["Opened (UTC)", "Lasted", "Kind", "Severity", "Endpoint"].map(str::to_owned)];
    rows.extend(run.episodes.iter().map(|e| [minute(e.opened), lasted(e), kind_of(e), e.worst().name().to_owned(), e.endpoint.title()]));
    let mut lines = aligned(&rows, 4).into_iter();
    put_all(&mut text, lines.next());
    for (line, episode) in lines.zip(&run.episodes) {
        put(&mut text, &line);
        put_all(&mut text, wrapped(&episode.summary, WIDTH - 4).iter().map(|line| format!("    {line}")));
    }
    text
}

/// Two runs over one recording, to be compared.
#[derive(Clone, Copy, Debug)]
pub struct Compared<'a> {
    /// Where their configurations come from.
    pub names: [&'a str; 2],
    /// The first.
    pub now: &'a Replayed,
    /// The second.
    pub next: &'a Replayed,
}

impl Compared<'_> {
    /// What was replayed, for standard error.
    #[must_use]
    pub fn closing(&self, bad: u64) -> String {
        head(self.next, bad)
    }

    /// How they differ, for a person.
    #[must_use]
    pub fn report(&self, colour: bool) -> String {
        let found = compare(&self.now.episodes, &self.next.episodes);
        let mut text = String::new();
        put(&mut text, &first_line(&found));
        put(&mut text, &format!("NOW is {}, NEXT is {}", self.names[0], self.names[1]));
        put(&mut text, "");
        table(&mut text, &found, colour);
        put(&mut text, "");
        self.notifications(&mut text);
        put(&mut text, "");
        put_all(&mut text, wrapped(&self.in_words(&found), WIDTH));
        text
    }

    /// How they differ, for a program: one object a line.
    #[must_use]
    pub fn json(&self) -> String {
        let found = compare(&self.now.episodes, &self.next.episodes);
        Row::all(&found).iter().fold(String::new(), |mut text, row| {
            put(&mut text, &row.json().to_string());
            text
        })
    }

    fn receivers(&self) -> BTreeMap<&str, [Notified; 2]> {
        let names: BTreeSet<&String> = self.now.notified.keys().chain(self.next.notified.keys()).collect();
        let of = |run: &Replayed, name: &str| run.notified.get(name).copied().unwrap_or_default();
        names.into_iter().map(|name| (name.as_str(), [of(self.now, name), of(self.next, name)])).collect()
    }

    fn notifications(&self, text: &mut String) {
        let receivers = self.receivers();
        if receivers.is_empty() {
            return put(text, "Nobody is told: neither configuration has a [[receiver]].");
        }
        let both = |[now, next]: [Notified; 2], of: fn(Notified) -> u64| format!("{} → {}", of(now), of(next));
        let row = |(name, told): (&str, [Notified; 2])| {
            [
                name.to_owned(),
                both(told, |n| n.opened),
                both(told, |n| n.escalated),
                both(told, |n| n.other),
                both(told, |n| n.resolved),
                both(told, Notified::all),
            ]
        };
        let mut rows = vec![["Notifications", "Opened", "Worse", "News", "Over", "All"].map(str::to_owned)];
        rows.extend(receivers.into_iter().map(row));
        put_all(text, aligned(&rows, 0));
    }

    /// What changed, in words.
    fn in_words(&self, found: &Comparison<'_>) -> String {
        let both = found.changed.len() + found.alike.len();
        let mut said = Vec::new();
        match (found.only_next.len(), found.only_now.len()) {
            (0, 0) if found.changed.is_empty() && both == 0 => said.push("Neither configuration says anything.".to_owned()),
            (0, 0) if found.changed.is_empty() => said.push(format!("Both say the same: {}, alike to the minute.", incidents(both))),
            (0, 0) => said.push(format!("Both have the same {}.", incidents(both))),
            (more, 0) => said.push(format!("NEXT opens {} that NOW does not ({}).", incidents(more), kinds(&found.only_next))),
            (0, fewer) => said.push(format!("NEXT leaves out {} of NOW ({}).", incidents(fewer), kinds(&found.only_now))),
            (more, fewer) => said.push(format!(
                "NEXT opens {} that NOW does not ({}), and leaves out {fewer} ({}).",
                incidents(more),
                kinds(&found.only_next),
                kinds(&found.only_now)
            )),
        }
        let changes = changes_in_words(&found.changed);
        if !changes.is_empty() {
            said.push(format!("Of the {both} in both, {changes}."));
        }
        let told: Vec<String> = self
            .receivers()
            .into_iter()
            .map(|(name, [now, next])| (name, now.all(), next.all()))
            .filter(|(_, now, next)| now != next)
            .map(|(name, now, next)| format!("{name} gets {next} notifications in place of {now}"))
            .collect();
        if !told.is_empty() {
            said.push(format!("{}.", told.join(", ")));
        }
        said.join(" ")
    }
}

/// `+3 -1 incidents, 12 in both; told 9 h earlier (median of those told at another time)`.
fn first_line(found: &Comparison<'_>) -> String {
    let both = found.changed.len() + found.alike.len();
    let told = found.told_later_ms().map_or_else(String::new, |ms| format!("; told {} (median of those told at another time)", later(ms)));
    format!("+{} -{} incidents, {both} in both{told}", found.only_next.len(), found.only_now.len())
}

/// `2 creep, 1 burn`: the most frequent first.
fn kinds(episodes: &[&Episode]) -> String {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for episode in episodes {
        *count.entry(episode.kind.name()).or_default() += 1;
    }
    let mut count: Vec<_> = count.into_iter().collect();
    count.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    count.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}

fn changes_in_words(changed: &[Pair<'_>]) -> String {
    let mut said = Vec::new();
    let mut moved = |shifts: Vec<i64>, verb: &str| {
        let (earlier, later_ones): (Vec<i64>, Vec<i64>) = shifts.into_iter().partition(|ms| *ms < 0);
        for shifts in [earlier, later_ones] {
            let count = shifts.len();
            if let Some(ms) = median(shifts) {
                let about = if count == 1 { "" } else { "about " };
                said.push(format!("{} {verb} {about}{}", are(count), later(ms)));
            }
        }
    };
    moved(changed.iter().filter_map(Pair::opened_later_ms).collect(), "told");
    moved(changed.iter().filter_map(own_critical_later_ms).collect(), "critical");
    moved(changed.iter().filter_map(Pair::ended_later_ms).collect(), "over");
    let mut counted = |what: &str, holds: fn(&Pair<'_>) -> bool| {
        let count = changed.iter().filter(|p| holds(p)).count();
        if count > 0 {
            said.push(format!("{} {what}", are(count)));
        }
    };
    counted("critical in place of a warning", |p| p.next.worst() > p.now.worst());
    counted("a warning in place of critical", |p| p.next.worst() < p.now.worst());
    counted("still open at the end in place of over", |p| p.now.ended.is_some() && p.next.ended.is_none());
    counted("over in place of still open", |p| p.now.ended.is_none() && p.next.ended.is_some());
    counted("of another kind", |p| p.now.kind != p.next.kind);
    said.join(", ")
}

/// How much later it is critical, where that does not go without saying: it is as much later as all of it.
fn own_critical_later_ms(pair: &Pair<'_>) -> Option<i64> {
    pair.critical_later_ms().filter(|ms| Some(*ms) != pair.opened_later_ms())
}

/// A difference as a line.
enum Row<'a> {
    OnlyNext(&'a Episode),
    OnlyNow(&'a Episode),
    Changed(Pair<'a>),
}

impl<'a> Row<'a> {
    /// All of them, by time.
    fn all(found: &Comparison<'a>) -> Vec<Self> {
        let (next, now) = (found.only_next.iter().copied().map(Self::OnlyNext), found.only_now.iter().copied().map(Self::OnlyNow));
        let mut rows: Vec<Self> = next.chain(now).chain(found.changed.iter().copied().map(Self::Changed)).collect();
        rows.sort_by_key(|row| row.episode().opened);
        rows
    }

    /// As the run has it that it is shown of: NEXT, where it has it.
    fn episode(&self) -> &'a Episode {
        match self {
            Self::OnlyNext(episode) | Self::OnlyNow(episode) => episode,
            Self::Changed(pair) => pair.next,
        }
    }

    fn mark(&self) -> char {
        match self {
            Self::OnlyNext(_) => '+',
            Self::OnlyNow(_) => '-',
            Self::Changed(_) => '~',
        }
    }

    fn what(&self) -> String {
        match self {
            Self::OnlyNext(episode) | Self::OnlyNow(episode) => {
                episode.ended.map_or_else(|| "still open".to_owned(), |over| format!("over after {}", rough(over.0 - episode.opened.0)))
            }
            Self::Changed(pair) => {
                let (now, next) = (pair.now, pair.next);
                let mut said: Vec<String> = pair.opened_later_ms().map(later).into_iter().collect();
                said.extend(own_critical_later_ms(pair).map(|ms| format!("critical {}", later(ms))));
                let mut may_say = |holds: bool, text: &str| said.extend(holds.then(|| text.to_owned()));
                may_say(next.worst() > now.worst(), "was a warning");
                may_say(next.worst() < now.worst(), "was critical");
                may_say(next.kind != now.kind, &format!("was {}", now.kind.name()));
                may_say(now.ended.is_some() && next.ended.is_none(), "stays open");
                may_say(now.ended.is_none() && next.ended.is_some(), "ends");
                said.extend(pair.ended_later_ms().map(|ms| format!("ends {}", later(ms))));
                said.join(", ")
            }
        }
    }

    fn json(&self) -> Value {
        let (name, now, next) = match self {
            Self::OnlyNext(episode) => ("added", None, Some(*episode)),
            Self::OnlyNow(episode) => ("removed", Some(*episode), None),
            Self::Changed(pair) => ("changed", Some(pair.now), Some(pair.next)),
        };
        let mut value = json!({ "difference": name, "now": now.map(object), "next": next.map(object) });
        if let Self::Changed(pair) = self {
            let later = |now: Option<Timestamp>, next: Option<Timestamp>| now.zip(next).map(|(now, next)| next.0 - now.0);
            let (now, next) = (pair.now, pair.next);
            value["opened_later_ms"] = json!(later(Some(now.opened), Some(next.opened)));
            value["critical_later_ms"] = json!(later(now.critical, next.critical));
            value["resolved_later_ms"] = json!(later(now.ended, next.ended));
        }
        value
    }
}

fn object(e: &Episode) -> Value {
    json!({
        "id": e.id, "kind": e.kind, "severity": e.worst(),
        "service": e.endpoint.service, "env": e.endpoint.env, "endpoint_kind": e.endpoint.kind, "method": e.endpoint.method, "route": e.endpoint.route,
        "about": e.about, "opened_at": e.opened, "critical_at": e.critical, "resolved_at": e.ended, "summary": e.summary,
    })
}

/// One line a difference, then how many there is nothing to say of.
fn table(text: &mut String, found: &Comparison<'_>, colour: bool) {
    let all = Row::all(found);
    if !all.is_empty() {
        let cells = |row: &Row<'_>| {
            let e = row.episode();
            [row.mark().to_string(), minute(e.opened), kind_of(e), e.worst().name().to_owned(), e.endpoint.title(), cut(&row.what(), WHAT_WIDTH)]
        };
        let mut rows = vec![["", "Opened (UTC)", "Kind", "Severity", "Endpoint", "Difference"].map(str::to_owned)];
        rows.extend(all.iter().map(cells));
        for line in aligned(&rows, 4) {
            let escape = match line.chars().next().filter(|_| colour) {
                Some('+') => "32",
                Some('-') => "31",
                Some('~') => "33",
                _ => {
                    put(text, &line);
                    continue;
                }
            };
            put(text, &format!("\x1b[{escape}m{}\x1b[0m", line.trim_end()));
        }
    }
    put(text, &format!("={GAP}{} alike", incidents(found.alike.len())));
}

/// `burn latency`, where it is about an objective.
fn kind_of(episode: &Episode) -> String {
    match episode.kind.class() {
        Class::Promise => format!("{} {}", episode.kind.name(), sort_of(episode)),
        Class::Latency | Class::Traffic | Class::Flow => episode.kind.name().to_owned(),
    }
}

/// `2026-01-05 00:00`.
fn minute(at: Timestamp) -> String {
    at.to_string().chars().take(16).collect()
}

/// `9 h earlier`.
fn later(ms: i64) -> String {
    format!("{} {}", rough(ms.saturating_abs()), if ms < 0 { "earlier" } else { "later" })
}

/// `3 are`.
fn are(count: usize) -> String {
    if count == 1 { "1 is".to_owned() } else { format!("{count} are") }
}

/// A length of time in the largest unit that tells it within a tenth.
fn rough(ms: i64) -> String {
    const UNITS: [(i64, &str); 3] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min")];
    let rounded = |unit: i64| ms.saturating_add(unit / 2) / unit;
    let near = |unit: i64| rounded(unit) > 0 && (rounded(unit).saturating_mul(unit) - ms).abs() <= ms / 10;
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| near(*unit)).unwrap_or((1_000, "s"));
    format!("{} {name}", rounded(unit))
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::episode;
    use super::super::replayed::Told;
    use super::*;
    use crate::incident::Kind;

    const HOUR: i64 = 3_600_000;

    fn run(episodes: Vec<Episode>) -> Replayed {
        let none = Replayed::new(Told::default(), ["oncall"].into_iter());
        Replayed { episodes, first: Some(Timestamp(0)), last: Timestamp(30 * 24 * HOUR), timings: 5, endpoints: 1, ..none }
    }

    fn report(now: &Replayed, next: &Replayed, colour: bool) -> String {
        Compared { names: ["now.toml", "next.toml"], now, next }.report(colour)
    }

    fn story() -> (Replayed, Replayed) {
        let mut long = episode(Kind::Burn, "latency<=1s", 50 * HOUR, Some(51 * HOUR), true);
        long.endpoint.route = format!("/{}", "averylongpart/".repeat(20));
        let silence = |opened, critical| episode(Kind::Silence, "", opened, Some(30 * HOUR), critical);
        let creep = |opened, ended| episode(Kind::Creep, "", opened, ended, false);
        let now = run(vec![silence(20 * HOUR, false), creep(0, None), long.clone()]);
        (now, run(vec![silence(11 * HOUR, true), creep(0, None), creep(200 * HOUR, Some(203 * HOUR)), Episode { about: "availability".to_owned(), ..long }]))
    }

    #[test]
    fn differences_are_a_table_of_100_columns() {
        let (now, next) = story();
        let text = report(&now, &next, false);
        println!("{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert_eq!(lines[0], "+2 -1 incidents, 2 in both; told 9 h earlier (median of those told at another time)");
        assert!(lines[4].starts_with("~  2026-01-05 11:00  silence            critical  POST") && lines[4].ends_with("9 h earlier, was a warning"), "{text}");
        let marks: String = lines[4..8].iter().filter_map(|l| l.chars().next()).collect();
        assert_eq!(marks, "~+-+");
        assert!(lines[5].contains("…") && lines[5].contains("hop, prod)") && lines[5].ends_with("over after 1 h"), "{text}");
        assert_eq!(lines[8], "=  1 incident alike");
        assert!(text.contains("oncall         0 → 0"), "{text}");
        assert!(text.contains("NEXT opens 2 incidents that NOW does not (1 burn, 1 creep), and leaves out 1 (1 burn)."), "{text}");
        assert!(text.contains("1 is told 9 h earlier, 1 is critical in place of a warning."), "{text}");
        assert!(!text.contains('\x1b') && report(&now, &next, true).contains("\x1b[31m-"));
        assert!(report(&now, &now, false).contains("Both say the same: 3 incidents"));
    }

    #[test]
    fn a_difference_is_an_object_that_names_both() {
        let (now, next) = story();
        let text = Compared { names: ["", ""], now: &now, next: &next }.json();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let of = |key: &str| lines.iter().map(|l| l[key].clone()).collect::<Vec<_>>();
        assert_eq!(of("difference"), ["changed", "added", "removed", "added"]);
        assert_eq!(of("opened_later_ms"), [json!(-9 * HOUR), Value::Null, Value::Null, Value::Null]);
        assert_eq!((&lines[0]["now"]["severity"], &lines[0]["next"]["severity"]), (&json!("warning"), &json!("critical")));
        assert_eq!((&lines[1]["now"], &lines[2]["next"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn a_table_for_a_terminal_has_the_summary_below_each_line() {
        let (mut now, _) = story();
        now.episodes[1].summary = "It is slower, word by word by word. ".repeat(6);
        let text = closing_table(&now, 0);
        assert!(text.lines().skip(1).all(|l| l.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("2026-01-05 20:00  10 h    silence       warning   POST /"), "{text}");
        assert!(text.contains("open    creep") && text.contains("\n    It is slower, word"), "{text}");
        assert!(closing(&now, 0).contains("3 incidents:\n  2026-01-05 20:00:00 UTC    [over after 10 h]\n"), "{}", closing(&now, 0));
    }

    #[test]
    fn lengths_of_time_are_told_within_a_tenth() {
        for (ms, text) in [
            (60_000, "1 min"),
            (100_000, "100 s"),
            (90 * 60_000, "90 min"),
            (HOUR, "1 h"),
            (23 * HOUR, "1 d"),
            (36 * HOUR, "36 h"),
            (49 * HOUR, "2 d"),
            (0, "0 s"),
        ] {
            assert_eq!(rough(ms), text);
        }
    }
}
