//! The JSON API under `/api/v1`. Its description is `openapi.json` beside this file; a test holds the two together.

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

use super::guard::Identified;
use super::question::{Query, Question, bad, ids_of};
use super::{Scene, Site};
use crate::counting::Cell;
use crate::endpoint::EndpointId;
use crate::histogram::quantile::Quantile;
use crate::history::closed_periods::Wanted;
use crate::history::exemplars::{Exemplar, Exemplars};
use crate::history::losses;
use crate::history::query::{self, Taken};
use crate::history::sum::Sum;
use crate::history::totals::Sums;
use crate::incident::{Class, Kind, Marker, Silence, SlowestTrace, derived_id};
use crate::ingest::http::Refusal;
use crate::judge::{self, Command, ObjectiveState, Record};
use crate::log::Position;
use crate::time::{Slot, TimeRange, Timestamp, parse_duration_us};
use crate::works::presence::Heard;

/// The description of the API.
pub const OPENAPI_JSON: &str = include_str!("openapi.json");

/// The paths served, for the test that compares them with the description.
pub const PATHS: &[&str] = &[
    "/api/v1/timings",
    "/api/v1/endpoints",
    "/api/v1/quantiles",
    "/api/v1/counts",
    "/api/v1/objectives",
    "/api/v1/incidents",
    "/api/v1/incidents/{id}",
    "/api/v1/incidents/{id}/ack",
    "/api/v1/silences",
    "/api/v1/silences/{id}",
    "/api/v1/markers",
    "/api/v1/senders",
    "/api/v1/openapi.json",
];

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/timings", post(timings))
        .route("/api/v1/endpoints", get(endpoints))
        .route("/api/v1/quantiles", get(quantiles))
        .route("/api/v1/counts", get(counts))
        .route("/api/v1/objectives", get(objectives))
        .route("/api/v1/incidents", get(incidents))
        .route("/api/v1/incidents/{id}", get(incident))
        .route("/api/v1/incidents/{id}/ack", post(ack))
        .route("/api/v1/silences", get(silences).post(silence).delete(unsilence_by_query))
        .route("/api/v1/silences/{id}", delete(unsilence))
        .route("/api/v1/markers", get(markers).post(mark))
        .route("/api/v1/senders", get(senders))
        .route("/api/v1/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI_JSON)))
}

pub(super) async fn method_not_allowed() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this path does not take this method; see /api/v1/openapi.json")
}

/// The part of the path that is open; likewise.
#[derive(Debug)]
struct Path(String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|p| Self(p.0)).map_err(|e| bad(e.body_text()))
    }
}

pub(super) async fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is nothing under this path; see /api/v1/openapi.json")
}

fn broken(error: &dyn std::error::Error) -> Refusal {
    tracing::error!(%error, "a query failed");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "storage", error.to_string())
}

async fn timings(State(site): State<Arc<Site>>, Extension(identified): Extension<Identified>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    site.ingest.handle(&headers, identified.0, body).await
}

/// Endpoints whose open slots one look takes: a look must not hold up commits.
const OPEN_ENDPOINTS_MAX: usize = 400;

/// Endpoints that one look lists.
const LISTED_ENDPOINTS_MAX: usize = 500;

/// What stays the same as long as no slot is closed and no minute goes from memory to history.
fn moment(scene: &Scene<'_>) -> (Option<Slot>, Position) {
    (scene.machine.judge.judged_to(), scene.kept.named_to)
}

/// Takes what answers the question at one moment. With very many endpoints it is a few moments, between which nothing went from one place to another.
async fn taken(site: &Site, question: &Question, range: TimeRange) -> Result<Taken, Refusal> {
    let wanted = question.chosen(site).await?;
    for _ in 0..10 {
        let wanted = wanted.clone();
        let (mut taken, ids, begun) = site
            .look(move |scene| {
                let ids = ids_of(&wanted, scene);
                let mut taken = query::take(scene.kept, scene.index, wanted);
                let (now, later) = ids.split_at(ids.len().min(OPEN_ENDPOINTS_MAX));
                taken.add_open(&scene.machine.open, &Wanted::These(now.to_vec()), range);
                (taken, later.to_vec(), moment(scene))
            })
            .await?;
        let mut is_whole = true;
        for ids in ids.chunks(OPEN_ENDPOINTS_MAX) {
            let wanted = Wanted::These(ids.to_vec());
            (taken, is_whole) = site
                .look(move |scene| {
                    taken.add_open(&scene.machine.open, &wanted, range);
                    (taken, moment(scene) == begun)
                })
                .await?;
            if !is_whole {
                break;
            }
        }
        if is_whole {
            return Ok(taken);
        }
    }
    Err(super::stopping())
}

