//! The task that brings batches to Slowburn: collects at each flush, sends one batch at a time in order, waits after a failure,
//! says good-bye. It alone owns the queue. Requests never wait for it, and it never waits for the server to collect.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use crate::backoff::{Backoff, parse_retry_after};
use crate::batch::{Lines, Origin, encode, encode_in_flight};
use crate::in_flight::group;
use crate::queue::Queue;
use crate::record::Recorder;
use crate::sender::Sender;
use crate::transport::{Answer, Error, Post, Transport};

/// An attempt that takes longer has failed.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A shutdown takes no longer.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// A batch is ended at this size, so that little is lost when one must go.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Each interval is longer or shorter by up to this part, so that processes do not fall into step.
const JITTER: f64 = 0.1;

/// What a shutdown could not deliver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsent {
    /// Timings that were still in memory when the time was up.
    pub timings: u64,
}

/// Who asks for the end, and is told how it went.
pub(crate) type Farewell = oneshot::Sender<Unsent>;

/// What the task shows of itself.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) queued_bytes: AtomicUsize,
    pub(crate) queued_batches: AtomicUsize,
    pub(crate) sent_batches: AtomicU64,
}

/// The task's state.
pub(crate) struct Courier<T> {
    recorder: Arc<Recorder>,
    transport: Arc<T>,
    sender: Sender,
    origin: Origin,
    queue: Queue,
    batch_bytes_max: usize,
    flush_every: Duration,
    backoff: Backoff,
    retry_at: Instant,
    trouble: Option<Trouble>,
    /// Timings that are neither with the recorder nor yet in the queue.
    encoding_timings: u64,
    gauges: Arc<Gauges>,
    rng: fastrand::Rng,
}

type Attempt = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// On disk over there, perhaps but for some items that were refused.
    Delivered { refused: Option<Trouble> },
    /// May work later.
    Again { trouble: Trouble, asked: Option<Duration> },
    /// Will never work: the batch goes.
    Refused { trouble: Trouble },
}

/// Why it does not go well. Logged when it changes, not when it repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    NotConnected,
    Broken,
    NoAnswer,
    Status(u16),
    ItemsRefused,
}

impl<T: Transport> Courier<T> {
    pub(crate) fn new(recorder: Arc<Recorder>, transport: T, sender: Sender, origin: Origin, limits: (usize, Duration), gauges: Arc<Gauges>) -> Self {
        let (queue_bytes_limit, flush_every) = limits;
        Self {
            retry_at: recorder.clock.now(),
            recorder,
            transport: Arc::new(transport),
            sender,
            origin,
            queue: Queue::new(queue_bytes_limit),
            batch_bytes_max: BATCH_BYTES_MAX.min(queue_bytes_limit / 8),
            flush_every,
            backoff: Backoff::default(),
            trouble: None,
            encoding_timings: 0,
            gauges,
            rng: fastrand::Rng::new(),
        }
    }

