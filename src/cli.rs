//! The commands. Exit code 0: well; 1: it failed; 2: the command line or the configuration is wrong.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::{Config, DEFAULT_TOML};
use crate::endpoint::PathTemplates;
use crate::incident::{Event, Marker};
use crate::run::replay::{self, Replay, Said};
use crate::time::{Timestamp, humanize_ms};

#[derive(Parser)]
#[command(name = "slowburn", version, about = "Keeps watch over the latency of every endpoint and pages a person when a critical one breaks its promise")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs recorded timings through the engine and prints what it would have said, one JSON line each
    Replay {
        /// What is owed (TOML); without it an export or a log brings its own
        #[arg(long)]
        config: Option<PathBuf>,
        /// Deploys and other changes, one JSON object a line
        #[arg(long)]
        markers: Option<PathBuf>,
        /// Replays the log of this data directory
        #[arg(long, value_name = "DATA-DIR")]
        log: Option<PathBuf>,
        /// Goes on judging until then (Unix ms or RFC 3339), beyond the last timing
        #[arg(long)]
        until: Option<String>,
        /// NDJSON timings in time order, or an export; .gz and .zst too, - for standard input
        files: Vec<PathBuf>,
    },
    /// Checks a configuration
    Check {
        /// The file
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Prints every setting with its default and what it does
    PrintConfig,
}

/// A mistake on the command line or in the configuration: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command of the process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            // Nothing is left to do when even this cannot be printed.
            drop(e.print());
            return ExitCode::from(code);
        }
    };
    match run(arguments.command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("slowburn: {e:#}");
            ExitCode::from(if e.downcast_ref::<Usage>().is_some() || e.downcast_ref::<crate::config::Error>().is_some() { 2 } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Replay { config, markers, log, until, files } => replay(config.as_deref(), markers.as_deref(), log.as_deref(), until.as_deref(), &files),
        Command::Check { config } => check(config.as_deref()),
        Command::PrintConfig => {
            io::stdout().write_all(DEFAULT_TOML.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn load(path: Option<&Path>) -> anyhow::Result<Config> {
    Ok(path.map_or_else(|| Ok(Config::default_config()), Config::load)?)
}

fn check(path: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = load(path)?;
    config.check_listener().map_err(Usage)?;
    let objectives: usize = config.promises.endpoints.iter().map(|e| e.promises.len()).sum();
    println!("the configuration is good: {} endpoints with {objectives} objectives, {} receivers", config.promises.endpoints.len(), config.receivers.len());
    for what in &config.not_judged {
        println!("note: {what} is accepted, and this version does not judge it");
    }
    Ok(ExitCode::SUCCESS)
}

fn replay(config: Option<&Path>, markers: Option<&Path>, log: Option<&Path>, until: Option<&str>, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    if log.is_none() == files.is_empty() {
        return Err(Usage("replay: expected either files or --log DATA-DIR".to_owned()).into());
    }
    let until = until.map(Timestamp::parse).transpose().map_err(|e| Usage(format!("--until: {e}")))?;
    let given = config.map(Config::load).transpose()?;
    let own = given.as_ref().map(|c| c.promises.clone());
    let config = given.unwrap_or_else(Config::default_config);
    let templates = PathTemplates::new(&config.path_patterns);
    let bar = progress(files);
    let mut bad = 0_u64;
    let mut report = |path: &Path, number: u64, reason: &str| bar.suspend(|| eprintln!("{}:{number}: {reason}", path.display()));
    let markers = match markers {
        None => Vec::new(),
        Some(path) => {
            let (found, wrong) = read_markers(path, &mut report)?;
            bad += wrong;
            found
        }
    };
    let out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut replay = Replay::new(own, config.promises.judge_after_ms, config.endpoint_limits, &templates, markers, out, |line| report(&line.path, line.number, &line.reason));
    match log {
        Some(dir) => replay.log(dir, |frames| bar.inc(frames))?,
        None => {
            for file in files {
                replay.file(file, |bytes| bar.inc(bytes))?;
            }
        }
    }
    replay.finish(until)?;
    bar.finish_and_clear();
    bad += replay.bad;
    eprint!("{}", closing(replay.first, replay.now(), replay.timings, replay.endpoints(), bad, &replay.said));
    Ok(if bad > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn progress(files: &[PathBuf]) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let plain = |f: &PathBuf| !f.extension().is_some_and(|e| e == "gz" || e == "zst") && f.as_path() != Path::new("-");
    let known = !files.is_empty() && files.iter().all(plain);
    let bytes = files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    let (bar, style) = if known {
        (ProgressBar::new(bytes), "{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
    } else {
        (ProgressBar::no_length(), "{spinner} {pos} read, {elapsed}")
    };
    bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn read_markers(path: &Path, report: &mut impl FnMut(&Path, u64, &str)) -> anyhow::Result<(Vec<Marker>, u64)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut markers, mut bad, mut number) = (Vec::new(), 0, 0);
    for line in text.lines() {
        number += 1;
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(marker) => markers.push(marker),
            Err(e) => {
                bad += 1;
                report(path, number, &e.to_string());
            }
        }
    }
    Ok((markers, bad))
}

/// What a person wants to know at the end.
fn closing(first: Option<Timestamp>, last: Timestamp, timings: u64, endpoints: usize, bad: u64, said: &[Said]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let range = first.map_or_else(|| "nothing".to_owned(), |first| format!("{first} to {last} ({})", humanize_ms(last.0 - first.0)));
    let opened: Vec<&Said> = said.iter().filter(|s| s.event == Event::Opened).collect();
    let mut line = |l: String| writeln!(text, "{l}").unwrap_or_default();
    line(format!("replayed {timings} timings of {endpoints} endpoints, {range}"));
    if bad > 0 {
        line(format!("{bad} lines could not be read and were skipped"));
    }
    line(match opened.len() {
        0 => "no incident".to_owned(),
        1 => "1 incident:".to_owned(),
        n => format!("{n} incidents:"),
    });
    for open in opened {
        let of = |event| said.iter().filter(|s| s.id == open.id).find(|s| s.event == event);
        let end = of(Event::Resolved).map_or_else(|| "still open".to_owned(), |r| format!("over after {}", humanize_ms(r.at.0 - open.at.0)));
        let worse = of(Event::Escalated).map_or_else(String::new, |e| format!(", worse from {}", e.at));
        line(format!("  {}  {}  [{end}{worse}]", open.at, open.summary));
    }
    text
}
