//! All endpoints under watch: each quarter of an hour is run through their detectors, and what they find is put together into what is said.
//!
//! A quarter is run a minute after its end ([`cut_slot`]), so that senders who report once a minute are in it, and said a minute later ([`due_slot`]), so that a
//! live server with very many endpoints has the time for it. Both are slots, not moments, so a replay says the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Finding;
use super::budget::Thresholds;
use super::flow::Flow;
use super::forecast::Forecast;
use super::quarters::{DAY_QUARTERS, Past, QUARTER_MS, QUARTER_SLOTS, quarter_of};
use super::reference::{Part, Residuals};
use super::together::Together;
use super::told;
use super::watch::{Watch, is_slow_run};
use crate::endpoint::{EndpointId, EndpointKey, OVERFLOW_ROUTE};
use crate::histogram::Histogram;
use crate::incident::{Breach, Change, Class, Found, Kind, Marker, Stage};
use crate::judge::Promises;
use crate::objective::{Goal, PPB};
use crate::time::{SLOT_MS, Slot, Timestamp};
use crate::works::promised::selected;

/// Milliseconds after its end until a quarter is run: what comes later is too late for it.
pub const CUT_MS: i64 = CUT_SLOTS * SLOT_MS;
/// Slots after its end until it is run, and until what it found is said.
const CUT_SLOTS: i64 = 6;
const DUE_SLOTS: i64 = 12;

/// Endpoints whose past is read at a time.
const CHUNK: usize = 256;
/// Gaps that are remembered.
const GAPS_MAX: usize = 100;
/// Markers that are remembered.
const MARKERS_MAX: usize = 200;

/// The slot with whose end a quarter is run.
#[must_use]
pub fn cut_slot(quarter: i64) -> Slot {
    slot_after(quarter, CUT_SLOTS)
}

/// The slot with whose end its findings are said.
#[must_use]
pub fn due_slot(quarter: i64) -> Slot {
    slot_after(quarter, DUE_SLOTS)
}

fn slot_after(quarter: i64, slots: i64) -> Slot {
    Slot(u32::try_from((quarter + 1) * QUARTER_SLOTS + slots - 1).unwrap_or(u32::MAX))
}

/// The last quarter that is to be run by the end of a slot.
#[must_use]
pub fn last_cut(end: Slot) -> i64 {
    (i64::from(end.0) + 1 - CUT_SLOTS).div_euclid(QUARTER_SLOTS) - 1
}

/// An endpoint of the fleet.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) key: Arc<EndpointKey>,
    pub(super) critical: bool,
    /// What its latency promises: the limit in milliseconds, the share within it, and its name.
    limits: Vec<(f32, f32, String)>,
    /// The flows that it is an end of, by their place in the configuration: work goes in, or comes out.
    ends: Vec<(usize, Way)>,
    pub(super) watch: Watch,
}

/// The two ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In = 0,
    Out = 1,
}

/// What was found, by endpoint.
pub(super) type News = Vec<(EndpointId, Finding)>;

/// What went through a flow of one environment in a quarter: work in and out, and the endpoint where it comes out.
type Work = BTreeMap<(usize, String), ([u64; 2], Option<Arc<EndpointKey>>)>;

/// A flow of one environment, between all endpoints that match.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stream {
    name: String,
    env: String,
    flow: Flow,
    /// Since when something is missing.
    missing_since: Option<i64>,
}

/// What of a fleet is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The quarter that comes next.
    next: Option<i64>,
    watches: Vec<Watch>,
    streams: Vec<Stream>,
    pub(super) recent: VecDeque<(i64, EndpointId)>,
    pub(super) together: BTreeMap<(String, String), Together>,
    /// Likewise, of their traffic.
    pub(super) quiet: BTreeMap<(String, String), Together>,
    /// Quarters in a row in which nothing at all came, and what was said of that.
    pub(super) nothing_for: u16,
    pub(super) nothing: Option<Together>,
    /// The quarter in which the last time of that ended.
    pub(super) nothing_to: Option<i64>,
    /// What was found missing meanwhile, with the quarter in which others came back: what stays away is found again.
    pub(super) returning: Vec<(i64, EndpointId)>,
    /// When nobody listened, in the order of time.
    gaps: VecDeque<(Timestamp, Timestamp)>,
}

