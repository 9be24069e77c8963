//! `POST /api/v1/timings`: from the bytes of a request to the answer, which waits for the disk.
//!
//! The order is who, then how large, then what: nothing is unpacked for a stranger. Unpacked bytes are counted as they come, so that 200 MB out of 6 kB costs 16 MiB.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::json;
use tokio::sync::oneshot;

use super::admission::{Admission, FUTURE_MS, PAST_MS, TimeLimits};
use super::batch_keys::{Identity, KEY_BYTES_MAX, Sender, body_hash, key_of};
use super::commit::{Answer, Door, Submission};
use super::{Batch, Fate, Fates, json};
use crate::endpoint::PathTemplates;
use crate::time::Timestamp;

/// How long a body may take to arrive.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// Timings refused before they reached the log; added to the counters with the next frame.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; 7]);

impl Refusals {
    fn add(&self, fate: Fate, count: u64) {
        self.0[fate as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Takes them out.
    #[must_use]
    pub fn take(&self) -> Fates {
        std::array::from_fn(|i| self.0[i].swap(0, Ordering::Relaxed))
    }
}

/// What the handler needs.
#[derive(Clone)]
pub struct Ingest {
    /// Where batches go.
    pub door: Door,
    /// For raw paths.
    pub templates: Arc<PathTemplates>,
    /// The server's clock.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// A body after unpacking, in bytes.
    pub body_bytes_max: usize,
    /// Whether the disk is nearly full.
    pub disk_full: Arc<AtomicBool>,
    /// What was refused at the door.
    pub refusals: Arc<Refusals>,
}

/// An answer that is an error: `{"error": {"code", "message"}}`.
#[derive(Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// A fixed word for programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Seconds until it is worth trying again.
    pub retry_after_s: Option<u64>,
}

impl Refusal {
    /// One that is not to be tried again as it is.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after_s: None }
    }

    fn later(status: StatusCode, code: &'static str, message: &str, seconds: u64) -> Self {
        Self { status, code, message: message.to_owned(), retry_after_s: Some(seconds) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = axum::Json(json!({"error": {"code": self.code, "message": self.message}}));
        let mut response = (self.status, body).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Ndjson,
}

impl Ingest {
    /// Answers a request whose sender may send; `scope` names its token.
    ///
    /// # Errors
    /// [`Refusal`]: nothing of it was applied.
    pub async fn handle(&self, headers: &HeaderMap, scope: &str, body: Body) -> Result<Response, Refusal> {
        let format = format_of(headers)?;
        if self.disk_full.load(Ordering::Relaxed) {
            self.refusals.add(Fate::Shed, 1);
            return Err(Refusal::later(
                StatusCode::INSUFFICIENT_STORAGE,
                "disk_full",
                "the disk is nearly full: nothing more is taken until there is room",
                30,
            ));
        }
        let sender = sender_of(headers)?;
        let key = key_header(headers)?;
        let packed = self.receive(body).await?;
        let bytes = unpack(headers, packed, self.body_bytes_max).inspect_err(|_| self.refusals.add(Fate::Malformed, 1))?;
        let batch = self.read(format, &bytes)?;
        let identity = match (key, sender) {
            (Some(key), _) => Identity::Key(key_of(scope, &key)),
            (None, Some(sender)) => Identity::Sender(sender),
            (None, None) => Identity::None,
        };
        let body = if identity == Identity::None { 0 } else { body_hash(&bytes) };
        self.commit(batch, identity, body).await
    }

    async fn receive(&self, body: Body) -> Result<Vec<u8>, Refusal> {
        let collected = tokio::time::timeout(BODY_WAIT, Limited::new(body, self.body_bytes_max).collect()).await;
        match collected {
            Err(_) => {
                self.refusals.add(Fate::Malformed, 1);
                Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive within 30 s: nothing of it was applied"))
            }
            Ok(Err(e)) => {
                self.refusals.add(Fate::Malformed, 1);
                Err(if e.downcast_ref::<LengthLimitError>().is_some() { too_large(self.body_bytes_max) } else { cut_off(&e.to_string()) })
            }
            Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        }
    }

    fn read(&self, format: Format, bytes: &[u8]) -> Result<Batch, Refusal> {
        let limits = TimeLimits { now: (self.now)(), past_ms: PAST_MS, future_ms: FUTURE_MS };
        let mut admission = Admission::new(&self.templates, limits);
        match format {
            Format::Json => json::read_array(bytes, &mut admission).map_err(|e| {
                self.refusals.add(Fate::Malformed, 1);
                Refusal::new(StatusCode::BAD_REQUEST, "malformed", format!("the body is not a JSON array or object: {e}; nothing of it was applied"))
            })?,
            Format::Ndjson => json::read_ndjson(bytes, &mut admission),
        }
        Ok(admission.batch)
    }

    async fn commit(&self, batch: Batch, identity: Identity, body: u64) -> Result<Response, Refusal> {
        let (accepted, rejected) = (batch.accepted, batch.rejected);
        let errors: Vec<_> = batch.errors.iter().map(|(index, reason)| json!({"index": index, "reason": reason})).collect();
        let (reply, answer) = oneshot::channel();
        if let Err(back) = self.door.submit(Submission { batch, identity, body, reply }) {
            self.refusals.add(Fate::Shed, back.batch.timings());
            return Err(Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many batches wait to be written: send this one again", 1));
        }
        let answer = answer.await.map_err(|_| Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server stops: send this batch again", 1))?;
        let body = match answer {
            Answer::Committed => json!({"accepted": accepted, "rejected": rejected, "errors": errors}),
            Answer::Duplicate(first) => {
                let (accepted, rejected) = first.unwrap_or((accepted, rejected));
                json!({"accepted": accepted, "rejected": rejected, "errors": [], "duplicate": true})
            }
            Answer::OtherBody => {
                return Err(Refusal::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "other_body",
                    "this key or sequence was used before with another body: nothing of this one was applied",
                ));
            }
            Answer::KeysFull => {
                return Err(Refusal::later(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "keys_full",
                    "the limit of idempotency keys is reached: name the sender instead (Slowburn-Sender)",
                    60,
                ));
            }
        };
        Ok(axum::Json(body).into_response())
    }
}

fn format_of(headers: &HeaderMap) -> Result<Format, Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    match given.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
        "application/json" => Ok(Format::Json),
        "application/x-ndjson" => Ok(Format::Ndjson),
        _ => Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_type",
            format!("the content type is `{given}`, expected application/json or application/x-ndjson"),
        )),
    }
}

