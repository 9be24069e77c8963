//! What `/metrics` would give, taken at intervals and written as requests of Prometheus' remote-write for one receiver: the same names, labels and values, under the time of one moment.
//!
//! It is what a scraper would have done: each series has `job` and `instance`, and one that is gone since the moment before is sent once more as stale. Nothing is stale
//! because Slowburn stops, as nothing is when a Prometheus stops: after a restart counters go on where they were, and a gap in between would end alerts and begin them again.
//!
//! A counter or histogram says since when it counts if its endpoint came while this process ran: it counted nothing at the moment before. Of the others nobody knows.

mod metrics;
pub mod queue;
pub mod request;
pub mod rewritten;

use std::collections::HashSet;

use smallvec::SmallVec;

pub(super) use self::metrics::of_queues;
use self::queue::Queue;
use self::request::{Builder, STALE, Sent};
use super::Site;
use super::exposition::protobuf::{SENT, put_bytes};
use super::exposition::series::{Series, Value, of_endpoint, of_family};
use super::exposition::{Exported, Kind};
use super::family::Family;
use super::metrics::{PAGE_ENDPOINTS_MAX, Taken, taken};
use crate::config::remote_write::{Endpoints, Histograms, Protocol, RemoteWrite};
use crate::endpoint::EndpointId;
use crate::history::exemplars::Exemplar;
use crate::ingest::memory::{NEW_ENDPOINTS_TO, QUERIES_TO, Reservation};
use crate::time::Timestamp;

/// Endpoints that are written before others have their turn.
const TURN_ENDPOINTS: usize = 200;

/// What the receivers' queues together may take of the memory that the process may have.
const QUEUES_SHARE: u64 = 8;

/// Why nothing was taken.
#[derive(Debug, thiserror::Error)]
pub enum Missed {
    /// The state could not be asked.
    #[error("{0}")]
    Overloaded(String),
    /// There was no room for it.
    #[error("memory runs out, and timings go first")]
    Memory,
}

/// The moments of one receiver, one after another.
pub struct Rounds {
    /// Sorted: what each series has beside its own.
    labels: Vec<(String, String)>,
    has_all: bool,
    histograms: Histograms,
    before: Before,
    /// Endpoints from this number on came after that moment; both ascend.
    came_after: Vec<(EndpointId, Timestamp)>,
}

/// What was there at the moment before.
#[derive(Default)]
struct Before {
    families: Vec<Family>,
    endpoints: Vec<Exported>,
}

/// The bytes that the queue of one of so many receivers may have.
#[must_use]
pub fn queue_bytes_max(configured: u64, memory_ceiling: u64, receivers: usize) -> u64 {
    configured.min(memory_ceiling / QUEUES_SHARE / (receivers.max(1) as u64))
}

