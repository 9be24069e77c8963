//! Who reports for which service, and whether anyone still does: dead workers send no errors, and at night nobody misses their work.
//!
//! A sender that names itself reports at least once a minute, if only that it is there. When nothing came from any sender of a service for [`GONE_MS`], the service is
//! dark: nobody can tell how it fares. That is told if it was reported for without a break for a day before, so that a nightly job may end. Services that go dark
//! together lost what carried their reports (a collector, a network): one incident. While a service is dark its silence is not said once more; what still holds some
//! time after its return is said then.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::endpoint::EndpointKey;
use crate::history::catalogue::{Catalogue, Entry};
use crate::incident::{Change, Class, Found, Kind, Stage};
use crate::ingest::batch_keys::Sender;
use crate::ingest::{Batch, Whose};
use crate::judge::Record;
use crate::time::{Slot, Timestamp, humanize_ms};

/// A sender of which nothing came for so long is gone: two reports of a minute are missing.
pub const GONE_MS: i64 = 150_000;
/// A service that was reported for so long without a break is missed.
const STEADY_MS: i64 = 24 * 3_600_000;
/// It is told so long after it was found, together with all that were found meanwhile.
const GATHER_MS: i64 = 60_000;
/// What goes dark so long after several did, did so with them.
const JOIN_MS: i64 = 5 * 60_000;
/// A sender that is gone for so long while others are there was replaced.
const REPLACED_MS: i64 = 24 * 3_600_000;
/// What was not said of a service while it was dark is said so long after its return, if it still holds.
const RETURN_MS: i64 = 30 * 60_000;
/// A service that stays dark for so long has ended.
const ENDED_MS: i64 = 28 * 86_400_000;
/// A gap of the server itself that is longer is unknown, until it has listened for so long again.
const GAP_MS: i64 = 60_000;
const GRACE_MS: i64 = 2 * 60_000;
/// A sender's batches of which one is looked through for all its services.
const WHOLE_EACH: u64 = 64;
/// Slots between two judgements.
const EACH_SLOTS: u32 = 6;
/// Services that are watched, senders of one, names that an incident lists, and findings that wait.
const SERVICES_MAX: usize = 10_000;
const SENDERS_MAX: usize = 1_000;
const NAMED_MAX: usize = 20;
const MUTED_MAX: usize = 1_000;

/// A service of one environment.
pub type Service = (String, String);

/// How a service is reported for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The server itself was not there.
    Unknown,
    /// By nobody any more.
    Dark,
    /// By a sender that is there.
    Alive,
    /// By senders without a name, if at all.
    Unnamed,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Reported {
    /// When each was heard last, as of the last judgement.
    senders: BTreeMap<String, Timestamp>,
    /// Since when there was no break.
    steady_since: Timestamp,
    heard_at: Timestamp,
    is_dark: bool,
    /// When it was found dark, while that is to be told.
    to_tell_since: Option<Timestamp>,
}

/// Services that went dark together, and have been told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Darkness {
    critical: bool,
    /// When the first of them was heard last.
    since: Timestamp,
    began: Timestamp,
    services: BTreeSet<Service>,
    senders: BTreeSet<String>,
}

/// All services that named senders report for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Presence {
    services: BTreeMap<Service, Reported>,
    told: Vec<Darkness>,
    /// What was found of dark services and not said, and until when its service has to be back, once it is.
    muted: Vec<(Found, Option<Timestamp>)>,
    /// Nobody could have been heard before.
    listening_since: Timestamp,
    unknown_until: Timestamp,
}

impl Presence {
    /// Who reports for which service, as far as a batch has news of it. New endpoints in it are `new`.
    #[must_use]
    pub fn news(&self, sender: &Sender, is_first: bool, batch: &Batch, catalogue: &Catalogue, new: &[Entry], at: Timestamp) -> Vec<Record> {
        let mut whose = batch.packed.iter().map(|p| Whose::Known(p.endpoint())).chain(batch.items.iter().map(|i| i.whose));
        // All of them now and then, else the first and the last: most senders have one service.
        let looked_at: BTreeSet<Whose> = if is_first || sender.seq.is_multiple_of(WHOLE_EACH) {
            whose.collect()
        } else {
            let first = whose.next();
            first.into_iter().chain(whose.next_back()).collect()
        };
        let is_known = |service: &str| catalogue.has_service(service) || new.iter().any(|entry| entry.key.service == service);
        let service_of = |whose| match whose {
            Whose::Known(id) => catalogue.entry(id).map(|entry| (entry.key.service.clone(), entry.key.env.clone())),
            Whose::Key(place) => batch.keys.get(place as usize).map(|(key, _)| (key.service.clone(), key.env.clone())).filter(|s| is_known(&s.0)),
        };
        let services: BTreeSet<Service> = looked_at.into_iter().filter_map(service_of).collect();
        let news = services.into_iter().filter(|service| self.is_news(&sender.id, service, at));
        news.map(|(service, env)| Record::Reports { at, sender: sender.id.clone(), service, env }).collect()
    }

