//! `slowburn serve`: opens the data directory, starts the engine and the listener, and takes everything down in order.
//!
//! The order of the end: stop listening, finish the requests under way, commit and snapshot, let the lanes of receivers end. What is not delivered by then stays
//! owed in the log. No slot is closed early, so a restart of Slowburn raises no alarm.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{error, info, warn};

use super::clock::Clock;
use super::connection::{TimeLimited, UnderWay};
use super::disk::{self, Retention};
use super::live::{self, Gauges, Handle};
use super::memory::{ceiling_bytes, resident_bytes};
use super::recovery;
use super::remote_write;
use super::tasks::Tasks;
use crate::config::Config;
use crate::endpoint::{EndpointId, PathTemplates};
use crate::history::creation::Creation;
use crate::incident::Notification;
use crate::ingest::http::{Ingest, Refusal, Refusals};
use crate::ingest::known::KnownEndpoints;
use crate::ingest::memory::Memory;
use crate::ingest::waiting::Waiting;
use crate::judge::{self, Command, Promises, Record};
use crate::machine::Machine;
use crate::notify::{LaneStatus, Lanes, Target};
use crate::show::guard::Peer;
use crate::show::queries::Queries;
use crate::show::{self, Answer, Look, Scene, Site, Source};
use crate::time::Timestamp;

