//! A data directory driven by the engine's own pieces in the engine's own order, on one thread and a clock by hand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use slowburn::counting::{Cell, Outcome, Span, Tally};
use slowburn::endpoint::{EndpointId, EndpointKey};
use slowburn::histogram::Digits;
use slowburn::history::catalogue::{Entry, Marked};
use slowburn::history::closed_periods::Wanted;
use slowburn::history::counts::Writer;
use slowburn::history::query;
use slowburn::history::sum::Sum;
use slowburn::ingest::batch_keys::{Answered, Committed, Identity, Known};
use slowburn::judge::Command;
use slowburn::log::record::Position;
use slowburn::machine::{Delta, Effects};
use slowburn::run::disk::{self, Retention};
use slowburn::run::recovery::{self, Opened};
use slowburn::run::verify;
use slowburn::time::{Slot, TimeRange, Timestamp};

use crate::common::{Chance, DAY, HOUR, LIMITS, MINUTE, promises};
use crate::server::wait_until;

/// Three minutes before a day ends, so that minutes, hours and days close soon.
pub const START: i64 = 1_767_571_200_000 - 3 * MINUTE;

pub const RETENTION: Retention = Retention { minutes_ms: 8 * DAY, hours_ms: 400 * DAY, log_ms: 26 * HOUR };

const SNAPSHOT_EVERY_MS: i64 = 30_000;

/// A few dozen batches.
pub const SEGMENT_BYTES: u64 = 4 << 10;

const ROUTES: u64 = 5;

const OWED: &str = r#"
[[burn_window]]
long = "20s"
short = "10s"
factor = 2.0
severity = "critical"

[[endpoint]]
service = "shop"
route = "/0"
objectives = [{ availability = true, target = "90%", period = "30d" }]

[[endpoint]]
service = "shop"
route = "/1"
objectives = [{ availability = true, target = "99%", period = "30d" }]
"#;

/// What one batch counts, by route.
pub type Counts = BTreeMap<u64, u64>;

/// A batch with a name.
#[derive(Clone, Debug)]
pub struct Batch {
    pub key: u128,
    pub delta: Delta,
    pub counts: Counts,
}

/// A few timings of some endpoints around now, some for closed minutes; large now and then.
pub fn batch(chance: &mut Chance, key: u128, now: Timestamp) -> Batch {
    let mut cells = BTreeMap::<(Slot, EndpointId), Cell>::new();
    let mut counts = Counts::new();
    let timings = if chance.below(9) == 0 { 60 } else { 2 + chance.below(5) };
    for _ in 0..timings {
        let (route, weight) = (chance.below(ROUTES), 1 + chance.below(3));
        let late = [0, 0, 0, 3_000, 9_000, 70_000, HOUR][chance.below(7) as usize];
        let is_burning = route < 2 && (now.0 / 40_000) % 2 == 0;
        let outcome = if is_burning && chance.below(2) == 0 { Outcome::Error } else { Outcome::Ok };
        let cell = cells.entry((Slot::containing(Timestamp(now.0 - late)), EndpointId(route as u32))).or_insert_with(|| Cell::new(&[], Digits::Two));
        cell.record(outcome, Span::exact(100 + chance.below(1_000_000)), Tally { weight, observed: weight });
        *counts.entry(route).or_default() += weight;
    }
    let answer = Answered { at: now, body: key as u64, accepted: timings, rejected: 0 };
    // In the order of slot and endpoint.
    let mut writer = Writer::default();
    for ((slot, id), cell) in &cells {
        writer.cell(*slot, *id, cell);
    }
    Batch { key, counts, delta: Delta { counts: writer.finish(), batches: vec![Committed { key: Some(key), sender: None, answer }], ..Delta::default() } }
}

/// An opened directory and its state after each frame.
pub struct DataDir {
    pub opened: Opened,
    pub now: Timestamp,
    last_checkpoint: Timestamp,
    staged: Vec<(Position, Delta, Effects)>,
    /// Hash of the state after each frame, if that is wanted.
    pub states: Option<BTreeMap<Position, u64>>,
}

/// Tests beside this one start processes, and each has the locks of this one until it becomes another program.
fn unlocked<T>(mut attempt: impl FnMut() -> Result<T, disk::Error>) -> Result<T, disk::Error> {
    let found = wait_until(Duration::from_secs(10), || Some(attempt()).filter(|a| !matches!(a, Err(disk::Error::Locked { .. }))));
    found.unwrap_or_else(attempt)
}

pub fn open(dir: &Path, now: Timestamp) -> Result<Opened, disk::Error> {
    let mut opened = unlocked(|| recovery::open(dir, LIMITS, RETENTION, now, false))?;
    opened.log = opened.log.in_segments_of(SEGMENT_BYTES);
    Ok(opened)
}

impl DataDir {
    /// A new one with five endpoints, two of them with objectives.
    pub fn new(dir: &Path) -> Self {
        let now = Timestamp(START);
        let mut new = Self { opened: open(dir, now).unwrap(), now, last_checkpoint: now, staged: Vec::new(), states: None };
        let key =
            |route: u64| EndpointKey { service: "shop".into(), env: String::new(), kind: "http".into(), method: "GET".into(), route: format!("/{route}") };
        let endpoints = (0..ROUTES).map(|route| Entry { key: Arc::new(key(route)), marked: Marked::No }).collect();
        new.stage(Delta { endpoints, ..Delta::default() });
        let owed = new.opened.machine.judge.decide(Command::Configure(now, promises(OWED))).unwrap();
        new.stage(owed.into());
        new.commit().unwrap();
        new
    }

