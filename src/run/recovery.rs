//! The way back at a start: from snapshot, index and the log's tail; or, when one of the two is missing or damaged, from archive, log and history alone.
//!
//! Code never decides the past again: recovery only applies what stands in the log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use tracing::{info, warn};

use super::disk::{Error, Keeper, Retention};
use crate::counting::Cell;
use crate::endpoint::EndpointId;
use crate::history::catalogue::Limits;
use crate::history::closed_periods::{Files, Reader, Wanted};
use crate::history::index::{self, Index};
use crate::history::open_slots::Row;
use crate::ingest::batch_keys::KEEP_MS;
use crate::judge::{Promise, Promises};
use crate::log::file::{self, Log, Torn};
use crate::log::record::Position;
use crate::log::snapshot;
use crate::machine::{Delta, Machine};
use crate::time::{SLOT_MS, Slot, Tier, Timestamp};

/// A data directory, opened.
#[derive(Debug)]
pub struct Opened {
    /// The state.
    pub machine: Machine,
    /// The log, to go on with.
    pub log: Log,
    /// The rest of the disk.
    pub keeper: Keeper,
    /// A torn write that was cut off.
    pub torn: Option<Torn>,
    /// Held as long as the directory is used.
    pub lock: FolderLock,
}

/// A data directory is one process' own as long as this lives.
///
/// Unlocked by name when it goes: closing the file is not enough while a process that was just forked still holds a copy of it, which it does until it runs its own program.
#[derive(Debug)]
pub struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        if let Err(e) = self.0.unlock() {
            warn!(error = %e, "the lock of the data directory is left to the end of the process");
        }
    }
}

/// Takes the lock of a data directory.
///
/// # Errors
/// [`Error::Locked`].
pub fn lock(data_dir: &Path) -> Result<FolderLock, Error> {
    fs::create_dir_all(data_dir).map_err(file::io_error("cannot create", data_dir))?;
    let path = data_dir.join("lock");
    let lock = File::create(&path).map_err(file::io_error("cannot create", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(FolderLock(lock)),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked { path: data_dir.to_owned() }),
        Err(fs::TryLockError::Error(e)) => Err(file::io_error("cannot lock", &path)(e).into()),
    }
}

/// Opens a data directory and brings the state back. With `rebuild` snapshots and index are built again in any case.
///
/// # Errors
/// [`Error`]; nothing was lost or deleted then.
pub fn open(data_dir: &Path, limits: Limits, retention: Retention, now: Timestamp, rebuild: bool) -> Result<Opened, Error> {
    let lock = lock(data_dir)?;
    let (mut log, torn) = Log::open(data_dir)?;
    if rebuild {
        forget_views(data_dir)?;
    }
    let (newest, bad) = snapshot::newest(data_dir)?;
    for path in bad {
        warn!(path = %path.display(), "a snapshot does not check and is passed over");
    }
    if let Some((position, _)) = newest.as_ref().filter(|(position, _)| *position >= log.next()) {
        // New frames under positions that the snapshot covers would never be read again.
        warn!(log = log.next().0, snapshot = position.0, "the log ends before the newest snapshot: it goes on behind it, with a gap");
        log.skip_to(position.next())?;
    }
    let index = open_index(data_dir, now);
    let files = Files::open(data_dir)?;
    let mut keeper = Keeper {
        data_dir: data_dir.to_owned(),
        files,
        index,
        keep_minutes_ms: retention.minutes_ms,
        keep_hours_ms: retention.hours_ms,
        keep_log_ms: retention.log_ms,
        snapshot_every_ms: 60_000,
        snapshot_log_bytes: 32 << 20,
        last_snapshot: now,
        last_sweep: Timestamp(0),
        replayed_bytes: 0,
        dated: None,
        waiting: None,
    };
    let restored = match newest {
        Some((position, bytes)) if keeper.index.applied() >= position => {
            let keys = keeper.index.take_keys();
            Machine::restore(&bytes, position, keys, limits)
        }
        _ => None,
    };
    let machine = match restored {
        Some(mut machine) => {
            keeper.files.cut_torn()?;
            // A version that kept fewer whole totals may have written the snapshot.
            let made_whole = machine.begin_whole();
            complete_totals(&keeper.index, &keeper.reader(), &mut machine, &made_whole)?;
            for frame in file::Reader::log(data_dir, machine.position.next())? {
                let frame = frame?;
                keeper.replayed_bytes += frame.sections.iter().map(|s| s.bytes.len() as u64).sum::<u64>();
                let mut delta = Delta::from_frame(&frame)?;
                let effects = machine.take_in(frame.position, &mut delta);
                keeper.keep_or_wait(&mut machine, frame.position, &delta, &effects)?;
                match &mut keeper.waiting {
                    Some(waiting) => waiting.uncounted.extend(effects.made_whole),
                    None => complete_totals(&keeper.index, &keeper.reader(), &mut machine, &effects.made_whole)?,
                }
            }
            machine.settle();
            machine
        }
        None => keeper.rebuild(limits, log.next() > Position(1), now)?,
    };
    Ok(Opened { machine, log, keeper, torn, lock })
}

