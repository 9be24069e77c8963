//! The endpoints that have a number, as handlers look them up: by the five parts joined to one text, hashed under a key of this process.
//!
//! Handlers share it for reading, a thousand look-ups at a time; the engine adds to it when a frame brought new endpoints, which is rare. A number never changes and is
//! never used again, so what was found stays right.
//!
//! Whoever holds one of the locks here asks for no other, nor for the same again: a reader that waits behind the engine, which waits for that reader, waits for ever.
//!
//! Dictionary entries of binary batches are remembered by their bytes too: a sender names the same endpoints in each batch, and reading an entry costs more than all its timings.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use hashbrown::HashTable;

use super::{Batch, Whose};
use crate::endpoint::{EndpointId, KeyRef, Selector};

/// Entries are remembered up to so many for each endpoint, and these more: one can be written in several ways. Then they are all forgotten.
const ENTRIES_EACH: usize = 4;
/// See [`ENTRIES_EACH`].
const ENTRIES_MORE: usize = 1_000;

/// How many are looked up together. With many endpoints a look-up waits for memory, and so they wait once.
pub const TOGETHER: usize = 16;

/// Stands between the parts: parts have no control characters, so two keys never make one text.
const BETWEEN: u8 = 0;

/// See the module.
#[derive(Debug, Default)]
pub struct KnownEndpoints {
    numbers: RwLock<Numbers>,
    entries: RwLock<Numbers>,
    critical: RwLock<Critical>,
}

/// Which endpoints are critical: those with a number, and how to tell of those without.
#[derive(Debug, Default)]
struct Critical {
    numbers: HashSet<EndpointId>,
    configured: Vec<Selector>,
}

/// What is known, held for a look.
#[derive(Debug, Default)]
pub struct Numbers {
    hasher: foldhash::quality::RandomState,
    table: HashTable<Place>,
    long: Vec<Box<[u8]>>,
}

/// Texts up to this length stand in the table itself, so that a look-up touches one line of the cache beside the table's tags.
const HEAD: usize = 56;

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Place {
    /// The text, with zeros behind it; of a longer one only where it is.
    head: [u8; HEAD],
    len: u32,
    id: EndpointId,
}

/// A key as one text, to be looked up.
#[derive(Clone, Debug)]
pub struct Joined {
    head: [u8; HEAD],
    len: usize,
    /// All of it, when it is longer than the head.
    long: Vec<u8>,
}

/// One of several that are looked up together.
#[derive(Clone, Debug, Default)]
pub struct Sought {
    /// What is looked up.
    pub joined: Joined,
    /// What was found.
    pub number: Option<EndpointId>,
    hash: u64,
}

impl Default for Joined {
    fn default() -> Self {
        Self { head: [0; HEAD], len: 0, long: Vec::new() }
    }
}

impl Joined {
    /// Joins the parts of a key.
    pub fn set(&mut self, key: &KeyRef<'_>) {
        let parts = [key.service, key.env, key.kind, key.method, key.route];
        self.len = parts.iter().map(|p| p.len()).sum::<usize>() + parts.len() - 1;
        if self.len > HEAD {
            join(key, &mut self.long);
            return;
        }
        // What stands between parts, and behind them, is zero.
        self.head = [BETWEEN; HEAD];
        let mut at = 0;
        for part in parts {
            put(&mut self.head, at, part.as_bytes());
            at += part.len() + 1;
        }
    }

    /// Takes bytes as they are.
    pub fn set_bytes(&mut self, bytes: &[u8]) {
        self.len = bytes.len();
        if self.len > HEAD {
            self.long.clear();
            self.long.extend_from_slice(bytes);
        } else {
            self.head = [0; HEAD];
            self.head[..self.len].copy_from_slice(bytes);
        }
    }

    fn text(&self) -> &[u8] {
        if self.len > HEAD { &self.long } else { &self.head[..self.len] }
    }

    /// The parts that were joined, when none of them had a control character.
    #[must_use]
    pub fn key(&self) -> Option<KeyRef<'_>> {
        let mut parts = std::str::from_utf8(self.text()).ok()?.split(char::from(BETWEEN));
        let key = KeyRef { service: parts.next()?, env: parts.next()?, kind: parts.next()?, method: parts.next()?, route: parts.next()? };
        parts.next().is_none().then_some(key)
    }
}