/// Requests under way may take this long at the end.
const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// How far apart two looks at this process's memory are.
const MEMORY_LOOK: Duration = Duration::from_millis(250);

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory.
    #[error(transparent)]
    Keep(#[from] disk::Error),
    /// The listener.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Signals, threads.
    #[error("the operating system refused what a server needs")]
    System(#[source] std::io::Error),
    /// A receiver's secret or address.
    #[error("receiver `{name}`: {source}")]
    Receiver {
        /// Which.
        name: String,
        /// Why.
        source: crate::notify::TargetError,
    },
    /// A receiver of remote-write.
    #[error("remote_write `{name}`: {source}")]
    RemoteWrite {
        /// Which.
        name: String,
        /// Why.
        source: super::remote_write::Error,
    },
    /// The engine could not write.
    #[error("the engine ended: {0}")]
    Engine(String),
}

/// The lanes in force; a reload puts others in their place.
type SharedLanes = Arc<Mutex<Option<Lanes>>>;

struct Live {
    handle: Handle,
    lanes: SharedLanes,
    gauges: Arc<Gauges>,
    clock: Arc<Clock>,
}

impl Source for Live {
    fn look(&self, look: Look) -> Result<(), Refusal> {
        let clock = Arc::clone(&self.clock);
        self.handle
            .send_look(Box::new(move |machine, history| {
                let kept = history.kept(machine, clock.now());
                look(&Scene { machine, index: &history.index, kept });
            }))
            .map_err(|_| show::stopping())
    }

    fn decide(&self, command: Command) -> Answer<Result<Record, judge::Refusal>> {
        let handle = self.handle.clone();
        Box::pin(async move { handle.decide(command).await.map_err(|_| show::stopping()) })
    }

    fn lanes(&self) -> Vec<LaneStatus> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Lanes::status).unwrap_or_default()
    }

    fn work(&self) -> [u64; 5] {
        let g = &self.gauges;
        [&g.commits, &g.commit_us, &g.judge_us, &g.snapshots, &g.traces_shed].map(|n| n.load(Ordering::Relaxed))
    }

    fn free_bytes(&self) -> Option<u64> {
        self.gauges.free_bytes_and_one.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// Runs until SIGTERM or SIGINT. `config_file` is read again at SIGHUP.
///
/// # Errors
/// [`Error`].
pub fn serve(config: &Config, config_file: Option<&Path>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::System)?;
    let outcome = runtime.block_on(run(config, config_file));
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

async fn run(config: &Config, config_file: Option<&Path>) -> Result<(), Error> {
    let targets = targets(config)?;
    let (opened, clock) = open(config)?;
    let owed = opened.machine.judge.outbox().to_vec();
    let first = first_of_all(&opened.machine, &clock, &config.promises);
    let (refusals, disk_full, gauges) = (Arc::new(Refusals::default()), Arc::new(AtomicBool::new(false)), Arc::new(Gauges::default()));
    let known = Arc::new(KnownEndpoints::default());
    let memory = Arc::new(Memory::new(ceiling_bytes(config.memory)));
    look_at_memory(&memory);
    known.add(opened.machine.catalogue.numbered_from(EndpointId(0)));
    let (notifications, inbox) = mpsc::unbounded_channel::<Vec<Notification>>();
    let (engine, handle) = live::engine(
        opened.machine,
        opened.log,
        opened.keeper,
        Arc::clone(&clock),
        config.batches_waiting_max,
        config.free_bytes_min,
        Arc::clone(&refusals),
        Arc::clone(&known),
        Arc::clone(&disk_full),
        Arc::clone(&gauges),
        Creation::new(config.new_endpoints_per_second),
        Arc::clone(&memory),
        // The receiving task ends last: nothing is lost, it is owed in the log.
        move |n| drop(notifications.send(n)),
    )
    .map_err(Error::System)?;
    let (ended, mut engine_end) = oneshot::channel();
    let thread =
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || drop(ended.send(engine.beginning_with(first).run()))).map_err(Error::System)?;
    // By then the first is recorded, or there is no room for it yet.
    if handle.look(|_, _| ()).await.is_err() {
        return Err(Error::Engine(ended_as(engine_end.await).err().unwrap_or_else(|| "it went away".to_owned())));
    }

    let tasks = Tasks::default();
    let lanes: SharedLanes = Arc::new(Mutex::new(Some(start_lanes(targets, &clock, &tasks, &handle))));
    tasks.spawn("notifications", forward(inbox, owed, Arc::clone(&lanes)));
    let listener = TcpListener::bind(config.listen).await.map_err(|source| Error::Listen { address: config.listen, source })?;
    let address = listener.local_addr().map_err(Error::System)?;
    let live = Live { handle: handle.clone(), lanes: Arc::clone(&lanes), gauges, clock: Arc::clone(&clock) };
    let site = site(config, address, live, (known, refusals, disk_full), Arc::clone(&memory));
    let ready = Arc::clone(&site.ready);
    let remotes = remote_write::start(&config.remote_writes, &site, address.port(), &tasks)?;
    // Programs wait for this line.
    eprintln!("listening on http://{address}");
    let reload = Reload { file: config_file.map(Path::to_owned), handle: handle.clone(), clock, lanes: Arc::clone(&lanes), tasks: tasks.clone() };
    let served = listen(listener, show::router(site), config, &memory, &tasks, reload, &mut engine_end).await;

    ready.store(false, Ordering::Relaxed);
    remotes.stop();
    handle.stop();
    let outcome = match served {
        Served::EngineEnded(outcome) => outcome,
        Served::Signal => ended_as(engine_end.await),
    };
    if let Some(lanes) = lanes.lock().unwrap_or_else(PoisonError::into_inner).take() {
        lanes.close();
    }
    drop(handle);
    tasks.drain(DRAIN_WAIT).await;
    if thread.join().is_err() {
        return Err(Error::Engine("it panicked".to_owned()));
    }
    drop(opened.lock);
    outcome.map_err(Error::Engine)
}

fn ended_as(end: Result<Result<(), disk::Error>, oneshot::error::RecvError>) -> Result<(), String> {
    match end {
        Ok(outcome) => outcome.map_err(|e| e.to_string()),
        Err(_) => Err("it went away".to_owned()),
    }
}

/// Opens the data directory, and a clock that does not step back behind what it holds.
fn open(config: &Config) -> Result<(recovery::Opened, Arc<Clock>), Error> {
    let clock = Clock::default();
    let retention = Retention { minutes_ms: config.keep_minutes_ms, hours_ms: config.keep_hours_ms, log_ms: config.keep_log_ms };
    let mut opened = recovery::open(&config.data_dir, config.endpoint_limits, retention, clock.now(), false)?;
    opened.keeper.snapshot_every_ms = config.snapshot_every_ms;
    if let Some(torn) = &opened.torn {
        warn!(path = %torn.path.display(), bytes = torn.bytes, "the last write was torn and cut off: nothing in it had been acknowledged");
    }
    let known = opened.machine.judge.judged_to().map_or(Timestamp(0), crate::time::Slot::end);
    if clock.now() < known {
        warn!(clock = %clock.now(), log = %known, "the clock is behind what the log holds: time stands still here until it has caught up");
    }
    Ok((opened, Arc::new(Clock::not_before(known))))
}

