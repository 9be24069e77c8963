//! What taking timings costs: CPU, time until the answer, bytes of the log.

use std::time::Duration;

use super::answers::{Answers, disk_sync};
use super::load::{BATCHES, CONNECTIONS, Done, Load, now_ms, run};
use super::process::{Server, folder_bytes, thread_cpu_ns};
use super::table::{Table, Target};
use super::traffic::{BINARY, Format, JSON, Mix, Popularity, Timing};
use super::{Bench, SEED};

/// What the parse-only rate reads out of an element: all that is sent, borrowed.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "it is read to be thrown away")]
struct Row<'a> {
    ts: i64,
    service: &'a str,
    env: &'a str,
    method: &'a str,
    route: &'a str,
    status: u16,
    duration_ms: f64,
}

/// What parsing alone does on the machine that the targets in absolute numbers are for; a machine that parses half as fast is held to half of them in the rows "by parse only".
pub const PARSE_ONLY_OF_TARGETS: f64 = 7.5e6;

/// At least so long is parsed.
const PARSE_NS: f64 = 4e8;

/// The thread of the server that commits; when it uses a whole core, more cores do not help.
const ENGINE: &str = "engine";

/// Between two batches of a connection at moderate load: 64 connections with 100 timings a batch send 200k a second.
const MODERATE: Duration = Duration::from_millis(32);

/// Timings by CPU second, parsed only: UTF-8 checked once, text borrowed. One thread, the server idle.
pub fn parse_only(batches: &[Vec<Timing>]) -> f64 {
    let bodies: Vec<Vec<u8>> = batches.iter().map(|timings| body(&JSON, timings)).collect();
    let (start_ns, mut parsed) = (thread_cpu_ns(), 0);
    while thread_cpu_ns() - start_ns < PARSE_NS {
        for body in &bodies {
            let rows: Vec<Row<'_>> = serde_json::from_str(std::str::from_utf8(body).unwrap()).unwrap();
            parsed += std::hint::black_box(rows).len();
        }
    }
    parsed as f64 * 1e9 / (thread_cpu_ns() - start_ns)
}

/// Likewise on all cores at once: what one of them does while the others work too, as they do under load. The mean of a core.
fn parse_only_on_all(batches: &[Vec<Timing>]) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(|| parse_only(batches))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum::<f64>() / cores as f64
    })
}

fn body(format: &Format, timings: &[Timing]) -> Vec<u8> {
    let mut body = Vec::new();
    (format.encode)(timings, now_ms(), &mut body);
    body
}

/// A load and the CPU seconds that it cost the server.
pub fn measured(server: &Server, load: &Load<'_>) -> (Done, f64) {
    let before = server.cpu_s();
    let done = run(load);
    (done, server.cpu_s() - before)
}

/// The server's own count, against the answers.
pub fn check_count(server: &Server, accepted: u64) {
    let taken = server.taken();
    assert_eq!(taken, accepted, "the server has counted what it has answered");
}

#[derive(Default)]
struct Rates {
    per_core: Vec<f64>,
    parse: Vec<f64>,
    of_parse: Vec<f64>,
    of_parse_on_all: Vec<f64>,
    cores: Vec<f64>,
    engine: Vec<f64>,
    wall: Vec<f64>,
    generator: Vec<f64>,
}

