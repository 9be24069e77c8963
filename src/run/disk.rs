//! What is on disk beside the log, kept in step with it: history files, the index, snapshots, the archive.
//!
//! What a frame brings about is written under the frame's position, so applying it twice writes once. [`super::recovery`] is the way back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use crate::detect::fleet;
use crate::endpoint::EndpointId;
use crate::history::closed_periods::{self, Files};
use crate::history::index::{self, Index};
use crate::history::open_slots::{ClosedMinute, Row};
use crate::history::query::Kept;
use crate::history::roll_up::RollUp;
use crate::ingest::batch_keys::Answered;
use crate::judge::Record;
use crate::log::file::{self, Reader};
use crate::log::record::{Kind, Position, Section};
use crate::log::snapshot;
use crate::machine::{Carried, Delta, Effects, FrameError, Machine, State};
use crate::time::{Tier, Timestamp};

/// Quarters of an hour are kept until the detectors have learnt from fourteen days of them.
const KEEP_QUARTERS_MS: i64 = 16 * 86_400_000;

/// What the index is given to write itself to disk; with less there is no checkpoint: sled does not survive a disk that is full, and would have to be written anew.
const INDEX_ROOM_BYTES: u64 = 4 << 20;

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
    History(#[from] closed_periods::Error),
    /// The index.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// The thread that writes history is gone.
    #[error("the thread that writes history ended")]
    WriterEnded,
}

/// What a frame brings about in history and index, taken out of the state so that another thread can write it.
#[derive(Debug, Default)]
pub struct Frame {
    /// Its position.
    pub position: Position,
    keys: Vec<(u128, Answered)>,
    /// Minutes that it closed.
    pub closed: Vec<Arc<ClosedMinute>>,
    /// Up to where minutes were closed before, and are now.
    pub closed_to: Option<(Timestamp, Timestamp)>,
}

impl Frame {
    /// Of a frame that was applied.
    #[must_use]
    pub fn of(position: Position, delta: &Delta, effects: &Effects) -> Self {
        let keys = delta.batches.iter().filter_map(|b| Some((b.key?, b.answer))).collect();
        Self { position, keys, closed: effects.closed.clone(), closed_to: effects.closed_to }
    }

    /// Whether there is nothing to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.closed.is_empty() && self.closed_to.is_none_or(|(before, after)| before == after)
    }
}

/// All batch keys, when the index on disk has to be written anew and they are in nothing else.
pub(super) fn all_keys(index: &Index, machine: &Machine) -> Option<Vec<(u128, Answered)>> {
    (!index.is_stored()).then(|| machine.keys.keys().iter().map(|(key, answer)| (*key, *answer)).collect())
}

/// Writes what people read at once: incidents, markers, silences.
///
/// # Errors
/// [`Error::Index`].
pub fn keep_said(index: &Index, position: Position, delta: &Delta, effects: &Effects) -> Result<(), Error> {
    for incident in &effects.incidents {
        index.put_incident(incident)?;
    }
    for (at, record) in delta.records.iter().enumerate() {
        match record {
            Record::Marked(marker) => index.put_marker(marker, position, at)?,
            Record::Silenced(silence) => index.put_silence(silence)?,
            Record::Unsilenced { id, at } => index.end_silence(id, *at)?,
            _ => {}
        }
    }
    Ok(())
}

impl Error {
    /// Whether there was no room on the disk, and what was to be written can be tried again as it is.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Log(file::Error::NoRoom { .. }) | Self::History(closed_periods::Error::Io(file::Error::NoRoom { .. })))
    }

    /// Whether only the index on disk is missing: everything goes on in memory, and it is written anew with the next checkpoint.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self, Self::Index(_))
    }
}

/// Everything on disk but the log.
#[derive(Debug)]
pub struct Keeper {
    pub(super) data_dir: PathBuf,
    pub(super) files: Files,
    /// The index.
    pub index: Index,
    pub(super) keep_minutes_ms: i64,
    pub(super) keep_hours_ms: i64,
    pub(super) keep_log_ms: i64,
    /// How far apart checkpoints are, in milliseconds.
    pub snapshot_every_ms: i64,
    /// A snapshot is taken when the log has grown by so much since the last, however short a time ago that was: the next start reads this much at most, and what came while
    /// the snapshot was written.
    pub snapshot_log_bytes: u64,
    pub(super) last_snapshot: Timestamp,
    pub(super) last_sweep: Timestamp,
    /// How much of the log was read at the start.
    pub(super) replayed_bytes: u64,
    /// The time that the log tells first from a position on, as looked up last.
    pub(super) dated: Option<(Position, Timestamp)>,
    pub(super) waiting: Option<Waiting>,
}

