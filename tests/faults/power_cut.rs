//! Power cuts: from the record of a run, the states are built that the disk may be in at each operation. Every one of them opens, holds all that was acknowledged,
//! each batch once and whole, and can be gone on with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use slowburn::log::fault_plan::{self, Event};
use slowburn::log::file::{Log, Reader, segments};
use slowburn::log::record::Position;
use slowburn::time::Timestamp;

use crate::common::{Chance, DAY, HOUR, copy, folder};
use crate::data_dir::{Batch, DataDir, batch, counted, open, state, sum, wrong};
use crate::disk_model::{Disk, FATES, Fate, Made};
use crate::extent;

/// A run as it was recorded.
struct Run {
    dir: tempfile::TempDir,
    events: Vec<Event>,
    batches: Vec<(Position, Batch)>,
    /// After so many operations, all up to this position was acknowledged.
    acknowledged: Vec<(usize, Position)>,
    /// The state after each frame.
    states: BTreeMap<Position, u64>,
    /// The index as it was after so many operations.
    indexes: Vec<(usize, PathBuf)>,
    now: Timestamp,
}

fn record(chance: &mut Chance, batches: u64, copies: &Path) -> Run {
    let dir = folder();
    let watch = fault_plan::watch(dir.path());
    let mut data = DataDir::new(dir.path());
    data.states = Some(BTreeMap::from([1, 2].map(|p| (Position(p), state(&data.opened)))));
    let mut run = Run { acknowledged: Vec::new(), batches: Vec::new(), events: Vec::new(), states: BTreeMap::new(), indexes: Vec::new(), now: data.now, dir };
    let keep_index = |run: &mut Run| {
        let to = copies.join(run.indexes.len().to_string());
        copy(&run.dir.path().join("index"), &to);
        run.indexes.push((watch.operations(), to));
    };
    for number in 0..batches {
        // Long enough for the archive.
        data.now = data.now.plus_ms(if number == batches / 2 { 27 * HOUR } else { 2_000 });
        let new = batch(chance, u128::from(number) + 1, data.now);
        run.batches.push((data.stage(new.delta.clone()), new));
        data.opened.log.commit().unwrap();
        run.acknowledged.push((watch.operations(), data.opened.machine.position));
        data.keep().unwrap();
        let is_due = data.close_due().unwrap();
        run.acknowledged.push((watch.operations(), data.opened.machine.position));
        if is_due {
            data.checkpoint().unwrap();
            keep_index(&mut run);
        } else if number % 16 == 0 {
            keep_index(&mut run);
        }
    }
    (run.events, run.states, run.now) = (watch.events(), data.states.unwrap(), data.now);
    run
}

impl Run {
    fn acknowledged_at(&self, operations: usize) -> Position {
        self.acknowledged.iter().rev().find(|(at, _)| *at <= operations).map_or(Position(0), |a| a.1)
    }
}

#[test]
fn whatever_a_power_cut_leaves_is_opened_and_holds_all_that_was_acknowledged() {
    let mut chance = Chance::seeded("power cut", 7);
    let copies = folder();
    let run = record(&mut chance, 330, copies.path());
    let wanted = extent(200, 3_000);
    let per_cut = 1 + wanted / run.events.len() as u64;
    let (mut disk, mut made, mut seen) = (Disk::new(run.dir.path()), Made::default(), Seen::default());
    for (i, event) in run.events.iter().enumerate() {
        disk.take(event);
        for _ in 0..per_cut {
            if i > 20 && chance.below(run.events.len() as u64 * per_cut) >= wanted {
                continue;
            }
            let fate = FATES[chance.below(FATES.len() as u64) as usize];
            let left = folder();
            disk.leave(run.dir.path(), left.path(), fate, &mut chance, &mut made);
            // sled writes as it likes from its last flush on; or it is all gone.
            let flushed = run.indexes.iter().filter(|(at, _)| *at <= i + 1).collect::<Vec<_>>();
            match chance.below(3) {
                0 => seen.without_index += 1,
                1 => flushed.last().iter().for_each(|(_, index)| copy(index, &left.path().join("index"))),
                _ => flushed.iter().rev().nth(1).iter().for_each(|(_, index)| copy(index, &left.path().join("index"))),
            }
            check(&run, i + 1, left.path(), &mut chance, &mut seen, fate);
        }
    }
    println!("power cut: {} operations, {seen:?}, {made:?}", run.events.len());
    assert!(seen.opened >= wanted / 2 && seen.torn > 0 && seen.without_index > 0 && seen.archived > 0, "{seen:?}");
    assert!(made.sectors_lost > 0 && made.names_lost > 0 && made.out_of_order > 0 && made.by_fate.len() == FATES.len(), "{made:?}");
}

#[derive(Debug, Default)]
struct Seen {
    opened: u64,
    torn: u64,
    without_index: u64,
    archived: u64,
    unacknowledged_kept: u64,
}