/// An answer, with where it lacks what a repair could not bring back.
fn with_incomplete(mut answer: Value, incomplete: &[TimeRange]) -> Value {
    if !incomplete.is_empty() {
        answer["incomplete"] = incomplete.iter().map(|r| json!({"from": r.from, "to": r.to})).collect();
    }
    answer
}

/// Where anything at all is missing for good, for answers about all that ever was.
async fn ever_incomplete(site: &Site) -> Result<Vec<TimeRange>, Refusal> {
    let reader = site.reader.clone();
    let losses = tokio::task::spawn_blocking(move || reader.losses()).await.map_err(|e| broken(&e))?.map_err(|e| broken(&e))?;
    Ok(losses::joined(losses.iter().map(|l| TimeRange { from: l.from, to: l.to }).collect()))
}

/// What is told of each stretch, and where something is missing.
async fn answers<T: Send + 'static>(
    site: &Site,
    question: &Question,
    stretches: Vec<TimeRange>,
    sum: Sum,
    mut tell: impl FnMut(TimeRange, &Cell) -> Option<T> + Send + 'static,
) -> Result<(Vec<T>, Vec<TimeRange>), Refusal> {
    let (Some(first), Some(last)) = (stretches.first(), stretches.last()) else { return Ok(Default::default()) };
    let running = site.queries.begin().await?;
    let taken = taken(site, question, TimeRange { from: first.from, to: last.to }).await?;
    let reader = site.reader.clone();
    let read = tokio::task::spawn_blocking(move || {
        // It runs to its end, also when whoever asked has gone.
        let _running = running;
        let (losses, mut told, mut incomplete) = (reader.losses()?, Vec::new(), Vec::new());
        taken.read(&reader, &stretches, sum, |range, cell| {
            told.extend(tell(range, cell));
            incomplete.extend(taken.incomplete(&losses, range));
        })?;
        Ok::<_, query::Error>((told, losses::joined(incomplete)))
    });
    read.await.map_err(|e| broken(&e))?.map_err(|e| broken(&e))
}

#[expect(clippy::cast_precision_loss, reason = "7 days in microseconds is far below 2^53")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

async fn quantiles(State(site): State<Arc<Site>>, Query(question): Query<Question>) -> Result<Json<Value>, Refusal> {
    let asked: Vec<(String, Quantile)> = question
        .q
        .as_deref()
        .unwrap_or("0.5,0.95,0.99")
        .split(',')
        .map(|text| Quantile::parse(text).map(|q| (text.to_owned(), q)).map_err(bad))
        .collect::<Result<_, _>>()?;
    let only = match question.outcome.as_deref() {
        None | Some("") => None,
        Some("ok") => Some(false),
        Some("failed") => Some(true),
        Some(other) => return Err(bad(format!("outcome: `{other}` is neither ok nor failed"))),
    };
    let stretches = question.stretches(site.now())?;
    let (points, incomplete): (Vec<Value>, _) = answers(&site, &question, stretches, Sum::without_thresholds(), move |range, cell| {
        if cell.is_empty() {
            return None;
        }
        let mut histogram = if only == Some(true) { cell.failed.clone() } else { cell.passed.clone() };
        if only.is_none() {
            histogram.merge(&cell.failed);
        }
        let values: serde_json::Map<String, Value> =
            asked.iter().filter_map(|(text, q)| histogram.quantile_us(*q).map(|us| (text.clone(), json!(seconds(us))))).collect();
        Some(json!({"from": range.from, "to": range.to, "count": histogram.count(), "failures": cell.failures().weight, "values": values}))
    })
    .await?;
    Ok(Json(with_incomplete(json!({"points": points}), &incomplete)))
}

