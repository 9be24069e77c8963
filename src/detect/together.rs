//! What endpoints of a service have in common: those that slow down, or fall silent, together are one incident, which names the marker before it. An upgrade that
//! kills a cache is one page, not forty.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Finding;
use super::fleet::{Fleet, Member, News, member_of, of_member, with_limit};
use super::quarters::DAY_QUARTERS;
use super::siblings::{self, Share};
use super::slow::Shape;
use super::told;
use super::watch::is_slow_run;
use crate::endpoint::{EndpointId, EndpointKey};
use crate::incident::{Change, Class, Found, Kind, Marker, Stage};
use crate::time::{Timestamp, humanize_ms};

/// So many endpoints of a service, and this share of those that have requests enough to tell, make one incident of the service.
const TOGETHER_MIN: usize = 3;
const TOGETHER_SHARE: f32 = 0.5;
/// They are found within this time, in quarters of an hour.
const TOGETHER_WITHIN: i64 = 96;
/// An endpoint that was not found by itself is counted in from this share of the others' change.
const TOGETHER_CHANGE: f32 = 0.5;
/// The share of them that is back when it is over.
const TOGETHER_BACK: f32 = 0.7;
/// What a holiday leaves of the traffic of the rest; so much less is left of a deep one only.
const HOLIDAY: (f32, f32) = (0.1, 0.8);
const DEEP_HOLIDAY: f32 = 0.35;
/// Traffic that was as ever before it broke off. A window so short at most, in quarters of an hour, can show that: in a longer one it may have happened anywhere.
const AS_EVER: f32 = 0.8;
const BREAK_WINDOW_MAX: usize = 16;
/// Quarters of an hour in a day.
const DAY_PARTS: usize = 96;
/// Requests that should have come, for their absence not to be chance: `exp(-10)` is 0.00005.
const NOT_BY_CHANCE: f32 = 10.0;
/// An endpoint has lost its traffic with the others from this share of what earlier weeks had on, where so many requests are to be expected.
const QUIET_SHARE: f32 = 0.5;
const SHARE_EXPECTED_MIN: f32 = 3.0;
/// By how much more of its traffic an endpoint may have kept than those that were found.
const ALIKE: f32 = 0.25;
/// A change so long after a marker, or a little before it, may be its doing.
const MARKER_AFTER_MS: i64 = 24 * 3_600_000;
const MARKER_BEFORE_MS: i64 = 30 * 60_000;

/// Requests (seen, expected) of each service, and of all of each environment, over windows of so many quarters that end now: summed when they are first asked for.
#[derive(Default)]
struct Sums(BTreeMap<usize, OfWindow>);

#[derive(Default)]
struct OfWindow {
    services: BTreeMap<(String, String), (f32, f32)>,
    envs: BTreeMap<String, (f32, f32)>,
}

impl Sums {
    /// Those of a service, and of all others of its environment.
    fn service_and_rest(&mut self, fleet: &Fleet, window: usize, quarter: i64, service: &(String, String)) -> [(f32, f32); 2] {
        let sums = self.0.entry(window).or_insert_with(|| {
            let mut sums = OfWindow::default();
            let of = |id: &EndpointId| fleet.members[id.0 as usize].watch.memory().traffic_over(window, quarter);
            for (service, ids) in &fleet.services {
                let sum = ids.iter().filter_map(of).fold((0.0, 0.0), plus);
                sums.services.insert(service.clone(), sum);
                let all = sums.envs.entry(service.1.clone()).or_default();
                *all = plus(*all, sum);
            }
            sums
        });
        let own = sums.services.get(service).copied().unwrap_or_default();
        [own, minus(sums.envs.get(&service.1).copied().unwrap_or_default(), own)]
    }
}

fn plus(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    (a.0 + b.0, a.1 + b.1)
}

fn minus(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    ((a.0 - b.0).max(0.0), (a.1 - b.1).max(0.0))
}

/// Endpoints of a service that changed together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Together {
    pub(super) since: i64,
    pub(super) members: BTreeSet<EndpointId>,
    #[serde(with = "in_json")]
    pub(super) change: Change,
}

