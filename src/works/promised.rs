//! All flows and expectations of the configuration, fed with what is counted and judged once a minute: what they find is said with the next slot end.
//!
//! A flow without a ratio is judged here as soon as its work carries keys, and else learnt from its past ([`crate::detect::flow`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::expected::{self, Expected};
use super::keys::Missing;
use super::passage::{self, Passage};
use crate::counting::Cell;
use crate::endpoint::{EndpointId, EndpointKey, Selector};
use crate::incident::{Change, Found, Kind, Stage};
use crate::ingest::Detail;
use crate::judge::evidence::three_digits;
use crate::judge::{ExpectedOwed, FlowOwed, Promises};
use crate::objective::PPB;
use crate::time::{Slot, Timestamp, format_duration_us};

/// Slots between two judgements.
const EACH_SLOTS: u32 = 6;
/// A flow without a ratio whose work carries keys promises this, within that.
const KEYED_RATIO_PPB: u64 = PPB / 100 * 99;
const WITHIN_MS: i64 = 15 * 60_000;
/// Judgements between two looks at what goes on.
const GOES_ON_EACH: i64 = 10;
/// Starts whose timings were not counted yet are known for so long, in slots.
const STARTS_KEPT: u32 = 8_640;

/// What an endpoint is to a flow or an expectation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Work goes in; with `true` it comes out here, too, and only starts go in.
    In(bool),
    /// Work comes out.
    Out,
    /// Work is expected.
    Expected,
}

/// Something promised, of one environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept<T> {
    what: T,
    /// The endpoint that its incidents are about.
    subject: EndpointKey,
    /// Whether its endpoint was ever heard of.
    heard: bool,
    /// Since when something is missing.
    open: Option<Slot>,
}

/// A name of the configuration and an environment.
type Name = (String, String);

/// All of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Promised {
    flows: BTreeMap<Name, Kept<Passage>>,
    expected: BTreeMap<Name, Kept<Expected>>,
    /// Starts of units, which are timings and no work done: by endpoint and slot, those not counted yet.
    starts: BTreeMap<(EndpointId, Slot), u64>,
    #[serde(skip)]
    promises: Option<Arc<Promises>>,
    /// By endpoint: the places in the configuration.
    #[serde(skip)]
    ends: Vec<Vec<(usize, End)>>,
}

