//! The endpoints that have a number, as handlers look them up: by the five parts joined to one text, hashed under a key of this process.
//!
//! Handlers share it for reading, a thousand look-ups at a time; the engine adds to it when a frame brought new endpoints, which is rare. A number never changes and is
//! never used again, so what was found stays right.

use std::hash::BuildHasher as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use hashbrown::HashTable;

use crate::endpoint::{EndpointId, KeyRef};

/// Stands between the parts: parts have no control characters, so two keys never make one text.
const BETWEEN: u8 = 0;

/// See the module.
#[derive(Debug, Default)]
pub struct KnownEndpoints(RwLock<Numbers>);

/// What is known, held for a look.
#[derive(Debug, Default)]
pub struct Numbers {
    hasher: foldhash::quality::RandomState,
    table: HashTable<Place>,
    texts: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    hash: u64,
    id: EndpointId,
    text: u32,
    len: u32,
}

/// Joins the parts of a key.
pub fn join(key: &KeyRef<'_>, into: &mut Vec<u8>) {
    into.clear();
    for part in [key.service, key.env, key.kind, key.method] {
        into.extend_from_slice(part.as_bytes());
        into.push(BETWEEN);
    }
    into.extend_from_slice(key.route.as_bytes());
}

impl KnownEndpoints {
    /// To look up many.
    pub fn read(&self) -> RwLockReadGuard<'_, Numbers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds endpoints.
    pub fn add<'a>(&self, endpoints: impl Iterator<Item = (EndpointId, KeyRef<'a>)>) {
        let (mut numbers, mut text) = (self.0.write().unwrap_or_else(PoisonError::into_inner), Vec::new());
        for (id, key) in endpoints {
            join(&key, &mut text);
            numbers.add(id, &text);
        }
    }
}

impl Numbers {
    /// The number of the endpoint of that joined text.
    #[must_use]
    pub fn get(&self, text: &[u8]) -> Option<EndpointId> {
        let hash = self.hasher.hash_one(text);
        self.table.find(hash, |p| p.hash == hash && self.text(*p) == text).map(|p| p.id)
    }

    /// The number of an endpoint.
    #[must_use]
    pub fn number_of(&self, key: &KeyRef<'_>) -> Option<EndpointId> {
        let mut text = Vec::new();
        join(key, &mut text);
        self.get(&text)
    }

    fn text(&self, place: Place) -> &[u8] {
        &self.texts[place.text as usize..][..place.len as usize]
    }

    fn add(&mut self, id: EndpointId, text: &[u8]) {
        let (Ok(at), Ok(len)) = (u32::try_from(self.texts.len()), u32::try_from(text.len())) else { return };
        if self.get(text).is_some() {
            return;
        }
        self.texts.extend_from_slice(text);
        let hash = self.hasher.hash_one(text);
        self.table.insert_unique(hash, Place { hash, id, text: at, len }, |p| p.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_join_alike_are_told_apart() {
        let known = KnownEndpoints::default();
        let key = |service, env, route| KeyRef { service, env, kind: "http", method: "GET", route };
        let keys = [key("ab", "c", "/x"), key("a", "bc", "/x"), key("a", "bc", "/xy"), key("", "abc", "/x")];
        known.add(keys.iter().zip(0..).map(|(k, id)| (EndpointId(id), *k)));
        let mut text = Vec::new();
        for (key, id) in keys.iter().zip(0..) {
            join(key, &mut text);
            assert_eq!(known.read().get(&text), Some(EndpointId(id)));
        }
        join(&key("a", "b", "/x"), &mut text);
        assert_eq!(known.read().get(&text), None);
    }
}
