//! What a repair could not bring back: `history/losses.json`, so that answers over it say that they are incomplete. The first line is the sum of the second.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::closed_periods::{Error, Wanted};
use crate::endpoint::EndpointId;
use crate::log::file::io_error;
use crate::log::snapshot::write_whole;
use crate::time::{Tier, TimeRange, Timestamp};

/// Rows that are lost for good: of these endpoints, in the periods of one tier that begin in [from, to). Other tiers may still have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Of which tier.
    pub tier: Tier,
    /// The start of the first period.
    pub from: Timestamp,
    /// The end of the last.
    pub to: Timestamp,
    /// The lowest number of an endpoint.
    pub first: EndpointId,
    /// The highest.
    pub last: EndpointId,
}

impl Loss {
    /// Whether it is of every endpoint.
    #[must_use]
    pub fn is_of_all(&self) -> bool {
        (self.first, self.last) == (EndpointId(0), EndpointId(u32::MAX))
    }

    /// Whether it may concern what is asked.
    #[must_use]
    pub fn concerns(&self, wanted: &Wanted) -> bool {
        match wanted {
            Wanted::All => true,
            Wanted::These(ids) => ids.get(ids.partition_point(|id| *id < self.first)).is_some_and(|id| *id <= self.last),
        }
    }

    /// What it takes from a range of its tier.
    #[must_use]
    pub fn within(&self, range: TimeRange) -> Option<TimeRange> {
        let both = TimeRange { from: self.from.max(range.from), to: self.to.min(range.to) };
        (both.from < both.to).then_some(both)
    }
}

fn path(history: &Path) -> PathBuf {
    history.join("losses.json")
}

/// What is lost, as the folder of history says.
///
/// # Errors
/// [`Error`]: without it nobody knows which answers are whole.
pub fn read(history: &Path) -> Result<Vec<Loss>, Error> {
    let path = path(history);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(Error::Damaged { path, offset: 0 }),
        Err(e) => return Err(io_error("cannot read", &path)(e).into()),
    };
    let whole = text.split_once('\n').filter(|(sum, json)| *sum == format!("{:08x}", crc32c::crc32c(json.as_bytes())));
    whole.and_then(|(_, json)| serde_json::from_str(json).ok()).ok_or(Error::Damaged { path, offset: 0 })
}

/// Adds to what is lost.
///
/// # Errors
/// [`Error`].
pub fn add(history: &Path, more: &[Loss]) -> Result<(), Error> {
    let mut all = read(history)?;
    all.extend(more.iter().filter(|loss| !all.contains(loss)).cloned().collect::<Vec<_>>());
    let json = serde_json::to_string(&all).map_err(|e| io_error("cannot write", &path(history))(e.into()))?;
    Ok(write_whole(&path(history), format!("{:08x}\n{json}", crc32c::crc32c(json.as_bytes())).as_bytes())?)
}

/// Ranges in order, those that touch as one.
#[must_use]
pub fn joined(mut ranges: Vec<TimeRange>) -> Vec<TimeRange> {
    ranges.sort_by_key(|r| (r.from, r.to));
    let mut joined: Vec<TimeRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.from <= last.to => last.to = last.to.max(range.to),
            _ => joined.push(range),
        }
    }
    joined
}
