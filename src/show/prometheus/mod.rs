//! The reading half of Prometheus' HTTP API, so that Grafana asks Slowburn's own history: `query`, `query_range`, and what a query builder wants to know. Expressions are those of
//! [`super::promql`]; errors are as Prometheus writes them.

mod current;
mod exemplars;
mod form;
mod json;
mod metric;
mod past;
mod series;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use self::form::{Form, invalid};
use self::past::Selected;
use super::Site;
use super::promql::evaluate::{Error, Joined, Run, Value, instants_of};
use super::promql::expression::{Query, parse};
use super::queries::Running;
use crate::history::closed_periods::Reader;
use crate::ingest::http::Refusal;
use crate::time::Timestamp;

/// The paths, for the test that compares them with the description.
pub(super) const PATHS: [&str; 8] = [
    "/api/v1/query",
    "/api/v1/query_range",
    "/api/v1/query_exemplars",
    "/api/v1/labels",
    "/api/v1/label/{name}/values",
    "/api/v1/series",
    "/api/v1/metadata",
    "/api/v1/status/buildinfo",
];

/// The version of the HTTP API that this is modelled on: Grafana asks for it.
const API_VERSION: &str = "2.42.0";

/// Samples that one piece of a long range may have: numbers, and histograms.
const PIECE_NUMBERS_MAX: usize = 200_000;
const PIECE_HISTOGRAMS_MAX: usize = 10_000;

/// Instants of one piece.
const PIECE_INSTANTS_MAX: usize = 256;

/// Rows of history that one question reads.
const ROWS_MAX: u64 = 20_000_000;

/// A question that reads no more rows than this is answered by one thread.
const ROWS_ALONE_MAX: u64 = 5_000;

/// An answer before it is written.
const ANSWER_BYTES_MAX: usize = 128 << 20;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/query", get(query).post(query))
        .route("/api/v1/query_range", get(query_range).post(query_range))
        .route("/api/v1/query_exemplars", get(exemplars).post(exemplars))
        .route("/api/v1/labels", get(labels).post(labels))
        .route("/api/v1/label/{name}/values", get(values))
        .route("/api/v1/series", get(series).post(series))
        .route("/api/v1/metadata", get(metadata))
        .route("/api/v1/status/buildinfo", get(buildinfo))
}

/// Whether a POST to this path only reads.
pub(super) fn is_read(path: &str) -> bool {
    PATHS.contains(&path)
}

/// What is answered, and what is said beside it.
struct Answer {
    data: String,
    notes: BTreeSet<String>,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        written(json::success(&self.data, &self.notes))
    }
}