/// What a start found no room for.
#[derive(Debug)]
pub struct Waiting {
    /// What is to be written, in the order of the log; its minutes are readable in memory.
    pub frames: Vec<Frame>,
    /// Endpoints whose totals are still to be completed from history.
    pub uncounted: Vec<EndpointId>,
    /// The last position whose part in history is written.
    pub written: Position,
    /// Up to where minutes are in files, and rolled up.
    pub written_to: Timestamp,
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

impl Keeper {
    /// Where history is.
    #[must_use]
    pub fn reader(&self) -> closed_periods::Reader {
        closed_periods::Reader::new(&self.data_dir)
    }

    /// Since when each tier is complete, as of now.
    #[must_use]
    pub fn kept(&self, machine: &Machine, now: Timestamp) -> Kept {
        let closed_to = machine.history_to();
        let (minutes_from, hours_from) = (self.kept_from(Tier::Minute, now), self.kept_from(Tier::Hour, now));
        // Roll-ups are done as soon as their period is closed.
        Kept { minutes_from, hours_from, closed_to, hours_to: closed_to, days_to: closed_to, named_to: machine.position }
    }

    /// Since when a tier is complete: from a whole period of the next coarser one, which answers for what was before.
    pub(super) fn kept_from(&self, tier: Tier, now: Timestamp) -> Timestamp {
        let back = |keep_ms: i64| Timestamp((now.0 - keep_ms).max(0));
        match tier {
            Tier::Minute => Tier::Hour.period_of(back(self.keep_minutes_ms)),
            Tier::Quarter => Tier::Day.period_of(back(KEEP_QUARTERS_MS)),
            Tier::Hour => Tier::Day.period_of(back(self.keep_hours_ms)),
            Tier::Day => Timestamp(0),
        }
    }

    /// Writes what a frame brought about. Under the frame's name, so it may be called again for the same frame.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keep(&mut self, position: Position, delta: &Delta, effects: &Effects) -> Result<(), Error> {
        keep_said(&self.index, position, delta, effects)?;
        self.keep_frame(&Frame::of(position, delta, effects))
    }

    /// Like [`Keeper::keep`]; what finds no room waits, with all that comes after it, for whoever goes on with the directory. Its minutes stay readable.
    ///
    /// # Errors
    /// [`Error`].
    pub(super) fn keep_or_wait(&mut self, machine: &mut Machine, position: Position, delta: &Delta, effects: &Effects) -> Result<(), Error> {
        keep_said(&self.index, position, delta, effects)?;
        let frame = Frame::of(position, delta, effects);
        if frame.is_empty() {
            return Ok(());
        }
        if self.waiting.is_none() {
            match self.keep_frame(&frame) {
                Err(error) if error.is_no_room() => {
                    warn!(%error, "history waits until there is room");
                    let written_to = frame.closed_to.map_or(machine.history_to(), |c| c.0);
                    let written = Position(position.0.saturating_sub(1));
                    self.waiting = Some(Waiting { frames: Vec::new(), uncounted: Vec::new(), written, written_to });
                }
                kept => return kept,
            }
        }
        for minute in &frame.closed {
            machine.open.leaving(minute);
        }
        if let Some(waiting) = &mut self.waiting {
            waiting.frames.push(frame);
        }
        Ok(())
    }

    /// Up to where history is written: the last position, and the time.
    pub(super) fn written(&self, machine: &Machine) -> (Position, Timestamp) {
        self.waiting.as_ref().map_or_else(|| (machine.position, machine.history_to()), |w| (w.written, w.written_to))
    }

