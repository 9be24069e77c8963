//! Two runs over the same recording, incident by incident: what only one of them has, and how those in both differ. Pure.
//!
//! Two incidents are the same one when they are about the same endpoint, of the same class and about the same objective or flow, and run at the same time or open within a
//! day of each other; of several the nearest. An objective whose threshold was moved has another name: what is left over pairs by the sort of objective.

use std::collections::HashMap;

use super::replayed::Episode;
use crate::endpoint::EndpointKey;
use crate::incident::Class;
use crate::time::Timestamp;

/// Times closer than this are the same to a person.
const NOTICED_MS: u64 = 60_000;

/// Incidents that do not overlap are the same one when they open this close to each other.
const NEAR_MS: u64 = 24 * 3_600_000;

/// An incident that both runs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// As the first run has it.
    pub now: &'a Episode,
    /// As the second has it.
    pub next: &'a Episode,
}

impl Pair<'_> {
    /// How much later the second run tells of it; negative: earlier. `None` when nobody would notice.
    #[must_use]
    pub fn opened_later_ms(&self) -> Option<i64> {
        later_ms(Some(self.now.opened), Some(self.next.opened))
    }

    /// How much later it is critical; `None` also when it is not critical in both.
    #[must_use]
    pub fn critical_later_ms(&self) -> Option<i64> {
        later_ms(self.now.critical, self.next.critical)
    }

    /// How much later it is over; `None` also when it is not over in both.
    #[must_use]
    pub fn ended_later_ms(&self) -> Option<i64> {
        later_ms(self.now.ended, self.next.ended)
    }

    /// Whether nobody would notice that they are two.
    #[must_use]
    pub fn is_alike(&self) -> bool {
        let (now, next) = (self.now, self.next);
        let of_a_sort = now.kind == next.kind && now.worst() == next.worst() && now.ended.is_some() == next.ended.is_some();
        of_a_sort && self.opened_later_ms().or(self.critical_later_ms()).or(self.ended_later_ms()).is_none()
    }
}

fn later_ms(now: Option<Timestamp>, next: Option<Timestamp>) -> Option<i64> {
    Some(next?.0 - now?.0).filter(|ms| ms.unsigned_abs() >= NOTICED_MS)
}

/// How two runs differ; each list by time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison<'a> {
    /// Only the first run has them.
    pub only_now: Vec<&'a Episode>,
    /// Only the second has them.
    pub only_next: Vec<&'a Episode>,
    /// Both have them, otherwise.
    pub changed: Vec<Pair<'a>>,
    /// Both have them.
    pub alike: Vec<Pair<'a>>,
}

impl Comparison<'_> {
    /// How much later the second run tells of what both tell at another time: the median.
    #[must_use]
    pub fn told_later_ms(&self) -> Option<i64> {
        median(self.changed.iter().filter_map(Pair::opened_later_ms).collect())
    }
}

/// The middle one, or what lies between the two middle ones.
#[must_use]
pub fn median(mut of: Vec<i64>) -> Option<i64> {
    of.sort_unstable();
    let (below, above) = (of.get(of.len().checked_sub(1)? / 2)?, of.get(of.len() / 2)?);
    // Towards zero, so that the median of what is negated is negated.
    Some((below + above) / 2)
}

/// Compares the incidents of two runs, in whatever order they come.
#[must_use]
pub fn compare<'a>(now: &'a [Episode], next: &'a [Episode]) -> Comparison<'a> {
    let (mut only_now, mut only_next): (Vec<_>, Vec<_>) = (now.iter().collect(), next.iter().collect());
    let mut pairs = pair_off(&mut only_now, &mut only_next, |e| &e.about);
    pairs.extend(pair_off(&mut only_now, &mut only_next, sort_of));
    pairs.sort_by_key(|p| (p.next.opened, &p.next.id));
    only_now.sort_by_key(|e| (e.opened, &e.id));
    only_next.sort_by_key(|e| (e.opened, &e.id));
    let (alike, changed) = pairs.into_iter().partition(Pair::is_alike);
    Comparison { only_now, only_next, changed, alike }
}

/// The sort of objective, without its threshold; of anything else its whole name.
#[must_use]
pub fn sort_of(episode: &Episode) -> &str {
    match episode.kind.class() {
        Class::Promise => episode.about.split("<=").next().unwrap_or_default(),
        Class::Latency | Class::Traffic | Class::Flow => &episode.about,
    }
}

