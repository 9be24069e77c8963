//! What is on disk beside the log, kept in step with it: history files, the index, snapshots; and the way back from all of them at a start.
//!
//! A start takes the newest snapshot and the index, if the index is at least as new, and applies the log's tail. When either is missing or damaged both are built
//! again from archive, log and history, which need neither. What a frame brings about is written under the frame's position, so applying it twice writes once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::endpoint::EndpointId;
use crate::history::catalogue::Limits;
use crate::history::files::{self, Files};
use crate::history::query::Kept;
use crate::history::slots::Row;
use crate::history::store::{self, Store};
use crate::ingest::batch_keys::KEEP_MS;
use crate::judge::{Promise, Promises, Record};
use crate::log::file::{self, Log, Reader, Torn};
use crate::log::record::{Kind, Position, Section};
use crate::log::snapshot;
use crate::machine::{Carried, Delta, Effects, FrameError, Machine};
use crate::time::{SLOT_MS, Slot, Tier, Timestamp};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("{} is used by another slowburn: stop that one, or name another directory with --data-dir", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] file::Error),
    /// A frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// History.
    #[error(transparent)]
    History(#[from] files::Error),
    /// The index.
    #[error(transparent)]
    Index(#[from] store::Error),
}

/// Everything on disk but the log.
#[derive(Debug)]
pub struct Keeper {
    data_dir: PathBuf,
    files: Files,
    /// The index.
    pub store: Store,
    keep_minutes_ms: i64,
    keep_hours_ms: i64,
    keep_log_ms: i64,
    /// How far apart checkpoints are, in milliseconds.
    pub snapshot_every_ms: i64,
    last_snapshot: Timestamp,
    last_sweep: Timestamp,
    /// The time that the log tells first from a position on, as looked up last.
    dated: Option<(Position, Timestamp)>,
}

/// How long things are kept, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Minutes.
    pub minutes_ms: i64,
    /// Hours.
    pub hours_ms: i64,
    /// The raw log.
    pub log_ms: i64,
}

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
    pub lock: File,
}