/// Opens the index; one that cannot be opened is set aside, and what cannot be written for now is in memory. So it never stands in the way of a start.
fn open_index(data_dir: &Path, now: Timestamp) -> Index {
    let error = match Index::open(data_dir) {
        Ok(index) => return index,
        Err(error) => error,
    };
    if error.is_no_room() {
        warn!(%error, "there is no room to open the index: it is built again in memory");
        return Index::in_memory(data_dir);
    }
    warn!(%error, "the index cannot be opened and is set aside");
    let anew = index::set_aside(data_dir, now).map_err(|e| e.to_string()).and_then(|_| Index::open(data_dir).map_err(|e| e.to_string()));
    anew.unwrap_or_else(|error| {
        warn!(error, "no other index can be made: it is built again in memory");
        Index::in_memory(data_dir)
    })
}

/// Removes what can be built again.
fn forget_views(data_dir: &Path) -> Result<(), Error> {
    for path in [index::folder(data_dir), data_dir.join("snapshots")] {
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(file::io_error("cannot remove", &path)(e).into()),
            _ => {}
        }
    }
    Ok(())
}

impl Keeper {
    /// Builds index and state from what they follow from.
    fn rebuild(&mut self, limits: Limits, is_old: bool, now: Timestamp) -> Result<Machine, Error> {
        if is_old {
            info!("building the index and the state again from log and history");
            if self.index.applied() > Position(0) {
                // It is sound, and belongs to a snapshot that is not there: a crash before the first one, or one of another version. The first checkpoint writes it anew.
                self.index = Index::in_memory(&self.data_dir);
            }
        }
        self.files.cut_torn()?;
        let reader = self.reader();
        for tier in Tier::ALL {
            for block in reader.blocks(tier)?.iter().filter(|b| b.period >= self.kept_from(tier, now)) {
                self.index.put_block(block);
            }
        }
        let mut machine = Machine::new(Promises::none(15_000), limits);
        machine.begin_rebuild();
        let data_dir = self.data_dir.clone();
        let first_counted = file::segments(&data_dir.join("log"))?.first().map_or(Position(1), |s| s.0);
        for frame in file::archive_and_log(&data_dir)? {
            let frame = frame?;
            let mut delta = Delta::from_frame(&frame)?;
            // Keys that have run out are not asked for again.
            delta.batches.retain(|b| b.key.is_none() || b.answer.at.0 + KEEP_MS >= now.0);
            let mut effects = machine.take_in(frame.position, &mut delta);
            if frame.position < first_counted {
                // Its counts are long in history.
                (effects.closed, effects.closed_to) = (Vec::new(), None);
            }
            self.keep_or_wait(&mut machine, frame.position, &delta, &effects)?;
        }
        let mut failed = None;
        machine.finish_rebuild(|machine| failed = self.count_the_past(machine).err());
        match failed {
            Some(e) => Err(e),
            None => Ok(machine),
        }
    }