pub fn json(bench: &mut Bench) {
    let mixes = [(Popularity::Zipf, 10_000), (Popularity::Uniform, 10_000), (Popularity::Uniform, 100_000)];
    let mixes = mixes.map(|(popularity, endpoints)| Mix { popularity, endpoints });
    let servers = [bench.server("json-10k", mixes[0]), bench.server("json-100k", mixes[2])];
    let mut accepted = servers.each_ref().map(Server::taken);
    let mut variants: Vec<_> =
        mixes.iter().flat_map(|mix| [1_000, 100].map(|per_batch| (*mix, per_batch, mix.batches(SEED, BATCHES, per_batch), Rates::default()))).collect();
    let bytes = body(&JSON, &variants[0].2[0]).len() as f64 / 1_000.0;
    Table::note(&format!("{bytes:.0} bytes a timing, {BATCHES} batches cycled over {CONNECTIONS} connections"));
    for _ in 0..bench.rounds {
        for (mix, _, batches, rates) in &mut variants {
            let at = usize::from(mix.endpoints > 10_000);
            let before = parse_only(batches);
            let engine_s = servers[at].thread_cpu_s(ENGINE);
            let (done, cpu_s) = measured(&servers[at], &Load::swept(servers[at].address, &JSON, batches, bench.round()));
            rates.engine.push((servers[at].thread_cpu_s(ENGINE) - engine_s) / done.wall_s);
            // The machine is not as fast at all times.
            rates.parse.push(before.midpoint(parse_only(batches)));
            accepted[at] += done.accepted;
            rates.per_core.push(done.accepted as f64 / cpu_s);
            rates.of_parse_on_all.push(100.0 * rates.per_core.last().unwrap() / parse_only_on_all(batches));
            rates.of_parse.push(100.0 * rates.per_core.last().unwrap() / rates.parse.last().unwrap());
            rates.cores.push(cpu_s / done.wall_s);
            rates.wall.push(done.accepted as f64 / done.wall_s);
            rates.generator.push(done.generator_cpu_s / done.wall_s);
        }
    }
    for (mix, per_batch, _, rates) in &variants {
        let (what, share) = (format!("{} a batch, {}", per_batch, mix.name()), if *per_batch == 1_000 { 53.0 } else { 37.0 });
        bench.table.row(&format!("{what}: server / parse only"), "%", &rates.of_parse, Target::AtLeast(share));
        bench.table.row(&format!("{what}: server / parse only on all cores at once"), "%", &rates.of_parse_on_all, Target::None);
        bench.table.row(&format!("{what}: server"), "/s/core", &rates.per_core, Target::None);
        bench.table.row(&format!("{what}: parse only"), "/s/core", &rates.parse, Target::None);
        bench.table.row(&format!("{what}: wall"), "/s", &rates.wall, Target::None);
        bench.table.row(&format!("{what}: the server used"), "cores", &rates.cores, Target::None);
        bench.table.row(&format!("{what}: of it the thread `{ENGINE}`"), "cores", &rates.engine, Target::None);
        bench.table.row(&format!("{what}: the generator used"), "cores", &rates.generator, Target::None);
    }
    for (server, accepted) in servers.iter().zip(accepted) {
        check_count(server, accepted);
    }
}

/// A runtime whose workers share one queue can settle to have one of them do everything, for as long as the process lives; so many starts would show it.
const STARTS: usize = 12;

/// The threads that read bodies.
const WORKER: &str = "tokio-rt-worker";

/// Whether every start uses all cores.
pub fn cores(bench: &mut Bench) {
    let mix = Mix { popularity: Popularity::Zipf, endpoints: 10_000 };
    let batches = mix.batches(SEED, BATCHES, 1_000);
    let (mut used, mut least_of_most) = (Vec::new(), Vec::new());
    for start in 0..STARTS {
        let server = bench.server(&format!("cores-{start}"), mix);
        let (taken, before) = (server.taken(), server.threads_cpu_s(WORKER));
        let (done, cpu_s) = measured(&server, &Load::swept(server.address, &JSON, &batches, bench.round()));
        let after = server.threads_cpu_s(WORKER);
        // Threads for work that blocks have the same name; the workers began first.
        let each: Vec<f64> =
            before.iter().zip(&after).map(|(before, after)| after - before).take(std::thread::available_parallelism().map_or(1, usize::from)).collect();
        let (least, most) = each.iter().fold((f64::INFINITY, 0.0_f64), |(least, most), s| (least.min(*s), most.max(*s)));
        least_of_most.push(100.0 * least / most);
        used.push(cpu_s / done.wall_s);
        check_count(&server, taken + done.accepted);
    }
    bench.table.row(&format!("{STARTS} starts: the server used"), "cores", &used, Target::None);
    bench.table.row(&format!("{STARTS} starts: the idlest worker, of the busiest"), "%", &least_of_most, Target::None);
}

/// How many endpoints there are decides how much of a batch is its dictionary.
const DICTIONARIES: [u32; 3] = [100, 1_000, 10_000];

/// The same timings as JSON and as binary batches, in turns.
pub fn binary(bench: &mut Bench) {
    let server = bench.server("binary", Mix { popularity: Popularity::Zipf, endpoints: 10_000 });
    let mut accepted = server.taken();
    let mut variants = DICTIONARIES.map(|endpoints| {
        let mix = Mix { popularity: Popularity::Zipf, endpoints };
        (mix, mix.batches(SEED, BATCHES, 1_000), [const { (Vec::new(), Vec::new()) }; 2], [const { Vec::new() }; 2])
    });
    for _ in 0..bench.rounds {
        for (_, batches, rates, [of_json, of_parse]) in &mut variants {
            for (format, (per_core, wall)) in [&JSON, &BINARY].into_iter().zip(rates.iter_mut()) {
                let (done, cpu_s) = measured(&server, &Load::swept(server.address, format, batches, bench.round()));
                accepted += done.accepted;
                per_core.push(done.accepted as f64 / cpu_s);
                wall.push(done.accepted as f64 / done.wall_s);
            }
            of_json.push(rates[1].0.last().unwrap() / rates[0].0.last().unwrap());
            of_parse.push(rates[1].0.last().unwrap() / parse_only_on_all(batches));
        }
    }
    for (mix, batches, [(json, _), (binary, wall)], [of_json, of_parse]) in &variants {
        let what = format!("1000 a batch, zipf {}", mix.endpoints);
        let bytes = body(&BINARY, &batches[0]).len() as f64 / 1_000.0;
        Table::note(&format!("{what}: {bytes:.1} bytes a timing, as JSON {:.0}", body(&JSON, &batches[0]).len() as f64 / 1_000.0));
        bench.table.row(&format!("{what}: server, binary"), "/s/core", binary, Target::AtLeast(15e6));
        bench.table.row(&format!("{what}: server, JSON"), "/s/core", json, Target::None);
        let target = Target::AtLeast(15e6 / PARSE_ONLY_OF_TARGETS);
        bench.table.row(&format!("{what}: binary by parse only of JSON, on all cores"), "times", of_parse, target);
        bench.table.row(&format!("{what}: binary / JSON"), "times", of_json, Target::None);
        bench.table.row(&format!("{what}: wall, binary"), "/s", wall, Target::None);
    }
    check_count(&server, accepted);
}

