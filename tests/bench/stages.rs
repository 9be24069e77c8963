//! What a timing costs inside, without HTTP and without the disk, stage by stage on one thread: read out of the body, looked up, folded, encoded, taken in.

use slowburn::endpoint::{KeyRef, PathTemplates};
use slowburn::history::catalogue::Limits;
use slowburn::ingest::admission::{Admission, FUTURE_MS, PAST_MS, TimeLimits};
use slowburn::ingest::known::{KnownEndpoints, Sought, TOGETHER};
use slowburn::ingest::{Batch, binary, json};
use slowburn::judge::Promises;
use slowburn::log::record::{Position, encode};
use slowburn::machine::Machine;
use slowburn::time::{Slot, Timestamp};

use super::ingest::{PARSE_ONLY_OF_TARGETS, parse_only};
use super::load::now_ms;
use super::process::thread_cpu_ns;
use super::table::Target;
use super::traffic::{BINARY, Format, JSON, Mix, Popularity, Timing};
use super::{Bench, SEED};

const PER_BATCH: usize = 1_000;

/// Batches in one commit: what 64 connections send while the one before is synced.
const PER_COMMIT: usize = 32;

/// Commits in a round: at a million timings a second a slot of ten seconds is filled by about three hundred.
const COMMITS: usize = 200;

struct Server {
    machine: Machine,
    known: KnownEndpoints,
    templates: PathTemplates,
    position: u64,
    log: Vec<u8>,
}

/// Nanoseconds of each stage for each timing.
#[derive(Clone, Copy, Default)]
struct Costs {
    read: f64,
    look_up: f64,
    fold: f64,
    encode: f64,
    apply: f64,
}

impl Costs {
    fn after_the_parse(&self) -> f64 {
        self.look_up + self.fold + self.encode + self.apply
    }
}

fn spent<T>(into: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = thread_cpu_ns();
    let done = std::hint::black_box(work());
    *into += thread_cpu_ns() - start;
    done
}

impl Server {
    fn new(endpoints: u32) -> Self {
        let machine = Machine::new(Promises::none(0), Limits { per_service: endpoints as usize, total: endpoints as usize, marked_critical_per_service: 0 });
        Self { machine, known: KnownEndpoints::default(), templates: PathTemplates::default(), position: 0, log: Vec::new() }
    }

    fn read(&self, body: &[u8], is_json: bool) -> Batch {
        let limits = TimeLimits { now: Timestamp(now_ms()), past_ms: PAST_MS, future_ms: FUTURE_MS };
        let mut admission = Admission::new(&self.templates, &self.known, limits);
        if is_json {
            json::read_array(body, &mut admission).unwrap();
        } else {
            binary::read(body, &mut admission).unwrap();
        }
        admission.finish()
    }

    fn commit(&mut self, batches: &[Batch], costs: &mut Costs) {
        let batches: Vec<&Batch> = batches.iter().collect();
        let mut delta = spent(&mut costs.fold, || self.machine.fold_within(&batches, None));
        self.position += 1;
        spent(&mut costs.encode, || {
            self.log.clear();
            encode(&mut self.log, Position(self.position), 0, &delta.to_sections());
        });
        let first_new = self.machine.catalogue.next_id();
        spent(&mut costs.apply, || self.machine.take_in(Position(self.position), &mut delta));
        self.known.add(self.machine.catalogue.numbered_from(first_new));
    }

    /// Slots are closed as time goes on; that is measured elsewhere.
    fn close(&mut self) {
        if let Some(target) = Slot::ended_by(Timestamp(now_ms() - 5_000)) {
            while let Some(end) = self.machine.next_close(target) {
                let delta = self.machine.close(end);
                self.position += 1;
                self.machine.apply(Position(self.position), &delta);
            }
        }
    }

