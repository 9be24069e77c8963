//! Sends what `/metrics` has to stores of metrics, by Prometheus' remote-write: for each receiver a task that takes it at an interval, and one that sends what was taken, one request
//! after the other, so that no series is ever out of order.
//!
//! Between them is a queue with a bound. A receiver that is down, slow or silent fills it and costs nothing else: the oldest goes first, and is counted. What is answered 5xx, 429 or
//! not at all is sent again, ever later, as long as it waits; any other refusal is final. What waits when the process ends is tried once more, for a few seconds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Client, Url};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::tasks::Tasks;
use crate::config::remote_write::{Histograms, Protocol, RemoteWrite};
use crate::notify::backoff::{jitter, wait_between};
use crate::notify::chain;
use crate::notify::webhook::{asked_for, client_for};
use crate::show::Site;
use crate::show::remote_write::queue::{Fate, Queue};
use crate::show::remote_write::request::Request;
use crate::show::remote_write::rewritten::as_1_0;
use crate::show::remote_write::{Missed, Rounds, queue_bytes_max};
use crate::time::Timestamp;

/// The ceilings of the first wait and of every later one: an outage ends sooner than that of a person's mail server.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What waits may be tried for so long when the process ends.
const LAST_TRY: Duration = Duration::from_secs(5);

/// The same trouble of one receiver is logged no more often.
const LOG_EVERY_MS: i64 = 60_000;

/// Of what a receiver says about a refusal.
const TEXT_BYTES_MAX: usize = 1_024;

const WRITTEN: [&str; 3] =
    ["x-prometheus-remote-write-samples-written", "x-prometheus-remote-write-histograms-written", "x-prometheus-remote-write-exemplars-written"];

/// Why nothing can be sent to a receiver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A secret is not to be had.
    #[error("{0}")]
    Secret(String),
    /// The client cannot be built.
    #[error("cannot set up the HTTP client")]
    Client(#[from] reqwest::Error),
    /// The URL is none.
    #[error("url: it is not a URL")]
    Url,
}

/// A queue for each receiver.
#[must_use]
pub fn queues(remotes: &[RemoteWrite], memory_ceiling: u64) -> Arc<[Arc<Queue>]> {
    let bytes_max = |remote: &RemoteWrite| queue_bytes_max(remote.queue_bytes, memory_ceiling, remotes.len());
    remotes.iter().map(|remote| Arc::new(Queue::new(remote.name.clone(), bytes_max(remote)))).collect()
}

/// What runs, until it is stopped.
#[derive(Debug)]
pub struct Running(watch::Sender<bool>);

impl Running {
    /// Nothing is taken any more, and what waits is tried once more.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Starts sending to all receivers.
///
/// # Errors
/// When a client cannot be built or a secret is not to be had.
pub fn start(remotes: &[RemoteWrite], site: &Site, port: u16, tasks: &Tasks) -> Result<Running, super::serve::Error> {
    let (stop, stopped) = watch::channel(false);
    let host = rustix::system::uname();
    let instance = format!("{}:{port}", host.nodename().to_string_lossy());
    for (remote, queue) in remotes.iter().zip(site.remotes.iter()) {
        let sender = Sender::new(remote, queue, site).map_err(|source| super::serve::Error::RemoteWrite { name: remote.name.clone(), source })?;
        let rounds = Rounds::new(remote, &instance);
        let every = Duration::from_millis(remote.interval_ms.unsigned_abs());
        tasks.spawn(format!("remote-write {}: take", remote.name), take(rounds, every, site.clone(), Arc::clone(queue), stopped.clone()));
        tasks.spawn(format!("remote-write {}: send", remote.name), send(sender, stopped.clone()));
    }
    Ok(Running(stop))
}

async fn take(mut rounds: Rounds, every: Duration, site: Site, queue: Arc<Queue>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            _ = ticks.tick() => {}
        }
        let taken = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            taken = rounds.take(&site, &queue) => taken,
        };
        if let Err(missed) = taken {
            queue.count_missed_round();
            log_missed(&queue, &missed);
        }
    }
    queue.close();
}

fn log_missed(queue: &Queue, missed: &Missed) {
    // Once in a row of them is enough: the rest is counted.
    if queue.missed_rounds().is_power_of_two() {
        warn!(remote = queue.name, reason = %missed, rounds = queue.missed_rounds(), "metrics were not taken for remote-write");
    }
}