impl Rounds {
    /// Of a receiver; `instance` is what a scrape would name this process, unless the configuration says it.
    #[must_use]
    pub fn new(remote: &RemoteWrite, instance: &str) -> Self {
        let mut labels = remote.labels.clone();
        for (name, value) in [("job", "slowburn"), ("instance", instance)] {
            labels.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        let histograms = match (remote.histograms, remote.protocol) {
            (Histograms::Auto, Protocol::One) => Histograms::Classic,
            (histograms, _) => histograms,
        };
        Self {
            labels: labels.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
            has_all: remote.endpoints == Endpoints::All,
            histograms,
            before: Before::default(),
            came_after: Vec::new(),
        }
    }

    /// Takes what there is now, and puts it into the queue in requests of a bounded size.
    ///
    /// # Errors
    /// [`Missed`]; the next moment is another chance.
    pub async fn take(&mut self, site: &Site, queue: &Queue) -> Result<(), Missed> {
        let at = site.now();
        let endpoints_max = if self.has_all { PAGE_ENDPOINTS_MAX } else { site.exported_endpoints_max };
        let native = (self.histograms != Histograms::Classic).then_some(SENT);
        let Taken { families, endpoints, next_id } = taken(site, endpoints_max, native).await.map_err(|refusal| Missed::Overloaded(refusal.message))?;
        // What stays of it from one moment to the next is seen in what the process has.
        let mut room = Reservation::new(&site.ingest.memory, QUERIES_TO);
        room.grow(endpoints.iter().map(Exported::bytes).sum()).map_err(|_| Missed::Memory)?;

        let mut writer = Writer { labels: &self.labels, histograms: self.histograms, queue, builder: Builder::default(), at };
        let now = self.before.families_to(families, &mut writer);
        let mut gone = std::mem::take(&mut self.before.endpoints).into_iter().peekable();
        for (n, endpoint) in endpoints.iter().enumerate() {
            while let Some(old) = gone.next_if(|old| old.id < endpoint.id) {
                writer.put_stale(&old, None);
            }
            let known = self.came_after.partition_point(|(next_id, _)| *next_id <= endpoint.id);
            let start = known.checked_sub(1).map(|at| self.came_after[at].1);
            let old = gone.next_if(|old| old.id == endpoint.id);
            // An exemplar is sent once: a receiver refuses what is older than its last.
            let is_new = |e: &&Exemplar| old.as_ref().is_none_or(|old| !old.exemplars.contains(e));
            let exemplars: Vec<Exemplar> = endpoint.exemplars.iter().filter(is_new).cloned().collect();
            of_endpoint(endpoint, &exemplars, &mut |series| writer.put(&series, start));
            if let Some(old) = old {
                writer.put_stale(&old, Some(endpoint));
            }
            if n % TURN_ENDPOINTS == TURN_ENDPOINTS - 1 {
                tokio::task::yield_now().await;
            }
        }
        gone.for_each(|old| writer.put_stale(&old, None));
        writer.flush();

        // Some of the endpoints came since the first look.
        let next_id = endpoints.last().map_or(next_id, |last| next_id.max(EndpointId(last.id.0 + 1)));
        if self.came_after.last().is_none_or(|(known, _)| *known < next_id) {
            self.came_after.push((next_id, at));
        } else if let Some(last) = self.came_after.last_mut() {
            last.1 = at;
        }
        self.before = Before { families: now, endpoints };
        let memory = site.memory();
        if memory.used().saturating_mul(1_000) >= memory.ceiling().saturating_mul(NEW_ENDPOINTS_TO) {
            queue.shrink_to(queue.length().bytes / 2);
        }
        Ok(())
    }
}

/// What tells a series from others.
fn identity(series: &Series<'_>) -> Vec<u8> {
    let mut out = series.name.as_bytes().to_vec();
    for (name, value) in series.labels.iter().filter(|(_, value)| !value.is_empty()) {
        put_bytes(&mut out, 1, name.as_bytes());
        put_bytes(&mut out, 2, value.as_bytes());
    }
    out
}

impl Before {
    /// Writes the families of now, and what was there before and is there no more.
    fn families_to(&self, now: Vec<Family>, writer: &mut Writer<'_>) -> Vec<Family> {
        let mut there = HashSet::new();
        for family in &now {
            of_family(family, &mut |series| {
                there.insert(identity(&series));
                writer.put(&series, None);
            });
        }
        for family in &self.families {
            of_family(family, &mut |series| {
                if !there.contains(&identity(&series)) {
                    writer.put(&stale(series), None);
                }
            });
        }
        now
    }
}

fn stale(series: Series<'_>) -> Series<'_> {
    let value = match series.value {
        Value::Number(_) => Value::Number(STALE),
        // As Prometheus writes one: the sum says it, and nothing is in it.
        Value::Native { .. } => Value::Native { count: 0, sum_seconds: STALE, fields: &[] },
    };
    Series { value, exemplars: &[], ..series }
}

struct Writer<'a> {
    labels: &'a [(String, String)],
    histograms: Histograms,
    queue: &'a Queue,
    builder: Builder,
    at: Timestamp,
}

impl Writer<'_> {
    fn put(&mut self, series: &Series<'_>, start: Option<Timestamp>) {
        if self.histograms == Histograms::Native && series.has_native {
            return;
        }
        // A series' own label stands, as in Prometheus.
        let own = |name: &str| series.labels.iter().any(|(n, v)| *n == name && !v.is_empty());
        let external = self.labels.iter().filter(|(name, _)| !own(name)).map(|(name, value)| (name.as_str(), value.as_str()));
        let mut labels: SmallVec<[(&str, &str); 16]> = series.labels.iter().copied().filter(|(_, value)| !value.is_empty()).chain(external).collect();
        labels.push(("__name__", series.name));
        labels.sort_unstable();
        let start = start.filter(|_| matches!(series.kind, Kind::Counter | Kind::Histogram | Kind::Summary));
        self.builder.add(&Sent { labels: &labels, value: series.value, kind: series.kind, help: series.help, start, exemplars: series.exemplars }, self.at);
        if self.builder.is_full() {
            self.flush();
        }
    }

    /// Ends the series of an endpoint, or those of them that it has no more.
    fn put_stale(&mut self, old: &Exported, now: Option<&Exported>) {
        if now.is_some_and(|now| now.has_no_detail() && old.has_no_detail()) {
            return;
        }
        let mut there = HashSet::new();
        if let Some(now) = now {
            of_endpoint(now, &[], &mut |series| {
                there.insert(identity(&series));
            });
        }
        of_endpoint(old, &[], &mut |series| {
            if !there.contains(&identity(&series)) {
                self.put(&stale(series), None);
            }
        });
    }

    fn flush(&mut self) {
        if let Some(request) = self.builder.finish(self.at) {
            self.queue.push(request);
        }
    }
}