    /// Writes a frame's part in history and index.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keep_frame(&mut self, frame: &Frame) -> Result<(), Error> {
        for (key, answer) in &frame.keys {
            self.index.put_key(*key, answer);
        }
        let position = frame.position;
        let closed_before = frame.closed_to.map_or(Timestamp(i64::MAX), |c| c.0);
        let mut late: BTreeMap<(Tier, Timestamp), BTreeMap<EndpointId, Row>> = BTreeMap::new();
        for minute in &frame.closed {
            let rows: Vec<Row> = minute.rows().collect();
            self.put(Tier::Minute, minute.start, position, &rows)?;
            for tier in [Tier::Hour, Tier::Day] {
                let period = tier.period_of(minute.start);
                if period.0 + tier.width_ms() <= closed_before.0 {
                    merge_rows(late.entry((tier, period)).or_default(), &rows);
                }
            }
        }
        for ((tier, period), rows) in late {
            self.put(tier, period, position, &rows.into_values().collect::<Vec<_>>())?;
        }
        if let Some((before, after)) = frame.closed_to {
            // What comes after this is too late for the detectors, in a replay too.
            let cut = |at: Timestamp| Timestamp((at.0 - fleet::CUT_MS).max(0));
            self.roll_up(Tier::Minute, Tier::Quarter, cut(before), cut(after), position)?;
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
        let (reader, mut blocks) = (self.reader(), BTreeMap::<Timestamp, Vec<closed_periods::Block>>::new());
        for block in self.index.blocks(fine, coarse.period_of(before), end) {
            blocks.entry(coarse.period_of(block.period)).or_default().push(block);
        }
        for (period, fine_blocks) in blocks {
            if self.has(coarse, period, position)? {
                continue;
            }
            let known: Vec<_> = fine_blocks.into_iter().filter(|b| b.name <= position).collect();
            match RollUp::begin(&reader, coarse, period, position, &known).and_then(|roll_up| roll_up.finish(&mut self.files)) {
                Ok(Some(block)) => self.index.put_block(&block),
                Ok(None) => {}
                Err(error) => {
                    self.files.forget_roll_up(coarse)?;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, tier: Tier, period: Timestamp, name: Position, rows: &[Row]) -> Result<(), Error> {
        if !rows.is_empty() && !self.has(tier, period, name)? {
            let block = self.files.append(tier, period, name, rows)?;
            self.index.put_block(&block);
        }
        Ok(())
    }

    /// Whether a block was written before this start. It is looked for in the file too: the index may have outlived it.
    fn has(&mut self, tier: Tier, period: Timestamp, name: Position) -> Result<bool, Error> {
        match self.index.block(tier, period, name) {
            Some(block) => Ok(self.files.holds(&block)?),
            None => Ok(false),
        }
    }

    /// Now and then, after a slot has closed: history and index to disk, then a snapshot, then what is no longer needed goes.
    ///
    /// # Errors
    /// [`Error`]; unless there was no room, the process must then end.
    pub fn checkpoint(&mut self, machine: &mut Machine, now: Timestamp) -> Result<(), Error> {
        if let Some(waiting) = &self.waiting {
            // A snapshot would say that history has what it has not.
            let source = std::io::ErrorKind::StorageFull.into();
            warn!(frames = waiting.frames.len(), "history waits until there is room");
            return Err(file::Error::NoRoom { path: self.data_dir.join("history"), source }.into());
        }
        let gone = machine.keys.sweep(now);
        let all_keys = all_keys(&self.index, machine);
        self.write_checkpoint(&machine.state(), &gone, all_keys, now)
    }

    /// The same of a state that was taken out of its machine.
    ///
    /// # Errors
    /// [`Error`]; unless there was no room, the process must then end.
    pub fn write_checkpoint(&mut self, state: &State, gone_keys: &[u128], all_keys: Option<Vec<(u128, Answered)>>, now: Timestamp) -> Result<(), Error> {
        self.files.sync()?;
        if free_bytes(&self.data_dir).is_some_and(|free| free < INDEX_ROOM_BYTES) {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(file::Error::NoRoom { path: index::folder(&self.data_dir), source }.into());
        }
        for key in gone_keys {
            self.index.forget_key(*key);
        }
        self.index.flush(state.position, all_keys)?;
        snapshot::write(&self.data_dir, state.position, &state.to_bytes())?;
        self.last_snapshot = now;
        if now.0 - self.last_sweep.0 >= 600_000 {
            self.last_sweep = now;
            self.sweep(now)?;
        }
        Ok(())
    }

    fn sweep(&mut self, now: Timestamp) -> Result<(), Error> {
        for tier in [Tier::Minute, Tier::Quarter, Tier::Hour] {
            let before = self.kept_from(tier, now);
            for path in self.files.forget(tier, before)? {
                info!(path = %path.display(), "history older than its retention was deleted");
            }
            self.index.forget_blocks(tier, before);
        }
        self.archive(now)
    }

    /// Moves old segments of the log to the archive, which keeps what was decided and forgets what was counted. A segment is as old as what follows it.
    fn archive(&mut self, now: Timestamp) -> Result<(), Error> {
        let segments = file::segments(&self.data_dir.join("log"))?;
        let known = snapshot::list(&self.data_dir)?;
        let Some((safe, _)) = known.first().filter(|_| known.len() >= 2) else { return Ok(()) };
        for pair in segments.windows(2) {
            let ((first, path), (next_first, _)) = (&pair[0], &pair[1]);
            if next_first > safe || self.dated_from(*next_first)?.is_none_or(|at| at.0 + self.keep_log_ms > now.0) {
                break;
            }
            let mut carried = self.carried()?;
            file::archive_segment(&self.data_dir, (*first, path), |frame, is_last| {
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
}

/// Room that is left on the disk, in bytes; `None` where it cannot be told.
#[must_use]
pub fn free_bytes(data_dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(data_dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
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
