//! The parts of the story: the built server, the shop, a mail server, Prometheus, each a process that ends with its value; a small HTTP client; waiting with a deadline.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

/// A process that is killed when it goes out of sight; its standard error is kept and shown when the test fails.
pub(crate) struct Process {
    name: String,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts it. Its lines of standard error also come through the receiver.
    pub(crate) fn start(name: &str, command: &mut Command) -> (Self, Receiver<String>) {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (lines, keep) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&said));
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                keep.lock().unwrap().push(line.clone());
                // Only the first lines are waited for.
                tell.send(line).ok();
            }
        });
        (Self { name: name.to_owned(), child, said }, told)
    }

    pub(crate) fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status().unwrap().success(), "kill -s {signal}");
    }

    /// Asks it to stop and waits for its end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        let mut status = None;
        until(&format!("{} ends after SIGTERM", self.name), 30, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let said = self.said.lock().unwrap();
            for line in &said[said.len().saturating_sub(40)..] {
                eprintln!("{}: {line}", self.name);
            }
        }
    }
}

/// Waits until a condition holds; fails when it does not within so many seconds.
#[track_caller]
pub(crate) fn until(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let start = now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[expect(clippy::disallowed_methods, reason = "deadlines of real processes")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "timings that a real server takes for new")]
pub(crate) fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// One request; HTTP/1.0, so that the end of the answer is the end of the connection.
pub(crate) fn ask(to: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {to}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let cut_off = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the answer was cut off");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut_off)?;
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse::<usize>().unwrap()));
    if length.is_some_and(|length| body.len() < length) {
        return Err(cut_off());
    }
    Ok((head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(cut_off)?, body.to_owned()))
}

/// The JSON behind a path.
pub(crate) fn get(from: SocketAddr, path: &str) -> Value {
    let (status, body) = ask(from, "GET", path, "", "").unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// Series, trace, value, Unix milliseconds.
pub(crate) type Exemplar = (BTreeMap<String, String>, String, String, i64);

/// What anybody with Prometheus' API answers when it is asked for exemplars of the last hour.
pub(crate) fn exemplars(from: SocketAddr, selector: &str) -> Vec<Exemplar> {
    let now_s = now_ms() / 1_000;
    let answer = get(from, &format!("/api/v1/query_exemplars?query={}&start={}&end={}", encoded(selector), now_s - 3_600, now_s + 60));
    assert_eq!(answer["status"], "success", "{answer}");
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let mut found = Vec::new();
    for series in answer["data"].as_array().unwrap() {
        let labels = series["seriesLabels"].as_object().unwrap().iter().filter(|(name, _)| !["job", "instance"].contains(&name.as_str()));
        let labels: BTreeMap<String, String> = labels.map(|(name, value)| (name.clone(), text(value))).collect();
        for exemplar in series["exemplars"].as_array().unwrap() {
            assert_eq!(exemplar["labels"].as_object().unwrap().len(), 1, "{exemplar}");
            #[expect(clippy::cast_possible_truncation, reason = "milliseconds of a date are far below 2^53")]
            let ms = (exemplar["timestamp"].as_f64().unwrap() * 1e3).round() as i64;
            found.push((labels.clone(), text(&exemplar["labels"]["trace_id"]), text(&exemplar["value"]), ms));
        }
    }
    found.sort();
    found
}

/// The server under test, in a directory of its own.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    dir: PathBuf,
}

impl Server {
    pub(crate) fn start(dir: &Path, config: &str) -> Self {
        std::fs::write(dir.join("slowburn.toml"), config).unwrap();
        Self::start_at(dir, "127.0.0.1:0".parse().unwrap())
    }

