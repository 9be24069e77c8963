//! The index: blocks of history, incidents, markers, silences, in memory; and, with the batch keys, on disk as of the last checkpoint (`index_store.rs`).
//!
//! A view: everything in it follows from log, archive and history, and is built again by one scan when what is on disk is missing, damaged, or behind the snapshot. A power cut
//! may not leave what sled flushed; so the position up to which it is complete is stored in it and compared at the start. While the server runs only memory is
//! read: whatever becomes of sled or of room on the disk, answers are the same, and it is written anew with the next checkpoint that finds room.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use serde::{Serialize, de::DeserializeOwned};

use super::closed_periods::Block;
pub use super::index_store::Error;
use super::index_store::{BlockKey, Change, Said, Store, guarded};
use crate::incident::{Incident, Marker, Silence};
use crate::ingest::batch_keys::Answered;
use crate::log::Position;
use crate::time::{Tier, Timestamp};

/// The index; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Index {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    views: RwLock<Views>,
    /// Since the last checkpoint.
    changes: Mutex<Vec<Change>>,
    store: Mutex<Option<Store>>,
    is_stored: AtomicBool,
    applied: Position,
    /// As they were at the start.
    keys: Mutex<Vec<(u128, Answered)>>,
}

#[derive(Debug, Default)]
struct Views {
    blocks: BTreeMap<BlockKey, u64>,
    said: [BTreeMap<Vec<u8>, Vec<u8>>; 3],
}

impl Views {
    fn take_in(&mut self, change: &Change) {
        match change {
            Change::Block(key, Some(offset)) => drop(self.blocks.insert(*key, *offset)),
            Change::Block(key, None) => drop(self.blocks.remove(key)),
            Change::Said(said, key, value) => drop(self.said[*said as usize].insert(key.clone(), value.clone())),
            Change::Key(..) => {}
        }
    }

    fn all(&self) -> Vec<Change> {
        let blocks = self.blocks.iter().map(|(key, offset)| Change::Block(*key, Some(*offset)));
        let said = Said::ALL.into_iter().flat_map(|said| self.said[said as usize].iter().map(move |(k, v)| Change::Said(said, k.clone(), v.clone())));
        blocks.chain(said).collect()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder of the index.
#[must_use]
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("index")
}

impl Index {
    /// Opens or creates `data_dir/index`, and reads every value: sled finds damage only where it reads.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = folder(data_dir);
        let (store, applied, all) = guarded(move || {
            let store = Store::open(&path)?;
            let (applied, all) = (store.applied()?, store.all()?);
            Ok((store, applied, all))
        })?;
        let (mut views, mut keys) = (Views::default(), Vec::new());
        for change in all {
            match change {
                Change::Key(key, Some(answer)) => keys.push((key, answer)),
                other => views.take_in(&other),
            }
        }
        Ok(Self::of(data_dir, views, Some(store), applied, keys))
    }

    /// An empty one that is in memory alone, until there is a checkpoint that finds room.
    #[must_use]
    pub fn in_memory(data_dir: &Path) -> Self {
        Self::of(data_dir, Views::default(), None, Position(0), Vec::new())
    }

    fn of(data_dir: &Path, views: Views, store: Option<Store>, applied: Position, keys: Vec<(u128, Answered)>) -> Self {
        let is_stored = AtomicBool::new(store.is_some());
        let (views, store, keys) = (RwLock::new(views), Mutex::new(store), Mutex::new(keys));
        Self { shared: Arc::new(Shared { path: folder(data_dir), views, changes: Mutex::default(), store, is_stored, applied, keys }) }
    }

