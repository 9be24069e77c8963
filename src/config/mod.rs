//! The configuration: TOML in, types that cannot be wrong out. An error names file, line, column, the key and what was expected.
//!
//! `default.toml` is the reference: the defaults are read from it, and `print-config` prints it.

pub mod remote_write;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::endpoint::Selector;
use crate::histogram::Digits;
use crate::history::catalogue::Limits;
use crate::incident::Channel;
use crate::judge::{ExpectedOwed, FlowOwed, Owed, Promise, Promises, Receiver};
use crate::notify::ReceiverConfig;
use crate::objective::{BurnWindow, Goal, PPB, Severity, parse_percent_ppb, parse_slots};
use crate::time::{Slot, parse_duration_us};
use crate::works::daily::Daily;

/// The reference: every setting with its default.
pub const DEFAULT_TOML: &str = include_str!("../default.toml");

/// The default burn windows.
pub const BURN_WINDOWS_TOML: &str = include_str!("../../alert-rules/burn-rate-windows.toml");

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The HTTP listener.
    pub listen: SocketAddr,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where people reach it; empty: nowhere.
    pub public_url: String,
    /// Patterns for raw paths.
    pub path_patterns: Vec<String>,
    /// How many endpoints there may be.
    pub endpoint_limits: Limits,
    /// A body after unpacking, in bytes.
    pub body_bytes_max: usize,
    /// Connections at one time.
    pub connections_max: usize,
    /// Batches waiting to be committed.
    pub batches_waiting_max: usize,
    /// How much memory the process may have.
    pub memory: MemoryLimit,
    /// Slow queries at one time.
    pub queries_max: usize,
    /// How long one more waits, in milliseconds.
    pub query_wait_ms: i64,
    /// How fast new endpoints may come, for each service.
    pub new_endpoints_per_second: u64,
    /// Endpoints in `/metrics`.
    pub exported_endpoints_max: usize,
    /// How long minutes are kept, in milliseconds.
    pub keep_minutes_ms: i64,
    /// How long hours are kept, in milliseconds.
    pub keep_hours_ms: i64,
    /// How long the raw log is kept, in milliseconds.
    pub keep_log_ms: i64,
    /// How far apart snapshots are, in milliseconds.
    pub snapshot_every_ms: i64,
    /// Below this much free room batches are refused, in bytes.
    pub free_bytes_min: u64,
    /// What is owed, and who is told.
    pub promises: Promises,
    /// How they are reached.
    pub receivers: Vec<ReceiverConfig>,
    /// Who is sent what `/metrics` has.
    pub remote_writes: Vec<remote_write::RemoteWrite>,
    /// Who may do what.
    pub tokens: Vec<Token>,
}

/// How much memory the process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// Bytes.
    Bytes(u64),
    /// A share of what the control group or the machine allows.
    Percent(u64),
}

/// The least memory that can be configured.
const MEMORY_BYTES_MIN: u64 = 64 << 20;

impl MemoryLimit {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not bytes, at least 64MiB, such as \"1GiB\", nor a share such as \"75%\"");
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let each: u64 = match unit.trim() {
            "%" if (1..=100).contains(&number) => return Ok(Self::Percent(number)),
            "" | "B" => 1,
            "kB" => 1_000,
            "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(each).filter(|bytes| *bytes >= MEMORY_BYTES_MIN).map(Self::Bytes).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected bytes as a number, or a text such as \"1GiB\" or \"75%\"")]
        enum Given {
            Bytes(u64),
            Text(String),
        }
        let text = match Given::deserialize(deserializer)? {
            Given::Bytes(bytes) => bytes.to_string(),
            Given::Text(text) => text,
        };
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To send timings and to read.
    Ingest,
    /// Everything.
    Admin,
}