impl Promised {
    /// What is promised from here on, by endpoints in the order of their numbers. What has the same name goes on.
    pub fn configure<'a>(&mut self, promises: &Arc<Promises>, endpoints: impl Iterator<Item = &'a EndpointKey>, now: Timestamp) {
        self.promises = Some(Arc::clone(promises));
        // What is promised otherwise begins anew; what is open stays so until it is found to be over.
        self.flows.retain(|(name, _), flow| {
            let terms = promises.flows.iter().find(|f| f.name == *name).map(terms_of);
            if let Some(terms) = terms.filter(|t| *t != flow.what.terms()) {
                flow.what = Passage::new(terms);
            }
            terms.is_some()
        });
        self.expected.retain(|(name, _), expected| {
            let terms = promises.expected.iter().find(|e| e.name == *name).and_then(ExpectedOwed::terms);
            let kept = terms.is_some();
            if let Some(terms) = terms.filter(|t| t != expected.what.terms()) {
                expected.what = Expected::new(terms, now);
            }
            kept
        });
        self.ends.clear();
        endpoints.for_each(|key| self.add(key));
    }

    /// Learns of an endpoint; numbers come dense and ascending.
    pub fn add(&mut self, key: &EndpointKey) {
        let Some(promises) = &self.promises else { return };
        let mut ends = Vec::new();
        for (at, flow) in promises.flows.iter().enumerate() {
            let out = flow.to.matches(key);
            if flow.from.matches(key) {
                ends.push((at, End::In(out)));
            }
            if out {
                ends.push((at, End::Out));
            }
        }
        ends.extend(promises.expected.iter().enumerate().filter(|(_, e)| e.endpoint.matches(key)).map(|(at, _)| (at, End::Expected)));
        self.ends.push(ends);
    }

    /// Whether an endpoint is part of anything promised.
    #[must_use]
    pub fn has(&self, key: &EndpointKey) -> bool {
        let Some(promises) = &self.promises else { return false };
        promises.flows.iter().any(|f| f.from.matches(key) || f.to.matches(key)) || promises.expected.iter().any(|e| e.endpoint.matches(key))
    }

    /// What a timing says beside its duration; before its count.
    pub fn detail(&mut self, detail: &Detail, key: &EndpointKey) {
        let ends = self.ends.get(detail.endpoint.0 as usize).cloned().unwrap_or_default();
        if ends.is_empty() {
            return;
        }
        if detail.starts {
            *self.starts.entry((detail.endpoint, Slot::containing(detail.ts))).or_default() += 1;
        }
        let (Some(unit), Some(promises)) = (&detail.key, self.promises.clone()) else { return };
        for (at, end) in ends {
            match end {
                End::In(both) if both && !detail.starts => {}
                End::In(_) => self.flow(&promises.flows[at], key, true).what.start(unit, detail.ts),
                End::Out if detail.starts => {}
                End::Out => self.flow(&promises.flows[at], key, true).what.end(unit, detail.ts),
                End::Expected => {
                    if let Some(expected) = self.expectation(&promises.expected[at], key, detail.ts) {
                        if detail.starts { expected.start(unit, detail.ts) } else { expected.end(unit, detail.ts) }
                    }
                }
            }
        }
    }

    /// Counts what came into a slot of an endpoint, by weight: a sampled unit stands for several.
    pub fn count(&mut self, id: EndpointId, key: &EndpointKey, slot: Slot, cell: &Cell) {
        let ends = self.ends.get(id.0 as usize).cloned().unwrap_or_default();
        let Some(promises) = self.promises.clone().filter(|_| !ends.is_empty()) else { return };
        let all = cell.total().weight;
        let started = self.starts.remove(&(id, slot)).unwrap_or(0);
        if started > all {
            self.starts.insert((id, slot), started - all);
        }
        let (started, done) = (started.min(all), all.saturating_sub(started));
        for (at, end) in ends {
            let ratio = |flow: &FlowOwed| flow.ratio_ppb.is_some();
            match end {
                End::In(both) => {
                    let n = if both { started } else { all };
                    let flow = &promises.flows[at];
                    if ratio(flow) {
                        self.flow(flow, key, false).what.count_in(slot, n);
                    }
                }
                End::Out => {
                    let flow = &promises.flows[at];
                    if ratio(flow) {
                        self.flow(flow, key, true).what.count_out(slot, done);
                    }
                }
                End::Expected => {
                    if let Some(expected) = self.expectation(&promises.expected[at], key, slot.start()) {
                        expected.count(slot, done);
                    }
                }
            }
        }
    }

    fn flow(&mut self, owed: &FlowOwed, key: &EndpointKey, is_out: bool) -> &mut Kept<Passage> {
        let subject = || if is_out && owed.to.matches(key) { key.clone() } else { selected(&owed.to, &key.env) };
        let new = || Kept { what: Passage::new(terms_of(owed)), subject: subject(), heard: true, open: None };
        self.flows.entry((owed.name.clone(), key.env.clone())).or_insert_with(new)
    }

    /// An expectation is watched in each environment that its endpoint is heard of in; the first takes the place of the one that nothing was heard of.
    fn expectation(&mut self, owed: &ExpectedOwed, key: &EndpointKey, now: Timestamp) -> Option<&mut Expected> {
        let name = (owed.name.clone(), key.env.clone());
        if self.expected.get(&name).is_none_or(|kept| !kept.heard) {
            let unheard = self.expected.iter().find(|((n, _), kept)| *n == owed.name && !kept.heard).map(|(name, _)| name.clone());
            let unheard = unheard.and_then(|name| self.expected.remove(&name));
            let (what, open) = unheard.map_or_else(|| Some((Expected::new(owed.terms()?, now), None)), |u| Some((u.what, u.open)))?;
            self.expected.insert(name.clone(), Kept { what, subject: key.clone(), heard: true, open });
        }
        self.expected.get_mut(&name).map(|kept| &mut kept.what)
    }

    /// What nothing was ever heard of is expected all the same.
    fn expect_unheard(&mut self, now: Timestamp) {
        for owed in self.promises.clone().iter().flat_map(|p| &p.expected) {
            if self.expected.keys().any(|(name, _)| *name == owed.name) {
                continue;
            }
            let subject = selected(&owed.endpoint, owed.endpoint.env.as_deref().unwrap_or(""));
            if let Some(terms) = owed.terms() {
                let name = (owed.name.clone(), subject.env.clone());
                self.expected.insert(name, Kept { what: Expected::new(terms, now), subject, heard: false, open: None });
            }
        }
    }

    /// The next slot end after this one with which it is to be judged, if anything is promised.
    #[must_use]
    pub fn next_due(&self, judged_to: Option<Slot>) -> Option<Slot> {
        let is_promised = self.promises.as_ref().is_some_and(|p| !p.flows.is_empty() || !p.expected.is_empty());
        let from = judged_to.filter(|_| is_promised)?.next();
        Some(Slot((from.0 + 1).div_ceil(EACH_SLOTS) * EACH_SLOTS - 1))
    }

    /// Judges at a slot end, if it is time; what is to be said with the next one.
    pub fn judge(&mut self, end: Slot) -> Vec<Found> {
        let mut found = Vec::new();
        if !(end.0 + 1).is_multiple_of(EACH_SLOTS) {
            return found;
        }
        self.expect_unheard(end.end());
        let minutes = i64::from(end.0 / EACH_SLOTS);
        for ((name, _), flow) in &mut self.flows {
            let verdict = flow.what.judge(end);
            let is_missing = verdict.state == passage::State::Missing;
            let Some(stage) = flow.stage(end, is_missing, minutes) else { continue };
            let terms = flow.what.terms();
            let change = of_flow(name, &verdict, terms, if stage == Stage::Over { Missing::default() } else { flow.what.missing_keys(end) });
            found.push(flow.found(end, Kind::Flow, stage, change));
        }
        for ((name, _), expected) in &mut self.expected {
            let verdict = expected.what.judge(end);
            let is_missing = matches!(verdict.state, expected::State::Behind | expected::State::Short);
            let Some(stage) = expected.stage(end, is_missing, minutes) else { continue };
            let keys = if stage == Stage::Over { Missing::default() } else { expected.what.missing_keys() };
            let change = of_expectation(name, &verdict, end, keys);
            found.push(expected.found(end, Kind::Completion, stage, change));
        }
        let old = end.back(STARTS_KEPT);
        self.starts.retain(|(_, slot), _| *slot >= old);
        found
    }
}

