//! The live engine: one thread that owns the machine and the log. It commits batches in groups, answers when they are on disk, judges slots when their time has
//! come, and lets others look in between. Nothing else changes anything, so nothing needs a lock.
//!
//! Groups form by themselves: while one is being synced the next gathers; two commits are at least 2 ms apart. A frame is written and synced, then answered, then taken in: what
//! finds no room on the disk has not happened.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::clock::Clock;
use super::disk::{self, Frame, Keeper, keep_said};
use super::history_writer::{HistoryWriter, NO_ROOM_WAIT};
use super::recovery::complete_totals;
use super::watching::{Watching, Work};
use crate::endpoint::{EndpointId, Selector};
use crate::history::closed_periods;
use crate::history::creation::Creation;
use crate::incident::Notification;
use crate::ingest::batch_keys::{Answered, Committed, Identity, Known};
use crate::ingest::commit::{Answer, Door, Submission};
use crate::ingest::http::Refusals;
use crate::ingest::known::KnownEndpoints;
use crate::ingest::memory::{Memory, NEW_ENDPOINTS_TO, TRACES_TO};
use crate::ingest::{Batch, Fate, Fates};
use crate::judge::{Command, Promises, Record, Refusal, SlotClosed};
use crate::log::failpoint;
use crate::log::file::Log;
use crate::log::record::Position;
use crate::machine::{Delta, Machine};
use crate::time::{Slot, Timestamp};

/// Two commits are at least this far apart, so that batches gather.
const COMMIT_GAP: Duration = Duration::from_millis(2);

/// Looks, decisions and heartbeats that may wait beside the batches, which are limited before they come here.
const BESIDE_MAX: usize = 1_024;

/// Timings in one group at most.
const GROUP_TIMINGS_MAX: u64 = 500_000;

/// A look at the machine and what lies beside it, between two commits.
pub type Look = Box<dyn FnOnce(&Machine, &HistoryWriter) + Send>;

enum Input {
    Batch(Submission),
    Decide(Command, oneshot::Sender<Result<Record, Refusal>>),
    Look(Look),
    Fail(disk::Error),
    Stop,
}

/// The way to the engine.
#[derive(Clone)]
pub struct Handle {
    inputs: SyncSender<Input>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

/// The engine is gone, or its queue is full.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the server is overloaded or stops: try again")]
pub struct Busy;

impl Handle {
    /// Where batches are brought.
    #[must_use]
    pub fn door(&self) -> Door {
        let inputs = self.inputs.clone();
        Door::new(move |submission| {
            inputs.try_send(Input::Batch(submission)).map_err(|e| match e {
                TrySendError::Full(Input::Batch(s)) | TrySendError::Disconnected(Input::Batch(s)) => Box::new(s),
                _ => unreachable!("what was sent comes back"),
            })
        })
    }

    /// Has something decided and recorded; the answer comes when it is on disk.
    ///
    /// # Errors
    /// [`Busy`], or the judge's own refusal inside.
    pub async fn decide(&self, command: Command) -> Result<Result<Record, Refusal>, Busy> {
        let (reply, answer) = oneshot::channel();
        self.inputs.try_send(Input::Decide(command, reply)).map_err(|_| Busy)?;
        answer.await.map_err(|_| Busy)
    }

