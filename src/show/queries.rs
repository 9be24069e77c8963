//! The place of slow queries: few run at one time, others wait for a bounded time, and when memory runs out they go first. So they never take what timings need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ingest::http::Refusal;
use crate::ingest::memory::{Memory, QUERIES_TO, Reservation};

/// What a query is taken to need for the rows that it reads: a guess.
const QUERY_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct Queries {
    running: Arc<Semaphore>,
    wait: Duration,
    memory: Arc<Memory>,
    refused: AtomicU64,
}

/// A query that runs. Its memory may be kept for longer than its place.
#[derive(Debug)]
pub struct Running {
    _place: OwnedSemaphorePermit,
    /// Its memory.
    pub room: Reservation,
}

impl Queries {
    /// So many at one time; others wait that long.
    #[must_use]
    pub fn new(at_one_time: usize, wait: Duration, memory: Arc<Memory>) -> Self {
        Self { running: Arc::new(Semaphore::new(at_one_time)), wait, memory, refused: AtomicU64::new(0) }
    }

    /// Has one begin.
    ///
    /// # Errors
    /// A 503 when it has waited for long enough, or memory runs out.
    pub async fn begin(&self) -> Result<Running, Refusal> {
        let Ok(Ok(place)) = tokio::time::timeout(self.wait, Arc::clone(&self.running).acquire_owned()).await else {
            return Err(self.refuse("too many queries run: try again"));
        };
        let mut room = Reservation::new(&self.memory, QUERIES_TO);
        match room.grow(QUERY_BYTES) {
            Ok(()) => Ok(Running { _place: place, room }),
            Err(_) => Err(self.refuse("the limit of memory is near, and queries go first: try again")),
        }
    }

    /// Has one go on with more.
    ///
    /// # Errors
    /// A 503 when memory runs out.
    pub fn grow(&self, running: &mut Running, bytes: u64) -> Result<(), Refusal> {
        running.room.grow(bytes).map_err(|_| self.refuse("the limit of memory is near, and queries go first: try again"))
    }

    fn refuse(&self, message: &str) -> Refusal {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message, 5)
    }

    /// How many were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
