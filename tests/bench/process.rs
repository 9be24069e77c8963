//! A server as a process of its own, with the CPU seconds and the memory that it takes.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// In which `/proc/PID/stat` counts: Linux shows 100 ticks a second on every architecture that Slowburn is built for.
const TICKS_PER_S: f64 = 100.0;

/// Longer than a start takes.
const START_WAIT: Duration = Duration::from_secs(60);

const READ_WAIT: Duration = Duration::from_secs(120);

/// Fields of `/proc/WHO/stat` from the third on, as `proc(5)` numbers them from 3.
fn stat(who: &str) -> Vec<f64> {
    let text = fs::read_to_string(format!("/proc/{who}/stat")).unwrap();
    let (_, fields) = text.rsplit_once(") ").unwrap();
    fields.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect()
}

/// User and system time of all threads of this process so far.
pub fn own_cpu_s() -> f64 {
    let fields = stat("self");
    (fields[14 - 3] + fields[15 - 3]) / TICKS_PER_S
}

/// The same of children that have ended.
pub fn ended_children_cpu_s() -> f64 {
    let fields = stat("self");
    (fields[16 - 3] + fields[17 - 3]) / TICKS_PER_S
}

/// Nanoseconds that this thread has run.
pub fn thread_cpu_ns() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// `VmRSS` of this process in MiB.
pub fn own_memory_mib() -> f64 {
    memory_mib("self", "VmRSS")
}

fn memory_mib(who: &str, name: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{who}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1_024.0
}

/// Bytes of all files in a folder and its folders; 0 where there is none.
pub fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { folder_bytes(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) }).sum()
}

/// An answer to a GET.
pub struct Page {
    pub status: u16,
    pub body: String,
    pub wall: Duration,
}

/// Asks as HTTP/1.0 does, so that the body comes in one piece and ends with the connection.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<Page> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(READ_WAIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.get(9..12).and_then(|digits| digits.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    let head = answer.find("\r\n\r\n").map_or(0, |at| at + 4);
    Ok(Page { status, body: answer.split_off(head), wall: start.elapsed() })
}

/// A server under measurement. It is killed when it is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub data_dir: PathBuf,
}

impl Server {
    /// Starts `slowburn serve` in a folder and waits until it is ready. Also how long that took, from exec on.
    pub fn start(folder: &Path, config: &str) -> (Self, Duration) {
        fs::create_dir_all(folder).unwrap();
        let (file, data_dir) = (folder.join("slowburn.toml"), folder.join("data"));
        fs::write(&file, config).unwrap();
        let start = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_slowburn"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&file)
            .arg("--data-dir")
            .arg(&data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = String::new();
        let address = loop {
            let Some(line) = lines.next() else { panic!("the server ended before it listened:\n{said}") };
            if let Some(address) = line.strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
            said += &line;
            said.push('\n');
        };
        // Read on, so that the server never waits for room in the pipe. A warning under load is a finding, and so is why it ended.
        std::thread::spawn(move || lines.filter(|line| !line.contains("INFO")).for_each(|line| eprintln!("server: {line}")));
        let server = Self { child, address, data_dir };
        server.wait_for("/readyz");
        (server, start.elapsed())
    }

    /// Starts another server, which gets its address from `arguments`.
    pub fn start_peer(program: &str, arguments: &[String], address: SocketAddr, data_dir: &Path, health: &str) -> Self {
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, address, data_dir: data_dir.to_owned() };
        server.wait_for(health);
        server
    }

    fn wait_for(&self, path: &str) {
        let start = Instant::now();
        while !get(self.address, path).is_ok_and(|page| page.status == 200) {
            assert!(start.elapsed() < START_WAIT, "{path} does not answer 200");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    pub fn cpu_s(&self) -> f64 {
        let fields = stat(&self.child.id().to_string());
        (fields[14 - 3] + fields[15 - 3]) / TICKS_PER_S
    }

    /// The same of one of its threads; 0 where none has the name.
    pub fn thread_cpu_s(&self, name: &str) -> f64 {
        self.threads_cpu_s(name).iter().sum()
    }

    /// The same of each of its threads of that name, ascending by when they began.
    pub fn threads_cpu_s(&self, name: &str) -> Vec<f64> {
        let process = self.child.id();
        let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
        let named = threads.filter(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name));
        let mut numbers: Vec<u32> = named.map(|thread| thread.file_name().to_str().unwrap().parse().unwrap()).collect();
        numbers.sort_unstable();
        let cpu_s = |number| {
            let fields = stat(&format!("{process}/task/{number}"));
            (fields[14 - 3] + fields[15 - 3]) / TICKS_PER_S
        };
        numbers.into_iter().map(cpu_s).collect()
    }

    /// `VmRSS` (now) or `VmHWM` (at most), in MiB.
    pub fn memory_mib(&self, name: &str) -> f64 {
        memory_mib(&self.child.id().to_string(), name)
    }

    /// Reads a page that is to be there.
    pub fn get(&self, path: &str) -> Page {
        let page = get(self.address, path).unwrap();
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        page
    }

    /// The sum of a metric's samples whose labels contain one of the texts.
    pub fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let page = self.get("/metrics");
        let samples = page.body.lines().filter(|line| line.starts_with(name) && labels.iter().any(|label| line.contains(label)));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }

    /// Timings that were taken, those that came late among them.
    pub fn taken(&self) -> u64 {
        self.metric("slowburn_ingest_timings_total", &["outcome=\"accepted\"", "outcome=\"late\""])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// An address of loopback that was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
