//! What others on the same machine take for the same timings.

use std::path::Path;
use std::time::Duration;

use super::load::{BATCHES, Load, run};
use super::process::{Server, free_address};
use super::table::{Table, Target};
use super::traffic::{Format, JSON, Mix, Popularity, VICTORIA_JSON, VICTORIA_TEXT};
use super::{Bench, SEED};

const PROGRAM: &str = "/usr/bin/victoria-metrics";

/// What is put off, such as merging, is part of the cost.
const SETTLE: Duration = Duration::from_secs(2);

/// One way to bring timings in.
struct Kind<'a> {
    name: &'static str,
    server: &'a Server,
    format: &'a Format,
    per_core: Vec<f64>,
    wall: Vec<f64>,
}

pub fn victoria_metrics(bench: &mut Bench) {
    if !Path::new(PROGRAM).exists() {
        Table::note(&format!("{PROGRAM} is not installed: not measured"));
        return;
    }
    let (address, folder) = (free_address(), bench.folder("victoria-metrics"));
    let storage = format!("-storageDataPath={}", folder.display());
    let arguments = [format!("-httpListenAddr={address}"), storage, "-retentionPeriod=1".to_owned()];
    let peer = Server::start_peer(PROGRAM, &arguments, address, &folder, "/health");
    let mix = Mix { popularity: Popularity::Zipf, endpoints: 10_000 };
    let all = mix.all(SEED);
    run(&Load::once(peer.address, &VICTORIA_TEXT, &all));
    let own = bench.server("beside-victoria-metrics", mix);
    let batches = mix.batches(SEED, BATCHES, 1_000);
    let mut kinds = [
        Kind { name: "Slowburn", server: &own, format: &JSON, per_core: Vec::new(), wall: Vec::new() },
        Kind { name: "VictoriaMetrics", server: &peer, format: &VICTORIA_TEXT, per_core: Vec::new(), wall: Vec::new() },
        Kind { name: "VictoriaMetrics", server: &peer, format: &VICTORIA_JSON, per_core: Vec::new(), wall: Vec::new() },
    ];
    let mut times = Vec::new();
    let mut imported = u64::from(mix.endpoints);
    for _ in 0..bench.rounds {
        for Kind { name, server, format, per_core, wall } in &mut kinds {
            let before = server.cpu_s();
            let done = run(&Load::saturating(server.address, format, &batches, bench.round()));
            std::thread::sleep(SETTLE);
            per_core.push(done.accepted as f64 / (server.cpu_s() - before));
            wall.push(done.accepted as f64 / done.wall_s);
            imported += if *name == "Slowburn" { 0 } else { done.accepted };
        }
        let [own, text, lines] = kinds.each_ref().map(|kind| *kind.per_core.last().unwrap());
        times.push(own / text.max(lines));
    }
    for Kind { name, format, per_core, wall, .. } in &kinds {
        bench.table.row(&format!("{name}, {}: server", format.name), "/s/core", per_core, Target::None);
        bench.table.row(&format!("{name}, {}: wall", format.name), "/s", wall, Target::None);
    }
    bench.table.row("Slowburn / the better of the two, by CPU", "times", &times, Target::AtLeast(3.0));
    assert_eq!(peer.metric("vm_rows_inserted_total", &["type=\"prometheus\"", "type=\"vmimport\""]), imported, "VictoriaMetrics has taken all of it");
}
