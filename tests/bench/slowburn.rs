//! `cargo bench --bench slowburn -- [--long] [--rounds N] [SECTION...]`: what the built server costs and how long it takes, beside its targets.
//!
//! The server is a process of its own and so is the load generator, so that CPU seconds are told apart. Rates are per core of the server: timings by its CPU seconds,
//! which hold when others use the machine too. What is compared is measured in turns within one run. Nothing about time is asserted; that every answer was the
//! expected one, and that the server has counted what it said to have taken, is.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::format_push_string,
    unreachable_pub,
    reason = "a measurement fails by panicking, is about the real clock, and has one crate of modules"
)]

mod answers;
mod close;
mod endpoints;
mod ingest;
mod load;
mod peers;
mod process;
mod replay;
mod stages;
mod start;
mod store;
mod table;
mod traffic;
mod watching;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use process::Server;
use table::Table;
use traffic::{JSON, Mix};

/// Everything random follows from it.
const SEED: u64 = 20_261_121;

/// What all sections use.
struct Bench {
    /// On the disk that holds the target folder; `/tmp` may be memory.
    folder: PathBuf,
    rounds: usize,
    long: bool,
    table: Table,
}

impl Bench {
    /// How long one round of load takes.
    fn round(&self) -> Duration {
        Duration::from_secs(if self.long { 10 } else { 3 })
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A server of its own that knows all endpoints of the mix.
    fn server(&self, name: &str, mix: Mix) -> Server {
        let (server, _) = Server::start(&self.folder(name), &config(mix));
        let all = mix.all(SEED);
        load::run(&load::Load::once(server.address, &JSON, &all));
        server
    }
}

/// Room for all endpoints of a mix, also in `/metrics`.
fn config(mix: Mix) -> String {
    let endpoints = mix.endpoints;
    format!(
        "[limits]\nendpoints_per_service = {endpoints}\nendpoints = {endpoints}\nexported_endpoints = {endpoints}\nnew_endpoints_per_second_per_service = {endpoints}\n"
    )
}

/// A section: its name, what it measures, and how.
type Section = (&'static str, &'static str, fn(&mut Bench));

const SECTIONS: [Section; 17] = [
    ("stages", "what a timing costs inside, stage by stage, one thread", stages::stages),
    ("json", "timings a second for each core of the server, as JSON over HTTP, answered when on disk", ingest::json),
    ("cores", "whether every start uses all cores, JSON, 1,000 a batch", ingest::cores),
    ("binary", "the same timings as JSON and as protobuf columns, in turns", ingest::binary),
    ("answers", "how long an answer takes, 64 connections, 100 timings a batch, 10k endpoints", ingest::answers),
    ("log", "bytes of the log for each timing", ingest::log),
    ("endpoints", "100k endpoints: memory, answers while periods are closed, scrapes, disk", endpoints::endpoints),
    ("close", "what one thread spends on closing a slot and a minute of 100k active endpoints, with objectives, in this process", close::close),
    ("watching", "the detectors over 100k endpoints with a month behind them: CPU, memory, and answers while they run", watching::watching),
    ("query", "quantiles of open slots, 10k endpoints", endpoints::query),
    ("query-history", "p99 of each hour of 30 days, over HTTP, files in the page cache", endpoints::query_history),
    ("start", "from exec to /readyz after kill -9 under load, 10k endpoints, files in the page cache", start::start),
    ("start-store", "the same with a store of 1 GB", start::start_store),
    ("replay", "recorded timings through `slowburn replay`", replay::replay),
    ("peer-victoriametrics", "the same timings into VictoriaMetrics as samples", peers::victoria_metrics),
    ("peer-netdata", "the same timings into netdata as StatsD timers, 1k endpoints", peers::netdata),
    ("peer-prometheus", "Prometheus scrapes /metrics with 10k and 100k endpoints", peers::prometheus),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benches without it.
    if !arguments.iter().any(|a| a == "--bench") {
        println!("nothing is measured without `cargo bench`");
        return ExitCode::SUCCESS;
    }
    let (mut names, mut rounds, mut long) = (Vec::new(), None, false);
    let mut rest = arguments.iter().map(String::as_str).filter(|a| *a != "--bench");
    while let Some(argument) = rest.next() {
        match argument {
            "--long" => long = true,
            "--rounds" => rounds = rest.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0),
            name if SECTIONS.iter().any(|s| s.0 == name) => names.push(name),
            other => {
                let known: Vec<&str> = SECTIONS.iter().map(|s| s.0).collect();
                eprintln!("`{other}` is not a section; expected [--long] [--rounds N] [{}]", known.join("|"));
                return ExitCode::from(2);
            }
        }
    }
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut bench = Bench { folder: folder.path().to_owned(), rounds: rounds.unwrap_or(if long { 5 } else { 3 }), long, table: Table::default() };
    println!("{}", machine());
    println!("seed {SEED}, {} rounds, {}", bench.rounds, if long { "long" } else { "short" });
    for (name, what, measure) in SECTIONS {
        if names.is_empty() || names.contains(&name) {
            Table::section(name, what);
            measure(&mut bench);
        }
    }
    bench.table.finish();
    println!("load average at the end: {}", read("/proc/loadavg"));
    ExitCode::SUCCESS
}

/// Where and on what this was measured.
fn machine() -> String {
    let cpu = read("/proc/cpuinfo").lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let commit = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=10"]).output();
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let load = read("/proc/loadavg");
    format!("commit {commit}; {cores} cores of {}; load average before: {load}", cpu.unwrap_or_default())
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
