//! The past of selectors: taken at one moment of the state, read from history afterwards, elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use promql_parser::label::{MatchOp, Matcher};

use super::super::exposition::bounds_with;
use super::super::promql::evaluate::{Error, Labels, Past, Sample, Series};
use super::super::promql::expression::{Grouping, Leaf, NAME, Over};
use super::super::queries::Running;
use super::super::{Scene, Site};
use super::current::{Current, no_history};
use super::metric::{Known, LATENCY_WINDOW_MS, Metric, Part, PartLabels, endpoint_labels, samples};
use super::{Failure, broken};
use crate::counting::Cell;
use crate::endpoint::{EndpointId, EndpointKey};
use crate::history::closed_periods::{Reading, Wanted};
use crate::history::grouped::{Depth, Grouped};
use crate::history::losses::{Loss, joined};
use crate::judge::{ObjectiveStatus, Promises};
use crate::log::Position;
use crate::time::{Slot, Tier, TimeRange, Timestamp};

/// Series of one selector.
pub(super) const SERIES_MAX: usize = 20_000;

/// Endpoints of the catalogue that one look copies.
const LOOK_ENTRIES_MAX: usize = 4_000;

/// Endpoints whose open slots one look takes.
const OPEN_ENDPOINTS_MAX: usize = 400;

/// Where Prometheus looks for the last sample of a series that was scraped.
const LOOK_BACK_MS: i64 = 300_000;

/// Who there is, as of one moment.
#[derive(Default)]
pub(super) struct Catalogue {
    pub(super) keys: Vec<Arc<EndpointKey>>,
    promises: Arc<Promises>,
    objectives: BTreeMap<EndpointId, Vec<Arc<ObjectiveStatus>>>,
}

impl Catalogue {
    /// How objectives stand is computed for all of them, so it is asked for only where it is needed.
    pub(super) async fn of(site: &Site, with_objectives: bool) -> Result<Self, Failure> {
        let (promises, listed) = site
            .look(move |scene| {
                let judge = &scene.machine.judge;
                (Arc::clone(judge.promises()), judge.objectives().take(if with_objectives { usize::MAX } else { 0 }).collect::<Vec<_>>())
            })
            .await?;
        let mut objectives: BTreeMap<EndpointId, Vec<Arc<ObjectiveStatus>>> = BTreeMap::new();
        for objective in listed {
            objectives.entry(objective.endpoint).or_default().push(Arc::new(objective));
        }
        let mut keys: Vec<Arc<EndpointKey>> = Vec::new();
        loop {
            let from = keys.len();
            let (some, all) = site
                .look(move |scene| {
                    let entries = scene.machine.catalogue.entries();
                    let some = entries.iter().skip(from).take(LOOK_ENTRIES_MAX).map(|entry| Arc::clone(&entry.key)).collect::<Vec<_>>();
                    (some, entries.len())
                })
                .await?;
            keys.extend(some);
            if keys.len() >= all {
                return Ok(Self { keys, promises, objectives });
            }
        }
    }

    /// The bounds of an endpoint's classic histogram, in microseconds.
    pub(super) fn bounds_of(&self, key: &EndpointKey) -> Vec<u64> {
        bounds_with(self.promises.counting_of(key).0.into_iter())
    }

    /// Tells each endpoint that has series of a metric which matchers let through, with these.
    pub(super) fn each(&self, metric: Metric, matchers: &[Matcher], tell: impl FnMut(EndpointId, &EndpointKey, Vec<(PartLabels, Part)>)) {
        self.each_of(metric, matchers, |_| true, tell);
    }