async fn send(mut sender: Sender, mut stopped: watch::Receiver<bool>) {
    let queue = Arc::clone(&sender.queue);
    let mut time_is_up = stopped.clone();
    let time_is_up = async move {
        // Whoever could stop it is gone: so is the server.
        drop(time_is_up.wait_for(|stopped| *stopped).await);
        tokio::time::sleep(LAST_TRY).await;
    };
    let all = async {
        while let Some(request) = queue.first().await {
            if !sender.deliver(&request, &mut stopped).await {
                break;
            }
            queue.done();
        }
    };
    tokio::select! {
        () = all => {}
        () = time_is_up => {}
    }
    let left = queue.length();
    if left.requests > 0 {
        let since = left.oldest.map(|at| at.to_string());
        warn!(remote = queue.name, requests = left.requests, bytes = left.bytes, since, "metrics were not sent before the end and are lost");
    }
}

/// What is known of what a receiver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Unknown,
    One,
    Two,
}

struct Sender {
    queue: Arc<Queue>,
    client: Client,
    url: Url,
    remote: RemoteWrite,
    authorization: Option<HeaderValue>,
    speaks: Speaks,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    failures: u32,
    attempts: u32,
    logged_at: Option<Timestamp>,
}

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

/// What is to be done with a request that was answered.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Done,
    /// At once, otherwise.
    Again,
    /// Later, no sooner than the receiver asks.
    Later(Option<Duration>),
}

impl Sender {
    fn new(remote: &RemoteWrite, queue: &Arc<Queue>, site: &Site) -> Result<Self, Error> {
        let url: Url = remote.url.parse().map_err(|_| Error::Url)?;
        let client = client_for(&url).pool_max_idle_per_host(1).timeout(Duration::from_millis(remote.timeout_ms.unsigned_abs())).build()?;
        Ok(Self {
            queue: Arc::clone(queue),
            client,
            url,
            authorization: remote.authorization.header().map_err(Error::Secret)?,
            speaks: if remote.protocol == Protocol::One { Speaks::One } else { Speaks::Unknown },
            remote: remote.clone(),
            now: Arc::clone(&site.ingest.now),
            failures: 0,
            attempts: 0,
            logged_at: None,
        })
    }

    /// Sends one until it is done; `false` when it is not, and the end has come.
    async fn deliver(&mut self, request: &Request, stopped: &mut watch::Receiver<bool>) -> bool {
        // What is tried for this request alone, until an answer says that it was right.
        let mut as_one = self.speaks == Speaks::One;
        let mut secret_was_read = false;
        loop {
            let (body, samples, histograms) = if as_one {
                match as_1_0(request, !matches!(self.remote.histograms, Histograms::Auto | Histograms::Classic)) {
                    Ok(Some(rewritten)) => (rewritten.body, rewritten.samples, rewritten.histograms),
                    Ok(None) => {
                        self.queue.count(Fate::LeftOut, request.samples, request.histograms);
                        return true;
                    }
                    Err(error) => {
                        self.log(&format!("a request cannot be rewritten for 1.0: {error}"));
                        self.queue.count(Fate::Refused, request.samples, request.histograms);
                        return true;
                    }
                }
            } else {
                (request.body.clone(), request.samples, request.histograms)
            };
            let answer = self.attempt(body, as_one).await;
            let next = match answer {
                Ok(answer) => {
                    let next = self.judge(&answer, &mut as_one, &mut secret_was_read, [samples, histograms]);
                    if next == Next::Done && as_one {
                        self.queue.count(Fate::LeftOut, request.samples - samples, request.histograms - histograms);
                    }
                    next
                }
                Err(reason) => {
                    self.log(&reason);
                    Next::Later(None)
                }
            };
            let retry_after = match next {
                Next::Done => {
                    self.failures = 0;
                    return true;
                }
                Next::Again => continue,
                Next::Later(retry_after) => retry_after,
            };
            if *stopped.borrow() {
                return false;
            }
            self.failures = self.failures.saturating_add(1);
            let jitter = jitter(u64::from(std::process::id()), &self.queue.name, self.attempts);
            let wait = wait_between(FIRST_WAIT, LONGEST_WAIT, self.failures, jitter, retry_after);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // One more try, whatever the receiver asked for.
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        }
    }

