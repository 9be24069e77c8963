//! What waits to be sent to one receiver: bounded in bytes, the oldest goes first when there is no room; and what became of everything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::request::Request;
use crate::time::Timestamp;

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The receiver has it.
    Written,
    /// The receiver will not have it: it is not sent again.
    Refused,
    /// It made room for a later one.
    Dropped,
    /// It is native, and the receiver takes only classic ones, which say the same more coarsely.
    LeftOut,
}

impl Fate {
    /// All.
    pub const ALL: [Self; 4] = [Self::Written, Self::Refused, Self::Dropped, Self::LeftOut];

    /// As metrics name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::LeftOut => "left_out",
        }
    }
}

/// The way to one receiver, as both sides and the metrics see it.
#[derive(Debug)]
pub struct Queue {
    /// The receiver's name.
    pub name: String,
    bytes_max: u64,
    waiting: Mutex<Waiting>,
    came: Notify,
    samples: [AtomicU64; 4],
    histograms: [AtomicU64; 4],
    sent_bytes: AtomicU64,
    missed_rounds: AtomicU64,
    answers: Mutex<BTreeMap<String, u64>>,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Arc<Request>>,
    bytes: u64,
    /// Whether the first one is on its way: it keeps its place, and is not dropped from under the sender's hands.
    first_is_sent: bool,
    is_closed: bool,
}

/// What one request takes in memory beside its body.
const REQUEST_BYTES: u64 = 128;

fn bytes_of(request: &Request) -> u64 {
    request.body.len() as u64 + REQUEST_BYTES
}

/// How a queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Requests that wait.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest of them was taken.
    pub oldest: Option<Timestamp>,
}

