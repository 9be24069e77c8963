//! Seeded runs of the real machine, log and disk against clients that hear nothing, hear late, send twice and in any order, with pauses, crashes and deleted views at any
//! point. After each run the live machine, a recovery from snapshot and tail and a rebuild from the whole log agree, and every acknowledged batch counts once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use slowburn::judge::Command;
use slowburn::log::record::Position;
use slowburn::time::Timestamp;

use crate::common::{Chance, HOUR, copy, folder};
use crate::data_dir::{Batch, DataDir, batch, counted, open, state, sum, wrong};
use crate::extent;

#[derive(Debug, Default)]
struct Fired {
    runs: u64,
    batches: u64,
    unknown_answers: u64,
    duplicates: u64,
    reordered: u64,
    pauses: u64,
    crashes: u64,
    crashes_before_commit: u64,
    crashes_before_keep: u64,
    indexes_deleted: u64,
    snapshots_deleted: u64,
    archived: u64,
}

/// A client sends its batches again until it hears that they are taken.
struct World {
    data: DataDir,
    waiting: Vec<Batch>,
    acknowledged: BTreeMap<u128, Batch>,
    taken: BTreeSet<u128>,
}

impl World {
    /// One commit of some waiting batches, in any order, some of them twice.
    fn commit(&mut self, chance: &mut Chance, fired: &mut Fired) {
        let count = (1 + chance.below(4)).min(self.waiting.len() as u64);
        let mut answers = Vec::new();
        for _ in 0..count {
            let index = chance.below(self.waiting.len() as u64) as usize;
            fired.reordered += u64::from(index > 0);
            let batch = self.waiting[index].clone();
            if self.data.is_new(&batch) {
                assert!(!self.acknowledged.contains_key(&batch.key), "acknowledged, and new again: {}", batch.key);
                self.data.stage_now(&batch);
            } else {
                fired.duplicates += 1;
            }
            answers.push(batch);
        }
        self.data.commit().unwrap();
        for batch in answers {
            self.taken.insert(batch.key);
            if chance.below(5) == 0 {
                // It is on disk, and nobody heard: it comes again, now or much later.
                fired.unknown_answers += 1;
                continue;
            }
            self.waiting.retain(|b| b.key != batch.key);
            self.acknowledged.insert(batch.key, batch.clone());
            if chance.below(6) == 0 {
                // A copy that was under way all the time.
                assert!(!self.data.is_new(&batch), "acknowledged, and new again: {}", batch.key);
                fired.duplicates += 1;
            }
        }
    }

    /// The process goes at any point of a commit; views may be gone afterwards.
    fn crash(self, dir: &Path, chance: &mut Chance, fired: &mut Fired) -> Self {
        let Self { mut data, waiting, acknowledged, mut taken } = self;
        let now = data.now;
        fired.crashes += 1;
        if let Some(batch) = waiting.first().filter(|b| chance.below(2) == 0 && data.is_new(b)) {
            data.stage_now(batch);
            if chance.below(2) == 0 {
                // Written; a process that is killed loses nothing of it.
                fired.crashes_before_commit += 1;
            } else {
                data.opened.log.commit().unwrap();
                fired.crashes_before_keep += 1;
            }
            taken.insert(batch.key);
        }
        let before = (data.opened.machine.position, state(&data.opened));
        drop(data);
        if chance.below(4) == 0 {
            fired.indexes_deleted += 1;
            fs::remove_dir_all(dir.join("index")).unwrap();
        }
        if chance.below(4) == 0 && dir.join("snapshots").exists() {
            fired.snapshots_deleted += 1;
            fs::remove_dir_all(dir.join("snapshots")).unwrap();
        }
        let data = DataDir::reopen(dir, now).unwrap();
        assert_eq!((data.opened.machine.position, state(&data.opened)), before, "after a crash");
        Self { data, waiting, acknowledged, taken }
    }
}