/// All endpoints under watch.
#[derive(Debug)]
pub struct Fleet {
    promises: Arc<Promises>,
    /// For endpoints that are critical, and others.
    pub(super) thresholds: [Thresholds; 2],
    pub(super) members: Vec<Member>,
    pub(super) kept: Kept,
    /// Endpoints by service and environment, ascending.
    pub(super) services: BTreeMap<(String, String), Vec<EndpointId>>,
    /// In the order of time.
    pub(super) markers: VecDeque<Marker>,
    scratch: Residuals,
    /// Endpoints that were learnt and not asked for yet.
    learnt: Vec<EndpointId>,
}

impl Fleet {
    /// An empty one.
    #[must_use]
    pub fn new(promises: Arc<Promises>) -> Self {
        let mut fleet = Self {
            promises,
            thresholds: [Thresholds::never(); 2],
            members: Vec::new(),
            kept: Kept::default(),
            services: BTreeMap::new(),
            markers: VecDeque::new(),
            scratch: Residuals::new(),
            learnt: Vec::new(),
        };
        fleet.set_thresholds();
        fleet
    }

    /// Goes on where one was kept. Its endpoints are added first, in the order of their numbers.
    pub fn restore(&mut self, mut kept: Kept) {
        for (member, watch) in self.members.iter_mut().zip(std::mem::take(&mut kept.watches)) {
            member.watch = watch;
        }
        self.kept = kept;
    }

    /// What was learnt since this was asked last.
    pub fn take_learnt(&mut self) -> Vec<(EndpointId, Vec<u8>)> {
        let learnt = std::mem::take(&mut self.learnt);
        learnt.into_iter().filter_map(|id| Some((id, self.members[id.0 as usize].watch.learnt()?))).collect()
    }

    /// Reminds an endpoint of what was learnt of it; whether that could be read.
    pub fn remind(&mut self, id: EndpointId, learnt: &[u8]) -> bool {
        self.members.get_mut(id.0 as usize).is_some_and(|member| member.watch.remind(learnt))
    }

    /// What is to be kept of it: the bytes of [`Kept`], appended. Of very many endpoints there is no room for a copy of all first.
    ///
    /// # Panics
    /// Never: it is plain data.
    #[must_use]
    pub fn keep(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Kept { next, watches: _, streams, recent, together, quiet, nothing_for, nothing, nothing_to, returning, gaps } = &self.kept;
        let watches: Vec<&Watch> = self.members.iter().map(|m| &m.watch).collect();
        // The fields in their order.
        let kept = (next, watches, streams, recent, together, quiet, nothing_for, nothing, nothing_to, (returning, gaps));
        postcard::to_extend(&kept, bytes).expect("plain data")
    }

    #[expect(clippy::cast_possible_truncation, reason = "a share")]
    fn set_thresholds(&mut self) {
        self.thresholds = [true, false].map(|critical| Thresholds::of(self.promises.false_alarms as f32, critical));
    }

    /// Takes over what is owed from here on.
    pub fn configure(&mut self, promises: Arc<Promises>) {
        self.promises = promises;
        self.set_thresholds();
        for member in &mut self.members {
            member.limits = limits_of(&member.key, &self.promises);
            member.ends = ends_of(&member.key, &self.promises);
            member.critical |= self.promises.is_critical(&member.key);
        }
        let flows = &self.promises.flows;
        self.kept.streams.retain(|s| flows.iter().any(|f| f.name == s.name));
    }