    /// Whether it is on disk as of the last checkpoint; if not, the next one is to bring all batch keys.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.shared.is_stored.load(Ordering::SeqCst)
    }

    fn views(&self) -> RwLockReadGuard<'_, Views> {
        self.shared.views.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: Change) {
        self.shared.views.write().unwrap_or_else(PoisonError::into_inner).take_in(&change);
        self.note(change);
    }

    fn note(&self, change: Change) {
        if self.is_stored() {
            locked(&self.shared.changes).push(change);
        }
    }

    fn put(&self, said: Said, key: Vec<u8>, value: &impl Serialize) -> Result<(), Error> {
        self.change(Change::Said(said, key, serde_json::to_vec(value).map_err(|_| Error::Value)?));
        Ok(())
    }

    fn all<T: DeserializeOwned>(&self, said: Said) -> Result<Vec<T>, Error> {
        self.views().said[said as usize].values().map(|bytes| serde_json::from_slice(bytes).map_err(|_| Error::Value)).collect()
    }

    fn one<T: DeserializeOwned>(&self, said: Said, key: &str) -> Result<Option<T>, Error> {
        let views = self.views();
        views.said[said as usize].get(key.as_bytes()).map(|b| serde_json::from_slice(b).map_err(|_| Error::Value)).transpose()
    }

    /// Up to which position it was complete on disk when it was opened.
    #[must_use]
    pub fn applied(&self) -> Position {
        self.shared.applied
    }

    /// Makes it complete up to a position, on disk. One that failed before is written anew when `all_keys` are given.
    ///
    /// # Errors
    /// [`Error`]; it goes on in memory, and the next time it is written anew.
    pub fn flush(&self, applied: Position, all_keys: Option<Vec<(u128, Answered)>>) -> Result<(), Error> {
        let mut slot = locked(&self.shared.store);
        let changes = std::mem::take(&mut *locked(&self.shared.changes));
        let written = if let Some(store) = slot.take() {
            guarded(move || store.write(&changes, applied).map(|()| store))
        } else {
            let keys = all_keys.ok_or(Error::Absent)?.into_iter().map(|(key, answer)| Change::Key(key, Some(answer)));
            // From here on changes are noted; one that is in `all` too is written twice, to the same end.
            self.shared.is_stored.store(true, Ordering::SeqCst);
            let mut all = self.views().all();
            all.extend(keys);
            let path = self.shared.path.clone();
            guarded(move || {
                let store = Store::begin_anew(&path)?;
                store.write(&all, applied).map(|()| store)
            })
        };
        match written {
            Ok(store) => {
                *slot = Some(store);
                Ok(())
            }
            Err(error) => {
                self.shared.is_stored.store(false, Ordering::SeqCst);
                locked(&self.shared.changes).clear();
                Err(error)
            }
        }
    }

    /// Adds a block of history.
    pub fn put_block(&self, block: &Block) {
        self.change(Change::Block(block_key(block.tier, block.period, block.name), Some(block.offset)));
    }

    /// The block of that name, if it is known.
    #[must_use]
    pub fn block(&self, tier: Tier, period: Timestamp, name: Position) -> Option<Block> {
        let offset = *self.views().blocks.get(&block_key(tier, period, name))?;
        Some(Block { tier, period, name, offset })
    }

    /// The blocks of periods that begin in [from, to), by period and name.
    #[must_use]
    pub fn blocks(&self, tier: Tier, from: Timestamp, to: Timestamp) -> Vec<Block> {
        let range = block_key(tier, from, Position(0))..block_key(tier, to.max(from), Position(0));
        let block = |(key, offset): (&BlockKey, &u64)| {
            let part = |at: usize| u64::from_be_bytes(key[at..at + 8].try_into().expect("eight bytes"));
            Block { tier, period: Timestamp(part(1).cast_signed()), name: Position(part(9)), offset: *offset }
        };
        self.views().blocks.range(range).map(block).collect()
    }

    /// The start of the first period of a tier.
    #[must_use]
    pub fn first_period(&self, tier: Tier) -> Option<Timestamp> {
        let range = block_key(tier, Timestamp(0), Position(0))..block_key(tier, Timestamp(i64::MAX), Position(0));
        let first = |(key, _): (&BlockKey, &u64)| Timestamp(u64::from_be_bytes(key[1..9].try_into().expect("eight bytes")).cast_signed());
        self.views().blocks.range(range).next().map(first)
    }

    /// Forgets the blocks of periods that begin before an instant.
    pub fn forget_blocks(&self, tier: Tier, before: Timestamp) {
        for block in self.blocks(tier, Timestamp(0), before) {
            self.change(Change::Block(block_key(tier, block.period, block.name), None));
        }
    }

    /// Stores how an incident stands.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_incident(&self, incident: &Incident) -> Result<(), Error> {
        self.put(Said::Incidents, incident.id.as_bytes().to_vec(), incident)
    }

    /// All incidents, the newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn incidents(&self) -> Result<Vec<Incident>, Error> {
        let mut all: Vec<Incident> = self.all(Said::Incidents)?;
        all.sort_by(|a, b| (b.opened_at, &b.id).cmp(&(a.opened_at, &a.id)));
        Ok(all)
    }

    /// One incident.
    ///
    /// # Errors
    /// [`Error`].
    pub fn incident(&self, id: &str) -> Result<Option<Incident>, Error> {
        self.one(Said::Incidents, id)
    }

    /// Stores a marker under its time and the position of its record.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_marker(&self, marker: &Marker, position: Position, index: usize) -> Result<(), Error> {
        let mut key = u64::try_from(marker.ts.0).unwrap_or(0).to_be_bytes().to_vec();
        key.extend_from_slice(&position.0.to_be_bytes());
        key.extend_from_slice(&(index as u64).to_be_bytes());
        self.put(Said::Markers, key, marker)
    }

    /// All markers, by time.
    ///
    /// # Errors
    /// [`Error`].
    pub fn markers(&self) -> Result<Vec<Marker>, Error> {
        self.all(Said::Markers)
    }

    /// Stores a silence.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_silence(&self, silence: &Silence) -> Result<(), Error> {
        self.put(Said::Silences, silence.id.as_bytes().to_vec(), silence)
    }

    /// All silences there were.
    ///
    /// # Errors
    /// [`Error`].
    pub fn silences(&self) -> Result<Vec<Silence>, Error> {
        self.all(Said::Silences)
    }

    /// Ends a silence.
    ///
    /// # Errors
    /// [`Error`].
    pub fn end_silence(&self, id: &str, at: Timestamp) -> Result<(), Error> {
        let Some(mut silence) = self.one::<Silence>(Said::Silences, id)? else { return Ok(()) };
        silence.until = silence.until.min(at);
        self.put_silence(&silence)
    }

    /// Stores the answer of a batch key.
    pub fn put_key(&self, key: u128, answer: &Answered) {
        self.note(Change::Key(key, Some(*answer)));
    }

    /// The batch keys with their answers, as they were on disk when it was opened; they are given once.
    #[must_use]
    pub fn take_keys(&self) -> Vec<(u128, Answered)> {
        std::mem::take(&mut *locked(&self.shared.keys))
    }

    /// Forgets a batch key.
    pub fn forget_key(&self, key: u128) {
        self.note(Change::Key(key, None));
    }
}