    /// Likewise, of some endpoints.
    pub(super) fn each_of(
        &self,
        metric: Metric,
        matchers: &[Matcher],
        is_wanted: impl Fn(EndpointId) -> bool,
        mut tell: impl FnMut(EndpointId, &EndpointKey, Vec<(PartLabels, Part)>),
    ) {
        if !matchers.iter().filter(|m| m.name == NAME).all(|m| m.is_match(metric.name())) {
            return;
        }
        let none = Vec::new();
        for (id, key) in (0..).map(EndpointId).zip(&self.keys).filter(|(id, _)| is_wanted(*id)) {
            let objectives = self.objectives.get(&id).unwrap_or(&none);
            if metric.is_of_objectives() && objectives.is_empty() {
                continue;
            }
            let thresholds_us = if metric == Metric::DurationBuckets { self.promises.counting_of(key).0 } else { Vec::new() };
            let parts = metric.parts(matchers, &Known { key, thresholds_us: &thresholds_us, objectives });
            if !parts.is_empty() {
                tell(id, key, parts);
            }
        }
    }
}

/// Series that are read together: those of one endpoint, or of all that a sum does not tell apart.
struct Group {
    labels: Labels,
    parts: Vec<(PartLabels, Part)>,
}

/// A metric of a selector.
struct OfMetric {
    metric: Metric,
    groups: Vec<Group>,
    members: Vec<(EndpointId, u32)>,
}

impl OfMetric {
    fn new(metric: Metric, leaf: &Leaf, catalogue: &Catalogue) -> Self {
        let (mut groups, mut members) = (Vec::<Group>::new(), Vec::new());
        let mut places: BTreeMap<(Labels, Vec<PartLabels>), u32> = BTreeMap::new();
        catalogue.each(metric, &leaf.matchers, |id, key, parts| {
            let mut labels = endpoint_labels(key);
            match &leaf.summed_by {
                Some(grouping) => labels.retain(|name, _| Grouping::keeps(grouping, name)),
                None if leaf.over == Over::Last => drop(labels.insert(NAME.to_owned(), metric.name().to_owned())),
                None => {}
            }
            let told_apart_by = (labels, parts.iter().map(|(labels, _)| labels.clone()).collect::<Vec<_>>());
            let group = places.get(&told_apart_by).copied().unwrap_or_else(|| {
                let group = u32::try_from(groups.len()).unwrap_or(u32::MAX - 1);
                groups.push(Group { labels: told_apart_by.0.clone(), parts });
                places.insert(told_apart_by, group);
                group
            });
            members.push((id, group));
        });
        Self { metric, groups, members }
    }

    fn series(&self) -> usize {
        self.groups.iter().map(|g| g.parts.len()).sum()
    }
}

/// A selector that is ready to be read.
struct Prepared {
    over: Over,
    /// What has a past.
    metrics: Vec<(OfMetric, Grouped)>,
    /// What has none, as it stands now.
    current: Vec<(Labels, f64)>,
}

/// All selectors of a question.
pub(super) struct Selected {
    leaves: Vec<Prepared>,
    beginning: Option<Timestamp>,
    now: Timestamp,
    losses: Vec<Loss>,
    notes: BTreeSet<String>,
}

/// What stays the same as long as no slot is closed and no minute goes from memory to history.
fn moment(scene: &Scene<'_>) -> (Option<Slot>, Position) {
    (scene.machine.judge.judged_to(), scene.kept.named_to)
}

impl Selected {
    /// Prepares selectors at one moment, so that nothing is missed or counted twice. The place of the query is kept by what works on it, also when whoever asked has gone.
    pub(super) async fn of(site: &Site, leaves: &[Leaf], running: Running) -> Result<(Self, Running), Failure> {
        let with_objectives = leaves.iter().any(|leaf| Metric::ALL.into_iter().any(|metric| metric.is_of_objectives() && is_named(leaf, metric)));
        let catalogue = if leaves.is_empty() { Catalogue::default() } else { Catalogue::of(site, with_objectives).await? };
        let current = if leaves.iter().all(is_past) { Current::default() } else { Current::of(site).await? };
        let (leaves, reader) = (leaves.to_vec(), site.reader.clone());
        // Every selector goes over every endpoint.
        let found = tokio::task::spawn_blocking(move || {
            let mut notes = BTreeSet::new();
            let plans: Vec<Plan> = leaves.iter().map(|leaf| plan(leaf, &catalogue, &current, &mut notes)).collect::<Result<_, _>>()?;
            let losses = reader.losses().map_err(|e| broken(&e))?;
            Ok::<_, Failure>((plans, notes, losses, running))
        });
        let (plans, notes, losses, running) = found.await.map_err(|e| broken(&e))??;
        let (leaves, beginning) = take(site, plans).await?;
        Ok((Self { leaves, beginning, now: site.now(), losses, notes }, running))
    }