    /// Learns of an endpoint; numbers come dense and ascending.
    pub fn add(&mut self, key: Arc<EndpointKey>, critical: bool) {
        let (limits, ends) = (limits_of(&key, &self.promises), ends_of(&key, &self.promises));
        let id = EndpointId(u32::try_from(self.members.len()).unwrap_or(u32::MAX));
        self.services.entry((key.service.clone(), key.env.clone())).or_default().push(id);
        self.members.push(Member { key, critical, limits, ends, watch: Watch::default() });
    }

    /// The quarter that is to be run next, once there was one.
    #[must_use]
    pub fn next(&self) -> Option<i64> {
        self.kept.next
    }

    /// Begins with a quarter.
    pub fn begin(&mut self, quarter: i64) {
        self.kept.next.get_or_insert(quarter);
    }

    /// The markers there were, in place of those that are known.
    pub fn set_markers(&mut self, mut markers: Vec<Marker>) {
        markers.sort_by_key(|m| m.ts);
        self.markers = markers.split_off(markers.len().saturating_sub(MARKERS_MAX)).into();
    }

    /// Something changed in the world. What is told too late for its quarter names changes, and is not judged.
    pub fn mark(&mut self, marker: Marker) {
        if self.markers.len() == MARKERS_MAX {
            self.markers.pop_front();
        }
        let later = self.markers.iter().take_while(|m| m.ts <= marker.ts).count();
        self.markers.insert(later, marker);
    }

    /// Nobody listened from one instant to another: quarters that lack more than a minute are unknown, which is not silence.
    pub fn gap(&mut self, from: Timestamp, to: Timestamp) {
        if to.0 - from.0 > CUT_MS {
            if self.kept.gaps.len() == GAPS_MAX {
                self.kept.gaps.pop_front();
            }
            self.kept.gaps.push_back((from, to));
        }
    }

    fn is_unknown(&self, quarter: i64) -> bool {
        let (from, to) = (quarter * QUARTER_MS, (quarter + 1) * QUARTER_MS);
        self.kept.gaps.iter().any(|gap| gap.1.0.min(to) - gap.0.0.max(from) > CUT_MS)
    }

    /// From which quarter on an endpoint's past is needed: of all until it is learnt, of the last day after that.
    #[must_use]
    pub fn needed_from(&self, id: EndpointId) -> i64 {
        let day = self.kept.next.unwrap_or(i64::MAX) - DAY_QUARTERS;
        let unlearnt = self.members.get(id.0 as usize).filter(|m| m.watch.learns_at().is_some()).and_then(|m| m.watch.first_hour());
        unlearnt.map_or(day, |hour| day.min(hour * 4))
    }

    /// Runs the next quarter: what is found, in the order of the endpoints' keys. `past` has it and those before it.
    pub fn run(&mut self, past: &mut impl Past) -> Vec<Found> {
        let Some(quarter) = self.kept.next else { return Vec::new() };
        self.kept.next = Some(quarter + 1);
        if self.is_unknown(quarter) {
            self.members.iter_mut().for_each(|m| m.watch.unknown(quarter));
            return Vec::new();
        }
        let marked: Vec<String> = self.markers.iter().filter(|m| quarter_of(Slot::containing(m.ts)) == quarter).map(|m| m.service.clone()).collect();
        let (mut news, mut said) = (<[News; 2]>::default(), Vec::new());
        let mut is_nothing = true;
        let (mut work, ids) = (Work::new(), (0..).map(EndpointId).take(self.members.len()).collect::<Vec<_>>());
        for chunk in ids.chunks(CHUNK) {
            let needed = chunk.iter().map(|id| self.needed(*id, quarter)).min().unwrap_or(quarter);
            past.prepare(chunk[0].0..chunk[chunk.len() - 1].0 + 1, needed, quarter + 1);
            for id in chunk {
                self.run_one(*id, quarter, &marked, past, &mut news, &mut said);
                is_nothing = is_nothing && past.quarter(*id, quarter).is_none_or(Histogram::is_empty);
                let member = &self.members[id.0 as usize];
                for (flow, way) in &member.ends {
                    let (through, end) = work.entry((*flow, member.key.env.clone())).or_default();
                    through[*way as usize] += past.quarter(*id, quarter).map_or(0, Histogram::count);
                    if *way == Way::Out {
                        end.get_or_insert_with(|| Arc::clone(&member.key));
                    }
                }
            }
        }
        let [latency, traffic] = news;
        self.put_together(quarter, latency, &mut said);
        self.kept.nothing_for = if is_nothing { self.kept.nothing_for.saturating_add(1) } else { 0 };
        self.put_traffic_together(quarter, traffic, &mut said);
        self.run_streams(quarter, work, &mut said);
        said.sort_by(|a, b| (&a.endpoint, a.kind).cmp(&(&b.endpoint, b.kind)));
        said
    }

