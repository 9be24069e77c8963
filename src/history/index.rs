//! The index in sled: catalogue, blocks of history, incidents, markers, silences, batch keys.
//!
//! A view: everything in it follows from log, archive and history, and is built again by one scan when it is missing, damaged, or behind the snapshot. sled
//! 0.34.7 flushes with `sync_file_range`, which a power cut may not survive; so the position up to which it is complete is stored in it and compared at the start.
//! Its known traps are kept off: no transactions, no compression, one writer, iterators that stop at the first error, no background flush.

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::closed_periods::Block;
use crate::incident::{Incident, Marker, Silence};
use crate::log::Position;
use crate::time::{Tier, Timestamp};

/// Why the index cannot be used; it is then set aside and built again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// sled said no.
    #[error("the index in {} cannot be used", path.display())]
    Sled {
        /// Its folder.
        path: PathBuf,
        /// What it said.
        #[source]
        source: sled::Error,
    },
    /// A value is not what was stored.
    #[error("the index holds a value that cannot be read")]
    Value,
}

/// The index.
#[derive(Clone, Debug)]
pub struct Index {
    path: PathBuf,
    db: sled::Db,
    endpoints: sled::Tree,
    blocks: sled::Tree,
    incidents: sled::Tree,
    markers: sled::Tree,
    silences: sled::Tree,
    keys: sled::Tree,
}

/// sled keeps three to ten times this in memory.
const CACHE_BYTES: u64 = 32 << 20;

const APPLIED: &[u8] = b"applied";

/// The folder of the index.
#[must_use]
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("index")
}

impl Index {
    /// Opens or creates `data_dir/index`.
    ///
    /// # Errors
    /// [`Error::Sled`].
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = folder(data_dir);
        let opened = || -> Result<Self, sled::Error> {
            let db = sled::Config::new().path(&path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
            Ok(Self {
                path: path.clone(),
                endpoints: db.open_tree("endpoints")?,
                blocks: db.open_tree("blocks")?,
                incidents: db.open_tree("incidents")?,
                markers: db.open_tree("markers")?,
                silences: db.open_tree("silences")?,
                keys: db.open_tree("keys")?,
                db,
            })
        };
        opened().map_err(|source| Error::Sled { path, source })
    }

    fn error(&self) -> impl Fn(sled::Error) -> Error {
        let path = self.path.clone();
        move |source| Error::Sled { path: path.clone(), source }
    }

    fn put(&self, tree: &sled::Tree, key: &[u8], value: &impl Serialize) -> Result<(), Error> {
        let bytes = serde_json::to_vec(value).map_err(|_| Error::Value)?;
        tree.insert(key, bytes).map_err(self.error())?;
        Ok(())
    }

