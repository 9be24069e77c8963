//! The commands. Exit code 0: well; 1: it failed; 2: the command line or the configuration is wrong.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::{Config, DEFAULT_TOML};
use crate::endpoint::PathTemplates;
use crate::incident::Marker;
use crate::ingest::known::KnownEndpoints;
use crate::log::record::Position;
use crate::run::both::{Side, Source, both};
use crate::run::clock::Clock;
use crate::run::disk::Retention;
use crate::run::recovery;
use crate::run::replay::{self, BadLine, Replay};
use crate::run::replay_text::{self, Compared};
use crate::run::replayed::Replayed;
use crate::show::{rules, slo};
use crate::time::Timestamp;

#[derive(Parser)]
#[command(name = "slowburn", version, about = "Keeps watch over the latency of every endpoint and pages a person when a critical one breaks its promise")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration is, and what takes its place.
#[derive(clap::Args)]
struct Where {
    /// The configuration (TOML); without it the built-in defaults hold
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data directory, in place of the configured one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Where {
    fn load(&self) -> anyhow::Result<Config> {
        let mut config = load(self.config.as_deref())?;
        if let Some(dir) = &self.data_dir {
            config.data_dir.clone_from(dir);
        }
        Ok(config)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Takes timings, judges them, pages people
    Serve {
        #[command(flatten)]
        place: Where,
        /// The listener, in place of the configured one; port 0 picks a free one
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
    },
    /// Runs recorded timings through the engine and prints what it would have said, one JSON line each; with --compare, how two configurations differ
    Replay(ReplayArguments),
    /// Checks a configuration
    Check {
        /// The file
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Prints every setting with its default and what it does
    PrintConfig,
    /// Writes Prometheus rules: for each objective alerts by its burn windows, and what dashboards of Sloth and Pyrra read. What they cannot do that Slowburn can
    /// stands at the head of the file
    Rules {
        /// The configuration (TOML)
        #[arg(long)]
        config: Option<PathBuf>,
        /// Writes slowburn-objectives.rules.yml there, and the rules that need no configuration beside it; without it the former goes to standard output
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Where runbooks are found, for `runbook_url`: a copy of docs/runbooks that people on call can open
        #[arg(long, value_name = "URL", default_value = rules::RUNBOOKS)]
        runbooks: String,
    },
    /// Reads every byte of a data directory and says what does not check; exit 1 if anything
    Verify {
        #[command(flatten)]
        place: Where,
        /// Decides the log again and compares with what was decided
        #[arg(long)]
        redecide: bool,
    },
    /// Builds index and snapshots again from log and history
    RebuildView {
        #[command(flatten)]
        place: Where,
    },
    /// Writes the log, one frame a line, for replay
    Export {
        #[command(flatten)]
        place: Where,
    },
    /// Says what of damaged history can be saved, and what is lost; with --yes it does it. Damaged files stay under other names
    Repair {
        #[command(flatten)]
        place: Where,
        /// Does what it would only say otherwise
        #[arg(long)]
        yes: bool,
        /// Of the log: sets the damaged segment aside and goes on without the frames that cannot be read, from this one on, as `serve` named it
        #[arg(long, value_name = "POSITION")]
        accept_loss: Option<u64>,
    },
    /// Objectives from elsewhere, and for elsewhere
    #[command(subcommand)]
    Slo(SloCommand),
    /// Sends a test message to receivers
    NotifyTest {
        #[command(flatten)]
        place: Where,
        /// Which; without it all
        receiver: Option<String>,
    },
}

#[derive(Subcommand)]
enum SloCommand {
    /// Makes a part of a configuration of definitions of OpenSLO, Sloth or Pyrra, on standard output. What is carried over only nearly, or not at all, is told on
    /// standard error, a line each. Exit code 0: every objective was carried over; 1: some were not; 2: a file is no definitions, and nothing is written
    Import {
        /// Whose definitions they are; without it each document says so
        #[arg(long, value_enum)]
        from: Option<slo::Format>,
        /// Which label of a query names the service, env, kind, method, route, status or outcome, before those usual: route=handler
        #[arg(long, value_name = "PART=LABEL")]
        label: Vec<String>,
        /// YAML, several documents in each; - for standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Writes the objectives of a configuration as OpenSLO, on standard output; what that cannot say stands in comments at its head
    Export {
        /// The configuration (TOML)
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(clap::Args)]
struct ReplayArguments {
    /// What is owed (TOML); without it an export or a log brings its own
    #[arg(long)]
    config: Option<PathBuf>,
    /// Runs the same recording through this configuration too and prints, in place of the JSON lines, which incidents it adds (+), leaves out (-) or tells otherwise
    /// (~), and how many notifications each receiver would get; times less than a minute apart are the same
    #[arg(long, value_name = "NEXT")]
    compare: Option<PathBuf>,
    /// With --compare: one JSON object for each difference
    #[arg(long, requires = "compare")]
    json: bool,
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
        Command::Replay(arguments) => replay(&arguments),
        Command::Check { config } => check(config.as_deref()),
        Command::Serve { place, listen } => serve(&place, listen.as_deref()),
        Command::Verify { place, redecide } => verify(&place, redecide),
        Command::RebuildView { place } => {
            let config = place.load()?;
            let opened = open_to_rebuild(&config)?;
            println!("index and state were built again: {} endpoints, up to position {}", opened.0, opened.1);
            Ok(ExitCode::SUCCESS)
        }
        Command::Export { place } => {
            let config = place.load()?;
            anyhow::ensure!(config.data_dir.join("log").is_dir(), "{} holds no log", config.data_dir.display());
            let frames = replay::export(&config.data_dir, io::BufWriter::new(io::stdout().lock()))?;
            eprintln!("wrote {frames} frames");
            Ok(ExitCode::SUCCESS)
        }
        Command::Repair { place, accept_loss: Some(from), .. } => {
            let config = place.load()?;
            let _lock = recovery::lock(&config.data_dir)?;
            let aside = crate::log::file::repair(&config.data_dir, Position(from))?;
            println!("the damaged segment is kept as {}; the log goes on without what could not be read", aside.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Repair { place, yes, accept_loss: None } => repair(&place.load()?, yes),
        Command::NotifyTest { place, receiver } => notify_test(&place.load()?, receiver.as_deref()),
        Command::Rules { config, out, runbooks } => write_rules(config.as_deref(), out.as_deref(), &runbooks),
        Command::Slo(SloCommand::Import { from, label, files }) => import_slos(from, &label, &files),
        Command::Slo(SloCommand::Export { config }) => {
            let text = slo::export(&Config::load(&config)?.promises);
            io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::PrintConfig => {
            io::stdout().write_all(DEFAULT_TOML.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn load(path: Option<&Path>) -> anyhow::Result<Config> {
    Ok(path.map_or_else(|| Ok(Config::default_config()), Config::load)?)
}

fn serve(place: &Where, listen: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut config = place.load()?;
    if let Some(listen) = listen {
        config.listen = listen.parse().map_err(|_| Usage(format!("--listen: `{listen}` is not an address such as 127.0.0.1:9898")))?;
    }
    config.check_listener().map_err(Usage)?;
    log_to_stderr();
    crate::run::serve::serve(&config, place.config.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// Structured logs: text on a terminal, JSON elsewhere. `RUST_LOG` chooses what.
fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sled=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() { builder.init() } else { builder.json().init() }
}

fn retention(config: &Config) -> Retention {
    Retention { minutes_ms: config.keep_minutes_ms, hours_ms: config.keep_hours_ms, log_ms: config.keep_log_ms }
}

fn open_to_rebuild(config: &Config) -> anyhow::Result<(usize, u64)> {
    let now = Clock::default().now();
    let mut opened = recovery::open(&config.data_dir, config.endpoint_limits, retention(config), now, true)?;
    opened.keeper.checkpoint(&mut opened.machine, now)?;
    Ok((opened.machine.catalogue.entries().len(), opened.machine.position.0))
}

fn verify(place: &Where, redecide: bool) -> anyhow::Result<ExitCode> {
    let config = place.load()?;
    anyhow::ensure!(config.data_dir.is_dir(), "{} is not there", config.data_dir.display());
    let mut report = crate::run::verify::verify(&config.data_dir)?;
    if redecide {
        report.wrong.extend(crate::run::verify::redecide(&config.data_dir, config.endpoint_limits)?);
    }
    println!("{} frames of the log, {} blocks of history, {} snapshots", report.frames, report.blocks, report.snapshots);
    for wrong in &report.wrong {
        println!("wrong: {wrong}");
    }
    Ok(if report.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn repair(config: &Config, yes: bool) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(config.data_dir.join("history").is_dir(), "{} holds no history", config.data_dir.display());
    let found = crate::run::repair::look(&config.data_dir)?;
    if !found.is_needed() {
        println!("nothing is damaged");
        return Ok(ExitCode::SUCCESS);
    }
    found.lines().iter().for_each(|line| println!("{line}"));
    let lost = found.losses().next().is_some();
    println!("{}", if lost { "what is lost is lost for good: answers over it say `incomplete`" } else { "nothing is lost" });
    if !yes {
        println!("nothing was changed: to do this, run it again with --yes");
        return Ok(ExitCode::from(1));
    }
    for aside in found.run(config.endpoint_limits, retention(config), Clock::default().now())? {
        println!("the damaged file is kept as {}", aside.display());
    }
    println!("repaired; index and state were built again");
    Ok(ExitCode::SUCCESS)
}

fn notify_test(config: &Config, only: Option<&str>) -> anyhow::Result<ExitCode> {
    let chosen: Vec<_> = config.receivers.iter().filter(|r| only.is_none_or(|o| o == r.name)).collect();
    if chosen.is_empty() {
        return Err(Usage(only.map_or_else(|| "no receiver is configured".to_owned(), |o| format!("no receiver is named `{o}`"))).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (now, mut failed) = (Clock::default().now(), false);
    let url = Some(config.public_url.as_str()).filter(|u| !u.is_empty());
    for receiver in chosen {
        let target = crate::notify::Target::new(receiver, url)?;
        for recipient in target.recipients().to_vec() {
            let notification = crate::notify::test_notification(receiver, &recipient, now);
            match runtime.block_on(crate::notify::deliver(&target, &notification, now)) {
                Ok(()) => println!("{} {recipient}: sent", receiver.name),
                Err(failure) => {
                    failed = true;
                    println!("{} {recipient}: {}", receiver.name, failure.reason);
                }
            }
        }
    }
    Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn check(path: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = load(path)?;
    config.check_listener().map_err(Usage)?;
    let promises = &config.promises;
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let objectives = promises.endpoints.iter().map(|e| e.promises.len()).sum();
    let counts = [(promises.flows.len(), "flow"), (promises.expected.len(), "expectation"), (config.receivers.len(), "receiver")];
    let remotes = match config.remote_writes.len() {
        0 => String::new(),
        n => format!(", {} of metrics", count(n, "receiver")),
    };
    let rest = counts.map(|(n, what)| count(n, what)).join(", ");
    println!("the configuration is good: {} with {}, {rest}{remotes}", count(promises.endpoints.len(), "endpoint"), count(objectives, "objective"));
    Ok(ExitCode::SUCCESS)
}

fn write_rules(config: Option<&Path>, out: Option<&Path>, runbooks: &str) -> anyhow::Result<ExitCode> {
    // It goes into a line of YAML.
    if runbooks.is_empty() || runbooks.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Usage(format!("--runbooks: `{runbooks}` is not a URL or a path without spaces")).into());
    }
    let promises = load(config)?.promises;
    if promises.endpoints.iter().all(|e| e.promises.is_empty()) {
        eprintln!("no objectives are configured, so there are no rules for any");
    }
    let runbooks = runbooks.trim_end_matches('/');
    let Some(dir) = out else {
        let file = rules::of_objectives(&promises, runbooks);
        io::stdout().write_all(file.text.as_bytes()).context("cannot write to standard output")?;
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for file in rules::all(&promises, runbooks) {
        let path = dir.join(file.name);
        std::fs::write(&path, file.text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn import_slos(from: Option<slo::Format>, labels: &[String], files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let labels = slo::Labels::with(labels).map_err(|e| Usage(format!("--label: {e}")))?;
    let texts = files.iter().map(|file| read_definitions(file)).collect::<Result<Vec<_>, _>>().map_err(Usage)?;
    let imported = slo::import(&texts, from, labels).map_err(|e| Usage(e.to_string()))?;
    imported.notes.iter().for_each(|note| eprintln!("{note}"));
    eprintln!("{}", imported.closing());
    io::stdout().write_all(imported.fragment.as_bytes()).context("cannot write to standard output")?;
    Ok(if imported.not_carried == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A file of definitions with its name: no more of it than can be read.
fn read_definitions(path: &Path) -> Result<(String, String), String> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let (mut text, most) = (String::new(), slo::BYTES_MAX as u64 + 1);
    let read = if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_string(&mut text))
    };
    read.map_err(|e| format!("{name}: cannot be read: {e}"))?;
    Ok((name, text))
}

fn replay(arguments: &ReplayArguments) -> anyhow::Result<ExitCode> {
    let ReplayArguments { log, files, .. } = arguments;
    if log.is_none() == files.is_empty() {
        return Err(Usage("replay: expected either files or --log DATA-DIR".to_owned()).into());
    }
    if let Some(dir) = log {
        anyhow::ensure!(dir.join("log").is_dir(), "{} holds no log", dir.display());
    }
    let until = arguments.until.as_deref().map(Timestamp::parse).transpose().map_err(|e| Usage(format!("--until: {e}")))?;
    let given = arguments.config.as_deref().map(Config::load).transpose()?;
    let next = arguments.compare.as_deref().map(Config::load).transpose()?;
    let own = given.as_ref().map(|c| c.promises.clone());
    let config = given.unwrap_or_else(Config::default_config);
    let bar = progress(files);
    let report = |path: &Path, number: u64, reason: &str| bar.suspend(|| eprintln!("{}:{number}: {reason}", path.display()));
    let report_line = |line: &BadLine| report(&line.path, line.number, &line.reason);
    let (markers, bad_markers) = arguments.markers.as_deref().map_or_else(|| Ok((Vec::new(), 0)), |path| read_markers(path, &report))?;
    let bad = if let Some(next) = next {
        let sides = [Side { config: &config, given: own.is_some() }, Side { config: &next, given: true }];
        let source = log.as_deref().map_or(Source::Files(files), Source::Log);
        let [now, next] = both(source, sides, &markers, until, |read| bar.inc(read), report_line)?;
        bar.finish_and_clear();
        let bad = bad_markers + now.bad;
        print_compared(arguments, &now, &next, bad)?;
        bad
    } else {
        let out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let (templates, known) = (PathTemplates::new(&config.path_patterns), KnownEndpoints::default());
        let mut replay = Replay::new(own, config.promises.judge_after_ms, config.endpoint_limits, &templates, &known, markers, out, report_line);
        match log {
            Some(dir) => replay.log(dir, |frames| bar.inc(frames))?,
            None => files.iter().try_for_each(|file| replay.file(file, |bytes| bar.inc(bytes)))?,
        }
        replay.finish(until)?;
        bar.finish_and_clear();
        let (bad, run) = (bad_markers + replay.bad, replay.replayed());
        eprint!("{}", if io::stderr().is_terminal() { replay_text::closing_table(&run, bad) } else { replay_text::closing(&run, bad) });
        bad
    };
    Ok(if bad > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn print_compared(arguments: &ReplayArguments, now: &Replayed, next: &Replayed, bad: u64) -> anyhow::Result<()> {
    let name = |path: &Option<PathBuf>| path.as_ref().map_or_else(|| "what the recording brings".to_owned(), |p| p.display().to_string());
    let names = [name(&arguments.config), name(&arguments.compare)];
    let compared = Compared { names: [&names[0], &names[1]], now, next };
    eprint!("{}", compared.closing(bad));
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let text = if arguments.json { compared.json() } else { compared.report(colour) };
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
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

fn read_markers(path: &Path, report: &impl Fn(&Path, u64, &str)) -> anyhow::Result<(Vec<Marker>, u64)> {
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
