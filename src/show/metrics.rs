//! Metrics for Prometheus, in the format that it asks for. `/metrics`: Slowburn itself, objectives, incidents, critical endpoints, and the busiest others up to a limit that says when it
//! cuts. `/metrics/endpoints`: all endpoints, or those that the query names.
//!
//! Families are built from the state at each scrape, but for what only decisions change (`exposition/decided.rs`); nothing is counted twice to be shown. Counters come from what is on disk, so they do not fall over a restart;
//! what is counted in memory only is a gauge named `slowburn_process_*`. Endpoints are taken a thousand at a time, so that no look holds up commits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::exposition::decided::Decided;
use super::exposition::exemplar::fits;
use super::exposition::format::{Format, wants_gzip};
use super::exposition::protobuf::NativeFields;
use super::exposition::{Detail, Exported, PACKER_BYTES, Page};
use super::family::{Family, float, label};
use super::owed::{counted_for_objectives, of_incidents, of_objectives};
use super::queries::Running;
use super::question::{Query, Question, ids_of};
use super::remote_write::of_queues;
use super::{Scene, Site};
use crate::counting::Cell;
use crate::endpoint::{EndpointId, EndpointKey};
use crate::history::catalogue::{Entry, Marked};
use crate::history::closed_periods::Wanted;
use crate::history::exemplars::Exemplars;
use crate::history::totals::Sums;
use crate::incident::{DeliveryResult, Marker};
use crate::ingest::Fate;
use crate::ingest::http::Refusal;
use crate::judge::Promises;
use crate::notify::outbox::LaneStatus;

/// Endpoints on one page of `/metrics/endpoints`.
pub(super) const PAGE_ENDPOINTS_MAX: usize = 200_000;

/// Endpoints that one look takes: about a tenth of a millisecond.
const LOOK_ENDPOINTS_MAX: usize = 1_000;

/// Critical endpoints, with their histograms, that one look takes.
const LOOK_CRITICAL_MAX: usize = 25;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new().route("/metrics", get(metrics)).route("/metrics/endpoints", get(endpoints))
}

/// What scrapers asked for since the process started, and what they share.
#[derive(Debug, Default)]
pub struct Scrapes {
    /// By format.
    answered: [AtomicU64; 3],
    decided: Decided,
}

impl Scrapes {
    fn count(&self, format: Format) {
        self.answered[format as usize].fetch_add(1, Ordering::Relaxed);
    }
}

async fn metrics(State(site): State<Arc<Site>>, headers: HeaderMap) -> Result<Response, Refusal> {
    let format = Format::wanted(&headers);
    site.scrapes.count(format);
    let (families, decided) = first_of_page(&site, format).await?;
    let (families, endpoints, _) = of_endpoints(&site, families, site.exported_endpoints_max, format.native()).await?;
    // It is small: whoever reads it knows how long it is.
    Ok(answer(format, &headers, Page::new(format, &families, endpoints).with(decided), |page| Body::from(page.into_bytes())))
}

/// What stands before the endpoints on a page: families of this moment, and what is written once for each evaluation.
async fn first_of_page(site: &Site, format: Format) -> Result<(Vec<Family>, Bytes), Refusal> {
    let (lanes, work, load, scrapes) = (site.source.lanes(), site.source.work(), load(site), Arc::clone(&site.scrapes));
    let (families, at, kept, anew) = site
        .look(move |scene| {
            let at = scene.machine.decided();
            let kept = scrapes.decided.get(format, at);
            let anew = if kept.is_some() { Vec::new() } else { decided(scene) };
            (of_moment(scene, &lanes, work, load), at, kept, anew)
        })
        .await?;
    let decided = kept.unwrap_or_else(|| site.scrapes.decided.write(format, at, &anew));
    Ok((families, decided))
}

/// What is exported at a moment.
pub(super) struct Taken {
    pub(super) families: Vec<Family>,
    /// By number.
    pub(super) endpoints: Vec<Exported>,
    /// The number of the next endpoint that comes.
    pub(super) next_id: EndpointId,
}