async fn counts(State(site): State<Arc<Site>>, Query(question): Query<Question>) -> Result<Json<Value>, Refusal> {
    let text = question.threshold.as_deref().ok_or_else(|| bad("threshold: expected a duration such as 137ms"))?;
    let threshold_us = parse_duration_us(text).map_err(|e| bad(format!("threshold: {e}")))?;
    let range = question.range(site.now())?;
    let wanted = question.chosen(&site).await?;
    let configured = site
        .look(move |scene| {
            let mut chosen = ids_of(&wanted, scene).into_iter().peekable();
            let promises = scene.machine.judge.promises();
            let counted = |id: EndpointId| scene.machine.catalogue.entry(id).is_some_and(|e| promises.counting_of(&e.key).0.contains(&threshold_us));
            chosen.peek().is_some() && chosen.all(counted)
        })
        .await?;
    let counts = answers(&site, &question, vec![range], Sum::default(), move |range, cell| {
        let count = cell.at_threshold(threshold_us);
        let (good, unsure, total) = (count.within.weight, count.unsure.weight, cell.total().weight);
        Some(if configured && unsure == 0 {
            json!({"from": range.from, "to": range.to, "good": good, "total": total})
        } else {
            json!({"from": range.from, "to": range.to, "good_low": good, "good_high": good + unsure, "total": total})
        })
    });
    let (mut counts, incomplete) = counts.await?;
    Ok(Json(with_incomplete(counts.pop().unwrap_or_default(), &incomplete)))
}

async fn endpoints(State(site): State<Arc<Site>>, Query(question): Query<Question>) -> Result<Json<Value>, Refusal> {
    let mut running = site.queries.begin().await?;
    let wanted = question.chosen(&site).await?;
    let (ids, exemplars) = site.look(move |scene| (ids_of(&wanted, scene), scene.machine.exemplars.clone())).await?;
    site.queries.grow(&mut running, LISTED_BYTES * ids.len() as u64)?;
    let mut list: Vec<Value> = Vec::with_capacity(ids.len());
    for ids in ids.chunks(LISTED_ENDPOINTS_MAX) {
        let ids = ids.to_vec();
        let some = site.look(move |scene| ids.into_iter().filter_map(|id| Some((id, listed(scene, id)?))).collect::<Vec<_>>()).await?;
        list.extend(some.into_iter().map(|(id, endpoint)| with_traces(endpoint, id, &exemplars)));
    }
    Ok(Json(with_incomplete(json!({"endpoints": list}), &ever_incomplete(&site).await?)))
}

/// What an endpoint in a list is taken to need.
const LISTED_BYTES: u64 = 1_500;

fn listed(scene: &Scene<'_>, id: EndpointId) -> Option<Value> {
    let machine = scene.machine;
    let entry = machine.catalogue.entry(id)?;
    let Sums { outcomes, .. } = machine.total_of(id);
    let [_, _, errors, timeouts] = outcomes;
    Some(json!({
        "service": entry.key.service, "env": entry.key.env, "kind": entry.key.kind, "method": entry.key.method, "route": entry.key.route,
        "critical": machine.is_critical(entry), "state": state_of(machine, id),
        "requests": outcomes.into_iter().fold(0, u64::saturating_add), "failures": errors.saturating_add(timeouts),
    }))
}

/// An endpoint with its slowest requests of the last minutes that carried a trace: one that went well, one that failed; the slower first.
fn with_traces(mut endpoint: Value, id: EndpointId, exemplars: &Exemplars) -> Value {
    let recent = || exemplars.of(id..=id, exemplars.minutes()).map(|(_, e)| e);
    let slowest = |failed: bool| recent().filter(|e| e.outcome.is_failure() == failed).reduce(Exemplar::slower);
    let mut traces: Vec<&Exemplar> = [false, true].into_iter().filter_map(slowest).collect();
    traces.sort_by_key(|e| std::cmp::Reverse(e.us));
    if !traces.is_empty() {
        endpoint["slowest_traces"] = traces.into_iter().map(|e| json!(SlowestTrace::new(&e.trace_id, e.us, e.ts, e.outcome))).collect();
    }
    endpoint
}

fn state_of(machine: &crate::machine::Machine, id: EndpointId) -> &'static str {
    let mut states: Vec<ObjectiveState> = machine.judge.objectives_of(id).map(|o| o.state).collect();
    states.sort_by_key(|s| match s {
        ObjectiveState::Burning => 0,
        ObjectiveState::Unverified => 1,
        ObjectiveState::Undecided => 2,
        ObjectiveState::NoTraffic => 3,
        ObjectiveState::Ok => 4,
    });
    let changes: Vec<Kind> = machine.catalogue.entry(id).into_iter().flat_map(|entry| machine.judge.changes_of(&entry.key)).collect();
    let has = |class: Class| changes.iter().any(|kind| kind.class() == class);
    let Some(judged_to) = machine.judge.judged_to() else { return "unknown" };
    let heard = machine.catalogue.entry(id).map(|e| machine.presence.heard(&(e.key.service.clone(), e.key.env.clone()), judged_to.end()));
    match states.first() {
        _ if heard == Some(Heard::Unknown) => "unknown",
        Some(ObjectiveState::Burning) => "burning",
        _ if heard == Some(Heard::Dark) => "dark",
        Some(ObjectiveState::Unverified) => "burning",
        _ if has(Class::Traffic) || has(Class::Flow) => "starved",
        _ if changes.contains(&Kind::Creep) => "creeping",
        _ if has(Class::Latency) => "stepped",
        Some(ObjectiveState::Undecided) => "undecided",
        Some(ObjectiveState::NoTraffic) => "quiet",
        Some(ObjectiveState::Ok) | None => "ok",
    }
}

