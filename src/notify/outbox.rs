//! The lanes: one for each destination, each delivering in order until its receiver takes the notification, refuses it, or a day is over.
//!
//! A lane is one address of a mail receiver, or one webhook, so that a dead one delays no other and a resolve never overtakes its
//! page. The log remembers what is owed: lanes hold in memory what was pushed, report each end and wait until the receipt is durable
//! before they go on; what is unsent when they close is pushed again at the next start. Lanes decide nothing about whom to tell.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{BoxFuture, Failure, Target, backoff, deliver};
use crate::incident::{DeliveryResult, Notification};
use crate::log::failpoint;
use crate::time::Timestamp;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Takes the end of a notification (its id, how it ended, the last words about it) and is ready when the receipt is durable.
pub type Report = Arc<dyn Fn(String, DeliveryResult, String) -> BoxFuture<'static, ()> + Send + Sync>;

/// How a lane does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneStatus {
    /// The receiver's name; empty for the lane of receivers that the configuration does not know (any more).
    pub receiver: String,
    /// The address, for a lane that is one.
    pub recipient: String,
    /// What waits or is being sent.
    pub queued: usize,
    /// Attempts so far.
    pub attempts: u64,
    /// Failed ones among them.
    pub failures: u64,
    /// What the last failure was; `None` once an attempt succeeded after it.
    pub last_error: Option<String>,
}

/// Receiver and recipient.
type Place = (String, String);

/// What a lane shares with its owner.
#[derive(Default)]
struct Shared {
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    /// Queued or in flight.
    ids: HashSet<String>,
    attempts: u64,
    failures: u64,
    last_error: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Handle {
    queue: mpsc::UnboundedSender<Notification>,
    shared: Arc<Shared>,
}

/// All lanes. Dropping it closes them.
pub struct Lanes {
    lanes: BTreeMap<Place, Handle>,
    closed: watch::Sender<bool>,
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").field("lanes", &self.lanes.keys()).finish_non_exhaustive()
    }
}

impl Lanes {
    /// Starts a lane for every destination through `spawn`, which gets a name for the task and the task. `seed` spreads the waits.
    pub fn new(targets: HashMap<String, Target>, clock: &Clock, seed: u64, mut spawn: impl FnMut(String, BoxFuture<'static, ()>), report: &Report) -> Self {
        let (closed, watch) = watch::channel(false);
        // In order of name, so that tasks start in the same order every time.
        let mut places: BTreeMap<Place, Option<Target>> = BTreeMap::from([(Place::default(), None)]);
        for (receiver, target) in targets {
            let recipients = target.recipients().to_vec();
            for recipient in recipients {
                places.insert((receiver.clone(), recipient), Some(target.clone()));
            }
            places.insert((receiver, String::new()), Some(target));
        }
        let mut lanes = BTreeMap::new();
        for (place, target) in places {
            let (queue, inbox) = mpsc::unbounded_channel();
            let shared = Arc::<Shared>::default();
            let lane = Lane {
                place: place.clone(),
                target,
                inbox,
                shared: Arc::clone(&shared),
                closed: watch.clone(),
                clock: Arc::clone(clock),
                report: Arc::clone(report),
                seed,
            };
            spawn(format!("notify {} {}", place.0, place.1).trim_end().to_owned(), Box::pin(lane.run()));
            lanes.insert(place, Handle { queue, shared });
        }
        Self { lanes, closed }
    }

    /// Queues a notification behind the others of its destination. One that is already queued or being sent is ignored.
    pub fn push(&self, notification: Notification) {
        let Some(lane) = self.lane(&notification) else { return };
        if lane.shared.lock().ids.insert(notification.id.clone()) && lane.queue.send(notification).is_err() {
            // The lanes are closed: the log still owes it.
            tracing::debug!("pushed to a closed lane");
        }
    }

    /// The lane of its address, else of its receiver (an address that was taken out of the configuration), else of the unknown.
    fn lane(&self, notification: &Notification) -> Option<&Handle> {
        let exact = (notification.receiver.clone(), notification.recipient.clone());
        let receiver = (notification.receiver.clone(), String::new());
        [exact, receiver, Place::default()].iter().find_map(|place| self.lanes.get(place))
    }

    /// Lets every task end after the attempt that it is making. What is unsent stays owed.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// How each lane does, by receiver and recipient.
    #[must_use]
    pub fn status(&self) -> Vec<LaneStatus> {
        self.lanes
            .iter()
            .map(|((receiver, recipient), lane)| {
                let state = lane.shared.lock();
                LaneStatus {
                    receiver: receiver.clone(),
                    recipient: recipient.clone(),
                    queued: state.ids.len(),
                    attempts: state.attempts,
                    failures: state.failures,
                    last_error: state.last_error.clone(),
                }
            })
            .collect()
    }
}

/// The task of one destination.
struct Lane {
    place: Place,
    target: Option<Target>,
    inbox: mpsc::UnboundedReceiver<Notification>,
    shared: Arc<Shared>,
    closed: watch::Receiver<bool>,
    clock: Clock,
    report: Report,
    seed: u64,
}

impl Lane {
    async fn run(mut self) {
        loop {
            let mut closed = self.closed.clone();
            let next = tokio::select! {
                biased;
                () = is_closed(&mut closed) => return,
                next = self.inbox.recv() => next,
            };
            let Some(notification) = next else { return };
            let Some((result, detail)) = self.settle(&notification).await else { return };
            (self.report)(notification.id.clone(), result, detail).await;
            self.shared.lock().ids.remove(&notification.id);
        }
    }

