//! Times the requests of axum, hyper and other tower services by route, and sends the timings to Slowburn.
//!
//! ```no_run
//! # #[cfg(feature = "axum")]
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! use axum::{Router, routing::{get, post}};
//!
//! let slowburn = slowburn_tower::Slowburn::builder("http://127.0.0.1:9898", "shop")
//!     .env("prod")
//!     .critical("POST", "/orders")
//!     .start()?;
//! let app: Router = Router::new()
//!     .route("/orders", post(async || "ordered"))
//!     .route("/products/{id}", get(async || "a product"))
//!     .layer(slowburn.layer());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! # #[cfg(any())]
//! axum::serve(listener, app).with_graceful_shutdown(signal).await?;
//! slowburn.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is timed
//! From the call of the service to the end of the response body: what a user waits for. The end is the last frame, an error, or
//! the drop of the body. The outcome is the status of the answer, but
//!
//! - `error` if the service or the body fails, or a handler panics;
//! - `timeout` if the request is dropped before there is an answer: whoever waited has given up, or the server cut it off.
//!
//! A body that the client stops reading counts with the status that it was sent. Streams that are meant to stay open (events,
//! long polls) last as long as they are open: keep the layer off them. An upgrade (WebSocket) ends with its answer.
//!
//! Requests that still run are told with their ages at every flush, so that one that hangs is seen while it hangs.
//!
//! # The name of a route
//! The first of: a [`RouteTemplate`] among the request's extensions; the function given to [`Builder::route_with`]; axum's
//! `MatchedPath` (feature `axum`, on by default); else `(unmatched)`. Never the raw path.
//!
//! With axum use `Router::layer` or `Router::route_layer`, after the routes were added: these run after routing, and only then is
//! there a `MatchedPath`. Routes that are added later are not timed. A layer around the whole router (`layer.layer(router)`, or
//! one in front of `axum::serve`) runs before routing and sees only `(unmatched)`. `route_layer` leaves out requests without a route.
//!
//! # What it promises
//! A request does no I/O and waits for nobody: it takes a lock that is held for less than a microsecond, when it starts and when it
//! ends. Slowburn may be absent, hang or refuse: requests are served as ever, memory stays within the limits, and what did not
//! fit is counted and reported with the next batch that arrives. Each batch is sent until it is acknowledged, and counts once.
//!
//! # The files
//! `layer` and `body` see a request begin and end; `record` counts it under a name of `routes`, `in_flight` knows what runs;
//! `send` is the task that turns counts into a `batch`, keeps it in the `queue`, and brings it by `transport` (and `tls`) under
//! the name of `sender`, with `backoff`; `clock` is the only clock.

mod backoff;
mod batch;
mod body;
mod builder;
mod clock;
mod in_flight;
mod layer;
mod queue;
mod record;
mod routes;
mod send;
mod sender;
#[cfg(feature = "https")]
mod tls;
mod transport;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

pub use body::TimedBody;
pub use builder::{Builder, StartError};
pub use layer::{Head, SlowburnLayer, Timed, TimedFuture};
pub use send::Unsent;

/// Names the route of a request by its extension: for routers that this crate does not know.
///
/// Put a template here (`/products/{id}`), never a raw path: every name takes memory, up to a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTemplate(pub Arc<str>);

/// The handle: makes layers, and ends the sending in order. Without [`shutdown`](Self::shutdown) the sending goes on for as
/// long as a layer lives, and what was not yet sent when the runtime ends is lost.
#[derive(Debug)]
pub struct Slowburn {
    layer: SlowburnLayer,
    gauges: Arc<send::Gauges>,
}

/// How the sending does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Timings that were dropped since the start and will never arrive.
    pub dropped_timings: u64,
    /// Batches that Slowburn has acknowledged since the start.
    pub sent_batches: u64,
    /// Batches that wait.
    pub queued_batches: usize,
    /// Their bytes, never more than the limit.
    pub queued_bytes: usize,
}

impl Slowburn {
    /// Settings for a sender to the Slowburn at `address` (`http://HOST:PORT`), on behalf of `service`.
    pub fn builder(address: impl Into<String>, service: impl Into<String>) -> Builder {
        Builder::new(address.into(), service.into())
    }

    /// A layer that times what it wraps. All layers of a handle count together.
    #[must_use]
    pub fn layer(&self) -> SlowburnLayer {
        self.layer.clone()
    }

    /// Sends what there is, at most for 2 s, and ends the sending. Call it after the server has stopped: what is timed later is
    /// not sent.
    pub async fn shutdown(&self) -> Unsent {
        let (reply, told) = oneshot::channel();
        if self.layer.shared.farewells.send(reply).await.is_err() {
            return Unsent::default();
        }
        told.await.unwrap_or_default()
    }

    /// How the sending does at this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            dropped_timings: self.layer.shared.recorder.dropped.load(Ordering::Relaxed),
            sent_batches: self.gauges.sent_batches.load(Ordering::Relaxed),
            queued_batches: self.gauges.queued_batches.load(Ordering::Relaxed),
            queued_bytes: self.gauges.queued_bytes.load(Ordering::Relaxed),
        }
    }
}
