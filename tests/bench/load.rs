//! The load generator: raw keep-alive connections that cycle through batches made beforehand. Each has a thread that waits for its answers, or one thread sweeps all of them.

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

/// Between two sweeps over all connections.
const SWEEP: Duration = Duration::from_micros(100);

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
    /// Whether one thread looks after all connections in turns and waits for none: then the server's CPU time is its own, and not that of waking a thread of the generator
    /// for each answer, which in life is on another machine. For loads that are as much as the server takes.
    pub swept: bool,
}

impl<'a> Load<'a> {
    /// As much as the server takes.
    pub fn saturating(address: SocketAddr, format: &'a Format, batches: &'a [Vec<Timing>], length: Duration) -> Self {
        Self { address, format, batches, connections: CONNECTIONS, interval: None, length: Some(length), may_break: false, swept: false }
    }

    /// As much as the server takes, for what it costs the server.
    pub fn swept(address: SocketAddr, format: &'a Format, batches: &'a [Vec<Timing>], length: Duration) -> Self {
        Self { swept: true, ..Self::saturating(address, format, batches, length) }
    }

    /// Each batch once.
    pub fn once(address: SocketAddr, format: &'a Format, batches: &'a [Vec<Timing>]) -> Self {
        Self { address, format, batches, connections: 4, interval: None, length: None, may_break: false, swept: false }
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
    let done = if load.swept { sweep(load) } else { waited_for(load) };
    assert!(load.may_break || done.accepted == done.sent, "{} of {} timings were accepted", done.accepted, done.sent);
    done
}

fn waited_for(load: &Load<'_>) -> Done {
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
    done
}

/// A connection of those that are swept.
struct Swept {
    stream: TcpStream,
    requests: Vec<Request>,
    turn: usize,
    random: Random,
    /// How much of the request under way is written; `None` between two.
    written: Option<usize>,
    answer: Vec<u8>,
    asked: Instant,
}

impl Swept {
    /// Goes as far as it goes without waiting.
    fn go_on(&mut self, load: &Load<'_>, is_over: bool, done: &mut Done) -> io::Result<()> {
        let count = self.requests.len();
        let request = &mut self.requests[self.turn % count];
        if self.written.is_none() {
            if is_over {
                return Ok(());
            }
            request.freshen(load, &mut self.random);
            done.sent += request.timings.len() as u64;
            (self.written, self.asked) = (Some(0), Instant::now());
        }
        let written = self.written.get_or_insert_default();
        while *written < request.bytes.len() {
            *written += self.stream.write(&request.bytes[*written..])?;
        }
        let mut some = [0; 4_096];
        let read = self.stream.read(&mut some)?;
        self.answer.extend_from_slice(&some[..read]);
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(counted) = answered(&self.answer, load.format)? {
            done.accepted += counted.unwrap_or(request.timings.len() as u64);
            done.answers.push((now_ms() as u64 / 1_000, micros(self.asked.elapsed())));
            self.answer.clear();
            (self.written, self.turn) = (None, self.turn + 1);
        }
        Ok(())
    }
}

fn sweep(load: &Load<'_>) -> Done {
    let connect = |number: usize| {
        let own = load.batches.iter().skip(number).step_by(load.connections);
        let stream = TcpStream::connect(load.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        let requests = own.map(|timings| Request::new(load, timings)).collect();
        Swept { stream, requests, turn: 0, random: Random(SEED + number as u64), written: None, answer: Vec::new(), asked: Instant::now() }
    };
    let mut connections: Vec<Swept> = (0..load.connections).map(connect).collect();
    let (mut done, start, cpu_s) = (Done::default(), Instant::now(), own_cpu_s());
    loop {
        let is_over = load.length.is_some_and(|length| start.elapsed() >= length);
        for connection in &mut connections {
            match connection.go_on(load, is_over, &mut done) {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => panic!("a batch was not taken: {e}"),
                _ => assert!(connection.written.is_none() || connection.asked.elapsed() < ANSWER_WAIT, "no answer within {ANSWER_WAIT:?}"),
            }
        }
        if is_over && connections.iter().all(|c| c.written.is_none()) {
            break;
        }
        std::thread::sleep(SWEEP);
    }
    (done.wall_s, done.generator_cpu_s) = (start.elapsed().as_secs_f64(), own_cpu_s() - cpu_s);
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

    /// Makes it anew when it is too old.
    fn freshen(&mut self, load: &Load<'_>, random: &mut Random) {
        if self.made.elapsed() > FRESH {
            for timing in &mut self.timings {
                timing.redraw(random);
            }
            self.make(load);
        }
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
        request.freshen(load, &mut random);
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
        if let Some(counted) = answered(&bytes[..filled], format)? {
            return Ok(counted);
        }
    }
}

/// An answer, when all of it is there.
#[expect(clippy::option_option, reason = "whether it is whole, and whether it tells")]
fn answered(bytes: &[u8], format: &Format) -> io::Result<Option<Option<u64>>> {
    let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    if body.len() < length.unwrap_or(0) {
        return Ok(None);
    }
    // One that breaks off under `may_break` is an error of the connection, a refusal never is.
    assert!(head.get(9..12).is_some_and(|status| status.parse() == Ok(format.status)), "a batch was refused: {text}");
    let told = body.split_once("\"accepted\":").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""));
    if format.counts { told.unwrap_or("").parse().map(|n| Some(Some(n))).map_err(io::Error::other) } else { Ok(Some(None)) }
}

pub fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}