/// Copies a short part by words that may overlap: a call for each would cost more than the copy.
#[inline]
fn put(head: &mut [u8; HEAD], at: usize, part: &[u8]) {
    let len = part.len();
    let (Some(first), Some(last)) = (part.first_chunk::<8>(), part.last_chunk::<8>()) else {
        if let (Some(first), Some(last)) = (part.first_chunk::<4>(), part.last_chunk::<4>()) {
            head[at..at + 4].copy_from_slice(first);
            head[at + len - 4..at + len].copy_from_slice(last);
        } else {
            for (to, from) in head[at..].iter_mut().zip(part) {
                *to = *from;
            }
        }
        return;
    };
    if len > 16 {
        head[at..at + len].copy_from_slice(part);
    } else {
        head[at..at + 8].copy_from_slice(first);
        head[at + len - 8..at + len].copy_from_slice(last);
    }
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
        self.numbers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers of entries that are remembered, by their bytes.
    #[must_use]
    pub fn of_entries(&self, entries: &[&[u8]]) -> Vec<Option<EndpointId>> {
        let known = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let (mut numbers, mut together) = (Vec::with_capacity(entries.len()), vec![Sought::default(); entries.len().min(TOGETHER)]);
        for entries in entries.chunks(TOGETHER) {
            let together = &mut together[..entries.len()];
            for (sought, entry) in together.iter_mut().zip(entries) {
                sought.joined.set_bytes(entry);
            }
            known.get_all(together);
            numbers.extend(together.iter().map(|sought| sought.number));
        }
        numbers
    }

    /// Remembers entries that were read.
    pub fn remember_entries(&self, read: &[(EndpointId, &[u8])]) {
        if read.is_empty() {
            return;
        }
        let most = ENTRIES_EACH * self.read().table.len() + ENTRIES_MORE;
        let (mut entries, mut bytes) = (self.entries.write().unwrap_or_else(PoisonError::into_inner), Joined::default());
        for (id, entry) in read {
            if entries.table.len() >= most {
                *entries = Numbers::default();
            }
            bytes.set_bytes(entry);
            entries.add(*id, &bytes);
        }
    }

    /// More critical endpoints.
    pub fn add_critical(&self, endpoints: impl Iterator<Item = EndpointId>) {
        self.critical.write().unwrap_or_else(PoisonError::into_inner).numbers.extend(endpoints);
    }

    /// The critical endpoints, anew.
    pub fn set_critical(&self, configured: Vec<Selector>, endpoints: impl Iterator<Item = EndpointId>) {
        *self.critical.write().unwrap_or_else(PoisonError::into_inner) = Critical { numbers: endpoints.collect(), configured };
    }

    /// Whether a batch has timings of a critical endpoint.
    #[must_use]
    pub fn is_critical(&self, batch: &Batch) -> bool {
        let critical = self.critical.read().unwrap_or_else(PoisonError::into_inner);
        let known = |id: EndpointId| critical.numbers.contains(&id);
        batch.packed.iter().any(|p| known(p.endpoint()))
            || batch.items.iter().any(|i| matches!(i.whose, Whose::Known(id) if known(id)))
            || batch.keys.iter().any(|(key, _)| critical.configured.iter().any(|c| c.matches(key)))
    }

    /// Adds endpoints.
    pub fn add<'a>(&self, endpoints: impl Iterator<Item = (EndpointId, KeyRef<'a>)>) {
        let (mut numbers, mut joined) = (self.numbers.write().unwrap_or_else(PoisonError::into_inner), Joined::default());
        for (id, key) in endpoints {
            joined.set(&key);
            numbers.add(id, &joined);
        }
    }
}

impl Numbers {
    /// The number of the endpoint of that joined text.
    #[must_use]
    pub fn get(&self, joined: &Joined) -> Option<EndpointId> {
        self.get_hashed(joined, self.hasher.hash_one(joined.text()))
    }

