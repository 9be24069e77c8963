//! The detectors over many endpoints with weeks behind them: what they cost each endpoint, what they hold in memory, and whether answers wait for them.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use slowburn::counting::{Cell, Outcome, Span, Tally};
use slowburn::detect::fleet::{Fleet, Kept};
use slowburn::detect::quarters::{DAY_QUARTERS, Past, QUARTER_MS};
use slowburn::detect::watch::is_slow_run;
use slowburn::endpoint::{EndpointId, EndpointKey};
use slowburn::histogram::{Digits, Histogram};
use slowburn::run::watching::MAGIC;

use super::answers::Answers;
use super::load::{BATCHES, Load, now_ms, run};
use super::process::{Server, own_memory_mib, thread_cpu_ns};
use super::table::{Table, Target};
use super::traffic::{JSON, Mix, Popularity, Random};
use super::{Bench, SEED, config, store};

const MIX: Mix = Mix { popularity: Popularity::Mixed, endpoints: 100_000 };

/// Endpoints that are lived through; the others are their likes.
const MODELS: u32 = 100;

/// Different quarters of an hour.
const CELLS: usize = 97;

/// What is lived through before: learnt in the first fourteen days.
const DAYS: i64 = 30;

/// 32 connections with 1,000 timings each: 100k a second, which leaves a core to the detectors.
const CONNECTIONS: usize = 32;
const INTERVAL: Duration = Duration::from_millis(320);

/// Quarters of an hour of any endpoint, some twenty requests in each hour.
struct Quarters {
    cells: Vec<Cell>,
    timings: Vec<Histogram>,
}

impl Quarters {
    fn new() -> Self {
        let mut random = Random(SEED);
        let cells: Vec<Cell> = (0..CELLS)
            .map(|_| {
                let mut cell = Cell::new(&[], Digits::Two);
                for _ in 0..4 + random.below(3) {
                    cell.record(Outcome::Ok, Span::exact(u64::from(random.duration_us(20_000.0))), Tally { weight: 1, observed: 1 });
                }
                cell
            })
            .collect();
        let timings = cells.iter().map(|cell| cell.passed.clone()).collect();
        Self { cells, timings }
    }

    fn place(id: u32, quarter: i64) -> usize {
        ((u64::from(id % MODELS) * 31 + quarter.unsigned_abs() * 7) % CELLS as u64) as usize
    }
}

impl Past for Quarters {
    fn prepare(&mut self, _: Range<u32>, _: i64, _: i64) {}

    fn quarter(&self, id: EndpointId, quarter: i64) -> Option<&Histogram> {
        self.timings.get(Self::place(id.0, quarter))
    }

    fn quarters(&mut self, id: EndpointId, from: i64, to: i64) -> Vec<Histogram> {
        (from..to).map(|quarter| self.timings[Self::place(id.0, quarter)].clone()).collect()
    }
}

fn fleet_of(endpoints: u32) -> Fleet {
    let mut fleet = Fleet::new(Arc::default());
    for n in 0..endpoints {
        let key = EndpointKey { method: "GET".to_owned(), route: format!("/r/{n:05}"), ..EndpointKey::of_service(&format!("s{:02}", n % 20), "prod", "http") };
        fleet.add(Arc::new(key), false);
    }
    fleet
}

/// What a fleet of all endpoints keeps before it runs a quarter: that of the models, again and again.
fn kept(quarters: &mut Quarters, before: i64) -> Vec<u8> {
    let (mut models, mut none) = (fleet_of(MODELS), fleet_of(0));
    models.begin(before - DAYS * DAY_QUARTERS);
    none.begin(before);
    let found: usize = (0..DAYS * DAY_QUARTERS).map(|_| models.run(quarters).len()).sum();
    Table::note(&format!("{MODELS} endpoints lived through {DAYS} days, in which {found} things were found of them"));
    let (models, none) = (models.keep(Vec::new()), none.keep(Vec::new()));
    // The quarter, the number of endpoints, each of them, and what a fleet without any keeps besides.
    let quarter = postcard::to_stdvec(&Some(before)).unwrap();
    let rest = &none[quarter.len() + 1..];
    let each = &models[quarter.len() + postcard::to_stdvec(&MODELS).unwrap().len()..models.len() - rest.len()];
    let number = postcard::to_stdvec(&MIX.endpoints).unwrap();
    [quarter.as_slice(), &number, &each.repeat((MIX.endpoints / MODELS) as usize), rest].concat()
}