    /// Runs until someone asks for the end, or nobody is left who could.
    pub(crate) async fn run(mut self, mut farewells: mpsc::Receiver<Farewell>) {
        let mut attempt: Option<Attempt> = None;
        let mut flush_at = self.now() + self.flush_every.mul_f64(self.rng.f64());
        loop {
            if attempt.is_none() && self.now() >= self.retry_at {
                attempt = self.begin_attempt();
            }
            let backing_off = attempt.is_none() && !self.queue.is_empty();
            let verdict = async {
                match attempt.as_mut() {
                    Some(attempt) => attempt.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                farewell = farewells.recv() => {
                    farewells.close();
                    let unsent = self.farewell(attempt).await;
                    let mut asking = farewell;
                    while let Some(reply) = asking {
                        // Who no longer waits for it needs no answer.
                        reply.send(unsent).ok();
                        asking = farewells.try_recv().ok();
                    }
                    return;
                }
                verdict = verdict => {
                    attempt = None;
                    self.settle(verdict);
                }
                () = sleep_until(flush_at) => {
                    self.collect(true).await;
                    if self.queue.is_empty() {
                        self.push(Lines::default());
                    }
                    flush_at = self.now() + self.flush_every.mul_f64(1.0 + JITTER * (2.0 * self.rng.f64() - 1.0));
                }
                () = self.recorder.wake.notified() => self.collect(false).await,
                () = sleep_until(self.retry_at), if backing_off => {}
            }
        }
    }

    /// Sends what there is, without waiting after a failure, for as long as a shutdown may take.
    async fn farewell(&mut self, mut attempt: Option<Attempt>) -> Unsent {
        let deadline = self.now() + FAREWELL_TIMEOUT;
        let sending = async {
            self.collect(true).await;
            loop {
                let Some(current) = attempt.take().or_else(|| self.begin_attempt()) else {
                    return;
                };
                let verdict = current.await;
                let again = matches!(verdict, Verdict::Again { .. });
                self.settle(verdict);
                if again {
                    return;
                }
            }
        };
        // Whether the time was up shows in what is left.
        drop(timeout_at(deadline, sending).await);
        let running_out: u64 = self.recorder.drain(true).iter().map(|counts| counts.timings).sum();
        let unsent = Unsent { timings: self.queue.timings() + self.encoding_timings + running_out };
        if unsent.timings > 0 {
            warn!(timings = unsent.timings, "shut down with timings unsent");
        }
        unsent
    }

    /// Turns counts into batches. Encoding is done beside the runtime, which may have requests to serve.
    async fn collect(&mut self, all: bool) {
        self.recorder.clock.follow_wall();
        let counts = self.recorder.drain(all);
        if counts.is_empty() {
            return;
        }
        self.encoding_timings = counts.iter().map(|counts| counts.timings).sum();
        let (origin, names, bytes_max) = (self.origin.clone(), self.recorder.routes.names(), self.batch_bytes_max);
        let encoding = tokio::task::spawn_blocking(move || encode(counts, &origin, &names, bytes_max));
        if let Ok(batches) = encoding.await {
            for lines in batches {
                self.push(lines);
            }
        } else {
            self.recorder.drop_timings(self.encoding_timings);
        }
        self.encoding_timings = 0;
    }

    fn push(&mut self, lines: Lines) {
        let dropped = self.queue.push(lines);
        self.recorder.drop_timings(dropped);
        self.show();
    }

    fn begin_attempt(&mut self) -> Option<Attempt> {
        let now = self.now();
        let (recorder, origin) = (&self.recorder, &self.origin);
        let batch = self.queue.begin_attempt(|| {
            let groups = group(recorder.running(), now);
            encode_in_flight(&groups, origin, &recorder.routes.names())
        })?;
        self.show();
        let dropped = self.recorder.dropped.load(Ordering::Relaxed);
        let sender = self.sender.header(batch.seq, dropped, self.recorder.clock.uptime(now));
        let post = if batch.body.is_empty() {
            Post { sender, content_type: "application/json", body: "[]".into() }
        } else {
            Post { sender, content_type: "application/x-ndjson", body: batch.body }
        };
        let (transport, recorder) = (Arc::clone(&self.transport), Arc::clone(&self.recorder));
        Some(Box::pin(async move {
            match timeout(ATTEMPT_TIMEOUT, transport.post(post)).await {
                Ok(Ok(answer)) => judge(&answer, recorder.clock.wall()),
                Ok(Err(Error::Connect(_))) => Verdict::Again { trouble: Trouble::NotConnected, asked: None },
                Ok(Err(_)) => Verdict::Again { trouble: Trouble::Broken, asked: None },
                Err(_) => Verdict::Again { trouble: Trouble::NoAnswer, asked: None },
            }
        }))
    }

    fn settle(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Delivered { refused } => {
                self.queue.remove_sent();
                self.gauges.sent_batches.fetch_add(1, Ordering::Relaxed);
                self.backoff.after_success();
                self.note(refused);
            }
            Verdict::Again { trouble, asked } => {
                self.queue.keep();
                self.wait(asked);
                self.note(Some(trouble));
            }
            Verdict::Refused { trouble } => {
                let timings = self.queue.remove_sent();
                self.recorder.drop_timings(timings);
                // The next would be refused as well: no haste.
                self.wait(None);
                self.note(Some(trouble));
            }
        }
        self.show();
    }

    fn wait(&mut self, asked: Option<Duration>) {
        let chance = self.rng.f64();
        self.retry_at = self.now() + self.backoff.after_failure(asked, chance);
    }

    fn note(&mut self, trouble: Option<Trouble>) {
        if self.trouble == trouble {
            return;
        }
        self.trouble = trouble;
        let dropped = self.recorder.dropped.load(Ordering::Relaxed);
        if let Some(trouble) = trouble {
            warn!(?trouble, queued_bytes = self.queue.bytes(), dropped, "timings do not reach Slowburn");
        } else {
            info!(dropped, "timings reach Slowburn again");
        }
    }

    fn show(&self) {
        self.gauges.queued_bytes.store(self.queue.bytes(), Ordering::Relaxed);
        self.gauges.queued_batches.store(self.queue.len(), Ordering::Relaxed);
    }

    fn now(&self) -> Instant {
        self.recorder.clock.now()
    }
}

fn judge(answer: &Answer, now: std::time::SystemTime) -> Verdict {
    let trouble = Trouble::Status(answer.status.as_u16());
    let again = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    if answer.status.is_success() {
        let said: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
        let rejected = said.and_then(|said| said.get("rejected")?.as_u64()).unwrap_or(0);
        Verdict::Delivered { refused: (rejected > 0).then_some(Trouble::ItemsRefused) }
    } else if answer.status.is_server_error() || again.contains(&answer.status) {
        let asked = answer.retry_after.as_deref().and_then(|value| parse_retry_after(value, now));
        Verdict::Again { trouble, asked }
    } else {
        Verdict::Refused { trouble }
    }
}

#[cfg(test)]
mod tests;