fn written(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Why there is no answer.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    /// As Prometheus names it.
    kind: &'static str,
    message: String,
    retry_after_s: Option<u64>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), retry_after_s: None }
    }

    fn bad_data(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_data", message)
    }

    fn execution(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "execution", message)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let kind = if refusal.status == StatusCode::SERVICE_UNAVAILABLE { "unavailable" } else { "internal" };
        Self { retry_after_s: refusal.retry_after_s, ..Self::new(refusal.status, kind, refusal.message) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Execution(message) => Self::execution(message),
            Error::Late => Self::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", error.to_string()),
            Error::History(error) => broken(&error),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = axum::Json(serde_json::json!({"status": "error", "errorType": self.kind, "error": self.message}));
        let mut response = (self.status, body).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn broken(error: &dyn std::error::Error) -> Failure {
    tracing::error!(%error, "a query failed");
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
}

/// Everything that a question needs.
struct Asked {
    query: Query,
    instants: Vec<Timestamp>,
    ends: (Timestamp, Timestamp),
    selected: Selected,
    reader: Reader,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    deadline: Timestamp,
}

impl Asked {
    async fn of(site: &Site, form: &Form, instants: Vec<Timestamp>) -> Result<(Self, Running), Failure> {
        let deadline = form.deadline(site.now())?;
        let query = parse(form.required("query")?).map_err(|e| invalid("query", e))?;
        let ends = (instants[0], instants[instants.len() - 1]);
        let running = site.queries.begin().await?;
        let (selected, running) = Selected::of(site, &query.leaves, running).await?;
        Ok((Self { query, instants, ends, selected, reader: site.reader.clone(), now: Arc::clone(&site.ingest.now), deadline }, running))
    }

    /// How many rows of history at most are read; an error where that is too many.
    fn rows(&self) -> Result<u64, Failure> {
        let at: Vec<Vec<Timestamp>> = self.query.leaves.iter().map(|leaf| instants_of(leaf, self.ends, &self.instants)).collect();
        let rows = self.selected.rows(&at);
        if rows <= ROWS_MAX {
            return Ok(rows);
        }
        Err(Failure::execution(format!(
            "{rows} rows of history would be read, and the limit is {ROWS_MAX}: ask for longer steps, shorter windows or fewer endpoints"
        )))
    }

    /// The value at some of the instants, and what is said beside it.
    fn value(&self, instants: &[Timestamp]) -> Result<(Value, BTreeSet<String>), Error> {
        let is_late = || (self.now)() > self.deadline;
        let mut past = self.selected.begin(self.reader.begin(), &is_late);
        let value = Run { query: &self.query, past: &mut past, ends: self.ends, instants }.value()?;
        if is_late() {
            return Err(Error::Late);
        }
        Ok((value, past.said()))
    }

    fn pieces(&self) -> Vec<&[Timestamp]> {
        let (series, has_histograms) = self.selected.widest();
        let samples_max = if has_histograms { PIECE_HISTOGRAMS_MAX } else { PIECE_NUMBERS_MAX };
        self.instants.chunks((samples_max / series.max(1)).clamp(1, PIECE_INSTANTS_MAX)).collect()
    }

    /// The values of the whole range, piece by piece; `grow` asks for the memory that they take.
    fn values(&self, grow: &(impl Fn(usize) -> Result<(), Failure> + Sync)) -> Result<(Joined, BTreeSet<String>), Failure> {
        let (pieces, next, bytes) = (self.pieces(), AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            let (mut joined, mut notes) = (Joined::default(), BTreeSet::new());
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (value, said) = self.value(piece)?;
                notes.extend(said);
                let before = joined.bytes;
                joined.add(value, piece)?;
                let more = joined.bytes - before;
                if bytes.fetch_add(more, Ordering::Relaxed) + more > ANSWER_BYTES_MAX {
                    let limit = format!("the answer has more than {} MiB", ANSWER_BYTES_MAX >> 20);
                    return Err(Failure::execution(format!("{limit}: ask for longer steps, or sum by fewer labels")));
                }
                // Once as it is, once as text.
                grow(2 * more)?;
            }
            Ok::<_, Failure>((joined, notes))
        };
        let threads = if self.rows()? <= ROWS_ALONE_MAX { 1 } else { std::thread::available_parallelism().map_or(1, usize::from).min(2) };
        if threads < 2 || pieces.len() < 2 {
            return work();
        }
        std::thread::scope(|scope| {
            let second = scope.spawn(work);
            let first = work();
            let (mut joined, mut notes) = first?;
            let (other, said) = second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            joined.absorb(other);
            notes.extend(said);
            Ok((joined, notes))
        })
    }
}

async fn query(State(site): State<Arc<Site>>, form: Form) -> Result<Answer, Failure> {
    let at = form.time("time", site.now())?;
    let (asked, running) = Asked::of(&site, &form, vec![at]).await?;
    let answered = tokio::task::spawn_blocking(move || {
        // It runs to its end, also when whoever asked has gone.
        let _running = running;
        asked.rows()?;
        let (value, mut notes) = asked.value(&[at])?;
        notes.extend(asked.query.warnings);
        Ok::<_, Failure>(Answer { data: json::of_instant(&value, at), notes })
    });
    answered.await.map_err(|e| broken(&e))?
}

async fn query_range(State(site): State<Arc<Site>>, form: Form) -> Result<Answer, Failure> {
    let instants = form.instants()?;
    let (asked, running) = Asked::of(&site, &form, instants).await?;
    let queries = Arc::clone(&site.queries);
    let answered = tokio::task::spawn_blocking(move || {
        let running = std::sync::Mutex::new(running);
        let grow = |bytes: usize| {
            let mut running = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            queries.grow(&mut running, bytes as u64).map_err(Failure::from)
        };
        let (joined, mut notes) = asked.values(&grow)?;
        notes.extend(asked.query.warnings);
        Ok::<_, Failure>(Answer { data: json::of_range(&joined), notes })
    });
    answered.await.map_err(|e| broken(&e))?
}

/// Grafana chooses by it what to ask.
async fn buildinfo() -> Answer {
    let revision = concat!("slowburn ", env!("CARGO_PKG_VERSION"));
    let data = serde_json::json!({"version": API_VERSION, "revision": revision, "branch": "", "buildUser": "", "buildDate": "", "goVersion": ""});
    Answer { data: data.to_string(), notes: BTreeSet::new() }
}

async fn exemplars(State(site): State<Arc<Site>>, form: Form) -> Result<Answer, Failure> {
    exemplars::exemplars(&site, &form).await
}

async fn labels(State(site): State<Arc<Site>>, form: Form) -> Result<Answer, Failure> {
    series::labels(&site, &form).await
}

async fn values(State(site): State<Arc<Site>>, Path(name): Path<String>, form: Form) -> Result<Answer, Failure> {
    series::values(&site, &form, name).await
}

async fn series(State(site): State<Arc<Site>>, form: Form) -> Result<Answer, Failure> {
    series::series(&site, &form).await
}

async fn metadata(State(site): State<Arc<Site>>, form: Form) -> Result<Answer, Failure> {
    series::metadata(&site, &form).await
}