fn run(seed: u64, fired: &mut Fired) {
    let mut chance = Chance(seed);
    let dir = folder();
    let mut world = World { data: DataDir::new(dir.path()), waiting: Vec::new(), acknowledged: BTreeMap::new(), taken: BTreeSet::new() };
    let steps = 25 + chance.below(40);
    for step in 0..steps {
        let jump = [27 * HOUR, 10 * 60_000, 65_000][chance.below(3) as usize];
        let is_pause = chance.below(20) == 0;
        fired.pauses += u64::from(is_pause);
        world.data.now = world.data.now.plus_ms(if is_pause { jump } else { 500 + chance.below(6_000) as i64 });
        if is_pause && jump > 24 * HOUR {
            // Clients give up within a day, which is how long keys are kept.
            let taken = world.taken.clone();
            for batch in world.waiting.extract_if(.., |b| taken.contains(&b.key)) {
                world.acknowledged.insert(batch.key, batch);
            }
        }
        for n in 0..=chance.below(3) {
            world.waiting.push(batch(&mut chance, u128::from(step * 8 + n + 1), world.data.now));
            fired.batches += 1;
        }
        world.commit(&mut chance, fired);
        if chance.below(3) > 0 && world.data.close_due().unwrap() && chance.below(3) > 0 {
            world.data.checkpoint().unwrap();
        }
        if let Some(id) = world.data.opened.machine.judge.incidents().keys().next().cloned().filter(|_| chance.below(5) == 0) {
            let record = world.data.opened.machine.judge.decide(Command::Ack { at: world.data.now, incident: id, by: "kim".into() }).unwrap();
            world.data.stage(record.into());
            world.data.commit().unwrap();
        }
        if chance.below(8) == 0 {
            world = world.crash(dir.path(), &mut chance, fired);
        }
    }
    while !world.waiting.is_empty() {
        world.commit(&mut chance, fired);
    }
    fired.runs += 1;
    fired.archived += u64::from(dir.path().join("archive").exists());
    agree(seed, &world, dir.path());
}

/// The live machine, a recovery from snapshot and tail, a rebuild from the whole log.
fn agree(seed: u64, world: &World, dir: &Path) {
    let now = world.data.now;
    let seen = |opened: &slowburn::run::recovery::Opened| -> (Position, u64, [_; 2]) { (opened.machine.position, state(opened), counted(opened, now)) };
    let live = seen(&world.data.opened);
    let wanted = sum(world.acknowledged.values());
    assert_eq!(live.2, [wanted.clone(), wanted], "seed {seed}: each acknowledged batch once, in the sums and in history");
    assert_eq!(world.acknowledged.keys().copied().collect::<BTreeSet<_>>(), world.taken, "seed {seed}");
    let (recovered, rebuilt) = (folder(), folder());
    copy(dir, recovered.path());
    copy(dir, rebuilt.path());
    for view in ["index", "snapshots"] {
        fs::remove_dir_all(rebuilt.path().join(view)).unwrap_or_default();
    }
    let opened = open(recovered.path(), now).unwrap();
    assert_eq!(seen(&opened), live, "seed {seed}: snapshot and tail");
    let again = goes_on(recovered.path(), opened, now);
    let opened = open(rebuilt.path(), now).unwrap();
    assert_eq!(seen(&opened), live, "seed {seed}: rebuilt from the whole log");
    assert_eq!(goes_on(rebuilt.path(), opened, now), again, "seed {seed}: what both decide next");
    for left in [recovered.path(), rebuilt.path()] {
        assert_eq!(wrong(left), Vec::<String>::new(), "seed {seed}");
    }
}

/// What it decides when it goes on for ten minutes: incidents with their evidence, and the state at the end.
fn goes_on(dir: &Path, opened: slowburn::run::recovery::Opened, now: Timestamp) -> (Vec<String>, u64) {
    let mut data = DataDir::from_opened(opened, now);
    let mut decided = Vec::new();
    for minute in 1..=10 {
        data.now = now.plus_ms(minute * 60_000);
        let new = batch(&mut Chance(minute as u64), u128::MAX - minute as u128, data.now);
        data.stage(new.delta);
        data.close_due().unwrap();
        decided.push(format!("{:?}", data.opened.machine.judge.incidents()));
    }
    assert!(dir.join("log").exists());
    (decided, state(&data.opened))
}

#[test]
fn live_recovered_and_rebuilt_agree_and_acknowledged_batches_count_once() {
    let first = Chance::seeded("simulated log", 1).0;
    let (last, next) = (first + extent(200, 1_000), Mutex::new(first));
    let worker = || {
        let mut fired = Fired::default();
        loop {
            let seed = {
                let mut next = next.lock().unwrap();
                *next += 1;
                *next - 1
            };
            if seed >= last {
                return fired;
            }
            run(seed, &mut fired);
        }
    };
    let fired = std::thread::scope(|scope| [scope.spawn(worker), scope.spawn(worker)].map(|w| w.join().unwrap()));
    println!("simulated log: {fired:?}");
    let sum = |of: fn(&Fired) -> u64| fired.iter().map(of).sum::<u64>();
    assert_eq!(sum(|f| f.runs), last - first);
    let all = [
        sum(|f| f.unknown_answers),
        sum(|f| f.duplicates),
        sum(|f| f.reordered),
        sum(|f| f.pauses),
        sum(|f| f.crashes),
        sum(|f| f.crashes_before_commit),
        sum(|f| f.crashes_before_keep),
        sum(|f| f.indexes_deleted),
        sum(|f| f.snapshots_deleted),
        sum(|f| f.archived),
    ];
    assert!(all.iter().all(|n| *n > 0), "{fired:?}");
}