    /// Tries until it is settled how the notification ends; `None` when the lanes close first.
    async fn settle(&mut self, notification: &Notification) -> Option<(DeliveryResult, String)> {
        let Some(target) = self.target.clone() else {
            warn!(receiver = notification.receiver, "receiver unknown");
            return Some((DeliveryResult::Refused, "the configuration knows no such receiver".to_owned()));
        };
        let mut attempt = 0_u32;
        let mut last = String::from("its day was over before it could be tried");
        loop {
            if *self.closed.borrow() {
                return None;
            }
            let now = (self.clock)();
            if backoff::time_left(notification.line.at, now).is_none() {
                warn!(receiver = self.place.0, attempt, error = last, "delivery given up");
                return Some((DeliveryResult::Expired, last));
            }
            attempt = attempt.saturating_add(1);
            let failure = match deliver(&target, notification, now).await {
                Ok(()) => {
                    self.succeeded(attempt);
                    failpoint::pass("between send and receipt");
                    return Some((DeliveryResult::Sent, String::new()));
                }
                Err(failure) => failure,
            };
            self.failed(attempt, &failure);
            if failure.permanent {
                return Some((DeliveryResult::Refused, failure.reason));
            }
            let jitter = backoff::jitter(self.seed, &notification.id, attempt);
            let wait = backoff::wait(attempt, jitter, failure.retry_after);
            // The end of its day is not slept through.
            let left = backoff::time_left(notification.line.at, (self.clock)()).unwrap_or_default();
            last = failure.reason;
            tokio::select! {
                () = sleep(wait.min(left)) => {}
                () = is_closed(&mut self.closed) => return None,
            }
        }
    }

    fn succeeded(&self, attempt: u32) {
        let mut state = self.shared.lock();
        state.attempts += 1;
        if state.last_error.take().is_some() {
            info!(receiver = self.place.0, attempt, "delivery works again");
        }
    }

    fn failed(&self, attempt: u32, failure: &Failure) {
        let mut state = self.shared.lock();
        state.attempts += 1;
        state.failures += 1;
        if failure.permanent || state.last_error.as_ref() != Some(&failure.reason) {
            warn!(receiver = self.place.0, attempt, error = %failure, permanent = failure.permanent, "delivery failed");
        }
        state.last_error = Some(failure.reason.clone());
    }
}

/// Ready when the lanes are closed or gone.
async fn is_closed(closed: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is the same.
    drop(closed.wait_for(|closed| *closed).await);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "outbox_tests.rs"]
pub mod tests;