/// Takes those that belong together out of the two lists, the nearest first.
fn pair_off<'a>(all_now: &mut Vec<&'a Episode>, all_next: &mut Vec<&'a Episode>, about: fn(&Episode) -> &str) -> Vec<Pair<'a>> {
    let subject = |e: &'a Episode| -> (&'a EndpointKey, Class, &'a str) { (&e.endpoint, e.kind.class(), about(e)) };
    let mut by_subject: HashMap<_, Vec<usize>> = HashMap::new();
    for (at, &episode) in all_next.iter().enumerate() {
        by_subject.entry(subject(episode)).or_default().push(at);
    }
    let mut candidates = Vec::new();
    for (at, &now) in all_now.iter().enumerate() {
        for other in by_subject.get(&subject(now)).into_iter().flatten() {
            let next = all_next[*other];
            if may_be_one(now, next) {
                candidates.push((distance(now, next), at, *other));
            }
        }
    }
    candidates.sort_unstable();
    let (mut taken_now, mut taken_next) = (vec![false; all_now.len()], vec![false; all_next.len()]);
    let mut pairs = Vec::new();
    for (_, at, other) in candidates {
        if !taken_now[at] && !taken_next[other] {
            (taken_now[at], taken_next[other]) = (true, true);
            pairs.push(Pair { now: all_now[at], next: all_next[other] });
        }
    }
    let (mut taken_now, mut taken_next) = (taken_now.into_iter(), taken_next.into_iter());
    all_now.retain(|_| taken_now.next() == Some(false));
    all_next.retain(|_| taken_next.next() == Some(false));
    pairs
}

/// The last instant for what is still open.
fn end(episode: &Episode) -> Timestamp {
    episode.ended.unwrap_or(Timestamp(i64::MAX))
}

fn may_be_one(now: &Episode, next: &Episode) -> bool {
    let overlap = now.opened <= end(next) && next.opened <= end(now);
    overlap || now.opened.0.abs_diff(next.opened.0) <= NEAR_MS
}

