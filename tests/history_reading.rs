//! Reading history: many routes at once are the merge of single ones, how many bytes an endpoint's day takes, and, on demand, how long reading takes:
//! `cargo test --release --test history_reading -- --ignored --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a test fails by panicking, counts little, and measures in real time"
)]

use std::path::Path;
use std::time::Instant;

use slowburn::counting::{Cell, Outcome, Span, Tally};
use slowburn::endpoint::EndpointId;
use slowburn::histogram::Digits;
use slowburn::histogram::quantile::Quantile;
use slowburn::history::closed_periods::{Files, Reader, Wanted};
use slowburn::history::index::Index;
use slowburn::history::open_slots::{OpenSlots, Row};
use slowburn::history::query::{self, Kept};
use slowburn::history::roll_up::{Progress, RollUp};
use slowburn::history::sum::Sum;
use slowburn::log::record::Position;
use slowburn::time::{Slot, Tier, TimeRange, Timestamp};

const HOUR: i64 = 3_600_000;

/// Durations as services have them: lognormal, median 20 ms, sigma 0.8.
struct Durations(u64);

impl Durations {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    }

    fn next_us(&mut self) -> u64 {
        let normal = (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        (20_000.0 * (0.8 * normal).exp()) as u64
    }

    fn row(&mut self, id: u32, timings: u32) -> Row {
        let mut cell = Cell::new(&[], Digits::Two);
        for _ in 0..timings {
            let us = self.next_us();
            let outcome = if us > 400_000 { Outcome::Error } else { Outcome::Ok };
            cell.record(outcome, Span::exact(us), Tally { weight: 1, observed: 1 });
        }
        Row { endpoint: EndpointId(id), cell, slots: Vec::new() }
    }
}

/// A folder with hours, each with the rows that `row` gives, and the index over them.
struct Hours {
    dir: tempfile::TempDir,
    index: Index,
    end: Timestamp,
}

impl Hours {
    fn write(hours: i64, mut rows: impl FnMut(i64) -> Vec<Row>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, index) = (Files::open(dir.path()).unwrap(), Index::open(dir.path()).unwrap());
        for hour in 0..hours {
            let block = files.append(Tier::Hour, Timestamp(hour * HOUR), Position(hour as u64 + 1), &rows(hour)).unwrap();
            index.put_block(&block);
        }
        Self { dir, index, end: Timestamp(hours * HOUR) }
    }

    /// By step; the whole as one without.
    fn read(&self, wanted: &Wanted, step: Option<i64>, open: &OpenSlots) -> Vec<(TimeRange, Cell)> {
        let (end, old) = (self.end, Timestamp(0));
        // No minutes are kept and no days are rolled up: hours answer.
        let kept = Kept { minutes_from: end, hours_from: old, closed_to: end, hours_to: end, days_to: old, named_to: Position(u64::MAX) };
        let mut taken = query::take(kept, &self.index, wanted.clone());
        let whole = TimeRange { from: old, to: Timestamp(end.0 + 60_000) };
        taken.add_open(open, wanted, whole);
        let step = step.unwrap_or(whole.to.0);
        let starts = (0..=((whole.to.0 - 1) / step)).map(|n| n * step);
        let stretches: Vec<_> = starts.map(|at| TimeRange { from: Timestamp(at), to: Timestamp(at + step) }).collect();
        let mut told = Vec::new();
        taken.read(&Reader::new(self.dir.path()), &stretches, Sum::default(), |range, cell| told.push((range, cell.clone()))).unwrap();
        told
    }
}

fn these(ids: impl Iterator<Item = u32>) -> Wanted {
    Wanted::These(ids.map(EndpointId).collect())
}