fn check(run: &Run, operations: usize, left: &Path, chance: &mut Chance, seen: &mut Seen, fate: Fate) {
    let what = format!("after {operations} of {} operations, the last {:?}, unsynced {fate:?}", run.events.len(), run.events[operations - 1].operation);
    let mut opened = open(left, run.now).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (position, acknowledged) = (opened.machine.position, run.acknowledged_at(operations));
    assert!(position >= acknowledged, "{what}: up to {position:?}, acknowledged {acknowledged:?}");
    if position > Position(2) {
        assert_eq!(state(&opened), run.states[&position], "{what}: the state at {position:?}");
    }
    let [ever, stored] = counted(&opened, run.now);
    let in_log = segments(&left.join("log")).unwrap()[0].0;
    let taken = run.batches.iter().filter(|b| b.0 <= position);
    let lost = taken
        .clone()
        .filter(|b| b.0 >= in_log && b.1.delta.batches[0].answer.at.0 + DAY > run.now.0 && !opened.machine.keys.keys().contains_key(&b.1.key))
        .count();
    assert_eq!(lost, 0, "{what}: keys lost");
    let wanted = sum(taken.map(|b| &b.1));
    assert_eq!((&ever, &stored), (&wanted, &wanted), "{what}: counts of ever and in history, against the batches up to {position:?}");
    seen.opened += 1;
    seen.torn += u64::from(opened.torn.is_some());
    seen.unacknowledged_kept += u64::from(position > acknowledged);
    seen.archived += u64::from(left.join("archive").exists());
    if chance.below(4) == 0 && position > Position(2) {
        // It goes on.
        let mut data = DataDir::from_opened(opened, run.now);
        let new = batch(chance, u128::MAX, run.now);
        data.stage(new.delta.clone());
        data.commit().unwrap();
        data.close_due().unwrap();
        let before = (state(&data.opened), counted(&data.opened, run.now));
        drop(data);
        opened = open(left, run.now).unwrap_or_else(|e| panic!("{what}, gone on: {e}"));
        assert_eq!((state(&opened), counted(&opened, run.now)), before, "{what}, gone on");
    }
    drop(opened);
    assert_eq!(wrong(left), Vec::<String>::new(), "{what}: verify");
}

/// The log alone, at each of its operations: all subsets of the sectors that are not synced where these are few.
#[test]
fn no_subset_of_unsynced_sectors_makes_the_log_doubt_what_was_acknowledged() {
    let mut chance = Chance::seeded("sectors", 11);
    let copies = folder();
    let run = record(&mut chance, 120, copies.path());
    let whole: BTreeMap<_, _> = Reader::log(run.dir.path(), Position(0)).unwrap().map(Result::unwrap).map(|f| (f.position, f)).collect();
    let last = run.states.last_key_value().unwrap().0;
    assert_eq!(whole.last_key_value().unwrap().0, last);
    let (samples, mut disk) = (extent(20, 200), Disk::new(run.dir.path()));
    let (mut states, mut torn, mut exhausted) = (0_u64, 0_u64, 0_u64);
    for (i, event) in run.events.iter().enumerate() {
        disk.take(event);
        let sectors = disk.unsynced_sectors(&event.path);
        if event.path.extension().is_none_or(|e| e != "log") || sectors.is_empty() {
            continue;
        }
        let subsets: Vec<u64> =
            if 1 << sectors.len().min(60) <= samples { (0..1 << sectors.len()).collect() } else { (0..samples).map(|_| chance.next()).collect() };
        exhausted += u64::from(1 << sectors.len().min(60) <= samples);
        for subset in subsets {
            let kept: Vec<u64> = sectors.iter().enumerate().filter(|(n, _)| subset >> (n % 64) & 1 == 1).map(|(_, s)| *s).collect();
            let left = folder();
            let log = left.path().join("log");
            fs::create_dir(&log).unwrap();
            // Segments before are as they are in the end, or in the archive.
            for (_, path) in segments(&run.dir.path().join("log")).unwrap().iter().filter(|(_, p)| *p < event.path) {
                fs::copy(path, log.join(path.file_name().unwrap())).unwrap();
            }
            let file = disk.with_sectors(&event.path, &kept, chance.below(2) == 0);
            fs::write(log.join(event.path.file_name().unwrap()), file).unwrap();
            let (_, cut) = Log::open(left.path()).unwrap_or_else(|e| panic!("operation {i}, sectors {kept:?} of {sectors:?}: {e}"));
            let read: Vec<_> = Reader::log(left.path(), Position(0)).unwrap().map(Result::unwrap).collect();
            // Those of segments that went to the archive later are not there to compare with.
            assert!(read.iter().all(|r| whole.get(&r.position).is_none_or(|w| w == r)), "operation {i}: frames are as they were written");
            if event.offset > 16 || !read.is_empty() {
                let end = read.last().map_or(Position(0), |f| f.position);
                assert!(end >= run.acknowledged_at(i + 1), "operation {i}: up to {end:?}");
            }
            states += 1;
            torn += u64::from(cut.is_some());
        }
    }
    println!("sectors: {states} states of the log, {torn} of them torn; all subsets for {exhausted} writes");
    assert!(states > 300 && torn > 100 && exhausted > 50, "{states} {torn} {exhausted}");
}
