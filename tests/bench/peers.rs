//! What others on the same machine take for the same timings.

use std::path::Path;
use std::time::Duration;

use super::load::{BATCHES, Load, run};
use super::process::{Server, free_address};
use super::table::{Table, Target};
use super::traffic::{Format, JSON, Mix, Popularity, VICTORIA_JSON, VICTORIA_TEXT};
use super::{Bench, SEED};

const VICTORIA_METRICS: &str = "/usr/bin/victoria-metrics";
const PROMETHEUS: &str = "/usr/bin/prometheus";

/// As often as Prometheus scrapes where somebody is in a hurry.
const SCRAPE_INTERVAL_S: u64 = 5;
const SCRAPES: u64 = 6;

/// What is put off, such as merging, is part of the cost.
const SETTLE: Duration = Duration::from_secs(2);

fn is_missing(program: &str) -> bool {
    let missing = !Path::new(program).exists();
    if missing {
        Table::note(&format!("{program} is not installed: not measured"));
    }
    missing
}

/// One way to bring timings in.
struct Kind<'a> {
    name: &'static str,
    server: &'a Server,
    format: &'a Format,
    per_core: Vec<f64>,
    wall: Vec<f64>,
}

pub fn victoria_metrics(bench: &mut Bench) {
    if is_missing(VICTORIA_METRICS) {
        return;
    }
    let (address, folder) = (free_address(), bench.folder("victoria-metrics"));
    let storage = format!("-storageDataPath={}", folder.display());
    let arguments = [format!("-httpListenAddr={address}"), storage, "-retentionPeriod=1".to_owned()];
    let peer = Server::start_peer(VICTORIA_METRICS, &arguments, address, &folder, "/health");
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
            let done = run(&Load::swept(server.address, format, &batches, bench.round()));
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

/// What it costs Prometheus to take in `/metrics` with all endpoints, and Slowburn to be asked.
pub fn prometheus(bench: &mut Bench) {
    if is_missing(PROMETHEUS) {
        return;
    }
    let mix = Mix { popularity: Popularity::Zipf, endpoints: 10_000 };
    let own = bench.server("under-prometheus", mix);
    run(&Load::saturating(own.address, &JSON, &mix.batches(SEED, BATCHES, 1_000), bench.round()));
    let (address, folder) = (free_address(), bench.folder("prometheus"));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("prometheus.yml");
    let job = format!("job_name: slowburn\n    static_configs:\n      - targets: ['{}']\n", own.address);
    std::fs::write(&config, format!("global:\n  scrape_interval: {SCRAPE_INTERVAL_S}s\nscrape_configs:\n  - {job}")).unwrap();
    let arguments = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", folder.join("data").display()),
        format!("--web.listen-address={address}"),
    ];
    let peer = Server::start_peer(PROMETHEUS, &arguments, address, &folder, "/-/ready");
    // The first scrapes make the series.
    std::thread::sleep(Duration::from_secs(2 * SCRAPE_INTERVAL_S));
    let before = [own.cpu_s(), peer.cpu_s()];
    std::thread::sleep(Duration::from_secs(SCRAPES * SCRAPE_INTERVAL_S));
    let cpu_ms = [own.cpu_s() - before[0], peer.cpu_s() - before[1]].map(|cpu_s| cpu_s * 1e3 / SCRAPES as f64);
    let samples = peer.get("/api/v1/query?query=scrape_samples_scraped");
    let answer: serde_json::Value = serde_json::from_str(&samples.body).unwrap();
    let samples: f64 = answer["data"]["result"][0]["value"][1].as_str().unwrap().parse().unwrap();
    assert!(samples > f64::from(mix.endpoints), "every endpoint is scraped");
    bench.table.row("samples a scrape, 10k endpoints", "", &[samples], Target::None);
    bench.table.row("Prometheus, CPU a scrape", "ms", &[cpu_ms[1]], Target::None);
    bench.table.row("Slowburn, CPU a scrape, with what it does meanwhile", "ms", &[cpu_ms[0]], Target::None);
    bench.table.row("Prometheus, resident", "MiB", &[peer.memory_mib("VmRSS")], Target::None);
    bench.table.row("Slowburn, resident", "MiB", &[own.memory_mib("VmRSS")], Target::None);
}