fn text_header(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Refusal> {
    let bad = |_| Refusal::new(StatusCode::BAD_REQUEST, "header", format!("{name} is not plain text"));
    headers.get(name).map(|v| v.to_str().map(str::to_owned).map_err(bad)).transpose()
}

fn sender_of(headers: &HeaderMap) -> Result<Option<Sender>, Refusal> {
    let header = text_header(headers, "slowburn-sender")?;
    header.map(|h| Sender::parse(&h).map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, "sender", e))).transpose()
}

fn key_header(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    match text_header(headers, "idempotency-key")? {
        Some(key) if key.is_empty() || key.len() > KEY_BYTES_MAX => {
            Err(Refusal::new(StatusCode::BAD_REQUEST, "idempotency_key", format!("Idempotency-Key has {} bytes, expected 1 to {KEY_BYTES_MAX}", key.len())))
        }
        key => Ok(key),
    }
}

fn too_large(bytes_max: usize) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", format!("the body is over {bytes_max} bytes unpacked: send smaller batches"))
}

fn cut_off(cause: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "cut_off", format!("the body could not be read to its end: {cause}; nothing of it was applied"))
}

fn unpack(headers: &HeaderMap, packed: Vec<u8>, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    let encoding = headers.get(header::CONTENT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("identity").trim().to_ascii_lowercase();
    let broken = |e: String| Refusal::new(StatusCode::BAD_REQUEST, "encoding", format!("the body is not {encoding}: {e}; nothing of it was applied"));
    let reader: Box<dyn Read> = match encoding.as_str() {
        "identity" | "" => return Ok(packed),
        "gzip" => Box::new(flate2::read::MultiGzDecoder::new(packed.as_slice())),
        "zstd" => Box::new(ruzstd::decoding::StreamingDecoder::new(packed.as_slice()).map_err(|e| broken(e.to_string()))?),
        other => return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding", format!("the content encoding is `{other}`, expected gzip or zstd"))),
    };
    let mut out = Vec::new();
    reader.take(bytes_max as u64 + 1).read_to_end(&mut out).map_err(|e| broken(e.to_string()))?;
    if out.len() > bytes_max { Err(too_large(bytes_max)) } else { Ok(out) }
}
