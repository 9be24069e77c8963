//! The load generator: raw keep-alive connections, a thread each, that cycle through batches made beforehand.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::SEED;
use super::answers::micros;
use super::process::own_cpu_s;
use super::traffic::{Format, Random, Timing};

/// As many as an ordinary fleet keeps open.
pub const CONNECTIONS: usize = 64;

/// Each connection has five batches of its own, so 320 different ones are under way.
pub const BATCHES: usize = 5 * CONNECTIONS;

/// A batch older than this is made anew, with other durations, so that its timings are of now and histograms fill as they do in life.
const FRESH: Duration = Duration::from_secs(2);

/// No answer takes this long.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// What is to be sent.
pub struct Load<'a> {
    pub address: SocketAddr,
    pub format: &'a Format,
    pub batches: &'a [Vec<Timing>],
    pub connections: usize,
    /// From one batch of a connection to its next; `None`: as soon as the answer is there.
    pub interval: Option<Duration>,
    /// How long; `None`: each batch once.
    pub length: Option<Duration>,
    /// Whether the server may vanish, which then ends the load.
    pub may_break: bool,
}

impl<'a> Load<'a> {
    /// As much as the server takes.
    pub fn saturating(address: SocketAddr, format: &'a Format, batches: &'a [Vec<Timing>], length: Duration) -> Self {
        Self { address, format, batches, connections: CONNECTIONS, interval: None, length: Some(length), may_break: false }
    }

    /// Each batch once.
    pub fn once(address: SocketAddr, format: &'a Format, batches: &'a [Vec<Timing>]) -> Self {
        Self { address, format, batches, connections: 4, interval: None, length: None, may_break: false }
    }
}

/// What came of it.
#[derive(Default)]
pub struct Done {
    /// Timings sent, answered or not.
    pub sent: u64,
    /// Timings that an answer said to be taken.
    pub accepted: u64,
    pub wall_s: f64,
    /// CPU seconds of the generator.
    pub generator_cpu_s: f64,
    /// The Unix second in which each batch was sent, and how many microseconds after it was due, or sent, its answer was there.
    pub answers: Vec<(u64, u32)>,
}

/// Sends, and waits for all answers.
///
/// # Panics
/// When an answer is not the expected one.
pub fn run(load: &Load<'_>) -> Done {
    let barrier = Barrier::new(load.connections + 1);
    let mut done = Done::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.connections)
            .map(|number| {
                scope.spawn({
                    let barrier = &barrier;
                    move || connection(load, number, barrier)
                })
            })
            .collect();
        barrier.wait();
        let (start, cpu_s) = (Instant::now(), own_cpu_s());
        for thread in threads {
            let part = thread.join().unwrap();
            done.sent += part.sent;
            done.accepted += part.accepted;
            done.answers.extend(part.answers);
        }
        (done.wall_s, done.generator_cpu_s) = (start.elapsed().as_secs_f64(), own_cpu_s() - cpu_s);
    });
    assert!(load.may_break || done.accepted == done.sent, "{} of {} timings were accepted", done.accepted, done.sent);
    done
}

/// A whole request.
struct Request {
    timings: Vec<Timing>,
    bytes: Vec<u8>,
    made: Instant,
}

impl Request {
    fn new(load: &Load<'_>, timings: &[Timing]) -> Self {
        let mut request = Self { timings: timings.to_vec(), bytes: Vec::new(), made: Instant::now() };
        request.make(load);
        request
    }

    fn make(&mut self, load: &Load<'_>) {
        let Format { path, content_type, encode, .. } = load.format;
        let mut body = Vec::with_capacity(self.bytes.len());
        encode(&self.timings, now_ms(), &mut body);
        self.bytes.clear();
        let (address, length) = (load.address, body.len());
        write!(self.bytes, "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n").unwrap();
        self.bytes.extend_from_slice(&body);
        self.made = Instant::now();
    }
}

fn connection(load: &Load<'_>, number: usize, barrier: &Barrier) -> Done {
    let own = load.batches.iter().skip(number).step_by(load.connections);
    let mut requests: Vec<Request> = own.map(|timings| Request::new(load, timings)).collect();
    let mut stream = TcpStream::connect(load.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(ANSWER_WAIT)).unwrap();
    let mut done = Done::default();
    let mut random = Random(SEED + number as u64);
    barrier.wait();
    let start = Instant::now();
    // Connections take turns within an interval.
    let phase = load.interval.unwrap_or_default().mul_f64(number as f64 / load.connections as f64);
    let turns = if load.length.is_some() { usize::MAX } else { requests.len() };
    for turn in 0..turns {
        let due = load.interval.map(|interval| start + phase + interval * u32::try_from(turn).unwrap());
        let late = due.is_some_and(|due| due <= Instant::now());
        if let Some(due) = due {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if load.length.is_some_and(|length| start.elapsed() >= length) {
            break;
        }
        let count = requests.len();
        let request = &mut requests[turn % count];
        if request.made.elapsed() > FRESH {
            for timing in &mut request.timings {
                timing.redraw(&mut random);
            }
            request.make(load);
        }
        // Behind a slow answer the next counts from when it was due; a late wake-up of this thread is not the server's.
        let asked = if late { due.unwrap_or_else(Instant::now) } else { Instant::now() };
        let second = now_ms() as u64 / 1_000;
        done.sent += request.timings.len() as u64;
        match stream.write_all(&request.bytes).and_then(|()| answer(&mut stream, load.format)) {
            Ok(counted) => done.accepted += counted.unwrap_or(request.timings.len() as u64),
            Err(_) if load.may_break => break,
            Err(e) => panic!("a batch was not taken: {e}"),
        }
        done.answers.push((second, micros(asked.elapsed())));
    }
    done
}

/// Reads one answer, which must be the one that says yes: how many were accepted, if it tells.
fn answer(stream: &mut TcpStream, format: &Format) -> io::Result<Option<u64>> {
    let mut bytes = [0; 4_096];
    let mut filled = 0;
    loop {
        match stream.read(&mut bytes[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => filled += more,
        }
        let text = std::str::from_utf8(&bytes[..filled]).map_err(io::Error::other)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        if body.len() < length.unwrap_or(0) {
            continue;
        }
        // One that breaks off under `may_break` is an error of the connection, a refusal never is.
        assert!(head.get(9..12).is_some_and(|status| status.parse() == Ok(format.status)), "a batch was refused: {text}");
        let told = body.split_once("\"accepted\":").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""));
        return if format.counts { told.unwrap_or("").parse().map(Some).map_err(io::Error::other) } else { Ok(None) };
    }
}

pub fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}