async fn objectives(State(site): State<Arc<Site>>, Query(question): Query<Question>) -> Result<Json<Value>, Refusal> {
    let chosen = question.chosen(&site).await?;
    let list = site.look(move |scene| scene.machine.judge.objectives().filter(|o| chosen.contains(o.endpoint)).collect::<Vec<_>>()).await?;
    Ok(Json(with_incomplete(json!({"objectives": list}), &ever_incomplete(&site).await?)))
}

async fn incidents(State(site): State<Arc<Site>>, Query(question): Query<Question>) -> Result<Json<Value>, Refusal> {
    let store = site.look(|scene| scene.index.clone()).await?;
    let all = tokio::task::spawn_blocking(move || store.incidents()).await.map_err(|e| broken(&e))?.map_err(|e| broken(&e))?;
    let wanted = |i: &&crate::incident::Incident| {
        let may = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        may(&question.service, &i.service) && may(&question.route, &i.route) && may(&question.method, &i.method) && may(&question.env, &i.env)
    };
    Ok(Json(json!({"incidents": all.iter().filter(wanted).collect::<Vec<_>>()})))
}

async fn incident(State(site): State<Arc<Site>>, Path(id): Path) -> Result<Response, Refusal> {
    let wanted = id.clone();
    let found = site.look(move |scene| scene.index.incident(&wanted)).await?.map_err(|e| broken(&e))?;
    found.map(|i| Json(i).into_response()).ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "not_found", format!("no incident has the id {id}")))
}

async fn decide(site: &Site, command: Command) -> Result<Record, Refusal> {
    site.source.decide(command).await?.map_err(|e| {
        let status = if matches!(e, judge::Refusal::TooManySilences) { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::NOT_FOUND };
        Refusal::new(status, "refused", e.to_string())
    })
}

fn read<T: DeserializeOwned>(body: Result<Json<Value>, JsonRejection>) -> Result<T, Refusal> {
    body.map_err(|e| Refusal::new(e.status(), "bad_request", e.body_text())).and_then(|Json(value)| object(value))
}

/// A struct can also be read from an array, by position: a body must not be.
fn object<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    if !value.is_object() {
        return Err(bad("the body is not an object"));
    }
    serde_json::from_value(value).map_err(|e| bad(e.to_string()))
}

#[derive(Debug, Default, Deserialize)]
struct AckBody {
    #[serde(default)]
    by: String,
}