    /// The most series that one selector has, and whether some of them are histograms.
    pub(super) fn widest(&self) -> (usize, bool) {
        let metrics = || self.leaves.iter().flat_map(|leaf| &leaf.metrics);
        (metrics().map(|(m, _)| m.series()).max().unwrap_or(0), metrics().any(|(m, _)| m.metric == Metric::Durations))
    }

    /// How many rows at most are read for selectors at these instants.
    pub(super) fn rows(&self, at: &[Vec<Timestamp>]) -> u64 {
        let of = |(leaf, at): (&Prepared, &Vec<Timestamp>)| -> u64 {
            let rows = |(m, grouped): &(OfMetric, Grouped)| {
                let mut windows: Vec<TimeRange> = at.iter().map(|t| window(leaf.over, m.metric, grouped, *t, self.beginning)).collect();
                windows.dedup();
                if leaf.over == Over::Last && m.metric != Metric::Latency {
                    // One goes on where the one before ended.
                    windows = windows.first().zip(windows.last()).map(|(first, last)| TimeRange { from: first.from, to: last.to }).into_iter().collect();
                }
                windows.into_iter().map(|w| grouped.rows(w)).sum::<u64>()
            };
            leaf.metrics.iter().map(rows).sum()
        };
        self.leaves.iter().zip(at).map(of).sum()
    }

    /// Begins to read.
    pub(super) fn begin<'a>(&'a self, reading: Reading, is_late: &'a (dyn Fn() -> bool + Sync)) -> Answering<'a> {
        Answering { selected: self, reading, is_late, notes: self.notes.clone(), incomplete: Vec::new() }
    }
}

fn is_named(leaf: &Leaf, metric: Metric) -> bool {
    leaf.matchers.iter().filter(|m| m.name == NAME).all(|m| m.is_match(metric.name()))
}

/// What has a past is named by one name alone; with any other selector the rest of what there is may be meant.
fn is_past(leaf: &Leaf) -> bool {
    leaf.matchers.iter().any(|m| m.name == NAME && m.op == MatchOp::Equal) && Metric::ALL.into_iter().any(|metric| is_named(leaf, metric))
}

/// What a selector means: how much of each metric, and what has no past.
type Plan = (Over, Vec<OfMetric>, Vec<(Labels, f64)>);

fn plan(leaf: &Leaf, catalogue: &Catalogue, current: &Current, notes: &mut BTreeSet<String>) -> Result<Plan, Failure> {
    let named = Metric::ALL.into_iter().filter(|metric| is_named(leaf, *metric));
    let metrics: Vec<OfMetric> = named.map(|metric| OfMetric::new(metric, leaf, catalogue)).filter(|m| m.series() > 0).collect();
    let series: usize = metrics.iter().map(OfMetric::series).sum();
    if series > SERIES_MAX {
        let message = format!("a selector has {series} series, and the limit is {SERIES_MAX}: narrow it by labels, or sum its rate by fewer");
        return Err(Failure::execution(message));
    }
    let has_past = Metric::ALL.into_iter().any(|metric| is_named(leaf, metric));
    Ok((leaf.over, metrics, current.matching(leaf, has_past, notes)))
}