    fn is_news(&self, sender: &str, service: &Service, at: Timestamp) -> bool {
        let Some(reported) = self.services.get(service) else { return self.services.len() < SERVICES_MAX };
        // Where there are more than are remembered, those that are there are enough.
        let has_room = || reported.senders.len() < SENDERS_MAX || reported.senders.values().any(|heard| at.0 - heard.0 > GONE_MS);
        !reported.senders.contains_key(sender) && has_room()
    }

    /// A sender reports for a service.
    pub fn reports(&mut self, sender: &str, service: Service, at: Timestamp) {
        let reported = self.services.entry(service).or_insert_with(|| Reported { steady_since: at, heard_at: at, ..Reported::default() });
        if reported.senders.len() >= SENDERS_MAX
            && let Some(oldest) = reported.senders.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone())
        {
            reported.senders.remove(&oldest);
        }
        reported.senders.insert(sender.to_owned(), at);
    }

    /// The server started; `judged_to` is where it was before.
    pub fn started(&mut self, at: Timestamp, judged_to: Option<Timestamp>) {
        self.listening_since = at;
        if judged_to.is_some_and(|judged| at.0 - judged.0 > GAP_MS) {
            self.unknown_until = at.plus_ms(GRACE_MS);
        }
    }

    /// How a service is reported for at the end of a slot.
    #[must_use]
    pub fn heard(&self, service: &Service, judged_to: Timestamp) -> Heard {
        if judged_to < self.unknown_until {
            return Heard::Unknown;
        }
        match self.services.get(service) {
            None => Heard::Unnamed,
            Some(reported) if reported.is_dark => Heard::Dark,
            Some(_) => Heard::Alive,
        }
    }

    /// The services that a sender reports for.
    pub fn services_of(&self, sender: &str) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(move |(_, reported)| reported.senders.contains_key(sender)).map(|(service, _)| service)
    }

    /// The next slot end after this one with which it is to be judged, if there is anything to judge.
    #[must_use]
    pub fn next_due(&self, judged_to: Option<Slot>) -> Option<Slot> {
        let from = judged_to.filter(|_| !self.services.is_empty())?.next();
        Some(Slot((from.0 + 1).div_ceil(EACH_SLOTS) * EACH_SLOTS - 1))
    }

    /// What is to be said of something found: nothing for now about traffic that nobody reports.
    pub fn admit(&mut self, found: Found) -> Option<Found> {
        let place = self.muted.iter().position(|(f, _)| is_alike(f, &found));
        match (found.stage, place) {
            (Stage::Over, Some(at)) => {
                self.muted.remove(at);
                None
            }
            (Stage::GoesOn, Some(_)) => None,
            (Stage::Begun, at) if self.is_muted(&found) => {
                match at {
                    Some(at) => self.muted[at].0 = found,
                    None if self.muted.len() < MUTED_MAX => self.muted.push((found, None)),
                    // Too many to remember: better said than lost.
                    None => return Some(found),
                }
                None
            }
            _ => Some(found),
        }
    }

    fn is_muted(&self, found: &Found) -> bool {
        let service = (&found.endpoint.service, &found.endpoint.env);
        self.told.iter().any(|dark| {
            let are_several = dark.services.len() > 1;
            let is_dark = |s: &Service| self.services.get(s).is_some_and(|reported| reported.is_dark);
            let is_of = dark.services.iter().any(|s| (&s.0, &s.1) == service && is_dark(s)) || service.0.is_empty() && are_several;
            // Work that is missing where its workers are gone is the harm itself; where all reports are gone nobody knows of any.
            is_of && (are_several && found.kind.class() != Class::Latency || matches!(found.kind, Kind::Silence | Kind::Throughput))
        })
    }

    /// Judges at a slot end, if it is time; what is to be said with the next one. `heard_at` tells when a sender was heard last, `is_critical` whether a service has
    /// a critical endpoint.
    pub fn judge(&mut self, end: Slot, heard_at: impl Fn(&str) -> Option<Timestamp>, is_critical: impl Fn(&Service) -> bool) -> Vec<Found> {
        let (now, mut found) = (end.end(), Vec::new());
        if !(end.0 + 1).is_multiple_of(EACH_SLOTS) || now < self.listening_since {
            return found;
        }
        let listening_since = self.listening_since;
        self.services.retain(|_, reported| {
            reported.hear(now, listening_since, &heard_at);
            now.0 - reported.heard_at.0 < ENDED_MS
        });
        self.end_darkness(end, &mut found);
        self.begin_darkness(end, is_critical, &mut found);
        self.unmute(end, &mut found);
        found
    }

    /// Tells of those that have waited for others, and of those others.
    fn begin_darkness(&mut self, end: Slot, is_critical: impl Fn(&Service) -> bool, found: &mut Vec<Found>) {
        let now = end.end();
        if !self.services.values().any(|r| r.to_tell_since.is_some_and(|since| now.0 - since.0 >= GATHER_MS)) {
            return;
        }
        let (mut services, mut senders, mut since) = (BTreeSet::new(), BTreeSet::new(), now);
        for (service, reported) in self.services.iter_mut().filter(|(_, r)| r.to_tell_since.is_some()) {
            reported.to_tell_since = None;
            since = since.min(reported.heard_at);
            senders.extend(reported.senders.keys().cloned());
            services.insert(service.clone());
        }
        let critical = services.iter().any(is_critical);
        if let Some(dark) = self.told.iter_mut().find(|dark| dark.services.len() > 1 && now.0 - dark.began.0 <= JOIN_MS) {
            dark.services.extend(services);
            dark.senders.extend(senders);
            dark.critical |= critical;
            dark.since = dark.since.min(since);
            found.push(dark.found(end, Stage::GoesOn));
        } else {
            let dark = Darkness { critical, since, began: now, services, senders };
            found.push(dark.found(end, Stage::Begun));
            self.told.push(dark);
        }
    }

    /// One is over when all its services are back, or have ended.
    fn end_darkness(&mut self, end: Slot, found: &mut Vec<Found>) {
        let services = &self.services;
        self.told.retain(|dark| {
            let is_over = !dark.services.iter().any(|service| services.get(service).is_some_and(|reported| reported.is_dark));
            if is_over {
                found.push(dark.found(end, Stage::Over));
            }
            !is_over
        });
    }

    fn unmute(&mut self, end: Slot, found: &mut Vec<Found>) {
        let now = end.end();
        let waiting = std::mem::take(&mut self.muted);
        for (one, until) in waiting {
            if self.is_muted(&one) {
                self.muted.push((one, None));
            } else if until.is_some_and(|until| until <= now) {
                found.push(Found { due: end.next(), ..one });
            } else {
                self.muted.push((one, until.or(Some(now.plus_ms(RETURN_MS)))));
            }
        }
    }
}

