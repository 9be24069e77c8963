//! `POST /api/v1/timings`: from the bytes of a request to the answer, which waits for the disk.
//!
//! The order is who, then how large, then what: nothing is unpacked for a stranger. Unpacked bytes are counted as they come, so that 200 MB out of 6 kB costs 16 MiB, and all bodies
//! together have a limit ([`super::memory`]). What is refused for lack of room before it is read counts as one timing; behind that each timing of it is counted.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::admission::{Admission, FUTURE_MS, PAST_MS, TimeLimits};
use super::batch_keys::{Identity, KEY_BYTES_MAX, Sender, body_hash, key_of};
use super::commit::{Answer, Door, Submission};
use super::known::KnownEndpoints;
use super::memory::{BATCHES_TO, Buffer, CRITICAL_TO, Memory, NOISY_TO, NoRoom, Reservation};
use super::waiting::{NoPlace, Place, Reading, Waiting};
use super::{Batch, Fate, Fates, binary, json};
use crate::endpoint::PathTemplates;
use crate::time::Timestamp;

/// How long a body may take to arrive.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// The window that every zstd decoder is expected to support.
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// Timings refused before they reached the log; added to the counters with the next frame.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; 7]);

impl Refusals {
    fn add(&self, fate: Fate, count: u64) {
        self.0[fate as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.0.iter().any(|n| n.load(Ordering::Relaxed) > 0)
    }

    /// Puts back what was taken out and could not be written.
    pub fn put_back(&self, fates: &Fates) {
        for (total, count) in self.0.iter().zip(fates) {
            total.fetch_add(*count, Ordering::Relaxed);
        }
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
    /// The endpoints that have a number.
    pub known: Arc<KnownEndpoints>,
    /// The server's clock.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// A body after unpacking, in bytes.
    pub body_bytes_max: usize,
    /// Whether the disk is nearly full.
    pub disk_full: Arc<AtomicBool>,
    /// What was refused at the door.
    pub refusals: Arc<Refusals>,
    /// What all bodies and batches together may take.
    pub memory: Arc<Memory>,
    /// The places of the queue, shared among senders.
    pub waiting: Arc<Waiting>,
}

/// Who calls, as far as the connection and its token tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// The scope of the token; it separates idempotency keys.
    pub scope: &'static str,
    /// Which token, by its place in the configuration.
    pub token: Option<usize>,
    /// From where.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// The name under which its batches wait.
    fn name(&self, sender: Option<&Sender>) -> String {
        match (sender, self.token, self.address) {
            (Some(sender), _, _) => format!("sender {}", sender.id),
            (None, Some(token), _) => format!("token {token}"),
            (None, None, Some(address)) => format!("address {address}"),
            (None, None, None) => String::new(),
        }
    }
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

    /// One to be tried again.
    #[must_use]
    pub fn later(status: StatusCode, code: &'static str, message: &str, seconds: u64) -> Self {
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

/// The answer to a batch.
#[derive(Serialize)]
struct Counted {
    accepted: u64,
    rejected: u64,
    errors: Vec<LineError>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

#[derive(Serialize)]
struct LineError {
    index: usize,
    reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Ndjson,
    Binary,
}

impl Ingest {
    /// Answers a request whose sender may send.
    ///
    /// # Errors
    /// [`Refusal`]: nothing of it was applied.
    pub async fn handle(&self, headers: &HeaderMap, caller: Caller, body: Body) -> Result<Response, Refusal> {
        // A body that is not even read counts as one timing.
        let unread = |refusal: &Refusal| {
            let fate = if refusal.status == StatusCode::SERVICE_UNAVAILABLE { Fate::Shed } else { Fate::Malformed };
            self.refusals.add(fate, 1);
        };
        let format = format_of(headers).inspect_err(unread)?;
        if self.disk_full.load(Ordering::Relaxed) {
            self.refusals.add(Fate::Shed, 1);
            return Err(disk_full());
        }
        let sender = sender_of(headers).inspect_err(unread)?;
        let key = key_header(headers).inspect_err(unread)?;
        let reading = self.waiting.begin(&caller.name(sender.as_ref()), (self.now)());
        // One body of each sender is read as long as there is room at all: what is critical is not known before.
        let up_to = if reading.is_alone_or_critical() { CRITICAL_TO } else { NOISY_TO };
        let packed = self.receive(body, Reservation::new(&self.memory, up_to)).await.inspect_err(unread)?;
        let bytes = unpack(headers, packed, self.bytes_max(), || Reservation::new(&self.memory, up_to)).inspect_err(unread)?;
        let (batch, room) = self.read(format, bytes.bytes(), Reservation::new(&self.memory, up_to))?;
        let identity = match (key, sender) {
            (Some(key), _) => Identity::Key(key_of(caller.scope, &key)),
            (None, Some(sender)) => Identity::Sender(sender),
            (None, None) => Identity::None,
        };
        let body = if identity == Identity::None { 0 } else { body_hash(bytes.bytes()) };
        drop(bytes);
        let place = self.admit(&batch, &reading)?;
        self.commit(batch, identity, body, (place, room)).await
    }

    /// A body after unpacking, in bytes: one that never fits is not to be tried again.
    fn bytes_max(&self) -> usize {
        usize::try_from(self.memory.body_bytes_max()).map_or(self.body_bytes_max, |fits| self.body_bytes_max.min(fits))
    }

    /// Reads the body. What is too much is still read to its end, and not kept, so that the peer gets its answer.
    async fn receive(&self, body: Body, room: Reservation) -> Result<Buffer, Refusal> {
        let mut buffer = Buffer::new(room, self.bytes_max()).expecting(body.size_hint().lower());
        let mut has_room = true;
        let all = async {
            let mut body = Limited::new(body, self.bytes_max());
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                if has_room && buffer.push_piece(data).is_err() {
                    has_room = false;
                    buffer.clear();
                }
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        };
        match tokio::time::timeout(BODY_WAIT, all).await {
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive within 30 s: nothing of it was applied")),
            Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large(self.bytes_max())),
            Ok(Err(e)) => Err(cut_off(&e.to_string())),
            Ok(Ok(())) if has_room => Ok(buffer),
            Ok(Ok(())) => Err(no_room(NoRoom)),
        }
    }

    fn read(&self, format: Format, bytes: &[u8], room: Reservation) -> Result<(Batch, Reservation), Refusal> {
        let limits = TimeLimits { now: (self.now)(), past_ms: PAST_MS, future_ms: FUTURE_MS };
        let mut admission = Admission::new(&self.templates, &self.known, limits).within(room);
        match format {
            Format::Json => json::read_array(bytes, &mut admission).map_err(|e| {
                self.refusals.add(Fate::Malformed, 1);
                Refusal::new(StatusCode::BAD_REQUEST, "malformed", format!("the body is not a JSON array or object: {e}; nothing of it was applied"))
            })?,
            Format::Ndjson => json::read_ndjson(bytes, &mut admission),
            Format::Binary => binary::read(bytes, &mut admission).map_err(|e| {
                self.refusals.add(Fate::Malformed, 1);
                let (status, code) = match e {
                    binary::Refused::TooMany(..) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
                    _ => (StatusCode::BAD_REQUEST, "malformed"),
                };
                Refusal::new(status, code, format!("the body is not a batch of timings in protobuf: {e}; nothing of it was applied"))
            })?,
        }
        let room = admission.take_room();
        let batch = admission.finish();
        match room {
            Ok(Some(room)) => Ok((batch, room)),
            Ok(None) => Err(no_room(NoRoom)),
            Err(without_room) => {
                self.refusals.add(Fate::Shed, batch.timings().saturating_add(without_room));
                Err(no_room(NoRoom))
            }
        }
    }

    /// Finds a place for a batch: by how full the memory is, and by what its sender has waiting. A heartbeat needs none.
    fn admit(&self, batch: &Batch, reading: &Reading) -> Result<Option<Place>, Refusal> {
        if batch.is_heartbeat() {
            return Ok(None);
        }
        let shed = |refusal: Refusal| {
            self.refusals.add(Fate::Shed, batch.timings());
            refusal
        };
        let full = self.memory.per_mille();
        if full >= NOISY_TO {
            let critical = self.known.is_critical(batch);
            reading.set_critical(critical);
            let has_room = if critical { full <= CRITICAL_TO } else { full < BATCHES_TO && !reading.is_noisy() };
            if !has_room {
                return Err(shed(no_room(NoRoom)));
            }
        }
        reading.place().map(Some).map_err(|refused| {
            shed(match refused {
                NoPlace::Full => queue_full(),
                NoPlace::OverShare => Refusal::later(
                    StatusCode::TOO_MANY_REQUESTS,
                    "over_share",
                    "this sender has its share of the batches that wait to be written: send this one again",
                    1,
                ),
            })
        })
    }

    async fn commit(&self, mut batch: Batch, identity: Identity, body: u64, held: (Option<Place>, Reservation)) -> Result<Response, Refusal> {
        let (accepted, rejected) = (batch.accepted, batch.rejected);
        let errors = std::mem::take(&mut batch.errors).into_iter().map(|(index, reason)| LineError { index, reason }).collect();
        let timings = batch.timings();
        if let (Identity::Sender(sender), false) = (&identity, batch.in_flight.is_empty()) {
            batch.sender.clone_from(&sender.id);
        }
        let (reply, answer) = oneshot::channel();
        if let Err(back) = self.door.submit(Submission { batch, identity, body, held: Some(held), reply }) {
            self.refusals.add(Fate::Shed, back.batch.timings());
            return Err(queue_full());
        }
        let answer = answer.await.map_err(|_| Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server stops: send this batch again", 1))?;
        let body = match answer {
            Answer::Committed => Counted { accepted, rejected, errors, duplicate: false },
            Answer::Duplicate(first) => {
                let again = rejected;
                let (accepted, rejected) = first.unwrap_or((accepted, rejected));
                // The same bytes are read again to the same errors; they are left out where a line has become too old since.
                let errors = if rejected == again { errors } else { Vec::new() };
                Counted { accepted, rejected, errors, duplicate: true }
            }
            Answer::OtherBody => {
                return Err(Refusal::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "other_body",
                    "this key or sequence was used before with another body: nothing of this one was applied",
                ));
            }
            Answer::NoRoom => {
                self.refusals.add(Fate::Shed, timings);
                return Err(disk_full());
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

fn disk_full() -> Refusal {
    let message = "the disk is full or nearly so: nothing more is taken until there is room";
    Refusal::later(StatusCode::INSUFFICIENT_STORAGE, "disk_full", message, 30)
}

fn format_of(headers: &HeaderMap) -> Result<Format, Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let media_type = given.split(';').next().unwrap_or("").trim();
    let known = [("application/json", Format::Json), ("application/x-ndjson", Format::Ndjson), ("application/x-protobuf", Format::Binary)];
    known.into_iter().find(|(name, _)| media_type.eq_ignore_ascii_case(name)).map(|(_, format)| format).ok_or_else(|| {
        Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_type",
            format!("the content type is `{given}`, expected application/json, application/x-ndjson or application/x-protobuf"),
        )
    })
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

fn queue_full() -> Refusal {
    Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many batches wait to be written: send this one again", 1)
}

fn no_room(NoRoom: NoRoom) -> Refusal {
    Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "the limit of memory is reached: send this batch again", 2)
}

fn cut_off(cause: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "cut_off", format!("the body could not be read to its end: {cause}; nothing of it was applied"))
}

fn unpack(headers: &HeaderMap, packed: Buffer, bytes_max: usize, room: impl Fn() -> Reservation) -> Result<Buffer, Refusal> {
    let encoding = headers.get(header::CONTENT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("identity").trim().to_ascii_lowercase();
    let broken = |e: String| Refusal::new(StatusCode::BAD_REQUEST, "encoding", format!("the body is not {encoding}: {e}; nothing of it was applied"));
    let mut out = Buffer::new(room(), bytes_max);
    match encoding.as_str() {
        "identity" | "" => return Ok(packed),
        "gzip" => read_to_end(flate2::read::MultiGzDecoder::new(packed.bytes()), &mut out, &broken)?,
        "zstd" => unpack_zstd(packed.bytes(), &mut out, bytes_max, room(), broken)?,
        other => return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding", format!("the content encoding is `{other}`, expected gzip or zstd"))),
    }
    if out.is_over() { Err(too_large(bytes_max)) } else { Ok(out) }
}

/// Bytes that are unpacked at a time.
const UNPACK_BYTES: usize = 16 << 10;

/// Reads until the end, or until there is more than the buffer takes.
fn read_to_end(mut from: impl Read, out: &mut Buffer, broken: &impl Fn(String) -> Refusal) -> Result<(), Refusal> {
    let mut some = vec![0; UNPACK_BYTES];
    loop {
        let read = match from.read(&mut some) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.map_err(|e| broken(e.to_string()))?,
        };
        out.push(&some[..read]).map_err(no_room)?;
        if read == 0 || out.is_over() {
            return Ok(());
        }
    }
}

/// Frames one after the other. A decoder holds a whole window before it hands on the first byte, so the window is looked at first.
fn unpack_zstd(mut packed: &[u8], out: &mut Buffer, bytes_max: usize, mut window: Reservation, broken: impl Fn(String) -> Refusal) -> Result<(), Refusal> {
    let mut decoder = ruzstd::decoding::FrameDecoder::new();
    loop {
        let window_bytes = match zstd_window(packed) {
            Window::Contents(bytes) if bytes > bytes_max as u64 => return Err(too_large(bytes_max)),
            Window::Bytes(bytes) if bytes > ZSTD_WINDOW_MAX => {
                return Err(broken(format!("a frame wants a window of {bytes} bytes, expected at most {ZSTD_WINDOW_MAX}")));
            }
            Window::Contents(bytes) | Window::Bytes(bytes) => bytes,
        };
        window.grow(window_bytes.saturating_sub(window.bytes())).map_err(no_room)?;
        let frame = ruzstd::decoding::StreamingDecoder::new_with_decoder(&mut packed, &mut decoder).map_err(|e| broken(e.to_string()))?;
        read_to_end(frame, out, &broken)?;
        if out.is_over() {
            return Ok(());
        }
        if decoder.get_checksum_from_data().is_some_and(|sum| Some(sum) != decoder.get_calculated_checksum()) {
            return Err(broken("a checksum is wrong".to_owned()));
        }
        if packed.is_empty() {
            return Ok(());
        }
    }
}

/// What a zstd frame's head asks to be held in memory.
#[derive(Debug, PartialEq, Eq)]
enum Window {
    Bytes(u64),
    /// A frame in one piece: all of its contents, this long.
    Contents(u64),
}

/// Reads the head of a frame; one that is cut off wants nothing.
fn zstd_window(frame: &[u8]) -> Window {
    let Some(&descriptor) = frame.get(4) else { return Window::Bytes(0) };
    if descriptor & 0x20 == 0 {
        let window = frame.get(5).copied().unwrap_or(0);
        let base = 1_u64 << (10 + (window >> 3));
        return Window::Bytes(base + (base >> 3) * u64::from(window & 7));
    }
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = 1 << (descriptor >> 6);
    let mut size = [0; 8];
    if let Some(given) = frame.get(5 + dictionary_bytes..5 + dictionary_bytes + size_bytes) {
        size[..size_bytes].copy_from_slice(given);
    }
    Window::Contents(u64::from_le_bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_read_from_the_head_of_a_frame() {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        for (rest, window) in [
            (vec![0x00, 0x58], Window::Bytes(2 << 20)),
            (vec![0x04, 0x89], Window::Bytes((128 << 20) + (16 << 20))),
            (vec![0x20, 7], Window::Contents(7)),
            (vec![0xa0, 0, 0, 0, 0x10], Window::Contents(256 << 20)),
            (vec![0x23, 1, 2, 3, 4, 9], Window::Contents(9)),
            (vec![], Window::Bytes(0)),
        ] {
            assert_eq!(zstd_window(&[&magic[..], &rest].concat()), window, "{rest:x?}");
        }
    }
}