fn block_key(tier: Tier, period: Timestamp, name: Position) -> BlockKey {
    let mut key = [0; 17];
    key[0] = tier as u8;
    key[1..9].copy_from_slice(&u64::try_from(period.0).unwrap_or(0).to_be_bytes());
    key[9..].copy_from_slice(&name.0.to_be_bytes());
    key
}

/// Puts an index that cannot be used out of the way, under a name that says so.
///
/// # Errors
/// When it cannot be renamed.
pub fn set_aside(data_dir: &Path, now: Timestamp) -> std::io::Result<PathBuf> {
    let aside = data_dir.join(format!("index.bad-{}", now.0));
    std::fs::rename(folder(data_dir), &aside)?;
    Ok(aside)
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::log::disk_ops::Operation;
    use crate::log::fault_plan::{self, Fault};

    fn block(minute: i64) -> Block {
        Block { tier: Tier::Minute, period: Timestamp(minute * 60_000), name: Position(minute.cast_unsigned()), offset: 7 }
    }

    fn answer(at: i64) -> Answered {
        Answered { at: Timestamp(at), body: 1, accepted: 2, rejected: 3 }
    }

    fn all_blocks(index: &Index) -> Vec<Block> {
        index.blocks(Tier::Minute, Timestamp(0), Timestamp(i64::MAX))
    }

    #[test]
    fn one_that_cannot_be_written_goes_on_in_memory_and_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        index.put_block(&block(1));
        index.put_key(10, &answer(1));
        index.flush(Position(1), None).unwrap();
        let watch = fault_plan::watch(dir.path());
        for error in [Errno::NOSPC, Errno::IO] {
            watch.fail(Fault { operation: Some(Operation::IndexWrite), ..Fault::once(error) });
            index.put_block(&block(2));
            index.put_key(20, &answer(2));
            let failed = index.flush(Position(2), None).unwrap_err();
            assert_eq!((failed.is_no_room(), index.is_stored()), (error == Errno::NOSPC, false));
            assert!(all_blocks(&index).starts_with(&[block(1), block(2)]), "it answers as before");
            index.put_block(&block(3));
            assert!(matches!(index.flush(Position(3), None), Err(Error::Absent)), "without all keys it would lose some");
            index.flush(Position(3), Some(vec![(10, answer(1)), (20, answer(2))])).unwrap();
            assert!(index.is_stored());
        }
        assert_eq!(watch.fired(), 2);
        index.forget_key(10);
        index.flush(Position(4), None).unwrap();
        drop(index);
        let again = Index::open(dir.path()).unwrap();
        assert_eq!((again.applied(), all_blocks(&again)), (Position(4), vec![block(1), block(2), block(3)]));
        assert_eq!(again.take_keys(), [(20, answer(2))]);
    }

    #[test]
    fn what_panics_or_does_not_come_back_is_an_error() {
        let panicked: Result<(), Error> = guarded(|| panic!("as sled does"));
        assert!(matches!(panicked, Err(Error::Lost("panicked"))));
    }
}