    /// From which quarter on the past of an endpoint is read when this one is run.
    fn needed(&self, id: EndpointId, quarter: i64) -> i64 {
        let watch = &self.members[id.0 as usize].watch;
        let day = quarter + 1 - DAY_QUARTERS;
        match (watch.learns_at(), watch.first_hour()) {
            (Some(hour), Some(first)) if hour * 4 <= quarter => day.min(first * 4),
            _ if is_slow_run(quarter) && watch.reference().is_some() => day,
            _ => quarter,
        }
    }

    /// One endpoint: news of its latency and of its traffic go to `news`, everything else that is to be said to `said`.
    fn run_one(&mut self, id: EndpointId, quarter: i64, marked: &[String], past: &mut impl Past, news: &mut [News; 2], said: &mut Vec<Found>) {
        let member = &mut self.members[id.0 as usize];
        if member.key.route == OVERFLOW_ROUTE {
            // What stands for many is none.
            return;
        }
        let (watch, thresholds) = (&mut member.watch, &self.thresholds[usize::from(!member.critical)]);
        if let Some(first) = watch.first_hour().filter(|_| watch.learns_at().is_some_and(|hour| hour * 4 <= quarter)) {
            let quarters = past.quarters(id, first * 4, quarter);
            watch.learn(first * 4, &quarters);
            if watch.reference().is_some() {
                self.learnt.push(id);
            }
        }
        if marked.iter().any(|service| service.is_empty() || *service == member.key.service) {
            watch.marker(quarter);
        }
        let empty = Histogram::default();
        let mut found = watch.quarter(thresholds, quarter, past.quarter(id, quarter).unwrap_or(&empty));
        let is_slow = is_slow_run(quarter) && watch.reference().is_some();
        if is_slow {
            let of = |quarter: i64| Some(Part { hour: quarter.div_euclid(4), timings: past.quarter(id, quarter)? });
            let day: Vec<Part<'_>> = (quarter + 1 - DAY_QUARTERS..=quarter).filter_map(of).collect();
            let slow = watch.slow(thresholds, quarter.div_euclid(4), &day, &mut self.scratch);
            if found[0].is_none() {
                found[0] = slow;
            }
        }
        let began = watch.has_alarm(Class::Latency);
        for class in watch.over(quarter) {
            let kind = if class == Class::Traffic { Kind::Throughput } else { Kind::Step };
            said.push(of_member(member_of(&member.key, member.critical), quarter, kind, Stage::Over, None, Change::default()));
        }
        let watch = &mut member.watch;
        for finding in found.iter().flatten() {
            watch.begun(quarter, finding);
        }
        if let Some(finding) = found[0] {
            news[0].push((id, finding));
        } else if let Some(began) = watch.alarm_since(Class::Latency).filter(|_| is_slow && began) {
            let breach = member.forecast(quarter);
            let shift = member.watch.shift(Class::Latency).unwrap_or(0.0);
            let change = with_limit(told::level_now(&member.watch, shift, quarter, began), breach.as_ref());
            said.push(of_member(member_of(&member.key, member.critical), quarter, Kind::Creep, Stage::GoesOn, breach.map(|b| b.0), change));
        }
        if let Some(finding) = found[1] {
            news[1].push((id, finding));
        }
    }

