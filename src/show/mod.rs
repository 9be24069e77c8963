//! What is shown: the JSON API, `/metrics`, health. Reads only, but for what people decide (acknowledge, silence, mark), which goes the way of all decisions.
//!
//! How the state is reached is the business of whoever runs it: [`Source`].

pub mod api;
mod exposition;
mod family;
pub mod guard;
pub mod health;
pub mod metrics;
mod owed;
mod prometheus;
mod promql;
pub mod queries;
mod question;
pub mod remote_write;
pub mod rules;
pub mod slo;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;

use crate::config::Token;
use crate::history::closed_periods::Reader;
use crate::history::index::Index;
use crate::history::query::Kept;
use crate::ingest::http::{Ingest, Refusal};
use crate::judge::{self, Command, Record};
use crate::machine::Machine;
use crate::notify::outbox::LaneStatus;
use crate::time::Timestamp;

/// What a look sees: the state between two commits, and what lies beside it.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The state.
    pub machine: &'a Machine,
    /// The index.
    pub index: &'a Index,
    /// Since when history is complete.
    pub kept: Kept,
}

/// A look at the state.
pub type Look = Box<dyn FnOnce(&Scene<'_>) + Send>;

/// A future that a [`Source`] answers with.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send>>;

/// Whoever owns the state.
pub trait Source: Send + Sync {
    /// Has somebody look at it between two commits.
    ///
    /// # Errors
    /// A 503 when it is overloaded or stops.
    fn look(&self, look: Look) -> Result<(), Refusal>;

    /// Has something decided and recorded.
    fn decide(&self, command: Command) -> Answer<Result<Record, judge::Refusal>>;

    /// How the lanes of the receivers do.
    fn lanes(&self) -> Vec<LaneStatus>;

    /// Commits, microseconds spent on them, microseconds spent judging, snapshots, traces not kept for lack of memory; since the start.
    fn work(&self) -> [u64; 5];

    /// Room on the disk of the data directory in bytes, where it is known.
    fn free_bytes(&self) -> Option<u64>;
}

/// What every handler needs.
#[derive(Clone)]
pub struct Site {
    /// The state.
    pub source: Arc<dyn Source>,
    /// Where history is.
    pub reader: Reader,
    /// For timings.
    pub ingest: Ingest,
    /// The place of slow queries.
    pub queries: Arc<queries::Queries>,
    /// Who may do what.
    pub tokens: Arc<[Token]>,
    /// The listener's port, for the check of `Host`.
    pub port: u16,
    /// Whether the listener is loopback.
    pub loopback: bool,
    /// With less room on the disk than so many bytes timings are refused.
    pub free_bytes_min: u64,
    /// Endpoints in `/metrics`.
    pub exported_endpoints_max: usize,
    /// Pages of metrics: what was asked for, and what scrapers share.
    pub scrapes: Arc<metrics::Scrapes>,
    /// What waits for the receivers of remote-write.
    pub remotes: Arc<[Arc<remote_write::queue::Queue>]>,
    /// When the process began.
    pub started_at: Timestamp,
    /// Whether the server takes requests.
    pub ready: Arc<std::sync::atomic::AtomicBool>,
}

impl Site {
    /// Reads something off the state.
    ///
    /// # Errors
    /// A 503 when it is overloaded or stops.
    pub async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Scene<'_>) -> T + Send + 'static) -> Result<T, Refusal> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.source.look(Box::new(move |scene| {
            // Whoever asked may have gone away.
            drop(reply.send(look(scene)));
        }))?;
        answer.await.map_err(|_| stopping())
    }

    /// What all load together may take.
    #[must_use]
    pub fn memory(&self) -> &crate::ingest::memory::Memory {
        &self.ingest.memory
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.ingest.now)()
    }
}

/// The answer while the server stops.
#[must_use]
pub fn stopping() -> Refusal {
    Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "stopping",
        message: "the server is overloaded or stops: try again".to_owned(),
        retry_after_s: Some(1),
    }
}

/// All handlers.
pub fn router(site: Site) -> Router {
    // Each request takes it, so it is shared as one.
    let site = Arc::new(site);
    api::routes()
        .merge(metrics::routes())
        .merge(prometheus::routes())
        .merge(health::routes())
        .fallback(api::not_found)
        .method_not_allowed_fallback(api::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(site.clone(), guard::guard))
        .with_state(site)
}
