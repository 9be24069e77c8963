//! A server that behaves as a test wishes, and a courier that sends to it.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Mutex;

use bytes::Bytes;
use http::Method;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::record::{Begun, Outcome};
use crate::routes::{MethodId, Routes};
use crate::send::*;

/// How the server behaves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    Well,
    Absent,
    Hanging,
    Answering(u16, Option<&'static str>),
    RefusingItems,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) mode: Mutex<Mode>,
    pub(super) seen: Mutex<Vec<Seen>>,
}

#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) at: Instant,
    pub(super) post: Post,
    pub(super) stored: bool,
}

impl Seen {
    /// A number of the sender's header.
    pub(super) fn field(&self, name: &str) -> u64 {
        let fields = self.post.sender.split("; ").find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        fields.expect("a field of the header").parse().unwrap()
    }

    pub(super) fn lines(&self) -> Vec<serde_json::Value> {
        let text = std::str::from_utf8(&self.post.body).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(super) fn timings(&self) -> u64 {
        let pairs = self.lines().into_iter().filter_map(|line| line.get("values_us")?.as_array().cloned()).flatten();
        pairs.map(|pair| pair[1].as_u64().unwrap()).sum()
    }
}

impl Transport for Arc<Server> {
    async fn post(&self, post: Post) -> Result<Answer, Error> {
        let mode = *self.mode.lock().unwrap();
        let stored = matches!(mode, Mode::Well | Mode::RefusingItems);
        #[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
        self.seen.lock().unwrap().push(Seen { at: Instant::now(), post, stored });
        let answer = |status: u16, retry_after: Option<&str>, body: &'static str| {
            let status = StatusCode::from_u16(status).unwrap();
            Ok(Answer { status, retry_after: retry_after.map(str::to_owned), body: Bytes::from(body) })
        };
        match mode {
            Mode::Well => answer(200, None, "{\"accepted\":1,\"rejected\":0}"),
            Mode::RefusingItems => answer(200, None, "{\"accepted\":0,\"rejected\":1}"),
            Mode::Absent => Err(Error::Connect(std::io::ErrorKind::ConnectionRefused.into())),
            Mode::Hanging => pending().await,
            Mode::Answering(status, retry_after) => answer(status, retry_after, ""),
        }
    }
}

/// A courier at work.
pub(super) struct Run {
    pub(super) recorder: Arc<Recorder>,
    pub(super) server: Arc<Server>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) farewells: mpsc::Sender<Farewell>,
    pub(super) task: JoinHandle<()>,
}

pub(super) const LIMIT: usize = 256 * 1024;

impl Run {
    pub(super) fn start(mode: Mode) -> Self {
        let critical = [(MethodId::of(&Method::POST), "/orders".to_owned())];
        let clock = Clock::start();
        let sender = Sender::new("shop-1".to_owned(), &clock).unwrap();
        let recorder = Arc::new(Recorder::new(clock, Routes::new(10, &critical), 5_000));
        let server = Arc::new(Server { mode: Mutex::new(mode), seen: Mutex::default() });
        let gauges = Arc::new(Gauges::default());
        let courier = Courier::new(
            Arc::clone(&recorder),
            Arc::clone(&server),
            sender,
            Origin::new("shop", "prod"),
            (LIMIT, Duration::from_secs(10)),
            Arc::clone(&gauges),
        );
        let (farewells, asked) = mpsc::channel(8);
        let task = tokio::spawn(courier.run(asked));
        Self { recorder, server, gauges, farewells, task }
    }

    pub(super) fn begin(&self) -> Begun {
        self.recorder.begin(MethodId::of(&Method::POST), "/orders", self.recorder.clock.now())
    }

    /// Orders of 1 µs more each.
    pub(super) fn orders(&self, values_us: std::ops::Range<u64>) {
        for us in values_us {
            let begun = self.begin();
            let end = self.recorder.clock.now() + Duration::from_micros(us);
            self.recorder.end(&begun, Outcome::Status(201), end);
        }
    }

    pub(super) fn set(&self, mode: Mode) {
        *self.server.mode.lock().unwrap() = mode;
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.server.seen.lock().unwrap().clone()
    }

    /// What a server that counts each number once would have counted.
    pub(super) fn stored_timings(&self) -> u64 {
        let stored = self.seen().into_iter().filter(|seen| seen.stored);
        stored.map(|seen| (seen.field("seq"), seen.timings())).collect::<BTreeMap<_, _>>().values().sum()
    }

    pub(super) async fn shut_down(&self) -> Unsent {
        let (reply, told) = oneshot::channel();
        self.farewells.send(reply).await.unwrap();
        told.await.unwrap()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.recorder.dropped.load(Ordering::Relaxed)
    }
}