    /// Work in against work out, of each environment by itself.
    fn run_streams(&mut self, quarter: i64, work: Work, said: &mut Vec<Found>) {
        let promises = Arc::clone(&self.promises);
        let threshold = self.thresholds[1].flow;
        for ((flow, env), ([work_in, work_out], end)) in work {
            let owed = &promises.flows[flow];
            let at = self.kept.streams.iter().position(|s| s.name == owed.name && s.env == env).unwrap_or_else(|| {
                self.kept.streams.push(Stream { name: owed.name.clone(), env: env.clone(), flow: Flow::default(), missing_since: None });
                self.kept.streams.len() - 1
            });
            let stream = &mut self.kept.streams[at];
            let missing = stream.flow.quarter(quarter, work_in, work_out, threshold);
            // Somebody wrote it into the configuration: it matters.
            let subject = (end.map_or_else(|| selected(&owed.to, &env), |key| (*key).clone()), true);
            if let Some(missing) = missing {
                stream.missing_since.get_or_insert(quarter);
                let change = told::change_of_flow(&owed.name, &missing, threshold, quarter);
                said.push(of_member(subject, quarter, Kind::Flow, Stage::Begun, None, change));
            } else if let Some(since) = stream.missing_since {
                let quarters = usize::try_from(quarter - since).unwrap_or(0).min(16);
                if quarters >= 4 && stream.flow.is_whole(quarters) == Some(true) {
                    stream.missing_since = None;
                    let change = Change { name: Some(owed.name.clone()), ..Change::default() };
                    said.push(of_member(subject, quarter, Kind::Flow, Stage::Over, None, change));
                }
            }
        }
    }
}

impl Member {
    /// When the first of its promises will be broken, and which, if a date can be given.
    #[expect(clippy::cast_possible_truncation, reason = "days ahead")]
    pub(super) fn forecast(&self, quarter: i64) -> Option<(Breach, Forecast, &str)> {
        if !self.watch.memory().is_rising() {
            return None;
        }
        let forecasts = self.limits.iter().filter_map(|(limit_ms, target, name)| Some((self.watch.forecast_of(*limit_ms, *target, quarter)?, name)));
        let (forecast, name) = forecasts.filter(|f| f.0.has_date()).min_by(|a, b| a.0.days.total_cmp(&b.0.days))?;
        let day = |days: f32| told::end_of(quarter).plus_ms((f64::from(days) * 86_400_000.0) as i64);
        Some((Breach { at: day(forecast.days), from: day(forecast.from), to: day(forecast.to) }, forecast, name))
    }
}

pub(super) fn member_of(key: &EndpointKey, critical: bool) -> (EndpointKey, bool) {
    (key.clone(), critical)
}

pub(super) fn of_member((endpoint, critical): (EndpointKey, bool), quarter: i64, kind: Kind, stage: Stage, breach: Option<Breach>, change: Change) -> Found {
    Found { due: due_slot(quarter), endpoint, critical, kind, stage, breach, change }
}

pub(super) fn with_limit(change: Change, breach: Option<&(Breach, Forecast, &str)>) -> Change {
    let Some((_, forecast, name)) = breach else { return change };
    let curve = serde_json::to_value(forecast.curve).ok().and_then(|v| v.as_str().map(str::to_owned));
    Change { limit: Some((*name).to_owned()), curve, ..change }
}