#[test]
fn many_routes_at_once_are_the_merge_of_single_ones() {
    let mut durations = Durations(7);
    let hours = Hours::write(12, |hour| (0..700).filter(|id| (i64::from(*id) + hour) % 5 > 0).map(|id| durations.row(id, 1 + id % 40)).collect());
    let mut open = OpenSlots::default();
    for id in 0..900 {
        let slot = Slot((12 * HOUR / 10_000) as u32 + id % 3);
        open.block(slot, EndpointId(id)).add_cell(EndpointId(id), durations.row(id, 3).cell);
    }
    for wanted in [these(0..1), these((0..900).filter(|id| id % 3 == 0)), these(0..900), Wanted::All, these(850..870), these(std::iter::empty())] {
        for step in [None, Some(HOUR)] {
            let at_once = hours.read(&wanted, step, &open);
            let mut merged: Vec<Cell> = vec![Cell::default(); at_once.len()];
            for id in (0..900).map(EndpointId).filter(|id| wanted.contains(*id)) {
                for (sum, (_, cell)) in merged.iter_mut().zip(hours.read(&Wanted::These(vec![id]), step, &open)) {
                    sum.merge(&cell);
                }
            }
            assert_eq!(at_once.into_iter().map(|(_, cell)| cell).collect::<Vec<_>>(), merged);
        }
    }
}

#[test]
fn frames_written_after_the_look_are_not_read() {
    let mut durations = Durations(3);
    let hours = Hours::write(4, |_| vec![durations.row(1, 5)]);
    let end = Timestamp(4 * HOUR);
    let kept = Kept { minutes_from: end, hours_from: Timestamp(0), closed_to: end, hours_to: end, days_to: Timestamp(0), named_to: Position(3) };
    let taken = query::take(kept, &hours.index, Wanted::All);
    let mut count = 0;
    let all = [TimeRange { from: Timestamp(0), to: end }];
    taken.read(&Reader::new(hours.dir.path()), &all, Sum::default(), |_, cell| count = cell.total().weight).unwrap();
    assert_eq!(count, 15);
}