async fn ack(State(site): State<Arc<Site>>, Path(id): Path, body: Result<Bytes, BytesRejection>) -> Result<Json<Value>, Refusal> {
    let body = body.map_err(|e| Refusal::new(e.status(), "bad_request", e.body_text()))?;
    let AckBody { by } = if body.is_empty() { AckBody::default() } else { serde_json::from_slice(&body).map_err(|e| bad(e.to_string())).and_then(object)? };
    crate::endpoint::check_part("by", &by, false).map_err(|e| bad(e.to_string()))?;
    decide(&site, Command::Ack { at: site.now(), incident: id.clone(), by }).await?;
    Ok(Json(json!({"id": id, "acked": true})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SilenceBody {
    service: String,
    env: Option<String>,
    method: Option<String>,
    route: Option<String>,
    from: Option<Value>,
    until: Option<Value>,
    duration: Option<String>,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    by: String,
}

fn time_of(name: &str, value: &Value) -> Result<Timestamp, Refusal> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Timestamp::parse(&text).map_err(|e| bad(format!("{name}: {e}")))
}

async fn silence(State(site): State<Arc<Site>>, body: Result<Json<Value>, JsonRejection>) -> Result<Json<Value>, Refusal> {
    let body: SilenceBody = read(body)?;
    for (name, part) in [("env", &body.env), ("method", &body.method), ("route", &body.route)] {
        crate::endpoint::check_part(name, part.as_deref().unwrap_or(""), false).map_err(|e| bad(e.to_string()))?;
    }
    for (name, part, required) in [("service", &body.service, true), ("comment", &body.comment, false), ("by", &body.by, false)] {
        crate::endpoint::check_part(name, part, required).map_err(|e| bad(e.to_string()))?;
    }
    let now = site.now();
    let from = body.from.as_ref().map_or(Ok(now), |v| time_of("from", v))?;
    let until = match (&body.until, &body.duration) {
        (Some(until), None) => time_of("until", until)?,
        (None, Some(duration)) => {
            let us = parse_duration_us(duration).map_err(|e| bad(format!("duration: {e}")))?;
            from.plus_ms(i64::try_from(us / 1000).unwrap_or(i64::MAX))
        }
        _ => return Err(bad("expected one of `until` and `duration`: a silence ends by itself")),
    };
    if until <= from {
        return Err(bad("the silence ends before it begins"));
    }
    let optional = |o: &Option<String>| o.clone().unwrap_or_default();
    let id = derived_id(&[
        &body.service,
        &optional(&body.env),
        &optional(&body.method),
        &optional(&body.route),
        &from.0.to_string(),
        &until.0.to_string(),
        &body.comment,
    ]);
    let silence = Silence { id, service: body.service, env: body.env, method: body.method, route: body.route, from, until, comment: body.comment, by: body.by };
    decide(&site, Command::Silence(silence.clone())).await?;
    Ok(Json(json!(silence)))
}

async fn silences(State(site): State<Arc<Site>>) -> Result<Json<Value>, Refusal> {
    let all = site.look(|scene| scene.index.silences()).await?.map_err(|e| broken(&e))?;
    Ok(Json(json!({"silences": all})))
}

#[derive(Debug, Deserialize)]
struct ById {
    id: String,
}

async fn unsilence_by_query(site: State<Arc<Site>>, Query(ById { id }): Query<ById>) -> Result<Json<Value>, Refusal> {
    unsilence(site, Path(id)).await
}

async fn unsilence(State(site): State<Arc<Site>>, Path(id): Path) -> Result<Json<Value>, Refusal> {
    decide(&site, Command::Unsilence(site.now(), id.clone())).await?;
    Ok(Json(json!({"id": id, "ended": true})))
}

#[derive(Debug, Deserialize)]
struct MarkerBody {
    ts: Option<Value>,
    #[serde(default)]
    service: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    version: String,
}

async fn mark(State(site): State<Arc<Site>>, body: Result<Json<Value>, JsonRejection>) -> Result<Json<Value>, Refusal> {
    let body: MarkerBody = read(body)?;
    let ts = body.ts.as_ref().map_or(Ok(site.now()), |v| time_of("ts", v))?;
    for (name, part) in [("service", &body.service), ("title", &body.title), ("version", &body.version)] {
        crate::endpoint::check_part(name, part, false).map_err(|e| bad(e.to_string()))?;
    }
    let marker = Marker { ts, service: body.service, title: body.title, version: body.version };
    decide(&site, Command::Mark(marker.clone())).await?;
    Ok(Json(json!(marker)))
}

async fn markers(State(site): State<Arc<Site>>, Query(question): Query<Question>) -> Result<Json<Value>, Refusal> {
    let all = site.look(|scene| scene.index.markers()).await?.map_err(|e| broken(&e))?;
    let wanted = |m: &&Marker| question.service.as_deref().is_none_or(|s| s == m.service || m.service.is_empty());
    Ok(Json(json!({"markers": all.iter().filter(wanted).collect::<Vec<_>>()})))
}

async fn senders(State(site): State<Arc<Site>>) -> Result<Json<Value>, Refusal> {
    let list = site
        .look(|scene| {
            let services = |id: &str| scene.machine.presence.services_of(id).map(|(service, env)| json!({"service": service, "env": env})).collect::<Vec<_>>();
            let senders = scene.machine.keys.senders().iter();
            senders
                .map(|(id, s)| {
                    json!({"id": id, "last_seen": s.last_seen, "dropped": s.dropped, "conflicts": s.conflicts, "uptime_s": s.uptime_s, "services": services(id)})
                })
                .collect::<Vec<_>>()
        })
        .await?;
    Ok(Json(json!({"senders": list})))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_has_the_paths_that_are_served_and_no_others() {
        let description: Value = serde_json::from_str(OPENAPI_JSON).unwrap();
        let described: BTreeSet<&str> = description["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let served: BTreeSet<&str> =
            PATHS.iter().copied().chain(super::super::prometheus::PATHS).chain(["/metrics", "/metrics/endpoints", "/livez", "/readyz"]).collect();
        assert_eq!(described, served);
        // Every reference leads somewhere.
        for name in OPENAPI_JSON.split("\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(description.pointer(name).is_some(), "{name}");
        }
    }
}