    fn all<T: DeserializeOwned>(&self, tree: &sled::Tree) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for item in tree {
            let (_, bytes) = item.map_err(self.error())?;
            found.push(serde_json::from_slice(&bytes).map_err(|_| Error::Value)?);
        }
        Ok(found)
    }

    /// Reads every value: sled finds damage only where it reads.
    ///
    /// # Errors
    /// [`Error`].
    pub fn check(&self) -> Result<(), Error> {
        for tree in [&self.endpoints, &self.blocks, &self.incidents, &self.markers, &self.silences, &self.keys] {
            for item in tree {
                item.map_err(self.error())?;
            }
        }
        self.applied().map(drop)
    }

    /// Up to which position it is complete.
    ///
    /// # Errors
    /// [`Error`].
    pub fn applied(&self) -> Result<Position, Error> {
        let bytes = self.db.get(APPLIED).map_err(self.error())?;
        Ok(Position(bytes.and_then(|b| b.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes)))
    }

    /// Makes it complete up to a position, on disk.
    ///
    /// # Errors
    /// [`Error`].
    pub fn flush(&self, applied: Position) -> Result<(), Error> {
        self.db.insert(APPLIED, &applied.0.to_be_bytes()).map_err(self.error())?;
        self.db.flush().map_err(self.error())?;
        // sled's flush is no fsync: this is.
        if let Ok(file) = std::fs::File::open(self.path.join("db")) {
            file.sync_all().map_err(|e| self.error()(sled::Error::Io(e)))?;
        }
        Ok(())
    }

    /// Adds an endpoint.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_endpoint(&self, id: crate::endpoint::EndpointId, entry: &super::catalogue::Entry) -> Result<(), Error> {
        self.put(&self.endpoints, &id.0.to_be_bytes(), entry)
    }

    /// All endpoints in the order of their numbers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn endpoints(&self) -> Result<Vec<super::catalogue::Entry>, Error> {
        self.all(&self.endpoints)
    }

    /// Adds a block of history.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_block(&self, block: &Block) -> Result<(), Error> {
        self.blocks.insert(block_key(block.tier, block.period, block.name), &block.offset.to_be_bytes()).map_err(self.error())?;
        Ok(())
    }

    /// The block of that name, if it is known.
    ///
    /// # Errors
    /// [`Error`].
    pub fn block(&self, tier: Tier, period: Timestamp, name: Position) -> Result<Option<Block>, Error> {
        let Some(value) = self.blocks.get(block_key(tier, period, name)).map_err(self.error())? else { return Ok(None) };
        let offset = value.as_ref().try_into().map(u64::from_be_bytes).map_err(|_| Error::Value)?;
        Ok(Some(Block { tier, period, name, offset }))
    }

    /// The blocks of periods that begin in [from, to), by period and name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn blocks(&self, tier: Tier, from: Timestamp, to: Timestamp) -> Result<Vec<Block>, Error> {
        let mut found = Vec::new();
        for item in self.blocks.range(block_key(tier, from, Position(0))..block_key(tier, to.max(from), Position(0))) {
            let (key, value) = item.map_err(self.error())?;
            let part = |at: usize| key.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes).ok_or(Error::Value);
            let offset = value.as_ref().try_into().map(u64::from_be_bytes).map_err(|_| Error::Value)?;
            let period = Timestamp(i64::try_from(part(1)?).map_err(|_| Error::Value)?);
            found.push(Block { tier, period, name: Position(part(9)?), offset });
        }
        Ok(found)
    }

    /// Forgets the blocks of periods that begin before an instant.
    ///
    /// # Errors
    /// [`Error`].
    pub fn forget_blocks(&self, tier: Tier, before: Timestamp) -> Result<(), Error> {
        for block in self.blocks(tier, Timestamp(0), before)? {
            self.blocks.remove(block_key(tier, block.period, block.name)).map_err(self.error())?;
        }
        Ok(())
    }

    /// Stores how an incident stands.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_incident(&self, incident: &Incident) -> Result<(), Error> {
        self.put(&self.incidents, incident.id.as_bytes(), incident)
    }

    /// All incidents, the newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn incidents(&self) -> Result<Vec<Incident>, Error> {
        let mut all: Vec<Incident> = self.all(&self.incidents)?;
        all.sort_by(|a, b| (b.opened_at, &b.id).cmp(&(a.opened_at, &a.id)));
        Ok(all)
    }

    /// One incident.
    ///
    /// # Errors
    /// [`Error`].
    pub fn incident(&self, id: &str) -> Result<Option<Incident>, Error> {
        let bytes = self.incidents.get(id.as_bytes()).map_err(self.error())?;
        bytes.map(|b| serde_json::from_slice(&b).map_err(|_| Error::Value)).transpose()
    }

    /// Stores a marker under its time and the position of its record.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_marker(&self, marker: &Marker, position: Position, index: usize) -> Result<(), Error> {
        let mut key = u64::try_from(marker.ts.0).unwrap_or(0).to_be_bytes().to_vec();
        key.extend_from_slice(&position.0.to_be_bytes());
        key.extend_from_slice(&(index as u64).to_be_bytes());
        self.put(&self.markers, &key, marker)
    }

    /// All markers, by time.
    ///
    /// # Errors
    /// [`Error`].
    pub fn markers(&self) -> Result<Vec<Marker>, Error> {
        self.all(&self.markers)
    }

    /// Stores a silence.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_silence(&self, silence: &Silence) -> Result<(), Error> {
        self.put(&self.silences, silence.id.as_bytes(), silence)
    }

    /// All silences there were.
    ///
    /// # Errors
    /// [`Error`].
    pub fn silences(&self) -> Result<Vec<Silence>, Error> {
        self.all(&self.silences)
    }

    /// Ends a silence.
    ///
    /// # Errors
    /// [`Error`].
    pub fn end_silence(&self, id: &str, at: Timestamp) -> Result<(), Error> {
        let Some(bytes) = self.silences.get(id.as_bytes()).map_err(self.error())? else { return Ok(()) };
        let mut silence: Silence = serde_json::from_slice(&bytes).map_err(|_| Error::Value)?;
        silence.until = silence.until.min(at);
        self.put_silence(&silence)
    }

    /// Stores the answer of a batch key.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_key(&self, key: u128, answer: &impl Serialize) -> Result<(), Error> {
        self.put(&self.keys, &key.to_be_bytes(), answer)
    }

    /// All batch keys with their answers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keys<T: DeserializeOwned>(&self) -> Result<Vec<(u128, T)>, Error> {
        let mut found = Vec::new();
        for item in &self.keys {
            let (key, bytes) = item.map_err(self.error())?;
            let key = key.as_ref().try_into().map(u128::from_be_bytes).map_err(|_| Error::Value)?;
            found.push((key, serde_json::from_slice(&bytes).map_err(|_| Error::Value)?));
        }
        Ok(found)
    }

    /// Forgets a batch key.
    ///
    /// # Errors
    /// [`Error`].
    pub fn forget_key(&self, key: u128) -> Result<(), Error> {
        self.keys.remove(key.to_be_bytes()).map_err(self.error())?;
        Ok(())
    }
}

fn block_key(tier: Tier, period: Timestamp, name: Position) -> [u8; 17] {
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
