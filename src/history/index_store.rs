//! The index on disk, in sled 0.34.7. Written at checkpoints only, all of it from one thread; read at the start only.
//!
//! Its known traps are kept off: no transactions, no compression, one writer, iterators that stop at the first error, no background flush, an fsync of its own (its flush is
//! `sync_file_range`). After one failed write, be it for lack of room, sled answers every further call with that error, and it is known to panic and to wait for ever: so it is only
//! called on a thread that may be left behind ([`guarded`]), and one that failed is never asked again but written anew.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::ingest::batch_keys::Answered;
use crate::log::Position;
use crate::log::disk_ops;

/// Longer than a sound disk takes for any of it.
const LIMIT: Duration = Duration::from_secs(60);

/// sled keeps three to ten times this in memory.
const CACHE_BYTES: u64 = 32 << 20;

const APPLIED: &[u8] = b"applied";

/// Why the index on disk cannot be used; it can be written anew from what is in memory, or from log and history.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// sled said no.
    #[error("the index in {} cannot be used: {source}", path.display())]
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
    /// sled panicked, or did not come back.
    #[error("sled {0}")]
    Lost(&'static str),
    /// It failed before, and whoever asks did not bring all that it is to hold.
    #[error("the index is not on disk: it is written anew with the next checkpoint")]
    Absent,
}

impl Error {
    /// Whether there was no room on the disk.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Sled { source: sled::Error::Io(e), .. } if disk_ops::is_no_room(e))
    }
}

/// What people read of what was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Incidents,
    Markers,
    Silences,
}

impl Said {
    pub(super) const ALL: [Self; 3] = [Self::Incidents, Self::Markers, Self::Silences];
}

pub(super) type BlockKey = [u8; 17];

/// What is to be written; `None` takes it away.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Block(BlockKey, Option<u64>),
    Said(Said, Vec<u8>, Vec<u8>),
    Key(u128, Option<Answered>),
}

/// Has something done that sled may panic in, or never come back from.
pub(super) fn guarded<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let (done, outcome) = channel();
    let spawned = std::thread::Builder::new().name("index".to_owned()).spawn(move || {
        // Whoever waited may have given up.
        drop(done.send(work()));
    });
    if spawned.is_err() {
        return Err(Error::Lost("has no thread"));
    }
    outcome.recv_timeout(LIMIT).unwrap_or_else(|e| {
        Err(Error::Lost(match e {
            RecvTimeoutError::Timeout => "does not come back",
            RecvTimeoutError::Disconnected => "panicked",
        }))
    })
}

/// The open database.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    db: sled::Db,
    blocks: sled::Tree,
    said: [sled::Tree; 3],
    keys: sled::Tree,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let opened = || -> Result<Self, sled::Error> {
            let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
            Ok(Self {
                path: path.to_owned(),
                blocks: db.open_tree("blocks")?,
                said: [db.open_tree("incidents")?, db.open_tree("markers")?, db.open_tree("silences")?],
                keys: db.open_tree("keys")?,
                db,
            })
        };
        opened().map_err(|source| Error::Sled { path: path.to_owned(), source })
    }

    /// An empty one in the place of any other.
    pub(super) fn begin_anew(path: &Path) -> Result<Self, Error> {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::Sled { path: path.to_owned(), source: sled::Error::Io(e) }),
            _ => Self::open(path),
        }
    }

    fn error(&self) -> impl Fn(sled::Error) -> Error {
        let path = self.path.clone();
        move |source| Error::Sled { path: path.clone(), source }
    }

    /// Everything that it holds.
    pub(super) fn all(&self) -> Result<Vec<Change>, Error> {
        let mut all = Vec::new();
        for item in &self.blocks {
            let (key, value) = item.map_err(self.error())?;
            let key = key.as_ref().try_into().map_err(|_| Error::Value)?;
            all.push(Change::Block(key, Some(value.as_ref().try_into().map(u64::from_be_bytes).map_err(|_| Error::Value)?)));
        }
        for said in Said::ALL {
            for item in &self.said[said as usize] {
                let (key, value) = item.map_err(self.error())?;
                all.push(Change::Said(said, key.to_vec(), value.to_vec()));
            }
        }
        for item in &self.keys {
            let (key, value) = item.map_err(self.error())?;
            let key = key.as_ref().try_into().map(u128::from_be_bytes).map_err(|_| Error::Value)?;
            all.push(Change::Key(key, Some(serde_json::from_slice(&value).map_err(|_| Error::Value)?)));
        }
        Ok(all)
    }

    /// Up to which position it is complete.
    pub(super) fn applied(&self) -> Result<Position, Error> {
        let bytes = self.db.get(APPLIED).map_err(self.error())?;
        Ok(Position(bytes.and_then(|b| b.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes)))
    }

    /// Writes changes; with them it is complete up to a position, on disk.
    pub(super) fn write(&self, changes: &[Change], applied: Position) -> Result<(), Error> {
        disk_ops::pass_index_write(&self.path).map_err(|e| self.error()(sled::Error::Io(e)))?;
        for change in changes {
            match change {
                Change::Block(key, Some(offset)) => self.blocks.insert(key, &offset.to_be_bytes()),
                Change::Block(key, None) => self.blocks.remove(key),
                Change::Said(said, key, value) => self.said[*said as usize].insert(key, value.as_slice()),
                Change::Key(key, Some(answer)) => self.keys.insert(key.to_be_bytes(), serde_json::to_vec(answer).map_err(|_| Error::Value)?),
                Change::Key(key, None) => self.keys.remove(key.to_be_bytes()),
            }
            .map_err(self.error())?;
        }
        self.db.insert(APPLIED, &applied.0.to_be_bytes()).map_err(self.error())?;
        self.db.flush().map_err(self.error())?;
        // sled's flush is no fsync: this is.
        let file = std::fs::File::open(self.path.join("db"));
        file.and_then(|f| f.sync_all()).map_err(|e| self.error()(sled::Error::Io(e)))
    }
}