fn ends_of(key: &EndpointKey, promises: &Promises) -> Vec<(usize, Way)> {
    // Those with a ratio are judged where they were promised.
    let learnt = promises.flows.iter().enumerate().filter(|(_, flow)| flow.ratio_ppb.is_none());
    let ends = learnt.flat_map(|(at, flow)| [(at, Way::In, &flow.from), (at, Way::Out, &flow.to)]);
    ends.filter(|(_, _, selector)| selector.matches(key)).map(|(at, way, _)| (at, way)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "limits and shares")]
fn limits_of(key: &EndpointKey, promises: &Promises) -> Vec<(f32, f32, String)> {
    let goals = promises.of(key).flat_map(|owed| &owed.promises);
    let limit = |us: u64, ppb: u64, goal: Goal| (us as f32 / 1000.0, ppb as f32 / PPB as f32, goal.name());
    goals
        .filter_map(|p| match p.goal {
            Goal::Latency { threshold_us } => Some(limit(threshold_us, p.target_ppb, p.goal)),
            Goal::Quantile { threshold_us, quantile_ppb } => Some(limit(threshold_us, quantile_ppb, p.goal)),
            Goal::Availability => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::quarters::Quarters;
    use super::*;

    const FIRST: i64 = 20_458 * 96;

    /// Endpoints of one service at 24 requests an hour, until they stop; what is found.
    fn shop(days: i64, endpoints: u32, stop: i64, back: i64, prepare: impl Fn(&mut Fleet)) -> Vec<Found> {
        shop_at(days, endpoints, prepare, |_, at| if (stop..back).contains(&at) { 0 } else { 6 }, |_| 1.0)
    }

    /// Likewise, at so many requests each quarter, which take so many times as long.
    fn shop_at(days: i64, endpoints: u32, prepare: impl Fn(&mut Fleet), requests: impl Fn(u32, i64) -> u64, growth: impl Fn(f64) -> f64) -> Vec<Found> {
        services_at(days, &vec!["shop"; endpoints as usize], prepare, requests, growth)
    }

    /// Likewise, each endpoint of the service of that name.
    fn services_at(days: i64, of: &[&str], prepare: impl Fn(&mut Fleet), requests: impl Fn(u32, i64) -> u64, growth: impl Fn(f64) -> f64) -> Vec<Found> {
        let (mut fleet, mut quarters, mut found) = (Fleet::new(Arc::default()), Quarters::default(), Vec::new());
        let endpoints = u32::try_from(of.len()).unwrap();
        for (n, service) in of.iter().enumerate() {
            let key = EndpointKey { method: "GET".to_owned(), route: format!("/{n}"), ..EndpointKey::of_service(service, "", "http") };
            fleet.add(Arc::new(key), false);
        }
        prepare(&mut fleet);
        fleet.begin(FIRST);
        for quarter in FIRST..FIRST + days * 96 {
            for n in 0..endpoints {
                let slot = Slot(u32::try_from(quarter * QUARTER_SLOTS).unwrap());
                let day = f64::from(u32::try_from(quarter - FIRST).unwrap()) / 96.0;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a tenth of a second")]
                let us = (f64::from(u32::try_from(100_000 + quarter % 7 * 5_000).unwrap()) * growth(day)) as u64;
                let requests = requests(n, quarter - FIRST);
                if requests > 0 {
                    quarters.count(EndpointId(n), slot, |h| h.record(us, requests));
                }
            }
            found.extend(fleet.run(&mut quarters));
            quarters.end(quarter);
        }
        found
    }

    #[test]
    fn what_nobody_listened_to_is_not_silence() {
        let (stop, back) = (15 * 96 + 40, 15 * 96 + 60);
        let gap = |fleet: &mut Fleet| fleet.gap(Timestamp((FIRST + stop) * QUARTER_MS), Timestamp((FIRST + back) * QUARTER_MS));
        assert_eq!(shop(17, 2, stop, back, gap), []);
        let silent = shop(17, 2, stop, back, |_| ());
        assert!(silent.iter().any(|f| f.kind == Kind::Silence && f.stage == Stage::Begun), "{silent:?}");
    }

    /// What is kept goes on as if it had never been away, whatever it holds.
    #[test]
    fn what_is_kept_is_what_is_restored() {
        let (mut fleet, mut quarters) = (Fleet::new(Arc::default()), Quarters::default());
        for route in ["/a", "/b", "/c"] {
            fleet.add(Arc::new(EndpointKey { route: route.to_owned(), ..EndpointKey::of_service("shop", "", "http") }), false);
        }
        fleet.begin(FIRST);
        fleet.gap(Timestamp((FIRST - 96) * QUARTER_MS), Timestamp((FIRST - 90) * QUARTER_MS));
        // They fall silent together after two weeks and two days, so that much of what is kept is not empty.
        for quarter in FIRST..FIRST + 16 * 96 + 40 {
            let slot = Slot(u32::try_from(quarter * QUARTER_SLOTS).unwrap());
            for n in (0..3).filter(|_| quarter < FIRST + 16 * 96) {
                quarters.count(EndpointId(n), slot, |h| h.record(100_000 + u64::from(n), 9));
            }
            fleet.run(&mut quarters);
        }
        let kept = fleet.keep(vec![7]);
        assert!(kept[0] == 7 && (fleet.kept.nothing.is_some() || !fleet.kept.quiet.is_empty()));
        let mut other = Fleet::new(Arc::default());
        for member in &fleet.members {
            other.add(Arc::clone(&member.key), false);
        }
        other.restore(postcard::from_bytes(&kept[1..]).unwrap());
        assert_eq!(other.keep(vec![7]), kept);
    }

    /// A database that fills up slows all of a service down, day by day: each endpoint has a promise of its own to break.
    #[test]
    fn creeps_are_told_one_by_one() {
        let found = shop_at(26, 4, |_| (), |_, _| 6, |day| 1.0 + 0.04 * (day - 15.0).max(0.0));
        let begun: Vec<_> = found.iter().filter(|f| f.stage == Stage::Begun).collect();
        assert_eq!(begun.len(), 4, "{begun:?}");
        assert!(begun.iter().all(|f| f.kind == Kind::Creep && !f.endpoint.route.is_empty() && f.change.endpoints.is_empty()), "{begun:?}");
    }

    #[test]
    fn a_holiday_raises_nothing_and_what_breaks_on_it_is_told() {
        let holiday = |at: i64| (15 * 96..16 * 96).contains(&at);
        assert_eq!(shop_at(17, 6, |_| (), |_, at| if holiday(at) { 3 } else { 6 }, |_| 1.0), []);
        // The orders stop at noon of that day.
        let broken = |n: u32, at: i64| if n == 0 && holiday(at) && at >= 15 * 96 + 48 { 0 } else { 6 - 3 * u64::from(holiday(at)) };
        let found = shop_at(17, 6, |_| (), broken, |_| 1.0);
        let begun: Vec<_> = found.iter().filter(|f| f.stage == Stage::Begun).collect();
        assert_eq!(begun.iter().map(|f| f.endpoint.route.as_str()).collect::<Vec<_>>(), ["/0"]);
    }

    /// Each service alone has no siblings that could tell; but the day is the same for all of them.
    #[test]
    fn a_holiday_of_all_services_raises_nothing_and_an_outage_at_noon_does() {
        let of = ["shop", "mail", "cards", "gifts"];
        let night = |at: i64| at % 96 < 32;
        let usual = |at: i64| if night(at) { 4 } else { 12 };
        let holiday = |_: u32, at: i64| if (15 * 96..16 * 96).contains(&at) { usual(at) / 4 } else { usual(at) };
        assert_eq!(services_at(17, &of, |_| (), holiday, |_| 1.0), []);
        // What breaks on such a day is told.
        let broken = |n: u32, at: i64| if n == 1 && (15 * 96 + 48..16 * 96).contains(&at) { 0 } else { holiday(n, at) };
        let found = services_at(17, &of, |_| (), broken, |_| 1.0);
        let begun: Vec<_> = found.iter().filter(|f| f.stage == Stage::Begun).map(|f| f.endpoint.service.as_str()).collect();
        assert_eq!(begun, ["mail"]);
        // And so is what breaks everywhere at noon.
        let outage = |_: u32, at: i64| if (15 * 96 + 48..16 * 96).contains(&at) { 3 } else { usual(at) };
        assert!(services_at(17, &of, |_| (), outage, |_| 1.0).iter().any(|f| f.stage == Stage::Begun));
    }

    #[test]
    fn a_service_that_falls_silent_is_one_incident_and_its_return_ends_it() {
        let (stop, back) = (15 * 96 + 40, 15 * 96 + 60);
        let found = shop(17, 12, stop, back, |_| ());
        let begun: Vec<_> = found.iter().filter(|f| f.stage == Stage::Begun).collect();
        assert_eq!(begun.len(), 1, "{:?}", begun.iter().map(|f| &f.endpoint.route).collect::<Vec<_>>());
        assert_eq!((begun[0].kind, begun[0].endpoint.route.as_str(), begun[0].change.endpoints.len()), (Kind::Silence, "", 12));
        let over: Vec<_> = found.iter().filter(|f| f.stage == Stage::Over && f.endpoint.route.is_empty()).collect();
        assert_eq!(over.len(), 1);
        assert!(over[0].due > due_slot(FIRST + back - 1));
    }

    /// A collector dies: all services fall silent at once, each endpoint when its own traffic allows to say so.
    #[test]
    fn when_nothing_comes_from_any_service_it_is_one_incident_and_what_stays_away_after_it_is_told() {
        let of = ["shop", "shop", "shop", "mail", "cards", "cards"];
        let (stop, back) = (15 * 96 + 40, 15 * 96 + 60);
        let rate = |n: u32| [12, 9, 1, 6, 4, 2][n as usize];
        let found = services_at(18, &of, |_| (), |n, at| if (stop..back).contains(&at) { 0 } else { rate(n) }, |_| 1.0);
        let begun: Vec<_> = found.iter().filter(|f| f.stage == Stage::Begun).collect();
        assert_eq!(begun.len(), 1, "{begun:?}");
        assert_eq!((begun[0].kind, begun[0].endpoint.service.as_str(), begun[0].change.services.len()), (Kind::Silence, "", 3));
        assert_eq!(begun[0].change.since, told::end_of(FIRST + stop - 1));
        let over: Vec<_> = found.iter().filter(|f| f.stage == Stage::Over && f.endpoint.service.is_empty()).collect();
        assert_eq!(over.iter().map(|f| f.due).collect::<Vec<_>>(), [due_slot(FIRST + back)]);

        // Cards stay away when the others are back.
        let found = services_at(18, &of, |_| (), |n, at| if (stop..back).contains(&at) || n >= 4 && at >= stop { 0 } else { rate(n) }, |_| 1.0);
        let begun: Vec<_> = found.iter().filter(|f| f.stage == Stage::Begun).map(|f| f.endpoint.service.as_str()).collect();
        assert!(begun[0].is_empty() && begun.len() > 1 && begun[1..].iter().all(|s| *s == "cards"), "{begun:?}");

        // One service alone that falls silent while others have none to lose is its own.
        let night = |n: u32, at: i64| if n >= 3 && at % 96 < 32 || n < 3 && at >= 16 * 96 + 4 { 0 } else { rate(n) };
        let found = services_at(17, &of, |_| (), night, |_| 1.0);
        assert!(found.iter().filter(|f| f.stage == Stage::Begun).all(|f| f.endpoint.service == "shop"), "{found:?}");
        assert!(!found.is_empty());
    }
}
