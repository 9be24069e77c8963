//! Weeks of recorded timings through `slowburn replay`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::process::ended_children_cpu_s;
use super::table::{Table, Target};
use super::traffic::{Random, Timing, json_object};
use super::{Bench, SEED};

const ENDPOINTS: u32 = 20;
const DAYS: i64 = 45;
const TIMINGS: u32 = 1_270_000;

/// Monday, 5 January 2026.
const FROM_MS: i64 = 1_767_571_200_000;

/// Timings in time order, evenly over the weeks; each endpoint has a median of its own, from 20 to 210 ms.
fn record(path: &Path) {
    let (mut random, mut now_ms, mut line) = (Random(SEED), FROM_MS as f64, Vec::new());
    let mut out = BufWriter::new(File::create(path).unwrap());
    let gap_ms = DAYS as f64 * 86_400_000.0 / f64::from(TIMINGS);
    for _ in 0..TIMINGS {
        now_ms -= gap_ms * random.unit().ln();
        let endpoint = random.below(u64::from(ENDPOINTS)) as u32;
        let duration_us = random.duration_us(20_000.0 + 10_000.0 * f64::from(endpoint));
        let timing = Timing { endpoint, age_ms: 0, status: if random.below(1_000) == 0 { 500 } else { 200 }, duration_us };
        line.clear();
        json_object(&timing, now_ms as i64, &mut line);
        line.push(b'\n');
        out.write_all(&line).unwrap();
    }
    out.flush().unwrap();
}

fn promises() -> String {
    let objectives = "[{ latency = \"800ms\", target = \"99%\", period = \"30d\" }]";
    let mut toml = String::new();
    for endpoint in 0..ENDPOINTS {
        let timing = Timing { endpoint, age_ms: 0, status: 200, duration_us: 0 };
        let (service, method, route) = (timing.service(), timing.method(), timing.route());
        toml += &format!("[[endpoint]]\nservice = \"{service}\"\nmethod = \"{method}\"\nroute = \"{route}\"\nobjectives = {objectives}\n\n");
    }
    toml
}

pub fn replay(bench: &mut Bench) {
    let folder = bench.folder("replay");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("timings.ndjson");
    record(&file);
    let mut kinds = [("20 objectives", promises(), Vec::new(), Vec::new()), ("no objectives", String::new(), Vec::new(), Vec::new())];
    Table::note(&format!("{TIMINGS} timings of {ENDPOINTS} endpoints in {DAYS} virtual days, {:.0} MB", file.metadata().unwrap().len() as f64 / 1e6));
    for _ in 0..bench.rounds {
        for (name, config, wall, cpu) in &mut kinds {
            let config_file = folder.join("slowburn.toml");
            std::fs::write(&config_file, config).unwrap();
            let (start, cpu_s) = (Instant::now(), ended_children_cpu_s());
            let mut command = Command::new(env!("CARGO_BIN_EXE_slowburn"));
            let output = command.args(["replay", "--config"]).arg(&config_file).arg(&file).stdin(Stdio::null()).output().unwrap();
            wall.push(f64::from(TIMINGS) / start.elapsed().as_secs_f64());
            cpu.push(f64::from(TIMINGS) / (ended_children_cpu_s() - cpu_s));
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    for (name, _, wall, cpu) in &kinds {
        bench.table.row(&format!("{name}: wall"), "/s", wall, Target::AtLeast(1.5e6));
        bench.table.row(&format!("{name}: by CPU"), "/s/core", cpu, Target::None);
    }
}