impl Reported {
    fn hear(&mut self, now: Timestamp, listening_since: Timestamp, heard_at: impl Fn(&str) -> Option<Timestamp>) {
        for (sender, at) in &mut self.senders {
            *at = heard_at(sender).unwrap_or_default().max(*at);
        }
        self.heard_at = self.senders.values().copied().max().unwrap_or_default().max(self.heard_at);
        // What is dark stays so until something is heard, over starts of the server too.
        let could_be_heard = if self.is_dark { self.heard_at } else { self.heard_at.max(listening_since) };
        let is_dark = now.0 - could_be_heard.0 > GONE_MS;
        if is_dark && !self.is_dark && self.heard_at.0 - self.steady_since.0 >= STEADY_MS {
            self.to_tell_since = Some(now);
        } else if !is_dark {
            self.to_tell_since = None;
            self.steady_since = if self.is_dark { self.heard_at } else { self.steady_since };
            self.senders.retain(|_, at| now.0 - at.0 < REPLACED_MS);
        }
        self.is_dark = is_dark;
    }
}

impl Darkness {
    fn found(&self, end: Slot, stage: Stage) -> Found {
        // Several have no name in common.
        let (service, env) = self.services.first().filter(|_| self.services.len() == 1).cloned().unwrap_or_default();
        let endpoint = EndpointKey::of_service(&service, &env, "");
        let title = |(service, env): &Service| if env.is_empty() { service.clone() } else { format!("{service} ({env})") };
        let change = Change {
            since: self.since,
            window: humanize_ms(end.end().0 - self.since.0),
            services: self.services.iter().map(title).collect(),
            senders: self.senders.iter().take(NAMED_MAX).cloned().collect(),
            senders_gone: u32::try_from(self.senders.len()).ok(),
            ..Change::default()
        };
        Found { due: end.next(), endpoint, critical: self.critical, kind: Kind::Silence, stage, breach: None, change }
    }
}

