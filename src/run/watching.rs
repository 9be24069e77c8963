//! The thread that watches: when the rows of a quarter of an hour are in history it runs them through the detectors, and has the engine record what they find.
//!
//! Its own state is what it has learnt and remembers, at most some 2 kB an endpoint. It is written to `watch/` after each slow run (four times a day) and caught up from history at
//! a start; what was recorded before is not recorded again. A disk that fails ends the process, as anywhere; one that is full is waited for. What was learnt of an endpoint is a record
//! of the log, too: when the file is gone, or of another version, the last sixteen days are lived through anew, and a creep in them is not taken for what was usual.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use tracing::{info, warn};

use super::export::logged;
use super::live::Handle;
use crate::detect::fleet::{Fleet, Kept, cut_slot};
use crate::detect::quarters::{Past, QUARTER_MS, Quarters, quarter_of};
use crate::detect::watch::is_slow_run;
use crate::endpoint::{EndpointId, EndpointKey};
use crate::histogram::Histogram;
use crate::history::closed_periods::{Reader, Wanted};
use crate::history::index::Index;
use crate::incident::Marker;
use crate::judge::{Command, Promises, Record};
use crate::log::disk_ops;
use crate::log::file::{self, io_error, sync_dir, write_error};
use crate::log::snapshot::write_whole;
use crate::machine::Machine;
use crate::time::{Slot, Tier, Timestamp};

/// Endpoints whose reference is in one record.
const LEARNT_AT_ONCE: usize = 1_000;

/// What begins the file of what they have learnt; its CRC32C follows, and then the bytes of [`Fleet::keep`].
pub const MAGIC: [u8; 8] = *b"SBWTCH\0\x04";

/// What the thread is told.
pub enum Work {
    /// New endpoints, in the order of their numbers, and whether they are critical.
    Endpoints(Vec<(Arc<EndpointKey>, bool)>),
    /// What is owed from here on.
    Configured(Arc<Promises>),
    /// Something changed in the world.
    Marked(Marker),
    /// Nobody listened between these.
    Gap(Timestamp, Timestamp),
    /// Minutes up to here are in history.
    Written(Timestamp),
}

/// The engine's side of it.
#[derive(Debug)]
pub struct Watching {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Watching {
    /// Starts the thread, which has the last state that was kept caught up first of all.
    ///
    /// # Errors
    /// When the operating system has none.
    pub fn start(machine: &Machine, written_to: Timestamp, data_dir: &Path, index: &Index, engine: Handle) -> std::io::Result<Self> {
        let mut fleet = Fleet::new(Arc::clone(machine.judge.promises()));
        for entry in machine.catalogue.entries() {
            fleet.add(Arc::clone(&entry.key), machine.is_critical(entry));
        }
        let path = data_dir.join("watch").join("fleet.bin");
        let kept = read(&path).unwrap_or_else(|error| {
            warn!(%error, "what the detectors remember cannot be read: they go on with what they had learnt, and what history has");
            None
        });
        match kept {
            Some(kept) => fleet.restore(kept),
            None if machine.judge.has_learnt() => remind(&mut fleet, data_dir),
            None => {}
        }
        let markers = index.markers().unwrap_or_else(|error| {
            warn!(%error, "the markers cannot be read");
            Vec::new()
        });
        fleet.set_markers(markers);
        let past = Past15 { reader: Reader::new(data_dir), index: index.clone(), buffer: Quarters::default() };
        let thread = Thread { fleet, past, path, engine, recorded: machine.judge.watched_to() };
        let (work, works) = channel();
        // A new sender is never full.
        drop(work.send(Work::Written(written_to)));
        let thread = std::thread::Builder::new().name("watching".to_owned()).spawn(move || thread.run(&works))?;
        Ok(Self { work: Some(work), thread: Some(thread) })
    }

    /// A way for others to tell it something.
    #[must_use]
    pub fn sender(&self) -> Option<Sender<Work>> {
        self.work.clone()
    }

    /// Tells it something.
    pub fn tell(&self, work: Work) {
        if let Some(to) = &self.work {
            // Without the thread nothing is watched, which it has said when it ended.
            drop(to.send(work));
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.work = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            warn!("the thread that watches panicked");
        }
    }
}

/// How nice the thread is to all others: it gets a tenth of a core that somebody else wants.
const NICENESS: i32 = 10;

/// Has the threads that answer go first: a slow run of very many endpoints takes a core for seconds, and nobody waits for it.
fn give_way() {
    // Elsewhere it would be the whole process that gives way.
    if cfg!(target_os = "linux")
        && let Err(error) = rustix::process::nice(NICENESS)
    {
        info!(%error, "the thread that watches cannot give way to others");
    }
}

struct Thread {
    fleet: Fleet,
    past: Past15,
    path: PathBuf,
    engine: Handle,
    /// The last quarter whose findings are in the log.
    recorded: Option<i64>,
}

impl Thread {
    fn run(mut self, works: &Receiver<Work>) {
        give_way();
        for work in works {
            match work {
                Work::Endpoints(new) => new.into_iter().for_each(|(key, critical)| self.fleet.add(key, critical)),
                Work::Configured(promises) => self.fleet.configure(promises),
                Work::Marked(marker) => self.fleet.mark(marker),
                Work::Gap(from, to) => self.fleet.gap(from, to),
                Work::Written(to) => {
                    if !self.run_to(to) {
                        return;
                    }
                }
            }
        }
    }

