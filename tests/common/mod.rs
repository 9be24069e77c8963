//! A server without sockets: the real engine on its own thread, the real router, and a clock that the test moves. Months take seconds.

#![allow(unreachable_pub, dead_code, reason = "each test takes what it needs")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use slowburn::config::Config;
use slowburn::endpoint::EndpointId;
use slowburn::endpoint::PathTemplates;
use slowburn::history::catalogue::Limits;
use slowburn::ingest::http::{Ingest, Refusal, Refusals};
use slowburn::ingest::known::KnownEndpoints;
use slowburn::judge::{self, Command, Promises, Record};
use slowburn::notify::outbox::LaneStatus;
use slowburn::run::clock::Clock;
use slowburn::run::disk::Retention;
use slowburn::run::live::{self, Gauges, Handle};
use slowburn::run::recovery;
use slowburn::show::{self, Answer, Look, Scene, Site, Source};
use slowburn::time::Timestamp;
use tower::ServiceExt as _;

#[path = "../crash/mod.rs"]
mod crash;
use crash::as_a_crash_leaves;

pub const LIMITS: Limits = Limits { per_service: 50, total: 200, marked_critical_per_service: 5 };
pub const DAY: i64 = 86_400_000;
pub const HOUR: i64 = 3_600_000;
pub const MINUTE: i64 = 60_000;

/// Nothing here is about a power cut, so the data may lie in memory where there is such a place.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() { copy(&entry.path(), &target) } else { assert!(fs::copy(entry.path(), target).is_ok()) }
    }
}

pub fn promises(text: &str) -> Promises {
    Config::parse("test.toml", text).unwrap().promises
}

/// splitmix64: the same numbers from the same seed, on every machine.
#[derive(Clone)]
pub struct Chance(pub u64);

