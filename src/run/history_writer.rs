//! The thread that writes what follows from the log: history files, the index, snapshots, the archive. The engine hands it work in the order of the log and goes on; until it
//! hears that a closed minute is in its files, the minute stays readable in memory ([`crate::history::open_slots::OpenSlots::leaving`]).
//!
//! So neither a closed minute nor an hour's roll-up nor a snapshot of 100,000 endpoints delays an answer. What the engine must not outrun is minutes: when
//! 16 of them wait it waits too. When there is no room on the disk the thread tries again until there is, and the engine, which can see that, takes nothing in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::warn;

use super::disk::{Error, Frame, Keeper, all_keys};
use super::watching;
use crate::history::index::Index;
use crate::history::open_slots::ClosedMinute;
use crate::history::query::Kept;
use crate::ingest::batch_keys::Answered;
use crate::log::record::Position;
use crate::machine::{Machine, State};
use crate::time::{Tier, Timestamp};

/// Closed minutes that may wait to be written.
const LEAVING_MAX: usize = 16;

/// After a write that found no room on the disk, the next is tried so much later.
pub const NO_ROOM_WAIT: Duration = Duration::from_millis(250);

/// How soon it is seen that there is no room.
const LOOK_WAIT: Duration = Duration::from_millis(20);

/// What both sides see at once.
#[derive(Debug, Default)]
struct Signs {
    no_room: AtomicBool,
    ending: AtomicBool,
}

enum Work {
    Frame(Frame),
    Checkpoint(Box<Checkpoint>),
    Flush(Sender<()>),
    Free(Vec<Arc<ClosedMinute>>),
}

struct Checkpoint {
    state: State,
    gone_keys: Vec<u128>,
    /// When the index on disk has to be written anew.
    all_keys: Option<Vec<(u128, Answered)>>,
    now: Timestamp,
}

/// What the thread has done.
enum Done {
    /// A frame; up to where minutes are in files with it, 0 when it wrote no rows.
    Written(Position, Timestamp, Vec<Arc<ClosedMinute>>),
    Checkpointed,
}

/// The engine's side of it.
#[derive(Debug)]
pub struct HistoryWriter {
    /// The index, for those who look.
    pub index: Index,
    keep_minutes_ms: i64,
    keep_hours_ms: i64,
    snapshot_every_ms: i64,
    snapshot_log_bytes: u64,
    last_snapshot: Timestamp,
    /// By how much the log has grown since then.
    log_bytes: u64,
    checkpointing: bool,
    written: Position,
    written_to: Timestamp,
    leaving: usize,
    work: Option<Sender<Work>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    signs: Arc<Signs>,
}