/// CPU of a fleet in this process, over a day.
fn costs(bench: &mut Bench, quarters: &mut Quarters, kept: &[u8]) {
    let mut fleet = fleet_of(MIX.endpoints);
    let before = own_memory_mib();
    fleet.restore(postcard::from_bytes::<Kept>(kept).unwrap());
    let each = |bytes: f64| bytes / f64::from(MIX.endpoints);
    bench.table.row("kept of an endpoint on disk", "B", &[each(kept.len() as f64)], Target::AtMost(2_000.0));
    bench.table.row("of an endpoint in memory", "B", &[each((own_memory_mib() - before) * 1_048_576.0)], Target::None);
    let (mut slow, mut hours, mut hour) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..DAY_QUARTERS {
        let quarter = fleet.next().unwrap();
        let begin = thread_cpu_ns();
        fleet.run(quarters);
        let spent_us = each((thread_cpu_ns() - begin) / 1e3);
        if is_slow_run(quarter) {
            slow.push(spent_us);
        } else {
            hour.push(spent_us);
        }
        if hour.len() == 4 {
            hours.push(hour.drain(..).sum());
        }
    }
    let quarter = hours.iter().sum::<f64>() / hours.len() as f64 / 4.0;
    let slow: Vec<f64> = slow.into_iter().map(|us| us - quarter).collect();
    bench.table.row("CPU of an endpoint in a slow run", "us", &slow, Target::AtMost(10.0));
    bench.table.row("CPU of an endpoint in an hour besides", "us", &hours, Target::AtMost(2.0));
}

pub fn watching(bench: &mut Bench) {
    let mut quarters = Quarters::new();
    let now = now_ms() / QUARTER_MS;
    let slow = (now - DAY_QUARTERS..now - 1).rev().find(|quarter| is_slow_run(*quarter)).unwrap();
    let kept = kept(&mut quarters, slow);
    costs(bench, &mut quarters, &kept);

    let folder = bench.folder("watching");
    let data = folder.join("data");
    store::of_quarters(&data, MIX.endpoints, slow + 1 - DAY_QUARTERS..now, |id, quarter| quarters.cells[Quarters::place(id, quarter)].clone());
    let file = data.join("watch").join("fleet.bin");
    fs::create_dir_all(data.join("watch")).unwrap();
    fs::write(&file, [MAGIC.as_slice(), &crc32c::crc32c(&kept).to_le_bytes(), &kept].concat()).unwrap();
    drop(kept);
    let written = modified(&file);
    let (server, _) = Server::start(&folder, &config(MIX));
    live(bench, &server, &file, written, now - slow - 1);
}

/// A server that has a slow run and some quarters to catch up with, under load meanwhile and afterwards.
fn live(bench: &mut Bench, server: &Server, file: &Path, written: SystemTime, others: i64) {
    let batches = MIX.batches(SEED, BATCHES, 1_000);
    let length = Duration::from_secs(if bench.long { 180 } else { 90 });
    let load = Load { connections: CONNECTIONS, interval: Some(INTERVAL), ..Load::saturating(server.address, &JSON, &batches, length) };
    let spent = || server.thread_cpu_s("watching");
    let (mut busy, mut slow_run, mut last) = (BTreeSet::new(), None, spent());
    let done = std::thread::scope(|scope| {
        let load = scope.spawn(|| run(&load));
        let start = Instant::now();
        while start.elapsed() < length {
            std::thread::sleep(Duration::from_millis(100));
            let now = spent();
            if now > last {
                busy.insert(now_ms() as u64 / 1_000);
            }
            last = now;
            if slow_run.is_none() && modified(file) > written {
                slow_run = Some((now, start.elapsed().as_secs_f64(), server.memory_mib("VmHWM")));
            }
        }
        load.join().unwrap()
    });
    let (cpu_s, wall_s, most_mib) = slow_run.expect("the slow run has ended");
    bench.table.row("live, with reading and writing: CPU of an endpoint", "us", &[cpu_s * 1e6 / f64::from(MIX.endpoints)], Target::None);
    bench.table.row("live: a slow run takes", "s", &[wall_s], Target::None);
    bench.table.row("live: resident at most when it has ended", "MiB", &[most_mib], Target::None);
    bench.table.row("live: resident at the end", "MiB", &[server.memory_mib("VmRSS")], Target::None);
    Table::note(&format!(
        "it was followed by {others} quarters of an hour, {:.1} us of CPU an endpoint each",
        (last - cpu_s) * 1e6 / f64::from(MIX.endpoints) / others.max(1) as f64
    ));
    for (is_busy, name) in [(false, "while the detectors rest"), (true, "while they run")] {
        let answers = Answers::new(done.answers.iter().filter(|a| busy.contains(&a.0) == is_busy).map(|a| a.1));
        for (quantile, value) in [("p50", 0.5), ("p99", 0.99), ("longest", 1.0)] {
            bench.table.row(&format!("answer at 100k timings/s, {name}: {quantile}"), "ms", &[answers.quantile_ms(value)], Target::None);
        }
        Table::note(&format!("{} answers", answers.len()));
    }
}

fn modified(file: &Path) -> SystemTime {
    fs::metadata(file).and_then(|m| m.modified()).unwrap()
}