type Shared = (Arc<KnownEndpoints>, Arc<Refusals>, Arc<AtomicBool>);

fn site(config: &Config, address: std::net::SocketAddr, live: Live, (known, refusals, disk_full): Shared, memory: Arc<Memory>) -> Site {
    let (now, door, memory_ceiling) = (Arc::clone(&live.clock), live.handle.door(), memory.ceiling());
    let started_at = now.now();
    Site {
        source: Arc::new(live),
        reader: crate::history::closed_periods::Reader::new(&config.data_dir),
        ingest: Ingest {
            door,
            templates: Arc::new(PathTemplates::new(&config.path_patterns)),
            known,
            now: Arc::new(move || now.now()),
            body_bytes_max: config.body_bytes_max,
            disk_full,
            refusals,
            memory: Arc::clone(&memory),
            waiting: Arc::new(Waiting::new(config.batches_waiting_max)),
        },
        queries: Arc::new(Queries::new(config.queries_max, Duration::from_millis(config.query_wait_ms.unsigned_abs()), memory)),
        tokens: config.tokens.clone().into(),
        port: address.port(),
        loopback: address.ip().is_loopback(),
        free_bytes_min: config.free_bytes_min,
        exported_endpoints_max: config.exported_endpoints_max,
        scrapes: Arc::new(show::metrics::Scrapes::default()),
        remotes: remote_write::queues(&config.remote_writes, memory_ceiling),
        started_at,
        ready: Arc::new(AtomicBool::new(true)),
    }
}

fn targets(config: &Config) -> Result<Vec<(String, Target)>, Error> {
    let url = Some(config.public_url.as_str()).filter(|u| !u.is_empty());
    config
        .receivers
        .iter()
        .map(|r| Target::new(r, url).map(|t| (r.name.clone(), t)).map_err(|source| Error::Receiver { name: r.name.clone(), source }))
        .collect()
}

async fn decide(handle: &Handle, command: Command) -> Result<(), Error> {
    match handle.decide(command).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(Error::Engine(refusal.to_string())),
        Err(busy) => Err(Error::Engine(busy.to_string())),
    }
}

/// What is recorded at a start: that there was one, and what is owed from now on, if it is not what was owed before.
fn first_of_all(machine: &Machine, clock: &Clock, promises: &Promises) -> Vec<Command> {
    let before = machine.judge.promises();
    let same = promises.clone().dated(before, None) == **before && machine.position.0 > 0;
    let configure = (!same).then(|| Command::Configure(clock.now(), promises.clone()));
    [Command::Start(clock.now())].into_iter().chain(configure).collect()
}

fn start_lanes(targets: Vec<(String, Target)>, clock: &Arc<Clock>, tasks: &Tasks, handle: &Handle) -> Lanes {
    let (now, handle, report_clock) = (Arc::clone(clock), handle.clone(), Arc::clone(clock));
    let clock: crate::notify::outbox::Clock = Arc::new(move || now.now());
    let report: crate::notify::outbox::Report = Arc::new(move |id, result, detail| {
        let (handle, at) = (handle.clone(), report_clock.now());
        Box::pin(async move {
            if !detail.is_empty() {
                info!(notification = id, result = result.name(), detail, "delivery ended");
            }
            // Without a receipt it stays owed, and the receiver knows its id when it comes again.
            if let Err(error) = handle.decide_patiently(Command::Deliver(at, id, result)).await {
                warn!(%error, "a receipt could not be recorded");
            }
        })
    });
    let tasks = tasks.clone();
    let seed = u64::from(std::process::id());
    Lanes::new(targets.into_iter().collect(), &clock, seed, move |name, task| tasks.spawn(name, task), &report)
}

/// Hands what is owed to the lanes: first what was owed at the start, then as it is decided.
async fn forward(mut inbox: mpsc::UnboundedReceiver<Vec<Notification>>, owed: Vec<Notification>, lanes: SharedLanes) {
    let push = |notifications: Vec<Notification>| {
        let lanes = lanes.lock().unwrap_or_else(PoisonError::into_inner);
        for n in notifications {
            if let Some(lanes) = lanes.as_ref() {
                lanes.push(n);
            }
        }
    };
    push(owed);
    while let Some(more) = inbox.recv().await {
        push(more);
    }
}

