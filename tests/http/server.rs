//! The built server as a process of its own, and a client that can also be rude.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Polls until the condition holds; fails after the limit.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command that is to end by itself.
pub fn slowburn(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slowburn")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What the operating system says of this process; `now` is near enough to the server's.
pub fn now_ms() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

pub struct Server {
    child: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Server {
    /// One with a data directory of its own.
    pub fn start(config: &str, extra_arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), config, extra_arguments)
    }

    fn start_in(dir: tempfile::TempDir, config: &str, extra_arguments: &[&str]) -> Self {
        let file = dir.path().join("slowburn.toml");
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_slowburn"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&file)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(extra_arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the server ended before it listened").unwrap();
            if let Some(address) = line.strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
        };
        // Read on, so that the server never waits for room in the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, dir }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `kill -9`, and the next process on the same data.
    pub fn restart(mut self, config: &str) -> Self {
        self.kill();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Self::start_in(dir, config, &[])
    }

    /// As an init system does; gives the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(Path::new("/proc").join(self.child.id().to_string()).join("status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// One request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        // A server that has read enough may answer and close before everything is sent.
        let _sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n")).and_then(|()| stream.write_all(body));
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Value {
        let answer = self.request("GET", path, &[], b"");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Timings as JSON under further headers.
    pub fn send(&self, headers: &[(&str, &str)], body: &str) -> Answer {
        let headers: Vec<_> = headers.iter().copied().chain([("Content-Type", "application/json")]).collect();
        self.request("POST", "/api/v1/timings", &headers, body.as_bytes())
    }

    pub fn send_ndjson(&self, body: &[u8]) -> Answer {
        self.request("POST", "/api/v1/timings", &[("Content-Type", "application/x-ndjson")], body)
    }

    /// Every request ever counted for a service.
    pub fn requests(&self, service: &str) -> u64 {
        let list = self.get(&format!("/api/v1/endpoints?service={service}"));
        list["endpoints"].as_array().unwrap().iter().map(|e| e["requests"].as_u64().unwrap()).sum()
    }

    /// `slowburn_ingest_timings_total` by outcome.
    pub fn fate(&self, outcome: &str) -> u64 {
        let metrics = self.request("GET", "/metrics", &[], b"").text();
        let name = format!("slowburn_ingest_timings_total{{outcome=\"{outcome}\"}} ");
        let line = metrics.lines().find_map(|l| l.strip_prefix(&name)).unwrap_or_else(|| panic!("no {outcome} in {metrics}"));
        line.parse().unwrap()
    }

    /// Waits until an outcome has its count: a refusal is counted with the next write, at the latest after a second.
    pub fn expect_fate(&self, outcome: &str, count: u64) {
        let mut last = 0;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            last = self.fate(outcome);
            if last >= count {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(last, count, "timings counted as {outcome}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads up to the end of the connection.
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A reset after the answer takes nothing from it.
        let _end = stream.read_to_end(&mut bytes);
        Self::parse(&bytes).unwrap_or_else(|| panic!("no answer but {:?}", String::from_utf8_lossy(&bytes)))
    }

    /// Reads one answer off a connection that stays open.
    pub fn read_one(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let mut byte = [0; 4096];
        loop {
            let n = stream.read(&mut byte).unwrap();
            assert!(n > 0, "the connection was closed");
            bytes.extend_from_slice(&byte[..n]);
            if let Some(answer) = Self::parse(&bytes)
                && answer.header("content-length").is_none_or(|l| l.parse() == Ok(answer.body.len()))
            {
                return answer;
            }
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
        Some(Self { status, headers, body: bytes[end + 4..].to_vec() })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as it was before it was sent in pieces, or packed.
    pub fn whole(&self) -> Vec<u8> {
        let mut whole = Vec::new();
        if self.header("transfer-encoding") == Some("chunked") {
            let mut rest = self.body.as_slice();
            loop {
                let end = rest.windows(2).position(|w| w == b"\r\n").unwrap();
                let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
                whole.extend_from_slice(&rest[end + 2..end + 2 + length]);
                if length == 0 {
                    break;
                }
                rest = &rest[end + length + 4..];
            }
        } else {
            whole.clone_from(&self.body);
        }
        if self.header("content-encoding") == Some("gzip") {
            let mut plain = Vec::new();
            flate2::read::MultiGzDecoder::new(whole.as_slice()).read_to_end(&mut plain).unwrap();
            whole = plain;
        }
        whole
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }

    /// Checks an answer that is an error: the status, and the one form that all errors have.
    #[track_caller]
    pub fn refused(&self, status: u16, part: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error in {body}"));
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        assert!(error["code"].as_str().is_some_and(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')), "{body}");
        assert!(error["message"].as_str().is_some_and(|m| m.contains(part)), "{part:?} is not in {body}");
    }

    /// Checks an answer to timings.
    #[track_caller]
    pub fn taken(&self, accepted: u64, rejected: u64) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        let body = self.json();
        assert_eq!((body["accepted"].as_u64(), body["rejected"].as_u64()), (Some(accepted), Some(rejected)), "{body}");
        body
    }
}
