//! What is asked: which endpoints, which time; the query string of every path that reads.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Scene, Site};
use crate::endpoint::{EndpointId, EndpointKey, KeyRef};
use crate::history::closed_periods::Wanted;
use crate::ingest::http::Refusal;
use crate::time::{TimeRange, Timestamp, parse_duration_us};

/// Points in one answer.
const POINTS_MAX: i64 = 11_000;

/// Endpoints of the catalogue that one look goes through.
const LOOK_ENTRIES_MAX: usize = 4_000;

/// The numbers of the endpoints that are wanted.
pub(super) fn ids_of(wanted: &Wanted, scene: &Scene<'_>) -> Vec<EndpointId> {
    match wanted {
        Wanted::All => (0..scene.machine.catalogue.next_id().0).map(EndpointId).collect(),
        Wanted::These(ids) => ids.clone(),
    }
}

pub(super) fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message)
}

/// The query string; a bad one is answered as every error is.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|q| Self(q.0)).map_err(|e| bad(e.body_text()))
    }
}

/// Which endpoints, which time.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Question {
    pub(super) service: Option<String>,
    pub(super) env: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) method: Option<String>,
    pub(super) route: Option<String>,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) step: Option<String>,
    pub(super) q: Option<String>,
    pub(super) outcome: Option<String>,
    pub(super) threshold: Option<String>,
}

impl Question {
    fn matches(&self, key: &EndpointKey) -> bool {
        let may = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        may(&self.service, &key.service)
            && may(&self.env, &key.env)
            && may(&self.kind, &key.kind)
            && may(&self.method, &key.method)
            && may(&self.route, &key.route)
    }

    /// The range asked for; without one the last hour.
    pub(super) fn range(&self, now: Timestamp) -> Result<TimeRange, Refusal> {
        let time = |name: &str, text: &Option<String>, default: Timestamp| match text.as_deref() {
            None | Some("") => Ok(default),
            Some(text) => Timestamp::parse(text).map_err(|e| bad(format!("{name}: {e}"))),
        };
        let to = time("to", &self.to, now)?;
        let from = time("from", &self.from, to.plus_ms(-3_600_000))?;
        if from >= to { Err(bad("`from` is not before `to`")) } else { Ok(TimeRange { from, to }) }
    }

    fn step_ms(&self) -> Result<Option<i64>, Refusal> {
        let Some(text) = self.step.as_deref().filter(|s| !s.is_empty()) else { return Ok(None) };
        let us = parse_duration_us(text).map_err(|e| bad(format!("step: {e}")))?;
        if us == 0 || !us.is_multiple_of(60_000_000) {
            return Err(bad(format!("step: `{text}` is not a multiple of 60s")));
        }
        Ok(Some(i64::try_from(us / 1000).unwrap_or(i64::MAX)))
    }

    /// The stretches that get a point each.
    pub(super) fn stretches(&self, now: Timestamp) -> Result<Vec<TimeRange>, Refusal> {
        let range = self.range(now)?;
        let Some(step) = self.step_ms()? else { return Ok(vec![range]) };
        let first = range.from.0.div_euclid(60_000) * 60_000;
        let points = (range.to.0 - first).div_euclid(step) + 1;
        if points > POINTS_MAX {
            return Err(bad(format!("{points} points are over the limit of {POINTS_MAX}: ask for a longer step")));
        }
        let starts = (0..points).map(|n| first + n * step).filter(|start| *start < range.to.0);
        // The last stretch is as long as the others: a step is a step.
        Ok(starts.map(|start| TimeRange { from: Timestamp(start), to: Timestamp(start + step) }).collect())
    }

    /// The endpoints that are asked for. One or all are told at once; else the catalogue is gone through in short looks, which hold up no commit.
    pub(super) async fn chosen(&self, site: &Site) -> Result<Wanted, Refusal> {
        match (&self.service, &self.env, &self.kind, &self.method, &self.route) {
            (None, None, None, None, None) => return Ok(Wanted::All),
            (Some(service), Some(env), Some(kind), Some(method), Some(route)) => {
                let key = KeyRef { service, env, kind, method, route }.to_key();
                let found = site.look(move |scene| scene.machine.catalogue.get(key.as_ref())).await?;
                return Ok(Wanted::These(found.into_iter().collect()));
            }
            _ => {}
        }
        let (mut ids, mut next) = (Vec::new(), 0);
        loop {
            let (asked, from) = (self.matcher(), next);
            let (some, all) = site
                .look(move |scene| {
                    let entries = scene.machine.catalogue.entries();
                    let looked_at = (from..entries.len()).take(LOOK_ENTRIES_MAX).filter(|at| asked.matches(&entries[*at].key));
                    let some: Vec<EndpointId> = looked_at.filter_map(|at| u32::try_from(at).ok()).map(EndpointId).collect();
                    (some, entries.len())
                })
                .await?;
            ids.extend(some);
            next += LOOK_ENTRIES_MAX;
            if next >= all {
                return Ok(Wanted::These(ids));
            }
        }
    }

    /// It without time and the rest.
    fn matcher(&self) -> Self {
        let Self { service, env, kind, method, route, .. } = self.clone();
        Self { service, env, kind, method, route, ..Self::default() }
    }
}
