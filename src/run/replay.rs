//! Recorded timings through the very same machine, at virtual time: what would have been said, and when.
//!
//! Three kinds of input: NDJSON timings in time order (the clock is the latest time seen); an export, one frame a line; a data directory's log. Frames bring their own
//! configuration, markers, acknowledgements and slot ends; a configuration given by hand takes the place of theirs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::export::ExportLine;
pub use super::export::{Logged, export, logged};
use super::recording;
use super::replayed::{Replayed, Told};
use crate::counting::Outcome;
use crate::detect::fleet::{self, Fleet};
use crate::endpoint::{EndpointId, EndpointKey, PathTemplates};
use crate::history::catalogue::Limits;
use crate::incident::{Marker, Transition};
use crate::ingest::admission::{Admission, PAST_MS, TimeLimits};
use crate::ingest::json::{self, Ts};
use crate::ingest::known::KnownEndpoints;
use crate::ingest::ordinary::Reader;
use crate::judge::{Command, Promises, Record, SlotClosed};
use crate::log::file;
use crate::machine::{Delta, FrameError, Machine};
use crate::time::{Slot, TIMESTAMP_MS_MAX, Timestamp};

/// Chunks of a recording that are read ahead.
pub const CHUNKS_AHEAD: usize = 4;

/// Why a replay cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An input cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is said cannot be written.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] file::Error),
    /// A frame cannot be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A line that was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Of which input.
    pub path: PathBuf,
    /// From 1.
    pub number: u64,
    /// Why.
    pub reason: String,
}

/// An input as far as it was read.
pub struct Input {
    path: PathBuf,
    /// The endpoints of its lines, with their numbers as far as these are known.
    keys: Vec<(EndpointKey, Option<EndpointId>)>,
    lines: u64,
}

impl Input {
    /// One of which nothing was read yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), keys: Vec::new(), lines: 0 }
    }
}

/// A replay under way.
pub struct Replay<'a, W: Write> {
    machine: Machine,
    fleet: Fleet,
    /// What the detectors found is in the recording, as long as it is not to be judged by other promises.
    finds_itself: bool,
    admission: Admission<'a>,
    known: &'a KnownEndpoints,
    markers: std::vec::IntoIter<Marker>,
    next_marker: Option<Marker>,
    own_promises: bool,
    now: Timestamp,
    next_boundary_ms: i64,
    /// The last slot that has ended, while nothing is due by then and it is not judged.
    ended: Option<Slot>,
    /// The first time seen.
    pub first: Option<Timestamp>,
    /// Timings taken.
    pub timings: u64,
    /// Lines passed over.
    pub bad: u64,
    told: Told,
    out: W,
    on_bad: Box<dyn FnMut(&BadLine) + 'a>,
}

impl<'a, W: Write> Replay<'a, W> {
    /// One that has seen nothing. With `promises` the configuration is given; without, frames bring theirs and plain timings are owed nothing.
    #[expect(clippy::too_many_arguments, reason = "each is a different part of the world, given once")]
    pub fn new(
        promises: Option<Promises>,
        judge_after_ms: i64,
        limits: Limits,
        templates: &'a PathTemplates,
        known: &'a KnownEndpoints,
        mut markers: Vec<Marker>,
        out: W,
        on_bad: impl FnMut(&BadLine) + 'a,
    ) -> Self {
        markers.sort_by_key(|m| m.ts);
        let own_promises = promises.is_some();
        let mut markers = markers.into_iter();
        let next_marker = markers.next();
        let machine = Machine::judging_alone(promises.unwrap_or_else(|| Promises::none(judge_after_ms)), limits);
        Self {
            fleet: Fleet::new(Arc::clone(machine.judge.promises())),
            finds_itself: true,
            machine,
            admission: Admission::new(templates, known, TimeLimits { now: Timestamp(0), past_ms: PAST_MS, future_ms: TIMESTAMP_MS_MAX }),
            known,
            markers,
            next_marker,
            own_promises,
            now: Timestamp(0),
            next_boundary_ms: i64::MIN,
            ended: None,
            first: None,
            timings: 0,
            bad: 0,
            told: Told::default(),
            out,
            on_bad: Box::new(on_bad),
        }
    }

    /// Endpoints seen.
    #[must_use]
    pub fn endpoints(&self) -> usize {
        self.machine.catalogue.entries().len()
    }