/// What orders candidates: the same from either side and in whatever order they come.
fn distance<'a>(now: &'a Episode, next: &'a Episode) -> impl Ord + 'a {
    let apart = now.opened.0.abs_diff(next.opened.0);
    let ends_apart = end(now).0.abs_diff(end(next).0);
    let ids = (now.id.as_str().min(&next.id), now.id.as_str().max(&next.id));
    (now.id != next.id, apart, ends_apart, now.opened.min(next.opened), ids)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::incident::{Kind, derived_id};

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const START: i64 = 1_767_571_200_000;

    /// One of `POST /orders`, critical from its opening on, or never; times in milliseconds from the start.
    pub(in crate::run) fn episode(kind: Kind, about: &str, opened: i64, ended: Option<i64>, critical: bool) -> Episode {
        let part = |text: &str| text.to_owned();
        let endpoint = EndpointKey { service: part("shop"), env: part("prod"), kind: part("http"), method: part("POST"), route: part("/orders") };
        let at = Timestamp(START + opened);
        Episode {
            id: derived_id(&[kind.name(), about, &at.0.to_string()]),
            kind,
            endpoint,
            about: part(about),
            opened: at,
            escalated: None,
            critical: critical.then_some(at),
            ended: ended.map(|ms| Timestamp(START + ms)),
            summary: String::new(),
        }
    }

    fn burn(about: &str, opened: i64, ended: i64) -> Episode {
        episode(Kind::Burn, about, opened, Some(ended), false)
    }

    #[test]
    fn the_nearest_of_one_endpoint_class_and_objective_are_one_incident() {
        let now = [burn("availability", 0, HOUR), burn("availability", 5 * HOUR, 6 * HOUR), burn("latency<=1s", MINUTE, HOUR)];
        let mut next = [burn("availability", 5 * HOUR + 10 * MINUTE, 7 * HOUR), burn("latency<=1s", 30 * DAY, 31 * DAY)];
        let found = compare(&now, &next);
        assert_eq!(found.changed, [Pair { now: &now[1], next: &next[0] }]);
        assert_eq!((found.changed[0].opened_later_ms(), found.changed[0].ended_later_ms()), (Some(10 * MINUTE), Some(HOUR)));
        assert_eq!((found.only_now, found.only_next), (vec![&now[0], &now[2]], vec![&next[1]]), "a month apart is another incident");
        next[0].endpoint.env = "staging".to_owned();
        assert_eq!(compare(&now, &next).changed, []);
    }

    #[test]
    fn long_ones_that_overlap_are_one_and_short_ones_within_a_day_too() {
        let creep = |opened, ended| episode(Kind::Creep, "", opened, ended, false);
        let together = |a: Episode, b: Episode| compare(&[a], &[b]).only_now.is_empty();
        assert!(together(creep(0, None), creep(9 * DAY, None)));
        assert!(together(creep(0, Some(HOUR)), creep(DAY, Some(2 * DAY))));
        assert!(!together(creep(0, Some(HOUR)), creep(DAY + MINUTE, Some(2 * DAY))));
        let step = episode(Kind::Step, "", HOUR, None, false);
        assert!(together(creep(0, None), step.clone()), "a creep and a step are of one class");
        assert!(!compare(&[creep(HOUR, None)], &[step]).changed.is_empty(), "and not alike");
    }

    #[test]
    fn an_objective_with_another_threshold_pairs_when_nothing_pairs_by_name() {
        let now = [burn("latency<=800ms", 0, HOUR), burn("latency<=2s", 0, HOUR)];
        let next = [burn("latency<=2s", 2 * MINUTE, HOUR), burn("latency<=700ms", 0, HOUR), burn("availability", 0, HOUR)];
        let found = compare(&now, &next);
        assert_eq!(found.alike, [Pair { now: &now[0], next: &next[1] }]);
        assert_eq!(found.changed, [Pair { now: &now[1], next: &next[0] }]);
        assert_eq!(found.only_next, [&next[2]]);
    }

    #[test]
    fn what_nobody_would_notice_is_no_difference() {
        let with = |opened, ended, critical| episode(Kind::Silence, "", opened, ended, critical);
        let now = with(0, Some(HOUR), true);
        let alike = |next: Episode| compare(std::slice::from_ref(&now), &[next]).changed.is_empty();
        assert!(alike(with(50_000, Some(HOUR - 50_000), true)));
        for next in [with(MINUTE, Some(HOUR), true), with(0, Some(2 * HOUR), true), with(0, None, true), with(0, Some(HOUR), false)] {
            assert!(!alike(next));
        }
    }

    #[test]
    fn the_median_is_of_those_told_at_another_time() {
        let silence = |opened| episode(Kind::Silence, "", opened, Some(opened + HOUR), false);
        let now = [silence(0), silence(10 * DAY), silence(20 * DAY)];
        let next = [silence(-9 * HOUR), silence(10 * DAY - 3 * HOUR), silence(20 * DAY)];
        assert_eq!(compare(&now, &next).told_later_ms(), Some(-6 * HOUR));
        assert_eq!(compare(&now, &now).told_later_ms(), None);
        assert_eq!(median(vec![5, 1, 3]), Some(3));
    }

    fn any_episode() -> impl Strategy<Value = Episode> {
        let kind = prop::sample::select(vec![Kind::Burn, Kind::Creep, Kind::Step, Kind::Silence]);
        let about = prop::sample::select(vec!["latency<=800ms", "latency<=700ms", "availability"]);
        (kind, about, 0i64..200, prop::option::of(0i64..100), any::<bool>(), any::<bool>()).prop_map(|(kind, about, opened, lasts, critical, staging)| {
            let about = if kind == Kind::Burn { about } else { "" };
            let mut episode = episode(kind, about, opened * 30 * MINUTE, lasts.map(|n| (opened * 30 + n * 20) * MINUTE), critical);
            if staging {
                episode.endpoint.env = "staging".to_owned();
                episode.id.push('s');
            }
            episode
        })
    }

    /// Each id once, as in a run.
    fn any_run() -> impl Strategy<Value = Vec<Episode>> {
        prop::collection::vec(any_episode(), 0..25).prop_map(|mut run| {
            run.sort_by(|a, b| a.id.cmp(&b.id));
            run.dedup_by(|a, b| a.id == b.id);
            run
        })
    }

    fn ids(pairs: &[Pair<'_>]) -> Vec<(String, String)> {
        let mut ids: Vec<_> = pairs.iter().map(|p| (p.now.id.clone(), p.next.id.clone())).collect();
        ids.sort();
        ids
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_run_does_not_differ_from_itself(run in any_run().prop_shuffle()) {
            let found = compare(&run, &run);
            prop_assert!(found.only_now.is_empty() && found.only_next.is_empty() && found.changed.is_empty());
            prop_assert!(found.alike.iter().all(|p| p.now == p.next) && found.alike.len() == run.len());
        }

        #[test]
        fn the_other_way_round_all_is_the_other_way_round(now in any_run(), next in any_run()) {
            let (there, back) = (compare(&now, &next), compare(&next, &now));
            prop_assert_eq!((&there.only_now, &there.only_next), (&back.only_next, &back.only_now));
            let turned = |pairs: &[Pair<'_>]| ids(&pairs.iter().copied().map(|Pair { now, next }| Pair { now: next, next: now }).collect::<Vec<_>>());
            prop_assert_eq!(ids(&there.changed), turned(&back.changed));
            prop_assert_eq!(ids(&there.alike), turned(&back.alike));
            prop_assert_eq!(there.told_later_ms(), back.told_later_ms().map(|ms| -ms));
            let every = there.only_now.len() + there.changed.len() + there.alike.len();
            prop_assert_eq!(every, now.len(), "each is somewhere, once");
        }

        #[test]
        fn the_order_in_which_they_come_does_not_matter((now, mixed_now) in mixed(), (next, mixed_next) in mixed()) {
            prop_assert_eq!(compare(&now, &next), compare(&mixed_now, &mixed_next));
        }
    }

    fn mixed() -> impl Strategy<Value = (Vec<Episode>, Vec<Episode>)> {
        any_run().prop_flat_map(|run| (Just(run.clone()), Just(run).prop_shuffle()))
    }
}