impl Queue {
    /// An empty one.
    #[must_use]
    pub fn new(name: String, bytes_max: u64) -> Self {
        Self {
            name,
            bytes_max,
            waiting: Mutex::default(),
            came: Notify::new(),
            samples: Default::default(),
            histograms: Default::default(),
            sent_bytes: AtomicU64::new(0),
            missed_rounds: AtomicU64::new(0),
            answers: Mutex::default(),
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one at the end, and drops the oldest until there is room again.
    pub fn push(&self, request: Request) {
        let mut waiting = self.waiting();
        waiting.bytes += bytes_of(&request);
        waiting.requests.push_back(Arc::new(request));
        self.shrink(&mut waiting, self.bytes_max);
        drop(waiting);
        self.came.notify_one();
    }

    /// Drops the oldest until no more than so many bytes wait.
    pub fn shrink_to(&self, bytes_max: u64) {
        self.shrink(&mut self.waiting(), bytes_max);
    }

    fn shrink(&self, waiting: &mut Waiting, bytes_max: u64) {
        let at = usize::from(waiting.first_is_sent);
        while waiting.bytes > bytes_max
            && let Some(oldest) = waiting.requests.remove(at)
        {
            waiting.bytes -= bytes_of(&oldest);
            self.count(Fate::Dropped, oldest.samples, oldest.histograms);
        }
    }

    /// The oldest, which keeps its place until [`Queue::done`]; `None` when none is left and none comes any more.
    pub async fn first(&self) -> Option<Arc<Request>> {
        loop {
            {
                let mut waiting = self.waiting();
                if let Some(first) = waiting.requests.front().map(Arc::clone) {
                    waiting.first_is_sent = true;
                    return Some(first);
                }
                if waiting.is_closed {
                    return None;
                }
            }
            self.came.notified().await;
        }
    }

    /// Takes the first one away: it was sent, or never will be.
    pub fn done(&self) {
        let mut waiting = self.waiting();
        if std::mem::take(&mut waiting.first_is_sent)
            && let Some(first) = waiting.requests.pop_front()
        {
            waiting.bytes -= bytes_of(&first);
        }
    }

    /// Nothing comes any more.
    pub fn close(&self) {
        self.waiting().is_closed = true;
        self.came.notify_one();
    }

    /// Counts what became of samples.
    pub fn count(&self, fate: Fate, samples: u64, histograms: u64) {
        self.samples[fate as usize].fetch_add(samples, Ordering::Relaxed);
        self.histograms[fate as usize].fetch_add(histograms, Ordering::Relaxed);
    }

    /// Counts an attempt: how it was answered, and its bytes.
    pub fn count_answer(&self, answer: &str, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match answers.get_mut(answer) {
            Some(count) => *count += 1,
            None => drop(answers.insert(answer.to_owned(), 1)),
        }
    }

    /// Counts a moment of which nothing was taken.
    pub fn count_missed_round(&self) {
        self.missed_rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// How it stands.
    #[must_use]
    pub fn length(&self) -> Length {
        let waiting = self.waiting();
        Length { requests: waiting.requests.len() as u64, bytes: waiting.bytes, oldest: waiting.requests.front().map(|r| r.taken) }
    }

    /// Samples and native histograms that ended so.
    #[must_use]
    pub fn ended(&self, fate: Fate) -> (u64, u64) {
        (self.samples[fate as usize].load(Ordering::Relaxed), self.histograms[fate as usize].load(Ordering::Relaxed))
    }

    /// Attempts by answer: the number of a status, or what went wrong.
    #[must_use]
    pub fn answers(&self) -> BTreeMap<String, u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of all attempts.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Moments of which nothing was taken.
    #[must_use]
    pub fn missed_rounds(&self) -> u64 {
        self.missed_rounds.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(taken: i64, bytes: usize) -> Request {
        Request { body: vec![0; bytes].into(), taken: Timestamp(taken), samples: 10, histograms: 1 }
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(1), future).await.ok() })
    }

    #[test]
    fn the_oldest_makes_room_but_not_the_one_that_is_sent() {
        let queue = Queue::new("r".into(), 3 * (1_000 + REQUEST_BYTES));
        for taken in 1..=3 {
            queue.push(request(taken, 1_000));
        }
        assert_eq!(queue.ended(Fate::Dropped), (0, 0));
        queue.push(request(4, 1_000));
        assert_eq!((queue.ended(Fate::Dropped), queue.length().oldest), ((10, 1), Some(Timestamp(2))));
        assert_eq!(now(queue.first()).flatten().unwrap().taken, Timestamp(2));
        queue.push(request(5, 1_000));
        assert_eq!(queue.ended(Fate::Dropped), (20, 2));
        queue.done();
        let rest: Vec<i64> = std::iter::from_fn(|| {
            let first = now(queue.first()).flatten()?;
            queue.done();
            Some(first.taken.0)
        })
        .collect();
        assert_eq!(rest, [4, 5]);
        assert_eq!(queue.length(), Length { requests: 0, bytes: 0, oldest: None });
    }

    #[test]
    fn it_waits_for_the_next_one_and_ends_when_it_is_closed_and_empty() {
        let queue = Queue::new("r".into(), 1 << 20);
        assert_eq!(now(queue.first()), None);
        queue.push(request(1, 10));
        queue.close();
        assert_eq!(now(queue.first()).flatten().map(|r| r.taken), Some(Timestamp(1)));
        // Until it is done it is the first.
        assert_eq!(now(queue.first()).flatten().map(|r| r.taken), Some(Timestamp(1)));
        queue.done();
        assert_eq!(now(queue.first()), Some(None));
    }

    #[test]
    fn memory_that_runs_out_takes_what_waits() {
        let queue = Queue::new("r".into(), 1 << 20);
        for taken in 1..=4 {
            queue.push(request(taken, 1_000));
        }
        queue.shrink_to(queue.length().bytes / 2);
        assert_eq!((queue.length().requests, queue.length().oldest, queue.ended(Fate::Dropped)), (2, Some(Timestamp(3)), (20, 2)));
        queue.shrink_to(0);
        assert_eq!(queue.length().requests, 0);
    }
}