impl HistoryWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system has none.
    pub fn start(mut keeper: Keeper, machine: &Machine, watching: Option<Sender<watching::Work>>) -> std::io::Result<Self> {
        let (written, written_to) = keeper.written(machine);
        let waiting = keeper.waiting.take().map(|w| w.frames).unwrap_or_default();
        let (work, works) = channel();
        let (sender, done) = channel();
        // What a start found no room for is tried again first of all.
        let signs = Arc::new(Signs { no_room: AtomicBool::new(!waiting.is_empty()), ending: AtomicBool::new(false) });
        let mut writer = Self {
            index: keeper.index.clone(),
            keep_minutes_ms: keeper.keep_minutes_ms,
            keep_hours_ms: keeper.keep_hours_ms,
            snapshot_every_ms: keeper.snapshot_every_ms,
            snapshot_log_bytes: keeper.snapshot_log_bytes,
            last_snapshot: keeper.last_snapshot,
            log_bytes: keeper.replayed_bytes,
            checkpointing: false,
            written,
            written_to,
            leaving: waiting.iter().map(|frame| frame.closed.len()).sum(),
            work: Some(work.clone()),
            done,
            thread: None,
            signs: Arc::clone(&signs),
        };
        let thread = Thread { keeper, done: sender, signs, gone_keys: Vec::new(), watching };
        for frame in waiting {
            work.send(Work::Frame(frame)).expect("its receiver is here");
        }
        writer.thread = Some(std::thread::Builder::new().name("history".to_owned()).spawn(move || thread.run(&works))?);
        Ok(writer)
    }

    /// Hands on what a frame brought about.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn keep(&mut self, machine: &mut Machine, frame: Frame) -> Result<(), Error> {
        if frame.is_empty() {
            return self.look_after(machine);
        }
        for minute in &frame.closed {
            machine.open.leaving(minute);
            self.leaving += 1;
        }
        self.send(Work::Frame(frame))?;
        self.look_after(machine)?;
        while self.leaving > LEAVING_MAX && !self.waits_for_room() {
            match self.done.recv_timeout(LOOK_WAIT) {
                Ok(done) => self.take(machine, done),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.failure(),
            }
        }
        Ok(())
    }

    /// Whether the thread found no room on the disk, and tries again.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.signs.no_room.load(Ordering::SeqCst)
    }

    /// Takes note of what was written meanwhile.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn look_after(&mut self, machine: &mut Machine) -> Result<(), Error> {
        loop {
            match self.done.try_recv() {
                Ok(done) => self.take(machine, done),
                Err(std::sync::mpsc::TryRecvError::Empty) => return Ok(()),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return self.failure(),
            }
        }
    }

    fn take(&mut self, machine: &mut Machine, done: Done) {
        match done {
            Done::Checkpointed => self.checkpointing = false,
            Done::Written(position, to, minutes) => {
                if to > Timestamp(0) {
                    (self.written, self.written_to) = (position, self.written_to.max(to));
                }
                for minute in &minutes {
                    machine.open.left(minute);
                    self.leaving -= 1;
                }
                if let Some(work) = self.work.as_ref().filter(|_| !minutes.is_empty()) {
                    // Freeing a minute of 100,000 endpoints takes as long as many commits. When the thread is gone it is freed here.
                    drop(work.send(Work::Free(minutes)));
                }
            }
        }
    }

    /// Up to where minutes are in files.
    #[must_use]
    pub fn written_to(&self) -> Timestamp {
        self.written_to
    }

    /// Waits until everything handed on is written; `false` when there is no room for it yet.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn flush(&mut self, machine: &mut Machine) -> Result<bool, Error> {
        let (reply, flushed) = channel();
        self.send(Work::Flush(reply))?;
        loop {
            match flushed.recv_timeout(LOOK_WAIT) {
                Ok(()) => break,
                Err(RecvTimeoutError::Timeout) if self.waits_for_room() => return Ok(false),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.failure().map(|()| false),
            }
        }
        self.look_after(machine)?;
        Ok(true)
    }

    /// Takes note of what was appended to the log.
    pub fn log_grew(&mut self, bytes: u64) {
        self.log_bytes += bytes;
    }

    /// Whether it is time for a checkpoint, after a slot has closed or else, and the one before has ended.
    #[must_use]
    pub fn is_due(&self, now: Timestamp, slot_closed: bool) -> bool {
        !self.checkpointing && (self.log_bytes >= self.snapshot_log_bytes || slot_closed && now.0 - self.last_snapshot.0 >= self.snapshot_every_ms)
    }

    /// Hands on the state for a snapshot.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn checkpoint(&mut self, machine: &mut Machine, now: Timestamp) -> Result<(), Error> {
        (self.checkpointing, self.last_snapshot, self.log_bytes) = (true, now, 0);
        let (gone_keys, all_keys) = (machine.keys.sweep(now), all_keys(&self.index, machine));
        self.send(Work::Checkpoint(Box::new(Checkpoint { state: machine.state(), gone_keys, all_keys, now })))
    }

    /// Waits for the end of everything that was handed on, and ends the thread; `false` when there was no room for all of it.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn end(mut self) -> Result<bool, Error> {
        self.signs.ending.store(true, Ordering::SeqCst);
        self.work = None;
        self.join()?;
        Ok(!self.waits_for_room())
    }

    fn send(&mut self, work: Work) -> Result<(), Error> {
        let sent = self.work.as_ref().is_some_and(|to| to.send(work).is_ok());
        if sent { Ok(()) } else { self.failure() }
    }

    fn failure(&mut self) -> Result<(), Error> {
        self.join()?;
        Err(Error::WriterEnded)
    }

    fn join(&mut self) -> Result<(), Error> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Error::WriterEnded),
            None => Ok(()),
        }
    }

    /// Since when each tier is complete, as of now, and up to where. An answer's range does not depend on how far the thread has come: minutes that are closed
    /// and not in files yet are in memory.
    #[must_use]
    pub fn kept(&self, machine: &Machine, now: Timestamp) -> Kept {
        let back = |keep_ms: i64| Timestamp((now.0 - keep_ms).max(0));
        Kept {
            minutes_from: Tier::Hour.period_of(back(self.keep_minutes_ms)),
            hours_from: Tier::Day.period_of(back(self.keep_hours_ms)),
            closed_to: machine.history_to(),
            hours_to: self.written_to,
            days_to: self.written_to,
            named_to: self.written,
        }
    }
}