impl<T> Kept<T> {
    fn stage(&mut self, end: Slot, is_missing: bool, minutes: i64) -> Option<Stage> {
        match (self.open, is_missing) {
            (None, true) => {
                self.open = Some(end);
                Some(Stage::Begun)
            }
            (Some(_), false) => {
                self.open = None;
                Some(Stage::Over)
            }
            (Some(_), true) if minutes % GOES_ON_EACH == 0 => Some(Stage::GoesOn),
            _ => None,
        }
    }

    /// Whoever wrote it into the configuration is owed it: it is critical.
    fn found(&self, end: Slot, kind: Kind, stage: Stage, change: Change) -> Found {
        Found { due: end.next(), endpoint: self.subject.clone(), critical: true, kind, stage, breach: None, change }
    }
}

fn terms_of(flow: &FlowOwed) -> passage::Terms {
    passage::Terms { within_ms: flow.within_ms.unwrap_or(WITHIN_MS), ratio_ppb: flow.ratio_ppb.unwrap_or(KEYED_RATIO_PPB) }
}

/// What a selector names, where nothing has matched it yet.
#[must_use]
pub fn selected(selector: &Selector, env: &str) -> EndpointKey {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    EndpointKey {
        service: selector.service.clone(),
        env: env.to_owned(),
        kind: text(&selector.kind),
        method: text(&selector.method),
        route: selector.route.clone(),
    }
}

fn window(ms: i64) -> String {
    format_duration_us(u64::try_from(ms).unwrap_or(0) * 1000)
}

fn named(keys: Missing) -> (Vec<String>, Option<u64>) {
    let total = (keys.total > 0).then_some(keys.total);
    (keys.keys.into_iter().map(|(key, _)| key).collect(), total)
}

#[expect(clippy::cast_precision_loss, reason = "counts for people")]
fn of_flow(name: &str, verdict: &passage::Verdict, terms: passage::Terms, keys: Missing) -> Change {
    let expected = verdict.went_in as f64 * terms.ratio_ppb as f64 / PPB as f64;
    let (missing_keys, known) = named(keys);
    Change {
        since: verdict.since.or(verdict.oldest_unmatched_since).unwrap_or_default(),
        window: window(verdict.window_ms),
        requests: verdict.went_in,
        // How many tens luck would have to be multiplied with.
        score: three_digits(-verdict.p_value.max(1e-300).log10()),
        threshold: 3.0,
        ratio: Some(three_digits(verdict.came_out as f64 / expected.max(1.0))),
        expected: Some(three_digits(expected)),
        seen: Some(verdict.came_out),
        name: Some(name.to_owned()),
        missing_keys,
        missing: known.or(Some(verdict.overdue)),
        oldest_since: verdict.oldest_unmatched_since,
        ..Change::default()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts for people")]
fn of_expectation(name: &str, verdict: &expected::Verdict, end: Slot, keys: Missing) -> Change {
    let done = verdict.counted.saturating_add(verdict.late);
    let (missing_keys, known) = named(keys);
    let short = verdict.expected.saturating_sub(done);
    Change {
        since: verdict.opens,
        window: window(end.end().0.min(verdict.deadline.0) - verdict.opens.0),
        requests: done,
        score: three_digits(short as f64),
        threshold: 1.0,
        ratio: Some(three_digits(done as f64 / verdict.expected.max(1) as f64)),
        expected: Some(verdict.expected as f64),
        seen: Some(done),
        due_at: Some(verdict.deadline),
        pace: verdict.forecast,
        name: Some(name.to_owned()),
        missing_keys,
        missing: known.or(Some(short)),
        ..Change::default()
    }
}