    fn round(&mut self, format: &Format, batches: &[Vec<Timing>]) -> Costs {
        let mut costs = Costs::default();
        let mut body = Vec::new();
        let mut timings = 0;
        for commit in 0..COMMITS {
            let mut read = Vec::new();
            for n in 0..PER_COMMIT {
                body.clear();
                (format.encode)(&batches[(commit * PER_COMMIT + n) % batches.len()], now_ms(), &mut body);
                let batch = spent(&mut costs.read, || self.read(&body, format.name == JSON.name));
                assert_eq!(batch.packed.len(), PER_BATCH, "each timing is an ordinary one");
                timings += batch.packed.len();
                read.push(batch);
            }
            self.commit(&read, &mut costs);
            // Somebody looks now and then.
            if commit % 64 == 63 {
                spent(&mut costs.apply, || self.machine.settle());
                self.close();
            }
        }
        self.look_ups(batches, &mut costs.look_up);
        let mut each = costs;
        for (stage, per) in [
            (&mut each.read, timings),
            (&mut each.fold, timings),
            (&mut each.encode, timings),
            (&mut each.apply, timings),
            (&mut each.look_up, batches.len() * PER_BATCH),
        ] {
            *stage /= per as f64;
        }
        // The look-up is part of reading.
        each.read -= if format.name == JSON.name { each.look_up } else { 0.0 };
        each
    }

    /// The key of each timing, joined and found as admission does it; its parts lie in a body that has just been read.
    fn look_ups(&self, batches: &[Vec<Timing>], into: &mut f64) {
        let (mut sought, mut found) = (vec![Sought::default(); TOGETHER], 0);
        for batch in batches {
            let bodies: Vec<String> = batch.iter().map(|t| format!("{} {} {}", t.service(), t.method(), t.route())).collect();
            let body = bodies.join(" ");
            let mut parts = body.split(' ');
            let mut part = || parts.next().unwrap();
            let key = |(service, method, route)| KeyRef { service, env: "prod", kind: "http", method, route };
            let keys: Vec<KeyRef<'_>> = batch.iter().map(|_| key((part(), part(), part()))).collect();
            let known = self.known.read();
            spent(into, || {
                for keys in keys.chunks(TOGETHER) {
                    let sought = &mut sought[..keys.len()];
                    for (sought, key) in sought.iter_mut().zip(keys) {
                        sought.joined.set(key);
                    }
                    known.get_all(sought);
                    found += sought.iter().filter(|s| s.number.is_some()).count();
                }
            });
        }
        assert_eq!(found, batches.len() * PER_BATCH, "all are known");
    }
}

pub fn stages(bench: &mut Bench) {
    let variants = [
        (&JSON, Popularity::Zipf, 10_000, Some(75.0)),
        (&JSON, Popularity::Uniform, 10_000, Some(75.0)),
        (&JSON, Popularity::Zipf, 100_000, Some(120.0)),
        (&JSON, Popularity::Uniform, 100_000, Some(120.0)),
        (&BINARY, Popularity::Zipf, 100, None),
        (&BINARY, Popularity::Zipf, 1_000, None),
        (&BINARY, Popularity::Zipf, 10_000, None),
    ];
    for (format, popularity, endpoints, target) in variants {
        let mix = Mix { popularity, endpoints };
        let mut server = Server::new(endpoints);
        for batch in mix.all(SEED) {
            let mut body = Vec::new();
            (format.encode)(&batch, now_ms(), &mut body);
            let batch = server.read(&body, format.name == JSON.name);
            server.commit(&[batch], &mut Costs::default());
        }
        let batches = mix.batches(SEED, 320, PER_BATCH);
        let (mut rounds, mut by_parse) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            let costs = server.round(format, &batches);
            by_parse.push(costs.after_the_parse() * parse_only(&batches) / 1e9);
            rounds.push(costs);
        }
        let what = format!("{}, {}", format.name, mix.name());
        let of = |stage: fn(&Costs) -> f64| rounds.iter().map(stage).collect::<Vec<_>>();
        let mut row = |name: &str, values: &[f64], target| bench.table.row(&format!("{what}: {name}"), "ns/timing", values, target);
        row("read, without the look-up of JSON", &of(|c| c.read), Target::None);
        if format.name == JSON.name {
            row("look-up", &of(|c| c.look_up), Target::None);
        }
        row("fold: sort, count, write", &of(|c| c.fold), Target::None);
        row("frame of the log", &of(|c| c.encode), Target::None);
        row("taken in", &of(|c| c.apply), Target::None);
        if let Some(target) = target {
            row("after the parse", &of(Costs::after_the_parse), Target::AtMost(target));
            let target = Target::AtMost(target * PARSE_ONLY_OF_TARGETS / 1e9);
            bench.table.row(&format!("{what}: after the parse by parse only"), "times", &by_parse, target);
        }
    }
}
