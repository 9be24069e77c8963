//! A start after a crash.

use std::time::Duration;

use super::load::{BATCHES, Load, run};
use super::process::{Server, folder_bytes};
use super::table::Target;
use super::traffic::{JSON, Mix, Popularity};
use super::{Bench, SEED, config};

/// Until the kill, at full load; snapshots are further apart, so all of it is read again.
const LOAD: Duration = Duration::from_secs(10);

pub fn start(bench: &mut Bench) {
    let mix = Mix { popularity: Popularity::Zipf, endpoints: 10_000 };
    let batches = mix.batches(SEED, BATCHES, 1_000);
    let (mut empty_s, mut ready_s, mut log_mb, mut timings) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        empty_s.push(Server::start(&bench.folder(&format!("start-empty-{round}")), &config(mix)).1.as_secs_f64());
        let name = format!("start-{round}");
        let server = bench.server(&name, mix);
        let before = server.taken();
        let load = Load { may_break: true, ..Load::saturating(server.address, &JSON, &batches, LOAD * 2) };
        let done = std::thread::scope(|scope| {
            let load = scope.spawn(|| run(&load));
            std::thread::sleep(LOAD);
            server.kill();
            load.join().unwrap()
        });
        log_mb.push(folder_bytes(&bench.folder(&name).join("data").join("log")) as f64 / 1e6);
        let (server, took) = Server::start(&bench.folder(&name), &config(mix));
        ready_s.push(took.as_secs_f64());
        let taken = server.taken() - before;
        assert!((done.accepted..=done.sent).contains(&taken), "{} were answered and {} sent, and {taken} are there", done.accepted, done.sent);
        timings.push(taken as f64);
    }
    bench.table.row("exec to /readyz 200, empty directory", "s", &empty_s, Target::None);
    bench.table.row("exec to /readyz 200", "s", &ready_s, Target::AtMost(1.5));
    bench.table.row("timings since the last snapshot, at most", "", &timings, Target::None);
    bench.table.row("log", "MB", &log_mb, Target::None);
}