/// Slowburn itself, objectives, incidents, critical endpoints and the busiest others up to so many.
pub(super) async fn taken(site: &Site, endpoints_max: usize, native: Option<NativeFields>) -> Result<Taken, Refusal> {
    let first = without_endpoints(site).await?;
    let (families, endpoints, next_id) = of_endpoints(site, first, endpoints_max, native).await?;
    Ok(Taken { families, endpoints, next_id })
}

/// Critical endpoints and the busiest others, up to so many; and the number of the next endpoint that comes.
async fn of_endpoints(
    site: &Site,
    first: Vec<Family>,
    endpoints_max: usize,
    native: Option<NativeFields>,
) -> Result<(Vec<Family>, Vec<Exported>, EndpointId), Refusal> {
    let next_id = site.look(|scene| scene.machine.catalogue.next_id()).await?;
    let (all, critical) = exported(site, &Question::default()).await?;
    let (chosen, left_out) = busiest(all, &critical, endpoints_max);
    let (families, endpoints) = detailed(site, native, first, chosen, left_out, critical, None).await?;
    Ok((families, endpoints, next_id))
}

/// What stands before the endpoints: Slowburn itself, objectives, incidents, markers.
pub(super) async fn without_endpoints(site: &Site) -> Result<Vec<Family>, Refusal> {
    let (lanes, work, load) = (site.source.lanes(), site.source.work(), load(site));
    site.look(move |scene| of_moment(scene, &lanes, work, load).into_iter().chain(decided(scene)).collect()).await
}

/// What changes by itself, or with every batch.
fn of_moment(scene: &Scene<'_>, lanes: &[LaneStatus], work: [u64; 5], load: Vec<Family>) -> Vec<Family> {
    own(scene, lanes, work).into_iter().chain(load).chain(counted_for_objectives(scene)).collect()
}

/// What changes with decisions only.
fn decided(scene: &Scene<'_>) -> Vec<Family> {
    of_objectives(scene).into_iter().chain(of_incidents(scene)).chain([markers(scene)]).collect()
}

async fn endpoints(State(site): State<Arc<Site>>, headers: HeaderMap, Query(question): Query<Question>) -> Result<Response, Refusal> {
    let mut running = site.queries.begin().await?;
    let format = Format::wanted(&headers);
    site.scrapes.count(format);
    let (mut all, critical) = exported(&site, &question).await?;
    site.queries.grow(&mut running, PACKER_BYTES + (size_of::<Exported>() * all.len()) as u64 + all.iter().map(Exported::bytes).sum::<u64>())?;
    let left_out = all.len().saturating_sub(PAGE_ENDPOINTS_MAX);
    all.truncate(PAGE_ENDPOINTS_MAX);
    let (families, all) = detailed(&site, format.native(), Vec::new(), all, left_out, critical, Some(&mut running)).await?;
    let page = Page::new(format, &families, all);
    // Its place is for others while it is sent, its memory is not.
    Ok(answer(format, &headers, page.holding(running.room), Body::new))
}

fn answer(format: Format, asked: &HeaderMap, page: Page, body: impl FnOnce(Page) -> Body) -> Response {
    let packed = wants_gzip(asked);
    let mut response = body(if packed { page.packed() } else { page }).into_response();
    let mut say = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
    say(header::CONTENT_TYPE, format.content_type());
    say(header::VARY, "Accept, Accept-Encoding");
    if packed {
        say(header::CONTENT_ENCODING, "gzip");
    }
    response
}