    /// Reads something off the state.
    ///
    /// # Errors
    /// [`Busy`].
    pub async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Machine, &HistoryWriter) -> T + Send + 'static) -> Result<T, Busy> {
        let (reply, answer) = oneshot::channel();
        let look: Look = Box::new(move |machine, history| {
            // Whoever asked may have gone away.
            drop(reply.send(look(machine, history)));
        });
        self.inputs.try_send(Input::Look(look)).map_err(|_| Busy)?;
        answer.await.map_err(|_| Busy)
    }

    /// Like [`Handle::decide`], and waits while the queue or the disk is full.
    ///
    /// # Errors
    /// [`Busy`] when the engine is gone.
    pub async fn decide_patiently(&self, command: Command) -> Result<Result<Record, Refusal>, Busy> {
        loop {
            let (reply, answer) = oneshot::channel();
            match self.inputs.try_send(Input::Decide(command.clone(), reply)) {
                // No answer: there was no room on the disk, or the engine is gone, which the next try tells.
                Ok(()) => match answer.await {
                    Ok(decided) => return Ok(decided),
                    Err(_) => tokio::time::sleep(NO_ROOM_WAIT).await,
                },
                Err(TrySendError::Disconnected(_)) => return Err(Busy),
                Err(TrySendError::Full(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Has something decided and recorded, from a thread of its own that waits while the queue or the disk is full; `false` when the engine is gone.
    #[must_use]
    pub fn decide_from_thread(&self, command: &Command) -> bool {
        loop {
            let (reply, answer) = oneshot::channel();
            if self.inputs.send(Input::Decide(command.clone(), reply)).is_err() {
                return false;
            }
            if answer.blocking_recv().is_ok() {
                return true;
            }
            // There was no room on the disk, or the engine is gone, which the next try tells.
            std::thread::sleep(NO_ROOM_WAIT);
        }
    }

    /// Ends the engine: what stands beside it could not be written.
    pub fn fail(&self, error: disk::Error) {
        // It may have ended by itself.
        drop(self.inputs.send(Input::Fail(error)));
    }

    /// Has somebody look at the state.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn send_look(&self, look: Look) -> Result<(), Busy> {
        self.inputs.try_send(Input::Look(look)).map_err(|_| Busy)
    }

    /// Has the engine write everything and end.
    pub fn stop(&self) {
        // A full queue is waited for: this is the last thing that is sent.
        drop(self.inputs.send(Input::Stop));
    }
}

/// Numbers of the engine itself, for metrics.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Commits.
    pub commits: AtomicU64,
    /// Microseconds spent writing and syncing.
    pub commit_us: AtomicU64,
    /// Microseconds spent judging.
    pub judge_us: AtomicU64,
    /// Snapshots written.
    pub snapshots: AtomicU64,
    /// Traces of timings that were not kept for lack of memory.
    pub traces_shed: AtomicU64,
    /// One more than the bytes of room on the disk; 0 while they are not known.
    pub free_bytes_and_one: AtomicU64,
}

/// What the engine needs beside its state.
pub struct Engine {
    machine: Machine,
    log: Log,
    history: HistoryWriter,
    reader: closed_periods::Reader,
    clock: Arc<Clock>,
    inputs: Receiver<Input>,
    notify: Box<dyn Fn(Vec<Notification>) + Send>,
    refusals: Arc<Refusals>,
    known: Arc<KnownEndpoints>,
    disk_full: Arc<AtomicBool>,
    free_bytes_min: u64,
    gauges: Arc<Gauges>,
    creation: Creation,
    memory: Arc<Memory>,
    last_commit: Instant,
    last_disk_look: Timestamp,
    data_dir: PathBuf,
    /// Since when the log found no room.
    no_room_since: Option<Instant>,
    /// Endpoints whose totals history is still to complete: it had no room.
    uncounted: Vec<EndpointId>,
    /// What is decided before anything else is taken in, as soon as there is room for it.
    first: VecDeque<Command>,
    /// Ends after `inputs`, on which it may wait.
    watching: Watching,
}

/// Makes an engine and the way to it; [`Engine::run`] is to be given a thread.
///
/// # Errors
/// When the operating system has no thread for history.
#[expect(clippy::too_many_arguments, reason = "each is a different part of the world, given once")]
pub fn engine(
    machine: Machine,
    log: Log,
    mut keeper: Keeper,
    clock: Arc<Clock>,
    waiting_max: usize,
    free_bytes_min: u64,
    refusals: Arc<Refusals>,
    known: Arc<KnownEndpoints>,
    disk_full: Arc<AtomicBool>,
    gauges: Arc<Gauges>,
    creation: Creation,
    memory: Arc<Memory>,
    notify: impl Fn(Vec<Notification>) + Send + 'static,
) -> std::io::Result<(Engine, Handle)> {
    known.set_critical(critical_of(machine.judge.promises()), machine.critical_from(EndpointId(0)));
    let (sender, inputs) = sync_channel(waiting_max + BESIDE_MAX);
    let (reader, data_dir) = (keeper.reader(), keeper.data_dir.clone());
    let uncounted = keeper.waiting.as_mut().map(|w| std::mem::take(&mut w.uncounted)).unwrap_or_default();
    let written_to = keeper.written(&machine).1;
    let watching = Watching::start(&machine, written_to, &data_dir, &keeper.index, Handle { inputs: sender.clone() })?;
    let history = HistoryWriter::start(keeper, &machine, watching.sender())?;
    let engine = Engine {
        machine,
        log,
        history,
        reader,
        clock,
        inputs,
        notify: Box::new(notify),
        refusals,
        known,
        disk_full,
        free_bytes_min,
        gauges,
        creation,
        memory,
        last_commit: now_instant(),
        last_disk_look: Timestamp(0),
        data_dir,
        no_room_since: None,
        uncounted,
        first: VecDeque::new(),
        watching,
    };
    Ok((engine, Handle { inputs: sender }))
}

#[expect(clippy::disallowed_methods, reason = "spacing commits is about real time, and nothing that is stored depends on it")]
fn now_instant() -> Instant {
    Instant::now()
}

impl Engine {
    /// It with something that is to be decided before anything else: at once, or when there is room on the disk. Until then it answers whoever looks, and takes nothing in.
    #[must_use]
    pub fn beginning_with(self, commands: impl IntoIterator<Item = Command>) -> Self {
        Self { first: commands.into_iter().collect(), ..self }
    }

    /// Runs until it is told to stop, or cannot write: then the process must end, because what is on disk is unknown.
    ///
    /// # Errors
    /// What could not be written.
    pub fn run(mut self) -> Result<(), disk::Error> {
        loop {
            self.begin()?;
            let input = self.inputs.recv_timeout(self.until_due());
            let stop = match input {
                Ok(Input::Batch(first)) => self.group(first)?,
                Ok(other) => self.handle(other)?,
                Err(RecvTimeoutError::Timeout) => {
                    self.machine.settle_part();
                    false
                }
                Err(RecvTimeoutError::Disconnected) => true,
            };
            if stop {
                return self.end();
            }
            self.history.look_after(&mut self.machine)?;
            if self.no_room_since.is_some_and(|since| since.elapsed() >= NO_ROOM_WAIT) {
                self.no_room_since = None;
            }
            if !self.has_no_room() {
                self.complete_totals()?;
                self.close_due()?;
            }
            self.look_after_the_disk()?;
        }
    }

    fn begin(&mut self) -> Result<(), disk::Error> {
        while let Some(command) = self.first.front().filter(|_| self.no_room_since.is_none() && !self.history.waits_for_room()) {
            match self.machine.judge.decide(command.clone()) {
                Ok(record) if !self.record(record.clone().into())? => break,
                Ok(_) => {}
                Err(refusal) => error!(%refusal, "what was to be recorded first was refused"),
            }
            self.first.pop_front();
        }
        Ok(())
    }

    /// No slot is closed early: a restart raises no alarm.
    fn end(mut self) -> Result<(), disk::Error> {
        self.machine.settle();
        self.complete_totals()?;
        if self.uncounted.is_empty() {
            self.history.checkpoint(&mut self.machine, self.clock.now())?;
        }
        if self.history.end()? {
            info!(position = self.machine.position.0, "everything is on disk");
        } else {
            warn!("there is no room on the disk: the next start reads the log");
        }
        Ok(())
    }

    /// Whether the log, or history behind it, found no room on the disk a moment ago.
    fn has_no_room(&self) -> bool {
        self.no_room_since.is_some() || self.history.waits_for_room() || !self.first.is_empty()
    }

    fn until_due(&self) -> Duration {
        if self.has_no_room() {
            return NO_ROOM_WAIT;
        }
        let now = self.clock.now();
        let next = self.machine.judge.judged_to().map_or(Slot::containing(now), Slot::next);
        let due = next.end().plus_ms(self.machine.judge.promises().judge_after_ms);
        Duration::from_millis(u64::try_from(due.0 - now.0).unwrap_or(0).clamp(1, 1_000))
    }

    /// Gathers batches until the gap since the last commit has passed and no more wait; commits them. Whether to stop.
    fn group(&mut self, first: Submission) -> Result<bool, disk::Error> {
        let mut group = vec![first];
        let mut timings = group[0].batch.timings();
        let mut other = None;
        // Asleep and not listening: what comes meanwhile wakes nobody, and a wake for each batch would cost more than the batch.
        std::thread::sleep(COMMIT_GAP.saturating_sub(self.last_commit.elapsed()));
        while timings < GROUP_TIMINGS_MAX && other.is_none() {
            match self.inputs.try_recv() {
                Ok(Input::Batch(next)) => {
                    timings += next.batch.timings();
                    group.push(next);
                }
                Ok(input) => other = Some(input),
                Err(_) => break,
            }
        }
        self.commit_batches(group)?;
        other.map_or(Ok(false), |input| self.handle(input))
    }

    fn handle(&mut self, input: Input) -> Result<bool, disk::Error> {
        match input {
            Input::Batch(batch) => return self.group(batch),
            Input::Look(look) => {
                self.machine.settle();
                look(&self.machine, &self.history);
            }
            Input::Stop => return Ok(true),
            Input::Fail(error) => return Err(self.lost(error)),
            // Without an answer: it was not decided.
            Input::Decide(..) if !self.first.is_empty() => {}
            Input::Decide(command, reply) => {
                self.machine.settle();
                let decided = self.machine.judge.decide(command);
                if let Ok(record) = &decided
                    && !self.record(record.clone().into())?
                {
                    // As above.
                    return Ok(false);
                }
                // Whoever asked may have gone away; it stands all the same.
                drop(reply.send(decided));
            }
        }
        Ok(false)
    }

    /// Commits a group of batches as one frame. A key that comes twice in it waits for the first to be on disk, then repeats its answer.
    fn commit_batches(&mut self, group: Vec<Submission>) -> Result<(), disk::Error> {
        if self.history.waits_for_room() || !self.first.is_empty() {
            // The log may have room; what follows from it, or comes before it, has none.
            refuse(group.into_iter().map(|s| s.reply));
            return Ok(());
        }
        let now = self.clock.now();
        let (mut taken, mut again, mut answered): (Vec<(Submission, Option<Committed>)>, Vec<_>, Vec<_>) = Default::default();
        let mut fates = Fates::default();
        let mut conflicts = Vec::new();
        let mut in_group = HashSet::new();
        for submission in group {
            match self.machine.keys.look(&submission.identity, submission.body) {
                Known::New => {
                    let name = match &submission.identity {
                        Identity::None => None,
                        Identity::Key(key) => Some((key.to_string(), 0, 0)),
                        Identity::Sender(s) => Some((s.id.clone(), s.epoch, s.seq)),
                    };
                    if name.is_some_and(|n| !in_group.insert(n)) {
                        again.push(submission);
                    } else {
                        let committed = committed(&submission, now);
                        taken.push((submission, committed));
                    }
                }
                Known::Repeat(first) => {
                    fates[Fate::Duplicate as usize] += submission.batch.timings();
                    answered.push((submission.reply, Answer::Duplicate(first.map(|a| (a.accepted, a.rejected)))));
                }
                Known::OtherBody => {
                    if let Identity::Sender(sender) = &submission.identity {
                        conflicts.extend(committed(&submission, now));
                        warn!(sender = sender.id, "one sequence number came with two bodies: two processes use this sender's name");
                    }
                    fates[Fate::Malformed as usize] += submission.batch.timings();
                    answered.push((submission.reply, Answer::OtherBody));
                }
                Known::Full => {
                    fates[Fate::Shed as usize] += submission.batch.timings();
                    answered.push((submission.reply, Answer::KeysFull));
                }
            }
        }
        let batches: Vec<&Batch> = taken.iter().map(|(s, _)| &s.batch).collect();
        let mut delta = self.fold(&batches, now);
        let refused = self.refusals.take();
        let fates: Fates = std::array::from_fn(|i| fates[i] + refused[i]);
        for (total, more) in delta.fates.iter_mut().zip(fates) {
            *total += more;
        }
        let news: Vec<Record> = taken.iter().flat_map(|(s, _)| self.machine.reports(&s.identity, &s.batch, &delta, now)).collect();
        delta.records.extend(news);
        self.warn_of_older_starts(taken.iter().filter_map(|(_, c)| c.as_ref()));
        delta.batches = taken.iter_mut().filter_map(|(_, c)| c.take()).chain(conflicts).collect();
        let taken = taken.into_iter().map(|(s, _)| s);
        let position = if delta == Delta::default() { None } else { self.write(&delta)? };
        if position.is_some() || delta == Delta::default() {
            answered.extend(taken.map(|s| (s.reply, Answer::Committed)));
        } else {
            self.refusals.put_back(&fates);
            refuse(taken.chain(std::mem::take(&mut again)).map(|s| s.reply));
        }
        for (reply, answer) in answered {
            // Whoever sent it may have gone away; it is on disk all the same.
            drop(reply.send(answer));
        }
        if let Some(position) = position {
            self.apply(position, &mut delta)?;
        }
        if again.is_empty() { Ok(()) } else { self.commit_batches(again) }
    }

    /// Turns batches into counts, as far as there is memory for what hangs on them.
    fn fold(&mut self, batches: &[&Batch], now: Timestamp) -> Delta {
        let full_per_mille = self.memory.per_mille();
        self.creation.set(now, full_per_mille >= NEW_ENDPOINTS_TO);
        let mut delta = self.machine.fold_within(batches, Some(&mut self.creation));
        if full_per_mille >= TRACES_TO {
            self.gauges.traces_shed.fetch_add(delta.shed_traces(), Ordering::Relaxed);
        }
        delta
    }

    fn warn_of_older_starts<'a>(&self, taken: impl Iterator<Item = &'a Committed>) {
        for sender in taken.filter_map(|c| c.sender.as_ref()) {
            let known = self.machine.keys.senders().get(&sender.id);
            if known.is_some_and(|k| k.is_behind(sender.epoch)) {
                warn!(sender = sender.id, "batches of an older start came after those of a newer one: two processes use this sender's name");
            }
        }
    }

    /// Writes a frame and takes it in; `false` when there is no room for it on the disk: then nothing has happened.
    fn record(&mut self, mut delta: Delta) -> Result<bool, disk::Error> {
        let Some(position) = self.write(&delta)? else { return Ok(false) };
        self.apply(position, &mut delta)?;
        Ok(true)
    }

    /// Writes a frame; it is on disk then, or there is no room for it.
    fn write(&mut self, delta: &Delta) -> Result<Option<Position>, disk::Error> {
        let start = now_instant();
        let sections = delta.to_sections();
        let position = self.log.stage(&sections);
        match self.log.commit().map_err(disk::Error::from) {
            Ok(()) => self.history.log_grew(sections.iter().map(|s| s.bytes.len() as u64).sum()),
            Err(error) if error.is_no_room() => {
                self.no_room_since = Some(now_instant());
                if !self.disk_full.swap(true, Ordering::Relaxed) {
                    warn!(%error, "no timings are taken until there is room");
                }
                return Ok(None);
            }
            Err(error) => return Err(self.lost(error)),
        }
        self.last_commit = now_instant();
        self.gauges.commits.fetch_add(1, Ordering::Relaxed);
        self.gauges.commit_us.fetch_add(micros(start.elapsed()), Ordering::Relaxed);
        Ok(Some(position))
    }

    /// Takes in a frame that is on disk: state, history and index follow the log and never lead it.
    fn apply(&mut self, position: Position, delta: &mut Delta) -> Result<(), disk::Error> {
        let first_new = self.machine.catalogue.next_id();
        let effects = self.machine.take_in(position, delta);
        if !delta.endpoints.is_empty() {
            self.known.add(self.machine.catalogue.numbered_from(first_new));
            self.known.add_critical(self.machine.critical_from(first_new));
            let new = delta.endpoints.iter().map(|entry| (Arc::clone(&entry.key), self.machine.is_critical(entry)));
            self.watching.tell(Work::Endpoints(new.collect()));
        }
        keep_said(&self.history.index, position, delta, &effects)?;
        let frame = Frame::of(position, delta, &effects);
        self.history.keep(&mut self.machine, frame)?;
        self.uncounted.extend(effects.made_whole);
        self.complete_totals()?;
        if delta.records.iter().any(|r| matches!(r, Record::Configured { .. })) {
            self.known.set_critical(critical_of(self.machine.judge.promises()), self.machine.critical_from(EndpointId(0)));
        }
        for record in &delta.records {
            match record {
                Record::Marked(marker) => self.watching.tell(Work::Marked(marker.clone())),
                Record::Started { at } => {
                    if let Some(judged) = self.machine.judge.judged_to() {
                        self.watching.tell(Work::Gap(judged.end(), *at));
                    }
                }
                Record::Configured { .. } => self.watching.tell(Work::Configured(Arc::clone(self.machine.judge.promises()))),
                _ => {}
            }
            if let Record::SlotClosed(SlotClosed { notifications, .. }) | Record::Configured { notifications, .. } = record
                && !notifications.is_empty()
            {
                (self.notify)(notifications.clone());
            }
        }
        Ok(())
    }

    /// Has history complete whole totals that were begun, as soon as there is room for what it is still to write.
    fn complete_totals(&mut self) -> Result<(), disk::Error> {
        if !self.uncounted.is_empty() && self.history.flush(&mut self.machine)? {
            self.machine.settle();
            complete_totals(&self.history.index, &self.reader, &mut self.machine, &self.uncounted)?;
            self.uncounted.clear();
        }
        Ok(())
    }

    fn lost(&self, error: disk::Error) -> disk::Error {
        error!(%error, position = self.machine.position.0, "the disk fails: this process ends, and the next one reads the disk anew");
        error
    }

    /// Judges the slots whose time has come.
    fn close_due(&mut self) -> Result<(), disk::Error> {
        let now = self.clock.now();
        let Some(target) = Slot::ended_by(now.plus_ms(-self.machine.judge.promises().judge_after_ms)) else { return Ok(()) };
        let start = now_instant();
        let due = self.machine.judge.judged_to().is_none_or(|judged| judged < target);
        if due && !self.machine.settle_part() {
            // A commit comes first, so that no answer waits for all of it.
            return Ok(());
        }
        let mut closes = 0;
        while let Some(end) = self.machine.next_close(target) {
            failpoint::pass("in slot close");
            let delta = self.machine.close(end);
            if !self.record(delta)? {
                break;
            }
            closes += 1;
            if self.history.waits_for_room() {
                break;
            }
        }
        if closes > 0 {
            self.gauges.judge_us.fetch_add(micros(start.elapsed()), Ordering::Relaxed);
        }
        // A full disk is not made fuller: sled does not survive it, and the log has all.
        if self.history.is_due(now, closes > 0) && self.uncounted.is_empty() && !self.has_no_room() && !self.disk_full.load(Ordering::Relaxed) {
            self.history.checkpoint(&mut self.machine, now)?;
            self.gauges.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn look_after_the_disk(&mut self) -> Result<(), disk::Error> {
        let now = self.clock.now();
        if now.0 - self.last_disk_look.0 < 1_000 {
            return Ok(());
        }
        self.last_disk_look = now;
        // What was refused is counted even when nothing else comes.
        if self.refusals.any() && !self.has_no_room() {
            let fates = self.refusals.take();
            if !self.record(Delta { fates, ..Delta::default() })? {
                self.refusals.put_back(&fates);
            }
        }
        let free = disk::free_bytes(&self.data_dir);
        self.gauges.free_bytes_and_one.store(free.map_or(0, |bytes| bytes.saturating_add(1)), Ordering::Relaxed);
        if self.no_room_since.is_none() {
            let full = self.history.waits_for_room() || free.is_some_and(|free| free < self.free_bytes_min);
            if full != self.disk_full.swap(full, Ordering::Relaxed) {
                warn!(free_bytes = free, full, "room on the disk");
            }
        }
        Ok(())
    }
}

/// Which endpoints are critical by configuration.
fn critical_of(promises: &Promises) -> Vec<Selector> {
    promises.endpoints.iter().filter(|o| o.critical).map(|o| o.selector.clone()).collect()
}

/// Says that there is no room.
fn refuse(replies: impl Iterator<Item = oneshot::Sender<Answer>>) {
    for reply in replies {
        // Whoever sent it may have gone away.
        drop(reply.send(Answer::NoRoom));
    }
}

fn committed(submission: &Submission, now: Timestamp) -> Option<Committed> {
    let answer = Answered { at: now, body: submission.body, accepted: submission.batch.accepted, rejected: submission.batch.rejected };
    match &submission.identity {
        Identity::None => None,
        Identity::Key(key) => Some(Committed { key: Some(*key), sender: None, answer }),
        Identity::Sender(sender) => Some(Committed { key: None, sender: Some(sender.clone()), answer }),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