    fn start_at(dir: &Path, listen: SocketAddr) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slowburn"));
        command.args(["serve", "--listen", &listen.to_string()]).arg("--config").arg(dir.join("slowburn.toml")).arg("--data-dir").arg(dir.join("data"));
        let (process, lines) = Process::start("slowburn", command.env("RUST_LOG", "info,sled=warn"));
        let address = listening(&lines, "slowburn");
        Self { process, address, dir: dir.to_owned() }
    }

    /// Starts it again on the same data and the same port.
    pub(crate) fn start_again(&mut self) {
        self.process.kill();
        let (dir, address) = (self.dir.clone(), self.address);
        *self = Self::start_at(&dir, address);
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        get(self.address, path)
    }

    /// Posts lines and gives the answer back.
    pub(crate) fn post(&self, headers: &str, lines: &str) -> (u16, Value) {
        let (status, body) = self.try_post(headers, lines).unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }

    pub(crate) fn try_post(&self, headers: &str, lines: &str) -> std::io::Result<(u16, String)> {
        ask(self.address, "POST", "/api/v1/timings", &format!("Content-Type: application/x-ndjson\r\n{headers}"), lines)
    }

    pub(crate) fn scrape(&self) -> String {
        let (status, body) = ask(self.address, "GET", "/metrics", "", "").unwrap();
        assert_eq!(status, 200);
        body
    }

    pub(crate) fn samples(&self) -> BTreeMap<String, f64> {
        samples(&self.scrape())
    }

    /// Whether everything up to this moment was judged.
    pub(crate) fn has_judged(&self, unix_ms: u64) -> bool {
        self.samples()["slowburn_judged_timestamp_seconds"] * 1000.0 >= unix_ms as f64
    }

    pub(crate) fn incidents(&self) -> Vec<Value> {
        self.get("/api/v1/incidents")["incidents"].as_array().unwrap().clone()
    }
}