/// A change leaves out what it has not, which bytes without names of fields cannot tell: it is kept as the JSON that it is elsewhere.
mod in_json {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de, ser};

    use super::Change;

    pub(super) fn serialize<S: Serializer>(change: &Change, to: S) -> Result<S::Ok, S::Error> {
        serde_json::to_string(change).map_err(ser::Error::custom)?.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Change, D::Error> {
        serde_json::from_str(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl Fleet {
    /// Many endpoints of a service that slow down at once within a day are one incident. Everything else is said one by one: a creep has a date of its own, and a tail a shape.
    pub(super) fn put_together(&mut self, quarter: i64, news: News, said: &mut Vec<Found>) {
        while self.kept.recent.front().is_some_and(|(q, _)| *q < quarter - TOGETHER_WITHIN) {
            self.kept.recent.pop_front();
        }
        self.end_together(quarter, said);
        let (sudden, other): (News, News) = news.into_iter().partition(|(_, finding)| size_of(finding).is_some());
        self.kept.recent.extend(sudden.iter().map(|(id, _)| (quarter, *id)));
        said.extend(other.iter().map(|(id, finding)| self.of_endpoint(quarter, *id, finding)));
        for (service, found) in self.by_service(sudden) {
            match self.of_service(quarter, &service, &found) {
                Some(one) => said.push(one),
                None => said.extend(found.iter().map(|(id, finding)| self.of_endpoint(quarter, *id, finding))),
            }
        }
    }

    fn by_service(&self, news: News) -> BTreeMap<(String, String), News> {
        let mut services: BTreeMap<(String, String), News> = BTreeMap::new();
        for (id, finding) in news {
            let key = &self.members[id.0 as usize].key;
            services.entry((key.service.clone(), key.env.clone())).or_default().push((id, finding));
        }
        services
    }

    /// One finding of one endpoint.
    fn of_endpoint(&self, quarter: i64, id: EndpointId, finding: &Finding) -> Found {
        let member = &self.members[id.0 as usize];
        let mut change = told::change_of(finding, &member.watch, &self.thresholds[usize::from(!member.critical)], quarter);
        if told::kind_of(finding).class() == Class::Latency {
            change.marker = self.marker_of(&member.key.service, change.since);
        }
        let breach = if is_slow_run(quarter) && told::kind_of(finding).class() == Class::Latency { member.forecast(quarter) } else { None };
        let change = with_limit(change, breach.as_ref());
        of_member(member_of(&member.key, member.critical), quarter, told::kind_of(finding), Stage::Begun, breach.map(|b| b.0), change)
    }

    /// What a service's endpoints have in common, if enough of them have changed.
    #[expect(clippy::cast_precision_loss, reason = "endpoints")]
    fn of_service(&mut self, quarter: i64, service: &(String, String), found: &[(EndpointId, Finding)]) -> Option<Found> {
        let mut sorted: Vec<_> = found.iter().filter_map(|(id, f)| Some((size_of(f)?, *id, f))).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (change, id, first) = *sorted.get(sorted.len() / 2)?;
        let quarters = window_of(first);
        let watched = self.services.get(service)?;
        let changes = watched.iter().filter_map(|id| Some((*id, self.members[id.0 as usize].watch.change_over(quarters)?)));
        let changes: Vec<(EndpointId, f32)> = changes.collect();
        let mut members: BTreeSet<EndpointId> = self.kept.recent.iter().map(|r| r.1).filter(|id| watched.binary_search(id).is_ok()).collect();
        // Those too quiet to be found by themselves, as far as they went the same way.
        members.extend(changes.iter().filter(|(_, c)| *c >= TOGETHER_CHANGE * change).map(|(id, _)| *id));
        let known = self.kept.together.get(service).filter(|t| quarter - t.since <= TOGETHER_WITHIN);
        if known.is_none() && (members.len() < TOGETHER_MIN || (members.len() as f32) < TOGETHER_SHARE * changes.len() as f32) {
            return None;
        }
        let stage = if known.is_some() { Stage::GoesOn } else { Stage::Begun };
        if let Some(known) = known {
            members.extend(known.members.iter().copied());
        }
        let critical = members.iter().any(|id| self.members[id.0 as usize].critical);
        let member = &self.members[id.0 as usize];
        let of_one = told::change_of(first, &member.watch, &self.thresholds[usize::from(!member.critical)], quarter);
        let requests = members.iter().map(|id| self.members[id.0 as usize].watch.requests_over(quarters)).sum();
        let names = members.iter().map(|id| self.members[id.0 as usize].key.name());
        let since = known.map_or(of_one.since, |t| t.change.since);
        let change = Change {
            since,
            requests,
            marker: self.marker_of(&service.0, since),
            endpoints: names.collect::<BTreeSet<_>>().into_iter().collect(),
            endpoints_watched: u32::try_from(watched.len()).ok(),
            level_ms: None,
            level_before_ms: None,
            p95_ms: None,
            ..of_one
        };
        let together = Together { since: known.map_or(quarter, |t| t.since), members, change: change.clone() };
        self.kept.together.insert(service.clone(), together);
        Some(of_member((EndpointKey::of_service(&service.0, &service.1, &member.key.kind), critical), quarter, Kind::Step, stage, None, change))
    }

    /// Endpoints of a service whose traffic fails together are one incident. On a holiday nothing is said.
    pub(super) fn put_traffic_together(&mut self, quarter: i64, news: News, said: &mut Vec<Found>) {
        let members = &self.members;
        self.kept.quiet.retain(|service, together| {
            let is_over = !together.members.iter().any(|id| members[id.0 as usize].watch.has_alarm(Class::Traffic));
            if is_over {
                said.push(service_is_over(members, service, together, quarter, Kind::Throughput));
            }
            !is_over
        });
        let mut sums = Sums::default();
        let (holiday, news): (News, News) = news.into_iter().partition(|(id, finding)| self.is_holiday(quarter, *id, finding, &mut sums));
        for (id, _) in holiday {
            self.members[id.0 as usize].watch.forget_traffic();
        }
        // A run that did not reach its end is its own.
        let (collapsed, mut unfinished): (News, News) = news.into_iter().partition(|(_, finding)| matches!(finding, Finding::Collapse(_)));
        if self.kept.nothing.is_some() || self.kept.nothing_to.is_some_and(|last| quarter - last < DAY_QUARTERS) {
            // What was done in that time nobody counted.
            unfinished.drain(..).for_each(|(id, _)| self.members[id.0 as usize].watch.forget_traffic());
        }
        said.extend(unfinished.iter().map(|(id, finding)| self.of_endpoint(quarter, *id, finding)));
        let collapsed = self.put_nothing(quarter, collapsed, said);
        for (service, found) in self.by_service(collapsed) {
            match self.quiet_service(quarter, &service, &found) {
                Some(one) => said.push(one),
                None => said.extend(found.iter().map(|(id, finding)| self.of_endpoint(quarter, *id, finding))),
            }
        }
    }

    /// When nothing at all comes, of no service, where other services should have traffic too, then what carries the reports is gone: one incident. What is left to be said.
    fn put_nothing(&mut self, quarter: i64, news: News, said: &mut Vec<Found>) -> News {
        if let Some(nothing) = self.kept.nothing.take_if(|_| self.kept.nothing_for == 0) {
            said.push(self.nothing_found(quarter, &nothing, Stage::Over));
            self.kept.nothing_to = Some(quarter);
            self.kept.returning.extend(nothing.members.into_iter().map(|id| (quarter, id)));
        }
        let members = &mut self.members;
        self.kept.returning.retain(|(since, id)| {
            let watch = &mut members[id.0 as usize].watch;
            match watch.is_missing_since(*since, quarter) {
                Some(true) => watch.forget_traffic(),
                None if watch.has_alarm(Class::Traffic) => return true,
                _ => {}
            }
            false
        });
        if self.kept.nothing.is_none() && self.kept.nothing_for > 0 && !news.is_empty() && self.others_should_have_traffic(&news) {
            let since = told::end_of(quarter - i64::from(self.kept.nothing_for));
            let window = humanize_ms(told::end_of(quarter).0 - since.0);
            let services = self.services.keys().map(|(service, env)| if env.is_empty() { service.clone() } else { format!("{service} ({env})") }).collect();
            let change = Change { since, window, seen: Some(0), services, ..Change::default() };
            let nothing = Together { since: quarter, members: BTreeSet::new(), change };
            said.push(self.nothing_found(quarter, &nothing, Stage::Begun));
            self.kept.nothing = Some(nothing);
        }
        let Some(nothing) = &mut self.kept.nothing else { return news };
        nothing.members.extend(news.iter().map(|(id, _)| *id));
        News::new()
    }

    fn nothing_found(&self, quarter: i64, nothing: &Together, stage: Stage) -> Found {
        let critical = self.members.iter().any(|member| member.critical);
        of_member((EndpointKey::of_service("", "", ""), critical), quarter, Kind::Silence, stage, None, nothing.change.clone())
    }

    /// Whether the same hour of earlier weeks had requests enough, of services that nothing was found of, for their silence not to be chance.
    fn others_should_have_traffic(&self, news: &News) -> bool {
        let found: BTreeSet<_> = news.iter().map(|(id, _)| &self.members[id.0 as usize].key).map(|key| (&key.service, &key.env)).collect();
        let others = self.members.iter().filter(|member| !found.contains(&(&member.key.service, &member.key.env)));
        let an_hour: f32 = others.filter_map(|member| Some(member.watch.memory().traffic_of(1)?.1)).sum();
        an_hour * f32::from(self.kept.nothing_for) / 4.0 >= NOT_BY_CHANCE
    }

    /// Whether the rest is as quiet as this endpoint, and not dead: then it is the day and not the endpoint. The rest are all other services, as a day is the same for
    /// all; where there are none, or where they are busy, it is the rest of the service, which is a holiday of its own customers only if it is no deep one.
    fn is_holiday(&self, quarter: i64, id: EndpointId, finding: &Finding, sums: &mut Sums) -> bool {
        let Finding::Collapse(collapse) = finding else { return false };
        let member = &self.members[id.0 as usize];
        let service = (member.key.service.clone(), member.key.env.clone());
        let own = (collapse.seen, collapse.expected);
        // All through the day the share is asked for as often as the traffic is, so it must show as much.
        let threshold = self.thresholds[usize::from(!member.critical)].traffic.0;
        let own_of = |window: usize| member.watch.memory().traffic_over(window, quarter).unwrap_or_default();
        let [of_service, rest] = sums.service_and_rest(self, collapse.quarters, quarter, &service);
        let siblings = minus(of_service, own_of(collapse.quarters));
        let by_siblings = siblings::share(own, siblings, siblings::SHARE_SPREAD, threshold);
        if matches!(by_siblings, Share::Fell(_)) {
            return false;
        }
        let is_left = |(seen, expected): (f32, f32)| (HOLIDAY.0..HOLIDAY.1).contains(&(seen / expected));
        let by_rest = siblings::share(own, rest, siblings::SERVICE_SPREAD, threshold);
        if matches!(by_rest, Share::Kept(_)) && is_left(rest) {
            let rest_of = |sums: &mut Sums, window: usize| sums.service_and_rest(self, window, quarter, &service)[1];
            return rest.0 >= DEEP_HOLIDAY * rest.1 || !broke_off(collapse.quarters, |window| rest_of(sums, window));
        }
        if !matches!(by_siblings, Share::Kept(_)) || !is_left(siblings) {
            return false;
        }
        let siblings_of = |sums: &mut Sums, window: usize| minus(sums.service_and_rest(self, window, quarter, &service)[0], own_of(window));
        siblings.0 >= DEEP_HOLIDAY * siblings.1 || matches!(by_rest, Share::Unknown) && !broke_off(collapse.quarters, |window| siblings_of(sums, window))
    }

    /// What the traffic of a service has in common, if most of its endpoints have lost theirs.
    #[expect(clippy::cast_precision_loss, reason = "endpoints")]
    fn quiet_service(&mut self, quarter: i64, service: &(String, String), found: &[(EndpointId, Finding)]) -> Option<Found> {
        let quarters = found.iter().filter_map(|(_, f)| if let Finding::Collapse(c) = f { Some(c.quarters) } else { None }).max()?;
        let watched = self.services.get(service)?;
        let shares = watched.iter().filter_map(|id| {
            let (seen, expected) = self.members[id.0 as usize].watch.memory().traffic_over(quarters, quarter)?;
            (expected >= SHARE_EXPECTED_MIN).then_some((*id, seen / expected))
        });
        let shares: Vec<(EndpointId, f32)> = shares.collect();
        let known = self.kept.quiet.get(service);
        // On a holiday all have lost some: with one that broke goes who has lost about as much.
        let most = found.iter().filter_map(|(_, f)| if let Finding::Collapse(c) = f { Some(c.seen / c.expected) } else { None }).fold(0.0, f32::max);
        let is_alike = |share: f32| share <= QUIET_SHARE.min(most + ALIKE);
        let mut members: BTreeSet<EndpointId> = shares.iter().filter(|(_, share)| is_alike(*share)).map(|(id, _)| *id).collect();
        members.extend(found.iter().map(|(id, _)| *id));
        if known.is_none() && (members.len() < TOGETHER_MIN || (members.len() as f32) < TOGETHER_SHARE * shares.len() as f32) {
            return None;
        }
        let stage = if known.is_some() { Stage::GoesOn } else { Stage::Begun };
        members.extend(known.into_iter().flat_map(|k| k.members.iter().copied()));
        let (id, finding) = found.first()?;
        let first = &self.members[id.0 as usize];
        let of_one = told::change_of(finding, &first.watch, &self.thresholds[usize::from(!first.critical)], quarter);
        let seen: u64 = members.iter().map(|id| self.members[id.0 as usize].watch.requests_over(quarters)).sum();
        let names = members.iter().map(|id| self.members[id.0 as usize].key.name()).collect::<BTreeSet<_>>();
        let change = Change {
            since: known.map_or(of_one.since, |k| k.change.since),
            seen: Some(seen),
            requests: seen,
            expected: None,
            endpoints: names.into_iter().collect(),
            endpoints_watched: u32::try_from(watched.len()).ok(),
            ..of_one
        };
        let critical = members.iter().any(|id| self.members[id.0 as usize].critical);
        let key = EndpointKey::of_service(&service.0, &service.1, &first.key.kind);
        let since = known.map_or(quarter, |k| k.since);
        self.kept.quiet.insert(service.clone(), Together { since, members, change: change.clone() });
        let kind = if seen == 0 { Kind::Silence } else { Kind::Throughput };
        Some(of_member((key, critical), quarter, kind, stage, None, change))
    }

    /// Says which services are as before.
    #[expect(clippy::cast_precision_loss, reason = "endpoints")]
    fn end_together(&mut self, quarter: i64, said: &mut Vec<Found>) {
        let members = &self.members;
        self.kept.together.retain(|service, together| {
            let back = together.members.iter().filter(|id| !members[id.0 as usize].watch.has_alarm(Class::Latency)).count();
            // Those that were only counted in have no alarm of their own.
            let is_over = quarter - together.since >= TOGETHER_WITHIN && back as f32 >= TOGETHER_BACK * together.members.len() as f32;
            if is_over {
                said.push(service_is_over(members, service, together, quarter, Kind::Step));
            }
            !is_over
        });
    }

    /// The last marker of a service that a change may come from.
    fn marker_of(&self, service: &str, since: Timestamp) -> Option<String> {
        let near = |m: &&Marker| (since.plus_ms(-MARKER_AFTER_MS)..=since.plus_ms(MARKER_BEFORE_MS)).contains(&m.ts);
        let marker = self.markers.iter().rev().filter(near).find(|m| m.service.is_empty() || m.service == service)?;
        let name = [marker.title.as_str(), marker.version.as_str()].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(" ");
        Some(if name.is_empty() { format!("the marker of {}", marker.ts) } else { name })
    }
}

/// Whether traffic was as ever until it broke off in the busy hours of its day. A holiday does not begin so: on its morning nobody comes.
fn broke_off(window: usize, mut traffic: impl FnMut(usize) -> (f32, f32)) -> bool {
    if window > BREAK_WINDOW_MAX {
        return false;
    }
    let now = traffic(window);
    let before = minus(traffic(2 * window), now);
    #[expect(clippy::cast_precision_loss, reason = "quarters of a day")]
    let of_day = traffic(DAY_PARTS).1 * window as f32 / DAY_PARTS as f32;
    before.0 >= AS_EVER * before.1 && now.1 >= of_day
}

fn service_is_over(members: &[Member], service: &(String, String), together: &Together, quarter: i64, kind: Kind) -> Found {
    let of = || together.members.iter().map(|id| &members[id.0 as usize]);
    let endpoint_kind = of().next().map_or("", |member| member.key.kind.as_str());
    let key = EndpointKey::of_service(&service.0, &service.1, endpoint_kind);
    of_member((key, of().any(|member| member.critical)), quarter, kind, Stage::Over, None, together.change.clone())
}

/// By how much a level has changed at once.
fn size_of(finding: &Finding) -> Option<f32> {
    match finding {
        Finding::Level(f) => (f.shape == Shape::Step).then_some(f.change),
        Finding::Step(f) => Some(f.change),
        Finding::Marked(f) => Some(f.change),
        Finding::Apart(_) | Finding::Tail(_) | Finding::Collapse(_) | Finding::Unfinished(_) => None,
    }
}

/// Quarters of an hour since it began, as far as that is known: what was before is before them.
fn window_of(finding: &Finding) -> usize {
    match finding {
        Finding::Step(f) => f.quarters,
        Finding::Marked(f) => usize::try_from(f.hours * 4).unwrap_or(DAY_PARTS),
        _ => 96,
    }
}