/// A token; its text is never shown.
#[derive(Clone)]
pub struct Token {
    /// What it allows.
    pub scope: Scope,
    /// The SHA-256 of its text.
    pub hash: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// What is wrong, and where: `FILE:LINE:COLUMN: …`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {message}")]
pub struct Error {
    place: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: Option<Spanned<String>>,
    data_dir: Option<PathBuf>,
    public_url: Option<String>,
    judge_after: Option<Millis>,
    snapshot_every: Option<Millis>,
    false_alarms: Option<Spanned<String>>,
    path_patterns: Option<Vec<String>>,
    limits: Option<RawLimits>,
    retention: Option<RawRetention>,
    disk: Option<RawDisk>,
    #[serde(default)]
    endpoint: Vec<RawEndpoint>,
    #[serde(default)]
    flow: Vec<RawFlow>,
    #[serde(default)]
    expected: Vec<RawExpected>,
    #[serde(default)]
    receiver: Vec<Spanned<ReceiverConfig>>,
    #[serde(default)]
    token: Vec<RawToken>,
    #[serde(default)]
    burn_window: Vec<Spanned<RawWindow>>,
    #[serde(default)]
    remote_write: Vec<remote_write::Raw>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    endpoints_per_service: Option<usize>,
    endpoints: Option<usize>,
    marked_critical_per_service: Option<usize>,
    body_bytes: Option<usize>,
    connections: Option<usize>,
    batches_waiting: Option<usize>,
    exported_endpoints: Option<usize>,
    memory: Option<MemoryLimit>,
    queries: Option<usize>,
    query_wait: Option<Millis>,
    new_endpoints_per_second_per_service: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawRetention {
    minutes: Option<Spanned<Millis>>,
    hours: Option<Spanned<Millis>>,
    log: Option<Spanned<Millis>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    free_bytes_min: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEndpoint {
    service: Spanned<String>,
    route: Spanned<String>,
    env: Option<String>,
    kind: Option<String>,
    method: Option<String>,
    #[serde(default = "yes")]
    critical: bool,
    digits: Option<Spanned<u8>>,
    #[serde(default)]
    objectives: Vec<Spanned<RawObjective>>,
    #[serde(default)]
    thresholds: Vec<RawThreshold>,
    notify: Option<Vec<Spanned<String>>>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawObjective {
    latency: Option<Micros>,
    availability: Option<bool>,
    target: Percent,
    period: Option<Slots>,
    name: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThreshold {
    quantile: Percent,
    over: Micros,
    window: Slots,
    severity: Option<Severity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFlow {
    name: String,
    from: Selector,
    to: Selector,
    within: Option<Millis>,
    ratio: Option<Percent>,
    notify: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpected {
    name: String,
    endpoint: Selector,
    count: u64,
    by: Spanned<String>,
    timezone: Option<String>,
    notify: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    scope: Scope,
    secret: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWindow {
    long: Slots,
    short: Slots,
    factor: Spanned<f64>,
    severity: Severity,
    alpha: Option<Spanned<f64>>,
}

macro_rules! from_text {
    ($name:ident, $inner:ty, $parse:expr) => {
        #[derive(Clone, Copy)]
        struct $name($inner);
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(&text).map($name).map_err(serde::de::Error::custom)
            }
        }
    };
}

from_text!(Micros, u64, |t| {
    let us = parse_duration_us(t).map_err(|e| e.to_string())?;
    if (1..=crate::histogram::grid::VALUE_US_MAX).contains(&us) { Ok(us) } else { Err(format!("`{t}` is not between 1us and 7d")) }
});
from_text!(Millis, i64, |t| {
    let us = parse_duration_us(t).map_err(|e| e.to_string())?;
    i64::try_from(us / 1000).ok().filter(|_| us.is_multiple_of(1000)).ok_or_else(|| format!("`{t}` is not a whole number of milliseconds"))
});
from_text!(Slots, u32, parse_slots);
from_text!(Percent, u64, parse_percent_ppb);

/// Where in a text a byte is: `FILE:LINE:COLUMN`, both from 1.
fn place(file: &str, text: &str, at: usize) -> String {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    format!("{file}:{line}:{column}")
}

struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn error<T>(&self, at: &Spanned<T>, message: impl Into<String>) -> Error {
        Error { place: place(self.file, self.text, at.span().start), message: message.into() }
    }

    fn read(&self) -> Result<Raw, Error> {
        toml::from_str(self.text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            let key = key_at(self.text, at);
            let mut message = e.message().replace('\n', ", ");
            for (word, meaning) in [("usize", "a whole number"), ("u64", "a whole number"), ("u8", "a whole number"), ("f64", "a number")] {
                message = message.replace(&format!("expected {word}"), &format!("expected {meaning}"));
            }
            Error { place: place(self.file, self.text, at), message: if key.is_empty() { message } else { format!("{key}: {message}") } }
        })
    }
}

/// The key on the line of a byte, if the line has one: errors should name it.
fn key_at(text: &str, at: usize) -> String {
    let start = text.get(..at).and_then(|t| t.rfind('\n')).map_or(0, |n| n + 1);
    let before = text.get(start..at).unwrap_or("");
    let in_table = before.rsplit(['{', ',']).next().unwrap_or(before);
    let candidate = if in_table.contains('=') { in_table } else { before };
    candidate.split('=').next().filter(|_| candidate.contains('=')).map_or(String::new(), |k| k.trim().to_owned())
}

impl Config {
    /// The built-in defaults.
    ///
    /// # Panics
    /// Never: a test reads `default.toml`.
    #[must_use]
    pub fn default_config() -> Self {
        Self::parse("default.toml", "").expect("the defaults are tested")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`], also when the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Error { place: file.clone(), message: format!("cannot be read: {e}") })?;
        Self::parse(&file, &text)
    }

    /// Reads a text over the defaults.
    ///
    /// # Errors
    /// [`Error`].
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        let defaults = Source { file: "default.toml", text: DEFAULT_TOML };
        let source = Source { file, text };
        let (default, raw) = (defaults.read()?, source.read()?);
        let limits = |f: fn(&RawLimits) -> Option<usize>| raw.limits.as_ref().and_then(f).or(default.limits.as_ref().and_then(f)).unwrap_or(1);
        let query_wait_ms = raw.limits.as_ref().and_then(|l| l.query_wait).or(default.limits.as_ref().and_then(|l| l.query_wait)).map_or(2_000, |m| m.0);
        let memory = raw.limits.as_ref().and_then(|l| l.memory).or(default.limits.as_ref().and_then(|l| l.memory)).unwrap_or(MemoryLimit::Percent(75));
        let keep = |f: fn(&RawRetention) -> Option<Spanned<Millis>>| raw.retention.as_ref().and_then(f).or(default.retention.as_ref().and_then(f));
        let keep_ms = |kept: Option<Spanned<Millis>>| kept.map_or(0, |k| k.get_ref().0);
        let log = keep(|r| r.log.clone());
        if let Some(log) = log.as_ref().filter(|l| l.get_ref().0 < crate::ingest::batch_keys::KEEP_MS) {
            return Err(source.error(log, "retention.log: expected at least 25h: batches are known by it for a day"));
        }
        let minutes = keep(|r| r.minutes.clone());
        if let Some(minutes) = minutes.as_ref().filter(|m| m.get_ref().0 < 4 * 86_400_000) {
            return Err(source.error(minutes, "retention.minutes: expected at least 4d: burn windows of 3d are rebuilt from them"));
        }
        let listen_text = raw.listen.clone().or(default.listen.clone()).expect("the default has it");
        let listen = listen_text
            .get_ref()
            .parse()
            .map_err(|_| source.error(&listen_text, format!("listen: `{}` is not an address such as 127.0.0.1:9898", listen_text.get_ref())))?;
        let receivers = receivers(&source, &raw)?;
        let windows = windows(&source, &raw)?;
        let judge_after = raw.judge_after.or(default.judge_after).map_or(15_000, |m| m.0);
        let mut promises = Promises::none(judge_after);
        promises.receivers = receivers.iter().map(receiver_of).collect();
        for endpoint in &raw.endpoint {
            promises.endpoints.push(owed(&source, endpoint, &windows, &promises.receivers)?);
        }
        let false_alarms = raw.false_alarms.as_ref().or(default.false_alarms.as_ref());
        if let Some(text) = false_alarms {
            promises.false_alarms = read_false_alarms(text.get_ref()).map_err(|e| source.error(text, format!("false_alarms: {e}")))?;
        }
        promises.flows = raw.flow.iter().map(|f| flow_owed(&source, f, &promises.receivers)).collect::<Result<_, _>>()?;
        promises.expected = raw.expected.iter().map(|e| expected_owed(&source, e, &promises.receivers)).collect::<Result<_, _>>()?;
        Ok(Self {
            listen,
            data_dir: raw.data_dir.clone().or(default.data_dir.clone()).unwrap_or_default(),
            public_url: raw.public_url.clone().or(default.public_url.clone()).unwrap_or_default(),
            path_patterns: raw.path_patterns.clone().unwrap_or_default(),
            endpoint_limits: Limits {
                per_service: limits(|l| l.endpoints_per_service),
                total: limits(|l| l.endpoints),
                marked_critical_per_service: limits(|l| l.marked_critical_per_service),
            },
            body_bytes_max: limits(|l| l.body_bytes),
            connections_max: limits(|l| l.connections),
            batches_waiting_max: limits(|l| l.batches_waiting).max(1),
            memory,
            queries_max: limits(|l| l.queries).max(1),
            query_wait_ms,
            new_endpoints_per_second: limits(|l| l.new_endpoints_per_second_per_service) as u64,
            exported_endpoints_max: limits(|l| l.exported_endpoints),
            keep_minutes_ms: keep_ms(minutes),
            keep_hours_ms: keep_ms(keep(|r| r.hours.clone())),
            keep_log_ms: keep_ms(log),
            snapshot_every_ms: raw.snapshot_every.or(default.snapshot_every).map_or(60_000, |m| m.0),
            free_bytes_min: raw.disk.as_ref().and_then(|d| d.free_bytes_min).or(default.disk.as_ref().and_then(|d| d.free_bytes_min)).unwrap_or(0),
            promises,
            tokens: tokens(&source, &raw)?,
            remote_writes: remote_write::read(&source, &raw.remote_write)?,
            receivers,
        })
    }

    /// Refuses a listener that anybody can reach and nobody must identify to.
    ///
    /// # Errors
    /// With what to do.
    pub fn check_listener(&self) -> Result<(), String> {
        if self.listen.ip().is_loopback() || !self.tokens.is_empty() {
            return Ok(());
        }
        Err(format!("listen: {} is not loopback, so a [[token]] must be configured: anybody could send timings and read them", self.listen))
    }
}

fn flow_owed(source: &Source<'_>, flow: &RawFlow, receivers: &[Receiver]) -> Result<FlowOwed, Error> {
    Ok(FlowOwed {
        name: flow.name.clone(),
        from: flow.from.clone(),
        to: flow.to.clone(),
        within_ms: flow.within.as_ref().map(|w| w.0),
        ratio_ppb: flow.ratio.as_ref().map(|r| r.0),
        notify: flow.notify.as_ref().map(|names| named_receivers(source, names, receivers)).transpose()?,
    })
}

fn expected_owed(source: &Source<'_>, expected: &RawExpected, receivers: &[Receiver]) -> Result<ExpectedOwed, Error> {
    let timezone = expected.timezone.clone().unwrap_or_else(|| "UTC".to_owned());
    Daily::parse(expected.by.get_ref(), &timezone).map_err(|e| source.error(&expected.by, format!("expected `{}`: {e}", expected.name)))?;
    Ok(ExpectedOwed {
        name: expected.name.clone(),
        endpoint: expected.endpoint.clone(),
        count: expected.count,
        by: expected.by.get_ref().clone(),
        timezone,
        notify: expected.notify.as_ref().map(|names| named_receivers(source, names, receivers)).transpose()?,
    })
}

fn named_receivers(source: &Source<'_>, names: &[Spanned<String>], receivers: &[Receiver]) -> Result<Vec<String>, Error> {
    for name in names {
        if !receivers.iter().any(|r| r.name == *name.get_ref()) {
            let known: Vec<&str> = receivers.iter().map(|r| r.name.as_str()).collect();
            return Err(source.error(name, format!("notify: no receiver is named `{}`; there are: {}", name.get_ref(), known.join(", "))));
        }
    }
    Ok(names.iter().map(|n| n.get_ref().clone()).collect())
}

/// The least and the most false alarms that can be asked for: beyond, nothing was measured.
const FALSE_ALARMS: std::ops::RangeInclusive<f64> = 0.001..=1.0;

/// `0.01 per endpoint-month`.
fn read_false_alarms(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix("per endpoint-month").map(str::trim);
    let rate = number.and_then(|n| n.parse().ok()).filter(|rate| FALSE_ALARMS.contains(rate));
    rate.ok_or_else(|| format!("`{text}` is not a rate such as \"0.01 per endpoint-month\", from {} to {}", FALSE_ALARMS.start(), FALSE_ALARMS.end()))
}

fn receivers(source: &Source<'_>, raw: &Raw) -> Result<Vec<ReceiverConfig>, Error> {
    let mut found: Vec<ReceiverConfig> = Vec::new();
    for receiver in &raw.receiver {
        let r = receiver.get_ref();
        if found.iter().any(|f| f.name == r.name) {
            return Err(source.error(receiver, format!("receiver: the name `{}` is there twice", r.name)));
        }
        r.check().map_err(|e| source.error(receiver, format!("receiver `{}`: {e}", r.name)))?;
        found.push(r.clone());
    }
    Ok(found)
}

fn receiver_of(receiver: &ReceiverConfig) -> Receiver {
    match &receiver.email {
        Some(email) => Receiver { name: receiver.name.clone(), channel: Channel::Email, recipients: email.to.clone() },
        None => Receiver { name: receiver.name.clone(), channel: Channel::Webhook, recipients: vec![String::new()] },
    }
}

fn windows(source: &Source<'_>, raw: &Raw) -> Result<Vec<BurnWindow>, Error> {
    let defaults = Source { file: "burn-rate-windows.toml", text: BURN_WINDOWS_TOML };
    let default = defaults.read()?;
    let (source, raw) = if raw.burn_window.is_empty() { (&defaults, &default) } else { (source, raw) };
    let mut found = Vec::new();
    for window in &raw.burn_window {
        let w = window.get_ref();
        if w.short.0 > w.long.0 {
            return Err(source.error(window, "burn_window: `short` is longer than `long`"));
        }
        let factor = *w.factor.get_ref();
        let milli = (factor * 1000.0).round();
        if !(1.0..=1e9).contains(&milli) || (milli - factor * 1000.0).abs() > 1e-6 {
            return Err(source.error(&w.factor, format!("factor: {factor} is not between 0.001 and 1000000 in steps of 0.001")));
        }
        // A factor of 1 uses the budget up in its period: waiting for 0.001 there would wait for weeks.
        let alpha = w.alpha.as_ref().map_or(if milli <= 1000.0 { 0.05 } else { 0.001 }, |a| *a.get_ref());
        if let Some(a) = w.alpha.as_ref().filter(|a| !(*a.get_ref() > 0.0 && *a.get_ref() <= 1.0)) {
            return Err(source.error(a, "alpha: expected a probability over 0 and up to 1"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        found.push(BurnWindow { long_slots: w.long.0, short_slots: w.short.0, factor_milli: milli as u64, severity: w.severity, alpha });
    }
    Ok(found)
}

fn owed(source: &Source<'_>, raw: &RawEndpoint, windows: &[BurnWindow], receivers: &[Receiver]) -> Result<Owed, Error> {
    for (name, part) in [("service", &raw.service), ("route", &raw.route)] {
        crate::endpoint::check_part(name, part.get_ref(), true).map_err(|e| source.error(part, e.to_string()))?;
    }
    let digits = raw.digits.as_ref().map_or(Some(Digits::Two), |d| Digits::from_number(*d.get_ref()));
    let digits =
        digits.ok_or_else(|| raw.digits.as_ref().map_or_else(|| unreachable!("absent digits are two"), |d| source.error(d, "digits: expected 2 or 3")))?;
    let mut promises: Vec<Promise> = Vec::new();
    for spanned in &raw.objectives {
        let o = spanned.get_ref();
        let goal = match (o.latency, o.availability) {
            (Some(latency), None) => Goal::Latency { threshold_us: latency.0 },
            (None, Some(true)) => Goal::Availability,
            _ => return Err(source.error(spanned, "objective: expected either latency = \"…\" or availability = true")),
        };
        if promises.iter().any(|p| p.goal == goal) {
            return Err(source.error(spanned, format!("objective: {} is there twice", goal.name())));
        }
        if let Some(name) = o.name.as_ref().filter(|n| !is_objective_name(n.get_ref())) {
            return Err(source.error(name, format!("name: `{}` is not 1 to 63 letters, digits, `-`, `_` and `.`", name.get_ref())));
        }
        let (name, period_slots) = (o.name.as_ref().map(|n| n.get_ref().clone()), o.period.map_or(30 * 8640, |p| p.0));
        promises.push(Promise { goal, name, target_ppb: o.target.0, period_slots, windows: windows.to_vec(), since: Slot(0) });
    }
    for t in &raw.thresholds {
        let window =
            BurnWindow { long_slots: t.window.0, short_slots: t.window.0, factor_milli: 1000, severity: t.severity.unwrap_or(Severity::Warning), alpha: 0.001 };
        let goal = Goal::Quantile { threshold_us: t.over.0, quantile_ppb: t.quantile.0 };
        promises.push(Promise { goal, name: None, target_ppb: t.quantile.0, period_slots: t.window.0, windows: vec![window], since: Slot(0) });
    }
    debug_assert!(promises.iter().all(|p| p.target_ppb < PPB));
    let notify = match &raw.notify {
        None => receivers.first().map(|r| r.name.clone()).into_iter().collect(),
        Some(names) => named_receivers(source, names, receivers)?,
    };
    let selector = Selector {
        service: raw.service.get_ref().clone(),
        route: raw.route.get_ref().clone(),
        env: raw.env.clone(),
        kind: raw.kind.clone(),
        method: raw.method.clone(),
    };
    Ok(Owed { selector, critical: raw.critical, digits, promises, notify })
}

/// Whether an objective may have this name: what labels and identities of Sloth can hold.
#[must_use]
pub fn is_objective_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn tokens(source: &Source<'_>, raw: &Raw) -> Result<Vec<Token>, Error> {
    use sha2::Digest as _;
    raw.token
        .iter()
        .map(|t| {
            let secret = crate::notify::resolve(t.secret.get_ref()).map_err(|e| source.error(&t.secret, format!("secret: {e}")))?;
            Ok(Token { scope: t.scope, hash: sha2::Sha256::digest(secret).into() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = r#"
[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [
  { latency = "800ms", target = "99%", period = "30d" },
  { availability = true, target = "99.9%", period = "30d" },
]
notify = ["oncall"]

[[flow]]
name = "print jobs"
from = { service = "cards", route = "print.enqueue", kind = "job" }
to = { service = "cards", route = "print.run", kind = "job" }
within = "60s"
ratio = "99%"

[[expected]]
name = "nightly schedules"
endpoint = { service = "janitor", route = "schedule.create", kind = "job" }
count = 400
by = "05:00"
timezone = "America/Chicago"

[[receiver]]
name = "oncall"
email = { to = ["oncall@example.com"], from = "slowburn@example.com", smtp = "smtp://127.0.0.1:25" }

[[burn_window]]
long = "1h"
short = "5m"
factor = 14.4
severity = "critical"
"#;

    #[test]
    fn the_example_of_the_contract_is_read() {
        let config = Config::parse("c.toml", SHOP).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:9898");
        let owed = &config.promises.endpoints[0];
        assert!(owed.critical);
        assert_eq!(owed.promises.iter().map(|p| p.goal.name()).collect::<Vec<_>>(), ["latency<=800ms", "availability"]);
        assert_eq!(owed.promises[0].windows[0].factor_milli, 14_400);
        assert_eq!((config.promises.expected[0].count, config.promises.expected[0].timezone.as_str()), (400, "America/Chicago"));
        assert_eq!(config.promises.flows[0].within_ms, Some(60_000));
        assert!((config.promises.false_alarms - 0.01).abs() < 1e-12);
    }

    #[test]
    fn without_a_file_the_defaults_hold() {
        let config = Config::default_config();
        assert_eq!((config.promises.judge_after_ms, config.body_bytes_max, config.keep_minutes_ms), (15_000, 16 << 20, 8 * 86_400_000));
        let often = Config::parse("c.toml", "snapshot_every = \"5s\"").unwrap();
        assert_eq!((config.snapshot_every_ms, often.snapshot_every_ms), (60_000, 5_000));
        let windows = windows(&Source { file: "", text: "" }, &Source { file: "", text: "" }.read().unwrap()).unwrap();
        assert_eq!(
            windows.iter().map(|w| (w.long_name(), w.short_name(), w.factor_milli, w.alpha)).collect::<Vec<_>>(),
            [
                ("1h".into(), "5m".into(), 14_400, 0.001),
                ("6h".into(), "30m".into(), 6_000, 0.001),
                ("1d".into(), "2h".into(), 3_000, 0.001),
                ("3d".into(), "6h".into(), 1_000, 0.05)
            ]
        );
    }

    #[test]
    fn an_error_names_the_place_the_key_and_what_was_expected() {
        for (text, place, parts) in [
            ("listn = 1\n", "c.toml:1:1", vec!["listn", "unknown field"]),
            ("\njudge_after = 15\n", "c.toml:2:15", vec!["judge_after", "string"]),
            ("judge_after = \"soon\"\n", "c.toml:1:15", vec!["judge_after", "800ms"]),
            ("listen = \"here\"\n", "c.toml:1:10", vec!["listen", "127.0.0.1:9898"]),
            (&SHOP.replace("99%\", period", "199%\", period"), "c.toml:7:33", vec!["target", "between 0% and 100%"]),
            (&SHOP.replace("\"99.9%\",", "\"99.9%\", name = \"a b\","), "c.toml:8:51", vec!["name", "letters"]),
            (&SHOP.replace("[\"oncall\"]", "[\"nobody\"]"), "c.toml:10:11", vec!["notify", "no receiver is named `nobody`", "oncall"]),
            (&SHOP.replace("short = \"5m\"", "short = \"5ms\""), "c.toml:32:9", vec!["short", "multiple of 10s"]),
            ("[[token]]\nscope = \"ingest\"\nsecret = \"env:SLOWBURN_NOT_SET\"\n", "c.toml:3:10", vec!["secret", "SLOWBURN_NOT_SET"]),
            ("[retention]\nlog = \"1h\"\n", "c.toml:2:7", vec!["retention.log", "25h"]),
            ("x = [\n", "c.toml:", vec![]),
        ] {
            let error = Config::parse("c.toml", text).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
            for part in parts {
                assert!(error.contains(part), "{error}: {part}");
            }
        }
    }

    #[test]
    fn memory_is_bytes_or_a_share() {
        let read = |value: &str| Config::parse("c.toml", &format!("[limits]\nmemory = {value}\n")).map(|c| c.memory).map_err(|e| e.to_string());
        assert_eq!(read("67108864"), Ok(MemoryLimit::Bytes(64 << 20)));
        assert_eq!(read("\"1GiB\""), Ok(MemoryLimit::Bytes(1 << 30)));
        assert_eq!(read("\"500 MB\""), Ok(MemoryLimit::Bytes(500_000_000)));
        assert_eq!(read("\"50%\""), Ok(MemoryLimit::Percent(50)));
        assert_eq!(Config::default_config().memory, MemoryLimit::Percent(75));
        for wrong in ["\"0%\"", "\"101%\"", "\"1GiB!\"", "\"\"", "\"63MiB\"", "1", "true", "\"99999999999GiB\""] {
            let error = read(wrong).unwrap_err();
            assert!(error.starts_with("c.toml:2:10: memory: ") && error.contains("1GiB"), "{error}");
        }
    }

    #[test]
    fn a_listener_for_everybody_needs_a_token() {
        let open = Config::parse("c.toml", "listen = \"0.0.0.0:9898\"").unwrap();
        assert!(open.check_listener().is_err());
        let closed = Config::parse("c.toml", "listen = \"0.0.0.0:9898\"\n[[token]]\nscope = \"admin\"\nsecret = \"x\"").unwrap();
        assert!(closed.check_listener().is_ok());
    }
}
