//! What others on the same machine take for the same timings.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::load::{BATCHES, Load, run};
use super::process::{Server, free_address};
use super::table::{Table, Target};
use super::traffic::{Format, JSON, Mix, Popularity, Timing, VICTORIA_JSON, VICTORIA_TEXT};
use super::{Bench, SEED};

const VICTORIA_METRICS: &str = "/usr/bin/victoria-metrics";
const PROMETHEUS: &str = "/usr/bin/prometheus";
const NETDATA: &str = "/usr/sbin/netdata";

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

/// Only `StatsD`, in memory, asked over HTTP.
fn netdata_config(folder: &Path, web: SocketAddr, statsd: SocketAddr) -> String {
    let places: Vec<String> = ["config", "cache", "lib", "log", "lock"].iter().map(|place| format!("    {place} = {}\n", folder.display())).collect();
    let plugins = ["timex", "checks", "idlejitter", "tc", "diskspace", "proc", "cgroups", "apps", "charts.d", "python.d", "go.d", "ebpf", "slabinfo"];
    let others: Vec<String> = plugins.iter().map(|plugin| format!("    {plugin} = no\n")).collect();
    let (places, others) = (places.concat(), others.concat());
    // Else it looks for a user of its own.
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    format!(
        "[global]\n    run as user = {user}\n[directories]\n{places}[db]\n    mode = ram\n[ml]\n    enabled = no\n[health]\n    enabled = no\n[registry]\n    enabled = no\n[cloud]\n    enabled = no\n\
         [web]\n    bind to = {web}\n[plugins]\n{others}    netdata monitoring = no\n    statsd = yes\n    enable running new plugins = no\n\
         [statsd]\n    enabled = yes\n    bind to = tcp:{statsd}\n    max private charts hard limit = 1000000\n"
    )
}

/// What it costs netdata to take the same timings as `StatsD` timers: in memory, a 95th percentile a second, no answer.
pub fn netdata(bench: &mut Bench) {
    if is_missing(NETDATA) {
        return;
    }
    let (web, statsd, folder) = (free_address(), free_address(), bench.folder("netdata"));
    // It clears the folders that it is given.
    let places = folder.join("places");
    std::fs::create_dir_all(&places).unwrap();
    let config = folder.join("netdata.conf");
    std::fs::write(&config, netdata_config(&places, web, statsd)).unwrap();
    let arguments = ["-D".to_owned(), "-c".to_owned(), config.display().to_string()];
    let peer = Server::start_peer(NETDATA, &arguments, web, &folder, "/api/v1/info");
    let mix = Mix { popularity: Popularity::Zipf, endpoints: 1_000 };
    let own = bench.server("beside-netdata", mix);
    let batches = mix.batches(SEED, BATCHES, 1_000);
    let lines: Vec<Vec<u8>> = mix.all(SEED).iter().chain(&batches).map(|timings| statsd_lines(timings)).collect();
    let start = Instant::now();
    let mut connection = loop {
        match TcpStream::connect(statsd) {
            Ok(connection) => break connection,
            Err(e) => assert!(start.elapsed() < Duration::from_secs(30), "no StatsD at {statsd}: {e}"),
        }
    };
    connection.write_all(&lines[0]).unwrap();
    let charts = || {
        let body = peer.get("/api/v1/charts").body;
        let ids = body.split("\"id\": \"statsd_bench.").skip(1).filter_map(|rest| rest.split('"').next());
        ids.filter(|id| id.ends_with("_timer")).count()
    };
    while charts() < mix.endpoints as usize {
        assert!(start.elapsed() < Duration::from_secs(60), "netdata has {} timers", charts());
        std::thread::sleep(Duration::from_millis(500));
    }
    let (mut theirs, mut ours, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        let before = own.cpu_s();
        let done = run(&Load::swept(own.address, &JSON, &batches, bench.round()));
        std::thread::sleep(SETTLE);
        ours.push(done.accepted as f64 / (own.cpu_s() - before));
        let (before, start, mut sent) = (peer.cpu_s(), Instant::now(), 0);
        for batch in lines[1..].iter().cycle().take_while(|_| start.elapsed() < bench.round()) {
            connection.write_all(batch).unwrap();
            sent += 1_000;
        }
        std::thread::sleep(SETTLE);
        theirs.push(f64::from(sent) / (peer.cpu_s() - before));
        times.push(ours.last().unwrap() / theirs.last().unwrap());
    }
    bench.table.row("Slowburn, JSON: server", "/s/core", &ours, Target::None);
    bench.table.row("netdata, StatsD timers over TCP: server", "/s/core", &theirs, Target::None);
    bench.table.row("Slowburn / netdata, by CPU", "times", &times, Target::None);
}

fn statsd_lines(timings: &[Timing]) -> Vec<u8> {
    let line = |timing: &Timing| format!("bench.r{:05}:{}.{}|ms\n", timing.endpoint, timing.duration_us / 1_000, timing.duration_us / 100 % 10);
    timings.iter().map(line).collect::<Vec<_>>().concat().into_bytes()
}

/// What it costs Prometheus to take in `/metrics` with all endpoints, and Slowburn to be asked.
pub fn prometheus(bench: &mut Bench) {
    if is_missing(PROMETHEUS) {
        return;
    }
    for endpoints in [10_000, 100_000] {
        scraped(bench, Mix { popularity: Popularity::Zipf, endpoints });
    }
}

fn scraped(bench: &mut Bench, mix: Mix) {
    let (name, thousands) = (mix.name().replace(' ', "-"), mix.endpoints / 1_000);
    let own = bench.server(&format!("under-prometheus-{name}"), mix);
    run(&Load::saturating(own.address, &JSON, &mix.batches(SEED, BATCHES, 1_000), bench.round()));
    let (address, folder) = (free_address(), bench.folder(&format!("prometheus-{name}")));
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
    let asked = |query: &str| -> f64 {
        let answer: serde_json::Value = serde_json::from_str(&peer.get(&format!("/api/v1/query?query={query}")).body).unwrap();
        answer["data"]["result"][0]["value"][1].as_str().unwrap().parse().unwrap()
    };
    let samples = asked("scrape_samples_scraped");
    assert!(samples > f64::from(mix.endpoints), "every endpoint is scraped");
    let table = &mut bench.table;
    let mut row = |what: &str, unit: &str, value: f64| table.row(&format!("{what}, {thousands}k endpoints"), unit, &[value], Target::None);
    row("samples a scrape", "", samples);
    row("bytes a scrape, text, before gzip", "", own.get("/metrics").body.len() as f64);
    row("scrape, as Prometheus saw it", "s", asked("scrape_duration_seconds"));
    row("Prometheus, CPU a scrape", "ms", cpu_ms[1]);
    row("Slowburn, CPU a scrape, with what it does meanwhile", "ms", cpu_ms[0]);
    row("Prometheus, resident", "MiB", peer.memory_mib("VmRSS"));
    row("Slowburn, resident", "MiB", own.memory_mib("VmRSS"));
}
