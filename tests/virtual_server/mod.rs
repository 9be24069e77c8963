//! The real engine on a real data directory, with a clock that is moved by hand: hours in seconds. A crash is a copy of the directory as it stands.

#![allow(dead_code, reason = "each test that shares it needs a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use slowburn::config::Config;
use slowburn::endpoint::EndpointId;
use slowburn::endpoint::PathTemplates;
use slowburn::ingest::admission::{Admission, FUTURE_MS, PAST_MS, TimeLimits};
use slowburn::ingest::batch_keys::Identity;
use slowburn::ingest::commit::{Answer, Submission};
use slowburn::ingest::http::Refusals;
use slowburn::ingest::json::read_ndjson;
use slowburn::ingest::known::KnownEndpoints;
use slowburn::judge::{Command, Record, SlotClosed};
use slowburn::log::file::Reader;
use slowburn::log::record::Position;
use slowburn::machine::{Delta, Machine};
use slowburn::run::clock::Clock;
use slowburn::run::disk::Retention;
use slowburn::run::live::{self, Gauges, Handle};
use slowburn::run::recovery;
use slowburn::time::Timestamp;
use tempfile::TempDir;

#[path = "../crash/mod.rs"]
mod crash;
use crash::as_a_crash_leaves;

/// A running engine.
pub struct Server {
    dir: TempDir,
    clock: Arc<Clock>,
    handle: Handle,
    known: Arc<KnownEndpoints>,
    thread: JoinHandle<()>,
    config: String,
    runtime: tokio::runtime::Runtime,
}

type Parts = (Handle, Arc<KnownEndpoints>, JoinHandle<()>);

fn launch(dir: &Path, clock: &Arc<Clock>, text: &str, runtime: &tokio::runtime::Runtime) -> Parts {
    let config = Config::parse("test.toml", text).unwrap();
    let retention = Retention { minutes_ms: config.keep_minutes_ms, hours_ms: config.keep_hours_ms, log_ms: config.keep_log_ms };
    let opened = recovery::open(dir, config.endpoint_limits, retention, clock.now(), false).unwrap();
    let (before, is_new) = (opened.machine.judge.promises().clone(), opened.machine.position.0 == 0);
    let known = Arc::new(KnownEndpoints::default());
    known.add(opened.machine.catalogue.numbered_from(EndpointId(0)));
    let (engine, handle) = live::engine(
        opened.machine,
        opened.log,
        opened.keeper,
        Arc::clone(clock),
        1_000,
        0,
        Arc::new(Refusals::default()),
        Arc::clone(&known),
        Arc::new(AtomicBool::new(false)),
        Arc::new(Gauges::default()),
        slowburn::history::creation::Creation::new(1_000_000),
        Arc::new(slowburn::ingest::memory::Memory::new(1 << 30)),
        |_| (),
    )
    .unwrap();
    let lock = opened.lock;
    let thread = std::thread::spawn(move || {
        engine.run().unwrap();
        drop(lock);
    });
    runtime.block_on(handle.decide(Command::Start(clock.now()))).unwrap().unwrap();
    if is_new || config.promises.clone().dated(&before, None) != *before {
        runtime.block_on(handle.decide(Command::Configure(clock.now(), config.promises))).unwrap().unwrap();
    }
    (handle, known, thread)
}

impl Server {
    /// An engine on an empty directory.
    pub fn start(config: &str, now: Timestamp) -> Self {
        let (dir, clock) = (TempDir::new().unwrap(), Arc::new(Clock::by_hand(now)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (handle, known, thread) = launch(dir.path(), &clock, config, &runtime);
        Self { dir, clock, handle, known, thread, config: config.to_owned(), runtime }
    }

    /// Moves the clock; when it returns, everything that is due is judged.
    pub fn move_to(&self, at: Timestamp) {
        self.clock.move_to(at);
        // The engine judges behind each input: the second look sees what the first one made it do.
        for _ in 0..2 {
            self.runtime.block_on(self.handle.look(|_, _| ())).unwrap();
        }
    }

    /// Waits until the detectors have run a quarter of an hour.
    pub fn wait_for_watching(&self, quarter: i64) {
        for _ in 0..20_000 {
            let watched_to = self.runtime.block_on(self.handle.look(|machine, _| machine.judge.watched_to())).unwrap();
            if watched_to >= Some(quarter) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the quarter {quarter} was not run");
    }

    /// Sends NDJSON; all of it is taken.
    pub fn send(&self, body: &str) {
        self.send_as(Identity::None, body);
    }

    /// Likewise, as one who has a name.
    pub fn send_as(&self, identity: Identity, body: &str) {
        let templates = PathTemplates::default();
        let mut admission = Admission::new(&templates, &self.known, TimeLimits { now: self.clock.now(), past_ms: PAST_MS, future_ms: FUTURE_MS });
        read_ndjson(body.as_bytes(), &mut admission);
        let batch = admission.finish();
        assert_eq!(batch.rejected, 0, "{:?}", batch.errors);
        let (reply, answer) = tokio::sync::oneshot::channel();
        let submission = Submission { batch, identity, body: 0, held: None, reply };
        assert!(self.handle.door().submit(submission).is_ok());
        assert_eq!(self.runtime.block_on(answer).unwrap(), Answer::Committed);
    }

    /// Has something decided.
    pub fn decide(&self, command: Command) {
        self.runtime.block_on(self.handle.decide(command)).unwrap().unwrap();
    }

    /// Asks the state.
    pub fn look<T: Send + 'static>(&self, at: impl FnOnce(&Machine) -> T + Send + 'static) -> T {
        self.runtime.block_on(self.handle.look(|machine, _| at(machine))).unwrap()
    }

    /// The ids of open incidents.
    pub fn open_incidents(&self) -> Vec<String> {
        self.runtime.block_on(self.handle.look(|machine, _| machine.judge.incidents().keys().cloned().collect())).unwrap()
    }

    /// Another configuration from now on.
    pub fn reload(&mut self, config: &str) {
        config.clone_into(&mut self.config);
        let promises = Config::parse("test.toml", config).unwrap().promises;
        self.decide(Command::Configure(self.clock.now(), promises));
    }

    /// Goes on from the directory as a killed process would have left it.
    pub fn crash(&mut self) {
        self.crash_until(self.clock.now(), |_| ());
    }

    /// Likewise, but not before an instant, and not from the directory as it was.
    pub fn crash_until(&mut self, back: Timestamp, meanwhile: impl FnOnce(&Path)) {
        let copy = TempDir::new().unwrap();
        as_a_crash_leaves(self.dir.path(), copy.path());
        meanwhile(copy.path());
        self.handle.stop();
        self.clock.move_to(back);
        let (handle, known, thread) = launch(copy.path(), &self.clock, &self.config, &self.runtime);
        std::mem::replace(&mut self.thread, thread).join().unwrap();
        (self.handle, self.known) = (handle, known);
        self.dir = copy;
    }

    /// Ends in order; the lines that were said, from the log, and the directory.
    pub fn stop(self) -> (String, TempDir) {
        self.handle.stop();
        self.thread.join().unwrap();
        let mut lines = String::new();
        for frame in Reader::log(self.dir.path(), Position(0)).unwrap() {
            for record in Delta::from_frame(&frame.unwrap()).unwrap().records {
                if let Record::SlotClosed(SlotClosed { transitions, .. }) | Record::Configured { transitions, .. } = record {
                    for line in transitions {
                        lines += &(serde_json::to_string(&line).unwrap() + "\n");
                    }
                }
            }
        }
        (lines, self.dir)
    }
}