impl Drop for HistoryWriter {
    /// Whatever ended the engine, what was handed on is written, if there is room, and nothing is written after this.
    fn drop(&mut self) {
        self.signs.ending.store(true, Ordering::SeqCst);
        self.work = None;
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            warn!(%error, "history could not be written to its end: the next start reads the log");
        }
    }
}

/// The thread's side.
struct Thread {
    keeper: Keeper,
    done: Sender<Done>,
    signs: Arc<Signs>,
    /// Keys that have run out, of a checkpoint that found no room.
    gone_keys: Vec<u128>,
    /// Who is told up to where minutes are written.
    watching: Option<Sender<watching::Work>>,
}

impl Thread {
    fn run(mut self, works: &Receiver<Work>) -> Result<(), Error> {
        for work in works {
            // The engine may have ended first; what it handed on is written all the same.
            match work {
                Work::Frame(frame) => {
                    if !self.keep(&frame)? {
                        // A snapshot would say that history has what it has not.
                        return Ok(());
                    }
                    let wrote = !frame.closed.is_empty() || frame.closed_to.is_some_and(|(before, after)| before < after);
                    let to = frame.closed_to.filter(|_| wrote).map_or(Timestamp(0), |c| c.1);
                    if let Some(watching) = self.watching.as_ref().filter(|_| wrote) {
                        // It ends after the engine.
                        drop(watching.send(watching::Work::Written(to)));
                    }
                    drop(self.done.send(Done::Written(frame.position, to, frame.closed)));
                }
                Work::Checkpoint(checkpoint) => {
                    self.checkpoint(*checkpoint)?;
                    drop(self.done.send(Done::Checkpointed));
                }
                Work::Flush(reply) => drop(reply.send(())),
                Work::Free(minutes) => drop(minutes),
            }
        }
        Ok(())
    }

    /// Writes a frame's part, as soon as there is room; `false` when there was none until the end.
    fn keep(&mut self, frame: &Frame) -> Result<bool, Error> {
        loop {
            let ending = self.signs.ending.load(Ordering::SeqCst);
            match self.keeper.keep_frame(frame) {
                Err(error) if error.is_no_room() => {
                    if !self.signs.no_room.swap(true, Ordering::SeqCst) {
                        warn!(%error, "history waits until there is room");
                    }
                    if ending {
                        return Ok(false);
                    }
                    std::thread::sleep(NO_ROOM_WAIT);
                }
                kept => {
                    kept?;
                    self.signs.no_room.store(false, Ordering::SeqCst);
                    return Ok(true);
                }
            }
        }
    }

    /// A checkpoint that finds no room, or no index, is left to the next one: the log has all.
    fn checkpoint(&mut self, Checkpoint { state, gone_keys, all_keys, now }: Checkpoint) -> Result<(), Error> {
        self.gone_keys.extend(gone_keys);
        match self.keeper.write_checkpoint(&state, &self.gone_keys, all_keys, now) {
            Err(error) if error.is_no_room() => warn!(%error, "there is no room for a snapshot"),
            Err(error) if error.is_index() => warn!(%error, "no snapshot: the index goes on in memory and is written anew with the next one"),
            done => {
                done?;
                self.gone_keys.clear();
            }
        }
        Ok(())
    }
}
