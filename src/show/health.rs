//! `/livez` and `/readyz`: whether the process runs, and whether it answers.
//!
//! A full disk leaves it ready: it answers questions, and says 507 to each batch. A 503 would send away those who ask, and a restart frees no room.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use super::Site;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new().route("/livez", get(async || "ok\n")).route("/readyz", get(ready))
}

async fn ready(State(site): State<Arc<Site>>) -> (StatusCode, &'static str) {
    if !site.ready.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n");
    }
    match site.look(|_| ()).await {
        Ok(()) if site.ingest.disk_full.load(Ordering::Relaxed) => (StatusCode::OK, "ok, but the disk is full: timings are answered 507 until there is room\n"),
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready: overloaded or stopping\n"),
    }
}
