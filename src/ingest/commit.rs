//! The way from a handler to the one who commits: a bounded queue of batches, each with the place where its answer is awaited.

use tokio::sync::oneshot;

use super::Batch;
use super::batch_keys::Identity;
use super::memory::Reservation;
use super::waiting::Place;

/// A batch on its way.
#[derive(Debug)]
pub struct Submission {
    /// What was read.
    pub batch: Batch,
    /// By what it is known.
    pub identity: Identity,
    /// The hash of its body; 0 without an identity.
    pub body: u64,
    /// Its place in the queue, and its memory: given back when the batch is.
    pub held: Option<(Option<Place>, Reservation)>,
    /// Where the answer goes, once the batch is on disk.
    pub reply: oneshot::Sender<Answer>,
}

/// How a batch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// On disk.
    Committed,
    /// It had been before: lines taken and refused then, if that is still known.
    Duplicate(Option<(u64, u64)>),
    /// Its key came with another body before.
    OtherBody,
    /// There is no room for its key.
    KeysFull,
    /// There is no room for it on the disk.
    NoRoom,
}

/// Where handlers bring batches; refuses when the queue is full or the server stops.
#[derive(Clone)]
pub struct Door(std::sync::Arc<dyn Fn(Submission) -> Result<(), Box<Submission>> + Send + Sync>);

impl Door {
    /// Made by the owner of the queue.
    pub fn new(submit: impl Fn(Submission) -> Result<(), Box<Submission>> + Send + Sync + 'static) -> Self {
        Self(std::sync::Arc::new(submit))
    }

    /// Brings a batch.
    ///
    /// # Errors
    /// The batch back, when there is no room.
    pub fn submit(&self, submission: Submission) -> Result<(), Box<Submission>> {
        (self.0)(submission)
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Door")
    }
}