    /// Looks up several: with many endpoints each look-up waits for memory, and here they all wait at once.
    pub fn get_all(&self, all: &mut [Sought]) {
        for sought in &mut *all {
            sought.hash = self.hasher.hash_one(sought.joined.text());
        }
        let touch = |hash| self.table.find(hash, |_| true).map_or(0, |place| place.len);
        std::hint::black_box(all.iter().fold(0, |read, sought| read ^ touch(sought.hash)));
        for sought in all {
            sought.number = self.get_hashed(&sought.joined, sought.hash);
        }
    }

    fn get_hashed(&self, joined: &Joined, hash: u64) -> Option<EndpointId> {
        let found = if joined.len <= HEAD {
            self.table.find(hash, |p| p.len as usize == joined.len && p.head == joined.head)
        } else {
            self.table.find(hash, |p| self.text(p) == joined.long)
        };
        found.map(|p| p.id)
    }

    /// The number of an endpoint.
    #[must_use]
    pub fn number_of(&self, key: &KeyRef<'_>) -> Option<EndpointId> {
        let mut joined = Joined::default();
        joined.set(key);
        self.get(&joined)
    }

    fn text<'p>(&'p self, place: &'p Place) -> &'p [u8] {
        text_of(&self.long, place)
    }

    fn add(&mut self, id: EndpointId, joined: &Joined) {
        let Ok(len) = u32::try_from(joined.len) else { return };
        if self.get(joined).is_some() {
            return;
        }
        let mut place = Place { head: joined.head, len, id };
        if joined.len > HEAD {
            place.head[..8].copy_from_slice(&(self.long.len() as u64).to_le_bytes());
            self.long.push(joined.long.as_slice().into());
        }
        let (hasher, long) = (&self.hasher, &self.long);
        self.table.insert_unique(hasher.hash_one(joined.text()), place, |p| hasher.hash_one(text_of(long, p)));
    }
}

fn text_of<'p>(long: &'p [Box<[u8]>], place: &'p Place) -> &'p [u8] {
    let len = place.len as usize;
    if len <= HEAD {
        return &place.head[..len];
    }
    let at = place.head.first_chunk::<8>().map_or(0, |at| u64::from_le_bytes(*at));
    usize::try_from(at).ok().and_then(|at| long.get(at)).map_or(&[], |text| text)
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
        for (key, id) in keys.iter().zip(0..) {
            assert_eq!(known.read().number_of(key), Some(EndpointId(id)));
            let mut joined = Joined::default();
            joined.set(key);
            assert_eq!(joined.key(), Some(*key));
        }
        assert_eq!(known.read().number_of(&key("a", "b", "/x")), None);
    }

    #[test]
    fn entries_are_found_by_their_bytes_and_do_not_grow_without_end() {
        let known = KnownEndpoints::default();
        let is_known = |entry: &[u8]| known.of_entries(&[entry])[0];
        let long = [7; 300];
        known.remember_entries(&[(EndpointId(1), b"one"), (EndpointId(2), &long), (EndpointId(1), b"another one")]);
        assert_eq!(
            [&b"one"[..], &long, b"another one", b"two", b""].map(is_known),
            [Some(EndpointId(1)), Some(EndpointId(2)), Some(EndpointId(1)), None, None]
        );
        for n in 0..2 * ENTRIES_MORE {
            known.remember_entries(&[(EndpointId(3), &n.to_le_bytes())]);
            assert!(known.entries.read().unwrap().table.len() <= ENTRIES_MORE && is_known(&n.to_le_bytes()) == Some(EndpointId(3)));
        }
        assert_eq!(is_known(b"one"), None);
    }

    #[test]
    fn texts_of_every_length_are_found_and_no_others() {
        let known = KnownEndpoints::default();
        let routes: Vec<String> = (0..100).map(|len| format!("/{}", "x".repeat(len))).collect();
        let key = |service: &'static str, route| KeyRef { service, env: "", kind: "k", method: "GET", route };
        known.add(routes.iter().zip(0..).map(|(route, id)| (EndpointId(id), key("shop", route))));
        let numbers = known.read();
        for (route, id) in routes.iter().zip(0..) {
            assert_eq!(numbers.number_of(&key("shop", route)), Some(EndpointId(id)));
            assert_eq!(numbers.number_of(&key("shoq", route)), None);
        }
    }
}