#[derive(Default)]
struct Waits {
    quantiles: [Vec<f64>; 3],
    cores: Vec<f64>,
    wall: Vec<f64>,
    generator: Vec<f64>,
}

pub fn answers(bench: &mut Bench) {
    let mix = Mix { popularity: Popularity::Zipf, endpoints: 10_000 };
    let server = bench.server("answers", mix);
    let mut accepted = server.taken();
    let batches = mix.batches(SEED, BATCHES, 100);
    let mut kinds = [("200k/s", Some(MODERATE), Waits::default()), ("saturated", None, Waits::default())];
    let mut disk = [Vec::new(), Vec::new()];
    let folder = bench.folder("answers");
    let mut look_at_disk = || {
        let sync = disk_sync(&folder);
        disk[0].push(sync.quantile_ms(0.5));
        disk[1].push(sync.quantile_ms(0.99));
    };
    look_at_disk();
    for _ in 0..bench.rounds {
        for (_, interval, waits) in &mut kinds {
            let load = Load { interval: *interval, ..Load::saturating(server.address, &JSON, &batches, bench.round() * 2) };
            let (done, cpu_s) = measured(&server, &load);
            accepted += done.accepted;
            let answers = Answers::new(done.answers.iter().map(|a| a.1));
            for (into, quantile) in waits.quantiles.iter_mut().zip([0.5, 0.99, 0.999]) {
                into.push(answers.quantile_ms(quantile));
            }
            waits.cores.push(cpu_s / done.wall_s);
            waits.wall.push(done.accepted as f64 / done.wall_s);
            waits.generator.push(done.generator_cpu_s / done.wall_s);
        }
        look_at_disk();
    }
    bench.table.row("fdatasync of 16 KB on this disk, p50", "ms", &disk[0], Target::None);
    bench.table.row("fdatasync of 16 KB on this disk, p99", "ms", &disk[1], Target::None);
    for (name, _, waits) in &kinds {
        let targets = if *name == "saturated" { [Target::None; 3] } else { [Target::AtMost(5.0), Target::AtMost(15.0), Target::None] };
        for ((values, quantile), target) in waits.quantiles.iter().zip(["p50", "p99", "p99.9"]).zip(targets) {
            bench.table.row(&format!("{name}: {quantile}"), "ms", values, target);
        }
        bench.table.row(&format!("{name}: wall"), "/s", &waits.wall, Target::None);
        bench.table.row(&format!("{name}: the server used"), "cores", &waits.cores, Target::None);
        bench.table.row(&format!("{name}: the generator used"), "cores", &waits.generator, Target::None);
    }
    check_count(&server, accepted);
}

pub fn log(bench: &mut Bench) {
    for (popularity, endpoints) in [(Popularity::Zipf, 1_000), (Popularity::Uniform, 10_000), (Popularity::Uniform, 100_000)] {
        let mix = Mix { popularity, endpoints };
        let server = bench.server(&format!("log-{}", mix.name()), mix);
        for (name, per_batch, interval) in [("saturated, 1,000 a batch", 1_000, None), ("200k/s, 100 a batch", 100, Some(MODERATE))] {
            let batches = mix.batches(SEED, BATCHES, per_batch);
            let values: Vec<f64> = (0..bench.rounds)
                .map(|_| {
                    let before = folder_bytes(&server.data_dir.join("log"));
                    let done = run(&Load { interval, ..Load::saturating(server.address, &JSON, &batches, bench.round()) });
                    (folder_bytes(&server.data_dir.join("log")) - before) as f64 / done.accepted as f64
                })
                .collect();
            bench.table.row(&format!("{}, {name}", mix.name()), "B/timing", &values, Target::AtMost(4.5));
        }
    }
}