/// Takes the lock of a data directory.
///
/// # Errors
/// [`Error::Locked`].
pub fn lock(data_dir: &Path) -> Result<File, Error> {
    fs::create_dir_all(data_dir).map_err(file::io_error("cannot create", data_dir))?;
    let path = data_dir.join("lock");
    let lock = File::create(&path).map_err(file::io_error("cannot create", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
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
    let store = open_store(data_dir, now)?;
    let files = Files::open(data_dir)?;
    let mut keeper = Keeper {
        data_dir: data_dir.to_owned(),
        files,
        store,
        keep_minutes_ms: retention.minutes_ms,
        keep_hours_ms: retention.hours_ms,
        keep_log_ms: retention.log_ms,
        snapshot_every_ms: 60_000,
        last_snapshot: now,
        last_sweep: Timestamp(0),
        dated: None,
    };
    let restored = match newest {
        Some((position, bytes)) if keeper.store.applied()? >= position => {
            let keys = keeper.store.keys()?;
            Machine::restore(&bytes, position, keys, limits)
        }
        _ => None,
    };
    let machine = match restored {
        Some(mut machine) => {
            for frame in Reader::log(data_dir, machine.position.next())? {
                let frame = frame?;
                let delta = Delta::from_frame(&frame)?;
                let effects = machine.apply(frame.position, &delta);
                keeper.keep(&machine, frame.position, &delta, &effects)?;
            }
            machine
        }
        None => keeper.rebuild(limits, log.next() > Position(1), now)?,
    };
    Ok(Opened { machine, log, keeper, torn, lock })
}

/// Opens the index; one that cannot be opened is set aside. sled is known to panic on some damage, so it is opened behind a guard.
fn open_store(data_dir: &Path, now: Timestamp) -> Result<Store, Error> {
    let try_open = || std::panic::catch_unwind(|| Store::open(data_dir).and_then(|s| s.applied().map(|_| s)));
    match try_open() {
        Ok(Ok(store)) => return Ok(store),
        Ok(Err(error)) => warn!(%error, "the index cannot be opened and is set aside"),
        Err(_) => warn!("the index panicked while it was opened and is set aside"),
    }
    store::set_aside(data_dir, now).map_err(file::io_error("cannot rename", &store::folder(data_dir)))?;
    Ok(Store::open(data_dir)?)
}

/// Removes what can be built again.
fn forget_views(data_dir: &Path) -> Result<(), Error> {
    for path in [store::folder(data_dir), data_dir.join("snapshots")] {
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(file::io_error("cannot remove", &path)(e).into()),
            _ => {}
        }
    }
    Ok(())
}

impl Keeper {
    /// Where history is.
    #[must_use]
    pub fn reader(&self) -> files::Reader {
        files::Reader::new(&self.data_dir)
    }

    /// Room that is left on the disk, in bytes; `None` where it cannot be told.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.data_dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Since when each tier is complete, as of now.
    #[must_use]
    pub fn kept(&self, machine: &Machine, now: Timestamp) -> Kept {
        Kept { minutes_from: self.kept_from(Tier::Minute, now), hours_from: self.kept_from(Tier::Hour, now), closed_to: machine.history_to() }
    }

    /// Since when a tier is complete: from a whole period of the next coarser one, which answers for what was before.
    fn kept_from(&self, tier: Tier, now: Timestamp) -> Timestamp {
        let back = |keep_ms: i64| Timestamp((now.0 - keep_ms).max(0));
        match tier {
            Tier::Minute => Tier::Hour.period_of(back(self.keep_minutes_ms)),
            Tier::Hour => Tier::Day.period_of(back(self.keep_hours_ms)),
            Tier::Day => Timestamp(0),
        }
    }

    /// Writes what a frame brought about. Under the frame's name, so it may be called again for the same frame.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keep(&mut self, machine: &Machine, position: Position, delta: &Delta, effects: &Effects) -> Result<(), Error> {
        for entry in &delta.endpoints {
            if let Some(id) = machine.catalogue.get((*entry.key).as_ref()) {
                self.store.put_endpoint(id, entry)?;
            }
        }
        for (key, answer) in delta.batches.iter().filter_map(|b| b.key.map(|k| (k, &b.answer))) {
            self.store.put_key(key, answer)?;
        }
        for incident in &effects.incidents {
            self.store.put_incident(incident)?;
        }
        for (index, record) in delta.records.iter().enumerate() {
            match record {
                Record::Marked(marker) => self.store.put_marker(marker, position, index)?,
                Record::Silenced(silence) => self.store.put_silence(silence)?,
                Record::Unsilenced { id, at } => self.store.end_silence(id, *at)?,
                _ => {}
            }
        }
        self.keep_history(position, effects)
    }

    fn keep_history(&mut self, position: Position, effects: &Effects) -> Result<(), Error> {
        let closed_before = effects.closed_to.map_or(Timestamp(i64::MAX), |c| c.0);
        let mut late: BTreeMap<(Tier, Timestamp), BTreeMap<EndpointId, Row>> = BTreeMap::new();
        for minute in &effects.closed {
            self.put(Tier::Minute, minute.start, position, &minute.rows)?;
            for tier in [Tier::Hour, Tier::Day] {
                let period = tier.period_of(minute.start);
                if period.0 + tier.width_ms() <= closed_before.0 {
                    merge_rows(late.entry((tier, period)).or_default(), &minute.rows);
                }
            }
        }
        for ((tier, period), rows) in late {
            self.put(tier, period, position, &rows.into_values().collect::<Vec<_>>())?;
        }
        if let Some((before, after)) = effects.closed_to {
            self.roll_up(Tier::Minute, Tier::Hour, before, after, position)?;
            self.roll_up(Tier::Hour, Tier::Day, before, after, position)?;
        }
        Ok(())
    }

    /// Merges the finer blocks of each coarser period that ended in (before, after].
    fn roll_up(&mut self, fine: Tier, coarse: Tier, before: Timestamp, after: Timestamp, position: Position) -> Result<(), Error> {
        let end = coarse.period_of(after);
        if end <= before {
            return Ok(());
        }
        let (reader, mut blocks) = (self.reader(), BTreeMap::<Timestamp, Vec<files::Block>>::new());
        for block in self.store.blocks(fine, coarse.period_of(before), end)? {
            blocks.entry(coarse.period_of(block.period)).or_default().push(block);
        }
        for (period, fine_blocks) in blocks {
            if self.has(coarse, period, position)? {
                continue;
            }
            let mut rows = BTreeMap::new();
            for block in fine_blocks.iter().filter(|b| b.name <= position) {
                merge_rows(&mut rows, &reader.rows_where(block, |_| true)?);
            }
            self.put(coarse, period, position, &rows.into_values().collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn put(&mut self, tier: Tier, period: Timestamp, name: Position, rows: &[Row]) -> Result<(), Error> {
        if !rows.is_empty() && !self.has(tier, period, name)? {
            let block = self.files.append(tier, period, name, rows)?;
            self.store.put_block(&block)?;
        }
        Ok(())
    }

    /// Whether a block was written before this start. It is looked for in the file too: the index may have outlived it.
    fn has(&mut self, tier: Tier, period: Timestamp, name: Position) -> Result<bool, Error> {
        match self.store.block(tier, period, name)? {
            Some(block) => Ok(self.files.holds(&block)?),
            None => Ok(false),
        }
    }

    /// Now and then, after a slot has closed: history and index to disk, then a snapshot, then what is no longer needed goes.
    ///
    /// # Errors
    /// [`Error`]; the process must then end.
    pub fn checkpoint(&mut self, machine: &mut Machine, now: Timestamp) -> Result<(), Error> {
        self.files.sync()?;
        for key in machine.keys.sweep(now) {
            self.store.forget_key(key)?;
        }
        self.store.flush(machine.position)?;
        snapshot::write(&self.data_dir, machine.position, &machine.snapshot())?;
        self.last_snapshot = now;
        if now.0 - self.last_sweep.0 >= 600_000 {
            self.last_sweep = now;
            self.sweep(now)?;
        }
        Ok(())
    }

    /// Whether it is time for a checkpoint.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        now.0 - self.last_snapshot.0 >= self.snapshot_every_ms
    }

    fn sweep(&mut self, now: Timestamp) -> Result<(), Error> {
        for tier in [Tier::Minute, Tier::Hour] {
            let before = self.kept_from(tier, now);
            for path in self.files.forget(tier, before)? {
                info!(path = %path.display(), "history older than its retention was deleted");
            }
            self.store.forget_blocks(tier, before)?;
        }
        self.archive(now)
    }

    /// Moves old segments of the log to the archive, which keeps what was decided and forgets what was counted. A segment is as old as what follows it.
    fn archive(&mut self, now: Timestamp) -> Result<(), Error> {
        let segments = file::segments(&self.data_dir.join("log"))?;
        let known = snapshot::list(&self.data_dir)?;
        let Some((safe, _)) = known.first().filter(|_| known.len() >= 2) else { return Ok(()) };
        for pair in segments.windows(2) {
            let ((_, path), (next_first, _)) = (&pair[0], &pair[1]);
            if next_first > safe || self.dated_from(*next_first)?.is_none_or(|at| at.0 + self.keep_log_ms > now.0) {
                break;
            }
            let mut carried = self.carried()?;
            file::archive_segment(&self.data_dir, path, |frame, is_last| {
                carried = std::mem::take(&mut carried).after(&Delta::from_frame(&frame)?);
                let kept = frame.sections.into_iter().filter(|s| !is_forgettable(s));
                Ok::<_, Error>(kept.chain(is_last.then(|| carried.to_section())).collect())
            })?;
            info!(path = %path.display(), "a segment of the log was archived without its counts");
        }
        Ok(())
    }

    fn dated_from(&mut self, position: Position) -> Result<Option<Timestamp>, Error> {
        if self.dated.is_none_or(|(known, _)| known != position) {
            self.dated = None;
            for frame in Reader::log(&self.data_dir, position)? {
                if let Some(at) = Delta::from_frame(&frame?)?.at() {
                    self.dated = Some((position, at));
                    break;
                }
            }
        }
        Ok(self.dated.map(|(_, at)| at))
    }

    /// What the newest segment of the archive carries on.
    fn carried(&self) -> Result<Carried, Error> {
        let newest = file::segments(&self.data_dir.join("archive"))?.last().map_or(Position(0), |s| s.0);
        let mut carried = Carried::default();
        for frame in Reader::archive(&self.data_dir, newest)? {
            carried = carried.after(&Delta::from_frame(&frame?)?);
        }
        Ok(carried)
    }

    /// Builds index and state from what they follow from.
    fn rebuild(&mut self, limits: Limits, is_old: bool, now: Timestamp) -> Result<Machine, Error> {
        if is_old {
            info!("building the index and the state again from log and history");
            if self.store.applied()? > Position(0) {
                // It is sound, and belongs to a snapshot that is not there: a crash before the first one, or one of another version.
                let aside = store::set_aside(&self.data_dir, now).map_err(file::io_error("cannot rename", &store::folder(&self.data_dir)))?;
                self.store = Store::open(&self.data_dir)?;
                fs::remove_dir_all(&aside).map_err(file::io_error("cannot remove", &aside))?;
            }
        }
        let reader = self.reader();
        for tier in Tier::ALL {
            for block in reader.blocks(tier)?.iter().filter(|b| b.period >= self.kept_from(tier, now)) {
                self.store.put_block(block)?;
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
            let mut effects = machine.apply(frame.position, &delta);
            if frame.position < first_counted {
                // Its counts are long in history.
                (effects.closed, effects.closed_to) = (Vec::new(), None);
            }
            self.keep(&machine, frame.position, &delta, &effects)?;
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
        let (reader, end) = (self.reader(), machine.history_to());
        let all = |tier: Tier, from: Timestamp, to: Timestamp| self.store.blocks(tier, from, to);
        // Rings of windows reach back 3 days and more; minutes are kept for longer.
        let promised = || machine.judge.promises().endpoints.iter().flat_map(|e| &e.promises);
        let longest_ms = |slots: fn(&Promise) -> u32| promised().map(slots).max().map_or(0, |s| i64::from(s) * SLOT_MS);
        let (windows_ms, period_ms) = (longest_ms(Promise::longest_slots), longest_ms(|p| p.period_slots));
        let minutes_from = Tier::Hour.period_of(Timestamp((end.0 - windows_ms - 3_600_000).max(0)));
        for block in all(Tier::Minute, minutes_from, end)? {
            let first = Slot::containing(block.period);
            for row in reader.rows_where(&block, |id| machine.judge.has_rules(id))? {
                for (offset, cell) in &row.slots {
                    machine.judge.count(row.endpoint, Slot(first.0 + u32::from(*offset)), cell);
                }
            }
        }
        for block in all(Tier::Hour, Tier::Hour.period_of(Timestamp((end.0 - period_ms - 3_600_000).max(0))), minutes_from)? {
            for row in reader.rows_where(&block, |id| machine.judge.has_rules(id))? {
                machine.judge.count_past_hour(row.endpoint, Slot::containing(block.period), &row.cell);
            }
        }
        let (day, hour) = (Tier::Day.period_of(end), Tier::Hour.period_of(end));
        for (tier, from, to) in [(Tier::Day, Timestamp(0), day), (Tier::Hour, day, hour), (Tier::Minute, hour, end)] {
            for block in all(tier, from, to)? {
                for row in reader.rows_where(&block, |_| true)? {
                    if let Some(total) = machine.totals.get_mut(row.endpoint.0 as usize) {
                        total.merge(&row.cell);
                    }
                }
            }
        }
        Ok(())
    }
}

fn merge_rows(into: &mut BTreeMap<EndpointId, Row>, rows: &[Row]) {
    for row in rows {
        let merged = into.entry(row.endpoint).or_insert_with(|| Row { endpoint: row.endpoint, cell: crate::counting::Cell::default(), slots: Vec::new() });
        if merged.cell.is_empty() { merged.cell = row.cell.clone() } else { merged.cell.merge(&row.cell) }
    }
}

/// What the archive does not keep: counts and what hangs on single timings, keys that have run out, slot ends at which nothing was said, sums that are carried.
fn is_forgettable(section: &Section) -> bool {
    const IDLE: &[u8] = b"[{\"slot_closed\":{\"end\":";
    let idle = || section.bytes.strip_prefix(IDLE).is_some_and(|rest| rest.ends_with(b"}}]") && rest[..rest.len() - 3].iter().all(u8::is_ascii_digit));
    matches!(section.kind, Kind::COUNTS | Kind::DETAILS | Kind::IN_FLIGHT | Kind::BATCHES | Kind::OUTCOMES) || (section.kind == Kind::RECORDS && idle())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_forgets_counts_and_idle_slot_ends_only() {
        let records = |json: &str| Section { kind: Kind::RECORDS, bytes: json.as_bytes().to_vec() };
        assert!(is_forgettable(&records(r#"[{"slot_closed":{"end":17}}]"#)));
        assert!(!is_forgettable(&records(r#"[{"slot_closed":{"end":17,"transitions":[]}}]"#)));
        assert!(!is_forgettable(&records(r#"[{"started":{"at":17}}]"#)));
        assert!(is_forgettable(&Section { kind: Kind::COUNTS, bytes: vec![] }));
        assert!(!is_forgettable(&Section { kind: Kind(77), bytes: vec![] }));
    }
}