    /// Sums and totals from history: each stretch from the finest tier that judging needs, or the coarsest that is closed.
    fn count_the_past(&self, machine: &mut Machine) -> Result<(), Error> {
        let (reader, (named_to, end)) = (self.reader(), self.written(machine));
        let all = |tier: Tier, from: Timestamp, to: Timestamp| self.index.blocks(tier, from, to).into_iter().filter(|b| b.name <= named_to);
        // Rings of windows reach back 3 days and more; minutes are kept for longer.
        let promised = || machine.judge.promises().endpoints.iter().flat_map(|e| &e.promises);
        let longest_ms = |slots: fn(&Promise) -> u32| promised().map(slots).max().map_or(0, |s| i64::from(s) * SLOT_MS);
        let (windows_ms, period_ms) = (longest_ms(Promise::longest_slots), longest_ms(|p| p.period_slots));
        let minutes_from = Tier::Hour.period_of(Timestamp((end.0 - windows_ms - 3_600_000).max(0)));
        for block in all(Tier::Minute, minutes_from, end) {
            let first = Slot::containing(block.period);
            for row in reader.rows_where(&block, |id| machine.judge.has_rules(id))? {
                for (offset, cell) in &row.slots {
                    machine.judge.count(row.endpoint, Slot(first.0 + u32::from(*offset)), cell);
                }
            }
        }
        for block in all(Tier::Hour, Tier::Hour.period_of(Timestamp((end.0 - period_ms - 3_600_000).max(0))), minutes_from) {
            for row in reader.rows_where(&block, |id| machine.judge.has_rules(id))? {
                machine.judge.count_past_hour(row.endpoint, Slot::containing(block.period), &row.cell);
            }
        }
        visit_past(&self.index, &reader, (named_to, end), &Wanted::All, |row| {
            if let Some(total) = machine.totals.get_mut(row.endpoint.0 as usize) {
                total.add_cell(&row.cell);
            }
        })
    }
}

/// Every row of the past up to a position once, of the coarsest tier that has it; row by row, because a block of all endpoints is hundreds of megabytes in memory.
fn visit_past(index: &Index, reader: &Reader, (named_to, end): (Position, Timestamp), wanted: &Wanted, mut visit: impl FnMut(&Row)) -> Result<(), Error> {
    let (day, hour, mut reading) = (Tier::Day.period_of(end), Tier::Hour.period_of(end), reader.begin());
    for (tier, from, to) in [(Tier::Day, Timestamp(0), day), (Tier::Hour, day, hour), (Tier::Minute, hour, end)] {
        for block in index.blocks(tier, from, to).into_iter().filter(|b| b.name <= named_to) {
            reading.each_row(&block, wanted, |row| visit(&row))?;
        }
    }
    Ok(())
}

/// Completes whole totals that were begun with what history, written up to the machine's position, and open slots have of them.
pub(super) fn complete_totals(index: &Index, reader: &Reader, machine: &mut Machine, made_whole: &[EndpointId]) -> Result<(), Error> {
    let mut past: BTreeMap<EndpointId, Cell> = made_whole.iter().map(|id| (*id, Cell::default())).collect();
    if past.is_empty() {
        return Ok(());
    }
    visit_past(index, reader, (machine.position, machine.history_to()), &Wanted::These(made_whole.to_vec()), |row| {
        if let Some(cell) = past.get_mut(&row.endpoint) {
            cell.merge(&row.cell);
        }
    })?;
    for (id, mut cell) in past {
        for (_, open) in machine.open.of(id) {
            cell.merge(&open);
        }
        machine.totals[id.0 as usize].cell = Some(Box::new(cell));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_given_up_is_free_though_a_copy_of_its_file_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let copy_of_a_fork = first.0.try_clone().unwrap();
        assert!(matches!(lock(dir.path()), Err(Error::Locked { .. })));
        drop(first);
        assert!(lock(dir.path()).is_ok());
        drop(copy_of_a_fork);
    }
}