impl Chance {
    /// From `SLOWBURN_SEED`, else the given one; printed.
    pub fn seeded(test: &str, seed: u64) -> Self {
        let seed = std::env::var("SLOWBURN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
        println!("{test}: seed {seed} (SLOWBURN_SEED sets it)");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

struct Direct {
    handle: Handle,
    clock: Arc<Clock>,
}

impl Source for Direct {
    fn look(&self, look: Look) -> Result<(), Refusal> {
        let clock = Arc::clone(&self.clock);
        let seen = self.handle.send_look(Box::new(move |machine, history| {
            look(&Scene { machine, index: &history.index, kept: history.kept(machine, clock.now()) });
        }));
        seen.map_err(|_| show::stopping())
    }

    fn decide(&self, command: Command) -> Answer<Result<Record, judge::Refusal>> {
        let handle = self.handle.clone();
        Box::pin(async move { handle.decide(command).await.map_err(|_| show::stopping()) })
    }

    fn lanes(&self) -> Vec<LaneStatus> {
        Vec::new()
    }

    fn work(&self) -> [u64; 5] {
        [0; 5]
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

pub struct Server {
    pub dir: PathBuf,
    pub clock: Arc<Clock>,
    handle: Handle,
    engine: JoinHandle<Result<(), slowburn::run::disk::Error>>,
    router: Router,
    runtime: tokio::runtime::Runtime,
    _lock: recovery::FolderLock,
}

impl Server {
    pub fn start(dir: &Path, retention: Retention, segment_bytes: u64, now: Timestamp) -> Self {
        Self::try_start(dir, retention, segment_bytes, now).unwrap()
    }

    pub fn try_start(dir: &Path, retention: Retention, segment_bytes: u64, now: Timestamp) -> Result<Self, slowburn::run::disk::Error> {
        let opened = recovery::open(dir, LIMITS, retention, now, false)?;
        Ok(Self::start_on(opened, dir, segment_bytes, now))
    }

    pub fn start_on(opened: recovery::Opened, dir: &Path, segment_bytes: u64, now: Timestamp) -> Self {
        let clock = Arc::new(Clock::by_hand(now));
        let refusals = Arc::new(Refusals::default());
        let disk_full = Arc::new(AtomicBool::new(false));
        let known = Arc::new(KnownEndpoints::default());
        let memory = Arc::new(slowburn::ingest::memory::Memory::new(1 << 30));
        known.add(opened.machine.catalogue.numbered_from(EndpointId(0)));
        let (engine, handle) = live::engine(
            opened.machine,
            opened.log.in_segments_of(segment_bytes),
            opened.keeper,
            Arc::clone(&clock),
            100,
            0,
            Arc::clone(&refusals),
            Arc::clone(&known),
            Arc::clone(&disk_full),
            Arc::new(Gauges::default()),
            slowburn::history::creation::Creation::new(1_000_000),
            Arc::clone(&memory),
            drop,
        )
        .unwrap();
        let engine = std::thread::spawn(move || engine.run());
        let now = Arc::clone(&clock);
        let now_at_start = now.now();
        let site = Site {
            source: Arc::new(Direct { handle: handle.clone(), clock: Arc::clone(&clock) }),
            reader: slowburn::history::closed_periods::Reader::new(dir),
            ingest: Ingest {
                door: handle.door(),
                templates: Arc::new(PathTemplates::default()),
                known,
                now: Arc::new(move || now.now()),
                body_bytes_max: 1 << 20,
                disk_full,
                refusals,
                memory: Arc::clone(&memory),
                waiting: Arc::new(slowburn::ingest::waiting::Waiting::new(100)),
            },
            queries: Arc::new(slowburn::show::queries::Queries::new(4, std::time::Duration::from_secs(2), memory)),
            tokens: Arc::new([]),
            port: 0,
            loopback: true,
            free_bytes_min: 0,
            exported_endpoints_max: 100,
            scrapes: Arc::new(slowburn::show::metrics::Scrapes::default()),
            remotes: Arc::new([]),
            started_at: now_at_start,
            ready: Arc::new(AtomicBool::new(true)),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { dir: dir.to_owned(), clock, handle, engine, router: show::router(site), runtime, _lock: opened.lock }
    }

    /// Moves the clock and waits until the engine has seen it; whether it still runs.
    pub fn try_at(&self, now: Timestamp) -> bool {
        self.clock.move_to(now);
        (0..2).all(|_| self.runtime.block_on(self.handle.look(|_, _| ())).is_ok())
    }

    /// Moves the clock and waits until everything that is due then is done and on disk.
    pub fn at(&self, now: Timestamp) {
        self.clock.move_to(now);
        // The engine closes what is due after each input: after the second all of it is done.
        for _ in 0..2 {
            self.runtime.block_on(self.handle.look(|_, _| ())).unwrap();
        }
    }

    pub fn decide(&self, command: Command) -> Result<Record, judge::Refusal> {
        self.runtime.block_on(self.handle.decide(command)).unwrap()
    }

    pub fn look<T: Send + 'static>(&self, look: impl FnOnce(&slowburn::machine::Machine) -> T + Send + 'static) -> T {
        self.runtime.block_on(self.handle.look(move |machine, _| look(machine))).unwrap()
    }

    pub fn call(&self, request: Request<Body>) -> (StatusCode, String) {
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            (status, String::from_utf8(bytes.to_vec()).unwrap())
        })
    }

    pub fn get(&self, uri: &str) -> String {
        let (status, body) = self.call(Request::get(uri).body(Body::empty()).unwrap());
        assert_eq!(status, StatusCode::OK, "{uri}: {body}");
        body
    }

    pub fn json(&self, uri: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(uri)).unwrap()
    }

    pub fn post(&self, body: &str, header: Option<(&'static str, &str)>) -> (StatusCode, String) {
        let mut request = Request::post("/api/v1/timings").header("content-type", "application/x-ndjson");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        self.call(request.body(Body::from(body.to_owned())).unwrap())
    }

    /// Ends in order: everything is on disk, with a snapshot.
    pub fn stop(self) {
        self.handle.stop();
        self.engine.join().unwrap().unwrap();
    }

    /// Ends, or has ended, as it may.
    pub fn end(self) -> Result<(), slowburn::run::disk::Error> {
        self.handle.stop();
        self.engine.join().unwrap()
    }

    /// What a crash at this moment leaves, in another folder; then ends.
    pub fn crash(self, to: &Path) {
        as_a_crash_leaves(&self.dir, to);
        self.stop();
    }
}