struct Reload {
    file: Option<PathBuf>,
    handle: Handle,
    clock: Arc<Clock>,
    lanes: SharedLanes,
    tasks: Tasks,
}

impl Reload {
    /// Reads the configuration again: what is owed and who is told change at once; the rest needs a restart. A bad one changes nothing.
    async fn reload(&self) {
        let Some(file) = &self.file else {
            warn!("there is no configuration file to read again");
            return;
        };
        let config = match Config::load(file) {
            Ok(config) => config,
            Err(error) => {
                error!(%error, "the configuration was not reloaded: the one before stays in force");
                return;
            }
        };
        let targets = match targets(&config) {
            Ok(targets) => targets,
            Err(error) => {
                error!(%error, "the configuration was not reloaded: the one before stays in force");
                return;
            }
        };
        if let Err(error) = decide(&self.handle, Command::Configure(self.clock.now(), config.promises)).await {
            error!(%error, "the configuration was not reloaded: the one before stays in force");
            return;
        }
        let lanes = start_lanes(targets, &self.clock, &self.tasks, &self.handle);
        let owed = self.handle.look(|machine, _| machine.judge.outbox().to_vec()).await.unwrap_or_default();
        for n in owed {
            lanes.push(n);
        }
        if let Some(before) = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).replace(lanes) {
            before.close();
        }
        // What was decided while the lanes changed went to those before: it is owed still.
        let owed = self.handle.look(|machine, _| machine.judge.outbox().to_vec()).await.unwrap_or_default();
        if let Some(lanes) = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            for n in owed {
                lanes.push(n);
            }
        }
        info!(file = %file.display(), "the configuration was reloaded");
    }
}

enum Served {
    Signal,
    EngineEnded(Result<(), String>),
}

/// Takes note of what this process has in memory.
fn look_at_memory(memory: &Memory) {
    if let Some(bytes) = resident_bytes() {
        memory.look(bytes);
    }
}

/// Accepts connections until a signal comes or the engine ends.
async fn listen(
    listener: TcpListener,
    router: axum::Router,
    config: &Config,
    memory: &Memory,
    tasks: &Tasks,
    reload: Reload,
    engine_end: &mut oneshot::Receiver<Result<(), disk::Error>>,
) -> Served {
    let slots = Arc::new(Semaphore::new(config.connections_max));
    let graceful = GracefulShutdown::new();
    let mut builder = hyper::server::conn::http1::Builder::new();
    // A head has its time limit in the stream; a peer that has sent everything and says so still gets its answer.
    builder.timer(TokioTimer::new()).header_read_timeout(None).half_close(true).max_buf_size(64 << 10);
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        return Served::EngineEnded(Err("signals cannot be received".to_owned()));
    };
    let mut look = tokio::time::interval(MEMORY_LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let served = loop {
        tokio::select! {
            _ = terminate.recv() => break Served::Signal,
            _ = interrupt.recv() => break Served::Signal,
            _ = hangup.recv() => reload.reload().await,
            _ = look.tick() => look_at_memory(memory),
            ended = &mut *engine_end => break Served::EngineEnded(ended_as(ended)),
            accepted = listener.accept() => {
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                    warn!(limit = config.connections_max, "the limit of connections is reached: one was closed");
                    continue;
                };
                // An answer is small and waited for.
                drop(stream.set_nodelay(true));
                let under_way = UnderWay::default();
                let stream = TokioIo::new(Box::pin(TimeLimited::new(stream, under_way.clone())));
                let router = TowerToHyperService::new(router.clone());
                let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(Peer(peer.ip()));
                    let (answering, answer) = (under_way.begin(), router.call(request));
                    async move {
                        let answer = answer.await;
                        drop(answering);
                        answer
                    }
                });
                let connection = builder.serve_connection(stream, service);
                let connection = graceful.watch(connection);
                tasks.spawn("connection", async move {
                    // A peer that goes away in the middle is its own business; what it had acknowledged is on disk.
                    drop(connection.await);
                    drop(slot);
                });
            }
        }
    };
    drop(listener);
    if tokio::time::timeout(DRAIN_WAIT, graceful.shutdown()).await.is_err() {
        warn!("some requests did not end in time and are cut off");
    }
    served
}