    /// The latest virtual time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Reads one input: NDJSON timings or an export, `.gz` and `.zst` unpacked, `-` for standard input. `progress` is told of bytes read from the file.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Write`]; a line that cannot be read is no error, it is reported and passed over.
    pub fn file(&mut self, path: &Path, mut progress: impl FnMut(u64)) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let (sender, chunks) = std::sync::mpsc::sync_channel(CHUNKS_AHEAD);
            scope.spawn(move || recording::read(path, &sender));
            let mut input = Input::new(path);
            for chunk in chunks {
                let chunk = chunk.map_err(|source| Error::Read { path: path.to_owned(), source })?;
                progress(chunk.bytes);
                self.chunk(&chunk, &mut input)?;
            }
            Ok(())
        })
    }

    /// Takes the next lines of an input.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn chunk(&mut self, chunk: &recording::Chunk, input: &mut Input) -> Result<(), Error> {
        input.keys.extend(chunk.keys.iter().map(|key| (key.clone(), None)));
        for line in &chunk.lines {
            input.lines += 1;
            if let Err(reason) = self.recorded(*line, &chunk.text, &mut input.keys)? {
                self.bad += 1;
                (self.on_bad)(&BadLine { path: input.path.clone(), number: input.lines, reason });
            }
        }
        Ok(())
    }

    /// Takes one line of a recording; the inner result says why it was passed over.
    fn recorded(&mut self, line: recording::Line, text: &[u8], keys: &mut [(EndpointKey, Option<EndpointId>)]) -> Result<Result<(), String>, Error> {
        match line {
            recording::Line::TooLong => Ok(Err(format!("longer than {} bytes", recording::LINE_BYTES_MAX))),
            recording::Line::Other { start, end } => self.line(&text[start as usize..end as usize]),
            recording::Line::Timing { key, ts_ms, us, outcome } => {
                let (key, number) = &mut keys[key as usize];
                let (ts, us) = (Timestamp(ts_ms), u64::from(us));
                if number.is_none() {
                    *number = self.known.read().number_of(&(*key).as_ref());
                }
                match *number {
                    Some(id) => self.known_timing(ts, id, us, outcome),
                    None => self.timing(Some(ts), |admission| admission.key_timing(0, key, ts, us, outcome)),
                }
            }
        }
    }

    /// Takes one line; the inner result says why it was passed over.
    fn line(&mut self, line: &[u8]) -> Result<Result<(), String>, Error> {
        let text = match std::str::from_utf8(line) {
            Ok(text) => text.trim(),
            Err(e) => return Ok(Err(format!("not UTF-8 at byte {}", e.valid_up_to()))),
        };
        if text.is_empty() {
            return Ok(Ok(()));
        }
        if text.starts_with("{\"frame\":") {
            return match serde_json::from_str::<ExportLine>(text) {
                Ok(frame) => self.frame(&frame.delta).map(Ok),
                Err(e) => Ok(Err(e.to_string())),
            };
        }
        let mut read_to = 0;
        if let Some(line) = Reader::default().read(text, &mut read_to).filter(|_| read_to == text.len()) {
            return self.timing(line.ts_ms.map(Timestamp), |admission| {
                admission.ordinary(0, &line);
                admission.settle();
            });
        }
        let parsed = match json::read_line(text) {
            Ok(parsed) => parsed,
            Err(reason) => return Ok(Err(reason)),
        };
        let ts = match &parsed.ts {
            Some(Ts::Ms(ms)) => Some(Timestamp(*ms)),
            Some(Ts::Text(text)) => match Timestamp::parse(text) {
                Ok(ts) => Some(ts),
                Err(e) => return Ok(Err(format!("`ts`: {e}"))),
            },
            None => None,
        };
        self.timing(ts, |admission| admission.line(0, Ok(parsed)))
    }

    /// Takes a timing at its time.
    fn timing(&mut self, ts: Option<Timestamp>, admit: impl FnOnce(&mut Admission<'_>)) -> Result<Result<(), String>, Error> {
        let ts = ts.unwrap_or(self.now);
        if let Err(reason) = self.reach(ts)? {
            return Ok(Err(reason));
        }
        let before = self.admission.batch.rejected;
        admit(&mut self.admission);
        if self.admission.batch.rejected > before {
            let reason = self.admission.batch.errors.pop().map_or_else(String::new, |e| e.1);
            return Ok(Err(reason));
        }
        self.timings += 1;
        Ok(Ok(()))
    }

    /// Takes an ordinary timing of an endpoint that has a number. It is counted as it comes: of a slot that is not judged yet, before or after others makes no difference.
    fn known_timing(&mut self, ts: Timestamp, id: EndpointId, us: u64, outcome: Outcome) -> Result<Result<(), String>, Error> {
        if let Err(reason) = self.reach(ts)? {
            return Ok(Err(reason));
        }
        if !self.admission.takes(ts) {
            let key = Arc::clone(&self.machine.catalogue.entries()[id.0 as usize].key);
            return self.timing(Some(ts), |admission| admission.key_timing(0, &key, ts, us, outcome));
        }
        let slot = Slot::containing(ts);
        if self.ended.is_some_and(|ended| slot <= ended) {
            self.close_ended()?;
        }
        self.machine.count_one(slot, id, outcome, us);
        self.timings += 1;
        Ok(Ok(()))
    }

    /// Moves the clock to a timing; the inner result says why there is no such time.
    fn reach(&mut self, ts: Timestamp) -> Result<Result<(), String>, Error> {
        if !(0..=TIMESTAMP_MS_MAX).contains(&ts.0) {
            return Ok(Err(format!("`ts` is {}, expected Unix milliseconds", ts.0)));
        }
        if ts > self.now {
            self.advance(ts)?;
        }
        self.first = Some(self.first.map_or(ts, |f| f.min(ts)));
        Ok(Ok(()))
    }

    /// Moves the clock: judges what has ended by then, in order with the markers.
    fn advance(&mut self, to: Timestamp) -> Result<(), Error> {
        while let Some(marker) = self.next_marker.take_if(|m| m.ts <= to) {
            self.clock_to(marker.ts)?;
            self.apply(&Record::Marked(marker).into());
            self.next_marker = self.markers.next();
        }
        self.clock_to(to)
    }

    fn clock_to(&mut self, to: Timestamp) -> Result<(), Error> {
        if to.0 >= self.next_boundary_ms {
            self.take_in()?;
            let judge_after = self.machine.judge.promises().judge_after_ms;
            if self.now.0 > 0
                && let Some(target) = Slot::ended_by(to.plus_ms(-judge_after))
            {
                self.ended = Some(target);
                if self.is_due(target) {
                    self.close_ended()?;
                }
            }
            self.next_boundary_ms = Slot::containing(to.plus_ms(-judge_after)).end().0 + judge_after;
        }
        self.now = self.now.max(to);
        self.admission.set_now(self.now);
        Ok(())
    }

    /// Folds the timings taken since the last slot end that were not counted as they came.
    fn take_in(&mut self) -> Result<(), Error> {
        if self.admission.is_empty() {
            return Ok(());
        }
        self.close_ended()?;
        let batch = self.admission.finish();
        let delta = self.machine.fold(&[&batch]);
        self.apply(&delta);
        Ok(())
    }

    /// Whether anything can have to be said or run at a slot end up to this one.
    fn is_due(&self, target: Slot) -> bool {
        self.fleet.next().is_none_or(|quarter| quarter <= fleet::last_cut(target)) || self.machine.next_due().is_some_and(|due| due <= target)
    }

    /// Judges what has ended, where nothing was due before something comes that depends on what is judged.
    fn close_ended(&mut self) -> Result<(), Error> {
        match self.ended.take() {
            Some(ended) => self.close_to(ended),
            None => Ok(()),
        }
    }

    fn close_to(&mut self, target: Slot) -> Result<(), Error> {
        while let Some(due) = self.machine.next_close(target) {
            if let Some(first) = self.machine.quarters.first().filter(|_| self.finds_itself) {
                self.fleet.begin(first);
            }
            let judged_to = self.machine.judge.judged_to();
            let cut = self.fleet.next().map(fleet::cut_slot).filter(|cut| judged_to.is_none_or(|judged| *cut > judged));
            let end = cut.map_or(due, |cut| cut.min(due));
            let delta = self.machine.close(end);
            self.say(&delta)?;
            self.apply(&delta);
            self.watch(end);
        }
        Ok(())
    }

    /// Runs the quarters of an hour that are to be run by the end of a slot.
    fn watch(&mut self, end: Slot) {
        while let Some(quarter) = self.fleet.next().filter(|quarter| *quarter <= fleet::last_cut(end)) {
            let found = self.fleet.run(&mut self.machine.quarters);
            self.machine.quarters.end(quarter);
            for id in (0..self.machine.catalogue.next_id().0).map(EndpointId) {
                self.machine.quarters.forget(id, self.fleet.needed_from(id));
            }
            if !found.is_empty() {
                self.apply(&Record::Found { quarter, found }.into());
            }
        }
    }

    fn apply(&mut self, delta: &Delta) {
        let first = self.machine.catalogue.next_id();
        self.machine.apply(self.machine.position.next(), delta);
        if !delta.endpoints.is_empty() {
            self.known.add(self.machine.catalogue.numbered_from(first));
            for entry in &delta.endpoints {
                self.fleet.add(Arc::clone(&entry.key), self.machine.is_critical(entry));
            }
        }
        for record in &delta.records {
            match record {
                Record::Marked(marker) => self.fleet.mark(marker.clone()),
                Record::Started { at } => {
                    if let Some(judged) = self.machine.judge.judged_to() {
                        self.fleet.gap(judged.end(), *at);
                    }
                }
                Record::Configured { .. } => self.fleet.configure(Arc::clone(self.machine.judge.promises())),
                _ => {}
            }
        }
    }

    fn say(&mut self, delta: &Delta) -> Result<(), Error> {
        for record in &delta.records {
            let (Record::SlotClosed(SlotClosed { transitions, notifications, .. }) | Record::Configured { transitions, notifications, .. }) = record else {
                continue;
            };
            for line in transitions {
                self.say_line(line)?;
            }
            for notification in notifications {
                self.told.notify(notification);
            }
        }
        Ok(())
    }

    fn say_line(&mut self, line: &Transition) -> Result<(), Error> {
        serde_json::to_writer(&mut self.out, line).map_err(|e| Error::Write(e.into()))?;
        self.out.write_all(b"\n").map_err(Error::Write)?;
        self.told.say(line);
        Ok(())
    }

    /// Takes a recorded frame: its counts as they are, its decisions made anew.
    fn frame(&mut self, delta: &Delta) -> Result<(), Error> {
        self.close_ended()?;
        if !self.own_promises {
            self.finds_itself = false;
            self.machine.quarters.end(i64::MAX - 1);
        }
        let mut taken = Delta { records: Vec::new(), ..delta.clone() };
        for record in &delta.records {
            match record {
                Record::SlotClosed(closed) => {
                    self.apply_if_any(&mut taken);
                    self.close_to(closed.end)?;
                    self.now = self.now.max(closed.end.end().plus_ms(self.machine.judge.promises().judge_after_ms));
                }
                Record::Configured { at, promises, .. } => {
                    self.apply_if_any(&mut taken);
                    if !self.own_promises {
                        let command = Command::Configure(*at, promises.clone());
                        if let Ok(record) = self.machine.judge.decide(command) {
                            let delta = record.into();
                            self.say(&delta)?;
                            self.apply(&delta);
                        }
                    }
                }
                // A receipt is about what was sent, not about what is decided here.
                Record::Delivered { .. } => {}
                Record::Found { .. } if self.finds_itself => {}
                other => taken.records.push(other.clone()),
            }
        }
        self.apply_if_any(&mut taken);
        Ok(())
    }

    fn apply_if_any(&mut self, delta: &mut Delta) {
        if *delta != Delta::default() {
            let (timings, first) = (&mut self.timings, &mut self.first);
            delta.counts.for_each(|slot, _, counted| {
                *timings += counted.observed();
                *first = Some(first.map_or(slot.start(), |f| f.min(slot.start())));
            });
            let delta = std::mem::take(delta);
            self.apply(&delta);
        }
    }

    /// Reads the log of a data directory, with what the archive still has of earlier decisions.
    ///
    /// # Errors
    /// [`Error::Log`] and [`Error::Frame`].
    pub fn log(&mut self, data_dir: &Path, mut progress: impl FnMut(u64)) -> Result<(), Error> {
        for frame in logged(data_dir)? {
            let frame = frame?;
            self.logged(&frame)?;
            progress(u64::from(frame.counted));
        }
        Ok(())
    }

    /// Takes the next frame of a log.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn logged(&mut self, frame: &Logged) -> Result<(), Error> {
        if frame.counted {
            return self.frame(&frame.delta);
        }
        // Before the counts begin, what was decided is taken as it stands; what was owed is not, where it is given by hand.
        let mut delta = frame.delta.clone();
        delta.records.retain(|r| !(self.own_promises && matches!(r, Record::Configured { .. })));
        self.apply(&delta);
        Ok(())
    }

    /// Judges what is left: to the end of the last timing's slot, or until a given time. Recorded frames bring their own slot ends, and nothing is judged
    /// beyond them but until a given time.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn finish(&mut self, until: Option<Timestamp>) -> Result<(), Error> {
        self.take_in()?;
        let judge_after = self.machine.judge.promises().judge_after_ms;
        let plain = self.next_boundary_ms > i64::MIN;
        if plain && let Some(last) = self.machine.last_slot() {
            self.advance(last.end().plus_ms(judge_after))?;
        }
        if let Some(until) = until.filter(|u| *u > self.now) {
            self.advance(until)?;
        }
        self.finish_log()
    }

    /// Ends a replay of recorded frames, which need no clock of their own.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn finish_log(&mut self) -> Result<(), Error> {
        self.close_ended()?;
        self.out.flush().map_err(Error::Write)
    }

    /// What it leaves behind.
    #[must_use]
    pub fn replayed(self) -> Replayed {
        let receivers = self.machine.judge.promises().receivers.iter().map(|r| r.name.as_str());
        let (endpoints, last) = (self.endpoints(), self.now);
        Replayed { first: self.first, last, timings: self.timings, endpoints, bad: self.bad, ..Replayed::new(self.told, receivers) }
    }
}