    pub fn from_opened(opened: Opened, now: Timestamp) -> Self {
        Self { opened, now, last_checkpoint: now, staged: Vec::new(), states: None }
    }

    /// Opens one that is there.
    pub fn reopen(dir: &Path, now: Timestamp) -> Result<Self, disk::Error> {
        Ok(Self::from_opened(open(dir, now)?, now))
    }

    /// Whether a batch would be counted, were it to come.
    pub fn is_new(&self, batch: &Batch) -> bool {
        self.opened.machine.keys.look(&Identity::Key(batch.key), batch.key as u64) == Known::New
    }

    /// Stages a batch as committed now.
    pub fn stage_now(&mut self, batch: &Batch) -> Position {
        let mut delta = batch.delta.clone();
        delta.batches[0].answer.at = self.now;
        self.stage(delta)
    }

    pub fn stage(&mut self, delta: Delta) -> Position {
        let position = self.opened.log.stage(&delta.to_sections());
        self.opened.log.write().unwrap();
        let effects = self.opened.machine.apply(position, &delta);
        if let Some(states) = &mut self.states {
            states.insert(position, state(&self.opened));
        }
        self.staged.push((position, delta, effects));
        position
    }

    /// After this everything staged is acknowledged.
    pub fn commit(&mut self) -> Result<(), disk::Error> {
        self.opened.log.commit()?;
        self.keep()
    }

    pub fn keep(&mut self) -> Result<(), disk::Error> {
        for (position, delta, effects) in std::mem::take(&mut self.staged) {
            self.opened.keeper.keep(position, &delta, &effects)?;
        }
        Ok(())
    }

    /// Closes what is due, in one commit; whether it is time for a checkpoint.
    pub fn close_due(&mut self) -> Result<bool, disk::Error> {
        let Some(target) = Slot::ended_by(self.now.plus_ms(-1_000)) else { return Ok(false) };
        let mut closed = false;
        while let Some(end) = self.opened.machine.next_close(target) {
            let delta = self.opened.machine.close(end);
            self.stage(delta);
            closed = true;
        }
        self.commit()?;
        Ok(closed && self.now.0 - self.last_checkpoint.0 >= SNAPSHOT_EVERY_MS)
    }

    pub fn checkpoint(&mut self) -> Result<(), disk::Error> {
        self.last_checkpoint = self.now;
        self.opened.keeper.checkpoint(&mut self.opened.machine, self.now)
    }
}

/// A hash of everything that the machine shows but the batch keys, which the log must outlive. The judge forgets slots that no window sees any more when it comes by; so not of those.
pub fn state(opened: &Opened) -> u64 {
    let machine = &opened.machine;
    // As they are stored: in memory one histogram has several forms.
    let cells = serde_json::to_string(&(machine.open.cells().collect::<Vec<_>>(), &machine.totals)).unwrap();
    let counts = format!("{cells} {:?} {:?}", machine.fates, machine.catalogue.entries());
    let rest = format!("{:?} {} {} {:?}", machine.keys.senders(), machine.in_flight_reports, machine.details, machine.delivered);
    let judge = &machine.judge;
    let objectives = serde_json::to_string(&judge.objectives().collect::<Vec<_>>()).unwrap();
    let decided = format!("{objectives} {:?} {:?} {:?} {:?}", judge.incidents(), judge.outbox(), judge.silences(), judge.judged_to());
    u64::from(crc32c::crc32c(format!("{counts} {rest}").as_bytes())) << 32 | u64::from(crc32c::crc32c(decided.as_bytes()))
}

/// What is counted, in what the machine says of ever and in all that is stored.
pub fn counted(opened: &Opened, now: Timestamp) -> [Counts; 2] {
    let Opened { machine, keeper, .. } = opened;
    let (all, kept) = (TimeRange { from: Timestamp(0), to: Timestamp(now.0 + DAY) }, keeper.kept(machine, now));
    let stored = |id: u32| {
        let wanted = Wanted::These(vec![EndpointId(id)]);
        let mut taken = query::take(kept, &keeper.index, wanted.clone());
        taken.add_open(&machine.open, &wanted, all);
        let mut weight = 0;
        taken.read(&keeper.reader(), &[all], Sum::default(), |_, cell| weight += cell.total().weight).unwrap();
        weight
    };
    let ever = machine.totals.iter().enumerate().map(|(id, total)| (id as u64, total.sums.requests()));
    let history = (0..machine.totals.len() as u64).map(|id| (id, stored(id as u32)));
    [ever.filter(|c| c.1 > 0).collect(), history.filter(|c| c.1 > 0).collect()]
}

/// The sum of batches.
pub fn sum<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Counts {
    let mut sum = Counts::new();
    for (route, count) in batches.into_iter().flat_map(|b| &b.counts) {
        *sum.entry(*route).or_default() += count;
    }
    sum
}

/// What `slowburn verify` finds wrong.
pub fn wrong(dir: &Path) -> Vec<String> {
    unlocked(|| verify::verify(dir)).unwrap().wrong
}