    /// Runs the quarters that are whole when minutes are written up to an instant; `false` when the engine is gone.
    fn run_to(&mut self, to: Timestamp) -> bool {
        if self.fleet.next().is_none() {
            let Some(first) = self.past.index.blocks(Tier::Quarter, Timestamp(0), to).first().map(|b| b.period) else { return true };
            self.fleet.begin(quarter_of(Slot::containing(first)));
        }
        while let Some(quarter) = self.fleet.next().filter(|quarter| cut_slot(*quarter).end() <= to) {
            let found = self.fleet.run(&mut self.past);
            // What is learnt anew goes into the log though its quarter is there: the record of an earlier version could not be read, and a repeated one is none the worse.
            let text = |(id, learnt): &(EndpointId, Vec<u8>)| (*id, STANDARD.encode(learnt));
            for some in self.fleet.take_learnt().chunks(LEARNT_AT_ONCE) {
                if !self.engine.decide_from_thread(&Command::Learn(some.iter().map(text).collect())) {
                    return false;
                }
            }
            if self.recorded.is_none_or(|recorded| quarter > recorded) {
                if !self.engine.decide_from_thread(&Command::Find(quarter, found)) {
                    return false;
                }
                self.recorded = Some(quarter);
            }
            if is_slow_run(quarter) {
                match write(&self.path, &self.fleet) {
                    Err(error @ file::Error::NoRoom { .. }) => {
                        warn!(%error, "what the detectors have learnt was not written: a start will catch up from the state before");
                    }
                    Err(error) => {
                        self.engine.fail(error.into());
                        return false;
                    }
                    Ok(()) => {}
                }
            }
        }
        true
    }
}

/// Quarters of an hour as history has them, those of a few endpoints at a time in memory.
struct Past15 {
    reader: Reader,
    index: Index,
    buffer: Quarters,
}

impl Past for Past15 {
    fn prepare(&mut self, ids: Range<u32>, from: i64, to: i64) {
        self.buffer = Quarters::of_endpoints_from(EndpointId(ids.start));
        let wanted = Wanted::These(ids.map(EndpointId).collect());
        let mut reading = self.reader.begin();
        for block in self.index.blocks(Tier::Quarter, Timestamp(from * QUARTER_MS), Timestamp(to * QUARTER_MS)) {
            let slot = Slot::containing(block.period);
            let buffer = &mut self.buffer;
            let read = reading.each_row(&block, &wanted, |row| buffer.count(row.endpoint, slot, |quarter| row.cell.move_latencies_to(quarter)));
            if let Err(error) = read {
                warn!(%error, period = %block.period, "a quarter of an hour cannot be read: the detectors go on without it");
            }
        }
    }

    fn quarter(&self, id: EndpointId, quarter: i64) -> Option<&Histogram> {
        self.buffer.of(id, quarter)
    }

    fn quarters(&mut self, id: EndpointId, from: i64, to: i64) -> Vec<Histogram> {
        self.buffer.quarters(id, from, to)
    }
}

/// Why what was kept cannot be read.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    File(#[from] file::Error),
    #[error("{} is damaged, or of another version", path.display())]
    Damaged { path: PathBuf },
}

/// Reminds it of what was learnt by the records of the log and its archive, the last of each endpoint.
fn remind(fleet: &mut Fleet, data_dir: &Path) {
    let frames = match logged(data_dir) {
        Ok(frames) => frames,
        Err(error) => return warn!(%error, "what the detectors had learnt cannot be read"),
    };
    let (mut endpoints, mut unread) = (BTreeSet::new(), BTreeSet::new());
    for frame in frames {
        let records = match frame {
            Ok(frame) => frame.delta.records,
            Err(error) => return warn!(%error, "what the detectors had learnt cannot be read to its end"),
        };
        let learnt = records.into_iter().filter_map(|record| if let Record::Learnt(learnt) = record { Some(learnt) } else { None });
        for (id, text) in learnt.flatten() {
            if STANDARD.decode(text).is_ok_and(|learnt| fleet.remind(id, &learnt)) {
                endpoints.insert(id);
            } else {
                unread.insert(id);
            }
        }
    }
    let unread = unread.difference(&endpoints).count();
    if unread > 0 {
        warn!(endpoints = unread, "what the detectors had learnt of these was written by another version: it is learnt anew");
    }
    if !endpoints.is_empty() {
        info!(endpoints = endpoints.len(), "the detectors go on with what they had learnt");
    }
}

fn read(path: &Path) -> Result<Option<Kept>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("cannot read", path)(e).into()),
    };
    let kept = bytes.strip_prefix(&MAGIC).and_then(|rest| {
        let (crc, body) = rest.split_first_chunk::<4>()?;
        (crc32c::crc32c(body) == u32::from_le_bytes(*crc)).then_some(())?;
        postcard::from_bytes(body).ok()
    });
    kept.map(Some).ok_or_else(|| Error::Damaged { path: path.to_owned() })
}

fn write(path: &Path, fleet: &Fleet) -> Result<(), file::Error> {
    let head = MAGIC.len() + size_of::<u32>();
    let mut bytes = fleet.keep([MAGIC.as_slice(), &[0; size_of::<u32>()]].concat());
    let crc = crc32c::crc32c(&bytes[head..]);
    bytes[MAGIC.len()..head].copy_from_slice(&crc.to_le_bytes());
    if let Some(dir) = path.parent() {
        disk_ops::create_dir_all(dir).map_err(write_error("cannot create", dir))?;
        dir.parent().map_or(Ok(()), sync_dir)?;
    }
    write_whole(path, &bytes)?;
    info!(bytes = bytes.len(), "what the detectors have learnt is on disk");
    Ok(())
}