fn is_alike(a: &Found, b: &Found) -> bool {
    (a.kind.class(), &a.endpoint, &a.change.name) == (b.kind.class(), &b.endpoint, &b.change.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: i64 = 60_000;
    const DAY_MS: i64 = 86_400_000;
    const FROM: Timestamp = Timestamp(1_766_448_000_000);

    fn service(name: &str) -> Service {
        (name.to_owned(), "prod".to_owned())
    }

    /// Senders that report each minute, until they are gone.
    struct World {
        presence: Presence,
        senders: BTreeMap<&'static str, Timestamp>,
        now: Timestamp,
    }

    impl World {
        fn new(reports: &[(&'static str, &str)]) -> Self {
            let mut world = Self { presence: Presence::default(), senders: BTreeMap::new(), now: FROM };
            for (sender, of) in reports {
                assert!(world.presence.is_news(sender, &service(of), FROM));
                world.presence.reports(sender, service(of), FROM);
                assert!(!world.presence.is_news(sender, &service(of), FROM));
                world.senders.insert(sender, FROM);
            }
            world
        }

        /// Goes on for some minutes in which these report; each thing that is said, with the minute.
        fn go(&mut self, minutes: i64, alive: &[&'static str]) -> Vec<(i64, Found)> {
            let mut said = Vec::new();
            for minute in 1..=minutes {
                self.now = self.now.plus_ms(MINUTE_MS);
                for sender in alive {
                    self.senders.insert(sender, self.now.plus_ms(-7_000));
                }
                let slot = Slot::ended_by(self.now).unwrap();
                let heard = self.presence.judge(slot, |s| self.senders.get(s).copied(), |s| s.0 == "cards");
                said.extend(heard.into_iter().map(|found| (minute, found)));
            }
            said
        }

        fn heard(&self, name: &str) -> Heard {
            self.presence.heard(&service(name), self.now)
        }
    }

    fn told(said: &[(i64, Found)]) -> Vec<(i64, Stage, &str, bool)> {
        said.iter().map(|(minute, f)| (*minute, f.stage, f.endpoint.service.as_str(), f.critical)).collect()
    }

    #[test]
    fn the_last_sender_that_goes_is_told_within_five_minutes_and_its_return_ends_it() {
        let mut world = World::new(&[("worker-1", "cards"), ("worker-2", "cards"), ("web", "shop")]);
        assert!(world.go(1_500, &["worker-1", "worker-2", "web"]).is_empty());
        // One of two is no loss that anybody is woken for.
        assert!(world.go(60, &["worker-2", "web"]).is_empty());
        assert_eq!(world.heard("cards"), Heard::Alive);
        let said = world.go(10, &["web"]);
        assert_eq!(told(&said), [(4, Stage::Begun, "cards", true)]);
        let change = &said[0].1.change;
        assert_eq!((change.senders_gone, change.services.as_slice()), (Some(2), ["cards (prod)".to_owned()].as_slice()));
        assert_eq!(change.since, world.now.plus_ms(-10 * MINUTE_MS - 7_000));
        assert_eq!((world.heard("cards"), world.heard("shop"), world.heard("other")), (Heard::Dark, Heard::Alive, Heard::Unnamed));
        let said = world.go(3, &["web", "worker-2"]);
        assert_eq!(told(&said), [(1, Stage::Over, "cards", true)]);
        assert_eq!(world.heard("cards"), Heard::Alive);
    }

    #[test]
    fn what_is_there_for_less_than_a_day_at_a_time_may_end() {
        let mut world = World::new(&[("nightly", "janitor"), ("web", "shop")]);
        for _ in 0..5 {
            assert!(world.go(8 * 60, &["nightly", "web"]).is_empty());
            assert!(world.go(16 * 60, &["web"]).is_empty());
            assert_eq!(world.heard("janitor"), Heard::Dark);
        }
    }

    #[test]
    fn what_goes_dark_together_is_one_incident_that_quiets_the_rest() {
        let mut world = World::new(&[("gateway", "cards"), ("gateway", "shop"), ("agent", "mail"), ("web", "blog")]);
        assert!(world.go(1_500, &["gateway", "agent", "web"]).is_empty());
        // The agent reported a minute later than the gateway.
        let mut said = world.go(1, &["agent", "web"]);
        said.extend(world.go(9, &["web"]));
        assert_eq!(told(&said), [(3, Stage::Begun, "", true)], "one, a minute after the first was found");
        assert_eq!(said[0].1.change.services, ["cards (prod)", "mail (prod)", "shop (prod)"]);

        let of = |name: &str, kind, stage| Found {
            due: Slot(0),
            endpoint: EndpointKey::of_service(name, "prod", "http"),
            critical: false,
            kind,
            stage,
            breach: None,
            change: Change::default(),
        };
        for kind in [Kind::Silence, Kind::Flow, Kind::Completion] {
            assert_eq!(world.presence.admit(of("shop", kind, Stage::Begun)), None);
            assert_eq!(world.presence.admit(of("shop", kind, Stage::GoesOn)), None);
        }
        for (name, kind) in [("shop", Kind::Step), ("blog", Kind::Silence)] {
            assert!(world.presence.admit(of(name, kind, Stage::Begun)).is_some(), "{name} {kind:?}");
        }
        // The completion takes the place of the silence: one class. The flow ends while nobody looks; the silence is still there half an hour after the return.
        assert_eq!(world.presence.admit(of("shop", Kind::Flow, Stage::Over)), None);
        assert!(told(&world.go(1, &["agent", "web"])).is_empty(), "two are still dark");
        let said = world.go(60, &["gateway", "agent", "web"]);
        assert_eq!(told(&said), [(1, Stage::Over, "", true), (31, Stage::Begun, "shop", false)]);
        assert_eq!(said[1].1.kind, Kind::Completion);
    }

    #[test]
    fn workers_that_are_gone_do_not_hide_the_work_that_is_missing() {
        let mut world = World::new(&[("worker", "cards"), ("web", "shop")]);
        assert!(world.go(1_500, &["worker", "web"]).is_empty());
        assert_eq!(world.go(10, &["web"]).len(), 1);
        let endpoint = EndpointKey::of_service("cards", "prod", "");
        let of = |kind| Found { due: Slot(0), endpoint: endpoint.clone(), critical: true, kind, stage: Stage::Begun, breach: None, change: Change::default() };
        assert!(world.presence.admit(of(Kind::Flow)).is_some() && world.presence.admit(of(Kind::Completion)).is_some());
        assert_eq!(world.presence.admit(of(Kind::Silence)), None);
    }

    #[test]
    fn while_the_server_was_away_nobody_was_gone_and_what_was_gone_stays_so() {
        let mut world = World::new(&[("worker", "cards"), ("web", "shop")]);
        assert!(world.go(1_500, &["worker", "web"]).is_empty());
        assert_eq!(world.go(10, &["web"]).len(), 1);
        let before = world.now;
        world.now = world.now.plus_ms(6 * 3_600_000);
        world.presence.started(world.now, Some(before));
        // The slots of the gap are judged too, and say nothing.
        assert!(world.presence.judge(Slot::ended_by(before.plus_ms(3_600_000)).unwrap(), |_| None, |_| true).is_empty());
        assert_eq!(world.heard("shop"), Heard::Unknown);
        assert!(world.go(2, &[]).is_empty());
        assert_eq!((world.heard("shop"), world.heard("cards")), (Heard::Alive, Heard::Dark));
        let said = world.go(5, &[]);
        assert_eq!(told(&said), [(2, Stage::Begun, "shop", false)], "nobody came back to the server");
        let said = world.go(2, &["worker", "web"]);
        assert_eq!(told(&said), [(1, Stage::Over, "cards", true), (1, Stage::Over, "shop", false)]);
        // A short stop is none.
        world.presence.started(world.now, Some(world.now.plus_ms(-20_000)));
        assert_eq!(world.heard("shop"), Heard::Alive);
    }

    #[test]
    fn senders_that_were_replaced_are_forgotten_and_so_is_a_service_that_has_ended() {
        let mut world = World::new(&[("old", "cards")]);
        world.go(1_440, &["old"]);
        world.presence.reports("new", service("cards"), world.now);
        world.go(1_500, &["new"]);
        assert!(world.presence.is_news("old", &service("cards"), world.now));
        let said = world.go(29 * DAY_MS / MINUTE_MS, &[]);
        assert_eq!(said.iter().map(|s| s.1.stage).collect::<Vec<_>>(), [Stage::Begun, Stage::Over]);
        assert_eq!((said[0].1.change.senders_gone, world.heard("cards")), (Some(1), Heard::Unnamed));
        for n in 0..i64::try_from(SENDERS_MAX).unwrap() + 5 {
            world.presence.reports(&format!("pod-{n}"), service("cards"), FROM.plus_ms(n));
        }
        let is_news = |sender: &str, at: Timestamp| world.presence.is_news(sender, &service("cards"), at);
        let later = FROM.plus_ms(GONE_MS + 1_000);
        assert!(is_news("pod-4", later) && !is_news("pod-5", later), "the oldest made room");
        assert!(!is_news("pod-4", FROM.plus_ms(MINUTE_MS)), "a thousand that are there are enough");
    }
}