/// The endpoints that are asked for, without details; and which of them are critical.
async fn exported(site: &Site, question: &Question) -> Result<(Vec<Exported>, Vec<EndpointId>), Refusal> {
    let wanted = question.chosen(site).await?;
    let (promises, ids, exemplars) =
        site.look(move |scene| (scene.machine.judge.promises().clone(), ids_of(&wanted, scene), scene.machine.exemplars.clone())).await?;
    let (mut all, mut critical) = (Vec::with_capacity(ids.len()), Vec::new());
    for ids in ids.chunks(LOOK_ENDPOINTS_MAX) {
        let ids = ids.to_vec();
        let some = site
            .look(move |scene| {
                let machine = scene.machine;
                let entries = ids.into_iter().filter_map(|id| machine.catalogue.entry(id).map(|entry| (id, entry)));
                let export = |(id, entry): (EndpointId, &Entry)| {
                    let endpoint = Exported { id, key: Arc::clone(&entry.key), total: machine.total_of(id), detail: None, exemplars: Box::default() };
                    (endpoint, entry.marked)
                };
                entries.map(export).collect::<Vec<_>>()
            })
            .await?;
        for (endpoint, marked) in some {
            if is_critical(&promises, &endpoint.key, marked) {
                critical.push(endpoint.id);
            }
            all.push(endpoint);
        }
    }
    put_exemplars(&mut all, &exemplars);
    Ok((all, critical))
}

/// Adds what is recent of the exemplars, in the order of their time.
fn put_exemplars(endpoints: &mut [Exported], exemplars: &Exemplars) {
    let (Some(first), Some(last)) = (endpoints.first().map(|e| e.id), endpoints.last().map(|e| e.id)) else { return };
    let mut recent: Vec<_> = exemplars.of(first..=last, exemplars.recent()).filter(|(_, e)| fits(e)).collect();
    recent.sort_by_key(|(id, e)| (*id, e.ts));
    for of_one in recent.chunk_by(|a, b| a.0 == b.0) {
        if let Ok(at) = endpoints.binary_search_by_key(&of_one[0].0, |e| e.id) {
            endpoints[at].exemplars = of_one.iter().map(|(_, e)| (*e).clone()).collect();
        }
    }
}

fn is_critical(promises: &Promises, key: &EndpointKey, marked: Marked) -> bool {
    marked == Marked::Critical || promises.is_critical(key)
}

/// Critical endpoints, then those with the most requests, by number; and how many were left out.
fn busiest(mut all: Vec<Exported>, critical: &[EndpointId], limit: usize) -> (Vec<Exported>, usize) {
    let limit = limit.max(critical.len());
    let left_out = all.len().saturating_sub(limit);
    if left_out > 0 {
        all.sort_by_cached_key(|e| (critical.binary_search(&e.id).is_err(), u64::MAX - e.requests(), e.id));
        all.truncate(limit);
        all.sort_unstable_by_key(|e| e.id);
    }
    (all, left_out)
}

/// With what critical endpoints have beside, and a family that says how many endpoints were left out.
async fn detailed(
    site: &Site,
    native: Option<NativeFields>,
    mut families: Vec<Family>,
    mut endpoints: Vec<Exported>,
    left_out: usize,
    critical: Vec<EndpointId>,
    mut running: Option<&mut Running>,
) -> Result<(Vec<Family>, Vec<Exported>), Refusal> {
    let mut truncated =
        Family::gauge("slowburn_export_truncated_endpoints", "Endpoints that are not on this page, because the limit of exported endpoints is reached.");
    truncated.add(vec![], float(left_out as u64));
    families.push(truncated);
    for ids in critical.chunks(LOOK_CRITICAL_MAX) {
        let ids = ids.to_vec();
        let details = site.look(move |scene| details(scene, ids, native)).await?;
        if let Some(running) = &mut running {
            site.queries.grow(running, details.iter().map(|(_, _, detail)| detail.bytes()).sum())?;
        }
        for (id, total, detail) in details {
            if let Ok(at) = endpoints.binary_search_by_key(&id, |e| e.id) {
                // Of one moment, so that no bucket holds more than all.
                (endpoints[at].total, endpoints[at].detail) = (total, Some(Box::new(detail)));
            }
        }
    }
    Ok((families, endpoints))
}

fn details(scene: &Scene<'_>, ids: Vec<EndpointId>, native: Option<NativeFields>) -> Vec<(EndpointId, Sums, Detail)> {
    let mut recent: HashMap<EndpointId, Cell> = HashMap::new();
    let wanted = Wanted::These(ids);
    scene.machine.visit_recent(&wanted, |id, cell| recent.entry(id).or_default().merge(cell));
    let Wanted::These(ids) = wanted else { return Vec::new() };
    let nothing = Cell::default();
    let of = |id: EndpointId| recent.get(&id).unwrap_or(&nothing);
    let detail = |id: EndpointId| Some((id, scene.machine.total_of(id), Detail::new(scene.machine.cell_of(id)?, of(id), native)));
    ids.into_iter().filter_map(detail).collect()
}

