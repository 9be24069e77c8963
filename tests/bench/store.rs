//! Data directories as a server leaves them after hours or a month, written by the server's own code without its sockets.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use slowburn::counting::{Cell, Outcome, Span, Tally};
use slowburn::detect::quarters::QUARTER_MS;
use slowburn::endpoint::{EndpointId, EndpointKey};
use slowburn::histogram::Digits;
use slowburn::history::catalogue::{Entry, Limits, Marked};
use slowburn::history::closed_periods::Files;
use slowburn::history::counts::Writer;
use slowburn::history::open_slots::Row;
use slowburn::machine::Delta;
use slowburn::run::disk::Retention;
use slowburn::run::recovery::{self, Opened};
use slowburn::time::{Slot, Tier, Timestamp};

use super::SEED;
use super::load::now_ms;
use super::traffic::{Random, Timing};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 3_600_000;
const SLOTS_PER_MINUTE: u32 = 6;

/// More than of a running server: snapshots in between are not what is measured.
const MINUTES_PER_SNAPSHOT: i64 = 10;

/// Durations that cells are made of, so that writing a gigabyte is not drawing numbers.
const MODELS: usize = 997;

struct Store {
    opened: Opened,
}

impl Store {
    /// A new one with endpoints as the load generator names them.
    fn new(data_dir: &Path, endpoints: u32) -> Self {
        let all = endpoints as usize;
        let limits = Limits { per_service: all, total: all, marked_critical_per_service: 0 };
        let retention = Retention { minutes_ms: 8 * 24 * HOUR, hours_ms: 400 * 24 * HOUR, log_ms: 25 * HOUR };
        let opened = recovery::open(data_dir, limits, retention, Timestamp(now_ms()), false).unwrap();
        let mut store = Self { opened };
        let entry = |endpoint| {
            let timing = Timing { endpoint, age_ms: 0, status: 200, duration_us: 0 };
            let key = EndpointKey { service: timing.service(), env: "prod".into(), kind: "http".into(), method: timing.method().into(), route: timing.route() };
            Entry { key: Arc::new(key), marked: Marked::No }
        };
        store.write(&Delta { endpoints: (0..endpoints).map(entry).collect(), ..Delta::default() });
        store
    }

    /// As the engine does it.
    fn write(&mut self, delta: &Delta) {
        let Opened { machine, log, keeper, .. } = &mut self.opened;
        let position = log.stage(&delta.to_sections());
        log.commit().unwrap();
        let effects = machine.apply(position, delta);
        keeper.keep(position, delta, &effects).unwrap();
    }

    fn close(&mut self, end: Slot) {
        let delta = self.opened.machine.close(end);
        self.write(&delta);
    }

    fn checkpoint(&mut self, at: Timestamp) {
        let Opened { machine, keeper, .. } = &mut self.opened;
        keeper.checkpoint(machine, at).unwrap();
    }
}

/// Every endpoint with `timings` in each slot of so many minutes, up to a moment ago.
pub fn of_minutes(data_dir: &Path, endpoints: u32, timings: usize, minutes: i64) {
    let (mut store, mut random) = (Store::new(data_dir, endpoints), Random(SEED));
    let models: Vec<(u64, Vec<(u16, u64)>)> = (0..MODELS)
        .map(|_| {
            let values: Vec<u64> = (0..timings).map(|_| u64::from(random.duration_us(20_000.0))).collect();
            let mut cell = Cell::new(&[], Digits::Two);
            for us in &values {
                cell.record(Outcome::Ok, Span::exact(*us), Tally { weight: 1, observed: 1 });
            }
            (values.iter().sum(), cell.passed.buckets().collect())
        })
        .collect();
    let mut at = Timestamp(now_ms() / MINUTE * MINUTE - minutes * MINUTE);
    for minute in 0.. {
        if at.0 + MINUTE > now_ms() {
            break;
        }
        for slot in 0..SLOTS_PER_MINUTE {
            let slot = Slot(Slot::containing(at).0 + slot);
            let mut counts = Writer::default();
            for id in 0..endpoints {
                let (sum_us, buckets) = &models[(random.next() % MODELS as u64) as usize];
                counts.plain(slot, EndpointId(id), 0, *sum_us, buckets);
            }
            store.write(&Delta { counts: counts.finish(), ..Delta::default() });
            store.close(slot);
        }
        at = Timestamp(at.0 + MINUTE);
        if minute % MINUTES_PER_SNAPSHOT == 0 {
            store.checkpoint(at);
        }
    }
    store.checkpoint(at);
}

/// Thirty days of hours up to the last whole one, `timings` in each of an endpoint; returns their range.
pub fn of_hours(data_dir: &Path, endpoints: u32, timings: u32) -> (i64, i64) {
    let (mut store, mut random) = (Store::new(data_dir, endpoints), Random(SEED));
    let end = now_ms() / HOUR * HOUR;
    let begin = end - 720 * HOUR;
    let mut cell = || {
        let mut cell = Cell::new(&[], Digits::Two);
        for _ in 0..timings {
            let outcome = if random.below(200) == 0 { Outcome::Error } else { Outcome::Ok };
            cell.record(outcome, Span::exact(u64::from(random.duration_us(20_000.0))), Tally { weight: 1, observed: 1 });
        }
        cell
    };
    let models: Vec<Cell> = (0..97).map(|_| cell()).collect();
    let mut files = Files::open(data_dir).unwrap();
    let name = store.opened.machine.position;
    for (hour, at) in (begin..end).step_by(HOUR as usize).enumerate() {
        let row = |id: u32| Row { endpoint: EndpointId(id), cell: models[(id as usize * 31 + hour * 7) % models.len()].clone(), slots: Vec::new() };
        let rows: Vec<Row> = (0..endpoints).map(row).collect();
        let block = files.append(Tier::Hour, Timestamp(at), name, &rows).unwrap();
        store.opened.keeper.index.put_block(&block);
    }
    files.sync().unwrap();
    store.close(Slot::ended_by(Timestamp(end)).unwrap());
    store.checkpoint(Timestamp(end));
    (begin, end)
}

/// Quarters of an hour, counted from 1970, with a row of each endpoint.
pub fn of_quarters(data_dir: &Path, endpoints: u32, quarters: Range<i64>, cell: impl Fn(u32, i64) -> Cell) {
    let mut store = Store::new(data_dir, endpoints);
    let mut files = Files::open(data_dir).unwrap();
    let (name, end) = (store.opened.machine.position, Timestamp(quarters.end * QUARTER_MS));
    for quarter in quarters {
        let rows: Vec<Row> = (0..endpoints).map(|id| Row { endpoint: EndpointId(id), cell: cell(id, quarter), slots: Vec::new() }).collect();
        let block = files.append(Tier::Quarter, Timestamp(quarter * QUARTER_MS), name, &rows).unwrap();
        store.opened.keeper.index.put_block(&block);
    }
    files.sync().unwrap();
    store.close(Slot::ended_by(end).unwrap());
    store.checkpoint(end);
}