/// Takes what answers all selectors. With many endpoints it is a few looks, between which nothing went from one place to another.
async fn take(site: &Site, mut plans: Vec<Plan>) -> Result<(Vec<Prepared>, Option<Timestamp>), Failure> {
    let asked: Vec<Arc<Vec<(EndpointId, u32)>>> = plans.iter_mut().flat_map(|p| &mut p.1).map(|m| Arc::new(std::mem::take(&mut m.members))).collect();
    let later: Vec<(usize, Wanted)> = asked
        .iter()
        .enumerate()
        .flat_map(|(n, members)| members.chunks(OPEN_ENDPOINTS_MAX).map(move |ids| (n, Wanted::These(ids.iter().map(|(id, _)| *id).collect()))))
        .collect();
    let later = Arc::new(later);
    for _ in 0..10 {
        let (asked, parts) = (asked.clone(), Arc::clone(&later));
        let (mut taken, begun) = site
            .look(move |scene| {
                let mut taken: Vec<Grouped> = asked.iter().map(|members| Grouped::new(scene.kept, scene.index, members)).collect();
                // Small questions are answered by one look.
                for (n, wanted) in parts.iter().filter(|_| parts.len() == asked.len()) {
                    taken[*n].add_open(&scene.machine.open, wanted);
                }
                (taken, moment(scene))
            })
            .await?;
        let mut is_whole = true;
        for n in 0..later.len() {
            if later.len() == taken.len() {
                break;
            }
            let parts = Arc::clone(&later);
            (taken, is_whole) = site
                .look(move |scene| {
                    let (which, wanted) = &parts[n];
                    taken[*which].add_open(&scene.machine.open, wanted);
                    (taken, moment(scene) == begun)
                })
                .await?;
            if !is_whole {
                break;
            }
        }
        if is_whole {
            let beginning = taken.iter().filter_map(Grouped::beginning).min();
            let mut taken = taken.into_iter();
            let prepared = |(over, metrics, current): Plan| Prepared { over, metrics: metrics.into_iter().zip(taken.by_ref()).collect(), current };
            return Ok((plans.into_iter().map(prepared).collect(), beginning));
        }
    }
    Err(super::super::stopping().into())
}

/// What is counted for a selector at an instant.
fn window(over: Over, metric: Metric, grouped: &Grouped, at: Timestamp, beginning: Option<Timestamp>) -> TimeRange {
    match over {
        Over::Increase(ms) | Over::Rate(ms) => grouped.window(at, ms),
        Over::Last if metric == Metric::Latency => grouped.window(at, LATENCY_WINDOW_MS),
        Over::Last => TimeRange { from: beginning.unwrap_or(Timestamp(0)), to: grouped.last_end(at) },
    }
}

/// Selectors as they are read.
pub(super) struct Answering<'a> {
    selected: &'a Selected,
    reading: Reading,
    is_late: &'a (dyn Fn() -> bool + Sync),
    pub(super) notes: BTreeSet<String>,
    incomplete: Vec<TimeRange>,
}

impl Past for Answering<'_> {
    fn read(&mut self, leaf: usize, at: &[Timestamp]) -> Result<Vec<Series>, Error> {
        let leaf = &self.selected.leaves[leaf];
        let mut all = Vec::new();
        for (of_metric, grouped) in &leaf.metrics {
            self.read_metric(leaf.over, of_metric, grouped, at, &mut all)?;
        }
        // Prometheus looks back for the last scrape, and here there is one: now.
        let is_near = |t: &Timestamp| (t.0 - self.selected.now.0).abs() <= LOOK_BACK_MS;
        if let Some(name) = leaf.current.first().and_then(|(labels, _)| labels.get(NAME)).filter(|_| !at.iter().all(is_near)) {
            self.notes.insert(no_history(name));
        }
        for (labels, value) in &leaf.current {
            let points = at.iter().map(|t| is_near(t).then_some(Sample::Number(*value))).collect();
            all.push(Series { labels: labels.clone(), points });
        }
        Ok(all)
    }
}