/// A scrape by series.
pub(crate) fn samples(scrape: &str) -> BTreeMap<String, f64> {
    let lines = scrape.lines().filter(|l| !l.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// The series that may never fall: what Prometheus takes for a counter, by the types of the scrape.
pub(crate) fn counters(scrape: &str) -> BTreeMap<String, f64> {
    let types: BTreeMap<&str, &str> = scrape.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let rises = |series: &str| {
        let name = series.split('{').next().unwrap();
        let part_of = |suffix: &str| name.strip_suffix(suffix).and_then(|n| types.get(n)).is_some_and(|t| matches!(*t, "histogram" | "summary"));
        types.get(name) == Some(&"counter") || ["_bucket", "_sum", "_count"].into_iter().any(part_of)
    };
    samples(scrape).into_iter().filter(|(series, _)| rises(series)).collect()
}

fn listening(lines: &Receiver<String>, name: &str) -> SocketAddr {
    loop {
        let line = lines.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|e| panic!("{name} is not ready: {e}"));
        if let Some(address) = line.strip_prefix("listening on http://") {
            return address.trim().parse().unwrap();
        }
    }
}

/// Whether a peer is there; when it is not, says so, and fails where peers are required.
pub(crate) fn has(is_there: bool, peer: &str) -> bool {
    if !is_there {
        assert_ne!(std::env::var("SLOWBURN_REQUIRE_PEERS").as_deref(), Ok("1"), "{peer} is required: .ci/run installs it");
        eprintln!("skipped: {peer} is not there");
    }
    is_there
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

pub(crate) fn has_mail_server() -> bool {
    has(runs("python3", &["-c", "import aiosmtpd"]), "aiosmtpd==1.4.6 (Python)")
}

/// The reference reader of `OpenMetrics`, which is strict.
pub(crate) fn has_open_metrics() -> bool {
    has(runs("python3", &["-c", "import prometheus_client.openmetrics.parser"]), "prometheus-client==0.26.0 (Python)")
}

fn encoded(query: &str) -> String {
    query.bytes().map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

pub(crate) fn has_prometheus() -> bool {
    has(runs("prometheus", &["--version"]) && runs("promtool", &["--version"]), "Prometheus with promtool")
}

/// The example of the tower client, which `cargo test --workspace` builds beside the tests.
fn shop_binary() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/shop")
}

pub(crate) fn has_shop() -> bool {
    has(shop_binary().is_file(), "the shop (cargo build -p slowburn-tower --example shop)")
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A real SMTP server; each mail that it takes becomes a file.
pub(crate) struct MailServer {
    process: Process,
    pub(crate) port: u16,
    dir: PathBuf,
}

const MAIL_SERVER: &str = r#"
import asyncio, os, sys
from aiosmtpd.smtp import SMTP
folder, port = sys.argv[1], int(sys.argv[2])
class Handler:
    async def handle_DATA(self, server, session, envelope):
        name = os.path.join(folder, "%04d.eml" % len([n for n in os.listdir(folder) if n.endswith(".eml")]))
        with open(name + ".part", "wb") as file:
            file.write(envelope.content)
        os.rename(name + ".part", name)
        return "250 OK"
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler()), "127.0.0.1", port)
    print("listening on http://127.0.0.1:%d" % server.sockets[0].getsockname()[1], file=sys.stderr, flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

impl MailServer {
    pub(crate) fn start(dir: &Path) -> Self {
        let mails = dir.join("mails");
        std::fs::create_dir_all(&mails).unwrap();
        Self::start_at(&mails, 0)
    }

    fn start_at(dir: &Path, port: u16) -> Self {
        let (process, lines) = Process::start("mail server", Command::new("python3").args(["-c", MAIL_SERVER]).arg(dir).arg(port.to_string()));
        let port = listening(&lines, "the mail server").port();
        Self { process, port, dir: dir.to_owned() }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn start_again(&mut self) {
        *self = Self::start_at(&self.dir.clone(), self.port);
    }

    /// The mails taken so far, in order.
    pub(crate) fn mails(&self) -> Vec<Vec<u8>> {
        mails(&self.dir)
    }
}

fn mails(dir: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "eml")).collect();
    names.sort();
    names.iter().map(|name| std::fs::read(name).unwrap()).collect()
}

/// The shop, timed by the tower client, and customers who order one thing after another.
pub(crate) struct Shop {
    pub(crate) process: Process,
    address: SocketAddr,
}

impl Shop {
    pub(crate) fn start(slowburn: SocketAddr, load: u32) -> Self {
        let mut command = Command::new(shop_binary());
        command.args(["--listen", "127.0.0.1:0", "--flush-ms", "500", "--load", &load.to_string(), "--slowburn", &format!("http://{slowburn}")]);
        let (process, lines) = Process::start("shop", &mut command);
        let address = listening(&lines, "shop");
        Self { process, address }
    }

    pub(crate) fn set(&self, mode: &str) {
        assert_eq!(ask(self.address, "POST", &format!("/control?{mode}"), "", "").unwrap().0, 200, "{mode}");
    }

    pub(crate) fn customers(&self, how_many: usize) -> Customers {
        let address = self.address;
        Customers::start(how_many, move || ask(address, "POST", "/orders", "", "").is_ok_and(|(status, _)| status == 201))
    }
}

/// Threads that do the same thing again and again, and count how often it went well.
pub(crate) struct Customers {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Customers {
    pub(crate) fn start(how_many: usize, order: impl Fn() -> bool + Clone + Send + 'static) -> Self {
        let (stop, served, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let threads = (0..how_many).map(|_| {
            let (order, stop, served, failed) = (order.clone(), Arc::clone(&stop), Arc::clone(&served), Arc::clone(&failed));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let count = if order() { &served } else { &failed };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Self { threads: threads.collect(), stop, served, failed }
    }

    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Ends them: how often it went well, and how often not.
    pub(crate) fn go_home(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        (self.served(), self.failed.load(Ordering::Relaxed))
    }
}

impl Drop for Customers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn prometheus_version() -> (u32, u32) {
    let said = Command::new("prometheus").arg("--version").output().unwrap();
    let said = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    let mut numbers = said.split("version ").nth(1).unwrap().split(['.', '+', ' ', ',']).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether it can be told which formats to ask for.
pub(crate) fn prometheus_chooses_formats() -> bool {
    prometheus_version() >= (2, 49)
}

/// A real Prometheus that scrapes one address every second.
pub(crate) struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    pub(crate) fn start(dir: &Path, target: SocketAddr) -> Self {
        Self::start_with(dir, target, "", "", &[])
    }

    /// With rules that it evaluates every second; of them a glob.
    pub(crate) fn start_with_rules(dir: &Path, target: SocketAddr, rules: &str) -> Self {
        Self::start_with(dir, target, &format!("rule_files: ['{rules}']\n"), "", &[])
    }

    /// One that keeps exemplars and takes native histograms, by whatever its version wants for it: a flag up to 3.7, a setting of the scrape from then on. Where it can, it takes the classic buckets too.
    pub(crate) fn start_native(dir: &Path, target: SocketAddr) -> Self {
        let version = prometheus_version();
        let settings = match version {
            (3.., _) if version >= (3, 8) => ", scrape_native_histograms: true, always_scrape_classic_histograms: true",
            (3.., _) => ", always_scrape_classic_histograms: true",
            (2, 45..) => ", scrape_classic_histograms: true",
            _ => "",
        };
        let features = if version < (3, 8) { "exemplar-storage,native-histograms" } else { "exemplar-storage" };
        Self::start_with(dir, target, "", settings, &[&format!("--enable-feature={features}")])
    }

    /// One that keeps exemplars and asks for one format: by its name in the settings where there is such a setting; before that for protobuf with native histograms, else
    /// for `OpenMetrics`, whatever it is to be.
    pub(crate) fn start_asking_for(dir: &Path, target: SocketAddr, format: &str) -> Self {
        let (version, is_protobuf) = (prometheus_version(), format == "PrometheusProto");
        let protocols = if prometheus_chooses_formats() { format!(", scrape_protocols: ['{format}']") } else { String::new() };
        let natives = if is_protobuf && version >= (3, 8) { ", scrape_native_histograms: true" } else { "" };
        let features = if is_protobuf && version < (3, 8) { "exemplar-storage,native-histograms" } else { "exemplar-storage" };
        Self::start_with(dir, target, "", &format!("{protocols}{natives}"), &[&format!("--enable-feature={features}")])
    }

    /// One that takes remote-write and native histograms on a port of its own, and scrapes beside.
    pub(crate) fn start_receiving(dir: &Path, port: u16, target: SocketAddr) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self::start_at(dir, address, target, "", "", &["--web.enable-remote-write-receiver", "--enable-feature=native-histograms"])
    }

    fn start_with(dir: &Path, target: SocketAddr, rules: &str, settings: &str, arguments: &[&str]) -> Self {
        Self::start_at(dir, SocketAddr::from(([127, 0, 0, 1], free_port())), target, rules, settings, arguments)
    }

    fn start_at(dir: &Path, address: SocketAddr, target: SocketAddr, rules: &str, settings: &str, arguments: &[&str]) -> Self {
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n{rules}\
             scrape_configs: [{{job_name: slowburn, static_configs: [{{targets: ['{target}']}}]{settings}}}]\n"
        );
        std::fs::write(dir.join("prometheus.yml"), config).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()));
        command.arg(format!("--web.listen-address={address}")).args(arguments).stdout(Stdio::null());
        let process = Process::start("prometheus", &mut command).0;
        until("Prometheus is ready", 60, || ask(address, "GET", "/-/ready", "", "").is_ok_and(|a| a.0 == 200));
        Self { _process: process, address }
    }

    /// One on the blocks in `prometheus` under that folder, however old these are, with rules; there is nothing to scrape.
    pub(crate) fn start_on_past(dir: &Path, rules: &str) -> Self {
        let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
        Self::start_with(dir, nobody, &format!("rule_files: ['{rules}']\n"), "", &["--storage.tsdb.retention.time=100y", "--query.max-samples=500000000"])
    }

    /// The series of a query over a range of Unix seconds.
    pub(crate) fn range(&self, query: &str, from_s: i64, to_s: i64, step_s: i64) -> Vec<Value> {
        let asked = format!("/api/v1/query_range?query={}&start={from_s}&end={to_s}&step={step_s}", encoded(query));
        let (status, body) = ask(self.address, "GET", &asked, "", "").unwrap();
        assert_eq!(status, 200, "{query}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["data"]["result"].as_array().unwrap().clone()
    }

    /// What it answers to a path.
    pub(crate) fn get(&self, path: &str) -> Value {
        get(self.address, path)
    }

    /// The exemplars of a selector: of each its series without the target's labels, trace, value, Unix milliseconds.
    pub(crate) fn exemplars(&self, selector: &str) -> Vec<Exemplar> {
        exemplars(self.address, selector)
    }

    /// The value of a query's first series; fails when it is not understood.
    pub(crate) fn query(&self, query: &str) -> Option<f64> {
        let answer = self.answer(query).unwrap_or_else(|e| panic!("{query}: {e}"));
        answer["data"]["result"][0]["value"][1].as_str().map(|v| v.parse().unwrap())
    }

    /// How many series a query has, native histograms among them; or what Prometheus has against it.
    pub(crate) fn series(&self, query: &str) -> Result<usize, String> {
        Ok(self.answer(query)?["data"]["result"].as_array().unwrap().len())
    }

    /// All that a query answers.
    pub(crate) fn result(&self, query: &str) -> Value {
        self.answer(query).unwrap_or_else(|e| panic!("{query}: {e}"))
    }

    fn answer(&self, query: &str) -> Result<Value, String> {
        let (status, body) = ask(self.address, "GET", &format!("/api/v1/query?query={}", encoded(query)), "", "").unwrap();
        if status == 200 { Ok(serde_json::from_str(&body).unwrap()) } else { Err(body) }
    }
}