fn own(scene: &Scene<'_>, lanes: &[LaneStatus], work: [u64; 5]) -> Vec<Family> {
    let machine = scene.machine;
    let mut build = Family::gauge("slowburn_build_info", "The version that runs; always 1.");
    build.add(vec![label("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let mut timings = Family::counter("slowburn_ingest_timings_total", "Timings received, each with exactly one outcome.");
    for fate in Fate::ALL {
        timings.add(vec![label("outcome", fate.name())], float(machine.fates[fate as usize]));
    }
    let mut sent = Family::counter("slowburn_notifications_total", "Notifications that ended, by receiver and result.");
    // From 0 on: of a series that begins at 1 Prometheus sees no increase.
    let receivers = machine.judge.promises().receivers.iter().flat_map(|r| DeliveryResult::ALL.map(|result| ((r.name.as_str(), result.name()), 0)));
    let mut delivered: BTreeMap<(&str, &str), u64> = receivers.collect();
    delivered.extend(machine.delivered.iter().map(|((receiver, result), count)| ((receiver.as_str(), *result), *count)));
    for ((receiver, result), count) in delivered {
        sent.add(vec![label("receiver", receiver), label("result", result)], float(count));
    }
    let mut waiting = Family::gauge("slowburn_notifications_waiting", "Notifications that are owed and not delivered yet.");
    waiting.add(vec![], float(machine.judge.outbox().len() as u64));
    let mut attempts = Family::gauge("slowburn_process_delivery_attempts", "Attempts at deliveries since the process started or was reconfigured.");
    let mut failures = Family::gauge("slowburn_process_delivery_failures", "Failed attempts at deliveries since the process started or was reconfigured.");
    let mut by_receiver: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for lane in lanes {
        let sum = by_receiver.entry(&lane.receiver).or_default();
        *sum = (sum.0 + lane.attempts, sum.1 + lane.failures);
    }
    for (receiver, (tried, failed)) in by_receiver.into_iter().filter(|(receiver, _)| !receiver.is_empty()) {
        attempts.add(vec![label("receiver", receiver)], float(tried));
        failures.add(vec![label("receiver", receiver)], float(failed));
    }
    let mut endpoints = Family::gauge("slowburn_endpoints", "Endpoints in the catalogue.");
    endpoints.add(vec![], float(machine.catalogue.entries().len() as u64));
    let mut judged = Family::gauge("slowburn_judged_timestamp_seconds", "The end of the last slot that was judged.");
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a date are far below 2^53")]
    judged.add(vec![], machine.judge.judged_to().map_or(0.0, |s| s.end().0 as f64 / 1000.0));
    let mut families = vec![build, timings, sent, waiting, attempts, failures, endpoints, judged];
    let [commits, commit_us, judge_us, snapshots, traces_shed] = work;
    for (name, help, value) in [
        ("slowburn_process_commits", "Writes to the log since the process started.", float(commits)),
        ("slowburn_process_commit_seconds", "Time spent writing and syncing the log since the process started.", float(commit_us) / 1e6),
        ("slowburn_process_judge_seconds", "Time spent judging since the process started.", float(judge_us) / 1e6),
        ("slowburn_process_snapshots", "Snapshots written since the process started.", float(snapshots)),
        ("slowburn_process_exemplar_bytes", "Memory that exemplars take: the slowest timings with a trace.", float(machine.exemplars.bytes())),
        (
            "slowburn_process_exemplars_left_out",
            "Exemplars not kept, or not for six hours, for lack of room since the process started.",
            float(machine.exemplars.left_out()),
        ),
        ("slowburn_process_traces_shed", "Traces of timings not kept since the process started, because memory was nearly full.", float(traces_shed)),
    ] {
        let mut family = Family::gauge(name, help);
        family.add(vec![], value);
        families.push(family);
    }
    for (name, help, value) in [
        ("slowburn_log_frames_total", "Frames written to the log.", machine.position.0),
        ("slowburn_in_flight_reports_total", "Reports of requests in flight.", machine.in_flight_reports),
        ("slowburn_sender_dropped_timings_total", "Timings that senders dropped before they could send them.", machine.keys.dropped()),
        ("slowburn_sender_conflicts_total", "Signs that two processes use one sender's name.", machine.keys.conflicts()),
    ] {
        let mut family = Family::counter(name, help);
        family.add(vec![], float(value));
        families.push(family);
    }
    families
}

/// How full it is, and what was refused for it.
fn load(site: &Site) -> Vec<Family> {
    let memory = site.memory();
    let free = site.source.free_bytes().map(|bytes| ("slowburn_disk_free_bytes", "Room on the disk of the data directory.", bytes));
    let disk_full = site.ingest.disk_full.load(Ordering::Relaxed);
    let mut started = Family::gauge("process_start_time_seconds", "When the process began.");
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a date are far below 2^53")]
    started.add(vec![], site.started_at.0 as f64 / 1000.0);
    let always = [
        ("slowburn_process_memory_ceiling_bytes", "Memory that the process may have.", memory.ceiling()),
        ("slowburn_process_memory_used_bytes", "Memory that the process had at the last look, and what was asked for since.", memory.used()),
        ("slowburn_process_memory_passing_bytes", "Memory asked for by bodies, batches and queries; a quarter of the ceiling at most.", memory.reserved()),
        ("slowburn_process_batches_waiting", "Batches that wait to be written.", site.ingest.waiting.len() as u64),
        ("slowburn_process_queries_refused", "Queries refused for lack of room since the process started.", site.queries.refused()),
        ("slowburn_disk_free_min_bytes", "With less room than this on the disk timings are answered 507.", site.free_bytes_min),
        ("slowburn_disk_full", "1 while timings are answered 507 for lack of room.", u64::from(disk_full)),
    ];
    always
        .into_iter()
        .chain(free)
        .map(|(name, help, value)| {
            let mut family = Family::gauge(name, help);
            family.add(vec![], float(value));
            family
        })
        .chain(of_queues(site.remotes.iter().map(Arc::as_ref), site.now()))
        .chain(of_scrapes(&site.scrapes))
        .chain([started])
        .collect()
}

fn of_scrapes(scrapes: &Scrapes) -> [Family; 2] {
    let mut answered = Family::gauge("slowburn_process_scrapes", "Pages of metrics that were asked for since the process started, by format.");
    for format in Format::ALL {
        answered.add(vec![label("format", format.name())], float(scrapes.answered[format as usize].load(Ordering::Relaxed)));
    }
    let help =
        "How often what follows from decisions alone was written for a page of metrics since the process started, and how often what was written was shared.";
    let mut parts = Family::gauge("slowburn_process_decided_parts", help);
    for (result, count) in ["written", "shared"].into_iter().zip(scrapes.decided.counts()) {
        parts.add(vec![label("result", result)], float(count));
    }
    [answered, parts]
}

/// The latest marker of each service, so that a dashboard can draw where something changed.
fn markers(scene: &Scene<'_>) -> Family {
    let mut marked =
        Family::gauge("slowburn_marker_timestamp_seconds", "When the latest marker of a service was set; its title and version are in the labels.");
    // The state is as good without them.
    let latest: BTreeMap<String, Marker> = scene.index.markers().unwrap_or_default().into_iter().fold(BTreeMap::new(), |mut latest, marker| {
        match latest.get(&marker.service) {
            Some(known) if known.ts > marker.ts => {}
            _ => drop(latest.insert(marker.service.clone(), marker)),
        }
        latest
    });
    for marker in latest.into_values() {
        let labels = vec![label("service", &marker.service), label("title", &marker.title), label("version", &marker.version)];
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a date are far below 2^53")]
        marked.add(labels, marker.ts.0 as f64 / 1000.0);
    }
    marked
}