    async fn attempt(&mut self, body: Bytes, as_one: bool) -> Result<Answer, String> {
        self.attempts = self.attempts.wrapping_add(1);
        let (content_type, version) =
            if as_one { ("application/x-protobuf", "0.1.0") } else { ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0") };
        let bytes = body.len();
        let mut request = self.client.post(self.url.clone()).body(body);
        for (name, value) in &self.remote.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request = request.header(header::CONTENT_TYPE, content_type).header(header::CONTENT_ENCODING, "snappy");
        let answer = request.header("X-Prometheus-Remote-Write-Version", version).send().await;
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => {
                self.queue.count_answer(if error.is_timeout() { "timeout" } else { "unreachable" }, bytes);
                // The URL may be a secret and is in no error.
                return Err(chain(&error.without_url()));
            }
        };
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        self.queue.count_answer(status.as_str(), bytes);
        let mut text = Vec::new();
        // What was said counts as far as it came.
        while let Ok(Some(more)) = response.chunk().await {
            text.extend_from_slice(&more);
            if text.len() > TEXT_BYTES_MAX {
                break;
            }
        }
        text.truncate(TEXT_BYTES_MAX);
        Ok(Answer { status, headers, text: String::from_utf8_lossy(&text).trim().to_owned() })
    }

    /// What an answer means; `sent` are samples and native histograms.
    fn judge(&mut self, answer: &Answer, as_one: &mut bool, secret_was_read: &mut bool, sent: [u64; 2]) -> Next {
        let written = written(&answer.headers);
        let is_auto = self.remote.protocol == Protocol::Auto;
        let status = answer.status;
        // A receiver of 1.0 that does not look at the type reads nothing in it and is content; another says 415, or 400.
        let knows_not_two = (status.is_success() && written.is_none())
            || status == StatusCode::UNSUPPORTED_MEDIA_TYPE
            || (status == StatusCode::BAD_REQUEST && written.is_none() && self.speaks == Speaks::Unknown);
        if !*as_one && knows_not_two && is_auto {
            *as_one = true;
            return Next::Again;
        }
        if status.is_success() && (*as_one || written.is_some()) {
            let spoke = if *as_one { Speaks::One } else { Speaks::Two };
            if self.speaks != spoke {
                info!(remote = self.queue.name, version = if *as_one { "1.0" } else { "2.0" }, "remote-write has begun");
            } else if self.failures > 0 {
                info!(remote = self.queue.name, "the receiver of remote-write answers again");
            }
            self.speaks = spoke;
            self.count(sent, written.filter(|_| !*as_one).unwrap_or(sent));
            return Next::Done;
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && !std::mem::replace(secret_was_read, true) {
            // A secret may have been changed since it was read.
            let read = self.remote.authorization.header().unwrap_or_else(|_| self.authorization.clone());
            if read != self.authorization {
                self.authorization = read;
                return Next::Again;
            }
        }
        let words = if answer.text.is_empty() { String::new() } else { format!(": {}", answer.text) };
        if status.is_server_error() || (status == StatusCode::TOO_MANY_REQUESTS && self.remote.retry_on_429) {
            self.log(&format!("the receiver answered {status}{words}"));
            return Next::Later(asked_for(&answer.headers, (self.now)()));
        }
        let of_two = if status.is_success() { ", but not how much it wrote, as 2.0 has it: it may know 1.0 only" } else { "" };
        self.log(&format!("the receiver answered {status}{of_two}{words}"));
        self.count(sent, written.unwrap_or_default());
        Next::Done
    }

    /// Counts what was written and what was not.
    fn count(&self, sent: [u64; 2], written: [u64; 2]) {
        let written = [sent[0].min(written[0]), sent[1].min(written[1])];
        self.queue.count(Fate::Written, written[0], written[1]);
        self.queue.count(Fate::Refused, sent[0] - written[0], sent[1] - written[1]);
    }

    fn log(&mut self, reason: &str) {
        let now = (self.now)();
        if self.logged_at.is_none_or(|at| now.0 - at.0 >= LOG_EVERY_MS) {
            self.logged_at = Some(now);
            warn!(remote = self.queue.name, reason, "remote-write fails");
        }
    }
}

/// What a receiver says it wrote: samples and native histograms; `None` when it does not say.
fn written(headers: &HeaderMap) -> Option<[u64; 2]> {
    let number = |name: &str| headers.get(name).map(|value| value.to_str().ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0));
    let [samples, histograms, exemplars] = WRITTEN.map(number);
    (samples.is_some() || histograms.is_some() || exemplars.is_some()).then(|| [samples.unwrap_or(0), histograms.unwrap_or(0)])
}