fn history_bytes(dir: &Path, tier: Tier) -> u64 {
    std::fs::read_dir(dir.join("history").join(tier.name())).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn an_endpoints_day_takes_few_bytes() {
    let (dir, mut durations, endpoints) = (tempfile::tempdir().unwrap(), Durations(11), 8);
    let mut files = Files::open(dir.path()).unwrap();
    for (tier, timings, target) in [(Tier::Minute, 100, 320_000), (Tier::Hour, 10_000, 40_000)] {
        for n in 0..86_400_000 / tier.width_ms() {
            let rows: Vec<Row> = (0..endpoints).map(|id| durations.row(id, timings)).collect();
            files.append(tier, Timestamp(n * tier.width_ms()), Position(1), &rows).unwrap();
        }
        let bytes = history_bytes(dir.path(), tier) / u64::from(endpoints);
        println!("{}: {bytes} bytes per endpoint and day at {timings} timings a row, index included (limit {target})", tier.name());
        assert!(bytes <= target);
    }
}

/// The best of a few runs, in milliseconds of this thread's CPU.
fn best(runs: u32, mut run: impl FnMut()) -> f64 {
    (0..runs)
        .map(|_| {
            let before = thread_cpu_ms();
            run();
            thread_cpu_ms() - before
        })
        .fold(f64::INFINITY, f64::min)
}

fn thread_cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

#[test]
#[ignore = "measures: minutes of writing, gigabytes of disk"]
fn thirty_days_of_hours_of_ten_thousand_endpoints() {
    // Full hours take 20 times the bytes: fewer endpoints keep them in memory, and a thousand routes are a thousand.
    for (timings, endpoints) in [(20, 10_000), (10_000, 2_000)] {
        let mut durations = Durations(5);
        // The rows repeat with another endpoint each hour: what is measured is reading, not drawing numbers.
        let models: Vec<Row> = (0..97).map(|id| durations.row(id, timings)).collect();
        let row = |id: u32, hour: i64| Row { endpoint: EndpointId(id), ..models[(i64::from(id) * 31 + hour * 7) as usize % models.len()].clone() };
        let start = Instant::now();
        let hours = Hours::write(720, |hour| (0..endpoints).map(|id| row(id, hour)).collect());
        println!(
            "{timings} timings a row: 720 blocks of {endpoints} endpoints, {} MB, written in {:?}",
            history_bytes(hours.dir.path(), Tier::Hour) >> 20,
            start.elapsed()
        );
        let open = OpenSlots::default();
        let p99 = Quantile::parse("0.99").unwrap();
        for (name, wanted, runs) in [
            ("one route", these(1_321..1_322), 9),
            ("a thousand routes together", these(500..1_500), 3),
            ("a thousand routes far apart", these((0..1_000).map(|n| n * (endpoints / 1_000))), 3),
            ("a thousand routes one by one", these(500..1_500), 0),
            ("all routes", Wanted::All, 2),
        ] {
            let by_one: Vec<Wanted> = match &wanted {
                Wanted::These(ids) if runs == 0 => ids.iter().map(|id| Wanted::These(vec![*id])).collect(),
                _ => vec![wanted],
            };
            let (mut points, wall) = (0, Instant::now());
            let runs = u32::max(runs, 1);
            let cpu = best(runs, || {
                for wanted in &by_one {
                    points = hours.read(wanted, Some(HOUR), &open).iter().filter_map(|(_, cell)| cell.passed.quantile_us(p99)).count();
                }
            });
            println!(
                "  {name}: p99 of {points} points in {cpu:.1} ms of CPU ({:.1} ms wall in the mean)",
                wall.elapsed().as_secs_f64() * 1e3 / f64::from(runs)
            );
        }
    }
}

#[test]
#[ignore = "measures: an hour of minutes of a hundred thousand endpoints"]
fn an_hour_of_a_hundred_thousand_endpoints_rolls_up_in_bounded_memory() {
    let (dir, mut durations, endpoints) = (tempfile::tempdir().unwrap(), Durations(5), 100_000);
    let models: Vec<Row> = (0..97).map(|id| durations.row(id, 20)).collect();
    let mut files = Files::open(dir.path()).unwrap();
    let mut blocks = Vec::new();
    for minute in 0..60_u32 {
        let rows: Vec<Row> = (0..endpoints).map(|id| Row { endpoint: EndpointId(id), ..models[((id + minute * 7) % 97) as usize].clone() }).collect();
        blocks.push(files.append(Tier::Minute, Timestamp(i64::from(minute) * 60_000), Position(u64::from(minute) + 1), &rows).unwrap());
    }
    // The peak of writing does not count.
    std::fs::write("/proc/self/clear_refs", "5").ok();
    let rss_kb = |field: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with(field)).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let (before, cpu) = (rss_kb("VmRSS:"), thread_cpu_ms());
    let mut roll_up = RollUp::begin(&Reader::new(dir.path()), Tier::Hour, Timestamp(0), Position(61), &blocks).unwrap();
    let (mut steps, mut longest) = (0_u32, 0.0_f64);
    loop {
        let start = thread_cpu_ms();
        let progress = roll_up.step(2_000).unwrap();
        (steps, longest) = (steps + 1, longest.max(thread_cpu_ms() - start));
        if progress == Progress::Merged {
            break;
        }
    }
    let start = thread_cpu_ms();
    roll_up.finish(&mut files).unwrap();
    println!(
        "{steps} steps of 2,000 rows: {:.0} ms of CPU, the longest step {longest:.2} ms, the end {:.1} ms; {} kB more at the peak; {} MB of minutes to {} MB",
        thread_cpu_ms() - cpu,
        thread_cpu_ms() - start,
        rss_kb("VmHWM:").saturating_sub(before),
        history_bytes(dir.path(), Tier::Minute) >> 20,
        history_bytes(dir.path(), Tier::Hour) >> 20
    );
}
