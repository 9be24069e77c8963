//! Which endpoints there are: dense numbers for keys, with limits that configured critical endpoints do not fall under.
//!
//! An endpoint beyond its service's limit is counted under [`crate::endpoint::OVERFLOW_ROUTE`] of that service, a service beyond the limit of
//! services under the service `(other)`: every count is kept, only its name is lost.

use std::collections::HashMap as StdMap;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::endpoint::{EndpointId, EndpointKey, KeyRef, OVERFLOW_ROUTE};

/// How many endpoints there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// For each service.
    pub per_service: usize,
    /// In all.
    pub total: usize,
    /// Marked critical by senders, for each service.
    pub marked_critical_per_service: usize,
}

/// Whether, and why, an endpoint is critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Marked {
    /// No sender said so.
    No,
    /// A sender said so, within the limit.
    Critical,
}

/// An endpoint of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub key: Arc<EndpointKey>,
    /// Whether a sender marked it.
    pub marked: Marked,
}

/// All endpoints ever seen.
#[derive(Debug, Default)]
pub struct Catalogue {
    entries: Vec<Entry>,
    by_key: HashMap<Arc<EndpointKey>, EndpointId, foldhash::quality::RandomState>,
    services: StdMap<String, Service>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Service {
    endpoints: usize,
    marked: usize,
}

/// Where an endpoint's counts go.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// To itself.
    Known(EndpointId),
    /// To itself, once it is in the catalogue.
    New(EndpointKey),
    /// To the one that stands for all beyond a limit.
    Overflow(EndpointKey),
}

impl Catalogue {
    /// The number of an endpoint.
    #[must_use]
    pub fn get(&self, key: KeyRef<'_>) -> Option<EndpointId> {
        self.by_key.get(&key).copied()
    }

    /// The endpoint of a number.
    #[must_use]
    pub fn entry(&self, id: EndpointId) -> Option<&Entry> {
        self.entries.get(id.0 as usize)
    }

    /// All of them, by number.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The number that the next new endpoint gets.
    #[must_use]
    pub fn next_id(&self) -> EndpointId {
        EndpointId(u32::try_from(self.entries.len()).expect("the limit of endpoints is far below u32"))
    }

    /// The endpoints from a number on.
    pub fn numbered_from(&self, first: EndpointId) -> impl Iterator<Item = (EndpointId, KeyRef<'_>)> {
        self.entries.iter().zip(0..).skip(first.0 as usize).map(|(e, id)| (EndpointId(id), (*e.key).as_ref()))
    }

    /// Where the counts of an endpoint go, `pending` being how many were added to its service and in all but are not in the catalogue yet.
    #[must_use]
    pub fn place(&self, key: &EndpointKey, configured_critical: bool, limits: &Limits, pending_service: usize, pending_total: usize) -> Place {
        if let Some(id) = self.get(key.as_ref()) {
            return Place::Known(id);
        }
        if configured_critical || key.route == OVERFLOW_ROUTE {
            return Place::New(key.clone());
        }
        let service = self.services.get(&key.service).copied().unwrap_or_default();
        // Each service keeps a place for its overflow, so the total may be passed by the number of services; services are limited alike.
        if self.entries.len() + pending_total >= limits.total {
            let known_service = service.endpoints > 0 && self.services.len() <= limits.total;
            return Place::Overflow(EndpointKey::overflow(if known_service { &key.service } else { OVERFLOW_ROUTE }));
        }
        if service.endpoints + pending_service >= limits.per_service {
            return Place::Overflow(EndpointKey::overflow(&key.service));
        }
        Place::New(key.clone())
    }

    /// Whether another endpoint of the service may be marked critical by senders.
    #[must_use]
    pub fn may_mark(&self, service: &str, limits: &Limits) -> bool {
        self.services.get(service).is_none_or(|s| s.marked < limits.marked_critical_per_service)
    }

    /// Adds an endpoint under the next number.
    pub fn add(&mut self, entry: Entry) -> EndpointId {
        let id = self.next_id();
        let service = self.services.entry(entry.key.service.clone()).or_default();
        service.endpoints += 1;
        service.marked += usize::from(entry.marked == Marked::Critical);
        self.by_key.insert(Arc::clone(&entry.key), id);
        self.entries.push(entry);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(service: &str, route: &str) -> EndpointKey {
        EndpointKey { service: service.into(), env: String::new(), kind: "http".into(), method: "GET".into(), route: route.into() }
    }

    #[test]
    fn beyond_the_limit_counts_go_to_the_overflow_and_critical_ones_do_not() {
        let limits = Limits { per_service: 1, total: 10, marked_critical_per_service: 1 };
        let mut catalogue = Catalogue::default();
        assert_eq!(catalogue.place(&key("s", "/a"), false, &limits, 0, 0), Place::New(key("s", "/a")));
        let id = catalogue.add(Entry { key: Arc::new(key("s", "/a")), marked: Marked::No });
        assert_eq!(catalogue.place(&key("s", "/a"), false, &limits, 0, 0), Place::Known(id));
        assert_eq!(catalogue.place(&key("s", "/b"), false, &limits, 0, 0), Place::Overflow(EndpointKey::overflow("s")));
        assert_eq!(catalogue.place(&key("s", "/b"), true, &limits, 0, 0), Place::New(key("s", "/b")));
        assert_eq!(catalogue.place(&key("t", "/b"), false, &limits, 1, 1), Place::Overflow(EndpointKey::overflow("t")));
    }
}
