//! The thread that writes what follows from the log: history files, the index, snapshots, the archive. The engine hands it work in the order of the log and goes on; until it
//! hears that a closed minute is in its files, the minute stays readable in memory ([`crate::history::open_slots::OpenSlots::leaving`]).
//!
//! So neither a closed minute nor an hour's roll-up nor a snapshot of 100,000 endpoints delays an answer. What the engine must not outrun is minutes: when
//! [`LEAVING_MAX`] of them wait it waits too.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::disk::{Error, Frame, Keeper};
use crate::history::index::Index;
use crate::history::open_slots::ClosedMinute;
use crate::history::query::Kept;
use crate::log::record::Position;
use crate::machine::{Machine, State};
use crate::time::{Tier, Timestamp};

/// Closed minutes that may wait to be written.
const LEAVING_MAX: usize = 16;

enum Work {
    Frame(Frame),
    Checkpoint(Box<State>, Vec<u128>, Timestamp),
    Flush(Sender<()>),
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
    last_snapshot: Timestamp,
    checkpointing: bool,
    written: Position,
    written_to: Timestamp,
    leaving: usize,
    work: Option<Sender<Work>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl HistoryWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system has none.
    pub fn start(keeper: Keeper, machine: &Machine) -> std::io::Result<Self> {
        let (work, works) = channel();
        let (sender, done) = channel();
        let mut writer = Self {
            index: keeper.index.clone(),
            keep_minutes_ms: keeper.keep_minutes_ms,
            keep_hours_ms: keeper.keep_hours_ms,
            snapshot_every_ms: keeper.snapshot_every_ms,
            last_snapshot: keeper.last_snapshot,
            checkpointing: false,
            written: machine.position,
            written_to: machine.history_to(),
            leaving: 0,
            work: Some(work),
            done,
            thread: None,
        };
        writer.thread = Some(std::thread::Builder::new().name("history".to_owned()).spawn(move || run(keeper, &works, &sender))?);
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
        while self.leaving > LEAVING_MAX {
            let done = self.done.recv();
            match done {
                Ok(done) => self.take(machine, done),
                Err(_) => return self.failure(),
            }
        }
        Ok(())
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
            }
        }
    }

    /// Waits until everything handed on is written.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn flush(&mut self, machine: &mut Machine) -> Result<(), Error> {
        let (reply, flushed) = channel();
        self.send(Work::Flush(reply))?;
        if flushed.recv().is_err() {
            return self.failure();
        }
        self.look_after(machine)
    }

    /// Whether it is time for a checkpoint, and the one before has ended.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        !self.checkpointing && now.0 - self.last_snapshot.0 >= self.snapshot_every_ms
    }

    /// Hands on the state for a snapshot.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn checkpoint(&mut self, machine: &mut Machine, now: Timestamp) -> Result<(), Error> {
        (self.checkpointing, self.last_snapshot) = (true, now);
        let gone = machine.keys.sweep(now);
        self.send(Work::Checkpoint(Box::new(machine.state()), gone, now))
    }

    /// Waits for the end of everything that was handed on, and ends the thread.
    ///
    /// # Errors
    /// What the thread could not write.
    pub fn end(mut self) -> Result<(), Error> {
        self.work = None;
        self.join()
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

    /// Since when each tier is complete, as of now, and up to where it is in files.
    #[must_use]
    pub fn kept(&self, _machine: &Machine, now: Timestamp) -> Kept {
        let back = |keep_ms: i64| Timestamp((now.0 - keep_ms).max(0));
        Kept {
            minutes_from: Tier::Hour.period_of(back(self.keep_minutes_ms)),
            hours_from: Tier::Day.period_of(back(self.keep_hours_ms)),
            closed_to: self.written_to,
            hours_to: self.written_to,
            days_to: self.written_to,
            named_to: self.written,
        }
    }
}

fn run(mut keeper: Keeper, works: &Receiver<Work>, done: &Sender<Done>) -> Result<(), Error> {
    for work in works {
        // The engine may have ended first; what it handed on is written all the same.
        match work {
            Work::Frame(frame) => {
                keeper.keep_frame(&frame)?;
                let wrote = !frame.closed.is_empty() || frame.closed_to.is_some_and(|(before, after)| before < after);
                let to = frame.closed_to.filter(|_| wrote).map_or(Timestamp(0), |c| c.1);
                drop(done.send(Done::Written(frame.position, to, frame.closed)));
            }
            Work::Checkpoint(state, gone, now) => {
                keeper.write_checkpoint(&state, &gone, now)?;
                drop(done.send(Done::Checkpointed));
            }
            Work::Flush(reply) => drop(reply.send(())),
        }
    }
    Ok(())
}