impl Answering<'_> {
    fn read_metric(&mut self, over: Over, of: &OfMetric, grouped: &Grouped, at: &[Timestamp], all: &mut Vec<Series>) -> Result<(), Error> {
        let first = all.len();
        for group in &of.groups {
            for (labels, part) in &group.parts {
                if over != Over::Last && !part.is_counter() {
                    self.notes.insert(format!("{} is no counter: it has no rate or increase", of.metric.name()));
                    return Ok(());
                }
                let mut whole = group.labels.clone();
                whole.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
                all.push(Series { labels: whole, points: vec![None; at.len()] });
            }
        }
        let series = &mut all[first..];
        let (mut before, mut growing): (Option<TimeRange>, Vec<Cell>) = (None, Vec::new());
        for (n, instant) in at.iter().enumerate() {
            let window = window(over, of.metric, grouped, *instant, self.selected.beginning);
            if self.selected.beginning.is_none_or(|beginning| window.to <= beginning) {
                continue;
            }
            if before == Some(window) {
                for one in &mut *series {
                    let last = one.points[n - 1].clone();
                    one.points[n] = last;
                }
                continue;
            }
            if (self.is_late)() {
                return Err(Error::Late);
            }
            self.note_rounding(over, of.metric, grouped, *instant, window);
            if over == Over::Last && of.metric != Metric::Latency {
                // A counter goes on from where it was.
                let from = before.map_or(window.from, |b| b.to);
                let more = self.cells(grouped, TimeRange { from, ..window }, of.metric.depth())?;
                growing.resize_with(more.len(), Cell::default);
                growing.iter_mut().zip(more).for_each(|(sum, cell)| if sum.is_empty() { *sum = cell } else { sum.merge(&cell) });
                put(series, n, of, &growing, None);
            } else {
                let cells = self.cells(grouped, window, of.metric.depth())?;
                put(series, n, of, &cells, if let Over::Rate(_) = over { Some(seconds(window)) } else { None });
            }
            before = Some(window);
        }
        Ok(())
    }

    fn cells(&mut self, grouped: &Grouped, window: TimeRange, depth: Depth) -> Result<Vec<Cell>, Error> {
        self.incomplete.extend(grouped.incomplete(&self.selected.losses, window));
        Ok(grouped.read(&mut self.reading, window, depth)?)
    }

    /// Says where other windows were counted than those that were asked for.
    fn note_rounding(&mut self, over: Over, metric: Metric, grouped: &Grouped, at: Timestamp, window: TimeRange) {
        let asked_ms = match over {
            Over::Increase(ms) | Over::Rate(ms) => ms,
            Over::Last if metric == Metric::Latency => LATENCY_WINDOW_MS,
            Over::Last => return,
        };
        let tier = grouped.tier_at(window.from);
        if window.to.0 - window.from.0 == asked_ms && (tier == Tier::Minute || at == window.to) {
            return;
        }
        let (asked, periods) = (crate::time::humanize_ms(asked_ms), tier.name());
        self.notes.insert(match tier {
            Tier::Minute => format!("a window of {asked} is not whole minutes: the nearest whole minutes were counted"),
            _ => format!("a window of {asked} was counted in whole {periods}s, the finest that are kept for its time"),
        });
    }

    /// What must be said beside the answer.
    pub(super) fn said(self) -> BTreeSet<String> {
        let incomplete = joined(self.incomplete).into_iter().map(|r| format!("history between {} and {} is lost in part", r.from, r.to));
        self.notes.into_iter().chain(incomplete).collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of years are far below 2^53")]
fn seconds(window: TimeRange) -> f64 {
    (window.to.0 - window.from.0) as f64 / 1e3
}

fn put(series: &mut [Series], n: usize, of: &OfMetric, cells: &[Cell], per_seconds: Option<f64>) {
    let mut places = series.iter_mut();
    for (group, cell) in of.groups.iter().zip(cells) {
        for (sample, series) in samples(&group.parts, cell).into_iter().zip(places.by_ref().take(group.parts.len())) {
            series.points[n] = sample.map(|sample| match (sample, per_seconds) {
                (Sample::Number(number), Some(s)) => Sample::Number(number / s),
                (Sample::Histogram(buckets), Some(s)) => Sample::Histogram(Arc::new(buckets.scaled(1.0 / s))),
                (sample, None) => sample,
            });
        }
    }
}
