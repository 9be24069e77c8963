//! A start after a crash.

use std::time::Duration;

use super::load::{BATCHES, Load, run};
use super::process::{Server, folder_bytes};
use super::store;
use super::table::{Table, Target};
use super::traffic::{JSON, Mix, Popularity, Timing};
use super::{Bench, SEED, config};

/// Until the kill, at full load; snapshots are further apart, so all of it is read again.
const LOAD: Duration = Duration::from_secs(10);

/// Half a day at 30 timings a minute for each endpoint takes a gigabyte.
const STORE_MINUTES: i64 = 720;
const STORE_TIMINGS_PER_SLOT: usize = 5;

const MIX: Mix = Mix { popularity: Popularity::Zipf, endpoints: 10_000 };

/// What a start took, and what it had to take in.
#[derive(Default)]
struct Starts {
    ready_s: Vec<f64>,
    timings: Vec<f64>,
    log_mb: Vec<f64>,
}

impl Starts {
    /// Loads a server, kills it and starts it again.
    fn add(&mut self, bench: &Bench, name: &str, server: Server, batches: &[Vec<Timing>]) {
        let log = bench.folder(name).join("data").join("log");
        let (before, log_before) = (server.taken(), folder_bytes(&log));
        let load = Load { may_break: true, ..Load::saturating(server.address, &JSON, batches, LOAD * 2) };
        let done = std::thread::scope(|scope| {
            let load = scope.spawn(|| run(&load));
            std::thread::sleep(LOAD);
            server.kill();
            load.join().unwrap()
        });
        self.log_mb.push((folder_bytes(&log) - log_before) as f64 / 1e6);
        let (server, took) = Server::start(&bench.folder(name), &config(MIX));
        self.ready_s.push(took.as_secs_f64());
        let taken = server.taken() - before;
        assert!((done.accepted..=done.sent).contains(&taken), "{} were answered and {} sent, and {taken} are there", done.accepted, done.sent);
        self.timings.push(taken as f64);
    }

    fn tell(&self, bench: &mut Bench) {
        bench.table.row("exec to /readyz 200", "s", &self.ready_s, Target::AtMost(1.5));
        bench.table.row("timings of the load", "", &self.timings, Target::None);
        bench.table.row("log of the load", "MB", &self.log_mb, Target::None);
    }
}

pub fn start(bench: &mut Bench) {
    let batches = MIX.batches(SEED, BATCHES, 1_000);
    let (mut empty_s, mut starts) = (Vec::new(), Starts::default());
    for round in 0..bench.rounds {
        empty_s.push(Server::start(&bench.folder(&format!("start-empty-{round}")), &config(MIX)).1.as_secs_f64());
        let name = format!("start-{round}");
        let server = bench.server(&name, MIX);
        starts.add(bench, &name, server, &batches);
    }
    bench.table.row("exec to /readyz 200, empty directory", "s", &empty_s, Target::None);
    starts.tell(bench);
}

pub fn start_store(bench: &mut Bench) {
    let batches = MIX.batches(SEED, BATCHES, 1_000);
    let (folder, mut clean_s, mut starts) = (bench.folder("start-store"), Vec::new(), Starts::default());
    let data = folder.join("data");
    store::of_minutes(&data, MIX.endpoints, STORE_TIMINGS_PER_SLOT, STORE_MINUTES);
    let mb = |name: &str| folder_bytes(&data.join(name)) / 1_000_000;
    let parts = ["log", "history", "index", "snapshots"].map(|name| format!("{name} {}", mb(name)));
    Table::note(&format!("{STORE_MINUTES} minutes of {} endpoints with {STORE_TIMINGS_PER_SLOT} timings a slot, in MB: {}", MIX.endpoints, parts.join(", ")));
    for _ in 0..bench.rounds {
        let (server, took) = Server::start(&folder, &config(MIX));
        clean_s.push(took.as_secs_f64());
        starts.add(bench, "start-store", server, &batches);
    }
    bench.table.row("exec to /readyz 200, before the load", "s", &clean_s, Target::None);
    starts.tell(bench);
}
